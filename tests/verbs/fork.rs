//! A worker whose process forks in mid-job, with buffers of its client registered: the job goes on, and no bit changes.
//!
//! The client has threads, so a child without exec may only call what is safe in a signal's handler. It can't use its parent's client,
//! and does not try.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::types::OptimizerSpec;
use windlass::{Client, ClientConfig, KeyRange, TableSpec};

use super::common::job::Job;
use super::has_device;

const WORKERS: u32 = 2;
const LENGTH: usize = 20_000;
const CLOCKS: u32 = 8;

/// Steps of a worker with two registered buffers: what one brought is in what the other takes.
struct Work {
    client: Client,
    table: windlass::Table,
    both: windlass::client::Buffer,
    pulled: windlass::client::Buffer,
    weights: Vec<f32>,
    clock: u32,
}

impl Work {
    fn begin(config: ClientConfig) -> Work {
        let client = Client::connect(config).unwrap();
        let rule = OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0);
        let table = client.table(&TableSpec::dense("w", &[LENGTH as u64]).optimizer(rule)).unwrap();
        let (both, pulled) = (client.buffer(LENGTH).unwrap(), client.buffer(LENGTH).unwrap());
        let mut work = Work { client, table, both, pulled, weights: vec![0.0; LENGTH], clock: 0 };
        work.clocks(1);
        work
    }

    /// Clocks, of which each writes to all pages of a buffer, has the device read and write them, and have it write those of another.
    fn clocks(&mut self, count: u32) {
        let all = KeyRange::new(0, LENGTH as u64).unwrap();
        for _ in 0..count {
            let (rank, clock) = (self.client.rank() as f32, self.clock as f32);
            let gradient = |(i, w): (usize, &f32)| w + (i % 97) as f32 * 0.01 - rank * 0.3 + clock * 0.1;
            let gradients: Vec<f32> = self.weights.iter().enumerate().map(gradient).collect();
            self.both.write(0, &gradients).unwrap();
            let ticket = self.table.push_pull_range_buffer(all, &mut self.both, 0).unwrap();
            self.client.clock().unwrap();
            ticket.wait_version().unwrap();
            self.both.read(0, &mut self.weights).unwrap();
            self.table.pull_range_buffer(all, &mut self.pulled, 0).unwrap();
            let mut pulled = vec![0.0f32; LENGTH];
            self.pulled.read(0, &mut pulled).unwrap();
            assert!(pulled == self.weights, "clock {}", self.clock);
            self.clock += 1;
        }
    }

    fn end(mut self) -> Vec<u32> {
        self.clocks(CLOCKS - self.clock);
        self.client.finish().unwrap();
        self.client.finalize().unwrap();
        self.weights.iter().map(|w| w.to_bits()).collect()
    }
}

/// A child that lives until it is told to go on.
struct Held {
    go: UnixStream,
    waits: UnixStream,
}

impl Held {
    fn new() -> Held {
        let (go, waits) = UnixStream::pair().unwrap();
        Held { go, waits }
    }

    /// What the child calls: says that it is there, and waits. Only system calls.
    fn hold(&self) -> impl Fn() + Send + Sync + 'static {
        let (go, waits) = (self.go.as_raw_fd(), self.waits.as_raw_fd());
        move || {
            let mut byte = [1u8];
            // SAFETY: closes the child's own copy, so that the parent's end ends this, too; writes and reads one byte that is ours.
            unsafe {
                libc::close(go);
                libc::write(waits, byte.as_ptr().cast(), 1);
                libc::read(waits, byte.as_mut_ptr().cast(), 1);
            }
        }
    }

    fn until_it_waits(&mut self) {
        self.go.read_exact(&mut [0]).unwrap();
    }

    fn let_go(&mut self) {
        self.go.write_all(&[1]).unwrap();
    }
}

/// What a worker learns whose process forks while it trains.
fn forking(mut work: Work) -> Vec<u32> {
    // A fork without exec, whose child shares all pages for some clocks.
    let mut held = Held::new();
    let hold = held.hold();
    // SAFETY: the child makes system calls only, until it ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        hold();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(7) };
    }
    assert!(child > 0);
    held.until_it_waits();
    work.clocks(2);
    held.let_go();
    let mut status = 0;
    // SAFETY: waits for our own child; `status` is ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(libc::WEXITSTATUS(status), 7);
    // A fork, some clocks, and exec. `spawn` waits for the latter, so another thread calls it.
    let mut held = Held::new();
    let hold = held.hold();
    let mut command = Command::new("sh");
    command.args(["-c", "exit 8"]);
    let held_before_exec = move || {
        hold();
        Ok(())
    };
    // SAFETY: makes system calls only.
    unsafe { command.pre_exec(held_before_exec) };
    let child = thread::spawn(move || command.status().unwrap().code());
    held.until_it_waits();
    work.clocks(2);
    held.let_go();
    assert_eq!(child.join().unwrap(), Some(8));
    // As programs usually start others.
    let said = Command::new("sh").args(["-c", "echo said"]).output().unwrap();
    assert_eq!(said.stdout, b"said\n");
    work.end()
}

/// What worker 0 learns.
fn train(kind: TransportKind, worker_0: fn(Work) -> Vec<u32>) -> Vec<u32> {
    let network = Network { transport: TransportChoice::Only(kind), ..Network::default() };
    let job = Job::start_with(1, WORKERS, |server| server.network(network.clone()));
    let worker = |rank, work: fn(Work) -> Vec<u32>| {
        let config = ClientConfig { network: network.clone(), ..job.config(rank) };
        thread::spawn(move || work(Work::begin(config)))
    };
    let workers = [worker(0, worker_0), worker(1, Work::end)];
    let [learnt, other] = workers.map(|w| w.join().unwrap());
    assert!(learnt == other && learnt.iter().any(|w| *w != 0));
    job.end();
    learnt
}

#[test]
fn a_worker_that_forks_learns_the_same_bits() {
    if !has_device() {
        return;
    }
    let over_tcp = train(TransportKind::Tcp, Work::end);
    assert!(train(TransportKind::Verbs, forking) == over_tcp, "a fork changed what was learnt");
}
