//! Whole jobs over shared memory.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Process, run};
use rustix::process::{Resource, Rlimit, setrlimit};
use windlass::config::{LinkLimits, Network, ServerLimits, TransportChoice, TransportKind};
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
use windlass::transport::park::park;
use windlass::transport::shm::{Shm, ShmConfig};
use windlass::transport::{Completion, Side, Transport};
use windlass::types::{Consistency, NonFinite, OptimizerSpec};
use windlass::{Client, ClientConfig, Error, KeyRange, Secret, Server, Table, TableSpec};

/// Two workers on a server of two threads; gives what each returned.
fn job<T: Send + 'static>(
    transport: TransportChoice,
    body: impl Fn(&Client, u32) -> T + Send + Clone + 'static,
) -> Vec<T> {
    job_on(&showing(transport, 64 << 30), &showing(transport, 64 << 30), body)
}

/// What is shown is at most so many bytes.
fn showing(transport: TransportChoice, shown_bytes: usize) -> Network {
    let limits = LinkLimits { shown_bytes, ..LinkLimits::default() };
    Network { transport, limits, ..Network::default() }
}

/// The same with settings of the server's, and of the workers'.
fn job_on<T: Send + 'static>(
    servers: &Network,
    workers: &Network,
    body: impl Fn(&Client, u32) -> T + Send + Clone + 'static,
) -> Vec<T> {
    job_with(ServerLimits::default().slots, servers, workers, body)
}

/// The same with so many slots.
fn job_with<T: Send + 'static>(
    slots: usize,
    servers: &Network,
    workers: &Network,
    body: impl Fn(&Client, u32) -> T + Send + Clone + 'static,
) -> Vec<T> {
    let secret = Secret::generate().unwrap();
    let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(2));
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let limits = ServerLimits { slots, ..ServerLimits::default() };
    let server = Server::builder(&address, secret.clone()).threads(2).limits(limits).network(servers.clone());
    let server = server.start().unwrap();
    let coordinator = thread::spawn(move || coordinator.run());
    let workers: Vec<_> = (0..2)
        .map(|rank| {
            let mut config = ClientConfig::new(&address, secret.clone(), rank, 2);
            config.network = workers.clone();
            config.wait_timeout = Duration::from_secs(60);
            let body = body.clone();
            thread::spawn(move || {
                let client = Client::connect(config).unwrap();
                let result = body(&client, rank);
                client.finalize().unwrap();
                result
            })
        })
        .collect();
    let results = workers.into_iter().map(|w| w.join().unwrap()).collect();
    coordinator.join().unwrap().unwrap();
    server.run().unwrap();
    results
}

const ELEMENTS: usize = 300_000;

/// Each worker pushes from a registered buffer at an odd place, and from a slice, and pulls into a registered buffer.
fn train(client: &Client, rank: u32) -> (Vec<u32>, u64) {
    let spec = TableSpec::dense("w", &[ELEMENTS as u64]).optimizer(OptimizerSpec::sgd(0.1));
    let table = client.table(&spec).unwrap();
    let all = KeyRange::new(0, ELEMENTS as u64).unwrap();
    let mut gradient = client.buffer(ELEMENTS + 3).unwrap();
    let mut result = client.buffer(ELEMENTS).unwrap();
    let values =
        |clock: u32| move |i: usize| ((i as u32 * 31 + rank * 7 + clock) % 1000) as f32 * 0.001 - 0.3;
    for clock in 0..4 {
        for (i, value) in gradient.as_mut_slice().unwrap()[3..].iter_mut().enumerate() {
            *value = values(clock)(i);
        }
        let copied = client.stats().bytes_copied;
        let ticket = table.push_range_buffer(all, &gradient, 3).unwrap();
        assert_eq!(client.stats().bytes_copied, copied, "a push from a registered buffer copies nothing");
        client.clock().unwrap();
        let mut ticket = ticket;
        ticket.wait().unwrap();
        let slice: Vec<f32> = (0..ELEMENTS).map(values(clock + 100)).collect();
        let mut ticket = table.push_range(all, &slice).unwrap();
        client.clock().unwrap();
        ticket.wait().unwrap();
        table.pull_range_buffer(all, &mut result, 0).unwrap();
    }
    let servers = client.server_stats().unwrap();
    let pinned: u64 = servers.iter().flat_map(|s| &s.threads).map(|t| t.replies_pinned).sum();
    assert!(pinned > 0, "answers are sent from where the parameters lie");
    (result.as_slice().unwrap().iter().map(|v| v.to_bits()).collect(), client.stats().bytes_copied)
}

#[test]
fn buffers_are_read_where_they_lie_and_give_the_same_bits_as_over_tcp() {
    let over = |transport| job(transport, train);
    let tcp = over(TransportChoice::Only(TransportKind::Tcp));
    for transport in [TransportChoice::Only(TransportKind::Shm), TransportChoice::Auto] {
        assert_eq!(over(transport), tcp, "{transport}");
    }
}

/// A worker that changes values while its push is under way harms itself at most: what a table rejects does not get past the look.
#[test]
fn values_that_change_after_they_were_looked_at_are_not_folded() {
    const LENGTH: usize = 1 << 16;
    let odd = job(TransportChoice::Only(TransportKind::Shm), |client, rank| {
        let spec = TableSpec::dense("w", &[LENGTH as u64]).optimizer(OptimizerSpec::sum());
        let table = client.table(&spec.non_finite(NonFinite::Reject)).unwrap();
        let all = KeyRange::new(0, LENGTH as u64).unwrap();
        let mut gradient = client.buffer(LENGTH).unwrap();
        let values = gradient.as_mut_slice().unwrap();
        values.fill(1.0);
        let last = AtomicPtr::new(&raw mut values[LENGTH - 1]);
        let stop = AtomicBool::new(false);
        let mut odd = 0;
        thread::scope(|scope| {
            if rank == 1 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        for value in [f32::NAN, 1.0] {
                            // SAFETY: the buffer outlives the scope, and nobody has a reference to its values. Others read them through
                            // mappings of their own, as they may while a peer writes.
                            unsafe { last.load(Ordering::Relaxed).write_volatile(value) };
                        }
                    }
                });
            }
            for _ in 0..200 {
                let mut ticket = table.push_range_buffer(all, &gradient, 0).unwrap();
                client.clock().unwrap();
                match ticket.wait() {
                    Ok(_) | Err(Error::NonFinite { worker: 1, .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                let mut pulled = vec![0.0; LENGTH];
                table.pull_range(all, &mut pulled).unwrap();
                odd += pulled.iter().filter(|v| !v.is_finite()).count();
            }
            stop.store(true, Ordering::Relaxed);
        });
        odd
    });
    assert_eq!(odd, [0, 0]);
}

#[test]
fn asp_over_memory_loses_and_doubles_nothing() {
    let sums = job(TransportChoice::Only(TransportKind::Shm), |client, _| {
        // A step against the gradient, of its size.
        let spec = TableSpec::dense("w", &[100_000]).optimizer(OptimizerSpec::sgd(1.0));
        let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
        let all = KeyRange::new(0, 100_000).unwrap();
        let mut ones = client.buffer(100_000).unwrap();
        ones.as_mut_slice().unwrap().fill(1.0);
        for _ in 0..50 {
            table.push_range_buffer(all, &ones, 0).unwrap().wait().unwrap();
        }
        client.barrier().unwrap();
        let mut out = client.buffer(100_000).unwrap();
        table.pull_range_buffer(all, &mut out, 0).unwrap();
        out.as_slice().unwrap().to_vec()
    });
    assert!(sums.iter().flatten().all(|v| *v == -100.0));
}

/// A server thread keeps what is lent until its clock closes, but not for long: it lies in memory of which a worker that pushes from a
/// slice has less than the slots hold, and who waits at a barrier has all its slots back.
#[test]
fn what_is_kept_for_the_end_of_its_clock_holds_nobody_up() {
    const LONG: u64 = 8 << 20;
    let network = showing(TransportChoice::Only(TransportKind::Shm), 64 << 30);
    let last = job_with(64, &network, &network, |client, rank| {
        let spec = TableSpec::dense("w", &[LONG]).optimizer(OptimizerSpec::new("sum", &[]));
        let table = client.table(&spec).unwrap();
        let all = KeyRange::new(0, LONG).unwrap();
        table.push_range(all, &vec![1.0; LONG as usize]).unwrap();
        client.clock().unwrap();
        if rank == 0 {
            table.push_range(KeyRange::new(0, 100_000).unwrap(), &[1.0; 100_000]).unwrap();
            client.clock().unwrap();
        }
        client.barrier().unwrap();
        if rank == 1 {
            client.clock().unwrap();
        }
        let mut out = vec![0.0; LONG as usize];
        table.pull_range(all, &mut out).unwrap();
        (out[0], out[LONG as usize - 1])
    });
    assert_eq!(last, [(1.5, 1.0); 2]); // means
}

/// Whoever may not map what the other side shows has lost its connection, not its peer: TCP takes its place, with the same bits.
#[test]
fn what_may_not_be_mapped_goes_by_tcp() {
    let (much, little) = (showing(TransportChoice::Auto, 64 << 30), showing(TransportChoice::Auto, 1 << 20));
    let bits = |sides: (&Network, &Network)| {
        job_on(sides.0, sides.1, train).into_iter().map(|(bits, _)| bits).collect::<Vec<_>>()
    };
    let whole = bits((&much, &much));
    assert_eq!(bits((&much, &little)), whole, "workers may map less than the server shows");
    assert_eq!(bits((&little, &much)), whole, "the server may map less than workers show");
}

/// The error of the first worker that has one in a job of one worker, where shared memory is all there is.
fn refused(servers: usize, workers: usize) -> Error {
    let [servers, workers] =
        [servers, workers].map(|shown| showing(TransportChoice::Only(TransportKind::Shm), shown));
    let secret = Secret::generate().unwrap();
    let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1));
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let server = Server::builder(&address, secret.clone()).network(servers).start().unwrap();
    let coordinator = thread::spawn(move || coordinator.run());
    let mut config = ClientConfig::new(&address, secret, 0, 1);
    config.network = workers;
    let client = Client::connect(config).unwrap();
    let spec = TableSpec::dense("w", &[ELEMENTS as u64]).optimizer(OptimizerSpec::sum());
    let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
    let all = KeyRange::new(0, ELEMENTS as u64).unwrap();
    let buffer = client.buffer(ELEMENTS).unwrap();
    let pushed = table.push_range_buffer(all, &buffer, 0).and_then(|mut ticket| ticket.wait().map(drop));
    let pulled = pushed.and_then(|()| table.pull_range(all, &mut vec![0.0; ELEMENTS]).map(drop));
    client.abort("on purpose");
    let _ = (server.run(), coordinator.join().unwrap());
    pulled.unwrap_err()
}

#[test]
fn what_may_not_be_mapped_ends_a_job_without_another_way_and_is_named() {
    let error = refused(64 << 30, 1 << 20);
    assert!(matches!(error, Error::Limit { limit: 0x10_0000, .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("server 0") && error.contains("--shown-bytes"), "{error}");
    let error = refused(1 << 20, 64 << 30);
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("worker 0") && error.contains("--shown-bytes): limit 1048576"), "{error}");
}

#[test]
#[ignore = "run by a_worker_without_address_space_goes_on_over_tcp"]
fn with_little_address_space() {
    const ELEMENTS: usize = 64 << 20;
    let ends = job(TransportChoice::Auto, |client, rank| {
        let spec = TableSpec::dense("w", &[ELEMENTS as u64]).optimizer(OptimizerSpec::sum());
        let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
        client.barrier().unwrap();
        if rank == 0 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
            let size = size.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10;
            let limit = rustix::process::getrlimit(Resource::As);
            setrlimit(Resource::As, Rlimit { current: Some(size + (64 << 20)), ..limit }).unwrap();
        }
        client.barrier().unwrap();
        both_push_the_end(client, &table, ELEMENTS as u64)
    });
    assert_eq!(ends, [true, true]);
}

#[test]
fn a_worker_without_address_space_goes_on_over_tcp() {
    by_itself("with_little_address_space");
}

/// Whether a worker finds both workers' pushes to the end of a table.
fn both_push_the_end(client: &Client, table: &Table, length: u64) -> bool {
    let range = KeyRange::new(length - 100_000, length).unwrap();
    table.push_range(range, &[1.0; 100_000]).unwrap().wait().unwrap();
    client.barrier().unwrap();
    let mut values = vec![0.0; 100_000];
    table.pull_range(range, &mut values).unwrap();
    values.iter().all(|v| *v == 2.0)
}

/// Runs an ignored test in a process of its own: limits are a process's.
fn by_itself(name: &str) {
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--ignored", "--exact", "--nocapture", name]);
    let ended = Process::start(alone).end(Duration::from_secs(300)).expect(0);
    assert!(ended.stdout.contains("1 passed"), "{}", ended.stdout);
}

/// Gives this process a limit, and workers ask for tables until one can't be made; gives the reason.
fn tables_until_refused(elements: u64, limit: impl Fn() + Clone + Send + 'static) -> String {
    let reasons = job(TransportChoice::Only(TransportKind::Shm), move |client, rank| {
        client.barrier().unwrap();
        if rank == 0 {
            limit();
        }
        client.barrier().unwrap();
        let table = |n: u32| client.table(&TableSpec::dense(&format!("w{n}"), &[elements]));
        (0..1000).find_map(|n| table(n).err()).unwrap().to_string()
    });
    reasons.into_iter().next().unwrap()
}

#[test]
#[ignore = "run by a_table_beyond_a_limit_of_the_server_is_refused_with_what_to_raise"]
fn with_small_files() {
    let reason = tables_until_refused(64 << 20, || {
        let limit = rustix::process::getrlimit(Resource::Fsize);
        setrlimit(Resource::Fsize, Rlimit { current: Some(100 << 20), ..limit }).unwrap();
    });
    assert!(reason.contains("RLIMIT_FSIZE"), "{reason}");
    assert!(reason.contains("limit 104857600, asked for "), "{reason}");
}

#[test]
#[ignore = "run by a_table_beyond_a_limit_of_the_server_is_refused_with_what_to_raise"]
fn with_few_descriptors() {
    let reason = tables_until_refused(64, || {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let limit = rustix::process::getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(open + 20), ..limit }).unwrap();
    });
    assert!(reason.contains("RLIMIT_NOFILE"), "{reason}");
}

/// Where there is another way, a limit costs a copy and not the table.
#[test]
#[ignore = "run by what_has_no_room_among_files_is_private_where_there_is_another_way"]
fn with_small_files_and_tcp() {
    const LONG: u64 = 64 << 20;
    let ends = job(TransportChoice::Auto, |client, rank| {
        client.barrier().unwrap();
        if rank == 0 {
            let limit = rustix::process::getrlimit(Resource::Fsize);
            setrlimit(Resource::Fsize, Rlimit { current: Some(100 << 20), ..limit }).unwrap();
        }
        client.barrier().unwrap();
        let spec = TableSpec::dense("w", &[LONG]).optimizer(OptimizerSpec::new("sum", &[]));
        let table = client.table(&spec.consistency(Consistency::Asp)).unwrap();
        both_push_the_end(client, &table, LONG)
    });
    assert_eq!(ends, [true, true]);
}

#[test]
fn what_has_no_room_among_files_is_private_where_there_is_another_way() {
    by_itself("with_small_files_and_tcp");
}

#[test]
#[ignore = "run by a_listener_without_descriptors_sleeps"]
fn with_no_descriptor_left() {
    let key = [7; 32];
    let mut server = Shm::new(ShmConfig::default(), true).unwrap();
    let mut client = Shm::new(ShmConfig::default(), false).unwrap();
    let (expected, address) = server.open(Side::Passive, "a client").unwrap();
    let (dialled, active) = client.open(Side::Active, "a server").unwrap();
    server.connect(expected, &active, &key).unwrap();
    let limit = rustix::process::getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..limit }).unwrap();
    let mut fill: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    // One for the side that dials, and none for the side that accepts.
    fill.pop();
    client.connect(dialled, &address, &key).unwrap();
    let (mut completions, mut wakes) = (Vec::new(), 0);
    let begun = Instant::now();
    while wakes < 9 {
        server.poll(&mut completions, 16);
        if server.arm() {
            wakes += u32::from(park(&[server.waitable()], Duration::from_secs(10)).unwrap()[0]);
        }
    }
    assert!(begun.elapsed() > Duration::from_millis(250), "it spins: {:?} for nine wakes", begun.elapsed());
    assert!(completions.is_empty(), "{completions:?}");
    fill.clear();
    while completions.len() < 2 {
        client.poll(&mut completions, 16);
        server.poll(&mut completions, 16);
    }
    assert!(completions.iter().all(|c| matches!(c, Completion::Connected { .. })), "{completions:?}");
}

#[test]
fn a_listener_without_descriptors_sleeps() {
    by_itself("with_no_descriptor_left");
}

/// Whatever the system's answer would be: SIGXFSZ, or that there is no place for a descriptor.
#[test]
fn a_table_beyond_a_limit_of_the_server_is_refused_with_what_to_raise() {
    by_itself("with_small_files");
    by_itself("with_few_descriptors");
}

#[test]
fn the_transport_measures_itself_over_memory() {
    for op in ["write", "read"] {
        let ended = run(["bench", op, "--transport", "shm", "--seconds", "0.1", "--json"]).expect(0);
        assert!(ended.stdout.contains("\"transport\":\"shm\""), "{}", ended.stdout);
    }
}
