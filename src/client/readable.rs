//! Where the buckets of a table that is published in epochs lie at its server threads, for one-sided reads.

use crate::mem::epochs::Layout;
use crate::types::{BucketId, PartitionMap, TableSpec};

/// See the module's head.
#[derive(Debug)]
pub struct Readable {
    /// Of each record.
    pub layout: Layout,
    /// For each bucket its place among those of its shard.
    places: Vec<u32>,
    /// How many buckets each shard holds.
    held: Vec<u32>,
}

impl Readable {
    /// Of a table, unless it is not published so.
    pub fn of(spec: &TableSpec, map: &PartitionMap) -> Option<Readable> {
        let layout = spec.epochs()?;
        let mut held = vec![0; map.shards().len()];
        let places = (0..spec.buckets())
            .map(|bucket| {
                let count = &mut held[map.owner(bucket)];
                *count += 1;
                *count - 1
            })
            .collect();
        Some(Readable { layout, places, held })
    }

    /// How many records a shard publishes.
    pub fn records(&self, shard: usize) -> u32 {
        self.held[shard]
    }

    /// First byte of a bucket's record at its shard.
    pub fn record(&self, bucket: BucketId) -> u64 {
        u64::from(self.places[bucket as usize]) * self.layout.record()
    }
}
