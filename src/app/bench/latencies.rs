//! How long operations took: counts in buckets that are 1/64 of a power of two wide, as in HdrHistogram.
//!
//! The counts of several workers add up by adding element by element, so a table with the optimizer `sum` merges them.

use std::time::Duration;

/// Buckets of one power of two.
const PARTS: u64 = 64;
/// The longest time that is told apart, 2^40 ns or 18 minutes.
const LONGEST: u64 = 1 << 40;
/// Buckets in all: below `PARTS` ns one each, then `PARTS` for each power of two.
pub const BUCKETS: usize = (PARTS * (40 - 6 + 1)) as usize;

/// Counts by duration.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Vec<f32>,
}

impl Latencies {
    /// None yet.
    pub fn new() -> Latencies {
        Latencies { counts: vec![0.0; BUCKETS] }
    }

    /// What other workers have counted.
    pub fn from_counts(counts: Vec<f32>) -> Latencies {
        Latencies { counts }
    }

    /// One number for each bucket.
    pub fn counts(&self) -> &[f32] {
        &self.counts
    }

    /// Counts one more. A bucket is exact up to 2^24 and stays there.
    pub fn record(&mut self, took: Duration) {
        self.counts[bucket(took)] += 1.0;
    }

    /// The time that `share` of all did not exceed, in microseconds, as if those of a bucket were spread evenly over it: at most 1.6 % too
    /// long or too short; 0 when there are none.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let total: f64 = self.counts.iter().map(|&c| f64::from(c)).sum();
        let mut seen = 0.0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            seen += f64::from(count);
            if count > 0.0 && seen >= total * share {
                let (lower, upper) = (lower_edge(bucket) as f64, upper_edge(bucket) as f64);
                let beyond = (seen - total * share) / f64::from(count);
                return (upper - beyond * (upper - lower)) / 1000.0;
            }
        }
        0.0
    }
}

fn bucket(took: Duration) -> usize {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).min(LONGEST - 1);
    if nanos < PARTS {
        return nanos as usize;
    }
    // The position of the highest bit, and the six bits below it.
    let power = u64::from(nanos.ilog2());
    let part = (nanos >> (power - 6)) - PARTS;
    (PARTS * (power - 5) + part) as usize
}

/// The shortest time that lies above a bucket, in nanoseconds.
fn upper_edge(bucket: usize) -> u64 {
    let (octave, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    if octave == 0 { part + 1 } else { (PARTS + part + 1) << (octave - 1) }
}

/// The shortest time of a bucket, in nanoseconds.
fn lower_edge(bucket: usize) -> u64 {
    bucket.checked_sub(1).map_or(0, upper_edge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_time_lies_in_its_bucket(nanos in 0..LONGEST) {
            let at = bucket(Duration::from_nanos(nanos));
            prop_assert!(lower_edge(at) <= nanos && nanos < upper_edge(at));
            prop_assert!((upper_edge(at) - lower_edge(at) - 1) * PARTS <= nanos);
        }
    }

    #[test]
    fn quantiles() {
        let mut l = Latencies::new();
        assert_eq!(l.quantile_us(0.5), 0.0);
        for micros in 1..=100 {
            l.record(Duration::from_micros(micros));
        }
        for (share, expected) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = l.quantile_us(share);
            assert!(found >= expected && found < expected * 1.017, "{share}: {found}");
        }
        l.record(Duration::MAX);
        assert_eq!(l.quantile_us(1.0), LONGEST as f64 / 1000.0);
    }
}
