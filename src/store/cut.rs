//! A shard as it is at one moment, saved while it goes on changing.
//!
//! At the mark nothing is copied. From then on a bucket (of a sparse table: some of its rows) is saved before it is first written,
//! and what nobody writes is saved bit by bit between other work. So a cut costs one copy of the parameters and of their state, and
//! no write waits for more than the copy of what it touches.

use std::collections::{BTreeMap, HashMap};

use super::dense::Dense;
use super::shard::{Body, Shard, Table, kind_mismatch, unknown};
use super::sparse::SparseBucket;
use crate::error::Malformed;
use crate::types::{BucketId, IdMap, Key, TableId, TableSpec, Version};

/// Which numbers of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Plane {
    /// fp32 of a dense bucket.
    Parameters,
    /// A dense bucket's optimizer state: planes, then scalars.
    State,
    /// u64 of a sparse bucket, in the order of its rows.
    Keys,
    /// A sparse bucket's rows: parameters, planes, scalars.
    Rows,
}

/// Part of a bucket as it was at the mark.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Its table.
    pub table: TableId,
    /// Its bucket.
    pub bucket: BucketId,
    /// Which of its numbers.
    pub plane: Plane,
    /// Updates that the bucket had seen.
    pub version: Version,
    /// Bytes of the whole plane.
    pub length: u64,
    /// The first byte of this part within it.
    pub at: u64,
    /// The numbers, little-endian.
    pub bytes: &'a [u8],
}

/// Where a cut goes.
pub trait CutSink: Send {
    /// Keeps a copy of a part. It may wait for room: it is called when the part is about to change.
    fn take(&mut self, part: Part<'_>);
    /// Whether more can be taken without haste, so that there stays room for what is about to change.
    fn has_room(&self) -> bool;
    /// All parts have been taken.
    fn end(self: Box<Self>);
}

/// What of a marked shard is not saved yet.
pub(super) struct Marked {
    sink: Box<dyn CutSink>,
    left: BTreeMap<TableId, Left>,
}

enum Left {
    Dense { buckets: Vec<BucketId>, saved: Vec<bool>, next: usize },
    Sparse { buckets: HashMap<BucketId, Rows>, order: Vec<BucketId> },
}

/// Rows of a sparse bucket at the mark, and which parts of them are saved.
struct Rows {
    rows: usize,
    version: Version,
    saved: Vec<bool>,
    next: usize,
}

impl Marked {
    fn new(sink: Box<dyn CutSink>, tables: &IdMap<TableId, Table>) -> Marked {
        let left = |table: &Table| match &table.body {
            Body::Dense(dense) => {
                let buckets = dense.buckets();
                Left::Dense { saved: vec![false; buckets.len()], buckets, next: 0 }
            }
            Body::Sparse(sparse) => {
                let rows = |bucket: SparseBucket<'_>| {
                    let rows = bucket.rows();
                    let saved = vec![false; rows.div_ceil(bucket.rows_per_part())];
                    Rows { rows, version: bucket.version(), saved, next: 0 }
                };
                let buckets: HashMap<_, _> = sparse.all().map(|(id, b)| (id, rows(b))).collect();
                let mut order: Vec<_> = buckets.keys().copied().collect();
                order.sort_unstable_by(|a, b| b.cmp(a));
                Left::Sparse { buckets, order }
            }
        };
        Marked { sink, left: tables.iter().map(|(&id, table)| (id, left(table))).collect() }
    }

    /// A dense bucket is about to change.
    pub fn before_dense(&mut self, table: TableId, bucket: BucketId, dense: &Dense) {
        let Some(Left::Dense { saved, .. }) = self.left.get_mut(&table) else { return };
        let Ok(place) = dense.place_of(bucket) else { return };
        if !std::mem::replace(&mut saved[place], true) {
            save_dense(self.sink.as_mut(), (table, bucket), dense);
        }
    }

    /// Rows of a sparse bucket are about to change; those that came after the mark don't matter.
    pub fn before_rows(
        &mut self,
        table: TableId,
        id: BucketId,
        bucket: SparseBucket<'_>,
        positions: impl Iterator<Item = u32>,
    ) {
        let Some(Left::Sparse { buckets, .. }) = self.left.get_mut(&table) else { return };
        let Some(marked) = buckets.get_mut(&id) else { return };
        let (per, at_mark) = (bucket.rows_per_part(), marked.rows);
        for row in positions.map(|position| bucket.number(position)).filter(|&row| row < at_mark) {
            marked.save(self.sink.as_mut(), (table, id), bucket, row / per);
        }
    }

    /// Saves about `budget` bytes of what is left. True when nothing is.
    fn save_some(&mut self, tables: &IdMap<TableId, Table>, mut budget: usize) -> bool {
        while let Some(mut left) = self.left.first_entry() {
            let id = *left.key();
            let done = match (left.get_mut(), tables.get(&id).map(|table| &table.body)) {
                (Left::Dense { buckets, saved, next }, Some(Body::Dense(dense))) => loop {
                    let Some(&bucket) = buckets.get(*next) else { break true };
                    if budget == 0 || !self.sink.has_room() {
                        break false;
                    }
                    if !std::mem::replace(&mut saved[*next], true) {
                        let bytes = save_dense(self.sink.as_mut(), (id, bucket), dense);
                        budget = budget.saturating_sub(bytes);
                    }
                    *next += 1;
                },
                (Left::Sparse { buckets, order }, Some(Body::Sparse(sparse))) => loop {
                    let Some(&bucket) = order.last() else { break true };
                    let (Some(marked), Some(rows)) = (buckets.get_mut(&bucket), sparse.get(bucket)) else {
                        order.pop();
                        continue;
                    };
                    if marked.next == marked.saved.len() {
                        order.pop();
                        continue;
                    }
                    if budget == 0 || !self.sink.has_room() {
                        break false;
                    }
                    let bytes = marked.save(self.sink.as_mut(), (id, bucket), rows, marked.next);
                    budget = budget.saturating_sub(bytes);
                    marked.next += 1;
                },
                _ => true,
            };
            if !done {
                return false;
            }
            left.remove();
        }
        true
    }
}

impl Rows {
    /// Saves one part, unless it is saved already. Gives its bytes.
    fn save(
        &mut self,
        sink: &mut dyn CutSink,
        (table, id): (TableId, BucketId),
        bucket: SparseBucket<'_>,
        part: usize,
    ) -> usize {
        if std::mem::replace(&mut self.saved[part], true) {
            return 0;
        }
        let per = bucket.rows_per_part();
        let range = part * per..((part + 1) * per).min(self.rows);
        let (keys, rows) = bucket.part(range.clone());
        let (keys, rows): (&[u8], &[u8]) = (bytemuck::cast_slice(keys), bytemuck::cast_slice(rows));
        for (plane, bytes, row) in [(Plane::Keys, keys, 8), (Plane::Rows, rows, bucket.row_bytes())] {
            let (length, at) = ((self.rows * row) as u64, (range.start * row) as u64);
            sink.take(Part { table, bucket: id, plane, version: self.version, length, at, bytes });
        }
        keys.len() + rows.len()
    }
}

fn save_dense(sink: &mut dyn CutSink, (table, bucket): (TableId, BucketId), dense: &Dense) -> usize {
    let Ok((parameters, state, version)) = dense.whole(bucket) else { return 0 };
    let (parameters, state): (&[u8], &[u8]) = (bytemuck::cast_slice(parameters), bytemuck::cast_slice(state));
    for (plane, bytes) in [(Plane::Parameters, parameters), (Plane::State, state)] {
        let length = bytes.len() as u64;
        sink.take(Part { table, bucket, plane, version, length, at: 0, bytes });
    }
    parameters.len() + state.len()
}

impl Shard {
    /// From now on what the shard is at this moment goes to `sink`, whatever is written. A mark that is not all saved yet is given
    /// up. Tables that are made later are not in it.
    pub fn mark(&mut self, sink: Box<dyn CutSink>) {
        self.marked = Some(Marked::new(sink, &self.tables));
    }

    /// Saves about `budget` bytes of what was marked, as far as there is room without haste. True when anything is left to do.
    pub fn save_some(&mut self, budget: usize) -> bool {
        let Some(marked) = &mut self.marked else { return false };
        if !marked.save_some(&self.tables, budget) {
            return true;
        }
        if let Some(marked) = self.marked.take() {
            marked.sink.end();
        }
        false
    }

    /// Whether [`Shard::save_some`] could do something now.
    pub fn can_save(&self) -> bool {
        self.marked.as_ref().is_some_and(|marked| marked.sink.has_room())
    }

    /// Gives the mark up.
    pub fn unmark(&mut self) {
        self.marked = None;
    }

    /// The specs of all tables, by number.
    pub fn specs(&self) -> BTreeMap<TableId, &TableSpec> {
        self.tables.iter().map(|(&id, table)| (id, &table.spec)).collect()
    }

    /// A dense bucket becomes what it was when it was saved.
    pub fn restore_dense(
        &mut self,
        table: TableId,
        bucket: BucketId,
        (parameters, state): (&[f32], &[f32]),
        version: Version,
    ) -> Result<(), Malformed> {
        match &mut self.tables.get_mut(&table).ok_or_else(|| unknown(table))?.body {
            Body::Dense(dense) => dense.restore(bucket, parameters, state, version),
            Body::Sparse(_) => Err(kind_mismatch("dense")),
        }
    }

    /// A sparse bucket that nobody has touched becomes what it was when it was saved.
    pub fn restore_rows(
        &mut self,
        table: TableId,
        bucket: BucketId,
        (keys, rows): (&[Key], &[f32]),
        version: Version,
    ) -> Result<(), Malformed> {
        let Table { spec, body, .. } = self.tables.get_mut(&table).ok_or_else(|| unknown(table))?;
        let Body::Sparse(sparse) = body else { return Err(kind_mismatch("sparse")) };
        if !sparse.owns(bucket) {
            return Err(Malformed::new("bucket", "a bucket of this shard", bucket));
        }
        if let Some(key) = keys.iter().find(|&&key| spec.bucket_of(key) != bucket) {
            return Err(Malformed::new("keys", format!("keys of bucket {bucket}"), key));
        }
        sparse.touch(bucket).restore(keys, rows, version)?;
        self.parameter_bytes += (keys.len() * spec.width() as usize * 4) as u64;
        Ok(())
    }
}

#[cfg(test)]
#[path = "cut_tests.rs"]
mod tests;
