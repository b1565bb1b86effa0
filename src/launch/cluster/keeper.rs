//! Keeps a task's connection to the leader open for exactly as long as the task lives, whatever program it becomes.
//!
//! Left to the program itself the connection would go on to whatever that starts, and a daemon of a dead task would pass for the task. So
//! a small process keeps it, which sees the task's end by a pidfd, or in /proc. It is nobody's child: a program that waits for all its children would
//! wait for it.

use std::ffi::OsString;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::super::guard::{apart, await_ready, ignore_signals, say_ready};
use crate::error::{Error, Result};

/// Between two looks where the system can't tell.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Leaves the connection to the keeper of this process. `program` is one whose `main` calls [`keeper_main`] with the rest of its
/// arguments.
pub fn keep(stream: TcpStream, program: &[OsString]) -> Result<()> {
    let failed = |e| Error::io("start the keeper of", "the connection to the leading rank", e);
    let mut first = start(program, getpid(), OwnedFd::from(stream)).map_err(failed)?;
    await_ready(&mut first).map_err(failed)?;
    first.wait().map(drop).map_err(failed)
}

fn start(program: &[OsString], task: Pid, stream: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new(program.first().ok_or(io::ErrorKind::InvalidInput)?);
    command.args(&program[1..]).arg(task.as_raw_nonzero().to_string()).stdin(Stdio::from(stream));
    apart(&mut command).spawn()
}

/// The whole life of a keeper; the result is its exit code. It has the connection as standard input, and the task's number as
/// argument; of the two processes that are started so the first only starts the second, with `program`, and ends.
pub fn keeper_main(task: i32, program: Option<&[OsString]>) -> io::Result<()> {
    let task = Pid::from_raw(task).ok_or(io::ErrorKind::InvalidInput)?;
    if let Some(program) = program {
        let connection = io::stdin().as_fd().try_clone_to_owned()?;
        await_ready(&mut start(program, task, connection)?)?;
        return say_ready();
    }
    ignore_signals();
    // Before the word: until then the task waits for it, so the number is the task's.
    let life = Life::of(task)?;
    std::env::set_current_dir("/")?;
    say_ready()?;
    let mut scratch = [0; 256];
    loop {
        let connection = io::stdin();
        let mut polled = vec![PollFd::new(&connection, PollFlags::IN)];
        polled.extend(life.handle.iter().map(|handle| PollFd::new(handle, PollFlags::IN)));
        match poll(&mut polled, life.handle.is_none().then_some(&LOOK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        // The leader says nothing; when it is gone nobody waits for the task's end.
        let ended = ready.get(1).copied().unwrap_or_else(|| life.is_over());
        if ended || ready[0] && connection.lock().read(&mut scratch).is_ok_and(|count| count == 0) {
            return Ok(());
        }
    }
}

/// A task that is watched.
struct Life {
    task: Pid,
    /// Readable at its end. None before Linux 5.3, or behind a filter that does not know the call; then /proc is looked into.
    handle: Option<OwnedFd>,
    /// When it began: its number may be another's later.
    began: Option<String>,
}

impl Life {
    fn of(task: Pid) -> io::Result<Life> {
        match pidfd_open(task, PidfdFlags::empty()) {
            Ok(handle) => Ok(Life { task, handle: Some(handle), began: None }),
            Err(Errno::NOSYS | Errno::PERM) => Ok(Life { task, handle: None, began: Some(began(task)?) }),
            Err(error) => Err(error.into()),
        }
    }

    fn is_over(&self) -> bool {
        began(self.task).ok() != self.began
    }
}

/// When a process began that has not ended, in ticks since the system did.
fn began(process: Pid) -> io::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()))?;
    // Behind the program's name in brackets, which may hold anything: the state, and 18 fields on the beginning.
    let mut fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
    match (fields.next(), fields.nth(18)) {
        (None | Some("Z" | "X"), _) | (_, None) => Err(io::ErrorKind::NotFound.into()),
        (_, Some(began)) => Ok(began.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn an_end_is_seen_in_proc() {
        let mut task = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&task);
        let life = Life { task: pid, handle: None, began: Some(began(pid).unwrap()) };
        assert!(!life.is_over());
        task.kill().unwrap();
        // A zombie counts as ended: whoever started it may never look.
        let started = Instant::now();
        while !life.is_over() {
            assert!(started.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        task.wait().unwrap();
        assert!(life.is_over());
        // Another process has its number since.
        let ours = Life { task: getpid(), handle: None, began: Some("1".to_owned()) };
        assert!(ours.is_over());
    }
}
