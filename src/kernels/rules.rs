//! The update rules, lane by lane: `w` is the parameter, `g` the gradient, the state whatever the rule keeps per
//! parameter. Every state starts at 0. The operations stand in the order in which they are rounded.
//!
//! The conventions are PyTorch's (`torch.optim`, version 1.13 and later) where PyTorch has the rule.

use super::lanes::Lanes;
use super::table::{Step, Table};

/// An update rule with `PLANES` fp32 of state for each parameter.
pub trait Rule<const PLANES: usize>: Copy {
    /// Whether parameters that the state does not imply are lost at the first step.
    const WEIGHTS_FOLLOW_STATE: bool = false;

    /// The new parameter and state.
    fn step<L: Lanes>(self, w: L, state: [L; PLANES], g: L) -> (L, [L; PLANES]);

    /// The rule's place in the table of kernels.
    #[doc(hidden)]
    fn kernel(table: &Table) -> Step<Self, PLANES>;
}

/// `w ← g`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assign;

impl Rule<0> for Assign {
    #[inline(always)]
    fn step<L: Lanes>(self, _: L, _: [L; 0], g: L) -> (L, [L; 0]) {
        (g, [])
    }

    fn kernel(table: &Table) -> Step<Assign, 0> {
        table.assign
    }
}

/// `w ← w + g`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sum;

impl Rule<0> for Sum {
    #[inline(always)]
    fn step<L: Lanes>(self, w: L, _: [L; 0], g: L) -> (L, [L; 0]) {
        (w + g, [])
    }

    fn kernel(table: &Table) -> Step<Sum, 0> {
        table.sum
    }
}

/// Plain stochastic gradient descent: `w ← w − rate · g`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// The learning rate.
    pub rate: f32,
}

impl Rule<0> for Sgd {
    #[inline(always)]
    fn step<L: Lanes>(self, w: L, _: [L; 0], g: L) -> (L, [L; 0]) {
        (w - g.splat(self.rate) * g, [])
    }

    fn kernel(table: &Table) -> Step<Sgd, 0> {
        table.sgd
    }
}

/// Heavy-ball momentum as in PyTorch's SGD without dampening: `m ← momentum · m + g`, `w ← w − rate · m`.
/// (Others fold the rate into m; that differs once the rate changes.)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Momentum {
    /// The learning rate.
    pub rate: f32,
    /// μ, how much of the last direction is kept.
    pub momentum: f32,
}

impl Rule<1> for Momentum {
    #[inline(always)]
    fn step<L: Lanes>(self, w: L, [m]: [L; 1], g: L) -> (L, [L; 1]) {
        let m = g.splat(self.momentum) * m + g;
        (w - g.splat(self.rate) * m, [m])
    }

    fn kernel(table: &Table) -> Step<Momentum, 1> {
        table.momentum
    }
}

/// Nesterov's momentum as in PyTorch's SGD with `nesterov=True`: `m ← momentum · m + g`,
/// `w ← w − rate · (g + momentum · m)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nesterov {
    /// The learning rate.
    pub rate: f32,
    /// μ, how much of the last direction is kept.
    pub momentum: f32,
}

impl Rule<1> for Nesterov {
    #[inline(always)]
    fn step<L: Lanes>(self, w: L, [m]: [L; 1], g: L) -> (L, [L; 1]) {
        let momentum = g.splat(self.momentum);
        let m = momentum * m + g;
        (w - g.splat(self.rate) * (g + momentum * m), [m])
    }

    fn kernel(table: &Table) -> Step<Nesterov, 1> {
        table.nesterov
    }
}

/// Adagrad (Duchi, Hazan, Singer, JMLR 2011): `s ← s + g²`, `w ← w − rate · g / (√s + epsilon)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adagrad {
    /// The learning rate.
    pub rate: f32,
    /// Keeps the divisor off 0.
    pub epsilon: f32,
}

impl Rule<1> for Adagrad {
    #[inline(always)]
    fn step<L: Lanes>(self, w: L, [s]: [L; 1], g: L) -> (L, [L; 1]) {
        let s = s + g * g;
        (w - g.splat(self.rate) * g / (s.sqrt() + g.splat(self.epsilon)), [s])
    }

    fn kernel(table: &Table) -> Step<Adagrad, 1> {
        table.adagrad
    }
}

/// RMSprop (Tieleman and Hinton, 2012), not centred: `s ← alpha · s + (1 − alpha) · g²`,
/// `w ← w − rate · g / (√s + epsilon)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsProp {
    /// The learning rate.
    pub rate: f32,
    /// How much of the old mean square is kept.
    pub alpha: f32,
    /// Keeps the divisor off 0.
    pub epsilon: f32,
}

impl Rule<1> for RmsProp {
    #[inline(always)]
    fn step<L: Lanes>(self, w: L, [s]: [L; 1], g: L) -> (L, [L; 1]) {
        let s = g.splat(self.alpha) * s + g.splat(1.0 - self.alpha) * (g * g);
        (w - g.splat(self.rate) * g / (s.sqrt() + g.splat(self.epsilon)), [s])
    }

    fn kernel(table: &Table) -> Step<RmsProp, 1> {
        table.rmsprop
    }
}

/// One step of Adam (Kingma and Ba, ICLR 2015), its bias corrections worked into `rate` and `root`:
/// `m ← beta1 · m + (1 − beta1) · g`, `v ← beta2 · v + (1 − beta2) · g²`, `w ← w − rate · m / (√v / root + epsilon)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// The learning rate divided by 1 − beta1^t, where t counts the steps from 1.
    pub rate: f32,
    /// √(1 − beta2^t).
    pub root: f32,
    /// How much of the old mean is kept.
    pub beta1: f32,
    /// How much of the old mean square is kept.
    pub beta2: f32,
    /// Keeps the divisor off 0.
    pub epsilon: f32,
}

impl Rule<2> for Adam {
    #[inline(always)]
    fn step<L: Lanes>(self, w: L, [m, v]: [L; 2], g: L) -> (L, [L; 2]) {
        let m = g.splat(self.beta1) * m + g.splat(1.0 - self.beta1) * g;
        let v = g.splat(self.beta2) * v + g.splat(1.0 - self.beta2) * (g * g);
        let divisor = v.sqrt() / g.splat(self.root) + g.splat(self.epsilon);
        (w - g.splat(self.rate) * m / divisor, [m, v])
    }

    fn kernel(table: &Table) -> Step<Adam, 2> {
        table.adam
    }
}

/// One step of AdamW (Loshchilov and Hutter, ICLR 2019): `w ← w − shrink · w`, then Adam's step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate × weight decay.
    pub shrink: f32,
    /// The step that follows.
    pub adam: Adam,
}

impl Rule<2> for AdamW {
    #[inline(always)]
    fn step<L: Lanes>(self, w: L, state: [L; 2], g: L) -> (L, [L; 2]) {
        self.adam.step(w - g.splat(self.shrink) * w, state, g)
    }

    fn kernel(table: &Table) -> Step<AdamW, 2> {
        table.adamw
    }
}

/// FTRL-Proximal with per-coordinate learning rates (McMahan et al., KDD 2013, Algorithm 1). The state is z and n. A
/// parameter whose |z| does not exceed λ₁ is exactly +0.
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

impl Rule<2> for Ftrl {
    const WEIGHTS_FOLLOW_STATE: bool = true;

    #[inline(always)]
    fn step<L: Lanes>(self, w: L, [z, n]: [L; 2], g: L) -> (L, [L; 2]) {
        let (alpha, l1, zero) = (g.splat(self.alpha), g.splat(self.l1), g.splat(0.0));
        let squares = n + g * g;
        let root = squares.sqrt();
        let sigma = (root - n.sqrt()) / alpha;
        let z = z + (g - sigma * w);
        let shrunk = z.if_le(zero, z + l1, z - l1);
        let w = shrunk.negated() / ((g.splat(self.beta) + root) / alpha + g.splat(self.l2));
        (z.abs().if_le(l1, zero, w), [z, squares])
    }

    fn kernel(table: &Table) -> Step<Ftrl, 2> {
        table.ftrl
    }
}
