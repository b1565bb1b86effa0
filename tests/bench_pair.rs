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

/// The verdict of `scripts/bench-verbs.sh` on figures: all is printed, and a ratio that misses its aim is its exit status.
#[test]
fn a_missed_aim_beside_perftest_is_an_exit_status() {
    let judged = |figures: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        let good = [
            ("ib_write_bw", "1\n1.1\n0.9\n"),
            ("write", "0.5\n0.8\n2\n"),
            ("ib_read_bw", "1\n"),
            ("read", "0.8\n"),
            ("ib_write_lat", "10\n"),
            ("round_trip", "50\n"),
            ("add", "0.8\n"),
            ("push", "0.33\n"),
        ];
        for (name, lines) in good.iter().chain(figures) {
            std::fs::write(folder.path().join(name), lines).unwrap();
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/bench-verbs.sh");
        let output = std::process::Command::new(script).arg("--judge").arg(folder.path()).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(stdout.lines().count(), 6, "{stdout}");
        (output.status.code().unwrap(), stdout.matches(": missed").count())
    };
    assert_eq!(judged(&[]), (0, 0));
    assert_eq!(judged(&[("write", "0.79\n"), ("push", "0.4\n")]), (1, 1));
    assert_eq!(judged(&[("read", "0.79\n")]), (1, 1));
    assert_eq!(judged(&[("round_trip", "51\n")]), (1, 1));
    assert_eq!(judged(&[("push", "0.31\n")]), (1, 1));
    // A figure that is missing keeps no aim.
    assert_eq!(judged(&[("ib_read_bw", ""), ("round_trip", "")]), (1, 2));
}
