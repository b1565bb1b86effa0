//! A file of memory, mapped where huge pages can lie, and asked onto them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

/// Bytes of a huge page (x86-64, and aarch64 with pages of 4 KiB); where it is another the hint is lost, nothing else.
const HUGE: usize = 2 << 20;

/// Whether what is mapped can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// For reading only.
    Read,
    /// For reading and writing.
    Write,
}

/// A shared mapping of a file's first bytes; unmapped when it is dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: *mut u8,
    length: usize,
    /// What was taken of the address space: the mapping, and what lies around it to align it.
    reserved: (*mut libc::c_void, usize),
}

// SAFETY: it owns addresses, and touches nothing that they lead to.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes, more than 0, at a multiple of a huge page if they could fill one: only there a page table can hold it.
    pub fn of(file: &OwnedFd, length: usize, used: Use) -> io::Result<Mapping> {
        let around = if length < HUGE { 0 } else { HUGE };
        let whole = length.checked_add(around).ok_or(io::ErrorKind::OutOfMemory)?;
        let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the system chooses where nothing is mapped.
        let base = unsafe { libc::mmap(ptr::null_mut(), whole, libc::PROT_NONE, nothing, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let aligned = if around == 0 { 0 } else { base.addr().next_multiple_of(HUGE) - base.addr() };
        // SAFETY: less than `around`, so `length` bytes from there on lie in what was reserved.
        let start = unsafe { base.byte_add(aligned) };
        let mapping = Mapping { start: start.cast(), length, reserved: (base, whole) };
        let rights = if used == Use::Write { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let over = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: it replaces addresses that were reserved above and that nobody else knows.
        let mapped = unsafe { libc::mmap(start, length, rights, over, file.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapping) }
    }

    /// Has the file's pages moved onto huge ones, as far as the system has any: it does so at once and whatever its settings for shared
    /// memory say, since Linux 6.1. Those who map the file where huge pages can lie have them, too.
    pub fn collapse(&self) {
        // SAFETY: the range is this mapping's; its bytes stay as they are. A hint: what fails leaves the pages as they were.
        unsafe { libc::madvise(self.start.cast(), self.length, libc::MADV_COLLAPSE) };
    }

    /// Its first byte.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Bytes that are mapped.
    pub fn len(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: all of it was reserved by this mapping, and is given back once.
        unsafe { libc::munmap(self.reserved.0, self.reserved.1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(length: usize) -> OwnedFd {
        let file = rustix::fs::memfd_create("mapping", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, length as u64).unwrap();
        file
    }

    #[test]
    fn what_can_fill_a_huge_page_lies_where_one_can() {
        for length in [4096, HUGE - 1, HUGE, 3 * HUGE + 4096] {
            let file = file(length);
            let [one, other] = [Use::Write, Use::Read].map(|used| Mapping::of(&file, length, used).unwrap());
            assert_eq!((one.len(), other.len()), (length, length));
            for mapping in [&one, &other] {
                assert!(
                    length < HUGE || mapping.start().addr().is_multiple_of(HUGE),
                    "{:?}",
                    mapping.start()
                );
            }
            // SAFETY: the last byte of each mapping; nobody else knows them.
            let last = |mapping: &Mapping| unsafe { mapping.start().add(length - 1) };
            // SAFETY: as above.
            unsafe { last(&one).write(7) };
            one.collapse();
            // SAFETY: as above; the file is the same.
            assert_eq!(unsafe { (last(&one).read(), last(&other).read()) }, (7, 7));
        }
    }
}
