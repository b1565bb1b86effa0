//! The process tree as a user meets it: real processes, real signals, a supervisor that is really killed.
//!
//! This program has no standard harness because it starts itself again: as `supervisor` (a tree of `/bin/sh -c`
//! children, described by its arguments) and as `guard`. Without these words it runs the tests, as cargo expects.

#![allow(clippy::unwrap_used)] // a test that can't go on fails

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

/// `supervisor JOB [grace=MS] [report=MS] [again=] [linger=] {server|worker|raw}=SCRIPT…`: runs the tree and returns its
/// exit code.
///
/// `raw` is a worker without a prefix; with `again` another tree has run before; with `linger` the process says `over`
/// and stays. A line on standard input is a call of the handle: `stop CODE REASON` or `finished`.
fn supervisor(arguments: &[String]) -> i32 {
    let this = std::env::current_exe().unwrap();
    let mut config = TreeConfig::new("run", &arguments[0], vec![this.into(), "guard".into()]);
    let (mut children, mut linger) = (Vec::new(), false);
    for argument in &arguments[1..] {
        let (word, value) = argument.split_once('=').unwrap();
        match word {
            "grace" => config.grace = Duration::from_millis(value.parse().unwrap()),
            "report" => config.report = Duration::from_millis(value.parse().unwrap()),
            "again" => assert_eq!(run_tree(config.clone(), &[worker("worker 0", "exit 0")]), 0),
            "linger" => linger = true,
            "server" => children.push(shell(count(&children, "server"), ChildRole::Server, value, true)),
            _ => children.push(shell(count(&children, "worker"), ChildRole::Worker, value, word == "worker")),
        }
    }
    let code = run_tree(config, &children);
    let own = std::process::id() as i32;
    assert_eq!(rig::children(own), Vec::<i32>::new(), "zombies, or worse");
    if linger {
        println!("over");
        std::thread::sleep(rig::PATIENCE);
    }
    code
}

fn run_tree(config: TreeConfig, children: &[Child]) -> i32 {
    let tree = Tree::new(config).unwrap();
    let handle = tree.handle();
    std::thread::spawn(move || obey(&handle));
    match tree.run(children) {
        Ok(outcome) => outcome.code,
        Err(error) => {
            eprintln!("error: {error}");
            99
        }
    }
}

fn count(children: &[Child], kind: &str) -> String {
    format!("{kind} {}", children.iter().filter(|child| child.name.starts_with(kind)).count())
}

fn worker(name: &str, script: &str) -> Child {
    shell(name.into(), ChildRole::Worker, script, true)
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
        remote: None,
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
