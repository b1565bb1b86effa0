//! The parameters of one server thread: tables cut into buckets, folded into, stepped and read.
//!
//! Sans-io and single-writer: a [`Shard`] is owned by its thread, sees keys and rows, and knows nothing of peers,
//! clocks or networks. What it is given from outside is checked before the first float is touched.

mod cut;
mod dense;
mod index;
mod optimizer;
mod rows;
mod shard;
mod sparse;
mod state;
mod step;

pub use cut::{CutSink, Part, Plane};
pub use optimizer::{MAX_STATE_WIDTH, Optimizer, Optimizers};
pub use shard::{
    Applied, Cause, DensePiece, How, Intake, Made, Making, Reading, Rejection, Shard, SparsePiece,
};
