//! Update rules: the built-in ones by name, and a user's own by trait.

mod builtin;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use self::Bound::{BelowOne, NotNegative, Positive};
use self::builtin::{Adaptive, Plain};
use crate::error::{Error, Result};
use crate::kernels;
use crate::mem::Floats;
use crate::types::OptimizerSpec;

/// The most planes of state that an optimizer may ask for.
pub const MAX_STATE_WIDTH: usize = 8;

/// A server-side update rule. It works element by element: the same gradient gives the same bits whatever the bucket it
/// lies in, and in whatever parts the bucket is stepped.
///
/// A momentum that forgets half at each step:
///
/// ```
/// use windlass::store::Optimizer;
///
/// struct Halving;
///
/// impl Optimizer for Halving {
///     fn state_width(&self) -> usize {
///         1
///     }
///
///     fn step(&self, parameters: &mut [f32], state: &mut [&mut [f32]], _: &[f32], gradient: &[f32]) {
///         for ((w, m), g) in parameters.iter_mut().zip(state[0].iter_mut()).zip(gradient) {
///             *m = 0.5 * *m + g;
///             *w -= 0.1 * *m;
///         }
///     }
/// }
///
/// let (mut w, mut m) = ([1.0], [0.0]);
/// Halving.step(&mut w, &mut [&mut m], &[], &[2.0]);
/// assert_eq!((w, m), ([0.8], [2.0]));
/// ```
pub trait Optimizer: Send {
    /// Planes of state: fp32 that each parameter needs, all starting at 0. At most [`MAX_STATE_WIDTH`].
    fn state_width(&self) -> usize;

    /// fp32 that each bucket of a dense table, or each row of a sparse one, needs once, all starting at 0: what depends on
    /// the number of its steps.
    fn scalars(&self) -> usize {
        0
    }

    /// A bucket or row begins a step: the only place where its `scalars` change. Under Bsp that is once for each clock that
    /// brought anything, else once for each piece.
    fn begin(&self, scalars: &mut [f32]) {
        let _ = scalars;
    }

    /// The step for some neighbouring parameters of that bucket or row. `state` holds `state_width` planes, each as long as
    /// `parameters` and `gradient`.
    fn step(&self, parameters: &mut [f32], state: &mut [&mut [f32]], scalars: &[f32], gradient: &[f32]);

    /// As [`Optimizer::step`], with a gradient where it arrived: a worker may be changing it, so each value may be read only
    /// once. False, with nothing done, where that can't be: then `step` is called with copies.
    fn step_in_place(
        &self,
        parameters: &mut [f32],
        state: &mut [&mut [f32]],
        scalars: &[f32],
        gradient: Floats<'_>,
    ) -> bool {
        let _ = (parameters, state, scalars, gradient);
        false
    }
}

type Factory = dyn Fn(&OptimizerSpec) -> Result<Box<dyn Optimizer>> + Send + Sync;

/// The update rules that a server knows by name.
#[derive(Clone)]
pub struct Optimizers {
    factories: BTreeMap<String, Arc<Factory>>,
}

impl fmt::Debug for Optimizers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.factories.keys()).finish()
    }
}

impl Default for Optimizers {
    /// `assign`, `sum`, `sgd`, `momentum`, `nesterov`, `adagrad`, `rmsprop`, `adam`, `adamw`, `ftrl`.
    fn default() -> Optimizers {
        let mut known = Optimizers { factories: BTreeMap::new() };
        known.add_simple();
        known.add_adaptive();
        known
    }
}

impl Optimizers {
    fn add_simple(&mut self) {
        self.add("assign", |spec| named(spec, [], |[]| Plain(kernels::Assign)));
        self.add("sum", |spec| named(spec, [], |[]| Plain(kernels::Sum)));
        self.add("sgd", |spec| named(spec, [("rate", NotNegative)], |[rate]| Plain(kernels::Sgd { rate })));
        let names = [("rate", NotNegative), ("momentum", BelowOne)];
        self.add("momentum", move |spec| {
            named(spec, names, |[rate, momentum]| Plain(kernels::Momentum { rate, momentum }))
        });
        self.add("nesterov", move |spec| {
            named(spec, names, |[rate, momentum]| Plain(kernels::Nesterov { rate, momentum }))
        });
    }

    fn add_adaptive(&mut self) {
        self.add("adagrad", |spec| {
            let names = [("rate", NotNegative), ("epsilon", Positive)];
            named(spec, names, |[rate, epsilon]| Plain(kernels::Adagrad { rate, epsilon }))
        });
        self.add("rmsprop", |spec| {
            let names = [("rate", NotNegative), ("alpha", BelowOne), ("epsilon", Positive)];
            named(spec, names, |[rate, alpha, epsilon]| Plain(kernels::RmsProp { rate, alpha, epsilon }))
        });
        let [rate, beta1, beta2, epsilon, decay] = [
            ("rate", NotNegative),
            ("beta1", BelowOne),
            ("beta2", BelowOne),
            ("epsilon", Positive),
            ("weight_decay", NotNegative),
        ];
        self.add("adam", move |spec| {
            named(spec, [rate, beta1, beta2, epsilon], |[rate, beta1, beta2, epsilon]| Adaptive {
                rate,
                beta1,
                beta2,
                epsilon,
                decay: None,
            })
        });
        self.add("adamw", move |spec| {
            let names = [rate, beta1, beta2, epsilon, decay];
            named(spec, names, |[rate, beta1, beta2, epsilon, decay]| Adaptive {
                rate,
                beta1,
                beta2,
                epsilon,
                decay: Some(decay),
            })
        });
        self.add("ftrl", |spec| {
            let names =
                [("alpha", Positive), ("beta", NotNegative), ("l1", NotNegative), ("l2", NotNegative)];
            named(spec, names, |[alpha, beta, l1, l2]| Plain(kernels::Ftrl { alpha, beta, l1, l2 }))
        });
    }

    /// Makes `name` known, in place of what it meant before.
    pub fn add(
        &mut self,
        name: &str,
        build: impl Fn(&OptimizerSpec) -> Result<Box<dyn Optimizer>> + Send + Sync + 'static,
    ) {
        self.factories.insert(name.to_owned(), Arc::new(build));
    }

    /// The rule that `spec` names; refused when the name or a parameter is unknown, missing or out of bounds.
    pub fn build(&self, spec: &OptimizerSpec) -> Result<Box<dyn Optimizer>> {
        match self.factories.get(&spec.name) {
            Some(build) => {
                let optimizer = build(spec)?;
                let width = optimizer.state_width();
                if width > MAX_STATE_WIDTH {
                    let setting = format!("optimizer {}: state width", spec.name);
                    return Err(Error::config(setting, format!("at most {MAX_STATE_WIDTH}"), width));
                }
                Ok(optimizer)
            }
            None => {
                let known: Vec<&str> = self.factories.keys().map(String::as_str).collect();
                Err(Error::config("optimizer", format!("one of {}", known.join(", ")), &spec.name))
            }
        }
    }
}

/// What a hyper-parameter may be.
#[derive(Debug, Clone, Copy)]
enum Bound {
    NotNegative,
    Positive,
    BelowOne,
}

impl Bound {
    fn admits(self, value: f32) -> bool {
        value.is_finite()
            && match self {
                NotNegative => value >= 0.0,
                Positive => value > 0.0,
                BelowOne => (0.0..1.0).contains(&value),
            }
    }

    fn words(self) -> &'static str {
        match self {
            NotNegative => "a finite value ≥ 0",
            Positive => "a finite value > 0",
            BelowOne => "a value from 0 to below 1",
        }
    }
}

/// Takes exactly the named parameters out of `spec`.
fn named<const N: usize, O: Optimizer + 'static>(
    spec: &OptimizerSpec,
    names: [(&str, Bound); N],
    build: impl FnOnce([f32; N]) -> O,
) -> Result<Box<dyn Optimizer>> {
    let mut values = [0.0; N];
    for ((name, bound), value) in names.iter().zip(&mut values) {
        let given = spec.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        *value = given.filter(|&v| bound.admits(v)).ok_or_else(|| {
            let setting = format!("optimizer {}: {name}", spec.name);
            Error::config(setting, bound.words(), given.map_or("none".to_owned(), |v| v.to_string()))
        })?;
    }
    let names = names.map(|(name, _)| name);
    if let Some((unknown, _)) = spec.parameters.iter().find(|(n, _)| !names.contains(&n.as_str())) {
        let setting = format!("optimizer {}", spec.name);
        return Err(Error::config(setting, format!("only {}", names.join(", ")), unknown));
    }
    Ok(Box::new(build(values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_taken_by_name_and_nothing_else() {
        let known = Optimizers::default();
        for good in [
            OptimizerSpec::assign(),
            OptimizerSpec::sum(),
            OptimizerSpec::sgd(0.0),
            OptimizerSpec::momentum(0.1, 0.9),
            OptimizerSpec::nesterov(0.1, 0.0),
            OptimizerSpec::adagrad(0.1, 1e-10),
            OptimizerSpec::rmsprop(0.1, 0.99, 1e-8),
            OptimizerSpec::adam(0.1, 0.9, 0.999, 1e-8),
            OptimizerSpec::adamw(0.1, 0.9, 0.999, 1e-8, 0.0),
            OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0),
        ] {
            assert!(known.build(&good).is_ok(), "{good:?}");
        }
        for bad in [
            OptimizerSpec::new("ftrl", &[("alpha", 0.1)]),
            OptimizerSpec::new("sgd", &[("rate", f32::NAN)]),
            OptimizerSpec::new("sgd", &[("rate", 0.1), ("momentum", 0.9)]),
            OptimizerSpec::new("none", &[]),
            OptimizerSpec::momentum(0.1, 1.0),
            OptimizerSpec::adagrad(0.1, 0.0),
            OptimizerSpec::adam(0.1, 0.9, 1.0, 1e-8),
        ] {
            assert!(known.build(&bad).is_err(), "{bad:?}");
        }
    }
}
