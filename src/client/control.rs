//! A worker's control thread: keeps the links alive, and carries the calls that are not about data.
//!
//! It sleeps but for its heartbeats, so it costs a computing worker nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};

use super::cuts::Cuts;
use super::driver::Driver;
use super::reopen::{Granted, Outcome, Wish};
use crate::control::{Event, Hub, HubWaker, LinkId};
use crate::error::{Error, Result};
use crate::proto::ThreadStats;
use crate::proto::control::{ControlMessage, MAX_STATUS, PeerStatus, reason};
use crate::transport::SessionKey;
use crate::transport::park::Waker;
use crate::types::{Clock, Rank, TableId, TableSpec};

/// How long the loss of a server may be the consequence of what the Coordinator is about to tell.
pub const SETTLE: Duration = Duration::from_secs(2);
/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Time between two looks at what a server that leaves has answered.
const LOOK: Duration = Duration::from_millis(20);
/// How long one takes at most: a call may wait for the engine.
const LONGEST_LOOK: Duration = Duration::from_millis(5);
/// How long the links may take to close at the end.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// One server's figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStats {
    /// Which server.
    pub rank: Rank,
    /// One for each of its threads.
    pub threads: Vec<ThreadStats>,
    /// The clock that each worker is in, by rank, as the server's first thread sees it.
    pub clocks: Vec<Clock>,
}

/// The control links of a worker that has joined.
pub struct ControlLinks {
    pub hub: Hub,
    pub coordinator: LinkId,
    /// In the order of the View: rank, link, and the root of its endpoints' keys.
    pub servers: Vec<(Rank, LinkId, SessionKey)>,
    /// Endpoints that the engine wants opened anew.
    pub wishes: Receiver<Wish>,
    /// What became of them.
    pub outcomes: Sender<Outcome>,
    /// What the Coordinator has said that was not about joining.
    pub early: Vec<ControlMessage>,
}

/// What the control thread and the callers share.
pub struct Shared {
    /// This worker, for messages.
    pub rank: Rank,
    /// Wakes a waiter when something failed.
    pub waker: Waker,
    /// The worker's clock, for heartbeats.
    pub clock: AtomicU64,
    status: Mutex<Vec<u8>>,
    cuts: Mutex<Cuts>,
    failure: OnceLock<Error>,
    driver: OnceLock<Weak<Driver>>,
}

impl Shared {
    /// Nothing has failed yet, and the worker is in clock `clock`.
    pub fn new(rank: Rank, clock: Clock, cuts: Cuts) -> Result<Shared> {
        let (status, cuts) = (Mutex::new(Vec::new()), Mutex::new(cuts));
        let clock = AtomicU64::new(clock);
        let (failure, driver) = (OnceLock::new(), OnceLock::new());
        Ok(Shared { rank, waker: Waker::new()?, clock, status, cuts, failure, driver })
    }

    /// Lets the control thread drive the engine where nobody else does.
    pub fn drive_by(&self, driver: &Arc<Driver>) {
        // There is one.
        let _ = self.driver.set(Arc::downgrade(driver));
    }

    /// Takes what has come, unless a call does: what goes wrong here every later call finds, too.
    fn look(&self) {
        let driver = self.driver.get().and_then(Weak::upgrade);
        if let Some(driver) = driver.filter(|driver| driver.waiting() == 0)
            && let Some(mut engine) = driver.try_engine()
        {
            driver.rouse();
            // A poll takes no more than a ring holds, which for answers that could not be shown is little.
            let until = Instant::now() + LONGEST_LOOK;
            while engine.progress().is_ok_and(|more| more) && Instant::now() < until {}
        }
    }

    /// The worker's part of cuts.
    pub fn cuts(&self) -> MutexGuard<'_, Cuts> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the job failed, if it did.
    pub fn failure(&self) -> Option<Error> {
        self.failure.get().cloned()
    }

    /// Why the control thread is gone.
    fn gone(&self) -> Error {
        self.failure().unwrap_or_else(|| Error::Misuse {
            call: "control call",
            reason: "this client has been finalized".to_owned(),
        })
    }

    fn fail(&self, error: Error) {
        // The first reason is the cause; later ones are its consequences.
        let _ = self.failure.set(error);
        self.waker.wake();
    }
}

enum Call {
    OpenTable(TableSpec, Sender<Result<TableId>>),
    Barrier(Sender<Result<()>>),
    Peers(Sender<Result<Vec<PeerStatus>>>),
    Stats(Sender<Result<Vec<ServerStats>>>),
    Finish,
    Abort(String),
}

/// What the control thread will answer to a call.
pub struct Answer<T> {
    answer: Receiver<Result<T>>,
    shared: Arc<Shared>,
}

impl<T> Answer<T> {
    /// The answer, if it comes in time.
    pub fn within(&self, timeout: Duration) -> Result<Option<T>> {
        match self.answer.recv_timeout(timeout) {
            Ok(outcome) => outcome.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.shared.gone()),
        }
    }

    /// The answer, once it is here.
    pub fn take(&self) -> Result<Option<T>> {
        match self.answer.try_recv() {
            Ok(outcome) => outcome.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(self.shared.gone()),
        }
    }
}

/// Unbounded, because only this kind drops what is in it when its receiver goes, and with it the callers' reply channels.
/// Every caller waits for its answers, of which it has two under way at most (a barrier's, and who is late for it), so that
/// bounds the calls that it holds.
fn calls() -> (Sender<Call>, Receiver<Call>) {
    unbounded()
}

/// The handle by which callers reach the control thread.
pub struct ControlThread {
    calls: Sender<Call>,
    waker: HubWaker,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ControlThread {
    /// Takes the links over.
    pub fn start(links: ControlLinks, shared: Arc<Shared>) -> Result<ControlThread> {
        let (calls, inbox) = calls();
        let waker = links.hub.waker();
        let state = State {
            hub: links.hub,
            coordinator: links.coordinator,
            early: links.early,
            servers: links.servers,
            wishes: links.wishes,
            outcomes: links.outcomes,
            reopening: HashMap::new(),
            shared: shared.clone(),
            inbox,
            next_request: 0,
            tables: HashMap::new(),
            barriers: HashMap::new(),
            barrier: 0,
            peers: Vec::new(),
            stats: HashMap::new(),
            finishing: false,
            leaving: false,
            lost: None,
        };
        let thread = std::thread::Builder::new()
            .name("wl-ctl".to_owned())
            .spawn(move || state.run())
            .map_err(|e| Error::io("start thread", "wl-ctl", e))?;
        Ok(ControlThread { calls, waker, shared, thread: Mutex::new(Some(thread)) })
    }

    /// No thread and no links: every call fails.
    #[cfg(test)]
    pub fn unlinked(shared: Arc<Shared>, waker: HubWaker) -> ControlThread {
        ControlThread { calls: calls().0, waker, shared, thread: Mutex::new(None) }
    }

    /// What is shared with the thread.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Opens a table in the catalogue.
    pub fn open_table(&self, spec: &TableSpec, timeout: Duration) -> Result<TableId> {
        let waited_for = format!("table \"{}\" to be made on all servers", spec.name);
        self.call(&waited_for, timeout, |reply| Call::OpenTable(spec.clone(), reply))
    }

    /// Goes to the next barrier. When all workers are there the answer comes, and the waker wakes.
    pub fn barrier(&self) -> Result<Answer<()>> {
        self.ask(Call::Barrier)
    }

    /// Asks for what the workers said last.
    pub fn ask_peers(&self) -> Result<Answer<Vec<PeerStatus>>> {
        self.ask(Call::Peers)
    }

    /// What the workers said last.
    pub fn peers(&self, timeout: Duration) -> Result<Vec<PeerStatus>> {
        self.call("the coordinator's list of workers", timeout, Call::Peers)
    }

    /// The servers' figures.
    pub fn server_stats(&self, timeout: Duration) -> Result<Vec<ServerStats>> {
        self.call("the figures of the servers", timeout, Call::Stats)
    }

    /// What the next heartbeat says of this worker.
    pub fn set_status(&self, status: &[u8]) -> Result<()> {
        if status.len() > MAX_STATUS {
            return Err(Error::config("status", format!("at most {MAX_STATUS} bytes"), status.len()));
        }
        let mut slot = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        slot.clear();
        slot.extend_from_slice(status);
        Ok(())
    }

    /// Changes the worker's part of cuts, and sends what is to be sent when `change` says so.
    pub fn cut(&self, change: impl FnOnce(&mut Cuts) -> bool) {
        if change(&mut self.shared.cuts()) {
            // Without the wake the thread looks at its next heartbeat.
            let _ = self.waker.wake();
        }
    }

    /// Says that this worker is done, and waits until that has reached the Coordinator.
    pub fn finish(&self) -> Result<()> {
        let _ = self.calls.send(Call::Finish); // a thread that is gone has failed, and says so below
        self.stop();
        self.shared.failure().map_or(Ok(()), Err)
    }

    /// Ends the job for everybody, with a reason.
    pub fn abort(&self, reason: String) {
        let _ = self.calls.send(Call::Abort(reason)); // a thread that is gone has failed already
        self.stop();
    }

    fn stop(&self) {
        // Without the wake the thread looks at its inbox at its next heartbeat.
        let _ = self.waker.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that panicked has nothing left to say.
            let _ = thread.join();
        }
    }

    fn call<T>(
        &self,
        waited_for: &str,
        timeout: Duration,
        call: impl FnOnce(Sender<Result<T>>) -> Call,
    ) -> Result<T> {
        let late = || Error::Timeout { waited_for: waited_for.to_owned(), after: timeout };
        self.ask(call)?.within(timeout)?.ok_or_else(late)
    }

    fn ask<T>(&self, call: impl FnOnce(Sender<Result<T>>) -> Call) -> Result<Answer<T>> {
        let (reply, answer) = bounded(1);
        self.calls.send(call(reply)).map_err(|_| self.shared.gone())?;
        // Without the wake the thread looks at its inbox at its next heartbeat.
        let _ = self.waker.wake();
        Ok(Answer { answer, shared: self.shared.clone() })
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        // A thread that was not told Finish closes its links, which the Coordinator takes for what it is: a failure.
        let (closed, _) = bounded(0);
        self.calls = closed;
        self.stop();
    }
}

struct Gathering {
    left: usize,
    servers: Vec<ServerStats>,
    reply: Sender<Result<Vec<ServerStats>>>,
}

struct State {
    hub: Hub,
    coordinator: LinkId,
    early: Vec<ControlMessage>,
    servers: Vec<(Rank, LinkId, SessionKey)>,
    wishes: Receiver<Wish>,
    outcomes: Sender<Outcome>,
    /// By request.
    reopening: HashMap<u32, Wish>,
    shared: Arc<Shared>,
    inbox: Receiver<Call>,
    next_request: u32,
    tables: HashMap<u32, Sender<Result<TableId>>>,
    barriers: HashMap<u64, Sender<Result<()>>>,
    barrier: u64,
    peers: Vec<Sender<Result<Vec<PeerStatus>>>>,
    stats: HashMap<u32, Gathering>,
    finishing: bool,
    /// A server waits until this worker has taken its answers.
    leaving: bool,
    /// The first server that was lost, and when.
    lost: Option<(Instant, Error)>,
}

/// Callers would wait until they are late for what a thread that panicked was to tell them.
struct TellsOfPanic(Arc<Shared>);

impl Drop for TellsOfPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::Aborted { reason: "this worker's control thread panicked".to_owned() });
        }
    }
}

impl State {
    fn run(mut self) {
        let _told = TellsOfPanic(self.shared.clone());
        if let Err(error) = self.serve() {
            // So that the others hear the reason, and not just that a link closed.
            let _ =
                self.hub.send(self.coordinator, &ControlMessage::Abort { reason: reason(error.to_string()) });
            self.shared.fail(error);
        }
        // The waiters' channels close with `self`; they then read the shared failure.
        let _ = self.hub.shut_down(PATIENCE);
    }

    fn serve(&mut self) -> Result<()> {
        for message in std::mem::take(&mut self.early) {
            self.hear(self.coordinator, message)?;
        }
        let mut events = Vec::new();
        let mut next_beat = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_beat {
                next_beat = now + HEARTBEAT;
                self.beat()?;
            }
            let mut patience = next_beat.saturating_duration_since(now);
            if self.leaving {
                self.shared.look();
                patience = patience.min(LOOK);
            }
            self.hub.poll(&mut events, patience)?;
            for event in events.drain(..) {
                self.take(event)?;
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(call) => self.carry(call)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            while let Ok(wish) = self.wishes.try_recv() {
                self.reopen(wish)?;
            }
            self.send_state()?;
            if self.finishing {
                return Ok(());
            }
            if let Some((_, error)) = self.lost.take_if(|(since, _)| since.elapsed() >= SETTLE) {
                return Err(error);
            }
        }
    }

    fn reopen(&mut self, wish: Wish) -> Result<()> {
        let request = self.next_request();
        let message = wish.message(request);
        let link = self.servers[wish.server].1;
        self.reopening.insert(request, wish);
        match self.hub.send(link, &message) {
            // Its Down is on its way and says why.
            Err(Error::PeerLost { .. }) => Ok(()),
            sent => sent,
        }
    }

    /// A server answered a wish for a new endpoint.
    fn reopened(&mut self, link: LinkId, request: u32, granted: std::result::Result<Granted, String>) {
        let Some(wish) = self.reopening.remove(&request) else { return };
        let Some(&(_, expected, export)) = self.servers.get(wish.server) else { return };
        if expected == link {
            // The engine is gone only when the client is.
            let _ = self.outcomes.send(wish.outcome(granted, &export));
            self.shared.waker.wake();
        }
    }

    fn beat(&mut self) -> Result<()> {
        let status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let clock = self.shared.clock.load(Ordering::Relaxed);
        self.hub.send(self.coordinator, &ControlMessage::Heartbeat { clock, status })
    }

    fn carry(&mut self, call: Call) -> Result<()> {
        match call {
            Call::OpenTable(spec, reply) => {
                let request = self.next_request();
                self.tables.insert(request, reply);
                self.hub.send(self.coordinator, &ControlMessage::OpenTable { request, spec })
            }
            Call::Barrier(reply) => {
                let id = self.barrier;
                self.barrier += 1;
                self.barriers.insert(id, reply);
                self.hub.send(self.coordinator, &ControlMessage::Barrier { id })
            }
            Call::Peers(reply) => {
                self.beat()?;
                self.peers.push(reply);
                self.hub.send(self.coordinator, &ControlMessage::PeersQuery)
            }
            Call::Stats(reply) => {
                let request = self.next_request();
                let left = self.servers.len();
                self.stats.insert(request, Gathering { left, servers: Vec::new(), reply });
                for &(_, link, _) in &self.servers {
                    self.hub.send(link, &ControlMessage::StatsQuery { request })?;
                }
                Ok(())
            }
            Call::Abort(reason) => {
                self.finishing = true;
                // Calls of other threads that wait.
                self.shared.fail(Error::Aborted { reason: reason.clone() });
                self.hub.send(self.coordinator, &ControlMessage::Abort { reason: self::reason(reason) })
            }
            Call::Finish => {
                self.finishing = true;
                self.send_state()?;
                let last = self.shared.cuts().last().map(<[u8]>::to_vec);
                if let Some(state) = last {
                    self.hub.send(self.coordinator, &ControlMessage::CutState { number: 0, state })?;
                }
                self.hub.send(self.coordinator, &ControlMessage::Finish)
            }
        }
    }

    /// Sends the state that a cut waits for, if there is one.
    fn send_state(&mut self) -> Result<()> {
        let Some((number, state)) = self.shared.cuts().next_state() else { return Ok(()) };
        self.hub.send(self.coordinator, &ControlMessage::CutState { number, state })
    }

    fn next_request(&mut self) -> u32 {
        self.next_request = self.next_request.wrapping_add(1);
        self.next_request
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Message { link, message } => self.hear(link, message),
            Event::Down { link, reason, .. } if link == self.coordinator => Err(reason),
            Event::Down { reason, .. } => {
                self.lost.get_or_insert((Instant::now(), reason));
                Ok(())
            }
            Event::Up { .. } | Event::Refused { .. } => Ok(()),
        }
    }

    fn hear(&mut self, link: LinkId, message: ControlMessage) -> Result<()> {
        match message {
            ControlMessage::TableOpened { request, table, .. } => {
                if let Some(reply) = self.tables.remove(&request) {
                    let _ = reply.send(Ok(table)); // the caller may have timed out
                }
            }
            ControlMessage::TableRefused { request, reason } => {
                if let Some(reply) = self.tables.remove(&request) {
                    let _ = reply.send(Err(Error::Refused { peer: "the coordinator".to_owned(), reason }));
                }
            }
            ControlMessage::BarrierDone { id } => {
                if let Some(reply) = self.barriers.remove(&id) {
                    let _ = reply.send(Ok(()));
                    self.shared.waker.wake();
                }
            }
            ControlMessage::Peers(peers) => {
                for reply in self.peers.drain(..) {
                    let _ = reply.send(Ok(peers.clone()));
                }
            }
            ControlMessage::Stats { request, threads, clocks } => {
                self.gathered(link, request, threads, clocks);
            }
            opened @ (ControlMessage::EndpointOpened { .. } | ControlMessage::EndpointRefused { .. }) => {
                if let Some((request, granted)) = Granted::of(opened) {
                    self.reopened(link, request, granted);
                }
            }
            ControlMessage::EndpointLost { thread } => {
                if let Some(server) = self.servers.iter().position(|(_, server, _)| *server == link) {
                    // As in `reopened`.
                    let _ = self.outcomes.send(Outcome::Lost { server, thread });
                    self.shared.waker.wake();
                }
            }
            ControlMessage::Cut { number, clock } => {
                let passed = self.shared.cuts().named(number, clock);
                let answer = ControlMessage::CutAnswer { number, passed };
                return self.hub.send(self.coordinator, &answer);
            }
            ControlMessage::CancelCut { number } => self.shared.cuts().cancelled(number),
            ControlMessage::Leaving => self.leaving = true,
            ControlMessage::Abort { reason } => return Err(Error::Aborted { reason }),
            _ => {}
        }
        Ok(())
    }

    fn gathered(&mut self, link: LinkId, request: u32, threads: Vec<ThreadStats>, clocks: Vec<Clock>) {
        let Some(&(rank, ..)) = self.servers.iter().find(|(_, l, _)| *l == link) else { return };
        let Some(gathering) = self.stats.get_mut(&request) else { return };
        gathering.servers.push(ServerStats { rank, threads, clocks });
        gathering.left -= 1;
        if gathering.left == 0
            && let Some(mut done) = self.stats.remove(&request)
        {
            done.servers.sort_by_key(|s| s.rank);
            let _ = done.reply.send(Ok(done.servers));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call that is queued while the thread ends must not wait for its timeout.
    #[test]
    fn a_call_that_nobody_takes_is_given_up_with_the_channel() {
        let (calls, inbox) = calls();
        let (reply, answer) = bounded(1);
        calls.send(Call::Peers(reply)).unwrap();
        drop(inbox);
        assert_eq!(answer.recv_timeout(Duration::from_secs(10)).unwrap_err(), RecvTimeoutError::Disconnected);
    }
}
