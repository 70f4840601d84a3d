//! What the datagrams of a vector lead to, asked for ahead of their turn.

use dsvpn_wire::read_u32;

use crate::prefetch::{Ahead, DISTANCE, Prefetch, ask};
use crate::sa::InboundSa;
use crate::tables::{Adjacency, Tables};
use crate::vector::{Datagram, DatagramKind};

/// Steps before a datagram's turn.
const STEPS: usize = 5;
/// Datagrams that are under way or have their turn.
const RING: usize = ((STEPS + 1) * DISTANCE).next_power_of_two();

/// Looks at datagrams before their turn, one step of the way from SPI to key and adjacency at a time, so that memory is
/// waited for by many datagrams together and while others are forwarded.
///
/// It decides nothing: the datagram's turn does. Of datagrams that UDP_GRO joined only the first is looked at.
pub(super) struct Lookahead<'t> {
    tables: &'t Tables,
    prefetch: Prefetch,
    ahead: Ahead<Entry<'t>, STEPS, RING>,
}

impl<'t> Lookahead<'t> {
    /// `None`: the tables stay in the caches, or there is nothing to be ahead of.
    pub(super) fn new(tables: &'t Tables, datagrams: usize, prefetch: Prefetch) -> Option<Self> {
        if tables.are_small() {
            return None;
        }
        Ahead::new(datagrams).map(|ahead| Self { tables, prefetch, ahead })
    }

    /// The datagram `index` has its turn. They come one after the other, from the first.
    #[inline]
    pub(super) fn turn(&mut self, arena: &[u8], datagrams: &[Datagram], index: usize) {
        let (tables, prefetch) = (self.tables, self.prefetch);
        let step = |step, at: usize, entry: &mut Entry<'t>, _: Option<&Entry<'t>>| match step {
            0 => entry.read_spi(tables, arena, &datagrams[at], prefetch),
            1 => entry.find_sa(tables, prefetch),
            2 => entry.ask_for_key(tables, &datagrams[at], prefetch),
            3 => entry.find_adjacency(tables, prefetch),
            _ => entry.ask_for_counters(prefetch),
        };
        self.ahead.turn(index, datagrams.len(), step);
    }
}

#[derive(Clone, Copy, Default)]
struct Entry<'t> {
    /// SPI and sequence number; an SPI of 0 is none.
    spi: u32,
    sequence: u32,
    sa: Option<&'t InboundSa>,
    adjacency: Option<&'t Adjacency>,
}

impl<'t> Entry<'t> {
    #[inline]
    fn read_spi(&mut self, tables: &Tables, arena: &[u8], datagram: &Datagram, prefetch: Prefetch) {
        *self = Self::default();
        let start = datagram.offset as usize;
        if let DatagramKind::UdpNat | DatagramKind::Esp = datagram.kind
            && let Some(header) = arena.get(start..start.saturating_add(8))
        {
            (self.spi, self.sequence) = (read_u32(header, 0), read_u32(header, 4));
            tables.prefetch_spi(prefetch, self.spi);
        }
    }

    #[inline]
    fn find_sa(&mut self, tables: &'t Tables, prefetch: Prefetch) {
        self.sa = tables.slot_of_spi(self.spi);
        if let Some(sa) = self.sa {
            sa.prefetch_head(prefetch);
        }
    }

    #[inline]
    fn ask_for_key(&mut self, tables: &Tables, datagram: &Datagram, prefetch: Prefetch) {
        // What carries another's SPI is dropped in its turn; it shall not cost memory traffic.
        self.sa = self.sa.filter(|sa| sa.spi == self.spi);
        if let Some(sa) = self.sa {
            sa.prefetch(prefetch, self.sequence, datagram.length as usize);
            tables.prefetch_adjacency(prefetch, sa.first_adjacency);
        }
    }

    #[inline]
    fn find_adjacency(&mut self, tables: &'t Tables, prefetch: Prefetch) {
        self.adjacency = self.sa.and_then(|sa| tables.adjacency(sa.first_adjacency));
        if let Some(adjacency) = self.adjacency {
            ask(prefetch, adjacency);
        }
    }

    #[inline]
    fn ask_for_counters(&self, prefetch: Prefetch) {
        if let Some(adjacency) = self.adjacency {
            adjacency.prefetch_inward(prefetch);
        }
    }
}
