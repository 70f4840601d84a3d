//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, as far as forwarding needs them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum;
use crate::{read_u16, read_u32};

/// Protocol numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ESP.
    pub const ESP: u8 = 50;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// No next header; in ESP a dummy packet.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Octets of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Octets of an IPv6 header without extensions.
pub const IPV6_HEADER: usize = 40;
/// IPv6 extension headers that are walked; a longer chain is malformed to us.
pub const MAX_EXTENSIONS: usize = 8;

/// IPv4 flag "don't fragment", in the word that also holds the fragment offset.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// IPv4 flag "more fragments".
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset in units of 8 octets.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// What one pass over the headers of an IP packet finds. Offsets are from its first octet, and lie within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket {
    /// 4 or 6.
    pub version: u8,
    /// Protocol behind the IP header and its extensions.
    pub protocol: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Whether it is a fragment.
    pub fragment: bool,
    /// Whether IPv6 extension headers or IPv4 options are there.
    pub options: bool,
    /// IPv4: whether DF is set. IPv6: true.
    pub dont_fragment: bool,
    /// Where the protocol's header begins.
    pub header_length: usize,
    /// Octets of the packet by its own length field, no more than there are.
    pub length: usize,
}

/// Not an IP packet, or one whose length fields do not fit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl IpPacket {
    /// Walk the headers of a packet, which may be followed by other octets.
    #[inline]
    pub fn parse(octets: &[u8]) -> Result<Self, Malformed> {
        match octets.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(octets),
            Some(6) => Self::parse_v6(octets),
            _ => Err(Malformed),
        }
    }

    #[inline]
    fn parse_v4(octets: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; IPV4_HEADER] = octets.first_chunk().ok_or(Malformed)?;
        let header_length = usize::from(header[0] & 0xf) * 4;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < IPV4_HEADER || length < header_length || length > octets.len() {
            return Err(Malformed);
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        Ok(Self {
            version: 4,
            protocol: header[9],
            tos: header[1],
            fragment: fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0,
            options: header_length > IPV4_HEADER,
            dont_fragment: fragment & DONT_FRAGMENT != 0,
            header_length,
            length,
        })
    }

    #[inline]
    fn parse_v6(octets: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; IPV6_HEADER] = octets.first_chunk().ok_or(Malformed)?;
        let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if length > octets.len() {
            return Err(Malformed);
        }
        let mut packet = Self {
            version: 6,
            protocol: header[6],
            tos: header[0] << 4 | header[1] >> 4,
            fragment: false,
            options: false,
            dont_fragment: true,
            header_length: IPV6_HEADER,
            length,
        };
        if is_extension(packet.protocol) {
            packet.walk_extensions(&octets[..length])?;
        }
        Ok(packet)
    }

    #[cold]
    fn walk_extensions(&mut self, octets: &[u8]) -> Result<(), Malformed> {
        self.options = true;
        for _ in 0..MAX_EXTENSIONS {
            let at = self.header_length;
            let header: &[u8; 8] = octets.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Malformed)?;
            let length = if self.protocol == protocol::FRAGMENT {
                self.fragment |= u16::from_be_bytes([header[2], header[3]]) & 0xfff9 != 0;
                8
            } else {
                8 + usize::from(header[1]) * 8
            };
            if at + length > octets.len() {
                return Err(Malformed);
            }
            self.header_length += length;
            let later_fragment =
                self.protocol == protocol::FRAGMENT && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
            self.protocol = header[0];
            // Behind the header of a later fragment there is no next header but data.
            if later_fragment || !is_extension(self.protocol) {
                return Ok(());
            }
        }
        Err(Malformed)
    }

    /// The destination address of the packet that was parsed.
    pub fn destination(&self, octets: &[u8]) -> IpAddr {
        if self.version == 4 {
            IpAddr::V4(Ipv4Addr::from_bits(read_u32(octets, 16)))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(read_u128(octets, 24)))
        }
    }

    /// The source address of the packet that was parsed.
    pub fn source(&self, octets: &[u8]) -> IpAddr {
        if self.version == 4 {
            IpAddr::V4(Ipv4Addr::from_bits(read_u32(octets, 12)))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(read_u128(octets, 8)))
        }
    }

    /// The partial sum of the pseudo-header but its length: addresses and protocol.
    #[inline]
    pub fn pseudo_sum(&self, octets: &[u8]) -> u64 {
        let addresses = if self.version == 4 { octets.get(12..20) } else { octets.get(8..40) };
        checksum::add(checksum::word(u16::from(self.protocol)), addresses.unwrap_or_default())
    }
}

#[inline]
fn is_extension(protocol: u8) -> bool {
    use protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Sixteen octets in network order at `at`, 0 beyond the end.
#[inline]
pub fn read_u128(octets: &[u8], at: usize) -> u128 {
    octets.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u128::from_be_bytes(*field))
}

/// Compute the header checksum of an IPv4 header, options included, and write it.
pub fn write_ipv4_checksum(header: &mut [u8]) {
    crate::write(header, 10, &[0, 0]);
    let sum = checksum::finish(checksum::add(0, header));
    crate::write(header, 10, &sum);
}

/// The word of an IPv4 header that holds the fragment flags and offset.
pub fn ipv4_fragment_word(octets: &[u8]) -> u16 {
    read_u16(octets, 6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 40];
        octets[0] = 0x60;
        octets[4..6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
        octets[6] = next;
        octets.extend_from_slice(rest);
        octets
    }

    #[test]
    fn extension_headers_are_walked() {
        let mut rest = vec![60, 0, 0, 0, 0, 0, 0, 0];
        rest.extend([6, 1]);
        rest.extend([0; 14]);
        rest.extend([0; 20]);
        let packet = IpPacket::parse(&v6(0, &rest)).unwrap();
        assert_eq!((packet.protocol, packet.header_length, packet.options), (6, 64, true));
        assert!(!packet.fragment);
    }

    #[test]
    fn a_later_fragment_ends_the_walk() {
        let rest = [60, 0, 0x00, 0x08, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
        let packet = IpPacket::parse(&v6(44, &rest)).unwrap();
        assert!(packet.fragment);
        assert_eq!(packet.header_length, 48);
    }

    #[test]
    fn an_endless_chain_is_malformed() {
        let rest: Vec<u8> = std::iter::repeat_n([0u8, 0, 0, 0, 0, 0, 0, 0], 100).flatten().collect();
        assert_eq!(IpPacket::parse(&v6(0, &rest)), Err(Malformed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 500 }))]

        #[test]
        fn anything_is_parsed_or_refused(mut octets in prop::collection::vec(any::<u8>(), 0..200), version in 0u8..3) {
            if let Some(first) = octets.first_mut() {
                *first = match version { 0 => *first, 1 => 0x40 | *first & 0xf, _ => 0x60 };
            }
            if let Ok(packet) = IpPacket::parse(&octets) {
                prop_assert!(packet.length <= octets.len());
                prop_assert!(packet.header_length <= packet.length);
            }
        }
    }
}
