//! The model: weights in a sparse or a dense table.

use super::options::{MAX_FEATURES, Options, TableChoice};
use crate::client::{Client, Table};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::types::{Key, KeyRange, SortedKeys};

/// Keys whose weights are asked for at a time at the end.
const KEYS_AT_A_TIME: usize = 1 << 20;

/// Which keys a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// All from 0 to this number.
    Below(u64),
    /// Whatever occurs, of all 2^64.
    Any,
}

/// The weights while they are learnt.
pub struct Weights {
    table: Table,
    keys: Keys,
    kind: TableChoice,
}

/// The weights at the end, in key order.
pub struct Learnt {
    /// The keys of the weights; all from 0 on without them.
    keys: Option<Vec<Key>>,
    /// One for each key.
    pub weights: Vec<f32>,
}

impl Learnt {
    /// The weight of a key; 0 for one that was not learnt.
    pub fn at(&self, key: Key) -> f32 {
        let place = match &self.keys {
            None => usize::try_from(key).ok(),
            Some(keys) => keys.binary_search(&key).ok(),
        };
        place.and_then(|p| self.weights.get(p)).copied().unwrap_or(0.0)
    }
}

impl Weights {
    /// Opens the table that holds them.
    pub fn open(client: &Client, options: &Options, keys: Keys) -> Result<Weights> {
        let features = match keys {
            Keys::Below(features) => features,
            Keys::Any => 1, // of no meaning to a sparse table, and the options allow no other
        };
        let table = client.table(&client.publishing(options.spec(features)))?;
        Ok(Weights { table, keys, kind: options.table })
    }

    /// The weights of `keys`.
    pub fn pull(&self, keys: &[Key], weights: &mut Vec<f32>) -> Result<()> {
        match self.kind {
            TableChoice::Sparse => {
                weights.resize(keys.len(), 0.0);
                self.table.pull(SortedKeys::new(keys)?, weights)?;
            }
            TableChoice::Dense => {
                let mut all = self.zeros()?;
                self.table.pull_range(KeyRange::new(0, all.len() as u64)?, &mut all)?;
                weights.clear();
                weights.extend(keys.iter().map(|&k| all[k as usize]));
            }
        }
        Ok(())
    }

    /// Pushes a gradient; what it does not name is zero.
    pub fn push(&self, keys: &[Key], gradient: &[f32]) -> Result<()> {
        let ticket = match self.kind {
            TableChoice::Sparse => self.table.push(SortedKeys::new(keys)?, gradient)?,
            TableChoice::Dense => {
                let mut all = self.zeros()?;
                keys.iter().zip(gradient).for_each(|(&k, &g)| all[k as usize] = g);
                self.table.push_range(KeyRange::new(0, all.len() as u64)?, &all)?
            }
        };
        // The end of the clock commits it; a failure shows at the next pull.
        drop(ticket);
        Ok(())
    }

    /// All weights. `training` gives all training examples, for their keys where any key may occur.
    pub fn learnt(&self, training: impl FnOnce() -> Result<Dataset>) -> Result<Learnt> {
        if self.keys == Keys::Any {
            let keys = training()?.distinct_keys();
            let mut weights = vec![0.0; keys.len()];
            self.table.pull(SortedKeys::new(&keys)?, &mut weights)?;
            return Ok(Learnt { keys: Some(keys), weights });
        }
        let mut weights = self.zeros()?;
        match self.kind {
            TableChoice::Dense => {
                self.table.pull_range(KeyRange::new(0, weights.len() as u64)?, &mut weights)?;
            }
            TableChoice::Sparse => {
                let parts = weights.chunks_mut(KEYS_AT_A_TIME);
                for (start, weights) in (0u64..).step_by(KEYS_AT_A_TIME).zip(parts) {
                    let keys: Vec<Key> = (start..start + weights.len() as u64).collect();
                    self.table.pull(SortedKeys::new(&keys)?, weights)?;
                }
            }
        }
        Ok(Learnt { keys: None, weights })
    }

    /// As many zeros as there are keys.
    fn zeros(&self) -> Result<Vec<f32>> {
        let features = match self.keys {
            Keys::Below(features) => features,
            Keys::Any => 0,
        };
        let mut zeros = Vec::new();
        zeros.try_reserve_exact(features as usize).map_err(|_| Error::Limit {
            resource: "memory for the weights, of which there are as many as --features".to_owned(),
            limit: MAX_FEATURES,
            asked: features,
        })?;
        zeros.resize(features as usize, 0.0);
        Ok(zeros)
    }
}
