//! The IP header that GRE has inside ESP in tunnel mode (RFC 4303 section 3.1.2), between the same two addresses as the
//! outer one: those are what an SA's traffic selectors allow.

use std::net::IpAddr;

use dsvpn_wire::ip::{IPV4_HEADER, IPV6_HEADER, IpPacket, protocol, write_ipv4_checksum};

use crate::sa::InboundSa;
use crate::tables::{Adjacency, Tables};
use crate::vector::Encapsulation;

/// Octets of the longest header.
pub(crate) const MAX_HEADER: usize = IPV6_HEADER;

/// Hops that the inner header allows: none is passed, its addresses are the tunnel's ends.
const HOP_LIMIT: u8 = 64;

/// Octets that an adjacency's packets have in front of GRE.
#[inline]
pub(crate) fn header_length(adjacency: &Adjacency) -> usize {
    match (adjacency.encapsulation, adjacency.remote()) {
        (Encapsulation::EspTunnel, IpAddr::V4(_)) => IPV4_HEADER,
        (Encapsulation::EspTunnel, IpAddr::V6(_)) => IPV6_HEADER,
        _ => 0,
    }
}

/// Write the header to the beginning of `payload`, which goes into ESP as it is then. Gives the next header for ESP's
/// trailer. An adjacency in transport mode has none.
pub(crate) fn write(adjacency: &Adjacency, tos: u8, payload: &mut [u8]) -> u8 {
    let length = header_length(adjacency);
    let gre = payload.len() - length;
    let header = &mut payload[..length];
    match (adjacency.local(), adjacency.remote()) {
        (Some(IpAddr::V4(local)), IpAddr::V4(remote)) if length != 0 => {
            header.fill(0);
            header[0] = 0x45;
            header[1] = tos;
            header[2..4].copy_from_slice(&((length + gre) as u16).to_be_bytes());
            // DF, so that the number may be 0 (RFC 6864 section 4.1).
            header[6] = 0x40;
            header[8] = HOP_LIMIT;
            header[9] = protocol::GRE;
            header[12..16].copy_from_slice(&local.octets());
            header[16..20].copy_from_slice(&remote.octets());
            write_ipv4_checksum(header);
            protocol::IPV4
        }
        (Some(IpAddr::V6(local)), IpAddr::V6(remote)) if length != 0 => {
            header[..4].copy_from_slice(&(0x6000_0000 | u32::from(tos) << 20).to_be_bytes());
            header[4..6].copy_from_slice(&(gre as u16).to_be_bytes());
            header[6] = protocol::GRE;
            header[7] = HOP_LIMIT;
            header[8..24].copy_from_slice(&local.octets());
            header[24..40].copy_from_slice(&remote.octets());
            protocol::IPV6
        }
        // The tables take no adjacency in tunnel mode without our address, or with two families.
        _ => protocol::GRE,
    }
}

/// Whether an SA is for tunnel mode, as its adjacencies say.
#[cold]
pub(crate) fn carries(tables: &Tables, sa: &InboundSa) -> bool {
    let mut adjacencies = sa.adjacencies().filter_map(|id| tables.adjacency(id));
    adjacencies.any(|adjacency| adjacency.encapsulation == Encapsulation::EspTunnel)
}

/// Read the inner header: where GRE begins and ends in `payload`. Behind its end there may be padding that hides its
/// length (RFC 4303 section 2.7).
#[cold]
pub(crate) fn read(payload: &[u8], next_header: u8) -> Option<(usize, usize)> {
    let packet = IpPacket::parse(payload).ok()?;
    let version = if next_header == protocol::IPV4 { 4 } else { 6 };
    let sound = packet.version == version && packet.protocol == protocol::GRE && !packet.fragment;
    sound.then_some((packet.header_length, packet.length))
}

/// Whether the inner header, which was read, is from an adjacency's peer to us.
#[cold]
pub(crate) fn is_between(adjacency: &Adjacency, payload: &[u8]) -> bool {
    IpPacket::parse(payload).is_ok_and(|packet| {
        packet.source(payload) == adjacency.remote() && Some(packet.destination(payload)) == adjacency.local()
    })
}
