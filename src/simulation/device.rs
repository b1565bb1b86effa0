//! A whole job over verbs, in real time, whose queue pairs go to ERR at seeded moments: drained, reconnected under a new generation,
//! replayed, deduped, and the same bits. `tests/reconnect.rs` does the same to TCP connections.
//!
//! Needs a device: `scripts/rdma-vm.sh target/debug/deps/windlass-… simulation::device`.

use std::thread;
use std::time::Duration;

use crate::client::{Client, ClientConfig};
use crate::config::{Network, Rdma, TransportChoice, TransportKind};
use crate::proto::secret::Secret;
use crate::server::Server;
use crate::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
use crate::transport::verbs::{available, faults};
use crate::types::{KeyRange, OptimizerSpec, SortedKeys, TableSpec, mix64};

const WORKERS: u32 = 3;
const CLOCKS: u64 = 30;

fn network(kind: TransportKind) -> Network {
    Network {
        transport: TransportChoice::Only(kind),
        // A lost packet is noticed within a second, although the emulated CPU acknowledges.
        rdma: Rdma { timeout: Some(14), retries: 3, ..Rdma::default() },
        reconnect_timeout: Duration::from_secs(60),
        ..Network::default()
    }
}

/// The bits of what was learnt, reconnects and dropped duplicates.
fn train(kind: TransportKind) -> (Vec<u32>, u64, u64) {
    let secret = Secret::generate().unwrap();
    let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(WORKERS));
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let coordinator = thread::spawn(move || coordinator.run());
    let server = Server::builder(&address, secret.clone()).network(network(kind)).start().unwrap();
    let worker = |rank| {
        let mut config = ClientConfig::new(&address, secret.clone(), rank, WORKERS);
        config.network = network(kind);
        thread::spawn(move || work(Client::connect(config).unwrap()))
    };
    let workers: Vec<_> = (0..WORKERS).map(worker).collect();
    let mut learnt: Vec<_> = workers.into_iter().map(|w| w.join().unwrap()).collect();
    coordinator.join().unwrap().unwrap();
    server.run().unwrap();
    learnt.swap_remove(0)
}

fn work(client: Client) -> (Vec<u32>, u64, u64) {
    let rule = OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0);
    let sparse = client.table(&TableSpec::sparse("sparse", 2).optimizer(rule.clone())).unwrap();
    let dense =
        client.table(&TableSpec::dense("dense", &[3000]).segment_bytes(4096).optimizer(rule)).unwrap();
    let (all, range) = ((0..400).collect::<Vec<u64>>(), KeyRange::new(0, 3000).unwrap());
    let (mut weights, mut rows) = (vec![0.0f32; 3000], vec![0.0f32; 200]);
    let mut buffer = client.buffer(3000).unwrap();
    let mut random = u64::from(client.rank()) + 1;
    let mut next = move || {
        random = mix64(random.wrapping_add(0x9E37_79B9_7F4A_7C15));
        (random >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    for clock in 0..CLOCKS {
        let start = ((clock * 7 + u64::from(client.rank()) * 31) % 300) as usize;
        let keys = SortedKeys::new(&all[start..start + 100]).unwrap();
        sparse.pull(keys, &mut rows).unwrap();
        let gradients: Vec<f32> = rows.iter().map(|w| w + next()).collect();
        drop(sparse.push(keys, &gradients).unwrap());
        let gradient: Vec<f32> = weights.iter().map(|w| w + next()).collect();
        if client.rank() == 1 {
            buffer.write(0, &gradient).unwrap();
            let ticket = dense.push_pull_range_buffer(range, &mut buffer, 0).unwrap();
            client.clock().unwrap();
            ticket.wait_version().unwrap();
            buffer.read(0, &mut weights).unwrap();
        } else {
            let ticket = dense.push_pull_range(range, &gradient).unwrap();
            client.clock().unwrap();
            ticket.wait_into(&mut weights).unwrap();
        }
    }
    client.finish().unwrap();
    client.barrier().unwrap();
    let mut learnt = vec![0.0f32; 800];
    sparse.pull(SortedKeys::new(&all).unwrap(), &mut learnt).unwrap();
    learnt.extend(&weights);
    let thread = client.server_stats().unwrap()[0].threads[0];
    client.barrier().unwrap();
    client.finalize().unwrap();
    (learnt.iter().map(|w| w.to_bits()).collect(), thread.reconnects, thread.duplicates_dropped)
}

#[test]
fn queue_pairs_that_fail_change_no_bit() {
    if !available().unwrap().iter().any(|d| d.active) {
        println!("skipped: no RDMA device");
        return;
    }
    let (over_tcp, ..) = train(TransportKind::Tcp);
    let (undisturbed, reconnects, duplicates) = train(TransportKind::Verbs);
    assert_eq!((reconnects, duplicates), (0, 0));
    assert!(undisturbed == over_tcp, "the weights differ from those over tcp");
    faults::begin(7, 40, 12);
    let (disturbed, reconnects, duplicates) = train(TransportKind::Verbs);
    assert_eq!(faults::left(), 0, "not all queue pairs failed");
    println!("{reconnects} reconnects, {duplicates} duplicates dropped");
    assert!(reconnects >= 20 && duplicates > 0, "{reconnects} reconnects, {duplicates} duplicates");
    assert!(undisturbed.iter().any(|b| *b != 0));
    assert!(disturbed == undisturbed, "the weights differ");
}
