//! The last steps of encapsulation: a place in the send arena, GRE, ESP, and joining datagrams to messages.

use dsvpn_wire::esp;
use dsvpn_wire::gre::{self, GreHeader};

use crate::aead::ICV_LENGTH;
use crate::counters::Counter;
use crate::esp::{self as special, Shape};
use crate::sa::OutboundSa;
use crate::tables::{Adjacency, Tables};
use crate::vector::{Encapsulation, GsoLimits, SendBatch, SendMessage};

/// Smallest send arena: the largest packet always fits an empty one.
pub const MIN_SEND_ARENA: usize = 128 * 1024;

/// Messages begin at multiples of this, which leaves the first plaintext aligned for the cipher.
const ALIGNMENT: usize = 16;

/// Octets that a datagram has beyond its inner packet, at most.
const MAX_OVERHEAD: usize = esp::HEADER_AND_IV + gre::MAX_HEADER + 3 + esp::TRAILER + ICV_LENGTH;
/// The same under transforms that are no AEADs, and in tunnel mode.
const MAX_SPECIAL_OVERHEAD: usize = special::MAX_TUNNEL_HEADER + gre::MAX_HEADER + Shape::MAX_OVERHEAD;

/// TOS of NHRP: class selector 6, network control (RFC 4594 section 3.2).
const CONTROL_TOS: u8 = 0xc0;

/// Whether packets are other ones than an AEAD's in transport mode.
#[inline]
fn is_special(adjacency: &Adjacency, sa: &OutboundSa) -> bool {
    !sa.shape.is_aead() || adjacency.encapsulation == Encapsulation::EspTunnel
}

/// Octets of the datagram that carries an inner packet.
#[inline]
fn datagram_length(adjacency: &Adjacency, sa: Option<&OutboundSa>, inner: usize) -> usize {
    let payload = gre::header_length(adjacency.key()) + inner;
    match sa {
        None => payload,
        Some(sa) if is_special(adjacency, sa) => sa.shape.packet(special::header_length(adjacency) + payload),
        Some(_) => esp::HEADER_AND_IV + payload + esp::padding(payload) + esp::TRAILER + ICV_LENGTH,
    }
}

/// Where datagrams go.
pub(crate) struct Output<'a> {
    arena: &'a mut [u8],
    batch: &'a mut SendBatch,
    limits: GsoLimits,
    // Messages from here on were made in this run: the same adjacency means the same endpoint.
    run_start: usize,
}

impl<'a> Output<'a> {
    pub(crate) fn new(arena: &'a mut [u8], batch: &'a mut SendBatch, limits: GsoLimits) -> Self {
        let run_start = batch.messages.len();
        Self { arena, batch, limits, run_start }
    }

    /// How many datagrams with inner packets of at most this length fit for certain.
    #[inline]
    pub(crate) fn room(&self, adjacency: &Adjacency, sa: Option<&OutboundSa>, inner: usize) -> usize {
        let special = sa.is_some_and(|sa| is_special(adjacency, sa));
        let overhead = if special { MAX_SPECIAL_OVERHEAD } else { MAX_OVERHEAD };
        self.arena.len().saturating_sub(self.batch.used) / (inner + overhead + ALIGNMENT)
    }

    /// Whether nothing lies in the arena.
    pub(crate) fn is_empty(&self) -> bool {
        self.batch.used == 0
    }

    /// Number of messages so far.
    pub(crate) fn messages(&self) -> usize {
        self.batch.messages.len()
    }

    /// Write one datagram: `fill` writes the inner packet to its place. The caller has seen that there is `room`.
    ///
    /// `seal`: the SA and a sequence number reserved from it, unless the adjacency is plain GRE. Gives the datagram's
    /// octets.
    #[inline]
    pub(crate) fn emit(
        &mut self,
        adjacency: &Adjacency,
        seal: Option<(&OutboundSa, u64)>,
        tos: u8,
        protocol: u16,
        inner: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> usize {
        let length = datagram_length(adjacency, seal.map(|(sa, _)| sa), inner);
        let offset = self.place(adjacency, tos, length);
        let Some(datagram) = self.arena.get_mut(offset..offset + length) else {
            debug_assert!(false, "room was seen");
            return 0;
        };
        write_datagram(datagram, adjacency, seal, tos, protocol, inner, fill);
        self.batch.used = offset + length;
        length
    }

    /// Where the next datagram goes: at the end of the last message if it may join it, else as a new message.
    #[inline]
    fn place(&mut self, adjacency: &Adjacency, tos: u8, length: usize) -> usize {
        let (run_start, limits) = (self.run_start, self.limits);
        let index = self.batch.messages.len().wrapping_sub(1);
        if let Some(last) = self.batch.messages.last_mut() {
            let end = (last.offset + last.length) as usize;
            let joins = last.adjacency == adjacency.id
                && last.endpoint.tos == tos
                && adjacency.encapsulation == Encapsulation::Udp
                && (index >= run_start || last.endpoint == adjacency.endpoint(tos))
                && end == self.batch.used
                && last.segments < limits.segments
                && last.length as usize + length <= limits.octets as usize
                // Only the last datagram of a message may be shorter.
                && last.length == last.segments * last.segment_size
                && length <= last.segment_size as usize;
            if joins {
                last.length += length as u32;
                last.segments += 1;
                return end;
            }
        }
        let offset = self.batch.used.next_multiple_of(ALIGNMENT);
        self.batch.messages.push(message(adjacency, tos, offset, length));
        offset
    }
}

fn message(adjacency: &Adjacency, tos: u8, offset: usize, length: usize) -> SendMessage {
    SendMessage {
        endpoint: adjacency.endpoint(tos),
        adjacency: adjacency.id,
        offset: offset as u32,
        length: length as u32,
        segment_size: length as u32,
        segments: 1,
    }
}

/// GRE and, with `seal`, ESP around an inner packet. `datagram` has just the length that is due.
#[inline]
fn write_datagram(
    datagram: &mut [u8],
    adjacency: &Adjacency,
    seal: Option<(&OutboundSa, u64)>,
    tos: u8,
    protocol: u16,
    inner: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let key = adjacency.key();
    let gre_length = gre::header_length(key);
    let gre = GreHeader::write(key, protocol);
    let Some((sa, sequence)) = seal else {
        let (header, body) = datagram.split_at_mut(gre_length);
        header.copy_from_slice(&gre[..gre_length]);
        fill(body);
        return;
    };
    if is_special(adjacency, sa) {
        special::write(datagram, adjacency, (sa, sequence), tos, gre_length + inner, |place| {
            let (header, body) = place.split_at_mut(gre_length);
            header.copy_from_slice(&gre[..gre_length]);
            fill(body);
        });
        return;
    }
    let iv = sequence.to_be_bytes();
    let (header, rest) = datagram.split_at_mut(esp::HEADER_AND_IV);
    // In one piece: the cipher reads it at once as AAD, and the processor forwards a store only to loads within it.
    header[..8].copy_from_slice(&(u64::from(sa.spi) << 32 | sequence & 0xffff_ffff).to_be_bytes());
    header[8..16].copy_from_slice(&iv);
    let text = rest.len() - ICV_LENGTH;
    let plaintext = &mut rest[..text];
    plaintext[..gre_length].copy_from_slice(&gre[..gre_length]);
    fill(&mut plaintext[gre_length..gre_length + inner]);
    esp::write_trailer(&mut plaintext[gre_length + inner..], dsvpn_wire::ip::protocol::GRE);
    if sa.esn {
        let (aad, length) = esn_aad(sa.spi.to_be_bytes(), iv);
        sa.cipher.seal(iv, &aad[..length], rest);
    } else {
        sa.cipher.seal(iv, &header[..8], rest);
    }
}

/// SPI and the whole 64-bit sequence number (RFC 4106 section 5).
#[inline]
pub(crate) fn esn_aad(spi: [u8; 4], sequence: [u8; 8]) -> ([u8; 12], usize) {
    let mut aad = [0; 12];
    aad[..4].copy_from_slice(&spi);
    aad[4..].copy_from_slice(&sequence);
    (aad, 12)
}

/// Wrap an NHRP packet for an adjacency, as its data is: GRE protocol 0x2001 through the same SA. From any thread.
///
/// The message lies in `out`, whose old content goes. Errors: the reason why it cannot be sent.
pub fn encap_nhrp(tables: &Tables, adjacency: u32, packet: &[u8], out: &mut Vec<u8>) -> Result<SendMessage, Counter> {
    out.clear();
    let adjacency = tables.adjacency(adjacency).ok_or(Counter::DropNoAdjacency)?;
    if packet.len() > adjacency.mtu() {
        return Err(Counter::DropTooBig);
    }
    let seal = match (adjacency.encapsulation, &adjacency.outbound) {
        (Encapsulation::Gre, _) => None,
        (_, None) => return Err(Counter::DropNoSa),
        (_, Some(sa)) => match sa.reserve(1) {
            (_, 0) => return Err(Counter::DropSequenceExhausted),
            (sequence, _) => {
                sa.count_control(packet.len() as u64);
                Some((&**sa, sequence))
            }
        },
    };
    let length = datagram_length(adjacency, seal.map(|(sa, _)| sa), packet.len());
    out.resize(length, 0);
    let tos = if adjacency.copy_dscp() { CONTROL_TOS } else { 0 };
    write_datagram(out, adjacency, seal, tos, gre::NHRP, packet.len(), |place| place.copy_from_slice(packet));
    Ok(message(adjacency, tos, 0, length))
}
