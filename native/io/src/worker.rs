//! Native threads that own the descriptors, run to completion and sleep in poll when idle: one per direction, one for both
//! where a second would only take the processor from the first, or where there are more processors several per direction.
//!
//! The kernel gives a flow's packets to one queue of a TUN device, and a peer's datagrams to one socket; each queue and each
//! socket belongs to one worker. So no packet passes another of its flow.

use std::any::Any;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dsvpn_dataplane::{Counter, Shared};

use crate::decap_driver::DecapDriver;
use crate::descriptors::{DescriptorTable, Descriptors};
use crate::encap_driver::EncapDriver;
use crate::eventfd::EventFd;
use crate::poll::PollSet;
use crate::socket::Socket;

/// Vectors from one descriptor before the others have their turn.
const BUDGET: usize = 4;

/// How long [`Workers::refresh`] waits for a worker to take up new descriptors.
const REFRESH: Duration = Duration::from_secs(5);

/// Most workers per direction.
pub const MAX_PAIRS: usize = 8;

/// Processors up to which one thread serves both directions. A vector and the answer to it then cost one wake-up
/// instead of two, and neither direction waits for the other's time slice; measured in docs/performance.md.
const FEW_PROCESSORS: usize = 2;

/// How many threads a machine is served best by: all its processors, half of them for each direction.
fn threads_for(processors: usize) -> usize {
    if processors <= FEW_PROCESSORS { 1 } else { 2 * (processors / 2).min(MAX_PAIRS) }
}

/// How many threads this machine is served best by.
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(2, |processors| threads_for(processors.get()))
}

/// What a worker's owner and the worker say to each other.
struct Signals {
    stop: AtomicBool,
    wanted: AtomicU64,
    wakes: Vec<EventFd>,
    /// The generation of descriptors that each worker has taken up; `u64::MAX` when it has ended.
    taken: Mutex<Vec<u64>>,
    changed: Condvar,
}

impl Signals {
    fn take(&self, worker: usize, generation: u64) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)[worker] = generation;
        self.changed.notify_all();
    }
}

/// One thread.
struct Worker {
    /// Its place in [`Signals`].
    index: usize,
    name: String,
    thread: JoinHandle<Result<(), String>>,
}

/// All threads. Dropping it stops and joins them.
pub struct Workers {
    signals: Arc<Signals>,
    workers: Vec<Worker>,
    /// Name and count of every thread that was started.
    loads: Vec<(String, Arc<Load>)>,
}

/// What one worker has taken in, alone in its cache line.
#[derive(Default)]
#[repr(align(64))]
struct Load(AtomicU64);

impl Workers {
    /// Start one thread for both directions, or one for each direction of every pair of drivers. `alarm` is signalled when
    /// one ends by a panic.
    pub fn start(
        table: &Arc<DescriptorTable>,
        shared: &Arc<Shared>,
        alarm: &Arc<EventFd>,
        drivers: Vec<(EncapDriver, DecapDriver)>,
        threads: usize,
    ) -> io::Result<Self> {
        let of = drivers.len();
        let mut turns = Vec::with_capacity(2 * of);
        for (index, (encap, decap)) in drivers.into_iter().enumerate() {
            let share = Share { index, of };
            if threads == 1 {
                turns.push((String::from("forward"), Turn::new(Some(encap), Some(decap), share)));
                continue;
            }
            let number = if of == 1 { String::new() } else { index.to_string() };
            turns.push((format!("encap{number}"), Turn::new(Some(encap), None, share)));
            turns.push((format!("decap{number}"), Turn::new(None, Some(decap), share)));
        }
        let signals = Arc::new(Signals {
            stop: AtomicBool::new(false),
            wanted: AtomicU64::new(0),
            wakes: turns.iter().map(|_| EventFd::new()).collect::<io::Result<_>>()?,
            taken: Mutex::new(vec![0; turns.len()]),
            changed: Condvar::new(),
        });
        let (workers, loads) = (Vec::with_capacity(turns.len()), Vec::with_capacity(turns.len()));
        let mut workers = Self { signals, workers, loads };
        for (index, (name, turn)) in turns.into_iter().enumerate() {
            workers.spawn(index, name, table, shared, alarm, turn)?;
        }
        Ok(workers)
    }

    /// How many there are.
    pub fn threads(&self) -> usize {
        self.loads.len()
    }

    /// What each has taken in, by its name.
    pub fn packets(&self) -> Vec<(String, u64)> {
        self.loads.iter().map(|(name, load)| (name.clone(), load.0.load(Ordering::Relaxed))).collect()
    }

    fn spawn(
        &mut self,
        index: usize,
        name: String,
        table: &Arc<DescriptorTable>,
        shared: &Arc<Shared>,
        alarm: &Arc<EventFd>,
        mut turn: Turn,
    ) -> io::Result<()> {
        let (signals, table) = (Arc::clone(&self.signals), Arc::clone(table));
        let (shared, alarm) = (Arc::clone(shared), Arc::clone(alarm));
        self.loads.push((name.clone(), Arc::clone(&turn.load)));
        let thread = thread::Builder::new().name(format!("dsvpn-{name}")).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| {
                while !signals.stop.load(Ordering::Acquire) {
                    let generation = signals.wanted.load(Ordering::Acquire);
                    let descriptors = table.current();
                    signals.take(index, generation);
                    turn.run(&descriptors, &signals.wakes[index]).map_err(|error| error.to_string())?;
                }
                Ok(())
            }))
            .unwrap_or_else(|panic| Err(panic_text(&*panic)));
            if result.is_err() {
                shared.counters.add(Counter::WorkerPanics, 1);
            }
            // Before the alarm: whoever hears it and finds nobody ended would not look again.
            signals.take(index, u64::MAX);
            if result.is_err() {
                alarm.signal();
            }
            result
        })?;
        self.workers.push(Worker { index, name, thread });
        Ok(())
    }

    /// Have the workers take up the descriptors in force. When it returns, they hold no older ones.
    pub fn refresh(&self) {
        let generation = self.signals.wanted.fetch_add(1, Ordering::AcqRel) + 1;
        for wake in &self.signals.wakes {
            wake.signal();
        }
        let deadline = Instant::now() + REFRESH;
        let mut taken = self.signals.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while taken.iter().any(|taken| *taken < generation) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            taken = self.signals.changed.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Why a worker ended before it was told to: "the encap worker failed: …".
    pub fn failure(&mut self) -> Option<String> {
        let place = {
            let taken = self.signals.taken.lock().unwrap_or_else(PoisonError::into_inner);
            self.workers.iter().position(|worker| taken[worker.index] == u64::MAX)?
        };
        outcome(self.workers.remove(place))
    }

    /// Stop and join. Errors: why a worker ended by itself.
    pub fn stop(&mut self) -> Result<(), String> {
        self.signals.stop.store(true, Ordering::Release);
        for wake in &self.signals.wakes {
            wake.signal();
        }
        let failures: Vec<String> = self.workers.drain(..).filter_map(outcome).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // The panic hook has said it, and the counter keeps it.
        let _ = self.stop();
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic").to_owned()
}

fn outcome(worker: Worker) -> Option<String> {
    let name = worker.name;
    match worker.thread.join() {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(format!("the {name} worker failed: {why}")),
        Err(_) => Some(format!("the {name} worker failed")),
    }
}

/// Which queues and sockets are a worker's: one of every so many.
#[derive(Clone, Copy)]
struct Share {
    index: usize,
    of: usize,
}

impl Share {
    fn has(self, lane: usize) -> bool {
        lane % self.of == self.index
    }
}

/// What one worker forwards.
struct Turn {
    encap: Option<EncapDriver>,
    decap: Option<DecapDriver>,
    share: Share,
    load: Arc<Load>,
    poll: PollSet,
}

impl Turn {
    fn new(encap: Option<EncapDriver>, decap: Option<DecapDriver>, share: Share) -> Self {
        Self { encap, decap, share, load: Arc::default(), poll: PollSet::default() }
    }

    /// Forward with one snapshot of descriptors until the worker is woken.
    fn run(&mut self, descriptors: &Descriptors, wake: &EventFd) -> io::Result<()> {
        let share = self.share;
        let sockets: Vec<&Socket> = match self.decap {
            Some(_) => descriptors.underlay().sockets().iter().filter(|socket| share.has(socket.lane())).collect(),
            None => Vec::new(),
        };
        let mut queues: Vec<_> = match self.encap {
            Some(_) => descriptors.queues().filter(|(_, _, queue)| share.has(*queue)).collect(),
            None => Vec::new(),
        };
        loop {
            let devices = queues.iter().map(|(_, tun, queue)| tun.queue(*queue));
            let sources = sockets.iter().map(|socket| socket.as_raw_fd()).chain(devices);
            self.poll.set([wake.as_raw_fd()].into_iter().chain(sources));
            self.poll.wait()?;
            if self.poll.is_ready(0) {
                wake.clear();
                return Ok(());
            }
            let mut index = 0;
            let mut packets = 0;
            if let Some(decap) = &mut self.decap {
                for socket in &sockets {
                    index += 1;
                    if self.poll.is_ready(index) {
                        packets += decap.drain(descriptors, socket, BUDGET).packets;
                    }
                }
            }
            if let Some(encap) = &mut self.encap {
                // A device that died is watched no more: it would be ready for ever.
                queues.retain(|(tunnel, tun, queue)| {
                    index += 1;
                    if !self.poll.is_ready(index) {
                        return true;
                    }
                    let drained = encap.drain(descriptors, *tunnel, tun, *queue, BUDGET);
                    packets += drained.packets;
                    !drained.dead
                });
            }
            self.load.0.fetch_add(packets as u64, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_in_pairs_where_there_are_processors() {
        let expected = [(1, 1), (2, 1), (3, 2), (4, 4), (5, 4), (8, 8), (16, 16), (128, 16)];
        for (processors, threads) in expected {
            assert_eq!(threads_for(processors), threads, "{processors} processors");
        }
    }

    #[test]
    fn every_lane_is_one_workers() {
        for of in 1..=MAX_PAIRS {
            for lane in 0..MAX_PAIRS {
                assert_eq!((0..of).filter(|index| Share { index: *index, of }.has(lane)).count(), 1);
            }
        }
    }
}
