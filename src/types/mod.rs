//! The nouns: keys, tables, clocks, nodes, and which shard holds which bucket.

mod clock;
mod filter;
mod ids;
mod initializer;
mod key;
mod node;
mod offer;
mod partition;
pub mod random;
mod table;

pub use clock::{Clock, Consistency, Late, Quorum, Stale, Version};
pub use filter::{FilterSpec, MAX_FILTER_PARAMETERS, MAX_FILTERS, Wire};
pub use ids::{IdHasher, IdMap};
pub use initializer::{Initial, Initializer};
pub use key::{Key, KeyRange, SortedKeys, mix64};
pub use node::{Identity, Rank, Role, ServerInfo, View};
pub use offer::{Lack, MAX_WHY, Offer, shortened};
pub use partition::{PartitionMap, ShardId};
pub use table::{
    Aggregate, BucketId, DEFAULT_SEGMENT_BYTES, DEFAULT_SPARSE_BUCKETS, DirectoryEntry, MAX_TABLES,
    NonFinite, OptimizerSpec, Publish, TableId, TableKind, TableSpec,
};
