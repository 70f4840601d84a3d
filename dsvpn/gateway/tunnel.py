"""One tunnel: its NHRP engine, the mappings and shortcuts it gave, and where they make packets go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network

from dsvpn.addresses import Address, Prefix
from dsvpn.commands import Command, InstallKernelRoute, RemoveKernelRoute, SetMulticast
from dsvpn.config.model import TunnelConfig
from dsvpn.gateway.authorization import Authorizer
from dsvpn.gateway.forwarding import Forwarding, RouteSource, Target
from dsvpn.gateway.ids import IdPool
from dsvpn.gateway.nhs import NhsHealth, Standing
from dsvpn.gateway.peers import Peer
from dsvpn.nhrp.config import NhrpConfig, NhsConfig, Route
from dsvpn.nhrp.engine import NhrpEngine
from dsvpn.nhrp.events import MappingAdded
from dsvpn.policy import DEFAULT_UNDERLAY_MTU

#: From so many listeners on, changes of who gets multicast are gathered for so long (seconds).
_LONG_LIST = 64
_LIST_INTERVAL = 0.25


@dataclass(slots=True)
class Mapping:
    """A mapping as NHRP reported it, and the peer it leads to (None: nobody has called from there yet)."""

    event: MappingAdded
    peer: Peer | None


class Tunnel:
    """State of one [tunnel.NAME]. `emit` takes commands."""

    def __init__(
        self,
        name: str,
        config: TunnelConfig,
        *,
        random: Callable[[int], bytes],
        route_lookup: Callable[[Address], Route | None],
        next_hop_ids: IdPool,
        emit: Callable[[Command], None],
        port_seen: Callable[[int], int | None],
    ) -> None:
        self.name = name
        self.config = config
        self.profile = config.ipsec if config.protected else None
        self.source = config.source_address
        self.underlay_mtu = DEFAULT_UNDERLAY_MTU
        self.mappings: dict[Address, Mapping] = {}
        self.shortcuts: dict[Prefix, Address] = {}
        self._shortcuts_by: dict[Address, dict[Prefix, None]] = {}
        #: NBMA address -> the mappings there that nobody has called for yet.
        self._waiting: dict[Address, dict[Address, None]] = {}
        self.forwarding = Forwarding(name, next_hop_ids, self.target, emit)
        self.authorizer = Authorizer(config)
        self.nhrp = NhrpEngine(nhrp_config(config), random, route_lookup, port_seen)
        self._emit = emit
        self.health = NhsHealth(
            ((entry.protocol, entry.priority) for entry in config.nhrp.nhs),
            tries=config.nhrp.nhs_probe_tries,
            fallback=config.nhrp.nhs_fallback,
        )
        self._active: set[Prefix] = set()
        #: Who gets multicast, by tunnel address, and the list that the data plane has.
        self._listeners: dict[Address, int] = {}
        self._multicast: tuple[int, ...] = ()
        self._multicast_changed = False
        self._listener_left = False
        self._multicast_at: float | None = None

    # -- where packets go ----------------------------------------------------------------------------------

    def target(self, address: Address | None, own: bool = False) -> Target:
        """Where a next hop leads: its mapping's peer if that carries traffic, else the best NHS, which knows more.

        A route by an NHS that answers no probes, or not for long enough yet, goes by another one, too; not so the
        packets to its `own` address, probes among them.
        """
        mapping = self.mappings.get(address) if address is not None else None
        peer = None if mapping is None else mapping.peer
        if peer is not None and peer.carries and (own or not self._has_stand_in(address)):
            return Target(peer.adjacencies[self.name], resolve=False)
        for nhs in self.health.order(address):
            server = self.mappings.get(nhs)
            if server is not None and server.peer is not None and server.peer.up and nhs != address:
                return Target(server.peer.adjacencies[self.name], resolve=True)
        if peer is not None and peer.up:
            return Target(peer.adjacencies[self.name], resolve=False)
        return Target(None, resolve=False)

    def _has_stand_in(self, address: Address | None) -> bool:
        """Whether an NHS should be spared, and there is another to rely on."""
        if address not in self.health or address is None:
            return False
        spared = self.health.standing(address) in (Standing.RECOVERING, Standing.LOST)
        return spared and self.health.any_reliable()

    def reconfigure(self, config: TunnelConfig) -> bool:
        """Go on by other rules of authorization; the rest of the configuration is the same. False if they are, too."""
        before, self.config = self.config, config
        self.authorizer = Authorizer(config)
        return before.authorize != config.authorize

    @property
    def probe_interval(self) -> float | None:
        """How often NHSs are looked at, seconds. With one alone there is nothing to choose."""
        return self.config.nhrp.nhs_probe if len(self.config.nhrp.nhs) > 1 and self.config.nhrp.nhs_probe else None

    def probed(self) -> list[tuple[int, Address]]:
        """The adjacencies of the NHSs that are looked at, with their tunnel addresses."""
        if self.probe_interval is None:
            return []
        found = []
        for entry in self.config.nhrp.nhs:
            mapping = self.mappings.get(entry.protocol)
            if mapping is not None and mapping.peer is not None and mapping.peer.up:
                found.append((mapping.peer.adjacencies[self.name], entry.protocol))
        return found

    def set_mapping(self, event: MappingAdded, peer: Peer | None) -> None:
        """A mapping was added or changed: the tunnel address gets a host route of its own."""
        self._forget_waiting(event.protocol)
        self.mappings[event.protocol] = Mapping(event, peer)
        if peer is None:
            self._waiting.setdefault(event.nbma, {})[event.protocol] = None
        # Only NHSs have others to stand in for them: the rest share the next hop of the routes behind them.
        own = event.protocol in self.health
        self.forwarding.set_route(RouteSource.MAPPING, ip_network(event.protocol), event.protocol, own=own)
        self.peer_changed(event.protocol)

    def remove_mapping(self, protocol: Address) -> None:
        """A mapping is gone."""
        self._forget_waiting(protocol)
        if self.mappings.pop(protocol, None) is not None:
            self.forwarding.remove_route(RouteSource.MAPPING, ip_network(protocol))
            self.peer_changed(protocol)

    def peer_changed(self, protocol: Address) -> None:
        """The peer of a mapping came up, went down or is another one: move what depends on it."""
        if protocol in self.health:
            self.forwarding.repoint_all()
        else:
            self.forwarding.repoint(protocol)
        for prefix in list(self._shortcuts_by.get(protocol, ())):
            self._refresh_shortcut(prefix, protocol)
        self._note_listener(protocol)

    def waiting_at(self, nbma: Address) -> list[Mapping]:
        """The mappings at an NBMA address that have no peer yet."""
        return [self.mappings[protocol] for protocol in self._waiting.get(nbma, ())]

    def _forget_waiting(self, protocol: Address) -> None:
        mapping = self.mappings.get(protocol)
        if mapping is None or mapping.peer is not None:
            return
        waiting = self._waiting[mapping.event.nbma]
        del waiting[protocol]
        if not waiting:
            del self._waiting[mapping.event.nbma]

    # -- shortcuts -----------------------------------------------------------------------------------------

    def add_shortcut(self, prefix: Prefix, next_hop: Address) -> None:
        """NHRP found a direct way. It is used from the moment its peer is up."""
        self.remove_shortcut(prefix)
        self.shortcuts[prefix] = next_hop
        self._shortcuts_by.setdefault(next_hop, {})[prefix] = None
        self._refresh_shortcut(prefix, next_hop)

    def remove_shortcut(self, prefix: Prefix) -> None:
        """A direct way is gone: the traffic takes the route that was there before."""
        next_hop = self.shortcuts.pop(prefix, None)
        if next_hop is not None:
            prefixes = self._shortcuts_by[next_hop]
            del prefixes[prefix]
            if not prefixes:
                del self._shortcuts_by[next_hop]
            self._deactivate(prefix)

    def remove_all_shortcuts(self) -> None:
        """Take every shortcut out of the FIB and the kernel."""
        for prefix in list(self.shortcuts):
            self.remove_shortcut(prefix)

    def shortcut_active(self, prefix: Prefix) -> bool:
        """Whether traffic takes this shortcut."""
        return prefix in self._active

    def _refresh_shortcut(self, prefix: Prefix, next_hop: Address) -> None:
        mapping = self.mappings.get(next_hop)
        if mapping is not None and mapping.peer is not None and mapping.peer.carries:
            if prefix not in self._active:
                self._active.add(prefix)
                self.forwarding.set_route(RouteSource.SHORTCUT, prefix, next_hop)
                # The kernel has the tunnel's own prefix on-link: a tunnel address needs no route of its own there.
                if prefix != ip_network(next_hop):
                    self._emit(InstallKernelRoute(self.name, prefix, next_hop))
        else:
            self._deactivate(prefix)

    def _deactivate(self, prefix: Prefix) -> None:
        if prefix in self._active:
            self._active.discard(prefix)
            next_hop = self.shortcuts.get(prefix)
            self.forwarding.remove_route(RouteSource.SHORTCUT, prefix)
            if next_hop is None or prefix != ip_network(next_hop):
                self._emit(RemoveKernelRoute(self.name, prefix))

    # -- multicast -----------------------------------------------------------------------------------------

    def multicast_timer(self) -> float | None:
        """When `refresh_multicast` has something to do."""
        return self._multicast_at

    def refresh_multicast(self, now: float) -> None:
        """Tell the data plane who gets multicast.

        A long list that grows is told in intervals: each change costs the whole list, and ten thousand spokes come back
        within a minute when a hub restarts. Who leaves is taken off at once, for his adjacency may become another's.
        """
        if not self._multicast_changed:
            return
        if len(self._listeners) >= _LONG_LIST and not self._listener_left:
            if self._multicast_at is None:
                self._multicast_at = now + _LIST_INTERVAL
            if now < self._multicast_at:
                return
        self._multicast_changed, self._listener_left, self._multicast_at = False, False, None
        listed = tuple(sorted(set(self._listeners.values())))
        if listed != self._multicast:
            self._multicast = listed
            self._emit(SetMulticast(self.name, listed))

    def _note_listener(self, protocol: Address) -> None:
        wanted = self.config.nhrp.multicast
        if wanted == "none":
            return
        mapping = self.mappings.get(protocol)
        adjacency = None
        if mapping is not None and mapping.peer is not None and mapping.peer.up:
            kind, nbma = mapping.event.kind, mapping.event.nbma
            if (
                (wanted == "dynamic" and kind == "registered")
                or (wanted == "nhs" and kind == "nhs")
                or (isinstance(wanted, tuple) and nbma in wanted)
            ):
                adjacency = mapping.peer.adjacencies[self.name]
        before = self._listeners.get(protocol)
        if before == adjacency:
            return
        self._listener_left |= before is not None
        if adjacency is None:
            del self._listeners[protocol]
        else:
            self._listeners[protocol] = adjacency
        self._multicast_changed = True


def nhrp_config(config: TunnelConfig) -> NhrpConfig:
    """The engine's settings from [tunnel.NAME] and [tunnel.NAME.nhrp]."""
    nhrp = config.nhrp
    return NhrpConfig(
        protocol_addresses=tuple(config.addresses),
        nbma=config.source_address,
        holding_time=round(nhrp.holding_time),
        authentication=None if nhrp.authentication is None else nhrp.authentication.encode(),
        shortcut=nhrp.shortcut,
        redirect=nhrp.redirect,
        unique=nhrp.unique,
        nhs=tuple(
            NhsConfig(entry.protocol, None if isinstance(entry.nbma, str) else entry.nbma, entry.priority)
            for entry in nhrp.nhs
        ),
        static_maps=tuple((entry.protocol, entry.nbma) for entry in nhrp.map),
    )
