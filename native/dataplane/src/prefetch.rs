//! The seam for asking the processor for memory before it is needed: an instruction that only unsafe code can give, and
//! that so lies in `dsvpn-io`.
//!
//! Tables of 100,000 peers are larger than every cache. Packets are therefore looked at before their turn, one step of
//! the way to their keys at a time, and what a step leads to is asked for before the next one reads it.

use std::sync::OnceLock;

use crate::kernel::POWERS;

/// Asks for the cache lines from an address on, for that many octets. Any address may be given: it is not read.
pub type Prefetch = fn(*const u8, usize);

static PREFETCH: OnceLock<Prefetch> = OnceLock::new();

/// Choose how memory is asked for, once for the process. Without it, it is not.
pub fn set_prefetch(prefetch: Prefetch) {
    // The same one again changes nothing.
    let _ = PREFETCH.set(prefetch);
}

/// What [`set_prefetch`] chose, or nothing.
pub(crate) fn prefetch() -> Prefetch {
    PREFETCH.get().copied().unwrap_or(|_, _| {})
}

/// Ask for a value.
#[inline]
pub(crate) fn ask<T: ?Sized>(prefetch: Prefetch, value: &T) {
    prefetch(std::ptr::from_ref(value).cast(), size_of_val(value));
}

/// Octets up to which a kernel takes a packet as a short one.
const SHORT: usize = 192;

/// Addresses at which a key lies, to be asked for without reading where it is: that would be waited for.
///
/// They are numbers, not references: whoever holds one asks for memory that may be gone, which harms nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeyPlace {
    /// What every packet needs.
    schedule: (usize, usize),
    /// Arrays of blocks of which a packet needs the last ones, as many as it has blocks itself.
    powers: usize,
    middles: usize,
}

/// Ask for a place that is known by its address alone.
#[inline]
pub(crate) fn ask_at(prefetch: Prefetch, address: usize, octets: usize) {
    prefetch(std::ptr::without_provenance(address), octets);
}

impl KeyPlace {
    pub(crate) fn new(
        schedule: &[[u8; 16]],
        powers: &[[u8; 16]; POWERS + 1],
        middles: &[[u8; 16]; POWERS + 1],
    ) -> Self {
        Self {
            schedule: (schedule.as_ptr().addr(), size_of_val(schedule)),
            powers: powers.as_ptr().addr(),
            middles: middles.as_ptr().addr(),
        }
    }

    /// All of a value.
    pub(crate) fn whole<T>(value: &T) -> Self {
        Self { schedule: (std::ptr::from_ref(value).addr(), size_of::<T>()), powers: 0, middles: 0 }
    }

    /// Ask for what a packet needs.
    #[inline]
    pub(crate) fn prefetch(self, prefetch: Prefetch, packet: usize) {
        let (start, octets) = self.schedule;
        ask_at(prefetch, start, octets);
        if self.powers != 0 {
            // Besides the packet's own blocks: GRE and the trailer, the AAD, the lengths.
            let first = POWERS.saturating_sub(packet / 16 + 4);
            let octets = (POWERS + 1 - first) * 16;
            ask_at(prefetch, self.powers + first * 16, octets);
            // Short packets are authenticated without them.
            if packet > SHORT {
                ask_at(prefetch, self.middles + first * 16, octets);
            }
        }
    }
}

/// Packets between two steps of looking ahead: what a step asks for arrives while so many others are forwarded.
pub(crate) const DISTANCE: usize = 8;

/// What looking ahead keeps of the packets of a vector that are under way, with `STEPS` steps before a packet's turn.
///
/// The first step is the farthest ahead. A packet goes through the steps in their order, and each step sees the packets
/// in theirs.
pub(crate) struct Ahead<Entry, const STEPS: usize, const RING: usize> {
    ring: [Entry; RING],
}

impl<Entry: Copy + Default, const STEPS: usize, const RING: usize> Ahead<Entry, STEPS, RING> {
    /// `None` for so few packets that there is nothing to be ahead of.
    pub(crate) fn new(packets: usize) -> Option<Self> {
        const { assert!(RING >= (STEPS + 1) * DISTANCE, "every packet under way has a place") }
        (packets > DISTANCE).then(|| Self { ring: [Entry::default(); RING] })
    }

    /// The packet `index` of `count` has its turn: those behind it go on. `step` gets the number of a step, the index
    /// of a packet, its entry and that of the packet before it. Turns come one after the other, from the first.
    #[inline]
    pub(crate) fn turn(
        &mut self,
        index: usize,
        count: usize,
        mut step: impl FnMut(usize, usize, &mut Entry, Option<&Entry>),
    ) -> Entry {
        let mut go = |number, at: usize| {
            let before = if at == 0 { None } else { Some(self.ring[(at - 1) % RING]) };
            step(number, at, &mut self.ring[at % RING], before.as_ref());
        };
        for number in 0..STEPS {
            let at = index + (STEPS - number) * DISTANCE;
            if index == 0 {
                // Those that are ahead of the first turn have no other one for it.
                (0..count.min(at)).for_each(|at| go(number, at));
            }
            if at < count {
                go(number, at);
            }
        }
        self.ring[index % RING]
    }
}
