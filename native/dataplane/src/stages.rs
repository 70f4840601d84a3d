//! Single stages over packet vectors, for benches and tests; a gateway runs them inside [`crate::Encap`] and
//! [`crate::Decap`].

use dsvpn_wire::ip::IpPacket;

use crate::coalesce::{Coalescer, Incoming};
use crate::tables::{Adjacency, Tables};
use crate::vector::{PacketMeta, Slice, TunBatch, TunPacket};

/// The merging stage of decapsulation: packets in the order they came, each a single IP packet. What is not a sound
/// IP packet is left out. Headers of merged packets are rewritten in `arena`.
pub fn coalesce(arena: &mut [u8], packets: &[PacketMeta], verify: bool, out: &mut TunBatch) {
    let mut coalescer = Coalescer::new();
    for meta in packets {
        let start = meta.offset as usize;
        let octets = arena.get(start..start.saturating_add(meta.length as usize)).unwrap_or_default();
        if let Ok(packet) = IpPacket::parse(octets) {
            coalescer.add(arena, &Incoming { tunnel: 0, offset: start, packet, front: false, merge: true, verify });
        }
    }
    coalescer.finish(arena, out);
}

/// The segmentation of superpackets, as for a TUN that refuses them. `give` gets every packet behind a virtio header
/// of zeros; a single packet is given as it is.
pub fn segment(arena: &[u8], packets: &[PacketMeta], mut give: impl FnMut(&[u8])) {
    let mut batch = TunBatch::default();
    let mut scratch = Vec::new();
    for meta in packets {
        batch.clear();
        batch.headers.extend_from_slice(&meta.virtio.to_octets());
        batch.slices.push(Slice { offset: meta.offset, length: meta.length });
        let header_length = batch.headers.len() as u32;
        let packet = TunPacket {
            header_length,
            slice_count: 1,
            length: header_length.saturating_add(meta.length),
            segments: 1,
            ..TunPacket::default()
        };
        batch.packets.push(packet);
        batch.split(arena, &packet, &mut scratch, &mut give);
    }
}

/// The adjacency that a next hop follows, as encapsulation finds it behind the FIB.
#[inline]
pub fn adjacency(tables: &Tables, next_hop: u32) -> Option<&Adjacency> {
    tables.adjacency(tables.next_hop(next_hop).adjacency()?)
}
