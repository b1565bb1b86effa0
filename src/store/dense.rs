//! A shard's part of a dense table: whole segments in one arena.

use super::optimizer::Optimizer;
use super::state::State;
use crate::error::{Malformed, Result};
use crate::kernels::{self, Gradient, Input};
use crate::mem::{Block, Blocks, align_up};
use crate::types::{BucketId, Initial, TableSpec, Version};

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
    /// The open clock brought gradients.
    pushed: bool,
    /// What the open clock set.
    sets: Option<Box<Sets>>,
    version: Version,
}

/// Values that replace parameters when the clock closes, where `there` says so.
struct Sets {
    values: Vec<f32>,
    there: Vec<bool>,
}

impl Dense {
    /// Segments as they begin for `buckets`, which must be buckets of `spec`.
    pub fn new(spec: &TableSpec, buckets: &[BucketId], optimizer: &dyn Optimizer) -> Result<Dense> {
        let mut blocks = Blocks::for_lengths(buckets.iter().flat_map(|b| lengths(spec, *b, optimizer)))?;
        let initial = Initial::new(spec.initializer, &spec.name);
        let mut place = vec![NOT_OURS; spec.buckets() as usize];
        let mut segments = Vec::with_capacity(buckets.len());
        for bucket in buckets {
            let [parameters, state, sum] = lengths(spec, *bucket, optimizer).map(|n| blocks.cut(n));
            let (Some(mut parameters), Some(state), Some(sum)) = (parameters, state, sum) else {
                unreachable!("the arena was sized for exactly these blocks");
            };
            let first = spec.segment_range(*bucket).map_or(0, |range| range.start());
            initial.fill_range(first, &mut parameters);
            place[*bucket as usize] = segments.len() as u32;
            segments.push(Segment { parameters, state, sum, pushed: false, sets: None, version: 0 });
        }
        Ok(Dense { place, segments })
    }

    /// Bytes that [`Dense::new`] would take, bookkeeping included.
    pub fn bytes(spec: &TableSpec, buckets: &[BucketId], optimizer: &dyn Optimizer) -> u64 {
        let blocks = buckets.iter().flat_map(|b| lengths(spec, *b, optimizer));
        let floats: u64 = blocks.map(|n| align_up(n * 4) as u64).sum();
        floats + (buckets.len() * size_of::<Segment>()) as u64 + u64::from(spec.buckets()) * 4
    }

    /// Adds a piece to what the open clock brought. True when it is the bucket's first in this clock.
    pub fn fold(&mut self, bucket: BucketId, first: u32, values: Input<'_>) -> Result<bool, Malformed> {
        let segment = self.segment(bucket, first, values.len())?;
        let first = first as usize;
        kernels::accumulate(&mut segment.sum[first..first + values.len()], values);
        let pushed = std::mem::replace(&mut segment.pushed, true);
        Ok(!pushed && segment.sets.is_none())
    }

    /// Keeps a piece that replaces parameters when the clock closes. True when it is the bucket's first in this clock.
    pub fn hold_set(&mut self, bucket: BucketId, first: u32, values: Input<'_>) -> Result<bool, Malformed> {
        let segment = self.segment(bucket, first, values.len())?;
        let length = segment.parameters.len();
        let first_of_clock = !segment.pushed && segment.sets.is_none();
        let new = || Box::new(Sets { values: vec![0.0; length], there: vec![false; length] });
        let sets = segment.sets.get_or_insert_with(new);
        let range = first as usize..first as usize + values.len();
        kernels::widen(&mut sets.values[range.clone()], values);
        sets.there[range].fill(true);
        Ok(first_of_clock)
    }

    /// Replaces parameters at once.
    pub fn set(&mut self, bucket: BucketId, first: u32, values: Input<'_>) -> Result<Version, Malformed> {
        let segment = self.segment(bucket, first, values.len())?;
        kernels::widen(&mut segment.parameters[first as usize..first as usize + values.len()], values);
        segment.version += 1;
        Ok(segment.version)
    }

    /// Steps with what the clock brought, divided by `divisor`, in one pass over the segment; then writes what it set.
    pub fn close(&mut self, bucket: BucketId, divisor: f32, optimizer: &dyn Optimizer) -> Version {
        let segment = &mut self.segments[self.place[bucket as usize] as usize];
        if std::mem::take(&mut segment.pushed) {
            let gradient = Gradient::Fold { sum: Some(&mut segment.sum), pieces: &[], divisor };
            let state = State::of_part(&mut segment.state, segment.parameters.len(), 0, optimizer);
            state.step(optimizer, &mut segment.parameters, gradient);
        }
        if let Some(sets) = segment.sets.take() {
            for ((parameter, value), there) in segment.parameters.iter_mut().zip(sets.values).zip(sets.there)
            {
                if there {
                    *parameter = value;
                }
            }
        }
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
        let segment = self.segment(bucket, first, values.len())?;
        let first = first as usize;
        let state = State::of_part(&mut segment.state, segment.parameters.len(), first, optimizer);
        let parameters = &mut segment.parameters[first..first + values.len()];
        state.step(optimizer, parameters, Gradient::Piece(values));
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

    fn segment(&mut self, bucket: BucketId, first: u32, count: usize) -> Result<&mut Segment, Malformed> {
        let place = self.locate(bucket, first, count)?;
        Ok(&mut self.segments[place])
    }

    fn locate(&self, bucket: BucketId, first: u32, count: usize) -> Result<usize, Malformed> {
        let place = self.place.get(bucket as usize).copied().filter(|&p| p != NOT_OURS);
        let place = place.ok_or_else(|| Malformed::new("bucket", "a bucket of this shard", bucket))? as usize;
        let length = self.segments[place].parameters.len();
        if count == 0 || (first as usize).checked_add(count).is_none_or(|end| end > length) {
            let found = format!("{count} elements at {first}");
            return Err(Malformed::new("count", format!("1 to {length} elements inside the segment"), found));
        }
        Ok(place)
    }
}

/// fp32 of a bucket's parameters, state and sum.
fn lengths(spec: &TableSpec, bucket: BucketId, optimizer: &dyn Optimizer) -> [usize; 3] {
    let n = spec.segment_range(bucket).map_or(0, |r| r.len() as usize);
    let folds = usize::from(spec.consistency.folds_by_rank());
    [n, n * optimizer.state_width() + optimizer.scalars(), n * folds]
}
