//! Punts as Python values.

use std::net::IpAddr;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Something that the data plane hands to the control plane.
#[pyclass(module = "dsvpn_native", frozen, get_all)]
pub struct Punt {
    kind: &'static str,
    tunnel: i64,
    adjacency: i64,
    next_hop: i64,
    local: String,
    local_port: u16,
    remote: String,
    remote_port: u16,
    data: Py<PyBytes>,
}

impl Punt {
    pub fn new(py: Python<'_>, punt: &dsvpn_dataplane::Punt) -> Self {
        let id = |id: Option<u32>| id.map_or(-1, i64::from);
        let text = |address: Option<IpAddr>| address.map_or_else(String::new, |address| address.to_string());
        Self {
            kind: punt.kind.name(),
            tunnel: id(punt.tunnel),
            adjacency: id(punt.adjacency),
            next_hop: id(punt.next_hop),
            local: text(punt.local),
            local_port: punt.local_port,
            remote: text(punt.remote),
            remote_port: punt.remote_port,
            data: PyBytes::new(py, &punt.data).unbind(),
        }
    }
}

#[pymethods]
impl Punt {
    fn __repr__(&self, py: Python<'_>) -> String {
        format!(
            "Punt(kind='{}', tunnel={}, adjacency={}, next_hop={}, local='{}', local_port={}, remote='{}', \
             remote_port={}, data=<{} octets>)",
            self.kind,
            self.tunnel,
            self.adjacency,
            self.next_hop,
            self.local,
            self.local_port,
            self.remote,
            self.remote_port,
            self.data.bind(py).as_bytes().len(),
        )
    }
}
