//! What superpackets and fragments stand for: each packet made by itself.

use dsvpn_wire::virtio::VirtioNetHeader;

use super::packet::{
    Ip, TCP, UDP, checksum_at, pseudo_header, put, read_ip, two, write_checksums_over, write_ip_checksum,
};

/// A superpacket taken apart.
#[derive(Clone, Debug)]
pub struct Superpacket {
    headers: Vec<u8>,
    ip_header: usize,
    version: u8,
    tcp: bool,
    /// The sum of the pseudo-header of the whole as the sender gave it: where there are options or extension headers, the
    /// addresses may be others than the IP header's.
    given: Option<u16>,
    payload: Vec<u8>,
    pub size: usize,
}

/// Linux's `gso_type` values, and the bit that says that the first segment carries CWR.
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

impl Superpacket {
    /// `octets` is a whole IP packet, which `ip` describes. `None`: the virtio header does not fit it.
    pub fn read(octets: &[u8], ip: &Ip, virtio: &VirtioNetHeader) -> Option<Self> {
        let tcp = match virtio.gso_type & !ECN {
            TCPV4 if ip.version == 4 => true,
            TCPV6 if ip.version == 6 => true,
            UDP_L4 => false,
            _ => return None,
        };
        if ip.fragment || ip.protocol != (if tcp { TCP } else { UDP }) || virtio.gso_size == 0 {
            return None;
        }
        let transport = &octets[ip.header..ip.length];
        let transport_header = if !tcp { 8 } else { usize::from(*transport.get(12)? / 16) * 4 };
        if tcp && transport_header < 20 || transport_header > transport.len() || ip.header + transport_header > 256 {
            return None;
        }
        let at = checksum_at(ip.protocol)?;
        let says = virtio.flags % 2 == 1
            && usize::from(virtio.csum_start) == ip.header
            && usize::from(virtio.csum_offset) == at;
        if ip.options && !says {
            return None;
        }
        Some(Self {
            given: ip.options.then(|| two(transport, at) as u16),
            headers: octets[..ip.header + transport_header].to_vec(),
            ip_header: ip.header,
            version: ip.version,
            tcp,
            payload: transport[transport_header..].to_vec(),
            size: usize::from(virtio.gso_size),
        })
    }

    pub fn headers(&self) -> usize {
        self.headers.len()
    }

    pub fn largest(&self) -> usize {
        self.headers.len() + self.size.min(self.payload.len())
    }

    pub fn is_udp(&self) -> bool {
        !self.tcp
    }

    /// The packets, with right lengths, numbers, flags and checksums.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut rest = &self.payload[..];
        loop {
            let (payload, more) = rest.split_at(self.size.min(rest.len()));
            let last = more.is_empty();
            packets.push(self.packet(packets.len(), payload, last));
            if last {
                return packets;
            }
            rest = more;
        }
    }

    fn packet(&self, index: usize, payload: &[u8], last: bool) -> Vec<u8> {
        let mut octets = self.headers.clone();
        octets.extend(payload);
        let length = octets.len();
        if self.version == 4 {
            put(&mut octets, 2, length as u16);
            let number = two(&octets, 4) + index;
            put(&mut octets, 4, number as u16);
        } else {
            put(&mut octets, 4, (length - 40) as u16);
        }
        let transport = self.ip_header;
        if self.tcp {
            let sequence = u32::from_be_bytes([0, 1, 2, 3].map(|at| octets[transport + 4 + at]));
            let sequence = sequence.wrapping_add((index * self.size) as u32);
            octets[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            // FIN and PSH belong to the last segment, CWR to the first.
            octets[transport + 13] &= match (index == 0, last) {
                (true, true) => 0xff,
                (true, false) => 0xff - 0x09,
                (false, true) => 0xff - 0x80,
                (false, false) => 0xff - 0x89,
            };
        } else {
            put(&mut octets, transport + 4, (length - transport) as u16);
        }
        let ip = read_ip(&octets).expect("the headers that were read before");
        let pseudo = match self.given {
            None => pseudo_header(&octets, &ip, length - transport),
            // In ones' complement arithmetic a length is taken off by adding its complement (RFC 1624).
            Some(given) => {
                let whole = (self.headers.len() - transport + self.payload.len()) as u16;
                [given, !whole, (length - transport) as u16].map(u16::to_be_bytes).concat()
            }
        };
        write_checksums_over(&mut octets, &ip, &pseudo);
        octets
    }
}

/// Cut an IPv4 packet (which may be a fragment) for an MTU. `None`: it cannot be.
pub fn fragments(octets: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let ip = read_ip(octets)?;
    let payload = &octets[ip.header..ip.length];
    let word = two(octets, 6);
    let begin = word % 0x2000 * 8;
    if mtu < ip.header + 8 || begin + payload.len() > 65_535 {
        return None;
    }
    let later = later_header(&octets[..ip.header]);
    let mut packets = Vec::new();
    let mut at = 0;
    loop {
        let mut packet = if at == 0 { octets[..ip.header].to_vec() } else { later.clone() };
        let header = packet.len();
        let end = payload.len().min(at + (mtu - header) / 8 * 8);
        let last = end == payload.len();
        packet.extend(&payload[at..end]);
        let length = packet.len() as u16;
        put(&mut packet, 2, length);
        let more = if last { word & 0x2000 } else { 0x2000 };
        put(&mut packet, 6, (word & 0xc000 | more | ((begin + at) / 8)) as u16);
        write_ip_checksum(&mut packet, header);
        packets.push(packet);
        if last {
            return Some(packets);
        }
        at = end;
    }
}

/// The header of all fragments but the first: with the options that have the copied bit (RFC 791 section 3.1).
fn later_header(header: &[u8]) -> Vec<u8> {
    let mut copied = header[..20].to_vec();
    let mut at = 20;
    while at < header.len() && header[at] != 0 {
        if header[at] == 1 {
            at += 1;
            continue;
        }
        let length = header.get(at + 1).map_or(0, |length| usize::from(*length));
        if length < 2 || at + length > header.len() {
            break;
        }
        if header[at] >= 0x80 {
            copied.extend(&header[at..at + length]);
        }
        at += length;
    }
    while !copied.len().is_multiple_of(4) {
        copied.push(0);
    }
    copied[0] = 0x40 + (copied.len() / 4) as u8;
    copied
}
