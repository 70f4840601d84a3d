//! The seam for asking the processor for memory before it is needed: an instruction that only unsafe code can give, and
//! that so lies in `dsvpn-io`.
//!
//! Tables of 100,000 peers are larger than every cache. Packets are therefore looked at before their turn, one step of
//! the way to their keys at a time, and what a step leads to is asked for before the next one reads it.

use std::fmt::Debug;

/// Octets of a cache line.
const LINE: usize = 64;

/// How memory is asked for. A type, so that the instruction stands where it is meant to be: a call would cost more than
/// it.
pub trait Prefetch: Debug + Send + 'static {
    /// Ask for the cache line of an address. Any address may be given: it is not read.
    fn line(address: *const u8);
}

/// Memory is not asked for.
#[derive(Clone, Copy, Debug)]
pub struct NoPrefetch;

impl Prefetch for NoPrefetch {
    #[inline]
    fn line(_address: *const u8) {}
}

/// Ask for the lines that `octets` octets from an address on begin in; at least the first.
#[inline]
pub(crate) fn ask_lines<P: Prefetch>(start: *const u8, octets: usize) {
    for offset in (0..octets.max(1)).step_by(LINE) {
        P::line(start.wrapping_add(offset));
    }
}

/// Ask for the line that a value begins in.
#[inline]
pub(crate) fn ask<P: Prefetch, T>(value: &T) {
    P::line(std::ptr::from_ref(value).cast());
}

/// Packets between asking for a key and its packet's turn: it arrives while so many others are forwarded.
pub(crate) const DISTANCE: usize = 8;

/// Packets that go one step of their way together, before the first of them has its turn.
pub(crate) const GROUP: usize = 16;
const _: () = assert!(DISTANCE <= GROUP, "the next group is as far as anybody looks");

/// Where the packets of a vector lead to: of the group that has its turn, and of the next one.
pub(crate) struct Ahead<Entry> {
    ring: [Entry; 2 * GROUP],
}

impl<Entry: Copy + Default> Ahead<Entry> {
    /// `None` for so few packets that there is nothing to be ahead of.
    pub(crate) fn new(packets: usize) -> Option<Self> {
        (packets > DISTANCE).then(|| Self { ring: [Entry::default(); 2 * GROUP] })
    }

    /// The packet `index` of `count` has its turn. Turns come one after the other, from the first.
    ///
    /// `find` fills in the entries of a group, whose first packet it is told; `ask` asks for what an entry leads to, and
    /// gets the entry of the packet before, too.
    #[inline]
    pub(crate) fn turn(
        &mut self,
        index: usize,
        count: usize,
        mut find: impl FnMut(usize, &mut [Entry]),
        mut ask: impl FnMut(usize, &mut Entry, Option<&Entry>),
    ) -> Entry {
        if index.is_multiple_of(GROUP) {
            let first = if index == 0 { 0 } else { index + GROUP };
            for group in (first..count.min(index + 2 * GROUP)).step_by(GROUP) {
                let at = group % (2 * GROUP);
                find(group, &mut self.ring[at..at + GROUP.min(count - group)]);
            }
        }
        let first = if index == 0 { 0 } else { index + DISTANCE };
        for at in first..count.min(index + DISTANCE + 1) {
            let before = self.ring[at.wrapping_sub(1) % (2 * GROUP)];
            ask(at, &mut self.ring[at % (2 * GROUP)], (at != 0).then_some(&before));
        }
        self.ring[index % (2 * GROUP)]
    }
}
