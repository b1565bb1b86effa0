//! The built-in data set: a planted sparse linear model, observed through noise.
//!
//! Row `i` depends on (seed, `i`) only, so each worker makes its own rows and nobody reads a file. A row has 20 to 40
//! draws of a feature; a feature's *rank* is drawn so that the chance of a rank falls like 1 / rank in steps of an octave
//! (first the octave, each alike, then the rank in it), as words do in text. A bijection scatters ranks over the whole
//! range of keys, so that every segment of a dense table has popular features. Half of the popular features carry a
//! weight, all others none. The label is drawn with the probability that the logistic model gives it, and one label in
//! 32 is then turned round.
//!
//! The planted weights themselves, the best that any learner could find, reach an accuracy of about 0.80 and an AUC of
//! about 0.87 on the held-out set; they differ a little from seed to seed.

use super::Dataset;
use super::logistic::sigmoid;
use crate::types::mix64;
use crate::types::random::SplitMix64;

/// Keys are below this.
pub const FEATURES: u64 = 1 << FEATURE_BITS;
/// Rows of the training set.
pub const TRAIN_ROWS: u64 = 20_000;
/// Rows of the held-out set.
pub const TEST_ROWS: u64 = 5_000;

const FEATURE_BITS: u32 = 20;
/// Features of a rank from here on carry no weight: they occur too rarely for anything to be learnt about them.
const PLANTED_RANKS: u64 = 1 << 10;
/// Row numbers of the held-out set begin here, far behind any training row.
const FIRST_TEST_ROW: u64 = 1 << 40;
/// One label in this many is turned round.
const FLIP_ONE_IN: u64 = 32;

/// Streams of random numbers, apart from those of the rows, which are numbered from 0.
const WEIGHT_STREAM: u64 = 1 << 63;

/// The generated data set of one seed.
#[derive(Debug, Clone, Copy)]
pub struct Synthetic {
    seed: u64,
}

/// How far learnt weights are from the planted ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Cosine of the angle between the two vectors: 1 where they agree up to a factor; 0 where either is zero.
    pub cosine: f64,
    /// Length of the difference over the length of the planted weights: 0 where they agree, 1 where nothing was learnt.
    pub relative_l2: f64,
}

impl Synthetic {
    /// The data set of `seed`.
    pub fn new(seed: u64) -> Synthetic {
        Synthetic { seed }
    }

    /// The training rows of part `part` of `parts`: a contiguous range; all parts together are all [`TRAIN_ROWS`].
    /// No rows where there is no such part.
    pub fn train(&self, part: u64, parts: u64) -> Dataset {
        if part >= parts {
            return Dataset::default();
        }
        let cut = |part: u64| (u128::from(TRAIN_ROWS) * u128::from(part) / u128::from(parts)) as u64;
        self.rows(cut(part)..cut(part + 1))
    }

    /// The held-out rows.
    pub fn test(&self) -> Dataset {
        self.rows(FIRST_TEST_ROW..FIRST_TEST_ROW + TEST_ROWS)
    }

    /// The weight that the model gives to `key`; 0 for most keys, and for keys from [`FEATURES`] on.
    pub fn planted(&self, key: u64) -> f32 {
        if key >= FEATURES || self.rank(key) >= PLANTED_RANKS {
            return 0.0;
        }
        let bits = mix64(mix64(self.seed ^ WEIGHT_STREAM).wrapping_add(key));
        let magnitude = 0.5 + (bits >> 40) as f32 / (1 << 24) as f32;
        match bits & 3 {
            0 => magnitude,
            1 => -magnitude,
            _ => 0.0,
        }
    }

    /// How far `learnt` is from the planted weights, over these keys (`learnt[i]` belongs to `keys[i]`).
    ///
    /// Meant for the keys that occur in the training set ([`Dataset::distinct_keys`]): nothing can be learnt of others.
    pub fn distance(&self, keys: &[u64], learnt: &[f32]) -> Distance {
        let (mut dot, mut learnt_square, mut planted_square, mut difference) =
            (0.0f64, 0.0f64, 0.0f64, 0.0f64);
        for (key, learnt) in keys.iter().zip(learnt) {
            let (learnt, planted) = (f64::from(*learnt), f64::from(self.planted(*key)));
            dot += learnt * planted;
            learnt_square += learnt * learnt;
            planted_square += planted * planted;
            difference += (learnt - planted) * (learnt - planted);
        }
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        Distance {
            cosine: ratio(dot, learnt_square.sqrt() * planted_square.sqrt()),
            relative_l2: ratio(difference.sqrt(), planted_square.sqrt()),
        }
    }

    fn rows(&self, range: std::ops::Range<u64>) -> Dataset {
        let mut data = Dataset::default();
        let mut entries = Vec::new();
        for row in range {
            let label = self.row(row, &mut entries);
            data.push_row(label, entries.iter().copied());
        }
        data
    }

    /// Makes row `row`: its entries, sorted, and its label.
    fn row(&self, row: u64, entries: &mut Vec<(u64, f32)>) -> f32 {
        let mut random = SplitMix64::new(self.seed, row);
        entries.clear();
        for _ in 0..20 + random.below(21) {
            let octave = random.below(u64::from(FEATURE_BITS));
            let rank = (1 << octave) - 1 + random.below(1 << octave);
            let value = (128 + random.below(257)) as f32 / 256.0;
            entries.push((self.key(rank), value));
        }
        entries.sort_by_key(|entry| entry.0);
        entries.dedup_by_key(|entry| entry.0);
        let score: f64 =
            entries.iter().map(|(key, value)| f64::from(self.planted(*key)) * f64::from(*value)).sum();
        let drawn = random.unit() < sigmoid(score);
        let flipped = random.below(FLIP_ONE_IN) == 0;
        f32::from(u8::from(drawn != flipped))
    }

    /// The key of a rank: a bijection of the numbers below [`FEATURES`], made of steps that can be undone.
    fn key(&self, rank: u64) -> u64 {
        let mut key = rank ^ self.mask();
        for _ in 0..2 {
            key = key.wrapping_mul(SCATTER) & (FEATURES - 1);
            key ^= key >> (FEATURE_BITS / 2);
        }
        key
    }

    /// The rank of a key below [`FEATURES`]: `key` undone.
    fn rank(&self, key: u64) -> u64 {
        let mut rank = key;
        for _ in 0..2 {
            rank ^= rank >> (FEATURE_BITS / 2);
            rank = rank.wrapping_mul(GATHER) & (FEATURES - 1);
        }
        rank ^ self.mask()
    }

    fn mask(&self) -> u64 {
        mix64(self.seed) & (FEATURES - 1)
    }
}

/// Any odd number is a bijection modulo a power of two; this one has its bits well spread.
const SCATTER: u64 = 0x9E37_79B9_7F4A_7C15;
/// The inverse of [`SCATTER`] modulo 2^64.
const GATHER: u64 = inverse(SCATTER);
const _: () = assert!(SCATTER.wrapping_mul(GATHER) == 1);

/// The inverse of an odd number modulo 2^64, by Newton's iteration: each step doubles the number of right bits, from 3.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut right_bits = 3;
    while right_bits < 64 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        right_bits *= 2;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_ranks_are_each_others_inverse() {
        let set = Synthetic::new(11);
        let mut seen = vec![false; FEATURES as usize];
        for rank in 0..FEATURES {
            let key = set.key(rank);
            assert!(!std::mem::replace(&mut seen[key as usize], true), "key {key} twice");
            assert_eq!(set.rank(key), rank);
        }
    }

    #[test]
    fn parts_are_the_whole_in_order() {
        let set = Synthetic::new(1);
        let whole = set.train(0, 1);
        assert_eq!(whole.rows() as u64, TRAIN_ROWS);
        for parts in [2, 3, 7] {
            let mut joined = Dataset::default();
            (0..parts).for_each(|part| joined.append(&set.train(part, parts)));
            assert_eq!(joined, whole, "{parts} parts");
        }
        assert_eq!(set.train(3, 3).rows(), 0);
        assert_eq!(set.train(0, 0).rows(), 0);
    }

    #[test]
    fn rows_are_well_formed_and_differ_between_seeds_and_sets() {
        let set = Synthetic::new(1);
        let data = set.train(0, 10);
        for row in 0..data.rows() {
            let (keys, values) = data.row(row);
            assert!((10..=40).contains(&keys.len()), "{} entries", keys.len());
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(keys.iter().all(|key| *key < FEATURES));
            assert!(values.iter().all(|value| (0.5..=1.5).contains(value)));
            assert!(data.labels[row] == 0.0 || data.labels[row] == 1.0);
        }
        assert_ne!(data, Synthetic::new(2).train(0, 10));
        assert_ne!(data.row(0), set.test().row(0));
        assert_eq!(set.test().rows() as u64, TEST_ROWS);
    }

    #[test]
    fn every_dense_segment_is_touched_and_both_labels_are_common() {
        let data = Synthetic::new(3).train(0, 1);
        let mut touched = [0u32; 16];
        data.keys.iter().for_each(|key| touched[(key >> 16) as usize] += 1);
        assert!(touched.iter().all(|count| *count > 5_000), "{touched:?}");
        let positives: f32 = data.labels.iter().sum();
        assert!((4_000.0..16_000.0).contains(&positives), "{positives}");
    }

    #[test]
    fn the_planted_weights_explain_the_labels() {
        let set = Synthetic::new(4);
        let data = set.test();
        let score = |row: usize| -> f32 {
            let (keys, values) = data.row(row);
            keys.iter().zip(values).map(|(key, value)| set.planted(*key) * value).sum()
        };
        let right = (0..data.rows()).filter(|row| (score(*row) > 0.0) == (data.labels[*row] > 0.5)).count();
        let accuracy = right as f64 / data.rows() as f64;
        assert!((0.77..0.83).contains(&accuracy), "{accuracy}");
        let planted = (0..FEATURES).filter(|key| set.planted(*key) != 0.0).count();
        assert!((450..580).contains(&planted), "{planted}");
        assert_eq!(set.planted(FEATURES), 0.0);
    }

    #[test]
    fn distance_of_known_vectors() {
        let set = Synthetic::new(5);
        let keys: Vec<u64> = (0..FEATURES).collect();
        let planted: Vec<f32> = keys.iter().map(|key| set.planted(*key)).collect();
        let same = set.distance(&keys, &planted);
        assert!((same.cosine - 1.0).abs() < 1e-12 && same.relative_l2 == 0.0);
        let double: Vec<f32> = planted.iter().map(|weight| 2.0 * weight).collect();
        let doubled = set.distance(&keys, &double);
        assert!((doubled.cosine - 1.0).abs() < 1e-12 && (doubled.relative_l2 - 1.0).abs() < 1e-12);
        let nothing = set.distance(&keys, &vec![0.0; keys.len()]);
        assert_eq!(nothing, Distance { cosine: 0.0, relative_l2: 1.0 });
        assert_eq!(set.distance(&[], &[]), Distance { cosine: 0.0, relative_l2: 0.0 });
    }

    /// Bits recorded once; another CPU or compiler must give the same.
    #[test]
    fn bits_are_fixed() {
        let data = Synthetic::new(1).train(0, 20);
        let mut hash = 0u64;
        let mut add = |bits: u64| hash = mix64(hash ^ bits);
        data.labels.iter().for_each(|label| add(u64::from(label.to_bits())));
        data.keys.iter().for_each(|key| add(*key));
        data.values.iter().for_each(|value| add(u64::from(value.to_bits())));
        assert_eq!(hash, 0x140d_3835_e899_7b7f, "{hash:#x}");
    }
}
