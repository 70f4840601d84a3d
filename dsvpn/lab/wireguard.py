"""The other VPN of the comparison: Debian's wireguard-go between the same two spokes, in the same namespaces.

It takes the direct path that dsvpn takes (spoke1 behind the NAT box, the box's ports kept open by keepalives), carries
the LAN hosts' second addresses, and has its usual MTU of 1420 octets, which is a little more than dsvpn leaves to TCP.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dsvpn.errors import HostError
from dsvpn.lab.capture import COMPARISON_PORT
from dsvpn.lab.measure import ping
from dsvpn.lab.run import Run, command, wait_until
from dsvpn.lab.topology import SPOKE1, SPOKE2, Namespace, Site, Topology

MTU = 1420
#: wireguard-go's control sockets are named by the device alone, across namespaces: the process id keeps labs apart.
_DEVICES = {site.name: f"wg{os.getpid()}{site.name[-1]}" for site in (SPOKE1, SPOKE2)}
_SOCKETS = Path("/var/run/wireguard")


def version() -> str:
    """What `wireguard-go --version` calls itself."""
    first = command(["wireguard-go", "--version"]).splitlines()[0]
    return first.removeprefix("wireguard-go ").strip()


@contextlib.contextmanager
def tunnel(run: Run, topology: Topology) -> Iterator[None]:
    """wireguard-go between spoke1 and spoke2, tried with a ping; taken down at the end."""
    keys = {name: command(["wg", "genkey"]).strip() for name in _DEVICES}
    public = {name: command(["wg", "pubkey"], stdin=key).strip() for name, key in keys.items()}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # The side that is called comes first and goes last: a call to a closed port would raise an ICMP error.
        for site, peer in ((SPOKE2, SPOKE1), (SPOKE1, SPOKE2)):
            namespace, device = topology.gateways[site.name], _DEVICES[site.name]
            processes.append(_start(run, namespace, device))
            _configure(run, namespace, site, peer, keys[site.name], public[peer.name])
        source = topology.hosts[SPOKE1.name]
        wait_until(
            lambda: ping(source, SPOKE2.comparison_host, 1, wait=0.5, bind=SPOKE1.comparison_host).received,
            15,
            "an answer through wireguard-go",
        )
        yield
    finally:
        for process in reversed(processes):
            run.end(process)
        for device in _DEVICES.values():
            (_SOCKETS / f"{device}.sock").unlink(missing_ok=True)


def _start(run: Run, namespace: Namespace, device: str) -> subprocess.Popen[bytes]:
    log = run.directory / f"wireguard-{namespace.role}.log"
    process = run.spawn(["wireguard-go", "-f", device], log, namespace=namespace.name)

    def listens() -> bool:
        if process.poll() is not None:
            raise HostError(f"wireguard-go ended with status {process.returncode}: {log.read_text().strip()[-200:]}")
        return (_SOCKETS / f"{device}.sock").exists()

    wait_until(listens, 10, "wireguard-go")
    return process


def _configure(run: Run, namespace: Namespace, site: Site, peer: Site, key: str, peer_key: str) -> None:
    device = _DEVICES[site.name]
    key_file = run.directory / f"wireguard-{site.name}.key"
    key_file.touch(mode=0o600)
    key_file.write_text(key + "\n")
    argv = ["wg", "set", device, "listen-port", str(COMPARISON_PORT), "private-key", str(key_file)]
    argv += ["peer", peer_key, "allowed-ips", str(peer.comparison)]
    # Only the side behind the NAT can begin; its keepalives hold the box's mapping.
    if not peer.behind_nat:
        argv += ["endpoint", f"{peer.public}:{COMPARISON_PORT}", "persistent-keepalive", "5"]
    namespace.command(argv)
    namespace.ip("link", "set", device, "mtu", str(MTU), "up")
    namespace.ip("route", "add", str(peer.comparison), "dev", device)
