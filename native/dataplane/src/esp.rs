//! ESP beside the AEADs in transport mode, which `output.rs` and `decap.rs` do themselves: what packets under other
//! transforms look like, and tunnel mode.

mod hmac;
mod hmac_suite;
mod special;
mod tunnel_mode;

pub(crate) use hmac::HmacCipher;
pub use hmac_suite::{HmacSuite, Mode};
pub(crate) use special::{open, write};
pub(crate) use tunnel_mode::{MAX_HEADER as MAX_TUNNEL_HEADER, carries, header_length, is_between, read};

use dsvpn_wire::esp::{HEADER, TRAILER};

/// The lengths that a transform gives to a packet, in octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// How a cipher that is no AEAD encrypts.
    mode: Option<Mode>,
    icv: u8,
}

impl Shape {
    /// Every AEAD's.
    pub(crate) const AEAD: Self = Self { mode: None, icv: 16 };
    /// Octets that a packet under any transform has beyond its payload, at most.
    pub(crate) const MAX_OVERHEAD: usize = HEADER + 16 + 15 + TRAILER + 32;

    /// Whether packets have the lengths that `output.rs` and `decap.rs` know by heart.
    #[inline]
    pub(crate) fn is_aead(self) -> bool {
        self.mode.is_none()
    }

    /// Octets in front of the ciphertext.
    pub(crate) fn header(self) -> usize {
        HEADER + if self.mode == Some(Mode::Cbc) { 16 } else { 8 }
    }

    /// Octets of the ICV behind it.
    pub(crate) fn icv(self) -> usize {
        usize::from(self.icv)
    }

    /// Payload, padding and trailer are a multiple of this. AES-CTR needs none but the alignment that RFC 4303 section
    /// 2.4 demands (RFC 3686 section 3.1).
    fn block(self) -> usize {
        if self.mode == Some(Mode::Cbc) { 16 } else { 4 }
    }

    /// Octets of the packet that carries a payload.
    pub(crate) fn packet(self, payload: usize) -> usize {
        self.header() + (payload + TRAILER).next_multiple_of(self.block()) + self.icv()
    }
}
