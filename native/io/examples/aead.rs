//! AES-GCM alone, ring and the kernel in turn in one run: nanoseconds per message, the better 95 % and the median of
//! rounds, and the ratio of medians.
//!
//! `cargo run --release -p dsvpn-io --example aead`

use std::time::Instant;

use dsvpn_dataplane::{Cipher, ICV_LENGTH, Suite};
use dsvpn_io::aead;

const ROUNDS: usize = 300;
/// Messages of a round: no more than fit the first cache.
const OCTETS: usize = 16 * 1024;
const AAD: [u8; 8] = [1; 8];

struct Messages {
    arena: Vec<u8>,
    stride: usize,
    length: usize,
    count: usize,
}

impl Messages {
    fn new(length: usize) -> Self {
        let stride = (length + ICV_LENGTH).next_multiple_of(16);
        let count = (OCTETS / stride).clamp(1, 64);
        Self { arena: vec![0; stride * count], stride, length, count }
    }

    /// Nanoseconds per message of some passes over all messages; with `reset`, each begins with those octets.
    fn time(&mut self, reset: Option<&[u8]>, mut work: impl FnMut([u8; 8], &mut [u8])) -> f64 {
        let passes = 1 + 100_000 / (self.count * (self.length + 100));
        let mut nanoseconds = 0;
        for _ in 0..passes {
            if let Some(octets) = reset {
                self.arena.copy_from_slice(octets);
            }
            let start = Instant::now();
            for (index, place) in self.arena.chunks_exact_mut(self.stride).enumerate() {
                work((index as u64).to_be_bytes(), &mut place[..self.length + ICV_LENGTH]);
            }
            nanoseconds += start.elapsed().as_nanos();
        }
        nanoseconds as f64 / (passes * self.count) as f64
    }
}

fn percentiles(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 20], times[times.len() / 2])
}

fn measure(suite: Suite, length: usize) {
    let keymat: Vec<u8> = (0..suite.keymat_length() as u8).collect();
    let ciphers = [None, aead::kernel()].map(|kernel| Cipher::with_kernel(suite, &keymat, kernel).unwrap());
    let mut messages = Messages::new(length);
    let mut times: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (cipher, times) in ciphers.iter().zip(&mut times) {
            times[0].push(messages.time(None, |iv, octets| cipher.seal(iv, &AAD, octets)));
        }
        messages.time(None, |iv, octets| ciphers[0].seal(iv, &AAD, octets));
        // Every pass opens what was sealed once: opening undoes it.
        let sealed = messages.arena.clone();
        for (cipher, times) in ciphers.iter().zip(&mut times) {
            times[1].push(messages.time(Some(&sealed), |iv, octets| {
                assert!(cipher.open(iv, &AAD, octets).is_ok());
            }));
        }
    }
    let [ring, kernel] = times.map(|times| times.map(|mut times| percentiles(&mut times)));
    print!("{:<12} {length:5} B", suite.name());
    for (direction, (ring, kernel)) in ["seal", "open"].into_iter().zip(ring.into_iter().zip(kernel)) {
        print!(
            "   {direction}: ring {:6.1} {:6.1}  kernel {:6.1} {:6.1}  x{:.2}",
            ring.0,
            ring.1,
            kernel.0,
            kernel.1,
            ring.1 / kernel.1
        );
    }
    println!();
}

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("a debug build: the figures mean nothing");
    }
    let Some(kernel) = aead::kernel() else {
        eprintln!("this processor has no kernel: nothing to compare");
        return;
    };
    println!("{} against {}", kernel.name, dsvpn_dataplane::backend());
    for suite in [Suite::Aes128Gcm16, Suite::Aes256Gcm16] {
        for length in [16, 64, 76, 256, 576, 1424, 1440, 8192] {
            measure(suite, length);
        }
    }
}
