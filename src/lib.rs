//! Windlass: a parameter server for HPC clusters.
//!
//! See ARCHITECTURE.md for the layers and for the order in which to read the code.

#[cfg(target_endian = "big")]
compile_error!(
    "windlass moves little-endian fp32 between hosts without conversion: big-endian hosts are not supported"
);

pub mod app;
pub mod checkpoint;
pub mod client;
pub mod cluster;
pub mod config;
pub mod control;
pub mod data;
pub mod error;
pub mod kernels;
pub mod launch;
pub mod mem;
pub mod proto;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod time;
pub mod transport;
pub mod types;

pub use client::{Buffer, Client, ClientConfig, ClientStats, Table, Ticket};
pub use error::{Error, Result};
pub use proto::bootstrap::Bootstrap;
pub use proto::secret::Secret;
pub use server::{Server, ServerBuilder, ServerHandle};
pub use types::{Initializer, KeyRange, SortedKeys, TableSpec};
