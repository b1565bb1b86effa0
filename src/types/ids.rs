//! Maps by numbers that this process, or the Coordinator of its job, has given out.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::mix64;

/// A map by tables, endpoints and the like, which each request looks for a few times. Strangers choose none of the keys that are in it, so
/// nobody can make them collide, and a hash that can't be foreseen would only take longer.
pub type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// Mixes each number into what came before.
#[derive(Debug, Clone, Copy, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix64(self.0.rotate_left(32) ^ number);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher, Hash};

    use super::*;

    fn hash(value: impl Hash) -> u64 {
        BuildHasherDefault::<IdHasher>::default().hash_one(value)
    }

    #[test]
    fn numbers_in_a_row_differ_in_both_ends_of_their_hashes() {
        // A map takes the place from the low bits, and looks at the seven highest before it compares.
        let ends = |bits: &dyn Fn(u64) -> u64| (0..1024u32).map(|n| bits(hash(n))).collect::<HashSet<_>>();
        assert!(ends(&|h| h & 0xffff).len() > 900);
        assert_eq!(ends(&|h| h >> 57).len(), 128);
    }

    #[test]
    fn the_order_of_two_numbers_counts() {
        assert_ne!(hash((1u32, 2u32)), hash((2u32, 1u32)));
        assert_eq!(hash((7u32, true)), hash((7u32, true)));
    }
}
