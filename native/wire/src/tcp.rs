//! TCP headers (RFC 9293).

use crate::checksum;
use crate::{read_u16, write};

/// Octets of a header without options.
pub const HEADER: usize = 20;
/// Where the checksum is.
pub const CHECKSUM_AT: usize = 16;

/// FIN.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// PSH.
pub const PSH: u8 = 0x08;
/// ACK.
pub const ACK: u8 = 0x10;
/// URG.
pub const URG: u8 = 0x20;
/// ECE.
pub const ECE: u8 = 0x40;
/// CWR.
pub const CWR: u8 = 0x80;

/// Octets of the header that `segment` begins with, if it is all there.
#[inline]
pub fn header_length(segment: &[u8]) -> Option<usize> {
    let length = usize::from(segment.get(12)? >> 4) * 4;
    (HEADER..=segment.len()).contains(&length).then_some(length)
}

/// Lower the MSS option of a SYN to `mss`, correcting the checksum by the difference (RFC 1624). True if it was higher.
pub fn clamp_mss(segment: &mut [u8], mss: u16) -> bool {
    let Some(length) = header_length(segment) else {
        return false;
    };
    if segment[13] & SYN == 0 {
        return false;
    }
    let mut at = HEADER;
    while at < length {
        match segment[at] {
            0 => return false,
            1 => at += 1,
            kind => {
                let Some(&option) = segment[..length].get(at + 1) else {
                    return false;
                };
                let option = usize::from(option);
                if option < 2 || at + option > length {
                    return false;
                }
                if kind == 2 && option == 4 {
                    return lower(segment, at + 2, mss);
                }
                at += option;
            }
        }
    }
    false
}

fn lower(segment: &mut [u8], at: usize, mss: u16) -> bool {
    let old = read_u16(segment, at);
    if old <= mss {
        return false;
    }
    // At an odd offset the field's octets belong to two words, each of which changes.
    let even = at & !1;
    let words = [even, even + 2];
    let before = words.map(|word| read_u16(segment, word));
    write(segment, at, &mss.to_be_bytes());
    let mut sum = read_u16(segment, CHECKSUM_AT);
    for (word, old) in words.into_iter().zip(before) {
        sum = checksum::update(sum, old, read_u16(segment, word));
    }
    write(segment, CHECKSUM_AT, &sum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0; HEADER];
        segment[..4].copy_from_slice(&[0x12, 0x34, 0, 80]);
        segment[12] = (((HEADER + options.len()) / 4) << 4) as u8;
        segment[13] = SYN;
        segment.extend_from_slice(options);
        let sum = checksum::finish(checksum::add(0, &segment));
        segment[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum);
        segment
    }

    #[test]
    fn mss_is_lowered_at_even_and_odd_offsets() {
        for options in [&[2u8, 4, 0x05, 0xb4][..], &[1, 2, 4, 0x05, 0xb4, 1, 1, 0], &[3, 3, 7, 2, 4, 0x05, 0xb4, 0]] {
            let mut segment = syn(options);
            assert!(!clamp_mss(&mut segment, 1460));
            assert!(clamp_mss(&mut segment, 1300));
            assert_eq!(checksum::fold(checksum::add(0, &segment)), [0xff, 0xff]);
            let at = HEADER + options.windows(2).position(|pair| pair == [2, 4]).unwrap() + 2;
            assert_eq!(read_u16(&segment, at), 1300);
        }
    }

    #[test]
    fn hostile_options_are_left_alone() {
        for options in
            [&[2u8, 3, 5, 1][..], &[9, 0, 0, 0], &[9, 1, 0, 0], &[1, 1, 1, 2], &[5, 200, 0, 0], &[0, 2, 4, 9]]
        {
            let mut segment = syn(options);
            let before = segment.clone();
            assert!(!clamp_mss(&mut segment, 500));
            assert_eq!(segment, before);
        }
        assert!(!clamp_mss(&mut [], 500));
        assert!(!clamp_mss(&mut [0xff; 20], 500));
    }
}
