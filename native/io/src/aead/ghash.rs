//! GHASH (NIST SP 800-38D section 6.4) over pairs of blocks, reduced once for many of them.
//!
//! Blocks are byte reversed, so that the carry-less product comes out as the field's product over x. The powers of H
//! are kept multiplied by x, which makes that good: as in Gueron and Kounavis, "Intel carry-less multiplication
//! instruction and its usage for computing the GCM mode".

use std::arch::x86_64::{
    __m128i, __m256i, _mm_clmulepi64_si128, _mm_set_epi8, _mm_set_epi64x, _mm_shuffle_epi8, _mm_shuffle_epi32,
    _mm_unpackhi_epi64, _mm_xor_si128, _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_clmulepi64_epi128,
    _mm256_extracti128_si256, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_shuffle_epi32, _mm256_xor_si256,
};

use dsvpn_dataplane::kernel::{GcmKey, POWERS};

use super::memory::{load_block, load_neighbours, load_two, pin, store_block};

/// Exchanges the halves of a block.
const SWAP: i32 = 0x4e;

#[target_feature(enable = "avx2")]
#[inline]
fn reversal() -> __m128i {
    _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
}

/// Reverse the octets of a block.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn reverse_block(block: __m128i) -> __m128i {
    _mm_shuffle_epi8(block, reversal())
}

/// Reverse the octets of each of two blocks.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn reverse_pair(pair: __m256i) -> __m256i {
    _mm256_shuffle_epi8(pair, _mm256_broadcastsi128_si256(reversal()))
}

/// Unreduced products by Karatsuba's method, summed: three multiplications for a pair of blocks.
#[derive(Clone, Copy)]
pub(super) struct Products {
    low: __m256i,
    middle: __m256i,
    high: __m256i,
}

/// A pair of powers of H, and the sums of their halves.
#[derive(Clone, Copy)]
pub(super) struct PowerPair {
    power: __m256i,
    middle: __m256i,
}

/// Powers that follow each other downwards, in their places of a key.
#[derive(Clone, Copy)]
pub(super) struct Powers<'k, const N: usize> {
    powers: &'k [[u8; 16]; N],
}

impl<'k, const N: usize> Powers<'k, N> {
    /// H^exponent and the N - 1 next lower ones. H^0 is zero here: what is multiplied by it does not count.
    #[inline]
    pub(super) fn down_from(key: &'k GcmKey, exponent: usize) -> Self {
        match key.powers[POWERS - exponent..].first_chunk() {
            Some(powers) => Self { powers },
            None => unreachable!("a key holds the powers from H^{POWERS} to H^0"),
        }
    }

    /// A pair of them: the powers at `2 * index` (low lane) and the next.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn pair(&self, index: usize) -> PowerPair {
        let at = 2 * index;
        PowerPair::of(load_neighbours(&self.powers[at..at + 2]))
    }
}

impl PowerPair {
    /// With the sums computed: two instructions cost less than the memory that the sums would lie in where keys do not
    /// stay in the caches.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of(power: __m256i) -> Self {
        Self { power, middle: _mm256_xor_si256(power, _mm256_shuffle_epi32::<SWAP>(power)) }
    }

    /// H^exponent and the next lower one.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn down_from(key: &GcmKey, exponent: usize) -> Self {
        match key.powers[POWERS - exponent..].first_chunk::<2>() {
            Some(powers) => Self::of(load_neighbours(powers)),
            None => unreachable!("a key holds the powers from H^{POWERS} to H^0"),
        }
    }

    /// Powers that do not follow each other.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn apart(key: &GcmKey, low: usize, high: usize) -> Self {
        Self::of(load_two(&key.powers[POWERS - low], &key.powers[POWERS - high]))
    }
}

impl Products {
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn zero() -> Self {
        let zero = _mm256_setzero_si256();
        Self { low: zero, middle: zero, high: zero }
    }

    /// Add the products of a pair of reversed blocks.
    #[target_feature(enable = "avx2,vpclmulqdq")]
    #[inline]
    pub(super) fn add(&mut self, pair: __m256i, powers: PowerPair) {
        self.add_outer(pair, powers);
        self.add_middle(pair, powers);
    }

    /// The products of low halves and of high halves.
    #[target_feature(enable = "avx2,vpclmulqdq")]
    #[inline]
    pub(super) fn add_outer(&mut self, pair: __m256i, powers: PowerPair) {
        self.low = _mm256_xor_si256(self.low, _mm256_clmulepi64_epi128::<0x00>(pair, powers.power));
        self.high = _mm256_xor_si256(self.high, _mm256_clmulepi64_epi128::<0x11>(pair, powers.power));
        pin(&mut self.low);
        pin(&mut self.high);
    }

    /// The products of the sums of halves.
    #[target_feature(enable = "avx2,vpclmulqdq")]
    #[inline]
    pub(super) fn add_middle(&mut self, pair: __m256i, powers: PowerPair) {
        let sums = _mm256_xor_si256(pair, _mm256_shuffle_epi32::<SWAP>(pair));
        self.middle = _mm256_xor_si256(self.middle, _mm256_clmulepi64_epi128::<0x00>(sums, powers.middle));
        pin(&mut self.middle);
    }

    /// The reduced sum of both lanes.
    #[target_feature(enable = "avx2,pclmulqdq")]
    #[inline]
    pub(super) fn reduce(&self) -> __m128i {
        let fold = |pair: __m256i| _mm_xor_si128(_mm256_castsi256_si128(pair), _mm256_extracti128_si256::<1>(pair));
        reduce(fold(self.low), fold(self.middle), fold(self.high))
    }
}

/// Reduce by x^128 + x^127 + x^126 + x^121 + 1, the bit-reversed polynomial of GCM, 64 bits at a time.
#[target_feature(enable = "avx2,pclmulqdq")]
#[inline]
fn reduce(low: __m128i, middle: __m128i, high: __m128i) -> __m128i {
    let polynomial = _mm_set_epi64x(0, 0xc200_0000_0000_0000_u64.cast_signed());
    let middle = _mm_xor_si128(middle, _mm_xor_si128(low, high));
    let folded = _mm_clmulepi64_si128::<0x00>(low, polynomial);
    let middle = _mm_xor_si128(_mm_xor_si128(middle, _mm_shuffle_epi32::<SWAP>(low)), folded);
    let folded = _mm_clmulepi64_si128::<0x00>(middle, polynomial);
    _mm_xor_si128(_mm_xor_si128(high, _mm_shuffle_epi32::<SWAP>(middle)), folded)
}

/// Product of two blocks in the form in which one of them is multiplied by x.
#[target_feature(enable = "avx2,pclmulqdq")]
pub(super) fn multiply(a: __m128i, b: __m128i) -> __m128i {
    let sums = |block: __m128i| _mm_xor_si128(block, _mm_unpackhi_epi64(block, block));
    reduce(
        _mm_clmulepi64_si128::<0x00>(a, b),
        _mm_clmulepi64_si128::<0x00>(sums(a), sums(b)),
        _mm_clmulepi64_si128::<0x11>(a, b),
    )
}

/// Fill in the powers of H from H itself, in the block's own octet order.
#[target_feature(enable = "avx2,pclmulqdq")]
pub(super) fn expand(hash_key: [u8; 16], key: &mut GcmKey) {
    // H times x: a shift to the left in reversed octets; what falls out is reduced, without a branch on it.
    let hash_key = u128::from_be_bytes(hash_key);
    let carry = 0u128.wrapping_sub(hash_key >> 127);
    let first = (hash_key << 1) ^ (carry & 0xc200_0000_0000_0000_0000_0000_0000_0001);
    let first = load_block(&first.to_le_bytes());
    let mut power = first;
    for at in (0..POWERS).rev() {
        store_block(&mut key.powers[at], power);
        power = multiply(power, first);
    }
}
