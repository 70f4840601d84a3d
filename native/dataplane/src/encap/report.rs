//! What encapsulation tells others about packets: ICMP errors to their senders, punts to the control plane.

use std::hash::Hasher;
use std::net::IpAddr;

use dsvpn_wire::icmp;
use dsvpn_wire::ip::{IpPacket, read_u128};
use dsvpn_wire::read_u32;

use super::lookahead::resolve;
use super::{Encap, REDIRECT_HEAD, Vector};
use crate::counters::Counter;
use crate::limiter::WordHasher;
use crate::prefetch::Prefetch;
use crate::punt::{Punt, PuntKind};
use crate::tables::Adjacency;

impl<P: Prefetch> Encap<P> {
    /// Answer a packet that is too big, at a limited rate.
    #[cold]
    pub(super) fn answer_too_big(
        &mut self,
        vector: &mut Vector<'_, '_>,
        adjacency: &Adjacency,
        packet: &IpPacket,
        octets: &[u8],
    ) {
        self.tally.add(Counter::DropTooBig, 1);
        if !icmp::may_answer(packet, octets) {
            return;
        }
        let mut hash = WordHasher::default();
        hash.write_u32(vector.tunnel_id);
        hash.write(&octets[if packet.version == 4 { 12..20 } else { 8..40 }]);
        if self.too_big.pass(hash.finish(), vector.now_ns) {
            let mtu = adjacency.mtu() as u16;
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.clear();
            icmp::write_too_big(packet, octets, mtu, &mut scratch);
            vector.replies.push_octets(vector.tunnel_id, &scratch);
            self.scratch = scratch;
            self.tally.add(Counter::TooBigSent, 1);
        }
    }

    /// Report a packet that used a next hop with `resolve`.
    pub(super) fn punt_miss(
        &mut self,
        vector: &Vector<'_, '_>,
        next_hop: u32,
        packet: &IpPacket,
        octets: &[u8],
        destination: u128,
    ) {
        let mut hash = WordHasher::default();
        hash.write_u32(vector.tunnel_id);
        hash.write_u32(next_hop);
        hash.write_u128(destination);
        if self.misses.pass(hash.finish(), vector.now_ns) {
            let data = match packet.destination(octets) {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            self.punt(PuntKind::Miss, Counter::PuntMiss, vector.tunnel_id, None, Some(next_hop), data);
        }
    }

    /// Report a packet whose source lies behind another adjacency than its destination.
    pub(super) fn detect_redirect(
        &mut self,
        vector: &Vector<'_, '_>,
        adjacency: &Adjacency,
        packet: &IpPacket,
        octets: &[u8],
        destination: u128,
    ) {
        let source = if packet.version == 4 { u128::from(read_u32(octets, 12)) } else { read_u128(octets, 8) };
        let Some(from) = resolve(vector.tables, vector.tunnel, packet.version, source).adjacency else {
            return;
        };
        if from.id == adjacency.id {
            return;
        }
        let mut hash = WordHasher::default();
        hash.write_u32(vector.tunnel_id);
        hash.write_u128(source);
        hash.write_u128(destination);
        if self.redirects.pass(hash.finish(), vector.now_ns) {
            let head = octets[..octets.len().min(REDIRECT_HEAD)].to_vec();
            self.punt(PuntKind::Redirect, Counter::PuntRedirect, vector.tunnel_id, Some(from.id), None, head);
        }
    }

    fn punt(
        &mut self,
        kind: PuntKind,
        counter: Counter,
        tunnel: u32,
        adjacency: Option<u32>,
        next_hop: Option<u32>,
        data: Vec<u8>,
    ) {
        let queued = self.shared.punts.push(Punt {
            kind,
            tunnel: Some(tunnel),
            adjacency,
            next_hop,
            local: None,
            local_port: 0,
            remote: None,
            remote_port: 0,
            data,
        });
        self.tally.add(if queued { counter } else { Counter::PuntLost }, 1);
    }
}
