//! The header that a TUN with IFF_VNET_HDR puts before every packet (`struct virtio_net_hdr`, 10 octets).

use bytemuck::{Pod, Zeroable};

/// `flags`: `csum_start` and `csum_offset` name a checksum that is yet to be completed.
pub const NEEDS_CSUM: u8 = 1;
/// `gso_type`: not a superpacket.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP datagrams of equal size (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type` bit: the TCP superpacket carries CWR on its first segment.
pub const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr` in host byte order, as a TUN uses it unless told otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct VirtioNetHeader {
    /// [`NEEDS_CSUM`] or 0.
    pub flags: u8,
    /// One of the `GSO_` values, possibly with [`GSO_ECN`].
    pub gso_type: u8,
    /// Octets of all headers; only a hint.
    pub hdr_len: u16,
    /// Payload octets of each segment.
    pub gso_size: u16,
    /// Where checksumming starts, from the start of the IP packet.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VirtioNetHeader {
    /// Octets on the descriptor.
    pub const LENGTH: usize = 10;

    /// Read it from the first octets of `octets`; `None` if there are too few.
    pub fn read(octets: &[u8]) -> Option<Self> {
        octets.get(..Self::LENGTH).map(bytemuck::pod_read_unaligned)
    }

    /// Its octets on the descriptor.
    pub fn to_octets(&self) -> [u8; Self::LENGTH] {
        let mut octets = [0; Self::LENGTH];
        octets.copy_from_slice(bytemuck::bytes_of(self));
        octets
    }
}
