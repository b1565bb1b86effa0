//! `windlass bench write` and `read` between the two workers of a job: worker 0 measures, worker 1 responds.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use common::job::Job;
use common::{PATIENCE, Process, windlass};
use rustix::process::Signal;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_windlass");
/// What is measured, small and short.
const SHORT: [&str; 5] = ["--table-bytes", "1M", "--seconds", "0.2", "--json"];

/// The one JSON object that was printed; a launcher puts the process's name before it.
fn figures(stdout: &str) -> Value {
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout[stdout.find('{').unwrap()..]).unwrap()
}

fn assert_sane(figures: &Value, op: &str, bytes: u64) {
    assert_eq!((&figures["op"], &figures["bytes"]), (&op.into(), &bytes.into()), "{figures}");
    for name in ["ops_per_second", "gbytes_per_second", "p50_us", "p99_us"] {
        assert!(figures[name].as_f64().unwrap() > 0.0, "{figures}");
    }
}

/// Worker `rank` of `workers` of a job by hand.
fn worker(job: &Job, rank: &str, workers: &str, arguments: &[&str]) -> Process {
    let place = ["--coordinator", &job.address, "--rank", rank, "--workers", workers];
    let mut command = windlass([&["bench"], arguments, &place].concat());
    command.env("WINDLASS_SECRET", job.secret.to_hex()).env("WINDLASS_LOG", "info");
    Process::start(command)
}

#[test]
fn over_each_transport() {
    for (transport, used, detail) in [
        ("tcp", "tcp", "congestion control"),
        ("shm", "shm", ""),
        // Both are on this host.
        ("auto", "tcp", "1 of 1 endpoints by shm"),
    ] {
        for op in ["write", "read"] {
            let job = ["run", "--workers", "2", "--servers", "1", "--transport", transport, "--"];
            let worker = [PROGRAM, "bench", op, "--bytes", "64K"];
            let mut command = windlass([&job[..], &worker, &SHORT].concat());
            command.env("WINDLASS_LOG", "info");
            let ended = Process::start(command).end(PATIENCE).expect(0);
            let figures = figures(&ended.stdout);
            assert_sane(&figures, op, 65536);
            assert_eq!(figures["transport"], used, "{figures}");
            assert!(figures["transport_detail"].as_str().unwrap().contains(detail), "{figures}");
        }
    }
}

#[test]
fn by_hand() {
    for op in ["write", "read"] {
        let job = Job::start(1, 1, 2);
        let arguments = [&[op, "--bytes", "999996"][..], &SHORT].concat();
        let responds = worker(&job, "1", "2", &arguments);
        let measures = worker(&job, "0", "2", &arguments);
        assert_sane(&figures(&measures.end(PATIENCE).expect(0).stdout), op, 999_996);
        // It speaks for itself only when it fails.
        assert_eq!(responds.end(PATIENCE).expect(0).stdout, "");
        job.end();
    }
}

#[test]
fn other_than_two_workers_are_refused() {
    let job = Job::start(1, 1, 3);
    let three = ["0", "1", "2"].map(|rank| worker(&job, rank, "3", &["write"]));
    for ended in three.map(|process| process.end(PATIENCE)) {
        assert!(ended.code == 11 || ended.code == 19, "{}", ended.code);
        ended.says("--workers with write in a job: expected 2");
    }
    job.coordinator.join().unwrap().unwrap_err();
}

#[test]
fn unlike_options_are_refused_with_both() {
    let job = Job::start(1, 1, 2);
    let (responds, measures) = (worker(&job, "1", "2", &["read"]), worker(&job, "0", "2", &["write"]));
    for ended in [responds, measures].map(|process| process.end(PATIENCE)) {
        assert!(ended.code == 15 || ended.code == 19, "{}", ended.code);
        ended.says("op: \"write\"").says("op: \"read\"").says("give both the same options");
    }
    job.coordinator.join().unwrap().unwrap_err();
}

#[test]
fn the_loss_of_the_other_end_is_told() {
    for (victim, survivor) in [("0", "1"), ("1", "0")] {
        let job = Job::start(1, 1, 2);
        let arguments = ["write", "--bytes", "64K", "--table-bytes", "1M", "--seconds", "3600"];
        let [killed, left] = [victim, survivor].map(|rank| worker(&job, rank, "2", &arguments));
        for process in [&killed, &left] {
            process.until_says("bench: connected by ");
        }
        killed.signal(Signal::KILL);
        let ended = left.end(PATIENCE);
        // Its connection is lost, or the coordinator says first that the worker is.
        assert!(ended.code == 14 || ended.code == 19, "{}", ended.code);
        job.coordinator.join().unwrap().unwrap_err();
    }
}
