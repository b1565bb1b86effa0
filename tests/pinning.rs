//! Server threads on CPUs of their own, as /proc shows them.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::proc::Role;
use common::{PATIENCE, Process, run, until, windlass};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this thread may use.
fn mask() -> Vec<usize> {
    let mask = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect()
}

/// At least two CPUs; says so and gives nothing where there are fewer.
fn several() -> Option<Vec<usize>> {
    let mask = mask();
    if mask.len() < 2 {
        eprintln!("skipped: this needs two CPUs");
        return None;
    }
    Some(mask)
}

/// `Cpus_allowed_list` of a process's thread of this name, once there is one.
fn allowed(pid: i32, thread: &str) -> Option<BTreeSet<usize>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let named = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == thread)
    };
    let task = tasks.into_iter().find(named)?;
    let status = fs::read_to_string(task.path().join("status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        low.parse().unwrap()..=high.parse().unwrap()
    };
    Some(list.split(',').flat_map(range).collect())
}

/// The one CPU that this thread ends up on.
fn pinned(pid: i32, thread: &str) -> usize {
    let mut found = None;
    until(PATIENCE, &format!("{thread} to be pinned"), || {
        found = allowed(pid, thread).filter(|cpus| cpus.len() == 1);
        found.is_some()
    });
    *found.unwrap().first().unwrap()
}

/// A coordinator for servers that wait for workers.
struct Waiting {
    coordinator: Process,
    address: String,
    secret: String,
}

impl Waiting {
    fn start(servers: &str) -> Waiting {
        let secret = run(["secret"]).expect(0).stdout.trim().to_owned();
        let listen = ["coordinator", "--listen", "127.0.0.1:0", "--workers", "1", "--servers", servers];
        let mut command = windlass(listen);
        command.env("WINDLASS_SECRET", &secret);
        let coordinator = Process::start(command);
        let address = coordinator.until_says("windlass coordinator: listening on ");
        Waiting { coordinator, address, secret }
    }

    /// A server as the launcher of a host with so many pollers would start it.
    fn server(&self, local_index: &str, pollers: usize, extra: &[&str]) -> Process {
        let mut command = windlass(["server"].into_iter().chain(extra.iter().copied()));
        command.env("WINDLASS_COORDINATOR", &self.address).env("WINDLASS_SECRET", &self.secret);
        command.env("WINDLASS_LOCAL_INDEX", local_index).env("WINDLASS_POLLERS", pollers.to_string());
        command.env("WINDLASS_LOG", "info");
        Process::start(command)
    }

    /// Nobody is left.
    fn end(self, servers: impl IntoIterator<Item = Process>) {
        let servers: Vec<Process> = servers.into_iter().collect();
        // One that had not joined would hear no more of the end than that nobody answers.
        servers.iter().for_each(|server| drop(server.until_says("joined the job as server ")));
        for server in servers {
            server.signal(Signal::TERM);
            // Who hears first that another one left, ends by that.
            let ended = server.end(PATIENCE);
            assert!([0, 19].contains(&ended.code), "{ended:?}");
        }
        self.coordinator.end(PATIENCE).expect(19);
    }
}

#[test]
fn two_servers_of_one_host_get_cpus_of_their_own() {
    let Some(mask) = several() else { return };
    let job = Waiting::start("2");
    let servers = [job.server("0", 2, &[]), job.server("1", 2, &[])];
    let cpus: Vec<usize> = servers.iter().map(|server| pinned(server.pid(), "wl-srv-0")).collect();
    assert_ne!(cpus[0], cpus[1]);
    assert!(cpus.iter().all(|cpu| mask.contains(cpu)), "{cpus:?} of {mask:?}");
    servers[0].until_line(&format!("server threads are pinned to CPUs {}", cpus[0]));
    // Only those threads: what else the process does is not pushed aside.
    let all: BTreeSet<usize> = mask.into_iter().collect();
    until(PATIENCE, "the control thread", || allowed(servers[0].pid(), "wl-ctl").is_some());
    assert_eq!(allowed(servers[0].pid(), "wl-ctl").unwrap(), all);
    job.end(servers);
}

#[test]
fn every_thread_is_named_and_gets_a_cpu() {
    let Some(_) = several() else { return };
    let job = Waiting::start("1");
    let server = job.server("0", 2, &["--threads", "2"]);
    assert_ne!(pinned(server.pid(), "wl-srv-0"), pinned(server.pid(), "wl-srv-1"));
    assert_eq!(allowed(server.pid(), "wl-srv-2"), None);
    job.end([server]);
}

#[test]
fn with_more_pollers_than_cpus_nothing_is_pinned_and_the_log_says_why() {
    let mask = mask();
    let job = Waiting::start("1");
    let server = job.server("0", mask.len() + 1, &[]);
    let why = server.until_says("server threads are not pinned: ");
    let expected = format!(
        "{} threads wait for the network on this host, and this process may use {} CPUs",
        mask.len() + 1,
        mask.len()
    );
    assert_eq!(why, expected);
    until(PATIENCE, "its thread", || allowed(server.pid(), "wl-srv-0").is_some());
    // It has joined: a thread that is pinned at all is pinned by then.
    until(PATIENCE, "the server to join", || common::proc::listeners([server.pid()]).len() == 2);
    assert_eq!(allowed(server.pid(), "wl-srv-0").unwrap(), mask.into_iter().collect());
    job.end([server]);
}

#[test]
fn told_to_pin_nothing_a_server_pins_nothing() {
    let job = Waiting::start("1");
    let server = job.server("0", 1, &["--pin", "none"]);
    drop(server.until_says("joined the job as server "));
    until(PATIENCE, "its thread", || allowed(server.pid(), "wl-srv-0").is_some());
    assert_eq!(allowed(server.pid(), "wl-srv-0").unwrap(), mask().into_iter().collect());
    job.end([server]);
}

#[test]
fn a_narrowed_mask_is_respected() {
    let Some(mask) = several() else { return };
    let (ours, other) = (mask[1], mask[0]);
    std::thread::spawn(move || {
        let mut narrow = CpuSet::new();
        narrow.set(ours);
        sched_setaffinity(None, &narrow).unwrap();
        // What is started here inherits the mask.
        let job = Waiting::start("1");
        let server = job.server("0", 1, &[]);
        server.until_line(&format!("server threads are pinned to CPUs {ours}"));
        assert_eq!(pinned(server.pid(), "wl-srv-0"), ours);
        let refused = job.server("0", 1, &["--pin", &other.to_string()]).end(PATIENCE).expect(11);
        refused.says(&format!("pin: expected CPUs of the affinity mask {ours}, found {other}"));
        job.end([server]);
    })
    .join()
    .unwrap();
}

#[test]
fn a_list_outside_the_mask_is_refused_and_one_inside_it_is_used_by_run() {
    let outside = (0..).find(|cpu| !mask().contains(cpu)).unwrap().to_string();
    let ended = run(["run", "--servers", "1", "--workers", "1", "--pin", &outside, "--", "sleep", "1000"]);
    ended.expect(11).says("pin: expected CPUs of the affinity mask").says(&format!("found {outside}"));
    let inside = *mask().last().unwrap();
    let pin = inside.to_string();
    let job = ["run", "--servers", "1", "--workers", "1", "--pin", &pin, "--", "sleep", "1000"];
    let process = Process::start(windlass(job));
    assert_eq!(pinned(process.member(Role::Server, 0), "wl-srv-0"), inside);
    process.signal(Signal::INT);
    process.end(PATIENCE).expect(130);
}
