//! Whose packet it is: the inner source against the peer that the packet came from.
//!
//! The FIB says who has an address: what is sent there goes to that peer's adjacency, so only that peer may send from
//! there. What leads to a peer that carries others' packets (a hub) may be anybody's whom the hub stands in for until
//! there is a direct path.

use std::net::IpAddr;
use std::sync::Arc;

use dsvpn_wire::icmp;
use dsvpn_wire::ip::IpPacket;

use crate::prefix::Prefix;
use crate::tables::{Adjacency, Tables};

/// Which inner sources an adjacency's packets may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sources {
    /// Any: it carries others' packets, or nothing is known of it.
    #[default]
    Any,
    /// What is routed to it, to an adjacency that is open or may send from anywhere, or to none for the moment, and these
    /// prefixes.
    Open(Vec<Prefix>),
    /// What is routed to it, and these prefixes.
    Own(Vec<Prefix>),
}

impl Sources {
    /// Its prefixes besides what is routed there.
    pub(crate) fn prefixes(&self) -> Option<Arc<[Prefix]>> {
        match self {
            Self::Any => None,
            Self::Open(prefixes) | Self::Own(prefixes) => (!prefixes.is_empty()).then(|| prefixes.as_slice().into()),
        }
    }
}

/// What an inner source says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is the peer's.
    Own,
    /// This next hop leads elsewhere, yet it may be the peer's: to a hub that stands in for others until there is a
    /// direct path, or to a peer that such a path was made to a moment ago.
    Doubtful(u32),
    /// It is another's, or nobody's.
    Foreign,
}

/// The last source that was found to be its adjacency's: a flow is looked up once. Good for as long as the tables are
/// held.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked(Option<(u32, bool, u128)>);

impl Checked {
    /// Look at the source of a packet; IPv4 addresses are the low 32 bits.
    #[inline]
    pub(crate) fn origin(&mut self, tables: &Tables, adjacency: &Adjacency, v4: bool, source: u128) -> Origin {
        let key = (adjacency.id, v4, source);
        if self.0 == Some(key) {
            return Origin::Own;
        }
        let origin = origin(tables, adjacency, v4, source);
        if origin != Origin::Foreign {
            self.0 = Some(key);
        }
        origin
    }
}

#[inline]
fn origin(tables: &Tables, adjacency: &Adjacency, v4: bool, source: u128) -> Origin {
    let Some(tunnel) = tables.tunnel(adjacency.tunnel()) else {
        return Origin::Foreign;
    };
    let found = if v4 { tunnel.v4.lookup(source as u32) } else { tunnel.v6.lookup(source) };
    if found.and_then(|next_hop| tables.next_hop(next_hop).adjacency()) == Some(adjacency.id) {
        return Origin::Own;
    }
    elsewhere(tables, adjacency, v4, source, found)
}

/// Whether a packet is an ICMP error about one that was sent to this peer.
///
/// It may come from any router behind the peer, whose own address is routed who knows where: what the error quotes is
/// looked at instead (RFC 4301 section 6.2). It says nothing about any other flow than the quoted one, so its sender can
/// harm none but those that speak to him.
#[cold]
pub(crate) fn is_error_from_behind(tables: &Tables, adjacency: &Adjacency, packet: &IpPacket, octets: &[u8]) -> bool {
    let Some((from, to)) = icmp::quoted(packet, octets) else {
        return false;
    };
    let (v4, to) = match to {
        IpAddr::V4(to) => (true, u128::from(to.to_bits())),
        IpAddr::V6(to) => (false, to.to_bits()),
    };
    from == packet.destination(octets) && origin(tables, adjacency, v4, to) == Origin::Own
}

/// The source is not routed to the adjacency that the packet came from, or there by one way of several.
#[cold]
fn elsewhere(tables: &Tables, adjacency: &Adjacency, v4: bool, source: u128, next_hop: Option<u32>) -> Origin {
    let ways = tables.ways(next_hop.as_ref());
    let leads_to = |way: &u32| tables.next_hop(*way).adjacency();
    if ways.iter().any(|way| leads_to(way) == Some(adjacency.id)) {
        return Origin::Own;
    }
    // Link-local addresses are of the tunnel as a link, and nobody registers them: routing protocols of IPv6 speak from
    // them, and they lead no further.
    if !v4 && source >> 118 == 0xfe80 >> 6 {
        return Origin::Own;
    }
    let address = if v4 { IpAddr::V4((source as u32).into()) } else { IpAddr::V6(source.into()) };
    let prefixes = tables.sources(adjacency.id).into_iter().flatten();
    if prefixes.into_iter().any(|prefix| prefix.contains(address)) {
        return Origin::Own;
    }
    // What is routed to an open peer may just have moved there, and the last of it come by the old path. What leads to
    // nobody waits for a hub to come back.
    let stands_in = |way| {
        let other = leads_to(way).and_then(|id| tables.adjacency(id));
        other.is_none_or(|other| other.is_open() || !other.checks_sources())
    };
    match next_hop {
        Some(next_hop) if adjacency.is_open() && ways.iter().any(stands_in) => Origin::Doubtful(next_hop),
        _ => Origin::Foreign,
    }
}
