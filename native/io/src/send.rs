//! Sending: messages of several destinations in one system call, each cut into datagrams by the kernel.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use dsvpn_dataplane::{Counter, Counters, SendMessage};

use crate::control::{ControlBuffer, ControlWriter};
use crate::name::Name;
use crate::poll::wait_writable;
use crate::socket::Socket;
use crate::underlay::Underlay;

/// Messages in one system call.
const RING: usize = 64;

/// How long and how often a full socket is waited for within one batch before its datagrams are dropped.
const WAIT: Duration = Duration::from_millis(2);
const WAITS: u32 = 2;

/// One sendmsg: octets of an arena for one destination.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    remote: SocketAddr,
    local: Option<IpAddr>,
    tos: u8,
    offset: usize,
    length: usize,
    /// 0: one datagram.
    segment_size: u16,
    /// Datagrams in it.
    datagrams: u32,
}

/// The kernel's descriptions of the messages of one call, kept for reuse.
pub struct SendRing {
    /// Whose sockets it sends by.
    lane: usize,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<ControlBuffer>,
    outgoing: Vec<Outgoing>,
}

// SAFETY: the raw pointers in `headers` and `vectors` point into this same structure and into the arena of one call of
// `send_ring`; every use is preceded by `describe`, which writes them anew.
unsafe impl Send for SendRing {}

impl SendRing {
    pub fn new(lane: usize) -> Self {
        // SAFETY: mmsghdr is a plain C structure for which all zeroes is a valid value.
        let header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        Self {
            lane,
            headers: vec![header; RING],
            vectors: vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; RING],
            names: vec![Name::EMPTY; RING],
            controls: vec![ControlBuffer::EMPTY; RING],
            outgoing: Vec::with_capacity(RING),
        }
    }

    /// Send messages in their order. What cannot be sent is counted.
    pub fn send(&mut self, underlay: &Underlay, arena: &[u8], messages: &[SendMessage], counters: &Counters) {
        let mut rest = messages;
        while let Some(first) = rest.first() {
            let key = |message: &SendMessage| (message.endpoint.encapsulation, message.endpoint.remote.is_ipv6());
            let run = rest.iter().take_while(|message| key(message) == key(first)).count();
            let (now, later) = rest.split_at(run);
            rest = later;
            match underlay.socket_to(first.endpoint.encapsulation, &first.endpoint.remote, self.lane) {
                Some(socket) => self.send_run(socket, arena, now, counters),
                None => {
                    let datagrams = now.iter().map(|message| u64::from(message.segments)).sum();
                    counters.add(Counter::DropSendRefused, datagrams);
                }
            }
        }
    }

    /// Send octets that are no message of the forwarder: IKE and keepalives.
    pub fn send_datagram(
        &mut self,
        socket: &Socket,
        local: Option<IpAddr>,
        remote: SocketAddr,
        datagram: &[u8],
        counters: &Counters,
    ) {
        self.outgoing.clear();
        self.outgoing.push(Outgoing {
            remote,
            local,
            tos: 0,
            offset: 0,
            length: datagram.len(),
            segment_size: 0,
            datagrams: 1,
        });
        self.send_ring(socket, datagram, counters);
    }

    fn send_run(&mut self, socket: &Socket, arena: &[u8], messages: &[SendMessage], counters: &Counters) {
        self.outgoing.clear();
        for message in messages {
            let endpoint = &message.endpoint;
            let whole = Outgoing {
                remote: SocketAddr::new(endpoint.remote, endpoint.remote_port),
                local: endpoint.local,
                tos: endpoint.tos,
                offset: message.offset as usize,
                length: message.length as usize,
                segment_size: if message.segments > 1 { message.segment_size as u16 } else { 0 },
                datagrams: message.segments,
            };
            if whole.segment_size == 0 || socket.takes_gso() {
                self.outgoing.push(whole);
            } else {
                self.outgoing.extend(split(&whole));
            }
        }
        self.send_ring(socket, arena, counters);
    }

    /// Send what `outgoing` holds.
    fn send_ring(&mut self, socket: &Socket, arena: &[u8], counters: &Counters) {
        let mut waits = WAITS;
        let mut first = 0;
        while first < self.outgoing.len() {
            let count = self.describe(first, arena, socket.is_ipv6());
            let mut sent = 0;
            while sent < count {
                // SAFETY: headers sent..count were just described; the arena and this structure outlive the call.
                let result = unsafe {
                    libc::sendmmsg(
                        socket.as_raw_fd(),
                        self.headers.as_mut_ptr().add(sent),
                        (count - sent) as libc::c_uint,
                        libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                    )
                };
                if result > 0 {
                    if self.outgoing[first + sent].segment_size > 0 {
                        socket.note_gso_taken();
                    }
                    sent += result as usize;
                    continue;
                }
                let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
                let refused = self.outgoing[first + sent];
                match errno {
                    libc::EINTR => continue,
                    libc::EAGAIN | libc::ENOBUFS if waits > 0 => {
                        waits -= 1;
                        wait_writable(socket.as_raw_fd(), WAIT);
                        continue;
                    }
                    libc::EIO | libc::EINVAL | libc::EMSGSIZE if refused.segment_size > 0 => {
                        counters.add(Counter::GsoRefused, 1);
                        socket.note_gso_refused(errno);
                        // The same ciphertext again, datagram by datagram: no sequence number is used twice. The
                        // message is replaced by its pieces, and what is described behind it is described anew.
                        self.outgoing.splice(first + sent..=first + sent, split(&refused));
                        if !socket.takes_gso() {
                            self.split_from(first + sent);
                        }
                        break;
                    }
                    libc::EAGAIN | libc::ENOBUFS => {
                        counters.add(Counter::DropSendBusy, u64::from(refused.datagrams));
                    }
                    libc::EMSGSIZE => counters.add(Counter::DropSendTooBig, u64::from(refused.datagrams)),
                    _ => counters.add(Counter::DropSendRefused, u64::from(refused.datagrams)),
                }
                sent += 1;
            }
            first += sent;
        }
    }

    fn split_from(&mut self, start: usize) {
        let tail: Vec<Outgoing> = self.outgoing.drain(start..).collect();
        self.outgoing.extend(tail.iter().flat_map(split));
    }

    /// Describe messages from `first` on to the kernel. Gives how many: all that fit the ring.
    fn describe(&mut self, first: usize, arena: &[u8], ipv6: bool) -> usize {
        let count = (self.outgoing.len() - first).min(RING);
        for (index, outgoing) in self.outgoing[first..first + count].iter().enumerate() {
            let payload = &arena[outgoing.offset..outgoing.offset + outgoing.length];
            let (name, name_length) = Name::new(&outgoing.remote);
            self.names[index] = name;
            self.vectors[index] = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
            let mut control = ControlWriter::new(&mut self.controls[index]);
            if let Some(local) = outgoing.local {
                control.source(local);
            }
            if outgoing.tos != 0 {
                control.tos(ipv6, outgoing.tos);
            }
            if outgoing.segment_size != 0 {
                control.segment_size(outgoing.segment_size);
            }
            let control_length = control.len();
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = name_length;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = if control_length == 0 { ptr::null_mut() } else { self.controls[index].as_mut_ptr() };
            header.msg_controllen = control_length as _;
            header.msg_flags = 0;
        }
        count
    }
}

/// A message as its datagrams.
fn split(whole: &Outgoing) -> impl Iterator<Item = Outgoing> + use<> {
    let whole = *whole;
    let size = if whole.segment_size == 0 { whole.length.max(1) } else { usize::from(whole.segment_size) };
    (0..whole.length.max(1)).step_by(size).map(move |at| Outgoing {
        offset: whole.offset + at,
        length: size.min(whole.length - at.min(whole.length)),
        segment_size: 0,
        datagrams: 1,
        ..whole
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    use dsvpn_dataplane::{Encapsulation, Endpoint};

    use crate::underlay::UnderlayConfig;

    fn whole(length: usize, segment_size: u16) -> Outgoing {
        let remote = "127.0.0.1:9".parse().unwrap();
        Outgoing { remote, local: None, tos: 0, offset: 7, length, segment_size, datagrams: 0 }
    }

    #[test]
    fn pieces_cover_a_message() {
        for (length, size, expected) in [(10, 4, vec![4, 4, 2]), (8, 4, vec![4, 4]), (3, 4, vec![3]), (5, 0, vec![5])] {
            let pieces: Vec<Outgoing> = split(&whole(length, size)).collect();
            assert_eq!(pieces.iter().map(|piece| piece.length).collect::<Vec<_>>(), expected);
            assert_eq!(pieces.iter().map(|piece| piece.length).sum::<usize>(), length);
            assert_eq!(pieces[0].offset, 7);
            assert!(pieces.windows(2).all(|pair| pair[0].offset + pair[0].length == pair[1].offset));
            assert!(pieces.iter().all(|piece| piece.segment_size == 0 && piece.datagrams == 1));
        }
    }

    /// More messages than the ring holds, one of which the kernel refuses to cut: 65 datagrams or more than 65,507
    /// octets in one message are EINVAL or EMSGSIZE. Every datagram arrives once, and in order.
    #[test]
    fn a_refused_message_is_sent_again_in_pieces() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let to = receiver.local_addr().unwrap();
        // Ports that were free a moment ago.
        let ports: Vec<u16> = {
            let held: Vec<UdpSocket> = (0..2).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            held.iter().map(|socket| socket.local_addr().unwrap().port()).collect()
        };
        let config = UnderlayConfig {
            ike_port: ports[0],
            nat_port: ports[1],
            esp: false,
            gre: false,
            dont_fragment: true,
            udp_gso: true,
            ipv4: true,
            ipv6: false,
            device: 0,
        };
        let underlay = Underlay::open(&config, 1).unwrap();
        let arena: Vec<u8> = (0..70_000u32).map(|index| (index / 100) as u8).collect();
        let endpoint = Endpoint {
            encapsulation: Encapsulation::Udp,
            local: Some("127.0.0.1".parse().unwrap()),
            remote: to.ip(),
            remote_port: to.port(),
            tos: 0xb8,
        };
        let message = |offset, length, segment_size: u32, segments| SendMessage {
            endpoint,
            adjacency: 0,
            offset,
            length,
            segment_size,
            segments,
        };
        // 130 datagrams of 100 octets in one message are too many for any kernel; then 70 messages of one.
        let mut messages = vec![message(0, 300, 100, 3), message(300, 13_000, 100, 130)];
        messages.extend((0..70).map(|index| message(13_300 + index * 100, 100, 100, 1)));
        let counters = Counters::default();
        let mut ring = SendRing::new(0);
        ring.send(&underlay, &arena, &messages, &counters);
        let mut buffer = [0; 2000];
        for index in 0..203usize {
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!((length, buffer[0]), (100, index as u8), "datagram {index}");
        }
        assert_eq!(counters.get(Counter::GsoRefused), 1);
        assert_eq!(counters.get(Counter::DropSendTooBig) + counters.get(Counter::DropSendRefused), 0);
        assert!(underlay.sockets().iter().any(Socket::takes_gso), "one refusal is not a device without GSO");
    }
}
