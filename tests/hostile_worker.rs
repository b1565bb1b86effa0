//! Workers that hold the job's secret and do harm: the server ends the job by name, or turns them away and serves the rest.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use windlass::config::{Network, TransportChoice, TransportKind};
use windlass::control::{Event, Hub, HubConfig, LinkId};
use windlass::error::{Error, Result};
use windlass::mem::{Arena, RegionId, RegionSlice, RemoteRegion, Rights};
use windlass::proto::control::ControlMessage;
use windlass::proto::handshake::{SessionKey, derive_endpoint_key};
use windlass::proto::{HEADER, NO_BASE, ReplyHeader, ReplyKind, RequestHeader, RequestKind};
use windlass::server::ServerHandle;
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome};
use windlass::transport::{Completion, EndpointId, Message, Payload, Read, Side, Transport, Write, choice};
use windlass::types::{
    Aggregate, Identity, OptimizerSpec, PartitionMap, Publish, Role, ServerInfo, ShardId, View,
};
use windlass::{Secret, Server, TableSpec};

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker's hub with its links.
struct Worker {
    hub: Hub,
    events: Vec<Event>,
    export: Option<SessionKey>,
}

impl Worker {
    fn new(secret: &Secret, rank: u32, incarnation: u64) -> Worker {
        let process = format!("test:{}", std::process::id());
        let identity = Identity { role: Role::Worker, rank: Some(rank), incarnation, process };
        let hub = Hub::new(HubConfig::new(secret.clone(), "", identity)).unwrap();
        Worker { hub, events: Vec::new(), export: None }
    }

    fn dial(&mut self, address: &str) -> LinkId {
        let link = self.hub.dial(address, "a peer").unwrap();
        match self.event() {
            Event::Up { export, .. } => self.export = Some(export),
            other => panic!("{other:?}"),
        }
        link
    }

    fn event(&mut self) -> Event {
        let end = Instant::now() + PATIENCE;
        while self.events.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing happened");
            self.hub.poll(&mut self.events, left).unwrap();
        }
        self.events.remove(0)
    }

    fn message(&mut self) -> ControlMessage {
        match self.event() {
            Event::Message { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    fn join(&mut self, coordinator: &str, rank: u32, workers: u32) -> LinkId {
        let link = self.dial(coordinator);
        let (rank, workers) = (Some(rank), Some(workers));
        let join =
            ControlMessage::Join { role: Role::Worker, rank, workers, address: None, threads: 0, first: 0 };
        self.hub.send(link, &join).unwrap();
        link
    }

    fn view(&mut self) -> View {
        loop {
            if let ControlMessage::View(view) = self.message() {
                return view;
            }
        }
    }

    fn query(&mut self, link: LinkId, request: u32) {
        self.hub.send(link, &ControlMessage::StatsQuery { request }).unwrap();
    }

    fn assert_answered(&mut self, wanted: u32) {
        match self.message() {
            ControlMessage::Stats { request, .. } => assert_eq!(request, wanted),
            other => panic!("{other:?}"),
        }
    }

    fn assert_down(&mut self, which: LinkId) {
        match self.event() {
            Event::Down { link, .. } => assert_eq!(link, which),
            other => panic!("{other:?}"),
        }
    }
}

/// A job of one server with `N` workers that have seen the View.
struct Job<const N: usize> {
    secret: Secret,
    coordinator: JoinHandle<Result<Outcome>>,
    server: ServerHandle,
    address: String,
    workers: [(Worker, LinkId); N],
}

impl<const N: usize> Job<N> {
    fn start() -> Job<N> {
        let secret = Secret::generate().unwrap();
        let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(N as u32));
        let coordinator = CoordinatorServer::bind(config).unwrap();
        let address: SocketAddr = coordinator.address();
        let coordinator = std::thread::spawn(move || coordinator.run());
        let transport = TransportChoice::Only(TransportKind::Tcp);
        let network = Network { transport, ..Network::default() };
        let server = Server::builder(&address.to_string(), secret.clone()).threads(2).network(network);
        let server = server.start().unwrap();
        let mut workers = std::array::from_fn(|rank| {
            let mut worker = Worker::new(&secret, rank as u32, 1);
            let link = worker.join(&address.to_string(), rank as u32, N as u32);
            (worker, link)
        });
        let views = workers.each_mut().map(|(worker, _)| worker.view());
        let address = views[0].servers[0].address.clone();
        Job { secret, coordinator, server, address, workers }
    }

    fn finish(mut self) {
        for (worker, link) in &mut self.workers {
            worker.hub.send(*link, &ControlMessage::Finish).unwrap();
        }
        for (worker, _) in &mut self.workers {
            while !matches!(worker.event(), Event::Down { .. }) {}
        }
        self.coordinator.join().unwrap().unwrap();
        self.server.run().unwrap();
    }
}

/// One worker's endpoint to a server thread, made by hand.
struct Data {
    control: LinkId,
    transport: Box<dyn Transport>,
    endpoint: EndpointId,
    arena: Arc<Arena>,
    region: RegionId,
    slots: RemoteRegion,
    slot_bytes: u64,
    sequence: u64,
    /// Replies that came, and how many of them have been looked at.
    replies: u64,
    read: u64,
}

/// Where the reply ring, the receive memory and what is sent lie in a worker's arena.
const RING: usize = 0;
const RING_ENTRIES: usize = 64;
const RECEIVE: usize = RING_ENTRIES * HEADER;
const SENT: usize = 1 << 16;

impl<const N: usize> Job<N> {
    /// Opens an endpoint of worker `rank` to a thread of the server.
    fn open(&mut self, rank: usize, thread: u32) -> Data {
        let worker = &mut self.workers[rank].0;
        let link = worker.dial(&self.address);
        let mut transport =
            choice::build(&Network::default(), TransportKind::Tcp, choice::Seat::Dials).unwrap();
        let arena = Arena::new(1 << 20).unwrap();
        let region = transport.register(arena.clone()).unwrap();
        let (endpoint, address) = transport.open(Side::Active, "the server").unwrap();
        let mut grant = |offset| transport.authorise(endpoint, region, offset, RECEIVE, Rights::Write);
        let (ring, receive) = (grant(RING).unwrap().encode(), grant(RECEIVE).unwrap().encode());
        let open = ControlMessage::OpenEndpoint {
            request: 7,
            thread,
            transport: transport.caps().name.to_owned(),
            address,
            ring,
            ring_entries: RING_ENTRIES as u32,
            receive,
        };
        worker.hub.send(link, &open).unwrap();
        let ControlMessage::EndpointOpened { request: 7, address, slots, slot_bytes, .. } = worker.message()
        else {
            panic!("refused")
        };
        let key = derive_endpoint_key(worker.export.as_ref().unwrap(), "data", &[thread]);
        transport.connect(endpoint, &address, &key).unwrap();
        let slots = RemoteRegion::decode(&slots).unwrap();
        let slot_bytes = slot_bytes.into();
        let mut data = Data {
            control: link,
            transport,
            endpoint,
            arena,
            region,
            slots,
            slot_bytes,
            sequence: 0,
            replies: 0,
            read: 0,
        };
        data.until(|c| matches!(c, Completion::Connected { .. }));
        data
    }
}

impl Data {
    fn until(&mut self, wanted: impl Fn(&Completion) -> bool) {
        let end = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        loop {
            self.transport.flush();
            self.transport.poll(&mut completions, 16);
            self.replies +=
                completions.iter().filter(|c| matches!(c, Completion::Written { .. })).count() as u64;
            if completions.iter().any(&wanted) {
                return;
            }
            let closed = completions.iter().any(|c| matches!(c, Completion::Closed { .. }));
            assert!(!closed && Instant::now() < end, "{completions:?}");
            completions.clear();
        }
    }

    fn copy(&self, at: usize, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        // SAFETY: `at` proves the range, and the bytes are read after the completion that announced them.
        unsafe { self.arena.at(at, length).copy_to_nonoverlapping(out.as_mut_ptr(), length) };
        out
    }

    /// Writes a header and a body into a slot, and says so unless `silently`.
    fn fill(&mut self, slot: u64, header: [u8; HEADER], body: &[u8], silently: bool) {
        // SAFETY: `at` proves the range; what was sent from it before has been answered, so that nobody reads it.
        unsafe { self.arena.at(SENT, body.len()).copy_from_nonoverlapping(body.as_ptr(), body.len()) };
        let slice =
            RegionSlice { arena: self.arena.clone(), region: self.region, offset: SENT, length: body.len() };
        let write = Write {
            header: Some(header),
            body: (!body.is_empty()).then_some(Payload::Pinned(slice)),
            remote: self.slots,
            offset: slot * self.slot_bytes,
            imm: (!silently).then_some(slot as u32),
            context: Some(1),
        };
        self.transport.write(self.endpoint, write).unwrap();
        self.until(|c| matches!(c, Completion::Done { .. }));
    }

    fn request(&mut self, slot: u64, mut header: RequestHeader, body: &[u8]) {
        header.sequence = self.sequence;
        header.length = body.len() as u32;
        self.sequence += 1;
        self.fill(slot, header.encode(), body, false);
    }

    fn mark(&mut self, slot: u64) {
        self.request(slot, header(RequestKind::Mark, 0, 0), &[]);
    }

    /// The next reply's header.
    fn reply(&mut self) -> ReplyHeader {
        if self.replies == self.read {
            self.until(|c| matches!(c, Completion::Written { .. }));
        }
        let bytes = self.copy(RING + self.read as usize * HEADER, HEADER);
        self.read += 1;
        ReplyHeader::decode(bytes.as_slice().try_into().unwrap()).unwrap()
    }
}

fn header(kind: RequestKind, bucket: u32, count: u32) -> RequestHeader {
    let after_push = kind == RequestKind::Pull;
    RequestHeader {
        kind,
        after_push,
        void: false,
        keys: Default::default(),
        packed: false,
        sequence: 0,
        clock: 0,
        region: 0,
        chain: 0,
        argument: if kind == RequestKind::Push { NO_BASE } else { 0 },
        table: 0,
        bucket,
        epoch: 1,
        first: 0,
        count,
        length: 0,
        tag: 5,
    }
}

/// Two workers with an endpoint each to thread 0, and a table of which a bucket belongs to that thread.
fn two_with(spec: &TableSpec) -> (Job<2>, [Data; 2], u32) {
    let mut job = Job::<2>::start();
    let (worker, link) = &mut job.workers[0];
    worker.hub.send(*link, &ControlMessage::OpenTable { request: 1, spec: spec.clone() }).unwrap();
    assert!(matches!(worker.message(), ControlMessage::TableOpened { table: 0, .. }));
    let servers = vec![ServerInfo { rank: 0, address: String::new(), threads: 2, first: 0 }];
    let map = PartitionMap::new(&View { epoch: 1, servers, workers: 2 }, spec);
    let bucket = map.buckets_of(ShardId { server: 0, thread: 0 })[0];
    let ends = [0, 1].map(|rank| job.open(rank, 0));
    (job, ends, bucket)
}

/// Waits until the server has taken worker 1's push: what is written into its slot before that may be taken for it.
fn until_pushed(job: &mut Job<2>, second: &Data) {
    let worker = &mut job.workers[1].0;
    for request in 0.. {
        worker.query(second.control, request);
        let ControlMessage::Stats { threads, .. } = worker.message() else { panic!("no figures") };
        if threads[0].pushes == 1 {
            return;
        }
    }
}

/// The gate holds worker 1's push in its slot. Worker 1 writes over its header, which has been copied: the push counts as it was.
#[test]
fn a_header_changed_while_the_gate_holds_the_push_changes_nothing() {
    let spec = TableSpec::dense("w", &[64]).segment_bytes(64).optimizer(OptimizerSpec::sum());
    let (mut job, [mut first, mut second], bucket) = two_with(&spec.aggregate(Aggregate::Sum));
    let ones: Vec<u8> = [1.0f32; 16].iter().flat_map(|v| v.to_le_bytes()).collect();
    second.request(0, header(RequestKind::Push, bucket, 16), &ones);
    until_pushed(&mut job, &second);
    let mut lie = header(RequestKind::Push, u32::MAX, u32::MAX);
    (lie.table, lie.length, lie.clock) = (u32::MAX, u32::MAX, u64::MAX);
    for changed in [lie.encode(), [0xff; HEADER], [0; HEADER]] {
        second.fill(0, changed, &[], true);
    }
    second.mark(1);
    // The mark has been taken, and so has all that was written before it.
    while second.reply().freed & 2 == 0 {}
    first.mark(0);
    first.request(1, header(RequestKind::Pull, bucket, 16), &[]);
    while first.reply().kind != ReplyKind::Pulled {}
    assert_eq!(first.copy(RECEIVE, 64), ones);
}

/// The same with the keys, which are copied when the push is let through: whatever they are then is checked before it is used.
#[test]
fn keys_changed_while_the_gate_holds_the_push_are_checked_and_end_the_job_by_name() {
    let spec = TableSpec::sparse("v", 1);
    let (mut job, [mut first, mut second], bucket) = two_with(&spec);
    let keys: Vec<u64> = (0..).filter(|key| spec.bucket_of(*key) == bucket).take(2).collect();
    let body = |bucket: u32, count: u32, keys: [u64; 2]| {
        [&bucket.to_le_bytes()[..], &count.to_le_bytes(), &keys.map(u64::to_le_bytes).concat(), &[0; 8]]
            .concat()
    };
    let mut push = header(RequestKind::Push, 0, 2);
    push.first = 1;
    second.request(0, push, &body(bucket, 2, [keys[0], keys[1]]));
    until_pushed(&mut job, &second);
    // Another bucket than there is, more keys than there are, in the wrong order: the last stays.
    push.length = 32;
    for changed in
        [body(u32::MAX, 2, [0; 2]), body(bucket, u32::MAX, [0; 2]), body(bucket, 2, [keys[1], keys[0]])]
    {
        second.fill(0, push.encode(), &changed, true);
    }
    second.mark(1);
    while second.reply().freed & 2 == 0 {}
    first.mark(0);
    let Err(Error::Aborted { reason }) = job.coordinator.join().unwrap() else { panic!("it went well") };
    for part in ["server 0", "worker 1", "keys"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(matches!(job.server.run().unwrap_err(), Error::Protocol { .. }));
}

/// What is published may be read, and not a byte behind it, nor written at all.
#[test]
fn a_reader_reaches_what_is_published_and_nothing_else() {
    let spec = TableSpec::dense("w", &[64]).segment_bytes(64).publish(Publish::epochs(2));
    let record = spec.epochs().unwrap().record();
    for hostile in [Harm::None, Harm::Behind, Harm::Write] {
        let (_job, [mut first, _second], _) = two_with(&spec);
        let told = loop {
            let reply = first.reply();
            if reply.kind == ReplyKind::Published {
                break reply;
            }
        };
        let published = u64::from(told.bucket) * record;
        assert!(told.tag == 0 && (1..=4).contains(&told.bucket), "{told:?}");
        let forged = RemoteRegion {
            address: told.version,
            length: 1 << 20,
            key: told.count,
            rights: Rights::ReadWrite,
        };
        let local =
            RegionSlice { arena: first.arena.clone(), region: first.region, offset: SENT, length: 64 };
        let offset = if hostile == Harm::Behind { published - 63 } else { published - 64 };
        let Data { transport, endpoint, .. } = &mut first;
        if hostile == Harm::Write {
            let body = Some(Payload::Pinned(local));
            let write = Write { header: None, body, remote: forged, offset, imm: None, context: None };
            transport.write(*endpoint, write).unwrap();
        } else {
            transport.read(*endpoint, Read { remote: forged, offset, local, context: 9 }).unwrap();
        }
        let (mut completions, end) = (Vec::new(), Instant::now() + PATIENCE);
        let over = |c: &Completion| match hostile {
            Harm::None => matches!(c, Completion::Done { context: 9, .. }),
            _ => matches!(c, Completion::Closed { .. }),
        };
        while !completions.iter().any(over) {
            assert!(Instant::now() < end, "{hostile:?}: {completions:?}");
            transport.flush();
            transport.poll(&mut completions, 16);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    None,
    Behind,
    Write,
}

#[test]
fn a_frame_that_the_protocol_does_not_allow_ends_the_job_by_name() {
    let mut job = Job::<1>::start();
    let mut data = job.open(0, 1);
    let Data { transport, endpoint, .. } = &mut data;
    let (mut completions, end) = (Vec::new(), Instant::now() + PATIENCE);
    transport.send(*endpoint, Message::new(b"abc").unwrap()).unwrap();
    while !completions.iter().any(|c| matches!(c, Completion::Closed { .. })) {
        assert!(Instant::now() < end, "{completions:?}");
        transport.flush();
        transport.poll(&mut completions, 16);
    }
    let Err(Error::Aborted { reason }) = job.coordinator.join().unwrap() else { panic!("it went well") };
    for part in ["server 0", "worker 0", "message", "ring read of 9 bytes", "3 bytes"] {
        assert!(reason.contains(part), "{reason}");
    }
    let error = job.server.run().unwrap_err();
    assert!(matches!(error, Error::Protocol { field: "message", .. }), "{error}");
}

#[test]
fn another_process_does_not_take_a_workers_place() {
    let mut job = Job::<1>::start();
    let link = job.workers[0].0.dial(&job.address);
    job.workers[0].0.query(link, 1);
    job.workers[0].0.assert_answered(1);
    for rank in [0, 1] {
        let mut impostor = Worker::new(&job.secret, rank, 2);
        let theirs = impostor.dial(&job.address);
        impostor.assert_down(theirs);
    }
    job.workers[0].0.query(link, 2);
    job.workers[0].0.assert_answered(2);
    // The same process may dial again; then its first link goes.
    let again = job.workers[0].0.dial(&job.address);
    job.workers[0].0.assert_down(link);
    job.workers[0].0.query(again, 3);
    job.workers[0].0.assert_answered(3);
    job.finish();
}

#[test]
fn a_flood_of_questions_costs_its_own_worker_the_link() {
    let mut job = Job::<2>::start();
    let [flooder, other] = [0, 1].map(|rank: usize| {
        let link = job.workers[rank].0.dial(&job.address);
        job.workers[rank].0.query(link, 1);
        job.workers[rank].0.assert_answered(1);
        link
    });
    for request in 0..20_000 {
        job.workers[0].0.query(flooder, request);
    }
    loop {
        match job.workers[0].0.event() {
            Event::Message { message: ControlMessage::Stats { .. }, .. } => {}
            Event::Down { link, .. } => break assert_eq!(link, flooder),
            other => panic!("{other:?}"),
        }
    }
    job.workers[1].0.query(other, 2);
    job.workers[1].0.assert_answered(2);
    job.finish();
}
