//! A shard's part of a sparse table: buckets of rows by key.

use std::collections::HashMap;
use std::ops::Range;

use super::index::Index;
use super::optimizer::Optimizer;
use super::state::State;
use crate::error::Malformed;
use crate::kernels::{self, Input};
use crate::types::{BucketId, Initial, Key, TableSpec, Version};

const UNTOUCHED: u32 = u32::MAX;

/// Buckets of one sparse table. Those that nobody has touched cost one bit.
pub struct Sparse {
    dim: usize,
    initial: Initial,
    /// A bit for each bucket of the table: whether it is this shard's.
    ours: Vec<u64>,
    pub(super) touched: HashMap<BucketId, SparseBucket>,
}

impl Sparse {
    /// Empty `buckets`, which must be buckets of `spec`.
    pub fn new(spec: &TableSpec, buckets: &[BucketId]) -> Sparse {
        let mut ours = vec![0; spec.buckets().div_ceil(64) as usize];
        for bucket in buckets {
            ours[*bucket as usize / 64] |= 1 << (bucket % 64);
        }
        let initial = Initial::new(spec.initializer, &spec.name);
        Sparse { dim: spec.width() as usize, initial, ours, touched: HashMap::new() }
    }

    /// Bytes that a table takes before it has rows.
    pub fn bytes(spec: &TableSpec) -> u64 {
        u64::from(spec.buckets().div_ceil(64)) * 8
    }

    /// Whether a bucket is this shard's.
    pub fn owns(&self, bucket: BucketId) -> bool {
        self.ours.get(bucket as usize / 64).is_some_and(|bits| bits >> (bucket % 64) & 1 != 0)
    }

    /// A bucket of this shard, made when it is touched for the first time.
    pub fn touch(&mut self, bucket: BucketId, optimizer: &dyn Optimizer) -> &mut SparseBucket {
        self.touched.entry(bucket).or_insert_with(|| SparseBucket::new(self.dim, self.initial, optimizer))
    }

    /// A bucket that was touched before.
    pub fn touched(&mut self, bucket: BucketId) -> Option<&mut SparseBucket> {
        self.touched.get_mut(&bucket)
    }

    /// Appends the row of each key of a bucket; rows that do not exist read as they would begin, and are not made.
    pub fn gather(&self, bucket: BucketId, keys: &[Key], into: &mut Vec<f32>) -> Version {
        match self.touched.get(&bucket) {
            Some(bucket) => bucket.gather(keys, into),
            None => {
                keys.iter().for_each(|key| begin(self.initial, *key, self.dim, into));
                0
            }
        }
    }
}

/// The rows of one bucket. A row is `dim` parameters, then the optimizer's planes, then its scalars.
pub struct SparseBucket {
    dim: usize,
    stride: usize,
    initial: Initial,
    index: Index,
    rows: Vec<f32>,
    /// For each row its place in `sums`, if the open clock touched it.
    sum_of: Vec<u32>,
    touched: Vec<u32>,
    sums: Vec<f32>,
    /// Rows that the open clock set, and to what.
    sets: HashMap<u32, Vec<f32>>,
    version: Version,
}

impl SparseBucket {
    /// An empty bucket of rows of `dim`.
    pub fn new(dim: usize, initial: Initial, optimizer: &dyn Optimizer) -> SparseBucket {
        SparseBucket {
            dim,
            stride: dim * (1 + optimizer.state_width()) + optimizer.scalars(),
            initial,
            index: Index::default(),
            rows: Vec::new(),
            sum_of: Vec::new(),
            touched: Vec::new(),
            sums: Vec::new(),
            sets: HashMap::new(),
            version: 0,
        }
    }

    /// Adds the rows of `values` to what the open clock brought. True when they are the bucket's first in this clock.
    pub fn fold(&mut self, keys: &[Key], values: Input<'_>) -> bool {
        let first = self.touched.is_empty() && self.sets.is_empty();
        for (i, &key) in keys.iter().enumerate() {
            let row = self.row(key);
            if self.sum_of[row] == UNTOUCHED {
                self.sum_of[row] = self.touched.len() as u32;
                self.touched.push(row as u32);
                self.sums.resize(self.sums.len() + self.dim, 0.0);
            }
            let sum = self.sum_of[row] as usize * self.dim;
            kernels::accumulate(&mut self.sums[sum..sum + self.dim], values.part(i * self.dim, self.dim));
        }
        first
    }

    /// Keeps rows that replace those of the table when the clock closes. True when they are the bucket's first in this clock.
    pub fn hold_set(&mut self, keys: &[Key], values: Input<'_>) -> bool {
        let first = self.touched.is_empty() && self.sets.is_empty();
        for (i, &key) in keys.iter().enumerate() {
            let row = self.row(key) as u32;
            let kept = self.sets.entry(row).or_insert_with(|| vec![0.0; self.dim]);
            kernels::widen(kept, values.part(i * self.dim, self.dim));
        }
        first
    }

    /// Replaces rows at once.
    pub fn set(&mut self, keys: &[Key], values: Input<'_>) -> Version {
        for (i, &key) in keys.iter().enumerate() {
            let start = self.row(key) * self.stride;
            kernels::widen(&mut self.rows[start..start + self.dim], values.part(i * self.dim, self.dim));
        }
        self.version += 1;
        self.version
    }

    /// Each touched row takes one step with its sum divided by `divisor`; then what was set is written.
    pub fn close(&mut self, divisor: f32, optimizer: &dyn Optimizer) -> Version {
        if divisor != 1.0 {
            kernels::divide(&mut self.sums, divisor);
        }
        for (row, sum) in self.touched.iter().zip(self.sums.chunks_exact(self.dim)) {
            let row = *row as usize;
            step_row(&mut self.rows[row * self.stride..(row + 1) * self.stride], sum, optimizer);
            self.sum_of[row] = UNTOUCHED;
        }
        self.touched.clear();
        self.sums.clear();
        for (row, values) in self.sets.drain() {
            let start = row as usize * self.stride;
            self.rows[start..start + self.dim].copy_from_slice(&values);
        }
        self.version += 1;
        self.version
    }

    /// Each row takes one step at once, divided by `divisor`.
    pub fn apply(
        &mut self,
        keys: &[Key],
        values: Input<'_>,
        divisor: f32,
        optimizer: &dyn Optimizer,
        scratch: &mut Vec<f32>,
    ) -> Version {
        scratch.resize(values.len(), 0.0);
        kernels::widen(scratch, values);
        if divisor != 1.0 {
            kernels::divide(scratch, divisor);
        }
        for (&key, gradient) in keys.iter().zip(scratch.chunks_exact(self.dim)) {
            let row = self.row(key);
            step_row(&mut self.rows[row * self.stride..(row + 1) * self.stride], gradient, optimizer);
        }
        self.version += 1;
        self.version
    }

    fn gather(&self, keys: &[Key], into: &mut Vec<f32>) -> Version {
        for &key in keys {
            match self.index.find(key) {
                Some(row) => {
                    let start = row as usize * self.stride;
                    into.extend_from_slice(&self.rows[start..start + self.dim]);
                }
                None => begin(self.initial, key, self.dim, into),
            }
        }
        self.version
    }

    /// The rows that some of these keys have.
    pub fn rows_of(&self, keys: &[Key]) -> impl Iterator<Item = usize> {
        keys.iter().filter_map(|&key| self.index.find(key)).map(|row| row as usize)
    }

    /// The rows that the end of the open clock will write.
    pub fn open_rows(&self) -> impl Iterator<Item = usize> {
        self.touched.iter().chain(self.sets.keys()).map(|&row| row as usize)
    }

    /// Keys and values of some rows.
    pub fn part(&self, rows: Range<usize>) -> (&[Key], &[f32]) {
        let values = &self.rows[rows.start * self.stride..rows.end * self.stride];
        (&self.index.keys()[rows], values)
    }

    /// Bytes of a row: parameters, planes, scalars.
    pub fn row_bytes(&self) -> usize {
        self.stride * 4
    }

    /// Takes the rows of an empty bucket from what [`SparseBucket::part`] gave.
    pub fn restore(&mut self, keys: &[Key], rows: &[f32], version: Version) -> Result<(), Malformed> {
        if rows.len() != keys.len() * self.stride {
            let expected = format!("{} fp32 for each of {} keys", self.stride, keys.len());
            return Err(Malformed::new("rows", expected, rows.len()));
        }
        for (&key, values) in keys.iter().zip(rows.chunks_exact(self.stride)) {
            if self.index.find(key).is_some() {
                return Err(Malformed::new("keys", "different keys", key));
            }
            let start = self.row(key) * self.stride;
            self.rows[start..start + self.stride].copy_from_slice(values);
        }
        self.version = version;
        Ok(())
    }

    /// Updates that it has seen.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.index.len()
    }

    fn row(&mut self, key: Key) -> usize {
        let (row, new) = self.index.find_or_insert(key);
        if new {
            let start = self.rows.len();
            self.rows.resize(start + self.stride, 0.0);
            self.initial.fill_row(key, &mut self.rows[start..start + self.dim]);
            self.sum_of.push(UNTOUCHED);
        }
        row as usize
    }
}

/// Appends the row that `key` begins with.
fn begin(initial: Initial, key: Key, dim: usize, into: &mut Vec<f32>) {
    let start = into.len();
    into.resize(start + dim, 0.0);
    initial.fill_row(key, &mut into[start..]);
}

fn step_row(row: &mut [f32], gradient: &[f32], optimizer: &dyn Optimizer) {
    let (parameters, state) = row.split_at_mut(gradient.len());
    State::of_part(state, gradient.len(), 0, optimizer).step_with(optimizer, parameters, gradient);
}
