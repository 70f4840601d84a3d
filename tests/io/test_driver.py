"""`dsvpn up` as a process in a namespace of its own, with nobody at the other end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsvpn.errors import HostError
from dsvpn.io.control import ask
from tests.cli.command import command, dsvpn, environment
from tests.io.namespace import ip, new_namespace

pytestmark = pytest.mark.netns

_DEADLINE = 15.0
#: For seconds of work on a machine that has others to do.
_LONG = 90.0
SECTIONS = ("summary", "nhrp", "peers", "sa", "routes", "counters")

CONFIGURATION = """\
[gateway]
name = "spoke1"
control_socket = "{directory}/spoke1.sock"
state_directory = "{directory}/spoke1.state"
driver = "{driver}"
log_format = "json"
key_log = "{directory}/keys"

[tunnel.dsvpn0]
address = ["10.0.0.11/24", "fd00::11/64"]
source = "eth0"
key = 42
routes = [{{ prefix = "172.16.0.0/12", via = "10.0.0.1" }}]

[tunnel.dsvpn0.nhrp]
shortcut = true
nhs = [{{ protocol = "10.0.0.1", nbma = "192.0.2.1" }}]

[tunnel.plain0]
address = "10.9.0.11/24"
source = "192.0.2.11"
key = 43
ipsec = "none"
nhrp.nhs = [{{ protocol = "10.9.0.1", nbma = "192.0.2.1" }}]

[ipsec.default.auth]
psk = "a secret of some length"
"""


@dataclass
class Running:
    """A gateway process."""

    process: subprocess.Popen[str]
    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "spoke1.sock"

    def show(self, section: str) -> Any:
        return ask(self.socket, {"show": section})

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "log").read_text().splitlines()]

    def wait(self, done: Callable[[], bool], what: str, seconds: float = _DEADLINE) -> None:
        """Wait until `done`, with a deadline."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if done():
                    return
            except HostError:
                pass
            log = (self.directory / "log").read_text()
            assert self.process.poll() is None, f"the gateway ended: {log}"
            assert time.monotonic() < deadline, f"no {what}: {log}"
            time.sleep(0.02)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(_DEADLINE)


@contextmanager
def running(
    directory: Path, driver: str, extra: Mapping[str, str] | None = None, *, threads: int | None = None
) -> Iterator[Running]:
    """A gateway that is up, in a namespace with an underlay `eth0` (192.0.2.11/24) that nobody answers on.

    `extra`: environment of its process. `threads`: of its workers, None for what serves the machine.
    """
    with new_namespace():
        ip("link add eth0 type veth peer name far")
        ip("link set far up")
        ip("link set eth0 up")
        ip("addr add 192.0.2.11/24 dev eth0")
        file = directory / "spoke1.toml"
        text = CONFIGURATION.format(directory=directory, driver=driver)
        if threads is not None:
            text = text.replace("driver = ", f"worker_threads = {threads}\ndriver = ", 1)
        file.write_text(text)
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(
                command("up", file), env={**environment(), **(extra or {})}, stderr=log, text=True
            )
        gateway = Running(process, directory)
        try:
            gateway.wait(lambda: bool(gateway.show("summary")), "answer on the control socket")
            yield gateway
        finally:
            process.kill()
            process.wait()


@pytest.fixture(params=["workers", "uvloop"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, request.param) as made:
        yield made


def routed(gateway: Running, prefix: str) -> str | None:
    """The next hop that the gateway's FIB has for a prefix, "absent" if it has none."""
    for route in gateway.show("routes"):
        if route["prefix"] == prefix:
            hop: str | None = route["next_hop"]
            return hop
    return "absent"


def test_it_makes_its_devices_and_mirrors_their_routes(gateway: Running) -> None:
    summary = gateway.show("summary")
    assert summary["gateway"] == "spoke1"
    assert summary["pid"] == gateway.process.pid
    assert summary["tunnels"]["dsvpn0"]["source"] == "192.0.2.11"
    assert summary["driver"] in (gateway.directory / "spoke1.toml").read_text()
    shown = ip("addr show dsvpn0")
    assert "10.0.0.11/24" in shown
    assert "fd00::11/64" in shown
    assert "10.9.0.11/24" in ip("addr show plain0")
    assert "172.16.0.0/12 via 10.0.0.1 dev dsvpn0" in ip("route show")

    assert routed(gateway, "172.16.0.0/12") == "10.0.0.1"
    assert routed(gateway, "10.0.0.0/24") is None
    ip("route add 198.51.100.0/24 via 10.0.0.1 dev dsvpn0")
    gateway.wait(lambda: routed(gateway, "198.51.100.0/24") == "10.0.0.1", "mirrored route")
    ip("route del 198.51.100.0/24")
    gateway.wait(lambda: routed(gateway, "198.51.100.0/24") == "absent", "end of the mirrored route")


def test_several_workers_per_direction_are_shown(tmp_path: Path) -> None:
    with running(tmp_path, "workers", threads=4) as gateway:
        summary = gateway.show("summary")
        assert summary["worker_threads"] == 4
        assert summary["offloads"]["queues of dsvpn0"] == summary["offloads"]["queues of plain0"] == "2"
        assert list(summary["worker_packets"]) == ["decap0", "decap1", "encap0", "encap1"]
        before = sum(count for name, count in summary["worker_packets"].items() if name.startswith("encap"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in range(9000, 9020):
                sender.sendto(b"into the tunnel", ("10.0.0.77", port))

        def is_counted() -> bool:
            packets = gateway.show("summary")["worker_packets"]
            taken = [packets["encap0"], packets["encap1"]]
            return min(taken) > 0 and sum(taken) >= before + 20

        gateway.wait(is_counted, "both workers to take packets in")
        shown = dsvpn("show", "summary", "--socket", gateway.socket).stdout
        assert "4 threads" in shown
        assert "encap1" in shown
        gateway.process.terminate()
        assert gateway.process.wait(10) == 0


def test_the_event_loop_drains_one_queue(tmp_path: Path) -> None:
    with running(tmp_path, "uvloop", threads=4) as gateway:
        summary = gateway.show("summary")
        assert (summary["worker_threads"], summary["worker_packets"]) == (0, {})
        assert "queues of dsvpn0" not in summary["offloads"]


def test_show_prints_every_section_as_tables_and_as_json(gateway: Running) -> None:
    for section in SECTIONS:
        table = dsvpn("show", section, "--socket", gateway.socket)
        assert table.returncode == 0, table.stderr
        assert table.stdout.strip()
        as_json = dsvpn("show", section, "--json", "--socket", gateway.socket)
        printed, asked = json.loads(as_json.stdout), gateway.show(section)
        assert list(printed) == list(asked) if section != "sa" else isinstance(printed, list)
    counters = gateway.show("counters")
    assert {"dataplane", "kernel", "control", "nhrp"} <= counters.keys()
    assert counters["kernel"].keys() == {"drop_socket_queue", "drop_tun_queue", "drop_tun_backlog"}
    assert counters["control"]["control_commands_failed"] == 0


def test_a_second_gateway_of_the_name_is_refused(gateway: Running) -> None:
    done = dsvpn("up", gateway.directory / "spoke1.toml")
    assert done.returncode == 71
    assert "another gateway answers there" in done.stderr
    assert gateway.show("summary")


def test_it_follows_its_source_address_and_mtu(gateway: Running) -> None:
    def tunnel() -> Any:
        return gateway.show("summary")["tunnels"]["dsvpn0"]

    ip("addr add 192.0.2.99/25 dev eth0")
    ip("addr del 192.0.2.11/24 dev eth0")
    gateway.wait(lambda: tunnel()["source"] == "192.0.2.99", "new source")

    def mtu() -> int:
        (link,) = json.loads(ip("-j link show dsvpn0"))
        return int(link["mtu"])

    before = mtu()
    ip("link set eth0 mtu 1400")
    gateway.wait(lambda: mtu() <= before - 100, "new MTU")
    ip("addr del 192.0.2.99/25 dev eth0")
    gateway.wait(lambda: tunnel()["source"] is None, "loss of the source")


def test_it_answers_while_it_looks_at_many_routes_anew(tmp_path: Path) -> None:
    with running(tmp_path, "workers") as gateway:

        def control() -> dict[str, int]:
            counters: dict[str, int] = gateway.show("counters")["control"]
            return counters

        commands = (
            f"route add 10.{64 + (i >> 12)}.{i >> 4 & 255}.{(i & 15) << 4}/28 dev dsvpn0" for i in range(30_000)
        )
        # What the making of the tunnels has it look at comes first, and is soon done.
        ip("route add 198.51.100.0/24 via 10.0.0.1 dev dsvpn0")
        gateway.wait(lambda: routed(gateway, "198.51.100.0/24") == "10.0.0.1", "mirrored route")
        gateway.wait(lambda: control()["netlink_resyncs"] == control()["netlink_resyncs"], "rest")
        before = control()
        # Asleep, it cannot keep up.
        gateway.process.send_signal(signal.SIGSTOP)
        subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)
        gateway.process.send_signal(signal.SIGCONT)
        gateway.wait(lambda: control()["netlink_overruns"] > before["netlink_overruns"], "overrun", _LONG)
        answers: list[int] = []

        def looked_at() -> bool:
            answers.append(control()["netlink_resyncs"])
            return answers[-1] > before["netlink_resyncs"]

        gateway.wait(looked_at, "end of looking at the routes", _LONG)
        gateway.wait(lambda: len(gateway.show("routes")) > 30_000, "all routes", _LONG)
        assert len(answers) > 5, "no answer came before all routes had been read"


def test_strangers_cannot_stop_it_or_fill_its_log(gateway: Running) -> None:
    dice = random.Random(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(1500):
            port = dice.choice((500, 4500))
            stranger.sendto(dice.randbytes(dice.randrange(1400)), ("127.0.0.1", port))
            # The shape of an IKE_SA_INIT request with nonsense behind its header.
            head = dice.randbytes(8) + bytes(8) + b"\x21\x20\x22\x08" + bytes(4) + (100).to_bytes(4, "big")
            stranger.sendto(head + dice.randbytes(72), ("127.0.0.1", 500))
    assert gateway.show("peers")["peers"] is not None
    ip("route add 198.51.100.0/24 via 10.0.0.1 dev dsvpn0")
    gateway.wait(lambda: routed(gateway, "198.51.100.0/24") == "10.0.0.1", "mirrored route")
    log = gateway.log()
    assert [line for line in log if line.get("name") == "defect"] == []
    assert len(log) < 300


def test_reload_takes_what_it_can_and_names_the_keys_that_need_a_restart(gateway: Running) -> None:
    file = gateway.directory / "spoke1.toml"
    good = file.read_text()

    def reload() -> subprocess.CompletedProcess[str]:
        return dsvpn("reload", "--socket", gateway.socket)

    unchanged = reload()
    assert (unchanged.returncode, unchanged.stderr) == (0, "")
    assert unchanged.stdout == "keys, certificates and revocation lists were read anew\n"

    changed = good.replace('log_format = "json"', 'log_format = "json"\nlog_level = "error"')
    changed = changed.replace("key = 42", "key = 44\nmtu = 1300") + '\n[ipsec.default]\ndpd = "5s"\n'
    file.write_text(changed)
    done = reload()
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == ["changed and taken: gateway.log_level, ipsec.default.dpd"]
    waiting = "changed, but not before a restart: tunnel.dsvpn0.key, tunnel.dsvpn0.mtu"
    assert done.stderr == f"warning: {waiting}\n"
    assert gateway.show("summary")["tunnels"]["dsvpn0"]["key"] == 42
    lines = len(gateway.log())

    # The level is that of errors, so the log keeps quiet about it; and what waits goes on waiting.
    assert reload().stderr == f"warning: {waiting}\n"
    assert len(gateway.log()) == lines
    file.write_text(good)
    gateway.process.send_signal(signal.SIGHUP)
    gateway.wait(lambda: "gateway.log_level" in str(gateway.log()[-1]), "reload by signal")

    file.write_text(changed.replace("[gateway]", "[gateway"))
    broken = reload()
    assert broken.returncode != 0
    assert "the file is not TOML" in broken.stderr
    assert gateway.show("summary")


def test_the_key_log_is_warned_about(gateway: Running) -> None:
    (warning,) = [line for line in gateway.log() if line.get("name") == "key_log_on"]
    assert warning["level"] == "warning"
    assert str(gateway.directory / "keys") in warning["event"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_nothing_is_left(gateway: Running, number: int) -> None:
    assert gateway.end(number) == 0
    assert "dsvpn0" not in ip("link show")
    assert "plain0" not in ip("link show")
    assert "172.16.0.0" not in ip("route show")
    assert not gateway.socket.exists()
    assert [line for line in gateway.log() if line["level"] == "error"] == []


def test_after_kill_9_it_starts_again(tmp_path: Path) -> None:
    for _ in range(2):
        with running(tmp_path, "workers") as gateway:
            assert gateway.end(signal.SIGKILL) == -signal.SIGKILL
            assert gateway.socket.exists()
            assert "dsvpn0" not in ip("link show")


def test_idle_it_sleeps(gateway: Running) -> None:
    tasks = Path(f"/proc/{gateway.process.pid}/task")

    def used() -> float:
        ticks = 0
        for task in tasks.iterdir():
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    # It calls a hub that does not answer meanwhile, which is a handful of datagrams.
    before, began = used(), time.monotonic()
    while time.monotonic() - began < 3:
        time.sleep(0.5)
    assert used() - before < 0.3
