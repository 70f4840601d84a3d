//! `raw-ring SUITE OCTETS...` prints, for each packet size, the seconds that ring takes to seal and to open one packet.
//!
//! One packet per call, in place, 8 octets of AAD as ESP without ESN has them. The packets lie one behind the other in
//! as many octets as a vector of 64 takes, so that ring sees the same caches as the data plane. Each figure is the
//! median of several rounds.
#![forbid(unsafe_code)]

use std::env;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use ring::aead::{AES_128_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

const TAG: usize = 16;
const VECTOR: usize = 64;
const ROUNDS: usize = 9;
/// Octets that one round seals and opens at least.
const ROUND_OCTETS: usize = 2 << 20;

fn nonce(sequence: u64) -> Nonce {
    let mut octets = [0; 12];
    octets[4..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(octets)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Seconds to seal and to open one packet.
fn measure(key: &LessSafeKey, size: usize) -> Option<(f64, f64)> {
    let mut arena = vec![0u8; VECTOR * (size + TAG)];
    let vectors = (ROUND_OCTETS / arena.len()).max(4);
    let packets = (vectors * VECTOR) as f64;
    let (mut seal, mut open) = (Vec::new(), Vec::new());
    let aad = [0u8; 8];
    for _ in 0..ROUNDS {
        let (mut sealed, mut opened) = (0.0, 0.0);
        for vector in 0..vectors {
            let first = (vector * VECTOR) as u64;
            let begun = Instant::now();
            for (index, packet) in arena.chunks_exact_mut(size + TAG).enumerate() {
                let (plaintext, tag) = packet.split_at_mut(size);
                let found = key.seal_in_place_separate_tag(
                    nonce(first + index as u64),
                    Aad::from(aad),
                    plaintext,
                );
                tag.copy_from_slice(found.ok()?.as_ref());
            }
            sealed += begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            for (index, packet) in arena.chunks_exact_mut(size + TAG).enumerate() {
                black_box(
                    key.open_in_place(nonce(first + index as u64), Aad::from(aad), packet)
                        .ok()?,
                );
            }
            opened += begun.elapsed().as_secs_f64();
        }
        seal.push(sealed / packets);
        open.push(opened / packets);
    }
    Some((median(seal), median(open)))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let algorithm: &'static Algorithm = match arguments.first().map(String::as_str) {
        Some("aes128gcm16") => &AES_128_GCM,
        Some("chacha20poly1305") => &CHACHA20_POLY1305,
        _ => {
            eprintln!("raw-ring: give a suite (aes128gcm16 or chacha20poly1305) and packet sizes");
            return ExitCode::FAILURE;
        }
    };
    let key = vec![7; algorithm.key_len()];
    let Ok(key) = UnboundKey::new(algorithm, &key).map(LessSafeKey::new) else {
        return ExitCode::FAILURE;
    };
    let mut lines = Vec::new();
    for argument in &arguments[1..] {
        let Some((seal, open)) = argument
            .parse()
            .ok()
            .filter(|size| *size > 0)
            .and_then(|size| measure(&key, size))
        else {
            eprintln!("raw-ring: {argument} is no packet size");
            return ExitCode::FAILURE;
        };
        lines.push(format!(
            "\"{argument}\": {{\"seal\": {seal:e}, \"open\": {open:e}}}"
        ));
    }
    println!("{{{}}}", lines.join(", "));
    ExitCode::SUCCESS
}
