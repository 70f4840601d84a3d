//! NumPy arrays as the slices that the stages take, without a copy.

use bytemuck::Pod;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use numpy::{PyReadwriteArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

fn not_contiguous(name: &str) -> PyErr {
    PyValueError::new_err(format!("{name}: must be a C-contiguous array"))
}

pub fn slice<'a, T: Element>(name: &str, array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| not_contiguous(name))
}

pub fn slice_mut<'a, T: Element>(name: &str, array: &'a mut PyReadwriteArray1<'_, T>) -> PyResult<&'a mut [T]> {
    array.as_slice_mut().map_err(|_| not_contiguous(name))
}

/// An arena and its records as new arrays.
pub type Vector = (Py<PyArray1<u8>>, Py<PyArray2<u32>>);

/// The rows of a 2-D array as an iterator over fixed-size arrays.
pub fn rows<'a, T: Element, const N: usize>(name: &str, array: &'a PyReadonlyArray2<'_, T>) -> PyResult<&'a [[T; N]]> {
    if array.shape()[1] != N {
        return Err(PyValueError::new_err(format!("{name}: must have {N} columns, not {}", array.shape()[1])));
    }
    let flat = array.as_slice().map_err(|_| not_contiguous(name))?;
    Ok(flat.as_chunks::<N>().0)
}

/// Rows of `uint32` as records of the same size.
pub fn records<'a, R: Pod, const N: usize>(name: &str, array: &'a PyReadonlyArray2<'_, u32>) -> PyResult<&'a [R]> {
    Ok(bytemuck::cast_slice(rows::<u32, N>(name, array)?.as_flattened()))
}

/// A new array of `uint32` rows.
pub fn table(py: Python<'_>, columns: usize, flat: Vec<u32>) -> PyResult<Py<PyArray2<u32>>> {
    let rows = flat.len() / columns;
    Ok(flat.into_pyarray(py).reshape([rows, columns])?.unbind())
}

/// A new array of the records' octets as `uint32` rows.
pub fn record_table<R: Pod>(py: Python<'_>, records: &[R]) -> PyResult<Py<PyArray2<u32>>> {
    table(py, size_of::<R>() / 4, bytemuck::cast_slice(records).to_vec())
}

pub fn octets(py: Python<'_>, octets: Vec<u8>) -> Py<PyArray1<u8>> {
    octets.into_pyarray(py).unbind()
}
