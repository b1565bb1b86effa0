//! Neither data path allocates for a message: not the worker's thread, and not the server's, once their queues have grown.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use common::job::Job;
use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::types::Consistency;
use windlass::{Buffer, Client, ClientConfig, KeyRange, SortedKeys, Table, TableSpec};

struct Counting;

static WORKER: AtomicU64 = AtomicU64::new(0);
static SERVER: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Counts for the threads of the data paths; control threads keep links alive meanwhile, and may allocate.
fn count() {
    let mut name = [0u8; 16];
    // SAFETY: it writes at most 16 bytes with the end of the text.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if IS_WORKER.get() {
        WORKER.fetch_add(1, Ordering::Relaxed);
    } else if name.starts_with(b"wl-srv-") {
        SERVER.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Tables {
    dense: Table,
    sparse: Table,
}

impl Tables {
    fn open(client: &Client, elements: u64, consistency: Consistency) -> Tables {
        let name = consistency.to_string();
        let dense = TableSpec::dense(&format!("dense {name}"), &[elements]).consistency(consistency);
        let sparse = TableSpec::sparse(&format!("sparse {name}"), 3).consistency(consistency);
        Tables { dense: client.table(&dense).unwrap(), sparse: client.table(&sparse).unwrap() }
    }
}

struct Work {
    client: Client,
    tables: [Tables; 2],
    keys: Vec<u64>,
    rows: Vec<f32>,
    values: Vec<f32>,
    buffer: Buffer,
}

impl Work {
    /// Every kind of operation once on each table.
    fn round(&mut self) {
        let Work { client, tables, keys, rows, values, buffer } = self;
        let all = KeyRange::new(0, values.len() as u64).unwrap();
        let few = KeyRange::new(100, 130).unwrap();
        for Tables { dense, sparse } in tables {
            for range in [few, all] {
                let values = &mut values[..range.len() as usize];
                drop(dense.push_range(range, values).unwrap());
                dense.pull_range(range, values).unwrap();
                let pushed = dense.push_range_buffer(range, buffer, 0).unwrap();
                let both = dense.push_pull_range(few, &[0.5; 30]).unwrap();
                client.clock().unwrap();
                { pushed }.wait().unwrap();
                both.wait_into(&mut values[..30]).unwrap();
                dense.pull_range_buffer(range, buffer, 0).unwrap();
                let both = dense.push_pull_range_buffer(range, buffer, 0).unwrap();
                client.clock().unwrap();
                both.wait_version().unwrap();
            }
            let keys = SortedKeys::new(keys).unwrap();
            drop(sparse.push(keys, rows).unwrap());
            sparse.pull(keys, rows).unwrap();
            let both = sparse.push_pull(keys, rows).unwrap();
            client.clock().unwrap();
            both.wait_into(rows).unwrap();
        }
    }
}

#[test]
fn no_message_is_an_allocation() {
    over(TransportKind::Tcp, 600_000);
}

/// Needs a device, and no other test beside it: `.ci/verbs` runs it.
#[cfg(feature = "verbs")]
#[test]
fn nor_is_one_over_verbs() {
    match windlass::transport::verbs::available().unwrap().iter().any(|device| device.active) {
        true => over(TransportKind::Verbs, 200_000),
        false => println!("skipped: no RDMA device"),
    }
}

/// Dense tables have so many elements: several frames for each server thread.
fn over(transport: TransportKind, elements: u64) {
    const ROUNDS: usize = 5;
    let network = Network { transport: TransportChoice::Only(transport), ..Network::default() };
    let job = Job::start_with(1, 1, |server| server.threads(2).network(network.clone()));
    let client = Client::connect(ClientConfig { network: network.clone(), ..job.config(0) }).unwrap();
    assert!(client.transport().starts_with(transport.name()), "{}", client.transport());
    let keys: Vec<u64> = (0..2000).map(|k| k * 0x1357_9BDF_0246).collect();
    let mut work = Work {
        tables: [Consistency::Bsp, Consistency::Asp].map(|c| Tables::open(&client, elements, c)),
        rows: vec![0.25; keys.len() * 3],
        values: vec![0.25; elements as usize],
        buffer: client.buffer(elements as usize).unwrap(),
        keys,
        client,
    };
    let mut measure = |rounds: usize| {
        let before = [&WORKER, &SERVER].map(|c| c.load(Ordering::Relaxed));
        IS_WORKER.set(true);
        (0..rounds).for_each(|_| work.round());
        IS_WORKER.set(false);
        let after = [&WORKER, &SERVER].map(|c| c.load(Ordering::Relaxed));
        [after[0] - before[0], after[1] - before[1]]
    };
    let warm = measure(ROUNDS);
    assert!(warm[0] > 0 && warm[1] > 0, "nothing is counted: {warm:?}");
    // A queue may still grow when the threads meet in a new way. What allocates for a message does so in every round.
    let mut counts = Vec::new();
    while counts.len() < 20 {
        counts.push((measure(ROUNDS), measure(2 * ROUNDS)));
        if counts.last() == Some(&([0, 0], [0, 0])) {
            break;
        }
    }
    assert_eq!(counts.last(), Some(&([0, 0], [0, 0])), "worker's and server's allocations: {counts:?}");
    let Work { client, tables, buffer, .. } = work;
    drop((tables, buffer));
    client.finalize().unwrap();
    job.end();
}
