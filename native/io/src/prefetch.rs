//! Asking the processor for memory before it is needed.

use dsvpn_dataplane::prefetch::Prefetch;

/// Asks where there is an instruction for it.
#[derive(Clone, Copy, Debug)]
pub struct Lines;

impl Prefetch for Lines {
    #[inline]
    fn line(address: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction reads nothing: an address that is not mapped is ignored.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(address.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }
}

/// Encapsulation that asks ahead.
pub type Encap = dsvpn_dataplane::Encap<Lines>;
/// Decapsulation that asks ahead.
pub type Decap = dsvpn_dataplane::Decap<Lines>;
