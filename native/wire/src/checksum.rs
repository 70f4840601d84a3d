//! The Internet checksum (RFC 1071), wide: 32-bit words are added into 64-bit lanes, which the compiler turns into
//! vector instructions, and folded at the end.
//!
//! A *partial sum* is a `u64` of words in the processor's byte order: the sum is the same in any order but for the
//! position of the octets in the result (RFC 1071 section 2 (B)), so that nothing is swapped on the way.

use std::sync::OnceLock;

/// The sums of long runs of octets by wider vectors than every processor has: what a crate that may ask the processor
/// gives to this one, which has no unsafe code.
#[derive(Debug)]
pub struct Wide {
    /// As [`add_plain`].
    pub add: fn(u64, &[u8]) -> u64,
    /// As [`copy_and_add_plain`].
    pub copy_and_add: fn(u64, &mut [u8], &[u8]) -> u64,
}

static WIDE: OnceLock<&'static Wide> = OnceLock::new();

/// Octets from which on the call is worth it.
const LONG: usize = 256;

/// Use wider vectors from here on. The first call counts.
pub fn set_wide(wide: &'static Wide) {
    WIDE.get_or_init(|| wide);
}

/// A field in network order as a term of a partial sum.
#[inline]
pub const fn word(field: u16) -> u64 {
    u16::from_ne_bytes(field.to_be_bytes()) as u64
}

/// A field of 32 bits as a term of a partial sum.
#[inline]
pub const fn long(field: u32) -> u64 {
    u32::from_ne_bytes(field.to_be_bytes()) as u64
}

const LANES: usize = 8;
const BLOCK: usize = LANES * 8;

#[inline(always)]
fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// The terms of fewer octets than a block.
#[inline(always)]
fn tail(mut sum: u64, rest: &[u8]) -> u64 {
    let (words, rest) = rest.as_chunks::<8>();
    for octets in words {
        sum += halves(u64::from_ne_bytes(*octets));
    }
    let mut rest = rest;
    if let Some((octets, more)) = rest.split_first_chunk::<4>() {
        sum += u64::from(u32::from_ne_bytes(*octets));
        rest = more;
    }
    if let Some((octets, more)) = rest.split_first_chunk::<2>() {
        sum += u64::from(u16::from_ne_bytes(*octets));
        rest = more;
    }
    if let [octet] = rest {
        sum += u64::from(u16::from_ne_bytes([*octet, 0]));
    }
    sum
}

/// Add octets to a partial sum. They begin at an even offset of what is summed.
#[inline]
pub fn add(sum: u64, octets: &[u8]) -> u64 {
    match WIDE.get() {
        Some(wide) if octets.len() >= LONG => (wide.add)(sum, octets),
        _ => add_plain(sum, octets),
    }
}

/// Copy octets and add them to a partial sum in one pass. Both slices have one length.
#[inline]
pub fn copy_and_add(sum: u64, to: &mut [u8], from: &[u8]) -> u64 {
    match WIDE.get() {
        Some(wide) if to.len() >= LONG => (wide.copy_and_add)(sum, to, from),
        _ => copy_and_add_plain(sum, to, from),
    }
}

/// [`add`] with the vectors that the function it is inlined to may use.
#[inline(always)]
pub fn add_plain(sum: u64, octets: &[u8]) -> u64 {
    let mut lanes = [0u64; LANES];
    let (blocks, rest) = octets.as_chunks::<BLOCK>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += halves(u64::from_ne_bytes(*word));
        }
    }
    shorten(tail(sum + lanes.iter().sum::<u64>(), rest))
}

/// [`copy_and_add`] with the vectors that the function it is inlined to may use.
#[inline(always)]
pub fn copy_and_add_plain(sum: u64, to: &mut [u8], from: &[u8]) -> u64 {
    let length = to.len().min(from.len());
    let (to, from) = (&mut to[..length], &from[..length]);
    let mut lanes = [0u64; LANES];
    let (to_blocks, to_rest) = to.as_chunks_mut::<BLOCK>();
    let (from_blocks, from_rest) = from.as_chunks::<BLOCK>();
    for (to, from) in to_blocks.iter_mut().zip(from_blocks) {
        let (words, _) = from.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += halves(u64::from_ne_bytes(*word));
        }
        *to = *from;
    }
    to_rest.copy_from_slice(from_rest);
    shorten(tail(sum + lanes.iter().sum::<u64>(), from_rest))
}

/// The same sum in fewer bits, so that sums of sums do not overflow.
#[inline]
const fn shorten(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// Fold a partial sum to 16 bits, not complemented: what a TUN wants in the checksum field with NEEDS_CSUM. As octets
/// to be written.
#[inline]
pub const fn fold(sum: u64) -> [u8; 2] {
    let sum = shorten(shorten(sum));
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum as u16).to_ne_bytes()
}

/// The checksum of a partial sum: folded and complemented, as octets to be written.
#[inline]
pub const fn finish(sum: u64) -> [u8; 2] {
    let [first, second] = fold(sum);
    [!first, !second]
}

/// As [`finish`], for UDP, where a checksum of zero is written as all ones (RFC 768).
#[inline]
pub const fn finish_udp(sum: u64) -> [u8; 2] {
    match finish(sum) {
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    }
}

/// The checksum field after one 16-bit field under it changes (RFC 1624 equation 3). Arguments in network order values.
#[inline]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = !checksum as u32 + !old as u32 + new as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word.
    fn plain(octets: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in octets.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 200 }))]

        #[test]
        fn agrees_with_the_plain_sum(octets in prop::collection::vec(any::<u8>(), 0..700), split in 0usize..700) {
            let expected = plain(&octets).to_be_bytes();
            prop_assert_eq!(finish(add(0, &octets)), expected);
            let mut copy = vec![0; octets.len()];
            prop_assert_eq!(finish(copy_and_add(0, &mut copy, &octets)), expected);
            prop_assert_eq!(&copy, &octets);
            let split = split.min(octets.len()) & !1;
            prop_assert_eq!(finish(add(add(0, &octets[..split]), &octets[split..])), expected);
        }

        #[test]
        fn incremental_update_agrees(mut octets in prop::collection::vec(any::<u8>(), 4..64), new in any::<u16>()) {
            let before = plain(&octets);
            let old = u16::from_be_bytes([octets[2], octets[3]]);
            octets[2..4].copy_from_slice(&new.to_be_bytes());
            // All-zero data has two representations of zero; RFC 1624 keeps them apart.
            prop_assume!(octets.iter().any(|octet| *octet != 0));
            prop_assert_eq!(update(before, old, new), plain(&octets));
        }
    }

    #[test]
    fn largest_sums_do_not_overflow() {
        let octets = vec![0xff; 65_535];
        assert_eq!(finish(add(u64::from(u32::MAX) * 2, &octets)), [0, 0xff]);
        assert_eq!(plain(&octets), 0x00ff);
    }
}
