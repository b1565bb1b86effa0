//! Slurm with four virtual nodes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::hosts::Hosts;
use super::{Launcher, RUN, WINDLASS, leader, wanted, worker};
use crate::common::proc::all_listeners;
use crate::common::{PATIENCE, scratch, secret_file, text, until};

fn script(name: &str) -> String {
    format!("{}/tests/launchers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A running Slurm, which ends with the test.
pub struct Slurm {
    directory: tempfile::TempDir,
}

impl Slurm {
    /// With four virtual nodes, n1 to n4.
    pub fn start() -> Slurm {
        Slurm::with(&["4"])
    }

    /// On three hosts in network namespaces.
    pub fn on(hosts: &Hosts) -> Slurm {
        Slurm::with(&["3", &hosts.prefix])
    }

    fn with(nodes: &[&str]) -> Slurm {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let place = std::process::id() as u16 % 100 * 16 + NEXT.fetch_add(1, Ordering::Relaxed) % 3 * 5;
        let slurm = Slurm { directory: scratch() };
        let port = (17_000 + place).to_string();
        let output = Command::new("bash")
            .args([&script("slurm-up.sh"), text(slurm.path()), &port])
            .args(nodes)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        slurm
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Its configuration file.
    pub fn conf(&self) -> PathBuf {
        self.path().join("etc/slurm.conf")
    }

    /// What one of Slurm's commands says; nothing when it fails.
    pub fn tries(&self, command: &[&str]) -> Option<String> {
        let output =
            Command::new(command[0]).args(&command[1..]).env("SLURM_CONF", self.conf()).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The same of one that does not fail but for a moment.
    pub fn says(&self, command: &[&str]) -> String {
        let mut said = None;
        until(PATIENCE, &format!("{command:?}"), || {
            said = self.tries(command);
            said.is_some()
        });
        said.unwrap()
    }

    /// `srun` with these flags.
    pub fn srun(&self, flags: &[&str], folder: &Path) -> Launcher {
        self.launcher(&[&["srun", "-Q", "--overcommit"], flags].concat(), &[], folder)
    }

    /// A command that talks to this Slurm.
    pub fn launcher(&self, command: &[&str], environment: &[(&str, &str)], folder: &Path) -> Launcher {
        let conf = self.conf();
        Launcher::new(command, &[environment, &[("SLURM_CONF", text(&conf))]].concat(), folder)
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let ended = Command::new("bash").args([&script("slurm-down.sh"), text(self.path())]).status();
        if !thread::panicking() {
            assert!(ended.unwrap().success());
        }
    }
}

#[test]
fn slurm_gives_the_same_bits_by_every_means() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let folder = folder.path();
    for mpi in ["--mpi=pmi2", "--mpi=pmix", "--mpi=none"] {
        slurm.srun(&[mpi, "-N4", "-n6"], folder).train(&RUN);
    }
    // Names of virtual nodes lead nowhere; with one that does, and a secret, nothing else is needed.
    let secret = folder.join("secret");
    secret_file(&secret, &windlass::Secret::generate().unwrap());
    let listed = [
        "env",
        "SLURM_STEP_NODELIST=localhost",
        WINDLASS,
        "run",
        "--servers",
        "2",
        "--secret-file",
        text(&secret),
    ];
    slurm.srun(&["--mpi=none", "-N4", "-n6"], folder).train(&[&listed[..], &["--", WINDLASS]].concat());
    let programs = folder.join("programs");
    fs::write(
        &programs,
        format!("1-2 {WINDLASS} server\n* {WINDLASS} train lr --report {}/r\n", text(folder)),
    )
    .unwrap();
    slurm.srun(&["--mpi=pmi2", "-N3", "-n6", "--multi-prog"], folder).run(&[text(&programs)]).expect(0);
    assert!(fs::read_to_string(folder.join("r")).unwrap().contains(super::DEFAULT));
    // A step of two parts, each with nodes of its own.
    for mpi in ["--mpi=pmix", "--mpi=pmi2", "--mpi=none"] {
        let first = slurm.srun(&[mpi, "-N1", "-n2"], folder);
        let second = [":", "-N2", "-n4", "--overcommit"];
        first.train(&[&RUN[..5], &[WINDLASS, "train", "lr"], &second, &RUN].concat());
    }
}

#[test]
fn slurm_is_named_or_left_out_and_servers_sit_on_ranks_of_a_list() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let run = |flags: &[&'static str]| [&RUN[..4], flags, &RUN[4..]].concat();
    let srun = slurm.srun(&["--mpi=pmi2", "-N2", "-n6"], folder.path());
    srun.train(&run(&["--launcher", "slurm", "--servers-on", "1,4"]));
    let alone = slurm.srun(&["--mpi=pmi2", "-N1", "-n1"], folder.path());
    alone.train(&run(&["--launcher", "local", "--workers", "4"]));
}

#[test]
fn two_nodes_are_measured() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    for mpi in ["--mpi=pmi2", "--mpi=pmix"] {
        slurm.srun(&[mpi, "-N2", "-n3"], folder.path()).bench();
    }
}

#[test]
fn servers_are_spread_over_the_nodes() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let server = folder.path().join("server");
    fs::write(&server, format!("#!/bin/sh\necho server on $SLURMD_NODENAME\nexec {WINDLASS} server\n"))
        .unwrap();
    fs::set_permissions(&server, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let job = ["run", "--servers", "3", "--servers-on", "spread", "--server-cmd", text(&server), "--"];
    let train = [WINDLASS, "train", "lr", "--epochs", "1"];
    let ended = slurm
        .srun(&["--mpi=pmi2", "-N3", "-n7"], folder.path())
        .run(&[&[WINDLASS], &job[..], &train].concat())
        .expect(0);
    let mut nodes: Vec<&str> = ended.stdout.lines().filter_map(|l| l.strip_prefix("server on ")).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
}

#[test]
fn a_rank_killed_below_srun_ends_everything() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let srun = slurm.srun(&["--mpi=pmi2", "-N4", "-n6"], folder.path());
    srun.killed(worker).says("windlass: the job was aborted: worker 2 (").says("is lost");
    srun.killed(leader);
}

#[test]
fn two_jobs_at_one_address_and_a_host_without_one_are_told() {
    if !wanted() {
        return;
    }
    let (slurm, folder) = (Slurm::start(), scratch());
    let secret = folder.path().join("secret");
    secret_file(&secret, &windlass::Secret::generate().unwrap());
    let srun = slurm.srun(&["--mpi=none", "-N2", "-n3"], folder.path());
    let at = |address: &str, end: &[&str]| {
        let job = ["run", "--servers", "1", "--coordinator", address, "--secret-file", text(&secret), "--"];
        srun.start(&[&[WINDLASS], &job[..], end].concat())
    };
    let ended = at("nosuch.invalid:7000", &["true"]).end(PATIENCE);
    let said = "resolve (nosuch.invalid:7000, for rank ";
    assert_eq!((ended.code, ended.stderr.matches(said).count()), (12, 3), "{}", ended.stderr);
    // Another job's first rank holds the port and waits for its second.
    let port = 14_000 + (std::process::id() % 1000) as u16;
    let address = format!("127.0.0.1:{port}");
    let other = |rank: &str| {
        let told = [("WINDLASS_TASK", rank), ("WINDLASS_TASKS", "2"), ("WINDLASS_LAUNCH", "other")];
        let job = ["run", "--servers", "1", "--coordinator", &address, "--secret-file", text(&secret)];
        let train = ["--launch-timeout", "100", "--", WINDLASS, "train", "lr", "--epochs", "1"];
        Launcher::new(&["env"], &told, folder.path()).start(&[&[WINDLASS], &job[..], &train].concat())
    };
    let first = other("0");
    until(PATIENCE, "the first job's port", || all_listeners().iter().any(|l| l.port == port));
    let started = Instant::now();
    let second = at(&address, &[WINDLASS, "train", "lr", "--epochs", "1"]).end(PATIENCE);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_ne!(second.code, 0);
    let in_use = format!("bind ({address}, for rank 0 on n");
    let second = second.says(&in_use).says("Address already in use"); // on the first node that was free
    let refused = second.stderr.lines().filter(|l| l.contains("windlass: ") && l.contains("this is not job"));
    assert_eq!(refused.count(), 2, "{}", second.stderr);
    let last = other("1");
    first.end(PATIENCE).expect(0);
    last.end(PATIENCE).expect(0);
}
