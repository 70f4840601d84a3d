"""Any number of gateways around one underlay switch or router, each with a configuration of its own and a LAN.

    LAN ── gateway ── (NAT box) ── internet ── gateway ── LAN

The lab has one hub and two spokes; these tests want more of them, and other NAT boxes.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dsvpn
from dsvpn.io.control import answers, ask
from dsvpn.lab.measure import Pings, ping
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.topology import Namespace
from tests.netns.network import DEADLINE

_numbers = itertools.count(1)


@dataclass
class Gateway:
    """A gateway's namespace, that of its LAN host, and its process."""

    name: str
    number: int
    wan: IPv4Interface
    namespace: Namespace
    host: Namespace
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def lan(self) -> IPv4Network:
        return IPv4Network(f"172.16.{self.number}.0/24")

    @property
    def lan_host(self) -> IPv4Address:
        return self.lan[10]

    @property
    def tunnel(self) -> IPv4Address:
        return IPv4Address(f"10.0.0.{self.number}")

    @property
    def socket(self) -> Path:
        return self.directory / f"{self.name}.sock"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def show(self, section: str) -> Any:
        return ask(self.socket, {"show": section})

    @property
    def memory(self) -> int:
        """Resident memory of its process, octets."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def standing(self, nhs: IPv4Address, tunnel: str = "dsvpn0") -> str | None:
        servers = self.show("summary")["tunnels"][tunnel]["nhs"]
        return next((entry["standing"] for entry in servers if entry["protocol"] == str(nhs)), None)

    def routes(self, *options: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.namespace.ip("-j", "route", "show", *options))
        return found


class Star:
    """Link N of the internet is 198.51.100.(4N)/30, its far end the first address. The internet knows nothing but these
    links. Use it as a context manager."""

    def __init__(self) -> None:
        self.run = Run(f"dsvpn-n2{os.getpid()}x{next(_numbers)}")
        self.internet = Namespace(self.run, "internet")
        self.gateways: dict[str, Gateway] = {}
        self.nats: dict[str, Namespace] = {}

    def __enter__(self) -> Self:
        self.run.open()
        try:
            self._router(self.internet)
        except BaseException:
            self.run.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            for gateway in self.gateways.values():
                text = gateway.log.read_text(errors="replace") if gateway.log.exists() else ""
                print(f"--- log of {gateway.name}", *text.splitlines()[-60:], sep="\n")
        self.run.close()

    def __getitem__(self, name: str) -> Gateway:
        return self.gateways[name]

    def _router(self, namespace: Namespace) -> None:
        namespace.create()
        namespace.forward()

    def public(self, number: int) -> IPv4Interface:
        """The underlay address of link `number`."""
        return IPv4Interface(f"198.51.100.{4 * number + 1}/30")

    def _link(self, namespace: Namespace, device: str, number: int) -> IPv4Interface:
        address = self.public(number)
        port = f"port{number}"
        namespace.cable(device, self.internet, port)
        namespace.ip("address", "add", str(address), "dev", device)
        self.internet.ip("address", "add", f"{address.ip + 1}/30", "dev", port)
        namespace.ip("route", "add", "default", "via", str(address.ip + 1))
        return address

    def add_nat(
        self, name: str, number: int, statement: str = "masquerade", *, forward: int | None = None
    ) -> IPv4Address:
        """A NAT box with one public address, silent to strangers. Gives that address.

        `statement` translates what leaves. `forward`: IKE and ESP in UDP from anywhere go to this gateway.
        """
        nat = Namespace(self.run, name)
        self._router(nat)
        address = self._link(nat, "outside", number)
        nat.ip("link", "add", "inside", "type", "bridge")
        nat.ip("address", "add", f"192.168.{number}.1/24", "dev", "inside")
        nat.ip("link", "set", "inside", "up")
        inward = "" if forward is None else f"udp dport {{ 500, 4500 }} dnat to 192.168.{number}.{forward}"
        nat.command(
            ["nft", "-f", "-"],
            stdin=f"""
table ip nat_box {{
  chain arriving {{
    type nat hook prerouting priority -100; policy accept;
    iifname "outside" {inward or "accept"}
  }}
  chain outgoing {{
    type nat hook postrouting priority 100; policy accept;
    oifname "outside" {statement}
  }}
  chain forwarded {{
    type filter hook forward priority 0; policy drop;
    iifname "inside" accept
    ct state established,related accept
    ct status dnat accept
  }}
  chain incoming {{
    type filter hook input priority 0; policy accept;
    iifname "outside" ct state != established,related drop
  }}
}}
""",
        )
        self.nats[name] = nat
        return address.ip

    def add(
        self, name: str, number: int, *, nat: str | None = None, nat_number: int = 0, lan_host: bool = True
    ) -> Gateway:
        """A gateway; LAN 172.16.N.0/24, tunnel address 10.0.0.N. Behind a NAT box its address is 192.168.M.N.

        Without `lan_host` the gateway has the host's address itself: one namespace for both.
        """
        namespace = Namespace(self.run, name)
        host = Namespace(self.run, f"{name}-lan") if lan_host else namespace
        self._router(namespace)
        if nat is None:
            wan = self._link(namespace, "eth0", number)
        else:
            wan = IPv4Interface(f"192.168.{nat_number}.{number}/24")
            port = f"inside{number}"
            namespace.cable("eth0", self.nats[nat], port)
            self.nats[nat].ip("link", "set", port, "master", "inside")
            namespace.ip("address", "add", str(wan), "dev", "eth0")
            namespace.ip("route", "add", "default", "via", f"192.168.{nat_number}.1")
        gateway = self.gateways[name] = Gateway(name, number, wan, namespace, host, self.run.directory)
        if not lan_host:
            namespace.ip("link", "add", "lan", "type", "bridge")
            namespace.ip("link", "set", "lan", "up")
            namespace.ip("address", "add", f"{gateway.lan_host}/24", "dev", "lan")
            return gateway
        host.create()
        namespace.cable("lan", host, "eth0")
        namespace.ip("address", "add", f"{gateway.lan[1]}/24", "dev", "lan")
        host.ip("address", "add", f"{gateway.lan_host}/24", "dev", "eth0")
        host.ip("route", "add", "default", "via", str(gateway.lan[1]))
        return gateway

    def start(self, name: str, **sections: str) -> Gateway:
        """Run `dsvpn up` with these lines in its sections (see `launch`), and wait until it answers."""
        self.launch(name, **sections)
        return self.wait_listening(name)

    def launch(
        self, name: str, *, nhrp: str = "", tunnel: str = "", profile: str = "", extra: str = "", gateway: str = ""
    ) -> None:
        """Run `dsvpn up` with these lines in its sections."""
        made = self.gateways[name]
        self._launch_file(
            name,
            f"""\
[gateway]
name = "{name}"
log_level = "debug"
{gateway}
[tunnel.dsvpn0]
address = ["{made.tunnel}/24"]
source = "eth0"
key = 42
{tunnel}
[tunnel.dsvpn0.nhrp]
holding_time = "60s"
{nhrp}
[ipsec.default]
{profile}
[ipsec.default.auth]
psk = "a key for tests only"
{extra}""",
        )

    def start_file(self, name: str, text: str) -> Gateway:
        """Run `dsvpn up` with a configuration, and wait until it answers; where its control socket is gets added."""
        self._launch_file(name, text)
        return self.wait_listening(name)

    def _launch_file(self, name: str, text: str) -> None:
        gateway = self.gateways[name]
        config = gateway.directory / f"{name}.toml"
        key = gateway.directory / "psk"
        key.touch(mode=0o600)
        key.write_text("a key for tests only\n")
        config.touch(mode=0o600)
        config.write_text(text.replace("[gateway]\n", f'[gateway]\ncontrol_socket = "{gateway.socket}"\n', 1))
        package = Path(dsvpn.__file__).parent.parent
        argv = ["env", f"PYTHONPATH={package}:{os.environ.get('PYTHONPATH', '')}"]
        argv += [sys.executable, "-P", "-m", "dsvpn", "up", str(config)]
        gateway.process = self.run.spawn(argv, gateway.log, namespace=gateway.namespace.name)

    def wait_listening(self, name: str, seconds: float = DEADLINE) -> Gateway:
        """Wait until a gateway that was launched answers."""
        gateway = self.gateways[name]

        def listens() -> bool:
            assert gateway.process is not None
            assert gateway.process.poll() is None, gateway.log.read_text()[-2000:]
            return answers(gateway.socket)

        wait_until(listens, seconds, f"the control socket of {name}")
        return gateway

    def stop(self, name: str) -> int:
        process = self.gateways[name].process
        assert process is not None
        return self.run.end(process)

    def wait_standing(self, spoke: str, hub: str, standing: str = "reliable") -> None:
        """Wait until a spoke holds an NHS to be of some standing."""
        wait_until(
            lambda: self[spoke].standing(self[hub].tunnel) == standing,
            DEADLINE,
            f"{spoke} to find {hub} {standing}",
            interval=0.1,
        )

    def ping(
        self, source: str, target: IPv4Address, count: int = 5, *, interval: float = 0.02, wait: float = 1
    ) -> Pings:
        """Ping from the LAN host of a gateway."""
        return ping(self[source].host, target, count, interval=interval, wait=wait)

    def wait_ping(self, source: str, target: IPv4Address, seconds: float = DEADLINE) -> None:
        """Wait until one ping is answered."""
        wait_until(lambda: self.ping(source, target, 1, wait=0.3).received, seconds, f"{source} to reach {target}")

    def background(self, source: str, *argv: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start something in the LAN of a gateway; its output goes to the file that is given with it."""
        output = self.run.directory / f"background{next(_numbers)}"
        return self.run.spawn(list(argv), output, namespace=self[source].host.name), output
