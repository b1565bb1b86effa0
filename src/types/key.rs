//! Keys: which parameter is meant.

use crate::error::{Error, Result};

/// An element's index in a dense table, or a sparse table's id.
pub type Key = u64;

/// SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): a bijection on u64 that spreads every bit.
pub const fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The half-open range `start..end` of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange {
    start: Key,
    end: Key,
}

impl KeyRange {
    /// `start..end`; refused when it is empty or reversed.
    pub fn new(start: Key, end: Key) -> Result<KeyRange> {
        if start >= end {
            return Err(Error::config("key range", "start < end", format!("{start}..{end}")));
        }
        Ok(KeyRange { start, end })
    }

    /// First key.
    pub fn start(&self) -> Key {
        self.start
    }

    /// One past the last key.
    pub fn end(&self) -> Key {
        self.end
    }

    /// Number of keys.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// Keys in strictly ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SortedKeys<'a>(&'a [Key]);

impl<'a> SortedKeys<'a> {
    /// Checks that `keys` ascend strictly.
    pub fn new(keys: &'a [Key]) -> Result<SortedKeys<'a>> {
        match keys.windows(2).position(|w| w[0] >= w[1]) {
            None => Ok(SortedKeys(keys)),
            Some(at) => Err(Error::config(
                "keys",
                "strictly ascending keys",
                format!("{} at {at} before {} at {}", keys[at], keys[at + 1], at + 1),
            )),
        }
    }

    /// The keys.
    pub fn as_slice(&self) -> &'a [Key] {
        self.0
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_checked() {
        assert!(SortedKeys::new(&[]).is_ok());
        assert!(SortedKeys::new(&[0, 1, u64::MAX]).is_ok());
        assert!(SortedKeys::new(&[1, 1]).is_err());
        let error = SortedKeys::new(&[5, 9, 7]).unwrap_err().to_string();
        assert!(error.contains("9 at 1 before 7 at 2"), "{error}");
    }

    #[test]
    fn ranges_are_never_empty() {
        assert!(KeyRange::new(3, 3).is_err());
        assert_eq!(KeyRange::new(0, u64::MAX).unwrap().len(), u64::MAX);
    }
}
