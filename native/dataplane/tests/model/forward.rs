//! From the TUN to the underlay, one packet after the other: which inner packets leave, or why none does.

use dsvpn_dataplane::Counter;
use dsvpn_wire::virtio::VirtioNetHeader;

use super::packet::{Ip, UDP, checksum, clamp_mss, put, read_ip, two};
use super::segments::{Superpacket, fragments};

/// What the model knows of the way out.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub mtu: usize,
    pub mss_clamp: bool,
    pub multicast: bool,
}

/// What becomes of one packet.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// Inner packets in the order they leave.
    pub sent: Vec<Vec<u8>>,
    /// Whether the MSS of what is sent was lowered.
    pub clamped: bool,
    /// What is counted.
    pub counted: Vec<Counter>,
    /// The packet that an ICMP error may be about.
    pub too_big: bool,
}

impl Fate {
    fn dropped(counter: Counter) -> Self {
        Self { counted: vec![counter], ..Self::default() }
    }

    fn answered() -> Self {
        Self { too_big: true, ..Self::dropped(Counter::DropTooBig) }
    }
}

pub fn forward(path: Path, octets: &[u8], virtio: &VirtioNetHeader) -> Fate {
    let Some(ip) = read_ip(octets) else {
        return Fate::dropped(Counter::DropMalformedInner);
    };
    let octets = &octets[..ip.length];
    let destination = if ip.version == 4 { &octets[16..20] } else { &octets[24..40] };
    let multicast = match ip.version {
        4 => destination[0] >> 4 == 0xe || destination == [255; 4],
        _ => destination[0] == 0xff,
    };
    if multicast {
        return if path.multicast {
            transmit(path, octets, &ip, virtio)
        } else {
            Fate::dropped(Counter::DropNoMulticast)
        };
    }
    // The routes of the tests' data plane.
    let routed = match ip.version {
        4 => destination[..2] == [10, 1],
        _ => destination[..2] == [0xfd, 0x01],
    };
    if routed { transmit(path, octets, &ip, virtio) } else { Fate::dropped(Counter::DropNoRoute) }
}

fn transmit(path: Path, octets: &[u8], ip: &Ip, virtio: &VirtioNetHeader) -> Fate {
    if virtio.gso_type != 0 {
        return superpacket(path, octets, ip, virtio);
    }
    let large = ip.length > path.mtu;
    if large && ip.dont_fragment {
        return Fate::answered();
    }
    let mut whole = octets.to_vec();
    if virtio.flags % 2 == 1 && !complete_checksum(&mut whole, ip, virtio) {
        return Fate::dropped(Counter::DropMalformedVirtio);
    }
    if large {
        return cut(path, &[whole]);
    }
    let clamped = path.mss_clamp && clamp_mss(&mut whole, ip, path.mtu);
    Fate { sent: vec![whole], clamped, ..Fate::default() }
}

/// The checksum from `csum_start` to the packet's end goes to `csum_offset`. False: it does not lie behind the IP header.
fn complete_checksum(octets: &mut [u8], ip: &Ip, virtio: &VirtioNetHeader) -> bool {
    let start = usize::from(virtio.csum_start);
    let at = start + usize::from(virtio.csum_offset);
    if start < ip.header || at + 2 > octets.len() {
        return false;
    }
    let value = checksum(&octets[start..]);
    put(octets, at, if value == 0 && ip.protocol == UDP { 0xffff } else { value });
    true
}

fn superpacket(path: Path, octets: &[u8], ip: &Ip, virtio: &VirtioNetHeader) -> Fate {
    let Some(mut whole) = Superpacket::read(octets, ip, virtio) else {
        return Fate::dropped(Counter::DropMalformedVirtio);
    };
    if whole.largest() <= path.mtu {
        return Fate { sent: whole.packets(), ..Fate::default() };
    }
    if ip.dont_fragment {
        return Fate::answered();
    }
    if whole.is_udp() {
        return cut(path, &whole.packets());
    }
    // Without DF, TCP may as well be cut to smaller segments.
    if path.mtu <= whole.headers() {
        return Fate::dropped(Counter::DropTooBig);
    }
    whole.size = whole.size.min(path.mtu - whole.headers());
    Fate { sent: whole.packets(), ..Fate::default() }
}

/// IPv4 fragments of each packet.
fn cut(path: Path, packets: &[Vec<u8>]) -> Fate {
    let mut fate = Fate::default();
    for packet in packets {
        match fragments(packet, path.mtu) {
            Some(pieces) => {
                fate.sent.extend(pieces);
                fate.counted.push(Counter::Fragmented);
            }
            None => fate.counted.push(Counter::DropTooBig),
        }
    }
    fate
}

/// Whether `reply` is an ICMP error that tells the MTU to the sender of one of these packets.
pub fn is_answer(reply: &[u8], mtu: usize, asked: &[&[u8]]) -> bool {
    let Some(ip) = read_ip(reply).filter(|ip| ip.length == reply.len()) else { return false };
    let body = &reply[ip.header..];
    if body.len() < 8 {
        return false;
    }
    let mut summed = if ip.version == 6 { super::packet::pseudo_header(reply, &ip, body.len()) } else { Vec::new() };
    summed.extend(body);
    let (expected, limit) = if ip.version == 4 { ([3, 4], 576) } else { ([2, 0], 1280) };
    let addresses = |octets: &[u8]| match ip.version {
        4 => (octets[12..16].to_vec(), octets[16..20].to_vec()),
        _ => (octets[8..24].to_vec(), octets[24..40].to_vec()),
    };
    let quoted = &body[8..];
    let (from, to) = addresses(reply);
    ip.protocol == (if ip.version == 4 { 1 } else { 58 })
        && (ip.version == 6 || checksum(&reply[..ip.header]) == 0)
        && checksum(&summed) == 0
        && body[..2] == expected
        && two(body, 6) == mtu
        && reply.len() <= limit
        && asked.iter().any(|asked| asked.starts_with(quoted) && addresses(asked) == (to.clone(), from.clone()))
}
