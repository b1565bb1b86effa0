//! One target under libFuzzer: `FUZZ_TARGET=NAME guided [libFuzzer's options] CORPUS_DIRECTORY`.

#![no_main]
#![allow(clippy::unwrap_used)] // a body fails by panicking

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../bodies/mod.rs"]
mod bodies;

static BODY: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    let target = bodies::TARGETS.iter().find(|t| t.name == name);
    target.unwrap_or_else(|| panic!("no target {name}")).body
});

fuzz_target!(|data: &[u8]| BODY(data));
