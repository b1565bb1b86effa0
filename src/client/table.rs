//! A table, as a worker uses it.

use std::sync::Arc;

use super::plan::{self, SparsePlan};
use super::{Inner, Ticket};
use crate::error::{Error, Result};
use crate::proto::NO_BASE;
use crate::types::{KeyRange, PartitionMap, SortedKeys, TableId, TableSpec, Version};

/// Values that one blocking pull has under way at a time.
const WINDOW_BYTES: usize = 4 << 20;
/// And segments, of a dense table.
const WINDOW_FRAMES: u64 = 64;

/// A handle to a table of the job.
///
/// A push that fails half-way (a timeout, a lost server) may have been taken in part: end the job, or the clock's bits are
/// those of nobody's choosing.
#[derive(Clone)]
pub struct Table {
    inner: Arc<Inner>,
    id: TableId,
    spec: Arc<TableSpec>,
    map: Arc<PartitionMap>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table(\"{}\": {})", self.spec.name, self.spec)
    }
}

impl Table {
    pub(super) fn new(inner: Arc<Inner>, id: TableId, spec: TableSpec, map: PartitionMap) -> Table {
        Table { inner, id, spec: Arc::new(spec), map: Arc::new(map) }
    }

    /// What the table is.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Pushes a row of `dim` fp32 for each key (sparse). The values are copied before the call returns.
    pub fn push(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        self.push_rows(keys, values, None)
    }

    /// As [`Table::push`], for values that were computed from what a pull of version `base` gave (Ssp, Asp): what becomes of
    /// stale ones, the table's [`Stale`](crate::types::Stale) says.
    ///
    /// Each bucket counts its own version: a dense segment, or a sparse hash bucket with all its rows. A push has one piece
    /// for each bucket, and every piece is judged by itself: its age is the version that its bucket has when it comes, less
    /// `base`, and 0 when that is negative. Rejected pieces change nothing, the others are applied, and later pushes are not
    /// concerned. As a pull gives the largest version of its buckets, ages are exact for pulls and pushes of one bucket, and
    /// otherwise too small by what the others lay behind.
    ///
    /// # Errors
    /// [`Error::Misuse`] under Bsp, or when a bucket's rows do not fit one frame. Waiting for the ticket gives
    /// [`Error::Stale`] when pieces were rejected.
    pub fn push_from(&self, base: Version, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        self.push_rows(keys, values, Some(base))
    }

    fn push_rows(&self, keys: SortedKeys<'_>, values: &[f32], base: Option<Version>) -> Result<Ticket> {
        self.same_length("values", keys.len() * self.spec.width() as usize, values.len())?;
        let mut engine = self.inner.engine();
        let limit = engine.payload_bytes();
        let row = self.spec.width() as usize * 4;
        let plan = SparsePlan::new(&self.spec, &self.map, keys, row, limit)?;
        self.check_base("push_from", base, plan.is_whole())?;
        let deadline = self.inner.deadline();
        let table = (self.id, &*self.spec);
        let id = engine.push_sparse(table, &plan, keys.as_slice(), values, base, deadline)?;
        Ok(Ticket::new(self.inner.clone(), id))
    }

    /// Asks for the row of each key (sparse); [`Ticket::wait_into`] gives `keys × dim` fp32.
    pub fn pull_async(&self, keys: SortedKeys<'_>) -> Result<Ticket> {
        self.ask(keys, false)
    }

    /// Pulls the row of each key (sparse) and waits for them: `keys × dim` fp32. Gives the largest version read.
    pub fn pull(&self, keys: SortedKeys<'_>, values: &mut [f32]) -> Result<Version> {
        let width = self.spec.width() as usize;
        self.same_length("values", keys.len() * width, values.len())?;
        let window = (WINDOW_BYTES / (width * 4)).max(1);
        let mut version = 0;
        for (keys, values) in keys.as_slice().chunks(window).zip(values.chunks_mut(window * width)) {
            // A part of ascending keys ascends.
            let ticket = self.ask(SortedKeys::new(keys)?, false)?;
            version = version.max(ticket.wait_into(values)?);
        }
        Ok(version)
    }

    /// Pushes rows and asks for what they become: under Bsp for the values after this clock has closed everywhere.
    pub fn push_pull(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        // Under Bsp the pull is sent behind its clock's mark, so it may be queued first: what does not fit the receive
        // memory is refused before anything is pushed.
        let first = self.spec.consistency.folds_by_rank();
        let ticket = if first { Some(self.ask(keys, true)?) } else { None };
        drop(self.push(keys, values)?);
        ticket.map_or_else(|| self.ask(keys, true), Ok)
    }

    /// Pushes one fp32 for each key of the range (dense). The values are copied before the call returns.
    pub fn push_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.push_keys(range, values, None)
    }

    /// As [`Table::push_from`], for a range of a dense table.
    ///
    /// # Errors
    /// As [`Table::push_from`].
    pub fn push_range_from(&self, base: Version, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.push_keys(range, values, Some(base))
    }

    fn push_keys(&self, range: KeyRange, values: &[f32], base: Option<Version>) -> Result<Ticket> {
        self.same_length("values", range.len() as usize, values.len())?;
        let mut engine = self.inner.engine();
        let limit = (engine.payload_bytes() / 4) as u32;
        let frames = plan::dense(&self.spec, &self.map, range, limit)?;
        self.check_base("push_range_from", base, plan::dense_is_whole(&frames))?;
        let id = engine.push_dense((self.id, &self.spec), &frames, values, base, self.inner.deadline())?;
        Ok(Ticket::new(self.inner.clone(), id))
    }

    /// Asks for one fp32 for each key of the range (dense); [`Ticket::wait_into`] gives them.
    pub fn pull_range_async(&self, range: KeyRange) -> Result<Ticket> {
        self.ask_range(range, false)
    }

    /// Pulls the keys of the range (dense) and waits for them. Gives the largest version read.
    pub fn pull_range(&self, range: KeyRange, values: &mut [f32]) -> Result<Version> {
        self.same_length("values", range.len() as usize, values.len())?;
        // Short segments make many frames, each of which holds a receive buffer.
        let most = u64::from(self.spec.segment_length()) * WINDOW_FRAMES;
        let window = ((WINDOW_BYTES / 4) as u64).min(most.max(1));
        let mut version = 0;
        let mut start = range.start();
        for values in values.chunks_mut(window as usize) {
            let end = start + values.len() as u64;
            version = version.max(self.ask_range(KeyRange::new(start, end)?, false)?.wait_into(values)?);
            start = end;
        }
        Ok(version)
    }

    /// Pushes a range and asks for what it becomes: under Bsp for the values after this clock has closed everywhere.
    pub fn push_pull_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        let first = self.spec.consistency.folds_by_rank(); // as in `push_pull`
        let ticket = if first { Some(self.ask_range(range, true)?) } else { None };
        drop(self.push_range(range, values)?);
        ticket.map_or_else(|| self.ask_range(range, true), Ok)
    }

    fn ask(&self, keys: SortedKeys<'_>, after_push: bool) -> Result<Ticket> {
        let mut engine = self.inner.engine();
        // The answer has to fit a frame, too: rows count as if they travelled with the keys.
        let row = self.spec.width() as usize * 4;
        let plan = SparsePlan::new(&self.spec, &self.map, keys, row, engine.payload_bytes())?;
        let table = (self.id, &*self.spec);
        let id = engine.pull_sparse(table, plan, keys.as_slice(), after_push, self.inner.deadline())?;
        Ok(Ticket::new(self.inner.clone(), id))
    }

    fn ask_range(&self, range: KeyRange, after_push: bool) -> Result<Ticket> {
        let mut engine = self.inner.engine();
        let limit = (engine.payload_bytes() / 4) as u32;
        let frames = plan::dense(&self.spec, &self.map, range, limit)?;
        let id = engine.pull_dense((self.id, &self.spec), &frames, after_push)?;
        Ok(Ticket::new(self.inner.clone(), id))
    }

    /// A piece in two frames would make its second half stale itself.
    fn check_base(&self, call: &'static str, base: Option<Version>, whole: bool) -> Result<()> {
        let reason = match base {
            Some(NO_BASE) => format!("{NO_BASE} is no version"),
            Some(_) if self.spec.consistency.folds_by_rank() => {
                format!(
                    "table \"{}\" is under bsp, where nothing is stale: push without a base",
                    self.spec.name
                )
            }
            Some(_) if !whole => {
                format!(
                    "what goes to one bucket of table \"{}\" does not fit a frame: push less at once, or make its \
                     buckets smaller",
                    self.spec.name
                )
            }
            _ => return Ok(()),
        };
        Err(Error::Misuse { call, reason })
    }

    fn same_length(&self, what: &str, expected: usize, found: usize) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::config(format!("table \"{}\": {what}", self.spec.name), format!("{expected} fp32"), found))
    }
}
