//! The processes that serve.

pub mod coordinator;
