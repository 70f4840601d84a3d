"""Peers: the other gateways that this one has, wants or had a protected path to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from dsvpn.addresses import Address, Path, Prefix
from dsvpn.commands import Encapsulation
from dsvpn.ike.identity import Identity
from dsvpn.nhrp.events import MappingKind

#: Kinds of mappings for which this end calls the peer. The others only hold on to a peer that has called.
CALLING_KINDS: frozenset[MappingKind] = frozenset({"nhs", "static", "resolved"})


@dataclass(slots=True)
class Child:
    """A CHILD_SA with a peer. `ready`: the peer takes what is sealed with it. `resource`: its place among those of
    its IKE SA that stand side by side (RFC 9611), 0 for the fallback."""

    inbound_spi: int
    outbound_spi: int
    suite: str
    outbound_keymat: bytes = field(repr=False)
    esn: bool
    encapsulation: Encapsulation
    path: Path
    ready: bool
    ike_sa: int
    resource: int = 0


@dataclass(eq=False, slots=True)
class Peer:
    """One gateway at the other end of the underlay.

    `profile` None means plain GRE: such a peer is up from the start. `adjacencies` holds one id for each tunnel whose
    traffic it may carry. `needs` are the mappings (tunnel, protocol address) that want it.
    """

    profile: str | None
    nbma: Address
    adjacencies: dict[str, int]
    private_nbma: Address | None = None
    identity: str | None = None
    path: Path | None = None
    #: Whether the data plane has its adjacencies.
    placed: bool = False
    encapsulation: Encapsulation = "gre"
    #: The ESP suite that packets must have room for.
    transform: str = "aes128gcm16"
    ike_sas: list[int] = field(default_factory=list)
    attempt: int | None = None
    children: dict[int, Child] = field(default_factory=dict)
    current: int | None = None
    #: The CHILD_SAs that are last known to be ready for one worker each, by IKE SA and resource; and those of them that
    #: the data plane seals with beside `current`, by resource.
    side_by_side: dict[tuple[int, int], int] = field(default_factory=dict)
    workers: dict[int, int] = field(default_factory=dict)
    #: Whether the peer is known to take what is sent to it. One that has called may not have installed its SA yet
    #: when ours is there: until it shows, traffic that has another way keeps to it.
    confirmed: bool = False
    #: A CHILD_SA that the peer made beside the current one; sealed with once the peer can be expected to have it.
    pending: int | None = None
    needs: dict[tuple[str, Address], MappingKind] = field(default_factory=dict)
    #: Both ends are behind NAT: the call opens the way for the other end's.
    punch: bool = False
    #: The public UDP port that an NHS sees it at, None when none has told.
    nat_port: int | None = None
    failures: int = 0
    last_error: str = ""
    local_nat: bool = False
    remote_nat: bool = False
    since: float | None = None
    packets: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Who was there when this end called.
    reached: Identity | None = None
    #: The identity that the youngest IKE SA has proved, the addresses in its certificate, and the prefixes that this
    #: holds by RFC 3779.
    proved: Identity | None = None
    certified: tuple[Prefix, ...] = ()
    delegated: tuple[Prefix, ...] | None = None

    @property
    def up(self) -> bool:
        """Whether traffic can go to it."""
        return self.path is not None if self.profile is None else self.current is not None

    @property
    def carries(self) -> bool:
        """Whether traffic should move to it from the way it has."""
        return self.up and self.confirmed

    @property
    def calls(self) -> bool:
        """Whether this end should have an IKE SA with it of its own accord."""
        return any(kind in CALLING_KINDS for kind in self.needs.values())

    def best_child(self) -> Child | None:
        """The youngest CHILD_SA that the peer is known to take traffic on: a fallback or, without any, the one of the
        last worker."""
        ready = [child for child in reversed(self.children.values()) if child.ready]
        return next((child for child in ready if not child.resource), max(ready, key=_resource, default=None))


def _resource(child: Child) -> int:
    return child.resource


class PeerTable:
    """All peers, found by NBMA address, IKE SA, adjacency."""

    def __init__(self) -> None:
        self._by_nbma: dict[tuple[str | None, Address], list[Peer]] = {}
        self._by_ike_sa: dict[int, Peer] = {}
        self._by_adjacency: dict[int, tuple[str, Peer]] = {}
        self._count = 0

    def __iter__(self) -> Iterator[Peer]:
        for peers in self._by_nbma.values():
            yield from peers

    def __len__(self) -> int:
        return self._count

    def add(self, peer: Peer) -> None:
        """Take a new peer in."""
        self._by_nbma.setdefault((peer.profile, peer.nbma), []).append(peer)
        self._count += 1
        for tunnel, adjacency in peer.adjacencies.items():
            self._by_adjacency[adjacency] = (tunnel, peer)

    def remove(self, peer: Peer) -> None:
        """Forget a peer."""
        key = (peer.profile, peer.nbma)
        peers = self._by_nbma[key]
        peers.remove(peer)
        self._count -= 1
        if not peers:
            del self._by_nbma[key]
        for adjacency in peer.adjacencies.values():
            del self._by_adjacency[adjacency]

    def move(self, peer: Peer, nbma: Address) -> None:
        """The peer has another NBMA address."""
        self.remove(peer)
        peer.nbma = nbma
        self.add(peer)

    def bind_ike_sa(self, ike_sa: int, peer: Peer) -> None:
        """Events of this IKE SA are about `peer`."""
        self._by_ike_sa[ike_sa] = peer

    def unbind_ike_sa(self, ike_sa: int) -> None:
        """The IKE SA is gone."""
        self._by_ike_sa.pop(ike_sa, None)

    def by_ike_sa(self, ike_sa: int) -> Peer | None:
        """The peer of an IKE SA."""
        return self._by_ike_sa.get(ike_sa)

    def by_adjacency(self, adjacency: int) -> tuple[str, Peer] | None:
        """The tunnel and the peer of an adjacency."""
        return self._by_adjacency.get(adjacency)

    def at(self, profile: str | None, nbma: Address) -> Iterable[Peer]:
        """The peers at an NBMA address: more than one when they share a NAT."""
        return tuple(self._by_nbma.get((profile, nbma), ()))

    def for_caller(
        self,
        profile: str,
        nbma: Address,
        identity: str,
        claimed: Address | None,
        admits: Callable[[Peer], bool] = lambda _: True,
    ) -> Peer | None:
        """The known peer that an IKE SA which the other end initiated belongs to, or None for a new one. `admits` tells
        whether a peer that is only wanted may turn out to be the caller."""
        candidates = self.at(profile, nbma)
        for peer in candidates:
            if peer.identity == identity:
                return peer
        # A peer that is only wanted has no identity yet. Behind a NAT that several share, the address that the caller
        # claims for itself must be the one that the mapping gave; a mapping that gave none comes last.
        for peer in sorted(candidates, key=lambda peer: peer.private_nbma is None):
            if peer.identity is None and admits(peer) and _same_host(peer.private_nbma, claimed, nbma):
                return peer
        return None

    def for_mapping(self, profile: str | None, nbma: Address, private_nbma: Address | None) -> Peer | None:
        """The known peer at which a mapping points, or None for a new one. `private_nbma` None: any host there."""
        candidates = self.at(profile, nbma)
        for peer in candidates:
            if _same_host(peer.private_nbma, private_nbma, nbma):
                return peer
        return None


def _same_host(known: Address | None, claimed: Address | None, nbma: Address) -> bool:
    return (known or nbma) == (claimed or nbma) or known is None or claimed is None
