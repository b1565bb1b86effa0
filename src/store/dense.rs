//! A shard's part of a dense table: whole segments, their parameters in an arena of their own, from which they can be sent.

use std::sync::Arc;

use super::optimizer::Optimizer;
use super::state::State;
use crate::error::{Malformed, Result};
use crate::kernels::{self, Gradient, Input};
use crate::mem::{Arena, Block, Blocks, Pin, Published, RegionId, Writing, align_up};
use crate::types::{BucketId, TableSpec, Version};

const NOT_OURS: u32 = u32::MAX;

/// Segments of one dense table.
pub struct Dense {
    /// For each bucket of the table its place in `segments`.
    place: Vec<u32>,
    segments: Vec<Segment>,
    /// Their parameters, in the same order. The last segment of a table may be shorter than its block.
    parameters: Published,
}

struct Segment {
    /// fp32 of parameters.
    length: usize,
    /// The optimizer's planes, then its scalars.
    state: Block,
    /// What the open clock brought so far.
    sum: Block,
    touched: bool,
    version: Version,
}

impl Dense {
    /// Zeroed segments for `buckets`, which must be buckets of `spec`, and up to `spare_bytes` for versions that are still
    /// being sent. `register` makes the parameters' arena known to the transport.
    pub fn new(
        spec: &TableSpec,
        buckets: &[BucketId],
        optimizer: &dyn Optimizer,
        spare_bytes: u64,
        register: impl FnOnce(Arc<Arena>) -> Result<RegionId>,
    ) -> Result<Dense> {
        let parameters = Published::new(longest(spec, buckets), buckets.len(), spare_bytes, register)?;
        let mut blocks = Blocks::for_lengths(buckets.iter().flat_map(|b| lengths(spec, *b, optimizer)))?;
        let mut place = vec![NOT_OURS; spec.buckets() as usize];
        let mut segments = Vec::with_capacity(buckets.len());
        for bucket in buckets {
            let [state, sum] = lengths(spec, *bucket, optimizer).map(|n| blocks.cut(n));
            let (Some(state), Some(sum)) = (state, sum) else {
                unreachable!("the arena was sized for exactly these blocks");
            };
            place[*bucket as usize] = segments.len() as u32;
            let length = elements(spec, *bucket);
            segments.push(Segment { length, state, sum, touched: false, version: 0 });
        }
        Ok(Dense { place, segments, parameters })
    }

    /// Bytes that [`Dense::new`] would take, bookkeeping included, without spare segments.
    pub fn bytes(spec: &TableSpec, buckets: &[BucketId], optimizer: &dyn Optimizer) -> u64 {
        let parameters = Published::bytes(longest(spec, buckets), buckets.len());
        let blocks = buckets.iter().flat_map(|b| lengths(spec, *b, optimizer));
        let floats: u64 = blocks.map(|n| align_up(n * 4) as u64).sum();
        parameters + floats + (buckets.len() * size_of::<Segment>()) as u64 + u64::from(spec.buckets()) * 4
    }

    /// Adds a piece to what the open clock brought. True when it is the bucket's first in this clock.
    pub fn fold(&mut self, bucket: BucketId, first: u32, values: Input<'_>) -> Result<bool, Malformed> {
        let place = self.locate(bucket, first, values.len())?;
        let segment = &mut self.segments[place];
        let first = first as usize;
        kernels::accumulate(&mut segment.sum[first..first + values.len()], values);
        Ok(!std::mem::replace(&mut segment.touched, true))
    }

    /// Steps with what the clock brought, divided by `divisor`: one pass over the segment.
    pub fn close(&mut self, bucket: BucketId, divisor: f32, optimizer: &dyn Optimizer) -> Version {
        let place = self.place[bucket as usize] as usize;
        let segment = &mut self.segments[place];
        let Writing { old, to } = self.parameters.write(place);
        let gradient = Gradient::Fold { sum: Some(&mut segment.sum), pieces: &[], divisor };
        let state = State::of_part(&mut segment.state, segment.length, 0, optimizer);
        let old = old.map(|old| &old[..segment.length]);
        state.step(optimizer, &mut to[..segment.length], old, gradient);
        segment.touched = false;
        segment.version += 1;
        segment.version
    }

    /// Steps with one piece at once.
    pub fn apply(
        &mut self,
        bucket: BucketId,
        first: u32,
        values: Input<'_>,
        optimizer: &dyn Optimizer,
    ) -> Result<Version, Malformed> {
        let place = self.locate(bucket, first, values.len())?;
        let segment = &mut self.segments[place];
        let (first, end) = (first as usize, first as usize + values.len());
        let Writing { old, to } = self.parameters.write(place);
        if let Some(old) = old {
            to[..first].copy_from_slice(&old[..first]);
            to[end..].copy_from_slice(&old[end..]);
        }
        let state = State::of_part(&mut segment.state, segment.length, first, optimizer);
        let old = old.map(|old| &old[first..end]);
        state.step(optimizer, &mut to[first..end], old, Gradient::Piece(values));
        segment.version += 1;
        Ok(segment.version)
    }

    /// `count` parameters of a bucket from `first` on, and its version.
    pub fn read(&self, bucket: BucketId, first: u32, count: u32) -> Result<(&[f32], Version), Malformed> {
        let place = self.locate(bucket, first, count as usize)?;
        let values = &self.parameters.read(place)[first as usize..(first + count) as usize];
        Ok((values, self.segments[place].version))
    }

    /// Keeps parameters that [`Dense::read`] gives as they are now, to be sent from where they lie; `None` when too many
    /// segments are kept already.
    pub fn pin(&self, bucket: BucketId, first: u32, count: u32) -> Option<Pin> {
        let place = self.locate(bucket, first, count as usize).ok()?;
        self.parameters.pin(place, first as usize, count as usize)
    }

    /// How often a segment had to be written while it was kept.
    pub fn moves(&self) -> u64 {
        self.parameters.moves()
    }

    /// Bytes of parameters.
    pub fn parameter_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.length as u64 * 4).sum()
    }

    /// Bytes of spare segments.
    pub fn spare_bytes(&self) -> u64 {
        self.parameters.spare_bytes()
    }

    fn locate(&self, bucket: BucketId, first: u32, count: usize) -> Result<usize, Malformed> {
        let place = self.place.get(bucket as usize).copied().filter(|&p| p != NOT_OURS);
        let place = place.ok_or_else(|| Malformed::new("bucket", "a bucket of this shard", bucket))? as usize;
        let length = self.segments[place].length;
        if count == 0 || (first as usize).checked_add(count).is_none_or(|end| end > length) {
            let found = format!("{count} elements at {first}");
            return Err(Malformed::new("count", format!("1 to {length} elements inside the segment"), found));
        }
        Ok(place)
    }
}

/// fp32 of a bucket's parameters.
fn elements(spec: &TableSpec, bucket: BucketId) -> usize {
    spec.segment_range(bucket).map_or(0, |r| r.len() as usize)
}

/// The most of any of these buckets.
fn longest(spec: &TableSpec, buckets: &[BucketId]) -> usize {
    buckets.iter().map(|b| elements(spec, *b)).max().unwrap_or(0)
}

/// fp32 of a bucket's state and sum.
fn lengths(spec: &TableSpec, bucket: BucketId, optimizer: &dyn Optimizer) -> [usize; 2] {
    let n = elements(spec, bucket);
    let folds = usize::from(spec.consistency.folds_by_rank());
    [n * optimizer.state_width() + optimizer.scalars(), n * folds]
}
