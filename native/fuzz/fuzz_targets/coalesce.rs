#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| dsvpn_fuzz::fuzz_bodies::coalesce(octets));
