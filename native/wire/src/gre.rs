//! GRE headers (RFC 2784, RFC 2890).

use crate::checksum;
use crate::read_u32;

/// Protocol type of IPv4.
pub const IPV4: u16 = 0x0800;
/// Protocol type of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Protocol type of NHRP.
pub const NHRP: u16 = 0x2001;

/// Octets of the longest header that is written.
pub const MAX_HEADER: usize = 8;

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
// Routing, strict source route, recursion control and the rest of RFC 1701, and the version.
const REFUSED: u16 = 0x4fff;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GreHeader {
    /// The key, if there is one.
    pub key: Option<u32>,
    /// Protocol type of the payload.
    pub protocol: u16,
    /// Octets of the header.
    pub length: usize,
}

/// Octets of the header that is written with or without a key.
#[inline]
pub const fn header_length(key: Option<u32>) -> usize {
    if key.is_some() { 8 } else { 4 }
}

impl GreHeader {
    /// Read the header that `packet` begins with; a checksum covers the whole packet and is checked.
    ///
    /// `None`: truncated, another version, flags that RFC 2784 section 2.3 has a receiver refuse, or a wrong checksum.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let first: &[u8; 4] = packet.first_chunk()?;
        let flags = u16::from_be_bytes([first[0], first[1]]);
        let protocol = u16::from_be_bytes([first[2], first[3]]);
        if flags & REFUSED != 0 {
            return None;
        }
        let mut length = 4;
        if flags & CHECKSUM != 0 {
            if checksum::fold(checksum::add(0, packet)) != [0xff, 0xff] {
                return None;
            }
            length += 4;
        }
        let mut key = None;
        if flags & KEY != 0 {
            key = Some(read_u32(packet, length));
            length += 4;
        }
        if flags & SEQUENCE != 0 {
            length += 4;
        }
        (length <= packet.len()).then_some(Self { key, protocol, length })
    }

    /// The octets of a header with or without a key; [`header_length`] of them count.
    #[inline]
    pub const fn write(key: Option<u32>, protocol: u16) -> [u8; MAX_HEADER] {
        let [p0, p1] = protocol.to_be_bytes();
        match key {
            Some(key) => {
                let [k0, k1, k2, k3] = key.to_be_bytes();
                [0x20, 0, p0, p1, k0, k1, k2, k3]
            }
            None => [0, 0, p0, p1, 0, 0, 0, 0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        for key in [None, Some(0), Some(42), Some(u32::MAX)] {
            let octets = GreHeader::write(key, NHRP);
            let length = header_length(key);
            assert_eq!(GreHeader::parse(&octets[..length]), Some(GreHeader { key, protocol: NHRP, length }));
            assert_eq!(GreHeader::parse(&octets[..length - 1]), None);
        }
    }

    #[test]
    fn optional_fields_are_skipped_and_checked() {
        let mut packet = vec![0xb0, 0, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 1, 0x45, 0xff];
        let sum = checksum::finish(checksum::add(0, &packet));
        packet[4..6].copy_from_slice(&sum);
        assert_eq!(GreHeader::parse(&packet), Some(GreHeader { key: Some(42), protocol: IPV4, length: 16 }));
        packet[17] ^= 1;
        assert_eq!(GreHeader::parse(&packet), None);
        assert_eq!(GreHeader::parse(&[0x10, 0, 8, 0, 0, 0, 0, 1]).map(|header| header.length), Some(8));
        for flags in [[0x40, 0], [0, 1], [0x08, 0], [0, 0x80]] {
            assert_eq!(GreHeader::parse(&[flags[0], flags[1], 8, 0]), None);
        }
    }
}
