//! Coalescing by reference: consecutive segments of a flow become one superpacket for the TUN, whose payloads stay
//! where they were decrypted.
//!
//! A packet joins only the newest item of its flow, so that the order within a flow is kept; items go out in the order
//! in which their first packets came. Headers that differ in anything but length, identification, sequence number,
//! checksum, PSH and FIN are not merged.

use std::hash::Hasher;

use dsvpn_wire::checksum;
use dsvpn_wire::ip::{self, IPV4_HEADER, IPV6_HEADER, IpPacket, protocol};
use dsvpn_wire::tcp;
use dsvpn_wire::udp;
use dsvpn_wire::virtio::{self, VirtioNetHeader};
use dsvpn_wire::{read_u16, read_u32, write};

use crate::limiter::WordHasher;
use crate::vector::{Slice, TunBatch, TunPacket};

const FLOWS: usize = 64;
const NO_LINK: u32 = u32::MAX;
/// Longest packet that a superpacket may become.
const MAX_LENGTH: usize = 65_535;

/// A packet that will go to the TUN, alone or with those that were merged into it.
#[derive(Clone, Copy, Debug)]
struct Item {
    tunnel: u32,
    /// The first packet: where it lies in the arena, and its octets.
    offset: u32,
    length: u32,
    /// Whether the 10 octets before it are free for the virtio header.
    front: bool,
    kind: Kind,
    ip_header: u16,
    headers: u16,
    /// Payload octets of the first packet: the size of all but the last.
    size: u16,
    /// Whether nothing more may join.
    closed: bool,
    /// Flags that joined: PSH and FIN of the last.
    flags: u8,
    count: u32,
    total: u32,
    next_sequence: u32,
    first_link: u32,
    last_link: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Other,
}

impl Kind {
    /// Most packets that one superpacket may be merged of.
    fn max_segments(self) -> usize {
        match self {
            // UDP_MAX_SEGMENTS of Linux; 128 in later kernels. One segment more and the whole superpacket is refused.
            Kind::Udp => 64,
            Kind::Tcp | Kind::Other => TunBatch::MAX_SLICES,
        }
    }
}

/// A payload that joined an item, and the next one.
#[derive(Clone, Copy, Debug)]
struct Link {
    slice: Slice,
    next: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    generation: u32,
    item: u32,
}

/// Collects the packets of one vector.
#[derive(Debug)]
pub(crate) struct Coalescer {
    items: Vec<Item>,
    links: Vec<Link>,
    flows: [Flow; FLOWS],
    generation: u32,
}

/// One packet to be added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    pub(crate) tunnel: u32,
    /// Where the IP packet lies in the arena.
    pub(crate) offset: usize,
    pub(crate) packet: IpPacket,
    /// Whether the 10 octets before it are free for the virtio header.
    pub(crate) front: bool,
    /// Whether it may be merged.
    pub(crate) merge: bool,
    /// Whether its transport checksum is to be checked before.
    pub(crate) verify: bool,
}

impl Coalescer {
    pub(crate) fn new() -> Self {
        Self {
            items: Vec::with_capacity(TunBatch::USUAL),
            links: Vec::with_capacity(TunBatch::USUAL),
            flows: [Flow::default(); FLOWS],
            generation: 1,
        }
    }

    /// Add a packet behind all others.
    #[inline]
    pub(crate) fn add(&mut self, arena: &[u8], incoming: &Incoming) {
        let packet = &incoming.packet;
        let octets = &arena[incoming.offset..incoming.offset + packet.length];
        let kind = match packet.protocol {
            _ if packet.fragment || packet.version == 6 && packet.options => Kind::Other,
            protocol::TCP => Kind::Tcp,
            protocol::UDP => Kind::Udp,
            _ => Kind::Other,
        };
        if kind == Kind::Other {
            // A fragment may belong to any flow: nothing that comes later joins what came before it.
            if packet.fragment || packet.options {
                self.next_generation();
            }
            self.items.push(item(incoming, kind));
            return;
        }
        let ports = octets.get(packet.header_length..packet.header_length + 4).unwrap_or_default();
        let slot = &mut self.flows[flow_slot(incoming.tunnel, packet, octets, ports)];
        let candidate = if slot.generation == self.generation { self.items.get_mut(slot.item as usize) } else { None };
        let mergeable = if incoming.merge { segment(packet, octets, kind) } else { None };
        let verified = || !incoming.verify || checksum_is_right(packet, octets);
        if let (Some(item), Some(segment)) = (candidate, mergeable)
            && item.joins(arena, incoming, octets, kind, &segment)
            && verified()
        {
            let payload = octets.len() - usize::from(item.headers);
            let link = self.links.len() as u32;
            let offset = (incoming.offset + usize::from(item.headers)) as u32;
            self.links.push(Link { slice: Slice { offset, length: payload as u32 }, next: NO_LINK });
            if item.last_link == NO_LINK {
                item.first_link = link;
            } else {
                self.links[item.last_link as usize].next = link;
            }
            item.last_link = link;
            item.count += 1;
            item.total += payload as u32;
            item.next_sequence = segment.sequence.wrapping_add(payload as u32);
            item.flags |= segment.ending;
            item.closed = segment.ending != 0 || payload < usize::from(item.size);
            return;
        }
        *slot = Flow { generation: self.generation, item: self.items.len() as u32 };
        let mut new = item(incoming, kind);
        if let Some(segment) = mergeable
            && verified()
        {
            let payload = packet.length - segment.headers;
            new.headers = segment.headers as u16;
            new.size = payload as u16;
            new.closed = segment.ending != 0;
            new.next_sequence = segment.sequence.wrapping_add(payload as u32);
        }
        self.items.push(new);
    }

    fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.flows = [Flow::default(); FLOWS];
            self.generation = 1;
        }
    }

    /// Append all packets to `out`, writing the headers of merged ones in place. Gives how many were merged of several,
    /// how many packets there are, and their octets.
    pub(crate) fn finish(&mut self, arena: &mut [u8], out: &mut TunBatch) -> (u64, u64, u64) {
        let (mut merged, mut octets) = (0, 0);
        for item in &self.items {
            let virtio = if item.count > 1 {
                merged += 1;
                item.rewrite_headers(arena)
            } else {
                VirtioNetHeader::default()
            };
            octets += u64::from(item.total);
            let header_offset = out.headers.len() as u32;
            let slice_start = out.slices.len() as u32;
            let front = if item.front { VirtioNetHeader::LENGTH as u32 } else { 0 };
            if item.front {
                write(arena, (item.offset - front) as usize, &virtio.to_octets());
            } else {
                out.headers.extend_from_slice(&virtio.to_octets());
            }
            out.slices.push(Slice { offset: item.offset - front, length: item.length + front });
            let mut link = item.first_link;
            while let Some(Link { slice, next }) = self.links.get(link as usize) {
                out.slices.push(*slice);
                link = *next;
            }
            out.packets.push(TunPacket {
                tunnel: item.tunnel,
                header_offset,
                header_length: out.headers.len() as u32 - header_offset,
                slice_start,
                slice_count: out.slices.len() as u32 - slice_start,
                length: VirtioNetHeader::LENGTH as u32 + item.total,
                segments: item.count,
                reserved: 0,
            });
        }
        let packets = self.items.len() as u64;
        self.items.clear();
        self.links.clear();
        self.next_generation();
        (merged, packets, octets)
    }
}

/// A new item of one packet, to which nothing may join.
fn item(incoming: &Incoming, kind: Kind) -> Item {
    Item {
        tunnel: incoming.tunnel,
        offset: incoming.offset as u32,
        length: incoming.packet.length as u32,
        front: incoming.front,
        kind,
        ip_header: incoming.packet.header_length as u16,
        headers: 0,
        size: 0,
        closed: true,
        flags: 0,
        count: 1,
        total: incoming.packet.length as u32,
        next_sequence: 0,
        first_link: NO_LINK,
        last_link: NO_LINK,
    }
}

#[inline]
fn flow_slot(tunnel: u32, packet: &IpPacket, octets: &[u8], ports: &[u8]) -> usize {
    let mut hash = WordHasher::default();
    hash.write_u64(u64::from(read_u32(ports, 0)) << 32 | u64::from(packet.protocol) << 24 | u64::from(tunnel));
    if packet.version == 4 {
        hash.write_u64(u64::from(read_u32(octets, 12)) << 32 | u64::from(read_u32(octets, 16)));
    } else {
        hash.write_u128(ip::read_u128(octets, 8));
        hash.write_u128(ip::read_u128(octets, 24));
    }
    hash.finish() as usize % FLOWS
}

/// What matters of a packet that may be merged.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Octets of all headers.
    headers: usize,
    /// TCP sequence number, 0 for UDP.
    sequence: u32,
    /// PSH and FIN, after which nothing joins.
    ending: u8,
}

/// Whether a packet may be merged at all: data, a plain IP header, no flags but ACK, ECE, PSH and FIN.
#[inline]
fn segment(packet: &IpPacket, octets: &[u8], kind: Kind) -> Option<Segment> {
    if packet.options {
        return None;
    }
    let transport = &octets[packet.header_length..];
    match kind {
        Kind::Tcp => {
            let header = tcp::header_length(transport)?;
            let flags = transport[13];
            let data = transport.len() > header;
            // CWR belongs to one segment and would be given to the first one only.
            let plain = flags & !(tcp::ACK | tcp::ECE | tcp::PSH | tcp::FIN) == 0 && flags & tcp::ACK != 0;
            (data && plain).then(|| Segment {
                headers: packet.header_length + header,
                sequence: read_u32(transport, 4),
                ending: flags & (tcp::PSH | tcp::FIN),
            })
        }
        Kind::Udp => {
            let length = usize::from(read_u16(transport, udp::LENGTH_AT));
            // Without a checksum the sender wanted none; a superpacket would give it one.
            let sound = length == transport.len() && length > udp::HEADER && read_u16(transport, udp::CHECKSUM_AT) != 0;
            sound.then_some(Segment { headers: packet.header_length + udp::HEADER, sequence: 0, ending: 0 })
        }
        Kind::Other => None,
    }
}

fn checksum_is_right(packet: &IpPacket, octets: &[u8]) -> bool {
    let transport = &octets[packet.header_length..];
    let sum = packet.pseudo_sum(octets) + checksum::word(transport.len() as u16);
    let header = packet.version == 6 || checksum::fold(checksum::add(0, &octets[..IPV4_HEADER])) == [0xff, 0xff];
    header && checksum::fold(checksum::add(sum, transport)) == [0xff, 0xff]
}

impl Item {
    /// Whether a packet continues this item.
    #[inline]
    fn joins(&self, arena: &[u8], incoming: &Incoming, octets: &[u8], kind: Kind, segment: &Segment) -> bool {
        let payload = octets.len() - segment.headers;
        if self.closed
            || self.kind != kind
            || self.tunnel != incoming.tunnel
            || usize::from(self.headers) != segment.headers
            || usize::from(self.ip_header) != incoming.packet.header_length
            || payload > usize::from(self.size)
            || self.total as usize + payload > MAX_LENGTH
            || self.count as usize >= self.kind.max_segments()
        {
            return false;
        }
        let start = self.offset as usize;
        let first = &arena[start..start + usize::from(self.headers)];
        let header = &octets[..segment.headers];
        let same_ip = if incoming.packet.version == 4 {
            // Version, header length, TOS; flags, fragment offset, TTL, protocol; addresses.
            let apart = read_u16(header, 4).wrapping_sub(read_u16(first, 4));
            first[..2] == header[..2]
                && first[6..10] == header[6..10]
                && first[12..20] == header[12..20]
                // The kernel numbers segments onward; with DF the number means nothing (RFC 6864 section 4.1).
                && (incoming.packet.dont_fragment || u32::from(apart) == self.count)
        } else {
            // Version, traffic class, flow label; next header, hop limit, addresses.
            first[..4] == header[..4] && first[6..IPV6_HEADER] == header[6..IPV6_HEADER]
        };
        if !same_ip {
            return false;
        }
        let (first, header) = (&first[usize::from(self.ip_header)..], &header[usize::from(self.ip_header)..]);
        match kind {
            Kind::Tcp => {
                // Ports; acknowledgement and header length; flags but PSH and FIN; window; urgent pointer and options.
                segment.sequence == self.next_sequence
                    && first[..4] == header[..4]
                    && first[8..13] == header[8..13]
                    && (first[13] ^ header[13]) & !(tcp::PSH | tcp::FIN) == 0
                    && first[14..16] == header[14..16]
                    && first[18..] == header[18..]
            }
            Kind::Udp => first[..4] == header[..4],
            Kind::Other => false,
        }
    }

    /// Make the first packet's headers those of the superpacket, and give its virtio header.
    fn rewrite_headers(&self, arena: &mut [u8]) -> VirtioNetHeader {
        let (ip_header, headers) = (usize::from(self.ip_header), usize::from(self.headers));
        let start = self.offset as usize;
        let Some(octets) = arena.get_mut(start..start + headers) else {
            return VirtioNetHeader::default();
        };
        let v4 = octets[0] >> 4 == 4;
        let total = self.total as u16;
        let addresses = if v4 {
            write(octets, 2, &total.to_be_bytes());
            ip::write_ipv4_checksum(&mut octets[..ip_header]);
            &octets[12..20]
        } else {
            write(octets, 4, &(total - IPV6_HEADER as u16).to_be_bytes());
            &octets[8..40]
        };
        let protocol = if self.kind == Kind::Tcp { protocol::TCP } else { protocol::UDP };
        let length = total - self.ip_header;
        let pseudo = checksum::word(u16::from(protocol)) + checksum::word(length);
        let pseudo = checksum::fold(checksum::add(pseudo, addresses));
        let (gso_type, csum_offset) = if self.kind == Kind::Tcp {
            octets[ip_header + 13] |= self.flags;
            write(octets, ip_header + tcp::CHECKSUM_AT, &pseudo);
            (if v4 { virtio::GSO_TCPV4 } else { virtio::GSO_TCPV6 }, tcp::CHECKSUM_AT)
        } else {
            write(octets, ip_header + udp::LENGTH_AT, &length.to_be_bytes());
            write(octets, ip_header + udp::CHECKSUM_AT, &pseudo);
            (virtio::GSO_UDP_L4, udp::CHECKSUM_AT)
        };
        VirtioNetHeader {
            flags: virtio::NEEDS_CSUM,
            gso_type,
            hdr_len: self.headers,
            gso_size: self.size,
            csum_start: self.ip_header,
            csum_offset: csum_offset as u16,
        }
    }
}
