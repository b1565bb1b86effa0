//! What one server thread owns, alone.

use std::sync::Arc;

use super::cut::Marked;
use super::dense::Dense;
use super::optimizer::{Optimizer, Optimizers};
use super::sparse::Sparse;
use crate::error::{Error, Malformed, Result};
use crate::kernels::{self, Input};
use crate::mem::epochs::Epochs;
use crate::mem::{Arena, Kind, Page, Pin, RegionId};
use crate::types::{
    Aggregate, BucketId, Clock, DirectoryEntry, IdMap, Initializer, Key, NonFinite, Stale, TableId,
    TableKind, TableSpec, Version, mix64,
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

/// What a piece does to the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is a gradient for the update rule.
    Push,
    /// They become its values, past the update rule.
    Set,
}

/// When the pieces of one push are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Intake {
    /// Into the sum of the open clock.
    Fold,
    /// Each as a step of its own, divided by this number, unless it is stale: then as its table says.
    Step {
        /// 1 for most.
        divisor: f32,
        /// The version that they were computed from, where the worker said it.
        base: Option<Version>,
    },
    /// Checked, and dropped.
    Drop,
}

/// Pieces of one push that were not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    /// How many were too old for their table.
    pub stale: u32,
    /// How many held values that are not finite.
    pub non_finite: u32,
    /// The bucket of the first.
    pub bucket: BucketId,
    /// Why the first was rejected.
    pub cause: Cause,
}

/// Why a piece was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It was too old.
    Stale {
        /// The version of its bucket.
        current: Version,
    },
    /// It held values that are not finite.
    NonFinite {
        /// Its smallest key.
        first: Key,
    },
}

impl Rejection {
    /// How many were rejected, whatever the reason.
    pub fn pieces(&self) -> u32 {
        self.stale + self.non_finite
    }

    /// Of pieces of one push, those of `later` behind these.
    pub fn and(self, later: Rejection) -> Rejection {
        Rejection { stale: self.stale + later.stale, non_finite: self.non_finite + later.non_finite, ..self }
    }

    /// With one more piece, behind those that `earlier` counts.
    fn after(earlier: Option<Rejection>, bucket: BucketId, cause: Cause) -> Rejection {
        let mut all = earlier.unwrap_or(Rejection { stale: 0, non_finite: 0, bucket, cause });
        match cause {
            Cause::Stale { .. } => all.stale += 1,
            Cause::NonFinite { .. } => all.non_finite += 1,
        }
        all
    }
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

pub(super) struct Table {
    pub(super) spec: TableSpec,
    pub(super) optimizer: Box<dyn Optimizer>,
    pub(super) body: Body,
    /// Buckets that the open clock touched, of a table whose quorum closes its clocks.
    touched: Vec<BucketId>,
}

pub(super) enum Body {
    Dense(Dense),
    Sparse(Box<Sparse>),
}

/// A table that is to be made.
pub struct Making {
    id: TableId,
    spec: TableSpec,
    buckets: Vec<BucketId>,
    optimizer: Box<dyn Optimizer>,
    /// What it takes, without spare segments.
    bytes: u64,
    memory: (Kind, u64),
    generation: u32,
}

/// A table that no shard has yet.
pub struct Made {
    id: TableId,
    table: Table,
    bytes: u64,
}

impl Making {
    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it: of a dense table the parameters and their state are there, and have their first values.
    pub fn make(self) -> Result<Made> {
        let Making { id, spec, buckets, optimizer, bytes, memory, generation } = self;
        let rule = optimizer.as_ref();
        let body = match &spec.kind {
            TableKind::Dense { .. } => Body::Dense(Dense::new(&spec, &buckets, rule, memory, generation)?),
            TableKind::Sparse { .. } => Body::Sparse(Box::new(Sparse::new(&spec, &buckets, rule))),
        };
        Ok(Made { id, table: Table { spec, optimizer, body, touched: Vec::new() }, bytes })
    }
}

impl Made {
    /// Its number, and what it is.
    pub fn spec(&self) -> (TableId, &TableSpec) {
        (self.id, &self.table.spec)
    }
}

/// All buckets of one server thread.
pub struct Shard {
    optimizers: Optimizers,
    pub(super) tables: IdMap<TableId, Table>,
    /// Buckets of the other tables that the open clock touched.
    touched: Vec<(TableId, BucketId)>,
    /// Of a frame's rows.
    positions: Vec<u32>,
    /// Values that are not finite, so far.
    non_finite: u64,
    /// What tables may take when they are made, and what they took.
    budget: u64,
    spare_bytes: u64,
    memory: Kind,
    /// Of what is published for one-sided readers.
    generation: u32,
    used: u64,
    pub(super) parameter_bytes: u64,
    /// Tables that have more rows than when [`Shard::next_to_supply`] last looked.
    grown: Vec<TableId>,
    /// The cut that is being saved.
    pub(super) marked: Option<Marked>,
}

impl Shard {
    /// An empty shard whose tables may take `budget` bytes: parameters, state, sums and bookkeeping. Rows of sparse tables
    /// come later, and are not counted. `spare_bytes` of it, at most, is for versions of one dense table that are still being
    /// sent.
    pub fn new(optimizers: Optimizers, budget: u64, spare_bytes: u64) -> Shard {
        Shard {
            optimizers,
            tables: IdMap::default(),
            touched: Vec::new(),
            positions: Vec::new(),
            non_finite: 0,
            budget,
            spare_bytes,
            memory: Kind::Private,
            generation: 0,
            used: 0,
            parameter_bytes: 0,
            grown: Vec::new(),
            marked: None,
        }
    }

    /// The same with parameters of dense tables in memory of this kind.
    pub fn in_memory(mut self, memory: Kind) -> Shard {
        self.memory = memory;
        self
    }

    /// The same with the generation, the View's epoch, that one-sided readers find with what is published.
    pub fn of_generation(mut self, generation: u32) -> Shard {
        self.generation = generation;
        self
    }

    /// Makes a table, of which this shard holds `buckets`. Making it again with the same spec changes nothing. `register` is
    /// called with the arena that answers may be sent from, and with the one that workers may read, where there are such.
    pub fn create_table(
        &mut self,
        id: TableId,
        spec: &TableSpec,
        buckets: &[BucketId],
        register: impl FnMut(Arc<Arena>) -> Result<RegionId>,
    ) -> Result<()> {
        match self.prepare_table(id, spec, buckets.to_vec())? {
            Some(making) => self.add_table(making.make()?, register),
            None => Ok(()),
        }
    }

    /// What [`Shard::create_table`] has to make, checked: it may be made elsewhere, while no other table is. `None` when it is there.
    pub fn prepare_table(
        &self,
        id: TableId,
        spec: &TableSpec,
        buckets: Vec<BucketId>,
    ) -> Result<Option<Making>> {
        if let Some(table) = self.tables.get(&id) {
            return if table.spec == *spec {
                Ok(None)
            } else {
                Err(Error::config(format!("table {id}"), table.spec.to_string(), spec))
            };
        }
        spec.validate()?;
        let optimizer = self.optimizers.build(&spec.optimizer)?;
        if optimizer.weights_follow_state() && spec.initializer != Initializer::Zeros {
            let setting = format!("table \"{}\": initializer", spec.name);
            let expected = format!("zeros with {}, whose weights follow from its state", spec.optimizer.name);
            return Err(Error::config(setting, expected, spec.initializer));
        }
        let bytes = match &spec.kind {
            TableKind::Dense { .. } => Dense::bytes(spec, &buckets, optimizer.as_ref()),
            TableKind::Sparse { .. } => Sparse::bytes(spec),
        };
        let used = self.used.saturating_add(bytes);
        if used > self.budget {
            let resource = format!("table_bytes of a server thread, with table {id}");
            return Err(Error::Limit { resource, limit: self.budget, asked: used });
        }
        // Spare segments only speed answers up, so they take what is left.
        let spare_bytes = self.spare_bytes.min(self.budget - used);
        let memory = (self.memory, spare_bytes);
        let (spec, generation) = (spec.clone(), self.generation);
        Ok(Some(Making { id, spec, buckets, optimizer, bytes, memory, generation }))
    }

    /// Adds a table that was made.
    pub fn add_table(
        &mut self,
        Made { id, mut table, bytes }: Made,
        register: impl FnMut(Arc<Arena>) -> Result<RegionId>,
    ) -> Result<()> {
        if let Body::Dense(dense) = &mut table.body {
            dense.register(register)?;
            self.parameter_bytes += dense.parameter_bytes();
            self.used += dense.spare_bytes();
        }
        self.used += bytes;
        self.tables.insert(id, table);
        Ok(())
    }

    /// The spec of a table, if it exists.
    pub fn spec(&self, table: TableId) -> Option<&TableSpec> {
        self.tables.get(&table).map(|t| &t.spec)
    }

    /// Takes one dense piece. Gives its rejection, if it is too old or not finite.
    pub fn write_dense(
        &mut self,
        table: TableId,
        how: How,
        piece: DensePiece<'_>,
        intake: Intake,
        applied: &mut Vec<Applied>,
    ) -> Result<Option<Rejection>, Malformed> {
        let DensePiece { bucket, first, values } = piece;
        let Table { spec, optimizer, body, touched } =
            self.tables.get_mut(&table).ok_or_else(|| unknown(table))?;
        let Body::Dense(dense) = body else { return Err(kind_mismatch("dense")) };
        may_take(how, optimizer.as_ref())?;
        dense.check(&piece)?;
        if is_unfit(spec, values, &mut self.non_finite) {
            return Ok(Some(unfit(spec, &piece)));
        }
        match intake {
            Intake::Fold => {
                let first_of_clock = match how {
                    How::Push => dense.fold(&[piece])?.is_some(),
                    How::Set => dense.hold_set(&piece)?,
                };
                if first_of_clock {
                    touch(spec, (touched, &mut self.touched), (table, bucket));
                }
            }
            Intake::Step { divisor, base } => {
                let (_, current) = dense.read(bucket, first, values.len() as u32)?;
                if let Some(marked) = &mut self.marked {
                    marked.before_dense(table, bucket, dense);
                }
                let version = match how {
                    How::Push => {
                        let Some(divisor) = aged(spec.stale, base, current, divisor) else {
                            return Ok(Some(Rejection::after(None, bucket, Cause::Stale { current })));
                        };
                        dense.apply(&piece, divisor, optimizer.as_ref())?
                    }
                    How::Set => dense.set(&piece)?,
                };
                applied.push(Applied { table, bucket, version });
            }
            Intake::Drop => {}
        }
        Ok(None)
    }

    /// Whether a dense piece fits.
    pub fn check_dense(&self, table: TableId, piece: &DensePiece<'_>) -> Result<(), Malformed> {
        match &self.tables.get(&table).ok_or_else(|| unknown(table))?.body {
            Body::Dense(dense) => dense.check(piece),
            Body::Sparse(_) => Err(kind_mismatch("dense")),
        }
    }

    /// The rejection of a dense piece that fits, before it is folded by [`Shard::fold_dense`] or [`Shard::close_dense`], if it is
    /// not finite.
    pub fn examine_dense(&mut self, table: TableId, piece: &DensePiece<'_>) -> Option<Rejection> {
        let spec = &self.tables.get(&table)?.spec;
        is_unfit(spec, piece.values, &mut self.non_finite).then(|| unfit(spec, piece))
    }

    /// Takes pushed pieces of one dense bucket into the open clock's sum, in their order. Nothing is touched unless all fit.
    pub fn fold_dense(&mut self, table: TableId, pieces: &[DensePiece<'_>]) -> Result<(), Malformed> {
        let Table { spec, body, touched, .. } = self.tables.get_mut(&table).ok_or_else(|| unknown(table))?;
        let Body::Dense(dense) = body else { return Err(kind_mismatch("dense")) };
        if let Some(bucket) = dense.fold(pieces)? {
            touch(spec, (touched, &mut self.touched), (table, bucket));
        }
        Ok(())
    }

    /// The last pushed pieces of one dense bucket in the open clock, in their order, and its step: where they cover the whole
    /// bucket all in one pass. `workers` is the divisor of a mean.
    pub fn close_dense(
        &mut self,
        table: TableId,
        pieces: &[DensePiece<'_>],
        workers: u32,
        applied: &mut Vec<Applied>,
    ) -> Result<(), Malformed> {
        let Table { spec, optimizer, body, .. } =
            self.tables.get_mut(&table).ok_or_else(|| unknown(table))?;
        let Body::Dense(dense) = body else { return Err(kind_mismatch("dense")) };
        let Some(bucket) = pieces.first().map(|p| p.bucket) else { return Ok(()) };
        if let Some(marked) = &mut self.marked {
            marked.before_dense(table, bucket, dense);
        }
        let version = dense.close(bucket, pieces, divisor(spec, workers), optimizer.as_ref())?;
        applied.extend(version.map(|version| Applied { table, bucket, version }));
        Ok(())
    }

    /// Takes the sparse pieces of one frame. Nothing is touched unless all of it fits. Gives the rejection of those that are
    /// too old or not finite; the others are taken.
    pub fn write_sparse(
        &mut self,
        table: TableId,
        how: How,
        piece: SparsePiece<'_>,
        intake: Intake,
        applied: &mut Vec<Applied>,
    ) -> Result<Option<Rejection>, Malformed> {
        self.check_pull(table, &piece)?;
        let mut positions = std::mem::take(&mut self.positions);
        positions.clear();
        let written = self.write_listed(table, how, piece, &mut positions, intake, applied);
        self.positions = positions;
        written
    }

    /// As [`Shard::write_sparse`], for keys that have been checked. `positions` is empty at first, and spares looking the same keys
    /// up when they come again: rows never move.
    pub fn write_listed(
        &mut self,
        table: TableId,
        how: How,
        piece: SparsePiece<'_>,
        positions: &mut Vec<u32>,
        intake: Intake,
        applied: &mut Vec<Applied>,
    ) -> Result<Option<Rejection>, Malformed> {
        let Table { spec, optimizer, body, touched } =
            self.tables.get_mut(&table).ok_or_else(|| unknown(table))?;
        let Body::Sparse(sparse) = body else { return Err(kind_mismatch("sparse")) };
        may_take(how, optimizer.as_ref())?;
        let dim = spec.width() as usize;
        if piece.values.len() != piece.keys.len() * dim {
            return Err(Malformed::new("values", (piece.keys.len() * dim).to_string(), piece.values.len()));
        }
        if intake != Intake::Drop && positions.is_empty() {
            sparse.resolve(piece.keys, positions);
        }
        let mut rejection: Option<Rejection> = None;
        let (mut done, known) = (0, self.parameter_bytes);
        for &DirectoryEntry { bucket: id, keys: count } in piece.directory {
            let range = done..done + count as usize;
            let keys = &piece.keys[range.clone()];
            let values = piece.values.part(done * dim, keys.len() * dim);
            done = range.end;
            if is_unfit(spec, values, &mut self.non_finite) {
                rejection = Some(Rejection::after(rejection, id, Cause::NonFinite { first: keys[0] }));
                continue;
            }
            if intake == Intake::Drop {
                continue;
            }
            let mut bucket = sparse.touch(id);
            let positions = &mut positions[range];
            let before = bucket.read().rows();
            if let Intake::Step { divisor, base } = intake {
                if let Some(marked) = &mut self.marked {
                    // Rows that are missing come after the mark.
                    marked.before_rows(table, id, bucket.read(), positions.iter().copied());
                }
                let current = bucket.read().version();
                let version = match (how, aged(spec.stale, base, current, divisor)) {
                    (How::Set, _) => bucket.set(keys, positions, values),
                    (How::Push, Some(divisor)) => {
                        bucket.apply(keys, positions, (values, divisor), optimizer.as_ref())
                    }
                    (How::Push, None) => {
                        rejection = Some(Rejection::after(rejection, id, Cause::Stale { current }));
                        continue;
                    }
                };
                applied.push(Applied { table, bucket: id, version });
            } else {
                let first_of_clock = match how {
                    How::Push => bucket.fold(keys, positions, values),
                    How::Set => bucket.hold_set(keys, positions, values),
                };
                if first_of_clock {
                    touch(spec, (touched, &mut self.touched), (table, id));
                }
            }
            self.parameter_bytes += ((bucket.read().rows() - before) * dim * 4) as u64;
        }
        if self.parameter_bytes > known {
            sparse.get_ready();
            if !self.grown.contains(&table) {
                self.grown.push(table);
            }
        }
        // Rows that what was rejected did not make may be made by others before these keys come again.
        if rejection.is_some() {
            positions.clear();
        }
        Ok(rejection)
    }

    /// A page of memory that the tables which pushes have let grow will need soon, if there is one that was not given yet. Any thread may
    /// have the system supply it meanwhile; what no thread does, pushes do themselves.
    pub fn next_to_supply(&mut self) -> Option<Arc<Page>> {
        while let Some(id) = self.grown.last() {
            if let Some(Table { body: Body::Sparse(sparse), .. }) = self.tables.get_mut(id)
                && let Some(page) = sparse.next_to_supply()
            {
                return Some(page);
            }
            self.grown.pop();
        }
        None
    }

    /// Closes the open clock of all tables without a quorum: every bucket that it touched, and that
    /// [`Shard::close_dense`] has not closed, takes one step. `expected` workers could have pushed.
    pub fn close(&mut self, expected: u32, applied: &mut Vec<Applied>) {
        for (id, bucket) in self.touched.drain(..) {
            if let Some(table) = self.tables.get_mut(&id) {
                applied.extend(table.step(id, bucket, expected, self.marked.as_mut()));
            }
        }
    }

    /// As [`Shard::close`], of one table with a quorum, to which `counted` workers brought something.
    pub fn close_table(&mut self, id: TableId, counted: u32, applied: &mut Vec<Applied>) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let mut touched = std::mem::take(&mut table.touched);
        let mut step = |bucket| table.step(id, bucket, counted, self.marked.as_mut());
        applied.extend(touched.drain(..).filter_map(&mut step));
        table.touched = touched;
    }

    /// All clocks < `clocks.0` have closed for a table, and the slowest worker is in `clocks.1`: one-sided readers see what these
    /// brought.
    pub fn publish_table(&mut self, id: TableId, clocks: (Clock, Clock)) {
        if let Some(Table { body: Body::Dense(dense), .. }) = self.tables.get_mut(&id) {
            dense.publish_closed(clocks);
        }
    }

    /// The same for all tables without a quorum, after [`Shard::close`].
    pub fn publish(&mut self, closed: Clock) {
        for table in self.tables.values_mut().filter(|table| table.spec.quorum.is_none()) {
            if let Body::Dense(dense) = &mut table.body {
                dense.publish_closed((closed, closed));
            }
        }
    }

    /// What workers may read one-sidedly of a table, if anything.
    pub fn readable(&self, table: TableId) -> Option<&Epochs> {
        match &self.tables.get(&table)?.body {
            Body::Dense(dense) => dense.readable(),
            Body::Sparse(_) => None,
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

    /// Keeps what [`Shard::read_dense`] gives as it is now, to be sent from where it lies. `None` when it has to be copied.
    pub fn pin_dense(&self, table: TableId, bucket: BucketId, first: u32, count: u32) -> Option<Pin> {
        match &self.tables.get(&table)?.body {
            Body::Dense(dense) => dense.pin(bucket, first, count),
            Body::Sparse(_) => None,
        }
    }

    /// How often a segment was being sent when it had to be written, and the new version was written elsewhere.
    pub fn moves(&self) -> u64 {
        let moves = |table: &Table| match &table.body {
            Body::Dense(dense) => dense.moves(),
            Body::Sparse(_) => 0,
        };
        self.tables.values().map(moves).sum()
    }

    /// Checks the keys of a sparse piece.
    pub fn check_pull(&self, table: TableId, piece: &SparsePiece<'_>) -> Result<(), Malformed> {
        let table = self.tables.get(&table).ok_or_else(|| unknown(table))?;
        match &table.body {
            Body::Sparse(sparse) => check_directory(&table.spec, piece, |b| sparse.owns(b)),
            Body::Dense(_) => Err(kind_mismatch("sparse")),
        }
    }

    /// Gathers the rows of a checked pull into `into`, in the order of its keys; gives the largest version.
    pub fn gather(&mut self, table: TableId, piece: &SparsePiece<'_>, into: &mut Vec<f32>) -> Version {
        let Some(Table { spec, body: Body::Sparse(sparse), .. }) = self.tables.get(&table) else { return 0 };
        let dim = spec.width() as usize;
        into.resize(piece.keys.len() * dim, 0.0);
        sparse.gather(piece.directory, piece.keys, &mut self.positions, into)
    }

    /// Values that were not finite, in tables that look for them.
    pub fn non_finite(&self) -> u64 {
        self.non_finite
    }

    /// Bytes of parameters, without state and index.
    pub fn parameter_bytes(&self) -> u64 {
        self.parameter_bytes
    }
}

impl Table {
    /// A bucket's step with what the open clock brought.
    fn step(
        &mut self,
        id: TableId,
        bucket: BucketId,
        workers: u32,
        marked: Option<&mut Marked>,
    ) -> Option<Applied> {
        let (divisor, optimizer) = (divisor(&self.spec, workers), self.optimizer.as_ref());
        let version = match &mut self.body {
            Body::Dense(dense) => {
                if let Some(marked) = marked {
                    marked.before_dense(id, bucket, dense);
                }
                // Without pieces there is nothing that might not fit.
                dense.close(bucket, &[], divisor, optimizer).unwrap_or(None)?
            }
            Body::Sparse(sparse) => {
                let mut rows = sparse.touch(bucket);
                if let Some(marked) = marked {
                    marked.before_rows(id, bucket, rows.read(), rows.read().open_rows());
                }
                rows.close(divisor, optimizer)
            }
        };
        Some(Applied { table: id, bucket, version })
    }
}

/// Remembers that the open clock touched a bucket: with its table, if a quorum closes that, or else with those of all others.
fn touch(
    spec: &TableSpec,
    (of_table, of_others): (&mut Vec<BucketId>, &mut Vec<(TableId, BucketId)>),
    (table, bucket): (TableId, BucketId),
) {
    match spec.quorum {
        Some(_) => of_table.push(bucket),
        None => of_others.push((table, bucket)),
    }
}

/// What a clock's sum is divided by.
fn divisor(spec: &TableSpec, workers: u32) -> f32 {
    match spec.aggregate {
        Aggregate::Sum => 1.0,
        Aggregate::Mean => workers.max(1) as f32,
    }
}

/// What a piece is divided by, its age considered; nothing when it is too old.
fn aged(stale: Stale, base: Option<Version>, current: Version, divisor: f32) -> Option<f32> {
    let age = base.map_or(0, |base| current.saturating_sub(base));
    match stale {
        Stale::Accept => Some(divisor),
        Stale::Scale => Some(divisor * (1.0 + age as f32)),
        Stale::Reject { max_age } => (age <= max_age).then_some(divisor),
    }
}

/// Looks for values that are not finite, where the table says so, and adds how many there are to `found`. True when they are
/// a reason to reject their piece.
fn is_unfit(spec: &TableSpec, values: Input<'_>, found: &mut u64) -> bool {
    if spec.non_finite == NonFinite::Accept {
        return false;
    }
    let here = kernels::count_non_finite(values);
    *found += here;
    here > 0 && spec.non_finite == NonFinite::Reject
}

/// The rejection of a dense piece that fits and is not finite.
fn unfit(spec: &TableSpec, piece: &DensePiece<'_>) -> Rejection {
    let segment = spec.segment_range(piece.bucket).map_or(0, |range| range.start());
    let first = segment + u64::from(piece.first);
    Rejection::after(None, piece.bucket, Cause::NonFinite { first })
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
        // Without a way out: most are right, and their hashes are computed side by side. No bucket is ours that the table lacks.
        let (first, last) = spec.hashes_of(bucket).unwrap_or_default();
        let is_strange = |k: &Key| mix64(*k).wrapping_sub(first) > last - first;
        let (strange, disordered) =
            keys.windows(2).fold((is_strange(&keys[0]), false), |(strange, disordered), w| {
                (strange | is_strange(&w[1]), disordered | (w[0] >= w[1]))
            });
        if strange && let Some(key) = keys.iter().find(|k| is_strange(k)) {
            return Err(Malformed::new("keys", format!("keys of bucket {bucket}"), key));
        }
        if disordered && let Some(w) = keys.windows(2).find(|w| w[0] >= w[1]) {
            return Err(Malformed::new("keys", "ascending keys", format!("{} before {}", w[0], w[1])));
        }
        done += keys.len();
    }
    if done != piece.keys.len() {
        return Err(Malformed::new("directory", format!("{} keys", piece.keys.len()), done));
    }
    Ok(())
}

/// A set that the next push would undo is refused.
fn may_take(how: How, optimizer: &dyn Optimizer) -> Result<(), Malformed> {
    match how {
        How::Set if optimizer.weights_follow_state() => {
            Err(Malformed::new("kind", "no set of weights that follow from the rule's state", "a set"))
        }
        _ => Ok(()),
    }
}

pub(super) fn unknown(table: TableId) -> Malformed {
    Malformed::new("table", "a table of the catalogue", table)
}

pub(super) fn kind_mismatch(asked: &str) -> Malformed {
    Malformed::new("table", format!("a {asked} table"), "the other kind")
}

#[cfg(test)]
mod tests;
