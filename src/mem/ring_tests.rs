//! Every order in which two threads can run and every value that the memory model lets them read, as far as loom's bound goes.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::thread;

use super::*;

/// The lines of a ring, one cell, what lies outside, and whether somebody was woken.
#[derive(Default)]
struct Shared {
    written: Written,
    head: AtomicU64,
    parked: AtomicU32,
    cell: UnsafeCell<u32>,
    outside: AtomicU32,
    woken: AtomicBool,
}

impl Shared {
    fn lines(&self) -> Lines<'_> {
        Lines { written: &self.written, head: &self.head, parked: &self.parked }
    }
}

fn check(test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

/// Three values through one cell: each is read whole before the next is written.
#[test]
fn loom_nobody_touches_a_cell_at_the_same_time() {
    check(|| {
        let shared = Arc::new(Shared::default());
        let producer = shared.clone();
        let producer = thread::spawn(move || {
            let mut head = 0;
            for n in 0..2u64 {
                while head < n {
                    take_notice(&producer.lines(), &mut head, n).unwrap();
                    thread::yield_now();
                }
                // SAFETY: loom's cell checks what is claimed here: the consumer has given the cell back.
                producer.cell.with_mut(|cell| unsafe { *cell = n as u32 + 1 });
                publish(&producer.lines(), n + 1);
            }
        });
        for n in 0..2u64 {
            while shared.written.tail.load(Ordering::Acquire) <= n {
                thread::yield_now();
            }
            // SAFETY: loom's cell checks what is claimed here: the producer has published the cell.
            assert_eq!(shared.cell.with(|cell| unsafe { *cell }), n as u32 + 1);
            shared.head.store(n + 1, Ordering::Release);
        }
        producer.join().unwrap();
    });
}

/// The consumer sleeps only when it will be woken.
#[test]
fn loom_nothing_is_slept_through() {
    check(|| {
        let shared = Arc::new(Shared::default());
        let producer = shared.clone();
        let producer = thread::spawn(move || {
            publish(&producer.lines(), 1);
            if must_wake(&producer.parked) {
                producer.woken.store(true, Ordering::Release);
            }
        });
        announce(&shared.parked);
        let sleeps = shared.written.tail.load(Ordering::Acquire) == 0;
        producer.join().unwrap();
        assert!(!sleeps || shared.woken.load(Ordering::Acquire), "it sleeps for ever");
    });
}

/// Who has read what was written after the end knows of the end.
#[test]
fn loom_what_changes_after_the_end_is_not_believed() {
    check(|| {
        let shared = Arc::new(Shared::default());
        let producer = shared.clone();
        let producer = thread::spawn(move || {
            close(&producer.lines());
            producer.outside.store(7, Ordering::Relaxed);
        });
        let read = shared.outside.load(Ordering::Relaxed);
        assert!(is_closed(&shared.lines()) || read == 0);
        producer.join().unwrap();
    });
}
