//! Finds the processes that carry a job's marker in their environment, and kills them.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// How long a sweep goes on against processes that start others faster than it kills them.
const LIMIT: Duration = Duration::from_secs(2);
/// Between two passes: what was killed needs a moment to lose its environment.
const PAUSE: Duration = Duration::from_millis(5);

/// Passes in a row that must find nothing: in the middle of an exec a process shows no environment for a moment.
const QUIET: u32 = 2;

/// Kills every process that carries the variable `mark`, `WINDLASS_JOB=<job>` say, until none is found.
///
/// Processes of other users are neither readable nor ours to kill, and are passed over.
pub(super) fn sweep(mark: &str) {
    let started = Instant::now();
    let mut quiet = 0;
    loop {
        quiet = if pass(mark.as_bytes()) == 0 { quiet + 1 } else { 0 };
        if quiet == QUIET || started.elapsed() >= LIMIT {
            break;
        }
        std::thread::sleep(PAUSE);
    }
}

/// One pass over the process table; returns how many it killed.
fn pass(marker: &[u8]) -> usize {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let own = rustix::process::getpid();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .filter(|&pid| pid != own && kill_if_marked(pid, marker).unwrap_or(false))
        .count()
}

fn kill_if_marked(pid: Pid, marker: &[u8]) -> io::Result<bool> {
    // Opened before the environment is read, so that the process that is killed is the one that was looked at.
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => Some(handle),
        Err(Errno::NOSYS | Errno::PERM) => None, // before Linux 5.3, or a filter that does not know the call
        Err(gone) => return Err(gone.into()),
    };
    let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()))?;
    if !environment.split(|&byte| byte == 0).any(|variable| variable == marker) {
        return Ok(false);
    }
    match handle {
        Some(handle) => pidfd_send_signal(handle, Signal::KILL)?,
        None => kill_process(pid, Signal::KILL)?,
    }
    Ok(true)
}
