"""Additional key exchanges: IKE_INTERMEDIATE (RFC 9242) and IKE_FOLLOWUP_KE (RFC 9370) with ML-KEM."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dsvpn.errors import MisuseError
from dsvpn.ike import events
from dsvpn.ike.engine import IkeEngine
from dsvpn.ike.kem import Kem
from dsvpn.ike.key_exchange import KeyExchange, MlKemKeyExchange, make_key_exchange
from dsvpn.ike.proposals import choose_ike
from dsvpn.ike.suites import Group, parse_ike_suite
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType
from tests.ike.bad_network import check_end
from tests.ike.harness import End, InFlight, Payloads, Wire, both_options, make_profile, make_wire
from tests.ike.interleaving import every_run
from tests.ike.test_simulation import simulate

PLAIN = "aes128gcm16-prfsha256-x25519"
HYBRID = "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
HYBRID_512 = "aes128gcm16-prfsha256-x25519-ke1_mlkem512"
THREE = "aes256gcm16-prfsha512-x25519-ke1_mlkem768-ke3_ecp384-ke7_mlkem1024"
CBC = "aes256-sha256-prfsha256-ecp256-ke1_mlkem1024"
ESP = "aes256gcm16-x25519-ke1_mlkem768"
ESP_512 = "aes128gcm16-x25519-ke1_mlkem512"
ESP_TWO = "aes256gcm16-x25519-ke1_mlkem768-ke2_x448"
#: Messages in one piece, so that a test can count them.
WHOLE: dict[str, Any] = {"fragment_size": 4000}


def connected(ike: str = HYBRID, esp: str = ESP, seed: int = 0, **options: Any) -> Wire:
    net = make_wire(*both_options(ike=(ike,), esp=(esp,), **(WHOLE | options)), seed=seed)
    net.connect()
    return net


def exchanges(net: Wire) -> list[int]:
    """The exchange type of every datagram, in order."""
    return [flight.data[18] for flight in net.record]


def rekey_child(net: Wire, end: End) -> None:
    end.engine.rekey_child(end.handle, end.child.inbound_spi, net.now)


# -- IKE_INTERMEDIATE ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [HYBRID, HYBRID_512, THREE, CBC])
def test_one_exchange_for_each_additional_key_exchange(suite: str) -> None:
    net = connected(suite)
    count = suite.count("-ke")
    assert exchanges(net)[0:2] == [ExchangeType.IKE_SA_INIT] * 2
    assert exchanges(net).count(ExchangeType.IKE_INTERMEDIATE) >= 2 * count
    net.check_agreement()
    for end in net.ends:
        assert end.snapshot(net.now)[0].suite == suite
    # What follows is sealed with the last keys, both ways.
    for end in net.ends:
        rekey_child(net, end)
        net.settle()
        end.engine.rekey_ike(end.handle, net.now)
        net.settle()
    net.sleep(100)
    net.check_agreement()


def _prf(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha384")


def _prf_plus(key: bytes, seed: bytes, length: int) -> bytes:
    output = block = b""
    for counter in range(1, 256):
        block = _prf(key, block + seed + bytes((counter,)))
        output += block
        if len(output) >= length:
            break
    return output[:length]


def _expand(seed: bytes, nonces: bytes, spis: bytes) -> dict[str, bytes]:
    output = _prf_plus(seed, nonces + spis, 3 * 48 + 2 * 36)
    keys = {}
    for name, length in (("d", 48), ("ei", 36), ("er", 36), ("pi", 48), ("pr", 48)):
        keys[name], output = output[:length], output[length:]
    return keys


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the initiators of exchanges get as shared secrets, in order."""
    found: list[bytes] = []

    def make(group: Group, random: Callable[[int], bytes], kems: Mapping[str, Kem]) -> KeyExchange:
        exchange = make_key_exchange(group, random, kems)
        original = exchange.shared_secret

        def shared_secret(public: bytes) -> bytes:
            found.append(original(public))
            return found[-1]

        monkeypatch.setattr(exchange, "shared_secret", shared_secret)
        return exchange

    for module in ("init", "intermediate", "create_child", "rekey_ike"):
        monkeypatch.setattr(f"dsvpn.ike.{module}.make_key_exchange", make)
    return found


def test_keys_and_proofs_by_the_formulas_of_the_rfcs(secrets: list[bytes]) -> None:
    """RFC 9370 section 2.2.2 and RFC 9242 section 3.3.2 once more, from the octets on the wire and the two shared
    secrets, with nothing of dsvpn/ike but the secrets themselves."""
    psk = b"a secret that both know"
    net = make_wire(*both_options(ike=(HYBRID,), psk=psk, **WHOLE))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    inside: list[tuple[wire.Payload, ...]] = []
    while net.flying["a"] or net.flying["b"]:
        name = "a" if net.flying["a"] else "b"
        flight = net.flying[name][0]
        if flight.data[18] == ExchangeType.IKE_AUTH:
            inside.append(net.inside(flight))
        net.deliver(name)
    assert len(secrets) == 2
    init_i, init_r, mid_i, mid_r = (flight.data for flight in net.record[:4])
    nonce_i, nonce_r = (_nonce(wire.Message.decode(data)) for data in (init_i, init_r))
    spis = init_r[:16]
    first = _expand(_prf(nonce_i + nonce_r, secrets[0]), nonce_i + nonce_r, spis)
    last = _expand(_prf(first["d"], secrets[1] + nonce_i + nonce_r), nonce_i + nonce_r, spis)

    # The keys of the log are those keys.
    assert [line.split(",")[2:4] for line in net.a.key_log] == [
        [first["ei"].hex(), first["er"].hex()],
        [last["ei"].hex(), last["er"].hex()],
    ]

    int_auth = b""
    for data, sealing, proving in ((mid_i, "ei", "pi"), (mid_r, "er", "pr")):
        int_auth += _prf(first[proving], _in_the_clear(data, first[sealing]))
    int_auth += (2).to_bytes(4, "big")
    secret = _prf(psk, b"Key Pad for IKEv2")
    for payloads, message, nonce, proving in ((inside[0], init_i, nonce_r, "pi"), (inside[1], init_r, nonce_i, "pr")):
        (identity,) = (
            p for p in payloads if isinstance(p, wire.IdentificationInitiator | wire.IdentificationResponder)
        )
        proof = wire.find(payloads, wire.Authentication)
        assert proof is not None
        octets = message + nonce + _prf(last[proving], identity.encode()) + int_auth
        assert proof.data == _prf(secret, octets)


def _nonce(message: wire.Message) -> bytes:
    nonce = wire.find(message.payloads, wire.Nonce)
    assert nonce is not None
    return nonce.data


def _in_the_clear(data: bytes, keymat: bytes) -> bytes:
    """An IKE_INTERMEDIATE message in one piece as RFC 9242 section 3.3.2 authenticates it: header, generic header,
    payloads, both lengths without IV, padding and ICV."""
    assert data[16] == 46
    plain = AESGCM(keymat[:32]).decrypt(keymat[32:] + data[32:40], data[40:], data[:32])
    plain = plain[: len(plain) - 1 - plain[-1]]
    return (
        data[:24] + (28 + 4 + len(plain)).to_bytes(4, "big") + data[28:30] + (4 + len(plain)).to_bytes(2, "big") + plain
    )


@pytest.mark.parametrize(
    ("a", "b", "agreed"),
    [
        ((HYBRID, PLAIN), (HYBRID, PLAIN), HYBRID),
        ((HYBRID, PLAIN), (PLAIN,), PLAIN),
        ((PLAIN,), (HYBRID, PLAIN), PLAIN),
        ((PLAIN, HYBRID), (HYBRID, PLAIN), HYBRID),
        ((THREE, HYBRID), (HYBRID, PLAIN), HYBRID),
    ],
)
def test_hybrid_where_both_have_it(a: tuple[str, ...], b: tuple[str, ...], agreed: str) -> None:
    net = make_wire(make_profile("a", ike=a), make_profile("b", ike=b))
    net.connect()
    net.check_agreement()
    assert net.a.snapshot(net.now)[0].suite == net.b.snapshot(net.now)[0].suite == agreed


@pytest.mark.parametrize("ours", [HYBRID, "aes256gcm16-prfsha384-x25519"])
def test_additional_key_exchanges_that_a_peer_would_do_without(ours: str) -> None:
    """RFC 9370 section 2.2.1: NONE among the methods of ADDKE1 lets it be declined; an answer names what is chosen."""
    suite = parse_ike_suite(ours)
    kinds = wire.TransformType
    transforms = (
        wire.Transform(kinds.ENCR, 20, 256),
        wire.Transform(kinds.PRF, 6),
        wire.Transform(kinds.KE, 31),
        wire.Transform(kinds.ADDKE1, 37),
        wire.Transform(kinds.ADDKE1, 36),
        wire.Transform(kinds.ADDKE1, 0),
        wire.Transform(kinds.ADDKE2, 35),
        wire.Transform(kinds.ADDKE2, 0),
    )
    offer = wire.SecurityAssociation((wire.Proposal(1, wire.ProtocolId.IKE, b"", transforms),))
    choice = choose_ike((suite,), offer, b"")
    assert choice is not None
    chosen = {transform.type: transform.id for transform in choice.answer.transforms}
    assert chosen[kinds.ADDKE1] == (36 if suite.additional else 0)
    assert chosen[kinds.ADDKE2] == 0
    # Without NONE it cannot be declined.
    strict = tuple(t for t in transforms if (t.type, t.id) != (kinds.ADDKE1, 0))
    offer = wire.SecurityAssociation((wire.Proposal(1, wire.ProtocolId.IKE, b"", strict),))
    assert (choose_ike((suite,), offer, b"") is None) == (not suite.additional)


@pytest.mark.parametrize("suite", ["ike", "esp"])
def test_ml_kem_512_where_nobody_has_it(suite: str) -> None:
    """It comes from outside the engine; without it the configuration is refused, not the peer."""
    named: dict[str, Any] = {"ike": {"ike": (HYBRID_512,)}, "esp": {"ike": (PLAIN,), "esp": (ESP_512,)}}[suite]
    with pytest.raises(MisuseError, match=r"'default': suite .*-ke1_mlkem512 needs mlkem512, .*; install .* or write"):
        IkeEngine([make_profile("a", **named)], random=bytes, allocate_spi=lambda _: 256, release_spi=lambda _: None)


def test_ml_kem_512_takes_all_randomness_from_outside() -> None:
    """FIPS 203's d, z and m: two runs of one seed give the same datagrams."""
    one, other = ([flight.data for flight in connected(HYBRID_512, ESP_512, seed=7).record] for _ in range(2))
    assert one == other


@pytest.mark.parametrize("ours", [True, False])
def test_no_suite_in_common(ours: bool) -> None:
    suites = (HYBRID,), (PLAIN,)
    net = make_wire(make_profile("a", ike=suites[not ours]), make_profile("b", ike=suites[ours]))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.sleep(60)
    assert [event.reason for event in net.a.of(events.IkeSaFailed)] == ["peer answers NO_PROPOSAL_CHOSEN"]
    assert not net.b.engine._context.ike_sas


def _without(kind: NotifyType) -> Callable[[bytes], bytes]:
    def strip(data: bytes) -> bytes:
        message = wire.Message.decode(data)
        kept = tuple(p for p in message.payloads if not (isinstance(p, wire.Notify) and p.type == kind))
        return wire.Message(message.header, kept).encode()

    return strip


def test_a_peer_without_ike_intermediate_gets_no_additional_key_exchange() -> None:
    """RFC 9370 section 2.2.1; that the notification was taken out on the way shows when IKE_AUTH proves IKE_SA_INIT."""
    net = make_wire(*both_options(ike=(HYBRID, PLAIN)))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a", _without(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED))
    answer = wire.find(wire.Message.decode(net.flying["b"][0].data).payloads, wire.SecurityAssociation)
    assert answer is not None
    assert answer.proposals[0].number == 2
    net.settle()
    assert not net.b.established


def test_an_answer_with_additional_key_exchanges_but_without_ike_intermediate() -> None:
    net = make_wire(*both_options(ike=(HYBRID,), **WHOLE))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b", _without(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED))
    net.sleep(30, deliver=False)
    net.a.drain()
    (failed,) = net.a.of(events.IkeSaFailed)
    assert "does not support IKE_INTERMEDIATE" in failed.reason


def _walk_to(net: Wire, exchange: ExchangeType) -> InFlight:
    """Deliver until a datagram of `exchange` is next."""
    net.collect()
    for _ in range(20):
        name = "a" if net.flying["a"] else "b"
        if net.flying[name][0].data[18] == exchange:
            return net.flying[name][0]
        net.deliver(name)
    raise AssertionError("it never comes")


@pytest.mark.parametrize("side", ["a", "b"])
def test_ike_auth_notices_a_changed_ike_intermediate(side: str) -> None:
    """Somebody has the first keys, so he can seal: he puts a payload beside the KE payload that changes nothing but
    IntAuth."""
    net = make_wire(*both_options(ike=(HYBRID,), **WHOLE))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    _walk_to(net, ExchangeType.IKE_INTERMEDIATE)
    if side == "b":
        net.collect()
        net.deliver("a")
        flight = net.flying["b"][0]
        # Its keys are from before the answer, as those of the peer still are.
        key = next(iter(net.a.engine._context.ike_sas.values()))._opening
        assert key is not None
        payload = wire.Message.decode(flight.data).payloads[-1]
        assert isinstance(payload, wire.Encrypted)
        plain = key.open(payload)
        assert plain is not None
        inside = wire.decode_payloads(payload.first_payload, wire.remove_padding(plain))
        header = wire.Message.decode(flight.data).header
        data = key.seal(header, [*inside, wire.VendorId(b"more")])
        net.deliver("b", lambda _: data)
    else:
        net.deliver_inside("a", lambda payloads: [*payloads, wire.VendorId(b"more")])
    net.settle()
    net.sleep(60)
    assert not net.a.established
    assert not net.b.established
    net.a.check_spis()
    net.b.check_spis()


def _other(group: int | None = None, data: bytes | None = None) -> Callable[[Payloads], list[wire.Payload]]:
    def change(payloads: Payloads) -> list[wire.Payload]:
        return [
            wire.KeyExchange(p.group if group is None else group, p.data if data is None else data)
            if isinstance(p, wire.KeyExchange)
            else p
            for p in payloads
        ]

    return change


_NONSENSE: list[Callable[[Payloads], list[wire.Payload]]] = [
    lambda payloads: [p for p in payloads if not isinstance(p, wire.KeyExchange)],
    lambda payloads: [p for p in payloads if not isinstance(p, wire.Notify)],
    lambda payloads: [],
    lambda payloads: [*payloads, wire.Notify(NotifyType.INVALID_SYNTAX)],
    lambda payloads: [*payloads, wire.Notify(NotifyType.ADDITIONAL_KEY_EXCHANGE, b"x")],
    lambda payloads: [wire.Notify(NotifyType.ADDITIONAL_KEY_EXCHANGE, b"other"), *payloads],
    lambda payloads: [wire.UnknownPayload(200, True, b""), *payloads],
    _other(group=31),
    _other(group=0xFFFF),
    _other(data=b""),
    _other(data=b"\xff"),
    _other(data=b"\xff" * 1088),
    _other(data=b"\xff" * 1184),
    _other(data=bytes(1184)),
    _other(data=bytes(1088)),
]
#: A public key or ciphertext that is one, but not the sender's own: his end of the SA has other keys.
_OTHER_SECRET = (11, 13, 14)


@pytest.mark.parametrize("change", range(len(_NONSENSE)))
@pytest.mark.parametrize("exchange", [ExchangeType.IKE_INTERMEDIATE, ExchangeType.IKE_FOLLOWUP_KE])
def test_authenticated_nonsense(exchange: ExchangeType, change: int) -> None:
    """A peer with the right keys that breaks the protocol: no exception, no leak, and both ends still agree."""
    for kind in ("child", "ike"):
        for which in range(4):
            net = make_wire(*both_options(ike=(HYBRID,), esp=(ESP_TWO,), dpd_interval=20.0, **WHOLE), seed=which)
            net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
            seen = 0
            for round_ in range(2):
                net.collect()
                while net.flying["a"] or net.flying["b"]:
                    name = "a" if net.flying["a"] else "b"
                    flight = net.flying[name][0]
                    if flight.data[18] == exchange:
                        seen += 1
                        if seen == which + 1 and _can_seal(net, flight):
                            net.deliver_inside(name, _NONSENSE[change])
                            continue
                    net.deliver(name)
                if round_ == 0:
                    if not (net.a.established and net.a.sealing):
                        break
                    if kind == "child":
                        rekey_child(net, net.a)
                    else:
                        net.a.engine.rekey_ike(net.a.handle, net.now)
            net.sleep(400)
            for end in net.ends:
                end.check_spis()
                assert len(end.engine._context.ike_sas) == len(end.established)
            if change not in _OTHER_SECRET:
                net.check_traffic()


def _can_seal(net: Wire, flight: InFlight) -> bool:
    """The harness seals with the sender's keys, which are the next ones already for an answer in IKE_INTERMEDIATE."""
    return flight.data[18] == ExchangeType.IKE_FOLLOWUP_KE or not wire.Message.decode(flight.data).header.is_response


def test_an_altered_ciphertext_gives_no_common_key() -> None:
    """Implicit rejection (FIPS 203 section 6.3): the handshake fails at the first message under the new keys."""
    net = make_wire(*both_options(ike=(HYBRID,), **WHOLE))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    _walk_to(net, ExchangeType.IKE_INTERMEDIATE)
    original = MlKemKeyExchange.shared_secret
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlKemKeyExchange, "shared_secret", lambda self, public: original(self, bytes(len(public))))
        net.settle()
        net.sleep(60)
    assert not net.a.established
    assert not net.b.established
    assert len(net.a.of(events.IkeSaFailed)) == 1
    assert not net.b.engine._context.ike_sas


def test_ike_auth_before_the_additional_key_exchange_gets_silence() -> None:
    net = make_wire(*both_options(ike=(HYBRID,), **WHOLE))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    flight = _walk_to(net, ExchangeType.IKE_INTERMEDIATE)
    (sa,) = net.b.engine._context.ike_sas.values()
    header = wire.Message.decode(flight.data).header
    early = wire.Header(header.initiator_spi, header.responder_spi, ExchangeType.IKE_AUTH, header.flags, 1)
    key = next(iter(net.a.engine._context.ike_sas.values()))._sealing
    assert key is not None
    net.b.engine.receive_datagram(key.seal(early, []), flight.path, net.now)
    assert not net.b.engine.datagrams_to_send(net.now)
    assert sa.responses.expected_id == 1
    net.settle()
    net.check_agreement()


@pytest.mark.parametrize("position", range(6))
def test_any_message_of_the_handshake_may_get_lost(position: int) -> None:
    net = make_wire(*both_options(ike=(HYBRID,), **WHOLE))
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.collect()
    for step in range(position):
        net.deliver("ab"[step % 2])
    net.lose("ab"[position % 2])
    net.sleep(60)
    net.check_agreement()
    assert net.a.established


def test_fragments_give_the_same_proof() -> None:
    """IntAuth covers whole messages, whatever way they came (RFC 9242 section 3.3.2)."""
    net = make_wire(
        make_profile("a", ike=(THREE,), fragment_size=576), make_profile("b", ike=(THREE,), fragment_size=1000)
    )
    net.connect()
    net.check_agreement()
    assert exchanges(net).count(ExchangeType.IKE_INTERMEDIATE) > 6
    assert {53} <= {flight.data[16] for flight in net.record}


# -- IKE_FOLLOWUP_KE -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("esp", [ESP, ESP_512, ESP_TWO])
@pytest.mark.parametrize("who", ["a", "b"])
def test_child_rekey_with_additional_key_exchanges(who: str, esp: str) -> None:
    net = connected(esp=esp)
    end = net.a if who == "a" else net.b
    before = end.child
    net.record.clear()
    rekey_child(net, end)
    net.settle()
    steps = 1 + esp.count("-ke")
    assert exchanges(net)[:2] == [ExchangeType.CREATE_CHILD_SA] * 2
    assert exchanges(net).count(ExchangeType.IKE_FOLLOWUP_KE) == 2 * (steps - 1)
    assert end.child.replaces == before.inbound_spi
    assert end.snapshot(net.now)[0].children[-1].suite == esp
    net.sleep(10)
    net.check_agreement()
    assert len(net.a.children) == 1


def test_ike_rekey_with_additional_key_exchanges_by_the_formula(secrets: list[bytes]) -> None:
    """SKEYSEED = prf(SK_d (old), SK(0) | Ni | Nr | SK(1)) (RFC 9370 section 2.2.4)."""
    net = connected()
    secrets.clear()
    (old,) = net.a.engine._context.ike_sas.values()
    sk_d = old.sk_d
    net.a.engine.rekey_ike(net.a.handle, net.now)
    net.collect()
    inside = []
    for name in "ab":
        inside.append(net.inside(net.flying[name][0]))
        net.deliver(name)
    net.settle()
    nonces = b"".join(nonce.data for payloads in inside if (nonce := wire.find(payloads, wire.Nonce)) is not None)
    assert len(secrets) == 2
    (new,) = net.a.engine._context.ike_sas.values()
    keys = _expand(_prf(sk_d, secrets[0] + nonces + secrets[1]), nonces, new.initiator_spi + new.responder_spi)
    assert (new.sk_d, new.sk_pi, new.sk_pr) == (keys["d"], keys["pi"], keys["pr"])
    net.sleep(100)
    net.check_agreement()


def test_child_keymat_by_the_formula(secrets: list[bytes]) -> None:
    """KEYMAT = prf+(SK_d, SK(0) | Ni | Nr | SK(1)) (RFC 9370 section 2.2.4)."""
    net = connected()
    secrets.clear()
    (sa,) = net.a.engine._context.ike_sas.values()
    rekey_child(net, net.a)
    net.collect()
    inside = []
    for name in "ab":
        inside.append(net.inside(net.flying[name][0]))
        net.deliver(name)
    net.settle()
    nonces = b"".join(nonce.data for payloads in inside if (nonce := wire.find(payloads, wire.Nonce)) is not None)
    keymat = _prf_plus(sa.sk_d, secrets[0] + nonces + secrets[1], 2 * 36)
    assert net.a.child.outbound_keymat + net.a.child.inbound_keymat == keymat


@pytest.mark.parametrize("kind", ["ike", "child"])
@pytest.mark.parametrize("losses", [0, 1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_simultaneous_rekey_in_every_order(kind: str, losses: int, seed: int) -> None:
    """Cases 8 (create_child.py) and 6 (rekey_ike.py)."""

    def scenario() -> Wire:
        net = connected(seed=seed)
        for end in net.ends:
            if kind == "ike":
                end.engine.rekey_ike(end.handle, net.now)
            else:
                rekey_child(net, end)
        return net

    runs = 0
    for script, net in every_run(scenario, losses, Wire.check_traffic, 3000):
        runs += 1
        net.sleep(100)
        try:
            net.check_agreement()
            for end in net.ends:
                assert len(end.engine._context.ike_sas) == len(end.established) == len(end.children) == 1
                assert len(end.of(events.IkeSaRekeyed)) == (kind == "ike")
            assert all(sa.followup is None for end in net.ends for sa in end.engine._context.ike_sas.values())
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, script {script}: {error}") from error
    assert runs >= (4, 30, 100)[losses]


@pytest.mark.parametrize("kind", ["ike", "child"])
@pytest.mark.parametrize("losses", [0, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_simultaneous_rekey_of_which_one_has_additional_key_exchanges(kind: str, losses: int, seed: int) -> None:
    """Each end answers with what it prefers itself, so one exchange is over at once and the other is not."""

    def scenario() -> Wire:
        esp = ("aes256gcm16-x25519-ke1_x448", "aes128gcm16-x25519")
        net = make_wire(
            make_profile("a", ike=(HYBRID, PLAIN), esp=esp, **WHOLE),
            make_profile("b", ike=(PLAIN, HYBRID), esp=esp[::-1], **WHOLE),
            seed=seed,
        )
        net.connect()
        for end in net.ends:
            if kind == "ike":
                end.engine.rekey_ike(end.handle, net.now)
            else:
                rekey_child(net, end)
        return net

    for script, net in every_run(scenario, losses, Wire.check_traffic, 3000):
        net.sleep(100)
        try:
            net.check_agreement()
            for end in net.ends:
                assert len(end.engine._context.ike_sas) == len(end.established) == len(end.children) == 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, script {script}: {error}") from error


def test_an_unknown_link_gets_state_not_found_and_the_rekey_starts_anew() -> None:
    net = connected()
    before = net.a.child
    rekey_child(net, net.a)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    (sa,) = net.b.engine._context.ike_sas.values()
    sa.drop_followup()
    net.deliver("a")
    assert net.inside(net.flying["b"][0]) == (wire.Notify(NotifyType.STATE_NOT_FOUND),)
    net.settle()
    net.a.check_spis()
    assert net.a.child == before
    net.sleep(30)
    assert net.a.child.replaces == before.inbound_spi
    net.check_agreement()


def test_temporary_failure_in_the_middle_of_an_ike_rekey() -> None:
    """The peer begins to delete a CHILD_SA between the key exchanges: the IKE SA has to carry that to its end."""
    net = connected()
    net.a.engine.create_child(net.a.handle, net.now)
    net.settle()
    net.a.engine.rekey_ike(net.a.handle, net.now)
    net.collect()
    net.deliver("a")
    net.deliver("b")
    net.b.engine.delete_child(net.b.handle, net.b.child.inbound_spi, net.now)
    net.collect()
    net.deliver("a")
    (answer,) = [f for f in net.flying["b"] if wire.Message.decode(f.data).header.is_response]
    assert net.inside(answer) == (wire.Notify(NotifyType.TEMPORARY_FAILURE),)
    net.settle()
    net.sleep(30)
    net.check_agreement()
    assert len(net.a.of(events.IkeSaRekeyed)) == 1


def test_a_peer_that_goes_silent_between_key_exchanges_leaks_nothing() -> None:
    net = connected()
    rekey_child(net, net.a)
    net.collect()
    net.deliver("a")
    assert net.b.allocated - net.b.released != set(net.b.children)
    net.sleep(61, deliver=False)
    net.b.drain()
    net.b.check_spis()


# -- simulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("ike", [HYBRID, THREE], ids=["one", "three"])
def test_both_ends_agree_after_anything(loss: float, ike: str) -> None:
    for seed in range(12):
        try:
            check_end(simulate(seed, loss, steps=12, ike=(ike,), esp=(ESP_TWO, ESP)))
        except Exception as error:
            raise AssertionError(f"loss {loss}, seed {seed}: {error!r}") from error
