//! ESP headers and trailers (RFC 4303) of the AEAD suites.

/// Octets of SPI and sequence number.
pub const HEADER: usize = 8;
/// Octets of SPI, sequence number and the explicit IV of 8.
pub const HEADER_AND_IV: usize = 16;
/// Octets of pad length and next header.
pub const TRAILER: usize = 2;
/// Octets of the non-ESP marker before IKE on the NAT traversal port (RFC 3948 section 2.2).
pub const NON_ESP_MARKER: usize = 4;

/// Octets of padding for a payload, so that payload, padding and trailer are a multiple of 4.
#[inline]
pub const fn padding(payload: usize) -> usize {
    (4 - (payload + TRAILER) % 4) % 4
}

/// Write padding (1, 2, 3, …), pad length and next header. `place` holds just those.
#[inline]
pub fn write_trailer(place: &mut [u8], next_header: u8) {
    let Some(padding) = place.len().checked_sub(TRAILER) else {
        return;
    };
    for (octet, value) in place[..padding].iter_mut().zip(1u8..=255) {
        *octet = value;
    }
    place[padding] = padding as u8;
    place[padding + 1] = next_header;
}

/// Octets of payload and the next header of a decrypted packet, if its trailer is sound (RFC 4303 section 2.4).
#[inline]
pub fn read_trailer(plaintext: &[u8]) -> Option<(usize, u8)> {
    let [.., padding, next_header] = plaintext else {
        return None;
    };
    let payload = plaintext.len().checked_sub(TRAILER + usize::from(*padding))?;
    let pad = &plaintext[payload..plaintext.len() - TRAILER];
    let sound = pad.iter().zip(1u8..=255).all(|(octet, value)| *octet == value);
    sound.then_some((payload, *next_header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_round_trip_and_wrong_ones_are_refused() {
        for payload in 0..64 {
            let mut plaintext = vec![0xaa; payload + padding(payload) + TRAILER];
            assert_eq!(plaintext.len() % 4, 0);
            write_trailer(&mut plaintext[payload..], 47);
            assert_eq!(read_trailer(&plaintext), Some((payload, 47)));
        }
        assert_eq!(read_trailer(&[1, 2, 2, 47]), Some((0, 47)));
        assert_eq!(read_trailer(&[1, 3, 2, 47]), None);
        assert_eq!(read_trailer(&[1, 2, 3, 47]), None);
        assert_eq!(read_trailer(&[47]), None);
        let longest: Vec<u8> = (1..=255).chain([255, 59]).collect();
        assert_eq!(read_trailer(&longest), Some((0, 59)));
    }
}
