//! Commands on the tables and the counters: the same for the gateway's data plane and for the one in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use dsvpn_dataplane::{AdjacencyConfig, TunnelConfig};
use dsvpn_io::Core;
use pyo3::prelude::*;

use crate::convert;
use crate::convert::{integer, integers, misuse};

/// Tables and counters of a data plane: what `Dataplane` and `MemoryForwarder` share.
#[pyclass(module = "dsvpn_native", subclass, frozen)]
pub struct Tables {
    pub core: Arc<Core>,
}

pub fn tunnel_config(
    key: Option<i64>,
    protected: bool,
    redirect: bool,
    mss_clamp: bool,
    copy_dscp: bool,
) -> PyResult<TunnelConfig> {
    let key = key.map(|key| integer("key", key)).transpose()?;
    Ok(TunnelConfig { key, protected, redirect, mss_clamp, copy_dscp })
}

#[pymethods]
impl Tables {
    #[allow(clippy::too_many_arguments)]
    fn set_adjacency(
        &self,
        adjacency: i64,
        tunnel: i64,
        encapsulation: &str,
        local: &str,
        remote: &str,
        remote_port: i64,
        mtu: i64,
    ) -> PyResult<()> {
        let config = AdjacencyConfig {
            tunnel: integer("tunnel", tunnel)?,
            encapsulation: convert::encapsulation(encapsulation)?,
            local: convert::optional_address("local", local)?,
            remote: convert::address("remote", remote)?,
            remote_port: integer("remote_port", remote_port)?,
            mtu: integer("mtu", mtu)?,
        };
        self.core.writer().set_adjacency(integer("adjacency", adjacency)?, config).map_err(misuse)
    }

    fn remove_adjacency(&self, adjacency: i64) -> PyResult<()> {
        self.core.writer().remove_adjacency(integer("adjacency", adjacency)?).map_err(misuse)
    }

    fn set_next_hop(&self, next_hop: i64, adjacency: Option<i64>, resolve: bool) -> PyResult<()> {
        let adjacency = adjacency.map(|adjacency| integer("adjacency", adjacency)).transpose()?;
        self.core.writer().set_next_hop(integer("next_hop", next_hop)?, adjacency, resolve).map_err(misuse)
    }

    fn set_next_hop_group(&self, next_hop: i64, members: Vec<i64>) -> PyResult<()> {
        let members = members.into_iter().map(|member| integer("members", member)).collect::<PyResult<Vec<_>>>()?;
        self.core.writer().set_next_hop_group(integer("next_hop", next_hop)?, &members).map_err(misuse)
    }

    fn remove_next_hop(&self, next_hop: i64) -> PyResult<()> {
        self.core.writer().remove_next_hop(integer("next_hop", next_hop)?).map_err(misuse)
    }

    fn set_route(&self, tunnel: i64, prefix: &str, next_hop: i64) -> PyResult<()> {
        let (tunnel, prefix) = (integer("tunnel", tunnel)?, convert::prefix(prefix)?);
        self.core.writer().set_route(tunnel, prefix, integer("next_hop", next_hop)?).map_err(misuse)
    }

    fn remove_route(&self, tunnel: i64, prefix: &str) -> PyResult<()> {
        self.core.writer().remove_route(integer("tunnel", tunnel)?, convert::prefix(prefix)?).map_err(misuse)
    }

    fn set_multicast(&self, tunnel: i64, adjacencies: Vec<i64>) -> PyResult<()> {
        let adjacencies = integers("adjacencies", &adjacencies)?;
        self.core.writer().set_multicast(integer("tunnel", tunnel)?, &adjacencies).map_err(misuse)
    }

    fn set_sources(&self, adjacency: i64, which: &str, prefixes: Vec<String>) -> PyResult<()> {
        let prefixes = prefixes.iter().map(|prefix| convert::prefix(prefix)).collect::<PyResult<Vec<_>>>()?;
        let sources = convert::sources(which, prefixes)?;
        self.core.writer().set_sources(integer("adjacency", adjacency)?, &sources).map_err(misuse)
    }

    /// An unused inbound SPI (at least 256) that carries its slot. It stays reserved until removed or released.
    #[pyo3(signature = (beside = 0))]
    fn allocate_spi(&self, beside: i64) -> PyResult<u32> {
        self.core.allocate_spi(integer("beside", beside)?).map_err(convert::raise)
    }

    /// Give back an SPI that no SA was made for.
    fn release_spi(&self, spi: i64) -> PyResult<()> {
        self.core.writer().release_spi(integer("spi", spi)?).map_err(misuse)
    }

    fn add_inbound_sa(
        &self,
        spi: i64,
        suite: &str,
        keymat: &[u8],
        adjacencies: Vec<i64>,
        esn: bool,
        replay_window: i64,
    ) -> PyResult<()> {
        let (spi, window) = (integer("spi", spi)?, integer("replay_window", replay_window)?);
        let (suite, adjacencies) = (convert::suite(suite)?, integers("adjacencies", &adjacencies)?);
        self.core.writer().add_inbound_sa(spi, suite, keymat, &adjacencies, esn, window).map_err(misuse)
    }

    fn remove_inbound_sa(&self, spi: i64) -> PyResult<()> {
        self.core.writer().remove_inbound_sa(integer("spi", spi)?).map_err(misuse)
    }

    #[pyo3(signature = (spi, suite, keymat, adjacencies, esn, resource = 0))]
    fn set_outbound_sa(
        &self,
        spi: i64,
        suite: &str,
        keymat: &[u8],
        adjacencies: Vec<i64>,
        esn: bool,
        resource: i64,
    ) -> PyResult<()> {
        let (spi, adjacencies) = (integer("spi", spi)?, integers("adjacencies", &adjacencies)?);
        let (suite, resource) = (convert::suite(suite)?, integer("resource", resource)?);
        self.core.writer().set_resource_sa(resource, spi, suite, keymat, &adjacencies, esn).map_err(misuse)
    }

    #[pyo3(signature = (adjacency, resource = 0))]
    fn clear_outbound_sa(&self, adjacency: i64, resource: i64) -> PyResult<()> {
        let (adjacency, resource) = (integer("adjacency", adjacency)?, integer("resource", resource)?);
        self.core.writer().clear_resource_sa(adjacency, resource).map_err(misuse)
    }

    /// Put all commands since the last commit into force, and wait until no vector in flight sees the old tables.
    fn commit(&self, py: Python<'_>) {
        py.detach(|| self.core.commit());
    }

    /// Totals and every drop reason ("drop_..."), by name, since the start.
    fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.core.shared.counters.iter().collect()
    }

    /// "packets_in", "bytes_in", "packets_out", "bytes_out" (inner octets), "idle_ms_in", "idle_ms_out" (-1: none yet).
    fn adjacency_counters(&self, adjacency: i64) -> PyResult<BTreeMap<&'static str, i64>> {
        let counts = self.core.writer().adjacency_counters(integer("adjacency", adjacency)?).map_err(misuse)?;
        let now = self.core.clock.now_ns();
        let idle = |last: Option<u64>| last.map_or(-1, |last| (now.saturating_sub(last) / 1_000_000) as i64);
        Ok(BTreeMap::from([
            ("packets_in", counts.packets_in as i64),
            ("bytes_in", counts.octets_in as i64),
            ("packets_out", counts.packets_out as i64),
            ("bytes_out", counts.octets_out as i64),
            ("idle_ms_in", idle(counts.last_in_ns)),
            ("idle_ms_out", idle(counts.last_out_ns)),
        ]))
    }

    /// Of an inbound SA: "packets", "bytes", "replayed", "unauthentic".
    fn sa_counters(&self, spi: i64) -> PyResult<BTreeMap<&'static str, u64>> {
        let counts = self.core.writer().inbound_sa_counters(integer("spi", spi)?).map_err(misuse)?;
        Ok(BTreeMap::from([
            ("packets", counts.packets),
            ("bytes", counts.octets),
            ("replayed", counts.replayed),
            ("unauthentic", counts.unauthentic),
        ]))
    }

    /// Of the outbound SA an adjacency has for a resource: "spi", "packets", "bytes", "sequence".
    #[pyo3(signature = (adjacency, resource = 0))]
    fn outbound_sa_counters(&self, adjacency: i64, resource: i64) -> PyResult<BTreeMap<&'static str, u64>> {
        let (adjacency, resource) = (integer("adjacency", adjacency)?, integer("resource", resource)?);
        let counts = self.core.writer().resource_sa_counters(adjacency, resource).map_err(misuse)?;
        Ok(BTreeMap::from([
            ("spi", u64::from(counts.spi)),
            ("packets", counts.packets),
            ("bytes", counts.octets),
            ("sequence", counts.sequence),
        ]))
    }
}
