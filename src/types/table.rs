//! What a table is, and how it is cut into buckets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::filter::{self, FilterSpec, Shown, Wire};
use super::{Consistency, Initializer, Key, KeyRange, Quorum, Stale, mix64};
use crate::error::{Error, Result};
use crate::mem::epochs::Layout;

/// A table's number in the catalogue.
pub type TableId = u32;

/// Tables are numbered below this.
pub const MAX_TABLES: TableId = 1 << 20;

/// A bucket's number within its table, from 0.
pub type BucketId = u32;

/// Default size of a dense segment: 65 536 fp32.
pub const DEFAULT_SEGMENT_BYTES: u32 = 256 * 1024;

/// The most dimensions of a dense table.
pub const MAX_DIMENSIONS: usize = 16;

/// The most versions of a bucket that are kept for one-sided readers.
pub const MAX_EPOCHS: u32 = 64;

/// Default number of hash buckets of a sparse table.
pub const DEFAULT_SPARSE_BUCKETS: u32 = 256;

/// One line of a sparse frame's directory: so many keys of that bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct DirectoryEntry {
    /// Which bucket.
    pub bucket: BucketId,
    /// Number of its keys.
    pub keys: u32,
}

/// Dense or sparse, with the sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKind {
    /// Every key of `0..product(shape)` has one fp32.
    Dense {
        /// `[d0, d1, …]`, row-major.
        shape: Vec<u64>,
        /// Elements in one segment (= bucket); the last may be shorter.
        segment: u32,
    },
    /// Any u64 may have a row.
    Sparse {
        /// fp32 in one row.
        dim: u32,
        /// Number of hash buckets, whatever the number of shards.
        buckets: u32,
    },
}

/// How the pushes of one clock become one gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aggregate {
    /// Their sum.
    Sum,
    /// Their sum divided by the number of workers that were expected in that clock.
    Mean,
}

/// What becomes of pushed and set values that are infinite or no number (NaN), once their filters have widened them: under
/// an fp16 wire that includes what was too large for it.
///
/// A piece is looked at as a whole before it is folded or applied, so that what becomes of it depends on its bits alone,
/// whatever else arrives when. Looking costs a pass over each piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum NonFinite {
    /// They are not looked for. One that is pushed stays in its parameter, under most update rules for ever.
    #[default]
    Accept,
    /// They are counted (`non_finite`), and taken.
    Count,
    /// They are counted, and a piece that holds one is rejected: it changes nothing, and its push's ticket ends with
    /// [`Error::NonFinite`]. Under Bsp the clock closes as usual, and `mean` divides by the same number of workers. Other
    /// pieces of the same push are taken.
    Reject,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NonFinite::Accept => "accept",
            NonFinite::Count => "count",
            NonFinite::Reject => "reject",
        })
    }
}

impl FromStr for NonFinite {
    type Err = Error;

    fn from_str(text: &str) -> Result<NonFinite, Error> {
        let known = [NonFinite::Accept, NonFinite::Count, NonFinite::Reject];
        let named = known.into_iter().find(|choice| choice.to_string() == text);
        named.ok_or_else(|| Error::config("non-finite values", "accept, count or reject", text))
    }
}

/// How what workers pull is kept for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Publish {
    /// Servers answer pulls from the parameters.
    #[default]
    InPlace,
    /// Servers copy each dense bucket, besides, to where workers can read it one-sidedly, without the server's CPU: when a clock
    /// closes that touched it, and under Ssp and Asp after every `every` updates of it, too.
    Epochs {
        /// How many versions of a bucket are kept: a reader has that many, less one, publications' time to read one.
        buffers: u32,
        /// 1 publishes each update at once, so that a worker sees its own. With more a read sees versions `every` apart, and may lack
        /// the last `every` − 1 updates, its worker's own among them. Ignored by the closes of clocks, which publish what is left.
        every: u32,
    },
}

impl Publish {
    /// So many versions of each bucket, each update published at once.
    pub fn epochs(buffers: u32) -> Publish {
        Publish::Epochs { buffers, every: 1 }
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Publish::InPlace => f.write_str("in place"),
            Publish::Epochs { buffers, every } => {
                write!(f, "published in {buffers} epoch buffers every {every} updates")
            }
        }
    }
}

/// A server-side update rule by name, with its hyper-parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSpec {
    /// `sgd`, `ftrl`, …
    pub name: String,
    /// Named values; the optimizer refuses unknown and missing ones.
    pub parameters: Vec<(String, f32)>,
}

impl OptimizerSpec {
    /// An update rule by name with named values.
    pub fn new(name: &str, parameters: &[(&str, f32)]) -> OptimizerSpec {
        let parameters = parameters.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
        OptimizerSpec { name: name.to_owned(), parameters }
    }

    /// `w ← w − rate · g`.
    pub fn sgd(rate: f32) -> OptimizerSpec {
        OptimizerSpec::new("sgd", &[("rate", rate)])
    }

    /// `w ← g`: the table holds what was pushed last.
    pub fn assign() -> OptimizerSpec {
        OptimizerSpec::new("assign", &[])
    }

    /// `w ← w + g`: the table holds the sum of what was pushed.
    pub fn sum() -> OptimizerSpec {
        OptimizerSpec::new("sum", &[])
    }

    /// Heavy-ball momentum as in PyTorch's SGD without dampening: `m ← momentum · m + g`, `w ← w − rate · m`.
    pub fn momentum(rate: f32, momentum: f32) -> OptimizerSpec {
        OptimizerSpec::new("momentum", &[("rate", rate), ("momentum", momentum)])
    }

    /// Nesterov's momentum as in PyTorch's SGD: `m ← momentum · m + g`, `w ← w − rate · (g + momentum · m)`.
    pub fn nesterov(rate: f32, momentum: f32) -> OptimizerSpec {
        OptimizerSpec::new("nesterov", &[("rate", rate), ("momentum", momentum)])
    }

    /// Adagrad (Duchi et al., JMLR 2011) as in PyTorch: `s ← s + g²`, `w ← w − rate · g / (√s + epsilon)`.
    pub fn adagrad(rate: f32, epsilon: f32) -> OptimizerSpec {
        OptimizerSpec::new("adagrad", &[("rate", rate), ("epsilon", epsilon)])
    }

    /// RMSprop (Tieleman and Hinton, 2012) as in PyTorch: `s ← alpha · s + (1 − alpha) · g²`,
    /// `w ← w − rate · g / (√s + epsilon)`.
    pub fn rmsprop(rate: f32, alpha: f32, epsilon: f32) -> OptimizerSpec {
        OptimizerSpec::new("rmsprop", &[("rate", rate), ("alpha", alpha), ("epsilon", epsilon)])
    }

    /// Adam (Kingma and Ba, ICLR 2015) as in PyTorch, without AMSGrad. Each dense bucket and each sparse row counts its own
    /// steps.
    pub fn adam(rate: f32, beta1: f32, beta2: f32, epsilon: f32) -> OptimizerSpec {
        let values = [("rate", rate), ("beta1", beta1), ("beta2", beta2), ("epsilon", epsilon)];
        OptimizerSpec::new("adam", &values)
    }

    /// AdamW (Loshchilov and Hutter, ICLR 2019) as in PyTorch: `w ← w − rate · weight_decay · w`, then Adam's step.
    pub fn adamw(rate: f32, beta1: f32, beta2: f32, epsilon: f32, weight_decay: f32) -> OptimizerSpec {
        let mut spec = OptimizerSpec::adam(rate, beta1, beta2, epsilon);
        spec.name = "adamw".to_owned();
        spec.parameters.push(("weight_decay".to_owned(), weight_decay));
        spec
    }

    /// Whether the built-in rule of this name takes the weights from its state alone, so that others would not last.
    pub fn weights_follow_state(&self) -> bool {
        self.name == "ftrl"
    }

    /// FTRL-Proximal (McMahan et al., KDD 2013, Algorithm 1).
    pub fn ftrl(alpha: f32, beta: f32, l1: f32, l2: f32) -> OptimizerSpec {
        OptimizerSpec::new("ftrl", &[("alpha", alpha), ("beta", beta), ("l1", l1), ("l2", l2)])
    }
}

/// All that servers and workers must agree on about a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableSpec {
    /// Unique in the job.
    pub name: String,
    /// Dense or sparse.
    pub kind: TableKind,
    /// The update rule.
    pub optimizer: OptimizerSpec,
    /// How pushes are combined under Bsp.
    pub aggregate: Aggregate,
    /// When a pull may be answered.
    pub consistency: Consistency,
    /// How many workers end a clock; `None` for all of them.
    pub quorum: Option<Quorum>,
    /// What becomes of pushes whose base version is old (Ssp, Asp).
    pub stale: Stale,
    /// What becomes of values that are not finite.
    pub non_finite: NonFinite,
    /// What parameters are before anything was pushed to them.
    pub initializer: Initializer,
    /// What is done to values on their way to the servers, in this order.
    pub push_filters: Vec<FilterSpec>,
    /// What is done to values on their way back, in this order.
    pub pull_filters: Vec<FilterSpec>,
    /// Whether dense buckets are kept for one-sided readers, too.
    #[serde(default)]
    pub publish: Publish,
}

impl TableSpec {
    /// A dense table of `shape` in segments of 256 KiB, under Bsp, `mean`, plain SGD with rate 1.
    pub fn dense(name: &str, shape: &[u64]) -> TableSpec {
        let segment = DEFAULT_SEGMENT_BYTES / 4;
        TableSpec::with(name, TableKind::Dense { shape: shape.to_vec(), segment })
    }

    /// A sparse table of rows of `dim`, under Bsp, `mean`, plain SGD with rate 1.
    pub fn sparse(name: &str, dim: u32) -> TableSpec {
        TableSpec::with(name, TableKind::Sparse { dim, buckets: DEFAULT_SPARSE_BUCKETS })
    }

    fn with(name: &str, kind: TableKind) -> TableSpec {
        TableSpec {
            name: name.to_owned(),
            kind,
            optimizer: OptimizerSpec::sgd(1.0),
            aggregate: Aggregate::Mean,
            consistency: Consistency::Bsp,
            quorum: None,
            stale: Stale::Accept,
            non_finite: NonFinite::Accept,
            initializer: Initializer::Zeros,
            push_filters: Vec::new(),
            pull_filters: Vec::new(),
            publish: Publish::InPlace,
        }
    }

    /// The same with another update rule.
    pub fn optimizer(mut self, optimizer: OptimizerSpec) -> TableSpec {
        self.optimizer = optimizer;
        self
    }

    /// The same with another way to combine pushes.
    pub fn aggregate(mut self, aggregate: Aggregate) -> TableSpec {
        self.aggregate = aggregate;
        self
    }

    /// The same under another consistency.
    pub fn consistency(mut self, consistency: Consistency) -> TableSpec {
        self.consistency = consistency;
        self
    }

    /// The same with clocks that close when `quorum.workers` have ended them (Bsp, Ssp).
    pub fn quorum(mut self, quorum: Quorum) -> TableSpec {
        self.quorum = Some(quorum);
        self
    }

    /// The same with another rule for pushes that carry a base version (Ssp, Asp).
    pub fn stale(mut self, stale: Stale) -> TableSpec {
        self.stale = stale;
        self
    }

    /// The same with another rule for values that are not finite.
    pub fn non_finite(mut self, non_finite: NonFinite) -> TableSpec {
        self.non_finite = non_finite;
        self
    }

    /// The same with other parameters to begin with. Refused by the servers, unless it is [`Initializer::Zeros`], with an update
    /// rule whose weights follow from its state alone (`ftrl`): the first push would undo it.
    pub fn initializer(mut self, initializer: Initializer) -> TableSpec {
        self.initializer = initializer;
        self
    }

    /// The same with filters on what is pushed.
    pub fn push_filters(mut self, filters: Vec<FilterSpec>) -> TableSpec {
        self.push_filters = filters;
        self
    }

    /// The same with filters on what is pulled.
    pub fn pull_filters(mut self, filters: Vec<FilterSpec>) -> TableSpec {
        self.pull_filters = filters;
        self
    }

    /// The same with values that travel so, both ways. Sums and parameters are fp32 all the same.
    pub fn wire(self, wire: Wire) -> TableSpec {
        self.push_filters(wire.filters()).pull_filters(wire.filters())
    }

    /// The same with another way to keep what is pulled. Sparse tables, and those with pull filters, can't be published in epochs.
    pub fn publish(mut self, publish: Publish) -> TableSpec {
        self.publish = publish;
        self
    }

    /// Where a published bucket's parts lie; nothing where the table is not published in epochs.
    pub fn epochs(&self) -> Option<Layout> {
        match self.publish {
            Publish::InPlace => None,
            Publish::Epochs { buffers, .. } => {
                // `validate` keeps a segment below 2^18 values.
                let length = u64::from(self.segment_length()).min(self.elements()) as usize;
                Some(Layout { length, buffers: u64::from(buffers) })
            }
        }
    }

    /// The same with segments of `bytes` bytes (dense tables only).
    pub fn segment_bytes(mut self, bytes: u32) -> TableSpec {
        if let TableKind::Dense { segment, .. } = &mut self.kind {
            *segment = bytes / 4;
        }
        self
    }

    /// Refuses sizes that no server could hold; every peer's spec goes through this.
    pub fn validate(&self) -> Result<()> {
        let field = |name: &str| format!("table \"{}\": {name}", self.name);
        if self.name.is_empty() || self.name.len() > 128 {
            return Err(Error::config("table name", "1 to 128 bytes", self.name.len()));
        }
        if self.optimizer.parameters.len() > 16 || self.optimizer.name.len() > 64 {
            return Err(Error::config(
                field("optimizer"),
                "at most 16 values",
                self.optimizer.parameters.len(),
            ));
        }
        if let Some((name, _)) = self.optimizer.parameters.iter().find(|(name, _)| name.len() > 64) {
            return Err(Error::config(field("optimizer"), "names of at most 64 bytes", name.len()));
        }
        if self.quorum.is_some() && self.consistency == Consistency::Asp {
            return Err(Error::config(field("quorum"), "bsp or ssp:N beside it", self.consistency));
        }
        if self.quorum.is_some_and(|q| q.workers == 0) {
            return Err(Error::config(field("quorum"), "at least 1 worker", 0));
        }
        if self.stale != Stale::Accept && self.consistency == Consistency::Bsp {
            return Err(Error::config(field("stale"), "ssp:N or asp beside it", self.consistency));
        }
        self.initializer.validate(&field("initializer"))?;
        filter::validate(|| field("push filters"), &self.push_filters)?;
        filter::validate(|| field("pull filters"), &self.pull_filters)?;
        self.validate_publish()?;
        match &self.kind {
            TableKind::Dense { shape, segment } => {
                if shape.len() > MAX_DIMENSIONS {
                    let expected = format!("at most {MAX_DIMENSIONS} dimensions");
                    return Err(Error::config(field("shape"), expected, shape.len()));
                }
                let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).unwrap_or(u64::MAX);
                if shape.is_empty() || elements == 0 || elements > 1 << 40 {
                    return Err(Error::config(field("shape"), "1 to 2^40 elements", format!("{shape:?}")));
                }
                if *segment < 16 || *segment > 1 << 18 || !segment.is_multiple_of(16) {
                    return Err(Error::config(
                        field("segment bytes"),
                        "a multiple of 64 from 64 to 1048576",
                        u64::from(*segment) * 4,
                    ));
                }
                if elements.div_ceil(u64::from(*segment)) > 1 << 24 {
                    return Err(Error::config(field("segment bytes"), "at most 2^24 segments", elements));
                }
            }
            TableKind::Sparse { dim, buckets } => {
                if *dim == 0 || *dim > 1 << 14 {
                    return Err(Error::config(field("dim"), "1 to 16384", dim));
                }
                if *buckets == 0 || *buckets > 1 << 20 {
                    return Err(Error::config(field("buckets"), "1 to 2^20", buckets));
                }
            }
        }
        Ok(())
    }

    fn validate_publish(&self) -> Result<()> {
        let Publish::Epochs { buffers, every } = self.publish else { return Ok(()) };
        let setting = format!("table \"{}\": publish", self.name);
        let refuse = |expected: &str, found: String| Err(Error::config(&*setting, expected, found));
        if matches!(self.kind, TableKind::Sparse { .. }) {
            return refuse("in place for a sparse table", self.publish.to_string());
        }
        if !self.pull_filters.is_empty() {
            return refuse("in place beside pull filters", self.publish.to_string());
        }
        if !(2..=MAX_EPOCHS).contains(&buffers) {
            return refuse("2 to 64 epoch buffers", buffers.to_string());
        }
        if every == 0 {
            return refuse("every 1 or more updates", every.to_string());
        }
        Ok(())
    }

    /// The same for a job of so many workers, where their number is known.
    pub fn validate_for(&self, workers: u32) -> Result<()> {
        self.validate()?;
        match self.quorum {
            Some(quorum) if quorum.workers > workers => {
                let setting = format!("table \"{}\": quorum", self.name);
                Err(Error::config(setting, format!("at most the job's {workers} workers"), quorum.workers))
            }
            _ => Ok(()),
        }
    }

    /// Whether `workers` workers that push the same get the same bits, whatever arrives when, and on any number of servers
    /// and threads.
    pub fn reproducible(&self, workers: u32) -> bool {
        workers == 1 || (self.consistency.folds_by_rank() && self.quorum.is_none())
    }

    /// Number of buckets.
    pub fn buckets(&self) -> u32 {
        match &self.kind {
            TableKind::Dense { segment, .. } => {
                // `validate` bounds the number of segments by 2^24.
                u32::try_from(self.elements().div_ceil(u64::from(*segment))).unwrap_or(u32::MAX)
            }
            TableKind::Sparse { buckets, .. } => *buckets,
        }
    }

    /// Number of elements of a dense table; 0 for a sparse one.
    pub fn elements(&self) -> u64 {
        match &self.kind {
            TableKind::Dense { shape, .. } => shape.iter().product(),
            TableKind::Sparse { .. } => 0,
        }
    }

    /// Elements of a dense segment; 0 for a sparse table.
    pub fn segment_length(&self) -> u32 {
        match &self.kind {
            TableKind::Dense { segment, .. } => *segment,
            TableKind::Sparse { .. } => 0,
        }
    }

    /// fp32 for each key: 1 (dense) or `dim`.
    pub fn width(&self) -> u32 {
        match &self.kind {
            TableKind::Dense { .. } => 1,
            TableKind::Sparse { dim, .. } => *dim,
        }
    }

    /// The keys of a dense bucket; `None` for a sparse table or a bucket that does not exist.
    pub fn segment_range(&self, bucket: BucketId) -> Option<KeyRange> {
        let TableKind::Dense { segment, .. } = &self.kind else { return None };
        let start = u64::from(bucket) * u64::from(*segment);
        let end = (start + u64::from(*segment)).min(self.elements());
        KeyRange::new(start, end).ok()
    }

    /// The hashes ([`mix64`]) of the keys of a sparse bucket, from the first to the last; `None` for a dense table or a bucket that does
    /// not exist.
    pub fn hashes_of(&self, bucket: BucketId) -> Option<(u64, u64)> {
        let TableKind::Sparse { buckets, .. } = self.kind else { return None };
        // From which one on the product in `bucket_of` has `bucket` above its 64 bits.
        let from = |bucket: u64| (u128::from(bucket) << 64).div_ceil(u128::from(buckets));
        let (first, next) = (from(bucket.into()), from(u64::from(bucket) + 1));
        (bucket < buckets).then(|| (first as u64, (next - 1) as u64))
    }

    /// The bucket that holds `key`.
    pub fn bucket_of(&self, key: Key) -> BucketId {
        match &self.kind {
            TableKind::Dense { segment, .. } => (key / u64::from(*segment)) as BucketId,
            // The high bits of the hash, by multiplication: even for any number of buckets (Lemire, TOMACS 2019).
            TableKind::Sparse { buckets, .. } => {
                ((u128::from(mix64(key)) * u128::from(*buckets)) >> 64) as BucketId
            }
        }
    }
}

impl fmt::Display for TableSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            TableKind::Dense { shape, segment } => {
                write!(f, "dense {shape:?} in segments of {} bytes", u64::from(*segment) * 4)?;
            }
            TableKind::Sparse { dim, buckets } => write!(f, "sparse rows of {dim} in {buckets} buckets")?,
        }
        write!(f, ", {} {:?}", self.optimizer.name, self.optimizer.parameters)?;
        write!(f, ", {:?}, {}, {}", self.aggregate, self.consistency, self.initializer)?;
        write!(f, ", push {}, pull {}", Shown(&self.push_filters), Shown(&self.pull_filters))?;
        if let Some(quorum) = self.quorum {
            write!(f, ", {quorum}")?;
        }
        if self.stale != Stale::Accept {
            write!(f, ", {}", self.stale)?;
        }
        if self.publish != Publish::InPlace {
            write!(f, ", {}", self.publish)?;
        }
        match self.non_finite {
            NonFinite::Accept => {}
            NonFinite::Count => f.write_str(", non-finite values counted")?,
            NonFinite::Reject => f.write_str(", pieces with non-finite values rejected")?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Late;

    #[test]
    fn segments_cover_the_keys_once() {
        let spec = TableSpec::dense("w", &[10, 13]).segment_bytes(64);
        spec.validate().unwrap();
        assert_eq!(spec.buckets(), 9);
        let mut next = 0;
        for bucket in 0..spec.buckets() {
            let range = spec.segment_range(bucket).unwrap();
            assert_eq!(range.start(), next);
            assert!((range.start()..range.end()).all(|k| spec.bucket_of(k) == bucket));
            next = range.end();
        }
        assert_eq!(next, 130);
        assert!(spec.segment_range(9).is_none());
    }

    #[test]
    fn hash_buckets_are_even_and_reach_both_ends() {
        let spec = TableSpec::sparse("w", 1);
        let mut counts = vec![0u32; spec.buckets() as usize];
        for key in (0..50_000).chain(u64::MAX - 50_000..=u64::MAX) {
            counts[spec.bucket_of(key) as usize] += 1;
        }
        let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*min > 300 && *max < 490, "{min} {max}");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for spec in [
            TableSpec::dense("", &[1]),
            TableSpec::dense("w", &[]),
            TableSpec::dense("w", &[0]),
            TableSpec::dense("w", &[1; 17]),
            TableSpec::dense("w", &[u64::MAX, 2]),
            TableSpec::dense("w", &[1 << 39]).segment_bytes(64),
            TableSpec::dense("w", &[8]).segment_bytes(60),
            TableSpec::sparse("w", 0),
            TableSpec::sparse("w", 1).initializer(Initializer::Constant(f32::INFINITY)),
            TableSpec::sparse("w", 1).push_filters(vec![FilterSpec::fp16(); 9]),
            TableSpec::sparse("w", 1)
                .pull_filters(vec![FilterSpec { parameters: vec![0; 65], ..FilterSpec::bf16() }]),
        ] {
            assert!(spec.validate().is_err(), "{spec}");
        }
    }

    #[test]
    fn a_quorum_needs_clocks_and_as_many_workers() {
        let quorum = |workers| Quorum { workers, late: Late::Drop };
        let spec = TableSpec::dense("w", &[8]);
        let three = spec.clone().quorum(quorum(3));
        three.validate_for(4).unwrap();
        three.validate_for(3).unwrap();
        let error = three.validate_for(2).unwrap_err().to_string();
        assert!(error.contains("at most the job's 2 workers, found 3"), "{error}");
        assert!(spec.clone().quorum(quorum(0)).validate().is_err());
        assert!(three.clone().consistency(Consistency::Asp).validate().is_err());
        three.clone().consistency(Consistency::Ssp { staleness: 1 }).validate_for(3).unwrap();
        assert!(three.to_string().ends_with("quorum of 3, late pieces dropped"), "{three}");
        assert_ne!(three, spec);
        assert!(spec.reproducible(4) && three.reproducible(1) && !three.reproducible(4));
    }

    #[test]
    fn what_becomes_of_non_finite_values_is_part_of_the_table() {
        for choice in [NonFinite::Accept, NonFinite::Count, NonFinite::Reject] {
            assert_eq!(choice.to_string().parse::<NonFinite>().unwrap(), choice);
        }
        let error = "drop".parse::<NonFinite>().unwrap_err().to_string();
        assert!(error.contains("accept, count or reject") && error.contains("drop"), "{error}");
        let spec = TableSpec::dense("w", &[8]);
        assert_eq!(spec.non_finite, NonFinite::Accept);
        let rejecting = spec.clone().non_finite(NonFinite::Reject);
        rejecting.validate().unwrap();
        assert!(
            rejecting != spec && rejecting.to_string().ends_with("non-finite values rejected"),
            "{rejecting}"
        );
        assert!(rejecting.reproducible(4), "what is rejected follows from its bits alone");
    }

    #[test]
    fn stale_pieces_are_not_a_matter_of_bsp() {
        let spec = TableSpec::dense("w", &[8]).stale(Stale::Reject { max_age: 2 });
        assert!(spec.validate().is_err());
        let spec = spec.consistency(Consistency::Asp);
        spec.validate().unwrap();
        assert!(spec.to_string().ends_with("pieces of age above 2 rejected"), "{spec}");
        assert!(!spec.reproducible(2) && spec.reproducible(1));
    }

    proptest::proptest! {
        /// The buckets' hashes lie side by side, from 0 to the last one, and a key's is among those of its bucket.
        #[test]
        fn the_hashes_of_a_bucket_are_those_of_its_keys(buckets in 1..=u32::MAX, key: u64, other: u32) {
            let mut spec = TableSpec::sparse("s", 1);
            spec.kind = TableKind::Sparse { dim: 1, buckets };
            let (first, last) = spec.hashes_of(spec.bucket_of(key)).unwrap();
            proptest::prop_assert!(first <= mix64(key) && mix64(key) <= last);
            let other = other % buckets;
            let (first, last) = spec.hashes_of(other).unwrap();
            proptest::prop_assert!(first <= last);
            proptest::prop_assert_eq!(spec.hashes_of(other + 1).map(|next| next.0), last.checked_add(1));
            proptest::prop_assert!(other > 0 || first == 0);
        }
    }
}
