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

use super::cq::{CompletionQueue, Status, Work, WorkId};
use super::device::{Context, Port};
use super::memory::{Domain, Region};
use super::patience::Looks;
use super::post::Fence;
use super::qp::{self, Piece, QueuePair, SendRequest, Settings, Verb};
use crate::error::{Error, Result};
use crate::mem::{Arena, RegionId, RegionSlice, RemoteRegion, Rights};
use crate::time::Deadline;
use crate::transport::pairing::{Address, GOODBYE, Greeting, PROOF};
use crate::transport::{EndpointId, MAX_SEND, Payload, SessionKey, Side};

/// How long the goodbye may take; the peer learns of our close from the control connection, too.
const LEAVE: Duration = Duration::from_millis(250);
/// How long flushed work may take to come back before the queue pair is destroyed without it.
const DRAIN: Duration = Duration::from_secs(1);

/// Work requests that an endpoint posts besides its operations, by their sequence number.
pub(super) mod control {
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
    pub patience: Duration,
    /// By region id.
    pub arenas: Vec<Option<Arc<Arena>>>,
}

pub(super) enum Phase {
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

pub(super) struct Drain {
    pub(super) after: After,
    /// Whether the reason names a cause and not only the flush that followed from it.
    pub(super) cause_known: bool,
    pub(super) sends_flushed: bool,
    pub(super) deadline: Deadline,
}

pub(super) enum After {
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
pub(super) struct Operation {
    pub(super) sequence: u32,
    pub(super) context: Option<u64>,
    /// Dropping it gives the memory back.
    pub(super) payload: Option<Payload>,
    pub(super) read_into: Option<RegionSlice>,
}

pub(super) struct Endpoint {
    // First, so that it is destroyed before anything below is given back.
    pub(super) qp: QueuePair,
    /// What the peer may reach, by key.
    pub(super) grants: HashMap<u32, Region>,
    /// Our arenas, registered in this endpoint's domain when first used; by region id.
    pub(super) locals: Vec<Option<Region>>,
    /// `depth` slots for headers and messages on their way out, one for the greeting, then `receives` for messages on
    /// their way in.
    pub(super) scratch: Region,
    pub(super) operations: VecDeque<Operation>,
    pub(super) looks: Looks,
    pub(super) domain: Arc<Domain>,
    pub(super) id: EndpointId,
    pub(super) peer: String,
    pub(super) phase: Phase,
    pub(super) local: Address,
    /// The peer's longest message, in bytes.
    pub(super) limit: usize,
    pub(super) remote: Option<Address>,
    /// Not yet posted.
    pub(super) queued: Vec<SendRequest>,
    pub(super) next: u32,
    pub(super) unsignalled: u32,
    /// Whether a payload waits for a signal that no posted operation carries.
    pub(super) holding: bool,
    pub(super) fence: Fence,
    /// Receive buffers that the device has.
    pub(super) posted: u32,
    /// Receive buffers to be posted again.
    pub(super) returned: Vec<u32>,
}

impl Endpoint {
    /// A queue pair in INIT with all receive buffers posted, so that a peer which is connected earlier finds them.
    pub fn new(shared: &Shared, id: EndpointId, side: Side, peer: &str) -> Result<Endpoint> {
        let domain = Domain::new(&shared.context, shared.settings.relaxed_ordering)?;
        let slots = (shared.depth + 1 + shared.receives) as usize;
        let arena = Arena::new(slots * MAX_SEND)?;
        let scratch = Region::new(&domain, &arena, 0, slots * MAX_SEND, None)?;
        let qp = QueuePair::new(&shared.context, &domain, &shared.completions, shared.settings)?;
        let psn = getrandom::u32()
            .map_err(|e| Error::io("getrandom", "PSN", std::io::Error::other(e.to_string())))?
            & 0x00ff_ffff;
        let local = shared.port.address(side, qp.number(), psn, shared.settings.reads);
        let mut endpoint = Endpoint {
            qp,
            grants: HashMap::new(),
            locals: Vec::new(),
            scratch,
            operations: VecDeque::with_capacity(shared.depth as usize),
            looks: Looks::default(),
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
            fence: Fence::default(),
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

    pub(super) fn is_draining(&self) -> bool {
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

    /// Where the peer takes less than our port, whose MTU stands in the transport's description.
    pub(super) fn tell_mtu(&self) {
        let theirs = self.remote.as_ref().map_or(self.local.mtu, |remote| remote.mtu);
        if theirs < self.local.mtu {
            let mtu = super::device::mtu_bytes(theirs);
            tracing::info!("verbs: packets to and from {} carry {mtu} bytes, as its port does", self.peer);
        }
    }

    pub(super) fn send_proof(&mut self, shared: &Shared, proof: &[u8; 32]) -> Result<()> {
        let piece = self.stage(shared.depth, proof);
        self.control(control::GREETING, Some(PROOF), piece)
    }

    /// Posts a work request of the transport itself.
    pub(super) fn control(&mut self, which: u32, imm: Option<u32>, piece: Piece) -> Result<()> {
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

    /// Whether a grant or an operation under way lies in this arena.
    pub fn uses(&self, region: RegionId, arena: &Arc<Arena>) -> bool {
        let lies_there = |o: &Operation| {
            o.payload.as_ref().is_some_and(|p| p.region() == region)
                || o.read_into.as_ref().is_some_and(|r| r.region == region)
        };
        self.operations.iter().any(lies_there)
            || self.grants.values().any(|granted| Arc::ptr_eq(granted.arena(), arena))
    }

    /// Gives back what this endpoint registered of an arena that it does not use.
    pub fn unregister(&mut self, region: RegionId) {
        if let Some(local) = self.locals.get_mut(region.0 as usize) {
            *local = None;
        }
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

    pub(super) fn work_id(&self, work: Work, sequence: u32) -> WorkId {
        let generation = (self.id.generation & WorkId::GENERATION) as u16;
        WorkId { work, index: self.id.index as u16, generation, sequence }
    }

    /// Gives the device the buffers that came back.
    pub fn post_receives(&mut self, shared: &Shared) -> Result<()> {
        if self.is_draining() {
            self.returned.clear();
            return Ok(());
        }
        let mut batch = [(self.work_id(Work::Receive, 0), Piece::default()); qp::BATCH];
        while !self.returned.is_empty() {
            let mut count = 0;
            while count < qp::BATCH
                && let Some(slot) = self.returned.pop()
            {
                batch[count] = (self.work_id(Work::Receive, slot), self.receive_piece(shared, slot));
                count += 1;
            }
            // SAFETY: the pieces are slots of `scratch`, which outlives the queue pair; a slot is read only between its
            // completion and its being posted again.
            unsafe { self.qp.post_receives(&batch[..count]) }?;
            self.posted += count as u32;
        }
        Ok(())
    }

    pub(super) fn receive_piece(&self, shared: &Shared, slot: u32) -> Piece {
        let offset = receive_offset(shared, slot);
        let key = self.scratch.local_key();
        Piece { address: self.scratch.address() + offset as u64, length: MAX_SEND as u32, key }
    }

    /// An error completion.
    pub(super) fn failed(&mut self, status: Status) {
        let reason = status.reason(&self.peer, self.local.number);
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
    pub(super) fn fail(&mut self, after: After, cause_known: bool) {
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
        (self.unsignalled, self.holding, self.fence) = (0, false, Fence::default());
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
pub(super) fn receive_offset(shared: &Shared, slot: u32) -> usize {
    (shared.depth + 1 + slot % shared.receives) as usize * MAX_SEND
}
