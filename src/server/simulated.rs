//! Server threads over a simulated network: the real reactor and core. Only the control thread is played by the test.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::reactor::{Command, OpenRequest, Opened, Reactor, Report, Reports};
use super::supply::Supplier;
use crate::config::{Network, Polling, ServerLimits, TransportKind};
use crate::error::Result;
use crate::mem::RemoteRegion;
use crate::proto::ThreadStats;
use crate::proto::control::ControlMessage;
use crate::proto::handshake::derive_endpoint_key;
use crate::store::Optimizers;
use crate::transport::choice::Agreed;
use crate::transport::park::Waker;
use crate::transport::{SessionKey, Transport};
use crate::types::{Rank, ShardId, TableId, TableSpec, View};

/// A fault to switch on, to show that a test would find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Pulls are answered one clock too early.
    AnswersEarly,
    /// Pulls are never answered.
    NeverAnswers,
    /// Replayed pushes are applied again.
    KeepsDuplicates,
    /// Keys that are kept in place of others find the rows of those.
    KeepsPositions,
    /// The thread that supplies memory panics.
    SupplyPanics,
}

/// What came of lists of keys.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Listed {
    /// Requests that named one.
    pub named: u64,
    /// Lists that another was put in place of.
    pub replaced: u64,
}

thread_local! {
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
    static LISTED: Cell<Listed> = const { Cell::new(Listed { named: 0, replaced: 0 }) };
}

/// How many closed clocks a pull waits for on this server thread, if `needed` would be right.
pub(crate) fn needed(needed: u64) -> u64 {
    match FAULT.get() {
        Fault::AnswersEarly => needed.saturating_sub(1),
        Fault::NeverAnswers => u64::MAX,
        Fault::None | Fault::KeepsDuplicates | Fault::KeepsPositions | Fault::SupplyPanics => needed,
    }
}

/// Gives this server thread a fault.
pub(crate) fn set(fault: Fault) {
    FAULT.set(fault);
}

/// Whether this server thread has a fault.
pub(crate) fn has(fault: Fault) -> bool {
    FAULT.get() == fault
}

/// Counts something of this server thread.
pub(crate) fn count(something: impl Fn(&mut Listed)) {
    let mut listed = LISTED.get();
    something(&mut listed);
    LISTED.set(listed);
}

/// [`crate::config::ServerLimits::key_list_bytes`] that give each worker so many places.
pub(crate) fn key_list_bytes(places: u64, workers: u64) -> u64 {
    places * workers * super::core::PLACE
}

/// The control thread's end of one server thread.
pub(crate) struct Wires {
    commands: Sender<Command>,
    stop: Arc<AtomicBool>,
    reports: Receiver<(u32, Report)>,
}

/// What the server thread starts with.
pub(crate) struct Ends {
    inbox: Receiver<Command>,
    stop: Arc<AtomicBool>,
    outbox: Sender<(u32, Report)>,
}

/// What a server thread says.
pub(crate) enum Said {
    /// For the worker that asked under this number.
    Answer(u64, ControlMessage),
    Stats(ThreadStats),
    /// Something is wrong.
    Failed(String),
}

pub(crate) fn wires() -> (Wires, Ends) {
    let (commands, inbox) = unbounded();
    let (outbox, reports) = unbounded();
    let stop = Arc::new(AtomicBool::new(false));
    (Wires { commands, stop: stop.clone(), reports }, Ends { inbox, stop, outbox })
}

/// Runs server thread `id` until it is stopped; what came of lists there.
pub(crate) fn serve(
    transport: Box<dyn Transport>,
    id: ShardId,
    limits: ServerLimits,
    ends: Ends,
    fault: Fault,
) -> Result<Listed> {
    set(fault);
    // Whoever reads the reports listens to their channel.
    let reports = Reports::new(id.thread, ends.outbox, Arc::new(|| {}));
    let network = Network { polling: Polling::Block, ..Network::default() };
    let optimizers = Optimizers::default();
    Reactor::new(
        id,
        transport,
        Vec::new(),
        network,
        limits,
        optimizers,
        Supplier::new(Vec::new()),
        ends.inbox,
        ends.stop,
        Waker::new()?,
        reports,
    )
    .run();
    Ok(LISTED.take())
}

impl Wires {
    pub fn begin(&self, server: Rank, view: &View, tables: &[TableSpec]) {
        let agreed = Agreed { kind: TransportKind::Tcp, local: false };
        self.tell(Command::Begin(server, view.clone(), agreed, None));
        for (id, spec) in (0..).zip(tables) {
            let id: TableId = id;
            self.tell(Command::CreateTable(id, spec.clone()));
        }
    }

    /// Passes a worker's wish for an endpoint on.
    pub fn open(&self, token: u64, rank: Rank, incarnation: u64, export: &SessionKey, wish: &ControlMessage) {
        let ControlMessage::OpenEndpoint { thread, address, ring, ring_entries, receive, .. } = wish else {
            return;
        };
        let (Some(ring), Some(receive)) = (RemoteRegion::decode(ring), RemoteRegion::decode(receive)) else {
            return;
        };
        self.tell(Command::Open(Box::new(OpenRequest {
            token,
            rank,
            incarnation,
            peer: format!("worker {rank}"),
            address: address.clone(),
            key: derive_endpoint_key(export, "data", &[*thread]),
            ring,
            ring_entries: *ring_entries,
            receive,
        })));
    }

    pub fn ask_stats(&self) {
        self.tell(Command::Stats(0));
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    fn tell(&self, command: Command) {
        // A thread that is gone has panicked, which ends the simulation.
        let _ = self.commands.send(command);
    }

    /// Tells whether the thread has said something.
    pub fn ear(&self) -> Box<dyn Fn() -> bool + Send + Sync> {
        let reports = self.reports.clone();
        Box::new(move || !reports.is_empty())
    }

    /// What the thread says next.
    pub fn next(&self) -> Option<Said> {
        loop {
            return Some(match self.reports.try_recv().ok()?.1 {
                Report::TableCreated(_, Ok(()))
                | Report::Drained
                | Report::Lost(_)
                | Report::CutAnswer(..)
                | Report::CutWritten(..)
                | Report::Verified(..) => continue,
                Report::TableCreated(_, Err(error)) => Said::Failed(error.to_string()),
                Report::Opened(token, outcome) => Said::Answer(token, answer(outcome)),
                Report::Stats(_, stats, _) => Said::Stats(stats),
                Report::WorkerFailed(error) | Report::Failed(error) => Said::Failed(error.to_string()),
            });
        }
    }
}

fn answer(outcome: Result<Opened>) -> ControlMessage {
    match outcome {
        Ok(opened) => ControlMessage::EndpointOpened {
            request: 0,
            address: opened.address,
            slots: opened.slots.encode(),
            slot_count: opened.slot_count,
            slot_bytes: opened.slot_bytes,
            pull_credits: opened.pull_credits,
            key_lists: opened.key_lists,
        },
        Err(error) => ControlMessage::EndpointRefused { request: 0, reason: error.to_string() },
    }
}
