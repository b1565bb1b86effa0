//! What can be set about a measurement.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::place::Numbers;
use crate::app::node::NodeOptions;
use crate::app::settings::{Flags, OfWorker};
use crate::config::{Environment, parse_bytes};
use crate::error::{Error, Result};
use crate::types::{Aggregate, Consistency, NonFinite, OptimizerSpec, TableSpec, Wire};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// One-sided writes between two transports, without a server; in a job between its two workers
    Write,
    /// One-sided reads, likewise
    Read,
    /// Adding to a dense table, which is what a server does to a push, in this process alone
    Add,
    /// Dense pushes, all of one registered buffer of --bytes
    Push,
    /// Dense pulls into a registered buffer, which has room of its own for the result of each operation under way
    Pull,
    /// Dense pushes, each with the pull of what it made; both buffers are as those of push and pull
    PushPull,
    /// As push-pull, one at a time
    Latency,
    /// Pushes of rows out of memory as long as one operation, which are copied on their way; round all rows, or --lists
    SparsePush,
    /// Pulls of rows. Without --lists each operation has a list of keys that is uniform over all rows: one of 16 (fewer where they are
    /// long) that were drawn beforehand, moved round by a random number of rows while its keys are written down, an addition for each
    SparsePull,
    /// Gathering rows of a sparse table, which is what a server does to a pull of them, in this process alone. Without --lists the keys of
    /// each round are drawn anew, uniform over all rows, while the clock stands
    Gather,
}

impl Op {
    /// Whether it needs no parameter server.
    pub fn is_transport(self) -> bool {
        matches!(self, Op::Write | Op::Read)
    }

    /// Whether it needs no network either.
    pub fn is_local(self) -> bool {
        matches!(self, Op::Add | Op::Gather)
    }

    /// Whether its table has rows.
    pub fn is_sparse(self) -> bool {
        matches!(self, Op::SparsePush | Op::SparsePull | Op::Gather)
    }

    /// Whether it changes the table.
    pub fn pushes(self) -> bool {
        !matches!(self, Op::Pull | Op::SparsePull | Op::Gather | Op::Read)
    }

    /// Whether values come back.
    pub fn pulls(self) -> bool {
        !matches!(self, Op::Push | Op::SparsePush | Op::Write | Op::Add)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every variant has a name: none is hidden from the command line.
        f.write_str(self.to_possible_value().as_ref().map_or("", |v| v.get_name()))
    }
}

/// A number of bytes: `65536`, `64K`, `64KiB`, `1M`, `1MiB`, `2G`, in powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Bytes> {
        parse_bytes(text).map(Bytes)
    }
}

/// The most payload of one operation: a worker holds it once as a source, and once or more as results.
const MOST_BYTES: u64 = 1 << 30;

/// Options of `windlass bench`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// What to measure
    #[arg(value_enum)]
    pub op: Op,
    /// Payload of one operation, with K, M or G for powers of 1024 [default: 1M; latency: 64]. More than 4M is moved by several calls of
    /// 4M, each with its own part of the buffers
    #[arg(long, value_name = "BYTES")]
    pub bytes: Option<Bytes>,
    /// Size of the table, or of the memory that is written or read; operations walk round in it
    #[arg(long, value_name = "BYTES", default_value = "256M")]
    pub table_bytes: Bytes,
    /// Number of servers (when it starts its own job)
    #[arg(long, default_value_t = 1)]
    pub servers: u32,
    /// Number of workers [WINDLASS_WORKERS; default: 1]
    #[arg(long)]
    pub workers: Option<u32>,
    /// Threads of each server (when it starts its own job) [WINDLASS_THREADS; default: 1]
    #[arg(long)]
    pub threads: Option<u32>,
    /// This worker's rank (in a job) [else WINDLASS_RANK]
    #[arg(long)]
    pub rank: Option<u32>,
    /// When a pull is answered: bsp, ssp:N or asp; under bsp and ssp every operation is a clock of its own, of a
    /// longer one than 4M each call
    #[arg(long, default_value = "asp", value_parser = Consistency::from_str)]
    pub consistency: Consistency,
    /// How values travel: fp32, fp16 or bf16. Bytes are counted as fp32, whatever the wire. Under fp16 and bf16 each place of the
    /// table takes at most 1027 or 195 pushes, so that all sums are exact: a run over a small table ends early
    #[arg(long, default_value = "fp32", value_parser = Wire::from_str)]
    pub wire: Wire,
    /// What becomes of pushed values that are infinite or no number: accept (they are not looked for), count or reject. There are none
    /// here: it shows what looking costs
    #[arg(long, value_name = "WHAT", default_value = "accept", value_parser = NonFinite::from_str)]
    pub non_finite: NonFinite,
    /// sparse: keys of one operation
    #[arg(long, default_value_t = 1024)]
    pub keys: u32,
    /// sparse: fp32 in a row
    #[arg(long, default_value_t = 16)]
    pub dim: u32,
    /// sparse: rows of the table
    #[arg(long, default_value_t = 1 << 20)]
    pub rows: u64,
    /// sparse: operations go round N lists of keys that are drawn at random beforehand; without it sparse-push goes round all rows, and
    /// sparse-pull and gather have a list of their own for each operation
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub lists: u32,
    /// sparse: what one more row's key is larger by [default: 2^64 / --rows]
    #[arg(long, value_name = "N")]
    pub spread: Option<u64>,
    /// Operations of one worker under way at a time, 1 to 4096; fewer, and the report says how many, where the transport takes fewer
    /// (`write`, `read`), and where what they pull does not fit 256M of memory for results or 12M of answers under way
    #[arg(long, default_value_t = 4)]
    pub window: u32,
    /// Seconds to measure for
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Print one JSON object on one line
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print a line of column names and a line of values
    #[arg(long)]
    pub csv: bool,
    /// The other end of `write` and `read`; what it needs comes on standard input
    #[arg(long, hide = true)]
    pub responder: bool,
    // No doc comment: it would replace the command's own description in --help.
    #[allow(missing_docs)]
    #[command(flatten)]
    pub node: NodeOptions,
    // As above.
    #[allow(missing_docs)]
    #[command(flatten)]
    pub worker: Flags<OfWorker>,
}

impl Options {
    /// All settings: what flags say above the environment, and that above the configuration file.
    pub fn settings(&self, environment: &Environment) -> Result<Environment> {
        self.node.network.over(&self.worker.over(environment))
    }

    /// What can be refused before anything is started.
    pub fn check(&self) -> Result<()> {
        if !(self.seconds > 0.0 && self.seconds <= 86_400.0) {
            return Err(Error::config("--seconds", "above 0, at most 86400", self.seconds));
        }
        if self.window == 0 || self.window > 4096 {
            return Err(Error::config("--window", "1 to 4096", self.window));
        }
        if (self.op.is_transport() || self.op.is_local()) && self.wire != Wire::Fp32 {
            return Err(Error::config(format!("--wire with {}", self.op), "fp32", self.wire));
        }
        let started = (self.servers, self.threads.unwrap_or(1));
        if (self.op.is_transport() || self.op.is_local()) && started != (1, 1) {
            let given = format!("--servers, --threads with {}", self.op);
            return Err(Error::config(given, "1 and 1", format!("{started:?}")));
        }
        if self.op.is_sparse() {
            if self.keys == 0 || u64::from(self.keys) > self.rows {
                return Err(Error::config("--keys", format!("1 to --rows ({})", self.rows), self.keys));
            }
            if self.rows > 1 << 32 {
                return Err(Error::config("--rows", "at most 2^32", self.rows));
            }
            if (self.lists > 0 || self.op.pulls()) && u64::from(self.keys) * 2 > self.rows {
                let expected = format!("at most half of --rows ({}) where they are drawn", self.rows);
                return Err(Error::config("--keys", expected, self.keys));
            }
            if self.payload_bytes() > MOST_BYTES {
                let expected =
                    format!("at most {} with --dim {}", MOST_BYTES / 4 / u64::from(self.dim), self.dim);
                return Err(Error::config("--keys", expected, self.keys));
            }
            if !(1..=u64::MAX / self.rows).contains(&self.spread()) {
                let expected = format!("1 to {}", u64::MAX / self.rows);
                return Err(Error::config("--spread", expected, self.spread()));
            }
        } else {
            let (bytes, most) = (self.payload_bytes(), self.table_bytes.0);
            if bytes < 4 || bytes > most.min(MOST_BYTES) || !bytes.is_multiple_of(4) {
                let expected = format!("a multiple of 4 from 4 to --table-bytes ({most}) and 1G");
                return Err(Error::config("--bytes", expected, bytes));
            }
        }
        if self.op.is_transport() { Ok(()) } else { self.spec().validate() }
    }

    /// And for `write`, `read` and `add` outside a job.
    pub fn check_alone(&self) -> Result<()> {
        match self.workers {
            None | Some(1) => Ok(()),
            Some(n) => {
                let given = format!("--workers with {} outside a job", self.op);
                Err(Error::config(given, "1", n))
            }
        }
    }

    /// Payload of one operation.
    pub fn payload_bytes(&self) -> u64 {
        match (self.op.is_sparse(), self.bytes, self.op) {
            (true, ..) => (u64::from(self.keys) * u64::from(self.dim)).saturating_mul(4),
            (_, Some(bytes), _) => bytes.0,
            (_, None, Op::Latency) => 64,
            (_, None, _) => 1 << 20,
        }
    }

    /// fp32 or keys that one operation covers.
    pub fn stride(&self) -> u64 {
        if self.op.is_sparse() { u64::from(self.keys) } else { self.payload_bytes() / 4 }
    }

    /// Places that operations go round: as many as fit.
    pub fn places(&self) -> u64 {
        if self.op.is_sparse() && self.lists > 0 {
            u64::from(self.lists)
        } else if self.op.is_sparse() {
            self.rows / u64::from(self.keys)
        } else {
            self.table_bytes.0 / self.payload_bytes()
        }
    }

    /// What one more row's key is larger by: usually so much that keys lie in the whole of u64.
    pub fn spread(&self) -> u64 {
        self.spread.unwrap_or(u64::MAX / self.rows)
    }

    /// The table, without what would lie behind the last place.
    pub fn spec(&self) -> TableSpec {
        let spec = if self.op.is_sparse() {
            TableSpec::sparse("bench", self.dim)
        } else {
            TableSpec::dense("bench", &[self.places() * self.stride()])
        };
        spec.optimizer(OptimizerSpec::new("sum", &[]))
            .aggregate(Aggregate::Sum)
            .consistency(self.consistency)
            .wire(self.wire)
            .non_finite(self.non_finite)
    }

    /// The numbers that the table holds.
    pub fn numbers(&self) -> Numbers {
        Numbers::of(self.wire)
    }

    /// Operations under way at a time.
    pub fn window(&self) -> usize {
        if self.op == Op::Latency { 1 } else { self.window as usize }
    }

    /// How long to measure.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

#[cfg(test)]
impl Options {
    /// What stands behind `windlass bench`.
    pub fn of_line(line: &str) -> Options {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        <Line as clap::Parser>::parse_from(["bench"].into_iter().chain(line.split(' '))).options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_of_1024() {
        for (text, bytes) in [("4", 4), ("64K", 65536), ("64KiB", 65536), ("1M", 1 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for bad in ["", "K", "1.5M", "-1", "1T", "1KB", "99999999999G", "1 K"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        assert_eq!(Op::SparsePush.to_string(), "sparse-push");
        assert_eq!(Op::PushPull.to_string(), "push-pull");
    }
}
