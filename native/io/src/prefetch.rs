//! Asking the processor for memory before it is needed.

/// Octets of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Have the data plane ask, where there is an instruction for it.
pub fn install() {
    #[cfg(target_arch = "x86_64")]
    dsvpn_dataplane::prefetch::set_prefetch(lines);
}

#[cfg(target_arch = "x86_64")]
fn lines(start: *const u8, octets: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    let into = start.addr() % LINE;
    for offset in (0..octets + into).step_by(LINE) {
        // SAFETY: the instruction reads nothing: an address that is not mapped is ignored.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset).cast()) };
    }
}
