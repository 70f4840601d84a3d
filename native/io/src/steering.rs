//! Which of the sockets that share a port gets a datagram: the one that its SPI names.
//!
//! By itself the kernel chooses by the hash of both addresses and ports, which are the same for all SAs of a peer, and others
//! when a NAT box gives the peer another port. A filter on the group (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5) chooses by what
//! inbound SPIs carry: their lane, so that SAs of one peer are opened by several workers, and each stays with its worker.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use dsvpn_dataplane::SLOT_BITS;

use crate::socket::Socket;

/// Who chooses.
#[derive(Debug)]
pub enum Steering {
    /// There is nothing to choose.
    OneSocket,
    /// Our filter.
    Spi,
    /// The kernel's hash of addresses and ports: it refused the filter.
    Hash(io::Error),
}

impl Steering {
    /// Put the filter on the group that these sockets are, in the order in which they were bound.
    pub fn attach(sockets: &[Socket]) -> Self {
        let [first, _, ..] = sockets else { return Self::OneSocket };
        match attach(first, &filter(sockets.len() as u32)) {
            Ok(()) => Self::Spi,
            Err(error) => Self::Hash(error),
        }
    }
}

const fn instruction(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// `dsvpn_dataplane::spi_lane` of the datagram's first word, which is the SPI (RFC 3948 section 2.1).
///
/// The filter sees the datagram behind its UDP header. Where it reads beyond the end, as of a NAT keepalive, it ends with
/// 0; and the non-ESP marker of IKE, as a number, is 0. So the first socket gets both.
fn filter(lanes: u32) -> [libc::sock_filter; 4] {
    [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, (1 << SLOT_BITS) - 1),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, lanes),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ]
}

fn attach(socket: &Socket, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_ptr().cast_mut() };
    let length = mem::size_of_val(&program) as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    // SAFETY: the option value is one valid sock_fprog of the length given, whose instructions the kernel reads and copies.
    if unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const program).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::SocketKind;
    use dsvpn_dataplane::spi_lane;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

    /// A port that nobody uses, of either family.
    fn free_port() -> u16 {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
    }

    /// What a socket has got.
    fn received(socket: &Socket) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        loop {
            let mut octets = vec![0; 65536];
            // SAFETY: the kernel writes at most that many octets to the vector.
            let length = unsafe { libc::recv(socket.as_raw_fd(), octets.as_mut_ptr().cast(), octets.len(), 0) };
            if length < 0 {
                assert_eq!(io::Error::last_os_error().kind(), io::ErrorKind::WouldBlock);
                return found;
            }
            octets.truncate(length as usize);
            found.push(octets);
        }
    }

    #[test]
    fn a_datagram_comes_to_the_socket_that_its_spi_names() {
        for (ipv6, home) in [(false, IpAddr::V4(Ipv4Addr::LOCALHOST)), (true, IpAddr::V6(Ipv6Addr::LOCALHOST))] {
            for lanes in [2, 3, 8] {
                let port = free_port();
                let sockets = Socket::open_shared(SocketKind::Nat, ipv6, port, true, 0, lanes).unwrap();
                assert!(matches!(Steering::attach(&sockets), Steering::Spi));
                // Of every sender, whatever his port: a hash would give some of them another socket.
                let senders: Vec<UdpSocket> = (0..16).map(|_| UdpSocket::bind((home, 0)).unwrap()).collect();
                for sender in &senders {
                    sender.connect((home, port)).unwrap();
                }
                let mut expected = vec![0; lanes];
                for (number, sender) in senders.iter().enumerate() {
                    for spi in [256, 0x0010_0000, 0x0010_0001, 0xfff0_0002, 0x7ff0_0003, 0xabcd_ef01, u32::MAX] {
                        let spi = spi ^ number as u32;
                        for length in [8, 100, 1400] {
                            let mut datagram = vec![0xee; length];
                            datagram[..4].copy_from_slice(&spi.to_be_bytes());
                            sender.send(&datagram).unwrap();
                            expected[spi_lane(spi, lanes)] += 1;
                        }
                    }
                    // IKE, keepalives, and what strangers may send.
                    let hostile: [&[u8]; 8] =
                        [&[0, 0, 0, 0, 7, 7, 7, 7], &[0, 0, 0, 0], &[0xff], &[], &[9], &[9, 9], &[9, 9, 9], &[0, 0, 0]];
                    for datagram in hostile {
                        sender.send(datagram).unwrap();
                        expected[0] += 1;
                    }
                }
                assert!(expected.iter().all(|count| *count > 0), "{lanes} lanes: {expected:?}");
                let mut got = Vec::new();
                for (lane, socket) in sockets.iter().enumerate() {
                    let datagrams = received(socket);
                    for datagram in datagrams.iter().filter(|datagram| datagram.len() >= 8) {
                        let spi = u32::from_be_bytes(datagram[..4].try_into().unwrap());
                        assert_eq!(spi_lane(spi, lanes), lane, "SPI {spi:#x}");
                    }
                    got.push(datagrams.len());
                }
                assert_eq!(got, expected, "{lanes} lanes over {home}");
            }
        }
    }

    #[test]
    fn one_socket_has_nothing_to_choose_and_others_than_udp_are_refused() {
        let port = free_port();
        let one = Socket::open(SocketKind::Nat, false, port, true, 0).unwrap();
        assert!(matches!(Steering::attach(std::slice::from_ref(&one)), Steering::OneSocket));
        // A socket that shares nothing has no group.
        let other = Socket::open(SocketKind::Nat, false, free_port(), true, 0).unwrap();
        let Steering::Hash(error) = Steering::attach(&[one, other]) else { panic!("a group of strangers") };
        assert!(error.raw_os_error().is_some());
    }
}
