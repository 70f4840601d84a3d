//! The packet path of dsvpn: tables in, packet vectors in, packet vectors out.
//!
//! Pure: no descriptors, no clock, no threads. See README.md for how a driver uses it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod aead;
mod coalesce;
mod cookie;
mod counters;
mod decap;
mod encap;
mod error;
mod esp;
mod fib;
mod fragment;
mod group;
pub mod kernel;
mod limiter;
mod output;
pub mod prefetch;
mod prefix;
mod punt;
mod replay;
mod resources;
mod sa;
mod segment;
mod sequence;
mod sources;
mod spi;
pub mod stages;
mod tables;
mod turn;
mod vector;
mod writer;

pub use aead::{Cipher, ICV_LENGTH, IV_LENGTH, SALT_LENGTH, Suite, Unauthentic, backend};
pub use cookie::{CookieGate, Verdict};
pub use counters::{COUNTERS, Counter, Counters};
pub use decap::{Decap, DecapConfig};
pub use encap::{Encap, EncapConfig, Progress};
pub use error::TablesError;
pub use esp::{HmacSuite, Mode};
pub use fib::{Fib, Key};
pub use group::GROUP_LIMIT;
pub use left_right::ReadGuard;
pub use output::{MIN_SEND_ARENA, encap_nhrp};
pub use prefix::Prefix;
pub use punt::{Punt, PuntKind, PuntQueue};
pub use replay::{MAX_REPLAY_WINDOW, ReplayWindow};
pub use resources::MAX_RESOURCE;
pub use sa::{AdjacencyCounts, InboundSa, InboundSaCounts, OutboundSa, OutboundSaCounts};
pub use sources::Sources;
pub use spi::{SLOT_BITS, lane as spi_lane};
pub use tables::{Adjacency, AdjacencyConfig, Tables, TablesReader, Tunnel, TunnelConfig};
pub use vector::{
    Datagram, DatagramKind, Encapsulation, Endpoint, GsoLimits, PacketMeta, SendBatch, SendMessage, Slice, TunBatch,
    TunPacket,
};
pub use writer::{ADJACENCY_LIMIT, NEXT_HOP_LIMIT, TUNNEL_LIMIT, TablesWriter, tables};

/// What the workers of one data plane share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Totals.
    pub counters: Counters,
    /// What waits for the control plane.
    pub punts: PuntQueue,
    /// What strangers get while the control plane is under load.
    pub cookies: CookieGate,
}
