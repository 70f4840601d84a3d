//! The kernel for processors with VAES, VPCLMULQDQ and AVX2: the functions that the data plane calls.

use std::arch::x86_64::{_mm_aesenc_si128, _mm_aesenclast_si128};

use dsvpn_dataplane::kernel::{GcmKey, Iv, Kernel, Salt};

use super::memory::{load_block, store_block};
use super::{aes, gcm, ghash};

pub(super) static KERNEL: Kernel = Kernel { name: "dsvpn (VAES+AVX2)", expand, seal, open };

/// Whether this processor and the system have what the functions here need.
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2")
}

fn expand(key: &[u8]) -> Option<GcmKey> {
    let rounds = match key.len() {
        16 => 10,
        32 => 14,
        _ => return None,
    };
    // SAFETY: `KERNEL` is given out only where `is_supported`.
    Some(unsafe { expand_with(key, rounds) })
}

#[target_feature(enable = "avx2,aes,vaes,pclmulqdq,vpclmulqdq")]
fn expand_with(octets: &[u8], rounds: usize) -> GcmKey {
    let mut key = GcmKey::new(rounds);
    aes::expand(octets, &mut key.round_keys);
    let mut state = load_block(&key.round_keys[0]);
    for round_key in &key.round_keys[1..rounds] {
        state = _mm_aesenc_si128(state, load_block(round_key));
    }
    let mut hash_key = [0; 16];
    store_block(&mut hash_key, _mm_aesenclast_si128(state, load_block(&key.round_keys[rounds])));
    ghash::expand(hash_key, &mut key);
    key
}

fn seal(key: &GcmKey, salt: Salt, iv: Iv, aad: &[u8], octets: &mut [u8]) -> bool {
    // SAFETY: `KERNEL` is given out only where `is_supported`.
    unsafe { gcm::seal(key, salt, iv, aad, octets) }
}

fn open(key: &GcmKey, salt: Salt, iv: Iv, aad: &[u8], octets: &mut [u8]) -> bool {
    // SAFETY: `KERNEL` is given out only where `is_supported`.
    unsafe { gcm::open(key, salt, iv, aad, octets) }
}
