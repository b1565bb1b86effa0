//! A whole job in one process: coordinator, servers and workers, over shared memory and over loopback TCP.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use common::job::Job;
use windlass::config::{Network, ServerLimits};
use windlass::control::{Event, Hub, HubConfig};
use windlass::proto::control::ControlMessage;
use windlass::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};
use windlass::types::{Consistency, Identity, Late, OptimizerSpec, Quorum, Role, Stale};
use windlass::{Client, ClientConfig, Error, Initializer, KeyRange, Secret, Server, SortedKeys, TableSpec};

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

/// What one worker has not waited for would fill the sockets and keep the only reply buffer, if it did not take it at the barrier.
#[test]
fn unread_answers_of_a_worker_at_a_barrier_keep_nobody_from_it() {
    const UNREAD: u64 = 60;
    let limits = ServerLimits { slots: 64, reply_buffers: 1, ..ServerLimits::default() };
    let job = Job::start_with(1, 2, |server| server.limits(limits));
    let threads = [0, 1].map(|rank| {
        let mut config = job.config(rank);
        config.wait_timeout = Duration::from_secs(60);
        thread::spawn(move || {
            let client = Client::connect(config).unwrap();
            let spec = TableSpec::sparse("w", 1024).consistency(Consistency::Asp);
            let table = client.table(&spec).unwrap();
            let keys: Vec<u64> = (0..60).collect();
            let keys = SortedKeys::new(&keys).unwrap();
            if rank == 0 {
                (0..UNREAD).for_each(|_| drop(table.pull_async(keys).unwrap()));
            } else {
                let mut values = vec![0.0; 60 * 1024];
                let mut own = 0;
                while own == 0 || client.server_stats().unwrap()[0].threads[0].pulls < UNREAD + own {
                    table.pull(keys, &mut values).unwrap();
                    own += 1;
                }
            }
            client.barrier().unwrap();
            client.finalize().unwrap();
        })
    });
    threads.into_iter().for_each(|t| t.join().unwrap());
    job.end();
}

#[test]
fn a_table_of_another_spec_is_refused_with_both() {
    let job = Job::start(1, 1, 1);
    job.workers(1, |client| {
        client.table(&TableSpec::sparse("w", 1)).unwrap();
        let error = client.table(&TableSpec::sparse("w", 2)).unwrap_err().to_string();
        assert!(error.contains("rows of 1") && error.contains("rows of 2"), "{error}");
        let other = Initializer::Constant(1.5);
        let error = client.table(&TableSpec::sparse("w", 1).initializer(other)).unwrap_err().to_string();
        assert!(error.contains("zeros") && error.contains("constant 1.5"), "{error}");
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
            // Worker 0 has ended its first clock; the next it can end only when its pull is answered, which needs our finish.
            while client.peers().unwrap().iter().all(|peer| peer.clock < 1) {
                thread::yield_now();
            }
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

/// Of a push to many buckets only the pieces that are too old are rejected; the job, and later pushes, go on.
#[test]
fn stale_pieces_are_rejected_one_by_one() {
    let job = Job::start(2, 2, 2);
    job.workers(2, |client| {
        let spec = TableSpec::sparse("w", 2).optimizer(OptimizerSpec::sum()).consistency(Consistency::Asp);
        let spec = spec.stale(Stale::Reject { max_age: 1 });
        let table = client.table(&spec).unwrap();
        let all: Vec<u64> = (0..100).collect();
        let bucket = |key: &u64| spec.bucket_of(*key);
        let touched: BTreeSet<u32> = all[..20].iter().map(bucket).collect();
        let keys = SortedKeys::new(&all).unwrap();
        let mut rows = [0.0; 200];
        let base = table.pull(keys, &mut rows).unwrap();
        assert_eq!(base, 0);
        client.barrier().unwrap();
        if client.rank() == 1 {
            for _ in 0..2 {
                table.push(SortedKeys::new(&all[..20]).unwrap(), &[1.0; 40]).unwrap().wait().unwrap();
            }
        }
        client.barrier().unwrap();
        if client.rank() == 0 {
            let mut push = table.push_from(base, keys, &[10.0; 200]).unwrap();
            for _ in 0..2 {
                let error = push.wait().unwrap_err();
                let Error::Stale { table, bucket, base: 0, current: 2, pieces } = &error else {
                    panic!("{error}")
                };
                assert_eq!((&**table, *pieces as usize), ("w", touched.len()));
                assert!(touched.contains(bucket), "{error}");
            }
            let now = table.pull(keys, &mut rows).unwrap();
            assert_eq!(now, 2);
            for (key, row) in all.iter().zip(rows.chunks(2)) {
                let expected = match (*key < 20, touched.contains(&bucket(key))) {
                    (true, _) => 2.0,
                    (false, true) => 0.0,
                    (false, false) => 10.0,
                };
                assert_eq!(row, [expected; 2], "key {key}");
            }
            drop(table.push_from(base, keys, &[10.0; 200]).unwrap());
            table.push_from(now, keys, &[0.5; 200]).unwrap().wait().unwrap();
            table.push(keys, &[0.5; 200]).unwrap().wait().unwrap();
            let rejected = client.server_stats().unwrap();
            let rejected: u64 = rejected.iter().flat_map(|s| &s.threads).map(|t| t.stale_rejected).sum();
            assert_eq!(rejected as usize, 2 * touched.len());
        }
        client.barrier().unwrap();
        table.pull(keys, &mut rows).unwrap();
        assert!(rows.chunks(2).take(20).all(|row| row == [3.0; 2]), "{rows:?}");
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn a_base_version_has_to_make_sense() {
    let job = Job::start(1, 1, 1);
    job.workers(1, |client| {
        let refused = |pushed: windlass::Result<windlass::Ticket>, why: &str| {
            let error = pushed.unwrap_err();
            assert!(matches!(&error, Error::Misuse { reason, .. } if reason.contains(why)), "{error}");
        };
        let range = KeyRange::new(0, 16).unwrap();
        let bsp = client.table(&sums("bsp", 16, 64)).unwrap();
        refused(bsp.push_range_from(0, range, &[1.0; 16]), "under bsp");
        let asp = client.table(&sums("asp", 1 << 18, 1 << 20).consistency(Consistency::Asp)).unwrap();
        refused(asp.push_range_from(u64::MAX, range, &[1.0; 16]), "no version");
        let long = KeyRange::new(0, 1 << 18).unwrap();
        refused(asp.push_range_from(0, long, &vec![1.0; 1 << 18]), "does not fit a frame");
        asp.push_range_from(0, range, &[1.0; 16]).unwrap().wait().unwrap();
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn a_quorum_of_more_workers_than_there_are_is_refused_with_both_numbers() {
    let job = Job::start(1, 1, 1);
    job.workers(1, |client| {
        let spec = sums("w", 16, 64).quorum(Quorum { workers: 2, late: Late::Drop });
        let error = client.table(&spec).unwrap_err().to_string();
        assert!(error.contains("at most the job's 1 workers, found 2"), "{error}");
        let spec = sums("w", 16, 64).quorum(Quorum { workers: 1, late: Late::Drop });
        client.table(&spec).unwrap();
        let error = client.table(&sums("w", 16, 64)).unwrap_err().to_string();
        assert!(error.contains("quorum of 1, late pieces dropped"), "{error}");
        client.finalize().unwrap();
    });
    job.end();
}

/// In mid-job it answers what it took, lets go of its ports, and the worker's error names it. Again it does nothing.
#[test]
fn a_stopped_server_answers_what_it_took_and_releases_its_sockets() {
    const STOP: Duration = Duration::from_secs(60);
    let secret = Secret::generate().unwrap();
    let config = CoordinatorServerConfig::new(secret.clone(), "", 1, Some(2));
    let coordinator = CoordinatorServer::bind(config).unwrap();
    let address = coordinator.address().to_string();
    let coordinator = thread::spawn(move || coordinator.run());
    // Ports below those that the system gives out, for control and one thread.
    let first = 18_000 + (std::process::id() % 700) as u16 * 2;
    let transport = common::transport();
    let network = Network { ports: Some(first..=first + 1), transport, ..Network::default() };
    let limits = ServerLimits { stop_timeout: STOP, ..ServerLimits::default() };
    let server = Server::builder(&address, secret.clone()).network(network).limits(limits).start().unwrap();
    let join = |rank| {
        let mut config = ClientConfig::new(&address, secret.clone(), rank, 2);
        config.network.transport = transport;
        thread::spawn(move || Client::connect(config).unwrap())
    };
    let [first_client, second_client] = [join(0), join(1)].map(|thread| thread.join().unwrap());
    let spec = TableSpec::dense("w", &[1 << 20]).optimizer(OptimizerSpec::assign());
    let table = first_client.table(&spec.aggregate(windlass::types::Aggregate::Sum)).unwrap();
    let range = KeyRange::new(0, 1 << 20).unwrap();
    table.push_range(range, &vec![1.5; 1 << 20]).unwrap();
    first_client.clock().unwrap();
    // The second worker has not ended that clock, so this waits: 4 MiB of answers. A push stands behind it.
    let ticket = table.pull_range_async(range).unwrap();
    let mut push = table.push_range(KeyRange::new(0, 1).unwrap(), &[2.0]).unwrap();
    while first_client.server_stats().unwrap()[0].threads[0].pushes != 17 {
        assert!(!push.test().unwrap());
    }
    thread::scope(|scope| {
        let (stopping, begun) = (scope.spawn(|| server.stop()), Instant::now());
        second_client.clock().unwrap();
        let mut values = vec![0.0; 1 << 20];
        ticket.wait_into(&mut values).unwrap();
        assert!(values.iter().all(|v| *v == 1.5));
        first_client.clock().unwrap();
        second_client.clock().unwrap();
        push.wait().unwrap();
        stopping.join().unwrap().unwrap();
        assert!(begun.elapsed() < STOP, "it waited for workers that make no call");
    });
    for port in [first, first + 1] {
        std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    }
    server.stop().unwrap();
    let error = table.pull_range(range, &mut vec![0.0; 1 << 20]).unwrap_err().to_string();
    assert!(error.contains("server 0 (") && error.contains("told to stop"), "{error}");
    let error = coordinator.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("server 0 ("), "{error}");
}

/// All that a late server hears of the job may come at once: that its link is up, why the job is over, and the link's end.
#[test]
fn a_server_that_comes_to_the_end_says_why_the_job_is_over() {
    let secret = Secret::generate().unwrap();
    let identity =
        Identity { role: Role::Coordinator, rank: None, incarnation: 1, process: "test".to_owned() };
    let mut hub = Hub::new(HubConfig::new(secret.clone(), "", identity)).unwrap();
    let address = hub.listen(std::net::Ipv4Addr::LOCALHOST.into(), None).unwrap().to_string();
    for _ in 0..20 {
        let server = Server::builder(&address, secret.clone()).start().unwrap();
        let running = thread::spawn(move || server.run());
        let mut events = Vec::new();
        while !running.is_finished() {
            hub.poll(&mut events, Duration::from_millis(5)).unwrap();
            for event in events.drain(..) {
                if let Event::Up { link, .. } = event {
                    hub.send(link, &ControlMessage::Abort { reason: "enough".to_owned() }).unwrap();
                    hub.close(link);
                }
            }
        }
        let error = running.join().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Aborted { reason } if reason == "enough"), "{error}");
    }
}

/// One slot for each worker, small pieces in an order of its own, and their marks behind them: nobody waits for ever, and
/// the bits are those of many slots.
#[test]
fn batches_with_one_slot_for_each_worker_end_with_the_same_bits() {
    let run = |slots: usize| {
        let job = Job::start_with(2, 5, |server| {
            server.threads(2).limits(ServerLimits { slots, ..ServerLimits::default() })
        });
        let bits = job.workers(5, |client| {
            let tables = ["a", "b"].map(|name| {
                let spec = TableSpec::dense(name, &[640]).segment_bytes(64);
                client.table(&spec.optimizer(OptimizerSpec::adagrad(0.5, 1e-8))).unwrap()
            });
            let rank = u64::from(client.rank());
            for clock in 0..8u64 {
                for i in 0..80u64 {
                    let number = (i * (2 * rank + 1) * 3 + clock * rank) % 80;
                    let range = KeyRange::new(number / 2 * 16, number / 2 * 16 + 16).unwrap();
                    let value = 1.0 / (1.0 + (number + clock * 7 + rank * 13) as f32);
                    drop(tables[number as usize % 2].push_range(range, &[value; 16]).unwrap());
                    if i % 37 == rank {
                        client.flush().unwrap();
                    }
                }
                client.clock().unwrap();
            }
            let mut values = vec![0.0; 1280];
            for (table, values) in tables.iter().zip(values.chunks_mut(640)) {
                table.pull_range(KeyRange::new(0, 640).unwrap(), values).unwrap();
            }
            client.finalize().unwrap();
            values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        });
        job.end();
        bits
    };
    let one = run(1);
    assert!(one.iter().all(|bits| *bits == one[0]) && one[0].iter().all(|b| *b != 0));
    assert!(one == run(16));
}

/// The second small push waits at the worker for others to join it, since the first is still under way there.
#[test]
fn flush_sends_what_waits_for_others_to_join() {
    let job = Job::start(1, 1, 2);
    job.workers(2, |client| {
        let table = client.table(&sums("w", 32, 64).consistency(Consistency::Asp)).unwrap();
        let ranges = [KeyRange::new(0, 16).unwrap(), KeyRange::new(16, 32).unwrap()];
        let seen = |range, value: f32| {
            let mut values = [0.0; 16];
            table.pull_range(range, &mut values).unwrap();
            values == [value; 16]
        };
        if client.rank() == 0 {
            for range in ranges {
                drop(table.push_range(range, &[1.0; 16]).unwrap());
            }
            client.set_status(b"pushed").unwrap();
            // This worker's data waits until the other has seen the first push alone.
            while !client.peers().unwrap().iter().any(|p| p.status == b"seen") {
                thread::yield_now();
            }
            client.flush().unwrap();
        } else {
            while !seen(ranges[0], 1.0) {}
            assert!(seen(ranges[1], 0.0));
            client.set_status(b"seen").unwrap();
            while !seen(ranges[1], 1.0) {}
        }
        client.finalize().unwrap();
    });
    job.end();
}

/// Elements of a segment, segments of the table, and how many of them a worker asks for before it has to read.
const SEGMENT: u64 = 65_536;
const SEGMENTS: u64 = 40;
const SLOTS: u64 = 16;

fn counting_pushes() -> TableSpec {
    TableSpec::dense("w", &[SEGMENT * SEGMENTS])
        .optimizer(OptimizerSpec::sum())
        .aggregate(windlass::types::Aggregate::Sum)
        .consistency(windlass::types::Consistency::Asp)
}

/// The value of each segment: how many pushes it has seen. Fails where a segment is not of one version.
fn versions(values: &[f32]) -> Vec<f32> {
    let one = |segment: &[f32]| {
        let first = segment[0];
        let at = segment.iter().position(|v| v.to_bits() != first.to_bits());
        assert_eq!(at, None, "a segment that begins with {first} is not of one version");
        first
    };
    values.chunks(SEGMENT as usize).map(one).collect()
}

fn answers(client: &Client) -> [u64; 4] {
    let stats = client.server_stats().unwrap();
    let threads = || stats.iter().flat_map(|s| &s.threads);
    [
        threads().map(|t| t.pulls).sum(),
        threads().map(|t| t.replies_pinned).sum(),
        threads().map(|t| t.replies_copied).sum(),
        threads().map(|t| t.blocks_moved).sum(),
    ]
}

/// A worker asks for more than its socket holds and does not read, while another pushes: what it reads at last is for each
/// segment the version at the time of the answer, and the pushes never waited.
#[test]
fn a_slow_reader_gets_one_version_and_stops_nobody() {
    // With room for a version of every segment, of some, of none.
    for (spare_bytes, pinned) in [(64 << 20, SLOTS), (3 << 20, 12), (0, 0)] {
        let job = Job::start_with(1, 2, |server| {
            server.limits(ServerLimits { spare_bytes, ..ServerLimits::default() })
        });
        let together = std::sync::Arc::new(std::sync::Barrier::new(2));
        job.workers(2, move |client| {
            let table = client.table(&counting_pushes()).unwrap();
            let all = KeyRange::new(0, SEGMENT * SEGMENTS).unwrap();
            let mut values = vec![1.0; (SEGMENT * SEGMENTS) as usize];
            if client.rank() == 0 {
                table.push_range(all, &values).unwrap().wait().unwrap();
                together.wait();
                together.wait();
                for _ in 0..3 {
                    table.push_range(all, &values).unwrap().wait().unwrap();
                }
                let [answered, replies_pinned, replies_copied, moved] = answers(&client);
                assert_eq!(replies_pinned + replies_copied, answered);
                assert!(replies_pinned >= pinned, "{replies_pinned} pinned");
                assert!(pinned > 0 || replies_copied == answered, "{replies_copied} copied");
                // Where every answer is pinned, those that the socket did not take were when their segments were written.
                assert!((pinned < SLOTS || moved > 0) && (pinned > 0 || moved == 0), "{moved} moved");
                together.wait();
                table.pull_range(all, &mut values).unwrap();
                assert_eq!(versions(&values), [4.0; SEGMENTS as usize]);
            } else {
                together.wait();
                let ticket = table.pull_range_async(KeyRange::new(0, SEGMENT * SLOTS).unwrap()).unwrap();
                client.flush().unwrap();
                while answers(&client)[0] < SLOTS {
                    thread::yield_now();
                }
                together.wait();
                together.wait();
                let values = &mut values[..(SEGMENT * SLOTS) as usize];
                ticket.wait_into(values).unwrap();
                assert_eq!(versions(values), [1.0; SLOTS as usize]);
            }
            client.finalize().unwrap();
        });
        job.end();
    }
}

/// Everybody pulls and pushes at once, with fewer spare segments than answers under way.
#[test]
fn answers_are_of_one_version_under_pushes() {
    let job = Job::start_with(1, 3, |server| {
        let limits = ServerLimits { spare_bytes: 5 << 18, ..ServerLimits::default() };
        server.limits(limits).threads(2)
    });
    job.workers(3, |client| {
        let table = client.table(&counting_pushes()).unwrap();
        let all = KeyRange::new(0, SEGMENT * SEGMENTS).unwrap();
        let ones = vec![1.0; (SEGMENT * SEGMENTS) as usize];
        let mut values = vec![0.0; (SEGMENT * SEGMENTS) as usize];
        let mut before = vec![0.0f32; SEGMENTS as usize];
        for _ in 0..8 {
            let mut push = table.push_range(all, &ones).unwrap();
            table.pull_range(all, &mut values).unwrap();
            let seen = versions(&values);
            assert!(seen.iter().zip(&before).all(|(now, then)| now >= then), "a version went back");
            before = seen;
            push.wait().unwrap();
        }
        client.finish().unwrap();
        client.barrier().unwrap();
        table.pull_range(all, &mut values).unwrap();
        assert_eq!(versions(&values), [24.0; SEGMENTS as usize]);
        let [pulls, pinned, copied, _] = answers(&client);
        assert!(pinned > 0 && pinned + copied == pulls, "{pinned} + {copied} of {pulls}");
        client.finalize().unwrap();
    });
    job.end();
}

/// What tables begin with depends on nothing but their spec.
#[test]
fn parameters_begin_the_same_on_any_number_of_servers_and_threads() {
    let begin = |servers, threads| {
        let job = Job::start(servers, threads, 1);
        let read = job.workers(1, |client| {
            let begin = Initializer::Normal { mean: 0.0, std: 0.1, seed: 9 };
            let keys: Vec<u64> = (0..100).map(|k| k * 0x0123_4567_89AB).collect();
            let mut rows = vec![0.0; 300];
            let sparse = client.table(&TableSpec::sparse("rows", 3).initializer(begin)).unwrap();
            sparse.pull(SortedKeys::new(&keys).unwrap(), &mut rows).unwrap();
            let mut elements = vec![0.0; 1000];
            let dense = TableSpec::dense("elements", &[10, 100]).segment_bytes(64).initializer(begin);
            let dense = client.table(&dense).unwrap();
            dense.pull_range(KeyRange::new(0, 1000).unwrap(), &mut elements).unwrap();
            client.finalize().unwrap();
            rows.iter().chain(&elements).map(|v: &f32| v.to_bits()).collect::<Vec<_>>()
        });
        job.end();
        read
    };
    let one = begin(1, 1);
    assert!(one[0].iter().filter(|bits| **bits != 0).count() > 1290);
    assert_eq!(one, begin(2, 2));
    assert_eq!(one, begin(3, 1));
}

/// Everybody sets element 0, and one of them element 1; the highest rank's value stands, whoever was first, and what is pushed
/// beside it still steps.
#[test]
fn what_is_set_in_a_clock_stands_when_it_has_closed() {
    let job = Job::start(2, 2, 3);
    job.workers(3, |client| {
        let dense = TableSpec::dense("w", &[100]).segment_bytes(64).optimizer(OptimizerSpec::sum());
        let dense = client.table(&dense.aggregate(windlass::types::Aggregate::Sum)).unwrap();
        let rows = client.table(&TableSpec::sparse("r", 2)).unwrap();
        let (one, two) = (KeyRange::new(0, 1).unwrap(), KeyRange::new(0, 100).unwrap());
        let key = [7];
        let key = SortedKeys::new(&key).unwrap();
        for clock in 1..=20u16 {
            let mine = f32::from(clock) * 10.0 + client.rank() as f32;
            let mut tickets = vec![dense.push_range(two, &[1.0; 100]).unwrap()];
            tickets.push(dense.set_range(one, &[mine]).unwrap());
            tickets.push(rows.set(key, &[mine, -mine]).unwrap());
            assert_eq!(u64::from(clock), client.clock().unwrap());
            client.wait_all(&mut tickets).unwrap();
            let (mut all, mut row) = ([0.0; 100], [0.0; 2]);
            dense.pull_range(two, &mut all).unwrap();
            rows.pull(key, &mut row).unwrap();
            let highest = f32::from(clock) * 10.0 + 2.0;
            assert_eq!((all[0], row), (highest, [highest, -highest]));
            assert!(all[1..].iter().all(|v| *v == 3.0 * f32::from(clock)), "{all:?}");
        }
        let ftrl = TableSpec::sparse("f", 1).optimizer(OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0));
        let error = client.table(&ftrl).unwrap().set(key, &[1.0]).unwrap_err();
        assert!(matches!(&error, Error::Misuse { reason, .. } if reason.contains("ftrl")), "{error}");
        client.finalize().unwrap();
    });
    job.end();
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
