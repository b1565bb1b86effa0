//! One block of memory, shared by the threads and devices that were told of it: a mapping of ours, or a program's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::error::{Error, Result};

/// A fixed block of memory whose address never changes while it lives.
///
/// Nothing in here hands out references: callers copy in, copy out, or take a raw pointer and argue for themselves
/// who else may touch the bytes at that moment.
#[derive(Debug)]
pub struct Arena {
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    /// Anonymous, page-aligned, zeroed at first; unmapped with the arena.
    Ours(MmapRaw),
    /// The program's: it outlives the arena.
    Lent { start: *mut u8, length: usize },
}

// SAFETY: the arena itself never touches what a lent pointer leads to; whoever lent it promised that threads and devices may.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Arena {
    /// Maps `bytes` zeroed bytes (at least one page), on huge pages where the system gives them.
    pub fn new(bytes: usize) -> Result<Arc<Arena>> {
        let bytes = bytes.max(4096);
        let map = MmapOptions::new()
            .len(bytes)
            .map_anon()
            .map_err(|e| Error::io("mmap", format!("{bytes} bytes"), e))?;
        let map = MmapRaw::from(map);
        // Only a hint: anonymous memory on huge pages reads about a third faster; without them all still works.
        let _ = map.advise(Advice::HugePage);
        Ok(Arc::new(Arena { memory: Memory::Ours(map) }))
    }

    /// An arena over `length` bytes that somebody else owns.
    ///
    /// # Safety
    /// They are one allocation, stay readable and writable where they are until the arena is dropped, and no reference to
    /// them is used while an operation may touch them.
    pub unsafe fn over(start: *mut u8, length: usize) -> Arc<Arena> {
        Arc::new(Arena { memory: Memory::Lent { start, length } })
    }

    /// Size in bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        match &self.memory {
            Memory::Ours(map) => map.len(),
            Memory::Lent { length, .. } => *length,
        }
    }

    /// The address of `length` bytes at `offset`, valid while `self` lives.
    ///
    /// # Panics
    /// When the range does not lie inside: an offset from a peer is checked before it gets here.
    pub fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(
            offset.checked_add(length).is_some_and(|end| end <= self.len()),
            "arena of {} bytes: {length} bytes at {offset} lie outside",
            self.len()
        );
        let start = match &self.memory {
            Memory::Ours(map) => map.as_mut_ptr(),
            Memory::Lent { start, .. } => *start,
        };
        // SAFETY: the assertion keeps `offset` within the memory, so the result is inside the same allocation.
        unsafe { start.add(offset) }
    }

    // The copies are not public: whether they are sound depends on who else was given the range, which only this crate knows.

    /// Copies `into.len()` bytes from `offset` out. The bytes may be changing under us (a peer may write them): what
    /// comes out is then some mixture, never an index that was validated before it changed.
    pub(crate) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `at` proved the source range; `into` is a distinct exclusive slice, so they cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    /// Copies `bytes` to `offset`. The caller owns that range: no peer was granted it and no operation is reading it.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` proved the target range; `bytes` is a shared slice elsewhere, so they cannot overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Stores a word, little-endian, at `offset`, a multiple of 8, for peers that read it: whoever sees it sees all that this
    /// thread copied in before. Only one thread writes that range.
    pub(crate) fn store_word(&self, offset: usize, word: u64) {
        let at = self.at(offset, 8).cast::<u64>();
        assert!(at.is_aligned(), "a word at byte {offset}");
        // SAFETY: `at` proved the range and the assertion the alignment; in this process it is only reached through raw
        // pointers, and written by this thread alone.
        unsafe { AtomicU64::from_ptr(at) }.store(word.to_le(), Ordering::Release);
    }

    /// Comes between a word that was stored and bytes that are copied in behind it: whoever sees some of these sees the word.
    pub(crate) fn begin_words(&self) {
        fence(Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_round_trip_and_start_zeroed() {
        let arena = Arena::new(8192).unwrap();
        let mut out = [1u8; 5];
        arena.copy_out(8187, &mut out);
        assert_eq!(out, [0; 5]);
        arena.copy_in(8187, b"hello");
        arena.copy_out(8187, &mut out);
        assert_eq!(&out, b"hello");
    }

    #[test]
    fn lent_memory_is_used_where_it_lies() {
        let mut lent = [7u8; 100];
        // SAFETY: the array outlives the arena and is not looked at meanwhile.
        let arena = unsafe { Arena::over(lent.as_mut_ptr(), 100) };
        assert_eq!(arena.len(), 100);
        arena.copy_in(98, b"hi");
        drop(arena);
        assert_eq!((lent[0], &lent[98..]), (7, &b"hi"[..]));
    }

    #[test]
    #[should_panic(expected = "lie outside")]
    fn outside_is_refused() {
        Arena::new(4096).unwrap().at(4090, 7);
    }
}
