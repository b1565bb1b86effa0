//! The address bytes that one end of a connection gives the other.
//!
//! ```text
//!  0         1      2     3       4     6      7            8        12    16    32            36
//!  | version | link | mtu | reads | lid | side | reserved 0 | number | psn | gid | max message |
//! ```
//! All numbers are little-endian. `link`: 0 InfiniBand, 1 RoCE v1, 2 RoCE v2. `mtu`: 1 to 5 for 256 to 4096 bytes.
//! `reads`: how many reads of the peer this end serves at once. `side`: 0 passive, 1 active.

use crate::error::{Error, Result};
use crate::transport::Side;

/// What kind of address a GID is; on the wire as its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand: peers are reached by LID.
    InfiniBand = 0,
    /// RoCE v1: within one Ethernet segment.
    RoceV1 = 1,
    /// RoCE v2: over UDP/IP.
    RoceV2 = 2,
}

impl GidKind {
    /// From the number of `enum ibv_gid_type`.
    pub fn from_raw(raw: u32) -> Option<GidKind> {
        match raw {
            0 => Some(GidKind::InfiniBand),
            1 => Some(GidKind::RoceV1),
            2 => Some(GidKind::RoceV2),
            _ => None,
        }
    }
}

/// Where a queue pair is reached, and what it can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The side of the connection that this end is.
    pub side: Side,
    /// What `gid` is.
    pub kind: GidKind,
    /// 1 to 5 for 256 to 4096 bytes.
    pub mtu: u8,
    /// How many reads of the peer this end serves at once.
    pub reads: u8,
    /// Its port's local identifier, by which InfiniBand reaches it.
    pub lid: u16,
    /// The queue pair's, of 24 bits, not 0.
    pub number: u32,
    /// Its first packet's number, of 24 bits.
    pub psn: u32,
    /// In network byte order.
    pub gid: [u8; 16],
    /// Longest message in bytes.
    pub max_message: u32,
}

const VERSION: u8 = 1;

impl Address {
    /// Length of the encoded form in bytes.
    pub const ENCODED: usize = 36;

    /// The bytes for the other end.
    pub fn encode(&self) -> [u8; Self::ENCODED] {
        let mut out = [0; Self::ENCODED];
        out[0] = VERSION;
        out[1] = self.kind as u8;
        out[2] = self.mtu;
        out[3] = self.reads;
        out[4..6].copy_from_slice(&self.lid.to_le_bytes());
        out[6] = u8::from(self.side == Side::Active);
        out[8..12].copy_from_slice(&self.number.to_le_bytes());
        out[12..16].copy_from_slice(&self.psn.to_le_bytes());
        out[16..32].copy_from_slice(&self.gid);
        out[32..36].copy_from_slice(&self.max_message.to_le_bytes());
        out
    }

    /// The inverse; `peer` is named in the error.
    pub fn decode(bytes: &[u8], peer: &str) -> Result<Address> {
        let bytes: &[u8; Self::ENCODED] = bytes.try_into().map_err(|_| {
            Error::protocol(peer, "verbs address", format!("{} bytes", Self::ENCODED), bytes.len())
        })?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let within = |field: &'static str, expected: &str, found: u32, ok: bool| {
            if ok { Ok(()) } else { Err(Error::protocol(peer, field, expected, found)) }
        };
        within("verbs address version", "1", bytes[0].into(), bytes[0] == VERSION)?;
        within("verbs address mtu", "1 to 5", bytes[2].into(), (1..=5).contains(&bytes[2]))?;
        within("verbs address side", "0 or 1", bytes[6].into(), bytes[6] <= 1)?;
        within("verbs address number", "1 to 2^24 - 1", word(8), (1..1 << 24).contains(&word(8)))?;
        within("verbs address psn", "below 2^24", word(12), word(12) < 1 << 24)?;
        within("verbs address max message", "1 or more", word(32), word(32) > 0)?;
        let kind = GidKind::from_raw(bytes[1].into())
            .ok_or_else(|| Error::protocol(peer, "verbs address link", "0 to 2", bytes[1]))?;
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[16..32]);
        Ok(Address {
            side: if bytes[6] == 1 { Side::Active } else { Side::Passive },
            kind,
            mtu: bytes[2],
            reads: bytes[3],
            lid: u16::from_le_bytes([bytes[4], bytes[5]]),
            number: word(8),
            psn: word(12),
            gid,
            max_message: word(32),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Address {
        Address {
            side: Side::Active,
            kind: GidKind::RoceV2,
            mtu: 5,
            reads: 16,
            lid: 0x0102,
            number: 0x000a_0b0c,
            psn: 0x00ab_cdef,
            gid: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 9, 0, 1],
            max_message: 1 << 23,
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = [
            1, 2, 5, 16, 2, 1, 1, 0, 0x0c, 0x0b, 0x0a, 0, 0xef, 0xcd, 0xab, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0xff, 0xff, 10, 9, 0, 1, 0, 0, 0x80, 0,
        ];
        assert_eq!(sample().encode(), bytes);
        assert_eq!(Address::decode(&bytes, "peer").unwrap(), sample());
    }

    #[test]
    fn what_a_peer_could_get_wrong_is_refused() {
        let good = sample().encode();
        assert!(Address::decode(&good[..35], "peer").is_err());
        assert!(Address::decode(&[], "peer").is_err());
        for (at, value) in [(0, 2), (1, 3), (2, 0), (2, 6), (6, 2), (11, 1), (15, 1)] {
            let mut bad = good;
            bad[at] = value;
            let error = Address::decode(&bad, "worker 3").unwrap_err();
            assert_eq!(error.code(), 6, "{error}");
            assert!(error.to_string().contains("worker 3"));
        }
    }
}
