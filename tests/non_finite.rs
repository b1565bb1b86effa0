//! Pushed values that are infinite or no number: taken, counted or rejected, in whole jobs.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::thread;

use common::job::Job;
use windlass::config::ServerLimits;
use windlass::types::{Aggregate, Consistency, Late, NonFinite, OptimizerSpec, Quorum, Wire, mix64};
use windlass::{Client, Error, KeyRange, SortedKeys, TableSpec};

/// Runs `body` as every worker to the end of the job; gives what each returned, by rank.
fn run<T: Send>(job: Job, workers: u32, body: impl Fn(&Client) -> T + Sync) -> Vec<T> {
    let results = thread::scope(|scope| {
        let (job, body) = (&job, &body);
        let work = |rank| {
            let client = job.client(rank);
            let result = body(&client);
            client.finalize().unwrap();
            result
        };
        let threads: Vec<_> = (0..workers).map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    job.end();
    results
}

/// Values, and pieces, that the servers found not to be finite.
fn counted(client: &Client) -> (u64, u64) {
    let stats = client.server_stats().unwrap();
    let threads = || stats.iter().flat_map(|s| &s.threads);
    (threads().map(|t| t.non_finite).sum(), threads().map(|t| t.non_finite_rejected).sum())
}

/// What becomes infinite on the way, or is so already.
fn odd(wire: Wire) -> f32 {
    if wire == Wire::Fp16 { 65_520.0 } else { f32::NEG_INFINITY }
}

fn quorum(workers: u32) -> Quorum {
    Quorum { workers, late: Late::Apply }
}

/// Every kind of table: under each consistency, with and without a quorum, over each wire.
fn kinds(workers: u32) -> Vec<(TableSpec, TableSpec)> {
    let ssp = Consistency::Ssp { staleness: 1 };
    let bounds = [
        (Consistency::Bsp, None),
        (ssp, None),
        (Consistency::Asp, None),
        (Consistency::Bsp, Some(quorum(workers))),
        (ssp, Some(quorum(workers))),
    ];
    let mut kinds = Vec::new();
    for (number, (consistency, quorum)) in bounds.into_iter().enumerate() {
        for wire in [Wire::Fp32, Wire::Fp16, Wire::Bf16] {
            let kind = |spec: TableSpec, kind: &str| {
                let mut spec = spec.optimizer(OptimizerSpec::sum()).aggregate(Aggregate::Sum).wire(wire);
                spec.name = format!("{kind} {number} {wire}");
                spec.quorum = quorum;
                spec.consistency(consistency).non_finite(NonFinite::Reject)
            };
            kinds.push((
                kind(TableSpec::dense("", &[64]).segment_bytes(64), "dense"),
                kind(TableSpec::sparse("", 2), "sparse"),
            ));
        }
    }
    kinds
}

/// Worker 1's first push has one bad value: the piece that it is in changes nothing, its other pieces, worker 0's and what
/// comes later do.
#[test]
fn the_piece_is_rejected_under_every_consistency_and_over_every_wire() {
    let results = run(Job::start(2, 2, 2), 2, |client| {
        let (range, keys) = (KeyRange::new(0, 64).unwrap(), [0, 5, 1 << 40, u64::MAX]);
        let sorted = SortedKeys::new(&keys).unwrap();
        let tables: Vec<_> =
            kinds(2).iter().map(|(d, s)| (client.table(d).unwrap(), client.table(s).unwrap())).collect();
        for round in 0..2 {
            let mut tickets = Vec::new();
            for (dense, sparse) in &tables {
                let (mut values, mut rows) = ([1.0; 64], [1.0; 8]);
                if (client.rank(), round) == (1, 0) {
                    let wire = if dense.spec().name.ends_with("fp16") { Wire::Fp16 } else { Wire::Fp32 };
                    (values[20], rows[7]) = (odd(wire), f32::NAN);
                }
                tickets.push(dense.push_range(range, &values).unwrap());
                tickets.push(sparse.push(sorted, &rows).unwrap());
            }
            client.clock().unwrap();
            for (ticket, spec) in tickets.iter_mut().zip(kinds(2).into_iter().flat_map(|(d, s)| [d, s])) {
                // The ticket says so as often as it is asked.
                for _ in 0..2 {
                    let ended = ticket.wait();
                    if (client.rank(), round) != (1, 0) {
                        ended.unwrap();
                        continue;
                    }
                    let Err(Error::NonFinite { table, worker: 1, first, last, pieces: 1 }) = ended else {
                        panic!("{}: {ended:?}", spec.name);
                    };
                    let expected = if spec.elements() > 0 { (16, 31) } else { (u64::MAX, u64::MAX) };
                    assert_eq!((table, (first, last)), (spec.name.clone(), expected));
                }
            }
        }
        client.clock().unwrap();
        client.barrier().unwrap();
        let (mut values, mut rows) = ([0.0; 64], [0.0; 8]);
        for (dense, sparse) in &tables {
            dense.pull_range(range, &mut values).unwrap();
            sparse.pull(sorted, &mut rows).unwrap();
            for (i, value) in values.iter().enumerate() {
                assert_eq!(
                    *value,
                    if (16..32).contains(&i) { 3.0 } else { 4.0 },
                    "{:?}, {i}",
                    dense.spec().name
                );
            }
            assert_eq!(rows, [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.0, 3.0], "{}", sparse.spec().name);
        }
        let counted = counted(client);
        client.barrier().unwrap();
        counted
    });
    // Each of 30 tables found one.
    assert_eq!(results, [(30, 30), (30, 30)]);
}

#[derive(Debug, Clone, Copy)]
enum Call {
    PushPull,
    Set,
    Buffer,
    Buffers,
}

/// A `push_pull` tells what was rejected of its push, and a set is looked at as a push is.
#[test]
fn sets_and_pushes_with_a_pull_tell_it_too() {
    run(Job::start(1, 2, 1), 1, |client| {
        let (range, keys) = (KeyRange::new(0, 64).unwrap(), [3, 7]);
        let sorted = SortedKeys::new(&keys).unwrap();
        let (mut one, mut other) = (client.buffer(64).unwrap(), client.buffer(64).unwrap());
        for (spec, sparse) in kinds(1) {
            let (dense, sparse) = (client.table(&spec).unwrap(), client.table(&sparse).unwrap());
            let mut call = |call: Call, values: &[f32; 64], rows: &[f32; 4]| {
                one.as_mut_slice().unwrap().copy_from_slice(values);
                let ticket = match call {
                    Call::PushPull => dense.push_pull_range(range, values),
                    Call::Set => dense.set_range(range, values),
                    Call::Buffer => dense.push_pull_range_buffer(range, &mut one, 0),
                    Call::Buffers => dense.push_pull_range_buffers(range, (&one, 0), (&mut other, 0)),
                };
                let of_rows = match call {
                    Call::Set => sparse.set(sorted, rows),
                    _ => sparse.push_pull(sorted, rows),
                };
                client.clock().unwrap();
                [ticket, of_rows].map(|ticket| ticket.unwrap().wait())
            };
            for kind in [Call::PushPull, Call::Set, Call::Buffer, Call::Buffers] {
                let (mut values, mut rows) = ([1.0; 64], [1.0; 4]);
                (values[40], rows[2]) = (f32::NAN, f32::INFINITY);
                let ends = call(kind, &values, &rows).map(|ended| match ended {
                    Err(Error::NonFinite { worker: 0, first, last, pieces: 1, .. }) => (first, last),
                    other => panic!("{}, {kind:?}: {other:?}", spec.name),
                });
                assert_eq!(ends, [(32, 47), (7, 7)], "{}, {kind:?}", spec.name);
                call(kind, &[1.0; 64], &[1.0; 4]).into_iter().for_each(Result::unwrap);
            }
            let (mut values, mut rows) = ([0.0; 64], [0.0; 4]);
            dense.pull_range(range, &mut values).unwrap();
            sparse.pull(sorted, &mut rows).unwrap();
            // Set to 1; then two good pushes, and the good pieces of two others.
            for (i, value) in values.iter().enumerate() {
                let expected = if (32..48).contains(&i) { 3.0 } else { 5.0 };
                assert_eq!(*value, expected, "{}, {i}", spec.name);
            }
            assert_eq!(rows, [5.0, 5.0, 3.0, 3.0], "{}", spec.name);
        }
    });
}

/// Where a bucket does not fit a frame it comes in several pieces; each is judged by itself, and the error names the first.
#[test]
fn every_piece_of_a_bucket_is_judged_by_itself() {
    let limits = ServerLimits { payload_bytes: 4096, ..ServerLimits::default() };
    run(Job::start_with(1, 1, |server| server.limits(limits)), 1, |client| {
        let spec = TableSpec::dense("w", &[8192]).segment_bytes(16384).optimizer(OptimizerSpec::sum());
        let table = client.table(&spec.non_finite(NonFinite::Reject)).unwrap();
        let range = KeyRange::new(0, 8192).unwrap();
        let mut values = vec![1.0; 8192];
        for bad in [1500, 1501, 2047, 5000] {
            values[bad] = f32::NAN;
        }
        let mut push = table.push_range(range, &values).unwrap();
        client.clock().unwrap();
        let error = push.wait().unwrap_err();
        let Error::NonFinite { first: 1024, last: 2047, pieces: 2, .. } = error else { panic!("{error}") };
        let expected = "table \"w\": 2 pieces of worker 0 rejected, the first, of keys 1024 to 2047, with values that are not finite";
        assert_eq!((error.to_string().as_str(), error.code()), (expected, 13));
        assert_eq!(counted(client), (4, 2));
        table.pull_range(range, &mut values).unwrap();
        let rejected = |i: usize| (1024..2048).contains(&i) || (4096..5120).contains(&i);
        assert!(values.iter().enumerate().all(|(i, v)| *v == if rejected(i) { 0.0 } else { 1.0 }));
    });
}

/// A value of clock, worker and element; one in a hundred is infinite or no number.
fn gradient(rank: u32, clock: u32, i: usize) -> f32 {
    let mixed = mix64(u64::from(rank) << 40 | u64::from(clock) << 32 | i as u64);
    match mixed % 200 {
        0 => f32::NAN,
        1 => f32::INFINITY,
        _ => (mixed >> 40) as f32 / 16_777_216.0 - 0.5,
    }
}

/// Three clocks of three workers, who come in an order of their own; all parameters as bits, and what was counted.
fn trained(choice: NonFinite, servers: u32, threads: u32, slots: usize) -> (Vec<u32>, (u64, u64)) {
    let limits = ServerLimits { slots, ..ServerLimits::default() };
    let job = Job::start_with(servers, 3, |server| server.threads(threads).limits(limits));
    let results = run(job, 3, |client| {
        let spec = |spec: TableSpec| spec.optimizer(OptimizerSpec::adagrad(0.1, 1e-8)).non_finite(choice);
        let dense = client.table(&spec(TableSpec::dense("d", &[4000]).segment_bytes(64))).unwrap();
        let sparse = client.table(&spec(TableSpec::sparse("s", 2))).unwrap();
        let (range, keys) = (KeyRange::new(0, 4000).unwrap(), (0..1000).collect::<Vec<u64>>());
        let sorted = SortedKeys::new(&keys).unwrap();
        let (mut values, mut rows) = (vec![0.0; 4000], vec![0.0; 2000]);
        for clock in 0..3 {
            values.iter_mut().enumerate().for_each(|(i, v)| *v = gradient(client.rank(), clock, i));
            rows.iter_mut().enumerate().for_each(|(i, v)| *v = gradient(client.rank(), clock, i));
            // Nobody waits for these tickets, and nothing fails.
            if (client.rank() + clock) % 2 == 0 {
                drop(dense.push_range(range, &values).unwrap());
                drop(sparse.push(sorted, &rows).unwrap());
            } else {
                drop(sparse.push(sorted, &rows).unwrap());
                drop(dense.push_range(range, &values).unwrap());
            }
            client.clock().unwrap();
        }
        dense.pull_range(range, &mut values).unwrap();
        sparse.pull(sorted, &mut rows).unwrap();
        client.barrier().unwrap();
        let counted = counted(client);
        client.barrier().unwrap();
        (values.iter().chain(&rows).map(|v| v.to_bits()).collect::<Vec<u32>>(), counted)
    });
    assert!(results.iter().all(|result| *result == results[0]));
    results.into_iter().next().unwrap()
}

#[test]
fn what_is_rejected_and_the_bits_of_the_rest_are_the_same_whatever_arrives_when() {
    let (bits, counted) = trained(NonFinite::Reject, 1, 1, 16);
    assert!(bits.iter().all(|&bits| f32::from_bits(bits).is_finite()) && bits.iter().any(|&bits| bits != 0));
    assert!(counted.0 > counted.1 && counted.1 > 100, "{counted:?}");
    for (servers, threads, slots) in [(1, 1, 1), (2, 2, 1), (3, 1, 16)] {
        let again = trained(NonFinite::Reject, servers, threads, slots);
        assert!(again.0 == bits, "{servers} servers of {threads} threads, {slots} slots: other bits");
        assert_eq!(again.1, counted);
    }
    // Counted, or not looked for: the same bits, with the values in them.
    let (taken, found) = trained(NonFinite::Count, 2, 1, 16);
    assert_eq!((found, trained(NonFinite::Accept, 1, 2, 16)), ((counted.0, 0), (taken.clone(), (0, 0))));
    assert!(taken.iter().any(|&bits| !f32::from_bits(bits).is_finite()));
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
