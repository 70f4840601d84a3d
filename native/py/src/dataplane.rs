//! The data plane of a gateway process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use dsvpn_io::{Core, Engine, UnderlayConfig};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::convert::{self, integer, raise};
use crate::punt::Punt;
use crate::tables::{Tables, tunnel_config};

/// Tables, descriptors and drivers of one gateway process.
#[pyclass(module = "dsvpn_native", extends = Tables, frozen)]
pub struct Dataplane {
    engine: Engine,
}

#[pymethods]
impl Dataplane {
    #[new]
    #[pyo3(signature = (*, aead_backend = "auto", queues = 1))]
    fn new(aead_backend: &str, queues: i64) -> PyResult<PyClassInitializer<Self>> {
        // Of the whole process, for keys that are made from here on.
        match aead_backend {
            "auto" => dsvpn_io::aead::install(),
            "ring" => dsvpn_dataplane::kernel::set_kernel(None),
            _ => return Err(PyValueError::new_err(format!("aead_backend: {aead_backend:?} is none of auto, ring"))),
        }
        let core = Arc::new(Core::default());
        let engine =
            Engine::with_lanes(Arc::clone(&core), integer::<u32>("queues", queues)? as usize).map_err(raise)?;
        Ok(PyClassInitializer::from(Tables { core }).add_subclass(Self { engine }))
    }

    /// The backend that new keys get, for people: "dsvpn (VAES+AVX2)", "ring (VAES+AVX2)".
    #[getter]
    fn aead_backend(&self) -> &'static str {
        dsvpn_dataplane::backend()
    }

    /// Create the TUN device `name` with its offloads and give the tunnel's id.
    #[pyo3(signature = (name, *, key = None, protected = true, redirect = false, mss_clamp = true, copy_dscp = true))]
    #[allow(clippy::too_many_arguments)]
    fn add_tunnel(
        &self,
        py: Python<'_>,
        name: &str,
        key: Option<i64>,
        protected: bool,
        redirect: bool,
        mss_clamp: bool,
        copy_dscp: bool,
    ) -> PyResult<u32> {
        let config = tunnel_config(key, protected, redirect, mss_clamp, copy_dscp)?;
        py.detach(|| self.engine.add_tunnel(name, config)).map_err(raise)
    }

    /// Close the TUN, which takes the device and its routes with it.
    fn remove_tunnel(&self, py: Python<'_>, tunnel: i64) -> PyResult<()> {
        let tunnel = integer("tunnel", tunnel)?;
        py.detach(|| self.engine.remove_tunnel(tunnel)).map_err(raise)
    }

    /// Bind the UDP sockets and the raw sockets that are asked for. OSError names the port that is busy.
    #[pyo3(signature = (
        *, ike_port = 500, nat_port = 4500, esp = true, gre = false, dont_fragment = true, ipv4 = true, ipv6 = true,
        udp_gso = true, device = 0
    ))]
    #[allow(clippy::too_many_arguments)]
    fn open_underlay(
        &self,
        py: Python<'_>,
        ike_port: i64,
        nat_port: i64,
        esp: bool,
        gre: bool,
        dont_fragment: bool,
        ipv4: bool,
        ipv6: bool,
        udp_gso: bool,
        device: i64,
    ) -> PyResult<()> {
        let device = integer("device", device)?;
        let (ike_port, nat_port) = (integer("ike_port", ike_port)?, integer("nat_port", nat_port)?);
        let config = UnderlayConfig { ike_port, nat_port, esp, gre, dont_fragment, udp_gso, ipv4, ipv6, device };
        py.detach(|| self.engine.open_underlay(config)).map_err(raise)
    }

    /// Send an IKE message from port `ike_port` or, behind a non-ESP marker, from `nat_port`.
    fn send_ike(&self, local: &str, local_port: i64, remote: &str, remote_port: i64, datagram: &[u8]) -> PyResult<()> {
        let local = convert::optional_address("local", local)?;
        let remote = SocketAddr::new(convert::address("remote", remote)?, integer("remote_port", remote_port)?);
        self.engine.send_ike(local, integer("local_port", local_port)?, remote, datagram).map_err(raise)
    }

    /// Answer IKE_SA_INIT requests without a good cookie by one, before they become punts (RFC 7296 section 2.6).
    ///
    /// `version` numbers `secret`; cookies of `previous` (empty: none) still count. An empty `secret` ends it.
    fn set_cookie_gate(&self, version: i64, secret: &[u8], previous: &[u8]) -> PyResult<()> {
        self.engine.set_cookie_gate(integer("version", version)?, secret, previous);
        Ok(())
    }

    /// Cookies that the gate has sent, and messages that it has dropped.
    fn cookie_gate_counts(&self) -> (u64, u64) {
        self.engine.cookie_gate_counts()
    }

    /// Send a NAT keepalive (RFC 3948 section 2.3) from `nat_port`.
    fn send_keepalive(&self, local: &str, remote: &str, remote_port: i64) -> PyResult<()> {
        let local = convert::optional_address("local", local)?;
        let remote = SocketAddr::new(convert::address("remote", remote)?, integer("remote_port", remote_port)?);
        self.engine.send_keepalive(local, remote).map_err(raise)
    }

    /// Send an NHRP packet through an adjacency, sealed as its data is. False if it cannot carry it now.
    fn send_nhrp(&self, adjacency: i64, packet: &[u8]) -> PyResult<bool> {
        Ok(self.engine.send_nhrp(integer("adjacency", adjacency)?, packet))
    }

    /// Which offloads run: names and how they stand, for people.
    fn offloads(&self) -> BTreeMap<String, String> {
        self.engine.offloads().into_iter().collect()
    }

    /// What the kernel dropped at the descriptors, by name, since they were opened.
    fn kernel_drops(&self) -> BTreeMap<&'static str, u64> {
        self.engine.kernel_drops().into_iter().collect()
    }

    /// Descriptors to watch for reading when no workers run; each goes to `drain`. Empty while workers run.
    fn descriptors(&self) -> Vec<(i32, &'static str)> {
        let direction = |tun| if tun { "encap" } else { "decap" };
        self.engine.descriptors().into_iter().map(|(descriptor, tun)| (descriptor, direction(tun))).collect()
    }

    /// Forward at most `budget` vectors from one descriptor, until it has no more. Gives packets forwarded.
    fn drain(&self, py: Python<'_>, descriptor: i32, budget: i64) -> PyResult<usize> {
        let budget: u32 = integer("budget", budget)?;
        py.detach(|| self.engine.drain(descriptor, budget as usize)).map_err(raise)
    }

    /// How many worker threads this machine is served best by. A pair of them needs a queue.
    #[staticmethod]
    fn best_worker_threads() -> usize {
        dsvpn_io::default_threads()
    }

    /// Let native threads own the descriptors, with the GIL released.
    #[pyo3(signature = (threads = None))]
    fn start_workers(&self, py: Python<'_>, threads: Option<i64>) -> PyResult<()> {
        let threads: Option<u32> = threads.map(|threads| integer("threads", threads)).transpose()?;
        py.detach(|| self.engine.start_workers(threads.map(|threads| threads as usize))).map_err(raise)
    }

    /// How many worker threads there are.
    #[getter]
    fn worker_threads(&self) -> usize {
        self.engine.worker_threads()
    }

    /// What each worker has taken in, by its name: a superpacket or a joined run of datagrams as one.
    #[getter]
    fn worker_packets(&self) -> BTreeMap<String, u64> {
        self.engine.worker_packets().into_iter().collect()
    }

    /// Stop and join the threads. RuntimeError if one had failed.
    fn stop_workers(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.engine.stop_workers()).map_err(raise)
    }

    /// An eventfd that is readable while punts wait.
    #[getter]
    fn punt_descriptor(&self) -> i32 {
        self.engine.punt_descriptor()
    }

    /// The oldest punts. RuntimeError once if a worker thread has failed.
    fn take_punts(&self, py: Python<'_>, limit: i64) -> PyResult<Vec<Punt>> {
        let limit: u32 = integer("limit", limit)?;
        let punts = py.detach(|| self.engine.take_punts(limit as usize)).map_err(raise)?;
        Ok(punts.iter().map(|punt| Punt::new(py, punt)).collect())
    }
}
