//! The optimizer's state of one bucket or row, and a step with it.

use super::optimizer::{MAX_STATE_WIDTH, Optimizer};
use crate::kernels::{self, Gradient, Input};

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
    #[inline]
    pub fn of_part(state: &'a mut [f32], whole: usize, first: usize, optimizer: &dyn Optimizer) -> State<'a> {
        let (planes, scalars) = state.split_at_mut(whole * optimizer.state_width());
        State { planes, whole, first, scalars }
    }

    /// Steps `parameters` with `gradient`, block by block in one pass over memory; starting from `old`, as long as they are,
    /// where that is given.
    #[inline]
    pub fn step(
        self,
        optimizer: &dyn Optimizer,
        parameters: &mut [f32],
        old: Option<&[f32]>,
        gradient: Gradient<'_>,
    ) {
        let State { planes, whole, first, scalars } = self;
        optimizer.begin(scalars);
        if let (Gradient::Piece(Input::F32(values)), None) = (&gradient, old) {
            let mut parts = cut(planes, whole, first, parameters.len());
            let parts = &mut parts[..optimizer.state_width()];
            if optimizer.step_in_place(parameters, parts, scalars, *values) {
                return;
            }
        }
        kernels::pass(parameters, gradient, None, |range, parameters, gradient| {
            if let Some(old) = old {
                parameters.copy_from_slice(&old[range.clone()]);
            }
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
#[inline(always)]
fn cut(planes: &mut [f32], whole: usize, first: usize, length: usize) -> [&mut [f32]; MAX_STATE_WIDTH] {
    let mut planes = planes.chunks_exact_mut(whole);
    std::array::from_fn(|_| match planes.next() {
        Some(plane) => &mut plane[first..first + length],
        None => &mut [],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Optimizers;
    use crate::types::{OptimizerSpec, mix64};

    const LENGTH: usize = 2 * kernels::BLOCK + 77;

    fn adam() -> Box<dyn Optimizer> {
        Optimizers::default().build(&OptimizerSpec::adam(0.1, 0.9, 0.999, 1e-8)).unwrap()
    }

    fn noise(seed: u64) -> Vec<f32> {
        (0..LENGTH as u64).map(|i| (mix64(seed << 32 | i) >> 40) as f32 / 16_777_216.0 - 0.5).collect()
    }

    fn state_of(optimizer: &dyn Optimizer) -> Vec<f32> {
        vec![0.0; LENGTH * optimizer.state_width() + optimizer.scalars()]
    }

    #[test]
    fn blocks_give_the_bits_of_one_go() {
        let adam = adam();
        let (mut blocks, mut whole) = (noise(0), noise(0));
        let (mut blocks_state, mut whole_state) = (state_of(adam.as_ref()), state_of(adam.as_ref()));
        for step in 1..5 {
            let gradient = noise(step);
            let mut sum = gradient.clone();
            let folded = Gradient::Fold { sum: Some(&mut sum), pieces: &[], divisor: 1.0 };
            let state = State::of_part(&mut blocks_state, LENGTH, 0, adam.as_ref());
            state.step(adam.as_ref(), &mut blocks, None, folded);
            let state = State::of_part(&mut whole_state, LENGTH, 0, adam.as_ref());
            state.step_with(adam.as_ref(), &mut whole, &gradient);
            assert!(sum.iter().all(|&s| s.to_bits() == 0));
        }
        assert_eq!(blocks, whole);
        assert_eq!(blocks_state, whole_state);
        assert_ne!(whole, noise(0));
    }

    #[test]
    fn a_part_steps_alone_with_its_part_of_the_state() {
        let adam = adam();
        let gradient = noise(1);
        let (mut parts, mut whole) = (noise(0), noise(0));
        let (mut parts_state, mut whole_state) = (state_of(adam.as_ref()), state_of(adam.as_ref()));
        let state = State::of_part(&mut whole_state, LENGTH, 0, adam.as_ref());
        state.step_with(adam.as_ref(), &mut whole, &gradient);

        let (first, length) = (100, LENGTH - 300);
        let state = State::of_part(&mut parts_state, LENGTH, first, adam.as_ref());
        let piece = Gradient::Piece((&gradient[first..first + length]).into());
        state.step(adam.as_ref(), &mut parts[first..first + length], None, piece);
        let mut expected = noise(0);
        expected[first..first + length].copy_from_slice(&whole[first..first + length]);
        assert_eq!(parts, expected);
        assert!(parts_state[..first].iter().all(|&s| s == 0.0));
        assert_eq!(parts_state[first..first + length], whole_state[first..first + length]);
        assert_eq!(parts_state[2 * LENGTH..], whole_state[2 * LENGTH..]);
    }

    #[test]
    fn steps_are_counted_in_the_scalars() {
        let adam = adam();
        let mut scalars = [0.0f32; 2];
        for step in 1..=2000 {
            adam.begin(&mut scalars);
            for (corrected, beta) in scalars.iter().zip([0.9f32, 0.999]) {
                let expected = 1.0 - f64::from(beta).powi(step);
                assert!((f64::from(*corrected) - expected).abs() <= 2e-5 * expected, "{step}: {corrected}");
            }
        }
    }
}
