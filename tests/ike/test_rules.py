"""Rules of RFC 7296 that concern no exchange in particular: ids, nonces, reserved bits, and what may be ignored."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from dsvpn.addresses import Endpoint, Path
from dsvpn.ike import events, nat
from dsvpn.ike.sealing import CbcSealingKey, make_sealing_key
from dsvpn.ike.suites import PRFS, parse_ike_suite
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, Flag, NotifyType
from tests.ike.harness import B, InFlight, Payloads, Wire, both_options, make_wire

ELSEWHERE = ip_address("203.0.113.77")


def header_of(flight: InFlight) -> wire.Header:
    return wire.Message.decode(flight.data).header


def test_message_ids_count_for_each_end_and_begin_anew_with_each_ike_sa() -> None:
    """Sections 2.2 and 2.18: IKE_SA_INIT has 0 and IKE_AUTH 1; the requests of either end have ids of their own."""
    net = make_wire()
    net.connect()
    assert [header_of(flight).message_id for flight in net.record] == [0, 0, 1, 1]
    for end, expected in ((net.b, 0), (net.a, 2), (net.b, 1), (net.b, 2), (net.a, 3)):
        end.engine.check_liveness(end.handle, net.now)
        net.settle()
        request, answer = net.record[-2:]
        assert request.sender is end
        assert header_of(request).message_id == header_of(answer).message_id == expected
    net.b.engine.rekey_ike(net.b.handle, net.now)
    net.settle()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.settle()
    assert header_of(net.record[-1]).message_id == 0


def test_flags_tell_who_made_the_ike_sa_and_what_is_an_answer() -> None:
    """Section 3.1: whoever began the exchange that made this IKE SA sets the I flag, in requests and answers."""
    net = make_wire()
    net.connect()
    for end in (net.b, net.a):
        end.engine.check_liveness(end.handle, net.now)
        net.settle()
    net.b.engine.rekey_ike(net.b.handle, net.now)
    net.settle()
    rekeyed = len(net.record)
    for end in (net.b, net.a):
        end.engine.check_liveness(end.handle, net.now)
        net.settle()
    for number, flight in enumerate(net.record):
        initiator = net.a if number < rekeyed else net.b
        assert header_of(flight).from_initiator is (flight.sender is initiator), number
        assert flight.data[17] == 0x20
        assert flight.data[19] & ~(Flag.INITIATOR | Flag.RESPONSE) == 0


def test_what_comes_back_to_its_sender_is_nothing() -> None:
    """The I flag and the keys of each direction: a reflected request is not answered, by either end."""
    net = make_wire()
    net.connect()
    for end in net.ends:
        end.engine.check_liveness(end.handle, net.now)
        net.collect()
        flight = net.flying[end.name][0]
        end.engine.receive_datagram(flight.data, end.path_to(net.other(end)), net.now)
        flipped = flight.data[:19] + bytes((flight.data[19] ^ Flag.INITIATOR,)) + flight.data[20:]
        end.engine.receive_datagram(flipped, end.path_to(net.other(end)), net.now)
        assert not end.engine.datagrams_to_send(net.now)
        net.settle()
    net.check_agreement()


def deliver_all(net: Wire) -> list[bytes]:
    """Deliver whatever is said, and give the nonces that are in it."""
    nonces = []
    net.collect()
    while net.flying["a"] or net.flying["b"]:
        name = "a" if net.flying["a"] else "b"
        flight = net.flying[name][0]
        clear = header_of(flight).exchange_type == ExchangeType.IKE_SA_INIT
        nonce = wire.find(wire.Message.decode(flight.data).payloads if clear else net.inside(flight), wire.Nonce)
        nonces += [] if nonce is None else [nonce.data]
        net.deliver(name)
    return nonces


@pytest.mark.parametrize("prf", PRFS)
def test_nonces_are_long_enough_and_never_the_same(prf: str) -> None:
    """Section 2.10: 128 bits at least, and half of the PRF's key."""
    net = make_wire(*both_options(ike=(f"aes128gcm16-{prf}-x25519",)))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    nonces = deliver_all(net)
    for end in net.ends:
        end.engine.rekey_child(end.handle, end.child.inbound_spi, net.now)
        nonces += deliver_all(net)
        end.engine.rekey_ike(end.handle, net.now)
        nonces += deliver_all(net)
    assert len(nonces) == len(set(nonces)) == 2 * 5
    assert min(map(len, nonces)) >= max(16, PRFS[prf].key_length // 2)


def test_answers_go_where_the_request_came_from() -> None:
    """Section 2.11: from the address and port that it was sent to, also when it is repeated from elsewhere."""
    net = make_wire()
    net.connect()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    flight = net.flying["a"].popleft()
    for source in (Endpoint(ELSEWHERE, 1024), Endpoint(ELSEWHERE, 500), flight.path.remote):
        path = Path(flight.path.local, source)
        net.b.engine.receive_datagram(flight.data, path, net.now)
        ((_, way),) = net.b.engine.datagrams_to_send(net.now)
        assert way == path
    # What was sent elsewhere made nobody move.
    assert not net.b.of(events.IkePathChanged)


#: What a message may hold that is not understood or not done here.
BESIDES: list[wire.Payload] = [
    wire.VendorId(b"somebody"),
    wire.UnknownPayload(199, False, b"new"),
    wire.Notify(50000, b"a status of the future"),
    wire.Notify(NotifyType.IPCOMP_SUPPORTED, b"\0\1\2"),
    wire.Notify(NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED),
    wire.Notify(NotifyType.NON_FIRST_FRAGMENTS_ALSO),
    wire.Notify(NotifyType.ADDITIONAL_TS_POSSIBLE),
    wire.Notify(NotifyType.SET_WINDOW_SIZE, (16).to_bytes(4, "big")),
    wire.Notify(NotifyType.HTTP_CERT_LOOKUP_SUPPORTED),
]
#: What only a request may hold so: an error that is not known is no error of a request (section 3.10.1), and who asks
#: for a configuration gets none (section 2.19).
ASKED: list[wire.Payload] = [wire.Notify(9000), wire.Configuration(1, (wire.ConfigurationAttribute(1),))]


@pytest.mark.parametrize("step", ["IKE_AUTH request", "IKE_AUTH answer", "rekey request", "rekey answer", "liveness"])
def test_what_stands_beside_is_ignored(step: str) -> None:
    net = make_wire()
    extra = [*BESIDES, *([] if "answer" in step else ASKED)]

    def more(payloads: Payloads) -> list[wire.Payload]:
        return [*extra[::2], *payloads, *extra[1::2]]

    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for sender, what in (("a", ""), ("b", ""), ("a", "IKE_AUTH request"), ("b", "IKE_AUTH answer")):
        if step == what:
            net.deliver_inside(sender, more)
        else:
            net.deliver(sender)
    net.check_agreement()
    old = net.a.child.inbound_spi
    net.a.engine.rekey_child(net.a.handle, old, net.now)
    net.collect()
    for sender, what in (("a", "rekey request"), ("b", "rekey answer")):
        if step == what:
            net.deliver_inside(sender, more)
        else:
            net.deliver(sender)
    net.settle()
    assert net.a.child.replaces == old
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    net.deliver_inside("a", more if step == "liveness" else list)
    assert net.inside(net.flying["b"][0]) == ()
    net.settle()
    net.sleep(10)
    net.check_agreement()
    # A larger window of the peer's does not make ours larger, nor is IPComp or a configuration taken up.
    for flight in net.record:
        if header_of(flight).exchange_type != ExchangeType.IKE_SA_INIT:
            said = [p.type for p in net.inside(flight) if isinstance(p, wire.Notify)]
            assert NotifyType.IPCOMP_SUPPORTED not in said
            assert wire.find(net.inside(flight), wire.Configuration) is None


def test_payloads_come_in_any_order() -> None:
    """Section 2.5: what is inside each message, turned around."""
    net = make_wire(*both_options(esp=("aes128gcm16-x25519",), mobike=True))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")

    def turned_around() -> None:
        net.collect()
        while net.flying["a"] or net.flying["b"]:
            net.deliver_inside("a" if net.flying["a"] else "b", lambda payloads: list(payloads)[::-1])

    turned_around()
    for end in net.ends:
        old = end.child.inbound_spi
        end.engine.rekey_child(end.handle, old, net.now)
        turned_around()
        assert end.child.replaces == old
        end.engine.rekey_ike(end.handle, net.now)
        turned_around()
        assert len(end.of(events.IkeSaRekeyed)) > 0
    net.sleep(100)
    net.check_agreement()


def test_reserved_bits_of_payloads_are_ignored() -> None:
    """Section 3.2: all but the critical bit."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    data = bytearray(net.flying["a"][0].data)
    at, kind, seen = wire.HEADER_LENGTH, data[16], 0
    while kind:
        data[at + 1] |= 0x7F
        seen += 1
        kind, at = data[at], at + int.from_bytes(data[at + 2 : at + 4], "big")
    assert seen > 3
    net.deliver("a", lambda _: bytes(data))
    answer = wire.Message.decode(net.flying["b"][0].data)
    assert wire.find(answer.payloads, wire.KeyExchange) is not None


@pytest.mark.parametrize("suite", ["aes128gcm16-prfsha256-x25519", "aes128-sha256-prfsha256-x25519"])
def test_no_iv_comes_twice(suite: str) -> None:
    """Section 3.14; for CBC it cannot be foretold either, which is left to the source of randomness."""
    drawn: list[int] = []

    def random(length: int) -> bytes:
        drawn.append(length)
        return len(drawn).to_bytes(length, "big")

    parsed = parse_ike_suite(suite)
    key = make_sealing_key(parsed, bytes(parsed.cipher.keymat_length), bytes(32), random)
    sealed = [key.seal_octets(b"front", b"chain")[: key.iv_length] for _ in range(1000)]
    assert len(set(sealed)) == 1000
    assert drawn == ([16] * 1000 if isinstance(key, CbcSealingKey) else [])


@pytest.mark.parametrize("suite", ["aes128gcm16-prfsha256-x25519", "aes128-sha256-prfsha256-x25519"])
@pytest.mark.parametrize("blocks", [0, 1, 7, 15])
def test_padding_of_any_length_is_taken(suite: str, blocks: int) -> None:
    """Section 3.14."""
    net = make_wire(*both_options(ike=(suite,)))
    net.connect()
    net.a.engine.check_liveness(net.a.handle, net.now)
    net.collect()
    flight = net.flying["a"].popleft()
    header, key = header_of(flight), net._key(flight)
    padding = 16 * blocks + (15 if isinstance(key, CbcSealingKey) else 3)
    # The padding is of the sender's choice: it goes in where the chain would end.
    plain = bytes(padding) + bytes((padding,))
    whole = replace(flight, data=_seal_plain(key, header, plain))
    net.hand(whole)
    assert net.inside(net.flying["b"][0]) == ()


def _seal_plain(key: object, header: wire.Header, plain: bytes) -> bytes:
    """A datagram whose SK payload opens to `plain`, padding included."""
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

    from dsvpn.ike.sealing import AeadSealingKey

    if isinstance(key, AeadSealingKey):
        iv = bytes(7) + b"\xff"
        front = wire.encode_associated_data(header, 0, 8 + len(plain) + 16)
        return front + iv + key._aead.encrypt(key._salt + iv, plain, front)
    assert isinstance(key, CbcSealingKey)
    front = wire.encode_associated_data(header, 0, 16 + len(plain) + key.icv_length)
    encryptor = Cipher(key._aes, modes.CBC(bytes(16))).encryptor()
    sealed = bytes(16) + encryptor.update(plain) + encryptor.finalize()
    return front + sealed + key._icv(front, sealed)


def test_a_refused_ike_sa_init_has_no_responder_spi() -> None:
    """Section 2.6: nothing was made, so there is nothing to name."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    request = wire.Message.decode(net.lose("a").data)
    stripped = wire.Message(request.header, tuple(p for p in request.payloads if not isinstance(p, wire.Nonce)))
    other = wire.Message(
        request.header,
        tuple(wire.KeyExchange(19, bytes(64)) if isinstance(p, wire.KeyExchange) else p for p in request.payloads),
    )
    for message, code in ((stripped, NotifyType.INVALID_SYNTAX), (other, NotifyType.INVALID_KE_PAYLOAD)):
        net.b.engine.receive_datagram(message.encode(), Path(Endpoint(B, 500), Endpoint(ELSEWHERE, 500)), net.now)
        ((data, _),) = net.b.engine.datagrams_to_send(net.now)
        answer = wire.Message.decode(data)
        assert (answer.header.initiator_spi, answer.header.responder_spi) == (
            request.header.initiator_spi,
            wire.ZERO_SPI,
        )
        (notify,) = answer.payloads
        assert isinstance(notify, wire.Notify)
        assert notify.type == code
    assert not net.b.engine._context.ike_sas


@pytest.mark.parametrize("length", [0, 1, 64, 65, 200])
def test_a_cookie_has_1_to_64_octets(length: int) -> None:
    """Section 3.10.1."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    request = wire.Message.decode(net.lose("a").data)
    challenge = wire.Message(
        replace(request.header, flags=Flag.RESPONSE), (wire.Notify(NotifyType.COOKIE, bytes(length)),)
    )
    net.a.engine.receive_datagram(challenge.encode(), net.a.path_to(net.b), net.now)
    net.collect()
    assert bool(net.flying["a"]) == (1 <= length <= 64)


@pytest.mark.parametrize("flags", [Flag.INITIATOR, 0])
@pytest.mark.parametrize(("responder_spi", "message_id"), [(bytes(8), 1), (b"responds", 0), (b"responds", 1)])
def test_an_ike_sa_init_request_has_id_0_and_no_responder_spi(
    responder_spi: bytes, message_id: int, flags: int
) -> None:
    """Section 3.1: anything else in this exchange is no request, whoever seems to have made it."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    request = wire.Message.decode(net.lose("a").data)
    header = replace(request.header, responder_spi=responder_spi, message_id=message_id, flags=flags)
    net.b.engine.receive_datagram(wire.Message(header, request.payloads).encode(), net.b.path_to(net.a), net.now)
    assert not net.b.engine.datagrams_to_send(net.now)
    assert not net.b.engine._context.ike_sas


@pytest.mark.parametrize("sender", ["a", "b"])
def test_a_rekeyed_ike_sa_has_no_spi_of_zero(sender: str) -> None:
    """Section 3.3.1: neither in the offer nor in the answer."""
    net = make_wire()
    net.connect()
    before = net.a.snapshot(net.now)[0].initiator_spi

    def zero(payloads: Payloads) -> list[wire.Payload]:
        return [
            wire.SecurityAssociation(tuple(replace(one, spi=wire.ZERO_SPI) for one in payload.proposals))
            if isinstance(payload, wire.SecurityAssociation)
            else payload
            for payload in payloads
        ]

    net.a.engine.rekey_ike(net.a.handle, net.now)
    net.collect()
    for name in ("a", "b"):
        if name == sender:
            net.deliver_inside(name, zero)
        else:
            net.deliver(name)
    assert net.a.snapshot(net.now)[0].initiator_spi == before
    assert not net.a.of(events.IkeSaRekeyed)
    assert all(wire.ZERO_SPI not in end.engine._context.ike_sas for end in net.ends)


def test_one_of_several_source_addresses_is_enough() -> None:
    """Section 2.23: who does not know by which interface it sends names all of them."""
    spis = b"i" * 8, b"r" * 8
    here, there = Endpoint(B, 500), Endpoint(ELSEWHERE, 500)
    path = Path(here, there)

    def said(sources: list[Endpoint], destination: Endpoint) -> list[wire.Payload]:
        hashes = [wire.Notify(NotifyType.NAT_DETECTION_SOURCE_IP, nat.detection_hash(*spis, one)) for one in sources]
        to = wire.Notify(NotifyType.NAT_DETECTION_DESTINATION_IP, nat.detection_hash(*spis, destination))
        return [*hashes, to]

    for sources, behind in (([here, there], False), ([there, here], False), ([here], True), ([here, here], True)):
        assert nat.detect(said(sources, here), *spis, path) == nat.NatFindings(True, False, behind)
    assert nat.detect(said([there], there), *spis, path) == nat.NatFindings(True, True, False)
    # One kind alone says nothing.
    assert not nat.detect(said([there], here)[:1], *spis, path).supported


def test_selectors_of_an_unknown_type_are_skipped() -> None:
    """Section 3.13.1."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    unknown = wire.UnknownTrafficSelector(9, 47, bytes(20))

    def more(payloads: Payloads) -> list[wire.Payload]:
        kinds = (wire.TrafficSelectorsInitiator, wire.TrafficSelectorsResponder)
        return [type(p)((unknown, *p.selectors)) if isinstance(p, kinds) else p for p in payloads]

    net.deliver_inside("a", more)
    (answer,) = net.flying["b"]
    selectors = wire.find(net.inside(answer), wire.TrafficSelectorsInitiator)
    assert selectors is not None
    assert unknown not in selectors.selectors
    net.settle()
    net.check_agreement()


@pytest.mark.parametrize("length", [15, 16, 128, 129])
def test_a_crash_token_has_16_to_128_octets(length: int) -> None:
    """RFC 6290 section 4.1."""
    net = make_wire()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    token = wire.Notify(NotifyType.QUICK_CRASH_DETECTION, bytes(length), wire.ProtocolId.IKE)
    net.deliver_inside("a", lambda payloads: [*payloads, token])
    net.settle()
    assert net.b.snapshot(net.now)[0].crash_token == (16 <= length <= 128)
