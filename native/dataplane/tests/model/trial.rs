//! The data plane and the model get the same, and are compared in all that they do with it.

use std::collections::HashMap;
use std::net::IpAddr;

use dsvpn_dataplane::*;
use dsvpn_wire::virtio::VirtioNetHeader;

use super::forward::{Path, forward, is_answer};
use super::packet::{Ip, TCP, UDP, checksum_at, normalise, pseudo_header, read_ip, sum, two};
use super::segments::Superpacket;
use super::sources::Check;
use super::tunnel::{Arrival, GRE, Receiver, Sa, protocol_of, read_gre, read_trailer, tunnel_header};
use crate::common::{Loop, OURS, SECOND, Setup, THEIRS};

const IPV4: u8 = 4;

/// Counters that the model leaves to other tests: how packets are joined and told of, not which there are.
const NOT_MODELLED: &[Counter] = &[
    Counter::TunTxPackets,
    Counter::TunTxOctets,
    Counter::UnderlayTxMessages,
    Counter::Coalesced,
    Counter::TooBigSent,
    Counter::PuntMoved,
    Counter::PuntSource,
    Counter::PuntUnknownSpi,
    Counter::PuntMiss,
    Counter::PuntRedirect,
    Counter::PuntLost,
];

/// A datagram, or a UDP_GRO run of them, that comes from the underlay.
#[derive(Clone, Debug)]
pub struct Outer {
    pub kind: DatagramKind,
    pub octets: Vec<u8>,
    pub segment_size: u32,
    pub remote: IpAddr,
    pub remote_port: u16,
}

/// One data plane and the model of it.
pub struct Trial {
    pub dataplane: Loop,
    pub receiver: Receiver,
    path: Path,
    counts: HashMap<Counter, u64>,
    sent_octets: u64,
}

impl Trial {
    /// `multicast`: whether the tunnel's multicast list has its adjacency.
    pub fn new(setup: Setup, multicast: bool) -> Self {
        let mut dataplane = Loop::new(setup);
        if multicast {
            dataplane.writer.set_multicast(0, &[1]).unwrap();
            dataplane.writer.commit();
        }
        let sa = setup.suite.map(|suite| {
            let keymat: Vec<u8> = (1..=suite.keymat_length() as u8).collect();
            Sa::new(dataplane.spi, suite, &keymat, &setup)
        });
        let path = Path { mtu: setup.mtu as usize, mss_clamp: setup.mss_clamp, multicast };
        let receiver = Receiver { setup, sa, check: Check::Any, clamped: 0, packets: 0, octets: 0 };
        Self { dataplane, receiver, path, counts: HashMap::new(), sent_octets: 0 }
    }

    /// Have the receiver look at inner sources.
    pub fn check_sources(&mut self, check: Check) {
        check.apply(&mut self.dataplane);
        self.receiver.check = check;
    }

    /// Have the sender go on behind this sequence number.
    pub fn skip_to(&mut self, sequence: u64) {
        if let Some(sa) = &mut self.receiver.sa {
            self.dataplane.writer.outbound_sa(1).unwrap().skip_to(sequence);
            sa.next = sequence + 1;
        }
    }

    fn count(&mut self, counter: Counter, count: u64) {
        *self.counts.entry(counter).or_default() += count;
    }

    /// Every counter is as the model's.
    pub fn compare_counters(&self) {
        for counter in Counter::ALL {
            if !NOT_MODELLED.contains(counter) {
                let expected = self.counts.get(counter).copied().unwrap_or_default();
                assert_eq!(self.dataplane.count(*counter), expected, "{}", counter.name());
            }
        }
    }

    /// Encapsulate one vector with a send arena of this size. What left, in order, as the peer would send it.
    pub fn encap(&mut self, packets: &[(Vec<u8>, VirtioNetHeader)], arena: usize) -> Vec<Vec<u8>> {
        let (mut expected, mut too_big) = (Vec::new(), Vec::new());
        for (octets, virtio) in packets {
            self.count(Counter::TunRxPackets, 1);
            self.count(Counter::TunRxOctets, octets.len() as u64);
            let fate = forward(self.path, octets, virtio);
            expected.extend(fate.sent.into_iter().map(|inner| (inner, fate.clamped)));
            for counter in fate.counted {
                self.count(counter, 1);
            }
            if fate.too_big {
                too_big.push(&octets[..]);
            }
        }
        let (mut datagrams, replies) = self.dataplane.encap_with_arena(packets, arena);
        assert!(replies.len() <= too_big.len());
        for reply in &replies {
            assert!(is_answer(reply, self.path.mtu, &too_big), "{reply:02x?}");
        }
        let mut sent = datagrams.iter_mut();
        let (mut outer_octets, mut lost) = (0, 0);
        for (inner, clamped) in &expected {
            let Some(sequence) = self.reserve() else {
                lost += 1;
                continue;
            };
            // A SYN that no sequence number is left for is not sent, and so not clamped.
            self.count(Counter::MssClamped, u64::from(*clamped));
            let datagram = sent.next().expect("a packet that the model sends");
            let octets = self.unwrap(datagram, sequence);
            let (mut left, mut right) = (octets.clone(), inner.clone());
            normalise(&mut left, false, false);
            normalise(&mut right, false, false);
            assert_eq!(left, right);
            self.sent_octets += octets.len() as u64;
            outer_octets += datagram.len() as u64;
            self.turn(datagram, sequence);
        }
        assert_eq!(sent.count(), 0, "packets that the model does not send");
        self.count(Counter::DropSequenceExhausted, lost);
        self.count(Counter::UnderlayTxPackets, datagrams.len() as u64);
        self.count(Counter::UnderlayTxOctets, outer_octets);
        self.compare_counters();
        let counts = self.dataplane.writer.adjacency_counters(1).unwrap();
        assert_eq!(counts.packets_out, self.counts[&Counter::UnderlayTxPackets]);
        assert_eq!(counts.octets_out, self.sent_octets);
        datagrams
    }

    fn reserve(&mut self) -> Option<u64> {
        self.receiver.sa.as_mut().map_or(Some(0), Sa::reserve)
    }

    /// What the peer would send instead: in tunnel mode its addresses stand the other way round.
    fn turn(&self, datagram: &mut Vec<u8>, sequence: u64) {
        if let (Some(sa), Encapsulation::EspTunnel) = (&self.receiver.sa, self.receiver.setup.encapsulation) {
            let mut plaintext = sa.open(sequence, datagram).expect("an authentic packet");
            plaintext[12..20].rotate_left(4);
            *datagram = sa.seal(sequence, &plaintext);
        }
    }

    /// The inner packet of a datagram that the data plane sent, which is all that it should be.
    fn unwrap(&self, datagram: &[u8], sequence: u64) -> Vec<u8> {
        let gre = match &self.receiver.sa {
            None => datagram.to_vec(),
            Some(sa) => {
                assert_eq!(datagram[..4], sa.spi.to_be_bytes());
                assert_eq!(datagram[4..8], (sequence as u32).to_be_bytes());
                let plaintext = sa.open(sequence, datagram).expect("an authentic packet");
                let (payload, next_header) = read_trailer(&plaintext).expect("a sound trailer");
                let tunnel_mode = self.receiver.setup.encapsulation == Encapsulation::EspTunnel;
                let expected = if tunnel_mode { IPV4 } else { GRE };
                assert_eq!(plaintext[payload.len()..], sa.trailer(payload.len(), expected));
                assert_eq!(next_header, expected);
                if tunnel_mode {
                    let (header, gre) = payload.split_at(20);
                    assert_eq!(header, tunnel_header(OURS, THEIRS, header[1], gre.len()));
                    gre.to_vec()
                } else {
                    payload
                }
            }
        };
        let (key, protocol, inner) = read_gre(&gre).expect("a sound GRE header");
        assert_eq!(key, self.receiver.setup.key);
        assert_eq!(gre.len() - inner.len(), if key.is_some() { 8 } else { 4 });
        assert_eq!(protocol, usize::from(protocol_of(&inner)));
        inner
    }

    /// Decapsulate one vector.
    pub fn decap(&mut self, outers: &[Outer], config: DecapConfig) {
        let (mut expected, mut punted) = (Vec::new(), Vec::new());
        for outer in outers {
            if outer.octets.is_empty() {
                self.count(Counter::UnderlayRxPackets, 1);
                self.count(Counter::DropMalformedDatagram, 1);
                continue;
            }
            let stride = if outer.segment_size == 0 { outer.octets.len() } else { outer.segment_size as usize };
            for datagram in outer.octets.chunks(stride) {
                self.count(Counter::UnderlayRxPackets, 1);
                self.count(Counter::UnderlayRxOctets, datagram.len() as u64);
                match self.receiver.receive(outer.kind, datagram, outer.remote) {
                    Arrival::Inner(octets) => expected.push(octets),
                    Arrival::Counted(counter) => self.count(counter, 1),
                    Arrival::Punt(counter, data) => {
                        let kind = if counter == Counter::PuntIke { PuntKind::Ike } else { PuntKind::Nhrp };
                        let waiting = punted.iter().filter(|(other, _)| *other == kind).count();
                        if waiting < kind.bound() {
                            self.count(counter, 1);
                            punted.push((kind, data));
                        } else {
                            self.count(Counter::DropPuntOverflow, 1);
                        }
                    }
                }
            }
        }
        let clamped = std::mem::take(&mut self.receiver.clamped);
        self.count(Counter::MssClamped, clamped);
        let (out, arena) = self.run(outers, config);
        compare_arrivals(&expected, &out, &arena, config.verify_checksums);
        let punts = self.dataplane.shared.punts.take(usize::MAX).into_iter();
        let punts: Vec<_> = punts
            .filter(|punt| !matches!(punt.kind, PuntKind::Moved | PuntKind::UnknownSpi | PuntKind::Source))
            .map(|punt| (punt.kind, punt.data))
            .collect();
        assert_eq!(punts, punted);
        self.compare_counters();
        let counts = self.dataplane.writer.adjacency_counters(1).unwrap();
        assert_eq!((counts.packets_in, counts.octets_in), (self.receiver.packets, self.receiver.octets));
        if let Some(sa) = &self.receiver.sa {
            let counts = self.dataplane.writer.inbound_sa_counters(sa.spi).unwrap();
            assert_eq!((counts.replayed, counts.unauthentic), (sa.replayed, sa.unauthentic));
        }
    }

    fn run(&mut self, outers: &[Outer], config: DecapConfig) -> (TunBatch, Vec<u8>) {
        let mut arena = Vec::new();
        let datagram = |outer: &Outer| {
            let offset = arena.len() as u32;
            arena.extend(&outer.octets);
            Datagram {
                offset,
                length: outer.octets.len() as u32,
                segment_size: outer.segment_size,
                kind: outer.kind,
                local: Some(OURS),
                local_port: 4500,
                remote: outer.remote,
                remote_port: outer.remote_port,
            }
        };
        let datagrams: Vec<Datagram> = outers.iter().map(datagram).collect();
        let mut out = TunBatch::new();
        self.dataplane.decap.set_config(config);
        let tables = self.dataplane.reader.enter().unwrap();
        self.dataplane.decap.run(&tables, &mut arena, &datagrams, &mut out, 2 * SECOND);
        drop(tables);
        (out, arena)
    }
}

/// The same packets in the same order within each flow, once what was merged is cut again. `verified`: only packets with
/// right checksums were merged, so that checksums have to agree as well.
pub fn compare_arrivals(expected: &[Vec<u8>], out: &TunBatch, arena: &[u8], verified: bool) {
    let mut arrived = Vec::new();
    for packet in &out.packets {
        let mut octets = Vec::new();
        out.gather(arena, packet, &mut octets);
        assert_eq!(octets.len(), packet.length as usize);
        assert!(packet.slice_count as usize <= TunBatch::MAX_SLICES);
        let virtio = VirtioNetHeader::read(&octets).expect("a virtio header");
        let octets = &octets[VirtioNetHeader::LENGTH..];
        if packet.segments == 1 {
            assert_eq!(virtio, VirtioNetHeader::default());
            arrived.push(octets.to_vec());
        } else {
            let pieces = take_apart(octets, &virtio);
            assert_eq!(pieces.len(), packet.segments as usize);
            arrived.extend(pieces);
        }
    }
    let prepared = |packets: &[Vec<u8>]| -> Vec<(Flow, bool, Vec<u8>)> {
        let prepare = |octets: &Vec<u8>| {
            let ip = read_ip(octets).expect("a sound packet");
            let (flow, barrier) = flow_of(octets, &ip);
            let mut octets = octets.clone();
            normalise(&mut octets, true, !verified);
            (flow, barrier, octets)
        };
        packets.iter().map(prepare).collect()
    };
    let (expected, arrived) = (prepared(expected), prepared(&arrived));
    assert_eq!(arrived.len(), expected.len());
    // Packets that may belong to any flow divide the vector: what comes before one of them stays before it.
    let blocks = |packets: &[(Flow, bool, Vec<u8>)]| {
        let mut blocks: Vec<HashMap<Flow, Vec<Vec<u8>>>> = vec![HashMap::new()];
        for (flow, barrier, octets) in packets {
            blocks.last_mut().unwrap().entry(flow.clone()).or_default().push(octets.clone());
            if *barrier {
                blocks.push(HashMap::new());
            }
        }
        blocks
    };
    assert_eq!(blocks(&arrived), blocks(&expected));
}

/// Addresses, protocol and, where they are known, ports.
type Flow = (Vec<u8>, u8, Vec<u8>);

/// The flow of a packet, and whether it may be a part of any other between its addresses.
fn flow_of(octets: &[u8], ip: &Ip) -> (Flow, bool) {
    let addresses = if ip.version == 4 { octets[12..20].to_vec() } else { octets[8..40].to_vec() };
    let barrier = ip.fragment;
    let ports = match octets.get(ip.header..ip.header + 4) {
        Some(ports) if !barrier && [TCP, UDP].contains(&ip.protocol) && ip.header + 4 <= ip.length => ports.to_vec(),
        _ => Vec::new(),
    };
    ((addresses, ip.protocol, ports), barrier)
}

/// The packets of a merged one, whose virtio header is exact.
fn take_apart(octets: &[u8], virtio: &VirtioNetHeader) -> Vec<Vec<u8>> {
    let ip = read_ip(octets).expect("a sound superpacket");
    assert_eq!(ip.length, octets.len());
    assert_eq!(virtio.flags, 1);
    assert_eq!(usize::from(virtio.csum_start), ip.header);
    assert_eq!(Some(usize::from(virtio.csum_offset)), checksum_at(ip.protocol));
    let transport = ip.length - ip.header;
    let seed = two(octets, ip.header + usize::from(virtio.csum_offset));
    assert_eq!(seed, usize::from(sum(&pseudo_header(octets, &ip, transport))));
    assert!(ip.version == 6 || sum(&octets[..ip.header]) == 0xffff);
    let superpacket = Superpacket::read(octets, &ip, virtio).expect("a virtio header that fits");
    assert_eq!(usize::from(virtio.hdr_len), superpacket.headers());
    let packets = superpacket.packets();
    // More than these Linux refuses.
    assert!(packets.len() <= if superpacket.is_udp() { 64 } else { TunBatch::MAX_SLICES });
    if superpacket.is_udp() {
        assert_eq!(two(octets, ip.header + 4), transport);
    }
    packets
}

/// The merging stage alone, over packets with any octets.
pub fn coalesce(packets: &[Vec<u8>], verify: bool) {
    let (mut arena, mut metas, mut expected) = (vec![0; 3], Vec::new(), Vec::new());
    for octets in packets {
        metas.push(PacketMeta { offset: arena.len() as u32, length: octets.len() as u32, ..PacketMeta::default() });
        arena.extend(octets);
        if let Some(ip) = read_ip(octets) {
            expected.push(octets[..ip.length].to_vec());
        }
    }
    metas.push(PacketMeta { offset: u32::MAX, length: u32::MAX, ..PacketMeta::default() });
    let mut out = TunBatch::new();
    stages::coalesce(&mut arena, &metas, verify, &mut out);
    compare_arrivals(&expected, &out, &arena, verify);
}

/// Segmentation alone. What is no superpacket comes out as it is.
pub fn split(packets: &[(Vec<u8>, VirtioNetHeader)]) {
    let (mut arena, mut metas, mut expected) = (vec![0; 3], Vec::new(), Vec::new());
    for (octets, virtio) in packets {
        let (offset, length) = (arena.len() as u32, octets.len() as u32);
        metas.push(PacketMeta { offset, length, virtio: *virtio, ..PacketMeta::default() });
        arena.extend(octets);
        let read = read_ip(octets);
        match read.and_then(|ip| Superpacket::read(&octets[..ip.length], &ip, virtio)) {
            Some(superpacket) => {
                expected.extend(superpacket.packets().into_iter().map(|octets| (VirtioNetHeader::default(), octets)));
            }
            None => expected.push((*virtio, octets.clone())),
        }
    }
    let mut given = Vec::new();
    stages::segment(&arena, &metas, |octets| {
        let virtio = VirtioNetHeader::read(octets).expect("a virtio header");
        given.push((virtio, octets[VirtioNetHeader::LENGTH..].to_vec()));
    });
    assert_eq!(given, expected);
}
