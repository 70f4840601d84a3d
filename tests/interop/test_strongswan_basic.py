"""strongSwan: the least that has to work."""

from __future__ import annotations

import pytest

from tests.interop.pair import PLAIN, End, Pair

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.interop, pytest.mark.slow]


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_raw_esp(pair: Pair, initiator: End) -> None:
    pair.connect(initiator)
    pair.check_traffic()


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_forced_encapsulation(pair: Pair, initiator: End) -> None:
    pair.connect(initiator, settings=PLAIN.but(encapsulation="udp"))
    pair.check_traffic(by="natt")
