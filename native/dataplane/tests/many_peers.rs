//! Tables larger than the caches, where packets are looked at ahead of their turn: everything goes where it went without.

mod common;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use common::*;
use dsvpn_dataplane::*;

/// More than the tables may have and still count as small.
const PEERS: u32 = 700;

/// One data plane whose peers are all itself: peer `id` has 10.id/24 and fd01:id::/32 behind it.
struct ManyPeers {
    writer: TablesWriter,
    reader: TablesReader,
    encap: Encap,
    decap: Decap,
    shared: Arc<Shared>,
}

impl ManyPeers {
    fn new(peers: u32) -> Self {
        let (mut writer, reader) = tables();
        writer.add_tunnel(0, TunnelConfig::default()).unwrap();
        for id in 0..peers {
            add_peer(&mut writer, id);
            writer.set_route(0, format!("20.{}.{}.0/24", id >> 8, id & 255).parse().unwrap(), id).unwrap();
            writer.set_route(0, format!("fd01:{id:x}::/32").parse().unwrap(), id).unwrap();
            let spi = writer.allocate_spi(id.wrapping_mul(0x9e37_79b9)).unwrap();
            let keymat: Vec<u8> = (0..20).map(|at| (id >> (at % 4)) as u8 ^ at).collect();
            writer.add_inbound_sa(spi, Suite::Aes128Gcm16, &keymat, &[id], false, 64).unwrap();
            writer.set_outbound_sa(spi, Suite::Aes128Gcm16, &keymat, &[id], false).unwrap();
        }
        writer.commit();
        let shared = Arc::new(Shared::default());
        let config = DecapConfig { coalesce_tcp: false, coalesce_udp: false, verify_checksums: false };
        Self {
            writer,
            reader,
            encap: Encap::new(Arc::clone(&shared), EncapConfig::default()),
            decap: Decap::new(Arc::clone(&shared), config),
            shared,
        }
    }

    /// Datagrams with the peers they go to, in their order. `room`: octets of the send arena.
    fn encap(&mut self, packets: &[Vec<u8>], room: usize) -> Vec<(IpAddr, Vec<u8>)> {
        let mut arena = Vec::new();
        let mut metas = Vec::new();
        for octets in packets {
            let (offset, length) = (arena.len() as u32, octets.len() as u32);
            metas.push(PacketMeta { offset, length, virtio: Default::default(), reserved: 0 });
            arena.extend_from_slice(octets);
        }
        let (mut send, mut batch, mut replies) = (vec![0; room], SendBatch::new(), TunBatch::new());
        let mut sent = Vec::new();
        let mut first = 0;
        while first < metas.len() {
            let tables = self.reader.enter().unwrap();
            let rest = &metas[first..];
            first += self.encap.run(&tables, 0, &arena, rest, &mut send, &mut batch, &mut replies, SECOND).consumed;
            for message in &batch.messages {
                for range in message.datagrams() {
                    sent.push((message.endpoint.remote, send[range].to_vec()));
                }
            }
            batch.clear();
        }
        assert!(replies.packets.is_empty());
        sent
    }

    fn decap(&mut self, datagrams: &[(IpAddr, Vec<u8>)]) -> Vec<Vec<u8>> {
        let (mut arena, list) = received(datagrams);
        let mut out = TunBatch::new();
        let tables = self.reader.enter().unwrap();
        self.decap.run(&tables, &mut arena, &list, &mut out, SECOND);
        let gathered = out.packets.iter().map(|packet| {
            let mut octets = Vec::new();
            out.gather(&arena, packet, &mut octets);
            octets.split_off(virtio_length())
        });
        gathered.collect()
    }

    fn count(&self, name: &str) -> u64 {
        self.shared.counters.iter().find(|(this, _)| *this == name).map(|(_, count)| count).unwrap()
    }
}

fn virtio_length() -> usize {
    dsvpn_wire::virtio::VirtioNetHeader::LENGTH
}

/// A packet to a peer, of its version and length.
fn packet_to(id: u32, v6: bool, number: usize) -> Vec<u8> {
    let flow = Flow { v6, udp: true, identification: number as u16, ..Flow::default() };
    let mut octets = flow.packet(&payload(number % 1300));
    if v6 {
        octets[24..40].copy_from_slice(&Ipv6Addr::new(0xfd01, id as u16, 0, 0, 0, 0, 0, 9).octets());
    } else {
        octets[16..20].copy_from_slice(&[20, (id >> 8) as u8, id as u8, 9]);
    }
    fix_checksums(&mut octets);
    octets
}

/// Pseudo-random numbers from a seed that a failure shows.
fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    }
}

#[test]
fn packets_reach_the_peer_of_their_route_in_order() {
    for (peers, room) in [(PEERS, 1 << 20), (PEERS, MIN_SEND_ARENA), (3, 1 << 20)] {
        for count in [1, 7, 8, 9, 47, 48, 49, 300] {
            let mut dataplane = ManyPeers::new(peers);
            let mut random = random(peers ^ count);
            let mut packets = Vec::new();
            let mut expected = Vec::new();
            let mut id = 0;
            let (mut unroutable, mut malformed) = (0, 0);
            for number in 0..count as usize {
                // Runs to one peer, strangers, and what is no packet, among each other.
                if !random().is_multiple_of(3) {
                    id = random() % peers;
                }
                match random() % 12 {
                    0 => {
                        unroutable += 1;
                        packets.push(Flow { udp: true, ..Flow::default() }.packet(&payload(20)));
                    }
                    1 => {
                        malformed += 1;
                        packets.push(vec![[0x45, 0x60, 0x00, 0xff][number % 4]; number % 30]);
                    }
                    choice => {
                        let octets = packet_to(id, choice % 2 == 0, number);
                        expected.push((peer(id), octets.clone()));
                        packets.push(octets);
                    }
                }
            }
            let sent = dataplane.encap(&packets, room);
            let what = format!("{peers} peers, {count} packets, an arena of {room}");
            assert_eq!(sent.len(), expected.len(), "{what}");
            assert!(sent.iter().zip(&expected).all(|(sent, expected)| sent.0 == expected.0), "{what}");
            assert_eq!(dataplane.count("drop_no_route"), unroutable, "{what}");
            assert_eq!(dataplane.count("drop_malformed_inner"), malformed, "{what}");
            let received = dataplane.decap(&sent);
            let inner: Vec<Vec<u8>> = expected.into_iter().map(|(_, octets)| octets).collect();
            assert_eq!(received, inner, "{what}");
        }
    }
}

#[test]
fn strangers_among_datagrams_of_many_peers_are_dropped() {
    let mut dataplane = ManyPeers::new(PEERS);
    let packets: Vec<Vec<u8>> = (0..100).map(|number| packet_to(number * 7 % PEERS, false, number as usize)).collect();
    let mut sent = dataplane.encap(&packets, 1 << 20);
    // An unknown SPI in the slot of a known one, one beyond all slots, a short datagram, a changed one, a repeated one.
    sent[3].1[0] ^= 0x55;
    sent[20].1[..4].copy_from_slice(&[0xff; 4]);
    sent[30].1.truncate(7);
    sent[40].1[30] ^= 1;
    let again = sent[50].clone();
    sent.insert(90, again);
    let received = dataplane.decap(&sent);
    let kept = packets.iter().enumerate().filter(|(index, _)| ![3, 20, 30, 40].contains(index));
    assert_eq!(received, kept.map(|(_, packet)| packet.clone()).collect::<Vec<_>>());
    let reasons = ["drop_unknown_spi", "drop_malformed_esp", "drop_unauthentic", "drop_replayed"];
    assert_eq!(reasons.map(|reason| dataplane.count(reason)), [2, 1, 1, 1]);
}

#[test]
fn peers_that_go_are_not_used_by_the_next_vector() {
    let mut dataplane = ManyPeers::new(PEERS);
    let packets: Vec<Vec<u8>> = (0..64).map(|number| packet_to(number, false, number as usize)).collect();
    let sent = dataplane.encap(&packets, 1 << 20);
    assert_eq!(sent.len(), 64);
    for id in (0..64).step_by(2) {
        dataplane.writer.remove_adjacency(id).unwrap();
    }
    dataplane.writer.commit();
    let after = dataplane.encap(&packets, 1 << 20);
    assert!(after.iter().map(|(remote, _)| *remote).eq((1..64).step_by(2).map(peer)));
    assert_eq!(dataplane.count("drop_no_adjacency"), 32);
    assert_eq!(dataplane.decap(&sent).len(), 32);
}

#[test]
fn flows_of_a_group_spread_over_its_members_and_keep_to_one() {
    // Small tables go packet by packet, large ones by groups ahead of their turn: the same flow goes the same way.
    let mut ways = Vec::new();
    for peers in [3, PEERS] {
        let mut plane = ManyPeers::new(peers);
        plane.writer.set_next_hop_group(peers, &[0, 1, 2]).unwrap();
        plane.writer.set_route(0, "21.0.0.0/8".parse().unwrap(), peers).unwrap();
        plane.writer.commit();
        let mut packets = Vec::new();
        for round in 0..4u8 {
            for port in 0..60u16 {
                let flow = Flow { v6: false, udp: false, identification: u16::from(round), ..Flow::default() };
                let mut octets = flow.packet(&payload(100));
                octets[16..20].copy_from_slice(&[21, 0, 0, 9]);
                octets[20..22].copy_from_slice(&(1000 + port / 3).to_be_bytes());
                fix_checksums(&mut octets);
                packets.push(octets);
                // Another destination between two of one flow.
                if port % 7 == 0 {
                    packets.push(packet_to(u32::from(port) % peers, false, 50));
                }
            }
        }
        let sent = plane.encap(&packets, 1 << 20);
        assert_eq!(sent.len(), packets.len());
        let arrived = plane.decap(&sent);
        let mut way_of = std::collections::HashMap::new();
        // Messages are batched by peer: what arrives is matched by its octets.
        let mut hits = [0usize; 3];
        for ((remote, _), octets) in sent.iter().zip(&arrived) {
            if octets[16] == 21 {
                let before = way_of.insert(octets[20..22].to_vec(), *remote);
                assert!(before.is_none_or(|before| before == *remote));
                hits[(0..3).position(|id| peer(id) == *remote).unwrap()] += 1;
            }
        }
        assert_eq!(way_of.len(), 20);
        assert!(hits.iter().all(|&hit| hit > 0), "{hits:?}");
        ways.push(way_of);
    }
    assert_eq!(ways[0], ways[1]);
}

#[test]
fn groups_are_checked_and_taken_apart() {
    let mut plane = ManyPeers::new(4);
    assert_eq!(plane.writer.set_next_hop_group(9, &[]), Err(TablesError::GroupSize(0)));
    assert_eq!(plane.writer.set_next_hop_group(9, &[0; GROUP_LIMIT + 1]), Err(TablesError::GroupSize(GROUP_LIMIT + 1)));
    assert_eq!(plane.writer.set_next_hop_group(9, &[77]), Err(TablesError::UnknownNextHop(77)));
    plane.writer.set_next_hop(8, Some(0), false).unwrap();
    plane.writer.set_next_hop_group(9, &[8, 1]).unwrap();
    assert_eq!(plane.writer.set_next_hop_group(10, &[9]), Err(TablesError::GroupInGroup(9)));
    assert_eq!(plane.writer.set_next_hop_group(8, &[1]), Err(TablesError::GroupInGroup(8)));
    assert!(matches!(plane.writer.remove_next_hop(8), Err(TablesError::NextHopInUse { next_hop: 8, routes: 1 })));
    plane.writer.set_next_hop_group(9, &[1, 2]).unwrap();
    plane.writer.remove_next_hop(8).unwrap();
    plane.writer.remove_next_hop(9).unwrap();
    plane.writer.set_next_hop_group(9, &[3]).unwrap();
    plane.writer.set_next_hop(9, Some(0), false).unwrap();
    plane.writer.commit();
}
