//! Inner sources: what a peer may send from, what is dropped and what is told.

mod common;
mod model;

use common::*;
use dsvpn_dataplane::*;
use dsvpn_wire::icmp;
use dsvpn_wire::ip::IpPacket;
use model::sources::Check;

/// A data plane that checks, and a packet from 10.0.0.`source` (fd00::`source`) as its peer sends it.
struct Checked(Loop);

impl Checked {
    fn new(check: Check, setup: Setup) -> Self {
        let mut dataplane = Loop::new(setup);
        check.apply(&mut dataplane);
        Self(dataplane)
    }

    fn packet(source: u8, v6: bool) -> Vec<u8> {
        Flow { udp: true, v6, source, ..Flow::default() }.packet(&payload(100))
    }

    fn sealed(&mut self, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let packets: Vec<_> = packets.iter().map(|octets| (octets.clone(), Default::default())).collect();
        self.0.encap(&packets).0
    }

    /// How many of these arrive.
    fn arrive(&mut self, packets: &[Vec<u8>]) -> usize {
        let datagrams = self.sealed(packets);
        self.0.decap.set_config(DecapConfig { coalesce_tcp: false, coalesce_udp: false, verify_checksums: false });
        self.0.decap(&datagrams).len()
    }

    fn dropped(&self) -> u64 {
        self.0.count(Counter::DropWrongSource)
    }

    fn punts(&self) -> Vec<(Option<u32>, Option<u32>, Vec<u8>)> {
        let punts = self.0.shared.punts.take(usize::MAX).into_iter();
        punts
            .filter(|punt| punt.kind == PuntKind::Source)
            .map(|punt| (punt.adjacency, punt.next_hop, punt.data))
            .collect()
    }
}

#[test]
fn a_source_of_another_peer_is_dropped_counted_and_told_once() {
    for check in [Check::Open, Check::Own, Check::Listed] {
        for v6 in [false, true] {
            let mut plane = Checked::new(check, Setup::default());
            let (own, foreign) = (Checked::packet(1, v6), Checked::packet(3, v6));
            let mixed: Vec<_> = (0..40).map(|turn| if turn % 4 == 0 { foreign.clone() } else { own.clone() }).collect();
            assert_eq!(plane.arrive(&mixed), 30);
            assert_eq!(plane.dropped(), 10);
            let source = if v6 { foreign[8..24].to_vec() } else { foreign[12..16].to_vec() };
            assert_eq!(plane.punts(), [(Some(1), None, source)]);
            // What was dropped is no data of the peer's.
            assert_eq!(plane.0.writer.adjacency_counters(1).unwrap().packets_in, 30);
        }
    }
}

#[test]
fn what_a_hub_stands_in_for_is_let_pass_and_told_only_if_the_peer_is_open() {
    let packet = Checked::packet(9, false);
    let mut plane = Checked::new(Check::Open, Setup::default());
    assert_eq!(plane.arrive(&vec![packet.clone(); 5]), 5);
    assert_eq!(plane.punts(), [(Some(1), Some(3), vec![10, 0, 0, 9])]);
    let mut plane = Checked::new(Check::Own, Setup::default());
    assert_eq!(plane.arrive(&vec![packet; 5]), 0);
    assert_eq!(plane.dropped(), 5);
}

#[test]
fn between_open_peers_a_source_may_just_have_moved() {
    let mut plane = Checked::new(Check::Open, Setup::default());
    let packet = Checked::packet(3, false);
    assert_eq!(plane.arrive(std::slice::from_ref(&packet)), 0);
    plane.0.writer.set_sources(2, &Sources::Open(Vec::new())).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(std::slice::from_ref(&packet)), 1);
    let told: Vec<_> = plane.punts().into_iter().map(|(_, next_hop, _)| next_hop).collect();
    assert_eq!(told, [None, Some(2)]);
    // Nobody has it: its hub is away.
    plane.0.writer.set_next_hop(2, None, false).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(std::slice::from_ref(&packet)), 1);
    // Until the control plane has had enough of it.
    plane.0.writer.set_sources(1, &Sources::Own(Vec::new())).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[packet]), 0);
}

#[test]
fn prefixes_are_a_peers_own_whoever_is_routed_there() {
    let mut plane = Checked::new(Check::Listed, Setup::default());
    assert_eq!(plane.arrive(&[Checked::packet(2, false), Checked::packet(2, true)]), 2);
    plane.0.writer.set_sources(1, &Sources::Own(vec!["10.0.0.0/29".parse().unwrap()])).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(3, false), Checked::packet(7, false), Checked::packet(8, false)]), 2);
    assert_eq!(plane.arrive(&[Checked::packet(2, true)]), 0);
}

#[test]
fn a_source_without_a_route_is_nobodys() {
    let mut plane = Checked::new(Check::Open, Setup::default());
    plane.0.writer.remove_route(0, "10.0.0.0/24".parse().unwrap()).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(9, false)]), 0);
    assert_eq!(plane.dropped(), 1);
}

#[test]
fn link_local_sources_are_the_links() {
    let mut plane = Checked::new(Check::Own, Setup::default());
    let mut packet = Checked::packet(1, true);
    packet[8..24].copy_from_slice(&"fe80::77".parse::<std::net::Ipv6Addr>().unwrap().octets());
    fix_checksums(&mut packet);
    assert_eq!(plane.arrive(&[packet]), 1);
}

#[test]
fn sources_follow_routes_and_stay_when_the_peer_moves() {
    let mut plane = Checked::new(Check::Own, Setup::default());
    assert_eq!(plane.arrive(&[Checked::packet(3, false)]), 0);
    // Roaming makes the adjacency anew.
    let setup = plane.0.setup;
    plane.0.writer.set_adjacency(1, adjacency(setup, THEIRS)).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(3, false)]), 0);
    // A daemon says that the address is behind this peer.
    plane.0.writer.set_route(0, "10.0.0.3/32".parse().unwrap(), 1).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(3, false)]), 1);
    plane.0.writer.set_sources(1, &Sources::Any).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(200, false)]), 1);
    assert_eq!(plane.dropped(), 2);
}

#[test]
fn a_new_adjacency_of_an_old_number_takes_anything() {
    let mut plane = Checked::new(Check::Listed, Setup::plain_gre());
    let setup = plane.0.setup;
    plane.0.writer.set_next_hop(1, None, false).unwrap();
    plane.0.writer.remove_adjacency(1).unwrap();
    assert!(plane.0.writer.set_sources(1, &Sources::Any).is_err());
    plane.0.writer.set_adjacency(1, adjacency(setup, THEIRS)).unwrap();
    plane.0.writer.set_next_hop(1, Some(1), false).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(3, false)]), 1);
}

#[test]
fn one_way_of_several_is_a_way_back() {
    let mut plane = Checked::new(Check::Own, Setup::default());
    let writer = &mut plane.0.writer;
    writer.set_next_hop_group(9, &[2, 1]).unwrap();
    writer.set_route(0, "10.0.0.3/32".parse().unwrap(), 9).unwrap();
    writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(3, false)]), 1);
    plane.0.writer.set_next_hop_group(9, &[2, 3]).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(3, false)]), 0);
    // One of them is a hub, which may stand in for an open peer.
    plane.0.writer.set_sources(1, &Sources::Open(Vec::new())).unwrap();
    plane.0.writer.commit();
    assert_eq!(plane.arrive(&[Checked::packet(3, false)]), 1);
    assert_eq!(plane.punts().into_iter().map(|(_, next_hop, _)| next_hop).collect::<Vec<_>>(), [None, Some(9)]);
}

/// An error of the router 10.0.0.`router` (fd00::`router`), for 10.1.0.1 about its packet to 10.0.0.`to`.
fn error(router: u8, to: u8, v6: bool) -> Vec<u8> {
    let mut about = Flow { udp: true, v6, source: to, destination: 1, ..Flow::default() }.packet(&payload(100));
    let (at, length) = if v6 { (8, 16) } else { (12, 4) };
    // What comes from there, turned around.
    about[at..at + 2 * length].rotate_left(length);
    let mut out = Vec::new();
    icmp::write_too_big(&IpPacket::parse(&about).unwrap(), &about, 1400, &mut out);
    assert_eq!(out[at + length - 1], to);
    out[at + length - 1] = router;
    out
}

#[test]
fn errors_of_routers_behind_a_peer_come_through() {
    for v6 in [false, true] {
        let mut plane = Checked::new(Check::Own, Setup::default());
        // 10.0.0.1 is the peer's; the router has an address that is routed elsewhere, even to another peer.
        assert_eq!(plane.arrive(&[error(77, 1, v6), error(3, 1, v6)]), 2);
        assert_eq!((plane.dropped(), plane.punts()), (0, vec![]));
        // About a packet to somebody else, and to whom the quoted packet is not from.
        assert_eq!(plane.arrive(&[error(77, 3, v6)]), 0);
        let mut other = error(77, 1, v6);
        other[if v6 { 39 } else { 19 }] = 8;
        assert_eq!(plane.arrive(&[other]), 0);
        // What is no error.
        let mut echo = error(77, 1, v6);
        echo[if v6 { 40 } else { 20 }] = if v6 { 128 } else { 8 };
        assert_eq!(plane.arrive(&[echo]), 0);
        assert_eq!(plane.dropped(), 3);
        assert_eq!(plane.punts().len(), 1);
    }
}
