"""Throughput spoke to spoke through real processes in network namespaces, against wireguard-go in the same run.

    python bench/netns/throughput.py [--rounds 6] [--duration 5] [--out FILE]

The runs alternate (dsvpn, wireguard-go, dsvpn, ...), the first of each is discarded, medians and the median absolute
deviation are given. The result is JSON with what it was measured on. A debug build of the data plane is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import dsvpn_native
from dsvpn.lab import wireguard
from dsvpn.lab.gateways import GatewayProcess, Settings
from dsvpn.lab.measure import iperf, iperf_server, ping
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.status import path_to, registrations
from dsvpn.lab.topology import SITES, SPOKE1, SPOKE2, Topology


def measure(rounds: int, duration: float, settings: Settings) -> dict[str, list[float]]:
    """Bits per second of each run, by VPN, the first of each already discarded."""
    run = Run("dsvpn-bench")
    found: dict[str, list[float]] = {"dsvpn": [], "wireguard-go": []}
    run.open()
    try:
        topology = Topology(run)
        topology.build()
        gateways = {site.name: GatewayProcess(run, site, topology.gateways[site.name], settings) for site in SITES}
        for gateway in gateways.values():
            gateway.start()
        wanted = {SPOKE1.tunnel, SPOKE2.tunnel}
        wait_until(lambda: wanted <= registrations(gateways["hub"]).keys(), 30, "both spokes to register")
        source, target = topology.hosts["spoke1"], topology.hosts["spoke2"]

        def direct() -> bool:
            ping(source, SPOKE2.host, 5)
            return path_to(gateways["spoke1"], str(SPOKE2.lan)) == "direct"

        wait_until(direct, 30, "the direct path")
        with iperf_server(run, target), wireguard.tunnel(run, topology):
            for number in range(rounds + 1):
                ours = iperf(source, SPOKE1.host, SPOKE2.host, duration)
                theirs = iperf(source, SPOKE1.comparison_host, SPOKE2.comparison_host, duration)
                if number:
                    found["dsvpn"].append(ours.bits_per_second)
                    found["wireguard-go"].append(theirs.bits_per_second)
    finally:
        run.close()
    return found


def summary(values: list[float]) -> dict[str, Any]:
    """Median and median absolute deviation, Gb/s."""
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values)
    return {
        "median_gbps": round(median / 1e9, 3),
        "mad_gbps": round(deviation / 1e9, 3),
        "runs_gbps": [round(value / 1e9, 3) for value in values],
    }


def machine() -> dict[str, Any]:
    """What a figure is worth nothing without."""
    root = Path(__file__).parents[2]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "commit": commit.stdout.strip() or "unknown",
        "kernel": platform.release(),
        "cpu": model[0] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "build_profile": dsvpn_native.BUILD_PROFILE,
        "aead_backend": dsvpn_native.Dataplane().aead_backend,
        "wireguard_go": wireguard.version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of one run")
    parser.add_argument(
        "--suite", default="aes128gcm16", help="ESP suite of dsvpn (wireguard-go has ChaCha20-Poly1305)"
    )
    parser.add_argument("--driver", choices=("auto", "uvloop", "workers"), default="auto")
    parser.add_argument("--out", type=Path, help="write the JSON here instead of to the terminal")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root: run this with sudo")
    if dsvpn_native.BUILD_PROFILE != "release":
        sys.exit(f"dsvpn-native is a {dsvpn_native.BUILD_PROFILE} build, which no figure should come from: make setup")
    settings = Settings(profile={"esp": f'["{options.suite}"]'}, gateway={"driver": f'"{options.driver}"'})
    found = measure(options.rounds, options.duration, settings)
    result = {
        "what": "iperf3, one TCP stream, spoke to spoke, one spoke behind NAT",
        "suite": options.suite,
        "driver": options.driver,
        "machine": machine(),
        "duration_s": options.duration,
        **{name: summary(values) for name, values in found.items()},
        "ratio": round(statistics.median(found["dsvpn"]) / statistics.median(found["wireguard-go"]), 2),
    }
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
