//! UDP headers (RFC 768).

/// Octets of a header.
pub const HEADER: usize = 8;
/// Where the length is.
pub const LENGTH_AT: usize = 4;
/// Where the checksum is.
pub const CHECKSUM_AT: usize = 6;
