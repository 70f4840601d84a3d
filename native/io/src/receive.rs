//! Receiving: several messages in one system call, each one datagram or a run that UDP_GRO joined.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::ptr;

use dsvpn_dataplane::{Counter, Counters, Datagram, DatagramKind};

use crate::control::{self, ControlBuffer};
use crate::name::Name;
use crate::socket::{Socket, SocketKind};

/// Most messages in one system call.
const RING: usize = 64;
/// Fewest: room for a few full UDP_GRO runs.
const MIN_RING: usize = 4;

/// Octets of one buffer: the largest datagram.
const BUFFER: usize = 65_536;

/// Distance of the buffers. Not a multiple of 64 KiB, so that the heads of all buffers do not fall into one set of
/// the caches.
const STRIDE: usize = BUFFER + 1_600;

/// Octets that one batch is meant to bring: it stays in the second level cache.
const BATCH: usize = 192 * 1024;

/// Octets of the arena that [`ReceiveRing::receive`] takes. Only what arrives is ever touched.
pub const RECEIVE_ARENA: usize = RING * STRIDE;

/// The kernel's descriptions of the buffers, kept for reuse.
pub struct ReceiveRing {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<ControlBuffer>,
    /// Buffers to offer next: as many as bring about [`BATCH`] octets if messages stay as large as they were.
    offered: usize,
}

// SAFETY: the raw pointers in `headers` and `vectors` point into this same structure and into the arena of one call of
// `receive`, which writes them anew before each use.
unsafe impl Send for ReceiveRing {}

impl Default for ReceiveRing {
    fn default() -> Self {
        Self::new()
    }
}

/// What one call brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Messages received.
    pub messages: usize,
    /// Whether the socket has no more.
    pub drained: bool,
}

impl ReceiveRing {
    pub fn new() -> Self {
        // SAFETY: mmsghdr is a plain C structure for which all zeroes is a valid value.
        let header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        Self {
            headers: vec![header; RING],
            vectors: vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; RING],
            names: vec![Name::EMPTY; RING],
            controls: vec![ControlBuffer::EMPTY; RING],
            offered: MIN_RING,
        }
    }

    /// Receive what waits, at most one batch. `arena` has [`RECEIVE_ARENA`] octets.
    pub fn receive(
        &mut self,
        socket: &Socket,
        arena: &mut [u8],
        datagrams: &mut Vec<Datagram>,
        counters: &Counters,
    ) -> io::Result<Receipt> {
        datagrams.clear();
        let offered = self.offered.min(arena.len() / STRIDE);
        for (index, buffer) in arena.chunks_exact_mut(STRIDE).take(offered).enumerate() {
            self.vectors[index] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: BUFFER };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<Name>() as libc::socklen_t;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].as_mut_ptr();
            header.msg_controllen = ControlBuffer::SIZE as _;
            header.msg_flags = 0;
        }
        let messages = loop {
            // SAFETY: `offered` headers were just described; each names buffers that are live, distinct and borrowed
            // exclusively through `self` and `arena`.
            let result = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    offered as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                )
            };
            if result >= 0 {
                break result as usize;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(Receipt { messages: 0, drained: true }),
                _ => return Err(error),
            }
        };
        let mut octets = 0;
        for index in 0..messages {
            let length = self.headers[index].msg_len as usize;
            octets += length;
            let header = &self.headers[index].msg_hdr;
            if header.msg_flags & libc::MSG_TRUNC != 0 {
                counters.add(Counter::DropTruncated, 1);
                continue;
            }
            let control = control::parse(header);
            let offset = index * STRIDE;
            let found = self.names[index]
                .address()
                .and_then(|remote| datagram(socket, arena, offset, length, control, remote.ip(), remote.port()));
            match found {
                Some(datagram) => datagrams.push(datagram),
                None => {
                    // The forwarder, which counts what it is given, never sees it.
                    counters.add(Counter::UnderlayRxPackets, 1);
                    counters.add(Counter::DropMalformedDatagram, 1);
                }
            }
        }
        let mean = (octets / messages.max(1)).max(1);
        self.offered = (BATCH / mean).clamp(MIN_RING, RING);
        Ok(Receipt { messages, drained: messages < offered })
    }
}

fn datagram(
    socket: &Socket,
    arena: &[u8],
    offset: usize,
    length: usize,
    control: control::Received,
    remote: IpAddr,
    remote_port: u16,
) -> Option<Datagram> {
    let kind = match socket.kind() {
        SocketKind::Ike => DatagramKind::UdpIke,
        SocketKind::Nat => DatagramKind::UdpNat,
        SocketKind::Esp => DatagramKind::Esp,
        SocketKind::Gre => DatagramKind::Gre,
    };
    let (mut start, mut local) = (offset, control.local);
    if !socket.kind().is_udp() && !socket.is_ipv6() {
        // A raw IPv4 socket gives the IP header too.
        let packet = &arena[offset..offset + length];
        let header = usize::from(packet.first()? & 0x0f) * 4;
        if header < 20 || header > length {
            return None;
        }
        let destination: [u8; 4] = packet[16..20].try_into().ok()?;
        local = Some(IpAddr::V4(Ipv4Addr::from(destination)));
        start += header;
    }
    Some(Datagram {
        offset: start as u32,
        length: (offset + length - start) as u32,
        segment_size: u32::from(control.segment_size),
        kind,
        local,
        local_port: socket.port(),
        remote,
        // A raw IPv6 socket writes its protocol where the port would be.
        remote_port: if socket.kind().is_udp() { remote_port } else { 0 },
    })
}
