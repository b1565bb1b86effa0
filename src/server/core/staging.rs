//! The slots of a server thread, and the private copies that are taken of what workers wrote there.

use std::sync::Arc;

use crate::error::Malformed;
use crate::mem::{Arena, RegionId};
use crate::proto::{Chain, HEADER, ListName, RequestHeader, SparseBody, packed};
use crate::store::DensePiece;
use crate::transport::Loan;
use crate::types::{DirectoryEntry, Key, Rank};

/// The memory that workers write their requests into: for each rank `slots` slots of `slot_bytes`.
#[derive(Debug, Clone)]
pub struct Staging {
    /// All slots of one server thread.
    pub arena: Arc<Arena>,
    /// As the transport knows it.
    pub region: RegionId,
    /// Slots of one worker.
    pub slots: usize,
    /// Header + payload, a multiple of 64.
    pub slot_bytes: usize,
}

impl Staging {
    /// The first byte of a worker's slots, and their length.
    pub fn slice_of(&self, rank: Rank) -> (usize, usize) {
        let length = self.slots * self.slot_bytes;
        (rank as usize * length, length)
    }

    pub(super) fn slot_at(&self, rank: Rank, slot: u32) -> usize {
        self.slice_of(rank).0 + slot as usize * self.slot_bytes
    }

    /// A private copy of the header in a slot that was filled with `length` bytes, decoded.
    pub(super) fn header(&self, rank: Rank, slot: u32, length: u32) -> Result<RequestHeader, Malformed> {
        if slot as usize >= self.slots {
            return Err(Malformed::new("slot", format!("0 to {}", self.slots - 1), slot));
        }
        let mut bytes = [0u8; HEADER];
        self.arena.copy_out(self.slot_at(rank, slot), &mut bytes);
        let header = RequestHeader::decode(&bytes)?;
        if u64::from(header.length) + HEADER as u64 != u64::from(length) || length as usize > self.slot_bytes
        {
            let expected = format!("{} as the slot was filled", i64::from(length) - HEADER as i64);
            return Err(Malformed::new("length", expected, header.length));
        }
        Ok(header)
    }

    /// A private copy of the name of a list of keys at the head of a sparse body.
    pub(super) fn list_name(&self, at: usize) -> Result<ListName, Malformed> {
        let mut bytes = [0; ListName::ENCODED];
        self.arena.copy_out(at, &mut bytes);
        ListName::decode(&bytes)
    }

    /// Private copies of a sparse body's directory and keys; how many bytes that are. `body` fits the slot. `words` is used for packed
    /// keys.
    pub(super) fn keys(
        &self,
        at: usize,
        body: &SparseBody,
        directory: &mut Vec<DirectoryEntry>,
        keys: &mut Vec<Key>,
        words: &mut Vec<u64>,
    ) -> Result<u64, Malformed> {
        // All of them are written over.
        directory.resize(body.entries, DirectoryEntry { bucket: 0, keys: 0 });
        self.arena.copy_out(at + body.directory_at(), bytemuck::cast_slice_mut(directory));
        keys.resize(body.keys, 0);
        if body.packed {
            words.resize(body.key_bytes / 8, 0);
            self.arena.copy_out(at + body.keys_at(), bytemuck::cast_slice_mut(words));
            packed::decode(directory, words, keys)?;
        } else {
            self.arena.copy_out(at + body.keys_at(), bytemuck::cast_slice_mut(keys));
        }
        Ok((size_of_val(&directory[..]) + body.key_bytes) as u64)
    }
}

/// Bodies that workers have lent instead of filling their slots with them.
#[derive(Debug)]
pub(super) struct Loans {
    /// By rank, then slot.
    of: Vec<Option<Loan>>,
    slots: usize,
}

impl Loans {
    /// None of any worker.
    pub fn new(workers: usize, slots: usize) -> Loans {
        Loans { of: vec![None; workers * slots], slots }
    }

    /// What fills a slot from now on.
    pub fn set(&mut self, rank: Rank, slot: u32, loan: Option<Loan>) {
        self.of[rank as usize * self.slots + slot as usize] = loan;
    }

    /// Whether the body of what fills a slot lies in the worker's memory.
    pub fn lent(&self, rank: Rank, slot: u32) -> bool {
        self.of[rank as usize * self.slots + slot as usize].is_some()
    }

    /// What a dense push or set brought, in place from byte `body_at` on, be that of its slot or of a loan; refused when the body is
    /// not as long as the header and the table's chain say.
    pub fn dense<'a>(
        &'a self,
        staging: &'a Staging,
        (rank, slot, body_at): (Rank, u32, usize),
        header: &RequestHeader,
        chain: Chain,
    ) -> Result<DensePiece<'a>, Malformed> {
        let bytes = u64::from(header.count) * chain.value_bytes() as u64;
        if u64::from(header.length) != bytes {
            let expected = format!("{bytes} for {} values", header.count);
            return Err(Malformed::new("length", expected, header.length));
        }
        let loan = &self.of[rank as usize * self.slots + slot as usize];
        let arena = loan.as_ref().map_or(&staging.arena, |loan| &loan.arena);
        let values = chain.view(arena, body_at, header.count as usize);
        Ok(DensePiece { bucket: header.bucket, first: header.first, values })
    }
}
