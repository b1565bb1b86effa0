//! Starts one child: its own process group, bound to the life of the supervisor, its output in our pipes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use super::guard::{Guard, announce};
use super::{Child, TreeConfig};
use crate::error::{Error, Result};

/// A started child and our ends of its pipes.
pub(super) struct Spawned {
    pub(super) process: std::process::Child,
    /// Its process id, and that of its process group.
    pub(super) pid: Pid,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// Starts `child` as a part of `tree`. It is killed when the calling *thread* ends. SIGTERM and SIGUSR1 mean nothing to a `shielded`
/// one, nor to what it starts.
pub(super) fn spawn(child: &Child, tree: &TreeConfig, guard: &Guard, shielded: bool) -> Result<Spawned> {
    let subject = format!("{}: {}", child.name, child.program.display());
    let failed = |e| Error::io("start", &subject, e);
    let mut command = Command::new(&child.program);
    command
        .args(&child.arguments)
        .envs(child.environment.iter().map(|(name, value)| (name, value)))
        .env(tree.marker, &tree.job)
        .stdin(if child.remote.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(if child.inherit_stderr { Stdio::inherit() } else { Stdio::piped() })
        .process_group(0);
    die_with_us(&mut command, guard.link().as_raw_fd());
    if shielded {
        shield(&mut command);
    }
    let mut process = command.spawn().map_err(failed)?;
    let pid = Pid::from_child(&process);
    let stdin = process.stdin.take().map(OwnedFd::from);
    let stdout = process.stdout.take().map(OwnedFd::from);
    let stderr = process.stderr.take().map(OwnedFd::from);
    for pipe in [&stdin, &stdout, &stderr].into_iter().flatten() {
        // Only our end: the child's end is another open file, and stays blocking.
        if let Err(refused) = ioctl_fionbio(pipe, true) {
            let _ = process.kill();
            let _ = process.wait();
            return Err(failed(refused.into()));
        }
    }
    Ok(Spawned { process, pid, stdin, stdout, stderr })
}

fn shield(command: &mut Command) {
    // SAFETY: between fork and exec only the forking thread exists, so the closure must be async-signal-safe: it makes two system
    // calls (sigaction, by `signal`), with constants, and builds its error from an errno. Ignored signals stay so across exec.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGTERM, libc::SIGUSR1] {
                if libc::signal(signal, libc::SIG_IGN) == libc::SIG_ERR {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

fn die_with_us(command: &mut Command, link: RawFd) {
    let supervisor = getpid();
    // SAFETY: between fork and exec only the forking thread exists, so the closure must be async-signal-safe: it makes
    // four system calls (prctl, getppid, getpid, send), compares integers, fills a buffer on the stack and builds its
    // error from an errno; no heap, no locks. `link` is open then: the child is forked in `Command::spawn`, which
    // `spawn` calls while it borrows the guard, and a fork copies every descriptor.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // A supervisor that died before the prctl sends nothing any more.
            if getppid() != Some(supervisor) {
                return Err(io::Error::from(Errno::SRCH));
            }
            // The process group exists by now, and its number is that of its leader, which is this process.
            announce(BorrowedFd::borrow_raw(link), getpid());
            Ok(())
        });
    }
}
