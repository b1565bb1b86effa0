//! A table, as a worker uses it.

use std::cell::Cell;
use std::sync::Arc;

use super::engine::{After, Engine, Source, Span, Target, Turns};
use super::plan::{self, DenseFrame, SparsePlan};
use super::readable::Readable;
use super::{Buffer, Inner, Ticket};
use crate::config::PullMode;
use crate::error::{Error, Result};
use crate::proto::{Chain, Chains, NO_BASE, RequestKind};
use crate::types::{Consistency, KeyRange, NonFinite, PartitionMap, SortedKeys, TableId, TableSpec, Version};

/// A blocking pull has so many windows under way, so that the server threads never run out of work before they hear of more;
/// fewer where the receive memory could not hold their answers.
const WINDOWS: usize = 4;
/// Values of one window.
const WINDOW_BYTES: usize = 1 << 20;
/// And segments, of a dense table.
const WINDOW_FRAMES: u64 = 16;

/// The windows of a blocking pull that are under way, oldest first.
struct Windows<'a> {
    /// A ring: the oldest is number `done`.
    under_way: [Option<(Ticket, &'a mut [f32])>; WINDOWS],
    /// How many there may be.
    most: usize,
    done: usize,
    version: Version,
}

impl<'a> Windows<'a> {
    /// Of `frames` answers each, for which there are `buffers`.
    fn new(frames: usize, buffers: u32) -> Windows<'a> {
        let most = (buffers as usize / frames).clamp(1, WINDOWS);
        Windows { under_way: Default::default(), most, done: 0, version: 0 }
    }

    /// Waits for the oldest window when there are as many as may be.
    fn make_room(&mut self) -> Result<()> {
        if self.under_way.iter().flatten().count() >= self.most {
            self.wait_oldest().map(drop)
        } else {
            Ok(())
        }
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
    /// What its pushes and pulls begin after.
    after: Option<Arc<After>>,
    priority: i8,
    /// Where its pulls may read, if they may.
    readable: Option<Arc<Readable>>,
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
        let reads = inner.config.pull == PullMode::Read;
        let readable = Readable::of(&spec, &map).filter(|_| reads).map(Arc::new);
        Table {
            inner,
            id,
            spec: Arc::new(spec),
            map: Arc::new(map),
            chains,
            after: None,
            priority: 0,
            readable,
        }
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

    /// The same table, whose pushes, sets and pulls have this priority; 0 is that of a table that was just opened. Of what waits
    /// at this worker for a free slot of a server thread, the higher priority leaves first, and equal ones in the order of the
    /// calls. So the layers that are needed first can go first, although their gradients are ready last.
    ///
    /// Priorities change when something leaves, and nothing else: the bits are the same. Nothing passes the end of a clock, in either
    /// direction, and requests of one table never pass each other: while some of a table wait for a server thread, further ones
    /// wait with the same priority there, whatever theirs is. What has left is not overtaken, nor is what waits in a call for memory, or for
    /// tickets ([`Table::after`]). Without clocks, what has a low priority waits for as long as there is always something else.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/in_process.rs"));
    /// # use windlass::{Client, KeyRange, TableSpec};
    /// # fn main() -> windlass::Result<()> {
    /// # let job = InProcess::start()?;
    /// # let client = Client::connect(job.config())?;
    /// let last = client.table(&TableSpec::dense("layer 2", &[1000]))?;
    /// let first = client.table(&TableSpec::dense("layer 1", &[1000]))?.priority(1);
    /// let all = KeyRange::new(0, 1000)?;
    /// // Back-propagation comes to the first layer last; the next pass needs it first.
    /// let of_last = last.push_pull_range(all, &[0.5; 1000])?;
    /// let of_first = first.push_pull_range(all, &[0.5; 1000])?;
    /// client.clock()?;
    /// let mut values = [0.0; 1000];
    /// of_first.wait_into(&mut values)?;
    /// of_last.wait_into(&mut values)?;
    /// # client.finalize()?;
    /// # job.end()
    /// # }
    /// ```
    pub fn priority(&self, priority: i8) -> Table {
        Table { priority, ..self.clone() }
    }

    /// Pushes a row of `dim` fp32 for each key (sparse). The values are copied before the call returns.
    pub fn push(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        self.push_rows(RequestKind::Push, keys, values, (None, false))
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
        self.push_rows(RequestKind::Push, keys, values, (Some(base), false))
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
        self.push_rows(RequestKind::Set, keys, values, (None, false))
    }

    /// Writes one fp32 for each key of the range (dense), as [`Table::set`] writes rows.
    pub fn set_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.may_set()?;
        self.push_slice(RequestKind::Set, range, values, (None, false))
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

    /// Asks for the row of each key (sparse); [`Ticket::wait_into`] gives `keys × dim` fp32.
    pub fn pull_async(&self, keys: SortedKeys<'_>) -> Result<Ticket> {
        self.ask(keys, false, false)
    }

    /// Pulls the row of each key (sparse) and waits for them: `keys × dim` fp32. Gives the largest version read.
    pub fn pull(&self, keys: SortedKeys<'_>, values: &mut [f32]) -> Result<Version> {
        let width = self.spec.width() as usize;
        self.same_length("values", keys.len() * width, values.len())?;
        let window = (WINDOW_BYTES / (width * 4)).max(1);
        let payload = self.inner.payload_bytes;
        // One for each shard, beyond those that are full.
        let shards: u32 = self.inner.view.servers.iter().map(|server| server.threads).sum();
        let frames = shards as usize + WINDOW_BYTES / payload + 1;
        let mut windows = Windows::new(frames, self.inner.receive.count(payload));
        for (keys, values) in keys.as_slice().chunks(window).zip(values.chunks_mut(window * width)) {
            windows.make_room()?;
            // A part of ascending keys ascends.
            windows.add(self.ask(SortedKeys::new(keys)?, false, false)?, values);
        }
        windows.finish()
    }

    /// Pushes rows and asks for what they become: under Bsp for the values after this clock has closed everywhere.
    pub fn push_pull(&self, keys: SortedKeys<'_>, values: &[f32]) -> Result<Ticket> {
        // Under Bsp the pull is sent behind its clock's mark, so it may be queued first: what does not fit the receive
        // memory is refused before anything is pushed.
        let first = self.spec.consistency.folds_by_rank();
        let ticket = if first { Some(self.ask(keys, true, true)?) } else { None };
        let push = self.push_rows(RequestKind::Push, keys, values, (None, !first))?;
        self.both(push, ticket.map_or_else(|| self.ask(keys, true, false), Ok)?)
    }

    /// Pushes one fp32 for each key of the range (dense). The values are copied before the call returns.
    pub fn push_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.push_slice(RequestKind::Push, range, values, (None, false))
    }

    /// As [`Table::push_from`], for a range of a dense table.
    ///
    /// # Errors
    /// As [`Table::push_from`].
    pub fn push_range_from(&self, base: Version, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        self.check_base("push_range_from", base)?;
        self.push_slice(RequestKind::Push, range, values, (Some(base), false))
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
        let piece = u64::from(self.spec.segment_length()).min(self.inner.payload_bytes as u64 / 4).max(1);
        let frames = (window / piece) as usize + 2;
        let mut windows = Windows::new(frames, self.inner.receive.count(piece as usize * 4));
        let mut start = range.start();
        for values in values.chunks_mut(window as usize) {
            let end = start + values.len() as u64;
            windows.make_room()?;
            windows.add(self.ask_range(KeyRange::new(start, end)?, false, false)?, values);
            start = end;
        }
        windows.finish()
    }

    /// Pushes a range and asks for what it becomes: under Bsp for the values after this clock has closed everywhere.
    pub fn push_pull_range(&self, range: KeyRange, values: &[f32]) -> Result<Ticket> {
        let first = self.spec.consistency.folds_by_rank(); // as in `push_pull`
        let ticket = if first { Some(self.ask_range(range, true, true)?) } else { None };
        let push = self.push_slice(RequestKind::Push, range, values, (None, !first))?;
        self.both(push, ticket.map_or_else(|| self.ask_range(range, true, false), Ok)?)
    }

    /// Pushes one fp32 for each key of the range (dense) from element `offset` of a registered buffer on, without a copy; where the
    /// table has push filters, they are copied through these. The elements may be written again when the ticket is done, which is
    /// when the push is committed.
    ///
    /// # Errors
    /// [`Error::Misuse`] while a pull into these elements is not done; [`Error::Config`] when they lie outside.
    pub fn push_range_buffer(&self, range: KeyRange, from: &Buffer, offset: usize) -> Result<Ticket> {
        let span = from.of(&self.inner, offset, range.len() as usize)?;
        self.push_dense(RequestKind::Push, range, Source::Buffer(span), (None, false), |engine| {
            engine.may_use(&span, false, "push_range_buffer")
        })
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
        self.pull_span(range, span, false, |engine| engine.may_use(&span, true, "pull_range_buffer"))
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
        let check = |engine: &mut Engine| {
            engine.may_use(&from, false, "push_pull_range_buffer")?;
            engine.may_use(&into, true, "push_pull_range_buffer")
        };
        let source = Source::Buffer(from);
        match (self.spec.consistency.folds_by_rank(), self.chains.pull.is_empty()) {
            // Under Ssp a pull may be held back, and would hold up the pushes behind it.
            (false, true) if self.spec.consistency == Consistency::Asp => {
                self.push_pull_in_turns(range, source, into, check)
            }
            // Under Bsp it waits for its clock's mark anyway. There it is queued first where filters need receive memory for it:
            // what does not fit is refused before anything is pushed.
            (true, false) => {
                let pull = self.pull_span(range, into, true, check)?;
                let push = self.push_dense(RequestKind::Push, range, source, (None, false), |_| Ok(()))?;
                self.both(push, pull)
            }
            // Behind the push on every link.
            (true, true) | (false, _) => {
                let push = self.push_dense(RequestKind::Push, range, source, (None, true), check)?;
                self.both(push, self.pull_span(range, into, true, |_| Ok(()))?)
            }
        }
    }

    /// Each pull right behind its push.
    fn push_pull_in_turns(
        &self,
        range: KeyRange,
        source: Source<'_>,
        into: Span,
        check: impl FnOnce(&mut Engine) -> Result<()>,
    ) -> Result<Ticket> {
        let limit = self.dense_limit(self.chains.push).min(self.dense_limit(self.chains.pull));
        let mut turns = Turns::new(plan::dense(&self.spec, &self.map, range, limit)?);
        let asked = Cell::new(None);
        let pushed = self.queue(
            false,
            |engine| {
                check(engine)?;
                let pull = engine.new_pull(&self.target(), true, Some(into))?;
                asked.set(Some(pull));
                engine.new_push(RequestKind::Push, &self.target(), source, None)
            },
            |engine, push| match asked.get() {
                Some(pull) => engine.push_pull_dense((push, pull, self.id), &mut turns, (source, into)),
                None => Ok(true), // there is no push without it
            },
        );
        match (pushed, asked.get()) {
            (Ok(push), Some(pull)) => self.both(push, Ticket::new(self.inner.clone(), pull)),
            (Ok(push), None) => Ok(push),
            (Err(error), pull) => {
                pull.into_iter().for_each(|pull| self.inner.driver.engine().cancel(pull));
                Err(error)
            }
        }
    }

    /// The ticket of a push and a pull of the same keys: the pull's, which also tells what was rejected of the push.
    fn both(&self, push: Ticket, pull: Ticket) -> Result<Ticket> {
        if self.spec.non_finite == NonFinite::Reject
            && let (Some(push), Some(pull)) = (push.id(), pull.id())
        {
            self.inner.driver.engine().join_halves(push, pull);
        }
        Ok(pull)
    }

    fn push_slice(
        &self,
        kind: RequestKind,
        range: KeyRange,
        values: &[f32],
        (base, more_follows): (Option<Version>, bool),
    ) -> Result<Ticket> {
        self.same_length("values", range.len() as usize, values.len())?;
        if base.is_some()
            && plan::dense_is_cut(&self.spec, &self.map, range, self.dense_limit(self.chains.push))?
        {
            return Err(self.cut_bucket("push_range_from"));
        }
        self.push_dense(kind, range, Source::Slice(values), (base, more_follows), |_| Ok(()))
    }

    fn push_dense(
        &self,
        kind: RequestKind,
        range: KeyRange,
        source: Source<'_>,
        (base, more_follows): (Option<Version>, bool),
        check: impl FnOnce(&mut Engine) -> Result<()>,
    ) -> Result<Ticket> {
        let mut frames = self.frames(range, self.chains.push)?.peekable();
        self.queue(
            more_follows,
            |engine| {
                check(engine)?;
                engine.new_push(kind, &self.target(), source, base)
            },
            |engine, ticket| engine.push_dense((ticket, self.id), &mut frames, source),
        )
    }

    fn push_rows(
        &self,
        kind: RequestKind,
        keys: SortedKeys<'_>,
        values: &[f32],
        (base, more_follows): (Option<Version>, bool),
    ) -> Result<Ticket> {
        self.same_length("values", keys.len() * self.spec.width() as usize, values.len())?;
        let (mut plan, mut next) = (None, 0);
        self.queue(
            more_follows,
            |engine| engine.new_push(kind, &self.target(), Source::Slice(values), base),
            |engine, ticket| {
                let planned = self.plan(&mut plan, engine, ticket, keys)?;
                if base.is_some() && planned.is_cut() {
                    return Err(self.cut_bucket("push_from"));
                }
                let all =
                    engine.push_sparse((ticket, self.id), planned, (keys.as_slice(), values), &mut next);
                engine.put_back(ticket, &mut plan, all);
                Ok(all)
            },
        )
    }

    fn ask(&self, keys: SortedKeys<'_>, after_push: bool, more_follows: bool) -> Result<Ticket> {
        let (mut plan, mut next) = (None, 0);
        self.queue(
            more_follows,
            |engine| engine.new_pull(&self.target(), after_push, None),
            |engine, ticket| {
                let planned = self.plan(&mut plan, engine, ticket, keys)?;
                let all = engine.pull_sparse((ticket, self.id), planned, keys.as_slice(), &mut next)?;
                engine.put_back(ticket, &mut plan, all);
                Ok(all)
            },
        )
    }

    fn ask_range(&self, range: KeyRange, after_push: bool, more_follows: bool) -> Result<Ticket> {
        let mut frames = self.frames(range, self.chains.pull)?.peekable();
        self.queue(
            more_follows,
            |engine| engine.new_pull(&self.target(), after_push, None),
            |engine, ticket| engine.pull_dense((ticket, self.id), &mut frames),
        )
    }

    fn pull_span(
        &self,
        range: KeyRange,
        into: Span,
        after_push: bool,
        check: impl FnOnce(&mut Engine) -> Result<()>,
    ) -> Result<Ticket> {
        let mut frames = self.frames(range, self.chains.pull)?.peekable();
        self.queue(
            false,
            |engine| {
                check(engine)?;
                engine.new_pull(&self.target(), after_push, Some(into))
            },
            |engine, ticket| engine.pull_into((ticket, self.id), &mut frames, into),
        )
    }

    /// The plan of a sparse call, made at its first use.
    fn plan<'p>(
        &self,
        plan: &'p mut Option<SparsePlan>,
        engine: &mut Engine,
        ticket: usize,
        keys: SortedKeys<'_>,
    ) -> Result<&'p mut SparsePlan> {
        if plan.is_none() {
            let limit = self.inner.payload_bytes;
            *plan = Some(engine.plan_sparse((ticket, self.id), &self.target(), keys, limit)?);
        }
        Ok(plan.get_or_insert_default())
    }

    fn frames(&self, range: KeyRange, chain: Chain) -> Result<impl Iterator<Item = DenseFrame> + '_> {
        plan::dense(&self.spec, &self.map, range, self.dense_limit(chain))
    }

    /// The longest frame of a dense table, in elements.
    fn dense_limit(&self, chain: Chain) -> u32 {
        (self.inner.payload_bytes / chain.value_bytes()) as u32
    }

    fn queue(
        &self,
        more_follows: bool,
        begin: impl FnOnce(&mut Engine) -> Result<usize>,
        more: impl FnMut(&mut Engine, usize) -> Result<bool>,
    ) -> Result<Ticket> {
        let id = self.inner.driver.queue(|| self.inner.deadline(), more_follows, begin, more)?;
        Ok(Ticket::new(self.inner.clone(), id))
    }

    fn target(&self) -> Target<'_> {
        Target {
            spec: &self.spec,
            map: &self.map,
            chains: self.chains,
            after: self.after.as_ref(),
            priority: self.priority,
            readable: self.readable.as_ref(),
        }
    }

    /// A piece in two frames would make its second half stale itself.
    fn cut_bucket(&self, call: &'static str) -> Error {
        let reason = format!(
            "what goes to one bucket of table \"{}\" does not fit a frame: push less at once, or make its buckets smaller",
            self.spec.name
        );
        Error::Misuse { call, reason }
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
