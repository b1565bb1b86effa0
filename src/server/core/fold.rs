//! What becomes of held pieces: folded in the order that the gate gives, those of one bucket in one pass.

use std::time::{Duration, Instant};

use super::{Core, Held};
use crate::cluster::Verdict;
use crate::config::WorkerLimits;
use crate::error::Malformed;
use crate::kernels::{Input, WAYS};
use crate::server::link::Link;
use crate::store::{DensePiece, Intake, Rejection};
use crate::types::{Rank, TableId, View};

/// What closes behind pieces: nothing more comes in the open clock of these tables.
#[derive(Clone, Copy)]
struct Closing {
    /// One with a quorum, or all that have none.
    table: Option<TableId>,
    /// Divisor of a mean.
    workers: u32,
}

/// How long pieces are kept at most: their worker may wait at a barrier for their slots.
const KEPT: Duration = Duration::from_millis(10);

/// Pieces that are folded together.
pub(super) struct Ready {
    pieces: Vec<(Rank, Held)>,
    /// Slots that may be occupied by a worker whose pieces are kept for the end of their clock.
    most: u32,
    /// Since when some are.
    since: Option<Instant>,
}

impl Ready {
    /// None yet. A worker that pushes from a slice has at least [`WorkerLimits::LEAST_BUFFERS`] buffers for all server threads, and needs
    /// one to go on.
    pub fn new(slots: usize, view: &View) -> Ready {
        let threads: usize = view.servers.iter().map(|server| server.threads as usize).sum();
        let buffers = (WorkerLimits::LEAST_BUFFERS - 1) / threads.max(1);
        Ready { pieces: Vec::new(), most: buffers.min(slots * 3 / 4) as u32, since: None }
    }
}

impl Core {
    /// Does what the gate said since the last turn.
    pub(super) fn obey(&mut self) {
        let mut verdicts = std::mem::take(&mut self.verdicts);
        for verdict in verdicts.drain(..) {
            if self.failed {
                break;
            }
            match verdict {
                Verdict::Fold(rank, held) => self.make_ready(rank, held),
                Verdict::Late(rank, held) => {
                    let taken = self.take_late(rank, held.place, held.header);
                    self.blame(taken.map_err(|m| (rank, m)));
                }
                Verdict::Close { clock, expected } => {
                    self.fold(Some(Closing { table: None, workers: expected }));
                    if !self.failed {
                        self.applied.clear();
                        self.shard.close(expected, &mut self.applied);
                        self.shard.publish(clock + 1);
                        self.links.iter_mut().flatten().for_each(Link::clock_closed);
                        self.mark(clock + 1);
                        self.ahead.closed(clock + 1, self.awaited.is_some());
                    }
                }
                Verdict::CloseTable { table, clock, counted } => {
                    self.fold(Some(Closing { table: Some(table), workers: counted }));
                    if !self.failed {
                        self.applied.clear();
                        self.shard.close_table(table, counted, &mut self.applied);
                        self.shard.publish_table(table, (clock + 1, self.gate.closed().min(clock + 1)));
                    }
                }
            }
        }
        self.verdicts = verdicts;
        if !self.failed && !self.may_wait() {
            self.fold(None);
        } else if !self.ready.pieces.is_empty() {
            self.ready.since.get_or_insert_with(Instant::now);
        }
    }

    /// For how long pieces are still kept for the end of their clock, unless that comes before. None when there are none.
    pub fn keeps(&self) -> Option<Duration> {
        let since = self.ready.since.filter(|_| !self.failed)?;
        Some(KEPT.saturating_sub(since.elapsed()))
    }

    /// Folds them when they have been kept for so long: true, and their slots are to be given back.
    pub fn fold_kept(&mut self) -> bool {
        let late = self.keeps().is_some_and(|left| left.is_zero());
        if late {
            self.fold(None);
        }
        late
    }

    /// Whether the pieces that are ready are better folded with those that are still to come, when their clock closes: in one pass, which
    /// neither writes nor reads a sum, and soon. Not where a worker needs its slots back to get to the end of that clock.
    fn may_wait(&self) -> bool {
        let open = self.gate.closed();
        self.ready.pieces.iter().all(|(rank, held)| {
            let occupied = self.sessions[*rank as usize].occupied.count_ones();
            held.keeps && (self.gate.clock_of(*rank) > open || occupied <= self.ready.most)
        })
    }

    /// Has a piece folded at the end of the turn, unless it is rejected.
    fn make_ready(&mut self, rank: Rank, held: Held) {
        match self.examine(rank, &held) {
            Ok(None) => self.ready.pieces.push((rank, held)),
            Ok(Some(rejection)) => self.reject(rank, held.place.slot, held.header, rejection),
            Err(malformed) => self.blame(Err((rank, malformed))),
        }
    }

    /// The rejection of a piece whose values are not finite. [`Core::take`] looks at those that are not fused.
    fn examine(&mut self, rank: Rank, held: &Held) -> Result<Option<Rejection>, Malformed> {
        if !held.examined {
            return Ok(None);
        }
        let chain = self.chains(&held.header)?.push;
        let piece = self.loans.dense(&self.staging, held.place.of(rank), &held.header, chain)?;
        Ok(self.shard.examine_dense(held.header.table, &piece))
    }

    /// Folds the pieces that are ready and frees their slots. The buckets of tables that are `closing` in which fused pieces lie
    /// take their steps, too.
    fn fold(&mut self, closing: Option<Closing>) {
        if self.ready.pieces.is_empty() {
            return;
        }
        self.ready.since = None;
        let mut ready = std::mem::take(&mut self.ready.pieces);
        // Within a clock the gate's order is that of ranks and of each worker's frames; a table has one clock open at a time.
        // Those with a quorum have no order of ranks to keep.
        ready.sort_unstable_by_key(|(rank, Held { header, fused, arrival, .. })| {
            (*fused, header.table, if *fused { header.bucket } else { 0 }, *rank, *arrival)
        });
        let (single, fused) = ready.split_at(ready.partition_point(|(_, held)| !held.fused));
        // A piece that does not fit is dropped whole; its worker is named, and the job ends. No bucket has taken a step by
        // then: fused pieces were checked when they came, and the others are only added up or kept. Sets are, before the
        // step of their bucket.
        let folded = single
            .iter()
            .try_for_each(|(rank, held)| {
                let taken = self.take(*rank, held.place, held.header, Intake::Fold);
                taken.map(drop).map_err(|m| (*rank, m))
            })
            .and_then(|()| {
                let bucket = |(_, held): &(Rank, Held)| (held.header.table, held.header.bucket);
                fused
                    .chunk_by(|a, b| bucket(a) == bucket(b))
                    .try_for_each(|pieces| self.fold_bucket(pieces, closing).map_err(|m| (pieces[0].0, m)))
            });
        fused.iter().for_each(|(rank, held)| self.free(*rank, held.place.slot));
        self.blame(folded);
        ready.clear();
        self.ready.pieces = ready;
    }

    /// Folds the pieces of one bucket, as many in one pass as a kernel takes; the last pass is that of the step.
    fn fold_bucket(&mut self, pieces: &[(Rank, Held)], closing: Option<Closing>) -> Result<(), Malformed> {
        let table = pieces[0].1.header.table;
        let quorum = self.known(table)?.quorum.map(|_| table);
        let closing = closing.filter(|closing| closing.table == quorum);
        let chain = self.chains(&pieces[0].1.header)?.push;
        let mut rest = pieces.chunks(WAYS).peekable();
        while let Some(part) = rest.next() {
            let nothing = DensePiece { bucket: 0, first: 0, values: Input::from(&[][..]) };
            let mut views = [nothing; WAYS];
            for (view, (rank, held)) in views.iter_mut().zip(part) {
                let at = held.place.of(*rank);
                *view = self.loans.dense(&self.staging, at, &held.header, chain)?;
            }
            let views = &views[..part.len()];
            match closing.filter(|_| rest.peek().is_none()) {
                None => self.shard.fold_dense(table, views)?,
                Some(closing) => {
                    self.shard.close_dense(table, views, closing.workers, &mut self.applied)?;
                }
            }
        }
        Ok(())
    }

    /// The worker whose piece did not fit is named, and the job ends.
    fn blame(&mut self, outcome: Result<(), (Rank, Malformed)>) {
        if let Err((rank, malformed)) = outcome {
            let error = malformed.by(self.peer(rank));
            self.faults.push((rank, error));
            self.failed = true;
        }
    }
}
