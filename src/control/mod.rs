//! The control plane's links: authenticated, framed, kept alive. One thread owns a [`Hub`] and polls it.

mod hub;
mod link;
mod process;

pub use hub::{Event, Hub, HubConfig, HubWaker, Limits, LinkId};
pub use process::this_process;
