//! Pieces with values that are not finite, as one server thread sees them.

use super::*;
use crate::store::Cause;

const NANS: [f32; 16] = [f32::NAN; 16];
const ONES: [f32; 16] = [1.0; 16];

/// With a dense table 1 of two buckets and a sparse table 2, both of which reject such pieces.
fn rig(workers: u32, change: impl Fn(TableSpec) -> TableSpec) -> Rig {
    let mut rig = Rig::new(workers);
    let dense = TableSpec::dense("d", &[32]).segment_bytes(64);
    for (id, spec) in [(1, dense), (2, TableSpec::sparse("s", 1))] {
        let spec = change(spec.non_finite(NonFinite::Reject));
        rig.core.create_table(id, &spec, |_| Ok(RegionId(3))).unwrap();
    }
    rig
}

impl Rig {
    fn push_values(&mut self, at: (u32, u32), bucket: u32, values: &[f32; 16]) {
        let push = RequestHeader { bucket, ..push(1, 0, 0, NO_BASE) };
        self.put(at, push, bytemuck::cast_slice(values)).unwrap();
    }

    fn told(&mut self, rank: usize) -> Option<u32> {
        self.core.links[rank].as_mut().unwrap().next_rejected()
    }

    fn read(&self, bucket: u32) -> (f32, u64) {
        let reading = self.core.shard.read_dense(1, bucket, 0, 16).unwrap();
        (reading.values[0], reading.version)
    }

    /// What is remembered of a slot.
    fn rejection(&self, rank: usize, slot: usize) -> (u64, u32, Cause) {
        let kept = self.core.sessions[rank].rejected[slot].unwrap();
        (kept.sequence, kept.rejection.bucket, kept.rejection.cause)
    }
}

/// The worker could change them after they were looked at, before they are folded.
#[test]
fn values_that_may_be_rejected_are_not_taken_where_the_worker_can_change_them() {
    let refused = |id| {
        let mut rig = rig(2, |spec| spec);
        let header = RequestHeader { table: id, ..part(Push, 0, 0) };
        rig.lend((1, 0), header, loan(&ONES, 0)).err().map(|error| error.to_string())
    };
    assert_eq!(refused(0), None);
    assert!(refused(1).unwrap().contains("body: expected in its slot"));
}

/// Dense and sparse, held by the gate until the lower rank has ended its clock; the others of the clock count.
#[test]
fn a_held_piece_is_rejected_when_it_would_be_folded_and_the_clock_closes_without_it() {
    let mut rig = rig(2, |spec| spec);
    rig.push_values((1, 0), 1, &NANS);
    let key = RequestHeader { table: 2, first: 1, count: 1, length: 20, ..header(Push, 0) };
    let bucket = TableSpec::sparse("s", 1).bucket_of(7);
    let nan = f32::INFINITY.to_le_bytes();
    let body = [&bucket.to_le_bytes()[..], &1u32.to_le_bytes(), &7u64.to_le_bytes(), &nan].concat();
    rig.put((1, 1), key, &body).unwrap();
    rig.core.obey();
    assert_eq!((rig.core.gate.held(), rig.occupied(1), rig.told(1)), (2, 3, None));
    rig.push_values((0, 0), 1, &ONES);
    rig.send((0, 1), Mark, 0, 0).unwrap();
    rig.core.obey();
    assert_eq!((rig.core.gate.held(), rig.occupied(1)), (0, 0));
    assert_eq!(rig.rejection(1, 0), (0, 1, Cause::NonFinite { first: 16 }));
    assert_eq!(rig.rejection(1, 1), (1, bucket, Cause::NonFinite { first: 7 }));
    assert_eq!((rig.told(1), rig.told(1), rig.told(1)), (Some(0), Some(1), None));
    rig.core.links[1].as_mut().unwrap().forget_freed();
    rig.send((1, 0), Mark, 0, 0).unwrap();
    rig.core.obey();
    // The mean is still of two workers.
    assert_eq!((rig.core.gate.closed(), rig.read(1), rig.read(0)), (1, (-0.5, 1), (0.0, 0)));
    let stats = rig.core.stats();
    assert_eq!((stats.non_finite, stats.non_finite_rejected, stats.stale_rejected), (17, 2, 0));
}

/// The worker could not tell whose rejection it is: its frame comes back with it.
#[test]
fn what_came_over_a_lost_endpoint_is_told_when_its_replay_has_come() {
    let mut rig = rig(2, |spec| spec);
    rig.push_values((1, 0), 0, &NANS);
    rig.core.detach(1);
    rig.attach(1);
    rig.send((0, 0), Mark, 0, 0).unwrap();
    rig.core.obey();
    assert_eq!((rig.core.stats.non_finite_rejected, rig.told(1)), (1, None));
    for _ in 0..2 {
        rig.frame((1, 0), push(1, 0, 0, NO_BASE)).unwrap();
        assert_eq!((rig.told(1), rig.told(1)), (Some(0), None));
        rig.core.detach(1);
        rig.attach(1);
    }
    let stats = rig.core.stats();
    assert_eq!((stats.non_finite, stats.non_finite_rejected, stats.duplicates_dropped), (16, 1, 2));
    assert_eq!(rig.core.sessions[1].next_sequence, 1);
}

/// Also held when its replay comes: then it is told when it is rejected.
#[test]
fn what_is_still_held_when_its_replay_comes_is_told_once() {
    let mut rig = rig(2, |spec| spec);
    rig.push_values((1, 0), 0, &NANS);
    rig.core.detach(1);
    rig.attach(1);
    rig.frame((1, 0), push(1, 0, 0, NO_BASE)).unwrap();
    assert_eq!((rig.told(1), rig.occupied(1)), (None, 1));
    rig.send((0, 0), Mark, 0, 0).unwrap();
    rig.core.obey();
    assert_eq!((rig.told(1), rig.told(1)), (Some(0), None));
}

#[test]
fn a_push_that_may_be_rejected_is_alone_in_its_slot() {
    let mut rig = rig(1, |spec| spec);
    let parts = [part(Push, 0, 0), RequestHeader { table: 1, ..part(Push, 0, 0) }];
    assert_eq!(blamed(rig.batch((0, 0), &parts, |_| ())), "table");
    let mut rig = Rig::new(1);
    let counting = TableSpec::dense("c", &[16]).segment_bytes(64).non_finite(NonFinite::Count);
    rig.core.create_table(1, &counting, |_| Ok(RegionId(3))).unwrap();
    rig.batch((0, 0), &parts, |_| ()).unwrap();
    assert_eq!(rig.core.stats.pushes, 2);
}

/// Worker 0 brings only what is rejected and no mark, and counts all the same: so the others' bits do not depend on it.
#[test]
fn with_a_quorum_a_worker_whose_piece_is_rejected_counts_in_the_mean() {
    for late in [Late::Drop, Late::Apply] {
        let mut rig = rig(3, |spec| spec.quorum(Quorum { workers: 2, late }));
        rig.push_values((0, 0), 0, &NANS);
        rig.push_values((1, 0), 0, &ONES.map(|v| 3.0 * v));
        rig.send((1, 1), Mark, 0, 0).unwrap();
        rig.send((2, 0), Mark, 0, 0).unwrap();
        rig.core.obey();
        assert_eq!((rig.core.gate.closed_of(1), rig.read(0)), (1, (-1.0, 1)));
        assert_eq!(rig.told(0), Some(0));
        // A late one is looked at before it would be dropped or applied.
        rig.push_values((0, 1), 0, &NANS);
        rig.core.obey();
        assert_eq!((rig.told(0), rig.read(0)), (Some(1), (-1.0, 1)));
        let stats = rig.core.stats();
        assert_eq!((stats.non_finite, stats.non_finite_rejected), (32, 2));
        assert_eq!((stats.late_dropped, stats.late_applied), (0, 0));
    }
}
