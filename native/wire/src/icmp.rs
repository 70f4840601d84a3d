//! ICMP "fragmentation needed" (RFC 1191) and ICMPv6 "packet too big" (RFC 4443), as whole IP packets.

use std::net::IpAddr;

use crate::checksum;
use crate::ip::{self, IPV4_HEADER, IPV6_HEADER, IpPacket, protocol};
use crate::{read_u16, read_u32, write};

/// The largest ICMPv6 error (RFC 4443 section 3.2: the minimum IPv6 MTU).
const MAX_V6: usize = 1280;
/// The largest ICMP error (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;

/// Whether a packet may be answered with an ICMP error (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
///
/// Not for later fragments, ICMP errors, and sources that name no single host. (ICMPv6 lets "packet too big" answer
/// multicast, but there its source address would be the multicast group, so that is refused here.)
pub fn may_answer(packet: &IpPacket, octets: &[u8]) -> bool {
    let (source, destination) = (packet.source(octets), packet.destination(octets));
    let broadcast = |address: IpAddr| matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if source.is_multicast() || source.is_unspecified() || broadcast(source) {
        return false;
    }
    if destination.is_multicast() || broadcast(destination) {
        return false;
    }
    let later_fragment = packet.version == 4 && ip::ipv4_fragment_word(octets) & ip::FRAGMENT_OFFSET != 0;
    if later_fragment || packet.version == 6 && packet.fragment {
        return false;
    }
    match (packet.protocol, octets.get(packet.header_length)) {
        (protocol::ICMP, Some(kind)) if packet.version == 4 => {
            matches!(kind, 0 | 8 | 9 | 10 | 13..=18)
        }
        (protocol::ICMPV6, Some(kind)) if packet.version == 6 => *kind >= 128,
        _ => true,
    }
}

/// Source and destination of the packet that an ICMP error is about (RFC 792, RFC 4443 section 2.4 (c)).
///
/// None for every other packet, and for an error that does not quote a whole IP header. A redirect is no error.
pub fn quoted(packet: &IpPacket, octets: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let is_error = |kind: &u8| match (packet.version, packet.protocol) {
        (4, protocol::ICMP) => matches!(kind, 3 | 11 | 12),
        (6, protocol::ICMPV6) => matches!(kind, 1..=4),
        _ => false,
    };
    let message = octets.get(packet.header_length..packet.length)?;
    if packet.fragment || !message.first().is_some_and(is_error) {
        return None;
    }
    let inner = message.get(8..)?;
    if inner.first()? >> 4 != packet.version {
        return None;
    }
    // Mostly cut short: nothing but its addresses can be relied on.
    if packet.version == 4 {
        let header: &[u8; IPV4_HEADER] = inner.first_chunk()?;
        let address = |at| IpAddr::V4(read_u32(header, at).into());
        Some((address(12), address(16)))
    } else {
        let header: &[u8; IPV6_HEADER] = inner.first_chunk()?;
        let address = |at| IpAddr::V6(ip::read_u128(header, at).into());
        Some((address(8), address(24)))
    }
}

/// Append an error about `octets` to `out`: the packet is too big for `mtu`. It goes to the packet's source, and comes
/// from its destination: an address of our own would be refused as a martian when it comes in by the TUN.
pub fn write_too_big(packet: &IpPacket, octets: &[u8], mtu: u16, out: &mut Vec<u8>) {
    let start = out.len();
    if packet.version == 4 {
        let quoted = &octets[..octets.len().min(MAX_V4 - IPV4_HEADER - 8)];
        let total = (IPV4_HEADER + 8 + quoted.len()) as u16;
        out.extend_from_slice(&[0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, protocol::ICMP, 0, 0]);
        out.extend_from_slice(octets.get(16..20).unwrap_or(&[0; 4]));
        out.extend_from_slice(octets.get(12..16).unwrap_or(&[0; 4]));
        write(&mut out[start..], 2, &total.to_be_bytes());
        ip::write_ipv4_checksum(&mut out[start..]);
        let at = out.len();
        out.extend_from_slice(&[3, 4, 0, 0, 0, 0]);
        out.extend_from_slice(&mtu.to_be_bytes());
        out.extend_from_slice(quoted);
        let sum = checksum::finish(checksum::add(0, &out[at..]));
        write(&mut out[at..], 2, &sum);
    } else {
        let quoted = &octets[..octets.len().min(MAX_V6 - IPV6_HEADER - 8)];
        let length = (8 + quoted.len()) as u16;
        out.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol::ICMPV6, 64]);
        out.extend_from_slice(octets.get(24..40).unwrap_or(&[0; 16]));
        out.extend_from_slice(octets.get(8..24).unwrap_or(&[0; 16]));
        write(&mut out[start..], 4, &length.to_be_bytes());
        let pseudo = checksum::add(checksum::word(u16::from(protocol::ICMPV6)), &out[start + 8..start + 40]);
        let at = out.len();
        out.extend_from_slice(&[2, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&mtu.to_be_bytes());
        out.extend_from_slice(quoted);
        let sum = checksum::finish(checksum::add(pseudo + checksum::word(length), &out[at..]));
        write(&mut out[at..], 2, &sum);
    }
}

/// The MTU that an error of [`write_too_big`] names, for tests.
pub fn read_too_big_mtu(octets: &[u8]) -> Option<u16> {
    let packet = IpPacket::parse(octets).ok()?;
    let icmp = octets.get(packet.header_length..)?;
    let expected = if packet.version == 4 { [3, 4] } else { [2, 0] };
    icmp.starts_with(&expected).then(|| read_u16(icmp, 6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sound_packets() {
        let mut v4 = vec![0x45, 0, 0x05, 0xdc, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 9, 0, 1];
        v4.resize(1500, 7);
        let mut v6 = vec![0x60, 0, 0, 0, 0x05, 0xb4, 17, 64];
        v6.extend((0..32).map(|at| at + 0x20));
        v6.resize(1500, 7);
        for octets in [v4, v6] {
            let packet = IpPacket::parse(&octets).unwrap();
            assert!(may_answer(&packet, &octets));
            let mut out = vec![9];
            write_too_big(&packet, &octets, 1400, &mut out);
            let error = &out[1..];
            let parsed = IpPacket::parse(error).unwrap();
            assert_eq!(parsed.length, error.len());
            assert_eq!(read_too_big_mtu(error), Some(1400));
            assert_eq!(parsed.destination(error), packet.source(&octets));
            let icmp = &error[parsed.header_length..];
            let pseudo = if parsed.version == 4 {
                assert_eq!(checksum::fold(checksum::add(0, &error[..20])), [0xff, 0xff]);
                0
            } else {
                parsed.pseudo_sum(error) + checksum::word(icmp.len() as u16)
            };
            assert_eq!(checksum::fold(checksum::add(pseudo, icmp)), [0xff, 0xff]);
            assert!(!may_answer(&parsed, error));
            let addresses = (packet.source(&octets), packet.destination(&octets));
            assert_eq!(quoted(&parsed, error), Some(addresses));
            assert_eq!(quoted(&packet, &octets), None);
            // A whole header, and no less; errors alone.
            let whole = parsed.header_length + 8 + if parsed.version == 4 { IPV4_HEADER } else { IPV6_HEADER };
            for length in parsed.header_length..whole + 2 {
                let cut = IpPacket { length, ..parsed };
                assert_eq!(quoted(&cut, error), (length >= whole).then_some(addresses));
            }
            for kind in 0..=255 {
                let mut other = error.to_vec();
                write(&mut other, parsed.header_length, &[kind]);
                let errors = if parsed.version == 4 { &[3, 11, 12][..] } else { &[1, 2, 3, 4] };
                assert_eq!(quoted(&parsed, &other).is_some(), errors.contains(&kind));
            }
            assert_eq!(quoted(&IpPacket { fragment: true, ..parsed }, error), None);
        }
    }
}
