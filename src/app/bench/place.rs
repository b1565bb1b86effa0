//! Where each operation goes, and what must have become of the table.
//!
//! A table is cut into places of equal size; a worker walks round them, starting where no other starts. At first
//! element i holds `pattern(i)`; every push adds 1 or -1 to each element of its place, which of the two depends on where in the
//! place it lies. Whole numbers up to 2^24 are exact in fp32, up to 2^11 in fp16, up to 2^8 in bf16, whatever the order in which
//! they are added up. Nobody pushes beyond, so the table can be checked to the bit on any wire.

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

/// What a push adds to element or key `j` of its place: 1 or -1, as a coin falls.
pub fn step(j: u64) -> f32 {
    if mix64(j) & 1 == 0 { 1.0 } else { -1.0 }
}

/// Lists of rows, another one for each operation, each uniform over all rows. Drawing one costs an addition for each row: they are
/// some that were drawn beforehand, moved round by a random number of rows, which makes any list as likely as drawing it does.
pub struct Fresh {
    drawn: Vec<Vec<u64>>,
    rows: u64,
    seed: u64,
}

impl Fresh {
    /// The most lists that are drawn beforehand, and the most rows in them unless one list has more.
    const LISTS: u64 = 16;
    const DRAWN: usize = 1 << 22;

    /// Lists of `count` of `rows` rows for worker `rank`: the same for the same rank.
    pub fn new(rank: u32, count: usize, rows: u64) -> Fresh {
        let first = u64::from(rank) * Fresh::LISTS;
        let lists = ((Fresh::DRAWN / count) as u64).clamp(1, Fresh::LISTS);
        let drawn = (first..first + lists).map(|number| draw(number, count, rows)).collect();
        Fresh { drawn, rows, seed: mix64(!first) }
    }

    /// The list of an operation.
    pub fn list(&self, operation: u64) -> Moved<'_> {
        let rows = &self.drawn[operation as usize % self.drawn.len()][..];
        let by = mix64(self.seed.wrapping_add(operation)) % self.rows;
        let (low, high) = rows.split_at(rows.partition_point(|&row| row < self.rows - by));
        Moved { low, high, up: by, down: self.rows - by }
    }
}

/// A list of rows that is moved round: what would lie behind the last row comes first.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'a> {
    low: &'a [u64],
    high: &'a [u64],
    up: u64,
    down: u64,
}

impl Moved<'_> {
    /// Row `j` of the list, ascending with j.
    pub fn row(&self, j: u64) -> u64 {
        let j = j as usize;
        match self.high.get(j) {
            Some(row) => row - self.down,
            None => self.low[j - self.high.len()] + self.up,
        }
    }
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
    fn fresh_lists_ascend_and_reach_all_rows_alike() {
        for (count, rows) in [(1, 2), (500, 1000), (100, 250)] {
            let fresh = Fresh::new(1, count, rows);
            let lists: Vec<Vec<u64>> =
                (0..4000).map(|n| (0..count as u64).map(|j| fresh.list(n).row(j)).collect()).collect();
            for list in &lists {
                assert!(list.windows(2).all(|w| w[0] < w[1]) && list.iter().all(|&row| row < rows));
            }
            let mut seen = vec![0u32; rows as usize];
            lists.iter().flatten().for_each(|&row| seen[row as usize] += 1);
            // Each row is in a list with probability p, so 4000 p times but for some six deviations.
            let p = count as f64 / rows as f64;
            let (mean, deviation) = (4000.0 * p, (4000.0 * p * (1.0 - p)).sqrt());
            assert!(seen.iter().all(|&n| (f64::from(n) - mean).abs() < 6.0 * deviation), "{count} of {rows}");
        }
    }

    #[test]
    fn fresh_lists_differ_from_operation_to_operation_and_from_worker_to_worker() {
        let lists = |rank| {
            let fresh = Fresh::new(rank, 100, 1 << 30);
            (0..500).map(|n| (0..100).map(|j| fresh.list(n).row(j)).collect()).collect::<Vec<Vec<u64>>>()
        };
        assert_eq!(lists(0), lists(0));
        let all: std::collections::HashSet<_> = lists(0).into_iter().chain(lists(1)).collect();
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn steps_differ_from_place_to_place() {
        for apart in [1, 1 << 16, 1 << 20, 3 << 20] {
            let alike = (0..10_000).filter(|&j| step(j) == step(j + apart)).count();
            assert!((4000..6000).contains(&alike), "{alike} of 10000 at {apart}");
        }
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
