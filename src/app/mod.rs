//! What the `windlass` program does: one module a subcommand or application.

pub mod cli;
pub mod lr;
mod node;
mod run;

pub use cli::main;
