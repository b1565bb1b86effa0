//! The header of what a server thread writes into a worker's reply ring.
//!
//! ```text
//!  0  magic    u16  0x5257 ("WR")                24  version  u64  of what was read; stale: of `bucket`;
//!  2  version  u8   4                                              not finite: the piece's smallest key
//!  3  kind     u8   1 credit, 2 pulled,          32  freed    u64  bit i: slot i is free again
//!                   3 rejected: stale,           40  epoch    u32
//!                   4 rejected: not finite       44  count    u32  pulled: values written; rejected: pieces
//!                   5 published
//!  4  of what  u32  pulled: check of the         48  tag      u32  of the request
//!                   filters (u16); rejected:     52  withdrawn u64 bit i: region i is no more written to
//!                   bucket of the first such
//!                   piece; credit: 0
//!  8  sequence u64  per endpoint, from 0         60  check    u32  CRC32C of bytes 0..60
//! 16  closed   u64  all clocks < closed are closed
//! ```
//! Published: the worker may read what this thread publishes of table `tag`: `of what` records (of `mem::epochs`), one for each of
//! the thread's buckets in ascending order, from address `version` on, by key `count`. The right ends with the endpoint.

use super::{Builder, Fields, HEADER};
use crate::error::Malformed;

const MAGIC: u16 = 0x5257;
const VERSION: u8 = 4;

/// What the header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyKind {
    /// Slots are free, or clocks closed.
    Credit,
    /// The answer to a pull; its values lie in the receive region.
    Pulled,
    /// Pieces of a push were rejected; the first was older than its table takes. It frees the push's slot.
    Stale,
    /// Pieces of a push were rejected; the first held values that are not finite. It frees the push's slot.
    NonFinite,
    /// Buckets of a table can be read one-sidedly.
    Published,
}

/// A reply's header, decoded from a private copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    /// What it announces.
    pub kind: ReplyKind,
    /// Counts the replies on one endpoint.
    pub sequence: u64,
    /// All clocks < closed are closed at this shard.
    pub closed: u64,
    /// Updates that the bucket has seen (the largest, for several buckets). Not finite: the smallest key of the first such piece.
    /// Published: the address.
    pub version: u64,
    /// Bit i: slot i is free again.
    pub freed: u64,
    /// The server's View.
    pub epoch: u32,
    /// Pulled: values written. Rejected: how many pieces. Published: the key.
    pub count: u32,
    /// Of the request. Published: the table.
    pub tag: u32,
    /// Bit i: the server has let go of region i, which the worker withdrew.
    pub withdrawn: u64,
    /// Pulled: check of the filters that the values went through, 0 without any. Shares its place with `bucket`.
    pub chain: u16,
    /// Rejected: the bucket of the first such piece. Published: the number of records.
    pub bucket: u32,
}

impl ReplyHeader {
    /// The 64 bytes drawn above.
    pub fn encode(&self) -> [u8; HEADER] {
        let (kind, of_what) = match self.kind {
            ReplyKind::Credit => (1u8, 0),
            ReplyKind::Pulled => (2, u32::from(self.chain)),
            ReplyKind::Stale => (3, self.bucket),
            ReplyKind::NonFinite => (4, self.bucket),
            ReplyKind::Published => (5, self.bucket),
        };
        Builder::new()
            .put(0, MAGIC.to_le_bytes())
            .put(2, [VERSION, kind])
            .put(4, of_what.to_le_bytes())
            .put(8, self.sequence.to_le_bytes())
            .put(16, self.closed.to_le_bytes())
            .put(24, self.version.to_le_bytes())
            .put(32, self.freed.to_le_bytes())
            .put(40, self.epoch.to_le_bytes())
            .put(44, self.count.to_le_bytes())
            .put(48, self.tag.to_le_bytes())
            .put(52, self.withdrawn.to_le_bytes())
            .finish()
    }

    /// The inverse of [`ReplyHeader::encode`].
    pub fn decode(bytes: &[u8; HEADER]) -> Result<ReplyHeader, Malformed> {
        let fields = Fields(bytes);
        fields.check(MAGIC, VERSION)?;
        let kind = match bytes[3] {
            1 => ReplyKind::Credit,
            2 => ReplyKind::Pulled,
            3 => ReplyKind::Stale,
            4 => ReplyKind::NonFinite,
            5 => ReplyKind::Published,
            other => return Err(Malformed::new("kind", "1 to 5", other)),
        };
        let (chain, bucket, reserved) = match kind {
            ReplyKind::Credit => (0, 0, fields.u32(4)),
            ReplyKind::Pulled => (fields.u16(4), 0, u32::from(fields.u16(6))),
            ReplyKind::Stale | ReplyKind::NonFinite | ReplyKind::Published => (0, fields.u32(4), 0),
        };
        if reserved != 0 {
            return Err(Malformed::new("reserved", "zero", "something else"));
        }
        Ok(ReplyHeader {
            kind,
            sequence: fields.u64(8),
            closed: fields.u64(16),
            version: fields.u64(24),
            freed: fields.u64(32),
            epoch: fields.u32(40),
            count: fields.u32(44),
            tag: fields.u32(48),
            chain,
            bucket,
            withdrawn: fields.u64(52),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let reply = ReplyHeader {
            kind: ReplyKind::Stale,
            sequence: 7,
            closed: 3,
            version: 2,
            freed: 1 << 63,
            epoch: 4,
            count: 5,
            tag: 6,
            chain: 0,
            bucket: 9,
            withdrawn: 1 << 62,
        };
        let hex: String = reply.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "5752040309000000070000000000000003000000000000000200000000000000\
             000000000000008004000000050000000600000000000000000000408da9985b"
        );
        assert_eq!(ReplyHeader::decode(&reply.encode()), Ok(reply));
        let published = ReplyHeader { kind: ReplyKind::Published, ..reply };
        assert_eq!(ReplyHeader::decode(&published.encode()), Ok(published));
        let not_finite = ReplyHeader { kind: ReplyKind::NonFinite, ..reply };
        assert_eq!(not_finite.encode()[3], 4);
        assert_eq!(ReplyHeader::decode(&not_finite.encode()), Ok(not_finite));
        let pulled = ReplyHeader { kind: ReplyKind::Pulled, chain: 0x0A0B, bucket: 0, ..reply };
        let bytes = pulled.encode();
        assert_eq!(bytes[3..8], [2, 0x0B, 0x0A, 0, 0]);
        assert_eq!(ReplyHeader::decode(&bytes), Ok(pulled));
        for (kind, at) in [(1, 4), (1, 7), (2, 6), (2, 7)] {
            let mut bytes = ReplyHeader { chain: 0, ..pulled }.encode();
            (bytes[3], bytes[at]) = (kind, 1);
            let bytes = Builder(bytes).finish();
            assert_eq!(ReplyHeader::decode(&bytes).unwrap_err().field, "reserved", "{kind}, byte {at}");
        }
        let mut bytes = reply.encode();
        bytes[33] = 1;
        assert_eq!(ReplyHeader::decode(&bytes).unwrap_err().field, "check");
    }
}
