"""The gateways of the lab: their configuration files and their processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dsvpn
from dsvpn.errors import HostError
from dsvpn.io.control import answers, ask
from dsvpn.lab.run import Run, command, wait_until
from dsvpn.lab.topology import HUB, SITES, SUMMARY, TUNNEL_PREFIX, Namespace, Site

#: Device of the tunnel in every gateway of the lab.
TUNNEL = "dsvpn0"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the lab and its tests vary. Everything else is the product's default."""

    psk: str = "a key for the lab only"
    ipsec: bool = True
    encapsulation: str = "auto"
    key: int | None = 42
    authentication: str | None = "s3cret"
    holding_time: str = "600s"
    #: Lines of [ipsec.default.auth] instead of the pre-shared key.
    auth: Mapping[str, str] = field(default_factory=dict)
    #: More lines of [ipsec.default], [tunnel.dsvpn0], [tunnel.dsvpn0.nhrp] and [gateway].
    profile: Mapping[str, str] = field(default_factory=dict)
    tunnel: Mapping[str, str] = field(default_factory=dict)
    nhrp: Mapping[str, str] = field(default_factory=dict)
    gateway: Mapping[str, str] = field(default_factory=dict)
    #: Text behind everything else: more tunnels, for example.
    extra: str = ""

    def but(self, **changes: Any) -> Settings:
        """The same with some values changed."""
        return replace(self, **changes)


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{key} = {value}\n" for key, value in values.items())


def configuration(site: Site, directory: Path, settings: Settings) -> str:
    """The configuration file of a site, TOML. `values` of Settings are written as they are."""
    tunnel = dict(settings.tunnel)
    nhrp: dict[str, str] = {"holding_time": f'"{settings.holding_time}"'}
    if settings.authentication is not None:
        nhrp["authentication"] = f'"{settings.authentication}"'
    if site is HUB:
        nhrp |= {"redirect": "true", "multicast": '"dynamic"'}
        routes = [(other.lan, other.tunnel) for other in SITES if other is not HUB]
    else:
        nhrp |= {"shortcut": "true", "nhs": f'[{{ protocol = "{HUB.tunnel}", nbma = "{HUB.public}" }}]'}
        routes = [(SUMMARY, HUB.tunnel)]
    listed = ", ".join(f'{{ prefix = "{prefix}", via = "{via}" }}' for prefix, via in routes)
    tunnel.setdefault("routes", f"[{listed}]")
    key = "" if settings.key is None else f"key = {settings.key}\n"
    text = f"""\
[gateway]
name = "{site.name}"
control_socket = "{directory / f"{site.name}.sock"}"
state_directory = "{directory / f"{site.name}.state"}"
{_lines(settings.gateway)}
[tunnel.{TUNNEL}]
address = ["{site.tunnel}/{TUNNEL_PREFIX.prefixlen}"]
source = "eth0"
ipsec = "{"default" if settings.ipsec else "none"}"
{key}{_lines(tunnel)}
[tunnel.{TUNNEL}.nhrp]
{_lines(nhrp | dict(settings.nhrp))}"""
    if settings.ipsec:
        text += f"""
[ipsec.default]
encapsulation = "{settings.encapsulation}"
{_lines(settings.profile)}
[ipsec.default.auth]
{_lines(settings.auth or {"psk": f'{{ file = "{site.name}.psk" }}'})}"""
    return text + settings.extra


class GatewayProcess:
    """One `dsvpn up CONFIG` in the namespace of its site."""

    def __init__(self, run: Run, site: Site, namespace: Namespace, settings: Settings) -> None:
        self.site = site
        self.namespace = namespace
        self.settings = settings
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None
        self.config = run.directory / f"{site.name}.toml"
        self.socket = run.directory / f"{site.name}.sock"
        self.log = run.directory / f"{site.name}.log"

    def start(self, wait: float = 30.0) -> None:
        """Write the configuration, start the process and wait until its control socket answers."""
        self.config.write_text(configuration(self.site, self._run.directory, self.settings))
        key_file = self._run.directory / f"{self.site.name}.psk"
        key_file.touch(mode=0o600)
        key_file.write_text(self.settings.psk + "\n")
        process = self._run.spawn(self._dsvpn("up", str(self.config)), self.log, namespace=self.namespace.name)
        self._process = process

        def listens() -> bool:
            if process.poll() is not None:
                raise HostError(f"the gateway {self.site.name} ended ({process.returncode}): {self.last_words()}")
            return answers(self.socket)

        wait_until(listens, wait, f"the control socket of {self.site.name}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        if self._process is None:
            raise HostError(f"the gateway {self.site.name} was not started")
        return self._process

    @staticmethod
    def _dsvpn(*arguments: str) -> list[str]:
        # The very package that runs here, wherever the working directory is: installed, or a checkout under test.
        package = Path(dsvpn.__file__).parent.parent
        paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
        return ["env", f"PYTHONPATH={paths}", sys.executable, "-P", "-m", "dsvpn", *arguments]

    def show(self, section: str) -> Any:
        """A section of its status as values. HostError when the gateway does not answer."""
        return ask(self.socket, {"show": section})

    def show_command(self, section: str, *options: str) -> str:
        """What `dsvpn show SECTION` prints. HostError when it fails."""
        return command(self._dsvpn("show", section, "--socket", str(self.socket), *options))

    def stop(self) -> int:
        """End it as an operator would (SIGTERM) and give its exit status."""
        return self._run.end(self.process)

    def kill(self) -> None:
        """End it as a crash would: it cannot say goodbye."""
        self.process.kill()
        self.process.wait()

    def leftovers(self) -> list[str]:
        """What a gateway that has ended should have taken along and did not."""
        left = []
        links = json.loads(self.namespace.ip("-j", "link", "show"))
        left += [f"device {link['ifname']}" for link in links if link["ifname"].startswith("dsvpn")]
        routes = json.loads(self.namespace.ip("-j", "route", "show", "table", "all"))
        left += [f"route {route['dst']}" for route in routes if str(route.get("dev", "")).startswith("dsvpn")]
        if self.socket.exists():
            left.append(f"socket {self.socket}")
        bound = self.namespace.command(["ss", "-Hlnuw"])
        return left + [f"bound socket {line.split()[3]}" for line in bound.splitlines()]

    def last_lines(self, number: int) -> list[str]:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text.strip().splitlines()[-number:]

    def last_words(self) -> str:
        """The last line of its log."""
        return next(iter(self.last_lines(1)), "it said nothing")
