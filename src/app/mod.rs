//! What the `windlass` program does: one module a subcommand or application.

pub mod bench;
mod checkpoint;
pub mod cli;
mod following;
mod info;
mod joining;
mod launched;
pub mod lr;
mod node;
mod over_rsh;
mod pages;
mod run;
mod settings;

pub use cli::main;
