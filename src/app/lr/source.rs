//! Where the examples come from.

use super::options::Options;
use crate::data::synthetic::{self, Synthetic};
use crate::data::{Dataset, libsvm};
use crate::error::Result;

/// Part `rank` of `workers` of the training examples.
pub fn training_part(options: &Options, rank: u32, workers: u32) -> Result<Dataset> {
    let (part, parts) = (u64::from(rank), u64::from(workers));
    match &options.data {
        Some(path) => libsvm::read_part(path, part, parts, options.index_mode()),
        None => Ok(Synthetic::new(options.seed).train(part, parts)),
    }
}

/// The number of features, where it is known without looking at all parts.
pub fn known_features(options: &Options) -> Option<u64> {
    match (options.features, &options.data) {
        (Some(features), _) => Some(features.get()),
        (None, None) => Some(synthetic::FEATURES),
        (None, Some(_)) => None,
    }
}

/// What the model is judged on, and what that is called.
pub fn test_set(options: &Options) -> Result<(Dataset, &'static str)> {
    // A test row may have features that training never saw: they weigh nothing.
    let mode = match options.index_mode() {
        libsvm::IndexMode::OneBased { .. } => libsvm::IndexMode::OneBased { features: None },
        hashed => hashed,
    };
    match (&options.test, &options.data) {
        (Some(path), _) => Ok((libsvm::read(path, mode)?, "test file")),
        (None, Some(path)) => Ok((libsvm::read(path, mode)?, "training file")),
        (None, None) => Ok((Synthetic::new(options.seed).test(), "held-out rows of the built-in set")),
    }
}

/// How far `weights` (by key) are from the planted ones; nothing for a file.
pub fn distance(options: &Options, weights: &[f32]) -> Option<synthetic::Distance> {
    if options.data.is_some() {
        return None;
    }
    let set = Synthetic::new(options.seed);
    let keys = set.train(0, 1).distinct_keys();
    let learnt: Vec<f32> = keys.iter().map(|&k| weights.get(k as usize).copied().unwrap_or(0.0)).collect();
    Some(set.distance(&keys, &learnt))
}
