//! TUN to underlay: fill the arena, encapsulate, send, until the device has no more.

use std::hint;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dsvpn_dataplane::{Counter, EncapConfig, PacketMeta, Punt, PuntKind, SendBatch, Shared, TablesReader, TunBatch};
use dsvpn_wire::virtio::VirtioNetHeader;

use crate::clock::Clock;
use crate::descriptors::Descriptors;
use crate::prefetch::Encap;
use crate::send::SendRing;
use crate::tun::{READ_ROOM, Tun, VIRTIO_HEADER};
use crate::tun_output::TunOutput;

/// Octets of the arena: three full superpackets, so that the vector and what is sealed of it fit the second level
/// cache and the last packet does not wait long for the first.
const ARENA: usize = 256 * 1024;

/// Octets of the send arena.
const SEND_ARENA: usize = 256 * 1024;

/// Most packets of a vector: bounds the wait of the first one where packets are small.
const PACKETS: usize = 256;

/// How often a key is looked at that another worker has, before it is waited for asleep: some microseconds.
const SPINS: u32 = 200;

/// Between two looks at it from there on: a fraction of a full vector's time.
const PAUSE: Duration = Duration::from_micros(20);

/// One direction's state: one per thread that forwards.
pub struct EncapDriver {
    shared: Arc<Shared>,
    reader: TablesReader,
    clock: Clock,
    encap: Encap,
    arena: Box<[u8]>,
    packets: Vec<PacketMeta>,
    send_arena: Box<[u8]>,
    batch: SendBatch,
    replies: TunBatch,
    ring: SendRing,
    output: TunOutput,
}

/// What a drain did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Packets or datagrams taken in.
    pub packets: usize,
    /// The descriptor gives nothing any more, for good.
    pub dead: bool,
}

impl EncapDriver {
    /// `lane`: whose sockets and TUN queues it uses, of those who forward at the same time.
    pub fn new(shared: Arc<Shared>, reader: TablesReader, clock: Clock, lane: usize) -> Self {
        Self {
            encap: Encap::new(Arc::clone(&shared), EncapConfig::default()),
            shared,
            reader,
            clock,
            arena: vec![0; ARENA].into_boxed_slice(),
            packets: Vec::with_capacity(PACKETS),
            send_arena: vec![0; SEND_ARENA].into_boxed_slice(),
            batch: SendBatch::new(),
            replies: TunBatch::new(),
            ring: SendRing::new(lane),
            output: TunOutput::new(lane),
        }
    }

    /// Seal as one of several, of whom no other has this number.
    pub fn share(&mut self, worker: NonZeroU32) {
        self.encap.share(worker);
    }

    /// Forward at most `budget` vectors from one queue of a TUN, until it has no more.
    pub fn drain(&mut self, descriptors: &Descriptors, tunnel: u32, tun: &Tun, queue: usize, budget: usize) -> Drained {
        let mut drained = Drained::default();
        for _ in 0..budget {
            let more = self.fill(tun, queue);
            if !self.packets.is_empty() {
                self.forward(descriptors, tunnel);
                drained.packets += self.packets.len();
            }
            match more {
                Fill::More => {}
                Fill::Empty => break,
                Fill::Dead => {
                    drained.dead = true;
                    self.report_gone(tunnel, tun);
                    break;
                }
            }
        }
        drained
    }

    /// Read packets until the device has none, the arena is full or there are enough.
    fn fill(&mut self, tun: &Tun, queue: usize) -> Fill {
        self.packets.clear();
        let mut at = 0;
        while self.packets.len() < PACKETS && at + 16 + READ_ROOM <= self.arena.len() {
            // The packet behind the virtio header begins at a multiple of 16: copies of it are aligned.
            let start = at + (16 - VIRTIO_HEADER);
            let count = match tun.read(queue, &mut self.arena[start..start + READ_ROOM]) {
                Ok(Some(count)) => count,
                Ok(None) => return Fill::Empty,
                // A packet that the kernel took off its queue and could not describe.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOMEM)) => {
                    self.shared.counters.add(Counter::TunRxPackets, 1);
                    self.shared.counters.add(Counter::DropMalformedVirtio, 1);
                    return Fill::More;
                }
                // The device was taken away (EBADFD, EIO): it would be readable, with this error, for ever.
                Err(_) => return Fill::Dead,
            };
            match VirtioNetHeader::read(&self.arena[start..start + count]) {
                Some(virtio) => self.packets.push(PacketMeta {
                    offset: (start + VIRTIO_HEADER) as u32,
                    length: (count - VIRTIO_HEADER) as u32,
                    virtio,
                    reserved: 0,
                }),
                None => {
                    self.shared.counters.add(Counter::TunRxPackets, 1);
                    self.shared.counters.add(Counter::DropMalformedVirtio, 1);
                }
            }
            at = (start + count).next_multiple_of(16);
        }
        Fill::More
    }

    /// Tell the control plane, once, that nothing of this tunnel is forwarded any more.
    #[cold]
    fn report_gone(&self, tunnel: u32, tun: &Tun) {
        if tun.note_gone() {
            self.shared.counters.add(Counter::TunGone, 1);
            self.shared.punts.push(Punt::of_tunnel(PuntKind::Gone, tunnel));
        }
    }

    fn forward(&mut self, descriptors: &Descriptors, tunnel: u32) {
        let now = self.clock.now_ns();
        let mut first = 0;
        while first < self.packets.len() {
            // Sending may wait for room, so the tables are entered anew for each part of a vector.
            let Some(tables) = self.reader.enter() else { return };
            let progress = self.encap.run(
                &tables,
                tunnel,
                &self.arena,
                &self.packets[first..],
                &mut self.send_arena,
                &mut self.batch,
                &mut self.replies,
                now,
            );
            drop(tables);
            let counters = &self.shared.counters;
            self.ring.send(descriptors.underlay(), &self.send_arena, &self.batch.messages, counters);
            self.batch.clear();
            self.encap.release();
            if !self.replies.packets.is_empty() {
                self.output.write_batch(descriptors, &[], &self.replies, counters);
                self.replies.clear();
            }
            first += progress.consumed;
            if self.encap.must_wait() {
                self.wait_for_turn();
            }
        }
    }

    /// Wait until another worker has sent what it sealed with the key that comes next.
    #[cold]
    fn wait_for_turn(&self) {
        let mut spins = 0;
        while self.encap.must_wait() {
            if spins < SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                // It may have lost its processor: to this thread, for one.
                thread::sleep(PAUSE);
            }
        }
    }
}

enum Fill {
    More,
    Empty,
    Dead,
}
