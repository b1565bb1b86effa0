//! A table, as a worker uses it.

use std::sync::Arc;

use super::engine::{After, Engine};
use super::plan::{self, DenseFrame, SparsePlan};
use super::{Inner, Ticket};
use crate::error::{Error, Result};
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
    /// What its pushes and pulls begin after.
    after: Option<Arc<After>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table(\"{}\": {})", self.spec.name, self.spec)
    }
}

impl Table {
    pub(super) fn new(inner: Arc<Inner>, id: TableId, spec: TableSpec, map: PartitionMap) -> Table {
        Table { inner, id, spec: Arc::new(spec), map: Arc::new(map), after: None }
    }

    /// What the table is.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// The same table, whose pushes and pulls begin when all of these tickets are done: their frames wait at the worker,
    /// also when they go to other servers. The calls themselves do not block. [`Client::clock`](super::Client::clock)
    /// waits until they have begun.
    ///
    /// # Errors
    /// [`Error::Misuse`] when a ticket is done only after the caller has ended its own clock (a push under Bsp in the
    /// present clock), or is another client's.
    pub fn after(&self, tickets: &[&Ticket]) -> Result<Table> {
        if tickets.iter().any(|t| !t.is_of(&self.inner)) {
            let reason = "a ticket of another client".to_owned();
            return Err(Error::Misuse { call: "after", reason });
        }
        let after = self.inner.driver.engine().after(tickets.iter().filter_map(|t| t.id()))?;
        Ok(Table { after: Some(Arc::new(after)), ..self.clone() })
    }

    /// Pushes a row of `dim` fp32 for each key (sparse). The values are copied before the call returns.
    pub fn push(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        self.push_rows(keys, values, false)
    }

    /// Asks for the row of each key (sparse); [`Ticket::wait_into`] gives `keys × dim` fp32.
    pub fn pull_async(&self, keys: SortedKeys<'_>) -> Result<Ticket> {
        self.ask(keys, false, false)
    }

    /// Pulls the row of each key (sparse) and waits for them: `keys × dim` fp32. Gives the largest version read.
    pub fn pull(&self, keys: SortedKeys<'_>, values: &mut [f32]) -> Result<Version> {
        let width = self.spec.width() as usize;
        self.same_length("values", keys.len() * width, values.len())?;
        let window = (WINDOW_BYTES / (width * 4)).max(1);
        let mut version = 0;
        for (keys, values) in keys.as_slice().chunks(window).zip(values.chunks_mut(window * width)) {
            // A part of ascending keys ascends.
            let ticket = self.ask(SortedKeys::new(keys)?, false, false)?;
            version = version.max(ticket.wait_into(values)?);
        }
        Ok(version)
    }

    /// Pushes rows and asks for what they become: under Bsp for the values after this clock has closed everywhere.
    pub fn push_pull(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        // Under Bsp the pull is sent behind its clock's mark, so it may be queued first: what does not fit the receive
        // memory is refused before anything is pushed.
        let first = self.spec.consistency.folds_by_rank();
        let ticket = if first { Some(self.ask(keys, true, true)?) } else { None };
        drop(self.push_rows(keys, values, !first)?);
        ticket.map_or_else(|| self.ask(keys, true, false), Ok)
    }

    /// Pushes one fp32 for each key of the range (dense). The values are copied before the call returns.
    pub fn push_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.push_floats(range, values, false)
    }

    /// Asks for one fp32 for each key of the range (dense); [`Ticket::wait_into`] gives them.
    pub fn pull_range_async(&self, range: KeyRange) -> Result<Ticket> {
        self.ask_range(range, false, false)
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
            version =
                version.max(self.ask_range(KeyRange::new(start, end)?, false, false)?.wait_into(values)?);
            start = end;
        }
        Ok(version)
    }

    /// Pushes a range and asks for what it becomes: under Bsp for the values after this clock has closed everywhere.
    pub fn push_pull_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        let first = self.spec.consistency.folds_by_rank(); // as in `push_pull`
        let ticket = if first { Some(self.ask_range(range, true, true)?) } else { None };
        drop(self.push_floats(range, values, !first)?);
        ticket.map_or_else(|| self.ask_range(range, true, false), Ok)
    }

    fn push_rows(&self, keys: SortedKeys<'_>, values: &[f32], more_follows: bool) -> Result<Ticket> {
        self.same_length("values", keys.len() * self.spec.width() as usize, values.len())?;
        let plan = self.plan(keys)?;
        let (id, data, mut next) = (self.id, (keys.as_slice(), values), 0);
        self.queue(
            more_follows,
            |engine| engine.new_push(&self.spec, self.after.as_ref()),
            |engine, ticket| engine.push_sparse((ticket, id), &plan, data, &mut next),
        )
    }

    fn push_floats(&self, range: KeyRange, values: &[f32], more_follows: bool) -> Result<Ticket> {
        self.same_length("values", range.len() as usize, values.len())?;
        let frames = self.frames(range)?;
        let mut next = 0;
        self.queue(
            more_follows,
            |engine| engine.new_push(&self.spec, self.after.as_ref()),
            |engine, ticket| engine.push_dense((ticket, self.id), &frames, values, &mut next),
        )
    }

    fn ask(&self, keys: SortedKeys<'_>, after_push: bool, more_follows: bool) -> Result<Ticket> {
        let mut plan = self.plan(keys)?;
        let mut next = 0;
        self.queue(
            more_follows,
            |engine| engine.new_pull(&self.spec, after_push, self.after.as_ref()),
            |engine, ticket| {
                let all = engine.pull_sparse((ticket, self.id), &plan, keys.as_slice(), &mut next)?;
                if all {
                    engine.set_order(ticket, std::mem::take(&mut plan.order));
                }
                Ok(all)
            },
        )
    }

    fn ask_range(&self, range: KeyRange, after_push: bool, more_follows: bool) -> Result<Ticket> {
        let frames = self.frames(range)?;
        let mut next = 0;
        self.queue(
            more_follows,
            |engine| engine.new_pull(&self.spec, after_push, self.after.as_ref()),
            |engine, ticket| engine.pull_dense((ticket, self.id), &frames, &mut next),
        )
    }

    /// An answer has to fit a frame, too: rows count as if they travelled with the keys.
    fn plan(&self, keys: SortedKeys<'_>) -> Result<SparsePlan> {
        let row = self.spec.width() as usize * 4;
        SparsePlan::new(&self.spec, &self.map, keys, row, self.inner.payload_bytes)
    }

    fn frames(&self, range: KeyRange) -> Result<Vec<DenseFrame>> {
        plan::dense(&self.spec, &self.map, range, (self.inner.payload_bytes / 4) as u32)
    }

    fn queue(
        &self,
        more_follows: bool,
        begin: impl FnOnce(&mut Engine) -> Result<usize>,
        more: impl FnMut(&mut Engine, usize) -> Result<bool>,
    ) -> Result<Ticket> {
        let id = self.inner.driver.queue(self.inner.deadline(), more_follows, begin, more)?;
        Ok(Ticket::new(self.inner.clone(), id))
    }

    fn same_length(&self, what: &str, expected: usize, found: usize) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Error::config(format!("table \"{}\": {what}", self.spec.name), format!("{expected} fp32"), found))
    }
}
