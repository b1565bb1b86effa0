//! Whole jobs over shared memory.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::thread;

use common::run;
use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
use windlass::types::{Consistency, NonFinite, OptimizerSpec};
use windlass::{Client, ClientConfig, Error, KeyRange, Secret, Server, TableSpec};

/// Two workers on a server of two threads; gives what each returned.
fn job<T: Send + 'static>(
    transport: TransportChoice,
    body: impl Fn(&Client, u32) -> T + Send + Clone + 'static,
) -> Vec<T> {
    let network = Network { transport, ..Network::default() };
    let secret = Secret::generate().unwrap();
    let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(2));
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let server =
        Server::builder(&address, secret.clone()).threads(2).network(network.clone()).start().unwrap();
    let coordinator = thread::spawn(move || coordinator.run());
    let workers: Vec<_> = (0..2)
        .map(|rank| {
            let mut config = ClientConfig::new(&address, secret.clone(), rank, 2);
            config.network = network.clone();
            let body = body.clone();
            thread::spawn(move || {
                let client = Client::connect(config).unwrap();
                let result = body(&client, rank);
                client.finalize().unwrap();
                result
            })
        })
        .collect();
    let results = workers.into_iter().map(|w| w.join().unwrap()).collect();
    coordinator.join().unwrap().unwrap();
    server.run().unwrap();
    results
}

const ELEMENTS: usize = 300_000;

/// Each worker pushes from a registered buffer at an odd place, and from a slice, and pulls into a registered buffer.
fn train(client: &Client, rank: u32) -> (Vec<u32>, u64) {
    let spec = TableSpec::dense("w", &[ELEMENTS as u64]).optimizer(OptimizerSpec::sgd(0.1));
    let table = client.table(&spec).unwrap();
    let all = KeyRange::new(0, ELEMENTS as u64).unwrap();
    let mut gradient = client.buffer(ELEMENTS + 3).unwrap();
    let mut result = client.buffer(ELEMENTS).unwrap();
    let values =
        |clock: u32| move |i: usize| ((i as u32 * 31 + rank * 7 + clock) % 1000) as f32 * 0.001 - 0.3;
    for clock in 0..4 {
        for (i, value) in gradient.as_mut_slice().unwrap()[3..].iter_mut().enumerate() {
            *value = values(clock)(i);
        }
        let copied = client.stats().bytes_copied;
        let ticket = table.push_range_buffer(all, &gradient, 3).unwrap();
        assert_eq!(client.stats().bytes_copied, copied, "a push from a registered buffer copies nothing");
        client.clock().unwrap();
        let mut ticket = ticket;
        ticket.wait().unwrap();
        let slice: Vec<f32> = (0..ELEMENTS).map(values(clock + 100)).collect();
        let mut ticket = table.push_range(all, &slice).unwrap();
        client.clock().unwrap();
        ticket.wait().unwrap();
        table.pull_range_buffer(all, &mut result, 0).unwrap();
    }
    let servers = client.server_stats().unwrap();
    let pinned: u64 = servers.iter().flat_map(|s| &s.threads).map(|t| t.replies_pinned).sum();
    assert!(pinned > 0, "answers are sent from where the parameters lie");
    (result.as_slice().unwrap().iter().map(|v| v.to_bits()).collect(), client.stats().bytes_copied)
}

#[test]
fn buffers_are_read_where_they_lie_and_give_the_same_bits_as_over_tcp() {
    let over = |transport| job(transport, train);
    let tcp = over(TransportChoice::Only(TransportKind::Tcp));
    for transport in [TransportChoice::Only(TransportKind::Shm), TransportChoice::Auto] {
        assert_eq!(over(transport), tcp, "{transport}");
    }
}

/// A worker that changes values while its push is under way harms itself at most: what a table rejects does not get past the look.
#[test]
fn values_that_change_after_they_were_looked_at_are_not_folded() {
    const LENGTH: usize = 1 << 16;
    let odd = job(TransportChoice::Only(TransportKind::Shm), |client, rank| {
        let spec = TableSpec::dense("w", &[LENGTH as u64]).optimizer(OptimizerSpec::sum());
        let table = client.table(&spec.non_finite(NonFinite::Reject)).unwrap();
        let all = KeyRange::new(0, LENGTH as u64).unwrap();
        let mut gradient = client.buffer(LENGTH).unwrap();
        let values = gradient.as_mut_slice().unwrap();
        values.fill(1.0);
        let last = AtomicPtr::new(&raw mut values[LENGTH - 1]);
        let stop = AtomicBool::new(false);
        let mut odd = 0;
        thread::scope(|scope| {
            if rank == 1 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        for value in [f32::NAN, 1.0] {
                            // SAFETY: the buffer outlives the scope, and nobody has a reference to its values. Others read them through
                            // mappings of their own, as they may while a peer writes.
                            unsafe { last.load(Ordering::Relaxed).write_volatile(value) };
                        }
                    }
                });
            }
            for _ in 0..200 {
                let mut ticket = table.push_range_buffer(all, &gradient, 0).unwrap();
                client.clock().unwrap();
                match ticket.wait() {
                    Ok(_) | Err(Error::NonFinite { worker: 1, .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                let mut pulled = vec![0.0; LENGTH];
                table.pull_range(all, &mut pulled).unwrap();
                odd += pulled.iter().filter(|v| !v.is_finite()).count();
            }
            stop.store(true, Ordering::Relaxed);
        });
        odd
    });
    assert_eq!(odd, [0, 0]);
}

#[test]
fn asp_over_memory_loses_and_doubles_nothing() {
    let sums = job(TransportChoice::Only(TransportKind::Shm), |client, _| {
        // A step against the gradient, of its size.
        let spec = TableSpec::dense("w", &[100_000]).optimizer(OptimizerSpec::sgd(1.0));
        let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
        let all = KeyRange::new(0, 100_000).unwrap();
        let mut ones = client.buffer(100_000).unwrap();
        ones.as_mut_slice().unwrap().fill(1.0);
        for _ in 0..50 {
            table.push_range_buffer(all, &ones, 0).unwrap().wait().unwrap();
        }
        client.barrier().unwrap();
        let mut out = client.buffer(100_000).unwrap();
        table.pull_range_buffer(all, &mut out, 0).unwrap();
        out.as_slice().unwrap().to_vec()
    });
    assert!(sums.iter().flatten().all(|v| *v == -100.0));
}

#[test]
fn the_transport_measures_itself_over_memory() {
    for op in ["write", "read"] {
        let ended = run(["bench", op, "--transport", "shm", "--seconds", "0.1", "--json"]).expect(0);
        assert!(ended.stdout.contains("\"transport\":\"shm\""), "{}", ended.stdout);
    }
}
