//! The atomics of lock-free code: the standard library's, or loom's, which tries what threads can do to each other
//! (`RUSTFLAGS='--cfg loom' cargo test --lib loom`).

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Sleeps while a number is this, unless woken: by [`wake`], or for no reason. loom knows no such sleep: another thread gets its turn.
pub(super) fn sleep_while(number: &AtomicU32, this: u32) {
    #[cfg(not(loom))]
    let _ = rustix::thread::futex::wait(number, rustix::thread::futex::Flags::PRIVATE, this, None);
    #[cfg(loom)]
    let _ = (number, this, loom::thread::yield_now());
}

/// Wakes the one thread that sleeps because of a number.
pub(super) fn wake(number: &AtomicU32) {
    #[cfg(not(loom))]
    let _ = rustix::thread::futex::wake(number, rustix::thread::futex::Flags::PRIVATE, 1);
    #[cfg(loom)]
    let _ = number;
}
