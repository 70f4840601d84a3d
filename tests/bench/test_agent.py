"""What a static gateway does on command."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import pytest

import dsvpn_native
from bench.netns.updates import Remote
from bench.peers.agent import ADJACENCY, Agent, serve
from dsvpn.errors import HostError


@pytest.fixture
def agent() -> Agent:
    # The commands are those that both have.
    plane = cast("dsvpn_native.Dataplane", dsvpn_native.MemoryForwarder())
    tunnel = cast("dsvpn_native.MemoryForwarder", plane).add_tunnel()
    plane.set_adjacency(ADJACENCY, tunnel, "udp", "192.0.2.1", "192.0.2.2", 4500, 1434)
    suite = "aes128gcm16"
    made = Agent(plane, tunnel, side="left", other="right", suite=suite, local="192.0.2.1", remote="192.0.2.2")
    made.send(300, generation=0)
    return made


def test_churn_keeps_its_pace_and_the_sa_in_use(agent: Agent) -> None:
    done = agent.churn(rate=2000.0, seconds=0.3, batch=10, peers=7)
    assert done["updates"] == 10 * done["commits"]
    assert 400 < done["updates"] <= 600
    assert done["seconds"] >= 0.3
    plane = agent._dataplane
    assert plane.outbound_sa_counters(ADJACENCY)["spi"] == 300
    assert plane.outbound_sa_counters(7)["spi"] >= 0x1000


def test_rekey_moves_over_and_forgets(agent: Agent) -> None:
    old, new = agent.accept(generation=0)["spi"], agent.accept(generation=1)["spi"]
    agent.send(301, generation=1)
    agent.retire(old)
    plane = agent._dataplane
    assert plane.outbound_sa_counters(ADJACENCY)["spi"] == 301
    assert plane.sa_counters(new)["packets"] == 0
    with pytest.raises(ValueError, match="SA"):
        plane.sa_counters(old)


def test_commands_come_by_the_socket(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    threading.Thread(target=serve, args=(agent, path), daemon=True).start()
    remote = Remote(path)
    try:
        spi = remote("accept", generation=3)["spi"]
        assert remote("retire", spi=spi) == {}
        with pytest.raises(HostError, match="retire: ValueError"):
            remote("retire", spi=spi)
        with pytest.raises(HostError, match="fly"):
            remote("fly")
        assert remote("counters") == {}
    finally:
        remote.close()
