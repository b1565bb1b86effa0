//! A table, as a worker uses it.

use std::sync::Arc;

use super::plan::{self, SparsePlan};
use super::{Inner, Ticket};
use crate::error::{Error, Result};
use crate::proto::RequestKind;
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
        self.send(RequestKind::Push, keys, values)
    }

    /// Writes a row of `dim` fp32 for each key (sparse), past the update rule, whose state stays as it is.
    ///
    /// Under Bsp it belongs to this worker's clock, as a push does: when the clock closes, first what was pushed in it becomes
    /// one step, then rows that were set become what they were set to; where several workers set the same row, the highest
    /// rank's last value stands. Until then the server keeps the values beside the table. Under Ssp and Asp it is written
    /// as soon as it arrives. It is done, and done once, when a push would be. Refused where the weights follow from the
    /// update rule's state (`ftrl`): the next push would undo it.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/in_process.rs"));
    /// # use windlass::{Client, SortedKeys, TableSpec};
    /// # fn main() -> windlass::Result<()> {
    /// # let job = InProcess::start()?;
    /// # let client = Client::connect(job.config())?;
    /// let table = client.table(&TableSpec::sparse("weights", 2))?;
    /// let keys = SortedKeys::new(&[7])?;
    /// table.push(keys, &[1.0, 1.0])?;
    /// table.set(keys, &[0.25, 0.5])?;
    /// client.clock()?;
    /// let mut row = [0.0; 2];
    /// table.pull(keys, &mut row)?;
    /// assert_eq!(row, [0.25, 0.5]);
    /// # client.finalize()?;
    /// # job.end()
    /// # }
    /// ```
    pub fn set(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        self.may_set()?;
        self.send(RequestKind::Set, keys, values)
    }

    /// Writes one fp32 for each key of the range (dense), as [`Table::set`] writes rows.
    pub fn set_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.may_set()?;
        self.send_range(RequestKind::Set, range, values)
    }

    fn may_set(&self) -> Result<()> {
        if self.spec.optimizer.weights_follow_state() {
            let reason = format!(
                "the weights of table \"{}\" follow from the state of {}: the next push would undo it",
                self.spec.name, self.spec.optimizer.name
            );
            return Err(Error::Misuse { call: "set", reason });
        }
        Ok(())
    }

    fn send(&self, kind: RequestKind, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        self.same_length("values", keys.len() * self.spec.width() as usize, values.len())?;
        let mut engine = self.inner.engine();
        let limit = engine.payload_bytes();
        let row = self.spec.width() as usize * 4;
        let plan = SparsePlan::new(&self.spec, &self.map, keys, row, limit)?;
        let deadline = self.inner.deadline();
        let id = engine.push_sparse(kind, (self.id, &self.spec), &plan, keys.as_slice(), values, deadline)?;
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
        self.send_range(RequestKind::Push, range, values)
    }

    fn send_range(&self, kind: RequestKind, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.same_length("values", range.len() as usize, values.len())?;
        let mut engine = self.inner.engine();
        let limit = (engine.payload_bytes() / 4) as u32;
        let frames = plan::dense(&self.spec, &self.map, range, limit)?;
        let id = engine.push_dense(kind, (self.id, &self.spec), &frames, values, self.inner.deadline())?;
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

    fn same_length(&self, what: &str, expected: usize, found: usize) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::config(format!("table \"{}\": {what}", self.spec.name), format!("{expected} fp32"), found))
    }
}
