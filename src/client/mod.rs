//! A worker's side: tables that it pushes to and pulls from, and its clock.
//!
//! Calls do not block unless they say so: a push or pull is cut into frames, queued, and completed by whoever waits next
//! on any ticket. Liveness is another thread's business, so a worker may compute for a minute without being taken for dead.

mod bootstrap;
mod buffer;
mod control;
mod cuts;
mod driver;
mod engine;
mod frame;
mod lane;
mod link;
mod lists;
mod plan;
mod readable;
mod regions;
mod reopen;
#[cfg(test)]
pub(crate) mod simulated;
mod table;
mod ticket;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use buffer::{Buffer, ClientStats};
pub use control::ServerStats;
pub use engine::ReadStats;
pub use table::Table;
pub use ticket::Ticket;

use crate::config::{
    DEFAULT_JOIN_TIMEOUT, DEFAULT_WAIT_TIMEOUT, Environment, Network, Progress, PullMode, WorkerLimits,
    settings, variable,
};
use crate::error::{Error, Result};
use crate::kernels;
use crate::mem::Pool;
use crate::proto::bootstrap::Bootstrap;
use crate::proto::control::{MAX_STATE, PeerStatus};
use crate::proto::filter::{self, Chains};
use crate::proto::secret::Secret;
use crate::time::Deadline;
use crate::transport::choice::Agreed;
use crate::transport::{interface, network};
use crate::types::{Clock, PartitionMap, Publish, Rank, TableKind, TableSpec, View};
use control::ControlThread;
use cuts::Cuts;
use driver::{Driver, ProgressThread};
use engine::Engine;

/// Versions of each bucket that [`Client::publishing`] has servers keep.
const EPOCHS: u32 = 2;
/// How long before its deadline a wait asks who is behind, at most.
const ASK_AHEAD: Duration = Duration::from_secs(1);
/// How long after its deadline the answer may still come.
const LAST_MOMENT: Duration = Duration::from_millis(50);

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
    /// How long [`Client::connect`] may wait for all the others. An address where nobody listens is given up after
    /// [`LinkLimits::dial_timeout`](crate::config::LinkLimits::dial_timeout).
    pub connect_timeout: Duration,
    /// How long a wait may last while all peers are alive.
    pub wait_timeout: Duration,
    /// Who sends and receives while no call waits.
    pub progress: Progress,
    /// Who moves the values of pulls, of tables that are published in epochs.
    pub pull: PullMode,
    /// Bounds of memory and queues.
    pub limits: WorkerLimits,
}

impl ClientConfig {
    /// The worker that the launcher (`windlass run`) made this process, from a snapshot of the environment.
    pub fn from_environment(environment: &Environment) -> Result<ClientConfig> {
        kernels::choose_by(environment)?;
        let missing =
            |name: &str| Error::config(name, "a value: start this program with `windlass run`", "none");
        let text = |name| environment.text(name).ok_or_else(|| missing(name));
        let number = |name| environment.value(name, "a number")?.ok_or_else(|| missing(name));
        let secret = Secret::from_hex(text(variable::SECRET)?)?;
        let (rank, workers) = (number(variable::RANK)?, number(variable::WORKERS)?);
        ClientConfig::new(text(variable::COORDINATOR)?, secret, rank, workers).configured(environment)
    }

    /// With the job's name and the settings of `environment`.
    pub(crate) fn configured(mut self, environment: &Environment) -> Result<ClientConfig> {
        self.job = environment.text(variable::JOB).unwrap_or_default().to_owned();
        self.network = network::from_environment(environment, 1)?;
        self.connect_timeout = environment.seconds(&settings::JOIN_TIMEOUT)?;
        self.wait_timeout = environment.seconds(&settings::WAIT_TIMEOUT)?;
        self.progress = environment.value(variable::PROGRESS, Progress::EXPECTED)?.unwrap_or_default();
        self.pull = environment.parsed(&settings::PULL)?;
        self.limits = WorkerLimits::from_environment(environment)?;
        Ok(self)
    }

    /// Worker `rank` of `workers` of the job that `bootstrap` leads to, over the interface by which this host reaches it.
    pub fn joining(bootstrap: &Bootstrap, rank: Rank, workers: u32) -> Result<ClientConfig> {
        let (address, secret) = (bootstrap.address(), bootstrap.secret().clone());
        let mut config = ClientConfig::new(&address.to_string(), secret, rank, workers);
        config.job = bootstrap.job().to_owned();
        config.network.interface = interface::facing(address)?;
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
            connect_timeout: DEFAULT_JOIN_TIMEOUT,
            wait_timeout: DEFAULT_WAIT_TIMEOUT,
            progress: Progress::default(),
            pull: PullMode::default(),
            limits: WorkerLimits::default(),
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
    agreed: Agreed,
    /// The longest body of a frame, in bytes.
    payload_bytes: usize,
    /// The memory that answers of pulls come in.
    receive: Pool,
    /// Before what it drives: it ends first.
    progress: Mutex<Option<ProgressThread>>,
    driver: Arc<Driver>,
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
        config.limits.check()?;
        let deadline = Deadline::after(Instant::now(), config.connect_timeout);
        let joined = bootstrap::join(&config, deadline)?;
        // From here on the control thread drives the links: an endpoint can already be lost and opened anew.
        let control = ControlThread::start(joined.links, joined.shared.clone())?;
        let driver = Driver::new(joined.engine, joined.shared);
        let inner =
            Inner::connect(config, (joined.view, joined.filters, joined.agreed), driver, control, deadline)?;
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

    /// Who moves the values of its pulls, of tables that are published in epochs.
    pub fn pull_mode(&self) -> PullMode {
        self.inner.config.pull
    }

    /// The table, published in epochs where this client reads its pulls (`PullMode::Read`) and tables like it can be. All workers have
    /// to say the same.
    pub fn publishing(&self, spec: TableSpec) -> TableSpec {
        let dense = matches!(spec.kind, TableKind::Dense { .. });
        match self.inner.config.pull == PullMode::Read && dense && spec.pull_filters.is_empty() {
            true => spec.publish(Publish::epochs(EPOCHS)),
            false => spec,
        }
    }

    /// What the data travels by.
    pub fn transport(&self) -> String {
        self.inner.driver.engine().transport_name()
    }

    /// What the job's nodes have agreed to carry data by.
    pub(crate) fn agreed(&self) -> Agreed {
        self.inner.agreed
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
        let waited_for = |engine: &Engine| engine.keeps_clock_open().unwrap_or_default().to_owned();
        let clock = self.inner.driver.drive(|| self.inner.deadline(), waited_for, Engine::end_clock)?;
        self.inner.control.shared().clock.store(clock, Ordering::Relaxed);
        self.inner.control.cut(|cuts| cuts.advanced(clock));
        Ok(clock)
    }

    /// Keeps `state`, opaque and of at most 64 KiB, as what this worker needs to begin the clock that it is in: a checkpoint at this
    /// clock holds it. Call it in every clock, before anything of that clock is pushed; the first call of a clock counts for a
    /// checkpoint that is due, and where there is none what was saved last. It is a copy of the bytes, and sends nothing unless a
    /// checkpoint is due.
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/in_process.rs"));
    /// # use windlass::Client;
    /// # fn main() -> windlass::Result<()> {
    /// # let job = InProcess::start()?;
    /// # let client = Client::connect(job.config())?;
    /// let from = client.resumed().map_or(0, |(_, state)| state[0]); // 0 where the job is not resumed
    /// for step in from..10 {
    ///     client.save_state(&[step])?;
    ///     // push, pull
    ///     client.clock()?;
    /// }
    /// # client.finalize()?;
    /// # job.end()
    /// # }
    /// ```
    pub fn save_state(&self, state: &[u8]) -> Result<()> {
        if state.len() > MAX_STATE {
            return Err(Error::config("state", format!("at most {MAX_STATE} bytes"), state.len()));
        }
        self.inner.control.cut(|cuts| cuts.save(state));
        Ok(())
    }

    /// What this worker goes on from, in a job that was resumed: the clock that it is in, and what it saved last at or before it
    /// (nothing if it never did). `None` in a job that begins.
    pub fn resumed(&self) -> Option<(Clock, Vec<u8>)> {
        self.inner.control.shared().cuts().beginning().cloned()
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

    /// Sends what was queued. Small pushes and pulls are gathered, for each server thread, until one of its frames is full,
    /// it has nothing else to do, or something is waited for; this sends them now. Does not block.
    pub fn flush(&self) -> Result<()> {
        let mut engine = self.inner.driver.engine();
        self.inner.driver.rouse();
        engine.flush();
        engine.progress().map(drop)
    }

    /// This worker pushes nothing from its present clock on: nobody waits for it any more. Blocks until all that it sent
    /// has been taken by the servers. It may still pull. Refused while its present clock holds pushes under Bsp.
    pub fn finish(&self) -> Result<()> {
        self.inner.finish()
    }

    /// Blocks until all that was sent has been taken by the servers and every worker that has not left is here, too.
    /// Refused while the present clock holds pushes under Bsp.
    pub fn barrier(&self) -> Result<()> {
        let deadline = self.inner.deadline();
        self.inner.until_taken(deadline, Engine::settle)?;
        let passed = self.inner.control.barrier()?;
        // Answers that nobody has waited for keep coming: left in the sockets they would hold the servers' reply buffers,
        // and another worker may need one to get here.
        let waited_for = |_: &Engine| "the other workers at a barrier".to_owned();
        let here = |engine: &mut Engine| match passed.take()? {
            Some(()) => Ok(Some(())),
            None => engine.check().map(|()| None),
        };
        self.inner.wait(|| deadline, waited_for, here)
    }

    /// Finishes, and leaves the job in order. Dropping a client without it counts as a failure of this worker.
    pub fn finalize(self) -> Result<()> {
        self.inner.finish()?;
        self.inner.end_progress();
        self.inner.control.finish()
    }

    /// Ends the job for everybody: each node gets `reason` as its error.
    pub fn abort(self, reason: &str) {
        self.inner.end_progress();
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
    /// Waits until the engine's endpoints are connected.
    fn connect(
        config: ClientConfig,
        (view, filters, agreed): (View, Vec<(String, Vec<String>)>, Agreed),
        driver: Driver,
        control: ControlThread,
        deadline: Deadline,
    ) -> Result<Inner> {
        let waited_for = |_: &Engine| "the endpoints of the servers".to_owned();
        let connected = |engine: &mut Engine| {
            Ok(engine.connected().then(|| (engine.payload_bytes(), engine.receive_memory())))
        };
        let (payload_bytes, receive) = driver.drive(|| deadline, waited_for, connected)?;
        let driver = Arc::new(driver);
        control.shared().drive_by(&driver);
        let progress = match config.progress {
            Progress::Caller => None,
            Progress::Thread => Some(ProgressThread::start(driver.clone())?),
        };
        let progress = Mutex::new(progress);
        Ok(Inner { view, filters, agreed, payload_bytes, receive, progress, driver, control, config })
    }

    fn finish(&self) -> Result<()> {
        self.until_taken(self.deadline(), Engine::finish)?;
        self.control.cut(Cuts::finish);
        Ok(())
    }

    fn until_taken(
        &self,
        deadline: Deadline,
        done: impl FnMut(&mut Engine) -> Result<Option<()>>,
    ) -> Result<()> {
        let waited_for = |_: &Engine| "the servers to take what was sent".to_owned();
        self.driver.drive(|| deadline, waited_for, done)
    }

    /// Waits as [`Driver::drive`] does; a timeout says which workers are behind.
    fn wait<T>(
        &self,
        deadline: impl FnOnce() -> Deadline,
        waited_for: impl Fn(&Engine) -> String,
        done: impl FnMut(&mut Engine) -> Result<Option<T>>,
    ) -> Result<T> {
        let mut peers = None;
        // Asked for before the deadline, so that it is kept also when the Coordinator does not answer.
        let watch = |deadline: &Deadline, now| {
            if peers.is_none() && deadline.left(now) <= (deadline.given() / 4).min(ASK_AHEAD) {
                peers = Some(self.control.ask_peers());
            }
        };
        let waited = self.driver.drive_watching(deadline, watch, waited_for, done);
        waited.map_err(|error| match (error, peers) {
            (Error::Timeout { waited_for, after }, Some(Ok(peers))) => {
                let behind = peers.within(LAST_MOMENT).ok().flatten().map(|peers| laggards(&peers));
                let waited_for = format!("{waited_for}{}", behind.unwrap_or_default());
                Error::Timeout { waited_for, after }
            }
            (error, _) => error,
        })
    }

    fn end_progress(&self) {
        let thread = self.progress.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(thread);
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(Instant::now(), self.config.wait_timeout)
    }
}

/// Which workers are furthest behind, for the message of a timeout.
fn laggards(peers: &[PeerStatus]) -> String {
    let slowest = peers.iter().map(|p| p.clock).min().unwrap_or(0);
    let behind = peers.iter().filter(|p| p.clock == slowest);
    let ranks: Vec<String> = behind.map(|p| p.rank.to_string()).collect();
    format!("; furthest behind, in clock {slowest}: worker {}", ranks.join(", "))
}
