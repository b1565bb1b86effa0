//! The suite over the simulated network, and what only a simulation can show: faults at a chosen moment.

use std::time::{Duration, Instant};

use windlass::mem::Rights;
use windlass::transport::sim::{SimNetwork, SimNode, SimOptions};
use windlass::transport::{Completion, Payload, Transport, Write};

use crate::rig::{End, Fabric, Net, pair, write_to};

/// Transports of one network.
pub struct Loopback(pub SimNetwork);

impl Default for Loopback {
    fn default() -> Loopback {
        Loopback(SimNetwork::new(1, SimOptions::default()))
    }
}

impl Fabric for Loopback {
    fn transport(&self) -> Box<dyn Transport> {
        Box::new(self.0.transport("end").unwrap())
    }
}

/// Up to 300 writes of 100 bytes, each to a place of its own, until both sides have noticed that the connection is lost.
struct Broken {
    net: Net,
    posted: usize,
    /// The numbers that were announced, in order.
    announced: Vec<u32>,
}

impl Broken {
    fn new(seed: u64) -> Broken {
        let fabric = Loopback(SimNetwork::new(seed, SimOptions::default()));
        let mut p = pair(&fabric);
        fabric.0.set_losses(30_000, 1);
        let remote = p.net.ends[1].grant(p.b, 0, 1 << 20, Rights::Write);
        let pool = p.net.ends[0].pool(100, 64);
        let mut posted = 0;
        let closed = |net: &Net, end: usize| {
            net.ends[end].seen.iter().any(|c| matches!(c, Completion::Closed { reason: Some(_), .. }))
        };
        while !closed(&p.net, 0) || !closed(&p.net, 1) {
            if let Some(mut buf) = pool.lease(100).filter(|_| posted < 300) {
                buf.copy_in(0, &[1 + (posted % 250) as u8; 100]);
                let offset = (posted * 100) as u64;
                let (body, imm) = (Some(Payload::Owned(buf)), Some(posted as u32));
                let taken =
                    p.net.ends[0].transport.write(p.a, Write { body, imm, ..write_to(remote, offset) });
                posted += usize::from(taken.is_ok());
            }
            p.net.step();
        }
        let back: Vec<_> = std::iter::from_fn(|| pool.lease(1)).collect();
        assert_eq!(back.len(), 64, "what it held came back");
        let announced = p.net.ends[1].seen.iter().filter_map(|c| match c {
            Completion::Written { imm, .. } => Some(*imm),
            _ => None,
        });
        let announced = announced.collect();
        Broken { net: p.net, posted, announced }
    }
}

#[test]
fn a_lost_connection_delivers_a_beginning_and_tears_at_most_one_write() {
    let (mut lost, mut torn) = (0, 0);
    for seed in 0..60 {
        let broken = Broken::new(seed);
        let whole = broken.announced.len();
        assert_eq!(broken.announced, (0..whole as u32).collect::<Vec<_>>(), "seed {seed}: not a beginning");
        for number in 0..broken.posted {
            let bytes = broken.net.ends[1].bytes(number * 100, 100);
            let arrived = bytes.iter().filter(|&&b| b != 0).count();
            assert!(
                bytes[..arrived].iter().all(|&b| b == 1 + (number % 250) as u8),
                "seed {seed}: other bytes"
            );
            assert!(number >= whole || arrived == 100, "seed {seed}: announced, not there");
            assert!(number <= whole || arrived == 0, "seed {seed}: more than one write torn");
            torn += usize::from(number == whole && arrived > 0 && arrived < 100);
        }
        lost += broken.posted - whole;
    }
    assert!(lost > 20 && torn > 10, "{lost} lost, {torn} torn");
}

#[test]
fn a_partition_delays_and_a_long_one_breaks_connections() {
    let fabric = Loopback::default();
    for (time, breaks) in [(5, false), (50, true)] {
        let (a, b) = (fabric.0.transport("a").unwrap(), fabric.0.transport("b").unwrap());
        let (apart, time) = (a.node(), Duration::from_millis(time));
        let mut net = Net::of(vec![End::new(Box::new(a)), End::new(Box::new(b))]);
        let (a, b) = net.join(0, 1);
        net.ping((0, a), (1, b));
        let start = fabric.0.now();
        fabric.0.partition(&[apart], time);
        net.send(0, a, b"late");
        if breaks {
            assert!(net.closed(0, a).is_some() && net.closed(1, b).is_some());
        } else {
            assert_eq!(net.received(1, b), b"late");
            assert!(fabric.0.now() - start >= time, "it came through");
        }
    }
}

#[test]
fn a_restarted_node_is_a_stranger_to_old_endpoints_and_can_connect_anew() {
    let fabric = Loopback::default();
    let mut net = Net::new(&fabric, 2);
    let (a, b) = net.join(0, 1);
    let node = fabric.0.transport("end 1 again").unwrap();
    let crashed = std::mem::replace(&mut net.ends[1], End::new(Box::new(node)));
    drop(crashed);
    assert!(net.closed(0, a).is_some(), "its peer notices");
    net.settle(50);
    assert!(net.ends[1].seen.is_empty(), "what was its predecessor's reaches it: {:?}", net.ends[1].seen);
    let (a2, b2) = net.join(0, 1);
    assert!(a2 != a && b2 == b, "a number means its own node's endpoint");
    net.ping((0, a2), (1, b2));
}

/// Nodes that sleep for hours.
fn sleepers(seed: u64) -> (u64, Duration) {
    let network = SimNetwork::new(seed, SimOptions::default());
    for number in 0..4 {
        let body = move |node: SimNode| {
            node.doing("sleeping");
            node.sleep(Duration::from_secs(3600 * number));
            node.doing("done");
        };
        network.spawn(&format!("node {number}"), body).unwrap();
    }
    let start = Instant::now();
    network.run().unwrap_or_else(|failure| panic!("{failure}"));
    assert!(start.elapsed() < Duration::from_secs(3600), "virtual hours are not waited for");
    (network.trace(), network.now())
}

#[test]
fn virtual_time_passes_by_itself_and_a_seed_gives_the_same_run() {
    assert_eq!(sleepers(1), sleepers(1));
    assert_ne!(sleepers(1).0, sleepers(2).0);
    assert_eq!(sleepers(3).1, Duration::from_secs(3 * 3600));
}

#[test]
fn a_panic_ends_the_simulation_and_says_where() {
    let network = SimNetwork::new(9, SimOptions::default());
    network.spawn("waiting", |node| node.wait_for("never", || false)).unwrap();
    network.spawn("failing", |node| node.fail("on purpose")).unwrap();
    let failure = network.run().unwrap_err().to_string();
    assert!(failure.starts_with("seed 9 ") && failure.contains("failing: on purpose"), "{failure}");
}
