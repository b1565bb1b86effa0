//! The worker's data path: frames out, replies in, tickets done. Whoever waits drives it.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::control::Shared;
use super::link::{Link, Outgoing};
use super::plan::{DenseFrame, SparsePlan};
use super::reopen::Reopener;
use crate::config::Polling;
use crate::error::{Error, Result};
use crate::mem::{Buf, Pool};
use crate::proto::{HEADER, ReplyKind, RequestHeader, RequestKind};
use crate::time::Deadline;
use crate::transport::park::park;
use crate::transport::{Completion, EndpointId, Transport};
use crate::types::{Clock, Key, TableId, TableSpec, Version};

const BUDGET: usize = 256;
/// The longest sleep: a bound on how late a failure told by another thread could be noticed.
const NAP: Duration = Duration::from_millis(200);
/// A frame of so many bytes leaves at once: it is worth its own system call, and what was just copied is still in L2.
const LONG_FRAME: usize = 64 << 10;
/// Frames that may wait for one server thread before a call blocks.
const QUEUE_LIMIT: usize = 4096;

/// Where the values of one answered frame belong.
enum Places {
    /// Contiguous from this element of the result on.
    From(usize),
    /// The rows of these places of the plan's order.
    Rows(std::ops::Range<usize>),
}

struct Part {
    buf: Buf,
    places: Places,
}

/// A push that is not yet committed, or a pull that is not yet answered.
pub struct Pending {
    table: String,
    clock: Clock,
    /// Frames whose slots have not come back (push), or that are not answered (pull).
    open: usize,
    /// A push is committed when its clock has closed at these links.
    commits_at: Vec<usize>,
    /// A pull that needs its own clock closed.
    after_push: bool,
    under_bsp: bool,
    parts: Vec<Part>,
    order: Vec<u32>,
    width: usize,
    floats: usize,
    version: Version,
    dropped: bool,
}

/// A pull frame under way; its number is the header's tag.
struct Asked {
    ticket: usize,
    link: usize,
    floats: usize,
    part: Option<Part>,
    /// The request, once its slot has come back: a new endpoint has to ask again.
    accepted: Option<Outgoing>,
}

/// See the module's head.
pub struct Engine {
    transport: Box<dyn Transport>,
    polling: Polling,
    links: Vec<Link>,
    /// Of every endpoint that is not reported closed yet. Places in the transport's table are reused earlier than that.
    link_of: HashMap<EndpointId, usize>,
    staging: Pool,
    receive: Pool,
    pending: Slab<Pending>,
    asked: Slab<Asked>,
    clock: Clock,
    /// Something was pushed under Bsp in the present clock.
    pushed: bool,
    finished: bool,
    epoch: u32,
    completions: Vec<Completion>,
    returned: Vec<Outgoing>,
    failure: Option<Error>,
    reopener: Reopener,
    shared: Arc<Shared>,
}

impl Engine {
    /// An engine over opened endpoints.
    pub fn new(
        transport: Box<dyn Transport>,
        polling: Polling,
        links: Vec<Link>,
        (staging, receive): (Pool, Pool),
        epoch: u32,
        shared: Arc<Shared>,
        reopener: Reopener,
    ) -> Engine {
        let mut engine = Engine {
            transport,
            polling,
            links,
            link_of: HashMap::new(),
            staging,
            receive,
            pending: Slab::new(),
            asked: Slab::new(),
            clock: 0,
            pushed: false,
            finished: false,
            epoch,
            completions: Vec::with_capacity(BUDGET),
            returned: Vec::new(),
            failure: None,
            reopener,
            shared,
        };
        (0..engine.links.len()).for_each(|link| engine.index_endpoint(link));
        engine
    }

    /// Makes the link of a new endpoint known.
    fn index_endpoint(&mut self, link: usize) {
        let Some(endpoint) = self.links[link].endpoint else { return };
        self.link_of.insert(endpoint, link);
    }

    /// What the data travels by.
    pub fn transport_name(&self) -> String {
        let caps = self.transport.caps();
        if caps.detail.is_empty() { caps.name.to_owned() } else { format!("{} ({})", caps.name, caps.detail) }
    }

    /// The longest body of a frame to any server thread, in bytes.
    pub fn payload_bytes(&self) -> usize {
        let granted = self.links.iter().map(Link::payload_bytes).min().unwrap_or(4096);
        granted.min(self.staging.largest()).min(self.receive.largest())
    }

    /// Waits until every endpoint is connected.
    pub fn connect(&mut self, deadline: Deadline) -> Result<()> {
        self.drive(deadline, "the endpoints of the servers", |engine| {
            engine.links.iter().all(|l| l.connected).then_some(())
        })
    }

    /// Queues the frames of a dense push. Blocks only while staging memory is short.
    pub fn push_dense(
        &mut self,
        (table, spec): (TableId, &TableSpec),
        frames: &[DenseFrame],
        values: &[f32],
        deadline: Deadline,
    ) -> Result<usize> {
        self.may_push()?;
        let ticket = self.new_ticket(spec, false);
        for frame in frames {
            let bytes: &[u8] = bytemuck::cast_slice(&values[frame.at..frame.at + frame.count as usize]);
            let mut body = self.lease_staging(bytes.len(), deadline, ticket)?;
            body.copy_in(0, bytes);
            let header = self.header(RequestKind::Push, table).dense(frame, bytes.len());
            self.enqueue(frame.shard, header, Some(body), Some(ticket));
            if bytes.len() >= LONG_FRAME {
                self.kick();
            }
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a sparse push. Blocks only while staging memory is short.
    pub fn push_sparse(
        &mut self,
        (table, spec): (TableId, &TableSpec),
        plan: &SparsePlan,
        keys: &[Key],
        values: &[f32],
        deadline: Deadline,
    ) -> Result<usize> {
        self.may_push()?;
        let ticket = self.new_ticket(spec, false);
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
            let parts: [&[u8]; 3] = [
                bytemuck::cast_slice(&plan.directory[frame.directory.clone()]),
                bytemuck::cast_slice(&sent),
                bytemuck::cast_slice(&rows),
            ];
            let body = self.stage(&parts, deadline, ticket)?;
            let header = self.header(RequestKind::Push, table);
            let header = header.sparse(frame.directory.len(), sent.len(), body.len());
            self.enqueue(frame.shard, header, Some(body), Some(ticket));
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a dense pull; refused when the receive memory is out.
    pub fn pull_dense(
        &mut self,
        (table, spec): (TableId, &TableSpec),
        frames: &[DenseFrame],
        after_push: bool,
    ) -> Result<usize> {
        self.check()?;
        let ticket = self.new_ticket(spec, after_push);
        for frame in frames {
            let floats = frame.count as usize;
            let header = self.header(RequestKind::Pull, table).dense(frame, 0);
            self.ask(frame.shard, ticket, header, None, (floats, Places::From(frame.at)))?;
        }
        self.kick();
        Ok(ticket)
    }

    /// Queues the frames of a sparse pull; refused when the receive memory is out.
    pub fn pull_sparse(
        &mut self,
        (table, spec): (TableId, &TableSpec),
        plan: SparsePlan,
        keys: &[Key],
        after_push: bool,
        deadline: Deadline,
    ) -> Result<usize> {
        self.check()?;
        let ticket = self.new_ticket(spec, after_push);
        let mut sent: Vec<Key> = Vec::new();
        for frame in &plan.frames {
            sent.clear();
            sent.extend(plan.order[frame.keys.clone()].iter().map(|&n| keys[n as usize]));
            let parts: [&[u8]; 2] =
                [bytemuck::cast_slice(&plan.directory[frame.directory.clone()]), bytemuck::cast_slice(&sent)];
            let body = self.stage(&parts, deadline, ticket)?;
            let header = self.header(RequestKind::Pull, table);
            let header = header.sparse(frame.directory.len(), sent.len(), body.len());
            let floats = sent.len() * spec.width() as usize;
            self.ask(frame.shard, ticket, header, Some(body), (floats, Places::Rows(frame.keys.clone())))?;
        }
        self.pending[ticket].order = plan.order;
        self.kick();
        Ok(ticket)
    }

    /// Ends the clock at every server thread. Gives the new clock.
    pub fn end_clock(&mut self, deadline: Deadline) -> Result<Clock> {
        self.may_push()?;
        self.answer_pulls(deadline)?;
        self.mark(RequestKind::Mark, deadline)?;
        self.clock += 1;
        self.pushed = false;
        Ok(self.clock)
    }

    /// Ends this worker's pushing for good, and waits until the servers have taken all.
    pub fn finish(&mut self, deadline: Deadline) -> Result<()> {
        if !self.finished {
            if self.pushed {
                let reason =
                    format!("clock {} holds pushes that nobody would see: call clock() first", self.clock);
                return Err(Error::Misuse { call: "finish", reason });
            }
            self.answer_pulls(deadline)?;
            self.mark(RequestKind::Finish, deadline)?;
            self.finished = true;
        }
        self.drain(deadline)
    }

    /// What comes before a barrier: as [`Engine::drain`], but refused in the middle of a clock.
    pub fn settle(&mut self, deadline: Deadline) -> Result<()> {
        self.check()?;
        if self.pushed {
            let reason = format!(
                "clock {} holds pushes that the servers keep until the lower ranks, which may be at the barrier, end \
                 theirs: call clock() first",
                self.clock
            );
            return Err(Error::Misuse { call: "barrier", reason });
        }
        self.drain(deadline)
    }

    /// Waits until everything that was queued has been taken by the servers.
    pub fn drain(&mut self, deadline: Deadline) -> Result<()> {
        self.drive(deadline, "the servers to take what was sent", |engine| {
            engine.links.iter().all(Link::drained).then_some(())
        })
    }

    /// Before a clock ends, all pulls under Bsp must be answered whose values its end could change: those that see only
    /// earlier clocks, and those of earlier clocks that see their own.
    fn answer_pulls(&mut self, deadline: Deadline) -> Result<()> {
        self.drive(deadline, "the answers to this clock's pulls", |engine| {
            let left = engine.pending.iter().any(|(_, p)| {
                let waits_for_this_end = p.after_push && p.clock == engine.clock;
                p.under_bsp && !waits_for_this_end && p.open > 0 && p.is_pull()
            });
            (!left).then_some(())
        })
    }

    fn mark(&mut self, kind: RequestKind, deadline: Deadline) -> Result<()> {
        self.drive(deadline, "room to queue the end of a clock", |engine| {
            engine.links.iter().all(|l| l.queued() < QUEUE_LIMIT).then_some(())
        })?;
        for link in 0..self.links.len() {
            let header = self.header(kind, 0);
            self.enqueue(link, header, None, None);
        }
        self.kick();
        Ok(())
    }

    /// Whether a ticket is done. A wait that can only end after the caller's own next call is refused.
    pub fn is_done(&self, ticket: usize, waiting: bool) -> Result<bool> {
        let pending = &self.pending[ticket];
        let done =
            pending.open == 0 && pending.commits_at.iter().all(|&l| self.links[l].closed > pending.clock);
        if done {
            return Ok(true);
        }
        self.check()?;
        let needs_own_mark = pending.under_bsp && (!pending.is_pull() || pending.after_push);
        if waiting && needs_own_mark && pending.clock == self.clock && !self.finished {
            return Err(Error::Misuse {
                call: "wait",
                reason: format!(
                    "what was pushed to table \"{}\" in clock {} is committed when the clock ends: call clock() first",
                    pending.table, pending.clock
                ),
            });
        }
        Ok(false)
    }

    /// What a ticket waits for, for messages.
    pub fn describe(&self, ticket: usize) -> String {
        let pending = &self.pending[ticket];
        let what = if pending.is_pull() { "a pull from" } else { "a push to" };
        let behind: Vec<&str> = match pending.is_pull() {
            true => self
                .asked
                .iter()
                .filter(|(_, a)| a.ticket == ticket)
                .map(|(_, a)| &*self.links[a.link].peer)
                .collect(),
            false => pending
                .commits_at
                .iter()
                .filter(|&&l| self.links[l].closed <= pending.clock)
                .map(|&l| &*self.links[l].peer)
                .collect(),
        };
        format!("{what} table \"{}\" in clock {} at {}", pending.table, pending.clock, behind.join(", "))
    }

    /// Copies a done pull's values out and forgets the ticket.
    ///
    /// # Errors
    /// `into` has another length than the pull asked for.
    pub fn take(&mut self, ticket: usize, into: &mut [f32]) -> Result<Version> {
        let pending = &self.pending[ticket];
        if into.len() != pending.floats {
            let found = into.len();
            return Err(Error::config("length of the result", format!("{} fp32", pending.floats), found));
        }
        let width = pending.width;
        let mut rows: Vec<f32> = Vec::new();
        for part in &pending.parts {
            match &part.places {
                Places::From(at) => {
                    let count = part.buf.len() / 4;
                    part.buf.copy_out(0, bytemuck::cast_slice_mut(&mut into[*at..*at + count]));
                }
                Places::Rows(range) => {
                    rows.resize(part.buf.len() / 4, 0.0);
                    part.buf.copy_out(0, bytemuck::cast_slice_mut(&mut rows));
                    for (row, &number) in rows.chunks_exact(width).zip(&pending.order[range.clone()]) {
                        let at = number as usize * width;
                        into[at..at + width].copy_from_slice(row);
                    }
                }
            }
        }
        Ok(self.pending.remove(ticket).version)
    }

    /// A pull that could not be queued whole: takes back what was not sent, and forgets the rest.
    fn cancel(&mut self, ticket: usize) {
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

    /// Nobody will wait for this ticket any more. Its memory is kept until no operation can touch it.
    pub fn forget(&mut self, ticket: usize) {
        if let Some(pending) = self.pending.get_mut(ticket) {
            pending.dropped = true;
            if pending.open == 0 {
                self.pending.remove(ticket);
            }
        }
    }

    /// What [`Engine::idle`] or an outside waiter may sleep on.
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.transport.waitable(), self.shared.waker.fd()]
    }

    /// Sends what can be sent, takes what has come. True when something had come.
    pub fn progress(&mut self) -> Result<bool> {
        self.check()?;
        if let Err(error) = self.hear_control() {
            self.fail(error);
        }
        self.check()?;
        self.transport.poll(&mut self.completions, BUDGET);
        let worked = !self.completions.is_empty();
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            if let Err(error) = self.complete(completion) {
                self.fail(error);
            }
        }
        self.completions = completions;
        self.kick();
        self.check()?;
        Ok(worked)
    }

    /// What the control thread heard is the cause; a lost endpoint is often only its consequence, and is opened anew
    /// until then.
    fn hear_control(&mut self) -> Result<()> {
        if let Some(error) = self.shared.failure() {
            return Err(error);
        }
        while let Some((link, grant, address, key)) = self.reopener.answered(&self.links)? {
            self.links[link].granted(grant)?;
            if let Some(endpoint) = self.links[link].endpoint {
                self.transport.connect(endpoint, &address, &key)?;
            }
        }
        self.reopener.check_deadlines()
    }

    /// An endpoint is gone: asks for a new one.
    fn lost(&mut self, link: usize, reason: Option<Error>) -> Result<()> {
        let peer = self.links[link].peer.clone();
        let reason = match reason {
            Some(Error::PeerLost { reason, .. }) => reason,
            Some(other) => other.to_string(),
            None => "closed".to_owned(),
        };
        tracing::info!("{peer}: {reason}; reconnecting");
        let ring = self.reopener.ring();
        let opening = self.links[link].open(self.transport.as_mut(), ring, &self.receive)?;
        self.index_endpoint(link);
        self.reopener.ask(link, &self.links[link], opening, Error::PeerLost { peer, reason })
    }

    /// Asks again for the pulls that the server had accepted and not answered when the last endpoint was lost.
    fn ask_again(&mut self, link: usize) {
        for (_, asked) in self.asked.iter_mut().filter(|(_, a)| a.link == link) {
            if let Some(frame) = asked.accepted.take() {
                self.links[link].ask_again(frame);
            }
        }
    }

    /// Drives the engine until `done` gives something.
    fn drive<T>(
        &mut self,
        deadline: Deadline,
        waited_for: &str,
        done: impl Fn(&mut Engine) -> Option<T>,
    ) -> Result<T> {
        let mut idle_since = None;
        loop {
            if let Some(result) = done(self) {
                return Ok(result);
            }
            if self.progress()? {
                idle_since = None;
                continue;
            }
            let now = Instant::now();
            if deadline.passed(now) {
                return Err(Error::Timeout { waited_for: waited_for.to_owned(), after: deadline.given() });
            }
            if self.may_sleep(&mut idle_since, now) {
                park(&self.descriptors(), deadline.left(now).min(NAP))?;
                self.shared.waker.drain();
            }
        }
    }

    /// Whether a waiter has spun long enough and nothing has come meanwhile.
    pub fn may_sleep(&mut self, idle_since: &mut Option<Instant>, now: Instant) -> bool {
        if let Polling::Spin(time) = self.polling
            && now.duration_since(*idle_since.get_or_insert(now)) < time
        {
            std::hint::spin_loop();
            return false;
        }
        self.transport.arm()
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        match completion {
            Completion::Connected { endpoint } => {
                if let Some(link) = self.link_at(endpoint) {
                    self.links[link].connected();
                    self.reopener.connected(link);
                    self.ask_again(link);
                }
            }
            Completion::Written { endpoint, imm, length } => {
                if let Some(link) = self.link_at(endpoint) {
                    self.reply(link, imm, length)?;
                }
            }
            Completion::Closed { endpoint, reason } => {
                if let Some(link) = self.link_of.remove(&endpoint) {
                    self.lost(link, reason)?;
                }
            }
            Completion::Received { endpoint, .. } => {
                if let Some(link) = self.link_at(endpoint) {
                    let peer = &self.links[link].peer;
                    return Err(Error::protocol(peer, "message", "none from a server", "one"));
                }
            }
            Completion::Done { .. } => {}
        }
        Ok(())
    }

    fn link_at(&self, endpoint: EndpointId) -> Option<usize> {
        self.link_of.get(&endpoint).copied()
    }

    fn reply(&mut self, link: usize, imm: u32, length: u32) -> Result<()> {
        let mut returned = std::mem::take(&mut self.returned);
        returned.clear();
        let header = self.links[link].reply(imm, length, &mut returned)?;
        for frame in returned.drain(..) {
            if frame.header.kind == RequestKind::Pull {
                let asked = self.asked.get_mut(frame.header.tag as usize).filter(|a| a.link == link);
                if let Some(asked) = asked {
                    asked.accepted = Some(frame);
                }
            } else if let Some(ticket) = frame.ticket {
                self.one_less(ticket, None, 0);
            }
        }
        self.returned = returned;
        if header.kind == ReplyKind::Pulled {
            let asked = self.asked.get(header.tag as usize).filter(|a| a.link == link);
            let expected = asked.map(|a| a.floats);
            if expected != Some(header.count as usize) {
                let expected = format!("a pull under way (of {expected:?} fp32)");
                let found = format!("tag {} with {} fp32", header.tag, header.count);
                return Err(Error::protocol(&self.links[link].peer, "tag", expected, found));
            }
            let asked = self.asked.remove(header.tag as usize);
            self.links[link].pull_answered();
            self.one_less(asked.ticket, asked.part, header.version);
        }
        Ok(())
    }

    fn one_less(&mut self, ticket: usize, part: Option<Part>, version: Version) {
        let Some(pending) = self.pending.get_mut(ticket) else { return };
        pending.open -= 1;
        pending.version = pending.version.max(version);
        pending.parts.extend(part);
        if pending.dropped && pending.open == 0 {
            self.pending.remove(ticket);
        }
    }

    fn new_ticket(&mut self, spec: &TableSpec, after_push: bool) -> usize {
        self.pending.insert(Pending {
            table: spec.name.clone(),
            clock: self.clock,
            open: 0,
            commits_at: Vec::new(),
            after_push,
            under_bsp: spec.consistency.folds_by_rank(),
            parts: Vec::new(),
            order: Vec::new(),
            width: spec.width() as usize,
            floats: 0,
            version: 0,
            dropped: false,
        })
    }

    fn header(&self, kind: RequestKind, table: TableId) -> RequestHeader {
        RequestHeader {
            kind,
            after_push: false,
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

    /// Queues one frame of a push, or a mark.
    fn enqueue(&mut self, link: usize, header: RequestHeader, body: Option<Buf>, ticket: Option<usize>) {
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
    fn ask(
        &mut self,
        link: usize,
        ticket: usize,
        mut header: RequestHeader,
        body: Option<Buf>,
        (floats, places): (usize, Places),
    ) -> Result<()> {
        let Some(buf) = self.receive.lease(floats * 4) else {
            self.cancel(ticket);
            return Err(Error::Limit {
                resource: "receive memory: it is held by pulls that nobody has waited for".to_owned(),
                limit: self.receive.arena().len() as u64,
                asked: (floats * 4) as u64,
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

    fn stage(&mut self, parts: &[&[u8]], deadline: Deadline, ticket: usize) -> Result<Buf> {
        let length = parts.iter().map(|p| p.len()).sum();
        let mut body = self.lease_staging(length, deadline, ticket)?;
        let mut at = 0;
        for part in parts {
            body.copy_in(at, part);
            at += part.len();
        }
        Ok(body)
    }

    fn lease_staging(&mut self, bytes: usize, deadline: Deadline, ticket: usize) -> Result<Buf> {
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

    /// Fills slots with what waits, and rings the doorbell once.
    fn kick(&mut self) {
        for link in 0..self.links.len() {
            if let Err(error) = self.links[link].pump(self.transport.as_mut()) {
                self.fail(error);
            }
        }
        self.transport.flush();
    }

    fn may_push(&self) -> Result<()> {
        self.check()?;
        if self.finished {
            let reason = "this worker has finished: it can only pull".to_owned();
            return Err(Error::Misuse { call: "push or clock", reason });
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }
}

impl Pending {
    fn is_pull(&self) -> bool {
        self.floats > 0
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

const _: () = assert!(HEADER == crate::transport::HEADER);
