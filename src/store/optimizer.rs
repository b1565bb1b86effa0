//! Update rules: the built-in ones by name, and a user's own by trait.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernels;
use crate::types::OptimizerSpec;

/// A server-side update rule. It works element by element: the same gradient gives the same bits whatever the bucket
/// it lies in.
pub trait Optimizer: Send {
    /// fp32 of state that each parameter needs, all starting at 0.
    fn state_width(&self) -> usize;

    /// One step. `state` holds `state_width` planes of `parameters.len()` values one behind the other.
    fn step(&self, parameters: &mut [f32], state: &mut [f32], gradient: &[f32]);
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
    /// `assign`, `sum`, `sgd`, `ftrl`.
    fn default() -> Optimizers {
        let mut known = Optimizers { factories: BTreeMap::new() };
        known.add("assign", |spec| named(spec, [], |[]| Assign));
        known.add("sum", |spec| named(spec, [], |[]| Sum));
        known.add("sgd", |spec| named(spec, ["rate"], |[rate]| Sgd { rate }));
        known.add("ftrl", |spec| {
            named(spec, ["alpha", "beta", "l1", "l2"], |[alpha, beta, l1, l2]| {
                Ftrl(kernels::Ftrl { alpha, beta, l1, l2 })
            })
        });
        known
    }
}

impl Optimizers {
    /// Makes `name` known, in place of what it meant before.
    pub fn add(
        &mut self,
        name: &str,
        build: impl Fn(&OptimizerSpec) -> Result<Box<dyn Optimizer>> + Send + Sync + 'static,
    ) {
        self.factories.insert(name.to_owned(), Arc::new(build));
    }

    /// The rule that `spec` names; refused when the name or a parameter is unknown, missing or not positive.
    pub fn build(&self, spec: &OptimizerSpec) -> Result<Box<dyn Optimizer>> {
        match self.factories.get(&spec.name) {
            Some(build) => build(spec),
            None => {
                let known: Vec<&str> = self.factories.keys().map(String::as_str).collect();
                Err(Error::config("optimizer", format!("one of {}", known.join(", ")), &spec.name))
            }
        }
    }
}

/// Takes exactly the named parameters out of `spec`. All are finite and not negative.
fn named<const N: usize, O: Optimizer + 'static>(
    spec: &OptimizerSpec,
    names: [&str; N],
    build: impl FnOnce([f32; N]) -> O,
) -> Result<Box<dyn Optimizer>> {
    let mut values = [0.0; N];
    for (name, value) in names.iter().zip(&mut values) {
        let given = spec.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        *value = given.filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(|| {
            let setting = format!("optimizer {}: {name}", spec.name);
            Error::config(setting, "a finite value ≥ 0", given.map_or("none".to_owned(), |v| v.to_string()))
        })?;
    }
    if let Some((unknown, _)) = spec.parameters.iter().find(|(n, _)| !names.contains(&n.as_str())) {
        let setting = format!("optimizer {}", spec.name);
        return Err(Error::config(setting, format!("only {}", names.join(", ")), unknown));
    }
    Ok(Box::new(build(values)))
}

/// `w ← g`.
struct Assign;

impl Optimizer for Assign {
    fn state_width(&self) -> usize {
        0
    }

    fn step(&self, parameters: &mut [f32], _: &mut [f32], gradient: &[f32]) {
        parameters.copy_from_slice(gradient);
    }
}

/// `w ← w + g`.
struct Sum;

impl Optimizer for Sum {
    fn state_width(&self) -> usize {
        0
    }

    fn step(&self, parameters: &mut [f32], _: &mut [f32], gradient: &[f32]) {
        kernels::accumulate(parameters, gradient.into());
    }
}

struct Sgd {
    rate: f32,
}

impl Optimizer for Sgd {
    fn state_width(&self) -> usize {
        0
    }

    fn step(&self, parameters: &mut [f32], _: &mut [f32], gradient: &[f32]) {
        kernels::sgd(parameters, gradient, self.rate);
    }
}

struct Ftrl(kernels::Ftrl);

impl Optimizer for Ftrl {
    fn state_width(&self) -> usize {
        2
    }

    fn step(&self, parameters: &mut [f32], state: &mut [f32], gradient: &[f32]) {
        let (z, n) = state.split_at_mut(parameters.len());
        kernels::ftrl(parameters, z, n, gradient, self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_taken_by_name_and_nothing_else() {
        let known = Optimizers::default();
        assert!(known.build(&OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0)).is_ok());
        for bad in [
            OptimizerSpec::new("ftrl", &[("alpha", 0.1)]),
            OptimizerSpec::new("sgd", &[("rate", f32::NAN)]),
            OptimizerSpec::new("sgd", &[("rate", 0.1), ("momentum", 0.9)]),
            OptimizerSpec::new("none", &[]),
        ] {
            assert!(known.build(&bad).is_err(), "{bad:?}");
        }
    }
}
