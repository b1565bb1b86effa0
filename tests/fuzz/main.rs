//! The fuzz bodies under a seeded driver: what `cargo test` runs of them, the same every time.
//!
//! `scripts/fuzz.sh` runs the same bodies guided by coverage; what it finds worth keeping goes to `tests/fuzz/corpus`.

#![allow(clippy::unwrap_used)] // a body fails by panicking

mod bodies;
mod corpus;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bodies::{TARGETS, Target};
use windlass::error::Error;
use windlass::types::mix64;

/// Values that break arithmetic.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];
/// Inputs don't grow beyond this by mutation.
const LONGEST: usize = 4096;

/// A stream of random numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// One to eight small changes of one input, some of them with bytes of another.
fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..1 + random.below(8) {
        let at = random.below(input.len());
        match random.below(8) {
            0 | 1 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            2 if !input.is_empty() => input[at] = random.next() as u8,
            3 if !input.is_empty() => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(input.len() - at);
                input[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => {
                let count = random.below(9).min(input.len() - at);
                input.drain(at..at + count);
            }
            5 => {
                let bytes: Vec<u8> = (0..random.below(9)).map(|_| random.next() as u8).collect();
                input.splice(at..at, bytes);
            }
            6 => {
                let end = at + random.below(64).min(input.len() - at);
                input.extend_from_within(at..end);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
    }
    input.truncate(LONGEST);
    input
}

fn run(target: &Target, input: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.body)(input))).is_err() {
        panic!("{} fails on {what}: {}", target.name, corpus::hex(input));
    }
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|t| t.name == name).unwrap();
    let corpus = corpus::of(target);
    for input in &corpus {
        run(target, input, "its corpus");
    }
    run(target, &[], "nothing");
    for number in 0..u64::from(target.runs) {
        let mut random = Random(mix64(number));
        run(target, &mutated(&corpus, &mut random), &format!("seed {number}"));
    }
}

macro_rules! targets {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })+

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),+];
            assert!(TARGETS.iter().map(|t| t.name).eq(run));
        }
    };
}

targets!(request reply message sparse packed server acceptor dialler frames coordinator spec tcp shm address pairing bootstrap libsvm checkpoint settings);

#[test]
fn a_failing_body_is_found_and_shown() {
    let target = Target { name: "x", body: |input| assert!(input.len() < 3), seeds: Vec::new, runs: 1 };
    let failure = catch_unwind(|| run(&target, &[1, 2, 255], "its corpus")).unwrap_err();
    assert_eq!(failure.downcast_ref::<String>().unwrap(), "x fails on its corpus: 0102ff");
}

/// So that the fuzzers start behind the checks, and not before them.
#[test]
fn the_servers_seeds_go_all_the_way() {
    let (mut pushes, mut pulls, mut late, mut old, mut odd, mut moved) = (0, 0, (0, 0), 0, (0, 0), 0);
    for seed in (TARGETS.iter().find(|t| t.name == "server").unwrap().seeds)() {
        let (stats, failed) = bodies::served(&seed);
        assert!(failed.is_empty(), "{failed:?}");
        pushes += stats.pushes;
        pulls += stats.pulls;
        late = (late.0 + stats.late_applied, late.1 + stats.late_dropped);
        old += stats.stale_rejected;
        odd = (odd.0 + stats.non_finite, odd.1 + stats.non_finite_rejected);
        moved = moved.max(stats.closed);
    }
    assert_eq!((pushes, pulls, late, old, odd), (28, 8, (2, 3), 1, (32, 1)));
    assert!(moved > 0);
    for seed in bodies::refused_seeds() {
        let (_, failed) = bodies::served(&seed);
        let [(1, Error::Protocol { field: "chain", .. })] = &failed[..] else { panic!("{failed:?}") };
    }
}
