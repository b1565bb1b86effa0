//! What leaves: the frames of pushes and pulls, cut and staged.

use super::{Asked, Engine, LONG_FRAME, Part, Places, Span, Target, Uses};
use crate::client::link::Outgoing;
use crate::client::plan::{self, DenseFrame, SparseFrame, SparsePlan};
use crate::error::{Error, Result};
use crate::mem::Buf;
use crate::proto::{Chain, NO_BASE, RequestHeader, RequestKind};
use crate::time::Deadline;
use crate::transport::Payload;
use crate::types::{KeyRange, SortedKeys, TableId, TableSpec, Version};

/// Frames from and to registered buffers that may wait for one server thread before a call blocks.
const QUEUE_LIMIT: usize = 4096;

/// Where the values of a dense push lie.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// In the caller's memory: they are copied.
    Slice(&'a [f32]),
    /// In a registered buffer: they leave from there, unless filters change them.
    Buffer(Span),
}

impl Engine {
    /// Queues the frames of a dense push or set. Blocks only while staging memory, or room in the queues, is short.
    pub fn push_dense(
        &mut self,
        kind: RequestKind,
        table: &Target<'_>,
        range: KeyRange,
        source: Source<'_>,
        base: Option<Version>,
        deadline: Deadline,
    ) -> Result<usize> {
        self.may_push()?;
        let chain = table.chains.push;
        let limit = self.dense_limit(chain);
        if base.is_some() && plan::dense_is_cut(table.spec, table.map, range, limit)? {
            return Err(cut_bucket("push_range_from", table.spec));
        }
        let frames = plan::dense(table.spec, table.map, range, limit)?;
        let read = match source {
            Source::Slice(_) => None,
            Source::Buffer(span) => Some(span),
        };
        let ticket = self.new_ticket(table, false, Uses { read, written: None });
        self.pending[ticket].base = base;
        for frame in frames {
            let count = frame.count as usize;
            let bytes = count * chain.value_bytes();
            let body = match source {
                Source::Slice(values) => {
                    let mut body = self.lease_staging(bytes, deadline, ticket)?;
                    self.encode(chain, &values[frame.at..frame.at + count], &mut body, 0);
                    Payload::Owned(body)
                }
                Source::Buffer(span) if chain.is_empty() => {
                    self.await_room(frame.shard, deadline, ticket)?;
                    Payload::Pinned(self.slice(&span, frame.at, count)?)
                }
                Source::Buffer(span) => {
                    let mut body = self.lease_staging(bytes, deadline, ticket)?;
                    self.encode_span(&span, (frame.at, count), chain, &mut body)?;
                    Payload::Owned(body)
                }
            };
            let header = self.write_header(kind, ticket, table.id).dense(&frame, bytes);
            self.enqueue(frame.shard, header, Some(body), Some(ticket));
            if bytes >= LONG_FRAME {
                self.kick();
            }
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a sparse push or set. Blocks only while staging memory is short.
    pub fn push_sparse(
        &mut self,
        kind: RequestKind,
        table: &Target<'_>,
        keys: SortedKeys<'_>,
        values: &[f32],
        base: Option<Version>,
        deadline: Deadline,
    ) -> Result<usize> {
        self.may_push()?;
        let chain = table.chains.push;
        let plan = self.plan_sparse(table, keys, chain)?;
        if base.is_some() && plan.is_cut() {
            self.plan = plan;
            return Err(cut_bucket("push_from", table.spec));
        }
        let ticket = self.new_ticket(table, false, Uses::default());
        self.pending[ticket].base = base;
        let row = table.spec.width() as usize;
        let sent = plan.frames.iter().try_for_each(|frame| {
            let rows_at = frame.directory.len() * 8 + frame.keys.len() * 8;
            let length = rows_at + frame.keys.len() * row * chain.value_bytes();
            let mut body = self.stage_keys(&plan, frame, keys, length, deadline, ticket)?;
            for (place, &number) in plan.order[frame.keys.clone()].iter().enumerate() {
                let values = &values[number as usize * row..(number as usize + 1) * row];
                self.encode(chain, values, &mut body, rows_at + place * row * chain.value_bytes());
            }
            let header = self.write_header(kind, ticket, table.id);
            let header = header.sparse(frame.directory.len(), frame.keys.len(), length);
            self.enqueue(frame.shard, header, Some(Payload::Owned(body)), Some(ticket));
            Ok(())
        });
        self.plan = plan;
        sent?;
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a dense pull into receive memory; refused when that is out.
    pub fn pull_dense(&mut self, table: &Target<'_>, range: KeyRange, after_push: bool) -> Result<usize> {
        self.check()?;
        let frames = plan::dense(table.spec, table.map, range, self.dense_limit(table.chains.pull))?;
        let ticket = self.new_ticket(table, true, Uses::default());
        self.pending[ticket].after_push = after_push;
        for frame in frames {
            let floats = frame.count as usize;
            let header = self.header(RequestKind::Pull, table.id).dense(&frame, 0);
            self.ask(frame.shard, ticket, header, None, (floats, Places::From(frame.at)))?;
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a dense pull into a registered buffer. Blocks only while room in the queues is short, or, with
    /// filters, receive memory: under Bsp with `after_push`, where only the caller's next call ends that, it is refused.
    pub fn pull_into(
        &mut self,
        table: &Target<'_>,
        range: KeyRange,
        into: Span,
        after_push: bool,
        deadline: Deadline,
    ) -> Result<usize> {
        self.check()?;
        let chain = table.chains.pull;
        let frames = plan::dense(table.spec, table.map, range, self.dense_limit(chain))?;
        let ticket = self.new_ticket(table, true, Uses { read: None, written: Some(into) });
        self.pending[ticket].after_push = after_push;
        for frame in frames {
            self.await_room(frame.shard, deadline, ticket)?;
            let mut header = self.header(RequestKind::Pull, table.id).dense(&frame, 0);
            let floats = frame.count as usize;
            if !chain.is_empty() {
                self.await_receive(floats * chain.value_bytes(), deadline, ticket)?;
                self.ask(frame.shard, ticket, header, None, (floats, Places::Buffer(frame.at)))?;
                continue;
            }
            if let Err(error) = self.announce(frame.shard, &into) {
                self.forget(ticket);
                return Err(error);
            }
            header.region = into.buffer;
            header.argument = (into.start + frame.at) as u64 * 4;
            self.queue_pull(frame.shard, ticket, header, None, (floats, None));
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a sparse pull; refused when the receive memory is out.
    pub fn pull_sparse(
        &mut self,
        table: &Target<'_>,
        keys: SortedKeys<'_>,
        after_push: bool,
        deadline: Deadline,
    ) -> Result<usize> {
        self.check()?;
        let mut plan = self.plan_sparse(table, keys, table.chains.pull)?;
        let ticket = self.new_ticket(table, true, Uses::default());
        self.pending[ticket].after_push = after_push;
        let sent = plan.frames.iter().try_for_each(|frame| {
            let length = frame.directory.len() * 8 + frame.keys.len() * 8;
            let body = self.stage_keys(&plan, frame, keys, length, deadline, ticket)?;
            let header = self.header(RequestKind::Pull, table.id);
            let header = header.sparse(frame.directory.len(), frame.keys.len(), length);
            let floats = frame.keys.len() * table.spec.width() as usize;
            self.ask(frame.shard, ticket, header, Some(body), (floats, Places::Rows(frame.keys.clone())))
        });
        if sent.is_ok() {
            std::mem::swap(&mut self.pending[ticket].lists.order, &mut plan.order);
        }
        self.plan = plan;
        sent?;
        self.kick();
        Ok(ticket)
    }

    /// The engine's plan, filled; whoever takes it puts it back.
    fn plan_sparse(&mut self, table: &Target<'_>, keys: SortedKeys<'_>, chain: Chain) -> Result<SparsePlan> {
        let mut plan = std::mem::take(&mut self.plan);
        // A pull's answer has to fit a frame, too: rows count as if they travelled with the keys.
        let row = table.spec.width() as usize * chain.value_bytes();
        let filled = plan.fill(table.spec, table.map, keys, row, self.payload_bytes());
        match filled {
            Ok(()) => Ok(plan),
            Err(error) => {
                self.plan = plan;
                Err(error)
            }
        }
    }

    /// The longest frame of a dense table, in elements.
    fn dense_limit(&self, chain: Chain) -> u32 {
        (self.payload_bytes() / chain.value_bytes()) as u32
    }

    /// Queues one frame of a push, or a mark.
    pub(super) fn enqueue(
        &mut self,
        link: usize,
        header: RequestHeader,
        body: Option<Payload>,
        ticket: Option<usize>,
    ) {
        if let Some(pending) = ticket.and_then(|t| self.pending.get_mut(t)) {
            pending.open += 1;
            let commits_at_link = pending.at_close() && !pending.lists.commits_at.contains(&link);
            self.pushed |= pending.under_bsp();
            if commits_at_link {
                pending.lists.commits_at.push(link);
            }
        }
        self.links[link].enqueue(Outgoing { header, body, ticket }, false);
    }

    /// Queues one frame of a pull into receive memory.
    pub(super) fn ask(
        &mut self,
        link: usize,
        ticket: usize,
        mut header: RequestHeader,
        body: Option<Buf>,
        (floats, places): (usize, Places),
    ) -> Result<()> {
        let bytes = floats * self.pending[ticket].chain.value_bytes();
        let Some(buf) = self.receive.lease(bytes) else {
            self.cancel(ticket);
            return Err(Error::Limit {
                resource: "receive memory: it is held by pulls that nobody has waited for".to_owned(),
                limit: self.receive.arena().len() as u64,
                asked: bytes as u64,
            });
        };
        if !matches!(places, Places::Buffer(_)) {
            self.pending[ticket].floats += floats;
        }
        header.argument = buf.offset() as u64;
        let part = Some(Part { buf, places });
        self.queue_pull(link, ticket, header, body.map(Payload::Owned), (floats, part));
        Ok(())
    }

    /// Queues one frame of a pull, which says where the values go; `part` is what receives them unless the server thread writes
    /// them to a registered buffer.
    fn queue_pull(
        &mut self,
        link: usize,
        ticket: usize,
        mut header: RequestHeader,
        body: Option<Payload>,
        (floats, part): (usize, Option<Part>),
    ) {
        let pending = &mut self.pending[ticket];
        pending.open += 1;
        header.after_push = pending.after_push;
        header.chain = pending.chain.check();
        let may_overtake = pending.under_bsp() && pending.after_push;
        header.tag = self.asked.insert(Asked { ticket, link, floats, part, accepted: None }) as u32;
        self.links[link].enqueue(Outgoing { header, body, ticket: None }, may_overtake);
    }

    /// A pull that could not be queued whole: takes back what was not sent, and forgets the rest.
    pub fn cancel(&mut self, ticket: usize) {
        let tags: Vec<usize> =
            self.asked.iter().filter(|(_, a)| a.ticket == ticket).map(|(tag, _)| tag).collect();
        for tag in tags {
            if self.links[self.asked[tag].link].unqueue(tag as u32) {
                self.asked.remove(tag);
                self.pending[ticket].open -= 1;
            }
        }
        self.forget(ticket);
    }

    /// A push's: a rejection finds its ticket by the tag.
    pub(super) fn write_header(&self, kind: RequestKind, ticket: usize, table: TableId) -> RequestHeader {
        let mut header = self.header(kind, table);
        let pending = &self.pending[ticket];
        header.chain = pending.chain.check();
        header.argument = pending.base.unwrap_or(NO_BASE);
        header.tag = ticket as u32;
        header
    }

    pub(super) fn header(&self, kind: RequestKind, table: TableId) -> RequestHeader {
        RequestHeader {
            kind,
            after_push: false,
            sequence: 0,
            clock: self.clock,
            region: 0,
            chain: 0,
            argument: 0,
            table,
            bucket: 0,
            epoch: self.epoch,
            first: 0,
            count: 0,
            length: 0,
            tag: 0,
        }
    }

    /// Staging memory of `length` bytes that begins with a frame's directory and keys.
    fn stage_keys(
        &mut self,
        plan: &SparsePlan,
        frame: &SparseFrame,
        keys: SortedKeys<'_>,
        length: usize,
        deadline: Deadline,
        ticket: usize,
    ) -> Result<Buf> {
        let mut body = self.lease_staging(length, deadline, ticket)?;
        let directory: &[u8] = bytemuck::cast_slice(&plan.directory[frame.directory.clone()]);
        self.copy_in(&mut body, 0, directory);
        for (place, &number) in plan.order[frame.keys.clone()].iter().enumerate() {
            let key = keys.as_slice()[number as usize].to_ne_bytes();
            self.copy_in(&mut body, directory.len() + place * 8, &key);
        }
        Ok(body)
    }

    fn copy_in(&mut self, body: &mut Buf, at: usize, bytes: &[u8]) {
        body.copy_in(at, bytes);
        self.bytes_copied += bytes.len() as u64;
    }

    fn encode(&mut self, chain: Chain, values: &[f32], body: &mut Buf, at: usize) {
        chain.encode(values, body, at);
        self.bytes_copied += (values.len() * chain.value_bytes()) as u64;
    }

    /// Waits for receive memory for one more answer to a pull that gives it back as each answer comes; not for answers that only
    /// the end of the caller's clock can bring.
    fn await_receive(&mut self, bytes: usize, deadline: Deadline, ticket: usize) -> Result<()> {
        let pending = &self.pending[ticket];
        if pending.under_bsp() && pending.after_push {
            return Ok(());
        }
        let room = self.drive(deadline, "receive memory for a pull", |engine| {
            let none_comes = engine.pending[ticket].open == 0;
            (none_comes || engine.receive.lease(bytes).is_some()).then_some(())
        });
        if room.is_err() {
            self.forget(ticket);
        }
        room
    }

    /// Waits until one more frame from or to a registered buffer may be queued.
    fn await_room(&mut self, link: usize, deadline: Deadline, ticket: usize) -> Result<()> {
        if self.links[link].queued() < QUEUE_LIMIT {
            return Ok(());
        }
        let room = self.drive(deadline, "room to queue a frame", |engine| {
            (engine.links[link].queued() < QUEUE_LIMIT).then_some(())
        });
        if room.is_err() {
            self.forget(ticket);
        }
        room
    }

    pub(super) fn lease_staging(&mut self, bytes: usize, deadline: Deadline, ticket: usize) -> Result<Buf> {
        if let Some(buf) = self.staging.lease(bytes) {
            return Ok(buf);
        }
        self.kick();
        let leased = self.drive(deadline, "staging memory for a push", |engine| engine.staging.lease(bytes));
        if leased.is_err() {
            self.forget(ticket);
        }
        leased
    }
}

/// A piece in two frames would make its second half stale itself.
fn cut_bucket(call: &'static str, spec: &TableSpec) -> Error {
    let reason = format!(
        "what goes to one bucket of table \"{}\" does not fit a frame: push less at once, or make its buckets smaller",
        spec.name
    );
    Error::Misuse { call, reason }
}

impl RequestHeader {
    fn dense(mut self, frame: &DenseFrame, length: usize) -> RequestHeader {
        self.bucket = frame.bucket;
        self.first = frame.first;
        self.count = frame.count;
        self.length = length as u32;
        self
    }

    fn sparse(mut self, entries: usize, keys: usize, length: usize) -> RequestHeader {
        self.first = entries as u32;
        self.count = keys as u32;
        self.length = length as u32;
        self
    }
}
