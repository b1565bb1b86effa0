//! Memory that peers may reach: arenas, the handles by which transports know them, and the pool that lends pieces of them.
//!
//! An [`Arena`] is one page-aligned mapping, anonymous or, where peers on this machine may be shown it, of a memfd. A transport *registers* it and hands back a [`RegionId`]; a
//! [`RegionSlice`] names bytes of a registered arena. Arena bytes that a peer may write are never seen as `&[T]`:
//! they are copied out (`Arena::copy_out`) or read through the raw pointer after their completion was acquired.

mod arena;
mod atomic;
mod block;
pub mod epochs;
pub(crate) mod limits;
mod mapping;
mod page;
mod pool;
mod published;
pub(crate) mod ring;
mod slabs;
mod stack;
mod values;

pub use arena::Arena;
pub use block::{Block, Blocks};
pub use page::Page;
pub use pool::{Buf, Pool};
pub use published::{Pin, Published, Writing};
pub use slabs::{Slabs, prefetch};
pub use values::{Floats, Halves, Room, Values};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;

/// The alignment of slots, payloads and pooled buffers, in bytes: one cache line.
pub const ALIGNMENT: usize = 64;

/// `bytes` rounded up to [`ALIGNMENT`].
pub const fn align_up(bytes: usize) -> usize {
    (bytes + ALIGNMENT - 1) & !(ALIGNMENT - 1)
}

/// Who may be shown an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// This process and its devices: anonymous memory, which reads faster where the system has huge pages.
    #[default]
    Private,
    /// Peers on this machine as well: [`Arena::shared`].
    Shared,
    /// The same where there is room for it, within the limits of this process, else private: what is sent from there is copied.
    SharedIfPossible,
}

/// Memory that peers could not be shown was told of.
static SAID: AtomicBool = AtomicBool::new(false);

impl Kind {
    /// Zeroed memory of this kind.
    pub fn arena(self, bytes: usize) -> Result<Arc<Arena>> {
        match self {
            Kind::Private => Arena::new(bytes),
            Kind::Shared => Arena::shared(bytes),
            Kind::SharedIfPossible => Arena::shared(bytes).or_else(|why| {
                if !SAID.swap(true, Ordering::Relaxed) {
                    tracing::warn!("{bytes} bytes of memory are shown to no peer: {why} (said once)");
                }
                Arena::new(bytes)
            }),
        }
    }
}

/// A registered arena, as one transport knows it. Only meaningful to the transport that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegionId(pub u32);

/// What a peer may do with a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Remote read.
    Read,
    /// Remote write.
    Write,
    /// Remote read and write.
    ReadWrite,
}

impl Rights {
    /// Whether a peer may read.
    pub fn may_read(self) -> bool {
        matches!(self, Rights::Read | Rights::ReadWrite)
    }

    /// Whether a peer may write.
    pub fn may_write(self) -> bool {
        matches!(self, Rights::Write | Rights::ReadWrite)
    }
}

/// Bytes of a registered arena that the owner promises not to change until the transport reports the operation done.
#[derive(Debug, Clone)]
pub struct RegionSlice {
    /// The arena, kept alive as long as the operation may touch it.
    pub arena: Arc<Arena>,
    /// The arena as the transport knows it.
    pub region: RegionId,
    /// First byte within the arena.
    pub offset: usize,
    /// Number of bytes.
    pub length: usize,
}

impl RegionSlice {
    /// The first byte. Valid for `length` bytes as long as `self.arena` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.arena.at(self.offset, self.length)
    }
}

/// The (address, length, key, rights) by which one authenticated peer may reach part of our memory. 21 bytes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRegion {
    /// Virtual address (verbs) or 0 (tcp).
    pub address: u64,
    /// Number of bytes from `address`.
    pub length: u64,
    /// rkey (verbs) or grant number (tcp). Valid for one endpoint only.
    pub key: u32,
    /// What the peer may do.
    pub rights: Rights,
}

impl RemoteRegion {
    /// Size of the encoded form in bytes.
    pub const ENCODED: usize = 21;

    /// Little-endian address, length, key, rights (1 read, 2 write, 3 both).
    pub fn encode(&self) -> [u8; Self::ENCODED] {
        let mut out = [0; Self::ENCODED];
        out[0..8].copy_from_slice(&self.address.to_le_bytes());
        out[8..16].copy_from_slice(&self.length.to_le_bytes());
        out[16..20].copy_from_slice(&self.key.to_le_bytes());
        out[20] = match self.rights {
            Rights::Read => 1,
            Rights::Write => 2,
            Rights::ReadWrite => 3,
        };
        out
    }

    /// The inverse of [`RemoteRegion::encode`]; `None` when the length or the rights byte is wrong, or the end overflows.
    pub fn decode(bytes: &[u8]) -> Option<RemoteRegion> {
        if bytes.len() != Self::ENCODED {
            return None;
        }
        let address = u64::from_le_bytes(bytes[0..8].try_into().ok()?);
        let length = u64::from_le_bytes(bytes[8..16].try_into().ok()?);
        address.checked_add(length)?;
        let key = u32::from_le_bytes(bytes[16..20].try_into().ok()?);
        let rights = match bytes[20] {
            1 => Rights::Read,
            2 => Rights::Write,
            3 => Rights::ReadWrite,
            _ => return None,
        };
        Some(RemoteRegion { address, length, key, rights })
    }

    /// Whether `length` bytes at `offset` lie inside.
    pub fn contains(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.length)
    }
}
