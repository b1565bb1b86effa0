//! What the `windlass` program does: one module a subcommand or application.

pub mod lr;
