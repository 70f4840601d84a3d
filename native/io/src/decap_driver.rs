//! Underlay to TUN: receive, decapsulate, write, until the socket has no more.

use std::net::SocketAddr;
use std::sync::Arc;

use dsvpn_dataplane::{Datagram, DatagramKind, DecapConfig, Shared, TablesReader, TunBatch, Verdict};
use dsvpn_wire::virtio::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};

use crate::clock::Clock;
use crate::descriptors::Descriptors;
use crate::encap_driver::Drained;
use crate::engine::NON_ESP_MARKER;
use crate::prefetch::Decap;
use crate::receive::{RECEIVE_ARENA, ReceiveRing};
use crate::send::SendRing;
use crate::socket::Socket;
use crate::tun_output::TunOutput;

/// Errors in a row that a socket may report before its drain ends; poll calls again if it goes on.
const ERRORS: u32 = 16;

/// One direction's state: one per thread that forwards.
pub struct DecapDriver {
    shared: Arc<Shared>,
    reader: TablesReader,
    clock: Clock,
    decap: Decap,
    arena: Box<[u8]>,
    datagrams: Vec<Datagram>,
    batch: TunBatch,
    ring: ReceiveRing,
    output: TunOutput,
    replies: SendRing,
}

impl DecapDriver {
    /// `lane`: whose sockets and TUN queues it uses, of those who forward at the same time.
    pub fn new(shared: Arc<Shared>, reader: TablesReader, clock: Clock, lane: usize) -> Self {
        Self {
            decap: Decap::new(Arc::clone(&shared), config(true, false)),
            shared,
            reader,
            clock,
            arena: vec![0; RECEIVE_ARENA].into_boxed_slice(),
            datagrams: Vec::with_capacity(64),
            batch: TunBatch::new(),
            ring: ReceiveRing::new(),
            output: TunOutput::new(lane),
            replies: SendRing::new(lane),
        }
    }

    /// Forward at most `budget` vectors from one socket, until it has no more.
    pub fn drain(&mut self, descriptors: &Descriptors, socket: &Socket, budget: usize) -> Drained {
        // What a device refuses to take merged is not merged any more: splitting it again costs more than both.
        let takes = |kind| descriptors.tuns().all(|(_, tun)| tun.takes_superpackets(kind));
        let tcp = takes(GSO_TCPV4) && takes(GSO_TCPV6);
        let udp = takes(GSO_UDP_L4) && descriptors.tuns().all(|(_, tun)| tun.udp_offload());
        self.decap.set_config(config(tcp, udp));
        let mut drained = Drained::default();
        let mut errors = 0;
        let mut vectors = 0;
        while vectors < budget {
            let counters = &self.shared.counters;
            match self.ring.receive(socket, &mut self.arena, &mut self.datagrams, counters) {
                Ok(receipt) => {
                    drained.packets += receipt.messages;
                    if self.shared.cookies.is_shut() {
                        self.answer_strangers(socket);
                    }
                    if !self.datagrams.is_empty() {
                        self.forward(descriptors);
                    }
                    if receipt.drained {
                        break;
                    }
                    vectors += 1;
                }
                // An ICMP error about some datagram that was sent: reading it takes it off the socket.
                Err(_) if errors < ERRORS => errors += 1,
                Err(_) => break,
            }
        }
        drained
    }

    /// While strangers need cookies they get them here: they would fill the queue to the control plane.
    ///
    /// Datagrams that the kernel joined are left to those who take from the queue, and so is what was queued before.
    #[cold]
    fn answer_strangers(&mut self, socket: &Socket) {
        let Self { shared, arena, datagrams, replies, .. } = self;
        datagrams.retain(|datagram| {
            let octets = &arena[datagram.offset as usize..][..datagram.length as usize];
            let (message, marker) = match (datagram.kind, octets) {
                _ if datagram.segment_size != 0 => return true,
                (DatagramKind::UdpIke, message) => (message, &NON_ESP_MARKER[..0]),
                (DatagramKind::UdpNat, [0, 0, 0, 0, message @ ..]) => (message, &NON_ESP_MARKER[..]),
                _ => return true,
            };
            match shared.cookies.judge(message, datagram.remote, datagram.remote_port) {
                Verdict::Pass => true,
                Verdict::Answer(reply) if datagram.remote_port != 0 => {
                    let remote = SocketAddr::new(datagram.remote, datagram.remote_port);
                    let whole = [marker, &reply[..]].concat();
                    replies.send_datagram(socket, datagram.local, remote, &whole, &shared.counters);
                    false
                }
                Verdict::Answer(_) | Verdict::Drop => false,
            }
        });
    }

    fn forward(&mut self, descriptors: &Descriptors) {
        let now = self.clock.now_ns();
        let Some(tables) = self.reader.enter() else { return };
        self.decap.run(&tables, &mut self.arena, &self.datagrams, &mut self.batch, now);
        drop(tables);
        self.output.write_batch(descriptors, &self.arena, &self.batch, &self.shared.counters);
        self.batch.clear();
    }
}

fn config(coalesce_tcp: bool, coalesce_udp: bool) -> DecapConfig {
    DecapConfig { coalesce_tcp, coalesce_udp, verify_checksums: false }
}
