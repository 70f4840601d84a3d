"""Who answers the handshakes: a dsvpn gateway, charon of the installed strongSwan, charon of Debian 13."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

import dsvpn
from bench.control.bed import ESP_SUITE, IDENTITIES, PRIORITY, RESPONDER, SUITES, ControlBed, processors
from bench.control.debian import unpacked
from bench.environment import ROOT, python
from dsvpn.errors import HostError
from dsvpn.io.control import answers
from dsvpn.lab.run import command, wait_until
from dsvpn.pki import Algorithm, Authority

_PSK = "a key for the bench only"
_SHIM = ROOT / "bench" / "control" / "no_xfrm.c"


class Secrets:
    """Keys and certificates of all, and the initiators' configuration files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.psk = directory / "psk"
        self.psk.touch(mode=0o600)
        self.psk.write_text(f"{_PSK}\n")
        self.authority = Authority.create(directory / "pki", "bench", Algorithm.ECDSA_P256, 60, time.time())
        self.names = [f"spoke{number}.bench.example" for number in range(IDENTITIES)]
        for name in ("hub.bench.example", *self.names):
            self.authority.issue(name, [name], Algorithm.ECDSA_P256, 30, time.time())

    def auth(self, name: str, case: str) -> str:
        """The lines of [ipsec.default.auth] for a gateway."""
        if case.startswith("PSK"):
            return f'psk = {{ file = "{self.psk}" }}\nlocal_identity = "{name}"'
        directory = self.authority.directory
        return (
            f'certificate = "{directory / name}.crt"\nprivate_key = "{directory / name}.key"\n'
            f'ca = "{self.authority.certificate_file}"\nlocal_identity = "{name}"'
        )

    def gateways(self, case: str) -> list[Path]:
        """Configuration files of all initiators of a case."""
        directory = self.directory / case.replace(", ", "-")
        directory.mkdir(exist_ok=True)
        files = []
        for name in self.names:
            file = directory / f"{name}.toml"
            file.write_text(gateway_configuration(name, SUITES[case], self.auth(name, case), dpd="0s"))
            files.append(file)
        return files


def gateway_configuration(name: str, suite: str, auth: str, *, socket: Path | None = None, dpd: str = "20s") -> str:
    """A gateway of the bench as TOML."""
    control = "" if socket is None else f'control_socket = "{socket}"\n'
    return f"""\
[gateway]
name = "{name}"
log_level = "warning"
{control}
[tunnel.dsvpn0]
address = ["10.99.0.1/16"]
source = "eth0"

[ipsec.default]
ike = ["{suite}"]
esp = ["{ESP_SUITE}"]
dpd = "{dpd}"

[ipsec.default.auth]
{auth}
"""


class Responder(ABC):
    """One contestant. `memory` and `processor_seconds` are of its process."""

    name: str
    title: str

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._bed: ControlBed | None = None
        self._pid = 0

    @abstractmethod
    def install(self) -> None:
        """Make it available. HostError says why it is not."""

    @abstractmethod
    def version(self) -> str:
        """Version of the program that runs."""

    @abstractmethod
    def start(self, bed: ControlBed, secrets: Secrets, case: str) -> None:
        """Begin to answer in the responder's namespace of `bed`."""

    def knows(self, case: str) -> bool:
        """Whether it has the algorithms of a case."""
        return bool(case)

    def stop(self) -> None:
        """End its process."""
        if self._process is not None and self._bed is not None:
            self._bed.run.end(self._process)
            self._process = None

    def _spawn(self, bed: ControlBed, argv: list[str]) -> Path:
        """Start it, held to one processor; gives its log."""
        self._bed = bed
        log = bed.directory / f"{self.name}.log"
        # `taskset` and `env` become the program that they start: the process id is the responder's.
        self._process = bed.run.spawn(
            [*PRIORITY, "taskset", "-c", str(processors()[0]), *argv], log, namespace=bed.responder.name
        )
        self._pid = self._process.pid
        return log

    def _running(self, log: Path) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            said = log.read_text(errors="replace").strip()[-400:]
            raise HostError(f"{self.name} ended with status {self._process.returncode}: {said or 'it said nothing'}")
        return True

    def processor_seconds(self) -> float:
        """What all its threads have used so far."""
        total = 0
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def memory(self) -> int:
        """Octets of memory that are its own (RssAnon)."""
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024


class Dsvpn(Responder):
    """`dsvpn up` as a hub that takes anybody who proves himself. `first`: where its compiled modules are."""

    name = "dsvpn"
    title = "dsvpn up, native workers, compiled codecs"

    def __init__(self, *first: Path) -> None:
        super().__init__()
        self._first = first
        self.dpd = "20s"

    def install(self) -> None:
        """It is the product."""

    def version(self) -> str:
        """Of the package."""
        return dsvpn.__version__

    def program(self) -> list[str]:
        """What Python runs."""
        return ["-m", "dsvpn"]

    def start(self, bed: ControlBed, secrets: Secrets, case: str) -> None:
        """The gateway alone: nobody registers by NHRP."""
        self.socket = bed.directory / "hub.sock"
        file = bed.directory / "hub.toml"
        auth = secrets.auth("hub.bench.example", case)
        file.write_text(
            gateway_configuration("hub.bench.example", SUITES[case], auth, socket=self.socket, dpd=self.dpd)
        )
        log = self._spawn(bed, [*python(*self._first), *self.program(), "up", str(file)])
        wait_until(lambda: self._running(log) and answers(self.socket), 20, "the gateway's control socket")


class Charon(Responder):
    """strongSwan's daemon. `root` None: the installed one; else the root of another Debian."""

    def __init__(self, release: str | None = None) -> None:
        super().__init__()
        self._release = release
        self._root = Path("/")
        self.name = "charon" if release is None else f"charon-{release}"
        self.title = "strongSwan of this Debian" if release is None else f"strongSwan of Debian {release}"
        self._library = Path()

    def install(self) -> None:
        """Debian's package, or a download of another release's; and the stand-in for the kernel's IPsec."""
        if self._release is not None:
            self._root = unpacked(self._release)
        if not (self._root / "usr/sbin/charon-systemd").exists() or not (self._root / "usr/sbin/swanctl").exists():
            raise HostError("strongSwan is not installed: apt-get install charon-systemd strongswan-swanctl")
        self._library = ROOT / "build" / "bench" / "no_xfrm.so"
        self._library.parent.mkdir(parents=True, exist_ok=True)
        command(["cc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(_SHIM), "-ldl"])

    def version(self) -> str:
        """As its package says."""
        if self._release is None:
            return command(["dpkg-query", "-W", "-f", "${Version}", "charon-systemd"]).strip()
        return (self._root / ".version").read_text().strip()

    def knows(self, case: str) -> bool:
        """ML-KEM came with strongSwan 6."""
        return "ML-KEM" not in case or self.version() >= "6"

    def start(self, bed: ControlBed, secrets: Secrets, case: str) -> None:
        """The daemon with the plugins that it needs, then the configuration by vici."""
        # The daemon sees a root of its own: what it reads and writes goes below it.
        inside = bed.directory / "charon"
        for name in ("x509", "x509ca", "private"):
            (inside / name).mkdir(parents=True)
        shutil.copy(secrets.authority.directory / "hub.bench.example.crt", inside / "x509")
        shutil.copy(secrets.authority.directory / "hub.bench.example.key", inside / "private")
        shutil.copy(secrets.authority.certificate_file, inside / "x509ca")
        settings = inside / "strongswan.conf"
        settings.write_text(
            f"""\
charon-systemd {{
  load = random nonce openssl kdf pem pkcs1 pkcs8 x509 pubkey constraints revocation kernel-netlink socket-default vici
  dos_protection = no
  # Hash tables, as strongSwan's documentation advises for many IKE SAs: the default is a list.
  ikesa_table_size = 16384
  ikesa_table_segments = 16
  install_routes = no
  install_virtual_ip = no
  plugins {{
    kernel-netlink {{
      port_bypass = no
    }}
    vici {{
      socket = unix://{inside}/vici
    }}
  }}
  filelog {{
    stderr {{
      default = -1
    }}
  }}
  syslog {{
    daemon {{
      default = -1
    }}
  }}
}}
swanctl {{
  load = random openssl pem pkcs1 pkcs8 x509 pubkey
}}
"""
        )
        auth = "psk" if case.startswith("PSK") else "pubkey"
        configuration = inside / "swanctl.conf"
        certificate = "" if auth == "psk" else "certs = hub.bench.example.crt"
        configuration.write_text(
            f"""\
connections {{
  bench {{
    version = 2
    local_addrs = {RESPONDER}
    proposals = {SUITES[case]}
    unique = never
    mobike = no
    dpd_delay = 0
    local {{
      auth = {auth}
      id = hub.bench.example
      {certificate}
    }}
    remote {{
      auth = {auth}
      id = %any
    }}
    children {{
      gre {{
        mode = transport
        local_ts = dynamic[47]
        remote_ts = dynamic[47]
        esp_proposals = {ESP_SUITE}
      }}
    }}
  }}
}}
secrets {{
  ike-bench {{
    secret = "{_PSK}"
  }}
}}
"""
        )
        log = self._spawn(bed, self._command(inside, "/usr/sbin/charon-systemd", preload=True))
        wait_until(lambda: self._running(log) and (inside / "vici").exists(), 10, "charon's control socket")
        load = self._command(inside, "/usr/sbin/swanctl", "--load-all", "--file", str(configuration),
                             "--uri", f"unix://{inside}/vici")  # fmt: skip
        bed.responder.command(load, timeout=30)

    def _command(self, inside: Path, *argv: str, preload: bool = False) -> list[str]:
        """A command with the settings of `inside`, in the root of its Debian."""
        library = inside / self._library.name
        if not library.exists():
            shutil.copy(self._library, library)
        environment = ["env", f"STRONGSWAN_CONF={inside}/strongswan.conf", f"SWANCTL_DIR={inside}"]
        if preload:
            environment.append(f"LD_PRELOAD={library}")
        if self._release is None:
            return [*environment, *argv]
        # In mounts of its own, which end with it.
        root = self._root
        steps = [
            f"mkdir -p {root}/dev {root}/proc {root}/run {root}{inside}",
            f"mount --rbind /dev {root}/dev",
            f"mount --bind /proc {root}/proc",
            f"mount --bind {inside} {root}{inside}",
            f"exec chroot {root} {shlex.join([*environment, *argv])}",
        ]
        return ["unshare", "--mount", "sh", "-e", "-c", "; ".join(steps)]
