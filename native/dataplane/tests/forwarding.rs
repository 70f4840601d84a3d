//! Routes, next hops, multicast, MTU, punts and drop reasons.

mod common;

use std::net::{IpAddr, Ipv4Addr};

use common::*;
use dsvpn_dataplane::*;
use dsvpn_wire::icmp;
use dsvpn_wire::ip::IpPacket;

const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));

/// A second adjacency (2) behind next hop 2 for 10.1.0.2/32, with the same SA.
fn with_second(setup: Setup) -> Loop {
    let mut dataplane = Loop::new(setup);
    dataplane.writer.set_adjacency(2, adjacency(setup, OTHER)).unwrap();
    if let Some(suite) = setup.suite {
        let keymat: Vec<u8> = (1..=suite.keymat_length() as u8).collect();
        dataplane.writer.set_outbound_sa(0x1234, suite, &keymat, &[2], setup.esn).unwrap();
    }
    dataplane.writer.set_next_hop(2, Some(2), false).unwrap();
    dataplane.writer.set_route(0, "10.1.0.2/32".parse().unwrap(), 2).unwrap();
    dataplane.writer.commit();
    dataplane
}

fn messages(dataplane: &mut Loop, packets: &[Vec<u8>]) -> Vec<SendMessage> {
    let mut arena = Vec::new();
    let mut metas = Vec::new();
    for octets in packets {
        metas.push(PacketMeta { offset: arena.len() as u32, length: octets.len() as u32, ..PacketMeta::default() });
        arena.extend_from_slice(octets);
    }
    let (mut send, mut batch, mut replies) = (vec![0; MIN_SEND_ARENA], SendBatch::new(), TunBatch::new());
    let tables = dataplane.reader.enter().unwrap();
    dataplane.encap.run(&tables, 0, &arena, &metas, &mut send, &mut batch, &mut replies, SECOND);
    batch.messages
}

#[test]
fn packets_follow_routes_and_next_hops() {
    let mut dataplane = with_second(Setup::default());
    let to = |destination| Flow { udp: true, destination, tos: 0xbb, ..Flow::default() }.packet(&payload(100));
    let remotes = |messages: &[SendMessage]| messages.iter().map(|message| message.endpoint.remote).collect::<Vec<_>>();
    let sent = messages(&mut dataplane, &[to(1), to(2), to(3), to(2)]);
    assert_eq!(remotes(&sent), [THEIRS, OTHER, THEIRS, OTHER]);
    assert!(sent.iter().all(|message| message.endpoint.tos == 0xb8 && message.endpoint.local == Some(OURS)));
    // Re-pointing a next hop moves all its routes.
    dataplane.writer.set_next_hop(2, Some(1), false).unwrap();
    dataplane.writer.commit();
    let sent = messages(&mut dataplane, &[to(1), to(2)]);
    assert_eq!(remotes(&sent), [THEIRS]);
    assert_eq!(sent[0].segments, 2);
    dataplane.writer.set_next_hop(2, None, false).unwrap();
    dataplane.writer.commit();
    assert!(messages(&mut dataplane, &[to(2)]).is_empty());
    assert_eq!(dataplane.count(Counter::DropNoAdjacency), 1);
    // Without its route, the shorter prefix takes over again.
    dataplane.writer.remove_route(0, "10.1.0.2/32".parse().unwrap()).unwrap();
    dataplane.writer.remove_next_hop(2).unwrap();
    dataplane.writer.commit();
    assert_eq!(remotes(&messages(&mut dataplane, &[to(2)])), [THEIRS]);
    dataplane.writer.clear_outbound_sa(1).unwrap();
    dataplane.writer.commit();
    assert!(messages(&mut dataplane, &[to(1)]).is_empty());
    assert_eq!(dataplane.count(Counter::DropNoSa), 1);
    dataplane.writer.remove_route(0, "10.1.0.0/16".parse().unwrap()).unwrap();
    dataplane.writer.commit();
    assert!(messages(&mut dataplane, &[to(1)]).is_empty());
    assert_eq!(dataplane.count(Counter::DropNoRoute), 1);
    dataplane.writer.remove_tunnel(0).unwrap();
    dataplane.writer.commit();
    assert!(messages(&mut dataplane, &[to(1)]).is_empty());
    assert_eq!(dataplane.count(Counter::DropNoTunnel), 1);
}

#[test]
fn uncommitted_changes_are_not_seen() {
    let mut dataplane = Loop::new(Setup::default());
    dataplane.writer.remove_route(0, "10.1.0.0/16".parse().unwrap()).unwrap();
    assert_eq!(messages(&mut dataplane, &[Flow::default().packet(&[1])]).len(), 1);
    dataplane.writer.commit();
    assert_eq!(messages(&mut dataplane, &[Flow::default().packet(&[1])]).len(), 0);
}

#[test]
fn multicast_goes_to_every_listed_adjacency() {
    let mut dataplane = with_second(Setup::default());
    let mut packet = Flow { udp: true, ..Flow::default() }.packet(&payload(100));
    packet[16..20].copy_from_slice(&[224, 0, 0, 5]);
    fix_checksums(&mut packet);
    assert!(messages(&mut dataplane, std::slice::from_ref(&packet)).is_empty());
    assert_eq!(dataplane.count(Counter::DropNoMulticast), 1);
    dataplane.writer.set_multicast(0, &[1, 2]).unwrap();
    dataplane.writer.commit();
    let sent = messages(&mut dataplane, &[packet]);
    assert_eq!(sent.iter().map(|message| message.endpoint.remote).collect::<Vec<_>>(), [THEIRS, OTHER]);
}

#[test]
fn misses_are_punted_once_a_second() {
    let mut dataplane = Loop::new(Setup::default());
    dataplane.writer.set_next_hop(1, Some(1), true).unwrap();
    dataplane.writer.commit();
    let packet = Flow::default().packet(&payload(10));
    assert_eq!(messages(&mut dataplane, &[packet.clone(), packet.clone()])[0].segments, 2);
    let v6 = Flow { v6: true, ..Flow::default() }.packet(&[]);
    messages(&mut dataplane, &[packet, v6]);
    let punts = dataplane.shared.punts.take(10);
    assert_eq!(punts.len(), 2);
    assert_eq!((punts[0].kind, punts[0].tunnel, punts[0].next_hop), (PuntKind::Miss, Some(0), Some(1)));
    assert_eq!(punts[0].data, [10, 1, 0, 1]);
    assert_eq!(punts[1].data.len(), 16);
}

#[test]
fn a_redirecting_tunnel_reports_hairpins() {
    let mut dataplane = with_second(Setup { redirect: true, ..Setup::default() });
    let hairpin = |source: u8, destination: u8| {
        let mut packet = Flow { destination, ..Flow::default() }.packet(&payload(300));
        packet[12..16].copy_from_slice(&[10, 1, 0, source]);
        fix_checksums(&mut packet);
        packet
    };
    // From behind adjacency 2 to behind adjacency 1, twice; the way back; and within one adjacency.
    let packets = [hairpin(2, 1), hairpin(2, 1), hairpin(1, 2), hairpin(1, 3), Flow::default().packet(&[1])];
    let sent = messages(&mut dataplane, &packets);
    assert_eq!(sent.iter().map(|message| message.segments).sum::<u32>(), 5);
    let punts = dataplane.shared.punts.take(10);
    assert_eq!(
        punts.iter().map(|punt| (punt.kind, punt.adjacency)).collect::<Vec<_>>(),
        [(PuntKind::Redirect, Some(2)), (PuntKind::Redirect, Some(1)),]
    );
    assert_eq!(punts[0].data, packets[0][..128]);
}

#[test]
fn too_big_is_answered_or_fragmented() {
    for (setup, v6) in [(Setup::default(), false), (Setup::default(), true), (Setup::plain_gre(), false)] {
        let mut dataplane = Loop::new(Setup { mtu: 1300, ..setup });
        let packet = Flow { v6, ..Flow::default() }.packet(&payload(1300));
        let (datagrams, errors) = dataplane.encap(&[single(packet.clone()), single(packet.clone())]);
        assert!(datagrams.is_empty());
        // The second one comes too soon after the first.
        assert_eq!(errors.len(), 1);
        assert_eq!(icmp::read_too_big_mtu(&errors[0]), Some(1300));
        let parsed = IpPacket::parse(&errors[0]).unwrap();
        assert_eq!(parsed.destination(&errors[0]), IpPacket::parse(&packet).unwrap().source(&packet));
        assert_eq!(dataplane.count(Counter::DropTooBig), 2);
        // A superpacket whose segments are too big is answered as well.
        let flow = Flow { v6, source: 9, ..Flow::default() };
        let (datagrams, errors) = dataplane.encap(&[flow.superpacket(&payload(5000), 1400)]);
        assert_eq!((datagrams.len(), errors.len()), (0, 1));
    }
}

#[test]
fn without_df_large_packets_are_cut() {
    let mut dataplane = Loop::new(Setup { mtu: 1000, ..Setup::plain_gre() });
    let flow = Flow { dont_fragment: false, udp: true, ..Flow::default() };
    let large = flow.packet(&payload(2500));
    let reassemble = |datagrams: &[Vec<u8>]| {
        let mut octets = datagrams[0][8..28].to_vec();
        datagrams.iter().for_each(|datagram| octets.extend_from_slice(&datagram[28..]));
        octets[6] = 0;
        let length = octets.len() as u16;
        octets[2..4].copy_from_slice(&length.to_be_bytes());
        fix_checksums(&mut octets);
        octets
    };
    let (datagrams, errors) = dataplane.encap(&[single(large.clone())]);
    assert_eq!((datagrams.len(), errors.len()), (3, 0));
    assert!(datagrams.iter().all(|datagram| datagram.len() <= 1000 + 8));
    assert_eq!(reassemble(&datagrams), large);
    // When the arena fills, the fragments of one packet stay together and none is lost.
    let many = vec![single(large.clone()); 100];
    let (datagrams, _) = dataplane.encap_with_arena(&many, MIN_SEND_ARENA);
    assert_eq!(datagrams.len(), 300);
    assert!(datagrams.chunks(3).all(|fragments| reassemble(fragments) == large));
    // The checksum is completed before the cut.
    let (octets, virtio) = flow.superpacket(&payload(2500), 0);
    let (datagrams, _) = dataplane.encap(&[(octets, dsvpn_wire::virtio::VirtioNetHeader { gso_type: 0, ..virtio })]);
    assert_eq!(reassemble(&datagrams), large);
    // Datagrams of a superpacket are cut one by one.
    let (datagrams, _) = dataplane.encap(&[flow.superpacket(&payload(2400), 1200)]);
    assert_eq!(datagrams.len(), 4);
    let expected = flow.segments(&payload(2400), 1200);
    assert_eq!(reassemble(&datagrams[..2]), expected[0]);
    assert_eq!(reassemble(&datagrams[2..]), expected[1]);
    assert_eq!(dataplane.count(Counter::Fragmented), 104);
    // TCP is segmented anew, smaller.
    let tcp = Flow { dont_fragment: false, ..Flow::default() };
    let (datagrams, _) = dataplane.encap(&[tcp.superpacket(&payload(5000), 1400)]);
    let received: Vec<Vec<u8>> = datagrams.iter().map(|datagram| datagram[8..].to_vec()).collect();
    assert_eq!(received, tcp.segments(&payload(5000), 960));
}

#[test]
fn nhrp_goes_and_comes_through_the_sa() {
    for setup in [
        Setup::default(),
        Setup { encapsulation: Encapsulation::Esp, esn: true, ..Setup::default() },
        Setup::plain_gre(),
    ] {
        let mut dataplane = Loop::new(setup);
        let mut out = vec![9; 5];
        let packet = payload(92);
        let message = encap_nhrp(&dataplane.reader.enter().unwrap(), 1, &packet, &mut out).unwrap();
        assert_eq!((message.offset, message.length as usize, message.segments), (0, out.len(), 1));
        assert_eq!(message.endpoint.tos, 0xc0);
        assert!(dataplane.decap(&[out.clone()]).is_empty());
        let punts = dataplane.shared.punts.take(10);
        assert_eq!(punts.len(), 1);
        assert_eq!((punts[0].kind, punts[0].tunnel, punts[0].adjacency), (PuntKind::Nhrp, Some(0), Some(1)));
        assert_eq!((punts[0].remote, &punts[0].data), (Some(THEIRS), &packet));
        // NHRP is not data.
        let counts = dataplane.writer.adjacency_counters(1).unwrap();
        assert_eq!((counts.packets_in, counts.packets_out, counts.last_in_ns), (0, 0, None));
        let tables = dataplane.reader.enter().unwrap();
        assert_eq!(encap_nhrp(&tables, 9, &packet, &mut out), Err(Counter::DropNoAdjacency));
        assert_eq!(encap_nhrp(&tables, 1, &payload(1431), &mut out), Err(Counter::DropTooBig));
    }
}

#[test]
fn plain_gre_of_strangers() {
    let gre = |protocol: [u8; 2], key: u8, rest: &[u8]| {
        [&[0x20, 0, protocol[0], protocol[1], 0, 0, 0, key][..], rest].concat()
    };
    let data = Flow::default().packet(&[1]);
    let mut open = Loop::new(Setup::plain_gre());
    let datagrams =
        [gre([8, 0], 42, &data), gre([0x20, 1], 42, &[1, 2, 3]), gre([8, 0], 43, &data), gre([9, 9], 42, &data)];
    assert!(open.decap_from(&datagrams, DatagramKind::Gre, OTHER, 0).is_empty());
    assert_eq!(open.count(Counter::DropUnknownPeer), 2);
    assert_eq!(open.count(Counter::DropWrongKey), 1);
    let punts = open.shared.punts.take(9);
    assert_eq!(punts.len(), 1);
    assert_eq!(
        (punts[0].kind, punts[0].tunnel, punts[0].adjacency, punts[0].remote),
        (PuntKind::Nhrp, Some(0), None, Some(OTHER))
    );
    // ESP for the same tunnel is nothing that it knows.
    assert!(open.decap_from(&[vec![7; 100]], DatagramKind::Esp, THEIRS, 0).is_empty());
    assert_eq!(open.count(Counter::DropUnknownSpi), 1);

    let mut protected = Loop::new(Setup::default());
    assert!(protected.decap_from(&datagrams[..2], DatagramKind::Gre, THEIRS, 0).is_empty());
    assert_eq!(protected.count(Counter::DropUnprotected), 2);
    assert!(protected.shared.punts.is_empty());
}

#[test]
fn ike_and_keepalives_are_told_apart_from_esp() {
    let mut dataplane = Loop::new(Setup::default());
    let datagrams = [vec![0xff], [&[0; 4][..], b"ike"].concat(), vec![1, 2], vec![], vec![0; 4]];
    assert!(dataplane.decap_from(&datagrams, DatagramKind::UdpNat, OTHER, 4511).is_empty());
    assert!(dataplane.decap_from(&[b"\0\0\0\0plain".to_vec()], DatagramKind::UdpIke, OTHER, 500).is_empty());
    assert_eq!(dataplane.count(Counter::KeepalivesReceived), 1);
    assert_eq!(dataplane.count(Counter::DropMalformedDatagram), 3);
    let punts = dataplane.shared.punts.take(9);
    assert_eq!(punts.len(), 2);
    assert_eq!((&punts[0].data[..], punts[0].local_port, punts[0].remote_port), (&b"ike"[..], 4500, 4511));
    assert_eq!((&punts[1].data[..], punts[1].local_port, punts[1].remote_port), (&b"\0\0\0\0plain"[..], 500, 500));
    assert_eq!((punts[0].kind, punts[0].remote, punts[0].local), (PuntKind::Ike, Some(OTHER), Some(OURS)));
}

#[test]
fn an_unknown_spi_is_reported_once_a_second_and_sender() {
    let mut dataplane = Loop::new(Setup::default());
    let stray = |spi: u32| [&spi.to_be_bytes()[..], &[0; 60]].concat();
    let strays = [stray(0x1234_5678), stray(0x1234_5678), stray(0x9abc_def0)];
    assert!(dataplane.decap_from(&strays, DatagramKind::UdpNat, THEIRS, 4500).is_empty());
    assert!(dataplane.decap_from(&strays[2..], DatagramKind::Esp, OTHER, 0).is_empty());
    // Too short to be ESP: nothing to report.
    assert!(dataplane.decap_from(&[vec![1; 20]], DatagramKind::Esp, OURS, 0).is_empty());
    assert_eq!(dataplane.count(Counter::DropUnknownSpi), 4);
    assert_eq!(dataplane.count(Counter::PuntUnknownSpi), 2);
    let punts = dataplane.shared.punts.take(9);
    assert_eq!(punts.len(), 2);
    assert!(punts.iter().all(|punt| punt.kind == PuntKind::UnknownSpi && punt.adjacency.is_none()));
    assert_eq!((&punts[0].data[..], punts[0].remote_port), (&[0x12, 0x34, 0x56, 0x78][..], 4500));
    assert_eq!((punts[1].remote, punts[1].local), (Some(OTHER), Some(OURS)));
}

#[test]
fn a_peer_that_moves_is_reported_once_a_second() {
    let mut dataplane = Loop::new(Setup::default());
    let packet = || single(Flow::default().packet(&payload(10)));
    let (datagrams, _) = dataplane.encap(&[packet(), packet(), packet()]);
    assert_eq!(dataplane.decap_from(&datagrams[..1], DatagramKind::UdpNat, THEIRS, 4500).len(), 1);
    assert!(dataplane.shared.punts.is_empty());
    assert_eq!(dataplane.decap_from(&datagrams[1..2], DatagramKind::UdpNat, THEIRS, 61_000).len(), 1);
    assert_eq!(dataplane.decap_from(&datagrams[2..], DatagramKind::UdpNat, OTHER, 4500).len(), 1);
    let punts = dataplane.shared.punts.take(9);
    assert_eq!(punts.len(), 1);
    assert_eq!((punts[0].kind, punts[0].adjacency, punts[0].remote_port), (PuntKind::Moved, Some(1), 61_000));
    // Somebody without the key moves nothing.
    assert!(
        dataplane
            .decap_from(&[[&dataplane.spi.to_be_bytes()[..], &[0; 60]].concat()], DatagramKind::UdpNat, OTHER, 9)
            .is_empty()
    );
    assert!(dataplane.shared.punts.is_empty());
}

#[test]
fn the_gre_key_tells_the_tunnels_of_one_sa_apart() {
    let setup = Setup::default();
    let mut dataplane = Loop::new(setup);
    dataplane.writer.add_tunnel(5, TunnelConfig { key: Some(43), ..TunnelConfig::default() }).unwrap();
    dataplane.writer.set_adjacency(7, AdjacencyConfig { tunnel: 5, ..adjacency(setup, THEIRS) }).unwrap();
    dataplane.writer.add_tunnel(6, TunnelConfig { key: Some(44), ..TunnelConfig::default() }).unwrap();
    dataplane.writer.set_adjacency(8, AdjacencyConfig { tunnel: 6, ..adjacency(setup, THEIRS) }).unwrap();
    let suite = setup.suite.unwrap();
    let keymat = vec![5; suite.keymat_length()];
    let spi = dataplane.writer.allocate_spi(1).unwrap();
    dataplane.writer.add_inbound_sa(spi, suite, &keymat, &[1, 7], false, 64).unwrap();
    dataplane.writer.set_outbound_sa(spi, suite, &keymat, &[1, 7, 8], false).unwrap();
    dataplane.writer.commit();
    let mut out = Vec::new();
    for (adjacency, tunnel) in [(1, Some(0)), (7, Some(5)), (8, None), (7, Some(5))] {
        encap_nhrp(&dataplane.reader.enter().unwrap(), adjacency, &[1; 20], &mut out).unwrap();
        dataplane.decap(&[out.clone()]);
        assert_eq!(dataplane.shared.punts.take(9).first().and_then(|punt| punt.tunnel), tunnel);
    }
    assert_eq!(dataplane.count(Counter::DropWrongKey), 1);
    assert_eq!(dataplane.writer.outbound_sa_counters(8).unwrap().sequence, 4);
}

/// An ESP packet of the test SA with any plaintext.
fn sealed(dataplane: &Loop, sequence: u32, mut plaintext: Vec<u8>) -> Vec<u8> {
    let suite = dataplane.setup.suite.unwrap();
    let keymat: Vec<u8> = (1..=suite.keymat_length() as u8).collect();
    let mut octets = dataplane.spi.to_be_bytes().to_vec();
    octets.extend_from_slice(&sequence.to_be_bytes());
    let iv = [9, 9, 9, 9, 0, 0, 0, sequence as u8];
    plaintext.resize(plaintext.len() + ICV_LENGTH, 0);
    Cipher::new(suite, &keymat).unwrap().seal(iv, &octets, &mut plaintext);
    octets.extend_from_slice(&iv);
    octets.extend_from_slice(&plaintext);
    octets
}

#[test]
fn authentic_esp_with_wrong_content_has_named_reasons() {
    let mut dataplane = Loop::new(Setup::default());
    let gre = |protocol: [u8; 2], rest: &[u8]| {
        let mut octets = [&[0x20, 0, protocol[0], protocol[1], 0, 0, 0, 42][..], rest].concat();
        let padding = dsvpn_wire::esp::padding(octets.len());
        octets.extend(1..=padding as u8);
        octets.extend([padding as u8, 47]);
        octets
    };
    let packet = Flow::default().packet(&payload(10));
    let mut v6 = packet.clone();
    v6[0] = 0x60;
    let cases = [
        (Counter::DummiesReceived, vec![0, 0, 0, 0, 0, 0, 0, 59]),
        (Counter::DropWrongNextHeader, vec![0x45, 0, 0, 0, 0, 0, 0, 4]),
        (Counter::DropMalformedEsp, vec![0, 0, 0, 0, 9, 8, 2, 47]),
        (Counter::DropMalformedEsp, vec![0, 0, 0, 0, 0, 0, 200, 47]),
        (Counter::DropMalformedGre, vec![0x20, 0, 8, 0, 1, 1, 0, 47]),
        (Counter::DropMalformedGre, gre([0x88, 0x47], &packet)),
        (Counter::DropWrongKey, [&[0, 0, 8, 0][..], &packet[..], &[0, 47]].concat()),
        (Counter::DropMalformedInner, gre([8, 0], &packet[..30])),
        (Counter::DropMalformedInner, gre([8, 0], &v6)),
        (Counter::DropMalformedInner, gre([0x86, 0xdd], &packet)),
        (Counter::DropMalformedInner, gre([8, 0], &[])),
    ];
    let mut expected = std::collections::HashMap::new();
    for (sequence, (counter, plaintext)) in (1..).zip(cases) {
        *expected.entry(counter).or_insert(0) += 1;
        let datagram = sealed(&dataplane, sequence, plaintext);
        assert!(dataplane.decap(&[datagram]).is_empty());
        assert_eq!(dataplane.count(counter), expected[&counter], "{}", counter.name());
    }
    // What follows the packet by its own length is cut off.
    let datagram = sealed(&dataplane, 100, gre([8, 0], &[&packet[..], &[0xee; 9]].concat()));
    assert_eq!(dataplane.decap(&[datagram])[0].1, packet);
    assert_eq!(dataplane.count(Counter::DropUnauthentic), 0);
}
