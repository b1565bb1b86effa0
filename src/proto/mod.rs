//! What nodes say to each other: bytes to messages and back. Sans-io.

pub mod control;
pub mod handshake;
pub mod secret;
mod wire;
