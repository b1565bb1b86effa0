//! A lost connection is not a lost peer: a proxy between workers and server cuts their data connections at seeded random
//! byte offsets, or those over shared memory end at seeded moments, and the weights come out the same to the bit.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::server::ServerHandle;
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome};
use windlass::types::{Aggregate, Consistency, NonFinite, OptimizerSpec, Stale, mix64};
use windlass::{Client, ClientConfig, Error, KeyRange, Secret, Server, SortedKeys, TableSpec};

use common::{PATIENCE, Process, scratch, secret_file, text, windlass};

const WORKERS: u32 = 3;

/// Forwards connections to `target`, and cuts each after a random number of bytes in either direction until `cuts` are used up.
struct Proxy {
    address: SocketAddr,
    cuts: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(listener: TcpListener, target: SocketAddr, seed: u64, cuts: u64, mean: u64) -> Proxy {
        let address = listener.local_addr().unwrap();
        let left = Arc::new(AtomicU64::new(cuts));
        let stop = Arc::new(AtomicBool::new(false));
        let (made, stopping) = (left.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for (number, inbound) in (0u64..).zip(listener.incoming()) {
                if stopping.load(Ordering::Acquire) {
                    return;
                }
                let outbound = TcpStream::connect(target);
                let (Ok(inbound), Ok(outbound)) = (inbound, outbound) else { continue };
                [&inbound, &outbound].iter().for_each(|stream| stream.set_nodelay(true).unwrap());
                for (direction, (from, to)) in (0u64..).zip([(&inbound, &outbound), (&outbound, &inbound)]) {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let left = made.clone();
                    let allowance = 1 + mix64(seed ^ number << 1 ^ direction) % (2 * mean);
                    thread::spawn(move || forward(from, to, allowance, &left));
                }
            }
        });
        Proxy { address, cuts: left, stop, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Passes bytes on until either end closes, or `allowance` bytes have passed and a cut is left.
fn forward(mut from: TcpStream, mut to: TcpStream, mut allowance: u64, cuts: &AtomicU64) {
    let mut buffer = [0u8; 16384];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(n) if n > 0 => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            _ => break,
        };
        let pass = n.min(allowance as usize);
        if to.write_all(&buffer[..pass]).is_err() {
            break;
        }
        allowance -= pass as u64;
        if allowance == 0 {
            if cuts.fetch_update(Ordering::AcqRel, Ordering::Acquire, |c| c.checked_sub(1)).is_ok() {
                break;
            }
            allowance = u64::MAX;
            if to.write_all(&buffer[pass..n]).is_err() {
                break;
            }
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

struct Result {
    bits: Vec<u32>,
    reconnects: u64,
    duplicates: u64,
}

/// What goes through a proxy.
fn tcp() -> Network {
    Network { transport: TransportChoice::Only(TransportKind::Tcp), ..Network::default() }
}

/// A job, its workers to be started yet, whose server's one thread is behind a proxy.
struct Job {
    address: String,
    secret: Secret,
    proxy: Proxy,
    server: ServerHandle,
    coordinator: JoinHandle<windlass::Result<Outcome>>,
}

impl Job {
    /// The proxy makes `cuts` cuts, each after `mean` bytes or so.
    fn start(workers: u32, (cuts, mean): (u64, u64), seed: u64) -> Job {
        let secret = Secret::generate().unwrap();
        let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(workers));
        let coordinator = CoordinatorServer::bind(config).unwrap();
        let address = coordinator.address().to_string();
        // The proxy's address has to be known before the server starts, and the server's port before the proxy does.
        let front = TcpListener::bind("127.0.0.1:0").unwrap();
        let (ports, back) = two_free_ports();
        let advertise = Some(front.local_addr().unwrap());
        let network = Network { ports: Some(ports), advertise, ..tcp() };
        let proxy = Proxy::start(front, back, seed, cuts, mean);
        let server = Server::builder(&address, secret.clone()).network(network).start().unwrap();
        let coordinator = thread::spawn(move || coordinator.run());
        Job { address, secret, proxy, server, coordinator }
    }

    /// The worker of a job of one.
    fn only_worker(&self) -> Client {
        let config = ClientConfig::new(&self.address, self.secret.clone(), 0, 1);
        Client::connect(ClientConfig { network: tcp(), ..config }).unwrap()
    }

    /// The workers have ended well.
    fn end(self) {
        self.coordinator.join().unwrap().unwrap();
        self.server.run().unwrap();
        assert_eq!(self.proxy.cuts.load(Ordering::Acquire), 0, "not all cuts were made");
    }
}

/// Sparse and dense, push_pull and pull, from slices and (rank 1) from registered buffers, through the library.
fn train(cuts: u64, seed: u64) -> Result {
    let job = Job::start(WORKERS, (cuts, 6_000), seed);
    let learnt = learn(&job.address, &job.secret, &tcp());
    job.end();
    learnt
}

/// What the workers learn.
fn learn(address: &str, secret: &Secret, network: &Network) -> Result {
    let workers: Vec<_> = (0..WORKERS)
        .map(|rank| {
            let mut config = ClientConfig::new(address, secret.clone(), rank, WORKERS);
            config.network = network.clone();
            thread::spawn(move || work(Client::connect(config).unwrap()))
        })
        .collect();
    let mut bits = Vec::new();
    let (mut reconnects, mut duplicates) = (0, 0);
    for worker in workers {
        let (learnt, stats) = worker.join().unwrap();
        bits = learnt;
        if let Some((r, d)) = stats {
            (reconnects, duplicates) = (r, d);
        }
    }
    Result { bits, reconnects, duplicates }
}

/// The same over shared memory; until the job has ended one connection after the other ends, if `disturbed`.
fn train_over_memory(disturbed: Option<u64>) -> Result {
    let network = Network { transport: TransportChoice::Only(TransportKind::Shm), ..Network::default() };
    let secret = Secret::generate().unwrap();
    let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(WORKERS));
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let server = Server::builder(&address, secret.clone()).network(network.clone()).start().unwrap();
    let coordinator = thread::spawn(move || coordinator.run());
    let learnt = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        let stop = &learnt;
        if let Some(seed) = disturbed {
            scope.spawn(move || end_connections(seed, stop));
        }
        let _ends = AtEnd(stop);
        learn(&address, &secret, &network)
    });
    coordinator.join().unwrap().unwrap();
    server.run().unwrap();
    result
}

/// Tells by its end, be it a panic's, that the job has ended.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Ends connections over shared memory at seeded moments, some milliseconds apart, so that there is time to go on between them. Both ends
/// are of this process, and see what they would see had the other one gone.
fn end_connections(seed: u64, stop: &AtomicBool) {
    let mut random = seed;
    let mut below = |bound: u64| {
        random = mix64(random.wrapping_add(0x9E37_79B9_7F4A_7C15));
        random % bound
    };
    while !stop.load(Ordering::Acquire) {
        let connections = memory_connections();
        if !connections.is_empty() {
            let chosen = below(connections.len() as u64) as usize;
            rustix::net::shutdown(&connections[chosen], rustix::net::Shutdown::Both).unwrap();
        }
        drop(connections);
        thread::sleep(Duration::from_micros(500 + below(3000)));
    }
}

/// A second descriptor for each Unix socket by which this process shares memory with itself.
fn memory_connections() -> Vec<OwnedFd> {
    let this = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = numbers.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let all = numbers.filter_map(|number| match pidfd_getfd(&this, number, PidfdGetfdFlags::empty()) {
        Err(rustix::io::Errno::BADF) => None, // closed meanwhile
        fd => Some(fd.unwrap()),
    });
    let connected = |fd: &OwnedFd| {
        matches!(socket_type(fd), Ok(SocketType::SEQPACKET)) && rustix::net::getpeername(fd).is_ok()
    };
    all.filter(connected).collect()
}

/// The server's control listener takes the first of its ports, its one thread the second.
fn two_free_ports() -> (std::ops::RangeInclusive<u16>, SocketAddr) {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let Some(next) = port.checked_add(1) else { continue };
        if TcpListener::bind(("127.0.0.1", next)).is_ok() {
            return (port..=next, SocketAddr::from(([127, 0, 0, 1], next)));
        }
    }
}

fn work(client: Client) -> (Vec<u32>, Option<(u64, u64)>) {
    let rule = OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0);
    let sparse = client.table(&TableSpec::sparse("sparse", 2).optimizer(rule.clone())).unwrap();
    let dense =
        client.table(&TableSpec::dense("dense", &[3000]).segment_bytes(4096).optimizer(rule)).unwrap();
    // Many small pushes and pulls that leave in batches, with what is applied at once among them.
    let small = client.table(&TableSpec::dense("small", &[512]).segment_bytes(64)).unwrap();
    let counts = TableSpec::dense("counts", &[512]).segment_bytes(64).consistency(Consistency::Asp);
    let counts = counts.optimizer(OptimizerSpec::new("sum", &[])).aggregate(Aggregate::Sum);
    let counts = client.table(&counts).unwrap();
    let segment = |number: u64| KeyRange::new(number * 16, number * 16 + 16).unwrap();
    let mut small_weights = vec![0.0f32; 512];
    let range = KeyRange::new(0, 3000).unwrap();
    let mut weights = vec![0.0f32; 3000];
    let mut row_values = vec![0.0f32; 200];
    let mut buffer = client.buffer(3000).unwrap();
    let all: Vec<u64> = (0..400).collect();
    let mut random = u64::from(client.rank()) + 1;
    let mut next = move || {
        random = mix64(random.wrapping_add(0x9E37_79B9_7F4A_7C15));
        (random >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    for clock in 0..60u64 {
        // The same few lists again and again: most travel as names.
        let start = (clock % 5 * 7 + u64::from(client.rank()) * 31) % 300;
        let keys = SortedKeys::new(&all[start as usize..start as usize + 100]).unwrap();
        sparse.pull(keys, &mut row_values).unwrap();
        let rows: Vec<f32> = row_values.iter().map(|w| w + next()).collect();
        drop(sparse.push(keys, &rows).unwrap());
        let mut pulls = Vec::new();
        for number in 0..32u64 {
            let at = number as usize * 16;
            let values: Vec<f32> = small_weights[at..at + 16].iter().map(|w| w + next()).collect();
            drop(small.push_range(segment(number), &values).unwrap());
            pulls.push(small.pull_range_async(segment(number)).unwrap());
            drop(counts.push_range(segment(number), &[1.0; 16]).unwrap());
        }
        for (pull, values) in pulls.into_iter().zip(small_weights.chunks_mut(16)) {
            pull.wait_into(values).unwrap();
        }
        let gradient: Vec<f32> = weights.iter().map(|w| w + next()).collect();
        if client.rank() != 1 {
            let ticket = dense.push_pull_range(range, &gradient).unwrap();
            client.clock().unwrap();
            ticket.wait_into(&mut weights).unwrap();
            continue;
        }
        // A buffer lives for three clocks, so that announcements and withdrawals are cut, too.
        if clock % 3 == 0 {
            buffer = client.buffer(3000).unwrap();
        }
        buffer.write(0, &gradient).unwrap();
        let ticket = dense.push_pull_range_buffer(range, &mut buffer, 0).unwrap();
        client.clock().unwrap();
        ticket.wait_version().unwrap();
        buffer.read(0, &mut weights).unwrap();
    }
    client.finish().unwrap();
    client.barrier().unwrap();
    let mut rows = vec![0.0f32; 800];
    sparse.pull(SortedKeys::new(&all).unwrap(), &mut rows).unwrap();
    let whole = KeyRange::new(0, 512).unwrap();
    small.pull_range(whole, &mut small_weights).unwrap();
    rows.extend(&small_weights);
    counts.pull_range(whole, &mut small_weights).unwrap();
    assert_eq!(small_weights, [180.0; 512], "3 workers, 60 clocks, each push once");
    let stats = (client.rank() == 0).then(|| {
        let thread = client.server_stats().unwrap()[0].threads[0];
        (thread.reconnects, thread.duplicates_dropped)
    });
    client.barrier().unwrap();
    client.finalize().unwrap();
    (weights.iter().chain(&rows).map(|w| w.to_bits()).collect(), stats)
}

#[test]
fn connections_over_memory_that_end_change_no_bit() {
    let undisturbed = train_over_memory(None);
    assert_eq!((undisturbed.reconnects, undisturbed.duplicates), (0, 0));
    let disturbed = train_over_memory(Some(7));
    println!("{} reconnects, {} duplicates", disturbed.reconnects, disturbed.duplicates);
    assert!(disturbed.reconnects > 0);
    assert!(undisturbed.bits.iter().any(|b| *b != 0));
    assert!(disturbed.bits == undisturbed.bits, "the weights differ");
    assert!(disturbed.bits == train(0, 1).bits, "the weights are not those over TCP");
}

#[test]
fn four_hundred_cuts_change_no_bit() {
    let undisturbed = train(0, 1);
    assert_eq!((undisturbed.reconnects, undisturbed.duplicates), (0, 0));
    let disturbed = train(400, 7);
    assert!(disturbed.reconnects >= 200, "{} reconnects", disturbed.reconnects);
    assert!(disturbed.duplicates > 0);
    assert!(undisturbed.bits.iter().any(|b| *b != 0));
    assert!(disturbed.bits == undisturbed.bits, "the weights differ");
}

/// Rounds of eight pushes with the same base version, of which each is one update older than the one before. Gives how each
/// ended, the value and its version at the end, and how many pieces the server rejected.
fn stale_pushes(seed: u64, stale: Stale) -> (Vec<Option<Error>>, f32, u64, u64) {
    let job = Job::start(1, (40, 4_000), seed);
    let client = job.only_worker();
    let spec = TableSpec::dense("w", &[16]).segment_bytes(64).optimizer(OptimizerSpec::sum());
    let table = client.table(&spec.consistency(Consistency::Asp).stale(stale)).unwrap();
    let all = KeyRange::new(0, 16).unwrap();
    let mut values = [0.0; 16];
    let mut ended = Vec::new();
    for _ in 0..ROUNDS {
        let base = table.pull_range(all, &mut values).unwrap();
        let pushes: Vec<_> =
            (0..8).map(|_| table.push_range_from(base, all, &[840.0; 16]).unwrap()).collect();
        ended.extend(pushes.into_iter().map(|mut push| push.wait().err()));
        client.clock().unwrap();
    }
    let version = table.pull_range(all, &mut values).unwrap();
    let thread = client.server_stats().unwrap()[0].threads[0];
    assert!(thread.reconnects >= 30 && thread.duplicates_dropped > 0, "{thread:?}");
    client.finalize().unwrap();
    job.end();
    (ended, values[0], version, thread.stale_rejected)
}

const ROUNDS: u64 = 300;

#[test]
fn a_push_that_was_rejected_stays_so_however_often_it_is_sent() {
    let (ended, value, version, rejected) = stale_pushes(11, Stale::Reject { max_age: 1 });
    for (round, ended) in (0u64..).zip(ended.chunks(8)) {
        assert!(ended[..2].iter().all(Option::is_none), "{ended:?}");
        for error in &ended[2..] {
            let Some(Error::Stale { table, bucket: 0, base, current, pieces: 1 }) = error else {
                panic!("{error:?} in round {round}");
            };
            assert_eq!((&**table, *base, *current), ("w", 2 * round, 2 * round + 2));
        }
    }
    assert_eq!((value, version, rejected), ((840 * 2 * ROUNDS) as f32, 2 * ROUNDS, 6 * ROUNDS));
}

/// Every other round's pushes hold a NaN, in one of two pieces; under Asp each is told on the spot, under Bsp when it is folded.
fn odd_pushes(seed: u64, consistency: Consistency) {
    let job = Job::start(1, (40, 4_000), seed);
    let client = job.only_worker();
    let spec = TableSpec::dense("w", &[32]).segment_bytes(64).optimizer(OptimizerSpec::sum());
    let spec = spec.consistency(consistency).non_finite(NonFinite::Reject);
    let table = client.table(&spec).unwrap();
    let all = KeyRange::new(0, 32).unwrap();
    let mut values = [0.0; 32];
    for round in 0..ROUNDS {
        values.fill(1.0);
        if round % 2 == 1 {
            values[16] = f32::NAN;
        }
        let pushes: Vec<_> = (0..8).map(|_| table.push_range(all, &values).unwrap()).collect();
        client.clock().unwrap();
        for mut push in pushes {
            match (push.wait(), round % 2) {
                (Ok(()), 0) | (Err(Error::NonFinite { first: 16, last: 31, pieces: 1, .. }), 1) => {}
                (ended, _) => panic!("round {round}: {ended:?}"),
            }
        }
    }
    table.pull_range(all, &mut values).unwrap();
    let thread = client.server_stats().unwrap()[0].threads[0];
    assert!(thread.reconnects >= 30 && thread.duplicates_dropped > 0, "{thread:?}");
    client.finalize().unwrap();
    job.end();
    assert_eq!((values[0], values[31]), ((8 * ROUNDS) as f32, (4 * ROUNDS) as f32));
    assert_eq!((thread.non_finite, thread.non_finite_rejected), (4 * ROUNDS, 4 * ROUNDS));
}

#[test]
fn a_push_with_a_nan_is_rejected_and_counted_once_however_often_it_is_sent() {
    odd_pushes(14, Consistency::Asp);
    odd_pushes(15, Consistency::Bsp);
}

#[test]
fn a_push_is_scaled_by_the_age_that_it_had_when_it_came_first() {
    let (ended, value, version, rejected) = stale_pushes(12, Stale::Scale);
    assert!(ended.iter().all(Option::is_none));
    let round: u64 = (1..=8).map(|age| 840 / age).sum();
    assert_eq!((value, version, rejected), ((round * ROUNDS) as f32, 8 * ROUNDS, 0));
}

#[test]
fn a_stale_push_that_is_accepted_is_applied_once_as_it_is() {
    let (ended, value, version, rejected) = stale_pushes(13, Stale::Accept);
    assert!(ended.iter().all(Option::is_none));
    assert_eq!((value, version, rejected), ((840 * 8 * ROUNDS) as f32, 8 * ROUNDS, 0));
}

/// `train lr` by hand, each worker a process: the report of rank 0.
fn train_lr(cuts: u64, seed: u64) -> serde_json::Value {
    let directory = scratch();
    let (report, secret) = (directory.path().join("report"), directory.path().join("secret"));
    let job = Job::start(WORKERS, (cuts, 20_000), seed);
    secret_file(&secret, &job.secret);
    let workers: Vec<Process> = ["0", "1", "2"]
        .iter()
        .map(|rank| {
            let node = ["--coordinator", &job.address, "--secret-file", text(&secret), "--workers", "3"];
            let options = ["--rank", rank, "--l1", "0.001", "--epochs", "2"];
            let report = if *rank == "0" { &["--report", text(&report)][..] } else { &[] };
            Process::start(windlass(
                [&["train", "lr", "--transport", "tcp"], &node[..], &options, report].concat(),
            ))
        })
        .collect();
    for worker in workers {
        worker.end(PATIENCE).expect(0);
    }
    job.end();
    serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap()
}

#[test]
fn train_lr_reports_the_cuts_and_learns_the_same() {
    let undisturbed = train_lr(0, 1);
    assert_eq!((&undisturbed["reconnects"], &undisturbed["duplicates_dropped"]), (&0.into(), &0.into()));
    let disturbed = train_lr(300, 11);
    assert!(disturbed["reconnects"].as_u64().unwrap() >= 200, "{disturbed:#}");
    assert!(disturbed["duplicates_dropped"].as_u64().unwrap() > 0, "{disturbed:#}");
    assert_eq!(disturbed["weights_sha256"], undisturbed["weights_sha256"]);
}

#[test]
fn a_server_that_stays_away_is_lost_by_name_in_time() {
    let secret = Secret::generate().unwrap();
    let coordinator =
        CoordinatorServer::bind(CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1))).unwrap();
    let address = coordinator.address().to_string();
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let (ports, back) = two_free_ports();
    let network = Network { ports: Some(ports), advertise: Some(front.local_addr().unwrap()), ..tcp() };
    // Every connection is cut after a few bytes: the control link lives, and no endpoint ever gets through.
    let _proxy = Proxy::start(front, back, 3, u64::MAX, 20);
    let _server = Server::builder(&address, secret.clone()).network(network).start().unwrap();
    let stop = coordinator.stop_handle();
    let running = thread::spawn(move || coordinator.run());
    let mut config = ClientConfig::new(&address, secret, 0, 1);
    config.network = tcp();
    config.network.reconnect_timeout = Duration::from_millis(700);
    let error = Client::connect(config).unwrap_err().to_string();
    assert!(error.contains("server 0") && error.contains("thread 0"), "{error}");
    stop.stop();
    assert!(running.join().unwrap().is_err());
}
