//! Measuring a job: `windlass bench OP`.
//!
//! | file | idea |
//! | --- | --- |
//! | `options` | what can be set |
//! | `place` | where operation n goes, and what the table must hold after all of them |
//! | `parts` | how an operation is cut, and where in memory its values lie |
//! | `load` | one operation on a table |
//! | `work` | a worker: fill, run against the clock, check |
//! | `pair` | `write` and `read`: two transports, no server; on one machine, or between the workers of a job |
//! | `add`, `gather` | what a server does to a push, and to a pull of rows, without a network |
//! | `latencies`, `report` | what is measured, and how it is printed |

mod add;
mod gather;
mod latencies;
mod load;
mod options;
mod pair;
mod parts;
mod place;
mod report;
mod work;

pub use add::measure as add;
pub use gather::measure as gather;
pub use options::{Op, Options};

use crate::config::Environment;
use crate::error::Result;

/// Whether the memory at the end held what the operations should have made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All of it.
    Right,
    /// It did not; standard error says where.
    Wrong,
}

/// Takes part in the job as a worker, from joining to leaving. Worker 0 reports and judges.
pub fn work(options: &Options, environment: &Environment) -> Result<Verdict> {
    work::run(options, environment)
}

/// Measures the transport alone, between this process and another that it starts.
pub fn pair(options: &Options, environment: &Environment) -> Result<Verdict> {
    pair::alone::run(options, environment)
}
