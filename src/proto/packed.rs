//! Sorted keys as the differences between them, in as many bits as the largest difference of a bucket's keys needs.
//!
//! ```text
//!  widths   entries × u8, up to the next multiple of 8    bits of a difference, 0 to 56, for each line of the directory
//!  then for each line
//!  first    u64                                           its first key
//!  others   (keys − 1) × width bits, up to the next u64   key − key before − 1, from the lowest bit up
//! ```
//! Whole words of one width are decoded without a branch on their length, as numbers of varying length would need for each. Keys that are
//! spread over all of u64 have nothing to gain, and travel as they are; so do those whose differences need more than 56 bits.

use crate::error::Malformed;
use crate::types::{DirectoryEntry, Key};

/// The widest difference, in bits.
pub const WIDEST: u8 = 56;

/// Words that the keys of one line take.
pub fn words(keys: usize, width: u8) -> usize {
    1 + (keys.saturating_sub(1) * usize::from(width)).div_ceil(64)
}

/// Words that the widths of so many lines take.
pub fn width_words(entries: usize) -> usize {
    entries.div_ceil(8)
}

/// Bits of the largest difference of ascending keys; more than [`WIDEST`] when they can't be packed.
pub fn width(keys: impl Iterator<Item = Key>) -> u8 {
    let mut last = None;
    let mut all = 0u64;
    for key in keys {
        all |= last.replace(key).map_or(0, |last| key.wrapping_sub(last).wrapping_sub(1));
    }
    (u64::BITS - all.leading_zeros()) as u8
}

/// Gives the words of one line's keys, of which there is one at least and whose width is this, one after another.
pub fn encode(mut keys: impl Iterator<Item = Key>, width: u8, mut word: impl FnMut(u64)) {
    let Some(mut last) = keys.next() else { return };
    word(last);
    let (mut bits, mut have) = (0u128, 0u8);
    for key in keys {
        bits |= u128::from(key.wrapping_sub(last).wrapping_sub(1)) << have;
        last = key;
        have += width;
        if have >= 64 {
            word(bits as u64);
            bits >>= 64;
            have -= 64;
        }
    }
    if have > 0 {
        word(bits as u64);
    }
}

/// The keys of `directory`, as many as `keys` has room for, from `words`, which were copied from a peer.
pub fn decode(directory: &[DirectoryEntry], words: &[u64], keys: &mut [Key]) -> Result<(), Malformed> {
    let short = || Malformed::new("keys", "as many words as their widths say", words.len());
    let (widths, mut rest) = words.split_at_checked(width_words(directory.len())).ok_or_else(short)?;
    let widths: &[u8] = bytemuck::cast_slice(widths);
    let all = keys.len();
    let mut left = keys;
    for (entry, &width) in directory.iter().zip(widths) {
        if width > WIDEST {
            return Err(Malformed::new("keys", format!("differences of at most {WIDEST} bits"), width));
        }
        let counts =
            || Malformed::new("directory", format!("counts of 1 or more that are {all} in all"), entry.keys);
        let (here, behind) =
            std::mem::take(&mut left).split_at_mut_checked(entry.keys as usize).ok_or_else(counts)?;
        left = behind;
        let (first, others) = here.split_first_mut().ok_or_else(counts)?;
        let (packed, next) =
            rest.split_at_checked(self::words(entry.keys as usize, width)).ok_or_else(short)?;
        rest = next;
        let mut packed = packed.iter();
        let mut key = packed.next().copied().unwrap_or_default();
        *first = key;
        let (mask, mut bits, mut have, mut wrapped) = ((1u128 << width) - 1, 0u128, 0u8, false);
        for other in others {
            if have < width {
                bits |= u128::from(packed.next().copied().unwrap_or_default()) << have;
                have += 64;
            }
            let difference = (bits & mask) as u64; // below 2^56
            bits >>= width;
            have -= width;
            let (sum, over) = key.overflowing_add(difference + 1);
            wrapped |= over;
            key = sum;
            *other = key;
        }
        if wrapped {
            return Err(Malformed::new("keys", "keys below 2^64", "a sum beyond"));
        }
    }
    if !left.is_empty() || !rest.is_empty() {
        let found = format!("{} keys and {} words left", left.len(), rest.len());
        return Err(Malformed::new("directory", format!("{all} keys in all their words"), found));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(lists: &[Vec<Key>]) -> (Vec<DirectoryEntry>, Vec<u64>) {
        let entry = |(bucket, list): (u32, &Vec<Key>)| DirectoryEntry { bucket, keys: list.len() as u32 };
        let directory: Vec<_> = (0..).zip(lists).map(entry).collect();
        let mut widths: Vec<u8> = lists.iter().map(|list| width(list.iter().copied())).collect();
        widths.resize(width_words(lists.len()) * 8, 0);
        let mut packed: Vec<u64> = widths.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        for (list, &width) in lists.iter().zip(&widths) {
            let before = packed.len();
            encode(list.iter().copied(), width, |word| packed.push(word));
            assert_eq!(packed.len() - before, words(list.len(), width));
        }
        (directory, packed)
    }

    fn unpack(directory: &[DirectoryEntry], words: &[u64], count: usize) -> Result<Vec<Key>, Malformed> {
        let mut keys = vec![7; count];
        decode(directory, words, &mut keys).map(|()| keys)
    }

    proptest! {
        #[test]
        fn keys_come_back(
            lists in proptest::collection::vec(
                (any::<u64>(), proptest::collection::vec(any::<u64>(), 0..40), 0u32..57), 1..6),
        ) {
            let list = |(first, differences, bits): (u64, Vec<u64>, u32)| {
                let mut list = vec![first];
                for difference in differences {
                    let next = list[list.len() - 1].checked_add((difference & ((1 << bits) - 1)) + 1);
                    list.extend(next);
                }
                list
            };
            let lists: Vec<Vec<Key>> = lists.into_iter().map(list).collect();
            prop_assert!(lists.iter().all(|list| width(list.iter().copied()) <= WIDEST));
            let (directory, words) = pack(&lists);
            let all = lists.concat();
            prop_assert_eq!(unpack(&directory, &words, all.len()), Ok(all.clone()));
            prop_assert!(unpack(&directory, &words, all.len() + 1).is_err());
            prop_assert!(unpack(&directory, &words, all.len() - 1).is_err());
            prop_assert!(unpack(&directory, &words[..words.len() - 1], all.len()).is_err());
            prop_assert!(unpack(&directory, &[&words[..], &[0]].concat(), all.len()).is_err());
        }

        /// Whatever the words are: ascending keys, or an error.
        #[test]
        fn any_words_give_ascending_keys_or_an_error(
            counts in proptest::collection::vec(0u32..20, 0..5),
            words in proptest::collection::vec(any::<u64>(), 0..30), extra in 0usize..3,
        ) {
            let directory: Vec<_> = counts.iter().map(|&keys| DirectoryEntry { bucket: 0, keys }).collect();
            let count = counts.iter().sum::<u32>() as usize + extra;
            if let Ok(keys) = unpack(&directory, &words, count) {
                let mut rest = &keys[..];
                for entry in &directory {
                    let (here, behind) = rest.split_at(entry.keys as usize);
                    prop_assert!(here.windows(2).all(|w| w[0] < w[1]));
                    rest = behind;
                }
            }
        }
    }

    #[test]
    fn golden_words() {
        // Differences less one: 0, 2, 1, in 2 bits each; then a line of one key.
        let (directory, words) = pack(&[vec![10, 11, 14, 16], vec![u64::MAX]]);
        assert_eq!(words, [0x0002, 10, 0b01_10_00, u64::MAX]);
        assert_eq!(unpack(&directory, &words, 5), Ok(vec![10, 11, 14, 16, u64::MAX]));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_field() {
        let one = [DirectoryEntry { bucket: 0, keys: 2 }];
        let field = |words: &[u64], count| unpack(&one, words, count).unwrap_err().field;
        assert_eq!(field(&[57, 1, 0], 2), "keys", "too wide");
        assert_eq!(field(&[], 2), "keys", "no widths");
        assert_eq!(field(&[8, 1], 2), "keys", "too short");
        assert_eq!(field(&[8, u64::MAX, 0], 2), "keys", "beyond 2^64");
        assert_eq!(field(&[8, 1, 0, 0], 2), "directory", "a word too many");
        assert_eq!(field(&[8, 1, 0], 3), "directory");
        assert_eq!(field(&[8, 1, 0], 1), "directory");
        let none = [DirectoryEntry { bucket: 0, keys: 0 }];
        assert_eq!(unpack(&none, &[0, 1], 0).unwrap_err().field, "directory");
        assert_eq!(width([0, u64::MAX].into_iter()), 64);
    }
}
