//! The body of a sparse request: which keys of which buckets, then (push) their rows.
//!
//! ```text
//!  directory  entries × { bucket u32, keys u32 }   buckets ascend, every count ≥ 1
//!  keys       count × u64                          in the order of the directory, ascending within a bucket
//!  values     count × dim × value                  push only; a value takes 4 bytes, or what its filters make of it
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
    /// Bytes of one row; 0 for a pull.
    pub row_bytes: usize,
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
        self.values_at() + self.keys * self.row_bytes
    }

    /// The layout that a header announces, for a table whose rows take `row_bytes` on the wire; refused unless `length`
    /// fits it exactly.
    pub fn announced(header: &RequestHeader, row_bytes: usize) -> Result<SparseBody, Malformed> {
        let row_bytes =
            if matches!(header.kind, RequestKind::Push | RequestKind::Set) { row_bytes } else { 0 };
        let body = SparseBody { entries: header.first as usize, keys: header.count as usize, row_bytes };
        if body.entries == 0 || body.entries > body.keys {
            return Err(Malformed::new(
                "first",
                format!("1 to {} directory entries", body.keys),
                body.entries,
            ));
        }
        // No overflow: a header counts below 2^32, and a row has at most 2^14 values of 4 bytes.
        if body.length() != header.length as usize {
            return Err(Malformed::new("length", body.length().to_string(), header.length));
        }
        Ok(body)
    }
}
