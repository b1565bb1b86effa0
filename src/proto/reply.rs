//! The header of what a server thread writes into a worker's reply ring.
//!
//! ```text
//!  0  magic    u16  0x5257 ("WR")                24  version  u64  of what was read
//!  2  version  u8   2                            32  freed    u64  bit i: slot i is free again
//!  3  kind     u8   1 credit, 2 pulled           40  epoch    u32
//!  4  chain    u16  check of the filters         44  count    u32  values written
//!  6  zero     u16                               48  tag      u32  of the request
//!  8  sequence u64  per endpoint, from 0         52  zero     u64
//! 16  closed   u64  all clocks < closed are closed  60  check u32  CRC32C of bytes 0..60
//! ```

use super::{Builder, Fields, HEADER};
use crate::error::Malformed;

const MAGIC: u16 = 0x5257;
const VERSION: u8 = 2;

/// What the header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyKind {
    /// Slots are free, or clocks closed.
    Credit,
    /// The answer to a pull; its values lie in the receive region.
    Pulled,
}

/// A reply's header, decoded from a private copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    /// What it announces.
    pub kind: ReplyKind,
    /// Check of the filters that the values went through; 0 without any.
    pub chain: u16,
    /// Counts the replies on one endpoint.
    pub sequence: u64,
    /// All clocks < closed are closed at this shard.
    pub closed: u64,
    /// Updates that the bucket has seen (the largest, for several buckets).
    pub version: u64,
    /// Bit i: slot i is free again.
    pub freed: u64,
    /// The server's View.
    pub epoch: u32,
    /// Values written.
    pub count: u32,
    /// Of the request.
    pub tag: u32,
}

impl ReplyHeader {
    /// The 64 bytes drawn above.
    pub fn encode(&self) -> [u8; HEADER] {
        let kind = match self.kind {
            ReplyKind::Credit => 1u8,
            ReplyKind::Pulled => 2,
        };
        Builder::new()
            .put(0, MAGIC.to_le_bytes())
            .put(2, [VERSION, kind])
            .put(4, self.chain.to_le_bytes())
            .put(8, self.sequence.to_le_bytes())
            .put(16, self.closed.to_le_bytes())
            .put(24, self.version.to_le_bytes())
            .put(32, self.freed.to_le_bytes())
            .put(40, self.epoch.to_le_bytes())
            .put(44, self.count.to_le_bytes())
            .put(48, self.tag.to_le_bytes())
            .finish()
    }

    /// The inverse of [`ReplyHeader::encode`].
    pub fn decode(bytes: &[u8; HEADER]) -> Result<ReplyHeader, Malformed> {
        let fields = Fields(bytes);
        fields.check(MAGIC, VERSION)?;
        let kind = match bytes[3] {
            1 => ReplyKind::Credit,
            2 => ReplyKind::Pulled,
            other => return Err(Malformed::new("kind", "1 or 2", other)),
        };
        if fields.u16(6) != 0 || fields.u64(52) != 0 {
            return Err(Malformed::new("reserved", "zero", "something else"));
        }
        Ok(ReplyHeader {
            kind,
            chain: fields.u16(4),
            sequence: fields.u64(8),
            closed: fields.u64(16),
            version: fields.u64(24),
            freed: fields.u64(32),
            epoch: fields.u32(40),
            count: fields.u32(44),
            tag: fields.u32(48),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let reply = ReplyHeader {
            kind: ReplyKind::Pulled,
            chain: 0x0A0B,
            sequence: 7,
            closed: 3,
            version: 2,
            freed: 1 << 63,
            epoch: 4,
            count: 5,
            tag: 6,
        };
        let hex: String = reply.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "575202020b0a0000070000000000000003000000000000000200000000000000\
             00000000000000800400000005000000060000000000000000000000f3004590"
        );
        assert_eq!(ReplyHeader::decode(&reply.encode()), Ok(reply));
        let mut bytes = reply.encode();
        bytes[33] = 1;
        assert_eq!(ReplyHeader::decode(&bytes).unwrap_err().field, "check");
    }
}
