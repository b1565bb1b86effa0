//! The entry of 64 bytes, little-endian, that begins every operation in a ring.
//!
//! ```text
//! offset size field
//!      0    1 kind      1 write, 2 send, 3 read request, 4 read answer, 5 part, 6 forget
//!      1    1 flags     bit 0: a write that tells the peer (`imm` counts); bit 1: the rest lies in region `region` from `source` on;
//!                       bit 2: and is lent. All others 0
//!      2    2 inline    bytes that follow in the ring, rounded up to whole cells
//!      4    4 key       grant number: write, read request; else 0
//!      8    8 offset    first byte within the grant: write, read request; else 0
//!     16    4 length    bytes of the whole: write, send, read answer; bytes asked for: read request; else 0
//!     20    4 imm       a write with bit 0; else 0
//!     24    8 read      number of the read: read request, read answer; else 0
//!     32    4 region    number of the sender's region: with bit 1, forget; else 0
//!     36    4 reserved  0
//!     40    8 source    first byte within that region: with bit 1; else 0
//!     48   16 reserved  0
//! ```
//! Of `length` bytes the first `inline` follow in the ring. The others lie in memory that the sender has shown us (bit 1), or come in
//! parts, which are the next operations.

/// Size of an entry in bytes.
pub(super) const FRAME: usize = 64;

const IMM: u8 = 1;
const BY_PLACE: u8 = 2;
const LENT: u8 = 4;

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `length` bytes for `offset` of grant `key`.
    Write { key: u32, offset: u64, length: u32, imm: Option<u32> },
    /// A message of `length` bytes.
    Send { length: u32 },
    /// Asks for `length` bytes at `offset` of grant `key`.
    ReadRequest { key: u32, offset: u64, length: u32, read: u64 },
    /// The `length` bytes that `read` asked for.
    ReadAnswer { length: u32, read: u64 },
    /// More bytes of the write or answer before.
    Part,
    /// The sender needs its region no longer, and may show another by its number.
    Forget { region: u32 },
}

/// Where the bytes lie that do not follow in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub region: u32,
    pub offset: u64,
    /// It stays as it is until the receiver says otherwise.
    pub lent: bool,
}

/// An entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub kind: Kind,
    pub inline: u16,
    pub source: Option<Source>,
}

/// Why 64 bytes are no entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFrame {
    /// The field at fault.
    pub field: &'static str,
    /// What the layout allows there.
    pub expected: &'static str,
    /// What stands there.
    pub found: u64,
}

impl Frame {
    /// The bytes in the ring.
    pub fn encode(&self) -> [u8; FRAME] {
        let mut flags = 0;
        let (kind, key, offset, length, imm, read, mut region) = match self.kind {
            Kind::Write { key, offset, length, imm } => {
                flags |= if imm.is_some() { IMM } else { 0 };
                (1, key, offset, length, imm.unwrap_or(0), 0, 0)
            }
            Kind::Send { length } => (2, 0, 0, length, 0, 0, 0),
            Kind::ReadRequest { key, offset, length, read } => (3, key, offset, length, 0, read, 0),
            Kind::ReadAnswer { length, read } => (4, 0, 0, length, 0, read, 0),
            Kind::Part => (5, 0, 0, 0, 0, 0, 0),
            Kind::Forget { region } => (6, 0, 0, 0, 0, 0, region),
        };
        let mut source = 0;
        if let Some(place) = self.source {
            flags |= if place.lent { BY_PLACE | LENT } else { BY_PLACE };
            (region, source) = (place.region, place.offset);
        }
        let mut out = [0; FRAME];
        out[0] = kind;
        out[1] = flags;
        out[2..4].copy_from_slice(&self.inline.to_le_bytes());
        out[4..8].copy_from_slice(&key.to_le_bytes());
        out[8..16].copy_from_slice(&offset.to_le_bytes());
        out[16..20].copy_from_slice(&length.to_le_bytes());
        out[20..24].copy_from_slice(&imm.to_le_bytes());
        out[24..32].copy_from_slice(&read.to_le_bytes());
        out[32..36].copy_from_slice(&region.to_le_bytes());
        out[40..48].copy_from_slice(&source.to_le_bytes());
        out
    }

    /// The inverse of [`Frame::encode`]. Takes only what `encode` can make: what a kind does not use must be 0.
    pub fn decode(bytes: &[u8; FRAME]) -> Result<Frame, BadFrame> {
        let four = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
        let (flags, key, offset, length) = (bytes[1], four(4), eight(8), four(16));
        let kind = match bytes[0] {
            1 => Kind::Write { key, offset, length, imm: (flags & IMM != 0).then(|| four(20)) },
            2 => Kind::Send { length },
            3 => Kind::ReadRequest { key, offset, length, read: eight(24) },
            4 => Kind::ReadAnswer { length, read: eight(24) },
            5 => Kind::Part,
            6 => Kind::Forget { region: four(32) },
            other => return Err(BadFrame { field: "kind", expected: "1 to 6", found: other.into() }),
        };
        let takes_source = matches!(kind, Kind::Write { .. } | Kind::ReadAnswer { .. });
        let lent = flags & LENT != 0;
        if lent && !matches!(kind, Kind::Write { imm: Some(_), .. }) {
            return Err(BadFrame {
                field: "flags",
                expected: "a loan that is announced",
                found: flags.into(),
            });
        }
        let place = Source { region: four(32), offset: eight(40), lent };
        let source = (takes_source && flags & BY_PLACE != 0).then_some(place);
        let inline = u16::from_le_bytes([bytes[2], bytes[3]]);
        let frame = Frame { kind, inline, source };
        let canonical = frame.encode();
        if canonical == *bytes {
            return Ok(frame);
        }
        match canonical.iter().zip(bytes).position(|(a, b)| a != b) {
            None => Ok(frame),
            Some(at) => {
                let field = match at {
                    1 => "flags",
                    4..8 => "key",
                    8..16 => "offset",
                    16..20 => "length",
                    20..24 => "imm",
                    24..32 => "read",
                    32..36 => "region",
                    40..48 => "source",
                    _ => "reserved",
                };
                Err(BadFrame { field, expected: "0 in this kind of entry", found: bytes[at].into() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let write = Frame {
            kind: Kind::Write {
                key: 0x0403_0201,
                offset: 0x1817_1615_1413_1211,
                length: 0x2423_2221,
                imm: Some(0x3433_3231),
            },
            inline: 0x4241,
            source: Some(Source { region: 0x5453_5251, offset: 0x6867_6665_6463_6261, lent: true }),
        };
        let mut golden = [0; FRAME];
        golden[..4].copy_from_slice(&[1, 7, 0x41, 0x42]);
        let fields = [(4, 1, 4), (8, 0x11, 8), (16, 0x21, 4), (20, 0x31, 4), (32, 0x51, 4), (40, 0x61, 8)];
        for (at, first, length) in fields {
            (0..length).for_each(|i| golden[at + i] = first + i as u8);
        }
        assert_eq!(write.encode(), golden);
        let plain = |kind| Frame { kind, inline: 0, source: None }.encode();
        let mut golden = [0; FRAME];
        (golden[0], golden[4], golden[8], golden[16], golden[24]) = (3, 1, 2, 3, 4);
        assert_eq!(plain(Kind::ReadRequest { key: 1, offset: 2, length: 3, read: 4 }), golden);
        let mut golden = [0; FRAME];
        (golden[0], golden[32]) = (6, 9);
        assert_eq!(plain(Kind::Forget { region: 9 }), golden);
    }

    #[test]
    fn names_the_field_at_fault() {
        let fault = |at: usize, value: u8| {
            let mut bytes = Frame { kind: Kind::Send { length: 1 }, inline: 1, source: None }.encode();
            bytes[at] = value;
            Frame::decode(&bytes).unwrap_err().field
        };
        let faults = [
            (0, 0, "kind"),
            (0, 7, "kind"),
            (1, 8, "flags"),
            (1, 1, "flags"),
            (1, 2, "flags"),
            (1, 4, "flags"),
            (5, 1, "key"),
            (9, 1, "offset"),
            (20, 1, "imm"),
            (24, 1, "read"),
            (32, 1, "region"),
            (36, 1, "reserved"),
            (40, 1, "source"),
            (48, 1, "reserved"),
            (63, 1, "reserved"),
        ];
        for (at, value, field) in faults {
            assert_eq!(fault(at, value), field, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn decodes_only_what_it_encodes(bytes in proptest::array::uniform32(any::<u8>()), kind in 0u8..8, flags in 0u8..9) {
            let mut all = [0; FRAME];
            all[..32].copy_from_slice(&bytes);
            all[32..48].copy_from_slice(&bytes[..16]);
            all[36..40].fill(0);
            (all[0], all[1]) = (kind, flags);
            if let Ok(frame) = Frame::decode(&all) {
                prop_assert_eq!(frame.encode(), all);
            }
        }
    }
}
