//! Who takes part in a job.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A node's number among those of its role, from 0.
pub type Rank = u32;

/// What a process does in the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Owns the View.
    Coordinator,
    /// Holds shards.
    Server,
    /// Pushes and pulls.
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Coordinator => "coordinator",
            Role::Server => "server",
            Role::Worker => "worker",
        })
    }
}

/// What a node says of itself in the handshake; it is part of the authenticated transcript.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What it does.
    pub role: Role,
    /// Its rank; a server that has none yet is given one by the Coordinator.
    pub rank: Option<Rank>,
    /// Random for each start of a process: tells a restarted node from its predecessor.
    pub incarnation: u64,
    /// Host name and process id, for messages.
    pub process: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.role)?;
        if let Some(rank) = self.rank {
            write!(f, " {rank}")?;
        }
        write!(f, " ({})", self.process)
    }
}

/// A server as the View lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Its rank.
    pub rank: Rank,
    /// Where its control listener is: `IP:PORT`.
    pub address: String,
    /// Number of server threads = shards.
    pub threads: u32,
    /// The number of its first thread among the server threads of its host. It says on which of several rails each is.
    pub first: u32,
}

/// Which nodes exist. Every routed request carries its epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Counts the changes.
    pub epoch: u32,
    /// In the order of their ranks.
    pub servers: Vec<ServerInfo>,
    /// Number of workers.
    pub workers: u32,
}
