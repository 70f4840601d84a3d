//! A slow plain forwarder, and trials of the data plane against it.
//!
//! It is written from the RFCs and virtio's description, one packet and one octet at a time. Nothing here calls a
//! parser, a checksum or a cipher of the crates under test: ring seals and opens AEADs, AES with HMAC is written out, and
//! what the model knows of IP, TCP, UDP, GRE and ESP it reads by itself. A difference between the two is a defect of one of them.
#![allow(dead_code)]

pub mod aes_hmac;
pub mod forward;
pub mod hostile;
pub mod packet;
pub mod segments;
pub mod sources;
pub mod trial;
pub mod tunnel;
