//! Next hops of equal cost: a group holds several, and each flow keeps to one of them.

use std::hash::Hasher;

use dsvpn_wire::ip::{IpPacket, protocol};

use crate::limiter::WordHasher;

/// Next hops that a group can hold.
pub const GROUP_LIMIT: usize = 8;

/// The members of a group, in one cache line. Without any it is a slot that nobody uses.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Group {
    members: [u32; GROUP_LIMIT],
    count: u32,
}

impl Group {
    /// Of at most [`GROUP_LIMIT`] members.
    pub(crate) fn new(members: &[u32]) -> Self {
        let mut group = Self::default();
        for (slot, member) in group.members.iter_mut().zip(members) {
            *slot = *member;
            group.count += 1;
        }
        group
    }

    /// All of them.
    pub(crate) fn members(&self) -> &[u32] {
        &self.members[..self.count as usize]
    }

    /// The member that a flow keeps to.
    #[inline]
    pub(crate) fn member(&self, flow: u64) -> Option<u32> {
        let count = u64::from(self.count);
        (count > 0).then(|| self.members[(((flow >> 32) * count) >> 32) as usize])
    }
}

/// What all packets of a flow have in common: addresses and protocol, and of TCP the ports.
///
/// Datagrams of a UDP flow may be fragmented or not, and a fragment has no ports: by its ports, such a flow would come
/// out of order.
pub(crate) fn flow(octets: &[u8]) -> u64 {
    let Ok(packet) = IpPacket::parse(octets) else { return 0 };
    let mut hash = WordHasher::default();
    hash.write(&octets[if packet.version == 4 { 12..20 } else { 8..40 }]);
    hash.write_u8(packet.protocol);
    if packet.protocol == protocol::TCP
        && !packet.fragment
        && let Some(ports) = octets.get(packet.header_length..packet.header_length + 4)
    {
        hash.write(ports);
    }
    let sum = hash.finish();
    sum.rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(source_port: u16, fragment: bool) -> Vec<u8> {
        let mut octets = vec![0; 40];
        octets[0] = 0x45;
        octets[3] = 40;
        octets[6] = if fragment { 0x20 } else { 0 };
        octets[9] = protocol::TCP;
        octets[12..16].copy_from_slice(&[10, 0, 0, 1]);
        octets[16..20].copy_from_slice(&[10, 0, 0, 2]);
        octets[20..22].copy_from_slice(&source_port.to_be_bytes());
        octets[32] = 0x50;
        octets
    }

    #[test]
    fn flows_spread_evenly_and_each_keeps_to_one_member() {
        for count in 1..=GROUP_LIMIT {
            let members: Vec<u32> = (100..).take(count).collect();
            let group = Group::new(&members);
            let mut hits = vec![0; count];
            for port in 0..8000 {
                let member = group.member(flow(&tcp(port, false))).unwrap();
                assert_eq!(Some(member), group.member(flow(&tcp(port, false))));
                hits[(member - 100) as usize] += 1;
            }
            let fair = 8000 / count;
            assert!(hits.iter().all(|&hit| hit > fair * 8 / 10 && hit < fair * 12 / 10), "{hits:?}");
        }
    }

    #[test]
    fn fragments_and_other_protocols_go_by_their_addresses() {
        assert_eq!(flow(&tcp(1, true)), flow(&tcp(2, true)));
        let udp = |port| {
            let mut octets = tcp(port, false);
            octets[9] = protocol::UDP;
            octets
        };
        assert_eq!(flow(&udp(1)), flow(&udp(2)));
        assert_ne!(flow(&udp(1)), flow(&tcp(1, true)));
    }

    #[test]
    fn an_empty_group_has_no_member() {
        assert_eq!(Group::default().member(7), None);
    }
}
