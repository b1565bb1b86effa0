//! Steps of many rows of a sparse bucket.

use super::optimizer::{MAX_STATE_WIDTH, Optimizer};
use super::rows::{Rows, Shape};
use super::state::State;
use crate::kernels::{self, BLOCK, Gradient, Input};
use crate::mem::Slabs;

/// Rows of fewer parameters are stepped side by side: a call for each would cost more than its arithmetic.
const NARROW: usize = 64;

/// Copies of parameters, planes and gradients, used again and again.
#[derive(Debug, Default)]
pub struct Steps {
    parameters: Vec<f32>,
    planes: Vec<f32>,
    gradient: Vec<f32>,
}

impl Steps {
    /// Each of these rows of a bucket, all different, takes one step with its part of `values`, divided by `divisor`.
    pub fn step(
        &mut self,
        shape: &Shape,
        (of_bucket, slabs): (&mut Rows, &mut Slabs<u64>),
        rows: &[u32],
        (values, divisor): (Input<'_>, f32),
        optimizer: &dyn Optimizer,
    ) {
        let dim = shape.dim;
        // Without scalars nothing tells the elements of one row from those of another (see `Optimizer`).
        let aside = optimizer.scalars() == 0 && dim < NARROW;
        if !aside && divisor == 1.0 {
            for (i, &row) in rows.iter().enumerate() {
                let (parameters, state) = of_bucket.get_mut(shape, slabs, row).split_at_mut(dim);
                let gradient = Gradient::Piece(values.part(i * dim, dim));
                State::of_part(state, dim, 0, optimizer).step(optimizer, parameters, None, gradient);
            }
            return;
        }
        let some = (BLOCK / dim).max(1);
        for (n, rows) in rows.chunks(some).enumerate() {
            self.gradient.resize(rows.len() * dim, 0.0);
            kernels::widen(&mut self.gradient, values.part(n * some * dim, rows.len() * dim));
            if divisor != 1.0 {
                kernels::divide(&mut self.gradient, divisor);
            }
            if aside {
                self.step_aside(shape, (of_bucket, slabs), rows, optimizer);
            } else {
                for (&row, gradient) in rows.iter().zip(self.gradient.chunks_exact(dim)) {
                    let (parameters, state) = of_bucket.get_mut(shape, slabs, row).split_at_mut(dim);
                    State::of_part(state, dim, 0, optimizer).step_with(optimizer, parameters, gradient);
                }
            }
        }
    }

    /// One step of all rows at once, in copies.
    fn step_aside(
        &mut self,
        shape: &Shape,
        (of_bucket, slabs): (&mut Rows, &mut Slabs<u64>),
        rows: &[u32],
        optimizer: &dyn Optimizer,
    ) {
        let (dim, width) = (shape.dim, optimizer.state_width());
        let all = rows.len() * dim;
        self.parameters.resize(all, 0.0);
        self.planes.resize(all * width, 0.0);
        for (i, &row) in rows.iter().enumerate() {
            let row = of_bucket.get(shape, slabs, row);
            copy(&mut self.parameters[i * dim..(i + 1) * dim], &row[..dim]);
            for plane in 0..width {
                let at = plane * all + i * dim;
                copy(&mut self.planes[at..at + dim], &row[(1 + plane) * dim..(2 + plane) * dim]);
            }
        }
        let mut planes = self.planes.chunks_exact_mut(all);
        let mut planes: [&mut [f32]; MAX_STATE_WIDTH] =
            std::array::from_fn(|_| planes.next().unwrap_or_default());
        optimizer.step(&mut self.parameters, &mut planes[..width], &[], &self.gradient);
        for (i, &row) in rows.iter().enumerate() {
            let row = of_bucket.get_mut(shape, slabs, row);
            copy(&mut row[..dim], &self.parameters[i * dim..(i + 1) * dim]);
            for plane in 0..width {
                let at = plane * all + i * dim;
                copy(&mut row[(1 + plane) * dim..(2 + plane) * dim], &self.planes[at..at + dim]);
            }
        }
    }
}

/// Copies a few values: most rows are too short for a call of `memcpy`.
#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    if let ([to], [from]) = (&mut *to, from) {
        *to = *from;
    } else {
        to.copy_from_slice(from);
    }
}
