//! The closing rule of one table that has a quorum: a clock closes when k of the workers expected in it have ended it.
//!
//! A piece of the open clock is folded as it comes; one of a closed clock is late, and never waits; one of a later clock,
//! of a worker that is ahead, waits for the clocks between to close.
//!
//! **No deadlock with one slot per worker**: take the worker that is least by (clock, rank). All others have ended the clocks
//! before its own, so these are closed here too: its pieces belong to the open clock, or are late, and do not wait. The proof
//! of the gate's head goes through as it stands. **The others go on without the slowest n − k**: of any k workers take the
//! least in the same way; with the n − k left out stopped, the clocks before its own have k marks, and are closed.

use std::collections::VecDeque;

use super::{Progress, Verdict};
use crate::types::{Clock, Rank, TableId};

#[derive(Debug)]
pub struct Line<P> {
    table: TableId,
    quorum: u32,
    /// All clocks < closed are closed.
    closed: Clock,
    /// For each rank: the clocks up to its last piece that was folded.
    folded: Vec<Clock>,
    /// Pieces of clocks that are not open yet, in the order of their arrival.
    held: VecDeque<(Rank, Clock, P)>,
}

impl<P> Line<P> {
    /// The line of a table that nobody has pushed to, when all clocks < `closed` were ended by all.
    pub fn new(
        table: TableId,
        quorum: u32,
        closed: Clock,
        workers: impl ExactSizeIterator<Item = Progress> + Clone,
    ) -> Line<P> {
        let folded = vec![0; workers.len()];
        let mut line = Line { table, quorum, closed, folded, held: VecDeque::new() };
        while line.complete(workers.clone()) {
            line.closed += 1;
        }
        line
    }

    pub fn table(&self) -> TableId {
        self.table
    }

    pub fn closed(&self) -> Clock {
        self.closed
    }

    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What becomes of a piece; nothing yet, when it has to wait.
    pub fn push(&mut self, rank: Rank, clock: Clock, piece: P) -> Option<Verdict<P>> {
        if clock > self.closed {
            self.held.push_back((rank, clock, piece));
            None
        } else if clock == self.closed {
            self.folded[rank as usize] = clock + 1;
            Some(Verdict::Fold(rank, piece))
        } else {
            Some(Verdict::Late(rank, piece))
        }
    }

    /// Closes what is complete, and lets through what waited for that.
    pub fn advance(
        &mut self,
        workers: impl ExactSizeIterator<Item = Progress> + Clone,
        verdicts: &mut Vec<Verdict<P>>,
    ) {
        while self.complete(workers.clone()) {
            let clock = self.closed;
            let counted = workers.clone().zip(&self.folded);
            let counted = counted.filter(|(at, folded)| at.marked > clock || **folded > clock).count() as u32;
            verdicts.push(Verdict::CloseTable { table: self.table, clock, counted });
            self.closed += 1;
            // Once round the queue: those that stay keep their order.
            for _ in 0..self.held.len() {
                match self.held.pop_front() {
                    Some((rank, clock, piece)) if clock == self.closed => {
                        self.folded[rank as usize] = clock + 1;
                        verdicts.push(Verdict::Fold(rank, piece));
                    }
                    waiting => self.held.extend(waiting),
                }
            }
        }
    }

    /// Whether enough workers have ended the open clock. Where fewer are expected than the quorum, it takes all of them.
    fn complete(&self, workers: impl Iterator<Item = Progress>) -> bool {
        let (mut expected, mut ended) = (0, 0);
        for at in workers {
            expected += u32::from(at.expected_in(self.closed));
            ended += u32::from(at.marked > self.closed);
        }
        expected > 0 && ended >= self.quorum.min(expected)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::cluster::gate::{Gate, Verdict};
    use crate::types::{Clock, Rank};

    type Piece = (Rank, Clock, u64);

    #[test]
    fn the_third_of_four_closes_and_the_fourth_is_late() {
        let mut gate = Gate::new(4, 0);
        gate.add_quorum(7, 3);
        let mut v = Vec::new();
        for rank in [2, 0, 1] {
            gate.push_to_quorum(7, (rank, 0), rank, &mut v).unwrap();
            gate.mark(rank, 0, &mut v).unwrap();
        }
        let close = |clock| Verdict::CloseTable { table: 7, clock, counted: 3 };
        assert_eq!(v, [Verdict::Fold(2, 2), Verdict::Fold(0, 0), Verdict::Fold(1, 1), close(0)]);
        assert_eq!((gate.closed(), gate.closed_of(7), gate.closed_of(8)), (0, 1, 0));
        v.clear();
        gate.push_to_quorum(7, (3, 0), 3, &mut v).unwrap();
        gate.mark(3, 0, &mut v).unwrap();
        assert_eq!(v, [Verdict::Late(3, 3), Verdict::Close { clock: 0, expected: 4 }]);
    }

    #[test]
    fn who_pushed_before_the_close_is_counted_in_it() {
        let mut gate = Gate::new(3, 0);
        gate.add_quorum(0, 1);
        let mut v = Vec::new();
        gate.push_to_quorum(0, (2, 0), (), &mut v).unwrap();
        gate.mark(1, 0, &mut v).unwrap();
        assert_eq!(v, [Verdict::Fold(2, ()), Verdict::CloseTable { table: 0, clock: 0, counted: 2 }]);
    }

    #[test]
    fn a_table_that_comes_later_begins_at_the_clock_that_is_open_for_it() {
        let mut gate = Gate::<()>::new(3, 0);
        let mut v = Vec::new();
        for clock in 0..3 {
            gate.mark(0, clock, &mut v).unwrap();
            gate.mark(1, clock, &mut v).unwrap();
        }
        gate.mark(2, 0, &mut v).unwrap();
        gate.add_quorum(1, 2);
        gate.add_quorum(2, 3);
        assert_eq!((gate.closed(), gate.closed_of(1), gate.closed_of(2)), (1, 3, 1));
        v.clear();
        gate.finish(2, 1, &mut v).unwrap();
        assert_eq!(gate.closed_of(2), 3, "two are expected, and both have ended three clocks");
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Push(u64),
        Mark,
        Finish,
    }

    /// What the rule says, from all that has happened: no queue, no state of its own.
    struct Oracle {
        quorum: usize,
        marked: Vec<Clock>,
        finished: Vec<Option<Clock>>,
    }

    impl Oracle {
        fn closed(&self) -> Clock {
            let complete = |clock: &Clock| {
                let expected = self.finished.iter().filter(|f| f.is_none_or(|f| *clock < f)).count();
                let ended = self.marked.iter().filter(|&&m| m > *clock).count();
                expected > 0 && ended >= expected.min(self.quorum)
            };
            (0..).take_while(complete).count() as Clock
        }
    }

    proptest! {
        /// Workers with unequal numbers of clocks, one slot each, in any interleaving, some of which stop for good: the line
        /// closes exactly as the oracle says, each piece has exactly one verdict, folds stand in the clock that is open, and
        /// who is in no later clock than the open one never waits.
        #[test]
        fn any_interleaving_closes_as_the_oracle_says(
            plans in proptest::collection::vec(proptest::collection::vec(0u64..4, 0..6), 1..6),
            quorum in 1u32..6,
            choices in proptest::collection::vec(any::<prop::sample::Index>(), 0..400),
        ) {
            let scripts: Vec<Vec<Step>> = plans.iter().map(|plan| {
                let pushes = plan.iter().flat_map(|&n| (0..n).map(Step::Push).chain([Step::Mark]));
                pushes.chain([Step::Finish]).collect()
            }).collect();
            let n = plans.len();
            let mut gate = Gate::<Piece>::new(n as u32, 0);
            gate.add_quorum(0, quorum);
            let mut oracle = Oracle { quorum: quorum as usize, marked: vec![0; n], finished: vec![None; n] };
            let (mut next, mut waits) = (vec![0; n], vec![false; n]);
            let (mut pushed, mut judged) = (Vec::new(), Vec::new());
            // Into which open clock each rank's pieces were folded.
            let (mut open, mut folded_in) = (0, vec![None; n]);
            for choice in choices {
                let able: Vec<usize> = (0..n).filter(|&r| next[r] < scripts[r].len() && !waits[r]).collect();
                if able.is_empty() {
                    prop_assert!(!waits.contains(&true), "all wait");
                    break;
                }
                let rank = able[choice.index(able.len())];
                let clock = oracle.marked[rank];
                let mut verdicts = Vec::new();
                match scripts[rank][next[rank]] {
                    Step::Push(i) => {
                        let piece = (rank as u32, clock, i);
                        pushed.push(piece);
                        waits[rank] = true;
                        gate.push_to_quorum(0, (rank as u32, clock), piece, &mut verdicts).unwrap();
                        prop_assert_eq!(verdicts.is_empty(), clock > oracle.closed());
                    }
                    Step::Mark => {
                        gate.mark(rank as u32, clock, &mut verdicts).unwrap();
                        oracle.marked[rank] += 1;
                    }
                    Step::Finish => {
                        gate.finish(rank as u32, clock, &mut verdicts).unwrap();
                        oracle.finished[rank] = Some(clock);
                    }
                }
                next[rank] += 1;
                for verdict in verdicts {
                    match verdict {
                        Verdict::Fold(rank, piece) => {
                            prop_assert_eq!((piece.0, piece.1), (rank, open));
                            waits[rank as usize] = false;
                            folded_in[rank as usize] = Some(open);
                            judged.push(piece);
                        }
                        Verdict::Late(rank, piece) => {
                            prop_assert!(piece.0 == rank && piece.1 < open);
                            waits[rank as usize] = false;
                            judged.push(piece);
                        }
                        Verdict::CloseTable { table, clock, counted } => {
                            prop_assert_eq!((table, clock), (0, open));
                            let counts = |r: &usize| oracle.marked[*r] > clock || folded_in[*r] == Some(clock);
                            prop_assert_eq!(counted as usize, (0..n).filter(counts).count());
                            prop_assert!(counted >= 1);
                            open += 1;
                        }
                        Verdict::Close { .. } => {}
                    }
                }
                prop_assert_eq!(open, oracle.closed());
                prop_assert_eq!(gate.closed_of(0), open);
                prop_assert!(gate.closed() <= open);
                prop_assert_eq!(gate.held(), waits.iter().filter(|w| **w).count());
                for (rank, waits) in waits.iter().enumerate() {
                    prop_assert!(!waits || oracle.marked[rank] > open);
                }
            }
            let left: Vec<Piece> = (0..n).filter(|&r| waits[r]).map(|r| *pushed.iter().rfind(|p| p.0 == r as u32).unwrap()).collect();
            judged.extend(left);
            judged.sort_unstable();
            pushed.sort_unstable();
            prop_assert_eq!(judged, pushed);
        }
    }
}
