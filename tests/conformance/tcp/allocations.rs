//! The data path allocates nothing once its queues have grown.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use windlass::mem::Rights;
use windlass::transport::{Completion, Message, Payload, Read, Write};

use super::Loopback;
use crate::rig::{header, pair, write_to};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread-local that needs neither
// an allocation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's duties are the same.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn none_in_steady_state() {
    let mut p = pair(&Loopback::default());
    let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::ReadWrite);
    let pool = p.net.ends[0].pool(20_000, 64);
    let mut rounds = |count: usize| {
        for round in 0..count {
            let mut expected = [0, 0];
            for i in 0..8 {
                let end = &mut p.net.ends[0];
                let body = Some(Payload::Owned(pool.lease(if i % 2 == 0 { 20_000 } else { 100 }).unwrap()));
                let write = Write {
                    header: Some(header(1)),
                    body,
                    imm: Some(1),
                    context: Some(2),
                    ..write_to(remote, 0)
                };
                end.transport.write(p.a, write).unwrap();
                end.transport.send(p.a, Message::new(b"hello").unwrap()).unwrap();
                let local = end.slice(0, 5000);
                end.transport.read(p.a, Read { remote, offset: 0, local, context: 3 }).unwrap();
                expected = [expected[0] + 2, expected[1] + 2];
            }
            let mut got = [0, 0];
            while got != expected {
                p.net.step();
                for end in [0, 1] {
                    for completion in p.net.ends[end].seen.drain(..) {
                        assert!(!matches!(completion, Completion::Closed { .. }), "round {round}");
                        got[end] += 1;
                    }
                }
            }
        }
    };
    rounds(50);
    let before = COUNT.get();
    rounds(200);
    assert_eq!(COUNT.get() - before, 0, "allocations in 200 rounds of 24 operations");
}
