use super::*;
use crate::types::{Lack, mix64};

type M = ControlMessage;

struct Rig {
    core: Coordinator,
    now: Instant,
    out: Vec<Output>,
}

fn identity(role: Role, rank: Option<Rank>, link: u64) -> Identity {
    Identity { role, rank, incarnation: link, process: format!("host:{link}") }
}

impl Rig {
    fn new(servers: u32, workers: Option<u32>) -> Rig {
        let core = Coordinator::new(CoordinatorConfig::new(servers, workers)).unwrap();
        Rig { core, now: Instant::now(), out: Vec::new() }
    }

    /// Servers on the links 100…, workers on the links 0….
    fn running(servers: u32, workers: u32) -> Rig {
        let mut rig = Rig::new(servers, Some(workers));
        for server in 0..servers {
            rig.join(100 + u64::from(server), Role::Server, None, None);
        }
        for worker in 0..workers {
            rig.join(u64::from(worker), Role::Worker, Some(worker), Some(workers));
        }
        assert_eq!(*rig.core.state(), State::Running);
        rig.out.clear();
        rig
    }

    fn input(&mut self, link: u64, input: Input) {
        self.core.handle(link, input, self.now, &mut self.out);
    }

    fn say(&mut self, link: u64, message: M) {
        self.input(link, Input::Message(message));
    }

    fn up(&mut self, link: u64, role: Role, rank: Option<Rank>) {
        let address = "10.0.0.9:1".parse().unwrap();
        self.input(link, Input::Up { peer: identity(role, rank, link), address });
    }

    fn join(&mut self, link: u64, role: Role, rank: Option<Rank>, workers: Option<u32>) {
        self.up(link, role, rank);
        self.say(link, join(role, rank, workers));
    }

    fn down(&mut self, link: u64) {
        self.input(link, Input::Down { reason: "connection closed".into() });
    }

    /// What was sent on a link since the last call for it.
    fn sent(&mut self, to: u64) -> Vec<M> {
        let (mine, rest) = std::mem::take(&mut self.out)
            .into_iter()
            .partition(|o| matches!(o, Output::Send { link, .. } if *link == to));
        self.out = rest;
        let message = |output| match output {
            Output::Send { message, .. } => message,
            _ => unreachable!(),
        };
        Vec::into_iter(mine).map(message).collect()
    }

    fn closed(&self, to: u64) -> bool {
        self.out.iter().any(|o| matches!(o, Output::Close { link, .. } if *link == to))
    }

    fn failure(&self) -> &str {
        match self.core.state() {
            State::Failed(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

fn join(role: Role, rank: Option<Rank>, workers: Option<u32>) -> M {
    let server = role == Role::Server;
    let address = server.then(|| "127.0.0.1:4000".to_owned());
    M::Join { role, rank, workers, address, threads: u32::from(server), first: 0 }
}

fn open(request: u32, spec: &TableSpec) -> M {
    M::OpenTable { request, spec: spec.clone() }
}

#[test]
fn the_view_waits_for_the_last_and_lists_the_servers_by_rank() {
    let mut rig = Rig::new(2, Some(1));
    rig.join(101, Role::Server, Some(1), None);
    rig.join(0, Role::Worker, Some(0), Some(1));
    assert_eq!(rig.sent(0), [M::Joined { rank: 0 }]);
    rig.up(100, Role::Server, None);
    let address = Some("0.0.0.0:7".to_owned());
    rig.say(100, M::Join { role: Role::Server, rank: None, workers: None, address, threads: 3, first: 6 });
    let [M::Joined { rank: 0 }, agreed, M::View(view)] = &rig.sent(100)[..] else { panic!() };
    assert_eq!(*agreed, M::Agreed { transport: TransportKind::Tcp, local: false, reason: String::new() });
    let server =
        |rank, address: &str, threads, first| ServerInfo { rank, address: address.into(), threads, first };
    // A server that listens everywhere is listed where the coordinator sees it.
    assert_eq!(view.servers, [server(0, "10.0.0.9:7", 3, 6), server(1, "127.0.0.1:4000", 1, 0)]);
    assert_eq!(rig.sent(0), [agreed.clone(), M::View(view.clone())]);
}

/// What a job with one server and one worker agrees on, or why the worker, who comes last, is refused.
fn agreed(server: &Offer, worker: &Offer) -> Result<(TransportKind, bool, String), String> {
    let mut rig = Rig::new(1, Some(1));
    for (link, role, offer) in [(100, Role::Server, server), (0, Role::Worker, worker)] {
        rig.up(link, role, Some(0));
        rig.say(link, M::Offer(offer.clone()));
        rig.say(link, join(role, Some(0), Some(1)));
    }
    match &rig.sent(0)[..] {
        [M::Joined { .. }, M::Agreed { transport, local, reason }, M::View(_)] => {
            Ok((*transport, *local, reason.clone()))
        }
        [M::JoinRefused { reason }] => Err(reason.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn data_travels_by_the_best_that_all_offer_and_a_fallback_has_a_reason() {
    use TransportKind::{Shm, Tcp, Verbs};
    let of = |kinds: &[TransportKind]| Offer { kinds: kinds.to_vec(), ..Offer::only(Tcp) };
    let lacking = |absent, why: &str| Offer {
        lacks: vec![Lack { kind: Verbs, absent, why: why.to_owned() }],
        ..of(&[Tcp])
    };
    let (both, tcp, verbs, only) = (of(&[Verbs, Tcp]), of(&[Tcp]), of(&[Verbs]), of(&[Shm]));
    let (no_device, down) = (lacking(true, "this machine has no RDMA device"), lacking(false, "port down"));
    let name = |role| identity(role, Some(0), if role == Role::Server { 100 } else { 0 }).to_string();
    let (server, worker) = (name(Role::Server), name(Role::Worker));
    assert_eq!(agreed(&both, &both), Ok((Verbs, false, String::new())));
    assert_eq!(agreed(&verbs, &both), Ok((Verbs, false, String::new())));
    assert_eq!(agreed(&tcp, &tcp), Ok((Tcp, false, String::new())));
    let fallen = |why: String| Ok((Tcp, false, why));
    let why = |name| format!("no verbs: {name}: this machine has no RDMA device");
    assert_eq!(agreed(&both, &no_device), fallen(why(&worker)));
    assert_eq!(agreed(&no_device, &both), fallen(why(&server)));
    assert_eq!(agreed(&tcp, &both), fallen(format!("no verbs: {server} offers tcp alone")));
    assert_eq!(agreed(&down, &down), fallen(format!("no verbs: {worker}: port down")));
    // Nobody misses what nobody has.
    assert_eq!(agreed(&no_device, &no_device), fallen(String::new()));
    assert_eq!(agreed(&only, &of(&[Tcp, Shm])), Ok((Shm, false, String::new())));
    let refused = agreed(&verbs, &no_device).unwrap_err();
    assert!(refused.contains("offers the transport tcp") && refused.contains("offers verbs"), "{refused}");
}

#[test]
fn memory_is_shared_where_some_worker_is_on_a_servers_host_and_all_can() {
    use TransportKind::{Shm, Tcp};
    let on =
        |kinds: &[TransportKind], host| Offer { kinds: kinds.to_vec(), lacks: Vec::new(), host: [host; 16] };
    let (here, there, unknown) = (on(&[Tcp, Shm], 1), on(&[Tcp, Shm], 2), on(&[Tcp, Shm], 0));
    assert_eq!(agreed(&here, &here), Ok((Tcp, true, String::new())));
    assert_eq!(agreed(&here, &there), Ok((Tcp, false, String::new())));
    assert_eq!(agreed(&unknown, &unknown), Ok((Tcp, false, String::new())));
    assert_eq!(agreed(&on(&[Shm], 1), &on(&[Shm], 1)), Ok((Shm, false, String::new())));
    // Who says tcp alone is in the way of those beside it, and of nobody else.
    let server = identity(Role::Server, Some(0), 100);
    assert_eq!(agreed(&on(&[Tcp], 1), &here), Ok((Tcp, false, format!("no shm: {server} offers tcp alone"))));
    assert_eq!(agreed(&on(&[Tcp], 1), &there), Ok((Tcp, false, String::new())));
    let lacks = vec![Lack { kind: Shm, absent: false, why: "no memfd".to_owned() }];
    let barred = Offer { lacks, ..on(&[Tcp], 1) };
    assert_eq!(agreed(&barred, &here), Ok((Tcp, false, format!("no shm: {server}: no memfd"))));
}

#[test]
fn an_offer_comes_ahead_of_join() {
    let mut rig = Rig::new(1, Some(1));
    rig.join(0, Role::Worker, Some(0), Some(1));
    rig.say(0, M::Offer(Offer::only(TransportKind::Verbs)));
    assert!(rig.failure().contains("after Join"), "{}", rig.failure());
}

#[test]
fn bad_joins_are_refused_and_the_job_goes_on() {
    let mut rig = Rig::new(1, Some(2));
    rig.join(0, Role::Worker, Some(0), Some(2));
    let server = |address: Option<&str>, threads| M::Join {
        role: Role::Server,
        rank: None,
        workers: None,
        address: address.map(str::to_owned),
        threads,
        first: 0,
    };
    for (role, message, expected) in [
        (Role::Worker, join(Role::Worker, Some(0), Some(2)), "is there already"),
        (Role::Worker, join(Role::Worker, Some(1), Some(3)), "says 3 workers, the job has 2"),
        (Role::Worker, join(Role::Worker, Some(2), None), "rank 2 of a job with 2"),
        (Role::Worker, join(Role::Worker, None, None), "without a rank"),
        (Role::Server, join(Role::Server, Some(1), None), "rank 1 of a job with 1"),
        (Role::Server, server(None, 1), "without an address"),
        (Role::Server, server(Some("here"), 1), "expected IP:PORT, found \"here\""),
        (Role::Server, server(Some("127.0.0.1:0"), 1), "no port"),
        (Role::Server, server(Some("127.0.0.1:9"), 0), "0 threads"),
        (Role::Server, server(Some("127.0.0.1:9"), 257), "257 threads"),
        (Role::Coordinator, join(Role::Coordinator, None, None), "one coordinator"),
    ] {
        rig.up(7, role, None);
        rig.say(7, message);
        let [M::JoinRefused { reason }] = &rig.sent(7)[..] else { panic!("{expected}: {:?}", rig.out) };
        assert!(reason.contains(expected), "{reason}");
        assert!(rig.closed(7));
        rig.down(7);
        rig.out.clear();
    }
    assert_eq!(*rig.core.state(), State::Gathering);
    assert!(Rig::new(1, None).core.workers().is_none());
    let mut rig = Rig::new(1, None);
    rig.join(0, Role::Worker, Some(0), None);
    assert!(matches!(&rig.sent(0)[..], [M::JoinRefused { .. }]));
}

#[test]
fn a_table_is_open_once_all_servers_have_it() {
    let mut rig = Rig::running(2, 2);
    let spec = TableSpec::sparse("w", 2);
    rig.say(0, open(1, &spec));
    rig.say(1, open(9, &spec));
    let create = M::CreateTable { table: 0, spec: spec.clone() };
    assert_eq!((rig.sent(100), rig.sent(101)), (vec![create.clone()], vec![create]));
    rig.say(100, M::TableReady { table: 0 });
    assert!(rig.out.is_empty());
    rig.say(101, M::TableReady { table: 0 });
    let opened = |request| M::TableOpened { request, table: 0, spec: spec.clone() };
    assert_eq!((rig.sent(0), rig.sent(1)), (vec![opened(1)], vec![opened(9)]));
    rig.say(1, open(10, &spec));
    assert_eq!(rig.sent(1), [opened(10)]);
    rig.say(1, open(11, &TableSpec::sparse("v", 2)));
    assert!(matches!(&rig.sent(100)[..], [M::CreateTable { table: 1, .. }]));
}

#[test]
fn tables_that_can_not_be_are_refused() {
    let mut rig = Rig::running(2, 1);
    rig.say(0, open(1, &TableSpec::sparse("w", 0)));
    assert!(matches!(&rig.sent(0)[..], [M::TableRefused { request: 1, .. }]));
    let spec = TableSpec::sparse("w", 1);
    rig.say(0, open(2, &spec));
    rig.say(100, M::TableFailed { table: 0, reason: "no memory".into() });
    let [M::TableRefused { request: 2, reason }] = &rig.sent(0)[..] else { panic!() };
    assert_eq!(reason, "server 0 (host:100): no memory");
    rig.say(101, M::TableReady { table: 0 });
    rig.say(0, open(3, &spec));
    assert!(matches!(&rig.sent(0)[..], [M::TableRefused { request: 3, .. }]));
    // A spec with a NaN is still equal to itself, and a very long one fits into a reason.
    let odd = spec.clone().optimizer(crate::types::OptimizerSpec::sgd(f32::NAN));
    let odd = TableSpec { name: "odd".into(), ..odd };
    rig.say(0, open(4, &odd));
    rig.say(0, open(5, &odd));
    assert!(rig.sent(0).is_empty());
    let long = TableSpec::dense("odd", &[1; 50_000]);
    rig.say(0, open(6, &long));
    let [M::TableRefused { request: 6, reason }] = &rig.sent(0)[..] else { panic!() };
    assert!(reason.len() <= crate::proto::control::MAX_REASON);
}

#[test]
fn barriers_wait_for_those_who_have_not_finished() {
    let mut rig = Rig::running(1, 3);
    rig.say(0, M::Barrier { id: 1 });
    rig.say(0, M::Barrier { id: 2 });
    rig.say(1, M::Barrier { id: 2 });
    assert!(rig.out.is_empty());
    rig.say(2, M::Barrier { id: 2 });
    for link in 0..3 {
        assert_eq!(rig.sent(link), [M::BarrierDone { id: 2 }]);
    }
    rig.say(1, M::Barrier { id: 1 });
    // One that leaves from a barrier counts no more, neither as there nor as missing.
    rig.say(1, M::Finish);
    assert!(rig.out.is_empty());
    rig.say(2, M::Finish);
    assert_eq!(rig.sent(0), [M::BarrierDone { id: 1 }]);
    assert!(rig.out.is_empty());
}

#[test]
fn the_end_waits_for_the_servers_but_not_for_ever() {
    for patient in [true, false] {
        let mut rig = Rig::running(2, 2);
        rig.say(0, M::Finish);
        rig.down(0);
        rig.say(1, M::Finish);
        assert_eq!(*rig.core.state(), State::Leaving);
        // Who tells it to end now comes too late to undo anything.
        rig.core.end(&mut Vec::new());
        assert_eq!(*rig.core.state(), State::Leaving);
        assert_eq!((rig.sent(100), rig.sent(101)), (vec![M::Shutdown], vec![M::Shutdown]));
        rig.down(1);
        rig.down(100);
        assert_eq!(*rig.core.state(), State::Leaving);
        if patient {
            rig.down(101);
        } else {
            let deadline = rig.core.next_deadline().unwrap();
            rig.core.tick(deadline - Duration::from_millis(1), &mut rig.out);
            assert_eq!(*rig.core.state(), State::Leaving);
            rig.core.tick(deadline, &mut rig.out);
        }
        assert_eq!(*rig.core.state(), State::Done);
        assert!(rig.core.next_deadline().is_none());
    }
}

/// A job that goes on from cut `number` at clock 10 times that, with all nodes there.
fn resuming(number: u64) -> Rig {
    let mut config = CoordinatorConfig::new(2, Some(1));
    config.cuts = Some(CutPlan { every: None, first: 9 });
    config.resumed = Some(resumed(number));
    let core = Coordinator::new(config).unwrap();
    let mut rig = Rig { core, now: Instant::now(), out: Vec::new() };
    for (link, rank) in [(101, 1), (100, 0)] {
        rig.join(link, Role::Server, Some(rank), None);
    }
    rig.join(0, Role::Worker, Some(0), Some(1));
    assert_eq!(*rig.core.state(), State::Verifying);
    for (link, part) in [(100, 0), (101, 1)] {
        assert_eq!(rig.sent(link)[1..], [M::Verify { number, part, of: 2 }]);
    }
    assert_eq!(rig.sent(0), [M::Joined { rank: 0 }]);
    assert!(rig.out.is_empty());
    rig
}

fn resumed(number: u64) -> Resumed {
    Resumed { number, clock: number * 10, states: vec![vec![number as u8]], tables: Vec::new() }
}

#[test]
fn a_job_goes_on_once_all_servers_have_found_its_cut_whole() {
    let mut rig = resuming(7);
    rig.say(101, M::Verified { number: 7, damage: None });
    assert!(rig.out.is_empty());
    rig.say(100, M::Verified { number: 7, damage: None });
    assert_eq!(*rig.core.state(), State::Running);
    assert_eq!(rig.sent(0)[0], M::Resume { number: 7, clock: 70, state: vec![7] });
    assert_eq!(rig.sent(100)[0], M::Resume { number: 7, clock: 70, state: vec![] });
    // Nobody asked for more.
    rig.say(101, M::Verified { number: 7, damage: None });
    assert!(rig.closed(101));
}

#[test]
fn a_job_that_is_told_to_end_before_it_goes_on_is_as_saved_as_it_was() {
    let told = "told to end: cut 7 holds all up to clock 70";
    let mut rig = resuming(7);
    rig.core.end(&mut rig.out);
    assert_eq!(rig.core.saved(), Some((7, 70)));
    assert_eq!(rig.failure(), told);
    assert_eq!(rig.sent(0), [M::Abort { reason: told.to_owned() }]);
    rig.say(100, M::Verified { number: 7, damage: None });
    rig.core.end(&mut rig.out);
    assert_eq!(rig.failure(), told);
    // Nobody has come yet.
    let mut config = CoordinatorConfig::new(2, Some(1));
    config.cuts = Some(CutPlan { every: None, first: 9 });
    config.resumed = Some(resumed(7));
    let mut core = Coordinator::new(config.clone()).unwrap();
    core.end(&mut Vec::new());
    assert_eq!(core.saved(), Some((7, 70)));
    // Without a checkpoint before there is nothing to keep.
    config.resumed = None;
    let mut core = Coordinator::new(config).unwrap();
    core.end(&mut Vec::new());
    assert_eq!(core.saved(), None);
    assert!(matches!(core.state(), State::Failed(_)));
}

#[test]
fn a_damaged_cut_is_replaced_once_nobody_reads_it_any_more() {
    let mut rig = resuming(7);
    let text = || "x".to_owned();
    let damage = Damage { file: text(), section: text(), offset: 64, expected: text(), found: text() };
    rig.say(101, M::Verified { number: 7, damage: Some(damage.clone()) });
    assert!(rig.out.is_empty());
    rig.say(100, M::Verified { number: 7, damage: None });
    assert_eq!(std::mem::take(&mut rig.out), [Output::Damaged { number: 7, damage: damage.clone() }]);
    rig.core.go_on_from(resumed(5), &mut rig.out);
    for (link, part) in [(100, 0), (101, 1)] {
        assert_eq!(rig.sent(link), [M::Verify { number: 5, part, of: 2 }]);
        rig.say(link, M::Verified { number: 5, damage: None });
    }
    assert_eq!(rig.sent(0)[0], M::Resume { number: 5, clock: 50, state: vec![5] });
    // Its cuts begin behind that one.
    rig.core.end(&mut rig.out);
    assert_eq!(rig.sent(0).last(), Some(&M::Cut { number: 9, clock: 50 }));
    // Told to end before an older one is found: the damaged one is not what holds all.
    let mut rig = resuming(7);
    rig.say(101, M::Verified { number: 7, damage: Some(damage) });
    rig.say(100, M::Verified { number: 7, damage: None });
    rig.core.end(&mut rig.out);
    assert_eq!(rig.core.saved(), None);
    assert!(rig.failure().contains("told to end"));
    // A node that is lost while the cut is read ends the job.
    let mut rig = resuming(7);
    rig.down(100);
    assert!(rig.failure().contains("server 0 (host:100) is lost"));
}

#[test]
fn a_lost_node_fails_the_job_by_name() {
    let mut rig = Rig::running(1, 3);
    rig.down(2);
    let reason = "worker 2 (host:2) is lost: connection closed".to_owned();
    assert_eq!(rig.failure(), reason);
    for link in [0, 1, 100] {
        assert_eq!(rig.sent(link), [M::Abort { reason: reason.clone() }]);
    }
    // Who comes now is told, and later losses change nothing.
    rig.up(50, Role::Worker, Some(1));
    assert_eq!(rig.sent(50), [M::Abort { reason: reason.clone() }]);
    assert!(rig.closed(50));
    rig.down(100);
    assert_eq!(rig.failure(), reason);

    let mut rig = Rig::new(2, Some(2));
    rig.join(100, Role::Server, None, None);
    rig.up(55, Role::Worker, Some(1));
    rig.down(55);
    assert_eq!(*rig.core.state(), State::Gathering);
    rig.down(100);
    assert_eq!(rig.failure(), "server 0 (host:100) is lost: connection closed");
}

#[test]
fn a_node_may_give_up_with_a_reason() {
    let mut rig = Rig::running(1, 2);
    rig.say(1, M::Abort { reason: "a9a:3:7: expected a number".into() });
    assert_eq!(rig.failure(), "worker 1 (host:1) gave up: a9a:3:7: expected a number");
    assert_eq!(rig.sent(0).len(), 1);
}

/// Its work is done: a server that is told to stop then takes nothing from anybody.
#[test]
fn a_server_may_give_up_once_the_workers_are_done() {
    let mut rig = Rig::running(2, 1);
    let worker = *rig.core.worker_links.values().next().unwrap();
    let servers: Vec<u64> = rig.core.server_links.values().copied().collect();
    rig.say(worker, M::Finish);
    rig.say(servers[0], M::Abort { reason: "it was told to stop".into() });
    assert_eq!(*rig.core.state(), State::Leaving);
    servers.into_iter().for_each(|server| rig.down(server));
    assert_eq!(*rig.core.state(), State::Done);
}

#[test]
fn who_never_comes_is_named() {
    let mut rig = Rig::new(2, None);
    assert!(rig.core.next_deadline().is_none());
    rig.join(0, Role::Worker, Some(1), Some(3));
    let deadline = rig.core.next_deadline().unwrap();
    rig.core.tick(deadline, &mut rig.out);
    assert!(rig.failure().ends_with("servers [0, 1], workers [0, 2]"), "{}", rig.failure());
}

#[test]
fn messages_out_of_role_or_state_close_that_link() {
    let spec = TableSpec::sparse("w", 1);
    // (link, message): workers are 0 and 1, the server is 100, 7 has not joined.
    let bad = [
        (0, join(Role::Worker, Some(0), Some(2))),
        (0, M::TableReady { table: 0 }),
        (0, M::Shutdown),
        (0, M::Keepalive),
        (0, M::Stats { request: 1, threads: vec![], clocks: vec![] }),
        (100, M::Barrier { id: 1 }),
        (100, M::Finish),
        (100, open(1, &spec)),
        (100, M::TableReady { table: 5 }),
        (100, M::TableFailed { table: u32::MAX, reason: String::new() }),
        (7, M::Heartbeat { clock: 0, status: vec![] }),
        (7, M::Abort { reason: "stop".into() }),
        (7, M::Finish),
        (7, join(Role::Server, None, None)),
    ];
    for (link, message) in bad {
        let mut rig = Rig::running(1, 2);
        rig.up(7, Role::Worker, None);
        rig.say(link, message.clone());
        assert!(rig.closed(link), "{message:?}");
        if link == 7 {
            assert_eq!(*rig.core.state(), State::Running, "{message:?}");
        } else {
            assert!(rig.failure().contains("broke the protocol"), "{message:?}");
        }
    }
    let mut rig = Rig::running(1, 1);
    rig.say(0, M::Barrier { id: 1 });
    for id in 0..=MAX_BARRIERS as u64 {
        rig.say(0, M::Barrier { id });
    }
    assert_eq!(*rig.core.state(), State::Running, "a lone worker passes at once");
    let mut rig = Rig::running(1, 2);
    (0..=MAX_BARRIERS as u64).for_each(|id| rig.say(0, M::Barrier { id }));
    assert!(rig.failure().contains("barriers"));
    let mut rig = Rig::running(1, 2);
    (0..=MAX_OPENING as u32).for_each(|request| rig.say(0, open(request, &spec)));
    assert!(rig.failure().contains("tables"));
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix64(self.0) % bound
    }
}

/// Orderly nodes in any order: everyone sees the same tables and passes every barrier with all the others, and the job ends.
#[test]
fn any_interleaving_of_orderly_nodes_ends_well() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let (servers, workers) = (1 + random.below(3), 1 + random.below(4));
        let mut rig = Rig::new(servers as u32, None);
        // Each node's script; a worker waits for the answer after each step.
        let mut at: BTreeMap<u64, usize> =
            (0..workers).chain(100..100 + servers).map(|link| (link, 0)).collect();
        let mut waiting: BTreeSet<u64> = BTreeSet::new();
        let mut ids: BTreeMap<String, TableId> = BTreeMap::new();
        let mut passed: BTreeMap<u64, usize> = BTreeMap::new();
        let mut steps = 0;
        while *rig.core.state() != State::Done {
            steps += 1;
            assert!(steps < 10_000, "seed {seed}: no end");
            let ready: Vec<u64> = at.keys().copied().filter(|link| !waiting.contains(link)).collect();
            if !ready.is_empty() {
                let link = ready[random.below(ready.len() as u64) as usize];
                orderly_step(&mut rig, link, at[&link], workers as u32, &mut random);
                waiting.insert(link);
                *at.get_mut(&link).unwrap() += 1;
            }
            for output in std::mem::take(&mut rig.out) {
                let Output::Send { link, message } = output else { panic!("seed {seed}: {output:?}") };
                match message {
                    M::View(_) | M::HeartbeatAck => drop(waiting.remove(&link)),
                    M::TableOpened { table, spec, .. } => {
                        assert_eq!(*ids.entry(spec.name).or_insert(table), table, "seed {seed}");
                        waiting.remove(&link);
                    }
                    M::BarrierDone { id } => {
                        *passed.entry(id).or_default() += 1;
                        // Nobody is before a barrier that somebody has passed.
                        let before = at.iter().filter(|&(&l, &step)| l < 100 && step < 4);
                        assert_eq!(before.count(), 0, "seed {seed}");
                        waiting.remove(&link);
                    }
                    M::CreateTable { table, .. } => rig.say(link, M::TableReady { table }),
                    M::Shutdown => rig.down(link),
                    M::Joined { .. } | M::Agreed { .. } => {}
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
            let done: Vec<u64> = at.iter().filter(|&(&l, &s)| l < 100 && s == 6).map(|(&l, _)| l).collect();
            at.retain(|link, _| !done.contains(link));
        }
        assert_eq!(passed, BTreeMap::from([(9, workers as usize)]), "seed {seed}");
        assert_eq!(ids.len(), 2, "seed {seed}");
    }
}

/// A worker: join, two tables in any order, a barrier, a heartbeat, the end. A server: join, heartbeats.
fn orderly_step(rig: &mut Rig, link: u64, step: usize, workers: u32, random: &mut Random) {
    let rank = link as u32;
    if link >= 100 {
        match step {
            0 => rig.join(link, Role::Server, None, None),
            _ => rig.say(link, M::Heartbeat { clock: 0, status: vec![] }),
        }
        return;
    }
    let table = |name: &str| open(rank, &TableSpec::sparse(name, 1));
    match step {
        0 => rig.join(link, Role::Worker, Some(rank), Some(workers)),
        1 => rig.say(link, table(if rank.is_multiple_of(2) { "a" } else { "b" })),
        2 => rig.say(link, table(if rank.is_multiple_of(2) { "b" } else { "a" })),
        3 => rig.say(link, M::Barrier { id: 9 }),
        4 => rig.say(link, M::Heartbeat { clock: random.below(9), status: vec![] }),
        _ => rig.say(link, M::Finish),
    }
}

/// Anything from anybody in any state: no panic, the tables of pending requests stay bounded, and the books balance.
#[test]
fn any_interleaving_of_hostile_nodes_is_survived() {
    let mut ends = BTreeMap::new();
    for seed in 0..2000 {
        let mut random = Random(seed);
        let mut rig = Rig::new(1 + random.below(2) as u32, Some(1 + random.below(2) as u32));
        for _ in 0..200 {
            let link = random.below(6);
            hostile_step(&mut rig, link, &mut random);
            assert_books(&rig, seed);
        }
        let end = match rig.core.state() {
            State::Gathering | State::Verifying => "gathering",
            State::Running => "running",
            State::Leaving => "leaving",
            State::Done => "done",
            State::Failed(_) => "failed",
        };
        *ends.entry(end).or_insert(0) += 1;
    }
    // The walk reaches more than one end, or it tests nothing.
    assert!(ends.len() >= 3, "{ends:?}");
}

fn hostile_step(rig: &mut Rig, link: u64, random: &mut Random) {
    // Mostly plausible, so that the walk gets somewhere.
    let role = if link < 3 { Role::Worker } else { Role::Server };
    let rank = (random.below(4) == 0).then(|| random.below(3) as u32);
    let plausible = if role == Role::Worker { Some(link as u32) } else { None };
    let message = match random.below(16) {
        0..=2 => {
            if !rig.core.nodes.contains_key(&link) {
                rig.up(link, role, None);
            }
            return;
        }
        3 if random.below(20) == 0 => return rig.down(link),
        3..=6 => join(role, plausible.or(rank), None),
        7 => open(1, &TableSpec::sparse("w", random.below(3) as u32)),
        8 => M::TableReady { table: random.below(2) as u32 },
        9 => M::TableFailed { table: random.below(2) as u32, reason: "no".into() },
        10 => M::Barrier { id: random.below(3) },
        11 if random.below(4) == 0 => M::Finish,
        12 => M::PeersQuery,
        13 => M::Heartbeat { clock: random.below(5), status: vec![1] },
        14 if random.below(8) == 0 => M::Shutdown,
        15 => {
            let now = rig.now + Duration::from_secs(random.below(3));
            rig.now = now;
            return rig.core.tick(now, &mut rig.out);
        }
        _ => return,
    };
    // A node of the opposite role says it now and then.
    let from = if random.below(50) == 0 { (link + 3) % 6 } else { link };
    // Joined nodes that join again fail the job: mostly left out.
    let again = matches!(message, M::Join { .. })
        && rig.core.nodes.get(&from).is_some_and(|node| node.joined)
        && random.below(50) != 0;
    if !again {
        rig.say(from, message);
    }
}

fn assert_books(rig: &Rig, seed: u64) {
    let core = &rig.core;
    for (id, &there) in &core.barriers {
        let really = core.nodes.values().filter(|node| node.barriers.contains(id)).count();
        assert!(matches!(core.state, State::Failed(_)) || really == there, "seed {seed}: barrier {id}");
    }
    let finished = core.nodes.values().filter(|node| node.finished).count();
    assert!(finished <= core.finished as usize, "seed {seed}");
    for (rank, link) in core.server_links.iter().chain(&core.worker_links) {
        if let Some(node) = core.nodes.get(link).filter(|node| node.joined) {
            assert_eq!(node.identity.rank, Some(*rank), "seed {seed}");
        }
    }
    assert!(core.nodes.len() <= 6 && core.barriers.len() <= 3, "seed {seed}");
}
