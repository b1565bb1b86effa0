//! A whole job in this process, coordinator, server thread and one worker, over TCP on loopback and over shared memory, by criterion: pushes,
//! pulls and push_pulls of registered buffers, four under way, which walk round a table of 64 MiB. At the end every value of the table has to
//! be the number of pushes that reached it. `scripts/bench.sh` measures jobs of several processes, beside bare loops.
//!
//! ```text
//! cargo bench --bench loopback             # GB/s
//! cargo bench --bench loopback -- --test   # one run of each
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)] // nobody but a developer sees it fail
#![allow(missing_docs)] // criterion's macros

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use windlass::config::{Network, Polling, TransportChoice, TransportKind};
use windlass::transport::cpus;
use windlass::types::{Aggregate, Consistency, OptimizerSpec};
use windlass::{Buffer, Client, KeyRange, Table, TableSpec, Ticket};

include!("../tests/common/in_process.rs");

/// fp32 of the table.
const ELEMENTS: usize = 16 << 20;
/// fp32 of one operation: 64 B, 64 KiB, 1 MiB and 4 MiB.
const SIZES: [usize; 4] = [16, 16 << 10, 256 << 10, 1 << 20];
const LARGEST: usize = SIZES[3];
/// fp32 of the smallest operation: pushes are counted for each so many.
const UNIT: usize = SIZES[0];
/// Operations under way.
const WINDOW: usize = 4;

#[derive(Clone, Copy)]
enum Op {
    Push,
    Pull,
    PushPull,
}

struct Worker {
    table: Table,
    ones: Buffer,
    /// A place for each operation under way.
    results: Buffer,
    under_way: VecDeque<Ticket>,
    begun: usize,
    /// How many pushes more than the unit before it each unit has seen.
    pushes: Vec<i64>,
}

impl Worker {
    fn new(client: &Client) -> Worker {
        let spec = TableSpec::dense("w", &[ELEMENTS as u64]).optimizer(OptimizerSpec::sum());
        let spec = spec.aggregate(Aggregate::Sum).consistency(Consistency::Asp);
        let mut ones = client.buffer(LARGEST).unwrap();
        ones.as_mut_slice().unwrap().fill(1.0);
        Worker {
            table: client.table(&spec).unwrap(),
            ones,
            results: client.buffer(WINDOW * LARGEST).unwrap(),
            under_way: VecDeque::new(),
            begun: 0,
            pushes: vec![0; ELEMENTS / UNIT + 1],
        }
    }

    /// So many operations; how long they took.
    fn run(&mut self, op: Op, floats: usize, count: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..count {
            while self.under_way.len() >= WINDOW {
                self.finish_oldest();
            }
            self.begin(op, floats);
        }
        while !self.under_way.is_empty() {
            self.finish_oldest();
        }
        start.elapsed()
    }

    fn begin(&mut self, op: Op, floats: usize) {
        self.begun += 1;
        let first = self.begun % (ELEMENTS / floats) * floats;
        let range = KeyRange::new(first as u64, (first + floats) as u64).unwrap();
        let (from, into) = ((&self.ones, 0), (&mut self.results, self.begun % WINDOW * LARGEST));
        let ticket = match op {
            Op::Push => self.table.push_range_buffer(range, from.0, from.1),
            Op::Pull => self.table.pull_range_buffer_async(range, into.0, into.1),
            Op::PushPull => self.table.push_pull_range_buffers(range, from, into),
        };
        self.under_way.push_back(ticket.unwrap());
        if !matches!(op, Op::Pull) {
            self.pushes[first / UNIT] += 1;
            self.pushes[(first + floats) / UNIT] -= 1;
        }
    }

    fn finish_oldest(&mut self) {
        if let Some(mut ticket) = self.under_way.pop_front() {
            ticket.wait().unwrap();
        }
    }

    /// Pulls the whole table, by the ways that were measured.
    fn check(&mut self) {
        let (mut pushes, mut units) = (0, self.pushes.iter());
        for first in (0..ELEMENTS).step_by(LARGEST) {
            let range = KeyRange::new(first as u64, (first + LARGEST) as u64).unwrap();
            self.table.pull_range_buffer(range, &mut self.results, 0).unwrap();
            for found in self.results.as_slice().unwrap()[..LARGEST].chunks(UNIT) {
                pushes += units.next().unwrap();
                // Whole numbers below 2^24 are exact.
                assert!(found.iter().all(|&value| value == pushes as f32), "{found:?} after {pushes} pushes");
            }
        }
    }
}

fn jobs(criterion: &mut Criterion) {
    for kind in [TransportKind::Tcp, TransportKind::Shm] {
        // The worker and the server thread wait for the network.
        let polling = Polling::adaptive(2, cpus::allowed_count());
        let transport = TransportChoice::Only(kind);
        let job = InProcess::over(Network { transport, polling, ..Network::default() }).unwrap();
        let client = Client::connect(job.config()).unwrap();
        let mut worker = Worker::new(&client);
        let mut group = criterion.benchmark_group(format!("loopback, {kind}"));
        group
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1))
            .sample_size(20);
        for (name, op) in [("push", Op::Push), ("pull", Op::Pull), ("push_pull", Op::PushPull)] {
            for floats in SIZES {
                let bytes = 4 * floats as u64;
                group.throughput(Throughput::Bytes(bytes));
                group.bench_function(BenchmarkId::new(name, bytes), |b| {
                    b.iter_custom(|count| worker.run(op, floats, count));
                });
            }
        }
        group.finish();
        worker.check();
        drop(worker);
        client.finalize().unwrap();
        job.end().unwrap();
    }
}

criterion_group!(loopback_benches, jobs);
criterion_main!(loopback_benches);
