//! After authentication: a peer that knows the key and breaks the rules, or breaks off.

use std::io::Write as _;
use std::net::Shutdown;

use windlass::error::Error;
use windlass::mem::Rights;
use windlass::transport::tcp::TcpConfig;
use windlass::transport::{Completion, Message, Refusal, Write};

use super::raw::{Frame, peer, pour, receive, server};
use crate::rig::{Random, write_to};

#[test]
fn every_field_is_checked_and_named() {
    let (mut net, address) = server(TcpConfig::default());
    let write = Frame { kind: 1, ..Frame::default() };
    let send = Frame { kind: 2, ..Frame::default() };
    let read = Frame { kind: 3, ..Frame::default() };
    // (field, frame, whether its key is replaced by the granted one)
    let cases = [
        ("kind", Frame { kind: 0, ..write }, false),
        ("kind", Frame { kind: 5, ..write }, false),
        ("kind", Frame { kind: 4, ..write }, false),
        ("flags", Frame { flags: 2, ..write }, true),
        ("flags", Frame { flags: 1, ..send }, false),
        ("reserved", Frame { reserved: 1, ..write }, true),
        ("imm", Frame { imm: 1, ..write }, true),
        ("read", Frame { read: 1, ..write }, true),
        ("key", Frame { key: 1, ..send }, false),
        ("key", Frame { key: 0, ..write }, false),
        ("key", Frame { key: u32::MAX, ..read }, false),
        ("offset", Frame { offset: 4097, ..write }, true),
        ("offset", Frame { offset: u64::MAX, length: 1, ..write }, true),
        ("length", Frame { offset: 1, length: 4096, ..write }, true),
        ("length", Frame { length: u32::MAX, ..write }, true),
        ("length", Frame { length: 257, ..send }, false),
        ("length", Frame { length: 4097, ..read }, true),
    ];
    for (expected, mut frame, granted) in cases {
        let (id, mut stream) = peer(&mut net, address);
        let remote = net.ends[0].grant(id, 0, 4096, Rights::ReadWrite);
        if granted {
            frame.key = remote.key;
        }
        stream.write_all(&frame.bytes()).unwrap();
        match net.closed(0, id) {
            Some(Error::Protocol { peer, field, .. }) => {
                assert_eq!(field, expected);
                assert!(peer.contains("raw peer") && peer.contains("127.0.0.1"), "{peer}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert!(net.ends[0].seen.is_empty());
}

#[test]
fn random_frames_never_panic() {
    let (mut net, address) = server(TcpConfig::default());
    for seed in 0..60 {
        let mut random = Random(seed);
        let (id, mut stream) = peer(&mut net, address);
        let remote = net.ends[0].grant(id, 0, 4096, Rights::ReadWrite);
        for _ in 0..30 {
            let mut bytes = Frame {
                kind: 1 + random.below(4) as u8,
                key: remote.key,
                length: random.below(5000) as u32,
                ..Frame::default()
            }
            .bytes();
            if random.below(4) == 0 {
                let at = random.below(32);
                bytes[at] = random.next() as u8;
            }
            let tail = random.below(300);
            bytes.extend(random.bytes(tail));
            if !pour(&mut net, &mut stream, &bytes) {
                break;
            }
        }
        drop(stream);
        assert!(net.closed(0, id).is_some());
        net.ends[0].seen.clear();
    }
}

#[test]
fn half_closed_is_lost_but_what_came_before_counts() {
    let (mut net, address) = server(TcpConfig::default());
    let (id, mut stream) = peer(&mut net, address);
    let mut bytes = Frame { kind: 2, length: 4, ..Frame::default() }.bytes();
    bytes.extend_from_slice(b"last");
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(net.received(0, id), b"last");
    let reason = net.closed(0, id);
    assert!(
        matches!(&reason, Some(Error::PeerLost { reason, .. }) if !reason.contains("middle")),
        "{reason:?}"
    );
}

#[test]
fn cut_in_the_middle_of_a_frame() {
    let whole = |key| Frame { kind: 1, flags: 1, key, length: 100_000, ..Frame::default() }.bytes();
    for (cut, reset) in [(1, false), (31, true), (32, false), (5000, true), (99_000, false), (100_031, true)]
    {
        let (mut net, address) = server(TcpConfig::default());
        let (id, mut stream) = peer(&mut net, address);
        let remote = net.ends[0].grant(id, 0, 1 << 20, Rights::Write);
        let mut bytes = whole(remote.key);
        bytes.resize(100_032, 7);
        assert!(pour(&mut net, &mut stream, &bytes[..cut]));
        net.settle(20);
        if reset {
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
        drop(stream);
        let reason = net.closed(0, id);
        assert!(
            matches!(&reason, Some(Error::PeerLost { reason, .. }) if reason.contains("middle of a frame")),
            "{cut}: {reason:?}"
        );
        assert!(net.ends[0].seen.is_empty(), "no Written: {:?}", net.ends[0].seen);
    }
}

#[test]
fn frames_may_come_in_any_pieces() {
    let (mut net, address) = server(TcpConfig::default());
    let (id, mut stream) = peer(&mut net, address);
    stream.set_nodelay(true).unwrap();
    let remote = net.ends[0].grant(id, 100, 1 << 20, Rights::Write);
    let mut random = Random(4);
    let (mut bytes, mut bodies) = (Vec::new(), Vec::new());
    for imm in 0..20u32 {
        let length = random.below(9000);
        let frame =
            Frame { kind: 1, flags: 1, key: remote.key, length: length as u32, imm, ..Frame::default() };
        let body = random.bytes(length);
        bytes.extend(Frame { offset: u64::from(imm) * 9000, ..frame }.bytes());
        bytes.extend_from_slice(&body);
        bodies.push(body);
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let most = if random.below(4) == 0 { 6000 } else { 40 };
        let (piece, behind) = rest.split_at((1 + random.below(most)).min(rest.len()));
        assert!(pour(&mut net, &mut stream, piece));
        net.settle(random.below(3));
        rest = behind;
    }
    for (imm, body) in bodies.iter().enumerate() {
        assert_eq!(net.written(0, id), (imm as u32, body.len() as u32));
        assert!(net.ends[0].bytes(100 + imm * 9000, body.len()) == *body);
    }
}

#[test]
fn reads_without_taking_the_answers_end_the_endpoint() {
    let (mut net, address) = server(TcpConfig::default());
    let (id, mut stream) = peer(&mut net, address);
    let remote = net.ends[0].grant(id, 0, 1 << 20, Rights::Read);
    let mut sent = 0;
    loop {
        let frame = Frame { kind: 3, key: remote.key, length: 1 << 20, read: sent, ..Frame::default() };
        sent += 1;
        assert!(sent < 10_000, "it goes on for ever");
        if !pour(&mut net, &mut stream, &frame.bytes()) {
            break;
        }
        net.step();
        if !net.ends[0].seen.is_empty() {
            break;
        }
    }
    assert!(matches!(net.closed(0, id), Some(Error::Protocol { field: "read", .. })));
}

#[test]
fn answers_carry_the_bytes_and_the_number() {
    let (mut net, address) = server(TcpConfig::default());
    let (id, mut stream) = peer(&mut net, address);
    let remote = net.ends[0].grant(id, 8, 4096, Rights::Read);
    let bytes = Random(3).bytes(4096);
    net.ends[0].fill(8, &bytes);
    for read in [0, 1, u64::MAX] {
        let frame = Frame { kind: 3, key: remote.key, offset: 96, length: 4000, read, ..Frame::default() };
        stream.write_all(&frame.bytes()).unwrap();
        let head = receive(&mut net, &mut stream, 32);
        assert_eq!(head, Frame { kind: 4, length: 4000, read, ..Frame::default() }.bytes());
        assert!(receive(&mut net, &mut stream, 4000) == bytes[96..]);
    }
}

#[test]
fn a_peer_that_does_not_read_blocks_nobody() {
    let (mut net, address) = server(TcpConfig::default());
    let (slow, mut stream) = peer(&mut net, address);
    let (other, mut listening) = peer(&mut net, address);
    let length = 100_000usize;
    let remote = windlass::mem::RemoteRegion { address: 0, length: 1 << 30, key: 9, rights: Rights::Write };
    // Until nothing goes any more, however often it is polled.
    let (mut posted, mut refused_in_a_row) = (0u32, 0);
    while refused_in_a_row < 2000 {
        let body = net.ends[0].pinned(0, length);
        let write = Write { body, imm: Some(posted), context: Some(posted.into()), ..write_to(remote, 0) };
        match net.ends[0].transport.write(slow, write) {
            Ok(()) => (posted, refused_in_a_row) = (posted + 1, 0),
            Err(rejected) => {
                assert_eq!(rejected.refusal, Refusal::Full);
                refused_in_a_row += 1;
            }
        }
        net.step();
    }
    let depth = net.ends[0].transport.caps().queue_depth;
    let done = net.ends[0].seen.iter().filter(|c| matches!(c, Completion::Done { .. })).count();
    assert_eq!(posted as usize - done, depth, "what is not done waits in the queue");
    // The other endpoint is served as ever, and the thread may sleep.
    net.ends[0].transport.send(other, Message::new(b"hello").unwrap()).unwrap();
    assert_eq!(receive(&mut net, &mut listening, 37)[32..], *b"hello");
    assert!(net.ends[0].transport.arm(), "a full socket is no work");
    for imm in 0..posted {
        let head = receive(&mut net, &mut stream, 32);
        let expected = Frame { kind: 1, flags: 1, key: 9, length: length as u32, imm, ..Frame::default() };
        assert_eq!(head, expected.bytes());
        receive(&mut net, &mut stream, length);
    }
    for context in 0..posted {
        assert_eq!(net.done(0, slow), u64::from(context));
    }
}

#[test]
fn withdrawn_under_a_half_received_write() {
    let (mut net, address) = server(TcpConfig::default());
    let (id, mut stream) = peer(&mut net, address);
    let remote = net.ends[0].grant(id, 0, 1 << 20, Rights::Write);
    let mut bytes = Frame { kind: 1, flags: 1, key: remote.key, length: 100_000, ..Frame::default() }.bytes();
    bytes.resize(50_000, 7);
    assert!(pour(&mut net, &mut stream, &bytes));
    net.until("the first half", |net| net.ends[0].bytes(49_000, 1) == [7]);
    net.ends[0].transport.withdraw(id, &remote).unwrap();
    net.ends[0].fill(0, &[1; 100_000]);
    let _ = stream.write_all(&[8; 50_032]);
    assert!(matches!(net.closed(0, id), Some(Error::Protocol { field: "key", .. })));
    net.settle(100);
    assert!(net.ends[0].bytes(0, 100_000) == [1; 100_000], "written after the withdrawal");
}
