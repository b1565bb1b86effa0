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

/// Every order in which threads can run and every value that the memory model lets them read, as far as loom's bound goes.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// A stack, and for each number what its holder owns: loom fails when two touch it without an order between them.
    struct Shared {
        stack: Stack,
        owned: Vec<UnsafeCell<u32>>,
    }

    impl Shared {
        fn new(count: u32) -> Arc<Shared> {
            let owned = (0..count).map(|_| UnsafeCell::new(0)).collect();
            Arc::new(Shared { stack: Stack::full(count), owned })
        }

        /// Takes a number, uses what it stands for.
        fn take(&self) -> Option<u32> {
            let number = self.stack.pop()?;
            // SAFETY: loom's cell checks what is claimed here: whoever has popped the number has it alone.
            self.owned[number as usize].with_mut(|value| unsafe { *value += 1 });
            Some(number)
        }
    }

    fn check(
        threads: usize,
        count: u32,
        preemptions: usize,
        turn: impl Fn(&Shared) + Clone + Send + Sync + 'static,
    ) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(preemptions);
        model.check(move || {
            let shared = Shared::new(count);
            let others: Vec<_> = (1..threads)
                .map(|_| {
                    let (shared, turn) = (shared.clone(), turn.clone());
                    thread::spawn(move || turn(&shared))
                })
                .collect();
            turn(&shared);
            others.into_iter().for_each(|other| other.join().unwrap());
            let mut left: Vec<u32> = std::iter::from_fn(|| shared.take()).collect();
            left.sort_unstable();
            assert_eq!(left, (0..count).collect::<Vec<_>>(), "each number is there once");
        });
    }

    #[test]
    fn loom_nobody_shares_a_number() {
        for (threads, numbers, preemptions) in [(2, 1, 3), (2, 2, 3), (3, 1, 1)] {
            check(threads, numbers, preemptions, |shared| {
                if let Some(number) = shared.take() {
                    shared.stack.push(number);
                }
            });
        }
    }

    /// One takes both and gives them back in the other order, while another is in the middle of taking: the head looks as
    /// before, and what lies below it is different (ABA).
    #[test]
    fn loom_a_head_that_came_back_is_not_the_old_one() {
        check(2, 3, 3, |shared| {
            let (first, second) = (shared.take(), shared.take());
            first.into_iter().for_each(|number| shared.stack.push(number));
            second.into_iter().for_each(|number| shared.stack.push(number));
        });
    }
}
