//! The optimizer's state of one bucket or row, and a step with it.

use super::optimizer::{MAX_STATE_WIDTH, Optimizer};
use crate::kernels::{self, Gradient};

/// The state of some neighbouring parameters: their part of each plane, and the scalars of the whole.
pub struct State<'a> {
    planes: &'a mut [f32],
    /// Parameters of the whole bucket or row: the length of a plane.
    whole: usize,
    first: usize,
    scalars: &'a mut [f32],
}

impl<'a> State<'a> {
    /// The state of the parameters from `first` on. `state` is that of all `whole` parameters: planes, then scalars.
    pub fn of_part(state: &'a mut [f32], whole: usize, first: usize, optimizer: &dyn Optimizer) -> State<'a> {
        let (planes, scalars) = state.split_at_mut(whole * optimizer.state_width());
        State { planes, whole, first, scalars }
    }

    /// Steps `parameters` with `gradient`, block by block in one pass over memory.
    pub fn step(self, optimizer: &dyn Optimizer, parameters: &mut [f32], gradient: Gradient<'_>) {
        let State { planes, whole, first, scalars } = self;
        optimizer.begin(scalars);
        kernels::pass(parameters, gradient, None, |range, parameters, gradient| {
            let mut parts = cut(planes, whole, first + range.start, range.len());
            optimizer.step(parameters, &mut parts[..optimizer.state_width()], scalars, gradient);
        });
    }

    /// Steps `parameters` with `gradient` in one go.
    pub fn step_with(self, optimizer: &dyn Optimizer, parameters: &mut [f32], gradient: &[f32]) {
        let State { planes, whole, first, scalars } = self;
        optimizer.begin(scalars);
        let mut parts = cut(planes, whole, first, parameters.len());
        optimizer.step(parameters, &mut parts[..optimizer.state_width()], scalars, gradient);
    }
}

/// `length` values from `first` on of each plane of `whole`; empty where there is no plane.
fn cut(planes: &mut [f32], whole: usize, first: usize, length: usize) -> [&mut [f32]; MAX_STATE_WIDTH] {
    let mut planes = planes.chunks_exact_mut(whole);
    std::array::from_fn(|_| match planes.next() {
        Some(plane) => &mut plane[first..first + length],
        None => &mut [],
    })
}
