//! A packet through one adjacency: single, cut to fragments, or a superpacket segment by segment.

use std::cell::Cell;
use std::ops::Range;

use dsvpn_wire::ip::{IpPacket, protocol};
use dsvpn_wire::{gre, tcp, virtio};

use super::{Encap, Vector, is_syn, max_segment};
use crate::counters::Counter;
use crate::fragment::Fragments;
use crate::prefetch::Prefetch;
use crate::sa::OutboundSa;
use crate::segment::{Superpacket, checksum_fits, complete_checksum};
use crate::tables::{Adjacency, Tables};
use crate::vector::{Encapsulation, PacketMeta};

/// Another worker has the key.
struct NotOurTurn;

/// The adjacency that a packet goes through, and the SA that seals it there.
#[derive(Clone, Copy)]
struct Way<'t> {
    adjacency: &'t Adjacency,
    sa: Option<&'t OutboundSa>,
}

/// A packet as it came from the TUN: its octets, what was read of them, and its virtio header.
#[derive(Clone, Copy)]
pub(super) struct Inner<'a> {
    pub(super) octets: &'a [u8],
    pub(super) packet: &'a IpPacket,
    pub(super) meta: &'a PacketMeta,
}

impl<P: Prefetch> Encap<P> {
    /// Send a packet or superpacket through an adjacency. `Some(segment)`: the arena is full or another worker has the
    /// key, that segment comes next.
    #[inline]
    pub(super) fn transmit<'t>(
        &mut self,
        vector: &mut Vector<'t, '_>,
        adjacency: &'t Adjacency,
        inner: Inner<'_>,
        segment: u32,
    ) -> Option<u32> {
        let sa = if self.turns.is_none() {
            adjacency.outbound.as_deref()
        } else {
            match self.outbound_in_turn(vector.tables, adjacency) {
                Ok(sa) => sa,
                Err(NotOurTurn) => return Some(segment),
            }
        };
        if sa.is_none() && adjacency.encapsulation != Encapsulation::Gre {
            self.tally.add(Counter::DropNoSa, 1);
            return None;
        }
        let way = Way { adjacency, sa };
        if inner.meta.virtio.gso_type == virtio::GSO_NONE {
            self.transmit_single(vector, way, inner)
        } else {
            self.transmit_superpacket(vector, way, inner, segment)
        }
    }

    /// What one of several workers seals with. Out of the way of who encapsulates alone.
    #[inline(never)]
    fn outbound_in_turn<'t>(
        &mut self,
        tables: &'t Tables,
        adjacency: &'t Adjacency,
    ) -> Result<Option<&'t OutboundSa>, NotOurTurn> {
        let Some(turns) = &mut self.turns else { return Ok(adjacency.outbound.as_deref()) };
        match tables.outbound(adjacency, turns.resource()) {
            Some(sa) if !turns.take(&sa.key) => Err(NotOurTurn),
            sa => Ok(sa),
        }
    }

    #[inline]
    fn transmit_single<'t>(&mut self, vector: &mut Vector<'t, '_>, way: Way<'t>, inner: Inner<'_>) -> Option<u32> {
        let Inner { octets, packet, meta } = inner;
        let length = octets.len();
        if length > way.adjacency.mtu() {
            return self.transmit_large(vector, way, inner);
        }
        if vector.output.room(way.adjacency, way.sa, length) == 0 {
            return Some(0);
        }
        let needs_checksum = meta.virtio.flags & virtio::NEEDS_CSUM != 0;
        let clamp = vector.tunnel.config.mss_clamp && is_syn(packet, octets);
        if !needs_checksum && !clamp {
            self.send_many(vector, way, packet, 0..1, |_| length, |_, place| place.copy_from_slice(octets));
            return None;
        }
        if needs_checksum && !checksum_fits(packet, &meta.virtio) {
            self.tally.add(Counter::DropMalformedVirtio, 1);
            return None;
        }
        let clamped = Cell::new(false);
        self.send_many(
            vector,
            way,
            packet,
            0..1,
            |_| length,
            |_, place| {
                place.copy_from_slice(octets);
                // First the checksum: the clamp corrects a complete one by the difference.
                if needs_checksum {
                    complete_checksum(place, packet, &meta.virtio);
                }
                if clamp {
                    clamped.set(tcp::clamp_mss(&mut place[packet.header_length..], max_segment(way.adjacency, packet)));
                }
            },
        );
        self.tally.add(Counter::MssClamped, u64::from(clamped.get()));
        None
    }

    /// A packet larger than the adjacency's MTU: fragments, or an ICMP error.
    #[cold]
    fn transmit_large<'t>(&mut self, vector: &mut Vector<'t, '_>, way: Way<'t>, inner: Inner<'_>) -> Option<u32> {
        let Inner { octets, packet, meta } = inner;
        if packet.dont_fragment {
            self.answer_too_big(vector, way.adjacency, packet, octets);
            return None;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(octets);
        let needs_checksum = meta.virtio.flags & virtio::NEEDS_CSUM != 0;
        let full = if needs_checksum && !checksum_fits(packet, &meta.virtio) {
            self.tally.add(Counter::DropMalformedVirtio, 1);
            None
        } else {
            if needs_checksum {
                complete_checksum(&mut scratch, packet, &meta.virtio);
            }
            self.transmit_fragments(vector, way, &scratch, packet)
        };
        self.scratch = scratch;
        full
    }

    fn transmit_fragments<'t>(
        &mut self,
        vector: &mut Vector<'t, '_>,
        way: Way<'t>,
        octets: &[u8],
        packet: &IpPacket,
    ) -> Option<u32> {
        let mtu = way.adjacency.mtu();
        let Some(fragments) = Fragments::new(octets, packet, mtu) else {
            self.tally.add(Counter::DropTooBig, 1);
            return None;
        };
        // All or none: the fragments of one packet are not sent apart.
        if vector.output.room(way.adjacency, way.sa, mtu) < fragments.count() as usize {
            return Some(0);
        }
        self.tally.add(Counter::Fragmented, 1);
        let count = fragments.count();
        self.send_many(
            vector,
            way,
            packet,
            0..count,
            |index| fragments.length(index),
            |index, place| {
                fragments.write(index, place);
            },
        );
        None
    }

    fn transmit_superpacket<'t>(
        &mut self,
        vector: &mut Vector<'t, '_>,
        way: Way<'t>,
        inner: Inner<'_>,
        segment: u32,
    ) -> Option<u32> {
        let Inner { octets, packet, meta } = inner;
        let Ok(mut superpacket) = Superpacket::parse(octets, packet, &meta.virtio) else {
            self.tally.add(Counter::DropMalformedVirtio, 1);
            return None;
        };
        let mtu = way.adjacency.mtu();
        if superpacket.largest() > mtu {
            if packet.dont_fragment {
                self.answer_too_big(vector, way.adjacency, packet, octets);
                return None;
            }
            if packet.protocol == protocol::UDP {
                return self.transmit_large_datagrams(vector, way, &superpacket, segment);
            }
            let Some(size) = mtu.checked_sub(superpacket.headers()).filter(|size| *size > 0) else {
                self.tally.add(Counter::DropTooBig, 1);
                return None;
            };
            superpacket.shrink(size);
        }
        let fit = vector.output.room(way.adjacency, way.sa, superpacket.largest()).min(u32::MAX as usize) as u32;
        let end = superpacket.count().min(segment.saturating_add(fit));
        if segment < end {
            let length = |index| superpacket.length(index);
            self.send_many(vector, way, packet, segment..end, length, |index, place| {
                superpacket.write(index, place);
            });
        }
        (end < superpacket.count()).then_some(end)
    }

    /// UDP datagrams of a superpacket that are each larger than the MTU, without DF.
    #[cold]
    fn transmit_large_datagrams<'t>(
        &mut self,
        vector: &mut Vector<'t, '_>,
        way: Way<'t>,
        superpacket: &Superpacket<'_>,
        segment: u32,
    ) -> Option<u32> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut full = None;
        for index in segment..superpacket.count() {
            scratch.clear();
            scratch.resize(superpacket.length(index), 0);
            superpacket.write(index, &mut scratch);
            let Ok(packet) = IpPacket::parse(&scratch) else {
                break;
            };
            if self.transmit_fragments(vector, way, &scratch, &packet).is_some() {
                full = Some(index);
                break;
            }
        }
        self.scratch = scratch;
        full
    }

    /// Send datagrams for which there is room, with sequence numbers reserved for all of them at once.
    #[inline]
    fn send_many<'t>(
        &mut self,
        vector: &mut Vector<'t, '_>,
        way: Way<'t>,
        packet: &IpPacket,
        indices: Range<u32>,
        length: impl Fn(u32) -> usize,
        fill: impl Fn(u32, &mut [u8]),
    ) {
        let Way { adjacency, sa } = way;
        let wanted = indices.end - indices.start;
        let (first, granted) = sa.map_or((0, wanted), |sa| sa.reserve(wanted));
        if granted < wanted {
            self.tally.add(Counter::DropSequenceExhausted, u64::from(wanted - granted));
        }
        let tos = if adjacency.copy_dscp() { packet.tos & 0xfc } else { 0 };
        let protocol = if packet.version == 4 { gre::IPV4 } else { gre::IPV6 };
        let (mut inner_octets, mut outer_octets) = (0, 0);
        for (number, index) in (indices.start..indices.start + granted).enumerate() {
            let inner = length(index);
            let seal = sa.map(|sa| (sa, first + number as u64));
            outer_octets += vector.output.emit(adjacency, seal, tos, protocol, inner, |place| fill(index, place));
            inner_octets += inner;
        }
        vector.run.count(adjacency, sa, u64::from(granted), inner_octets as u64, vector.now_ns);
        self.tally.add(Counter::UnderlayTxPackets, u64::from(granted));
        self.tally.add(Counter::UnderlayTxOctets, outer_octets as u64);
    }
}
