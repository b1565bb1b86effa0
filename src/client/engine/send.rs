//! What leaves: the frames of pushes and pulls, cut and staged. A call that finds no staging memory says so and is made
//! again, with `next` where it stopped.

use std::sync::Arc;

use super::{After, Asked, Engine, LONG_FRAME, Part, Places};
use crate::client::frame::{BATCH, Outgoing, Owner, SMALL, copy_all};
use crate::client::plan::{DenseFrame, SparsePlan};
use crate::error::{Error, Result};
use crate::proto::{RequestHeader, RequestKind};
use crate::types::{Key, TableId, TableSpec};

impl Engine {
    /// A ticket for a push that begins after `after`.
    pub fn new_push(&mut self, spec: &TableSpec, after: Option<&Arc<After>>) -> Result<usize> {
        self.may_push()?;
        Ok(self.new_ticket(spec, false, after))
    }

    /// A ticket for a pull, which may have to see the pushes of its own clock, that begins after `after`.
    pub fn new_pull(
        &mut self,
        spec: &TableSpec,
        after_push: bool,
        after: Option<&Arc<After>>,
    ) -> Result<usize> {
        self.check()?;
        Ok(self.new_ticket(spec, after_push, after))
    }

    /// Queues the frames of a dense push. False while staging memory is short.
    pub fn push_dense(
        &mut self,
        (ticket, table): (usize, TableId),
        frames: &[DenseFrame],
        values: &[f32],
        next: &mut usize,
    ) -> Result<bool> {
        while let Some(frame) = frames.get(*next) {
            let bytes: &[u8] = bytemuck::cast_slice(&values[frame.at..frame.at + frame.count as usize]);
            let header = self.header(RequestKind::Push, table).dense(frame, bytes.len());
            if !self.push_frame(frame.shard, ticket, header, &[bytes]) {
                return Ok(false);
            }
            *next += 1;
        }
        Ok(true)
    }

    /// Queues the frames of a sparse push. False while staging memory is short.
    pub fn push_sparse(
        &mut self,
        (ticket, table): (usize, TableId),
        plan: &SparsePlan,
        (keys, values): (&[Key], &[f32]),
        next: &mut usize,
    ) -> Result<bool> {
        let dim = self.pending[ticket].width;
        let (mut sent, mut rows): (Vec<Key>, Vec<f32>) = (Vec::new(), Vec::new());
        while let Some(frame) = plan.frames.get(*next) {
            sent.clear();
            rows.clear();
            for &number in &plan.order[frame.keys.clone()] {
                let number = number as usize;
                sent.push(keys[number]);
                rows.extend_from_slice(&values[number * dim..(number + 1) * dim]);
            }
            let directory = &plan.directory[frame.directory.clone()];
            let body: [&[u8]; 3] =
                [bytemuck::cast_slice(directory), bytemuck::cast_slice(&sent), bytemuck::cast_slice(&rows)];
            let header = self.header(RequestKind::Push, table).sparse(directory.len(), sent.len(), &body);
            if !self.push_frame(frame.shard, ticket, header, &body) {
                return Ok(false);
            }
            *next += 1;
        }
        Ok(true)
    }

    /// Queues the frames of a dense pull; refused when the receive memory is out.
    pub fn pull_dense(
        &mut self,
        (ticket, table): (usize, TableId),
        frames: &[DenseFrame],
        next: &mut usize,
    ) -> Result<bool> {
        while let Some(frame) = frames.get(*next) {
            let floats = frame.count as usize;
            let header = self.header(RequestKind::Pull, table).dense(frame, 0);
            if !self.ask(frame.shard, ticket, header, &[], (floats, Places::From(frame.at)))? {
                return Ok(false);
            }
            *next += 1;
        }
        Ok(true)
    }

    /// Queues the frames of a sparse pull; refused when the receive memory is out, false while staging memory is short.
    pub fn pull_sparse(
        &mut self,
        (ticket, table): (usize, TableId),
        plan: &SparsePlan,
        keys: &[Key],
        next: &mut usize,
    ) -> Result<bool> {
        let mut sent: Vec<Key> = Vec::new();
        while let Some(frame) = plan.frames.get(*next) {
            sent.clear();
            sent.extend(plan.order[frame.keys.clone()].iter().map(|&n| keys[n as usize]));
            let directory = &plan.directory[frame.directory.clone()];
            let body: [&[u8]; 2] = [bytemuck::cast_slice(directory), bytemuck::cast_slice(&sent)];
            let header = self.header(RequestKind::Pull, table).sparse(directory.len(), sent.len(), &body);
            let floats = sent.len() * self.pending[ticket].width;
            let places = Places::Rows(frame.keys.clone());
            if !self.ask(frame.shard, ticket, header, &body, (floats, places))? {
                return Ok(false);
            }
            *next += 1;
        }
        Ok(true)
    }

    /// The order in which a sparse pull's keys travel, once it is queued.
    pub fn set_order(&mut self, ticket: usize, order: Vec<u32>) {
        self.pending[ticket].order = order;
    }

    /// Queues one frame of a push. False when there is no staging memory for it.
    fn push_frame(&mut self, link: usize, ticket: usize, header: RequestHeader, body: &[&[u8]]) -> bool {
        if !self.stage(link, ticket, header, body, (Owner::Push(ticket), false)) {
            return false;
        }
        let pending = &mut self.pending[ticket];
        pending.open += 1;
        self.pushed |= pending.under_bsp;
        if pending.under_bsp && !pending.commits_at.contains(&link) {
            pending.commits_at.push(link);
        }
        if header.length as usize >= LONG_FRAME {
            self.kick();
        }
        true
    }

    /// Queues one frame of a pull. False when there is no staging memory for it.
    fn ask(
        &mut self,
        link: usize,
        ticket: usize,
        mut header: RequestHeader,
        body: &[&[u8]],
        (floats, places): (usize, Places),
    ) -> Result<bool> {
        let Some(buf) = self.receive.lease(floats * 4) else {
            return Err(Error::Limit {
                resource: "receive memory: it is held by pulls that nobody has waited for".to_owned(),
                limit: self.receive.arena().len() as u64,
                asked: (floats * 4) as u64,
            });
        };
        let pending = &self.pending[ticket];
        header.after_push = pending.after_push;
        header.argument = buf.offset() as u64;
        let may_overtake = pending.under_bsp && pending.after_push;
        let (number, part) = (self.number(), Some(Part { buf, places }));
        let tag = self.asked.insert(Asked { number, ticket, link, floats, part, accepted: None });
        header.tag = tag as u32;
        let owner = Owner::Pull { tag: header.tag, number };
        if !self.stage(link, ticket, header, body, (owner, may_overtake)) {
            self.asked.remove(tag);
            return Ok(false);
        }
        let pending = &mut self.pending[ticket];
        pending.open += 1;
        pending.floats += floats;
        Ok(true)
    }

    /// Copies a request's body into staging memory and queues it: with others where it is small. False when there is none.
    fn stage(
        &mut self,
        link: usize,
        ticket: usize,
        header: RequestHeader,
        body: &[&[u8]],
        (owner, may_overtake): (Owner, bool),
    ) -> bool {
        let stalls = self.stalls(ticket);
        let room = BATCH.min(self.links[link].payload_bytes());
        if !stalls && header.length as usize <= SMALL && header.part_bytes() <= room {
            if self.links[link].join(header, body, owner, may_overtake) {
                return true;
            }
            if let Some(buf) = self.staging.lease(room) {
                let spare = self.spares.pop().unwrap_or_default();
                let frame = Outgoing::first(header, body, buf, owner, spare);
                self.links[link].enqueue(frame, may_overtake);
                return true;
            }
        }
        let mut buf = None;
        if header.length > 0 {
            let Some(mut leased) = self.staging.lease(header.length as usize) else { return false };
            copy_all(&mut leased, 0, body);
            buf = Some(leased);
        }
        let frame = Outgoing::alone(header, buf, owner);
        if stalls {
            self.stall(ticket, link, frame, may_overtake);
        } else {
            self.links[link].enqueue(frame, may_overtake);
        }
        true
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

impl RequestHeader {
    fn dense(mut self, frame: &DenseFrame, length: usize) -> RequestHeader {
        self.bucket = frame.bucket;
        self.first = frame.first;
        self.count = frame.count;
        self.length = length as u32;
        self
    }

    fn sparse(mut self, entries: usize, keys: usize, body: &[&[u8]]) -> RequestHeader {
        self.first = entries as u32;
        self.count = keys as u32;
        self.length = body.iter().map(|part| part.len()).sum::<usize>() as u32;
        self
    }
}
