//! ML-KEM-512 (FIPS 203), which the cryptographic library of the control plane does not have. All randomness is passed in.

use libcrux_ml_kem::mlkem512;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A key pair, made of its seed.
#[pyclass(module = "dsvpn_native", frozen)]
pub struct MlKem512(mlkem512::MlKem512KeyPair);

fn octets<const LENGTH: usize>(name: &str, value: &[u8]) -> PyResult<[u8; LENGTH]> {
    value.try_into().map_err(|_| PyValueError::new_err(format!("{name}: {} octets are not {LENGTH}", value.len())))
}

#[pymethods]
impl MlKem512 {
    #[new]
    fn new(seed: &[u8]) -> PyResult<Self> {
        Ok(Self(mlkem512::generate_key_pair(octets("seed", seed)?)))
    }

    /// The encapsulation key.
    #[getter]
    fn public_key(&self) -> &[u8] {
        self.0.pk()
    }

    /// The shared secret of a ciphertext; of one that was altered, another (implicit rejection).
    fn decapsulate(&self, ciphertext: &[u8]) -> PyResult<[u8; 32]> {
        let ciphertext: [u8; 768] = octets("ciphertext", ciphertext)?;
        Ok(mlkem512::decapsulate(self.0.private_key(), &ciphertext.into()))
    }

    /// The ciphertext and the shared secret of an encapsulation key and a message.
    #[staticmethod]
    fn encapsulate(public_key: &[u8], message: &[u8]) -> PyResult<([u8; 768], [u8; 32])> {
        let public_key: mlkem512::MlKem512PublicKey = octets::<800>("public_key", public_key)?.into();
        let message = octets("message", message)?;
        // Each coefficient has to be below the modulus (FIPS 203 section 7.2).
        if !mlkem512::validate_public_key(&public_key) {
            return Err(PyValueError::new_err("public_key: a coefficient is not below the modulus"));
        }
        let (ciphertext, secret) = mlkem512::encapsulate(&public_key, message);
        Ok((*ciphertext.as_slice(), secret))
    }
}
