//! Blocking wait for descriptors.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// The descriptors of one waiting thread.
#[derive(Default)]
pub struct PollSet {
    entries: Vec<libc::pollfd>,
}

impl PollSet {
    /// Watch these for reading. The order is the index that [`PollSet::is_ready`] takes.
    pub fn set(&mut self, descriptors: impl IntoIterator<Item = RawFd>) {
        self.entries.clear();
        self.entries.extend(descriptors.into_iter().map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }));
    }

    /// Wait until one is readable or has an error.
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            // SAFETY: the pointer and the count are those of one live, exclusively borrowed vector.
            let ready = unsafe { libc::poll(self.entries.as_mut_ptr(), self.entries.len() as libc::nfds_t, -1) };
            if ready >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Readable, hung up or in error: whichever it is, the next read tells.
    pub fn is_ready(&self, index: usize) -> bool {
        self.entries[index].revents != 0
    }
}

/// Wait at most `limit` for room to send. True when there is.
pub fn wait_writable(fd: RawFd, limit: Duration) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid entry.
    let ready = unsafe { libc::poll(&raw mut entry, 1, limit.as_millis() as libc::c_int) };
    ready > 0
}

/// Wait at most `limit`, in whole milliseconds and at least one, for something to receive.
pub fn wait_readable(fd: RawFd, limit: Duration) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    let ready = unsafe { libc::poll(&raw mut entry, 1, limit.as_millis().max(1) as libc::c_int) };
    ready > 0
}
