//! The header of what a worker writes into a slot of a server thread.
//!
//! ```text
//!  0  magic    u16  0x4C57 ("WL")          24  argument u64  pull: byte offset in the region;
//!                                                        push: base version, 2^64 − 1 for none
//!  2  version  u8   2                      32  table    u32
//!  3  kind     u8                          36  bucket   u32  dense only
//!  4  flags    u8   bit 0: after push      40  epoch    u32  of the View that routed it
//!  5  region   u8   pull: number, else 0   44  first    u32  dense: element in the bucket; sparse: directory entries
//!  6  chain    u16  check of the filters
//!  8  sequence u64  per endpoint, from 0   48  count    u32  elements (dense) or keys (sparse)
//! 16  clock    u64  the worker's           52  length   u32  body bytes
//!                                          56  tag      u32  comes back in the reply
//!                                          60  check    u32  CRC32C of bytes 0..60
//! ```

use super::{Builder, Fields, HEADER};
use crate::error::Malformed;

const MAGIC: u16 = 0x4C57;
const VERSION: u8 = 2;
const AFTER_PUSH: u8 = 1;
/// The argument of a push that does not say which version of its bucket it was computed from.
pub const NO_BASE: u64 = u64::MAX;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Add the body's values.
    Push,
    /// Write the values into one of the worker's regions.
    Pull,
    /// The worker ended `clock`.
    Mark,
    /// The worker pushes nothing from `clock` on.
    Finish,
    /// The body's values are what the parameters become. Laid out and treated as a push.
    Set,
}

/// A request's header, decoded from a private copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// What is asked for.
    pub kind: RequestKind,
    /// A pull that must see the pushes of its own clock too.
    pub after_push: bool,
    /// Counts the requests of one endpoint.
    pub sequence: u64,
    /// The worker's clock.
    pub clock: u64,
    /// Pull: which of the regions that the worker announced; 0 is its receive memory.
    pub region: u8,
    /// Push, set: check of the filters that the values went through; pull: that they are to go through. 0 without any.
    pub chain: u16,
    /// Pull: byte offset in the region. Push: its base version, or [`NO_BASE`].
    pub argument: u64,
    /// Which table.
    pub table: u32,
    /// Which bucket (dense).
    pub bucket: u32,
    /// The View's epoch.
    pub epoch: u32,
    /// Dense: first element within the bucket. Sparse: entries of the directory.
    pub first: u32,
    /// Elements or keys.
    pub count: u32,
    /// Body bytes.
    pub length: u32,
    /// Comes back in the reply.
    pub tag: u32,
}

impl RequestHeader {
    /// The 64 bytes drawn above.
    pub fn encode(&self) -> [u8; HEADER] {
        let kind = match self.kind {
            RequestKind::Push => 1u8,
            RequestKind::Pull => 2,
            RequestKind::Mark => 3,
            RequestKind::Finish => 4,
            RequestKind::Set => 5,
        };
        Builder::new()
            .put(0, MAGIC.to_le_bytes())
            .put(2, [VERSION, kind])
            .put(4, [if self.after_push { AFTER_PUSH } else { 0 }, self.region])
            .put(6, self.chain.to_le_bytes())
            .put(8, self.sequence.to_le_bytes())
            .put(16, self.clock.to_le_bytes())
            .put(24, self.argument.to_le_bytes())
            .put(32, self.table.to_le_bytes())
            .put(36, self.bucket.to_le_bytes())
            .put(40, self.epoch.to_le_bytes())
            .put(44, self.first.to_le_bytes())
            .put(48, self.count.to_le_bytes())
            .put(52, self.length.to_le_bytes())
            .put(56, self.tag.to_le_bytes())
            .finish()
    }

    /// The inverse of [`RequestHeader::encode`].
    pub fn decode(bytes: &[u8; HEADER]) -> Result<RequestHeader, Malformed> {
        let fields = Fields(bytes);
        fields.check(MAGIC, VERSION)?;
        let kind = match bytes[3] {
            1 => RequestKind::Push,
            2 => RequestKind::Pull,
            3 => RequestKind::Mark,
            4 => RequestKind::Finish,
            5 => RequestKind::Set,
            other => return Err(Malformed::new("kind", "1 to 5", other)),
        };
        let [flags, region] = [bytes[4], bytes[5]];
        if region != 0 && kind != RequestKind::Pull {
            return Err(Malformed::new("region", "0 but for a pull", region));
        }
        if flags & !AFTER_PUSH != 0 {
            return Err(Malformed::new("flags", "only known flags", format!("{flags:#04x}")));
        }
        Ok(RequestHeader {
            kind,
            after_push: flags & AFTER_PUSH != 0,
            sequence: fields.u64(8),
            clock: fields.u64(16),
            region,
            chain: fields.u16(6),
            argument: fields.u64(24),
            table: fields.u32(32),
            bucket: fields.u32(36),
            epoch: fields.u32(40),
            first: fields.u32(44),
            count: fields.u32(48),
            length: fields.u32(52),
            tag: fields.u32(56),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> RequestHeader {
        RequestHeader {
            kind: RequestKind::Pull,
            after_push: true,
            sequence: 0x0102_0304_0506_0708,
            clock: 9,
            region: 2,
            chain: 0x0A0B,
            argument: 4096,
            table: 3,
            bucket: 17,
            epoch: 1,
            first: 5,
            count: 6,
            length: 24,
            tag: 0xDEAD_BEEF,
        }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = example().encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "574c020201020b0a080706050403020109000000000000000010000000000000\
             030000001100000001000000050000000600000018000000efbeaddefe4cbbbe"
        );
        assert_eq!(RequestHeader::decode(&example().encode()), Ok(example()));
    }

    #[test]
    fn wrong_fields_are_named() {
        let mut bytes = example().encode();
        bytes[2] = VERSION + 1;
        assert_eq!(RequestHeader::decode(&bytes).unwrap_err().field, "version");
        let mut bytes = example().encode();
        bytes[16] ^= 1;
        assert_eq!(RequestHeader::decode(&bytes).unwrap_err().field, "check");
    }

    #[test]
    fn the_kinds_are_numbered() {
        let kinds =
            [RequestKind::Push, RequestKind::Pull, RequestKind::Mark, RequestKind::Finish, RequestKind::Set];
        for (number, kind) in (1..).zip(kinds) {
            assert_eq!(RequestHeader { kind, ..example() }.encode()[3], number);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(mut bytes in proptest::array::uniform32(any::<u8>())
            .prop_flat_map(|a| proptest::array::uniform32(any::<u8>()).prop_map(move |b| {
                let mut all = [0u8; HEADER];
                all[..32].copy_from_slice(&a);
                all[32..].copy_from_slice(&b);
                all
            })), mend in any::<bool>()) {
            if mend {
                bytes[..3].copy_from_slice(&[0x57, 0x4C, VERSION]);
                let check = crc32c::crc32c(&bytes[..60]);
                bytes[60..].copy_from_slice(&check.to_le_bytes());
            }
            if let Ok(header) = RequestHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
