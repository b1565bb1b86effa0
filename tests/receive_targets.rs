//! Over tcp the kernel puts payload where it belongs: this program stands between the transport and the system's receive calls,
//! and looks at every place that they are asked to fill.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::job::Job;
use libc::{iovec, msghdr, size_t, ssize_t};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use windlass::types::{Aggregate, Consistency, OptimizerSpec};
use windlass::{KeyRange, SortedKeys, TableSpec};

/// From this size on a target has to lie in registered memory.
const LONG: usize = 4096;

/// Registered memory, by address.
static REGIONS: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());
/// Long targets outside it.
static STRAY: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());
static LONG_TARGETS: AtomicU64 = AtomicU64::new(0);
/// Where the worker's pulls are to arrive, and how many bytes the kernel put there.
static WATCHED: Mutex<Range<usize>> = Mutex::new(0..0);
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// Looks at what a call filled of `parts` with `got` bytes.
fn look(parts: &[(usize, usize)], got: ssize_t) {
    let mut left = usize::try_from(got).unwrap_or(0);
    for &(start, length) in parts {
        let target = start..start + length;
        let inside = |r: &Range<usize>| r.start <= target.start && target.end <= r.end;
        if length >= LONG {
            LONG_TARGETS.fetch_add(1, Ordering::Relaxed);
            if !REGIONS.lock().unwrap().iter().any(inside) {
                STRAY.lock().unwrap().push(target.clone());
            }
        }
        let filled = left.min(length);
        left -= filled;
        if inside(&WATCHED.lock().unwrap()) {
            ARRIVED.fetch_add(filled as u64, Ordering::Relaxed);
        }
    }
}

thread_local! {
    /// The worker's thread has joined; what its calls receive from then on is data.
    static HAS_JOINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a call is a data path's; control links read into memory of their own.
fn on_data_path() -> bool {
    let mut name = [0u8; 16];
    // SAFETY: it writes at most 16 bytes with the end of the text.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    HAS_JOINED.get() || name.starts_with(b"wl-srv-")
}

// The linker takes these for the C library's.

#[unsafe(no_mangle)]
unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's duties are the system call's.
    let got = unsafe { libc::syscall(libc::SYS_recvmsg, fd, message, flags) } as ssize_t;
    if on_data_path() {
        // SAFETY: the message points at its parts.
        let parts: &[iovec] =
            unsafe { std::slice::from_raw_parts((*message).msg_iov, (*message).msg_iovlen) };
        let parts: Vec<(usize, usize)> = parts.iter().map(|p| (p.iov_base as usize, p.iov_len)).collect();
        look(&parts, got);
    }
    got
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recv(fd: c_int, into: *mut c_void, length: size_t, flags: c_int) -> ssize_t {
    let none = std::ptr::null_mut::<c_void>();
    // SAFETY: the caller's duties are the system call's.
    let got = unsafe { libc::syscall(libc::SYS_recvfrom, fd, into, length, flags, none, none) } as ssize_t;
    if on_data_path() {
        look(&[(into as usize, length)], got);
    }
    got
}

/// Notes what the transport registers and lets go of.
struct Registrations;

#[derive(Default)]
struct Event {
    address: usize,
    bytes: usize,
    registered: bool,
}

impl Visit for Event {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "address" => self.address = value as usize,
            "bytes" => self.bytes = value as usize,
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.registered = format!("{value:?}") == "registered";
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for Registrations {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "windlass::region" {
            return;
        }
        let mut seen = Event::default();
        event.record(&mut seen);
        let range = seen.address..seen.address + seen.bytes;
        let mut regions = REGIONS.lock().unwrap();
        match seen.registered {
            true => regions.push(range),
            false => regions.retain(|r| *r != range),
        }
    }
}

#[test]
fn every_long_target_is_registered_memory() {
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Registrations)).unwrap();
    work();
    // 16 MiB come in at least 64 receives of at most 256 KiB, twelve times.
    assert!(LONG_TARGETS.load(Ordering::Relaxed) >= 768, "the shim misses calls");
    let stray = STRAY.lock().unwrap();
    assert!(stray.is_empty(), "receive targets outside registered memory: {stray:x?}");
}

fn work() {
    const N: u64 = 4 << 20;
    let job = Job::over_tcp(2, 2, 1);
    let client = job.client(0);
    HAS_JOINED.set(true);
    let all = KeyRange::new(0, N).unwrap();
    let spec = TableSpec::dense("w", &[N]).optimizer(OptimizerSpec::sum()).aggregate(Aggregate::Sum);
    let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
    let rows = client.table(&TableSpec::sparse("rows", 50)).unwrap();
    let keys: Vec<u64> = (0..5000).map(|k| k * 0x1357_9BDF_0246).collect();
    let keys = SortedKeys::new(&keys).unwrap();
    let mut row_values = vec![0.25; 250_000];
    let mut values = vec![0.5; N as usize];
    let mut buffer = client.buffer(N as usize).unwrap();
    for round in 0..3 {
        table.push_range(all, &values).unwrap().wait().unwrap();
        table.pull_range(all, &mut values).unwrap();
        drop(rows.push(keys, &row_values).unwrap());
        client.clock().unwrap();
        rows.pull(keys, &mut row_values).unwrap();

        let start = buffer.as_ptr() as usize;
        *WATCHED.lock().unwrap() = start..start + N as usize * 4;
        ARRIVED.store(0, Ordering::Relaxed);
        table.pull_range_buffer(all, &mut buffer, 0).unwrap();
        // What came in the same call as a frame's header went through the endpoint's own buffer: less than 4 KiB each.
        let (arrived, bytes) = (ARRIVED.load(Ordering::Relaxed), N * 4);
        let frames = bytes / (256 << 10);
        assert!(arrived >= bytes - frames * LONG as u64, "round {round}: {arrived} of {bytes} bytes");
        assert!(buffer.as_slice().unwrap() == values);
        table.push_range_buffer(all, &buffer, 0).unwrap().wait().unwrap();
        buffer = client.buffer(N as usize).unwrap();
    }
    client.finalize().unwrap();
    job.end();
}
