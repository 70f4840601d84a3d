"""Fuzzing the IKEv2 engine in the midst of real exchanges (`make fuzz-ike`).

Octet 0 of an input says how far a conversation of two engines has come; octet 1 whether what follows is a datagram
(odd) or the inside of the message that is due, sealed by its sender with the right key (even): a payload type, then a
payload chain. So a stranger's octets as well as those of a peer that has proved itself reach every state. Afterwards
both ends are left to each other: nothing may raise, and nothing half made may be left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsvpn.ike import sealing
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType
from tests.ike.harness import InFlight, Wire, both_options, make_wire

CORPUS = Path(__file__).with_name("corpus")
#: The settings of each conversation, and how many datagrams each of them has at most.
SCENES: tuple[dict[str, Any], ...] = (
    {"esp": ("aes128gcm16-x25519",)},
    {
        "ike": ("aes128-sha256-prfsha256-ecp256-ke1_x25519",),
        "esp": ("aes128gcm16-x25519-ke1_ecp256",),
        "childless": "prefer",
        "reauthentication": 1000.0,
    },
)
LONGEST = 64
QUIET = 250.0


def _actions(net: Wire) -> Iterator[None]:
    """A conversation with an exchange of every kind; each step may leave datagrams in flight."""
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    yield
    net.a.engine.rekey_child(net.a.handle, net.a.child.inbound_spi, net.now)
    yield
    net.b.engine.rekey_ike(net.b.handle, net.now)
    yield
    net.b.engine.check_liveness(net.b.handle, net.now)
    yield
    net.b.engine.reauthenticate(net.b.handle, net.now)
    yield
    net.a.engine.create_child(net.a.handle, net.now)
    yield
    net.a.engine.delete_child(net.a.handle, net.a.child.inbound_spi, net.now)
    yield
    net.a.engine.delete(net.a.handle, net.now, "done")
    yield


def conversation(scene: int, step: int) -> tuple[Wire, InFlight | None]:
    """The conversation after `step` datagrams, and the one that is due; None when it is over before."""
    net = make_wire(*both_options(dpd_interval=60.0, **SCENES[scene]), seed=scene)
    for _ in _actions(net):
        net.collect()
        while net.flying["a"] or net.flying["b"]:
            name = "a" if net.flying["a"] else "b"
            if not step:
                return net, net.flying[name].popleft()
            step -= 1
            net.deliver(name)
    return net, None


def seal(net: Wire, flight: InFlight, first: int, chain: bytes) -> bytes:
    """A message in the place of `flight`, from its sender, with this chain inside."""
    message = wire.Message.decode(flight.data)
    key = net._key(flight)
    associated = wire.encode_associated_data(message.header, first, key.sealed_length(len(chain)))
    return associated + key.seal_octets(associated, chain)


def inside(net: Wire, flight: InFlight) -> tuple[int, bytes] | None:
    """The first payload type and the chain of a sealed message that is in one piece; None for others."""
    if flight.data[18] == ExchangeType.IKE_SA_INIT:
        return None
    encrypted = wire.Message.decode(flight.data).payloads[-1]
    if not isinstance(encrypted, wire.Encrypted):
        return None
    # None where IKE_INTERMEDIATE has given its sender other keys meanwhile.
    chain = sealing.open_chain(net._key(flight), encrypted)
    return (encrypted.first_payload, chain) if isinstance(chain, bytes) else None


def one_input(data: bytes) -> None:
    """Run one input. Whatever is wrong raises."""
    if len(data) < 3:
        return
    scene, step = divmod(data[0], LONGEST)
    net, flight = conversation(scene % len(SCENES), step)
    if flight is None:
        return
    try_input(net, flight, data[1] % 2 == 1, data[2:])


def try_input(net: Wire, flight: InFlight, is_datagram: bool, octets: bytes) -> None:
    """Let `octets` arrive in the place of `flight`, and see both ends come to rest."""
    try:
        forged = octets if is_datagram else seal(net, flight, octets[0], octets[1:])
    except KeyError:
        # Its sender has forgotten the IKE SA already: nobody can seal this.
        return
    except AssertionError:
        # IKE_SA_INIT has no key to seal with.
        return
    flight.receiver.engine.receive_datagram(forged, flight.path, net.now)
    net.settle()
    net.sleep(QUIET)
    for end in net.ends:
        end.drain()
        end.check_spis()
        context = end.engine._context
        assert set(context.children) == set(end.children)
        assert set(context.associations) == set(end.established)
        assert len(context.ike_sas) == len(end.established), [sa.state for sa in context.ike_sas.values()]
        assert not len(context.half_open)


def record() -> Iterator[tuple[str, bytes]]:
    """The inputs that are the conversations themselves, by name."""
    for scene in range(len(SCENES)):
        for step in range(LONGEST):
            net, flight = conversation(scene, step)
            if flight is None:
                break
            at = scene * LONGEST + step
            yield f"{scene}-{step:02}-datagram", bytes((at, 1)) + flight.data
            sealed = inside(net, flight)
            if sealed is not None:
                yield f"{scene}-{step:02}-inside", bytes((at, 0, sealed[0])) + sealed[1]
