//! Everything ends in time, and the deadline itself wakes a sleeper.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use windlass::error::Error;
use windlass::mem::{RemoteRegion, Rights};
use windlass::transport::tcp::TcpConfig;
use windlass::transport::{Completion, Side, Write};

use super::raw::{dial, expecting, is_closed, peer, receive, server, stranger};
use crate::rig::{Net, write_to};

const SHORT: Duration = Duration::from_millis(250);

fn hurried() -> TcpConfig {
    TcpConfig { preamble_timeout: SHORT, connect_timeout: SHORT, ..TcpConfig::default() }
}

fn reason_by_sleeping(net: &mut Net) -> Error {
    net.until_sleeping("Closed", |net| !net.ends[0].seen.is_empty());
    match net.ends[0].seen.pop() {
        Some(Completion::Closed { reason: Some(reason), .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_dials() {
    let (mut net, _) = server(hurried());
    let start = Instant::now();
    expecting(&mut net);
    let reason = reason_by_sleeping(&mut net);
    assert!(
        matches!(&reason, Error::Timeout { waited_for, after } if waited_for.contains("raw peer") && *after == SHORT)
    );
    assert!(start.elapsed() >= SHORT);
}

#[test]
fn nobody_listens() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut net, _) = server(hurried());
    let (a, _) = net.ends[0].transport.open(Side::Active, "server 9").unwrap();
    let address = [&[4, 127, 0, 0, 1][..], &gone.port().to_le_bytes(), &[0; 8]].concat();
    match net.ends[0].transport.connect(a, &address, &[0; 32]) {
        Ok(()) => {
            let reason = reason_by_sleeping(&mut net);
            assert!(matches!(reason, Error::Io { operation: "connect", .. }), "{reason:?}");
        }
        Err(error) => assert!(matches!(error, Error::Io { operation: "connect", .. })),
    }
}

#[test]
fn the_dialled_one_says_nothing() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut net, _) = server(hurried());
    let (a, _) = net.ends[0].transport.open(Side::Active, "server 9").unwrap();
    let port = mute.local_addr().unwrap().port();
    let address = [&[4, 127, 0, 0, 1][..], &port.to_le_bytes(), &[0; 8]].concat();
    net.ends[0].transport.connect(a, &address, &[0; 32]).unwrap();
    let reason = reason_by_sleeping(&mut net);
    assert!(matches!(&reason, Error::Timeout { waited_for, .. } if waited_for.contains("server 9")));
}

/// The window stays closed for many times the limit, and the connection lives: its host answers every probe.
#[test]
fn a_peer_that_only_computes_is_not_lost() {
    let limit = Duration::from_millis(200);
    let (mut net, address) = server(TcpConfig { lost_after: limit, ..TcpConfig::default() });
    let (id, mut stream) = peer(&mut net, address);
    let remote = RemoteRegion { address: 0, length: 1 << 30, key: 9, rights: Rights::Write };
    let (start, mut posted) = (Instant::now(), 0usize);
    while start.elapsed() < 10 * limit {
        let body = net.ends[0].pinned(0, 100_000);
        if net.ends[0].transport.write(id, Write { body, ..write_to(remote, 0) }).is_ok() {
            posted += 1;
        }
        net.step();
        assert!(net.ends[0].seen.is_empty(), "{:?}", net.ends[0].seen);
    }
    for _ in 0..posted {
        receive(&mut net, &mut stream, 100_032);
    }
}

#[test]
fn a_slow_drip_is_cut_off() {
    let (mut net, address) = server(TcpConfig { preamble_timeout: SHORT, ..TcpConfig::default() });
    let id = expecting(&mut net);
    let mut stream = stranger(address);
    let first = dial(id, [1; 32]);
    let start = Instant::now();
    let mut sent = 0;
    // A byte every 20 ms: the whole dial would take a second.
    net.until_sleeping("the drip's end", |_| {
        if sent < first.len() && start.elapsed() > Duration::from_millis(20) * sent as u32 {
            let _ = stream.write(&first[sent..=sent]);
            sent += 1;
        }
        is_closed(&mut stream)
    });
    assert!(start.elapsed() >= SHORT && sent < first.len(), "{sent} bytes in {:?}", start.elapsed());
    peer(&mut net, address);
}
