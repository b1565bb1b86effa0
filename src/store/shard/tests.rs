use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::types::{Consistency, Initializer, Late, OptimizerSpec, Quorum, Wire};

/// A step of its own, of a push that does not say what it was computed from.
const STEP: Intake = Intake::Step { divisor: 1.0, base: None };

fn unregistered(_: Arc<Arena>) -> Result<RegionId> {
    Ok(RegionId(0))
}

fn shard(spec: &TableSpec) -> Shard {
    let mut shard = Shard::new(Optimizers::default(), 1 << 30, 1 << 20);
    let all: Vec<u32> = (0..spec.buckets()).collect();
    shard.create_table(0, spec, &all, unregistered).unwrap();
    shard
}

/// Keys grouped by bucket as a client would send them.
fn grouped(spec: &TableSpec, pairs: &[(u64, f32)]) -> (Vec<DirectoryEntry>, Vec<u64>, Vec<f32>) {
    let mut sorted: Vec<(u32, u64, f32)> = pairs.iter().map(|&(k, v)| (spec.bucket_of(k), k, v)).collect();
    sorted.sort_by_key(|&(b, k, _)| (b, k));
    let mut directory: Vec<DirectoryEntry> = Vec::new();
    for &(bucket, _, _) in &sorted {
        match directory.last_mut() {
            Some(last) if last.bucket == bucket => last.keys += 1,
            _ => directory.push(DirectoryEntry { bucket, keys: 1 }),
        }
    }
    (directory, sorted.iter().map(|s| s.1).collect(), sorted.iter().map(|s| s.2).collect())
}

fn push_sparse(
    shard: &mut Shard,
    spec: &TableSpec,
    pairs: &[(u64, f32)],
) -> Result<Option<Rejection>, Malformed> {
    let (directory, keys, values) = grouped(spec, pairs);
    let piece = SparsePiece { directory: &directory, keys: &keys, values: Input::from(&values[..]) };
    shard.write_sparse(0, How::Push, piece, Intake::Fold, &mut Vec::new())
}

fn read_sparse(shard: &mut Shard, spec: &TableSpec, keys: &[u64]) -> HashMap<u64, u32> {
    let (directory, keys, _) = grouped(spec, &keys.iter().map(|&k| (k, 0.0)).collect::<Vec<_>>());
    let piece = SparsePiece { directory: &directory, keys: &keys, values: Input::from(&[][..]) };
    shard.check_pull(0, &piece).unwrap();
    let mut out = Vec::new();
    shard.gather(0, &piece, &mut out);
    keys.iter().copied().zip(out.iter().map(|v| v.to_bits())).collect()
}

proptest! {
    /// The same pushes give the same bits in a dense and in a sparse table: what nobody pushed is a gradient of zero.
    #[test]
    fn dense_and_sparse_agree_to_the_bit(
        clocks in proptest::collection::vec(
            proptest::collection::vec(
                proptest::collection::btree_map(0u64..100, -4.0f32..4.0, 0..20), 1..4), 1..6),
        ftrl in any::<bool>(),
    ) {
        let rule = if ftrl { OptimizerSpec::ftrl(0.3, 1.0, 0.2, 0.01) } else { OptimizerSpec::sgd(0.1) };
        let begin = match ftrl {
            true => Initializer::Zeros,
            false => Initializer::Normal { mean: 0.0, std: 1.0, seed: 5 },
        };
        let sparse_spec = TableSpec::sparse("w", 1).optimizer(rule.clone()).initializer(begin);
        let dense_spec = TableSpec::dense("w", &[100]).segment_bytes(64).optimizer(rule).initializer(begin);
        let (mut sparse, mut dense) = (shard(&sparse_spec), shard(&dense_spec));
        for pushes in &clocks {
            for push in pushes {
                let pairs: Vec<(u64, f32)> = push.iter().map(|(&k, &v)| (k, v)).collect();
                push_sparse(&mut sparse, &sparse_spec, &pairs).unwrap();
                for bucket in 0..dense_spec.buckets() {
                    let range = dense_spec.segment_range(bucket).unwrap();
                    let values: Vec<f32> =
                        (range.start()..range.end()).map(|k| push.get(&k).copied().unwrap_or(0.0)).collect();
                    let piece = DensePiece { bucket, first: 0, values: Input::from(&values[..]) };
                    dense.write_dense(0, How::Push, piece, Intake::Fold, &mut Vec::new()).unwrap();
                }
            }
            sparse.close(pushes.len() as u32, &mut Vec::new());
            dense.close(pushes.len() as u32, &mut Vec::new());
        }
        let keys: Vec<u64> = (0..100).collect();
        let from_sparse = read_sparse(&mut sparse, &sparse_spec, &keys);
        for bucket in 0..dense_spec.buckets() {
            let range = dense_spec.segment_range(bucket).unwrap();
            let reading = dense.read_dense(0, bucket, 0, range.len() as u32).unwrap();
            for (key, value) in (range.start()..).zip(reading.values) {
                prop_assert_eq!(from_sparse[&key], value.to_bits(), "key {}", key);
            }
        }
    }
}

#[test]
fn a_clock_is_one_step_however_many_pieces() {
    let spec = TableSpec::dense("w", &[64]).optimizer(OptimizerSpec::sgd(1.0)).segment_bytes(256);
    let mut shard = shard(&spec);
    let ones = [1.0f32; 32];
    let mut applied = Vec::new();
    for first in [0, 32, 0] {
        let piece = DensePiece { bucket: 0, first, values: Input::from(&ones[..]) };
        shard.write_dense(0, How::Push, piece, Intake::Fold, &mut applied).unwrap();
    }
    assert!(applied.is_empty());
    assert_eq!(shard.read_dense(0, 0, 0, 64).unwrap().values, [0.0; 64]);
    shard.close(2, &mut applied);
    assert_eq!(applied, [Applied { table: 0, bucket: 0, version: 1 }]);
    let reading = shard.read_dense(0, 0, 0, 64).unwrap();
    assert_eq!((reading.values[0], reading.values[63], reading.version), (-1.0, -0.5, 1));
    applied.clear();
    shard.close(2, &mut applied);
    assert!(applied.is_empty(), "an untouched clock takes no step");
}

#[test]
fn without_barriers_a_part_of_a_segment_steps_alone() {
    let rule = OptimizerSpec::ftrl(0.5, 1.0, 0.0, 0.0);
    let spec = TableSpec::dense("w", &[32]).optimizer(rule).consistency(Consistency::Asp).segment_bytes(128);
    let (mut parts, mut whole) = (shard(&spec), shard(&spec));
    let gradient: Vec<f32> = (0..32u8).map(f32::from).collect();
    let mut applied = Vec::new();
    for first in [0u32, 16] {
        let values = &gradient[first as usize..first as usize + 16];
        for _ in 0..2 {
            let piece = DensePiece { bucket: 0, first, values: Input::from(values) };
            parts.write_dense(0, How::Push, piece, STEP, &mut applied).unwrap();
        }
    }
    for _ in 0..2 {
        let piece = DensePiece { bucket: 0, first: 0, values: Input::from(&gradient[..]) };
        whole.write_dense(0, How::Push, piece, STEP, &mut applied).unwrap();
    }
    assert_eq!(parts.read_dense(0, 0, 0, 32).unwrap().values, whole.read_dense(0, 0, 0, 32).unwrap().values);
    assert_eq!(applied.last().unwrap().version, 2);
    assert_eq!(parts.read_dense(0, 0, 0, 32).unwrap().version, 4);
}

fn asp(spec: TableSpec, stale: Stale) -> TableSpec {
    spec.optimizer(OptimizerSpec::sum()).consistency(Consistency::Asp).stale(stale)
}

/// Four pieces of 12, from a base that lies 0, 1, 2 and 3 updates back, or as many as were taken.
#[test]
fn a_stale_piece_is_accepted_scaled_or_rejected_by_its_bucket() {
    let taken = |stale| {
        let spec = asp(TableSpec::dense("w", &[32]).segment_bytes(64), stale);
        let mut shard = shard(&spec);
        let mut applied = Vec::new();
        let intake = Intake::Step { divisor: 1.0, base: Some(0) };
        let rejections: Vec<_> = (0..4)
            .map(|_| {
                let piece = DensePiece { bucket: 1, first: 4, values: Input::from(&[12.0f32; 2][..]) };
                shard.write_dense(0, How::Push, piece, intake, &mut applied).unwrap()
            })
            .collect();
        // Another bucket has another version.
        let piece = DensePiece { bucket: 0, first: 0, values: Input::from(&[1.0f32][..]) };
        assert_eq!(shard.write_dense(0, How::Push, piece, intake, &mut applied), Ok(None));
        let reading = shard.read_dense(0, 1, 4, 2).unwrap();
        (reading.values.to_vec(), reading.version, rejections)
    };
    assert_eq!(taken(Stale::Accept), (vec![48.0; 2], 4, vec![None; 4]));
    assert_eq!(taken(Stale::Scale), (vec![12.0 + 6.0 + 4.0 + 3.0; 2], 4, vec![None; 4]));
    let cause = Cause::Stale { current: 2 };
    let rejection = Some(Rejection { stale: 1, non_finite: 0, bucket: 1, cause });
    assert_eq!(
        taken(Stale::Reject { max_age: 1 }),
        (vec![24.0; 2], 2, vec![None, None, rejection, rejection])
    );
}

#[test]
fn of_a_sparse_frame_only_the_stale_pieces_are_rejected() {
    let spec = asp(TableSpec::sparse("w", 1), Stale::Reject { max_age: 0 });
    let mut shard = shard(&spec);
    let key_in = |bucket: u32| (0u64..).find(|&k| spec.bucket_of(k) == bucket).unwrap();
    let mut push = |buckets: &[u32], base| {
        let keys: Vec<u64> = buckets.iter().map(|&b| key_in(b)).collect();
        let directory: Vec<_> = buckets.iter().map(|&bucket| DirectoryEntry { bucket, keys: 1 }).collect();
        let values = vec![1.0f32; keys.len()];
        let piece = SparsePiece { directory: &directory, keys: &keys, values: Input::from(&values[..]) };
        shard.write_sparse(0, How::Push, piece, Intake::Step { divisor: 1.0, base }, &mut Vec::new()).unwrap()
    };
    assert_eq!(push(&[2, 5], Some(0)), None);
    assert_eq!(push(&[5], None), None, "without a base nothing is stale");
    let rejection = Rejection { stale: 2, non_finite: 0, bucket: 2, cause: Cause::Stale { current: 1 } };
    assert_eq!(push(&[1, 2, 3, 5], Some(0)), Some(rejection));
    let read = read_sparse(&mut shard, &spec, &[1, 2, 3, 5].map(key_in));
    let values = [1, 2, 3, 5].map(|b| f32::from_bits(read[&key_in(b)]));
    assert_eq!(values, [1.0, 1.0, 1.0, 2.0]);
}

/// The bits of a NaN, of both infinities, and of the largest finite value, as each wire has them.
fn odd_bits() -> [(Wire, [u32; 3], u32); 3] {
    [
        (Wire::Fp32, [0x7FC0_0001, 0x7F80_0000, 0xFF80_0000], 0x7F7F_FFFF),
        (Wire::Fp16, [0x7E01, 0x7C00, 0xFC00], 0x7BFF),
        (Wire::Bf16, [0x7FC1, 0x7F80, 0xFF80], 0x7F7F),
    ]
}

/// Sixteen values as a wire has them: zeros, but for one.
struct Odd([f32; 16], [u16; 16]);

impl Odd {
    fn new(at: usize, bits: u32) -> Odd {
        let mut odd = Odd([0.0; 16], [0; 16]);
        (odd.0[at], odd.1[at]) = (f32::from_bits(bits), bits as u16);
        odd
    }

    fn input(&self, wire: Wire) -> Input<'_> {
        match wire {
            Wire::Fp32 => Input::from(&self.0[..]),
            Wire::Fp16 => Input::F16(self.1[..].into()),
            Wire::Bf16 => Input::Bf16(self.1[..].into()),
        }
    }
}

const INTAKES: [Intake; 3] = [Intake::Fold, STEP, Intake::Drop];

#[test]
fn a_dense_piece_that_is_not_finite_is_taken_counted_or_rejected_whole() {
    let spec = TableSpec::dense("w", &[40]).segment_bytes(64).optimizer(OptimizerSpec::sum());
    for (wire, odd, largest) in odd_bits() {
        for (bits, odd) in odd.iter().map(|&bits| (bits, 1)).chain([(largest, 0)]) {
            for (place, how) in [0, 7, 15].into_iter().zip([How::Push, How::Set, How::Push]) {
                for intake in INTAKES {
                    let values = Odd::new(place, bits);
                    let piece = DensePiece { bucket: 1, first: 0, values: values.input(wire) };
                    let taken = |choice| {
                        let consistency =
                            if intake == Intake::Fold { Consistency::Bsp } else { Consistency::Asp };
                        let mut shard = shard(&spec.clone().consistency(consistency).non_finite(choice));
                        let taken = shard.write_dense(0, how, piece, intake, &mut Vec::new()).unwrap();
                        let examined = shard.examine_dense(0, &piece);
                        assert_eq!(examined, taken, "{wire}");
                        shard.close(1, &mut Vec::new());
                        let reading = shard.read_dense(0, 1, 0, 16).unwrap();
                        let zero = reading.version == 0 && reading.values.iter().all(|v| v.to_bits() == 0);
                        (taken, shard.non_finite(), zero)
                    };
                    let dropped = intake == Intake::Drop;
                    assert_eq!(taken(NonFinite::Accept), (None, 0, dropped));
                    assert_eq!(taken(NonFinite::Count), (None, 2 * odd, dropped));
                    let cause = Cause::NonFinite { first: 16 };
                    let rejection = Rejection { stale: 0, non_finite: 1, bucket: 1, cause };
                    let expected = (odd == 1).then_some(rejection);
                    let context = format!("{wire} {bits:#x} at {place}, {how:?}, {intake:?}");
                    assert_eq!(
                        taken(NonFinite::Reject),
                        (expected, 2 * odd, dropped || odd == 1),
                        "{context}"
                    );
                }
            }
        }
    }
}

/// Of eight pieces in one frame those of buckets 1 and 6 hold NaNs, that of bucket 6 two.
#[test]
fn of_a_sparse_frame_only_the_pieces_that_are_not_finite_are_rejected() {
    let spec = TableSpec { kind: TableKind::Sparse { dim: 2, buckets: 8 }, ..TableSpec::sparse("w", 2) };
    let spec = &spec.optimizer(OptimizerSpec::sum()).non_finite(NonFinite::Reject);
    let keys_in = |bucket: u32| (0u64..).filter(move |&k| spec.bucket_of(k) == bucket).take(3);
    let keys: Vec<u64> = (0..8).flat_map(keys_in).collect();
    let directory: Vec<_> = (0..8).map(|bucket| DirectoryEntry { bucket, keys: 3 }).collect();
    let mut values = [1.0f32; 48];
    values[6 + 5] = f32::NEG_INFINITY;
    (values[36], values[38]) = (f32::NAN, f32::INFINITY);
    let piece = SparsePiece { directory: &directory, keys: &keys, values: Input::from(&values[..]) };
    for how in [How::Push, How::Set] {
        for intake in INTAKES {
            let consistency = if intake == Intake::Fold { Consistency::Bsp } else { Consistency::Asp };
            let mut shard = shard(&spec.clone().consistency(consistency));
            let taken = shard.write_sparse(0, how, piece, intake, &mut Vec::new());
            let cause = Cause::NonFinite { first: keys[3] };
            let rejection = Rejection { stale: 0, non_finite: 2, bucket: 1, cause };
            assert_eq!(taken, Ok(Some(rejection)), "{how:?} {intake:?}");
            shard.close(1, &mut Vec::new());
            let mut out = Vec::new();
            shard.gather(0, &piece, &mut out);
            let expected = |row: usize| match row / 3 {
                1 | 6 => 0.0,
                _ if intake == Intake::Drop => 0.0,
                _ => 1.0,
            };
            assert!(out.chunks(2).enumerate().all(|(row, v)| v == [expected(row); 2]), "{out:?}");
            let rows = if intake == Intake::Drop { 0 } else { 18 };
            assert_eq!(
                (shard.non_finite(), shard.parameter_bytes()),
                (3, rows * 8),
                "no row is made of what is rejected"
            );
        }
    }
}

#[test]
fn rows_that_a_rejected_list_did_not_make_are_looked_for_again() {
    let spec = TableSpec { kind: TableKind::Sparse { dim: 1, buckets: 1 }, ..TableSpec::sparse("w", 1) };
    let spec =
        spec.optimizer(OptimizerSpec::sum()).non_finite(NonFinite::Reject).consistency(Consistency::Asp);
    let mut shard = shard(&spec);
    let directory = [DirectoryEntry { bucket: 0, keys: 2 }];
    let push = |shard: &mut Shard, values: [f32; 2], positions: &mut Vec<u32>| {
        let piece = SparsePiece { directory: &directory, keys: &[3, 5], values: Input::from(&values[..]) };
        let step = Intake::Step { divisor: 1.0, base: None };
        shard.write_listed(0, How::Push, piece, positions, step, &mut Vec::new()).unwrap()
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    assert!(push(&mut shard, [f32::NAN, 1.0], &mut first).is_some());
    // Somebody else makes the rows; then the first list comes again.
    assert!(push(&mut shard, [1.0, 2.0], &mut second).is_none());
    assert!(push(&mut shard, [10.0, 20.0], &mut first).is_none());
    assert_eq!(shard.parameter_bytes(), 8, "a key has one row");
    let mut out = Vec::new();
    let piece = SparsePiece { directory: &directory, keys: &[3, 5], values: Input::from(&[][..]) };
    shard.gather(0, &piece, &mut out);
    assert_eq!(out, [11.0, 22.0]);
}

#[test]
fn a_frame_of_which_pieces_are_stale_and_others_not_finite_tells_the_first_and_counts_both() {
    let spec = TableSpec { kind: TableKind::Sparse { dim: 1, buckets: 4 }, ..TableSpec::sparse("w", 1) };
    let spec = asp(spec, Stale::Reject { max_age: 0 }).non_finite(NonFinite::Reject);
    let mut shard = shard(&spec);
    let keys: Vec<u64> = (0..4).map(|b| (0u64..).find(|&k| spec.bucket_of(k) == b).unwrap()).collect();
    let directory: Vec<_> = (0..4).map(|bucket| DirectoryEntry { bucket, keys: 1 }).collect();
    let mut push = |values: [f32; 4]| {
        let piece = SparsePiece { directory: &directory, keys: &keys, values: Input::from(&values[..]) };
        let intake = Intake::Step { divisor: 1.0, base: Some(0) };
        shard.write_sparse(0, How::Push, piece, intake, &mut Vec::new()).unwrap()
    };
    let first = push([f32::NAN, 1.0, 1.0, f32::NAN]);
    let cause = Cause::NonFinite { first: keys[0] };
    assert_eq!(first, Some(Rejection { stale: 0, non_finite: 2, bucket: 0, cause }));
    // Now buckets 1 and 2 have version 1; a piece that is both is not finite.
    let cause = Cause::Stale { current: 1 };
    let second = push([1.0, 1.0, f32::NAN, 1.0]).unwrap();
    assert_eq!(second, Rejection { stale: 1, non_finite: 1, bucket: 1, cause });
    assert_eq!(second.pieces(), 2);
}

#[test]
fn a_table_with_a_quorum_closes_alone_and_takes_late_pieces_as_steps() {
    let with = |name: &str| TableSpec::dense(name, &[16]).segment_bytes(64).optimizer(OptimizerSpec::sum());
    let quorum = with("q").quorum(Quorum { workers: 2, late: Late::Apply });
    let mut shard = shard(&with("w"));
    shard.create_table(1, &quorum, &[0], unregistered).unwrap();
    let mut applied = Vec::new();
    let mut push = |shard: &mut Shard, table, intake| {
        let piece = DensePiece { bucket: 0, first: 0, values: Input::from(&[6.0f32; 16][..]) };
        assert_eq!(shard.write_dense(table, How::Push, piece, intake, &mut applied), Ok(None));
    };
    let read = |shard: &Shard, table| shard.read_dense(table, 0, 0, 16).unwrap().values[0];
    for table in [0, 1] {
        push(&mut shard, table, Intake::Fold);
    }
    shard.close_table(1, 3, &mut Vec::new());
    assert_eq!((read(&shard, 0), read(&shard, 1)), (0.0, 2.0));
    push(&mut shard, 1, Intake::Fold);
    push(&mut shard, 1, Intake::Drop);
    push(&mut shard, 1, Intake::Step { divisor: 2.0, base: None });
    shard.close(1, &mut Vec::new());
    assert_eq!((read(&shard, 0), read(&shard, 1)), (6.0, 5.0), "the open clock of the quorum stays open");
    shard.close_table(1, 2, &mut Vec::new());
    assert_eq!(read(&shard, 1), 8.0);
}

#[test]
fn pieces_that_do_not_fit_touch_nothing() {
    let spec = TableSpec::sparse("w", 1);
    let mut shard = Shard::new(Optimizers::default(), 1 << 30, 1 << 20);
    let ours: Vec<u32> = (0..256).filter(|b| b % 2 == 0).collect();
    shard.create_table(0, &spec, &ours, unregistered).unwrap();
    let key_in = |bucket: u32| (0u64..).find(|&k| spec.bucket_of(k) == bucket).unwrap();
    let (a, b, foreign) = (key_in(2), key_in(4), key_in(3));
    let zeros = [0.0f32; 4];
    let mut check = |directory: &[(u32, u32)], keys: &[u64], values: usize| {
        let directory: Vec<_> =
            directory.iter().map(|&(bucket, keys)| DirectoryEntry { bucket, keys }).collect();
        let piece = SparsePiece { directory: &directory, keys, values: Input::from(&zeros[..values]) };
        shard.write_sparse(0, How::Push, piece, Intake::Fold, &mut Vec::new()).map_err(|m| m.field)
    };
    assert_eq!(check(&[(2, 1), (4, 1)], &[a, b], 2), Ok(None));
    assert_eq!(check(&[(4, 1), (2, 1)], &[b, a], 2), Err("directory"));
    assert_eq!(check(&[(2, 1), (2, 1)], &[a, a], 2), Err("directory"));
    assert_eq!(check(&[(3, 1)], &[foreign], 1), Err("directory"));
    assert_eq!(check(&[(2, 1), (4, 1)], &[a, foreign], 2), Err("keys"));
    assert_eq!(check(&[(2, 2)], &[a, a], 2), Err("keys"));
    assert_eq!(check(&[(2, 1)], &[a, b], 2), Err("directory"));
    assert_eq!(check(&[(2, u32::MAX)], &[a], 1), Err("directory"));
    assert_eq!(check(&[(2, 1)], &[a], 2), Err("values"));

    let spec = TableSpec::dense("d", &[20]).segment_bytes(64);
    shard.create_table(1, &spec, &[1], unregistered).unwrap();
    let mut check = |table, bucket, first, count: usize| {
        let piece = DensePiece { bucket, first, values: Input::from(&zeros[..count]) };
        shard.write_dense(table, How::Push, piece, Intake::Fold, &mut Vec::new()).map_err(|m| m.field)
    };
    assert_eq!(check(1, 1, 0, 4), Ok(None));
    assert_eq!(check(1, 1, 1, 4), Err("count"));
    assert_eq!(check(1, 1, u32::MAX, 4), Err("count"));
    assert_eq!(check(1, 1, 0, 0), Err("count"));
    assert_eq!(check(1, 0, 0, 4), Err("bucket"));
    assert_eq!(check(1, u32::MAX, 0, 4), Err("bucket"));
    assert_eq!(check(0, 1, 0, 4), Err("table"));
    assert_eq!(check(7, 1, 0, 4), Err("table"));
}

#[test]
fn another_spec_under_the_same_number_is_refused_with_both() {
    let spec = TableSpec::sparse("w", 1);
    let mut shard = shard(&spec);
    assert!(shard.create_table(0, &spec, &[], unregistered).is_ok());
    let error = shard.create_table(0, &TableSpec::sparse("w", 2), &[], unregistered).unwrap_err().to_string();
    assert!(error.contains("rows of 1") && error.contains("rows of 2"), "{error}");
}

/// Adam ages a sparse row with its own steps only, and a dense bucket with every clock that brought anything.
#[test]
fn adam_counts_the_steps_of_each_row_and_of_each_bucket() {
    let rule = OptimizerSpec::adam(0.5, 0.9, 0.999, 1e-8);
    let spec = TableSpec::sparse("w", 1).optimizer(rule.clone());
    let mut sparse = shard(&spec);
    for clock in 0..3 {
        push_sparse(&mut sparse, &spec, &[(1, 2.0)]).unwrap();
        if clock == 2 {
            push_sparse(&mut sparse, &spec, &[(2, 2.0)]).unwrap();
        }
        sparse.close(1, &mut Vec::new());
    }
    let rows = read_sparse(&mut sparse, &spec, &[1, 2]);
    // With a constant gradient every step of Adam is one of the learning rate.
    let near = |bits: u32, expected: f32| (f32::from_bits(bits) - expected).abs() < 1e-5;
    assert!(near(rows[&1], -1.5) && near(rows[&2], -0.5), "{rows:?}");

    let spec = TableSpec::dense("w", &[32]).segment_bytes(64).optimizer(rule);
    let mut dense = shard(&spec);
    for bucket in [0, 0, 1] {
        let piece = DensePiece { bucket, first: 0, values: Input::from(&[2.0f32; 16][..]) };
        dense.write_dense(0, How::Push, piece, Intake::Fold, &mut Vec::new()).unwrap();
        dense.close(1, &mut Vec::new());
    }
    for (bucket, expected) in [(0, -1.0), (1, -0.5)] {
        let reading = dense.read_dense(0, bucket, 0, 16).unwrap();
        assert!(reading.values.iter().all(|w| near(w.to_bits(), expected)), "{:?}", reading.values);
    }
}

#[test]
fn a_table_beyond_the_budget_is_refused_before_memory_is_taken() {
    let mut shard = Shard::new(Optimizers::default(), 1 << 20, 1 << 20);
    let sparse = TableSpec::sparse("ids", 4);
    shard.create_table(0, &sparse, &(0..sparse.buckets()).collect::<Vec<_>>(), unregistered).unwrap();
    let make = |shard: &mut Shard, id, elements| {
        let spec = TableSpec::dense("w", &[elements]);
        shard.create_table(id, &spec, &(0..spec.buckets()).collect::<Vec<_>>(), unregistered)
    };
    make(&mut shard, 1, 100_000).unwrap();
    for elements in [100_000, 1 << 36] {
        let error = make(&mut shard, 2, elements).unwrap_err();
        assert!(matches!(error, Error::Limit { limit: 1_048_576, .. }), "{error}");
        assert!(shard.spec(2).is_none());
    }
    make(&mut shard, 2, 1000).unwrap();
    assert_eq!(shard.parameter_bytes(), 4 * 101_000);
}

/// Rows that are made while another thread has their memory supplied are those that are made without one.
#[test]
fn rows_are_the_same_while_their_memory_is_supplied() {
    const ROWS: u64 = 200_000;
    let begin = Initializer::Normal { mean: 0.0, std: 1.0, seed: 5 };
    let spec =
        TableSpec::sparse("w", 1).optimizer(OptimizerSpec::adam(0.1, 0.9, 0.99, 0.1)).initializer(begin);
    let (mut alone, mut helped) = (shard(&spec), shard(&spec));
    let (sender, pages) = std::sync::mpsc::channel::<Arc<Page>>();
    let supplier = std::thread::spawn(move || pages.iter().filter(|page| page.supply()).count());
    let mut offered = 0;
    for first in (0..ROWS).step_by(5000) {
        // Most of them new.
        let pairs: Vec<_> = (first.saturating_sub(500)..first + 5000).map(|k| (mix64(k), k as f32)).collect();
        for shard in [&mut alone, &mut helped] {
            push_sparse(shard, &spec, &pairs).unwrap();
            shard.close(1, &mut Vec::new());
        }
        while let Some(page) = helped.next_to_supply() {
            offered += 1;
            sender.send(page).unwrap();
        }
    }
    assert!(helped.next_to_supply().is_none() && offered > 4, "{offered}");
    let keys: Vec<u64> = (0..ROWS).map(mix64).collect();
    assert_eq!(read_sparse(&mut helped, &spec, &keys), read_sparse(&mut alone, &spec, &keys));
    drop((helped, sender));
    assert!(supplier.join().unwrap() <= offered);
}

#[test]
fn buckets_that_nobody_touched_read_as_zeros() {
    let spec = TableSpec::sparse("w", 1);
    let mut shard = shard(&spec);
    push_sparse(&mut shard, &spec, &[(5, 1.0)]).unwrap();
    shard.close(1, &mut Vec::new());
    let read = read_sparse(&mut shard, &spec, &(0..50).collect::<Vec<_>>());
    assert_eq!(read.len(), 50);
    assert!(read.iter().all(|(&key, &bits)| (bits != 0) == (key == 5)), "{read:?}");
    assert_eq!(shard.parameter_bytes(), 4);
}

proptest! {
    /// What is being sent stays as it was, and the parameters come out as if nothing had been.
    #[test]
    fn pinned_answers_are_one_version_and_change_no_bits(
        asp in any::<bool>(),
        steps in proptest::collection::vec((0u32..3, 0usize..3, 0u32..16, 1u32..16, -4.0f32..4.0), 1..60),
    ) {
        let consistency = if asp { Consistency::Asp } else { Consistency::Bsp };
        let rule = OptimizerSpec::adam(0.1, 0.9, 0.999, 1e-8);
        let spec = TableSpec::dense("w", &[41]).segment_bytes(64).optimizer(rule).consistency(consistency);
        let (mut pinning, mut plain) = (shard(&spec), shard(&spec));
        let bits = |pin: &Pin| {
            let slice = pin.slice();
            let mut bits = vec![0u32; slice.length / 4];
            slice.arena.copy_out(slice.offset, bytemuck::cast_slice_mut(&mut bits));
            bits
        };
        let read = |shard: &Shard, bucket| {
            let count = spec.segment_range(bucket).unwrap().len() as u32;
            let reading = shard.read_dense(0, bucket, 0, count).unwrap();
            reading.values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
        };
        let mut held: Vec<(Pin, Vec<u32>)> = Vec::new();
        for (bucket, keep, first, count, value) in steps {
            let length = spec.segment_range(bucket).unwrap().len() as u32;
            held.extend(pinning.pin_dense(0, bucket, 0, length).map(|pin| (pin, read(&pinning, bucket))));
            let (first, count) = (first % length, count.min(length - first % length));
            let values = vec![value; count as usize];
            for shard in [&mut pinning, &mut plain] {
                let piece = DensePiece { bucket, first, values: Input::from(&values[..]) };
                let intake = match spec.consistency.folds_by_rank() {
                    true => Intake::Fold,
                    false => Intake::Step { divisor: 1.0, base: None },
                };
                shard.write_dense(0, How::Push, piece, intake, &mut Vec::new()).unwrap();
                shard.close(1, &mut Vec::new());
            }
            while held.len() > keep {
                held.remove(0);
            }
            for (pin, expected) in &held {
                prop_assert_eq!(&bits(pin), expected);
            }
            for bucket in 0..spec.buckets() {
                prop_assert_eq!(read(&pinning, bucket), read(&plain, bucket));
            }
        }
        prop_assert!(pinning.moves() > 0 && plain.moves() == 0);
    }
}

/// A rank's piece of one bucket, as it lies on the wire.
#[derive(Debug, Clone)]
struct Wired {
    rank: usize,
    first: u32,
    floats: Vec<f32>,
    halves: Vec<u16>,
}

impl Wired {
    fn piece(&self, format: u8) -> DensePiece<'_> {
        let values = match format {
            0 => Input::F32(self.floats[..].into()),
            1 => Input::F16(self.halves[..].into()),
            _ => Input::Bf16(self.halves[..].into()),
        };
        DensePiece { bucket: 0, first: self.first, values }
    }

    /// What the server makes of it, one value at a time.
    fn values(&self, format: u8) -> Vec<f32> {
        let wide = |bits: &u16| match format {
            1 => half::f16::from_bits(*bits).to_f32(),
            _ => half::bf16::from_bits(*bits).to_f32(),
        };
        if format == 0 { self.floats.clone() } else { self.halves.iter().map(wide).collect() }
    }
}

proptest! {
    /// One clock's pieces, folded one by one as they came, some of them together, or all at once with the step: the same
    /// bits, and those of a sum written down by hand.
    #[test]
    fn pieces_give_the_same_bits_in_however_many_passes(
        seed in any::<u64>(),
        ranks in 1usize..40,
        cuts in proptest::collection::btree_set(0usize..40, 0..4),
        whole in any::<bool>(),
        format in 0u8..3,
        rule in 0usize..4,
        mean in any::<bool>(),
    ) {
        const LENGTH: u32 = 3 * 16;
        let rules = [
            OptimizerSpec::sum(),
            OptimizerSpec::momentum(0.1, 0.9),
            OptimizerSpec::adam(0.1, 0.9, 0.999, 1e-8),
            OptimizerSpec::ftrl(0.3, 1.0, 0.01, 0.1),
        ];
        let aggregate = if mean { Aggregate::Mean } else { Aggregate::Sum };
        let spec = TableSpec::dense("w", &[u64::from(LENGTH)]).segment_bytes(LENGTH * 4);
        let spec = spec.optimizer(rules[rule].clone()).aggregate(aggregate);
        let noise = |n: u64| crate::types::mix64(seed ^ crate::types::mix64(n));
        let pieces: Vec<Wired> = (0..ranks).map(|rank| {
            let n = rank as u64;
            let first = if whole { 0 } else { (noise(n) % 3) as u32 * 16 };
            let count = if whole { LENGTH } else { LENGTH - first };
            let value = |i: u32| (noise(n << 32 | u64::from(i)) >> 40) as f32 / 16_777_216.0 - 0.5;
            let floats: Vec<f32> = (0..count).map(value).collect();
            let bits = |v: &f32| if format == 1 { half::f16::from_f32(*v).to_bits() } else { half::bf16::from_f32(*v).to_bits() };
            let halves = floats.iter().map(bits).collect();
            Wired { rank, first, floats, halves }
        }).collect();
        let views: Vec<DensePiece<'_>> = pieces.iter().map(|p| p.piece(format)).collect();
        let read = |shard: &Shard| {
            let reading = shard.read_dense(0, 0, 0, LENGTH).unwrap();
            (reading.values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>(), reading.version)
        };
        let (mut one_by_one, mut in_parts, mut at_once, mut by_hand) =
            (shard(&spec), shard(&spec), shard(&spec), shard(&spec));
        for clock in 1..4u64 {
            for piece in &views {
                one_by_one.write_dense(0, How::Push, *piece, Intake::Fold, &mut Vec::new()).unwrap();
            }
            one_by_one.close(ranks as u32, &mut Vec::new());

            let cuts: Vec<usize> = cuts.iter().copied().filter(|c| *c < ranks).collect();
            let mut from = 0;
            for cut in cuts {
                in_parts.fold_dense(0, &views[from..cut]).unwrap();
                from = cut;
            }
            let mut applied = Vec::new();
            in_parts.close_dense(0, &views[from..], ranks as u32, &mut applied).unwrap();
            in_parts.close(ranks as u32, &mut applied);
            prop_assert_eq!(&applied, &[Applied { table: 0, bucket: 0, version: clock }]);

            let mut applied = Vec::new();
            at_once.close_dense(0, &views, ranks as u32, &mut applied).unwrap();
            at_once.close(ranks as u32, &mut applied);
            prop_assert_eq!(applied.len(), 1);

            let mut sum = [0.0f32; LENGTH as usize];
            for piece in &pieces {
                prop_assert!(piece.rank < ranks);
                for (sum, value) in sum[piece.first as usize..].iter_mut().zip(piece.values(format)) {
                    *sum += value;
                }
            }
            let divisor = if mean { ranks as f32 } else { 1.0 };
            let gradient = sum.map(|s| s / divisor);
            let piece = DensePiece { bucket: 0, first: 0, values: Input::from(&gradient[..]) };
            by_hand.write_dense(0, How::Push, piece, Intake::Fold, &mut Vec::new()).unwrap();
            by_hand.close(1, &mut Vec::new());

            let expected = read(&by_hand);
            prop_assert_eq!(read(&one_by_one), expected.clone(), "one by one");
            prop_assert_eq!(read(&in_parts), expected.clone(), "in parts");
            prop_assert_eq!(read(&at_once), expected, "at once");
        }
    }
}

#[test]
fn a_missing_row_reads_as_it_begins_is_not_made_and_the_first_push_starts_from_it() {
    let begin = Initializer::Uniform { low: 1.0, high: 2.0, seed: 3 };
    let spec = TableSpec::sparse("w", 1).optimizer(OptimizerSpec::sum()).initializer(begin);
    let mut shard = shard(&spec);
    let initial = |key| {
        let mut row = [0.0; 1];
        crate::types::Initial::new(begin, "w").fill_row(key, &mut row);
        row[0]
    };
    let keys = [3, 4, u64::MAX];
    let expected: HashMap<u64, u32> = keys.iter().map(|&key| (key, initial(key).to_bits())).collect();
    assert_eq!(read_sparse(&mut shard, &spec, &keys), expected);
    assert_eq!(shard.parameter_bytes(), 0);
    push_sparse(&mut shard, &spec, &[(4, 0.5)]).unwrap();
    shard.close(1, &mut Vec::new());
    let read = read_sparse(&mut shard, &spec, &keys);
    assert_eq!(read[&4], (initial(4) + 0.5).to_bits());
    assert_eq!((read[&3], read[&u64::MAX]), (expected[&3], expected[&u64::MAX]));
    assert_eq!(shard.parameter_bytes(), 4);
}

#[test]
fn a_rule_whose_weights_follow_from_its_state_begins_at_zero() {
    let mut shard = Shard::new(Optimizers::default(), 1 << 30, 1 << 20);
    let ftrl = TableSpec::sparse("w", 1).optimizer(OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0));
    let error = shard
        .create_table(0, &ftrl.clone().initializer(Initializer::Constant(1.0)), &[0], unregistered)
        .unwrap_err();
    assert!(error.to_string().contains("zeros with ftrl"), "{error}");
    shard.create_table(0, &ftrl, &[0], unregistered).unwrap();
}

/// Of four parameters, in two clocks: what is pushed steps, what is set stands, the later set of the canonical order wins, and
/// the rule's state is what it would be without the set.
#[test]
fn what_a_clock_sets_is_written_after_its_step() {
    let rule = OptimizerSpec::momentum(1.0, 0.5);
    let sparse_spec = TableSpec::sparse("w", 1).optimizer(rule.clone());
    let dense_spec = TableSpec::dense("w", &[4]).segment_bytes(64).optimizer(rule);
    let (mut sparse, mut dense) = (shard(&sparse_spec), shard(&dense_spec));
    let mut write = |how, pairs: &[(u64, f32)]| {
        let (directory, keys, values) = grouped(&sparse_spec, pairs);
        let piece = SparsePiece { directory: &directory, keys: &keys, values: Input::from(&values[..]) };
        sparse.write_sparse(0, how, piece, Intake::Fold, &mut Vec::new()).unwrap();
        for &(key, value) in pairs {
            let values = [value];
            let piece = DensePiece { bucket: 0, first: key as u32, values: Input::from(&values[..]) };
            dense.write_dense(0, how, piece, Intake::Fold, &mut Vec::new()).unwrap();
        }
    };
    write(How::Set, &[(0, 10.0), (1, 20.0)]);
    write(How::Push, &[(1, 1.0), (2, 1.0)]);
    write(How::Set, &[(1, 30.0)]);
    let read = |sparse: &mut Shard, dense: &Shard| {
        let keys = [0, 1, 2, 3];
        let rows = read_sparse(sparse, &sparse_spec, &keys);
        let rows = keys.map(|key| f32::from_bits(rows[&key]));
        assert_eq!(dense.read_dense(0, 0, 0, 4).unwrap().values, rows);
        rows
    };
    assert_eq!(read(&mut sparse, &dense), [0.0; 4], "nothing before the clock closes");
    let close = |shard: &mut Shard| {
        let mut applied = Vec::new();
        shard.close(1, &mut applied);
        applied.iter().map(|a| a.version).max()
    };
    assert_eq!((close(&mut sparse), close(&mut dense)), (Some(1), Some(1)));
    assert_eq!(read(&mut sparse, &dense), [10.0, 30.0, -1.0, 0.0]);
    // The momentum of 1 was kept: its next step is 0.5 · 1 + 2.
    let (directory, keys, values) = grouped(&sparse_spec, &[(1, 2.0)]);
    let piece = SparsePiece { directory: &directory, keys: &keys, values: Input::from(&values[..]) };
    sparse.write_sparse(0, How::Push, piece, Intake::Fold, &mut Vec::new()).unwrap();
    close(&mut sparse);
    assert_eq!(f32::from_bits(read_sparse(&mut sparse, &sparse_spec, &[1])[&1]), 27.5);
    // A clock that only sets is no step of the rule.
    let values = [5.0];
    let piece = DensePiece { bucket: 0, first: 3, values: Input::from(&values[..]) };
    dense.write_dense(0, How::Set, piece, Intake::Fold, &mut Vec::new()).unwrap();
    assert_eq!(close(&mut dense), Some(2));
    assert_eq!(dense.read_dense(0, 0, 0, 4).unwrap().values, [10.0, 30.0, -1.0, 5.0]);
}

#[test]
fn under_asp_a_set_is_written_at_once_and_with_ftrl_it_is_refused() {
    let spec = TableSpec::dense("w", &[4]).segment_bytes(64).consistency(Consistency::Asp);
    let values = [1.0, 2.0];
    let piece = DensePiece { bucket: 0, first: 1, values: Input::from(&values[..]) };
    let mut applied = Vec::new();
    let mut asp = shard(&spec);
    asp.write_dense(0, How::Set, piece, STEP, &mut applied).unwrap();
    assert_eq!(applied, [Applied { table: 0, bucket: 0, version: 1 }]);
    assert_eq!(asp.read_dense(0, 0, 0, 4).unwrap().values, [0.0, 1.0, 2.0, 0.0]);
    let ftrl = OptimizerSpec::ftrl(0.1, 1.0, 0.0, 0.0);
    assert!(ftrl.weights_follow_state());
    let refused =
        shard(&spec.optimizer(ftrl)).write_dense(0, How::Set, piece, STEP, &mut applied).unwrap_err();
    assert_eq!(refused.field, "kind");
}

#[test]
fn pieces_that_do_not_fit_are_found_before_any_of_them_is_folded() {
    let spec = TableSpec::dense("w", &[16]).segment_bytes(64).optimizer(OptimizerSpec::sum());
    let mut shard = shard(&spec);
    let ones = [1.0f32; 17];
    let piece = |first, count: usize| DensePiece { bucket: 0, first, values: Input::from(&ones[..count]) };
    for bad in [piece(0, 17), piece(9, 8), piece(0, 0), DensePiece { bucket: 1, ..piece(0, 16) }] {
        assert!(shard.fold_dense(0, &[piece(0, 16), bad]).is_err());
        assert!(shard.close_dense(0, &[piece(0, 16), bad], 2, &mut Vec::new()).is_err());
    }
    let mut applied = Vec::new();
    shard.close(2, &mut applied);
    assert_eq!((applied.len(), shard.read_dense(0, 0, 0, 16).unwrap().values), (0, &[0.0; 16][..]));
}
