//! A shard's part of a dense table: whole segments in one arena.

use super::optimizer::Optimizer;
use super::shard::DensePiece;
use super::state::State;
use crate::error::{Malformed, Result};
use crate::kernels::{self, Gradient, Input, WAYS};
use crate::mem::{Block, Blocks, align_up};
use crate::types::{BucketId, TableSpec, Version};

const NOT_OURS: u32 = u32::MAX;

/// Segments of one dense table.
pub struct Dense {
    /// For each bucket of the table its place in `segments`.
    place: Vec<u32>,
    segments: Vec<Segment>,
}

struct Segment {
    parameters: Block,
    /// The optimizer's planes, then its scalars.
    state: Block,
    /// What the open clock brought so far.
    sum: Block,
    touched: bool,
    version: Version,
}

impl Dense {
    /// Zeroed segments for `buckets`, which must be buckets of `spec`.
    pub fn new(spec: &TableSpec, buckets: &[BucketId], optimizer: &dyn Optimizer) -> Result<Dense> {
        let mut blocks = Blocks::for_lengths(buckets.iter().flat_map(|b| lengths(spec, *b, optimizer)))?;
        let mut place = vec![NOT_OURS; spec.buckets() as usize];
        let mut segments = Vec::with_capacity(buckets.len());
        for bucket in buckets {
            let [parameters, state, sum] = lengths(spec, *bucket, optimizer).map(|n| blocks.cut(n));
            let (Some(parameters), Some(state), Some(sum)) = (parameters, state, sum) else {
                unreachable!("the arena was sized for exactly these blocks");
            };
            place[*bucket as usize] = segments.len() as u32;
            segments.push(Segment { parameters, state, sum, touched: false, version: 0 });
        }
        Ok(Dense { place, segments })
    }

    /// Bytes that [`Dense::new`] would take, bookkeeping included.
    pub fn bytes(spec: &TableSpec, buckets: &[BucketId], optimizer: &dyn Optimizer) -> u64 {
        let blocks = buckets.iter().flat_map(|b| lengths(spec, *b, optimizer));
        let floats: u64 = blocks.map(|n| align_up(n * 4) as u64).sum();
        floats + (buckets.len() * size_of::<Segment>()) as u64 + u64::from(spec.buckets()) * 4
    }

    /// Whether a piece lies in a bucket of ours.
    pub fn check(&self, piece: &DensePiece<'_>) -> Result<(), Malformed> {
        self.locate(piece.bucket, piece.first, piece.values.len()).map(drop)
    }

    /// Adds pieces of one bucket, in their order, to what the open clock brought: neighbours of the same extent in one pass.
    /// Gives the bucket when they are its first in this clock. Nothing is touched unless all fit.
    pub fn fold(&mut self, pieces: &[DensePiece<'_>]) -> Result<Option<BucketId>, Malformed> {
        let Some(bucket) = pieces.first().map(|p| p.bucket) else { return Ok(None) };
        let place = self.of_bucket(bucket, pieces)?;
        let segment = &mut self.segments[place];
        let extent = |p: &DensePiece<'_>| (p.first as usize, p.values.len());
        for run in pieces.chunk_by(|a, b| extent(a) == extent(b)) {
            let (first, length) = extent(&run[0]);
            for part in run.chunks(WAYS) {
                let (values, count) = values(part);
                kernels::fold(&mut segment.sum[first..first + length], &values[..count], 1.0);
            }
        }
        Ok((!std::mem::replace(&mut segment.touched, true)).then_some(bucket))
    }

    /// Steps with what the clock brought and with its last `pieces`, all of this bucket, divided by `divisor`: one pass over the
    /// segment, and over pieces that cover it. Nothing when the clock brought nothing.
    pub fn close(
        &mut self,
        bucket: BucketId,
        pieces: &[DensePiece<'_>],
        divisor: f32,
        optimizer: &dyn Optimizer,
    ) -> Result<Option<Version>, Malformed> {
        let place = self.of_bucket(bucket, pieces)?;
        let length = self.segments[place].parameters.len();
        let whole = pieces.iter().all(|p| p.first == 0 && p.values.len() == length);
        let fused = if whole { pieces.len().min(WAYS) } else { 0 };
        let (folded, last) = pieces.split_at(pieces.len() - fused);
        self.fold(folded)?;
        let segment = &mut self.segments[place];
        if !segment.touched && last.is_empty() {
            return Ok(None);
        }
        let (values, count) = values(last);
        let sum = segment.touched.then_some(&mut *segment.sum);
        let gradient = Gradient::Fold { sum, pieces: &values[..count], divisor };
        let state = State::of_part(&mut segment.state, length, 0, optimizer);
        state.step(optimizer, &mut segment.parameters, gradient);
        segment.touched = false;
        segment.version += 1;
        Ok(Some(segment.version))
    }

    /// Steps with one piece at once.
    pub fn apply(&mut self, piece: &DensePiece<'_>, optimizer: &dyn Optimizer) -> Result<Version, Malformed> {
        let place = self.locate(piece.bucket, piece.first, piece.values.len())?;
        let segment = &mut self.segments[place];
        let first = piece.first as usize;
        let state = State::of_part(&mut segment.state, segment.parameters.len(), first, optimizer);
        let parameters = &mut segment.parameters[first..first + piece.values.len()];
        state.step(optimizer, parameters, Gradient::Piece(piece.values));
        segment.version += 1;
        Ok(segment.version)
    }

    /// `count` parameters of a bucket from `first` on, and its version.
    pub fn read(&self, bucket: BucketId, first: u32, count: u32) -> Result<(&[f32], Version), Malformed> {
        let place = self.locate(bucket, first, count as usize)?;
        let segment = &self.segments[place];
        Ok((&segment.parameters[first as usize..(first + count) as usize], segment.version))
    }

    /// Bytes of parameters.
    pub fn parameter_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.parameters.len() as u64 * 4).sum()
    }

    /// The place of a bucket whose pieces these are.
    fn of_bucket(&self, bucket: BucketId, pieces: &[DensePiece<'_>]) -> Result<usize, Malformed> {
        for piece in pieces {
            self.check(piece)?;
            if piece.bucket != bucket {
                return Err(Malformed::new("bucket", bucket.to_string(), piece.bucket));
            }
        }
        self.place_of(bucket)
    }

    fn place_of(&self, bucket: BucketId) -> Result<usize, Malformed> {
        let place = self.place.get(bucket as usize).copied().filter(|&p| p != NOT_OURS);
        place.map(|p| p as usize).ok_or_else(|| Malformed::new("bucket", "a bucket of this shard", bucket))
    }

    fn locate(&self, bucket: BucketId, first: u32, count: usize) -> Result<usize, Malformed> {
        let place = self.place_of(bucket)?;
        let length = self.segments[place].parameters.len();
        if count == 0 || (first as usize).checked_add(count).is_none_or(|end| end > length) {
            let found = format!("{count} elements at {first}");
            return Err(Malformed::new("count", format!("1 to {length} elements inside the segment"), found));
        }
        Ok(place)
    }
}

/// What the first [`WAYS`] pieces hold, and how many these are.
fn values<'a>(pieces: &[DensePiece<'a>]) -> ([Input<'a>; WAYS], usize) {
    let mut values = [Input::from(&[][..]); WAYS];
    values.iter_mut().zip(pieces).for_each(|(value, piece)| *value = piece.values);
    (values, pieces.len().min(WAYS))
}

/// fp32 of a bucket's parameters, state and sum.
fn lengths(spec: &TableSpec, bucket: BucketId, optimizer: &dyn Optimizer) -> [usize; 3] {
    let n = spec.segment_range(bucket).map_or(0, |r| r.len() as usize);
    let folds = usize::from(spec.consistency.folds_by_rank());
    [n, n * optimizer.state_width() + optimizer.scalars(), n * folds]
}
