//! Whole encapsulation and decapsulation with a million routes and 100,000 peers against ten of each, memory to memory
//! on one core: nanoseconds per packet (medians of vectors that take turns) and their ratio, for packets to peers at
//! random and for trains of packets to one peer after another.
//!
//! `cargo run --release -p dsvpn-io --example tables [-- PEERS ROUTES [VECTORS]]`

mod common;

use std::net::Ipv4Addr;
use std::time::Instant;

use common::{Bench, adjacency, imix};
use dsvpn_dataplane::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FIRST_ROUTE: u32 = 20 << 24;
const VECTOR: usize = 256;

/// A small generator (xorshift): which peer is next shall not cost what is measured.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }
}

struct Packets {
    arena: Vec<u8>,
    metas: Vec<PacketMeta>,
}

impl Packets {
    fn new(length: impl Fn(usize) -> usize) -> Self {
        let (mut arena, mut metas) = (Vec::new(), Vec::new());
        for index in 0..VECTOR {
            let mut octets = vec![0u8; length(index)];
            octets[0] = 0x45;
            let total = octets.len() as u16;
            octets[2..4].copy_from_slice(&total.to_be_bytes());
            octets[8] = 64;
            octets[9] = 17;
            octets[12..16].copy_from_slice(&[10, 0, 0, 1]);
            metas.push(PacketMeta { offset: arena.len() as u32, length: u32::from(total), ..PacketMeta::default() });
            arena.extend_from_slice(&octets);
        }
        Self { arena, metas }
    }

    /// Address trains of packets to routes at random.
    fn aim(&mut self, train: usize, routes: usize, random: &mut Random) {
        let mut address = 0;
        for (index, meta) in self.metas.iter().enumerate() {
            if index % train == 0 {
                address = FIRST_ROUTE + random.below(routes) as u32 * 256 + 10;
            }
            let at = meta.offset as usize + 16;
            self.arena[at..at + 4].copy_from_slice(&address.to_be_bytes());
        }
    }
}

/// A sender to many peers, and one receiver that is all of them.
struct Side {
    routes: usize,
    sender: (TablesWriter, TablesReader),
    receiver: (TablesWriter, TablesReader),
    bench: Bench,
    random: Random,
    times: [Vec<f64>; 2],
}

impl Side {
    fn new(peers: usize, routes: usize, suite: Suite) -> Self {
        let (mut sender, mut receiver) = (tables(), tables());
        for (writer, _) in [&mut sender, &mut receiver] {
            writer.add_tunnel(0, TunnelConfig::default()).unwrap();
        }
        for peer in 0..peers as u32 {
            let mut keymat: Vec<u8> = (0..suite.keymat_length() as u8).collect();
            keymat[..4].copy_from_slice(&peer.to_be_bytes());
            for (writer, _) in [&mut sender, &mut receiver] {
                writer.set_adjacency(peer, adjacency(1434)).unwrap();
            }
            let spi = receiver.0.allocate_spi(peer + 7).unwrap();
            receiver.0.add_inbound_sa(spi, suite, &keymat, &[peer], false, 1024).unwrap();
            sender.0.set_outbound_sa(spi, suite, &keymat, &[peer], false).unwrap();
            sender.0.set_next_hop(peer, Some(peer), false).unwrap();
        }
        for route in 0..routes as u32 {
            let prefix = format!("{}/24", Ipv4Addr::from(FIRST_ROUTE + route * 256));
            sender.0.set_route(0, prefix.parse().unwrap(), route % peers as u32).unwrap();
        }
        sender.0.commit();
        receiver.0.commit();
        Self {
            routes,
            sender,
            receiver,
            bench: Bench::new(1 << 20),
            random: Random(0x9e37_79b9_7f4a_7c15),
            times: Default::default(),
        }
    }

    fn vector(&mut self, packets: &mut Packets, train: usize) {
        packets.aim(train, self.routes, &mut self.random);
        let times =
            [self.bench.encap(&self.sender.1, &packets.arena, &packets.metas), self.bench.decap(&self.receiver.1)];
        for (all, time) in self.times.iter_mut().zip(times) {
            all.push(time.as_nanos() as f64 / VECTOR as f64);
        }
        assert!(self.bench.tun.packets.iter().map(|packet| packet.segments as usize).sum::<usize>() >= VECTOR);
    }
}

/// Microseconds per new outbound SA, ten to a commit, over a thousand peers.
fn updates() -> f64 {
    let mut side = Side::new(1000, 10, Suite::Aes128Gcm16);
    let writer = &mut side.sender.0;
    let mut times = Vec::new();
    for batch in 0..4000u32 {
        let start = Instant::now();
        for number in batch * 10..batch * 10 + 10 {
            let mut keymat = [0xff; 20];
            keymat[..4].copy_from_slice(&number.to_be_bytes());
            writer.set_outbound_sa(0x1000 + number, Suite::Aes128Gcm16, &keymat, &[number % 1000], false).unwrap();
        }
        writer.commit();
        times.push(start.elapsed().as_nanos() as f64 / 10e3);
    }
    median(&mut times)
}

fn median(times: &mut Vec<f64>) -> f64 {
    times.drain(..times.len() / 20);
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    times.clear();
    median
}

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("a debug build: the figures mean nothing");
    }
    dsvpn_io::huge_pages::ask();
    dsvpn_io::aead::install();
    dsvpn_io::checksum::install();
    println!("a new outbound SA, ten to a commit, with the commit: {:.2} us", updates());
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().expect("a number"));
    let peers = arguments.next().unwrap_or(100_000);
    let routes = arguments.next().unwrap_or(1_000_000);
    let vectors = arguments.next().unwrap_or(800);
    let (mut small, mut large) = (Side::new(10, 10, Suite::Aes128Gcm16), Side::new(peers, routes, Suite::Aes128Gcm16));
    println!("{routes} routes and {peers} peers, against 10 of each; {}", backend());
    let mut cases = [("64 B", Packets::new(|_| 64)), ("IMIX", Packets::new(imix)), ("1424 B", Packets::new(|_| 1424))];
    for train in [1, 16, 64] {
        for (name, packets) in &mut cases {
            for _ in 0..vectors {
                small.vector(packets, train);
                large.vector(packets, train);
            }
            let what = if train == 1 { "at random".into() } else { format!("trains of {train}") };
            print!("{what:<14} {name:<7}");
            for (direction, (small, large)) in
                ["encap", "decap"].iter().zip(small.times.iter_mut().zip(&mut large.times))
            {
                let (small, large) = (median(small), median(large));
                print!("   {direction} {small:6.1} {large:6.1} ns  x{:.2}", large / small);
            }
            println!();
        }
    }
}
