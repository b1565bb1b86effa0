//! Arithmetic on fp32 lanes, in from fp32, fp16 or bf16. Every result is fixed to the bit: + − × ÷ √ in the order
//! written, no FMA, no libm, conversions rounded to nearest even, denormals kept. So all paths (one lane, AVX2, AVX-512)
//! agree bit for bit, except that any NaN stands for any other, and the same numbers give the same bits wherever they lie.
//!
//! `lanes` says what an algorithm may do, `generic` has each algorithm once, `rules` each update rule once;
//! `table` compiles them for each instruction set and chooses. Here are the safe entries. `crc` checks headers.

mod crc;
mod fold;
mod generic;
mod input;
mod lanes;
mod rules;
mod table;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests;

pub use crc::header_crc;
pub use fold::{BLOCK, Gradient, WAYS, accumulate, divide, fold, pass};
pub use input::{Input, Output};
pub use rules::{Adagrad, Adam, AdamW, Assign, Ftrl, Momentum, Nesterov, RmsProp, Rule, Sgd, Sum};
pub use table::{Simd, choose, choose_by, chosen};

use crate::mem::{Floats, Room};
use generic::{AddingScaled, Converting, CountingNonFinite, Stepping, ahead, tree};
use table::{Table, table};

/// Steps `parameters` by `rule` with `gradient`, each value of which is read once.
///
/// # Panics
/// When the lengths differ.
pub fn step<'g, R: Rule<PLANES>, const PLANES: usize>(
    rule: R,
    parameters: &mut [f32],
    state: [&mut [f32]; PLANES],
    gradient: impl Into<Floats<'g>>,
) {
    step_by(table(), rule, parameters, state, gradient);
}

fn step_by<'g, R: Rule<PLANES>, const PLANES: usize>(
    table: &Table,
    rule: R,
    parameters: &mut [f32],
    state: [&mut [f32]; PLANES],
    gradient: impl Into<Floats<'g>>,
) {
    let (length, gradient) = (parameters.len(), gradient.into());
    assert!(gradient.len() == length && state.iter().all(|s| s.len() == length), "lengths differ");
    let state = state.map(<[f32]>::as_mut_ptr);
    let (parameters, gradient, ahead) = (parameters.as_mut_ptr(), gradient.as_ptr(), ahead(length));
    let stepping = Stepping { rule, parameters, state, gradient, ahead };
    // SAFETY: exclusive slices and a readable gradient of `length` each; tables are only handed out where the CPU has their instructions.
    unsafe { R::kernel(table)(stepping, length) }
}

/// `sum ← sum + factor · values`, product and sum rounded each.
///
/// # Panics
/// When the lengths differ.
pub fn add_scaled(sum: &mut [f32], factor: f32, values: Input<'_>) {
    add_scaled_by(table(), sum, factor, values);
}

fn add_scaled_by(table: &Table, sum: &mut [f32], factor: f32, values: Input<'_>) {
    let length = sum.len();
    assert_eq!(length, values.len(), "lengths differ");
    let sum = sum.as_mut_ptr();
    // SAFETY: an exclusive slice and readable values of `length` each; the CPU has the table's instructions.
    unsafe {
        match values {
            Input::F32(v) => {
                (table.add_scaled_f32)(AddingScaled { sum, factor, values: v.as_ptr() }, length);
            }
            Input::F16(v) => {
                (table.add_scaled_f16)(AddingScaled { sum, factor, values: v.as_ptr() }, length);
            }
            Input::Bf16(v) => {
                (table.add_scaled_bf16)(AddingScaled { sum, factor, values: v.as_ptr() }, length);
            }
        }
    }
}

/// `into ← values`, exactly.
///
/// # Panics
/// When the lengths differ.
pub fn widen<'a>(into: impl Into<Room<'a, f32>>, values: Input<'_>) {
    widen_by(table(), into, values);
}

fn widen_by<'a>(table: &Table, into: impl Into<Room<'a, f32>>, values: Input<'_>) {
    let mut into = into.into();
    let length = into.len();
    assert_eq!(length, values.len(), "lengths differ");
    let to = into.as_mut_ptr();
    // SAFETY: writable room, which is nobody else's, and readable values of `length` each; the CPU has the table's
    // instructions.
    unsafe {
        match values {
            Input::F32(v) => std::ptr::copy_nonoverlapping(v.as_ptr(), to, length),
            Input::F16(v) => (table.f32_from_f16)(Converting { from: v.as_ptr(), to }, length),
            Input::Bf16(v) => (table.f32_from_bf16)(Converting { from: v.as_ptr(), to }, length),
        }
    }
}

/// `into ← values`, rounded to nearest even; what is too large becomes infinite.
///
/// # Panics
/// When the lengths differ.
pub fn narrow<'a>(into: Output<'_>, values: impl Into<Floats<'a>>) {
    narrow_by(table(), into, values);
}

fn narrow_by<'a>(table: &Table, into: Output<'_>, values: impl Into<Floats<'a>>) {
    let values = values.into();
    let length = values.len();
    assert_eq!(length, into.len(), "lengths differ");
    let from = values.as_ptr();
    // SAFETY: readable values and writable room, which is nobody else's, of `length` each; the CPU has the table's
    // instructions.
    unsafe {
        match into {
            Output::F32(mut to) => std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), length),
            Output::F16(mut to) => (table.f16_from_f32)(Converting { from, to: to.as_mut_ptr() }, length),
            Output::Bf16(mut to) => (table.bf16_from_f32)(Converting { from, to: to.as_mut_ptr() }, length),
        }
    }
}

/// How many values are infinite or NaN.
pub fn count_non_finite(values: Input<'_>) -> u64 {
    count_non_finite_by(table(), values)
}

fn count_non_finite_by(table: &Table, values: Input<'_>) -> u64 {
    let (length, found) = (values.len(), 0);
    // SAFETY: `length` values are readable; the CPU has the table's instructions.
    unsafe {
        match values {
            Input::F32(v) => (table.non_finite_f32)(CountingNonFinite { values: v.as_ptr(), found }, length),
            Input::F16(v) => (table.non_finite_f16)(CountingNonFinite { values: v.as_ptr(), found }, length),
            Input::Bf16(v) => {
                (table.non_finite_bf16)(CountingNonFinite { values: v.as_ptr(), found }, length)
            }
        }
    }
}

/// `Σ a[i] · b[i]` in fp32: sixteen sums, of the products with i mod 16 = 0, 1, … in the order of i, added in a fixed
/// tree. Both in the same format.
///
/// # Panics
/// When lengths or formats differ.
pub fn dot(a: Input<'_>, b: Input<'_>) -> f32 {
    dot_by(table(), a, b)
}

fn dot_by(table: &Table, a: Input<'_>, b: Input<'_>) -> f32 {
    let length = a.len();
    assert_eq!(length, b.len(), "lengths differ");
    let mut sums = [0.0; 16];
    // SAFETY: `length` values of each are readable; the CPU has the table's instructions.
    unsafe {
        match (a, b) {
            (Input::F32(a), Input::F32(b)) => (table.dot_f32)(&mut sums, a.as_ptr(), b.as_ptr(), length),
            (Input::F16(a), Input::F16(b)) => (table.dot_f16)(&mut sums, a.as_ptr(), b.as_ptr(), length),
            (Input::Bf16(a), Input::Bf16(b)) => (table.dot_bf16)(&mut sums, a.as_ptr(), b.as_ptr(), length),
            _ => panic!("formats differ"),
        }
    }
    tree(sums)
}

/// The Euclidean norm: the root of [`dot`] with itself.
pub fn norm(values: Input<'_>) -> f32 {
    dot(values, values).sqrt()
}
