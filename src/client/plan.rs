//! Routing: which keys of a call go to which server thread, in which frames.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::proto::{KeysAt, ListName, packed};
use crate::types::{BucketId, DirectoryEntry, Key, KeyRange, PartitionMap, SortedKeys, TableSpec};

/// Part of one dense bucket, small enough for one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenseFrame {
    /// Its place in the map's shards.
    pub shard: usize,
    pub bucket: BucketId,
    /// First element within the bucket.
    pub first: u32,
    /// Elements.
    pub count: u32,
    /// Where they stand in the caller's values.
    pub at: usize,
}

/// Cuts a range of keys by bucket, and each bucket into frames of at most `limit` elements.
pub fn dense<'a>(
    spec: &'a TableSpec,
    map: &'a PartitionMap,
    range: KeyRange,
    limit: u32,
) -> Result<impl Iterator<Item = DenseFrame> + Clone + 'a> {
    if spec.elements() == 0 {
        return Err(Error::Misuse {
            call: "dense access",
            reason: format!("table \"{}\" is sparse: name its keys", spec.name),
        });
    }
    if range.end() > spec.elements() {
        let expected = format!("keys below {} (table \"{}\")", spec.elements(), spec.name);
        return Err(Error::config("key range", expected, range.end()));
    }
    let mut key = range.start();
    Ok(std::iter::from_fn(move || {
        if key >= range.end() {
            return None;
        }
        let bucket = spec.bucket_of(key);
        let segment = spec.segment_range(bucket)?;
        let end = segment.end().min(range.end()).min(key + u64::from(limit));
        let frame = DenseFrame {
            shard: map.owner(bucket),
            bucket,
            first: (key - segment.start()) as u32,
            count: (end - key) as u32,
            at: (key - range.start()) as usize,
        };
        key = end;
        Some(frame)
    }))
}

/// Whether [`dense`] cuts a bucket over several frames.
pub fn dense_is_cut(spec: &TableSpec, map: &PartitionMap, range: KeyRange, limit: u32) -> Result<bool> {
    let mut last = None;
    Ok(dense(spec, map, range, limit)?.any(|frame| last.replace(frame.bucket) == Some(frame.bucket)))
}

/// Keys of several buckets of one shard, few enough for one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseFrame {
    /// Its place in the map's shards.
    pub shard: usize,
    /// Its lines in [`SparsePlan::directory`].
    pub directory: Range<usize>,
    /// Its keys, as places in [`SparsePlan::order`].
    pub keys: Range<usize>,
}

/// The frames of one sparse call. Made once and filled for each, so that its lists grow only for the largest.
#[derive(Debug, Default)]
pub struct SparsePlan {
    /// Where the frames have their keys, and under which names, one for each, where they are kept.
    pub keys_at: KeysAt,
    pub names: Vec<ListName>,
    /// For each line of the directory the width of its packed keys, and for each frame their bytes; 0 where they travel as they are.
    pub widths: Vec<u8>,
    pub packed: Vec<usize>,
    /// The caller's key numbers in the order in which they travel.
    pub order: Vec<u32>,
    pub directory: Vec<DirectoryEntry>,
    pub frames: Vec<SparseFrame>,
    /// The bucket of each key.
    buckets: Vec<BucketId>,
    /// For each bucket of the table how many keys it has, then where the next one goes. Zeros between calls.
    places: Vec<u32>,
    /// Shard, bucket and number of keys, of each bucket that has any.
    runs: Vec<(u32, BucketId, u32)>,
}

impl SparsePlan {
    /// Sorts the keys by shard and bucket and cuts them into frames of at most `limit` bytes, of which each key takes
    /// 8 + `row_bytes` and each bucket 8. A bucket's keys are cut only when they do not fit one frame.
    pub fn fill(
        &mut self,
        spec: &TableSpec,
        map: &PartitionMap,
        keys: SortedKeys<'_>,
        row_bytes: usize,
        limit: usize,
    ) -> Result<()> {
        if spec.elements() > 0 {
            return Err(Error::Misuse {
                call: "sparse access",
                reason: format!("table \"{}\" is dense: name a range of its keys", spec.name),
            });
        }
        (self.keys_at, _) = (KeysAt::Here, self.names.clear());
        self.sort(spec, map, keys.as_slice());
        self.cut(8 + row_bytes, limit);
        self.pack(keys.as_slice());
        Ok(())
    }

    /// Counts the keys of each bucket, then puts each key's number where its bucket's next one goes: those of a bucket
    /// ascend as the keys do.
    fn sort(&mut self, spec: &TableSpec, map: &PartitionMap, keys: &[Key]) {
        let SparsePlan { order, buckets, places, runs, .. } = self;
        places.resize(places.len().max(spec.buckets() as usize), 0);
        buckets.clear();
        runs.clear();
        for &key in keys {
            let bucket = spec.bucket_of(key);
            buckets.push(bucket);
            if places[bucket as usize] == 0 {
                runs.push((map.owner(bucket) as u32, bucket, 0));
            }
            places[bucket as usize] += 1;
        }
        runs.sort_unstable();
        let mut next = 0;
        for (_, bucket, count) in runs.iter_mut() {
            let place = &mut places[*bucket as usize];
            (*count, *place, next) = (*place, next, next + *place);
        }
        order.resize(keys.len(), 0);
        for (number, &bucket) in (0u32..).zip(buckets.iter()) {
            let place = &mut places[bucket as usize];
            order[*place as usize] = number;
            *place += 1;
        }
        runs.iter().for_each(|(_, bucket, _)| places[*bucket as usize] = 0);
    }

    fn cut(&mut self, key_bytes: usize, limit: usize) {
        let SparsePlan { directory, frames, runs, .. } = self;
        directory.clear();
        frames.clear();
        let most = limit.saturating_sub(8) / key_bytes;
        let (mut bytes, mut at) = (0, 0);
        for &(shard, bucket, count) in runs.iter() {
            let (shard, mut left) = (shard as usize, count as usize);
            while left > 0 {
                let wanted = if left <= most { left } else { 1 };
                let fits = frames.last().is_some_and(|f: &SparseFrame| f.shard == shard)
                    && bytes + 8 + wanted * key_bytes <= limit;
                if !fits {
                    let entries = directory.len();
                    frames.push(SparseFrame { shard, directory: entries..entries, keys: at..at });
                    bytes = 0;
                }
                let here = left.min(limit.saturating_sub(bytes + 8) / key_bytes).max(1);
                directory.push(DirectoryEntry { bucket, keys: here as u32 });
                bytes += 8 + here * key_bytes;
                at += here;
                left -= here;
                if let Some(frame) = frames.last_mut() {
                    (frame.keys.end, frame.directory.end) = (at, directory.len());
                }
            }
        }
    }

    /// Packs the keys of those frames that become a quarter shorter by it, at least.
    fn pack(&mut self, keys: &[Key]) {
        self.widths.clear();
        self.packed.clear();
        for frame in &self.frames {
            let first = self.widths.len();
            let mut at = frame.keys.start;
            let mut words = packed::width_words(frame.directory.len());
            let most = frame.keys.len() * 3 / 4;
            for entry in &self.directory[frame.directory.clone()] {
                let numbers = &self.order[at..at + entry.keys as usize];
                at += numbers.len();
                let width = packed::width(numbers.iter().map(|&number| keys[number as usize]));
                words += packed::words(numbers.len(), width);
                self.widths.push(width);
                if words > most || width > packed::WIDEST {
                    words = 0;
                    break;
                }
            }
            self.widths.resize(first + frame.directory.len(), 0);
            self.packed.push(words * 8);
        }
    }

    /// Bytes of a frame's name, directory and keys.
    pub fn key_bytes(&self, number: usize) -> usize {
        let (frame, packed) = (&self.frames[number], self.packed[number]);
        let keys = if packed > 0 { packed } else { frame.keys.len() * 8 };
        let name = if self.keys_at == KeysAt::Here { 0 } else { ListName::ENCODED };
        let named = self.keys_at == KeysAt::Named;
        name + if named { 0 } else { frame.directory.len() * 8 + keys }
    }

    /// Whether a bucket is cut over several frames.
    pub fn is_cut(&self) -> bool {
        let edge = |frame: &SparseFrame| &self.directory[frame.directory.clone()];
        self.frames
            .windows(2)
            .any(|w| edge(&w[0]).last().map(|d| d.bucket) == edge(&w[1]).first().map(|d| d.bucket))
    }
}

impl Clone for SparsePlan {
    /// What the frames are; not what was needed to find that out.
    fn clone(&self) -> SparsePlan {
        let mut plan = SparsePlan::default();
        plan.clone_from(self);
        plan
    }

    fn clone_from(&mut self, other: &SparsePlan) {
        self.keys_at = other.keys_at;
        self.names.clone_from(&other.names);
        self.widths.clone_from(&other.widths);
        self.packed.clone_from(&other.packed);
        self.order.clone_from(&other.order);
        self.directory.clone_from(&other.directory);
        self.frames.clone_from(&other.frames);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ServerInfo, View};
    use proptest::prelude::*;

    fn view() -> View {
        let server = |rank| ServerInfo { rank, address: String::new(), threads: 2, first: 0 };
        View { epoch: 1, servers: (0..3).map(server).collect(), workers: 1 }
    }

    proptest! {
        #[test]
        fn sparse_frames_hold_every_key_once(
            keys in proptest::collection::btree_set(any::<u64>(), 0..500),
            dim in 1usize..20, limit in 200usize..2000,
        ) {
            let keys: Vec<u64> = keys.into_iter().collect();
            let spec = TableSpec::sparse("w", dim as u32);
            let map = PartitionMap::new(&view(), &spec);
            let mut plan = SparsePlan::default();
            // What an earlier call left behind must not show.
            plan.fill(&spec, &map, SortedKeys::new(&[1, 2, 3]).unwrap(), dim * 4, limit).unwrap();
            plan.fill(&spec, &map, SortedKeys::new(&keys).unwrap(), dim * 4, limit).unwrap();
            let mut seen: Vec<u32> = plan.order.clone();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..keys.len() as u32).collect::<Vec<_>>());
            let mut next = 0;
            for frame in &plan.frames {
                prop_assert_eq!(frame.keys.start, next);
                next = frame.keys.end;
                let directory = &plan.directory[frame.directory.clone()];
                prop_assert!(directory.len() * 8 + frame.keys.len() * (8 + dim * 4) <= limit);
                let mut at = frame.keys.start;
                let mut last = None;
                for entry in directory {
                    prop_assert!(last < Some(entry.bucket) && entry.keys > 0);
                    last = Some(entry.bucket);
                    prop_assert_eq!(map.owner(entry.bucket), frame.shard);
                    let part = &plan.order[at..at + entry.keys as usize];
                    prop_assert!(part.windows(2).all(|w| w[0] < w[1]));
                    prop_assert!(part.iter().all(|&n| spec.bucket_of(keys[n as usize]) == entry.bucket));
                    at += entry.keys as usize;
                }
                prop_assert_eq!(at, frame.keys.end);
            }
            prop_assert_eq!(next, keys.len());
            let mut runs = std::collections::HashMap::new();
            keys.iter().for_each(|&k| *runs.entry(spec.bucket_of(k)).or_insert(0usize) += 1);
            let all_fit = runs.values().all(|&keys| 8 + keys * (8 + dim * 4) <= limit);
            prop_assert_eq!(plan.is_cut(), !all_fit);
        }

        #[test]
        fn dense_frames_tile_the_range(start in 0u64..900, length in 1u64..100, limit in 1u32..40) {
            let spec = TableSpec::dense("w", &[1000]).segment_bytes(64);
            let map = PartitionMap::new(&view(), &spec);
            let range = KeyRange::new(start, start + length).unwrap();
            let frames = dense(&spec, &map, range, limit).unwrap();
            let mut key = start;
            for frame in frames {
                prop_assert_eq!(frame.at as u64, key - start);
                prop_assert!(frame.count >= 1 && frame.count <= limit);
                prop_assert_eq!(spec.bucket_of(key), frame.bucket);
                prop_assert_eq!(spec.segment_range(frame.bucket).unwrap().start() + u64::from(frame.first), key);
                key += u64::from(frame.count);
                prop_assert_eq!(spec.bucket_of(key - 1), frame.bucket);
            }
            prop_assert_eq!(key, start + length);
        }
    }

    #[test]
    fn keys_outside_are_refused() {
        let spec = TableSpec::dense("w", &[10]);
        let map = PartitionMap::new(&view(), &spec);
        assert!(dense(&spec, &map, KeyRange::new(9, 11).unwrap(), 10).is_err());
        let sparse = TableSpec::sparse("w", 1);
        assert!(
            dense(&sparse, &PartitionMap::new(&view(), &sparse), KeyRange::new(0, 1).unwrap(), 1).is_err()
        );
        assert!(SparsePlan::default().fill(&spec, &map, SortedKeys::new(&[1]).unwrap(), 4, 100).is_err());
    }
}
