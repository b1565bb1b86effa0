//! A shard's part of a sparse table: buckets of rows by key.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::index::{Index, MISSING, Probe};
use super::optimizer::Optimizer;
use super::rows::{Parts, Rows, Shape};
use super::step::{AHEAD, Steps};
use crate::error::Malformed;
use crate::kernels::{self, Input};
use crate::mem::Page;
#[cfg(doc)]
use crate::mem::Slabs;
use crate::types::{BucketId, DirectoryEntry, Initial, Key, TableSpec, Version};

/// Keys that are looked up side by side.
const WINDOW: usize = 16;

/// Instead of a bucket's place: another shard's, or not touched yet.
const FOREIGN: u32 = u32::MAX;
const UNTOUCHED: u32 = u32::MAX - 1;

/// Buckets of one sparse table. Those that nobody has touched cost four bytes.
pub struct Sparse {
    initial: Initial,
    /// For each bucket of the table its place in `touched`.
    place_of: Vec<u32>,
    touched: Vec<(BucketId, Bucket)>,
    memory: Memory,
    steps: Steps,
}

/// The rows of all buckets.
struct Memory {
    /// The position of each key's row: a key is in one bucket, and found without knowing in which.
    index: Index,
    rows: Rows,
}

/// The rows of one bucket, and what the open clock brought them.
#[derive(Default)]
struct Bucket {
    parts: Parts,
    /// Rows, by their positions, that the open clock pushed to, and in the same order their sums. Each row knows its place there.
    touched: Vec<u32>,
    sums: Vec<f32>,
    /// The places in `sets` of rows that the open clock set.
    set_of: HashMap<u32, u32>,
    sets: Vec<f32>,
    version: Version,
}

/// A bucket, to be read.
#[derive(Clone, Copy)]
pub struct SparseBucket<'a> {
    bucket: &'a Bucket,
    memory: &'a Memory,
}

/// A bucket, to be written.
pub struct SparseBucketMut<'a> {
    bucket: &'a mut Bucket,
    memory: &'a mut Memory,
    steps: &'a mut Steps,
    initial: Initial,
}

impl Sparse {
    /// Empty `buckets`, which must be buckets of `spec`.
    pub fn new(spec: &TableSpec, buckets: &[BucketId], optimizer: &dyn Optimizer) -> Sparse {
        let mut place_of = vec![FOREIGN; spec.buckets() as usize];
        buckets.iter().for_each(|bucket| place_of[*bucket as usize] = UNTOUCHED);
        let dim = spec.width() as usize;
        let stride = dim * (1 + optimizer.state_width()) + optimizer.scalars();
        let rows = Rows::new(Shape::new(dim, stride, spec.buckets()));
        Sparse {
            initial: Initial::new(spec.initializer, &spec.name),
            place_of,
            touched: Vec::new(),
            memory: Memory { index: Index::default(), rows },
            steps: Steps::default(),
        }
    }

    /// Bytes that a table takes before it has rows.
    pub fn bytes(spec: &TableSpec) -> u64 {
        u64::from(spec.buckets()) * 4
    }

    /// Whether a bucket is this shard's.
    pub fn owns(&self, bucket: BucketId) -> bool {
        self.place_of.get(bucket as usize).is_some_and(|&place| place != FOREIGN)
    }

    /// A bucket of this shard, made when it is touched for the first time.
    pub fn touch(&mut self, bucket: BucketId) -> SparseBucketMut<'_> {
        let place = &mut self.place_of[bucket as usize];
        if *place == UNTOUCHED {
            *place = self.touched.len() as u32;
            self.touched.push((bucket, Bucket::default()));
        }
        let (_, bucket) = &mut self.touched[*place as usize];
        SparseBucketMut { bucket, memory: &mut self.memory, steps: &mut self.steps, initial: self.initial }
    }

    /// Sees after each push that made rows that the next one need not wait for memory: none waits for more than one huge page, but
    /// one whose rows reach over a whole page where that was not supplied: the first of such pushes. See [`Slabs::get_ready`].
    pub fn get_ready(&mut self) {
        let (rows, index) = (self.memory.rows.slabs(), self.memory.index.slabs());
        let waited = rows.has_waited() | index.has_waited();
        let _ = waited || rows.get_ready() || index.get_ready();
    }

    /// See [`Slabs::next_to_supply`].
    pub fn next_to_supply(&mut self) -> Option<Arc<Page>> {
        let Memory { rows, index } = &mut self.memory;
        rows.slabs().next_to_supply().or_else(|| index.slabs().next_to_supply())
    }

    /// The buckets that were touched.
    pub fn all(&self) -> impl Iterator<Item = (BucketId, SparseBucket<'_>)> {
        self.touched.iter().map(|(id, bucket)| (*id, SparseBucket { bucket, memory: &self.memory }))
    }

    /// A bucket that was touched.
    #[inline]
    pub fn get(&self, bucket: BucketId) -> Option<SparseBucket<'_>> {
        // Places that say that there is none lie beyond.
        let (_, bucket) = self.touched.get(*self.place_of.get(bucket as usize)? as usize)?;
        Some(SparseBucket { bucket, memory: &self.memory })
    }

    /// The position of each key's row, [`MISSING`] where there is none.
    pub fn resolve(&self, keys: &[Key], positions: &mut Vec<u32>) {
        self.look_up(keys, positions, false, |_, _| ());
    }

    /// Writes the row of each key to `into`, `dim` for each; rows that do not exist read as they would begin, and are not made. Gives
    /// the largest version of the buckets in `directory`; `positions` is left with those of the rows.
    pub fn gather(
        &self,
        directory: &[DirectoryEntry],
        keys: &[Key],
        positions: &mut Vec<u32>,
        into: &mut [f32],
    ) -> Version {
        let rows = &self.memory.rows;
        let dim = rows.shape().dim;
        self.look_up(keys, positions, true, |some, positions| {
            let into = into[some.start * dim..some.end * dim].chunks_exact_mut(dim);
            for ((&key, &position), into) in keys[some].iter().zip(positions).zip(into) {
                if position == MISSING {
                    into.fill(0.0);
                    self.initial.fill_row(key, into);
                } else {
                    copy_row(into, &rows.get(position)[..dim]);
                }
            }
        });
        let versions = directory.iter().filter_map(|entry| self.get(entry.bucket));
        versions.map(SparseBucket::version).max().unwrap_or(0)
    }

    /// Looks keys up, window by window, so that their cache misses overlap: while the lines of one window are fetched, so are, where
    /// `with_rows`, the rows of the window before, and `found` is told of the window before that, whose rows have come meanwhile.
    #[inline(always)]
    fn look_up(
        &self,
        keys: &[Key],
        positions: &mut Vec<u32>,
        with_rows: bool,
        mut found: impl FnMut(Range<usize>, &[u32]),
    ) {
        positions.resize(keys.len(), MISSING);
        let window = |n: usize| (n * WINDOW).min(keys.len())..((n + 1) * WINDOW).min(keys.len());
        let mut probes = [[Probe::NOTHING; WINDOW]; 2];
        for n in 0..keys.len().div_ceil(WINDOW) + 2 {
            for (&key, probe) in keys[window(n)].iter().zip(&mut probes[n % 2]) {
                *probe = self.memory.index.probe(key);
                probe.prefetch();
            }
            if let Some(n) = n.checked_sub(1) {
                for ((&key, probe), at) in keys[window(n)].iter().zip(&probes[n % 2]).zip(window(n)) {
                    positions[at] = probe.find(key);
                    if with_rows {
                        self.memory.rows.prefetch(positions[at]);
                    }
                }
            }
            if let Some(n) = n.checked_sub(2) {
                found(window(n), &positions[window(n)]);
            }
        }
    }
}

/// Copies a row: the most usual width without a call.
#[inline(always)]
fn copy_row(to: &mut [f32], from: &[f32]) {
    match (<&mut [f32; 16]>::try_from(&mut *to), <&[f32; 16]>::try_from(from)) {
        (Ok(to), Ok(from)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}

impl<'a> SparseBucket<'a> {
    /// The positions of the rows that the end of the open clock will write.
    pub fn open_rows(self) -> impl Iterator<Item = u32> + 'a {
        self.bucket.touched.iter().chain(self.bucket.set_of.keys()).copied()
    }

    /// The number of the row at a position, in the order in which the bucket's rows came. Of a [`MISSING`] one: beyond all.
    pub fn number(self, position: u32) -> usize {
        if position == MISSING { usize::MAX } else { self.memory.rows.number(position) }
    }

    /// Keys and values of some rows of one part: from a multiple of [`SparseBucket::rows_per_part`], not beyond the next one.
    pub fn part(self, rows: Range<usize>) -> (&'a [Key], &'a [f32]) {
        self.memory.rows.part(&self.bucket.parts, rows)
    }

    /// Rows that [`SparseBucket::part`] gives at a time.
    pub fn rows_per_part(self) -> usize {
        self.memory.rows.shape().rows_per_part()
    }

    /// Bytes of a row: parameters, planes, scalars.
    pub fn row_bytes(self) -> usize {
        self.memory.rows.shape().stride * 4
    }

    /// Updates that it has seen.
    pub fn version(self) -> Version {
        self.bucket.version
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.bucket.parts.rows()
    }
}

impl SparseBucketMut<'_> {
    /// The same, to be read.
    pub fn read(&self) -> SparseBucket<'_> {
        SparseBucket { bucket: self.bucket, memory: self.memory }
    }

    /// Adds the rows of `values` to what the open clock brought. True when they are the bucket's first in this clock. `positions`
    /// are those of the keys' rows, [`MISSING`] where they are not made yet.
    pub fn fold(&mut self, keys: &[Key], positions: &mut [u32], values: Input<'_>) -> bool {
        let first = self.is_untouched();
        self.make(keys, positions);
        let Bucket { touched, sums, .. } = self.bucket;
        let rows = &mut self.memory.rows;
        let dim = rows.shape().dim;
        for (i, &position) in positions.iter().enumerate() {
            if let Some(&next) = positions.get(i + AHEAD) {
                rows.prefetch_sum(next);
            }
            let place = rows.sum_of(position);
            if *place == 0 {
                touched.push(position);
                sums.resize(sums.len() + dim, 0.0);
                *place = touched.len() as u32;
            }
            let sum = (*place as usize - 1) * dim;
            kernels::accumulate(&mut sums[sum..sum + dim], values.part(i * dim, dim));
        }
        first
    }

    /// Keeps rows that replace those of the table when the clock closes. True when they are the bucket's first in this clock.
    pub fn hold_set(&mut self, keys: &[Key], positions: &mut [u32], values: Input<'_>) -> bool {
        let first = self.is_untouched();
        self.make(keys, positions);
        let Bucket { set_of, sets, .. } = self.bucket;
        let dim = self.memory.rows.shape().dim;
        for (i, &position) in positions.iter().enumerate() {
            let next = set_of.len() as u32;
            let at = *set_of.entry(position).or_insert(next) as usize * dim;
            sets.resize(sets.len().max(at + dim), 0.0);
            kernels::widen(&mut sets[at..at + dim], values.part(i * dim, dim));
        }
        first
    }

    /// Replaces rows at once.
    pub fn set(&mut self, keys: &[Key], positions: &mut [u32], values: Input<'_>) -> Version {
        self.make(keys, positions);
        let rows = &mut self.memory.rows;
        let dim = rows.shape().dim;
        for (i, &position) in positions.iter().enumerate() {
            kernels::widen(&mut rows.get_mut(position)[..dim], values.part(i * dim, dim));
        }
        self.bucket.version += 1;
        self.bucket.version
    }

    /// Each touched row takes one step with its sum divided by `divisor`; then what was set is written.
    pub fn close(&mut self, divisor: f32, optimizer: &dyn Optimizer) -> Version {
        let Bucket { touched, sums, set_of, sets, version, .. } = self.bucket;
        let rows = &mut self.memory.rows;
        let dim = rows.shape().dim;
        if divisor != 1.0 {
            kernels::divide(sums, divisor);
        }
        self.steps.step(rows, touched, (Input::from(&sums[..]), 1.0), optimizer);
        touched.drain(..).for_each(|position| *rows.sum_of(position) = 0);
        sums.clear();
        for (position, place) in set_of.drain() {
            let at = place as usize * dim;
            rows.get_mut(position)[..dim].copy_from_slice(&sets[at..at + dim]);
        }
        sets.clear();
        *version += 1;
        *version
    }

    /// Each row takes one step at once, divided by `divisor`.
    pub fn apply(
        &mut self,
        keys: &[Key],
        positions: &mut [u32],
        values: (Input<'_>, f32),
        optimizer: &dyn Optimizer,
    ) -> Version {
        self.make(keys, positions);
        self.steps.step(&mut self.memory.rows, positions, values, optimizer);
        self.bucket.version += 1;
        self.bucket.version
    }

    /// Takes the rows of an empty bucket from what [`SparseBucket::part`] gave.
    pub fn restore(&mut self, keys: &[Key], rows: &[f32], version: Version) -> Result<(), Malformed> {
        let stride = self.memory.rows.shape().stride;
        if rows.len() != keys.len() * stride {
            let expected = format!("{stride} fp32 for each of {} keys", keys.len());
            return Err(Malformed::new("rows", expected, rows.len()));
        }
        for (&key, values) in keys.iter().zip(rows.chunks_exact(stride)) {
            if self.memory.index.find(key) != MISSING {
                return Err(Malformed::new("keys", "different keys", key));
            }
            let position = self.add(key);
            self.memory.rows.get_mut(position).copy_from_slice(values);
        }
        self.bucket.version = version;
        Ok(())
    }

    /// Whether the open clock has brought nothing yet.
    fn is_untouched(&self) -> bool {
        self.bucket.touched.is_empty() && self.bucket.set_of.is_empty()
    }

    /// Makes the rows that are [`MISSING`], in the order of the keys.
    fn make(&mut self, keys: &[Key], positions: &mut [u32]) {
        for (&key, position) in keys.iter().zip(positions) {
            if *position == MISSING {
                *position = self.add(key);
            }
        }
    }

    /// Makes the row of a key that has none.
    fn add(&mut self, key: Key) -> u32 {
        let Memory { index, rows } = self.memory;
        let position = rows.add(&mut self.bucket.parts, key);
        let dim = rows.shape().dim;
        self.initial.fill_row(key, &mut rows.get_mut(position)[..dim]);
        index.insert(key, position);
        position
    }
}
