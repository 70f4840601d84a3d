//! Whose an inner source is, for the plain model: a small network around the tests' data plane, and one rule after the
//! other.

use std::net::{IpAddr, Ipv4Addr};

use dsvpn_dataplane::Sources;

use crate::common::{Loop, adjacency};

/// A hub (adjacency 3) and another peer (adjacency 2) besides the peer (adjacency 1).
const PEER: u32 = 1;
const OTHER: u32 = 2;
const HUB: u32 = 3;

/// Which sources the peer's packets may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    #[default]
    Any,
    Open,
    Own,
    /// Its own, and 10.0.0.2 and fd00::2 besides.
    Listed,
}

impl Check {
    pub const ALL: [Check; 4] = [Check::Any, Check::Open, Check::Own, Check::Listed];

    /// Make the data plane check, and give it the routes of [`Check::admits`].
    pub fn apply(self, dataplane: &mut Loop) {
        let (setup, writer) = (dataplane.setup, &mut dataplane.writer);
        for (id, last) in [(OTHER, 3), (HUB, 5)] {
            writer.set_adjacency(id, adjacency(setup, IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)))).unwrap();
            writer.set_next_hop(id, Some(id), false).unwrap();
        }
        let routes = [
            ("10.0.0.0/24", HUB),
            ("10.0.0.1/32", PEER),
            ("10.0.0.3/32", OTHER),
            ("fd00::/16", HUB),
            ("fd00::1/128", PEER),
            ("fd00::3/128", OTHER),
        ];
        for (prefix, next_hop) in routes {
            writer.set_route(0, prefix.parse().unwrap(), next_hop).unwrap();
        }
        let listed = ["10.0.0.2/32", "fd00::2/128"].map(|prefix| prefix.parse().unwrap());
        let sources = match self {
            Check::Any => Sources::Any,
            Check::Open => Sources::Open(Vec::new()),
            Check::Own => Sources::Own(Vec::new()),
            Check::Listed => Sources::Own(listed.to_vec()),
        };
        writer.set_sources(PEER, &sources).unwrap();
        writer.set_sources(OTHER, &Sources::Own(Vec::new())).unwrap();
        writer.commit();
    }

    /// Whether a packet of the peer passes.
    pub fn admits(self, packet: &[u8]) -> bool {
        let (source, hub, peer, other, listed, routed) = if packet[0] >> 4 == 4 {
            let source = &packet[12..16];
            let hub = source[..3] == [10, 0, 0] && source[3] != 1 && source[3] != 3;
            let [peer, other, listed] = [1, 3, 2].map(|last| source == [10, 0, 0, last]);
            (source, hub, peer, other, listed, source[..2] == [10, 1])
        } else {
            let source = &packet[8..24];
            let host = |last: u8| [vec![0xfd], vec![0; 14], vec![last]].concat() == source;
            let hub = source[..2] == [0xfd, 0] && !host(1) && !host(3);
            (source, hub, host(1), host(3), host(2), source[..2] == [0xfd, 1])
        };
        let link_local = source.len() == 16 && source[0] == 0xfe && source[1] & 0xc0 == 0x80;
        match self {
            Check::Any => true,
            _ if other => false,
            _ if peer || routed || link_local => true,
            Check::Open => hub,
            Check::Own => false,
            Check::Listed => listed,
        }
    }
}
