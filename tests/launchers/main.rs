//! Jobs under the real launchers: Slurm with virtual nodes, Open MPI, MPICH, and hosts in network namespaces.
//!
//! They need Debian packages (see the stage `cluster` of `.ci/run`), so they run only where `WINDLASS_TEST_LAUNCHERS` is 1; those of
//! `hostfile`, whose launcher is our own, run everywhere.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

#[path = "../common/mod.rs"]
mod common;
mod cut_off;
mod hostfile;
mod hosts;
mod preemption;
mod scripts;
mod slurm;
mod tasks;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::proc::Role;
use common::{Ended, PATIENCE, Process, kill, scratch, text, until};
use rustix::process::Signal;

/// What `windlass train lr` gives with its default options.
const DEFAULT: &str = "c726a053ca5204cc18c6cc6004b33a58ff12eccc40fbfd6a4c941222c9f0807a";
const WINDLASS: &str = env!("CARGO_BIN_EXE_windlass");
/// How long after a death everything may last: the peer timeout, and what the launcher needs.
const DEADLINE: Duration = Duration::from_secs(40);

/// Whether these tests are wanted; says so if not.
fn wanted() -> bool {
    let wanted = std::env::var_os("WINDLASS_TEST_LAUNCHERS").is_some_and(|value| value == "1");
    if !wanted {
        let _ = writeln!(std::io::stderr(), "skipped: WINDLASS_TEST_LAUNCHERS is not 1");
    }
    wanted
}

/// A launcher with its arguments, up to the program, under a time limit of its own.
#[derive(Clone)]
pub struct Launcher {
    command: Vec<String>,
    environment: Vec<(String, String)>,
    folder: PathBuf,
}

impl Launcher {
    /// The launcher `command`, whose ranks write into `folder`.
    pub fn new(command: &[&str], environment: &[(&str, &str)], folder: &Path) -> Launcher {
        let pairs = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Launcher {
            command: ["timeout", "-k", "5", "110"].iter().chain(command).map(|w| (*w).to_owned()).collect(),
            environment: pairs.collect(),
            folder: folder.to_owned(),
        }
    }

    /// Open MPI, with `ranks` ranks on this machine.
    fn open_mpi(ranks: &str, folder: &Path) -> Launcher {
        let command =
            ["mpirun.openmpi", "--oversubscribe", "--bind-to", "none", "--mca", "oob_tcp_if_include", "lo"];
        let root = [("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")];
        Launcher::new(&[&command[..], &["-n", ranks]].concat(), &root, folder)
    }

    /// MPICH.
    fn mpich(ranks: &str, folder: &Path) -> Launcher {
        Launcher::new(&["mpirun.mpich", "-n", ranks], &[], folder)
    }

    /// Starts it with a program to launch.
    pub fn start(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args(arguments).current_dir(&self.folder);
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("WINDLASS_")) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(n, v)| (n, v)));
        let mut process = Process::start(command);
        process.lag = DEADLINE; // srun has a second process of its own, which may be the last to leave
        process
    }

    /// The same, to its end. `srun` (22.05) was seen to wait on when all its tasks had ended, deaf to SIGTERM. Such a step is told, with
    /// what Slurm has logged, and made once more.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let mut process = self.start(arguments);
        if self.is_left_alone(&mut process) {
            self.give_up(arguments, process);
            process = self.start(arguments);
        }
        process.end(PATIENCE)
    }

    /// Waits until the launcher has ended, or all that it has launched has ended long before it: whether this is so.
    fn is_left_alone(&self, process: &mut Process) -> bool {
        let (mut launched, mut seen) = (false, Instant::now());
        while process.runs() {
            let of_launcher = |pid: i32| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm"));
                name.map_or(true, |name| ["srun", "timeout"].contains(&name.trim()))
            };
            if !process.members().iter().all(|member| of_launcher(member.pid)) {
                (launched, seen) = (true, Instant::now());
            }
            if launched && seen.elapsed() > DEADLINE && self.command.iter().any(|word| word == "srun") {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Ends such a step, and the job that holds its nodes.
    fn give_up(&self, arguments: &[&str], process: Process) {
        let configuration = &self.environment.iter().find(|(name, _)| name == "SLURM_CONF").unwrap().1;
        eprintln!("srun waits for tasks that have ended: {arguments:?}\n{}", process.said());
        drop(process);
        let logs = Path::new(configuration).ancestors().nth(2).unwrap().join("log");
        for log in fs::read_dir(logs).unwrap().flatten() {
            let lines = fs::read_to_string(log.path()).unwrap_or_default();
            let last: Vec<_> = lines.lines().rev().take(12).collect();
            eprintln!("{}:\n{}", log.path().display(), last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        let cancel = ["scancel", "--state=RUNNING", "--partition=all"];
        let ended = Command::new(cancel[0]).args(&cancel[1..]).env("SLURM_CONF", configuration).status();
        assert!(ended.unwrap().success());
    }

    /// Runs the default training, which must give the bits that it gives on one machine.
    pub fn train(&self, before: &[&str]) {
        self.trains(before, &[], DEFAULT);
    }

    /// The same of another training, which comes to `digest`.
    pub fn trains(&self, before: &[&str], flags: &[&str], digest: &str) {
        let report = self.folder.join("report.json");
        let job = [before, &["train", "lr", "--report", text(&report)], flags].concat();
        let ended = self.run(&job).expect(0);
        let written = fs::read(&report).unwrap_or_else(|e| panic!("{e}: {}", ended.stderr));
        let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(written["weights_sha256"], digest, "{job:?}");
        assert_eq!(written["settings"]["workers"], 4);
        fs::remove_file(report).unwrap();
        let left: Vec<_> = fs::read_dir(&self.folder).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".windlass")), "{left:?}");
    }

    /// Measures pushes to the server, and the transport between the two workers: on each worker's rank the same command line.
    pub fn bench(&self) {
        for op in ["push", "write", "read"] {
            let job = [WINDLASS, "run", "--servers", "1", "--", WINDLASS, "bench", op];
            let short = ["--bytes", "64K", "--table-bytes", "1M", "--seconds", "0.2", "--json"];
            let ended = self.run(&[&job[..], &short].concat()).expect(0);
            let figures: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
            assert!(figures["op"] == op && figures["gbytes_per_second"].as_f64().unwrap() > 0.0, "{figures}");
        }
    }

    /// Ends `victim`, a process of a training that does not end by itself: everything ends soon, with a failure, and nothing is left:
    /// no process, and no file where the ranks run, which is also where they are told to put what is for the moment.
    pub fn killed(&self, victim: impl Fn(&Process) -> i32) -> Ended {
        let temporary = format!("TMPDIR={}", text(&self.folder));
        let job = ["env", &temporary, WINDLASS, "run", "--servers", "2", "--"];
        let process = self.start(&[&job[..], &[WINDLASS, "train", "lr", "--epochs", "1000000"]].concat());
        process.until_says(", clock ");
        kill(victim(&process), Signal::KILL);
        // Some launchers leave before the last of their ranks, so the ranks are asked first.
        until(DEADLINE, "the end of all", || process.members().is_empty());
        let ended = process.end(PATIENCE);
        assert_ne!(ended.code, 0);
        assert_ne!(ended.code, 124, "the time limit ended it: {}", ended.stderr);
        no_files_are_left(&self.folder);
        ended
    }
}

/// Of a job that has ended: in the folder for its temporary files, and of our own in shared memory.
pub fn no_files_are_left(temporary: &Path) {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names(temporary), [""; 0]);
    let ours: Vec<_> = names(Path::new("/dev/shm")).into_iter().filter(|n| n.contains("windlass")).collect();
    assert_eq!(ours, [""; 0]);
}

/// A worker's own process.
pub fn worker(process: &Process) -> i32 {
    process.member(Role::Worker, 2)
}

/// The leading rank's supervisor, which has the coordinator: the parent of server 0.
pub fn leader(process: &Process) -> i32 {
    let server = process.member(Role::Server, 0);
    let stat = fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

const RUN: [&str; 6] = [WINDLASS, "run", "--servers", "2", "--", WINDLASS];

#[test]
fn open_mpi_gives_the_same_bits_and_is_measured() {
    if !wanted() {
        return;
    }
    let directory = scratch();
    Launcher::open_mpi("6", directory.path()).train(&RUN);
    // Each program with a command line of its own.
    Launcher::open_mpi("2", directory.path()).train(&[WINDLASS, "server", ":", "-n", "4", WINDLASS]);
    Launcher::open_mpi("3", directory.path()).bench();
}

#[test]
fn mpich_gives_the_same_bits_and_is_measured() {
    if !wanted() {
        return;
    }
    let directory = scratch();
    Launcher::mpich("6", directory.path()).train(&RUN);
    Launcher::mpich("2", directory.path()).train(&[WINDLASS, "server", ":", "-n", "4", WINDLASS]);
    Launcher::mpich("3", directory.path()).bench();
    let named = [&RUN[..4], &["--launcher", "mpi", "--servers-on", "1,4"], &RUN[4..]].concat();
    Launcher::mpich("6", directory.path()).train(&named);
}

/// In the README's order: rank 0 is a worker, which reads its job from its environment.
#[test]
fn workers_may_come_before_servers() {
    if !wanted() {
        return;
    }
    let directory = scratch();
    let worker = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/worker");
    assert!(worker.exists(), "{}: build it with `cargo build --examples`", worker.display());
    let servers = [":", "-n", "2", WINDLASS, "server"];
    for launcher in [Launcher::open_mpi, Launcher::mpich] {
        let ended = launcher("2", directory.path()).run(&[&[text(&worker)], &servers[..]].concat()).expect(0);
        assert_eq!(ended.stdout.matches("[-0.25, -0.5, -1.5]").count(), 2, "{}", ended.stdout);
        let report = directory.path().join("report.json");
        let train = [WINDLASS, "train", "lr", "--report", text(&report)];
        launcher("4", directory.path()).run(&[&train[..], &servers].concat()).expect(0);
        assert!(fs::read_to_string(&report).unwrap().contains(DEFAULT));
        fs::remove_file(&report).unwrap();
    }
}

#[test]
fn a_rank_killed_below_mpirun_ends_everything() {
    if !wanted() {
        return;
    }
    let directory = scratch();
    for launcher in [Launcher::open_mpi, Launcher::mpich] {
        let launcher = launcher("6", directory.path());
        launcher.killed(worker);
        launcher.killed(leader);
    }
}

#[test]
fn ranks_that_do_not_fit_are_told_at_once() {
    if !wanted() {
        return;
    }
    let directory = scratch();
    let mpich = Launcher::mpich("4", directory.path());
    let wrong = |flags: &[&str]| {
        let started = Instant::now();
        let ended = mpich.run(&[&[WINDLASS, "run"], flags, &["--", WINDLASS, "train", "lr"]].concat());
        assert_ne!(ended.code, 0);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        ended
    };
    // The first rank says it, and the others that it did.
    let ended = wrong(&["--servers", "4"]);
    let said = "--servers: expected 1 to 3, so that a worker is left of the 4 tasks on ";
    assert_eq!(ended.stderr.matches(said).count(), 4, "{}", ended.stderr);
    wrong(&["--servers", "1", "--workers", "4"]).says("--workers: expected 3: 4 tasks without 1 servers on ");
    wrong(&["--servers", "2", "--servers-on", "3,9"])
        .says("expected 2 ranks (--servers) of 0 to 3, found 3,9");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = wrong(&["--interface", "lo", "--port-range", &port]);
    let said = format!("bind (127.0.0.1:{port}, for rank 0 on ");
    assert_eq!(ended.stderr.matches(&said).count(), 4, "{}", ended.stderr);
    // Nobody serves.
    let ended = mpich.run(&[WINDLASS, "train", "lr"]);
    assert_eq!(ended.stderr.matches("found 4 workers and no server").count(), 4, "{}", ended.stderr);
    // A program that is no node of the job.
    wrong_program(&mpich);
}

/// A setting that can't be: every rank says which, also where only the first has it.
#[test]
fn a_bad_setting_below_a_launcher_is_an_error_of_every_rank() {
    if !wanted() {
        return;
    }
    let (slurm, directory) = (slurm::Slurm::start(), scratch());
    let cuts = directory.path().join("cuts");
    let job = [WINDLASS, "run", "--servers", "1", "--checkpoint", text(&cuts), "--", WINDLASS, "train", "lr"];
    let srun = slurm.srun(&["--mpi=pmi2", "-N2", "-n4"], directory.path());
    let mpich = Launcher::mpich("4", directory.path());
    let first = "[ $SLURM_PROCID != 0 ] || export WINDLASS_GRACE=0; exec \"$0\" \"$@\"";
    let grace = ["GRACE: expected ", "found 0"];
    let every = ["every: expected ", "found soon"];
    for (launcher, how, said) in [
        (&mpich, &["env", "WINDLASS_GRACE=0"][..], grace),
        (&mpich, &["env", "WINDLASS_EVERY=soon"], every),
        (&srun, &["env", "WINDLASS_GRACE=0"], grace),
        (&srun, &["env", "WINDLASS_EVERY=soon"], every),
        (&srun, &["sh", "-c", first], grace),
    ] {
        let started = Instant::now();
        let ended = launcher.run(&[how, &job[..]].concat());
        assert_ne!(ended.code, 0); // mpirun makes one code of those of all ranks
        let lines = ended.stderr.lines().filter(|line| said.iter().all(|said| line.contains(said)));
        assert_eq!(lines.count(), 4, "{}", ended.stderr);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}

fn wrong_program(mpich: &Launcher) {
    let ended = mpich.run(&[WINDLASS, "run", "--servers", "1", "--", "true"]);
    assert_ne!(ended.code, 0);
    ended.says("ended before it joined");
}
