//! The descriptors of one TUN device: one, or several queues that several workers read at a time.
//!
//! The kernel chooses a queue by the hash of a packet's flow, so a flow stays in order. But it also remembers, for a packet
//! that is written to a queue, to give the answers to that same queue, which would move a flow in its midst, and costs a
//! hash per packet. It does neither for queues that are detached, to which one can write all the same. So each worker reads
//! from one queue and writes to another, which is detached.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::SystemError;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;

/// What an open device consists of.
#[derive(Debug)]
pub struct Queues {
    /// At least one.
    pub readers: Vec<OwnedFd>,
    /// As many as readers; none where the only reader is written to.
    pub writers: Vec<OwnedFd>,
    /// Why there is one queue where several were asked for.
    pub refused: Option<io::Error>,
    /// The request that attached the last queue: the device's name is in it.
    pub request: libc::ifreq,
}

impl Queues {
    /// Create the device with so many queues, or with one where the kernel refuses more.
    pub fn create(name: &str, wanted: usize) -> Result<Self, SystemError> {
        let mut refused = None;
        if wanted > 1 {
            match Self::several(name, wanted) {
                Ok(queues) => return Ok(queues),
                Err(error) => refused = Some(error),
            }
        }
        let descriptor = open().map_err(|error| SystemError::new(why_not_opened(&error), error))?;
        match attach(&descriptor, name, 0) {
            Ok(request) => Ok(Self { readers: vec![descriptor], writers: Vec::new(), refused, request }),
            Err(error) => Err(SystemError::new(why_not_created(name, &error), error)),
        }
    }

    fn several(name: &str, wanted: usize) -> io::Result<Self> {
        let mut writers = Vec::with_capacity(wanted);
        for queue in 0..wanted {
            let descriptor = open()?;
            // A device that another process has open would take more queues: its owner's packets would come here.
            let exclusive = if queue == 0 { libc::IFF_TUN_EXCL } else { 0 };
            attach(&descriptor, name, libc::IFF_MULTI_QUEUE | exclusive)?;
            writers.push(descriptor);
        }
        // The last first: detaching moves the last into the place of what goes, and so each keeps its own number, which
        // is how the kernel spreads what is written over the queues of the device that it goes to.
        for descriptor in writers.iter().rev() {
            detach(descriptor)?;
        }
        let mut readers = Vec::with_capacity(wanted);
        // SAFETY: ifreq is a plain C structure for which all zeroes is a valid value.
        let mut request = unsafe { std::mem::zeroed() };
        for _ in 0..wanted {
            let descriptor = open()?;
            request = attach(&descriptor, name, libc::IFF_MULTI_QUEUE)?;
            readers.push(descriptor);
        }
        Ok(Self { readers, writers, refused: None, request })
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: the path is a valid C string.
    let descriptor = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn why_not_opened(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "/dev/net/tun is missing: load the kernel module 'tun', or give the container that device".into()
        }
        Some(libc::EPERM | libc::EACCES) => "/dev/net/tun cannot be opened: run as root or with CAP_NET_ADMIN".into(),
        _ => String::from("cannot open /dev/net/tun"),
    }
}

fn why_not_created(name: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => format!("network device {name} is in use by another process"),
        Some(libc::EPERM) => format!("cannot create network device {name}: run as root or with CAP_NET_ADMIN"),
        Some(libc::EINVAL | libc::EEXIST) => {
            format!("network device {name} exists and is no TUN of this kind: remove it or take another name")
        }
        _ => format!("cannot create network device {name}"),
    }
}

/// Attach a descriptor to the device, which is created with the first.
fn attach(descriptor: &OwnedFd, name: &str, flags: libc::c_int) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is a plain C structure for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let c_name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    for (target, source) in request.ifr_name.iter_mut().zip(c_name.as_bytes().iter().take(15)) {
        *target = *source as libc::c_char;
    }
    let flags = flags | libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is valid and exclusively borrowed.
    if unsafe { libc::ioctl(descriptor.as_raw_fd(), TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request)
}

/// Have the kernel give this queue no packets any more.
fn detach(descriptor: &OwnedFd) -> io::Result<()> {
    // SAFETY: ifreq is a plain C structure for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as libc::c_short;
    // SAFETY: TUNSETQUEUE reads one ifreq, which is valid.
    if unsafe { libc::ioctl(descriptor.as_raw_fd(), TUNSETQUEUE as _, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
