//! What the arithmetic of a server thread costs for one dense bucket of 256 KiB, and the headers of one request.
//!
//! `cargo bench --bench kernels`; with `-- --test` each runs once.

#![allow(missing_docs)] // criterion's macros make public items

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use windlass::kernels::{Ftrl, accumulate, ftrl, sgd};
use windlass::mem::{Arena, Floats};
use windlass::proto::{RequestHeader, RequestKind};

/// fp32 in the default segment.
const LENGTH: usize = 65_536;

/// The same floats on every run, none of them denormal.
fn floats(seed: u64) -> Vec<f32> {
    (0..LENGTH as u64).map(|i| (windlass::types::mix64(seed ^ i) >> 40) as f32 / 16_777_216.0 - 0.5).collect()
}

fn fold(c: &mut Criterion) {
    let arena = Arena::new(LENGTH * 4).unwrap_or_else(|e| panic!("no memory: {e}"));
    arena.copy_in(0, bytemuck::cast_slice(&floats(1)));
    let mut sum = floats(2);
    let mut group = c.benchmark_group("fold");
    group.throughput(Throughput::Bytes(LENGTH as u64 * 4));
    group.bench_function(BenchmarkId::new("accumulate", LENGTH), |b| {
        b.iter(|| accumulate(black_box(&mut sum), Floats::in_arena(&arena, 0, LENGTH)));
    });
    group.finish();
}

fn step(c: &mut Criterion) {
    let (mut w, mut z, mut n) = (floats(3), floats(4), vec![0.0; LENGTH]);
    let gradient = floats(5);
    let rule = Ftrl { alpha: 0.1, beta: 0.1, l1: 0.05, l2: 0.0 };
    let mut group = c.benchmark_group("step");
    group.throughput(Throughput::Bytes(LENGTH as u64 * 4));
    group.bench_function(BenchmarkId::new("sgd", LENGTH), |b| {
        b.iter(|| sgd(black_box(&mut w), &gradient, 1e-6));
    });
    group.bench_function(BenchmarkId::new("ftrl", LENGTH), |b| {
        b.iter(|| ftrl(black_box(&mut w), &mut z, &mut n, &gradient, rule));
    });
    group.finish();
}

fn header(c: &mut Criterion) {
    let header = RequestHeader {
        kind: RequestKind::Push,
        after_push: false,
        sequence: 1,
        clock: 2,
        argument: 0,
        table: 3,
        bucket: 4,
        epoch: 1,
        first: 0,
        count: LENGTH as u32,
        length: LENGTH as u32 * 4,
        tag: 5,
    };
    let bytes = header.encode();
    let mut group = c.benchmark_group("request header");
    group.bench_function("encode", |b| b.iter(|| black_box(&header).encode()));
    group.bench_function("decode", |b| b.iter(|| RequestHeader::decode(black_box(&bytes))));
    group.finish();
}

criterion_group!(benches, fold, step, header);
criterion_main!(benches);
