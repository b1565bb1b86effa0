//! Cuts: this thread's part of a checkpoint, marked when the clock that the Coordinator named is the open one.
//!
//! Under Bsp all clocks before it are in the parameters then, and nothing else. Under Ssp and Asp so are pieces of later clocks, of
//! workers that are ahead. Tables with a quorum close their own clocks, and are cut where they are.

use super::Core;
use crate::checkpoint::{Cut, CutFile, Flaw, Section, SectionId, SectionKind, WorkerClock, encode_clocks};
use crate::error::{Error, Malformed, Result};
use crate::server::cut::Saver;
use crate::types::{BucketId, Clock, PartitionMap, TableId, TableKind};

/// Bytes that are saved between two looks at the network.
const TURN: usize = 256 << 10;

/// A cut that waits for its clock.
pub(super) struct Awaited {
    number: u64,
    clock: Clock,
    saver: Saver,
}

impl Core {
    /// The thread is to be cut when `clock` is its open one. Refused, with the clock that is open, when that is past.
    pub fn cut(
        &mut self,
        number: u64,
        clock: Clock,
        saver: impl FnOnce() -> Result<Saver>,
    ) -> Result<Result<(), Clock>> {
        if self.gate.closed() > clock || self.failed {
            return Ok(Err(self.gate.closed()));
        }
        self.shard.unmark();
        self.cutting = Some(number);
        self.awaited = Some(Awaited { number, clock, saver: saver()? });
        self.mark(self.gate.closed());
        Ok(Ok(()))
    }

    /// A cut is given up.
    pub fn cancel_cut(&mut self, number: u64) {
        self.awaited = self.awaited.take().filter(|awaited| awaited.number != number);
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
        for bucket in PartitionMap::new(&self.view, spec).buckets_of(self.id) {
            if sparse {
                self.restore_sparse(table, bucket, cut)?;
            } else {
                self.restore_dense(table, bucket, cut)?;
            }
        }
        Ok(())
    }

    fn restore_dense(&mut self, table: TableId, bucket: BucketId, cut: &Cut) -> Result<()> {
        let Some(((file, section), state)) =
            pair(cut, table, bucket, [SectionKind::Parameters, SectionKind::State])?
        else {
            return Ok(());
        };
        let (parameters, state) = (file.read_floats(section)?, state.0.read_floats(state.1)?);
        let restored = self.shard.restore_dense(table, bucket, (&parameters, &state), section.version);
        restored.map_err(|malformed| flaw(malformed, section, file))
    }

    fn restore_sparse(&mut self, table: TableId, bucket: BucketId, cut: &Cut) -> Result<()> {
        let Some(((file, section), rows)) = pair(cut, table, bucket, [SectionKind::Keys, SectionKind::Rows])?
        else {
            return Ok(());
        };
        let (keys, rows) = (file.read_keys(section)?, rows.0.read_floats(rows.1)?);
        let restored = self.shard.restore_rows(table, bucket, (&keys, &rows), section.version);
        restored.map_err(|malformed| flaw(malformed, section, file))
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
