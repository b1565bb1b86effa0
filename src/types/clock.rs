//! Logical time. Wall time is `time::TimeSource`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A worker's logical iteration number, from 0.
pub type Clock = u64;

/// Number of updates that a bucket has seen.
pub type Version = u64;

/// How far a reader may be ahead of the slowest writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// Bulk synchronous: in clock c a pull sees exactly the clocks < c.
    Bsp,
    /// Stale synchronous (Ho et al., NIPS 2013): in clock c a pull sees at least all clocks < c − s.
    Ssp {
        /// The bound s, in clocks.
        staleness: u64,
    },
    /// Asynchronous: a pull sees whatever was applied.
    Asp,
}

impl Consistency {
    /// How many clocks must have closed before a pull of a worker in `clock` may be answered; `after_push` when the pull
    /// is the second half of a `push_pull`.
    pub fn clocks_needed(self, clock: Clock, after_push: bool) -> u64 {
        match self {
            Consistency::Bsp => clock.saturating_add(u64::from(after_push)), // the clock may be a peer's
            Consistency::Ssp { staleness } => clock.saturating_sub(staleness),
            Consistency::Asp => 0,
        }
    }

    /// Whether pushes wait for each other and are folded in the order of the ranks.
    pub fn folds_by_rank(self) -> bool {
        self == Consistency::Bsp
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Consistency::Bsp => f.write_str("bsp"),
            Consistency::Ssp { staleness } => write!(f, "ssp:{staleness}"),
            Consistency::Asp => f.write_str("asp"),
        }
    }
}

impl FromStr for Consistency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Consistency, Error> {
        let refuse = || Error::config("consistency", "bsp, ssp:N or asp", text);
        match text {
            "bsp" => Ok(Consistency::Bsp),
            "asp" => Ok(Consistency::Asp),
            _ => {
                let bound = text.strip_prefix("ssp:").ok_or_else(refuse)?;
                Ok(Consistency::Ssp { staleness: bound.parse().map_err(|_| refuse())? })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for c in [Consistency::Bsp, Consistency::Ssp { staleness: 2 }, Consistency::Asp] {
            assert_eq!(c.to_string().parse::<Consistency>().unwrap(), c);
        }
        for bad in ["", "bsp ", "ssp", "ssp:", "ssp:-1", "ssp:x"] {
            assert!(bad.parse::<Consistency>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bounds() {
        assert_eq!(Consistency::Bsp.clocks_needed(3, false), 3);
        assert_eq!(Consistency::Bsp.clocks_needed(3, true), 4);
        assert_eq!(Consistency::Ssp { staleness: 2 }.clocks_needed(3, false), 1);
        assert_eq!(Consistency::Ssp { staleness: 2 }.clocks_needed(1, true), 0);
        assert_eq!(Consistency::Bsp.clocks_needed(u64::MAX, true), u64::MAX);
        assert_eq!(Consistency::Asp.clocks_needed(9, false), 0);
    }
}
