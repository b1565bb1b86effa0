//! A supervisor under test: starts it, talks to it, and looks for what it leaves behind.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// After which a test that waits gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running supervisor with what it has written so far.
pub struct Supervisor {
    process: Child,
    pub job: String,
    stdin: Option<ChildStdin>,
    stdout: Capture,
    stderr: Capture,
}

/// How a supervisor ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A command that runs a tree; the arguments are those of `supervisor` in main.rs, after the job.
pub fn command(job: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("supervisor").arg(job).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits until `process` has ended.
pub fn status(process: &mut Child, limit: Duration) -> ExitStatus {
    let mut status = None;
    within(limit, "the supervisor's end", || {
        status = process.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

impl Supervisor {
    /// Starts a tree with both outputs captured.
    pub fn start(arguments: &[&str]) -> Supervisor {
        let job = windlass::launch::new_job().unwrap();
        let mut process = command(&job, arguments).spawn().unwrap();
        let stdout = Capture::of(process.stdout.take().unwrap());
        let stderr = Capture::of(process.stderr.take().unwrap());
        Supervisor { stdin: process.stdin.take(), process, job, stdout, stderr }
    }

    /// The supervisor's process id.
    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    /// Waits until standard output contains `text`.
    pub fn until_says(&self, text: &str) {
        until(&format!("{text:?} on standard output"), || self.stdout.so_far().contains(text));
    }

    /// The number that stands behind `label` on standard output, once it is there.
    pub fn number(&self, label: &str) -> i32 {
        let mut found = None;
        until(label, || {
            found =
                self.stdout.so_far().lines().find_map(|line| line.split_once(label)?.1.trim().parse().ok());
            found.is_some()
        });
        found.unwrap()
    }

    /// Calls the tree's handle.
    pub fn call(&mut self, line: &str) {
        self.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Sends the supervisor itself a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.process.id() as i32, signal);
    }

    /// Waits for the end, and then that nothing of the job is left: no process that carries it, nobody who holds the
    /// output's pipes.
    pub fn end(mut self) -> Ended {
        let status = status(&mut self.process, PATIENCE);
        if status.code().is_some() {
            assert_eq!(carriers(&self.job), Vec::<i32>::new(), "left behind");
        }
        Ended { status, stdout: self.stdout.all(), stderr: self.stderr.all() }
    }
}

impl Drop for Supervisor {
    /// A failed test must not leave its tree to the next one.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a tree to its end.
pub fn run(arguments: &[&str]) -> Ended {
    Supervisor::start(arguments).end()
}

/// Sends a signal to any process.
pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Polls `condition` until it holds.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition);
}

/// Polls `condition` and fails unless it holds within `limit`.
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the process exists and is no zombie.
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X'))
    })
}

/// The living processes that carry the job's marker.
pub fn carriers(job: &str) -> Vec<i32> {
    let marker = format!("WINDLASS_JOB={job}").into_bytes();
    let carries = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.split(|&byte| byte == 0).any(|v| v == marker))
    };
    processes().filter(carries).filter(|&pid| alive(pid)).collect()
}

/// The living and dead children of a process.
pub fn children(parent: i32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|status| status.lines().any(|line| line == format!("PPid:\t{parent}")))
    };
    processes().filter(is_child).collect()
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A thread that collects what comes out of a pipe.
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Capture {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Capture { bytes, thread: Some(thread) }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Everything, once the last writer has closed the pipe.
    fn all(&mut self) -> String {
        let thread = self.thread.take().unwrap();
        until("the end of the output", || thread.is_finished());
        self.so_far()
    }
}
