//! Exclusively owned fp32 in an arena.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::{Arena, Kind, align_up};
use crate::error::Result;

/// Cuts one arena into exclusively owned blocks of fp32, each 64-byte aligned.
#[derive(Debug)]
pub struct Blocks {
    arena: Arc<Arena>,
    next: usize,
}

impl Blocks {
    /// An arena large enough for blocks of the given numbers of fp32.
    pub fn for_lengths(lengths: impl Iterator<Item = usize>) -> Result<Blocks> {
        Blocks::of(Kind::Private, lengths)
    }

    /// The same in memory of a kind.
    pub fn of(kind: Kind, lengths: impl Iterator<Item = usize>) -> Result<Blocks> {
        let bytes = lengths.map(|n| align_up(n * 4)).sum();
        Ok(Blocks { arena: kind.arena(bytes)?, next: 0 })
    }

    /// The arena that the blocks are cut from.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The next block of `length` zeros; `None` when the arena is used up.
    pub fn cut(&mut self, length: usize) -> Option<Block> {
        let end = self.next.checked_add(align_up(length * 4))?;
        if end > self.arena.len() {
            return None;
        }
        let block = Block { arena: self.arena.clone(), offset: self.next, length };
        self.next = end;
        Some(block)
    }
}

/// Exclusively owned fp32 in an arena. Peers are never granted a write to it, and a transport only reads it while its
/// owner leaves it alone (see [`Published`](super::Published)).
#[derive(Debug)]
pub struct Block {
    arena: Arc<Arena>,
    offset: usize,
    length: usize,
}

impl Block {
    /// First byte within the arena.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl Deref for Block {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let start = self.arena.at(self.offset, self.length * 4).cast::<f32>();
        // SAFETY: `at` proved the range; `cut` aligned it to 64 and gave it to no one else; mapped memory starts zeroed
        // and every bit pattern is an f32; the borrow of `self` keeps writers out.
        unsafe { std::slice::from_raw_parts(start, self.length) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [f32] {
        let start = self.arena.at(self.offset, self.length * 4).cast::<f32>();
        // SAFETY: as in `deref`; the block is not `Clone` and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(start, self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap() {
        let mut blocks = Blocks::for_lengths([5, 100, 3].into_iter()).unwrap();
        let mut cut: Vec<Block> = [5, 100, 3].iter().map(|&n| blocks.cut(n).unwrap()).collect();
        for (value, block) in (1u8..).zip(&mut cut) {
            assert!(block.iter().all(|&v| v == 0.0));
            block.fill(f32::from(value));
        }
        for (value, block) in (1u8..).zip(&cut) {
            assert!(block.iter().all(|&v| v == f32::from(value)));
        }
        assert!(blocks.cut(1 << 20).is_none());
    }
}
