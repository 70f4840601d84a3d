//! AES-GCM (NIST SP 800-38D) over one message in one pass, sealing and opening alike.
//!
//! The message is seen as blocks by the number of their counter block: 1 is J0, whose encryption masks the tag and in
//! whose place the AAD is hashed; the text begins at 2; 0 is nothing. So groups of eight blocks are aligned both for
//! the counter and for the powers of H, and the AAD costs nothing of its own. GHASH runs one group behind AES, so that
//! both units of the processor are busy. A short message (that of a small packet) goes through without any loop.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_and_si128, _mm_cvtsi128_si64, _mm_or_si128, _mm_set_epi64x, _mm_setzero_si128,
    _mm_unpackhi_epi64, _mm_xor_si128, _mm256_aesenclast_epi128, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_inserti128_si256, _mm256_set_epi64x, _mm256_set_m128i,
    _mm256_setzero_si256, _mm256_xor_si256, _mm256_zextsi128_si256,
};

use dsvpn_dataplane::ICV_LENGTH;
use dsvpn_dataplane::kernel::{GcmKey, Iv, MAX_TEXT, POWERS, Salt};

use super::aes::round;
use super::ghash::{PowerPair, Powers, Products, multiply, reverse_block, reverse_pair};
use super::memory::{load_block, load_pair, store_block, store_pair};

/// Pairs of blocks from which on a message is long.
const SHORT: usize = 7;
const BLOCK: usize = 16;
const PAIR: usize = 2 * BLOCK;
const GROUP: usize = 8 * BLOCK;
/// Octets of text in the first group, where J0 and nothing take two places.
const HEAD: usize = 6 * BLOCK;
/// Blocks, by their counters, that are hashed between two reductions.
const STRETCH: usize = (POWERS - 1) / 8 * 8;

/// `MASKS[16 - n..]` keeps the first n octets of a block; `MASKS[.. ]` 16 octets earlier, of a pair, those of its high lane.
const MASKS: [u8; 64] = {
    let mut masks = [0; 64];
    let mut at = 0;
    while at < 32 {
        masks[at] = 0xff;
        at += 1;
    }
    masks
};

/// The first block with the counter 0, XORed with the first round key, in both lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn counter_base(key: &GcmKey, salt: Salt, iv: Iv) -> __m256i {
    let salt = u64::from(u32::from_le_bytes(salt));
    let iv = u64::from_le_bytes(iv);
    let block = _mm_set_epi64x((iv >> 32).cast_signed(), (salt | iv << 32).cast_signed());
    _mm256_xor_si256(_mm256_broadcastsi128_si256(block), round_key_256(key, 0))
}

#[target_feature(enable = "avx2")]
#[inline]
fn round_key_256(key: &GcmKey, index: usize) -> __m256i {
    _mm256_broadcastsi128_si256(load_block(&key.round_keys[index]))
}

/// A pair of counters, to be XORed into counter blocks whose counter bits are zero.
#[target_feature(enable = "avx2")]
#[inline]
fn counters(low: u32, high: u32) -> __m256i {
    let field = |counter: u32| (u64::from(counter.swap_bytes()) << 32).cast_signed();
    _mm256_set_epi64x(field(high), 0, field(low), 0)
}

/// AAD as its last block, in words that pass from function to function in registers.
#[derive(Clone, Copy)]
struct Aad {
    low: u64,
    high: u64,
    octets: usize,
}

impl Aad {
    /// Longer AAD than a block, which ESP does not have, is hashed up to its last block.
    #[target_feature(enable = "avx2,pclmulqdq")]
    #[inline]
    fn new(key: &GcmKey, aad: &[u8]) -> Self {
        let octets = aad.len();
        if let Some((first, rest)) = aad.split_first_chunk::<8>() {
            let low = u64::from_le_bytes(*first);
            if rest.is_empty() {
                return Self { low, high: 0, octets };
            }
            if let Ok(rest) = rest.try_into() {
                return Self { low, high: u64::from(u32::from_le_bytes(rest)), octets };
            }
        }
        Self::of_any_length(key, aad)
    }

    #[cold]
    #[target_feature(enable = "avx2,pclmulqdq")]
    fn of_any_length(key: &GcmKey, aad: &[u8]) -> Self {
        let mut sum = _mm_setzero_si128();
        let blocks = aad.len().div_ceil(BLOCK);
        for (index, octets) in aad.chunks(BLOCK).enumerate() {
            let mut block = [0; BLOCK];
            block[..octets.len()].copy_from_slice(octets);
            sum = _mm_xor_si128(sum, reverse_block(load_block(&block)));
            if index + 1 < blocks {
                sum = multiply(sum, load_block(&key.powers[POWERS - 1]));
            }
        }
        let mut block = [0; BLOCK];
        store_block(&mut block, reverse_block(sum));
        let block = u128::from_le_bytes(block);
        Self { low: block as u64, high: (block >> 64) as u64, octets: aad.len() }
    }

    /// The block, reversed.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn block(self) -> __m128i {
        reverse_block(_mm_set_epi64x(self.high.cast_signed(), self.low.cast_signed()))
    }

    /// The block of lengths in bits, reversed.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn lengths(self, text: usize) -> __m128i {
        _mm_set_epi64x((self.octets as u64 * 8).cast_signed(), (text as u64 * 8).cast_signed())
    }
}

/// Keeps the first octets, 1 to 16, of a block.
#[target_feature(enable = "avx2")]
#[inline]
fn block_mask(octets: usize) -> __m128i {
    match MASKS[32 - octets..].first_chunk() {
        Some(mask) => load_block(mask),
        None => unreachable!("1 to 16 octets"),
    }
}

/// Keeps the first octets, 17 to 32, of a pair.
#[target_feature(enable = "avx2")]
#[inline]
fn pair_mask(octets: usize) -> __m256i {
    match MASKS[32 - octets..].first_chunk() {
        Some(mask) => load_pair(mask),
        None => unreachable!("17 to 32 octets"),
    }
}

/// The last round of a pair's counter blocks, with the text in it: writes the pair and gives its ciphertext, reversed.
#[target_feature(enable = "avx2,vaes")]
#[inline]
fn last_round<const OPEN: bool>(state: __m256i, last_key: __m256i, place: &mut [u8; PAIR]) -> __m256i {
    let input = load_pair(place);
    let output = _mm256_aesenclast_epi128(state, _mm256_xor_si256(last_key, input));
    store_pair(place, output);
    reverse_pair(if OPEN { input } else { output })
}

/// As [`last_round`] in place, with what lies beyond `octets`, 17 to 32, not hashed.
#[target_feature(enable = "avx2,vaes")]
#[inline]
fn last_round_of_part<const OPEN: bool>(
    state: __m256i,
    last_key: __m256i,
    place: &mut [u8; PAIR],
    octets: usize,
) -> __m256i {
    let input = load_pair(place);
    let output = _mm256_aesenclast_epi128(state, _mm256_xor_si256(last_key, input));
    store_pair(place, output);
    reverse_pair(_mm256_and_si256(if OPEN { input } else { output }, pair_mask(octets)))
}

/// As [`last_round`] for a single block of up to 16 octets in the low lane, of which those beyond `octets` are not hashed.
#[target_feature(enable = "avx2,vaes")]
#[inline]
fn last_round_of_block<const OPEN: bool>(
    state: __m256i,
    last_key: __m256i,
    place: &mut [u8],
    octets: usize,
) -> __m128i {
    let Some(place) = place.first_chunk_mut() else {
        unreachable!("the room for the tag follows the text");
    };
    let input = load_block(place);
    let output = _mm_xor_si128(_mm256_castsi256_si128(_mm256_aesenclast_epi128(state, last_key)), input);
    store_block(place, output);
    reverse_block(_mm_and_si128(if OPEN { input } else { output }, block_mask(octets)))
}

#[inline]
fn pairs_of<const OCTETS: usize, const PAIRS: usize>(octets: &mut [u8; OCTETS]) -> [&mut [u8; PAIR]; PAIRS] {
    const { assert!(OCTETS == PAIRS * PAIR) }
    let mut pairs = octets.as_chunks_mut::<PAIR>().0.iter_mut();
    std::array::from_fn(|_| match pairs.next() {
        Some(pair) => pair,
        None => unreachable!("asserted"),
    })
}

/// Encrypt and write the tag to the last 16 octets; or decrypt and tell whether those were the tag.
///
/// There are at least 16. The last block of text may be written in full: what follows it is the tag's place, whose
/// content is then undefined after opening.
type Crypt = unsafe fn(&GcmKey, Salt, Iv, &[u8], &mut [u8]) -> bool;

/// By pairs of blocks. Each length has a function of its own: together, the compiler would load what is common to all
/// of them first, and have no registers left.
const fn by_length<const KEYS: usize, const OPEN: bool>() -> [Crypt; SHORT + 1] {
    [
        short::<KEYS, OPEN, 1>,
        short::<KEYS, OPEN, 2>,
        short::<KEYS, OPEN, 3>,
        short::<KEYS, OPEN, 4>,
        short::<KEYS, OPEN, 5>,
        short::<KEYS, OPEN, 6>,
        short::<KEYS, OPEN, 7>,
        long::<KEYS, OPEN>,
    ]
}

static SEAL: [[Crypt; SHORT + 1]; 2] = [by_length::<11, false>(), by_length::<15, false>()];
static OPEN: [[Crypt; SHORT + 1]; 2] = [by_length::<11, true>(), by_length::<15, true>()];

#[inline]
fn choose(functions: &[[Crypt; SHORT + 1]; 2], key: &GcmKey, text: usize) -> Crypt {
    functions[usize::from(key.rounds != 10)][(text.div_ceil(BLOCK) / 2).min(SHORT)]
}

/// Octets of text before the tag, if there may be so many.
#[inline]
fn text_of(octets: &[u8]) -> Option<usize> {
    octets.len().checked_sub(ICV_LENGTH).filter(|text| *text as u64 <= MAX_TEXT)
}

/// Encrypt all but the last 16 octets, and write the tag there.
///
/// # Safety
///
/// The processor has AVX2, AES-NI, VAES, PCLMULQDQ and VPCLMULQDQ.
#[inline]
pub(super) unsafe fn seal(key: &GcmKey, salt: Salt, iv: Iv, aad: &[u8], octets: &mut [u8]) -> bool {
    let Some(text) = text_of(octets) else {
        return false;
    };
    // SAFETY: as the caller promises.
    unsafe { choose(&SEAL, key, text)(key, salt, iv, aad, octets) }
}

/// Decrypt all but the last 16 octets if those are the tag; else overwrite all.
///
/// # Safety
///
/// As for [`seal`].
#[inline]
pub(super) unsafe fn open(key: &GcmKey, salt: Salt, iv: Iv, aad: &[u8], octets: &mut [u8]) -> bool {
    let Some(text) = text_of(octets) else {
        return false;
    };
    // SAFETY: as the caller promises.
    let authentic = unsafe { choose(&OPEN, key, text)(key, salt, iv, aad, octets) };
    if !authentic {
        octets.fill(0);
    }
    authentic
}

/// Write the tag, or compare it without a branch on where it differs.
#[target_feature(enable = "avx2")]
#[inline]
fn finish<const OPEN: bool>(tag: __m128i, icv: __m128i, place: &mut [u8]) -> bool {
    if OPEN {
        let difference = _mm_xor_si128(tag, icv);
        _mm_cvtsi128_si64(_mm_or_si128(difference, _mm_unpackhi_epi64(difference, difference))) == 0
    } else {
        match place.last_chunk_mut() {
            Some(place) => store_block(place, tag),
            None => unreachable!("the caller saw that there is room"),
        }
        true
    }
}

/// The ICV of a message that is opened. It is read first: the last block of text may be written over it.
#[target_feature(enable = "avx2")]
#[inline]
fn read_icv(octets: &[u8]) -> __m128i {
    match octets.last_chunk() {
        Some(icv) => load_block(icv),
        None => unreachable!("the caller saw that there is room"),
    }
}

/// A message of `2 * VECTORS - 2` or `2 * VECTORS - 1` blocks. The high lane of the last vector encrypts J0.
#[target_feature(enable = "avx2,aes,vaes,pclmulqdq,vpclmulqdq")]
fn short<const KEYS: usize, const OPEN: bool, const VECTORS: usize>(
    key: &GcmKey,
    salt: Salt,
    iv: Iv,
    aad: &[u8],
    octets: &mut [u8],
) -> bool {
    let aad = Aad::new(key, aad);
    let icv = read_icv(octets);
    let text = octets.len() - ICV_LENGTH;
    let blocks = text.div_ceil(BLOCK);
    let base = counter_base(key, salt, iv);
    let mut states = [base; VECTORS];
    for (index, state) in states.iter_mut().enumerate() {
        let counter = 2 * index as u32 + 2;
        let high = if index + 1 == VECTORS { 1 } else { counter + 1 };
        *state = _mm256_xor_si256(*state, counters(counter, high));
    }
    for round_key in &key.round_keys[1..KEYS - 1] {
        round(&mut states, round_key);
    }
    let last_key = round_key_256(key, KEYS - 1);
    let mut products = Products::zero();
    let ends = _mm256_set_m128i(aad.lengths(text), aad.block());
    products.add(ends, PowerPair::apart(key, blocks + 2, 1));
    let Some((body, tail)) = octets.split_at_mut_checked(PAIR * (VECTORS - 1)) else {
        unreachable!("the caller counted the blocks");
    };
    for (index, place) in body.as_chunks_mut::<PAIR>().0.iter_mut().enumerate() {
        let pair = if index + 2 == VECTORS && blocks.is_multiple_of(2) {
            last_round_of_part::<OPEN>(states[index], last_key, place, text - PAIR * index)
        } else {
            last_round::<OPEN>(states[index], last_key, place)
        };
        products.add(pair, PowerPair::down_from(key, blocks + 1 - 2 * index));
    }
    let last = states[VECTORS - 1];
    if blocks % 2 == 1 {
        let block = last_round_of_block::<OPEN>(last, last_key, tail, text - PAIR * (VECTORS - 1));
        products.add(_mm256_zextsi128_si256(block), PowerPair::down_from(key, 2));
    }
    let mask = _mm256_extracti128_si256::<1>(_mm256_aesenclast_epi128(last, last_key));
    finish::<OPEN>(_mm_xor_si128(reverse_block(products.reduce()), mask), icv, octets)
}

/// Where GHASH is in a long message.
struct Hash<'k> {
    key: &'k GcmKey,
    products: Products,
    /// The power for the next block.
    exponent: usize,
    /// Blocks from the beginning of this stretch, the block of lengths included.
    left: usize,
    /// The reduced sum of the last stretch, which goes into the first block of the next; else zero.
    carry: __m256i,
}

impl<'k> Hash<'k> {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(key: &'k GcmKey, blocks: usize) -> Self {
        let mut hash =
            Self { key, products: Products::zero(), exponent: 0, left: blocks, carry: _mm256_setzero_si256() };
        hash.exponent = hash.stretch();
        hash
    }

    #[inline]
    fn stretch(&self) -> usize {
        if self.left <= POWERS { self.left } else { STRETCH }
    }

    /// Eight powers for the next group.
    #[inline]
    fn powers(&self) -> Powers<'k, 8> {
        Powers::down_from(self.key, self.exponent)
    }

    /// Groups that can be hashed before a stretch ends.
    #[inline]
    fn groups(&self) -> usize {
        (self.exponent - 1) / 8
    }

    /// A group was added to the products, but not the last of a stretch.
    #[inline]
    fn advance(&mut self) {
        self.exponent -= 8;
    }

    /// A group was added to the products that is the last of a stretch, and not the last of all.
    #[target_feature(enable = "avx2,pclmulqdq")]
    #[inline]
    fn end_stretch(&mut self) {
        self.left -= STRETCH;
        self.exponent = self.stretch();
        self.carry = _mm256_zextsi128_si256(self.products.reduce());
        self.products = Products::zero();
    }

    /// The carry, once.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn take_carry(&mut self) -> __m256i {
        std::mem::replace(&mut self.carry, _mm256_setzero_si256())
    }
}

/// The middle rounds of some counter blocks, with a group of blocks hashed between them.
///
/// A macro: as a function it would not always be inlined, and its arguments then go through memory.
macro_rules! rounds_and_hash {
    ($keys:expr, $key:expr, $states:ident, $hash:ident, $pending:ident) => {
        let keys = &$key.round_keys;
        let powers = $hash.powers();
        round(&mut $states, &keys[1]);
        $hash.products.add_outer($pending[0], powers.pair(0));
        round(&mut $states, &keys[2]);
        $hash.products.add_middle($pending[0], powers.pair(0));
        round(&mut $states, &keys[3]);
        $hash.products.add_outer($pending[1], powers.pair(1));
        round(&mut $states, &keys[4]);
        $hash.products.add_middle($pending[1], powers.pair(1));
        round(&mut $states, &keys[5]);
        $hash.products.add_outer($pending[2], powers.pair(2));
        round(&mut $states, &keys[6]);
        $hash.products.add_middle($pending[2], powers.pair(2));
        round(&mut $states, &keys[7]);
        $hash.products.add_outer($pending[3], powers.pair(3));
        round(&mut $states, &keys[8]);
        $hash.products.add_middle($pending[3], powers.pair(3));
        round(&mut $states, &keys[9]);
        if $keys > 11 {
            round(&mut $states, &keys[10]);
            round(&mut $states, &keys[11]);
            round(&mut $states, &keys[12]);
            round(&mut $states, &keys[13]);
        }
    };
}

/// A message of at least six blocks.
#[target_feature(enable = "avx2,aes,vaes,pclmulqdq,vpclmulqdq")]
fn long<const KEYS: usize, const OPEN: bool>(key: &GcmKey, salt: Salt, iv: Iv, aad: &[u8], octets: &mut [u8]) -> bool {
    let aad = Aad::new(key, aad);
    let icv = read_icv(octets);
    let text = octets.len() - ICV_LENGTH;
    let base = counter_base(key, salt, iv);
    let last_key = round_key_256(key, KEYS - 1);
    let lengths = aad.lengths(text);
    let Some((head, rest)) = octets.split_first_chunk_mut::<HEAD>() else {
        unreachable!("the caller counted the blocks");
    };
    let body = (text - HEAD) / GROUP * GROUP;
    let Some((body, tail)) = rest.split_at_mut_checked(body) else {
        unreachable!("less than there is");
    };
    let steps = [counters(0, 1), counters(2, 3), counters(4, 5), counters(6, 7)];

    let mut states = steps.map(|step| _mm256_xor_si256(base, step));
    for round_key in &key.round_keys[1..KEYS - 1] {
        round(&mut states, round_key);
    }
    let mask = _mm256_extracti128_si256::<1>(_mm256_aesenclast_epi128(states[0], last_key));
    let [first, second, third] = pairs_of(head);
    let mut pending = [
        _mm256_inserti128_si256::<1>(_mm256_setzero_si256(), aad.block()),
        last_round::<OPEN>(states[1], last_key, first),
        last_round::<OPEN>(states[2], last_key, second),
        last_round::<OPEN>(states[3], last_key, third),
    ];

    // Nothing, J0's place, the text, and the lengths.
    let mut hash = Hash::new(key, text.div_ceil(BLOCK) + 3);
    let mut counter = 0;
    let mut groups = body.as_chunks_mut::<GROUP>().0.iter_mut();
    macro_rules! step {
        ($group:ident) => {
            counter += 8;
            let base = _mm256_xor_si256(base, counters(counter, counter));
            let mut states = steps.map(|step| _mm256_xor_si256(base, step));
            rounds_and_hash!(KEYS, key, states, hash, pending);
            let [first, second, third, fourth] = pairs_of($group);
            pending = [
                last_round::<OPEN>(states[0], last_key, first),
                last_round::<OPEN>(states[1], last_key, second),
                last_round::<OPEN>(states[2], last_key, third),
                last_round::<OPEN>(states[3], last_key, fourth),
            ];
        };
    }
    loop {
        // Without a branch in it: what is hashed and what is encrypted stay interleaved.
        for group in groups.by_ref().take(hash.groups()) {
            step!(group);
            hash.advance();
        }
        let Some(group) = groups.next() else { break };
        step!(group);
        hash.end_stretch();
        pending[0] = _mm256_xor_si256(pending[0], hash.take_carry());
    }
    counter += 8;
    let base = _mm256_xor_si256(base, counters(counter, counter));
    let sum = match (tail.len() - ICV_LENGTH).div_ceil(PAIR) {
        0 => ending::<KEYS, OPEN, 0>(base, hash, pending, tail, lengths),
        1 => ending::<KEYS, OPEN, 1>(base, hash, pending, tail, lengths),
        2 => ending::<KEYS, OPEN, 2>(base, hash, pending, tail, lengths),
        3 => ending::<KEYS, OPEN, 3>(base, hash, pending, tail, lengths),
        _ => ending::<KEYS, OPEN, 4>(base, hash, pending, tail, lengths),
    };
    finish::<OPEN>(_mm_xor_si128(reverse_block(sum), mask), icv, octets)
}

/// The last group of a long message, 0 to `VECTORS` pairs and the lengths: the sum that GHASH comes to.
#[target_feature(enable = "avx2,aes,vaes,pclmulqdq,vpclmulqdq")]
#[inline]
fn ending<const KEYS: usize, const OPEN: bool, const VECTORS: usize>(
    base: __m256i,
    mut hash: Hash<'_>,
    pending: [__m256i; 4],
    octets: &mut [u8],
    lengths: __m128i,
) -> __m128i {
    let key = hash.key;
    let text = octets.len() - ICV_LENGTH;
    let mut states = [base; VECTORS];
    for (index, state) in states.iter_mut().enumerate() {
        let counter = 2 * index as u32;
        *state = _mm256_xor_si256(*state, counters(counter, counter + 1));
    }
    rounds_and_hash!(KEYS, key, states, hash, pending);
    if hash.groups() == 0 {
        hash.end_stretch();
    } else {
        hash.advance();
    }
    let last_key = round_key_256(key, KEYS - 1);
    let mut lengths = _mm256_zextsi128_si256(lengths);
    let mut exponent = hash.exponent;
    for (index, state) in states.into_iter().enumerate() {
        let Some(place) = octets.get_mut(PAIR * index..) else {
            unreachable!("the caller counted the pairs");
        };
        let left = text - PAIR * index;
        let mut block;
        if left > BLOCK {
            let Some(place) = place.first_chunk_mut() else {
                unreachable!("the room for the tag follows the text");
            };
            block = if index + 1 == VECTORS {
                last_round_of_part::<OPEN>(state, last_key, place, left)
            } else {
                last_round::<OPEN>(state, last_key, place)
            };
        } else {
            let hashed = last_round_of_block::<OPEN>(state, last_key, place, left);
            block = _mm256_set_m128i(_mm256_castsi256_si128(lengths), hashed);
            lengths = _mm256_setzero_si256();
        }
        block = _mm256_xor_si256(block, hash.take_carry());
        hash.products.add(block, Powers::<2>::down_from(key, exponent).pair(0));
        exponent -= 2;
    }
    if exponent == 1 {
        lengths = _mm256_xor_si256(lengths, hash.take_carry());
        hash.products.add(lengths, Powers::<2>::down_from(key, 1).pair(0));
    }
    hash.products.reduce()
}
