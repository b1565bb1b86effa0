//! A table, as a worker uses it.

use std::sync::Arc;

use super::plan::{self, SparsePlan};
use super::{Inner, Ticket};
use crate::error::{Error, Result};
use crate::proto::Chains;
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
    chains: Chains,
    map: Arc<PartitionMap>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table(\"{}\": {})", self.spec.name, self.spec)
    }
}

impl Table {
    pub(super) fn new(
        inner: Arc<Inner>,
        id: TableId,
        spec: TableSpec,
        chains: Chains,
        map: PartitionMap,
    ) -> Table {
        Table { inner, id, spec: Arc::new(spec), chains, map: Arc::new(map) }
    }

    /// What the table is.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Pushes a row of `dim` fp32 for each key (sparse). The values are copied before the call returns.
    pub fn push(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        self.same_length("values", keys.len() * self.spec.width() as usize, values.len())?;
        let mut engine = self.inner.engine();
        let limit = engine.payload_bytes();
        let row = self.spec.width() as usize * self.chains.push.value_bytes();
        let plan = SparsePlan::new(&self.spec, &self.map, keys, row, limit)?;
        let deadline = self.inner.deadline();
        let table = (self.id, &*self.spec, self.chains.push);
        let id = engine.push_sparse(table, &plan, keys.as_slice(), values, deadline)?;
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
        self.same_length("values", range.len() as usize, values.len())?;
        let mut engine = self.inner.engine();
        let limit = (engine.payload_bytes() / self.chains.push.value_bytes()) as u32;
        let frames = plan::dense(&self.spec, &self.map, range, limit)?;
        let table = (self.id, &*self.spec, self.chains.push);
        let id = engine.push_dense(table, &frames, values, self.inner.deadline())?;
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
        let row = self.spec.width() as usize * self.chains.pull.value_bytes();
        let plan = SparsePlan::new(&self.spec, &self.map, keys, row, engine.payload_bytes())?;
        let table = (self.id, &*self.spec, self.chains.pull);
        let id = engine.pull_sparse(table, plan, keys.as_slice(), after_push, self.inner.deadline())?;
        Ok(Ticket::new(self.inner.clone(), id))
    }

    fn ask_range(&self, range: KeyRange, after_push: bool) -> Result<Ticket> {
        let mut engine = self.inner.engine();
        let limit = (engine.payload_bytes() / self.chains.pull.value_bytes()) as u32;
        let frames = plan::dense(&self.spec, &self.map, range, limit)?;
        let id = engine.pull_dense((self.id, &self.spec, self.chains.pull), &frames, after_push)?;
        Ok(Ticket::new(self.inner.clone(), id))
    }

    fn same_length(&self, what: &str, expected: usize, found: usize) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::config(format!("table \"{}\": {what}", self.spec.name), format!("{expected} fp32"), found))
    }
}
