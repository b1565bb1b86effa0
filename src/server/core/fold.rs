//! What becomes of pieces: folded in the order that the gate gives, those of one bucket in one pass; or stepped with at once.

use super::{Core, Held, unknown};
use crate::cluster::Verdict;
use crate::error::Malformed;
use crate::kernels::{Input, WAYS};
use crate::proto::{HEADER, SparseBody};
use crate::server::link::Link;
use crate::store::{DensePiece, SparsePiece};
use crate::types::Rank;

impl Core {
    /// Does what the gate said since the last turn.
    pub(super) fn obey(&mut self) {
        let mut verdicts = std::mem::take(&mut self.verdicts);
        for verdict in verdicts.drain(..) {
            match verdict {
                Verdict::Fold(rank, held) => self.ready.push((rank, held)),
                Verdict::Close { expected, .. } => {
                    self.fold(Some(expected));
                    if self.failed {
                        break;
                    }
                    self.applied.clear();
                    self.shard.close(expected, &mut self.applied);
                    self.links.iter_mut().flatten().for_each(Link::clock_closed);
                }
            }
        }
        self.verdicts = verdicts;
        self.fold(None);
    }

    /// Folds the pieces that are ready and frees their slots; `closing` when nothing more comes in the open clock, with the
    /// workers expected in it: then the buckets that dense pieces lie in take their steps, too.
    fn fold(&mut self, closing: Option<u32>) {
        let mut ready = std::mem::take(&mut self.ready);
        // Within a clock the gate's order is that of ranks and of each worker's frames.
        ready.sort_unstable_by_key(|(rank, Held { header, dense, .. })| {
            (*dense, header.table, if *dense { header.bucket } else { 0 }, *rank, header.sequence)
        });
        let (sparse, dense) = ready.split_at(ready.partition_point(|(_, held)| !held.dense));
        // A piece that does not fit is dropped whole; its worker is named, and the job ends. No bucket has taken a step by
        // then: dense pieces were checked when they came, and sparse ones are only added up.
        let folded = sparse
            .iter()
            .try_for_each(|(rank, held)| self.take(*rank, held).map_err(|m| (*rank, m)))
            .and_then(|()| {
                let bucket = |(_, held): &(Rank, Held)| (held.header.table, held.header.bucket);
                dense
                    .chunk_by(|a, b| bucket(a) == bucket(b))
                    .try_for_each(|pieces| self.fold_bucket(pieces, closing).map_err(|m| (pieces[0].0, m)))
            });
        if let Err((rank, malformed)) = folded {
            let error = malformed.by(self.peer(rank));
            self.faults.push((rank, error));
            self.failed = true;
        }
        dense.iter().for_each(|(rank, held)| self.free(*rank, held.slot));
        ready.clear();
        self.ready = ready;
    }

    /// Folds the pieces of one bucket, as many in one pass as a kernel takes; the last pass is that of the step.
    fn fold_bucket(&mut self, pieces: &[(Rank, Held)], closing: Option<u32>) -> Result<(), Malformed> {
        let mut rest = pieces.chunks(WAYS).peekable();
        while let Some(part) = rest.next() {
            let nothing = DensePiece { bucket: 0, first: 0, values: Input::from(&[][..]) };
            let mut views = [nothing; WAYS];
            for (view, (rank, held)) in views.iter_mut().zip(part) {
                let chain = self.chains(&held.header)?.push;
                *view = self.staging.dense(*rank, held.slot, &held.header, chain)?;
            }
            let (views, table) = (&views[..part.len()], part[0].1.header.table);
            match closing.filter(|_| rest.peek().is_none()) {
                None => self.shard.fold_dense(table, views)?,
                Some(expected) => self.shard.close_dense(table, views, expected, &mut self.applied)?,
            }
        }
        Ok(())
    }

    /// Gives one piece to the shard, and its slot back.
    pub(super) fn take(&mut self, rank: Rank, held: &Held) -> Result<(), Malformed> {
        self.applied.clear();
        let header = &held.header;
        let chain = self.chains(header)?.push;
        if held.dense {
            let piece = self.staging.dense(rank, held.slot, header, chain)?;
            self.shard.push_dense(header.table, piece, &mut self.applied)?;
        } else {
            let width = self.shard.spec(header.table).ok_or_else(|| unknown(header))?.width() as usize;
            let body = SparseBody::announced(header, width * chain.value_bytes())?;
            let body_at = self.staging.slot_at(rank, held.slot) + HEADER;
            self.staging.keys(body_at, &body, &mut self.directory, &mut self.keys);
            let values = chain.view(&self.staging.arena, body_at + body.values_at(), body.keys * width);
            let piece = SparsePiece { directory: &self.directory, keys: &self.keys, values };
            self.shard.push_sparse(header.table, piece, &mut self.applied)?;
        }
        self.free(rank, held.slot);
        Ok(())
    }
}
