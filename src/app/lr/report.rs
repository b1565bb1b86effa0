//! The result of a training run, for people and as JSON.

use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::options::{LateChoice, OptimizerChoice, Options, TableChoice};
use crate::client::ServerStats;
use crate::error::{Error, Result};
use crate::types::NonFinite;

/// All that `--report` writes.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub accuracy: f64,
    /// Nothing when the test set has one class only.
    pub auc: Option<f64>,
    pub logloss: f64,
    /// What the three above were measured on.
    pub measured_on: String,
    pub examples_per_second: f64,
    pub seconds: f64,
    /// Payload of all pushes, keys included, in bytes.
    pub bytes_pushed: u64,
    /// Payload of all answers to pulls, in bytes.
    pub bytes_pulled: u64,
    /// Parameters held: for each server one number for each thread.
    pub bytes_per_server: Vec<Vec<u64>>,
    pub reconnects: u64,
    pub duplicates_dropped: u64,
    /// Pieces that came after a quorum had closed their clock.
    pub late_dropped: u64,
    pub late_applied: u64,
    /// Values that were infinite or no number, and the pieces that were rejected because of them; see `settings.non_finite`.
    pub non_finite: u64,
    pub non_finite_rejected: u64,
    pub max_clock_lag: u64,
    /// Whether the weights are the same bits on any number of servers and threads, whatever arrives when.
    pub reproducible: bool,
    pub transport: String,
    /// `push` or `read`.
    pub pull: String,
    /// Of worker 0: pulls of a bucket that it read one-sidedly, values that it had to read again, and pulls that it could not read.
    pub pulls_read: u64,
    pub reads_again: u64,
    pub reads_asked: u64,
    /// SHA-256 of the weights as little-endian fp32 in key order.
    pub weights_sha256: String,
    pub non_zero_weights: u64,
    /// Built-in data set only.
    pub planted: Option<Planted>,
    pub settings: Settings,
}

/// How far the learnt weights are from the planted ones, over the keys that occur in training.
#[derive(Debug, Clone, Serialize)]
pub struct Planted {
    pub cosine: f64,
    pub relative_l2: f64,
}

/// What the run was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    pub data: String,
    pub test: Option<String>,
    pub hash: bool,
    pub features: u64,
    pub table: TableChoice,
    pub segment_bytes: u32,
    pub optimizer: OptimizerChoice,
    pub alpha: f32,
    pub beta: f32,
    pub l1: f32,
    pub l2: f32,
    pub rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub consistency: String,
    /// `None`: all workers end a clock.
    pub quorum: Option<u32>,
    pub late: LateChoice,
    pub wire: String,
    pub non_finite: String,
    pub epochs: u32,
    pub batch: u32,
    pub seed: u64,
    pub servers: usize,
    pub threads: usize,
    pub workers: u32,
    pub timeout: u64,
    pub version: &'static str,
}

impl Settings {
    /// Of a run over `features` features, whose waits last so many seconds at most.
    pub fn new(
        options: &Options,
        features: u64,
        (workers, timeout): (u32, u64),
        servers: &[ServerStats],
    ) -> Settings {
        let shown = |path: &Path| path.display().to_string();
        Settings {
            data: options.data.as_deref().map_or("built-in".to_owned(), shown),
            test: options.test.as_deref().map(shown),
            hash: options.hash,
            features,
            table: options.table,
            segment_bytes: options.segment_bytes,
            optimizer: options.optimizer,
            alpha: options.alpha,
            beta: options.beta,
            l1: options.l1,
            l2: options.l2,
            rate: options.rate(),
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon(),
            consistency: options.consistency.to_string(),
            quorum: options.quorum,
            late: options.late,
            wire: options.wire.to_string(),
            non_finite: options.non_finite.to_string(),
            epochs: options.epochs,
            batch: options.batch,
            seed: options.seed,
            servers: servers.len(),
            threads: servers.iter().map(|s| s.threads.len()).max().unwrap_or(0),
            workers,
            timeout,
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

impl Report {
    /// Writes it as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::io("encode", "the report", std::io::Error::other(e)))?;
        std::fs::write(path, text + "\n").map_err(|e| Error::io("write", path.display(), e))
    }

    /// Values, and pieces, unless nobody looked for them.
    fn non_finite(&self) -> String {
        match self.settings.non_finite != NonFinite::Accept.to_string() {
            true => format!("{}, {}", self.non_finite, self.non_finite_rejected),
            false => "not looked for".to_owned(),
        }
    }

    /// How values were pulled, and what worker 0 could read.
    fn pull(&self) -> String {
        match self.pulls_read + self.reads_asked {
            0 => self.pull.clone(),
            _ => {
                let (read, again, asked) = (self.pulls_read, self.reads_again, self.reads_asked);
                format!("{}: worker 0 read {read}, {again} of them again, and asked for {asked}", self.pull)
            }
        }
    }

    /// A table for people.
    pub fn print(&self) {
        let auc = self.auc.map_or("undefined (one class)".to_owned(), |a| format!("{a:.4}"));
        let held: Vec<String> = self.bytes_per_server.iter().map(|s| format!("{s:?}")).collect();
        let mut rows = vec![
            ("measured on", self.measured_on.clone()),
            ("accuracy", format!("{:.4}", self.accuracy)),
            ("auc", auc),
            ("logloss", format!("{:.4}", self.logloss)),
            ("seconds", format!("{:.2}", self.seconds)),
            ("examples per second", format!("{:.0}", self.examples_per_second)),
            ("bytes pushed, pulled", format!("{}, {}", self.bytes_pushed, self.bytes_pulled)),
            ("bytes per server", held.join(" ")),
            ("reconnects", self.reconnects.to_string()),
            ("duplicates dropped", self.duplicates_dropped.to_string()),
            ("late dropped, applied", format!("{}, {}", self.late_dropped, self.late_applied)),
            ("non-finite, rejected", self.non_finite()),
            ("max clock lag", self.max_clock_lag.to_string()),
            ("reproducible", self.reproducible.to_string()),
            ("transport", self.transport.clone()),
            ("pull", self.pull()),
            ("weights", format!("{} of {} not zero", self.non_zero_weights, self.settings.features)),
            ("weights sha256", self.weights_sha256.clone()),
        ];
        if let Some(planted) = &self.planted {
            let text = format!("cosine {:.4}, relative distance {:.4}", planted.cosine, planted.relative_l2);
            rows.push(("to the planted weights", text));
        }
        for (name, value) in rows {
            println!("{name:<22} {value}");
        }
    }
}

/// SHA-256 of the weights as little-endian fp32, in hexadecimal.
pub fn weights_sha256(weights: &[f32]) -> String {
    let digest = Sha256::digest(bytemuck::cast_slice::<f32, u8>(weights));
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
