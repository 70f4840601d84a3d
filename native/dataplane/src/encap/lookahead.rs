//! Where the packets of a vector go, looked up ahead of their turn.

use std::marker::PhantomData;

use dsvpn_wire::ip::read_u128;
use dsvpn_wire::read_u32;

use crate::group::flow;
use crate::prefetch::{Ahead, GROUP, Prefetch};
use crate::tables::{Adjacency, NextHop, Tables, Tunnel};
use crate::vector::PacketMeta;

/// Where a packet goes.
#[derive(Clone, Copy, Default)]
pub(super) struct Resolved<'t> {
    pub(super) next_hop: Option<u32>,
    pub(super) adjacency: Option<&'t Adjacency>,
    pub(super) resolve: bool,
}

/// Where packets to an address go; of a group, where the first of its members leads.
pub(super) fn resolve<'t>(tables: &'t Tables, tunnel: &Tunnel, version: u8, destination: u128) -> Resolved<'t> {
    resolve_flow(tables, tunnel, version, destination, || 0).0
}

/// Where a packet goes, and whether that is for its flow alone and not for all packets to its destination.
#[inline]
fn resolve_flow<'t>(
    tables: &'t Tables,
    tunnel: &Tunnel,
    version: u8,
    destination: u128,
    flow: impl FnOnce() -> u64,
) -> (Resolved<'t>, bool) {
    let mut next_hop = look_up(tunnel, version, destination);
    let mut hop = next_hop.map(|id| tables.next_hop(id)).unwrap_or_default();
    let group = hop.group();
    if let Some(slot) = group {
        next_hop = tables.member(slot, flow());
        hop = next_hop.map(|id| tables.next_hop(id)).unwrap_or_default();
    }
    let adjacency = hop.adjacency().and_then(|id| tables.adjacency(id));
    (Resolved { next_hop, adjacency, resolve: hop.resolve() }, group.is_some())
}

#[inline]
fn look_up(tunnel: &Tunnel, version: u8, destination: u128) -> Option<u32> {
    if version == 4 { tunnel.v4.lookup(destination as u32) } else { tunnel.v6.lookup(destination) }
}

/// Where packets to one address go, kept from packet to packet.
struct Last<'t> {
    destination: (u8, u128),
    resolved: Resolved<'t>,
}

/// Tells of every packet of a vector, in their order, where it goes.
///
/// A packet to the destination of the one before it costs a comparison. Where the tables are larger than the caches,
/// packets are looked at before their turn, a group of them one step of the way from destination to key at a time, so
/// that memory is waited for by many packets together and while others are forwarded.
pub(super) struct Lookahead<'t, 'p, P> {
    tables: &'t Tables,
    tunnel: &'t Tunnel,
    arena: &'p [u8],
    packets: &'p [PacketMeta],
    /// Whose SAs the packets are sealed by.
    resource: u32,
    last: Last<'t>,
    ahead: Option<Ahead<Entry<'t>>>,
    prefetch: PhantomData<P>,
}

impl<'t, 'p, P: Prefetch> Lookahead<'t, 'p, P> {
    #[inline]
    pub(super) fn new(
        tables: &'t Tables,
        tunnel: &'t Tunnel,
        arena: &'p [u8],
        packets: &'p [PacketMeta],
        resource: u32,
    ) -> Self {
        let last = Last { destination: NOWHERE, resolved: Resolved::default() };
        let small = tables.are_small() && tunnel.is_small();
        let ahead = if small { None } else { Ahead::new(packets.len()) };
        Self { tables, tunnel, arena, packets, resource, last, ahead, prefetch: PhantomData }
    }

    /// Where the packet `index` goes. They are asked for one after the other, from the first.
    #[inline]
    pub(super) fn next(&mut self, index: usize) -> Resolved<'t> {
        let (tables, tunnel, arena, packets) = (self.tables, self.tunnel, self.arena, self.packets);
        let resource = self.resource;
        if let Some(ahead) = &mut self.ahead {
            let find =
                |first: usize, group: &mut [Entry<'t>]| find::<P>(tables, tunnel, arena, &packets[first..], group);
            let ask = |at: usize, entry: &mut Entry<'t>, before: Option<&Entry<'t>>| {
                entry.ask_for_key::<P>(tables, resource, packets[at].length as usize, before);
            };
            return ahead.turn(index, packets.len(), find, ask).resolved;
        }
        let destination = destination_of(arena, &packets[index]);
        if destination != self.last.destination {
            let of_packet = || flow(octets_of(arena, &packets[index]));
            let (resolved, of_flow) = resolve_flow(tables, tunnel, destination.0, destination.1, of_packet);
            if of_flow {
                return resolved;
            }
            self.last = Last { destination, resolved };
        }
        self.last.resolved
    }
}

#[derive(Clone, Copy, Default)]
struct Entry<'t> {
    /// The adjacency's id, which is known before its entry is there.
    hop: Option<u32>,
    resolved: Resolved<'t>,
}

impl<'t> Entry<'t> {
    /// Ask for what a packet of that many octets needs behind its adjacency.
    #[inline]
    fn ask_for_key<P: Prefetch>(&mut self, tables: &'t Tables, resource: u32, packet: usize, before: Option<&Self>) {
        if let Some(before) = before
            && before.hop == self.hop
        {
            self.resolved.adjacency = before.resolved.adjacency;
            return;
        }
        self.resolved.adjacency = self.hop.and_then(|id| tables.adjacency(id));
        if let Some(adjacency) = self.resolved.adjacency {
            adjacency.prefetch_outward::<P>(tables.outbound(adjacency, resource), packet);
        }
    }
}

/// Find where the next packets go, as many as the group has entries, and ask for their adjacencies.
fn find<P: Prefetch>(tables: &Tables, tunnel: &Tunnel, arena: &[u8], packets: &[PacketMeta], group: &mut [Entry<'_>]) {
    let mut destinations = [NOWHERE; GROUP];
    for ((index, entry), packet) in group.iter_mut().enumerate().zip(packets) {
        *entry = Entry::default();
        let destination = destination_of(arena, packet);
        destinations[index] = destination;
        // A packet to the destination of the one before it goes the same way.
        if index == 0 || destination != destinations[index - 1] {
            match destination.0 {
                4 => tunnel.v4.prefetch::<P>(destination.1 as u32),
                6 => tunnel.v6.prefetch::<P>(destination.1),
                _ => {}
            }
        }
    }
    let repeated = |index: usize| index > 0 && destinations[index] == destinations[index - 1];
    for (index, entry) in group.iter_mut().enumerate() {
        let (version, destination) = destinations[index];
        if version != NOWHERE.0 && !repeated(index) {
            entry.resolved.next_hop = look_up(tunnel, version, destination);
            if let Some(next_hop) = entry.resolved.next_hop {
                tables.prefetch_next_hop::<P>(next_hop);
            }
        }
    }
    let mut spread = None;
    for index in 0..group.len() {
        let mut hop = NextHop::default();
        if repeated(index) {
            group[index] = group[index - 1];
            if spread.is_none() {
                continue;
            }
        } else {
            hop = group[index].resolved.next_hop.map(|id| tables.next_hop(id)).unwrap_or_default();
            spread = hop.group();
        }
        let entry = &mut group[index];
        if let Some(slot) = spread {
            entry.resolved.next_hop = tables.member(slot, flow(octets_of(arena, &packets[index])));
            hop = entry.resolved.next_hop.map(|id| tables.next_hop(id)).unwrap_or_default();
        }
        (entry.hop, entry.resolved.resolve) = (hop.adjacency(), hop.resolve());
        if let Some(adjacency) = entry.hop {
            tables.prefetch_adjacency::<P>(adjacency);
        }
    }
}

/// What no packet has as its version and destination.
const NOWHERE: (u8, u128) = (0, 0);

/// Version and destination of a packet; [`NOWHERE`] for what is none.
#[inline]
fn destination_of(arena: &[u8], meta: &PacketMeta) -> (u8, u128) {
    let octets = octets_of(arena, meta);
    match octets.first().map(|first| first >> 4) {
        Some(4) if octets.len() >= 20 => (4, u128::from(read_u32(octets, 16))),
        Some(6) if octets.len() >= 40 => (6, read_u128(octets, 24)),
        _ => NOWHERE,
    }
}

/// The octets of a packet; none for what lies outside of the arena.
#[inline]
fn octets_of<'p>(arena: &'p [u8], meta: &PacketMeta) -> &'p [u8] {
    let start = meta.offset as usize;
    arena.get(start..start.saturating_add(meta.length as usize)).unwrap_or_default()
}
