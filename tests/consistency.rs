//! Consistency between real processes: four workers push and pull, one of them is stopped (SIGSTOP) and goes on later.
//! What the others may do meanwhile is what the table's consistency and quorum say.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::proc::{Role, is_stopped};
use common::{PATIENCE, Process, kill, scratch, text, until, windlass};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use windlass::types::{Aggregate, Consistency, Late, OptimizerSpec, Quorum};
use windlass::{Client, ClientConfig, Error, KeyRange, TableSpec};

const WORKERS: usize = 4;
/// The one that is stopped.
const STOPPED: usize = 3;
/// Elements of the table, in buckets of 16.
const ELEMENTS: usize = 64;
const BUCKETS: usize = 4;
/// How long a wait lasts before a worker says that it is blocked. What it then says is asserted, not when.
const SHORT: Duration = Duration::from_millis(200);

/// What a worker says on a line of its standard error.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Said {
    rank: usize,
    clock: u64,
    /// Whether the other one had been stopped before.
    since_the_stop: bool,
    /// What it waits for; nothing when it goes on.
    blocked: Option<String>,
    /// As the server saw it then: the clock of the worker that is stopped, and the clocks that all have ended.
    slowest: u64,
    closed: u64,
    late_dropped: u64,
    late_applied: u64,
    /// The whole table, when it has ended.
    values: Option<Vec<f32>>,
}

/// The program of the workers: pulls, pushes one piece to each bucket and ends the clock, until the file `end` is there.
struct Worker {
    client: Client,
    directory: PathBuf,
    clock: u64,
}

#[test]
#[ignore = "not a test by itself: the workers that the tests of this file start"]
fn worker() {
    let given = |name| std::env::var(name).unwrap();
    let spec: TableSpec = serde_json::from_str(&given("TEST_TABLE")).unwrap();
    let client = Client::connect(ClientConfig::from_env().unwrap()).unwrap();
    let mut worker = Worker { client, directory: PathBuf::from(given("TEST_FILES")), clock: 0 };
    let table = worker.client.table(&spec).unwrap();
    let all = KeyRange::new(0, ELEMENTS as u64).unwrap();
    let rank = worker.client.rank() as usize;
    let ones: Vec<f32> = (0..ELEMENTS).map(|i| f32::from(u8::from(i % WORKERS == rank))).collect();
    let mut values = vec![0.0f32; ELEMENTS];
    while !worker.directory.join("end").exists() {
        let mut ticket = table.pull_range_async(all).unwrap();
        loop {
            match ticket.wait_timeout(SHORT) {
                Ok(()) => break,
                Err(Error::Timeout { waited_for, .. }) => worker.says(Some(waited_for), None),
                Err(error) => panic!("{error}"),
            }
        }
        ticket.wait_into(&mut values).unwrap();
        drop(table.push_range(all, &ones).unwrap());
        worker.clock = worker.client.clock().unwrap();
        if worker.clock == 5 || worker.clock.is_multiple_of(50) {
            worker.says(None, None);
        }
    }
    worker.client.finish().unwrap();
    worker.client.barrier().unwrap();
    table.pull_range(all, &mut values).unwrap();
    worker.says(None, Some(values));
    worker.client.barrier().unwrap();
    worker.client.finalize().unwrap();
}

impl Worker {
    fn says(&self, blocked: Option<String>, values: Option<Vec<f32>>) {
        let since_the_stop = self.directory.join("stopped").exists();
        let stats = &self.client.server_stats().unwrap()[0];
        let thread = stats.threads[0];
        let said = Said {
            rank: self.client.rank() as usize,
            clock: self.clock,
            since_the_stop,
            blocked,
            slowest: stats.clocks[STOPPED],
            closed: thread.closed,
            late_dropped: thread.late_dropped,
            late_applied: thread.late_applied,
            values,
        };
        eprintln!("{}", serde_json::to_string(&said).unwrap());
    }
}

/// A job of four workers, of which one is stopped.
struct Job {
    process: Process,
    directory: tempfile::TempDir,
    stopped: i32,
}

impl Job {
    fn start(spec: &TableSpec) -> Job {
        let directory = scratch();
        let program = std::env::current_exe().unwrap();
        let options =
            ["run", "--servers", "1", "--workers", "4", "--peer-timeout", "300", "--", text(&program)];
        let arguments = ["--ignored", "--exact", "worker", "--nocapture"];
        let mut command = windlass(options.into_iter().chain(arguments));
        command.env("TEST_TABLE", serde_json::to_string(spec).unwrap());
        command.env("TEST_FILES", directory.path());
        let process = Process::start(command);
        let mut job = Job { process, directory, stopped: 0 };
        job.until("all are under way", |said| (0..WORKERS).all(|r| said.iter().any(|s| s.rank == r)));
        job.stopped = job.process.member(Role::Worker, STOPPED as u32);
        kill(job.stopped, Signal::STOP);
        until(PATIENCE, "the stop", || is_stopped(job.stopped));
        fs::write(job.directory.path().join("stopped"), "").unwrap();
        job
    }

    fn said(&self) -> Vec<Said> {
        let said = self.process.said();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(|l| serde_json::from_str(l.split_once("] ")?.1).ok()).collect()
    }

    /// Waits until what was said is as it should be.
    fn until(&self, what: &str, condition: impl Fn(&[Said]) -> bool) {
        until(PATIENCE, what, || condition(&self.said()));
    }

    /// All others go on until they are a hundred clocks ahead of the one that is stopped.
    fn passes_by_a_hundred(&self) {
        let passed = |said: &[Said], rank| {
            said.iter().any(|s| s.rank == rank && s.since_the_stop && s.clock >= s.slowest + 100)
        };
        self.until("a hundred clocks", |said| (0..STOPPED).all(|rank| passed(said, rank)));
        assert!(is_stopped(self.stopped));
        assert!(self.said().iter().all(|s| s.closed <= s.slowest), "no clock closes for all without it");
    }

    /// All others come to a pull that waits, `lead` clocks ahead of the one that is stopped, and get no further.
    fn stops_ahead(&self, lead: u64) {
        let at_the_bound = |s: &Said| {
            let named = |why: &String| {
                let what = format!("a pull from table \"w\" in clock {} at server 0", s.clock);
                why.contains(&what) && why.ends_with(": worker 3")
            };
            s.clock == s.slowest + lead && s.closed == s.slowest && s.blocked.as_ref().is_some_and(named)
        };
        // Three waits one after the other, each ended by its typed timeout.
        self.until("all are blocked at the bound", |said| {
            (0..STOPPED).all(|rank| {
                let last: Vec<_> =
                    said.iter().filter(|s| s.rank == rank && s.since_the_stop).rev().take(3).collect();
                last.len() == 3 && last.iter().all(|s| at_the_bound(s))
            })
        });
        assert!(is_stopped(self.stopped));
        for said in self.said() {
            assert!(said.clock <= said.slowest + lead, "{said:?} is ahead of the bound");
        }
    }

    /// The stopped one goes on; then all end. Gives what they said last, by rank.
    fn goes_on_and_ends(self) -> Vec<Said> {
        let stopped_in = self.said().iter().map(|s| s.slowest).max().unwrap();
        kill(self.stopped, Signal::CONT);
        self.until("the stopped one goes on", |said| said.iter().any(|s| s.slowest > stopped_in));
        fs::write(self.directory.path().join("end"), "").unwrap();
        let ended = |said: &[Said]| said.iter().filter(|s| s.values.is_some()).count() == WORKERS;
        self.until("the end", ended);
        let mut ended: Vec<Said> = self.said().into_iter().filter(|s| s.values.is_some()).collect();
        self.process.end(PATIENCE).expect(0);
        ended.sort_by_key(|s| s.rank);
        ended
    }
}

fn spec(consistency: Consistency) -> TableSpec {
    let spec = TableSpec::dense("w", &[ELEMENTS as u64]).segment_bytes(64).optimizer(OptimizerSpec::sum());
    spec.aggregate(Aggregate::Sum).consistency(consistency)
}

/// Each element is the number of clocks of the worker that pushed to it.
#[track_caller]
fn nothing_is_missing(ended: &[Said]) {
    for said in ended {
        let values = said.values.as_ref().unwrap();
        let expected: Vec<f32> = (0..ELEMENTS).map(|i| ended[i % WORKERS].clock as f32).collect();
        assert_eq!(values, &expected, "as worker {} sees it", said.rank);
    }
}

#[test]
fn under_bsp_all_stop_at_the_clock_of_the_one_that_is_stopped() {
    let job = Job::start(&spec(Consistency::Bsp));
    job.stops_ahead(1);
    nothing_is_missing(&job.goes_on_and_ends());
}

#[test]
fn under_ssp_all_advance_to_the_bound_and_stop_there() {
    let job = Job::start(&spec(Consistency::Ssp { staleness: 2 }));
    job.stops_ahead(3);
    nothing_is_missing(&job.goes_on_and_ends());
}

#[test]
fn under_asp_all_go_on() {
    let job = Job::start(&spec(Consistency::Asp));
    job.passes_by_a_hundred();
    nothing_is_missing(&job.goes_on_and_ends());
}

/// Pieces that the values show: each is a 1 in each element of its worker in its bucket.
fn pieces(values: &[f32]) -> u64 {
    let mut pieces = 0;
    for bucket in values.chunks(ELEMENTS / BUCKETS) {
        for rank in 0..WORKERS {
            assert!(bucket.iter().skip(rank).step_by(WORKERS).all(|v| *v == bucket[rank]), "{bucket:?}");
            pieces += bucket[rank] as u64;
        }
    }
    pieces
}

fn quorum(consistency: Consistency, late: Late) {
    let quorum = Quorum { workers: 3, late };
    let job = Job::start(&spec(consistency).quorum(quorum));
    job.passes_by_a_hundred();
    let ended = job.goes_on_and_ends();
    let pushed: u64 = ended.iter().map(|s| s.clock * BUCKETS as u64).sum();
    for said in &ended {
        let values = said.values.as_ref().unwrap();
        match late {
            Late::Drop => {
                assert!(said.late_dropped > 0 && said.late_applied == 0, "{said:?}");
                assert_eq!(pieces(values), pushed - said.late_dropped, "{said:?}");
            }
            Late::Apply => {
                assert!(said.late_applied > 0 && said.late_dropped == 0, "{said:?}");
                assert_eq!(pieces(values), pushed, "{said:?}");
            }
        }
    }
}

#[test]
fn a_quorum_goes_on_under_bsp_and_late_pieces_are_dropped() {
    quorum(Consistency::Bsp, Late::Drop);
}

#[test]
fn a_quorum_goes_on_under_bsp_and_late_pieces_are_applied() {
    quorum(Consistency::Bsp, Late::Apply);
}

#[test]
fn a_quorum_goes_on_under_ssp_and_late_pieces_are_dropped() {
    quorum(Consistency::Ssp { staleness: 2 }, Late::Drop);
}

#[test]
fn a_quorum_goes_on_under_ssp_and_late_pieces_are_applied() {
    quorum(Consistency::Ssp { staleness: 2 }, Late::Apply);
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
