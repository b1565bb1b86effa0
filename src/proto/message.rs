//! What a worker tells a server thread outside the slots, in the order of its requests.
//!
//! ```text
//!  1 ring read  kind u8 | replies u64                how many replies it has read
//!  2 announce   kind u8 | number u8 | region 21      a region that pulls may name from now on
//!  3 withdraw   kind u8 | number u8                  one that none will name any more
//! ```
//! Regions are numbered from 1 to 63; 0 is the receive memory, which comes with the endpoint. They end with the endpoint. The
//! server thread acknowledges a withdrawal in a reply's `withdrawn`.

use crate::error::Malformed;
use crate::mem::RemoteRegion;

/// The most regions of a worker that a server thread knows, with the receive memory: one bit each in a reply's `withdrawn`.
pub const MAX_REGIONS: usize = 64;

/// The most messages that a worker has under way to one server thread: a ring read for each quarter of its ring, of at most 7 entries
/// where a quarter is one entry; and of each region an announcement and a withdrawal, since it is announced anew only after the server
/// has acknowledged that.
pub const MOST_UNDER_WAY: usize = 7 + 2 * (MAX_REGIONS - 1);

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerMessage {
    /// So many replies were read from the ring.
    RingRead(u64),
    /// Pulls may name this region from now on.
    Announce {
        /// From 1 to 63.
        number: u8,
        /// Where it is.
        region: RemoteRegion,
    },
    /// No pull will name this region any more.
    Withdraw {
        /// From 1 to 63.
        number: u8,
    },
}

impl WorkerMessage {
    /// The longest one, in bytes.
    pub const LONGEST: usize = 2 + RemoteRegion::ENCODED;

    /// The bytes drawn above, and how many of them count.
    pub fn encode(&self) -> ([u8; Self::LONGEST], usize) {
        let mut out = [0; Self::LONGEST];
        let length = match self {
            WorkerMessage::RingRead(read) => {
                out[0] = 1;
                out[1..9].copy_from_slice(&read.to_le_bytes());
                9
            }
            WorkerMessage::Announce { number, region } => {
                out[..2].copy_from_slice(&[2, *number]);
                out[2..].copy_from_slice(&region.encode());
                Self::LONGEST
            }
            WorkerMessage::Withdraw { number } => {
                out[..2].copy_from_slice(&[3, *number]);
                2
            }
        };
        (out, length)
    }

    /// The inverse of [`WorkerMessage::encode`].
    pub fn decode(bytes: &[u8]) -> Result<WorkerMessage, Malformed> {
        let malformed = || {
            let expected = "a ring read of 9 bytes, an announcement of 23 or a withdrawal of 2";
            let kind = bytes.first().map_or("none".to_owned(), u8::to_string);
            Malformed::new("message", expected, format!("kind {kind} with {} bytes", bytes.len()))
        };
        let numbered = |number: u8| match number {
            1..64 => Ok(number),
            _ => Err(Malformed::new("region", "1 to 63", number)),
        };
        match bytes {
            [1, read @ ..] => {
                Ok(WorkerMessage::RingRead(u64::from_le_bytes(read.try_into().map_err(|_| malformed())?)))
            }
            [2, number, region @ ..] if region.len() == RemoteRegion::ENCODED => {
                let region = RemoteRegion::decode(region)
                    .ok_or_else(|| Malformed::new("region", "a region", "malformed bytes"))?;
                Ok(WorkerMessage::Announce { number: numbered(*number)?, region })
            }
            [3, number] => Ok(WorkerMessage::Withdraw { number: numbered(*number)? }),
            _ => Err(malformed()),
        }
    }
}

const _: () = assert!(MAX_REGIONS == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Rights;

    fn hex(message: WorkerMessage) -> String {
        let (bytes, length) = message.encode();
        assert_eq!(WorkerMessage::decode(&bytes[..length]), Ok(message));
        bytes[..length].iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(WorkerMessage::RingRead(0x0102)), "010201000000000000");
        let region = RemoteRegion { address: 0x10, length: 0x20, key: 0x30, rights: Rights::Write };
        let announce = WorkerMessage::Announce { number: 63, region };
        assert_eq!(hex(announce), "023f100000000000000020000000000000003000000002");
        assert_eq!(hex(WorkerMessage::Withdraw { number: 1 }), "0301");
    }

    #[test]
    fn other_bytes_are_refused_by_field() {
        let field = |bytes: &[u8]| WorkerMessage::decode(bytes).unwrap_err().field;
        for bytes in [&[][..], b"abc", &[1; 8], &[2; 22], &[3; 3], &[4, 1]] {
            assert_eq!(field(bytes), "message", "{bytes:?}");
        }
        assert_eq!(field(&[3, 0]), "region");
        assert_eq!(field(&[3, 64]), "region");
        let mut announce = [2u8; 23];
        announce[22] = 9;
        assert_eq!(field(&announce), "region");
    }
}
