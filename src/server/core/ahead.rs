//! Exactly once across a resume, for tables under Ssp and Asp: what the workers that were ahead of a cut's clock had pushed to each
//! bucket.
//!
//! Such pushes are in the parameters when a shard is cut, and their workers, which begin in the cut's clock again, push them once more.
//! So a cut says for each bucket and worker how far that worker had got there: all its clocks before one, and so many keys of that one.
//! The resumed job drops as much. Keys are counted in the order in which a worker's calls name them, which does not depend on how a
//! call is cut into frames; so it may go on with other numbers of servers and threads.
//!
//! Under Bsp there is nothing to say: what belongs to the cut's clock waits in slots and sums.

use std::collections::{BTreeMap, HashMap};

use crate::checkpoint::AheadEntry;
use crate::error::Malformed;
use crate::store::{Applied, DensePiece, How, Intake, Rejection, Shard, SparsePiece};
use crate::types::{BucketId, Clock, DirectoryEntry, Rank, TableId};

/// How far a worker has got in a bucket: all clocks before the first number, and so many keys of that clock.
pub type Reach = (Clock, u64);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Ahead {
    /// By rank: the clock behind that of its last push; 0 before the first.
    pushed: Vec<Clock>,
    /// What the cut that the job goes on from holds, where that is more than the clocks before its own.
    held: HashMap<(Rank, TableId, BucketId), Reach>,
    /// The least of their clocks.
    least: Clock,
    /// By rank: the keys of its open clock.
    seen: Vec<HashMap<(TableId, BucketId), u64>>,
    /// `seen` is kept: a cut waits for its clock, or something is held.
    counts: bool,
    /// Of the pieces of a sparse frame.
    skipped: Vec<usize>,
}

impl Ahead {
    pub fn new(workers: u32) -> Ahead {
        let workers = workers as usize;
        Ahead { pushed: vec![0; workers], seen: vec![HashMap::new(); workers], ..Ahead::default() }
    }

    /// A worker pushes in this clock.
    pub fn pushed(&mut self, rank: Rank, clock: Clock) {
        self.pushed[rank as usize] = clock + 1;
    }

    /// Whether pushes are to be looked at.
    pub fn counts(&self) -> bool {
        self.counts
    }

    /// A worker has ended its clock.
    pub fn ended(&mut self, rank: Rank) {
        if self.counts {
            self.seen[rank as usize].clear();
        }
    }

    /// All clocks before this one have closed: what is held of them is not pushed again any more.
    pub fn closed(&mut self, clock: Clock, waiting: bool) {
        // There may be millions, and thousands of clocks until the slowest worker has caught up.
        if !self.held.is_empty() && self.least < clock {
            self.held.retain(|_, (until, _)| *until >= clock);
            self.least = self.held.values().map(|(until, _)| *until).min().unwrap_or_default();
            self.rest(waiting);
        }
    }

    /// The furthest clock in which a worker is that has pushed uncounted keys which a cut at `cut` would have to know of.
    pub fn uncounted(&self, clocks: &[Clock], cut: Clock) -> Option<Clock> {
        let pushed = clocks.iter().copied().zip(&self.pushed);
        let ahead = pushed.filter(|&(at, &pushed)| !self.counts && at >= cut && pushed > at);
        ahead.map(|(at, _)| at).max()
    }

    /// A cut waits for its clock.
    pub fn count(&mut self) {
        self.counts = true;
    }

    /// Counts no longer, unless something is held or a cut is `waiting`.
    pub fn rest(&mut self, waiting: bool) {
        if self.counts && !waiting && self.held.is_empty() {
            self.counts = false;
            self.seen.iter_mut().for_each(HashMap::clear);
        }
    }

    /// The job goes on from a cut that holds this of a worker.
    pub fn hold(&mut self, rank: Rank, (table, bucket): (TableId, BucketId), reach: Reach) {
        self.least = if self.held.is_empty() { reach.0 } else { self.least.min(reach.0) };
        self.held.insert((rank, table, bucket), reach);
        self.counts = true;
    }

    /// What a cut says of workers that are in these clocks: where they have got further than that.
    pub fn entries(&self, clocks: &[Clock]) -> Vec<AheadEntry> {
        let held = self.held.iter().map(|(&(rank, table, bucket), &reach)| ((table, bucket, rank), reach));
        let at = |rank: Rank| clocks.get(rank as usize).copied().unwrap_or(0);
        let seen = (0..).zip(&self.seen).flat_map(|(rank, seen)| {
            seen.iter().map(move |(&(table, bucket), &keys)| ((table, bucket, rank), (at(rank), keys)))
        });
        let mut furthest: BTreeMap<(TableId, BucketId, Rank), Reach> = BTreeMap::new();
        for (place, reach) in held.chain(seen).filter(|((_, _, rank), reach)| *reach > (at(*rank), 0)) {
            let known = furthest.entry(place).or_default();
            *known = reach.max(*known);
        }
        let entry =
            |((table, bucket, worker), (clock, keys))| AheadEntry { table, bucket, worker, clock, keys };
        furthest.into_iter().map(entry).collect()
    }

    /// Counts a piece. Gives how many of its keys, from the first on, are held already.
    fn take(&mut self, rank: Rank, clock: Clock, (table, bucket): (TableId, BucketId), keys: usize) -> usize {
        let seen = self.seen[rank as usize].entry((table, bucket)).or_default();
        let before = *seen;
        *seen += keys as u64;
        match self.held.get(&(rank, table, bucket)) {
            Some((until, _)) if clock < *until => keys,
            Some((until, held)) if clock == *until => held.saturating_sub(before).min(keys as u64) as usize,
            _ => 0,
        }
    }

    /// What is to be taken of a dense piece.
    pub fn rest_of_dense<'a>(
        &mut self,
        (rank, clock): (Rank, Clock),
        table: TableId,
        piece: DensePiece<'a>,
    ) -> DensePiece<'a> {
        let DensePiece { bucket, first, values } = piece;
        let skipped = self.take(rank, clock, (table, bucket), values.len());
        let values = values.part(skipped, values.len() - skipped);
        DensePiece { bucket, first: first + skipped as u32, values }
    }

    /// Checks the pieces of a sparse frame, and counts them. True when some of its keys are held: then [`Ahead::write_rest`] takes it.
    pub fn look(
        &mut self,
        shard: &Shard,
        (rank, clock): (Rank, Clock),
        table: TableId,
        frame: &SparsePiece<'_>,
    ) -> Result<bool, Malformed> {
        shard.check_pull(table, frame)?;
        let mut skipped = std::mem::take(&mut self.skipped);
        skipped.clear();
        let pieces = frame.directory.iter();
        skipped.extend(pieces.map(|of| self.take(rank, clock, (table, of.bucket), of.keys as usize)));
        self.skipped = skipped;
        Ok(self.skipped.iter().any(|&keys| keys > 0))
    }

    /// Writes what is not held of the frame that was looked at last, as [`Shard::write_sparse`].
    pub fn write_rest(
        &self,
        shard: &mut Shard,
        (table, how, intake): (TableId, How, Intake),
        frame: SparsePiece<'_>,
        applied: &mut Vec<Applied>,
    ) -> Result<Option<Rejection>, Malformed> {
        let dim = frame.values.len() / frame.keys.len().max(1);
        let (mut rejection, mut end): (Option<Rejection>, usize) = (None, 0);
        for (&DirectoryEntry { bucket, keys }, &skipped) in frame.directory.iter().zip(&self.skipped) {
            let first = end + skipped;
            end += keys as usize;
            if first == end {
                continue;
            }
            let directory = [DirectoryEntry { bucket, keys: (end - first) as u32 }];
            let values = frame.values.part(first * dim, (end - first) * dim);
            let piece = SparsePiece { directory: &directory, keys: &frame.keys[first..end], values };
            let rejected = shard.write_sparse(table, how, piece, intake, applied)?;
            rejection = match (rejection, rejected) {
                (Some(earlier), Some(later)) => Some(earlier.and(later)),
                (earlier, later) => earlier.or(later),
            };
        }
        Ok(rejection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worker 0 of two has pushed clocks 0 to 2 and some of 3 when clock 1 is cut; the job goes on from that.
    fn resumed(entries: &[AheadEntry], clocks: &[Clock]) -> Ahead {
        let mut ahead = Ahead::new(clocks.len() as u32);
        for &AheadEntry { table, bucket, worker, clock, keys } in entries {
            ahead.hold(worker, (table, bucket), (clock, keys));
        }
        ahead
    }

    #[test]
    fn as_much_is_dropped_as_the_cut_holds_however_it_is_cut_into_pieces() {
        let mut ahead = Ahead::new(2);
        assert_eq!(ahead.uncounted(&[3, 0], 1), None);
        ahead.count();
        assert_eq!((ahead.take(0, 3, (7, 1), 10), ahead.take(0, 3, (7, 1), 5)), (0, 0));
        let entries = ahead.entries(&[3, 1]);
        assert_eq!(entries, [AheadEntry { table: 7, bucket: 1, worker: 0, clock: 3, keys: 15 }]);
        let mut ahead = resumed(&entries, &[1, 1]);
        for (clock, pieces) in [(1, [9, 9]), (2, [1, 1])] {
            assert_eq!(pieces.map(|keys| ahead.take(0, clock, (7, 1), keys)), pieces);
            ahead.ended(0);
        }
        // Of its clock 3 fifteen keys, in whatever pieces they come now; of other buckets and workers none.
        assert_eq!([8, 4, 6, 2].map(|keys| ahead.take(0, 3, (7, 1), keys)), [8, 4, 3, 0]);
        assert_eq!((ahead.take(0, 3, (7, 2), 4), ahead.take(1, 1, (7, 1), 4)), (0, 0));
        ahead.ended(0);
        assert_eq!(ahead.take(0, 4, (7, 1), 3), 0);
        ahead.closed(3, false);
        assert!(ahead.counts());
        ahead.closed(4, false);
        assert!(!ahead.counts());
    }

    /// What is not pushed again yet goes on to the next cut.
    #[test]
    fn a_cut_of_a_job_that_goes_on_holds_what_the_one_before_held() {
        let entry = |clock, keys| AheadEntry { table: 0, bucket: 0, worker: 0, clock, keys };
        let mut ahead = resumed(&[entry(3, 15)], &[1, 1]);
        ahead.take(0, 1, (0, 0), 4);
        assert_eq!(ahead.entries(&[1, 1]), [entry(3, 15)]);
        ahead.ended(0);
        ahead.ended(0);
        assert_eq!(ahead.take(0, 3, (0, 0), 20), 15);
        assert_eq!(ahead.entries(&[3, 3]), [entry(3, 20)]);
        ahead.ended(0);
        assert_eq!(ahead.entries(&[4, 3]), []);
    }

    #[test]
    fn a_clock_is_not_cut_in_which_keys_went_by_uncounted() {
        let mut ahead = Ahead::new(3);
        ahead.pushed(0, 5);
        ahead.pushed(1, 6);
        ahead.pushed(2, 2);
        let clocks = [5, 7, 2];
        assert_eq!(ahead.uncounted(&clocks, 5), Some(5), "worker 1 has pushed nothing in clock 7 yet");
        assert_eq!((ahead.uncounted(&clocks, 6), ahead.uncounted(&clocks, 2)), (None, Some(5)));
        ahead.count();
        assert_eq!(ahead.uncounted(&clocks, 5), None);
        ahead.rest(true);
        assert!(ahead.counts());
        ahead.rest(false);
        assert_eq!(ahead.uncounted(&clocks, 5), Some(5));
    }
}
