//! In steady state, no packet costs a heap allocation from descriptor to descriptor.
//!
//! Needs root: makes a network namespace with a TUN device whose packets go over loopback back to the same gateway.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use dsvpn_dataplane::{AdjacencyConfig, Encapsulation, TunnelConfig};
use dsvpn_io::{Core, Engine, UnderlayConfig};

const ADJACENCY: u32 = 1;
const MTU: u32 = 1400;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_ascii_whitespace()).status().expect("iproute2 is there");
    assert!(status.success(), "ip {arguments}");
}

/// A namespace for this thread and the processes that it starts. False: not root.
fn enter_namespace() -> bool {
    // SAFETY: unshare takes no pointer and concerns this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        let error = io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        return false;
    }
    ip("link set lo up");
    true
}

/// An engine whose one peer is itself, so that every packet goes both ways.
fn engine(encapsulation: Encapsulation, udp_gso: bool, lanes: usize) -> Engine {
    let core = Arc::new(Core::default());
    let engine = Engine::with_lanes(Arc::clone(&core), lanes).unwrap();
    engine
        .open_underlay(UnderlayConfig {
            ike_port: 500,
            nat_port: 4500,
            esp: true,
            gre: true,
            dont_fragment: true,
            udp_gso,
            ipv4: true,
            ipv6: false,
            device: 0,
        })
        .unwrap();
    let config = TunnelConfig {
        key: Some(42),
        protected: encapsulation != Encapsulation::Gre,
        redirect: false,
        mss_clamp: true,
        copy_dscp: true,
    };
    let tunnel = engine.add_tunnel("tunnel0", config).unwrap();
    let spi = core.allocate_spi(0).unwrap();
    let mut writer = core.writer();
    let adjacency = AdjacencyConfig {
        tunnel,
        encapsulation,
        local: Some(Ipv4Addr::LOCALHOST.into()),
        remote: Ipv4Addr::LOCALHOST.into(),
        remote_port: if encapsulation == Encapsulation::Udp { 4500 } else { 0 },
        mtu: MTU,
    };
    writer.set_adjacency(ADJACENCY, adjacency).unwrap();
    writer.set_next_hop(1, Some(ADJACENCY), false).unwrap();
    writer.set_route(tunnel, "10.9.0.0/16".parse().unwrap(), 1).unwrap();
    writer.set_route(tunnel, "fd09::/64".parse().unwrap(), 1).unwrap();
    if encapsulation != Encapsulation::Gre {
        let (suite, keymat) = ("aes128gcm16".parse().unwrap(), [7; 20]);
        writer.add_inbound_sa(spi, suite, &keymat, &[ADJACENCY], true, 1024).unwrap();
        writer.set_outbound_sa(spi, suite, &keymat, &[ADJACENCY], true).unwrap();
    }
    writer.commit();
    drop(writer);
    ip(&format!("link set tunnel0 mtu {MTU} up"));
    ip("address add 10.9.0.1/24 dev tunnel0");
    ip("address add fd09::1/64 dev tunnel0 nodad");
    engine
}

/// A socket whose datagrams go into the tunnel; with a segment size, as superpackets.
fn sender(remote: SocketAddr, segment_size: Option<u16>) -> UdpSocket {
    let local: SocketAddr =
        if remote.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(remote).unwrap();
    if let Some(size) = segment_size {
        let size = libc::c_int::from(size);
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option value is one valid int of the length given.
        let result = unsafe {
            let value = (&raw const size).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, length)
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
    socket
}

fn steady(encapsulation: Encapsulation, udp_gso: bool, lanes: usize) {
    let engine = engine(encapsulation, udp_gso, lanes);
    let descriptors = engine.descriptors();
    let (v4, v6): (SocketAddr, SocketAddr) = ("10.9.0.2:9".parse().unwrap(), "[fd09::2]:9".parse().unwrap());
    let senders = [sender(v4, None), sender(v4, Some(1300)), sender(v6, None), sender(v6, Some(1200))];
    let payload = vec![9u8; 30_000];
    let round = || {
        for (index, sender) in senders.iter().enumerate() {
            // A small and a full one, or two superpackets.
            let lengths = if index % 2 == 0 { [40, 1300] } else { [30_000, 12_345] };
            for length in lengths {
                sender.send(&payload[..length]).unwrap();
            }
        }
        for _ in 0..3 {
            for (descriptor, _) in &descriptors {
                engine.drain(*descriptor, 8).unwrap();
            }
        }
    };
    // What is needed once is there after a few rounds.
    for _ in 0..20 {
        round();
    }
    let before = engine_counters(&engine);
    let measured = allocation_counter::measure(|| {
        for _ in 0..100 {
            round();
        }
    });
    let after = engine_counters(&engine);
    let moved = |name: &str| after[name] - before[name];
    assert!(moved("underlay_rx_packets") >= 100 * 70, "{after:?}");
    assert!(moved("tun_tx_packets") >= 100 * 4, "{after:?}");
    if encapsulation == Encapsulation::Udp && udp_gso {
        assert!(moved("underlay_tx_messages") < moved("underlay_tx_packets"), "{after:?}");
        assert!(moved("coalesced") > 0, "{after:?}");
    }
    let drops: Vec<_> = after.iter().filter(|(name, count)| name.starts_with("drop_") && **count > 0).collect();
    // The kernel's own IPv6 packets, as the device comes up, go nowhere.
    assert!(drops.iter().all(|(name, _)| ["drop_no_multicast", "drop_no_route"].contains(name)), "{drops:?}");
    assert_eq!(measured.count_total, 0, "{encapsulation:?}, GSO {udp_gso}: {measured:?}");
}

fn engine_counters(engine: &Engine) -> std::collections::BTreeMap<&'static str, u64> {
    engine.core().shared.counters.iter().collect()
}

#[test]
fn forwarding_over_real_descriptors_allocates_nothing() {
    if !enter_namespace() {
        // Not through the macros, whose output the test runner keeps to itself when a test passes.
        let _ = writeln!(io::stderr(), "NOT DONE: this test needs root, for a network namespace and a TUN device");
        return;
    }
    dsvpn_io::checksum::install();
    for (encapsulation, udp_gso, lanes) in [
        (Encapsulation::Udp, true, 1),
        (Encapsulation::Udp, true, 4),
        (Encapsulation::Udp, false, 1),
        (Encapsulation::Esp, false, 1),
        (Encapsulation::Gre, false, 1),
    ] {
        steady(encapsulation, udp_gso, lanes);
    }
    // The measurement itself works.
    assert_eq!(allocation_counter::measure(|| drop(std::hint::black_box(Box::new(7u64)))).count_total, 1);
}
