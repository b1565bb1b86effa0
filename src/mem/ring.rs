//! A queue of cells in memory that two processes share: one writes, the other reads, and neither trusts the other.
//!
//! ```text
//! byte    0  tail u64     cells written so far     \
//!         8  closed u32   nothing is valid now      > the producer's line
//!        12  waits u32    it sleeps until there is room /
//!        64  head u64     cells read so far        the consumer's line
//!       128  parked u32   it sleeps until something comes: a line that hardly ever changes
//!       192  509 cells of 64 bytes
//! ```
//! Each side keeps its own count to itself and only tells it; what it reads of the other's is checked before it is used. So a side
//! that writes anything anywhere in here makes the other report [`OutOfStep`], or read cells that say nonsense.

use std::sync::Arc;

use super::Arena;
use super::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Bytes of a cell.
pub const CELL: usize = 64;
/// Cells of a ring.
pub const CELLS: u64 = 509;
/// Bytes of a ring.
pub const RING: usize = CELLS_AT + CELLS as usize * CELL;

/// Cells that are fetched at once: those of a few small operations. Of more the CPU sees by itself that they follow each other.
const AHEAD: u64 = 8;

const HEAD_AT: usize = 64;
const PARKED_AT: usize = 128;
const CELLS_AT: usize = 192;

/// The other side's count can't be right.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfStep {
    /// `head` or `tail`.
    pub field: &'static str,
    /// The least and the most that it can be.
    pub expected: (u64, u64),
    /// What stands there.
    pub found: u64,
}

/// Written by the producer, read by the consumer.
#[derive(Debug, Default)]
#[repr(C)]
struct Written {
    tail: AtomicU64,
    closed: AtomicU32,
    waits: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Written>() <= HEAD_AT);

/// What both sides look at. The flags are taken down by the one that they are raised for.
#[derive(Debug, Clone, Copy)]
struct Lines<'a> {
    written: &'a Written,
    /// Written by the consumer, read by the producer, as is `parked`.
    head: &'a AtomicU64,
    parked: &'a AtomicU32,
}

/// Where a ring lies.
#[derive(Debug, Clone)]
pub struct Ring {
    arena: Arc<Arena>,
    at: usize,
}

impl Ring {
    /// The ring of [`RING`] bytes at `at` in an arena that began as zeros.
    ///
    /// # Panics
    /// When it does not lie inside, at a multiple of 64.
    pub fn new(arena: Arc<Arena>, at: usize) -> Ring {
        assert!(at.is_multiple_of(CELL), "byte {at}");
        let start = arena.at(at, RING);
        assert!(start.cast::<u64>().is_aligned());
        Ring { arena, at }
    }

    fn lines(&self) -> Lines<'_> {
        let start = self.arena.at(self.at, CELLS_AT);
        // SAFETY: `at` proved the range, which `new` found aligned. Whatever bytes stand there are values of these atomics, and
        // everybody who changes them, here or in the other process, does so by atomic operations or is a peer that breaks the
        // protocol; memory that is mapped shared is never unmapped while the arena lives.
        unsafe {
            Lines {
                written: &*start.cast(),
                head: &*start.add(HEAD_AT).cast(),
                parked: &*start.add(PARKED_AT).cast(),
            }
        }
    }

    /// Copies bytes into cells from `cell` on, which the caller owns as producer.
    fn put(&self, cell: u64, bytes: &[u8]) {
        let (at, whole) = self.place(cell, bytes.len());
        let (first, second) = bytes.split_at(whole);
        self.arena.copy_in(at, first);
        if !second.is_empty() {
            self.arena.copy_in(self.at + CELLS_AT, second);
        }
    }

    fn get(&self, cell: u64, into: &mut [u8]) {
        let (at, whole) = self.place(cell, into.len());
        let (first, second) = into.split_at_mut(whole);
        self.arena.copy_out(at, first);
        if !second.is_empty() {
            self.arena.copy_out(self.at + CELLS_AT, second);
        }
    }

    /// Has a cell fetched into this CPU's cache.
    fn fetch(&self, cell: u64) {
        let (at, _) = self.place(cell, CELL);
        let line = self.arena.at(at, CELL);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which reads nothing that the program sees; `at` proved that the line lies inside.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }

    /// Where a cell lies, and how many of `length` bytes from there on lie before the ring begins again.
    fn place(&self, cell: u64, length: usize) -> (usize, usize) {
        let cell = (cell % CELLS) as usize;
        (self.at + CELLS_AT + cell * CELL, length.min((CELLS as usize - cell) * CELL))
    }
}

/// Cells that `bytes` take.
pub fn cells(bytes: usize) -> u64 {
    bytes.div_ceil(CELL) as u64
}

/// The side that writes.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    tail: u64,
    head: u64,
    /// Cells that the consumer has been shown.
    published: u64,
}

impl Producer {
    /// Of a ring that nobody has written to.
    pub fn new(ring: Ring) -> Producer {
        Producer { ring, tail: 0, head: 0, published: 0 }
    }

    /// What both sides write.
    #[cfg(test)]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.ring.arena
    }

    /// Whether `cells` fit.
    pub fn has_room(&mut self, cells: u64) -> Result<bool, OutOfStep> {
        if self.tail - self.head + cells > CELLS {
            self.taken()?;
        }
        Ok(self.tail - self.head + cells <= CELLS)
    }

    /// Cells that have been taken so far.
    pub fn taken(&mut self) -> Result<u64, OutOfStep> {
        take_notice(&self.ring.lines(), &mut self.head, self.tail)?;
        Ok(self.head)
    }

    /// Cells that are whole so far.
    pub fn whole(&self) -> u64 {
        self.tail
    }

    /// Copies bytes into the `n`-th cell that is not whole, and those behind it. They must fit ([`Producer::has_room`]).
    pub fn put(&self, n: u64, bytes: &[u8]) {
        self.ring.put(self.tail + n, bytes);
    }

    /// The same from an arena.
    pub fn put_from(&self, n: u64, source: &Arena, from: usize, length: usize) {
        let (at, whole) = self.ring.place(self.tail + n, length);
        self.ring.arena.copy_from(at, source, from, whole);
        if whole < length {
            self.ring.arena.copy_from(self.ring.at + CELLS_AT, source, from + whole, length - whole);
        }
    }

    /// The next `cells` are whole.
    pub fn advance(&mut self, cells: u64) {
        self.tail += cells;
    }

    /// Shows the consumer what is whole; false when it has been shown all of it. Once for all that goes together: the consumer looks
    /// at this line all the time.
    pub fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.published = self.tail;
        publish(&self.ring.lines(), self.tail);
        true
    }

    /// Whether the consumer sleeps, and has to be woken for what was published.
    pub fn must_wake(&self) -> bool {
        must_wake(self.ring.lines().parked)
    }

    /// Asks to be woken when cells are taken. True when some have been since [`Producer::taken`] last looked.
    pub fn wait(&self) -> bool {
        announce(&self.ring.lines().written.waits);
        self.ring.lines().head.load(Ordering::Acquire) != self.head
    }

    /// It is awake again.
    pub fn awake(&self) {
        self.ring.lines().written.waits.store(0, Ordering::Relaxed);
    }

    /// From now on nothing that was published may be followed to memory outside the ring: the producer may change it as soon as
    /// this returns.
    pub fn close(&self) {
        close(&self.ring.lines());
    }
}

/// The side that reads.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    head: u64,
    tail: u64,
    /// Cells that were read and not given back.
    read: u64,
}

impl Consumer {
    /// Of a ring that nobody has written to.
    pub fn new(ring: Ring) -> Consumer {
        Consumer { ring, head: 0, tail: 0, read: 0 }
    }

    /// Cells that can be read.
    pub fn ready(&mut self) -> Result<u64, OutOfStep> {
        let found = self.ring.lines().written.tail.load(Ordering::Acquire);
        if found.wrapping_sub(self.tail) > self.head + CELLS - self.tail {
            return Err(OutOfStep { field: "tail", expected: (self.tail, self.head + CELLS), found });
        }
        self.tail = found;
        Ok(self.tail - self.head - self.read)
    }

    /// Whether nothing has come that was not read. This looks at one line and at nothing else; what stands there is checked by
    /// [`Consumer::ready`].
    pub fn is_empty(&self) -> bool {
        self.ring.lines().written.tail.load(Ordering::Relaxed) == self.head + self.read
    }

    /// Has the first of the cells that are ready fetched, all at once: each lies in the other CPU's cache, and the way from there is the
    /// longest part of reading one.
    pub fn fetch(&self) {
        let first = self.head + self.read;
        (first..self.tail.min(first + AHEAD)).for_each(|cell| self.ring.fetch(cell));
    }

    /// Copies out of the `n`-th cell that is ready, and those behind it.
    pub fn get(&self, n: u64, into: &mut [u8]) {
        self.ring.get(self.head + self.read + n, into);
    }

    /// The same into an arena, where the caller owns the range.
    pub fn get_into(&self, n: u64, arena: &Arena, offset: usize, length: usize) {
        let (at, whole) = self.ring.place(self.head + self.read + n, length);
        arena.copy_from(offset, &self.ring.arena, at, whole);
        if whole < length {
            arena.copy_from(offset + whole, &self.ring.arena, self.ring.at + CELLS_AT, length - whole);
        }
    }

    /// The next `cells` that are ready have been read.
    pub fn advance(&mut self, cells: u64) {
        self.read += cells;
    }

    /// Gives what was read back. True when the producer sleeps until there is room, and has to be woken.
    pub fn release(&mut self) -> bool {
        if self.read == 0 {
            return false;
        }
        self.head += std::mem::take(&mut self.read);
        let lines = self.ring.lines();
        lines.head.store(self.head, Ordering::Release);
        must_wake(&lines.written.waits)
    }

    /// Asks to be woken when something comes. True when it has.
    pub fn park(&self) -> bool {
        announce(self.ring.lines().parked);
        self.ring.lines().written.tail.load(Ordering::Acquire) != self.head + self.read
    }

    /// It is awake again.
    pub fn awake(&self) {
        self.ring.lines().parked.store(0, Ordering::Relaxed);
    }

    /// Whether what lies outside the ring may have changed before now; asked after it was read.
    pub fn is_closed(&self) -> bool {
        is_closed(&self.ring.lines())
    }
}

/// The other's count may only grow, up to `most`.
fn take_notice(lines: &Lines<'_>, head: &mut u64, most: u64) -> Result<(), OutOfStep> {
    // Acquire: what the consumer read, it has read.
    let found = lines.head.load(Ordering::Acquire);
    if found < *head || found > most {
        return Err(OutOfStep { field: "head", expected: (*head, most), found });
    }
    *head = found;
    Ok(())
}

fn publish(lines: &Lines<'_>, tail: u64) {
    lines.written.tail.store(tail, Ordering::Release);
}

/// Raises a flag before the sleeper looks one last time. Its fence and that of [`must_wake`] see to it that the sleeper sees what
/// the other has told, or the other the flag.
fn announce(flag: &AtomicU32) {
    flag.store(1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

fn must_wake(flag: &AtomicU32) -> bool {
    fence(Ordering::SeqCst);
    flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::Relaxed) != 0
}

/// A lock for one writer as in H. Boehm, "Can seqlocks get along with programming language memory models?" (MSPC 2012): who has
/// read a byte that was written after this sees the flag, too.
fn close(lines: &Lines<'_>) {
    lines.written.closed.store(1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
}

fn is_closed(lines: &Lines<'_>) -> bool {
    fence(Ordering::SeqCst);
    lines.written.closed.load(Ordering::Relaxed) != 0
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)] // in a test a failure is a panic
mod tests {
    use super::*;

    fn pair() -> (Producer, Consumer, Ring) {
        let ring = Ring::new(Arena::new(2 * RING).unwrap(), 64);
        (Producer::new(ring.clone()), Consumer::new(ring.clone()), ring)
    }

    #[test]
    fn bytes_come_in_order_across_the_end() {
        let (mut p, mut c, _) = pair();
        for round in 0..300u64 {
            let bytes: Vec<u8> = (0..1000u64).map(|i| (i * round) as u8).collect();
            let needed = cells(bytes.len());
            assert!(p.has_room(needed).unwrap());
            p.put(0, &bytes);
            assert_eq!(c.ready(), Ok(0));
            p.advance(needed);
            assert!(c.is_empty() && p.publish() && !p.publish() && !c.is_empty());
            assert_eq!(c.ready(), Ok(needed));
            c.fetch();
            let mut out = vec![0; 1000];
            c.get(0, &mut out);
            assert_eq!(out, bytes);
            let (there, back) = (Arena::new(4096).unwrap(), Arena::new(4096).unwrap());
            c.get_into(0, &there, 5, 1000);
            there.copy_out(5, &mut out);
            assert_eq!(out, bytes);
            c.advance(needed);
            assert_eq!((c.ready(), p.taken()), (Ok(0), Ok(round * needed)));
            assert!(c.is_empty());
            c.release();
            assert!(c.is_empty());
            assert_eq!(p.taken(), Ok((round + 1) * needed));
            p.put_from(0, &there, 5, 1000);
            c.get_into(0, &back, 0, 1000);
            back.copy_out(0, &mut out);
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn a_full_ring_has_no_room_until_cells_come_back() {
        let (mut p, mut c, _) = pair();
        p.advance(CELLS - 1);
        p.publish();
        assert!(p.has_room(1).unwrap() && !p.has_room(2).unwrap());
        assert_eq!(c.ready(), Ok(CELLS - 1));
        c.advance(1);
        assert!(!p.has_room(2).unwrap());
        c.release();
        assert!(p.has_room(2).unwrap());
    }

    #[test]
    fn a_count_that_cannot_be_is_refused() {
        let (mut p, mut c, ring) = pair();
        p.advance(10);
        p.publish();
        c.ready().unwrap();
        c.advance(4);
        c.release();
        p.taken().unwrap();
        for tail in [9, 4 + CELLS + 1, u64::MAX, 0] {
            ring.lines().written.tail.store(tail, Ordering::Relaxed);
            assert_eq!(c.ready().unwrap_err().field, "tail", "{tail}");
        }
        for head in [3, 11, u64::MAX] {
            ring.lines().head.store(head, Ordering::Relaxed);
            assert_eq!(p.taken().unwrap_err().field, "head", "{head}");
        }
    }

    #[test]
    fn who_sleeps_is_woken_once() {
        let (mut p, mut c, _) = pair();
        assert!(!p.must_wake());
        assert!(!c.park());
        p.advance(1);
        p.publish();
        assert!(p.must_wake() && !p.must_wake());
        assert!(c.park(), "something has come");
        c.awake();
        assert!(!p.must_wake());
        assert!(!p.wait());
        c.ready().unwrap();
        c.advance(1);
        assert!(c.release() && !c.release());
        assert!(p.wait(), "some were taken");
        p.awake();
        assert!(!c.is_closed());
        p.close();
        assert!(c.is_closed());
    }
}

#[cfg(all(test, loom))]
#[path = "ring_tests.rs"]
mod loom_tests;
