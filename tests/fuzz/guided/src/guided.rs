//! One target under libFuzzer: `FUZZ_TARGET=NAME guided [libFuzzer's options] CORPUS_DIRECTORY`.
//!
//! libFuzzer wants a file for each input. `FUZZ_UNPACK=DIRECTORY` writes the target's corpus as such and ends; `FUZZ_PACK=DIRECTORY`
//! makes what lies there, but for the seeds, the corpus; `FUZZ_LIST=1` names the targets.

#![no_main]
#![allow(clippy::unwrap_used)] // a body fails by panicking; for the rest this is a tool for developers

use std::env::var;
use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../bodies/mod.rs"]
#[allow(dead_code, unused_imports)] // some of it is for the seeded driver alone
mod bodies;
#[path = "../../corpus.rs"]
mod corpus;

use bodies::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    bodies::TARGETS.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no target {name}"))
});

/// Does what the environment asks for instead of fuzzing; true when it did.
fn managed() -> bool {
    if var("FUZZ_LIST").is_ok() {
        bodies::TARGETS.iter().for_each(|target| println!("{}", target.name));
    } else if let Ok(directory) = var("FUZZ_UNPACK") {
        for (number, input) in corpus::of(&TARGET).iter().enumerate() {
            fs::write(format!("{directory}/{number:05}"), input).unwrap();
        }
    } else if let Ok(directory) = var("FUZZ_PACK") {
        let seeds = (TARGET.seeds)();
        let files = fs::read_dir(directory).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
        let mut lines: Vec<String> = files.filter(|f| !seeds.contains(f)).map(|f| corpus::hex(&f)).collect();
        lines.sort_unstable();
        lines.iter_mut().for_each(|line| line.push('\n'));
        fs::write(corpus::place(&TARGET), lines.concat()).unwrap();
    } else {
        return false;
    }
    true
}

fuzz_target!(
    init: {
        if managed() {
            std::process::exit(0);
        }
    },
    |data: &[u8]| (TARGET.body)(data)
);
