//! Packet vectors: the units of work that the drivers pass in and get back.
//!
//! A vector is an arena of octets and a slice of small `#[repr(C)]` records that point into it, so that it can be a
//! NumPy array as well as a buffer of the driver.

use std::net::IpAddr;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use dsvpn_wire::ip::IpPacket;
use dsvpn_wire::virtio::VirtioNetHeader;

use crate::segment::Superpacket;

/// One packet (or GSO superpacket) read from the TUN.
///
/// 20 octets: as a NumPy array, `shape (n, 5)` of `uint32`, or a structured dtype.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PacketMeta {
    /// Where the IP packet begins in the arena.
    pub offset: u32,
    /// Octets of the IP packet.
    pub length: u32,
    /// What the TUN said about it, in host byte order. It is checked against the packet and never believed.
    pub virtio: VirtioNetHeader,
    /// Unused, zero.
    pub reserved: u16,
}

/// How a packet is wrapped on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// ESP in UDP (RFC 3948), from the NAT traversal port.
    Udp,
    /// ESP as IP protocol 50.
    Esp,
    /// ESP as IP protocol 50 in tunnel mode (RFC 4303 section 3.1.2): GRE has an IP header of its own between the two
    /// underlay addresses, inside ESP. Only adjacencies have it; to the underlay it is [`Encapsulation::Esp`].
    EspTunnel,
    /// Plain GRE as IP protocol 47.
    Gre,
}

/// Which socket a datagram came from, and so what its first octets mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DatagramKind {
    /// UDP 500: IKE without a marker.
    UdpIke,
    /// UDP 4500: ESP, IKE behind the non-ESP marker, or a keepalive (RFC 3948 section 2).
    UdpNat,
    /// IP protocol 50, beginning with the ESP header.
    Esp,
    /// IP protocol 47, beginning with the GRE header.
    Gre,
}

/// One datagram (or UDP_GRO run of datagrams) received from the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where the payload (behind UDP, or behind the IP header for raw sockets) begins in the arena.
    pub offset: u32,
    /// Octets of payload, all datagrams of a run together.
    pub length: u32,
    /// UDP_GRO stride: octets of every datagram of the run but the last, which may be shorter. 0: one datagram.
    pub segment_size: u32,
    /// The socket's kind.
    pub kind: DatagramKind,
    /// Destination address of the datagram (ours), if known.
    pub local: Option<IpAddr>,
    /// Destination port (ours), 0 for raw sockets. Only punts use it.
    pub local_port: u16,
    /// Source address of the datagram.
    pub remote: IpAddr,
    /// Source port, 0 for raw sockets.
    pub remote_port: u16,
}

/// Where a message goes on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which socket sends it: UDP 4500, raw 50 or raw 47.
    pub encapsulation: Encapsulation,
    /// Source address; `None` lets the kernel choose.
    pub local: Option<IpAddr>,
    /// Destination address, of the same family as `local`.
    pub remote: IpAddr,
    /// Destination port, 0 for raw sockets.
    pub remote_port: u16,
    /// Outer TOS or traffic class; the ECN bits are zero.
    pub tos: u8,
}

/// A run of datagrams for one endpoint, contiguous in the send arena: one `sendmsg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendMessage {
    /// Where it goes.
    pub endpoint: Endpoint,
    /// The adjacency it goes through.
    pub adjacency: u32,
    /// Where the first datagram begins in the send arena.
    pub offset: u32,
    /// Octets of all datagrams together.
    pub length: u32,
    /// Octets of each datagram but the last, which may be shorter: the value for `UDP_SEGMENT`.
    pub segment_size: u32,
    /// Number of datagrams; with 1, no `UDP_SEGMENT` is needed.
    pub segments: u32,
}

impl SendMessage {
    /// Where each datagram lies in the send arena.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (start, end) = (self.offset as usize, (self.offset + self.length) as usize);
        let size = (self.segment_size as usize).max(1);
        (start..end).step_by(size).map(move |at| at..(at + size).min(end))
    }
}

/// How much one message may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GsoLimits {
    /// Datagrams in one message: 64 for every kernel with UDP GSO, 1 turns GSO off.
    pub segments: u32,
    /// Octets in one message: at most 65,507 (UDP over IPv4).
    pub octets: u32,
}

impl GsoLimits {
    /// What every kernel with UDP GSO takes.
    pub const UDP: Self = Self { segments: 64, octets: 65_507 };
    /// One datagram per message.
    pub const OFF: Self = Self { segments: 1, octets: 65_507 };
}

/// What [`crate::Encap::run`] gives: messages that lie in the send arena that the caller passed in.
#[derive(Debug, Default)]
pub struct SendBatch {
    /// Messages in the order they must be sent.
    pub messages: Vec<SendMessage>,
    /// Octets of the arena in use.
    pub used: usize,
}

impl SendBatch {
    /// An empty batch with room for a usual vector.
    pub fn new() -> Self {
        Self { messages: Vec::with_capacity(256), used: 0 }
    }

    /// Forget the messages, for use after they were sent.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.used = 0;
    }
}

/// A piece of a TUN packet: octets `offset..offset + length` of the arena that decapsulation worked on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Slice {
    /// Where it begins in the arena.
    pub offset: u32,
    /// Its octets.
    pub length: u32,
}

/// One packet for the TUN: the concatenation of its header octets (if any) and of its slices.
///
/// The concatenation begins with the 10 octets of the virtio header. 32 octets, 8 `uint32`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TunPacket {
    /// Tunnel whose TUN takes it.
    pub tunnel: u32,
    /// Where its header octets begin in [`TunBatch::headers`].
    pub header_offset: u32,
    /// How many they are; 0 when the virtio header lies in the first slice.
    pub header_length: u32,
    /// Index of its first slice in [`TunBatch::slices`].
    pub slice_start: u32,
    /// Number of slices, at most [`TunBatch::MAX_SLICES`].
    pub slice_count: u32,
    /// Octets altogether, virtio header included.
    pub length: u32,
    /// Packets that were merged into it, 1 for a packet as it came.
    pub segments: u32,
    /// Unused, zero.
    pub reserved: u32,
}

/// What decapsulation gives: packets for the TUN devices, in order, by reference to the arena.
#[derive(Debug, Default)]
pub struct TunBatch {
    /// Octets that lie in no slice: headers without room in the arena, and ICMP errors that the data plane makes.
    pub headers: Vec<u8>,
    /// The slices of all packets.
    pub slices: Vec<Slice>,
    /// The packets in the order they must be written.
    pub packets: Vec<TunPacket>,
}

impl TunBatch {
    /// Packets that a vector has at most unless its datagrams are tiny: 64 messages of 128. What no vector needs is
    /// never touched.
    pub(crate) const USUAL: usize = 8192;

    /// Most slices that one packet has: far below IOV_MAX.
    pub const MAX_SLICES: usize = 256;

    /// An empty batch with room for a usual vector.
    pub fn new() -> Self {
        Self {
            headers: Vec::with_capacity(16 * 1024),
            slices: Vec::with_capacity(Self::USUAL),
            packets: Vec::with_capacity(Self::USUAL),
        }
    }

    /// Forget the packets, for use after they were written.
    pub fn clear(&mut self) {
        self.headers.clear();
        self.slices.clear();
        self.packets.clear();
    }

    /// The header octets of a packet (empty when they lie in its first slice).
    pub fn header(&self, packet: &TunPacket) -> &[u8] {
        let start = packet.header_offset as usize;
        self.headers.get(start..start + packet.header_length as usize).unwrap_or_default()
    }

    /// The slices of a packet.
    pub fn slices_of(&self, packet: &TunPacket) -> &[Slice] {
        let start = packet.slice_start as usize;
        self.slices.get(start..start + packet.slice_count as usize).unwrap_or_default()
    }

    /// Write a packet, virtio header first, behind what `out` holds.
    pub fn gather(&self, arena: &[u8], packet: &TunPacket, out: &mut Vec<u8>) {
        out.extend_from_slice(self.header(packet));
        for slice in self.slices_of(packet) {
            let start = slice.offset as usize;
            out.extend_from_slice(arena.get(start..start + slice.length as usize).unwrap_or_default());
        }
    }

    /// Give a packet as the single packets that were merged into it, each behind a virtio header of zeros: for a TUN
    /// that refuses superpackets. `scratch` is overwritten. A packet that is single is given as it is.
    pub fn split(&self, arena: &[u8], packet: &TunPacket, scratch: &mut Vec<u8>, mut give: impl FnMut(&[u8])) {
        scratch.clear();
        self.gather(arena, packet, scratch);
        let superpacket = || {
            let virtio = VirtioNetHeader::read(scratch)?;
            let octets = &scratch[VirtioNetHeader::LENGTH..];
            let parsed = IpPacket::parse(octets).ok()?;
            Superpacket::parse(octets, &parsed, &virtio).ok()
        };
        let Some(superpacket) = superpacket() else {
            give(scratch);
            return;
        };
        let mut single = vec![0; VirtioNetHeader::LENGTH + superpacket.largest()];
        for index in 0..superpacket.count() {
            let end = VirtioNetHeader::LENGTH + superpacket.length(index);
            superpacket.write(index, &mut single[VirtioNetHeader::LENGTH..end]);
            give(&single[..end]);
        }
    }

    /// Add a packet that lies wholly in `headers`: `octets` is an IP packet without a virtio header.
    pub(crate) fn push_octets(&mut self, tunnel: u32, octets: &[u8]) {
        let header_offset = self.headers.len() as u32;
        self.headers.extend_from_slice(&[0; VirtioNetHeader::LENGTH]);
        self.headers.extend_from_slice(octets);
        let length = (VirtioNetHeader::LENGTH + octets.len()) as u32;
        self.packets.push(TunPacket {
            tunnel,
            header_offset,
            header_length: length,
            slice_start: self.slices.len() as u32,
            slice_count: 0,
            length,
            segments: 1,
            reserved: 0,
        });
    }
}
