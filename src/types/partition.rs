//! Which shard holds which bucket.
//!
//! Placement is grown one shard at a time, in the order of the shards: the new shard takes buckets from the fullest
//! ones until it holds its floor. So every shard holds ⌊buckets/shards⌋ or ⌈buckets/shards⌉ buckets of a table, and one
//! more shard moves just ⌊buckets/(shards + 1)⌋ of them, the least that any balanced placement can move. A ring of
//! virtual nodes with the same caps (Mirrokni et al., SODA 2018) moves more, because its overflow cascades.
//! Every node computes the same map from the View alone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{BucketId, TableSpec, View, mix64};

/// One server thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId {
    /// The server's rank.
    pub server: u32,
    /// The thread within it.
    pub thread: u32,
}

/// The placement of one table's buckets at one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionMap {
    epoch: u32,
    shards: Vec<ShardId>,
    /// For each bucket its place in `shards`.
    owner: Vec<u32>,
}

impl PartitionMap {
    /// The placement of `table` over all threads of the View's servers.
    pub fn new(view: &View, table: &TableSpec) -> PartitionMap {
        let shards: Vec<ShardId> = view
            .servers
            .iter()
            .flat_map(|s| (0..s.threads).map(|thread| ShardId { server: s.rank, thread }))
            .collect();
        let owner = grow(table.buckets(), shards.len(), salt(&table.name));
        PartitionMap { epoch: view.epoch, shards, owner }
    }

    /// The View's epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// All shards; `owner` gives places in this list.
    pub fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// The place in [`PartitionMap::shards`] of the shard that holds `bucket`, which must exist.
    pub fn owner(&self, bucket: BucketId) -> usize {
        self.owner[bucket as usize] as usize
    }

    /// The buckets of one shard, ascending.
    pub fn buckets_of(&self, shard: ShardId) -> Vec<BucketId> {
        let Some(place) = self.shards.iter().position(|&s| s == shard) else { return Vec::new() };
        (0u32..).zip(&self.owner).filter(|&(_, &o)| o as usize == place).map(|(bucket, _)| bucket).collect()
    }
}

/// Different tables put their remainders on different shards.
fn salt(name: &str) -> u64 {
    name.bytes().fold(0x57_49_4E_44, |h, b| mix64(h ^ u64::from(b)))
}

fn grow(buckets: u32, shards: usize, salt: u64) -> Vec<u32> {
    // The order in which a shard gives buckets away is pseudo-random, so that neighbours do not move together.
    let mut first: Vec<BucketId> = (0..buckets).collect();
    first.sort_unstable_by_key(|&b| (mix64(salt ^ u64::from(b)), b));
    let mut held: Vec<Vec<BucketId>> = vec![first];
    let mut fullest = BinaryHeap::from([(buckets as usize, Reverse(mix64(salt)), 0usize)]);
    for new in 1..shards {
        let floor = buckets as usize / (new + 1);
        let mut taken = Vec::with_capacity(floor + 1);
        while taken.len() < floor {
            let Some((_, tie, donor)) = fullest.pop() else { break };
            taken.extend(held[donor].pop());
            fullest.push((held[donor].len(), tie, donor));
        }
        fullest.push((taken.len(), Reverse(mix64(salt ^ new as u64)), new));
        held.push(taken);
    }
    let mut owner = vec![0u32; buckets as usize];
    for (shard, held) in (0u32..).zip(&held) {
        for &bucket in held {
            owner[bucket as usize] = shard;
        }
    }
    owner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_to_one_bucket_and_moves_the_least() {
        for buckets in [1, 7, 16, 256, 1000, 4096] {
            let mut before = grow(buckets, 1, 1);
            for shards in 2..=65usize {
                let after = grow(buckets, shards, 1);
                let mut loads = vec![0usize; shards];
                after.iter().for_each(|&o| loads[o as usize] += 1);
                let (min, max) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
                assert!(max - min <= 1, "{buckets} over {shards}: {loads:?}");
                let mean = f64::from(buckets) / shards as f64;
                assert!(mean < 16.0 || *max as f64 / mean <= 1.15, "{buckets} over {shards}: {loads:?}");
                let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
                assert_eq!(moved, buckets as usize / shards, "{buckets} buckets, {shards} shards");
                before = after;
            }
        }
    }

    #[test]
    fn every_bucket_has_one_owner_in_the_view() {
        let server =
            |rank, threads| super::super::ServerInfo { rank, address: String::new(), threads, first: 0 };
        let view = View { epoch: 3, servers: vec![server(0, 2), server(1, 1), server(2, 2)], workers: 1 };
        let spec = TableSpec::sparse("w", 1);
        let map = PartitionMap::new(&view, &spec);
        let mut all: Vec<u32> = map.shards().iter().flat_map(|&s| map.buckets_of(s)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..256).collect::<Vec<_>>());
        assert_eq!(
            map.owner(17),
            map.shards().iter().position(|&s| map.buckets_of(s).contains(&17)).unwrap()
        );
        assert_eq!(map.epoch(), 3);
    }
}
