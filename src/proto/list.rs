//! The name of a list of keys that a server thread keeps, so that further requests for the same keys need not bring them.
//!
//! ```text
//!  0 hash 16 │ place u32 │ zero u32
//! ```
//! The worker says what is kept where: `place` is the first of those that the list takes, one for each [`ListName::KEYS`] of its keys, of
//! those that the server thread granted it. A list that is put there takes the places of those that reached there before. Frames are taken once and in order, also across endpoints, so the worker knows what lies where, and
//! nothing is ever missed: a name that is not what lies at its place breaks the protocol. A list belongs to its worker; no other
//! can name it, or put one in its place.
//!
//! The hash tells lists of one worker apart, and nothing follows from it: the server thread only compares it with that which came
//! with the keys. A worker compares whole lists before it uses a name again, and computes the hash with a key of its own that nobody
//! else knows, so that nobody who chooses its keys can make two lists collide.

use crate::error::Malformed;
use crate::types::Key;

/// Where a request has its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeysAt {
    /// In its body.
    #[default]
    Here,
    /// In its body, behind the name under which they are to be kept.
    Kept,
    /// At the server thread, under the name in its body.
    Named,
}

/// See the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListName {
    /// Of the keys in the order in which they travel.
    pub hash: [u8; 16],
    /// The first of its places, counted from 0.
    pub place: u32,
}

impl ListName {
    /// Bytes of a name.
    pub const ENCODED: usize = 24;

    /// Keys that one place holds.
    pub const KEYS: usize = 1024;

    /// Keys that are hashed at a time.
    const HASHED: usize = 512;

    /// The hash of a list of keys, in the order in which they travel: the first half of their BLAKE3 by a secret `key`.
    pub fn hash(key: &[u8; 32], mut keys: impl Iterator<Item = Key>) -> [u8; 16] {
        let mut hash = blake3::Hasher::new_keyed(key);
        let mut bytes = [0; Self::HASHED * 8];
        loop {
            let mut filled = 0;
            for (to, key) in bytes.chunks_exact_mut(8).zip(&mut keys) {
                to.copy_from_slice(&key.to_le_bytes());
                filled += 8;
            }
            hash.update(&bytes[..filled]);
            if filled < bytes.len() {
                let mut half = [0; 16];
                half.copy_from_slice(&hash.finalize().as_bytes()[..16]);
                return half;
            }
        }
    }

    /// Places that a list of so many keys takes, one behind the other.
    pub fn places(keys: usize) -> usize {
        keys.div_ceil(Self::KEYS)
    }

    /// The bytes drawn above.
    pub fn encode(&self) -> [u8; Self::ENCODED] {
        let mut out = [0; Self::ENCODED];
        out[..16].copy_from_slice(&self.hash);
        out[16..20].copy_from_slice(&self.place.to_le_bytes());
        out
    }

    /// The inverse of [`ListName::encode`].
    pub fn decode(bytes: &[u8; Self::ENCODED]) -> Result<ListName, Malformed> {
        let mut hash = [0; 16];
        hash.copy_from_slice(&bytes[..16]);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if word(20) != 0 {
            return Err(Malformed::new("list", "0 behind the place", word(20)));
        }
        Ok(ListName { hash, place: word(16) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_all_keys_in_their_order() {
        let key = [7; 32];
        for count in [0, 1, ListName::HASHED, ListName::HASHED + 1, 3000] {
            let keys: Vec<Key> = (0..count as u64).map(|i| i << 40 | i).collect();
            let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
            let whole = blake3::keyed_hash(&key, &bytes);
            assert_eq!(ListName::hash(&key, keys.iter().copied()), whole.as_bytes()[..16], "{count}");
        }
    }

    #[test]
    fn golden_bytes() {
        let hash = std::array::from_fn(|i| i as u8);
        let name = ListName { hash, place: 0x0102_0304 };
        let hex: String = name.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "000102030405060708090a0b0c0d0e0f0403020100000000");
        assert_eq!(ListName::decode(&name.encode()), Ok(name));
        let mut bytes = name.encode();
        bytes[23] = 1;
        assert_eq!(ListName::decode(&bytes).unwrap_err().field, "list");
    }
}
