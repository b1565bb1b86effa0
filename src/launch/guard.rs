//! The guard: a small process that outlives a supervisor that was killed, and ends what that left.
//!
//! The supervisor holds the only writer of the guard's standard input and tells it, a line each, the job and the
//! process groups as they are made. End of file means that the supervisor is gone. An orderly end needs no message:
//! the supervisor cleans up itself and then kills the guard.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::sweep::sweep;
use super::{JOB_VARIABLE, TreeConfig};
use crate::error::{Error, Result};

/// What a guard says once it stands by, so that a program that is none is noticed before anything depends on it.
const READY: &[u8] = b"ready\n";
/// How long it may take to say so; a cold executable on a busy network file system takes seconds.
const START: Duration = Duration::from_secs(30);

/// The supervisor's end.
pub(super) struct Guard {
    process: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts the guard and waits until it stands by.
    pub(super) fn start(config: &TreeConfig) -> Result<Guard> {
        let Some((program, arguments)) = config.guard.split_first() else {
            return Err(Error::config("guard", "a command line", "nothing"));
        };
        let mut guard = spawn(program, arguments)
            .map_err(|e| Error::io("start the guard", program.to_string_lossy(), e))?;
        guard.await_ready().map_err(|e| Error::io("start the guard", program.to_string_lossy(), e))?;
        guard.tell("job", &config.job);
        Ok(guard)
    }

    /// Tells the guard of a process group.
    pub(super) fn watch(&mut self, group: Pid) {
        self.tell("group", &group.as_raw_nonzero().to_string());
    }

    fn await_ready(&mut self) -> io::Result<()> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut answer = self.process.stdout.take().ok_or_else(|| wrong("no pipe to it"))?;
        let timeout = Timespec { tv_sec: START.as_secs() as i64, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&answer, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(wrong("it does not answer"));
        }
        let mut said = [0; READY.len()];
        answer.read_exact(&mut said)?;
        if said == READY { Ok(()) } else { Err(wrong("this is no guard")) }
    }

    fn tell(&mut self, word: &str, value: &str) {
        // A guard that somebody killed takes nothing more. The supervisor and the kernel's parent-death signal are
        // then what is left, and the job is not ended for that.
        if let Some(pipe) = &mut self.pipe {
            let _ = pipe.write_all(format!("{word} {value}\n").as_bytes());
        }
    }
}

impl Drop for Guard {
    /// Ends the guard without a word to it. The tree is gone by now, or was never started.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(program: &OsString, arguments: &[OsString]) -> io::Result<Guard> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        // Inside another job it would carry that one's marker, and be swept before it can clean up here.
        .env_remove(JOB_VARIABLE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec only the forking thread exists, so the closure must be async-signal-safe: it makes
    // two system calls (setsid; close_range with integers only) and touches neither heap nor locks; the error is built
    // from an errno, without allocation.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // Whatever our parent left open for us (a shell's `3>pipe`) would stay open for as long as the guard
            // lives. Best effort: kernels before 5.11 refuse, and then only such descriptors stay.
            libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    let mut process = command.spawn()?;
    let pipe = process.stdin.take();
    Ok(Guard { process, pipe })
}

/// The whole life of the guard process; the result is its exit code.
///
/// It speaks on standard input and output as [`Guard`] expects and is of no use by hand.
pub fn guard_main() -> i32 {
    // `killall windlass` must not take the guard before it has done its work; flags nobody reads ignore the signals.
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    // Not to keep a file system busy. Nothing here depends on the directory.
    let _ = std::env::set_current_dir("/");
    let mut output = io::stdout();
    if output.write_all(READY).and_then(|()| output.flush()).is_err() {
        return 1;
    }
    let (mut job, mut groups) = (None, Vec::new());
    // A read error ends the loop like the end of file does: the tree can't be watched any longer.
    for line in BufReader::new(io::stdin()).lines().map_while(io::Result::ok) {
        match line.split_once(' ') {
            Some(("job", name)) => job = Some(name.to_owned()),
            Some(("group", group)) => groups.extend(group.parse().ok().and_then(Pid::from_raw)),
            _ => {}
        }
    }
    for group in groups {
        let _ = kill_process_group(group, Signal::KILL);
    }
    if let Some(job) = job {
        sweep(&job);
    }
    0
}
