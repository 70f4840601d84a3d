//! Which kernel runs on this processor.

use dsvpn_dataplane::kernel::{Kernel, set_kernel};

/// The kernel for this processor, if there is one.
pub fn kernel() -> Option<&'static Kernel> {
    #[cfg(target_arch = "x86_64")]
    if super::vaes::is_supported() {
        return Some(&super::vaes::KERNEL);
    }
    None
}

/// Have all keys that are made from here on use the kernel for this processor, if there is one.
pub fn install() {
    set_kernel(kernel());
}
