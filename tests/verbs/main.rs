//! What only the verbs transport has to show: run it where there is a device, or with
//! `scripts/rdma-vm.sh target/debug/deps/verbs-…`. Without a device every test says that it was skipped.
#![cfg(feature = "verbs")]
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

#[path = "../common/mod.rs"]
mod common;
mod fork;
mod limits;

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use windlass::config::Rdma;
use windlass::config::rdma::Switch;
use windlass::error::Error;
use windlass::mem::{Arena, Pool, RegionId, RegionSlice, Rights};
use windlass::transport::park::park;
use windlass::transport::verbs::{Verbs, VerbsConfig, available};
use windlass::transport::{
    Completion, EndpointId, HEADER, Message, Payload, Read, Refusal, Side, Transport, Write,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> VerbsConfig {
    VerbsConfig { endpoints: 8, ..VerbsConfig::default() }
}

fn with(rdma: Rdma) -> VerbsConfig {
    VerbsConfig { rdma, ..config() }
}

/// One end of a connection: a transport, an arena that it registered, and what came out of it.
struct End {
    transport: Verbs,
    arena: Arc<Arena>,
    region: RegionId,
    endpoint: EndpointId,
    address: Vec<u8>,
    seen: Vec<Completion>,
}

impl End {
    fn new(config: &VerbsConfig, peer: &str) -> End {
        End::opened(config, Side::Active, peer)
    }

    fn opened(config: &VerbsConfig, side: Side, peer: &str) -> End {
        let mut transport = Verbs::new(config).unwrap();
        let arena = Arena::new(1 << 20).unwrap();
        let region = transport.register(arena.clone()).unwrap();
        let (endpoint, address) = transport.open(side, peer).unwrap();
        End { transport, arena, region, endpoint, address, seen: Vec::new() }
    }

    fn slice(&self, offset: usize, length: usize) -> RegionSlice {
        RegionSlice { arena: self.arena.clone(), region: self.region, offset, length }
    }

    fn fill(&self, offset: usize, bytes: &[u8]) {
        let to = self.arena.at(offset, bytes.len());
        // SAFETY: `at` proved the range; the tests fill bytes only while no operation touches them.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    fn read_out(&self, offset: usize, into: &mut [u8]) {
        let from = self.arena.at(offset, into.len());
        // SAFETY: `at` proved the range; the tests look when the operation that writes it has been reported.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
    }

    fn poll(&mut self) {
        self.transport.flush();
        self.transport.poll(&mut self.seen, 64);
    }

    fn has(&self, what: impl Fn(&Completion) -> bool) -> bool {
        self.seen.iter().any(what)
    }

    fn connected(&self) -> bool {
        self.has(|c| matches!(c, Completion::Connected { .. }))
    }

    fn closed(&self) -> Option<&Option<Error>> {
        self.seen.iter().find_map(|c| match c {
            Completion::Closed { reason, .. } => Some(reason),
            _ => None,
        })
    }

    fn done(&self, wanted: u64) -> bool {
        self.has(|c| matches!(c, Completion::Done { context, .. } if *context == wanted))
    }

    fn written(&self) -> Vec<(u32, u32)> {
        let written = |c: &Completion| match *c {
            Completion::Written { imm, length, .. } => Some((imm, length)),
            _ => None,
        };
        self.seen.iter().filter_map(written).collect()
    }
}

/// `None`, with a line on standard output, where there is no device.
fn pair() -> Option<(End, End)> {
    pair_of(&config(), &config(), [7; 32], [7; 32])
}

fn pair_of(a: &VerbsConfig, b: &VerbsConfig, key_a: [u8; 32], key_b: [u8; 32]) -> Option<(End, End)> {
    if !has_device() {
        return None;
    }
    let (mut a, mut b) = (End::new(a, "b"), End::new(b, "a"));
    a.transport.connect(a.endpoint, &b.address, &key_a).unwrap();
    b.transport.connect(b.endpoint, &a.address, &key_b).unwrap();
    Some((a, b))
}

fn has_device() -> bool {
    let found = available().unwrap().iter().any(|d| d.active);
    if !found {
        println!("skipped: no RDMA device");
    }
    found
}

fn until(a: &mut End, b: &mut End, what: &str, done: impl Fn(&End, &End) -> bool) {
    let start = Instant::now();
    while !done(a, b) {
        a.poll();
        b.poll();
        assert!(start.elapsed() < PATIENCE, "{what}: a saw {:?}, b saw {:?}", a.seen, b.seen);
    }
}

fn connect(a: &mut End, b: &mut End) {
    until(a, b, "connect", |a, b| a.connected() && b.connected());
}

fn plain_write(remote: windlass::mem::RemoteRegion) -> Write {
    Write { header: None, body: None, remote, offset: 0, imm: None, context: None }
}

#[test]
fn a_gather_write_arrives_whole_and_in_order() {
    let Some((mut a, mut b)) = pair() else { return };
    println!("{:?}", a.transport.caps());
    connect(&mut a, &mut b);
    let remote = b.transport.authorise(b.endpoint, b.region, 4096, 300_000, Rights::Write).unwrap();
    let body: Vec<u8> = (0..200_001u32).map(|i| (i % 251) as u8).collect();
    a.fill(64, &body);
    let header = [0xa5; HEADER];
    let write = Write {
        header: Some(header),
        body: Some(Payload::Pinned(a.slice(64, body.len()))),
        offset: 128,
        imm: Some(0x0102_0304),
        context: Some(9),
        ..plain_write(remote)
    };
    a.transport.write(a.endpoint, write).unwrap();
    a.transport.send(a.endpoint, Message::new(b"after").unwrap()).unwrap();
    until(&mut a, &mut b, "write", |a, b| a.done(9) && b.has(|c| matches!(c, Completion::Received { .. })));
    assert_eq!(b.written(), [(0x0102_0304, (HEADER + body.len()) as u32)]);
    let order: Vec<bool> = b.seen.iter().map(|c| matches!(c, Completion::Received { .. })).collect();
    assert_eq!(order, [false, false, true]);
    let mut got = vec![0; HEADER + body.len()];
    b.read_out(4096 + 128, &mut got);
    assert!(got[..HEADER] == header && got[HEADER..] == body[..]);
}

#[test]
fn a_read_brings_the_bytes() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    b.fill(500, b"published");
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 4096, Rights::Read).unwrap();
    let read = Read { remote, offset: 500, local: a.slice(1000, 9), context: 3 };
    a.transport.read(a.endpoint, read).unwrap();
    until(&mut a, &mut b, "read", |a, _| a.done(3));
    let mut got = [0; 9];
    a.read_out(1000, &mut got);
    assert_eq!(&got, b"published");
}

#[test]
fn messages_of_every_length() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    let lengths = [0, 1, 63, 64, 65, 255, 256];
    for (i, &length) in lengths.iter().enumerate() {
        a.transport.send(a.endpoint, Message::new(&vec![i as u8; length]).unwrap()).unwrap();
    }
    let received = |end: &End| -> Vec<Vec<u8>> {
        let bytes = |c: &Completion| match c {
            Completion::Received { message, .. } => Some(message.bytes().to_vec()),
            _ => None,
        };
        end.seen.iter().filter_map(bytes).collect()
    };
    until(&mut a, &mut b, "messages", |_, b| received(b).len() == lengths.len());
    let expected: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(i, &l)| vec![i as u8; l]).collect();
    assert_eq!(received(&b), expected);
}

#[test]
fn a_full_queue_gives_the_operation_back_and_drains() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 4096, Rights::Write).unwrap();
    let transport = &mut a.transport;
    let region = std::cell::Cell::new(RegionId(0));
    let pool = Pool::new(&[(128, 300)], |arena| {
        region.set(transport.register(arena)?);
        Ok(region.get())
    })
    .unwrap();
    let depth = a.transport.caps().queue_depth;
    // All that can be posted before a completion is looked at: the greeting may still hold a place.
    let mut taken = 0u32;
    let rejected = loop {
        let buf = pool.lease(128).unwrap();
        let write = Write { body: Some(Payload::Owned(buf)), imm: Some(taken), ..plain_write(remote) };
        match a.transport.write(a.endpoint, write) {
            Ok(()) => taken += 1,
            Err(rejected) => break rejected,
        }
    };
    assert_eq!(rejected.refusal, Refusal::Full);
    assert!(matches!(rejected.operation.body, Some(Payload::Owned(_))));
    assert!((depth - 1..=depth).contains(&(taken as usize)), "{taken}");
    drop(rejected);
    until(&mut a, &mut b, "drain", |_, b| b.written().len() == taken as usize);
    assert!(b.written().iter().map(|w| w.0).eq(0..taken), "out of order");
    // Nothing was asked to be reported, yet every buffer comes back.
    let start = Instant::now();
    let mut held = Vec::new();
    while held.len() < 300 {
        a.poll();
        held.extend(pool.lease(128));
        assert!(start.elapsed() < PATIENCE, "{} of 300 buffers came back", held.len());
    }
}

#[test]
fn one_unreported_buffer_comes_back_without_later_operations() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 4096, Rights::Write).unwrap();
    let pool = Pool::new(&[(128, 1)], |arena| a.transport.register(arena)).unwrap();
    let body = Some(Payload::Owned(pool.lease(128).unwrap()));
    a.transport.write(a.endpoint, Write { body, ..plain_write(remote) }).unwrap();
    a.transport.send(a.endpoint, Message::new(b"behind").unwrap()).unwrap();
    until(&mut a, &mut b, "the buffer", |_, _| pool.lease(128).is_some());
    assert!(a.seen.iter().all(|c| matches!(c, Completion::Connected { .. })), "{:?}", a.seen);
}

#[test]
fn more_than_all_receive_buffers_without_polling() {
    let small = with(Rdma { receives: 16, ..Rdma::default() });
    let Some((mut a, mut b)) = pair_of(&config(), &small, [1; 32], [1; 32]) else { return };
    connect(&mut a, &mut b);
    for i in 0..100u8 {
        a.transport.send(a.endpoint, Message::new(&[i]).unwrap()).unwrap();
    }
    a.transport.flush();
    let count = |end: &End| end.seen.iter().filter(|c| matches!(c, Completion::Received { .. })).count();
    until(&mut a, &mut b, "flow control", |_, b| count(b) == 100);
}

#[test]
fn sleeping_on_the_descriptor() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    for round in 0..20u8 {
        while !b.transport.arm() {
            b.poll();
        }
        a.transport.send(a.endpoint, Message::new(&[round]).unwrap()).unwrap();
        a.poll();
        let start = Instant::now();
        park(&[b.transport.waitable()], PATIENCE).unwrap();
        assert!(start.elapsed() < PATIENCE, "the descriptor did not wake its sleeper");
        b.seen.clear();
        until(&mut a, &mut b, "wake", |_, b| {
            b.has(|c| matches!(c, Completion::Received { message, .. } if message.bytes() == [round]))
        });
    }
}

#[test]
fn a_key_works_for_one_peer_only() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    // A second connection into the same transport.
    let mut c = End::new(&config(), "b");
    let (second, address) = b.transport.open(Side::Passive, "c").unwrap();
    c.transport.connect(c.endpoint, &address, &[2; 32]).unwrap();
    b.transport.connect(second, &c.address, &[2; 32]).unwrap();
    until(&mut c, &mut b, "connect c", |c, _| c.connected());
    let for_a = b.transport.authorise(b.endpoint, b.region, 0, 4096, Rights::ReadWrite).unwrap();
    let stolen = Write { header: Some([0xee; HEADER]), context: Some(1), ..plain_write(for_a) };
    c.transport.write(c.endpoint, stolen).unwrap();
    until(&mut c, &mut b, "refusal", |c, _| c.closed().is_some());
    assert!(matches!(c.closed(), Some(Some(Error::Refused { .. }))), "{:?}", c.seen);
    assert!(!c.done(1));
    let mut got = [0; HEADER];
    b.read_out(0, &mut got);
    assert_eq!(got, [0; HEADER]);
    // The rightful owner is not disturbed.
    let rightful = Write { header: Some([0x11; HEADER]), imm: Some(5), ..plain_write(for_a) };
    a.transport.write(a.endpoint, rightful).unwrap();
    until(&mut a, &mut b, "rightful write", |_, b| b.written() == [(5, HEADER as u32)]);
}

#[test]
fn a_withdrawn_key_is_refused() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 4096, Rights::ReadWrite).unwrap();
    b.transport.withdraw(b.endpoint, &remote).unwrap();
    assert!(b.transport.withdraw(b.endpoint, &remote).is_err());
    a.transport.read(a.endpoint, Read { remote, offset: 0, local: a.slice(0, 64), context: 1 }).unwrap();
    until(&mut a, &mut b, "refusal", |a, _| a.closed().is_some());
    let Some(Some(Error::Refused { reason, .. })) = a.closed() else { panic!("{:?}", a.seen) };
    assert!(reason.starts_with("remote access denied"), "{reason}");
}

#[test]
fn rights_and_bounds_are_checked_before_posting() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 100, Rights::Read).unwrap();
    let write = Write { header: Some([0; HEADER]), ..plain_write(remote) };
    let refusal = a.transport.write(a.endpoint, write).unwrap_err().refusal;
    assert!(matches!(refusal, Refusal::OutOfBounds(_)));
    for (offset, length) in [(0, 101), (100, 1), (u64::MAX, 2)] {
        let read = Read { remote, offset, local: a.slice(0, length), context: 0 };
        assert!(matches!(a.transport.read(a.endpoint, read).unwrap_err().refusal, Refusal::OutOfBounds(_)));
    }
    let outside = a.slice((1 << 20) - 1, 2);
    let read = Read { remote, offset: 0, local: outside, context: 0 };
    assert!(matches!(a.transport.read(a.endpoint, read).unwrap_err().refusal, Refusal::OutOfBounds(_)));
    assert!(b.transport.authorise(b.endpoint, b.region, 0, (1 << 20) + 1, Rights::Read).is_err());
}

#[test]
fn close_comes_once_and_gives_everything_back() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 4096, Rights::Write).unwrap();
    b.transport.close(b.endpoint);
    b.transport.close(b.endpoint);
    until(&mut a, &mut b, "close", |_, b| b.closed().is_some());
    assert!(matches!(b.closed(), Some(None)));
    let write = Write { header: Some([0xee; HEADER]), ..plain_write(remote) };
    assert_eq!(b.transport.write(b.endpoint, write).unwrap_err().refusal, Refusal::NotConnected);
    for _ in 0..100 {
        b.poll();
    }
    let closed = b.seen.iter().filter(|c| matches!(c, Completion::Closed { .. })).count();
    assert_eq!(closed, 1);
    // The place is free again, under another generation.
    let (next, _) = b.transport.open(Side::Active, "a").unwrap();
    assert_eq!((next.index, next.generation), (b.endpoint.index, b.endpoint.generation + 1));
}

#[test]
fn another_session_key_is_refused_at_both_ends() {
    let Some((mut a, mut b)) = pair_of(&config(), &config(), [1; 32], [2; 32]) else { return };
    until(&mut a, &mut b, "refusal", |a, b| a.closed().is_some() && b.closed().is_some());
    for end in [&a, &b] {
        let Some(Some(Error::Refused { reason, .. })) = end.closed() else { panic!("{:?}", end.seen) };
        assert_eq!(reason, "the peer's proof of the session key is wrong");
        assert!(!end.connected());
    }
}

#[test]
fn the_peer_may_connect_much_later() {
    if !has_device() {
        return;
    }
    // All retries of one attempt take about half a second: several attempts fail before the other end is there.
    let hasty = with(Rdma { timeout: Some(12), retries: 2, ..Rdma::default() });
    let (mut a, mut b) = (End::new(&hasty, "b"), End::new(&hasty, "a"));
    // Whoever speaks first is the one that has to try again.
    if a.address < b.address {
        std::mem::swap(&mut a, &mut b);
    }
    a.transport.connect(a.endpoint, &b.address, &[3; 32]).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        a.poll();
        assert!(a.seen.is_empty(), "{:?}", a.seen);
    }
    b.transport.connect(b.endpoint, &a.address, &[3; 32]).unwrap();
    connect(&mut a, &mut b);
    b.transport.send(b.endpoint, Message::new(b"late").unwrap()).unwrap();
    until(&mut a, &mut b, "message", |a, _| a.has(|c| matches!(c, Completion::Received { .. })));
}

#[test]
fn a_peer_that_never_connects_is_a_timeout() {
    if !has_device() {
        return;
    }
    let hasty = VerbsConfig {
        connect_timeout: Duration::from_secs(1),
        ..with(Rdma { timeout: Some(12), retries: 2, ..Rdma::default() })
    };
    let (mut a, mut b) = (End::new(&hasty, "b"), End::new(&hasty, "a"));
    a.transport.connect(a.endpoint, &b.address, &[3; 32]).unwrap();
    until(&mut a, &mut b, "timeout", |a, _| a.closed().is_some());
    let Some(Some(Error::Timeout { waited_for, .. })) = a.closed() else { panic!("{:?}", a.seen) };
    assert_eq!(waited_for, "b to connect its queue pair");
}

/// The other process of `a_killed_peer_is_noticed_by_sending`: connects to the address on its standard input, says so, and
/// polls until it is killed.
#[test]
#[ignore = "started by another test"]
fn other_process() {
    let hasty = with(Rdma { timeout: Some(14), retries: 2, ..Rdma::default() });
    let mut end = End::new(&hasty, "parent");
    println!("address {}", hex(&end.address));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    end.transport.connect(end.endpoint, &unhex(line.trim()), &[1; 32]).unwrap();
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        end.poll();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
fn a_killed_peer_is_noticed_by_sending() {
    if !has_device() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_process", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let address = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .find_map(|line| line.unwrap().split_once("address ").map(|(_, hex)| unhex(hex)))
        .unwrap();
    let hasty = with(Rdma { timeout: Some(14), retries: 2, ..Rdma::default() });
    let mut a = End::new(&hasty, "child");
    a.transport.connect(a.endpoint, &address, &[1; 32]).unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", hex(&a.address)).unwrap();
    let start = Instant::now();
    while !a.connected() {
        a.poll();
        assert!(start.elapsed() < PATIENCE, "{:?}", a.seen);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    a.transport.send(a.endpoint, Message::new(b"anyone?").unwrap()).unwrap();
    while a.closed().is_none() {
        a.poll();
        assert!(start.elapsed() < PATIENCE, "{:?}", a.seen);
    }
    let Some(Some(Error::PeerLost { reason, .. })) = a.closed() else { panic!("{:?}", a.seen) };
    assert!(reason.contains("does not answer"), "{reason}");
}

/// How far a peer gets before it is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// It gave its address away.
    Opened,
    /// Its queue pair is connected, and if it is first its proof has been posted. It looks at nothing that comes.
    Posted,
    /// It has been greeted.
    Greeted,
}

/// The other process of `a_peer_that_dies_while_connecting_is_a_typed_error`: on its standard input come its side and step, then
/// the address to connect to. It says its own address, and when it has come so far.
#[test]
#[ignore = "started by another test"]
fn dying_process() {
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let words = lines.next().unwrap();
    let (side, step) = words.split_once(' ').unwrap();
    let side = if side == "Active" { Side::Active } else { Side::Passive };
    let mut end = End::opened(&config(), side, "parent");
    println!("address {}", hex(&end.address));
    if step != "Opened" {
        end.transport.connect(end.endpoint, &unhex(lines.next().unwrap().trim()), &[1; 32]).unwrap();
    }
    let start = Instant::now();
    while step == "Greeted" && !end.connected() {
        end.poll();
        assert!(start.elapsed() < PATIENCE, "{:?}", end.seen);
    }
    println!("address of nobody: it is here");
    // Until it is killed, or alone.
    lines.for_each(drop);
}

/// A peer at a step, and what it says.
struct Dying {
    child: Child,
    says: Receiver<String>,
}

impl Dying {
    fn start(side: Side, step: Step) -> Dying {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "dying_process", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, says) = channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            let said = lines.map_while(Result::ok);
            said.filter_map(|line| line.split_once("address ").map(|(_, rest)| rest.to_owned()))
                .try_for_each(|said| say.send(said))
        });
        let mut dying = Dying { child, says };
        dying.tell(&format!("{side:?} {step:?}"));
        dying
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Queue pairs that the kernel knows of.
fn queue_pairs() -> u64 {
    let said = Command::new("rdma").args(["resource", "show"]).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    let mut words = said.split_whitespace().skip_while(|word| *word != "qp").skip(1);
    words.next().and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

/// Whichever side it is, however far it came, and whether this end connected before or after its death.
#[test]
fn a_peer_that_dies_while_connecting_is_a_typed_error() {
    if !has_device() {
        return;
    }
    let quick =
        VerbsConfig { endpoints: 1, ..with(Rdma { timeout: Some(14), retries: 2, ..Rdma::default() }) };
    let patient = VerbsConfig { connect_timeout: PATIENCE / 2, ..quick.clone() };
    let quick = VerbsConfig { connect_timeout: Duration::from_secs(2), ..quick };
    for (theirs, ours) in [(Side::Active, Side::Passive), (Side::Passive, Side::Active)] {
        for (step, dies_first) in [
            (Step::Opened, true),
            (Step::Opened, false),
            (Step::Posted, true),
            (Step::Posted, false),
            (Step::Greeted, false),
        ] {
            let what = format!("{theirs:?} peer dies {step:?}, before this end connects: {dies_first}");
            let before = queue_pairs();
            let config = if step == Step::Greeted { &patient } else { &quick };
            let mut end = End::opened(config, ours, "child");
            let mut peer = Dying::start(theirs, step);
            let address = unhex(&peer.says.recv().unwrap());
            peer.tell(&hex(&end.address));
            if dies_first {
                peer.says.recv().unwrap();
                peer.kill();
            }
            end.transport.connect(end.endpoint, &address, &[1; 32]).unwrap();
            let start = Instant::now();
            while !dies_first && peer.says.try_recv().is_err() {
                end.poll();
                assert!(start.elapsed() < PATIENCE, "{what}: {:?}", end.seen);
            }
            peer.kill();
            let dead = Instant::now();
            let mut asked = false;
            while end.closed().is_none() {
                end.poll();
                if end.connected() && !asked && end.closed().is_none() {
                    // A connected peer's silence is noticed by whoever wants something.
                    end.transport.send(end.endpoint, Message::new(b"anyone?").unwrap()).unwrap();
                    asked = true;
                }
                assert!(dead.elapsed() < PATIENCE, "{what}: {:?}", end.seen);
            }
            match end.closed() {
                Some(Some(Error::Timeout { waited_for, after })) if !end.connected() => {
                    assert!(waited_for.contains("child") && *after == config.connect_timeout, "{what}");
                }
                Some(Some(Error::PeerLost { peer, .. })) if end.connected() => assert_eq!(peer, "child"),
                _ => panic!("{what}: {:?}", end.seen),
            }
            // The only place is free again, and so is the queue pair.
            let (next, _) = end.transport.open(ours, "another").unwrap();
            assert_eq!((next.index, next.generation), (0, end.endpoint.generation + 1), "{what}");
            assert_eq!(queue_pairs(), before + 1, "{what}");
        }
    }
}

#[test]
fn a_dropped_transport_says_goodbye() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    drop(b.transport);
    let start = Instant::now();
    while a.closed().is_none() {
        a.poll();
        assert!(start.elapsed() < PATIENCE, "{:?}", a.seen);
    }
    let Some(Some(Error::PeerLost { reason, .. })) = a.closed() else { panic!("{:?}", a.seen) };
    assert!(reason.contains("closed"), "{reason}");
}

/// KiB that `little_lockable_memory` may lock.
const LOCKABLE: u64 = 8192;

#[test]
fn locked_memory_is_named_when_it_runs_out() {
    if !has_device() {
        return;
    }
    // root may lock all it likes, unless the capability is taken from it.
    let script = format!(
        "ulimit -l {LOCKABLE}; drop='setpriv --inh-caps=-ipc_lock --bounding-set=-ipc_lock'; \
         $drop true || drop=; exec $drop \"$0\" --exact little_lockable_memory --ignored --nocapture"
    );
    let status =
        Command::new("sh").arg("-c").arg(script).arg(std::env::current_exe().unwrap()).status().unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "started by another test, with a small limit"]
fn little_lockable_memory() {
    let (mut a, mut b) = (End::new(&config(), "b"), End::new(&config(), "a"));
    let arena = Arena::new(64 << 20).unwrap();
    let region = a.transport.register(arena.clone()).unwrap();
    let error = a.transport.authorise(a.endpoint, region, 0, 64 << 20, Rights::Read).unwrap_err();
    let Error::Limit { resource, limit, asked } = &error else { panic!("{error}") };
    assert!(resource.contains("RLIMIT_MEMLOCK"), "{error}");
    assert_eq!((*limit, *asked), (LOCKABLE << 10, 64 << 20));
    // The endpoint goes on; one that has to register the arena for an operation of its own can't.
    a.transport.connect(a.endpoint, &b.address, &[4; 32]).unwrap();
    b.transport.connect(b.endpoint, &a.address, &[4; 32]).unwrap();
    connect(&mut a, &mut b);
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 4096, Rights::Write).unwrap();
    let body = Some(Payload::Pinned(RegionSlice { arena, region, offset: 0, length: 64 }));
    let rejected = a.transport.write(a.endpoint, Write { body, ..plain_write(remote) }).unwrap_err();
    assert_eq!(rejected.refusal, Refusal::NotConnected);
    assert!(rejected.operation.body.is_some());
    until(&mut a, &mut b, "close", |a, _| a.closed().is_some());
    assert!(matches!(a.closed(), Some(Some(Error::Limit { .. }))), "{:?}", a.seen);
}

#[test]
fn what_is_not_an_address_is_refused() {
    if !has_device() {
        return;
    }
    let mut a = End::new(&config(), "b");
    for bytes in [&[][..], &[0; 36], &a.address[..35], &a.address.clone()] {
        assert!(a.transport.connect(a.endpoint, bytes, &[0; 32]).is_err());
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let error =
        Verbs::new(&with(Rdma { device: "=none0".parse().unwrap(), ..Rdma::default() })).err().unwrap();
    assert!(error.to_string().contains("none0"), "{error}");
}

/// A child of fork shares the pages with which its parent's device works, until one of them writes there: `ibv_fork_init`, or the
/// kernel, keeps the parent's where the device reaches them.
#[test]
fn fork_does_not_part_us_from_registered_memory() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 8192, Rights::Write).unwrap();
    a.fill(0, &[1; 4096]);
    // SAFETY: the child calls nothing but _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    assert!(child > 0);
    // The first write after the fork is what would give us pages that the device does not know.
    a.fill(0, &[2; 4096]);
    b.fill(0, &[3; 8192]);
    let body = Some(Payload::Pinned(a.slice(0, 4096)));
    a.transport.write(a.endpoint, Write { body, imm: Some(9), ..plain_write(remote) }).unwrap();
    until(&mut a, &mut b, "the write", |_, b| b.written() == [(9, 4096)]);
    let (mut got, mut status) = (vec![0; 8192], 0);
    b.read_out(0, &mut got);
    assert!(got[..4096].iter().all(|&byte| byte == 2) && got[4096..].iter().all(|&byte| byte == 3));
    // SAFETY: waits for our own child; `status` is ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
}

/// Registered memory outlives all that the program holds of it, until the peer can't reach it any more.
#[test]
fn memory_stays_while_a_peer_may_reach_it() {
    let Some((mut a, mut b)) = pair() else { return };
    connect(&mut a, &mut b);
    let arena = Arena::new(4096).unwrap();
    let memory = Arc::downgrade(&arena);
    let region = b.transport.register(arena).unwrap();
    let remote = b.transport.authorise(b.endpoint, region, 0, 4096, Rights::Write).unwrap();
    assert!(!b.transport.unregister(region), "a peer may still reach it");
    let write = Write { header: Some([7; HEADER]), imm: Some(1), ..plain_write(remote) };
    a.transport.write(a.endpoint, write).unwrap();
    until(&mut a, &mut b, "the write", |_, b| !b.written().is_empty());
    assert!(memory.upgrade().is_some());
    b.transport.withdraw(b.endpoint, &remote).unwrap();
    assert!(b.transport.unregister(region));
    assert!(memory.upgrade().is_none(), "it is leaked");
}

/// Settings reach the device: a smaller MTU than the port's works, a larger one, or what the port does not have, is refused.
#[test]
fn settings_reach_the_device() {
    let small = with(Rdma {
        mtu: Some("512".parse().unwrap()),
        inline: 0,
        queue_depth: 64,
        traffic_class: 104,
        ..Rdma::default()
    });
    let Some((mut a, mut b)) = pair_of(&small, &config(), [7; 32], [7; 32]) else { return };
    connect(&mut a, &mut b);
    let detail = &a.transport.caps().detail;
    for part in ["MTU 512", "inline up to 0", "queue depth 64", "traffic class 104"] {
        assert!(detail.contains(part), "{part}: {detail}");
    }
    let remote = b.transport.authorise(b.endpoint, b.region, 0, 1 << 16, Rights::Write).unwrap();
    let body = Some(Payload::Pinned(a.slice(0, 1 << 16)));
    a.transport.write(a.endpoint, Write { body, imm: Some(1), ..plain_write(remote) }).unwrap();
    until(&mut a, &mut b, "a write of many packets", |_, b| b.written() == [(1, 1 << 16)]);
    for (rdma, expected) in [
        (Rdma { gid_index: Some(200), ..Rdma::default() }, "no index 200 among"),
        (Rdma { pkey_index: 60_000, ..Rdma::default() }, "rdma_pkey_index: expected 0 to "),
        (Rdma { device: "^rxe,mlx".parse().unwrap(), ..Rdma::default() }, "allows none of rxe0"),
        (Rdma { device: "rxe0:2".parse().unwrap(), ..Rdma::default() }, "allows none of rxe0"),
    ] {
        let error = Verbs::new(&with(rdma)).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let gid = available().unwrap().iter().find_map(|d| d.chosen).unwrap();
    let chosen = Verbs::new(&with(Rdma { gid_index: Some(gid.index), ..Rdma::default() })).unwrap();
    assert!(chosen.caps().detail.contains(&gid.to_string()), "{}", chosen.caps().detail);
    Verbs::new(&with(Rdma {
        relaxed_ordering: Switch::On,
        device: "=rxe0:1".parse().unwrap(),
        ..Rdma::default()
    }))
    .unwrap();
}
