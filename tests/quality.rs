//! How well `windlass train lr` learns under each consistency, on each wire, with each update rule.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::fs;

use common::{run, scratch, test_data, text};
use serde_json::Value;

/// What a run reports.
struct Learnt(Value);

impl Learnt {
    /// Runs `train lr`, which must succeed.
    fn by(arguments: &[&str]) -> Learnt {
        let directory = scratch();
        let report = directory.path().join("report.json");
        let all = ["train", "lr", "--report", text(&report)].into_iter().chain(arguments.iter().copied());
        run(all).expect(0);
        Learnt(serde_json::from_slice(&fs::read(report).unwrap()).unwrap())
    }

    /// On a9a with its test set; nothing where it is not there.
    fn on_a9a(arguments: &[&str]) -> Option<Learnt> {
        let data = test_data()?;
        let (train, test) = (data.join("a9a"), data.join("a9a.t"));
        Some(Learnt::by(&[arguments, &["--data", text(&train), "--test", text(&test)]].concat()))
    }

    fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    fn auc(&self) -> f64 {
        self.number("auc")
    }

    /// The bars of the default run.
    #[track_caller]
    fn meets_the_bars_of_bsp(&self) {
        assert!(self.number("accuracy") >= 0.849, "{}", self.0);
        assert!(self.auc() >= 0.9015, "{}", self.0);
        assert!(self.number("logloss") <= 0.3255, "{}", self.0);
    }
}

/// On the built-in set, where Bsp with the same update rule is the measure.
fn on_the_built_in_set(arguments: &[&str]) -> Learnt {
    Learnt::by(&[arguments, &["--epochs", "4"]].concat())
}

#[test]
fn a_bound_of_two_clocks_learns_a9a_as_well_as_bsp() {
    let Some(learnt) = Learnt::on_a9a(&["--consistency", "ssp:2"]) else { return };
    learnt.meets_the_bars_of_bsp();
    assert_eq!(learnt.0["reproducible"], false);
    // A worker that pulls in clock c knows that all are in c − 2 at least, and may end c itself.
    assert!(learnt.number("max_clock_lag") <= 3.0, "{}", learnt.0);
}

#[test]
fn without_any_bound_a9a_is_learnt() {
    let Some(learnt) = Learnt::on_a9a(&["--consistency", "asp"]) else { return };
    assert!(learnt.auc() >= 0.900, "{}", learnt.0);
    assert_eq!(learnt.0["reproducible"], false);
}

#[test]
fn narrow_wires_learn_a9a_as_well_as_fp32() {
    let Some(fp32) = Learnt::on_a9a(&["--wire", "fp32"]) else { return };
    fp32.meets_the_bars_of_bsp();
    for wire in ["fp16", "bf16"] {
        let narrow = Learnt::on_a9a(&["--wire", wire]).unwrap();
        assert!((narrow.auc() - fp32.auc()).abs() <= 0.001, "{wire}: {} and {}", narrow.0, fp32.0);
        assert_ne!(narrow.0["weights_sha256"], fp32.0["weights_sha256"], "it made no difference");
        assert_eq!((&narrow.0["settings"]["wire"], &narrow.0["reproducible"]), (&wire.into(), &true.into()));
    }
}

#[test]
fn adagrad_and_adam_learn_a9a_with_their_default_rates() {
    for rule in ["adagrad", "adam"] {
        let Some(learnt) = Learnt::on_a9a(&["--optimizer", rule]) else { return };
        assert!(learnt.number("accuracy") >= 0.847, "{rule}: {}", learnt.0);
        assert!(learnt.auc() >= 0.9005, "{rule}: {}", learnt.0);
        assert!(learnt.number("logloss") <= 0.327, "{rule}: {}", learnt.0);
    }
}

#[test]
fn the_built_in_set_is_learnt_under_every_consistency() {
    let bsp = on_the_built_in_set(&[]);
    for consistency in ["ssp:2", "asp"] {
        let learnt = on_the_built_in_set(&["--consistency", consistency]);
        assert!(learnt.auc() > bsp.auc() - 0.02, "{consistency}: {} and {}", learnt.0, bsp.0);
    }
}

#[test]
fn the_built_in_set_is_learnt_on_every_wire_with_half_the_bytes() {
    let fp32 = on_the_built_in_set(&[]);
    for wire in ["fp16", "bf16"] {
        let narrow = on_the_built_in_set(&["--wire", wire]);
        assert!((narrow.auc() - fp32.auc()).abs() <= 0.001, "{wire}: {} and {}", narrow.0, fp32.0);
        assert_eq!(narrow.number("bytes_pulled") * 2.0, fp32.number("bytes_pulled"), "{wire}");
        // Keys of 8 bytes travel with the values.
        assert!(narrow.number("bytes_pushed") < 0.9 * fp32.number("bytes_pushed"), "{wire}");
    }
}

#[test]
fn the_built_in_set_is_learnt_with_every_update_rule() {
    for rule in ["sgd", "adagrad", "adam"] {
        let learnt = on_the_built_in_set(&["--optimizer", rule]);
        assert!(learnt.auc() > 0.78, "{rule}: {}", learnt.0);
        assert_eq!(learnt.0["settings"]["optimizer"], rule);
    }
}

/// On any number of servers and threads, in both kinds of table.
#[test]
fn a_narrow_wire_gives_the_same_bits_everywhere() {
    let common = ["--epochs", "1", "--batch", "2500", "--l1", "0.0001"];
    for (wire, rule) in [("fp16", "ftrl"), ("bf16", "adagrad")] {
        let mut first = None;
        for layout in [["sparse", "1", "1"], ["sparse", "3", "2"], ["dense", "1", "1"], ["dense", "2", "2"]] {
            let [table, servers, threads] = layout;
            let place = ["--table", table, "--servers", servers, "--threads", threads];
            let how = ["--wire", wire, "--optimizer", rule];
            let learnt = Learnt::by(&[&common[..], &place, &how].concat());
            let sha = learnt.0["weights_sha256"].clone();
            assert!(learnt.number("non_zero_weights") > 50.0, "{}", learnt.0);
            assert_eq!(*first.get_or_insert(sha.clone()), sha, "{wire}, {rule}, {layout:?}");
        }
    }
}

#[test]
fn settings_out_of_range_are_refused_by_their_flag() {
    for (arguments, expected) in [
        (["--optimizer", "adam", "--beta1", "1"], "--beta1: expected a value from 0 to below 1, found 1"),
        (["--optimizer", "adam", "--beta2", "1.5"], "--beta2: expected a value from 0 to below 1, found 1.5"),
        (["--optimizer", "adagrad", "--epsilon", "NaN"], "--epsilon: expected a finite value ≥ 0, found NaN"),
        (["--optimizer", "adagrad", "--rate", "inf"], "--rate: expected a finite value ≥ 0, found inf"),
    ] {
        run(["train", "lr"].into_iter().chain(arguments)).expect(11).says(expected);
    }
    run(["train", "lr", "--wire", "fp64"]).expect(2).says("--wire").says("fp32, fp16 or bf16");
}
