//! The suites of ciphers that do not authenticate: AES-CBC (RFC 3602) or AES-CTR (RFC 3686), with HMAC-SHA2 (RFC 4868).

use super::Shape;

/// How AES encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// RFC 3602.
    Cbc,
    /// RFC 3686.
    Ctr,
}

/// A cipher and an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HmacSuite {
    /// How AES encrypts.
    pub mode: Mode,
    /// Bits of the cipher key: 128, 192 or 256.
    pub key_bits: u16,
    /// Bits of the hash: 256, 384 or 512. The ICV is half of it.
    pub hash_bits: u16,
}

macro_rules! suites {
    ($($name:literal = $mode:ident $key:literal $hash:literal,)*) => {
        /// Every suite.
        pub const ALL: &'static [Self] = &[$(Self { mode: Mode::$mode, key_bits: $key, hash_bits: $hash },)*];
        const NAMES: &'static [&'static str] = &[$($name,)*];
    };
}

impl HmacSuite {
    suites! {
        "aes128-sha256" = Cbc 128 256,
        "aes128-sha384" = Cbc 128 384,
        "aes128-sha512" = Cbc 128 512,
        "aes192-sha256" = Cbc 192 256,
        "aes192-sha384" = Cbc 192 384,
        "aes192-sha512" = Cbc 192 512,
        "aes256-sha256" = Cbc 256 256,
        "aes256-sha384" = Cbc 256 384,
        "aes256-sha512" = Cbc 256 512,
        "aes128ctr-sha256" = Ctr 128 256,
        "aes128ctr-sha384" = Ctr 128 384,
        "aes128ctr-sha512" = Ctr 128 512,
        "aes192ctr-sha256" = Ctr 192 256,
        "aes192ctr-sha384" = Ctr 192 384,
        "aes192ctr-sha512" = Ctr 192 512,
        "aes256ctr-sha256" = Ctr 256 256,
        "aes256ctr-sha384" = Ctr 256 384,
        "aes256ctr-sha512" = Ctr 256 512,
    }

    /// The suite of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().position(|other| *other == name).map(|at| Self::ALL[at])
    }

    pub(crate) const fn name(self) -> &'static str {
        let mut at = 0;
        while at < Self::ALL.len() {
            let other = Self::ALL[at];
            if other.key_bits == self.key_bits
                && other.hash_bits == self.hash_bits
                && other.mode as u8 == self.mode as u8
            {
                return Self::NAMES[at];
            }
            at += 1;
        }
        "AES with HMAC-SHA2 of lengths that there are not"
    }

    /// Octets of the cipher key, without salt.
    pub(crate) const fn cipher_key(self) -> usize {
        self.key_bits as usize / 8
    }

    /// Octets of the salt (RFC 3686 section 5.1 calls it the nonce).
    pub(crate) const fn salt(self) -> usize {
        match self.mode {
            Mode::Cbc => 0,
            Mode::Ctr => 4,
        }
    }

    /// Octets of key material: the cipher key, its salt, and the key of the HMAC, which is as long as the hash
    /// (RFC 4868 section 2.1.1).
    pub(crate) const fn keymat_length(self) -> usize {
        self.cipher_key() + self.salt() + self.hash_bits as usize / 8
    }

    pub(crate) fn shape(self) -> Shape {
        // RFC 4868 section 2.3: the ICV is the first half of the hash.
        Shape { mode: Some(self.mode), icv: (self.hash_bits / 16) as u8 }
    }
}
