//! What the tables refuse, in words for the caller.

use std::fmt;
use std::net::IpAddr;

use crate::Encapsulation;
use crate::aead::Suite;
use crate::group::GROUP_LIMIT;
use crate::prefix::Prefix;
use crate::resources::MAX_RESOURCE;

/// A table command that makes no sense. The tables are as they were.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TablesError {
    /// No tunnel has this id.
    UnknownTunnel(u32),
    /// The id is in use.
    TunnelExists(u32),
    /// No adjacency has this id.
    UnknownAdjacency(u32),
    /// No next hop has this id.
    UnknownNextHop(u32),
    /// A group of no next hops, or of too many.
    GroupSize(usize),
    /// A group would be a member of another.
    GroupInGroup(u32),
    /// Routes point at the next hop.
    NextHopInUse {
        /// The next hop.
        next_hop: u32,
        /// How many routes use it.
        routes: u32,
    },
    /// The prefix is not in the tunnel's FIB.
    UnknownRoute {
        /// The tunnel.
        tunnel: u32,
        /// The prefix.
        prefix: Prefix,
    },
    /// Not a prefix.
    BadPrefix(String),
    /// An id beyond what the tables hold.
    IdTooLarge {
        /// "tunnel", "adjacency" or "next_hop".
        what: &'static str,
        /// The id.
        id: u32,
        /// The first id that is too large.
        limit: u32,
    },
    /// The encapsulation does not fit the tunnel's protection.
    Protection {
        /// The tunnel.
        tunnel: u32,
        /// Whether it is protected.
        protected: bool,
        /// The encapsulation.
        encapsulation: Encapsulation,
    },
    /// The two underlay addresses are not of one family.
    AddressFamily {
        /// Ours.
        local: IpAddr,
        /// Theirs.
        remote: IpAddr,
    },
    /// A UDP adjacency without a port, or a port where there are none.
    RemotePort {
        /// The encapsulation.
        encapsulation: Encapsulation,
        /// The port.
        port: u16,
    },
    /// Tunnel mode without our underlay address.
    TunnelModeLocal,
    /// An MTU that no inner packet fits, or none needs.
    Mtu(u32),
    /// No suite has this name.
    UnknownSuite(String),
    /// Key material of a wrong length.
    KeymatLength {
        /// The suite.
        suite: Suite,
        /// What it takes.
        expected: usize,
        /// What was given.
        given: usize,
    },
    /// Not an SPI that `allocate_spi` gave.
    SpiNotAllocated(u32),
    /// An inbound SA has the SPI already.
    SpiInUse(u32),
    /// An outbound SPI that is reserved (RFC 4303 section 2.1).
    ReservedSpi(u32),
    /// Every SPI slot is taken.
    NoSpi,
    /// An inbound SA does not exist.
    UnknownInboundSa(u32),
    /// The adjacency has no outbound SA.
    NoOutboundSa(u32),
    /// A resource beyond what there is.
    Resource(u32),
    /// A replay window beyond what is supported.
    ReplayWindow(u32),
    /// A list of adjacencies is empty.
    NoAdjacencies,
    /// An SA for an adjacency that takes plain GRE.
    PlainAdjacency(u32),
}

impl fmt::Display for TablesError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownTunnel(id) => {
                write!(formatter, "tunnel: there is no tunnel {id}; add it first")
            }
            Self::TunnelExists(id) => {
                write!(formatter, "tunnel: {id} exists already; remove it first")
            }
            Self::UnknownAdjacency(id) => write!(formatter, "adjacency: there is no adjacency {id}; set it first"),
            Self::UnknownNextHop(id) => write!(formatter, "next_hop: there is no next hop {id}; set it first"),
            Self::GroupSize(count) => {
                write!(formatter, "members: a group has 1 to {GROUP_LIMIT} next hops, not {count}")
            }
            Self::GroupInGroup(id) => {
                write!(formatter, "members: next hop {id} would be a group in a group; give next hops with adjacencies")
            }
            Self::NextHopInUse { next_hop, routes } => {
                write!(formatter, "next_hop: {routes} routes point at {next_hop}; remove or re-point them first")
            }
            Self::UnknownRoute { tunnel, prefix } => {
                write!(formatter, "prefix: tunnel {tunnel} has no route {prefix}")
            }
            Self::BadPrefix(text) => {
                write!(
                    formatter,
                    "prefix: {text:?} is not a prefix without host bits, such as 10.0.0.0/8 or 2001:db8::/32"
                )
            }
            Self::IdTooLarge { what, id, limit } => {
                write!(formatter, "{what}: {id} is not below {limit}")
            }
            Self::Protection { tunnel, protected, encapsulation } => {
                let (is, takes) =
                    if *protected { ("protected", "udp, esp or esp-tunnel") } else { ("not protected", "gre") };
                let encapsulation = match encapsulation {
                    Encapsulation::Udp => "udp",
                    Encapsulation::Esp => "esp",
                    Encapsulation::EspTunnel => "esp-tunnel",
                    Encapsulation::Gre => "gre",
                };
                write!(formatter, "encapsulation: tunnel {tunnel} is {is} and takes {takes}, not {encapsulation}")
            }
            Self::AddressFamily { local, remote } => {
                write!(formatter, "local: {local} is not of the same address family as remote {remote}")
            }
            Self::RemotePort { encapsulation: Encapsulation::Udp, port } => {
                write!(formatter, "remote_port: udp needs a port from 1 to 65535, not {port}")
            }
            Self::RemotePort { port, .. } => write!(formatter, "remote_port: esp and gre have no port; 0, not {port}"),
            Self::TunnelModeLocal => {
                write!(formatter, "local: esp-tunnel needs our underlay address, which stands inside its packets")
            }
            Self::Mtu(mtu) => write!(formatter, "mtu: {mtu} is not between 68 and 65535"),
            Self::UnknownSuite(name) => {
                write!(
                    formatter,
                    "suite: {name:?} is none of aes128gcm16, aes256gcm16, chacha20poly1305, aes256-sha256 and its like, \
                     aes256ctr-sha256 and its like"
                )
            }
            Self::KeymatLength { suite, expected, given } => {
                let parts =
                    if let Suite::Hmac(_) = suite { "cipher key, salt of AES-CTR, HMAC key" } else { "key and salt" };
                write!(formatter, "keymat: {} takes {expected} octets ({parts}), not {given}", suite.name())
            }
            Self::SpiNotAllocated(spi) => {
                write!(formatter, "spi: 0x{spi:08x} was not allocated by this data plane; call allocate_spi")
            }
            Self::SpiInUse(spi) => write!(formatter, "spi: 0x{spi:08x} has an inbound SA already"),
            Self::ReservedSpi(spi) => write!(formatter, "spi: {spi} is reserved; at least 256"),
            Self::NoSpi => write!(formatter, "spi: all slots for inbound SAs are taken; remove some"),
            Self::UnknownInboundSa(spi) => {
                write!(formatter, "spi: there is no inbound SA 0x{spi:08x}")
            }
            Self::NoOutboundSa(adjacency) => {
                write!(formatter, "adjacency: {adjacency} has no outbound SA")
            }
            Self::Resource(resource) => write!(formatter, "resource: {resource} is not between 0 and {MAX_RESOURCE}"),
            Self::ReplayWindow(window) => write!(formatter, "replay_window: {window} is not between 0 and 8192"),
            Self::NoAdjacencies => write!(formatter, "adjacencies: name at least one"),
            Self::PlainAdjacency(adjacency) => {
                write!(formatter, "adjacencies: {adjacency} is plain GRE and takes no SA")
            }
        }
    }
}

impl std::error::Error for TablesError {}
