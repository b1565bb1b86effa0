//! Workers that hold the job's secret and do harm: the server ends the job by name, or turns them away and serves the rest.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use windlass::config::Network;
use windlass::control::{Event, Hub, HubConfig, LinkId};
use windlass::error::{Error, Result};
use windlass::mem::{Arena, Rights};
use windlass::proto::control::ControlMessage;
use windlass::proto::handshake::{SessionKey, derive_endpoint_key};
use windlass::server::ServerHandle;
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome};
use windlass::transport::{self, Completion, Message, Side};
use windlass::types::{Identity, Role, View};
use windlass::{Secret, Server};

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
        let join = ControlMessage::Join { role: Role::Worker, rank, workers, address: None, threads: 0 };
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
        let server = Server::builder(&address.to_string(), secret.clone()).threads(2).start().unwrap();
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

#[test]
fn a_frame_that_the_protocol_does_not_allow_ends_the_job_by_name() {
    let mut job = Job::<1>::start();
    let (worker, _) = &mut job.workers[0];
    let link = worker.dial(&job.address);
    let mut transport = transport::build(&Network::default(), false).unwrap();
    let region = transport.register(Arena::new(1 << 20).unwrap()).unwrap();
    let (endpoint, address) = transport.open(Side::Active, "the server").unwrap();
    let memory = transport.authorise(endpoint, region, 0, 1 << 20, Rights::Write).unwrap().encode();
    let open = ControlMessage::OpenEndpoint {
        request: 7,
        thread: 1,
        transport: transport.caps().name.to_owned(),
        address,
        ring: memory,
        ring_entries: 64,
        receive: memory,
    };
    worker.hub.send(link, &open).unwrap();
    let ControlMessage::EndpointOpened { request: 7, address, .. } = worker.message() else {
        panic!("refused")
    };
    let key = derive_endpoint_key(worker.export.as_ref().unwrap(), "data", &[1]);
    transport.connect(endpoint, &address, &key).unwrap();
    let mut completions = Vec::new();
    let end = Instant::now() + PATIENCE;
    while !completions.iter().any(|c| matches!(c, Completion::Connected { .. })) {
        assert!(Instant::now() < end, "{completions:?}");
        transport.poll(&mut completions, 16);
    }
    transport.send(endpoint, Message::new(b"abc").unwrap()).unwrap();
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
