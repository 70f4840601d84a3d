//! Decapsulation: datagrams from the underlay to packets for the TUN devices, and punts.

mod lookahead;

use std::hash::Hasher;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};

use dsvpn_wire::esp;
use dsvpn_wire::gre::{self, GreHeader};
use dsvpn_wire::ip::{IpPacket, protocol, read_u128};
use dsvpn_wire::virtio::VirtioNetHeader;
use dsvpn_wire::{read_u32, tcp};

use crate::Shared;
use crate::aead::ICV_LENGTH;
use crate::coalesce::{Coalescer, Incoming};
use crate::counters::{Counter, Tally};
use crate::encap::{is_syn, max_segment};
use crate::esp as special;
use crate::limiter::{RateLimiter, WordHasher};
use crate::output::esn_aad;
use crate::prefetch::{NoPrefetch, Prefetch};
use crate::punt::{Punt, PuntKind};
use crate::replay::ReplayWindow;
use crate::sa::{InboundRun, InboundSa};
use crate::sources::{Checked, Origin, is_error_from_behind};
use crate::tables::{Adjacency, Tables};
use crate::vector::{Datagram, DatagramKind, Encapsulation, TunBatch};
use lookahead::Lookahead;

/// Moves: once per second and adjacency.
const MOVED_INTERVAL_NS: u64 = 1_000_000_000;
const MOVED_PER_SECOND: u32 = 1000;
/// Unknown SPIs: once per second and sender, and few in all, for anybody can send them.
const UNKNOWN_SPI_INTERVAL_NS: u64 = 1_000_000_000;
const UNKNOWN_SPIS_PER_SECOND: u32 = 100;
/// Wrong sources: once per second and adjacency. Doubtful ones: once per second and source.
const SOURCE_INTERVAL_NS: u64 = 1_000_000_000;
const SOURCES_PER_SECOND: u32 = 100;
/// Shortest ESP packet: header, IV, a trailer with its padding, ICV.
const MIN_ESP: usize = esp::HEADER_AND_IV + 4 + ICV_LENGTH;
const KEEPALIVE: u8 = 0xff;

/// How a [`Decap`] works.
#[derive(Clone, Copy, Debug)]
pub struct DecapConfig {
    /// Merge consecutive segments of a TCP flow.
    pub coalesce_tcp: bool,
    /// Merge consecutive datagrams of a UDP flow: only if the TUN takes GSO_UDP_L4.
    pub coalesce_udp: bool,
    /// Check transport checksums before merging also what ESP has authenticated. A merged packet gets a new checksum
    /// from the kernel; without this check, an error that arose within the peer would be hidden by it. What came by
    /// plain GRE is always checked.
    pub verify_checksums: bool,
}

impl Default for DecapConfig {
    fn default() -> Self {
        Self { coalesce_tcp: true, coalesce_udp: true, verify_checksums: false }
    }
}

/// Decapsulates for one worker, which asks for memory ahead as `P` does.
#[derive(Debug)]
pub struct Decap<P = NoPrefetch> {
    shared: Arc<Shared>,
    config: DecapConfig,
    tally: Tally,
    coalescer: Coalescer,
    moved: RateLimiter,
    unknown_spi: RateLimiter,
    sources: RateLimiter,
    prefetch: PhantomData<P>,
}

/// The inbound SA of a run of packets, with its replay window locked.
struct SaRun<'t> {
    sa: &'t InboundSa,
    replay: MutexGuard<'t, ReplayWindow>,
    counts: InboundRun,
    now_ns: u64,
    /// The adjacency that the last key named.
    adjacency: Option<(Option<u32>, &'t Adjacency)>,
}

impl Drop for SaRun<'_> {
    fn drop(&mut self) {
        self.sa.count(&self.counts, self.now_ns);
    }
}

/// The adjacency of a run of packets and what came from it.
struct AdjacencyRun<'t> {
    adjacency: Option<&'t Adjacency>,
    packets: u64,
    octets: u64,
    now_ns: u64,
}

impl<'t> AdjacencyRun<'t> {
    #[inline]
    fn count(&mut self, adjacency: &'t Adjacency, octets: usize) {
        if !self.adjacency.is_some_and(|current| std::ptr::eq(current, adjacency)) {
            self.flush();
            self.adjacency = Some(adjacency);
        }
        self.packets += 1;
        self.octets += octets as u64;
    }

    fn flush(&mut self) {
        if let Some(adjacency) = self.adjacency.take() {
            adjacency.counters.inward.count(self.packets, self.octets, self.now_ns);
        }
        (self.packets, self.octets) = (0, 0);
    }
}

/// What the steps of one run share.
struct Vector<'t, 'a> {
    tables: &'t Tables,
    arena: &'a mut [u8],
    sa: Option<SaRun<'t>>,
    run: AdjacencyRun<'t>,
    checked: Checked,
}

impl<P: Prefetch> Decap<P> {
    /// A decapsulator that counts and punts to `shared`.
    pub fn new(shared: Arc<Shared>, config: DecapConfig) -> Self {
        Self {
            shared,
            config,
            tally: Tally::default(),
            coalescer: Coalescer::new(),
            moved: RateLimiter::new(MOVED_INTERVAL_NS, MOVED_PER_SECOND),
            unknown_spi: RateLimiter::new(UNKNOWN_SPI_INTERVAL_NS, UNKNOWN_SPIS_PER_SECOND),
            sources: RateLimiter::new(SOURCE_INTERVAL_NS, SOURCES_PER_SECOND),
            prefetch: PhantomData,
        }
    }

    /// Change how it works, from the next run on.
    pub fn set_config(&mut self, config: DecapConfig) {
        self.config = config;
    }

    /// Decapsulate datagrams, in place in `arena`. Packets for the TUN devices are appended to `out` and refer to `arena`.
    ///
    /// `now_ns` is monotonic time.
    pub fn run(&mut self, tables: &Tables, arena: &mut [u8], datagrams: &[Datagram], out: &mut TunBatch, now_ns: u64) {
        let run = AdjacencyRun { adjacency: None, packets: 0, octets: 0, now_ns };
        let mut vector = Vector { tables, arena, sa: None, run, checked: Checked::default() };
        let mut lookahead = Lookahead::<P>::new(tables, datagrams.len());
        for (index, datagram) in datagrams.iter().enumerate() {
            if let Some(lookahead) = &mut lookahead {
                lookahead.turn(vector.arena, datagrams, index);
            }
            let start = datagram.offset as usize;
            let end = start.saturating_add(datagram.length as usize);
            if datagram.length == 0 || end > vector.arena.len() {
                self.tally.add(Counter::UnderlayRxPackets, 1);
                self.tally.add(Counter::DropMalformedDatagram, 1);
                continue;
            }
            let stride = if datagram.segment_size == 0 { datagram.length } else { datagram.segment_size } as usize;
            self.tally.add(Counter::UnderlayRxPackets, (end - start).div_ceil(stride) as u64);
            self.tally.add(Counter::UnderlayRxOctets, (end - start) as u64);
            for offset in (start..end).step_by(stride) {
                self.datagram(&mut vector, datagram, offset, stride.min(end - offset));
            }
        }
        vector.run.flush();
        drop(vector.sa.take());
        let (merged, packets, octets) = self.coalescer.finish(vector.arena, out);
        self.tally.add(Counter::Coalesced, merged);
        self.tally.add(Counter::TunTxPackets, packets);
        self.tally.add(Counter::TunTxOctets, octets);
        self.tally.flush(&self.shared.counters);
    }

    #[inline]
    fn datagram(&mut self, vector: &mut Vector<'_, '_>, datagram: &Datagram, offset: usize, length: usize) {
        let result = match datagram.kind {
            DatagramKind::UdpNat => {
                let octets = &vector.arena[offset..offset + length];
                match octets {
                    [KEEPALIVE] => Err(Counter::KeepalivesReceived),
                    [0, 0, 0, 0, message @ ..] => self.punt_ike(datagram, message),
                    [_, _, _, _, ..] => self.esp(vector, datagram, offset, length),
                    _ => Err(Counter::DropMalformedDatagram),
                }
            }
            DatagramKind::Esp => self.esp(vector, datagram, offset, length),
            DatagramKind::Gre => self.plain_gre(vector, datagram, offset, length),
            DatagramKind::UdpIke => self.punt_ike(datagram, &vector.arena[offset..offset + length]),
        };
        if let Err(counter) = result {
            self.tally.add(counter, 1);
        }
    }

    #[cold]
    fn punt_ike(&mut self, datagram: &Datagram, message: &[u8]) -> Result<(), Counter> {
        if message.is_empty() {
            return Err(Counter::DropMalformedDatagram);
        }
        Err(self.punt(PuntKind::Ike, datagram, None, None, message))
    }

    /// Queue a punt; the counter to be raised.
    fn punt(
        &self,
        kind: PuntKind,
        datagram: &Datagram,
        tunnel: Option<u32>,
        adjacency: Option<u32>,
        data: &[u8],
    ) -> Counter {
        let queued = self.shared.punts.push(Punt {
            kind,
            tunnel,
            adjacency,
            next_hop: None,
            local: datagram.local,
            local_port: datagram.local_port,
            remote: Some(datagram.remote),
            remote_port: datagram.remote_port,
            data: data.to_vec(),
        });
        match kind {
            PuntKind::Ike if queued => Counter::PuntIke,
            PuntKind::Nhrp if queued => Counter::PuntNhrp,
            PuntKind::Moved if queued => Counter::PuntMoved,
            PuntKind::UnknownSpi if queued => Counter::PuntUnknownSpi,
            PuntKind::Ike | PuntKind::Nhrp => Counter::DropPuntOverflow,
            _ => Counter::PuntLost,
        }
    }

    #[inline]
    fn esp(
        &mut self,
        vector: &mut Vector<'_, '_>,
        datagram: &Datagram,
        offset: usize,
        length: usize,
    ) -> Result<(), Counter> {
        if length < MIN_ESP {
            return Err(Counter::DropMalformedEsp);
        }
        let octets = &mut vector.arena[offset..offset + length];
        let spi = read_u32(octets, 0);
        let now_ns = vector.run.now_ns;
        let run = match &mut vector.sa {
            Some(run) if run.sa.spi == spi => run,
            other => {
                // Let the last SA go before the next is locked.
                *other = None;
                let Some(sa) = vector.tables.inbound_sa(spi) else {
                    self.report_unknown_spi(vector.run.now_ns, datagram, spi);
                    return Err(Counter::DropUnknownSpi);
                };
                let replay = sa.replay.lock().unwrap_or_else(PoisonError::into_inner);
                other.insert(SaRun { sa, replay, counts: InboundRun::default(), now_ns, adjacency: None })
            }
        };
        let sa = run.sa;
        let sequence = run.replay.infer(read_u32(octets, 4), sa.esn);
        if !run.replay.check(sequence) {
            run.counts.opened.replayed += 1;
            return Err(Counter::DropReplayed);
        }
        let (opened, start) = if sa.shape.is_aead() {
            let (header, sealed) = octets.split_at_mut(esp::HEADER_AND_IV);
            let mut iv = [0; 8];
            iv.copy_from_slice(&header[8..16]);
            let opened = if sa.esn {
                let (aad, aad_length) = esn_aad(spi.to_be_bytes(), sequence.to_be_bytes());
                sa.cipher.open(iv, &aad[..aad_length], sealed)
            } else {
                sa.cipher.open(iv, &header[..8], sealed)
            };
            (opened, esp::HEADER_AND_IV)
        } else {
            (special::open(sa, sequence, octets), sa.shape.header())
        };
        let Ok(plaintext) = opened else {
            run.counts.opened.unauthentic += 1;
            return Err(Counter::DropUnauthentic);
        };
        run.replay.update(sequence);
        let plaintext = &octets[start..start + plaintext];
        let (payload, next_header) = esp::read_trailer(plaintext).ok_or(Counter::DropMalformedEsp)?;
        run.counts.opened.packets += 1;
        run.counts.opened.octets += payload as u64;
        let (at, end) = match next_header {
            protocol::GRE => (0, payload),
            protocol::NONE => return Err(Counter::DummiesReceived),
            protocol::IPV4 | protocol::IPV6 if special::carries(vector.tables, sa) => {
                special::read(&plaintext[..payload], next_header).ok_or(Counter::DropTunnelHeader)?
            }
            _ => return Err(Counter::DropWrongNextHeader),
        };
        let gre = GreHeader::parse(&plaintext[at..end]).ok_or(Counter::DropMalformedGre)?;
        let adjacency = match run.adjacency {
            Some((key, adjacency)) if key == gre.key => adjacency,
            _ => {
                let adjacency = find_adjacency(vector.tables, sa, gre.key)?;
                run.adjacency = Some((gre.key, adjacency));
                adjacency
            }
        };
        if (adjacency.encapsulation == Encapsulation::EspTunnel) != (next_header != protocol::GRE) {
            return Err(Counter::DropWrongNextHeader);
        }
        if next_header != protocol::GRE && !special::is_between(adjacency, &plaintext[..payload]) {
            return Err(Counter::DropTunnelHeader);
        }
        if !adjacency.is_at(datagram.remote) || has_moved_port(adjacency, datagram) {
            self.report_moved(vector.run.now_ns, adjacency, datagram);
        }
        self.payload(vector, datagram, adjacency, &gre, offset + start + at, end - at)
    }

    /// ESP came with an SPI that no SA has: its sender may have missed that this end started anew.
    #[cold]
    fn report_unknown_spi(&mut self, now_ns: u64, datagram: &Datagram, spi: u32) {
        let mut hash = WordHasher::default();
        match datagram.remote {
            IpAddr::V4(address) => hash.write_u32(address.to_bits()),
            IpAddr::V6(address) => hash.write_u128(address.to_bits()),
        }
        hash.write_u32(u32::from(datagram.remote_port));
        if self.unknown_spi.pass(hash.finish(), now_ns) {
            let counter = self.punt(PuntKind::UnknownSpi, datagram, None, None, &spi.to_be_bytes());
            self.tally.add(counter, 1);
        }
    }

    /// An authenticated packet came from another address than its adjacency has.
    #[cold]
    fn report_moved(&mut self, now_ns: u64, adjacency: &Adjacency, datagram: &Datagram) {
        if adjacency.encapsulation == Encapsulation::EspTunnel {
            // Its addresses stand inside, under the ICV, and were right.
            return;
        }
        let mut hash = WordHasher::default();
        hash.write_u32(adjacency.id);
        if self.moved.pass(hash.finish(), now_ns) {
            let counter = self.punt(PuntKind::Moved, datagram, Some(adjacency.tunnel()), Some(adjacency.id), &[]);
            self.tally.add(counter, 1);
        }
    }

    /// A packet came whose source is not routed to its peer; with a `next_hop` it is doubtful alone.
    #[cold]
    fn report_source(&mut self, now_ns: u64, adjacency: &Adjacency, v4: bool, source: u128, next_hop: Option<u32>) {
        let mut hash = WordHasher::default();
        hash.write_u32(adjacency.id);
        if next_hop.is_some() {
            hash.write_u128(source);
        }
        if self.sources.pass(hash.finish(), now_ns) {
            let data = if v4 { (source as u32).to_be_bytes().to_vec() } else { source.to_be_bytes().to_vec() };
            let punt = Punt {
                adjacency: Some(adjacency.id),
                next_hop,
                data,
                ..Punt::of_tunnel(PuntKind::Source, adjacency.tunnel())
            };
            let queued = self.shared.punts.push(punt);
            self.tally.add(if queued { Counter::PuntSource } else { Counter::PuntLost }, 1);
        }
    }

    /// GRE that no ESP protects.
    fn plain_gre(
        &mut self,
        vector: &mut Vector<'_, '_>,
        datagram: &Datagram,
        offset: usize,
        length: usize,
    ) -> Result<(), Counter> {
        let octets = &vector.arena[offset..offset + length];
        let gre = GreHeader::parse(octets).ok_or(Counter::DropMalformedGre)?;
        if let Some(adjacency) = vector.tables.gre_peer(gre.key, datagram.remote) {
            return self.payload(vector, datagram, adjacency, &gre, offset, length);
        }
        let (id, tunnel) = vector.tables.tunnel_of_key(gre.key).ok_or(Counter::DropWrongKey)?;
        if tunnel.config.protected {
            return Err(Counter::DropUnprotected);
        }
        if gre.protocol == gre::NHRP {
            // A stranger that registers.
            return Err(self.punt(PuntKind::Nhrp, datagram, Some(id), None, &octets[gre.length..]));
        }
        Err(Counter::DropUnknownPeer)
    }

    /// What GRE carries; `offset` and `length` are of the GRE packet.
    #[inline]
    fn payload<'t>(
        &mut self,
        vector: &mut Vector<'t, '_>,
        datagram: &Datagram,
        adjacency: &'t Adjacency,
        gre: &GreHeader,
        offset: usize,
        length: usize,
    ) -> Result<(), Counter> {
        let inner = offset + gre.length;
        let octets = &mut vector.arena[inner..offset + length];
        let version = match gre.protocol {
            gre::IPV4 => 4,
            gre::IPV6 => 6,
            gre::NHRP => {
                let tunnel = Some(adjacency.tunnel());
                return Err(self.punt(PuntKind::Nhrp, datagram, tunnel, Some(adjacency.id), octets));
            }
            _ => return Err(Counter::DropMalformedGre),
        };
        let packet = IpPacket::parse(octets).map_err(|_| Counter::DropMalformedInner)?;
        if packet.version != version {
            return Err(Counter::DropMalformedInner);
        }
        if adjacency.checks_sources() {
            let v4 = packet.version == 4;
            let source = if v4 { u128::from(read_u32(octets, 12)) } else { read_u128(octets, 8) };
            match vector.checked.origin(vector.tables, adjacency, v4, source) {
                Origin::Own => {}
                Origin::Doubtful(next_hop) => {
                    self.report_source(vector.run.now_ns, adjacency, v4, source, Some(next_hop));
                }
                Origin::Foreign if is_error_from_behind(vector.tables, adjacency, &packet, octets) => {}
                Origin::Foreign => {
                    self.report_source(vector.run.now_ns, adjacency, v4, source, None);
                    return Err(Counter::DropWrongSource);
                }
            }
        }
        if adjacency.mss_clamp()
            && is_syn(&packet, octets)
            && tcp::clamp_mss(&mut octets[packet.header_length..packet.length], max_segment(adjacency, &packet))
        {
            self.tally.add(Counter::MssClamped, 1);
        }
        let plain = datagram.kind == DatagramKind::Gre;
        match &mut vector.sa {
            Some(run) if run.sa.counts_alone && !plain => {
                run.counts.data_packets += 1;
                run.counts.data_octets += packet.length as u64;
            }
            _ => vector.run.count(adjacency, packet.length),
        }
        let merge = match packet.protocol {
            protocol::TCP => self.config.coalesce_tcp,
            _ => self.config.coalesce_udp,
        };
        self.coalescer.add(
            vector.arena,
            &Incoming {
                tunnel: adjacency.tunnel(),
                offset: inner,
                packet,
                // Behind ESP there are at least 20 octets of this datagram before the inner packet; behind plain GRE
                // there may be as few as 4.
                front: !plain && inner >= VirtioNetHeader::LENGTH,
                merge,
                verify: plain || self.config.verify_checksums,
            },
        );
        Ok(())
    }
}

fn find_adjacency<'t>(tables: &'t Tables, sa: &InboundSa, key: Option<u32>) -> Result<&'t Adjacency, Counter> {
    let mut reason = Counter::DropNoAdjacency;
    for id in sa.adjacencies() {
        match tables.adjacency(id) {
            Some(adjacency) if adjacency.encapsulation == Encapsulation::Gre => reason = Counter::DropUnprotected,
            Some(adjacency) if adjacency.key() == key => return Ok(adjacency),
            Some(_) => reason = Counter::DropWrongKey,
            None => {}
        }
    }
    Err(reason)
}

/// Whether a UDP datagram came from another port than its UDP adjacency has.
#[inline]
fn has_moved_port(adjacency: &Adjacency, datagram: &Datagram) -> bool {
    adjacency.encapsulation == Encapsulation::Udp
        && datagram.kind == DatagramKind::UdpNat
        && adjacency.remote_port() != datagram.remote_port
}
