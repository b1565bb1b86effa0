//! Limits that a user has changed take effect; with the least of all of them a job still ends well.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use common::{PATIENCE, Process, scratch, secret_file, text, windlass};
use windlass::config::{LinkLimits, Network, ServerLimits, WorkerLimits};
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
use windlass::types::{Aggregate, Consistency, OptimizerSpec};
use windlass::{Client, ClientConfig, Error, KeyRange, Secret, Server, SortedKeys, TableSpec};

/// A job of one server of two threads and one worker in this process; `body` is the worker.
fn with_limits(links: LinkLimits, worker: WorkerLimits, tables: usize, body: impl FnOnce(&Client)) {
    let secret = Secret::generate().unwrap();
    let mut config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1));
    config.cluster.tables = tables;
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let coordinator = std::thread::spawn(move || coordinator.run());
    let network = Network { limits: links, transport: common::transport(), ..Network::default() };
    let limits = ServerLimits { payload_bytes: worker.payload_bytes, ..ServerLimits::default() };
    let server = Server::builder(&address, secret.clone()).threads(2).network(network.clone());
    let server = server.limits(limits).start().unwrap();
    let mut config = ClientConfig::new(&address, secret, 0, 1);
    (config.network, config.limits) = (network, worker);
    let client = Client::connect(config).unwrap();
    body(&client);
    client.finalize().unwrap();
    coordinator.join().unwrap().unwrap();
    server.run().unwrap();
}

fn sums(name: &str, elements: u64, segment_bytes: u32) -> TableSpec {
    TableSpec::dense(name, &[elements])
        .segment_bytes(segment_bytes)
        .optimizer(OptimizerSpec::sum())
        .aggregate(Aggregate::Sum)
        .consistency(Consistency::Asp)
}

/// Small and large operations of both kinds of table, and more of them than the least queues hold.
fn exercise(client: &Client) {
    const N: u64 = 3 << 20;
    let dense = client.table(&sums("dense", N, 64 << 10)).unwrap();
    let sparse = TableSpec::sparse("sparse", 4).optimizer(OptimizerSpec::sum()).consistency(Consistency::Asp);
    let sparse = client.table(&sparse).unwrap();
    let ones = vec![1.0; N as usize];
    // Not at a segment's start, so that each part of a blocking pull takes one answer more.
    let range = KeyRange::new(5, N).unwrap();
    drop(dense.push_range(range, &ones[5..]).unwrap());
    let keys: Vec<u64> = (0..3000).collect();
    for n in 0..1000 {
        let range = KeyRange::new(n * 16, n * 16 + 16).unwrap();
        drop(dense.push_range(range, &[1.0; 16]).unwrap());
        let three = SortedKeys::new(&keys[n as usize..n as usize + 3]).unwrap();
        drop(sparse.push(three, &[1.0; 12]).unwrap());
    }
    client.barrier().unwrap();
    let mut values = vec![0.0; N as usize - 5];
    dense.pull_range(range, &mut values).unwrap();
    assert!(values[..16_000 - 5].iter().all(|v| *v == 2.0) && values[16_000 - 5..].iter().all(|v| *v == 1.0));
    let mut rows = vec![0.0; 4 * keys.len()];
    sparse.pull(SortedKeys::new(&keys).unwrap(), &mut rows).unwrap();
    assert!(rows[8..4000].iter().all(|v| *v == 3.0) && rows[4008..].iter().all(|v| *v == 0.0));
}

#[test]
fn a_job_with_the_least_of_everything_ends_well() {
    let links = LinkLimits { strangers: 1, control_bytes: 1 << 20, queue_depth: 16, ..LinkLimits::default() };
    let least = WorkerLimits {
        payload_bytes: 128 << 10,
        send_bytes: 4 << 20,
        receive_bytes: 4 << 20,
        small_bytes: 0,
        batch_bytes: 4 << 10,
        queued_frames: 1,
        window_bytes: 4 << 10,
        ring_entries: 4,
    };
    with_limits(links, least, 2, exercise);
    with_limits(links, WorkerLimits { small_bytes: 64 << 10, ..least }, 2, exercise);
}

#[test]
fn a_blocking_pull_never_asks_for_more_than_receive_memory_holds() {
    with_limits(LinkLimits::default(), WorkerLimits::default(), 2, exercise);
    let long = WorkerLimits { payload_bytes: 1 << 20, send_bytes: 32 << 20, ..WorkerLimits::default() };
    with_limits(LinkLimits::default(), WorkerLimits { receive_bytes: 32 << 20, ..long }, 2, exercise);
}

#[test]
fn receive_memory_and_tables_are_as_many_as_was_said() {
    const SEGMENT: u64 = 64 << 10;
    for megabytes in [8, 12] {
        let limits = WorkerLimits { receive_bytes: megabytes << 20, ..WorkerLimits::default() };
        with_limits(LinkLimits::default(), limits, 1, |client| {
            let table = client.table(&sums("w", 100 * SEGMENT, 256 << 10)).unwrap();
            // Answers of 256 KiB that nobody takes.
            let whole = |n: u64| KeyRange::new(n * SEGMENT, (n + 1) * SEGMENT).unwrap();
            let mut held = Vec::new();
            let refused = loop {
                match table.pull_range_async(whole(held.len() as u64)) {
                    Ok(ticket) => held.push(ticket),
                    Err(error) => break error,
                }
            };
            assert!(matches!(refused, Error::Limit { .. }), "{refused}");
            assert_eq!(held.len(), megabytes * 4);
            drop(held);
            let error = client.table(&sums("another", 10, 64)).unwrap_err().to_string();
            assert!(error.contains("at most 1 tables"), "{error}");
        });
    }
}

#[test]
fn memory_that_could_not_hold_a_call_is_refused_with_the_arithmetic() {
    let mut config = ClientConfig::new("127.0.0.1:1", Secret::generate().unwrap(), 0, 1);
    config.limits.receive_bytes = (8 << 20) - 1;
    let error = Client::connect(config).unwrap_err().to_string();
    assert_eq!(error, "receive_bytes: expected at least 8388608: 32 bodies of 262144 bytes, found 8388607");
}

/// A Coordinator with these flags, and its address.
fn coordinator(flags: &[&str]) -> (Process, String, tempfile::TempDir) {
    let directory = scratch();
    let file = directory.path().join("secret");
    secret_file(&file, &Secret::generate().unwrap());
    let arguments = ["coordinator", "--listen", "127.0.0.1:0", "--secret-file", text(&file)];
    let process = Process::start(windlass(arguments.into_iter().chain(flags.iter().copied())));
    let address = process.until_says("windlass coordinator: listening on ");
    (process, address, directory)
}

#[test]
fn as_many_strangers_as_was_said_have_a_place_at_a_port() {
    let (process, address, _directory) = coordinator(&["--strangers", "4", "--handshake-timeout", "600"]);
    let mut strangers: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(&address).unwrap()).collect();
    // The oldest makes room for the fifth; the others would wait ten minutes.
    process.until_line("connections before authentication");
    strangers[0].set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(strangers[0].read(&mut [0; 1]), Ok(0) | Err(_)));
    for stranger in &mut strangers[1..] {
        stranger.set_nonblocking(true).unwrap();
        assert_eq!(stranger.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn a_stranger_has_as_long_as_was_said() {
    let (process, address, _directory) = coordinator(&["--handshake-timeout", "1"]);
    let start = std::time::Instant::now();
    let mut stranger = TcpStream::connect(&address).unwrap();
    let said = process.until_line("the handshake of");
    assert!(said.contains("1s") && start.elapsed() >= Duration::from_secs(1), "{said}");
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(stranger.read(&mut [0; 1]), Ok(0) | Err(_)));
}

#[test]
fn nodes_wait_for_each_other_as_long_as_was_said() {
    let (process, address, directory) = coordinator(&["--join-timeout", "1", "--workers", "2"]);
    let secret = directory.path().join("secret");
    let node = ["--coordinator", &address, "--secret-file", text(&secret), "--rank", "0", "--workers", "2"];
    let worker = Process::start(windlass(["train", "lr"].into_iter().chain(node)));
    process.end(PATIENCE).expect(19).says("1s");
    worker.end(PATIENCE).expect(19);
    let (process, address, directory) = coordinator(&["--join-timeout", "600", "--workers", "2"]);
    let secret = directory.path().join("secret");
    let node = ["--coordinator", &address, "--secret-file", text(&secret), "--rank", "0", "--workers", "2"];
    let short = ["--join-timeout", "1"];
    let worker = Process::start(windlass(["train", "lr"].into_iter().chain(node).chain(short)));
    worker.end(PATIENCE).expect(13).says("after 1s waiting for the other nodes");
    drop(process);
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
