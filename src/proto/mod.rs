//! What peers say to each other: the headers of the data path, and (later in this module) the control messages.

pub mod bootstrap;
pub mod control;
pub mod filter;
pub mod handshake;
mod layout;
mod list;
mod message;
pub mod packed;
mod reply;
mod request;
pub mod secret;
mod wire;

pub use control::ThreadStats;
pub use filter::{Chain, Chains};
pub use layout::SparseBody;
pub use list::{KeysAt, ListName};
pub use message::{MAX_REGIONS, MOST_UNDER_WAY, WorkerMessage};
pub use reply::{ReplyHeader, ReplyKind};
pub use request::{NO_BASE, RequestHeader, RequestKind};

use crate::error::Malformed;
use crate::kernels::header_crc;

/// Length of every data-path header in bytes.
pub const HEADER: usize = 64;

/// Little-endian fields at fixed places of a header. Offsets are constants of the callers, all within 64 bytes.
struct Fields<'a>(&'a [u8; HEADER]);

impl Fields<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    /// Magic and version at the start, and in the last four bytes the CRC32C over all before it.
    fn check(&self, magic: u16, version: u8) -> Result<(), Malformed> {
        if self.u16(0) != magic {
            return Err(Malformed::new("magic", format!("{magic:#06x}"), format!("{:#06x}", self.u16(0))));
        }
        if self.0[2] != version {
            return Err(Malformed::new("version", version.to_string(), self.0[2]));
        }
        let computed = header_crc(self.0);
        if computed != self.u32(60) {
            return Err(Malformed::new(
                "check",
                format!("{computed:#010x}"),
                format!("{:#010x}", self.u32(60)),
            ));
        }
        Ok(())
    }
}

/// Writes little-endian fields and, last, the CRC32C.
struct Builder([u8; HEADER]);

impl Builder {
    fn new() -> Builder {
        Builder([0; HEADER])
    }

    fn put<const N: usize>(mut self, at: usize, bytes: [u8; N]) -> Builder {
        self.0[at..at + N].copy_from_slice(&bytes);
        self
    }

    fn finish(mut self) -> [u8; HEADER] {
        let check = header_crc(&self.0);
        self.0[60..64].copy_from_slice(&check.to_le_bytes());
        self.0
    }
}
