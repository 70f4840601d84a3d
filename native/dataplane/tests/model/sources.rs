//! Whose an inner source is, for the plain model: a small network around the tests' data plane, and one rule after the
//! other.

use std::net::{IpAddr, Ipv4Addr};

use dsvpn_dataplane::Sources;
use dsvpn_wire::ip::IpPacket;

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
        let source = if packet[0] >> 4 == 4 { &packet[12..16] } else { &packet[8..24] };
        let hub = match source {
            [10, 0, 0, last] => ![1, 3].contains(last),
            [0xfd, 0, ..] => {
                ![1, 3].map(|last| [vec![0xfd], vec![0; 14], vec![last]].concat()).contains(&source.to_vec())
            }
            _ => false,
        };
        self == Check::Any || self.owns(source) || (self == Check::Open && hub) || self.is_error(packet)
    }

    /// Whether the peer has this address.
    fn owns(self, address: &[u8]) -> bool {
        let is = |last: u8| address == [10, 0, 0, last] || address == [vec![0xfd], vec![0; 14], vec![last]].concat();
        let routed = matches!(address, [10, 1, _, _]) || (address.len() == 16 && address[..2] == [0xfd, 1]);
        let link_local = address.len() == 16 && address[0] == 0xfe && address[1] & 0xc0 == 0x80;
        is(1) || routed || link_local || (self == Check::Listed && is(2))
    }

    /// Whether it is an ICMP error that quotes a packet to the peer, by the one to whom the error goes.
    fn is_error(self, packet: &[u8]) -> bool {
        let Ok(header) = IpPacket::parse(packet) else { return false };
        let message = &packet[header.header_length..header.length];
        let (errors, to, header_length, source, destination) = match (header.version, header.protocol) {
            (4, 1) => (&[3, 11, 12][..], &packet[16..20], 20, 12..16, 16..20),
            (6, 58) => (&[1, 2, 3, 4][..], &packet[24..40], 40, 8..24, 24..40),
            _ => return false,
        };
        if header.fragment || message.len() < 8 + header_length || !errors.contains(&message[0]) {
            return false;
        }
        let quoted = &message[8..];
        quoted[0] >> 4 == header.version && &quoted[source] == to && self.owns(&quoted[destination])
    }
}
