//! The body of a sparse request: which keys of which buckets, then (push) their rows.
//!
//! ```text
//!  name       24 bytes                         of keys that are to be kept, or are kept (see `list.rs`); else nothing
//!  directory  entries × { bucket u32, keys u32 }   buckets ascend, every count ≥ 1
//!  keys       count × u64, or packed               in the order of the directory, ascending within a bucket (see `packed.rs`)
//!  values     count × dim × value                  push only; a value takes 4 bytes, or what its filters make of it
//! ```
//! Where the keys are kept, neither directory nor keys are in the body, and the number of entries is 0.
//!
//! Every (bucket, its keys) is one piece: clocks, dedupe and placement go by it. A frame carries the pieces of one table
//! that go to one shard, so that a mini-batch that touches a hundred buckets is still one write.

use super::{KeysAt, ListName, RequestHeader, RequestKind};
use crate::error::Malformed;

/// Where the three parts of a sparse body lie, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparseBody {
    /// Where its keys are.
    pub at: KeysAt,
    /// Directory entries; 0 where the keys are kept.
    pub entries: usize,
    /// Number of keys.
    pub keys: usize,
    /// Bytes that they take.
    pub key_bytes: usize,
    /// Whether they are packed.
    pub packed: bool,
    /// Bytes of one row; 0 for a pull.
    pub row_bytes: usize,
}

impl SparseBody {
    /// First byte of the directory.
    pub fn directory_at(&self) -> usize {
        if self.at == KeysAt::Here { 0 } else { ListName::ENCODED }
    }

    /// First byte of the keys.
    pub fn keys_at(&self) -> usize {
        self.directory_at() + self.entries * 8
    }

    /// First byte of the values.
    pub fn values_at(&self) -> usize {
        self.keys_at() + self.key_bytes
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
        let (at, entries, keys) = (header.keys, header.first as usize, header.count as usize);
        let packed = header.packed;
        let key_bytes = match at {
            KeysAt::Named => 0,
            _ if packed => header.bucket as usize,
            _ => keys * 8,
        };
        if !key_bytes.is_multiple_of(8) {
            return Err(Malformed::new("bucket", "whole words of packed keys", key_bytes));
        }
        let body = SparseBody { at, entries, keys, key_bytes, packed, row_bytes };
        let named = at == KeysAt::Named;
        if named && (entries > 0 || keys == 0) {
            return Err(Malformed::new("first", "no directory entry, of a key or more", entries));
        }
        if !named && (entries == 0 || entries > keys) {
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
