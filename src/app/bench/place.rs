//! Where each operation goes, and what must have become of the table.
//!
//! A table is cut into places of equal size; a worker walks round them, starting where no other starts. At first
//! element i holds `pattern(i)`; every push adds 1 to all elements of its place. Whole numbers up to 2^24 are exact in fp32,
//! up to 2^11 in fp16, up to 2^8 in bf16, whatever the order in which they are added up. Nobody pushes beyond, so the
//! table can be checked to the bit on any wire.

use crate::types::{Wire, mix64};

/// The numbers that come up on one wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// A prime, so that the pattern differs from segment to segment and from row to row.
    period: u64,
    /// All whole numbers up to this one are exact.
    exact: u64,
}

impl Numbers {
    /// Those of `wire`.
    pub fn of(wire: Wire) -> Numbers {
        match wire {
            Wire::Fp32 => Numbers { period: 1021, exact: 1 << 24 },
            Wire::Fp16 => Numbers { period: 1021, exact: 1 << 11 },
            Wire::Bf16 => Numbers { period: 61, exact: 1 << 8 },
        }
    }

    /// What element `i` holds before the first push.
    pub fn pattern(self, i: u64) -> f32 {
        (i % self.period) as f32
    }

    /// Operations that one worker may do so that the pushes of `workers` of them stay exact in all of `places`.
    pub fn most_operations(self, places: u64, workers: u32) -> u64 {
        places.saturating_mul((self.exact - self.period) / u64::from(workers.max(1)))
    }
}

/// `count` different rows of `rows`, ascending, drawn at random: the same for the same number.
pub fn draw(number: u64, count: usize, rows: u64) -> Vec<u64> {
    let mut drawn = Vec::with_capacity(count);
    let mut next = number << 40;
    while drawn.len() < count {
        let missing = count - drawn.len();
        drawn.extend((next..).take(missing).map(|n| mix64(n) % rows));
        next += missing as u64;
        drawn.sort_unstable();
        drawn.dedup();
    }
    drawn
}

/// What element `i` of memory holds that is read without a table.
pub fn pattern(i: u64) -> f32 {
    Numbers::of(Wire::Fp32).pattern(i)
}

/// One worker's way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    first: u64,
    places: u64,
}

impl Walk {
    /// The way of worker `rank` of `workers` round `places`.
    pub fn new(rank: u32, workers: u32, places: u64) -> Walk {
        let first = u128::from(rank) * u128::from(places) / u128::from(workers.max(1));
        Walk { first: first as u64, places }
    }

    /// Where its operation `n` goes.
    pub fn place(&self, n: u64) -> u64 {
        (self.first + n % self.places) % self.places
    }

    /// How often it has been at `place` after `n` operations.
    pub fn visits(&self, place: u64, n: u64) -> u64 {
        let behind = (place + self.places - self.first) % self.places;
        n / self.places + u64::from(behind < n % self.places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_pushed_and_pulled_is_exact() {
        for (wire, next) in [(Wire::Fp32, 1u64 << 24), (Wire::Fp16, 1 << 11), (Wire::Bf16, 1 << 8)] {
            let numbers = Numbers::of(wire);
            for workers in [1, 3, 64] {
                let most = numbers.most_operations(1, workers) * u64::from(workers);
                let largest = u64::from(numbers.pattern(numbers.period - 1) as u32) + most;
                assert!(most > 0 && largest < next, "{wire}: {workers} workers, {largest}");
            }
        }
    }

    #[test]
    fn drawn_rows_ascend_and_differ_from_list_to_list() {
        for (count, rows) in [(1, 2), (500, 1000), (100, 1 << 30)] {
            let list = draw(3, count, rows);
            assert_eq!(list.len(), count);
            assert!(list.windows(2).all(|w| w[0] < w[1]) && list.iter().all(|&row| row < rows));
            assert_eq!(list, draw(3, count, rows));
        }
        assert_ne!(draw(3, 100, 1000), draw(4, 100, 1000));
    }

    #[test]
    fn visits_count_what_place_gives() {
        for (rank, workers, places) in [(0, 1, 1), (0, 3, 7), (2, 3, 7), (3, 4, 2), (1, 2, 64)] {
            let walk = Walk::new(rank, workers, places);
            let mut seen = vec![0u64; places as usize];
            for n in 0..200 {
                for place in 0..places {
                    assert_eq!(walk.visits(place, n), seen[place as usize]);
                }
                seen[walk.place(n) as usize] += 1;
            }
        }
    }
}
