//! A worker's side: tables that it pushes to and pulls from, and its clock.
//!
//! Calls do not block unless they say so: a push or pull is cut into frames, queued, and completed by whoever waits next
//! on any ticket. Liveness is another thread's business, so a worker may compute for a minute without being taken for dead.

mod bootstrap;
mod buffer;
mod control;
mod engine;
mod link;
mod plan;
mod regions;
mod reopen;
#[cfg(test)]
pub(crate) mod simulated;
mod table;
mod ticket;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

pub use buffer::{Buffer, ClientStats};
pub use control::ServerStats;
pub use table::Table;
pub use ticket::Ticket;

use crate::config::{Environment, Network, variable};
use crate::error::{Error, Result};
use crate::proto::control::PeerStatus;
use crate::proto::filter::{self, Chains};
use crate::proto::secret::Secret;
use crate::time::Deadline;
use crate::transport::network;
use crate::types::{Clock, PartitionMap, Rank, TableSpec, View};
use control::ControlThread;
use engine::Engine;

/// How a worker finds its job, and its limits.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The Coordinator: `HOST:PORT`.
    pub coordinator: String,
    /// The job's secret.
    pub secret: Secret,
    /// The job's name; every node of it must say the same.
    pub job: String,
    /// This worker, from 0.
    pub rank: Rank,
    /// Number of workers in the job.
    pub workers: u32,
    /// Which transport, and where.
    pub network: Network,
    /// How long [`Client::connect`] may wait for all the others. An address where nobody listens is given up after 15 s.
    pub connect_timeout: Duration,
    /// How long a wait may last while all peers are alive.
    pub wait_timeout: Duration,
}

impl ClientConfig {
    /// The worker that the launcher (`windlass run`) made this process: all from its `WINDLASS_*` variables, and from the
    /// configuration file that `WINDLASS_CONFIG` names.
    pub fn from_env() -> Result<ClientConfig> {
        ClientConfig::from_environment(&Environment::capture().with_file(None)?)
    }

    /// The same from a snapshot of the environment.
    pub fn from_environment(environment: &Environment) -> Result<ClientConfig> {
        let missing =
            |name: &str| Error::config(name, "a value: start this program with `windlass run`", "none");
        let text = |name| environment.text(name).ok_or_else(|| missing(name));
        let number = |name| environment.value(name, "a number")?.ok_or_else(|| missing(name));
        let secret = Secret::from_hex(text(variable::SECRET)?)?;
        let (rank, workers) = (number(variable::RANK)?, number(variable::WORKERS)?);
        let mut config = ClientConfig::new(text(variable::COORDINATOR)?, secret, rank, workers);
        config.job = environment.text(variable::JOB).unwrap_or_default().to_owned();
        config.network = network::from_environment(environment, 1)?;
        Ok(config)
    }

    /// Worker `rank` of `workers` of the job whose Coordinator is at `coordinator`.
    pub fn new(coordinator: &str, secret: Secret, rank: Rank, workers: u32) -> ClientConfig {
        ClientConfig {
            coordinator: coordinator.to_owned(),
            secret,
            job: String::new(),
            rank,
            workers,
            network: Network::default(),
            connect_timeout: Duration::from_secs(60),
            wait_timeout: Duration::from_secs(600),
        }
    }
}

/// A worker's connection to its job. Clones share it.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/in_process.rs"));
/// use windlass::{Client, SortedKeys, TableSpec};
/// # fn main() -> windlass::Result<()> {
/// # let job = InProcess::start()?;
/// # let config = job.config();
/// let client = Client::connect(config)?; // `ClientConfig::from_env()?`, or without a launcher `ClientConfig::new`
/// let table = client.table(&TableSpec::sparse("weights", 1))?;
/// let keys = SortedKeys::new(&[3, 17, 1 << 60])?;
/// table.push(keys, &[0.1, 0.2, 0.3])?;
/// client.clock()?; // the pushes of this clock become one update
/// let mut weights = [0.0; 3];
/// table.pull(keys, &mut weights)?;
/// assert_eq!(weights, [-0.1, -0.2, -0.3]); // one step of plain gradient descent with rate 1
/// client.finalize()?;
/// # job.end()
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: ClientConfig,
    view: View,
    /// Each server, and the filters that it and this worker know: from the handshake.
    filters: Vec<(String, Vec<String>)>,
    engine: Mutex<Engine>,
    control: ControlThread,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("rank", &self.inner.config.rank).finish_non_exhaustive()
    }
}

impl Client {
    /// Joins the job: waits until all servers and workers are there, then opens an endpoint to every server thread.
    pub fn connect(config: ClientConfig) -> Result<Client> {
        let deadline = Deadline::after(Instant::now(), config.connect_timeout);
        let mut joined = bootstrap::join(&config, deadline)?;
        // From here on the control thread drives the links: an endpoint can already be lost and opened anew.
        let control = ControlThread::start(joined.links, joined.shared)?;
        joined.engine.connect(deadline)?;
        let engine = Mutex::new(joined.engine);
        let inner = Inner { view: joined.view, filters: joined.filters, engine, control, config };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// This worker's rank.
    pub fn rank(&self) -> Rank {
        self.inner.config.rank
    }

    /// Number of workers in the job.
    pub fn workers(&self) -> u32 {
        self.inner.config.workers
    }

    /// What the data travels by.
    pub fn transport(&self) -> String {
        self.inner.engine().transport_name()
    }

    /// Opens a table, and makes it if there is none of that name. Blocks until all servers have it. One that was made from
    /// another spec is refused with both specs in the message, and one with a filter that this build or a server does not know
    /// with what it knows.
    pub fn table(&self, spec: &TableSpec) -> Result<Table> {
        spec.validate_for(self.inner.view.workers)?;
        let chains = Chains::of(spec)?;
        for (server, filters) in &self.inner.filters {
            filter::agreed(spec, filters, server)?;
        }
        let id = self.inner.control.open_table(spec, self.inner.config.wait_timeout)?;
        let map = PartitionMap::new(&self.inner.view, spec);
        Ok(Table::new(self.inner.clone(), id, spec.clone(), chains, map))
    }

    /// Ends this worker's clock: what it pushed in it is complete. Waits for the answers to this clock's pulls, so that
    /// none of them can see a later one.
    pub fn clock(&self) -> Result<Clock> {
        let clock = self.inner.engine().end_clock(self.inner.deadline())?;
        self.inner.control.shared().clock.store(clock, Ordering::Relaxed);
        Ok(clock)
    }

    /// Waits until all of `tickets` are done, at most for the client's `wait_timeout` in all. After an error those that are not
    /// done are still under way.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/in_process.rs"));
    /// # use windlass::{Client, SortedKeys, TableSpec};
    /// # fn main() -> windlass::Result<()> {
    /// # let job = InProcess::start()?;
    /// # let client = Client::connect(job.config())?;
    /// let tables = [client.table(&TableSpec::sparse("a", 1))?, client.table(&TableSpec::sparse("b", 1))?];
    /// let keys = SortedKeys::new(&[1, 2])?;
    /// let mut tickets = [tables[0].push(keys, &[1.0, 2.0])?, tables[1].push(keys, &[3.0, 4.0])?];
    /// client.clock()?;
    /// client.wait_all(&mut tickets)?;
    /// # client.finalize()?;
    /// # job.end()
    /// # }
    /// ```
    pub fn wait_all(&self, tickets: &mut [Ticket]) -> Result<()> {
        let deadline = self.inner.deadline();
        tickets.iter_mut().try_for_each(|ticket| ticket.wait_timeout(deadline.left(Instant::now())))
    }

    /// This worker pushes nothing from its present clock on: nobody waits for it any more. Blocks until all that it sent
    /// has been taken by the servers. It may still pull. Refused while its present clock holds pushes under Bsp.
    pub fn finish(&self) -> Result<()> {
        self.inner.engine().finish(self.inner.deadline())
    }

    /// Blocks until all that was sent has been taken by the servers and every worker that has not left is here, too.
    /// Refused while the present clock holds pushes under Bsp.
    pub fn barrier(&self) -> Result<()> {
        self.inner.engine().settle(self.inner.deadline())?;
        self.inner.control.barrier(self.inner.config.wait_timeout)
    }

    /// Finishes, and leaves the job in order. Dropping a client without it counts as a failure of this worker.
    pub fn finalize(self) -> Result<()> {
        self.inner.engine().finish(self.inner.deadline())?;
        self.inner.control.finish()
    }

    /// Ends the job for everybody: each node gets `reason` as its error.
    pub fn abort(self, reason: &str) {
        self.inner.control.abort(reason.to_owned());
    }

    /// Up to 64 bytes that the other workers' [`Client::peers`] show of this one.
    pub fn set_status(&self, status: &[u8]) -> Result<()> {
        self.inner.control.set_status(status)
    }

    /// What every worker said of itself last, at most half a second old.
    pub fn peers(&self) -> Result<Vec<PeerStatus>> {
        self.inner.control.peers(self.inner.config.wait_timeout)
    }

    /// The figures of all servers' threads.
    pub fn server_stats(&self) -> Result<Vec<ServerStats>> {
        self.inner.control.server_stats(self.inner.config.wait_timeout)
    }
}

impl Inner {
    fn engine(&self) -> MutexGuard<'_, Engine> {
        match self.engine.lock() {
            Ok(engine) => engine,
            // A caller panicked while it held the engine. Its queues are still in order: every method leaves them so
            // before it calls anything that is not ours.
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// The engine, unless another thread holds it.
    fn try_engine(&self) -> Option<MutexGuard<'_, Engine>> {
        match self.engine.try_lock() {
            Ok(engine) => Some(engine),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()), // as in `engine`
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(Instant::now(), self.config.wait_timeout)
    }

    /// A timeout that says which workers are behind.
    fn name_laggards(&self, error: Error) -> Error {
        let Error::Timeout { waited_for, after } = error else { return error };
        let Ok(peers) = self.control.peers(Duration::from_secs(1)) else {
            return Error::Timeout { waited_for, after };
        };
        let slowest = peers.iter().map(|p| p.clock).min().unwrap_or(0);
        let ranks: Vec<String> =
            peers.iter().filter(|p| p.clock == slowest).map(|p| p.rank.to_string()).collect();
        let waited_for =
            format!("{waited_for}; furthest behind, in clock {slowest}: worker {}", ranks.join(", "));
        Error::Timeout { waited_for, after }
    }
}
