//! AES-CBC and AES-CTR with HMAC-SHA2: whole ESP packets, encrypted and then authenticated (RFC 4303 section 3.3.2).

use std::fmt;

use aes::cipher::{Array, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit, StreamCipher};
use aes::{Aes128, Aes192, Aes256};
use ring::hmac::{self, HMAC_SHA256, HMAC_SHA384, HMAC_SHA512};
use subtle::ConstantTimeEq;

use super::hmac_suite::{HmacSuite, Mode};
use crate::aead::{SALT_LENGTH, Unauthentic};
use dsvpn_wire::esp::HEADER;

type Block = Array<u8, aes::cipher::consts::U16>;

/// What the key of the IVs is derived from the key material with.
const IV_LABEL: &[u8] = b"dsvpn ESP IV";

/// A cipher key and an HMAC key, expanded once.
pub(crate) struct HmacCipher {
    suite: HmacSuite,
    salt: [u8; SALT_LENGTH],
    aes: Aes,
    mac: hmac::Key,
    /// Encrypts sequence numbers to IVs of CBC.
    ivs: Aes128,
}

enum Aes {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

impl fmt::Debug for HmacCipher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "HmacCipher({})", self.suite.name())
    }
}

fn block(octets: &[u8]) -> Block {
    let mut block = Block::default();
    block.copy_from_slice(octets);
    block
}

/// Call the same code for each length of key.
macro_rules! with_aes {
    ($aes:expr, $cipher:ident => $do:expr) => {
        match $aes {
            Aes::Aes128($cipher) => $do,
            Aes::Aes192($cipher) => $do,
            Aes::Aes256($cipher) => $do,
        }
    };
}

impl HmacCipher {
    /// Expand key material: cipher key, salt, HMAC key (RFC 7296 section 2.17). `None`: it has another length.
    pub(crate) fn new(suite: HmacSuite, keymat: &[u8]) -> Option<Self> {
        let (key, rest) = keymat.split_at_checked(suite.cipher_key())?;
        let (salt, mac) = rest.split_at_checked(suite.salt())?;
        let aes = match suite.key_bits {
            128 => Aes::Aes128(Aes128::new_from_slice(key).ok()?),
            192 => Aes::Aes192(Aes192::new_from_slice(key).ok()?),
            _ => Aes::Aes256(Aes256::new_from_slice(key).ok()?),
        };
        let algorithm = match suite.hash_bits {
            256 => HMAC_SHA256,
            384 => HMAC_SHA384,
            _ => HMAC_SHA512,
        };
        let mut octets = [0; SALT_LENGTH];
        octets[..salt.len()].copy_from_slice(salt);
        let derived = hmac::sign(&hmac::Key::new(HMAC_SHA256, keymat), IV_LABEL);
        let ivs = Aes128::new_from_slice(derived.as_ref().get(..16)?).ok()?;
        (mac.len() == suite.hash_bits as usize / 8).then(|| Self {
            suite,
            salt: octets,
            aes,
            mac: hmac::Key::new(algorithm, mac),
            ivs,
        })
    }

    pub(crate) fn suite(&self) -> HmacSuite {
        self.suite
    }

    /// Finish a packet in place: SPI, sequence number and, behind the IV's place, the plaintext with its trailer are
    /// there. The IV is written, the plaintext encrypted and the ICV written to the end.
    ///
    /// The caller never uses a sequence number twice. False if the packet has not the suite's shape; nothing is done.
    #[must_use]
    pub(crate) fn seal(&self, sequence: u64, esn: bool, packet: &mut [u8]) -> bool {
        let shape = self.suite.shape();
        let Some(text) = packet.len().checked_sub(shape.header() + shape.icv()) else {
            return false;
        };
        if !text.is_multiple_of(shape.block()) {
            return false;
        }
        let end = shape.header() + text;
        let (header, rest) = packet.split_at_mut(shape.header());
        match self.suite.mode {
            Mode::Cbc => header[HEADER..].copy_from_slice(&self.unpredictable(sequence)),
            // RFC 3686 section 2.1: the IV of a packet is unique under its key, which a sequence number is.
            Mode::Ctr => header[HEADER..].copy_from_slice(&sequence.to_be_bytes()),
        }
        self.encrypt(&header[HEADER..], &mut rest[..text]);
        let icv = self.icv(sequence, esn, &packet[..end]);
        packet[end..].copy_from_slice(&icv.as_ref()[..shape.icv()]);
        true
    }

    /// Authenticate a packet and decrypt it in place: octets of the plaintext, which begins behind the IV.
    pub(crate) fn open(&self, sequence: u64, esn: bool, packet: &mut [u8]) -> Result<usize, Unauthentic> {
        let shape = self.suite.shape();
        let text = packet.len().checked_sub(shape.header() + shape.icv()).ok_or(Unauthentic)?;
        let (signed, given) = packet.split_at(shape.header() + text);
        let icv = self.icv(sequence, esn, signed);
        // The time that this takes tells nothing about where they differ.
        if !bool::from(icv.as_ref()[..shape.icv()].ct_eq(given)) {
            return Err(Unauthentic);
        }
        // What has the ICV of the peer was made by it: a length that blocks do not fill is a defect there.
        if self.suite.mode == Mode::Cbc && !text.is_multiple_of(shape.block()) {
            return Err(Unauthentic);
        }
        let (header, rest) = packet.split_at_mut(shape.header());
        self.decrypt(&header[HEADER..], &mut rest[..text]);
        Ok(text)
    }

    /// `iv` has the suite's length, and `text` in CBC mode is whole blocks.
    fn encrypt(&self, iv: &[u8], text: &mut [u8]) {
        match self.suite.mode {
            Mode::Cbc => {
                let (blocks, _) = Block::slice_as_chunks_mut(text);
                with_aes!(&self.aes, aes => cbc::Encryptor::inner_iv_init(aes, &block(iv)).encrypt_blocks(blocks));
            }
            Mode::Ctr => self.stream(iv, text),
        }
    }

    fn decrypt(&self, iv: &[u8], text: &mut [u8]) {
        match self.suite.mode {
            Mode::Cbc => {
                let (blocks, _) = Block::slice_as_chunks_mut(text);
                with_aes!(&self.aes, aes => cbc::Decryptor::inner_iv_init(aes, &block(iv)).decrypt_blocks(blocks));
            }
            Mode::Ctr => self.stream(iv, text),
        }
    }

    /// The IV of a packet in CBC mode. It must not be foreseen (RFC 3602 section 3): a sequence number under a key that
    /// only the two ends can know is as good as random, and never comes twice (NIST SP 800-38A appendix C).
    fn unpredictable(&self, sequence: u64) -> Block {
        let mut iv = Block::default();
        iv[8..].copy_from_slice(&sequence.to_be_bytes());
        self.ivs.encrypt_block(&mut iv);
        iv
    }

    /// Encrypt or decrypt in counter mode. A counter block is salt, IV and a counter from 1 (RFC 3686 section 4).
    fn stream(&self, iv: &[u8], text: &mut [u8]) {
        let mut counter = Block::default();
        counter[..4].copy_from_slice(&self.salt);
        counter[4..12].copy_from_slice(iv);
        counter[15] = 1;
        with_aes!(&self.aes, aes => {
            let core = ctr::CtrCore::<_, ctr::flavors::Ctr32BE>::inner_iv_init(aes, &counter);
            ctr::cipher::StreamCipherCoreWrapper::from_core(core).apply_keystream(text);
        });
    }

    /// The whole HMAC over header, IV and ciphertext, and, with ESN, the high half of the sequence number, which is not
    /// sent (RFC 4303 section 2.2.1).
    fn icv(&self, sequence: u64, esn: bool, packet: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(packet);
        if esn {
            context.update(&((sequence >> 32) as u32).to_be_bytes());
        }
        context.sign()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
    }

    fn cipher(name: &str, key: &str, salt: &str) -> HmacCipher {
        let suite = HmacSuite::named(name).unwrap();
        let mut keymat = hex(key);
        keymat.extend(hex(salt));
        keymat.resize(suite.keymat_length(), 0x0b);
        HmacCipher::new(suite, &keymat).unwrap()
    }

    /// RFC 3602 section 4, RFC 3686 section 6, NIST SP 800-38A appendix F.2: name, key, nonce, IV, plaintext, ciphertext.
    const VECTORS: &[[&str; 6]] = &[
        [
            "aes128-sha256",
            "06a9214036b8a15b512e03d534120006",
            "",
            "3dafba429d9eb430b422da802c9fac41",
            "53696e676c6520626c6f636b206d7367",
            "e353779c1079aeb82708942dbe77181a",
        ],
        [
            "aes128-sha256",
            "c286696d887c9aa0611bbb3e2025a45a",
            "",
            "562e17996d093d28ddb3ba695a2e6f58",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
            "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
        ],
        // An ESP packet: an echo request with padding and trailer.
        [
            "aes128-sha256",
            "90d382b410eeba7ad938c46cec1a82bf",
            "",
            "e96e8c08ab465763fd098d45dd3ff893",
            "08000ebda70a00008e9c083db95b070008090a0b0c0d0e0f1011121314151617
             18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637
             0102030405060708090a0b0c0d0e0e01",
            "f663c25d325c18c6a9453e194e120849a4870b66cc6b9965330013b4898dc856
             a4699e523a55db080b59ec3a8e4b7e52775b07d1db34ed9c538ab50c551b874a
             a269add047ad2d5913ac19b7cfbad4a6",
        ],
        [
            "aes192-sha256",
            "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
            "",
            "000102030405060708090a0b0c0d0e0f",
            "6bc1bee22e409f96e93d7e117393172a",
            "4f021db243bc633d7178183a9fa071e8",
        ],
        [
            "aes256-sha256",
            "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            "",
            "000102030405060708090a0b0c0d0e0f",
            "6bc1bee22e409f96e93d7e117393172a",
            "f58c4c04d6e5f1ba779eabfb5f7bfbd6",
        ],
        [
            "aes128ctr-sha256",
            "ae6852f8121067cc4bf7a5765577f39e",
            "00000030",
            "0000000000000000",
            "53696e676c6520626c6f636b206d7367",
            "e4095d4fb7a7b3792d6175a3261311b8",
        ],
        [
            "aes128ctr-sha384",
            "7691be035e5020a8ac6e618529f9a0dc",
            "00e0017b",
            "27777f3f4a1786f0",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
            "c1cf48a89f2ffdd9cf4652e9efdb72d74540a42bde6d7836d59a5ceaaef3105325b2072f",
        ],
        [
            "aes192ctr-sha256",
            "16af5b145fc9f579c175f93e3bfb0eed863d06ccfdb78515",
            "00000048",
            "36733c147d6d93cb",
            "53696e676c6520626c6f636b206d7367",
            "4b55384fe259c9c84e7935a003cbe928",
        ],
        [
            "aes256ctr-sha512",
            "ff7a617ce69148e4f1726e2f43581de2aa62d9f805532edff1eed687fb54153d",
            "001cc5b7",
            "51a51d70a1c11148",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
            "eb6c52821d0bbbf7ce7594462aca4faab407df866569fd07f48cc0b583d6071f1ec0e6b8",
        ],
    ];

    #[test]
    fn known_answers_of_the_modes() {
        for [name, key, nonce, iv, plaintext, ciphertext] in VECTORS {
            let cipher = cipher(name, key, nonce);
            let mut text = hex(plaintext);
            cipher.encrypt(&hex(iv), &mut text);
            assert_eq!(text, hex(ciphertext), "{name}");
            cipher.decrypt(&hex(iv), &mut text);
            assert_eq!(text, hex(plaintext), "{name}");
        }
    }

    /// RFC 4868 section 2.7.2: keys of 0x0b octets, and the data "Hi There"; the ICV is the first half.
    #[test]
    fn known_answers_of_hmac() {
        for (name, tag) in [
            ("aes128-sha256", "198a607eb44bfbc69903a0f1cf2bbdc5"),
            ("aes128-sha384", "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee973"),
            ("aes128-sha512", "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8"),
        ] {
            let cipher = cipher(name, "06a9214036b8a15b512e03d534120006", "");
            assert_eq!(cipher.suite().shape().icv(), tag.len() / 2);
            assert_eq!(cipher.icv(0x1_0000_0001, false, b"Hi There").as_ref()[..tag.len() / 2], hex(tag));
            // With ESN the high half of the sequence number follows.
            let parts = [&b"Hi There"[..], &[0, 0, 0, 1]].concat();
            let whole = cipher.icv(1, false, &parts);
            assert_eq!(cipher.icv(0x1_0000_0001, true, b"Hi There").as_ref(), whole.as_ref());
        }
    }

    #[test]
    fn an_iv_of_cbc_never_comes_twice_and_differs_between_keys() {
        let (one, other) = (cipher("aes256-sha256", "06", ""), cipher("aes256-sha256", "07", ""));
        let mut seen = std::collections::HashSet::new();
        for sequence in 1..2000 {
            assert!(seen.insert(one.unpredictable(sequence)));
            assert!(seen.insert(other.unpredictable(sequence)));
        }
    }

    #[test]
    fn what_has_no_shape_is_refused() {
        let cipher = cipher("aes128-sha256", "06", "");
        for length in 0..8 + 16 + 16 + 16 + 40 {
            let mut packet = vec![0; length];
            let whole = length >= 40 && (length - 40) % 16 == 0;
            assert_eq!(cipher.seal(1, false, &mut packet), whole, "{length}");
            assert_eq!(cipher.open(1, false, &mut packet).is_ok(), whole, "{length}");
        }
    }
}
