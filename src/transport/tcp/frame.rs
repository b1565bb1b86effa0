//! The transport frame: 32 bytes, little-endian, before every payload on the wire.
//!
//! ```text
//! offset size field
//!      0    1 kind      1 write, 2 send, 3 read request, 4 read response
//!      1    1 flags     bit 0: a write that tells the peer (`imm` counts); all others 0
//!      2    2 reserved  0
//!      4    4 key       grant number: write, read request; else 0
//!      8    8 offset    first byte within the grant: write, read request; else 0
//!     16    4 length    bytes of payload that follow; read request: bytes asked for
//!     20    4 imm       a write with bit 0; else 0
//!     24    8 read      number of the read: read request, read response; else 0
//! ```

/// Size of a frame header in bytes.
pub(super) const FRAME: usize = 32;

const _: () = assert!(FRAME == 1 + 1 + 2 + 4 + 8 + 4 + 4 + 8);

const IMM: u8 = 1;

/// What a frame asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// `length` bytes for `offset` of grant `key` follow.
    Write { key: u32, offset: u64, length: u32, imm: Option<u32> },
    /// A message of `length` bytes follows.
    Send { length: u32 },
    /// Asks for `length` bytes at `offset` of grant `key`.
    ReadRequest { key: u32, offset: u64, length: u32, read: u64 },
    /// The `length` bytes that `read` asked for follow.
    ReadResponse { length: u32, read: u64 },
}

/// Why 32 bytes are no frame.
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
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; FRAME] {
        let (kind, flags, key, offset, length, imm, read) = match *self {
            Frame::Write { key, offset, length, imm } => {
                (1, if imm.is_some() { IMM } else { 0 }, key, offset, length, imm.unwrap_or(0), 0)
            }
            Frame::Send { length } => (2, 0, 0, 0, length, 0, 0),
            Frame::ReadRequest { key, offset, length, read } => (3, 0, key, offset, length, 0, read),
            Frame::ReadResponse { length, read } => (4, 0, 0, 0, length, 0, read),
        };
        let mut out = [0; FRAME];
        out[0] = kind;
        out[1] = flags;
        out[4..8].copy_from_slice(&key.to_le_bytes());
        out[8..16].copy_from_slice(&offset.to_le_bytes());
        out[16..20].copy_from_slice(&length.to_le_bytes());
        out[20..24].copy_from_slice(&imm.to_le_bytes());
        out[24..32].copy_from_slice(&read.to_le_bytes());
        out
    }

    /// The inverse of [`Frame::encode`]. Takes only what `encode` can make: what a kind does not use must be 0.
    pub fn decode(bytes: &[u8; FRAME]) -> Result<Frame, BadFrame> {
        let [kind, flags, _, _, rest @ ..] = *bytes;
        let [k0, k1, k2, k3, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3, i0, i1, i2, i3, read @ ..] =
            rest;
        let key = u32::from_le_bytes([k0, k1, k2, k3]);
        let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let imm = u32::from_le_bytes([i0, i1, i2, i3]);
        let read = u64::from_le_bytes(read);
        let frame = match kind {
            1 => Frame::Write { key, offset, length, imm: (flags & IMM != 0).then_some(imm) },
            2 => Frame::Send { length },
            3 => Frame::ReadRequest { key, offset, length, read },
            4 => Frame::ReadResponse { length, read },
            _ => return Err(BadFrame { field: "kind", expected: "1 to 4", found: kind.into() }),
        };
        if flags & !IMM != 0 {
            return Err(BadFrame { field: "flags", expected: "0 or 1", found: flags.into() });
        }
        let canonical = frame.encode();
        if canonical == *bytes {
            return Ok(frame);
        }
        match canonical.iter().zip(bytes).position(|(a, b)| a != b) {
            None => Ok(frame),
            Some(at) => {
                let field = match at {
                    1 => "flags",
                    2..4 => "reserved",
                    4..8 => "key",
                    8..16 => "offset",
                    20..24 => "imm",
                    _ => "read",
                };
                Err(BadFrame { field, expected: "0 in this kind of frame", found: bytes[at].into() })
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
        let write = Frame::Write {
            key: 0x0403_0201,
            offset: 0x1817_1615_1413_1211,
            length: 0x2423_2221,
            imm: Some(0x3433_3231),
        };
        let golden = [
            1, 1, 0, 0, 0x01, 0x02, 0x03, 0x04, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22,
            0x23, 0x24, 0x31, 0x32, 0x33, 0x34, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(write.encode(), golden);
        let silent = Frame::Write { key: 7, offset: 0, length: 1, imm: None };
        let mut golden = [0; FRAME];
        (golden[0], golden[4], golden[16]) = (1, 7, 1);
        assert_eq!(silent.encode(), golden);
        let mut golden = [0; FRAME];
        (golden[0], golden[16], golden[17]) = (2, 0, 1);
        assert_eq!(Frame::Send { length: 256 }.encode(), golden);
        let mut golden = [0; FRAME];
        (golden[0], golden[4], golden[8], golden[16], golden[24]) = (3, 1, 2, 3, 4);
        assert_eq!(Frame::ReadRequest { key: 1, offset: 2, length: 3, read: 4 }.encode(), golden);
        let mut golden = [0; FRAME];
        (golden[0], golden[16], golden[31]) = (4, 3, 1);
        assert_eq!(Frame::ReadResponse { length: 3, read: 1 << 56 }.encode(), golden);
    }

    #[test]
    fn names_the_field_at_fault() {
        let fault = |at: usize, value: u8| {
            let mut bytes = Frame::Send { length: 1 }.encode();
            bytes[at] = value;
            Frame::decode(&bytes).unwrap_err().field
        };
        assert_eq!(fault(0, 0), "kind");
        assert_eq!(fault(0, 5), "kind");
        assert_eq!(fault(1, 1), "flags");
        assert_eq!(fault(1, 2), "flags");
        assert_eq!(fault(3, 1), "reserved");
        assert_eq!(fault(5, 1), "key");
        assert_eq!(fault(8, 1), "offset");
        assert_eq!(fault(20, 1), "imm");
        assert_eq!(fault(31, 1), "read");
    }

    proptest! {
        #[test]
        fn decodes_only_what_it_encodes(bytes: [u8; FRAME], kind in 0u8..6, flags in 0u8..3) {
            let mut bytes = bytes;
            bytes[0] = kind;
            bytes[1] = flags;
            bytes[2..4].fill(0);
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }

        #[test]
        fn round_trips(key: u32, offset: u64, length: u32, imm: Option<u32>, read: u64) {
            for frame in [
                Frame::Write { key, offset, length, imm },
                Frame::Send { length },
                Frame::ReadRequest { key, offset, length, read },
                Frame::ReadResponse { length, read },
            ] {
                prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
            }
        }
    }
}
