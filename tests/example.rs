//! The README's worker is the program in `examples/`, and it does what it says.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{run, text};

/// The file, without its own head comment.
fn source() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/worker.rs");
    let source = fs::read_to_string(file).unwrap();
    source.split_once("\n\n").unwrap().1.to_owned()
}

/// The example's program, which cargo builds for `cargo test`, beside the folder of this test's own program.
fn program() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().parent().unwrap().join("examples/worker")
}

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let shown: Vec<&str> = readme.split("```rust,no_run\n").skip(1).collect();
    assert_eq!(shown.len(), 1, "one example");
    assert_eq!(shown[0].split_once("```").unwrap().0, source());
}

#[test]
fn two_workers_print_the_same_weights() {
    let program = program();
    assert!(program.exists(), "{}: build it with `cargo build --example worker`", program.display());
    let ended = run(["run", "--servers", "1", "--workers", "2", "--", text(&program)]).expect(0);
    let mut lines: Vec<&str> = ended.stdout.lines().collect();
    lines.sort_unstable();
    let expected = [0, 1].map(|rank| format!("[worker {rank}] [-0.25, -0.5, -1.5]"));
    assert_eq!(lines, expected, "{}", ended.stderr);
}

#[test]
fn outside_a_job_it_says_how_to_start_it() {
    let mut alone = std::process::Command::new(program());
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("WINDLASS_")) {
        alone.env_remove(name);
    }
    let output = alone.output().unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("start this program with `windlass run`"), "{stderr}");
}
