//! Headers of the packets that the data plane handles: reading with every offset checked, and writing.
//!
//! Pure parsing, no unsafe code, no panic for any input.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod checksum;
pub mod esp;
pub mod gre;
pub mod icmp;
pub mod ip;
pub mod tcp;
pub mod udp;
pub mod virtio;

/// Two octets in network order at `at`, 0 beyond the end.
#[inline]
pub fn read_u16(octets: &[u8], at: usize) -> u16 {
    octets.get(at..at + 2).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]))
}

/// Four octets in network order at `at`, 0 beyond the end.
#[inline]
pub fn read_u32(octets: &[u8], at: usize) -> u32 {
    octets.get(at..at + 4).map_or(0, |field| u32::from_be_bytes([field[0], field[1], field[2], field[3]]))
}

/// Put octets at `at`; what would lie beyond the end is not written at all.
#[inline]
pub fn write(octets: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = octets.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}
