"""What fuzzing has found and where it begins, run again; and every message changed at every octet behind the seal."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from dsvpn.errors import DecodeError
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType
from tests.ike import fuzzing
from tests.ike.fuzzing import LONGEST, SCENES, conversation, inside, one_input, record, try_input
from tests.ike.test_bad_input import state

CORPUS = sorted(fuzzing.CORPUS.glob("*"))
#: The second scene differs from the first in its longer exchanges: fewer octets of it are tried.
STRIDES = (1, 5)


def steps() -> list[tuple[int, int]]:
    found = []
    for scene in range(len(SCENES)):
        for step in range(LONGEST):
            net, flight = conversation(scene, step)
            if flight is None:
                break
            if inside(net, flight) is not None:
                found.append((scene, step))
    return found


def decodes(first: int, chain: bytes) -> bool:
    try:
        wire.decode_payloads(first, chain, 0)
    except DecodeError:
        return False
    return True


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_the_corpus_passes(file: Path) -> None:
    one_input(file.read_bytes())


def test_the_seeds_pass_and_hold_every_kind_of_message() -> None:
    seeds = dict(record())
    assert len(seeds) > 80
    exchanges = {octets[2 + 18] for name, octets in seeds.items() if name.endswith("datagram")}
    assert exchanges == {34, 35, 36, 37, 43, 44}
    for octets in seeds.values():
        one_input(octets)


@pytest.mark.slow
@pytest.mark.parametrize(("scene", "step"), steps())
def test_every_message_changed_at_every_octet_behind_the_seal(scene: int, step: int) -> None:
    """By a peer that has the keys: one octet altered, or the chain cut there. Both ends come to rest."""
    chance = Random(f"{scene} {step}")
    net, flight = conversation(scene, step)
    assert flight is not None
    sealed = inside(net, flight)
    assert sealed is not None
    first, chain = sealed
    for at in range(0, len(chain), STRIDES[scene]):
        flipped = chain[:at] + bytes((chain[at] ^ chance.choice((1, 0x80, 0xFF)),)) + chain[at + 1 :]
        for changed in (flipped, chain[:at]):
            # What does not decode is answered alike, whatever it is: a few of those are enough.
            if not decodes(first, changed) and chance.random() < 0.9:
                continue
            net, flight = conversation(scene, step)
            assert flight is not None
            try:
                try_input(net, flight, False, bytes((first,)) + changed)
            except Exception as error:
                raise AssertionError(f"scene {scene}, step {step}, octet {at}, {changed.hex()}: {error!r}") from error


@pytest.mark.parametrize("scene", range(len(SCENES)))
def test_every_old_message_replayed_at_every_step(scene: int) -> None:
    """To both ends, from the sender's address: nothing changes, and what is answered is what was answered before."""
    for step in range(LONGEST):
        net, flight = conversation(scene, step)
        if flight is None:
            return
        known = {old.data for old in net.record}
        for old in net.record:
            # Not what is in flight, nor an IKE_SA_INIT, which is another stranger's.
            if old.data == flight.data or old.data in {one.data for queue in net.flying.values() for one in queue}:
                continue
            if old.data[18] == 34 and not old.data[19] & 0x20:
                continue
            before = state(net, old.receiver)
            old.receiver.engine.receive_datagram(old.data, old.path, net.now)
            old.receiver.drain()
            for answer, _ in old.receiver.engine.datagrams_to_send(net.now):
                # An IKE SA that was rekeyed away is said to be gone.
                lost = wire.Message.decode(answer).payloads == (wire.Notify(NotifyType.INVALID_IKE_SPI),)
                assert answer in known or lost, f"step {step}"
            assert state(net, old.receiver) == before, f"step {step}"
