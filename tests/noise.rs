//! Strangers at every port of a running job: random bytes, a port scan, idle connections. The workers go on, and what they learn
//! is the same to the bit as without them.
//!
//! `WINDLASS_TEST_NOISE_MIB` is how many MiB of random bytes each port gets (16).

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::proc::listeners;
use common::{PATIENCE, Process, scratch, secret_file, text, until, windlass};
use rustix::process::{Resource, getrlimit, setrlimit};
use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::types::{OptimizerSpec, mix64};
use windlass::{Client, ClientConfig, KeyRange, Secret, SortedKeys, TableSpec};

const WORKERS: u32 = 3;
const SERVERS: usize = 2;
/// Idle connections at the control ports, and as many at the data ports.
const IDLE: usize = 1000;

/// Three workers of this process in a job of real processes, over TCP: its data ports carry all data. They stop at clock `last`; the noise gets the job's ports.
/// Gives the weights, and the clock at which the workers stopped.
fn job(last: u64, noise: impl FnOnce(&Ports, &Progress)) -> (Vec<u32>, u64) {
    let directory = scratch();
    let file = directory.path().join("secret");
    let secret = Secret::generate().unwrap();
    secret_file(&file, &secret);
    let node = |arguments: &[&str]| {
        Process::start(windlass([arguments, &["--secret-file", text(&file)][..]].concat()))
    };
    let coordinator = node(&["coordinator", "--listen", "127.0.0.1:0", "--servers", "2", "--workers", "3"]);
    let address = coordinator.until_says("windlass coordinator: listening on ");
    let servers: [Process; SERVERS] = std::array::from_fn(|_| {
        node(&["server", "--coordinator", &address, "--threads", "2", "--transport", "tcp"])
    });
    let transport = TransportChoice::Only(TransportKind::Tcp);
    let network = Network { transport, ..Network::default() };
    let progress = Progress { clock: AtomicU64::new(0), last: AtomicU64::new(last) };
    let weights = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|rank| {
                let config = ClientConfig::new(&address, secret.clone(), rank, WORKERS);
                let config = ClientConfig { network: network.clone(), ..config };
                let progress = &progress;
                scope.spawn(move || work(Client::connect(config).unwrap(), progress))
            })
            .collect();
        progress.until(3);
        noise(&Ports::of(&address, &servers), &progress);
        let learnt: Vec<Vec<u32>> = workers.into_iter().map(|w| w.join().unwrap()).collect();
        assert!(learnt.iter().all(|l| *l == learnt[0]));
        learnt.into_iter().next().unwrap()
    });
    coordinator.end(PATIENCE).expect(0);
    servers.into_iter().for_each(|server| drop(server.end(PATIENCE).expect(0)));
    (weights, progress.last.load(Ordering::Acquire))
}

/// How far the workers are, and where they stop.
struct Progress {
    clock: AtomicU64,
    last: AtomicU64,
}

impl Progress {
    fn clock(&self) -> u64 {
        self.clock.load(Ordering::Acquire)
    }

    fn until(&self, clock: u64) {
        until(PATIENCE, &format!("clock {clock}"), || self.clock() >= clock);
    }

    /// The workers stop a few clocks from now. Under Bsp none is more than one clock ahead, so all see it in time.
    fn stop(&self) {
        self.last.store(self.clock() + 10, Ordering::Release);
    }
}

fn work(client: Client, progress: &Progress) -> Vec<u32> {
    assert!(client.transport().starts_with("tcp"), "{}", client.transport());
    let rule = OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0);
    let spec = TableSpec::dense("dense", &[20_000]).segment_bytes(4096).optimizer(rule.clone());
    let dense = client.table(&spec).unwrap();
    let sparse = client.table(&TableSpec::sparse("sparse", 2).optimizer(rule)).unwrap();
    let range = KeyRange::new(0, 20_000).unwrap();
    let all: Vec<u64> = (0..400).collect();
    let (mut weights, mut rows) = (vec![0.0f32; 20_000], vec![0.0f32; 200]);
    let mut random = u64::from(client.rank()) + 1;
    let mut next = move || {
        random = mix64(random.wrapping_add(0x9E37_79B9_7F4A_7C15));
        (random >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut clock = 0;
    while clock < progress.last.load(Ordering::Acquire) {
        let start = ((clock * 7 + u64::from(client.rank()) * 31) % 300) as usize;
        let keys = SortedKeys::new(&all[start..start + 100]).unwrap();
        sparse.pull(keys, &mut rows).unwrap();
        let gradients: Vec<f32> = rows.iter().map(|w| w + next()).collect();
        drop(sparse.push(keys, &gradients).unwrap());
        let gradient: Vec<f32> = weights.iter().map(|w| w + next()).collect();
        let ticket = dense.push_pull_range(range, &gradient).unwrap();
        client.clock().unwrap();
        ticket.wait_into(&mut weights).unwrap();
        clock += 1;
        progress.clock.fetch_max(clock, Ordering::AcqRel);
    }
    client.finish().unwrap();
    client.barrier().unwrap();
    let mut rows = vec![0.0f32; 800];
    sparse.pull(SortedKeys::new(&all).unwrap(), &mut rows).unwrap();
    client.barrier().unwrap();
    client.finalize().unwrap();
    weights.iter().chain(&rows).map(|w| w.to_bits()).collect()
}

/// Where a job listens.
struct Ports {
    control: Vec<u16>,
    data: Vec<u16>,
}

impl Ports {
    /// A server takes its control port first, so it has the smallest inode of its listeners' sockets.
    fn of(coordinator: &str, servers: &[Process]) -> Ports {
        let address: SocketAddr = coordinator.parse().unwrap();
        let mut ports = Ports { control: vec![address.port()], data: Vec::new() };
        for server in servers {
            let theirs: BTreeSet<_> = listeners([server.pid()]);
            assert_eq!(theirs.len(), 3, "control and two threads");
            let mut theirs = theirs.into_iter().map(|listener| listener.port);
            ports.control.extend(theirs.next());
            ports.data.extend(theirs);
        }
        ports
    }

    fn all(&self) -> impl Iterator<Item = u16> {
        self.control.iter().chain(&self.data).copied()
    }
}

fn connect(port: u16) -> Option<TcpStream> {
    TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_secs(1)).ok()
}

/// So many connections, spread over the ports, that say nothing.
fn idle(ports: &[u16]) -> Vec<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    let mut held = Vec::new();
    for port in ports.iter().cycle() {
        assert!(Instant::now() < deadline, "{} connections in {PATIENCE:?}", held.len());
        held.extend(connect(*port));
        if held.len() == IDLE {
            break;
        }
    }
    held
}

/// What a scanner does: connects and goes away, orderly, by a reset, half, or after a word.
fn scan(port: u16) -> Vec<TcpStream> {
    let mut half_closed = Vec::new();
    for round in 0..100 {
        let Some(mut stream) = connect(port) else { continue };
        match round % 4 {
            0 => {}
            1 => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
            // It may have been closed already.
            2 => drop(stream.write_all(b"GET / HTTP/1.0\r\n\r\n")),
            _ => {
                let _ = stream.shutdown(Shutdown::Write);
                half_closed.push(stream);
            }
        }
    }
    half_closed
}

/// Sends `bytes` random bytes to a port, over as many connections as it takes.
fn pour(port: u16, bytes: u64) {
    let block: Vec<u8> =
        (0..32_768u64).flat_map(|i| mix64(i ^ u64::from(port) << 32).to_le_bytes()).collect();
    let (mut sent, mut connections) = (0, 0u64);
    let mut since = Instant::now();
    while sent < bytes {
        assert!(since.elapsed() < PATIENCE, "port {port} takes no more after {sent} bytes");
        let Some(mut stream) = connect(port) else { continue };
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        connections += 1;
        let mut at = (mix64(connections) % 200_000) as usize;
        while let Ok(written @ 1..) = stream.write(&block[at..]) {
            sent += written as u64;
            since = Instant::now();
            at = (at + written) % (block.len() - 1);
            if sent >= bytes {
                break;
            }
        }
    }
    eprintln!("port {port}: {sent} bytes over {connections} connections");
}

#[test]
fn random_bytes_scans_and_idle_connections_change_no_bit() {
    let mib = std::env::var("WINDLASS_TEST_NOISE_MIB").map_or(16, |mib| mib.parse().unwrap());
    // Thousands of connections are held from here.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
    let (disturbed, last) = job(u64::MAX, |ports, progress| {
        let before = progress.clock();
        thread::scope(|scope| {
            let crowds = [&ports.control, &ports.data].map(|ports| scope.spawn(|| idle(ports)));
            let mut crowds = crowds.map(|crowd| crowd.join().unwrap());
            assert!(crowds.iter().all(|crowd| crowd.len() == IDLE));
            progress.until(progress.clock() + 2);
            let scans: Vec<_> = ports.all().map(|port| scope.spawn(move || scan(port))).collect();
            let floods: Vec<_> = ports.all().map(|port| scope.spawn(move || pour(port, mib << 20))).collect();
            floods.into_iter().for_each(|flood| flood.join().unwrap());
            let half_closed: Vec<_> = scans.into_iter().flat_map(|scan| scan.join().unwrap()).collect();
            // The workers go on while all of it is there.
            progress.until(progress.clock() + 2);
            drop(half_closed);
            // Nobody was let in: what strangers were told, if anything, is the end.
            for stream in crowds.iter_mut().flatten() {
                stream.set_nonblocking(true).unwrap();
                assert!(!matches!(stream.read(&mut [0; 64]), Ok(1..)));
            }
        });
        eprintln!("clocks {before} to {} under noise of {mib} MiB a port", progress.clock());
        progress.stop();
    });
    let (undisturbed, _) = job(last, |_, _| {});
    assert!(undisturbed.iter().any(|bits| *bits != 0));
    assert!(disturbed == undisturbed, "the weights differ after {last} clocks");
}
