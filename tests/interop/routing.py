"""FRR's routing daemons (Debian's) in a network namespace, with directories of their own."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from dsvpn.lab.run import Run
from dsvpn.lab.topology import Namespace
from tests.interop.packages import FRR, tree

#: What `ip netns exec` lays over /etc: the daemons insist on their user and groups.
_ACCOUNTS = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nfrr:x:92:92::/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nfrr:x:92:\nfrrvty:x:93:frr\n",
}


class Router:
    """zebra and other daemons of one namespace. They end with the run; call `close` for what `ip netns` keeps."""

    def __init__(self, run: Run, namespace: Namespace) -> None:
        self._run = run
        self._namespace = namespace
        self._root = tree("frr", FRR)
        self.directory = run.directory / f"frr-{namespace.role}"
        self.directory.mkdir()
        # Daemons become the user frr: everything that they make is in here.
        run.directory.chmod(0o755)
        shutil.chown(self.directory, 92, 92)
        self._etc = Path("/etc/netns") / namespace.name
        self._etc.mkdir(parents=True)
        for name, text in _ACCOUNTS.items():
            (self._etc / name).write_text(text)

    def start(self, daemon: str, configuration: str) -> None:
        """Start a daemon with a configuration; its log is DAEMON.log."""
        file = self.directory / f"{daemon}.conf"
        file.write_text(configuration)
        shutil.chown(file, 92, 92)
        place = ["-i", self.directory / f"{daemon}.pid", "--vty_socket", self.directory, "-f", file]
        place += ["-z", self.directory / "zserv.api", "-A", "127.0.0.1", "--log", "stdout"]
        argv = [*self._environment(), str(self._root / "usr/lib/frr" / daemon), *map(str, place)]
        self._run.spawn(argv, self.directory / f"{daemon}.log", namespace=self._namespace.name)

    def show(self, daemon: str, question: str) -> str:
        """What the daemon answers to vtysh: questions end with a zero octet, answers with three and a status."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.settimeout(10)
            asked.connect(str(self.directory / f"{daemon}.vty"))
            answer = b""
            for line in ("enable", question):
                asked.sendall(line.encode() + b"\0")
                answer = b""
                while answer[-4:-1] != b"\0\0\0":
                    received = asked.recv(1 << 16)
                    assert received, f"{daemon} has hung up"
                    answer += received
        return answer[:-4].decode()

    def close(self) -> None:
        """Remove what lies outside of the run's directory."""
        shutil.rmtree(self._etc)

    def _environment(self) -> list[str]:
        libraries = self._root / "usr/lib/x86_64-linux-gnu"
        return ["env", f"LD_LIBRARY_PATH={libraries}:{libraries / 'frr'}"]
