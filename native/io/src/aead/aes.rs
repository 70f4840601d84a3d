//! AES (FIPS 197): the key schedule, and vectors of counter blocks through the rounds.

use std::arch::x86_64::{
    __m256i, _mm_aesenclast_si128, _mm_cvtsi128_si32, _mm_set1_epi32, _mm_setzero_si128, _mm256_aesenc_epi128,
    _mm256_broadcastsi128_si256,
};

use dsvpn_dataplane::kernel::MAX_ROUND_KEYS;

use super::memory::{load_block, pin};

/// Expand a key of 16 or 32 octets to 11 or 15 round keys (FIPS 197 section 5.2).
///
/// No table is looked up: the S-box is that of the last round instruction.
#[target_feature(enable = "avx2,aes")]
pub(super) fn expand(key: &[u8], round_keys: &mut [[u8; 16]; MAX_ROUND_KEYS]) {
    let (words, _) = key.as_chunks::<4>();
    let count = 4 * (words.len() + 7);
    let mut schedule = [0u32; 4 * MAX_ROUND_KEYS];
    for (word, octets) in schedule.iter_mut().zip(words) {
        *word = u32::from_le_bytes(*octets);
    }
    let mut constant = 1u32;
    for at in words.len()..count {
        let mut word = schedule[at - 1];
        if at % words.len() == 0 {
            // The words are little endian: RotWord turns right.
            word = substitute(word).rotate_right(8) ^ constant;
            // Multiplication by x in GF(2^8); it depends on the position alone.
            constant = (constant << 1) ^ if constant & 0x80 != 0 { 0x11b } else { 0 };
        } else if words.len() == 8 && at % 8 == 4 {
            word = substitute(word);
        }
        schedule[at] = schedule[at - words.len()] ^ word;
    }
    for (place, words) in round_keys.iter_mut().zip(schedule.as_chunks::<4>().0) {
        for (octets, word) in place.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *octets = word.to_le_bytes();
        }
    }
}

/// SubWord. With four equal columns, ShiftRows does nothing.
#[target_feature(enable = "avx2,aes")]
#[inline]
fn substitute(word: u32) -> u32 {
    let columns = _mm_set1_epi32(word.cast_signed());
    _mm_cvtsi128_si32(_mm_aesenclast_si128(columns, _mm_setzero_si128())).cast_unsigned()
}

/// A round key for both lanes.
#[target_feature(enable = "avx2,vaes")]
#[inline]
pub(super) fn round_key(key: &[u8; 16]) -> __m256i {
    _mm256_broadcastsi128_si256(load_block(key))
}

/// One middle round of several vectors.
#[target_feature(enable = "avx2,vaes")]
#[inline]
pub(super) fn round<const N: usize>(states: &mut [__m256i; N], key: &[u8; 16]) {
    let key = round_key(key);
    for state in states {
        *state = _mm256_aesenc_epi128(*state, key);
        pin(state);
    }
}
