//! What one server thread owns, alone.

use std::collections::HashMap;

use super::dense::Dense;
use super::optimizer::{Optimizer, Optimizers};
use super::sparse::Sparse;
use crate::error::{Error, Malformed, Result};
use crate::kernels::Input;
use crate::types::{
    Aggregate, BucketId, Consistency, DirectoryEntry, Key, TableId, TableKind, TableSpec, Version,
};

/// Values for part of one dense bucket.
#[derive(Debug, Clone, Copy)]
pub struct DensePiece<'a> {
    /// Which bucket.
    pub bucket: BucketId,
    /// First element within it.
    pub first: u32,
    /// One for each element.
    pub values: Input<'a>,
}

/// Rows for keys of several sparse buckets: a private copy of the directory and keys, and the rows where they lie.
#[derive(Debug, Clone, Copy)]
pub struct SparsePiece<'a> {
    /// In ascending order of the buckets.
    pub directory: &'a [DirectoryEntry],
    /// The keys of one bucket behind the other's.
    pub keys: &'a [Key],
    /// `dim` for each key; empty for a pull.
    pub values: Input<'a>,
}

/// An update that became visible: what a replica would replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Which table.
    pub table: TableId,
    /// Which bucket.
    pub bucket: BucketId,
    /// Updates it has seen now.
    pub version: Version,
}

/// Parameters as they are read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// The values.
    pub values: &'a [f32],
    /// Updates that their bucket has seen.
    pub version: Version,
}

struct Table {
    spec: TableSpec,
    optimizer: Box<dyn Optimizer>,
    body: Body,
}

enum Body {
    Dense(Dense),
    Sparse(Sparse),
}

/// All buckets of one server thread.
pub struct Shard {
    optimizers: Optimizers,
    tables: HashMap<TableId, Table>,
    /// Buckets that the open clock touched.
    touched: Vec<(TableId, BucketId)>,
    scratch: Vec<f32>,
    /// What tables may take when they are made, and what they took.
    budget: u64,
    used: u64,
    parameter_bytes: u64,
}

impl Shard {
    /// An empty shard whose tables may take `budget` bytes: parameters, state, sums and bookkeeping. Rows of sparse tables
    /// come later, and are not counted.
    pub fn new(optimizers: Optimizers, budget: u64) -> Shard {
        Shard {
            optimizers,
            tables: HashMap::new(),
            touched: Vec::new(),
            scratch: Vec::new(),
            budget,
            used: 0,
            parameter_bytes: 0,
        }
    }

    /// Makes a table, of which this shard holds `buckets`. Making it again with the same spec changes nothing.
    pub fn create_table(&mut self, id: TableId, spec: &TableSpec, buckets: &[BucketId]) -> Result<()> {
        if let Some(table) = self.tables.get(&id) {
            return if table.spec == *spec {
                Ok(())
            } else {
                Err(Error::config(format!("table {id}"), table.spec.to_string(), spec))
            };
        }
        spec.validate()?;
        let optimizer = self.optimizers.build(&spec.optimizer)?;
        let bytes = match &spec.kind {
            TableKind::Dense { .. } => Dense::bytes(spec, buckets, optimizer.as_ref()),
            TableKind::Sparse { .. } => Sparse::bytes(spec),
        };
        let used = self.used.saturating_add(bytes);
        if used > self.budget {
            let resource = format!("table_bytes of a server thread, with table {id}");
            return Err(Error::Limit { resource, limit: self.budget, asked: used });
        }
        let body = match &spec.kind {
            TableKind::Dense { .. } => Body::Dense(Dense::new(spec, buckets, optimizer.as_ref())?),
            TableKind::Sparse { .. } => Body::Sparse(Sparse::new(spec, buckets)),
        };
        self.used = used;
        if let Body::Dense(dense) = &body {
            self.parameter_bytes += dense.parameter_bytes();
        }
        self.tables.insert(id, Table { spec: spec.clone(), optimizer, body });
        Ok(())
    }

    /// The spec of a table, if it exists.
    pub fn spec(&self, table: TableId) -> Option<&TableSpec> {
        self.tables.get(&table).map(|t| &t.spec)
    }

    /// Takes one dense piece: into the open clock's sum (Bsp), or as a step of its own.
    pub fn push_dense(
        &mut self,
        table: TableId,
        piece: DensePiece<'_>,
        applied: &mut Vec<Applied>,
    ) -> Result<(), Malformed> {
        let (spec, optimizer, dense) = dense_table(&mut self.tables, table)?;
        if spec.consistency.folds_by_rank() {
            return self.fold_dense(table, &[piece]);
        }
        let version = dense.apply(&piece, optimizer)?;
        applied.push(Applied { table, bucket: piece.bucket, version });
        Ok(())
    }

    /// Whether a dense piece fits.
    pub fn check_dense(&self, table: TableId, piece: &DensePiece<'_>) -> Result<(), Malformed> {
        match &self.tables.get(&table).ok_or_else(|| unknown(table))?.body {
            Body::Dense(dense) => dense.check(piece),
            Body::Sparse(_) => Err(kind_mismatch("dense")),
        }
    }

    /// Takes pieces of one dense bucket into the open clock's sum, in their order. Nothing is touched unless all fit.
    pub fn fold_dense(&mut self, table: TableId, pieces: &[DensePiece<'_>]) -> Result<(), Malformed> {
        let (_, _, dense) = dense_table(&mut self.tables, table)?;
        if let Some(bucket) = dense.fold(pieces)? {
            self.touched.push((table, bucket));
        }
        Ok(())
    }

    /// The last pieces of one dense bucket in the open clock, in their order, and its step: where they cover the whole bucket
    /// all in one pass. `expected` workers could have pushed.
    pub fn close_dense(
        &mut self,
        table: TableId,
        pieces: &[DensePiece<'_>],
        expected: u32,
        applied: &mut Vec<Applied>,
    ) -> Result<(), Malformed> {
        let (spec, optimizer, dense) = dense_table(&mut self.tables, table)?;
        let Some(bucket) = pieces.first().map(|p| p.bucket) else { return Ok(()) };
        let version = dense.close(bucket, pieces, divisor(spec, expected), optimizer)?;
        applied.extend(version.map(|version| Applied { table, bucket, version }));
        Ok(())
    }

    /// Takes the sparse pieces of one frame. Nothing is touched unless all of it fits.
    pub fn push_sparse(
        &mut self,
        table: TableId,
        piece: SparsePiece<'_>,
        applied: &mut Vec<Applied>,
    ) -> Result<(), Malformed> {
        let Table { spec, optimizer, body } = self.tables.get_mut(&table).ok_or_else(|| unknown(table))?;
        let Body::Sparse(sparse) = body else { return Err(kind_mismatch("sparse")) };
        check_directory(spec, &piece, |b| sparse.owns(b))?;
        let dim = spec.width() as usize;
        if piece.values.len() != piece.keys.len() * dim {
            return Err(Malformed::new("values", (piece.keys.len() * dim).to_string(), piece.values.len()));
        }
        let mut done = 0;
        for &DirectoryEntry { bucket: id, keys: count } in piece.directory {
            let bucket = sparse.touch(id, optimizer.as_ref());
            let rows = bucket.rows();
            let count = count as usize;
            let keys = &piece.keys[done..done + count];
            let values = piece.values.part(done * dim, count * dim);
            if spec.consistency.folds_by_rank() {
                if bucket.fold(keys, values) {
                    self.touched.push((table, id));
                }
            } else {
                let version = bucket.apply(keys, values, optimizer.as_ref(), &mut self.scratch);
                applied.push(Applied { table, bucket: id, version });
            }
            self.parameter_bytes += ((bucket.rows() - rows) * dim * 4) as u64;
            done += count;
        }
        Ok(())
    }

    /// Closes the open clock: every bucket that it touched and that has not been closed takes one step. `expected` workers could have pushed.
    pub fn close(&mut self, expected: u32, applied: &mut Vec<Applied>) {
        for (table_id, id) in self.touched.drain(..) {
            let Some(Table { spec, optimizer, body }) = self.tables.get_mut(&table_id) else { continue };
            let (divisor, optimizer) = (divisor(spec, expected), optimizer.as_ref());
            let version = match body {
                // Without pieces there is nothing that might not fit.
                Body::Dense(dense) => dense.close(id, &[], divisor, optimizer).unwrap_or(None),
                Body::Sparse(sparse) => sparse.touched(id).map(|bucket| bucket.close(divisor, optimizer)),
            };
            applied.extend(version.map(|version| Applied { table: table_id, bucket: id, version }));
        }
    }

    /// Reads part of a dense bucket.
    pub fn read_dense(
        &self,
        table: TableId,
        bucket: BucketId,
        first: u32,
        count: u32,
    ) -> Result<Reading<'_>, Malformed> {
        match &self.tables.get(&table).ok_or_else(|| unknown(table))?.body {
            Body::Dense(dense) => {
                let (values, version) = dense.read(bucket, first, count)?;
                Ok(Reading { values, version })
            }
            Body::Sparse(_) => Err(kind_mismatch("dense")),
        }
    }

    /// Checks a sparse pull before it waits for its clock.
    pub fn check_pull(&self, table: TableId, piece: &SparsePiece<'_>) -> Result<(), Malformed> {
        let table = self.tables.get(&table).ok_or_else(|| unknown(table))?;
        match &table.body {
            Body::Sparse(sparse) => check_directory(&table.spec, piece, |b| sparse.owns(b)),
            Body::Dense(_) => Err(kind_mismatch("sparse")),
        }
    }

    /// Gathers the rows of a checked pull into `into`, in the order of its keys; gives the largest version.
    pub fn gather(&self, table: TableId, piece: &SparsePiece<'_>, into: &mut Vec<f32>) -> Version {
        into.clear();
        let Some(Table { body: Body::Sparse(sparse), .. }) = self.tables.get(&table) else { return 0 };
        let mut done = 0;
        let mut version = 0;
        for &DirectoryEntry { bucket: id, keys: count } in piece.directory {
            let keys = &piece.keys[done..done + count as usize];
            version = version.max(sparse.gather(id, keys, into));
            done += keys.len();
        }
        version
    }

    /// Consistency of a table, if it exists.
    pub fn consistency(&self, table: TableId) -> Option<Consistency> {
        self.spec(table).map(|s| s.consistency)
    }

    /// Bytes of parameters, without state and index.
    pub fn parameter_bytes(&self) -> u64 {
        self.parameter_bytes
    }
}

fn dense_table(
    tables: &mut HashMap<TableId, Table>,
    table: TableId,
) -> Result<(&TableSpec, &dyn Optimizer, &mut Dense), Malformed> {
    let Table { spec, optimizer, body } = tables.get_mut(&table).ok_or_else(|| unknown(table))?;
    match body {
        Body::Dense(dense) => Ok((spec, &**optimizer, dense)),
        Body::Sparse(_) => Err(kind_mismatch("dense")),
    }
}

/// What a clock's sum is divided by.
fn divisor(spec: &TableSpec, expected: u32) -> f32 {
    match spec.aggregate {
        Aggregate::Sum => 1.0,
        Aggregate::Mean => expected.max(1) as f32,
    }
}

/// Buckets of this shard in ascending order, with keys that belong to them in ascending order.
fn check_directory(
    spec: &TableSpec,
    piece: &SparsePiece<'_>,
    ours: impl Fn(BucketId) -> bool,
) -> Result<(), Malformed> {
    let mut done = 0usize;
    let mut last = None;
    for &DirectoryEntry { bucket, keys: count } in piece.directory {
        if last.is_some_and(|l| l >= bucket) || !ours(bucket) {
            return Err(Malformed::new("directory", "ascending buckets of this shard", bucket));
        }
        last = Some(bucket);
        let keys = done.checked_add(count as usize).and_then(|end| piece.keys.get(done..end));
        let keys = keys.filter(|k| !k.is_empty());
        let keys =
            keys.ok_or_else(|| Malformed::new("directory", "counts of 1 or more that add up", count))?;
        if let Some(key) = keys.iter().find(|&&k| spec.bucket_of(k) != bucket) {
            return Err(Malformed::new("keys", format!("keys of bucket {bucket}"), key));
        }
        if let Some(w) = keys.windows(2).find(|w| w[0] >= w[1]) {
            return Err(Malformed::new("keys", "ascending keys", format!("{} before {}", w[0], w[1])));
        }
        done += keys.len();
    }
    if done != piece.keys.len() {
        return Err(Malformed::new("directory", format!("{} keys", piece.keys.len()), done));
    }
    Ok(())
}

fn unknown(table: TableId) -> Malformed {
    Malformed::new("table", "a table of the catalogue", table)
}

fn kind_mismatch(asked: &str) -> Malformed {
    Malformed::new("table", format!("a {asked} table"), "the other kind")
}

#[cfg(test)]
mod tests;
