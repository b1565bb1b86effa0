//! What a pull saw, told from its values, against what its consistency allows.
//!
//! A table that sums has one fp32 for each worker in every *unit* (a dense segment, or a sparse row), and a worker's n-th push
//! to a unit adds 4^n to its own. So a value's digits in base 4 say which pushes it holds: 0 not, 1 once, 2 or 3 more than
//! once. Twelve pushes stay below 2^24, where fp32 are exact.

use crate::types::{Clock, Consistency, Rank};

/// The most pushes of one worker to one unit.
pub const MOST: usize = 12;

/// What the `n`-th push adds.
pub fn value(n: usize) -> f32 {
    assert!(n < MOST, "a script with too many pushes");
    (1u32 << (2 * n)) as f32
}

/// A pull.
#[derive(Debug, Clone, Copy)]
pub struct Pull {
    pub reader: Rank,
    pub clock: Clock,
    pub after_push: bool,
    pub consistency: Consistency,
    /// Every worker has finished: it sees all.
    pub at_the_end: bool,
}

/// One worker's pushes to one unit.
#[derive(Debug, Clone, Copy)]
pub struct Pushes<'a> {
    pub writer: Rank,
    /// The clock of each, also of those to come.
    pub clocks: &'a [Clock],
    /// How many had been made when the pull was asked for.
    pub before: usize,
    /// How many when it was answered.
    pub after: usize,
}

impl Pull {
    /// Checks one value that the pull brought.
    pub fn check(&self, value: f32, pushes: &Pushes<'_>) -> Result<(), String> {
        let whole = value as u32;
        if value < 0.0 || whole as f32 != value || whole >> (2 * MOST) != 0 {
            return Err(self.complaint(pushes, &format!("{value} is no sum of pushes")));
        }
        let mut missing = None;
        for n in 0..MOST {
            let times = whole >> (2 * n) & 3;
            let fault = match times {
                0 => {
                    missing = missing.or(Some(n));
                    (n < pushes.clocks.len() && self.must_see(n, pushes))
                        .then(|| format!("push {n} is missing"))
                }
                1 if n >= pushes.after => Some(format!("push {n} was not made yet")),
                1 if !self.may_see(pushes.clocks[n]) => Some(format!("push {n} comes too early")),
                1 => missing.map(|earlier| format!("push {n} is there without push {earlier}")),
                times => Some(format!("push {n} is there {times} times")),
            };
            if let Some(fault) = fault {
                return Err(self.complaint(pushes, &fault));
            }
        }
        Ok(())
    }

    fn must_see(&self, n: usize, pushes: &Pushes<'_>) -> bool {
        let clock = pushes.clocks[n];
        let own = pushes.writer == self.reader && n < pushes.before;
        self.at_the_end
            || match self.consistency {
                Consistency::Bsp => self.may_see(clock),
                Consistency::Ssp { staleness } => own || clock + staleness < self.clock,
                Consistency::Asp => own,
            }
    }

    fn may_see(&self, clock: Clock) -> bool {
        let bsp = self.consistency == Consistency::Bsp && !self.at_the_end;
        !bsp || clock < self.clock + u64::from(self.after_push)
    }

    fn complaint(&self, pushes: &Pushes<'_>, fault: &str) -> String {
        let (writer, clocks) = (pushes.writer, pushes.clocks);
        format!("not exact: {self:?} of worker {writer}'s pushes in clocks {clocks:?}: {fault}")
    }
}

#[test]
fn every_deviation_is_found() {
    let pull = |consistency, clock, after_push| Pull {
        reader: 0,
        clock,
        after_push,
        consistency,
        at_the_end: false,
    };
    // Worker 1 pushes in clocks 0, 0, 1, 2; three are made.
    let theirs = Pushes { writer: 1, clocks: &[0, 0, 1, 2], before: 1, after: 3 };
    let own = Pushes { writer: 0, before: 3, ..theirs };
    let sum = |seen: &[usize]| seen.iter().map(|&n| value(n)).sum::<f32>();
    let fails = |pull: Pull, seen: &[usize], pushes: &Pushes<'_>| pull.check(sum(seen), pushes).is_err();
    let bsp = pull(Consistency::Bsp, 1, false);
    assert!(!fails(bsp, &[0, 1], &theirs));
    assert!(fails(bsp, &[0], &theirs) && fails(bsp, &[], &theirs), "a push is missing");
    assert!(fails(bsp, &[0, 1, 2], &theirs), "a push of the reader's clock");
    assert!(fails(bsp, &[0, 0, 1], &theirs), "a push twice");
    let after = pull(Consistency::Bsp, 1, true);
    assert!(!fails(after, &[0, 1, 2], &theirs) && fails(after, &[0, 1], &theirs));
    let ssp = pull(Consistency::Ssp { staleness: 1 }, 2, false);
    assert!(!fails(ssp, &[0, 1], &theirs) && !fails(ssp, &[0, 1, 2], &theirs));
    assert!(fails(ssp, &[0], &theirs) && fails(ssp, &[0, 2], &theirs) && fails(ssp, &[0, 1], &own));
    let asp = pull(Consistency::Asp, 2, false);
    assert!(!fails(asp, &[], &theirs) && !fails(asp, &[0], &theirs) && !fails(asp, &[0, 1, 2], &own));
    assert!(fails(asp, &[1], &theirs), "a hole");
    assert!(fails(asp, &[0, 1, 2, 3], &theirs), "a push that was not made");
    assert!(fails(asp, &[0, 1, 1], &theirs) && fails(asp, &[0, 1], &own));
    assert!(asp.check(0.5, &theirs).is_err() && asp.check(-1.0, &theirs).is_err());
    let last = Pull { at_the_end: true, ..bsp };
    assert!(!fails(last, &[0, 1, 2, 3], &Pushes { after: 4, ..theirs }) && fails(last, &[0, 1, 2], &theirs));
}
