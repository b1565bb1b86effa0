//! What reaches the transport, counted there.

use std::os::fd::RawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::client::driver::{Driver, ProgressThread};
use crate::client::link::Grant;
use crate::client::plan::DenseFrame;
use crate::client::readable::Readable;
use crate::control::{Hub, HubConfig};
use crate::mem::{Arena, RegionId, RemoteRegion, Rights};
use crate::proto::secret::Secret;
use crate::proto::{Chains, ReplyHeader, ReplyKind, RequestHeader, RequestKind};
use crate::time::Deadline;
use crate::transport::park::Waker;
use crate::transport::{Caps, Message, Read, Refusal, Rejected, SessionKey, Side, Write};
use crate::types::{
    Consistency, Identity, MAX_TABLES, NonFinite, OptimizerSpec, Publish, Role, ServerInfo, TableSpec, View,
};

/// What was written: the slot, the request and its body.
type Written = Arc<Mutex<Vec<(u32, RequestHeader, Vec<u8>)>>>;

/// Requests with their bodies.
type Requests = Vec<(RequestHeader, Vec<u8>)>;

/// Takes everything and delivers nothing but what a test puts into `inbox`.
struct Paper {
    caps: Caps,
    arenas: Vec<Arc<Arena>>,
    written: Written,
    inbox: Arc<Mutex<Vec<Completion>>>,
    waker: Waker,
    endpoints: u32,
    polls: Arc<AtomicU32>,
}

impl Transport for Paper {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId> {
        self.arenas.push(arena);
        Ok(RegionId(self.arenas.len() as u32 - 1))
    }

    fn unregister(&mut self, _: RegionId) -> bool {
        true
    }

    fn open(&mut self, _: Side, _: &str) -> Result<(EndpointId, Vec<u8>)> {
        self.endpoints += 1;
        Ok((EndpointId { index: 0, generation: self.endpoints }, Vec::new()))
    }

    fn authorise(
        &mut self,
        _: EndpointId,
        _: RegionId,
        _: usize,
        length: usize,
        rights: Rights,
    ) -> Result<RemoteRegion> {
        Ok(RemoteRegion { address: 0, length: length as u64, key: 1, rights })
    }

    fn withdraw(&mut self, _: EndpointId, _: &RemoteRegion) -> Result<()> {
        Ok(())
    }

    fn connect(&mut self, _: EndpointId, _: &[u8], _: &SessionKey) -> Result<()> {
        Ok(())
    }

    fn send(&mut self, _: EndpointId, _: Message) -> std::result::Result<(), Rejected<Message>> {
        Ok(())
    }

    fn write(&mut self, _: EndpointId, write: Write) -> std::result::Result<(), Rejected<Write>> {
        let header = RequestHeader::decode(&write.header.unwrap()).unwrap();
        let body = write.body.map_or(Vec::new(), |body| {
            let slice = body.slice();
            let mut bytes = vec![0; slice.length];
            slice.arena.copy_out(slice.offset, &mut bytes);
            bytes
        });
        assert_eq!(body.len(), header.length as usize);
        self.written.lock().unwrap().push((write.imm.unwrap(), header, body));
        Ok(())
    }

    fn read(&mut self, _: EndpointId, operation: Read) -> std::result::Result<(), Rejected<Read>> {
        Err(Rejected { operation, refusal: Refusal::Full })
    }

    fn flush(&mut self) {}

    fn poll(&mut self, completions: &mut Vec<Completion>, _: usize) {
        completions.append(&mut self.inbox.lock().unwrap());
        self.polls.fetch_add(1, Ordering::Relaxed);
    }

    fn waitable(&self) -> RawFd {
        self.waker.fd()
    }

    fn arm(&mut self) -> bool {
        true
    }

    fn close(&mut self, _: EndpointId) {}
}

/// An engine with one link to a server thread that exists on paper only.
struct Rig {
    engine: Engine,
    written: Written,
    inbox: Arc<Mutex<Vec<Completion>>>,
    polls: Arc<AtomicU32>,
    ring: Arc<Arena>,
    replies: u64,
    spec: Arc<TableSpec>,
    map: Arc<PartitionMap>,
    _hub: Hub,
}

impl Rig {
    fn new(consistency: Consistency, slots: u32) -> Rig {
        let (written, inbox) = (Written::default(), Arc::new(Mutex::new(Vec::new())));
        let polls = Arc::new(AtomicU32::new(0));
        let caps = Caps {
            name: "paper",
            one_sided: false,
            keys_per_peer: true,
            queue_depth: 1 << 20,
            max_write: 1 << 30,
            detail: String::new(),
        };
        let mut transport = Box::new(Paper {
            caps,
            arenas: Vec::new(),
            written: written.clone(),
            inbox: inbox.clone(),
            waker: Waker::new().unwrap(),
            endpoints: 0,
            polls: polls.clone(),
        });
        let limits = WorkerLimits::default();
        let ring = Arena::new(256 * HEADER).unwrap();
        let region = transport.register(ring.clone()).unwrap();
        let classes = [(1 << 10, 8), (64 << 10, 32)];
        let staging = Pool::new(&classes, |arena| transport.register(arena)).unwrap();
        let receive = Pool::new(&[(1 << 10, 512)], |arena| transport.register(arena)).unwrap();
        let mut link = Link::new((0, 0, 0), "server 0".to_owned(), (ring.clone(), 0), &limits);
        link.open(transport.as_mut(), region, &receive).unwrap();
        let region_of_slots = RemoteRegion { address: 0, length: 64 << 20, key: 2, rights: Rights::Write };
        link.granted(Grant {
            slots: region_of_slots,
            slot_count: slots,
            slot_bytes: (256 << 10) + HEADER as u32,
            pull_credits: 64,
            key_lists: 4,
        })
        .unwrap();
        let identity =
            Identity { role: Role::Worker, rank: Some(0), incarnation: 1, process: "test".to_owned() };
        let hub = Hub::new(HubConfig::new(Secret::generate().unwrap(), "", identity)).unwrap();
        let (reopener, _, _) = Reopener::new(region, "paper", Duration::from_secs(100), hub.waker());
        let shared = Arc::new(Shared::new(0, 0, crate::client::cuts::Cuts::default()).unwrap());
        let memory = (staging, receive);
        let engine =
            Engine::new(transport, (Polling::Block, limits), vec![link], memory, 1, shared, reopener);
        let spec = TableSpec::dense("w", &[1 << 20])
            .optimizer(OptimizerSpec::new("sum", &[]))
            .consistency(consistency);
        let server = ServerInfo { rank: 0, address: String::new(), threads: 1, first: 0 };
        let map = PartitionMap::new(&View { epoch: 1, servers: vec![server], workers: 1 }, &spec);
        let (spec, map) = (Arc::new(spec), Arc::new(map));
        let mut rig = Rig { engine, written, inbox, polls, ring, replies: 0, spec, map, _hub: hub };
        rig.connected();
        rig
    }

    fn endpoint(&self) -> EndpointId {
        self.engine.links[0].endpoint.unwrap()
    }

    fn connected(&mut self) {
        let endpoint = self.endpoint();
        self.deliver(Completion::Connected { endpoint });
    }

    fn deliver(&mut self, completion: Completion) {
        self.inbox.lock().unwrap().push(completion);
        self.engine.progress().unwrap();
    }

    /// The endpoint breaks and a new one comes in its place.
    fn reconnect(&mut self) {
        let endpoint = self.endpoint();
        self.deliver(Completion::Closed { endpoint, reason: None });
        self.replies = 0;
        self.connected();
    }

    /// The server thread writes a reply.
    fn reply(&mut self, kind: ReplyKind, freed: u64, tag: u32, count: u32) {
        let header = ReplyHeader {
            chain: 0,
            bucket: 0,
            kind,
            sequence: self.replies,
            closed: 0,
            version: 0,
            freed,
            withdrawn: 0,
            epoch: 1,
            count,
            tag,
        };
        let imm = self.replies as u32;
        self.ring.copy_in(imm as usize * HEADER, &header.encode());
        self.replies += 1;
        let endpoint = self.endpoint();
        self.deliver(Completion::Written { endpoint, imm, length: HEADER as u32 });
    }

    /// The server thread tells where it publishes a table. The engine has not heard it yet.
    fn publish(&mut self, table: u32, records: u32) {
        let header = ReplyHeader {
            chain: 0,
            bucket: records,
            kind: ReplyKind::Published,
            sequence: self.replies,
            closed: 0,
            version: 0,
            freed: 0,
            withdrawn: 0,
            epoch: 1,
            count: 3,
            tag: table,
        };
        let (imm, endpoint) = (self.replies as u32, self.endpoint());
        self.ring.copy_in(imm as usize * HEADER, &header.encode());
        self.replies += 1;
        self.inbox.lock().unwrap().push(Completion::Written { endpoint, imm, length: HEADER as u32 });
    }

    fn push(&mut self, floats: usize, value: f32) -> usize {
        let ticket = self.queue_push(None, floats, value);
        self.engine.kick();
        ticket
    }

    fn queue_push(&mut self, after: Option<&Arc<After>>, floats: usize, value: f32) -> usize {
        let (spec, map) = (self.spec.clone(), self.map.clone());
        let table =
            Target { spec: &spec, map: &map, chains: Chains::default(), after, priority: 0, readable: None };
        let values = vec![value; floats];
        let source = Source::Slice(&values);
        let ticket = self.engine.new_push(RequestKind::Push, &table, source, None).unwrap();
        let frame = DenseFrame { shard: 0, bucket: 0, first: 0, count: floats as u32, at: 0 };
        let mut frames = [frame].into_iter().peekable();
        assert!(self.engine.push_dense((ticket, 0), &mut frames, source).unwrap());
        ticket
    }

    fn pull(&mut self, floats: usize) -> usize {
        let (spec, map) = (self.spec.clone(), self.map.clone());
        let table = Target {
            spec: &spec,
            map: &map,
            chains: Chains::default(),
            after: None,
            priority: 0,
            readable: None,
        };
        let ticket = self.engine.new_pull(&table, false, None).unwrap();
        let frame = DenseFrame { shard: 0, bucket: 0, first: 0, count: floats as u32, at: 0 };
        assert!(self.engine.pull_dense((ticket, 0), &mut [frame].into_iter().peekable()).unwrap());
        self.engine.kick();
        ticket
    }

    fn flush(&mut self) {
        self.engine.flush();
        self.engine.kick();
    }

    /// What was written since the last look: slot, and the requests in it with their bodies.
    fn sent(&self) -> Vec<(u32, Requests)> {
        let written = std::mem::take(&mut *self.written.lock().unwrap());
        let parts = |(slot, header, body): (u32, RequestHeader, Vec<u8>)| {
            if header.kind != RequestKind::Batch {
                return (slot, vec![(header, body)]);
            }
            let copy = |at: usize, bytes: &mut [u8; HEADER]| bytes.copy_from_slice(&body[at..at + HEADER]);
            let part = |p: std::result::Result<(usize, RequestHeader), _>| {
                let (at, header) = p.unwrap();
                (header, body[at..at + header.length as usize].to_vec())
            };
            (slot, header.parts(copy).map(part).collect())
        };
        written.into_iter().map(parts).collect()
    }
}

fn kinds(parts: &[(RequestHeader, Vec<u8>)]) -> Vec<(RequestKind, bool)> {
    parts.iter().map(|(header, _)| (header.kind, header.void)).collect()
}

use RequestKind::{Mark, Pull, Push};

#[test]
fn a_thousand_small_pushes_leave_in_a_few_writes_in_order() {
    for consistency in [Consistency::Asp, Consistency::Bsp] {
        let mut rig = Rig::new(consistency, 8);
        for i in 0..1000u16 {
            rig.push(16, f32::from(i));
        }
        rig.flush();
        let sent = rig.sent();
        // The first leaves at once, since the server thread has nothing to do; the others are full frames and a rest.
        assert!(sent.len() <= 4, "{} writes", sent.len());
        let bodies: Vec<Vec<u8>> = sent.into_iter().flat_map(|(_, p)| p).map(|(_, body)| body).collect();
        let expected = |i: u16| bytemuck::cast_slice::<f32, u8>(&[f32::from(i); 16]).to_vec();
        assert_eq!(bodies, (0..1000).map(expected).collect::<Vec<_>>());
    }
}

#[test]
fn pushes_and_pulls_before_a_flush_are_one_frame() {
    let mut rig = Rig::new(Consistency::Asp, 8);
    rig.push(16, 0.0);
    assert_eq!(rig.sent().len(), 1);
    for _ in 0..30 {
        rig.push(16, 1.0);
        rig.pull(16);
    }
    assert_eq!(rig.sent().len(), 0);
    rig.flush();
    let sent = rig.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(kinds(&sent[0].1), [(Push, false), (Pull, false)].repeat(30));
}

/// Of long segments each alone; of short ones those of 64 KiB together, so that pulls still share frames.
#[test]
fn pulls_follow_their_pushes_before_more_pushes_leave() {
    for (segment_floats, pushes_in_a_row) in [(64 << 10, 1), (1 << 10, 16)] {
        let mut rig = Rig::new(Consistency::Asp, 64);
        let spec = TableSpec::clone(&rig.spec).segment_bytes(4 * segment_floats as u32);
        let server = ServerInfo { rank: 0, address: String::new(), threads: 1, first: 0 };
        let map = PartitionMap::new(&View { epoch: 1, servers: vec![server], workers: 1 }, &spec);
        let spec = Arc::new(spec);
        let chains = Chains::default();
        let table = Target { spec: &spec, map: &map, chains, after: None, priority: 0, readable: None };
        let floats = 3 * segment_floats * pushes_in_a_row;
        let memory = Arena::new(2 * 4 * floats).unwrap();
        let buffer = rig.engine.register(memory, 2 * 4 * floats).unwrap();
        let (from, into) =
            (Span { buffer, start: 0, end: floats }, Span { buffer, start: floats, end: 2 * floats });
        let source = Source::Buffer(from);
        let push = rig.engine.new_push(RequestKind::Push, &table, source, None).unwrap();
        let pull = rig.engine.new_pull(&table, true, Some(into)).unwrap();
        let range = crate::types::KeyRange::new(0, floats as u64).unwrap();
        let mut turns = Turns::new(crate::client::plan::dense(&spec, &map, range, 64 << 10).unwrap());
        assert!(rig.engine.push_pull_dense((push, pull, 0), &mut turns, (source, into)).unwrap());
        rig.flush();
        let sent: Vec<_> = rig.sent().into_iter().map(|(_, parts)| parts).collect();
        let turn = [vec![Push; pushes_in_a_row], vec![Pull; pushes_in_a_row]].concat();
        let in_order: Vec<_> =
            sent.iter().flatten().map(|(header, _)| (header.kind, header.bucket)).collect();
        let expected: Vec<_> = (0..3u32)
            .flat_map(|n| {
                let buckets = (0..pushes_in_a_row as u32).map(move |b| n * pushes_in_a_row as u32 + b);
                turn.iter().copied().zip(buckets.clone().chain(buckets)).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(in_order, expected);
        // Its pulls are one frame.
        assert_eq!(sent.len(), 3 * (pushes_in_a_row + 1));
    }
}

#[test]
fn a_mark_rides_behind_its_pieces_and_a_long_frame_keeps_the_order() {
    let mut rig = Rig::new(Consistency::Bsp, 8);
    rig.push(16, 0.0);
    rig.push(16, 1.0);
    rig.push(16, 2.0);
    rig.push(10_000, 3.0);
    rig.push(16, 4.0);
    rig.engine.end_clock().unwrap().unwrap();
    let sent = rig.sent();
    let order: Vec<_> = sent.iter().map(|(_, parts)| kinds(parts)).collect();
    let push = (Push, false);
    assert_eq!(order, [vec![push], vec![push, push], vec![push], vec![push, (Mark, false)]]);
    assert_eq!(sent.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn when_its_slot_comes_back_every_push_of_a_batch_is_done() {
    let mut rig = Rig::new(Consistency::Asp, 1);
    let tickets: Vec<usize> = (0..3).map(|i| rig.push(16, i as f32)).collect();
    rig.flush();
    assert_eq!(rig.sent().len(), 1);
    rig.reply(ReplyKind::Credit, 1, 0, 0);
    let done = |rig: &Rig| tickets.iter().map(|&t| rig.engine.is_done(t, false).unwrap()).collect::<Vec<_>>();
    assert_eq!(done(&rig), [true, false, false]);
    assert_eq!(rig.sent()[0].1.len(), 2);
    rig.reply(ReplyKind::Credit, 1, 0, 0);
    assert_eq!(done(&rig), [true; 3]);
}

/// A batch whose slot is still held when its first pull has been answered: the replay must not ask for that one again,
/// because its memory belongs to somebody else by now.
#[test]
fn a_replay_leaves_out_answered_pulls() {
    let mut rig = Rig::new(Consistency::Bsp, 8);
    rig.push(16, 0.0);
    rig.push(16, 1.0);
    let (first, second) = (rig.pull(16), rig.pull(16));
    rig.flush();
    let sent = rig.sent();
    let tag = sent[1].1[1].0.tag;
    rig.reply(ReplyKind::Pulled, 0, tag, 16);
    assert!(rig.engine.is_done(first, false).unwrap());
    rig.reconnect();
    let sent = rig.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!(kinds(&sent[1].1), [(Push, false), (Pull, true), (Pull, false)]);
    // The slots come back, and the second pull is still not answered: another new endpoint asks for it alone.
    rig.reply(ReplyKind::Credit, 0b11, 0, 0);
    assert!(!rig.engine.is_done(second, false).unwrap());
    rig.reconnect();
    let sent = rig.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!(kinds(&sent[0].1), [(Push, true), (Pull, true), (Pull, false)]);
    rig.reply(ReplyKind::Pulled, 1 << sent[0].0, sent[0].1[2].0.tag, 16);
    assert!(rig.engine.is_done(second, false).unwrap());
    assert!(rig.engine.accepted.is_empty() && rig.engine.asked.is_empty());
}

#[test]
fn the_end_of_a_clock_that_was_accepted_is_not_told_again_with_a_pull() {
    let mut rig = Rig::new(Consistency::Asp, 8);
    rig.push(16, 0.0);
    rig.push(16, 1.0);
    rig.pull(16);
    rig.engine.end_clock().unwrap().unwrap();
    rig.flush();
    assert_eq!(kinds(&rig.sent()[1].1), [(Push, false), (Pull, false), (Mark, false)]);
    rig.reply(ReplyKind::Credit, 0b11, 0, 0);
    rig.reconnect();
    assert_eq!(kinds(&rig.sent()[0].1), [(Push, true), (Pull, false), (Mark, true)]);
}

#[test]
fn a_pull_that_was_taken_back_before_it_left_is_void() {
    let mut rig = Rig::new(Consistency::Asp, 8);
    rig.push(16, 0.0);
    rig.push(16, 0.0);
    let pull = rig.pull(16);
    rig.engine.cancel(pull);
    rig.pull(16);
    rig.flush();
    let sent = rig.sent();
    assert_eq!(kinds(&sent[1].1), [(Push, false), (Pull, true), (Pull, false)]);
    assert_eq!(rig.engine.asked.len(), 1);
}

/// Tags of pulls are numbers of another kind: one of the same number, in a slot that comes back with the rejection, is not what was
/// rejected.
#[test]
fn a_rejection_names_the_keys_of_its_push_and_not_those_of_a_pull() {
    let mut rig = Rig::new(Consistency::Asp, 8);
    rig.spec = Arc::new(TableSpec::clone(&rig.spec).non_finite(NonFinite::Reject));
    let first = rig.pull(16);
    rig.reply(ReplyKind::Pulled, 0, 0, 16);
    rig.engine.take(first, &mut [0.0; 16]).unwrap();
    let push = rig.push(16, f32::NAN);
    rig.reply(ReplyKind::Credit, 0b1, 0, 0);
    rig.pull(32);
    rig.flush();
    let sent = rig.sent();
    let is_of =
        |slot: u32, kind| sent.iter().any(|(s, p)| *s == slot && (p[0].0.kind, p[0].0.tag) == (kind, 0));
    assert!(is_of(1, Push) && is_of(0, Pull), "{sent:?}");
    rig.reply(ReplyKind::NonFinite, 0b11, 0, 1);
    let error = rig.engine.is_done(push, false).unwrap_err();
    assert!(matches!(error, Error::NonFinite { first: 0, last: 15, pieces: 1, .. }), "{error}");
}

#[test]
fn a_batch_never_holds_more_pulls_than_there_are_credits() {
    let mut rig = Rig::new(Consistency::Asp, 8);
    (0..130).for_each(|_| _ = rig.pull(16));
    rig.flush();
    // The first alone, then 63 of the 64 credits can't carry a frame of 64.
    let sent = rig.sent();
    assert_eq!(sent.iter().map(|(_, parts)| parts.len()).collect::<Vec<_>>(), [1]);
    rig.reply(ReplyKind::Pulled, 1, sent[0].1[0].0.tag, 16);
    assert_eq!(rig.sent()[0].1.len(), 64);
}

#[test]
fn what_begins_after_waits_for_the_other_to_be_done() {
    let mut rig = Rig::new(Consistency::Asp, 8);
    let first = rig.push(16, 1.0);
    assert_eq!(rig.sent().len(), 1);
    let after = Arc::new(rig.engine.after([first].into_iter()).unwrap());
    let second = rig.queue_push(Some(&after), 16, 2.0);
    rig.flush();
    rig.engine.progress().unwrap();
    assert_eq!(rig.sent().len(), 0);
    assert!(rig.engine.describe(second).contains("before a push to table \"w\""));
    assert!(
        rig.engine.end_clock().unwrap().is_none(),
        "a clock can't end before what belongs to it has begun"
    );
    rig.reply(ReplyKind::Credit, 1, 0, 0);
    assert_eq!(rig.sent().len(), 1);
    assert!(rig.engine.end_clock().unwrap().is_some());
}

/// Whoever waits for one server is not kept beyond its deadline by what the others send.
#[test]
fn a_wait_ends_at_its_deadline_however_much_comes_in() {
    let Rig { engine, inbox, .. } = Rig::new(Consistency::Asp, 8);
    let shared = engine.shared.clone();
    let endpoint = engine.links[0].endpoint.unwrap();
    let driver = Driver::new(engine, shared);
    let mut looks = 0;
    let outcome: Result<()> = driver.drive(
        || Deadline::after(Instant::now(), Duration::ZERO),
        |_| "nothing".to_owned(),
        |_| {
            looks += 1;
            if looks < 1000 {
                inbox.lock().unwrap().push(Completion::Done { endpoint, context: 0 });
            }
            Ok(None)
        },
    );
    assert!(matches!(outcome, Err(Error::Timeout { .. })), "{outcome:?}");
    assert_eq!(looks, 2, "before and after the one turn of the engine");
}

/// The control thread wakes whoever sleeps; if that was the progress thread alone, it must not sleep on the same wake again.
#[test]
fn the_progress_thread_forgets_a_wake_that_nobody_waited_for() {
    let Rig { engine, polls, .. } = Rig::new(Consistency::Asp, 8);
    let shared = engine.shared.clone();
    let thread = ProgressThread::start(Arc::new(Driver::new(engine, shared.clone()))).unwrap();
    shared.waker.wake();
    let before = polls.load(Ordering::Relaxed);
    // Between two looks that found nothing it has slept.
    while polls.load(Ordering::Relaxed) < before + 3 {
        std::thread::yield_now();
    }
    drop(thread);
    assert!(!shared.waker.drain(), "the wake is still there");
}

/// A caller that polls may make the transport forget whom to wake: the progress thread arms it again and does not sleep out its nap.
#[test]
fn whoever_polls_rouses_the_progress_thread() {
    let Rig { engine, polls, .. } = Rig::new(Consistency::Asp, 8);
    let shared = engine.shared.clone();
    let driver = Arc::new(Driver::new(engine, shared));
    let _thread = ProgressThread::start(driver.clone()).unwrap();
    for _ in 0..3 {
        while !driver.is_asleep() {
            std::thread::yield_now();
        }
        let before = polls.load(Ordering::Relaxed);
        let none = || Deadline::after(Instant::now(), Duration::ZERO);
        let outcome: Result<()> = driver.drive(none, |_| "nothing".to_owned(), |_| Ok(None));
        assert!(outcome.is_err());
        // It has not come to it yet, or has looked and sleeps again.
        assert!(!driver.is_asleep() || polls.load(Ordering::Relaxed) >= before + 2);
        while polls.load(Ordering::Relaxed) < before + 2 {
            std::thread::yield_now();
        }
    }
    // And then it sleeps: a wake is heard once.
    let before = polls.load(Ordering::Relaxed);
    (0..10_000).for_each(|_| std::thread::yield_now());
    let looks = polls.load(Ordering::Relaxed) - before;
    assert!(looks < 100, "{looks}");
}

/// What a server thread says of what it publishes is held against what it must be.
#[test]
fn a_server_that_publishes_nonsense_is_named() {
    let told = |table, records| {
        let mut rig = Rig::new(Consistency::Bsp, 8);
        rig.publish(table, records);
        rig
    };
    let blamed = |rig: &mut Rig| match rig.engine.progress().unwrap_err() {
        Error::Protocol { peer, field, .. } => (peer, field),
        other => panic!("{other}"),
    };
    // The same table twice over one endpoint, but anew over the next.
    let mut rig = told(0, 16);
    rig.engine.progress().unwrap();
    rig.publish(0, 16);
    assert_eq!(blamed(&mut rig), ("server 0".to_owned(), "tag"));
    let mut rig = told(0, 16);
    rig.engine.progress().unwrap();
    rig.reconnect();
    rig.publish(0, 16);
    rig.engine.progress().unwrap();
    assert_eq!(blamed(&mut told(MAX_TABLES, 16)), ("server 0".to_owned(), "tag"));
    // 2^20 elements are 16 buckets, and all are this thread's.
    for (records, right) in [(16, true), (15, false)] {
        let mut rig = told(0, records);
        rig.engine.progress().unwrap();
        let spec = Arc::new((*rig.spec).clone().publish(Publish::epochs(2)));
        let readable = Readable::of(&spec, &rig.map).map(Arc::new);
        let (chains, readable) = (Chains::default(), readable.as_ref());
        let table = Target { spec: &spec, map: &rig.map, chains, after: None, priority: 0, readable };
        let ticket = rig.engine.new_pull(&table, false, None).unwrap();
        let frame = DenseFrame { shard: 0, bucket: 0, first: 0, count: 16, at: 0 };
        let asked = rig.engine.pull_dense((ticket, 0), &mut [frame].into_iter().peekable());
        match asked {
            Ok(all) => assert!(all && right),
            Err(error) => {
                assert!(!right && matches!(error, Error::Protocol { field: "records", .. }), "{error}")
            }
        }
    }
}
