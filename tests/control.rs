//! The control plane over real sockets on 127.0.0.1: a whole job, failures, and strangers of all kinds.

// The helpers are tests too.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use windlass::config::TransportKind;
use windlass::control::{Event, Hub, HubConfig, Limits, LinkId};
use windlass::error::{Error, Result};
use windlass::proto::control::{ControlMessage, FrameReader, FrameWriter, PeerStatus};
use windlass::proto::handshake::{Dialler, Established, Local, Nonce};
use windlass::proto::secret::Secret;
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome, StopHandle};
use windlass::types::{Identity, Role, TableSpec, View};
use windlass::{Client, ClientConfig};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

fn secret(byte: u8) -> Secret {
    Secret::from_hex(&format!("{byte:02x}").repeat(32)).unwrap()
}

fn identity(role: Role, rank: Option<u32>) -> Identity {
    Identity { role, rank, incarnation: 1, process: format!("test:{}", std::process::id()) }
}

fn config(role: Role, rank: Option<u32>) -> HubConfig {
    HubConfig::new(secret(1), "job", identity(role, rank))
}

/// A Coordinator on its own thread.
struct Job {
    address: SocketAddr,
    stop: StopHandle,
    thread: JoinHandle<Result<Outcome>>,
}

impl Job {
    fn start(servers: u32, workers: Option<u32>) -> Job {
        let server =
            CoordinatorServer::bind(CoordinatorServerConfig::new(secret(1), "job", servers, workers))
                .unwrap();
        let (address, stop) = (server.address(), server.stop_handle());
        Job { address, stop, thread: std::thread::spawn(move || server.run()) }
    }

    fn end(self) -> Result<Outcome> {
        self.thread.join().unwrap()
    }
}

/// A hub with one link.
struct Node {
    hub: Hub,
    link: LinkId,
    events: Vec<Event>,
}

impl Node {
    fn dial(config: HubConfig, address: SocketAddr) -> Node {
        let mut hub = Hub::new(config).unwrap();
        let link = hub.dial(&address.to_string(), "the coordinator").unwrap();
        Node { hub, link, events: Vec::new() }
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

    fn up(&mut self) {
        match self.event() {
            Event::Up { peer, .. } => assert_eq!(peer.role, Role::Coordinator),
            other => panic!("{other:?}"),
        }
    }

    fn message(&mut self) -> ControlMessage {
        match self.event() {
            Event::Message { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    fn down(&mut self) -> Error {
        match self.event() {
            Event::Down { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, message: ControlMessage) {
        self.hub.send(self.link, &message).unwrap();
    }

    fn join(job: &Job, role: Role, rank: Option<u32>, workers: Option<u32>) -> Node {
        let mut node = Node::dial(config(role, rank), job.address);
        node.up();
        let server = role == Role::Server;
        let address = server.then(|| "127.0.0.1:4000".to_owned());
        node.send(ControlMessage::Join {
            role,
            rank,
            workers,
            address,
            threads: u32::from(server),
            first: 0,
        });
        node
    }

    fn joined(&mut self) -> u32 {
        match self.message() {
            ControlMessage::Joined { rank } => rank,
            other => panic!("{other:?}"),
        }
    }

    /// The View, behind what the job's data travels by: nobody here offers anything but tcp.
    fn view(&mut self) -> View {
        let agreed = self.message();
        assert_eq!(
            agreed,
            ControlMessage::Agreed { transport: TransportKind::Tcp, local: false, reason: String::new() }
        );
        match self.message() {
            ControlMessage::View(view) => view,
            other => panic!("{other:?}"),
        }
    }

    fn aborted(&mut self) -> String {
        match self.message() {
            ControlMessage::Abort { reason } => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// A job whose nodes have all seen the View.
fn running(servers: u32, workers: u32) -> (Job, Vec<Node>, Vec<Node>) {
    let job = Job::start(servers, Some(workers));
    let mut s: Vec<Node> = (0..servers).map(|_| Node::join(&job, Role::Server, None, None)).collect();
    let mut w: Vec<Node> =
        (0..workers).map(|rank| Node::join(&job, Role::Worker, Some(rank), Some(workers))).collect();
    let mut ranks: Vec<u32> = s.iter_mut().map(Node::joined).collect();
    ranks.sort_unstable();
    assert_eq!(ranks, (0..servers).collect::<Vec<_>>());
    for (rank, node) in (0..).zip(&mut w) {
        assert_eq!(node.joined(), rank);
    }
    let views: Vec<View> = s.iter_mut().chain(&mut w).map(Node::view).collect();
    assert!(views.iter().all(|view| *view == views[0]));
    assert_eq!((views[0].epoch, views[0].servers.len(), views[0].workers), (1, servers as usize, workers));
    (job, s, w)
}

fn barrier(workers: &mut [Node], id: u64) {
    for worker in &mut *workers {
        worker.send(ControlMessage::Barrier { id });
    }
    for worker in workers {
        assert_eq!(worker.message(), ControlMessage::BarrierDone { id });
    }
}

fn finish(job: Job, servers: Vec<Node>, mut workers: Vec<Node>) -> Outcome {
    workers.iter_mut().for_each(|w| w.send(ControlMessage::Finish));
    for mut server in servers {
        assert_eq!(server.message(), ControlMessage::Shutdown);
    }
    drop(workers);
    job.end().unwrap()
}

#[test]
fn a_whole_job() {
    let (job, mut servers, mut workers) = running(2, 3);
    let spec = TableSpec::dense("w", &[1000]);
    for (request, worker) in (10..).zip(&mut workers) {
        worker.send(ControlMessage::OpenTable { request, spec: spec.clone() });
    }
    for server in &mut servers {
        assert_eq!(server.message(), ControlMessage::CreateTable { table: 0, spec: spec.clone() });
        server.send(ControlMessage::TableReady { table: 0 });
    }
    for (request, worker) in (10..).zip(&mut workers) {
        let opened = ControlMessage::TableOpened { request, table: 0, spec: spec.clone() };
        assert_eq!(worker.message(), opened);
    }

    let other = TableSpec::sparse("w", 7);
    workers[1].send(ControlMessage::OpenTable { request: 5, spec: other.clone() });
    match workers[1].message() {
        ControlMessage::TableRefused { request: 5, reason } => {
            assert!(reason.contains(&spec.to_string()) && reason.contains(&other.to_string()), "{reason}");
        }
        message => panic!("{message:?}"),
    }
    barrier(&mut workers, 7);

    workers[2].send(ControlMessage::Heartbeat { clock: 4, status: b"ok".to_vec() });
    assert_eq!(workers[2].message(), ControlMessage::HeartbeatAck);
    workers[0].send(ControlMessage::PeersQuery);
    let status = PeerStatus { rank: 2, clock: 4, status: b"ok".to_vec() };
    assert_eq!(workers[0].message(), ControlMessage::Peers(vec![status]));
    assert_eq!(finish(job, servers, workers), Outcome { saved: None, servers: 2, workers: 3, tables: 1 });
}

#[test]
fn a_worker_that_finishes_holds_nobody_up() {
    let (job, servers, mut workers) = running(1, 3);
    workers[0].send(ControlMessage::Barrier { id: 1 });
    workers[2].send(ControlMessage::Barrier { id: 1 });
    workers[1].send(ControlMessage::Finish);
    assert_eq!(workers[0].message(), ControlMessage::BarrierDone { id: 1 });
    assert_eq!(workers[2].message(), ControlMessage::BarrierDone { id: 1 });
    // Its leaving is orderly.
    drop(workers.remove(1));
    barrier(&mut workers, 2);
    finish(job, servers, workers);
}

#[test]
fn a_wrong_secret_is_refused_and_the_job_goes_on() {
    let (job, servers, mut workers) = running(1, 2);
    let mut wrong = config(Role::Worker, Some(1));
    wrong.local.secret = secret(2);
    let mut stranger = Node::dial(wrong, job.address);
    let error = stranger.down();
    let expected = format!("the coordinator at {} refused: wrong job secret", job.address);
    assert_eq!(error.to_string(), expected);
    barrier(&mut workers, 1);
    finish(job, servers, workers);
}

#[test]
fn the_acceptor_names_whom_it_refused() {
    let mut server = Hub::new(config(Role::Server, Some(0))).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap();
    let mut wrong = config(Role::Worker, Some(3));
    wrong.local.secret = secret(2);
    let mut stranger = Node::dial(wrong, address);
    let mut events = Vec::new();
    let end = Instant::now() + PATIENCE;
    while events.is_empty() && Instant::now() < end {
        server.poll(&mut events, Duration::from_millis(5)).unwrap();
        stranger.hub.poll(&mut stranger.events, Duration::from_millis(5)).unwrap();
    }
    let Some(Event::Refused { reason: reason @ Error::Refused { .. }, address }) = events.pop() else {
        panic!("{events:?}")
    };
    let expected = format!("worker 3 (test:{}) at {address}: wrong secret", std::process::id());
    assert!(reason.to_string().contains(&expected), "{reason}");
}

#[test]
fn a_killed_node_aborts_the_job_everywhere_by_name() {
    let (job, mut servers, mut workers) = running(2, 3);
    drop(workers.remove(2));
    let expected = format!("worker 2 (test:{}) is lost: connection closed", std::process::id());
    for node in servers.iter_mut().chain(&mut workers) {
        assert_eq!(node.aborted(), expected);
        // The link is closed behind it.
        node.down();
    }
    let error = job.end().unwrap_err();
    assert!(matches!(&error, Error::Aborted { reason } if *reason == expected), "{error}");

    let (job, mut servers, mut workers) = running(2, 1);
    drop(servers.remove(0));
    assert!(workers[0].aborted().contains("server 0 (test:"));
    assert!(servers[0].aborted().contains("is lost"));
    drop((servers, workers));
    assert!(job.end().is_err());
}

/// The others hear what a worker could not reach, and not only that it has gone.
#[test]
fn a_worker_that_can_not_reach_a_server_tells_the_others_which() {
    let job = Job::start(1, Some(1));
    let (mut server, role) = (Node::dial(config(Role::Server, None), job.address), Role::Server);
    server.up();
    let address = Some("127.0.0.1:1".to_owned()); // nobody listens there
    server.send(ControlMessage::Join { role, rank: None, workers: None, address, threads: 1, first: 0 });
    let mut config = ClientConfig::new(&job.address.to_string(), secret(1), 0, 1);
    config.job = "job".to_owned();
    config.network.limits.dial_timeout = Duration::from_millis(300);
    let worker = std::thread::spawn(move || Client::connect(config).err().unwrap().to_string());
    let reason = loop {
        if let ControlMessage::Abort { reason } = server.message() {
            break reason;
        }
    };
    let said = worker.join().unwrap();
    assert!(said.contains("server 0 at 127.0.0.1:1 "), "{said}");
    assert!(reason.starts_with("worker 0 (") && reason.ends_with(&format!("gave up: {said}")), "{reason}");
    assert!(job.end().is_err());
}

#[test]
fn a_silent_node_is_lost() {
    let mut quick = CoordinatorServerConfig::new(secret(1), "job", 1, Some(1));
    quick.limits.peer_timeout = Duration::from_millis(300);
    let server = CoordinatorServer::bind(quick).unwrap();
    let address = server.address();
    let thread = std::thread::spawn(move || server.run());
    let (mut stream, established) = handshake(address, identity(Role::Worker, Some(0)));
    let join = ControlMessage::Join {
        role: Role::Worker,
        rank: Some(0),
        workers: Some(1),
        address: None,
        threads: 0,
        first: 0,
    };
    let mut frame = Vec::new();
    FrameWriter::new(established.send_key).encode(&join, &mut frame).unwrap();
    stream.write_all(&frame).unwrap();
    let error = thread.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("worker 0") && error.contains("silent for 300ms"), "{error}");
}

#[test]
fn links_that_have_nothing_to_say_live_on() {
    let mut quick = config(Role::Server, Some(0));
    quick.limits.peer_timeout = Duration::from_millis(200);
    let mut server = Hub::new(quick.clone()).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap();
    quick.local.identity = identity(Role::Worker, Some(0));
    let mut worker = Node::dial(quick, address);
    let mut events = Vec::new();
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        server.poll(&mut events, Duration::from_millis(5)).unwrap();
        worker.hub.poll(&mut worker.events, Duration::from_millis(5)).unwrap();
    }
    assert!(matches!(events.as_slice(), [Event::Up { .. }]), "{events:?}");
    assert!(matches!(worker.events.as_slice(), [Event::Up { .. }]), "{:?}", worker.events);
    // Without the other side's turn it is lost.
    let mut lost = Vec::new();
    while lost.is_empty() {
        server.poll(&mut lost, PATIENCE).unwrap();
    }
    assert!(matches!(&lost[0], Event::Down { reason: Error::PeerLost { .. }, .. }), "{lost:?}");
}

#[test]
fn strangers_of_all_kinds_disturb_nobody() {
    let (job, servers, mut workers) = running(1, 2);
    barrier(&mut workers, 1);
    let connect = || TcpStream::connect(job.address).unwrap();
    // Garbage, a length that is too large, a slow Hello, half a Hello, and a thousand that say nothing.
    let mut loud: Vec<TcpStream> = (0..20).map(|_| connect()).collect();
    for (n, stream) in loud.iter_mut().enumerate() {
        let garbage: Vec<u8> = (0..5000).map(|i| (i * 31 + n * 17) as u8).collect();
        // The other side may have closed already.
        let _ = stream.write_all(&garbage);
    }
    let mut oversized = connect();
    oversized.write_all(&[0xff, 0xff, 1]).unwrap();
    let mut http = connect();
    http.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let hello = hello(identity(Role::Worker, Some(0))).1;
    let mut slow = connect();
    slow.write_all(&hello[..1]).unwrap();
    let mut half = connect();
    half.write_all(&hello[..hello.len() / 2]).unwrap();
    let idle: Vec<TcpStream> = (0..1000).map(|_| connect()).collect();
    barrier(&mut workers, 2);
    // One that knows the secret still gets in, and is told that it is late.
    let mut late = Node::join(&job, Role::Worker, Some(1), Some(2));
    match late.message() {
        ControlMessage::JoinRefused { reason } => assert!(reason.contains("started"), "{reason}"),
        other => panic!("{other:?}"),
    }
    slow.write_all(&hello[1..2]).ok();
    barrier(&mut workers, 3);
    // All but the permitted number have been closed, and the oversized one at once.
    oversized.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(oversized.read(&mut [0; 16]), Ok(0) | Err(_)));
    let closed = idle.iter().filter(|stream| is_closed(stream)).count();
    assert!(closed >= 1000 - Limits::default().pre_auth, "{closed}");
    drop((idle, half, slow, http, loud));
    finish(job, servers, workers);
}

fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    !matches!((&*stream).read(&mut [0; 1]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn slow_handshakes_end_by_time() {
    let mut quick = config(Role::Server, Some(0));
    quick.limits.handshake_timeout = Duration::from_millis(100);
    let mut server = Hub::new(quick).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap();
    let _slow = TcpStream::connect(address).unwrap();
    let mut events = Vec::new();
    let end = Instant::now() + PATIENCE;
    while events.is_empty() && Instant::now() < end {
        server.poll(&mut events, PATIENCE).unwrap();
    }
    assert!(matches!(&events[0], Event::Refused { reason: Error::Timeout { .. }, .. }), "{events:?}");
}

fn hello(identity: Identity) -> (Dialler, Vec<u8>) {
    let local = Local { secret: secret(1), job: "job".into(), identity, offers: Vec::new() };
    let mut out = Vec::new();
    let dialler = Dialler::new(local, "the coordinator", Nonce::from([3; 32]), &mut out).unwrap();
    (dialler, out)
}

/// Runs a handshake by hand; gives the connection and what came of it.
fn handshake(address: SocketAddr, identity: Identity) -> (TcpStream, Established) {
    let (stream, established, _) = recorded_handshake(address, identity);
    (stream, established)
}

/// The same, with all bytes that were sent.
fn recorded_handshake(address: SocketAddr, identity: Identity) -> (TcpStream, Established, Vec<u8>) {
    let (mut dialler, mut out) = hello(identity);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut sent, mut input) = (Vec::new(), Vec::new());
    loop {
        stream.write_all(&out).unwrap();
        sent.append(&mut out);
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        input.push(byte[0]);
        let fed = dialler.feed(&input, &mut out).unwrap();
        input.drain(..fed.used);
        if let Some(established) = fed.established {
            return (stream, *established, sent);
        }
    }
}

#[test]
fn recorded_handshakes_can_not_be_replayed() {
    let (job, servers, mut workers) = running(1, 1);
    let (_first, _, sent) = recorded_handshake(job.address, identity(Role::Worker, Some(0)));
    let mut replay = TcpStream::connect(job.address).unwrap();
    replay.set_read_timeout(Some(PATIENCE)).unwrap();
    replay.write_all(&sent).unwrap();
    let mut answer = Vec::new();
    replay.read_to_end(&mut answer).unwrap();
    // Challenge, then Refuse (kind 5), then the end: no Accept (kind 4).
    let challenge = 2 + usize::from(u16::from_le_bytes([answer[0], answer[1]]));
    assert_eq!((answer[2], answer[challenge + 2]), (2, 5));
    assert!(answer.ends_with(b"wrong job secret"));
    barrier(&mut workers, 1);
    finish(job, servers, workers);
}

#[test]
fn forged_and_unfit_frames_close_that_link_only() {
    let (job, servers, mut workers) = running(1, 1);
    let closes = |bytes: &dyn Fn(&mut FrameWriter) -> Vec<u8>| {
        let (mut stream, established) = handshake(job.address, identity(Role::Worker, Some(0)));
        let mut writer = FrameWriter::new(established.send_key);
        stream.write_all(&bytes(&mut writer)).unwrap();
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let _ = stream.read_to_end(&mut rest);
        let mut reader = FrameReader::new(established.receive_key);
        assert!(reader.decode(&rest, "the coordinator").unwrap().is_none());
    };
    let encode = |writer: &mut FrameWriter, message: ControlMessage| {
        let mut out = Vec::new();
        writer.encode(&message, &mut out).unwrap();
        out
    };
    closes(&|writer| {
        let mut frame = encode(writer, ControlMessage::PeersQuery);
        *frame.last_mut().unwrap() ^= 1;
        frame
    });
    closes(&|_| vec![0xff; 4]);
    // Not joined, not for a coordinator, not in this state.
    closes(&|writer| encode(writer, ControlMessage::PeersQuery));
    closes(&|writer| encode(writer, ControlMessage::Shutdown));
    closes(&|writer| encode(writer, ControlMessage::TableReady { table: 0 }));
    barrier(&mut workers, 1);
    finish(job, servers, workers);
}

#[test]
fn joins_that_contradict_are_refused_with_both_values() {
    let job = Job::start(1, None);
    let mut first = Node::join(&job, Role::Worker, Some(0), Some(2));
    assert_eq!(first.joined(), 0);
    for (rank, claim, expected) in [
        (1, 3, "worker 1 says 3 workers, the job has 2"),
        (0, 2, "worker 0 is there already: worker 0 (test:"),
        (2, 2, "worker rank 2 of a job with 2 workers"),
    ] {
        let mut other = Node::join(&job, Role::Worker, Some(rank), Some(claim));
        match other.message() {
            ControlMessage::JoinRefused { reason } => assert!(reason.contains(expected), "{reason}"),
            message => panic!("{message:?}"),
        }
        other.down();
    }
    let mut server = Node::join(&job, Role::Server, None, None);
    assert_eq!(server.joined(), 0);
    let mut second = Node::join(&job, Role::Worker, Some(1), None);
    assert_eq!(second.joined(), 1);
    first.view();
    second.view();
    server.view();
    finish(job, vec![server], vec![first, second]);
}

#[test]
fn a_stopped_coordinator_tells_everybody() {
    let (job, mut servers, mut workers) = running(1, 1);
    job.stop.stop();
    job.stop.stop();
    assert!(servers[0].aborted().contains("stopped"));
    assert!(workers[0].aborted().contains("stopped"));
    drop((servers, workers));
    assert!(matches!(job.end(), Err(Error::Aborted { .. })));
}

#[test]
fn a_dial_waits_for_the_other_side_to_start() {
    // A port that was free a moment ago.
    let address = TcpListener::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut node = Node::dial(config(Role::Worker, Some(0)), address);
    node.hub.poll(&mut node.events, Duration::from_millis(100)).unwrap();
    let mut hub_config = config(Role::Coordinator, None);
    hub_config.local.identity.incarnation = 9;
    let mut listener = Hub::new(hub_config).unwrap();
    listener.listen(LOCALHOST, Some(address.port()..=address.port())).unwrap();
    let end = Instant::now() + PATIENCE;
    let mut events = Vec::new();
    while node.events.is_empty() && Instant::now() < end {
        listener.poll(&mut events, Duration::from_millis(5)).unwrap();
        node.hub.poll(&mut node.events, Duration::from_millis(5)).unwrap();
    }
    node.up();
}

#[test]
fn a_dial_that_nobody_answers_ends_with_the_reason() {
    let address = TcpListener::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut quick = config(Role::Worker, Some(0));
    quick.limits.connect_timeout = Duration::from_millis(200);
    let error = Node::dial(quick, address).down();
    let text = error.to_string();
    assert!(matches!(error, Error::Timeout { .. }), "{text}");
    assert!(text.contains(&format!("the coordinator at {address}")) && text.contains("refused"), "{text}");
    let mut hub = Hub::new(config(Role::Worker, Some(0))).unwrap();
    assert!(matches!(hub.dial("no port", "the coordinator"), Err(Error::Io { operation: "resolve", .. })));
}

#[test]
fn busy_ports_are_passed_over_and_a_full_range_is_named() {
    let taken = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let last = port.saturating_add(8);
    let mut hub = Hub::new(config(Role::Server, Some(0))).unwrap();
    let error = hub.listen(LOCALHOST, Some(port..=port)).unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("in use"), "{error}");
    let address = hub.listen(LOCALHOST, Some(port..=last)).unwrap();
    assert!(address.port() > port && address.port() <= last);
}

#[test]
fn ipv6_works_where_there_is_any() {
    let mut server = Hub::new(config(Role::Coordinator, None)).unwrap();
    let Ok(address) = server.listen(IpAddr::V6(Ipv6Addr::LOCALHOST), None) else {
        eprintln!("skipped: no IPv6 here");
        return;
    };
    let thread = std::thread::spawn(move || {
        let mut events = Vec::new();
        while events.is_empty() {
            server.poll(&mut events, PATIENCE).unwrap();
        }
        server
    });
    Node::dial(config(Role::Worker, Some(0)), address).up();
    thread.join().unwrap();
}

#[test]
fn a_peer_that_does_not_read_meets_a_limit_and_large_messages_pass() {
    let mut server = Hub::new(config(Role::Server, Some(0))).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap();
    let thread = std::thread::spawn(move || {
        let mut events = Vec::new();
        while events.is_empty() {
            server.poll(&mut events, PATIENCE).unwrap();
        }
        (server, events)
    });
    let mut worker = Node::dial(config(Role::Worker, Some(0)), address);
    assert!(matches!(worker.event(), Event::Up { .. }));
    let (mut server, events) = thread.join().unwrap();
    let Event::Up { link, .. } = events[0] else { panic!("{events:?}") };
    let peer = |rank| PeerStatus { rank, clock: u64::from(rank), status: vec![7; 64] };
    let large = ControlMessage::Peers((0..12_000).map(peer).collect());
    let sent = (0..1000).take_while(|_| server.send(link, &large).is_ok()).count();
    assert!(matches!(server.send(link, &large), Err(Error::Limit { .. })));
    // Nothing was lost at the limit: the peer gets what was taken once it reads.
    let (mut seen, mut events) = (0, Vec::new());
    while seen < sent {
        server.poll(&mut events, Duration::ZERO).unwrap();
        assert_eq!(worker.message(), large);
        seen += 1;
        while worker.events.is_empty() && seen < sent {
            server.poll(&mut events, Duration::ZERO).unwrap();
            worker.hub.poll(&mut worker.events, Duration::from_millis(1)).unwrap();
        }
    }
    assert!(sent >= 4, "{sent}");
}

#[test]
fn a_crowd_of_nodes_gets_in_through_few_places_and_survives_a_pause() {
    let mut limited = config(Role::Server, Some(0));
    limited.limits.pre_auth = 4;
    limited.limits.peer_timeout = Duration::from_secs(1);
    let mut server = Hub::new(limited).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap().to_string();
    let mut crowd = Hub::new(config(Role::Worker, Some(0))).unwrap();
    let links: Vec<LinkId> = (0..300).map(|_| crowd.dial(&address, "the server").unwrap()).collect();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let end = Instant::now() + PATIENCE;
    let all_up = |events: &[Event]| events.iter().filter(|e| matches!(e, Event::Up { .. })).count() == 300;
    while !(all_up(&ours) && all_up(&theirs)) && Instant::now() < end {
        crowd.poll(&mut ours, Duration::from_millis(1)).unwrap();
        server.poll(&mut theirs, Duration::from_millis(1)).unwrap();
    }
    assert!(ours.iter().all(|event| matches!(event, Event::Up { .. })), "{ours:?}");
    assert!(all_up(&ours) && all_up(&theirs), "{theirs:?}");

    // The server stops for longer than its limit, and more have spoken than it hears in one poll.
    let pause = Instant::now() + Duration::from_millis(1100);
    while Instant::now() < pause {
        crowd.poll(&mut ours, pause.saturating_duration_since(Instant::now())).unwrap();
    }
    links.iter().for_each(|&link| crowd.send(link, &ControlMessage::PeersQuery).unwrap());
    theirs.clear();
    while theirs.len() < 300 && Instant::now() < end {
        server.poll(&mut theirs, Duration::from_millis(10)).unwrap();
    }
    assert!(theirs.iter().all(|event| matches!(event, Event::Message { .. })), "{theirs:?}");
    assert_eq!(theirs.len(), 300);
}

/// Slow loris: a Hello that comes byte by byte has no more time than one that comes at once.
#[test]
fn a_hello_that_drips_is_cut_off() {
    const GIVEN: Duration = Duration::from_millis(250);
    let mut hurried = config(Role::Server, Some(0));
    hurried.limits.handshake_timeout = GIVEN;
    let mut server = Hub::new(hurried).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap();
    let hello = hello(identity(Role::Worker, Some(0))).1;
    let mut stream = TcpStream::connect(address).unwrap();
    let (start, mut sent, mut events) = (Instant::now(), 0, Vec::new());
    while events.is_empty() {
        // A byte every 20 ms: the whole would take longer than a second.
        if start.elapsed() > Duration::from_millis(20) * sent as u32 && sent < hello.len() {
            let _ = stream.write(&hello[sent..=sent]);
            sent += 1;
        }
        assert!(start.elapsed() < PATIENCE, "it goes on after {sent} bytes");
        server.poll(&mut events, Duration::from_millis(5)).unwrap();
    }
    assert!(matches!(&events[..], [Event::Refused { .. }]), "{events:?}");
    assert!(start.elapsed() >= GIVEN && sent < hello.len(), "{sent} bytes in {:?}", start.elapsed());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
}

#[test]
fn a_stranger_keeps_its_place_for_a_moment() {
    let mut limited = config(Role::Server, Some(0));
    limited.limits.pre_auth = 1;
    let mut server = Hub::new(limited).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap();
    let start = Instant::now();
    let first = TcpStream::connect(address).unwrap();
    let second = TcpStream::connect(address).unwrap();
    let mut events = Vec::new();
    while events.is_empty() {
        server.poll(&mut events, PATIENCE).unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(20), "{:?}", start.elapsed());
    let [Event::Refused { address, reason: Error::Limit { .. } }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*address, first.local_addr().unwrap());
    assert!(is_closed(&first) && !is_closed(&second));
}

#[test]
fn a_dialler_that_was_not_answered_dials_again() {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut node = Node::dial(config(Role::Worker, Some(0)), address);
    let thread = std::thread::spawn(move || {
        // The first acceptor goes away after it has seen some of the Hello.
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        drop((stream, listener));
        let mut next = Hub::new(config(Role::Coordinator, None)).unwrap();
        next.listen(LOCALHOST, Some(address.port()..=address.port())).unwrap();
        let mut events = Vec::new();
        while events.is_empty() {
            next.poll(&mut events, PATIENCE).unwrap();
        }
        next
    });
    node.up();
    drop(thread.join().unwrap());
}

#[test]
fn last_words_are_heard_even_if_the_answer_can_not_be_sent() {
    let mut server = Hub::new(config(Role::Server, Some(0))).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap();
    let client = std::thread::spawn(move || handshake(address, identity(Role::Worker, Some(0))));
    let mut events = Vec::new();
    while events.is_empty() {
        server.poll(&mut events, PATIENCE).unwrap();
    }
    let Event::Up { link, .. } = events.remove(0) else { panic!("not up") };
    let (mut stream, established) = client.join().unwrap();
    // The peer has something unread when it closes: a reset follows its last words.
    server.send(link, &ControlMessage::HeartbeatAck).unwrap();
    let mut frame = Vec::new();
    let last_words = ControlMessage::Abort { reason: "enough".into() };
    FrameWriter::new(established.send_key).encode(&last_words, &mut frame).unwrap();
    stream.write_all(&frame).unwrap();
    stream.peek(&mut [0]).unwrap();
    drop(stream);
    for _ in 0..3 {
        server.send(link, &ControlMessage::HeartbeatAck).unwrap();
    }
    let end = Instant::now() + PATIENCE;
    while events.len() < 2 && Instant::now() < end {
        server.poll(&mut events, PATIENCE).unwrap();
    }
    let [Event::Message { message, .. }, Event::Down { peer: Some(_), .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(*message, last_words);
}

#[test]
fn a_node_that_was_stopped_for_a_while_reads_before_it_judges() {
    let mut quick = config(Role::Server, Some(0));
    quick.limits.peer_timeout = Duration::from_millis(200);
    let mut server = Hub::new(quick).unwrap();
    let address = server.listen(LOCALHOST, None).unwrap();
    let mut worker = Node::dial(config(Role::Worker, Some(0)), address);
    let mut events = Vec::new();
    while worker.events.is_empty() {
        server.poll(&mut events, Duration::from_millis(1)).unwrap();
        worker.hub.poll(&mut worker.events, Duration::from_millis(1)).unwrap();
    }
    // The server is stopped for twice its limit; the worker speaks at the end of it.
    let end = Instant::now() + Duration::from_millis(400);
    while Instant::now() < end {
        worker.hub.poll(&mut worker.events, end.saturating_duration_since(Instant::now())).unwrap();
    }
    worker.send(ControlMessage::PeersQuery);
    events.clear();
    while events.is_empty() {
        server.poll(&mut events, PATIENCE).unwrap();
    }
    assert!(matches!(&events[..], [Event::Message { .. }]), "{events:?}");
}
