from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from dsvpn.addresses import Address, Endpoint, Path
from dsvpn.errors import HostError, MisuseError
from dsvpn.ike import events, selectors
from dsvpn.ike.half_open import HalfOpenLimits
from dsvpn.ike.init import GRACE
from dsvpn.ike.suites import CIPHERS, GROUPS, PRFS
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike.harness import A, B, Change, Payloads, Wire, both_options, make_profile, make_wire


def fail_reason(net: Wire) -> str:
    (failed,) = net.a.of(events.IkeSaFailed)
    assert not net.a.established
    assert not net.a.children
    assert not net.b.established
    assert not net.b.children
    net.sleep(200)
    net.a.check_spis()
    net.b.check_spis()
    return failed.reason


def refusal(net: Wire) -> str:
    (refused,) = net.b.of(events.IkeAuthenticationRefused)
    return refused.reason


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("prf", PRFS)
@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_suite(cipher: str, prf: str, group: str) -> None:
    """
    HDR, SAi1, KEi, Ni, N(NAT_DETECTION_*)  -->
                                    <--  HDR, SAr1, KEr, Nr, N(NAT_DETECTION_*)
    HDR, SK {IDi, N(INITIAL_CONTACT), AUTH, N(USE_TRANSPORT_MODE), SAi2, TSi, TSr}  -->
                                    <--  HDR, SK {IDr, AUTH, N(USE_TRANSPORT_MODE), SAr2, TSi, TSr}
    """
    suite = f"{cipher}-{prf}-{group}"
    net = make_wire(*both_options(ike=(suite,), esp=(f"{cipher}-{group}",)))
    net.connect()
    assert len(net.record) == 4
    net.check_agreement()
    assert net.a.sealing
    assert net.b.sealing
    for end in net.ends:
        (status,) = end.snapshot(net.now)
        assert status.suite == suite
        assert status.children[0].suite == f"{cipher}-{group}"
        assert end.child.esn
        assert end.child.suite == cipher
        assert not end.child.udp_encapsulation
        assert len(end.child.inbound_keymat) == CIPHERS[cipher].keymat_length
    established = net.a.of(events.IkeSaEstablished)[0]
    assert (established.initiator, established.remote_identity) == (True, "b")
    assert (established.local_nat, established.remote_nat) == (False, False)
    assert established.path == net.a.path_to(net.b)
    answered = net.b.of(events.IkeSaEstablished)[0]
    assert (answered.initiator, answered.remote_identity, answered.initial_contact) == (False, "a", True)
    assert (established.remote_claimed, answered.remote_claimed) == (B, A)


def test_the_responder_decides_by_its_own_preference() -> None:
    strong, fast = "aes256gcm16-prfsha384-x25519", "aes128gcm16-prfsha256-x25519"
    net = make_wire(make_profile("a", ike=(fast, strong)), make_profile("b", ike=(strong, fast)))
    net.connect()
    assert net.a.snapshot(net.now)[0].suite == strong


def test_another_group_is_asked_for() -> None:
    """
    HDR, SAi1, KEi (X25519), Ni  -->
                                    <--  HDR, N(INVALID_KE_PAYLOAD: ECP-384)
    HDR, SAi1, KEi (ECP-384), Ni  -->
    """
    net = make_wire(
        make_profile("a", ike=("aes128gcm16-prfsha256-x25519", "aes128gcm16-prfsha256-ecp384")),
        make_profile("b", ike=("aes128gcm16-prfsha256-ecp384",)),
    )
    net.connect()
    assert len(net.record) == 6
    assert net.a.snapshot(net.now)[0].suite == "aes128gcm16-prfsha256-ecp384"
    net.check_agreement()


@pytest.mark.parametrize("wanted", GROUPS)
def test_every_group_can_be_asked_for(wanted: str) -> None:
    """INVALID_KE_PAYLOAD in IKE_SA_INIT, in the rekey of a CHILD_SA and in that of the IKE SA."""
    first = "x25519" if wanted != "x25519" else "ecp256"
    both = tuple(f"aes128gcm16-prfsha256-{group}" for group in (first, wanted))
    esp = tuple(f"aes128gcm16-{group}" for group in (first, wanted))
    net = make_wire(make_profile("a", ike=both, esp=esp), make_profile("b", ike=both[1:], esp=esp[1:]))
    net.connect()
    # What is current is also what a rekey begins with: let it begin with the other.
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    net.settle()
    (sa,) = net.a.engine._context.ike_sas.values()
    assert sa.suite is not None
    sa.suite = replace(sa.suite, group=GROUPS[first])
    net.a.engine.rekey_ike(net.a.handle, net.now)
    net.settle()
    net.sleep(100)
    net.check_agreement()
    for end in net.ends:
        (status,) = end.snapshot(net.now)
        assert status.suite == both[1]
        assert [child.suite for child in status.children] == [esp[1]]
    invalid = [flight for flight in net.record if len(flight.data) < 90 and flight.sender is net.b]
    assert len(invalid) >= 3


def test_a_group_that_was_not_offered_is_no_reason_to_change() -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    request = wire.Message.decode(net.lose("a").data)
    forged = wire.Message(
        replace(request.header, flags=wire.Flag.RESPONSE),
        (wire.Notify(NotifyType.INVALID_KE_PAYLOAD, (2).to_bytes(2, "big")),),
    )
    net.a.engine.receive_datagram(forged.encode(), net.a.path_to(net.b), net.now)
    net.collect()
    assert not net.flying["a"]
    # The retransmission is answered before the grace ends, and the forgery is forgotten.
    net.sleep(5)
    assert net.a.established
    assert net.b.established


def test_no_suite_in_common() -> None:
    """
    HDR, SAi1, KEi, Ni  -->
                                    <--  HDR, N(NO_PROPOSAL_CHOSEN)
    """
    net = make_wire(make_profile("a", ike=("aes256gcm16-prfsha512-x25519",)))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert not net.a.events
    start = net.now
    net.sleep(GRACE + 0.1)
    (failed,) = net.a.of(events.IkeSaFailed)
    assert net.now - start >= GRACE
    assert "NO_PROPOSAL_CHOSEN" in fail_reason(net)
    assert failed.path == net.a.path_to(net.b)


def test_no_esp_suite_in_common() -> None:
    net = make_wire(make_profile("a", esp=("aes256gcm16",)))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert refusal(net) == "no ESP suite in common"
    assert fail_reason(net) == "peer refuses the CHILD_SA: NO_PROPOSAL_CHOSEN"


def test_wrong_psk() -> None:
    """
    HDR, SK {IDi, AUTH, …}  -->
                                    <--  HDR, SK {N(AUTHENTICATION_FAILED)}
    """
    net = make_wire(make_profile("a", psk=b"another secret"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert refusal(net) == "peer has another pre-shared key"
    (refused,) = net.b.of(events.IkeAuthenticationRefused)
    assert (refused.profile, refused.remote_identity, refused.path) == ("default", "a", net.b.path_to(net.a))
    assert "AUTHENTICATION_FAILED" in fail_reason(net)


def test_a_name_that_is_nobodys() -> None:
    """IDr "hub" is wanted and nobody is called so."""
    net = make_wire(make_profile("a", "hub"), make_profile("b"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert refusal(net) == "peer wants to speak to hub, which is not us"
    assert "AUTHENTICATION_FAILED" in fail_reason(net)


def test_a_responder_with_another_name_is_refused() -> None:
    net = make_wire(make_profile("a", "hub"), make_profile("b"))
    _auth_with(net, lambda payloads: [p for p in payloads if not isinstance(p, wire.IdentificationResponder)])
    net.settle()
    assert net.a.of(events.IkeSaFailed)[0].reason == "peer is b, not hub"
    assert [e.reason for e in net.b.of(events.IkeSaDeleted)] == ["the peer refused our proof of identity"]
    fail_reason(net)


def test_forged_responder_proof() -> None:
    """A responder whose AUTH does not fit is refused by the initiator, who tells it so."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    # The attacker in the middle changes the responder's first message so that keys still agree: a further
    # notification is covered by AUTH and by nothing else.

    def add_notify(data: bytes) -> bytes:
        message = wire.Message.decode(data)
        return wire.Message(message.header, (*message.payloads, wire.Notify(40000))).encode()

    net.deliver("b", add_notify)
    net.settle()
    assert "another pre-shared key" in net.a.of(events.IkeSaFailed)[0].reason
    assert [e.reason for e in net.b.of(events.IkeSaDeleted)] == ["the peer refused our proof of identity"]
    fail_reason(net)


def test_downgraded_request_is_noticed() -> None:
    """The same with the initiator's offer: a proposal taken away in transit."""
    suites = ("aes256gcm16-prfsha384-x25519", "aes128gcm16-prfsha256-x25519")
    net = make_wire(*both_options(ike=suites))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()

    def weaken(data: bytes) -> bytes:
        message = wire.Message.decode(data)
        payloads: list[wire.Payload] = []
        for payload in message.payloads:
            weak = isinstance(payload, wire.SecurityAssociation)
            payloads.append(wire.SecurityAssociation(payload.proposals[1:]) if weak else payload)  # type: ignore[union-attr]
        return wire.Message(message.header, tuple(payloads)).encode()

    net.deliver("a", weaken)
    net.settle()
    assert refusal(net) == "peer has another pre-shared key"
    fail_reason(net)


def test_identities_choose_the_profile() -> None:
    """Two peers, two keys, one responder; and nobody takes the name of another with a key that is not its."""
    hub = [
        make_profile("hub", "s1", name="one", psk=b"key of s1"),
        make_profile("hub", "s2", name="two", psk=b"key of s2"),
        make_profile("hub", None, name="any", psk=b"key of all"),
    ]
    for name, psk, profile in (("s1", b"key of s1", "one"), ("S2", b"key of s2", "two"), ("s9", b"key of all", "any")):
        net = make_wire(make_profile(name, "hub", psk=psk), hub)
        net.connect()
        assert net.b.of(events.IkeSaEstablished)[0].profile == profile
    for name, psk in (("s1", b"key of s2"), ("s1", b"key of all"), ("s9", b"key of s1")):
        net = make_wire(make_profile(name, "hub", psk=psk), hub)
        net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
        net.settle()
        assert refusal(net) == "peer has another pre-shared key"
        fail_reason(net)


def test_profiles_for_anybody_are_told_apart_by_key_and_suite() -> None:
    hub = [
        make_profile("hub", name="one", psk=b"1"),
        make_profile("hub", name="two", psk=b"2"),
        make_profile("hub", name="strong", psk=b"1", ike=("aes256gcm16-prfsha512-x25519",)),
    ]
    for profile, psk, suite in (
        ("one", b"1", "aes128gcm16-prfsha256-x25519"),
        ("two", b"2", "aes128gcm16-prfsha256-x25519"),
        ("strong", b"1", "aes256gcm16-prfsha512-x25519"),
    ):
        net = make_wire(make_profile("s", psk=psk, ike=(suite,)), hub)
        net.connect()
        assert net.b.of(events.IkeSaEstablished)[0].profile == profile


def test_no_profile_for_an_identity() -> None:
    net = make_wire(make_profile("eve"), make_profile("b", "a"))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert refusal(net) == "no profile is for this identity"
    fail_reason(net)


def test_refusals_are_reported_at_a_limited_rate() -> None:
    net = make_wire(make_profile("a", psk=b"wrong"))
    for _ in range(60):
        net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
        net.settle()
    assert len(net.b.of(events.IkeAuthenticationRefused)) == 20
    assert len(net.a.of(events.IkeSaFailed)) == 60
    net.sleep(1.0)
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert "40 refusals that are not shown" in net.b.of(events.IkeAuthenticationRefused)[-1].reason


def test_half_open_sas_are_bounded_in_number_and_time() -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    first = net.lose("a")
    message = wire.Message.decode(first.data)
    bound = HalfOpenLimits().cookie_threshold_per_address
    for number in range(bound + 50):
        header = replace(message.header, initiator_spi=(number + 1).to_bytes(8, "big"))
        net.b.engine.receive_datagram(wire.Message(header, message.payloads).encode(), first.path, net.now)
        net.b.engine.datagrams_to_send(net.now)
    context = net.b.engine._context
    assert len(context.ike_sas) == len(context.half_open) == bound
    assert not net.b.snapshot(net.now)
    # The honest peer gets in although its address has had its share: it brings a cookie.
    net.hand(first)
    net.settle()
    assert net.a.established
    assert net.b.established
    net.sleep(31)
    assert len(context.ike_sas) == 1
    assert len(context.half_open) == 0


def _no_transport(payloads: Payloads) -> list[wire.Payload]:
    return [p for p in payloads if not (isinstance(p, wire.Notify) and p.type == NotifyType.USE_TRANSPORT_MODE)]


def test_tunnel_mode_is_refused_with_the_reason() -> None:
    """
    HDR, SK {IDi, AUTH, SAi2, TSi, TSr}  -->
                                    <--  HDR, SK {IDr, AUTH, N(NO_PROPOSAL_CHOSEN)}
    HDR, SK {D}  -->                <--  HDR, SK {D}
    """
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver_inside("a", _no_transport)
    net.settle()
    assert refusal(net) == "peer asks for tunnel mode; configure transport mode there"
    assert fail_reason(net) == "peer refuses the CHILD_SA: NO_PROPOSAL_CHOSEN"


def test_a_responder_that_wants_tunnel_mode_is_refused() -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver("a")
    net.deliver_inside("b", _no_transport)
    net.settle()
    assert net.a.of(events.IkeSaFailed)[0].reason == "peer insists on tunnel mode; configure transport mode there"
    assert net.b.of(events.IkeSaDeleted)
    fail_reason(net)


def _change_selectors(*selectors_i: wire.TrafficSelector) -> Change:
    def change(payloads: Payloads) -> list[wire.Payload]:
        return [
            wire.TrafficSelectorsInitiator(selectors_i) if isinstance(p, wire.TrafficSelectorsInitiator) else p
            for p in payloads
        ]

    return change


def _auth_with(net: Wire, change: Change) -> None:
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver_inside("a", change)


def test_two_selectors_with_the_gre_key_as_ports_are_narrowed_to_the_wide_one() -> None:
    """strongSwan's trap policies: the packet that triggered comes first."""
    net = make_wire()
    _auth_with(net, _change_selectors(wire.TrafficSelector(A, A, 47, 42, 42), wire.TrafficSelector(A, A, 47)))
    flight = net.flying["b"][0]
    (answer,) = [p for p in net.inside(flight) if isinstance(p, wire.TrafficSelectorsInitiator)]
    assert answer.selectors == (wire.TrafficSelector(A, A, 47),)
    net.settle()
    net.check_agreement()


@pytest.mark.parametrize(
    "selector",
    [
        wire.TrafficSelector(A, A, 17),
        wire.TrafficSelector(B, B, 47),
        wire.TrafficSelector(ip_address("2001:db8::1"), ip_address("2001:db8::1"), 47),
    ],
)
def test_selectors_without_our_gre_are_unacceptable(selector: wire.TrafficSelector) -> None:
    net = make_wire()
    _auth_with(net, _change_selectors(selector))
    net.settle()
    assert "TS_UNACCEPTABLE" in fail_reason(net)
    assert "no GRE between the two ends" in refusal(net)


@pytest.mark.parametrize(
    "selector",
    [
        wire.TrafficSelector(A, A),
        wire.TrafficSelector(ip_address("0.0.0.0"), ip_address("255.255.255.255")),
        wire.TrafficSelector(ip_address("192.0.2.0"), ip_address("192.0.2.255"), 47),
    ],
)
def test_wider_selectors_are_narrowed(selector: wire.TrafficSelector) -> None:
    net = make_wire()
    _auth_with(net, _change_selectors(selector))
    net.settle()
    net.check_agreement()
    assert net.a.children


def test_keyed_selector_alone_is_answered_as_it_is() -> None:
    keyed = wire.TrafficSelector(A, A, 47, 42, 42)
    net = make_wire()
    _auth_with(net, _change_selectors(keyed))
    (answer,) = [p for p in net.inside(net.flying["b"][0]) if isinstance(p, wire.TrafficSelectorsInitiator)]
    assert answer.selectors == (keyed,)


@pytest.mark.parametrize("address", [B, ip_address("10.0.0.1")])
def test_an_answer_beyond_what_was_proposed_is_refused(address: Address) -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.deliver("a")
    net.deliver_inside("b", _change_selectors(wire.TrafficSelector(address, address, 47)))
    net.settle()
    assert net.a.of(events.IkeSaFailed)[0].reason == "peer's traffic selectors go beyond GRE between the two ends"


def test_narrowing_behind_a_nat() -> None:
    """RFC 7296 section 2.23.1."""
    private, public = ip_address("10.0.0.7"), ip_address("203.0.113.1")
    path = Path(Endpoint(B, 4500), Endpoint(public, 4500))
    proposed = [wire.TrafficSelector(private, private, 47)]
    ours = [wire.TrafficSelector(B, B, 47)]
    assert selectors.narrow(proposed, ours, path, local_nat=False, remote_nat=False) is None
    assert selectors.narrow(proposed, ours, path, local_nat=False, remote_nat=True) == (
        wire.TrafficSelector(public, public, 47),
        wire.TrafficSelector(B, B, 47),
    )
    # A private range is no address that could be replaced.
    wide = [wire.TrafficSelector(private, ip_address("10.0.0.9"), 47)]
    assert selectors.narrow(wide, ours, path, local_nat=False, remote_nat=True) is None


def test_cookie_is_returned() -> None:
    """
    HDR, SAi1, KEi, Ni  -->
                                    <--  HDR, N(COOKIE)
    HDR, N(COOKIE), SAi1, KEi, Ni  -->
    """
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    first = wire.Message.decode(net.lose("a").data)
    cookie = wire.Notify(NotifyType.COOKIE, b"c" * 20)
    challenge = wire.Message(replace(first.header, flags=wire.Flag.RESPONSE), (cookie,))
    net.a.engine.receive_datagram(challenge.encode(), net.a.path_to(net.b), net.now)
    net.collect()
    again = wire.Message.decode(net.flying["a"][0].data)
    assert again.payloads == (cookie, *first.payloads)
    assert again.header.message_id == 0
    net.settle()
    net.check_agreement()
    assert net.a.established


def test_a_peer_that_challenges_for_ever_is_given_up() -> None:
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for number in range(20):
        if not net.flying["a"]:
            break
        first = wire.Message.decode(net.lose("a").data)
        cookie = wire.Notify(NotifyType.COOKIE, bytes((number,)) * 20)
        challenge = wire.Message(replace(first.header, flags=wire.Flag.RESPONSE), (cookie,))
        net.a.engine.receive_datagram(challenge.encode(), net.a.path_to(net.b), net.now)
        net.collect()
    net.sleep(5, deliver=False)
    assert fail_reason(net) == "peer made us start 5 times"


def test_both_ends_start_at_once() -> None:
    """Two IKE SAs come of it, both stay, and neither is taken for a leftover of the other."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.b.engine.initiate("default", net.b.path_to(net.a), net.now)
    net.settle()
    net.sleep(60)
    net.check_agreement()
    for end in net.ends:
        assert len(end.established) == len(end.children) == 2
        assert not any(e.initial_contact for e in end.of(events.IkeSaEstablished))


def test_initial_contact_is_said_by_who_knows_nothing_of_the_peer() -> None:
    net = make_wire()
    net.connect()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert [e.initial_contact for e in net.b.of(events.IkeSaEstablished)] == [True, False]


def test_our_own_request_is_not_answered() -> None:
    """A NAT in front of us turns what goes to its public address around."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    data = net.lose("a").data
    net.a.engine.receive_datagram(data, net.a.path_to(net.b), net.now)
    assert not net.a.engine.datagrams_to_send(net.now)
    net.sleep(GRACE + 0.1, deliver=False)
    assert net.a.of(events.IkeSaFailed)[0].reason == f"{B} leads back to this gateway"


def test_unknown_profile() -> None:
    net = make_wire()
    with pytest.raises(MisuseError, match="no profile is called 'spoke'; known are default"):
        net.a.engine.initiate("spoke", net.a.path_to(net.b), net.now)


def test_no_spi_left() -> None:
    net = make_wire()

    def nothing(replaces: int) -> int:
        raise HostError("no SPI left")

    net.a.engine._context._allocate_spi = nothing
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert fail_reason(net) == "no inbound SPI left"
    net = make_wire()
    net.b.engine._context._allocate_spi = nothing
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert refusal(net) == "no inbound SPI left"
    assert fail_reason(net) == "peer refuses the CHILD_SA: NO_ADDITIONAL_SAS"
