//! How good the scores of a binary classifier are.

use crate::data::logistic::loss;

/// The figures of one set of scored examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// The share of examples whose score has the sign of their label (a score of 0 counts as label 0).
    pub accuracy: f64,
    /// The chance that a positive example scores above a negative one, ties counting half; none where one of the two
    /// classes is empty.
    pub auc: Option<f64>,
    /// The mean logistic loss, in nats.
    pub logloss: f64,
}

/// The figures of `scores` (log-odds) against `labels` (0 or 1), or none where there are no examples.
pub fn quality(scores: &[f32], labels: &[f32]) -> Option<Quality> {
    let examples = scores.len().min(labels.len());
    if examples == 0 {
        return None;
    }
    let pairs = || scores.iter().zip(labels);
    let right = pairs().filter(|(score, label)| (**score > 0.0) == (**label > 0.5)).count();
    let losses: f64 = pairs().map(|(score, label)| loss(f64::from(*score), f64::from(*label))).sum();
    let examples = examples as f64;
    Some(Quality { accuracy: right as f64 / examples, auc: auc(scores, labels), logloss: losses / examples })
}

/// The area under the ROC curve, exact, from the ranks of the scores (Mann and Whitney 1947; ties get their mean rank).
/// None where all labels are the same, or where a score is NaN.
pub fn auc(scores: &[f32], labels: &[f32]) -> Option<f64> {
    if scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    // Adding 0 turns −0 into +0, which total_cmp tells apart.
    let mut ranked: Vec<(f32, bool)> = scores.iter().zip(labels).map(|(s, l)| (s + 0.0, *l > 0.5)).collect();
    ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let positives = ranked.iter().filter(|(_, positive)| *positive).count() as u128;
    let negatives = ranked.len() as u128 - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    // Twice the number of (positive, negative) pairs in the right order, ties counting one: an integer.
    let (mut twice, mut below) = (0u128, 0u128);
    for tied in ranked.chunk_by(|a, b| a.0 == b.0) {
        let up = tied.iter().filter(|(_, positive)| *positive).count() as u128;
        let down = tied.len() as u128 - up;
        twice += up * (2 * below + down);
        below += down;
    }
    Some(twice as f64 / (2 * positives * negatives) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn figures_agree_with_those_by_hand() {
        let scores = [2.0, -1.0, 0.0, 3.0];
        let labels = [1.0, 1.0, 0.0, 0.0];
        let quality = quality(&scores, &labels).unwrap();
        assert_eq!(quality.accuracy, 0.5);
        // Of the pairs (2, 0), (2, 3), (−1, 0), (−1, 3) only the first is in order.
        assert_eq!(quality.auc, Some(0.25));
        // ln(1 + e^−2), ln(1 + e^1), ln 2, ln(1 + e^3)
        let by_hand = (0.126_928_011 + 1.313_261_688 + std::f64::consts::LN_2 + 3.048_587_352) / 4.0;
        assert!((quality.logloss - by_hand).abs() < 1e-8);
    }

    #[test]
    fn auc_at_its_limits() {
        assert_eq!(auc(&[1.0, 2.0], &[0.0, 1.0]), Some(1.0));
        assert_eq!(auc(&[2.0, 1.0], &[0.0, 1.0]), Some(0.0));
        assert_eq!(auc(&[5.0; 4], &[0.0, 1.0, 1.0, 0.0]), Some(0.5));
        assert_eq!(auc(&[0.0, -0.0], &[0.0, 1.0]), Some(0.5));
        assert_eq!(auc(&[1.0, 2.0], &[1.0, 1.0]), None);
        assert_eq!(auc(&[1.0, f32::NAN], &[0.0, 1.0]), None);
        assert_eq!(auc(&[], &[]), None);
        assert_eq!(quality(&[], &[]), None);
    }

    /// Every pair, one by one.
    fn auc_by_pairs(examples: &[(f32, bool)]) -> Option<f64> {
        let (mut won, mut pairs) = (0.0, 0.0);
        for (positive, _) in examples.iter().filter(|e| e.1) {
            for (negative, _) in examples.iter().filter(|e| !e.1) {
                pairs += 1.0;
                won +=
                    if positive > negative { 1.0 } else { f64::from(u8::from(positive == negative)) / 2.0 };
            }
        }
        (pairs > 0.0).then(|| won / pairs)
    }

    proptest! {
        #[test]
        fn auc_equals_the_count_of_pairs(
            examples in prop::collection::vec((-8i8..8, any::<bool>()), 0..60)
        ) {
            let examples: Vec<(f32, bool)> = examples.iter().map(|(s, l)| (f32::from(*s) / 4.0, *l)).collect();
            let scores: Vec<f32> = examples.iter().map(|e| e.0).collect();
            let labels: Vec<f32> = examples.iter().map(|e| f32::from(u8::from(e.1))).collect();
            prop_assert_eq!(auc(&scores, &labels), auc_by_pairs(&examples));
        }
    }
}
