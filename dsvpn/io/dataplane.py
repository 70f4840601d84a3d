"""The native data plane as the gateway sees it: commands go in, punts come out.

Table commands take effect at a commit. Whatever is sent must find them in effect, so a commit comes before the first
NHRP packet of a batch that follows a table command, and at the end of every batch, before IKE datagrams go out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from dsvpn.addresses import Address, Endpoint, Path, Prefix
from dsvpn.commands import (
    AddInboundSa,
    ClearOutboundSa,
    Command,
    InstallKernelRoute,
    LookUp,
    RemoveAdjacency,
    RemoveInboundSa,
    RemoveKernelRoute,
    RemoveNextHop,
    RemoveRoute,
    SendNhrp,
    SendProbe,
    SetAdjacency,
    SetMulticast,
    SetNextHop,
    SetNextHopGroup,
    SetOutboundSa,
    SetRoute,
    SetSources,
)
from dsvpn.errors import HostError
from dsvpn.gateway.usage import BusySa
from dsvpn.ike.cookies import CookieSecrets
from dsvpn.ike.volume import Carried
from dsvpn.io.keylog import KeyLog
from dsvpn.io.probe import ProbeSockets
from dsvpn.observe.limit import RateLimit

if TYPE_CHECKING:
    from dsvpn_native import Dataplane, Punt

_log = structlog.get_logger("dsvpn.dataplane")


class KernelRoutes(Protocol):
    """Who shows shortcuts to the kernel."""

    def install_shortcut(self, tunnel: str, prefix: Prefix, via: Address | None) -> None:
        """Write or change a shortcut route."""

    def remove_shortcut(self, tunnel: str, prefix: Prefix) -> None:
        """Remove a shortcut route."""


class Receiver(Protocol):
    """The inputs of a gateway that come from the data plane (`dsvpn.gateway.Gateway`)."""

    def receive_ike(self, data: bytes, path: Path, now: float) -> None:
        """An IKE message."""

    def receive_nhrp(self, tunnel: str, adjacency: int | None, remote: Address, data: bytes, now: float) -> None:
        """An NHRP packet."""

    def handle_miss(self, tunnel: str, next_hop: int, destination: Address, now: float) -> None:
        """A packet used a next hop that asks to be resolved."""

    def handle_redirect(self, tunnel: str, adjacency: int, head: bytes, now: float) -> None:
        """A packet left by the tunnel that it came from."""

    def handle_moved(self, adjacency: int, path: Path, now: float) -> None:
        """A peer sends from another address."""

    def handle_source(self, tunnel: str, adjacency: int, source: Address, passed: bool, now: float) -> None:
        """A packet came whose inner source is not routed to its peer."""

    def handle_unknown_spi(self, spi: int, path: Path, now: float) -> None:
        """ESP came with an SPI that no inbound SA has."""


class Commander:
    """Carries out the gateway's commands. Tunnels are known to the gateway by name, to the data plane by id."""

    def __init__(
        self,
        dataplane: Dataplane,
        routes: KernelRoutes,
        key_log: KeyLog | None = None,
        look_up: Callable[[LookUp], None] = lambda _: None,
    ) -> None:
        self._dataplane = dataplane
        self._routes = routes
        self._key_log = key_log
        self._tunnels: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._adjacencies: dict[int, str] = {}
        self._probes = ProbeSockets()
        self._look_up = look_up
        self._failures = RateLimit(rate=1.0, burst=10)
        self._cookie_gate: CookieSecrets | None = None
        #: Commands that could not be carried out, and NHRP packets that had no way: for `dsvpn show counters`.
        self.counters = {"control_commands": 0, "control_commands_failed": 0, "control_nhrp_unsent": 0}

    def close(self) -> None:
        """Close the sockets that probes go by."""
        self._probes.close()

    def add_tunnel(self, name: str, identifier: int) -> None:
        """The data plane has a tunnel of this name."""
        self._tunnels[name] = identifier
        self._names[identifier] = name

    def tunnel_name(self, identifier: int) -> str | None:
        """The name of a tunnel of the data plane."""
        return self._names.get(identifier)

    @property
    def adjacencies(self) -> Iterable[int]:
        """The adjacencies that exist."""
        return self._adjacencies.keys()

    def carry_out(self, commands: Iterable[Command]) -> None:
        """Carry out commands in order and make them effective.

        One that fails is logged and the rest goes on: a route that the kernel refuses must not keep an SA out.
        """
        dirty = False
        for command in commands:
            if isinstance(command, SendNhrp) and dirty:
                self._dataplane.commit()
                dirty = False
            self.counters["control_commands"] += 1
            try:
                dirty |= self._carry_out(command)
            except (ValueError, OSError, KeyError, HostError) as error:
                self.counters["control_commands_failed"] += 1
                if admitted := self._failures.admit(time.monotonic()):
                    # Keys are in the repr of an SA: only the command's name and the error are told.
                    _log.error(
                        f"{type(command).__name__} failed: {error}",
                        name="command_failed",
                        **admitted.fields,
                    )
        if dirty:
            self._dataplane.commit()

    def _carry_out(self, command: Command) -> bool:
        """Carry out one command; True if it takes a commit to take effect."""
        plane = self._dataplane
        match command:
            case SetAdjacency(adjacency, tunnel, encapsulation, path, mtu):
                remote = path.remote
                local = _text(path.local.address)
                plane.set_adjacency(
                    adjacency, self._tunnels[tunnel], encapsulation, local, str(remote.address), remote.port, mtu
                )
                self._adjacencies[adjacency] = str(remote.address)
            case RemoveAdjacency(adjacency):
                self._adjacencies.pop(adjacency, None)
                plane.remove_adjacency(adjacency)
            case SetNextHop(next_hop, adjacency_or_none, resolve):
                plane.set_next_hop(next_hop, adjacency_or_none, resolve)
            case SetNextHopGroup(next_hop, members):
                plane.set_next_hop_group(next_hop, list(members))
            case RemoveNextHop(next_hop):
                plane.remove_next_hop(next_hop)
            case SetRoute(tunnel, prefix, next_hop):
                plane.set_route(self._tunnels[tunnel], str(prefix), next_hop)
            case RemoveRoute(tunnel, prefix):
                plane.remove_route(self._tunnels[tunnel], str(prefix))
            case SetMulticast(tunnel, adjacencies):
                plane.set_multicast(self._tunnels[tunnel], list(adjacencies))
            case AddInboundSa(spi, suite, keymat, adjacencies, esn, replay_window):
                plane.add_inbound_sa(spi, suite, keymat, list(adjacencies), esn, replay_window)
                if self._key_log is not None:
                    self._key_log.esp_sa(self._remote(adjacencies), "inbound", spi, suite, keymat)
            case RemoveInboundSa(spi):
                plane.remove_inbound_sa(spi)
            case SetSources(adjacency, check, prefixes):
                plane.set_sources(adjacency, check, [str(prefix) for prefix in prefixes])
            case SetOutboundSa(spi, suite, keymat, adjacencies, esn, resource):
                plane.set_outbound_sa(spi, suite, keymat, list(adjacencies), esn, resource)
                if self._key_log is not None:
                    self._key_log.esp_sa(self._remote(adjacencies), "outbound", spi, suite, keymat)
            case ClearOutboundSa(adjacency, resource):
                plane.clear_outbound_sa(adjacency, resource)
            case SendNhrp(adjacency, packet):
                if not plane.send_nhrp(adjacency, packet):
                    self.counters["control_nhrp_unsent"] += 1
                return False
            case SendProbe(tunnel, destination):
                self._probes.send(tunnel, destination)
                return False
            case LookUp():
                self._look_up(command)
                return False
            case InstallKernelRoute(tunnel, prefix, via):
                self._routes.install_shortcut(tunnel, prefix, via)
                return False
            case RemoveKernelRoute(tunnel, prefix):
                self._routes.remove_shortcut(tunnel, prefix)
                return False
        return True

    def _remote(self, adjacencies: tuple[int, ...]) -> str | None:
        return next((self._adjacencies[one] for one in adjacencies if one in self._adjacencies), None)

    def set_cookie_gate(self, secrets: CookieSecrets | None) -> None:
        """Have the data plane ask strangers for cookies, or let them pass."""
        if secrets != self._cookie_gate:
            self._cookie_gate = secrets
            if secrets is None:
                self._dataplane.set_cookie_gate(0, b"", b"")
            else:
                self._dataplane.set_cookie_gate(secrets.version, secrets.secret, secrets.previous)

    def with_cookie_gate(self, counters: Mapping[str, int]) -> dict[str, int]:
        """The IKE engine's counters with what the data plane did in its place."""
        sent, dropped = self._dataplane.cookie_gate_counts()
        return {
            **counters,
            "cookies_sent": counters["cookies_sent"] + sent,
            "cookies_sent_by_gate": sent,
            "gate_dropped": dropped,
        }

    def send(self, datagrams: Iterable[tuple[bytes, Path]], keepalives: Iterable[Path] = ()) -> None:
        """Send IKE messages and NAT keepalives. Call it after `carry_out`."""
        for data, (local, remote) in datagrams:
            self._dataplane.send_ike(_text(local.address), local.port, _text(remote.address), remote.port, data)
        for local, remote in keepalives:
            self._dataplane.send_keepalive(_text(local.address), str(remote.address), remote.port)

    def deliver(self, punt: Punt, receiver: Receiver, now: float) -> None:
        """Hand one punt to the gateway."""
        if punt.kind == "ike":
            receiver.receive_ike(punt.data, _path(punt), now)
            return
        if punt.kind == "moved":
            receiver.handle_moved(punt.adjacency, _path(punt), now)
            return
        if punt.kind == "unknown_spi":
            receiver.handle_unknown_spi(int.from_bytes(punt.data, "big"), _path(punt), now)
            return
        tunnel = self._names.get(punt.tunnel)
        if tunnel is None:
            return  # the tunnel went while the punt was on its way
        match punt.kind:
            case "nhrp":
                adjacency = None if punt.adjacency < 0 else punt.adjacency
                receiver.receive_nhrp(tunnel, adjacency, ip_address(punt.remote), punt.data, now)
            case "miss":
                receiver.handle_miss(tunnel, punt.next_hop, ip_address(punt.data), now)
            case "redirect":
                receiver.handle_redirect(tunnel, punt.adjacency, punt.data, now)
            case "source":
                receiver.handle_source(tunnel, punt.adjacency, ip_address(punt.data), punt.next_hop >= 0, now)

    # -- observation ---------------------------------------------------------------------------------------

    def traffic(self, adjacencies: Iterable[int] | None = None) -> dict[int, tuple[int, int]]:
        """Data packets in and out of every adjacency, or of those given, totals."""
        found: dict[int, tuple[int, int]] = {}
        for adjacency in self._adjacencies if adjacencies is None else adjacencies:
            counters = self.adjacency_counters(adjacency)
            if counters:
                found[adjacency] = counters["packets_in"], counters["packets_out"]
        return found

    def sa_traffic(self, busy: Iterable[BusySa]) -> dict[BusySa, Carried]:
        """What CHILD_SAs have carried, totals; those that are gone meanwhile are left out."""
        found: dict[BusySa, Carried] = {}
        for sa in busy:
            inbound = _or_empty(self._dataplane.sa_counters, sa.inbound_spi)
            if not inbound:
                continue
            outbound = _or_empty(self._dataplane.outbound_sa_counters, sa.adjacency, sa.resource)
            if outbound.get("spi") == sa.outbound_spi:
                sent = outbound["packets"], outbound["bytes"], outbound["sequence"]
                found[sa] = Carried(inbound["packets"], inbound["bytes"], *sent)
            else:
                found[sa] = Carried(inbound["packets"], inbound["bytes"])
        return found

    def adjacency_counters(self, adjacency: int) -> dict[str, int]:
        """Counters of an adjacency, empty if it is gone."""
        return _or_empty(self._dataplane.adjacency_counters, adjacency)

    def add_counters(self, status: Mapping[str, Any]) -> None:
        """Fill the data plane's counters into the sections that `Gateway.status` gave."""
        for peer in status["peers"]["peers"]:
            peer["traffic"] = {name: self.adjacency_counters(one) for name, one in peer["adjacencies"].items()}
        for ike_sa in status["sa"]:
            for child in ike_sa["children"]:
                child["counters"] = _or_empty(self._dataplane.sa_counters, child["inbound_spi"])


def _or_empty(read: Any, *key: int) -> dict[str, int]:
    try:
        found: dict[str, int] = read(*key)
    except ValueError:
        return {}
    return found


@lru_cache(maxsize=1024)
def _text(address: Address) -> str:
    return "" if address.is_unspecified else str(address)


def _path(punt: Punt) -> Path:
    return Path(Endpoint(_address(punt.local), punt.local_port), Endpoint(_address(punt.remote), punt.remote_port))


@lru_cache(maxsize=1024)
def _address(text: str) -> Address:
    # The messages of an exchange come one behind the other, and to few addresses of ours.
    return ip_address(text)
