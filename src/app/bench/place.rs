//! Where each operation goes, and what must have become of the table.
//!
//! A table is cut into places of equal size; a worker walks round them, starting where no other starts. At first
//! element i holds `pattern(i)`; every push adds 1 to all elements of its place. Sums of whole numbers below 2^24
//! are exact in fp32 in any order, so the table can be checked to the bit.

/// The most pushes that one place may see, from all workers: with the pattern below 2^24.
pub const MOST_PUSHES: u64 = (1 << 24) - PERIOD - 1;
/// A prime, so that the pattern differs from segment to segment and from row to row.
const PERIOD: u64 = 1021;

/// What element `i` holds before the first push.
pub fn pattern(i: u64) -> f32 {
    // Below 2^24: exact.
    (i % PERIOD) as f32
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

/// Pushes that one worker may make so that `workers` of them stay exact.
pub fn most_operations(places: u64, workers: u32) -> u64 {
    places.saturating_mul(MOST_PUSHES / u64::from(workers.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
