//! ESP in tunnel mode: the IP header inside, and what is refused because of it.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::*;
use dsvpn_dataplane::*;

const OURS6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const THEIRS6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));

fn suites() -> [Suite; 3] {
    [Suite::Aes128Gcm16, Suite::ChaCha20Poly1305, "aes256-sha384".parse().unwrap()]
}

/// A data plane that has its peer at the other end of these addresses.
fn dataplane(suite: Suite, esn: bool, local: IpAddr, remote: IpAddr) -> Loop {
    let setup = Setup { suite: Some(suite), encapsulation: Encapsulation::EspTunnel, esn, ..Setup::default() };
    let mut dataplane = Loop::new(setup);
    readdress(&mut dataplane, local, remote);
    dataplane
}

fn readdress(dataplane: &mut Loop, local: IpAddr, remote: IpAddr) {
    let config = AdjacencyConfig { local: Some(local), ..adjacency(dataplane.setup, remote) };
    dataplane.writer.set_adjacency(1, config).unwrap();
    dataplane.writer.commit();
}

#[test]
fn packets_go_there_and_are_taken_from_there_alone() {
    for (suite, esn) in suites().into_iter().flat_map(|suite| [(suite, false), (suite, true)]) {
        for (local, remote) in [(OURS, THEIRS), (OURS6, THEIRS6)] {
            let mut dataplane = dataplane(suite, esn, local, remote);
            let packets: Vec<_> = (0..40)
                .map(|length| Flow { v6: length % 2 == 1, ..Flow::default() }.packet(&payload(length)))
                .collect();
            let (datagrams, _) = dataplane.encap(&packets.iter().cloned().map(single).collect::<Vec<_>>());
            assert_eq!(datagrams.len(), packets.len());
            // From us to the peer is not from the peer to us.
            assert!(dataplane.decap_from(&datagrams, DatagramKind::Esp, remote, 0).is_empty());
            assert_eq!(dataplane.count(Counter::DropTunnelHeader), 40);
            // The peer, whose addresses are the other way round, takes them.
            let mut peer = self::dataplane(suite, esn, remote, local);
            peer.decap.set_config(DecapConfig { coalesce_tcp: false, coalesce_udp: false, verify_checksums: false });
            let received = peer.decap_from(&datagrams, DatagramKind::Esp, local, 0);
            assert_eq!(received.into_iter().map(|(_, octets)| octets).collect::<Vec<_>>(), packets);
            // From elsewhere too: what stands inside counts (RFC 4301 section 5.2). Nobody has moved.
            let (datagrams, _) = dataplane.encap(&[single(packets[0].clone())]);
            assert_eq!(peer.decap_from(&datagrams, DatagramKind::Esp, STRANGER, 0).len(), 1);
            assert!(peer.shared.punts.take(9).is_empty());
        }
    }
}

#[test]
fn an_sa_takes_its_own_mode_alone() {
    let packet = single(Flow::default().packet(&payload(10)));
    let mut peer = dataplane(Suite::Aes128Gcm16, false, THEIRS, OURS);
    let (in_tunnel_mode, _) = dataplane(Suite::Aes128Gcm16, false, OURS, THEIRS).encap(std::slice::from_ref(&packet));
    let mut transport = Loop::new(Setup { encapsulation: Encapsulation::Esp, ..Setup::default() });
    let (in_transport_mode, _) = transport.encap(&[packet]);
    assert_eq!(in_tunnel_mode[0].len(), in_transport_mode[0].len() + 20);
    assert!(peer.decap_from(&in_transport_mode, DatagramKind::Esp, OURS, 0).is_empty());
    assert_eq!(peer.count(Counter::DropWrongNextHeader), 1);
    assert!(transport.decap(&in_tunnel_mode).is_empty());
    assert_eq!(transport.count(Counter::DropWrongNextHeader), 1);
}

#[test]
fn the_inner_dscp_stands_on_both_headers_and_nhrp_goes_the_same_way() {
    let mut dataplane = dataplane(Suite::Aes128Gcm16, false, OURS, THEIRS);
    let keymat: Vec<u8> = (1..=20).collect();
    let cipher = Cipher::new(Suite::Aes128Gcm16, &keymat).unwrap();
    let open = |datagram: &[u8]| {
        let mut sealed = datagram[16..].to_vec();
        let length = cipher.open(datagram[8..16].try_into().unwrap(), &datagram[..8], &mut sealed).unwrap();
        sealed.truncate(length);
        sealed
    };
    let (datagrams, _) = dataplane.encap(&[single(Flow { tos: 0xbb, ..Flow::default() }.packet(&payload(10)))]);
    let plaintext = open(&datagrams[0]);
    // DSCP without ECN; 20 + 8 GRE + 50; DF; GRE; and no octet of it adds up to anything but a right checksum.
    assert_eq!(plaintext[..10], [0x45, 0xb8, 0, 78, 0, 0, 0x40, 0, 64, 47]);
    assert_eq!(plain_checksum(&[&plaintext[..20]]), 0);
    assert_eq!(plaintext[12..20], [192, 0, 2, 1, 192, 0, 2, 2]);
    assert_eq!(plaintext.last(), Some(&4));

    let mut out = Vec::new();
    let message = encap_nhrp(&dataplane.reader.enter().unwrap(), 1, &[1; 20], &mut out).unwrap();
    assert_eq!((message.endpoint.tos, message.endpoint.encapsulation), (0xc0, Encapsulation::Esp));
    let plaintext = open(&out);
    assert_eq!((plaintext[1], plaintext[20..24].to_vec()), (0xc0, vec![0x20, 0, 0x20, 0x01]));
    // The peer hands it on.
    let mut peer = self::dataplane(Suite::Aes128Gcm16, false, THEIRS, OURS);
    peer.decap_from(&[out], DatagramKind::Esp, OURS, 0);
    assert_eq!(peer.shared.punts.take(9).first().map(|punt| punt.data.clone()), Some(vec![1; 20]));
}

#[test]
fn tunnel_mode_needs_an_address_and_no_port() {
    let mut dataplane = dataplane(Suite::Aes128Gcm16, false, OURS, THEIRS);
    let fine = adjacency(dataplane.setup, THEIRS);
    let error = dataplane.writer.set_adjacency(1, AdjacencyConfig { local: None, ..fine }).unwrap_err();
    assert_eq!(error.to_string(), "local: esp-tunnel needs our underlay address, which stands inside its packets");
    assert!(dataplane.writer.set_adjacency(1, AdjacencyConfig { remote_port: 4500, ..fine }).is_err());
    assert!(dataplane.writer.set_adjacency(1, AdjacencyConfig { remote: THEIRS6, ..fine }).is_err());
}
