//! Sparse logistic regression: `windlass train lr`.

pub mod batches;
pub mod math;
pub mod metrics;
mod model;
mod options;
mod position;
mod progress;
mod report;
mod source;
mod train;

pub use options::Options;
pub use train::train;

#[cfg(test)]
mod tests {
    use super::batches::Batches;
    use super::math::Batch;
    use super::metrics::quality;
    use crate::data::synthetic::{FEATURES, Synthetic};

    /// Plain gradient descent on one worker's share of the built-in data set, without a server.
    #[test]
    fn gradient_descent_learns_the_planted_model() {
        let set = Synthetic::new(1);
        let data = set.train(0, 2);
        let mut weights = vec![0.0f32; FEATURES as usize];
        let mut batches = Batches::new(&data, 64, 1, 0);
        let (mut batch, mut local, mut gradient) = (Batch::default(), Vec::new(), Vec::new());
        for epoch in 0..3 {
            batches.shuffle(epoch);
            for index in 0..batches.count() {
                batches.fill(index, &mut batch);
                local.clear();
                local.extend(batch.keys().iter().map(|key| weights[*key as usize]));
                gradient.resize(local.len(), 0.0);
                batch.gradient(&local, &mut gradient);
                batch
                    .keys()
                    .iter()
                    .zip(&gradient)
                    .for_each(|(key, slope)| weights[*key as usize] -= 0.5 * slope);
            }
        }
        let test = set.test();
        batch.refill(&test, 0..test.rows());
        let mut scores = Vec::new();
        let local: Vec<f32> = batch.keys().iter().map(|key| weights[*key as usize]).collect();
        batch.scores(&local, &mut scores);
        let auc = quality(&scores, batch.labels()).and_then(|quality| quality.auc).unwrap();
        assert!(auc > 0.75, "{auc}");
        let keys = data.distinct_keys();
        let learnt: Vec<f32> = keys.iter().map(|key| weights[*key as usize]).collect();
        let distance = set.distance(&keys, &learnt);
        assert!(distance.cosine > 0.5 && distance.relative_l2 < 0.95, "{distance:?}");
    }
}
