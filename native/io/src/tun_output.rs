//! Writes packets of a batch to the TUN devices, by reference to the arena that they lie in.

use std::io::IoSlice;
use std::mem;

use dsvpn_dataplane::{Counter, Counters, TunBatch, TunPacket};

use crate::descriptors::Descriptors;
use crate::tun::Tun;

/// Writes batches, with the storage that it takes.
pub struct TunOutput {
    /// Its worker's.
    lane: usize,
    /// The parts of one packet; empty between batches.
    parts: Vec<IoSlice<'static>>,
    scratch: Vec<u8>,
}

impl TunOutput {
    pub fn new(lane: usize) -> Self {
        Self { lane, parts: Vec::with_capacity(TunBatch::MAX_SLICES + 1), scratch: Vec::new() }
    }

    /// Write every packet of a batch to the device of its tunnel. What the device refuses is counted.
    pub fn write_batch(&mut self, descriptors: &Descriptors, arena: &[u8], batch: &TunBatch, counters: &Counters) {
        let mut parts: Vec<IoSlice<'_>> = mem::take(&mut self.parts);
        write_packets(self.lane, descriptors, arena, batch, &mut parts, &mut self.scratch, counters);
        parts.clear();
        // An empty vector refers to nothing, so its storage can serve the next batch: collecting it in place keeps it.
        self.parts = parts.into_iter().map(|_| IoSlice::new(&[])).collect();
    }
}

fn write_packets<'a>(
    lane: usize,
    descriptors: &Descriptors,
    arena: &'a [u8],
    batch: &'a TunBatch,
    parts: &mut Vec<IoSlice<'a>>,
    scratch: &mut Vec<u8>,
    counters: &Counters,
) {
    for packet in &batch.packets {
        let Some(tun) = descriptors.tun(packet.tunnel) else {
            counters.add(Counter::DropNoTunnel, u64::from(packet.segments));
            continue;
        };
        parts.clear();
        let header = batch.header(packet);
        if !header.is_empty() {
            parts.push(IoSlice::new(header));
        }
        for slice in batch.slices_of(packet) {
            let start = slice.offset as usize;
            parts.push(IoSlice::new(&arena[start..start + slice.length as usize]));
        }
        // The virtio header comes first, whichever part it is in; its second octet is the gso_type.
        let gso_type = parts.first().and_then(|part| part.get(1)).copied().unwrap_or(0);
        if packet.segments > 1 && !tun.takes_superpackets(gso_type) {
            write_single(lane, tun, arena, batch, packet, scratch, counters);
            continue;
        }
        match tun.write(lane, parts) {
            Ok(()) => {}
            // Some kernels refuse sound superpackets with a short tail: Linux commit e269d79c7d35 and its backports.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && packet.segments > 1 => {
                counters.add(Counter::TunGsoRefused, 1);
                tun.refuse_superpackets(gso_type);
                write_single(lane, tun, arena, batch, packet, scratch, counters);
            }
            Err(_) => counters.add(Counter::DropTunWrite, u64::from(packet.segments)),
        }
    }
}

fn write_single(
    lane: usize,
    tun: &Tun,
    arena: &[u8],
    batch: &TunBatch,
    packet: &TunPacket,
    scratch: &mut Vec<u8>,
    counters: &Counters,
) {
    batch.split(arena, packet, scratch, |octets| {
        if tun.write(lane, &[IoSlice::new(octets)]).is_err() {
            counters.add(Counter::DropTunWrite, 1);
        }
    });
}
