use proptest::prelude::*;

use super::*;
use crate::types::OptimizerSpec;

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

fn push_sparse(shard: &mut Shard, spec: &TableSpec, pairs: &[(u64, f32)]) -> Result<(), Malformed> {
    let (directory, keys, values) = grouped(spec, pairs);
    let piece = SparsePiece { directory: &directory, keys: &keys, values: Floats::from(&values[..]) };
    shard.push_sparse(0, piece, &mut Vec::new())
}

fn read_sparse(shard: &Shard, spec: &TableSpec, keys: &[u64]) -> HashMap<u64, u32> {
    let (directory, keys, _) = grouped(spec, &keys.iter().map(|&k| (k, 0.0)).collect::<Vec<_>>());
    let piece = SparsePiece { directory: &directory, keys: &keys, values: Floats::from(&[][..]) };
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
        let sparse_spec = TableSpec::sparse("w", 1).optimizer(rule.clone());
        let dense_spec = TableSpec::dense("w", &[100]).segment_bytes(64).optimizer(rule);
        let (mut sparse, mut dense) = (shard(&sparse_spec), shard(&dense_spec));
        for pushes in &clocks {
            for push in pushes {
                let pairs: Vec<(u64, f32)> = push.iter().map(|(&k, &v)| (k, v)).collect();
                push_sparse(&mut sparse, &sparse_spec, &pairs).unwrap();
                for bucket in 0..dense_spec.buckets() {
                    let range = dense_spec.segment_range(bucket).unwrap();
                    let values: Vec<f32> =
                        (range.start()..range.end()).map(|k| push.get(&k).copied().unwrap_or(0.0)).collect();
                    let piece = DensePiece { bucket, first: 0, values: Floats::from(&values[..]) };
                    dense.push_dense(0, piece, &mut Vec::new()).unwrap();
                }
            }
            sparse.close(pushes.len() as u32, &mut Vec::new());
            dense.close(pushes.len() as u32, &mut Vec::new());
        }
        let keys: Vec<u64> = (0..100).collect();
        let from_sparse = read_sparse(&sparse, &sparse_spec, &keys);
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
        let piece = DensePiece { bucket: 0, first, values: Floats::from(&ones[..]) };
        shard.push_dense(0, piece, &mut applied).unwrap();
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
            let piece = DensePiece { bucket: 0, first, values: Floats::from(values) };
            parts.push_dense(0, piece, &mut applied).unwrap();
        }
    }
    for _ in 0..2 {
        let piece = DensePiece { bucket: 0, first: 0, values: Floats::from(&gradient[..]) };
        whole.push_dense(0, piece, &mut applied).unwrap();
    }
    assert_eq!(parts.read_dense(0, 0, 0, 32).unwrap().values, whole.read_dense(0, 0, 0, 32).unwrap().values);
    assert_eq!(applied.last().unwrap().version, 2);
    assert_eq!(parts.read_dense(0, 0, 0, 32).unwrap().version, 4);
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
        let piece = SparsePiece { directory: &directory, keys, values: Floats::from(&zeros[..values]) };
        shard.push_sparse(0, piece, &mut Vec::new()).map_err(|m| m.field)
    };
    assert_eq!(check(&[(2, 1), (4, 1)], &[a, b], 2), Ok(()));
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
        let piece = DensePiece { bucket, first, values: Floats::from(&zeros[..count]) };
        shard.push_dense(table, piece, &mut Vec::new()).map_err(|m| m.field)
    };
    assert_eq!(check(1, 1, 0, 4), Ok(()));
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
    let rows = read_sparse(&sparse, &spec, &[1, 2]);
    // With a constant gradient every step of Adam is one of the learning rate.
    let near = |bits: u32, expected: f32| (f32::from_bits(bits) - expected).abs() < 1e-5;
    assert!(near(rows[&1], -1.5) && near(rows[&2], -0.5), "{rows:?}");

    let spec = TableSpec::dense("w", &[32]).segment_bytes(64).optimizer(rule);
    let mut dense = shard(&spec);
    for bucket in [0, 0, 1] {
        let piece = DensePiece { bucket, first: 0, values: Floats::from(&[2.0f32; 16][..]) };
        dense.push_dense(0, piece, &mut Vec::new()).unwrap();
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

#[test]
fn buckets_that_nobody_touched_read_as_zeros() {
    let spec = TableSpec::sparse("w", 1);
    let mut shard = shard(&spec);
    push_sparse(&mut shard, &spec, &[(5, 1.0)]).unwrap();
    shard.close(1, &mut Vec::new());
    let read = read_sparse(&shard, &spec, &(0..50).collect::<Vec<_>>());
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
                let piece = DensePiece { bucket, first, values: Floats::from(&values[..]) };
                shard.push_dense(0, piece, &mut Vec::new()).unwrap();
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
