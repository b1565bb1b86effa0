//! Kernels over segments of 256 KiB that walk round memory larger than a core's caches, beside a loop that only reads.
//!
//! Bytes are counted as the pieces read and the parameters (or the result) written, once each; what else a rule reads and
//! writes, its state and the old parameters, is not counted. `WINDLASS_SIMD=scalar|avx2|avx512` chooses the path:
//!
//! ```text
//! WINDLASS_SIMD=avx2 cargo bench --bench kernels
//! ```

#![allow(clippy::unwrap_used)] // nobody but a developer sees it fail
#![allow(missing_docs)] // criterion's macros

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use windlass::config::{Environment, variable};
use windlass::kernels::{self, Gradient, Input, Output, Rule};

/// fp32 of one segment.
const SEGMENT: usize = 64 * 1024;
/// Segments of each array.
const SEGMENTS: usize = 128;
/// Pieces that are folded.
const WAYS: usize = 4;

/// Arrays that are walked segment by segment.
struct Memory {
    pieces: Vec<f32>,
    halves: Vec<u16>,
    parameters: Vec<f32>,
    planes: [Vec<f32>; 2],
    at: usize,
}

impl Memory {
    fn new() -> Memory {
        let array = || vec![0.001f32; SEGMENT * SEGMENTS];
        let halves = vec![0x1419; SEGMENT * SEGMENTS];
        Memory { pieces: array(), halves, parameters: array(), planes: [array(), array()], at: 0 }
    }

    /// The next segment's place, and those of `WAYS` pieces.
    fn next(&mut self) -> (usize, [usize; WAYS]) {
        self.at = (self.at + 1) % SEGMENTS;
        let place = |way: usize| (self.at * WAYS + way) % SEGMENTS * SEGMENT;
        (self.at * SEGMENT, std::array::from_fn(place))
    }
}

fn part<T>(values: &[T], first: usize) -> &[T] {
    &values[first..first + SEGMENT]
}

fn part_mut<T>(values: &mut [T], first: usize) -> &mut [T] {
    &mut values[first..first + SEGMENT]
}

/// Reads everything, 64 bits at a time, and does next to nothing with it.
fn read(group: &mut BenchmarkGroup<'_, WallTime>, memory: &mut Memory, name: &str) {
    group.throughput(Throughput::Bytes((SEGMENT * 4) as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            let (at, _) = memory.next();
            let words: &[u64] = bytemuck::cast_slice(part(&memory.pieces, at));
            let mut sums = [0u64; 16];
            for chunk in words.chunks_exact(16) {
                for (sum, word) in sums.iter_mut().zip(chunk) {
                    *sum ^= word;
                }
            }
            black_box(sums)
        });
    });
}

fn fold(group: &mut BenchmarkGroup<'_, WallTime>, memory: &mut Memory) {
    let mut sum = vec![0.0f32; SEGMENT];
    group.throughput(Throughput::Bytes((SEGMENT * 4 * (WAYS + 1)) as u64));
    group.bench_function("fold/fp32 x4", |b| {
        b.iter(|| {
            let (_, places) = memory.next();
            let pieces = places.map(|p| Input::from(part(&memory.pieces, p)));
            kernels::fold(&mut sum, &pieces, 1.0);
        });
    });
    group.throughput(Throughput::Bytes((SEGMENT * (2 * WAYS + 4)) as u64));
    group.bench_function("fold/fp16 x4", |b| {
        b.iter(|| {
            let (_, places) = memory.next();
            let pieces = places.map(|p| Input::F16(part(&memory.halves, p).into()));
            kernels::fold(&mut sum, &pieces, 1.0);
        });
    });
    group.bench_function("fold/bf16 x4", |b| {
        b.iter(|| {
            let (_, places) = memory.next();
            let pieces = places.map(|p| Input::Bf16(part(&memory.halves, p).into()));
            kernels::fold(&mut sum, &pieces, 1.0);
        });
    });
}

/// Four pieces folded, the mean taken, and a step, in one pass.
fn fused<R: Rule<PLANES>, const PLANES: usize>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    memory: &mut Memory,
    name: &str,
    rule: R,
) {
    group.throughput(Throughput::Bytes((SEGMENT * 4 * (WAYS + 1)) as u64));
    group.bench_function(format!("fold + step/{name} x4"), |b| {
        b.iter(|| {
            let (at, places) = memory.next();
            let pieces = places.map(|p| Input::from(part(&memory.pieces, p)));
            let gradient = Gradient::Fold { sum: None, pieces: &pieces, divisor: 4.0 };
            let [a, b] = memory.planes.each_mut().map(|p| part_mut(p, at));
            kernels::pass(part_mut(&mut memory.parameters, at), gradient, None, |range, w, g| {
                let mut planes = [&mut a[range.clone()], &mut b[range]].into_iter();
                let state = std::array::from_fn(|_| planes.next().unwrap());
                kernels::step(rule, w, state, g);
            });
        });
    });
}

fn fused_with_cast(group: &mut BenchmarkGroup<'_, WallTime>, memory: &mut Memory) {
    let mut out = vec![0u16; SEGMENT];
    group.throughput(Throughput::Bytes((SEGMENT * (2 * WAYS + 4 + 2)) as u64));
    group.bench_function("fold bf16 + step + cast bf16/sgd x4", |b| {
        b.iter(|| {
            let (at, places) = memory.next();
            let pieces = places.map(|p| Input::Bf16(part(&memory.halves, p).into()));
            let gradient = Gradient::Fold { sum: None, pieces: &pieces, divisor: 4.0 };
            let out = Some(Output::Bf16((&mut out[..]).into()));
            kernels::pass(part_mut(&mut memory.parameters, at), gradient, out, |_, w, g| {
                kernels::step(kernels::Sgd { rate: 0.1 }, w, [], g);
            });
        });
    });
}

fn converts(group: &mut BenchmarkGroup<'_, WallTime>, memory: &mut Memory) {
    let (mut narrow, mut wide) = (vec![0u16; SEGMENT], vec![0.0f32; SEGMENT]);
    group.throughput(Throughput::Bytes((SEGMENT * 6) as u64));
    group.bench_function("fp32 to fp16", |b| {
        b.iter(|| {
            let (at, _) = memory.next();
            kernels::narrow(Output::F16((&mut narrow[..]).into()), part(&memory.pieces, at));
        });
    });
    group.bench_function("fp32 to bf16", |b| {
        b.iter(|| {
            let (at, _) = memory.next();
            kernels::narrow(Output::Bf16((&mut narrow[..]).into()), part(&memory.pieces, at));
        });
    });
    group.bench_function("fp16 to fp32", |b| {
        b.iter(|| {
            let (at, _) = memory.next();
            kernels::widen(&mut wide, Input::F16(part(&memory.halves, at).into()));
        });
    });
}

fn reductions(group: &mut BenchmarkGroup<'_, WallTime>, memory: &mut Memory) {
    group.throughput(Throughput::Bytes((SEGMENT * 4) as u64));
    group.bench_function("norm", |b| {
        b.iter(|| {
            let (at, _) = memory.next();
            black_box(kernels::norm(part(&memory.pieces, at).into()))
        });
    });
    group.bench_function("count non-finite", |b| {
        b.iter(|| {
            let (at, _) = memory.next();
            black_box(kernels::count_non_finite(part(&memory.pieces, at).into()))
        });
    });
}

fn all(criterion: &mut Criterion) {
    if let Some(simd) = Environment::capture().value(variable::SIMD, "scalar, avx2 or avx512").unwrap() {
        kernels::choose(simd).unwrap();
    }
    let mut memory = Memory::new();
    let mut group = criterion.benchmark_group(kernels::chosen().to_string());
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    read(&mut group, &mut memory, "read, before");
    fold(&mut group, &mut memory);
    fused(&mut group, &mut memory, "sum", kernels::Sum);
    fused(&mut group, &mut memory, "assign", kernels::Assign);
    fused(&mut group, &mut memory, "sgd", kernels::Sgd { rate: 0.1 });
    fused(&mut group, &mut memory, "momentum", kernels::Momentum { rate: 0.1, momentum: 0.9 });
    fused(&mut group, &mut memory, "nesterov", kernels::Nesterov { rate: 0.1, momentum: 0.9 });
    fused(&mut group, &mut memory, "adagrad", kernels::Adagrad { rate: 0.1, epsilon: 1e-10 });
    fused(&mut group, &mut memory, "rmsprop", kernels::RmsProp { rate: 0.1, alpha: 0.99, epsilon: 1e-8 });
    let adam = kernels::Adam { rate: 0.1, root: 0.5, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    fused(&mut group, &mut memory, "adam", adam);
    fused(&mut group, &mut memory, "adamw", kernels::AdamW { shrink: 0.001, adam });
    fused(&mut group, &mut memory, "ftrl", kernels::Ftrl { alpha: 0.1, beta: 1.0, l1: 0.1, l2: 0.0 });
    fused_with_cast(&mut group, &mut memory);
    converts(&mut group, &mut memory);
    reductions(&mut group, &mut memory);
    read(&mut group, &mut memory, "read, after");
    group.finish();
}

criterion_group!(kernels_benches, all);
criterion_main!(kernels_benches);
