//! Filters in a whole job: the same bits everywhere, what they save, and what becomes of one that somebody does not know.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::time::{Duration, Instant};

use common::job::Job;
use windlass::control::{Event, Hub, HubConfig, LinkId};
use windlass::proto::control::ControlMessage;
use windlass::types::{Aggregate, FilterSpec, Identity, OptimizerSpec, Role, Wire};
use windlass::{Client, Error, KeyRange, SortedKeys, TableSpec};

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A whole job; `body` is every worker. Gives what each returned, by rank.
fn job<T: Send + 'static>(
    (servers, threads, workers): (u32, u32, u32),
    body: impl Fn(&Client) -> T + Send + Clone + 'static,
) -> Vec<T> {
    let job = Job::start(servers, threads, workers);
    let results = job.workers(workers, move |client| {
        let result = body(&client);
        client.finalize().unwrap();
        result
    });
    job.end();
    results
}

/// What worker `rank` pushes to element `i`: nothing that 16 bits could hold exactly.
fn gradient(rank: u32, clock: u32, i: usize) -> f32 {
    let mixed = windlass::types::mix64(u64::from(rank) << 40 | u64::from(clock) << 32 | i as u64);
    (mixed >> 40) as f32 / 16_777_216.0 - 0.5
}

/// A value there and back again.
fn rounded(wire: Wire, value: f32) -> f32 {
    match wire {
        Wire::Fp32 => value,
        Wire::Fp16 => half::f16::from_f32(value).to_f32(),
        Wire::Bf16 => half::bf16::from_f32(value).to_f32(),
    }
}

const WORKERS: u32 = 3;
const CLOCKS: u32 = 3;
const ELEMENTS: usize = 1000;
const DIM: usize = 7;
const ROWS: usize = 150;

/// Three workers push to a dense and a sparse table; the bits of both at the end, and the bytes that travelled.
fn trained(wire: Wire, servers: u32, threads: u32) -> (Vec<u32>, [u64; 2]) {
    let results = job((servers, threads, WORKERS), move |client| {
        let sum = |spec: TableSpec| spec.optimizer(OptimizerSpec::sum()).aggregate(Aggregate::Sum).wire(wire);
        let dense = client.table(&sum(TableSpec::dense("d", &[ELEMENTS as u64]).segment_bytes(256))).unwrap();
        let sparse = client.table(&sum(TableSpec::sparse("s", DIM as u32))).unwrap();
        let all = KeyRange::new(0, ELEMENTS as u64).unwrap();
        let keys: Vec<u64> = (0..ROWS as u64).map(|k| k * 0x0123_4567_89AB).collect();
        let keys = SortedKeys::new(&keys).unwrap();
        for clock in 0..CLOCKS {
            let values: Vec<f32> = (0..ELEMENTS).map(|i| gradient(client.rank(), clock, i)).collect();
            let rows: Vec<f32> = (0..ROWS * DIM).map(|i| gradient(client.rank(), clock, i)).collect();
            drop(dense.push_range(all, &values).unwrap());
            drop(sparse.push(keys, &rows).unwrap());
            client.clock().unwrap();
        }
        let (mut values, mut rows) = (vec![0.0; ELEMENTS], vec![0.0; ROWS * DIM]);
        dense.pull_range(all, &mut values).unwrap();
        sparse.pull(keys, &mut rows).unwrap();
        client.barrier().unwrap();
        let stats = client.server_stats().unwrap();
        let threads = || stats.iter().flat_map(|s| &s.threads);
        let travelled = [threads().map(|t| t.pushed_bytes).sum(), threads().map(|t| t.pulled_bytes).sum()];
        client.barrier().unwrap();
        let bits: Vec<u32> = values.iter().chain(&rows).map(|v: &f32| v.to_bits()).collect();
        (bits, travelled)
    });
    assert!(results.iter().all(|(bits, _)| *bits == results[0].0), "workers pulled different bits");
    results.into_iter().next().unwrap()
}

#[test]
fn the_same_bits_on_any_number_of_servers_and_threads() {
    let keys = u64::from(WORKERS * CLOCKS) * ROWS as u64 * 8;
    let values = (ELEMENTS + ROWS * DIM) as u64;
    for wire in [Wire::Fp32, Wire::Fp16, Wire::Bf16] {
        // What each element must be: every push rounded once, added up in fp32 by rank, the answer rounded once.
        let mut expected = vec![0.0f32; values as usize];
        for clock in 0..CLOCKS {
            for (at, w) in expected.iter_mut().enumerate() {
                let i = if at < ELEMENTS { at } else { at - ELEMENTS };
                let sum = (0..WORKERS).fold(0.0, |sum, rank| sum + rounded(wire, gradient(rank, clock, i)));
                *w += sum;
            }
        }
        let expected: Vec<u32> = expected.iter().map(|v| rounded(wire, *v).to_bits()).collect();
        for (servers, threads) in [(1, 1), (2, 1), (1, 3), (3, 2)] {
            let (bits, [pushed, pulled]) = trained(wire, servers, threads);
            assert_eq!(bits, expected, "{wire}, {servers} × {threads}");
            assert_eq!(pulled, u64::from(WORKERS) * values * wire.bytes() as u64, "{wire}");
            // Keys are as long as ever, and so is the directory of the buckets. The third time a name stands for them.
            let rest = pushed - u64::from(WORKERS * CLOCKS) * values * wire.bytes() as u64;
            assert!(rest > keys / 3 * 2 && rest <= keys * 2, "{wire}: {rest} bytes of keys and directories");
        }
    }
}

/// A direction may have filters that the other has not.
#[test]
fn each_direction_has_its_own_chain() {
    let pulled = job((1, 1, 1), |client| {
        let third = 1.0f32 / 3.0;
        let chains = [(Wire::Fp16, Wire::Fp32), (Wire::Fp32, Wire::Bf16), (Wire::Bf16, Wire::Fp16)];
        for (n, (push, pull)) in chains.into_iter().enumerate() {
            let spec = TableSpec::dense(&format!("w{n}"), &[16]).optimizer(OptimizerSpec::assign());
            let spec = spec.push_filters(push.filters()).pull_filters(pull.filters());
            let table = client.table(&spec).unwrap();
            let ticket = table.push_pull_range(KeyRange::new(0, 16).unwrap(), &[third; 16]).unwrap();
            client.clock().unwrap();
            let mut values = [0.0; 16];
            ticket.wait_into(&mut values).unwrap();
            assert_eq!(values, [rounded(pull, rounded(push, third)); 16], "{push} and {pull}");
        }
        true
    });
    assert_eq!(pulled, [true]);
}

/// What fp16 can't hold becomes infinite, and stays visible.
#[test]
fn too_large_for_fp16_is_infinite() {
    job((1, 1, 1), |client| {
        for (name, wire, expected) in
            [("h", Wire::Fp16, f32::INFINITY), ("b", Wire::Bf16, rounded(Wire::Bf16, 1e6))]
        {
            let spec = TableSpec::sparse(name, 1).optimizer(OptimizerSpec::assign()).wire(wire);
            let table = client.table(&spec).unwrap();
            let keys = SortedKeys::new(&[3]).unwrap();
            drop(table.push(keys, &[1e6]).unwrap());
            client.clock().unwrap();
            let mut value = [0.0];
            table.pull(keys, &mut value).unwrap();
            assert_eq!(value, [expected]);
        }
    });
}

#[test]
fn a_worker_refuses_a_filter_that_it_does_not_know_with_both_values() {
    job((1, 1, 1), |client| {
        let newer = FilterSpec { minor: 1, ..FilterSpec::fp16() };
        let error = client.table(&TableSpec::sparse("w", 1).push_filters(vec![newer])).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        let expected = "table \"w\": push filter: expected fp16 1.0 or bf16 1.0, found fp16 1.1";
        assert_eq!(error.to_string(), expected);
        // The same table in another way is another table.
        client.table(&TableSpec::sparse("w", 1).wire(Wire::Fp16)).unwrap();
        let error = client.table(&TableSpec::sparse("w", 1).wire(Wire::Bf16)).unwrap_err().to_string();
        assert!(error.contains("push fp16 1.0, pull fp16 1.0"), "{error}");
        assert!(error.contains("push bf16 1.0, pull bf16 1.0"), "{error}");
    });
}

/// A worker of another build, which knows filters that nobody else does.
struct Stranger {
    hub: Hub,
    events: Vec<Event>,
}

impl Stranger {
    fn join(job: &Job, offers: &[&str]) -> (Stranger, LinkId, Vec<String>) {
        let process = format!("test:{}", std::process::id());
        let identity = Identity { role: Role::Worker, rank: Some(0), incarnation: 1, process };
        let mut config = HubConfig::new(job.secret.clone(), "", identity);
        config.local.offers = offers.iter().map(|o| (*o).to_owned()).collect();
        let mut stranger = Stranger { hub: Hub::new(config).unwrap(), events: Vec::new() };
        let link = stranger.hub.dial(&job.address, "the coordinator").unwrap();
        let Event::Up { chosen, .. } = stranger.event() else { panic!("not let in") };
        let join = ControlMessage::Join {
            role: Role::Worker,
            rank: Some(0),
            workers: Some(1),
            address: None,
            threads: 0,
            first: 0,
        };
        stranger.hub.send(link, &join).unwrap();
        while !matches!(stranger.event(), Event::Message { message: ControlMessage::View(_), .. }) {}
        (stranger, link, chosen)
    }

    fn event(&mut self) -> Event {
        let end = Instant::now() + PATIENCE;
        while self.events.is_empty() {
            assert!(Instant::now() < end, "nothing happened");
            self.hub.poll(&mut self.events, Duration::from_secs(1)).unwrap();
        }
        self.events.remove(0)
    }
}

#[test]
fn a_server_refuses_a_filter_that_it_does_not_know_with_both_values() {
    let job = Job::start(1, 2, 1);
    let offers = ["fp32 1.0", "fp16 1.0", "fp16 1.1", "bf16 2.0", "random 1.0"];
    let (mut worker, link, chosen) = Stranger::join(&job, &offers);
    assert_eq!(chosen, ["fp32 1.0", "fp16 1.0"], "what both know, and nothing else");
    let newer = FilterSpec { minor: 1, ..FilterSpec::fp16() };
    let unknown = FilterSpec { id: 77, major: 1, minor: 0, parameters: vec![1, 2, 3] };
    let with = FilterSpec { parameters: vec![1], ..FilterSpec::bf16() };
    for (request, (filter, reason)) in (0u32..).zip([
        (newer, "pull filter: expected fp16 1.0 or bf16 1.0, found fp16 1.1"),
        (
            unknown,
            "pull filter: expected fp16 1.0 or bf16 1.0, found filter 77 1.0 with 3 bytes of parameters",
        ),
        (with, "pull filter parameters: expected none, found bf16 1.0 with 1 bytes of parameters"),
    ]) {
        let spec = TableSpec::sparse(&format!("w{request}"), 1).pull_filters(vec![filter]);
        worker.hub.send(link, &ControlMessage::OpenTable { request, spec }).unwrap();
        match worker.event() {
            Event::Message {
                message: ControlMessage::TableRefused { request: r, reason: found }, ..
            } => {
                assert!(r == request && found.contains(reason), "{found}");
            }
            other => panic!("{other:?}"),
        }
    }
    worker.hub.send(link, &ControlMessage::Finish).unwrap();
    job.end();
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
