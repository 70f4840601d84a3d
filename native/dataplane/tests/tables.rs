//! Commands that make no sense are refused in words, and readers see whole commits.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use dsvpn_dataplane::*;

fn text<T: std::fmt::Debug>(result: Result<T, TablesError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn errors_name_what_and_what_instead() {
    let setup = Setup::default();
    let mut dataplane = Loop::new(setup);
    let spi = dataplane.spi;
    let writer = &mut dataplane.writer;
    let base = adjacency(setup, THEIRS);
    let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let key = [0; 20];
    let suite = Suite::Aes128Gcm16;
    let prefix: Prefix = "10.9.0.0/16".parse().unwrap();
    let cases = [
        (text(writer.add_tunnel(0, TunnelConfig::default())), "tunnel: 0 exists already; remove it first"),
        (text(writer.add_tunnel(TUNNEL_LIMIT, TunnelConfig::default())), "tunnel: 4096 is not below 4096"),
        (text(writer.remove_tunnel(3)), "tunnel: there is no tunnel 3; add it first"),
        (
            text(writer.set_adjacency(1, AdjacencyConfig { tunnel: 3, ..base })),
            "tunnel: there is no tunnel 3; add it first",
        ),
        (
            text(writer.set_adjacency(1, AdjacencyConfig { encapsulation: Encapsulation::Gre, ..base })),
            "encapsulation: tunnel 0 is protected and takes udp, esp or esp-tunnel, not gre",
        ),
        (
            text(writer.set_adjacency(1, AdjacencyConfig { remote_port: 0, ..base })),
            "remote_port: udp needs a port from 1 to 65535, not 0",
        ),
        (
            text(writer.set_adjacency(1, AdjacencyConfig { encapsulation: Encapsulation::Esp, ..base })),
            "remote_port: esp and gre have no port; 0, not 4500",
        ),
        (
            text(writer.set_adjacency(1, AdjacencyConfig { remote: v6, ..base })),
            "local: 192.0.2.1 is not of the same address family as remote ::1",
        ),
        (text(writer.set_adjacency(1, AdjacencyConfig { mtu: 67, ..base })), "mtu: 67 is not between 68 and 65535"),
        (text(writer.set_adjacency(1 << 20, base)), "adjacency: 1048576 is not below 1048576"),
        (text(writer.remove_adjacency(4)), "adjacency: there is no adjacency 4; set it first"),
        (text(writer.set_next_hop(9, Some(4), false)), "adjacency: there is no adjacency 4; set it first"),
        (text(writer.remove_next_hop(9)), "next_hop: there is no next hop 9; set it first"),
        (text(writer.remove_next_hop(1)), "next_hop: 2 routes point at 1; remove or re-point them first"),
        (text(writer.set_route(0, prefix, 9)), "next_hop: there is no next hop 9; set it first"),
        (text(writer.remove_route(0, prefix)), "prefix: tunnel 0 has no route 10.9.0.0/16"),
        (
            text("10.9.0.1/16".parse::<Prefix>()),
            "prefix: \"10.9.0.1/16\" is not a prefix without host bits, such as 10.0.0.0/8 or 2001:db8::/32",
        ),
        (text(writer.set_multicast(0, &[1, 4])), "adjacency: there is no adjacency 4; set it first"),
        (
            text(writer.add_inbound_sa(77, suite, &key, &[1], false, 64)),
            "spi: 0x0000004d was not allocated by this data plane; call allocate_spi",
        ),
        (
            text(writer.add_inbound_sa(spi, suite, &key, &[1], false, 64)),
            &format!("spi: 0x{spi:08x} has an inbound SA already"),
        ),
        (text(writer.release_spi(spi)), &format!("spi: 0x{spi:08x} has an inbound SA already")),
        (text(writer.set_outbound_sa(255, suite, &key, &[1], false)), "spi: 255 is reserved; at least 256"),
        (text(writer.set_outbound_sa(256, suite, &key, &[], false)), "adjacencies: name at least one"),
        (
            text(writer.set_outbound_sa(256, suite, &key[..16], &[1], false)),
            "keymat: aes128gcm16 takes 20 octets (key and salt), not 16",
        ),
        (
            text("null".parse::<Suite>()),
            "suite: \"null\" is none of aes128gcm16, aes256gcm16, chacha20poly1305, aes256-sha256 and its like, aes256ctr-sha256 and its like",
        ),
        (text(writer.remove_inbound_sa(256)), "spi: there is no inbound SA 0x00000100"),
        (text(writer.outbound_sa_counters(4)), "adjacency: there is no adjacency 4; set it first"),
    ];
    for (given, expected) in cases {
        assert_eq!(given, expected);
    }
    let reserved = writer.allocate_spi(3).unwrap();
    assert_eq!(
        text(writer.add_inbound_sa(reserved, suite, &key, &[1], false, 8193)),
        "replay_window: 8193 is not between 0 and 8192"
    );
    assert_eq!(
        text(writer.add_inbound_sa(reserved, suite, &key, &[1, 4], false, 64)),
        "adjacency: there is no adjacency 4; set it first"
    );
    // A refusal leaves the SPI reserved.
    writer.add_inbound_sa(reserved, suite, &key, &[1], false, 8192).unwrap();
    writer.remove_inbound_sa(reserved).unwrap();
    writer.clear_outbound_sa(1).unwrap();
    assert_eq!(text(writer.outbound_sa_counters(1)), "adjacency: 1 has no outbound SA");
}

#[test]
fn removed_sas_take_nothing_and_their_slots_come_back_as_others() {
    let mut dataplane = Loop::new(Setup::default());
    let (datagrams, _) = dataplane.encap(&[single(Flow::default().packet(&[1]))]);
    let spi = dataplane.spi;
    dataplane.writer.remove_inbound_sa(spi).unwrap();
    dataplane.writer.commit();
    assert!(dataplane.decap(&datagrams).is_empty());
    assert_eq!(dataplane.count(Counter::DropUnknownSpi), 1);
    let next = dataplane.writer.allocate_spi(7).unwrap();
    assert_ne!(next, spi);
}

#[test]
fn a_removed_adjacency_drops_and_an_equal_gre_peer_takes_over() {
    let setup = Setup::plain_gre();
    let mut dataplane = Loop::new(setup);
    dataplane.writer.set_adjacency(2, adjacency(setup, THEIRS)).unwrap();
    dataplane.writer.commit();
    let (datagrams, _) = dataplane.encap(&[single(Flow::default().packet(&[1]))]);
    assert_eq!(dataplane.decap(&datagrams).len(), 1);
    assert_eq!(dataplane.writer.adjacency_counters(2).unwrap().packets_in, 1);
    dataplane.writer.remove_adjacency(2).unwrap();
    dataplane.writer.commit();
    assert_eq!(dataplane.decap(&datagrams).len(), 1);
    assert_eq!(dataplane.writer.adjacency_counters(1).unwrap().packets_in, 1);
    dataplane.writer.remove_adjacency(1).unwrap();
    dataplane.writer.commit();
    assert!(dataplane.decap(&datagrams).is_empty());
    assert_eq!(dataplane.count(Counter::DropUnknownPeer), 1);
    assert!(dataplane.encap(&[single(Flow::default().packet(&[1]))]).0.is_empty());
    assert_eq!(dataplane.count(Counter::DropNoAdjacency), 1);
}

#[test]
fn a_fib_that_grows_keeps_its_routes() {
    let mut dataplane = Loop::new(Setup::default());
    let writer = &mut dataplane.writer;
    for hop in 2..10 {
        writer.set_next_hop(hop, Some(1), false).unwrap();
    }
    let prefix = |index: u32| Prefix::new(Ipv4Addr::from_bits(0x0b00_0000 + index * 256).into(), 24).unwrap();
    for index in 0..6000 {
        writer.set_route(0, prefix(index), 2 + index % 8).unwrap();
    }
    writer.set_route(0, prefix(3), 9).unwrap();
    for index in 5000..6000 {
        writer.remove_route(0, prefix(index)).unwrap();
    }
    writer.commit();
    let tables = dataplane.reader.enter().unwrap();
    assert!(tables.tunnel(0).unwrap().v4.is_large() && !tables.tunnel(0).unwrap().v6.is_large());
    let lookup = |index: u32| tables.lookup(0, Ipv4Addr::from_bits(0x0b00_0001 + index * 256).into());
    for index in (0..5000).filter(|index| *index != 3) {
        assert_eq!(lookup(index), Some(2 + index % 8));
    }
    assert_eq!((lookup(3), lookup(5500)), (Some(9), None));
    assert_eq!(tables.lookup(0, Ipv4Addr::new(10, 1, 5, 5).into()), Some(1));
}

#[test]
fn a_commit_returns_only_when_no_vector_sees_the_old_tables() {
    let mut dataplane = Loop::new(Setup::default());
    let (reader, later) = (dataplane.reader.clone(), dataplane.reader.clone());
    let (entered, wait_entered) = std::sync::mpsc::channel();
    let (release, wait_release) = std::sync::mpsc::channel::<()>();
    let committed = Arc::new(AtomicBool::new(false));
    let worker = std::thread::spawn({
        let committed = Arc::clone(&committed);
        move || {
            let tables = reader.enter().unwrap();
            entered.send(()).unwrap();
            wait_release.recv().unwrap();
            // The new tables are out, but the commit waits for this guard, however late this runs.
            assert!(!committed.load(Ordering::SeqCst));
            assert!(tables.adjacency(1).is_some());
        }
    });
    wait_entered.recv().unwrap();
    let committer = std::thread::spawn(move || {
        dataplane.writer.remove_adjacency(1).unwrap();
        dataplane.writer.commit();
        committed.store(true, Ordering::SeqCst);
        dataplane
    });
    // Somebody who enters later sees the new tables while the old guard is held.
    let deadline = Instant::now() + Duration::from_secs(10);
    while later.enter().unwrap().adjacency(1).is_some() {
        assert!(Instant::now() < deadline, "the new tables are not published");
        std::thread::yield_now();
    }
    release.send(()).unwrap();
    worker.join().unwrap();
    let dataplane = committer.join().unwrap();
    assert!(dataplane.reader.enter().unwrap().adjacency(1).is_none());
}

/// A worker forwards while the tables change under it: every packet goes one way or the other, and none is lost.
#[test]
fn commits_lose_nothing_while_a_worker_forwards() {
    let mut dataplane = Loop::new(Setup::default());
    let other = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
    let keymat = [7; 20];
    let stop = Arc::new(AtomicBool::new(false));
    let reader = dataplane.reader.clone();
    let shared = Arc::clone(&dataplane.shared);
    let worker = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut encap: Encap = Encap::new(shared, EncapConfig::default());
            let packet = Flow::default().packet(&payload(100));
            let metas = [PacketMeta { offset: 0, length: packet.len() as u32, ..PacketMeta::default() }; 16];
            let (mut send, mut batch, mut replies) = (vec![0; MIN_SEND_ARENA], SendBatch::new(), TunBatch::new());
            let mut vectors = 0u64;
            while !stop.load(Ordering::Relaxed) || vectors < 100 {
                let tables = reader.enter().unwrap();
                encap.run(&tables, 0, &packet, &metas, &mut send, &mut batch, &mut replies, 1);
                drop(tables);
                assert_eq!(batch.messages.iter().map(|message| message.segments).sum::<u32>(), 16);
                batch.clear();
                vectors += 1;
            }
            vectors
        }
    });
    for round in 0..500u32 {
        let remote = if round % 2 == 0 { other } else { THEIRS };
        dataplane.writer.set_adjacency(1, adjacency(Setup::default(), remote)).unwrap();
        dataplane.writer.set_outbound_sa(1000 + round, Suite::Aes128Gcm16, &keymat, &[1], false).unwrap();
        dataplane
            .writer
            .set_route(0, Prefix::new(Ipv4Addr::new(10, 2, round as u8, 0).into(), 24).unwrap(), 1)
            .unwrap();
        dataplane.writer.commit();
    }
    stop.store(true, Ordering::Relaxed);
    let vectors = worker.join().unwrap();
    assert_eq!(dataplane.writer.adjacency_counters(1).unwrap().packets_out, vectors * 16);
    assert!(dataplane.shared.counters.iter().all(|(name, value)| !name.starts_with("drop_") || value == 0));
}
