//! Huge pages for the heap that the tables lie in.
//!
//! The keys of 100,000 peers are hundreds of megabytes, read at random: with pages of 4 KiB, finding where a page lies
//! costs more than reading it.

/// Have mimalloc, if it is the process's allocator, ask the kernel for transparent huge pages from here on.
///
/// The kernel decides: nothing happens where `/sys/kernel/mm/transparent_hugepage/enabled` says `never`.
pub fn ask() {
    // SAFETY: the function takes any thread and any value; the option is one of the enumeration.
    unsafe { libmimalloc_sys::mi_option_set_enabled(libmimalloc_sys::mi_option_large_os_pages, true) };
}
