//! The mutable state of SAs and adjacencies, which both copies of the tables share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::aead::Cipher;
use crate::esp::Shape;
use crate::kernel::GcmKey;
use crate::prefetch::{Prefetch, ask, ask_lines};
use crate::replay::ReplayWindow;
use crate::turn::KeyUse;

/// Where the kernel's key lies in an SA: at the beginning of a cache line, behind what else every packet needs.
const OUTBOUND_KEY: usize = 64;
const INBOUND_KEY: usize = 128;

/// An outbound SA: what seals, and the sequence numbers that it has given out.
///
/// What every packet writes or reads lies in its first cache line, before the key.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct OutboundSa {
    next: AtomicU64,
    // Data, which NHRP is not.
    packets: AtomicU64,
    octets: AtomicU64,
    // Time of the last packet plus one, 0 for none.
    last_ns: AtomicU64,
    /// The peer's SPI.
    pub spi: u32,
    /// Whether sequence numbers have 64 bits.
    pub esn: bool,
    /// Another SA gives out the numbers.
    is_counted: bool,
    /// Its adjacency counts nothing itself.
    counts_alone: bool,
    /// Its cipher's.
    pub(crate) shape: Shape,
    /// Key and salt.
    pub cipher: Cipher,
    control_packets: AtomicU64,
    control_octets: AtomicU64,
    /// The SA with the same key that counts instead of this one.
    counting: Option<Arc<OutboundSa>>,
    /// Where `next` goes when this SA does, and whose turn it is to seal.
    pub(crate) key: Arc<KeyUse>,
    /// Where the other counters go then.
    counters: Option<Arc<AdjacencyCounters>>,
}

impl OutboundSa {
    /// An SA that begins at the sequence number where its key was, and leaves its next one there when it is dropped.
    pub(crate) fn new(spi: u32, cipher: Cipher, esn: bool, key: Arc<KeyUse>) -> Self {
        let next = AtomicU64::new(key.rest.load(Ordering::Relaxed));
        let zero = || AtomicU64::new(0);
        Self {
            next,
            packets: zero(),
            octets: zero(),
            last_ns: zero(),
            spi,
            esn,
            is_counted: false,
            counts_alone: false,
            shape: cipher.shape(),
            cipher,
            control_packets: zero(),
            control_octets: zero(),
            counting: None,
            key,
            counters: None,
        }
    }

    /// The same, counting for its only adjacency what that sends. It has sent nothing yet.
    pub(crate) fn of_adjacency(mut self, counters: Option<Arc<AdjacencyCounters>>) -> Self {
        (self.counts_alone, self.counters) = (counters.is_some(), counters);
        self
    }

    /// Where it stays, it is known to its adjacency's counters.
    pub(crate) fn shared(self) -> Arc<Self> {
        let sa = Arc::new(self);
        if let Some(counters) = &sa.counters {
            lock(&counters.outbound).push(Arc::downgrade(&sa));
        }
        sa
    }

    /// The same with the key of another SA, with which it shares the sequence numbers.
    pub(crate) fn counted_by(mut self, other: Arc<OutboundSa>) -> Self {
        (self.is_counted, self.counting) = (true, Some(other));
        self
    }

    #[inline]
    fn next(&self) -> &AtomicU64 {
        if !self.is_counted {
            return &self.next;
        }
        self.counting.as_ref().map_or(&self.next, |counting| &counting.next)
    }

    /// Ask for what a packet of that many octets needs, by where it lies alone.
    #[inline]
    pub(crate) fn prefetch<P: Prefetch>(&self, packet: usize) {
        let (first, octets) = GcmKey::needed(packet);
        let start = std::ptr::from_ref(self).cast::<u8>();
        P::line(start);
        ask_lines::<P>(start.wrapping_add(OUTBOUND_KEY + first), octets);
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

    /// Data that was sealed. `false`: the adjacency counts it, too.
    #[inline]
    pub(crate) fn count(&self, packets: u64, octets: u64, now_ns: u64) -> bool {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.octets.fetch_add(octets, Ordering::Relaxed);
        self.last_ns.store(now_ns.saturating_add(1), Ordering::Relaxed);
        self.counts_alone
    }

    /// NHRP that was sealed.
    pub(crate) fn count_control(&self, octets: u64) {
        self.control_packets.fetch_add(1, Ordering::Relaxed);
        self.control_octets.fetch_add(octets, Ordering::Relaxed);
    }

    /// What it has sent.
    pub fn counts(&self) -> OutboundSaCounts {
        let sum =
            |data: &AtomicU64, control: &AtomicU64| data.load(Ordering::Relaxed) + control.load(Ordering::Relaxed);
        OutboundSaCounts {
            spi: self.spi,
            packets: sum(&self.packets, &self.control_packets),
            octets: sum(&self.octets, &self.control_octets),
            sequence: self.sequence(),
        }
    }

    fn data(&self) -> [u64; 3] {
        [&self.packets, &self.octets, &self.last_ns].map(|counter| counter.load(Ordering::Relaxed))
    }
}

impl Drop for OutboundSa {
    fn drop(&mut self) {
        if self.counting.is_none() {
            self.key.rest.store(self.next.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        if let Some(counters) = &self.counters {
            counters.outward.add(self.data());
            lock(&counters.outbound).retain(|sa| sa.strong_count() > 0);
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
/// What every packet writes or reads lies in its first two cache lines, before the key.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct InboundSa {
    /// Locked once per run of packets of this SA.
    pub(crate) replay: Mutex<ReplayWindow>,
    /// Our SPI.
    pub spi: u32,
    /// The first of its adjacencies.
    pub(crate) first_adjacency: u32,
    /// Whether sequence numbers have 64 bits.
    pub esn: bool,
    /// Its adjacency counts nothing itself.
    pub(crate) counts_alone: bool,
    /// Its cipher's.
    pub(crate) shape: Shape,
    // Where the window's words lie, to be asked for without the lock, and how many there are.
    word_count: u16,
    words: usize,
    // Written by who holds the lock of the window alone.
    packets: AtomicU64,
    octets: AtomicU64,
    data_packets: AtomicU64,
    data_octets: AtomicU64,
    // Time of the last data plus one, 0 for none.
    last_ns: AtomicU64,
    /// Key and salt.
    pub cipher: Cipher,
    replayed: AtomicU64,
    unauthentic: AtomicU64,
    /// The adjacencies, but for the first, whose packets it carries; the GRE key tells them apart.
    pub(crate) other_adjacencies: Box<[u32]>,
    /// Where the counters of data go when this SA does.
    counters: Option<Arc<AdjacencyCounters>>,
}

impl InboundSa {
    /// An SA that has received nothing. With `counters`, those of its only adjacency.
    pub(crate) fn new(
        spi: u32,
        cipher: Cipher,
        adjacencies: &[u32],
        counters: Option<Arc<AdjacencyCounters>>,
        esn: bool,
        replay_window: u32,
    ) -> Arc<Self> {
        let replay = ReplayWindow::new(replay_window);
        let (words, word_count) = replay.place();
        let zero = || AtomicU64::new(0);
        let sa = Arc::new(Self {
            replay: Mutex::new(replay),
            spi,
            first_adjacency: adjacencies.first().copied().unwrap_or(u32::MAX),
            esn,
            counts_alone: counters.is_some(),
            shape: cipher.shape(),
            word_count: word_count as u16,
            words: words.addr(),
            packets: zero(),
            octets: zero(),
            data_packets: zero(),
            data_octets: zero(),
            last_ns: zero(),
            cipher,
            replayed: zero(),
            unauthentic: zero(),
            other_adjacencies: adjacencies.get(1..).unwrap_or_default().into(),
            counters,
        });
        if let Some(counters) = &sa.counters {
            lock(&counters.inbound).push(Arc::downgrade(&sa));
        }
        sa
    }

    /// The adjacencies whose packets it carries; the GRE key tells them apart.
    #[inline]
    pub(crate) fn adjacencies(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.first_adjacency).chain(self.other_adjacencies.iter().copied())
    }

    /// Ask for what every packet needs before the key.
    #[inline]
    pub(crate) fn prefetch_head<P: Prefetch>(&self) {
        ask_lines::<P>(std::ptr::from_ref(self).cast(), INBOUND_KEY);
    }

    /// Ask for what a packet of that many octets needs, by what the head tells.
    #[inline]
    pub(crate) fn prefetch<P: Prefetch>(&self, sequence: u32, packet: usize) {
        let (first, octets) = GcmKey::needed(packet);
        let start = std::ptr::from_ref(self).cast::<u8>();
        ask_lines::<P>(start.wrapping_add(INBOUND_KEY + first), octets);
        // There may be none; then a line is asked for that nobody needs.
        let word = (sequence / u64::BITS) as usize & usize::from(self.word_count).wrapping_sub(1);
        P::line(std::ptr::without_provenance(self.words + word % 256 * size_of::<u64>()));
        if !self.other_adjacencies.is_empty() {
            ask::<P, _>(&self.other_adjacencies[0]);
        }
    }

    /// Add what a run of packets came to. The caller holds the lock of the window.
    pub(crate) fn count(&self, run: &InboundRun, now_ns: u64) {
        for (total, value) in [
            (&self.packets, run.opened.packets),
            (&self.octets, run.opened.octets),
            (&self.replayed, run.opened.replayed),
            (&self.unauthentic, run.opened.unauthentic),
            (&self.data_packets, run.data_packets),
            (&self.data_octets, run.data_octets),
        ] {
            if value != 0 {
                total.store(total.load(Ordering::Relaxed) + value, Ordering::Relaxed);
            }
        }
        if run.data_packets != 0 {
            self.last_ns.store(now_ns.saturating_add(1), Ordering::Relaxed);
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

    fn data(&self) -> [u64; 3] {
        [&self.data_packets, &self.data_octets, &self.last_ns].map(|counter| counter.load(Ordering::Relaxed))
    }
}

impl Drop for InboundSa {
    fn drop(&mut self) {
        if let Some(counters) = &self.counters {
            counters.inward.add(self.data());
            lock(&counters.inbound).retain(|sa| sa.strong_count() > 0);
        }
    }
}

/// What a run of packets of one inbound SA came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InboundRun {
    pub(crate) opened: InboundSaCounts,
    /// Data for its only adjacency, and the octets of the inner packets.
    pub(crate) data_packets: u64,
    pub(crate) data_octets: u64,
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
        self.add([packets, octets, now_ns.saturating_add(1)]);
    }

    /// Packets, octets, and the time of the last packet plus one.
    fn add(&self, [packets, octets, last_ns]: [u64; 3]) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.octets.fetch_add(octets, Ordering::Relaxed);
        self.last_ns.fetch_max(last_ns, Ordering::Relaxed);
    }

    fn data(&self) -> [u64; 3] {
        [&self.packets, &self.octets, &self.last_ns].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Data packets of an adjacency, both ways. NHRP is not data.
///
/// An SA that carries the packets of one adjacency alone, as most do, counts them beside its own numbers, so that a
/// packet writes one cache line less; it leaves its counts here when it goes. SAs are made and dropped by the writer of
/// the tables, which also reads this: nothing is between here and there when it does.
#[derive(Debug, Default)]
pub(crate) struct AdjacencyCounters {
    pub(crate) inward: DirectionCounters,
    pub(crate) outward: DirectionCounters,
    inbound: Mutex<Vec<Weak<InboundSa>>>,
    outbound: Mutex<Vec<Weak<OutboundSa>>>,
}

fn lock<T>(list: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sum<T>(gone: &DirectionCounters, list: &Mutex<Vec<Weak<T>>>, data: impl Fn(&T) -> [u64; 3]) -> [u64; 3] {
    // Dropping the last reference would lock the list: it is let go first.
    let there: Vec<Arc<T>> = lock(list).iter().filter_map(Weak::upgrade).collect();
    there.iter().map(|sa| data(sa)).fold(gone.data(), |[packets, octets, last], [more, longer, later]| {
        [packets + more, octets + longer, last.max(later)]
    })
}

impl AdjacencyCounters {
    pub(crate) fn counts(&self) -> AdjacencyCounts {
        let [packets_in, octets_in, last_in] = sum(&self.inward, &self.inbound, InboundSa::data);
        let [packets_out, octets_out, last_out] = sum(&self.outward, &self.outbound, OutboundSa::data);
        AdjacencyCounts {
            packets_in,
            octets_in,
            packets_out,
            octets_out,
            last_in_ns: last_in.checked_sub(1),
            last_out_ns: last_out.checked_sub(1),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::Suite;
    use crate::kernel::Kernel;

    static KERNEL: Kernel = Kernel {
        name: "none",
        expand: |_| Some(GcmKey::new(10)),
        seal: |_, _, _, _, _| false,
        open: |_, _, _, _, _| false,
    };

    /// What is asked for by its address alone is what the packet reads.
    #[test]
    fn keys_lie_where_they_are_asked_for() {
        let cipher = || Cipher::with_kernel(Suite::Aes128Gcm16, &[0; 20], Some(&KERNEL)).unwrap();
        let outbound = OutboundSa::new(256, cipher(), true, Arc::default()).shared();
        assert_eq!(outbound.cipher.key_address() - Arc::as_ptr(&outbound).addr(), OUTBOUND_KEY);
        let inbound = InboundSa::new(256, cipher(), &[1], None, true, 64);
        assert_eq!(inbound.cipher.key_address() - Arc::as_ptr(&inbound).addr(), INBOUND_KEY);
        assert!(std::mem::offset_of!(GcmKey, rounds) < GcmKey::needed(64).0 + GcmKey::needed(64).1);
        assert_eq!(GcmKey::needed(64), (192, 320));
    }
}
