//! Every order in which threads can run and every value that the memory model lets them read, as far as loom's bound goes.

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
