//! Encapsulation: packet vectors from a TUN to messages for the underlay.

mod lookahead;
mod report;
mod transmit;

use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::sync::Arc;

use dsvpn_wire::ip::{IpPacket, protocol, read_u128};
use dsvpn_wire::{read_u32, tcp};

use crate::Shared;
use crate::counters::{Counter, Tally};
use crate::limiter::RateLimiter;
use crate::output::Output;
use crate::prefetch::{NoPrefetch, Prefetch};
use crate::sa::OutboundSa;
use crate::tables::{Adjacency, Tables, Tunnel};
use crate::turn::Turns;
use crate::vector::{GsoLimits, PacketMeta, SendBatch, TunBatch};
use lookahead::{Lookahead, Resolved};
use transmit::Inner;

/// Misses and redirects: once per second and key.
const PUNT_INTERVAL_NS: u64 = 1_000_000_000;
const PUNTS_PER_SECOND: u32 = 1000;
/// ICMP errors: once per this time and pair of addresses; a sender that lost the first one asks again soon.
const TOO_BIG_INTERVAL_NS: u64 = 20_000_000;
const TOO_BIG_PER_SECOND: u32 = 1000;
/// Octets of the packet's head in a redirect punt.
const REDIRECT_HEAD: usize = 128;

/// How an [`Encap`] works.
#[derive(Clone, Copy, Debug)]
pub struct EncapConfig {
    /// How much one UDP message may hold.
    pub udp: GsoLimits,
}

impl Default for EncapConfig {
    fn default() -> Self {
        Self { udp: GsoLimits::UDP }
    }
}

/// How far [`Encap::run`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Packets that are dealt with. Fewer than were given: the send arena is full, or another worker has a key
    /// ([`Encap::must_wait`]).
    pub consumed: usize,
}

/// Where a packet was left when the run had to stop: the copy (multicast) and the segment that come next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Resume {
    copy: u32,
    segment: u32,
}

/// Encapsulates for one worker, which asks for memory ahead as `P` does.
#[derive(Debug)]
pub struct Encap<P = NoPrefetch> {
    shared: Arc<Shared>,
    limits: GsoLimits,
    tally: Tally,
    /// With the tunnel that the packet is of.
    resume: Option<(u32, Resume)>,
    misses: RateLimiter,
    redirects: RateLimiter,
    too_big: RateLimiter,
    scratch: Vec<u8>,
    /// `None`: it is the only one that seals.
    turns: Option<Turns>,
    prefetch: PhantomData<P>,
}

/// The adjacency of a run of packets and what the run has sent, added to its counters once.
#[derive(Default)]
struct Run<'t> {
    adjacency: Option<&'t Adjacency>,
    sa: Option<&'t OutboundSa>,
    packets: u64,
    octets: u64,
}

impl<'t> Run<'t> {
    #[inline]
    fn count(&mut self, adjacency: &'t Adjacency, sa: Option<&'t OutboundSa>, packets: u64, octets: u64, now_ns: u64) {
        if !self.adjacency.is_some_and(|current| std::ptr::eq(current, adjacency)) {
            self.flush(now_ns);
            (self.adjacency, self.sa) = (Some(adjacency), sa);
        }
        self.packets += packets;
        self.octets += octets;
    }

    fn flush(&mut self, now_ns: u64) {
        if let Some(adjacency) = self.adjacency.take()
            && self.packets != 0
        {
            let counted = self.sa.is_some_and(|sa| sa.count(self.packets, self.octets, now_ns));
            if !counted {
                adjacency.counters.outward.count(self.packets, self.octets, now_ns);
            }
        }
        (self.packets, self.octets) = (0, 0);
    }
}

/// What the steps of one run share.
struct Vector<'t, 'o> {
    tables: &'t Tables,
    tunnel_id: u32,
    tunnel: &'t Tunnel,
    output: Output<'o>,
    replies: &'o mut TunBatch,
    run: Run<'t>,
    now_ns: u64,
}

/// What became of a packet.
enum Outcome {
    Done,
    /// The arena is full, or another worker has the key; go on here.
    Full(Resume),
}

impl<P: Prefetch> Encap<P> {
    /// An encapsulator that counts and punts to `shared`.
    pub fn new(shared: Arc<Shared>, config: EncapConfig) -> Self {
        Self {
            shared,
            limits: config.udp,
            tally: Tally::default(),
            resume: None,
            misses: RateLimiter::new(PUNT_INTERVAL_NS, PUNTS_PER_SECOND),
            redirects: RateLimiter::new(PUNT_INTERVAL_NS, PUNTS_PER_SECOND),
            too_big: RateLimiter::new(TOO_BIG_INTERVAL_NS, TOO_BIG_PER_SECOND),
            scratch: Vec::with_capacity(64 * 1024),
            turns: None,
            prefetch: PhantomData,
        }
    }

    /// Change how much one UDP message may hold, from the next run on.
    pub fn set_limits(&mut self, udp: GsoLimits) {
        self.limits = udp;
    }

    /// Seal as one of several workers, each with a number of its own from 1 on: by the SAs of the resource one below that
    /// where adjacencies have them. With a key that another has sealed with and not yet sent, a run stops as if the arena were full. So after every run the caller sends the batch, calls
    /// [`Encap::release`], and waits while [`Encap::must_wait`]: what leaves under one key leaves in the order of its numbers.
    pub fn share(&mut self, worker: NonZeroU32) {
        self.turns = Some(Turns::new(worker));
    }

    /// Everything that was sealed is sent: others may use these keys.
    #[inline]
    pub fn release(&mut self) {
        if let Some(turns) = &mut self.turns {
            turns.release();
        }
    }

    /// Whether the packet that comes next needs a key that another worker has.
    #[inline]
    pub fn must_wait(&self) -> bool {
        self.turns.as_ref().is_some_and(Turns::must_wait)
    }

    /// Encapsulate packets of a tunnel into `send` and `batch`, in order; ICMP errors about them go to `replies`.
    ///
    /// `send` has at least [`crate::MIN_SEND_ARENA`] octets. When it is full, fewer packets are consumed than were given: the
    /// caller sends and clears the batch and calls again, beginning with the first packet that was not consumed.
    /// `now_ns` is monotonic time.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        tables: &Tables,
        tunnel: u32,
        arena: &[u8],
        packets: &[PacketMeta],
        send: &mut [u8],
        batch: &mut SendBatch,
        replies: &mut TunBatch,
        now_ns: u64,
    ) -> Progress {
        let Some(found) = tables.tunnel(tunnel) else {
            // These packets are dealt with: none of a later tunnel goes on where one of them stopped.
            self.resume = None;
            self.shared.counters.add(Counter::DropNoTunnel, packets.len() as u64);
            return Progress { consumed: packets.len() };
        };
        if let Some(turns) = &mut self.turns {
            turns.ask_anew();
        }
        let output = Output::new(send, batch, self.limits);
        let messages = output.messages();
        let mut vector =
            Vector { tables, tunnel_id: tunnel, tunnel: found, output, replies, run: Run::default(), now_ns };
        let mut consumed = packets.len();
        let mut left = self.resume.take().filter(|(of, _)| *of == tunnel).map(|(_, resume)| resume);
        let resource = self.turns.as_ref().map_or(0, Turns::resource);
        let mut lookahead = Lookahead::<P>::new(tables, found, arena, packets, resource);
        for (index, meta) in packets.iter().enumerate() {
            let resume = left.take();
            let resolved = lookahead.next(index);
            if let Outcome::Full(resume) = self.packet(&mut vector, resolved, arena, meta, resume) {
                if vector.output.is_empty() && !self.turns.as_ref().is_some_and(Turns::is_refused) {
                    // Not even an empty arena has room: the caller's arena is below the minimum.
                    self.tally.add(Counter::DropTooBig, 1);
                    continue;
                }
                self.resume = Some((tunnel, resume));
                consumed = index;
                break;
            }
        }
        vector.run.flush(now_ns);
        self.tally.add(Counter::UnderlayTxMessages, (vector.output.messages() - messages) as u64);
        self.tally.flush(&self.shared.counters);
        Progress { consumed }
    }

    fn packet<'t>(
        &mut self,
        vector: &mut Vector<'t, '_>,
        resolved: Resolved<'t>,
        arena: &[u8],
        meta: &PacketMeta,
        resume: Option<Resume>,
    ) -> Outcome {
        // A packet that found no room at all comes again from its beginning, and is not a new one then.
        let fresh = resume.is_none();
        let resume = resume.unwrap_or_default();
        if fresh {
            self.tally.add(Counter::TunRxPackets, 1);
            self.tally.add(Counter::TunRxOctets, u64::from(meta.length));
        }
        let start = meta.offset as usize;
        let Some(octets) = arena.get(start..start.saturating_add(meta.length as usize)) else {
            return self.drop(Counter::DropMalformedInner);
        };
        let Ok(packet) = IpPacket::parse(octets) else {
            return self.drop(Counter::DropMalformedInner);
        };
        let octets = &octets[..packet.length];
        let destination = if packet.version == 4 { u128::from(read_u32(octets, 16)) } else { read_u128(octets, 24) };
        let inner = Inner { octets, packet: &packet, meta };
        if is_multicast(&packet, destination) {
            return self.multicast(vector, inner, resume);
        }
        let Some(next_hop) = resolved.next_hop else {
            return self.drop(Counter::DropNoRoute);
        };
        if resolved.resolve && fresh {
            self.punt_miss(vector, next_hop, &packet, octets, destination);
        }
        let Some(adjacency) = resolved.adjacency else {
            return self.drop(Counter::DropNoAdjacency);
        };
        if vector.tunnel.config.redirect && fresh {
            self.detect_redirect(vector, adjacency, &packet, octets, destination);
        }
        match self.transmit(vector, adjacency, inner, resume.segment) {
            None => Outcome::Done,
            Some(segment) => Outcome::Full(Resume { copy: 0, segment }),
        }
    }

    fn drop(&mut self, reason: Counter) -> Outcome {
        self.tally.add(reason, 1);
        Outcome::Done
    }

    /// A copy to every adjacency of the tunnel's multicast list.
    fn multicast<'t>(&mut self, vector: &mut Vector<'t, '_>, inner: Inner<'_>, mut resume: Resume) -> Outcome {
        let tables = vector.tables;
        let list = &vector.tunnel.multicast;
        if list.is_empty() {
            return self.drop(Counter::DropNoMulticast);
        }
        while let Some(&id) = list.get(resume.copy as usize) {
            match tables.adjacency(id) {
                None => self.tally.add(Counter::DropNoAdjacency, 1),
                Some(adjacency) => {
                    if let Some(segment) = self.transmit(vector, adjacency, inner, resume.segment) {
                        return Outcome::Full(Resume { segment, ..resume });
                    }
                }
            }
            resume = Resume { copy: resume.copy + 1, segment: 0 };
        }
        Outcome::Done
    }
}

#[inline]
fn is_multicast(packet: &IpPacket, destination: u128) -> bool {
    if packet.version == 4 {
        destination >> 28 == 0xe || destination == u128::from(u32::MAX)
    } else {
        destination >> 120 == 0xff
    }
}

/// Whether the packet is the TCP SYN that opens a connection (not a later fragment).
#[inline]
pub(crate) fn is_syn(packet: &IpPacket, octets: &[u8]) -> bool {
    packet.protocol == protocol::TCP
        && !packet.fragment
        && octets.get(packet.header_length + 13).is_some_and(|flags| flags & tcp::SYN != 0)
}

/// The TCP MSS that fills the adjacency's MTU (RFC 9293 section 3.7.1).
pub(crate) fn max_segment(adjacency: &Adjacency, packet: &IpPacket) -> u16 {
    let headers = tcp::HEADER + if packet.version == 4 { 20 } else { 40 };
    adjacency.mtu().saturating_sub(headers).max(1) as u16
}
