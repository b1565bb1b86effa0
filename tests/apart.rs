//! Nodes on one host that can't share memory: the job goes by TCP, says why, once in a process, and learns the same bits. Needs root.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::{Ended, PATIENCE, Process, run, scratch, text, windlass};
use windlass::Secret;

const TRAINING: [&str; 7] = ["train", "lr", "--epochs", "3", "--batch", "50", "--report"];

/// Says so where this is not root.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let _ = writeln!(std::io::stderr(), "skipped: to run a process apart needs root");
    }
    root
}

/// Digest of the weights, and what the data travelled by.
fn read(report: &Path) -> (String, String) {
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    (report["weights_sha256"].as_str().unwrap().to_owned(), report["transport"].as_str().unwrap().to_owned())
}

/// A job of a server of two threads and a worker, each started as its function says, with a program and a folder that everybody reaches.
/// The worker's end, and what its report says.
fn learn(
    interfaces: [&str; 2],
    server: impl Fn(Command) -> Command,
    worker: impl Fn(Command) -> Command,
) -> (Ended, String) {
    let folder = scratch();
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(folder.path(), 0o777);
    let (program, report) = (folder.path().join("windlass"), folder.path().join("report.json"));
    // By another process: while a child that another test forks has a file open for writing, nobody can run it.
    let copied =
        Command::new("install").args(["-m", "755", env!("CARGO_BIN_EXE_windlass")]).arg(&program).status();
    assert!(copied.unwrap().success());
    let (data, secret) = (folder.path().join("data"), Secret::generate().unwrap().to_hex());
    let row = |i: u32| format!("{} {}:1 {}:0.5\n", i % 2, 1 + i % 40, 60 + i % 7);
    fs::write(&data, (0..1000).map(row).collect::<String>()).unwrap();
    open(&data, 0o644);
    let node = |arguments: &[&str]| {
        let ours = windlass([]);
        let mut command = Command::new(&program);
        ours.get_envs().for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.args(arguments).env("WINDLASS_SECRET", &*secret).current_dir(folder.path());
        command
    };
    let listen = format!("{}:0", interfaces[1]);
    let coordinator = ["coordinator", "--listen", &listen, "--servers", "1", "--workers", "1"];
    let coordinator = Process::start(worker(node(&coordinator)));
    let address = coordinator.until_says("windlass coordinator: listening on ");
    let at = ["--coordinator", &address, "--threads", "2", "--interface", interfaces[0]];
    let server = Process::start(server(node(&[&["server"], &at[..]].concat())));
    let at =
        [text(&report), "--data", text(&data), "--coordinator", &address, "--rank", "0", "--workers", "1"];
    let worker = Process::start(worker(node(&[&TRAINING[..], &at].concat())));
    let worker = worker.end(PATIENCE).expect(0);
    server.end(PATIENCE).expect(0);
    coordinator.end(PATIENCE).expect(0);
    let (bits, transport) = read(&report);
    let alone = folder.path().join("alone.json");
    let job = [
        text(&alone),
        "--data",
        text(&data),
        "--servers",
        "1",
        "--threads",
        "2",
        "--workers",
        "1",
        "--transport",
        "tcp",
    ];
    run([&TRAINING[..], &job].concat()).expect(0);
    assert_eq!(bits, read(&alone).0);
    (worker, transport)
}

#[test]
fn another_user_is_shown_no_memory() {
    if !is_root() {
        return;
    }
    let ours = |command| command;
    let nobodys = |mut command: Command| {
        command.uid(65534).gid(65534);
        command
    };
    let here = ["127.0.0.1"; 2];
    for (worker, transport) in [learn(here, nobodys, ours), learn(here, ours, nobodys)] {
        assert!(transport.contains("0 of 2 endpoints by shm"), "{transport}");
        let why = "it runs as another user, who can't be shown memory";
        assert_eq!(worker.stderr.matches(why).count(), 1, "{}", worker.stderr);
        assert!(
            worker.stderr.contains("server 0 (") && worker.stderr.contains("is on this host"),
            "{}",
            worker.stderr
        );
    }
}

/// Two namespaces with a wire between them; gone when this is dropped.
struct Namespaces {
    names: [String; 2],
}

impl Namespaces {
    const ADDRESSES: [&str; 2] = ["10.78.0.1", "10.78.0.2"];

    fn new() -> Namespaces {
        let names = ["a", "b"].map(|side| format!("wl{}{side}", std::process::id()));
        let made = Namespaces { names };
        let [a, b] = &made.names;
        ip(&["netns", "add", a]);
        ip(&["netns", "add", b]);
        ip(&["-n", a, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b]);
        for (name, address) in made.names.iter().zip(Self::ADDRESSES) {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "wire"]);
            ["lo", "wire"].iter().for_each(|link| ip(&["-n", name, "link", "set", link, "up"]));
        }
        made
    }

    fn enter(&self, side: usize, command: Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.names[side]]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.current_dir(command.get_current_dir().unwrap());
        inside
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let made = Command::new("ip").args(arguments).output().unwrap();
    assert!(made.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn another_network_namespace_is_reached_by_tcp() {
    if !is_root() {
        return;
    }
    let apart = Namespaces::new();
    let (server, worker) = (|command| apart.enter(0, command), |command| apart.enter(1, command));
    let (worker, transport) = learn(Namespaces::ADDRESSES, server, worker);
    assert!(transport.contains("0 of 2 endpoints by shm"), "{transport}");
    let why = "it may be in another network namespace";
    assert_eq!(worker.stderr.matches(why).count(), 1, "{}", worker.stderr);
}

/// To the Coordinator nodes whose kernels have other boot ids are on other hosts: there is nothing to miss, and nothing to be warned of.
#[test]
fn another_boot_id_is_another_host() {
    if !is_root() {
        return;
    }
    let folder = scratch();
    let id = folder.path().join("boot_id");
    fs::write(&id, "00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
    let elsewhere = |command: Command| {
        let mut inside = Command::new("unshare");
        let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        inside.args(["--mount", "sh", "-c", script, text(&id)]);
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside.current_dir(command.get_current_dir().unwrap());
        inside
    };
    let (worker, transport) = learn(["127.0.0.1"; 2], elsewhere, |command| command);
    assert!(transport.starts_with("tcp (") && !transport.contains("shm"), "{transport}");
    assert!(!worker.stderr.contains("WARN"), "{}", worker.stderr);
}
