//! Several workers on one set of tables: every number once and in its order, every packet once, no old tables after a commit.

mod common;
#[path = "common/sender.rs"]
mod sender;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::*;
use dsvpn_dataplane::*;
use sender::{Sender, WORKERS, together};

const PEERS: u32 = 3;

/// Peers that are all itself; 20.0.ID.0/24 is behind peer ID.
fn peers() -> (TablesWriter, TablesReader, Arc<Shared>) {
    let (mut writer, reader) = tables();
    writer.add_tunnel(0, TunnelConfig::default()).unwrap();
    for id in 0..PEERS {
        add_peer(&mut writer, id);
        writer.set_route(0, format!("20.0.{id}.0/24").parse().unwrap(), id).unwrap();
        let spi = writer.allocate_spi(id).unwrap();
        let keymat: Vec<u8> = (0..20).map(|at| id as u8 ^ at).collect();
        writer.add_inbound_sa(spi, Suite::Aes128Gcm16, &keymat, &[id], true, 8192).unwrap();
        writer.set_outbound_sa(spi, Suite::Aes128Gcm16, &keymat, &[id], true).unwrap();
    }
    writer.commit();
    (writer, reader, Arc::default())
}

/// A vector of so many packets to each peer in turn, beginning with `first`.
fn vector(first: u32, rounds: u32) -> (Vec<u8>, Vec<PacketMeta>) {
    let (mut arena, mut metas) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for id in 0..PEERS {
            let flow = Flow { udp: true, sequence: round, ..Flow::default() };
            let mut octets = flow.packet(&payload(40));
            octets[16..20].copy_from_slice(&[20, 0, ((first + id) % PEERS) as u8, 1]);
            fix_checksums(&mut octets);
            let (offset, length) = (arena.len() as u32, octets.len() as u32);
            metas.push(PacketMeta { offset, length, virtio: Default::default(), reserved: 0 });
            arena.extend_from_slice(&octets);
        }
    }
    (arena, metas)
}

/// Each begins with another peer, so that each wants what another has.
#[test]
fn what_leaves_under_one_key_leaves_in_the_order_of_its_numbers() {
    let (_writer, reader, shared) = peers();
    let (rounds, vectors) = if cfg!(miri) { (2, 3) } else { (20, 300) };
    let wire: Mutex<Vec<(u32, u32)>> = Mutex::default();
    let waits = AtomicUsize::new(0);
    together(&reader, |worker, reader| {
        let mut sender = Sender::new(worker, reader, &shared);
        let (arena, packets) = vector(worker, rounds);
        for _ in 0..vectors {
            sender.forward(&arena, &packets, |_, datagram| {
                let word = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().unwrap());
                wire.lock().unwrap().push((word(0), word(4)));
                if word(4) % 64 == 0 {
                    // With turns in hand: others want them meanwhile, however few processors there are.
                    thread::yield_now();
                }
            });
        }
        waits.fetch_add(sender.waits, Ordering::Relaxed);
    });
    let wire = wire.into_inner().unwrap();
    assert_eq!(wire.len() as u32, WORKERS * vectors * rounds * PEERS);
    let mut last: HashMap<u32, u32> = HashMap::new();
    for (spi, sequence) in wire {
        let before = last.insert(spi, sequence).unwrap_or(0);
        assert_eq!(sequence, before + 1, "SPI {spi:#x}: {sequence} left behind {before}");
    }
    assert_eq!(last.len() as u32, PEERS);
    let counted: HashMap<_, _> = shared.counters.iter().collect();
    assert_eq!(counted["tun_rx_packets"], u64::from(WORKERS * vectors * rounds * PEERS), "a packet that waits is one");
    assert!(cfg!(miri) || waits.into_inner() > 0, "no worker ever waited");
}

/// Without turns the numbers are unique all the same.
#[test]
fn no_number_is_given_out_twice() {
    let (_writer, reader, shared) = peers();
    let seen: Mutex<Vec<(u32, u32)>> = Mutex::default();
    together(&reader, |worker, reader| {
        let mut sender = Sender::new(worker, reader, &shared);
        sender.encap = Encap::new(Arc::clone(&shared), EncapConfig::default());
        let (arena, packets) = vector(worker, 10);
        for _ in 0..if cfg!(miri) { 1 } else { 100 } {
            sender.forward(&arena, &packets, |_, datagram| {
                let word = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().unwrap());
                seen.lock().unwrap().push((word(0), word(4)));
            });
        }
    });
    let mut seen = seen.into_inner().unwrap();
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

/// As after a NAT rebinding, when another socket gets a peer's datagrams: all workers get all of them.
#[test]
fn a_replayed_packet_passes_no_worker() {
    let (writer, reader, shared) = peers();
    let rounds = if cfg!(miri) { 10 } else { 2000 };
    let mut datagrams = Vec::new();
    let (arena, packets) = vector(0, rounds);
    Sender::new(0, reader.clone(), &shared)
        .forward(&arena, &packets, |message, octets| datagrams.push((message.endpoint.remote, octets.to_vec())));
    let delivered = AtomicUsize::new(0);
    together(&reader, |_, reader| {
        let config = DecapConfig { coalesce_tcp: false, coalesce_udp: false, verify_checksums: false };
        let mut decap: Decap = Decap::new(Arc::clone(&shared), config);
        for vector in datagrams.chunks(16) {
            let (mut arena, rows) = received(vector);
            let mut out = TunBatch::new();
            decap.run(&reader.enter().unwrap(), &mut arena, &rows, &mut out, 2 * SECOND);
            delivered.fetch_add(out.packets.len(), Ordering::Relaxed);
        }
    });
    let sent = u64::from(rounds * PEERS);
    assert_eq!(delivered.into_inner() as u64, sent, "every packet passes once");
    let counted: HashMap<_, _> = shared.counters.iter().collect();
    assert_eq!(counted["drop_replayed"], sent * u64::from(WORKERS - 1));
    assert_eq!(counted["drop_unauthentic"], 0);
    for id in 0..PEERS {
        assert_eq!(writer.adjacency_counters(id).unwrap().packets_in, u64::from(rounds), "counted once");
    }
}

/// When a commit has returned, no worker sends by the old tables.
#[test]
fn a_commit_waits_for_all_workers() {
    let (mut writer, reader, shared) = peers();
    let changes = if cfg!(miri) { 10 } else { 2000 };
    let (current, begun, done) = (AtomicU32::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let mut sender = Sender::new(worker, reader.clone(), &shared);
            let (current, begun, done) = (&current, &begun, &done);
            scope.spawn(move || {
                let (arena, packets) = vector(0, 4);
                sender.forward(&arena, &packets, |_, _| {});
                begun.fetch_add(1, Ordering::Release);
                while done.load(Ordering::Acquire) == 0 {
                    let least = current.load(Ordering::Acquire);
                    sender.forward(&arena, &packets, |message, _| {
                        let port = u32::from(message.endpoint.remote_port);
                        let newest = if port == 4500 { 0 } else { port - 1 };
                        assert!(newest >= least, "change {newest} after change {least} was committed");
                    });
                }
            });
        }
        while begun.load(Ordering::Acquire) < WORKERS as usize {
            thread::yield_now();
        }
        for change in 0..changes {
            for id in 0..PEERS {
                let config = AdjacencyConfig { remote_port: 2 + change as u16, ..peer_adjacency(id) };
                writer.set_adjacency(id, config).unwrap();
            }
            writer.commit_waiting(thread::yield_now);
            current.store(1 + change, Ordering::Release);
        }
        done.store(1, Ordering::Release);
    });
    let counted: HashMap<_, _> = shared.counters.iter().collect();
    assert!(counted["underlay_tx_packets"] > 0);
}
