//! Jobs of real processes over verbs, of which one is killed. Run it as `tests/verbs/main.rs`.
#![cfg(feature = "verbs")]
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome};
use windlass::transport::verbs::available;
use windlass::{Error, Secret};

fn has_device() -> bool {
    let found = available().unwrap().iter().any(|d| d.active);
    if !found {
        println!("skipped: no RDMA device");
    }
    found
}

/// `train lr` over verbs, by hand, with its coordinator in this process: server first, then the workers, each a process.
struct Job {
    secret: Secret,
    address: String,
    coordinator: std::thread::JoinHandle<windlass::Result<Outcome>>,
    nodes: Vec<Child>,
}

impl Job {
    fn start(workers: u32) -> Job {
        let secret = Secret::generate().unwrap();
        let mut config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(workers));
        config.limits.peer_timeout = SILENCE;
        let coordinator = CoordinatorServer::bind(config).unwrap();
        let address = coordinator.address().to_string();
        let coordinator = std::thread::spawn(move || coordinator.run());
        let mut job = Job { secret, address, coordinator, nodes: Vec::new() };
        job.node(&["server"]);
        for rank in 0..workers {
            let (rank, workers) = (rank.to_string(), workers.to_string());
            job.node(&["train", "lr", "--epochs", "1000", "--rank", &rank, "--workers", &workers]);
        }
        job
    }

    fn node(&mut self, arguments: &[&str]) {
        let node = Command::new(env!("CARGO_BIN_EXE_windlass"))
            .args(arguments)
            .env("WINDLASS_COORDINATOR", &self.address)
            .env("WINDLASS_SECRET", self.secret.to_hex())
            .env("WINDLASS_TRANSPORT", "verbs")
            .env("WINDLASS_PEER_TIMEOUT", SILENCE.as_secs().to_string())
            .env("WINDLASS_LOG", "info")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.nodes.push(node);
    }

    /// Kills node `victim` once worker 0, the second node, is training, and starts another with these arguments if there are any. Gives
    /// the exit codes and last lines of the others, that one's the last, and how long they took to end.
    fn kill(mut self, victim: usize, another: &[&str]) -> (Vec<(i32, String)>, Duration) {
        let mut log = BufReader::new(self.nodes[1].stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(log.any(|line| line.contains("clock")), "it never trained");
        let rest = std::thread::spawn(move || log.last().unwrap_or_default());
        self.nodes[victim].kill().unwrap();
        self.nodes[victim].wait().unwrap();
        let start = Instant::now();
        if !another.is_empty() {
            self.node(another);
        }
        let mut rest = Some(rest);
        let mut ended = Vec::new();
        for (number, mut node) in self.nodes.into_iter().enumerate() {
            let stderr = node.stderr.take();
            let last = match stderr {
                Some(stderr) => BufReader::new(stderr).lines().map(Result::unwrap).last().unwrap_or_default(),
                None => rest.take().unwrap().join().unwrap(),
            };
            let status = node.wait().unwrap();
            if number != victim {
                ended.push((status.code().unwrap(), last));
            }
        }
        let took = start.elapsed();
        assert!(matches!(self.coordinator.join().unwrap(), Err(Error::Aborted { .. })));
        (ended, took)
    }
}

/// Silence after which a peer of these jobs is lost.
const SILENCE: Duration = Duration::from_secs(10);

/// A server can't be replaced: whoever is left ends with an error that names it, before the deadline, and so does one that is started
/// in its place.
#[test]
fn a_killed_server_ends_the_job_by_name() {
    if !has_device() {
        return;
    }
    let (mut ended, took) = Job::start(2).kill(0, &["server", "--rank", "0", "--dial-timeout", "2"]);
    // The job has started without it, is ending, or is gone by now.
    let (code, last) = ended.pop().unwrap();
    println!("started again: {code}: {last}");
    assert!([13, 14, 15, 19].contains(&code) && last.contains("coordinator"), "{code}: {last}");
    assert_eq!(ended.len(), 2);
    for (code, last) in ended {
        assert!([14, 19].contains(&code) && last.contains("server 0"), "{code}: {last}");
    }
    assert!(took < 2 * SILENCE, "{took:?}");
}

#[test]
fn a_killed_worker_ends_the_job_by_name() {
    if !has_device() {
        return;
    }
    let (ended, took) = Job::start(2).kill(2, &[]);
    for (code, last) in ended {
        assert!([14, 19].contains(&code) && last.contains("worker 1"), "{code}: {last}");
    }
    assert!(took < 2 * SILENCE, "{took:?}");
}
