//! The body of a sparse request: which keys of which buckets, then (push) their rows.
//!
//! ```text
//!  directory  entries × { bucket u32, keys u32 }   buckets ascend, every count ≥ 1
//!  keys       count × u64                          in the order of the directory, ascending within a bucket
//!  values     count × dim × fp32                   push only
//! ```
//! Every (bucket, its keys) is one piece: clocks, dedupe and placement go by it. A frame carries the pieces of one table
//! that go to one shard, so that a mini-batch that touches a hundred buckets is still one write.

use super::{RequestHeader, RequestKind};
use crate::error::Malformed;

/// Where the three parts of a sparse body lie, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseBody {
    /// Directory entries, at byte 0.
    pub entries: usize,
    /// Number of keys.
    pub keys: usize,
    /// fp32 in one row; 0 for a pull.
    pub dim: usize,
}

impl SparseBody {
    /// First byte of the keys.
    pub fn keys_at(&self) -> usize {
        self.entries * 8
    }

    /// First byte of the values.
    pub fn values_at(&self) -> usize {
        self.keys_at() + self.keys * 8
    }

    /// Bytes in all.
    pub fn length(&self) -> usize {
        self.values_at() + self.keys * self.dim * 4
    }

    /// The layout that a header announces, for a table of rows of `dim`; refused unless `length` fits it exactly.
    pub fn announced(header: &RequestHeader, dim: u32) -> Result<SparseBody, Malformed> {
        let dim = if matches!(header.kind, RequestKind::Push | RequestKind::Set) { dim as usize } else { 0 };
        let body = SparseBody { entries: header.first as usize, keys: header.count as usize, dim };
        if body.entries == 0 || body.entries > body.keys {
            return Err(Malformed::new(
                "first",
                format!("1 to {} directory entries", body.keys),
                body.entries,
            ));
        }
        // No overflow: both factors are below 2^32 and `dim` is at most 2^14.
        if body.length() != header.length as usize {
            return Err(Malformed::new("length", body.length().to_string(), header.length));
        }
        Ok(body)
    }
}
