//! Writing and opening ESP packets that are not an AEAD's in transport mode. Out of the way of those that are.

use super::tunnel_mode;
use crate::aead::Unauthentic;
use crate::output::esn_aad;
use crate::sa::{InboundSa, OutboundSa};
use crate::tables::Adjacency;
use dsvpn_wire::esp as wire;

/// Fill `datagram` with the ESP packet of `gre` octets of GRE, which `fill` writes to their place, behind an IP header
/// in tunnel mode. `datagram` has just the length that the SA's shape gives.
#[cold]
#[inline(never)]
pub(crate) fn write(
    datagram: &mut [u8],
    adjacency: &Adjacency,
    (sa, sequence): (&OutboundSa, u64),
    tos: u8,
    gre: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let start = sa.shape.header();
    datagram[..4].copy_from_slice(&sa.spi.to_be_bytes());
    datagram[4..8].copy_from_slice(&(sequence as u32).to_be_bytes());
    let header = tunnel_mode::header_length(adjacency);
    let payload = header + gre;
    let end = sa.shape.packet(payload) - sa.shape.icv();
    fill(&mut datagram[start + header..start + payload]);
    let next_header = tunnel_mode::write(adjacency, tos, &mut datagram[start..start + payload]);
    wire::write_trailer(&mut datagram[start + payload..end], next_header);
    if let Some(cipher) = sa.cipher.hmac() {
        if !cipher.seal(sequence, sa.esn, datagram) {
            // No plaintext may leave.
            debug_assert!(false, "the datagram has the suite's shape");
            datagram.fill(0);
        }
        return;
    }
    let iv = sequence.to_be_bytes();
    let (header, rest) = datagram.split_at_mut(start);
    header[8..].copy_from_slice(&iv);
    let (aad, length) = esn_aad(sa.spi.to_be_bytes(), iv);
    let aad = if sa.esn { &aad[..length] } else { &header[..8] };
    sa.cipher.seal(iv, aad, rest);
}

/// Open an ESP packet of an SA whose cipher is no AEAD: octets of the plaintext.
#[cold]
#[inline(never)]
pub(crate) fn open(sa: &InboundSa, sequence: u64, packet: &mut [u8]) -> Result<usize, Unauthentic> {
    sa.cipher.hmac().ok_or(Unauthentic)?.open(sequence, sa.esn, packet)
}
