//! The built-in update rules against other implementations: committed figures of torch.optim and of the published
//! FTRL-Proximal (`scripts/golden_optimizers.py` makes them), and the definitions in f64.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

use std::collections::BTreeMap;

use serde::Deserialize;
use windlass::store::{Optimizer, Optimizers};
use windlass::types::OptimizerSpec;

/// The largest error allowed, relative to the value.
const TOLERANCE: f64 = 1e-5;

/// Parameters with all that their optimizer keeps.
struct Trained {
    optimizer: Box<dyn Optimizer>,
    weights: Vec<f32>,
    planes: Vec<Vec<f32>>,
    scalars: Vec<f32>,
}

impl Trained {
    fn new(spec: &OptimizerSpec, start: Vec<f32>) -> Trained {
        let optimizer = Optimizers::default().build(spec).unwrap();
        let planes = vec![vec![0.0; start.len()]; optimizer.state_width()];
        let scalars = vec![0.0; optimizer.scalars()];
        Trained { optimizer, weights: start, planes, scalars }
    }

    fn step(&mut self, gradient: &[f32]) {
        self.optimizer.begin(&mut self.scalars);
        let mut planes: Vec<&mut [f32]> = self.planes.iter_mut().map(Vec::as_mut_slice).collect();
        self.optimizer.step(&mut self.weights, &mut planes, &self.scalars, gradient);
    }
}

#[derive(Deserialize)]
struct Golden {
    gradients: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    parameters: BTreeMap<String, f32>,
    source: String,
    start: Vec<f32>,
    /// After so many steps.
    weights: BTreeMap<usize, Vec<f64>>,
}

#[test]
fn rules_agree_with_other_implementations() {
    let golden: Golden = serde_json::from_str(include_str!("golden/optimizers.json")).unwrap();
    assert_eq!(golden.gradients.len(), 100);
    let mut seen = Vec::new();
    for case in golden.cases {
        let parameters: Vec<(&str, f32)> = case.parameters.iter().map(|(n, &v)| (n.as_str(), v)).collect();
        let mut trained = Trained::new(&OptimizerSpec::new(&case.name, &parameters), case.start);
        let mut compared = 0;
        for (step, gradient) in (1..).zip(&golden.gradients) {
            trained.step(gradient);
            let Some(expected) = case.weights.get(&step) else { continue };
            for (i, (&found, &expected)) in trained.weights.iter().zip(expected).enumerate() {
                let error = (f64::from(found) - expected).abs();
                assert!(
                    error <= TOLERANCE * expected.abs(),
                    "{} against {}, parameter {i} after {step} steps: {found}, expected {expected}",
                    case.name,
                    case.source
                );
            }
            compared += 1;
        }
        assert_eq!(compared, case.weights.len());
        seen.push(case.name);
    }
    assert_eq!(seen, ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "ftrl"]);
}

/// One parameter in f64, by the definitions. `a` and `b` are its state, `t` counts steps from 1.
struct Reference<'a> {
    spec: &'a OptimizerSpec,
    w: f64,
    a: f64,
    b: f64,
    t: i32,
}

impl Reference<'_> {
    fn value(&self, name: &str) -> f64 {
        self.spec.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| f64::from(*v)).unwrap()
    }

    fn step(&mut self, g: f64) {
        self.t += 1;
        match self.spec.name.as_str() {
            "assign" => self.w = g,
            "sum" => self.w += g,
            "sgd" => self.w -= self.value("rate") * g,
            "momentum" | "nesterov" => self.momentum(g),
            "adagrad" => {
                self.a += g * g;
                self.w -= self.value("rate") * g / (self.a.sqrt() + self.value("epsilon"));
            }
            "rmsprop" => {
                let alpha = self.value("alpha");
                self.a = alpha * self.a + (1.0 - alpha) * g * g;
                self.w -= self.value("rate") * g / (self.a.sqrt() + self.value("epsilon"));
            }
            "adam" => self.adam(g),
            "adamw" => {
                self.w *= 1.0 - self.value("rate") * self.value("weight_decay");
                self.adam(g);
            }
            "ftrl" => self.ftrl(g),
            other => panic!("no definition of {other}"),
        }
    }

    fn momentum(&mut self, g: f64) {
        let momentum = self.value("momentum");
        self.a = momentum * self.a + g;
        let direction = if self.spec.name == "nesterov" { g + momentum * self.a } else { self.a };
        self.w -= self.value("rate") * direction;
    }

    fn adam(&mut self, g: f64) {
        let (beta1, beta2) = (self.value("beta1"), self.value("beta2"));
        self.a = beta1 * self.a + (1.0 - beta1) * g;
        self.b = beta2 * self.b + (1.0 - beta2) * g * g;
        let mean = self.a / (1.0 - beta1.powi(self.t));
        let square = self.b / (1.0 - beta2.powi(self.t));
        self.w -= self.value("rate") * mean / (square.sqrt() + self.value("epsilon"));
    }

    fn ftrl(&mut self, g: f64) {
        let (alpha, l1) = (self.value("alpha"), self.value("l1"));
        let sigma = ((self.b + g * g).sqrt() - self.b.sqrt()) / alpha;
        self.a += g - sigma * self.w;
        self.b += g * g;
        let rate = (self.value("beta") + self.b.sqrt()) / alpha + self.value("l2");
        self.w = if self.a.abs() <= l1 { 0.0 } else { -(self.a - self.a.signum() * l1) / rate };
    }
}

/// A seeded sequence of numbers from −1 to 1, exact in fp32.
fn noise(seed: u64) -> impl Iterator<Item = f32> {
    (0..).map(move |i: u64| {
        let bits = windlass::types::mix64(seed ^ i) >> 40;
        (bits as f32 - f32::from(1u16 << 15) * 256.0) / (f32::from(1u16 << 15) * 256.0)
    })
}

#[test]
fn a_hundred_steps_stay_close_to_f64() {
    const WIDTH: usize = 1000;
    for spec in [
        OptimizerSpec::assign(),
        OptimizerSpec::sum(),
        OptimizerSpec::sgd(0.1),
        OptimizerSpec::momentum(0.01, 0.9),
        OptimizerSpec::nesterov(0.01, 0.9),
        OptimizerSpec::adagrad(0.1, 1e-10),
        OptimizerSpec::rmsprop(0.01, 0.99, 1e-8),
        OptimizerSpec::adam(0.01, 0.9, 0.999, 1e-8),
        OptimizerSpec::adamw(0.01, 0.9, 0.999, 1e-8, 0.01),
        OptimizerSpec::ftrl(0.1, 1.0, 0.1, 0.01),
    ] {
        // FTRL's parameters follow from its state and so start at 0.
        let start: Vec<f32> = match spec.name.as_str() {
            "ftrl" => vec![0.0; WIDTH],
            _ => noise(7 << 32).take(WIDTH).collect(),
        };
        let reference = |&w: &f32| Reference { spec: &spec, w: f64::from(w), a: 0.0, b: 0.0, t: 0 };
        let mut references: Vec<Reference<'_>> = start.iter().map(reference).collect();
        let mut largest: Vec<f64> = start.iter().map(|&w| f64::from(w).abs()).collect();
        let mut trained = Trained::new(&spec, start);
        for step in 0..100u64 {
            let gradient: Vec<f32> = noise(step << 20).take(WIDTH).map(|g| g + 0.2).collect();
            trained.step(&gradient);
            for (i, reference) in references.iter_mut().enumerate() {
                reference.step(f64::from(gradient[i]));
                largest[i] = largest[i].max(reference.w.abs());
                let error = (f64::from(trained.weights[i]) - reference.w).abs();
                // Near a change of sign no fp32 has the relative precision: what counts is how large the parameter was.
                assert!(
                    error <= TOLERANCE * largest[i],
                    "{}, parameter {i} at step {step}: {}, expected {}",
                    spec.name,
                    trained.weights[i],
                    reference.w
                );
            }
        }
        assert!(largest.iter().all(|&w| w > 0.0), "{}: nothing moved", spec.name);
    }
}
