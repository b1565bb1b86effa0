//! A table, as a worker uses it.

use std::sync::Arc;

use super::engine::{Source, Span, Target};
use super::{Buffer, Inner, Ticket};
use crate::error::{Error, Result};
use crate::proto::{Chains, NO_BASE, RequestKind};
use crate::types::{KeyRange, PartitionMap, SortedKeys, TableId, TableSpec, Version};

/// A blocking pull has so many windows under way, so that the server threads never run out of work before they hear of more.
const WINDOWS: usize = 4;
/// Values of one window.
const WINDOW_BYTES: usize = 1 << 20;
/// And segments, of a dense table.
const WINDOW_FRAMES: u64 = 16;

/// The windows of a blocking pull that are under way, oldest first.
#[derive(Default)]
struct Windows<'a> {
    /// A ring: the oldest is number `done`.
    under_way: [Option<(Ticket, &'a mut [f32])>; WINDOWS],
    done: usize,
    version: Version,
}

impl<'a> Windows<'a> {
    /// Waits for the oldest window when there are [`WINDOWS`].
    fn make_room(&mut self) -> Result<()> {
        if self.under_way.iter().all(Option::is_some) { self.wait_oldest().map(drop) } else { Ok(()) }
    }

    /// Adds one where [`Windows::make_room`] made room.
    fn add(&mut self, ticket: Ticket, values: &'a mut [f32]) {
        let free = (self.done..).find(|n| self.under_way[n % WINDOWS].is_none());
        if let Some(number) = free {
            self.under_way[number % WINDOWS] = Some((ticket, values));
        }
    }

    /// Waits for all. Gives the largest version read.
    fn finish(mut self) -> Result<Version> {
        while self.wait_oldest()? {}
        Ok(self.version)
    }

    /// False when there is none.
    fn wait_oldest(&mut self) -> Result<bool> {
        let Some((ticket, values)) = self.under_way[self.done % WINDOWS].take() else { return Ok(false) };
        self.version = self.version.max(ticket.wait_into(values)?);
        self.done += 1;
        Ok(true)
    }
}

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
    chains: Chains,
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
        Table { inner, id, spec: Arc::new(spec), map: Arc::new(map), chains }
    }

    /// What the table is.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Pushes a row of `dim` fp32 for each key (sparse). The values are copied before the call returns.
    pub fn push(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        self.send(RequestKind::Push, keys, values, None)
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
        self.check_base("push_from", base)?;
        self.send(RequestKind::Push, keys, values, Some(base))
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
        self.send(RequestKind::Set, keys, values, None)
    }

    /// Writes one fp32 for each key of the range (dense), as [`Table::set`] writes rows.
    pub fn set_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.may_set()?;
        self.send_range(RequestKind::Set, range, values, None)
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

    fn send(
        &self,
        kind: RequestKind,
        keys: SortedKeys<'_>,
        values: &[f32],
        base: Option<Version>,
    ) -> Result<Ticket> {
        self.same_length("values", keys.len() * self.spec.width() as usize, values.len())?;
        let deadline = self.inner.deadline();
        let id = self.inner.engine().push_sparse(kind, &self.target(), keys, values, base, deadline)?;
        Ok(self.ticket(id))
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
        let mut windows = Windows::default();
        for (keys, values) in keys.as_slice().chunks(window).zip(values.chunks_mut(window * width)) {
            windows.make_room()?;
            // A part of ascending keys ascends.
            windows.add(self.ask(SortedKeys::new(keys)?, false)?, values);
        }
        windows.finish()
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
        self.send_range(RequestKind::Push, range, values, None)
    }

    /// As [`Table::push_from`], for a range of a dense table.
    ///
    /// # Errors
    /// As [`Table::push_from`].
    pub fn push_range_from(&self, base: Version, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.check_base("push_range_from", base)?;
        self.send_range(RequestKind::Push, range, values, Some(base))
    }

    fn send_range(
        &self,
        kind: RequestKind,
        range: KeyRange,
        values: &[f32],
        base: Option<Version>,
    ) -> Result<Ticket> {
        self.same_length("values", range.len() as usize, values.len())?;
        let (source, deadline) = (Source::Slice(values), self.inner.deadline());
        let id = self.inner.engine().push_dense(kind, &self.target(), range, source, base, deadline)?;
        Ok(self.ticket(id))
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
        let mut windows = Windows::default();
        let mut start = range.start();
        for values in values.chunks_mut(window as usize) {
            let end = start + values.len() as u64;
            windows.make_room()?;
            windows.add(self.ask_range(KeyRange::new(start, end)?, false)?, values);
            start = end;
        }
        windows.finish()
    }

    /// Pushes a range and asks for what it becomes: under Bsp for the values after this clock has closed everywhere.
    pub fn push_pull_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        let first = self.spec.consistency.folds_by_rank(); // as in `push_pull`
        let ticket = if first { Some(self.ask_range(range, true)?) } else { None };
        drop(self.push_range(range, values)?);
        ticket.map_or_else(|| self.ask_range(range, true), Ok)
    }

    /// Pushes one fp32 for each key of the range (dense) from element `offset` of a registered buffer on, without a copy; where the
    /// table has push filters, they are copied through these. The elements may be written again when the ticket is done, which is
    /// when the push is committed.
    ///
    /// # Errors
    /// [`Error::Misuse`] while a pull into these elements is not done; [`Error::Config`] when they lie outside.
    pub fn push_range_buffer(&self, range: KeyRange, from: &Buffer, offset: usize) -> Result<Ticket> {
        let span = from.of(&self.inner, offset, range.len() as usize)?;
        let mut engine = self.inner.engine();
        engine.may_use(&span, false, "push_range_buffer")?;
        let (source, deadline) = (Source::Buffer(span), self.inner.deadline());
        let id = engine.push_dense(RequestKind::Push, &self.target(), range, source, None, deadline)?;
        Ok(self.ticket(id))
    }

    /// Asks for one fp32 for each key of the range (dense); the server threads write them to the registered buffer, from element
    /// `offset` on. Where the table has pull filters they come by receive memory, and are copied through these as they come; the
    /// call waits while that memory is short. [`Ticket::wait_version`] waits for the values.
    ///
    /// # Errors
    /// [`Error::Misuse`] while an operation on these elements is not done; [`Error::Config`] when they lie outside.
    pub fn pull_range_buffer_async(
        &self,
        range: KeyRange,
        into: &mut Buffer,
        offset: usize,
    ) -> Result<Ticket> {
        let span = into.of(&self.inner, offset, range.len() as usize)?;
        let mut engine = self.inner.engine();
        engine.may_use(&span, true, "pull_range_buffer")?;
        let id = engine.pull_into(&self.target(), range, span, false, self.inner.deadline())?;
        Ok(self.ticket(id))
    }

    /// Pulls the keys of the range (dense) into a registered buffer, from element `offset` on, and waits for them. Gives the
    /// largest version read. Errors as [`Table::pull_range_buffer_async`].
    pub fn pull_range_buffer(&self, range: KeyRange, into: &mut Buffer, offset: usize) -> Result<Version> {
        self.pull_range_buffer_async(range, into, offset)?.wait_version()
    }

    /// Pushes a range (dense) from element `offset` of a registered buffer on, and asks for what it becomes in the same place:
    /// under Bsp for the values after this clock has closed everywhere. Errors as [`Table::pull_range_buffer_async`]; and
    /// [`Error::Limit`] before anything is pushed where the table is under Bsp, has pull filters, and the answer does not fit
    /// receive memory.
    pub fn push_pull_range_buffer(
        &self,
        range: KeyRange,
        both: &mut Buffer,
        offset: usize,
    ) -> Result<Ticket> {
        let span = both.of(&self.inner, offset, range.len() as usize)?;
        self.push_pull_spans(range, span, span)
    }

    /// As [`Table::push_pull_range_buffer`], from one buffer (and element) into another.
    pub fn push_pull_range_buffers(
        &self,
        range: KeyRange,
        (from, from_offset): (&Buffer, usize),
        (into, into_offset): (&mut Buffer, usize),
    ) -> Result<Ticket> {
        let from = from.of(&self.inner, from_offset, range.len() as usize)?;
        let into = into.of(&self.inner, into_offset, range.len() as usize)?;
        self.push_pull_spans(range, from, into)
    }

    /// In place is sound: a server thread answers the pull of a key only when it has taken the push of it, so what the answer
    /// overwrites is never needed again. Sent again after a reconnect, such a push is dropped without being looked at.
    fn push_pull_spans(&self, range: KeyRange, from: Span, into: Span) -> Result<Ticket> {
        let mut engine = self.inner.engine();
        engine.may_use(&from, false, "push_pull_range_buffer")?;
        engine.may_use(&into, true, "push_pull_range_buffer")?;
        let (target, deadline) = (self.target(), self.inner.deadline());
        // Behind the push on every link under Ssp and Asp; under Bsp it waits for its clock's mark anyway. There it is queued
        // first where filters need receive memory for it: what does not fit is refused before anything is pushed.
        let first = self.spec.consistency.folds_by_rank() && !self.chains.pull.is_empty();
        let early = match first {
            true => Some(engine.pull_into(&target, range, into, true, deadline)?),
            false => None,
        };
        let push = engine.push_dense(RequestKind::Push, &target, range, Source::Buffer(from), None, deadline);
        match (push, early) {
            (Ok(push), _) => engine.forget(push),
            (Err(error), None) => return Err(error),
            (Err(error), Some(pull)) => {
                engine.cancel(pull);
                return Err(error);
            }
        }
        let pull = match early {
            Some(pull) => pull,
            None => engine.pull_into(&target, range, into, true, deadline)?,
        };
        Ok(self.ticket(pull))
    }

    fn ask(&self, keys: SortedKeys<'_>, after_push: bool) -> Result<Ticket> {
        let deadline = self.inner.deadline();
        let id = self.inner.engine().pull_sparse(&self.target(), keys, after_push, deadline)?;
        Ok(self.ticket(id))
    }

    fn ask_range(&self, range: KeyRange, after_push: bool) -> Result<Ticket> {
        let id = self.inner.engine().pull_dense(&self.target(), range, after_push)?;
        Ok(self.ticket(id))
    }

    fn target(&self) -> Target<'_> {
        Target { id: self.id, spec: &self.spec, map: &self.map, chains: self.chains }
    }

    fn ticket(&self, id: usize) -> Ticket {
        Ticket::new(self.inner.clone(), id)
    }

    fn check_base(&self, call: &'static str, base: Version) -> Result<()> {
        let reason = if base == NO_BASE {
            format!("{NO_BASE} is no version")
        } else if self.spec.consistency.folds_by_rank() {
            format!("table \"{}\" is under bsp, where nothing is stale: push without a base", self.spec.name)
        } else {
            return Ok(());
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
