//! The set of sockets that one gateway has on the underlay.

use std::net::IpAddr;

use dsvpn_dataplane::Encapsulation;

use crate::error::SystemError;
use crate::gso_selftest::{self, Outcome};
use crate::socket::{Gso, Socket, SocketKind};
use crate::steering::Steering;

/// What [`Underlay::open`] binds.
#[derive(Clone, Copy, Debug)]
pub struct UnderlayConfig {
    pub ike_port: u16,
    pub nat_port: u16,
    pub esp: bool,
    pub gre: bool,
    pub dont_fragment: bool,
    /// Let the kernel cut superdatagrams (UDP_SEGMENT) where it can.
    pub udp_gso: bool,
    pub ipv4: bool,
    pub ipv6: bool,
    /// Index of the device that all sockets are bound to (a VRF); 0 for none.
    pub device: u32,
}

/// The sockets: one per kind and address family, but for port 4500 as many as there are lanes.
///
/// Raw sockets of one protocol would each get a copy of every packet: there is one, whatever the lanes.
#[derive(Debug, Default)]
pub struct Underlay {
    sockets: Vec<Socket>,
    /// How those that share a port are chosen among: of IPv4, of IPv6.
    steering: Vec<(bool, Steering)>,
    self_test: Option<Outcome>,
}

impl Underlay {
    /// Bind everything that is asked for, or nothing. A kernel without IPv6 gets IPv4 alone.
    pub fn open(config: &UnderlayConfig, lanes: usize) -> Result<Self, SystemError> {
        let kinds = [
            (true, SocketKind::Ike, config.ike_port),
            (true, SocketKind::Nat, config.nat_port),
            (config.esp, SocketKind::Esp, 0),
            (config.gre, SocketKind::Gre, 0),
        ];
        let mut sockets = Vec::new();
        let mut steering = Vec::new();
        for (wanted, ipv6) in [(config.ipv4, false), (config.ipv6, true)] {
            for (_, kind, port) in kinds.iter().filter(|(asked, ..)| wanted && *asked) {
                let opened = if *kind == SocketKind::Nat && lanes > 1 {
                    Socket::open_shared(*kind, ipv6, *port, config.dont_fragment, config.device, lanes)
                } else {
                    Socket::open(*kind, ipv6, *port, config.dont_fragment, config.device).map(|socket| vec![socket])
                };
                match opened {
                    Ok(opened) => {
                        if *kind == SocketKind::Nat {
                            steering.push((ipv6, Steering::attach(&opened)));
                        }
                        sockets.extend(opened);
                    }
                    Err(error)
                        if ipv6 && config.ipv4 && matches!(error.errno(), libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) =>
                    {
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if !config.udp_gso {
            sockets.iter().for_each(|socket: &Socket| socket.disable_gso(Gso::Configured));
        }
        let mut underlay = Self { sockets, steering, self_test: None };
        underlay.test_gso(config);
        Ok(underlay)
    }

    /// See over loopback whether the kernel cuts as it should; if not, no socket offers it anything to cut.
    fn test_gso(&mut self, config: &UnderlayConfig) {
        if !self.sockets.iter().any(Socket::takes_gso) {
            return;
        }
        let outcome = gso_selftest::run(config.ipv4, config.ipv6);
        if matches!(outcome, Outcome::Failed(_)) {
            for socket in &self.sockets {
                socket.disable_gso(Gso::SelfTest);
            }
        }
        self.self_test = Some(outcome);
    }

    /// What the self-test of UDP GSO found; `None` if nothing asked for GSO.
    pub fn self_test(&self) -> Option<&Outcome> {
        self.self_test.as_ref()
    }

    /// How sockets that share a port are chosen among, for each family (whether it is IPv6).
    pub fn steering(&self) -> &[(bool, Steering)] {
        &self.steering
    }

    pub fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// The socket of a kind and a family, if it is open: a lane's where there are several.
    pub fn socket(&self, kind: SocketKind, ipv6: bool, lane: usize) -> Option<&Socket> {
        let mut found = self.sockets.iter().filter(|socket| socket.kind() == kind && socket.is_ipv6() == ipv6);
        let first = found.next()?;
        if lane == 0 { Some(first) } else { found.find(|socket| socket.lane() == lane).or(Some(first)) }
    }

    /// The socket by which a lane sends an encapsulation to an address.
    pub fn socket_to(&self, encapsulation: Encapsulation, remote: &IpAddr, lane: usize) -> Option<&Socket> {
        let kind = match encapsulation {
            Encapsulation::Udp => SocketKind::Nat,
            Encapsulation::Esp | Encapsulation::EspTunnel => SocketKind::Esp,
            Encapsulation::Gre => SocketKind::Gre,
        };
        self.socket(kind, remote.is_ipv6(), lane)
    }
}
