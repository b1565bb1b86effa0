//! The registered arenas of a transport that emulates one-sided operations: what may be granted, posted, and where to.

use std::sync::Arc;

use super::grants::{Grant, Grants};
use super::{Read, Refusal, Write};
use crate::error::{Error, Result};
use crate::mem::{Arena, RegionId, RemoteRegion, Rights};

/// The place at the peer that an operation names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub key: u32,
    /// First byte within the grant.
    pub offset: u64,
    pub length: u32,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Arenas {
    /// By region id; places of arenas that were let go of are used again.
    registered: Vec<Option<Arc<Arena>>>,
    /// Longest write or read, in bytes; at most `u32::MAX`.
    longest: usize,
    next_key: u32,
}

impl Arenas {
    /// None yet; no operation may exceed `longest` bytes.
    pub fn new(longest: usize) -> Arenas {
        Arenas { registered: Vec::new(), longest, next_key: 1 }
    }

    /// Makes an arena known.
    pub fn register(&mut self, arena: Arc<Arena>) -> Result<RegionId> {
        let place = self.registered.iter().position(Option::is_none).unwrap_or(self.registered.len());
        let id = u32::try_from(place).map_err(|_| Error::Limit {
            resource: "registered arenas".to_owned(),
            limit: u32::MAX.into(),
            asked: place as u64 + 1,
        })?;
        self.register_as(RegionId(id), arena);
        Ok(RegionId(id))
    }

    /// The same by a number that another transport gave it.
    pub fn register_as(&mut self, region: RegionId, arena: Arc<Arena>) {
        trace(&arena, "registered");
        let place = region.0 as usize;
        if self.registered.len() <= place {
            self.registered.resize(place + 1, None);
        }
        self.registered[place] = Some(arena);
    }

    /// Lets go of an arena that no grant and no operation uses.
    pub fn unregister(&mut self, region: RegionId) {
        if let Some(arena) = self.registered.get_mut(region.0 as usize).and_then(Option::take) {
            trace(&arena, "unregistered");
        }
    }

    /// All of them, in bytes.
    pub fn bytes(&self) -> usize {
        self.registered.iter().flatten().map(|a| a.len()).sum()
    }

    /// Adds a grant for `length` bytes at `offset` of an arena to an endpoint's.
    pub fn grant(
        &mut self,
        grants: &mut Grants,
        region: RegionId,
        (offset, length): (usize, usize),
        rights: Rights,
    ) -> Result<RemoteRegion> {
        // One counter for all endpoints; it skips what is in use here when it comes round after 2^32 grants.
        while grants.has(self.next_key) {
            self.next_key = self.next_key.wrapping_add(1);
        }
        let key = self.next_key;
        let remote = self.grant_as(grants, region, (offset, length), rights, key)?;
        self.next_key = key.wrapping_add(1);
        Ok(remote)
    }

    /// The same by a key that another transport gave it, and that is not in use here.
    pub fn grant_as(
        &mut self,
        grants: &mut Grants,
        region: RegionId,
        (offset, length): (usize, usize),
        rights: Rights,
        key: u32,
    ) -> Result<RemoteRegion> {
        let Some(Some(arena)) = self.registered.get(region.0 as usize) else {
            let reason = "the region was not registered with this transport".to_owned();
            return Err(Error::Misuse { call: "authorise", reason });
        };
        if offset.checked_add(length).is_none_or(|end| end > arena.len()) {
            return Err(Error::Limit {
                resource: format!("arena {}", region.0),
                limit: arena.len() as u64,
                asked: (offset as u64).saturating_add(length as u64),
            });
        }
        grants.add(Grant { key, region, arena: arena.clone(), offset, length, rights });
        Ok(RemoteRegion { address: 0, length: length as u64, key, rights })
    }

    /// Where a write goes; refused when it can't be right.
    pub fn admit_write(&self, write: &Write) -> Result<Target, Refusal> {
        if let Some(body) = &write.body {
            self.admit_local(body.region(), body.place(), body.length())?;
        }
        if !write.remote.rights.may_write() {
            return Err(Refusal::OutOfBounds("the remote region may not be written".to_owned()));
        }
        self.admit_remote(&write.remote, write.offset, write.length())
    }

    /// Where a read comes from; refused when it can't be right.
    pub fn admit_read(&self, read: &Read) -> Result<Target, Refusal> {
        let local = &read.local;
        self.admit_local(local.region, (&local.arena, local.offset), local.length)?;
        if !read.remote.rights.may_read() {
            return Err(Refusal::OutOfBounds("the remote region may not be read".to_owned()));
        }
        self.admit_remote(&read.remote, read.offset, read.local.length)
    }

    fn admit_remote(&self, remote: &RemoteRegion, offset: u64, length: usize) -> Result<Target, Refusal> {
        if length > self.longest {
            let limit = self.longest;
            return Err(Refusal::OutOfBounds(format!("{length} bytes exceed the limit of {limit}")));
        }
        let outside = || {
            let room = remote.length;
            Refusal::OutOfBounds(format!(
                "{length} bytes at {offset} lie outside the remote region of {room}"
            ))
        };
        // `longest` fits in 32 bits.
        let short = u32::try_from(length).map_err(|_| outside())?;
        if !remote.contains(offset, length as u64) {
            return Err(outside());
        }
        let within = remote.address.checked_add(offset).ok_or_else(outside)?;
        Ok(Target { key: remote.key, offset: within, length: short })
    }

    fn admit_local(
        &self,
        region: RegionId,
        (arena, offset): (&Arc<Arena>, usize),
        length: usize,
    ) -> Result<(), Refusal> {
        let registered =
            matches!(self.registered.get(region.0 as usize), Some(Some(a)) if Arc::ptr_eq(a, arena));
        if !registered {
            return Err(Refusal::OutOfBounds(
                "the local bytes' arena is not registered with this transport".into(),
            ));
        }
        if offset.checked_add(length).is_none_or(|end| end > arena.len()) {
            return Err(Refusal::OutOfBounds("the local bytes do not lie in their arena".into()));
        }
        Ok(())
    }
}

/// Says which memory may be written from outside. A test compares it with what is.
fn trace(arena: &Arena, event: &str) {
    let (address, bytes) = (arena.at(0, 0) as usize, arena.len());
    tracing::trace!(target: "windlass::region", address, bytes, "{event}");
}
