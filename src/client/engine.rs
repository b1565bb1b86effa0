//! The worker's data path: frames out, replies in, tickets done. Whoever waits drives it.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use slab::Slab;

use super::control::Shared;
use super::frame::{Outgoing, Spare};
use super::link::Link;
use super::lists::KeyLists;
use super::plan::SparsePlan;
use super::readable::Readable;
use super::reopen::Reopener;
use crate::config::{Polling, WorkerLimits};
use crate::error::{Error, Result};
use crate::mem::{Buf, Kind, Pool};
use crate::proto::{Chain, Chains, HEADER, RequestKind};
use crate::transport::{Completion, EndpointId, Transport};
use crate::types::{Clock, IdMap, PartitionMap, TableSpec, Version};

mod after;
mod buffers;
mod clocks;
mod progress;
mod reads;
mod rejected;
mod send;
mod tickets;

pub use after::After;
use buffers::Registered;
pub use buffers::{Span, Uses};
pub use reads::ReadStats;
use reads::Reads;
pub use send::{Source, Turns};

const BUDGET: usize = 256;
/// A frame of so many bytes leaves at once: it is worth its own system call, and what was just copied is still in L2.
const LONG_FRAME: usize = 64 << 10;

/// Where the values of one answered frame belong.
enum Places {
    /// Contiguous from this element of the result on.
    From(usize),
    /// The rows of these places of the plan's order.
    Rows(std::ops::Range<usize>),
    /// In a registered buffer, from this element of the operation's span on, as soon as they have come through their filters.
    Buffer(usize),
}

struct Part {
    buf: Buf,
    places: Places,
}

/// A table, as a call names it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub spec: &'a Arc<TableSpec>,
    pub map: &'a PartitionMap,
    pub chains: Chains,
    /// What its pushes and pulls begin after.
    pub after: Option<&'a Arc<After>>,
    /// Of its frames that wait for a slot.
    pub priority: i8,
    /// Where its pulls may read.
    pub readable: Option<&'a Arc<Readable>>,
}

/// The lists of an operation. Those of one that has ended are used again.
#[derive(Default)]
struct Lists {
    /// A push is committed when its clock has closed at these links.
    commits_at: Vec<usize>,
    /// The answers of a pull.
    parts: Vec<Part>,
    /// Where the rows of a sparse pull belong.
    order: Vec<u32>,
}

/// A push that is not yet committed, or a pull that is not yet answered.
pub struct Pending {
    /// Counts the tickets: their places are used again.
    number: u64,
    spec: Arc<TableSpec>,
    /// What the values go through on their way.
    chain: Chain,
    clock: Clock,
    /// Frames whose slots have not come back (push), or that are not answered (pull).
    open: usize,
    /// Push, set or pull.
    kind: RequestKind,
    /// A pull that needs its own clock closed.
    after_push: bool,
    /// The version that a push was computed from.
    base: Option<Version>,
    /// Why not all of a push was applied: [`Error::Stale`] or [`Error::NonFinite`]. Of a pull: of the push before it.
    rejection: Option<Error>,
    /// The pull that tells of this push's rejection, too, and its number.
    told_by: Option<(usize, u64)>,
    lists: Lists,
    /// Elements that are to be copied to the caller.
    floats: usize,
    version: Version,
    uses: Uses,
    /// The list of keys that its frames name.
    list: Option<u64>,
    /// All of its frames are queued, so that none names the list later.
    queued: bool,
    dropped: bool,
    /// What must be done before its frames leave, and those frames: link, frame, and whether it may overtake.
    after: Option<Arc<After>>,
    priority: i8,
    /// Where it may read, if it is a pull.
    readable: Option<Arc<Readable>>,
    stalled: Vec<(usize, Outgoing, bool)>,
}

/// A pull request under way; its place is the header's tag.
struct Asked {
    /// Counts them: places are used again.
    number: u64,
    ticket: usize,
    link: usize,
    floats: usize,
    /// Where its values arrive; none when the server thread writes them to a registered buffer.
    part: Option<Part>,
    /// Among the engine's `accepted`, once its slot has come back.
    accepted: Option<usize>,
}

/// A frame whose slot has come back and that holds pulls that are not answered: a new endpoint has to ask for them again.
struct Accepted {
    link: usize,
    frame: Outgoing,
    unanswered: u32,
}

/// See the module's head.
pub struct Engine {
    transport: Box<dyn Transport>,
    /// Why the job uses nothing better; empty when it does not fall back.
    pub fallback: String,
    polling: Polling,
    limits: WorkerLimits,
    links: Vec<Link>,
    /// Of every endpoint that is not reported closed yet. Places in the transport's table are reused earlier than that.
    link_of: IdMap<EndpointId, usize>,
    staging: Pool,
    receive: Pool,
    pending: Slab<Pending>,
    /// Lists of ended operations.
    spare: Vec<Lists>,
    plan: SparsePlan,
    key_lists: KeyLists,
    /// By number; none has number 0.
    buffers: Vec<Option<Registered>>,
    /// Buffers that were dropped and are still registered.
    retiring: usize,
    /// Operations on registered buffers that nobody waits for any more.
    quarantined: usize,
    /// Between the caller's memory and registered memory.
    bytes_copied: u64,
    asked: Slab<Asked>,
    accepted: Slab<Accepted>,
    reads: Reads,
    /// Tickets and pull requests so far.
    numbers: u64,
    /// Tickets that have stalled frames, in order.
    stalled: Vec<usize>,
    /// Pushes and pulls that wait for staging memory in mid-queue: the clock does not end meanwhile.
    half_queued: usize,
    spare_frames: Vec<Spare>,
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
    /// An engine over opened endpoints, in the clock that `shared` has.
    pub fn new(
        transport: Box<dyn Transport>,
        (polling, limits): (Polling, WorkerLimits),
        links: Vec<Link>,
        (staging, receive): (Pool, Pool),
        epoch: u32,
        shared: Arc<Shared>,
        reopener: Reopener,
    ) -> Engine {
        let clock = shared.clock.load(Ordering::Relaxed);
        let mut engine = Engine {
            transport,
            fallback: String::new(),
            polling,
            limits,
            links,
            link_of: IdMap::default(),
            staging,
            receive,
            pending: Slab::new(),
            spare: Vec::new(),
            plan: SparsePlan::default(),
            key_lists: KeyLists::default(),
            buffers: Vec::new(),
            retiring: 0,
            quarantined: 0,
            bytes_copied: 0,
            asked: Slab::new(),
            accepted: Slab::new(),
            reads: Reads::default(),
            numbers: 0,
            stalled: Vec::new(),
            half_queued: 0,
            spare_frames: Vec::new(),
            clock,
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
        let used = self.transport.caps().describe();
        if self.fallback.is_empty() { used } else { format!("{used}, fallen back: {}", self.fallback) }
    }

    /// The kind of memory that its transport sends from without copying.
    pub fn memory(&self) -> Kind {
        self.transport.memory()
    }

    /// The longest body of a frame to any server thread, in bytes.
    pub fn payload_bytes(&self) -> usize {
        let granted = self.links.iter().map(Link::payload_bytes).min().unwrap_or(4096);
        granted.min(self.staging.largest()).min(self.receive.largest())
    }

    /// The memory that answers of pulls come in.
    pub fn receive_memory(&self) -> Pool {
        self.receive.clone()
    }

    /// Whether every endpoint is connected.
    pub fn connected(&self) -> bool {
        self.links.iter().all(|l| l.connected)
    }

    /// Bytes copied between the caller's memory and registered memory so far.
    pub fn bytes_copied(&self) -> u64 {
        self.bytes_copied
    }

    /// What a waiter may sleep on.
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.transport.waitable(), self.shared.waker.fd()]
    }

    fn link_at(&self, endpoint: EndpointId) -> Option<usize> {
        self.link_of.get(&endpoint).copied()
    }

    /// The next number of a ticket or pull request.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn may_push(&self) -> Result<()> {
        self.check()?;
        if self.finished {
            let reason = "this worker has finished: it can only pull".to_owned();
            return Err(Error::Misuse { call: "push or clock", reason });
        }
        Ok(())
    }

    /// Why it can't go on.
    pub fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }
}

const _: () = assert!(HEADER == crate::transport::HEADER);

#[cfg(test)]
mod tests;
