//! Crashed processes, and what the simulation itself finds.

use std::time::Duration;

use super::rig::{Job, Worker};
use crate::server::simulated::Fault;
use crate::types::{Consistency, KeyRange, OptimizerSpec, TableSpec};

fn table(consistency: Consistency) -> Vec<TableSpec> {
    let spec = TableSpec::dense("w", &[64]).segment_bytes(64).consistency(consistency);
    vec![spec.optimizer(OptimizerSpec::sum())]
}

/// Three clocks of one push and one pull, with a nap before each.
fn act(worker: &Worker) {
    let (table, range) = (&worker.tables[0], KeyRange::new(0, 64).unwrap());
    for clock in 0..3 {
        worker.node.doing(format!("clock {clock}"));
        worker.node.sleep(Duration::from_millis(1));
        drop(table.push_range(range, &[1.0; 64]).unwrap());
        table.pull_range(range, &mut [0.0; 64]).unwrap();
        worker.client.clock().unwrap();
    }
    worker.finish();
}

fn failure(job: &Job) -> String {
    match job.run(act) {
        Ok(_) => panic!("seed {}: it ended", job.seed),
        Err(failure) => failure.0,
    }
}

/// Its successor is another process, which no server lets in; and nobody goes on without it.
#[test]
fn a_crashed_worker_can_not_be_replaced_and_the_others_stop_at_its_clock() {
    for seed in 1..=10 {
        let mut job = Job::new(seed, 3, (2, 1), table(Consistency::Bsp));
        job.crash = Some((1, Duration::from_micros(2_500)));
        let why = failure(&job);
        assert!(why.contains("another process has been this worker"), "{why}");
    }
}

/// What a lost wake-up, or a pull that can't be answered, would look like.
#[test]
fn a_deadlock_names_its_seed_and_what_each_node_waits_for() {
    let mut job = Job::new(5, 3, (1, 2), table(Consistency::Bsp));
    job.fault = Fault::NeverAnswers;
    let why = failure(&job);
    assert!(why.starts_with("seed 5 ") && why.contains("deadlock"), "{why}");
    for waiting in ["server 0 thread 1: serving", "worker 0: clock 0", "worker 2: clock 0", "control: "] {
        assert!(why.contains(waiting), "{waiting} is not in: {why}");
    }
}

#[test]
fn a_simulation_that_goes_on_for_ever_is_stopped() {
    let mut job = Job::new(6, 2, (1, 1), table(Consistency::Asp));
    job.options.most_steps = 100;
    let why = failure(&job);
    assert!(why.contains("seed 6 ") && why.contains("no end after 100 steps"), "{why}");
}

/// Under Asp the others don't wait for it.
#[test]
fn partitions_that_last_break_connections_and_the_job_goes_on() {
    let mut reconnects = 0;
    for seed in 1..=20 {
        let mut job = Job::new(seed, 3, (2, 2), table(Consistency::Asp));
        job.options.lost_after = 100_000;
        job.options.longest = 200_000;
        job.partitions = 60;
        let outcome = job.run(act).unwrap_or_else(|failure| panic!("{failure}"));
        reconnects += outcome.stats.iter().map(|s| s.reconnects).sum::<u64>();
    }
    println!("{reconnects} reconnects");
    assert!(reconnects > 20, "{reconnects}");
}
