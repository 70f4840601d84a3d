//! Address prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::error::TablesError;

/// An IPv4 or IPv6 prefix without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Errors: [`TablesError::BadPrefix`] for a length beyond the family's or host bits that are set.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, TablesError> {
        let host_bits = match address {
            IpAddr::V4(v4) if length <= 32 => v4.to_bits().checked_shl(u32::from(length)).unwrap_or(0) != 0,
            IpAddr::V6(v6) if length <= 128 => v6.to_bits().checked_shl(u32::from(length)).unwrap_or(0) != 0,
            _ => true,
        };
        if host_bits {
            return Err(TablesError::BadPrefix(format!("{address}/{length}")));
        }
        Ok(Self { address, length })
    }

    /// Its network address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= u32::from(self.length)
    }

    /// Its first `length` bits, which are no more than it has.
    pub(crate) fn shortened(&self, length: u8) -> Self {
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Self { address, length }
    }

    /// Its length in bits.
    pub fn length(&self) -> u8 {
        self.length
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = TablesError;

    fn from_str(text: &str) -> Result<Self, TablesError> {
        let bad = || TablesError::BadPrefix(text.chars().take(64).collect());
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let (address, length) = (address.parse().map_err(|_| bad())?, length.parse().map_err(|_| bad())?);
        Self::new(address, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixes_without_host_bits() {
        for good in ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "::/0", "2001:db8::/32", "::1/128"] {
            assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
        }
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0.0", "::1/64", "x/8", "10.0.0.0/", "::/129"] {
            assert!(matches!(bad.parse::<Prefix>(), Err(TablesError::BadPrefix(_))), "{bad}");
        }
    }
}
