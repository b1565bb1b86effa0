//! What worker 0 shows while it trains.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::client::Client;
use crate::error::Result;
use crate::proto::control::PeerStatus;

const EVERY_ON_TERMINAL: Duration = Duration::from_millis(500);
const EVERY_LINE: Duration = Duration::from_secs(2);

/// What a worker tells the others of itself, as its status.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Told {
    /// 1 + the largest key of its examples.
    pub features: u64,
    /// Examples seen so far.
    pub examples: u64,
    /// Sum of their losses.
    pub loss: f64,
}

impl Told {
    /// 24 little-endian bytes.
    pub fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.features.to_le_bytes());
        out[8..16].copy_from_slice(&self.examples.to_le_bytes());
        out[16..].copy_from_slice(&self.loss.to_le_bytes());
        out
    }

    /// The inverse; a worker that has said nothing yet has seen nothing.
    pub fn decode(bytes: &[u8]) -> Told {
        let part = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).unwrap_or([0; 8]);
        Told {
            features: u64::from_le_bytes(part(0)),
            examples: u64::from_le_bytes(part(8)),
            loss: f64::from_le_bytes(part(16)),
        }
    }
}

/// Shows progress: a bar on a terminal, plain lines otherwise.
///
/// Clocks come from the servers and are exact. What workers tell of their examples is up to half a second old, so the
/// rate is one over the whole run.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    /// Seen before the job went on from a checkpoint.
    before: u64,
    began: Instant,
    shown: Instant,
    last: Told,
}

impl Progress {
    /// Of `total` examples in all, over all workers and epochs, of which a job that goes on has seen so many `before`.
    pub fn new(total: u64, before: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(before);
            bar.reset_eta();
            if let Ok(style) = ProgressStyle::with_template("{bar:10} {percent:>3}% {wide_msg} [{eta}]") {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Progress { bar, total, before, began: now, shown: now, last: Told::default() }
    }

    /// Shows how far all workers are, if it is time to.
    pub fn show(&mut self, client: &Client) -> Result<()> {
        let every = if self.bar.is_some() { EVERY_ON_TERMINAL } else { EVERY_LINE };
        if self.shown.elapsed() < every {
            return Ok(());
        }
        let now = sum(&client.peers()?);
        let clocks = client.server_stats()?.into_iter().next().map_or(Vec::new(), |s| s.clocks);
        let line = describe(&clocks, &self.last, &now, self.began.elapsed());
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.before + now.examples);
                bar.set_message(line);
            }
            None => eprintln!("{:>3}% {line}", self.percent(&now)),
        }
        self.shown = Instant::now();
        self.last = now;
        Ok(())
    }

    fn percent(&self, now: &Told) -> u64 {
        (self.before + now.examples) * 100 / self.total.max(1)
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn sum(peers: &[PeerStatus]) -> Told {
    let mut all = Told::default();
    for told in peers.iter().map(|p| Told::decode(&p.status)) {
        all.features = all.features.max(told.features);
        all.examples += told.examples;
        all.loss += told.loss;
    }
    all
}

fn describe(clocks: &[u64], last: &Told, now: &Told, elapsed: Duration) -> String {
    let fresh = now.examples.saturating_sub(last.examples);
    let rate = now.examples as f64 / elapsed.as_secs_f64();
    let loss = if fresh > 0 { (now.loss - last.loss) / fresh as f64 } else { 0.0 };
    let front = clocks.iter().copied().max().unwrap_or(0);
    let lags: Vec<String> = clocks.iter().map(|c| (front - c).to_string()).collect();
    format!("{rate:.0} examples/s, loss {loss:.4}, clock {front}, lag {}", lags.join(" "))
}

/// The number of features over all workers.
pub fn features(peers: &[PeerStatus]) -> u64 {
    sum(peers).features
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_goes_on_begins_where_it_was() {
        let told = |examples| Told { examples, ..Told::default() };
        let progress = Progress::new(1000, 250);
        assert_eq!([0, 250, 750].map(|examples| progress.percent(&told(examples))), [25, 50, 100]);
        assert_eq!(Progress::new(0, 0).percent(&told(0)), 0);
    }

    #[test]
    fn what_is_told_is_understood() {
        let told = Told { features: 7, examples: 1 << 40, loss: 0.25 };
        assert_eq!(Told::decode(&told.encode()), told);
        assert_eq!(Told::decode(&[]), Told::default());
        let peer = |rank, clock| PeerStatus { rank, clock, status: told.encode().to_vec() };
        let peers = [peer(0, 5), peer(1, 3)];
        assert_eq!(features(&peers), 7);
        let line = describe(&[5, 3], &Told::default(), &sum(&peers), Duration::from_secs(2));
        assert!(line.contains("clock 5, lag 0 2"), "{line}");
        assert!(line.starts_with(&format!("{} examples/s", 1u64 << 40)), "{line}");
    }
}
