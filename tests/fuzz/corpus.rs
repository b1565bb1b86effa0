//! The inputs to start from: the seeds of each body, and what guided runs found. A line of `corpus/NAME.hex` is an input.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bodies::Target;

/// Where the corpus of a target lies.
pub fn place(target: &Target) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // This file belongs to two crates: to windlass, and to the one in `guided`.
    let here = if here.ends_with("guided") { here.join("..") } else { here.join("tests/fuzz") };
    here.join("corpus").join(format!("{}.hex", target.name))
}

/// Seeds first, then what was found.
pub fn of(target: &Target) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(place(target)).unwrap_or_default();
    let mut inputs = (target.seeds)();
    inputs.extend(text.lines().map(|line| bytes(line).unwrap()));
    inputs
}

/// Two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes(line: &str) -> Result<Vec<u8>, std::num::ParseIntError> {
    (0..line.len() / 2).map(|i| u8::from_str_radix(&line[2 * i..2 * i + 2], 16)).collect()
}
