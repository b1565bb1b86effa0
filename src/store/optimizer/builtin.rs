//! The built-in update rules: kernels, with what they keep from step to step.

use super::Optimizer;
use crate::kernels::{self, Rule};
use crate::mem::Floats;

/// A rule that needs nothing but its planes.
pub struct Plain<R, const PLANES: usize>(pub R);

impl<R: Rule<PLANES> + Send, const PLANES: usize> Optimizer for Plain<R, PLANES> {
    fn state_width(&self) -> usize {
        PLANES
    }

    fn step(&self, parameters: &mut [f32], state: &mut [&mut [f32]], scalars: &[f32], gradient: &[f32]) {
        self.step_in_place(parameters, state, scalars, gradient.into());
    }

    fn step_in_place(
        &self,
        parameters: &mut [f32],
        state: &mut [&mut [f32]],
        _: &[f32],
        gradient: Floats<'_>,
    ) -> bool {
        kernels::step(self.0, parameters, planes(state), gradient);
        true
    }
}

/// Adam, or AdamW where there is a weight decay, as PyTorch has them (without AMSGrad).
///
/// The bias corrections 1 − beta^t are two scalars, u ← beta · u + (1 − beta) from 0: repeated multiplication as for
/// beta^t itself, but without the cancellation that makes 1 − beta^t coarse in fp32 while t is small. What counts as a step
/// is one of a dense bucket, and in a sparse table one of that row: a row nobody touched does not age ("lazy" Adam).
pub struct Adaptive {
    /// The learning rate.
    pub rate: f32,
    /// How much of the old mean is kept.
    pub beta1: f32,
    /// How much of the old mean square is kept.
    pub beta2: f32,
    /// Keeps the divisor off 0.
    pub epsilon: f32,
    /// AdamW's weight decay, to be multiplied by the rate.
    pub decay: Option<f32>,
}

impl Optimizer for Adaptive {
    fn state_width(&self) -> usize {
        2
    }

    fn scalars(&self) -> usize {
        2
    }

    fn begin(&self, scalars: &mut [f32]) {
        for (corrected, beta) in scalars.iter_mut().zip([self.beta1, self.beta2]) {
            *corrected = beta * *corrected + (1.0 - beta);
        }
    }

    fn step(&self, parameters: &mut [f32], state: &mut [&mut [f32]], scalars: &[f32], gradient: &[f32]) {
        self.step_in_place(parameters, state, scalars, gradient.into());
    }

    fn step_in_place(
        &self,
        parameters: &mut [f32],
        state: &mut [&mut [f32]],
        scalars: &[f32],
        gradient: Floats<'_>,
    ) -> bool {
        let adam = kernels::Adam {
            rate: self.rate / scalars[0],
            root: scalars[1].sqrt(),
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
        };
        match self.decay {
            None => kernels::step(adam, parameters, planes(state), gradient),
            Some(decay) => {
                let rule = kernels::AdamW { shrink: self.rate * decay, adam };
                kernels::step(rule, parameters, planes(state), gradient);
            }
        }
        true
    }
}

/// The planes as an array. A missing one is empty, which the kernel refuses.
fn planes<'a, const PLANES: usize>(state: &'a mut [&mut [f32]]) -> [&'a mut [f32]; PLANES] {
    let mut planes = state.iter_mut();
    std::array::from_fn(|_| match planes.next() {
        Some(plane) => &mut **plane,
        None => &mut [],
    })
}
