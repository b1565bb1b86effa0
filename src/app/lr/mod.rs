//! Sparse logistic regression: the model's arithmetic and the figures by which it is judged.

pub mod math;
pub mod metrics;
