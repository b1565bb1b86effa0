//! Tasks that nobody's launcher started, but variables: `WINDLASS_TASK`.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use super::{Launcher, WINDLASS};
use crate::common::proc::alive;
use crate::common::{PATIENCE, Process, kill, scratch, text, until};

/// Task `rank` of two that meet at a file in `folder`.
fn task(folder: &Path, rank: &str, worker: &[&str]) -> Process {
    let told = [("WINDLASS_TASK", rank), ("WINDLASS_TASKS", "2"), ("WINDLASS_INTERFACE", "lo")];
    let meet = folder.join("meet");
    let job = [WINDLASS, "run", "--servers", "1", "--rendezvous", text(&meet), "--"];
    Launcher::new(&["env"], &told, folder).start(&[&job[..], worker].concat())
}

#[test]
fn a_daemon_of_a_task_does_not_pass_for_the_task() {
    let folder = scratch();
    // It has left its session, and holds whatever it was given; so would a worker's helper processes.
    let script = "setsid sleep 1000 >/dev/null 2>&1 & echo daemon $! >&2; exit 7";
    let worker = task(folder.path(), "1", &["sh", "-c", script]);
    let leader = task(folder.path(), "0", &["true"]);
    let daemon: i32 = worker.until_says("daemon ").parse().unwrap();
    // It never joined; the leader sees its end all the same, long before it gives up waiting for it.
    leader.end(PATIENCE).expect(19).says("worker 0, ended before it joined");
    assert!(alive(daemon));
    kill(daemon, Signal::KILL);
    until(PATIENCE, "the end of all", || worker.members().is_empty());
    worker.end(PATIENCE).expect(7);
}

/// A program that waits for all its children has none that it did not start, and gets no descriptor of ours.
#[test]
fn a_task_becomes_its_program_and_nothing_else_comes_with_it() {
    let folder = scratch();
    let script = "ls -l /proc/$$/fd >&2; echo children $(cat /proc/$$/task/$$/children) >&2; echo that is all >&2; exit 3";
    let worker = task(folder.path(), "1", &["sh", "-c", script]);
    let leader = task(folder.path(), "0", &["true"]);
    worker.until_says("that is all");
    let said = worker.said();
    assert!(!said.contains("socket:"), "{said}");
    // The substitution's shell, or what it has become.
    let children = said.lines().find_map(|line| line.strip_prefix("children ")).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "{said}");
    leader.end(PATIENCE).expect(19);
    until(PATIENCE, "the end of all", || worker.members().is_empty());
    worker.end(PATIENCE).expect(3);
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

/// Launchers are opened at run time, where they are there.
#[test]
fn the_program_is_linked_to_no_launcher() {
    let output = std::process::Command::new("ldd").arg(WINDLASS).output().unwrap();
    let libraries = String::from_utf8(output.stdout).unwrap();
    assert!(libraries.contains("libc.so"), "{libraries}");
    for launcher in ["pmi", "mpi", "slurm"] {
        assert!(!libraries.contains(launcher), "{libraries}");
    }
}
