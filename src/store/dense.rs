//! A shard's part of a dense table: whole segments, their parameters in an arena of their own, from which they can be sent.

use std::sync::Arc;

use super::optimizer::Optimizer;
use super::shard::DensePiece;
use super::state::State;
use crate::error::{Malformed, Result};
use crate::kernels::{self, Gradient, Input, WAYS};
use crate::mem::epochs::Epochs;
use crate::mem::{Arena, Block, Blocks, Kind, Pin, Published, RegionId, Writing, align_up};
use crate::types::{BucketId, Clock, Initial, Publish, TableSpec, Version};

const NOT_OURS: u32 = u32::MAX;

/// Segments of one dense table.
pub struct Dense {
    /// For each bucket of the table its place in `segments`.
    place: Vec<u32>,
    segments: Vec<Segment>,
    /// Their parameters, in the same order. The last segment of a table may be shorter than its block.
    parameters: Published,
    epochs: Option<Readable>,
}

/// What workers read one-sidedly: a record for each segment.
struct Readable {
    epochs: Epochs,
    /// How many updates under Ssp and Asp make a new version.
    every: u32,
    /// All clocks < closed have closed, and the one that the slowest worker is in.
    clocks: (Clock, Clock),
}

struct Segment {
    /// fp32 of parameters.
    length: usize,
    /// The optimizer's planes, then its scalars.
    state: Block,
    /// What the open clock brought so far.
    sum: Block,
    /// The open clock brought gradients.
    pushed: bool,
    /// What the open clock set.
    sets: Option<Box<Sets>>,
    version: Version,
    /// Updates that are not published yet, where they are; its beginning counts as one.
    unpublished: u32,
}

/// Values that replace parameters when the clock closes, where `there` says so.
struct Sets {
    values: Vec<f32>,
    there: Vec<bool>,
}

impl Dense {
    /// Segments as they begin for `buckets`, which must be buckets of `spec`, and up to `spare_bytes` for versions that are still
    /// being sent. What takes long of making a table is done here, and needs nothing of a server thread.
    pub fn new(
        spec: &TableSpec,
        buckets: &[BucketId],
        optimizer: &dyn Optimizer,
        (memory, spare_bytes): (Kind, u64),
        generation: u32,
    ) -> Result<Dense> {
        let longest = longest(spec, buckets);
        let mut parameters = Published::of(memory, longest, buckets.len(), spare_bytes)?;
        let mut blocks = Blocks::for_lengths(buckets.iter().flat_map(|b| lengths(spec, *b, optimizer)))?;
        let initial = Initial::new(spec.initializer, &spec.name);
        let mut place = vec![NOT_OURS; spec.buckets() as usize];
        let mut segments = Vec::with_capacity(buckets.len());
        for bucket in buckets {
            let [state, sum] = lengths(spec, *bucket, optimizer).map(|n| blocks.cut(n));
            let (Some(state), Some(sum)) = (state, sum) else {
                unreachable!("the arena was sized for exactly these blocks");
            };
            place[*bucket as usize] = segments.len() as u32;
            let length = elements(spec, *bucket);
            let first = spec.segment_range(*bucket).map_or(0, |range| range.start());
            initial.fill_range(first, &mut parameters.write(segments.len()).to[..length]);
            segments.push(Segment {
                length,
                state,
                sum,
                pushed: false,
                sets: None,
                version: 0,
                unpublished: 1,
            });
        }
        let epochs = match (spec.epochs(), spec.publish) {
            (Some(layout), Publish::Epochs { every, .. }) => {
                let epochs = Epochs::new(layout, segments.len(), generation)?;
                Some(Readable { epochs, every, clocks: (0, 0) })
            }
            _ => None,
        };
        Ok(Dense { place, segments, parameters, epochs })
    }

    /// Makes known to the transport what is sent from here and read here. Before that nothing may be.
    pub fn register(&mut self, mut register: impl FnMut(Arc<Arena>) -> Result<RegionId>) -> Result<()> {
        self.parameters.register(&mut register)?;
        self.epochs.as_mut().map_or(Ok(()), |readable| readable.epochs.register(register))
    }

    /// Bytes that [`Dense::new`] would take, bookkeeping included, without spare segments.
    pub fn bytes(spec: &TableSpec, buckets: &[BucketId], optimizer: &dyn Optimizer) -> u64 {
        let parameters = Published::bytes(longest(spec, buckets), buckets.len());
        let blocks = buckets.iter().flat_map(|b| lengths(spec, *b, optimizer));
        let floats: u64 = blocks.map(|n| align_up(n * 4) as u64).sum();
        let epochs = spec.epochs().map_or(0, |layout| Epochs::bytes(&layout, buckets.len()));
        parameters
            + epochs
            + floats
            + (buckets.len() * size_of::<Segment>()) as u64
            + u64::from(spec.buckets()) * 4
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
        let pushed = std::mem::replace(&mut segment.pushed, true);
        Ok((!pushed && segment.sets.is_none()).then_some(bucket))
    }

    /// Keeps a piece that replaces parameters when the clock closes. True when it is the bucket's first in this clock.
    pub fn hold_set(&mut self, piece: &DensePiece<'_>) -> Result<bool, Malformed> {
        let DensePiece { bucket, first, values } = *piece;
        let place = self.locate(bucket, first, values.len())?;
        let segment = &mut self.segments[place];
        let length = segment.length;
        let first_of_clock = !segment.pushed && segment.sets.is_none();
        let new = || Box::new(Sets { values: vec![0.0; length], there: vec![false; length] });
        let sets = segment.sets.get_or_insert_with(new);
        let range = first as usize..first as usize + values.len();
        kernels::widen(&mut sets.values[range.clone()], values);
        sets.there[range].fill(true);
        Ok(first_of_clock)
    }

    /// Replaces parameters at once.
    pub fn set(&mut self, piece: &DensePiece<'_>) -> Result<Version, Malformed> {
        let DensePiece { bucket, first, values } = *piece;
        let place = self.locate(bucket, first, values.len())?;
        let to = self.parameters.write(place).whole();
        kernels::widen(&mut to[first as usize..first as usize + values.len()], values);
        self.segments[place].version += 1;
        self.stepped(place);
        Ok(self.segments[place].version)
    }

    /// Steps with what the clock brought and with its last `pieces`, all of this bucket, divided by `divisor`: one pass over the
    /// segment, and over pieces that cover it; then writes what it set. Nothing when the clock brought nothing.
    pub fn close(
        &mut self,
        bucket: BucketId,
        pieces: &[DensePiece<'_>],
        divisor: f32,
        optimizer: &dyn Optimizer,
    ) -> Result<Option<Version>, Malformed> {
        let place = self.of_bucket(bucket, pieces)?;
        let length = self.segments[place].length;
        let whole = pieces.iter().all(|p| p.first == 0 && p.values.len() == length);
        let fused = if whole { pieces.len().min(WAYS) } else { 0 };
        let (folded, last) = pieces.split_at(pieces.len() - fused);
        self.fold(folded)?;
        let segment = &mut self.segments[place];
        let pushed = std::mem::take(&mut segment.pushed);
        let steps = pushed || !last.is_empty();
        if !steps && segment.sets.is_none() {
            return Ok(None);
        }
        let writing = self.parameters.write(place);
        let to = if steps {
            let Writing { old, to } = writing;
            let (values, count) = values(last);
            let sum = pushed.then_some(&mut *segment.sum);
            let gradient = Gradient::Fold { sum, pieces: &values[..count], divisor };
            let state = State::of_part(&mut segment.state, length, 0, optimizer);
            let old = old.map(|old| &old[..length]);
            state.step(optimizer, &mut to[..length], old, gradient);
            to
        } else {
            writing.whole()
        };
        if let Some(sets) = segment.sets.take() {
            for ((parameter, value), there) in to.iter_mut().zip(sets.values).zip(sets.there) {
                if there {
                    *parameter = value;
                }
            }
        }
        segment.version += 1;
        segment.unpublished = segment.unpublished.saturating_add(1);
        Ok(Some(segment.version))
    }

    /// Steps with one piece at once, divided by `divisor`.
    pub fn apply(
        &mut self,
        piece: &DensePiece<'_>,
        divisor: f32,
        optimizer: &dyn Optimizer,
    ) -> Result<Version, Malformed> {
        let DensePiece { bucket, first, values } = *piece;
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
        let gradient = match divisor {
            1.0 => Gradient::Piece(values),
            _ => Gradient::Fold { sum: None, pieces: &[values], divisor },
        };
        state.step(optimizer, &mut to[first..end], old, gradient);
        segment.version += 1;
        self.stepped(place);
        Ok(self.segments[place].version)
    }

    /// A segment took a step outside the closes of clocks.
    fn stepped(&mut self, place: usize) {
        let Some(Readable { every, .. }) = &self.epochs else { return };
        let segment = &mut self.segments[place];
        segment.unpublished = segment.unpublished.saturating_add(1);
        if segment.unpublished >= *every {
            self.publish(place);
        }
    }

    fn publish(&mut self, place: usize) {
        let Some(Readable { epochs, clocks, .. }) = &mut self.epochs else { return };
        let segment = &mut self.segments[place];
        epochs.publish(place, &self.parameters.read(place)[..segment.length], segment.version, *clocks);
        segment.unpublished = 0;
    }

    /// All clocks < `clocks.0` have closed, and what they brought is in the parameters; the slowest worker is in `clocks.1`.
    /// Publishes what one-sided readers have not seen, and after that, for each segment, that it has seen these clocks.
    pub fn publish_closed(&mut self, clocks: (Clock, Clock)) {
        let Some(readable) = &mut self.epochs else { return };
        readable.clocks = clocks;
        for place in 0..self.segments.len() {
            if self.segments[place].unpublished > 0 {
                self.publish(place);
            }
            if let Some(Readable { epochs, .. }) = &mut self.epochs {
                epochs.closed(place, clocks.0);
            }
        }
    }

    /// What workers may read one-sidedly.
    pub fn readable(&self) -> Option<&Epochs> {
        self.epochs.as_ref().map(|readable| &readable.epochs)
    }

    /// `count` parameters of a bucket from `first` on, and its version.
    pub fn read(&self, bucket: BucketId, first: u32, count: u32) -> Result<(&[f32], Version), Malformed> {
        let place = self.locate(bucket, first, count as usize)?;
        let values = &self.parameters.read(place)[first as usize..(first + count) as usize];
        Ok((values, self.segments[place].version))
    }

    /// Parameters, state and version of a bucket.
    pub fn whole(&self, bucket: BucketId) -> Result<(&[f32], &[f32], Version), Malformed> {
        let place = self.place_of(bucket)?;
        let segment = &self.segments[place];
        Ok((&self.parameters.read(place)[..segment.length], &segment.state, segment.version))
    }

    /// The inverse of [`Dense::whole`].
    pub fn restore(
        &mut self,
        bucket: BucketId,
        parameters: &[f32],
        state: &[f32],
        version: Version,
    ) -> Result<(), Malformed> {
        let place = self.place_of(bucket)?;
        let segment = &mut self.segments[place];
        for (field, expected, found) in
            [("parameters", segment.length, parameters.len()), ("state", segment.state.len(), state.len())]
        {
            if expected != found {
                return Err(Malformed::new(field, format!("{expected} fp32 for bucket {bucket}"), found));
            }
        }
        self.parameters.write(place).whole()[..parameters.len()].copy_from_slice(parameters);
        segment.state.copy_from_slice(state);
        segment.version = version;
        segment.unpublished = 1;
        Ok(())
    }

    /// Our buckets, in the order of their places.
    pub fn buckets(&self) -> Vec<BucketId> {
        let mut buckets = vec![0; self.segments.len()];
        for (bucket, &place) in (0..).zip(&self.place) {
            if place != NOT_OURS {
                buckets[place as usize] = bucket;
            }
        }
        buckets
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

    /// The place of one of our buckets.
    pub fn place_of(&self, bucket: BucketId) -> Result<usize, Malformed> {
        let place = self.place.get(bucket as usize).copied().filter(|&p| p != NOT_OURS);
        place.map(|p| p as usize).ok_or_else(|| Malformed::new("bucket", "a bucket of this shard", bucket))
    }

    fn locate(&self, bucket: BucketId, first: u32, count: usize) -> Result<usize, Malformed> {
        let place = self.place_of(bucket)?;
        let length = self.segments[place].length;
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
