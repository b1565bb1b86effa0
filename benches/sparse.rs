//! A sparse table's rows without a network: gathered and pushed to by criterion, then how long the longest push takes while the table
//! grows to 10 M rows of 16 (with `--test` to 200 000).
//!
//! ```text
//! cargo bench --bench sparse             # criterion's figures, then the growth
//! cargo bench --bench sparse -- --test   # one run of each
//! ```

#![allow(clippy::unwrap_used)] // nobody but a developer sees it fail
#![allow(missing_docs)] // criterion's macros

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use windlass::TableSpec;
use windlass::kernels::Input;
use windlass::mem::{Page, RegionId};
use windlass::store::{How, Intake, Optimizers, Shard, SparsePiece};
use windlass::types::{Aggregate, Consistency, DirectoryEntry, Key, OptimizerSpec, TableKind, mix64};

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

/// New rows, frame by frame: with many buckets that grow alike, and with one that has them all. As at a server a thread has memory
/// supplied ahead.
fn growth(_: &mut Criterion) {
    let rows = if std::env::args().any(|a| a == "--test") { 200_000 } else { 10_000_000u64 };
    let values = vec![1.0; KEYS * DIM];
    for buckets in [256, 1] {
        let (spec, mut shard) = table(buckets);
        let (supplier, pages) = mpsc::channel::<Arc<Page>>();
        let supplier = (supplier, thread::spawn(move || pages.iter().filter(|page| page.supply()).count()));
        let (mut longest, mut all, mut offered) = (Duration::ZERO, Duration::ZERO, 0);
        for first in (0..rows).step_by(KEYS) {
            let frame = Frame::new(&spec, first..first + KEYS as u64);
            let start = Instant::now();
            frame.push(&mut shard, &values);
            while let Some(page) = shard.to_supply() {
                supplier.0.send(page).unwrap();
                offered += 1;
            }
            let took = start.elapsed();
            (longest, all) = (longest.max(took), all + took);
        }
        drop(supplier.0);
        let supplied = supplier.1.join().unwrap();
        println!(
            "growth to {rows} rows of {DIM}, {buckets} buckets: {all:.1?}, the longest push of {KEYS} {:.2} ms, {supplied} of {offered} \
             huge pages supplied beside them",
            longest.as_secs_f64() * 1e3
        );
    }
}

criterion_group!(sparse_benches, frames, growth);
criterion_main!(sparse_benches);
