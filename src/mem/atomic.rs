//! The atomics of lock-free code: the standard library's, or loom's, which tries what threads can do to each other
//! (`RUSTFLAGS='--cfg loom' cargo test --lib loom`).

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub(super) use loom::thread::yield_now;
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(super) use std::thread::yield_now;
