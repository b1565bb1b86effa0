//! Pulls that read what servers publish, over loopback TCP, which emulates one-sided reads.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use common::job::Job;
use windlass::client::ReadStats;
use windlass::config::PullMode;
use windlass::types::{Aggregate, Consistency, Late, OptimizerSpec, Publish, Quorum};
use windlass::{Client, Error, KeyRange, Table, TableSpec};

const LENGTH: usize = 10_000;

fn reader(job: &Job, rank: u32) -> Client {
    let mut config = job.config(rank);
    config.pull = PullMode::Read;
    Client::connect(config).unwrap()
}

fn sums(consistency: Consistency) -> TableSpec {
    let spec = TableSpec::dense("w", &[LENGTH as u64]).segment_bytes(4096).optimizer(OptimizerSpec::sum());
    spec.aggregate(Aggregate::Sum).consistency(consistency).publish(Publish::epochs(2))
}

fn all() -> KeyRange {
    KeyRange::new(0, LENGTH as u64).unwrap()
}

/// Runs two workers that read their pulls, and gives what each read.
fn two(work: fn(&Client) -> ReadStats) -> Vec<ReadStats> {
    let job = Job::start(2, 2, 2);
    let stats = std::thread::scope(|scope| {
        let one = |rank| {
            let client = reader(&job, rank);
            let stats = work(&client);
            client.finish().unwrap();
            client.barrier().unwrap();
            client.finalize().unwrap();
            stats
        };
        let workers = [0, 1].map(|rank| scope.spawn(move || one(rank)));
        workers.map(|w| w.join().unwrap()).to_vec()
    });
    job.end();
    stats
}

/// In clock c exactly the clocks before c; a registered buffer is read into where it lies; push_pull is answered.
#[test]
fn under_bsp_a_read_sees_the_clocks_before_its_own() {
    let stats = two(|client| {
        let table = client.table(&sums(Consistency::Bsp)).unwrap();
        client.barrier().unwrap();
        let mut buffer = client.buffer(LENGTH).unwrap();
        let mut values = vec![0.0f32; LENGTH];
        for clock in 0..20u16 {
            let expected = f32::from(2 * clock);
            table.pull_range(all(), &mut values).unwrap();
            assert!(values.iter().all(|v| *v == expected), "clock {clock}: {}", values[0]);
            table.pull_range_buffer(all(), &mut buffer, 0).unwrap();
            buffer.read(0, &mut values).unwrap();
            assert!(values.iter().all(|v| *v == expected), "clock {clock}: {}", values[0]);
            let after = table.push_pull_range(all(), &[1.0; LENGTH]).unwrap();
            client.clock().unwrap();
            assert_eq!(after.wait_into(&mut values).unwrap(), u64::from(clock) + 1);
            assert!(values.iter().all(|v| *v == expected + 2.0), "clock {clock}: {}", values[0]);
        }
        client.stats().reads
    });
    // Until a server thread has told where it publishes, it is asked; after that nothing is.
    assert!(stats.iter().all(|s| s.read > 200 && s.asked == 0), "{stats:?}");
}

/// A read waits for what its consistency needs, and sees its worker's own pushes.
#[test]
fn under_ssp_and_asp_a_read_sees_no_less_than_it_must() {
    for consistency in [Consistency::Ssp { staleness: 2 }, Consistency::Asp] {
        let job = Job::start(1, 1, 1);
        let client = reader(&job, 0);
        let table = client.table(&sums(consistency)).unwrap();
        let mut values = vec![0.0f32; LENGTH];
        for clock in 0..20u16 {
            let mut push = table.push_range(all(), &[1.0; LENGTH]).unwrap();
            if clock % 2 == 0 {
                push.wait().unwrap();
            }
            let version = table.pull_range(all(), &mut values).unwrap();
            assert_eq!(version, u64::from(clock) + 1, "{consistency}");
            assert!(values.iter().all(|v| *v == f32::from(clock) + 1.0), "{consistency}: {}", values[0]);
            client.clock().unwrap();
        }
        let read = client.stats().reads.read;
        assert!(read >= 9 * 10, "{consistency}: {read}");
        client.finalize().unwrap();
        job.end();
    }
}

/// With `every` = 3 a reader sees every third version and no other, and at the end of a clock what is left over. Another worker pushes,
/// since one whose own pushes are on their way asks.
#[test]
fn every_third_update_is_published_and_what_a_clock_leaves_over() {
    const EVERY: u64 = 3;
    for consistency in [Consistency::Ssp { staleness: 0 }, Consistency::Asp] {
        let job = Job::start(1, 1, 2);
        let spec =
            || sums(consistency).segment_bytes(1 << 20).publish(Publish::Epochs { buffers: 2, every: 3 });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let client = reader(&job, 0);
                let table = client.table(&spec()).unwrap();
                for pushed in 1..=10u64 {
                    client.barrier().unwrap();
                    table.push_range(all(), &[1.0; LENGTH]).unwrap().wait().unwrap();
                    // Its own pushes, too, are there with every third only, or all of them where it asks.
                    let version = table.pull_range(all(), &mut [0.0; LENGTH]).unwrap();
                    assert!([pushed / EVERY * EVERY, pushed].contains(&version), "{version} of {pushed}");
                    client.barrier().unwrap();
                }
                client.clock().unwrap();
                client.finalize().unwrap();
            });
            let client = reader(&job, 1);
            let table = client.table(&spec()).unwrap();
            let mut values = vec![0.0f32; LENGTH];
            let mut pull = |table: &Table| {
                let version = table.pull_range(all(), &mut values).unwrap();
                assert!(values.iter().all(|v| *v == version as f32), "version {version}: {}", values[0]);
                version
            };
            // Until the server has told where it publishes, it is asked.
            while client.stats().reads.read == 0 {
                assert_eq!(pull(&table), 0);
            }
            let before = client.stats().reads;
            for pushed in 1..=10u64 {
                client.barrier().unwrap();
                client.barrier().unwrap();
                assert_eq!(pull(&table), pushed / EVERY * EVERY, "{consistency}, {pushed} pushes");
            }
            client.clock().unwrap();
            // Under Ssp{0} a pull needs the clock before its own, under Asp none.
            let mut last = pull(&table);
            assert!(last == 10 || last == 9 && consistency == Consistency::Asp, "{consistency}: {last}");
            while last < 10 {
                last = pull(&table);
            }
            let after = client.stats().reads;
            assert!(after.read >= before.read + 10 && after.asked == before.asked, "{before:?} {after:?}");
            client.finalize().unwrap();
        });
        job.end();
    }
}

/// A quorum closes its clock before this worker hears of all marks: what is not there is asked for.
#[test]
fn what_is_not_there_is_asked_for() {
    let quorum = Quorum { workers: 2, late: Late::Drop };
    let job = Job::start(1, 1, 2);
    let clients = std::thread::scope(|scope| {
        let job = &job;
        [0, 1].map(|rank| scope.spawn(move || reader(job, rank))).map(|c| c.join().unwrap())
    });
    let tables = clients.each_ref().map(|c| c.table(&sums(Consistency::Bsp).quorum(quorum)).unwrap());
    let mut values = vec![0.0f32; LENGTH];
    tables[0].pull_range(all(), &mut values).unwrap();
    drop(tables[0].push_range(all(), &[1.0; LENGTH]).unwrap());
    clients[0].clock().unwrap();
    let early = tables[0].pull_range_async(all()).unwrap();
    clients[0].flush().unwrap();
    while clients[0].stats().reads.asked == 0 {
        clients[0].flush().unwrap();
        std::thread::yield_now();
    }
    drop(tables[1].push_range(all(), &[2.0; LENGTH]).unwrap());
    clients[1].clock().unwrap();
    clients[1].flush().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| clients[1].finish().unwrap());
        early.wait_into(&mut values).unwrap();
    });
    assert!(values.iter().all(|v| *v == 3.0), "{}", values[0]);
    std::thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| client.finalize().unwrap());
        }
    });
    job.end();
}

/// Whoever pulls as usual is answered; and what can't be published is refused.
#[test]
fn other_clients_are_answered_and_other_tables_refused() {
    let job = Job::start(1, 1, 1);
    let client = job.client(0);
    let table = client.table(&sums(Consistency::Bsp)).unwrap();
    let mut values = vec![1.0f32; LENGTH];
    table.pull_range(all(), &mut values).unwrap();
    assert!(values.iter().all(|v| *v == 0.0));
    assert_eq!(client.stats().reads, ReadStats::default());
    for spec in [
        TableSpec::sparse("s", 1).publish(Publish::epochs(2)),
        sums(Consistency::Bsp).publish(Publish::epochs(1)),
        sums(Consistency::Bsp).publish(Publish::epochs(65)),
        sums(Consistency::Bsp).publish(Publish::Epochs { buffers: 2, every: 0 }),
        sums(Consistency::Bsp).wire(windlass::types::Wire::Fp16),
    ] {
        let refused = client.table(&spec).unwrap_err();
        assert!(
            matches!(&refused, Error::Config { setting, .. } if setting.contains("publish")),
            "{refused}"
        );
    }
    client.finalize().unwrap();
    job.end();
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
