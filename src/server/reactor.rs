//! The loop of one server thread. It owns its transport, its slots and its shard; others only send it commands.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError};
use tracing::{info, warn};

use super::beside::Beside;
use super::core::{Core, MAX_SLOTS, Staging};
use super::cut::{CutFile, Saver, Written};
use super::disks::Starter;
use super::link::Link;
use super::supply::Supplier;
use crate::checkpoint::{Cut, FileKind, Header, Storage, shard_name};
use crate::config::{Network, Polling, ServerLimits};
use crate::error::{Error, Result};
use crate::mem::{Arena, Pool, RemoteRegion, Rights, align_up};
use crate::proto::{HEADER, ThreadStats};
use crate::store::{Made, Optimizers, Shard};
use crate::transport::choice::{self, Agreed};
use crate::transport::park::{LOOKS, Waker, park, pause};
use crate::transport::{Completion, EndpointId, Loan, SessionKey, Side, Transport};
use crate::types::{Clock, IdMap, Rank, ShardId, TableId, TableSpec, View};

/// Completions taken before other work gets its turn.
const BUDGET: usize = 256;
/// While a thread spins it looks at the clock and at an empty queue of commands only in every so many turns.
const LOOK: u32 = 8;
/// The longest sleep: a bound on how late a lost wake-up could be noticed.
const NAP: Duration = Duration::from_secs(1);

/// What the control thread asks a server thread for. Answers go to `reply`, then the asker is woken.
pub enum Command {
    /// The job begins, and this server's rank is given; with what it goes on from, if it is resumed.
    Begin(Rank, View, Agreed, Option<Arc<Cut>>),
    /// Make this shard's part of a table.
    CreateTable(TableId, TableSpec),
    /// Open an endpoint to a worker.
    Open(Box<OpenRequest>),
    /// A worker's control link is gone.
    Lost(Rank),
    /// Tell the figures.
    Stats(u64),
    /// Take nothing more, and say when all that was taken is answered.
    Drain,
    /// Be cut.
    Cut(CutOrder),
    /// Give the cut up.
    CancelCut(u64),
}

/// What a server thread is told of a cut.
#[derive(Clone)]
pub struct CutOrder {
    /// Its number.
    pub number: u64,
    /// It is made when this clock is the open one,
    pub clock: Clock,
    /// into a file of this directory,
    pub folder: PathBuf,
    /// which is on this,
    pub storage: Arc<dyn Storage>,
    /// by a thread that is started by this.
    pub disks: Starter,
}

/// A worker's wish for an endpoint.
pub struct OpenRequest {
    /// Whom to answer.
    pub token: u64,
    /// The worker.
    pub rank: Rank,
    /// Of its process.
    pub incarnation: u64,
    /// Its name.
    pub peer: String,
    /// Its transport address.
    pub address: Vec<u8>,
    /// Key of this endpoint.
    pub key: SessionKey,
    /// Its reply ring.
    pub ring: RemoteRegion,
    /// Entries of the ring.
    pub ring_entries: u32,
    /// Its receive memory.
    pub receive: RemoteRegion,
}

/// What a server thread grants to a worker.
pub struct Opened {
    /// Transport address.
    pub address: Vec<u8>,
    /// The worker's slots.
    pub slots: RemoteRegion,
    /// Number of slots.
    pub slot_count: u32,
    /// Bytes of a slot.
    pub slot_bytes: u32,
    /// Pulls that may be outstanding.
    pub pull_credits: u32,
    pub key_lists: u32,
}

/// Answers to commands.
pub enum Report {
    /// To [`Command::CreateTable`].
    TableCreated(TableId, Result<()>),
    /// To [`Command::Open`]: token and outcome.
    Opened(u64, Result<Opened>),
    /// To [`Command::Stats`]: token, figures, and the workers' clocks.
    Stats(u64, ThreadStats, Vec<Clock>),
    /// The endpoint of a worker was lost, and not because this thread closed it.
    Lost(Rank),
    /// To [`Command::Drain`]: every answer has left.
    Drained,
    /// To [`Command::Cut`]: the number, and the open clock where that is past.
    CutAnswer(u64, Result<(), Clock>),
    /// What became of a cut's file.
    CutWritten(u64, Written),
    /// The cut with this number, if it is whole as far as this server is to read it. It comes from a thread that only reads.
    Verified(u64, Result<Arc<Cut>>),
    /// A worker broke the protocol. The thread goes on, but takes and answers nothing more.
    WorkerFailed(Error),
    /// The thread has ended because of a failure that is not a peer's.
    Failed(Error),
}

/// One server thread's own things.
pub struct Reactor {
    id: ShardId,
    transport: Box<dyn Transport>,
    /// What else the job may agree on; empty once it has begun.
    others: Vec<Box<dyn Transport>>,
    network: Network,
    limits: ServerLimits,
    optimizers: Optimizers,
    commands: Receiver<Command>,
    /// Set when the thread has to end, whatever waits in `commands`.
    stop: Arc<AtomicBool>,
    waker: Waker,
    reports: Reports,
    core: Option<Core>,
    /// What tables begin with.
    resumed: Option<Arc<Cut>>,
    /// Of every endpoint that is not reported closed yet. Places in the transport's table are reused earlier than that.
    ranks: IdMap<EndpointId, Rank>,
    completions: Vec<Completion>,
    failed: Vec<(Rank, Error)>,
    /// Workers that want a new endpoint while their old one is still being closed.
    reopening: Vec<OpenRequest>,
    /// Where large tables are made.
    beside: Beside,
    /// Who has memory supplied for tables that grow. It comes after `core`, so that nobody waits for what is not needed any more.
    supplier: Supplier,
    /// It was told to drain and has not reported that it has.
    draining: bool,
    /// Turns of the loop.
    turns: u32,
}

impl Reactor {
    /// A reactor over `transport`, or that of `others` which the job agrees on. It runs until `stop` is set and `waker` woken.
    #[allow(clippy::too_many_arguments)] // each is one resource that the thread owns from here on
    pub fn new(
        id: ShardId,
        transport: Box<dyn Transport>,
        others: Vec<Box<dyn Transport>>,
        network: Network,
        limits: ServerLimits,
        optimizers: Optimizers,
        supplier: Supplier,
        commands: Receiver<Command>,
        stop: Arc<AtomicBool>,
        waker: Waker,
        reports: Reports,
    ) -> Reactor {
        Reactor {
            id,
            transport,
            others,
            network,
            limits,
            optimizers,
            commands,
            stop,
            waker,
            reports,
            core: None,
            resumed: None,
            ranks: IdMap::default(),
            completions: Vec::with_capacity(BUDGET),
            failed: Vec::new(),
            reopening: Vec::new(),
            beside: Beside::new(),
            supplier,
            draining: false,
            turns: 0,
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        let (mut idle_since, mut worked): (Option<Instant>, _) = (None, true);
        loop {
            self.turns = self.turns.wrapping_add(1);
            self.look(worked);
            worked = !self.completions.is_empty();
            self.dispatch();
            worked |= self.core.as_mut().is_some_and(Core::fold_kept);
            worked |= self.settle();
            self.transport.flush();
            self.supply();
            worked |= self.core.as_mut().is_some_and(Core::save_some);
            self.report_drained();
            match self.obey() {
                Ok(obeyed) => worked |= obeyed,
                Err(error) => return self.fail(error),
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if worked {
                idle_since = None;
            } else if let Err(error) = self.idle(&mut idle_since) {
                return self.fail(error);
            }
        }
    }

    /// Has memory supplied for the tables that have grown.
    fn supply(&mut self) {
        while let Some(page) = self.core.as_mut().and_then(Core::next_to_supply) {
            self.supplier.supply(page, &self.reports);
        }
    }

    /// Takes what has come. A thread that spins and had nothing to do in its last turn looks a few times.
    fn look(&mut self, worked: bool) {
        let spins = self.network.polling != Polling::Block && !worked;
        self.transport.poll_often(if spins { LOOKS } else { 1 }, &mut self.completions, BUDGET);
    }

    /// Ends for a reason that is no peer's fault.
    fn fail(self, error: Error) {
        self.report(Report::Failed(error));
    }

    fn report_drained(&mut self) {
        if self.draining && self.core.as_ref().is_none_or(Core::is_drained) {
            self.draining = false;
            self.report(Report::Drained);
        }
    }

    fn dispatch(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        // Where they lie: they have room for messages, and would be copied as long as that.
        for completion in &mut completions {
            match *completion {
                Completion::Written { endpoint, imm, length } => {
                    self.request(endpoint, imm, length, None);
                }
                Completion::Lent { endpoint, imm, length, ref body } => {
                    self.request(endpoint, imm, length, Some(body.clone()));
                }
                Completion::Received { endpoint, ref message } => {
                    if let (Some(rank), Some(core)) = (self.rank_of(endpoint), &mut self.core)
                        && let Err(error) = core.message(rank, message.bytes())
                    {
                        self.failed.push((rank, error));
                    }
                }
                Completion::Closed { endpoint, ref mut reason } => self.closed(endpoint, reason.take()),
                Completion::Connected { endpoint } => {
                    if let (Some(rank), Some(core)) = (self.rank_of(endpoint), &mut self.core) {
                        core.connected(rank);
                        info!(
                            "server {} thread {}: worker {rank} is connected by {}",
                            self.id.server,
                            self.id.thread,
                            self.transport.caps().describe()
                        );
                    }
                }
                Completion::Done { endpoint, context } => {
                    if let (Some(rank), Some(core)) = (self.rank_of(endpoint), &mut self.core) {
                        core.done(rank, context);
                    }
                }
            }
        }
        completions.clear();
        self.completions = completions;
    }

    fn request(&mut self, endpoint: EndpointId, imm: u32, length: u32, body: Option<Loan>) {
        if let (Some(rank), Some(core)) = (self.rank_of(endpoint), &mut self.core)
            && let Err(error) = core.request(rank, imm, length, body)
        {
            self.failed.push((rank, error));
        }
    }

    /// True when a pull was answered, so that there may be more to do.
    fn settle(&mut self) -> bool {
        let mut answered = false;
        if let Some(core) = &mut self.core {
            answered = core.settle(self.transport.as_mut(), &mut self.failed);
        }
        for (rank, error) in std::mem::take(&mut self.failed) {
            warn!("server {} thread {}: closing an endpoint: {error}", self.id.server, self.id.thread);
            self.drop_rank(rank);
            // A worker whose connection was lost comes again, but one that broke the protocol would only do the same again.
            if matches!(error, Error::Protocol { .. }) {
                self.report(Report::WorkerFailed(error));
            }
        }
        answered
    }

    fn drop_rank(&mut self, rank: Rank) {
        let endpoint = self.ranks.iter().find(|(_, r)| **r == rank).map(|(e, _)| *e);
        if let Some(endpoint) = endpoint {
            self.transport.close(endpoint);
        }
    }

    fn closed(&mut self, endpoint: EndpointId, reason: Option<Error>) {
        let Some(rank) = self.ranks.remove(&endpoint) else { return };
        if let Some(reason) = reason {
            tracing::debug!("server {} thread {}: {reason}", self.id.server, self.id.thread);
            self.report(Report::Lost(rank));
        }
        if let Some(core) = &mut self.core {
            core.detach(rank);
        }
        if let Some(at) = self.reopening.iter().position(|r| r.rank == rank) {
            let request = self.reopening.swap_remove(at);
            self.open_or_wait(request);
        }
    }

    /// Opens an endpoint; a worker that has one gets the new one when the old one can't touch its slots any more.
    fn open_or_wait(&mut self, request: OpenRequest) {
        let (token, rank) = (request.token, request.rank);
        if self.core.as_ref().is_some_and(|core| core.is_attached(rank)) {
            // An earlier wish of the same worker has been given up by it.
            if let Some(at) = self.reopening.iter().position(|r| r.rank == rank) {
                let earlier = self.reopening.swap_remove(at);
                self.report(Report::Opened(earlier.token, Err(given_up(&earlier.peer))));
            }
            self.reopening.push(request);
            return self.drop_rank(rank);
        }
        let opened = self.open(request);
        self.report(Report::Opened(token, opened));
    }

    fn rank_of(&self, endpoint: EndpointId) -> Option<Rank> {
        self.ranks.get(&endpoint).copied()
    }

    /// Carries out the commands that have come, until it has to stop. True when there were any.
    fn obey(&mut self) -> Result<bool> {
        let mut obeyed = false;
        if self.commands.is_empty() && !self.looks() {
            return Ok(obeyed);
        }
        while !self.stop.load(Ordering::Acquire) {
            if let Some((id, made)) = self.beside.finished() {
                let made = made.and_then(|made| self.add_table(id, made));
                self.report(Report::TableCreated(id, made));
            }
            let held = self.beside.next_held().map(|(id, spec)| Command::CreateTable(id, spec));
            match held.map_or_else(|| self.commands.try_recv(), Ok) {
                Ok(Command::CreateTable(id, spec)) if self.beside.is_busy() => self.beside.hold(id, spec),
                Ok(Command::Begin(rank, view, agreed, resumed)) => {
                    self.id.server = rank;
                    self.settle_on(agreed)?;
                    self.resumed = resumed;
                    self.begin(view)?;
                }
                Ok(Command::CreateTable(id, spec)) => {
                    match self.create_table(id, &spec) {
                        Ok(()) if self.beside.is_busy() => {} // it is told when it is made
                        made => self.report(Report::TableCreated(id, made)),
                    }
                }
                Ok(Command::Cut(order)) => {
                    let number = order.number;
                    match self.cut(order) {
                        Ok(answer) => self.report(Report::CutAnswer(number, answer)),
                        Err(error) => self.report(Report::CutWritten(number, Err(error))),
                    }
                }
                Ok(Command::CancelCut(number)) => {
                    if let Some(core) = &mut self.core {
                        core.cancel_cut(number);
                    }
                }
                Ok(Command::Open(request)) => self.open_or_wait(*request),
                Ok(Command::Lost(rank)) => self.drop_rank(rank),
                Ok(Command::Stats(token)) => {
                    let stats = self.core.as_ref().map(Core::stats).unwrap_or_default();
                    let clocks = self.core.as_ref().map(Core::clocks).unwrap_or_default();
                    self.report(Report::Stats(token, stats, clocks));
                }
                Ok(Command::Drain) => {
                    self.draining = true;
                    if let Some(core) = &mut self.core {
                        core.drain();
                    }
                }
                // Nobody is left who could ask for anything: the flag has been set or is about to be.
                Err(TryRecvError::Disconnected) => self.stop.store(true, Ordering::Release),
                Err(TryRecvError::Empty) => break,
            }
            obeyed = true;
        }
        Ok(obeyed)
    }

    /// Keeps what the job has agreed on, says so, and lets go of the others. No endpoint is open yet.
    fn settle_on(&mut self, agreed: Agreed) -> Result<()> {
        for other in std::mem::take(&mut self.others) {
            if other.caps().name == agreed.kind.name() {
                self.transport = other;
            }
        }
        if agreed.local {
            choice::add_memory(&self.network, &mut self.transport, true)?;
        }
        let (ShardId { server, thread }, used) = (self.id, self.transport.caps().describe());
        info!("server {server} thread {thread}: data travels by {used}, poll {}", self.network.polling);
        Ok(())
    }

    /// Makes a table, or has it made.
    fn create_table(&mut self, id: TableId, spec: &TableSpec) -> Result<()> {
        let Some(core) = &mut self.core else { return Err(not_begun("create a table")) };
        match core.prepare_table(id, spec)? {
            None => Ok(()),
            Some(making) if Beside::takes(&making) => {
                self.beside.start(id, making, &self.waker, &self.reports)
            }
            Some(making) => self.add_table(id, making.make()?),
        }
    }

    fn add_table(&mut self, id: TableId, made: Made) -> Result<()> {
        let Some(core) = &mut self.core else { return Err(not_begun("add a table")) };
        core.add_table(made, |arena| self.transport.register(arena))?;
        if let Some(cut) = &self.resumed {
            core.restore(id, cut)?;
        }
        core.let_read_table(id, self.transport.as_mut())
    }

    fn cut(&mut self, order: CutOrder) -> Result<Result<(), Clock>> {
        let CutOrder { number, clock, folder, storage, disks } = order;
        let Some(core) = &mut self.core else { return Err(not_begun("be cut")) };
        let header = Header { kind: FileKind::Shard, clock, shard: self.id };
        let file = CutFile { number, path: folder.join(shard_name(self.id)), header };
        let (reports, waker, stop) = (self.reports.clone(), self.waker.clone(), self.stop.clone());
        let cut_bytes = self.limits.cut_bytes;
        core.cut(number, clock, || Saver::start(&disks, storage, file, cut_bytes, reports, waker, stop))
    }

    fn begin(&mut self, view: View) -> Result<()> {
        let workers = view.workers as usize;
        let (slots, slot_bytes) = slots(&self.limits, workers);
        if slots == 0 {
            return Err(Error::Limit {
                resource: format!(
                    "staging bytes of a server thread ({workers} workers × {slot_bytes} bytes)"
                ),
                limit: self.limits.staging_bytes as u64,
                asked: (workers * slot_bytes) as u64,
            });
        }
        let arena = Arena::new(workers * slots * slot_bytes)?;
        let region = self.transport.register(arena.clone())?;
        let staging = Staging { arena, region, slots, slot_bytes };
        // A quarter of the buffers is small, so that short pulls don't wait behind long ones.
        let classes = [
            (self.limits.payload_bytes, self.limits.reply_buffers),
            (4096, self.limits.reply_buffers.div_ceil(4) * 4),
        ];
        let memory = self.transport.memory();
        let replies = Pool::of(memory, &classes, |arena| self.transport.register(arena))?;
        let shard = Shard::new(self.optimizers.clone(), self.limits.table_bytes, self.limits.spare_bytes)
            .in_memory(memory);
        let first = self.resumed.as_ref().map_or(0, |cut| cut.manifest().clock);
        let credits = self.limits.pull_credits;
        let core = Core::new(self.id, view, shard, staging, replies, credits, first);
        self.core = Some(core.keeping_lists(self.limits.key_list_bytes));
        Ok(())
    }

    fn open(&mut self, request: OpenRequest) -> Result<Opened> {
        let Some(core) = &mut self.core else { return Err(not_begun("open an endpoint")) };
        if let Some(objection) = core.objection(request.rank, request.incarnation) {
            return Err(Error::Refused {
                peer: format!("server {} thread {}", self.id.server, self.id.thread),
                reason: format!("{}: {objection}", request.peer),
            });
        }
        let (endpoint, address) = self.transport.open(Side::Passive, &request.peer)?;
        let opened = self.admit(request, endpoint, address);
        if opened.is_err() {
            self.transport.close(endpoint);
        }
        opened
    }

    fn admit(&mut self, request: OpenRequest, endpoint: EndpointId, address: Vec<u8>) -> Result<Opened> {
        let Some(core) = &mut self.core else { return Err(not_begun("open an endpoint")) };
        let staging = core.staging();
        let (offset, length) = staging.slice_of(request.rank);
        let opened = Opened {
            address,
            slots: self.transport.authorise(endpoint, staging.region, offset, length, Rights::Write)?,
            slot_count: staging.slots as u32,
            slot_bytes: staging.slot_bytes as u32,
            pull_credits: self.limits.pull_credits as u32,
            key_lists: core.key_lists() as u32,
        };
        self.transport.connect(endpoint, &request.address, &request.key)?;
        let link = Link::new(endpoint, request.peer, request.ring, request.ring_entries, request.receive);
        core.attach(request.rank, request.incarnation, link);
        core.let_read_all(request.rank, self.transport.as_mut())?;
        self.ranks.insert(endpoint, request.rank);
        Ok(opened)
    }

    /// Whether this turn looks at what hardly ever changes.
    fn looks(&self) -> bool {
        self.network.polling == Polling::Block || self.turns.is_multiple_of(LOOK)
    }

    /// Spins for a while, then sleeps until the network or a command has something.
    fn idle(&mut self, idle_since: &mut Option<Instant>) -> Result<()> {
        if !self.looks() {
            return Ok(());
        }
        if let Polling::Spin(time) = self.network.polling {
            let since = *idle_since.get_or_insert_with(Instant::now);
            let idle = since.elapsed();
            if idle < time {
                pause(idle);
                return Ok(());
            }
        }
        // What the last flush let go of may be what an answer waits for.
        if self.settle() {
            self.transport.flush();
            return Ok(());
        }
        if self.transport.arm() {
            let nap = self.core.as_ref().and_then(Core::keeps).map_or(NAP, |left| left.min(NAP));
            let [_, woken] = park(&[self.transport.waitable(), self.waker.fd()], nap)?;
            if woken {
                self.waker.drain();
            }
        }
        Ok(())
    }

    fn report(&self, report: Report) {
        self.reports.send(report);
    }
}

/// The way back to the control thread. It says so when its thread panics.
#[derive(Clone)]
pub struct Reports {
    thread: u32,
    sender: Sender<(u32, Report)>,
    asker: Arc<dyn Fn() + Send + Sync>,
}

impl Reports {
    /// Reports of `thread`; `asker` wakes whoever reads them.
    pub fn new(thread: u32, sender: Sender<(u32, Report)>, asker: Arc<dyn Fn() + Send + Sync>) -> Reports {
        Reports { thread, sender, asker }
    }

    /// Passes a report on.
    pub fn send(&self, report: Report) {
        // Nobody listens any more only when the server is going down.
        let _ = self.sender.send((self.thread, report));
        (self.asker)();
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let reason = format!("{} panicked", thread.name().unwrap_or("it"));
            self.send(Report::Failed(Error::Aborted { reason }));
        }
    }
}

fn given_up(peer: &str) -> Error {
    Error::Refused { peer: peer.to_owned(), reason: "it has asked again since".to_owned() }
}

/// How many slots each worker has, and the bytes of one.
fn slots(limits: &ServerLimits, workers: usize) -> (usize, usize) {
    let slot_bytes = align_up(HEADER + limits.payload_bytes);
    let room = limits.staging_bytes / slot_bytes / workers.max(1);
    (room.min(limits.slots).min(MAX_SLOTS), slot_bytes)
}

fn not_begun(call: &'static str) -> Error {
    Error::Misuse { call, reason: "the job has not begun on this server: there is no View yet".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_bytes;
    use crate::types::OptimizerSpec;

    /// The rows of the README's table of sizes, its bytes of a parameter, and its slots: what the code makes of them.
    #[test]
    fn the_sizes_in_the_readme_are_those_of_the_code() {
        let readme = include_str!("../../README.md");
        let section =
            readme.split("### How many servers").nth(1).and_then(|s| s.split("\n## ").next()).unwrap();
        let bytes = |rule: OptimizerSpec| 4 * (2 + Optimizers::default().build(&rule).unwrap().state_width());
        use OptimizerSpec as Rule;
        for (expected, rules) in [
            (8, vec![Rule::sgd(0.1)]),
            (12, vec![Rule::momentum(0.1, 0.9), Rule::adagrad(0.1, 0.1)]),
            (16, vec![Rule::adam(0.1, 0.9, 0.9, 0.1), Rule::ftrl(0.1, 1.0, 0.0, 0.0)]),
        ] {
            assert!(rules.into_iter().all(|rule| bytes(rule) == expected));
        }
        let said =
            "with SGD 8 bytes for each fp32 parameter, with momentum or Adagrad 12, with Adam or\nFTRL 16";
        assert!(section.contains(said));
        let default = ServerLimits::default();
        let said =
            format!("slots of 256 KiB + 64 B, evenly for all workers, at most {} for each", default.slots);
        assert!(section.contains(&said) && slots(&default, 1) == (16, (256 << 10) + 64));
        let number = |text: &str| {
            let (digits, unit) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
            digits.parse::<f64>().unwrap()
                * [("M", 1e6), ("G", 1e9), ("GB", 1e9), ("", 1.0)].iter().find(|u| u.0 == unit).unwrap().1
        };
        let rows: Vec<Vec<&str>> = section.lines().map(|line| line.split('|').collect()).collect();
        let rows: Vec<_> =
            rows.iter().filter(|row| row.len() == 8 && row[1].trim().parse::<u32>().is_ok()).collect();
        assert!(rows.len() >= 6, "{rows:?}");
        for row in rows {
            let staging = row[4].split_whitespace().next().unwrap();
            let limits = ServerLimits { staging_bytes: parse_bytes(staging).unwrap() as usize, ..default };
            assert_eq!(slots(&limits, number(row[1]) as usize).0 as f64, number(row[5]), "{row:?}");
            let (servers, threads) = row[3].split_once('×').unwrap();
            let each =
                16.0 * number(row[2]) / number(servers) + number(threads) * limits.staging_bytes as f64;
            assert!((each - number(row[6])).abs() <= 0.05e9 + 1e6, "{row:?}: {each}");
        }
    }

    #[test]
    fn a_thread_that_panics_says_so() {
        let (sender, reports) = crossbeam::channel::unbounded();
        let (woken, wakes) = crossbeam::channel::unbounded();
        let asker = Arc::new(move || woken.send(()).unwrap());
        let owned = Reports::new(3, sender, asker);
        let thread = std::thread::spawn(move || {
            let _owned = owned;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(matches!(reports.try_recv(), Ok((3, Report::Failed(_)))));
        assert_eq!(wakes.len(), 1);
    }
}
