"""A peer that is not us: FRR's nhrpd on the Linux kernel's own mGRE, in a User-Mode Linux guest.

The guest takes the place of one site of the lab. Its network card is a tap device in the internet namespace; its root
is the host's, read-only, under an overlay in the guest's memory.
"""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from dsvpn.lab.run import wait_until
from dsvpn.lab.topology import HUB, SITES, SUMMARY, Site, Topology
from tests.interop.packages import FRR, tree

_SCRIPTS = Path(__file__).parent / "scripts"
#: Seconds that a guest may take to boot; 2 to 5 are usual.
_BOOT = 90.0
_TAP = "guest"


class FrrGuest:
    """FRR as the hub or as spoke2 of the lab. Use `start` once; the run that owns the topology ends it."""

    def __init__(self, topology: Topology, site: Site, *, key: int, holding_time: int = 60) -> None:
        assert not site.behind_nat, "a guest has its card in the internet namespace"
        self.site = site
        self._topology = topology
        self._key = key
        self._holding_time = holding_time
        self._boot = topology.run.directory / f"guest-{site.name}" / "boot"
        self._control = topology.run.directory / f"guest-{site.name}" / "control"
        self._jobs = itertools.count(1)

    def start(self) -> None:
        """Boot, and wait until the daemons run."""
        assert shutil.which("linux.uml"), "user-mode-linux is missing: apt-get install user-mode-linux"
        packages = tree("frr", FRR)
        self._boot.mkdir(parents=True)
        self._control.mkdir()
        self._control.chmod(0o777)  # FRR's daemons write their log there under their own user
        self._write_files(packages)
        self._plug_in()
        log = self._boot.parent / "console.log"
        process = self._topology.run.spawn(
            [
                *("linux.uml", "mem=192M", "rootfstype=hostfs", "rootflags=/", "ro", f"init={self._boot}/stage1.sh"),
                *("quiet", "con=null", "con0=null,fd:1", "ssl=null", f"uml_dir={self._boot.parent}/uml", "umid=guest"),
                f"vec0:transport=tap,ifname={_TAP},depth=128,gro=0",
            ],
            log,
            namespace=self._topology.internet.name,
        )

        def ready() -> bool:
            assert process.poll() is None, f"the guest died: {log.read_text(errors='replace')[-2000:]}"
            return (self._control / "ready").exists()

        wait_until(ready, _BOOT, "the guest to boot", interval=0.1)
        failed = self._control / "failed"
        assert not failed.exists(), f"the guest is not whole: {failed.read_text()}"

    def run(self, command: str, timeout: float = 30.0) -> str:
        """Run a shell command in the guest and give its output, whatever its exit status."""
        job = self._control / str(next(self._jobs))
        job.with_suffix(".new").write_text(command + "\n")
        job.with_suffix(".new").rename(job.with_suffix(".command"))
        wait_until(job.with_suffix(".status").exists, timeout, f"the guest to run {command!r}", interval=0.05)
        return job.with_suffix(".output").read_text()

    def vtysh(self, command: str) -> Any:
        """A show command of FRR that answers in JSON."""
        return json.loads(self.run(f"vtysh -c {shlex.quote(command)}"))

    def cache(self) -> dict[IPv4Address, IPv4Address]:
        """FRR's NHRP cache: protocol address -> NBMA address, without its own entry."""
        table = self.vtysh("show ip nhrp cache json")["table"]
        return {IPv4Address(row["protocol"]): IPv4Address(row["nbma"]) for row in table if row["type"] != "local"}

    def answers(self, target: IPv4Address, *, source: IPv4Address | None = None, count: int = 3) -> int:
        """How many of `count` pings from inside the guest are answered."""
        bind = f"-I {source}" if source is not None else ""
        output = self.run(f"ping -n -i 0.2 -c {count} -W 1 {bind} {target}")
        return output.count("bytes from")

    def _write_files(self, packages: Path) -> None:
        stage1 = (_SCRIPTS / "stage1.sh").read_text()
        for mark, path in (("@TREE@", packages), ("@CTL@", self._control), ("@BOOT@", self._boot)):
            stage1 = stage1.replace(mark, str(path))
        (self._boot / "stage1.sh").write_text(stage1)
        (self._boot / "stage1.sh").chmod(0o755)
        shutil.copy(_SCRIPTS / "stage2.sh", self._boot)
        values = {
            "name": self.site.name,
            "role": "hub" if self.site is HUB else "spoke",
            "wan": str(self.site.wan),
            "gateway": str(self.site.wan_gateway),
            "tunnel": str(self.site.tunnel),
            "lan": f"{self.site.host}/{self.site.lan.prefixlen}",
            "key": str(self._key),
        }
        text = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
        (self._boot / "environment").write_text(text)
        (self._boot / "routes").write_text("".join(f"{prefix} {via}\n" for prefix, via in self._routes()))
        (self._boot / "frr.conf").write_text(self._frr_conf())

    def _routes(self) -> list[tuple[IPv4Network, IPv4Address]]:
        if self.site is HUB:
            return [(site.lan, site.tunnel) for site in SITES if site is not HUB]
        return [(SUMMARY, HUB.tunnel)]

    def _frr_conf(self) -> str:
        interface = [
            "ip nhrp network-id 1",
            f"ip nhrp holdtime {self._holding_time}",
            "ip nhrp registration no-unique",
            "tunnel source vec0",
        ]
        if self.site is HUB:
            top = ["nhrp nflog-group 1"]
            interface += ["ip nhrp redirect", "ip nhrp map multicast dynamic"]
        else:
            top = []
            interface += ["ip nhrp shortcut", f"ip nhrp nhs dynamic nbma {HUB.public}"]
        lines = [f"hostname {self.site.name}", "log file /ctl/frr.log debugging", "debug nhrp all", *top]
        return "\n".join([*lines, "interface gre1", *(f" {line}" for line in interface), "exit", ""])

    def _plug_in(self) -> None:
        internet = self._topology.internet
        internet.ip("link", "delete", self.site.name)
        internet.ip("tuntap", "add", _TAP, "mode", "tap")
        internet.ip("address", "add", f"{self.site.wan_gateway}/{self.site.wan.network.prefixlen}", "dev", _TAP)
        internet.ip("link", "set", _TAP, "up")
