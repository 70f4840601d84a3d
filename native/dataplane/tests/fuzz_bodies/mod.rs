//! What is done with the octets of a fuzzer, of the committed corpus, and of a generator: one function per target.
//!
//! Any octets are a trial: a body panics only if the data plane and the model differ, or one of them is at its end.
#![allow(dead_code)]

mod decap;

use dsvpn_dataplane::{DecapConfig, MIN_SEND_ARENA};
use dsvpn_wire::checksum;
use dsvpn_wire::gre::GreHeader;
use dsvpn_wire::ip::IpPacket;
use dsvpn_wire::virtio::VirtioNetHeader;
use dsvpn_wire::{esp, icmp, tcp};

use crate::model::hostile::{self, Octets};
use crate::model::trial::{self, Outer, Trial};
use crate::model::{forward, packet, tunnel};

pub use decap::decap;

/// A fuzz target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 5] =
    [("encap", encap), ("decap", decap), ("split", split), ("coalesce", coalesce), ("headers", headers)];

pub fn config(octets: &mut Octets) -> DecapConfig {
    let bits = octets.one();
    DecapConfig { coalesce_tcp: bits & 1 == 0, coalesce_udp: bits & 2 == 0, verify_checksums: bits & 4 == 0 }
}

/// Vectors from a TUN, and what they become when they are received again.
pub fn encap(input: &[u8]) {
    let octets = &mut Octets::new(input);
    let setup = hostile::setup(octets);
    let bits = octets.one();
    let mut trial = Trial::new(setup, bits & 1 == 1);
    if bits & 14 == 2 {
        // The last numbers that there are without ESN; with it, the low half begins anew.
        trial.skip_to(0xffff_ffff - u64::from(octets.one()));
    }
    let arena = if bits & 16 == 0 { MIN_SEND_ARENA } else { MIN_SEND_ARENA * 2 + usize::from(octets.one()) };
    // A small MTU makes thousands of fragments of a large packet.
    let most = if setup.mtu < 576 { 3000 } else { 65_535 };
    for _ in 0..2 {
        let mut packets = vec![hostile::tun_packet(octets, most)];
        while !octets.is_empty() && packets.len() < 24 && octets.below(8) != 0 {
            packets.push(hostile::tun_packet(octets, most));
        }
        let datagrams = trial.encap(&packets, arena);
        let kind = trial.dataplane.datagram_kind();
        let remote_port = if kind == dsvpn_dataplane::DatagramKind::UdpNat { 4500 } else { 0 };
        let outer = |octets| Outer { kind, octets, segment_size: 0, remote: crate::common::THEIRS, remote_port };
        let outers: Vec<Outer> = datagrams.into_iter().map(outer).collect();
        let config = config(octets);
        trial.decap(&outers, config);
        if octets.is_empty() {
            return;
        }
    }
}

/// Superpackets with any virtio header.
pub fn split(input: &[u8]) {
    let octets = &mut Octets::new(input);
    let mut packets = vec![hostile::tun_packet(octets, 65_535)];
    while !octets.is_empty() && packets.len() < 4 {
        packets.push(hostile::tun_packet(octets, 65_535));
    }
    trial::split(&packets);
}

/// Inner packets of a peer.
pub fn coalesce(input: &[u8]) {
    let octets = &mut Octets::new(input);
    let verify = octets.flag();
    let mut packets = hostile::train(octets);
    while !octets.is_empty() && packets.len() < 100 {
        match octets.below(4) {
            0 => packets.push(hostile::packet(octets, 3000)),
            1 => packets.extend(hostile::train(octets)),
            _ if packets.is_empty() => {}
            // Again, or out of its place.
            2 => packets.push(packets[octets.below(packets.len())].clone()),
            _ => {
                let (from, to) = (octets.below(packets.len()), octets.below(packets.len()));
                packets.swap(from, to);
            }
        }
    }
    trial::coalesce(&packets, verify);
}

/// Every parser of a header, and what is written from what it read.
pub fn headers(input: &[u8]) {
    let plain = packet::read_ip(input);
    let parsed = IpPacket::parse(input).ok();
    assert_eq!(
        parsed.map(|ip| (ip.version, ip.protocol, ip.tos, ip.fragment, ip.options, ip.dont_fragment)),
        plain.clone().map(|ip| (ip.version, ip.protocol, ip.tos, ip.fragment, ip.options, ip.dont_fragment)),
    );
    assert_eq!(parsed.map(|ip| (ip.header_length, ip.length)), plain.clone().map(|ip| (ip.header, ip.length)));
    let gre = tunnel::read_gre(input).map(|(key, protocol, payload)| (key, protocol, input.len() - payload.len()));
    let header = GreHeader::parse(input).map(|header| (header.key, usize::from(header.protocol), header.length));
    assert_eq!(header, gre);
    let trailer = tunnel::read_trailer(input).map(|(payload, next_header)| (payload.len(), next_header));
    assert_eq!(esp::read_trailer(input), trailer);
    assert_eq!(
        VirtioNetHeader::read(input).map(|virtio| virtio.to_octets().to_vec()),
        input.get(..10).map(<[u8]>::to_vec)
    );
    let sum = packet::sum(input).to_be_bytes();
    assert_eq!(checksum::fold(checksum::add(0, input)), sum);
    let mut copy = vec![0; input.len()];
    assert_eq!(checksum::fold(checksum::copy_and_add(0, &mut copy, input)), sum);
    assert_eq!(copy, input);
    if let (Some(ip), Some(plain)) = (parsed, plain) {
        let (mut left, mut right) = (input[..ip.length].to_vec(), input[..ip.length].to_vec());
        let segment = &mut left[ip.header_length..];
        let clamped = ip.protocol == packet::TCP && !ip.fragment && tcp::clamp_mss(segment, 1360);
        let mtu = if ip.version == 4 { 1400 } else { 1420 };
        assert_eq!(clamped, packet::clamp_mss(&mut right, &plain, mtu));
        packet::normalise(&mut left, false, false);
        packet::normalise(&mut right, false, false);
        assert_eq!(left, right);
        let whole = &input[..ip.length];
        if icmp::may_answer(&ip, whole) {
            let mut answer = Vec::new();
            icmp::write_too_big(&ip, whole, 1400, &mut answer);
            assert!(forward::is_answer(&answer, 1400, &[whole]));
        }
    }
}
