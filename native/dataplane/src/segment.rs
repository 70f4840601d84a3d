//! Segmentation of TCP and UDP superpackets, one segment at a time and straight into its place.

use dsvpn_wire::checksum;
use dsvpn_wire::ip::{self, IpPacket, protocol};
use dsvpn_wire::tcp;
use dsvpn_wire::udp;
use dsvpn_wire::virtio::{self, VirtioNetHeader};
use dsvpn_wire::{read_u16, read_u32, write};

/// Longest headers of a superpacket, IP and transport together, that are segmented.
const MAX_HEADERS: usize = 256;

/// The superpacket cannot be what its virtio header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotASuperpacket;

/// A superpacket parsed once: the headers of all segments as a template, and partial sums of what they share.
#[derive(Clone, Debug)]
pub(crate) struct Superpacket<'a> {
    template: [u8; MAX_HEADERS],
    headers: usize,
    ip_header: usize,
    v4: bool,
    tcp: bool,
    // Of the IPv4 header with length, identification and checksum zero.
    ip_sum: u64,
    // Of the pseudo-header without length and the transport header with all that differs zero.
    transport_sum: u64,
    identification: u16,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
    size: usize,
    count: u32,
}

impl<'a> Superpacket<'a> {
    /// Parse a superpacket. Of the virtio header, `gso_type` and `gso_size` are used, and where IP has options or extension
    /// headers what it says of the checksum; the headers are read again.
    pub(crate) fn parse(
        octets: &'a [u8],
        packet: &IpPacket,
        virtio: &VirtioNetHeader,
    ) -> Result<Self, NotASuperpacket> {
        let octets = &octets[..packet.length];
        let transport = &octets[packet.header_length..];
        let tcp = match (virtio.gso_type & !virtio::GSO_ECN, packet.version) {
            (virtio::GSO_TCPV4, 4) | (virtio::GSO_TCPV6, 6) => true,
            (virtio::GSO_UDP_L4, _) => false,
            _ => return Err(NotASuperpacket),
        };
        let (wanted, transport_header) = if tcp {
            (protocol::TCP, tcp::header_length(transport).ok_or(NotASuperpacket)?)
        } else {
            (protocol::UDP, udp::HEADER)
        };
        let headers = packet.header_length + transport_header;
        if packet.protocol != wanted
            || packet.fragment
            || transport.len() < transport_header
            || headers > MAX_HEADERS
            || virtio.gso_size == 0
        {
            return Err(NotASuperpacket);
        }
        let checksum_at = if tcp { tcp::CHECKSUM_AT } else { udp::CHECKSUM_AT };
        let (header, payload) = octets.split_at(headers);
        let pseudo_sum = if packet.options {
            given_pseudo_sum(transport, packet, virtio, checksum_at).ok_or(NotASuperpacket)?
        } else {
            packet.pseudo_sum(header)
        };
        let size = usize::from(virtio.gso_size);
        let mut superpacket = Self {
            template: [0; MAX_HEADERS],
            headers,
            ip_header: packet.header_length,
            v4: packet.version == 4,
            tcp,
            ip_sum: 0,
            transport_sum: 0,
            identification: read_u16(header, 4),
            sequence: read_u32(transport, 4),
            flags: if tcp { transport[13] } else { 0 },
            payload,
            size,
            count: payload.len().div_ceil(size).max(1) as u32,
        };
        let template = &mut superpacket.template[..headers];
        template.copy_from_slice(header);
        let (ip, transport) = template.split_at_mut(packet.header_length);
        if superpacket.v4 {
            write(ip, 2, &[0; 4]);
            write(ip, 10, &[0; 2]);
            superpacket.ip_sum = checksum::add(0, ip);
        }
        if tcp {
            write(transport, 4, &[0; 4]);
            transport[13] = 0;
        } else {
            write(transport, udp::LENGTH_AT, &[0; 2]);
        }
        write(transport, checksum_at, &[0; 2]);
        superpacket.transport_sum = checksum::add(pseudo_sum, transport);
        Ok(superpacket)
    }

    /// Number of segments, at least 1.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Octets of all headers of a segment.
    pub(crate) fn headers(&self) -> usize {
        self.headers
    }

    /// Octets of the largest segment, headers included.
    pub(crate) fn largest(&self) -> usize {
        self.headers + self.payload.len().min(self.size)
    }

    /// Octets of a segment, headers included.
    #[inline]
    pub(crate) fn length(&self, index: u32) -> usize {
        let start = (index as usize * self.size).min(self.payload.len());
        self.headers + (self.payload.len() - start).min(self.size)
    }

    /// Have segments of TCP carry less.
    pub(crate) fn shrink(&mut self, size: usize) {
        self.size = size.min(self.size).max(1);
        self.count = self.payload.len().div_ceil(self.size).max(1) as u32;
    }

    /// Write a segment to `place`, which has just its length.
    #[inline]
    pub(crate) fn write(&self, index: u32, place: &mut [u8]) {
        let start = (index as usize * self.size).min(self.payload.len());
        let payload = &self.payload[start..(start + self.size).min(self.payload.len())];
        if place.len() != self.headers + payload.len() {
            debug_assert!(false, "the place of a segment has its length");
            return;
        }
        let (header, body) = place.split_at_mut(self.headers);
        header.copy_from_slice(&self.template[..self.headers]);
        let (ip, transport) = header.split_at_mut(self.ip_header);
        let total = self.headers + payload.len();
        if self.v4 {
            let total = total as u16;
            let identification = self.identification.wrapping_add(index as u16);
            let sum = self.ip_sum + checksum::word(total) + checksum::word(identification);
            write(ip, 2, &total.to_be_bytes());
            write(ip, 4, &identification.to_be_bytes());
            write(ip, 10, &checksum::finish(sum));
        } else {
            // With the IPv6 header, the largest packet has more octets than 16 bits count.
            write(ip, 4, &((total - ip::IPV6_HEADER) as u16).to_be_bytes());
        }
        let length = (transport.len() + payload.len()) as u16;
        let mut sum = self.transport_sum + checksum::word(length);
        if self.tcp {
            let mut flags = self.flags;
            if index + 1 < self.count {
                flags &= !(tcp::FIN | tcp::PSH);
            }
            if index > 0 {
                flags &= !tcp::CWR;
            }
            let sequence = self.sequence.wrapping_add(start as u32);
            sum += checksum::long(sequence) + checksum::word(u16::from(flags));
            write(transport, 4, &sequence.to_be_bytes());
            transport[13] = flags;
            sum = checksum::copy_and_add(sum, body, payload);
            write(transport, tcp::CHECKSUM_AT, &checksum::finish(sum));
        } else {
            sum += checksum::word(length);
            write(transport, udp::LENGTH_AT, &length.to_be_bytes());
            sum = checksum::copy_and_add(sum, body, payload);
            write(transport, udp::CHECKSUM_AT, &checksum::finish_udp(sum));
        }
    }
}

/// The partial sum of the pseudo-header but its length, as the sender put it into the checksum field.
///
/// The addresses of the pseudo-header are not always those of the IP header: a routing header with segments left and a
/// source route lead to another destination (RFC 8200 section 8.1, RFC 791 section 3.1), a Home Address option names another
/// source (RFC 6275 section 11.3.1). Routing headers of some types do not even tell the last address. The sender knows it;
/// without its word, which `virtio` must give with every superpacket (virtio 1.2 section 5.1.6.2), nobody does.
#[cold]
fn given_pseudo_sum(transport: &[u8], packet: &IpPacket, virtio: &VirtioNetHeader, checksum_at: usize) -> Option<u64> {
    let given = virtio.flags & virtio::NEEDS_CSUM != 0
        && usize::from(virtio.csum_start) == packet.header_length
        && usize::from(virtio.csum_offset) == checksum_at;
    let length = transport.len() as u16;
    given.then(|| checksum::word(read_u16(transport, checksum_at)) + checksum::word(!length))
}

/// Whether the checksum that NEEDS_CSUM asks for lies behind the IP header and within the packet.
#[inline]
pub(crate) fn checksum_fits(packet: &IpPacket, virtio: &VirtioNetHeader) -> bool {
    let start = usize::from(virtio.csum_start);
    start >= packet.header_length && start + usize::from(virtio.csum_offset) + 2 <= packet.length
}

/// Complete the checksum of a single packet that has NEEDS_CSUM: the field holds the pseudo-header's sum.
///
/// [`checksum_fits`] was asked; `octets` are the whole packet.
#[inline]
pub(crate) fn complete_checksum(octets: &mut [u8], packet: &IpPacket, virtio: &VirtioNetHeader) {
    let start = usize::from(virtio.csum_start);
    let sum = checksum::add(0, octets.get(start..packet.length).unwrap_or_default());
    let checksum = if packet.protocol == protocol::UDP { checksum::finish_udp(sum) } else { checksum::finish(sum) };
    write(octets, start + usize::from(virtio.csum_offset), &checksum);
}
