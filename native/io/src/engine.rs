//! One gateway's tables, descriptors and drivers, for a caller in any language.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use dsvpn_dataplane::{
    Counter, Punt, PuntKind, Shared, TablesError, TablesReader, TablesWriter, TunnelConfig, Verdict, encap_nhrp, tables,
};

use crate::clock::Clock;
use crate::decap_driver::DecapDriver;
use crate::descriptors::DescriptorTable;
use crate::encap_driver::EncapDriver;
use crate::error::SystemError;
use crate::eventfd::EventFd;
use crate::offloads;
use crate::send::SendRing;
use crate::socket::SocketKind;
use crate::tun::{Tun, check_device_name};
use crate::underlay::{Underlay, UnderlayConfig};
use crate::worker::{MAX_PAIRS, Workers, default_threads, panic_text};

/// Between two looks at whether workers have left the old tables: a fraction of a full vector's time.
const COMMIT_PAUSE: Duration = Duration::from_micros(20);

/// Punts that one turn looks at while strangers are asked for cookies.
const MAX_JUDGED: usize = 4096;

/// RFC 3948 section 2.2: what tells IKE from ESP on the NAT traversal port.
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// RFC 3948 section 2.3.
const KEEPALIVE: [u8; 1] = [0xff];

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// The caller's mistake.
    Misuse(String),
    /// The system's refusal.
    System(SystemError),
    /// A worker ended by a defect.
    Worker(String),
}

impl From<TablesError> for Error {
    fn from(error: TablesError) -> Self {
        Self::Misuse(error.to_string())
    }
}

impl From<SystemError> for Error {
    fn from(error: SystemError) -> Self {
        Self::System(error)
    }
}

/// The tables and what is shared with those who read them.
pub struct Core {
    writer: Mutex<TablesWriter>,
    reader: Mutex<TablesReader>,
    pub shared: Arc<Shared>,
    pub clock: Clock,
}

impl Default for Core {
    fn default() -> Self {
        let (writer, reader) = tables();
        Self { writer: Mutex::new(writer), reader: Mutex::new(reader), shared: Arc::default(), clock: Clock::default() }
    }
}

impl Core {
    /// The one writer, for a few commands.
    pub fn writer(&self) -> MutexGuard<'_, TablesWriter> {
        lock(&self.writer)
    }

    /// Make the changes of the tables visible. Returns when no vector in flight sees the old ones.
    pub fn commit(&self) {
        // Asleep: a thread that spins takes the time from the workers that it waits for.
        self.writer().commit_waiting(|| thread::sleep(COMMIT_PAUSE));
    }

    /// A reader of its own for whoever forwards.
    pub fn reader(&self) -> TablesReader {
        lock(&self.reader).clone()
    }

    /// An unused inbound SPI; with `beside`, an inbound SPI too, what comes with it comes to the same socket.
    pub fn allocate_spi(&self, beside: u32) -> Result<u32, Error> {
        let mut random = [0; 4];
        getrandom::fill(&mut random)
            .map_err(|error| SystemError::new("cannot get random octets", io::Error::from(error)))?;
        Ok(self.writer().allocate_spi_beside(u32::from_ne_bytes(random), beside)?)
    }
}

/// What sends for the control plane.
struct ControlSender {
    ring: SendRing,
    scratch: Vec<u8>,
}

impl Default for ControlSender {
    fn default() -> Self {
        Self { ring: SendRing::new(0), scratch: Vec::new() }
    }
}

/// Descriptors and drivers of one gateway process.
pub struct Engine {
    core: Arc<Core>,
    /// Queues of every TUN device, and sockets that share the NAT traversal port.
    lanes: usize,
    descriptors: Arc<DescriptorTable>,
    underlay_config: Mutex<Option<UnderlayConfig>>,
    drivers: Mutex<Option<(EncapDriver, DecapDriver)>>,
    sender: Mutex<ControlSender>,
    punt_event: Arc<EventFd>,
    workers: Mutex<Option<Workers>>,
}

impl Engine {
    /// An engine for one worker per direction.
    pub fn new(core: Arc<Core>) -> Result<Self, Error> {
        Self::with_lanes(core, 1)
    }

    /// An engine for at most so many workers per direction: each has a queue of every TUN device and a socket of its own.
    pub fn with_lanes(core: Arc<Core>, lanes: usize) -> Result<Self, Error> {
        if !(1..=MAX_PAIRS).contains(&lanes) {
            return Err(Error::Misuse(format!("queues: {lanes} is not within 1 to {MAX_PAIRS}")));
        }
        core.writer().spread_spis(lanes);
        let event = EventFd::new().map_err(|error| SystemError::new("cannot make an eventfd", error))?;
        let punt_event = Arc::new(event);
        let wake = Arc::clone(&punt_event);
        core.shared.punts.set_wake(move || wake.signal());
        Ok(Self {
            core,
            lanes,
            descriptors: Arc::default(),
            underlay_config: Mutex::new(None),
            drivers: Mutex::new(None),
            sender: Mutex::default(),
            punt_event,
            workers: Mutex::new(None),
        })
    }

    /// The tables that its drivers read, and what counts.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Create the TUN and the tunnel's (empty) tables, which are in force at once.
    pub fn add_tunnel(&self, name: &str, config: TunnelConfig) -> Result<u32, Error> {
        check_device_name(name).map_err(|why| Error::Misuse(format!("name: {why}")))?;
        let tunnel = self.descriptors.free_tunnel();
        let tun = Tun::create(name, self.lanes)?;
        let mut writer = self.core.writer();
        writer.add_tunnel(tunnel, config)?;
        writer.commit();
        drop(writer);
        self.descriptors.insert_tun(tunnel, tun);
        self.refresh_workers();
        Ok(tunnel)
    }

    /// Close the TUN and forget the tunnel's tables, at once.
    pub fn remove_tunnel(&self, tunnel: u32) -> Result<(), Error> {
        let mut writer = self.core.writer();
        writer.remove_tunnel(tunnel)?;
        writer.commit();
        drop(writer);
        self.descriptors.remove_tun(tunnel);
        self.refresh_workers();
        Ok(())
    }

    /// Bind the sockets.
    pub fn open_underlay(&self, config: UnderlayConfig) -> Result<(), Error> {
        let misuse = |why: &str| Err(Error::Misuse(why.to_owned()));
        if config.ike_port == 0 || config.nat_port == 0 {
            return misuse("ike_port, nat_port: 0 is no port; use 1 to 65535");
        }
        if config.ike_port == config.nat_port {
            return misuse("nat_port: must differ from ike_port");
        }
        if !config.ipv4 && !config.ipv6 {
            return misuse("ipv4, ipv6: at least one must be true");
        }
        let mut current = lock(&self.underlay_config);
        if current.is_some() {
            return misuse("the underlay is open already");
        }
        self.descriptors.set_underlay(Underlay::open(&config, self.lanes)?);
        *current = Some(config);
        drop(current);
        self.refresh_workers();
        Ok(())
    }

    /// Send an IKE message from one of the two ports.
    pub fn send_ike(
        &self,
        local: Option<IpAddr>,
        local_port: u16,
        remote: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), Error> {
        let config = self.opened()?;
        if local_port == config.ike_port {
            return self.send_udp(SocketKind::Ike, local, remote, datagram);
        }
        if local_port == config.nat_port {
            let mut marked = Vec::with_capacity(NON_ESP_MARKER.len() + datagram.len());
            marked.extend_from_slice(&NON_ESP_MARKER);
            marked.extend_from_slice(datagram);
            return self.send_udp(SocketKind::Nat, local, remote, &marked);
        }
        Err(Error::Misuse(format!(
            "local_port: {local_port} is neither ike_port {} nor nat_port {}",
            config.ike_port, config.nat_port
        )))
    }

    /// Send a NAT keepalive.
    pub fn send_keepalive(&self, local: Option<IpAddr>, remote: SocketAddr) -> Result<(), Error> {
        self.opened()?;
        self.send_udp(SocketKind::Nat, local, remote, &KEEPALIVE)
    }

    fn opened(&self) -> Result<UnderlayConfig, Error> {
        let config = *lock(&self.underlay_config);
        config.ok_or_else(|| Error::Misuse(String::from("the underlay is not open: call open_underlay first")))
    }

    fn send_udp(
        &self,
        kind: SocketKind,
        local: Option<IpAddr>,
        remote: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), Error> {
        if local.is_some_and(|local| local.is_ipv6() != remote.is_ipv6()) {
            return Err(Error::Misuse(format!("local: not of the same address family as remote {}", remote.ip())));
        }
        if remote.port() == 0 {
            return Err(Error::Misuse(String::from("remote_port: 0 is no port; use 1 to 65535")));
        }
        let counters = &self.core.shared.counters;
        let descriptors = self.descriptors.current();
        match descriptors.underlay().socket(kind, remote.is_ipv6(), 0) {
            Some(socket) => lock(&self.sender).ring.send_datagram(socket, local, remote, datagram, counters),
            None => counters.add(Counter::DropSendRefused, 1),
        }
        Ok(())
    }

    /// Send an NHRP packet through an adjacency. False when it cannot carry it now; the reason is counted.
    pub fn send_nhrp(&self, adjacency: u32, packet: &[u8]) -> bool {
        let counters = &self.core.shared.counters;
        let mut sender = lock(&self.sender);
        let ControlSender { ring, scratch } = &mut *sender;
        let reader = self.core.reader();
        let Some(tables) = reader.enter() else { return false };
        let message = encap_nhrp(&tables, adjacency, packet, scratch);
        drop(tables);
        match message {
            Ok(message) => {
                ring.send(self.descriptors.current().underlay(), scratch, &[message], counters);
                true
            }
            Err(reason) => {
                counters.add(reason, 1);
                false
            }
        }
    }

    /// Descriptors for [`Engine::drain`]: TUNs (true) and sockets (false). None while workers own them.
    pub fn descriptors(&self) -> Vec<(RawFd, bool)> {
        if lock(&self.workers).is_some() {
            return Vec::new();
        }
        let current = self.descriptors.current();
        let tuns = current.queues().map(|(_, tun, queue)| (tun.queue(queue), true));
        tuns.chain(current.underlay().sockets().iter().map(|socket| (socket.as_raw_fd(), false))).collect()
    }

    /// Forward at most `budget` vectors from one descriptor. Gives packets taken in.
    ///
    /// Errors: a TUN that somebody took away is a system error (ENODEV), and must not be watched any more; a defect of
    /// the program is what a worker would have ended by.
    pub fn drain(&self, descriptor: RawFd, budget: usize) -> Result<usize, Error> {
        if lock(&self.workers).is_some() {
            return Err(Error::Misuse(String::from("the workers own the descriptors: call stop_workers first")));
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.drain_with_drivers(descriptor, budget)));
        result.unwrap_or_else(|panic| {
            // What the drivers hold may be half done: the next drain makes new ones.
            *lock(&self.drivers) = None;
            self.core.shared.counters.add(Counter::WorkerPanics, 1);
            Err(Error::Worker(format!("the drain failed: {}", panic_text(&*panic))))
        })
    }

    fn drain_with_drivers(&self, descriptor: RawFd, budget: usize) -> Result<usize, Error> {
        let current = self.descriptors.current();
        let mut drivers = lock(&self.drivers);
        let (encap, decap) = drivers.get_or_insert_with(|| self.new_drivers(0));
        if let Some((tunnel, tun, queue)) = current.queue_of(descriptor) {
            let drained = encap.drain(&current, tunnel, tun, queue, budget);
            if drained.dead {
                return Err(Error::System(SystemError::new(
                    format!("network device {} was taken away", tun.name()),
                    io::Error::from_raw_os_error(libc::ENODEV),
                )));
            }
            return Ok(drained.packets);
        }
        match current.socket_of(descriptor) {
            Some(index) => Ok(decap.drain(&current, &current.underlay().sockets()[index], budget).packets),
            None => Err(Error::Misuse(format!("descriptor: {descriptor} is none of descriptors()"))),
        }
    }

    /// Which offloads run, for people: names and how they stand.
    pub fn offloads(&self) -> Vec<(String, String)> {
        offloads::offloads(&self.descriptors.current())
    }

    /// What the kernel dropped at the descriptors, by name.
    pub fn kernel_drops(&self) -> [(&'static str, u64); 3] {
        offloads::kernel_drops(&self.descriptors.current())
    }

    /// `lane`: whose they are, of those that forward at the same time.
    fn new_drivers(&self, lane: usize) -> (EncapDriver, DecapDriver) {
        let (shared, clock) = (&self.core.shared, self.core.clock);
        (
            EncapDriver::new(Arc::clone(shared), self.core.reader(), clock, lane),
            DecapDriver::new(Arc::clone(shared), self.core.reader(), clock, lane),
        )
    }

    /// Let native threads own the descriptors: one for both directions, one for each, or several for each, among which
    /// the queues and sockets are shared out. `None`: as many as there are queues, or with one as serve this machine best.
    /// Nothing happens if they do.
    pub fn start_workers(&self, threads: Option<usize>) -> Result<(), Error> {
        let most = 2 * self.lanes;
        if let Some(threads) = threads
            && (threads == 0 || threads > most || (threads > 1 && threads % 2 == 1))
        {
            let more = if self.lanes == 1 { String::new() } else { format!(", or an even number up to {most}") };
            return Err(Error::Misuse(format!(
                "threads: {threads} is not 1 (both directions) or 2 (one for each){more}"
            )));
        }
        let mut workers = lock(&self.workers);
        if workers.is_none() {
            let threads = threads.unwrap_or_else(|| if self.lanes > 1 { most } else { default_threads().min(most) });
            let pairs = (threads / 2).max(1);
            let drivers = (0..pairs).map(|lane| {
                let (mut encap, decap) = self.new_drivers(lane);
                if let Some(worker) = NonZeroU32::new(lane as u32 + 1)
                    && pairs > 1
                {
                    encap.share(worker);
                }
                (encap, decap)
            });
            let drivers = drivers.collect();
            let started = Workers::start(&self.descriptors, &self.core.shared, &self.punt_event, drivers, threads)
                .map_err(|error| SystemError::new("cannot start the worker threads", error))?;
            *workers = Some(started);
        }
        Ok(())
    }

    /// What each worker has taken in, by its name: packets from TUN devices and messages from sockets, a superpacket or
    /// a joined run as one. Nothing when none runs.
    pub fn worker_packets(&self) -> Vec<(String, u64)> {
        lock(&self.workers).as_ref().map_or_else(Vec::new, Workers::packets)
    }

    /// How many worker threads there are.
    pub fn worker_threads(&self) -> usize {
        lock(&self.workers).as_ref().map_or(0, Workers::threads)
    }

    /// Stop and join the threads. Errors: one had ended by a defect.
    pub fn stop_workers(&self) -> Result<(), Error> {
        let workers = lock(&self.workers).take();
        match workers {
            Some(mut workers) => workers.stop().map_err(Error::Worker),
            None => Ok(()),
        }
    }

    fn refresh_workers(&self) {
        if let Some(workers) = &*lock(&self.workers) {
            workers.refresh();
        }
    }

    pub fn punt_descriptor(&self) -> RawFd {
        self.punt_event.as_raw_fd()
    }

    /// The oldest punts. The descriptor stays readable while more wait. Errors: a worker ended by a defect.
    pub fn take_punts(&self, limit: usize) -> Result<Vec<Punt>, Error> {
        // Clear before taking: what is queued in between signals again.
        self.punt_event.clear();
        if let Some(workers) = &mut *lock(&self.workers)
            && let Some(failure) = workers.failure()
        {
            self.punt_event.signal();
            return Err(Error::Worker(failure));
        }
        let punts = &self.core.shared.punts;
        let mut taken = punts.take(limit);
        if self.core.shared.cookies.is_shut() {
            let mut looked = taken.len();
            taken.retain(|punt| self.passes(punt));
            // Those who get a cookie cost little: in one turn there is room for many of them.
            while taken.len() < limit && looked < MAX_JUDGED && !punts.is_empty() {
                let more = punts.take(limit - taken.len());
                looked += more.len();
                taken.extend(more.into_iter().filter(|punt| self.passes(punt)));
            }
        }
        if !punts.is_empty() {
            self.punt_event.signal();
        }
        Ok(taken)
    }
}

impl Engine {
    /// Whether a punt goes to the control plane. A stranger without a cookie gets one.
    fn passes(&self, punt: &Punt) -> bool {
        let (PuntKind::Ike, Some(remote)) = (punt.kind, punt.remote) else { return true };
        match self.core.shared.cookies.judge(&punt.data, remote, punt.remote_port) {
            Verdict::Pass => true,
            Verdict::Drop => false,
            Verdict::Answer(reply) => {
                // A port of 0 cannot be answered, and whatever fails is counted: a stranger is owed nothing.
                let _ = self.send_ike(punt.local, punt.local_port, SocketAddr::new(remote, punt.remote_port), &reply);
                false
            }
        }
    }

    /// Ask strangers for cookies (RFC 7296 section 2.6), or with an empty `secret` let them pass.
    pub fn set_cookie_gate(&self, version: u8, secret: &[u8], previous: &[u8]) {
        if secret.is_empty() {
            self.core.shared.cookies.open();
        } else {
            self.core.shared.cookies.shut(version, secret, previous);
        }
    }

    /// Cookies that the gate has sent, and messages that it has dropped.
    pub fn cookie_gate_counts(&self) -> (u64, u64) {
        self.core.shared.cookies.counts()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.stop_workers();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
