//! The TUN device with virtio headers: one read or write is one packet or one superpacket.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::error::SystemError;
use crate::tun_queues::Queues;

/// The virtio_net_hdr without the mergeable buffer count.
pub const VIRTIO_HEADER: usize = 10;

/// Room that a read needs: the largest superpacket and its virtio header.
pub const READ_ROOM: usize = VIRTIO_HEADER + 65_535;

/// The most parts that the kernel takes in one writev.
pub const MAX_PARTS: usize = 1024;

const OFFLOAD_CSUM: libc::c_ulong = 0x01;
const OFFLOAD_TSO4: libc::c_ulong = 0x02;
const OFFLOAD_TSO6: libc::c_ulong = 0x04;
const OFFLOAD_USO4: libc::c_ulong = 0x20;
const OFFLOAD_USO6: libc::c_ulong = 0x40;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// Packets that the device holds until they are read.
const QUEUE_LENGTH: libc::c_int = 4096;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// An open TUN device. Closing it removes the device.
#[derive(Debug)]
pub struct Tun {
    /// One per queue.
    readers: Vec<OwnedFd>,
    /// As many, or none: then the only reader is written to.
    writers: Vec<OwnedFd>,
    /// Why there are no more queues.
    one_queue: Option<io::Error>,
    name: String,
    offload: libc::c_ulong,
    /// By gso_type of the virtio header, a bit: a superpacket of that kind was refused, and its segments are written
    /// one by one from then on.
    refused: AtomicU8,
    /// Somebody took the device away.
    gone: AtomicBool,
}

/// What is asked for, the best first: kernels before 6.2 know no UDP segmentation offload, and a device without TCP
/// segmentation offload still gives packets, each by itself.
const OFFLOADS: [libc::c_ulong; 5] = [
    OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6 | OFFLOAD_USO4 | OFFLOAD_USO6,
    OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6,
    OFFLOAD_CSUM | OFFLOAD_TSO4,
    OFFLOAD_CSUM,
    0,
];

/// Check a device name as the kernel does, and refuse the templates ("tun%d") that it would expand.
pub fn check_device_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if name.is_empty() || name.len() > 15 || !plain || name == "." || name == ".." {
        return Err(format!("'{name}' is no name for a network device: use 1 to 15 letters, digits, '.', '_' or '-'"));
    }
    Ok(())
}

impl Tun {
    /// Create the device, nonblocking, with all segmentation and checksum offloads that the kernel takes, and as many queues
    /// as asked for or one.
    pub fn create(name: &str, queues: usize) -> Result<Self, SystemError> {
        let Queues { readers, writers, refused: one_queue, request } = Queues::create(name, queues)?;
        let descriptor = &readers[0];
        let size = VIRTIO_HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        if unsafe { libc::ioctl(descriptor.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) } < 0 {
            return Err(SystemError::new(
                format!("network device {name} takes no virtio header"),
                io::Error::last_os_error(),
            ));
        }
        set_queue_length(&request);
        let offload = OFFLOADS.into_iter().find(|offload| set_offload(descriptor, *offload).is_ok()).unwrap_or(0);
        let (refused, gone) = (AtomicU8::new(0), AtomicBool::new(false));
        Ok(Self { readers, writers, one_queue, name: name.to_owned(), offload, refused, gone })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.readers.len()
    }

    /// What gives the packets of a queue.
    pub fn queue(&self, queue: usize) -> RawFd {
        self.readers[queue].as_raw_fd()
    }

    /// Why there is one queue where several were asked for.
    pub fn one_queue(&self) -> Option<&io::Error> {
        self.one_queue.as_ref()
    }

    /// Whether the device takes and gives UDP superpackets.
    pub fn udp_offload(&self) -> bool {
        self.offload & OFFLOAD_USO4 != 0
    }

    /// The offloads that the device gives, for people: "tso4 tso6 uso", or "none".
    pub fn offloads(&self) -> String {
        let names = [(OFFLOAD_CSUM, "csum"), (OFFLOAD_TSO4, "tso4"), (OFFLOAD_TSO6, "tso6"), (OFFLOAD_USO4, "uso")];
        let given: Vec<&str> = names.iter().filter(|(bit, _)| self.offload & bit != 0).map(|(_, name)| *name).collect();
        if given.is_empty() { String::from("none") } else { given.join(" ") }
    }

    /// Whether this kernel takes superpackets with this `gso_type` of the virtio header.
    pub fn takes_superpackets(&self, gso_type: u8) -> bool {
        self.refused.load(Ordering::Relaxed) & refusal(gso_type) == 0
    }

    /// Remember that this kernel refuses superpackets of a kind that it should take.
    pub fn refuse_superpackets(&self, gso_type: u8) {
        self.refused.fetch_or(refusal(gso_type), Ordering::Relaxed);
    }

    /// Remember that the device was taken away. True the first time.
    pub fn note_gone(&self) -> bool {
        !self.gone.swap(true, Ordering::Relaxed)
    }

    /// Read one virtio header and the packet behind it from a queue. None when no packet waits there.
    pub fn read(&self, queue: usize, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let descriptor = self.queue(queue);
        loop {
            // SAFETY: the pointer and the length are those of one exclusively borrowed slice.
            let count = unsafe { libc::read(descriptor, buffer.as_mut_ptr().cast(), buffer.len()) };
            if count >= 0 {
                return Ok(Some(count as usize));
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(None),
                _ => return Err(error),
            }
        }
    }

    /// Write one packet: the virtio header first, whatever the parts are. At most [`MAX_PARTS`] parts. Workers that write
    /// with different `lane`s do not get into each other's way.
    pub fn write(&self, lane: usize, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let writers = if self.writers.is_empty() { &self.readers } else { &self.writers };
        let descriptor = writers[lane % writers.len()].as_raw_fd();
        debug_assert!(parts.len() <= MAX_PARTS);
        loop {
            // SAFETY: IoSlice has the layout of iovec on Unix, and its slices are alive for the call.
            let count = unsafe { libc::writev(descriptor, parts.as_ptr().cast(), parts.len() as libc::c_int) };
            if count >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// The bit of a gso_type, whose highest bit is the ECN mark and no kind.
fn refusal(gso_type: u8) -> u8 {
    1 << (gso_type & 7)
}

/// Let the device hold more packets than the 500 of its default, which small packets fill within the time for which a
/// busy machine may leave a worker without a processor. A kernel that refuses leaves the default.
fn set_queue_length(request: &libc::ifreq) {
    // SAFETY: any socket will do for questions about devices; it is owned from here on, and nothing else owns it.
    let descriptor = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return;
    }
    // SAFETY: as above.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let mut request = *request;
    request.ifr_ifru.ifru_metric = QUEUE_LENGTH;
    // SAFETY: SIOCSIFTXQLEN reads one ifreq, which is valid. It takes the length where other calls take the metric.
    unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::SIOCSIFTXQLEN as _, &raw const request) };
}

fn set_offload(descriptor: &OwnedFd, offload: libc::c_ulong) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    if unsafe { libc::ioctl(descriptor.as_raw_fd(), TUNSETOFFLOAD as _, offload) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
