//! What leaves: the frames of pushes and pulls, cut and staged.

use super::{Asked, Engine, LONG_FRAME, Part, Places};
use crate::client::link::Outgoing;
use crate::client::plan::{DenseFrame, SparsePlan};
use crate::error::{Error, Result};
use crate::mem::Buf;
use crate::proto::{Chain, RequestHeader, RequestKind};
use crate::time::Deadline;
use crate::types::{DirectoryEntry, Key, TableId, TableSpec};

impl Engine {
    /// Queues the frames of a dense push. Blocks only while staging memory is short.
    pub fn push_dense(
        &mut self,
        (table, spec, chain): (TableId, &TableSpec, Chain),
        frames: &[DenseFrame],
        values: &[f32],
        deadline: Deadline,
    ) -> Result<usize> {
        self.may_push()?;
        let ticket = self.new_ticket(spec, chain, false);
        for frame in frames {
            let values = &values[frame.at..frame.at + frame.count as usize];
            let bytes = values.len() * chain.value_bytes();
            let mut body = self.lease_staging(bytes, deadline, ticket)?;
            chain.encode(values, &mut body, 0);
            let header = self.header(RequestKind::Push, table, chain).dense(frame, bytes);
            self.enqueue(frame.shard, header, Some(body), Some(ticket));
            if bytes >= LONG_FRAME {
                self.kick();
            }
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a sparse push. Blocks only while staging memory is short.
    pub fn push_sparse(
        &mut self,
        (table, spec, chain): (TableId, &TableSpec, Chain),
        plan: &SparsePlan,
        keys: &[Key],
        values: &[f32],
        deadline: Deadline,
    ) -> Result<usize> {
        self.may_push()?;
        let ticket = self.new_ticket(spec, chain, false);
        let dim = spec.width() as usize;
        let (mut sent, mut rows): (Vec<Key>, Vec<f32>) = (Vec::new(), Vec::new());
        for frame in &plan.frames {
            sent.clear();
            rows.clear();
            for &number in &plan.order[frame.keys.clone()] {
                let number = number as usize;
                sent.push(keys[number]);
                rows.extend_from_slice(&values[number * dim..(number + 1) * dim]);
            }
            let directory = &plan.directory[frame.directory.clone()];
            let body = self.stage(directory, &sent, (chain, &rows), deadline, ticket)?;
            let header = self.header(RequestKind::Push, table, chain);
            let header = header.sparse(frame.directory.len(), sent.len(), body.len());
            self.enqueue(frame.shard, header, Some(body), Some(ticket));
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a dense pull; refused when the receive memory is out.
    pub fn pull_dense(
        &mut self,
        (table, spec, chain): (TableId, &TableSpec, Chain),
        frames: &[DenseFrame],
        after_push: bool,
    ) -> Result<usize> {
        self.check()?;
        let ticket = self.new_ticket(spec, chain, after_push);
        for frame in frames {
            let floats = frame.count as usize;
            let header = self.header(RequestKind::Pull, table, chain).dense(frame, 0);
            self.ask(frame.shard, ticket, header, None, (floats, Places::From(frame.at)))?;
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a sparse pull; refused when the receive memory is out.
    pub fn pull_sparse(
        &mut self,
        (table, spec, chain): (TableId, &TableSpec, Chain),
        plan: SparsePlan,
        keys: &[Key],
        after_push: bool,
        deadline: Deadline,
    ) -> Result<usize> {
        self.check()?;
        let ticket = self.new_ticket(spec, chain, after_push);
        let mut sent: Vec<Key> = Vec::new();
        for frame in &plan.frames {
            sent.clear();
            sent.extend(plan.order[frame.keys.clone()].iter().map(|&n| keys[n as usize]));
            let directory = &plan.directory[frame.directory.clone()];
            let body = self.stage(directory, &sent, (chain, &[]), deadline, ticket)?;
            let header = self.header(RequestKind::Pull, table, chain);
            let header = header.sparse(frame.directory.len(), sent.len(), body.len());
            let floats = sent.len() * spec.width() as usize;
            self.ask(frame.shard, ticket, header, Some(body), (floats, Places::Rows(frame.keys.clone())))?;
        }
        self.pending[ticket].order = plan.order;
        self.kick();
        Ok(ticket)
    }

    /// Queues one frame of a push, or a mark.
    pub(super) fn enqueue(
        &mut self,
        link: usize,
        header: RequestHeader,
        body: Option<Buf>,
        ticket: Option<usize>,
    ) {
        if let Some(pending) = ticket.and_then(|t| self.pending.get_mut(t)) {
            pending.open += 1;
            self.pushed |= pending.under_bsp;
            if pending.under_bsp && !pending.commits_at.contains(&link) {
                pending.commits_at.push(link);
            }
        }
        self.links[link].enqueue(Outgoing { header, body, ticket }, false);
    }

    /// Queues one frame of a pull.
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
        let pending = &mut self.pending[ticket];
        pending.open += 1;
        pending.floats += floats;
        header.after_push = pending.after_push;
        header.argument = buf.offset() as u64;
        let may_overtake = pending.under_bsp && pending.after_push;
        let part = Some(Part { buf, places });
        header.tag = self.asked.insert(Asked { ticket, link, floats, part, accepted: None }) as u32;
        self.links[link].enqueue(Outgoing { header, body, ticket: None }, may_overtake);
        Ok(())
    }

    /// A pull that could not be queued whole: takes back what was not sent, and forgets the rest.
    pub(super) fn cancel(&mut self, ticket: usize) {
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

    pub(super) fn header(&self, kind: RequestKind, table: TableId, chain: Chain) -> RequestHeader {
        RequestHeader {
            kind,
            after_push: false,
            chain: chain.check(),
            sequence: 0,
            clock: self.clock,
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

    /// The body of a sparse frame, in staging memory: directory, keys, and rows, if any, as `chain` makes them.
    fn stage(
        &mut self,
        directory: &[DirectoryEntry],
        keys: &[Key],
        (chain, rows): (Chain, &[f32]),
        deadline: Deadline,
        ticket: usize,
    ) -> Result<Buf> {
        let (directory, keys): (&[u8], &[u8]) = (bytemuck::cast_slice(directory), bytemuck::cast_slice(keys));
        let values_at = directory.len() + keys.len();
        let length = values_at + rows.len() * chain.value_bytes();
        let mut body = self.lease_staging(length, deadline, ticket)?;
        body.copy_in(0, directory);
        body.copy_in(directory.len(), keys);
        chain.encode(rows, &mut body, values_at);
        Ok(body)
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
