//! What the system refused, in words, with the errno behind it.

use std::fmt;
use std::io;

/// An operating system error and what was being done when it came.
#[derive(Debug)]
pub struct SystemError {
    what: String,
    source: io::Error,
}

impl SystemError {
    pub fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), source }
    }

    /// The errno, 0 when the error has none.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// What failed, naming the device, address or port.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for SystemError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
