//! The data plane against the slow plain model: random and hostile vectors, and the corpus that fuzzing has left.
//!
//! docs/testing.md tells how to run more cases, how to fuzz, and how to bring back what a fuzzer has found.

mod common;
mod fuzz_bodies;
mod model;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::*;
use dsvpn_dataplane::*;
use dsvpn_wire::virtio::VirtioNetHeader;
use model::trial::{self, Trial};
use proptest::prelude::*;

/// Octets from which the bodies make their packets.
fn octets() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..if cfg!(miri) { 30 } else { 300 })
}

/// 600 cases unless PROPTEST_CASES says otherwise; an interpreter has time for a few.
fn cases() -> ProptestConfig {
    let few = if cfg!(miri) { 3 } else { 600 };
    let given = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: given.unwrap_or(few), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn encapsulation_is_as_the_model(octets in octets()) {
        fuzz_bodies::encap(&octets);
    }

    #[test]
    fn decapsulation_is_as_the_model(octets in octets()) {
        fuzz_bodies::decap(&octets);
    }

    #[test]
    fn segmentation_is_as_the_model(octets in octets()) {
        fuzz_bodies::split(&octets);
    }

    #[test]
    fn coalescing_is_as_the_model(octets in octets()) {
        fuzz_bodies::coalesce(&octets);
    }

    #[test]
    fn headers_are_read_as_by_the_model(octets in octets(), version in prop::sample::select(vec![0x40u8, 0x60, 0])) {
        let mut octets = octets;
        if let (Some(first), true) = (octets.first_mut(), version != 0) {
            *first = version | *first & 0xf;
        }
        fuzz_bodies::headers(&octets);
    }
}

/// Every file under native/fuzz/corpus is a trial that once reached something new, or failed.
#[test]
fn the_corpus_passes() {
    for (name, body) in fuzz_bodies::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut replayed = 0;
        for file in files {
            let path = file.unwrap().path();
            let octets = std::fs::read(&path).unwrap();
            if catch_unwind(AssertUnwindSafe(|| body(&octets))).is_err() {
                panic!("{name} fails for {}", path.display());
            }
            replayed += 1;
        }
        assert!(replayed >= 10, "{} has {replayed} files", folder.display());
    }
}

#[test]
fn a_superpacket_of_single_octets() {
    // 65,495 segments, more than ever fit a send arena.
    let packet = Flow::default().superpacket(&payload(65_495), 1);
    let mut trial = Trial::new(Setup { encapsulation: Encapsulation::Esp, ..Setup::default() }, false);
    assert_eq!(trial.encap(std::slice::from_ref(&packet), MIN_SEND_ARENA).len(), 65_495);
    trial::split(&[packet]);
}

#[test]
fn the_largest_packets_there_are() {
    for v6 in [false, true] {
        for udp in [false, true] {
            let flow = Flow { v6, udp, ..Flow::default() };
            // The length field of IPv6 leaves the IPv6 header out.
            let largest = if v6 { 65_575 } else { 65_535 } - flow.headers();
            for size in [0, 1, 7, 32_768, 65_535] {
                let size = if size == 0 { largest as u16 } else { size.max(200) };
                let (octets, virtio) = flow.superpacket(&payload(largest), size);
                trial::split(&[(octets.clone(), virtio)]);
                let mut trial = Trial::new(Setup { mtu: 65_535, ..Setup::default() }, false);
                trial.encap(&[(octets.clone(), virtio), (octets, VirtioNetHeader::default())], MIN_SEND_ARENA);
            }
        }
    }
}

#[test]
fn an_arena_that_is_full_counts_no_packet_twice() {
    let packet = single(Flow { udp: true, ..Flow::default() }.packet(&payload(1300)));
    for many_peers in [false, true] {
        let mut trial = Trial::new(Setup { many_peers, ..Setup::default() }, true);
        assert_eq!(trial.encap(&vec![packet.clone(); 300], MIN_SEND_ARENA).len(), 300);
    }
}

#[test]
fn a_fragment_beyond_the_largest_packet_is_not_cut() {
    // Offset 65,528 and 600 octets: the offsets of its pieces would begin anew at 0.
    let mut octets = Flow { udp: true, dont_fragment: false, ..Flow::default() }.packet(&payload(600));
    octets[6..8].copy_from_slice(&0x1fffu16.to_be_bytes());
    let mut trial = Trial::new(Setup { mtu: 200, ..Setup::default() }, false);
    assert!(trial.encap(&[single(octets)], MIN_SEND_ARENA).is_empty());
    assert_eq!(trial.dataplane.count(Counter::DropTooBig), 1);
}

#[test]
fn a_tunnel_that_came_back_begins_with_the_first_segment() {
    let mut dataplane = Loop::new(Setup::default());
    let (octets, virtio) = Flow::default().superpacket(&payload(65_000), 50);
    let meta = PacketMeta { length: octets.len() as u32, virtio, ..PacketMeta::default() };
    let (mut batch, mut replies, mut send) = (SendBatch::new(), TunBatch::new(), vec![0; MIN_SEND_ARENA]);
    let mut run = |dataplane: &mut Loop, octets: &[u8], meta| {
        batch.clear();
        let tables = dataplane.reader.enter().unwrap();
        let progress = dataplane.encap.run(&tables, 0, octets, &[meta], &mut send, &mut batch, &mut replies, SECOND);
        (progress.consumed, batch.messages.iter().map(|message| message.segments).sum::<u32>())
    };
    let (consumed, sent) = run(&mut dataplane, &octets, meta);
    assert!(consumed == 0 && sent > 100);
    dataplane.writer.remove_tunnel(0).unwrap();
    dataplane.writer.commit();
    assert_eq!(run(&mut dataplane, &octets, meta), (1, 0));
    let config = TunnelConfig { key: Some(42), protected: true, redirect: false, mss_clamp: true, copy_dscp: true };
    dataplane.writer.add_tunnel(0, config).unwrap();
    dataplane.writer.set_adjacency(1, adjacency(dataplane.setup, THEIRS)).unwrap();
    let keymat: Vec<u8> = (1..=20).collect();
    dataplane.writer.set_outbound_sa(0x1234, Suite::Aes128Gcm16, &keymat, &[1], false).unwrap();
    dataplane.writer.set_next_hop(1, Some(1), false).unwrap();
    dataplane.writer.set_route(0, "10.1.0.0/16".parse().unwrap(), 1).unwrap();
    dataplane.writer.commit();
    let (octets, virtio) = Flow::default().superpacket(&payload(500), 50);
    let meta = PacketMeta { length: octets.len() as u32, virtio, ..PacketMeta::default() };
    assert_eq!(run(&mut dataplane, &octets, meta), (1, 10));
}
