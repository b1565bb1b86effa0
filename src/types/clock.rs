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
///
/// A clock is *closed* when every worker has ended it, or when a table's [`Quorum`] has. In clock c (its first is 0)
///
/// | | a pull waits until | and sees |
/// | --- | --- | --- |
/// | `Bsp` | all clocks < c are closed | exactly the clocks < c, each as one update |
/// | `Ssp { staleness: s }` | all clocks < c − s are closed | all of these; of later clocks whatever was applied |
/// | `Asp` | nothing | whatever was applied |
///
/// A worker's own pushes are among what was applied: under Ssp and Asp it reads its own writes. Only pulls wait. Where
/// every worker pulls in each clock, none is more than s + 1 clocks ahead of the slowest under Ssp, and in that last one
/// it waits; under Bsp that is 1.
///
/// `Ssp { staleness: 0 }` waits as Bsp does and shows more: pieces are applied as they come, each as a step of its own, so
/// a pull may see parts of clock c, and the bits depend on the order of arrival.
///
/// s is that of SSP in Ho et al. (NIPS 2013): a read in clock c sees all updates of the clocks 0 to c − s − 1. The bounded
/// delay τ of Li et al. (OSDI 2014) is the same bound with τ = s, when a task is one clock of one worker: task c begins
/// when all tasks < c − τ have finished; τ = 0 is sequential, τ = ∞ is Asp.
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

/// A table's clock closes when so many workers have ended it, instead of all.
///
/// Where fewer than that are expected, because the others have finished, it closes when all of those have. Pushes of Bsp
/// are folded in the order of their arrival; `mean` divides by the workers of whom a mark or a piece came before the close;
/// a pull sees at least the clocks that the consistency asks for. A piece of a closed clock is *late*. A push is done
/// when a server has folded, applied or dropped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quorum {
    /// How many workers; 1 to the job's number.
    pub workers: u32,
    /// What becomes of late pieces.
    pub late: Late,
}

/// What becomes of a piece whose clock a quorum has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Late {
    /// It is counted (`late_dropped`) and changes nothing.
    Drop,
    /// It is counted (`late_applied`) and applied at once as a step of its own; under Bsp and `mean` divided by the quorum.
    Apply,
}

/// What becomes of a piece whose bucket has been updated since the values were read that it was computed from: its *age* is
/// the bucket's version less the push's base version. A push without base has age 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stale {
    /// It is applied as it is.
    Accept,
    /// Its values are divided by 1 + age.
    Scale,
    /// It is refused when its age is above the limit.
    Reject {
        /// The largest age that is taken.
        max_age: u64,
    },
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

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = match self.late {
            Late::Drop => "dropped",
            Late::Apply => "applied",
        };
        write!(f, "quorum of {}, late pieces {late}", self.workers)
    }
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stale::Accept => f.write_str("stale pieces accepted"),
            Stale::Scale => f.write_str("stale pieces scaled"),
            Stale::Reject { max_age } => write!(f, "pieces of age above {max_age} rejected"),
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
