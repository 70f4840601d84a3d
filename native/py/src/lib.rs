//! The Python module `dsvpn_native`: translation between Python values and the data plane, and no logic of its own.
#![forbid(unsafe_code)]

mod arrays;
mod convert;
mod dataplane;
mod memory;
mod ml_kem;
mod punt;
mod stages;
mod tables;

// It asks for huge pages, which the system's allocator does only when its environment says so. The benchmarks' module
// keeps the system's, whose calls can be counted.
#[cfg(not(feature = "bench"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The data plane: batch forwarder between a TUN and the underlay.
#[pyo3::pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::dataplane::Dataplane;
    #[pymodule_export]
    use crate::memory::{DecapResult, EncapResult, MemoryForwarder};
    #[pymodule_export]
    use crate::ml_kem::{MlKem512, MlKem768, MlKem1024};
    #[pymodule_export]
    use crate::punt::Punt;
    #[pymodule_export]
    use crate::stages::{Cipher, ReplayWindow, checksum, coalesce, parse_gre, segment, write_gre};
    #[pymodule_export]
    use crate::tables::Tables;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        dsvpn_io::huge_pages::ask();
        dsvpn_io::aead::install();
        dsvpn_io::checksum::install();
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("BUILD_PROFILE", if cfg!(debug_assertions) { "debug" } else { "release" })
    }
}
