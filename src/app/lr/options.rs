//! What can be set about a training run.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::app::node::NodeOptions;
use crate::app::settings::{CheckpointFlags, Flags, OfWorker};
use crate::config::{Environment, settings};
use crate::data::libsvm::IndexMode;
use crate::data::synthetic;
use crate::error::{Error, Result};
use crate::types::{Consistency, Late, NonFinite, OptimizerSpec, Quorum, TableSpec, Wire};

/// The most features that a model may have: 4 GiB of weights, which worker 0 holds at the end.
pub const MAX_FEATURES: u64 = 1 << 30;

/// Dense or sparse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableChoice {
    /// Only the keys that occur.
    Sparse,
    /// All keys from 0 to the number of features.
    Dense,
}

/// The update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerChoice {
    /// FTRL-Proximal, per-coordinate rates.
    Ftrl,
    /// Plain stochastic gradient descent.
    Sgd,
    /// Adagrad: per-coordinate rates that only fall.
    Adagrad,
    /// Adam: moving averages of the gradient and of its square.
    Adam,
}

impl OptimizerChoice {
    /// The learning rate unless one is given; `ftrl` has --alpha instead.
    fn rate(self) -> f32 {
        match self {
            OptimizerChoice::Ftrl | OptimizerChoice::Sgd => 0.3,
            OptimizerChoice::Adagrad => 0.1,
            OptimizerChoice::Adam => 0.003,
        }
    }

    /// What keeps the divisor off 0, unless one is given.
    fn epsilon(self) -> f32 {
        if self == OptimizerChoice::Adagrad { 1e-10 } else { 1e-8 }
    }
}

/// What becomes of pieces that come after a quorum has closed their clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LateChoice {
    /// They change nothing.
    Drop,
    /// Each is a step of its own.
    Apply,
}

/// Options of `windlass train lr`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Training data in LIBSVM format [default: a built-in data set]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Test data in LIBSVM format [default: the built-in set's held-out rows, or the training data]
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// Take any tokens as indices: a whole number below 2^64 is its own key, any other token is hashed to one; with --features keys are
    /// mixed, and taken modulo that
    /// [default: whole numbers from 1]
    #[arg(long)]
    pub hash: bool,
    /// Number of features [default: the largest index that occurs; built-in: 1048576]
    #[arg(long, value_name = "N")]
    pub features: Option<NonZeroU64>,
    /// The table that holds the weights
    #[arg(long, value_enum, default_value_t = TableChoice::Sparse)]
    pub table: TableChoice,
    /// Size of a dense table's segments
    #[arg(long, value_name = "BYTES", default_value_t = crate::types::DEFAULT_SEGMENT_BYTES)]
    pub segment_bytes: u32,
    /// The servers' update rule
    #[arg(long, value_enum, default_value_t = OptimizerChoice::Ftrl)]
    pub optimizer: OptimizerChoice,
    /// ftrl: scale of the learning rate
    #[arg(long, default_value_t = 0.1)]
    pub alpha: f32,
    /// ftrl: added to the root of the squared gradients
    #[arg(long, default_value_t = 0.1)]
    pub beta: f32,
    /// ftrl: weight of |w|; gradients are means, so what suits depends on batch and workers
    #[arg(long, default_value_t = 0.05)]
    pub l1: f32,
    /// ftrl: weight of w²/2
    #[arg(long, default_value_t = 0.0)]
    pub l2: f32,
    /// sgd, adagrad, adam: learning rate [default: 0.3, 0.1, 0.003]
    #[arg(long)]
    pub rate: Option<f32>,
    /// adam: how much of the mean gradient is kept at each step
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f32,
    /// adam: how much of the mean squared gradient is kept at each step
    #[arg(long, default_value_t = 0.999)]
    pub beta2: f32,
    /// adagrad, adam: added to the root that divides [default: 1e-10, 1e-8]
    #[arg(long)]
    pub epsilon: Option<f32>,
    /// When a pull is answered: bsp, ssp:N or asp
    #[arg(long, default_value = "bsp", value_parser = Consistency::from_str)]
    pub consistency: Consistency,
    /// bsp, ssp:N: a clock closes when so many workers have ended it [default: all of them]
    #[arg(long, value_name = "WORKERS")]
    pub quorum: Option<u32>,
    /// --quorum: what becomes of gradients that come after their clock has closed
    #[arg(long, value_enum, default_value_t = LateChoice::Drop)]
    pub late: LateChoice,
    /// How gradients and weights travel: fp32, fp16 or bf16; they are added and kept as fp32
    #[arg(long, default_value = "fp32", value_parser = Wire::from_str)]
    pub wire: Wire,
    /// What becomes of gradients that are infinite or no number: accept (they are not looked for), count, or reject (they are
    /// left out, and counted)
    #[arg(long, value_name = "WHAT", default_value = "accept", value_parser = NonFinite::from_str)]
    pub non_finite: NonFinite,
    /// Passes over the data
    #[arg(long, default_value_t = 12)]
    pub epochs: u32,
    /// Examples in a mini-batch of one worker
    #[arg(long, default_value_t = 64)]
    pub batch: u32,
    /// Seed of the order of the examples, and of the built-in data set
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of servers (when it starts its own job)
    #[arg(long, default_value_t = 2)]
    pub servers: u32,
    /// Number of workers [WINDLASS_WORKERS; default: 4]
    #[arg(long)]
    pub workers: Option<u32>,
    /// Threads of each server (when it starts its own job) [WINDLASS_THREADS; default: 1]
    #[arg(long)]
    pub threads: Option<u32>,
    /// This worker's rank (in a job) [else WINDLASS_RANK]
    #[arg(long)]
    pub rank: Option<u32>,
    /// In place of --wait-timeout and --join-timeout
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Write the weights there: little-endian fp32 in key order
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Write the results there, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    // No doc comment: it would replace the command's own description in --help.
    #[allow(missing_docs)]
    #[command(flatten)]
    pub checkpoints: CheckpointFlags,
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
        let given = environment.clone().with(settings::WAIT_TIMEOUT.variable, self.timeout);
        let given = given.with(settings::JOIN_TIMEOUT.variable, self.timeout);
        let given = self.node.network.over(&self.worker.over(&given))?;
        Ok(self.checkpoints.over(&given))
    }

    /// What can be refused before anything is started.
    pub fn check(&self) -> Result<()> {
        for path in [&self.data, &self.test].into_iter().flatten() {
            File::open(path).map_err(|e| Error::io("open", path.display(), e))?;
        }
        if let Some(features) = self.features.filter(|f| f.get() > MAX_FEATURES) {
            return Err(Error::config("--features", format!("at most {MAX_FEATURES}"), features));
        }
        if self.test.is_some() && self.data.is_none() {
            return Err(Error::config("--test", "--data beside it", "the built-in data set"));
        }
        if self.hash && self.data.is_none() {
            return Err(Error::config("--hash", "--data beside it", "the built-in data set"));
        }
        if self.hash && self.features.is_none() && self.table == TableChoice::Dense {
            return Err(Error::config("--table dense with --hash", "--features beside it", "none"));
        }
        let numbers = [
            ("--epochs", u64::from(self.epochs)),
            ("--batch", u64::from(self.batch)),
            ("--timeout", self.timeout.unwrap_or(1)),
        ];
        if let Some((flag, zero)) = numbers.into_iter().find(|(_, number)| *number == 0) {
            return Err(Error::config(flag, "at least 1", zero));
        }
        let segment = self.segment_bytes;
        if !(64..=1 << 20).contains(&segment) || !segment.is_multiple_of(64) {
            return Err(Error::config("--segment-bytes", "a multiple of 64 from 64 to 1048576", segment));
        }
        if let (None, Some(features)) = (&self.data, self.features)
            && features.get() < synthetic::FEATURES
        {
            let expected = format!("at least {} for the built-in data set", synthetic::FEATURES);
            return Err(Error::config("--features", expected, features));
        }
        let rates = [self.alpha, self.beta, self.l1, self.l2, self.rate(), self.epsilon()];
        let flags = ["--alpha", "--beta", "--l1", "--l2", "--rate", "--epsilon"];
        if let Some((flag, rate)) = flags.into_iter().zip(rates).find(|(_, r)| !r.is_finite() || *r < 0.0) {
            return Err(Error::config(flag, "a finite value ≥ 0", rate));
        }
        let kept = [("--beta1", self.beta1), ("--beta2", self.beta2)];
        if let Some((flag, beta)) = kept.into_iter().find(|(_, beta)| !(0.0..1.0).contains(beta)) {
            return Err(Error::config(flag, "a value from 0 to below 1", beta));
        }
        match self.workers {
            Some(workers) => self.spec(1).validate_for(workers),
            None => self.spec(1).validate(),
        }
    }

    /// Whether what `--save` and `--report` name can be written: an hour of training later is too late to find out. For the
    /// process that writes it, or the one that starts that. Leaves everything as it is.
    pub fn check_outputs(&self) -> Result<()> {
        for path in [&self.save, &self.report].into_iter().flatten() {
            writable(path).map_err(|e| Error::io("open for writing", path.display(), e))?;
        }
        Ok(())
    }

    /// What only makes sense in a job that somebody else started.
    pub fn check_alone(&self) -> Result<()> {
        let flag = match (&self.rank, &self.node.secret_file) {
            (Some(_), _) => "--rank",
            (_, Some(_)) => "--secret-file",
            _ => return Ok(()),
        };
        Err(Error::config(flag, "--coordinator beside it (without one it starts a job of its own)", "none"))
    }

    /// How indices become keys.
    pub fn index_mode(&self) -> IndexMode {
        match self.hash {
            true => IndexMode::Hashed { features: self.features },
            false => IndexMode::OneBased { features: self.features },
        }
    }

    /// The learning rate, but for `ftrl`.
    pub fn rate(&self) -> f32 {
        self.rate.unwrap_or_else(|| self.optimizer.rate())
    }

    /// What keeps the divisor of `adagrad` and `adam` off 0.
    pub fn epsilon(&self) -> f32 {
        self.epsilon.unwrap_or_else(|| self.optimizer.epsilon())
    }

    /// The table of `features` weights.
    pub fn spec(&self, features: u64) -> TableSpec {
        let optimizer = match self.optimizer {
            OptimizerChoice::Ftrl => OptimizerSpec::ftrl(self.alpha, self.beta, self.l1, self.l2),
            OptimizerChoice::Sgd => OptimizerSpec::sgd(self.rate()),
            OptimizerChoice::Adagrad => OptimizerSpec::adagrad(self.rate(), self.epsilon()),
            OptimizerChoice::Adam => OptimizerSpec::adam(self.rate(), self.beta1, self.beta2, self.epsilon()),
        };
        let spec = match self.table {
            TableChoice::Sparse => TableSpec::sparse("weights", 1),
            TableChoice::Dense => {
                TableSpec::dense("weights", &[features.max(1)]).segment_bytes(self.segment_bytes)
            }
        };
        let late = match self.late {
            LateChoice::Drop => Late::Drop,
            LateChoice::Apply => Late::Apply,
        };
        let spec = spec.optimizer(optimizer).consistency(self.consistency).wire(self.wire);
        let spec = spec.non_finite(self.non_finite);
        match self.quorum {
            Some(workers) => spec.quorum(Quorum { workers, late }),
            None => spec,
        }
    }
}

fn writable(path: &Path) -> io::Result<()> {
    match OpenOptions::new().append(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new().write(true).create_new(true).open(path)?;
            fs::remove_file(path)
        }
        opened => opened.map(drop),
    }
}
