//! The sockets of the underlay: UDP 500 and 4500, raw ESP (protocol 50) and raw GRE (protocol 47).

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::error::SystemError;
use crate::name::{Name, unspecified};

/// What a socket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// UDP port 500: IKE without marker.
    Ike,
    /// UDP port 4500: ESP, and IKE behind the non-ESP marker (RFC 3948).
    Nat,
    /// IP protocol 50.
    Esp,
    /// IP protocol 47.
    Gre,
}

impl SocketKind {
    pub fn is_udp(self) -> bool {
        matches!(self, Self::Ike | Self::Nat)
    }

    fn protocol(self) -> libc::c_int {
        match self {
            Self::Ike | Self::Nat => libc::IPPROTO_UDP,
            Self::Esp => libc::IPPROTO_ESP,
            Self::Gre => libc::IPPROTO_GRE,
        }
    }
}

/// Send and receive buffer in octets. As large as a few hundred superpackets, so that a burst waits in the kernel.
const BUFFER_SIZE: libc::c_int = 7 << 20;

/// What SO_MEMINFO gives, and which of it are the drops (sk_drops).
const MEMINFO_VALUES: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// Refusals in a row, without one accepted GSO message between, after which a socket stops to offer them. One peer
/// behind a link smaller than its adjacency's MTU gets EINVAL or EMSGSIZE too, and must not take GSO from the rest.
const GSO_REFUSALS: u32 = 64;

/// Whether the kernel cuts superdatagrams on a socket (UDP_SEGMENT), and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gso {
    On,
    /// This kind of socket, or this kernel, has none.
    Unsupported,
    /// The configuration says so.
    Configured,
    /// The start-up self-test saw damage.
    SelfTest,
    /// The device cannot: EIO.
    Device,
    /// Refused again and again.
    Refused,
}

impl Gso {
    const ALL: [Gso; 6] = [Gso::On, Gso::Unsupported, Gso::Configured, Gso::SelfTest, Gso::Device, Gso::Refused];

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Gso::On => "on",
            Gso::Unsupported => "off: this kernel has none",
            Gso::Configured => "off: configured",
            Gso::SelfTest => "off: the self-test failed",
            Gso::Device => "off: the device refused it (EIO)",
            Gso::Refused => "off: refused again and again (EINVAL or EMSGSIZE)",
        }
    }
}

/// A nonblocking socket.
#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
    kind: SocketKind,
    ipv6: bool,
    port: u16,
    /// Among those that share its port.
    lane: usize,
    gso: AtomicU8,
    gro: bool,
    refusals: AtomicU32,
}

impl Socket {
    /// Open and bind to the wildcard address. `port` is 0 for raw sockets; `device` is the index of a device to bind to
    /// as well, or 0.
    pub fn open(
        kind: SocketKind,
        ipv6: bool,
        port: u16,
        dont_fragment: bool,
        device: u32,
    ) -> Result<Self, SystemError> {
        Self::open_lane(kind, ipv6, port, dont_fragment, device, None)
    }

    /// Open several that share a port (SO_REUSEPORT). Until there is a filter ([`crate::steering`]) the kernel chooses one by
    /// the hash of both addresses and ports, so that a peer's datagrams stay on one while his address does.
    pub fn open_shared(
        kind: SocketKind,
        ipv6: bool,
        port: u16,
        dont_fragment: bool,
        device: u32,
        lanes: usize,
    ) -> Result<Vec<Self>, SystemError> {
        // Somebody else's socket that would share its port is not joined: half of the datagrams would be his.
        drop(Self::open(kind, ipv6, port, dont_fragment, device)?);
        (0..lanes).map(|lane| Self::open_lane(kind, ipv6, port, dont_fragment, device, Some(lane))).collect()
    }

    /// `lane`: it shares its port.
    fn open_lane(
        kind: SocketKind,
        ipv6: bool,
        port: u16,
        dont_fragment: bool,
        device: u32,
        lane: Option<usize>,
    ) -> Result<Self, SystemError> {
        let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        let kind_flag = if kind.is_udp() { libc::SOCK_DGRAM } else { libc::SOCK_RAW };
        let what = match kind {
            SocketKind::Ike | SocketKind::Nat => format!("UDP port {port}"),
            SocketKind::Esp => String::from("raw socket of protocol 50 (ESP)"),
            SocketKind::Gre => String::from("raw socket of protocol 47 (GRE)"),
        };
        let version = if ipv6 { "IPv6" } else { "IPv4" };
        // SAFETY: socket takes no pointer; the result is checked before it is used.
        let descriptor =
            unsafe { libc::socket(family, kind_flag | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, kind.protocol()) };
        if descriptor < 0 {
            let error = io::Error::last_os_error();
            let hint = if error.raw_os_error() == Some(libc::EPERM) { ": run as root or with CAP_NET_RAW" } else { "" };
            return Err(SystemError::new(format!("cannot open {what} over {version}{hint}"), error));
        }
        let mut socket = Self {
            // SAFETY: the descriptor was just made and nothing else owns it.
            descriptor: unsafe { OwnedFd::from_raw_fd(descriptor) },
            kind,
            ipv6,
            port,
            lane: lane.unwrap_or_default(),
            gso: AtomicU8::new(Gso::Unsupported as u8),
            gro: false,
            refusals: AtomicU32::new(0),
        };
        socket
            .configure(dont_fragment, lane.is_some())
            .map_err(|error| SystemError::new(format!("cannot set up {what} over {version}"), error))?;
        socket.lower_hop_limit();
        if device != 0 {
            // Before the port is taken: another VRF's socket of the same port is none of our business.
            socket
                .set(libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, device as libc::c_int)
                .map_err(|error| SystemError::new(format!("cannot bind {what} to device {device}"), error))?;
        }
        if kind.is_udp() {
            let (name, length) = Name::new(&SocketAddr::new(unspecified(ipv6), port));
            // SAFETY: the address and its length are those of one valid Name.
            if unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), length) } < 0 {
                let error = io::Error::last_os_error();
                let what = match error.raw_os_error() {
                    Some(libc::EADDRINUSE) => format!("{what} is in use"),
                    Some(libc::EACCES) => format!("{what} cannot be bound: run as root or with CAP_NET_BIND_SERVICE"),
                    _ => format!("cannot bind {what} over {version}"),
                };
                return Err(SystemError::new(what, error));
            }
        }
        Ok(socket)
    }

    fn configure(&mut self, dont_fragment: bool, shared: bool) -> io::Result<()> {
        if shared {
            self.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        // The path MTU is the configuration's: PROBE sets DF and ignores what a forged ICMP could have taught the
        // kernel (RFC 5927 section 7), so a stranger cannot shrink the tunnel. IKE's own port never sets DF: its
        // messages may be larger than a link.
        let probe = dont_fragment && self.kind != SocketKind::Ike;
        if self.ipv6 {
            let discover = if probe { libc::IPV6_PMTUDISC_PROBE } else { libc::IPV6_PMTUDISC_DONT };
            if self.kind.is_udp() {
                // Raw IPv6 sockets take IPv6 alone and refuse the option.
                self.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            }
            self.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        } else {
            let discover = if probe { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_DONT };
            self.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
            if self.kind.is_udp() {
                self.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            }
        }
        for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
            // Without CAP_NET_ADMIN the system's limit stands; smaller buffers drop earlier but work.
            if self.set(libc::SOL_SOCKET, force, BUFFER_SIZE).is_err() {
                let _ = self.set(libc::SOL_SOCKET, plain, BUFFER_SIZE);
            }
        }
        if self.kind == SocketKind::Nat {
            // A kernel that knows the options takes them: without, every datagram is a message of its own.
            self.gro = self.set(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
            if self.set(libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok() {
                self.gso.store(Gso::On as u8, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Every lane sends with a hop limit of its own.
    ///
    /// A peer's kernel joins what it receives between two ports (UDP_GRO), whatever the SPIs, and gives all of it to the
    /// socket that the first SPI names. Lanes seal by SAs of their own (RFC 9611): joined with another lane's, a packet would
    /// come to another worker than those before it. Datagrams of unlike hop limits are not joined.
    fn lower_hop_limit(&self) {
        let (level, option) =
            if self.ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) } else { (libc::IPPROTO_IP, libc::IP_TTL) };
        if self.lane > 0
            && let Ok(usual) = self.get(level, option)
        {
            // Refused, it is the usual one: what is joined then is in order for each SA all the same.
            let _ = self.set(level, option, (usual - self.lane as libc::c_int).max(1));
        }
    }

    fn get(&self, level: libc::c_int, option: libc::c_int) -> io::Result<libc::c_int> {
        let mut value: libc::c_int = 0;
        let mut length = mem::size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` octets to the int.
        let result =
            unsafe { libc::getsockopt(self.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let length = mem::size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option value is one valid int of the length given.
        if unsafe { libc::setsockopt(self.as_raw_fd(), level, option, (&raw const value).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub fn kind(&self) -> SocketKind {
        self.kind
    }

    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its number among those that share its port; 0 for one that is alone.
    pub fn lane(&self) -> usize {
        self.lane
    }

    /// Whether messages may be sent as one superdatagram that the kernel cuts.
    pub fn takes_gso(&self) -> bool {
        self.gso.load(Ordering::Relaxed) == Gso::On as u8
    }

    /// Whether the kernel cuts superdatagrams, or why not.
    pub fn gso(&self) -> Gso {
        Gso::ALL[usize::from(self.gso.load(Ordering::Relaxed)) % Gso::ALL.len()]
    }

    /// Whether the kernel joins received datagrams (UDP_GRO).
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Never offer GSO on this socket again. The first reason stays.
    pub fn disable_gso(&self, why: Gso) {
        let (on, why) = (Gso::On as u8, why as u8);
        let _ = self.gso.compare_exchange(on, why, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Datagrams that this socket had no room for and those with a wrong checksum, since it was opened.
    pub fn kernel_drops(&self) -> u64 {
        let mut values = [0u32; MEMINFO_VALUES];
        let mut length = mem::size_of_val(&values) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` octets to the array.
        let result = unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 { 0 } else { u64::from(values[MEMINFO_DROPS]) }
    }

    pub(crate) fn note_gso_taken(&self) {
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
        }
    }

    /// EIO: the device cannot (no checksum offload before Linux 6.11), which every later message would hear again.
    pub(crate) fn note_gso_refused(&self, errno: i32) {
        let refusals = self.refusals.fetch_add(1, Ordering::Relaxed) + 1;
        if errno == libc::EIO {
            self.disable_gso(Gso::Device);
        } else if refusals >= GSO_REFUSALS {
            self.disable_gso(Gso::Refused);
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
