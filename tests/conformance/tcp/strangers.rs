//! Before authentication: whatever comes costs nobody but the connection it came on.

use std::io::Write as _;
use std::time::Duration;

use windlass::error::Error;
use windlass::transport::Side;
use windlass::transport::tcp::{Tcp, TcpConfig};

use super::Loopback;
use super::raw::{dial, expecting, is_closed, peer, receive, server, stranger};
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
