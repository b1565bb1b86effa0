//! A whole job in one process: coordinator, servers and workers over loopback TCP.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

use std::thread;
use std::time::Duration;

use windlass::config::{Network, ServerLimits};
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
use windlass::types::OptimizerSpec;
use windlass::{
    Client, ClientConfig, Error, KeyRange, Result, Secret, Server, ServerHandle, SortedKeys, TableSpec,
};

struct Job {
    address: String,
    secret: Secret,
    coordinator: thread::JoinHandle<Result<windlass::server::coordinator::Outcome>>,
    servers: Vec<ServerHandle>,
}

impl Job {
    fn start(servers: u32, threads: u32, workers: u32) -> Job {
        let secret = Secret::generate().unwrap();
        let config = CoordinatorServerConfig::new(secret.clone(), "", servers, Some(workers));
        let coordinator = CoordinatorServer::bind(config).unwrap();
        let address = coordinator.address().to_string();
        let servers = (0..servers)
            .map(|_| Server::builder(&address, secret.clone()).threads(threads).start().unwrap())
            .collect();
        Job { address, secret, coordinator: thread::spawn(move || coordinator.run()), servers }
    }

    /// Runs `body` as every worker; gives what each returned, by rank.
    fn workers<T: Send + 'static>(
        &self,
        workers: u32,
        body: impl Fn(Client) -> T + Send + Clone + 'static,
    ) -> Vec<T> {
        let threads: Vec<_> = (0..workers)
            .map(|rank| {
                let config = ClientConfig::new(&self.address, self.secret.clone(), rank, workers);
                let body = body.clone();
                thread::spawn(move || body(Client::connect(config).unwrap()))
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    }

    fn end(self) {
        self.coordinator.join().unwrap().unwrap();
        for server in self.servers {
            server.run().unwrap();
        }
    }
}

#[test]
fn pushes_of_a_clock_become_one_mean_step() {
    let job = Job::start(2, 2, 3);
    let pulled = job.workers(3, |client| {
        let spec = TableSpec::sparse("w", 2).optimizer(OptimizerSpec::sgd(1.0));
        let table = client.table(&spec).unwrap();
        let keys: Vec<u64> = (0..1000).map(|k| k * 0x1234_5678_9ABC).collect();
        let keys = SortedKeys::new(&keys).unwrap();
        let mut values = vec![1.0f32; 2000];
        assert_eq!(table.pull(keys, &mut values).unwrap(), 0);
        assert!(values.iter().all(|&v| v == 0.0));
        for clock in 0..5u64 {
            let gradient = vec![-(client.rank() as f32 + 1.0); 2000];
            let mut ticket = table.push(keys, &gradient).unwrap();
            let refused = ticket.wait().unwrap_err();
            assert!(
                matches!(&refused, Error::Misuse { reason, .. } if reason.contains("clock()")),
                "{refused}"
            );
            assert_eq!(client.clock().unwrap(), clock + 1);
            ticket.wait().unwrap();
            table.pull(keys, &mut values).unwrap();
            // The mean of 1, 2 and 3 is 2, once for each clock.
            assert!(values.iter().all(|&v| v == 2.0 * (clock + 1) as f32), "{:?}", &values[..4]);
        }
        client.finish().unwrap();
        client.barrier().unwrap();
        client.finalize().unwrap();
        values[0]
    });
    assert_eq!(pulled, [10.0; 3]);
    job.end();
}

#[test]
fn dense_ranges_and_push_pull_see_their_own_clock() {
    let job = Job::start(2, 1, 2);
    job.workers(2, |client| {
        let spec = TableSpec::dense("w", &[300, 1000]).optimizer(OptimizerSpec::new("sum", &[]));
        let spec = spec.aggregate(windlass::types::Aggregate::Sum);
        let table = client.table(&spec).unwrap();
        let range = KeyRange::new(17, 299_990).unwrap();
        let n = range.len() as usize;
        for clock in 1..=3u8 {
            let values: Vec<f32> = (0..n).map(|i| (i % 100) as f32).collect();
            let ticket = table.push_pull_range(range, &values).unwrap();
            client.clock().unwrap();
            let mut sum = vec![0.0f32; n];
            let version = ticket.wait_into(&mut sum).unwrap();
            assert_eq!(version, u64::from(clock));
            assert!(sum.iter().zip(&values).all(|(s, v)| *s == 2.0 * f32::from(clock) * v));
        }
        let mut outside = [1.0f32; 17];
        table.pull_range(KeyRange::new(0, 17).unwrap(), &mut outside).unwrap();
        assert_eq!(outside, [0.0; 17]);
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn a_table_of_another_spec_is_refused_with_both() {
    let job = Job::start(1, 1, 1);
    job.workers(1, |client| {
        client.table(&TableSpec::sparse("w", 1)).unwrap();
        let error = client.table(&TableSpec::sparse("w", 2)).unwrap_err().to_string();
        assert!(error.contains("rows of 1") && error.contains("rows of 2"), "{error}");
        let error = client.table(&TableSpec::sparse("x", 1).optimizer(OptimizerSpec::new("magic", &[])));
        assert!(error.unwrap_err().to_string().contains("sgd"));
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn pushes_that_nobody_would_see_are_refused_at_the_end() {
    let job = Job::start(1, 1, 1);
    job.workers(1, |client| {
        let table = client.table(&TableSpec::sparse("w", 1)).unwrap();
        table.push(SortedKeys::new(&[1]).unwrap(), &[1.0]).unwrap();
        let error = client.finish().unwrap_err();
        assert!(matches!(&error, Error::Misuse { reason, .. } if reason.contains("clock()")), "{error}");
        client.clock().unwrap();
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn unequal_numbers_of_clocks_hang_nobody() {
    let job = Job::start(1, 2, 3);
    let sums = job.workers(3, |client| {
        let spec = TableSpec::sparse("w", 1).optimizer(OptimizerSpec::new("sum", &[]));
        let table = client.table(&spec).unwrap();
        let keys = SortedKeys::new(&[5]).unwrap();
        for _ in 0..=client.rank() {
            table.push(keys, &[6.0]).unwrap();
            client.clock().unwrap();
        }
        client.finish().unwrap();
        client.barrier().unwrap();
        let mut value = [0.0];
        table.pull(keys, &mut value).unwrap();
        client.barrier().unwrap();
        client.finalize().unwrap();
        value[0]
    });
    // Each mean is over the workers of that clock: three times 6, whoever pushed.
    assert_eq!(sums, [18.0; 3]);
    job.end();
}

#[test]
fn a_worker_that_vanishes_ends_the_job_by_name() {
    let job = Job::start(1, 1, 2);
    let errors = job.workers(2, |client| {
        let table = client.table(&TableSpec::sparse("w", 1)).unwrap();
        client.barrier().unwrap();
        if client.rank() == 1 {
            return String::new(); // dropped without finalize
        }
        let keys = SortedKeys::new(&[5]).unwrap();
        let ticket = table.push_pull(keys, &[1.0]).unwrap();
        client.clock().unwrap();
        ticket.wait_into(&mut [0.0]).unwrap_err().to_string()
    });
    assert!(errors[0].contains("worker 1"), "{}", errors[0]);
    assert!(job.coordinator.join().unwrap().unwrap_err().to_string().contains("worker 1"));
    assert!(job.servers[0].run().unwrap_err().to_string().contains("worker 1"));
}

fn sums(name: &str, elements: u64, segment: u32) -> TableSpec {
    let spec = TableSpec::dense(name, &[elements]).segment_bytes(segment);
    spec.optimizer(OptimizerSpec::new("sum", &[])).aggregate(windlass::types::Aggregate::Sum)
}

/// More pulls of the clock's own values than there are credits must not starve those that its end waits for.
#[test]
fn pulls_of_earlier_clocks_pass_those_of_the_present_one() {
    let job = Job::start(1, 1, 2);
    job.workers(2, |client| {
        let (large, small) = (KeyRange::new(0, 3200).unwrap(), KeyRange::new(0, 16).unwrap());
        let table = client.table(&sums("w", 3200, 64)).unwrap();
        let other = client.table(&sums("u", 16, 64)).unwrap();
        let ticket = table.push_pull_range(large, &[1.0; 3200]).unwrap();
        let mut values = [9.0; 16];
        other.pull_range(small, &mut values).unwrap();
        assert_eq!(values, [0.0; 16]);
        let late = other.pull_range_async(small).unwrap();
        client.clock().unwrap();
        late.wait_into(&mut values).unwrap();
        let mut values = [0.0; 3200];
        ticket.wait_into(&mut values).unwrap();
        assert_eq!(values, [2.0; 3200]);
        client.finalize().unwrap();
    });
    job.end();
}

/// Worker 1's finish closes several clocks at once; what worker 0 pulled with its first push sees the first of them only.
#[test]
fn push_pull_never_sees_a_later_clock() {
    let job = Job::start(1, 1, 2);
    job.workers(2, |client| {
        let range = KeyRange::new(0, 16).unwrap();
        let table = client.table(&sums("w", 16, 64)).unwrap();
        if client.rank() == 1 {
            thread::sleep(std::time::Duration::from_millis(300));
            return client.finalize().unwrap();
        }
        let ticket = table.push_pull_range(range, &[1.0; 16]).unwrap();
        client.clock().unwrap();
        for _ in 0..2 {
            drop(table.push_range(range, &[1.0; 16]).unwrap());
            client.clock().unwrap();
        }
        let mut values = [0.0; 16];
        ticket.wait_into(&mut values).unwrap();
        assert_eq!(values, [1.0; 16]);
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn a_barrier_between_a_push_and_its_clock_is_refused() {
    let job = Job::start(1, 1, 2);
    job.workers(2, |client| {
        let table = client.table(&sums("w", 16, 64)).unwrap();
        drop(table.push_range(KeyRange::new(0, 16).unwrap(), &[1.0; 16]).unwrap());
        let error = client.barrier().unwrap_err();
        assert!(matches!(&error, Error::Misuse { reason, .. } if reason.contains("clock()")), "{error}");
        client.clock().unwrap();
        client.barrier().unwrap();
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn a_pull_of_many_short_segments_has_buffers() {
    let job = Job::start(1, 1, 1);
    job.workers(1, |client| {
        let table = client.table(&sums("w", 1 << 17, 64)).unwrap();
        let mut values = vec![1.0; 1 << 17];
        table.pull_range(KeyRange::new(0, 1 << 17).unwrap(), &mut values).unwrap();
        assert!(values.iter().all(|&v| v == 0.0));
        client.finalize().unwrap();
    });
    job.end();
}

/// Every thread of every server fails; the Coordinator must not take the second answer for a breach of the protocol.
#[test]
fn a_table_that_no_thread_can_make_is_refused_and_the_job_goes_on() {
    let job = Job::start(2, 3, 1);
    job.workers(1, |client| {
        let spec = TableSpec::sparse("bad", 1).optimizer(OptimizerSpec::new("nosuch", &[]));
        let error = client.table(&spec).unwrap_err();
        assert!(matches!(&error, Error::Refused { .. }), "{error}");
        client.table(&TableSpec::sparse("good", 1)).unwrap();
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn a_push_pull_whose_answer_has_no_room_pushes_nothing() {
    let job = Job::start(1, 1, 1);
    job.workers(1, |client| {
        let spec = TableSpec::dense("w", &[16 * 2000]).segment_bytes(64);
        let table = client.table(&spec).unwrap();
        let range = KeyRange::new(0, 16 * 2000).unwrap();
        let error = table.push_pull_range(range, &vec![1.0; 16 * 2000]).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error}");
        client.clock().unwrap();
        let mut weights = vec![1.0; 16 * 2000];
        table.pull_range(range, &mut weights).unwrap();
        assert!(weights.iter().all(|w| *w == 0.0));
        client.finalize().unwrap();
    });
    job.end();
}

/// In mid-job it answers what it took, lets go of its ports, and the worker's error names it. Again it does nothing.
#[test]
fn a_stopped_server_answers_what_it_took_and_releases_its_sockets() {
    let secret = Secret::generate().unwrap();
    let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1));
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let coordinator = thread::spawn(move || coordinator.run());
    // Ports below those that the system gives out, for control and one thread.
    let first = 18_000 + (std::process::id() % 700) as u16 * 2;
    let network = Network { ports: Some(first..=first + 1), ..Network::default() };
    let limits = ServerLimits { stop_timeout: Duration::from_secs(60), ..ServerLimits::default() };
    let server = Server::builder(&address, secret.clone()).network(network).limits(limits).start().unwrap();
    let client = Client::connect(ClientConfig::new(&address, secret, 0, 1)).unwrap();
    let table = client.table(&TableSpec::dense("w", &[1 << 20]).optimizer(OptimizerSpec::assign())).unwrap();
    let range = KeyRange::new(0, 1 << 20).unwrap();
    // Answers that no socket buffer holds at once.
    let ticket = table.push_pull_range(range, &vec![1.5; 1 << 20]).unwrap();
    client.clock().unwrap();
    let reader = thread::spawn(move || {
        let mut values = vec![0.0; 1 << 20];
        ticket.wait_into(&mut values).map(|_| values)
    });
    while client.server_stats().unwrap()[0].clocks != [1] {
        thread::yield_now();
    }
    server.stop().unwrap();
    assert!(reader.join().unwrap().unwrap().iter().all(|v| *v == 1.5));
    for port in [first, first + 1] {
        std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    }
    server.stop().unwrap();
    let error = table.pull_range(range, &mut vec![0.0; 1 << 20]).unwrap_err().to_string();
    assert!(error.contains("server 0 (") && error.contains("told to stop"), "{error}");
    let error = coordinator.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("server 0 ("), "{error}");
}
