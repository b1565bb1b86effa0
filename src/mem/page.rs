//! Memory that somebody will need, and that somebody else may have the system supply before.
//!
//! ```text
//!  offered ──Page::supply, begin──▶ taken ──▶ done
//!     └──────────Page::claim──────────────────▲
//! ```
//! A page that is offered or done is its owner's, who claims it before using it; one that is taken is whose who took it. So nobody
//! writes where somebody else does. To ask the system itself (MADV_POPULATE_WRITE) would need none of this, but keeps all memory of the
//! process locked until the page is there: whoever has more mapped meanwhile, as `malloc` does, waits for it, too. A fault locks, since
//! Linux 6.4, only the mapping that it is in.

use std::sync::Arc;

use super::Arena;
use super::atomic::{AtomicU32, Ordering, sleep_while, wake};

/// What the system supplies at a time, at least.
const SMALL: usize = 4096;

/// Bytes of an arena that hold zeros, most often a huge page, which nobody has touched.
#[derive(Debug)]
pub struct Page {
    arena: Arc<Arena>,
    at: usize,
    length: usize,
    state: State,
}

impl Page {
    /// `length` bytes at `at`, which nobody uses before he has claimed them.
    ///
    /// # Panics
    /// When they lie outside.
    pub(super) fn new(arena: Arc<Arena>, at: usize, length: usize) -> Page {
        arena.at(at, length);
        Page { arena, at, length, state: State::new() }
    }

    /// Has the system supply it, unless somebody else has, or its owner uses it already: then false. That takes milliseconds where
    /// memory has to come from a hypervisor. Any thread may do it; the arena stays mapped.
    pub fn supply(&self) -> bool {
        self.touch(self.length)
    }

    /// The same, but where the system gives no huge pages only for its first 4 KiB.
    pub(super) fn begin(&self) -> bool {
        self.touch(SMALL)
    }

    fn touch(&self, bytes: usize) -> bool {
        let Some(_taken) = self.state.take() else { return false };
        for at in (0..bytes.min(self.length)).step_by(SMALL) {
            // SAFETY: `new` has proved the range, which holds zeros and which nobody else uses while it is taken.
            unsafe { self.arena.at(self.at + at, 1).write_volatile(0) };
        }
        true
    }

    /// Makes it its owner's for good. While another thread has it supplied this one sleeps, and leaves it the CPU. True when it was supplied without that.
    pub(super) fn claim(&self) -> bool {
        self.state.claim()
    }
}

/// See the module's head.
#[derive(Debug)]
struct State(AtomicU32);

const OFFERED: u32 = 0;
const TAKEN: u32 = 1;
const DONE: u32 = 2;

impl State {
    fn new() -> State {
        State(AtomicU32::new(OFFERED))
    }

    fn take(&self) -> Option<Taken<'_>> {
        let taken = self.0.compare_exchange(OFFERED, TAKEN, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok().then(|| Taken(self))
    }

    fn claim(&self) -> bool {
        let mut supplied = true;
        loop {
            match self.0.compare_exchange(OFFERED, DONE, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return false,
                Err(DONE) => return supplied,
                Err(_) => {
                    supplied = false;
                    sleep_while(&self.0, TAKEN);
                }
            }
        }
    }
}

/// A page is this one's until it goes, also by a panic: its owner waits for that.
struct Taken<'a>(&'a State);

impl Drop for Taken<'_> {
    /// Release: whoever claims it writes after the one that had taken it.
    fn drop(&mut self) {
        self.0.0.store(DONE, Ordering::Release);
        wake(&self.0.0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_page_whose_taker_has_panicked() {
        let state = std::sync::Arc::new(State::new());
        let (shared, (taken, is_taken)) = (state.clone(), std::sync::mpsc::channel());
        let taker = std::thread::spawn(move || {
            let _taken = shared.take();
            assert!(shared.take().is_none());
            assert_eq!(shared.0.load(Ordering::Relaxed), TAKEN, "who does not get it changes nothing");
            taken.send(()).unwrap();
            panic!("on purpose");
        });
        is_taken.recv().unwrap();
        state.claim();
        assert!(taker.join().is_err() && state.claim() && state.take().is_none());
    }

    #[test]
    fn a_page_is_supplied_once_and_by_nobody_when_it_is_in_use() {
        let arena = Arena::new(3 * SMALL).unwrap();
        let page = |at, length| Page::new(arena.clone(), at, length);
        let one = page(0, SMALL + 1);
        assert!(one.supply() && !one.supply() && !one.begin());
        assert!(one.claim());
        let other = page(SMALL * 2, SMALL);
        assert!(!other.claim(), "nobody has supplied it");
        arena.copy_in(SMALL * 2, b"used");
        assert!(!other.supply() && !other.begin());
        let mut out = [0; 4];
        arena.copy_out(SMALL * 2, &mut out);
        assert_eq!(&out, b"used");
    }

    #[test]
    #[should_panic(expected = "lie outside")]
    fn a_page_outside_is_refused() {
        Page::new(Arena::new(SMALL).unwrap(), 1, SMALL);
    }
}

/// Two who supply and the owner, in every order: loom fails when two touch the page without an order between them.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::State;

    #[test]
    fn loom_who_has_a_page_has_it_alone() {
        loom::model(|| {
            let shared = Arc::new((State::new(), UnsafeCell::new(0)));
            let supply = |(state, page): &(State, UnsafeCell<u32>)| {
                if let Some(_taken) = state.take() {
                    // SAFETY: loom's cell checks what is claimed here: whoever has taken the page has it alone.
                    page.with_mut(|value| unsafe { *value += 1 });
                }
            };
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || supply(&shared))
                })
                .collect();
            shared.0.claim();
            // SAFETY: as above, of who has claimed it.
            let supplied = shared.1.with_mut(|value| unsafe {
                *value += 10;
                *value - 10
            });
            assert!(supplied <= 1);
            others.into_iter().for_each(|other| other.join().unwrap());
            // SAFETY: nobody else is left.
            assert_eq!(shared.1.with(|value| unsafe { *value }), supplied + 10);
        });
    }
}
