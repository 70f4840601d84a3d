//! Several workers and one peer, with an outbound SA for each of them (RFC 9611).

mod common;
#[path = "common/sender.rs"]
mod sender;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::*;
use dsvpn_dataplane::*;
use sender::{Sender, WORKERS, together};

const PEER: u32 = 0;
const VECTOR: u32 = 32;

fn keys(number: u32) -> Vec<u8> {
    (0..20u32).map(|at| (number.rotate_left(at) ^ at) as u8).chain(number.to_be_bytes()).skip(4).collect()
}

/// An SA in both directions: the peer is this same data plane.
fn install(writer: &mut TablesWriter, resource: u32, number: u32) -> u32 {
    // Without a window, and so without ESN: what the workers have sent by one SA is opened worker by worker.
    let spi = writer.allocate_spi(number).unwrap();
    writer.add_inbound_sa(spi, Suite::Aes128Gcm16, &keys(number), &[PEER], false, 0).unwrap();
    writer.set_resource_sa(resource, spi, Suite::Aes128Gcm16, &keys(number), &[PEER], false).unwrap();
    spi
}

/// 20.0.0.0/24 is behind the only peer. Gives the SPIs by resource, of as many as there are.
fn one_peer(resources: u32) -> (TablesWriter, TablesReader, Arc<Shared>, Vec<u32>) {
    let (mut writer, reader) = tables();
    writer.add_tunnel(0, TunnelConfig::default()).unwrap();
    add_peer(&mut writer, PEER);
    writer.set_route(0, "20.0.0.0/24".parse().unwrap(), PEER).unwrap();
    let spis = (0..resources).map(|resource| install(&mut writer, resource, resource + 1)).collect();
    writer.commit();
    (writer, reader, Arc::default(), spis)
}

/// A vector of one worker's flow, whose packets are numbered from `first`.
fn vector(worker: u32, first: u32) -> (Vec<u8>, Vec<PacketMeta>) {
    let (mut arena, mut metas) = (Vec::new(), Vec::new());
    for number in first..first + VECTOR {
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend_from_slice(&worker.to_be_bytes());
        let flow = Flow { udp: true, source: worker as u8, identification: number as u16, ..Flow::default() };
        let mut octets = flow.packet(&payload);
        octets[16..20].copy_from_slice(&[20, 0, 0, 1]);
        fix_checksums(&mut octets);
        let (offset, length) = (arena.len() as u32, octets.len() as u32);
        metas.push(PacketMeta { offset, length, virtio: Default::default(), reserved: 0 });
        arena.extend_from_slice(&octets);
    }
    (arena, metas)
}

fn word(octets: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(octets[at..at + 4].try_into().unwrap())
}

/// What a worker has sent, in its order.
#[derive(Default)]
struct Sent {
    datagrams: Vec<(IpAddr, Vec<u8>)>,
    waits: usize,
}

/// Open what was sent, as one worker of the peer: the inner packets, in their order.
fn open(reader: &TablesReader, shared: &Arc<Shared>, datagrams: &[(IpAddr, Vec<u8>)]) -> Vec<Vec<u8>> {
    let config = DecapConfig { coalesce_tcp: false, coalesce_udp: false, verify_checksums: true };
    let mut decap: Decap = Decap::new(Arc::clone(shared), config);
    let mut found = Vec::new();
    for vector in datagrams.chunks(64) {
        let (mut arena, rows) = received(vector);
        let mut out = TunBatch::new();
        decap.run(&reader.enter().unwrap(), &mut arena, &rows, &mut out, 2 * SECOND);
        found.extend(gather(&out, &arena).into_iter().map(|(_, octets)| octets));
    }
    found
}

/// The packets of each worker's flow came in their order, all of them.
fn check_flow(packets: &[Vec<u8>], worker: u32, count: u32) {
    let numbers: Vec<u32> = packets.iter().map(|octets| word(octets, 28)).collect();
    assert!(packets.iter().all(|octets| word(octets, 32) == worker));
    let wrong = numbers.iter().enumerate().find(|(at, number)| *at as u32 != **number);
    assert_eq!((wrong, numbers.len() as u32), (None, count), "worker {worker}");
}

fn drops(shared: &Shared) -> Vec<(&'static str, u64)> {
    shared.counters.iter().filter(|(name, count)| name.starts_with("drop_") && *count > 0).collect()
}

#[test]
fn each_worker_seals_by_its_own_sa_and_waits_for_nobody() {
    let (writer, reader, shared, spis) = one_peer(WORKERS);
    let vectors = if cfg!(miri) { 2 } else { 200 };
    let all: Mutex<BTreeMap<u32, Sent>> = Mutex::default();
    together(&reader, |worker, reader| {
        let mut sender = Sender::new(worker, reader, &shared);
        let mut sent = Sent::default();
        for round in 0..vectors {
            let (arena, packets) = vector(worker, round * VECTOR);
            sender.forward(&arena, &packets, |message, datagram| {
                sent.datagrams.push((message.endpoint.remote, datagram.to_vec()));
                if datagram[7] % 16 == 0 {
                    // With its turn in hand: a key that others wanted would be waited for.
                    thread::yield_now();
                }
            });
        }
        sent.waits = sender.waits;
        all.lock().unwrap().insert(worker, sent);
    });
    let all = all.into_inner().unwrap();
    let count = vectors * VECTOR;
    for (worker, sent) in &all {
        assert_eq!(sent.waits, 0, "worker {worker} waited");
        let numbers: Vec<(u32, u32)> =
            sent.datagrams.iter().map(|(_, octets)| (word(octets, 0), word(octets, 4))).collect();
        let expected: Vec<(u32, u32)> = (1..=count).map(|number| (spis[*worker as usize], number)).collect();
        assert_eq!(numbers, expected, "worker {worker}");
        check_flow(&open(&reader, &shared, &sent.datagrams), *worker, count);
        let counted = writer.resource_sa_counters(PEER, *worker).unwrap();
        assert_eq!(
            (counted.spi, counted.packets, counted.sequence),
            (spis[*worker as usize], u64::from(count), u64::from(count))
        );
    }
    let adjacency = writer.adjacency_counters(PEER).unwrap();
    let octets: u64 = (0..WORKERS).map(|resource| writer.resource_sa_counters(PEER, resource).unwrap().octets).sum();
    assert_eq!(adjacency.packets_out, u64::from(WORKERS * count));
    assert_eq!((adjacency.octets_out, adjacency.packets_in), (octets, u64::from(WORKERS * count)));
    assert_eq!(drops(&shared), []);
}

#[test]
fn a_worker_without_an_sa_of_its_own_uses_the_fallback() {
    let (mut writer, reader, shared, spis) = one_peer(2);
    let spi_of = |writer: &mut TablesWriter, worker: u32| {
        writer.commit();
        let mut found = BTreeSet::new();
        let (arena, packets) = vector(worker, 0);
        Sender::new(worker, reader.clone(), &shared).forward(&arena, &packets, |_, datagram| {
            found.insert(word(datagram, 0));
        });
        assert!(found.len() < 2, "{found:?}");
        found.pop_first()
    };
    assert_eq!(
        [0, 1, 2, 3].map(|worker| spi_of(&mut writer, worker)),
        [0, 1, 0, 0].map(|resource| Some(spis[resource]))
    );
    // Replaced, cleared, and made again at a resource beyond all others.
    let replaced = install(&mut writer, 1, 50);
    let last = install(&mut writer, MAX_RESOURCE, 51);
    assert_eq!(spi_of(&mut writer, 1), Some(replaced));
    assert_eq!(spi_of(&mut writer, MAX_RESOURCE), Some(last));
    writer.clear_resource_sa(PEER, 1).unwrap();
    assert_eq!(spi_of(&mut writer, 1), Some(spis[0]));
    // Nothing to clear is nothing to complain about.
    writer.clear_resource_sa(PEER, 1).unwrap();
    writer.clear_resource_sa(PEER, 7).unwrap();
    // A peer that moves keeps them, and its sources have nothing to do with them.
    writer.set_adjacency(PEER, AdjacencyConfig { remote_port: 4501, ..peer_adjacency(PEER) }).unwrap();
    writer.set_sources(PEER, &Sources::Own(Vec::new())).unwrap();
    assert_eq!(spi_of(&mut writer, MAX_RESOURCE), Some(last));
    // Without the fallback, only who has one of his own goes on.
    writer.clear_outbound_sa(PEER).unwrap();
    assert_eq!(spi_of(&mut writer, MAX_RESOURCE), Some(last));
    let before = shared.counters.get(Counter::DropNoSa);
    assert_eq!([0, 2].map(|worker| spi_of(&mut writer, worker)), [None, None]);
    assert_eq!(shared.counters.get(Counter::DropNoSa) - before, 2 * u64::from(VECTOR));
    assert_eq!(
        encap_nhrp(&reader.enter().unwrap(), PEER, &[0; 40], &mut Vec::new()).unwrap_err(),
        Counter::DropNoSa,
        "NHRP goes by the fallback"
    );
    // An adjacency that is made anew has none.
    writer.remove_adjacency(PEER).unwrap();
    writer.set_adjacency(PEER, peer_adjacency(PEER)).unwrap();
    assert_eq!(spi_of(&mut writer, MAX_RESOURCE), None);
    assert_eq!(writer.resource_sa_counters(PEER, MAX_RESOURCE), Err(TablesError::NoOutboundSa(PEER)));
}

#[test]
fn what_is_not_there_is_refused() {
    let (mut writer, ..) = one_peer(1);
    let key = keys(9);
    let mut set = |resource, id| writer.set_resource_sa(resource, 500, Suite::Aes128Gcm16, &key, &[id], true);
    assert_eq!(set(16, PEER).unwrap_err().to_string(), "resource: 16 is not between 0 and 15");
    assert_eq!(set(1, 9), Err(TablesError::UnknownAdjacency(9)));
    assert_eq!(writer.clear_resource_sa(PEER, u32::MAX), Err(TablesError::Resource(u32::MAX)));
    assert_eq!(writer.clear_resource_sa(9, 1), Err(TablesError::UnknownAdjacency(9)));
    assert_eq!(writer.resource_sa_counters(PEER, 16), Err(TablesError::Resource(16)));
    assert_eq!(writer.resource_sa_counters(PEER, 1), Err(TablesError::NoOutboundSa(PEER)));
    assert_eq!(writer.resource_sa_counters(9, 1), Err(TablesError::UnknownAdjacency(9)));
}

/// One key at two resources gives out its numbers once, in the order in which they are sent.
#[test]
fn two_workers_with_one_key_take_turns() {
    let (mut writer, reader, shared, spis) = one_peer(1);
    for resource in 1..WORKERS {
        writer.set_resource_sa(resource, spis[0], Suite::Aes128Gcm16, &keys(1), &[PEER], true).unwrap();
    }
    writer.commit();
    let wire: Mutex<Vec<u32>> = Mutex::default();
    let vectors = if cfg!(miri) { 2 } else { 100 };
    together(&reader, |worker, reader| {
        let mut sender = Sender::new(worker, reader, &shared);
        for round in 0..vectors {
            let (arena, packets) = vector(worker, round * VECTOR);
            sender.forward(&arena, &packets, |_, datagram| wire.lock().unwrap().push(word(datagram, 4)));
        }
    });
    assert_eq!(wire.into_inner().unwrap(), (1..=WORKERS * vectors * VECTOR).collect::<Vec<_>>());
}

/// SAs come, are replaced and go while all workers send: every number once, every flow in its order, nothing lost.
#[test]
fn sas_come_and_go_under_load() {
    let (mut writer, reader, shared, _) = one_peer(1);
    let changes = if cfg!(miri) { 6 } else { 400 };
    let all: Mutex<BTreeMap<u32, Sent>> = Mutex::default();
    let (progress, made) = ([const { AtomicU32::new(0) }; WORKERS as usize], AtomicU32::new(0));
    let mut installed: HashSet<u32> = HashSet::new();
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let mut sender = Sender::new(worker, reader.clone(), &shared);
            let (all, progress, made) = (&all, &progress[worker as usize], &made);
            scope.spawn(move || {
                let (mut sent, mut first) = (Sent::default(), 0);
                loop {
                    let (arena, packets) = vector(worker, first);
                    sender.forward(&arena, &packets, |message, datagram| {
                        sent.datagrams.push((message.endpoint.remote, datagram.to_vec()));
                    });
                    first += VECTOR;
                    progress.fetch_add(1, Ordering::Release);
                    // Some vectors between two changes, and not thousands of them.
                    while made.load(Ordering::Acquire) * 4 < first / VECTOR && made.load(Ordering::Acquire) < changes {
                        thread::yield_now();
                    }
                    if made.load(Ordering::Acquire) == changes {
                        break;
                    }
                }
                all.lock().unwrap().insert(worker, sent);
            });
        }
        for change in 0..changes {
            let resource = change % WORKERS;
            match change / WORKERS % 3 {
                0 | 1 => {
                    installed.insert(install(&mut writer, resource, 100 + change));
                }
                // The fallback is replaced, never cleared.
                _ if resource == 0 => {
                    installed.insert(install(&mut writer, 0, 100 + change));
                }
                _ => writer.clear_resource_sa(PEER, resource).unwrap(),
            }
            writer.commit_waiting(thread::yield_now);
            // Whoever is concerned sends at least one vector by what was changed.
            let progress = &progress[resource as usize];
            let before = progress.load(Ordering::Acquire);
            made.fetch_add(1, Ordering::Release);
            while change + 1 < changes && progress.load(Ordering::Acquire) < before + 2 {
                thread::yield_now();
            }
        }
    });
    let all = all.into_inner().unwrap();
    let mut seen: HashMap<(u32, u32), u32> = HashMap::new();
    let mut used: HashSet<u32> = HashSet::new();
    let mut total = 0;
    for (worker, sent) in &all {
        for (_, octets) in &sent.datagrams {
            let number = (word(octets, 0), word(octets, 4));
            used.insert(number.0);
            assert_eq!(seen.insert(number, *worker), None, "{number:x?} sealed twice");
        }
        total += sent.datagrams.len();
    }
    assert!(installed.difference(&used).count() <= 1, "all but the last one were used");
    // Flow by flow, as each worker has sent it: the inbound SAs are all still there.
    for (worker, sent) in &all {
        check_flow(&open(&reader, &shared, &sent.datagrams), *worker, sent.datagrams.len() as u32);
    }
    assert_eq!(drops(&shared), []);
    let counted = writer.adjacency_counters(PEER).unwrap();
    assert_eq!(
        (counted.packets_out, counted.packets_in),
        (total as u64, total as u64),
        "those that went are counted too"
    );
}

/// Where there are more adjacencies than the caches hold, packets are looked at ahead of their turn.
#[test]
fn many_peers_have_sas_of_their_own_too() {
    let (mut writer, reader) = tables();
    let shared: Arc<Shared> = Arc::default();
    writer.add_tunnel(0, TunnelConfig::default()).unwrap();
    let peers = 400;
    for id in 0..peers {
        add_peer(&mut writer, id);
        let remote = IpAddr::V4(Ipv4Addr::from(0x0a09_0000 + id));
        writer.set_adjacency(id, AdjacencyConfig { remote, ..peer_adjacency(id) }).unwrap();
        writer.set_route(0, format!("20.0.{}.{}/32", id >> 8, id & 255).parse().unwrap(), id).unwrap();
        writer.set_outbound_sa(1000 + id, Suite::Aes128Gcm16, &keys(1000 + id), &[id], true).unwrap();
        if id % 2 == 1 {
            writer.set_resource_sa(1, 5000 + id, Suite::Aes128Gcm16, &keys(5000 + id), &[id], true).unwrap();
        }
    }
    writer.commit();
    let (mut arena, mut metas) = (Vec::new(), Vec::new());
    for id in 0..peers {
        let mut octets = Flow { udp: true, ..Flow::default() }.packet(&payload(100));
        octets[16..20].copy_from_slice(&[20, 0, (id >> 8) as u8, id as u8]);
        fix_checksums(&mut octets);
        let (offset, length) = (arena.len() as u32, octets.len() as u32);
        metas.push(PacketMeta { offset, length, virtio: Default::default(), reserved: 0 });
        arena.extend_from_slice(&octets);
    }
    for (worker, own) in [(0, 1000), (1, 5000)] {
        let mut spis = Vec::new();
        Sender::new(worker, reader.clone(), &shared)
            .forward(&arena, &metas, |_, datagram| spis.push(word(datagram, 0)));
        let expected: Vec<u32> = (0..peers).map(|id| if id % 2 == 1 { own + id } else { 1000 + id }).collect();
        assert_eq!(spis, expected, "worker {worker}");
    }
}
