//! Cookies before the control plane: while it is under load, an IKE_SA_INIT request without a good cookie is answered
//! with one and goes no further (RFC 7296 section 2.6).
//!
//! The control plane makes the secrets and decides when; it checks the cookies of what passes again. What a cookie is
//! stands in `dsvpn/ike/cookies.py`, and is the same here octet by octet.

use std::fmt;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ring::hmac::{self, HMAC_SHA256, Key};

const HEADER_LENGTH: usize = 28;
const SPI_LENGTH: usize = 8;
const GENERIC_HEADER_LENGTH: usize = 4;
/// Notify payload without SPI: protocol 0, SPI size 0, type COOKIE.
const COOKIE_NOTIFY: [u8; 4] = [0, 0, 0x40, 0x06];
const MAC_LENGTH: usize = 24;
const COOKIE_LENGTH: usize = 1 + MAC_LENGTH;
const REPLY_LENGTH: usize = HEADER_LENGTH + GENERIC_HEADER_LENGTH + COOKIE_NOTIFY.len() + COOKIE_LENGTH;
const NOTIFY: u8 = 41;
const NONCE: u8 = 40;
const IKE_SA_INIT: u8 = 34;
const INITIATOR: u8 = 0x08;
const RESPONSE: u8 = 0x20;
/// Payloads that are looked at.
const MAX_PAYLOADS: usize = 64;

/// A datagram that carries a cookie to whoever asks.
pub type Reply = [u8; REPLY_LENGTH];

/// What becomes of an IKE message.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the control plane.
    Pass,
    /// Its sender gets this instead.
    Answer(Reply),
    /// It is no IKE_SA_INIT request that anything could come of.
    Drop,
}

struct Secrets {
    version: u8,
    current: Key,
    previous: Option<Key>,
}

/// The gate: open, or shut for those without a cookie.
#[derive(Default)]
pub struct CookieGate {
    shut: AtomicBool,
    secrets: Mutex<Option<Secrets>>,
    sent: AtomicU64,
    dropped: AtomicU64,
}

impl fmt::Debug for CookieGate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CookieGate").field("shut", &self.is_shut()).finish_non_exhaustive()
    }
}

impl CookieGate {
    /// Ask for cookies made with `secret`, which has the number `version`; those of `previous` (empty: none) still
    /// count.
    pub fn shut(&self, version: u8, secret: &[u8], previous: &[u8]) {
        let key = |octets: &[u8]| Key::new(HMAC_SHA256, octets);
        let previous = (!previous.is_empty()).then(|| key(previous));
        *self.lock() = Some(Secrets { version, current: key(secret), previous });
        self.shut.store(true, Ordering::Release);
    }

    /// Let everything pass.
    pub fn open(&self) {
        self.shut.store(false, Ordering::Release);
        *self.lock() = None;
    }

    /// Whether it asks for cookies.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// Cookies sent, and messages dropped, so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }

    /// What becomes of an IKE message (without non-ESP marker) from `remote`.
    pub fn judge(&self, message: &[u8], remote: IpAddr, port: u16) -> Verdict {
        if !is_request(message) {
            return Verdict::Pass;
        }
        let secrets = self.lock();
        let Some(secrets) = &*secrets else { return Verdict::Pass };
        let Some((cookie, nonce)) = scan(message) else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Verdict::Drop;
        };
        let spi = &message[..SPI_LENGTH];
        if let Some([version, mac @ ..]) = cookie
            && mac.len() == MAC_LENGTH
        {
            let key = match version {
                version if *version == secrets.version => Some(&secrets.current),
                version if *version == secrets.version.wrapping_sub(1) => secrets.previous.as_ref(),
                _ => None,
            };
            let good = |key| are_equal(&make_mac(key, nonce, spi, remote, port), mac);
            if key.is_some_and(good) {
                return Verdict::Pass;
            }
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        Verdict::Answer(reply(spi, secrets.version, &make_mac(&secrets.current, nonce, spi, remote, port)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Secrets>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a message begins as an IKE_SA_INIT request does.
fn is_request(message: &[u8]) -> bool {
    message.len() > HEADER_LENGTH
        && message[18] == IKE_SA_INIT
        && message[17] >> 4 == 2
        && message[19] & (INITIATOR | RESPONSE) == INITIATOR
        && message[8..16] == [0; 8]
        && message[20..24] == [0; 4]
}

/// The cookie, if the first payload is one, and the nonce; None for what is no IKE_SA_INIT.
fn scan(message: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let length = u32::from_be_bytes([message[24], message[25], message[26], message[27]]);
    if length as usize != message.len() || message[..SPI_LENGTH] == [0; SPI_LENGTH] {
        return None;
    }
    let mut cookie = None;
    let (mut kind, mut at) = (message[16], HEADER_LENGTH);
    for _ in 0..MAX_PAYLOADS {
        let [next, _, high, low, ..] = *message.get(at..)? else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let body = message.get(at + GENERIC_HEADER_LENGTH..at + length)?;
        match kind {
            0 => return None,
            NONCE => return (16..=256).contains(&body.len()).then_some((cookie, body)),
            NOTIFY if at == HEADER_LENGTH => cookie = body.strip_prefix(&COOKIE_NOTIFY),
            _ => {}
        }
        (kind, at) = (next, at + length);
    }
    None
}

fn make_mac(key: &Key, nonce: &[u8], spi: &[u8], remote: IpAddr, port: u16) -> [u8; MAC_LENGTH] {
    let mut context = hmac::Context::with_key(key);
    context.update(spi);
    context.update(&port.to_be_bytes());
    match remote {
        IpAddr::V4(address) => {
            context.update(&[4]);
            context.update(&address.octets());
        }
        IpAddr::V6(address) => {
            context.update(&[16]);
            context.update(&address.octets());
        }
    }
    context.update(nonce);
    let mut mac = [0; MAC_LENGTH];
    mac.copy_from_slice(&context.sign().as_ref()[..MAC_LENGTH]);
    mac
}

/// Whether two MACs are equal, in the same time wherever they differ.
fn are_equal(left: &[u8; MAC_LENGTH], right: &[u8]) -> bool {
    let different = left.iter().zip(right).fold(0, |different, (left, right)| different | (left ^ right));
    left.len() == right.len() && black_box(different) == 0
}

fn reply(spi: &[u8], version: u8, mac: &[u8; MAC_LENGTH]) -> Reply {
    let mut reply = [0; REPLY_LENGTH];
    let payload = REPLY_LENGTH - HEADER_LENGTH;
    reply[..SPI_LENGTH].copy_from_slice(spi);
    reply[16..20].copy_from_slice(&[NOTIFY, 0x20, IKE_SA_INIT, RESPONSE]);
    reply[27] = REPLY_LENGTH as u8;
    reply[HEADER_LENGTH + 3] = payload as u8;
    let body = &mut reply[HEADER_LENGTH + GENERIC_HEADER_LENGTH..];
    body[..COOKIE_NOTIFY.len()].copy_from_slice(&COOKIE_NOTIFY);
    body[COOKIE_NOTIFY.len()] = version;
    body[COOKIE_NOTIFY.len() + 1..].copy_from_slice(mac);
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const SECRET: [u8; 32] = [7; 32];

    fn payload(next: u8, body: &[u8]) -> Vec<u8> {
        let length = (GENERIC_HEADER_LENGTH + body.len()) as u16;
        [&[next, 0], &length.to_be_bytes()[..], body].concat()
    }

    fn request(cookie: Option<&[u8]>) -> Vec<u8> {
        let mut message = vec![0; HEADER_LENGTH];
        message[..SPI_LENGTH].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        message[16..20].copy_from_slice(&[if cookie.is_some() { NOTIFY } else { 34 }, 0x20, IKE_SA_INIT, INITIATOR]);
        if let Some(cookie) = cookie {
            message.extend(payload(34, &[&COOKIE_NOTIFY, cookie].concat()));
        }
        message.extend(payload(NONCE, &[9; 36]));
        message.extend(payload(0, &[0x55; 32]));
        let length = message.len() as u32;
        message[24..28].copy_from_slice(&length.to_be_bytes());
        message
    }

    fn cookie(verdict: Verdict) -> Vec<u8> {
        match verdict {
            Verdict::Answer(reply) => reply[REPLY_LENGTH - COOKIE_LENGTH..].to_vec(),
            other => panic!("no cookie: {other:?}"),
        }
    }

    #[test]
    fn open_lets_everything_pass() {
        let gate = CookieGate::default();
        assert_eq!(gate.judge(&request(None), REMOTE, 500), Verdict::Pass);
        gate.shut(3, &SECRET, &[]);
        assert!(gate.is_shut());
        gate.open();
        assert_eq!(gate.judge(&request(None), REMOTE, 500), Verdict::Pass);
    }

    #[test]
    fn only_the_asked_comes_through() {
        let gate = CookieGate::default();
        gate.shut(3, &SECRET, &[]);
        let given = cookie(gate.judge(&request(None), REMOTE, 500));
        assert_eq!(given[0], 3);
        let answer = request(Some(&given));
        assert_eq!(gate.judge(&answer, REMOTE, 500), Verdict::Pass);
        assert_ne!(gate.judge(&answer, REMOTE, 501), Verdict::Pass);
        assert_ne!(gate.judge(&answer, "192.0.2.3".parse().unwrap(), 500), Verdict::Pass);
        for bit in 0..8 * given.len() {
            let mut forged = given.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(gate.judge(&request(Some(&forged)), REMOTE, 500), Verdict::Pass, "bit {bit}");
        }
        // The secret before counts for a while, none before that.
        gate.shut(4, &[8; 32], &SECRET);
        assert_eq!(gate.judge(&answer, REMOTE, 500), Verdict::Pass);
        gate.shut(5, &[9; 32], &[8; 32]);
        assert_ne!(gate.judge(&answer, REMOTE, 500), Verdict::Pass);
    }

    #[test]
    fn the_control_plane_makes_the_same_cookie() {
        // tests/ike/test_cookies.py has this vector too.
        let gate = CookieGate::default();
        gate.shut(3, &SECRET, &[]);
        let given = cookie(gate.judge(&request(None), REMOTE, 500));
        let hex: String = given.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(hex, VECTOR);
    }

    const VECTOR: &str = "03ae44c50dfa95426211ca7c4a07577b5a0b9eb221db17f7bb";

    #[test]
    fn other_messages_pass_and_cut_ones_are_dropped() {
        let gate = CookieGate::default();
        gate.shut(3, &SECRET, &[]);
        let whole = request(None);
        for (at, value) in [(8, 1), (18, 35), (19, RESPONSE), (23, 1)] {
            let mut other = whole.clone();
            other[at] = value;
            assert_eq!(gate.judge(&other, REMOTE, 500), Verdict::Pass, "octet {at}");
        }
        for length in HEADER_LENGTH + 1..whole.len() {
            let mut cut = whole[..length].to_vec();
            assert_eq!(gate.judge(&cut, REMOTE, 500), Verdict::Drop, "length {length}");
            cut[24..28].copy_from_slice(&(length as u32).to_be_bytes());
            assert_eq!(gate.judge(&cut, REMOTE, 500), Verdict::Drop, "length {length}, which it says");
        }
        for length in 0..=HEADER_LENGTH {
            assert_eq!(gate.judge(&whole[..length], REMOTE, 500), Verdict::Pass);
        }
    }
}
