//! What a server thread does to dense pushes and pulls, without a network, by criterion: pieces of a whole segment, which walk round a
//! table of 64 MiB, beside the kernels alone in the same run. Rows of sparse tables are in `benches/sparse.rs`.
//!
//! Bytes are counted as the pieces read and the parameters written, or the answer, once each.
//!
//! ```text
//! cargo bench --bench store             # GB/s
//! cargo bench --bench store -- --test   # one run of each
//! ```

#![allow(clippy::unwrap_used)] // nobody but a developer sees it fail
#![allow(missing_docs)] // criterion's macros

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use windlass::TableSpec;
use windlass::kernels::{self, Gradient, Input};
use windlass::mem::{Blocks, RegionId};
use windlass::store::{DensePiece, How, Intake, Optimizers, Shard};
use windlass::types::{Aggregate, Consistency, OptimizerSpec};

/// fp32 of a segment, and segments of a table.
const SEGMENT: usize = 64 * 1024;
const SEGMENTS: usize = 256;
/// Pieces that are folded, and slots of each worker: its pieces go round these.
const WAYS: usize = 8;
const SLOTS: usize = 16;
const STEP: Intake = Intake::Step { divisor: 1.0, base: None };

/// Tables that sum: one is stepped with each push, the other when its clock closes.
const ASP: u32 = 0;
const BSP: u32 = 1;

fn shard() -> Shard {
    let mut shard = Shard::new(Optimizers::default(), u64::MAX, 0);
    for (table, consistency) in [(ASP, Consistency::Asp), (BSP, Consistency::Bsp)] {
        let spec = TableSpec::dense("w", &[(SEGMENT * SEGMENTS) as u64]).aggregate(Aggregate::Sum);
        let spec = spec.optimizer(OptimizerSpec::sum()).consistency(consistency);
        let all: Vec<u32> = (0..SEGMENTS as u32).collect();
        shard.create_table(table, &spec, &all, |_| Ok(RegionId(0))).unwrap();
    }
    shard
}

fn piece(bucket: usize, values: Input<'_>) -> DensePiece<'_> {
    DensePiece { bucket: bucket as u32, first: 0, values }
}

fn dense(criterion: &mut Criterion) {
    let mut shard = shard();
    let lengths = std::iter::repeat_n(SEGMENT * SLOTS, WAYS).chain([SEGMENT * SEGMENTS]);
    let mut blocks = Blocks::for_lengths(lengths).unwrap();
    let mut block = |length, value| {
        let mut block = blocks.cut(length).unwrap();
        block.fill(value);
        block
    };
    let workers: [_; WAYS] = std::array::from_fn(|rank| block(SEGMENT * SLOTS, rank as f32 + 1.0));
    let mut bare = block(SEGMENT * SEGMENTS, 0.0);
    let pieces = |at: usize| workers.each_ref().map(|w| Input::from(&w[at % SLOTS * SEGMENT..][..SEGMENT]));
    let mut applied = Vec::new();
    let mut apply = |shard: &mut Shard, at: usize| {
        applied.clear();
        let taken = shard.write_dense(ASP, How::Push, piece(at, pieces(at)[0]), STEP, &mut applied);
        assert!(taken.unwrap().is_none());
    };
    let mut closed = Vec::new();
    let mut close = |shard: &mut Shard, at: usize| {
        closed.clear();
        let pieces = pieces(at).map(|values| piece(at, values));
        shard.close_dense(BSP, &pieces, WAYS as u32, &mut closed).unwrap();
    };
    apply(&mut shard, 3);
    close(&mut shard, 3);
    let of = |shard: &Shard, table| shard.read_dense(table, 3, 0, SEGMENT as u32).unwrap().values.to_vec();
    assert!(of(&shard, ASP).iter().all(|&v| v == 1.0) && of(&shard, BSP).iter().all(|&v| v == 36.0));

    let mut group = criterion.benchmark_group("dense");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % SEGMENTS;
        at
    };
    group.throughput(Throughput::Bytes(8 * SEGMENT as u64));
    group.bench_function("add, the kernel alone", |b| {
        b.iter(|| {
            let at = next();
            kernels::accumulate(&mut bare[at * SEGMENT..][..SEGMENT], pieces(at)[0]);
        });
    });
    group.bench_function("push", |b| b.iter(|| apply(&mut shard, next())));
    group.throughput(Throughput::Bytes((4 * WAYS as u64 + 4) * SEGMENT as u64));
    group.bench_function("fold of 8, the kernel alone", |b| {
        b.iter(|| {
            let at = next();
            let gradient = Gradient::Fold { sum: None, pieces: &pieces(at), divisor: 1.0 };
            kernels::pass(&mut bare[at * SEGMENT..][..SEGMENT], gradient, None, |_, w, g| {
                kernels::step(kernels::Sum, w, [], g);
            });
        });
    });
    group.bench_function("clock of 8 pushes", |b| b.iter(|| close(&mut shard, next())));
    group.throughput(Throughput::Bytes(4 * SEGMENT as u64));
    let mut answer = vec![0.0; SEGMENT];
    group.bench_function("copy", |b| {
        b.iter(|| black_box(&mut answer).copy_from_slice(&bare[next() * SEGMENT..][..SEGMENT]));
    });
    group.bench_function("pull, copied", |b| {
        b.iter(|| {
            let read = shard.read_dense(ASP, next() as u32, 0, SEGMENT as u32).unwrap();
            black_box(&mut answer).copy_from_slice(read.values);
        });
    });
    group.finish();
}

criterion_group!(store_benches, dense);
criterion_main!(store_benches);
