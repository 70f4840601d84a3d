//! GRE and ESP, and the way from the underlay to the TUN, one datagram after the other.

use std::collections::HashSet;
use std::net::IpAddr;

use dsvpn_dataplane::{Counter, DatagramKind, Encapsulation, Suite};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::aes_hmac;
use super::packet::{clamp_mss, put, read_ip, sum, two, write_ip_checksum};
use super::sources::Check;
use crate::common::{OURS, Setup, THEIRS};

pub const GRE: u8 = 47;
const DUMMY: u8 = 59;
const NHRP: usize = 0x2001;

/// What a datagram turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A packet for the TUN.
    Inner(Vec<u8>),
    /// For the control plane: the counter of its kind, and its octets.
    Punt(Counter, Vec<u8>),
    /// Neither.
    Counted(Counter),
}

/// The GRE key, protocol type and payload of a packet (RFC 2784, RFC 2890).
pub fn read_gre(octets: &[u8]) -> Option<(Option<u32>, usize, Vec<u8>)> {
    if octets.len() < 4 {
        return None;
    }
    let (checksum, key, sequence) = (octets[0] & 0x80 != 0, octets[0] & 0x20 != 0, octets[0] & 0x10 != 0);
    // No routing, no recursion, no version but 0, and none of the reserved flags.
    if octets[0] & 0x4f != 0 || octets[1] != 0 || checksum && sum(octets) != 0xffff {
        return None;
    }
    let mut at = if checksum { 8 } else { 4 };
    let mut value = None;
    if key {
        value = Some(u32::from_be_bytes(octets.get(at..at + 4)?.try_into().unwrap()));
        at += 4;
    }
    if sequence {
        at += 4;
    }
    Some((value, two(octets, 2), octets.get(at..)?.to_vec()))
}

/// The IPv4 header in front of so many octets of GRE in tunnel mode.
pub fn tunnel_header(source: IpAddr, destination: IpAddr, tos: u8, gre: usize) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else { panic!("addresses of tests") };
    let mut header = vec![0x45, tos, 0, 0, 0, 0, 0x40, 0, 64, GRE, 0, 0];
    put(&mut header, 2, (20 + gre) as u16);
    header.extend(source.octets());
    header.extend(destination.octets());
    write_ip_checksum(&mut header, 20);
    header
}

/// The GRE packet that carries an inner packet.
pub fn write_gre(key: Option<u32>, protocol: u16, payload: &[u8]) -> Vec<u8> {
    let mut octets = vec![if key.is_some() { 0x20 } else { 0 }, 0];
    octets.extend(protocol.to_be_bytes());
    octets.extend(key.map(u32::to_be_bytes).iter().flatten());
    octets.extend(payload);
    octets
}

pub fn protocol_of(inner: &[u8]) -> u16 {
    if inner.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 }
}

enum Key {
    /// With its salt.
    Aead(Box<LessSafeKey>, [u8; 4]),
    Hmac(Box<aes_hmac::Key>),
}

/// One security association, used in both directions, and what its receiver has seen.
pub struct Sa {
    pub spi: u32,
    key: Key,
    esn: bool,
    window: u64,
    /// What the sender sends next.
    pub next: u64,
    pub highest: u64,
    seen: HashSet<u64>,
    pub replayed: u64,
    pub unauthentic: u64,
}

impl Sa {
    pub fn new(spi: u32, suite: Suite, keymat: &[u8], setup: &Setup) -> Self {
        let aead = |algorithm| {
            let (key, salt) = keymat.split_at(keymat.len() - 4);
            let key = LessSafeKey::new(UnboundKey::new(algorithm, key).expect("the key's length"));
            Key::Aead(Box::new(key), salt.try_into().expect("4 octets"))
        };
        let key = match suite {
            Suite::Aes128Gcm16 => aead(&AES_128_GCM),
            Suite::Aes256Gcm16 => aead(&AES_256_GCM),
            Suite::Hmac(suite) => Key::Hmac(Box::new(aes_hmac::Key::new(suite, keymat))),
            _ => aead(&CHACHA20_POLY1305),
        };
        Self {
            spi,
            key,
            esn: setup.esn,
            window: u64::from(setup.replay_window).div_ceil(64) * 64,
            next: 1,
            highest: 0,
            seen: HashSet::new(),
            replayed: 0,
            unauthentic: 0,
        }
    }

    /// A sequence number for the sender, as long as there are any.
    pub fn reserve(&mut self) -> Option<u64> {
        let sequence = self.next;
        if !self.esn && sequence > 0xffff_ffff {
            return None;
        }
        self.next += 1;
        Some(sequence)
    }

    fn nonce(salt: &[u8; 4], iv: &[u8]) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(salt);
        nonce[4..].copy_from_slice(iv);
        Nonce::assume_unique_for_key(nonce)
    }

    /// RFC 4106 section 5, RFC 7634 section 2.1.
    fn aad(&self, spi: u32, sequence: u64) -> Aad<Vec<u8>> {
        let mut aad = spi.to_be_bytes().to_vec();
        if self.esn {
            aad.extend(sequence.to_be_bytes());
        } else {
            aad.extend((sequence as u32).to_be_bytes());
        }
        Aad::from(aad)
    }

    /// The half of a sequence number that is authenticated and not sent (RFC 4303 section 2.2.1).
    fn high(&self, sequence: u64) -> Option<u32> {
        self.esn.then_some((sequence >> 32) as u32)
    }

    /// Padding to what the cipher needs, its length, and the next header.
    pub fn trailer(&self, payload: usize, next_header: u8) -> Vec<u8> {
        let block = if let Key::Hmac(key) = &self.key { key.block() } else { 4 };
        let mut octets = Vec::new();
        while !(payload + octets.len() + 2).is_multiple_of(block) {
            octets.push(octets.len() as u8 + 1);
        }
        octets.push(octets.len() as u8);
        octets.push(next_header);
        octets
    }

    /// An ESP packet with any plaintext, trailer included.
    pub fn seal(&self, sequence: u64, plaintext: &[u8]) -> Vec<u8> {
        let header = [self.spi.to_be_bytes(), (sequence as u32).to_be_bytes()].concat();
        let (key, salt) = match &self.key {
            Key::Hmac(key) => return key.seal(&header, self.high(sequence), plaintext),
            Key::Aead(key, salt) => (key, salt),
        };
        let iv = sequence.to_be_bytes();
        let mut sealed = plaintext.to_vec();
        key.seal_in_place_append_tag(Self::nonce(salt, &iv), self.aad(self.spi, sequence), &mut sealed)
            .expect("sealed");
        [&header[..], &iv, &sealed].concat()
    }

    /// The plaintext of an ESP packet, trailer included.
    pub fn open(&self, sequence: u64, datagram: &[u8]) -> Option<Vec<u8>> {
        let (key, salt) = match &self.key {
            Key::Hmac(key) => return key.open(datagram, self.high(sequence)),
            Key::Aead(key, salt) => (key, salt),
        };
        let mut sealed = datagram.get(16..)?.to_vec();
        let aad = self.aad(self.spi, sequence);
        key.open_in_place(Self::nonce(salt, &datagram[8..16]), aad, &mut sealed).ok().map(|plain| plain.to_vec())
    }

    /// The number that a received low half stands for: the first one that does not lie before the window.
    fn infer(&self, low: u32) -> u64 {
        if !self.esn {
            return u64::from(low);
        }
        let bottom = self.highest.saturating_sub(self.window.max(64) - 1);
        let candidate = bottom >> 32 << 32 | u64::from(low);
        if candidate < bottom { candidate + (1 << 32) } else { candidate }
    }

    fn is_new(&self, sequence: u64) -> bool {
        self.window == 0 || sequence != 0 && sequence + self.window > self.highest && !self.seen.contains(&sequence)
    }

    /// Check and open an ESP packet, as RFC 4303 section 3.4 has it: the payload and the next header.
    pub fn receive(&mut self, datagram: &[u8]) -> Result<(Vec<u8>, u8), Counter> {
        if datagram.len() < 16 + 4 + 16 {
            return Err(Counter::DropMalformedEsp);
        }
        let word = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().unwrap());
        if word(0) != self.spi {
            return Err(Counter::DropUnknownSpi);
        }
        let sequence = self.infer(word(4));
        if !self.is_new(sequence) {
            self.replayed += 1;
            return Err(Counter::DropReplayed);
        }
        let Some(plaintext) = self.open(sequence, datagram) else {
            self.unauthentic += 1;
            return Err(Counter::DropUnauthentic);
        };
        self.seen.insert(sequence);
        self.highest = self.highest.max(sequence);
        read_trailer(&plaintext).ok_or(Counter::DropMalformedEsp)
    }
}

/// The payload in front of a sound trailer, and the next header.
pub fn read_trailer(plaintext: &[u8]) -> Option<(Vec<u8>, u8)> {
    let next = *plaintext.last()?;
    let padding = usize::from(plaintext[plaintext.len().checked_sub(2)?]);
    let end = (plaintext.len() - 2).checked_sub(padding)?;
    for index in 0..padding {
        if usize::from(plaintext[end + index]) != index + 1 {
            return None;
        }
    }
    Some((plaintext[..end].to_vec(), next))
}

/// The receiving side of the tests' data plane.
pub struct Receiver {
    pub setup: Setup,
    pub sa: Option<Sa>,
    pub check: Check,
    pub clamped: u64,
    /// Inner packets that came, and their octets.
    pub packets: u64,
    pub octets: u64,
}

impl Receiver {
    /// One datagram, no run.
    pub fn receive(&mut self, kind: DatagramKind, octets: &[u8], remote: IpAddr) -> Arrival {
        let result = match kind {
            DatagramKind::UdpIke => return Arrival::Punt(Counter::PuntIke, octets.to_vec()),
            DatagramKind::UdpNat if octets == [0xff] => Err(Counter::KeepalivesReceived),
            DatagramKind::UdpNat if octets.starts_with(&[0; 4]) => match &octets[4..] {
                [] => Err(Counter::DropMalformedDatagram),
                message => return Arrival::Punt(Counter::PuntIke, message.to_vec()),
            },
            DatagramKind::UdpNat if octets.len() < 4 => Err(Counter::DropMalformedDatagram),
            DatagramKind::UdpNat | DatagramKind::Esp => self.esp(octets),
            DatagramKind::Gre => self.plain_gre(octets, remote),
        };
        result.unwrap_or_else(Arrival::Counted)
    }

    fn esp(&mut self, octets: &[u8]) -> Result<Arrival, Counter> {
        let Some(sa) = &mut self.sa else {
            return Err(if octets.len() < 36 { Counter::DropMalformedEsp } else { Counter::DropUnknownSpi });
        };
        let (payload, next_header) = sa.receive(octets)?;
        let tunnel_mode = self.setup.encapsulation == Encapsulation::EspTunnel;
        let (header, gre) = match next_header {
            GRE => (Vec::new(), payload),
            4 | 41 if tunnel_mode => {
                let ip = read_ip(&payload).ok_or(Counter::DropTunnelHeader)?;
                if ip.version != (if next_header == 4 { 4 } else { 6 }) || ip.protocol != GRE || ip.fragment {
                    return Err(Counter::DropTunnelHeader);
                }
                (payload[..ip.header].to_vec(), payload[ip.header..ip.length].to_vec())
            }
            DUMMY => return Err(Counter::DummiesReceived),
            _ => return Err(Counter::DropWrongNextHeader),
        };
        let (key, protocol, inner) = read_gre(&gre).ok_or(Counter::DropMalformedGre)?;
        if key != self.setup.key {
            return Err(Counter::DropWrongKey);
        }
        if tunnel_mode == header.is_empty() {
            return Err(Counter::DropWrongNextHeader);
        }
        // The model has IPv4 outside alone.
        let (IpAddr::V4(ours), IpAddr::V4(theirs)) = (OURS, THEIRS) else { panic!("addresses of tests") };
        if tunnel_mode && (next_header != 4 || header[12..20] != [theirs.octets(), ours.octets()].concat()) {
            return Err(Counter::DropTunnelHeader);
        }
        self.inner(protocol, inner)
    }

    fn plain_gre(&mut self, octets: &[u8], remote: IpAddr) -> Result<Arrival, Counter> {
        let (key, protocol, inner) = read_gre(octets).ok_or(Counter::DropMalformedGre)?;
        if key != self.setup.key {
            return Err(Counter::DropWrongKey);
        }
        if self.setup.encapsulation == Encapsulation::Gre && remote == THEIRS {
            return self.inner(protocol, inner);
        }
        match protocol {
            _ if self.setup.suite.is_some() => Err(Counter::DropUnprotected),
            NHRP => Ok(Arrival::Punt(Counter::PuntNhrp, inner)),
            _ => Err(Counter::DropUnknownPeer),
        }
    }

    fn inner(&mut self, protocol: usize, mut inner: Vec<u8>) -> Result<Arrival, Counter> {
        let version = match protocol {
            0x0800 => 4,
            0x86dd => 6,
            NHRP => return Ok(Arrival::Punt(Counter::PuntNhrp, inner)),
            _ => return Err(Counter::DropMalformedGre),
        };
        let ip = read_ip(&inner).filter(|ip| ip.version == version).ok_or(Counter::DropMalformedInner)?;
        inner.truncate(ip.length);
        if !self.check.admits(&inner) {
            return Err(Counter::DropWrongSource);
        }
        if self.setup.mss_clamp && clamp_mss(&mut inner, &ip, self.setup.mtu as usize) {
            self.clamped += 1;
        }
        self.packets += 1;
        self.octets += inner.len() as u64;
        Ok(Arrival::Inner(inner))
    }
}
