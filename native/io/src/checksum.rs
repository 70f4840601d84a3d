//! Internet checksums by the vectors of this processor.

use dsvpn_wire::checksum::set_wide;

/// Have long runs of octets be summed by the widest vectors that this processor has.
pub fn install() {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        set_wide(&avx2::WIDE);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use dsvpn_wire::checksum::{Wide, add_plain, copy_and_add_plain};

    pub(super) static WIDE: Wide = Wide { add, copy_and_add };

    fn add(sum: u64, octets: &[u8]) -> u64 {
        // SAFETY: `WIDE` is given out only where there is AVX2.
        unsafe { add_with_avx2(sum, octets) }
    }

    fn copy_and_add(sum: u64, to: &mut [u8], from: &[u8]) -> u64 {
        // SAFETY: `WIDE` is given out only where there is AVX2.
        unsafe { copy_and_add_with_avx2(sum, to, from) }
    }

    #[target_feature(enable = "avx2")]
    fn add_with_avx2(sum: u64, octets: &[u8]) -> u64 {
        add_plain(sum, octets)
    }

    #[target_feature(enable = "avx2")]
    fn copy_and_add_with_avx2(sum: u64, to: &mut [u8], from: &[u8]) -> u64 {
        copy_and_add_plain(sum, to, from)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn agrees_with_narrow_sums() {
            if !is_x86_feature_detected!("avx2") {
                eprintln!("this processor has no AVX2: nothing is tested");
                return;
            }
            let octets: Vec<u8> = (0..5000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            for length in (0..2100).chain([4999]) {
                let octets = &octets[length % 32..][..length.min(4900)];
                assert_eq!(add(7, octets), add_plain(7, octets), "{length} octets");
                let mut copy = vec![0; octets.len()];
                assert_eq!(copy_and_add(7, &mut copy, octets), add_plain(7, octets), "{length} octets");
                assert_eq!(copy, octets);
            }
            let most = vec![0xff; 65_535];
            assert_eq!(add(u64::from(u32::MAX), &most), add_plain(u64::from(u32::MAX), &most));
        }
    }
}
