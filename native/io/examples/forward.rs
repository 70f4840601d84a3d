//! Whole encapsulation and decapsulation, memory to memory on one core, with ring and with the kernel in turn where
//! there is one for the suite: packets and bits of inner packets per second, the better 95 % and the median of rounds,
//! and the ratio of medians. At the end, the same without and with the check of inner sources.
//!
//! `cargo run --release -p dsvpn-io --example forward`; with `--features bench` also the null cipher.

mod common;

use std::time::Duration;

use common::{adjacency, imix};
use dsvpn_dataplane::kernel::{Kernel, set_kernel};
use dsvpn_dataplane::*;
use dsvpn_io::aead;
use dsvpn_wire::checksum;
use dsvpn_wire::virtio::{self, VirtioNetHeader};

fn tcp_packet(length: usize, sequence: u32) -> Vec<u8> {
    let mut octets = vec![0u8; length];
    octets[0] = 0x45;
    octets[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    octets[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
    octets[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 1, 0, 1]);
    octets[20..24].copy_from_slice(&[0x30, 0x39, 0x14, 0x51]);
    octets[24..28].copy_from_slice(&sequence.to_be_bytes());
    octets[32..34].copy_from_slice(&[0x50, 0x10]);
    let sum = checksum::finish(checksum::add(0, &octets[..20]));
    octets[10..12].copy_from_slice(&sum);
    octets
}

struct Case {
    name: &'static str,
    arena: Vec<u8>,
    packets: Vec<PacketMeta>,
}

/// Packets of one flow, the sequence number of each `apart` from that before it.
fn packets(name: &'static str, length: impl Fn(usize) -> usize, apart: usize, count: usize) -> Case {
    let mut case = Case { name, arena: Vec::new(), packets: Vec::new() };
    for index in 0..count {
        let octets = tcp_packet(length(index), (index * apart) as u32);
        let offset = case.arena.len() as u32;
        case.packets.push(PacketMeta { offset, length: octets.len() as u32, ..PacketMeta::default() });
        case.arena.extend_from_slice(&octets);
    }
    case
}

fn singles(name: &'static str, length: usize, count: usize) -> Case {
    packets(name, |_| length, length - 40, count)
}

fn superpackets(name: &'static str, count: usize) -> Case {
    let mut case = singles(name, 40 + 1384 * 45, count);
    for packet in &mut case.packets {
        packet.virtio = VirtioNetHeader {
            flags: virtio::NEEDS_CSUM,
            gso_type: virtio::GSO_TCPV4,
            hdr_len: 40,
            gso_size: 1384,
            csum_start: 20,
            csum_offset: 16,
        };
    }
    case
}

/// One data plane that sends to itself.
struct Bench {
    writer: TablesWriter,
    reader: TablesReader,
    ends: common::Bench,
    /// Nanoseconds per packet of each round.
    times: [Vec<f64>; 2],
}

impl Bench {
    fn new(suite: Suite, kernel: Option<&'static Kernel>) -> Self {
        set_kernel(kernel);
        let (mut writer, reader) = tables();
        let keymat: Vec<u8> = (0..suite.keymat_length() as u8).collect();
        writer.add_tunnel(0, TunnelConfig { key: Some(42), ..TunnelConfig::default() }).unwrap();
        writer.set_adjacency(1, adjacency(1430)).unwrap();
        writer.set_next_hop(1, Some(1), false).unwrap();
        writer.set_route(0, "10.1.0.0/16".parse().unwrap(), 1).unwrap();
        let spi = writer.allocate_spi(7).unwrap();
        writer.add_inbound_sa(spi, suite, &keymat, &[1], false, 1024).unwrap();
        writer.set_outbound_sa(spi, suite, &keymat, &[1], false).unwrap();
        writer.commit();
        Self { writer, reader, ends: common::Bench::new(256 * 1024), times: Default::default() }
    }

    /// Look at inner sources, each of which is routed to the peer by a route of its own.
    fn checking_sources(mut self) -> Self {
        for last in 0..=255 {
            self.writer.set_route(0, format!("10.0.0.{last}/32").parse().unwrap(), 1).unwrap();
        }
        self.writer.set_sources(1, &Sources::Own(Vec::new())).unwrap();
        self.writer.commit();
        self
    }

    /// Some vectors; the packets and inner octets of one.
    fn round(&mut self, case: &Case) -> (u64, u64) {
        let (mut there, mut back) = (Duration::ZERO, Duration::ZERO);
        let vectors = 16;
        for _ in 0..vectors {
            there += self.ends.encap(&self.reader, &case.arena, &case.packets);
            back += self.ends.decap(&self.reader);
        }
        let segments = self.ends.batch.messages.iter().map(|message| u64::from(message.segments)).sum();
        let octets = self.ends.tun.packets.iter().map(|packet| u64::from(packet.length) - 10).sum();
        assert!(segments > 0 && octets > 0);
        for (times, time) in self.times.iter_mut().zip([there, back]) {
            times.push(time.as_nanos() as f64 / (vectors * segments) as f64);
        }
        (segments, octets)
    }
}

/// The 5th and the 50th percentile.
fn percentiles(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 20], times[times.len() / 2])
}

fn measure(case: &Case, suite: Suite) {
    let mut benches = vec![("ring", Bench::new(suite, None))];
    match suite {
        Suite::Aes128Gcm16 | Suite::Aes256Gcm16 => {
            benches.extend(aead::kernel().map(|kernel| ("kernel", Bench::new(suite, Some(kernel)))));
        }
        Suite::ChaCha20Poly1305 | Suite::Hmac(_) => {}
        #[cfg(feature = "bench")]
        Suite::NullForBenchmarks => benches[0].0 = "null",
    }
    compare(case, suite, benches);
}

fn measure_check(case: &Case, suite: Suite) {
    let make = || Bench::new(suite, aead::kernel());
    compare(case, suite, vec![("any", make()), ("check", make().checking_sources())]);
}

fn compare(case: &Case, suite: Suite, mut benches: Vec<(&'static str, Bench)>) {
    let (mut segments, mut octets) = (0, 0);
    for round in 0..400 {
        for (_, bench) in &mut benches {
            (segments, octets) = bench.round(case);
            if round < 40 {
                bench.times.iter_mut().for_each(Vec::clear);
            }
        }
    }
    for (index, direction) in ["encap", "decap"].into_iter().enumerate() {
        print!("{:<16} {:<16} {direction}", case.name, suite.name());
        let mut medians = Vec::new();
        for (name, bench) in &mut benches {
            let (best, median) = percentiles(&mut bench.times[index]);
            let mpps = |nanoseconds: f64| 1e3 / nanoseconds;
            let gbps = |nanoseconds: f64| octets as f64 * 8.0 / segments as f64 / nanoseconds;
            print!("   {name:<6} {:6.2} {:6.2} Mpps", mpps(best), mpps(median));
            print!(" {:5.1} {:5.1} Gb/s", gbps(best), gbps(median));
            medians.push(median);
        }
        match medians[..] {
            [ring, ours] => println!("   x{:.2}", ring / ours),
            _ => println!(),
        }
    }
    for (_, bench) in &mut benches {
        bench.writer.commit();
    }
}

/// Every packet from another source than the one before it.
fn many_sources(name: &'static str, length: usize) -> Case {
    let mut case = singles(name, length, 256);
    for (index, packet) in case.packets.iter().enumerate() {
        let header = &mut case.arena[packet.offset as usize..][..20];
        header[15] = (index * 37) as u8;
        header[10..12].fill(0);
        let sum = checksum::finish(checksum::add(0, header));
        header[10..12].copy_from_slice(&sum);
    }
    case
}

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("a debug build: the figures mean nothing");
    }
    println!("{} against {}", aead::kernel().map_or("no kernel", |kernel| kernel.name), backend());
    dsvpn_io::checksum::install();
    let cases = [
        singles("64 B x 256", 64, 256),
        packets("IMIX x 240", imix, 1000, 240),
        singles("1424 B x 64", 1424, 64),
        superpackets("64 KB TSO x 2", 2),
    ];
    let suites = [
        Suite::Aes128Gcm16,
        Suite::Aes256Gcm16,
        Suite::ChaCha20Poly1305,
        #[cfg(feature = "bench")]
        Suite::NullForBenchmarks,
    ];
    for suite in suites {
        for case in &cases {
            measure(case, suite);
        }
    }
    for case in cases.iter().chain(&[many_sources("64 B, sources", 64)]) {
        measure_check(case, Suite::Aes128Gcm16);
    }
}
