//! Workers that encapsulate at the same time.

use std::num::NonZeroU32;
use std::sync::{Arc, Barrier};
use std::thread;

use dsvpn_dataplane::*;

use crate::common::SECOND;

pub const WORKERS: u32 = 4;

/// One worker's way from packets to what is sent.
pub struct Sender {
    pub encap: Encap,
    reader: TablesReader,
    send: Vec<u8>,
    batch: SendBatch,
    replies: TunBatch,
    /// How often it has waited for its turn.
    pub waits: usize,
}

impl Sender {
    pub fn new(worker: u32, reader: TablesReader, shared: &Arc<Shared>) -> Self {
        let mut encap = Encap::new(Arc::clone(shared), EncapConfig::default());
        encap.share(NonZeroU32::new(worker + 1).unwrap());
        let send = vec![0; MIN_SEND_ARENA];
        Self { encap, reader, send, batch: SendBatch::new(), replies: TunBatch::new(), waits: 0 }
    }

    /// Send a vector as a driver does. `sent` gets what leaves.
    pub fn forward(&mut self, arena: &[u8], packets: &[PacketMeta], mut sent: impl FnMut(&SendMessage, &[u8])) {
        let mut first = 0;
        while first < packets.len() {
            let tables = self.reader.enter().unwrap();
            let (send, batch, replies) = (&mut self.send, &mut self.batch, &mut self.replies);
            first += self.encap.run(&tables, 0, arena, &packets[first..], send, batch, replies, SECOND).consumed;
            drop(tables);
            for message in &self.batch.messages {
                for range in message.datagrams() {
                    sent(message, &self.send[range]);
                }
            }
            self.batch.clear();
            self.encap.release();
            while self.encap.must_wait() {
                self.waits += 1;
                thread::yield_now();
            }
        }
    }
}

/// Let every worker work with its view of the tables, at the same time.
pub fn together(reader: &TablesReader, work: impl Fn(u32, TablesReader) + Sync) {
    let barrier = Barrier::new(WORKERS as usize);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (work, barrier, reader) = (&work, &barrier, reader.clone());
            scope.spawn(move || {
                barrier.wait();
                work(worker, reader);
            });
        }
    });
}
