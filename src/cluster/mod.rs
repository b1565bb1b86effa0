//! What the nodes agree on, as state machines without sockets, threads or clocks of their own.

pub mod catalogue;
pub mod coordinator;
pub mod cuts;
mod gate;

pub use gate::{Gate, OutOfOrder, Verdict};
