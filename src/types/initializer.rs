//! What a parameter is before anything was pushed to it.
//!
//! A random value is a function of (seed, table's name, key, element) alone, so it is the same on any number of servers and
//! threads, whenever it is made. For a dense table the key is the element's index and the element is 0. With `⊕` for
//! exclusive or and `mix` for [`mix64`]:
//!
//! ```text
//! root(seed, name)  = fold over the bytes b of the name, from mix(seed + G):  h ← mix(h ⊕ b) + G
//! bits(key, e, n)   = mix(mix(mix(root ⊕ mix(key + G)) + e) + n · G),         G = 0x9E37_79B9_7F4A_7C15
//! uniform           = low + (high − low) · u,       u = the highest 24 of bits(key, e, 0) / 2²⁴
//! normal            = mean + std · z,               z = (Σ of 12 numbers of 16 bits + 6) / 2¹⁶ − 6
//! ```
//!
//! The 12 numbers of 16 bits are those of bits(key, e, 0 … 2). z is Irwin and Hall's approximation: a sum of twelve uniform
//! numbers has variance 1 and, within 6 standard deviations, nearly the normal distribution; beyond ± 6 there is nothing. Both
//! need integers and fp32's + − × alone, so that no libm decides a bit.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Key, mix64};
use crate::error::{Error, Result};

/// 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// How a table's parameters begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub enum Initializer {
    /// All 0.
    #[default]
    Zeros,
    /// All the same.
    Constant(f32),
    /// Evenly from `low` to `high`, both included: rounding may reach `high`.
    Uniform {
        /// The least value.
        low: f32,
        /// The largest value.
        high: f32,
        /// Other seeds give other values.
        seed: u64,
    },
    /// Normally distributed, within 6 standard deviations: a sum of twelve uniform numbers.
    Normal {
        /// The mean.
        mean: f32,
        /// The standard deviation.
        std: f32,
        /// Other seeds give other values.
        seed: u64,
    },
}

impl Initializer {
    /// Refuses what gives no finite values.
    pub(super) fn validate(&self, field: &str) -> Result<()> {
        let (expected, good) = match *self {
            Initializer::Zeros => return Ok(()),
            Initializer::Constant(value) => ("a finite constant", value.is_finite()),
            Initializer::Uniform { low, high, .. } => {
                ("finite low ≤ high with a finite difference", low <= high && (high - low).is_finite())
            }
            Initializer::Normal { mean, std, .. } => {
                let reach = mean.abs() + 6.0 * std;
                ("a finite mean and std ≥ 0, six of which stay finite", std >= 0.0 && reach.is_finite())
            }
        };
        if good { Ok(()) } else { Err(Error::config(field, expected, self)) }
    }
}

impl fmt::Display for Initializer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Initializer::Zeros => f.write_str("zeros"),
            Initializer::Constant(value) => write!(f, "constant {value}"),
            Initializer::Uniform { low, high, seed } => write!(f, "uniform {low} to {high} seed {seed}"),
            Initializer::Normal { mean, std, seed } => write!(f, "normal {mean} ± {std} seed {seed}"),
        }
    }
}

/// An initializer at work in one table.
#[derive(Debug, Clone, Copy)]
pub struct Initial {
    rule: Initializer,
    root: u64,
}

impl Initial {
    /// What `rule` gives in the table of this name.
    pub fn new(rule: Initializer, table: &str) -> Initial {
        let seed = match rule {
            Initializer::Uniform { seed, .. } | Initializer::Normal { seed, .. } => seed,
            Initializer::Zeros | Initializer::Constant(_) => 0,
        };
        let start = mix64(seed.wrapping_add(GOLDEN));
        let root = table.bytes().fold(start, |h, byte| mix64(h ^ u64::from(byte)).wrapping_add(GOLDEN));
        Initial { rule, root }
    }

    /// Writes the beginning of `key`'s row into `row`, which holds zeros.
    pub fn fill_row(&self, key: Key, row: &mut [f32]) {
        match self.rule {
            Initializer::Zeros => {}
            Initializer::Constant(value) => row.fill(value),
            _ => (0u64..).zip(row).for_each(|(element, value)| *value = self.value(key, element)),
        }
    }

    /// Writes the beginning of a dense table's elements from `first` on into `elements`, which hold zeros.
    pub fn fill_range(&self, first: Key, elements: &mut [f32]) {
        match self.rule {
            Initializer::Zeros => {}
            Initializer::Constant(value) => elements.fill(value),
            _ => (first..).zip(elements).for_each(|(key, value)| *value = self.value(key, 0)),
        }
    }

    fn value(&self, key: Key, element: u64) -> f32 {
        match self.rule {
            Initializer::Zeros => 0.0,
            Initializer::Constant(value) => value,
            Initializer::Uniform { low, high, .. } => {
                let unit = (self.bits(key, element, 0) >> 40) as f32 / 16_777_216.0;
                // The rounded sum may exceed `high` by a unit in the last place.
                (low + (high - low) * unit).min(high)
            }
            Initializer::Normal { mean, std, .. } => {
                let numbers = |n| {
                    let bits = self.bits(key, element, n);
                    (0..4).map(move |place| (bits >> (16 * place) & 0xFFFF) as i32)
                };
                let sum: i32 = (0..3).flat_map(numbers).sum();
                // Below 2^20: exact in fp32.
                let z = (sum + 6 - 6 * 65_536) as f32 / 65_536.0;
                mean + std * z
            }
        }
    }

    fn bits(&self, key: Key, element: u64, n: u64) -> u64 {
        let row = mix64(self.root ^ mix64(key.wrapping_add(GOLDEN)));
        mix64(mix64(row.wrapping_add(element)).wrapping_add(n.wrapping_mul(GOLDEN)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFORM: Initializer = Initializer::Uniform { low: -0.5, high: 1.5, seed: 7 };
    const NORMAL: Initializer = Initializer::Normal { mean: 3.0, std: 0.5, seed: 7 };

    fn rows(rule: Initializer, keys: std::ops::Range<u64>) -> Vec<f32> {
        let initial = Initial::new(rule, "w");
        keys.flat_map(|key| {
            let mut row = [0.0; 8];
            initial.fill_row(key, &mut row);
            row
        })
        .collect()
    }

    fn mean_and_variance(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        (mean, values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn uniform_values_are_even_and_within_their_bounds() {
        let values = rows(UNIFORM, 0..20_000);
        assert!(values.iter().all(|v| (-0.5..=1.5).contains(v)));
        let (mean, variance) = mean_and_variance(&values);
        // Standard errors are 0.0014 and 0.0007.
        assert!((mean - 0.5).abs() < 0.008 && (variance - 4.0 / 12.0).abs() < 0.005, "{mean} {variance}");
        let mut counts = [0u32; 16];
        values.iter().for_each(|v| counts[((v + 0.5) * 8.0).min(15.0) as usize] += 1);
        assert!(counts.iter().all(|&n| (9_400..10_600).contains(&n)), "{counts:?}");
    }

    #[test]
    fn normal_values_have_their_mean_and_deviation_and_tails() {
        let values = rows(NORMAL, 0..20_000);
        let (mean, variance) = mean_and_variance(&values);
        assert!((mean - 3.0).abs() < 0.008 && (variance.sqrt() - 0.5).abs() < 0.006, "{mean} {variance}");
        assert!(values.iter().all(|v| (0.0..=6.0).contains(v)));
        // Within one, two and three deviations: 68.3, 95.4 and 99.7 of 100.
        for (deviations, share) in [(1.0, 0.683), (2.0, 0.954), (3.0, 0.997)] {
            let within = values.iter().filter(|&&v| (v - 3.0).abs() <= 0.5 * deviations).count();
            let found = within as f64 / values.len() as f64;
            assert!((found - share).abs() < 0.01, "{deviations}: {found}");
        }
    }

    /// These are a promise: a table of this version begins like one of the next.
    #[test]
    fn the_bits_are_fixed() {
        let bits = |rule| -> Vec<u32> {
            let initial = Initial::new(rule, "w");
            let mut row = [0.0; 3];
            initial.fill_row(u64::MAX, &mut row);
            row.map(f32::to_bits).to_vec()
        };
        assert_eq!(bits(UNIFORM), UNIFORM_BITS);
        assert_eq!(bits(NORMAL), NORMAL_BITS);
        assert_eq!(bits(Initializer::Constant(-2.5)), [(-2.5f32).to_bits(); 3]);
        assert_eq!(bits(Initializer::Zeros), [0; 3]);
    }

    /// Computed from the formulas above by another program (in Python).
    const UNIFORM_BITS: [u32; 3] = [3191047264, 1065931065, 1052478740];
    const NORMAL_BITS: [u32; 3] = [1079291264, 1075707200, 1077905376];

    #[test]
    fn key_element_name_and_seed_all_matter() {
        let first = |name: &str, seed, key| {
            let mut row = [0.0; 2];
            Initial::new(Initializer::Uniform { low: 0.0, high: 1.0, seed }, name).fill_row(key, &mut row);
            row
        };
        let [a, b] = first("w", 1, 0);
        let others = [first("v", 1, 0)[0], first("w", 2, 0)[0], first("w", 1, 1)[0], b];
        assert!(others.iter().all(|other| *other != a), "{a} {others:?}");
    }

    #[test]
    fn a_range_is_what_its_elements_are_one_by_one() {
        let initial = Initial::new(NORMAL, "w");
        let (mut whole, mut part) = ([0.0; 100], [0.0; 30]);
        initial.fill_range(1 << 40, &mut whole);
        initial.fill_range((1 << 40) + 50, &mut part);
        assert_eq!(whole[50..80], part);
        let mut row = [0.0; 1];
        initial.fill_row((1 << 40) + 50, &mut row);
        assert_eq!(row[0], part[0]);
    }

    #[test]
    fn what_gives_no_finite_values_is_refused() {
        let seed = 1;
        for bad in [
            Initializer::Constant(f32::NAN),
            Initializer::Uniform { low: 1.0, high: 0.0, seed },
            Initializer::Uniform { low: f32::NEG_INFINITY, high: 0.0, seed },
            Initializer::Uniform { low: f32::MIN, high: f32::MAX, seed },
            Initializer::Uniform { low: 0.0, high: f32::NAN, seed },
            Initializer::Normal { mean: 0.0, std: -1.0, seed },
            Initializer::Normal { mean: f32::NAN, std: 1.0, seed },
            Initializer::Normal { mean: f32::MAX, std: f32::MAX, seed },
        ] {
            assert!(bad.validate("initializer").is_err(), "{bad}");
        }
    }
}
