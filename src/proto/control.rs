//! The messages of the control plane, and their frames on an authenticated link.
//!
//! ```text
//!  u32 length of the body | body (postcard) | 32-byte MAC
//!  MAC = keyed BLAKE3 with the direction's key over: u64 number of the frame, from 0 | u32 length | body
//! ```
//! Little-endian. The number is not sent: a frame that was lost, repeated or moved does not fit its MAC.

use serde::{Deserialize, Serialize};

use super::handshake::SessionKey;
use crate::config::TransportKind;
use crate::error::{Error, Result};
use crate::types::{Clock, Offer, Rank, Role, ServerInfo, TableId, TableSpec, View, shortened};

/// The longest body of a frame, in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// The longest status of a heartbeat, in bytes.
pub const MAX_STATUS: usize = 64;
/// The longest reason, in bytes.
pub const MAX_REASON: usize = 4096;
/// The longest control address or transport name, in bytes.
pub const MAX_NAME: usize = 256;
/// The longest endpoint address, in bytes.
pub const MAX_ENDPOINT_ADDRESS: usize = 1024;
/// The most transports that a node may offer.
pub const MAX_TRANSPORTS: usize = 8;
/// The longest opaque state of a worker, in bytes.
pub const MAX_STATE: usize = 64 << 10;
/// The most servers, workers or threads that a message may list.
pub const MAX_NODES: usize = 1 << 16;

const LENGTH: usize = 4;
const MAC: usize = 32;

/// An encoded `mem::RemoteRegion`; its receiver decodes and checks it.
pub type RegionBytes = [u8; 21];

/// All that nodes say to each other on a control link. The order of the variants is the wire format: add at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControlMessage {
    /// Both ways, sent by the hub itself when there was nothing else to say.
    Keepalive,

    // Node to Coordinator.
    /// The first message: let me take part.
    Join {
        /// As in the handshake.
        role: Role,
        /// A worker's rank; a server may leave the choice to the Coordinator.
        rank: Option<Rank>,
        /// A worker's claim of the number of workers.
        workers: Option<u32>,
        /// A server's control listener, `IP:PORT`.
        address: Option<String>,
        /// A server's number of threads; 0 from a worker.
        threads: u32,
        /// The number of a server's first thread among the server threads of its host; 0 from a worker.
        first: u32,
    },
    /// I am alive, and so far.
    Heartbeat {
        /// The worker's clock.
        clock: Clock,
        /// For the progress bar; at most [`MAX_STATUS`] bytes, opaque to the Coordinator.
        status: Vec<u8>,
    },
    /// A worker opens a table by name, making it if there is none.
    OpenTable {
        /// Comes back in the answer.
        request: u32,
        /// What the table is to be.
        spec: TableSpec,
    },
    /// A server has made its shards of the table.
    TableReady {
        /// As in CreateTable.
        table: TableId,
    },
    /// A server can't make its shards of the table.
    TableFailed {
        /// As in CreateTable.
        table: TableId,
        /// Why.
        reason: String,
    },
    /// A worker is at a barrier.
    Barrier {
        /// All workers that have not finished must say the same.
        id: u64,
    },
    /// Answered by Peers.
    PeersQuery,
    /// This worker is done; its link may close.
    Finish,

    // Coordinator to node.
    /// Welcome.
    Joined {
        /// The node's rank.
        rank: Rank,
    },
    /// Not welcome; the link is closed.
    JoinRefused {
        /// Why.
        reason: String,
    },
    /// Sent to all once all are there.
    View(View),
    /// A server is to make its shards of the table, and to say TableReady or TableFailed.
    CreateTable {
        /// The table's number.
        table: TableId,
        /// What it is.
        spec: TableSpec,
    },
    /// The table is ready on all servers.
    TableOpened {
        /// As in OpenTable.
        request: u32,
        /// The table's number.
        table: TableId,
        /// What it is.
        spec: TableSpec,
    },
    /// The table can't be opened so.
    TableRefused {
        /// As in OpenTable.
        request: u32,
        /// Why.
        reason: String,
    },
    /// All workers that have not finished were at the barrier.
    BarrierDone {
        /// As in Barrier.
        id: u64,
    },
    /// Answers a heartbeat.
    HeartbeatAck,
    /// What the workers said in their last heartbeats, by rank.
    Peers(Vec<PeerStatus>),
    /// The job has failed (from the Coordinator), or is to fail (from a node).
    Abort {
        /// Why, naming the node.
        reason: String,
    },
    /// All workers have finished: a server ends.
    Shutdown,

    // Worker to server and back.
    /// A worker asks for an endpoint to one server thread.
    OpenEndpoint {
        /// Comes back in the answer.
        request: u32,
        /// The server thread.
        thread: u32,
        /// Transport by name: `tcp`, `verbs`.
        transport: String,
        /// The worker's transport address.
        address: Vec<u8>,
        /// The worker's reply ring, writable by the server.
        ring: RegionBytes,
        /// Entries in the reply ring.
        ring_entries: u32,
        /// The worker's receive memory, writable by the server.
        receive: RegionBytes,
    },
    /// The endpoint is open.
    EndpointOpened {
        /// As in OpenEndpoint.
        request: u32,
        /// The server thread's transport address.
        address: Vec<u8>,
        /// The worker's slots on the server, writable by the worker.
        slots: RegionBytes,
        /// Number of slots = push credits.
        slot_count: u32,
        /// Size of one slot in bytes, header included.
        slot_bytes: u32,
        /// How many pulls may be outstanding.
        pull_credits: u32,
        /// How many places for lists of keys the worker has there, each for 1024 keys.
        key_lists: u32,
    },
    /// No endpoint.
    EndpointRefused {
        /// As in OpenEndpoint.
        request: u32,
        /// Why.
        reason: String,
    },
    /// Answered by Stats.
    StatsQuery {
        /// Comes back in the answer.
        request: u32,
    },
    /// A server's figures.
    Stats {
        /// As in StatsQuery.
        request: u32,
        /// One entry for each server thread.
        threads: Vec<ThreadStats>,
        /// The clock that each worker is in, by rank, as the first thread sees it.
        clocks: Vec<Clock>,
    },

    // Node to Coordinator and back.
    /// Ahead of Join: what this node can carry data by. Without it tcp.
    Offer(Offer),
    /// Ahead of the View: what the data of the job travels by.
    Agreed {
        /// The best that all nodes offer.
        transport: TransportKind,
        /// Nodes on one host share memory too: all can, and some worker is on a server's host.
        local: bool,
        /// Why nothing better, naming the node; empty when nobody offers or misses that.
        reason: String,
    },

    // Server to worker.
    /// The endpoint to one server thread is gone at the server. Not every transport lets the worker see that by itself.
    EndpointLost {
        /// The server thread.
        thread: u32,
    },

    // Tasks that a launcher started, before they are nodes of a job.
    /// A task to that with which the Coordinator is: here I am.
    CheckIn {
        /// Its number.
        task: u32,
        /// How many tasks there are.
        tasks: u32,
        /// What it is, if that is decided already.
        role: Option<Role>,
        /// Its node, as the launcher calls it.
        node: String,
        /// What names the running system: tasks that say the same share its CPUs.
        machine: String,
    },
    /// Answers CheckIn once all are there.
    Placed {
        /// What the task is.
        role: Role,
        /// Its rank among those.
        rank: Rank,
        /// How many servers there are.
        servers: u32,
        /// How many workers there are.
        workers: u32,
        /// The Coordinator, `IP:PORT`.
        coordinator: String,
        /// Its number among the tasks of its machine, servers before workers.
        local_index: u32,
        /// Threads of the job that wait for the network on that machine.
        pollers: u32,
    },
    // Checkpoints. Coordinator to node:
    /// Before the View, of a job that is resumed: go on from this cut.
    Resume {
        /// Its number.
        number: u64,
        /// The clock that every worker is in.
        clock: Clock,
        /// What this worker saved; empty for a server.
        state: Vec<u8>,
    },
    /// Be cut at this clock, and say CutAnswer.
    Cut {
        /// Counts the cuts, from 1.
        number: u64,
        /// Which clock.
        clock: Clock,
    },
    /// The cut is given up.
    CancelCut {
        /// Which cut.
        number: u64,
    },
    // Node to Coordinator:
    /// Answers Cut.
    CutAnswer {
        /// Which cut.
        number: u64,
        /// The clock that this node has come to already, if that is too far.
        passed: Option<Clock>,
    },
    /// A worker's state at the cut's clock; with number 0 its last one, before Finish.
    CutState {
        /// Which cut.
        number: u64,
        /// At most [`MAX_STATE`] bytes, opaque to everybody else.
        state: Vec<u8>,
    },
    /// A server has written all its files of the cut.
    CutWritten {
        /// Which cut.
        number: u64,
        /// One for each thread.
        files: Vec<WrittenFile>,
    },
    /// A server can't write its files of the cut.
    CutFailed {
        /// Which cut.
        number: u64,
        /// Why.
        reason: String,
    },
    // Before a job goes on from a cut. Coordinator to server:
    /// Read one of so many parts of this cut.
    Verify {
        /// Which cut.
        number: u64,
        /// Which part.
        part: u32,
        /// Of how many.
        of: u32,
    },
    // Server to Coordinator:
    /// Answers Verify.
    Verified {
        /// Which cut.
        number: u64,
        /// The first damage that was found.
        damage: Option<Damage>,
    },
    /// Server to worker: it was told to stop, and waits until what it has answered is taken.
    Leaving,
}

/// What is wrong with a checkpoint, as [`Error::Checkpoint`] says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Path.
    pub file: String,
    /// The section.
    pub section: String,
    /// First byte within the file.
    pub offset: u64,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl From<Damage> for Error {
    fn from(Damage { file, section, offset, expected, found }: Damage) -> Error {
        Error::Checkpoint { file, section, offset, expected, found }
    }
}

/// A file of a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Its name in the cut's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What tells that it is whole, in hexadecimal.
    pub digest: String,
}

/// What a worker said in its last heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The worker.
    pub rank: Rank,
    /// Its clock.
    pub clock: Clock,
    /// Its status.
    pub status: Vec<u8>,
}

/// One server thread's figures since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadStats {
    /// Parameters held, in bytes.
    pub parameter_bytes: u64,
    /// Payload received in pushes, in bytes.
    pub pushed_bytes: u64,
    /// Payload sent in answers to pulls, in bytes.
    pub pulled_bytes: u64,
    /// Pieces applied.
    pub pushes: u64,
    /// Pulls answered.
    pub pulls: u64,
    /// Answers that were sent from where the parameters lie.
    pub replies_pinned: u64,
    /// Answers that were copied first.
    pub replies_copied: u64,
    /// Segments of dense tables whose next version was written elsewhere, since the present one was being sent.
    pub blocks_moved: u64,
    /// Pieces that had come before.
    pub duplicates_dropped: u64,
    /// Endpoints opened anew by a worker that had one.
    pub reconnects: u64,
    /// The most clocks that one worker was seen ahead of another.
    pub max_clock_lag: u64,
    /// All clocks < this have been ended by all workers.
    pub closed: Clock,
    /// Pieces that came after a quorum had closed their clock: dropped, or applied, as their table says.
    pub late_dropped: u64,
    /// See `late_dropped`.
    pub late_applied: u64,
    /// Pieces older than their table takes.
    pub stale_rejected: u64,
    /// Values that were infinite or no number, in tables that look for them.
    pub non_finite: u64,
    /// Pieces that were rejected because of such values.
    pub non_finite_rejected: u64,
    /// Bytes that were copied between the slots, the tables and the reply buffers: keys, and answers that are not sent from where
    /// the parameters lie. Dense pushes are folded from their slots and add nothing. Not counted: headers, and what a step, a
    /// set or a moved segment (`blocks_moved`) writes.
    pub bytes_copied: u64,
}

impl ControlMessage {
    /// The message's name, for messages about it.
    pub fn name(&self) -> &'static str {
        match self {
            ControlMessage::Keepalive => "Keepalive",
            ControlMessage::Join { .. } => "Join",
            ControlMessage::Heartbeat { .. } => "Heartbeat",
            ControlMessage::OpenTable { .. } => "OpenTable",
            ControlMessage::TableReady { .. } => "TableReady",
            ControlMessage::TableFailed { .. } => "TableFailed",
            ControlMessage::Barrier { .. } => "Barrier",
            ControlMessage::PeersQuery => "PeersQuery",
            ControlMessage::Finish => "Finish",
            ControlMessage::Joined { .. } => "Joined",
            ControlMessage::JoinRefused { .. } => "JoinRefused",
            ControlMessage::View(_) => "View",
            ControlMessage::CreateTable { .. } => "CreateTable",
            ControlMessage::TableOpened { .. } => "TableOpened",
            ControlMessage::TableRefused { .. } => "TableRefused",
            ControlMessage::BarrierDone { .. } => "BarrierDone",
            ControlMessage::HeartbeatAck => "HeartbeatAck",
            ControlMessage::Peers(_) => "Peers",
            ControlMessage::Abort { .. } => "Abort",
            ControlMessage::Shutdown => "Shutdown",
            ControlMessage::OpenEndpoint { .. } => "OpenEndpoint",
            ControlMessage::EndpointOpened { .. } => "EndpointOpened",
            ControlMessage::EndpointRefused { .. } => "EndpointRefused",
            ControlMessage::StatsQuery { .. } => "StatsQuery",
            ControlMessage::Stats { .. } => "Stats",
            ControlMessage::Offer(_) => "Offer",
            ControlMessage::Agreed { .. } => "Agreed",
            ControlMessage::EndpointLost { .. } => "EndpointLost",
            ControlMessage::CheckIn { .. } => "CheckIn",
            ControlMessage::Placed { .. } => "Placed",
            ControlMessage::Resume { .. } => "Resume",
            ControlMessage::Cut { .. } => "Cut",
            ControlMessage::CancelCut { .. } => "CancelCut",
            ControlMessage::CutAnswer { .. } => "CutAnswer",
            ControlMessage::CutState { .. } => "CutState",
            ControlMessage::CutWritten { .. } => "CutWritten",
            ControlMessage::CutFailed { .. } => "CutFailed",
            ControlMessage::Verify { .. } => "Verify",
            ControlMessage::Verified { .. } => "Verified",
            ControlMessage::Leaving => "Leaving",
        }
    }

    /// Holds the message to its limits. The spec in OpenTable is left to the Coordinator, which answers with the reason.
    fn check(&self, peer: &str) -> Result<()> {
        let within = |field: &'static str, length: usize, limit: usize| {
            if length <= limit {
                return Ok(());
            }
            Err(Error::protocol(peer, field, format!("at most {limit}"), length))
        };
        match self {
            ControlMessage::Join { address, threads, .. } => {
                within("address", address.as_ref().map_or(0, String::len), MAX_NAME)?;
                within("threads", *threads as usize, MAX_NODES)
            }
            ControlMessage::Offer(offer) => {
                within("kinds", offer.kinds.len(), MAX_TRANSPORTS)?;
                within("lacks", offer.lacks.len(), MAX_TRANSPORTS)?;
                offer.lacks.iter().try_for_each(|lack| within("why", lack.why.len(), MAX_REASON))
            }
            ControlMessage::Heartbeat { status, .. } => within("status", status.len(), MAX_STATUS),
            ControlMessage::TableFailed { reason, .. }
            | ControlMessage::JoinRefused { reason }
            | ControlMessage::TableRefused { reason, .. }
            | ControlMessage::EndpointRefused { reason, .. }
            | ControlMessage::Abort { reason }
            | ControlMessage::Agreed { reason, .. } => within("reason", reason.len(), MAX_REASON),
            ControlMessage::View(view) => check_view(view, peer, within),
            ControlMessage::CreateTable { spec, .. } | ControlMessage::TableOpened { spec, .. } => spec
                .validate()
                .map_err(|error| Error::protocol(peer, "spec", "a valid table specification", error)),
            ControlMessage::Peers(peers) => {
                within("peers", peers.len(), MAX_NODES)?;
                peers.iter().try_for_each(|p| within("status", p.status.len(), MAX_STATUS))
            }
            ControlMessage::OpenEndpoint { transport, address, .. } => {
                within("transport", transport.len(), MAX_NAME)?;
                within("endpoint address", address.len(), MAX_ENDPOINT_ADDRESS)
            }
            ControlMessage::EndpointOpened { address, .. } => {
                within("endpoint address", address.len(), MAX_ENDPOINT_ADDRESS)
            }
            ControlMessage::Stats { threads, clocks, .. } => {
                within("threads", threads.len(), MAX_NODES)?;
                within("clocks", clocks.len(), MAX_NODES)
            }
            ControlMessage::CheckIn { tasks, node, machine, .. } => {
                within("tasks", *tasks as usize, MAX_NODES)?;
                within("node", node.len(), MAX_NAME)?;
                within("machine", machine.len(), MAX_NAME)
            }
            ControlMessage::Placed { servers, workers, coordinator, .. } => {
                within("servers", *servers as usize, MAX_NODES)?;
                within("workers", *workers as usize, MAX_NODES)?;
                within("coordinator", coordinator.len(), MAX_NAME)
            }
            ControlMessage::Resume { state, .. } | ControlMessage::CutState { state, .. } => {
                within("state", state.len(), MAX_STATE)
            }
            ControlMessage::CutWritten { files, .. } => {
                within("files", files.len(), MAX_NODES)?;
                let longest = files.iter().map(|file| file.name.len().max(file.digest.len())).max();
                within("file name", longest.unwrap_or(0), MAX_NAME)
            }
            ControlMessage::CutFailed { reason, .. } => within("reason", reason.len(), MAX_REASON),
            ControlMessage::Verify { part, of, .. } => within("part", *part as usize + 1, *of as usize),
            ControlMessage::Verified {
                damage: Some(Damage { file, section, expected, found, .. }), ..
            } => {
                let longest = [file, section, expected, found].into_iter().map(String::len).max();
                within("damage", longest.unwrap_or(0), MAX_REASON)
            }
            _ => Ok(()),
        }
    }
}

/// Ranks must be places in the list: whoever indexes by rank may rely on it.
fn check_view(
    view: &View,
    peer: &str,
    within: impl Fn(&'static str, usize, usize) -> Result<()>,
) -> Result<()> {
    within("servers", view.servers.len(), MAX_NODES)?;
    within("workers", view.workers as usize, MAX_NODES)?;
    for (place, ServerInfo { rank, address, threads, first: _ }) in view.servers.iter().enumerate() {
        if *rank as usize != place {
            return Err(Error::protocol(peer, "server rank", place.to_string(), rank));
        }
        within("address", address.len(), MAX_NAME)?;
        if *threads == 0 {
            return Err(Error::protocol(peer, "threads", "at least 1", threads));
        }
        within("threads", *threads as usize, MAX_NODES)?;
    }
    Ok(())
}

/// A reason cut to what a message may carry.
pub fn reason(text: impl Into<String>) -> String {
    shortened(text.into(), MAX_REASON)
}

/// Encodes the frames of one direction.
pub struct FrameWriter {
    key: SessionKey,
    number: u64,
}

impl FrameWriter {
    /// With the handshake's `send_key`.
    pub fn new(key: SessionKey) -> FrameWriter {
        FrameWriter { key, number: 0 }
    }

    /// Appends the message's frame to `out`. Every frame must be sent, in this order. A message that is over its limits is an
    /// error here and appends nothing.
    pub fn encode(&mut self, message: &ControlMessage, out: &mut Vec<u8>) -> Result<()> {
        message.check("this node")?;
        let start = out.len();
        out.extend_from_slice(&[0; LENGTH]);
        let body = postcard::to_stdvec(message)
            .map_err(|e| Error::Misuse { call: "control frame", reason: e.to_string() })?;
        if body.len() > MAX_BODY {
            out.truncate(start);
            let resource = format!("control frame ({})", message.name());
            return Err(Error::Limit { resource, limit: MAX_BODY as u64, asked: body.len() as u64 });
        }
        out.extend_from_slice(&body);
        out[start..start + LENGTH].copy_from_slice(&(body.len() as u32).to_le_bytes());
        let mac = mac(&self.key, self.number, &out[start..]);
        out.extend_from_slice(mac.as_bytes());
        self.number += 1;
        Ok(())
    }
}

/// Checks and decodes the frames of one direction.
pub struct FrameReader {
    key: SessionKey,
    number: u64,
}

impl FrameReader {
    /// With the handshake's `receive_key`.
    pub fn new(key: SessionKey) -> FrameReader {
        FrameReader { key, number: 0 }
    }

    /// The first frame in `bytes`, if it is all there, and its size. After an error the link must be closed.
    pub fn decode(&mut self, bytes: &[u8], peer: &str) -> Result<Option<(usize, ControlMessage)>> {
        let Some((length, _)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_BODY {
            return Err(Error::protocol(peer, "frame length", format!("at most {MAX_BODY}"), length));
        }
        let Some((frame, rest)) = bytes.split_at_checked(LENGTH + length) else { return Ok(None) };
        let Some((theirs, _)) = rest.split_first_chunk::<MAC>() else { return Ok(None) };
        // `blake3::Hash` compares in constant time.
        if mac(&self.key, self.number, frame) != blake3::Hash::from_bytes(*theirs) {
            let expected = format!("the MAC of frame {}", self.number);
            return Err(Error::protocol(peer, "frame MAC", expected, "another"));
        }
        self.number += 1;
        let (message, left) = postcard::take_from_bytes::<ControlMessage>(&frame[LENGTH..])
            .map_err(|error| Error::protocol(peer, "frame body", "a control message", error))?;
        if !left.is_empty() {
            let found = format!("{} bytes behind {}", left.len(), message.name());
            return Err(Error::protocol(peer, "frame body", "one control message", found));
        }
        message.check(peer)?;
        Ok(Some((LENGTH + length + MAC, message)))
    }
}

fn mac(key: &SessionKey, number: u64, frame: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&number.to_le_bytes());
    hasher.update(frame);
    hasher.finalize()
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
