//! Kernels over segments of 256 KiB that walk round arrays of 64 MiB on huge pages, beside loops that only read: by criterion, and
//! then all in turns, segment by segment, for their ratios, which hold on a busy machine, too.
//!
//! Bytes are counted as the pieces read and the parameters (or the result) written, once each; what else a rule reads and
//! writes, its state and the old parameters, is not counted, nor that a CPU reads a line before it writes to it.
//! `WINDLASS_SIMD=scalar|avx2|avx512` chooses the path:
//!
//! ```text
//! WINDLASS_SIMD=avx2 cargo bench --bench kernels             # criterion's figures, then the ratios
//! WINDLASS_SIMD=avx2 cargo bench --bench kernels -- --test   # the ratios alone, after one run of each
//! ```

#![allow(clippy::unwrap_used)] // nobody but a developer sees it fail
#![allow(missing_docs)] // criterion's macros

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use windlass::config::{Environment, variable};
use windlass::kernels::{self, Gradient, Input, Output, Rule};
use windlass::mem::{Block, Blocks};

/// fp32 of one segment.
const SEGMENT: usize = 64 * 1024;
/// Segments of each array.
const SEGMENTS: usize = 256;
/// Pieces that are folded.
const WAYS: usize = 8;
/// How often each case has its turn.
const ROUNDS: usize = 4 * SEGMENTS;

/// Arrays that are walked segment by segment.
struct Memory {
    pieces: [Block; WAYS],
    parameters: Block,
    planes: [Block; 2],
    /// A segment, of which a core's own cache keeps what it can.
    narrow: Vec<u16>,
    wide: Vec<f32>,
    at: usize,
}

impl Memory {
    fn new() -> Memory {
        let length = SEGMENT * SEGMENTS;
        let mut blocks = Blocks::for_lengths(std::iter::repeat_n(length, WAYS + 3)).unwrap();
        let mut array = || {
            let mut block = blocks.cut(length).unwrap();
            block.fill(0.001);
            block
        };
        let pieces = std::array::from_fn(|_| array());
        let (narrow, wide) = (vec![0; SEGMENT], vec![0.0; SEGMENT]);
        Memory { pieces, parameters: array(), planes: [array(), array()], narrow, wide, at: 0 }
    }

    /// Where the segment `steps` further begins.
    fn walk(&mut self, steps: usize) -> usize {
        self.at = (self.at + steps) % SEGMENTS;
        self.at * SEGMENT
    }
}

fn part<T>(values: &[T], first: usize) -> &[T] {
    &values[first..first + SEGMENT]
}

fn part_mut<T>(values: &mut [T], first: usize) -> &mut [T] {
    &mut values[first..first + SEGMENT]
}

/// fp32 as they are.
fn fp32(values: &[f32], first: usize) -> Input<'_> {
    part(values, first).into()
}

/// The halves of fp32 numbers, which are ordinary fp16 numbers, too.
fn fp16(values: &[f32], first: usize) -> Input<'_> {
    Input::F16(part(bytemuck::cast_slice(values), first).into())
}

/// And bf16 numbers.
fn bf16(values: &[f32], first: usize) -> Input<'_> {
    Input::Bf16(part(bytemuck::cast_slice(values), first).into())
}

type Run = Box<dyn Fn(&mut Memory, usize)>;

/// What is measured, at the segment that begins at a place.
struct Case {
    name: String,
    /// Counted for each fp32 of the segment.
    bytes: usize,
    run: Run,
}

impl Case {
    fn new(name: impl Into<String>, bytes: usize, run: impl Fn(&mut Memory, usize) + 'static) -> Case {
        Case { name: name.into(), bytes, run: Box::new(run) }
    }
}

/// The loops that only read come first.
fn cases() -> Vec<Case> {
    let adam = kernels::Adam { rate: 0.1, root: 0.5, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    vec![
        Case::new("read", 4, |memory, at| read(&[part(&memory.pieces[0], at)])),
        Case::new(format!("read x{WAYS}"), 4 * WAYS, |memory, at| {
            read(&memory.pieces.each_ref().map(|p| part(p, at)));
        }),
        Case::new("add fp32", 8, |memory, at| {
            kernels::accumulate(part_mut(&mut memory.parameters, at), fp32(&memory.pieces[0], at));
        }),
        fused("sum", 4, fp32, 1.0, kernels::Assign),
        fused("sum", 2, fp16, 1.0, kernels::Assign),
        fused("sum", 2, bf16, 1.0, kernels::Assign),
        mean("sum", kernels::Sum),
        mean("assign", kernels::Assign),
        mean("sgd", kernels::Sgd { rate: 0.1 }),
        mean("momentum", kernels::Momentum { rate: 0.1, momentum: 0.9 }),
        mean("nesterov", kernels::Nesterov { rate: 0.1, momentum: 0.9 }),
        mean("adagrad", kernels::Adagrad { rate: 0.1, epsilon: 1e-10 }),
        mean("rmsprop", kernels::RmsProp { rate: 0.1, alpha: 0.99, epsilon: 1e-8 }),
        mean("adam", adam),
        mean("adamw", kernels::AdamW { shrink: 0.001, adam }),
        mean("ftrl", kernels::Ftrl { alpha: 0.1, beta: 1.0, l1: 0.1, l2: 0.0 }),
        Case::new(format!("fold bf16 x{WAYS} + sgd + cast bf16"), 2 * WAYS + 4 + 2, fold_and_cast),
        Case::new("fp32 to fp16", 6, |memory, at| {
            kernels::narrow(Output::F16((&mut memory.narrow[..]).into()), part(&memory.pieces[0], at));
        }),
        Case::new("fp32 to bf16", 6, |memory, at| {
            kernels::narrow(Output::Bf16((&mut memory.narrow[..]).into()), part(&memory.pieces[0], at));
        }),
        Case::new("fp16 to fp32", 6, |memory, at| {
            kernels::widen(&mut memory.wide[..], fp16(&memory.pieces[0], at));
        }),
        Case::new("norm", 4, |memory, at| {
            black_box(kernels::norm(fp32(&memory.pieces[0], at)));
        }),
        Case::new("count non-finite", 4, |memory, at| {
            black_box(kernels::count_non_finite(fp32(&memory.pieces[0], at)));
        }),
    ]
}

/// Reads everything, 64 bits at a time, side by side where there are several, and does next to nothing with it.
fn read(pieces: &[&[f32]]) {
    let mut sums = [0u64; 16];
    for at in (0..SEGMENT).step_by(32) {
        for piece in pieces {
            let words: &[u64] = bytemuck::cast_slice(&piece[at..at + 32]);
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum ^= word;
            }
        }
    }
    black_box(sums);
}

/// Pieces folded, divided, and a step, in one pass. `bytes` are those of one value of a piece.
fn fused<R: Rule<PLANES> + 'static, const PLANES: usize>(
    name: &str,
    bytes: usize,
    view: for<'m> fn(&'m [f32], usize) -> Input<'m>,
    divisor: f32,
    rule: R,
) -> Case {
    let format = match view(&[0.0; SEGMENT], 0) {
        Input::F32(_) => "fp32",
        Input::F16(_) => "fp16",
        Input::Bf16(_) => "bf16",
    };
    Case::new(format!("{name} {format} x{WAYS}"), bytes * WAYS + 4, move |memory, at| {
        let pieces = memory.pieces.each_ref().map(|p| view(p, at));
        let gradient = Gradient::Fold { sum: None, pieces: &pieces, divisor };
        let [a, b] = memory.planes.each_mut().map(|p| part_mut(p, at));
        kernels::pass(part_mut(&mut memory.parameters, at), gradient, None, |range, w, g| {
            let mut planes = [&mut a[range.clone()], &mut b[range]].into_iter();
            let state = std::array::from_fn(|_| planes.next().unwrap());
            kernels::step(rule, w, state, g);
        });
    })
}

/// The mean of fp32 pieces and a step.
fn mean<R: Rule<PLANES> + 'static, const PLANES: usize>(name: &str, rule: R) -> Case {
    fused(&format!("mean + {name}"), 4, fp32, WAYS as f32, rule)
}

fn fold_and_cast(memory: &mut Memory, at: usize) {
    let pieces = memory.pieces.each_ref().map(|p| bf16(p, at));
    let gradient = Gradient::Fold { sum: None, pieces: &pieces, divisor: WAYS as f32 };
    let out = Some(Output::Bf16((&mut memory.narrow[..]).into()));
    kernels::pass(part_mut(&mut memory.parameters, at), gradient, out, |_, w, g| {
        kernels::step(kernels::Sgd { rate: 0.1 }, w, [], g);
    });
}

/// Each case for itself.
fn alone(criterion: &mut Criterion) {
    if let Some(simd) = Environment::capture().value(variable::SIMD, "scalar, avx2 or avx512").unwrap() {
        kernels::choose(simd).unwrap();
    }
    let mut memory = Memory::new();
    let mut group = criterion.benchmark_group(kernels::chosen().to_string());
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    for case in cases() {
        group.throughput(Throughput::Bytes((SEGMENT * case.bytes) as u64));
        group.bench_function(&case.name, |b| {
            b.iter(|| {
                let at = memory.walk(1);
                (case.run)(&mut memory, at);
            });
        });
    }
    group.finish();
}

/// All cases in turns, so that what else the machine does slows them alike: the medians, and their ratios to the faster of the
/// loops that only read.
fn in_turns(_: &mut Criterion) {
    let mut memory = Memory::new();
    let cases = cases();
    let mut speeds = vec![Vec::with_capacity(ROUNDS); cases.len()];
    for _ in 0..ROUNDS {
        for (case, speeds) in cases.iter().zip(&mut speeds) {
            // Far from what the last case left in a cache.
            let at = memory.walk(37);
            let start = Instant::now();
            (case.run)(&mut memory, at);
            speeds.push((SEGMENT * case.bytes) as f64 / start.elapsed().as_nanos() as f64);
        }
    }
    let medians: Vec<f64> = speeds
        .into_iter()
        .map(|mut speeds| *speeds.select_nth_unstable_by(ROUNDS / 2, f64::total_cmp).1)
        .collect();
    let fastest = medians[0].max(medians[1]);
    println!("\n{} in turns: median GB/s, ratio to reading", kernels::chosen());
    for (case, speed) in cases.iter().zip(&medians) {
        println!("{:36} {speed:5.1} {:5.2}", case.name, speed / fastest);
    }
}

criterion_group!(kernels_benches, alone, in_turns);
criterion_main!(kernels_benches);
