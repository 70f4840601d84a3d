"""The stages behind the FIB: next hop to adjacency, and GRE headers."""

from __future__ import annotations

import numpy as np
import pytest

import dsvpn_native
from tests.native.network import KEYMAT


def test_next_hops_lead_to_the_outbound_sa() -> None:
    plane = dsvpn_native.MemoryForwarder()
    tunnel = plane.add_tunnel()
    for adjacency in (5, 6):
        plane.set_adjacency(adjacency, tunnel, "udp", "192.0.2.1", f"192.0.2.{adjacency}", 4500, 1400)
    plane.set_outbound_sa(0x1234, "aes128gcm16", KEYMAT["aes128gcm16"], [5], False)
    for next_hop, target in ((1, 5), (2, 6), (3, None)):
        plane.set_next_hop(next_hop, target, False)
    plane.commit()
    spis = np.full(5, 7, dtype=np.uint32)
    plane.lookup_adjacencies(np.array([1, 2, 3, 4, 1], dtype=np.uint32), spis)
    # Without an SA, without an adjacency, and a next hop that there is not: 0.
    assert spis.tolist() == [0x1234, 0, 0, 0, 0x1234]
    with pytest.raises(ValueError, match="one entry per next hop"):
        plane.lookup_adjacencies(np.zeros(2, dtype=np.uint32), spis)


@pytest.mark.parametrize(("key", "header"), [(None, "00000800"), (42, "200008000000002a")])
def test_gre_headers_round_trip(key: int | None, header: str) -> None:
    octets = bytes.fromhex(header)
    arena = np.full(40, 0xFF, dtype=np.uint8)
    dsvpn_native.write_gre(arena, np.array([4, 24], dtype=np.uint32), key=key, protocol=0x0800)
    for at in (4, 24):
        assert arena[at : at + len(octets)].tobytes() == octets
    lengths = np.zeros(3, dtype=np.uint32)
    # Whole, cut short, and one that is no GRE header.
    records = np.array([[4, 16], [24, len(octets) - 1], [0, 4]], dtype=np.uint32)
    dsvpn_native.parse_gre(arena, records, lengths)
    assert lengths.tolist() == [len(octets), 0, 0]


def test_records_beyond_the_arena_are_refused() -> None:
    arena = np.zeros(10, dtype=np.uint8)
    with pytest.raises(ValueError, match="row 1 goes beyond"):
        dsvpn_native.write_gre(arena, np.array([0, 8], dtype=np.uint32), key=None, protocol=0x0800)
    with pytest.raises(ValueError, match="row 0 goes beyond"):
        dsvpn_native.parse_gre(arena, np.array([[4, 7]], dtype=np.uint32), np.zeros(1, dtype=np.uint32))
