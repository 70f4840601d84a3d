//! The mutable state of SAs and adjacencies, which both copies of the tables share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::aead::Cipher;
use crate::prefetch::{KeyPlace, Prefetch, ask};
use crate::replay::{ReplayWindow, WordsPlace};

/// An outbound SA: what seals, and the sequence numbers that it has given out.
///
/// What every packet writes or reads lies in its first cache line, before the key.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct OutboundSa {
    /// The peer's SPI.
    pub spi: u32,
    /// Whether sequence numbers have 64 bits.
    pub esn: bool,
    next: AtomicU64,
    /// The SA with the same key that counts instead of this one.
    counting: Option<Arc<OutboundSa>>,
    packets: AtomicU64,
    octets: AtomicU64,
    /// Where `next` goes when this SA does.
    rest: Arc<AtomicU64>,
    /// Key and salt.
    pub cipher: Cipher,
}

impl OutboundSa {
    /// An SA that begins at the sequence number in `rest`, and leaves its next one there when it is dropped.
    pub(crate) fn new(spi: u32, cipher: Cipher, esn: bool, rest: Arc<AtomicU64>) -> Self {
        let next = AtomicU64::new(rest.load(Ordering::Relaxed));
        let (packets, octets) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { spi, esn, cipher, next, counting: None, rest, packets, octets }
    }

    /// An SA with the key of another, with which it shares the sequence numbers.
    pub(crate) fn counted_by(other: Arc<OutboundSa>, spi: u32, cipher: Cipher, esn: bool) -> Self {
        let mut sa = Self::new(spi, cipher, esn, Arc::clone(&other.rest));
        sa.counting = Some(other);
        sa
    }

    #[inline]
    fn next(&self) -> &AtomicU64 {
        self.counting.as_ref().map_or(&self.next, |counting| &counting.next)
    }

    /// Reserve sequence numbers: the first, and how many of `count` there are. They are never given out again.
    ///
    /// Without ESN the last one is 2^32 - 1 (RFC 4303 section 3.3.3).
    #[inline]
    pub fn reserve(&self, count: u32) -> (u64, u32) {
        let last = if self.esn { u64::MAX - (1 << 40) } else { u64::from(u32::MAX) };
        let first = self.next().fetch_add(u64::from(count), Ordering::Relaxed);
        let left = (last + 1).saturating_sub(first);
        (first, u64::from(count).min(left) as u32)
    }

    /// The sequence number that was given out last.
    pub fn sequence(&self) -> u64 {
        let last = if self.esn { u64::MAX } else { u64::from(u32::MAX) };
        (self.next().load(Ordering::Relaxed) - 1).min(last)
    }

    /// Pretend that `sequence` was given out last: a test reaches the end of the numbers with it.
    pub fn skip_to(&self, sequence: u64) {
        self.next().store(sequence + 1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, packets: u64, octets: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.octets.fetch_add(octets, Ordering::Relaxed);
    }

    /// What it has sent.
    pub fn counts(&self) -> OutboundSaCounts {
        OutboundSaCounts {
            spi: self.spi,
            packets: self.packets.load(Ordering::Relaxed),
            octets: self.octets.load(Ordering::Relaxed),
            sequence: self.sequence(),
        }
    }
}

impl Drop for OutboundSa {
    fn drop(&mut self) {
        if self.counting.is_none() {
            self.rest.store(self.next.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// Counters of an outbound SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundSaCounts {
    /// Its SPI.
    pub spi: u32,
    /// Packets sealed, NHRP included.
    pub packets: u64,
    /// Their inner octets.
    pub octets: u64,
    /// Last sequence number given out.
    pub sequence: u64,
}

/// An inbound SA: what opens, and what was seen.
///
/// What every packet writes or reads lies in its first cache lines, before the key.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct InboundSa {
    /// Our SPI.
    pub spi: u32,
    /// Whether sequence numbers have 64 bits.
    pub esn: bool,
    /// Locked once per run of packets of this SA.
    pub(crate) replay: Mutex<ReplayWindow>,
    packets: AtomicU64,
    octets: AtomicU64,
    /// The adjacencies whose packets it carries; the GRE key tells them apart.
    pub adjacencies: Box<[u32]>,
    /// The first of them, for looking ahead.
    pub(crate) first_adjacency: u32,
    key: KeyPlace,
    words: WordsPlace,
    /// Key and salt.
    pub cipher: Cipher,
    replayed: AtomicU64,
    unauthentic: AtomicU64,
}

impl InboundSa {
    /// An SA that has received nothing.
    pub fn new(spi: u32, cipher: Cipher, adjacencies: &[u32], esn: bool, replay_window: u32) -> Self {
        let replay = ReplayWindow::new(replay_window);
        Self {
            spi,
            esn,
            words: replay.place(),
            replay: Mutex::new(replay),
            packets: AtomicU64::new(0),
            octets: AtomicU64::new(0),
            adjacencies: adjacencies.into(),
            first_adjacency: adjacencies.first().copied().unwrap_or(u32::MAX),
            // Filled in where the key will stay.
            key: KeyPlace::default(),
            cipher,
            replayed: AtomicU64::new(0),
            unauthentic: AtomicU64::new(0),
        }
    }

    /// The same where it stays, with its own places known.
    pub(crate) fn shared(self) -> Arc<Self> {
        let mut sa = Arc::new(self);
        if let Some(sa) = Arc::get_mut(&mut sa) {
            sa.key = sa.cipher.key_place();
        }
        sa
    }

    /// Ask for what every packet needs before the key.
    #[inline]
    pub(crate) fn prefetch_head(&self, prefetch: Prefetch) {
        prefetch(std::ptr::from_ref(self).cast(), std::mem::offset_of!(Self, cipher));
    }

    /// Ask for what a packet of that many octets needs, by what the head tells.
    #[inline]
    pub(crate) fn prefetch(&self, prefetch: Prefetch, sequence: u32, packet: usize) {
        self.key.prefetch(prefetch, packet);
        self.words.prefetch(prefetch, sequence);
        ask(prefetch, &*self.adjacencies);
    }

    pub(crate) fn count(&self, run: &InboundSaCounts) {
        for (total, value) in [
            (&self.packets, run.packets),
            (&self.octets, run.octets),
            (&self.replayed, run.replayed),
            (&self.unauthentic, run.unauthentic),
        ] {
            if value != 0 {
                total.fetch_add(value, Ordering::Relaxed);
            }
        }
    }

    /// What it has received.
    pub fn counts(&self) -> InboundSaCounts {
        InboundSaCounts {
            packets: self.packets.load(Ordering::Relaxed),
            octets: self.octets.load(Ordering::Relaxed),
            replayed: self.replayed.load(Ordering::Relaxed),
            unauthentic: self.unauthentic.load(Ordering::Relaxed),
        }
    }
}

/// Counters of an inbound SA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboundSaCounts {
    /// Packets opened.
    pub packets: u64,
    /// Octets of their plaintexts.
    pub octets: u64,
    /// Packets that the replay window refused.
    pub replayed: u64,
    /// Packets whose ICV did not fit.
    pub unauthentic: u64,
}

/// Counters of one direction of an adjacency, alone in their cache line: each direction has its own worker.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct DirectionCounters {
    packets: AtomicU64,
    octets: AtomicU64,
    // Time of the last packet plus one, 0 for none.
    last_ns: AtomicU64,
}

impl DirectionCounters {
    pub(crate) fn count(&self, packets: u64, octets: u64, now_ns: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.octets.fetch_add(octets, Ordering::Relaxed);
        self.last_ns.store(now_ns.saturating_add(1), Ordering::Relaxed);
    }
}

/// Data packets of an adjacency, both ways. NHRP is not data.
#[derive(Debug, Default)]
pub(crate) struct AdjacencyCounters {
    pub(crate) inward: DirectionCounters,
    pub(crate) outward: DirectionCounters,
}

impl AdjacencyCounters {
    pub(crate) fn counts(&self) -> AdjacencyCounts {
        let last = |direction: &DirectionCounters| direction.last_ns.load(Ordering::Relaxed).checked_sub(1);
        AdjacencyCounts {
            packets_in: self.inward.packets.load(Ordering::Relaxed),
            octets_in: self.inward.octets.load(Ordering::Relaxed),
            packets_out: self.outward.packets.load(Ordering::Relaxed),
            octets_out: self.outward.octets.load(Ordering::Relaxed),
            last_in_ns: last(&self.inward),
            last_out_ns: last(&self.outward),
        }
    }
}

/// Counters of an adjacency: inner packets and octets, and when the last one passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdjacencyCounts {
    /// Data packets received.
    pub packets_in: u64,
    /// Their inner octets.
    pub octets_in: u64,
    /// Data packets sent.
    pub packets_out: u64,
    /// Their inner octets.
    pub octets_out: u64,
    /// Time of the last vector that received data, on the clock that `run` gets.
    pub last_in_ns: Option<u64>,
    /// The same for data sent.
    pub last_out_ns: Option<u64>,
}
