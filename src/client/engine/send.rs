//! What leaves: the frames of pushes and pulls, cut and staged. A call that finds no staging memory, or no room in a queue,
//! says so by `false` and is made again; it goes on where it stopped.

use std::iter::Peekable;

use super::{Asked, Engine, LONG_FRAME, Part, Places, Span, Target, Uses};
use crate::client::frame::{Fill, Outgoing, Owner};
use crate::client::link::Link;
use crate::client::lists::Cut;
use crate::client::plan::{DenseFrame, SparsePlan};
use crate::error::{Error, Result};
use crate::mem::Buf;
use crate::proto::{Chain, KeysAt, ListName, NO_BASE, RequestHeader, RequestKind, packed};
use crate::transport::Payload;
use crate::types::{Key, SortedKeys, TableId, Version};

/// fp32 that are gathered before they are encoded in one go: calls for each row would cost more than short rows.
pub(super) const SIDE_BY_SIDE: usize = 2048;

/// Where the values of a push lie.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// In the caller's memory: they are copied.
    Slice(&'a [f32]),
    /// In a registered buffer: they leave from there, unless filters change them.
    Buffer(Span),
}

/// The frames of a push and of its pull, which are the same.
pub struct Turns<I: Iterator<Item = DenseFrame>> {
    pushes: Peekable<I>,
    pulls: Peekable<I>,
    /// Bytes of those that are queued as pushes and not as pulls.
    ahead: usize,
}

impl<I: Iterator<Item = DenseFrame> + Clone> Turns<I> {
    pub fn new(frames: I) -> Turns<I> {
        Turns { pushes: frames.clone().peekable(), pulls: frames.peekable(), ahead: 0 }
    }
}

impl Engine {
    /// A ticket for a push or a set; `base` is the version that its values were computed from.
    pub fn new_push(
        &mut self,
        kind: RequestKind,
        table: &Target<'_>,
        source: Source<'_>,
        base: Option<Version>,
    ) -> Result<usize> {
        self.may_push()?;
        let read = match source {
            Source::Slice(_) => None,
            Source::Buffer(span) => Some(span),
        };
        let ticket = self.new_ticket(table, (kind, false), Uses { read, written: None });
        self.pending[ticket].base = base;
        Ok(ticket)
    }

    /// A ticket for a pull, which may have to see the pushes of its own clock, into receive memory or a registered buffer.
    pub fn new_pull(&mut self, table: &Target<'_>, after_push: bool, into: Option<Span>) -> Result<usize> {
        self.check()?;
        let kind = RequestKind::Pull;
        Ok(self.new_ticket(table, (kind, after_push), Uses { read: None, written: into }))
    }

    /// Queues the frames of a dense push or set.
    pub fn push_dense(
        &mut self,
        (ticket, table): (usize, TableId),
        frames: &mut Peekable<impl Iterator<Item = DenseFrame>>,
        source: Source<'_>,
    ) -> Result<bool> {
        while let Some(frame) = frames.peek() {
            if !self.push_dense_frame((ticket, table), frame, source)? {
                return Ok(false);
            }
            frames.next();
        }
        Ok(true)
    }

    fn push_dense_frame(
        &mut self,
        (ticket, table): (usize, TableId),
        frame: &DenseFrame,
        source: Source<'_>,
    ) -> Result<bool> {
        let chain = self.pending[ticket].chain;
        let count = frame.count as usize;
        let header = self.write_header(ticket, table).dense(frame, count * chain.value_bytes());
        match source {
            Source::Slice(values) => {
                let values = &values[frame.at..frame.at + count];
                let mut fill = |buf: &mut Buf, at: usize| chain.encode(values, buf, at);
                Ok(self.push_frame(frame.shard, ticket, header, &mut fill))
            }
            Source::Buffer(span) if chain.is_empty() => self.push_pinned(frame, ticket, header, &span),
            Source::Buffer(span) => {
                let mut fill = self.encoder(&span, (frame.at, count), chain)?;
                Ok(self.push_frame(frame.shard, ticket, header, &mut fill))
            }
        }
    }

    /// Queues the frames of a sparse push or set.
    pub fn push_sparse(
        &mut self,
        (ticket, table): (usize, TableId),
        plan: &SparsePlan,
        (keys, values): (&[Key], &[f32]),
        next: &mut usize,
    ) -> bool {
        let (row, chain) = (self.pending[ticket].spec.width() as usize, self.pending[ticket].chain);
        while let Some(frame) = plan.frames.get(*next) {
            let rows_at = plan.key_bytes(*next);
            let length = rows_at + frame.keys.len() * row * chain.value_bytes();
            let mut fill = |buf: &mut Buf, at: usize| {
                fill_keys(plan, *next, keys, buf, at);
                fill_rows(&plan.order[frame.keys.clone()], (values, row), chain, buf, at + rows_at);
            };
            let header = self.write_header(ticket, table);
            let header = header.sparse(plan, *next, length);
            if !self.push_frame(frame.shard, ticket, header, &mut fill) {
                return false;
            }
            *next += 1;
        }
        true
    }

    /// Queues the frames of a dense pull into receive memory; refused when that is out.
    pub fn pull_dense(
        &mut self,
        (ticket, table): (usize, TableId),
        frames: &mut Peekable<impl Iterator<Item = DenseFrame>>,
    ) -> Result<bool> {
        while let Some(frame) = frames.peek() {
            let header = self.header(RequestKind::Pull, table).dense(frame, 0);
            let answer = (frame.count as usize, Places::From(frame.at));
            if !self.ask(frame.shard, ticket, header, &mut |_, _| {}, answer)? {
                return Ok(false);
            }
            frames.next();
        }
        Ok(true)
    }

    /// Queues the frames of a dense pull into a registered buffer. What filters change comes by receive memory, which each
    /// answer gives back; answers that only the end of the caller's clock can bring are not waited for.
    pub fn pull_into(
        &mut self,
        (ticket, table): (usize, TableId),
        frames: &mut Peekable<impl Iterator<Item = DenseFrame>>,
        into: Span,
    ) -> Result<bool> {
        while let Some(frame) = frames.peek() {
            if !self.pull_frame_into((ticket, table), frame, into)? {
                return Ok(false);
            }
            frames.next();
        }
        Ok(true)
    }

    fn pull_frame_into(
        &mut self,
        (ticket, table): (usize, TableId),
        frame: &DenseFrame,
        into: Span,
    ) -> Result<bool> {
        let chain = self.pending[ticket].chain;
        if self.links[frame.shard].queued() >= self.limits.queued_frames || self.reads_are_full() {
            return Ok(false);
        }
        let floats = frame.count as usize;
        let mut header = self.header(RequestKind::Pull, table).dense(frame, 0);
        if chain.is_empty() {
            self.announce(frame.shard, &into)?;
            header.region = into.buffer;
            header.argument = (into.start + frame.at) as u64 * 4;
            return self.queue_pull(frame.shard, ticket, header, &mut |_, _| {}, (floats, None));
        }
        let pending = &self.pending[ticket];
        let more_comes = pending.open > 0 && !(pending.under_bsp() && pending.after_push);
        if more_comes && self.receive.lease(floats * chain.value_bytes()).is_none() {
            return Ok(false);
        }
        let answer = (floats, Places::Buffer(frame.at));
        self.ask(frame.shard, ticket, header, &mut |_, _| {}, answer)
    }

    /// Queues the frames of a dense push and of the pull of what it makes, each pull behind its push as soon as the pushes before it are
    /// worth a system call of their own: so a server thread answers out of L2 what it has just written, while the rest is on its way.
    pub fn push_pull_dense<I: Iterator<Item = DenseFrame>>(
        &mut self,
        (push, pull, table): (usize, usize, TableId),
        Turns { pushes, pulls, ahead }: &mut Turns<I>,
        (source, into): (Source<'_>, Span),
    ) -> Result<bool> {
        loop {
            while let Some(frame) = pushes.peek().filter(|_| *ahead < LONG_FRAME) {
                if !self.push_dense_frame((push, table), frame, source)? {
                    return Ok(false);
                }
                *ahead += frame.count as usize * 4;
                pushes.next();
            }
            if *ahead == 0 {
                return Ok(true);
            }
            while let Some(frame) = pulls.peek().filter(|_| *ahead > 0) {
                if !self.pull_frame_into((pull, table), frame, into)? {
                    return Ok(false);
                }
                *ahead -= frame.count as usize * 4;
                pulls.next();
            }
        }
    }

    /// Queues the frames of a sparse pull; refused when the receive memory is out.
    pub fn pull_sparse(
        &mut self,
        (ticket, table): (usize, TableId),
        plan: &mut SparsePlan,
        keys: &[Key],
        next: &mut usize,
    ) -> Result<bool> {
        let width = self.pending[ticket].spec.width() as usize;
        while let Some(frame) = plan.frames.get(*next) {
            let mut fill = |buf: &mut Buf, at: usize| fill_keys(plan, *next, keys, buf, at);
            let header = self.header(RequestKind::Pull, table).sparse(plan, *next, plan.key_bytes(*next));
            let answer = (frame.keys.len() * width, Places::Rows(frame.keys.clone()));
            if !self.ask(frame.shard, ticket, header, &mut fill, answer)? {
                return Ok(false);
            }
            *next += 1;
        }
        std::mem::swap(&mut self.pending[ticket].lists.order, &mut plan.order);
        Ok(true)
    }

    /// The engine's plan, filled; [`Engine::put_back`] gives it back.
    pub fn plan_sparse(
        &mut self,
        (ticket, id): (usize, TableId),
        table: &Target<'_>,
        keys: SortedKeys<'_>,
        limit: usize,
    ) -> Result<SparsePlan> {
        let mut plan = std::mem::take(&mut self.plan);
        // A pull's answer has to fit a frame, too: rows count as if they travelled with the keys.
        let row_bytes = table.spec.width() as usize * self.pending[ticket].chain.value_bytes();
        // The keys of a push that may be rejected are looked for in its frame. Frames that wait for other tickets may be taken back.
        let listed = !self.pending[ticket].may_be_rejected() && !self.stalls(ticket);
        let cut = Cut { table: id, row_bytes };
        if listed && let Some(list) = self.key_lists.find(cut, keys.as_slice(), &mut plan) {
            self.pending[ticket].list = Some(list);
            return Ok(plan);
        }
        if let Err(error) = plan.fill(table.spec, table.map, keys, row_bytes, limit - ListName::ENCODED) {
            self.plan = plan;
            return Err(error);
        }
        if self.pending[ticket].may_be_rejected() {
            plan.packed.fill(0);
        }
        // Pulls may be taken back, too.
        if listed && !self.pending[ticket].is_pull() {
            let Engine { key_lists, links, pending, .. } = self;
            let in_use =
                |list| pending.iter().any(|(_, p)| p.list == Some(list) && (p.open > 0 || !p.queued));
            let granted = links.iter().map(Link::key_lists);
            let list = key_lists.notice(cut, keys.as_slice(), &mut plan, granted, in_use);
            self.pending[ticket].list = list;
        }
        Ok(plan)
    }

    /// Takes a plan back once `all` of it is queued.
    pub fn put_back(&mut self, ticket: usize, plan: &mut Option<SparsePlan>, all: bool) {
        if let Some(plan) = plan.take_if(|_| all) {
            let pending = self.pending.get_mut(ticket);
            let list = pending.and_then(|pending| {
                pending.queued = true;
                pending.list
            });
            if let Some(list) = list
                && plan.keys_at == KeysAt::Kept
            {
                self.key_lists.told(list);
            }
            self.plan = plan;
        }
    }

    /// Queues one frame of a push from the caller's memory.
    fn push_frame(&mut self, link: usize, ticket: usize, header: RequestHeader, fill: &mut Fill<'_>) -> bool {
        let staged = self.stage(link, ticket, header, fill, (Owner::Push(ticket), false));
        if staged {
            self.count_push(link, ticket, header);
        }
        staged
    }

    /// Queues one frame of a push from a registered buffer.
    fn push_pinned(
        &mut self,
        frame: &DenseFrame,
        ticket: usize,
        header: RequestHeader,
        span: &Span,
    ) -> Result<bool> {
        if self.links[frame.shard].queued() >= self.limits.queued_frames {
            return Ok(false);
        }
        let body = Payload::Pinned(self.slice(span, frame.at, frame.count as usize)?);
        let (owner, priority) = (Owner::Push(ticket), self.pending[ticket].priority);
        let spare = self.spare_frames.pop().unwrap_or_default();
        let mut outgoing = Outgoing::alone(header, Some(body), (owner, priority), spare);
        outgoing.lends = self.pending[ticket].lends();
        self.enqueue(frame.shard, ticket, outgoing, false);
        self.count_push(frame.shard, ticket, header);
        Ok(true)
    }

    fn count_push(&mut self, link: usize, ticket: usize, header: RequestHeader) {
        let pending = &mut self.pending[ticket];
        pending.open += 1;
        self.pushed |= pending.under_bsp();
        if pending.at_close() && !pending.lists.commits_at.contains(&link) {
            pending.lists.commits_at.push(link);
        }
        if header.length as usize >= LONG_FRAME {
            self.kick();
        }
    }

    /// Queues one frame of a pull into receive memory.
    fn ask(
        &mut self,
        link: usize,
        ticket: usize,
        mut header: RequestHeader,
        fill: &mut Fill<'_>,
        (floats, places): (usize, Places),
    ) -> Result<bool> {
        let bytes = floats * self.pending[ticket].chain.value_bytes();
        let Some(buf) = self.receive.lease(bytes) else {
            return Err(Error::Limit {
                resource: "receive memory: it is held by pulls that nobody has waited for".to_owned(),
                limit: self.receive.arena().len() as u64,
                asked: bytes as u64,
            });
        };
        header.argument = buf.offset() as u64;
        let taken_by_caller = !matches!(places, Places::Buffer(_));
        let queued = self.queue_pull(link, ticket, header, fill, (floats, Some(Part { buf, places })))?;
        if queued && taken_by_caller {
            self.pending[ticket].floats += floats;
        }
        Ok(queued)
    }

    /// Queues one frame of a pull, or reads its values, and says where these go; `part` is what receives them unless the server thread writes
    /// them to a registered buffer.
    fn queue_pull(
        &mut self,
        link: usize,
        ticket: usize,
        mut header: RequestHeader,
        fill: &mut Fill<'_>,
        (floats, part): (usize, Option<Part>),
    ) -> Result<bool> {
        let pending = &self.pending[ticket];
        header.after_push = pending.after_push;
        header.chain = pending.chain.check();
        let may_overtake = pending.under_bsp() && pending.after_push;
        let number = self.number();
        let tag = self.asked.insert(Asked { number, ticket, link, floats, part, accepted: None });
        header.tag = tag as u32;
        let readable = self.may_read(link, ticket, header.table)?;
        let owner = Owner::Pull { tag: header.tag, number };
        let staged = match readable {
            Some(readable) => {
                self.read((link, ticket), header, readable);
                true
            }
            None => self.stage(link, ticket, header, fill, (owner, may_overtake)),
        };
        if staged {
            self.pending[ticket].open += 1;
        } else {
            self.asked.remove(tag);
        }
        Ok(staged)
    }

    /// Writes a request's body into staging memory and queues it: with others where it is small. False when there is none.
    pub(super) fn stage(
        &mut self,
        link: usize,
        ticket: usize,
        header: RequestHeader,
        fill: &mut Fill<'_>,
        (owner, may_overtake): (Owner, bool),
    ) -> bool {
        let room = self.limits.batch_bytes.min(self.links[link].payload_bytes());
        let priority = self.pending[ticket].priority;
        let wanted = (owner, priority);
        // The slot of a push that may be rejected comes back with its rejection: nothing else may be in there.
        let joins =
            header.length as usize <= self.limits.small_bytes && !self.pending[ticket].may_be_rejected();
        if !self.stalls(ticket) && joins && header.part_bytes() <= room {
            if self.links[link].join(header, fill, wanted, may_overtake) {
                self.bytes_copied += u64::from(header.length);
                return true;
            }
            if let Some(buf) = self.staging.lease(room) {
                self.bytes_copied += u64::from(header.length);
                let spare = self.spare_frames.pop().unwrap_or_default();
                self.links[link].enqueue(Outgoing::first(header, fill, buf, wanted, spare), may_overtake);
                return true;
            }
        }
        let mut body = None;
        if header.length > 0 {
            let Some(mut buf) = self.staging.lease(header.length as usize) else { return false };
            fill(&mut buf, 0);
            self.bytes_copied += u64::from(header.length);
            body = Some(Payload::Owned(buf));
        }
        let spare = self.spare_frames.pop().unwrap_or_default();
        let mut frame = Outgoing::alone(header, body, wanted, spare);
        frame.lends = self.pending[ticket].lends();
        self.enqueue(link, ticket, frame, may_overtake);
        true
    }

    /// Queues a frame, or keeps it while its ticket may not begin.
    fn enqueue(&mut self, link: usize, ticket: usize, frame: Outgoing, may_overtake: bool) {
        if self.stalls(ticket) {
            self.stall(ticket, link, frame, may_overtake);
        } else {
            self.links[link].enqueue(frame, may_overtake);
        }
    }

    /// A push or pull that could not be queued whole: takes back what was not sent of a pull, and what waits for others to
    /// be done, and forgets the rest.
    pub fn cancel(&mut self, ticket: usize) {
        for (_, frame, _) in std::mem::take(&mut self.pending[ticket].stalled) {
            if let Some(Owner::Pull { tag, .. }) = frame.owners().next() {
                self.asked.remove(tag as usize);
            }
            self.pending[ticket].open -= 1;
        }
        self.stalled.retain(|&t| t != ticket);
        let asked: Vec<(usize, u64)> =
            self.asked.iter().filter(|(_, a)| a.ticket == ticket).map(|(tag, a)| (tag, a.number)).collect();
        for (tag, number) in asked {
            if self.links[self.asked[tag].link].unqueue(Owner::Pull { tag: tag as u32, number }) {
                self.asked.remove(tag);
                self.pending[ticket].open -= 1;
            }
        }
        self.forget(ticket);
    }

    /// A push's or set's: a rejection finds its ticket by the tag.
    fn write_header(&self, ticket: usize, table: TableId) -> RequestHeader {
        let pending = &self.pending[ticket];
        let mut header = self.header(pending.kind, table);
        header.chain = pending.chain.check();
        header.argument = pending.base.unwrap_or(NO_BASE);
        header.tag = ticket as u32;
        header
    }

    /// Refuses a wait for staging memory, or room in a queue, that only the end of the caller's own clock can give.
    pub fn may_wait_for_room(&self) -> Result<()> {
        let under_way = !self.accepted.is_empty() || !self.reads.is_empty();
        if under_way || !self.stalled.is_empty() || !self.links.iter().all(Link::rests) {
            return Ok(());
        }
        let limit = self.staging.arena().len() as u64;
        let resource =
            "staging memory or queues: held by pulls behind the end of this clock; call clock() first"
                .to_owned();
        Err(Error::Limit { resource, limit, asked: limit + 1 })
    }

    /// Pushes and pulls that wait for staging memory in mid-queue: one more, or one less.
    pub fn half_queued(&mut self, more: bool) {
        if more {
            self.half_queued += 1;
        } else {
            self.half_queued -= 1;
        }
    }

    pub(super) fn header(&self, kind: RequestKind, table: TableId) -> RequestHeader {
        RequestHeader { kind, table, ..RequestHeader::new(self.clock, self.epoch) }
    }
}

/// What stands before the rows in the body of a plan's frame: name, directory and keys, as far as they travel.
fn fill_keys(plan: &SparsePlan, frame: usize, keys: &[Key], buf: &mut Buf, mut at: usize) {
    if let Some(name) = plan.names.get(frame) {
        buf.copy_in(at, &name.encode());
        at += ListName::ENCODED;
    }
    if plan.keys_at == KeysAt::Named {
        return;
    }
    let (packed, frame) = (plan.packed[frame] > 0, &plan.frames[frame]);
    let directory: &[u8] = bytemuck::cast_slice(&plan.directory[frame.directory.clone()]);
    buf.copy_in(at, directory);
    let mut some = [0; SIDE_BY_SIDE / 2];
    let mut at = at + directory.len();
    if packed {
        let widths = &plan.widths[frame.directory.clone()];
        buf.copy_in(at, widths);
        // The buffer has been used before.
        buf.copy_in(at + widths.len(), &[0; 8][..packed::width_words(widths.len()) * 8 - widths.len()]);
        at += packed::width_words(widths.len()) * 8;
        let mut numbers = &plan.order[frame.keys.clone()];
        for (entry, &width) in plan.directory[frame.directory.clone()].iter().zip(widths) {
            let (here, behind) = numbers.split_at(entry.keys as usize);
            numbers = behind;
            packed::encode(here.iter().map(|&number| keys[number as usize]), width, |word| {
                buf.copy_in(at, &word.to_le_bytes());
                at += 8;
            });
        }
        return;
    }
    for numbers in plan.order[frame.keys.clone()].chunks(some.len()) {
        let some = &mut some[..numbers.len()];
        some.iter_mut().zip(numbers).for_each(|(key, &number)| *key = keys[number as usize]);
        buf.copy_in(at, bytemuck::cast_slice(some));
        at += some.len() * 8;
    }
}

/// The rows, of `width` fp32, of the keys with these numbers, as they travel.
fn fill_rows(numbers: &[u32], (values, width): (&[f32], usize), chain: Chain, buf: &mut Buf, mut at: usize) {
    if width > SIDE_BY_SIDE / 8 {
        for &number in numbers {
            chain.encode(&values[number as usize * width..][..width], buf, at);
            at += width * chain.value_bytes();
        }
        return;
    }
    let mut some = [0.0; SIDE_BY_SIDE];
    for numbers in numbers.chunks(SIDE_BY_SIDE / width) {
        let some = &mut some[..numbers.len() * width];
        if width == 1 {
            some.iter_mut().zip(numbers).for_each(|(value, &number)| *value = values[number as usize]);
        } else {
            for (row, &number) in some.chunks_exact_mut(width).zip(numbers) {
                row.copy_from_slice(&values[number as usize * width..][..width]);
            }
        }
        chain.encode(&*some, buf, at);
        at += some.len() * chain.value_bytes();
    }
}

impl RequestHeader {
    fn dense(mut self, frame: &DenseFrame, length: usize) -> RequestHeader {
        self.bucket = frame.bucket;
        self.first = frame.first;
        self.count = frame.count;
        self.length = length as u32;
        self
    }

    fn sparse(mut self, plan: &SparsePlan, number: usize, length: usize) -> RequestHeader {
        let (frame, packed) = (&plan.frames[number], plan.packed[number]);
        if packed > 0 && plan.keys_at != KeysAt::Named {
            (self.packed, self.bucket) = (true, packed as u32);
        }
        self.keys = plan.keys_at;
        self.first = if plan.keys_at == KeysAt::Named { 0 } else { frame.directory.len() as u32 };
        self.count = frame.keys.len() as u32;
        self.length = length as u32;
        self
    }
}
