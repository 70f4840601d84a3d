//! Descriptors and drivers of the dsvpn data plane: TUN devices, sockets, and the threads that own them.
//!
//! All unsafe code of the project is here.
#![deny(clippy::undocumented_unsafe_blocks)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod aead;
pub mod checksum;
mod clock;
mod control;
mod decap_driver;
mod descriptors;
mod encap_driver;
mod engine;
mod error;
mod eventfd;
mod gso_selftest;
pub mod huge_pages;
mod name;
mod offloads;
mod poll;
pub mod prefetch;
mod receive;
mod send;
mod socket;
mod steering;
mod tun;
mod tun_output;
mod tun_queues;
mod underlay;
mod worker;

pub use clock::Clock;
pub use engine::{Core, Engine, Error};
pub use error::SystemError;
pub use prefetch::{Decap, Encap};
pub use underlay::UnderlayConfig;
pub use worker::default_threads;
