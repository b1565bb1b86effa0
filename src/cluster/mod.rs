//! What the nodes agree on, as state machines without sockets, threads or clocks of their own.

mod gate;

pub use gate::{Gate, OutOfOrder, Verdict};
