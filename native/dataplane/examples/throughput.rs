//! Whole encapsulation and decapsulation, memory to memory on one core: packets and bits of inner packets per second.
//!
//! `cargo run --release --features bench --example throughput`. A first look for gross slowness; `bench/` measures.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dsvpn_dataplane::*;
use dsvpn_wire::checksum;
use dsvpn_wire::virtio::{self, VirtioNetHeader};

const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THEIRS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

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

fn singles(name: &'static str, length: usize, count: usize) -> Case {
    let mut arena = Vec::new();
    let mut packets = Vec::new();
    for index in 0..count {
        let octets = tcp_packet(length, (index * (length - 40)) as u32);
        packets.push(PacketMeta { offset: arena.len() as u32, length: length as u32, ..PacketMeta::default() });
        arena.extend_from_slice(&octets);
    }
    Case { name, arena, packets }
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

/// Of vectors, so that what else the machine does now and then does not count.
fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn measure(case: &Case, suite: Suite) {
    let shared = Arc::new(Shared::default());
    let (mut writer, reader) = tables();
    let keymat: Vec<u8> = (0..suite.keymat_length() as u8).collect();
    writer.add_tunnel(0, TunnelConfig { key: Some(42), ..TunnelConfig::default() }).unwrap();
    let adjacency = AdjacencyConfig {
        tunnel: 0,
        encapsulation: Encapsulation::Udp,
        local: Some(OURS),
        remote: THEIRS,
        remote_port: 4500,
        mtu: 1430,
    };
    writer.set_adjacency(1, adjacency).unwrap();
    writer.set_next_hop(1, Some(1), false).unwrap();
    writer.set_route(0, "10.1.0.0/16".parse().unwrap(), 1).unwrap();
    let spi = writer.allocate_spi(7).unwrap();
    writer.add_inbound_sa(spi, suite, &keymat, &[1], false, 1024).unwrap();
    writer.set_outbound_sa(spi, suite, &keymat, &[1], false).unwrap();
    writer.commit();

    let mut encap = Encap::new(Arc::clone(&shared), EncapConfig::default());
    let mut decap = Decap::new(Arc::clone(&shared), DecapConfig::default());
    let mut send = vec![0; 256 * 1024];
    let (mut batch, mut replies, mut tun) = (SendBatch::new(), TunBatch::new(), TunBatch::new());
    let mut datagrams = Vec::new();
    let (mut encap_times, mut decap_times) = (Vec::with_capacity(1 << 20), Vec::with_capacity(1 << 20));
    let (mut segments, mut octets) = (0u64, 0u64);
    let begin = Instant::now();
    let mut warm = false;
    while begin.elapsed() < Duration::from_millis(900) {
        let tables = reader.enter().unwrap();
        let start = Instant::now();
        let progress = encap.run(&tables, 0, &case.arena, &case.packets, &mut send, &mut batch, &mut replies, 1);
        let middle = Instant::now();
        assert_eq!(progress.consumed, case.packets.len());
        datagrams.clear();
        datagrams.extend(batch.messages.iter().map(|message| Datagram {
            offset: message.offset,
            length: message.length,
            segment_size: message.segment_size,
            kind: DatagramKind::UdpNat,
            local: Some(OURS),
            local_port: 4500,
            remote: THEIRS,
            remote_port: 4500,
        }));
        let before = Instant::now();
        decap.run(&tables, &mut send, &datagrams, &mut tun, 1);
        let end = Instant::now();
        if warm {
            encap_times.push(middle - start);
            decap_times.push(end - before);
        }
        segments = batch.messages.iter().map(|message| u64::from(message.segments)).sum();
        octets = tun.packets.iter().map(|packet| u64::from(packet.length) - 10).sum();
        warm = begin.elapsed() > Duration::from_millis(100);
        black_box(&tun);
        batch.clear();
        tun.clear();
        replies.clear();
    }
    assert!(segments > 0 && octets > 0);
    let rate = |times: &mut Vec<Duration>| {
        let seconds = median(times).as_secs_f64();
        (segments as f64 / seconds / 1e6, octets as f64 * 8.0 / seconds / 1e9)
    };
    let ((encap_mpps, encap_gbps), (decap_mpps, decap_gbps)) = (rate(&mut encap_times), rate(&mut decap_times));
    println!(
        "{:<22} {:<24} encap {encap_mpps:6.2} Mpps {encap_gbps:6.1} Gb/s   decap {decap_mpps:6.2} Mpps {decap_gbps:6.1} Gb/s",
        case.name,
        suite.name(),
    );
}

/// The same cipher calls without anything around them.
fn measure_cipher(suite: Suite, length: usize) {
    let keymat: Vec<u8> = (0..suite.keymat_length() as u8).collect();
    let cipher = Cipher::new(suite, &keymat).unwrap();
    let mut octets = vec![0u8; length + ICV_LENGTH];
    let mut times = Vec::with_capacity(1 << 16);
    let mut iv = 0u64;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(200) {
        let start = Instant::now();
        for _ in 0..64 {
            iv += 1;
            cipher.seal(iv.to_be_bytes(), &[1; 8], black_box(&mut octets));
        }
        times.push(start.elapsed());
    }
    let nanoseconds = median(&mut times).as_nanos() as f64 / 64.0;
    println!("{:<22} {:<24} {nanoseconds:6.0} ns", format!("cipher alone, {length} B"), suite.name());
}

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("a debug build: the figures mean nothing");
    }
    println!("AEAD: {}", backend());
    let cases = [singles("64 B x 256", 64, 256), singles("1424 B x 64", 1424, 64), superpackets("64 KB TSO x 2", 2)];
    for suite in [Suite::Aes128Gcm16, Suite::Aes256Gcm16, Suite::ChaCha20Poly1305, Suite::NullForBenchmarks] {
        for length in [76, 1434] {
            measure_cipher(suite, length);
        }
        for case in &cases {
            measure(case, suite);
        }
    }
}
