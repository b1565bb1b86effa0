//! A thousand random small jobs: every pull saw exactly the clocks that its consistency allows, whatever was lost on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::exact::{MOST, Pull, Pushes, value};
use super::rig::{Job, Outcome, Worker};
use crate::client::{Table, Ticket};
use crate::config::ServerLimits;
use crate::error::Error;
use crate::server::simulated::{Fault, key_list_bytes};
use crate::transport::sim::{SimFailure, SimOptions};
use crate::types::random::SplitMix64;
use crate::types::{
    Aggregate, Clock, Consistency, KeyRange, NonFinite, OptimizerSpec, Publish, SortedKeys, TableKind,
    TableSpec, mix64,
};

/// fp32 in one unit of a dense table, or in one row: a cell for each worker, and some that nobody uses.
const DENSE_UNIT: u32 = 16;
const SPARSE_UNIT: u32 = 8;
/// Rows in a unit of a sparse table whose lists of keys are long enough for a name.
const LONG: usize = 40;
/// The most units of a table.
const UNITS: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Push,
    Pull,
    PushPull,
}

/// One call, on some units next to each other.
#[derive(Debug, Clone, Copy)]
struct Call {
    kind: Kind,
    table: usize,
    first: usize,
    units: usize,
    priority: i8,
    /// Virtual time before it, in nanoseconds.
    nap: u64,
    /// A push whose pieces all hold a value that is not finite.
    odd: bool,
    /// Waited for at once, where that is allowed; else later, in another order.
    at_once: bool,
}

/// The calls of one worker, by clock.
type Script = Vec<Vec<Call>>;

/// A job's tables, and what each worker does with them.
struct Scene {
    units: Vec<usize>,
    /// Rows in each unit of each table, which all hold the same; 1 in dense ones.
    rows: Vec<usize>,
    consistencies: Vec<Consistency>,
    /// The keys of sparse tables, unit by unit.
    keys: Vec<u64>,
    scripts: Vec<Script>,
    /// For each worker, table and unit: the clocks of the pushes.
    clocks: Vec<Vec<Vec<Vec<Clock>>>>,
    /// How many of them have been made so far.
    made: Vec<Vec<Vec<AtomicUsize>>>,
}

fn draw(random: &mut SplitMix64, from: usize, to: usize) -> usize {
    from + random.below((to - from + 1) as u64) as usize
}

/// The tables, and for each its units and the rows in one; with `lists` one whose lists of keys are long, and few, so that they come again.
fn tables(random: &mut SplitMix64, lists: bool) -> (Vec<TableSpec>, Vec<usize>, Vec<usize>) {
    let (mut units, mut rows) = (Vec::new(), Vec::new());
    let specs = (0..if lists { 1 } else { draw(random, 1, 3) }).map(|number| {
        let (name, own) = (format!("table {number}"), if lists { 2 } else { draw(random, 1, UNITS) });
        let dense = !lists && random.below(2) == 0;
        let mut spec = match dense {
            true => {
                TableSpec::dense(&name, &[own as u64 * u64::from(DENSE_UNIT)]).segment_bytes(DENSE_UNIT * 4)
            }
            false => TableSpec::sparse(&name, SPARSE_UNIT),
        };
        units.push(own);
        rows.push(if lists { LONG } else { 1 });
        if let TableKind::Sparse { buckets, .. } = &mut spec.kind {
            *buckets = draw(random, 1, 8) as u32;
        }
        let consistency = match random.below(5) {
            0..2 => Consistency::Bsp,
            2..4 => Consistency::Ssp { staleness: random.below(3) },
            _ => Consistency::Asp,
        };
        let choice = if lists || random.below(2) == 0 { NonFinite::Accept } else { NonFinite::Reject };
        let spec = spec.consistency(consistency).optimizer(OptimizerSpec::sum()).aggregate(Aggregate::Sum);
        let spec = spec.non_finite(choice);
        // Not drawn: it changes nothing that may be seen.
        match spec.kind {
            TableKind::Dense { .. } if own % 2 == 0 => spec.publish(Publish::epochs(2 + own as u32 % 3)),
            _ => spec,
        }
    });
    let specs = specs.collect();
    (specs, units, rows)
}

fn script(
    random: &mut SplitMix64,
    units: &[usize],
    rejecting: &[bool],
    (naps, lists): (u64, bool),
) -> Script {
    let clocks = if lists { 4 } else { draw(random, 1, 4) };
    let call = |random: &mut SplitMix64| {
        let table = draw(random, 0, units.len() - 1);
        let first = draw(random, 0, units[table] - 1);
        let kind = [Kind::Push, Kind::Push, Kind::Pull, Kind::PushPull][draw(random, 0, 3)];
        let (units, nap) = (draw(random, 1, units[table] - first), random.below(naps));
        let odd = rejecting[table] && kind != Kind::Pull && random.below(4) == 0;
        let priority = random.below(3) as i8 - 1;
        Call { kind, table, first, units, priority, nap, odd, at_once: random.below(3) == 0 }
    };
    // Lists of keys have to come again.
    let most = MOST as u64 / 4;
    let calls = |random: &mut SplitMix64| if lists { most } else { random.below(most + 1) };
    (0..clocks).map(|_| (0..calls(random)).map(|_| call(random)).collect()).collect()
}

impl Scene {
    fn new(
        random: &mut SplitMix64,
        specs: &[TableSpec],
        (units, rows): (Vec<usize>, Vec<usize>),
        workers: usize,
        naps: u64,
    ) -> Scene {
        let rejecting: Vec<bool> = specs.iter().map(|s| s.non_finite == NonFinite::Reject).collect();
        let scripts: Vec<Script> = (0..workers)
            .map(|_| {
                // Some are slow.
                let naps = if random.below(4) == 0 { naps * 20 } else { naps };
                script(random, &units, &rejecting, (naps, rows.contains(&LONG)))
            })
            .collect();
        let none = || units.iter().map(|&n| vec![Vec::new(); n]).collect::<Vec<_>>();
        let mut clocks = vec![none(); workers];
        for (script, clocks) in scripts.iter().zip(&mut clocks) {
            for (clock, calls) in (0..).zip(script) {
                for call in calls.iter().filter(|c| c.kind != Kind::Pull && !c.odd) {
                    for unit in &mut clocks[call.table][call.first..call.first + call.units] {
                        unit.push(clock);
                    }
                }
            }
        }
        let zero = |n: &usize| (0..*n).map(|_| AtomicUsize::new(0)).collect();
        let made = (0..workers).map(|_| units.iter().map(zero).collect()).collect();
        let mut keys: Vec<u64> = (0..UNITS * LONG).map(|_| mix64(random.next_u64())).collect();
        keys.sort_unstable();
        let consistencies = specs.iter().map(|s| s.consistency).collect();
        Scene { units, rows, consistencies, keys, scripts, clocks, made }
    }

    fn made(&self, rank: usize, call: &Call) -> Vec<usize> {
        let units = &self.made[rank][call.table][call.first..call.first + call.units];
        units.iter().map(|n| n.load(Ordering::Relaxed)).collect()
    }

    fn act(&self, worker: &Worker) {
        let rank = worker.rank as usize;
        let mut later = Vec::new();
        for (clock, calls) in (0..).zip(&self.scripts[rank]) {
            for call in calls {
                worker.node.doing(format!("{:?} of table {} in clock {clock}", call.kind, call.table));
                worker.node.sleep(Duration::from_nanos(call.nap));
                self.call(worker, clock, call, &mut later);
            }
            worker.node.doing(format!("ending clock {clock}"));
            assert_eq!(worker.client.clock().unwrap(), clock + 1);
            while !later.is_empty() && !calls.is_empty() {
                let last: Waited = later.swap_remove(later.len() / 2);
                last.wait(self, worker);
            }
        }
        later.into_iter().for_each(|waited| waited.wait(self, worker));
        worker.finish();
        for table in 0..self.units.len() {
            let (kind, units) = (Kind::Pull, self.units[table]);
            let call = Call { kind, table, first: 0, units, priority: 0, nap: 0, odd: false, at_once: true };
            let clock = self.scripts[rank].len() as Clock;
            self.pull(worker, clock, &call, true).wait(self, worker);
        }
    }

    /// Makes a call, and waits for it now or leaves that for later.
    fn call(&self, worker: &Worker, clock: Clock, call: &Call, later: &mut Vec<Waited>) {
        let bsp = self.consistencies[call.table] == Consistency::Bsp;
        let mut waited = match call.kind {
            Kind::Pull => self.pull(worker, clock, call, false),
            Kind::Push | Kind::PushPull => self.push(worker, clock, call),
        };
        match call.at_once && (call.kind == Kind::Pull || !bsp) {
            true => waited.wait(self, worker),
            // A ticket that nobody keeps cancels nothing.
            false if call.kind == Kind::Push && call.nap.is_multiple_of(2) => drop(waited.ticket.take()),
            false => later.push(waited),
        }
    }

    fn pull(&self, worker: &Worker, clock: Clock, call: &Call, at_the_end: bool) -> Waited {
        let table = &worker.tables[call.table].priority(call.priority);
        let ticket = match dense(table) {
            true => table.pull_range_async(range(call)),
            false => table.pull_async(self.sorted(call)),
        };
        let pull = self.seen(worker, clock, call, at_the_end);
        Waited {
            ticket: Some(ticket.unwrap()),
            call: *call,
            pull: Some(pull),
            before: self.made(worker.rank as usize, call),
        }
    }

    fn push(&self, worker: &Worker, clock: Clock, call: &Call) -> Waited {
        let table = &worker.tables[call.table].priority(call.priority);
        let rank = worker.rank as usize;
        let width = width(table);
        let rows = self.rows[call.table];
        let mut values = vec![0.0; call.units * rows * width];
        for (unit, values) in values.chunks_mut(rows * width).enumerate() {
            let made = &self.made[rank][call.table][call.first + unit];
            let own = match call.odd {
                true => [f32::NAN, f32::INFINITY][unit % 2],
                false => value(made.fetch_add(1, Ordering::Relaxed)),
            };
            values.chunks_mut(width).for_each(|row| row[rank] = own);
        }
        let both = call.kind == Kind::PushPull;
        let ticket = match (dense(table), both) {
            (true, false) => table.push_range(range(call), &values),
            (true, true) => table.push_pull_range(range(call), &values),
            (false, false) => table.push(self.sorted(call), &values),
            (false, true) => table.push_pull(self.sorted(call), &values),
        };
        let pull = both.then(|| Pull { after_push: true, ..self.seen(worker, clock, call, false) });
        Waited { ticket: Some(ticket.unwrap()), call: *call, pull, before: self.made(rank, call) }
    }

    fn seen(&self, worker: &Worker, clock: Clock, call: &Call, at_the_end: bool) -> Pull {
        let consistency = self.consistencies[call.table];
        Pull { reader: worker.rank, clock, after_push: false, consistency, at_the_end }
    }

    fn sorted(&self, call: &Call) -> SortedKeys<'_> {
        let rows = self.rows[call.table];
        SortedKeys::new(&self.keys[call.first * rows..(call.first + call.units) * rows]).unwrap()
    }
}

fn dense(table: &Table) -> bool {
    matches!(table.spec().kind, TableKind::Dense { .. })
}

fn width(table: &Table) -> usize {
    (if dense(table) { DENSE_UNIT } else { SPARSE_UNIT }) as usize
}

fn range(call: &Call) -> KeyRange {
    let at = |unit: usize| unit as u64 * u64::from(DENSE_UNIT);
    KeyRange::new(at(call.first), at(call.first + call.units)).unwrap()
}

/// A call under way.
struct Waited {
    ticket: Option<Ticket>,
    call: Call,
    pull: Option<Pull>,
    /// The reader's own pushes to each unit when it asked.
    before: Vec<usize>,
}

impl Waited {
    fn wait(mut self, scene: &Scene, worker: &Worker) {
        worker.node.doing(format!("waiting for {:?}", self.call));
        let Some(mut ticket) = self.ticket.take() else { return };
        if self.call.odd {
            let ended = ticket.wait();
            if !matches!(ended, Err(Error::NonFinite { worker: rank, .. }) if rank == worker.rank) {
                worker.node.fail(&format!("not exact: {:?} ended with {ended:?}", self.call));
            }
            return;
        }
        let Some(pull) = self.pull else { return ticket.wait().unwrap() };
        let (call, width) = (&self.call, width(&worker.tables[self.call.table]));
        let rows = scene.rows[call.table];
        let mut values = vec![0.0; call.units * rows * width];
        ticket.wait_into(&mut values).unwrap();
        for (row, cells) in values.chunks(width).enumerate() {
            let unit = row / rows;
            for (writer, &cell) in cells.iter().enumerate() {
                let (table, at) = (call.table, call.first + unit);
                let Some(clocks) = scene.clocks.get(writer).map(|by_table| &by_table[table][at]) else {
                    assert_eq!(cell, 0.0, "a cell that nobody pushes to");
                    continue;
                };
                let after = scene.made[writer][table][at].load(Ordering::Relaxed);
                let pushes = Pushes { writer: writer as u32, clocks, before: self.before[unit], after };
                if let Err(why) = pull.check(cell, &pushes) {
                    worker.node.fail(&why);
                }
            }
        }
    }
}

/// The job of a seed; with `losses` connections break, also in seeds that would have none.
fn job(seed: u64, fault: Fault, losses: bool) -> (Job, Scene) {
    let mut random = SplitMix64::new(seed, 3);
    let random = &mut random;
    let lists = random.below(2) == 0;
    let (tables, units, rows) = tables(random, lists);
    let (workers, shards) = (draw(random, 1, 5), (draw(random, 1, 3) as u32, draw(random, 1, 2) as u32));
    let longest = [1_000, 50_000, 1_000_000][draw(random, 0, 2)];
    let scene = Scene::new(random, &tables, (units, rows), workers, longest);
    let lossy = losses || random.below(2) == 0;
    let job = Job {
        limits: ServerLimits {
            staging_bytes: 1 << 20,
            payload_bytes: 4096,
            slots: draw(random, 1, 4),
            pull_credits: draw(random, 1, 4),
            reply_buffers: draw(random, 1, 4),
            key_list_bytes: key_list_bytes(random.below(4), workers as u64),
            ..ServerLimits::default()
        },
        options: SimOptions {
            shortest: 1_000,
            longest,
            loss: if lossy { 1 << draw(random, 12, 17) } else { 0 },
            losses: 30,
            lost_after: longest << draw(random, 0, 6),
            queue_depth: draw(random, 2, 40),
            most_steps: 1_000_000,
            ..SimOptions::default()
        },
        fault,
        partitions: if random.below(4) == 0 { 3 } else { 0 },
        ..Job::new(seed, workers as u32, shards, tables)
    };
    (job, scene)
}

fn run(seed: u64, fault: Fault, losses: bool) -> Result<Outcome, SimFailure> {
    let (job, scene) = job(seed, fault, losses);
    let scene = Arc::new(scene);
    job.run(move |worker| scene.act(worker))
}

/// Debug builds are slow; what `cargo test --release` runs is what counts.
const SEEDS: u64 = if cfg!(debug_assertions) { 100 } else { 1000 };

#[test]
fn every_pull_saw_exactly_the_clocks_that_its_consistency_allows() {
    let halves = [0, 1].map(|half| {
        std::thread::spawn(move || {
            let (mut reconnects, mut duplicates, mut named, mut replaced) = (0, 0, 0, 0);
            for seed in (half..SEEDS).step_by(2) {
                let outcome = run(seed, Fault::None, false).unwrap_or_else(|failure| panic!("{failure}"));
                reconnects += outcome.stats.iter().map(|s| s.reconnects).sum::<u64>();
                duplicates += outcome.stats.iter().map(|s| s.duplicates_dropped).sum::<u64>();
                (named, replaced) = (named + outcome.listed.named, replaced + outcome.listed.replaced);
            }
            [reconnects, duplicates, named, replaced]
        })
    });
    let [one, other] = halves.map(|half| half.join().unwrap());
    let [reconnects, duplicates, named, replaced] = std::array::from_fn(|i| one[i] + other[i]);
    println!("{SEEDS} seeds: {reconnects} reconnects, {duplicates} duplicates dropped");
    println!("{named} requests named lists of keys, {replaced} lists were replaced");
    assert!(reconnects > SEEDS && duplicates > SEEDS / 2, "{reconnects} reconnects, {duplicates} duplicates");
    assert!(named > 4 * SEEDS && replaced > SEEDS, "{named} named, {replaced} replaced");
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in 0..10 {
        let traces = [0, 1].map(|_| run(seed, Fault::None, true).unwrap_or_else(|f| panic!("{f}")).trace);
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}

/// How many of some seeds fail with a fault, and that it is the check which finds it.
fn found(fault: Fault) -> usize {
    let failures: Vec<SimFailure> = (0..40).filter_map(|seed| run(seed, fault, true).err()).collect();
    for failure in &failures {
        assert!(failure.0.contains("not exact"), "found by something else: {failure}");
    }
    failures.len()
}

#[test]
fn a_gate_that_answers_one_clock_early_is_found() {
    let found = found(Fault::AnswersEarly);
    assert!(found >= 5, "in {found} of 40 seeds");
}

#[test]
fn a_list_that_finds_the_rows_of_another_is_found() {
    // The store itself notices some rows that are not their bucket's.
    let found = (0..40).filter(|&seed| run(seed, Fault::KeepsPositions, true).is_err()).count();
    assert!(found >= 5, "in {found} of 40 seeds");
}

#[test]
fn without_dedupe_pushes_are_found_twice() {
    let found = found(Fault::KeepsDuplicates);
    assert!(found >= 5, "in {found} of 40 seeds");
}
