//! Native threads that own the descriptors: one per direction, run to completion, asleep in poll when idle.

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

/// Vectors from one descriptor before the others have their turn.
const BUDGET: usize = 4;

/// How long [`Workers::refresh`] waits for a worker to take up new descriptors.
const REFRESH: Duration = Duration::from_secs(5);

const DIRECTIONS: [&str; 2] = ["encap", "decap"];

/// What a worker's owner and the worker say to each other.
struct Signals {
    stop: AtomicBool,
    wanted: AtomicU64,
    wakes: [EventFd; 2],
    /// The generation of descriptors that each worker has taken up; `u64::MAX` when it has ended.
    taken: Mutex<[u64; 2]>,
    changed: Condvar,
}

impl Signals {
    fn take(&self, direction: usize, generation: u64) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)[direction] = generation;
        self.changed.notify_all();
    }
}

/// Both threads. Dropping it stops and joins them.
pub struct Workers {
    signals: Arc<Signals>,
    threads: Vec<(&'static str, JoinHandle<Result<(), String>>)>,
}

impl Workers {
    /// Start one thread per direction. `alarm` is signalled when one ends by a panic.
    pub fn start(
        table: &Arc<DescriptorTable>,
        shared: &Arc<Shared>,
        alarm: &Arc<EventFd>,
        encap: EncapDriver,
        decap: DecapDriver,
    ) -> io::Result<Self> {
        let signals = Arc::new(Signals {
            stop: AtomicBool::new(false),
            wanted: AtomicU64::new(0),
            wakes: [EventFd::new()?, EventFd::new()?],
            taken: Mutex::new([0; 2]),
            changed: Condvar::new(),
        });
        let mut workers = Self { signals, threads: Vec::with_capacity(2) };
        workers.spawn(0, table, shared, alarm, encap_loop(encap))?;
        workers.spawn(1, table, shared, alarm, decap_loop(decap))?;
        Ok(workers)
    }

    fn spawn(
        &mut self,
        direction: usize,
        table: &Arc<DescriptorTable>,
        shared: &Arc<Shared>,
        alarm: &Arc<EventFd>,
        mut turn: impl FnMut(&Descriptors, &EventFd) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (signals, table) = (Arc::clone(&self.signals), Arc::clone(table));
        let (shared, alarm) = (Arc::clone(shared), Arc::clone(alarm));
        let thread = thread::Builder::new().name(format!("dsvpn-{}", DIRECTIONS[direction])).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| {
                while !signals.stop.load(Ordering::Acquire) {
                    let generation = signals.wanted.load(Ordering::Acquire);
                    let descriptors = table.current();
                    signals.take(direction, generation);
                    turn(&descriptors, &signals.wakes[direction]).map_err(|error| error.to_string())?;
                }
                Ok(())
            }))
            .unwrap_or_else(|panic| Err(panic_text(&*panic)));
            if result.is_err() {
                shared.counters.add(Counter::WorkerPanics, 1);
            }
            // Before the alarm: whoever hears it and finds nobody ended would not look again.
            signals.take(direction, u64::MAX);
            if result.is_err() {
                alarm.signal();
            }
            result
        })?;
        self.threads.push((DIRECTIONS[direction], thread));
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

    /// Why a worker ended before it was told to: "encap: …".
    pub fn failure(&mut self) -> Option<String> {
        let taken = *self.signals.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = |name: &str| DIRECTIONS.iter().zip(taken).any(|(of, taken)| *of == name && taken == u64::MAX);
        let index = self.threads.iter().position(|(direction, _)| ended(direction))?;
        let (direction, thread) = self.threads.remove(index);
        outcome(direction, thread)
    }

    /// Stop and join. Errors: why a worker ended by itself.
    pub fn stop(&mut self) -> Result<(), String> {
        self.signals.stop.store(true, Ordering::Release);
        for wake in &self.signals.wakes {
            wake.signal();
        }
        let failures: Vec<String> =
            self.threads.drain(..).filter_map(|(direction, thread)| outcome(direction, thread)).collect();
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

fn outcome(direction: &str, thread: JoinHandle<Result<(), String>>) -> Option<String> {
    match thread.join() {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(format!("the {direction} worker failed: {why}")),
        Err(_) => Some(format!("the {direction} worker failed")),
    }
}

/// One turn of a worker: forward with one snapshot of descriptors until it is woken.
fn encap_loop(mut driver: EncapDriver) -> impl FnMut(&Descriptors, &EventFd) -> io::Result<()> + Send {
    let mut poll = PollSet::default();
    move |descriptors, wake| {
        let mut tuns: Vec<_> = descriptors.tuns().collect();
        loop {
            poll.set([wake.as_raw_fd()].into_iter().chain(tuns.iter().map(|(_, tun)| tun.as_raw_fd())));
            poll.wait()?;
            if poll.is_ready(0) {
                wake.clear();
                return Ok(());
            }
            let mut index = 0;
            // A device that died is watched no more: it would be ready for ever.
            tuns.retain(|(tunnel, tun)| {
                index += 1;
                !poll.is_ready(index) || !driver.drain(descriptors, *tunnel, tun, BUDGET).dead
            });
        }
    }
}

fn decap_loop(mut driver: DecapDriver) -> impl FnMut(&Descriptors, &EventFd) -> io::Result<()> + Send {
    let mut poll = PollSet::default();
    move |descriptors, wake| {
        let sockets = descriptors.underlay().sockets();
        poll.set([wake.as_raw_fd()].into_iter().chain(sockets.iter().map(AsRawFd::as_raw_fd)));
        loop {
            poll.wait()?;
            if poll.is_ready(0) {
                wake.clear();
                return Ok(());
            }
            for (index, socket) in sockets.iter().enumerate() {
                if poll.is_ready(index + 1) {
                    driver.drain(descriptors, socket, BUDGET);
                }
            }
        }
    }
}
