"""Which adjacencies lead to which NBMA addresses."""

from __future__ import annotations

from dsvpn.addresses import Address


class PeerTable:
    """Peers (adjacency ids) and the public NBMA address behind which each one is.

    Several peers may share an address: spokes behind one NAT.
    """

    def __init__(self) -> None:
        self._nbma: dict[int, Address] = {}
        self._peers: dict[Address, list[int]] = {}
        #: Peers that are at the address of a server by accident: behind its NAT.
        self._others: set[int] = set()

    def add(self, nbma: Address, peer: int) -> Address | None:
        """A peer is up; gives the address that it had before when it moved."""
        before = self._nbma.get(peer)
        if before == nbma:
            return None
        if before is not None:
            self.remove(peer)
        self._nbma[peer] = nbma
        self._peers.setdefault(nbma, []).append(peer)
        return before

    def remove(self, peer: int) -> Address | None:
        """A peer is gone; gives the address that it had."""
        nbma = self._nbma.pop(peer, None)
        self._others.discard(peer)
        if nbma is not None:
            others = self._peers[nbma]
            others.remove(peer)
            if not others:
                del self._peers[nbma]
        return nbma

    def nbma(self, peer: int) -> Address | None:
        """The NBMA address of a peer."""
        return self._nbma.get(peer)

    def at(self, nbma: Address) -> int | None:
        """The peer at an NBMA address; the one that came up last where several share it."""
        peers = self._peers.get(nbma)
        return peers[-1] if peers else None

    def set_server(self, peer: int, server: bool) -> None:
        """Whether a peer is the gateway that the configuration means by its NBMA address, should it mean one."""
        if server:
            self._others.discard(peer)
        else:
            self._others.add(peer)

    def is_server(self, peer: int) -> bool:
        """Whether a peer may be the server at its address."""
        return peer not in self._others

    def server_at(self, nbma: Address) -> int | None:
        """As `at`, for a server that the configuration names: nobody else who shares its address."""
        return next((peer for peer in reversed(self._peers.get(nbma, ())) if peer not in self._others), None)

    def __contains__(self, peer: int) -> bool:
        return peer in self._nbma
