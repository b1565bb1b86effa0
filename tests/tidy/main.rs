//! The rules of the house as tests: layers, `unsafe`, sizes, and documents that keep up with the code.
//!
//! A rule is a function from sources to complaints. Each has a test over the repository and one over a planted
//! violation, which shows that the rule can fail.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod documents;
mod layers;
mod source;
mod style;

/// Fails with all complaints at once.
fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
