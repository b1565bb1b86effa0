//! One endpoint: its queue pair, the memory that it may touch, and the operations under way.
//!
//! ```text
//!  Opened ──connect──▶ Connecting ──greeted──▶ Connected ──close──▶ Leaving
//!    │                   │  ▲ reset               │ error            │ goodbye sent,
//!    │             error ▼  │                     ▼                  ▼ error, or too long
//!    │                 Draining ◀────────────────────────────────────┘
//!    └──close──▶ (dropped) ◀── all flushed
//! ```
//! Everything that a work request names is owned here and declared after the queue pair, so that dropping an endpoint
//! first destroys the queue pair, then takes the keys back, and only then lets go of the memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::address::Address;
use super::cq::{Arrival, CompletionQueue, Entry, Status, Work, WorkId};
use super::device::{Context, Port};
use super::greeting::{GOODBYE, Greeting, PROOF};
use super::memory::{Domain, Region};
use super::qp::{self, Piece, QueuePair, SendRequest, Settings, Verb};
use crate::error::{Error, Result};
use crate::mem::{Arena, RegionSlice, RemoteRegion, Rights};
use crate::time::Deadline;
use crate::transport::{
    Completion, EndpointId, MAX_SEND, Message, Payload, Read, Refusal, SessionKey, Side, Write,
};

/// Operations between two that are signalled.
const SIGNAL_EVERY: u32 = 32;
/// How long the goodbye may take; the peer learns of our close from the control connection, too.
const LEAVE: Duration = Duration::from_secs(1);
/// How long flushed work may take to come back before the queue pair is destroyed without it.
const DRAIN: Duration = Duration::from_secs(1);

/// Work requests that an endpoint posts besides its operations, by their sequence number.
mod control {
    pub const GREETING: u32 = 0;
    pub const GOODBYE: u32 = 1;
    /// The last work request of a queue pair that failed: when it is flushed, so is all before it.
    pub const MARKER: u32 = 2;
}
/// How many of them there are.
pub(super) const CONTROLS: u32 = 3;

/// What the endpoints of one transport share.
pub(super) struct Shared {
    pub context: Arc<Context>,
    pub port: Port,
    pub completions: Arc<CompletionQueue>,
    pub settings: Settings,
    /// Operations under way; a power of two, so that sequence numbers may wrap.
    pub depth: u32,
    /// Receive buffers posted.
    pub receives: u32,
    pub connect_timeout: Duration,
    /// By region id.
    pub arenas: Vec<Arc<Arena>>,
}

enum Phase {
    Opened,
    /// `refusal`: the peer's proof was wrong; ours is on its way so that it finds out, too.
    Connecting {
        greeting: Greeting,
        refusal: Option<Error>,
    },
    Connected,
    /// Closing on our side, the goodbye is on its way.
    Leaving(Deadline),
    Draining(Drain),
}

struct Drain {
    after: After,
    /// Whether the reason names a cause and not only the flush that followed from it.
    cause_known: bool,
    sends_flushed: bool,
    deadline: Deadline,
}

enum After {
    Closed(Option<Error>),
    /// Greet once more.
    Again(Greeting),
}

/// What [`Endpoint::watch`] found.
pub(super) enum Progress {
    /// Look again.
    Pending,
    /// Nothing to look for any more.
    Settled,
    /// Drop the endpoint, then tell.
    Finished(Option<Error>),
}

/// An operation whose memory the device may still read or write.
struct Operation {
    sequence: u32,
    context: Option<u64>,
    /// Only kept, never looked at: dropping it gives the memory back.
    _payload: Option<Payload>,
    _read_into: Option<RegionSlice>,
}

pub(super) struct Endpoint {
    // First, so that it is destroyed before anything below is given back.
    qp: QueuePair,
    /// What the peer may reach, by key.
    grants: HashMap<u32, Region>,
    /// Our arenas, registered in this endpoint's domain when first used; by region id.
    locals: Vec<Option<Region>>,
    /// `depth` slots for headers and messages on their way out, one for the greeting, then `receives` for messages on
    /// their way in.
    scratch: Region,
    operations: VecDeque<Operation>,
    domain: Arc<Domain>,
    id: EndpointId,
    peer: String,
    phase: Phase,
    local: Address,
    /// The peer's longest message, in bytes.
    limit: usize,
    remote: Option<Address>,
    /// Not yet posted.
    queued: Vec<SendRequest>,
    next: u32,
    unsignalled: u32,
    /// Whether a payload waits for a signal that no posted operation carries.
    holding: bool,
    /// Whether a read is not yet fenced off from what follows it.
    fence: bool,
    /// Receive buffers that the device has.
    posted: u32,
    /// Receive buffers to be posted again.
    returned: Vec<u32>,
}

impl Endpoint {
    /// A queue pair in INIT with all receive buffers posted, so that a peer which is connected earlier finds them.
    pub fn new(shared: &Shared, id: EndpointId, side: Side, peer: &str) -> Result<Endpoint> {
        let domain = Domain::new(&shared.context)?;
        let slots = (shared.depth + 1 + shared.receives) as usize;
        let arena = Arena::new(slots * MAX_SEND)?;
        let scratch = Region::new(&domain, &arena, 0, slots * MAX_SEND, None)?;
        let qp = QueuePair::new(&shared.context, &domain, &shared.completions, shared.settings)?;
        let psn = getrandom::u32()
            .map_err(|e| Error::io("getrandom", "PSN", std::io::Error::other(e.to_string())))?
            & 0x00ff_ffff;
        let local = Address::new(&shared.port, side, qp.number(), psn, shared.settings.reads);
        let mut endpoint = Endpoint {
            qp,
            grants: HashMap::new(),
            locals: Vec::new(),
            scratch,
            operations: VecDeque::with_capacity(shared.depth as usize),
            domain,
            id,
            peer: peer.to_owned(),
            phase: Phase::Opened,
            local,
            limit: shared.port.max_message as usize,
            remote: None,
            queued: Vec::with_capacity(shared.depth as usize),
            next: 0,
            unsignalled: 0,
            holding: false,
            fence: false,
            posted: 0,
            returned: Vec::with_capacity(shared.receives as usize),
        };
        endpoint.prepare(shared)?;
        Ok(endpoint)
    }

    fn prepare(&mut self, shared: &Shared) -> Result<()> {
        self.qp.prepare(&shared.port)?;
        self.posted = 0;
        self.returned.clear();
        self.returned.extend(0..shared.receives);
        self.post_receives(shared)
    }

    /// What the peer needs.
    pub fn address(&self) -> Vec<u8> {
        self.local.encode().to_vec()
    }

    fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining(_))
    }

    /// Whether the goodbye is on its way.
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving(_))
    }

    /// Whether `Closed` is to come soon, by a completion or by the clock.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Leaving(_) | Phase::Draining(_))
    }

    pub fn is_opened(&self) -> bool {
        matches!(self.phase, Phase::Opened)
    }

    /// Begins to connect; the greeting decides.
    pub fn connect(&mut self, shared: &Shared, address: &[u8], key: &SessionKey) -> Result<()> {
        let remote = Address::decode(address, &self.peer)?;
        self.check_reachable(shared, &remote)?;
        let greeting = Greeting::new(&self.local, &remote, key, &self.peer, shared.connect_timeout)?;
        self.limit = self.limit.min(remote.max_message as usize);
        self.remote = Some(remote);
        self.greet(shared, greeting)
    }

    fn check_reachable(&self, shared: &Shared, remote: &Address) -> Result<()> {
        let theirs = super::device::Gid { index: 0, kind: remote.kind, raw: remote.gid };
        let ours = shared.port.gid;
        if ours.kind == theirs.kind && ours.is_ipv4() == theirs.is_ipv4() {
            return Ok(());
        }
        let reason =
            format!("it is reached at {theirs}, this end at {ours}: choose the GID index at one end");
        Err(Error::Refused { peer: self.peer.clone(), reason })
    }

    fn greet(&mut self, shared: &Shared, greeting: Greeting) -> Result<()> {
        let Some(remote) = &self.remote else {
            return Err(Error::Misuse { call: "connect", reason: "no address".to_owned() });
        };
        self.qp.connect(&shared.port, &self.local, remote)?;
        let (first, proof) = (greeting.first, greeting.proof);
        self.phase = Phase::Connecting { greeting, refusal: None };
        if first { self.send_proof(shared, &proof) } else { Ok(()) }
    }

    fn send_proof(&mut self, shared: &Shared, proof: &[u8; 32]) -> Result<()> {
        let piece = self.stage(shared.depth, proof);
        self.control(control::GREETING, Some(PROOF), piece)
    }

    /// Posts a work request of the transport itself.
    fn control(&mut self, which: u32, imm: Option<u32>, piece: Piece) -> Result<()> {
        let request = SendRequest {
            id: self.work_id(Work::Control, which),
            verb: Verb::Send(imm),
            pieces: [piece, Piece::default()],
            remote: (0, 0),
            signalled: true,
            fenced: false,
        };
        // SAFETY: the piece is empty or the greeting's own slot of `scratch`, which outlives the queue pair and is written
        // again only after the queue pair was drained.
        unsafe { self.qp.post_sends(&[request]) }
    }

    /// Registers part of an arena for the peer.
    pub fn authorise(
        &mut self,
        arena: &Arc<Arena>,
        offset: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion> {
        let region = Region::new(&self.domain, arena, offset, length, Some(rights))?;
        let remote = RemoteRegion {
            address: region.address(),
            length: length as u64,
            key: region.remote_key(),
            rights,
        };
        self.grants.insert(remote.key, region);
        Ok(remote)
    }

    pub fn withdraw(&mut self, remote: &RemoteRegion) -> Result<()> {
        match self.grants.remove(&remote.key) {
            Some(region) => region.withdraw(),
            None => Err(Error::Misuse {
                call: "withdraw",
                reason: format!("{} was granted no region with key {}", self.peer, remote.key),
            }),
        }
    }

    /// Queues a message.
    pub fn send(&mut self, shared: &Shared, message: &Message) -> std::result::Result<(), Refusal> {
        self.check_room(shared)?;
        let piece = self.stage(self.next_slot(shared), message.bytes());
        self.push(shared, Verb::Send(None), [piece, Piece::default()], (0, 0), false, None, None);
        Ok(())
    }

    /// Queues a write; takes the body out of it only when the answer is `Ok`.
    pub fn write(&mut self, shared: &Shared, write: &mut Write) -> std::result::Result<(), Refusal> {
        self.check_connected()?;
        let length = write.length();
        self.check_remote(
            shared,
            &write.remote,
            write.offset,
            length,
            write.remote.rights.may_write(),
            "write",
        )?;
        let body = match &write.body {
            Some(payload) => self.local_piece(shared, &payload.slice())?,
            None => Piece::default(),
        };
        self.check_room(shared)?;
        let header = write.header.map_or(Piece::default(), |h| self.stage(self.next_slot(shared), &h));
        let remote = (write.remote.address + write.offset, write.remote.key);
        let signalled = write.context.is_some();
        let pieces = [header, body];
        self.push(
            shared,
            Verb::Write(write.imm),
            pieces,
            remote,
            signalled,
            write.context,
            write.body.take(),
        );
        Ok(())
    }

    /// Queues a read.
    pub fn read(&mut self, shared: &Shared, read: &Read) -> std::result::Result<(), Refusal> {
        self.check_connected()?;
        let length = read.local.length;
        self.check_remote(shared, &read.remote, read.offset, length, read.remote.rights.may_read(), "read")?;
        let piece = self.local_piece(shared, &read.local)?;
        self.check_room(shared)?;
        let remote = (read.remote.address + read.offset, read.remote.key);
        self.push(shared, Verb::Read, [piece, Piece::default()], remote, true, Some(read.context), None);
        if let Some(operation) = self.operations.back_mut() {
            operation._read_into = Some(read.local.clone());
        }
        Ok(())
    }

    fn check_connected(&self) -> std::result::Result<(), Refusal> {
        if matches!(self.phase, Phase::Connected) { Ok(()) } else { Err(Refusal::NotConnected) }
    }

    fn check_room(&self, shared: &Shared) -> std::result::Result<(), Refusal> {
        self.check_connected()?;
        if self.operations.len() < shared.depth as usize { Ok(()) } else { Err(Refusal::Full) }
    }

    fn check_remote(
        &self,
        shared: &Shared,
        remote: &RemoteRegion,
        offset: u64,
        length: usize,
        allowed: bool,
        what: &str,
    ) -> std::result::Result<(), Refusal> {
        let limit = self.limit.min(shared.max_write());
        let why = if !allowed {
            format!("the peer does not grant {what} there")
        } else if !remote.contains(offset, length as u64)
            || remote.address.checked_add(remote.length).is_none()
        {
            format!("{length} bytes at {offset} of a remote region of {}", remote.length)
        } else if length > limit {
            format!("{length} bytes, the limit is {limit}")
        } else {
            return Ok(());
        };
        Err(Refusal::OutOfBounds(why))
    }

    /// A slice of ours as the device knows it. Registers its arena when this endpoint uses it for the first time.
    fn local_piece(&mut self, shared: &Shared, slice: &RegionSlice) -> std::result::Result<Piece, Refusal> {
        let index = slice.region.0 as usize;
        let Some(arena) = shared.arenas.get(index).filter(|a| Arc::ptr_eq(a, &slice.arena)) else {
            return Err(Refusal::OutOfBounds("the local arena is not registered".to_owned()));
        };
        if slice.offset.checked_add(slice.length).is_none_or(|end| end > arena.len()) {
            return Err(Refusal::OutOfBounds(format!(
                "{} bytes at {} of a local arena",
                slice.length, slice.offset
            )));
        }
        if slice.length == 0 {
            return Ok(Piece::default());
        }
        if self.locals.len() <= index {
            self.locals.resize_with(index + 1, || None);
        }
        if self.locals[index].is_none() {
            match Region::new(&self.domain, arena, 0, arena.len(), None) {
                Ok(region) => self.locals[index] = Some(region),
                Err(error) => {
                    self.fail(After::Closed(Some(error)), true);
                    return Err(Refusal::NotConnected);
                }
            }
        }
        let key = self.locals[index].as_ref().map_or(0, Region::local_key);
        Ok(Piece { address: slice.as_ptr() as u64, length: length_u32(slice.length), key })
    }

    /// The slot of the next operation. The device has done with it: there are fewer operations under way than slots.
    fn next_slot(&self, shared: &Shared) -> u32 {
        self.next % shared.depth
    }

    /// Copies `bytes` to a slot on their way out.
    fn stage(&self, slot: u32, bytes: &[u8]) -> Piece {
        let offset = slot as usize * MAX_SEND;
        self.scratch.arena().copy_in(offset, bytes);
        Piece {
            address: self.scratch.address() + offset as u64,
            length: length_u32(bytes.len()),
            key: self.scratch.local_key(),
        }
    }

    #[allow(clippy::too_many_arguments)] // all of one work request; called in four places
    fn push(
        &mut self,
        shared: &Shared,
        verb: Verb,
        pieces: [Piece; 2],
        remote: (u64, u32),
        signalled: bool,
        context: Option<u64>,
        payload: Option<Payload>,
    ) {
        debug_assert!(self.operations.len() < shared.depth as usize);
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        let signalled = signalled || self.unsignalled + 1 >= SIGNAL_EVERY;
        if signalled {
            (self.unsignalled, self.holding) = (0, false);
        } else {
            self.unsignalled += 1;
            self.holding |= payload.is_some();
        }
        // A read may be served after what was posted behind it, unless that waits for it.
        let fenced = self.fence && verb != Verb::Read;
        self.fence = verb == Verb::Read || (self.fence && !fenced);
        let id = self.work_id(Work::Send, sequence);
        self.queued.push(SendRequest { id, verb, pieces, remote, signalled, fenced });
        self.operations.push_back(Operation { sequence, context, _payload: payload, _read_into: None });
    }

    fn work_id(&self, work: Work, sequence: u32) -> WorkId {
        let generation = (self.id.generation & WorkId::GENERATION) as u16;
        WorkId { work, index: self.id.index as u16, generation, sequence }
    }

    /// Whether something waits to be posted.
    pub fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Posts what is queued. The last operation is signalled when a payload would otherwise stay with us until later
    /// operations bring a signal: they may never come.
    pub fn flush(&mut self) {
        if let Some(last) = self.queued.last_mut()
            && self.holding
        {
            last.signalled = true;
            (self.unsignalled, self.holding) = (0, false);
        }
        let mut queued = std::mem::take(&mut self.queued);
        for batch in queued.chunks(qp::BATCH) {
            // SAFETY: every piece lies in `scratch` or in a registered arena that the operation's payload, or its slice,
            // keeps alive in `operations` until its completion or until the queue pair is gone. Its slot of `scratch` is
            // not written before the operation has left `operations`. Body and read target are the caller's promise.
            if let Err(error) = unsafe { self.qp.post_sends(batch) } {
                self.fail(After::Closed(Some(error)), true);
                break;
            }
        }
        queued.clear();
        self.queued = queued;
    }

    /// Gives the device the buffers that came back. Whether there were any, `returned` is empty afterwards.
    pub fn post_receives(&mut self, shared: &Shared) -> Result<()> {
        if self.is_draining() {
            self.returned.clear();
            return Ok(());
        }
        let mut batch = Vec::with_capacity(qp::BATCH);
        while !self.returned.is_empty() {
            batch.clear();
            while batch.len() < qp::BATCH
                && let Some(slot) = self.returned.pop()
            {
                batch.push((self.work_id(Work::Receive, slot), self.receive_piece(shared, slot)));
            }
            // SAFETY: the pieces are slots of `scratch`, which outlives the queue pair; a slot is read only between its
            // completion and its being posted again.
            unsafe { self.qp.post_receives(&batch) }?;
            self.posted += batch.len() as u32;
        }
        Ok(())
    }

    fn receive_piece(&self, shared: &Shared, slot: u32) -> Piece {
        let offset = receive_offset(shared, slot);
        let key = self.scratch.local_key();
        Piece { address: self.scratch.address() + offset as u64, length: MAX_SEND as u32, key }
    }

    /// Takes one completion in.
    pub fn complete(&mut self, shared: &Shared, entry: Entry, out: &mut Vec<Completion>) {
        match entry.id.work {
            Work::Control => self.control_done(entry),
            Work::Send if entry.status == Status::Success => self.retire(entry.id.sequence, out),
            Work::Send => self.failed(entry.status),
            Work::Receive => {
                self.posted = self.posted.saturating_sub(1);
                if entry.status == Status::Success {
                    self.arrived(shared, entry, out);
                    self.returned.push(entry.id.sequence);
                } else {
                    self.failed(entry.status);
                }
            }
        }
    }

    /// Whether buffers wait to be posted again.
    pub fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Lets go of all operations up to `sequence`: a queue pair completes in order.
    fn retire(&mut self, sequence: u32, out: &mut Vec<Completion>) {
        while self.operations.front().is_some_and(|o| sequence.wrapping_sub(o.sequence) as i32 >= 0) {
            if let Some(Operation { context: Some(context), .. }) = self.operations.pop_front() {
                out.push(Completion::Done { endpoint: self.id, context });
            }
        }
    }

    fn control_done(&mut self, entry: Entry) {
        match (entry.id.sequence, &mut self.phase) {
            (control::MARKER, Phase::Draining(drain)) => drain.sends_flushed = true,
            _ if entry.status != Status::Success => self.failed(entry.status),
            (control::GREETING, Phase::Connecting { refusal: refusal @ Some(_), .. }) => {
                // The peer has our proof, and sees for itself that the keys differ.
                let refusal = refusal.take();
                self.fail(After::Closed(refusal), true);
            }
            (control::GOODBYE, Phase::Leaving(_)) => self.fail(After::Closed(None), true),
            _ => {}
        }
    }

    fn arrived(&mut self, shared: &Shared, entry: Entry, out: &mut Vec<Completion>) {
        let endpoint = self.id;
        match (entry.arrival, &self.phase) {
            (Arrival::Message { length, imm: Some(PROOF) }, Phase::Connecting { .. }) => {
                let message = self.received(shared, entry.id.sequence, length);
                self.greeted(shared, message.as_ref().map_or(&[], Message::bytes), out);
            }
            (Arrival::Message { imm: Some(GOODBYE), .. }, _) => self.left(),
            (arrival, Phase::Connected | Phase::Leaving(_) | Phase::Draining(_)) => match arrival {
                Arrival::Message { length, imm: None } => {
                    if let Some(message) = self.received(shared, entry.id.sequence, length) {
                        out.push(Completion::Received { endpoint, message });
                    }
                }
                Arrival::Written { length, imm } => out.push(Completion::Written { endpoint, imm, length }),
                Arrival::Message { .. } | Arrival::Nothing => self.unexpected(arrival),
            },
            (arrival, _) => self.unexpected(arrival),
        }
    }

    fn unexpected(&mut self, arrival: Arrival) {
        let expected = "a proof, then messages and writes";
        self.abandon(Error::protocol(&self.peer, "verbs arrival", expected, format!("{arrival:?}")));
    }

    /// The peer said goodbye.
    fn left(&mut self) {
        match self.phase {
            Phase::Leaving(_) => self.fail(After::Closed(None), true),
            _ => self.abandon(Error::PeerLost {
                peer: self.peer.clone(),
                reason: "it closed the connection".to_owned(),
            }),
        }
    }

    /// Copies a message out of its receive buffer; `None` when it claims to be longer than one, which no device reports.
    fn received(&self, shared: &Shared, slot: u32, length: u32) -> Option<Message> {
        let mut bytes = [0; MAX_SEND];
        let bytes = bytes.get_mut(..length as usize)?;
        self.scratch.arena().copy_out(receive_offset(shared, slot), bytes);
        Message::new(bytes)
    }

    fn greeted(&mut self, shared: &Shared, message: &[u8], out: &mut Vec<Completion>) {
        let Phase::Connecting { greeting, refusal } = &mut self.phase else { return };
        let (accepted, first, proof) = (greeting.accepts(message), greeting.first, greeting.proof);
        let error = (!accepted).then(|| Error::Refused {
            peer: format!("this end of the connection to {}", self.peer),
            reason: "the peer's proof of the session key is wrong".to_owned(),
        });
        match (first, error) {
            (true, Some(error)) => self.fail(After::Closed(Some(error)), true),
            (false, Some(error)) => {
                // Failing at once could flush our proof before it was sent.
                *refusal = Some(error);
                self.answer(shared, &proof);
            }
            (_, None) => {
                self.phase = Phase::Connected;
                out.push(Completion::Connected { endpoint: self.id });
                if !first {
                    self.answer(shared, &proof);
                }
            }
        }
    }

    fn answer(&mut self, shared: &Shared, proof: &[u8; 32]) {
        if let Err(error) = self.send_proof(shared, proof) {
            self.abandon(error);
        }
    }

    /// An error completion.
    fn failed(&mut self, status: Status) {
        let reason = self.reason(status);
        let known = status != Status::Flushed;
        if let Phase::Draining(drain) = &mut self.phase {
            if let (false, true, After::Closed(why @ Some(_))) = (drain.cause_known, known, &mut drain.after)
            {
                (*why, drain.cause_known) = (Some(reason), true);
            }
            return;
        }
        if status == Status::Unreachable && matches!(self.phase, Phase::Connecting { refusal: None, .. }) {
            let Phase::Connecting { greeting, .. } = std::mem::replace(&mut self.phase, Phase::Connected)
            else {
                return;
            };
            return self.fail(After::Again(greeting), true);
        }
        let reason = if matches!(self.phase, Phase::Leaving(_)) { None } else { Some(reason) };
        self.fail(After::Closed(reason), known);
    }

    fn reason(&self, status: Status) -> Error {
        let peer = self.peer.clone();
        let lost = |reason: &str| Error::PeerLost { peer: peer.clone(), reason: reason.to_owned() };
        match status {
            Status::Success | Status::Flushed => {
                lost("its queue pair, or ours, failed: a device was reset, or one end reached for what the other did not grant")
            }
            Status::Unreachable => lost("its device does not answer (transport retries used up)"),
            Status::NotReady => lost("it posts no receive buffers (receiver-not-ready retries used up)"),
            Status::Refused => Error::Refused {
                peer,
                reason: "remote access denied: the key was withdrawn or belongs to another peer, or the range or right was \
                         not granted"
                    .to_owned(),
            },
            Status::Failed { code, vendor } => Error::Device {
                operation: "work completion",
                device: format!("queue pair {} to {peer}", self.local.number),
                reason: format!("status {code}, vendor error {vendor:#x}"),
            },
        }
    }

    /// Begins to close; what was queued and not posted is lost. The first reason stays.
    pub fn close(&mut self) {
        match &mut self.phase {
            Phase::Draining(Drain { after: after @ After::Again(_), .. }) => *after = After::Closed(None),
            Phase::Draining(_) | Phase::Leaving(_) => {}
            Phase::Connected => {
                self.queued.clear();
                match self.control(control::GOODBYE, Some(GOODBYE), Piece::default()) {
                    Ok(()) => self.phase = Phase::Leaving(Deadline::after(Instant::now(), LEAVE)),
                    Err(_) => self.fail(After::Closed(None), true),
                }
            }
            Phase::Opened | Phase::Connecting { .. } => self.fail(After::Closed(None), true),
        }
    }

    /// Ends the endpoint for `reason`, unless it is ending already.
    pub fn abandon(&mut self, reason: Error) {
        if !self.is_draining() {
            self.fail(After::Closed(Some(reason)), true);
        }
    }

    /// Nothing is accepted from the peer any more, and all posted work is flushed.
    fn fail(&mut self, after: After, cause_known: bool) {
        self.queued.clear();
        let marked = self.qp.fail().and_then(|()| self.control(control::MARKER, None, Piece::default()));
        // Without a marker there is nothing to wait for: the queue pair is destroyed at once.
        let given = if marked.is_ok() { DRAIN } else { Duration::ZERO };
        let deadline = Deadline::after(Instant::now(), given);
        self.phase = Phase::Draining(Drain { after, cause_known, sends_flushed: false, deadline });
    }

    /// Looks whether draining or connecting has come to an end.
    pub fn watch(&mut self, shared: &Shared, now: Instant) -> Progress {
        match &self.phase {
            Phase::Opened | Phase::Connected => Progress::Settled,
            Phase::Connecting { greeting, .. } => {
                if greeting.deadline.passed(now) {
                    let error = self.not_greeted(greeting);
                    self.fail(After::Closed(Some(error)), true);
                }
                Progress::Pending
            }
            Phase::Leaving(deadline) => {
                if deadline.passed(now) {
                    self.fail(After::Closed(None), true);
                }
                Progress::Pending
            }
            Phase::Draining(drain) => {
                let flushed = drain.sends_flushed && self.posted == 0;
                if flushed || drain.deadline.passed(now) {
                    self.drained(shared, flushed, now)
                } else {
                    Progress::Pending
                }
            }
        }
    }

    fn not_greeted(&self, greeting: &Greeting) -> Error {
        Error::Timeout {
            waited_for: format!("{} to connect its queue pair", self.peer),
            after: greeting.deadline.given(),
        }
    }

    fn drained(&mut self, shared: &Shared, flushed: bool, now: Instant) -> Progress {
        let Phase::Draining(drain) = std::mem::replace(&mut self.phase, Phase::Opened) else {
            return Progress::Settled;
        };
        match drain.after {
            After::Closed(reason) => Progress::Finished(reason),
            After::Again(greeting) if flushed && !greeting.deadline.passed(now) => {
                match self.again(shared, greeting) {
                    Ok(()) => Progress::Pending,
                    Err(error) => Progress::Finished(Some(error)),
                }
            }
            After::Again(greeting) => Progress::Finished(Some(self.not_greeted(&greeting))),
        }
    }

    /// Takes a drained queue pair from ERR to RTS once more, with the same number and PSNs.
    fn again(&mut self, shared: &Shared, greeting: Greeting) -> Result<()> {
        self.qp.reset()?;
        self.operations.clear();
        (self.unsignalled, self.holding, self.fence) = (0, false, false);
        self.prepare(shared)?;
        self.greet(shared, greeting)
    }
}

impl Shared {
    /// Longest write or read in bytes. Lengths of work requests have 32 bits, and the specification stops at 2 GiB.
    pub fn max_write(&self) -> usize {
        (self.port.max_message as usize).min(1 << 30)
    }
}

/// Where a receive buffer lies in `scratch`.
fn receive_offset(shared: &Shared, slot: u32) -> usize {
    (shared.depth + 1 + slot % shared.receives) as usize * MAX_SEND
}

/// Lengths were checked against [`Shared::max_write`], or are those of a message.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
