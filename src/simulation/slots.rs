//! 64 workers with one slot each: no order of buckets, tables and priorities makes them wait for each other for ever, and their number
//! costs a server thread no memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rig::{Job, Outcome, Worker};
use crate::config::ServerLimits;
use crate::types::random::{SplitMix64, permutation};
use crate::types::{KeyRange, OptimizerSpec, SortedKeys, TableKind, TableSpec};

const CLOCKS: u64 = 2;
/// fp32 in one unit: a segment, or a row.
const UNIT: usize = 16;
/// Of each table.
const UNITS: usize = 4;
const SLOT_BYTES: usize = 64 + 4096;
/// One slot for each of 64 workers.
const STAGING: usize = 64 * SLOT_BYTES;

/// Rules whose result depends on the order of the fold, dense and sparse.
fn tables() -> Vec<TableSpec> {
    let dense = |name: &str| TableSpec::dense(name, &[(UNITS * UNIT) as u64]).segment_bytes(UNIT as u32 * 4);
    let sparse = |name: &str| TableSpec::sparse(name, UNIT as u32);
    vec![
        dense("a").optimizer(OptimizerSpec::adagrad(0.1, 1e-6)),
        sparse("b").optimizer(OptimizerSpec::momentum(0.1, 0.9)),
        dense("c"),
        sparse("d").optimizer(OptimizerSpec::adagrad(0.3, 1e-6)),
    ]
}

/// What is pushed to a unit. The same in every run: only orders and times are drawn from the run's seed.
fn values(rank: u32, clock: u64, table: usize, unit: usize) -> Vec<f32> {
    let stream = (u64::from(rank) * CLOCKS + clock) * 16 + (table * UNITS + unit) as u64;
    let mut random = SplitMix64::new(7, stream);
    (0..UNIT).map(|_| (random.unit() as f32 - 0.5) * 100.0).collect()
}

fn key(unit: usize) -> u64 {
    unit as u64 * 1_000_003
}

fn range(first: usize, units: usize) -> KeyRange {
    KeyRange::new((first * UNIT) as u64, ((first + units) * UNIT) as u64).unwrap()
}

/// Pushes to every unit of every table in an order and with priorities of its own; a straggler takes long for each.
fn act(worker: &Worker, seed: u64, result: &Mutex<Vec<u32>>) {
    let straggler = seed % 64;
    for clock in 0..CLOCKS {
        let mut asked = Vec::new();
        for piece in permutation(worker.tables.len() * UNITS, seed, u64::from(worker.rank) * CLOCKS + clock) {
            let (at, unit) = (piece / UNITS, piece % UNITS);
            let priority =
                SplitMix64::new(seed, u64::from(worker.rank) << 32 | clock << 16 | piece as u64).below(5);
            let table = &worker.tables[at].priority(priority as i8 - 2);
            worker.node.doing(format!("pushing unit {unit} of table {at} in clock {clock}"));
            if u64::from(worker.rank) == straggler {
                worker.node.sleep(Duration::from_millis(1));
            }
            let values = values(worker.rank, clock, at, unit);
            let dense = matches!(table.spec().kind, TableKind::Dense { .. });
            let keys = [key(unit)];
            let sorted = SortedKeys::new(&keys).unwrap();
            match (dense, piece % 3 == 0) {
                (true, false) => drop(table.push_range(range(unit, 1), &values).unwrap()),
                (true, true) => asked.push(table.push_pull_range(range(unit, 1), &values).unwrap()),
                (false, false) => drop(table.push(sorted, &values).unwrap()),
                (false, true) => asked.push(table.push_pull(sorted, &values).unwrap()),
            }
        }
        worker.node.doing(format!("ending clock {clock}"));
        worker.client.clock().unwrap();
        for ticket in asked {
            worker.node.doing(format!("waiting for a push_pull of clock {clock}"));
            ticket.wait_into(&mut [0.0; UNIT]).unwrap();
        }
    }
    worker.finish();
    if worker.rank == 0 {
        *result.lock().unwrap() = all(worker);
    }
}

/// All parameters, as bits.
fn all(worker: &Worker) -> Vec<u32> {
    worker.node.doing("pulling all");
    let keys: Vec<u64> = (0..UNITS).map(key).collect();
    let pull = |table: &crate::client::Table| {
        let mut values = vec![0.0f32; UNITS * UNIT];
        match table.spec().kind {
            TableKind::Dense { .. } => table.pull_range(range(0, UNITS), &mut values).unwrap(),
            TableKind::Sparse { .. } => table.pull(SortedKeys::new(&keys).unwrap(), &mut values).unwrap(),
        };
        values.into_iter().map(f32::to_bits)
    };
    worker.tables.iter().flat_map(pull).collect()
}

fn run(seed: u64, workers: u32, limits: ServerLimits) -> (Vec<u32>, Outcome) {
    let result = Arc::new(Mutex::new(Vec::new()));
    let job = Job { limits, ..Job::new(seed, workers, (2, 1), tables()) };
    let written = result.clone();
    let outcome = job.run(move |worker| act(worker, seed, &written));
    let outcome = outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let bits = result.lock().unwrap().clone();
    assert_eq!(bits.len(), tables().len() * UNITS * UNIT);
    assert!(bits.iter().any(|&b| b != 0));
    (bits, outcome)
}

fn limits(staging_bytes: usize, slots: usize) -> ServerLimits {
    let (payload_bytes, pull_credits, reply_buffers) = (4096, 64, 8);
    ServerLimits {
        staging_bytes,
        payload_bytes,
        slots,
        pull_credits,
        reply_buffers,
        ..ServerLimits::default()
    }
}

#[test]
fn with_one_slot_each_64_workers_complete_with_the_bits_of_64_slots() {
    let (expected, _) = run(1, 64, limits(64 * STAGING, 64));
    let seeds = if cfg!(debug_assertions) { 3 } else { 8 };
    for seed in 1..=seeds {
        let (bits, _) = run(seed, 64, limits(STAGING, 64));
        assert!(bits == expected, "seed {seed}: other bits");
    }
}

#[test]
fn a_server_thread_has_no_more_memory_for_64_workers_than_for_8() {
    let registered = |workers| run(1, workers, limits(STAGING, 64)).1.registered;
    let (few, many) = (registered(8), registered(64));
    assert!(few.iter().all(|&bytes| bytes > STAGING), "{few:?}: the slots and the reply buffers");
    assert_eq!(few, many);
}
