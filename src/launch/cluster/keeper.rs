//! Keeps a task's connection to the leader open for exactly as long as the task lives, whatever program it becomes.
//!
//! Left to the program itself the connection would go on to whatever that starts, and a daemon of a dead task would pass for the task. So
//! a small process keeps it, which sees the task's end by a pidfd. It is nobody's child: a program that waits for all its children would
//! wait for it.

use std::ffi::OsString;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::super::guard::{apart, await_ready, say_ready};
use crate::error::{Error, Result};

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
    // Before the word: until then the task waits for it, so the number is the task's.
    let life = pidfd_open(task, PidfdFlags::empty())?;
    std::env::set_current_dir("/")?;
    say_ready()?;
    let mut scratch = [0; 256];
    loop {
        let connection = io::stdin();
        let mut polled = [PollFd::new(&life, PollFlags::IN), PollFd::new(&connection, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [ended, spoken] = polled.map(|polled| !polled.revents().is_empty());
        // The leader says nothing; when it is gone nobody waits for the task's end.
        if ended || spoken && connection.lock().read(&mut scratch).is_ok_and(|count| count == 0) {
            return Ok(());
        }
    }
}
