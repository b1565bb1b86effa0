//! The state of a simulated network: nodes, connections, and what will happen when.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use super::SimOptions;
use super::schedule::{Schedule, Thread};
use crate::error::{Error, Result};
use crate::mem::{RegionSlice, Rights};
use crate::transport::arenas::Arenas;
use crate::transport::grants::{Access, Grants};
use crate::transport::park::Waker;
use crate::transport::{Completion, EndpointId, Message, Payload, Read, Refusal, SessionKey, Side, Write};
use crate::types::mix64;
use crate::types::random::SplitMix64;

/// An endpoint of a node.
pub(super) type Place = (usize, EndpointId);

/// What will happen at an instant.
#[derive(Debug)]
enum Event {
    /// The next operation from this end of a connection arrives.
    Deliver { connection: u64, from: usize },
    /// The active side's wish to connect arrives.
    Dial { from: Place },
    /// The passive side's consent arrives.
    Accept { connection: u64 },
    /// Connecting has lasted too long.
    Expire { at: Place },
    /// A side notices that its connection is gone.
    Notice { at: Place, reason: String },
    /// A node has slept enough.
    Wake { node: usize },
}

/// An operation under way.
#[derive(Debug)]
pub(super) enum Posted {
    Send(Message),
    Write(Write),
    Read(Read),
}

/// What one end of a connection has posted.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub queue: VecDeque<Posted>,
    /// So many of them have left: each has an event.
    flushed: usize,
    /// When the last of these arrives.
    last: u64,
    /// Somebody found it full and waits for room.
    pub refused: bool,
}

#[derive(Debug)]
struct Connection {
    /// The active side first.
    ends: [Place; 2],
    /// From each end to the other.
    lanes: [Lane; 2],
}

/// ```text
///  Opened ──connect──▶ Dialling (active)   ──▶ Joined{open: false} ──▶ Joined{open: true} ──connection lost──▶ Lost
///     └───────────────▶ Expecting (passive) ──────────────────────────────────▲
/// ```
#[derive(Debug)]
enum State {
    /// `knock`: who has dialled meanwhile.
    Opened {
        knock: Option<Place>,
    },
    Dialling {
        to: Place,
        key: SessionKey,
    },
    Expecting {
        from: Place,
        key: SessionKey,
    },
    Joined {
        connection: u64,
        end: usize,
        open: bool,
    },
    /// Not noticed yet: operations are refused, or taken and lost.
    Lost {
        refuses: bool,
    },
}

pub(super) struct Endpoint {
    side: Side,
    pub peer: String,
    pub grants: Grants,
    state: State,
}

/// A transport's place in the network, a thread's, or both.
pub(super) struct Node {
    pub name: String,
    pub arenas: Arenas,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    free: Vec<EndpointId>,
    opened: u32,
    pub outbox: VecDeque<Completion>,
    /// Operations from these ends have arrived and wait until the node has polled.
    held: VecDeque<(u64, usize)>,
    /// There is something to do besides completions.
    pub nudged: bool,
    /// Lanes with operations that have not left.
    doorbell: Vec<(u64, usize)>,
    /// Of a transport that was told to sleep.
    pub sleeper: Option<Waker>,
    pub thread: Option<Thread>,
}

/// See the module's head.
pub(super) struct World {
    pub seed: u64,
    pub options: SimOptions,
    pub random: SplitMix64,
    /// Nanoseconds since the beginning.
    pub now: u64,
    pub nodes: Vec<Node>,
    pub schedule: Schedule,
    /// A digest of all that has happened.
    pub trace: u64,
    /// By instant, then in the order in which they were planned.
    events: BTreeMap<(u64, u64), Event>,
    planned: u64,
    connections: BTreeMap<u64, Connection>,
    joined: u64,
    /// The nodes of one side, and until when.
    partitions: Vec<(Vec<usize>, u64)>,
    losses: u32,
    copied: Vec<u8>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.seed).field("now", &self.now).finish_non_exhaustive()
    }
}

impl World {
    pub fn new(seed: u64, options: SimOptions) -> World {
        World {
            seed,
            random: SplitMix64::new(seed, 0),
            now: 0,
            nodes: Vec::new(),
            schedule: Schedule::default(),
            trace: mix64(seed),
            events: BTreeMap::new(),
            planned: 0,
            connections: BTreeMap::new(),
            joined: 0,
            partitions: Vec::new(),
            losses: options.losses,
            copied: Vec::new(),
            options,
        }
    }

    pub fn add(&mut self, name: &str, thread: Option<Thread>) -> usize {
        self.nodes.push(Node {
            name: name.to_owned(),
            arenas: Arenas::new(self.options.max_write),
            endpoints: BTreeMap::new(),
            free: Vec::new(),
            opened: 0,
            outbox: VecDeque::new(),
            held: VecDeque::new(),
            nudged: false,
            doorbell: Vec::new(),
            sleeper: None,
            thread,
        });
        self.nodes.len() - 1
    }

    pub fn is_quiet(&self) -> bool {
        self.events.is_empty()
    }

    /// Lets the next thing happen; false when nothing will.
    pub fn step(&mut self) -> bool {
        let Some(((at, number), event)) = self.events.pop_first() else { return false };
        self.now = at;
        self.note(at ^ number);
        match event {
            Event::Deliver { connection, from } => self.deliver(connection, from),
            Event::Dial { from } => self.dialled(from),
            Event::Accept { connection } => self.accepted(connection),
            Event::Expire { at } => self.expire(at),
            Event::Notice { at, reason } => self.notice(at, reason),
            Event::Wake { node } => self.wake(node),
        }
        true
    }

    /// Adds to the digest of what has happened.
    pub fn note(&mut self, what: u64) {
        self.trace = mix64(self.trace ^ what);
    }

    pub fn sleep(&mut self, node: usize, time: u64) {
        self.plan(self.now + time, Event::Wake { node });
    }

    fn plan(&mut self, at: u64, event: Event) {
        self.events.insert((at, self.planned), event);
        self.planned += 1;
    }

    /// Up to `longest` nanoseconds, short ones more often than long ones.
    fn draw(&mut self, longest: u64) -> u64 {
        let spread = self.random.below(longest) + 1;
        self.random.below(spread)
    }

    fn delay(&mut self) -> u64 {
        self.options.shortest + self.draw(self.options.longest)
    }

    pub fn tell(&mut self, node: usize, completion: Completion) {
        self.nodes[node].outbox.push_back(completion);
        self.rouse(node);
    }

    pub fn nudge(&mut self, node: usize) {
        self.nodes[node].nudged = true;
        self.rouse(node);
    }

    fn rouse(&mut self, node: usize) {
        if let Some(waker) = &self.nodes[node].sleeper {
            waker.wake();
        }
    }

    // Endpoints.

    pub fn open(&mut self, node: usize, side: Side, peer: &str) -> EndpointId {
        let node = &mut self.nodes[node];
        let id = node.free.pop().unwrap_or_else(|| {
            node.opened += 1;
            EndpointId { index: node.opened - 1, generation: 0 }
        });
        let (peer, grants, state) = (peer.to_owned(), Grants::default(), State::Opened { knock: None });
        node.endpoints.insert(id, Endpoint { side, peer, grants, state });
        id
    }

    pub fn endpoint(&mut self, (node, id): Place) -> Option<&mut Endpoint> {
        self.nodes[node].endpoints.get_mut(&id)
    }

    pub fn grant(
        &mut self,
        (node, id): Place,
        region: crate::mem::RegionId,
        range: (usize, usize),
        rights: Rights,
    ) -> Result<crate::mem::RemoteRegion> {
        let Node { arenas, endpoints, .. } = &mut self.nodes[node];
        match endpoints.get_mut(&id) {
            Some(endpoint) => arenas.grant(&mut endpoint.grants, region, range, rights),
            None => Err(Error::Misuse { call: "authorise", reason: "the endpoint is closed".to_owned() }),
        }
    }

    pub fn connect(&mut self, place: Place, peer: Place, key: SessionKey) -> Result<()> {
        let misuse = |reason: &str| Error::Misuse { call: "connect", reason: reason.to_owned() };
        let endpoint = self.endpoint(place).ok_or_else(|| misuse("the endpoint is closed"))?;
        let State::Opened { knock } = endpoint.state else {
            return Err(misuse("the endpoint was connected before; open another"));
        };
        let side = endpoint.side;
        endpoint.state = match side {
            Side::Active => State::Dialling { to: peer, key },
            Side::Passive => State::Expecting { from: peer, key },
        };
        self.plan(self.now + self.options.connect_timeout, Event::Expire { at: place });
        match (side, knock) {
            (Side::Active, _) => {
                let arrival = self.now + self.delay();
                self.plan(arrival, Event::Dial { from: place });
            }
            (Side::Passive, Some(from)) => self.plan(self.now, Event::Dial { from }),
            (Side::Passive, None) => {}
        }
        Ok(())
    }

    fn dialled(&mut self, from: Place) {
        let Some(State::Dialling { to, key }) = self.endpoint(from).map(|e| &e.state) else { return };
        let (to, key) = (*to, *key);
        if let Some(until) = self.cut_off(from.0, to.0) {
            return self.plan(until, Event::Dial { from });
        }
        if self.loses() {
            return self.orphan(from, "the connection was lost while it was made");
        }
        let known = to.0 < self.nodes.len();
        match known.then(|| self.endpoint(to)).flatten().map(|e| &mut e.state) {
            Some(State::Opened { knock }) => *knock = Some(from),
            Some(State::Expecting { from: expected, key: theirs }) if *expected == from && *theirs == key => {
                self.join(from, to);
            }
            Some(State::Expecting { .. }) => self.orphan(from, "it expects another peer or another key"),
            _ => self.orphan(from, "it expects nobody there"),
        }
    }

    fn join(&mut self, active: Place, passive: Place) {
        let connection = self.joined;
        self.joined += 1;
        let mut lanes: [Lane; 2] = Default::default();
        let arrival = self.now + self.delay();
        lanes[1].last = arrival;
        self.connections.insert(connection, Connection { ends: [active, passive], lanes });
        self.plan(arrival, Event::Accept { connection });
        for (end, place) in [active, passive].into_iter().enumerate() {
            if let Some(endpoint) = self.endpoint(place) {
                endpoint.state = State::Joined { connection, end, open: end == 1 };
            }
        }
        self.tell(passive.0, Completion::Connected { endpoint: passive.1 });
    }

    fn accepted(&mut self, connection: u64) {
        let Some(active) = self.connections.get(&connection).map(|c| c.ends[0]) else { return };
        if let Some(Endpoint { state: State::Joined { open, .. }, .. }) = self.endpoint(active) {
            *open = true;
            self.tell(active.0, Completion::Connected { endpoint: active.1 });
        }
    }

    fn expire(&mut self, at: Place) {
        let Some(endpoint) = self.endpoint(at) else { return };
        if matches!(endpoint.state, State::Dialling { .. } | State::Expecting { .. }) {
            let waited_for = format!("{} to connect", endpoint.peer);
            let after = std::time::Duration::from_nanos(self.options.connect_timeout);
            self.end(at, Some(Error::Timeout { waited_for, after }));
        }
    }

    // Operations.

    /// Where to queue an operation; nothing where it is taken and lost.
    pub fn lane(&mut self, place: Place) -> Result<Option<&mut Lane>, Refusal> {
        let depth = self.options.queue_depth;
        let Some(endpoint) = self.endpoint(place) else { return Err(Refusal::NotConnected) };
        let (connection, end) = match endpoint.state {
            State::Joined { connection, end, open: true } => (connection, end),
            State::Lost { refuses: false } => return Ok(None),
            _ => return Err(Refusal::NotConnected),
        };
        let Some(known) = self.connections.get_mut(&connection) else { return Err(Refusal::NotConnected) };
        let lane = &mut known.lanes[end];
        if lane.queue.len() >= depth {
            lane.refused = true;
            return Err(Refusal::Full);
        }
        if lane.queue.len() == lane.flushed {
            self.nodes[place.0].doorbell.push((connection, end));
        }
        Ok(Some(lane))
    }

    pub fn flush(&mut self, node: usize) {
        for (connection, from) in std::mem::take(&mut self.nodes[node].doorbell) {
            let waiting = |w: &World| {
                w.connections.get(&connection).map(|c| &c.lanes[from]).map(|l| l.queue.len() - l.flushed)
            };
            for _ in 0..waiting(self).unwrap_or(0) {
                let arrival = self.now + self.delay();
                let Some(known) = self.connections.get_mut(&connection) else { break };
                let lane = &mut known.lanes[from];
                lane.flushed += 1;
                lane.last = lane.last.max(arrival);
                let at = lane.last;
                self.plan(at, Event::Deliver { connection, from });
            }
        }
    }

    fn deliver(&mut self, connection: u64, from: usize) {
        let Some(ends) = self.connections.get(&connection).map(|c| c.ends) else { return };
        if let Some(until) = self.cut_off(ends[0].0, ends[1].0) {
            if until - self.now > self.options.lost_after {
                return self.lose(connection);
            }
            return self.plan(until, Event::Deliver { connection, from });
        }
        if self.loses() {
            return self.lose(connection);
        }
        let receiver = &mut self.nodes[ends[1 - from].0];
        if receiver.outbox.len() >= self.options.queue_depth {
            return receiver.held.push_back((connection, from));
        }
        let Some(known) = self.connections.get_mut(&connection) else { return };
        let lane = &mut known.lanes[from];
        let Some(operation) = lane.queue.pop_front() else { return };
        lane.flushed -= 1;
        let frees = matches!(&operation, Posted::Write(Write { body: Some(Payload::Owned(_)), .. }));
        if std::mem::take(&mut lane.refused) || frees {
            self.nudge(ends[from].0);
        }
        if let Err(error) = self.perform(operation, ends[from], ends[1 - from]) {
            self.connections.remove(&connection);
            self.end(ends[1 - from], Some(error));
            self.orphan(ends[from], "it closed the connection");
        }
    }

    /// An operation takes effect at the peer.
    fn perform(&mut self, operation: Posted, from: Place, to: Place) -> Result<()> {
        match operation {
            Posted::Send(message) => self.tell(to.0, Completion::Received { endpoint: to.1, message }),
            Posted::Write(write) => {
                let length = write.length() as u32; // at most `max_write`
                self.place_bytes(&write, length as usize, to)?;
                if let Some(imm) = write.imm {
                    self.tell(to.0, Completion::Written { endpoint: to.1, imm, length });
                }
                if let Some(context) = write.context {
                    self.tell(from.0, Completion::Done { endpoint: from.1, context });
                }
            }
            Posted::Read(read) => {
                let length = read.local.length;
                let source = self.reach(to, (read.remote.key, read.offset, length), Access::Read)?;
                self.copied.resize(length, 0);
                source.arena.copy_out(source.offset, &mut self.copied);
                read.local.arena.copy_in(read.local.offset, &self.copied);
                self.tell(from.0, Completion::Done { endpoint: from.1, context: read.context });
            }
        }
        Ok(())
    }

    /// Puts the first `count` bytes of a write where the peer granted them.
    fn place_bytes(&mut self, write: &Write, count: usize, to: Place) -> Result<()> {
        let target = self.reach(to, (write.remote.key, write.offset, write.length()), Access::Write)?;
        self.copied.clear();
        self.copied.extend_from_slice(write.header.as_ref().map_or(&[], |h| &h[..]));
        if let Some(body) = write.body.as_ref().map(Payload::slice) {
            let at = self.copied.len();
            self.copied.resize(at + body.length, 0);
            body.arena.copy_out(body.offset, &mut self.copied[at..]);
        }
        target.arena.copy_in(target.offset, &self.copied[..count]);
        Ok(())
    }

    fn reach(
        &mut self,
        to: Place,
        (key, offset, length): (u32, u64, usize),
        how: Access,
    ) -> Result<RegionSlice> {
        let closed =
            || Error::PeerLost { peer: "a peer".to_owned(), reason: "its endpoint is closed".to_owned() };
        let endpoint = self.endpoint(to).ok_or_else(closed)?;
        // `length` was admitted by the sender's transport: it fits in 32 bits.
        endpoint.grants.admit(key, offset, length as u32, how).map_err(|denied| denied.by(&endpoint.peer))
    }

    /// Takes what a node's transport has to report, and lets in what has waited for that.
    pub fn report(&mut self, node: usize, completions: &mut Vec<Completion>, budget: usize) {
        let known = &mut self.nodes[node];
        let count = known.outbox.len().min(budget);
        completions.extend(known.outbox.drain(..count));
        let room = self.options.queue_depth.saturating_sub(known.outbox.len()).min(known.held.len());
        let admitted: Vec<(u64, usize)> = known.held.drain(..room).collect();
        for (connection, from) in admitted {
            self.plan(self.now, Event::Deliver { connection, from });
        }
    }

    // Ends.

    /// Closes an endpoint from its own side. What has left may arrive in part.
    pub fn close(&mut self, place: Place) {
        if self.endpoint(place).is_some() {
            self.part(place);
            self.end(place, None);
        }
    }

    /// A node is gone, and knows nothing more of it.
    pub fn crash(&mut self, node: usize) {
        let all: Vec<EndpointId> = self.nodes[node].endpoints.keys().copied().collect();
        for id in all {
            self.part((node, id));
            self.end((node, id), None);
        }
        self.nodes[node].outbox.clear();
    }

    /// Breaks an endpoint's connection, if it has one; its peer will notice.
    fn part(&mut self, place: Place) {
        let Some(State::Joined { connection, end, .. }) = self.endpoint(place).map(|e| &e.state) else {
            return;
        };
        let (connection, end) = (*connection, *end);
        let Some(mut broken) = self.connections.remove(&connection) else { return };
        self.spill(&mut broken, end);
        self.orphan(broken.ends[1 - end], "it closed the connection");
    }

    /// The connection is gone at this moment. Of what has left in each direction a part arrives.
    fn lose(&mut self, connection: u64) {
        let Some(mut broken) = self.connections.remove(&connection) else { return };
        for end in [0, 1] {
            self.spill(&mut broken, end);
        }
        for place in broken.ends {
            self.orphan(place, "the connection was lost");
        }
    }

    /// Of what has left from `end` some operations arrive, and of the next one some bytes.
    fn spill(&mut self, broken: &mut Connection, end: usize) {
        let (from, to) = (broken.ends[end], broken.ends[1 - end]);
        let whole = self.random.below(broken.lanes[end].flushed as u64 + 1) as usize;
        let torn = whole < broken.lanes[end].flushed;
        for operation in broken.lanes[end].queue.drain(..whole) {
            // What the peer does not allow reaches nothing, and its connection is gone already.
            let _ = self.perform(operation, from, to);
        }
        if let (true, Some(Posted::Write(write))) = (torn, broken.lanes[end].queue.front()) {
            let count = self.random.below(write.length() as u64 + 1) as usize;
            let _ = self.place_bytes(write, count, to); // as above
        }
    }

    /// An endpoint's connection is gone; it will notice.
    fn orphan(&mut self, at: Place, reason: &str) {
        let refuses = self.random.below(2) == 0;
        let noticed = self.now + self.draw(self.options.lost_after);
        let Some(endpoint) = self.endpoint(at) else { return };
        endpoint.state = State::Lost { refuses };
        self.plan(noticed, Event::Notice { at, reason: reason.to_owned() });
    }

    fn notice(&mut self, at: Place, reason: String) {
        let Some(peer) = self.endpoint(at).map(|e| e.peer.clone()) else { return };
        self.end(at, Some(Error::PeerLost { peer, reason }));
    }

    /// Takes an endpoint out: from here on nobody reaches what it was granted.
    fn end(&mut self, (node, id): Place, reason: Option<Error>) {
        let known = &mut self.nodes[node];
        if known.endpoints.remove(&id).is_some() {
            known.free.push(EndpointId { generation: id.generation.wrapping_add(1), ..id });
            self.tell(node, Completion::Closed { endpoint: id, reason });
        }
    }

    // Faults.

    pub fn partition(&mut self, nodes: &[usize], time: u64) {
        self.partitions.push((nodes.to_vec(), self.now + time));
    }

    /// Until when two nodes can't reach each other, if they can't.
    fn cut_off(&self, a: usize, b: usize) -> Option<u64> {
        let apart = |p: &&(Vec<usize>, u64)| p.1 > self.now && p.0.contains(&a) != p.0.contains(&b);
        self.partitions.iter().filter(apart).map(|p| p.1).max()
    }

    /// Whether a connection is lost at this moment.
    fn loses(&mut self) -> bool {
        let lost = self.losses > 0 && self.random.below(1_000_000) < u64::from(self.options.loss);
        self.losses -= u32::from(lost);
        lost
    }
}
