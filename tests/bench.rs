//! `windlass bench`, `windlass info` and the script that measures with them, as processes.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

use std::process::{Command, Output};
use std::thread;

use serde_json::Value;
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
use windlass::store::Optimizer;
use windlass::{Secret, Server};

fn windlass(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.args(arguments);
    command
}

/// Runs `bench` for a short time with a small table.
fn bench(arguments: &[&str]) -> Output {
    let short = ["--seconds", "0.2", "--table-bytes", "4M", "--rows", "5000", "--keys", "96", "--dim", "3"];
    windlass(&["bench"]).args(arguments).args(short).output().unwrap()
}

/// The one JSON object on standard output of a run that must have succeeded.
fn figures(output: &Output) -> Value {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    // A launcher may put the process's name before it.
    serde_json::from_str(&stdout[stdout.find('{').unwrap()..]).unwrap()
}

fn assert_sane(figures: &Value, op: &str, bytes: u64, keys: f64) {
    let number = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("no {name} in {figures}"));
    assert_eq!(figures["op"], op);
    assert_eq!(figures["transport"], "tcp");
    assert_eq!(figures["bytes"], bytes);
    let (operations, gbytes) = (number("ops_per_second"), number("gbytes_per_second"));
    assert!(operations > 0.0, "{figures}");
    assert!((gbytes - operations * bytes as f64 / 1e9).abs() <= gbytes * 1e-9, "{figures}");
    assert!((number("keys_per_second") - operations * keys).abs() <= operations * keys * 1e-9, "{figures}");
    assert!(0.0 < number("p50_us") && number("p50_us") <= number("p99_us"), "{figures}");
}

#[test]
fn every_operation_alone() {
    for (op, bytes, keys) in [
        ("write", 65536, 0.0),
        ("read", 65536, 0.0),
        ("push", 65536, 0.0),
        ("pull", 65536, 0.0),
        ("push-pull", 65536, 0.0),
        ("latency", 65536, 0.0),
        ("sparse-push", 96 * 3 * 4, 96.0),
        ("sparse-pull", 96 * 3 * 4, 96.0),
    ] {
        let figures = figures(&bench(&[op, "--json", "--bytes", "64K"]));
        assert_sane(&figures, op, bytes, keys);
        assert_eq!((&figures["workers"], &figures["servers"]), (&1.into(), &1.into()));
    }
}

/// No transport, no server: only the kernel.
#[test]
fn adding_alone() {
    let figures = figures(&bench(&["add", "--json", "--bytes", "64K"]));
    assert_eq!(
        (&figures["op"], &figures["transport"], &figures["servers"]),
        (&"add".into(), &"none".into(), &0.into())
    );
    assert!(figures["gbytes_per_second"].as_f64().unwrap() > 0.0, "{figures}");
    assert!(!bench(&["add", "--wire", "fp16"]).status.success());
}

#[test]
fn operations_of_odd_sizes_and_of_several_parts() {
    for arguments in [
        ["push", "--bytes", "1234564", "--window", "7"],
        ["pull", "--bytes", "1234564", "--window", "100"],
        ["push-pull", "--bytes", "4100096", "--window", "3"],
        ["write", "--bytes", "999996", "--window", "9"],
        ["read", "--bytes", "999996", "--window", "300"],
    ] {
        let bytes = arguments[2].parse().unwrap();
        assert_sane(&figures(&bench(&[&arguments[..], &["--json"]].concat())), arguments[0], bytes, 0.0);
    }
    // The report tells how many operations could be under way.
    for (op, window) in [("push", 4), ("pull", 2), ("push-pull", 2)] {
        let long = [op, "--bytes", "12M", "--table-bytes", "24M", "--seconds", "0.2", "--json"];
        let figures = figures(&windlass(&["bench"]).args(long).output().unwrap());
        assert_sane(&figures, op, 12 << 20, 0.0);
        assert_eq!(figures["window"], window, "{figures}");
    }
}

/// No transport either: only the table. Its keys are drawn anew, or come from lists.
#[test]
fn gathering_alone() {
    for lists in ["0", "3"] {
        let figures = figures(&bench(&["gather", "--json", "--lists", lists]));
        assert_eq!((&figures["op"], &figures["transport"]), (&"gather".into(), &"none".into()));
        assert!(figures["keys_per_second"].as_f64().unwrap() > 0.0, "{figures}");
    }
}

/// As many as the transport takes are under way; the report tells how many those were.
#[test]
fn windows_beyond_what_the_transport_takes() {
    for transport in ["tcp", "shm"] {
        for op in ["write", "read"] {
            for window in ["3", "513", "4096"] {
                let arguments = [op, "--transport", transport, "--bytes", "4K", "--window", window, "--json"];
                let figures = figures(&bench(&arguments));
                let most = figures["window"].as_u64().unwrap();
                let given: u64 = window.parse().unwrap();
                assert!(most == given || most >= 64 && most < given, "{figures}");
            }
        }
    }
    for window in ["0", "4097"] {
        let output = bench(&["read", "--window", window]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(11), "{stderr}");
        let expected = format!("--window: expected 1 to 4096, found {window}");
        assert!(stderr.contains(&expected), "{stderr}");
    }
}

#[test]
fn several_workers_and_servers_under_every_consistency() {
    for consistency in ["bsp", "ssp:1", "asp"] {
        for op in ["push", "pull", "push-pull", "sparse-push", "sparse-pull"] {
            let job = ["--workers", "3", "--servers", "2", "--threads", "2", "--bytes", "16K", "--json"];
            let output = bench(&[&[op, "--consistency", consistency], &job[..]].concat());
            let figures = figures(&output);
            assert_eq!((&figures["workers"], &figures["servers"]), (&3.into(), &2.into()));
            assert_eq!(figures["consistency"], consistency);
        }
    }
}

/// Bytes are counted as fp32, and every sum is exact on every wire.
#[test]
fn narrow_wires() {
    for wire in ["fp32", "fp16", "bf16"] {
        for (op, bytes, keys) in [
            ("push", 65536, 0.0),
            ("pull", 65536, 0.0),
            ("push-pull", 65536, 0.0),
            ("sparse-push", 96 * 3 * 4, 96.0),
            ("sparse-pull", 96 * 3 * 4, 96.0),
        ] {
            let figures =
                figures(&bench(&[op, "--wire", wire, "--json", "--bytes", "64K", "--workers", "2"]));
            assert_sane(&figures, op, bytes, keys);
            assert_eq!(figures["wire"], wire);
        }
    }
}

/// A small table is full of what bf16 holds exactly long before the time is up.
#[test]
fn a_narrow_wire_ends_before_its_numbers_do() {
    let small = ["push", "--wire", "bf16", "--bytes", "64K", "--table-bytes", "128K", "--seconds", "600"];
    let output = windlass(&["bench"]).args(small).args(["--workers", "2", "--json"]).output().unwrap();
    assert_sane(&figures(&output), "push", 65536, 0.0);
}

#[test]
fn it_is_a_worker_of_a_job() {
    let program = env!("CARGO_BIN_EXE_windlass");
    let worker = ["bench", "push", "--bytes", "64K", "--table-bytes", "1M", "--seconds", "0.2", "--json"];
    let job = ["run", "--workers", "2", "--servers", "1", "--poll", "block", "--", program];
    let output = windlass(&[&job[..], &worker[..]].concat()).output().unwrap();
    assert_sane(&figures(&output), "push", 65536, 0.0);
    assert_eq!(figures(&output)["workers"], 2);
}

#[test]
fn columns() {
    let output = bench(&["latency", "--csv"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = stdout.lines().map(|l| l.split(',').collect()).collect();
    assert_eq!(lines.len(), 2, "{stdout}");
    assert_eq!(lines[0].len(), lines[1].len());
    let at = |name: &str| lines[1][lines[0].iter().position(|c| *c == name).unwrap()];
    assert_eq!((at("op"), at("bytes"), at("window")), ("latency", "64", "1"));
    assert!(at("p99_us").parse::<f64>().unwrap() > 0.0);
}

/// Adds everything but the 100th value of what it is given.
struct Forgetful;

impl Optimizer for Forgetful {
    fn state_width(&self) -> usize {
        0
    }

    fn step(&self, parameters: &mut [f32], _: &mut [&mut [f32]], _: &[f32], gradient: &[f32]) {
        for (at, (w, g)) in parameters.iter_mut().zip(gradient).enumerate() {
            if at != 99 {
                *w += g;
            }
        }
    }
}

#[test]
fn a_server_that_loses_an_update_is_found_out() {
    let secret = Secret::generate().unwrap();
    let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1));
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let server = Server::builder(&address, secret.clone())
        .optimizer("sum", |_| Ok(Box::new(Forgetful)))
        .start()
        .unwrap();
    let coordinator = thread::spawn(move || coordinator.run());
    let place = ["--coordinator", &address, "--rank", "0", "--workers", "1"];
    let worker = ["bench", "push", "--bytes", "64K", "--table-bytes", "1M", "--seconds", "0.1"];
    let output = windlass(&[&worker[..], &place[..]].concat())
        .env("WINDLASS_SECRET", secret.to_hex())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("element 99:"), "{stderr}");
    coordinator.join().unwrap().unwrap();
    server.run().unwrap();
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    for (arguments, named) in [
        (["push", "--bytes", "6"], "--bytes"),
        (["write", "--bytes", "8M"], "--bytes"),
        (["pull", "--window", "0"], "--window"),
        (["write", "--wire", "bf16"], "--wire"),
        (["read", "--workers", "2"], "--workers"),
    ] {
        let output = bench(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(11), "{stderr}");
        assert!(stderr.contains(named), "{stderr}");
    }
    for (op, keys, expected) in [
        (
            "sparse-pull",
            "501",
            "--keys: expected at most half of --rows (1000) where they are drawn, found 501",
        ),
        ("sparse-push", "1001", "--keys: expected 1 to --rows (1000), found 1001"),
    ] {
        let output = windlass(&["bench", op, "--rows", "1000", "--keys", keys]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(expected), "{stderr}");
    }
    let long = ["bench", "sparse-push", "--rows", "20000000", "--keys", "20000000", "--dim", "16"];
    let output = windlass(&long).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--keys: expected at most 16777216 with --dim 16"), "{stderr}");
}

#[test]
fn info_says_what_is_here() {
    let output = windlass(&["info"]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for name in [
        "features",
        "kernels",
        "allowed cores",
        "interfaces",
        "rdma ports",
        "rdma gids",
        "rdma rails",
        "locked memory",
    ] {
        let line = stdout.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        assert!(line.len() > 21, "{line}");
    }
    assert!(stdout.contains("lo: 127.0.0.1"), "{stdout}");
}

/// `python3` with these arguments, in the repository; says so and gives nothing where there is none.
fn python(arguments: &[&str]) -> Option<Output> {
    let ran = Command::new("python3").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    if ran.is_err() {
        eprintln!("skipped: no python3");
    }
    ran.ok()
}

/// Medians, ratios and bars; who is left out, and why; that every bar is measured, and every transport named.
#[test]
fn the_script_judges_right_and_measures_what_it_should() {
    let Some(output) = python(&["tests/bench_script.py"]) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "7 checks\n");
}

#[test]
fn the_script_lists_what_it_would_measure_and_refuses_what_it_can_not() {
    let bench = |arguments: &[&str]| python(&[&["scripts/bench.py", "--list"], arguments].concat());
    let Some(listed) = bench(&["--only", "^shm push", "--rounds", "3"]) else { return };
    let expected = "shm push 16M\n    windlass bench push --bytes 16M --transport shm --json\n    \
                    shm add --bytes 16777216: >= 0.9\n    shm ring --bytes 16777216\n\
                    3 rounds of 2 s: about 1 minute\n";
    assert_eq!(String::from_utf8_lossy(&listed.stdout), expected);
    for (arguments, why) in [
        (["--only", "("], "expected a regular expression, found '('"),
        (["--only", "nobody"], "nothing that is measured has 'nobody' in its name"),
        (["--rounds", "0"], "expected at least one round, and some time"),
    ] {
        let refused = bench(&arguments).unwrap();
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(why), "{refused:?}");
    }
}
