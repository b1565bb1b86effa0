//! The order in which a worker goes through its rows.

use std::ops::Range;

use super::math::Batch;
use crate::data::Dataset;
use crate::types::random::permutation;

/// A worker's rows, cut into mini-batches in an order that depends on (seed, epoch, rank) only.
///
/// The batches of an epoch differ by at most one row. A small rest at the end would weigh as much as a full batch, and the
/// noise of its gradient would stay in the model: it is the last that is seen.
#[derive(Debug, Clone)]
pub struct Batches<'a> {
    data: &'a Dataset,
    count: usize,
    seed: u64,
    rank: u32,
    order: Vec<usize>,
}

impl<'a> Batches<'a> {
    /// Batches of at most `rows_per_batch` rows (0 is taken as 1), in the order of epoch 0.
    pub fn new(data: &'a Dataset, rows_per_batch: usize, seed: u64, rank: u32) -> Batches<'a> {
        let count = data.rows().div_ceil(rows_per_batch.max(1));
        let mut batches = Batches { data, count, seed, rank, order: Vec::new() };
        batches.shuffle(0);
        batches
    }

    /// The number of batches, the same in every epoch; 0 where there are no rows. Workers with different numbers of rows
    /// may have different numbers of batches.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Puts the rows in the order of `epoch`.
    pub fn shuffle(&mut self, epoch: u32) {
        let stream = u64::from(epoch) << 32 | u64::from(self.rank);
        self.order = permutation(self.data.rows(), self.seed, stream);
    }

    /// Makes `batch` the batch number `index` of the epoch; without rows where there is no such batch.
    pub fn fill(&self, index: usize, batch: &mut Batch) {
        batch.refill(self.data, self.order[self.range(index)].iter().copied());
    }

    fn range(&self, index: usize) -> Range<usize> {
        if index >= self.count {
            return 0..0;
        }
        let cut = |index: usize| (self.order.len() as u128 * index as u128 / self.count as u128) as usize;
        cut(index)..cut(index + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(rows: usize) -> Dataset {
        let mut data = Dataset::default();
        (0..rows).for_each(|row| data.push_row((row % 2) as f32, std::iter::once((row as u64, 1.0))));
        data
    }

    /// The rows of each batch of an epoch; a row is known by its key.
    fn epoch(batches: &Batches<'_>) -> Vec<Vec<u64>> {
        let mut batch = Batch::default();
        let mut keys = |index| {
            batches.fill(index, &mut batch);
            batch.keys().to_vec()
        };
        (0..batches.count()).map(&mut keys).collect()
    }

    #[test]
    fn an_epoch_has_every_row_once_in_batches_of_nearly_equal_size() {
        let data = data(1000);
        for rows_per_batch in [1, 7, 64, 999, 1000, 5000] {
            let all = epoch(&Batches::new(&data, rows_per_batch, 3, 1));
            assert!(all.iter().all(|batch| batch.len() <= rows_per_batch));
            let sizes = all.iter().map(Vec::len);
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            let mut rows = all.concat();
            rows.sort_unstable();
            assert_eq!(rows, (0..1000).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn the_order_depends_on_seed_epoch_and_rank_only() {
        let data = data(100);
        let mut batches = Batches::new(&data, 10, 3, 1);
        let first = epoch(&batches);
        batches.shuffle(1);
        assert_ne!(epoch(&batches), first);
        batches.shuffle(0);
        assert_eq!(epoch(&batches), first);
        assert_ne!(epoch(&Batches::new(&data, 10, 4, 1)), first);
        assert_ne!(epoch(&Batches::new(&data, 10, 3, 2)), first);
    }

    #[test]
    fn no_rows_and_no_such_batch() {
        let none = Dataset::default();
        assert_eq!(Batches::new(&none, 10, 1, 0).count(), 0);
        let data = data(5);
        let batches = Batches::new(&data, 0, 1, 0);
        assert_eq!(batches.count(), 5);
        let mut batch = Batch::default();
        batches.fill(5, &mut batch);
        assert_eq!(batch.rows(), 0);
    }
}
