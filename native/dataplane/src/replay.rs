//! The anti-replay window (RFC 4303 section 3.4.3) as a ring of words (RFC 6479), and the inference of the high
//! half of extended sequence numbers (RFC 4303 appendix A2).

/// Largest window, in packets.
pub const MAX_REPLAY_WINDOW: u32 = 8192;

const WORD: u64 = u64::BITS as u64;

/// Sequence numbers that were seen. `check` before opening, `update` after authentication.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    highest: u64,
    // One word more than the window needs, so that a whole word is free to be cleared ahead (RFC 6479 section 3). A
    // power of two.
    words: Box<[u64]>,
    /// Window in packets, 0 when the check is off.
    size: u32,
}

impl ReplayWindow {
    /// A window of `size` packets (0: off; at most [`MAX_REPLAY_WINDOW`]). It is rounded up to 64.
    pub fn new(size: u32) -> Self {
        let size = size.min(MAX_REPLAY_WINDOW).next_multiple_of(u64::BITS);
        let words = if size == 0 { 0 } else { (size / u64::BITS + 1).next_power_of_two() };
        Self { size, highest: 0, words: vec![0; words as usize].into_boxed_slice() }
    }

    /// Where its words begin, as long as it lives, and how many there are: a power of two, or none.
    pub(crate) fn place(&self) -> (*const u64, usize) {
        (self.words.as_ptr(), self.words.len())
    }

    #[inline]
    fn index(&self, word: u64) -> usize {
        word as usize & (self.words.len() - 1)
    }

    /// Highest sequence number that was authenticated, 0 for none.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// The 64-bit sequence number that a received low half stands for.
    #[inline]
    pub fn infer(&self, low: u32, esn: bool) -> u64 {
        if !esn {
            return u64::from(low);
        }
        // The inference needs a window even when the replay check is off (RFC 4303 appendix A2.1: W below 2^32).
        let window = u64::from(self.size).max(WORD);
        let (top_high, top_low) = (self.highest >> 32, self.highest & 0xffff_ffff);
        let low64 = u64::from(low);
        let bottom = top_low.wrapping_sub(window - 1) & 0xffff_ffff;
        let high = if top_low >= window - 1 {
            // Case A: the window lies within one subspace.
            if low64 >= bottom { top_high } else { top_high.wrapping_add(1) }
        } else {
            // Case B: it spans two.
            if low64 >= bottom { top_high.wrapping_sub(1) } else { top_high }
        };
        // Below the first subspace there is none: such a number is refused as too old.
        if high > u64::from(u32::MAX) { low64 } else { high << 32 | low64 }
    }

    /// Whether the number is new: neither seen nor older than the window. Number 0 is never sent (RFC 4303 section 3.3.3).
    #[inline]
    pub fn check(&self, sequence: u64) -> bool {
        if self.size == 0 {
            return true;
        }
        if sequence > self.highest {
            return true;
        }
        if sequence == 0 || self.highest - sequence >= u64::from(self.size) {
            return false;
        }
        self.words[self.index(sequence / WORD)] & (1 << (sequence % WORD)) == 0
    }

    /// Remember an authenticated number. False if it was not new.
    #[inline]
    pub fn update(&mut self, sequence: u64) -> bool {
        if !self.check(sequence) {
            return false;
        }
        if sequence > self.highest {
            if self.size != 0 {
                let (from, to) = (self.highest / WORD, sequence / WORD);
                let words = self.words.len() as u64;
                for word in from + 1..=to.min(from + words) {
                    let index = self.index(word);
                    self.words[index] = 0;
                }
            }
            self.highest = sequence;
        }
        if self.size != 0 {
            let index = self.index(sequence / WORD);
            self.words[index] |= 1 << (sequence % WORD);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[derive(Default)]
    struct Model {
        seen: HashSet<u64>,
        highest: u64,
    }

    impl Model {
        fn accept(&mut self, sequence: u64, size: u64) -> bool {
            if sequence == 0 || sequence + size <= self.highest || !self.seen.insert(sequence) {
                return false;
            }
            self.highest = self.highest.max(sequence);
            true
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

        #[test]
        fn agrees_with_a_set(size in 1u32..=8192, steps in prop::collection::vec((any::<bool>(), 0u64..20_000), 1..400)) {
            let size = size.next_multiple_of(64);
            let mut window = ReplayWindow::new(size);
            let mut model = Model::default();
            for (forward, distance) in steps {
                let sequence = if forward { model.highest + distance % 200 } else { model.highest.saturating_sub(distance) };
                let expected = model.accept(sequence, u64::from(size));
                prop_assert_eq!(window.check(sequence), expected);
                prop_assert_eq!(window.update(sequence), expected);
                prop_assert_eq!(window.highest(), model.highest);
            }
        }

        #[test]
        fn infers_any_number_near_the_window(top in 1u64..1 << 40, back in 0u64..1024, ahead in 0u64..1 << 31) {
            let mut window = ReplayWindow::new(1024);
            window.update(top);
            let old = top.saturating_sub(back);
            prop_assert_eq!(window.infer(old as u32, true), old);
            prop_assert_eq!(window.infer((top + ahead) as u32, true), top + ahead);
        }
    }

    #[test]
    fn a_window_of_zero_takes_everything_and_still_infers() {
        let mut window = ReplayWindow::new(0);
        assert!(window.update(5) && window.update(5));
        window.update(0xffff_fff0);
        assert_eq!(window.infer(3, true), 0x1_0000_0003);
        assert_eq!(window.infer(3, false), 3);
    }

    #[test]
    fn a_late_number_of_the_zeroth_subspace_is_refused() {
        let mut window = ReplayWindow::new(64);
        window.update(3);
        // 0xfffffff0 would lie before the first number: it is read as far ahead, and its ICV will not fit.
        assert_eq!(window.infer(0xffff_fff0, true), 0xffff_fff0);
    }
}
