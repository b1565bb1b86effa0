//! The Coordinator: who takes part, which tables there are, barriers, and the end. Sans-io.
//!
//! Links are numbers that the caller chose; every [`Output`] names the link that it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::catalogue::{Catalogue, Opening};
use super::cuts::{Commit, CutPlan, Cuts};
use crate::config::{DEFAULT_JOIN_TIMEOUT, DEFAULT_TABLES, TransportKind};
use crate::error::Error;
use crate::proto::control::{ControlMessage, Damage, MAX_NODES, PeerStatus, reason};
use crate::types::{Clock, Identity, Offer, Rank, Role, ServerInfo, TableId, TableSpec, View};

/// Tables that one worker may be waiting for at a time.
pub const MAX_OPENING: usize = 1024;
/// Barriers that one worker may be at at a time.
pub const MAX_BARRIERS: usize = 64;

/// What the job is to look like.
#[derive(Debug, Clone)]
pub struct CoordinatorConfig {
    /// Number of servers.
    pub servers: u32,
    /// Number of workers; without it the first worker's claim counts.
    pub workers: Option<u32>,
    /// How long after the first node the last may come; without it, for ever.
    pub gather_timeout: Option<Duration>,
    /// How long the servers may take to leave after the end.
    pub leave_timeout: Duration,
    /// The most tables.
    pub tables: usize,
    /// When checkpoints are made; without it never.
    pub cuts: Option<CutPlan>,
    /// What the job goes on from.
    pub resumed: Option<Resumed>,
}

impl CoordinatorConfig {
    /// With the defaults of the settings, and five seconds to leave.
    pub fn new(servers: u32, workers: Option<u32>) -> CoordinatorConfig {
        let leave_timeout = Duration::from_secs(5);
        CoordinatorConfig {
            servers,
            workers,
            gather_timeout: Some(DEFAULT_JOIN_TIMEOUT),
            leave_timeout,
            tables: DEFAULT_TABLES,
            cuts: None,
            resumed: None,
        }
    }
}

/// What happened on a link.
#[derive(Debug, Clone)]
pub enum Input {
    /// An authenticated peer is there.
    Up {
        /// Who.
        peer: Identity,
        /// From where.
        address: SocketAddr,
    },
    /// It said something.
    Message(ControlMessage),
    /// It is gone.
    Down {
        /// Why, without its name.
        reason: String,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send a message.
    Send {
        /// On this link.
        link: u64,
        /// This one.
        message: ControlMessage,
    },
    /// Close a link. No Down is expected for it.
    Close {
        /// This one.
        link: u64,
        /// Why, for the log; names the peer.
        reason: String,
    },
    /// A cut is given up: what is left of its files can go.
    GiveUp {
        /// Its number.
        number: u64,
    },
    /// The cut that the job was to go on from is damaged: call [`Coordinator::go_on_from`] with another one, or abort.
    Damaged {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Write the rest of a checkpoint, then call [`Coordinator::committed`].
    Commit {
        /// What it holds.
        commit: Commit,
        /// The tables by number.
        tables: Vec<TableSpec>,
    },
}

/// Where the job stands.
///
/// ```text
///  Gathering ──all are there──▶ Running ──all workers finished──▶ Leaving ──servers gone, or late──▶ Done
///      │  └──of a job that goes on──▶ Verifying ──its cut is whole──▶ Running
///      └──────────────────────────────────┴──a node is lost, or gives up──▶ Failed
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nodes are joining.
    Gathering,
    /// The servers read the cut that the job is to go on from.
    Verifying,
    /// The View is out.
    Running,
    /// The servers were told to end.
    Leaving,
    /// All is over and well.
    Done,
    /// The job is aborted, and why.
    Failed(String),
}

#[derive(Debug)]
struct Node {
    /// With the rank that it was given.
    identity: Identity,
    peer_address: IpAddr,
    joined: bool,
    finished: bool,
    /// What it can carry data by.
    offer: Offer,
    /// Barriers it is at.
    barriers: BTreeSet<u64>,
    /// Tables it waits for.
    opening: usize,
}

/// See the module's head.
#[derive(Debug)]
pub struct Coordinator {
    config: CoordinatorConfig,
    workers: Option<u32>,
    state: State,
    nodes: BTreeMap<u64, Node>,
    /// The links of the joined, by rank.
    server_links: BTreeMap<Rank, u64>,
    worker_links: BTreeMap<Rank, u64>,
    servers: BTreeMap<Rank, ServerInfo>,
    status: BTreeMap<Rank, (Clock, Vec<u8>)>,
    /// How many workers are at each barrier.
    barriers: BTreeMap<u64, usize>,
    catalogue: Catalogue,
    finished: u32,
    deadline: Option<Instant>,
    cuts: Option<Cuts>,
    /// Servers that have not read their part of the cut yet, and the first damage that one found.
    unverified: BTreeSet<Rank>,
    damage: Option<Damage>,
}

/// A peer's message that does not fit its role or the state: the reason for closing its link.
type Fault = String;

impl Coordinator {
    /// A job without nodes.
    pub fn new(config: CoordinatorConfig) -> Result<Coordinator, Error> {
        for (setting, count) in [("servers", Some(config.servers)), ("workers", config.workers)] {
            if count.is_some_and(|n| n == 0 || n as usize > MAX_NODES) {
                let found = format!("{}", count.unwrap_or(0));
                return Err(Error::config(setting, format!("1 to {MAX_NODES}"), found));
            }
        }
        let workers = config.resumed.as_ref().map(|resumed| resumed.states.len() as u32);
        if let (Some(saved), Some(asked)) = (workers, config.workers) {
            check_workers(saved, asked)?;
        }
        let first = config.resumed.as_ref().map_or(0, |resumed| resumed.clock);
        Ok(Coordinator {
            workers: config.workers.or(workers),
            cuts: config.cuts.map(|plan| Cuts::new(plan, first)),
            catalogue: Catalogue::new(config.tables),
            config,
            state: State::Gathering,
            nodes: BTreeMap::new(),
            server_links: BTreeMap::new(),
            worker_links: BTreeMap::new(),
            servers: BTreeMap::new(),
            status: BTreeMap::new(),
            barriers: BTreeMap::new(),
            finished: 0,
            deadline: None,
            unverified: BTreeSet::new(),
            damage: None,
        })
    }

    /// Where the job stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Number of tables in the catalogue.
    pub fn tables(&self) -> usize {
        self.catalogue.len()
    }

    /// Number of workers, once it is known.
    pub fn workers(&self) -> Option<u32> {
        self.workers
    }

    /// When [`Coordinator::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadline.into_iter().chain(self.cuts.as_ref().and_then(Cuts::due)).min()
    }

    /// Takes what happened on `link`.
    pub fn handle(&mut self, link: u64, input: Input, now: Instant, out: &mut Vec<Output>) {
        match input {
            Input::Up { peer, address } => self.up(link, peer, address.ip(), out),
            Input::Message(message) => {
                let over = matches!(self.state, State::Failed(_) | State::Done);
                if over || !self.nodes.contains_key(&link) {
                    return;
                }
                let name = message.name();
                if let Err(fault) = self.message(link, message, now, out) {
                    let reason = format!("{name}: {fault}");
                    let named = self.name(link);
                    out.push(Output::Close { link, reason: format!("{named} broke the protocol: {reason}") });
                    self.gone(link, &format!("broke the protocol: {reason}"), out);
                }
            }
            Input::Down { reason } => self.gone(link, &reason, out),
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.tick_cuts(now, out);
        if self.deadline.is_none_or(|at| at > now) {
            return;
        }
        self.deadline = None;
        match self.state {
            State::Gathering => {
                let patience = self.config.gather_timeout.unwrap_or_default();
                let missing = self.missing();
                self.abort(&format!("after {patience:?} these have not joined: {missing}"), out);
            }
            State::Leaving => self.state = State::Done,
            _ => {}
        }
    }

    /// The process that was to be this node has ended, as its launcher sees. Whoever has joined is watched by its link.
    pub fn process_ended(&mut self, role: Role, rank: Rank, process: &str, out: &mut Vec<Output>) {
        let links = if role == Role::Server { &self.server_links } else { &self.worker_links };
        if self.state == State::Gathering && !links.contains_key(&rank) {
            self.abort(&format!("{process}, {role} {rank}, ended before it joined"), out);
        }
    }

    /// Ends the job, for a reason of the caller's.
    pub fn abort(&mut self, why: &str, out: &mut Vec<Output>) {
        if matches!(self.state, State::Failed(_) | State::Done) {
            return;
        }
        let why = reason(why);
        for &link in self.nodes.keys() {
            out.push(Output::Send { link, message: ControlMessage::Abort { reason: why.clone() } });
        }
        self.deadline = None;
        self.state = State::Failed(why);
    }

    fn up(&mut self, link: u64, identity: Identity, peer_address: IpAddr, out: &mut Vec<Output>) {
        if let State::Failed(why) = &self.state {
            out.push(Output::Send { link, message: ControlMessage::Abort { reason: why.clone() } });
            out.push(Output::Close { link, reason: format!("{identity} came after the end") });
            return;
        }
        let node = Node {
            identity,
            peer_address,
            joined: false,
            finished: false,
            offer: Offer::only(TransportKind::Tcp),
            barriers: BTreeSet::new(),
            opening: 0,
        };
        self.nodes.insert(link, node);
    }

    fn message(
        &mut self,
        link: u64,
        message: ControlMessage,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        match message {
            ControlMessage::Offer(offer) => self.offered(link, offer),
            ControlMessage::Join { role, rank, workers, address, threads, first } => {
                self.join(link, (role, rank, workers, address, (threads, first)), now, out)
            }
            ControlMessage::Heartbeat { clock, status } => {
                let (role, rank) = self.joined(link)?;
                if role == Role::Worker {
                    self.status.insert(rank, (clock, status));
                    self.cuts.iter_mut().for_each(|cuts| cuts.seen(clock));
                }
                out.push(Output::Send { link, message: ControlMessage::HeartbeatAck });
                Ok(())
            }
            ControlMessage::PeersQuery => {
                self.joined(link)?;
                let peer = |(&rank, (clock, status)): (&Rank, &(Clock, Vec<u8>))| PeerStatus {
                    rank,
                    clock: *clock,
                    status: status.clone(),
                };
                let peers = self.status.iter().map(peer).collect();
                out.push(Output::Send { link, message: ControlMessage::Peers(peers) });
                Ok(())
            }
            ControlMessage::Abort { reason } => {
                let (role, _) = self.joined(link)?;
                if self.state == State::Leaving && role == Role::Server {
                    return Ok(()); // the workers are done: nobody needs it any more
                }
                let named = self.name(link);
                self.abort(&format!("{named} gave up: {reason}"), out);
                Ok(())
            }
            ControlMessage::OpenTable { request, spec } => self.open_table(link, request, &spec, out),
            ControlMessage::TableReady { table } => self.table_made(link, table, None, out),
            ControlMessage::TableFailed { table, reason } => self.table_made(link, table, Some(reason), out),
            ControlMessage::Barrier { id } => self.barrier(link, id, out),
            ControlMessage::Finish => self.finish(link, now, out),
            ControlMessage::CutAnswer { .. }
            | ControlMessage::CutState { .. }
            | ControlMessage::CutWritten { .. }
            | ControlMessage::CutFailed { .. } => self.cut_message(link, message, now, out),
            ControlMessage::Verified { number, damage } => self.verified(link, number, damage, now, out),
            _ => Err("not for a coordinator".into()),
        }
    }

    /// The role and rank of a joined node.
    fn joined(&self, link: u64) -> Result<(Role, Rank), Fault> {
        let node = self.nodes.get(&link).filter(|node| node.joined).ok_or("before Join")?;
        Ok((node.identity.role, node.identity.rank.ok_or("without a rank")?))
    }

    /// The rank of a worker that has not finished, while the job runs.
    fn active_worker(&mut self, link: u64) -> Result<&mut Node, Fault> {
        if self.joined(link)?.0 != Role::Worker {
            return Err("only a worker may say so".into());
        }
        if self.state != State::Running {
            return Err("while the job does not run".into());
        }
        self.nodes.get_mut(&link).filter(|node| !node.finished).ok_or_else(|| "after Finish".into())
    }

    fn barrier(&mut self, link: u64, id: u64, out: &mut Vec<Output>) -> Result<(), Fault> {
        let node = self.active_worker(link)?;
        if node.barriers.len() >= MAX_BARRIERS {
            return Err(format!("at more than {MAX_BARRIERS} barriers at a time"));
        }
        if !node.barriers.insert(id) {
            return Err(format!("at barrier {id} already"));
        }
        *self.barriers.entry(id).or_default() += 1;
        self.pass_barriers(out);
        Ok(())
    }

    /// Ends every barrier at which all are that have not finished.
    fn pass_barriers(&mut self, out: &mut Vec<Output>) {
        let expected = self.worker_links.len() - self.finished as usize;
        let passed: Vec<u64> =
            self.barriers.iter().filter(|&(_, &there)| there >= expected).map(|(&id, _)| id).collect();
        for id in passed {
            self.barriers.remove(&id);
            for &link in self.worker_links.values() {
                if self.nodes.get_mut(&link).is_some_and(|node| node.barriers.remove(&id)) {
                    out.push(Output::Send { link, message: ControlMessage::BarrierDone { id } });
                }
            }
        }
    }

    fn finish(&mut self, link: u64, now: Instant, out: &mut Vec<Output>) -> Result<(), Fault> {
        let node = self.active_worker(link)?;
        node.finished = true;
        for id in std::mem::take(&mut node.barriers) {
            if let Some(there) = self.barriers.get_mut(&id) {
                *there -= 1;
                if *there == 0 {
                    self.barriers.remove(&id);
                }
            }
        }
        self.finished += 1;
        if self.finished as usize == self.worker_links.len() {
            self.state = State::Leaving;
            self.deadline = Some(now + self.config.leave_timeout);
            for &link in self.server_links.values() {
                out.push(Output::Send { link, message: ControlMessage::Shutdown });
            }
        } else {
            self.pass_barriers(out);
            let rank = self.joined(link)?.1;
            if let Some(cuts) = &mut self.cuts {
                let actions = cuts.worker_finished(rank);
                self.act(actions, out);
            }
        }
        Ok(())
    }

    fn open_table(
        &mut self,
        link: u64,
        request: u32,
        spec: &TableSpec,
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let node = self.active_worker(link)?;
        if node.opening >= MAX_OPENING {
            return Err(format!("more than {MAX_OPENING} tables at a time"));
        }
        let message = match self.catalogue.open((link, request), spec, self.config.servers) {
            Opening::Ready(table) => ControlMessage::TableOpened { request, table, spec: spec.clone() },
            Opening::Refused(why) => ControlMessage::TableRefused { request, reason: reason(why) },
            Opening::Wait => {
                node_of(&mut self.nodes, link, |node| node.opening += 1);
                return Ok(());
            }
            Opening::Create(table) => {
                node_of(&mut self.nodes, link, |node| node.opening += 1);
                for &link in self.server_links.values() {
                    let message = ControlMessage::CreateTable { table, spec: spec.clone() };
                    out.push(Output::Send { link, message });
                }
                return Ok(());
            }
        };
        out.push(Output::Send { link, message });
        Ok(())
    }

    fn table_made(
        &mut self,
        link: u64,
        table: TableId,
        failed: Option<String>,
        out: &mut Vec<Output>,
    ) -> Result<(), Fault> {
        let (role, rank) = self.joined(link)?;
        if role != Role::Server {
            return Err("only a server may say so".into());
        }
        let why = failed.map(|why| reason(format!("{}: {why}", self.name(link))));
        let waiters = match &why {
            None => self.catalogue.ready(table, rank),
            Some(why) => self.catalogue.fail(table, rank, why),
        };
        let waiters = waiters.ok_or_else(|| format!("table {table} was not asked for"))?;
        let spec = self.catalogue.spec(table).ok_or("no such table")?;
        for (link, request) in waiters {
            node_of(&mut self.nodes, link, |node| node.opening -= 1);
            if !self.nodes.contains_key(&link) {
                continue;
            }
            let message = match &why {
                None => ControlMessage::TableOpened { request, table, spec: spec.clone() },
                Some(reason) => ControlMessage::TableRefused { request, reason: reason.clone() },
            };
            out.push(Output::Send { link, message });
        }
        Ok(())
    }

    /// A link is over.
    fn gone(&mut self, link: u64, why: &str, out: &mut Vec<Output>) {
        let name = self.name(link);
        let Some(node) = self.nodes.remove(&link) else { return };
        if !node.joined {
            return;
        }
        let Some(rank) = node.identity.rank else { return };
        match (&self.state, node.identity.role) {
            (State::Failed(_) | State::Done, _) => {}
            (State::Leaving, Role::Server) => {
                self.server_links.remove(&rank);
                if self.server_links.is_empty() {
                    self.state = State::Done;
                    self.deadline = None;
                }
            }
            (State::Leaving, _) => {}
            (_, Role::Worker) if node.finished => {}
            _ => self.abort(&format!("{name} is lost: {why}"), out),
        }
    }

    fn name(&self, link: u64) -> String {
        self.nodes.get(&link).map_or_else(|| "a stranger".to_owned(), |node| node.identity.to_string())
    }
}

fn check_workers(saved: u32, asked: u32) -> Result<(), Error> {
    match saved == asked {
        true => Ok(()),
        false => Err(Error::config("workers", format!("{saved}, as in the checkpoint"), asked)),
    }
}

fn node_of(nodes: &mut BTreeMap<u64, Node>, link: u64, change: impl FnOnce(&mut Node)) {
    if let Some(node) = nodes.get_mut(&link) {
        change(node);
    }
}

mod agree;
mod checkpoints;
mod join;

pub use checkpoints::Resumed;

#[cfg(test)]
mod tests;
