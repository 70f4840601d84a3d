"""Which CHILD_SAs are in use: those whose counters are worth reading.

The counters of adjacencies are read for every peer; those of SAs only where something moved, so that idle peers, the
most of a large network, cost one look each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dsvpn.gateway.peering import Peering
from dsvpn.gateway.peers import Peer
from dsvpn.ike.volume import Carried


class BusySa(NamedTuple):
    """A CHILD_SA of a peer that traffic came from or went to. `adjacency` is one that has it, `resource` the worker
    that seals with it, 0 for all others."""

    inbound_spi: int
    outbound_spi: int
    adjacency: int
    resource: int = 0


def busy_sas(peer: Peer, adjacency: int) -> list[BusySa]:
    """The CHILD_SAs that may have carried what an adjacency of `peer` counted."""
    workers = {spi: resource for resource, spi in peer.workers.items()}
    return [
        BusySa(child.inbound_spi, child.outbound_spi, adjacency, workers.get(child.inbound_spi, 0))
        for child in peer.children.values()
    ]


def note_carried(peering: Peering, carried: Mapping[BusySa, Carried], now: float) -> None:
    """Tell IKE what the CHILD_SAs have carried, and seal with one that the peer has used first."""
    for sa, counters in carried.items():
        peering.ike.note_carried(sa.inbound_spi, counters, now)
        found = peering.peers.by_adjacency(sa.adjacency)
        if found is not None and counters.packets_in and found[1].pending == sa.inbound_spi:
            peering.sealing.confirm(found[1])
