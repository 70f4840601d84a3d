"""Traffic Indications (Cisco's packet type 8): what the hub sends and what a spoke makes of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest

from dsvpn.nhrp import NhsConfig, Route
from dsvpn.nhrp.limits import MAX_REDIRECT_PAIRS, REDIRECT_BURST, REDIRECT_INTERVAL
from dsvpn.wire.nhrp import PacketType, TrafficIndication, decode, encode
from dsvpn.wire.nhrp_cie import AddressFamily, ProtocolType
from dsvpn.wire.nhrp_extensions import cisco_authentication
from tests.nhrp.bench import HUB_PEER, a, hub, resolution_reply, spoke
from tests.nhrp.network import ip_head


def indication(source: str, destination: str) -> TrafficIndication:
    head = ip_head(a(source), a(destination))
    own = (a("192.0.2.1"), a("10.0.0.1"))
    return TrafficIndication(AddressFamily.IPV4, ProtocolType.IPV4, 1, *own, a(source), head)


class TestHub:
    # spoke1                                 hub                                   spoke2
    #   data 10.1.0.5 -> 10.2.0.5  -------->      -------------------------------->
    #   <--------------  Traffic Indication
    def test_indication_has_the_form_that_frr_sends(self) -> None:
        bench = hub()
        head = ip_head(a("10.1.0.5"), a("10.2.0.5"), 84)
        bench.engine.handle_redirect(head, 1, bench.now)
        [(data, peer)] = bench.engine.packets_to_send(bench.now)
        assert peer == 1
        # Fixed header, lengths, six unused octets, three addresses, the packet; no extensions.
        assert len(data) == 20 + 8 + 12 + 84
        assert data[14:16] == bytes(2)
        packet = decode(data)
        assert packet == indication("10.1.0.5", "10.2.0.5")

    def test_quote_is_bounded(self) -> None:
        bench = hub()
        bench.engine.handle_redirect(ip_head(a("10.1.0.5"), a("10.2.0.5"), 1400), 1, bench.now)
        assert len(bench.one(TrafficIndication).packet) == 128

    def test_with_authentication(self) -> None:
        bench = hub(lambda config: replace(config, authentication=b"s3cret"))
        bench.engine.handle_redirect(ip_head(a("10.1.0.5"), a("10.2.0.5")), 1, bench.now)
        assert bench.one(TrafficIndication).extensions == [cisco_authentication(b"s3cret")]

    def test_limited_per_pair(self) -> None:
        bench = hub()
        forth, back = ip_head(a("10.1.0.5"), a("10.2.0.5")), ip_head(a("10.2.0.5"), a("10.1.0.5"))
        for _ in range(10):
            bench.engine.handle_redirect(forth, 1, bench.now)
            bench.engine.handle_redirect(back, 2, bench.now)
        assert [peer for _, peer in bench.sent()] == [1, 2], "one for each direction"
        bench.pass_time(REDIRECT_INTERVAL)
        bench.engine.handle_redirect(forth, 1, bench.now)
        assert len(bench.sent()) == 1

    def test_limited_per_peer_and_bounded(self) -> None:
        bench = hub()
        for number in range(MAX_REDIRECT_PAIRS + 100):
            bench.engine.handle_redirect(ip_head(a("10.1.0.5"), a("10.2.0.0") + number), number % 50, bench.now)
        assert len(bench.engine._redirects._sent) <= MAX_REDIRECT_PAIRS
        assert len(bench.sent()) <= 50 * REDIRECT_BURST
        for number in range(1000):
            bench.engine.handle_redirect(ip_head(a("10.1.0.6"), a("10.2.0.0") + number), 99, bench.now)
        assert len(bench.sent()) == REDIRECT_BURST

    @pytest.mark.parametrize(
        "head",
        [
            b"",
            b"\x45",
            b"\x55" + bytes(40),
            ip_head(a("10.1.0.5"), a("224.0.0.5")),
            ip_head(a("0.0.0.0"), a("10.2.0.5")),
            ip_head(a("10.1.0.5"), a("10.2.0.5"))[:19],
            ip_head(a("fd00::1"), a("fd00::2")),
        ],
    )
    def test_nothing_about_what_cannot_be_redirected(self, head: bytes) -> None:
        bench = hub()
        bench.engine.handle_redirect(head, 1, bench.now)
        assert bench.sent() == []

    def test_off(self) -> None:
        bench = hub(lambda config: replace(config, redirect=False))
        bench.engine.handle_redirect(ip_head(a("10.1.0.5"), a("10.2.0.5")), 1, bench.now)
        assert bench.sent() == []


class TestSpoke:
    # spoke1                                 hub
    #   <--------------  Traffic Indication
    #   Resolution Request 10.2.0.5  ------>
    def test_destination_of_the_quoted_packet_is_resolved(self) -> None:
        bench = spoke()
        bench.receive(indication("10.1.0.5", "10.2.0.5"), HUB_PEER, "192.0.2.1")
        request = bench.message(PacketType.RESOLUTION_REQUEST)
        assert request.destination_protocol == a("10.2.0.5")
        bench.receive(indication("10.1.0.5", "10.2.0.5"), HUB_PEER, "192.0.2.1")
        assert bench.sent() == [], "it is under way"
        bench.receive(resolution_reply(request, 2), HUB_PEER, "192.0.2.1")
        bench.events()
        bench.receive(indication("10.1.0.5", "10.2.0.99"), HUB_PEER, "192.0.2.1")
        assert bench.sent() == [], "the shortcut covers it"
        bench.receive(indication("10.1.0.5", "10.3.0.5"), HUB_PEER, "192.0.2.1")
        bench.message(PacketType.RESOLUTION_REQUEST)

    @pytest.mark.parametrize("destination", ["10.1.0.9", "10.0.0.11", "198.51.100.1", "224.0.0.9"])
    def test_only_what_goes_through_the_tunnel(self, destination: str) -> None:
        bench = spoke()
        bench.receive(indication("10.1.0.5", destination), HUB_PEER, "192.0.2.1")
        assert bench.sent() == []

    def test_off(self) -> None:
        bench = spoke(lambda config: replace(config, shortcut=False))
        bench.receive(indication("10.1.0.5", "10.2.0.5"), HUB_PEER, "192.0.2.1")
        assert bench.sent() == []
        assert bench.counters()["drop.shortcut_off"] == 1

    def test_strangers_are_not_followed(self) -> None:
        bench = spoke()
        bench.receive(indication("10.1.0.5", "10.2.0.5"), None, "198.51.100.66")
        assert bench.sent() == []

    def test_without_the_word_not_followed(self) -> None:
        bench = spoke(lambda config: replace(config, authentication=b"s3cret"))
        bench.receive(indication("10.1.0.5", "10.2.0.5"), HUB_PEER, "192.0.2.1")
        assert all(not isinstance(packet, TrafficIndication) for packet, _ in bench.sent())
        assert bench.counters()["drop.authentication"] >= 1
        assert bench.engine.snapshot(bench.now).resolutions == ()

    def test_damaged_quote(self) -> None:
        bench = spoke()
        bench.receive(replace(indication("10.1.0.5", "10.2.0.5"), packet=b"\x45\x00"), HUB_PEER, "192.0.2.1")
        assert bench.sent() == []

    def test_ipv6(self) -> None:
        bench = spoke(
            lambda config: replace(
                config,
                protocol_addresses=(*config.protocol_addresses, ip_interface("fd00::11/64")),
                nhs=(*config.nhs, NhsConfig(a("fd00::1"), a("192.0.2.1"))),
            ),
            up=False,
        )
        bench.routes.append(Route(ip_network("fd00::/16"), True, a("fd00::1")))
        bench.engine.peer_up(a("192.0.2.1"), HUB_PEER, bench.now)
        assert len(bench.sent()) == 2, "a registration for each family"
        head = ip_head(a("fd00:1::5"), a("fd00:2::5"))
        packet = TrafficIndication(
            AddressFamily.IPV4, ProtocolType.IPV6, 1, a("192.0.2.1"), a("fd00::1"), a("fd00:1::5"), head
        )
        bench.receive(encode(packet), HUB_PEER, "192.0.2.1")
        request = bench.message(PacketType.RESOLUTION_REQUEST)
        assert request.protocol_type == ProtocolType.IPV6
        assert request.destination_protocol == a("fd00:2::5")
