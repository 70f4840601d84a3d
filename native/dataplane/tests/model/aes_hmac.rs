//! AES (FIPS 197), its modes and HMAC (RFC 2104), octet by octet. Of ring there is the hash alone.

use dsvpn_dataplane::{HmacSuite, Mode};
use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

fn double(octet: u8) -> u8 {
    octet << 1 ^ if octet & 0x80 != 0 { 0x1b } else { 0 }
}

fn times(mut left: u8, mut right: u8) -> u8 {
    let mut product = 0;
    while right != 0 {
        if right & 1 != 0 {
            product ^= left;
        }
        left = double(left);
        right >>= 1;
    }
    product
}

/// Rijndael's substitution: the inverse in GF(2^8), then an affine map. Without tables: 256 trials for each octet made once.
fn substitution() -> [u8; 256] {
    let mut table = [0; 256];
    for (octet, place) in table.iter_mut().enumerate() {
        let inverse = (1..=255).find(|other| times(octet as u8, *other) == 1).unwrap_or(0u8);
        *place = (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn));
    }
    table
}

/// An expanded key.
pub struct Aes {
    rounds: Vec<[u8; 16]>,
    forward: [u8; 256],
    backward: [u8; 256],
}

impl Aes {
    pub fn new(key: &[u8]) -> Self {
        let forward = substitution();
        let mut backward = [0; 256];
        for (octet, image) in forward.iter().enumerate() {
            backward[usize::from(*image)] = octet as u8;
        }
        let words = key.len() / 4;
        let mut schedule: Vec<[u8; 4]> = key.chunks(4).map(|word| word.try_into().unwrap()).collect();
        let mut constant = 1;
        for index in words..4 * (words + 7) {
            let mut word = schedule[index - 1];
            if index % words == 0 {
                word.rotate_left(1);
                word = word.map(|octet| forward[usize::from(octet)]);
                word[0] ^= constant;
                constant = double(constant);
            } else if words > 6 && index % words == 4 {
                word = word.map(|octet| forward[usize::from(octet)]);
            }
            for (octet, other) in word.iter_mut().zip(schedule[index - words]) {
                *octet ^= other;
            }
            schedule.push(word);
        }
        let rounds = schedule.chunks(4).map(|words| words.concat().try_into().unwrap()).collect();
        Self { rounds, forward, backward }
    }

    pub fn encrypt(&self, block: [u8; 16]) -> [u8; 16] {
        let mut state = xor(block, self.rounds[0]);
        for (number, key) in self.rounds.iter().enumerate().skip(1) {
            let mut next = [0; 16];
            for (at, octet) in next.iter_mut().enumerate() {
                // Row r is turned r places.
                *octet = self.forward[usize::from(state[(at + 4 * (at % 4)) % 16])];
            }
            if number + 1 < self.rounds.len() {
                next = mix(next, [2, 3, 1, 1]);
            }
            state = xor(next, *key);
        }
        state
    }

    pub fn decrypt(&self, block: [u8; 16]) -> [u8; 16] {
        let mut state = block;
        for (number, key) in self.rounds.iter().enumerate().skip(1).rev() {
            state = xor(state, *key);
            if number + 1 < self.rounds.len() {
                state = mix(state, [14, 11, 13, 9]);
            }
            let mut next = [0; 16];
            for (at, octet) in state.iter().enumerate() {
                next[(at + 4 * (at % 4)) % 16] = self.backward[usize::from(*octet)];
            }
            state = next;
        }
        xor(state, self.rounds[0])
    }
}

fn xor(left: [u8; 16], right: [u8; 16]) -> [u8; 16] {
    std::array::from_fn(|at| left[at] ^ right[at])
}

fn mix(state: [u8; 16], row: [u8; 4]) -> [u8; 16] {
    std::array::from_fn(|at| {
        let column = at / 4 * 4;
        (0..4).fold(0, |sum, other| sum ^ times(state[column + other], row[(other + 4 - at % 4) % 4]))
    })
}

/// RFC 2104.
fn hmac(algorithm: &'static Algorithm, key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = key.to_vec();
    block.resize(algorithm.block_len(), 0);
    let pad = |value: u8| -> Vec<u8> { block.iter().map(|octet| octet ^ value).collect() };
    let inner = digest(algorithm, &[&pad(0x36)[..], text].concat());
    digest(algorithm, &[&pad(0x5c)[..], inner.as_ref()].concat()).as_ref().to_vec()
}

/// A key of AES and HMAC for ESP.
pub struct Key {
    suite: HmacSuite,
    aes: Aes,
    salt: Vec<u8>,
    mac: Vec<u8>,
}

impl Key {
    pub fn new(suite: HmacSuite, keymat: &[u8]) -> Self {
        let (cipher, rest) = keymat.split_at(usize::from(suite.key_bits) / 8);
        let (salt, mac) = rest.split_at(if suite.mode == Mode::Ctr { 4 } else { 0 });
        assert_eq!(mac.len(), usize::from(suite.hash_bits) / 8);
        Self { suite, aes: Aes::new(cipher), salt: salt.to_vec(), mac: mac.to_vec() }
    }

    pub fn block(&self) -> usize {
        if self.suite.mode == Mode::Cbc { 16 } else { 4 }
    }

    fn iv(&self) -> usize {
        if self.suite.mode == Mode::Cbc { 16 } else { 8 }
    }

    fn icv(&self, packet: &[u8], high: Option<u32>) -> Vec<u8> {
        let algorithm = match self.suite.hash_bits {
            256 => &SHA256,
            384 => &SHA384,
            _ => &SHA512,
        };
        let text = [packet, &high.map(u32::to_be_bytes).into_iter().flatten().collect::<Vec<u8>>()].concat();
        let mut tag = hmac(algorithm, &self.mac, &text);
        tag.truncate(tag.len() / 2);
        tag
    }

    fn stream(&self, iv: &[u8], text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, piece) in (1u32..).zip(text.chunks(16)) {
            let counter = [&self.salt[..], iv, &number.to_be_bytes()].concat().try_into().unwrap();
            out.extend(self.aes.encrypt(counter).iter().zip(piece).map(|(left, right)| left ^ right));
        }
        out
    }

    /// IV, ciphertext and ICV behind a header. What fills no block at the end stays as it is.
    pub fn seal(&self, header: &[u8], high: Option<u32>, plaintext: &[u8]) -> Vec<u8> {
        // Any IV will do: here it is made of the sequence number, which no receiver can see.
        let mut packet = header.to_vec();
        packet.extend((0..self.iv()).map(|at| header[4 + at % 4] ^ at as u8));
        let iv = packet[8..].to_vec();
        if self.suite.mode == Mode::Ctr {
            packet.extend(self.stream(&iv, plaintext));
        } else {
            let mut last: [u8; 16] = iv.try_into().unwrap();
            for piece in plaintext.chunks(16) {
                match <[u8; 16]>::try_from(piece) {
                    Ok(block) => {
                        last = self.aes.encrypt(xor(block, last));
                        packet.extend(last);
                    }
                    Err(_) => packet.extend(piece),
                }
            }
        }
        packet.extend(self.icv(&packet, high));
        packet
    }

    /// The plaintext of a packet.
    pub fn open(&self, packet: &[u8], high: Option<u32>) -> Option<Vec<u8>> {
        let end = packet.len().checked_sub(usize::from(self.suite.hash_bits) / 16)?;
        let text = packet.get(8 + self.iv()..end)?;
        if self.icv(&packet[..end], high) != packet[end..] {
            return None;
        }
        let iv = &packet[8..8 + self.iv()];
        if self.suite.mode == Mode::Ctr {
            return Some(self.stream(iv, text));
        }
        let mut last: [u8; 16] = iv.try_into().unwrap();
        let mut out = Vec::new();
        for piece in text.chunks(16) {
            let block = piece.try_into().ok()?;
            out.extend(xor(self.aes.decrypt(block), last));
            last = block;
        }
        Some(out)
    }
}
