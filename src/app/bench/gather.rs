//! `gather`: what a server does to a pull of rows and the network does not, in this process alone.

use std::time::{Duration, Instant};

use super::Verdict;
use super::latencies::Latencies;
use super::options::Options;
use super::place::draw;
use super::report::{Figures, Report};
use crate::error::Result;
use crate::kernels::Input;
use crate::mem::RegionId;
use crate::store::{How, Intake, Optimizers, Shard, SparsePiece};
use crate::types::{DirectoryEntry, Key, TableSpec};

/// Every so many rounds what was gathered is compared.
const COMPARED: u64 = 64;
/// Rows that are made at a time.
const FILLED: u64 = 1 << 16;
/// Lists that are drawn at a time while the clock stands. After each pause the caches, which may be another virtual machine's too, and
/// the translations of addresses have to be filled anew: half a millisecond before each list costs a tenth to a quarter.
const DRAWN: u64 = 16;

/// Keys as they come from a worker: by bucket, ascending within each.
struct List {
    directory: Vec<DirectoryEntry>,
    keys: Vec<Key>,
}

impl List {
    fn new(spec: &TableSpec, mut keys: Vec<Key>) -> List {
        keys.sort_by_cached_key(|&key| (spec.bucket_of(key), key));
        let runs = keys.chunk_by(|&a, &b| spec.bucket_of(a) == spec.bucket_of(b));
        let entry = |run: &[Key]| DirectoryEntry { bucket: spec.bucket_of(run[0]), keys: run.len() as u32 };
        List { directory: runs.map(entry).collect(), keys }
    }

    fn piece<'a>(&'a self, values: &'a [f32]) -> SparsePiece<'a> {
        SparsePiece { directory: &self.directory, keys: &self.keys, values: Input::from(values) }
    }
}

/// Makes all rows, then gathers those of list after list until the time is up. Row r holds r mod 2^20. Each list is drawn anew from
/// all rows, unless the options name a number of lists to take in turns; what that takes is not counted.
pub fn measure(options: &Options) -> Result<Verdict> {
    options.check()?;
    let (spec, dim) = (options.spec(), options.dim as usize);
    let value = |row: u64| (row % (1 << 20)) as f32;
    let mut shard = Shard::new(Optimizers::default(), u64::MAX, 0);
    let buckets: Vec<u32> = (0..spec.buckets()).collect();
    shard.create_table(0, &spec, &buckets, |_| Ok(RegionId(0)))?;
    let values_of = |list: &List| -> Vec<f32> {
        list.keys.iter().flat_map(|key| std::iter::repeat_n(value(key / options.spread()), dim)).collect()
    };
    let (mut first, mut applied) = (0, Vec::new());
    while first < options.rows {
        let rows = first..(first + FILLED).min(options.rows);
        first = rows.end;
        let list = List::new(&spec, rows.map(|row| row * options.spread()).collect());
        let intake = Intake::Step { divisor: 1.0, base: None };
        let values = values_of(&list);
        let taken = shard.write_sparse(0, How::Push, list.piece(&values), intake, &mut applied);
        taken.map_err(|malformed| malformed.by("this process"))?;
        applied.clear();
    }
    let drawn = |number| {
        let rows = draw(number, options.keys as usize, options.rows);
        List::new(&spec, rows.into_iter().map(|row| row * options.spread()).collect())
    };
    let mut lists: Vec<List> = (0..options.lists.into()).map(drawn).collect();
    let fresh = lists.is_empty();
    let (mut latencies, mut took, mut done) = (Latencies::new(), Duration::ZERO, 0u64);
    let mut into = Vec::new();
    while took < options.duration() {
        if fresh && done % DRAWN == 0 {
            lists = (done..done + DRAWN).map(drawn).collect();
        }
        let list = &lists[done as usize % lists.len()];
        let begun = Instant::now();
        shard.gather(0, &list.piece(&[]), &mut into);
        took += begun.elapsed();
        latencies.record(begun.elapsed());
        if done % COMPARED == 0 && into != values_of(list) {
            return Ok(Verdict::Wrong);
        }
        done += 1;
    }
    let figures = Figures {
        transport: "none".to_owned(),
        workers: 1,
        servers: 0,
        threads: 1,
        operations: done,
        seconds: took.as_secs_f64(),
        latencies: &latencies,
    };
    Report::new(options, &figures).print(options)?;
    Ok(Verdict::Right)
}
