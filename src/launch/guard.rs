//! The guard: a small process that outlives a supervisor that was killed, and ends what that left.
//!
//! The supervisor alone holds the other end of the guard's standard input. The first line tells the mark; then each
//! child, before it becomes its program, announces its process group: no moment is left in which the supervisor can be
//! killed and a group be unknown. End of file means that the supervisor is gone. An orderly end needs no message:
//! the supervisor cleans up itself and then kills the guard.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use super::sweep::sweep;
use super::{JOB_VARIABLE, TreeConfig};
use crate::error::{Error, Result};

/// What a helper says once it stands by, so that a program that is none is noticed before anything depends on it.
const READY: &[u8] = b"ready\n";
/// How long it may take to say so; a cold executable on a busy network file system takes seconds.
const START: Duration = Duration::from_secs(30);

/// The supervisor's end.
pub(super) struct Guard {
    process: Child,
    link: UnixStream,
}

impl Guard {
    /// Starts the guard and waits until it stands by.
    pub(super) fn start(config: &TreeConfig) -> Result<Guard> {
        let Some((program, arguments)) = config.guard.split_first() else {
            return Err(Error::config("guard", "a command line", "nothing"));
        };
        let mut guard = spawn(program, arguments, config.marker)
            .map_err(|e| Error::io("start the guard", program.to_string_lossy(), e))?;
        await_ready(&mut guard.process)
            .map_err(|e| Error::io("start the guard", program.to_string_lossy(), e))?;
        let mark = format!("mark {}\n", config.mark());
        guard.link.write_all(mark.as_bytes()).map_err(|e| Error::io("tell", "the guard", e))?;
        Ok(guard)
    }

    /// The socket on which a child calls [`announce`].
    pub(super) fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

/// Waits until a helper says that it stands by.
pub(super) fn await_ready(helper: &mut Child) -> io::Result<()> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut answer = helper.stdout.take().ok_or_else(|| wrong("no pipe to it"))?;
    let timeout = Timespec { tv_sec: START.as_secs() as i64, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&answer, PollFlags::IN)], Some(&timeout))? == 0 {
        return Err(wrong("it does not answer"));
    }
    let mut said = [0; READY.len()];
    answer.read_exact(&mut said)?;
    if said == READY { Ok(()) } else { Err(wrong("this is no helper of ours")) }
}

/// Says so.
pub(super) fn say_ready() -> io::Result<()> {
    let mut output = io::stdout();
    output.write_all(READY).and_then(|()| output.flush())
}

impl Drop for Guard {
    /// Ends the guard without a word to it. The tree is gone by now, or was never started.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Tells the guard, in the child itself between fork and exec, of the process group `group`.
///
/// Async-signal-safe: one system call and a buffer on the stack. A guard that somebody killed takes nothing more; the
/// supervisor and the kernel's parent-death signal are then what is left, and the job is not ended for that.
pub(super) fn announce(link: BorrowedFd<'_>, group: Pid) {
    let mut line = *b"group           \n";
    let (mut rest, mut at) = (group.as_raw_nonzero().get().unsigned_abs(), line.len() - 1);
    while rest > 0 {
        at -= 1;
        line[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let _ = send(link, &line, SendFlags::NOSIGNAL);
}

fn spawn(program: &OsString, arguments: &[OsString], marker: &str) -> io::Result<Guard> {
    // A socket and not a pipe: what writes to a guard that is gone gets an error and no SIGPIPE.
    let (link, its_end) = UnixStream::pair()?;
    let mut command = Command::new(program);
    // Inside another job it would carry that one's marker, and be swept before it can clean up here.
    command.args(arguments).env_remove(marker).stdin(Stdio::from(OwnedFd::from(its_end)));
    Ok(Guard { process: apart(&mut command).spawn()?, link })
}

/// Makes a helper of `command`: in a session of its own, in no job, with no descriptor of ours but its input, and a pipe for its answer.
pub(super) fn apart(command: &mut Command) -> &mut Command {
    command.env_remove(JOB_VARIABLE).stdout(Stdio::piped()).stderr(Stdio::null());
    // SAFETY: between fork and exec only the forking thread exists, so the closure must be async-signal-safe: it makes
    // two system calls (setsid; close_range with integers only) and touches neither heap nor locks; the error is built
    // from an errno, without allocation.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // Whatever our parent left open for us (a shell's `3>pipe`) would stay open for as long as the helper
            // lives. Best effort: kernels before 5.11 refuse, and then only such descriptors stay.
            libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    command
}

/// `killall windlass`, and a batch system that signals every process of a job, must not take a helper before it has done its work.
pub(super) fn ignore_signals() {
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
        // Flags that nobody reads.
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
}

/// The whole life of the guard process; the result is its exit code.
///
/// It speaks on standard input and output as the supervisor expects and is of no use by hand.
pub fn guard_main() -> i32 {
    ignore_signals();
    // Not to keep a file system busy. Nothing here depends on the directory.
    let _ = std::env::set_current_dir("/");
    if say_ready().is_err() {
        return 1;
    }
    let (mut mark, mut groups) = (None, Vec::new());
    // A read error ends the loop like the end of file does: the tree can't be watched any longer.
    for line in BufReader::new(io::stdin()).lines().map_while(io::Result::ok) {
        match line.split_once(' ') {
            Some(("mark", variable)) => mark = Some(variable.to_owned()),
            Some(("group", group)) => groups.extend(group.trim().parse().ok().and_then(Pid::from_raw)),
            _ => {}
        }
    }
    for group in groups {
        let _ = kill_process_group(group, Signal::KILL);
    }
    if let Some(mark) = mark {
        sweep(&mark);
    }
    0
}
