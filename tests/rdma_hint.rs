//! A build without verbs on a machine with an RDMA port: the real program, on a tree of sysfs made by hand.
#![cfg(not(feature = "verbs"))]
#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use common::{PATIENCE, Process, scratch, text, windlass};

const HINT: &str = "an RDMA port is active, but this build has no verbs";

/// `windlass` in a mount namespace of its own, in which `/sys/class` is this folder.
fn with_sysfs(class: &Path, arguments: &[&str]) -> Command {
    let mut command = windlass([]);
    let program = command.get_program().to_owned();
    let mut inside = Command::new("unshare");
    let script = "mount --bind \"$0\" /sys/class && exec \"$@\"";
    inside.args(["--mount", "sh", "-c", script, text(class)]).arg(program).args(arguments);
    for (name, value) in command.env("WINDLASS_LOG", "warn").get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

#[test]
fn it_is_said_once_in_a_job_and_in_info() {
    if !rustix::process::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "skipped: mounting needs root");
        return;
    }
    let class = scratch();
    let port = class.path().join("infiniband/mlx5_0/ports/1");
    fs::create_dir_all(&port).unwrap();
    let job = ["train", "lr", "--epochs", "1", "--servers", "1", "--workers", "2"];
    for (state, times) in [("1: DOWN", 0), ("4: ACTIVE", 1)] {
        fs::write(port.join("state"), format!("{state}\n")).unwrap();
        let said = Process::start(with_sysfs(class.path(), &job)).end(PATIENCE).expect(0);
        assert_eq!(said.stderr.matches(HINT).count(), times, "{state}: {}", said.stderr);
        let info = Process::start(with_sysfs(class.path(), &["info"])).end(PATIENCE).expect(0);
        assert_eq!(info.stdout.matches(HINT).count(), times, "{state}: {}", info.stdout);
        assert!(info.stdout.contains("mlx5_0:1"), "{}", info.stdout);
    }
}

/// A sysfs elsewhere (`WINDLASS_SYSFS`) is looked at by a job as by `info`. Needs no root.
#[test]
fn a_sysfs_elsewhere_is_the_one_that_counts() {
    let root = scratch();
    let port = root.path().join("class/infiniband/mlx5_0/ports/1");
    fs::create_dir_all(&port).unwrap();
    fs::write(port.join("state"), "4: ACTIVE\n").unwrap();
    for arguments in [&["info"][..], &["bench", "add", "--bytes", "4K", "--seconds", "0.1"]] {
        let mut command = windlass([]);
        command.args(arguments).env("WINDLASS_LOG", "warn").env("WINDLASS_SYSFS", root.path());
        let said = Process::start(command).end(PATIENCE).expect(0);
        assert_eq!(format!("{}{}", said.stdout, said.stderr).matches(HINT).count(), 1, "{arguments:?}");
    }
}
