//! Packets that somebody made up: what octets of a fuzzer or of a generator of random octets stand for.
//!
//! Most of it is sound up to one lie, so that the lie is reached. When the octets are used up, zeros follow.

use dsvpn_dataplane::{Encapsulation, HmacSuite, Suite};
use dsvpn_wire::virtio::{self, VirtioNetHeader};

use super::packet::{put, two, write_checksums};
use crate::common::{Flow, Setup, payload};

/// Packets of one superpacket: more than Linux ever gives, few enough for a slow model.
const MOST_SEGMENTS: usize = 600;

/// Octets that choices are taken from.
pub struct Octets<'a> {
    rest: &'a [u8],
}

impl<'a> Octets<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn one(&mut self) -> u8 {
        self.some::<1>()[0]
    }

    fn some<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut octets = [0; COUNT];
        let there = COUNT.min(self.rest.len());
        octets[..there].copy_from_slice(&self.rest[..there]);
        self.rest = &self.rest[there..];
        octets
    }

    pub fn two(&mut self) -> u16 {
        u16::from_be_bytes(self.some())
    }

    pub fn four(&mut self) -> u32 {
        u32::from_be_bytes(self.some())
    }

    pub fn flag(&mut self) -> bool {
        self.one() & 1 == 1
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.one()) % end
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// As many as there are, at most `count`.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken.to_vec()
    }
}

/// How the data plane is set up.
pub fn setup(octets: &mut Octets) -> Setup {
    let encapsulation = octets.pick(&[Encapsulation::Udp, Encapsulation::Esp, Encapsulation::Gre]);
    let suite = octets.pick(&[Suite::Aes128Gcm16, Suite::Aes256Gcm16, Suite::ChaCha20Poly1305]);
    let bits = octets.one();
    let tunnel_mode = bits & 128 != 0 && encapsulation == Encapsulation::Esp;
    let encapsulation = if tunnel_mode { Encapsulation::EspTunnel } else { encapsulation };
    let suite = if bits & 64 == 0 { suite } else { Suite::Hmac(octets.pick(HmacSuite::ALL)) };
    Setup {
        suite: (encapsulation != Encapsulation::Gre).then_some(suite),
        encapsulation,
        esn: bits & 1 == 1,
        key: if bits & 2 == 0 { Some(42) } else { None },
        mtu: octets.pick(&[1430, 576, 1280, 68, 9000, 65_535]),
        replay_window: [1024, 64, 0, 4096][usize::from(bits >> 2 & 3)],
        redirect: false,
        mss_clamp: bits & 16 == 0,
        many_peers: bits & 32 != 0,
    }
}

/// A TCP or UDP flow.
pub fn flow(octets: &mut Octets) -> Flow {
    let bits = octets.one();
    let udp = bits & 2 != 0;
    let options: [&[u8]; 4] =
        [&[], &[2, 4, 0x23, 0x28], &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], &[3, 3, 7, 2, 4, 0xff, 0xff, 0]];
    Flow {
        v6: bits & 1 != 0,
        udp,
        tos: octets.pick(&[0, 0, 0xb8, 0xbb, 3]),
        dont_fragment: bits & 4 == 0,
        identification: octets.pick(&[100, 0xffff, 0]),
        source: octets.pick(&[1, 2, 1, 2, 1, 2, 3, 9]),
        destination: octets.pick(&[1, 2]),
        port: octets.pick(&[5001, 5002]),
        sequence: octets.pick(&[1, 0xffff_f000, 0x7fff_fff0]),
        flags: octets.pick(&[0x10, 0x10, 0x10, 0x18, 0x11, 0x50, 0x90, 0x02, 0xff]),
        options: if udp { Vec::new() } else { options[usize::from(bits >> 3 & 3)].to_vec() },
    }
}

/// Octets of payload: a few, one packet's, or up to `most`.
pub fn length(octets: &mut Octets, most: usize) -> usize {
    let length = match octets.below(4) {
        0 => usize::from(octets.one()),
        1 => 1200 + usize::from(octets.one()),
        2 => usize::from(octets.two()) % 4096,
        _ => usize::from(octets.two()),
    };
    length.min(most)
}

/// IPv6 extension headers behind the IPv6 header: real, empty, too long for the packet, or too many.
fn extend(octets: &mut Octets, packet: &mut Vec<u8>) {
    let mut chain = Vec::new();
    let count = octets.pick(&[1, 2, 3, 8, 9, 40]);
    let last = packet[6];
    let mut kinds = Vec::new();
    for _ in 0..count {
        kinds.push(octets.pick(&[0u8, 60, 43, 44, 44, 0]));
    }
    for (index, kind) in kinds.iter().enumerate() {
        let mut header = vec![kinds.get(index + 1).copied().unwrap_or(last), 0, 0, 0, 0, 0, 0, 0];
        match octets.below(6) {
            0 => header[1] = octets.one(),
            1 if *kind != 44 => {
                header[1] = octets.one() % 4;
                header.resize(8 + 8 * usize::from(header[1]), 1);
            }
            2 => {
                header[2] = octets.one();
                header[3] = octets.one();
            }
            _ => {}
        }
        chain.extend(header);
    }
    let payload = two(packet, 4) + chain.len();
    if payload <= 65_535 {
        put(packet, 4, payload as u16);
        packet[6] = kinds[0];
        packet.splice(40..40, chain);
    }
}

/// IPv4 options behind the IPv4 header.
fn add_options(octets: &mut Octets, packet: &mut Vec<u8>) {
    let choices: [&[u8]; 5] = [
        &[1, 1, 1, 0],
        &[0x94, 4, 0, 0],
        &[7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0],
        &[0x83, 3, 4, 0x94, 9, 0, 0, 0],
        &[],
    ];
    let mut options = choices[octets.below(5)].to_vec();
    if options.is_empty() {
        options = octets.take(40);
        options.resize(options.len().next_multiple_of(4), 0);
    }
    let length = two(packet, 2) + options.len();
    if length <= 65_535 {
        packet[0] += (options.len() / 4) as u8;
        put(packet, 2, length as u16);
        packet.splice(20..20, options);
    }
}

/// A few octets of the headers changed, the end cut off or something put behind it.
fn lie(octets: &mut Octets, packet: &mut Vec<u8>) {
    for _ in 0..octets.below(4) {
        let at = octets.below(100);
        let value = octets.one();
        if let Some(octet) = packet.get_mut(at) {
            *octet = value;
        }
    }
    match octets.below(8) {
        0 => packet.truncate(octets.below(100)),
        1 => {
            let end = packet.len().saturating_sub(octets.below(30));
            packet.truncate(end);
        }
        2 => packet.extend(vec![0xaa; octets.below(30)]),
        _ => {}
    }
}

/// An IP packet, more or less. `most`: octets of its payload.
pub fn packet(octets: &mut Octets, most: usize) -> Vec<u8> {
    let form = octets.below(12);
    if form == 0 {
        let count = octets.below(200);
        return octets.take(count);
    }
    let flow = flow(octets);
    let most = most.min(65_535 - flow.headers());
    let mut packet = flow.packet(&payload(length(octets, most)));
    change(octets, form, &mut packet);
    packet
}

fn change(octets: &mut Octets, form: usize, packet: &mut Vec<u8>) {
    let v6 = packet[0] >> 4 == 6;
    match form {
        1 | 2 if v6 => extend(octets, packet),
        1 | 2 => add_options(octets, packet),
        // A fragment: its offset may be such that it ends beyond the largest packet.
        3 if !v6 => put(packet, 6, octets.two()),
        4 => {
            let destination: &[u8] = match (v6, octets.below(3)) {
                (false, 0) => &[224, 0, 0, 5],
                (false, 1) => &[255; 4],
                (false, _) => &[10, 9, 9, 9],
                (true, 0) => &[0xff, 2, 0, 0],
                (true, _) => &[0xfe, 0x80, 0, 0],
            };
            let at = if v6 { 24 } else { 16 };
            packet[at..at + 4].copy_from_slice(destination);
        }
        _ => {}
    }
    if octets.flag() {
        write_checksums(packet);
    }
    if form >= 9 {
        lie(octets, packet);
    }
}

/// What a TUN gives: a packet or superpacket, and a virtio header that may lie.
pub fn tun_packet(octets: &mut Octets, most: usize) -> (Vec<u8>, VirtioNetHeader) {
    let form = octets.below(6);
    if form == 0 {
        return (packet(octets, most), VirtioNetHeader::default());
    }
    let change_form = octets.below(12);
    let flow = flow(octets);
    let size = match octets.below(4) {
        0 => octets.two(),
        1 => 1 + u16::from(octets.one()),
        _ => octets.pick(&[1330, 1, 8, 500, 1390, 65_535]),
    };
    let count = length(octets, most.min(65_535 - flow.headers())).min(usize::from(size.max(1)) * MOST_SEGMENTS);
    let (mut packet, mut virtio) = flow.superpacket(&payload(count), size);
    if form == 1 {
        virtio.gso_type = virtio::GSO_NONE;
    }
    let plain = packet.len();
    change(octets, change_form, &mut packet);
    if matches!(change_form, 1 | 2) {
        // The headers that were put before the transport move its checksum.
        virtio.csum_start = virtio.csum_start.wrapping_add((packet.len() - plain) as u16);
    }
    match form {
        2 => {
            let mut raw = virtio.to_octets();
            raw[octets.below(10)] = octets.one();
            raw[octets.below(10)] = octets.one();
            virtio = VirtioNetHeader::read(&raw).expect("10 octets");
        }
        3 => virtio = VirtioNetHeader::read(&octets.some::<10>()).expect("10 octets"),
        _ => {}
    }
    if virtio.gso_size != 0 && packet.len() / usize::from(virtio.gso_size) > MOST_SEGMENTS {
        virtio.gso_size = (packet.len() / MOST_SEGMENTS) as u16 + 1;
    }
    (packet, virtio)
}

/// Packets of a few flows, most of which continue one another.
pub fn train(octets: &mut Octets) -> Vec<Vec<u8>> {
    let mut flows = [flow(octets), flow(octets)];
    let sizes = [octets.pick(&[1000, 100, 1, 20]), octets.pick(&[300, 5, 1390])];
    let mut packets = Vec::new();
    for _ in 0..octets.below(40) {
        let step = octets.one();
        let which = usize::from(step & 1);
        let flow = &mut flows[which];
        let length = match step >> 1 & 7 {
            0 => sizes[which] / 2,
            1 => 0,
            _ => sizes[which],
        };
        let saved = flow.flags;
        match step >> 4 {
            0 => flow.flags = octets.one(),
            1 => flow.identification = octets.two(),
            2 => flow.sequence = octets.four(),
            3 => flow.tos ^= 1,
            _ => {}
        }
        let mut packet = flow.packet(&payload(length));
        if step >> 4 == 4 {
            let form = octets.below(12);
            change(octets, form, &mut packet);
        }
        packets.push(packet);
        flow.flags = saved;
        flow.sequence = flow.sequence.wrapping_add(length as u32);
        flow.identification = flow.identification.wrapping_add(1);
    }
    packets
}
