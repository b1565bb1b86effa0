//! Small requests leave together, and so do the answers to the pulls of one batch: this program stands before the system's send
//! calls and counts.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use common::job::Job;
use libc::{msghdr, size_t, ssize_t};
use windlass::config::WorkerLimits;
use windlass::types::{Aggregate, Consistency, OptimizerSpec};
use windlass::{Client, KeyRange, SortedKeys, TableSpec, Ticket};

/// Send calls of server threads.
static SENT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Send calls of this thread.
    static OWN: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    let mut name = [0u8; 16];
    // SAFETY: it writes at most 16 bytes with the end of the text.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    SENT.fetch_add(u64::from(name.starts_with(b"wl-srv-")), Ordering::Relaxed);
    OWN.set(OWN.get() + 1);
}

// The linker takes these for the C library's.

#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    count();
    // SAFETY: the caller's duties are the system call's.
    unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) as ssize_t }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, bytes: *const c_void, length: size_t, flags: c_int) -> ssize_t {
    count();
    let none = std::ptr::null::<c_void>();
    // SAFETY: the caller's duties are the system call's.
    unsafe { libc::syscall(libc::SYS_sendto, fd, bytes, length, flags, none, 0) as ssize_t }
}

#[test]
fn small_requests_and_the_answers_to_a_batch_leave_together() {
    const PULLS: usize = 1000;
    let job = Job::over_tcp(1, 1, 1);
    let mut config = job.config(0);
    // A buffer for each of so many answers.
    config.limits = WorkerLimits { receive_bytes: 64 << 20, ..config.limits };
    let client = Client::connect(config).unwrap();
    let spec = TableSpec::dense("w", &[16 * PULLS as u64]).optimizer(OptimizerSpec::sum());
    let dense = client.table(&spec.aggregate(Aggregate::Sum).consistency(Consistency::Asp)).unwrap();
    let spec = TableSpec::sparse("s", 16).optimizer(OptimizerSpec::sum()).consistency(Consistency::Asp);
    let sparse = client.table(&spec).unwrap();
    let values: Vec<f32> = (0..16 * PULLS as u32).map(|v| v as f32).collect();
    dense.push_range(KeyRange::new(0, 16 * PULLS as u64).unwrap(), &values).unwrap().wait().unwrap();
    let keys: Vec<u64> = (0..PULLS as u64).collect();
    sparse.push(SortedKeys::new(&keys).unwrap(), &values).unwrap().wait().unwrap();
    let before = OWN.get();
    for n in 0..PULLS as u64 {
        let one = KeyRange::new(n * 16, n * 16 + 16).unwrap();
        drop(dense.push_range(one, &[0.0; 16]).unwrap());
    }
    client.flush().unwrap();
    assert!(OWN.get() - before <= 20, "pushes: {} calls", OWN.get() - before);
    for kind in ["dense", "sparse"] {
        let before = SENT.load(Ordering::Relaxed);
        let ask = |n: usize| match kind {
            "dense" => {
                let start = n as u64 * 16;
                dense.pull_range_async(KeyRange::new(start, start + 16).unwrap()).unwrap()
            }
            _ => sparse.pull_async(SortedKeys::new(&keys[n..=n]).unwrap()).unwrap(),
        };
        let tickets: Vec<Ticket> = (0..PULLS).map(ask).collect();
        client.flush().unwrap();
        for (n, ticket) in tickets.into_iter().enumerate() {
            let mut row = [0.0; 16];
            ticket.wait_into(&mut row).unwrap();
            assert_eq!(row, values[n * 16..][..16]);
        }
        let sent = SENT.load(Ordering::Relaxed) - before;
        assert!(sent <= 20, "{kind}: {sent} calls");
    }
    client.finalize().unwrap();
    job.end();
}
