//! What the data plane hands to the control plane: a bounded queue for rare packets.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What a punt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum PuntKind {
    /// A datagram of UDP 500, or one of UDP 4500 with the non-ESP marker removed.
    Ike,
    /// The NHRP packet behind a GRE header.
    Nhrp,
    /// A packet used a next hop with `resolve`; `data` is its packed destination address.
    Miss,
    /// A packet came from one adjacency of a redirecting tunnel and leaves by another; `data` is its head.
    Redirect,
    /// Authenticated ESP came from another address than its adjacency has.
    Moved,
    /// The tunnel's network device was taken away: nothing of that tunnel is forwarded any more.
    Gone,
    /// ESP came with an SPI that no inbound SA has; `data` is the SPI.
    UnknownSpi,
    /// A packet came whose inner source, packed in `data`, is not routed to its adjacency. It was dropped, unless
    /// `next_hop` names the one that leads elsewhere for the moment, perhaps.
    Source,
}

impl PuntKind {
    /// Every kind.
    pub const ALL: [PuntKind; 8] = [
        PuntKind::Ike,
        PuntKind::Nhrp,
        PuntKind::Miss,
        PuntKind::Redirect,
        PuntKind::Moved,
        PuntKind::Gone,
        PuntKind::UnknownSpi,
        PuntKind::Source,
    ];

    /// Its name for the control plane.
    pub const fn name(self) -> &'static str {
        match self {
            PuntKind::Ike => "ike",
            PuntKind::Nhrp => "nhrp",
            PuntKind::Miss => "miss",
            PuntKind::Redirect => "redirect",
            PuntKind::Moved => "moved",
            PuntKind::Gone => "gone",
            PuntKind::UnknownSpi => "unknown_spi",
            PuntKind::Source => "source",
        }
    }

    /// How many of them wait at most; more are counted as `drop_punt_overflow`.
    pub const fn bound(self) -> usize {
        match self {
            PuntKind::Ike | PuntKind::Nhrp => 2048,
            PuntKind::Miss | PuntKind::Redirect | PuntKind::Moved | PuntKind::Gone => 1024,
            PuntKind::UnknownSpi | PuntKind::Source => 64,
        }
    }
}

/// One punt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Punt {
    /// What it is.
    pub kind: PuntKind,
    /// Tunnel, where it applies.
    pub tunnel: Option<u32>,
    /// Adjacency that the packet came from, when known.
    pub adjacency: Option<u32>,
    /// The next hop that a miss used, or that stands in for the peer of a source.
    pub next_hop: Option<u32>,
    /// Our underlay address.
    pub local: Option<IpAddr>,
    /// Our port, 0 for raw sockets.
    pub local_port: u16,
    /// The sender's underlay address.
    pub remote: Option<IpAddr>,
    /// The sender's port, 0 for raw sockets.
    pub remote_port: u16,
    /// See [`PuntKind`].
    pub data: Vec<u8>,
}

impl Punt {
    /// A punt that says no more than which tunnel it is about.
    pub fn of_tunnel(kind: PuntKind, tunnel: u32) -> Self {
        Self {
            kind,
            tunnel: Some(tunnel),
            adjacency: None,
            next_hop: None,
            local: None,
            local_port: 0,
            remote: None,
            remote_port: 0,
            data: Vec::new(),
        }
    }
}

type Wake = Box<dyn Fn() + Send + Sync>;

/// Punts that wait for the control plane, bounded by kind. The order between kinds is kept.
pub struct PuntQueue {
    waiting: Mutex<Waiting>,
    wake: OnceLock<Wake>,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Punt>,
    counts: [usize; PuntKind::ALL.len()],
}

impl fmt::Debug for PuntQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PuntQueue").field("waiting", &self.len()).finish_non_exhaustive()
    }
}

impl Default for PuntQueue {
    fn default() -> Self {
        Self { waiting: Mutex::new(Waiting::default()), wake: OnceLock::new() }
    }
}

impl PuntQueue {
    /// Have `wake` called whenever the queue stops being empty. Only the first call has an effect.
    pub fn set_wake(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.wake.set(Box::new(wake));
    }

    /// Add a punt. False if there was no room for its kind.
    pub fn push(&self, punt: Punt) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = &mut waiting.counts[punt.kind as usize];
        if *count >= punt.kind.bound() {
            return false;
        }
        *count += 1;
        let first = waiting.queue.is_empty();
        waiting.queue.push_back(punt);
        drop(waiting);
        if first && let Some(wake) = self.wake.get() {
            wake();
        }
        true
    }

    /// Take the oldest punts, at most `limit`.
    pub fn take(&self, limit: usize) -> Vec<Punt> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = limit.min(waiting.queue.len());
        let taken: Vec<Punt> = waiting.queue.drain(..count).collect();
        for punt in &taken {
            waiting.counts[punt.kind as usize] -= 1;
        }
        taken
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).queue.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn punt(kind: PuntKind) -> Punt {
        Punt { tunnel: None, ..Punt::of_tunnel(kind, 0) }
    }

    #[test]
    fn bounds_hold_by_kind_and_wake_comes_once() {
        let queue = PuntQueue::default();
        let wakes = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&wakes);
        queue.set_wake(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        for _ in 0..PuntKind::Miss.bound() {
            assert!(queue.push(punt(PuntKind::Miss)));
        }
        assert!(!queue.push(punt(PuntKind::Miss)));
        assert!(queue.push(punt(PuntKind::Ike)));
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        assert_eq!(queue.take(10).len(), 10);
        assert!(queue.push(punt(PuntKind::Miss)));
        assert_eq!(queue.take(usize::MAX).len(), PuntKind::Miss.bound() - 10 + 2);
        assert!(queue.is_empty());
    }
}
