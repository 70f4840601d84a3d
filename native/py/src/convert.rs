//! Python values to those of the data plane, with errors that name the argument.

use std::net::IpAddr;

use dsvpn_dataplane::{Encapsulation, Prefix, Sources, Suite, TablesError};
use dsvpn_io::Error;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// ValueError for the caller's mistake, OSError with errno for the system's refusal.
pub fn raise(error: Error) -> PyErr {
    match error {
        Error::Misuse(why) => PyValueError::new_err(why),
        Error::System(error) => PyOSError::new_err((error.errno(), error.what().to_owned())),
        Error::Worker(why) => PyRuntimeError::new_err(why),
    }
}

pub fn misuse(error: TablesError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// An integer argument in the range of its type.
pub fn integer<T: TryFrom<i64>>(name: &str, value: i64) -> PyResult<T> {
    let limit = 8 * size_of::<T>();
    T::try_from(value).map_err(|_| {
        PyValueError::new_err(format!("{name}: {value} is not an unsigned integer of at most {limit} bits"))
    })
}

pub fn integers(name: &str, values: &[i64]) -> PyResult<Vec<u32>> {
    values.iter().map(|value| integer(name, *value)).collect()
}

pub fn address(name: &str, text: &str) -> PyResult<IpAddr> {
    text.parse().map_err(|_| PyValueError::new_err(format!("{name}: {text:?} is not an IP address")))
}

/// "" is no address: the kernel chooses.
pub fn optional_address(name: &str, text: &str) -> PyResult<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = address(name, text)?;
    Ok(Some(address).filter(|address| !address.is_unspecified()))
}

pub fn prefix(text: &str) -> PyResult<Prefix> {
    text.parse().map_err(misuse)
}

pub fn sources(which: &str, prefixes: Vec<Prefix>) -> PyResult<Sources> {
    match which {
        "any" => Ok(Sources::Any),
        "open" => Ok(Sources::Open(prefixes)),
        "own" => Ok(Sources::Own(prefixes)),
        _ => Err(PyValueError::new_err(format!("which: {which:?} is none of any, open, own"))),
    }
}

pub fn encapsulation(text: &str) -> PyResult<Encapsulation> {
    match text {
        "udp" => Ok(Encapsulation::Udp),
        "esp" => Ok(Encapsulation::Esp),
        "esp-tunnel" => Ok(Encapsulation::EspTunnel),
        "gre" => Ok(Encapsulation::Gre),
        _ => Err(PyValueError::new_err(format!("encapsulation: {text:?} is none of udp, esp, esp-tunnel, gre"))),
    }
}

/// A suite by name. The null cipher has one in a bench build alone: in any other there is nothing it could name.
pub fn suite(name: &str) -> PyResult<Suite> {
    #[cfg(feature = "bench")]
    if name == "null" {
        return Ok(Suite::NullForBenchmarks);
    }
    name.parse().map_err(misuse)
}
