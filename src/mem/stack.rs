//! A lock-free stack of small numbers.

use super::atomic::{AtomicU32, AtomicU64, Ordering};

/// The numbers of free buffers: R. K. Treiber's stack (IBM RJ 5118, 1986), linked by number. The head's upper half
/// counts the changes, so that a head that was taken and put back meanwhile is not mistaken for the old one.
#[derive(Debug)]
pub(super) struct Stack {
    /// Changes in the upper 32 bits, 1 + the top's number in the lower; 0 there when it is empty.
    head: AtomicU64,
    /// For each number 1 + the one below it, or 0.
    below: Box<[AtomicU32]>,
}

impl Stack {
    /// The numbers from 0 to `count` - 1, the smallest on top.
    pub fn full(count: u32) -> Stack {
        let below = (1..=count).map(|n| AtomicU32::new(if n < count { n + 1 } else { 0 })).collect();
        Stack { head: AtomicU64::new(u64::from(count > 0)), below }
    }

    pub fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let top = (head as u32).checked_sub(1)?;
            // May be stale by now; then the head has changed, and the exchange fails.
            let below = self.below[top as usize].load(Ordering::Relaxed);
            match self.head.compare_exchange_weak(
                head,
                Self::next(head, below),
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(top),
                Err(now) => head = now,
            }
        }
    }

    /// Puts back a number that [`Stack::pop`] gave.
    pub fn push(&self, number: u32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.below[number as usize].store(head as u32, Ordering::Relaxed);
            // Release: whoever takes the buffer next sees all that its last holder did to it, and the link.
            match self.head.compare_exchange_weak(
                head,
                Self::next(head, number + 1),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn next(head: u64, top: u32) -> u64 {
        ((head >> 32).wrapping_add(1) << 32) | u64::from(top)
    }
}

#[cfg(all(test, loom))]
#[path = "stack_tests.rs"]
mod loom_tests;
