//! Whether this kernel cuts UDP superdatagrams as it should, found out over loopback before the first peer depends on it.
//!
//! Linux 7.0 to 7.1.4 wrote wrong UDP headers when the last segment was as long as the others; a gateway on such a kernel
//! would lose part of every large burst and look slow for no reason. A message of each shape goes from one socket to
//! another, one that gets datagrams and one that gets UDP_GRO runs, and every octet is compared.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use crate::control::{self, ControlBuffer, ControlWriter};
use crate::name::Name;
use crate::poll::wait_readable;

/// How long a message may take over loopback, where it has arrived when the send returns unless the machine is very busy.
const PATIENCE: Duration = Duration::from_millis(250);

/// What the sender puts into one message: octets of a segment, segments, octets of the last one.
const SHAPES: [(usize, usize, usize); 6] =
    [(1448, 2, 1448), (1448, 2, 100), (1448, 45, 1448), (1448, 45, 1), (96, 64, 96), (96, 64, 40)];

/// One datagram, to see that loopback carries any.
const PROBE: &[u8] = b"probe";

/// What the test found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every octet arrived where it should.
    Passed,
    /// What arrived is not what was sent: which shape, and how it differed.
    Failed(String),
    /// Loopback cannot carry the test: what the system said. Nothing is known about GSO.
    Unable(String),
}

/// Send a message of each shape over loopback, to a socket without and to one with UDP_GRO. IPv6 only if `ipv6` and if
/// loopback has it. Takes a few milliseconds, and at most half a second when something is lost.
pub fn run(ipv4: bool, ipv6: bool) -> Outcome {
    let mut unable = None;
    let mut passed = false;
    for (wanted, address) in [(ipv4, IpAddr::V4(Ipv4Addr::LOCALHOST)), (ipv6, IpAddr::V6(Ipv6Addr::LOCALHOST))] {
        if !wanted {
            continue;
        }
        for gro in [false, true] {
            match exchange(address, gro) {
                Ok(None) => passed = true,
                Ok(Some(difference)) => return Outcome::Failed(difference),
                Err(error) => {
                    unable = Some(format!("{address}: {error}"));
                    break;
                }
            }
        }
    }
    match unable {
        // One family is enough: the code that cuts UDP is the same for both.
        Some(why) if !passed => Outcome::Unable(why),
        _ => Outcome::Passed,
    }
}

/// All shapes between two sockets. `Some`: how what came differed from what was sent.
fn exchange(address: IpAddr, gro: bool) -> io::Result<Option<String>> {
    let sender = UdpSocket::bind((address, 0))?;
    let receiver = UdpSocket::bind((address, 0))?;
    for socket in [&sender, &receiver] {
        socket.set_nonblocking(true)?;
    }
    // Connected, so that what others send to these ports is not taken for an answer.
    sender.connect(receiver.local_addr()?)?;
    receiver.connect(sender.local_addr()?)?;
    if gro {
        let on: libc::c_int = 1;
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        let (level, option) = (libc::SOL_UDP, libc::UDP_GRO);
        // SAFETY: the option value is one valid int of the length given.
        if unsafe { libc::setsockopt(receiver.as_raw_fd(), level, option, (&raw const on).cast(), length) } < 0 {
            // A kernel without UDP_GRO has nothing to get wrong there.
            return Ok(None);
        }
    }
    let mut arena = vec![0; 65_536];
    let mut message = Vec::with_capacity(65_536);
    sender.send(PROBE)?;
    if compare(&receiver, PROBE, PROBE.len(), &mut arena)?.is_some() {
        // A packet filter, say: that no superdatagram would pass either says nothing about them.
        return Err(io::Error::other("loopback carries no datagrams"));
    }
    let (mut compared, mut refusal) = (false, None);
    for (number, (size, count, last)) in SHAPES.into_iter().enumerate() {
        message.clear();
        let length = size * (count - 1) + last;
        // No two segments are alike, so that one in another's place is seen.
        message.extend((0..length).map(|index| (index / size * 31 + index % size * 7 + number) as u8));
        match send(sender.as_raw_fd(), &message, size as u16) {
            Ok(()) => compared = true,
            // A refusal is not damage: the sender learns of it, and the fallback is the send path's.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)) => {
                refusal = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        }
        if let Some(difference) = compare(&receiver, &message, size, &mut arena)? {
            let gro = if gro { "with" } else { "without" };
            return Ok(Some(format!(
                "{count} segments of {size} octets, the last of {last}, {gro} UDP_GRO over {address}: {difference}"
            )));
        }
    }
    match refusal {
        Some(error) if !compared => Err(error),
        _ => Ok(None),
    }
}

/// Receive what `message` must come out as: datagrams of `size` octets, the last of what is left.
fn compare(receiver: &UdpSocket, message: &[u8], size: usize, arena: &mut [u8]) -> io::Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut at = 0;
    while at < message.len() {
        let (length, stride) = match receive(receiver.as_raw_fd(), arena) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(Some(format!("{} of {} octets were lost", message.len() - at, message.len())));
                }
                wait_readable(receiver.as_raw_fd(), left);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = at + length;
        let sound = if stride == 0 { length == size.min(message.len() - at) } else { stride == size };
        if !sound || length == 0 || end > message.len() || (end < message.len() && length % size != 0) {
            return Ok(Some(format!("{length} octets in segments of {stride} came at octet {at}")));
        }
        if arena[..length] != message[at..end] {
            return Ok(Some(format!("octets {at} to {end} were changed")));
        }
        at = end;
    }
    // One datagram too many would be taken for the next message's first.
    match receive(receiver.as_raw_fd(), arena) {
        Ok((length, _)) => Ok(Some(format!("{length} octets came that nobody sent"))),
        Err(_) => Ok(None),
    }
}

fn send(descriptor: RawFd, message: &[u8], size: u16) -> io::Result<()> {
    let mut control = ControlBuffer::EMPTY;
    let mut writer = ControlWriter::new(&mut control);
    writer.segment_size(size);
    let control_length = writer.len();
    let mut vector = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    // SAFETY: mmsghdr is a plain C structure for which all zeroes is a valid value.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = &raw mut vector;
    header.msg_hdr.msg_iovlen = 1;
    header.msg_hdr.msg_control = control.as_mut_ptr();
    header.msg_hdr.msg_controllen = control_length as _;
    // The call that data take: what it does to them is what is tested.
    // SAFETY: one header, whose name is null and whose buffers are alive for the call and only read.
    let sent = unsafe { libc::sendmmsg(descriptor, &raw mut header, 1, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Octets of one message, and the size of the datagrams that UDP_GRO joined in it (0: it is one).
fn receive(descriptor: RawFd, arena: &mut [u8]) -> io::Result<(usize, usize)> {
    let mut control = ControlBuffer::EMPTY;
    let mut name = Name::EMPTY;
    let mut vector = libc::iovec { iov_base: arena.as_mut_ptr().cast(), iov_len: arena.len() };
    // SAFETY: msghdr is a plain C structure for which all zeroes is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<Name>() as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr();
    header.msg_controllen = ControlBuffer::SIZE as _;
    // SAFETY: every buffer that the header names is alive, distinct and exclusively borrowed.
    let length = unsafe { libc::recvmsg(descriptor, &raw mut header, libc::MSG_DONTWAIT) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((length as usize, usize::from(control::parse(&header).segment_size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_passes() {
        let began = Instant::now();
        assert_eq!(run(true, true), Outcome::Passed);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    #[test]
    fn one_family_is_enough_and_none_is_no_failure() {
        assert_eq!(run(true, false), Outcome::Passed);
        assert_eq!(run(false, false), Outcome::Passed);
    }

    /// What a broken kernel gives: each kind of damage is seen.
    #[test]
    fn damage_is_seen() {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_nonblocking(true).unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let message: Vec<u8> = (0..250u32).map(|index| index as u8).collect();
        let mut arena = vec![0; 65_536];
        let mut changed = message[200..].to_vec();
        changed[49] ^= 1;
        let cases: [(&[&[u8]], &str); 6] = [
            (&[&message[..100], &message[100..200], &message[200..]], ""),
            (&[&message[..100], &message[100..200]], "50 of 250 octets were lost"),
            (&[&message[..100], &message[100..200], &changed], "octets 200 to 250 were changed"),
            (&[&message[..100], &message[100..200], &message[200..240]], "40 octets in segments of 0"),
            (&[&message[100..200], &message[..100], &message[200..]], "octets 0 to 100 were changed"),
            (&[&message[..100], &message[100..200], &message[200..], b"more"], "4 octets came that nobody sent"),
        ];
        for (datagrams, expected) in cases {
            for datagram in datagrams {
                sender.send(datagram).unwrap();
            }
            let difference = compare(&receiver, &message, 100, &mut arena).unwrap().unwrap_or_default();
            assert!(difference.starts_with(expected), "{difference:?} is not {expected:?}");
            assert_eq!(difference.is_empty(), expected.is_empty(), "{difference}");
            while receiver.recv(&mut arena).is_ok() {}
        }
    }
}
