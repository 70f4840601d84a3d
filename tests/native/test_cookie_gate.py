"""The data plane's cookies: strangers get them, who brings one back comes through (RFC 7296 section 2.6)."""

from __future__ import annotations

import select
import socket
from ipaddress import ip_address
from itertools import count

import pytest

from dsvpn.addresses import Endpoint, Path
from dsvpn.ike.cookies import CookieJar
from dsvpn.wire import ikev2 as wire
from dsvpn_native import Dataplane

_LOCAL = ip_address("127.0.0.1")
_SECRET = bytes([7]) * 32


def free_ports() -> tuple[int, int]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        for made in (one, two):
            made.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def request(number: int, *first: wire.Payload) -> bytes:
    header = wire.Header(
        number.to_bytes(8, "big"), wire.ZERO_SPI, wire.ExchangeType.IKE_SA_INIT, wire.Flag.INITIATOR, 0
    )
    return wire.Message(header, (*first, wire.KeyExchange(31, bytes(range(32))), wire.Nonce(bytes(32)))).encode()


@pytest.mark.parametrize("workers", [True, False])
@pytest.mark.parametrize("nat", [False, True])
def test_only_who_brings_a_cookie_is_punted(workers: bool, nat: bool) -> None:
    plane = Dataplane()
    ports = free_ports()
    plane.open_underlay(ike_port=ports[0], nat_port=ports[1], esp=False, ipv6=False)
    marker = bytes(4) if nat else b""
    numbers = count(1)
    if workers:
        plane.start_workers()

    def turn() -> None:
        if not workers:
            for descriptor, _ in plane.descriptors():
                plane.drain(descriptor, 8)

    def taken() -> list[bytes]:
        ready = select.select([plane.punt_descriptor], [], [], 5.0)[0]
        assert ready
        return [bytes(punt.data) for punt in plane.take_punts(64)]

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.connect(("127.0.0.1", ports[1 if nat else 0]))
            peer.settimeout(5.0)
            first = request(next(numbers))
            peer.send(marker + first)
            turn()
            assert taken() == [first]
            plane.set_cookie_gate(3, _SECRET, b"")
            asked = request(next(numbers))
            peer.send(marker + asked)
            turn()
            answer = peer.recv(4096)
            # What the control plane would have sent, octet by octet.
            jar = CookieJar(lambda length: bytes([7]) * length)
            jar._version = 2
            path = Path(Endpoint(_LOCAL, 500), Endpoint(_LOCAL, peer.getsockname()[1]))
            assert answer == marker + bytes(jar.admit(asked, path, 100.0))
            assert plane.cookie_gate_counts() == (1, 0)
            (cookie,) = wire.Message.decode(answer[len(marker) :]).payloads
            good = request(2, cookie)
            peer.send(marker + good)
            turn()
            assert taken() == [good]
            plane.set_cookie_gate(0, b"", b"")
            last = request(next(numbers))
            peer.send(marker + last)
            turn()
            assert taken() == [last]
    finally:
        if workers:
            plane.stop_workers()
