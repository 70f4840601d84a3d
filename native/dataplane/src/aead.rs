//! The AEADs of ESP: AES-GCM with a 16-octet ICV (RFC 4106) and ChaCha20-Poly1305 (RFC 7634). What is no AEAD lies in
//! [`crate::esp`].

use std::fmt;
use std::str::FromStr;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::error::TablesError;
use crate::esp::{HmacCipher, HmacSuite, Shape};
use crate::kernel::{self, GcmKey, Kernel, Salt};

/// Octets of the ICV of every AEAD.
pub const ICV_LENGTH: usize = 16;
/// Octets of the explicit IV of every AEAD.
pub const IV_LENGTH: usize = 8;
/// Octets of the salt, at the end of an AEAD's key material.
pub const SALT_LENGTH: usize = 4;

/// An ESP suite, by the names of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// `aes128gcm16`
    Aes128Gcm16,
    /// `aes256gcm16`
    Aes256Gcm16,
    /// `chacha20poly1305`
    ChaCha20Poly1305,
    /// For old peers, such as `aes256-sha256` (CBC) and `aes256ctr-sha256`.
    Hmac(HmacSuite),
    /// Neither secrecy nor authenticity: shows what everything but cryptography costs. No name parses to it.
    #[cfg(feature = "bench")]
    NullForBenchmarks,
}

impl Suite {
    /// Octets of key material: the cipher key and the salt; then the HMAC's key, where there is one.
    pub const fn keymat_length(self) -> usize {
        match self {
            Suite::Aes128Gcm16 => 16 + SALT_LENGTH,
            Suite::Aes256Gcm16 | Suite::ChaCha20Poly1305 => 32 + SALT_LENGTH,
            Suite::Hmac(suite) => suite.keymat_length(),
            #[cfg(feature = "bench")]
            Suite::NullForBenchmarks => SALT_LENGTH,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Suite::Aes128Gcm16 => "aes128gcm16",
            Suite::Aes256Gcm16 => "aes256gcm16",
            Suite::ChaCha20Poly1305 => "chacha20poly1305",
            Suite::Hmac(suite) => suite.name(),
            #[cfg(feature = "bench")]
            Suite::NullForBenchmarks => "null (benchmarks only)",
        }
    }
}

impl FromStr for Suite {
    type Err = TablesError;

    fn from_str(name: &str) -> Result<Self, TablesError> {
        match name {
            "aes128gcm16" => Ok(Suite::Aes128Gcm16),
            "aes256gcm16" => Ok(Suite::Aes256Gcm16),
            "chacha20poly1305" => Ok(Suite::ChaCha20Poly1305),
            _ => match HmacSuite::named(name) {
                Some(suite) => Ok(Suite::Hmac(suite)),
                None => Err(TablesError::UnknownSuite(name.chars().take(64).collect())),
            },
        }
    }
}

/// The ICV did not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unauthentic;

/// One key, expanded once, and its salt.
pub struct Cipher {
    kind: Kind,
}

// The expanded schedule is held inline: a box would cost every packet a step. The salts lie with the keys so that a
// kernel's key begins 16 octets behind the cipher.
#[allow(clippy::large_enum_variant)]
enum Kind {
    // ring dispatches on the algorithm inside.
    Ring(Salt, LessSafeKey),
    Kernel(Salt, &'static Kernel, GcmKey),
    // Apart, so that the AEADs' keys lie as they would without it.
    Hmac(Box<HmacCipher>),
    #[cfg(feature = "bench")]
    Null,
}

#[inline]
fn nonce(salt: Salt, iv: [u8; IV_LENGTH]) -> Nonce {
    let mut nonce = [0; SALT_LENGTH + IV_LENGTH];
    nonce[..SALT_LENGTH].copy_from_slice(&salt);
    nonce[SALT_LENGTH..].copy_from_slice(&iv);
    Nonce::assume_unique_for_key(nonce)
}

impl fmt::Debug for Cipher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Cipher(..)")
    }
}

impl Cipher {
    /// Expand key material: the key, then the salt. AES-GCM is for [`kernel::kernel`].
    ///
    /// Errors: [`TablesError::KeymatLength`].
    pub fn new(suite: Suite, keymat: &[u8]) -> Result<Self, TablesError> {
        Self::with_kernel(suite, keymat, kernel::kernel())
    }

    /// As [`Cipher::new`], with a kernel for AES-GCM or, without one, ring: to compare them.
    pub fn with_kernel(suite: Suite, keymat: &[u8], kernel: Option<&'static Kernel>) -> Result<Self, TablesError> {
        let wrong = || TablesError::KeymatLength { suite, expected: suite.keymat_length(), given: keymat.len() };
        if keymat.len() != suite.keymat_length() {
            return Err(wrong());
        }
        if let Suite::Hmac(suite) = suite {
            let cipher = HmacCipher::new(suite, keymat).ok_or_else(wrong)?;
            return Ok(Self { kind: Kind::Hmac(Box::new(cipher)) });
        }
        let (key, salt) = keymat.split_at(keymat.len() - SALT_LENGTH);
        let salt = Salt::try_from(salt).map_err(|_| wrong())?;
        let ring = |algorithm: &'static Algorithm| {
            UnboundKey::new(algorithm, key).map(|key| Kind::Ring(salt, LessSafeKey::new(key))).map_err(|_| wrong())
        };
        let aes = |algorithm| match kernel.and_then(|kernel| Some((kernel, (kernel.expand)(key)?))) {
            Some((kernel, key)) => Ok(Kind::Kernel(salt, kernel, key)),
            None => ring(algorithm),
        };
        let kind = match suite {
            Suite::Aes128Gcm16 => aes(&AES_128_GCM)?,
            Suite::Aes256Gcm16 => aes(&AES_256_GCM)?,
            Suite::ChaCha20Poly1305 | Suite::Hmac(_) => ring(&CHACHA20_POLY1305)?,
            #[cfg(feature = "bench")]
            Suite::NullForBenchmarks => Kind::Null,
        };
        Ok(Self { kind })
    }

    /// What packets under this key look like.
    pub(crate) fn shape(&self) -> Shape {
        self.hmac().map_or(Shape::AEAD, |cipher| cipher.suite().shape())
    }

    /// The cipher with HMAC, unless it is an AEAD.
    pub(crate) fn hmac(&self) -> Option<&HmacCipher> {
        if let Kind::Hmac(cipher) = &self.kind { Some(cipher) } else { None }
    }

    /// Encrypt in place by an AEAD: `octets` are the plaintext and room for the ICV, which is written there.
    ///
    /// The caller never uses an IV twice. A suite with HMAC has no AEAD: there is nothing but zeros then.
    #[inline]
    pub fn seal(&self, iv: [u8; IV_LENGTH], aad: &[u8], octets: &mut [u8]) {
        let sealed = match &self.kind {
            Kind::Kernel(salt, kernel, key) => (kernel.seal)(key, *salt, iv, aad, octets),
            Kind::Ring(salt, key) => octets.split_last_chunk_mut::<ICV_LENGTH>().is_some_and(|(plaintext, icv)| {
                key.seal_in_place_separate_tag(nonce(*salt, iv), Aad::from(aad), plaintext)
                    .map(|tag| icv.copy_from_slice(tag.as_ref()))
                    .is_ok()
            }),
            Kind::Hmac(_) => false,
            #[cfg(feature = "bench")]
            Kind::Null => octets.last_chunk_mut::<ICV_LENGTH>().map(|icv| icv.fill(0)).is_some(),
        };
        if !sealed {
            // No AEAD, no room, or tens of gigabytes of text: none comes from here, and no plaintext may leave.
            debug_assert!(false, "an AEAD, and room for the ICV");
            octets.fill(0);
        }
    }

    /// Where the expanded key begins; where that is asked for, keys of the kernel lie at one offset in all ciphers.
    #[cfg(test)]
    pub(crate) fn key_address(&self) -> usize {
        match &self.kind {
            Kind::Kernel(_, _, key) => std::ptr::from_ref(key).addr(),
            _ => 0,
        }
    }

    /// Authenticate and decrypt in place by an AEAD: `sealed` is ciphertext and ICV, the plaintext is what it begins with.
    ///
    /// Gives the plaintext's length. What follows it is undefined afterwards.
    #[inline]
    pub fn open(&self, iv: [u8; IV_LENGTH], aad: &[u8], sealed: &mut [u8]) -> Result<usize, Unauthentic> {
        match &self.kind {
            Kind::Kernel(salt, kernel, key) => {
                if (kernel.open)(key, *salt, iv, aad, sealed) {
                    Ok(sealed.len() - ICV_LENGTH)
                } else {
                    Err(Unauthentic)
                }
            }
            Kind::Ring(salt, key) => key
                .open_in_place(nonce(*salt, iv), Aad::from(aad), sealed)
                .map(|plaintext| plaintext.len())
                .map_err(|_| Unauthentic),
            Kind::Hmac(_) => Err(Unauthentic),
            #[cfg(feature = "bench")]
            Kind::Null => sealed.len().checked_sub(ICV_LENGTH).ok_or(Unauthentic),
        }
    }
}

/// What AES-GCM keys are made for on this processor, for people.
pub fn backend() -> &'static str {
    kernel::kernel().map_or_else(ring_backend, |kernel| kernel.name)
}

fn ring_backend() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        let pclmul = is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
        if pclmul
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("avx2")
        {
            return "ring (VAES+AVX2)";
        }
        if pclmul && is_x86_feature_detected!("avx") && is_x86_feature_detected!("movbe") {
            return "ring (AES-NI+AVX)";
        }
        if pclmul {
            return "ring (AES-NI)";
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull") {
        return "ring (ARMv8 AES)";
    }
    "ring (no AES instructions)"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// draft-mcgrew-gcm-test-01, section 2: an ESP packet of AES-128-GCM (SPI 0x0000a5f8, sequence number 10).
    #[test]
    fn known_esp_packet() {
        let keymat = hex("4c80cdefbb5d10da906ac73c3613a6342e443b68");
        let iv = hex("4956ed7e3b244cfe").try_into().unwrap();
        let aad = hex("000043218765432100000000");
        let plaintext = hex(concat!(
            "45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000",
            "00000000045f736970045f756470037369700963796265726369747902646b00",
            "0021000101020201"
        ));
        let sealed = hex(concat!(
            "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34",
            "cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce",
            "61bc17d768fd9732"
        ));
        let icv = hex("459018148f6cbe722fd04796562dfdb4");
        let cipher = Cipher::new(Suite::Aes128Gcm16, &keymat).unwrap();
        let mut octets = [&plaintext[..], &[0; ICV_LENGTH]].concat();
        cipher.seal(iv, &aad, &mut octets);
        assert_eq!(octets, [sealed, icv].concat());
        assert_eq!(cipher.open(iv, &aad, &mut octets), Ok(plaintext.len()));
        assert_eq!(&octets[..plaintext.len()], &plaintext[..]);
    }

    #[test]
    fn keymat_must_have_the_suites_length() {
        let error = Cipher::new(Suite::Aes256Gcm16, &[0; 20]).unwrap_err();
        assert_eq!(error.to_string(), "keymat: aes256gcm16 takes 36 octets (key and salt), not 20");
        assert!("null".parse::<Suite>().is_err());
    }
}
