"""One gateway of ours and one strongSwan, a tunnel between them, and traffic through it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal, TypeVar

from dsvpn.errors import HostError
from dsvpn.lab.gateways import TUNNEL, GatewayProcess, Settings
from dsvpn.lab.measure import Pings, ping
from dsvpn.lab.run import Run, wait_until
from tests.interop import losses
from tests.interop.strongswan import INNER_OURS, INNER_THEIRS, KEY, Connection, StrongSwan
from tests.interop.underlay import Underlay

T = TypeVar("T")
#: Who initiates the IKE SA.
End = Literal["ours", "theirs"]
#: Everything that waits for a state gives up after this, seconds.
DEADLINE = 30.0
#: How late an answer to a ping may come, seconds: guests are slow, and share their processor.
LATE = 10.0

_PROFILE = {
    "ike": '["aes256gcm16-prfsha384-x25519"]',
    "esp": '["aes128gcm16"]',
    "retransmission": '{ timeout = "250ms", factor = 1.5, limit = "1s", tries = 5 }',
}
#: Our end as it agrees with a `Connection` by default. Times are short, for failures to show soon.
PLAIN = Settings(key=KEY, authentication=None, tunnel={"routes": "[]"}, profile=_PROFILE)


def profile(**values: str) -> Settings:
    """`PLAIN` with other values in [ipsec.default], as TOML."""
    return PLAIN.but(profile=_PROFILE | values)


class Pair:
    """The ends and the underlay between them. `connect` is the usual way in; `close` ends what was made."""

    def __init__(self, run: Run, underlay: Underlay, strongswan: StrongSwan) -> None:
        self.run = run
        self.underlay = underlay
        self.theirs = strongswan
        self.ours: GatewayProcess | None = None

    @property
    def gateway(self) -> GatewayProcess:
        """Our end."""
        assert self.ours is not None, "our gateway was not started"
        return self.ours

    def prepare(
        self,
        connection: Connection,
        initiator: End,
        *,
        guest_nat: bool = False,
        ours_nat: bool = False,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """Configure strongSwan and the underlay, so that only `initiator` gets its calls through."""
        self.underlay.arrange(guest_nat=guest_nat, ours_nat=ours_nat, calls=initiator)
        self.theirs.configure(connection, self.underlay.ours_seen, files)

    def start_ours(self, settings: Settings = PLAIN) -> GatewayProcess:
        """Start our gateway with a static mapping of the guest: it calls at once."""
        settings = self.mapped(settings, INNER_THEIRS)
        self.ours = GatewayProcess(self.run, self.underlay.site(), self.underlay.ours, settings)
        self.ours.log.unlink(missing_ok=True)
        self.ours.start()
        return self.ours

    def mapped(self, settings: Settings, protocol: IPv4Address) -> Settings:
        """`settings` with the guest as the static mapping of a protocol address."""
        mapping = f'[{{ protocol = "{protocol}", nbma = "{self.underlay.guest_seen}" }}]'
        return settings.but(nhrp={"nhs": "[]", "shortcut": "false", "map": mapping} | dict(settings.nhrp))

    def connect(
        self,
        initiator: End,
        *,
        settings: Settings = PLAIN,
        connection: Connection | None = None,
        guest_nat: bool = False,
        ours_nat: bool = False,
        files: Mapping[str, Path] | None = None,
    ) -> dict[str, Any]:
        """Bring the tunnel up, called by `initiator`; gives our view of the IKE SA."""
        self.prepare(connection or Connection(), initiator, guest_nat=guest_nat, ours_nat=ours_nat, files=files)
        self.start_ours(settings)
        if initiator == "theirs":
            self.theirs.initiate()
        return self.wait_up(initiator)

    def wait_up(self, initiator: End) -> dict[str, Any]:
        """Wait until there is an IKE SA that `initiator` made, with a CHILD_SA in use; gives our view of it."""

        def established() -> dict[str, Any] | None:
            for sa in self.gateway.show("sa"):
                if sa["state"] == "established" and sa["initiator"] == (initiator == "ours") and sa["children"]:
                    return dict(sa)
            return None

        try:
            return wait_until(established, DEADLINE, "the IKE SA", interval=0.05)
        except TimeoutError:
            reasons = [peer["last_error"] for peer in self.gateway.show("peers")["peers"]]
            raise AssertionError(f"no IKE SA with a CHILD_SA: {reasons}") from None

    def check_traffic(self, *, by: Literal["esp", "natt"] = "esp", count: int = 10) -> None:
        """Pings of several sizes from either end are all answered, and nothing but ESP carries them."""
        before, drops = self.underlay.carried(), losses.count(self)
        # Until the caller has our answer, there is nobody who could open what we seal.
        self.wait(lambda: ping(self.underlay.ours, INNER_THEIRS, 1, wait=1.0).received, "the first ping")
        sizes = (56, 1330)
        ours = [ping(self.underlay.ours, INNER_THEIRS, count, size=size, interval=0.005, wait=LATE) for size in sizes]
        theirs = self.theirs.guest.ping(INNER_OURS, count, sizes=sizes, interval=0.005, wait=LATE)
        self.check_pings(drops, {"ours": ours, "theirs": theirs})
        after = self.underlay.carried()
        carried = {name: after[name] - before[name] for name in after}
        # Requests and answers, from either end, with their IP and ICMP headers.
        inner = sum(size + 28 for size in sizes) * count * 2 * 2
        assert carried[by] >= inner, f"the underlay carried octets {carried} for {inner} in the tunnel"
        for other in {"esp", "natt", "icmp", "other"} - {by}:
            assert carried[other] == 0, f"the underlay carried octets {carried}"

    def check_pings(self, drops: losses.Counts, series: Mapping[str, Sequence[Pings]]) -> None:
        """Every ping was answered. `drops` are the counters from before, where one that was not has to show."""
        missing = [
            f"{name}: {one.missing} of {one.transmitted}" for name, of in series.items() for one in of if one.lost
        ]
        assert not missing, f"no answer from {'; '.join(missing)}: {losses.since(self, drops)}"

    def check_streams(self, seconds: float = 1.0) -> tuple[float, float]:
        """One TCP stream in each direction; their rates in bits per second."""
        self.theirs.guest.begin(f"iperf3 -s -1 -B {INNER_THEIRS}; iperf3 -s -1 -B {INNER_THEIRS}")
        rates = []
        for reverse in ([], ["-R"]):

            def client(options: list[str] = reverse) -> dict[str, Any] | None:
                argv = ["iperf3", "-c", str(INNER_THEIRS), "-B", str(INNER_OURS), "-t", f"{seconds:g}", "-J", *options]
                text = self.underlay.ours.command(["sh", "-c", '"$@" || true', "sh", *argv], timeout=seconds + 30)
                result: dict[str, Any] = json.loads(text)
                return None if "error" in result and "refused" in result["error"] else result

            result = wait_until(client, DEADLINE, "the iperf3 server", interval=0.1)
            assert "error" not in result, result["error"]
            rates.append(float(result["end"]["sum_received"]["bits_per_second"]))
        assert min(rates) > 1e6, f"the streams reached {rates} bit/s"
        return rates[0], rates[1]

    def wait(self, condition: Callable[[], T | None], what: str, seconds: float = DEADLINE) -> T:
        """Wait until something is true, and give that."""
        return wait_until(condition, seconds, what, interval=0.05)

    def established(self) -> list[dict[str, Any]]:
        """Our view of all established IKE SAs."""
        return [dict(sa) for sa in self.gateway.show("sa") if sa["state"] == "established"]

    def established_spis(self) -> list[int]:
        """Their initiators' SPIs."""
        return [sa["initiator_spi"] for sa in self.established()]

    def sa_children(self) -> list[dict[str, Any]]:
        """Our view of all CHILD_SAs."""
        return [child for sa in self.gateway.show("sa") for child in sa["children"]]

    def sole_child(self) -> int:
        """The inbound SPI of the only CHILD_SA, 0 while there are several."""
        spis = [int(child["inbound_spi"]) for child in self.sa_children()]
        return spis[0] if len(spis) == 1 else 0

    def rekey_child(self) -> None:
        """Have strongSwan rekey the CHILD_SA, and wait until the old one is gone."""
        before = self.wait(self.sole_child, "one CHILD_SA")
        self.theirs.swanctl_run("--rekey --child gre")
        self.wait(lambda: self.sole_child() not in (0, before), "the rekeyed CHILD_SA")

    def rekey_ike(self) -> None:
        """Have strongSwan rekey the IKE SA, and wait until the old one is gone."""
        before = self.established_spis()
        self.theirs.swanctl_run("--rekey --ike ours")

        def rekeyed() -> bool:
            spis = self.established_spis()
            return len(spis) == 1 and spis != before

        self.wait(rekeyed, "the rekeyed IKE SA")

    def peer(self) -> dict[str, Any]:
        """Our view of the peer."""
        (peer,) = self.gateway.show("peers")["peers"]
        return dict(peer)

    def counters(self, section: str = "ike") -> dict[str, int]:
        """Counters of ours."""
        return dict(self.gateway.show("counters")[section])

    def close(self) -> None:
        """End our gateway."""
        ours, self.ours = self.ours, None
        if ours is not None:
            assert ours.stop() == 0, ours.last_lines(20)

    def report(self) -> str:
        """What both ends logged, for a failure."""
        ours = [] if self.ours is None else self.ours.last_lines(40)
        try:
            shown = "" if self.ours is None else self.ours.show_command("peers")
        except HostError as error:
            shown = str(error)
        theirs = self.theirs.log().splitlines()[-90:]
        return "\n".join(["--- ours", *ours, shown, "--- charon", *theirs])


__all__ = ["DEADLINE", "INNER_OURS", "PLAIN", "TUNNEL", "Connection", "End", "Pair", "profile"]
