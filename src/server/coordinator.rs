//! The Coordinator as a process: the state machine of [`crate::cluster::coordinator`] on a control hub.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};

use crate::cluster::coordinator::{Coordinator, CoordinatorConfig, Input, Output, State};
use crate::config::{Environment, LinkLimits, Network, settings};
use crate::control::{Event, Hub, HubConfig, HubWaker, Limits, LinkId, this_process};
use crate::error::{Error, Result};
use crate::proto::bootstrap::Bootstrap;
use crate::proto::control::ControlMessage;
use crate::proto::secret::Secret;
use crate::time::{SystemTime, TimeSource};
use crate::transport::choice::Agreed;
use crate::types::{Clock, Identity, Rank, Role};

pub use super::keeper::{Checkpoints, Resume};
use super::keeper::{Done, Keeper};
use super::signal::{self, Watcher};

/// How long the last words may take to reach everybody.
const FAREWELL: Duration = Duration::from_secs(2);
/// When it is first said who has not joined yet, and how often from then on.
const FIRST_REMINDER: Duration = Duration::from_secs(5);
const REMINDER: Duration = Duration::from_secs(30);
/// A poll without a deadline still ends now and then; nothing depends on it.
const IDLE: Duration = Duration::from_secs(60);

/// What a Coordinator needs.
#[derive(Debug, Clone)]
pub struct CoordinatorServerConfig {
    /// Where to listen; 127.0.0.1 by default.
    pub ip: IpAddr,
    /// The first free port of these; without them the system chooses.
    pub ports: Option<RangeInclusive<u16>>,
    /// The job's secret.
    pub secret: Secret,
    /// The job's name.
    pub job: String,
    /// Host name and process id, for messages.
    pub process: String,
    /// What the job is to look like.
    pub cluster: CoordinatorConfig,
    /// What its control hub keeps to.
    pub limits: Limits,
    /// Where checkpoints are kept, and when they are made.
    pub checkpoints: Checkpoints,
}

impl CoordinatorServerConfig {
    /// Takes the limits that `environment` gives.
    pub fn limited_by(&mut self, environment: &Environment) -> Result<()> {
        self.limits = Limits::of(&Network {
            peer_timeout: environment.seconds(&settings::PEER_TIMEOUT)?,
            limits: LinkLimits::from_environment(environment)?,
            ..Network::default()
        });
        self.cluster.gather_timeout = Some(environment.seconds(&settings::JOIN_TIMEOUT)?);
        self.cluster.tables = environment.number(&settings::TABLES)? as usize;
        Ok(())
    }

    /// On 127.0.0.1, at a port that the system chooses.
    pub fn new(secret: Secret, job: &str, servers: u32, workers: Option<u32>) -> CoordinatorServerConfig {
        CoordinatorServerConfig {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ports: None,
            secret,
            job: job.to_owned(),
            process: format!("pid {}", std::process::id()),
            cluster: CoordinatorConfig::new(servers, workers),
            limits: Limits::default(),
            checkpoints: Checkpoints::default(),
        }
    }
}

/// How a job went that ended well, or as it was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The number and clock of the checkpoint with which it ended before it was done, as it was told to.
    pub saved: Option<(u64, Clock)>,
    /// Number of servers.
    pub servers: u32,
    /// Number of workers.
    pub workers: u32,
    /// Number of tables.
    pub tables: usize,
}

/// Ends a running Coordinator from another thread, or tells it of processes that ended.
#[derive(Debug, Clone)]
pub struct StopHandle {
    stop: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    ended: Sender<Ended>,
    waker: HubWaker,
}

/// The process of a node has ended.
#[derive(Debug)]
struct Ended {
    role: Role,
    rank: Rank,
    /// For messages.
    process: String,
}

impl StopHandle {
    /// Ends the job, if it still runs, with a last checkpoint where it makes any. May be called again.
    pub fn end(&self) {
        self.end.store(true, Ordering::Release);
        self.wake();
    }

    /// The process that was to be this node has ended. Aborts the job if the node has not joined yet: nobody else would see it.
    pub fn ended(&self, role: Role, rank: Rank, process: &str) {
        // Fails only when the Coordinator is gone.
        let _ = self.ended.send(Ended { role, rank, process: process.to_owned() });
        self.wake();
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::warn!("coordinator: {error}");
        }
    }

    /// Aborts the job, if it still runs. May be called again.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }
}

/// A bound Coordinator, see [`CoordinatorServer::run`].
pub struct CoordinatorServer {
    hub: Hub,
    core: Coordinator,
    address: SocketAddr,
    servers: u32,
    stop: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    keeper: Keeper,
    /// Why the job can't go on from its checkpoint.
    unusable: Option<Error>,
    when_saved: Option<Box<dyn FnOnce(u64, Clock) + Send>>,
    signals: Option<Watcher>,
    /// One message for each process of the job at most.
    ended: (Sender<Ended>, Receiver<Ended>),
    secret: Secret,
    job: String,
    clock: SystemTime,
    /// It has said by what the job's data travels.
    told: bool,
}

impl CoordinatorServer {
    /// Listens; nodes may dial from now on.
    pub fn bind(config: CoordinatorServerConfig) -> Result<CoordinatorServer> {
        let servers = config.cluster.servers;
        let mut cluster = config.cluster;
        let keeper = Keeper::new(&config.checkpoints, &mut cluster)?;
        let core = Coordinator::new(cluster)?;
        let incarnation = getrandom::u64()
            .map_err(|e| Error::io("getrandom", "incarnation", std::io::Error::other(e.to_string())))?;
        let identity = Identity { role: Role::Coordinator, rank: None, incarnation, process: config.process };
        let mut hub_config = HubConfig::new(config.secret.clone(), &config.job, identity);
        hub_config.limits = config.limits;
        let mut hub = Hub::new(hub_config)?;
        let address = hub.listen(config.ip, config.ports)?;
        let stop = Arc::new(AtomicBool::new(false));
        let end = Arc::new(AtomicBool::new(false));
        let ended = crossbeam::channel::unbounded();
        let (secret, job) = (config.secret, config.job);
        Ok(CoordinatorServer {
            hub,
            core,
            address,
            servers,
            stop,
            end,
            keeper,
            unusable: None,
            when_saved: None,
            signals: None,
            ended,
            secret,
            job,
            clock: SystemTime,
            told: false,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A SIGTERM or SIGUSR1 to this process means [`StopHandle::end`]. For a program that is a Coordinator and nothing else: once it
    /// is dropped these signals have no effect on the process.
    pub fn end_on_signals(&mut self) -> Result<()> {
        let handle = self.stop_handle();
        self.signals = Some(Watcher::start(signal::catch_end()?, move || handle.end())?);
        Ok(())
    }

    /// Called when the job ends because it was told to and is saved, before its nodes go: with the cut's number and clock.
    pub fn when_saved(&mut self, call: impl FnOnce(u64, Clock) + Send + 'static) {
        self.when_saved = Some(Box::new(call));
    }

    /// A handle that ends [`CoordinatorServer::run`].
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle {
            stop: self.stop.clone(),
            end: self.end.clone(),
            ended: self.ended.0.clone(),
            waker: self.hub.waker(),
        }
    }

    /// What other processes need to take part, for a caller's own means to carry. The job's name takes at most 95 bytes.
    pub fn bootstrap(&self) -> Result<Bootstrap> {
        let this = this_process(Role::Coordinator, None)?.process;
        let host = this.split(' ').next().unwrap_or_default();
        Bootstrap::new(self.address, self.secret.clone(), &self.job, host)
    }

    /// Serves until the job is over: Ok when all workers have finished, [`Error::Aborted`] when a node was lost or gave up, or
    /// when it was stopped. Either way everybody has been told, as far as they could be reached.
    pub fn run(mut self) -> Result<Outcome> {
        let outcome = self.serve();
        self.keeper.join(FAREWELL);
        outcome
    }

    fn serve(&mut self) -> Result<Outcome> {
        let mut events = Vec::new();
        let mut out = Vec::new();
        let mut remind_at = self.clock.now() + FIRST_REMINDER;
        loop {
            let now = self.clock.now();
            let mut patience = self.core.next_deadline().map_or(IDLE, |at| at.saturating_duration_since(now));
            if matches!(self.core.state(), State::Gathering) {
                if now >= remind_at {
                    tracing::warn!("coordinator: still waiting for {}", self.core.missing());
                    remind_at = now + REMINDER;
                }
                patience = patience.min(remind_at - now);
            }
            self.hub.poll(&mut events, patience)?;
            for event in events.drain(..) {
                self.take(event, &mut out);
            }
            for Ended { role, rank, process } in self.ended.1.try_iter() {
                self.core.process_ended(role, rank, &process, &mut out);
            }
            if self.stop.load(Ordering::Acquire) {
                self.core.abort("the coordinator was stopped", &mut out);
            }
            if self.end.load(Ordering::Acquire) {
                self.core.end(&mut out);
            }
            while let Some(done) = self.keeper.done() {
                self.kept(done, &mut out);
            }
            if let Some((cut, clock)) = self.core.saved()
                && let Some(call) = self.when_saved.take()
            {
                call(cut, clock);
            }
            self.core.tick(self.clock.now(), &mut out);
            self.apply(&mut out);
            match self.core.state() {
                State::Failed(reason) => {
                    let reason = reason.clone();
                    let outcome = self.outcome();
                    self.hub.shut_down(FAREWELL)?;
                    let error = self.unusable.take().unwrap_or(Error::Aborted { reason });
                    return outcome.saved.map_or(Err(error), |_| Ok(outcome));
                }
                State::Done => {
                    let outcome = self.outcome();
                    self.hub.shut_down(FAREWELL)?;
                    return Ok(outcome);
                }
                _ => {}
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let (saved, workers) = (self.core.saved(), self.core.workers().unwrap_or(0));
        Outcome { saved, servers: self.servers, workers, tables: self.core.tables() }
    }

    fn take(&mut self, event: Event, out: &mut Vec<Output>) {
        let (link, input) = match event {
            Event::Up { link, peer, address, .. } => (link, Input::Up { peer, address }),
            Event::Message { link, message } => (link, Input::Message(message)),
            Event::Down { link, reason, .. } => (link, Input::Down { reason: bare(reason) }),
            // The hub has logged it; the job goes on.
            Event::Refused { .. } => return,
        };
        self.core.handle(link.0, input, self.clock.now(), out);
        self.apply(out);
    }

    /// The keeper has done what it was asked for.
    fn kept(&mut self, done: Done, out: &mut Vec<Output>) {
        match done {
            Done::Committed(number, outcome) => {
                self.core.committed(number, outcome, self.clock.now(), out);
            }
            Done::Replaced(Ok(resumed)) => self.core.go_on_from(resumed, out),
            Done::Replaced(Err(_)) if !matches!(self.core.state(), State::Verifying) => {} // it has ended meanwhile
            Done::Replaced(Err(error)) | Done::Failed(error) => {
                self.core.abort(&error.to_string(), out);
                self.unusable = Some(error);
            }
        }
    }

    /// Says once what carries the data, and as a warning where that is not the best that some node has or wants.
    fn tell_of_transport(&mut self, output: &Output) {
        let Output::Send { message: ControlMessage::Agreed { transport, local, reason }, .. } = output else {
            return;
        };
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let agreed = Agreed { kind: *transport, local: *local };
        match reason.as_str() {
            "" => tracing::info!("coordinator: the job's data travels by {agreed}"),
            why => tracing::warn!("coordinator: the job falls back to {agreed}: {why}"),
        }
    }

    /// Does what the state machine says. A node that does not keep up is lost, which makes it say more.
    fn apply(&mut self, out: &mut Vec<Output>) {
        let mut todo: VecDeque<Output> = out.drain(..).collect();
        while let Some(output) = todo.pop_front() {
            self.tell_of_transport(&output);
            match output {
                Output::Send { link, message } => match self.hub.send(LinkId(link), &message) {
                    Ok(()) => {}
                    // Its Down is on its way, behind what the node said last: that it finished, or why it gave up.
                    Err(Error::PeerLost { .. }) => {}
                    Err(error) => {
                        self.hub.close(LinkId(link));
                        let input = Input::Down { reason: bare(error) };
                        self.core.handle(link, input, self.clock.now(), out);
                        todo.extend(out.drain(..));
                    }
                },
                Output::GiveUp { number } => self.keeper.give_up(number),
                Output::Damaged { number, damage } => {
                    self.keeper.replace(number, damage.into(), self.hub.waker());
                }
                Output::Commit { commit, tables } => {
                    self.keeper.commit(commit, tables, self.hub.waker());
                }
                Output::Close { link, reason } => {
                    tracing::warn!("coordinator: {reason}");
                    self.hub.close(LinkId(link));
                }
            }
        }
    }
}

/// The reason alone where the peer is named anyway.
fn bare(error: Error) -> String {
    match error {
        Error::PeerLost { reason, .. } => reason,
        other => other.to_string(),
    }
}
