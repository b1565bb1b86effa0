//! A mini-batch and its gradient. Every sum has a fixed order, so a batch gives the same bits on every machine.

use crate::data::Dataset;
use crate::data::logistic::{loss, sigmoid};

/// Some rows of a data set, with keys replaced by positions in the sorted list of the batch's keys.
///
/// The caller pulls the weights of [`Batch::keys`], hands them to [`Batch::gradient`] in that order, and pushes what
/// comes back under the same keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    keys: Vec<u64>,
    labels: Vec<f32>,
    /// Row `i` has the entries `offsets[i]..offsets[i + 1]`.
    offsets: Vec<usize>,
    /// For each entry, the position of its key in `keys`.
    positions: Vec<u32>,
    values: Vec<f32>,
    /// For each entry, its key: what `refill` works on.
    entry_keys: Vec<u64>,
}

impl Batch {
    /// The batch of these rows of `data`, in this order.
    ///
    /// # Panics
    /// Where a row does not exist.
    pub fn new(data: &Dataset, rows: impl IntoIterator<Item = usize>) -> Batch {
        let mut batch = Batch::default();
        batch.refill(data, rows);
        batch
    }

    /// Makes this the batch of other rows, keeping the memory.
    ///
    /// # Panics
    /// Where a row does not exist.
    pub fn refill(&mut self, data: &Dataset, rows: impl IntoIterator<Item = usize>) {
        self.keys.clear();
        self.labels.clear();
        self.offsets.clear();
        self.positions.clear();
        self.values.clear();
        self.entry_keys.clear();
        self.offsets.push(0);
        for row in rows {
            let (keys, values) = data.row(row);
            self.entry_keys.extend_from_slice(keys);
            self.values.extend_from_slice(values);
            self.labels.push(data.labels[row]);
            self.offsets.push(self.values.len());
        }
        self.keys.extend_from_slice(&self.entry_keys);
        self.keys.sort_unstable();
        self.keys.dedup();
        // Every key is found; where to insert it would be its position as well.
        let position = |key| self.keys.binary_search(key).unwrap_or_else(|at| at) as u32;
        self.positions.extend(self.entry_keys.iter().map(position));
    }

    /// The keys of the batch, strictly ascending.
    pub fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// The labels, 0 or 1, row by row.
    pub fn labels(&self) -> &[f32] {
        &self.labels
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// The score (log-odds) of row `row`: summed in fp64 in order of the row's keys, then rounded once.
    fn score(&self, row: usize, weights: &[f32]) -> f32 {
        let entries = self.offsets[row]..self.offsets[row + 1];
        let mut sum = 0.0f64;
        for (position, value) in self.positions[entries.clone()].iter().zip(&self.values[entries]) {
            sum += f64::from(weights[*position as usize]) * f64::from(*value);
        }
        sum as f32
    }

    /// Appends the score (log-odds) of every row to `scores`. `weights` belong to [`Batch::keys`].
    ///
    /// # Panics
    /// Where there are fewer weights than keys.
    pub fn scores(&self, weights: &[f32], scores: &mut Vec<f32>) {
        scores.extend((0..self.rows()).map(|row| self.score(row, weights)));
    }

    /// Writes the gradient of the mean logistic loss over the batch's rows, one fp32 for each of [`Batch::keys`], and
    /// returns the sum of the losses, in nats. A batch without rows has gradient 0.
    ///
    /// # Panics
    /// Where `weights` or `gradient` is shorter than the keys.
    pub fn gradient(&self, weights: &[f32], gradient: &mut [f32]) -> f64 {
        gradient[..self.keys.len()].fill(0.0);
        let mut total = 0.0f64;
        for row in 0..self.rows() {
            let score = f64::from(self.score(row, weights));
            let label = f64::from(self.labels[row]);
            total += loss(score, label);
            let residual = ((sigmoid(score) - label) / self.rows() as f64) as f32;
            let entries = self.offsets[row]..self.offsets[row + 1];
            for (position, value) in self.positions[entries.clone()].iter().zip(&self.values[entries]) {
                gradient[*position as usize] += residual * *value;
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Dataset {
        let mut data = Dataset::default();
        data.push_row(1.0, [(3, 1.0), (10, 2.0)].into_iter());
        data.push_row(0.0, [(7, -1.0)].into_iter());
        data.push_row(1.0, std::iter::empty());
        data.push_row(0.0, [(3, 0.5), (7, 4.0), (u64::MAX, 1.0)].into_iter());
        data
    }

    #[test]
    fn a_batch_lists_its_keys_once_and_keeps_the_order_of_rows() {
        let batch = Batch::new(&data(), [3, 0]);
        assert_eq!(batch.keys(), [3, 7, 10, u64::MAX]);
        assert_eq!(batch.labels(), [0.0, 1.0]);
        assert_eq!(batch.positions, [0, 1, 3, 0, 2]);
        let mut scores = Vec::new();
        batch.scores(&[1.0, 0.25, -3.0, 8.0], &mut scores);
        assert_eq!(scores, [0.5 + 1.0 + 8.0, 1.0 - 6.0]);
    }

    #[test]
    fn refilling_gives_the_same_as_a_new_batch() {
        let mut batch = Batch::new(&data(), [3, 0]);
        batch.refill(&data(), [1, 2]);
        assert_eq!(batch, Batch::new(&data(), [1, 2]));
    }

    #[test]
    fn the_gradient_at_zero_is_that_computed_by_hand() {
        // At zero every probability is 1/2: residuals −1/2 for label 1, +1/2 for label 0, divided by 4 rows.
        let batch = Batch::new(&data(), 0..4);
        let mut gradient = [9.0f32; 4];
        let loss = batch.gradient(&[0.0; 4], &mut gradient);
        assert_eq!(gradient, [-0.125 + 0.0625, -0.125 + 0.5, -0.25, 0.125]);
        assert!((loss - 4.0 * std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let data = crate::data::synthetic::Synthetic::new(5).train(0, 100);
        let batch = Batch::new(&data, 0..50);
        let weights: Vec<f32> = batch.keys().iter().map(|key| (key % 17) as f32 * 0.0625 - 0.5).collect();
        let mut gradient = vec![0.0; weights.len()];
        let mut unused = vec![0.0; weights.len()];
        batch.gradient(&weights, &mut gradient);
        let step = 1.0 / 64.0;
        for at in (0..weights.len()).step_by(29) {
            let mut moved = weights.clone();
            moved[at] += step;
            let up = batch.gradient(&moved, &mut unused);
            moved[at] -= 2.0 * step;
            let down = batch.gradient(&moved, &mut unused);
            let slope = (up - down) / (2.0 * f64::from(step)) / batch.rows() as f64;
            assert!((slope - f64::from(gradient[at])).abs() < 2e-5, "{at}: {slope} {}", gradient[at]);
        }
    }

    #[test]
    fn an_empty_batch_has_no_gradient_and_no_loss() {
        let batch = Batch::new(&data(), []);
        assert_eq!(batch.gradient(&[], &mut []), 0.0);
        let featureless = Batch::new(&data(), [2]);
        assert_eq!(featureless.gradient(&[], &mut []), loss(0.0, 1.0));
    }
}
