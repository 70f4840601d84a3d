//! Which offloads run, for people, and what the kernel dropped before the data plane could see it.

use std::fs;

use crate::descriptors::Descriptors;
use crate::gso_selftest::Outcome;
use crate::socket::{Gso, Socket, SocketKind};
use crate::steering::Steering;

/// Every offload by name and how it stands, in the order in which they are shown.
pub fn offloads(descriptors: &Descriptors) -> Vec<(String, String)> {
    let underlay = descriptors.underlay();
    let mut found = Vec::new();
    let nat: Vec<&Socket> = underlay.sockets().iter().filter(|socket| socket.kind() == SocketKind::Nat).collect();
    for (version, ipv6) in [("IPv4", false), ("IPv6", true)] {
        // Sockets that share a port learn by themselves: the first that is off tells for all.
        let gso: Vec<Gso> = nat.iter().filter(|socket| socket.is_ipv6() == ipv6).map(|socket| socket.gso()).collect();
        if let Some(shown) = gso.iter().find(|gso| **gso != Gso::On).or(gso.first()) {
            found.push((format!("UDP GSO, {version}"), shown.text().to_owned()));
        }
    }
    if !nat.is_empty() {
        let all = nat.iter().all(|socket| socket.gro());
        found.push((String::from("UDP GRO"), if all { "on" } else { "off: this kernel has none" }.to_owned()));
    }
    for (ipv6, steering) in underlay.steering() {
        let version = if *ipv6 { "IPv6" } else { "IPv4" };
        let shown = match steering {
            Steering::OneSocket => continue,
            Steering::Spi => String::from("on"),
            Steering::Hash(why) => format!("off: the kernel refuses the filter ({why})"),
        };
        found.push((format!("choice of the socket by SPI, {version}"), shown));
    }
    let self_test = match underlay.self_test() {
        Some(Outcome::Passed) => String::from("passed"),
        Some(Outcome::Failed(why)) => format!("failed: {why}"),
        Some(Outcome::Unable(why)) => format!("not done: {why}"),
        None => String::from("not done: UDP GSO is off"),
    };
    found.push((String::from("UDP GSO self-test"), self_test));
    for (_, tun) in descriptors.tuns() {
        found.push((format!("device {}", tun.name()), tun.offloads()));
        if let Some(why) = tun.one_queue() {
            found
                .push((format!("queues of {}", tun.name()), format!("off: the kernel gives no more than one ({why})")));
        } else if tun.queues() > 1 {
            found.push((format!("queues of {}", tun.name()), tun.queues().to_string()));
        }
    }
    found
}

/// What the kernel dropped at the data plane's descriptors, by name, since they were opened.
///
/// - `drop_socket_queue`: datagrams for which a socket's receive buffer had no room, or with a wrong checksum.
/// - `drop_tun_queue`: packets that were routed to a TUN device faster than it was read, or while it was down.
/// - `drop_tun_backlog`: packets that were written to a TUN device and that the host's input queue had no room for.
pub fn kernel_drops(descriptors: &Descriptors) -> [(&'static str, u64); 3] {
    let socket_queue = descriptors.underlay().sockets().iter().map(Socket::kernel_drops).sum();
    // Of the network namespace that this thread is in, as the devices are.
    let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let (mut tun_queue, mut tun_backlog) = (0, 0);
    for (_, tun) in descriptors.tuns() {
        if let Some((received, transmitted)) = device_drops(&devices, tun.name()) {
            tun_backlog += received;
            tun_queue += transmitted;
        }
    }
    [("drop_socket_queue", socket_queue), ("drop_tun_queue", tun_queue), ("drop_tun_backlog", tun_backlog)]
}

/// Dropped on receive and on transmit, of one device in the text of /proc/net/dev.
fn device_drops(devices: &str, name: &str) -> Option<(u64, u64)> {
    let fields = devices.lines().find_map(|line| {
        let (device, fields) = line.split_once(':')?;
        (device.trim() == name).then_some(fields)
    })?;
    let mut fields = fields.split_ascii_whitespace();
    let received = fields.nth(3)?.parse().ok()?;
    let transmitted = fields.nth(7)?.parse().ok()?;
    Some((received, transmitted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drops_of_a_device_are_found() {
        let text = "Inter-|   Receive                            |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo\n\
             tun10:     1       2    3    4    5     6          7         8        9      10   11   12   13 14 15 16\n  \
             tun1: 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36\n";
        assert_eq!(device_drops(text, "tun1"), Some((24, 32)));
        assert_eq!(device_drops(text, "tun10"), Some((4, 12)));
        assert_eq!(device_drops(text, "un1"), None);
        assert!(device_drops(&fs::read_to_string("/proc/thread-self/net/dev").unwrap(), "lo").is_some());
    }
}
