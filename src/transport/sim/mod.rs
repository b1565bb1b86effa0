//! A simulated network with virtual time, for tests: seeded delays, lost connections, partitions, crashes.
//!
//! | file | idea |
//! | --- | --- |
//! | `world` | nodes and connections; what happens when; one-sided operations |
//! | `schedule` | cooperative threads, so that blocking code runs under virtual time |
//!
//! All transports of one [`SimNetwork`] reach each other. Each operation takes a time drawn from the seed, and one endpoint's
//! arrive in the order in which they were posted. A body is read when it arrives: who changes it earlier sends garbage, as
//! on verbs. A connection is lost at a random moment: some of what was under way still arrives, and of one write perhaps
//! only its first bytes; each side notices after a time of its own, and what it posts until then is refused or lost.
//! Nothing leaves before [`Transport::flush`]. A node that has as many completions to poll as an endpoint's queue is deep
//! takes nothing more until it polls.
//!
//! Two ways to drive it:
//! - **by turns, on one thread** ([`SimNetwork::transport`]): each `poll` lets some things happen. This is how the conformance
//!   suite runs over it.
//! - **as a simulation** ([`SimNetwork::spawn`], [`SimNetwork::run`]): each node runs real blocking code on a thread of its own.

mod schedule;
mod world;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use schedule::{SimFailure, SimNode};
use world::{Lane, Place, Posted, World};

use super::park::Waker;
use super::{
    Caps, Completion, EndpointId, Message, Read, Refusal, Rejected, SessionKey, Side, Transport, Write,
};
use crate::error::{Error, Result};
use crate::mem::{Arena, RegionId, RemoteRegion, Rights};

/// What may happen in a simulated network. Times are virtual, in nanoseconds.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// The shortest time that an operation takes.
    pub shortest: u64,
    /// The longest time on top; short ones are drawn more often than long ones.
    pub longest: u64,
    /// How often in a million an operation's arrival is the moment at which its connection is lost.
    pub loss: u32,
    /// So many connections are lost, no more.
    pub losses: u32,
    /// The longest time until a side notices that its connection is gone; a longer partition breaks connections.
    pub lost_after: u64,
    /// How long connecting may take.
    pub connect_timeout: u64,
    /// Operations that one endpoint may have queued, and completions that a node may leave unpolled.
    pub queue_depth: usize,
    /// Longest header + body of one write, or length of one read, in bytes; at most `u32::MAX`.
    pub max_write: usize,
    /// A simulation that has not ended after so many turns and events has failed.
    pub most_steps: u64,
}

impl Default for SimOptions {
    /// 2 µs and up to 50 more, no loss, 10 ms to notice a loss, 1 s to connect, 256 operations, 16 MiB per write.
    fn default() -> SimOptions {
        SimOptions {
            shortest: 2_000,
            longest: 50_000,
            loss: 0,
            losses: 0,
            lost_after: 10_000_000,
            connect_timeout: 1_000_000_000,
            queue_depth: 256,
            max_write: 16 << 20,
            most_steps: 10_000_000,
        }
    }
}

/// A network in which all that happens is drawn from one seed. Clones share it.
#[derive(Debug, Clone)]
pub struct SimNetwork {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    over: Condvar,
}

impl SimNetwork {
    /// A network without nodes.
    pub fn new(seed: u64, options: SimOptions) -> SimNetwork {
        let world = Mutex::new(World::new(seed, options));
        SimNetwork { shared: Arc::new(Shared { world, over: Condvar::new() }) }
    }

    /// A node without a thread: its transport is driven by whoever polls it.
    pub fn transport(&self, name: &str) -> Result<Sim> {
        let node = self.lock().add(name, None);
        Sim::new(self, node)
    }

    /// For `time` these nodes and the others can't reach each other. What is under way arrives afterwards, if that is soon
    /// enough; else connections break.
    pub fn partition(&self, nodes: &[usize], time: Duration) {
        self.lock().partition(nodes, nanoseconds(time));
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.lock().now)
    }

    /// All memory that a node has registered, in bytes.
    pub fn registered_bytes(&self, node: usize) -> usize {
        self.lock().nodes[node].arenas.bytes()
    }

    /// A digest of all that has happened: two runs that agree in it were the same.
    pub fn trace(&self) -> u64 {
        self.lock().trace
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        // Nothing in it is left half-done by a panic that the simulation survives.
        self.shared.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> &Condvar {
        &self.shared.over
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The transport of one node.
#[derive(Debug)]
pub struct Sim {
    network: SimNetwork,
    node: usize,
    caps: Caps,
    waker: Waker,
}

impl Sim {
    fn new(network: &SimNetwork, node: usize) -> Result<Sim> {
        let world = network.lock();
        let caps = Caps {
            name: "sim",
            one_sided: true,
            keys_per_peer: true,
            queue_depth: world.options.queue_depth,
            max_write: world.options.max_write,
            detail: format!("seed {}", world.seed),
        };
        drop(world);
        Ok(Sim { network: network.clone(), node, caps, waker: Waker::new()? })
    }

    /// Its node's number.
    pub fn node(&self) -> usize {
        self.node
    }

    fn place(&self, endpoint: EndpointId) -> Place {
        (self.node, endpoint)
    }
}

/// Queues an operation, or says why not; an endpoint that has lost its connection without noticing may take it all the same.
fn post<T>(
    lane: std::result::Result<Option<&mut Lane>, Refusal>,
    operation: T,
    posted: impl FnOnce(T) -> Posted,
) -> std::result::Result<(), Rejected<T>> {
    match lane {
        Ok(Some(lane)) => lane.queue.push_back(posted(operation)),
        Ok(None) => {}
        Err(refusal) => return Err(Rejected { operation, refusal }),
    }
    Ok(())
}

/// An endpoint, for its peer: node, index and generation, little-endian.
fn encode((node, endpoint): Place) -> Vec<u8> {
    let words = [node as u32, endpoint.index, endpoint.generation];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn decode(address: &[u8]) -> Option<Place> {
    let bytes: &[u8; 12] = address.try_into().ok()?;
    let word = |at: usize| Some(u32::from_le_bytes(bytes[at..].first_chunk().copied()?));
    Some((word(0)? as usize, EndpointId { index: word(4)?, generation: word(8)? }))
}

impl Transport for Sim {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId> {
        self.network.lock().nodes[self.node].arenas.register(arena)
    }

    fn open(&mut self, side: Side, peer: &str) -> Result<(EndpointId, Vec<u8>)> {
        let id = self.network.lock().open(self.node, side, peer);
        Ok((id, encode(self.place(id))))
    }

    fn authorise(
        &mut self,
        endpoint: EndpointId,
        region: RegionId,
        offset: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion> {
        self.network.lock().grant(self.place(endpoint), region, (offset, length), rights)
    }

    fn withdraw(&mut self, endpoint: EndpointId, remote: &RemoteRegion) -> Result<()> {
        let mut world = self.network.lock();
        // A closed endpoint reaches nothing.
        let Some(known) = world.endpoint(self.place(endpoint)) else { return Ok(()) };
        if !known.grants.remove(remote.key) {
            let reason = "the endpoint has no such authorisation".to_owned();
            return Err(Error::Misuse { call: "withdraw", reason });
        }
        Ok(())
    }

    fn connect(&mut self, endpoint: EndpointId, address: &[u8], key: &SessionKey) -> Result<()> {
        let mut world = self.network.lock();
        let place = self.place(endpoint);
        match decode(address) {
            Some(peer) => world.connect(place, peer, *key),
            None => {
                let peer = world.endpoint(place).map_or("a closed endpoint", |e| &e.peer);
                let found = format!("{} bytes", address.len());
                Err(Error::protocol(peer, "address", "node, index and generation: 12 bytes", found))
            }
        }
    }

    fn send(&mut self, endpoint: EndpointId, message: Message) -> std::result::Result<(), Rejected<Message>> {
        post(self.network.lock().lane(self.place(endpoint)), message, Posted::Send)
    }

    fn write(&mut self, endpoint: EndpointId, write: Write) -> std::result::Result<(), Rejected<Write>> {
        let mut world = self.network.lock();
        let admitted = world.nodes[self.node].arenas.admit_write(&write);
        post(admitted.and_then(|_| world.lane(self.place(endpoint))), write, Posted::Write)
    }

    fn read(&mut self, endpoint: EndpointId, read: Read) -> std::result::Result<(), Rejected<Read>> {
        let mut world = self.network.lock();
        let admitted = world.nodes[self.node].arenas.admit_read(&read);
        post(admitted.and_then(|_| world.lane(self.place(endpoint))), read, Posted::Read)
    }

    fn flush(&mut self) {
        self.network.lock().flush(self.node);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, budget: usize) {
        let mut world = self.network.lock();
        if world.nodes[self.node].thread.is_none() {
            for _ in 0..budget {
                world.step();
            }
        }
        let node = &mut world.nodes[self.node];
        node.nudged = false;
        if node.sleeper.take().is_some() {
            self.waker.drain();
        }
        world.report(self.node, completions, budget);
    }

    fn waitable(&self) -> std::os::fd::RawFd {
        self.waker.fd()
    }

    fn arm(&mut self) -> bool {
        let mut world = self.network.lock();
        let quiet = world.is_quiet();
        let node = &mut world.nodes[self.node];
        if node.nudged || !node.outbox.is_empty() {
            return false;
        }
        if node.thread.is_some() {
            drop(world);
            SimNode::arm(&self.network, self.node);
            return false;
        }
        if quiet {
            node.sleeper = Some(self.waker.clone());
        }
        quiet
    }

    fn close(&mut self, endpoint: EndpointId) {
        self.network.lock().close(self.place(endpoint));
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.network.lock().crash(self.node);
    }
}
