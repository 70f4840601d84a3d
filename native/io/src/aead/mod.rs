//! AES-GCM for packets of ESP: a kernel of vector instructions that the data plane can seal and open with.
//!
//! Made for what ESP asks: short messages with 8 or 12 octets of AAD, one after another under one key, in place. The
//! schedule, the powers of H and their sums are computed once per key; a message costs no set-up, one pass over its
//! octets, and about one reduction per 32 blocks. Neither branches nor addresses depend on keys or text.

#[cfg(target_arch = "x86_64")]
mod aes;
mod detect;
#[cfg(target_arch = "x86_64")]
mod gcm;
#[cfg(target_arch = "x86_64")]
mod ghash;
#[cfg(target_arch = "x86_64")]
mod memory;
#[cfg(target_arch = "x86_64")]
mod vaes;

pub use detect::{install, kernel};
