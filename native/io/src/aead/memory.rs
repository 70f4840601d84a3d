//! Loads and stores of vectors: the only memory accesses of the kernel that the compiler does not check itself.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_si256, _mm256_loadu2_m128i, _mm256_storeu_si256,
};

/// Load a block.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_block(octets: &[u8; 16]) -> __m128i {
    // SAFETY: a reference to 16 octets can be read, and the instruction takes any alignment.
    unsafe { _mm_loadu_si128(octets.as_ptr().cast()) }
}

/// Load two blocks.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_pair(octets: &[u8; 32]) -> __m256i {
    // SAFETY: a reference to 32 octets can be read, and the instruction takes any alignment.
    unsafe { _mm256_loadu_si256(octets.as_ptr().cast()) }
}

/// Load two blocks from places of their own that are neighbours. Others than two are a defect.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_neighbours(blocks: &[[u8; 16]]) -> __m256i {
    match blocks.as_flattened().first_chunk() {
        Some(octets) => load_pair(octets),
        None => unreachable!("two blocks"),
    }
}

/// Load two blocks that lie apart.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_two(low: &[u8; 16], high: &[u8; 16]) -> __m256i {
    // SAFETY: references to 16 octets each can be read, and the instructions take any alignment.
    unsafe { _mm256_loadu2_m128i(high.as_ptr().cast(), low.as_ptr().cast()) }
}

/// Store a block.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_block(octets: &mut [u8; 16], block: __m128i) {
    // SAFETY: a unique reference to 16 octets can be written, and the instruction takes any alignment.
    unsafe { _mm_storeu_si128(octets.as_mut_ptr().cast(), block) }
}

/// Store two blocks.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store_pair(octets: &mut [u8; 32], pair: __m256i) {
    // SAFETY: a unique reference to 32 octets can be written, and the instruction takes any alignment.
    unsafe { _mm256_storeu_si256(octets.as_mut_ptr().cast(), pair) }
}

/// Have a value computed here, in the order of the program.
///
/// The compiler would else sort the rounds of AES and the products of GHASH so as to need few registers, one vector
/// after the other, and the processor would wait for each.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn pin(value: &mut __m256i) {
    // SAFETY: no instruction; the register goes in and comes out as it is. It is not `pure`, which keeps such
    // statements in order.
    unsafe { asm!("/* {0} */", inout(ymm_reg) * value, options(nomem, nostack, preserves_flags)) }
}
