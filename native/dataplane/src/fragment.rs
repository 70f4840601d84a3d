//! Fragmentation of IPv4 packets without DF before encapsulation (RFC 791 section 3.2).

use dsvpn_wire::ip::{self, FRAGMENT_OFFSET, IPV4_HEADER, IpPacket, MORE_FRAGMENTS};
use dsvpn_wire::write;

/// How an IPv4 packet is cut for an MTU. The packet itself may be a fragment.
#[derive(Clone, Debug)]
pub(crate) struct Fragments<'a> {
    first_header: &'a [u8],
    // Options of later fragments: those with the copied bit.
    later_header: [u8; 60],
    later_length: usize,
    payload: &'a [u8],
    word: u16,
    mtu: usize,
}

impl<'a> Fragments<'a> {
    /// `packet` describes `octets`, is IPv4 and has no DF. `None` if no payload fits the MTU, or if it is itself a fragment
    /// that ends beyond the largest packet.
    pub(crate) fn new(octets: &'a [u8], packet: &IpPacket, mtu: usize) -> Option<Self> {
        let (first_header, payload) = octets.get(..packet.length)?.split_at(packet.header_length);
        let word = ip::ipv4_fragment_word(octets);
        // Offsets of such a fragment's pieces would begin anew at 0, and lie over the first fragment at the receiver.
        let end = usize::from(word & FRAGMENT_OFFSET) * 8 + payload.len();
        if mtu < first_header.len() + 8 || end > usize::from(u16::MAX) {
            return None;
        }
        let mut later_header = [0; 60];
        later_header[..IPV4_HEADER].copy_from_slice(&first_header[..IPV4_HEADER]);
        let mut later_length = IPV4_HEADER;
        let mut options = &first_header[IPV4_HEADER..];
        while let [kind, rest @ ..] = options {
            let length = match kind {
                0 => break,
                1 => 1,
                // A length that does not fit ends the options.
                _ => match rest.first() {
                    Some(&length) if length >= 2 && usize::from(length) <= options.len() => usize::from(length),
                    _ => break,
                },
            };
            if kind & 0x80 != 0 {
                later_header[later_length..later_length + length].copy_from_slice(&options[..length]);
                later_length += length;
            }
            options = &options[length..];
        }
        // What is left of the last word stays zero: end of options.
        later_length = later_length.next_multiple_of(4);
        later_header[0] = 0x40 | (later_length / 4) as u8;
        Some(Self { first_header, later_header, later_length, payload, word, mtu })
    }

    fn capacity(&self, header: usize) -> usize {
        (self.mtu - header) & !7
    }

    /// The octets of payload that a fragment carries: where they begin and end.
    fn span(&self, index: u32) -> (usize, usize) {
        let first = self.capacity(self.first_header.len());
        let later = self.capacity(self.later_length);
        let start = if index == 0 { 0 } else { first + (index as usize - 1) * later };
        let capacity = if index == 0 { first } else { later };
        (start.min(self.payload.len()), (start + capacity).min(self.payload.len()))
    }

    /// Number of fragments.
    pub(crate) fn count(&self) -> u32 {
        let first = self.capacity(self.first_header.len());
        let later = self.capacity(self.later_length);
        1 + self.payload.len().saturating_sub(first).div_ceil(later) as u32
    }

    /// Octets of a fragment.
    pub(crate) fn length(&self, index: u32) -> usize {
        let (start, end) = self.span(index);
        end - start + if index == 0 { self.first_header.len() } else { self.later_length }
    }

    /// Write a fragment to `place`, which has just its length.
    pub(crate) fn write(&self, index: u32, place: &mut [u8]) {
        let header = if index == 0 { self.first_header } else { &self.later_header[..self.later_length] };
        let (start, end) = self.span(index);
        if place.len() != header.len() + end - start {
            debug_assert!(false, "the place of a fragment has its length");
            return;
        }
        let total = place.len() as u16;
        let (place_header, body) = place.split_at_mut(header.len());
        place_header.copy_from_slice(header);
        body.copy_from_slice(&self.payload[start..end]);
        // The last fragment keeps what the packet had: it may be in the middle of a larger one.
        let more = if end < self.payload.len() { MORE_FRAGMENTS } else { self.word & MORE_FRAGMENTS };
        let offset = (self.word & FRAGMENT_OFFSET) + (start / 8) as u16;
        write(place_header, 2, &total.to_be_bytes());
        write(place_header, 6, &(self.word & !(FRAGMENT_OFFSET | MORE_FRAGMENTS) | more | offset).to_be_bytes());
        ip::write_ipv4_checksum(place_header);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(options: &[u8], payload: &[u8], word: u16) -> Vec<u8> {
        let mut octets = vec![0; IPV4_HEADER];
        let header = IPV4_HEADER + options.len();
        octets[0] = 0x40 | (header / 4) as u8;
        octets[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
        octets[6..8].copy_from_slice(&word.to_be_bytes());
        octets[8..10].copy_from_slice(&[64, 17]);
        octets.extend_from_slice(options);
        octets.extend_from_slice(payload);
        octets
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 100 }))]

        #[test]
        fn fragments_put_together_are_the_packet(
            payload in prop::collection::vec(any::<u8>(), 0..4000),
            mtu in 68usize..1500,
            options in prop::sample::select(vec![
                vec![], vec![1, 1, 1, 0], vec![0x94, 4, 0, 0], vec![7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0],
                vec![0x83, 9, 1, 1], vec![0x83, 1, 1, 1],
            ]),
            first in any::<bool>(),
            more in any::<bool>(),
        ) {
            let word = if first { 0 } else { 100 } | if more { MORE_FRAGMENTS } else { 0 };
            let octets = packet(&options, &payload, word);
            let parsed = IpPacket::parse(&octets).unwrap();
            let fragments = Fragments::new(&octets, &parsed, mtu).unwrap();
            let mut together = Vec::new();
            for index in 0..fragments.count() {
                let mut place = vec![0xee; fragments.length(index)];
                fragments.write(index, &mut place);
                prop_assert!(place.len() <= mtu);
                let piece = IpPacket::parse(&place).unwrap();
                prop_assert_eq!(piece.length, place.len());
                let flags = ip::ipv4_fragment_word(&place);
                let last = index + 1 == fragments.count();
                prop_assert_eq!(flags & MORE_FRAGMENTS != 0, !last || more);
                let offset = usize::from(flags & FRAGMENT_OFFSET) - usize::from(word & FRAGMENT_OFFSET);
                prop_assert_eq!(offset * 8, together.len());
                together.extend_from_slice(&place[piece.header_length..]);
                let sum = dsvpn_wire::checksum::add(0, &place[..piece.header_length]);
                prop_assert_eq!(dsvpn_wire::checksum::fold(sum), [0xff, 0xff]);
            }
            prop_assert_eq!(together, payload);
        }
    }

    #[test]
    fn only_copied_options_follow() {
        let octets = packet(&[7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0], &[9; 100], 0);
        let parsed = IpPacket::parse(&octets).unwrap();
        let fragments = Fragments::new(&octets, &parsed, 68).unwrap();
        let mut place = vec![0; fragments.length(1)];
        fragments.write(1, &mut place);
        assert_eq!(place[0], 0x46);
        assert_eq!(&place[20..24], &[0x94, 4, 0, 0]);
    }
}
