"""Ten thousand IKE SAs held: memory, the load of DPD and rekeys, and whether a handshake takes longer among them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.control.bed import ControlBed
from bench.control.handshakes import IN_FLIGHT, start
from bench.control.responders import Dsvpn, Secrets
from dsvpn.errors import HostError
from dsvpn.lab.run import Run

PEERS = 10_000
CASE = "PSK, X25519"
#: Handshakes one by one whose median is a latency.
_SINGLE = 60
_REKEYS = 500
#: The responder asks a silent peer after so many seconds.
_DPD = 20


class _Patient(Dsvpn):
    """Nobody registers by NHRP here: the gateway keeps peers that no mapping wants."""

    def program(self) -> list[str]:
        """`dsvpn up`, with more patience."""
        code = "import dsvpn.gateway.peering as p; p.UNWANTED_PEER_GRACE = 1e6; from dsvpn.cli.main import main; main()"
        return ["-c", code]


def measure(run: Run, *, say: Callable[[str], None], compiled: Path, peers: int = PEERS) -> dict[str, Any]:
    """Memory per IKE SA with its CHILD_SA (octets), latencies (seconds) and processor seconds per exchange."""
    with ExitStack() as stack:
        secrets = Secrets(run.directory / "held-secrets")
        hub = _Patient(compiled)
        hub.dpd = f"{_DPD}s"
        one = start(stack, ControlBed(run, "held"), secrets, hub, CASE, compiled)

        def latency() -> float:
            found = one.initiators("connect", count=_SINGLE, in_flight=1)
            return float(statistics.median(found["latencies"]))

        # What grows to its size and what is loaded late, now.
        one.initiators("connect", count=200, in_flight=IN_FLIGHT)
        one.initiators("disconnect", in_flight=IN_FLIGHT)
        empty = [latency()]
        one.initiators("disconnect", in_flight=IN_FLIGHT)
        empty.append(latency())
        one.initiators("disconnect", in_flight=IN_FLIGHT)
        before = hub.memory()
        found = one.initiators("connect", count=peers, in_flight=IN_FLIGHT)
        if found["up"] != peers:
            raise HostError(f"{found['up']} of {peers} peers came up: {found['failures']}")
        each = (hub.memory() - before) / peers
        say(f"{peers} IKE SAs: {each / 1024:.1f} KiB each")
        full = [latency(), latency()]
        say(f"handshake latency: empty {min(empty) * 1e3:.2f} ms, among {peers} {min(full) * 1e3:.2f} ms")
        loads = {}
        for name, step in (("CHILD_SA rekey", "rekey_children"), ("IKE SA rekey", "rekey_ike_sas")):
            spent = hub.processor_seconds()
            one.initiators(step, in_flight=IN_FLIGHT, most=_REKEYS)
            loads[name] = (hub.processor_seconds() - spent) / _REKEYS
        spent = hub.processor_seconds()
        heard = one.initiators("listen", seconds=float(_DPD))
        busy = (hub.processor_seconds() - spent) / _DPD
        if heard["up"] < peers:
            raise HostError(f"only {heard['up']} of {peers} peers are left after DPD")
        say(f"DPD of {heard['received'] / _DPD:.0f} peers a second: {busy:.2f} of a processor")
        return {
            "peers": peers,
            "octets_each": each,
            "latency_empty_seconds": empty,
            "latency_full_seconds": full,
            "processor_seconds": loads,
            "dpd_per_second": heard["received"] / _DPD,
            "dpd_processor_share": busy,
        }
