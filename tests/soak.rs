//! Many requests leave no memory behind, neither at the worker nor at the server.
//!
//! `WINDLASS_TEST_REQUESTS` is how many are made over each transport (200 000); the memory is read after a tenth of them, and at the end.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;

use common::{PATIENCE, Process, huge_pages, scratch, secret_file, text, windlass};
use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::types::Consistency;
use windlass::{Client, ClientConfig, KeyRange, Secret, SortedKeys, Table, TableSpec};

/// How much more a process may hold at the end, in KiB.
const SLACK: u64 = 1024;
/// Rows of the sparse table.
const ROWS: u64 = 1000;

/// What a process has in memory, in KiB.
fn resident(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Pushes, pulls and clocks under every consistency, until `requests` have been made.
fn work(client: &Client, tables: &[(Table, Table)], made: &mut u64, requests: u64) {
    let keys: Vec<u64> = (0..ROWS).collect();
    let range = KeyRange::new(0, 64).unwrap();
    let (mut rows, mut values) = ([0.0f32; 16], [0.0f32; 64]);
    while *made < requests {
        for (sparse, dense) in tables {
            let start = (*made % (ROWS - 8)) as usize;
            let some = SortedKeys::new(&keys[start..start + 8]).unwrap();
            drop(sparse.push(some, &rows).unwrap());
            drop(dense.push_range(range, &values).unwrap());
            let (first, second) = (sparse.pull_async(some).unwrap(), dense.pull_range_async(range).unwrap());
            first.wait_into(&mut rows).unwrap();
            second.wait_into(&mut values).unwrap();
            *made += 4;
        }
        client.clock().unwrap();
        *made += 1;
    }
}

#[test]
fn memory_does_not_grow_with_requests() {
    let requests = std::env::var("WINDLASS_TEST_REQUESTS").map_or(200_000, |n| n.parse().unwrap());
    // The kernel makes small pages huge while time goes by, and counts all of them as touched.
    huge_pages(false);
    // One after the other: both look at the memory of this process.
    [TransportKind::Tcp, TransportKind::Shm].into_iter().for_each(|kind| job(kind, requests));
}

/// Makes so many requests in a job of one worker over this transport, and compares the memory.
fn job(kind: TransportKind, requests: u64) {
    let directory = scratch();
    let file = directory.path().join("secret");
    let secret = Secret::generate().unwrap();
    secret_file(&file, &secret);
    let node = |arguments: &[&str]| {
        Process::start(windlass([arguments, &["--secret-file", text(&file)][..]].concat()))
    };
    let coordinator = node(&["coordinator", "--listen", "127.0.0.1:0", "--servers", "1", "--workers", "1"]);
    let address = coordinator.until_says("windlass coordinator: listening on ");
    let server = node(&["server", "--coordinator", &address, "--transport", kind.name()]);
    let network = Network { transport: TransportChoice::Only(kind), ..Network::default() };
    let config = ClientConfig { network, ..ClientConfig::new(&address, secret, 0, 1) };
    let client = Client::connect(config).unwrap();
    assert!(client.transport().starts_with(kind.name()), "{}", client.transport());
    let tables: Vec<(Table, Table)> = [Consistency::Bsp, Consistency::Ssp { staleness: 1 }, Consistency::Asp]
        .into_iter()
        .map(|consistency| {
            let sparse = TableSpec::sparse(&format!("sparse {consistency}"), 2).consistency(consistency);
            let dense = TableSpec::dense(&format!("dense {consistency}"), &[64]).consistency(consistency);
            (client.table(&sparse).unwrap(), client.table(&dense).unwrap())
        })
        .collect();
    let processes = [("worker", std::process::id()), ("server", server.pid() as u32)];
    let memory = || processes.map(|(_, pid)| resident(pid));
    let mut made = 0;
    work(&client, &tables, &mut made, requests / 10);
    let early = memory();
    work(&client, &tables, &mut made, requests);
    let late = memory();
    for (((name, _), early), late) in processes.iter().zip(early).zip(late) {
        let line =
            format!("{kind}, {name}: {early} KiB after {} requests, {late} KiB after {made}", requests / 10);
        eprintln!("{line}");
        assert!(late <= early + SLACK, "{line}");
    }
    drop(tables);
    client.finalize().unwrap();
    server.end(PATIENCE).expect(0);
    coordinator.end(PATIENCE).expect(0);
}
