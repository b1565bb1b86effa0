//! Before authentication: whatever comes costs nobody but the connection it came on.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use windlass::error::Error;
use windlass::transport::tcp::{Tcp, TcpConfig};
use windlass::transport::{EndpointId, Side};

use super::Loopback;
use super::raw::{dial, expecting, is_closed, peer, receive, receive_or_end, server, stranger};
use crate::rig::{Net, Random};

#[test]
fn garbage_is_dropped_and_peers_go_on() {
    let (mut net, address) = server(TcpConfig::default());
    let id = expecting(&mut net);
    let mut random = Random(11);
    let mut streams = Vec::new();
    for length in [48, 49, 100, 5000] {
        for _ in 0..5 {
            let mut stream = stranger(address);
            stream.write_all(&random.bytes(length)).unwrap();
            streams.push(stream);
        }
    }
    // Right in form, for endpoints that are not there.
    for (index, generation) in [(id.index + 1, 0), (u32::MAX, 0), (id.index, id.generation + 1)] {
        let mut stream = stranger(address);
        let nobody = windlass::transport::EndpointId { index, generation };
        stream.write_all(&dial(nobody, [2; 32])).unwrap();
        streams.push(stream);
    }
    for mut stream in streams {
        net.until("the stranger's end", |_| is_closed(&mut stream));
    }
    // A dial for the right endpoint with a proof out of thin air.
    let mut liar = stranger(address);
    liar.write_all(&dial(id, [3; 32])).unwrap();
    receive(&mut net, &mut liar, 32);
    liar.write_all(&[4; 32]).unwrap();
    net.until("the liar's end", |_| is_closed(&mut liar));
    assert!(net.ends[0].seen.is_empty(), "{:?}", net.ends[0].seen);
    peer(&mut net, address);
}

#[test]
fn a_replayed_proof_is_worthless() {
    let (mut net, address) = server(TcpConfig::default());
    let id = expecting(&mut net);
    let first = dial(id, [3; 32]);
    let mut recorded = [0; 32];
    for round in 0..2 {
        let mut stream = stranger(address);
        stream.write_all(&first).unwrap();
        let nonce = receive(&mut net, &mut stream, 32);
        if round == 0 {
            // What the right peer would have answered here, seen by an eavesdropper, whose own try comes next.
            let mut hasher = blake3::Hasher::new_keyed(&super::raw::KEY);
            hasher.update(b"windlass tcp preamble 1: active ").update(&first).update(&nonce);
            recorded = *hasher.finalize().as_bytes();
            continue;
        }
        stream.write_all(&recorded).unwrap();
        net.until("the end of the replay", |_| is_closed(&mut stream));
    }
    assert!(net.ends[0].seen.is_empty());
}

#[test]
fn a_flood_of_connections_is_bounded() {
    let config = TcpConfig { max_pending: 8, ..TcpConfig::default() };
    let (mut net, address) = server(config);
    let mut flood: Vec<_> = (0..100).map(|_| stranger(address)).collect();
    net.until("the oldest to lose their places", |_| flood.iter_mut().take(92).all(is_closed));
    assert!(!flood.iter_mut().skip(92).any(is_closed), "the youngest keep theirs");
    peer(&mut net, address);
}

#[test]
fn wrong_key_is_refused_and_named() {
    let config = TcpConfig { connect_timeout: Duration::from_millis(400), ..TcpConfig::default() };
    let mut net = Net::new(&Loopback(config), 2);
    let (a, to_a) = net.ends[0].transport.open(Side::Active, "server 5").unwrap();
    let (b, to_b) = net.ends[1].transport.open(Side::Passive, "worker 3").unwrap();
    net.ends[1].transport.connect(b, &to_a, &[1; 32]).unwrap();
    net.ends[0].transport.connect(a, &to_b, &[2; 32]).unwrap();
    let active = net.closed(0, a).unwrap();
    assert!(matches!(&active, Error::Refused { peer, .. } if peer.contains("server 5")), "{active:?}");
    let passive = net.closed(1, b).unwrap();
    assert!(matches!(&passive, Error::Timeout { .. }), "{passive:?}");
    let text = passive.to_string();
    assert!(text.contains("worker 3") && text.contains("1 dialled with another key"), "{text}");
    let (a, b) = net.join(0, 1);
    net.ping((0, a), (1, b));
}

#[test]
fn a_listener_without_the_key_is_no_server() {
    // The dialler asks for a proof too: an impostor on the server's port gets nowhere.
    let impostor = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut net, _) = server(TcpConfig::default());
    let (a, _) = net.ends[0].transport.open(Side::Active, "server 1").unwrap();
    let std::net::SocketAddr::V4(at) = impostor.local_addr().unwrap() else { panic!() };
    let address = [&[4], at.ip().octets().as_slice(), &at.port().to_le_bytes(), &[0; 8]].concat();
    net.ends[0].transport.connect(a, &address, &[1; 32]).unwrap();
    let (mut stream, _) = impostor.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    receive(&mut net, &mut stream, 48);
    stream.write_all(&[5; 32]).unwrap();
    let proof = receive(&mut net, &mut stream, 32);
    // Its own proof sent back must not do either.
    stream.write_all(&proof).unwrap();
    let reason = net.closed(0, a).unwrap();
    assert!(matches!(&reason, Error::Protocol { field: "proof", .. }), "{reason:?}");
}

#[test]
fn the_dial_may_come_before_the_key() {
    let mut net = Net::new(&Loopback::default(), 2);
    let (a, to_a) = net.ends[0].transport.open(Side::Active, "server").unwrap();
    let (b, to_b) = net.ends[1].transport.open(Side::Passive, "worker").unwrap();
    net.ends[0].transport.connect(a, &to_b, &[1; 32]).unwrap();
    net.settle(200);
    assert!(net.ends.iter().all(|e| e.seen.is_empty()));
    net.ends[1].transport.connect(b, &to_a, &[1; 32]).unwrap();
    net.connected(0, a);
    net.connected(1, b);
    net.ping((0, a), (1, b));
}

#[test]
fn calls_that_cannot_work_say_why() {
    let mut tcp = Tcp::new(TcpConfig { listen: false, ..TcpConfig::default() }).unwrap();
    use windlass::transport::Transport as _;
    assert!(matches!(tcp.open(Side::Passive, "x"), Err(Error::Misuse { call: "open", .. })));
    let (id, _) = tcp.open(Side::Active, "server 2").unwrap();
    for address in [&[][..], &[0], &[4, 1, 2], &[9; 15], &[6; 28]] {
        let error = tcp.connect(id, address, &[0; 32]).unwrap_err();
        assert!(matches!(&error, Error::Protocol { peer, field: "address", .. } if peer == "server 2"));
    }
    let mut net = Net::new(&Loopback::default(), 2);
    let (a, b) = net.join(0, 1);
    assert!(matches!(net.ends[1].transport.connect(b, &[0], &[0; 32]), Err(Error::Misuse { .. })));
    net.ping((0, a), (1, b));
}

/// A flood that takes every place as soon as it is free: a newcomer keeps its own long enough to prove itself.
#[test]
fn a_peer_gets_in_during_a_flood() {
    let (mut net, address) = server(TcpConfig { max_pending: 16, ..TcpConfig::default() });
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _ends = StopFlood(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                let mut held = VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    // With the backlog full, a connect that waits would outlive the test.
                    held.extend(TcpStream::connect_timeout(&address, Duration::from_millis(50)));
                    made.fetch_add(1, Ordering::Relaxed);
                    held.drain(..held.len().saturating_sub(100));
                }
            });
        }
        net.until("the flood", |_| made.load(Ordering::Relaxed) > 100);
        // On a busy machine it may be scheduled too late to use its time; then it dials again, as every peer does.
        let got_in = (0..100).any(|_| prove(&mut net, address));
        assert!(got_in, "100 newcomers were all pushed out");
    });
}

/// Ends the flood also when the test fails: its threads are waited for.
struct StopFlood<'a>(&'a AtomicBool);

impl Drop for StopFlood<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether a right peer that dials once becomes connected.
fn prove(net: &mut Net, address: SocketAddr) -> bool {
    let id = expecting(net);
    prove_as(net, address, id)
}

fn prove_as(net: &mut Net, address: SocketAddr, id: EndpointId) -> bool {
    // Only this thread empties the backlog: a connect that waits for room in it would wait in vain.
    let connected = TcpStream::connect_timeout(&address, Duration::from_millis(50));
    net.settle(5);
    let Ok(mut stream) = connected else { return false };
    stream.set_nonblocking(true).unwrap();
    let first = dial(id, [1; 32]);
    if stream.write_all(&first).is_err() {
        return false; // pushed out already
    }
    let Some(nonce) = receive_or_end(net, &mut stream, 32) else { return false };
    let mut hasher = blake3::Hasher::new_keyed(&super::raw::KEY);
    hasher.update(b"windlass tcp preamble 1: active ").update(&first).update(&nonce);
    stream.write_all(hasher.finalize().as_bytes()).is_ok() && receive_or_end(net, &mut stream, 32).is_some()
}

/// Wherever a peer dies before it has proved itself, it costs nobody but itself: the one that it claimed to be gets in.
#[test]
fn death_at_every_byte_of_the_preamble() {
    let (mut net, address) = server(TcpConfig::default());
    for length in 0..80 {
        let id = expecting(&mut net);
        let first = dial(id, [1; 32]);
        let mut stream = stranger(address);
        stream.write_all(&first[..length.min(48)]).unwrap();
        if length >= 48 {
            receive(&mut net, &mut stream, 32);
            stream.write_all(&vec![9; length - 48]).unwrap();
        }
        if length % 2 == 0 {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(stream);
        net.settle(5);
        assert!(net.ends[0].seen.is_empty(), "{length}: {:?}", net.ends[0].seen);
        assert!(prove_as(&mut net, address, id), "{length}");
        net.connected(0, id);
        net.ends[0].transport.close(id);
        net.closed(0, id);
    }
}
