//! Whose turn it is to seal with a key, where several workers encapsulate.
//!
//! Workers that seal with one key at a time would send their numbers interleaved: by a vector of each, and by a time
//! slice of the machine when one of them loses its processor. A receiver drops what its replay window has left behind
//! (RFC 4303 section 3.4.3), and peers have windows as small as 32. So a key is one worker's from the first number that
//! it takes until those packets are sent. Others who need it meanwhile send what they have, let go of what is theirs, and
//! wait: who waits holds nothing, so no two wait for each other.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What outlives an outbound SA, one for each key. Alone in its cache line: keys of several workers write at the same time.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct KeyUse {
    /// The next sequence number when the last SA with this key was dropped.
    pub(crate) rest: AtomicU64,
    /// The worker whose turn it is, 0 for nobody.
    worker: AtomicU32,
}

impl KeyUse {
    /// A key that goes on at this sequence number.
    pub(crate) fn new(next: u64) -> Arc<Self> {
        Arc::new(Self { rest: AtomicU64::new(next), worker: AtomicU32::new(0) })
    }

    fn is_free(&self) -> bool {
        self.worker.load(Ordering::Relaxed) == 0
    }
}

/// The turns that one worker has.
#[derive(Debug)]
pub(crate) struct Turns {
    worker: NonZeroU32,
    /// The SAs may be gone before their packets are sent; this does not keep them.
    held: Vec<Arc<KeyUse>>,
    wanted: Option<Arc<KeyUse>>,
}

impl Turns {
    /// Those of the worker with this number, which no other has.
    pub(crate) fn new(worker: NonZeroU32) -> Self {
        Self { worker, held: Vec::with_capacity(256), wanted: None }
    }

    /// The worker's index, which is the resource whose SAs are its own.
    #[inline]
    pub(crate) fn resource(&self) -> u32 {
        self.worker.get() - 1
    }

    /// Whether it is this worker's turn, which it stays until [`Turns::release`].
    #[inline]
    pub(crate) fn take(&mut self, key: &Arc<KeyUse>) -> bool {
        let worker = self.worker.get();
        if key.worker.load(Ordering::Relaxed) == worker {
            return true;
        }
        // Acquire: the numbers that the last one took come before ours.
        if key.worker.compare_exchange(0, worker, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wanted = Some(Arc::clone(key));
            return false;
        }
        self.held.push(Arc::clone(key));
        true
    }

    /// Whether a turn was refused since the last release.
    pub(crate) fn is_refused(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether what was refused is still another worker's.
    pub(crate) fn must_wait(&self) -> bool {
        self.wanted.as_ref().is_some_and(|key| !key.is_free())
    }

    /// Everything that was sealed is sent.
    pub(crate) fn release(&mut self) {
        for key in self.held.drain(..) {
            key.worker.store(0, Ordering::Release);
        }
    }

    /// The next run asks anew.
    pub(crate) fn ask_anew(&mut self) {
        self.wanted = None;
    }
}

impl Drop for Turns {
    /// A worker that ends by a defect keeps nobody waiting.
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(number: u32) -> Turns {
        Turns::new(NonZeroU32::new(number).unwrap())
    }

    #[test]
    fn a_key_is_one_workers_until_it_is_released() {
        let (one, other) = (KeyUse::new(1), KeyUse::new(1));
        let (mut first, mut second) = (worker(1), worker(2));
        assert!(first.take(&one) && first.take(&one) && second.take(&other));
        assert!(!second.take(&one) && second.is_refused() && second.must_wait());
        assert!(!first.is_refused() && !first.must_wait());
        first.release();
        assert!(!second.must_wait());
        second.ask_anew();
        assert!(second.take(&one) && !second.is_refused());
        assert!(!first.take(&other));
        drop(second);
        assert!(!first.must_wait() && first.take(&other) && first.take(&one));
    }
}
