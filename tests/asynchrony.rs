//! Calls that do not wait, against servers that are real processes and stand still when a test says so.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{PATIENCE, Process, kill, scratch, secret_file, text, until, windlass};
use rustix::process::Signal;
use windlass::config::Progress;
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig, Outcome};
use windlass::types::{Aggregate, Consistency, OptimizerSpec, PartitionMap, ServerInfo, View};
use windlass::{Client, ClientConfig, Error, KeyRange, Result, Secret, SortedKeys, Table, TableSpec, Ticket};

/// Nothing that stands still for a test is taken for dead.
const SILENCE: Duration = Duration::from_secs(600);

/// Held by tests that have progress threads, since one of them counts them.
static PROGRESS_THREADS: Mutex<()> = Mutex::new(());

/// A job whose servers are processes, in the order of their ranks.
struct Job {
    address: String,
    secret: Secret,
    coordinator: JoinHandle<Result<Outcome>>,
    servers: Vec<Process>,
    workers: u32,
    _directory: tempfile::TempDir,
}

impl Job {
    fn start(servers: u32, workers: u32) -> Job {
        let secret = Secret::generate().unwrap();
        let mut config = CoordinatorServerConfig::new(secret.clone(), "", servers, Some(workers));
        config.limits.peer_timeout = SILENCE;
        let coordinator = CoordinatorServer::bind(config).unwrap();
        let address = coordinator.address().to_string();
        let coordinator = std::thread::spawn(move || coordinator.run());
        let directory = scratch();
        let file = directory.path().join("secret");
        secret_file(&file, &secret);
        let silence = SILENCE.as_secs().to_string();
        let server = |rank: u32| {
            let rank = rank.to_string();
            let node = ["server", "--coordinator", &address, "--secret-file", text(&file)];
            let own = ["--rank", &rank, "--peer-timeout", &silence];
            Process::start(windlass(node.into_iter().chain(own)))
        };
        let servers = (0..servers).map(server).collect();
        Job { address, secret, coordinator, servers, workers, _directory: directory }
    }

    fn client(&self, rank: u32, progress: Progress) -> Client {
        let mut config = ClientConfig::new(&self.address, self.secret.clone(), rank, self.workers);
        config.network.peer_timeout = SILENCE;
        config.network.transport = common::transport();
        config.progress = progress;
        Client::connect(config).unwrap()
    }

    fn stop(&self, server: usize) {
        let pid = self.servers[server].pid();
        kill(pid, Signal::STOP);
        until(PATIENCE, "all threads to stand still", || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            tasks.map(stat).all(|stat| stat.contains(") T "))
        });
    }

    fn go_on(&self, server: usize) {
        kill(self.servers[server].pid(), Signal::CONT);
    }

    fn end(self, clients: impl IntoIterator<Item = Client>) {
        let leaving: Vec<_> =
            clients.into_iter().map(|c| std::thread::spawn(move || c.finalize().unwrap())).collect();
        leaving.into_iter().for_each(|l| l.join().unwrap());
        self.coordinator.join().unwrap().unwrap();
        self.servers.into_iter().for_each(|s| drop(s.end(PATIENCE).expect(0)));
    }
}

/// fp32 in a segment.
const SEGMENT: u64 = 1 << 14;

/// A table of segments of 64 KiB that adds what is pushed, at once.
fn sums(name: &str, segments: u64) -> TableSpec {
    TableSpec::dense(name, &[segments * SEGMENT])
        .segment_bytes(SEGMENT as u32 * 4)
        .optimizer(OptimizerSpec::new("sum", &[]))
        .aggregate(Aggregate::Sum)
        .consistency(Consistency::Asp)
}

fn segment(number: u64) -> KeyRange {
    KeyRange::new(number * SEGMENT, (number + 1) * SEGMENT).unwrap()
}

/// The segments of each server of two.
fn by_server(spec: &TableSpec, segments: u64, workers: u32) -> [Vec<u64>; 2] {
    let server = |rank| ServerInfo { rank, address: String::new(), threads: 1, first: 0 };
    let view = View { epoch: 1, servers: vec![server(0), server(1)], workers };
    let map = PartitionMap::new(&view, spec);
    [0, 1].map(|owner| (0..segments).filter(|&s| map.owner(s as u32) == owner).collect())
}

fn pulled(table: &Table, number: u64) -> f32 {
    let mut values = vec![0.0; SEGMENT as usize];
    table.pull_range(segment(number), &mut values).unwrap();
    assert!(values.iter().all(|v| *v == values[0]), "a torn segment");
    values[0]
}

fn filled(value: f32) -> Vec<f32> {
    vec![value; SEGMENT as usize]
}

fn with_progress_threads() -> MutexGuard<'static, ()> {
    PROGRESS_THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn asynchronous(progress: Progress) {
    let job = Job::start(1, 1);
    let client = job.client(0, progress);
    let table = client.table(&sums("w", 32)).unwrap();
    assert_eq!(pulled(&table, 0), 0.0);
    job.stop(0);
    let mut tickets: Vec<Ticket> =
        (0..32u8).map(|i| table.push_range(segment(u64::from(i)), &filled(f32::from(i))).unwrap()).collect();
    // All 32 came back although nobody is there. Nothing is done, however often it is asked.
    for _ in 0..10 {
        assert!(tickets.iter_mut().all(|t| !t.test().unwrap()));
    }
    for ticket in [0, 31] {
        let given = Duration::from_millis(200);
        let before = Instant::now();
        let error = tickets[ticket].wait_timeout(given).unwrap_err();
        assert!(before.elapsed() >= given);
        let Error::Timeout { waited_for, after } = &error else { panic!("{error}") };
        assert_eq!(*after, given);
        assert!(
            waited_for.contains("push to table \"w\"") && waited_for.contains("server 0"),
            "{waited_for}"
        );
    }
    assert!(tickets.iter_mut().all(|t| !t.test().unwrap()));
    job.go_on(0);
    tickets.iter_mut().for_each(|t| t.wait().unwrap());
    assert!(tickets.iter_mut().all(|t| t.test().unwrap()));
    (0..32u8).for_each(|i| assert_eq!(pulled(&table, u64::from(i)), f32::from(i)));
    drop((tickets, table));
    job.end([client]);
}

#[test]
fn pushes_to_a_server_that_stands_still_return_and_are_done_when_it_goes_on() {
    asynchronous(Progress::Caller);
}

#[test]
fn the_same_with_a_progress_thread() {
    let _alone = with_progress_threads();
    asynchronous(Progress::Thread);
}

/// Server 0 stands still with operations of dropped tickets under way; those to server 1 go on and would get their memory,
/// were it given back too early.
#[test]
fn a_dropped_ticket_gives_no_memory_back_before_its_operation_is_done() {
    const SEGMENTS: u64 = 24;
    let job = Job::start(2, 1);
    let client = job.client(0, Progress::Caller);
    let spec = sums("w", SEGMENTS);
    let table = client.table(&spec).unwrap();
    let [slow, live] = by_server(&spec, SEGMENTS, 1);
    let all = || slow.iter().chain(&live).copied();
    for number in all() {
        table.push_range(segment(number), &filled(1.0)).unwrap().wait().unwrap();
    }
    // Of the 64 buffers for whole segments, 48 are under way in each round: a few that are lost would show soon.
    let rounds = 4;
    for round in 1..=rounds {
        job.stop(0);
        for _ in 0..4 {
            slow.iter().for_each(|&n| drop(table.pull_range_async(segment(n)).unwrap()));
        }
        slow.iter().for_each(|&n| drop(table.push_range(segment(n), &filled(1.0)).unwrap()));
        // Answered by the live server, and not looked at before the other's late answers are here.
        let answered: Vec<Ticket> = live
            .iter()
            .map(|&n| {
                table.push_range(segment(n), &filled(100.0)).unwrap().wait().unwrap();
                let mut ticket = table.pull_range_async(segment(n)).unwrap();
                ticket.wait().unwrap();
                ticket
            })
            .collect();
        job.go_on(0);
        slow.iter().for_each(|&n| assert_eq!(pulled(&table, n), 1.0 + round as f32, "round {round}"));
        for ticket in answered {
            let mut values = filled(0.0);
            ticket.wait_into(&mut values).unwrap();
            assert_eq!(values, filled(1.0 + 100.0 * round as f32), "round {round}");
        }
    }
    // All of it at once: nothing is missing.
    let mut whole = vec![0.0; (SEGMENTS * SEGMENT) as usize];
    let range = KeyRange::new(0, SEGMENTS * SEGMENT).unwrap();
    table.pull_range_async(range).unwrap().wait_into(&mut whole).unwrap();
    for (numbers, value) in [(&slow, 1.0 + rounds as f32), (&live, 1.0 + 100.0 * rounds as f32)] {
        for &n in numbers {
            let range = segment(n).start() as usize..segment(n).end() as usize;
            assert!(whole[range].iter().all(|v| *v == value));
        }
    }
    drop(table);
    job.end([client]);
}

fn ordered(progress: Progress) {
    const SEGMENTS: u64 = 4;
    let job = Job::start(2, 1);
    let client = job.client(0, progress);
    let spec = sums("w", SEGMENTS);
    let table = client.table(&spec).unwrap();
    let [slow, live] = by_server(&spec, SEGMENTS, 1);
    job.stop(0);
    let mut first = table.push_range(segment(slow[0]), &filled(1.0)).unwrap();
    let after = table.after(&[&first]).unwrap();
    let mut second = after.push_range(segment(live[0]), &filled(2.0)).unwrap();
    // The third begins after the second, at the server that stands still.
    let third = after.after(&[&second]).unwrap().pull_range_async(segment(slow[0])).unwrap();
    // What has no order goes on: the live server takes and answers, and has not seen the second.
    for i in 1..=20u8 {
        table.push_range(segment(live[1]), &filled(1.0)).unwrap().wait().unwrap();
        assert_eq!(pulled(&table, live[1]), f32::from(i));
        assert_eq!(pulled(&table, live[0]), 0.0, "it began too early");
        assert!(!second.test().unwrap());
    }
    let error = second.wait_timeout(Duration::from_millis(1)).unwrap_err().to_string();
    assert!(error.contains("done before a push to table \"w\""), "{error}");
    job.go_on(0);
    second.wait().unwrap();
    assert!(first.test().unwrap());
    assert_eq!(pulled(&table, live[0]), 2.0);
    let mut values = filled(0.0);
    third.wait_into(&mut values).unwrap();
    assert_eq!(values, filled(1.0));
    drop((table, after, first, second));
    job.end([client]);
}

#[test]
fn what_begins_after_another_is_not_seen_before_the_other_is_done() {
    ordered(Progress::Caller);
}

#[test]
fn the_order_holds_with_a_progress_thread() {
    let _alone = with_progress_threads();
    ordered(Progress::Thread);
}

#[test]
fn an_order_that_needs_the_callers_own_clock_is_refused_at_once() {
    let job = Job::start(1, 1);
    let client = job.client(0, Progress::Caller);
    let table = client.table(&sums("w", 2).consistency(Consistency::Bsp)).unwrap();
    let first = table.push_range(segment(0), &filled(1.0)).unwrap();
    let error = table.after(&[&first]).unwrap_err();
    assert!(
        matches!(&error, Error::Misuse { reason, .. } if reason.contains("call clock() first")),
        "{error}"
    );
    client.clock().unwrap();
    // Now it can be asked for, and the end of this clock waits until the second has begun.
    let after = table.after(&[&first]).unwrap();
    let mut second = after.push_range(segment(1), &filled(2.0)).unwrap();
    client.clock().unwrap();
    second.wait().unwrap();
    assert_eq!((pulled(&table, 0), pulled(&table, 1)), (1.0, 2.0));
    drop((table, after, first, second));
    job.end([client]);
}

/// More than the slots hold, so that it can only leave while the caller computes if somebody else sends it.
#[test]
fn a_progress_thread_sends_while_the_caller_computes() {
    const SEGMENTS: u64 = 60;
    let _alone = with_progress_threads();
    let job = Job::start(1, 2);
    let connecting = std::thread::scope(|scope| {
        let second = scope.spawn(|| job.client(1, Progress::Caller));
        [job.client(0, Progress::Thread), second.join().unwrap()]
    });
    let [computing, looking] = connecting;
    until(PATIENCE, "the progress thread", || progress_threads() == 1);
    let table = computing.table(&sums("w", SEGMENTS)).unwrap();
    let seen = looking.table(&sums("w", SEGMENTS)).unwrap();
    let mut tickets: Vec<Ticket> =
        (0..SEGMENTS).map(|n| table.push_range(segment(n), &filled(n as f32)).unwrap()).collect();
    // Small ones behind them, which nobody flushes.
    for n in 0..SEGMENTS {
        let start = segment(n).start();
        drop(table.push_range(KeyRange::new(start, start + 16).unwrap(), &[1000.0; 16]).unwrap());
    }
    // From here on worker 0 calls nothing.
    let mut values = vec![0.0f32; (SEGMENTS * SEGMENT) as usize];
    until(PATIENCE, "what the computing worker pushed", || {
        seen.pull_range(KeyRange::new(0, SEGMENTS * SEGMENT).unwrap(), &mut values).unwrap();
        (0..SEGMENTS).all(|n| values[segment(n).start() as usize] == n as f32 + 1000.0)
    });
    assert!(tickets.iter_mut().all(|t| t.test().unwrap()));
    drop((table, seen, tickets));
    let mut before = progress_use();
    until(PATIENCE, "the progress thread to sleep", || {
        let after = progress_use();
        if after.sleeps < before.sleeps + 4 {
            return false;
        }
        let window = std::mem::replace(&mut before, after);
        // Three whole sleeps of 200 ms and what lies around them, unless somebody woke it.
        let slept = before.at - window.at >= Duration::from_millis(500);
        slept && before.cpu - window.cpu <= Duration::from_millis(10)
    });
    job.end([computing, looking]);
    until(PATIENCE, "the end of the progress thread", || progress_threads() == 0);
}

/// The folder in /proc of each of this process's progress threads.
fn progress_tasks() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    let name = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap_or_default();
    tasks.filter(|task| name(task) == "wl-prog\n").collect()
}

fn progress_threads() -> usize {
    progress_tasks().len()
}

/// What the one progress thread has used.
struct Use {
    at: Instant,
    cpu: Duration,
    /// How often it went to sleep.
    sleeps: u64,
}

fn progress_use() -> Use {
    let tasks = progress_tasks();
    let [task] = &tasks[..] else { panic!("{tasks:?}") };
    let cpu = fs::read_to_string(task.join("schedstat")).unwrap();
    let cpu = Duration::from_nanos(cpu.split(' ').next().unwrap().parse().unwrap());
    let status = fs::read_to_string(task.join("status")).unwrap();
    let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    Use { at: Instant::now(), cpu, sleeps: sleeps.trim().parse().unwrap() }
}

/// One thread waits for staging memory that a server which stands still keeps; another goes on with the other server.
#[test]
fn a_call_that_waits_for_memory_does_not_hold_up_other_threads() {
    const SEGMENTS: u64 = 4;
    let job = Job::start(2, 1);
    let client = job.client(0, Progress::Caller);
    let spec = sums("w", SEGMENTS);
    let table = client.table(&spec).unwrap();
    let [slow, live] = by_server(&spec, SEGMENTS, 1);
    job.stop(0);
    let pushed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // All staging memory holds less than this.
            for _ in 0..1000 {
                drop(table.push_range(segment(slow[0]), &filled(1.0)).unwrap());
                pushed.fetch_add(1, Ordering::Release);
            }
        });
        until(PATIENCE, "the first thread to wait", || client.stats().waiting_calls == 1);
        for _ in 0..20 {
            assert_eq!(pulled(&table, live[0]), 0.0);
        }
        assert!(pushed.load(Ordering::Acquire) < 1000);
        job.go_on(0);
    });
    assert_eq!(pulled(&table, slow[0]), 1000.0);
    drop(table);
    job.end([client]);
}

/// Nobody but the client itself could tell them: the server that they wait for stands still.
#[test]
fn waits_of_other_threads_end_when_the_client_aborts() {
    for progress in [Progress::Caller, Progress::Thread] {
        let _alone = with_progress_threads();
        let job = Job::start(1, 1);
        let client = job.client(0, progress);
        let table = client.table(&sums("w", 1)).unwrap();
        job.stop(0);
        let mut push = table.push_range(segment(0), &filled(1.0)).unwrap();
        let mut pull = table.pull_range_async(segment(0)).unwrap();
        std::thread::scope(|scope| {
            let waits = [
                scope.spawn(|| push.wait().unwrap_err()),
                scope.spawn(|| pull.wait().unwrap_err()),
                scope.spawn(|| client.barrier().unwrap_err()),
            ];
            until(PATIENCE, "three threads to wait", || client.stats().waiting_calls == 3);
            client.clone().abort("enough of it");
            for wait in waits {
                let error = wait.join().unwrap();
                assert!(matches!(&error, Error::Aborted { reason } if reason == "enough of it"), "{error}");
            }
        });
        assert!(matches!(client.barrier(), Err(Error::Aborted { .. })));
        assert!(matches!(client.server_stats(), Err(Error::Aborted { .. })));
        job.go_on(0);
        drop((push, pull, table, client));
        until(PATIENCE, "the end of the progress thread", || progress_threads() == 0);
    }
}

/// Under Bsp the pull of a push_pull is sent behind its clock's mark. When such pulls hold all staging memory, only `clock()`
/// gives some back: to wait for it would be to wait for ever.
#[test]
fn a_push_that_only_the_end_of_its_own_clock_could_let_through_is_refused_at_once() {
    let job = Job::start(1, 1);
    let client = job.client(0, Progress::Caller);
    let spec = TableSpec::sparse("s", 1).optimizer(OptimizerSpec::sum()).consistency(Consistency::Bsp);
    let table = client.table(&spec).unwrap();
    let keys: Vec<u64> = (0..4000).collect();
    let values = vec![1.0; keys.len()];
    let mut under_way = Vec::new();
    let refused = loop {
        match table.push_pull(SortedKeys::new(&keys).unwrap(), &values) {
            Ok(ticket) => under_way.push(ticket),
            Err(error) => break error,
        }
    };
    assert!(matches!(&refused, Error::Limit { .. }), "{refused}");
    // What was taken goes on.
    client.clock().unwrap();
    under_way.iter_mut().for_each(|ticket| ticket.wait().unwrap());
    drop(under_way);
    drop(table);
    job.end([client]);
}

/// What has left fills every slot, and the rest waits. The server thread takes requests in the order in which they left, and hears
/// of 16 at most before the worker hears of them: so when the urgent push is done, the last of the others can't be.
#[test]
fn what_is_urgent_overtakes_what_waits_for_a_slot() {
    let job = Job::start(1, 1);
    let client = job.client(0, Progress::Caller);
    let plain = client.table(&sums("plain", 4)).unwrap();
    let urgent = client.table(&sums("urgent", 4)).unwrap().priority(1);
    let mut ones = client.buffer(SEGMENT as usize).unwrap();
    ones.as_mut_slice().unwrap().fill(1.0);
    job.stop(0);
    let push = |table: &Table, at: u64| table.push_range_buffer(segment(at % 4), &ones, 0).unwrap();
    let mut others: Vec<Ticket> = (0..128).map(|number| push(&plain, number)).collect();
    let mut first = push(&urgent, 0);
    // Of a table that waits already nothing overtakes: it has the priority of what waits.
    let mut own = push(&plain.priority(100), 0);
    job.go_on(0);
    first.wait().unwrap();
    assert!(!others[127].test().unwrap() && !own.test().unwrap(), "it was overtaken by nothing");
    own.wait().unwrap();
    assert!(others.iter_mut().all(|ticket| ticket.test().unwrap()), "the last call is the last done");
    assert_eq!([pulled(&plain, 0), pulled(&plain, 1), pulled(&urgent, 0)], [33.0, 32.0, 1.0]);
    job.end([client]);
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
