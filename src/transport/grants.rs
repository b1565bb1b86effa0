//! What one peer may reach: the grants of one endpoint, looked up by key.

use std::sync::Arc;

use crate::error::Error;
use crate::mem::{Arena, RegionId, RegionSlice, Rights};

/// Part of an arena that one peer may reach.
#[derive(Debug)]
pub(super) struct Grant {
    pub key: u32,
    pub region: RegionId,
    pub arena: Arc<Arena>,
    /// First byte within the arena.
    pub offset: usize,
    pub length: usize,
    pub rights: Rights,
}

/// What a peer asked for and may not have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Denied {
    pub field: &'static str,
    pub expected: String,
    pub found: u64,
}

/// Which right a peer makes use of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// The grants of one endpoint. Keys are drawn from one counter for the whole transport, so another endpoint's key is
/// found in no table but its own.
#[derive(Debug, Default)]
pub(super) struct Grants {
    /// Ascending by key.
    sorted: Vec<Grant>,
}

impl Denied {
    /// The error that names the peer.
    pub fn by(self, peer: &str) -> Error {
        Error::protocol(peer, self.field, self.expected, self.found)
    }
}

impl Grants {
    /// Whether the key is in use here.
    pub fn has(&self, key: u32) -> bool {
        self.place(key).is_ok()
    }

    /// Whether one of them lies in this region.
    pub fn lie_in(&self, region: RegionId) -> bool {
        self.sorted.iter().any(|g| g.region == region)
    }

    /// Adds a grant whose key is not in use.
    pub fn add(&mut self, grant: Grant) {
        let (Ok(at) | Err(at)) = self.place(grant.key);
        self.sorted.insert(at, grant);
    }

    /// Takes a grant back; false when there is none.
    pub fn remove(&mut self, key: u32) -> bool {
        match self.place(key) {
            Ok(at) => {
                self.sorted.remove(at);
                true
            }
            Err(_) => false,
        }
    }

    /// The local bytes behind (`key`, `offset`, `length`), if the peer may reach all of them in this way.
    pub fn admit(&self, key: u32, offset: u64, length: u32, access: Access) -> Result<RegionSlice, Denied> {
        let (grant, offset) = self.find(key, offset, length, access)?;
        Ok(RegionSlice { arena: grant.arena.clone(), region: grant.region, offset, length: length as usize })
    }

    /// The grant that [`Grants::admit`] finds, and where in its arena the bytes begin.
    pub fn find(
        &self,
        key: u32,
        offset: u64,
        length: u32,
        access: Access,
    ) -> Result<(&Grant, usize), Denied> {
        let Ok(at) = self.place(key) else {
            return Err(Denied {
                field: "key",
                expected: "a key granted to this peer".into(),
                found: key.into(),
            });
        };
        let grant = &self.sorted[at];
        let (allowed, right) = match access {
            Access::Read => (grant.rights.may_read(), "a grant with the right to read"),
            Access::Write => (grant.rights.may_write(), "a grant with the right to write"),
        };
        if !allowed {
            return Err(Denied { field: "rights", expected: right.into(), found: key.into() });
        }
        let room = grant.length as u64;
        if offset > room {
            return Err(Denied { field: "offset", expected: format!("at most {room}"), found: offset });
        }
        if u64::from(length) > room - offset {
            return Err(Denied {
                field: "length",
                expected: format!("at most {} at offset {offset}", room - offset),
                found: length.into(),
            });
        }
        // It fits in a usize, as the length does: neither is larger than `grant.length`.
        Ok((grant, grant.offset + offset as usize))
    }

    fn place(&self, key: u32) -> Result<usize, usize> {
        self.sorted.binary_search_by_key(&key, |g| g.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants() -> Grants {
        let arena = Arena::new(4096).unwrap();
        let mut grants = Grants::default();
        for (key, rights) in [(9, Rights::ReadWrite), (3, Rights::Read), (5, Rights::Write)] {
            let (arena, region) = (arena.clone(), RegionId(0));
            grants.add(Grant { key, region, arena, offset: 1000, length: 100, rights });
        }
        grants
    }

    #[test]
    fn admits_what_was_granted_and_no_byte_more() {
        let grants = grants();
        let slice = grants.admit(9, 10, 90, Access::Read).unwrap();
        assert_eq!((slice.offset, slice.length), (1010, 90));
        assert!(grants.admit(9, 100, 0, Access::Write).is_ok());
        let field =
            |key, offset, length, access| grants.admit(key, offset, length, access).unwrap_err().field;
        assert_eq!(field(9, 101, 0, Access::Read), "offset");
        assert_eq!(field(9, u64::MAX, 1, Access::Read), "offset");
        assert_eq!(field(9, 10, 91, Access::Read), "length");
        assert_eq!(field(9, 0, u32::MAX, Access::Read), "length");
        assert_eq!(field(3, 0, 1, Access::Write), "rights");
        assert_eq!(field(5, 0, 1, Access::Read), "rights");
        assert_eq!(field(4, 0, 1, Access::Read), "key");
    }

    #[test]
    fn a_grant_taken_back_is_unknown() {
        let mut grants = grants();
        assert!(grants.has(5) && grants.remove(5));
        assert!(!grants.has(5) && !grants.remove(5));
        assert_eq!(grants.admit(5, 0, 1, Access::Write).unwrap_err().field, "key");
        assert!(grants.admit(9, 0, 1, Access::Write).is_ok() && grants.admit(3, 0, 1, Access::Read).is_ok());
    }
}
