//! What a server thread does with a request: copy the header out, validate, pass the gate, touch the shard, reply.
//!
//! A slot belongs to the worker while it is free, and to this thread from the completion that announced it until the
//! credit that frees it. Keys and headers are copied out before they are looked at; only floats are read in place.

use std::sync::Arc;

use super::link::{Link, Published};
#[cfg(test)]
use super::simulated::Fault;
use crate::cluster::{Gate, OutOfOrder, Verdict};
use crate::error::{Error, Malformed, Result};
use crate::kernels::Input;
use crate::mem::{Arena, Pool, RegionId, Rights};
use crate::proto::{
    Chains, HEADER, KeysAt, NO_BASE, RequestHeader, RequestKind, SparseBody, ThreadStats, WorkerMessage,
};
use crate::store::{Applied, How, Intake, Made, Making, Rejection, Shard, SparsePiece};
use crate::transport::{Loan, Transport};
use crate::types::{
    Aggregate, Clock, DirectoryEntry, IdMap, Key, Late, NonFinite, PartitionMap, Rank, ShardId, TableId,
    TableKind, TableSpec, View,
};

mod ahead;
mod answer;
mod cut;
mod drain;
mod fold;
mod grow;
mod lists;
mod staging;

use ahead::Ahead;
use lists::Lists;
#[cfg(test)]
pub(super) use lists::PLACE;
use staging::Loans;
pub use staging::Staging;

/// The most slots that one worker gets of one thread: one bit each in a reply's `freed`.
pub const MAX_SLOTS: usize = 64;

/// A push or set in its slot that is folded when the gate says so.
#[derive(Debug)]
pub struct Held {
    place: Place,
    header: RequestHeader,
    /// A push to a dense table, and checked: it is folded together with others of its bucket.
    fused: bool,
    /// Fused, and its table looks for values that are not finite.
    examined: bool,
    /// Fused, and kept at no cost until its clock closes: the worker has lent its values, and the clock needs its mark.
    keeps: bool,
    /// Counts what came.
    arrival: u64,
}

/// Where a request lies: its slot, and its body within the staging memory, or within what the worker has lent.
#[derive(Debug, Clone, Copy)]
struct Place {
    slot: u32,
    body_at: usize,
    /// Nothing else lies in the slot.
    alone: bool,
}

impl Place {
    /// The same of a worker.
    fn of(self, rank: Rank) -> (Rank, u32, usize) {
        (rank, self.slot, self.body_at)
    }
}

/// A pull that waits for its clock or for room; its keys are a private copy.
pub struct Waiting {
    header: RequestHeader,
    /// How many clocks must have closed.
    needed: u64,
    directory: Vec<DirectoryEntry>,
    keys: Vec<Key>,
}

/// What outlives an endpoint: how far a worker's requests have got. It makes a replay after a reconnect harmless.
#[derive(Debug, Clone, Default)]
struct Session {
    /// Of the worker's process; `None` before its first endpoint.
    incarnation: Option<u64>,
    /// The sequence number that its next request must have.
    next_sequence: u64,
    /// Slots whose request was accepted and not yet done with.
    occupied: u64,
    /// Slots whose request came too late to be taken: nothing is said of it any more, not even to its replay.
    refused: u64,
    /// For each slot the rejection of the push that filled it last, until another request does: the worker has it then.
    rejected: Vec<Option<Rejected>>,
}

/// What a worker is told of a push of which pieces were rejected.
#[derive(Debug, Clone, Copy)]
struct Rejected {
    sequence: u64,
    tag: u32,
    rejection: Rejection,
}

/// The state of one server thread, without its transport.
pub struct Core {
    id: ShardId,
    view: View,
    shard: Shard,
    chains: IdMap<TableId, Chains>,
    /// Tables that workers may read one-sidedly.
    published: Vec<TableId>,
    gate: Gate<Held>,
    /// By rank.
    links: Vec<Option<Link>>,
    /// By rank.
    sessions: Vec<Session>,
    /// By rank, then slot: parts of the accepted request that are not done with.
    left: Vec<u32>,
    staging: Staging,
    loans: Loans,
    replies: Pool,
    pull_credits: usize,
    lists: Lists,
    stats: ThreadStats,
    /// What the gate said since the last turn.
    verdicts: Vec<Verdict<Held>>,
    ready: fold::Ready,
    /// Held so far.
    arrivals: u64,
    applied: Vec<Applied>,
    /// Workers whose held pieces turned out not to fit: not always whose request is being served.
    faults: Vec<(Rank, Error)>,
    /// A worker broke the protocol, and the job ends: nothing more is taken, closed or answered, so that nobody sees a state
    /// that lacks a piece.
    failed: bool,
    /// All clocks before this have to close, so that everything that was taken is answered.
    promised: Clock,
    /// The server was told to stop.
    draining: bool,
    /// A cut whose clock has not come, and the last one that was asked for.
    awaited: Option<cut::Awaited>,
    cutting: Option<u64>,
    ahead: Ahead,
    directory: Vec<DirectoryEntry>,
    keys: Vec<Key>,
    /// Of packed keys.
    words: Vec<u64>,
    gathered: Vec<f32>,
    /// The lists of answered pulls, to be used again.
    spare: Vec<(Vec<DirectoryEntry>, Vec<Key>)>,
}

impl Core {
    /// A thread's state at the beginning of a job, whose workers begin in clock `first`.
    #[allow(clippy::too_many_arguments)] // each is one thing that the thread owns from here on
    pub fn new(
        id: ShardId,
        view: View,
        shard: Shard,
        staging: Staging,
        replies: Pool,
        pull_credits: usize,
        first: Clock,
    ) -> Core {
        Core {
            id,
            ready: fold::Ready::new(staging.slots, &view),
            gate: Gate::new(view.workers, first),
            links: (0..view.workers).map(|_| None).collect(),
            sessions: vec![
                Session { rejected: vec![None; staging.slots], ..Session::default() };
                view.workers as usize
            ],
            left: vec![0; view.workers as usize * staging.slots],
            loans: Loans::new(view.workers as usize, staging.slots),
            shard: shard.of_generation(view.epoch),
            ahead: Ahead::new(view.workers),
            view,
            chains: IdMap::default(),
            published: Vec::new(),
            staging,
            replies,
            pull_credits,
            lists: Lists::default(),
            stats: ThreadStats::default(),
            verdicts: Vec::new(),
            arrivals: 0,
            applied: Vec::new(),
            faults: Vec::new(),
            failed: false,
            promised: 0,
            draining: false,
            awaited: None,
            cutting: None,
            directory: Vec::new(),
            keys: Vec::new(),
            words: Vec::new(),
            gathered: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// The same with lists of keys that workers may keep, in all of so many bytes.
    pub fn keeping_lists(mut self, bytes: u64) -> Core {
        let workers = self.view.workers as usize;
        self.lists = Lists::new(workers, bytes);
        self
    }

    /// Places for lists of keys that each worker has.
    pub fn key_lists(&self) -> usize {
        self.lists.of_each_worker()
    }

    /// Makes this shard's part of a table and adds it.
    pub fn create_table(
        &mut self,
        id: TableId,
        spec: &TableSpec,
        register: impl FnMut(Arc<Arena>) -> Result<RegionId>,
    ) -> Result<()> {
        match self.prepare_table(id, spec)? {
            Some(making) => self.add_table(making.make()?, register),
            None => Ok(()),
        }
    }

    /// What is to be made of this shard's part of a table, unless it does not know one of its filters; `None` when it is there.
    pub fn prepare_table(&self, id: TableId, spec: &TableSpec) -> Result<Option<Making>> {
        spec.validate_for(self.view.workers)?;
        Chains::of(spec)?;
        let buckets = PartitionMap::new(&self.view, spec).buckets_of(self.id);
        self.shard.prepare_table(id, spec, buckets)
    }

    /// Adds a table that was made; `register` makes its parameters known to the transport.
    pub fn add_table(
        &mut self,
        made: Made,
        register: impl FnMut(Arc<Arena>) -> Result<RegionId>,
    ) -> Result<()> {
        let (id, spec) = made.spec();
        let (chains, quorum) = (Chains::of(spec)?, spec.quorum);
        self.shard.add_table(made, register)?;
        self.chains.insert(id, chains);
        if let Some(quorum) = quorum {
            self.gate.add_quorum(id, quorum.workers);
        }
        Ok(())
    }

    /// Lets all workers read what is published of a table that was made and filled, where it is.
    pub fn let_read_table(&mut self, id: TableId, transport: &mut dyn Transport) -> Result<()> {
        if self.published.contains(&id) || self.shard.readable(id).is_none() {
            return Ok(());
        }
        self.shard.publish_table(id, (self.gate.closed_of(id), self.gate.closed()));
        self.published.push(id);
        (0..self.links.len()).try_for_each(|rank| self.let_read(rank, id, transport))
    }

    /// Lets a worker that has a new endpoint read what is published.
    pub fn let_read_all(&mut self, rank: Rank, transport: &mut dyn Transport) -> Result<()> {
        (0..self.published.len()).try_for_each(|n| self.let_read(rank as usize, self.published[n], transport))
    }

    /// Lets a worker read what is published of a table, and tells it so; unless it has no endpoint, or its endpoint is closed.
    fn let_read(&mut self, rank: usize, id: TableId, transport: &mut dyn Transport) -> Result<()> {
        let (Some(link), Some(epochs)) = (&mut self.links[rank], self.shard.readable(id)) else {
            return Ok(());
        };
        let (region, records) = epochs.region();
        match transport.authorise(link.endpoint, region, 0, epochs.length(), Rights::Read) {
            Ok(remote) => link.publish(Published { table: id, remote, records: records as u32 }),
            // The endpoint is closed, and `Closed` is on its way: its successor is told all anew.
            Err(Error::Misuse { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A worker's slots.
    pub fn staging(&self) -> &Staging {
        &self.staging
    }

    /// Why a process may not open an endpoint as worker `rank`, if it may not.
    pub fn objection(&self, rank: Rank, incarnation: u64) -> Option<String> {
        match self.sessions.get(rank as usize) {
            None => Some(format!("this job has {} workers", self.view.workers)),
            Some(Session { incarnation: Some(known), .. }) if *known != incarnation => {
                Some("another process has been this worker; it can't be taken over in mid-job".to_owned())
            }
            Some(_) => None,
        }
    }

    /// Whether `rank` has an endpoint.
    pub fn is_attached(&self, rank: Rank) -> bool {
        self.links.get(rank as usize).is_some_and(Option::is_some)
    }

    /// A worker's endpoint is open, for the first time or again.
    pub fn attach(&mut self, rank: Rank, incarnation: u64, mut link: Link) {
        if self.draining {
            link.drain();
        }
        let session = &mut self.sessions[rank as usize];
        if session.incarnation.replace(incarnation).is_some() {
            self.stats.reconnects += 1;
        }
        self.links[rank as usize] = Some(link);
    }

    /// A worker's endpoint is connected. It may have missed closed clocks with its last one.
    pub fn connected(&mut self, rank: Rank) {
        if let Some(link) = &mut self.links[rank as usize] {
            link.clock_closed();
        }
    }

    /// A worker's endpoint is gone. What was accepted stays, held pieces too; its pulls it asks for again. A worker that
    /// does not come back is the Coordinator's business.
    pub fn detach(&mut self, rank: Rank) {
        self.links[rank as usize] = None;
    }

    /// What was written to a worker with a context has left.
    pub fn done(&mut self, rank: Rank, context: u64) {
        if let Some(link) = &mut self.links[rank as usize] {
            link.done(context);
        }
    }

    /// The name of a worker, for messages.
    pub fn peer(&self, rank: Rank) -> &str {
        self.links[rank as usize].as_ref().map_or("a worker without endpoint", |l| &l.peer)
    }

    /// The figures so far.
    pub fn stats(&self) -> ThreadStats {
        ThreadStats {
            parameter_bytes: self.shard.parameter_bytes(),
            blocks_moved: self.shard.moves(),
            non_finite: self.shard.non_finite(),
            max_clock_lag: self.gate.max_lag(),
            closed: self.gate.closed(),
            ..self.stats
        }
    }

    /// The clock that each worker is in, by rank.
    pub fn clocks(&self) -> Vec<u64> {
        self.gate.clocks()
    }

    /// A message came outside the slots: about the worker's ring, or its regions.
    pub fn message(&mut self, rank: Rank, bytes: &[u8]) -> Result<()> {
        if self.failed {
            return Ok(());
        }
        let heard = self.hear(rank, bytes);
        self.failed |= heard.is_err();
        heard
    }

    fn hear(&mut self, rank: Rank, bytes: &[u8]) -> Result<()> {
        let Some(link) = &mut self.links[rank as usize] else { return Ok(()) };
        match WorkerMessage::decode(bytes).map_err(|m| m.by(&link.peer))? {
            WorkerMessage::RingRead(read) => link.acknowledged(read),
            WorkerMessage::Announce { number, region } => link.announce(number, region),
            WorkerMessage::Withdraw { number } => link.withdraw(number),
        }
    }

    /// A worker filled a slot, but for the body where it has lent that. What may be folded now is folded by [`Core::settle`], all that came meanwhile together. An error is
    /// the worker's fault, and the job ends: done again it would fail again.
    pub fn request(&mut self, rank: Rank, slot: u32, length: u32, body: Option<Loan>) -> Result<()> {
        if self.failed {
            return Ok(());
        }
        let served = self.serve(rank, slot, length, body);
        self.failed |= served.is_err();
        served
    }

    fn serve(&mut self, rank: Rank, slot: u32, length: u32, body: Option<Loan>) -> Result<()> {
        let Some(link) = &mut self.links[rank as usize] else { return Ok(()) };
        let header = self.staging.header(rank, slot, length).map_err(|m| m.by(&link.peer))?;
        if let Some(loan) = &body {
            check_loan(&self.shard, &header, loan).map_err(|m| m.by(&link.peer))?;
        }
        let session = &mut self.sessions[rank as usize];
        if header.sequence > session.next_sequence {
            let expected = format!("at most {}", session.next_sequence);
            return Err(Error::protocol(&link.peer, "sequence", expected, header.sequence));
        }
        if session.refused & (1 << slot) != 0 {
            return Ok(()); // the worker still waits for this slot to come back
        }
        if header.sequence < session.next_sequence {
            // What it lent before stays lent, if it is still held.
            return self.replayed(rank, slot, header);
        }
        session.next_sequence += 1;
        if self.draining && header.clock >= self.promised {
            session.refused |= 1 << slot; // it comes too late, as everything that follows from this worker
            return Ok(());
        }
        let occupied = session.occupied & (1 << slot) != 0;
        session.occupied |= 1 << slot;
        session.rejected[slot as usize] = None;
        if !link.fill(slot) || occupied {
            return Err(Error::protocol(&link.peer, "slot", "one that is free", slot));
        }
        let left = if header.kind == RequestKind::Batch { header.count } else { 1 };
        *self.left(rank, slot) = left;
        if let Some(Loan { offset, .. }) = body {
            self.loans.set(rank, slot, body);
            let place = Place { slot, body_at: offset, alone: true };
            return self.part(rank, place, header).map_err(|m| m.by(self.peer(rank)));
        }
        self.each_part(rank, slot, header, Core::part)
    }

    /// Does something with a request, or with each part of a batch, in order.
    fn each_part(
        &mut self,
        rank: Rank,
        slot: u32,
        header: RequestHeader,
        mut part: impl FnMut(&mut Core, Rank, Place, RequestHeader) -> Result<(), Malformed>,
    ) -> Result<()> {
        let body_at = self.staging.slot_at(rank, slot) + HEADER;
        if header.kind != RequestKind::Batch {
            let place = Place { slot, body_at, alone: true };
            return part(self, rank, place, header).map_err(|m| m.by(self.peer(rank)));
        }
        let arena = self.staging.arena.clone();
        for found in header.parts(move |at, bytes| arena.copy_out(body_at + at, bytes)) {
            let done = found.and_then(|(at, header)| {
                part(self, rank, Place { slot, body_at: body_at + at, alone: false }, header)
            });
            done.map_err(|m| m.by(self.peer(rank)))?;
            if self.failed {
                break;
            }
        }
        Ok(())
    }

    /// A request that had not been accepted before, by itself or in a batch.
    fn part(&mut self, rank: Rank, place: Place, header: RequestHeader) -> Result<(), Malformed> {
        if header.epoch != self.view.epoch {
            return Err(Malformed::new("epoch", self.view.epoch.to_string(), header.epoch));
        }
        if header.void {
            self.free(rank, place.slot);
            return Ok(());
        }
        match header.kind {
            RequestKind::Push | RequestKind::Set => self.push(rank, place, header),
            RequestKind::Pull => {
                self.pull(rank, place, header)?;
                self.free(rank, place.slot);
                Ok(())
            }
            RequestKind::Mark | RequestKind::Finish => {
                let passed = match header.kind {
                    RequestKind::Mark => self.gate.mark(rank, header.clock, &mut self.verdicts),
                    _ => self.gate.finish(rank, header.clock, &mut self.verdicts),
                };
                self.ahead.ended(rank);
                self.free(rank, place.slot);
                passed.map_err(|e| out_of_order(e, header.clock))
            }
            // `each_part` has taken it apart, and `RequestHeader::parts` gives none.
            RequestKind::Batch => Err(Malformed::new("kind", "no batch in a batch", "one")),
        }
    }

    /// A request that had been accepted before the worker's last endpoint was lost. Only its pulls are done again, and
    /// only a rejection is told again: the answer may have been lost with the endpoint.
    fn replayed(&mut self, rank: Rank, slot: u32, header: RequestHeader) -> Result<()> {
        let session = &self.sessions[rank as usize];
        let rejected = session.rejected[slot as usize].is_some_and(|r| r.sequence == header.sequence);
        let occupied = rejected || session.occupied & (1 << slot) != 0;
        let mut dropped = false;
        self.each_part(rank, slot, header, |core, rank, place, header| match header.kind {
            _ if header.void => Ok(()),
            RequestKind::Pull => core.pull(rank, place, header),
            #[cfg(test)]
            RequestKind::Push if !occupied && super::simulated::has(Fault::KeepsDuplicates) => {
                *core.left(rank, slot) += 1;
                let by_rank = core.known(header.table)?.consistency.folds_by_rank();
                let intake = if by_rank { Intake::Fold } else { Intake::Step { divisor: 1.0, base: None } };
                core.take(rank, place, header, intake).map(drop)
            }
            _ => {
                dropped = true;
                Ok(())
            }
        })?;
        self.stats.duplicates_dropped += u64::from(dropped);
        if let Some(link) = &mut self.links[rank as usize] {
            link.refill(slot, occupied);
            if rejected {
                link.reject(slot);
            }
        }
        Ok(())
    }

    fn push(&mut self, rank: Rank, place: Place, header: RequestHeader) -> Result<(), Malformed> {
        self.stats.pushes += 1;
        self.stats.pushed_bytes += u64::from(header.length);
        let spec = self.known(header.table)?;
        let (by_rank, quorum) = (spec.consistency.folds_by_rank(), spec.quorum);
        let non_finite = spec.non_finite;
        let dense = matches!(spec.kind, TableKind::Dense { .. });
        if header.clock != self.gate.clock_of(rank) {
            return Err(out_of_order(OutOfOrder { expected: self.gate.clock_of(rank) }, header.clock));
        }
        if (by_rank || header.kind == RequestKind::Set) && header.argument != NO_BASE {
            let expected = "no base version under bsp, or of a set";
            return Err(Malformed::new("argument", expected, header.argument));
        }
        // The slot comes back with the reply that rejects it: nothing else may be in there.
        if !place.alone && header.argument != NO_BASE {
            return Err(Malformed::new("argument", "no base version in a batch", header.argument));
        }
        if !place.alone && non_finite == NonFinite::Reject {
            let expected = "none in a batch that rejects values that are not finite";
            return Err(Malformed::new("table", expected, header.table));
        }
        let chain = self.chains(&header)?.push;
        chain.expect(header.chain)?;
        if dense && header.keys != KeysAt::Here {
            return Err(Malformed::new("flags", "no list of keys of a dense table", "one"));
        }
        if dense {
            let piece = self.loans.dense(&self.staging, place.of(rank), &header, chain)?;
            self.shard.check_dense(header.table, &piece)?;
        } else {
            self.find_list(rank, place, &header, chain)?;
        }
        if by_rank {
            // With a quorum it is done when it is folded: for that the clocks before its own have to close.
            self.promised = self.promised.max(header.clock + u64::from(quorum.is_none()));
            let fused = dense && header.kind == RequestKind::Push;
            self.arrivals += 1;
            let examined = fused && non_finite != NonFinite::Accept;
            let keeps = fused && quorum.is_none() && self.loans.lent(rank, place.slot);
            let held = Held { place, header, fused, examined, keeps, arrival: self.arrivals };
            let at = (rank, header.clock);
            let passed = match quorum {
                None => self.gate.push(rank, header.clock, held, &mut self.verdicts),
                Some(_) => self.gate.push_to_quorum(header.table, at, held, &mut self.verdicts),
            };
            return passed.map_err(|e| out_of_order(e, header.clock));
        }
        self.ahead.pushed(rank, header.clock);
        if quorum.is_some() && header.clock < self.gate.closed_of(header.table) {
            return self.take_late(rank, place, header);
        }
        self.take(rank, place, header, Intake::Step { divisor: 1.0, base: base(&header) }).map(drop)
    }

    fn known(&self, table: TableId) -> Result<&TableSpec, Malformed> {
        self.shard.spec(table).ok_or_else(|| unknown(table))
    }

    /// Does with a push whose clock a quorum has closed what its table says.
    fn take_late(&mut self, rank: Rank, place: Place, header: RequestHeader) -> Result<(), Malformed> {
        let spec = self.known(header.table)?;
        let Some(quorum) = spec.quorum else { return Ok(()) };
        let divisor = match spec.aggregate {
            Aggregate::Mean if spec.consistency.folds_by_rank() => quorum.workers as f32,
            _ => 1.0,
        };
        match quorum.late {
            Late::Drop => self.stats.late_dropped += self.take(rank, place, header, Intake::Drop)?,
            Late::Apply => {
                let intake = Intake::Step { divisor, base: base(&header) };
                self.stats.late_applied += self.take(rank, place, header, intake)?;
            }
        }
        Ok(())
    }

    /// Gives a push to the shard, and its slot back. Gives the number of pieces that were taken, or dropped as they should be.
    fn take(
        &mut self,
        rank: Rank,
        place: Place,
        header: RequestHeader,
        intake: Intake,
    ) -> Result<u64, Malformed> {
        self.applied.clear();
        let body_at = place.body_at;
        let chain = self.chains(&header)?.push;
        let how = if header.kind == RequestKind::Set { How::Set } else { How::Push };
        let (at, table) = ((rank, header.clock), header.table);
        let spec = self.known(table)?;
        let ahead = self.ahead.counts() && !spec.consistency.folds_by_rank();
        let (pieces, rejection) = match spec.kind {
            TableKind::Dense { .. } => {
                let all = self.loans.dense(&self.staging, place.of(rank), &header, chain)?;
                let piece = if ahead { self.ahead.rest_of_dense(at, table, all) } else { all };
                self.stats.duplicates_dropped += u64::from(piece.values.len() < all.values.len());
                match ahead && piece.values.is_empty() {
                    true => (1, None),
                    false => (1, self.shard.write_dense(table, how, piece, intake, &mut self.applied)?),
                }
            }
            TableKind::Sparse { dim, .. } => {
                let body = SparseBody::announced(&header, dim as usize * chain.value_bytes())?;
                let values = body.keys * dim as usize;
                let values = chain.view(&self.staging.arena, body_at + body.values_at(), values);
                if header.keys == KeysAt::Here {
                    let copied = self.staging.keys(
                        body_at,
                        &body,
                        &mut self.directory,
                        &mut self.keys,
                        &mut self.words,
                    )?;
                    self.stats.bytes_copied += copied;
                    let piece = SparsePiece { directory: &self.directory, keys: &self.keys, values };
                    let applied = &mut self.applied;
                    let written = if ahead && self.ahead.look(&self.shard, at, table, &piece)? {
                        self.stats.duplicates_dropped += 1;
                        self.ahead.write_rest(&mut self.shard, (table, how, intake), piece, applied)?
                    } else {
                        self.shard.write_sparse(table, how, piece, intake, applied)?
                    };
                    (body.entries, written)
                } else {
                    let name = self.staging.list_name(body_at)?;
                    let list = self.lists.find(rank, name, (table, body.keys))?;
                    let piece = SparsePiece { directory: &list.directory, keys: &list.keys, values };
                    let (applied, positions) = (&mut self.applied, &mut list.positions);
                    let written = if ahead && self.ahead.look(&self.shard, at, table, &piece)? {
                        self.stats.duplicates_dropped += 1;
                        self.ahead.write_rest(&mut self.shard, (table, how, intake), piece, applied)?
                    } else {
                        self.shard.write_listed(table, how, piece, positions, intake, applied)?
                    };
                    (list.directory.len(), written)
                }
            }
        };
        match rejection {
            None => self.free(rank, place.slot),
            Some(rejection) => self.reject(rank, place.slot, header, rejection),
        }
        Ok(pieces as u64 - rejection.map_or(0, |r| u64::from(r.pieces())))
    }

    /// Remembers that pieces of a push were rejected. Its slot comes back with the reply that says so.
    fn reject(&mut self, rank: Rank, slot: u32, header: RequestHeader, rejection: Rejection) {
        self.stats.stale_rejected += u64::from(rejection.stale);
        self.stats.non_finite_rejected += u64::from(rejection.non_finite);
        *self.left(rank, slot) = 0; // it is alone in its slot
        self.loans.set(rank, slot, None);
        let session = &mut self.sessions[rank as usize];
        session.occupied &= !(1 << slot);
        session.rejected[slot as usize] =
            Some(Rejected { sequence: header.sequence, tag: header.tag, rejection });
        if let Some(link) = &mut self.links[rank as usize] {
            link.reject(slot);
        }
    }

    /// Makes a pull wait; its keys are copied.
    fn pull(&mut self, rank: Rank, place: Place, header: RequestHeader) -> Result<(), Malformed> {
        let spec = self.known(header.table)?;
        let chain = self.chains(&header)?.pull;
        chain.expect(header.chain)?;
        // A pull may overtake its worker's marks, and its clock then lies ahead of what is known here: it waits.
        let bytes = u64::from(header.count) * u64::from(spec.width()) * chain.value_bytes() as u64;
        let dense = matches!(spec.kind, TableKind::Dense { .. });
        let needed = spec.consistency.clocks_needed(header.clock, header.after_push);
        #[cfg(test)]
        let needed = super::simulated::needed(needed);
        self.promised = self.promised.max(needed);
        if bytes > self.replies.largest() as u64 {
            return Err(Malformed::new("count", format!("at most {} bytes", self.replies.largest()), bytes));
        }
        let mut waiting = Waiting { header, needed, directory: Vec::new(), keys: Vec::new() };
        if dense {
            self.shard.read_dense(header.table, header.bucket, header.first, header.count)?;
        } else {
            let body = SparseBody::announced(&header, 0)?;
            (waiting.directory, waiting.keys) = self.spare.pop().unwrap_or_default();
            let (directory, keys) = (&mut waiting.directory, &mut waiting.keys);
            if header.keys == KeysAt::Named {
                let name = self.staging.list_name(place.body_at)?;
                let list = self.lists.find(rank, name, (header.table, body.keys))?;
                directory.clone_from(&list.directory);
                keys.clone_from(&list.keys);
            } else {
                self.stats.bytes_copied +=
                    self.staging.keys(place.body_at, &body, directory, keys, &mut self.words)?;
                self.shard.check_pull(header.table, &waiting.piece())?;
            }
        }
        if let Some(link) = &mut self.links[rank as usize] {
            let Some(region) = link.region(header.region) else {
                return Err(Malformed::new("region", "an announced region", header.region));
            };
            if !region.contains(header.argument, bytes) {
                let expected = format!("room for {bytes} bytes in a region of {}", region.length);
                return Err(Malformed::new("argument", expected, header.argument));
            }
            if link.waiting.len() >= self.pull_credits {
                return Err(Malformed::new(
                    "pull",
                    format!("at most {} outstanding", self.pull_credits),
                    "one more",
                ));
            }
            link.waiting.push_back(waiting);
        }
        Ok(())
    }

    fn chains(&self, header: &RequestHeader) -> Result<Chains, Malformed> {
        self.chains.get(&header.table).copied().ok_or_else(|| unknown(header.table))
    }

    fn left(&mut self, rank: Rank, slot: u32) -> &mut u32 {
        &mut self.left[rank as usize * self.staging.slots + slot as usize]
    }

    /// One part of what a slot holds is done with; the slot is free again when all are.
    fn free(&mut self, rank: Rank, slot: u32) {
        let left = self.left(rank, slot);
        *left -= 1;
        if *left > 0 {
            return;
        }
        self.loans.set(rank, slot, None);
        self.sessions[rank as usize].occupied &= !(1 << slot);
        if let Some(link) = &mut self.links[rank as usize] {
            link.free(slot);
        }
    }
}

impl Waiting {
    /// Where its values go.
    pub fn region(&self) -> u8 {
        self.header.region
    }

    fn piece(&self) -> SparsePiece<'_> {
        SparsePiece { directory: &self.directory, keys: &self.keys, values: Input::from(&[][..]) }
    }
}

/// Refuses a lent body that can't be read in place: only values of a dense table are, where fp32 can lie. And not where some are
/// rejected: the worker could change them after they were looked at, before they are folded. A slot it does not reach.
fn check_loan(shard: &Shard, header: &RequestHeader, loan: &Loan) -> Result<(), Malformed> {
    let taken = |spec: &TableSpec| {
        matches!(spec.kind, TableKind::Dense { .. }) && spec.non_finite != NonFinite::Reject
    };
    let writes = matches!(header.kind, RequestKind::Push | RequestKind::Set);
    if !writes || !shard.spec(header.table).is_some_and(taken) {
        let expected = "in its slot, of all but dense pushes whose values are not rejected";
        return Err(Malformed::new("body", expected, "a loan"));
    }
    if loan.length != header.length as usize {
        return Err(Malformed::new("length", format!("{} as lent", loan.length), header.length));
    }
    if !loan.offset.is_multiple_of(size_of::<f32>()) {
        return Err(Malformed::new("source", "a multiple of 4", loan.offset));
    }
    Ok(())
}

fn unknown(table: TableId) -> Malformed {
    Malformed::new("table", "a known table", table)
}

fn base(header: &RequestHeader) -> Option<u64> {
    (header.argument != NO_BASE).then_some(header.argument)
}

fn out_of_order(e: OutOfOrder, found: u64) -> Malformed {
    Malformed::new("clock", e.expected.to_string(), found)
}

#[cfg(test)]
mod tests;
