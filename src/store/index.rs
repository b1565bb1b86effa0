//! Key → row number: open addressing with linear probing, at most 3/4 full.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use crate::types::Key;

const EMPTY: u32 = u32::MAX;

/// The rows of one sparse bucket by key. Rows are numbered from 0 in the order of their first insertion.
#[derive(Debug, Default)]
pub struct Index {
    /// A power of two of row numbers.
    places: Vec<u32>,
    /// The key of each row.
    keys: Vec<Key>,
}

impl Index {
    /// The row of `key`, if it has one.
    pub fn find(&self, key: Key) -> Option<u32> {
        if self.places.is_empty() {
            return None;
        }
        let row = self.places[self.place_of(key)];
        (row != EMPTY).then_some(row)
    }

    /// The row of `key`, a new one if it has none; `true` when it is new.
    pub fn find_or_insert(&mut self, key: Key) -> (u32, bool) {
        if self.keys.len() * 4 >= self.places.len() * 3 {
            self.grow();
        }
        let place = self.place_of(key);
        if self.places[place] != EMPTY {
            return (self.places[place], false);
        }
        // `grow` panics on capacity overflow long before 2^32 - 1 rows: a bucket of 4 G rows needs 48 GB of index alone.
        let row = self.keys.len() as u32;
        self.places[place] = row;
        self.keys.push(key);
        (row, true)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key of each row.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Where `key` stands, or the empty place where it would go. There always is an empty place.
    fn place_of(&self, key: Key) -> usize {
        let mask = self.places.len() - 1;
        let mut place = hash(key) as usize & mask;
        loop {
            let row = self.places[place];
            if row == EMPTY || self.keys[row as usize] == key {
                return place;
            }
            place = (place + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let size = (self.places.len() * 2).max(16);
        self.places.clear();
        self.places.resize(size, EMPTY);
        for row in 0..self.keys.len() {
            let mut place = hash(self.keys[row]) as usize & (size - 1);
            while self.places[place] != EMPTY {
                place = (place + 1) & (size - 1);
            }
            self.places[place] = row as u32;
        }
    }
}

/// A hash that nobody outside this process can predict, so that no worker can choose keys that all collide. Only where a
/// row is looked for depends on it; the rows' order and values don't.
///
/// The folded product of wyhash (Wang Yi, 2019): both halves of the 128-bit product of the salted key.
fn hash(key: Key) -> u64 {
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
        #[test]
        fn agrees_with_a_hash_map(keys in proptest::collection::vec(0u64..300, 0..600)) {
            let mut oracle = HashMap::new();
            let mut index = Index::default();
            for key in keys {
                let key = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let next = oracle.len() as u32;
                let expected = *oracle.entry(key).or_insert(next);
                prop_assert_eq!(index.find(key), (expected != next).then_some(expected));
                prop_assert_eq!(index.find_or_insert(key), (expected, expected == next));
            }
            prop_assert_eq!(index.len(), oracle.len());
        }
    }
}
