//! Control messages (cmsg) of sendmsg and recvmsg: source address, type of service, segment size.

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for all the control messages that one message carries, aligned as cmsghdr must be.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct ControlBuffer([u8; ControlBuffer::SIZE]);

impl ControlBuffer {
    pub const SIZE: usize = 128;
    pub const EMPTY: Self = Self([0; Self::SIZE]);

    pub fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }
}

/// Writes control messages one behind the other.
pub struct ControlWriter<'a> {
    buffer: &'a mut ControlBuffer,
    used: usize,
}

impl<'a> ControlWriter<'a> {
    pub fn new(buffer: &'a mut ControlBuffer) -> Self {
        Self { buffer, used: 0 }
    }

    /// Octets written: what msg_controllen takes.
    pub fn len(&self) -> usize {
        self.used
    }

    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, value: T) {
        let size = mem::size_of::<T>() as libc::c_uint;
        // SAFETY: CMSG_SPACE and CMSG_LEN are arithmetic.
        let (space, length) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size)) };
        assert!(self.used + space <= ControlBuffer::SIZE, "control buffer too small");
        // SAFETY: `used` is a multiple of the cmsghdr alignment (CMSG_SPACE rounds up) in an aligned buffer, and the
        // header with its data ends within the buffer as asserted above.
        unsafe {
            let header: *mut libc::cmsghdr = self.buffer.0.as_mut_ptr().add(self.used).cast();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = length as _;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        self.used += space;
    }

    /// Send from this address.
    pub fn source(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.push(
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                },
            ),
            IpAddr::V6(address) => self.push(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: address.octets() }, ipi6_ifindex: 0 },
            ),
        }
    }

    /// Type of service or traffic class of the outer header.
    pub fn tos(&mut self, ipv6: bool, tos: u8) {
        if ipv6 {
            self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::c_int::from(tos));
        } else {
            self.push(libc::IPPROTO_IP, libc::IP_TOS, libc::c_int::from(tos));
        }
    }

    /// Cut the message into datagrams of this size.
    pub fn segment_size(&mut self, size: u16) {
        self.push(libc::SOL_UDP, libc::UDP_SEGMENT, size);
    }
}

/// What the control messages of a received message said.
#[derive(Clone, Copy, Default)]
pub struct Received {
    /// The address that the datagram was sent to.
    pub local: Option<IpAddr>,
    /// The size of the datagrams that UDP_GRO joined, 0 when it is one datagram.
    pub segment_size: u16,
}

/// Read the control messages of a message that recvmsg filled in.
pub fn parse(message: &libc::msghdr) -> Received {
    let mut received = Received::default();
    // SAFETY: msg_control and msg_controllen describe a live buffer of ours that the kernel wrote; CMSG_FIRSTHDR and
    // CMSG_NXTHDR stay within it. Data are read unaligned and only for a length that covers the type.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header);
            let length = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if length >= mem::size_of::<libc::in_pktinfo>() => {
                    let info: libc::in_pktinfo = data.cast::<libc::in_pktinfo>().read_unaligned();
                    received.local = Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if length >= mem::size_of::<libc::in6_pktinfo>() => {
                    let info: libc::in6_pktinfo = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    received.local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                (libc::SOL_UDP, libc::UDP_GRO) if length >= mem::size_of::<libc::c_int>() => {
                    let size: libc::c_int = data.cast::<libc::c_int>().read_unaligned();
                    received.segment_size = u16::try_from(size).unwrap_or(0);
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    received
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(buffer: &mut ControlBuffer, length: usize) -> Received {
        // SAFETY: msghdr is a plain C structure for which all zeroes is a valid value.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_control = buffer.as_mut_ptr();
        message.msg_controllen = length as _;
        parse(&message)
    }

    #[test]
    fn what_is_written_fits_and_what_is_unknown_is_passed_over() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            let mut buffer = ControlBuffer::EMPTY;
            let mut writer = ControlWriter::new(&mut buffer);
            writer.tos(address.is_ipv6(), 0xb8);
            writer.source(address);
            writer.segment_size(1440);
            let length = writer.len();
            assert!(length <= ControlBuffer::SIZE);
            let received = parsed(&mut buffer, length);
            // The source that is asked for and the destination that is told differ in IPv4's structure.
            assert_eq!(received.local.is_some_and(|local| local == address), address.is_ipv6());
            assert_eq!(received.segment_size, 0);
        }
    }

    #[test]
    fn a_message_without_control_says_nothing() {
        let mut buffer = ControlBuffer::EMPTY;
        let received = parsed(&mut buffer, 0);
        assert_eq!((received.local, received.segment_size), (None, 0));
    }
}
