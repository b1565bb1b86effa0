//! A server process: one control thread, and one reactor per shard.

mod beside;
mod control;
pub mod coordinator;
// Open to tests/fuzz, which drives the way of a request without a network; no part of the library.
#[doc(hidden)]
pub mod core;
mod cut;
mod cuts;
mod disks;
mod keeper;
#[doc(hidden)]
pub mod link;
mod pin;
mod reactor;
mod signal;
#[cfg(test)]
pub(crate) mod simulated;
mod supply;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, bounded};

use crate::checkpoint::Storage;
use crate::config::{Environment, Network, Pin, Polling, ServerLimits, TransportKind, settings, variable};
use crate::control::{Hub, HubConfig, HubWaker, Limits, this_process};
use crate::error::{Error, Result};
use crate::kernels;
use crate::proto::MOST_UNDER_WAY;
use crate::proto::bootstrap::Bootstrap;
use crate::proto::secret::Secret;
use crate::store::{Optimizer, Optimizers};
use crate::transport::choice::{self, Seat};
use crate::transport::topology::{self, RailPort, Topology};
use crate::transport::{cpus, interface, network, park::Waker};
use crate::types::{OptimizerSpec, Rank, Role, ShardId};
use control::Control;
use cuts::{Places, folder};
use pin::Plan;
use reactor::{Command, Reactor, Reports};
use signal::Watcher;
use supply::Supplier;

pub use pin::Place;

/// Commands that may wait for one server thread. Workers get half of them, so that the Coordinator's always find room.
const COMMANDS: usize = 4096;

/// Makes a [`ServerHandle`]; see [`Server::builder`].
#[derive(Debug)]
pub struct ServerBuilder {
    coordinator: String,
    secret: Secret,
    job: String,
    rank: Option<Rank>,
    threads: u32,
    network: Network,
    optimizers: Optimizers,
    limits: ServerLimits,
    pin: Pin,
    place: Place,
    sysfs: PathBuf,
    sigterm: bool,
    checkpoints: Places,
}

/// The server half of the library.
///
/// ```
/// use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
/// use windlass::{Secret, Server};
/// # fn main() -> windlass::Result<()> {
/// let secret = Secret::generate()?; // or `Secret::from_file`
/// // Of one server and one worker; elsewhere `windlass coordinator` does this.
/// let config = CoordinatorServerConfig::new(secret.clone(), "my job", 1, Some(1));
/// let coordinator = CoordinatorServer::bind(config)?;
/// let address = coordinator.address().to_string();
/// let coordinator = std::thread::spawn(move || coordinator.run());
///
/// let server = Server::builder(&address, secret.clone()).job("my job").threads(2).start()?;
/// # let mut config = windlass::ClientConfig::new(&address, secret, 0, 1);
/// # config.job = "my job".to_owned();
/// # windlass::Client::connect(config)?.finalize()?;
/// server.run()?; // until the job has ended
/// # coordinator.join().unwrap().map(drop)
/// # }
/// ```
#[derive(Debug)]
pub struct Server;

impl Server {
    /// A server of the job whose Coordinator is at `coordinator` (`HOST:PORT`).
    pub fn builder(coordinator: &str, secret: Secret) -> ServerBuilder {
        ServerBuilder {
            coordinator: coordinator.to_owned(),
            secret,
            job: String::new(),
            rank: None,
            threads: 1,
            network: Network::default(),
            optimizers: Optimizers::default(),
            limits: ServerLimits::default(),
            pin: Pin::default(),
            place: Place::default(),
            sysfs: topology::SYSFS.into(),
            sigterm: false,
            checkpoints: Places::default(),
        }
    }

    /// A server of the job that `bootstrap` leads to, over the interface by which this host reaches it.
    pub fn joining(bootstrap: &Bootstrap) -> Result<ServerBuilder> {
        let (address, secret) = (bootstrap.address(), bootstrap.secret().clone());
        let network = Network { interface: interface::facing(address)?, ..Network::default() };
        Ok(Server::builder(&address.to_string(), secret).job(bootstrap.job()).network(network))
    }

    /// The server that the launcher (`windlass run`) made this process: all from its `WINDLASS_*` variables, and from the
    /// configuration file that `WINDLASS_CONFIG` names.
    pub fn from_env() -> Result<ServerBuilder> {
        Server::from_environment(&Environment::capture().with_file(None)?)
    }

    /// The same from a snapshot of the settings.
    pub fn from_environment(environment: &Environment) -> Result<ServerBuilder> {
        kernels::choose_by(environment)?;
        let missing =
            |name: &str| Error::config(name, "a value: start this program with `windlass run`", "none");
        let text = |name| environment.text(name).ok_or_else(|| missing(name));
        let secret = Secret::from_hex(text(variable::SECRET)?)?;
        Server::configured(text(variable::COORDINATOR)?, secret, environment)
    }

    /// The same with another Coordinator and secret than `environment` names.
    pub(crate) fn configured(
        coordinator: &str,
        secret: Secret,
        environment: &Environment,
    ) -> Result<ServerBuilder> {
        let threads = environment.number(&settings::THREADS)? as u32;
        let pin = environment.value(variable::PIN, "auto, none or a list of CPUs")?.unwrap_or_default();
        let place = Place {
            local_index: environment.value(variable::LOCAL_INDEX, "a number")?,
            pollers: environment.value(variable::POLLERS, "a number")?,
        };
        Ok(Server::builder(coordinator, secret)
            .job(environment.text(variable::JOB).unwrap_or_default())
            .rank(environment.value(variable::RANK, "a number")?)
            .threads(threads)
            .network(network::from_environment(environment, threads as usize)?)
            .limits(ServerLimits::from_environment(environment)?)
            .checkpoints(
                folder(environment.chosen(&settings::CHECKPOINT)),
                folder(
                    environment
                        .chosen(&settings::RESUME)
                        .filter(|text| ![settings::AUTO, settings::NEW].contains(text)),
                ),
            )
            .pin(pin, place)
            .sysfs(environment.text(variable::SYSFS).unwrap_or(topology::SYSFS)))
    }
}

impl ServerBuilder {
    /// The job's name; every node of it must say the same.
    pub fn job(mut self, job: &str) -> ServerBuilder {
        self.job = job.to_owned();
        self
    }

    /// This server's rank; the Coordinator chooses one when it is not given.
    pub fn rank(mut self, rank: Option<Rank>) -> ServerBuilder {
        self.rank = rank;
        self
    }

    /// Number of server threads, each with a shard of its own.
    pub fn threads(mut self, threads: u32) -> ServerBuilder {
        self.threads = threads;
        self
    }

    /// Where to listen, and by which transport.
    pub fn network(mut self, network: Network) -> ServerBuilder {
        self.network = network;
        self
    }

    /// Bounds of memory and patience.
    pub fn limits(mut self, limits: ServerLimits) -> ServerBuilder {
        self.limits = limits;
        self
    }

    /// On which CPUs the threads run, inside the affinity mask of the process that starts them ([`Pin::Auto`] by default,
    /// which pins only where a launcher says what else runs on the host).
    pub fn pin(mut self, pin: Pin, place: Place) -> ServerBuilder {
        self.pin = pin;
        self.place = place;
        self
    }

    /// Where this machine's devices and CPUs are described, by which threads are pinned near their NICs; `/sys` by default.
    pub fn sysfs(mut self, root: impl Into<PathBuf>) -> ServerBuilder {
        self.sysfs = root.into();
        self
    }

    /// Where checkpoints are: the directory that they are written to (`--checkpoint`), and the one that this job goes on from, where
    /// that is not one of the first. Whether and when there are any the Coordinator says.
    pub fn checkpoints(mut self, folder: Option<PathBuf>, resume: Option<PathBuf>) -> ServerBuilder {
        self.checkpoints = Places { folder, resume, ..self.checkpoints };
        self
    }

    /// What the checkpoints are on, in place of the operating system's files. The Coordinator and all servers need the same.
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> ServerBuilder {
        self.checkpoints.storage = storage;
        self
    }

    /// A SIGTERM to this process means [`ServerHandle::stop`], from [`ServerBuilder::start`] on. For a program that is a server
    /// and nothing else: once the handle is dropped SIGTERM has no effect on the process.
    pub fn stop_on_sigterm(mut self) -> ServerBuilder {
        self.sigterm = true;
        self
    }

    /// Makes an update rule known by `name`, for tables that ask for it.
    pub fn optimizer(
        mut self,
        name: &str,
        build: impl Fn(&OptimizerSpec) -> Result<Box<dyn Optimizer>> + Send + Sync + 'static,
    ) -> ServerBuilder {
        self.optimizers.add(name, build);
        self
    }

    /// Starts the threads and asks the Coordinator to let this server take part.
    pub fn start(self) -> Result<ServerHandle> {
        if self.threads == 0 || self.threads > 256 {
            return Err(Error::config("threads", "1 to 256", self.threads));
        }
        let signals = if self.sigterm { signal::catch()? } else { None };
        let offer = choice::offer(&self.network)?;
        let cpus = self.cpus(&choice::rails(&self.network, &offer.kinds)?)?;
        let first = self.place.first(self.threads);
        let identity = this_process(Role::Server, self.rank)?;
        let mut config = HubConfig::new(self.secret.clone(), &self.job, identity);
        config.limits = Limits::of(&self.network);
        let mut hub = Hub::new(config)?;
        let address = hub
            .listen(self.network.interface, self.network.ports.clone())
            .map_err(|e| e.chosen_by(settings::LISTENING))?;
        let coordinator = hub.dial(&self.coordinator, "the coordinator")?;
        let hub_waker = hub.waker();
        let stopping = Arc::new(AtomicBool::new(false));
        let (reports_in, reports) = bounded(COMMANDS);
        let waker = hub_waker.clone();
        let asker: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            // A hub that can't be woken looks at its reports at its next keepalive.
            let _ = waker.wake();
        });
        let reports_of = |thread| Reports::new(thread, reports_in.clone(), asker.clone());
        let mut threads = Vec::new();
        for thread in 0..self.threads {
            let place = cpus.get(thread as usize).cloned();
            threads.push(self.spawn_reactor(thread, offer.kinds.clone(), place, reports_of(thread))?);
        }
        let stop_timeout = self.limits.stop_timeout;
        let ends = (stopping.clone(), stop_timeout);
        let control = Control::new(
            hub,
            coordinator,
            self.rank,
            address,
            (threads, first),
            reports,
            ends,
            offer,
            self.checkpoints,
            reports_of(0),
        );
        let handle = spawn("wl-ctl", move || control.run())?;
        let watch = |signals| {
            let (stopping, waker) = (stopping.clone(), hub_waker.clone());
            Watcher::start(signals, move || ask_to_stop(&stopping, &waker))
        };
        let sigterm = signals.map(watch).transpose()?;
        Ok(ServerHandle { stopping, waker: hub_waker, thread: Mutex::new(Some(handle)), _sigterm: sigterm })
    }

    /// The CPU of each thread, with those of who works beside it; none where they are not pinned. The log says where each sits, and why.
    fn cpus(&self, rails: &[RailPort]) -> Result<Vec<Cpus>> {
        let topology = Topology::read(&self.sysfs);
        let near: Vec<&[usize]> = rails.iter().map(|rail| topology.cpus_near(&rail.device)).collect();
        let allowed = cpus::allowed();
        let cpus = match pin::plan(&self.pin, self.threads, self.place, allowed.as_deref(), &near)? {
            Plan::Pinned(cpus) => {
                tracing::info!("server threads are pinned to CPUs {}", Pin::List(cpus.clone()));
                cpus
            }
            Plan::Free(why) => {
                tracing::info!("server threads are not pinned: {why}");
                Vec::new()
            }
        };
        let first = self.place.first(self.threads);
        let allowed = allowed.unwrap_or_default();
        if let Some(far) = pin::far(&cpus, first, &allowed, &near) {
            tracing::warn!("not all server threads run next to their NICs: {far}");
        }
        for thread in 0..self.threads {
            let (rail, vector) = choice::place(first.saturating_add(thread), rails.len());
            let Some(port) = rails.get(rail) else { break };
            let cpu = cpus.get(thread as usize).map_or_else(
                || "any CPU".to_owned(),
                |&cpu| format!("CPU {cpu} (NUMA node {})", known(topology.node_of(cpu))),
            );
            let node = known(topology.device(&port.device).and_then(|device| device.node));
            tracing::info!(
                "over verbs server thread {thread} has rail {rail}, {port} (NUMA node {node}), completion vector {vector}, {cpu}"
            );
        }
        let beside = |cpu| pin::beside(&allowed, topology.beside(cpu));
        Ok(cpus.into_iter().map(|own| Cpus { own, beside: beside(own) }).collect())
    }

    fn spawn_reactor(
        &self,
        thread: u32,
        kinds: Vec<TransportKind>,
        place: Option<Cpus>,
        reports: Reports,
    ) -> Result<ServerThread> {
        let (commands, inbox) = bounded(COMMANDS);
        let waker = Waker::new()?;
        // The rank may only be known after the Coordinator's welcome; `Begin` brings it.
        let id = ShardId { server: self.rank.unwrap_or(0), thread };
        let stop = Arc::new(AtomicBool::new(false));
        let (mut network, limits, optimizers) = (self.network.clone(), self.limits, self.optimizers.clone());
        // A worker writes to slots and sends messages, and nothing else.
        network.rdma.receives = (self::core::MAX_SLOTS + MOST_UNDER_WAY) as u32;
        let (stopped, woken) = (stop.clone(), waker.clone());
        let seat = Seat::Listens(self.place.first(self.threads).saturating_add(thread));
        let (told, made) = bounded(1);
        // Pinned first, so that all of its memory, its transport's queues included, is first touched, and so placed, where it runs.
        let handle = spawn(&format!("wl-srv-{thread}"), move || {
            if network.polling == Polling::Block {
                // Where it may not it is only slower.
                let _ = cpus::wake_politely();
            }
            let build = |&kind: &TransportKind| choice::build(&network, kind, seat);
            let transports = place
                .as_ref()
                .map_or(Ok(()), |place| cpus::pin_to(place.own))
                .and_then(|()| kinds.iter().map(build).collect::<Result<Vec<_>>>());
            let mut transports = match transports {
                Ok(transports) => transports,
                // Whoever starts this thread waits for the outcome.
                Err(error) => return drop(told.send(Err(error))),
            };
            let _ = told.send(Ok(()));
            let reactor = Reactor::new(
                id,
                transports.remove(0),
                transports,
                network,
                limits,
                optimizers,
                Supplier::new(place.map(|place| place.beside).unwrap_or_default()),
                inbox,
                stopped,
                woken,
                reports,
            );
            reactor.run();
        })?;
        let server = ServerThread { commands, stop, waker, handle: Some(handle) };
        match made.recv() {
            Ok(outcome) => outcome.map(|()| server),
            Err(_) => Err(Error::Aborted { reason: format!("server thread {thread} panicked at its start") }),
        }
    }
}

/// Where a pinned server thread runs, and who works beside it.
#[derive(Clone)]
struct Cpus {
    own: usize,
    /// As [`pin::beside`] gives them.
    beside: Vec<usize>,
}

/// A NUMA node, for messages.
fn known(node: Option<u32>) -> String {
    node.map_or_else(|| "unknown".to_owned(), |node| node.to_string())
}

fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|e| Error::io("start thread", name, e))
}

/// One running reactor.
struct ServerThread {
    commands: Sender<Command>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    handle: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Hands a command over. False when the thread is gone or its inbox is full.
    fn tell(&self, command: Command) -> bool {
        let told = self.commands.try_send(command).is_ok();
        self.waker.wake();
        told
    }

    /// Hands over what a worker asked for. False when the thread is gone or has too much to do already.
    fn ask(&self, command: Command) -> bool {
        self.commands.len() < COMMANDS / 2 && self.tell(command)
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(handle) = self.handle.take() {
            // A reactor that panicked has nothing left to release.
            let _ = handle.join();
        }
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct ServerHandle {
    stopping: Arc<AtomicBool>,
    waker: HubWaker,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
    _sigterm: Option<Watcher>,
}

impl ServerHandle {
    /// Blocks until the job has ended or [`ServerHandle::stop`] is called; an error says why the job failed.
    pub fn run(&self) -> Result<()> {
        let handle = match self.thread.lock() {
            Ok(mut slot) => slot.take(),
            Err(poisoned) => poisoned.into_inner().take(),
        };
        match handle.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(Error::Aborted { reason: "the server's control thread panicked".to_owned() }),
        }
    }

    /// Stops the server: it takes nothing more, answers what it has taken, at most for
    /// [`ServerLimits::stop_timeout`], and releases its sockets, threads and memory. In mid-job that ends the job, and the
    /// other nodes' error names this server. May be called again. While another thread is in [`ServerHandle::run`], that
    /// one waits for the end, and this call does not.
    pub fn stop(&self) -> Result<()> {
        ask_to_stop(&self.stopping, &self.waker);
        self.run()
    }
}

fn ask_to_stop(stopping: &AtomicBool, waker: &HubWaker) {
    stopping.store(true, Ordering::Release);
    // Without the wake the thread notices at its next keepalive.
    let _ = waker.wake();
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
