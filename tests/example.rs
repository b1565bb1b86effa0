//! The README's worker is the program in `examples/`, and it does what it says.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{PATIENCE, Process, run, text};

/// The file, without its own head comment.
fn source() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/worker.rs");
    let source = fs::read_to_string(file).unwrap();
    source.split_once("\n\n").unwrap().1.to_owned()
}

/// An example's program, which cargo builds for `cargo test`, beside the folder of this test's own program.
fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().parent().unwrap().join("examples").join(name)
}

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let shown: Vec<&str> = readme.split("```rust\n").skip(1).collect();
    assert_eq!(shown.len(), 1, "one example");
    assert_eq!(shown[0].split_once("```").unwrap().0, source());
}

#[test]
fn two_workers_print_the_same_weights() {
    let program = program("worker");
    assert!(program.exists(), "{}: build it with `cargo build --examples`", program.display());
    let ended = run(["run", "--servers", "1", "--workers", "2", "--", text(&program)]).expect(0);
    let mut lines: Vec<&str> = ended.stdout.lines().collect();
    lines.sort_unstable();
    let expected = [0, 1].map(|rank| format!("[worker {rank}] [-0.25, -0.5, -1.5]"));
    assert_eq!(lines, expected, "{}", ended.stderr);
}

#[test]
fn outside_a_job_it_says_how_to_start_it() {
    let mut alone = std::process::Command::new(program("worker"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("WINDLASS_")) {
        alone.env_remove(name);
    }
    let output = alone.output().unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("start this program with `windlass run`"), "{stderr}");
}

/// Its processes have an empty environment: all that they know of the job came through a pipe.
#[test]
fn a_blob_through_a_pipe_makes_a_job() {
    let ended = Process::start(std::process::Command::new(program("bootstrap"))).end(PATIENCE).expect(0);
    let mut lines: Vec<&str> = ended.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["worker 0: [-1.0, -1.5]", "worker 1: [-1.0, -1.5]"], "{}", ended.stderr);
    // Another blob, or none, is refused.
    for blob in [&[][..], &[7; 256]] {
        use std::io::Write;
        let mut command = std::process::Command::new(program("bootstrap"));
        command
            .arg("server")
            .env_clear()
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut server = command.spawn().unwrap();
        server.stdin.take().unwrap().write_all(blob).unwrap();
        let output = server.wait_with_output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("blob"), "{output:?}");
    }
}

/// The server's own rule steps by 0.5 where plain gradient descent would step by 5 and more, and comes to the middle of what
/// three workers want.
#[test]
fn workers_train_with_an_update_rule_of_the_servers_own() {
    let program = program("custom_optimizer");
    let run_with = |servers, threads| {
        let job = ["run", "--servers", servers, "--workers", "3", "--threads", threads];
        run([&job[..], &["--server-cmd", text(&program), "--", text(&program), "worker"]].concat()).expect(0)
    };
    let ended = run_with("2", "2");
    for rank in 0..3 {
        let line = |what: &str| {
            let start = format!("[worker {rank}] {what} [");
            let line = ended.stdout.lines().find_map(|line| line.strip_prefix(&start));
            let numbers =
                line.unwrap_or_else(|| panic!("no {start:?} in\n{}", ended.stdout)).trim_end_matches(']');
            numbers.split(", ").map(|number| number.parse().unwrap()).collect::<Vec<f32>>()
        };
        assert_eq!(line("after one step"), [0.5, 0.5, 0.5]);
        for (found, expected) in line("at the end").iter().zip([10.0, 20.0, 30.0]) {
            assert!((found - expected).abs() < 1e-3, "{found}, not {expected}");
        }
    }
    let servers = run(["run", "--workers", "1", "--", text(&program), "worker"]);
    // Without it the servers don't know the rule.
    assert_ne!(servers.code, 0);
    servers.says("found clipped");
}
