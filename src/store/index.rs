//! Key → a row's position: open addressing with linear probing, in segments that split.
//!
//! The few keys of a small bucket stand in one list of places, which is made anew, twice as long, when 3/4 of it are taken, until
//! it has as many places as a segment. From then on a segment that has no room is split in two by the next bit of its keys' hashes
//! (extendible hashing: Fagin, Nievergelt, Pippenger and Strong, TODS 1979). So no insertion moves more than a segment's keys,
//! however many there are, and a key is always looked for in one place. Twice as many segments need a directory of twice the
//! length: 4 bytes for each of them are copied.

use std::hash::{BuildHasher, RandomState};
use std::hint::select_unpredictable;
use std::sync::OnceLock;

use crate::mem::{Slabs, prefetch};
use crate::types::Key;

/// Where a key without a row would be.
pub const MISSING: u32 = u32::MAX;

/// Places of a segment: a page of memory.
const SEGMENT: usize = 256;
/// Places of the shortest list.
const LEAST: usize = 8;

/// One place: a key and its row, or nothing.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Place {
    key: Key,
    /// The row's position + 1; 0 when the place is empty.
    row: u32,
    unused: u32,
}

const EMPTY: Place = Place { key: 0, row: 0, unused: 0 };

/// Places of a cache line.
const LINE: usize = 4;
static NO_PLACES: [Place; LINE] = [EMPTY; LINE];

/// The segments of the indices of all buckets of a table.
#[derive(Debug)]
pub struct Segments {
    slabs: Slabs<Place>,
    of: Vec<Segment>,
    /// Keys that were put elsewhere so far, to make room.
    #[cfg(test)]
    pub moved: u64,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    keys: u16,
    /// Leading bits of the hash that all its keys have in common.
    bits: u8,
}

impl Default for Segments {
    fn default() -> Segments {
        Segments {
            slabs: Slabs::new(SEGMENT),
            of: Vec::new(),
            #[cfg(test)]
            moved: 0,
        }
    }
}

impl Segments {
    fn add(&mut self, bits: u8) -> u32 {
        self.of.push(Segment { keys: 0, bits });
        self.slabs.add()
    }

    /// Their memory.
    pub fn slabs(&mut self) -> &mut Slabs<Place> {
        &mut self.slabs
    }

    /// Puts a key that is not there into a segment.
    fn put(&mut self, segment: u32, hash: u64, key: Key, row: u32) {
        put(self.slabs.get_mut(segment), hash, Place { key, row: row + 1, unused: 0 });
        self.of[segment as usize].keys += 1;
    }

    fn count_moved(&mut self, keys: usize) {
        #[cfg(test)]
        (self.moved += keys as u64);
        let _ = keys;
    }
}

/// The positions of one sparse bucket's rows by key.
#[derive(Debug, Default)]
pub struct Index {
    /// As long as there is no directory.
    few: Vec<Place>,
    few_keys: usize,
    /// By the leading `bits` of the hash: the segment.
    directory: Vec<u32>,
    bits: u32,
}

/// A search that has not begun. Its memory can be fetched before it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    lines: &'a [[Place; LINE]],
    at: usize,
}

impl<'a> Probe<'a> {
    /// One that finds nothing.
    pub const NOTHING: Probe<'static> = Probe { lines: NO_PLACES.as_chunks().0, at: 0 };

    /// Has the CPU fetch the line in which most searches end.
    #[inline(always)]
    pub fn prefetch(self) {
        prefetch(self.lines.as_ptr().wrapping_add(self.at));
    }

    /// The key's row; [`MISSING`] if it has none.
    #[inline(always)]
    pub fn find(self, key: Key) -> u32 {
        let mut at = self.at;
        loop {
            let line = &self.lines[at];
            // All of a line at once: where in it the key stands is as good as random, and no CPU could foresee a way out.
            let row = |place: &Place| select_unpredictable(place.key == key, place.row, 0);
            let row = line.iter().fold(0, |found, place| found | row(place));
            // Lines fill up from their beginning, and a key stands in the first one that had room. Without a row 0 − 1 is `MISSING`.
            if row > 0 || line[LINE - 1].row == 0 {
                return row.wrapping_sub(1);
            }
            at = (at + 1) % self.lines.len();
        }
    }
}

impl Index {
    /// Where the search for a key with this hash begins.
    #[inline(always)]
    pub fn probe<'a>(&'a self, segments: &'a Segments, hash: u64) -> Probe<'a> {
        let places = match self.directory.get(self.entry(hash)) {
            Some(&segment) => segments.slabs.get(segment),
            None if self.few.is_empty() => &NO_PLACES,
            None => &self.few,
        };
        Probe { lines: places.as_chunks().0, at: first(hash, places.len()) / LINE }
    }

    /// The row of `key`, whose hash is `hash`; [`MISSING`] if it has none.
    pub fn find(&self, segments: &Segments, hash: u64, key: Key) -> u32 {
        self.probe(segments, hash).find(key)
    }

    /// Gives `key`, which must not be there, the row at this position, below [`MISSING`].
    pub fn insert(&mut self, segments: &mut Segments, hash: u64, key: Key, row: u32) {
        if self.directory.is_empty() {
            if (self.few_keys + 1) * 4 <= self.few.len() * 3 {
                self.few_keys += 1;
                return put(&mut self.few, hash, Place { key, row: row + 1, unused: 0 });
            }
            self.lengthen(segments);
            return self.insert(segments, hash, key, row);
        }
        let mut segment = self.directory[self.entry(hash)];
        while (usize::from(segments.of[segment as usize].keys) + 1) * 4 > SEGMENT * 3 {
            self.split(segments, segment, hash);
            segment = self.directory[self.entry(hash)];
        }
        segments.put(segment, hash, key, row);
    }

    /// The directory's entry for a hash.
    #[inline]
    fn entry(&self, hash: u64) -> usize {
        (hash >> 1 >> (63 - self.bits)) as usize
    }

    /// Puts what the list holds into one of twice its length, or into the first segment.
    fn lengthen(&mut self, segments: &mut Segments) {
        let old = std::mem::take(&mut self.few);
        let keys = old.iter().filter(|place| place.row > 0);
        segments.count_moved(self.few_keys);
        if old.len() * 2 < SEGMENT {
            self.few = vec![EMPTY; (old.len() * 2).max(LEAST)];
            keys.for_each(|place| put(&mut self.few, hash(place.key), *place));
        } else {
            let segment = segments.add(0);
            self.directory = vec![segment];
            keys.for_each(|place| segments.put(segment, hash(place.key), place.key, place.row - 1));
        }
    }

    /// Gives half of the keys of a segment, that of a key with this hash, to a new one.
    fn split(&mut self, segments: &mut Segments, old: u32, of: u64) {
        let bits = segments.of[old as usize].bits + 1;
        if u32::from(bits) > self.bits {
            // 2^32 segments would be beyond what their numbers count: memory ends long before.
            self.bits = u32::from(bits);
            self.directory = self.directory.iter().flat_map(|&segment| [segment; 2]).collect();
        }
        let new = segments.add(bits);
        let mut places = [EMPTY; SEGMENT];
        places.copy_from_slice(segments.slabs.get(old));
        segments.slabs.get_mut(old).fill(EMPTY);
        segments.of[old as usize] = Segment { keys: 0, bits };
        let upper = |hash: u64| hash >> (64 - u32::from(bits)) & 1 == 1;
        for place in places.iter().filter(|place| place.row > 0) {
            let hash = hash(place.key);
            segments.put(if upper(hash) { new } else { old }, hash, place.key, place.row - 1);
        }
        segments.count_moved(SEGMENT * 3 / 4);
        // The entries of the old segment follow each other; the upper half of them becomes the new one's.
        let entries = 1usize << (self.bits - u32::from(bits) + 1);
        let first = self.entry(of) / entries * entries;
        self.directory[first + entries / 2..first + entries].fill(new);
    }
}

/// The place of `places`, a power of two, at which the search for a key begins: the first one of a cache line, so that most
/// searches end in it.
#[inline]
fn first(hash: u64, places: usize) -> usize {
    hash as usize & (places - 1) & !(LINE - 1)
}

/// Puts a place where its key, which is not there, is looked for. There is room.
fn put(places: &mut [Place], hash: u64, place: Place) {
    let mask = places.len() - 1;
    let mut at = first(hash, places.len());
    while places[at].row > 0 {
        at = (at + 1) & mask;
    }
    places[at] = place;
}

/// A hash that nobody outside this process can predict, so that no worker can choose keys that all collide. Only where a
/// row is looked for depends on it; the rows' order and values don't.
///
/// The folded product of wyhash (Wang Yi, 2019): both halves of the 128-bit product of the salted key.
#[inline]
pub fn hash(key: Key) -> u64 {
    static SALTS: OnceLock<[u64; 2]> = OnceLock::new();
    let [first, second] = *SALTS.get_or_init(|| {
        let random = RandomState::new(); // seeded by the system
        [random.hash_one(1u8), random.hash_one(2u8) | 1]
    });
    let product = u128::from(key ^ first) * u128::from(second);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::mix64;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// The inverse of an odd factor, by Newton's iteration.
    fn inverse(factor: u64) -> u64 {
        (0..6).fold(factor, |x, _| x.wrapping_mul(2u64.wrapping_sub(factor.wrapping_mul(x))))
    }

    /// The key that [`mix64`] makes `x` of.
    fn unmix(mut x: u64) -> u64 {
        x = (x ^ x >> 31 ^ x >> 62).wrapping_mul(inverse(0x94D0_49BB_1331_11EB));
        x = (x ^ x >> 27 ^ x >> 54).wrapping_mul(inverse(0xBF58_476D_1CE4_E5B9));
        x ^ x >> 30 ^ x >> 60
    }

    #[test]
    fn keys_chosen_to_collide_do_not() {
        let keys: Vec<Key> = (0..4096u64).map(|i| unmix(i << 32)).collect();
        assert!(keys.iter().all(|&key| mix64(key) as u32 == 0));
        // 4096 random places of 4096 leave about 63 % of them different.
        let mut places: Vec<u64> = keys.iter().map(|&key| hash(key) % 4096).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 2000, "{}", places.len());
    }

    proptest! {
        /// Two indices that grow side by side, through lists, segments and directories.
        #[test]
        fn agrees_with_a_hash_map(
            keys in proptest::collection::vec((0u64..1500, any::<bool>()), 0..6000), spread in any::<u64>(),
        ) {
            let mut oracles = [HashMap::new(), HashMap::new()];
            let (mut segments, mut indices) = (Segments::default(), [Index::default(), Index::default()]);
            for (key, other) in keys {
                let key = key.wrapping_mul(spread | 1);
                let (oracle, index) = (&mut oracles[usize::from(other)], &mut indices[usize::from(other)]);
                let next = oracle.len() as u32;
                let known = oracle.get(&key).copied();
                prop_assert_eq!(index.find(&segments, hash(key), key), known.unwrap_or(MISSING));
                if known.is_none() {
                    oracle.insert(key, next);
                    index.insert(&mut segments, hash(key), key, next);
                }
            }
            for (oracle, index) in oracles.iter().zip(&indices) {
                for (&key, &row) in oracle {
                    prop_assert_eq!(index.find(&segments, hash(key), key), row);
                }
            }
        }
    }

    /// However many keys there are: what one insertion moves does not grow with them.
    #[test]
    fn an_insertion_moves_a_segments_keys_at_most() {
        let (mut segments, mut index) = (Segments::default(), Index::default());
        let (mut most, mut splits) = (0, 0);
        for row in 0..300_000u32 {
            let key = mix64(u64::from(row));
            let before = segments.moved;
            index.insert(&mut segments, hash(key), key, row);
            let moved = segments.moved - before;
            most = most.max(moved);
            splits += u64::from(moved > 0);
        }
        // Twice a segment's, if all keys of a segment had the next bit in common.
        assert!(most <= 2 * SEGMENT as u64 * 3 / 4, "{most}");
        assert!(splits > 1000 && index.directory.len() >= 1024, "{splits} {}", index.directory.len());
        for row in 0..300_000u32 {
            let key = mix64(u64::from(row));
            assert_eq!(index.find(&segments, hash(key), key), row);
        }
    }
}
