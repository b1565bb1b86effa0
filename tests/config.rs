//! Settings by flag, variable and file, as the real program takes them.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Ended, PATIENCE, Process, run, scratch, text, windlass};

/// Runs it with these variables.
fn run_with(arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = windlass(arguments.iter().copied());
    command.envs(variables.iter().copied());
    Process::start(command).end(PATIENCE)
}

/// `key = value  # source` by key.
fn shown(ended: Ended) -> BTreeMap<String, (String, String)> {
    let ended = ended.expect(0);
    assert_eq!(ended.stderr, "");
    let line = |line: &str| {
        let (key, rest) = line.split_once(" = ").unwrap();
        let (value, source) = rest.rsplit_once("  # ").unwrap();
        (key.to_owned(), (value.to_owned(), source.to_owned()))
    };
    ended.stdout.lines().map(line).collect()
}

fn file(directory: &Path, contents: &str) -> PathBuf {
    let path = directory.join("windlass.toml");
    fs::write(&path, contents).unwrap();
    path
}

fn pair(value: &str, source: &str) -> (String, String) {
    (value.to_owned(), source.to_owned())
}

#[test]
fn each_source_outdoes_the_next_and_is_named() {
    let directory = scratch();
    let path = file(
        directory.path(),
        "# by hand\nslots = 3\npeer_timeout = 20\npoll = \"spin\"\nstaging_bytes = \"8M\"\n",
    );
    let variables =
        [("WINDLASS_PEER_TIMEOUT", "30"), ("WINDLASS_POLL", "block"), ("WINDLASS_CONFIG", text(&path))];
    let flags = ["--poll", "auto", "--print-config"];
    for command in ["server", "run"] {
        let all = shown(run_with(&[&[command], &flags[..]].concat(), &variables));
        let from_file = format!("file {}", text(&path));
        assert_eq!(all["poll"], pair("\"auto\"", "flag --poll"));
        assert_eq!(all["peer_timeout"], pair("30", "environment WINDLASS_PEER_TIMEOUT"));
        assert_eq!(all["slots"], pair("3", &from_file));
        assert_eq!(all["staging_bytes"], pair("8388608", &from_file));
        assert_eq!(all["stop_timeout"], pair("5", "default"));
        assert_eq!(all["pin"], pair("\"auto\"", "default"));
        assert_eq!(all.len(), windlass::config::settings::all().count(), "{all:?}");
    }
    // A flag outdoes the variable that names the file, too.
    let other = directory.path().join("other.toml");
    fs::write(&other, "slots = 5\n").unwrap();
    let all = shown(run_with(&["server", "--print-config", "--config", text(&other)], &variables));
    assert_eq!(all["slots"], pair("5", &format!("file {}", text(&other))));
    assert_eq!(all["staging_bytes"].1, "default");
}

/// Each worker and each server thread says once what it uses.
#[test]
fn what_holds_is_logged_once() {
    let job = ["train", "lr", "--epochs", "1", "--servers", "2", "--threads", "1", "--workers", "2"];
    let ended = run_with(&[&job[..], &["--poll", "block"]].concat(), &[("WINDLASS_LOG", "info")]);
    for who in ["server 0 thread 0", "server 1 thread 0", "worker 0", "worker 1"] {
        let said = format!("{who}: data travels by tcp (");
        let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(&said)).collect();
        assert!(lines.len() == 1 && lines[0].contains("), poll block"), "{who}: {lines:?}");
    }
}

#[test]
fn what_is_printed_is_a_file_that_means_the_same() {
    let directory = scratch();
    let odd = ["--interface", "lo", "--port-range", "4000-4010", "--pin", "0,2-3", "--slots", "7"];
    let more = ["--table-bytes", "3G", "--reconnect-timeout", "99", "--rdma-device", "mlx5_0:1"];
    for flags in [&[][..], &[&odd[..], &more[..]].concat()] {
        let first = run([&["server", "--print-config"], flags].concat());
        let path = file(directory.path(), &first.stdout);
        let values = |all: BTreeMap<String, (String, String)>| -> BTreeMap<String, String> {
            all.into_iter().map(|(key, (value, _))| (key, value)).collect()
        };
        let again = shown(run(["server", "--print-config", "--config", text(&path)]));
        assert!(again.values().all(|(_, source)| *source == format!("file {}", text(&path))), "{again:?}");
        assert_eq!(values(again), values(shown(first)));
    }
}

#[test]
fn what_is_wrong_in_a_file_is_refused_with_key_and_file() {
    let directory = scratch();
    for (contents, code, expected) in [
        ("slotz = 3\n", 11, "found the key slotz"),
        ("slots = 65\n", 11, "slots in "),
        ("poll = \"never\"\n", 11, "poll in "),
        ("slots = [1]\n", 11, "slots in "),
        ("[server]\nslots = 1\n", 11, "found the key server"),
        ("slots = 1\n=\n", 20, ":2:1: expected TOML"),
    ] {
        let path = file(directory.path(), contents);
        let config = ["--config", text(&path)];
        for (before, after) in [
            (&["server", "--print-config"][..], &[][..]),
            (&["train", "lr"], &[]),
            (&["run"], &["--", "true"]),
        ] {
            run([before, &config, after].concat()).expect(code).says(expected).says(text(&path));
        }
    }
    run(["server", "--print-config", "--config", "/nonexistent.toml"]).expect(12).says("/nonexistent.toml");
}

/// Settings reach the processes of a job, whatever they came from.
#[test]
fn a_job_hands_its_settings_on() {
    let directory = scratch();
    let path = file(directory.path(), "slots = 2\nstop_timeout = 9\nthreads = 2\n");
    let flags_too =
        ["--strangers", "9", "--receive-bytes", "9M", "--wait-timeout", "8", "--progress", "thread"];
    let show = "echo strangers=$WINDLASS_STRANGERS receive=$WINDLASS_RECEIVE_BYTES wait=$WINDLASS_WAIT_TIMEOUT progress=$WINDLASS_PROGRESS; exit 5";
    let ended = run(["run", "--servers", "1", "--workers", "1"]
        .into_iter()
        .chain(flags_too)
        .chain(["--", "sh", "-c", show]));
    let said = ended.expect(5).stdout;
    assert!(said.contains("strangers=9 receive=9M wait=8 progress=thread"), "{said}");
    let show = "echo slots=$WINDLASS_SLOTS stop=$WINDLASS_STOP_TIMEOUT pin=$WINDLASS_PIN threads=$WINDLASS_THREADS; exit 5";
    let flags = ["run", "--servers", "1", "--workers", "1", "--config", text(&path), "--pin", "none"];
    let ended = run(flags.into_iter().chain(["--", "sh", "-c", show])).expect(5);
    assert!(ended.stdout.contains("slots=2 stop=9 pin=none threads=2"), "{}", ended.stdout);
    // Those of the Coordinator reach it, and those of workers ours.
    run(["train", "lr", "--epochs", "1", "--receive-bytes", "7M"])
        .expect(11)
        .says("--receive-bytes: expected at least");
    run(["run", "--tables", "0", "--", "true"]).expect(11).says("--tables: expected 1 to ");
    run(["coordinator", "--strangers", "0"]).expect(11);
    // And have an effect there: a slot for each of 4 workers does not fit.
    let path = file(directory.path(), "staging_bytes = \"512K\"\n");
    let ended = run(["train", "lr", "--epochs", "1", "--config", text(&path)]);
    assert_ne!(ended.code, 0);
    ended.says("staging bytes of a server thread (4 workers");
}

/// On a machine without RDMA, or in a build without verbs, `auto`, the default, shares memory and warns of nothing; `verbs` says what is
/// missing; a node that wants less than the others is named, once; and RDMA settings are refused with what they may be.
#[test]
fn auto_misses_nothing_that_is_not_there_and_verbs_fails() {
    let directory = scratch();
    let report = directory.path().join("report.json");
    let job = ["train", "lr", "--epochs", "1", "--servers", "1", "--workers", "2", "--report", text(&report)];
    let verbs = run(job.into_iter().chain(["--transport", "verbs"]));
    if verbs.code == 0 {
        println!("skipped: this machine has an RDMA device");
        return;
    }
    let missing =
        if cfg!(feature = "verbs") { "this machine has no RDMA device" } else { "lacks the feature `verbs`" };
    verbs.says(missing);
    let read =
        || -> serde_json::Value { serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap() };
    for said in [&[][..], &["--transport", "auto"]] {
        let ended = run(job.iter().chain(said).copied()).expect(0);
        assert!(!ended.stderr.contains("WARN"), "{}", ended.stderr);
        let report = read();
        let transport = report["transport"].as_str().unwrap();
        assert!(transport.contains("1 of 1 endpoints by shm"), "{transport}");
        assert!(!transport.contains("fallen back"), "{transport}");
    }
    let alone = run(["bench", "write", "--seconds", "0.1", "--bytes", "4K"]).expect(0);
    assert!(!alone.stderr.contains("WARN") && alone.stdout.contains("by shm"), "{alone:?}");
    let mixed =
        ["run", "--servers", "1", "--workers", "2", "--", env!("CARGO_BIN_EXE_windlass"), "train", "lr"];
    let worker = ["--epochs", "1", "--transport", "tcp", "--report", text(&report)];
    let ended = run(mixed.into_iter().chain(worker)).expect(0);
    assert_eq!(ended.stderr.matches("falls back to tcp: no shm: worker 0 (").count(), 1, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("WARN").count(), 1, "{}", ended.stderr);
    let report = read();
    let transport = report["transport"].as_str().unwrap();
    assert!(transport.contains("fallen back: no shm: worker 0 ("), "{transport}");
    for (flag, wrong, allowed) in [
        ("--rdma-mtu", "1500", "256, 512, 1024, 2048, 4096 or auto"),
        ("--rdma-retries", "7", "0 to 6"),
        ("--rdma-device", "mlx5_0:0", "ports from 1 to 255"),
        ("--transport", "pigeon", "auto, tcp, verbs or shm"),
    ] {
        let ended = run(["train", "lr", flag, wrong]);
        assert_ne!(ended.code, 0);
        ended.says(allowed);
    }
}
