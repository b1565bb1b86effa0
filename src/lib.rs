//! Windlass: a parameter server for HPC clusters.
//!
//! See ARCHITECTURE.md for the layers and for the order in which to read the code.

#[cfg(target_endian = "big")]
compile_error!(
    "windlass moves little-endian fp32 between hosts without conversion: big-endian hosts are not supported"
);

pub mod cluster;
pub mod control;
pub mod error;
pub mod mem;
pub mod proto;
pub mod server;
pub mod time;
pub mod transport;
pub mod types;
