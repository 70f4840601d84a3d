//! What is encapsulated comes out again, for every suite, kind of sequence number, key and size.

mod common;

use common::*;
use dsvpn_dataplane::*;
use dsvpn_wire::virtio;
use proptest::prelude::*;

fn suites() -> Vec<Suite> {
    let aeads = [Suite::Aes128Gcm16, Suite::Aes256Gcm16, Suite::ChaCha20Poly1305];
    aeads.into_iter().chain(HmacSuite::ALL.iter().copied().map(Suite::Hmac)).collect()
}

#[test]
fn every_suite_encapsulation_and_key() {
    for suite in suites() {
        assert_eq!(suite.name().parse(), Ok(suite));
        for encapsulation in [Encapsulation::Udp, Encapsulation::Esp] {
            for esn in [false, true] {
                for key in [None, Some(42)] {
                    round_trip(Setup { suite: Some(suite), encapsulation, esn, key, ..Setup::default() });
                }
            }
        }
    }
    for key in [None, Some(0), Some(7)] {
        round_trip(Setup { key, ..Setup::plain_gre() });
    }
}

fn round_trip(setup: Setup) {
    let mut dataplane = Loop::new(setup);
    let mut packets = Vec::new();
    for length in (0..70).chain([500, 1000, 1388, 1390]) {
        let flow = Flow { v6: length % 2 == 1, udp: length % 3 == 1, flags: 0x10, ..Flow::default() };
        packets.push(flow.packet(&payload(length.min(1430 - flow.headers()))));
    }
    let (datagrams, errors) = dataplane.encap(&packets.iter().cloned().map(single).collect::<Vec<_>>());
    assert!(errors.is_empty());
    assert_eq!(datagrams.len(), packets.len());
    if setup.suite.is_some() {
        for (datagram, packet) in datagrams.iter().zip(&packets) {
            assert!(!datagram.windows(20).any(|window| window == &packet[..20]), "in the clear");
            assert_eq!(datagram.len() % 4, 0);
        }
    }
    dataplane.decap.set_config(DecapConfig { coalesce_tcp: false, coalesce_udp: false, verify_checksums: false });
    let received = dataplane.decap(&datagrams);
    assert_eq!(received.len(), packets.len());
    for ((virtio, octets), packet) in received.iter().zip(&packets) {
        assert_eq!(*virtio, virtio::VirtioNetHeader::default());
        assert_eq!(octets, packet);
    }
    let count = packets.len() as u64;
    let counts = dataplane.writer.adjacency_counters(1).unwrap();
    assert_eq!((counts.packets_in, counts.packets_out), (count, count));
    assert_eq!(counts.octets_in, packets.iter().map(Vec::len).sum::<usize>() as u64);
    assert_eq!((counts.last_out_ns, counts.last_in_ns), (Some(SECOND), Some(2 * SECOND)));
    for (name, value) in dataplane.shared.counters.iter() {
        assert!(!name.starts_with("drop_") || value == 0, "{name} is {value}");
    }
    if setup.suite.is_some() {
        let inbound = dataplane.writer.inbound_sa_counters(dataplane.spi).unwrap();
        assert_eq!((inbound.packets, inbound.replayed, inbound.unauthentic), (count, 0, 0));
        let outbound = dataplane.writer.outbound_sa_counters(1).unwrap();
        assert_eq!((outbound.spi, outbound.packets, outbound.sequence), (dataplane.spi, count, count));
        // A second time, every one of them is a replay.
        assert!(dataplane.decap(&datagrams).is_empty());
        assert_eq!(dataplane.count(Counter::DropReplayed), count);
    }
}

#[test]
fn udp_gro_runs_are_cut_by_their_stride() {
    let mut dataplane = Loop::new(Setup::default());
    let payload = payload(10_000);
    let flow = Flow { flags: 0x18, ..Flow::default() };
    let (datagrams, _) = dataplane.encap(&[flow.superpacket(&payload, 1390)]);
    let arena_run: Vec<u8> = datagrams.concat();
    let mut arena = vec![1, 2, 3];
    arena.extend_from_slice(&arena_run);
    let run = Datagram {
        offset: 3,
        length: arena_run.len() as u32,
        segment_size: datagrams[0].len() as u32,
        kind: DatagramKind::UdpNat,
        local: Some(OURS),
        local_port: 4500,
        remote: THEIRS,
        remote_port: 4500,
    };
    let mut out = TunBatch::new();
    dataplane.decap.run(&dataplane.reader.enter().unwrap(), &mut arena, &[run], &mut out, 1);
    assert_eq!(out.packets.len(), 1);
    assert_eq!(out.packets[0].segments, 8);
    // Behind ESP, no octet is copied to the header arena.
    assert!(out.headers.is_empty());
    assert_eq!(
        gather(&out, &arena),
        vec![{
            let (octets, virtio) = flow.superpacket(&payload, 1390);
            (virtio, octets)
        }]
    );
}

#[test]
fn tampering_is_seen() {
    for (suite, esn) in suites().into_iter().flat_map(|suite| [(suite, false), (suite, true)]) {
        let setup = Setup { suite: Some(suite), esn, ..Setup::default() };
        let mut dataplane = Loop::new(setup);
        let (datagrams, _) = dataplane.encap(&[single(Flow::default().packet(&payload(64)))]);
        for at in 0..datagrams[0].len() {
            let mut changed = datagrams[0].clone();
            changed[at] ^= 0x40;
            assert!(dataplane.decap(&[changed]).is_empty());
        }
        let refused = dataplane.count(Counter::DropUnauthentic) + dataplane.count(Counter::DropUnknownSpi);
        assert_eq!(refused, datagrams[0].len() as u64);
        assert_eq!(dataplane.count(Counter::DropUnknownSpi), 4);
        assert_eq!(dataplane.decap(&datagrams).len(), 1);
        let inbound = dataplane.writer.inbound_sa_counters(dataplane.spi).unwrap();
        assert_eq!(inbound.unauthentic, dataplane.count(Counter::DropUnauthentic));
    }
}

#[test]
fn sequence_numbers_end_without_esn_and_go_on_with_it() {
    let packets: Vec<_> = (0..5).map(|_| single(Flow { udp: true, ..Flow::default() }.packet(&payload(64)))).collect();
    for esn in [false, true] {
        let mut dataplane = Loop::new(Setup { esn, ..Setup::default() });
        dataplane.writer.outbound_sa(1).unwrap().skip_to(0xffff_fffd);
        // The receiver has seen the numbers before, or it could not infer the high half.
        let (datagrams, _) = dataplane.encap(&packets[..1]);
        assert_eq!(dataplane.decap(&datagrams).len(), 1);
        let (datagrams, _) = dataplane.encap(&packets);
        let sequences: Vec<u64> =
            datagrams.iter().map(|octets| u64::from_be_bytes(octets[8..16].try_into().unwrap())).collect();
        if esn {
            assert_eq!(sequences, (0xffff_ffff..0xffff_ffff + 5).collect::<Vec<u64>>());
            let received: u32 = dataplane
                .decap(&datagrams)
                .iter()
                .map(|(virtio, octets)| if virtio.gso_size == 0 { 1 } else { ((octets.len() - 28) / 64) as u32 })
                .sum();
            assert_eq!(received, 5);
            assert_eq!(dataplane.count(Counter::DropSequenceExhausted), 0);
        } else {
            assert_eq!(sequences, [0xffff_ffff]);
            assert_eq!(dataplane.count(Counter::DropSequenceExhausted), 4);
            let (datagrams, _) = dataplane.encap(&packets);
            assert!(datagrams.is_empty());
            assert_eq!(dataplane.writer.outbound_sa_counters(1).unwrap().sequence, 0xffff_ffff);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn no_sequence_number_is_used_twice_when_arenas_fill(
        lengths in prop::collection::vec((0usize..60_000, 1u16..1391), 1..8),
        multicast in any::<bool>(),
    ) {
        let mut dataplane = Loop::new(Setup::default());
        let flow = Flow { flags: 0x18, ..Flow::default() };
        let mut packets = Vec::new();
        for (length, size) in lengths {
            let length = length.min(usize::from(size) * 200);
            let (mut octets, virtio) = flow.superpacket(&payload(length), size);
            if multicast {
                octets[16..20].copy_from_slice(&[239, 1, 2, 3]);
            }
            packets.push((octets, virtio));
        }
        if multicast {
            dataplane.writer.set_multicast(0, &[1, 1]).unwrap();
            dataplane.writer.commit();
        }
        let (datagrams, _) = dataplane.encap_with_arena(&packets, MIN_SEND_ARENA);
        let copies = if multicast { 2 } else { 1 };
        let expected: usize = packets.iter().map(|(octets, virtio)| {
            (octets.len() - 40).div_ceil(usize::from(virtio.gso_size)).max(1) * copies
        }).sum();
        let sequences: Vec<u64> =
            datagrams.iter().map(|octets| u64::from_be_bytes(octets[8..16].try_into().unwrap())).collect();
        prop_assert_eq!(sequences, (1..=expected as u64).collect::<Vec<_>>());
    }
}
