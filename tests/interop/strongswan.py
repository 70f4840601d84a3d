"""strongSwan with the Linux kernel's own ESP and GRE, in a User-Mode Linux guest."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from dsvpn.lab.run import Run
from tests.interop.packages import STRONGSWAN, tree
from tests.interop.uml import Guest
from tests.interop.underlay import GUEST, GUEST_GATEWAY, TAP

#: GRE key of the tunnel between both ends, and the guest's address in it.
KEY = 42
INNER_OURS = IPv4Address("10.0.0.1")
INNER_THEIRS = IPv4Address("10.0.0.2")

_PLUGINS = (
    "random nonce openssl curve25519 pem pkcs1 pkcs8 x509 pubkey revocation constraints "
    "hmac kdf sha1 sha2 aes gcm gmp mgf1 chapoly ml"
)
#: strongswan.conf; `plugins`, `kernel` and `extra` lines of charon are filled in.
_SETTINGS = """
charon {
  load = %(plugins)s %(kernel)s socket-default vici updown
  install_routes = no
  routing_table = 0
  retransmit_timeout = 1
  retransmit_base = 1.5
  retransmit_tries = 4
  keep_alive = 10s
  delete_rekeyed_delay = 2
  %(extra)s
  plugins { vici { socket = unix:///run/charon.vici } }
  filelog { log { path = /ctl/charon.log
    default = 1
    ike = 2
    cfg = 2
    flush_line = yes } }
}
swanctl { socket = unix:///run/charon.vici
  load = pem pkcs1 pkcs8 x509 pubkey openssl random }
"""


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection of swanctl.conf with one child, "gre"."""

    ike: str = "aes256gcm16-prfsha384-x25519"
    esp: str = "aes128gcm16"
    psk: str | None = "a key for the lab only"
    identity: str = "strongswan"
    remote_identity: str = "ours"
    #: More lines of the connection, its local and remote sections, its child, and of secrets.
    options: Mapping[str, str] = field(default_factory=dict)
    local: Mapping[str, str] = field(default_factory=dict)
    remote: Mapping[str, str] = field(default_factory=dict)
    child: Mapping[str, str] = field(default_factory=dict)
    secrets: str = ""
    mode: str = "transport"

    def but(self, **changes: Any) -> Connection:
        """The same with some values changed."""
        return replace(self, **changes)

    def text(self, remote: IPv4Address, name: str = "ours") -> str:
        """swanctl.conf. Several may stand one behind the other."""
        auth = "psk" if self.psk is not None else "pubkey"
        local = {"auth": auth, "id": self.identity} | dict(self.local)
        theirs = {"auth": auth, "id": self.remote_identity} | dict(self.remote)
        options = {
            "version": "2",
            "local_addrs": str(GUEST.ip),
            "remote_addrs": str(remote),
            "proposals": self.ike,
            "mobike": "no",
            "dpd_delay": "0s",
        } | dict(self.options)
        child = {
            "mode": self.mode,
            "local_ts": "dynamic[gre]",
            "remote_ts": "dynamic[gre]",
            "esp_proposals": self.esp,
        } | dict(self.child)
        psk = "" if self.psk is None else f'  ike-ours {{ secret = "{self.psk}" }}\n'
        sections = f"  local {{\n{_lines(local)}  }}\n  remote {{\n{_lines(theirs)}  }}\n"
        children = f"  children {{ gre {{\n{_lines(child)}  }} }}\n"
        connections = f"connections {{\n  {name} {{\n{_lines(options)}{sections}{children}  }}\n}}\n"
        return f"{connections}secrets {{\n{psk}{self.secrets}}}\n"


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"    {key} = {value}\n" for key, value in values.items())


def settings(extra: str = "", kernel: str = "kernel-netlink") -> str:
    """strongswan.conf, with more lines for charon."""
    return _SETTINGS % {"plugins": _PLUGINS, "kernel": kernel, "extra": extra}


class StrongSwan:
    """charon of a Debian release in a guest. `start` boots; `configure` is for each connection anew."""

    def __init__(self, run: Run, release: str) -> None:
        self.release = release
        packages = tree(f"strongswan-{release}", STRONGSWAN[release], release)
        self.guest = Guest(run, release, packages, "strongswan")
        self.swanctl = self.guest.control / "swanctl"
        for name in ("x509", "x509ca", "x509crl", "private"):
            (self.swanctl / name).mkdir(parents=True)
        (self.swanctl / "swanctl.conf").write_text("")
        self._log_start = 0
        self._gre_remote: IPv4Address | None = None
        self.version = "?"

    def start(self, namespace: str) -> None:
        """Boot the guest with its card in a namespace, and start charon."""
        (self.guest.control / "strongswan.conf").write_text(settings())
        environment = {"name": "strongswan", "wan": str(GUEST), "gateway": str(GUEST_GATEWAY)}
        self.guest.start(TAP, namespace, environment)
        self.start_charon()
        found = re.search(r"strongSwan swanctl (\S+)", self.guest.run("swanctl --version"))
        self.version = found[1] if found else "?"

    def start_charon(self, extra: str = "", *, kernel: str = "kernel-netlink") -> None:
        """Start charon, with more lines in its settings. Connections have to be configured afterwards."""
        (self.guest.control / "strongswan.conf").write_text(settings(extra, kernel))
        self.guest.run("bash /boot.d/charon.sh", check=True)

    def stop_charon(self, signal: str = "TERM") -> None:
        """End charon, politely or (KILL) as a crash would."""
        self.guest.run(f"bash /boot.d/stop_charon.sh {signal}", 60.0, check=True)

    def restart(self, extra: str = "", *, kernel: str = "kernel-netlink") -> None:
        """End charon and start it again, with more lines in its settings."""
        self.stop_charon()
        self.start_charon(extra, kernel=kernel)

    def configure(
        self,
        connection: Connection,
        remote: IPv4Address,
        files: Mapping[str, Path] | None = None,
        further: Mapping[str, Connection] | None = None,
    ) -> None:
        """Forget all SAs, connections and secrets and load these; make the GRE device to the remote end.

        `files` are copied into swanctl's directories: "x509/their.crt", for example. `further` connections have names.
        """
        for directory in ("x509", "x509ca", "x509crl", "private"):
            for old in (self.swanctl / directory).iterdir():
                old.unlink()
        for name, source in (files or {}).items():
            shutil.copy(source, self.swanctl / name)
        texts = [one.text(remote, name) for name, one in {"ours": connection, **(further or {})}.items()]
        (self.swanctl / "swanctl.conf").write_text("".join(texts))
        # Processes are slow in a guest: none that is not needed. A test that failed may have left no charon.
        script = "pidof charon >/dev/null || bash /boot.d/charon.sh || exit 1\n"
        script += '[ -z "$(ip xfrm state)" ] || swanctl --terminate --ike ours --force >/dev/null 2>&1\n'
        if remote != self._gre_remote:
            script += (
                "ip link delete gre1 2>/dev/null\nip -batch - <<END || exit 1\n"
                f"tunnel add gre1 mode gre key {KEY} local {GUEST.ip} remote {remote} ttl 64\n"
                f"address add {INNER_THEIRS} peer {INNER_OURS} dev gre1\nlink set gre1 mtu 1400 up\nEND\n"
            )
        self.guest.run(f"{script}swanctl --load-all --clear", check=True)
        self._gre_remote = remote
        self._log_start = self.log_size()

    def forget_gre(self) -> None:
        """The GRE device is not as `configure` left it."""
        self._gre_remote = None

    def swanctl_run(self, command: str, timeout: float = 30.0, *, check: bool = True) -> str:
        """Run `swanctl COMMAND`."""
        return self.guest.run(f"swanctl {command}", timeout, check=check)

    def initiate(self) -> None:
        """Bring the connection up from the guest. Fails with what charon said."""
        self.swanctl_run("--initiate --child gre --timeout 15")

    def sas(self) -> str:
        """What charon lists of its SAs, in its raw form."""
        return self.swanctl_run("--list-sas --raw")

    def log_size(self) -> int:
        """Octets in charon's log."""
        log = self.guest.control / "charon.log"
        return log.stat().st_size if log.exists() else 0

    def log(self) -> str:
        """charon's log since `configure`."""
        log = self.guest.control / "charon.log"
        return log.read_bytes()[self._log_start :].decode(errors="replace") if log.exists() else ""
