//! Lists of keys that come again and again travel once; keys that lie close together travel as their differences. The bits are the
//! same as without.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use common::job::Job;
use windlass::config::ServerLimits;
use windlass::types::{Aggregate, Consistency, NonFinite, OptimizerSpec, Stale, TableKind};
use windlass::{Client, SortedKeys, TableSpec};

const DIM: usize = 3;
const LISTS: u64 = 5;
const KEYS: u64 = 400;
const ROUNDS: u64 = 12;

/// Key number `n`: spread over all of u64, or neighbours.
fn key(n: u64, spread: bool) -> u64 {
    if spread { n * 0x0003_0000_0000_0123 } else { 7 + n * 3 }
}

/// Lists overlap by half.
fn list(number: u64, spread: bool) -> Vec<u64> {
    (0..KEYS).map(|n| key(number * KEYS / 2 + n, spread)).collect()
}

fn value(rank: u32, round: u64, i: usize) -> f32 {
    let mixed = windlass::types::mix64(u64::from(rank) << 40 | round << 20 | i as u64);
    (mixed >> 40) as f32 / 16_777_216.0 - 0.5
}

fn spec(consistency: Consistency) -> TableSpec {
    TableSpec::sparse("s", DIM as u32)
        .optimizer(OptimizerSpec::sum())
        .aggregate(Aggregate::Sum)
        .consistency(consistency)
}

/// Each round every worker pushes a list, and pulls it; all rows' bits at the end, and the bytes that were pushed.
fn run(
    (servers, threads, workers): (u32, u32, u32),
    bytes: u64,
    spec: TableSpec,
    (lists, spread): (u64, bool),
) -> (Vec<u32>, u64) {
    let job = Job::start_with(servers, workers, |server| {
        server.threads(threads).limits(ServerLimits { key_list_bytes: bytes, ..ServerLimits::default() })
    });
    let results = job.workers(workers, move |client: Client| {
        let table = client.table(&spec).unwrap();
        let mut rows = vec![0.0; KEYS as usize * DIM];
        for round in 0..ROUNDS {
            let keys = list(round % lists, spread);
            let keys = SortedKeys::new(&keys).unwrap();
            let values: Vec<f32> = (0..rows.len()).map(|i| value(client.rank(), round, i)).collect();
            table.push(keys, &values).unwrap();
            client.clock().unwrap();
            table.pull(keys, &mut rows).unwrap();
        }
        client.barrier().unwrap();
        let all: Vec<u64> = (0..(lists + 1) * KEYS / 2).map(|n| key(n, spread)).collect();
        let mut rows = vec![0.0; all.len() * DIM];
        table.pull(SortedKeys::new(&all).unwrap(), &mut rows).unwrap();
        let stats = client.server_stats().unwrap();
        let pushed = stats.iter().flat_map(|s| &s.threads).map(|t| t.pushed_bytes).sum();
        client.barrier().unwrap();
        client.finalize().unwrap();
        (rows.iter().map(|v| v.to_bits()).collect::<Vec<u32>>(), pushed)
    });
    job.end();
    assert!(results.iter().all(|(bits, _)| *bits == results[0].0), "workers pulled different bits");
    results.into_iter().next().unwrap()
}

#[test]
fn keys_that_come_again_travel_twice_and_the_bits_are_the_same() {
    for shape in [(1, 1, 3), (2, 2, 2)] {
        let (_, _, workers) = shape;
        let values = u64::from(workers) * ROUNDS * KEYS * DIM as u64 * 4;
        let (expected, without) = run(shape, 0, spec(Consistency::Bsp), (2, true));
        let (bits, with) = run(shape, 64 << 20, spec(Consistency::Bsp), (2, true));
        assert_eq!(bits, expected, "{shape:?}");
        let keys = |pushed: u64| (pushed - values) as f64 / (u64::from(workers) * ROUNDS * KEYS * 8) as f64;
        assert!(keys(without) >= 1.0, "{} of the keys travelled", keys(without));
        // Of twelve rounds the keys come in four, two for each list; with the directories and names.
        assert!(keys(with) < keys(without) / 2.0, "{} and {}", keys(with), keys(without));
    }
}

/// A push of one worker adds each of its values once, whatever is kept, forgotten and told again.
#[test]
fn lists_that_are_forgotten_are_told_again() {
    for consistency in [Consistency::Bsp, Consistency::Ssp { staleness: 1 }, Consistency::Asp] {
        let (expected, without) = run((1, 1, 1), 0, spec(consistency), (LISTS, true));
        // Two places, each for a list of one worker.
        let two = 2 * (21 << 10);
        let (bits, with) = run((1, 1, 1), two, spec(consistency), (LISTS, true));
        assert_eq!(bits, expected, "{consistency}");
        assert!(with > without * 9 / 10, "hardly any list lasts: {with} and {without}");
    }
}

#[test]
fn neighbouring_keys_travel_as_their_differences() {
    for wire in [windlass::types::Wire::Fp32, windlass::types::Wire::Fp16] {
        // Few buckets, so that each has several keys of a list.
        let kind = TableKind::Sparse { dim: DIM as u32, buckets: 8 };
        let spec = TableSpec { kind, ..spec(Consistency::Bsp).wire(wire) };
        let (_, spread) = run((1, 2, 2), 0, spec.clone(), (LISTS, true));
        let (bits, packed) = run((1, 2, 2), 0, spec.clone(), (LISTS, false));
        let keys = 2 * ROUNDS * KEYS * 8;
        assert!(packed + keys / 4 < spread, "{packed} and {spread}");
        assert_eq!(run((1, 2, 2), 64 << 20, spec, (LISTS, false)).0, bits);
    }
}

/// Where a push may be rejected its keys are looked for in its frame: they travel as they are.
#[test]
fn tables_that_reject_pieces_name_no_lists() {
    let spec = spec(Consistency::Asp).non_finite(NonFinite::Reject).stale(Stale::Reject { max_age: 1000 });
    let (expected, without) = run((1, 1, 1), 0, spec.clone(), (1, false));
    assert_eq!(run((1, 1, 1), 64 << 20, spec, (1, false)), (expected, without));
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
