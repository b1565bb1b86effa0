//! The real binary under test: starts it, reads what it says, and looks for what it leaves behind.
//!
//! Every process that a test starts carries a mark in its environment, which its descendants inherit. By that mark they
//! are found, and killed when the test ends, however it ends.

#![allow(dead_code)] // each test program uses a part of it

pub mod job;
pub mod proc;

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use windlass::config::TransportChoice;

/// After which a test that waits gives up: long, since other tests load the same cores.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The variable that marks a test's processes.
const MARK: &str = "TEST_MARK";

/// What [`over_tcp`] sets.
const TRANSPORT: &str = "WINDLASS_TEST_TRANSPORT";

/// What the data of a job travels by where the test does not say: as by default, or as [`over_tcp`] has it.
pub fn transport() -> TransportChoice {
    std::env::var(TRANSPORT).map_or_else(|_| TransportChoice::default(), |text| text.parse().unwrap())
}

/// Runs all tests of this program once more, in a process of its own, over TCP where they don't say what their jobs' data travels by.
pub fn over_tcp() {
    these_over_tcp(&[]);
}

/// The same with those tests only whose names have one of these texts in them; each text must be in one.
pub fn these_over_tcp(texts: &[&str]) {
    if std::env::var_os(TRANSPORT).is_some() {
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.env(TRANSPORT, "tcp").args(texts);
    let ended = Process::start(again).end(5 * PATIENCE).expect(0);
    let said = &ended.stdout;
    assert!(said.contains(" 0 failed"), "{said}");
    let ran: Vec<&str> =
        said.lines().filter(|line| line.starts_with("test ") && line.ends_with(" ok")).collect();
    for text in texts {
        assert!(ran.iter().any(|line| line.contains(text)), "no test with {text:?} in its name ran:\n{said}");
    }
}

/// The program with these arguments, in an environment without settings of ours.
pub fn windlass<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("WINDLASS_")) {
        command.env_remove(name);
    }
    if std::env::var_os(TRANSPORT).is_some() {
        command.env("WINDLASS_TRANSPORT", transport().to_string());
    }
    command.args(arguments);
    command
}

/// Runs it to its end.
pub fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Ended {
    Process::start(windlass(arguments)).end(PATIENCE)
}

/// Whether memory that this process touches from now on, and that of processes that it starts, may come in huge pages.
pub fn huge_pages(may: bool) {
    // SAFETY: it takes numbers and gives a number.
    let done = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, u64::from(!may), 0u64, 0u64, 0u64) };
    assert_eq!(done, 0);
}

/// A directory that lives as long as the test.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes a job's secret to a file that only its owner may read.
pub fn secret_file(path: &Path, secret: &windlass::Secret) {
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    options.open(path).unwrap().write_all(secret.to_hex().as_bytes()).unwrap();
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The data sets that are too large for the repository. Says so and gives nothing where there are none.
pub fn test_data() -> Option<PathBuf> {
    let found = std::env::var_os("WINDLASS_TEST_DATA").map(PathBuf::from);
    if found.is_none() {
        // Past the harness, which shows the output of failed tests only.
        let _ = writeln!(std::io::stderr(), "skipped: WINDLASS_TEST_DATA is not set");
    }
    found
}

/// A process that was started by a test.
pub struct Process {
    child: Child,
    mark: String,
    stdout: Capture,
    stderr: Capture,
    /// How long what it has started may outlive it.
    pub lag: Duration,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code, or 128 + n for signal n.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Fails, with all that was said, unless the exit code is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ended {
        assert_eq!(self.code, code, "\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails unless standard error contains `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Ended {
        assert!(self.stderr.contains(text), "{text:?} is not in\n{}", self.stderr);
        self
    }
}

impl Process {
    /// Starts it with both outputs captured and nothing to read.
    pub fn start(mut command: Command) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        command.env(MARK, &mark).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = Capture::of(child.stdout.take().unwrap());
        let stderr = Capture::of(child.stderr.take().unwrap());
        Process { child, mark, stdout, stderr, lag: Duration::ZERO }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The text behind `label` on a line of standard error, once that line is there.
    #[track_caller]
    pub fn until_says(&self, label: &str) -> String {
        self.stderr.until(label).split_once(label).unwrap().1.to_owned()
    }

    /// The first line of standard error with `label` in it, once it is there.
    #[track_caller]
    pub fn until_line(&self, label: &str) -> String {
        self.stderr.until(label)
    }

    /// What has come on standard error so far.
    pub fn said(&self) -> String {
        self.stderr.so_far()
    }

    /// Its living descendants, and itself while it lives.
    pub fn members(&self) -> Vec<proc::Member> {
        proc::members(MARK, &self.mark)
    }

    /// The pid of the job's process with this role and rank, once it is there.
    pub fn member(&self, role: proc::Role, rank: u32) -> i32 {
        let mut found = None;
        until(PATIENCE, &format!("{role:?} {rank}"), || {
            found = self.members().into_iter().find(|m| m.role == role && m.rank == Some(rank));
            found.is_some()
        });
        found.unwrap().pid
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, and then that it has left no process and nobody who holds its outputs.
    pub fn end(mut self, limit: Duration) -> Ended {
        let (started, mut status) = (Instant::now(), None);
        while status.is_none() {
            if started.elapsed() > limit {
                panic!(
                    "did not end in {limit:?}\n--- stdout\n{}\n--- stderr\n{}",
                    self.stdout.so_far(),
                    self.stderr.so_far()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
            status = self.child.try_wait().unwrap();
        }
        let status = status.unwrap();
        if status.signal().is_none() {
            let ended = Instant::now();
            while ended.elapsed() < self.lag && !self.members().is_empty() {
                std::thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(self.members(), [], "left behind");
        }
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        Ended { code, stdout: self.stdout.all(), stderr: self.stderr.all() }
    }
}

impl Drop for Process {
    /// A failed test leaves nothing to the next one.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let members = self.members();
            if members.is_empty() || Instant::now() > deadline {
                return;
            }
            for member in members {
                let _ = kill_process(Pid::from_raw(member.pid).unwrap(), Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Sends a signal to any process.
pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Polls `condition` and fails unless it holds within `limit`.
#[track_caller]
pub fn until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A thread that collects what comes out of a pipe.
struct Capture {
    shared: Arc<(Mutex<Vec<u8>>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Capture {
        let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let into = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                into.0.lock().unwrap().extend_from_slice(&buffer[..count]);
                into.1.notify_all();
            }
        });
        Capture { shared, thread }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.shared.0.lock().unwrap()).into_owned()
    }

    /// The first whole line with `label` in it, once there is one.
    #[track_caller]
    fn until(&self, label: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = self.shared.0.lock().unwrap();
        loop {
            let said = String::from_utf8_lossy(&bytes).into_owned();
            let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(line) = whole.lines().find(|line| line.contains(label)) {
                return line.to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !self.thread.is_finished(), "no {label:?} in\n{said}");
            bytes = self.shared.1.wait_timeout(bytes, left.min(Duration::from_millis(100))).unwrap().0;
        }
    }

    /// Everything, once the last writer has closed the pipe.
    #[track_caller]
    fn all(&self) -> String {
        until(PATIENCE, "the end of the output", || self.thread.is_finished());
        self.so_far()
    }
}
