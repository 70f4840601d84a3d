//! ML-KEM (FIPS 203) by libcrux, which is formally verified. All randomness is passed in.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

fn octets<const LENGTH: usize>(name: &str, value: &[u8]) -> PyResult<[u8; LENGTH]> {
    value.try_into().map_err(|_| PyValueError::new_err(format!("{name}: {} octets are not {LENGTH}", value.len())))
}

/// A parameter set as a class: `$module` is libcrux's, with the octets of an encapsulation key and of a ciphertext.
macro_rules! parameter_set {
    ($class:ident, $module:ident, $pair:ident, $public:ident, $public_length:literal, $ciphertext_length:literal) => {
        /// A key pair, made of its seed.
        #[pyclass(module = "dsvpn_native", frozen)]
        pub struct $class(libcrux_ml_kem::$module::$pair);

        #[pymethods]
        impl $class {
            #[new]
            fn new(seed: &[u8]) -> PyResult<Self> {
                Ok(Self(libcrux_ml_kem::$module::generate_key_pair(octets("seed", seed)?)))
            }

            /// The encapsulation key.
            #[getter]
            fn public_key(&self) -> &[u8] {
                self.0.pk()
            }

            /// The shared secret of a ciphertext; of one that was altered, another (implicit rejection).
            fn decapsulate(&self, ciphertext: &[u8]) -> PyResult<[u8; 32]> {
                let ciphertext: [u8; $ciphertext_length] = octets("ciphertext", ciphertext)?;
                Ok(libcrux_ml_kem::$module::decapsulate(self.0.private_key(), &ciphertext.into()))
            }

            /// The ciphertext and the shared secret of an encapsulation key and a message.
            #[staticmethod]
            fn encapsulate(public_key: &[u8], message: &[u8]) -> PyResult<([u8; $ciphertext_length], [u8; 32])> {
                use libcrux_ml_kem::$module::{encapsulate, validate_public_key, $public};
                let public_key: $public = octets::<$public_length>("public_key", public_key)?.into();
                let message = octets("message", message)?;
                // Each coefficient has to be below the modulus (FIPS 203 section 7.2).
                if !validate_public_key(&public_key) {
                    return Err(PyValueError::new_err("public_key: a coefficient is not below the modulus"));
                }
                let (ciphertext, secret) = encapsulate(&public_key, message);
                Ok((*ciphertext.as_slice(), secret))
            }
        }
    };
}

parameter_set!(MlKem512, mlkem512, MlKem512KeyPair, MlKem512PublicKey, 800, 768);
parameter_set!(MlKem768, mlkem768, MlKem768KeyPair, MlKem768PublicKey, 1184, 1088);
parameter_set!(MlKem1024, mlkem1024, MlKem1024KeyPair, MlKem1024PublicKey, 1568, 1568);
