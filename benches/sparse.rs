//! A sparse table's rows without a network: gathered and pushed to by criterion, then how long the longest push takes while the table
//! grows to 10 M rows of 16 (with `--test` to 200 000), without a network and of a worker over TCP.
//!
//! ```text
//! cargo bench --bench sparse             # criterion's figures, then the growth
//! cargo bench --bench sparse -- --test   # one run of each
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)] // nobody but a developer sees it fail
#![allow(missing_docs)] // criterion's macros

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::kernels::Input;
use windlass::mem::{Page, RegionId};
use windlass::store::{How, Intake, Optimizers, Shard, SparsePiece};
use windlass::types::{Aggregate, Consistency, DirectoryEntry, Key, OptimizerSpec, TableKind, mix64};
use windlass::{Client, SortedKeys, TableSpec};

include!("../tests/common/in_process.rs");

const DIM: usize = 16;
/// Keys of one frame.
const KEYS: usize = 2048;
const STEP: Intake = Intake::Step { divisor: 1.0, base: None };

/// A table in so many buckets.
fn table(buckets: u32) -> (TableSpec, Shard) {
    let spec = TableSpec::sparse("w", DIM as u32).optimizer(OptimizerSpec::sum()).aggregate(Aggregate::Sum);
    let kind = TableKind::Sparse { dim: DIM as u32, buckets };
    let spec = TableSpec { kind, ..spec.consistency(Consistency::Asp) };
    let mut shard = Shard::new(Optimizers::default(), u64::MAX, 0);
    let all: Vec<u32> = (0..buckets).collect();
    shard.create_table(0, &spec, &all, |_| Ok(RegionId(0))).unwrap();
    (spec, shard)
}

/// Keys as they come in a frame.
struct Frame {
    directory: Vec<DirectoryEntry>,
    keys: Vec<Key>,
}

impl Frame {
    fn new(spec: &TableSpec, rows: impl Iterator<Item = u64>) -> Frame {
        let mut keys: Vec<Key> = rows.map(mix64).collect();
        keys.sort_by_cached_key(|&key| (spec.bucket_of(key), key));
        keys.dedup();
        let runs = keys.chunk_by(|&a, &b| spec.bucket_of(a) == spec.bucket_of(b));
        let entry = |run: &[Key]| DirectoryEntry { bucket: spec.bucket_of(run[0]), keys: run.len() as u32 };
        Frame { directory: runs.map(entry).collect(), keys }
    }

    fn push(&self, shard: &mut Shard, values: &[f32]) {
        let values = Input::from(&values[..self.keys.len() * DIM]);
        let piece = SparsePiece { directory: &self.directory, keys: &self.keys, values };
        shard.write_sparse(0, How::Push, piece, STEP, &mut Vec::new()).unwrap();
    }
}

/// Frames of random rows of a table of a million.
fn frames(criterion: &mut Criterion) {
    const ROWS: u64 = 1 << 20;
    let (spec, mut shard) = table(256);
    let values = vec![1.0; KEYS * DIM];
    for first in (0..ROWS).step_by(KEYS) {
        Frame::new(&spec, first..first + KEYS as u64).push(&mut shard, &values);
    }
    let draw = |list: u64| (0..KEYS as u64).map(move |i| mix64(list << 32 | i) % ROWS);
    let frames: Vec<Frame> = (0..256).map(|list| Frame::new(&spec, draw(list))).collect();
    let mut group = criterion.benchmark_group("sparse");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    group.throughput(Throughput::Elements(KEYS as u64));
    let (mut into, mut n) = (Vec::new(), 0);
    group.bench_function("gather", |b| {
        b.iter(|| {
            n += 1;
            let Frame { directory, keys } = &frames[n % frames.len()];
            let piece = SparsePiece { directory, keys, values: Input::from(&[][..]) };
            shard.gather(0, &piece, &mut into)
        });
    });
    group.bench_function("push", |b| {
        b.iter(|| {
            n += 1;
            frames[n % frames.len()].push(&mut shard, &values);
        });
    });
    group.finish();
}

/// Rows that tables grow to.
fn rows() -> u64 {
    if std::env::args().any(|a| a == "--test") { 200_000 } else { 10_000_000 }
}

/// Pushes of new rows, frame by frame.
#[derive(Default)]
struct Growth {
    pushes: u64,
    all: Duration,
    longest: Duration,
    /// Those that took 1, 2, 5 and 10 ms or more.
    long: [u64; 4],
}

impl Growth {
    fn measure(&mut self, push: impl FnOnce()) {
        let start = Instant::now();
        push();
        let took = start.elapsed();
        self.pushes += 1;
        self.all += took;
        self.longest = self.longest.max(took);
        for (count, ms) in self.long.iter_mut().zip([1, 2, 5, 10]) {
            *count += u64::from(took >= Duration::from_millis(ms));
        }
    }

    fn print(&self, how: &str) {
        let (longest, [one, two, five, ten]) = (self.longest.as_secs_f64() * 1e3, self.long);
        println!(
            "growth to {} rows of {DIM}, {how}: {} pushes of {KEYS} in {:.1?}, the longest {longest:.2} ms; {one} of 1 ms, {two} of 2, \
             {five} of 5, {ten} of 10 or more",
            rows(),
            self.pushes,
            self.all
        );
    }
}

/// With many buckets that grow alike, and with one that has them all. As at a server a thread has memory supplied ahead.
fn growth(_: &mut Criterion) {
    let values = vec![1.0; KEYS * DIM];
    for buckets in [256, 1] {
        let (spec, mut shard) = table(buckets);
        let (sender, pages) = mpsc::channel::<Arc<Page>>();
        let supplier = thread::spawn(move || pages.iter().filter(|page| page.supply()).count());
        let (mut growth, mut offered) = (Growth::default(), 0);
        for first in (0..rows()).step_by(KEYS) {
            let frame = Frame::new(&spec, first..first + KEYS as u64);
            growth.measure(|| {
                frame.push(&mut shard, &values);
                while let Some(page) = shard.next_to_supply() {
                    sender.send(page).unwrap();
                    offered += 1;
                }
            });
        }
        drop(sender);
        let supplied = supplier.join().unwrap();
        growth.print(&format!("{buckets} buckets, {supplied} of {offered} pages supplied beside"));
    }
}

/// As a worker sees it that waits for each push, of a server in this process.
fn growth_over_tcp(_: &mut Criterion) {
    let tcp = TransportChoice::Only(TransportKind::Tcp);
    let job = InProcess::over(Network { transport: tcp, ..Network::default() }).unwrap();
    let client = Client::connect(job.config()).unwrap();
    let spec = TableSpec::sparse("w", DIM as u32).optimizer(OptimizerSpec::sum()).aggregate(Aggregate::Sum);
    let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
    let (values, mut growth) = (vec![1.0; KEYS * DIM], Growth::default());
    for first in (0..rows()).step_by(KEYS) {
        let mut keys: Vec<Key> = (first..first + KEYS as u64).map(mix64).collect();
        keys.sort_unstable();
        let keys = SortedKeys::new(&keys).unwrap();
        growth.measure(|| table.push(keys, &values).unwrap().wait().unwrap());
    }
    growth.print("over TCP");
    client.finalize().unwrap();
    job.end().unwrap();
}

criterion_group!(sparse_benches, frames, growth, growth_over_tcp);
criterion_main!(sparse_benches);
