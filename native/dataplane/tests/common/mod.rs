//! What the tests share: packets, a data plane that talks to itself, and plain models.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dsvpn_dataplane::*;
use dsvpn_wire::ip::IpPacket;
use dsvpn_wire::virtio::{self, VirtioNetHeader};

pub const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub const THEIRS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
pub const SECOND: u64 = 1_000_000_000;

/// A vector of datagrams that came to us by ESP in UDP, each from its peer, in the arena that holds them.
pub fn received(datagrams: &[(IpAddr, Vec<u8>)]) -> (Vec<u8>, Vec<Datagram>) {
    let (mut arena, mut rows) = (Vec::new(), Vec::new());
    for (remote, octets) in datagrams {
        rows.push(Datagram {
            offset: arena.len() as u32,
            length: octets.len() as u32,
            segment_size: 0,
            kind: DatagramKind::UdpNat,
            local: Some(OURS),
            local_port: 4500,
            remote: *remote,
            remote_port: 4500,
        });
        arena.extend_from_slice(octets);
    }
    (arena, rows)
}

/// The Internet checksum, word by word.
pub fn plain_checksum(parts: &[&[u8]]) -> u16 {
    let octets: Vec<u8> = parts.concat();
    let mut sum = 0u32;
    for pair in octets.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn pseudo_header(octets: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let addresses = if octets[0] >> 4 == 4 { &octets[12..20] } else { &octets[8..40] };
    let mut pseudo = addresses.to_vec();
    pseudo.extend_from_slice(&(length as u32).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, protocol]);
    pseudo
}

/// Fill in the checksums of a whole TCP or UDP packet.
pub fn fix_checksums(octets: &mut [u8]) {
    let packet = IpPacket::parse(octets).expect("a test packet");
    if packet.version == 4 {
        octets[10..12].fill(0);
        let sum = plain_checksum(&[&octets[..packet.header_length]]);
        octets[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = packet.header_length + if packet.protocol == 6 { 16 } else { 6 };
    octets[at..at + 2].fill(0);
    let transport = octets[packet.header_length..packet.length].to_vec();
    let sum = plain_checksum(&[&pseudo_header(octets, packet.protocol, transport.len()), &transport]);
    let sum = if sum == 0 && packet.protocol == 17 { 0xffff } else { sum };
    octets[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Whether all checksums of a TCP or UDP packet are right.
pub fn checksums_hold(octets: &[u8]) -> bool {
    let mut copy = octets.to_vec();
    fix_checksums(&mut copy);
    copy == octets
}

/// What a test packet is made of.
#[derive(Clone, Debug)]
pub struct Flow {
    pub v6: bool,
    pub udp: bool,
    pub tos: u8,
    pub dont_fragment: bool,
    pub identification: u16,
    pub source: u8,
    pub destination: u8,
    pub port: u16,
    pub sequence: u32,
    pub flags: u8,
    pub options: Vec<u8>,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            v6: false,
            udp: false,
            tos: 0,
            dont_fragment: true,
            identification: 100,
            source: 1,
            destination: 1,
            port: 5001,
            sequence: 0xffff_f000,
            flags: 0x10,
            options: Vec::new(),
        }
    }
}

impl Flow {
    pub fn headers(&self) -> usize {
        (if self.v6 { 40 } else { 20 }) + if self.udp { 8 } else { 20 + self.options.len() }
    }

    /// A packet from 10.0.0.x to 10.1.0.y (fd00::x to fd01::y) with right checksums.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend_from_slice(&40_000u16.to_be_bytes());
        transport.extend_from_slice(&self.port.to_be_bytes());
        if self.udp {
            transport.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
            transport.extend_from_slice(&[0, 0]);
        } else {
            transport.extend_from_slice(&self.sequence.to_be_bytes());
            transport.extend_from_slice(&77u32.to_be_bytes());
            transport.push((((20 + self.options.len()) / 4) << 4) as u8);
            transport.push(self.flags);
            transport.extend_from_slice(&[0x20, 0, 0, 0, 0, 0]);
            transport.extend_from_slice(&self.options);
        }
        transport.extend_from_slice(payload);
        let protocol = if self.udp { 17 } else { 6 };
        let mut octets = Vec::new();
        if self.v6 {
            octets.extend_from_slice(&[0x60 | self.tos >> 4, self.tos << 4 | 1, 2, 3]);
            octets.extend_from_slice(&(transport.len() as u16).to_be_bytes());
            octets.extend_from_slice(&[protocol, 64]);
            octets.extend_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(self.source)).octets());
            octets.extend_from_slice(&Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, u16::from(self.destination)).octets());
        } else {
            octets.extend_from_slice(&[0x45, self.tos]);
            octets.extend_from_slice(&((20 + transport.len()) as u16).to_be_bytes());
            octets.extend_from_slice(&self.identification.to_be_bytes());
            octets.extend_from_slice(&[if self.dont_fragment { 0x40 } else { 0 }, 0, 64, protocol, 0, 0]);
            octets.extend_from_slice(&[10, 0, 0, self.source, 10, 1, 0, self.destination]);
        }
        octets.extend_from_slice(&transport);
        fix_checksums(&mut octets);
        octets
    }

    /// The same as a superpacket: the checksum field holds the pseudo-header's sum.
    pub fn superpacket(&self, payload: &[u8], size: u16) -> (Vec<u8>, VirtioNetHeader) {
        let mut octets = self.packet(payload);
        let ip = if self.v6 { 40 } else { 20 };
        let offset = if self.udp { 6 } else { 16 };
        let pseudo = !plain_checksum(&[&pseudo_header(&octets, if self.udp { 17 } else { 6 }, octets.len() - ip)]);
        octets[ip + offset..ip + offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        let gso_type = match (self.udp, self.v6) {
            (true, _) => virtio::GSO_UDP_L4,
            (false, false) => virtio::GSO_TCPV4,
            (false, true) => virtio::GSO_TCPV6,
        };
        let virtio = VirtioNetHeader {
            flags: virtio::NEEDS_CSUM,
            gso_type,
            hdr_len: self.headers() as u16,
            gso_size: size,
            csum_start: ip as u16,
            csum_offset: offset as u16,
        };
        (octets, virtio)
    }

    /// What a superpacket stands for, by a plain model: each segment made from scratch.
    pub fn segments(&self, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let pieces: Vec<&[u8]> = if payload.is_empty() { vec![payload] } else { payload.chunks(size).collect() };
        let last = pieces.len() - 1;
        let segment = |(index, piece): (usize, &&[u8])| {
            let mut flow = self.clone();
            flow.identification = self.identification.wrapping_add(index as u16);
            flow.sequence = self.sequence.wrapping_add((index * size) as u32);
            if index != last {
                flow.flags &= !0x09;
            }
            if index != 0 {
                flow.flags &= !0x80;
            }
            flow.packet(piece)
        };
        pieces.iter().enumerate().map(segment).collect()
    }
}

/// Octets that are not all alike.
pub fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) ^ at >> 7) as u8).collect()
}

/// How the data plane under test is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub suite: Option<Suite>,
    pub encapsulation: Encapsulation,
    pub esn: bool,
    pub key: Option<u32>,
    pub mtu: u32,
    pub replay_window: u32,
    pub redirect: bool,
    pub mss_clamp: bool,
    /// Whether the tables have room for so many peers that packets are looked at ahead of their turn.
    pub many_peers: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            suite: Some(Suite::Aes128Gcm16),
            encapsulation: Encapsulation::Udp,
            esn: false,
            key: Some(42),
            mtu: 1430,
            replay_window: 1024,
            redirect: false,
            mss_clamp: true,
            many_peers: false,
        }
    }
}

impl Setup {
    pub fn plain_gre() -> Self {
        Self { suite: None, encapsulation: Encapsulation::Gre, ..Self::default() }
    }
}

/// A data plane with one tunnel (0), one adjacency (1) behind next hop 1 for 10.1.0.0/16 and fd01::/16, whose outbound
/// SA is its own inbound SA: what it sends, it can receive.
pub struct Loop {
    pub shared: Arc<Shared>,
    pub writer: TablesWriter,
    pub reader: TablesReader,
    pub encap: Encap,
    pub decap: Decap,
    pub spi: u32,
    pub setup: Setup,
}

impl Loop {
    pub fn new(setup: Setup) -> Self {
        let shared = Arc::new(Shared::default());
        let (mut writer, reader) = tables();
        let protected = setup.suite.is_some();
        let (redirect, mss_clamp) = (setup.redirect, setup.mss_clamp);
        writer.add_tunnel(0, TunnelConfig { key: setup.key, protected, redirect, mss_clamp, copy_dscp: true }).unwrap();
        let mut spi = 0;
        writer.set_adjacency(1, adjacency(setup, THEIRS)).unwrap();
        if setup.many_peers {
            writer.set_adjacency(1000, adjacency(setup, IpAddr::V4(Ipv4Addr::new(192, 0, 2, 4)))).unwrap();
        }
        if let Some(suite) = setup.suite {
            let keymat: Vec<u8> = (1..=suite.keymat_length() as u8).collect();
            spi = writer.allocate_spi(7).unwrap();
            writer.add_inbound_sa(spi, suite, &keymat, &[1], setup.esn, setup.replay_window).unwrap();
            writer.set_outbound_sa(spi, suite, &keymat, &[1], setup.esn).unwrap();
        }
        writer.set_next_hop(1, Some(1), false).unwrap();
        writer.set_route(0, "10.1.0.0/16".parse().unwrap(), 1).unwrap();
        writer.set_route(0, "fd01::/16".parse().unwrap(), 1).unwrap();
        writer.commit();
        let encap = Encap::new(Arc::clone(&shared), EncapConfig::default());
        let decap = Decap::new(Arc::clone(&shared), DecapConfig::default());
        Self { shared, writer, reader, encap, decap, spi, setup }
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.shared.counters.get(counter)
    }

    /// Encapsulate packets; the datagrams in the order they would be sent, and ICMP errors.
    pub fn encap(&mut self, packets: &[(Vec<u8>, VirtioNetHeader)]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        self.encap_with_arena(packets, 256 * 1024)
    }

    pub fn encap_with_arena(
        &mut self,
        packets: &[(Vec<u8>, VirtioNetHeader)],
        size: usize,
    ) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let mut arena = vec![0xee; 3];
        let mut metas = Vec::new();
        for (octets, virtio) in packets {
            let meta = PacketMeta {
                offset: arena.len() as u32,
                length: octets.len() as u32,
                virtio: *virtio,
                ..PacketMeta::default()
            };
            metas.push(meta);
            arena.extend_from_slice(octets);
        }
        let mut send = vec![0; size];
        let (mut batch, mut replies) = (SendBatch::new(), TunBatch::new());
        let (mut datagrams, mut errors) = (Vec::new(), Vec::new());
        let mut rest = &metas[..];
        loop {
            let tables = self.reader.enter().unwrap();
            let progress = self.encap.run(&tables, 0, &arena, rest, &mut send, &mut batch, &mut replies, SECOND);
            for message in &batch.messages {
                check_message(message);
                datagrams.extend(message.datagrams().map(|range| send[range].to_vec()));
            }
            batch.clear();
            rest = &rest[progress.consumed..];
            if rest.is_empty() {
                break;
            }
        }
        for packet in &replies.packets {
            let mut octets = Vec::new();
            replies.gather(&[], packet, &mut octets);
            errors.push(octets[VirtioNetHeader::LENGTH..].to_vec());
        }
        (datagrams, errors)
    }

    pub fn datagram_kind(&self) -> DatagramKind {
        match self.setup.encapsulation {
            Encapsulation::Udp => DatagramKind::UdpNat,
            Encapsulation::Esp | Encapsulation::EspTunnel => DatagramKind::Esp,
            Encapsulation::Gre => DatagramKind::Gre,
        }
    }

    /// Decapsulate datagrams of the adjacency's peer: virtio headers and packets for the TUN.
    pub fn decap(&mut self, datagrams: &[Vec<u8>]) -> Vec<(VirtioNetHeader, Vec<u8>)> {
        self.decap_from(datagrams, self.datagram_kind(), THEIRS, 4500)
    }

    pub fn decap_from(
        &mut self,
        datagrams: &[Vec<u8>],
        kind: DatagramKind,
        remote: IpAddr,
        port: u16,
    ) -> Vec<(VirtioNetHeader, Vec<u8>)> {
        let mut arena = Vec::new();
        let mut list = Vec::new();
        for octets in datagrams {
            list.push(Datagram {
                offset: arena.len() as u32,
                length: octets.len() as u32,
                segment_size: 0,
                kind,
                local: Some(OURS),
                local_port: if kind == DatagramKind::UdpIke { 500 } else { 4500 },
                remote,
                remote_port: if matches!(kind, DatagramKind::Esp | DatagramKind::Gre) { 0 } else { port },
            });
            arena.extend_from_slice(octets);
        }
        let mut out = TunBatch::new();
        let tables = self.reader.enter().unwrap();
        self.decap.run(&tables, &mut arena, &list, &mut out, 2 * SECOND);
        gather(&out, &arena)
    }
}

pub fn adjacency(setup: Setup, remote: IpAddr) -> AdjacencyConfig {
    AdjacencyConfig {
        tunnel: 0,
        encapsulation: setup.encapsulation,
        local: Some(OURS),
        remote,
        remote_port: if setup.encapsulation == Encapsulation::Udp { 4500 } else { 0 },
        mtu: setup.mtu,
    }
}

/// The address of one peer of many.
pub fn peer(id: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + id))
}

/// Its adjacency, protected.
pub fn peer_adjacency(id: u32) -> AdjacencyConfig {
    AdjacencyConfig { mtu: 1434, ..adjacency(Setup::default(), peer(id)) }
}

/// Make that and its next hop.
pub fn add_peer(writer: &mut TablesWriter, id: u32) {
    writer.set_adjacency(id, peer_adjacency(id)).unwrap();
    writer.set_next_hop(id, Some(id), false).unwrap();
}

pub fn gather(out: &TunBatch, arena: &[u8]) -> Vec<(VirtioNetHeader, Vec<u8>)> {
    let gathered = out.packets.iter().map(|packet| {
        let mut octets = Vec::new();
        out.gather(arena, packet, &mut octets);
        assert_eq!(octets.len(), packet.length as usize);
        assert!(packet.slice_count as usize <= TunBatch::MAX_SLICES);
        let virtio = VirtioNetHeader::read(&octets).unwrap();
        (virtio, octets[VirtioNetHeader::LENGTH..].to_vec())
    });
    gathered.collect()
}

/// What `UDP_SEGMENT` needs of a message.
pub fn check_message(message: &SendMessage) {
    // A single datagram may be larger than UDP carries, with an MTU that its underlay does not have.
    assert!(message.segments >= 1 && message.segments <= 64 && (message.segments == 1 || message.length <= 65_507));
    assert_eq!(message.length.div_ceil(message.segment_size), message.segments);
    assert_eq!(message.datagrams().count(), message.segments as usize);
    if message.endpoint.encapsulation != Encapsulation::Udp {
        assert_eq!(message.segments, 1);
    }
    assert_eq!(message.endpoint.tos & 3, 0);
}

pub fn single(octets: Vec<u8>) -> (Vec<u8>, VirtioNetHeader) {
    (octets, VirtioNetHeader::default())
}
