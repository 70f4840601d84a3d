//! The forwarder between arenas in memory: vectors in, vectors out, without descriptors and without a Python object
//! per packet.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dsvpn_dataplane::{
    Datagram, DatagramKind, DecapConfig, EncapConfig, Encapsulation, GsoLimits, PacketMeta, SendBatch, TablesReader,
    TunBatch, TunPacket, stages,
};
use dsvpn_io::{Core, Decap, Encap};
use dsvpn_wire::virtio::VirtioNetHeader;
use numpy::{PyArray1, PyArray2, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::{Vector, octets, record_table, records, rows, slice, slice_mut, table};
use crate::convert::{self, integer, misuse};
use crate::punt::Punt;
use crate::tables::{Tables, tunnel_config};

/// Encapsulation and decapsulation between NumPy arenas, with the tables of a data plane and no descriptor.
#[pyclass(module = "dsvpn_native", extends = Tables, frozen)]
pub struct MemoryForwarder {
    state: Mutex<State>,
}

struct State {
    reader: TablesReader,
    encap: Encap,
    decap: Decap,
    batch: SendBatch,
    datagrams: Vec<Datagram>,
    endpoints: Vec<UnderlayEndpoints>,
    tunnels: u32,
}

#[derive(Clone, Copy)]
struct UnderlayEndpoints {
    local: Option<IpAddr>,
    local_port: u16,
    remote: IpAddr,
    remote_port: u16,
}

/// What encapsulation gave.
#[pyclass(module = "dsvpn_native", frozen, get_all)]
pub struct EncapResult {
    /// Packets that are dealt with.
    consumed: usize,
    messages: Py<PyArray2<u32>>,
    replies: Py<PyArray1<u8>>,
    reply_packets: Py<PyArray2<u32>>,
}

/// What decapsulation or coalescing gave: packets by reference to the arena.
#[pyclass(module = "dsvpn_native", frozen)]
pub struct DecapResult {
    batch: TunBatch,
}

impl DecapResult {
    pub fn new(batch: TunBatch) -> Self {
        Self { batch }
    }
}

/// Packets one behind the other, each in the arena without its virtio header, which the record holds.
pub fn gather(py: Python<'_>, batch: &TunBatch, arena: &[u8]) -> PyResult<Vector> {
    let mut out = Vec::new();
    let mut packets = Vec::with_capacity(batch.packets.len());
    for packet in &batch.packets {
        let start = out.len();
        batch.gather(arena, packet, &mut out);
        packets.extend(packet_meta(&out, start));
    }
    Ok((octets(py, out), record_table(py, &packets)?))
}

/// The record of the packet whose virtio header begins at `start` and which ends where `octets` ends.
pub fn packet_meta(octets: &[u8], start: usize) -> Option<PacketMeta> {
    let virtio = VirtioNetHeader::read(&octets[start..])?;
    let offset = start + VirtioNetHeader::LENGTH;
    Some(PacketMeta { offset: offset as u32, length: (octets.len() - offset) as u32, virtio, reserved: 0 })
}

#[pymethods]
impl DecapResult {
    /// Rows of tunnel, header offset, header length, first slice, slices, length, segments, 0.
    #[getter]
    fn packets(&self, py: Python<'_>) -> PyResult<Py<PyArray2<u32>>> {
        record_table::<TunPacket>(py, &self.batch.packets)
    }

    /// Rows of offset and length in the arena.
    #[getter]
    fn slices(&self, py: Python<'_>) -> PyResult<Py<PyArray2<u32>>> {
        record_table(py, &self.batch.slices)
    }

    /// Octets of headers that lie in no slice.
    #[getter]
    fn headers(&self, py: Python<'_>) -> Py<PyArray1<u8>> {
        octets(py, self.batch.headers.clone())
    }

    /// The packets as a vector of their own: an arena and its packet records.
    fn gather(&self, py: Python<'_>, arena: PyReadonlyArray1<'_, u8>) -> PyResult<Vector> {
        gather(py, &self.batch, slice("arena", &arena)?)
    }
}

impl MemoryForwarder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl MemoryForwarder {
    #[new]
    #[pyo3(signature = (
        *, segments = 64, octets = 65507, coalesce_tcp = true, coalesce_udp = true, verify_checksums = false
    ))]
    fn new(
        segments: i64,
        octets: i64,
        coalesce_tcp: bool,
        coalesce_udp: bool,
        verify_checksums: bool,
    ) -> PyResult<PyClassInitializer<Self>> {
        let limits = GsoLimits { segments: integer("segments", segments)?, octets: integer("octets", octets)? };
        let core = Arc::new(Core::default());
        let state = State {
            reader: core.reader(),
            encap: Encap::new(Arc::clone(&core.shared), EncapConfig { udp: limits }),
            decap: Decap::new(Arc::clone(&core.shared), DecapConfig { coalesce_tcp, coalesce_udp, verify_checksums }),
            batch: SendBatch::new(),
            datagrams: Vec::new(),
            endpoints: Vec::new(),
            tunnels: 0,
        };
        let forwarder = Self { state: Mutex::new(state) };
        Ok(PyClassInitializer::from(Tables { core }).add_subclass(forwarder))
    }

    /// Add a tunnel without a device and give its id. It is in force after `commit()`.
    #[pyo3(signature = (*, key = None, protected = true, redirect = false, mss_clamp = true, copy_dscp = true))]
    fn add_tunnel(
        slf: PyRef<'_, Self>,
        key: Option<i64>,
        protected: bool,
        redirect: bool,
        mss_clamp: bool,
        copy_dscp: bool,
    ) -> PyResult<u32> {
        let config = tunnel_config(key, protected, redirect, mss_clamp, copy_dscp)?;
        let mut state = slf.state();
        slf.as_super().core.writer().add_tunnel(state.tunnels, config).map_err(misuse)?;
        state.tunnels += 1;
        Ok(state.tunnels - 1)
    }

    /// Forget a tunnel.
    fn remove_tunnel(slf: PyRef<'_, Self>, tunnel: i64) -> PyResult<()> {
        slf.as_super().core.writer().remove_tunnel(integer("tunnel", tunnel)?).map_err(misuse)
    }

    /// Register the two ends of received datagrams and give the index that the records of `decap` take.
    fn add_endpoints(&self, local: &str, local_port: i64, remote: &str, remote_port: i64) -> PyResult<usize> {
        let endpoints = UnderlayEndpoints {
            local: convert::optional_address("local", local)?,
            local_port: integer("local_port", local_port)?,
            remote: convert::address("remote", remote)?,
            remote_port: integer("remote_port", remote_port)?,
        };
        let mut state = self.state();
        state.endpoints.push(endpoints);
        Ok(state.endpoints.len() - 1)
    }

    /// Encapsulate a vector of TUN packets into `output`.
    fn encap(
        &self,
        py: Python<'_>,
        tunnel: i64,
        arena: PyReadonlyArray1<'_, u8>,
        packets: PyReadonlyArray2<'_, u32>,
        mut output: PyReadwriteArray1<'_, u8>,
        now_ns: u64,
    ) -> PyResult<EncapResult> {
        let tunnel = integer("tunnel", tunnel)?;
        let arena = slice("arena", &arena)?;
        let packets: &[PacketMeta] = records::<PacketMeta, 5>("packets", &packets)?;
        let output = slice_mut("output", &mut output)?;
        if output.len() < dsvpn_dataplane::MIN_SEND_ARENA {
            return Err(PyValueError::new_err(format!(
                "output: has {} octets and needs {}",
                output.len(),
                dsvpn_dataplane::MIN_SEND_ARENA
            )));
        }
        let (consumed, messages, replies) = py.detach(|| {
            let mut state = self.state();
            let State { reader, encap, batch, .. } = &mut *state;
            let mut replies = TunBatch::default();
            batch.clear();
            let consumed = reader.enter().map_or(0, |tables| {
                encap.run(&tables, tunnel, arena, packets, output, batch, &mut replies, now_ns).consumed
            });
            let messages: Vec<u32> = batch
                .messages
                .iter()
                .flat_map(|message| {
                    [
                        message.adjacency,
                        encapsulation_number(message.endpoint.encapsulation),
                        u32::from(message.endpoint.remote_port),
                        u32::from(message.endpoint.tos),
                        message.offset,
                        message.length,
                        message.segment_size,
                        message.segments,
                    ]
                })
                .collect();
            (consumed, messages, replies)
        });
        let (replies, reply_packets) = gather(py, &replies, &[])?;
        Ok(EncapResult { consumed, messages: table(py, 8, messages)?, replies, reply_packets })
    }

    /// Decapsulate a vector of datagrams, in place in `arena`.
    fn decap(
        &self,
        py: Python<'_>,
        mut arena: PyReadwriteArray1<'_, u8>,
        datagrams: PyReadonlyArray2<'_, u32>,
        now_ns: u64,
    ) -> PyResult<DecapResult> {
        let arena = slice_mut("arena", &mut arena)?;
        let rows: &[[u32; 5]] = rows::<u32, 5>("datagrams", &datagrams)?;
        let mut state = self.state();
        let State { reader, decap, datagrams, endpoints, .. } = &mut *state;
        datagrams.clear();
        for [offset, length, segment_size, kind, endpoint] in rows {
            let endpoint = endpoints.get(*endpoint as usize).ok_or_else(|| {
                PyValueError::new_err(format!("datagrams: {endpoint} is no index that add_endpoints gave"))
            })?;
            datagrams.push(Datagram {
                offset: *offset,
                length: *length,
                segment_size: *segment_size,
                kind: datagram_kind(*kind)?,
                local: endpoint.local,
                local_port: endpoint.local_port,
                remote: endpoint.remote,
                remote_port: endpoint.remote_port,
            });
        }
        let batch = py.detach(move || {
            let mut batch = TunBatch::default();
            reader.enter().map(|tables| {
                decap.run(&tables, arena, datagrams, &mut batch, now_ns);
                batch
            })
        });
        batch.map(DecapResult::new).ok_or_else(|| PyRuntimeError::new_err("the tables are gone"))
    }

    /// The oldest punts.
    fn take_punts(slf: PyRef<'_, Self>, py: Python<'_>, limit: i64) -> PyResult<Vec<Punt>> {
        let limit: u32 = integer("limit", limit)?;
        let punts = slf.as_super().core.shared.punts.take(limit as usize);
        Ok(punts.iter().map(|punt| Punt::new(py, punt)).collect())
    }

    /// Look addresses up in a tunnel's FIB. `addresses` are `uint32` in host order for IPv4, or rows of 16 octets.
    fn lookup_ipv4(
        slf: PyRef<'_, Self>,
        tunnel: i64,
        addresses: PyReadonlyArray1<'_, u32>,
        mut next_hops: PyReadwriteArray1<'_, u32>,
    ) -> PyResult<()> {
        let tunnel = integer("tunnel", tunnel)?;
        let (addresses, next_hops) = (slice("addresses", &addresses)?, slice_mut("next_hops", &mut next_hops)?);
        same_length(addresses.len(), next_hops.len())?;
        let state = slf.state();
        let Some(tables) = state.reader.enter() else { return Ok(()) };
        let found = tables.tunnel(tunnel).ok_or_else(|| misuse(dsvpn_dataplane::TablesError::UnknownTunnel(tunnel)))?;
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            *next_hop = found.v4.lookup(*address).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    fn lookup_ipv6(
        slf: PyRef<'_, Self>,
        tunnel: i64,
        addresses: PyReadonlyArray2<'_, u8>,
        mut next_hops: PyReadwriteArray1<'_, u32>,
    ) -> PyResult<()> {
        let tunnel = integer("tunnel", tunnel)?;
        let addresses: &[[u8; 16]] = rows::<u8, 16>("addresses", &addresses)?;
        let next_hops = slice_mut("next_hops", &mut next_hops)?;
        same_length(addresses.len(), next_hops.len())?;
        let state = slf.state();
        let Some(tables) = state.reader.enter() else { return Ok(()) };
        let found = tables.tunnel(tunnel).ok_or_else(|| misuse(dsvpn_dataplane::TablesError::UnknownTunnel(tunnel)))?;
        for (address, next_hop) in addresses.iter().zip(next_hops) {
            *next_hop = found.v6.lookup(u128::from_be_bytes(*address)).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    /// Follow next hops to their adjacencies. `spis` gets the SPI of each one's outbound SA, 0 without one.
    fn lookup_adjacencies(
        slf: PyRef<'_, Self>,
        next_hops: PyReadonlyArray1<'_, u32>,
        mut spis: PyReadwriteArray1<'_, u32>,
    ) -> PyResult<()> {
        let (next_hops, spis) = (slice("next_hops", &next_hops)?, slice_mut("spis", &mut spis)?);
        if next_hops.len() != spis.len() {
            return Err(PyValueError::new_err("spis: must have one entry per next hop"));
        }
        let state = slf.state();
        let Some(tables) = state.reader.enter() else { return Ok(()) };
        for (next_hop, spi) in next_hops.iter().zip(spis) {
            let outbound = stages::adjacency(&tables, *next_hop).and_then(|adjacency| adjacency.outbound.as_ref());
            *spi = outbound.map_or(0, |sa| sa.spi);
        }
        Ok(())
    }
}

fn same_length(addresses: usize, next_hops: usize) -> PyResult<()> {
    if addresses == next_hops {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("next_hops: has {next_hops} entries for {addresses} addresses")))
}

fn encapsulation_number(encapsulation: Encapsulation) -> u32 {
    match encapsulation {
        Encapsulation::Udp => 0,
        Encapsulation::Esp | Encapsulation::EspTunnel => 1,
        Encapsulation::Gre => 2,
    }
}

fn datagram_kind(number: u32) -> PyResult<DatagramKind> {
    match number {
        0 => Ok(DatagramKind::UdpNat),
        1 => Ok(DatagramKind::Esp),
        2 => Ok(DatagramKind::Gre),
        3 => Ok(DatagramKind::UdpIke),
        _ => Err(PyValueError::new_err(format!("datagrams: kind {number} is none of 0 to 3"))),
    }
}
