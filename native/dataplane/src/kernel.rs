//! Kernels of AES-GCM: what a crate that may use vector instructions gives to this one, which has no unsafe code.

use std::fmt;
use std::hint::black_box;
use std::sync::{PoisonError, RwLock};

use crate::aead::{ICV_LENGTH, IV_LENGTH, SALT_LENGTH};

/// Powers of H that a key holds: the most blocks between two reductions.
///
/// So many that what a short packet needs, the last seven of them and the round keys of AES-128, fills five cache lines
/// from one's beginning to another's end where the key begins at a line. More of them would save reductions, and cost
/// memory traffic where keys do not stay in the caches.
pub const POWERS: usize = 19;
/// Round keys of AES-256.
pub const MAX_ROUND_KEYS: usize = 15;

/// Longest text in octets (NIST SP 800-38D section 5.2.1.1).
pub const MAX_TEXT: u64 = (1 << 36) - 32;

/// An expanded AES-GCM key: plain data, in the form in which kernels use it.
#[repr(C, align(16))]
pub struct GcmKey {
    /// From H^[`POWERS`] down to H^1 and a zero, in the kernel's form.
    pub powers: [[u8; 16]; POWERS + 1],
    /// Rounds of AES: 10 or 14.
    pub rounds: usize,
    aligned: [u8; 16 - size_of::<usize>()],
    /// The first `rounds + 1` are in use.
    pub round_keys: [[u8; 16]; MAX_ROUND_KEYS],
}

impl GcmKey {
    /// A key yet to be filled in.
    pub const fn new(rounds: usize) -> Self {
        let aligned = [0; 16 - size_of::<usize>()];
        Self { powers: [[0; 16]; POWERS + 1], rounds, aligned, round_keys: [[0; 16]; MAX_ROUND_KEYS] }
    }

    /// The octets of a key that a packet of so many octets needs, as an offset and a length. AES-256 needs some more.
    #[inline]
    pub(crate) const fn needed(packet: usize) -> (usize, usize) {
        const END: usize = std::mem::offset_of!(GcmKey, round_keys) + 11 * 16;
        // Besides the packet's own blocks: GRE and the trailer, the AAD, the lengths; rounded to a cache line.
        let first = POWERS.saturating_sub(packet / 16 + 3) * 16 / 64 * 64;
        (first, END - first)
    }
}

impl Drop for GcmKey {
    fn drop(&mut self) {
        self.round_keys.as_flattened_mut().fill(0);
        self.powers.as_flattened_mut().fill(0);
        // Somebody might look: the compiler cannot leave the writes out.
        black_box(self);
    }
}

impl fmt::Debug for GcmKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("GcmKey(..)")
    }
}

/// The first part of a nonce of 96 bits, the key material's last octets (RFC 4106 section 4).
pub type Salt = [u8; SALT_LENGTH];
/// The second part, the packet's explicit IV.
pub type Iv = [u8; IV_LENGTH];

/// AES-GCM by other means than ring.
#[derive(Debug)]
pub struct Kernel {
    /// Its name, for people.
    pub name: &'static str,
    /// Expand a key of 16 or 32 octets; `None` for other lengths.
    pub expand: fn(&[u8]) -> Option<GcmKey>,
    /// Encrypt all but the last [`ICV_LENGTH`] octets in place and write the ICV to those. The slice of two is the AAD.
    /// `false`, and nothing done: there is no room for the ICV, or the text is longer than [`MAX_TEXT`].
    pub seal: fn(&GcmKey, Salt, Iv, &[u8], &mut [u8]) -> bool,
    /// Decrypt all but the last [`ICV_LENGTH`] octets in place, if those are the ICV. Their own content is undefined
    /// afterwards. Otherwise `false`, and all octets are overwritten if they were decrypted.
    pub open: fn(&GcmKey, Salt, Iv, &[u8], &mut [u8]) -> bool,
}

const _: () = assert!(ICV_LENGTH == 16);

static KERNEL: RwLock<Option<&'static Kernel>> = RwLock::new(None);

/// Choose what AES-GCM keys are made for from here on; `None` is ring.
pub fn set_kernel(kernel: Option<&'static Kernel>) {
    *KERNEL.write().unwrap_or_else(PoisonError::into_inner) = kernel;
}

/// What AES-GCM keys are made for.
pub fn kernel() -> Option<&'static Kernel> {
    *KERNEL.read().unwrap_or_else(PoisonError::into_inner)
}
