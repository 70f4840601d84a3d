//! What the datagrams of a vector lead to, asked for ahead of their turn.

use std::marker::PhantomData;

use dsvpn_wire::read_u32;

use crate::prefetch::{Ahead, Prefetch};
use crate::sa::InboundSa;
use crate::tables::Tables;
use crate::vector::{Datagram, DatagramKind};

/// Looks at datagrams before their turn, a group of them one step of the way from SPI to key and adjacency at a time, so
/// that memory is waited for by many datagrams together and while others are forwarded.
///
/// It decides nothing: the datagram's turn does. Of datagrams that UDP_GRO joined only the first is looked at.
pub(super) struct Lookahead<'t, P> {
    tables: &'t Tables,
    ahead: Ahead<Entry<'t>>,
    prefetch: PhantomData<P>,
}

impl<'t, P: Prefetch> Lookahead<'t, P> {
    /// `None`: the tables stay in the caches, or there is nothing to be ahead of.
    pub(super) fn new(tables: &'t Tables, datagrams: usize) -> Option<Self> {
        if tables.are_small() {
            return None;
        }
        Ahead::new(datagrams).map(|ahead| Self { tables, ahead, prefetch: PhantomData })
    }

    /// The datagram `index` has its turn. They come one after the other, from the first.
    #[inline]
    pub(super) fn turn(&mut self, arena: &[u8], datagrams: &[Datagram], index: usize) {
        let tables = self.tables;
        let find = |first: usize, group: &mut [Entry<'t>]| find::<P>(tables, arena, &datagrams[first..], group);
        let ask = |at: usize, entry: &mut Entry<'t>, before: Option<&Entry<'t>>| {
            if before.is_none_or(|before| before.spi != entry.spi) {
                entry.ask_for_key::<P>(tables, datagrams[at].length as usize);
            }
        };
        self.ahead.turn(index, datagrams.len(), find, ask);
    }
}

#[derive(Clone, Copy, Default)]
struct Entry<'t> {
    /// SPI and sequence number; an SPI of 0 is none.
    spi: u32,
    sequence: u32,
    sa: Option<&'t InboundSa>,
}

impl Entry<'_> {
    #[inline]
    fn ask_for_key<P: Prefetch>(&self, tables: &Tables, packet: usize) {
        // What carries another's SPI is dropped in its turn; it shall not cost memory traffic.
        if let Some(sa) = self.sa.filter(|sa| sa.spi == self.spi) {
            sa.prefetch::<P>(self.sequence, packet);
            tables.prefetch_adjacency::<P>(sa.first_adjacency);
        }
    }
}

/// Find the SAs of the next datagrams, as many as the group has entries, and ask for what lies before their keys.
fn find<'t, P: Prefetch>(tables: &'t Tables, arena: &[u8], datagrams: &[Datagram], group: &mut [Entry<'t>]) {
    for (entry, datagram) in group.iter_mut().zip(datagrams) {
        *entry = Entry::default();
        let start = datagram.offset as usize;
        if let DatagramKind::UdpNat | DatagramKind::Esp = datagram.kind
            && let Some(header) = arena.get(start..start.saturating_add(8))
        {
            (entry.spi, entry.sequence) = (read_u32(header, 0), read_u32(header, 4));
            tables.prefetch_spi::<P>(entry.spi);
        }
    }
    for entry in group {
        entry.sa = tables.slot_of_spi(entry.spi);
        if let Some(sa) = entry.sa {
            sa.prefetch_head::<P>();
        }
    }
}
