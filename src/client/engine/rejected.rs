//! Pushes of which a server rejected pieces: what their tickets, and those of the pulls that belong to them, end with.

use super::{Engine, Pending};
use crate::client::frame::Outgoing;
use crate::error::Error;
use crate::proto::{ReplyHeader, ReplyKind};
use crate::types::{DirectoryEntry, Key, NonFinite, TableKind, TableSpec};

impl Engine {
    /// A server rejected pieces of a push, whose frame is among those that the same reply gives back. False when there is no
    /// such push under way.
    pub(super) fn rejected(&mut self, header: &ReplyHeader, returned: &[Outgoing]) -> bool {
        let rank = self.shared.rank;
        let Some(pending) = self.pending.get_mut(header.tag as usize).filter(|p| p.open > 0) else {
            return false;
        };
        let first = match header.kind {
            ReplyKind::Stale => pending.stale(header),
            _ => pending.not_finite(header, rank, returned),
        };
        let Some(first) = first else { return false };
        let rejection = pending.rejection.get_or_insert(first);
        if let Error::Stale { pieces, .. } | Error::NonFinite { pieces, .. } = rejection {
            *pieces += u64::from(header.count);
        }
        if pending.told_by.is_some() {
            self.tell_pull(header.tag as usize);
        }
        true
    }

    /// A pull that belongs to a push ends with what was rejected of that: nobody waits for the push itself.
    ///
    /// A server thread tells a rejection before it answers a pull of the same keys that has to see the push, so the pull is
    /// never done too early.
    pub fn join_halves(&mut self, push: usize, pull: usize) {
        self.pending[push].told_by = Some((pull, self.pending[pull].number));
        self.tell_pull(push);
    }

    fn tell_pull(&mut self, push: usize) {
        let Some((pull, number)) = self.pending[push].told_by else { return };
        let rejection = self.pending[push].rejection.clone();
        if let Some(pull) = self.pending.get_mut(pull).filter(|p| p.number == number) {
            pull.rejection = rejection;
        }
    }
}

impl Pending {
    /// Whether a server may reject pieces of it.
    pub(super) fn may_be_rejected(&self) -> bool {
        !self.is_pull() && (self.base.is_some() || self.spec.non_finite == NonFinite::Reject)
    }

    /// Whether the server may leave its values where they lie. Not where it rejects some: it has to fold the very bits that it has
    /// looked at, and what is lent can change.
    pub(super) fn lends(&self) -> bool {
        let dense = matches!(self.spec.kind, TableKind::Dense { .. });
        dense && !self.is_pull() && self.spec.non_finite != NonFinite::Reject
    }

    fn stale(&self, header: &ReplyHeader) -> Option<Error> {
        let (table, bucket, current) = (self.spec.name.clone(), header.bucket, header.version);
        self.base.map(|base| Error::Stale { table, bucket, base, current, pieces: 0 })
    }

    fn not_finite(&self, header: &ReplyHeader, worker: u32, returned: &[Outgoing]) -> Option<Error> {
        if self.is_pull() || self.spec.non_finite != NonFinite::Reject {
            return None;
        }
        let first = header.version;
        // Tags of pulls are numbers of another kind, and marks have none.
        let is_own = |f: &&Outgoing| f.header.kind == self.kind && f.header.tag == header.tag;
        let mut frames = returned.iter().filter(is_own);
        let last = frames.find_map(|f| last_key(&self.spec, f, header.bucket, first))?;
        Some(Error::NonFinite { table: self.spec.name.clone(), worker, first, last, pieces: 0 })
    }
}

/// The largest key of the piece for a bucket in a push's frame, if its smallest is `first`.
fn last_key(spec: &TableSpec, frame: &Outgoing, bucket: u32, first: Key) -> Option<Key> {
    let header = &frame.header;
    if let TableKind::Dense { .. } = spec.kind {
        let start = spec.segment_range(header.bucket)?.start() + u64::from(header.first);
        return (header.bucket == bucket && start == first).then(|| start + u64::from(header.count) - 1);
    }
    let entry_bytes = size_of::<DirectoryEntry>();
    let keys_at = header.first as usize * entry_bytes;
    let mut done = 0;
    for entry in 0..header.first as usize {
        let entry: DirectoryEntry = bytemuck::cast(frame.bytes::<8>(entry * entry_bytes)?);
        let keys = done..done + entry.keys as usize;
        done = keys.end;
        if entry.bucket == bucket {
            let key = |number: usize| frame.bytes(keys_at + number * 8).map(Key::from_ne_bytes);
            return if key(keys.start)? == first { key(keys.end - 1) } else { None };
        }
    }
    None
}
