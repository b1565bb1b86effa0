//! The kernels again, as naively as they can be written: number by number, from the definitions.

use half::{bf16, f16};

/// A format and the bits of numbers in it.
#[derive(Debug, Clone)]
pub enum Numbers {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

impl Numbers {
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(v) => v.len(),
            Numbers::F16(v) | Numbers::Bf16(v) => v.len(),
        }
    }

    pub fn at(&self, i: usize) -> f32 {
        match self {
            Numbers::F32(v) => v[i],
            Numbers::F16(v) => f16::from_bits(v[i]).to_f32(),
            Numbers::Bf16(v) => bf16::from_bits(v[i]).to_f32(),
        }
    }
}

pub fn fold(sum: &mut [f32], pieces: &[Numbers], divisor: f32) {
    for piece in pieces {
        for (i, s) in sum.iter_mut().enumerate() {
            *s += piece.at(i);
        }
    }
    if divisor != 1.0 {
        for s in sum {
            *s /= divisor;
        }
    }
}

/// Product i goes to sum i mod 16; then the sums are added pairwise, those eight apart first.
pub fn dot(a: &Numbers, b: &Numbers) -> f32 {
    let mut s = [0.0f32; 16];
    for i in 0..a.len() {
        s[i % 16] += a.at(i) * b.at(i);
    }
    let eight: Vec<f32> = (0..8).map(|i| s[i] + s[i + 8]).collect();
    let four: Vec<f32> = (0..4).map(|i| eight[i] + eight[i + 4]).collect();
    (four[0] + four[2]) + (four[1] + four[3])
}

pub fn sgd(w: f32, g: f32, rate: f32) -> f32 {
    w - rate * g
}

pub fn momentum(w: &mut f32, m: &mut f32, g: f32, rate: f32, mu: f32) {
    *m = mu * *m + g;
    *w -= rate * *m;
}

pub fn nesterov(w: &mut f32, m: &mut f32, g: f32, rate: f32, mu: f32) {
    *m = mu * *m + g;
    *w -= rate * (g + mu * *m);
}

pub fn adagrad(w: &mut f32, s: &mut f32, g: f32, rate: f32, epsilon: f32) {
    *s += g * g;
    *w -= (rate * g) / (s.sqrt() + epsilon);
}

pub fn rmsprop(w: &mut f32, s: &mut f32, g: f32, [rate, alpha, epsilon]: [f32; 3]) {
    *s = alpha * *s + (1.0 - alpha) * (g * g);
    *w -= (rate * g) / (s.sqrt() + epsilon);
}

pub fn adam(w: &mut f32, [m, v]: [&mut f32; 2], g: f32, rule: super::super::Adam) {
    *m = rule.beta1 * *m + (1.0 - rule.beta1) * g;
    *v = rule.beta2 * *v + (1.0 - rule.beta2) * (g * g);
    *w -= (rule.rate * *m) / (v.sqrt() / rule.root + rule.epsilon);
}

pub fn ftrl(w: &mut f32, [z, n]: [&mut f32; 2], g: f32, rule: super::super::Ftrl) {
    let squares = *n + g * g;
    let sigma = (squares.sqrt() - n.sqrt()) / rule.alpha;
    *z += g - sigma * *w;
    *n = squares;
    *w = if z.abs() <= rule.l1 {
        0.0
    } else {
        let shrunk = if *z > 0.0 { *z - rule.l1 } else { *z + rule.l1 };
        -shrunk / ((rule.beta + squares.sqrt()) / rule.alpha + rule.l2)
    };
}
