"""One end of a data plane with static keys.

    python -m bench.peers.static_gateway left|right SUITE LOCAL REMOTE DIRECTORY

It runs until SIGTERM. Both ends derive the same key material from their names, so it protects nothing. The ends tell
each other their SPIs by files in DIRECTORY, and take commands on the socket that `bench.peers.agent` describes. Its
last words are its counters.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import dsvpn_native
from bench.netns.bed import LEFT_LAN, RIGHT_LAN, TUNNEL
from bench.peers.agent import ADJACENCY, Agent, serve
from bench.peers.dataplane import MTU
from dsvpn.lab.run import wait_until

_NEXT_HOP = 0


def _exchange(directory: Path, side: str, other: str, spi: int) -> int:
    fresh = directory / f"{side}.spi.new"
    fresh.write_text(str(spi))
    fresh.replace(directory / f"{side}.spi")
    file = directory / f"{other}.spi"
    wait_until(file.exists, 20, f"the SPI of {other}")
    return int(file.read_text())


def main(side: str, suite: str, local: str, remote: str, directory: str) -> None:
    """Bring it up and wait."""
    # Blocked before the workers start, so that every thread inherits it and only sigwait takes it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    dataplane = dsvpn_native.Dataplane()
    tunnel = dataplane.add_tunnel("dsvpn0", protected=True)
    dataplane.open_underlay(esp=False)
    dataplane.set_adjacency(ADJACENCY, tunnel, "udp", local, remote, 4500, MTU)
    dataplane.set_next_hop(_NEXT_HOP, ADJACENCY, False)
    for prefix in (str(TUNNEL), str(LEFT_LAN), str(RIGHT_LAN)):
        dataplane.set_route(tunnel, prefix, _NEXT_HOP)
    other = "right" if side == "left" else "left"
    agent = Agent(dataplane, tunnel, side=side, other=other, suite=suite, local=local, remote=remote)
    spi = agent.accept(generation=0)["spi"]
    agent.send(_exchange(Path(directory), side, other, int(spi)), generation=0)
    dataplane.start_workers()
    threading.Thread(target=serve, args=(agent, Path(directory) / f"{side}.agent"), daemon=True).start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    dataplane.stop_workers()
    print(json.dumps({name: count for name, count in dataplane.counters().items() if count}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
