//! One block of memory, shared by the threads and devices that were told of it: a mapping of ours, a program's own, or a
//! peer's that we may only read.
//!
//! Memory that other processes of this machine may be shown is a memfd, filled and sealed as soon as it is mapped:
//!
//! - it can't shrink, so that nobody who reads it is killed by SIGBUS;
//! - no new mapping of it, nor a descriptor, can write to it, and nobody can make a mapping for reading one for writing. Who was given
//!   its descriptor can read all of it for as long as it likes, and change nothing;
//! - it has no holes: a hole of such a file becomes a page when somebody reads it, and it is the reader whom the system charges. So
//!   its maker fills it, which also tells him at once when the system has no such memory. A page can only be taken out again by who may write,
//!   so that the same seal keeps it full.
//!
//! It lies on huge pages where the system has some (see `mapping`), as anonymous memory does: what is folded from there and into it is
//! read a third faster.
//!
//! Whoever maps a peer's memory checks all of this ([`Arena::of_peer`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

use super::limits::{check_file, no_descriptor, unmapped};
use super::mapping::{Mapping, Use};
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
    /// The same in a memfd.
    Shared { map: Mapping, file: OwnedFd },
    /// A peer's memfd, or one that a peer writes, too. It stays when the peer is gone.
    Peers(Mapping),
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
        let map =
            MmapOptions::new().len(bytes).map_anon().map_err(|e| unmapped(format!("{bytes} bytes"), e))?;
        let map = MmapRaw::from(map);
        // Only a hint: anonymous memory on huge pages reads about a third faster; without them all still works.
        let _ = map.advise(Advice::HugePage);
        Ok(Arc::new(Arena { memory: Memory::Ours(map) }))
    }

    /// Keeps these bytes, in whole pages, off huge pages, where it is our own.
    pub(super) fn on_small_pages(&self, bytes: std::ops::Range<usize>) {
        if let Memory::Ours(map) = &self.memory {
            // Only a hint, as that for huge pages.
            let _ = map.advise_range(Advice::NoHugePage, bytes.start, bytes.len());
        }
    }

    /// Maps `bytes` zeroed bytes (at least one page) that other processes can be shown, and can't write. All of it is taken from the
    /// system here.
    pub fn shared(bytes: usize) -> Result<Arc<Arena>> {
        let (map, file) = memfd(bytes)?;
        seal(&file, SHOWN | SealFlags::SEAL)?;
        map.collapse();
        Ok(Arc::new(Arena { memory: Memory::Shared { map, file } }))
    }

    /// The same for two processes that both write it, with the descriptor by which the other one maps it.
    pub(crate) fn both_write(bytes: usize) -> Result<(Arc<Arena>, OwnedFd)> {
        let (map, file) = memfd(bytes)?;
        seal(&file, FIXED | SealFlags::SEAL)?;
        Ok((Arc::new(Arena { memory: Memory::Peers(map) }), file))
    }

    /// Maps `bytes` of what a peer made by [`Arena::shared`]: for reading only, nothing may be copied in.
    ///
    /// # Errors
    /// [`Error::Protocol`] when it is no memfd of that size that was filled and sealed so, [`Error::Io`] when there is no room for it here.
    pub(crate) fn of_peer(file: &OwnedFd, bytes: usize, peer: &str) -> Result<Arc<Arena>> {
        check(file, SHOWN, bytes, peer)?;
        let map = Mapping::of(file, bytes, Use::Read).map_err(|e| unmapped(shown_by(peer, bytes), e))?;
        Ok(Arc::new(Arena { memory: Memory::Peers(map) }))
    }

    /// Maps `bytes` of what a peer made by [`Arena::both_write`]. The peer, who may write, can take pages out again: each that we then
    /// touch is charged to us, and `bytes` is the most that this can cost.
    ///
    /// # Errors
    /// As [`Arena::of_peer`].
    pub(crate) fn with_peer(file: &OwnedFd, bytes: usize, peer: &str) -> Result<Arc<Arena>> {
        check(file, FIXED, bytes, peer)?;
        let map = Mapping::of(file, bytes, Use::Write).map_err(|e| unmapped(shown_by(peer, bytes), e))?;
        Ok(Arc::new(Arena { memory: Memory::Peers(map) }))
    }

    /// By what other processes of this machine can be shown it; `None` when they can't.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.memory {
            Memory::Shared { file, .. } => Some(file.as_fd()),
            Memory::Ours(_) | Memory::Peers(_) | Memory::Lent { .. } => None,
        }
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
            Memory::Shared { map, .. } | Memory::Peers(map) => map.len(),
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
            Memory::Shared { map, .. } | Memory::Peers(map) => map.start(),
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

    /// Copies `length` bytes at `from` of another arena to `offset`, which the caller owns. As with [`Arena::copy_out`] the source
    /// may be changing.
    pub(crate) fn copy_from(&self, offset: usize, source: &Arena, from: usize, length: usize) {
        let (from, to) = (source.at(from, length), self.at(offset, length));
        // SAFETY: `at` proved both ranges. They may be one and the same where a process talks to itself: `copy` allows that.
        unsafe { std::ptr::copy(from, to, length) }
    }
}

/// Its length stays as it is.
const FIXED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
/// And so do its bytes, but for what its maker writes through the mapping that he has; nor can a page be taken out.
const SHOWN: SealFlags = FIXED.union(SealFlags::FUTURE_WRITE);

/// A mapping of a file of zeros without holes. These are written by a system call: where there is no memory that one fails, while
/// touching the mapping would kill the process.
fn memfd(bytes: usize) -> Result<(Mapping, OwnedFd)> {
    let bytes = bytes.max(4096);
    let name = || format!("{bytes} bytes of memory that peers are shown");
    let (mut filled, end) = (0, bytes.next_multiple_of(4096));
    check_file(&"a file, which memory that peers are shown is", end as u64)?;
    let file = rustix::fs::memfd_create("windlass", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|e| no_descriptor(&name(), "memfd_create", e.into()))?;
    let zeros = vec![0; 256 << 10];
    while filled < end {
        let part = &zeros[..zeros.len().min(end - filled)];
        match rustix::io::write(&file, part) {
            Ok(0) => return Err(Error::io("fill", name(), std::io::ErrorKind::WriteZero.into())),
            Ok(written) => filled += written,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("fill", name(), e.into())),
        }
    }
    let map = Mapping::of(&file, bytes, Use::Write).map_err(|e| unmapped(name(), e))?;
    Ok((map, file))
}

fn seal(file: &OwnedFd, seals: SealFlags) -> Result<()> {
    rustix::fs::fcntl_add_seals(file, seals).map_err(|e| Error::io("seal", "a memfd", e.into()))
}

fn shown_by(peer: &str, bytes: usize) -> String {
    format!("{bytes} bytes that {peer} shows")
}

/// Refuses a descriptor whose mapping could fault, change its length or cost us memory. Only a memfd can carry the seals, and only
/// those that are not on reserved huge pages (hugetlbfs): a peer can take these out of its file again.
fn check(file: &OwnedFd, seals: SealFlags, bytes: usize, peer: &str) -> Result<()> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let refuse = |expected: &str, found: &dyn std::fmt::Display| {
        Err(Error::protocol(peer, "descriptor", expected, found))
    };
    let found = rustix::fs::fcntl_get_seals(file);
    if !found.is_ok_and(|found| found.contains(seals)) {
        return refuse(&format!("a memfd with the seals {seals:?}"), &format!("{found:?}"));
    }
    let magic = rustix::fs::fstatfs(file).map(|s| s.f_type);
    if magic != Ok(TMPFS_MAGIC) {
        return refuse("memory that is not on reserved huge pages", &format!("file system {magic:x?}"));
    }
    let size = rustix::fs::fstat(file).map_or(0, |s| u64::try_from(s.st_size).unwrap_or(0));
    if bytes == 0 || size < bytes as u64 {
        return refuse(&format!("at least {} bytes", bytes.max(1)), &size);
    }
    // Not the blocks of `fstat`: those beyond the end of a file count there, too. The end is where the last hole begins.
    let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(0)).unwrap_or(0);
    if hole < bytes as u64 {
        return refuse(&format!("{bytes} bytes without a hole"), &format!("one at {hole}"));
    }
    Ok(())
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
    fn what_is_shown_to_a_peer_can_be_read_and_nothing_else() {
        let ours = Arena::shared(8192).unwrap();
        let file = ours.file().unwrap().try_clone_to_owned().unwrap();
        let theirs = Arena::of_peer(&file, 8192, "a peer").unwrap();
        ours.copy_in(8187, b"hello");
        let mut out = [0; 5];
        theirs.copy_out(8187, &mut out);
        assert_eq!(&out, b"hello");
        assert!(theirs.file().is_none(), "it is not ours to hand on");
        // Neither by the descriptor, nor by one that is opened anew.
        assert!(MmapOptions::new().len(8192).map_raw(&file).is_err());
        let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        if let Ok(writable) = std::fs::File::options().read(true).write(true).open(again) {
            assert!(MmapOptions::new().len(8192).map_raw(&writable).is_err());
            assert!(writable.set_len(0).is_err() && writable.set_len(1 << 20).is_err());
        }
        assert!(rustix::io::pwrite(&file, b"x", 0).is_err());
        let punched = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(&file, punched, 0, 4096).is_err());
        // Nor by the mapping.
        let at = theirs.at(0, 8192).cast();
        // SAFETY: the range is the mapping's; to allow more changes nothing for those who read.
        let upgraded = unsafe { libc::mprotect(at, 8192, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!((upgraded, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EACCES)));
        drop((ours, file));
        theirs.copy_out(8187, &mut out);
        assert_eq!(&out, b"hello", "it stays when its maker is gone");
    }

    #[test]
    fn what_could_fault_is_not_mapped() {
        let refused = |file: &OwnedFd, bytes| match Arena::of_peer(file, bytes, "server 3").unwrap_err() {
            Error::Protocol { peer, field, .. } => {
                assert_eq!((peer.as_str(), field), ("server 3", "descriptor"))
            }
            other => panic!("{other}"),
        };
        let made = |seals| {
            let (_, file) = memfd(8192).unwrap();
            seal(&file, seals).unwrap();
            file
        };
        for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::FUTURE_WRITE] {
            refused(&made(SHOWN - missing), 8192);
        }
        let whole = made(SHOWN);
        refused(&whole, 8193);
        refused(&whole, 0);
        assert!(Arena::of_peer(&whole, 8192, "server 3").is_ok());
        assert!(Arena::with_peer(&made(FIXED), 8192, "server 3").is_ok());
        refused(&tempfile::tempfile().unwrap().into(), 1);
        let (pipe, _) = std::io::pipe().unwrap();
        refused(&pipe.into(), 1);
    }

    /// Reading a hole would take a page from the system, on our account.
    #[test]
    fn memory_with_holes_is_not_mapped() {
        let beyond = |file: &OwnedFd| {
            // Blocks behind its end, so that it has as many as it should.
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, flags, 8192, 8192).unwrap();
        };
        let sparse = || {
            let file = rustix::fs::memfd_create("holes", MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&file, 8192).unwrap();
            file
        };
        let (nothing, half, elsewhere) = (sparse(), sparse(), sparse());
        rustix::io::pwrite(&half, &[1], 0).unwrap();
        beyond(&elsewhere);
        for (file, hole) in [(nothing, 0), (half, 4096), (elsewhere, 0)] {
            seal(&file, SHOWN).unwrap();
            let error = Arena::of_peer(&file, 8192, "worker 1").unwrap_err().to_string();
            assert!(error.contains(&format!("one at {hole}")), "{error}");
        }
        let ours = Arena::shared(1 << 20).unwrap();
        let blocks = rustix::fs::fstat(ours.file().unwrap()).unwrap().st_blocks;
        assert!(blocks >= (1 << 20) / 512, "what is shown is there");
    }

    #[test]
    fn both_write_what_is_theirs_together() {
        let (ours, file) = Arena::both_write(4096).unwrap();
        let theirs = Arena::with_peer(&file, 4096, "a peer").unwrap();
        theirs.copy_in(7, b"there");
        ours.copy_in(0, b"here");
        let mut out = [0; 12];
        ours.copy_out(0, &mut out);
        assert_eq!(&out, b"here\0\0\0there");
        let mine = Arena::new(4096).unwrap();
        mine.copy_from(1, &theirs, 7, 5);
        mine.copy_out(0, &mut out);
        assert_eq!(&out[..6], b"\0there");
    }

    #[test]
    #[should_panic(expected = "lie outside")]
    fn outside_is_refused() {
        Arena::new(4096).unwrap().at(4090, 7);
    }
}
