"""What the lab does, step by step, and what must come out."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from dsvpn.lab import wireguard
from dsvpn.lab.capture import (
    PROTECTED,
    STRANGERS,
    Capture,
    FrameCounters,
    Traffic,
    count,
    describe,
    find_switch,
    holds_plaintext,
)
from dsvpn.lab.gateways import TUNNEL, GatewayProcess, Settings
from dsvpn.lab.measure import PLAINTEXT, Echo, Pings, Throughput, iperf, iperf_server, median_rtt, ping
from dsvpn.lab.report import Report
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.status import data_packets, nhrp_received, registrations, shortcuts
from dsvpn.lab.topology import HUB, SITES, SPOKE1, SPOKE2, Topology

#: Octets behind the ICMP header of the pings that are followed on the underlay. Nothing else is as long before iperf3.
_MARKED_SIZE = 1000
#: Longest time from the first packet between spokes until both directions are direct, seconds.
_SWITCH_LIMIT = 1.0
#: ESP frames that may pass between hub and spokes in the quiet of the throughput runs: NHRP refreshes.
_NHRP_FRAMES = 8
_NAMES = {
    Traffic.IKE: "IKE",
    Traffic.ESP: "ESP",
    Traffic.ESP_IN_UDP: "ESP in UDP",
    Traffic.KEEPALIVE: "NAT keepalive",
    Traffic.NEIGHBOUR: "ARP",
    Traffic.GRE: "GRE in clear",
    Traffic.COMPARISON: "wireguard-go (the comparison)",
    Traffic.OTHER: "of another kind",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line can change. `duration` is of one iperf3 run, in seconds; `stop`: end the gateways."""

    duration: float = 4.0
    rounds: int = 3
    compare: bool = True
    encapsulation: str = "auto"
    stop: bool = True


class Scenario:
    """One run over a topology. The caller owns `run` and takes it down."""

    def __init__(self, run: Run, report: Report, options: Options) -> None:
        self.run = run
        self.report = report
        self.options = options
        self.topology = Topology(run)
        settings = Settings(encapsulation=options.encapsulation)
        self.gateways = {
            site.name: GatewayProcess(run, site, self.topology.gateways[site.name], settings) for site in SITES
        }

    def play(self) -> None:
        """All steps. HostError or TimeoutError end it early; what was found until then is in the report."""
        with self.report.step("Building the network: hub, two spokes (spoke1 behind NAT), a LAN host behind each"):
            self.topology.build()
        counters = FrameCounters(self.topology.internet, self.topology.ports)
        capture = Capture(self.run, self.topology.internet, self.run.directory / "underlay.pcap")
        strangers = Capture(self.run, self.topology.internet, self.run.directory / "strangers.pcap", STRANGERS)
        with self.report.step("Starting the gateways: dsvpn up CONFIG, one process each"):
            for gateway in self.gateways.values():
                gateway.start()
        self._register()
        self._reach_hub_lan()
        self._shortcut(capture)
        self._throughput(counters)
        self._frames(counters, strangers)
        if self.options.stop:
            self._shutdown()

    def _register(self) -> None:
        begun = time.monotonic()
        with self.report.step("Registrations at the hub"):
            hub, wanted = self.gateways["hub"], {SPOKE1.tunnel, SPOKE2.tunnel}
            wait_until(lambda: wanted <= registrations(hub).keys(), 30, "both spokes to register", interval=0.1)
            self.report.figures["registration_seconds"] = time.monotonic() - begun
            for tunnel, nbma in sorted(registrations(hub).items()):
                site = next(site for site in SITES if site.tunnel == tunnel)
                note = " (the NAT box's outside address)" if site.behind_nat else ""
                found = f"{tunnel} at {nbma}{note}"
                self.report.check(f"{site.name} is registered with its public address", nbma == site.public, found)

    def _reach_hub_lan(self) -> None:
        with self.report.step("LAN hosts of the spokes reach the LAN host of the hub"):
            for site in (SPOKE1, SPOKE2):
                pings = ping(self.topology.hosts[site.name], HUB.host, 20)
                self.report.check(f"{site.name}-lan to hub-lan", pings.lost == 0, _answered(pings))

    def _shortcut(self, capture: Capture) -> None:
        report, hub = self.report, self.gateways["hub"]
        with report.step(f"First packets between the spokes: ping {SPOKE1.host} -> {SPOKE2.host}, 50 a second"):
            before, begun = data_packets(hub), time.time()
            pings = ping(self.topology.hosts["spoke1"], SPOKE2.host, 200, size=_MARKED_SIZE)
            dropped = capture.stop()
            packets = capture.packets()
        switch = find_switch(packets, begun, _MARKED_SIZE)
        moved = data_packets(hub) - before
        report.check(
            "the first packets go by the hub",
            switch.by_hub > 0 and moved > 0,
            f"{switch.by_hub} ESP frames of the ping to and from the hub, whose counters moved by {moved} packets",
        )
        self._formation()
        report.check(
            "IKE exchange between the spokes",
            switch.first_ike is not None,
            "none was seen"
            if switch.first_ike is None
            else f"began {(switch.first_ike - switch.first) * 1000:.0f} ms after the first packet",
        )
        took = switch.seconds
        report.check(
            f"direct path within {_SWITCH_LIMIT:g} s of the first packet",
            took is not None and took < _SWITCH_LIMIT,
            "never" if took is None else f"{took * 1000:.0f} ms; then {switch.direct} frames spoke to spoke",
        )
        report.check("no ping lost on the way", pings.lost == 0, _answered(pings))
        if took is not None:
            self._round_trips(pings.echoes, switch.first + took)
        report.figures |= {"switch_seconds": took, "pings_lost": pings.lost, "pings": pings.transmitted}
        kinds = count(packets)
        strangers = [packet for packet in packets if packet.traffic not in PROTECTED]
        report.check(
            "the capture holds nothing but IKE, ESP and ESP in UDP",
            not strangers and dropped == 0 and len(packets) > 0,
            f"{len(packets)} packets ({_listed(kinds)}), {dropped} missed by the capture"
            + "".join(f"; {describe(packet)}" for packet in strangers[:3]),
        )
        leaks = holds_plaintext(packets, PLAINTEXT)
        report.check("no user data in clear on the underlay", not leaks, f"the pings' text is in {len(leaks)} packets")

    def _formation(self) -> None:
        """What the spokes say of the steps that no capture shows, because they go through the tunnel."""
        spokes = [self.gateways[site.name] for site in (SPOKE1, SPOKE2)]
        redirects = {spoke.site.name: nhrp_received(spoke, "traffic_indication") for spoke in spokes}
        self.report.check(
            "redirect: the hub tells the spokes of a direct path",
            all(redirects.values()),
            ", ".join(f"{number} Traffic Indication at {name}" for name, number in redirects.items()),
        )
        found = {spoke.site.name: shortcuts(spoke) for spoke in spokes}
        self.report.check(
            "resolution: each spoke has the other's LAN as a shortcut",
            f"{SPOKE2.lan}" in found[SPOKE1.name] and f"{SPOKE1.lan}" in found[SPOKE2.name],
            ", ".join(
                f"{name}: {prefix} by {next_hop}"
                for name, listed in found.items()
                for prefix, next_hop in listed.items()
            )
            or "there is none",
        )

    def _round_trips(self, echoes: tuple[Echo, ...], switched: float) -> None:
        before = median_rtt([echo for echo in echoes if echo.sent + echo.rtt < switched])
        after = median_rtt([echo for echo in echoes if echo.sent > switched])
        self.report.figures |= {"rtt_by_hub_seconds": before, "rtt_direct_seconds": after}
        found = f"{_milliseconds(before)} by the hub, {_milliseconds(after)} direct"
        self.report.note("RTT between the LAN hosts (median)", found)

    def _throughput(self, counters: FrameCounters) -> None:
        report, hub, options = self.report, self.gateways["hub"], self.options
        source, target = self.topology.hosts["spoke1"], self.topology.hosts["spoke2"]
        load, processors = os.getloadavg()[0], os.cpu_count() or 1
        report.figures |= {"load_before": load, "processors": processors}
        if load > processors / 2:
            report.note(
                "this machine is busy with other work", f"load {load:.1f} on {processors} CPUs: quote no figure"
            )
        ours: list[Throughput] = []
        theirs: list[Throughput] = []
        moved = frames = 0
        title = (
            f"iperf3 {SPOKE1.host} -> {SPOKE2.host}, one TCP stream, {options.rounds} runs of {options.duration:g} s"
        )
        with ExitStack() as stack:
            stack.enter_context(report.step(title))
            stack.enter_context(iperf_server(self.run, target))
            if options.compare:
                stack.enter_context(wireguard.tunnel(self.run, self.topology))
            for _ in range(options.rounds):
                packets, data = data_packets(hub), counters.read().hub_data
                ours.append(iperf(source, SPOKE1.host, SPOKE2.host, options.duration))
                moved += data_packets(hub) - packets
                frames += counters.read().hub_data - data
                report.say(f"dsvpn: {_rate(ours[-1])}")
                if options.compare:
                    theirs.append(iperf(source, SPOKE1.comparison_host, SPOKE2.comparison_host, options.duration))
                    report.say(f"wireguard-go: {_rate(theirs[-1])}")
        report.check(
            "the hub forwards nothing while the spokes talk",
            moved == 0 and frames <= _NHRP_FRAMES,
            f"its counters moved by {moved} packets, {frames} ESP frames reached or left it",
        )
        median = statistics.median(run.bits_per_second for run in ours)
        report.figures["dsvpn_bits_per_second"] = [run.bits_per_second for run in ours]
        if not theirs:
            report.note("throughput, one TCP stream", f"{_gigabits(median)} (median of {len(ours)})")
            return
        other = statistics.median(run.bits_per_second for run in theirs)
        report.figures["wireguard_go_bits_per_second"] = [run.bits_per_second for run in theirs]
        report.check(
            "throughput, one TCP stream, beats wireguard-go",
            median > other,
            f"{_gigabits(median)} against {_gigabits(other)}: {median / other:.1f} times "
            f"(medians of {len(ours)}, in turn; wireguard-go {wireguard.version()}, MTU {wireguard.MTU}, "
            f"dsvpn MTU {self._tunnel_mtu()})",
        )

    def _tunnel_mtu(self) -> int:
        (link,) = json.loads(self.topology.gateways["spoke1"].ip("-j", "link", "show", "dev", TUNNEL))
        return int(link["mtu"])

    def _frames(self, counters: FrameCounters, capture: Capture) -> None:
        seen = counters.read()
        capture.stop()
        allowed = PROTECTED | ({Traffic.COMPARISON} if self.options.compare else frozenset())
        strangers = seen.strangers(allowed)
        self.report.figures["underlay_frames"] = {str(kind): number for kind, number in seen.kinds.items()}
        self.report.check(
            "nothing else crossed the underlay in the whole run",
            not strangers and seen.kinds[Traffic.ESP_IN_UDP] + seen.kinds[Traffic.ESP] > 0,
            _listed({kind: number for kind, number in seen.kinds.items() if number})
            + "".join(f"; {describe(packet)}" for packet in capture.packets()[:3] if strangers),
        )

    def _shutdown(self) -> None:
        with self.report.step("Stopping the gateways (SIGTERM), spokes first"):
            for gateway in reversed(self.gateways.values()):
                status = gateway.stop()
                left = gateway.leftovers()
                self.report.check(
                    f"{gateway.site.name} ends cleanly",
                    status == 0 and not left,
                    f"exit status {status}, {', '.join(left) or 'no device, route or socket'} left behind",
                )


def _listed(kinds: Mapping[Traffic, int]) -> str:
    return ", ".join(f"{number} {_NAMES[kind]}" for kind, number in kinds.items() if number)


def _answered(pings: Pings) -> str:
    return f"{pings.received} of {pings.transmitted} pings answered"


def _rate(run: Throughput) -> str:
    return f"{_gigabits(run.bits_per_second)}, {run.retransmits} retransmits"


def _gigabits(bits_per_second: float) -> str:
    return f"{bits_per_second / 1e9:.2f} Gb/s"


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:.2f} ms"
