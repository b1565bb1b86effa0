//! The gate: which piece may be folded now, which must be held, and when a clock closes.
//!
//! Under Bsp a shard folds each clock from the left in the order of the ranks. The gate lets pieces of rank r through once
//! every lower rank has marked the end of that clock; later ones wait where they lie, in their slots.
//!
//! **No deadlock with one slot per worker.** Order the workers by (clock, rank). The least one never waits: every lower
//! rank is past its clock, and its clock is the open one because all others are past it or in it. So its pieces are folded
//! as they come, its mark follows, and the next one becomes the least. This holds for every shard by itself, whatever
//! order of buckets, tables or priorities each worker chose. A slot that holds a batch changes nothing: its pieces are of one
//! clock, so the least worker's are all folded as they come and the slot is free; a mark that rides behind them is heard at
//! once, wherever they wait.
//!
//! A table with a quorum has a closing rule of its own over the same marks, see [`quorum`]; nothing of it waits for the ranks.
//!
//! Sans-io: what it says is appended to a list of [`Verdict`]s, in the order in which it must be done.

use std::collections::VecDeque;

use self::quorum::Line;
use crate::types::{Clock, Rank, TableId};

mod quorum;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<P> {
    /// Fold this piece into the open clock.
    Fold(Rank, P),
    /// Every expected worker has ended the open clock: step. `expected` workers could have pushed.
    Close {
        /// The clock that closes.
        clock: Clock,
        /// Divisor of a mean.
        expected: u32,
    },
    /// A quorum had closed the clock of this piece before it came.
    Late(Rank, P),
    /// A quorum has ended the open clock of one table: step.
    CloseTable {
        /// Which table.
        table: TableId,
        /// The clock that closes.
        clock: Clock,
        /// Divisor of a mean: the workers of whom a mark or a piece has come in that clock.
        counted: u32,
    },
}

/// A request that breaks the order of clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfOrder {
    /// The clock that the worker is in.
    pub expected: Clock,
}

/// The clocks of one shard; `P` is a piece that waits.
#[derive(Debug)]
pub struct Gate<P> {
    workers: Vec<Worker<P>>,
    /// All clocks < closed are closed.
    closed: Clock,
    max_lag: u64,
    /// Of the tables that have a quorum.
    lines: Vec<Line<P>>,
}

#[derive(Debug)]
struct Worker<P> {
    at: Progress,
    /// Pieces of its clocks in the order of their arrival.
    held: VecDeque<(Clock, P)>,
}

/// How far a worker has got.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Clocks that it has ended.
    marked: Clock,
    /// It pushes nothing from this clock on.
    finished: Option<Clock>,
}

impl Progress {
    fn past(self, clock: Clock) -> bool {
        self.finished.is_some() || self.marked > clock
    }

    fn expected_in(self, clock: Clock) -> bool {
        self.finished.is_none_or(|f| clock < f)
    }
}

impl<P> Gate<P> {
    /// A gate for the given number of workers, all in clock `first`, before which all are closed: 0, unless the job was resumed.
    pub fn new(workers: u32, first: Clock) -> Gate<P> {
        let at = Progress { marked: first, finished: None };
        let workers = (0..workers).map(|_| Worker { at, held: VecDeque::new() }).collect();
        Gate { workers, closed: first, max_lag: 0, lines: Vec::new() }
    }

    /// A table's clocks close when `quorum` workers have ended them. It may come at any time, before the table's first piece.
    pub fn add_quorum(&mut self, table: TableId, quorum: u32) {
        if self.line(table).is_none() {
            self.lines.push(Line::new(table, quorum, self.closed, self.workers.iter().map(|w| w.at)));
        }
    }

    /// All clocks < this are closed: ended by all workers.
    pub fn closed(&self) -> Clock {
        self.closed
    }

    /// All clocks < this are closed for a table: ended by all workers, or by its quorum.
    pub fn closed_of(&self, table: TableId) -> Clock {
        self.line(table).map_or(self.closed, Line::closed)
    }

    fn line(&self, table: TableId) -> Option<&Line<P>> {
        self.lines.iter().find(|l| l.table() == table)
    }

    /// The clock that a worker is in.
    pub fn clock_of(&self, rank: Rank) -> Clock {
        self.workers[rank as usize].at.marked
    }

    /// The clock that each worker is in, by rank.
    pub fn clocks(&self) -> Vec<Clock> {
        self.workers.iter().map(|w| w.at.marked).collect()
    }

    /// The clock from which on each worker pushes nothing, by rank.
    pub fn finished(&self) -> Vec<Option<Clock>> {
        self.workers.iter().map(|w| w.at.finished).collect()
    }

    /// The largest distance, in clocks, between the fastest and the slowest unfinished worker so far.
    pub fn max_lag(&self) -> u64 {
        self.max_lag
    }

    /// Pieces that wait.
    pub fn held(&self) -> usize {
        let held: usize = self.workers.iter().map(|w| w.held.len()).sum();
        held + self.lines.iter().map(Line::held).sum::<usize>()
    }

    /// A piece came that must be folded in canonical order.
    pub fn push(
        &mut self,
        rank: Rank,
        clock: Clock,
        piece: P,
        verdicts: &mut Vec<Verdict<P>>,
    ) -> Result<(), OutOfOrder> {
        self.in_clock(rank, clock)?;
        let first = clock == self.closed && self.workers[..rank as usize].iter().all(|w| w.at.past(clock));
        if first {
            verdicts.push(Verdict::Fold(rank, piece));
        } else {
            self.workers[rank as usize].held.push_back((clock, piece));
        }
        Ok(())
    }

    /// A piece came of a table that has a quorum: it is folded as it comes.
    pub fn push_to_quorum(
        &mut self,
        table: TableId,
        (rank, clock): (Rank, Clock),
        piece: P,
        verdicts: &mut Vec<Verdict<P>>,
    ) -> Result<(), OutOfOrder> {
        self.in_clock(rank, clock)?;
        if let Some(line) = self.lines.iter_mut().find(|l| l.table() == table) {
            verdicts.extend(line.push(rank, clock, piece));
        }
        Ok(())
    }

    /// A worker ended `clock`.
    pub fn mark(
        &mut self,
        rank: Rank,
        clock: Clock,
        verdicts: &mut Vec<Verdict<P>>,
    ) -> Result<(), OutOfOrder> {
        self.in_clock(rank, clock)?;
        self.workers[rank as usize].at.marked += 1;
        let running = self.workers.iter().map(|w| w.at).filter(|at| at.finished.is_none());
        let slowest = running.map(|at| at.marked).min().unwrap_or(clock + 1);
        self.max_lag = self.max_lag.max(clock + 1 - slowest);
        self.advance(verdicts);
        Ok(())
    }

    /// A worker pushes nothing from `clock`, its present one, on.
    pub fn finish(
        &mut self,
        rank: Rank,
        clock: Clock,
        verdicts: &mut Vec<Verdict<P>>,
    ) -> Result<(), OutOfOrder> {
        self.in_clock(rank, clock)?;
        self.workers[rank as usize].at.finished = Some(clock);
        self.advance(verdicts);
        Ok(())
    }

    fn in_clock(&self, rank: Rank, clock: Clock) -> Result<(), OutOfOrder> {
        let at = self.workers[rank as usize].at;
        if at.finished.is_some() || at.marked != clock {
            return Err(OutOfOrder { expected: at.marked });
        }
        Ok(())
    }

    /// Lets through whatever a mark set free, and closes what is complete.
    fn advance(&mut self, verdicts: &mut Vec<Verdict<P>>) {
        for line in &mut self.lines {
            line.advance(self.workers.iter().map(|w| w.at), verdicts);
        }
        loop {
            let open = self.closed;
            let mut complete = true;
            for (rank, worker) in (0u32..).zip(&mut self.workers) {
                while let Some((_, piece)) = worker.held.pop_front_if(|(clock, _)| *clock == open) {
                    verdicts.push(Verdict::Fold(rank, piece));
                }
                if !worker.at.past(open) {
                    complete = false;
                    break;
                }
            }
            // Once all have finished there is no clock left to close.
            let expected = self.workers.iter().filter(|w| w.at.expected_in(open)).count() as u32;
            if !complete || expected == 0 {
                return;
            }
            verdicts.push(Verdict::Close { clock: open, expected });
            self.closed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_later_rank_waits_for_the_marks_of_the_lower_ones() {
        let mut gate = Gate::new(2, 0);
        let mut v = Vec::new();
        gate.push(1, 0, "b", &mut v).unwrap();
        gate.mark(1, 0, &mut v).unwrap();
        assert_eq!((v.len(), gate.held()), (0, 1));
        gate.push(0, 0, "a", &mut v).unwrap();
        gate.mark(0, 0, &mut v).unwrap();
        assert_eq!(
            v,
            [Verdict::Fold(0, "a"), Verdict::Fold(1, "b"), Verdict::Close { clock: 0, expected: 2 }]
        );
        assert_eq!(gate.closed(), 1);
    }

    #[test]
    fn wrong_clocks_and_life_after_finish_are_refused() {
        let mut gate = Gate::new(1, 0);
        let mut v = Vec::new();
        assert_eq!(gate.push(0, 1, (), &mut v), Err(OutOfOrder { expected: 0 }));
        assert_eq!(gate.mark(0, 1, &mut v), Err(OutOfOrder { expected: 0 }));
        gate.finish(0, 0, &mut v).unwrap();
        assert!(gate.mark(0, 0, &mut v).is_err());
        assert!(v.is_empty(), "no clock was expected of anybody: {v:?}");
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Step {
        Push(u64),
        Mark,
        Finish,
    }

    proptest! {
        /// Workers with unequal numbers of clocks, one slot each that takes up to three pieces of a clock and its mark, in
        /// any interleaving: all complete, and the folds of each clock stand in the order of the ranks.
        #[test]
        fn any_interleaving_gives_the_same_folds(
            plans in proptest::collection::vec(proptest::collection::vec(0u64..4, 0..5), 1..6),
            choices in proptest::collection::vec(any::<prop::sample::Index>(), 400),
            batch in 1usize..4,
        ) {
            let scripts: Vec<Vec<Step>> = plans.iter().map(|plan| {
                let mut script = Vec::new();
                for &pushes in plan {
                    script.extend((0..pushes).map(Step::Push));
                    script.push(Step::Mark);
                }
                script.push(Step::Finish);
                script
            }).collect();
            let mut gate = Gate::new(plans.len() as u32, 0);
            let mut next = vec![0usize; plans.len()];
            let mut clock = vec![0u64; plans.len()];
            let mut in_slot = vec![0u32; plans.len()];
            let mut done = Vec::new();
            let mut choices = choices.into_iter();
            loop {
                let able: Vec<usize> = (0..plans.len())
                    .filter(|&r| next[r] < scripts[r].len() && in_slot[r] == 0).collect();
                if able.is_empty() { break; }
                let Some(choice) = choices.next() else { break };
                let rank = able[choice.index(able.len())];
                let mut verdicts = Vec::new();
                for _ in 0..batch {
                    let step = scripts[rank][next[rank]];
                    next[rank] += 1;
                    match step {
                        Step::Push(i) => {
                            in_slot[rank] += 1;
                            gate.push(rank as u32, clock[rank], (rank, clock[rank], i), &mut verdicts).unwrap();
                        }
                        Step::Mark => {
                            gate.mark(rank as u32, clock[rank], &mut verdicts).unwrap();
                            clock[rank] += 1;
                        }
                        Step::Finish => gate.finish(rank as u32, clock[rank], &mut verdicts).unwrap(),
                    }
                    if !matches!(step, Step::Push(_)) {
                        break;
                    }
                }
                for verdict in verdicts {
                    if let Verdict::Fold(rank, _) = &verdict {
                        in_slot[*rank as usize] -= 1;
                    }
                    done.push(verdict);
                }
            }
            let mut oracle = Vec::new();
            for c in 0..plans.iter().map(Vec::len).max().unwrap() {
                for (rank, plan) in plans.iter().enumerate() {
                    for i in 0..plan.get(c).copied().unwrap_or(0) {
                        oracle.push(Verdict::Fold(rank as u32, (rank, c as u64, i)));
                    }
                }
                let expected = plans.iter().filter(|p| p.len() > c).count() as u32;
                oracle.push(Verdict::Close { clock: c as u64, expected });
            }
            prop_assert_eq!(done, oracle);
        }
    }
}
