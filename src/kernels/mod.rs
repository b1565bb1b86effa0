//! Arithmetic on fp32 lanes. Every result is fixed to the bit: + − × ÷ √ in the order written, no FMA, no libm.
//!
//! These are the scalar forms, the oracle that every SIMD path has to agree with.

use crate::mem::Floats;

/// `sum[i] += values[i]`.
///
/// # Panics
/// When the lengths differ.
pub fn accumulate(sum: &mut [f32], values: Floats<'_>) {
    assert_eq!(sum.len(), values.len());
    for (i, s) in sum.iter_mut().enumerate() {
        *s += values.at(i);
    }
}

/// `values[i] /= divisor`.
pub fn divide(values: &mut [f32], divisor: f32) {
    for v in values {
        *v /= divisor;
    }
}

/// Plain stochastic gradient descent: `w ← w − rate · g`.
///
/// # Panics
/// When the lengths differ.
pub fn sgd(parameters: &mut [f32], gradient: &[f32], rate: f32) {
    assert_eq!(parameters.len(), gradient.len());
    for (w, g) in parameters.iter_mut().zip(gradient) {
        *w -= rate * g;
    }
}

/// The hyper-parameters of FTRL-Proximal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ftrl {
    /// α, the learning rate's scale.
    pub alpha: f32,
    /// β, what the root of the squared gradients starts from.
    pub beta: f32,
    /// λ₁.
    pub l1: f32,
    /// λ₂.
    pub l2: f32,
}

/// FTRL-Proximal with per-coordinate learning rates (McMahan et al., KDD 2013, Algorithm 1).
/// `z` and `n` start at 0. A parameter whose |z| does not exceed λ₁ is exactly +0.
///
/// # Panics
/// When the lengths differ.
pub fn ftrl(parameters: &mut [f32], z: &mut [f32], n: &mut [f32], gradient: &[f32], rule: Ftrl) {
    let length = parameters.len();
    assert!(z.len() == length && n.len() == length && gradient.len() == length);
    for i in 0..length {
        let g = gradient[i];
        let squares = n[i] + g * g;
        let root = squares.sqrt();
        let sigma = (root - n[i].sqrt()) / rule.alpha;
        z[i] += g - sigma * parameters[i];
        n[i] = squares;
        parameters[i] = if z[i].abs() <= rule.l1 {
            0.0
        } else {
            let shrunk = if z[i] > 0.0 { z[i] - rule.l1 } else { z[i] + rule.l1 };
            -shrunk / ((rule.beta + root) / rule.alpha + rule.l2)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_start_from_positive_zero() {
        let mut sum = [0.0f32; 2];
        accumulate(&mut sum, Floats::from(&[-0.0f32, 1.0][..]));
        assert_eq!(sum.map(f32::to_bits), [0.0f32, 1.0].map(f32::to_bits));
    }

    #[test]
    fn ftrl_follows_the_published_steps() {
        let rule = Ftrl { alpha: 0.5, beta: 1.0, l1: 0.1, l2: 0.01 };
        let (mut w, mut z, mut n) = ([0.0f32], [0.0f32], [0.0f32]);
        let (mut w64, mut z64, mut n64) = (0.0f64, 0.0f64, 0.0f64);
        for step in 0..100u16 {
            let g = f32::from(step % 7) / 4.0 - 0.6;
            ftrl(&mut w, &mut z, &mut n, &[g], rule);
            // Algorithm 1, in f64 and in the paper's order: the weight is derived from z and n at the next visit.
            let g = f64::from(g);
            let sigma = ((n64 + g * g).sqrt() - n64.sqrt()) / 0.5;
            z64 += g - sigma * w64;
            n64 += g * g;
            w64 = if z64.abs() <= 0.1 {
                0.0
            } else {
                -(z64 - z64.signum() * 0.1) / ((1.0 + n64.sqrt()) / 0.5 + 0.01)
            };
        }
        assert!((f64::from(w[0]) - w64).abs() <= 1e-5 * w64.abs(), "{} {w64}", w[0]);
        assert!(w64 != 0.0);
    }

    #[test]
    fn a_zero_gradient_changes_no_bit() {
        let rule = Ftrl { alpha: 0.5, beta: 1.0, l1: 0.1, l2: 0.01 };
        let (mut w, mut z, mut n) = ([0.0f32; 1], [0.0f32; 1], [0.0f32; 1]);
        ftrl(&mut w, &mut z, &mut n, &[0.7], rule);
        let before = (w, z, n);
        ftrl(&mut w, &mut z, &mut n, &[0.0], rule);
        assert_eq!((w, z, n), before);
    }
}
