//! Who is there and what was agreed on. State machines: time is an argument, output is a value, nothing blocks.

pub mod catalogue;
pub mod coordinator;
