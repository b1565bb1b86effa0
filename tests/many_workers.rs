//! 512 workers at once, over TCP: one server thread serves them all, from a soft limit of 1024 descriptors, and an idle one costs it next
//! to nothing.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::sync::{Arc, Barrier};
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use common::{PATIENCE, Process, huge_pages, scratch, secret_file, text, windlass};
use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::types::{Aggregate, OptimizerSpec};
use windlass::{Client, ClientConfig, KeyRange, Secret, TableSpec};

/// Most that an idle connection may cost the server beside its slots, in bytes.
const EACH: u64 = 64 << 10;
const FEW: u32 = 32;
const MANY: u32 = 512;

/// Bytes that a process has in memory.
fn resident(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// How many descriptors this process, and those that it starts, may have open.
fn descriptors(most: Option<u64>) {
    setrlimit(Resource::Nofile, Rlimit { current: most, ..getrlimit(Resource::Nofile) }).unwrap();
}

/// A job of so many workers, which are threads of this process: the server's memory when all have joined and opened their data
/// connections, but pushed nothing, so that no slot was touched. Then all push, and pull the sum.
fn job(workers: u32) -> u64 {
    let directory = scratch();
    let file = directory.path().join("secret");
    let secret = Secret::generate().unwrap();
    secret_file(&file, &secret);
    // A thousand threads share a few cores: on a busy machine nobody may be taken for dead.
    let common = ["--secret-file", text(&file), "--peer-timeout", "120"];
    let node = |arguments: &[&str]| Process::start(windlass([arguments, &common[..]].concat()));
    let transport = TransportChoice::Only(TransportKind::Tcp);
    let count = workers.to_string();
    huge_pages(true);
    // The usual soft limit, for the nodes; the workers, which are all in this process, need more.
    descriptors(Some(1024));
    let coordinator =
        node(&["coordinator", "--listen", "127.0.0.1:0", "--servers", "1", "--workers", &count]);
    let address = coordinator.until_says("windlass coordinator: listening on ");
    let server = node(&["server", "--coordinator", &address, "--transport", "tcp"]);
    descriptors(getrlimit(Resource::Nofile).maximum);
    // Else each worker's buffers would take megabytes as soon as they are touched.
    huge_pages(false);
    let (joined, measured) =
        (Arc::new(Barrier::new(workers as usize + 1)), Arc::new(Barrier::new(workers as usize + 1)));
    let threads: Vec<_> = (0..workers)
        .map(|rank| {
            let mut config = ClientConfig::new(&address, secret.clone(), rank, workers);
            config.network = Network { peer_timeout: PATIENCE, transport, ..Network::default() };
            let (joined, measured) = (joined.clone(), measured.clone());
            thread::spawn(move || {
                let client = Client::connect(config).unwrap();
                let spec =
                    TableSpec::dense("t", &[64]).optimizer(OptimizerSpec::sum()).aggregate(Aggregate::Sum);
                let table = client.table(&spec).unwrap();
                joined.wait();
                measured.wait();
                let mut sum = [0.0f32; 64];
                let all = KeyRange::new(0, 64).unwrap();
                let ticket = table.push_pull_range(all, &[(rank + 1) as f32; 64]).unwrap();
                client.clock().unwrap();
                ticket.wait_into(&mut sum).unwrap();
                client.finalize().unwrap();
                sum[63]
            })
        })
        .collect();
    joined.wait();
    let idle = resident(server.pid() as u32);
    measured.wait();
    let expected = (workers * (workers + 1) / 2) as f32;
    for thread in threads {
        assert_eq!(thread.join().unwrap(), expected);
    }
    server.end(PATIENCE).expect(0);
    coordinator.end(PATIENCE).expect(0);
    idle
}

#[test]
fn an_idle_connection_costs_the_server_at_most_64_kib_beside_its_slots() {
    let (few, many) = (job(FEW), job(MANY));
    let each = many.saturating_sub(few) / u64::from(MANY - FEW);
    eprintln!("server: {few} bytes with {FEW} idle workers, {many} with {MANY}: {each} for each");
    assert!(each <= EACH, "{each} bytes for each idle connection");
}
