//! Memory that grows without anything moving: slabs of equal length, numbered from 0.

use std::alloc::{Layout, handle_alloc_error};
use std::sync::Arc;

use super::Arena;

/// Bytes of a block, at most, where a slab is no longer: the same for all, so that a slab is found by a shift. What of a block is not
/// used yet takes address space alone.
const BLOCK: usize = 16 << 20;

/// What the system zeroes and maps at a time where it gives huge pages.
const HUGE: usize = 2 << 20;

/// Slabs of `length` values, which are zeros at first. None moves, and none is given back.
#[derive(Debug)]
pub struct Slabs<T> {
    length: usize,
    /// There are 1 << `shift` slabs in a block.
    shift: u32,
    blocks: Vec<Block<T>>,
    used: u32,
    /// The block, and where in it, of the last huge page that [`Slabs::get_ready`] had supplied.
    ready: (usize, usize),
}

/// Where the slabs of a block begin; the arena keeps them mapped.
#[derive(Debug)]
struct Block<T> {
    start: *mut T,
    _arena: Arc<Arena>,
}

// SAFETY: the memory is the block's own, and reached through its `Slabs` alone, which lends it as `&T` and `&mut T` would.
unsafe impl<T: Send> Send for Block<T> {}

impl<T: bytemuck::Pod> Slabs<T> {
    /// No slab yet.
    ///
    /// # Panics
    /// When a slab would hold nothing.
    pub fn new(length: usize) -> Slabs<T> {
        assert!(length > 0 && size_of::<T>() > 0, "slabs of nothing");
        let shift = (BLOCK / length.saturating_mul(size_of::<T>())).max(1).ilog2();
        Slabs { length, shift, blocks: Vec::new(), used: 0, ready: (0, 0) }
    }

    /// How many slabs there are.
    pub fn len(&self) -> usize {
        self.used as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// One more slab; its number. Memory that can't be had ends the process, as with `Vec`.
    pub fn add(&mut self) -> u32 {
        let slab = self.used;
        if slab as usize == self.blocks.len() << self.shift
            && let Err(layout) = self.map()
        {
            handle_alloc_error(layout);
        }
        self.used += 1;
        slab
    }

    /// Has the system supply the next huge page, if half of the last one that it did is used. True when it did: that takes up to 5 ms
    /// where the page has to come from a hypervisor, so who adds slabs does this once for each of its calls, and no call waits for two.
    /// Where there is no memory, it is left to who needs it.
    pub fn get_ready(&mut self) -> bool {
        let bytes = self.length * size_of::<T>();
        let (block, at) = self.locate(self.used);
        let end = at * bytes;
        let mut next = (block, (end + HUGE / 2) / HUGE * HUGE);
        if end + HUGE / 2 >= bytes << self.shift {
            next = (block + 1, 0);
        }
        if next <= self.ready || next < (block, end) {
            return false;
        }
        self.ready = next;
        while self.blocks.len() <= next.0 {
            if self.map().is_err() {
                return false;
            }
        }
        // SAFETY: it lies in the block, behind all slabs that were given away, and holds zeros.
        unsafe { self.blocks[next.0].start.cast::<u8>().add(next.1).write_volatile(0) };
        true
    }

    /// Maps one more block, or says what can't be had.
    fn map(&mut self) -> Result<(), Layout> {
        let bytes = self.length.saturating_mul(size_of::<T>()).saturating_mul(1 << self.shift);
        let arena = Arena::new(bytes.saturating_add(HUGE))
            .map_err(|_| Layout::from_size_align(bytes, 64).unwrap_or(Layout::new::<T>()))?;
        const { assert!(align_of::<T>() <= HUGE) };
        let at = arena.at(0, HUGE).align_offset(HUGE);
        if self.blocks.is_empty() {
            // A few slabs are not worth a huge page.
            arena.on_small_pages(at + HUGE);
        }
        self.blocks.push(Block { start: arena.at(at, bytes).cast(), _arena: arena });
        Ok(())
    }

    /// A slab's block, and its number there.
    #[inline(always)]
    fn locate(&self, slab: u32) -> (usize, usize) {
        (slab as usize >> self.shift, slab as usize & ((1 << self.shift) - 1))
    }

    /// The values of a slab.
    ///
    /// # Panics
    /// When there is none of this number.
    #[inline]
    pub fn get(&self, slab: u32) -> &[T] {
        let start = self.start(slab);
        // SAFETY: `start` gave `length` values that are this slab's alone, zeroed or written since, and any bits are a `T`; the
        // borrow of `self` keeps writers out.
        unsafe { std::slice::from_raw_parts(start, self.length) }
    }

    /// The values of a slab, to be written.
    ///
    /// # Panics
    /// As [`Slabs::get`].
    #[inline]
    pub fn get_mut(&mut self, slab: u32) -> &mut [T] {
        let start = self.start(slab);
        // SAFETY: as in `get`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(start, self.length) }
    }

    /// Has the CPU fetch the line that holds the value at a place of a slab, if there is such a slab.
    #[inline(always)]
    pub fn prefetch(&self, slab: u32, at: usize) {
        let (block, number) = self.locate(slab);
        if let Some(block) = self.blocks.get(block) {
            prefetch(block.start.wrapping_add(number * self.length + at));
        }
    }

    #[inline(always)]
    fn start(&self, slab: u32) -> *mut T {
        assert!(slab < self.used, "slab {slab} of {}", self.used);
        let (block, number) = self.locate(slab);
        // SAFETY: `add` made the block, with room for 1 << `shift` slabs, before it gave the number away.
        unsafe { self.blocks.get_unchecked(block).start.add(number * self.length) }
    }
}

/// Has the CPU fetch the line of an address, whatever that is: it changes nothing but the time that it takes to reach what lies there.
#[inline(always)]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the instruction, which may be given any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_do_not_overlap_and_do_not_move() {
        let mut slabs = Slabs::<u64>::new(3);
        assert!(slabs.is_empty());
        let mut places = Vec::new();
        for slab in 0..2000 {
            assert_eq!(slabs.add(), slab);
            assert_eq!(slabs.get(slab), [0; 3]);
            slabs.get_mut(slab).fill(u64::from(slab) + 1);
            places.push(slabs.get(slab).as_ptr());
        }
        assert_eq!(slabs.len(), 2000);
        for (slab, place) in (0..).zip(places) {
            assert_eq!(slabs.get(slab), [u64::from(slab) + 1; 3]);
            assert_eq!(slabs.get(slab).as_ptr(), place);
        }
    }

    /// Whatever is supplied before it is needed: each page once, and never one that holds something.
    #[test]
    fn pages_are_got_ready_one_ahead_and_stay_zero() {
        let mut slabs = Slabs::<u64>::new(600); // 2048 of them are 4.7 huge pages
        let mut got_ready = 0;
        for slab in 0..10_000 {
            assert_eq!(slabs.add(), slab);
            assert!(slabs.get(slab).iter().all(|&v| v == 0));
            slabs.get_mut(slab).fill(7);
            got_ready += usize::from(slabs.get_ready());
            assert!(!slabs.get_ready());
            assert!(slabs.get(slab).iter().all(|&v| v == 7));
        }
        // Four blocks of five and the beginning of a fifth; the first page of the first comes by itself.
        assert_eq!(got_ready, 4 + 3 * 5 + 5);
    }

    /// However long slabs are, and where the blocks are all full, or none is there.
    #[test]
    fn pages_are_got_ready_wherever_slabs_end() {
        for length in [1, 16, 33, 600, 300_000, 3 << 20] {
            let mut slabs = Slabs::<u64>::new(length);
            assert!(!slabs.get_ready());
            let block = 1usize << slabs.shift;
            for slab in 0..3 * block as u32 {
                assert_eq!(slabs.add(), slab);
                if (slab as usize + 1) % block <= 1 {
                    slabs.ready = (0, 0); // as where they were restored
                    slabs.get_ready();
                }
            }
            let last = slabs.get_mut(3 * block as u32 - 1);
            assert_eq!((last[0], last[length - 1]), (0, 0));
        }
    }

    #[test]
    #[should_panic(expected = "slab 1 of 1")]
    fn a_slab_that_is_not_there_is_refused() {
        let mut slabs = Slabs::<u8>::new(1);
        slabs.add();
        slabs.get(1);
    }
}
