use proptest::prelude::*;

use super::*;
use crate::types::OptimizerSpec;

fn shard(spec: &TableSpec) -> Shard {
    let mut shard = Shard::new(Optimizers::default(), 1 << 30);
    let all: Vec<u32> = (0..spec.buckets()).collect();
    shard.create_table(0, spec, &all).unwrap();
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
    let piece = SparsePiece { directory: &directory, keys: &keys, values: Input::from(&values[..]) };
    shard.push_sparse(0, piece, &mut Vec::new())
}

fn read_sparse(shard: &Shard, spec: &TableSpec, keys: &[u64]) -> HashMap<u64, u32> {
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
                    let piece = DensePiece { bucket, first: 0, values: Input::from(&values[..]) };
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
        let piece = DensePiece { bucket: 0, first, values: Input::from(&ones[..]) };
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
            let piece = DensePiece { bucket: 0, first, values: Input::from(values) };
            parts.push_dense(0, piece, &mut applied).unwrap();
        }
    }
    for _ in 0..2 {
        let piece = DensePiece { bucket: 0, first: 0, values: Input::from(&gradient[..]) };
        whole.push_dense(0, piece, &mut applied).unwrap();
    }
    assert_eq!(parts.read_dense(0, 0, 0, 32).unwrap().values, whole.read_dense(0, 0, 0, 32).unwrap().values);
    assert_eq!(applied.last().unwrap().version, 2);
    assert_eq!(parts.read_dense(0, 0, 0, 32).unwrap().version, 4);
}

#[test]
fn pieces_that_do_not_fit_touch_nothing() {
    let spec = TableSpec::sparse("w", 1);
    let mut shard = Shard::new(Optimizers::default(), 1 << 30);
    let ours: Vec<u32> = (0..256).filter(|b| b % 2 == 0).collect();
    shard.create_table(0, &spec, &ours).unwrap();
    let key_in = |bucket: u32| (0u64..).find(|&k| spec.bucket_of(k) == bucket).unwrap();
    let (a, b, foreign) = (key_in(2), key_in(4), key_in(3));
    let zeros = [0.0f32; 4];
    let mut check = |directory: &[(u32, u32)], keys: &[u64], values: usize| {
        let directory: Vec<_> =
            directory.iter().map(|&(bucket, keys)| DirectoryEntry { bucket, keys }).collect();
        let piece = SparsePiece { directory: &directory, keys, values: Input::from(&zeros[..values]) };
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
    shard.create_table(1, &spec, &[1]).unwrap();
    let mut check = |table, bucket, first, count: usize| {
        let piece = DensePiece { bucket, first, values: Input::from(&zeros[..count]) };
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
    assert!(shard.create_table(0, &spec, &[]).is_ok());
    let error = shard.create_table(0, &TableSpec::sparse("w", 2), &[]).unwrap_err().to_string();
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
        let piece = DensePiece { bucket, first: 0, values: Input::from(&[2.0f32; 16][..]) };
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
    let mut shard = Shard::new(Optimizers::default(), 1 << 20);
    let sparse = TableSpec::sparse("ids", 4);
    shard.create_table(0, &sparse, &(0..sparse.buckets()).collect::<Vec<_>>()).unwrap();
    let make = |shard: &mut Shard, id, elements| {
        let spec = TableSpec::dense("w", &[elements]);
        shard.create_table(id, &spec, &(0..spec.buckets()).collect::<Vec<_>>())
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
            views.iter().for_each(|p| one_by_one.push_dense(0, *p, &mut Vec::new()).unwrap());
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
            by_hand.push_dense(0, piece, &mut Vec::new()).unwrap();
            by_hand.close(1, &mut Vec::new());

            let expected = read(&by_hand);
            prop_assert_eq!(read(&one_by_one), expected.clone(), "one by one");
            prop_assert_eq!(read(&in_parts), expected.clone(), "in parts");
            prop_assert_eq!(read(&at_once), expected, "at once");
        }
    }
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
