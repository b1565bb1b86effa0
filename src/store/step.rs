//! Steps of many rows of a sparse table.

use super::optimizer::{MAX_STATE_WIDTH, Optimizer};
use super::rows::Rows;
use super::state::State;
use crate::kernels::{self, BLOCK, Gradient, Input};

/// Rows of fewer parameters are stepped side by side: a call for each would cost more than its arithmetic.
const NARROW: usize = 64;

/// Rows between the one that is stepped and the one that is fetched.
pub const AHEAD: usize = 8;

/// Copies of parameters, planes and gradients, used again and again.
#[derive(Debug, Default)]
pub struct Steps {
    parameters: Vec<f32>,
    planes: Vec<f32>,
    gradient: Vec<f32>,
}

impl Steps {
    /// Each of the rows at these positions, all different, takes one step with its part of `values`, divided by `divisor`.
    pub fn step(
        &mut self,
        rows: &mut Rows,
        positions: &[u32],
        (values, divisor): (Input<'_>, f32),
        optimizer: &dyn Optimizer,
    ) {
        let dim = rows.shape().dim;
        // Without scalars nothing tells the elements of one row from those of another (see `Optimizer`).
        let aside = optimizer.scalars() == 0 && dim < NARROW;
        if !aside && divisor == 1.0 {
            return step_each(rows, positions, values, optimizer);
        }
        let some = (BLOCK / dim).max(1);
        for (n, positions) in positions.chunks(some).enumerate() {
            (0..AHEAD).for_each(|i| fetch(rows, positions, i));
            self.gradient.resize(positions.len() * dim, 0.0);
            kernels::widen(&mut self.gradient[..], values.part(n * some * dim, positions.len() * dim));
            if divisor != 1.0 {
                kernels::divide(&mut self.gradient, divisor);
            }
            if aside {
                self.step_aside(rows, positions, optimizer);
            } else {
                for (i, gradient) in self.gradient.chunks_exact(dim).enumerate() {
                    fetch(rows, positions, i + AHEAD);
                    let position = positions[i];
                    let (parameters, state) = rows.get_mut(position).split_at_mut(dim);
                    State::of_part(state, dim, 0, optimizer).step_with(optimizer, parameters, gradient);
                }
            }
        }
    }

    /// One step of all rows at once, in copies.
    fn step_aside(&mut self, rows: &mut Rows, positions: &[u32], optimizer: &dyn Optimizer) {
        let (dim, width) = (rows.shape().dim, optimizer.state_width());
        let all = positions.len() * dim;
        self.parameters.resize(all, 0.0);
        self.planes.resize(all * width, 0.0);
        if dim == 1 && width == 0 {
            return self.step_numbers(rows, positions, optimizer);
        }
        for (i, &position) in positions.iter().enumerate() {
            fetch(rows, positions, i + AHEAD);
            let row = rows.get(position);
            self.parameters[i * dim..][..dim].copy_from_slice(&row[..dim]);
            for plane in 0..width {
                self.planes[plane * all + i * dim..][..dim].copy_from_slice(&row[(1 + plane) * dim..][..dim]);
            }
        }
        let mut planes = self.planes.chunks_exact_mut(all);
        let mut planes: [&mut [f32]; MAX_STATE_WIDTH] =
            std::array::from_fn(|_| planes.next().unwrap_or_default());
        optimizer.step(&mut self.parameters, &mut planes[..width], &[], &self.gradient);
        for (i, &position) in positions.iter().enumerate() {
            let row = rows.get_mut(position);
            row[..dim].copy_from_slice(&self.parameters[i * dim..][..dim]);
            for plane in 0..width {
                row[(1 + plane) * dim..][..dim].copy_from_slice(&self.planes[plane * all + i * dim..][..dim]);
            }
        }
    }

    /// The same for rows of one number. Nothing is fetched ahead: the loads are so few instructions apart that the CPU has as many under
    /// way as it can.
    #[inline(never)] // as `step_each`
    fn step_numbers(&mut self, rows: &mut Rows, positions: &[u32], optimizer: &dyn Optimizer) {
        for (copy, &position) in self.parameters.iter_mut().zip(positions) {
            *copy = rows.get(position)[0];
        }
        optimizer.step(&mut self.parameters, &mut [], &[], &self.gradient);
        for (copy, &position) in self.parameters.iter().zip(positions) {
            rows.get_mut(position)[0] = *copy;
        }
    }
}

/// One step of each row where it lies.
#[inline(never)] // by itself the compiler makes more of it
fn step_each(rows: &mut Rows, positions: &[u32], values: Input<'_>, optimizer: &dyn Optimizer) {
    let dim = rows.shape().dim;
    let bare = optimizer.scalars() == 0 && optimizer.state_width() == 0;
    for (i, &position) in positions.iter().enumerate() {
        fetch(rows, positions, i + AHEAD);
        let (row, values) = (rows.get_mut(position), values.part(i * dim, dim));
        // Without state there is nothing to begin, or to cut.
        if bare
            && let Input::F32(values) = values
            && optimizer.step_in_place(row, &mut [], &[], values)
        {
            continue;
        }
        let (parameters, state) = row.split_at_mut(dim);
        let gradient = Gradient::Piece(values);
        State::of_part(state, dim, 0, optimizer).step(optimizer, parameters, None, gradient);
    }
}

/// Has the CPU fetch the row at one of these positions, if there are so many.
#[inline(always)]
fn fetch(rows: &Rows, positions: &[u32], i: usize) {
    if let Some(&position) = positions.get(i) {
        rows.prefetch(position);
    }
}
