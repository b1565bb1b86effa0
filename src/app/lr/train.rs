//! One worker of a training run.

use std::time::Instant;

use super::batches::Batches;
use super::math::Batch;
use super::metrics::{Quality, quality};
use super::model::{Keys, Learnt, Weights};
use super::options::{MAX_FEATURES, Options};
use super::position::Position;
use super::progress::{Progress, Told, features};
use super::report::{Planted, Report, Settings, weights_sha256};
use super::source;
use crate::client::Client;
use crate::config::Environment;
use crate::data::Dataset;
use crate::error::{Error, Result};

/// Takes part in the job as a worker, from joining to leaving. Worker 0 reports.
pub fn train(options: &Options, environment: &Environment) -> Result<()> {
    options.check()?;
    let settings = options.settings(environment)?;
    let config = options.node.client(&settings, options.rank, options.workers)?;
    if config.rank == 0 {
        options.check_outputs()?;
    }
    let timeout = config.wait_timeout.as_secs();
    let client = Client::connect(config)?;
    let outcome = Worker { client: client.clone(), options, timeout }.run();
    match outcome {
        Ok(()) => client.finalize(),
        Err(error) => {
            // The others are told why, and not only that a link closed; the Coordinator adds who.
            client.abort(&error.to_string());
            Err(error)
        }
    }
}

struct Worker<'a> {
    client: Client,
    options: &'a Options,
    /// Seconds that any one wait may last.
    timeout: u64,
}

impl Worker<'_> {
    fn run(&self) -> Result<()> {
        let data = source::training_part(self.options, self.client.rank(), self.client.workers())?;
        let weights = Weights::open(&self.client, self.options, self.keys(&data)?)?;
        self.client.barrier()?;
        let start = Instant::now();
        self.learn(&data, &weights)?;
        self.client.finish()?;
        self.client.barrier()?;
        let seconds = start.elapsed().as_secs_f64();
        if self.client.rank() == 0 {
            self.report(&weights, seconds)?;
        }
        Ok(())
    }

    /// Which keys the model has: as many as are given, or as the largest index says, or any.
    fn keys(&self, data: &Dataset) -> Result<Keys> {
        let told = Told { features: data.max_key().map_or(0, |k| k.saturating_add(1)), ..Told::default() };
        self.client.set_status(&told.encode())?;
        // A heartbeat goes ahead of the question, so behind the barrier every worker's figure is known.
        self.client.peers()?;
        self.client.barrier()?;
        let known = features(&self.client.peers()?).max(1);
        match source::known_features(self.options) {
            Some(given) => Ok(Keys::Below(given)),
            None if self.options.hash => Ok(Keys::Any),
            None if known <= MAX_FEATURES => Ok(Keys::Below(known)),
            None => {
                let expected = format!("indices up to {MAX_FEATURES}, or --hash");
                Err(Error::config("the data", expected, known))
            }
        }
    }

    /// Where to begin: where the checkpoint left off, if the job goes on from one, which must be one of the same batches.
    fn begin(&self, data: &Dataset) -> Result<Position> {
        let Options { batch, seed, .. } = *self.options;
        let here = Position { epoch: 0, index: 0, rows: data.rows() as u64, batch, seed };
        // A checkpoint that was made from other programs' weights holds no worker's state.
        let Some((clock, state)) = self.client.resumed().filter(|(_, state)| !state.is_empty()) else {
            return Ok(here);
        };
        match Position::decode(&state) {
            Some(there) if (Position { epoch: 0, index: 0, ..there }) == here => Ok(there),
            there => {
                let expected = format!("a checkpoint of {here:?}");
                Err(Error::config("--resume", expected, format!("clock {clock}, {there:?}")))
            }
        }
    }

    /// Goes over the data as often as asked.
    fn learn(&self, data: &Dataset, weights: &Weights) -> Result<()> {
        let rank = self.client.rank();
        let mut batches = Batches::new(data, self.options.batch as usize, self.options.seed, rank);
        let begin = self.begin(data)?;
        let (rows, workers) = (data.rows() as u64, u64::from(self.client.workers()));
        let before = rows * u64::from(begin.epoch.min(self.options.epochs))
            + begin.index.saturating_mul(self.options.batch.into()).min(rows);
        let mut told = Told::default();
        let mut progress = (rank == 0)
            .then(|| Progress::new(rows * u64::from(self.options.epochs) * workers, before * workers));
        let (mut batch, mut local, mut gradient) = (Batch::default(), Vec::new(), Vec::new());
        for epoch in begin.epoch..self.options.epochs {
            batches.shuffle(epoch);
            let first = if epoch == begin.epoch { begin.index } else { 0 };
            for index in first as usize..batches.count() {
                self.client.save_state(&Position { epoch, index: index as u64, ..begin }.encode())?;
                batches.fill(index, &mut batch);
                weights.pull(batch.keys(), &mut local)?;
                gradient.resize(batch.keys().len(), 0.0);
                told.loss += batch.gradient(&local, &mut gradient);
                told.examples += batch.rows() as u64;
                weights.push(batch.keys(), &gradient)?;
                self.client.clock()?;
                self.client.set_status(&told.encode())?;
                if let Some(progress) = &mut progress {
                    progress.show(&self.client)?;
                }
            }
        }
        self.client.save_state(&Position { epoch: self.options.epochs, index: 0, ..begin }.encode())?;
        if let Some(progress) = &progress {
            progress.end();
        }
        // So that worker 0 can add up what all have seen.
        self.client.peers()?;
        Ok(())
    }

    fn report(&self, weights: &Weights, seconds: f64) -> Result<()> {
        let options = self.options;
        let learnt = weights.learnt(|| source::training_part(options, 0, 1))?;
        let peers = self.client.peers()?;
        let examples: u64 = peers.iter().map(|p| Told::decode(&p.status).examples).sum();
        let servers = self.client.server_stats()?;
        let (test, measured_on) = source::test_set(options)?;
        let Quality { accuracy, auc, logloss } = judge(&test, &learnt)
            .ok_or_else(|| Error::config(measured_on, "at least one example", "none"))?;
        let reads = self.client.stats().reads;
        let threads = || servers.iter().flat_map(|s| &s.threads);
        let report = Report {
            accuracy,
            auc,
            logloss,
            measured_on: measured_on.to_owned(),
            examples_per_second: examples as f64 / seconds,
            seconds,
            bytes_pushed: threads().map(|t| t.pushed_bytes).sum(),
            bytes_pulled: threads().map(|t| t.pulled_bytes).sum(),
            bytes_per_server: servers
                .iter()
                .map(|s| s.threads.iter().map(|t| t.parameter_bytes).collect())
                .collect(),
            reconnects: threads().map(|t| t.reconnects).sum(),
            duplicates_dropped: threads().map(|t| t.duplicates_dropped).sum(),
            late_dropped: threads().map(|t| t.late_dropped).sum(),
            late_applied: threads().map(|t| t.late_applied).sum(),
            non_finite: threads().map(|t| t.non_finite).sum(),
            non_finite_rejected: threads().map(|t| t.non_finite_rejected).sum(),
            max_clock_lag: threads().map(|t| t.max_clock_lag).max().unwrap_or(0),
            reproducible: options.spec(1).reproducible(self.client.workers()),
            transport: self.client.transport(),
            pull: self.client.pull_mode().to_string(),
            pulls_read: reads.read,
            reads_again: reads.again,
            reads_asked: reads.asked,
            weights_sha256: weights_sha256(&learnt.weights),
            non_zero_weights: learnt.weights.iter().filter(|w| **w != 0.0).count() as u64,
            planted: source::distance(options, &learnt.weights)
                .map(|d| Planted { cosine: d.cosine, relative_l2: d.relative_l2 }),
            settings: Settings::new(
                options,
                learnt.weights.len() as u64,
                (self.client.workers(), self.timeout),
                &servers,
            ),
        };
        report.print();
        // A disk that is full for one may still take the other.
        let reported = options.report.as_deref().map_or(Ok(()), |path| report.write(path));
        if let Some(path) = &options.save {
            std::fs::write(path, bytemuck::cast_slice::<f32, u8>(&learnt.weights))
                .map_err(|e| Error::io("write", path.display(), e))?;
        }
        reported
    }
}

fn judge(test: &Dataset, learnt: &Learnt) -> Option<Quality> {
    let batch = Batch::new(test, 0..test.rows());
    let local: Vec<f32> = batch.keys().iter().map(|&key| learnt.at(key)).collect();
    let mut scores = Vec::new();
    batch.scores(&local, &mut scores);
    quality(&scores, batch.labels())
}
