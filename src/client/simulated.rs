//! A worker over a simulated network: the real engine, tables and tickets. Only the control link is played by the test.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};

use super::control::{ControlThread, Shared};
use super::cuts::Cuts;
use super::driver::Driver;
use super::engine::Engine;
use super::link::Link;
use super::reopen::{Granted, Outcome, Reopener, Wish};
use super::{Client, ClientConfig, Inner, Table};
use crate::config::{Polling, PullMode, TransportKind, WorkerLimits};
use crate::control::HubWaker;
use crate::error::{Error, Result};
use crate::mem::{Arena, Pool};
use crate::proto::control::ControlMessage;
use crate::proto::secret::Secret;
use crate::proto::{Chains, HEADER};
use crate::time::Deadline;
use crate::transport::choice::Agreed;
use crate::transport::{SessionKey, Transport};
use crate::types::{PartitionMap, Rank, TableId, TableSpec, View};

/// Buffers of a worker's pools, as (bytes, count): few, so that they run out.
const BUFFERS: [(usize, usize); 2] = [(256, 64), (4096, 64)];
/// Wall time that no simulation reaches: what ends a wait there is virtual.
const NEVER: Duration = Duration::from_secs(24 * 3600);

thread_local! {
    static BELIEVES: Cell<bool> = const { Cell::new(false) };
}

/// Whether this node takes whatever it reads one-sidedly, to show that a test would find what is torn.
pub(crate) fn believe_everything(believes: bool) {
    BELIEVES.set(believes);
}

/// See [`believe_everything`].
pub(super) fn believes_everything() -> bool {
    BELIEVES.get()
}

/// A worker whose endpoints are not open yet.
pub(crate) struct Joining {
    engine: Engine,
    config: ClientConfig,
    view: View,
    shared: Arc<Shared>,
    waker: HubWaker,
}

/// The worker's end of its control links.
pub(crate) struct Wires {
    wishes: Receiver<Wish>,
    outcomes: Sender<Outcome>,
    export: SessionKey,
}

/// An endpoint that a worker asks a server for.
pub(crate) struct Asked {
    /// The server's place in the View.
    pub server: usize,
    /// What it is told.
    pub message: ControlMessage,
    wish: Wish,
    outcomes: Sender<Outcome>,
    export: SessionKey,
}

/// Prepares worker `rank` over `transport`. `export` is the root of its endpoints' keys.
pub(crate) fn prepare(
    mut transport: Box<dyn Transport>,
    view: &View,
    rank: Rank,
    export: SessionKey,
    waker: HubWaker,
) -> Result<(Joining, Wires)> {
    let kind = transport.caps().name;
    let threads: usize = view.servers.iter().map(|s| s.threads as usize).sum();
    let limits = WorkerLimits::default();
    let ring_bytes = limits.ring_entries as usize * HEADER;
    let ring = Arena::new(threads * ring_bytes)?;
    let ring_region = transport.register(ring.clone())?;
    let staging = Pool::new(&BUFFERS, |arena| transport.register(arena))?;
    let receive = Pool::new(&BUFFERS, |arena| transport.register(arena))?;
    let (mut reopener, wishes, outcomes) = Reopener::new(ring_region, kind, NEVER, waker.clone());
    let mut links = Vec::new();
    for (place, server) in view.servers.iter().enumerate() {
        for thread in 0..server.threads {
            let peer = format!("server {} thread {thread}", server.rank);
            let mut link =
                Link::new((place, thread), peer.clone(), (ring.clone(), links.len() * ring_bytes), &limits);
            let opening = link.open(transport.as_mut(), ring_region, &receive)?;
            let reason = "it never had an endpoint".to_owned();
            reopener.ask(links.len(), &link, opening, Error::PeerLost { peer, reason })?;
            links.push(link);
        }
    }
    let shared = Arc::new(Shared::new(rank, 0, Cuts::default())?);
    let memory = (staging, receive);
    let engine =
        Engine::new(transport, (Polling::Block, limits), links, memory, view.epoch, shared.clone(), reopener);
    let mut config = ClientConfig::new("", Secret::generate()?, rank, view.workers);
    config.wait_timeout = NEVER;
    // Only of tables that are published in epochs.
    config.pull = PullMode::Read;
    let joining = Joining { engine, config, view: view.clone(), shared, waker };
    Ok((joining, Wires { wishes, outcomes, export }))
}

impl Joining {
    /// Waits for the endpoints.
    pub fn connect(self) -> Result<Client> {
        let control = ControlThread::unlinked(self.shared.clone(), self.waker);
        let driver = Driver::new(self.engine, self.shared);
        let deadline = Deadline::after(Instant::now(), NEVER);
        // Nothing asks for it here.
        let agreed = Agreed { kind: TransportKind::Tcp, local: false };
        let known = (self.view, Vec::new(), agreed);
        let inner = Inner::connect(self.config, known, driver, control, deadline)?;
        Ok(Client { inner: Arc::new(inner) })
    }
}

impl Client {
    /// A table that the servers were told to make under this number.
    pub(crate) fn made_table(&self, id: TableId, spec: &TableSpec) -> Table {
        let map = PartitionMap::new(&self.inner.view, spec);
        // Servers that know its filters made it.
        let chains = Chains::of(spec).unwrap_or_default();
        Table::new(self.inner.clone(), id, spec.clone(), chains, map)
    }
}

impl Wires {
    /// Tells whether the worker has asked for something.
    pub fn ear(&self) -> Box<dyn Fn() -> bool + Send + Sync> {
        let wishes = self.wishes.clone();
        Box::new(move || !wishes.is_empty())
    }

    /// What the worker asks for next.
    pub fn next(&self) -> Option<Asked> {
        let wish = self.wishes.try_recv().ok()?;
        let (outcomes, export) = (self.outcomes.clone(), self.export);
        Some(Asked { server: wish.server, message: wish.message(0), wish, outcomes, export })
    }
}

impl Asked {
    /// The server's answer reaches the worker. Its node has to be nudged afterwards.
    pub fn answer(self, message: ControlMessage) {
        if let Some((_, granted)) = Granted::of(message) {
            // A worker that is gone has crashed.
            let _ = self.outcomes.send(self.wish.outcome(granted, &self.export));
        }
    }
}
