//! Nothing that a stranger, a peer or a lying virtio header can say makes the data plane panic, or pass unseen.

mod common;

use common::*;
use dsvpn_dataplane::*;
use dsvpn_wire::virtio::VirtioNetHeader;
use proptest::prelude::*;

fn virtio_headers() -> impl Strategy<Value = VirtioNetHeader> {
    let gso_type = prop::sample::select(vec![0u8, 1, 4, 5, 0x81, 0x84, 3, 0xff]);
    let small = prop_oneof![0u16..200, any::<u16>()];
    (0u8..4, gso_type, small.clone(), small.clone(), small.clone(), small).prop_map(
        |(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| VirtioNetHeader {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        },
    )
}

/// A sound packet, some of whose octets were changed, and cut.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((0usize..80, any::<u8>()), 0..4);
    (any::<bool>(), any::<bool>(), any::<bool>(), 0usize..3000, changes, 0usize..3000).prop_map(
        |(v6, udp, dont_fragment, length, changes, cut)| {
            let mut octets = Flow { v6, udp, dont_fragment, ..Flow::default() }.packet(&payload(length));
            for (at, value) in changes {
                if let Some(octet) = octets.get_mut(at) {
                    *octet = value;
                }
            }
            if cut < octets.len() && cut % 3 == 0 {
                octets.truncate(cut);
            }
            octets
        },
    )
}

fn all_counted(dataplane: &Loop) -> u64 {
    dataplane.shared.counters.iter().filter(|(name, _)| name.starts_with("drop_")).map(|(_, value)| value).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn lying_virtio_headers(packets in prop::collection::vec((mutated(), virtio_headers()), 1..6), protected in any::<bool>()) {
        let mut dataplane = Loop::new(if protected { Setup::default() } else { Setup::plain_gre() });
        dataplane.writer.set_multicast(0, &[1]).unwrap();
        dataplane.writer.commit();
        let (datagrams, errors) = dataplane.encap_with_arena(&packets, MIN_SEND_ARENA);
        // Everything is sent, answered or counted.
        prop_assert!(datagrams.len() + errors.len() + all_counted(&dataplane) as usize >= packets.len());
        prop_assert_eq!(dataplane.count(Counter::TunRxPackets), packets.len() as u64);
        for datagram in &datagrams {
            prop_assert!(datagram.len() <= 1430 + 64);
        }
        let received = dataplane.decap(&datagrams);
        prop_assert!(received.len() <= datagrams.len());
        for (virtio, octets) in received {
            prop_assert!(usize::from(virtio.hdr_len) <= octets.len());
        }
    }

    #[test]
    fn any_datagram(
        datagrams in prop::collection::vec((0usize..4, prop::collection::vec(any::<u8>(), 0..120), any::<bool>(), 0u32..64), 1..10),
    ) {
        for setup in [Setup::default(), Setup::plain_gre()] {
            let mut dataplane = Loop::new(setup);
            let mut arena = Vec::new();
            let mut list = Vec::new();
            for (kind, octets, known, segment_size) in &datagrams {
                let mut octets = octets.clone();
                if *known && octets.len() >= 4 {
                    octets[..4].copy_from_slice(&if setup.suite.is_some() { dataplane.spi.to_be_bytes() } else { [0x20, 0, 8, 0] });
                }
                list.push(Datagram {
                    offset: arena.len() as u32,
                    length: octets.len() as u32,
                    segment_size: *segment_size,
                    kind: [DatagramKind::UdpIke, DatagramKind::UdpNat, DatagramKind::Esp, DatagramKind::Gre][*kind],
                    local: None,
                    local_port: 0,
                    remote: THEIRS,
                    remote_port: 1,
                });
                arena.extend_from_slice(&octets);
            }
            list.push(Datagram { offset: u32::MAX, length: u32::MAX, ..list[0] });
            list.push(Datagram { offset: arena.len() as u32, length: 1, ..list[0] });
            let mut out = TunBatch::new();
            dataplane.decap.run(&dataplane.reader.enter().unwrap(), &mut arena, &list, &mut out, 1);
            let seen = dataplane.count(Counter::UnderlayRxPackets);
            let accounted = all_counted(&dataplane)
                + [Counter::PuntIke, Counter::PuntNhrp, Counter::KeepalivesReceived].map(|counter| dataplane.count(counter)).iter().sum::<u64>()
                + out.packets.iter().map(|packet| u64::from(packet.segments)).sum::<u64>();
            prop_assert_eq!(seen, accounted);
        }
    }

    #[test]
    fn any_inner_packet_of_a_peer(packets in prop::collection::vec(mutated(), 1..8)) {
        // Plain GRE brings inner packets that no encapsulation of ours has looked at.
        let mut dataplane = Loop::new(Setup::plain_gre());
        let datagrams: Vec<Vec<u8>> = packets.iter().map(|octets| {
            let protocol = if octets.first().is_some_and(|first| first >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
            [&[0x20, 0, protocol[0], protocol[1], 0, 0, 0, 42][..], octets].concat()
        }).collect();
        let received = dataplane.decap(&datagrams);
        let segments: usize = received.len() + dataplane.count(Counter::DropMalformedInner) as usize;
        prop_assert!(segments <= packets.len());
        for (_, octets) in received {
            prop_assert!(dsvpn_wire::ip::IpPacket::parse(&octets).is_ok_and(|packet| packet.length == octets.len()));
        }
    }
}

#[test]
fn truncated_esp_is_refused_at_every_length() {
    let mut dataplane = Loop::new(Setup::default());
    let (datagrams, _) = dataplane.encap(&[single(Flow::default().packet(&payload(10)))]);
    for length in 0..datagrams[0].len() {
        assert!(dataplane.decap(&[datagrams[0][..length].to_vec()]).is_empty());
    }
    assert_eq!(all_counted(&dataplane), datagrams[0].len() as u64);
    assert_eq!(dataplane.decap(&datagrams).len(), 1);
}

#[test]
fn an_arena_below_the_minimum_drops_and_counts() {
    let mut dataplane = Loop::new(Setup { mtu: 65_535, ..Setup::default() });
    let packet = Flow::default().packet(&payload(60_000));
    let meta = PacketMeta { offset: 0, length: packet.len() as u32, ..PacketMeta::default() };
    let (mut batch, mut replies, mut send) = (SendBatch::new(), TunBatch::new(), vec![0; 1000]);
    let tables = dataplane.reader.enter().unwrap();
    let progress = dataplane.encap.run(&tables, 0, &packet, &[meta], &mut send, &mut batch, &mut replies, 1);
    assert_eq!(progress.consumed, 1);
    assert!(batch.messages.is_empty());
    drop(tables);
    assert_eq!(dataplane.count(Counter::DropTooBig), 1);
}
