//! Rate limits per key in fixed memory.

use std::hash::Hasher;

/// A multiplicative hasher for short keys: no allocation, one multiplication per word.
#[derive(Clone, Copy, Default)]
pub(crate) struct WordHasher(u64);

impl Hasher for WordHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    #[inline]
    fn write(&mut self, octets: &[u8]) {
        for chunk in octets.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    #[inline]
    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        let mixed = self.0.rotate_left(23) ^ word ^ 0x2545_f491_4f6c_dd1d;
        let product = u128::from(mixed) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    #[inline]
    fn write_u128(&mut self, word: u128) {
        self.write_u64(word as u64);
        self.write_u64((word >> 64) as u64);
    }
}

const ENTRIES: usize = 1024;

/// Lets a key pass once per interval, and all keys together a bounded number of times per second.
///
/// Direct-mapped: keys that share an entry push each other out, so that some pass more often; the common bound holds.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    interval_ns: u64,
    per_second: u32,
    second: u64,
    passed: u32,
    entries: Box<[(u64, u64)]>,
}

impl RateLimiter {
    pub(crate) fn new(interval_ns: u64, per_second: u32) -> Self {
        Self { interval_ns, per_second, second: 0, passed: 0, entries: vec![(0, 0); ENTRIES].into_boxed_slice() }
    }

    /// Whether the key (a hash of it) may pass at this time.
    pub(crate) fn pass(&mut self, key: u64, now_ns: u64) -> bool {
        // 0 marks an empty entry.
        let key = key | 1;
        let entry = &mut self.entries[(key >> 1) as usize % ENTRIES];
        if entry.0 == key && now_ns.wrapping_sub(entry.1) < self.interval_ns {
            return false;
        }
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.passed = 0;
        }
        if self.passed >= self.per_second {
            return false;
        }
        self.passed += 1;
        *entry = (key, now_ns);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_per_interval_and_bounded_altogether() {
        let mut limiter = RateLimiter::new(1_000, 10);
        assert!(limiter.pass(6, 5_000));
        assert!(!limiter.pass(6, 5_999));
        assert!(limiter.pass(6, 6_000));
        let passed = (0..100_000u64).filter(|key| limiter.pass(key * 2, 7_000)).count();
        assert_eq!(passed, 8);
        assert!(limiter.pass(12345, 1_000_000_000));
    }
}
