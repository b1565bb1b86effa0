//! `windlass train lr`, alone, from its command line to its report.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::path::Path;

use common::{Ended, PATIENCE, Process, run, scratch, test_data, text, windlass};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// SHA-256 of the weights that the default run learns, on any machine.
const A9A_WEIGHTS: &str = "27a97457744a8d6b9c6293782e84401df58f25bba420bec1633d459faebd155a";
const DEFAULT_WEIGHTS: &str = "c726a053ca5204cc18c6cc6004b33a58ff12eccc40fbfd6a4c941222c9f0807a";

/// Runs `train lr` with these arguments, which must succeed, and gives its report.
fn train(arguments: &[&str]) -> (Ended, Value) {
    let directory = scratch();
    let report = directory.path().join("report.json");
    let all = ["train", "lr", "--report", text(&report)].into_iter().chain(arguments.iter().copied());
    let ended = run(all).expect(0);
    let report = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    (ended, report)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes of parameters, for each thread of each server.
fn held(report: &Value) -> Vec<Vec<u64>> {
    serde_json::from_value(report["bytes_per_server"].clone()).unwrap()
}

/// The weights that a run saves.
fn weights(arguments: &[&str]) -> Vec<f32> {
    let directory = scratch();
    let saved = directory.path().join("weights");
    let (_, report) = train(&[arguments, &["--save", text(&saved)]].concat());
    let bytes = fs::read(saved).unwrap();
    assert_eq!(report["weights_sha256"], sha256(&bytes));
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A file with this content, for as long as the directory lives.
fn file(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    text(&path).to_owned()
}

#[test]
fn the_built_in_set_is_learnt_and_reported() {
    let directory = scratch();
    let saved = directory.path().join("weights");
    let (ended, report) = train(&["--save", text(&saved)]);
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {}", report[name]));
    assert!(number("accuracy") > 0.75 && number("accuracy") < 0.85);
    assert!(number("auc") > 0.83 && number("auc") < 0.95);
    assert!(number("logloss") < 0.52 && number("logloss") > 0.2);
    assert!(number("seconds") > 0.0);
    let rate = 20_000.0 * 12.0 / number("seconds");
    assert!((number("examples_per_second") / rate - 1.0).abs() < 1e-9, "{report}");
    assert!(number("bytes_pushed") > 0.0 && number("bytes_pulled") > 0.0);
    assert_eq!((number("reconnects"), number("duplicates_dropped")), (0.0, 0.0));
    assert_eq!((number("late_dropped"), number("late_applied")), (0.0, 0.0));
    // A worker may have ended the clock that another is still in; under Bsp no more than that.
    assert!(report["max_clock_lag"].as_u64().unwrap() <= 1, "{report}");
    assert_eq!(report["reproducible"], true);
    assert!(report["transport"].as_str().unwrap().starts_with("tcp"));
    assert!(number("non_zero_weights") > 1000.0);
    assert!(report["planted"]["cosine"].as_f64().unwrap() > 0.7, "{report}");
    assert!(report["planted"]["relative_l2"].as_f64().unwrap() < 0.85, "{report}");
    let held = held(&report);
    assert!(held.len() == 2 && held.iter().all(|threads| threads.len() == 1 && threads[0] > 0));

    let bytes = fs::read(saved).unwrap();
    assert_eq!(bytes.len(), 4 << 20);
    assert_eq!(report["weights_sha256"], sha256(&bytes));
    assert_eq!(
        report["weights_sha256"], DEFAULT_WEIGHTS,
        "the bits of the default run have changed: say why, and how"
    );
    let not_zero = bytes.chunks_exact(4).filter(|b| **b != [0; 4]).count();
    assert_eq!(report["non_zero_weights"], not_zero);

    let settings = &report["settings"];
    let expected = [("data", "built-in"), ("table", "sparse"), ("optimizer", "ftrl"), ("consistency", "bsp")];
    expected.iter().for_each(|(name, value)| assert_eq!(settings[name], *value));
    let expected = [("features", 1 << 20), ("segment_bytes", 262_144), ("epochs", 12), ("batch", 64)];
    expected.iter().for_each(|(name, value)| assert_eq!(settings[name], *value, "{name}"));
    let expected = [("seed", 1), ("servers", 2), ("threads", 1), ("workers", 4), ("timeout", 600)];
    expected.iter().for_each(|(name, value)| assert_eq!(settings[name], *value, "{name}"));

    for row in ["accuracy", "auc", "logloss", "bytes per server", "to the planted weights"] {
        assert!(ended.stdout.lines().any(|line| line.starts_with(row)), "no {row} in\n{}", ended.stdout);
    }
    assert!(ended.stdout.contains(report["weights_sha256"].as_str().unwrap()));
}

/// Weights by hand: at zero each probability is 1/2, so a row's gradient is ∓x/2, and the mean is over the workers.
#[test]
fn one_step_of_gradient_descent_is_what_it_is_on_paper() {
    let directory = scratch();
    let sgd = ["--optimizer", "sgd", "--rate", "0.5", "--epochs", "1", "--batch", "1"];
    let one = file(directory.path(), "one", "+1 1:1 3:2\n");
    let two = file(directory.path(), "two", "+1 1:1\n-1 2:1\n");
    for table in ["sparse", "dense"] {
        let common = [&sgd[..], &["--table", table]].concat();
        let learnt = weights(&[&common[..], &["--data", &one, "--workers", "1"]].concat());
        assert_eq!(learnt, [0.25, 0.0, 0.5]);
        let learnt = weights(&[&common[..], &["--data", &two, "--workers", "2"]].concat());
        assert_eq!(learnt, [0.125, -0.125]);
    }
}

/// Runs on 1, 2 and 3 servers with 1 and 2 threads each, in both kinds of table: the same bits from all.
fn same_bits_everywhere(arguments: &[&str]) {
    let mut first = None;
    for table in ["sparse", "dense"] {
        for (servers, threads) in [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"), ("3", "1"), ("3", "2")] {
            let layout = ["--table", table, "--servers", servers, "--threads", threads];
            let (_, report) = train(&[arguments, &layout].concat());
            let what = format!("{table}, {servers} × {threads}: {report}");
            let held = held(&report);
            assert_eq!(held.len().to_string(), servers, "{what}");
            assert!(
                held.iter().all(|of| of.len().to_string() == threads && of.iter().all(|b| *b > 0)),
                "{what}"
            );
            assert!(report["non_zero_weights"].as_u64().unwrap() > 50, "{what}");
            let sha = report["weights_sha256"].clone();
            assert_eq!(*first.get_or_insert(sha.clone()), sha, "{what}");
        }
    }
}

#[test]
fn the_built_in_set_gives_the_same_bits_everywhere() {
    same_bits_everywhere(&["--epochs", "1", "--batch", "2500", "--l1", "0.0001"]);
}

/// Over memory, and over tcp with memory within this host.
#[test]
fn every_transport_gives_the_same_bits() {
    let short = ["--epochs", "1", "--batch", "2500", "--l1", "0.0001"];
    for table in ["sparse", "dense"] {
        let by = |transport: &str| {
            let (_, report) = train(&[&short[..], &["--table", table, "--transport", transport]].concat());
            (report["weights_sha256"].clone(), report["transport"].as_str().unwrap().to_owned())
        };
        let (bits, _) = by("tcp");
        for (transport, says) in [("shm", "shm (memory of this host)"), ("auto", "2 of 2 endpoints by shm")] {
            let (same, used) = by(transport);
            assert_eq!(same, bits, "{transport}, {table}");
            assert!(used.contains(says), "{used}");
        }
    }
    for transport in ["tcp", "shm", "auto"] {
        let (_, report) = train(&["--transport", transport]);
        assert_eq!(report["weights_sha256"], DEFAULT_WEIGHTS, "{transport}");
    }
}

#[test]
fn weights_that_are_read_one_sidedly_are_the_same_bits() {
    let common = ["--table", "dense", "--epochs", "1", "--batch", "1250", "--l1", "0.0001", "--threads", "2"];
    let (_, pushed) = train(&common);
    let (ended, read) = train(&[&common[..], &["--pull", "read"]].concat());
    assert_eq!(read["weights_sha256"], pushed["weights_sha256"]);
    assert_eq!((&pushed["pull"], &read["pull"]), (&"push".into(), &"read".into()));
    assert_eq!(pushed["pulls_read"], 0);
    // 16 segments; four batches, and the weights at the end.
    assert!(read["pulls_read"].as_u64().unwrap() >= 48, "{read}");
    assert!(
        ended.stdout.lines().any(|line| line.starts_with("pull ") && line.contains("worker 0 read")),
        "{}",
        ended.stdout
    );
}

/// What is restored is published before anybody may read it.
#[test]
fn a_resumed_job_reads_what_was_restored() {
    let directory = scratch();
    let folder = directory.path().join("checkpoints");
    let common = ["--table", "dense", "--batch", "1250", "--l1", "0.0001", "--pull", "read"];
    let with = |more: &[&str]| train(&[&common[..], more].concat()).1;
    let whole = with(&["--epochs", "2"]);
    with(&["--epochs", "1", "--checkpoint", text(&folder), "--every", "2"]);
    let resumed = with(&["--epochs", "2", "--checkpoint", text(&folder), "--every", "3", "--resume", "auto"]);
    assert_eq!(resumed["weights_sha256"], whole["weights_sha256"]);
    assert!(resumed["pulls_read"].as_u64() < whole["pulls_read"].as_u64(), "{resumed}");
}

#[test]
fn every_simd_path_gives_the_same_bits() {
    for simd in ["scalar", "avx2", "avx512"] {
        let directory = scratch();
        let report = directory.path().join("report.json");
        let mut command = windlass(["train", "lr", "--report", text(&report)]);
        command.env("WINDLASS_SIMD", simd);
        let ended = Process::start(command).end(PATIENCE);
        if ended.code == 11 {
            ended.says("instructions of this CPU");
            continue;
        }
        ended.expect(0);
        let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
        assert_eq!(report["weights_sha256"], DEFAULT_WEIGHTS, "{simd}");
    }
}

#[test]
fn gradient_descent_gives_the_same_bits_everywhere() {
    same_bits_everywhere(&["--optimizer", "sgd", "--epochs", "1", "--batch", "5000"]);
}

#[test]
fn repeated_runs_give_the_same_bits_and_another_seed_others() {
    let sha = |seed| {
        let arguments = ["--epochs", "2", "--seed", seed, "--l1", "0.001"];
        train(&arguments).1["weights_sha256"].as_str().unwrap().to_owned()
    };
    let first = sha("1");
    assert_eq!(sha("1"), first);
    assert_eq!(sha("1"), first);
    assert_ne!(sha("2"), first);
}

#[test]
fn a9a_gives_the_same_bits_everywhere() {
    let Some(data) = test_data() else { return };
    let file = data.join("a9a");
    for optimizer in ["ftrl", "sgd"] {
        let arguments = ["--data", text(&file), "--segment-bytes", "64", "--epochs", "1"];
        same_bits_everywhere(&[&arguments[..], &["--optimizer", optimizer]].concat());
    }
}

#[test]
fn a9a_is_learnt_as_well_as_by_others() {
    let Some(data) = test_data() else { return };
    let (train_file, test_file) = (data.join("a9a"), data.join("a9a.t"));
    let (_, report) = train(&["--data", text(&train_file), "--test", text(&test_file)]);
    let number = |name: &str| report[name].as_f64().unwrap();
    assert!(number("accuracy") >= 0.849, "{report}");
    assert!(number("auc") >= 0.9015, "{report}");
    assert!(number("logloss") <= 0.3255, "{report}");
    assert!(number("seconds") < 50.0, "{report}");
    assert_eq!(report["planted"], Value::Null);
    assert_eq!(report["settings"]["features"], 123);
    assert_eq!(report["weights_sha256"], A9A_WEIGHTS, "the README shows this digest");
}

#[test]
fn labels_comments_and_missing_values_mean_the_same_however_they_are_written() {
    let directory = scratch();
    let plain = "+1 1:1 2:0.5\n-1 2:1 4:-2\n+1 3:1\n-1 4:1\n";
    let other = "# a comment\n1 2:0.5 1:1 # at the end\n\n0 2:1 3: 4:-2\r\n1.0\t3:1\n  0 1:? 4:1";
    let learnt = |name, content| {
        let path = file(directory.path(), name, content);
        weights(&["--data", &path, "--workers", "1", "--batch", "1", "--l1", "0", "--epochs", "2"])
    };
    let first = learnt("plain", plain);
    assert_eq!(first.len(), 4);
    assert!(first.iter().all(|w| *w != 0.0), "{first:?}");
    assert_eq!(learnt("other", other), first);
}

#[test]
fn hashed_tokens_are_features() {
    let directory = scratch();
    let rows = "1 user=alice:1 site:example.org:1\n0 user=bob:1 site:example.org:1\n".repeat(50);
    let path = file(directory.path(), "tokens", &rows);
    let arguments = ["--data", &path, "--hash", "--features", "1000", "--l1", "0"];
    let (_, report) = train(&arguments);
    assert_eq!(report["accuracy"], 1.0);
    assert_eq!(report["settings"]["features"], 1000);
    assert_eq!(report["non_zero_weights"], 3);
    let (_, dense) = train(&[&arguments[..], &["--table", "dense"]].concat());
    assert_eq!(dense["weights_sha256"], report["weights_sha256"]);

    // Any of the 2^64 keys: the weights are those of the keys that occur.
    let arguments = ["--data", &path, "--hash", "--l1", "0"];
    let (_, report) = train(&arguments);
    assert_eq!(report["accuracy"], 1.0);
    assert_eq!((&report["settings"]["features"], &report["non_zero_weights"]), (&3.into(), &3.into()));
    let (_, spread) = train(&[&arguments[..], &["--servers", "3", "--threads", "2"]].concat());
    assert_eq!(spread["weights_sha256"], report["weights_sha256"]);
    run(["train", "lr", "--table", "dense"].into_iter().chain(arguments))
        .expect(11)
        .says("--features beside it");
}

/// Workers without a row, or with fewer batches than others, hang nobody.
#[test]
fn workers_may_have_different_numbers_of_batches_or_none() {
    let directory = scratch();
    let path = file(directory.path(), "five", "+1 1:1\n-1 2:1\n+1 1:1 3:1\n-1 2:1 4:1\n+1 5:1\n");
    for workers in ["2", "4", "9"] {
        let arguments = ["--data", &path, "--batch", "1", "--epochs", "3", "--l1", "0", "--workers", workers];
        let mut first = None;
        for layout in [["sparse", "1"], ["sparse", "3"], ["dense", "2"]] {
            let (_, report) =
                train(&[&arguments[..], &["--table", layout[0], "--servers", layout[1]]].concat());
            assert_eq!(report["non_zero_weights"], 5, "{workers} workers: {report}");
            let sha = report["weights_sha256"].clone();
            assert_eq!(*first.get_or_insert(sha.clone()), sha, "{workers} workers, {layout:?}");
        }
    }
}

/// One worker's end closes a clock for all: of what the other three push in hundreds of clocks, something comes later.
#[test]
fn a_quorum_is_reported_with_what_came_late() {
    for (consistency, late) in [("bsp", "drop"), ("ssp:2", "apply")] {
        let arguments = ["--consistency", consistency, "--quorum", "1", "--late", late, "--epochs", "4"];
        let (ended, report) = train(&arguments);
        let number = |name: &str| report[name].as_u64().unwrap();
        let (dropped, applied) = (number("late_dropped"), number("late_applied"));
        assert!(dropped + applied > 0, "{report}");
        assert_eq!(if late == "drop" { applied } else { dropped }, 0, "{report}");
        assert!(ended.stdout.contains(&format!("late dropped, applied  {dropped}, {applied}\n")));
        assert_eq!(report["reproducible"], false);
        assert_eq!((&report["settings"]["quorum"], &report["settings"]["late"]), (&1.into(), &late.into()));
        assert!(report["auc"].as_f64().unwrap() > 0.7, "{consistency}, {late}: {report}");
    }
}

/// A feature so large that its gradient is infinite as fp16, beside one of ordinary size.
#[test]
fn gradients_that_are_not_finite_are_counted_or_left_out_as_asked() {
    let directory = scratch();
    let data = file(directory.path(), "large", "1 1:1e6 2:1\n0 2:-1\n");
    let told = |choice| {
        let common =
            ["--data", &data, "--wire", "fp16", "--epochs", "3", "--workers", "1", "--optimizer", "sgd"];
        let (_, report) = train(&[&common[..], &["--non-finite", choice]].concat());
        assert_eq!(report["settings"]["non_finite"], choice);
        (
            report["non_finite"].as_u64(),
            report["non_finite_rejected"].as_u64(),
            report["non_zero_weights"].as_u64(),
        )
    };
    let [accepted, counted, rejected] = ["accept", "count", "reject"].map(told);
    assert_eq!((accepted.0, accepted.1), (Some(0), Some(0)));
    assert!(counted.0 > Some(0) && counted.1 == Some(0), "{counted:?}");
    // The other weight is learnt, the first stays as it was.
    assert_eq!(rejected, (Some(3), Some(3), Some(1)));
}

#[test]
fn other_consistencies_learn_too_and_do_not_promise_the_same_bits() {
    for consistency in ["ssp:2", "asp"] {
        let (_, report) = train(&["--consistency", consistency, "--epochs", "4"]);
        assert_eq!(report["reproducible"], false, "{consistency}");
        assert_eq!(report["settings"]["consistency"], consistency);
        assert!(report["auc"].as_f64().unwrap() > 0.8, "{consistency}: {report}");
    }
}

#[test]
fn malformed_input_is_refused_with_its_place_whichever_worker_reads_it() {
    let directory = scratch();
    for bad in [1, 15, 25, 40] {
        let mut lines = vec!["+1 1:1 2:2\n"; 40];
        lines[bad - 1] = "+1 1:1 x:2\n";
        let path = file(directory.path(), &format!("bad{bad}"), &lines.concat());
        let ended = run(["train", "lr", "--data", &path]).expect(20);
        let ended = ended.says(&format!("{path}:{bad}:8: expected an index from 1")).says("found `x`");
        assert!(!ended.stderr.contains("is lost: "), "it gave up, it was not lost: {}", ended.stderr);
    }
    let good = file(directory.path(), "good", "+1 1:1\n-1 2:1\n");
    let bad = file(directory.path(), "bad.t", "+1 1:1\n-1 2:one\n");
    let ended = run(["train", "lr", "--data", &good, "--test", &bad]).expect(20);
    ended.says(&format!("{bad}:2:6: expected a finite fp32 number"));
}

#[test]
fn a_file_that_is_not_there_is_refused_before_anything_starts() {
    let ended = run(["train", "lr", "--data", "/nonexistent/file"]).expect(12);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    ended.says("/nonexistent/file");
}

/// One line, the flag, what it may be, what it was; and nothing was started.
#[test]
fn settings_out_of_range_are_refused_by_their_flag() {
    let cases = [
        (["--servers", "0"], "--servers: expected 1 to 1024, found 0"),
        (["--servers", "1025"], "--servers: expected 1 to 1024, found 1025"),
        (["--workers", "0"], "--workers: expected 1 to 4096, found 0"),
        (["--threads", "257"], "--threads: expected 1 to 256, found 257"),
        (["--epochs", "0"], "--epochs: expected at least 1, found 0"),
        (["--batch", "0"], "--batch: expected at least 1, found 0"),
        (["--timeout", "0"], "--timeout: expected at least 1, found 0"),
        (["--peer-timeout", "0"], "--peer-timeout: expected 1 to 43200 seconds, found 0"),
        (["--segment-bytes", "0"], "--segment-bytes: expected a multiple of 64 from 64 to 1048576, found 0"),
        (
            ["--segment-bytes", "65"],
            "--segment-bytes: expected a multiple of 64 from 64 to 1048576, found 65",
        ),
        (["--segment-bytes", "1048640"], "--segment-bytes: expected a multiple of 64 from 64 to 1048576"),
        (["--features", "10"], "--features: expected at least 1048576 for the built-in data set, found 10"),
        (["--alpha", "NaN"], "--alpha: expected a finite value ≥ 0, found NaN"),
        (["--port-range", "9-5"], "port range: expected A-B"),
        (["--interface", "nonesuch0"], "nonesuch0"),
        (["--test", "/dev/null"], "--test: expected --data beside it"),
    ];
    for (arguments, expected) in cases {
        let ended = run(["train", "lr"].into_iter().chain(arguments)).expect(11).says(expected);
        assert_eq!(ended.stderr.lines().count(), 1, "{arguments:?}: {}", ended.stderr);
    }
    // A word that is no value of the flag is wrong usage.
    for arguments in [["--table", "round"], ["--consistency", "never"], ["--transport", "pigeon"]] {
        run(["train", "lr"].into_iter().chain(arguments)).expect(2).says(arguments[1]).says(arguments[0]);
    }
    let quorum = ["train", "lr", "--workers", "2", "--quorum", "3"];
    run(quorum).expect(11).says("quorum: expected at most the job's 2 workers, found 3");
    run(quorum.into_iter().chain(["--consistency", "asp"])).expect(11).says("bsp or ssp:N beside it");
    run(["train", "lr", "--hash", "--features", "9"]).expect(11).says("--hash: expected --data beside it");
}

#[test]
fn what_can_not_work_is_refused_before_anything_is_trained() {
    let directory = scratch();
    let far = file(directory.path(), "far", "+1 1:1\n-1 4000000000:1\n");
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--save", "/nonexistent/weights"], 12, "/nonexistent/weights"),
        (&["--report", "/nonexistent/report"], 12, "/nonexistent/report"),
        (&["--rank", "0"], 11, "--rank: expected --coordinator beside it"),
        (&["--secret-file", "nothing"], 11, "--secret-file: expected --coordinator beside it"),
        (
            &["--data", &far, "--hash", "--features", "9000000000000"],
            11,
            "--features: expected at most 1073741824",
        ),
        (&["--data", &far], 11, "indices up to 1073741824"),
    ];
    for (arguments, code, expected) in cases {
        let ended =
            run(["train", "lr"].into_iter().chain(arguments.iter().copied())).expect(code).says(expected);
        assert_eq!(ended.stdout, "", "{arguments:?}");
    }
    let report = directory.path().join("report");
    run(["train", "lr", "--report", text(&report), "--save", "/nonexistent/weights"]).expect(12);
    assert!(!report.exists(), "a run that was refused leaves a report");
    if !cfg!(feature = "verbs") {
        let ended = run(["train", "lr", "--transport", "verbs"]).expect(11).says("feature `verbs`");
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
}

#[test]
fn under_bsp_no_worker_is_shown_far_behind() {
    // It ends with the test, not by itself.
    let training = Process::start(windlass(["train", "lr", "--epochs", "100000"]));
    let line = training.until_line(", lag ");
    let lags = line.split(", lag ").nth(1).unwrap();
    let lags: Vec<u64> = lags.split_whitespace().map(|lag| lag.parse().unwrap()).collect();
    assert!(lags.len() == 4 && lags.iter().all(|lag| *lag <= 1), "{line}");
}

#[test]
fn help_and_version() {
    let help = run(["--help"]).expect(0).stdout;
    for word in ["run", "train", "coordinator", "server", "secret", "Exit codes"] {
        assert!(help.contains(word), "{word} in\n{help}");
    }
    let help = run(["train", "lr", "--help"]).expect(0).stdout;
    for flag in ["--data", "--segment-bytes", "--consistency", "--report", "--port-range"] {
        assert!(help.contains(flag), "{flag} in\n{help}");
    }
    let version = run(["--version"]).expect(0).stdout;
    let features = if cfg!(feature = "verbs") { "verbs" } else { "none" };
    assert_eq!(version, format!("windlass {} (features: {features})\n", env!("CARGO_PKG_VERSION")));
    run([]).expect(2);
}

/// Output that nobody reads, and a directory that must stay empty.
#[test]
fn nothing_is_left_in_the_working_and_temporary_directories() {
    let directory = scratch();
    let mut command = windlass(["train", "lr", "--epochs", "1"]);
    command.current_dir(directory.path()).env("TMPDIR", directory.path());
    Process::start(command).end(common::PATIENCE).expect(0);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
