//! Blocks of parameters that can be sent from where they lie while newer versions of them are written.
//!
//! ```text
//!  present block ──pin──▶ pinned ──write──▶ old version, still pinned ──last pin dropped──▶ spare
//!      ▲                                    │
//!      └────────── a spare takes its place ─┘
//! ```
//! A pin is only given while the blocks that are pinned, present or old, are fewer than there are spare ones. So a pinned
//! block always finds a spare one that is not pinned when it has to be written, and a write never waits for a reader.
//!
//! One thread pins and writes; pins may be dropped by any (loom's tests are about that).

use std::sync::Arc;

use super::atomic::{AtomicU32, Ordering};
use super::{Arena, Block, Blocks, Kind, RegionId, RegionSlice, align_up};
use crate::error::Result;

/// Equally long blocks, owned by one thread, with a bounded number of spare ones.
#[derive(Debug)]
pub struct Published {
    /// The present versions.
    blocks: Vec<Block>,
    /// Spare blocks, and old versions that may still be pinned.
    spares: Vec<Block>,
    pins: Arc<Pins>,
    arena: Arc<Arena>,
    region: RegionId,
    moves: u64,
}

/// How often each block is pinned, by its number. Only the owner adds pins; whoever holds one drops it.
#[derive(Debug)]
struct Pins {
    of: Box<[AtomicU32]>,
    /// Blocks that are pinned at least once; while a pin comes or goes it may say one too many, and never one too few.
    blocks: AtomicU32,
}

/// Part of a version that stays as it is until this is dropped.
#[derive(Debug)]
pub struct Pin {
    pins: Arc<Pins>,
    number: usize,
    slice: RegionSlice,
}

/// A block that is to be written.
#[derive(Debug)]
pub struct Writing<'a> {
    /// The present version, when it lies elsewhere because it is pinned. All of `to` has to be written then.
    pub old: Option<&'a [f32]>,
    /// The next version.
    pub to: &'a mut [f32],
}

impl<'a> Writing<'a> {
    /// The next version, which is the present one until it is written to.
    pub fn whole(self) -> &'a mut [f32] {
        if let Some(old) = self.old {
            self.to.copy_from_slice(old);
        }
        self.to
    }
}

impl Published {
    /// `count` blocks of `length` zeros and as many spare ones as fit into `spare_bytes`, at most one for each block. Their
    /// arena still has to be registered: `register` is called once with it.
    pub fn new(
        length: usize,
        count: usize,
        spare_bytes: u64,
        register: impl FnOnce(Arc<Arena>) -> Result<RegionId>,
    ) -> Result<Published> {
        let mut published = Published::of(Kind::Private, length, count, spare_bytes)?;
        published.register(register)?;
        Ok(published)
    }

    /// The same in memory of a kind, which is registered later: nothing of it may be sent before.
    pub fn of(kind: Kind, length: usize, count: usize, spare_bytes: u64) -> Result<Published> {
        let all = count + spare_count(length, count, spare_bytes);
        let mut cut = Blocks::of(kind, std::iter::repeat_n(length, all))?;
        let mut blocks: Vec<Block> = (0..all).map_while(|_| cut.cut(length)).collect();
        let spares = blocks.split_off(count);
        let pins = Pins { of: (0..all).map(|_| AtomicU32::new(0)).collect(), blocks: AtomicU32::new(0) };
        let (arena, region) = (cut.arena().clone(), RegionId(u32::MAX));
        Ok(Published { blocks, spares, pins: Arc::new(pins), arena, region, moves: 0 })
    }

    /// Makes its arena known.
    pub fn register(&mut self, register: impl FnOnce(Arc<Arena>) -> Result<RegionId>) -> Result<()> {
        self.region = register(self.arena.clone())?;
        Ok(())
    }

    /// Bytes that [`Published::new`] would take, without spare blocks.
    pub fn bytes(length: usize, count: usize) -> u64 {
        (count * (align_up(length * 4) + size_of::<Block>())) as u64
    }

    /// Bytes of the spare blocks.
    pub fn spare_bytes(&self) -> u64 {
        self.spares.iter().map(|block| align_up(block.len() * 4) as u64).sum()
    }

    /// The present version of a block.
    pub fn read(&self, block: usize) -> &[f32] {
        &self.blocks[block]
    }

    /// Keeps `count` values from `first` on of a block as they are. `None` when too many blocks are pinned already.
    pub fn pin(&self, block: usize, first: usize, count: usize) -> Option<Pin> {
        let present = &self.blocks[block];
        assert!(first + count <= present.len(), "a block of {} values", present.len());
        let number = self.number(present);
        let pins = &self.pins;
        // Acquire: whose room this takes, `write` must not see as still pinned.
        if pins.of[number].fetch_add(1, Ordering::Relaxed) == 0
            && pins.blocks.fetch_add(1, Ordering::Acquire) as usize >= self.spares.len()
        {
            pins.drop_one(number);
            return None;
        }
        let slice = RegionSlice {
            arena: self.arena.clone(),
            region: self.region,
            offset: present.offset() + first * 4,
            length: count * 4,
        };
        Some(Pin { pins: pins.clone(), number, slice })
    }

    /// A block for writing. One that is pinned stays as it is, and a spare one takes its place.
    pub fn write(&mut self, block: usize) -> Writing<'_> {
        if !self.is_pinned(&self.blocks[block]) {
            return Writing { old: None, to: &mut self.blocks[block] };
        }
        let spare = self.spares.iter().position(|s| !self.is_pinned(s));
        let Some(spare) = spare else {
            // This block is pinned. `pin` keeps the pinned blocks at or below the number of spare ones.
            unreachable!("one block is pinned outside the spare ones, so at least one of these is not");
        };
        std::mem::swap(&mut self.blocks[block], &mut self.spares[spare]);
        self.moves += 1;
        Writing { old: Some(&self.spares[spare]), to: &mut self.blocks[block] }
    }

    /// How often a block was pinned when it had to be written.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    fn number(&self, block: &Block) -> usize {
        block.offset() / align_up(block.len() * 4).max(1)
    }

    fn is_pinned(&self, block: &Block) -> bool {
        // Acquire: what the holders of dropped pins did with the block comes before it is written.
        self.pins.of[self.number(block)].load(Ordering::Acquire) > 0
    }
}

fn spare_count(length: usize, count: usize, spare_bytes: u64) -> usize {
    let fit = spare_bytes / align_up(length * 4).max(1) as u64;
    usize::try_from(fit).unwrap_or(count).min(count)
}

impl Pins {
    fn drop_one(&self, number: usize) {
        if self.of[number].fetch_sub(1, Ordering::Release) == 1 {
            self.blocks.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Pin {
    /// The bytes, as the transport knows them. The pin must be kept until the operation is done.
    pub fn slice(&self) -> &RegionSlice {
        &self.slice
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.pins.drop_one(self.number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH: usize = 5;

    fn published(count: usize, spares: usize) -> Published {
        let bytes = spares as u64 * align_up(LENGTH * 4) as u64;
        Published::new(LENGTH, count, bytes, |_| Ok(RegionId(7))).unwrap()
    }

    fn set(published: &mut Published, block: usize, value: f32) {
        published.write(block).to.fill(value);
    }

    fn bytes_of(pin: &Pin) -> Vec<f32> {
        let slice = pin.slice();
        let mut values = vec![0.0; slice.length / 4];
        slice.arena.copy_out(slice.offset, bytemuck::cast_slice_mut(&mut values));
        values
    }

    #[test]
    fn a_block_that_is_not_pinned_is_written_in_place() {
        let mut p = published(2, 2);
        set(&mut p, 1, 1.0);
        let at = p.read(1).as_ptr();
        drop(p.pin(1, 0, LENGTH).unwrap());
        set(&mut p, 1, 2.0);
        assert_eq!((p.read(1).as_ptr(), p.moves()), (at, 0));
    }

    #[test]
    fn a_pinned_version_stays_while_newer_ones_are_written() {
        let mut p = published(3, 2);
        set(&mut p, 0, 1.0);
        let first = p.pin(0, 1, 3).unwrap();
        let Writing { old, to } = p.write(0);
        assert_eq!(old, Some(&[1.0; LENGTH][..]));
        to.fill(2.0);
        let second = p.pin(0, 0, LENGTH).unwrap();
        assert!(p.pin(1, 0, 1).is_none(), "two blocks are pinned, and there are two spare ones");
        assert!(p.pin(0, 0, 1).is_some(), "but more pins of a pinned block are free");
        set(&mut p, 0, 3.0);
        assert_eq!((bytes_of(&first), bytes_of(&second)), (vec![1.0; 3], vec![2.0; LENGTH]));
        assert_eq!((p.read(0), p.moves()), (&[3.0; LENGTH][..], 2));
        drop(first);
        assert!(p.pin(1, 0, 1).is_some());
    }

    #[test]
    fn without_spare_blocks_nothing_is_pinned() {
        let p = published(2, 0);
        assert!(p.pin(0, 0, 1).is_none());
        assert_eq!(published(2, 9).spares.len(), 2);
    }

    #[test]
    fn pins_are_dropped_by_other_threads_while_the_owner_writes() {
        let mut p = published(4, 3);
        (0..4).for_each(|block| set(&mut p, block, 0.0));
        let (pinned, to_check) = std::sync::mpsc::sync_channel::<Pin>(8);
        let reader = std::thread::spawn(move || {
            let mut seen = 0;
            for pin in to_check {
                let values = bytes_of(&pin);
                assert!(values.iter().all(|v| *v == values[0]), "{values:?}");
                seen += 1;
            }
            seen
        });
        let mut sent = 0;
        for round in 1..20_000u16 {
            let block = usize::from(round) % 4;
            if let Some(pin) = p.pin(block, 0, LENGTH) {
                pinned.send(pin).unwrap();
                sent += 1;
            }
            set(&mut p, block, f32::from(round));
        }
        drop(pinned);
        assert_eq!(reader.join().unwrap(), sent);
        assert!(sent > 0);
    }

    proptest! {
        #[test]
        fn every_pin_keeps_its_version(
            count in 1usize..5,
            spares in 0usize..5,
            steps in proptest::collection::vec((0u8..3, 0usize..5, 0usize..8), 0..200),
        ) {
            let mut p = published(count, spares);
            let mut present = vec![0.0f32; count];
            let mut held: Vec<(Pin, f32)> = Vec::new();
            for (n, (what, block, which)) in steps.into_iter().enumerate() {
                let block = block % count;
                match what {
                    0 => {
                        present[block] = n as f32 + 1.0;
                        set(&mut p, block, present[block]);
                    }
                    1 => held.extend(p.pin(block, 0, LENGTH).map(|pin| (pin, present[block]))),
                    _ if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                    _ => {}
                }
                for (pin, value) in &held {
                    prop_assert_eq!(bytes_of(pin), vec![*value; LENGTH]);
                }
                for (block, value) in present.iter().enumerate() {
                    prop_assert_eq!(p.read(block), &[*value; LENGTH][..]);
                }
            }
            drop(held);
            let most = p.spares.len().min(count);
            let pins: Vec<Option<Pin>> = (0..most).map(|block| p.pin(block, 0, 1)).collect();
            prop_assert!(pins.iter().all(Option::is_some), "dropped pins leave nothing behind");
        }
    }
}

#[cfg(all(test, loom))]
#[path = "published_tests.rs"]
mod loom_tests;
