//! One-sided pulls that race a writer: what is pulled is a version that was, whole; and without the check it is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::rig::{Job, Worker};
use crate::client::simulated::believe_everything;
use crate::types::{Consistency, KeyRange, OptimizerSpec, Publish, TableSpec};

const PUSHES: u64 = 300;
const LENGTH: usize = 48;

/// What the reader met.
#[derive(Default)]
struct Met {
    read: AtomicU64,
    again: AtomicU64,
    /// Values that are not of one version, or not of that which came with them.
    wrong: AtomicU64,
}

/// Worker 0 pushes ones to three segments, under Asp, and the others pull as long.
fn act(worker: &Worker, careless: bool, met: &Met) {
    let (table, range) = (&worker.tables[0], KeyRange::new(0, LENGTH as u64).unwrap());
    if worker.rank == 0 {
        for _ in 0..PUSHES {
            worker.node.doing("pushing");
            worker.node.sleep(Duration::from_micros(20));
            let mut ticket = table.push_range(range, &[1.0; LENGTH]).unwrap();
            ticket.wait().unwrap();
        }
        return worker.finish();
    }
    believe_everything(careless);
    for _ in 0..PUSHES {
        worker.node.doing("pulling");
        let mut values = [0.0f32; 16];
        let version = table.pull_range(KeyRange::new(16, 32).unwrap(), &mut values).unwrap();
        if values.iter().any(|v| *v != version as f32) {
            met.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }
    let stats = worker.client.stats().reads;
    met.read.fetch_add(stats.read, Ordering::Relaxed);
    met.again.fetch_add(stats.again, Ordering::Relaxed);
    worker.finish();
}

fn race(seed: u64, careless: bool) -> Arc<Met> {
    let spec = TableSpec::dense("w", &[LENGTH as u64]).segment_bytes(64).consistency(Consistency::Asp);
    let spec = spec.optimizer(OptimizerSpec::sum()).publish(Publish::epochs(2));
    let job = Job::new(seed, 3, (1, 1), vec![spec]);
    let met = Arc::new(Met::default());
    let told = met.clone();
    job.run(move |worker| act(worker, careless, &told)).unwrap_or_else(|failure| panic!("{failure}"));
    met
}

#[test]
fn what_is_read_one_sidedly_is_one_version() {
    let (mut read, mut again) = (0, 0);
    for seed in 1..=10 {
        let met = race(seed, false);
        assert_eq!(met.wrong.load(Ordering::Relaxed), 0, "seed {seed}");
        read += met.read.load(Ordering::Relaxed);
        again += met.again.load(Ordering::Relaxed);
    }
    println!("{read} read, {again} of them again");
    assert!(read > 3000 && again > 100, "{read} read, {again} of them again");
}

#[test]
fn without_the_second_look_at_the_head_torn_values_are_taken() {
    let wrong: u64 = (1..=10).map(|seed| race(seed, true).wrong.load(Ordering::Relaxed)).sum();
    assert!(wrong > 10, "{wrong}");
}
