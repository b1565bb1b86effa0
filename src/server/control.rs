//! A server's control thread: speaks with the Coordinator and with the workers, and hands work to the reactors.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use tracing::{debug, info, warn};

use super::ServerThread;
use super::cuts::{Cuts, Places, Verifying, no_folder};
use super::disks::DiskThreads;
use super::reactor::{Command, CutOrder, OpenRequest, Report, Reports};
use crate::checkpoint::Cut;
use crate::control::{Event, Hub, LinkId};
use crate::error::{Error, Result};
use crate::mem::RemoteRegion;
use crate::proto::control::{ControlMessage, RegionBytes, reason};
use crate::proto::handshake::derive_endpoint_key;
use crate::proto::{HEADER, ThreadStats};
use crate::transport::{SessionKey, choice};
use crate::types::{Clock, Identity, Offer, Rank, Role, TableId, View};

/// How long the links may take to close at the end, and the Coordinator to let us go.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest reply ring that a worker may have.
const RING_LIMIT: u32 = 1 << 16;
/// Endpoints to one thread that one worker may be waiting for: it asks again when it has lost patience.
const OPENINGS: u8 = 4;
/// Questions for figures that one worker may have; one is asked of the threads at a time.
const QUERIES: usize = 64;

pub struct Control {
    hub: Hub,
    coordinator: LinkId,
    rank: Option<Rank>,
    address: SocketAddr,
    threads: Vec<ServerThread>,
    /// The number of the first of them among the server threads of this host.
    first: u32,
    reports: Receiver<(u32, Report)>,
    stopping: Arc<AtomicBool>,
    stop_timeout: Duration,
    offer: Offer,
    /// What the job's data travels by: our best until the Coordinator has said it.
    agreed: choice::Agreed,
    leaving: Option<Leaving>,
    view: Option<View>,
    workers: HashMap<LinkId, Worker>,
    /// The one link of each worker.
    links: HashMap<Rank, LinkId>,
    /// Threads that have not made the table yet.
    tables: HashMap<TableId, usize>,
    next_token: u64,
    asked: HashMap<u64, Asked>,
    /// What ended the job, when it was a worker's fault. The Coordinator has been told, and will tell everybody.
    failure: Option<Error>,
    places: Places,
    cuts: Cuts,
    /// What the job goes on from, until it begins.
    resumed: Option<Arc<Cut>>,
    /// The cut that is being read, or was, to go on from it.
    verifying: Option<Verifying>,
    /// Read and write cuts.
    disks: DiskThreads,
    /// For threads that read it.
    reporter: Reports,
}

/// This server was told to stop.
struct Leaving {
    /// Threads that have not answered everything yet.
    threads: usize,
    /// When it goes, whatever is not answered; once it has taken leave, whatever the Coordinator says.
    deadline: Instant,
    /// The Coordinator has been told.
    took_leave: bool,
}

struct Worker {
    rank: Rank,
    incarnation: u64,
    name: String,
    export: SessionKey,
    /// For each thread the endpoints that it has not answered for yet.
    opening: Vec<u8>,
    /// Questions for figures that wait, and whether one is being answered.
    queries: VecDeque<u32>,
    querying: bool,
}

/// Something that reactors were asked for on behalf of a link.
struct Asked {
    link: LinkId,
    request: u32,
    /// That was asked for an endpoint; for figures all are.
    thread: Option<u32>,
    stats: Vec<ThreadStats>,
    clocks: Vec<Clock>,
}

impl Control {
    #[allow(clippy::too_many_arguments)] // each is one thing that the thread owns from here on
    pub fn new(
        hub: Hub,
        coordinator: LinkId,
        rank: Option<Rank>,
        address: SocketAddr,
        (threads, first): (Vec<ServerThread>, u32),
        reports: Receiver<(u32, Report)>,
        (stopping, stop_timeout): (Arc<AtomicBool>, Duration),
        offer: Offer,
        places: Places,
        reporter: Reports,
    ) -> Control {
        Control {
            hub,
            coordinator,
            rank,
            address,
            threads,
            first,
            reports,
            stopping,
            stop_timeout,
            agreed: choice::Agreed::untold(&offer),
            offer,
            leaving: None,
            view: None,
            workers: HashMap::new(),
            links: HashMap::new(),
            tables: HashMap::new(),
            next_token: 0,
            asked: HashMap::new(),
            failure: None,
            places,
            cuts: Cuts::default(),
            resumed: None,
            verifying: None,
            disks: DiskThreads::new(),
            reporter,
        }
    }

    /// Until the job has ended. The reactors end with it.
    pub fn run(mut self) -> Result<()> {
        let mut outcome = self.serve();
        if self.leaving.is_some() {
            // Whatever ends the job meanwhile is no failure of a server that was told to go.
            outcome = Ok(());
        } else if let Some(error) = self.failure.take() {
            outcome = Err(error);
        } else if let Err(error) = &outcome {
            // So that the others hear the reason, and not just that a link closed.
            self.abort(error);
        }
        // A thread that has more to report than the channel holds must not wait for us while we wait for it.
        self.reports = crossbeam::channel::never();
        self.threads.clear();
        self.verifying = None;
        let shut = self.hub.shut_down(PATIENCE);
        self.disks.join(PATIENCE);
        shut.and(outcome)
    }

    /// Asks the Coordinator to end the job; when it can't be reached, that ends the job as well.
    fn abort(&mut self, error: &Error) {
        let reason = reason(format!("server {}: {error}", self.name()));
        let _ = self.hub.send(self.coordinator, &ControlMessage::Abort { reason });
    }

    fn serve(&mut self) -> Result<()> {
        let mut events = Vec::new();
        loop {
            self.hub.poll(&mut events, self.patience())?;
            for event in events.drain(..) {
                if self.on_event(event)? {
                    return Ok(());
                }
            }
            while let Ok((thread, report)) = self.reports.try_recv() {
                self.on_report(thread, report)?;
            }
            if self.stopping.load(Ordering::Acquire) && self.leave()? {
                return Ok(());
            }
        }
    }

    fn patience(&self) -> Duration {
        let most = Duration::from_secs(1);
        let left = |leaving: &Leaving| leaving.deadline.saturating_duration_since(Instant::now());
        self.leaving.as_ref().map_or(most, |leaving| left(leaving).min(most))
    }

    /// Goes in order: the threads answer what they have taken, then the Coordinator is told, which tells the others; they
    /// hear the reason from it before they see our links close. True when it is time to go.
    fn leave(&mut self) -> Result<bool> {
        if self.leaving.is_none() {
            info!("server {}: told to stop", self.name());
            self.tell_all(|| Command::Drain)?;
            let deadline = Instant::now() + self.stop_timeout;
            self.leaving = Some(Leaving { threads: self.threads.len(), deadline, took_leave: false });
        }
        let Some(leaving) = &mut self.leaving else { return Ok(false) };
        let late = Instant::now() >= leaving.deadline;
        if leaving.took_leave {
            return Ok(late);
        }
        if leaving.threads > 0 && !late {
            return Ok(false);
        }
        leaving.took_leave = true;
        leaving.deadline = Instant::now() + PATIENCE;
        if late {
            warn!("server {}: not everything could be answered within {:?}", self.name(), self.stop_timeout);
        }
        let reason = "it was told to stop, and a server that leaves in mid-job can't be replaced yet";
        let farewell = ControlMessage::Abort { reason: reason.to_owned() };
        // A Coordinator that can't be told is gone, or never knew us.
        Ok(self.hub.send(self.coordinator, &farewell).is_err())
    }

    /// True when the job has ended.
    fn on_event(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Up { link, .. } if link == self.coordinator => {
                let offer = ControlMessage::Offer(self.offer.clone());
                let join = ControlMessage::Join {
                    role: Role::Server,
                    rank: self.rank,
                    workers: None,
                    address: Some(self.address.to_string()),
                    threads: self.threads.len() as u32,
                    first: self.first,
                };
                match self.hub.send(link, &offer).and_then(|()| self.hub.send(link, &join)) {
                    // Behind this event come the link's end and, before it, why the job is over.
                    Err(Error::PeerLost { .. }) => {}
                    sent => sent?,
                }
            }
            Event::Up { link, peer, address, export, .. } => self.welcome(link, &peer, address, export),
            Event::Message { link, message } if link == self.coordinator => {
                return self.hear_coordinator(message);
            }
            Event::Message { link, message } => self.hear_worker(link, message),
            Event::Down { link, reason, .. } if link == self.coordinator => return Err(reason),
            Event::Down { link, reason, .. } => {
                self.lose(link, &reason.to_string());
            }
            Event::Refused { .. } => {} // the hub has said so
        }
        Ok(false)
    }

    fn welcome(&mut self, link: LinkId, peer: &Identity, address: SocketAddr, export: SessionKey) {
        let name = format!("{peer} at {address}");
        let (Role::Worker, Some(rank)) = (peer.role, peer.rank) else { return self.hub.close(link) };
        if self.view.as_ref().is_some_and(|view| rank >= view.workers) {
            warn!("{name}: there is no such worker in this job");
            return self.hub.close(link);
        }
        if let Some(&other) = self.links.get(&rank) {
            if self.workers.get(&other).is_some_and(|w| w.incarnation != peer.incarnation) {
                warn!("{name}: another process is worker {rank}");
                return self.hub.close(link);
            }
            // The same process dialled again: its endpoints stay.
            self.workers.remove(&other);
            self.hub.close(other);
        }
        let incarnation = peer.incarnation;
        let opening = vec![0; self.threads.len()];
        let queries = VecDeque::new();
        let worker = Worker { rank, incarnation, name, export, opening, queries, querying: false };
        self.workers.insert(link, worker);
        self.links.insert(rank, link);
    }

    /// The link of a worker is gone, or is not to be kept. Its endpoints go with it.
    fn lose(&mut self, link: LinkId, reason: &str) {
        self.hub.close(link);
        let Some(worker) = self.workers.remove(&link) else { return };
        debug!("{}: {reason}", worker.name);
        self.links.remove(&worker.rank);
        for thread in &self.threads {
            // A thread that has too much to do notices by itself when the endpoint is dead.
            thread.ask(Command::Lost(worker.rank));
        }
    }

    fn hear_coordinator(&mut self, message: ControlMessage) -> Result<bool> {
        match message {
            ControlMessage::Joined { rank } => {
                self.rank = Some(rank);
                self.hub.set_rank(rank);
                info!("joined the job as server {rank}");
            }
            ControlMessage::JoinRefused { reason } => {
                return Err(Error::Refused { peer: "the coordinator".to_owned(), reason });
            }
            // The Coordinator has said why by nothing better.
            ControlMessage::Agreed { transport, local, .. } => {
                self.agreed = choice::Agreed { kind: transport, local };
            }
            ControlMessage::View(view) => {
                info!("server {}: {} servers, {} workers", self.name(), view.servers.len(), view.workers);
                let server = self.rank.unwrap_or(0);
                let (agreed, resumed) = (self.agreed, self.resumed.take());
                self.tell_all(|| Command::Begin(server, view.clone(), agreed, resumed.clone()))?;
                let strangers = self.links.iter().filter(|(rank, _)| **rank >= view.workers);
                for link in strangers.map(|(_, link)| *link).collect::<Vec<_>>() {
                    self.lose(link, "there is no such worker in this job");
                }
                self.view = Some(view);
            }
            // Whoever asked for the table hears soon that the job has ended.
            ControlMessage::CreateTable { .. } if self.leaving.is_some() => {}
            ControlMessage::CreateTable { table, spec } => {
                self.tables.insert(table, self.threads.len());
                self.tell_all(|| Command::CreateTable(table, spec.clone()))?;
            }
            ControlMessage::Resume { number, .. } => {
                let Some(cut) = self.verifying.take().and_then(|verifying| verifying.whole(number)) else {
                    let expected = "a cut that this server has read";
                    return Err(Error::protocol("the coordinator", "number", expected, number));
                };
                info!("server {}: goes on from cut {number}, clock {}", self.name(), cut.manifest().clock);
                self.resumed = Some(cut);
            }
            ControlMessage::Verify { number, part, of } => {
                let threads = self.threads.len() as u32;
                self.verifying = Some(Verifying::start(
                    &self.places,
                    number,
                    (part, of),
                    threads,
                    &self.reporter,
                    &self.disks.starter(),
                )?);
            }
            ControlMessage::Cut { number, clock } => self.cut(number, clock)?,
            ControlMessage::CancelCut { number } => {
                self.cuts.cancel(number);
                self.tell_all(|| Command::CancelCut(number))?;
            }
            ControlMessage::Abort { reason } => return Err(Error::Aborted { reason }),
            ControlMessage::Shutdown => return Ok(true),
            _ => {}
        }
        Ok(false)
    }

    fn cut(&mut self, number: u64, clock: Clock) -> Result<()> {
        self.cuts.begin(number, self.threads.len());
        match self.places.of(number) {
            Some(folder) => {
                let (storage, disks) = (self.places.storage.clone(), self.disks.starter());
                let order = CutOrder { number, clock, folder, storage, disks };
                self.tell_all(|| Command::Cut(order.clone()))
            }
            None => {
                let failed = self.cuts.written(number, Err(no_folder()));
                self.tell(failed)
            }
        }
    }

    /// Tells the Coordinator what there is to tell.
    fn tell(&mut self, message: Option<ControlMessage>) -> Result<()> {
        message.map_or(Ok(()), |message| self.hub.send(self.coordinator, &message))
    }

    fn tell_all(&self, command: impl Fn() -> Command) -> Result<()> {
        for (number, thread) in self.threads.iter().enumerate() {
            if !thread.tell(command()) {
                return Err(Error::Aborted {
                    reason: format!("thread {number} is gone or does not keep up"),
                });
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.rank.map_or("?".to_owned(), |r| r.to_string())
    }

    fn hear_worker(&mut self, link: LinkId, message: ControlMessage) {
        match message {
            ControlMessage::OpenEndpoint {
                request,
                thread,
                transport,
                address,
                ring,
                ring_entries,
                receive,
            } => {
                let wish = self.wish(link, thread, &transport, address, (ring, ring_entries), receive);
                let asked = wish.and_then(|wish| {
                    let token = self.ask(link, request, Some(thread));
                    let command = Command::Open(Box::new(OpenRequest { token, ..wish }));
                    if !self.threads[thread as usize].ask(command) {
                        self.answered(token);
                        return Err("the server thread is busy or gone".to_owned());
                    }
                    Ok(())
                });
                if let Err(reason) = asked {
                    self.say(link, &ControlMessage::EndpointRefused { request, reason });
                }
            }
            ControlMessage::StatsQuery { request } => {
                let Some(worker) = self.workers.get_mut(&link) else { return };
                if worker.queries.len() >= QUERIES {
                    return self.lose(link, "it asks for figures without waiting for them");
                }
                worker.queries.push_back(request);
                self.query(link);
            }
            _ => self.lose(link, "it said what is not a worker's to say here"),
        }
    }

    /// Asks the threads for the figures that a worker wants next, if it wants any.
    fn query(&mut self, link: LinkId) {
        let Some(worker) = self.workers.get_mut(&link).filter(|w| !w.querying) else { return };
        let Some(request) = worker.queries.pop_front() else { return };
        worker.querying = true;
        let token = self.ask(link, request, None);
        if !self.threads.iter().all(|thread| thread.ask(Command::Stats(token))) {
            self.asked.remove(&token);
            self.lose(link, "a server thread has too much to do to give figures");
        }
    }

    /// What was asked for under `token`, which is answered now.
    fn answered(&mut self, token: u64) -> Option<Asked> {
        let asked = self.asked.remove(&token)?;
        if let Some(worker) = self.workers.get_mut(&asked.link) {
            match asked.thread {
                Some(thread) => worker.opening[thread as usize] -= 1,
                None => worker.querying = false,
            }
        }
        Some(asked)
    }

    /// What a worker asks for, checked; the error is the reason of the refusal.
    fn wish(
        &mut self,
        link: LinkId,
        thread: u32,
        transport: &str,
        address: Vec<u8>,
        (ring, ring_entries): (RegionBytes, u32),
        receive: RegionBytes,
    ) -> std::result::Result<OpenRequest, String> {
        let worker = self.workers.get_mut(&link).ok_or("not a worker of this job")?;
        if thread as usize >= self.threads.len() {
            return Err(format!("thread {thread}: there are {}", self.threads.len()));
        }
        let ours = self.agreed.kind.name();
        if transport != ours {
            return Err(format!("transport {transport}: this server is reached by {ours}"));
        }
        let ring = RemoteRegion::decode(&ring).ok_or("the reply ring's region is malformed")?;
        let receive = RemoteRegion::decode(&receive).ok_or("the receive memory's region is malformed")?;
        if !(4..=RING_LIMIT).contains(&ring_entries)
            || !ring.contains(0, u64::from(ring_entries) * HEADER as u64)
        {
            return Err(format!("a reply ring of {ring_entries} entries in {} bytes", ring.length));
        }
        let opening = &mut worker.opening[thread as usize];
        if *opening >= OPENINGS {
            return Err(format!("{OPENINGS} endpoints are being opened already"));
        }
        *opening += 1;
        Ok(OpenRequest {
            token: 0,
            rank: worker.rank,
            incarnation: worker.incarnation,
            peer: worker.name.clone(),
            address,
            key: derive_endpoint_key(&worker.export, "data", &[thread]),
            ring,
            ring_entries,
            receive,
        })
    }

    fn ask(&mut self, link: LinkId, request: u32, thread: Option<u32>) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.asked.insert(token, Asked { link, request, thread, stats: Vec::new(), clocks: Vec::new() });
        token
    }

    fn on_report(&mut self, thread: u32, report: Report) -> Result<()> {
        match report {
            Report::TableCreated(table, Ok(())) => {
                // Gone when another thread could not make it.
                let Some(left) = self.tables.get_mut(&table) else { return Ok(()) };
                *left -= 1;
                if *left == 0 {
                    self.tables.remove(&table);
                    self.hub.send(self.coordinator, &ControlMessage::TableReady { table })?;
                }
            }
            Report::TableCreated(table, Err(error)) => {
                // The Coordinator hears of it once, however many threads fail.
                if self.tables.remove(&table).is_none() {
                    return Ok(());
                }
                let failed = ControlMessage::TableFailed { table, reason: error.to_string() };
                self.hub.send(self.coordinator, &failed)?;
            }
            Report::Opened(token, outcome) => {
                let Some(Asked { link, request, .. }) = self.answered(token) else { return Ok(()) };
                let answer = match outcome {
                    Ok(opened) => ControlMessage::EndpointOpened {
                        request,
                        address: opened.address,
                        slots: opened.slots.encode(),
                        slot_count: opened.slot_count,
                        slot_bytes: opened.slot_bytes,
                        pull_credits: opened.pull_credits,
                        key_lists: opened.key_lists,
                    },
                    Err(error) => ControlMessage::EndpointRefused { request, reason: error.to_string() },
                };
                self.say(link, &answer);
            }
            Report::Stats(token, stats, clocks) => {
                let threads = self.threads.len();
                let Some(asked) = self.asked.get_mut(&token) else { return Ok(()) };
                asked.stats.push(stats);
                if thread == 0 {
                    asked.clocks = clocks;
                }
                if asked.stats.len() == threads
                    && let Some(Asked { link, request, stats, clocks, .. }) = self.answered(token)
                {
                    self.say(link, &ControlMessage::Stats { request, threads: stats, clocks });
                    self.query(link);
                }
            }
            Report::Lost(rank) => {
                if let Some(&link) = self.links.get(&rank) {
                    self.say(link, &ControlMessage::EndpointLost { thread });
                }
            }
            Report::Drained => {
                if let Some(leaving) = &mut self.leaving {
                    leaving.threads -= 1;
                }
            }
            Report::CutAnswer(number, answer) => {
                let message = self.cuts.answered(number, answer);
                self.tell(message)?;
            }
            Report::CutWritten(number, written) => {
                // That of one that was given up is none.
                if let Err(error) = &written
                    && self.cuts.is_pending(number)
                {
                    warn!("server {}: cut {number}: {error}", self.name());
                }
                let message = self.cuts.written(number, written);
                self.tell(message)?;
            }
            Report::Verified(number, outcome) => {
                let verifying = self.verifying.as_mut();
                let message = verifying.map_or(Ok(None), |verifying| verifying.ended(number, outcome))?;
                self.tell(message)?;
            }
            // The others hear the reason from the Coordinator before they see our links close, so we stay until it says so.
            Report::WorkerFailed(error) => {
                if self.failure.is_none() {
                    self.abort(&error);
                    self.failure = Some(error);
                }
            }
            Report::Failed(error) => {
                return Err(Error::Aborted { reason: format!("thread {thread} failed: {error}") });
            }
        }
        Ok(())
    }

    /// A worker that can't be told is about to be reported down.
    fn say(&mut self, link: LinkId, message: &ControlMessage) {
        if let Err(error) = self.hub.send(link, message) {
            debug!("{error}");
        }
    }
}
