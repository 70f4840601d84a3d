//! Superpackets against a plain model, both ways: segments made from scratch, and merged packets as they were.

mod common;

use common::*;
use dsvpn_dataplane::*;
use dsvpn_wire::virtio::{self, VirtioNetHeader};
use proptest::prelude::*;

fn flows() -> impl Strategy<Value = Flow> {
    let flags = prop::sample::select(vec![0x10u8, 0x18, 0x11, 0x19, 0x50, 0x90, 0xd8]);
    let options = prop::sample::select(vec![vec![], vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], vec![1; 40]]);
    (any::<bool>(), any::<bool>(), any::<u8>(), any::<bool>(), any::<u16>(), any::<u32>(), flags, options).prop_map(
        |(v6, udp, tos, dont_fragment, identification, sequence, flags, options)| Flow {
            v6,
            udp,
            tos,
            dont_fragment,
            identification,
            sequence,
            flags,
            options: if udp { Vec::new() } else { options },
            ..Flow::default()
        },
    )
}

/// Inner packets of plain GRE datagrams with a key.
fn inner(datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    datagrams.iter().map(|octets| octets[8..].to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn segments_are_those_of_the_model(flow in flows(), length in 0usize..20_000, size in 1usize..1330) {
        let length = length.min(size * 150);
        let payload = payload(length);
        let mut dataplane = Loop::new(Setup { mss_clamp: false, ..Setup::plain_gre() });
        let (datagrams, errors) = dataplane.encap(&[flow.superpacket(&payload, size as u16)]);
        prop_assert!(errors.is_empty());
        let segments = inner(&datagrams);
        prop_assert_eq!(&segments, &flow.segments(&payload, size));
        prop_assert!(segments.iter().all(|octets| checksums_hold(octets)));
    }

    #[test]
    fn what_was_segmented_is_merged_again(
        flow in flows(), length in 0usize..30_000, size in 200usize..1330, protected in any::<bool>(),
    ) {
        // Linux takes no more than 64 datagrams in one UDP superpacket; the next test has more.
        let length = if flow.udp { length.min(64 * size) } else { length };
        let payload = payload(length);
        let mut dataplane = Loop::new(if protected { Setup::default() } else { Setup::plain_gre() });
        let original = flow.superpacket(&payload, size as u16);
        let (datagrams, _) = dataplane.encap(std::slice::from_ref(&original));
        let received = dataplane.decap(&datagrams);
        if length > size && (flow.udp || flow.flags & 0x80 == 0) {
            prop_assert_eq!(received, vec![(original.1, original.0)]);
        } else if flow.udp || length <= size {
            prop_assert_eq!(received, vec![single(flow.packet(&payload)).clone()].into_iter().map(|(o, v)| (v, o)).collect::<Vec<_>>());
        } else {
            // CWR stays alone on the first segment; the others are merged.
            let first = &flow.segments(&payload, size)[0];
            prop_assert_eq!(&received[0], &(VirtioNetHeader::default(), first.clone()));
            prop_assert!(received.len() <= 2);
        }
    }

    #[test]
    fn any_order_of_packets_comes_out_in_order_within_its_flow(
        steps in prop::collection::vec((0u8..3, 0usize..3, prop::sample::select(vec![0x10u8, 0x10, 0x10, 0x18, 0x11, 0x12, 0x14, 0x30])), 1..60),
        udp in any::<bool>(),
    ) {
        let mut dataplane = Loop::new(Setup { mss_clamp: false, ..Setup::default() });
        let mut next = [0u32, 1000, 5000];
        let mut sent = vec![Vec::new(); 3];
        let mut packets = Vec::new();
        for (number, (which, kind, flags)) in steps.into_iter().enumerate() {
            let which = usize::from(which);
            let length = [0, 300, 500][kind];
            let flow = Flow {
                udp, port: 5000 + which as u16, sequence: next[which], flags, identification: number as u16, ..Flow::default()
            };
            next[which] = next[which].wrapping_add(length as u32);
            let octets = flow.packet(&payload(length));
            sent[which].push(octets.clone());
            packets.push(single(octets));
        }
        let (datagrams, _) = dataplane.encap(&packets);
        let mut arena = Vec::new();
        let list: Vec<Datagram> = datagrams.iter().map(|octets| {
            let offset = arena.len() as u32;
            arena.extend_from_slice(octets);
            Datagram {
                offset, length: octets.len() as u32, segment_size: 0, kind: DatagramKind::UdpNat, local: None, local_port: 4500,
                remote: THEIRS, remote_port: 4500,
            }
        }).collect();
        let mut out = TunBatch::new();
        dataplane.decap.run(&dataplane.reader.enter().unwrap(), &mut arena, &list, &mut out, 1);
        let mut received = vec![Vec::new(); 3];
        let mut scratch = Vec::new();
        for packet in &out.packets {
            out.split(&arena, packet, &mut scratch, |octets| {
                let octets = &octets[VirtioNetHeader::LENGTH..];
                assert!(checksums_hold(octets));
                received[usize::from(octets[23] - (5000 & 0xff) as u8)].push(octets.to_vec());
            });
        }
        // With DF, merged packets are numbered anew: compare all else.
        for octets in received.iter_mut().chain(&mut sent).flatten() {
            octets[4..6].fill(0);
            octets[10..12].fill(0);
        }
        prop_assert_eq!(received, sent);
    }
}

#[test]
fn udp_superpackets_have_no_more_datagrams_than_the_kernel_takes() {
    let mut dataplane = Loop::new(Setup::default());
    let flow = Flow { udp: true, ..Flow::default() };
    let packets: Vec<_> = (0..150).map(|_| single(flow.packet(&payload(18)))).collect();
    let (datagrams, _) = dataplane.encap(&packets);
    let received = dataplane.decap(&datagrams);
    let lengths: Vec<usize> = received.iter().map(|(_, octets)| (octets.len() - 28) / 18).collect();
    assert_eq!(lengths, [64, 64, 22]);
}

#[test]
fn checksums_of_single_packets_are_completed() {
    let mut dataplane = Loop::new(Setup::plain_gre());
    for v6 in [false, true] {
        for udp in [false, true] {
            // A SYN, so that the MSS is lowered too.
            let flow = Flow {
                v6,
                udp,
                flags: 0x02,
                options: if udp { vec![] } else { vec![2, 4, 0x23, 0x28] },
                ..Flow::default()
            };
            let (octets, virtio) = flow.superpacket(&payload(101), 0);
            let (datagrams, _) = dataplane.encap(&[(octets, VirtioNetHeader { gso_type: virtio::GSO_NONE, ..virtio })]);
            let received = inner(&datagrams);
            assert!(checksums_hold(&received[0]));
            let mut expected = flow.clone();
            if !udp {
                let mss: u16 = if v6 { 1430 - 60 } else { 1430 - 40 };
                expected.options[2..4].copy_from_slice(&mss.to_be_bytes());
            }
            assert_eq!(received[0], expected.packet(&payload(101)));
        }
    }
    assert_eq!(dataplane.count(Counter::MssClamped), 2);
}

/// Extension headers or IPv4 options put between the IP header and the transport.
fn insert(octets: &mut Vec<u8>, headers: &[u8], next_header: u8) {
    if octets[0] >> 4 == 6 {
        octets.splice(40..40, headers.iter().copied());
        octets[40] = std::mem::replace(&mut octets[6], next_header);
        let length = (octets.len() - 40) as u16;
        octets[4..6].copy_from_slice(&length.to_be_bytes());
    } else {
        octets.splice(20..20, headers.iter().copied());
        octets[0] += (headers.len() / 4) as u8;
        let length = octets.len() as u16;
        octets[2..4].copy_from_slice(&length.to_be_bytes());
    }
}

/// Source and destination changed to what the IP header shows on the way.
fn readdress(octets: &mut [u8], source: Option<&[u8]>, destination: Option<&[u8]>) {
    let (at, length) = if octets[0] >> 4 == 6 { (8, 16) } else { (12, 4) };
    if let Some(source) = source {
        octets[at..at + length].copy_from_slice(source);
    }
    if let Some(destination) = destination {
        octets[at + length..at + 2 * length].copy_from_slice(destination);
    }
}

/// A name, headers to insert and their number, and the source and destination that the IP header has meanwhile.
type OnTheWay<'a> = (&'a str, Vec<u8>, u8, Option<&'a [u8]>, Option<&'a [u8]>);

/// The checksum is over the addresses of both ends (RFC 8200 section 8.1), wherever the IP header leads meanwhile.
#[test]
fn segments_on_a_source_route_have_the_checksum_of_their_last_destination() {
    let last = std::net::Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1).octets();
    let via = std::net::Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 9).octets();
    let care_of = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 99).octets();
    let segment_routing = [&[0, 4, 4, 1, 1, 0, 0, 0][..], &last, &via].concat();
    let home =
        [&[0, 2, 1, 2, 0, 0, 0xc9, 16][..], &std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets()].concat();
    let cases: [OnTheWay; 8] = [
        ("segment routing", segment_routing.clone(), 43, None, Some(&via)),
        ("segment routing that has arrived", [&[0, 4, 4, 0, 1, 0, 0, 0][..], &last, &via].concat(), 43, None, None),
        ("mobile IPv6", [&[0, 2, 2, 1, 0, 0, 0, 0][..], &last].concat(), 43, None, Some(&via)),
        ("type 0", [&[0, 4, 0, 2, 0, 0, 0, 0][..], &via, &last].concat(), 43, None, Some(&via)),
        ("a type without addresses", vec![0, 0, 253, 7, 1, 2, 3, 4], 43, None, Some(&via)),
        ("more segments left than there are", [&[0, 2, 4, 255, 0, 0, 0, 0][..], &last].concat(), 43, None, Some(&via)),
        ("a home address", home, 60, Some(&care_of), None),
        ("IPv4 loose source route", vec![131, 7, 4, 10, 1, 0, 1, 0], 0, None, Some(&[10, 1, 0, 9])),
    ];
    for (name, headers, next_header, source, destination) in cases {
        for (udp, count) in [(false, 3000), (true, 3000), (false, 0)] {
            let flow = Flow { v6: next_header != 0, udp, ..Flow::default() };
            let mut dataplane = Loop::new(Setup { mss_clamp: false, ..Setup::plain_gre() });
            let on_the_way = |mut octets: Vec<u8>| {
                insert(&mut octets, &headers, next_header);
                readdress(&mut octets, source, destination);
                if octets[0] >> 4 == 4 {
                    let header = usize::from(octets[0] & 0xf) * 4;
                    dsvpn_wire::ip::write_ipv4_checksum(&mut octets[..header]);
                }
                octets
            };
            let (octets, mut virtio) = flow.superpacket(&payload(count), 1000);
            virtio.csum_start += headers.len() as u16;
            let (datagrams, errors) = dataplane.encap(&[(on_the_way(octets), virtio)]);
            assert!(errors.is_empty(), "{name}");
            let expected: Vec<_> = flow.segments(&payload(count), 1000).into_iter().map(on_the_way).collect();
            assert_eq!(inner(&datagrams), expected, "{name}, UDP: {udp}");
            // Nor are they merged, by addresses that may not be theirs.
            let received: Vec<_> = dataplane.decap(&datagrams).into_iter().map(|(_, octets)| octets).collect();
            assert_eq!(received, expected, "{name}, UDP: {udp}");
        }
    }
}

/// Only the sender knows the last destination; where it does not say so, nothing is guessed.
#[test]
fn a_superpacket_on_a_source_route_needs_its_pseudo_header() {
    let flow = Flow { v6: true, ..Flow::default() };
    let (mut octets, virtio) = flow.superpacket(&payload(3000), 1000);
    insert(&mut octets, &[0, 0, 253, 1, 0, 0, 0, 0], 43);
    let right = VirtioNetHeader { csum_start: 48, ..virtio };
    let lies = [
        VirtioNetHeader { flags: 0, ..right },
        virtio,
        VirtioNetHeader { csum_start: 49, ..right },
        VirtioNetHeader { csum_start: u16::MAX, ..right },
        VirtioNetHeader { csum_offset: 6, ..right },
        VirtioNetHeader { csum_offset: u16::MAX, ..right },
    ];
    let mut dataplane = Loop::new(Setup::plain_gre());
    for (count, virtio) in lies.into_iter().enumerate() {
        assert_eq!(dataplane.encap(&[(octets.clone(), virtio)]), (vec![], vec![]), "{virtio:?}");
        assert_eq!(dataplane.count(Counter::DropMalformedVirtio), count as u64 + 1, "{virtio:?}");
    }
    // A routing header that claims to be longer than the packet.
    octets[41] = 255;
    octets.truncate(1500);
    octets[4..6].copy_from_slice(&1460u16.to_be_bytes());
    assert_eq!(dataplane.encap(&[(octets, right)]), (vec![], vec![]));
    assert_eq!(dataplane.count(Counter::DropMalformedInner), 1);
}

#[test]
fn wrong_checksums_are_not_hidden_by_merging() {
    for (setup, verify) in [(Setup::plain_gre(), false), (Setup::default(), true)] {
        let mut dataplane = Loop::new(setup);
        dataplane.decap.set_config(DecapConfig { verify_checksums: verify, ..DecapConfig::default() });
        let flow = Flow::default();
        let mut segments = flow.segments(&payload(3000), 1000);
        segments[1][100] ^= 1;
        let (datagrams, _) = dataplane.encap(&segments.iter().cloned().map(single).collect::<Vec<_>>());
        let received = dataplane.decap(&datagrams);
        assert_eq!(received.into_iter().map(|(_, octets)| octets).collect::<Vec<_>>(), segments);
    }
}

#[test]
fn messages_join_equal_datagrams_only() {
    let mut dataplane = Loop::new(Setup::default());
    let flow = Flow { udp: true, ..Flow::default() };
    let lengths = [100, 100, 50, 100, 100, 200, 200];
    let mut arena = Vec::new();
    let metas: Vec<PacketMeta> = lengths
        .iter()
        .map(|&length| {
            let octets = flow.packet(&payload(length));
            let meta = PacketMeta { offset: arena.len() as u32, length: octets.len() as u32, ..PacketMeta::default() };
            arena.extend_from_slice(&octets);
            meta
        })
        .collect();
    let mut send = vec![0; MIN_SEND_ARENA];
    let (mut batch, mut replies) = (SendBatch::new(), TunBatch::new());
    for (limits, expected) in [
        (GsoLimits::UDP, vec![3, 2, 2]),
        (GsoLimits { segments: 2, ..GsoLimits::UDP }, vec![2, 1, 2, 2]),
        (GsoLimits::OFF, vec![1; 7]),
    ] {
        dataplane.encap.set_limits(limits);
        let tables = dataplane.reader.enter().unwrap();
        dataplane.encap.run(&tables, 0, &arena, &metas, &mut send, &mut batch, &mut replies, 1);
        assert_eq!(batch.messages.iter().map(|message| message.segments).collect::<Vec<_>>(), expected);
        batch.messages.iter().for_each(check_message);
        batch.clear();
    }
}

/// Any difference that a superpacket could not carry keeps packets apart, as they came.
#[test]
fn packets_that_differ_are_not_merged() {
    let stamps = |value: u8| vec![1, 1, 8, 10, 0, 0, 0, value, 0, 0, 0, 9];
    let base = Flow { sequence: 1000, options: stamps(1), ..Flow::default() };
    let next = Flow { sequence: 1300, identification: 101, ..base.clone() };
    let cases: Vec<(&str, Flow, bool)> = vec![
        ("nothing", next.clone(), true),
        ("a gap", Flow { sequence: 1301, ..next.clone() }, false),
        ("an overlap", Flow { sequence: 1299, ..next.clone() }, false),
        ("a timestamp", Flow { options: stamps(2), ..next.clone() }, false),
        ("an option's length", Flow { options: vec![], ..next.clone() }, false),
        ("ECN", Flow { tos: 3, ..next.clone() }, false),
        ("DF", Flow { dont_fragment: false, ..next.clone() }, false),
        ("the number with DF", Flow { identification: 7, ..next.clone() }, true),
        ("the port", Flow { port: 1, ..next.clone() }, false),
        ("the source", Flow { source: 2, ..next.clone() }, false),
        ("ECE", Flow { flags: 0x50, ..next.clone() }, false),
        ("CWR", Flow { flags: 0x90, ..next.clone() }, false),
        ("URG", Flow { flags: 0x30, ..next.clone() }, false),
        ("RST", Flow { flags: 0x14, ..next.clone() }, false),
        ("SYN", Flow { flags: 0x12, ..next.clone() }, false),
        ("no ACK", Flow { flags: 0, ..next.clone() }, false),
        ("PSH", Flow { flags: 0x18, ..next.clone() }, true),
        ("FIN", Flow { flags: 0x11, ..next.clone() }, true),
        ("UDP", Flow { udp: true, options: vec![], ..next.clone() }, false),
        ("IPv6", Flow { v6: true, ..next.clone() }, false),
    ];
    let mut changes: Vec<(String, Vec<u8>, Vec<u8>, bool)> = cases
        .into_iter()
        .map(|(name, flow, merged)| (name.to_owned(), base.packet(&payload(300)), flow.packet(&payload(300)), merged))
        .collect();
    // Fields that `Flow` does not have: TTL, acknowledgement, window, urgent pointer.
    for (name, at) in [("TTL", 8), ("acknowledgement", 31), ("window", 35), ("urgent pointer", 39)] {
        let mut octets = next.packet(&payload(300));
        octets[at] ^= 1;
        fix_checksums(&mut octets);
        changes.push((name.to_owned(), base.packet(&payload(300)), octets, false));
    }
    let v6 = |flow: &Flow| Flow { v6: true, ..flow.clone() };
    changes.push(("nothing, IPv6".into(), v6(&base).packet(&payload(300)), v6(&next).packet(&payload(300)), true));
    for (name, at) in [("traffic class", 1), ("flow label", 3), ("hop limit", 7), ("destination", 39)] {
        let mut octets = v6(&next).packet(&payload(300));
        octets[at] ^= 0x10;
        fix_checksums(&mut octets);
        changes.push((name.to_owned(), v6(&base).packet(&payload(300)), octets, false));
    }
    let loose = |flow: &Flow| Flow { dont_fragment: false, ..flow.clone() };
    let renumbered = Flow { identification: 103, ..loose(&next) };
    changes.push((
        "nothing, no DF".into(),
        loose(&base).packet(&payload(300)),
        loose(&next).packet(&payload(300)),
        true,
    ));
    changes.push(("the number".into(), loose(&base).packet(&payload(300)), renumbered.packet(&payload(300)), false));
    changes.push(("a longer one".into(), base.packet(&payload(300)), next.packet(&payload(301)), false));
    changes.push(("a shorter one".into(), base.packet(&payload(300)), next.packet(&payload(299)), true));
    changes.push(("an empty one".into(), base.packet(&payload(300)), next.packet(&[]), false));
    let datagram = |length| Flow { udp: true, ..Flow::default() }.packet(&payload(length));
    let mut without = datagram(300);
    without[26..28].fill(0);
    changes.push(("UDP".into(), datagram(300), datagram(300), true));
    changes.push(("no UDP checksum".into(), datagram(300), without.clone(), false));
    changes.push(("no UDP checksum before".into(), without, datagram(300), false));
    for (name, first, second, merged) in changes {
        let mut dataplane = Loop::new(Setup { mss_clamp: false, ..Setup::default() });
        let (datagrams, _) = dataplane.encap(&[single(first.clone()), single(second.clone())]);
        let received: Vec<Vec<u8>> = dataplane.decap(&datagrams).into_iter().map(|(_, octets)| octets).collect();
        if merged {
            assert_eq!(received.len(), 1, "{name}");
        } else {
            assert_eq!(received, [first, second], "{name}");
        }
    }
}

/// What is merged ends where a packet was shorter, or where PSH or FIN said so; and at the limits of IP.
#[test]
fn a_superpacket_ends_where_it_must() {
    let segments = |lengths: &[usize], flags: &[u8]| {
        let mut flow = Flow::default();
        let octets = lengths.iter().zip(flags.iter().chain(std::iter::repeat(&0x10))).map(|(&length, &flags)| {
            flow.flags = flags;
            let octets = single(flow.packet(&payload(length)));
            flow.sequence = flow.sequence.wrapping_add(length as u32);
            octets
        });
        octets.collect::<Vec<_>>()
    };
    let cases = [
        (segments(&[100, 100, 50, 100, 100], &[]), vec![3, 2]),
        (segments(&[100; 5], &[0x10, 0x18]), vec![2, 3]),
        (segments(&[100; 3], &[0x18, 0x19]), vec![1, 1, 1]),
        (segments(&[1390; 60], &[]), vec![47, 13]),
        (segments(&[1; 300], &[]), vec![256, 44]),
    ];
    for (packets, expected) in cases {
        let mut dataplane = Loop::new(Setup::default());
        let (datagrams, _) = dataplane.encap(&packets);
        let count = |(virtio, octets): (VirtioNetHeader, Vec<u8>)| match usize::from(virtio.gso_size) {
            0 => 1,
            size => (octets.len() - 40).div_ceil(size),
        };
        assert_eq!(dataplane.decap(&datagrams).into_iter().map(count).collect::<Vec<_>>(), expected);
    }
}

/// A fragment may belong to any flow: what comes after it is not merged with what came before.
#[test]
fn fragments_keep_their_place() {
    let mut dataplane = Loop::new(Setup::default());
    let flow = Flow { udp: true, ..Flow::default() };
    let mut fragment = flow.packet(&payload(64));
    fragment[6] = 0x20;
    dsvpn_wire::ip::write_ipv4_checksum(&mut fragment[..20]);
    let whole = flow.packet(&payload(64));
    let sent = [whole.clone(), fragment, whole.clone(), whole];
    let (datagrams, _) = dataplane.encap(&sent.iter().cloned().map(single).collect::<Vec<_>>());
    let received = dataplane.decap(&datagrams);
    assert_eq!(received.len(), 3);
    assert_eq!(received[1].1, sent[1]);
    assert_eq!(received[2].0.gso_type, virtio::GSO_UDP_L4);
}
