//! What comes from the underlay: honest datagrams of the peer, and what others make of them. The peer's key is known
//! here, so that what lies behind the ICV is reached.

use std::net::{IpAddr, Ipv4Addr};

use dsvpn_dataplane::{DatagramKind, Encapsulation};

use super::config;
use crate::common::{OURS, Setup, THEIRS};
use crate::model::hostile::{self, Octets};
use crate::model::sources::Check;
use crate::model::trial::{Outer, Trial};
use crate::model::tunnel::{GRE, protocol_of, tunnel_header, write_gre};

const KINDS: [DatagramKind; 4] = [DatagramKind::UdpIke, DatagramKind::UdpNat, DatagramKind::Esp, DatagramKind::Gre];
const IPV4: u8 = 4;
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

/// Vectors of datagrams and of UDP_GRO runs.
pub fn decap(input: &[u8]) {
    let octets = &mut Octets::new(input);
    let setup = hostile::setup(octets);
    let mut trial = Trial::new(setup, false);
    // By the length: the octets of the corpus keep their meaning.
    trial.check_sources(Check::ALL[input.len() % 4]);
    let mut earlier = Vec::new();
    for _ in 0..2 {
        let config = config(octets);
        let mut outers: Vec<Outer> = Vec::new();
        let mut inners = if octets.flag() { hostile::train(octets) } else { Vec::new() };
        inners.reverse();
        while outers.len() < 60 {
            let inner = match inners.pop() {
                Some(inner) => inner,
                None if octets.is_empty() || octets.below(8) == 0 => break,
                None => hostile::packet(octets, 3000),
            };
            let outer = wrap(octets, &mut trial, &setup, &inner, &mut earlier);
            join(octets, &mut outers, outer);
        }
        trial.decap(&outers, config);
        if octets.is_empty() {
            return;
        }
    }
}

/// An inner packet as its peer sends it, up to one lie.
fn wrap(octets: &mut Octets, trial: &mut Trial, setup: &Setup, inner: &[u8], earlier: &mut Vec<Vec<u8>>) -> Outer {
    let lie = octets.below(24);
    let mut gre = write_gre(setup.key, protocol_of(inner), inner);
    match lie {
        1 => {
            let mut header = octets.take(16);
            header.extend(inner);
            gre = header;
        }
        2 => gre[octets.below(4)] ^= octets.one(),
        3 => gre.truncate(octets.below(30)),
        // NHRP.
        4 => gre[2..4].copy_from_slice(&[0x20, 0x01]),
        _ => {}
    }
    let mut datagram = match &mut trial.receiver.sa {
        None => gre,
        Some(sa) => {
            if lie == 5 {
                sa.next = sa.next.wrapping_add(octets.pick(&[1, 63, 64, 65, 1023, 1024, 5000, 1 << 31, 1 << 32]));
            }
            if lie == 6 {
                // Late, and perhaps too late.
                sa.next = sa.next.saturating_sub(octets.pick(&[1, 2, 63, 64, 65, 1024, 1 << 32]));
            }
            let mut next_header = if lie == 7 { octets.pick(&[59, 4, 0, 50, 41]) } else { GRE };
            if setup.encapsulation == Encapsulation::EspTunnel && lie != 22 {
                gre = in_tunnel_mode(octets, lie, &gre);
                next_header = if lie == 7 { next_header } else { IPV4 };
            }
            let mut plaintext = gre.clone();
            plaintext.extend(match lie {
                8 => octets.take(6),
                // Traffic flow confidentiality: more padding than is due, sound or not.
                9 => {
                    let padding = octets.one();
                    let mut end: Vec<u8> = (1..=padding).collect();
                    end.extend([padding.wrapping_add(u8::from(octets.flag())), next_header]);
                    end
                }
                _ => sa.trailer(gre.len(), next_header),
            });
            let sequence = sa.next;
            sa.next = sa.next.wrapping_add(1);
            sa.seal(sequence, &plaintext)
        }
    };
    match lie {
        10 if !earlier.is_empty() => datagram = earlier[octets.below(earlier.len())].clone(),
        11 => {
            let at = usize::from(octets.two()) % datagram.len().max(1);
            if let Some(octet) = datagram.get_mut(at) {
                *octet ^= 1 << octets.below(8);
            }
        }
        12 => datagram.truncate(octets.below(80)),
        13 => datagram.extend(octets.take(20)),
        14 if datagram.len() >= 4 => datagram[..4].copy_from_slice(&octets.four().to_be_bytes()),
        15 => datagram = octets.take(60),
        16 => {
            datagram =
                octets.pick::<&[u8]>(&[&[0xff], &[], &[0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0], &[1, 2, 3]]).to_vec()
        }
        _ => {}
    }
    if earlier.len() < 200 {
        earlier.push(datagram.clone());
    }
    let own = match setup.encapsulation {
        Encapsulation::Udp => DatagramKind::UdpNat,
        Encapsulation::Esp | Encapsulation::EspTunnel => DatagramKind::Esp,
        Encapsulation::Gre => DatagramKind::Gre,
    };
    let kind = if lie == 17 { octets.pick(&KINDS) } else { own };
    let remote = if lie == 18 { STRANGER } else { THEIRS };
    Outer { kind, octets: datagram, segment_size: 0, remote, remote_port: 4500 }
}

/// GRE behind the peer's IP header, up to a lie.
fn in_tunnel_mode(octets: &mut Octets, lie: usize, gre: &[u8]) -> Vec<u8> {
    let mut packet = tunnel_header(THEIRS, OURS, 0, gre.len());
    match lie {
        19 => packet[octets.below(20)] ^= 1 << octets.below(8),
        20 => packet = tunnel_header(octets.pick(&[STRANGER, OURS]), octets.pick(&[OURS, STRANGER]), 0, gre.len()),
        _ => {}
    }
    packet.extend(gre);
    match lie {
        21 => packet.truncate(octets.below(40)),
        // Padding that hides the length.
        23 => packet.extend(octets.take(40)),
        _ => {}
    }
    packet
}

/// Make a datagram a part of the run before it, if it may be one; or give it a stride that is none.
fn join(octets: &mut Octets, outers: &mut Vec<Outer>, mut outer: Outer) {
    let bits = octets.one();
    if let Some(last) = outers.last_mut()
        && bits & 1 == 0
        && last.kind == outer.kind
        && last.remote == outer.remote
    {
        let stride = if last.segment_size == 0 { last.octets.len() } else { last.segment_size as usize };
        let whole = last.octets.len() % stride.max(1) == 0;
        if whole && outer.octets.len() <= stride && last.octets.len() + outer.octets.len() <= 65_535 {
            last.segment_size = stride as u32;
            last.octets.extend(outer.octets);
            return;
        }
    }
    if bits >> 1 == 1 {
        outer.segment_size = octets.pick(&[1, 7, 36, 100, 65_535, u32::MAX]);
    }
    outers.push(outer);
}
