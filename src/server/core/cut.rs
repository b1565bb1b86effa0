//! Cuts: this thread's part of a checkpoint, marked when the clock that the Coordinator named is the open one.
//!
//! Under Bsp all clocks before it are in the parameters then, and nothing else. Under Ssp and Asp so are pieces of later clocks, of
//! workers that are ahead, and the cut says which (see `ahead`). Tables with a quorum close their own clocks, and are cut where they are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Core;
use super::ahead::Reach;
use crate::checkpoint::{
    Cut, CutFile, Flaw, Section, SectionId, SectionKind, WorkerClock, decode_ahead, decode_clocks,
    encode_ahead, encode_clocks,
};
use crate::error::{Error, Malformed, Result};
use crate::server::cut::Saver;
use crate::types::{BucketId, Clock, PartitionMap, Rank, ShardId, TableId, TableKind};

/// Bytes that are saved between two looks at the network.
const TURN: usize = 256 << 10;

/// A cut that waits for its clock.
pub(super) struct Awaited {
    number: u64,
    clock: Clock,
    saver: Saver,
}

impl Core {
    /// The thread is to be cut when `clock` is its open one. Refused, with the clock that is open, when that is past; and with that of
    /// a worker that has pushed in it what the cut would have to tell of, and nobody has counted.
    pub fn cut(
        &mut self,
        number: u64,
        clock: Clock,
        saver: impl FnOnce() -> Result<Saver>,
    ) -> Result<Result<(), Clock>> {
        if self.gate.closed() > clock || self.failed {
            return Ok(Err(self.gate.closed()));
        }
        if let Some(uncounted) = self.ahead.uncounted(&self.gate.clocks(), clock) {
            return Ok(Err(uncounted));
        }
        let saver = saver()?;
        self.ahead.count();
        self.shard.unmark();
        self.cutting = Some(number);
        self.awaited = Some(Awaited { number, clock, saver });
        self.mark(self.gate.closed());
        Ok(Ok(()))
    }

    /// A cut is given up.
    pub fn cancel_cut(&mut self, number: u64) {
        self.awaited = self.awaited.take().filter(|awaited| awaited.number != number);
        self.ahead.rest(self.awaited.is_some());
        if self.cutting == Some(number) {
            self.cutting = None;
            self.shard.unmark();
        }
    }

    /// All clocks before `closed` have closed, and nothing of a later one has changed a parameter under Bsp.
    pub(super) fn mark(&mut self, closed: Clock) {
        let Some(Awaited { mut saver, .. }) = self.awaited.take_if(|awaited| awaited.clock == closed) else {
            return;
        };
        let ahead = self.ahead.entries(&self.gate.clocks());
        self.ahead.rest(false);
        if !ahead.is_empty() {
            saver.section(SectionId::whole(SectionKind::Ahead), &encode_ahead(&ahead));
        }
        let clocks = self.gate.clocks().into_iter().zip(self.gate.finished()).zip(&self.sessions);
        let clocks: Vec<WorkerClock> = clocks
            .map(|((clock, finished), session)| WorkerClock {
                clock,
                finished,
                incarnation: session.incarnation.unwrap_or(0),
                next_sequence: session.next_sequence,
            })
            .collect();
        saver.section(SectionId::whole(SectionKind::Clocks), &encode_clocks(&clocks));
        // What JSON can't hold the manifest refuses.
        let specs = serde_json::to_vec(&self.shard.specs()).unwrap_or_default();
        saver.section(SectionId::whole(SectionKind::Specs), &specs);
        self.shard.mark(Box::new(saver));
    }

    /// Saves some of what is left of a cut. True when there is more to do at once.
    pub fn save_some(&mut self) -> bool {
        self.shard.save_some(TURN) && self.shard.can_save()
    }

    /// Takes this thread's buckets of a table from a cut.
    pub fn restore(&mut self, table: TableId, cut: &Cut) -> Result<()> {
        let Some(spec) = self.shard.spec(table) else { return Ok(()) };
        let sparse = matches!(spec.kind, TableKind::Sparse { .. });
        let by_rank = spec.consistency.folds_by_rank();
        let mut pasts: HashMap<ShardId, Past> = HashMap::new();
        for bucket in PartitionMap::new(&self.view, spec).buckets_of(self.id) {
            let found = if sparse {
                self.restore_sparse(table, bucket, cut)?
            } else {
                self.restore_dense(table, bucket, cut)?
            };
            let Some(file) = found.filter(|_| !by_rank) else { continue };
            let past = match pasts.entry(file.header().shard) {
                Entry::Occupied(past) => past.into_mut(),
                Entry::Vacant(place) => place.insert(Past::read(file, table)?),
            };
            for (rank, reach) in past.ahead(bucket, cut.manifest().clock) {
                self.ahead.hold(rank, (table, bucket), reach);
            }
        }
        Ok(())
    }

    /// Gives the file that the bucket was in.
    fn restore_dense<'a>(
        &mut self,
        table: TableId,
        bucket: BucketId,
        cut: &'a Cut,
    ) -> Result<Option<&'a CutFile>> {
        let Some(((file, section), state)) =
            pair(cut, table, bucket, [SectionKind::Parameters, SectionKind::State])?
        else {
            return Ok(None);
        };
        let (parameters, state) = (file.read_floats(section)?, state.0.read_floats(state.1)?);
        let restored = self.shard.restore_dense(table, bucket, (&parameters, &state), section.version);
        restored.map_err(|malformed| flaw(malformed, section, file))?;
        Ok(Some(file))
    }

    fn restore_sparse<'a>(
        &mut self,
        table: TableId,
        bucket: BucketId,
        cut: &'a Cut,
    ) -> Result<Option<&'a CutFile>> {
        let Some(((file, section), rows)) = pair(cut, table, bucket, [SectionKind::Keys, SectionKind::Rows])?
        else {
            return Ok(None);
        };
        let (keys, rows) = (file.read_keys(section)?, rows.0.read_floats(rows.1)?);
        let restored = self.shard.restore_rows(table, bucket, (&keys, &rows), section.version);
        restored.map_err(|malformed| flaw(malformed, section, file))?;
        Ok(Some(file))
    }
}

/// How far workers had got at the shard of a file.
struct Past {
    clocks: Vec<Clock>,
    /// In buckets of one table, where that is further.
    buckets: HashMap<BucketId, Vec<(Rank, Reach)>>,
}

impl Past {
    fn read(file: &CutFile, table: TableId) -> Result<Past> {
        let bytes = |kind| file.find(kind).map_or(Ok(Vec::new()), |section| file.read(section));
        let clocks = decode_clocks(&bytes(SectionKind::Clocks)?);
        let mut buckets: HashMap<BucketId, Vec<(Rank, Reach)>> = HashMap::new();
        let entries = decode_ahead(&bytes(SectionKind::Ahead)?);
        for entry in entries.into_iter().filter(|entry| entry.table == table) {
            buckets.entry(entry.bucket).or_default().push((entry.worker, (entry.clock, entry.keys)));
        }
        Ok(Past { clocks: clocks.into_iter().map(|at| at.clock).collect(), buckets })
    }

    /// What a bucket holds of workers beyond the clocks before `first`.
    fn ahead(&self, bucket: BucketId, first: Clock) -> impl Iterator<Item = (Rank, Reach)> {
        let clocks = (0..).zip(&self.clocks).map(|(rank, &clock)| (rank, (clock, 0)));
        let further = self.buckets.get(&bucket).into_iter().flatten().copied();
        clocks.chain(further).filter(move |(_, reach)| *reach > (first, 0))
    }
}

type Found<'a> = (&'a CutFile, &'a Section);

/// The two sections of a bucket. None where it is in no file: nobody had touched it, or the table came with the cut.
fn pair(
    cut: &Cut,
    table: TableId,
    bucket: BucketId,
    kinds: [SectionKind; 2],
) -> Result<Option<(Found<'_>, Found<'_>)>> {
    let find = |kind| cut.find(SectionId { kind, table, bucket });
    match kinds.map(find) {
        [Some(one), Some(other)] => Ok(Some((one, other))),
        [None, None] => Ok(None),
        [Some((file, section)), None] | [None, Some((file, section))] => {
            let expected = format!("both {:?} and {:?} of the bucket", kinds[0], kinds[1]);
            Err(Flaw::new(section.id, section.offset, expected, "one of them").of(file.path().display()))
        }
    }
}

fn flaw(malformed: Malformed, section: &Section, file: &CutFile) -> Error {
    let Malformed { field, expected, found } = malformed;
    let expected = format!("{field}: {expected}");
    Flaw::new(section.id, section.offset, expected, found).of(file.path().display())
}
