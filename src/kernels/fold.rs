//! Folding pieces, alone and fused with a step and a cast.
//!
//! A fold adds the pieces one after the other, to +0 or to the sum so far. One pass over many pieces therefore gives the
//! bits of many passes over one each.

use std::mem::discriminant;
use std::ops::Range;

use super::generic::Fold;
use super::input::{Input, Output};
use super::table::{Table, table};
use super::{narrow_by, widen_by};

/// fp32 that a fused pass takes at a time: 8 KiB, so that a block of the gradient, of the parameters and of two planes of
/// state stays in a first-level cache of 32 KiB while the pieces stream by. (With blocks of 4 KiB the passes took up to a
/// third longer: the CPU's prefetcher begins anew with each.)
pub const BLOCK: usize = 2048;

/// Pieces that are folded in one pass. More take several passes over each block.
pub const WAYS: usize = 16;

/// `sum ← sum + values`.
///
/// # Panics
/// When the lengths differ.
pub fn accumulate(sum: &mut [f32], values: Input<'_>) {
    assert_eq!(sum.len(), values.len(), "lengths differ");
    let start = sum.as_mut_ptr();
    let task = Fold { start, sum: start, length: sum.len(), divisor: 1.0 };
    // Not through `fold`: rows of sparse tables are short, and the gathering of many pieces would be most of the work.
    // SAFETY: `sum` is exclusive and as long as the values; the CPU has the table's instructions.
    unsafe {
        match values {
            Input::F32(v) => (table().fold_f32)(task, &[v.as_ptr()]),
            Input::F16(v) => (table().fold_f16)(task, &[v.as_ptr()]),
            Input::Bf16(v) => (table().fold_bf16)(task, &[v.as_ptr()]),
        }
    }
}

/// `values ← values / divisor`.
pub fn divide(values: &mut [f32], divisor: f32) {
    fold(values, &[], divisor);
}

/// `sum ← (sum + pieces[0] + pieces[1] + …) / divisor`, from left to right.
///
/// # Panics
/// When the lengths differ.
pub fn fold(sum: &mut [f32], pieces: &[Input<'_>], divisor: f32) {
    fold_with(table(), sum, pieces, divisor);
}

pub(super) fn fold_with(table: &Table, sum: &mut [f32], pieces: &[Input<'_>], divisor: f32) {
    assert!(pieces.iter().all(|p| p.len() == sum.len()), "lengths differ");
    let start = sum.as_mut_ptr();
    // SAFETY: `sum` is exclusive and as long as the pieces.
    unsafe { fold_by(table, Fold { start, sum: start, length: sum.len(), divisor }, pieces, 0) }
}

/// Folds `task.length` values from `first` on of each piece.
///
/// # Safety
/// What `task` points to is valid for its length, `sum` for nobody else; `first` + length lies within every piece.
unsafe fn fold_by(table: &Table, task: Fold, pieces: &[Input<'_>], first: usize) {
    let mut start = task.start;
    let mut rest = pieces;
    loop {
        let Ways { ways, count, format } = Ways::gather(rest, first);
        rest = &rest[count..];
        // Only the last of several passes divides.
        let divisor = if rest.is_empty() { task.divisor } else { 1.0 };
        let task = Fold { start, divisor, ..task };
        // SAFETY: the caller's duty; all of `ways` are of that format; the CPU has the table's instructions.
        unsafe {
            match format {
                Some(Input::F16(_)) => (table.fold_f16)(task, &ways.map(<*const u8>::cast)[..count]),
                Some(Input::Bf16(_)) => (table.fold_bf16)(task, &ways.map(<*const u8>::cast)[..count]),
                Some(Input::F32(_)) | None => (table.fold_f32)(task, &ways.map(<*const u8>::cast)[..count]),
            }
        }
        if rest.is_empty() {
            return;
        }
        start = task.sum;
    }
}

/// The pieces of one pass: the longest prefix of one format, up to [`WAYS`].
struct Ways<'a> {
    ways: [*const u8; WAYS],
    count: usize,
    /// One of that format.
    format: Option<&'a Input<'a>>,
}

impl<'a> Ways<'a> {
    /// Looks at where each piece lies, and copies none whole: 16 bytes that were stored as two words can be loaded only when all stores before
    /// them are done, those of the last block's step, too. (That was a twentieth of a step of two workers' pieces.)
    fn gather(pieces: &'a [Input<'a>], first: usize) -> Ways<'a> {
        let mut ways = [std::ptr::null(); WAYS];
        let mut count = 0;
        let format = pieces.first();
        let same = |piece: &&Input<'_>| format.is_some_and(|f| discriminant(*piece) == discriminant(f));
        for (way, piece) in ways.iter_mut().zip(pieces.iter().take_while(same)) {
            *way = match piece {
                Input::F32(v) => v.as_ptr().wrapping_add(first).cast(),
                Input::F16(v) | Input::Bf16(v) => v.as_ptr().wrapping_add(first).cast(),
            };
            count += 1;
        }
        Ways { ways, count, format }
    }
}

/// What parameters are stepped with.
#[derive(Debug)]
pub enum Gradient<'a> {
    /// One piece as it came.
    Piece(Input<'a>),
    /// A fold, divided.
    Fold {
        /// What was folded before; left at +0. `None` stands for +0.
        sum: Option<&'a mut [f32]>,
        /// What is folded behind it.
        pieces: &'a [Input<'a>],
        /// What the fold is divided by.
        divisor: f32,
    },
}

/// Folds `gradient`, lets `step` work on `parameters` with it, and casts them to `out`, all in one pass over memory: block
/// by block of at most [`BLOCK`]. `step` is given the block's place, its parameters and its gradient.
///
/// # Panics
/// When the lengths differ.
pub fn pass(
    parameters: &mut [f32],
    gradient: Gradient<'_>,
    out: Option<Output<'_>>,
    step: impl FnMut(Range<usize>, &mut [f32], &[f32]),
) {
    pass_by(table(), parameters, gradient, out, step);
}

pub(super) fn pass_by(
    table: &Table,
    parameters: &mut [f32],
    mut gradient: Gradient<'_>,
    mut out: Option<Output<'_>>,
    mut step: impl FnMut(Range<usize>, &mut [f32], &[f32]),
) {
    let length = parameters.len();
    assert!(gradient.fits(length) && out.as_ref().is_none_or(|o| o.len() == length), "lengths differ");
    let mut block = [0.0f32; BLOCK];
    for (i, parameters) in parameters.chunks_mut(BLOCK).enumerate() {
        let first = i * BLOCK;
        let block = &mut block[..parameters.len()];
        gradient.read(table, first, block);
        step(first..first + block.len(), parameters, block);
        if let Some(out) = &mut out {
            narrow_by(table, out.part(first, block.len()), parameters);
        }
    }
}

impl Gradient<'_> {
    fn fits(&self, length: usize) -> bool {
        match self {
            Gradient::Piece(piece) => piece.len() == length,
            Gradient::Fold { sum, pieces, .. } => {
                sum.as_ref().is_none_or(|s| s.len() == length) && pieces.iter().all(|p| p.len() == length)
            }
        }
    }

    /// The gradient from `first` on, once.
    fn read(&mut self, table: &Table, first: usize, into: &mut [f32]) {
        match self {
            Gradient::Piece(piece) => widen_by(table, into, piece.part(first, into.len())),
            Gradient::Fold { sum, pieces, divisor } => {
                let mut sum = sum.as_mut().map(|s| &mut s[first..first + into.len()]);
                let start = sum.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
                let task = Fold { start, sum: into.as_mut_ptr(), length: into.len(), divisor: *divisor };
                // SAFETY: distinct slices of that length; `fits` proved the pieces to be as long as the whole.
                unsafe { fold_by(table, task, pieces, first) }
                if let Some(sum) = &mut sum {
                    sum.fill(0.0);
                }
            }
        }
    }
}
