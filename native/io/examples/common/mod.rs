//! What the benchmarks of whole vectors share: both directions with what they write to, memory to memory.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dsvpn_dataplane::*;
use dsvpn_io::{Decap, Encap};

const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THEIRS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const PORT: u16 = 4500;

/// An adjacency of tunnel 0 between the only two addresses that there are.
pub fn adjacency(mtu: u32) -> AdjacencyConfig {
    AdjacencyConfig {
        tunnel: 0,
        encapsulation: Encapsulation::Udp,
        local: Some(OURS),
        remote: THEIRS,
        remote_port: PORT,
        mtu,
    }
}

/// Octets of the packets of the simple IMIX: seven of 64, four of 576, one of 1424.
pub fn imix(index: usize) -> usize {
    match index * 5 % 12 {
        0 => 1424,
        1..=4 => 576,
        _ => 64,
    }
}

/// Encapsulation and decapsulation of one vector after another.
pub struct Bench {
    encap: Encap,
    decap: Decap,
    send: Vec<u8>,
    pub batch: SendBatch,
    replies: TunBatch,
    pub tun: TunBatch,
    datagrams: Vec<Datagram>,
}

impl Bench {
    /// `send`: octets of the arena that datagrams are written to.
    pub fn new(send: usize) -> Self {
        let shared = Arc::new(Shared::default());
        Self {
            encap: Encap::new(Arc::clone(&shared), EncapConfig::default()),
            decap: Decap::new(shared, DecapConfig::default()),
            send: vec![0; send],
            batch: SendBatch::new(),
            replies: TunBatch::new(),
            tun: TunBatch::new(),
            datagrams: Vec::new(),
        }
    }

    /// Encapsulate all packets of a vector, and tell how long that took.
    pub fn encap(&mut self, tables: &TablesReader, arena: &[u8], packets: &[PacketMeta]) -> Duration {
        self.batch.clear();
        self.replies.clear();
        let tables = tables.enter().unwrap();
        let start = Instant::now();
        let (send, batch, replies) = (&mut self.send, &mut self.batch, &mut self.replies);
        let progress = self.encap.run(&tables, 0, arena, packets, send, batch, replies, 1);
        let time = start.elapsed();
        assert_eq!(progress.consumed, packets.len());
        time
    }

    /// Decapsulate what was encapsulated, and tell how long that took.
    pub fn decap(&mut self, tables: &TablesReader) -> Duration {
        self.tun.clear();
        self.datagrams.clear();
        self.datagrams.extend(self.batch.messages.iter().map(|message| Datagram {
            offset: message.offset,
            length: message.length,
            segment_size: if message.segments > 1 { message.segment_size } else { 0 },
            kind: DatagramKind::UdpNat,
            local: Some(OURS),
            local_port: PORT,
            remote: THEIRS,
            remote_port: PORT,
        }));
        let tables = tables.enter().unwrap();
        let start = Instant::now();
        self.decap.run(&tables, &mut self.send, &self.datagrams, &mut self.tun, 1);
        let time = start.elapsed();
        black_box(&self.tun);
        time
    }
}
