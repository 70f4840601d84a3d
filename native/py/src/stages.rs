//! Single stages of the packet path over vectors.

use std::sync::{Mutex, PoisonError};

use dsvpn_dataplane::{ICV_LENGTH, MAX_REPLAY_WINDOW, PacketMeta, Suite, TablesError, TunBatch, stages};
use dsvpn_wire::checksum as internet;
use dsvpn_wire::gre::{self, GreHeader};
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Vector, octets, record_table, records, rows, slice, slice_mut};
use crate::convert::{self, integer, misuse};
use crate::memory::{DecapResult, packet_meta};

/// The AEAD of a suite with one key.
#[pyclass(module = "dsvpn_native", frozen)]
pub struct Cipher(dsvpn_dataplane::Cipher);

fn out_of_bounds(row: usize) -> PyErr {
    PyValueError::new_err(format!("records: row {row} goes beyond the arena"))
}

impl Cipher {
    /// Call `work` with the AAD, the IV and the octets of every record (offset, length; the ICV follows).
    fn each(
        arena: &mut [u8],
        records: &[[u32; 2]],
        spi: u32,
        first_sequence: u64,
        esn: bool,
        mut work: impl FnMut(usize, [u8; 8], &[u8], &mut [u8]),
    ) -> PyResult<()> {
        for (row, [offset, length]) in records.iter().enumerate() {
            let (start, length) = (*offset as usize, *length as usize + ICV_LENGTH);
            let octets = arena.get_mut(start..start.saturating_add(length)).ok_or_else(|| out_of_bounds(row))?;
            let sequence = first_sequence.wrapping_add(row as u64);
            let mut aad = [0; 12];
            aad[..4].copy_from_slice(&spi.to_be_bytes());
            let aad = if esn {
                aad[4..].copy_from_slice(&sequence.to_be_bytes());
                &aad[..]
            } else {
                aad[4..8].copy_from_slice(&(sequence as u32).to_be_bytes());
                &aad[..8]
            };
            work(row, sequence.to_be_bytes(), aad, octets);
        }
        Ok(())
    }
}

#[pymethods]
impl Cipher {
    #[new]
    fn new(suite: &str, keymat: &[u8]) -> PyResult<Self> {
        let suite = convert::suite(suite)?;
        if let Suite::Hmac(_) = suite {
            return Err(PyValueError::new_err(format!("suite: {:?} is no AEAD", suite.name())));
        }
        dsvpn_dataplane::Cipher::new(suite, keymat).map(Self).map_err(misuse)
    }

    /// Encrypt every record in place and write its ICV behind it.
    #[pyo3(signature = (arena, records, *, spi, first_sequence, esn = false))]
    fn seal(
        &self,
        py: Python<'_>,
        mut arena: PyReadwriteArray1<'_, u8>,
        records: PyReadonlyArray2<'_, u32>,
        spi: i64,
        first_sequence: u64,
        esn: bool,
    ) -> PyResult<()> {
        let (spi, arena) = (integer("spi", spi)?, slice_mut("arena", &mut arena)?);
        let records = rows::<u32, 2>("records", &records)?;
        py.detach(|| {
            Self::each(arena, records, spi, first_sequence, esn, |_, iv, aad, octets| self.0.seal(iv, aad, octets))
        })
    }

    /// Authenticate and decrypt every record in place. `authentic` gets 1 or 0 for each.
    #[pyo3(signature = (arena, records, authentic, *, spi, first_sequence, esn = false))]
    #[allow(clippy::too_many_arguments)]
    fn open(
        &self,
        py: Python<'_>,
        mut arena: PyReadwriteArray1<'_, u8>,
        records: PyReadonlyArray2<'_, u32>,
        mut authentic: PyReadwriteArray1<'_, u8>,
        spi: i64,
        first_sequence: u64,
        esn: bool,
    ) -> PyResult<()> {
        let (spi, arena) = (integer("spi", spi)?, slice_mut("arena", &mut arena)?);
        let records = rows::<u32, 2>("records", &records)?;
        let authentic = slice_mut("authentic", &mut authentic)?;
        if authentic.len() != records.len() {
            return Err(PyValueError::new_err("authentic: must have one entry per record"));
        }
        py.detach(|| {
            Self::each(arena, records, spi, first_sequence, esn, |row, iv, aad, octets| {
                authentic[row] = u8::from(self.0.open(iv, aad, octets).is_ok());
            })
        })
    }
}

/// The replay window of an inbound SA.
#[pyclass(module = "dsvpn_native", frozen)]
pub struct ReplayWindow(Mutex<dsvpn_dataplane::ReplayWindow>);

#[pymethods]
impl ReplayWindow {
    #[new]
    fn new(size: i64) -> PyResult<Self> {
        let size: u32 = integer("size", size)?;
        if size > MAX_REPLAY_WINDOW {
            return Err(misuse(TablesError::ReplayWindow(size)));
        }
        Ok(Self(Mutex::new(dsvpn_dataplane::ReplayWindow::new(size))))
    }

    /// Check each sequence number and take it up if it is new. `accepted` gets 1 or 0 for each.
    fn update(&self, sequences: PyReadonlyArray1<'_, u64>, mut accepted: PyReadwriteArray1<'_, u8>) -> PyResult<()> {
        let (sequences, accepted) = (slice("sequences", &sequences)?, slice_mut("accepted", &mut accepted)?);
        if sequences.len() != accepted.len() {
            return Err(PyValueError::new_err("accepted: must have one entry per sequence number"));
        }
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (sequence, accepted) in sequences.iter().zip(accepted) {
            *accepted = u8::from(window.check(*sequence) && window.update(*sequence));
        }
        Ok(())
    }
}

/// The Internet checksum (RFC 1071) of octets, as the field's value in host order.
#[pyfunction]
pub fn checksum(octets: PyReadonlyArray1<'_, u8>) -> PyResult<u16> {
    Ok(u16::from_be_bytes(internet::finish(internet::add(0, slice("octets", &octets)?))))
}

/// Merge single packets as decapsulation does. Headers of merged packets are rewritten in `arena`.
#[pyfunction]
#[pyo3(signature = (arena, packets, *, verify_checksums = false))]
pub fn coalesce(
    mut arena: PyReadwriteArray1<'_, u8>,
    packets: PyReadonlyArray2<'_, u32>,
    verify_checksums: bool,
) -> PyResult<DecapResult> {
    let packets: &[PacketMeta] = records::<PacketMeta, 5>("packets", &packets)?;
    let mut batch = TunBatch::default();
    stages::coalesce(slice_mut("arena", &mut arena)?, packets, verify_checksums, &mut batch);
    Ok(DecapResult::new(batch))
}

/// Cut superpackets into packets. Gives an arena and its packet records.
#[pyfunction]
pub fn segment(
    py: Python<'_>,
    arena: PyReadonlyArray1<'_, u8>,
    packets: PyReadonlyArray2<'_, u32>,
) -> PyResult<Vector> {
    let packets: &[PacketMeta] = records::<PacketMeta, 5>("packets", &packets)?;
    let (mut out, mut metas) = (Vec::new(), Vec::new());
    stages::segment(slice("arena", &arena)?, packets, |packet| {
        let start = out.len();
        out.extend_from_slice(packet);
        metas.extend(packet_meta(&out, start));
    });
    Ok((octets(py, out), record_table(py, &metas)?))
}

/// Write a GRE header (RFC 2890) at every offset.
#[pyfunction]
#[pyo3(signature = (arena, offsets, *, key, protocol))]
pub fn write_gre(
    mut arena: PyReadwriteArray1<'_, u8>,
    offsets: PyReadonlyArray1<'_, u32>,
    key: Option<i64>,
    protocol: i64,
) -> PyResult<()> {
    let (arena, offsets) = (slice_mut("arena", &mut arena)?, slice("offsets", &offsets)?);
    let key = key.map(|key| integer("key", key)).transpose()?;
    let protocol = integer("protocol", protocol)?;
    let length = gre::header_length(key);
    for (row, offset) in offsets.iter().enumerate() {
        let start = *offset as usize;
        let place = arena.get_mut(start..start.saturating_add(length)).ok_or_else(|| out_of_bounds(row))?;
        place.copy_from_slice(&GreHeader::write(key, protocol)[..length]);
    }
    Ok(())
}

/// Read the GRE header of every record (offset, length). `lengths` gets the octets of each, 0 for one that is refused.
#[pyfunction]
pub fn parse_gre(
    arena: PyReadonlyArray1<'_, u8>,
    records: PyReadonlyArray2<'_, u32>,
    mut lengths: PyReadwriteArray1<'_, u32>,
) -> PyResult<()> {
    let (arena, lengths) = (slice("arena", &arena)?, slice_mut("lengths", &mut lengths)?);
    let records = rows::<u32, 2>("records", &records)?;
    if lengths.len() != records.len() {
        return Err(PyValueError::new_err("lengths: must have one entry per record"));
    }
    for (row, ([offset, length], found)) in records.iter().zip(lengths).enumerate() {
        let start = *offset as usize;
        let packet = arena.get(start..start.saturating_add(*length as usize)).ok_or_else(|| out_of_bounds(row))?;
        *found = GreHeader::parse(packet).map_or(0, |header| header.length as u32);
    }
    Ok(())
}
