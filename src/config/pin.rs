//! Which CPUs the threads of a server run on.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The most CPUs that a list may name, and one more than the highest of them: what a mask of the kernel holds here.
pub const MAX_CPUS: usize = 1024;

/// What a user says about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pin {
    /// A CPU for each thread, where there are enough for all that wait for the network on this host.
    #[default]
    Auto,
    /// The threads run wherever the process may.
    None,
    /// These CPUs, one for each server thread of this host, in this order.
    List(Vec<usize>),
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pin::Auto => f.write_str("auto"),
            Pin::None => f.write_str("none"),
            Pin::List(cpus) => {
                let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
                f.write_str(&cpus.join(","))
            }
        }
    }
}

impl FromStr for Pin {
    type Err = Error;

    /// `auto`, `none`, or CPUs and ranges of them as in `0,2-5`, none of them twice.
    fn from_str(text: &str) -> Result<Pin> {
        match text {
            "auto" => return Ok(Pin::Auto),
            "none" => return Ok(Pin::None),
            _ => {}
        }
        let expected = format!("auto, none, or CPUs below {MAX_CPUS}, each once, as in 0,2-5");
        let refuse = || Error::config("pin", expected.as_str(), text);
        let mut cpus = Vec::new();
        for range in ranges(text).ok_or_else(refuse)? {
            if *range.end() >= MAX_CPUS || range.clone().any(|cpu| cpus.contains(&cpu)) {
                return Err(refuse());
            }
            cpus.extend(range);
        }
        Ok(Pin::List(cpus))
    }
}

/// What a list such as `0-3,8` names, as users and the kernel write it; `None` when it is none. Nothing is expanded here, so that a
/// list may claim any number of CPUs.
pub fn ranges(list: &str) -> Option<Vec<RangeInclusive<usize>>> {
    let number = |digits: &str| {
        // `parse` would take a sign.
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| plain)
    };
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (number(low)?, number(high)?);
        (low <= high).then_some(low..=high)
    };
    list.split(',').map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        let parse = |text: &str| text.parse::<Pin>();
        assert_eq!(parse("auto").unwrap(), Pin::Auto);
        assert_eq!(parse("none").unwrap(), Pin::None);
        assert_eq!(parse("0,2-5").unwrap(), Pin::List(vec![0, 2, 3, 4, 5]));
        assert_eq!(parse("7,1").unwrap(), Pin::List(vec![7, 1]));
        assert_eq!(parse("7,1-3").unwrap().to_string(), "7,1,2,3");
        for bad in ["", "all", "1,", "3-1", "0,0", "1-3,2", "1024", "-1", "+1", "0-99999999999", "0 1"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
