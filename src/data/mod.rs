//! Data sets for the training applications: LIBSVM files cut among workers, and a generated set with known weights.
//!
//! Everything here gives the same bits on every CPU: numbers are parsed with correct rounding, and what is computed is
//! computed with integers and + − × ÷ √ only.

pub mod libsvm;
pub mod logistic;
pub mod synthetic;

/// Labelled sparse rows in compressed form: row `i` has the entries `offsets[i]..offsets[i + 1]` of `keys` and `values`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// 0 or 1, one a row.
    pub labels: Vec<f32>,
    /// Where each row begins; one more than there are rows, from 0 to the number of entries.
    pub offsets: Vec<u64>,
    /// Feature keys, strictly ascending within a row.
    pub keys: Vec<u64>,
    /// The value of each key; always finite.
    pub values: Vec<f32>,
}

impl Default for Dataset {
    fn default() -> Self {
        Dataset { labels: Vec::new(), offsets: vec![0], keys: Vec::new(), values: Vec::new() }
    }
}

impl Dataset {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// The number of entries of all rows.
    pub fn entries(&self) -> usize {
        self.keys.len()
    }

    /// Keys and values of row `row`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, row: usize) -> (&[u64], &[f32]) {
        let entries = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        (&self.keys[entries.clone()], &self.values[entries])
    }

    /// The largest key that occurs: a dense table needs one element more than this.
    pub fn max_key(&self) -> Option<u64> {
        self.keys.iter().copied().max()
    }

    /// The keys that occur, sorted, each once.
    pub fn distinct_keys(&self) -> Vec<u64> {
        let mut keys = self.keys.clone();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Adds a row. `entries` must have strictly ascending keys and finite values.
    pub fn push_row(&mut self, label: f32, entries: impl Iterator<Item = (u64, f32)>) {
        for (key, value) in entries {
            self.keys.push(key);
            self.values.push(value);
        }
        self.labels.push(label);
        self.offsets.push(self.keys.len() as u64);
    }

    /// Adds all rows of `other` behind the present ones.
    pub fn append(&mut self, other: &Dataset) {
        let base = self.keys.len() as u64;
        self.labels.extend_from_slice(&other.labels);
        self.offsets.extend(other.offsets[1..].iter().map(|offset| base + offset));
        self.keys.extend_from_slice(&other.keys);
        self.values.extend_from_slice(&other.values);
    }
}
