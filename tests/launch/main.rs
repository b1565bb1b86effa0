//! The process tree as a user meets it: real processes, real signals, a supervisor that is really killed.
//!
//! This program has no standard harness because it starts itself again: as `supervisor` (a tree of `/bin/sh -c`
//! children, described by its arguments) and as `guard`. Without these words it runs the tests, as cargo expects.

mod cases;
mod rig;

use std::ffi::OsString;
use std::io::BufRead;
use std::panic::catch_unwind;
use std::process::exit;
use std::time::{Duration, Instant};

use windlass::launch::{Child, ChildRole, Tree, TreeConfig, TreeHandle, guard_main};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("guard") => exit(guard_main()),
        Some("supervisor") => exit(supervisor(&arguments[1..])),
        _ => exit(run_tests(&arguments)),
    }
}

/// Runs the cases whose names contain one of the words given, one after the other.
fn run_tests(arguments: &[String]) -> i32 {
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let list_only = arguments.iter().any(|argument| argument == "--list");
    let mut failed = Vec::new();
    for (name, case) in cases::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        if list_only {
            println!("{name}: test");
            continue;
        }
        let started = Instant::now();
        let ok = catch_unwind(case).is_ok();
        println!("test {name} ... {} ({:.1?})", if ok { "ok" } else { "FAILED" }, started.elapsed());
        if !ok {
            failed.push(name);
        }
    }
    println!("test result: {}. failed: {failed:?}", if failed.is_empty() { "ok" } else { "FAILED" });
    i32::from(!failed.is_empty())
}

/// `supervisor JOB [grace=MS] [report=MS] {server|worker|raw}=SCRIPT…`: runs the tree and returns its exit code. `raw` is
/// a worker without a prefix. A line on standard input is a call of the handle: `stop CODE REASON` or `finished`.
fn supervisor(arguments: &[String]) -> i32 {
    let this = std::env::current_exe().unwrap();
    let mut config = TreeConfig::new("run", &arguments[0], vec![this.into(), "guard".into()]);
    let mut children = Vec::new();
    for argument in &arguments[1..] {
        let (word, value) = argument.split_once('=').unwrap();
        match word {
            "grace" => config.grace = Duration::from_millis(value.parse().unwrap()),
            "report" => config.report = Duration::from_millis(value.parse().unwrap()),
            role => {
                let (name, role) = if role == "server" {
                    ("server", ChildRole::Server)
                } else {
                    ("worker", ChildRole::Worker)
                };
                let rank = children.iter().filter(|child: &&Child| child.role == role).count();
                children.push(shell(format!("{name} {rank}"), role, value, word != "raw"));
            }
        }
    }
    let tree = Tree::new(config).unwrap();
    let handle = tree.handle();
    std::thread::spawn(move || obey(&handle));
    match tree.run(&children) {
        Ok(outcome) => outcome.code,
        Err(error) => {
            eprintln!("error: {error}");
            99
        }
    }
}

fn shell(name: String, role: ChildRole, script: &str, prefix: bool) -> Child {
    let missing = script == "missing program";
    Child {
        name,
        role,
        program: if missing { "/nowhere/program".into() } else { "/bin/sh".into() },
        arguments: ["-c", script].map(OsString::from).to_vec(),
        environment: vec![("GREETING".into(), "hello".into())],
        prefix,
        inherit_stderr: false,
    }
}

fn obey(handle: &TreeHandle) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
            ["stop", code, reason] => handle.stop(reason, code.parse().unwrap()),
            ["finished"] => handle.job_finished(),
            _ => panic!("unknown call: {line}"),
        }
    }
}
