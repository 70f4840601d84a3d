//! Where the packets of a vector go, looked up ahead of their turn.

use dsvpn_wire::ip::read_u128;
use dsvpn_wire::read_u32;

use crate::prefetch::{Ahead, DISTANCE, Prefetch, ask};
use crate::tables::{Adjacency, Tables, Tunnel};
use crate::vector::PacketMeta;

/// Where a packet goes.
#[derive(Clone, Copy, Default)]
pub(super) struct Resolved<'t> {
    pub(super) next_hop: Option<u32>,
    pub(super) adjacency: Option<&'t Adjacency>,
    pub(super) resolve: bool,
}

/// Where packets to an address go.
pub(super) fn resolve<'t>(tables: &'t Tables, tunnel: &Tunnel, version: u8, destination: u128) -> Resolved<'t> {
    let next_hop = look_up(tunnel, version, destination);
    let hop = next_hop.map(|id| tables.next_hop(id)).unwrap_or_default();
    Resolved { next_hop, adjacency: hop.adjacency.and_then(|id| tables.adjacency(id)), resolve: hop.resolve }
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
/// packets are looked at before their turn, one step of the way from destination to key at a time, so that memory is
/// waited for by many packets together and while others are forwarded.
pub(super) struct Lookahead<'t, 'p> {
    tables: &'t Tables,
    tunnel: &'t Tunnel,
    arena: &'p [u8],
    packets: &'p [PacketMeta],
    last: Last<'t>,
    prefetch: Prefetch,
    ahead: Option<Ahead<Entry<'t>, STEPS, RING>>,
}

impl<'t, 'p> Lookahead<'t, 'p> {
    #[inline]
    pub(super) fn new(
        tables: &'t Tables,
        tunnel: &'t Tunnel,
        arena: &'p [u8],
        packets: &'p [PacketMeta],
        prefetch: Prefetch,
    ) -> Self {
        let last = Last { destination: NOWHERE, resolved: Resolved::default() };
        let ahead = if tables.are_small() { None } else { Ahead::new(packets.len()) };
        Self { tables, tunnel, arena, packets, last, prefetch, ahead }
    }

    /// Where the packet `index` goes. They are asked for one after the other, from the first.
    #[inline]
    pub(super) fn next(&mut self, index: usize) -> Resolved<'t> {
        if let Some(ahead) = &mut self.ahead {
            let (tables, tunnel, prefetch) = (self.tables, self.tunnel, self.prefetch);
            let step = |step, at: usize, entry: &mut Entry<'t>, before: Option<&Entry<'t>>| match step {
                0 => entry.read_destination(tunnel, self.arena, &self.packets[at], before, prefetch),
                1 => entry.look_up(tables, tunnel, prefetch),
                2 => entry.follow_next_hop(tables, prefetch),
                3 => entry.find_adjacency(tables, before, prefetch),
                _ => entry.ask_for_key(&self.packets[at], prefetch),
            };
            return ahead.turn(index, self.packets.len(), step).resolved;
        }
        let destination = destination_of(self.arena, &self.packets[index]);
        if destination != self.last.destination {
            let resolved = resolve(self.tables, self.tunnel, destination.0, destination.1);
            self.last = Last { destination, resolved };
        }
        self.last.resolved
    }
}

/// Steps before a packet's turn.
const STEPS: usize = 5;
/// Packets that are under way or have their turn.
const RING: usize = ((STEPS + 1) * DISTANCE).next_power_of_two();

#[derive(Clone, Copy, Default)]
struct Entry<'t> {
    destination: (u8, u128),
    /// It goes where the one before it goes.
    repeated: bool,
    hop: Option<u32>,
    resolved: Resolved<'t>,
}

impl<'t> Entry<'t> {
    #[inline]
    fn read_destination(
        &mut self,
        tunnel: &Tunnel,
        arena: &[u8],
        packet: &PacketMeta,
        before: Option<&Self>,
        prefetch: Prefetch,
    ) {
        let destination = destination_of(arena, packet);
        let repeated = before.is_some_and(|before| before.destination == destination);
        *self = Self { destination, repeated, ..Self::default() };
        if !repeated {
            match destination.0 {
                4 => tunnel.v4.prefetch(prefetch, destination.1 as u32),
                _ => tunnel.v6.prefetch(prefetch, destination.1),
            }
        }
    }

    #[inline]
    fn look_up(&mut self, tables: &Tables, tunnel: &Tunnel, prefetch: Prefetch) {
        let (version, destination) = self.destination;
        if self.repeated || version == NOWHERE.0 {
            return;
        }
        self.resolved.next_hop = look_up(tunnel, version, destination);
        if let Some(next_hop) = self.resolved.next_hop {
            tables.prefetch_next_hop(prefetch, next_hop);
        }
    }

    #[inline]
    fn follow_next_hop(&mut self, tables: &Tables, prefetch: Prefetch) {
        // A repeated packet has none: it gets all at the next step.
        let hop = self.resolved.next_hop.map(|id| tables.next_hop(id)).unwrap_or_default();
        self.resolved.resolve = hop.resolve;
        self.hop = hop.adjacency;
        if let Some(adjacency) = hop.adjacency {
            tables.prefetch_adjacency(prefetch, adjacency);
        }
    }

    #[inline]
    fn find_adjacency(&mut self, tables: &'t Tables, before: Option<&Self>, prefetch: Prefetch) {
        if let Some(before) = before.filter(|_| self.repeated) {
            self.resolved = before.resolved;
            return;
        }
        self.resolved.adjacency = self.hop.and_then(|id| tables.adjacency(id));
        if let Some(adjacency) = self.resolved.adjacency {
            ask(prefetch, adjacency);
        }
    }

    #[inline]
    fn ask_for_key(&self, packet: &PacketMeta, prefetch: Prefetch) {
        if let Some(adjacency) = self.resolved.adjacency
            && !self.repeated
        {
            adjacency.prefetch_outward(prefetch, packet.length as usize);
        }
    }
}

/// What no packet has as its version and destination.
const NOWHERE: (u8, u128) = (0, 0);

/// Version and destination of a packet; [`NOWHERE`] for what is none.
#[inline]
fn destination_of(arena: &[u8], meta: &PacketMeta) -> (u8, u128) {
    let start = meta.offset as usize;
    let Some(octets) = arena.get(start..start.saturating_add(meta.length as usize)) else { return NOWHERE };
    match octets.first().map(|first| first >> 4) {
        Some(4) if octets.len() >= 20 => (4, u128::from(read_u32(octets, 16))),
        Some(6) if octets.len() >= 40 => (6, read_u128(octets, 24)),
        _ => NOWHERE,
    }
}
