//! Memory that grows without anything moving: slabs of equal length, numbered from 0.

use std::alloc::{Layout, handle_alloc_error};
use std::collections::VecDeque;
use std::sync::Arc;

use super::{Arena, Page};

/// Bytes of a block, at most, where a slab is no longer: the same for all, so that a slab is found by a shift. What of a block is not
/// used yet takes address space alone.
const BLOCK: usize = 16 << 20;

/// What the system zeroes and maps at a time where it gives huge pages.
const HUGE: usize = 2 << 20;

/// Huge pages that are supplied ahead, at most: one for each four that are used, or as many as were reached at once before. A thread that
/// has them supplied may so fall behind for a while, and who needs several at once finds them from the second time on.
const AHEAD: usize = 8;

/// What at least lies between blocks that are mapped by themselves, and is not asked onto huge pages: otherwise the system would make one
/// mapping of them, and whoever maps one would wait while a page of the other is supplied.
const SEAM: usize = 4096;

/// One block for each so many that there are is mapped with the next, and so many at most: a process may have some 65 000 mappings.
const SHARE: usize = 16;
const TOGETHER: usize = 64;

/// Slabs of `length` values, which are zeros at first. None moves, and none is given back.
#[derive(Debug)]
pub struct Slabs<T> {
    length: usize,
    /// There are 1 << `shift` slabs in a block.
    shift: u32,
    blocks: Vec<Block<T>>,
    used: u32,
    /// Pages before this one, counted through all blocks, were offered, or have been reached.
    offered: usize,
    /// Those that were offered, and that no slab has reached.
    ahead: VecDeque<(usize, Arc<Page>)>,
    /// A slab has reached a page that was not supplied.
    waited: bool,
    /// The first page that no slab had reached when [`Slabs::next_to_supply`] looked last, and the most that were reached from one look to the
    /// next.
    seen: usize,
    leap: usize,
}

/// Where the slabs of a block begin; the arena keeps them mapped.
#[derive(Debug)]
struct Block<T> {
    start: *mut T,
    arena: Arc<Arena>,
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
        // The first page, a small one, comes by itself.
        Slabs {
            length,
            shift,
            blocks: Vec::new(),
            used: 0,
            offered: 1,
            ahead: VecDeque::new(),
            waited: false,
            seen: 0,
            leap: 0,
        }
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
        let (slab, (next, _)) = (self.used, self.next_page());
        if slab as usize == self.blocks.len() << self.shift
            && let Err(layout) = self.map()
        {
            handle_alloc_error(layout);
        }
        self.used += 1;
        let (block, number) = self.locate(slab);
        let last = block * self.pages() + ((number + 1) * self.bytes() - 1) / HUGE;
        // The first page, a small one, is nobody's to wait for.
        let mut reached = (last + 1).saturating_sub(next.max(1));
        while let Some((_, page)) = self.ahead.pop_front_if(|(page, _)| *page <= last) {
            self.waited |= !page.claim();
            reached -= 1;
        }
        self.waited |= reached > 0; // pages that were never offered
        slab
    }

    /// A huge page that slabs will need soon, if there is one that was not given yet: whoever has it supplied ([`Page::supply`]) spares
    /// the one who adds slabs from waiting for that. Where there is no memory, it is left to who needs it.
    pub fn next_to_supply(&mut self) -> Option<Arc<Page>> {
        if self.len() * self.bytes() < HUGE / 4 {
            return None;
        }
        let (next, _) = self.next_page();
        self.leap = self.leap.max(next - self.seen);
        self.seen = next;
        self.offer(next + (1 + next / 4).max(self.leap).min(AHEAD))
    }

    /// Has the system supply the next huge page, if half of the one before it is used and nobody else has begun to. True when it did: that
    /// takes up to 5 ms where the page has to come from a hypervisor, so who adds slabs does this once for each of its calls, unless
    /// it [has waited](Slabs::has_waited), and no call waits for two.
    pub fn get_ready(&mut self) -> bool {
        let (next, left) = self.next_page();
        if left > HUGE / 2 {
            return false;
        }
        if self.offered <= next {
            self.offer(next + 1);
        }
        self.ahead.front().is_some_and(|(_, page)| page.begin())
    }

    /// Whether a slab that was added since the last call had to wait for the system.
    pub fn has_waited(&mut self) -> bool {
        std::mem::take(&mut self.waited)
    }

    /// The first page that no slab has reached, and how many bytes are left before it.
    fn next_page(&self) -> (usize, usize) {
        let (block, number) = self.locate(self.used);
        let (end, all) = (number * self.bytes(), self.bytes() << self.shift);
        let page = end.div_ceil(HUGE);
        (block * self.pages() + page, (page * HUGE).min(all) - end)
    }

    /// The next page that is not offered yet, below `limit`.
    fn offer(&mut self, limit: usize) -> Option<Arc<Page>> {
        self.offered = self.offered.max(self.next_page().0);
        if self.offered >= limit {
            return None;
        }
        let (block, at) = (self.offered / self.pages(), self.offered % self.pages() * HUGE);
        while self.blocks.len() <= block {
            self.map().ok()?;
        }
        let Block { start, arena } = &self.blocks[block];
        let length = HUGE.min((self.bytes() << self.shift) - at);
        let at = start.addr() - arena.at(0, 1).addr() + at;
        let page = Arc::new(Page::new(arena.clone(), at, length));
        self.ahead.push_back((self.offered, page.clone()));
        self.offered += 1;
        Some(page)
    }

    /// Bytes of a slab.
    fn bytes(&self) -> usize {
        self.length * size_of::<T>()
    }

    /// Huge pages of a block, the last of which may be shorter.
    fn pages(&self) -> usize {
        (self.bytes() << self.shift).div_ceil(HUGE)
    }

    /// Maps one more block at least, or says what can't be had.
    fn map(&mut self) -> Result<(), Layout> {
        let together = (self.blocks.len() / SHARE).clamp(1, TOGETHER);
        self.map_together(together).or_else(|_| self.map_together(1))
    }

    fn map_together(&mut self, count: usize) -> Result<(), Layout> {
        let bytes = self.length.saturating_mul(size_of::<T>()).saturating_mul(1 << self.shift);
        let stride = bytes.checked_next_multiple_of(HUGE).unwrap_or(usize::MAX);
        let arena = Arena::new(stride.saturating_mul(count).saturating_add(HUGE + SEAM))
            .map_err(|_| Layout::from_size_align(bytes, 64).unwrap_or(Layout::new::<T>()))?;
        const { assert!(align_of::<T>() <= HUGE) };
        let at = arena.at(0, HUGE).align_offset(HUGE);
        // A few slabs are not worth a huge page.
        arena.on_small_pages(0..if self.blocks.is_empty() { at + HUGE } else { at });
        arena.on_small_pages(at + count * stride..arena.len());
        self.blocks.extend((0..count).map(|block| {
            let start = arena.at(at + block * stride, bytes).cast();
            Block { start, arena: arena.clone() }
        }));
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
    use proptest::prelude::*;

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
                    slabs.get_ready();
                }
            }
            let last = slabs.get_mut(3 * block as u32 - 1);
            assert_eq!((last[0], last[length - 1]), (0, 0));
        }
    }

    /// A process may have some 65 000 mappings, and one that has them all can't start a thread.
    #[test]
    fn many_blocks_are_few_mappings() {
        let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let (mut slabs, before) = (Slabs::<u64>::new(1 << 20), mappings());
        while slabs.blocks.len() < 1000 {
            slabs.add();
        }
        let more = mappings().saturating_sub(before);
        assert!((2..500).contains(&more), "{more} for {} blocks", slabs.blocks.len());
        slabs.get_mut(slabs.used - 1).fill(7);
        assert_eq!((slabs.get(0)[0], slabs.get(slabs.used - 2)[0]), (0, 0));
    }

    /// Adds slabs of a page of memory to several blocks, and gives how often this thread had to ask the system for memory behind the
    /// first huge page.
    fn faults_of_growth(mut before_each: impl FnMut(&mut Slabs<u64>)) -> i64 {
        let mut slabs = Slabs::<u64>::new(512);
        let mut faults = 0;
        for slab in 0..40 * 512 {
            before_each(&mut slabs);
            let before = faults_of_this_thread();
            slabs.add();
            slabs.get_mut(slab).fill(7);
            if slab >= 512 {
                faults += faults_of_this_thread() - before;
            }
        }
        faults
    }

    fn faults_of_this_thread() -> i64 {
        let mut usage = std::mem::MaybeUninit::zeroed();
        // SAFETY: it is as large as what is written there, and any bits are a valid one.
        let usage: libc::rusage = unsafe {
            assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0);
            usage.assume_init()
        };
        usage.ru_minflt
    }

    #[test]
    fn what_another_thread_has_supplied_costs_no_fault() {
        let alone = faults_of_growth(|_| ());
        assert!(alone >= 39, "{alone}: one for each huge page, or 512");
        let mut offered = 0;
        let faults = faults_of_growth(|slabs| {
            let pages: Vec<_> = std::iter::from_fn(|| slabs.next_to_supply()).collect();
            offered += pages.len();
            if !pages.is_empty() {
                std::thread::spawn(move || assert!(pages.iter().all(|page| page.supply()))).join().unwrap();
            }
        });
        assert!(faults <= 10, "{faults} of {alone}"); // the allocator's
        assert_eq!(offered, 39 + AHEAD, "each page once, but for the first");
    }

    /// What is offered, and when: nothing of a small table, then one page for each four that are used, eight at most.
    #[test]
    fn as_many_pages_are_offered_as_a_quarter_of_those_in_use() {
        let mut slabs = Slabs::<u64>::new(512);
        let mut ahead = Vec::new();
        for slab in 1..=40 * 512 {
            slabs.add();
            let mut offered = 0;
            while slabs.next_to_supply().is_some() {
                offered += 1;
            }
            if offered > 0 {
                ahead.push((slab, slabs.ahead.len()));
            }
        }
        assert_eq!(ahead[0], (128, 1), "a quarter of the first page is used");
        assert_eq!(ahead[1], (513, 1));
        let most = |first: u32| ahead.iter().find(|(slab, _)| *slab > first * 512).map(|(_, pages)| *pages);
        assert_eq!([3, 4, 7, 8, 26, 27, 39].map(most), [2, 2, 3, 3, 7, 8, 8].map(Some));
    }

    /// Who once reached three pages at once finds three the next time, though few are in use.
    #[test]
    fn what_was_needed_at_once_is_supplied_ahead_from_then_on() {
        let mut slabs = Slabs::<u64>::new(512);
        let mut waited = Vec::new();
        for _ in 0..4 {
            for _ in 0..512 * 5 / 2 {
                slabs.add();
            }
            waited.push(slabs.has_waited());
            while let Some(page) = slabs.next_to_supply() {
                assert!(page.supply());
            }
        }
        assert_eq!(waited, [true, false, false, false]);
    }

    /// Nobody waits for two pages: what was waited for keeps the next one from being got ready.
    #[test]
    fn a_page_that_nobody_supplied_is_told() {
        let mut slabs = Slabs::<u64>::new(512);
        for _ in 0..512 {
            slabs.add();
        }
        assert!(slabs.next_to_supply().is_some() && !slabs.has_waited());
        slabs.add();
        assert!(slabs.has_waited() && !slabs.has_waited());
        let page = slabs.next_to_supply().unwrap();
        for _ in 0..256 {
            slabs.add();
        }
        assert!(slabs.get_ready() && !slabs.get_ready() && !page.supply());
        for _ in 0..256 {
            slabs.add();
        }
        assert!(!slabs.has_waited());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        /// While a thread supplies what is offered, some of it late or never, slabs begin as zeros and keep what they hold.
        #[test]
        fn slabs_are_right_while_pages_are_supplied(
            length in prop_oneof![1usize..5000, Just(300_000), Just(3 << 20)],
            turns in proptest::collection::vec((1usize..200_000, 0u8..4), 1..30),
        ) {
            let (sender, pages) = std::sync::mpsc::channel::<Arc<Page>>();
            let supplier = std::thread::spawn(move || pages.iter().filter(|page| page.supply()).count());
            let mut slabs = Slabs::<u64>::new(length);
            for (words, how) in turns {
                for _ in 0..(words / length).max(1) {
                    let slab = slabs.add();
                    let values = slabs.get_mut(slab);
                    prop_assert!([0, length / 2, length - 1].iter().all(|&at| values[at] == 0));
                    // All of a short one, of a long one some of every page.
                    values.iter_mut().step_by(length.div_ceil(5000)).for_each(|v| *v = u64::from(slab) + 1);
                }
                match how {
                    0 => {}
                    1 => drop(slabs.get_ready()),
                    2 => drop(slabs.next_to_supply()),
                    _ => {
                        while let Some(page) = slabs.next_to_supply() {
                            sender.send(page).unwrap();
                        }
                        slabs.get_ready();
                    }
                }
                if slabs.len() * length > 16 << 20 {
                    break;
                }
            }
            drop(sender);
            supplier.join().unwrap();
            for slab in 0..slabs.len() as u32 {
                let mut values = slabs.get(slab).iter().step_by(length.div_ceil(5000));
                prop_assert!(values.all(|&v| v == u64::from(slab) + 1));
            }
        }
    }

    /// What is being supplied stays mapped.
    #[test]
    fn slabs_may_go_while_their_pages_are_supplied() {
        let (sender, pages) = std::sync::mpsc::channel::<Arc<Page>>();
        let supplier = std::thread::spawn(move || pages.iter().filter(|page| page.supply()).count());
        let mut offered = 0;
        for turn in 0..200u32 {
            let mut slabs = Slabs::<u64>::new(512);
            for _ in 0..512 * (1 + turn % 5) {
                slabs.add();
                while let Some(page) = slabs.next_to_supply() {
                    offered += 1;
                    sender.send(page).unwrap();
                }
            }
            let last = slabs.len() as u32 - 1;
            slabs.get_mut(last).fill(u64::from(turn));
            assert!(slabs.get(last).iter().all(|&v| v == u64::from(turn)));
        }
        drop(sender);
        let supplied = supplier.join().unwrap();
        assert!((1..=offered).contains(&supplied), "{supplied} of {offered}");
    }

    #[test]
    #[should_panic(expected = "slab 1 of 1")]
    fn a_slab_that_is_not_there_is_refused() {
        let mut slabs = Slabs::<u8>::new(1);
        slabs.add();
        slabs.get(1);
    }
}
