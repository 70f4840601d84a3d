//! The bodies of the fuzz targets, which lie with the tests of the data plane.

#[path = "../../dataplane/tests/common/mod.rs"]
pub mod common;
#[path = "../../dataplane/tests/fuzz_bodies/mod.rs"]
pub mod fuzz_bodies;
#[path = "../../dataplane/tests/model/mod.rs"]
pub mod model;
