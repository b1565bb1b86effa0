//! How much longer a push_pull over TCP takes while a cut of its table is being written: 1 GiB dense, and 10 million rows.
//!
//! ```text
//! cargo bench --bench cut [DIR]        # the checkpoints go to DIR, or to the folder for temporary files
//! cargo bench --bench cut -- --test    # that it runs
//! ```
//! The 99th percentile of 1000 push_pulls without a cut stands beside that of all during one, and the longest of them. At full size the
//! exit code is 1 when that one took over 50 ms longer than the percentile without a cut.

#![allow(clippy::unwrap_used)] // nobody but a developer sees it fail

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::checkpoint::{Disk, Folder, Storage};
use windlass::config::settings::Every;
use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::server::coordinator::{Checkpoints, CoordinatorServer, CoordinatorServerConfig};
use windlass::types::OptimizerSpec;
use windlass::{Client, ClientConfig, KeyRange, Secret, Server, SortedKeys, Table, TableSpec};

/// fp32 of one dense push_pull, and rows of a sparse one.
const DENSE: u64 = 1 << 14;
const ROWS: u64 = 1000;
/// Before the cut.
const ROUNDS: usize = 1000;
/// How much longer than the 99th percentile without a cut none may take.
const ALLOWED: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let smoke = arguments.iter().any(|argument| argument == "--test");
    let given = arguments.iter().find(|argument| !argument.starts_with('-'));
    let directory = given.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    let (elements, rows) = if smoke { (1 << 20, 20_000) } else { (1 << 28, 10_000_000) };
    let mut longer = Duration::ZERO;
    for (name, spec) in [
        ("dense", TableSpec::dense("t", &[elements]).optimizer(OptimizerSpec::sgd(0.1))),
        ("sparse", TableSpec::sparse("t", 1).optimizer(OptimizerSpec::sgd(0.1))),
    ] {
        longer = longer.max(measure(name, &spec, (elements, rows), &directory.path().join(name)));
    }
    if longer > ALLOWED && !smoke {
        eprintln!(
            "a push_pull took {longer:?} longer than the percentile without a cut: {ALLOWED:?} are allowed"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Gives how much longer the longest push_pull during a cut took than the percentile without one.
fn measure(name: &str, spec: &TableSpec, (elements, rows): (u64, u64), folder: &Path) -> Duration {
    let secret = Secret::generate().unwrap();
    let mut config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1));
    let every = Some(Every::Clocks(ROUNDS as u64 + 200)); // behind the rows that are made and the rounds without a cut
    let place = Some(folder.to_owned());
    config.checkpoints = Checkpoints { folder: place.clone(), every, ..Checkpoints::default() };
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let network = Network { transport: TransportChoice::Only(TransportKind::Tcp), ..Network::default() };
    let server = Server::builder(&address, secret.clone()).network(network.clone());
    let server = server.checkpoints(place, None).start().unwrap();
    let coordinator = std::thread::spawn(move || coordinator.run());
    let config = ClientConfig { network, ..ClientConfig::new(&address, secret, 0, 1) };
    let client = Client::connect(config).unwrap();
    let table = client.table(spec).unwrap();
    let dense = name == "dense";
    if !dense {
        for start in (0..rows).step_by(100_000) {
            let keys: Vec<u64> = (start..(start + 100_000).min(rows)).collect();
            drop(table.push(SortedKeys::new(&keys).unwrap(), &vec![1.0; keys.len()]).unwrap());
            client.clock().unwrap();
        }
    }
    let mut step = 0;
    let mut rounds = |count: usize| -> Vec<Duration> {
        let round = |_| {
            step += 1;
            if dense {
                one_dense(&client, &table, step * DENSE % elements)
            } else {
                one_sparse(&client, &table, step, rows)
            }
        };
        (0..count).map(round).collect()
    };
    let mut without = rounds(ROUNDS);
    let storage: Arc<dyn Storage> = Arc::new(Disk);
    let kept = Folder::new(storage, folder);
    let (began, mut with) = (Instant::now(), Vec::new());
    while !kept.found().unwrap().iter().any(|found| found.committed) {
        with.extend(rounds(20));
    }
    let took = began.elapsed();
    without.sort_unstable();
    with.sort_unstable();
    let p99 = |times: &[Duration]| times[times.len() * 99 / 100];
    let longest = with[with.len() - 1];
    println!(
        "{name}: p99 without a cut {:?}, with one {:?}, the longest {:?} ({} in {took:?})",
        p99(&without),
        p99(&with),
        longest,
        with.len()
    );
    client.finalize().unwrap();
    coordinator.join().unwrap().unwrap();
    server.run().unwrap();
    longest.saturating_sub(p99(&without))
}

fn one_dense(client: &Client, table: &Table, at: u64) -> Duration {
    let mut values = vec![1.0; DENSE as usize];
    let began = Instant::now();
    let ticket = table.push_pull_range(KeyRange::new(at, at + DENSE).unwrap(), &values).unwrap();
    client.clock().unwrap();
    ticket.wait_into(&mut values).unwrap();
    began.elapsed()
}

/// Rows from all over the table.
fn one_sparse(client: &Client, table: &Table, step: u64, rows: u64) -> Duration {
    let apart = rows / ROWS;
    let keys: Vec<u64> = (0..ROWS).map(|n| n * apart + step % apart).collect();
    let mut values = vec![1.0; ROWS as usize];
    let began = Instant::now();
    let ticket = table.push_pull(SortedKeys::new(&keys).unwrap(), &values).unwrap();
    client.clock().unwrap();
    ticket.wait_into(&mut values).unwrap();
    began.elapsed()
}
