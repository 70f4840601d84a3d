"""A flood of IKE_SA_INIT requests from spoofed addresses against a gateway with live peers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from bench.control.bed import PRIORITY, RESPONDER, SUITES, ControlBed
from bench.control.handshakes import IN_FLIGHT, start
from bench.control.responders import Dsvpn, Secrets, gateway_configuration
from bench.environment import ROOT, python
from dsvpn.errors import HostError
from dsvpn.ike.proposals import offer_ike
from dsvpn.ike.suites import parse_ike_suite
from dsvpn.io.control import answers, ask
from dsvpn.lab.measure import ping
from dsvpn.lab.run import Run, command, wait_until
from dsvpn.lab.topology import Namespace
from dsvpn.wire import ikev2 as wire

#: A tenth more than is to be withstood: a sender that is not always scheduled sends less.
RATE = 55_000
SECONDS = 10
#: Where the requests seem to come from.
_SPOOFED = IPv4Network("10.128.0.0/9")
_CASE = "PSK, X25519"
_LIVE = 200
_CALM = 200
#: The spoke with traffic has a link of its own.
_SPOKE, _HUB_SIDE = "198.51.100.1", "198.51.100.2"
_SPOKE_TUNNEL, _HUB_TUNNEL = IPv4Address("10.99.0.2"), IPv4Address("10.99.0.1")


def request() -> bytes:
    """An IKE_SA_INIT request as ours are, its nonce last, for flood.c to vary."""
    suite = parse_ike_suite(SUITES[_CASE])
    payloads: list[wire.Payload] = [
        offer_ike([suite]),
        wire.KeyExchange(suite.group.key_exchange_id, bytes(range(1, 33))),
        wire.Nonce(bytes(32)),
    ]
    header = wire.Header(bytes(8), wire.ZERO_SPI, wire.ExchangeType.IKE_SA_INIT, wire.Flag.INITIATOR, 0)
    return wire.Message(header, tuple(payloads)).encode()


def measure(
    run: Run, *, say: Callable[[str], None], compiled: Path, rate: int = RATE, seconds: int = SECONDS
) -> dict[str, Any]:
    """What live peers, newcomers and memory had of it."""
    program = ROOT / "build" / "bench" / "flood"
    program.parent.mkdir(parents=True, exist_ok=True)
    command(["cc", "-O2", "-o", str(program), str(ROOT / "bench" / "control" / "flood.c")])
    with ExitStack() as stack:
        secrets = Secrets(run.directory / "flood-secrets")
        hub = Dsvpn(compiled)
        hub.dpd = "2s"
        bed = ControlBed(run, "flood")
        one = start(stack, bed, secrets, hub, _CASE, compiled)
        bed.initiators.ip("route", "add", "blackhole", str(_SPOOFED))
        spoke = _spoke(stack, run, bed, secrets, compiled)
        one.initiators("connect", count=_LIVE, in_flight=IN_FLIGHT)
        calm = ping(spoke, _HUB_TUNNEL, _CALM, interval=0.01)
        memory = hub.memory()
        busy = hub.processor_seconds()
        counters = _counters(hub)
        argv = ["ip", "netns", "exec", bed.initiators.name, *PRIORITY, str(program), str(_SPOOFED.network_address),
                str(_SPOOFED.prefixlen), str(RESPONDER), str(rate), str(seconds)]  # fmt: skip
        sender = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert sender.stdin is not None
        sender.stdin.write(request())
        sender.stdin.close()
        pings = subprocess.Popen(
            ["ip", "netns", "exec", spoke.name, "ping", "-q", "-i", "0.02", "-w", str(seconds - 1), str(_HUB_TUNNEL)],
            stdout=subprocess.PIPE,
            text=True,
        )
        latencies: list[float] = []
        newcomers = 0
        while sender.poll() is None:
            found = one.initiators("connect", count=1, in_flight=1)
            newcomers += 1
            if found["failures"]:
                raise HostError(f"a legitimate handshake failed: {found['failures']}")
            if sender.poll() is None:
                latencies += found["latencies"]
        assert sender.stdout is not None
        sent, took = sender.stdout.read().split()
        said = pings.communicate()[0]
        one.initiators("listen", seconds=4.0)
        up = one.initiators("listen", seconds=0.1)["up"]
        after = _counters(hub)
        growth = hub.memory() - memory
        result = {
            "rate": int(sent) / float(took),
            "seconds": float(took),
            "live": _LIVE + newcomers,
            "live_lost": _LIVE + newcomers - up,
            "pings": _lost(said),
            "calm_lost": _CALM - calm.received,
            "handshakes": len(latencies),
            "slowest_seconds": max(latencies, default=float("inf")),
            "memory_growth_octets": growth,
            "memory_octets": memory,
            "processor_share": (hub.processor_seconds() - busy) / (float(took) + 4.1),
            "counters": {name: value - counters.get(name, 0) for name, value in after.items()},
        }
        say(f"flood: {result}")
        return result


def _counters(hub: Dsvpn) -> dict[str, int]:
    """What IKE did with strangers, and what was dropped on the way to it."""
    found = ask(hub.socket, {"show": "counters"})
    drops = {**found["dataplane"], **found["kernel"]}
    return {**found["ike"], **{name: value for name, value in drops.items() if "drop" in name or "overflow" in name}}


def _lost(said: str) -> dict[str, int]:
    (line,) = (line for line in said.splitlines() if "packets transmitted" in line)
    words = line.split()
    return {"sent": int(words[0]), "lost": int(words[0]) - int(words[3])}


def _spoke(stack: ExitStack, run: Run, bed: ControlBed, secrets: Secrets, compiled: Path) -> Namespace:
    """A gateway that is registered with the hub, in a namespace of its own."""
    spoke = Namespace(run, "flood-spoke")
    spoke.create()
    spoke.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1", "netns", bed.responder.name)
    for namespace, device, address in ((spoke, "eth0", _SPOKE), (bed.responder, "eth1", _HUB_SIDE)):
        namespace.ip("address", "add", f"{address}/24", "dev", device)
        namespace.ip("link", "set", device, "up")
    spoke.ip("route", "add", "default", "via", _HUB_SIDE)
    socket = bed.directory / "spoke.sock"
    file = bed.directory / "spoke.toml"
    name = "live.bench.example"
    text = gateway_configuration(name, SUITES[_CASE], secrets.auth(name, _CASE), socket=socket)
    nhs = f'\n[tunnel.dsvpn0.nhrp]\nnhs = [{{ protocol = "{_HUB_TUNNEL}", nbma = "{RESPONDER}" }}]\n'
    file.write_text(text.replace(f"{_HUB_TUNNEL}/16", f"{_SPOKE_TUNNEL}/16") + nhs)
    process = run.spawn([*python(compiled), "-m", "dsvpn", "up", str(file)], bed.directory / "spoke.log",
                        namespace=spoke.name)  # fmt: skip
    stack.callback(run.end, process)
    wait_until(lambda: answers(socket), 20, "the spoke's control socket")
    wait_until(lambda: ping(spoke, _HUB_TUNNEL, 1, wait=0.5).received > 0, 30, "the spoke's tunnel")
    return spoke
