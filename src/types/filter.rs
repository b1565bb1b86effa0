//! What is done to values on their way: an ordered chain of filters, for each table and direction.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most filters of one chain.
pub const MAX_FILTERS: usize = 8;

/// The longest parameters of a filter, in bytes.
pub const MAX_FILTER_PARAMETERS: usize = 64;

/// One step of a chain, as it travels. Whoever reads it may not know it: `proto::filter` says what this build knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterSpec {
    /// Which filter.
    pub id: u16,
    /// Filters of different major versions are different filters.
    pub major: u8,
    /// Counts additions: a reader knows all minor versions up to its own.
    pub minor: u8,
    /// What the filter has to know; its own layout.
    pub parameters: Vec<u8>,
}

impl FilterSpec {
    /// Casts fp32 to IEEE 754 binary16, rounded to nearest even. Beyond ±65 504 (65 519.996, rounded) values become infinite.
    pub fn fp16() -> FilterSpec {
        FilterSpec { id: 1, major: 1, minor: 0, parameters: Vec::new() }
    }

    /// Casts fp32 to bf16 (its upper half), rounded to nearest even: the range of fp32, 8 bits of precision.
    pub fn bf16() -> FilterSpec {
        FilterSpec { id: 2, major: 1, minor: 0, parameters: Vec::new() }
    }
}

impl fmt::Display for FilterSpec {
    /// Name and version: `fp16 1.0`; one that this build does not know is `filter 9 1.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            1 => f.write_str("fp16")?,
            2 => f.write_str("bf16")?,
            id => write!(f, "filter {id}")?,
        }
        write!(f, " {}.{}", self.major, self.minor)?;
        if self.parameters.is_empty() {
            return Ok(());
        }
        write!(f, " with {} bytes of parameters", self.parameters.len())
    }
}

/// How values lie on the wire when all filters have been at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Wire {
    /// As they are.
    #[default]
    Fp32,
    /// IEEE 754 binary16.
    Fp16,
    /// The upper half of fp32.
    Bf16,
}

impl Wire {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Wire::Fp32 => 4,
            Wire::Fp16 | Wire::Bf16 => 2,
        }
    }

    /// The chain that leads there.
    pub fn filters(self) -> Vec<FilterSpec> {
        match self {
            Wire::Fp32 => Vec::new(),
            Wire::Fp16 => vec![FilterSpec::fp16()],
            Wire::Bf16 => vec![FilterSpec::bf16()],
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wire::Fp32 => "fp32",
            Wire::Fp16 => "fp16",
            Wire::Bf16 => "bf16",
        })
    }
}

impl FromStr for Wire {
    type Err = Error;

    fn from_str(text: &str) -> Result<Wire, Error> {
        let known = [Wire::Fp32, Wire::Fp16, Wire::Bf16];
        let named = known.into_iter().find(|wire| wire.to_string() == text);
        named.ok_or_else(|| Error::config("wire", "fp32, fp16 or bf16", text))
    }
}

/// Refuses a chain that is too long to be one; `setting` names it.
pub(super) fn validate(setting: impl Fn() -> String, filters: &[FilterSpec]) -> Result<()> {
    if filters.len() > MAX_FILTERS {
        return Err(Error::config(setting(), format!("at most {MAX_FILTERS} filters"), filters.len()));
    }
    match filters.iter().find(|f| f.parameters.len() > MAX_FILTER_PARAMETERS) {
        None => Ok(()),
        Some(filter) => {
            let expected = format!("at most {MAX_FILTER_PARAMETERS} bytes of parameters");
            Err(Error::config(setting(), expected, filter))
        }
    }
}

/// A chain for people: `fp32` when it is empty.
pub(super) struct Shown<'a>(pub &'a [FilterSpec]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.0.split_first() else { return f.write_str("fp32") };
        write!(f, "{first}")?;
        rest.iter().try_for_each(|filter| write!(f, " > {filter}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for wire in [Wire::Fp32, Wire::Fp16, Wire::Bf16] {
            assert_eq!(wire.to_string().parse::<Wire>().unwrap(), wire);
        }
        for bad in ["", "fp64", "FP16", "fp16 "] {
            assert!(bad.parse::<Wire>().is_err(), "{bad}");
        }
    }

    #[test]
    fn filters_are_shown_with_their_version_also_unknown_ones() {
        let unknown = FilterSpec { id: 9, major: 2, minor: 3, parameters: vec![1, 2] };
        let chain = [FilterSpec::bf16(), unknown];
        assert_eq!(Shown(&chain).to_string(), "bf16 1.0 > filter 9 2.3 with 2 bytes of parameters");
        assert_eq!(Shown(&[]).to_string(), "fp32");
    }
}
