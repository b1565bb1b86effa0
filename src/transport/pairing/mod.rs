//! What two RDMA queue pairs tell each other until they are connected: bytes alone, without a device. So builds without the feature
//! `verbs` test and fuzz it, too; `transport::verbs` uses it.

mod address;
mod greeting;

pub use address::{Address, GidKind};
pub use greeting::{GOODBYE, Greeting, PROOF};
