//! What was marked is what is saved, whatever is written meanwhile.

use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};

use proptest::prelude::*;

use super::*;
use crate::mem::RegionId;
use crate::store::{DensePiece, How, Intake, Optimizers, SparsePiece};
use crate::types::{DirectoryEntry, Initializer, OptimizerSpec, TableSpec};

type Saved = BTreeMap<(TableId, BucketId, Plane), (Version, Vec<u8>)>;

/// Collects a cut; takes without haste only every other time.
struct Collector {
    saved: Saved,
    taken: BTreeMap<(TableId, BucketId, Plane), u64>,
    room: std::cell::Cell<bool>,
    done: Sender<Saved>,
}

impl CutSink for Collector {
    fn take(&mut self, part: Part<'_>) {
        let id = (part.table, part.bucket, part.plane);
        let (version, bytes) =
            self.saved.entry(id).or_insert_with(|| (part.version, vec![0; part.length as usize]));
        assert_eq!((*version, bytes.len() as u64), (part.version, part.length));
        let at = part.at as usize;
        bytes[at..at + part.bytes.len()].copy_from_slice(part.bytes);
        *self.taken.entry(id).or_default() += part.bytes.len() as u64;
    }

    fn has_room(&self) -> bool {
        self.room.replace(!self.room.get())
    }

    fn end(self: Box<Self>) {
        for (id, bytes) in &self.taken {
            assert_eq!(*bytes, self.saved[id].1.len() as u64, "each byte is taken once: {id:?}");
        }
        self.done.send(self.saved).unwrap();
    }
}

fn shard() -> Shard {
    Shard::new(Optimizers::default(), 1 << 30, 1 << 20)
}

fn dense() -> TableSpec {
    TableSpec::dense("d", &[40]).segment_bytes(64).optimizer(OptimizerSpec::adam(0.1, 0.9, 0.999, 1e-8))
}

/// Rows so long that a part holds two of them.
fn sparse() -> TableSpec {
    let normal = Initializer::Normal { mean: 0.0, std: 1.0, seed: 3 };
    let mut spec =
        TableSpec::sparse("s", 256).initializer(normal).optimizer(OptimizerSpec::adagrad(0.1, 1e-8));
    spec.kind = crate::types::TableKind::Sparse { dim: 256, buckets: 2 };
    spec
}

fn with_tables(specs: &[TableSpec]) -> Shard {
    let mut shard = shard();
    for (id, spec) in (0..).zip(specs) {
        let buckets: Vec<u32> = (0..spec.buckets()).collect();
        shard.create_table(id, spec, &buckets, |_| Ok(RegionId(0))).unwrap();
    }
    shard
}

fn push_dense(shard: &mut Shard, bucket: u32, first: u32, value: f32, intake: Intake, how: How) {
    let values = [value; 4];
    let piece = DensePiece { bucket, first, values: (&values[..]).into() };
    shard.write_dense(0, how, piece, intake, &mut Vec::new()).unwrap();
}

fn push_row(shard: &mut Shard, key: u64, value: f32, intake: Intake, how: How) {
    let bucket = sparse().bucket_of(key);
    let values = [value; 256];
    let (directory, keys) = ([DirectoryEntry { bucket, keys: 1 }], [key]);
    let piece = SparsePiece { directory: &directory, keys: &keys, values: (&values[..]).into() };
    shard.write_sparse(1, how, piece, intake, &mut Vec::new()).unwrap();
}

fn save(shard: &mut Shard) -> std::sync::mpsc::Receiver<Saved> {
    let (done, saved) = channel();
    let room = std::cell::Cell::new(false);
    shard.mark(Box::new(Collector { saved: Saved::new(), taken: BTreeMap::new(), room, done }));
    saved
}

fn all(shard: &mut Shard) -> Saved {
    let saved = save(shard);
    while shard.save_some(1000) {}
    saved.try_recv().unwrap()
}

fn collect<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

fn restore(saved: &Saved) -> Shard {
    let mut shard = with_tables(&[dense(), sparse()]);
    let floats = |id: (TableId, BucketId, Plane)| collect::<f32>(&saved[&id].1);
    for (&(table, bucket, plane), (version, bytes)) in saved {
        match plane {
            Plane::Parameters => {
                let state = floats((table, bucket, Plane::State));
                let values = floats((table, bucket, plane));
                shard.restore_dense(table, bucket, (&values, &state), *version).unwrap();
            }
            Plane::Keys => {
                let rows = floats((table, bucket, Plane::Rows));
                let keys: Vec<u64> = collect(bytes);
                shard.restore_rows(table, bucket, (&keys, &rows), *version).unwrap();
            }
            Plane::State | Plane::Rows => {}
        }
    }
    shard
}

#[derive(Debug, Clone)]
enum Step {
    Dense(u32, u32, bool),
    Row(u64, bool),
    Close,
    Save(usize),
}

fn steps(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u32..2, 0u32..4, any::<bool>()).prop_map(|(b, first, set)| Step::Dense(b, first * 4, set)),
        (0u64..12, any::<bool>()).prop_map(|(key, set)| Step::Row(key, set)),
        Just(Step::Close),
        (0usize..3000).prop_map(Step::Save),
    ];
    proptest::collection::vec(step, 0..length)
}

fn apply(shard: &mut Shard, steps: &[Step], intake: Intake) {
    for (n, step) in steps.iter().enumerate() {
        let value = n as f32 + 1.0;
        let how = |set: bool| if set { How::Set } else { How::Push };
        match *step {
            Step::Dense(bucket, first, set) => push_dense(shard, bucket, first, value, intake, how(set)),
            Step::Row(key, set) => push_row(shard, key, value, intake, how(set)),
            Step::Close => shard.close(1, &mut Vec::new()),
            Step::Save(budget) => drop(shard.save_some(budget)),
        }
    }
}

proptest! {
    /// A shard that is marked and then changed in any way gives the cut of one that is saved at once, and a shard that is restored
    /// from it is the same.
    #[test]
    fn what_is_saved_is_what_was_marked(before in steps(30), after in steps(60), by_clock in any::<bool>()) {
        let intake = if by_clock { Intake::Fold } else { Intake::Step { divisor: 1.0, base: None } };
        let mut specs = [dense(), sparse()];
        if !by_clock {
            specs = specs.map(|spec| spec.consistency(crate::types::Consistency::Asp));
        }
        let (mut one, mut other) = (with_tables(&specs), with_tables(&specs));
        apply(&mut one, &before, intake);
        apply(&mut other, &before, intake);
        let expected = all(&mut one);
        let saved = save(&mut other);
        apply(&mut other, &after, intake);
        while other.save_some(4096) {}
        let saved = saved.try_recv().unwrap();
        prop_assert_eq!(&saved, &expected);
        prop_assert_eq!(&all(&mut restore(&saved)), &expected);
    }
}

#[test]
fn a_mark_that_is_given_up_sends_nothing() {
    let mut shard = with_tables(&[dense(), sparse()]);
    push_dense(&mut shard, 0, 0, 1.0, Intake::Fold, How::Push);
    let saved = save(&mut shard);
    assert!(shard.save_some(1));
    shard.unmark();
    assert!(!shard.save_some(1000) && !shard.can_save());
    assert!(saved.try_recv().is_err());
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut shard = with_tables(&[dense(), sparse()]);
    let refused = |outcome: Result<(), Malformed>| outcome.unwrap_err().field;
    let state = vec![0.0; 16 * 2 + 2];
    assert_eq!(refused(shard.restore_dense(0, 0, (&[0.0; 15], &state), 1)), "parameters");
    assert_eq!(refused(shard.restore_dense(0, 0, (&[0.0; 16], &state[1..]), 1)), "state");
    assert_eq!(refused(shard.restore_dense(0, 3, (&[0.0; 16], &state), 1)), "bucket");
    assert_eq!(refused(shard.restore_dense(1, 0, (&[0.0; 16], &state), 1)), "table");
    assert_eq!(refused(shard.restore_dense(2, 0, (&[0.0; 16], &state), 1)), "table");
    let key = (0..).find(|&key| sparse().bucket_of(key) == 0).unwrap();
    let other = (0..).find(|&key| sparse().bucket_of(key) == 1).unwrap();
    let rows = vec![0.0; 1024];
    assert_eq!(refused(shard.restore_rows(1, 0, (&[key], &rows), 1)), "rows");
    assert_eq!(refused(shard.restore_rows(1, 0, (&[key, key], &rows), 1)), "keys");
    assert_eq!(refused(shard.restore_rows(1, 0, (&[other], &rows[..512]), 1)), "keys");
    assert_eq!(refused(shard.restore_rows(1, 2, (&[key], &rows[..512]), 1)), "bucket");
    assert_eq!(refused(shard.restore_rows(0, 0, (&[key], &rows[..512]), 1)), "table");
}
