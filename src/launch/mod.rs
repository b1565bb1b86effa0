//! The process tree of a job: servers and workers as children of one supervisor, or the remote shells in which they run.
//!
//! [`Tree::run`] starts the children, relays their output line by line, stops all when one fails, and leaves nothing
//! behind. What keeps that last promise, from the first line to the last:
//!
//! 1. Each child leads a process group of its own; stopping signals the groups, so a child's own children go with it.
//! 2. A child that ended stays unreaped until the tree ends. Its zombie reserves the process id, so a group that is
//!    signalled late is still the group that we made.
//! 3. `PR_SET_PDEATHSIG`: the kernel kills a child when the thread that started it dies, even of SIGKILL.
//! 4. The guard, a process in a session of its own, reads a pipe whose only writer is the supervisor. When that
//!    closes, it kills the groups that it was told of.
//! 5. Children carry `WINDLASS_JOB=<id>` in their environment, and their descendants inherit it. At the end the
//!    supervisor, or in its place the guard, kills whatever process of ours still carries it, so that descendants that
//!    made their own session or daemonised go too. Only a process that leaves its group *and* clears its
//!    environment escapes.
//!
//! `policy` decides what to do and is sans-io; `tree` owns the file descriptors and the loop.

pub mod cluster;
mod guard;
mod output;
mod policy;
mod relay;
pub mod remote;
mod signals;
mod spawn;
mod sweep;
mod tree;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

pub use guard::guard_main;
pub use tree::{Tree, TreeHandle};

pub use crate::config::variable::JOB as JOB_VARIABLE;

/// What a child does in the job; it decides what its end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildRole {
    /// Lives until the workers are done; an earlier end is a failure.
    Server,
    /// Ends with 0 when its work is done.
    Worker,
}

/// One process to start.
#[derive(Debug, Clone)]
pub struct Child {
    /// How messages and prefixes call it: `server 0`, `worker 3`.
    pub name: String,
    /// Server or worker.
    pub role: ChildRole,
    /// The executable: a path, or a name that is looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments, without the program itself.
    pub arguments: Vec<OsString>,
    /// Variables set on top of our own environment. [`TreeConfig::marker`] is added to them.
    pub environment: Vec<(OsString, OsString)>,
    /// Write `[name] ` before each line of its output. Without it the bytes are passed on exactly as they are.
    pub prefix: bool,
    /// Give it our standard error itself instead of a relay, so that it can draw a progress bar on a terminal.
    pub inherit_stderr: bool,
    /// The process is a remote shell; what counts runs elsewhere.
    pub remote: Option<Remote>,
}

/// What a tree's remote process is told, through the standard input of its remote shell: what to do, then one byte for each signal.
/// The end of this input is the end of the process.
#[derive(Debug, Clone)]
pub struct Remote {
    /// Its host, for messages.
    pub host: String,
    /// What the input begins with.
    pub order: Vec<u8>,
}

/// How a tree is run. [`TreeConfig::new`] fills in the times.
#[derive(Debug, Clone)]
pub struct TreeConfig {
    /// What messages start with: `windlass run`.
    pub command: String,
    /// The tree's unique name; see [`new_job`]. Mostly it is the job's.
    pub job: String,
    /// The variable that marks its processes, as [`JOB_VARIABLE`] does unless a job has several trees on one host.
    pub marker: &'static str,
    /// Say nothing of one's own: another tree of the job speaks for all.
    pub quiet: bool,
    /// The command line of the guard process: a program whose `main` calls [`guard_main`].
    pub guard: Vec<OsString>,
    /// Exit codes by which a child says that it failed because another one did (a lost peer, an aborted job). They
    /// are the cause of the tree's end only if nothing better comes up while the cause settles.
    pub consequences: Vec<i32>,
    /// How long servers may take to end after the workers, and children to end after SIGTERM before SIGKILL.
    pub grace: Duration,
    /// How long, after the first failure, a weightier cause may replace it: a peer of a killed process can fail,
    /// and be seen to fail, before the killed one is reaped. As long as only consequences are known it is `report`.
    pub settle: Duration,
    /// How long, after the first failure, the others may report their own errors before they get SIGTERM.
    pub report: Duration,
}

impl TreeConfig {
    /// What the environment of each of its processes contains.
    fn mark(&self) -> String {
        format!("{}={}", self.marker, self.job)
    }

    /// A configuration with a grace of 5 s, 300 ms to settle on a cause, 2 s for reports and no `consequences`.
    pub fn new(command: impl Into<String>, job: impl Into<String>, guard: Vec<OsString>) -> TreeConfig {
        TreeConfig {
            command: command.into(),
            job: job.into(),
            marker: JOB_VARIABLE,
            quiet: false,
            guard,
            consequences: Vec::new(),
            grace: Duration::from_secs(5),
            settle: Duration::from_millis(300),
            report: Duration::from_secs(2),
        }
    }
}

/// How a tree ended. What `cause` says has already been printed on standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// 0, or the first failure's exit code: 128 + n for signal n, 1 for a server that ended too early with 0.
    pub code: i32,
    /// The first failure, with the name of the child; `None` when all went well.
    pub cause: Option<String>,
}

/// A fresh job name: 128 random bits in hexadecimal.
pub fn new_job() -> Result<String> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits)
        .map_err(|e| Error::io("getrandom", "a job's name", std::io::Error::other(e.to_string())))?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_differ() {
        let job = new_job().unwrap();
        assert_eq!(job.len(), 32);
        assert_ne!(job, new_job().unwrap());
    }
}
