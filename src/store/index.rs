//! Key → a row's position: open addressing by cache lines, in segments that split.
//!
//! ```text
//!  line, 64 bytes    keys u64 × 5 │ their rows' positions + 1, 0 where there is none, u32 × 5 │ 0 u32
//! ```
//! A key stands in the first line that had room, from the one on at which its search begins. A segment has three keys for a line at most,
//! so that few searches go beyond one line. Such a search costs more than the other line: the CPU had guessed that it ends, and gives up
//! what it did ahead.
//!
//! A segment that is full is split in two by the next bit of its keys' hashes (extendible hashing: Fagin, Nievergelt, Pippenger and
//! Strong, TODS 1979). So no insertion moves more than a few segments' keys, however many there are, and a key is always looked for in
//! one place. Twice as many segments need a directory of twice the length: 4 bytes for each of them are copied.
//!
//! ```text
//!  hash   first 8 bits: the group, which has a directory of its own │ that directory's entry: the segment │ … │ last 8 bits: the line
//! ```
//! All buckets of a table have one index. The first bits of a hash tell a key's bucket from others as [`mix64`] does: keys of one bucket
//! follow each other in a frame, and lie in the same few segments. So they are found without knowing their bucket, and in what the
//! caches hold already where a frame has many of one.

use std::hash::{BuildHasher, RandomState};
use std::hint::select_unpredictable;
use std::sync::OnceLock;

use crate::mem::{Slabs, prefetch};
use crate::types::{Key, mix64};

/// Where a key without a row would be.
pub const MISSING: u32 = u32::MAX;

/// Lines of a segment: 16 KiB. The directories of ten million keys take 64 KiB, and stay in a cache.
const SEGMENT: usize = 256;
/// Keys of a segment, at most.
const FULL: usize = SEGMENT * 3;
/// Keys of an index that has no segment yet, at most.
const FEW: usize = 64;

/// Keys that one line holds.
const WAYS: usize = 5;

/// Some keys and their rows, from the beginning of the line on.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line {
    keys: [Key; WAYS],
    /// The rows' positions + 1; 0 where there is no key, and behind them.
    rows: [u32; WAYS + 1],
}

const EMPTY: Line = Line { keys: [0; WAYS], rows: [0; WAYS + 1] };
static NO_LINES: [Line; SEGMENT] = [EMPTY; SEGMENT];

impl Line {
    /// Its keys and their rows' positions.
    fn iter(&self) -> impl Iterator<Item = (Key, u32)> + '_ {
        let taken = self.keys.iter().zip(&self.rows).filter(|&(_, &row)| row > 0);
        taken.map(|(&key, &row)| (key, row - 1))
    }

    /// Its last way is taken.
    #[inline(always)]
    fn is_full(&self) -> bool {
        self.rows[WAYS - 1] > 0
    }
}

/// The positions of rows by key.
#[derive(Debug)]
pub struct Index {
    /// All keys as long as they are few: such a table needs no mapping for its index.
    few: Option<Box<[Line; SEGMENT]>>,
    /// By the first [`TOGETHER`] bits of the hash. Empty before the first segment.
    groups: Vec<Group>,
    /// The directories of all groups: segments. What one has left for a place of twice the length is not used again.
    directory: Vec<u32>,
    segments: Vec<Segment>,
    lines: Slabs<Line>,
    /// Keys that were put elsewhere so far, to make room.
    #[cfg(test)]
    moved: u64,
}

/// The keys whose hashes have their first [`TOGETHER`] bits in common. A server thread may have keys of one group only, and many.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// Where its directory begins, which has an entry for each value of the next `bits` of the hash. The segment of one that is alone may be
    /// that of other groups, too.
    first: u32,
    bits: u32,
}

impl Group {
    /// The entry for a hash.
    #[inline(always)]
    fn entry(self, hash: u64) -> usize {
        self.first as usize + self.place(hash)
    }

    /// The same, counted from the first.
    #[inline(always)]
    fn place(self, hash: u64) -> usize {
        (hash << TOGETHER >> 1 >> (63 - self.bits)) as usize
    }
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    keys: u16,
    /// Leading bits of the hash that all its keys have in common.
    bits: u8,
}

impl Default for Index {
    fn default() -> Index {
        Index {
            few: None,
            groups: Vec::new(),
            directory: Vec::new(),
            segments: Vec::new(),
            lines: Slabs::new(SEGMENT),
            #[cfg(test)]
            moved: 0,
        }
    }
}

/// A search that has not begun. Its memory can be fetched before it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    lines: &'a [Line; SEGMENT],
    at: usize,
}

impl Probe<'_> {
    /// One that finds nothing.
    pub const NOTHING: Probe<'static> = Probe { lines: &NO_LINES, at: 0 };

    /// Has the CPU fetch the line in which most searches end.
    #[inline(always)]
    pub fn prefetch(self) {
        prefetch(&raw const self.lines[self.at]);
    }

    /// The key's row; [`MISSING`] if it has none.
    #[inline(always)]
    pub fn find(self, key: Key) -> u32 {
        let mut at = self.at;
        loop {
            let line = &self.lines[at];
            // All of a line at once: where in it the key stands is as good as random, and no CPU could foresee a way out. The first
            // way that has it counts: those that are free have the key 0.
            let choose = |found, way| select_unpredictable(line.keys[way] == key, way, found);
            let row = line.rows[(0..WAYS).rev().fold(WAYS, choose)];
            // Without a row 0 − 1 is `MISSING`.
            if row > 0 || !line.is_full() {
                return row.wrapping_sub(1);
            }
            at = (at + 1) % SEGMENT;
        }
    }
}

impl Index {
    /// Where the search for a key begins.
    #[inline(always)]
    pub fn probe(&self, key: Key) -> Probe<'_> {
        let hash = hash(key);
        let segment = self.groups.get(group(hash)).and_then(|group| self.directory.get(group.entry(hash)));
        let lines = segment.and_then(|&segment| self.lines.get(segment).first_chunk());
        Probe { lines: lines.or(self.few.as_deref()).unwrap_or(&NO_LINES), at: first(hash) }
    }

    /// Its row; [`MISSING`] if it has none.
    pub fn find(&self, key: Key) -> u32 {
        self.probe(key).find(key)
    }

    /// Gives `key`, which must not be there, the row at this position, below [`MISSING`].
    pub fn insert(&mut self, key: Key, row: u32) {
        let hash = hash(key);
        if self.groups.is_empty() && !self.begin(hash, key, row) {
            return;
        }
        let mut segment = self.segment(hash);
        while usize::from(self.segments[segment as usize].keys) >= FULL {
            self.split(segment, hash);
            segment = self.segment(hash);
        }
        self.put(segment, hash, key, row);
    }

    /// Puts a key beside few others; true, and it is not put, where these are the first segment now.
    fn begin(&mut self, of: u64, key: Key, row: u32) -> bool {
        let few = self.few.get_or_insert_with(|| Box::new([EMPTY; SEGMENT]));
        if few.iter().flat_map(Line::iter).count() < FEW {
            put(&mut few[..], of, key, row);
            return false;
        }
        let segment = self.add_segment(0);
        self.groups = (0..1 << TOGETHER).map(|first| Group { first, bits: 0 }).collect();
        self.directory = vec![segment; 1 << TOGETHER];
        let few = self.few.take();
        for (key, row) in few.iter().flat_map(|few| few.iter()).flat_map(Line::iter) {
            self.put(segment, hash(key), key, row);
        }
        true
    }

    /// Its memory.
    pub fn slabs(&mut self) -> &mut Slabs<Line> {
        &mut self.lines
    }

    /// That of a hash, once there is one.
    fn segment(&self, hash: u64) -> u32 {
        self.directory[self.groups[group(hash)].entry(hash)]
    }

    fn add_segment(&mut self, bits: u8) -> u32 {
        self.segments.push(Segment { keys: 0, bits });
        self.lines.add()
    }

    /// Gives half of the keys of a segment, that of a key with this hash, to a new one.
    fn split(&mut self, old: u32, of: u64) {
        let bits = self.segments[old as usize].bits + 1;
        let new = self.add_segment(bits);
        let mut lines = [EMPTY; SEGMENT];
        lines.copy_from_slice(self.lines.get(old));
        self.lines.get_mut(old).fill(EMPTY);
        self.segments[old as usize] = Segment { keys: 0, bits };
        let upper = |hash: u64| hash >> (64 - u32::from(bits)) & 1 == 1;
        for (key, row) in lines.iter().flat_map(Line::iter) {
            let hash = hash(key);
            self.put(if upper(hash) { new } else { old }, hash, key, row);
        }
        #[cfg(test)]
        (self.moved += FULL as u64);
        self.give_half(new, u32::from(bits), of);
    }

    /// A new segment, whose keys have `bits` leading bits in common with each other, and one less with this hash, takes the upper half of
    /// the places that lead to the old one: they follow each other.
    fn give_half(&mut self, new: u32, bits: u32, of: u64) {
        let upper = |place: usize, places: usize| {
            let first = place / places * places;
            first + places / 2..first + places
        };
        let Some(deep) = bits.checked_sub(TOGETHER).filter(|&deep| deep > 0) else {
            // Groups whose directories have one entry each, which lie where they lay at first.
            return self.directory[upper(group(of), 2 << (TOGETHER - bits))].fill(new);
        };
        let group = &mut self.groups[group(of)];
        if deep > group.bits {
            let (first, length) = (group.first as usize, 1 << group.bits);
            // 2^32 entries would lead to more keys than positions can count: memory ends long before.
            *group = Group { first: self.directory.len() as u32, bits: deep };
            self.directory.reserve(2 * length);
            for entry in first..first + length {
                self.directory.extend([self.directory[entry]; 2]);
            }
        }
        let entries = upper(group.place(of), 2 << (group.bits - deep));
        let first = group.first as usize;
        self.directory[first + entries.start..first + entries.end].fill(new);
    }

    /// Puts a key that is not there into a segment that has room.
    fn put(&mut self, segment: u32, hash: u64, key: Key, row: u32) {
        self.segments[segment as usize].keys += 1;
        put(self.lines.get_mut(segment), hash, key, row);
    }
}

/// Puts a key that is not there into lines that have room.
fn put(lines: &mut [Line], hash: u64, key: Key, row: u32) {
    let mut at = first(hash);
    while lines[at].is_full() {
        at = (at + 1) % SEGMENT;
    }
    let line = &mut lines[at];
    let taken = line.iter().count();
    (line.keys[taken], line.rows[taken]) = (key, row + 1);
}

/// The group of a hash.
#[inline(always)]
fn group(hash: u64) -> usize {
    (hash >> (64 - TOGETHER)) as usize
}

/// The line of a segment at which the search for a key begins.
#[inline(always)]
fn first(hash: u64) -> usize {
    hash as usize % SEGMENT
}

/// Bits of a hash that keep keys of one bucket together, where there are not many more buckets than these tell apart. Whoever chooses keys
/// that have all of them in common fills one group, whose directory is then as long as those of all groups would be.
const TOGETHER: u32 = 8;

/// A hash of which nobody outside this process can predict more than the first [`TOGETHER`] bits, so that no worker can choose keys that
/// all collide. Only where a row is looked for depends on it; the rows' order and values don't.
///
/// The folded product of wyhash (Wang Yi, 2019): both halves of the 128-bit product of the salted key.
#[inline(always)]
fn hash(key: Key) -> u64 {
    static SALTS: OnceLock<[u64; 2]> = OnceLock::new();
    let [first, second] = *SALTS.get_or_init(|| {
        let random = RandomState::new(); // seeded by the system
        [random.hash_one(1u8), random.hash_one(2u8) | 1]
    });
    let product = u128::from(key ^ first) * u128::from(second);
    let secret = product as u64 ^ (product >> 64) as u64;
    secret >> TOGETHER | mix64(key) >> (64 - TOGETHER) << (64 - TOGETHER)
}

#[cfg(test)]
mod tests {
    use super::*;
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

    impl Index {
        /// Of all directories.
        fn entries(&self) -> usize {
            let used = self.groups.iter().map(|group| 1 << group.bits).sum();
            assert!(self.directory.len() <= 2 * used, "{} for {used}", self.directory.len());
            used
        }
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

    /// Keys of one bucket of very many: they split segments all the same, and the directory is no longer than it may be.
    #[test]
    fn keys_that_mix_alike_are_found_in_a_directory_of_bounded_length() {
        let keys: Vec<Key> = (0..100_000u64).map(|i| unmix(0xABCD_EF01 << 32 | i)).collect();
        assert!(keys.iter().all(|&key| mix64(key) >> 32 == 0xABCD_EF01));
        let mut index = Index::default();
        for (row, &key) in (0..).zip(&keys) {
            let before = index.moved;
            index.insert(key, row);
            assert!(index.moved - before <= (u64::from(TOGETHER) + 2) * FULL as u64);
        }
        assert!(index.entries() <= keys.len() * 4 / FULL + (1 << TOGETHER), "{}", index.entries());
        assert!((0..).zip(&keys).all(|(row, &key)| index.find(key) == row));
    }

    proptest! {
        #[test]
        fn agrees_with_a_hash_map(
            keys in proptest::collection::vec(0u64..5000, 0..12_000), spread in any::<u64>(),
        ) {
            let (mut oracle, mut index) = (HashMap::new(), Index::default());
            for key in keys {
                let key = key.wrapping_mul(spread | 1);
                let next = oracle.len() as u32;
                let known = oracle.get(&key).copied();
                prop_assert_eq!(index.find(key), known.unwrap_or(MISSING));
                if known.is_none() {
                    oracle.insert(key, next);
                    index.insert(key, next);
                }
            }
            for (&key, &row) in &oracle {
                prop_assert_eq!(index.find(key), row);
            }
        }
    }

    /// However many keys there are: what one insertion moves does not grow with them.
    #[test]
    fn an_insertion_moves_a_segments_keys_at_most() {
        let mut index = Index::default();
        let (mut most, mut splits) = (0, 0);
        for row in 0..300_000u32 {
            let before = index.moved;
            index.insert(mix64(u64::from(row)), row);
            let moved = index.moved - before;
            most = most.max(moved);
            splits += u64::from(moved > 0);
        }
        // Twice a segment's, if all keys of one had the next bit in common.
        assert!(most <= 2 * FULL as u64, "{most}");
        assert!(splits >= 511 && index.entries() >= 512, "{splits} {}", index.entries());
        assert!(index.entries() <= 300_000 * 4 / FULL, "{}", index.entries());
        for row in 0..300_000u32 {
            assert_eq!(index.find(mix64(u64::from(row))), row);
        }
        // One in fifty is to be expected with as many keys as here, two and a third for a line.
        let is_beyond = |&row: &u32| {
            let (key, probe) = (mix64(u64::from(row)), index.probe(mix64(u64::from(row))));
            !probe.lines[probe.at].iter().any(|(other, _)| other == key)
        };
        let beyond = (0..300_000u32).filter(is_beyond).count();
        assert!(beyond < 300_000 / 25, "{beyond}");
    }
}
