//! One worker of a measurement.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Verdict;
use super::latencies::{BUCKETS, Latencies};
use super::load::{Judged, Load, Part, Wrong};
use super::options::Options;
use super::pair;
use super::parts::Parts;
use super::place::Walk;
use super::report::{Figures, Report};
use crate::client::{Client, Ticket};
use crate::config::Environment;
use crate::error::Result;
use crate::types::{Aggregate, Consistency, KeyRange, OptimizerSpec, TableSpec};

/// Before the measurement operations run for a quarter of its time, at most so long.
const WARM_UP: Duration = Duration::from_secs(1);
/// And where clocks bind the workers together, for as many operations, since none may stop while others wait for it.
const WARM_UP_CLOCKS: u64 = 16;

/// Takes part in the job, from joining to leaving.
pub fn run(options: &Options, environment: &Environment) -> Result<Verdict> {
    options.check()?;
    let settings = options.settings(environment)?;
    let config = options.node.client(&settings, options.rank, options.workers)?;
    let (network, secret) = (config.network.clone(), config.secret.clone());
    let client = Client::connect(config)?;
    let measured = match options.op.is_transport() {
        true => pair::job::run(&client, options, &network, &secret),
        false => Worker::new(&client, options).and_then(Worker::run),
    };
    match measured {
        Ok(verdict) => client.finalize().map(|()| verdict),
        Err(error) => {
            // The others are told why, and not only that a link closed.
            client.abort(&error.to_string());
            Err(error)
        }
    }
}

/// What a worker tells the others when it is done.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// Operations in all, and those that were measured.
    all: u64,
    measured: u64,
    nanos: u64,
}

impl Told {
    fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.all.to_le_bytes());
        out[8..16].copy_from_slice(&self.measured.to_le_bytes());
        out[16..].copy_from_slice(&self.nanos.to_le_bytes());
        out
    }

    /// Of a worker that told nothing, zeros.
    fn decode(bytes: &[u8]) -> Told {
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        Told { all: number(0), measured: number(8), nanos: number(16) }
    }
}

/// A part of an operation under way.
struct UnderWay {
    ticket: Ticket,
    part: Part,
    /// When the operation began.
    since: Instant,
}

struct Worker<'a> {
    client: &'a Client,
    options: &'a Options,
    load: Load,
    walk: Walk,
    parts: Parts,
    servers: u32,
    threads: u32,
    under_way: VecDeque<UnderWay>,
    latencies: Latencies,
    /// Operations that were begun, and those that are done.
    begun: u64,
    done: u64,
    wrong: u64,
    /// When it last looked at the clock: at the end of each operation that it waited for, which is when the next one begins. To look takes
    /// a fortieth of the shortest operation.
    now: Instant,
}

impl<'a> Worker<'a> {
    fn new(client: &'a Client, options: &'a Options) -> Result<Worker<'a>> {
        let stats = client.server_stats()?;
        let shards: usize = stats.iter().map(|s| s.threads.len()).sum();
        let load =
            Load::new(client, options, client.table(&client.publishing(options.spec()))?, shards as u64)?;
        Ok(Worker {
            client,
            options,
            parts: load.parts(),
            load,
            walk: Walk::new(client.rank(), client.workers(), options.places()),
            servers: stats.len() as u32,
            threads: stats.iter().map(|s| s.threads.len() as u32).max().unwrap_or(0),
            under_way: VecDeque::new(),
            latencies: Latencies::new(),
            begun: 0,
            done: 0,
            wrong: 0,
            now: Instant::now(),
        })
    }

    fn run(mut self) -> Result<Verdict> {
        if self.client.rank() == 0 {
            self.load.fill()?;
        }
        if self.clocked() {
            self.client.clock()?;
        }
        self.client.barrier()?;
        if self.clocked() {
            self.drive(Duration::MAX, WARM_UP_CLOCKS)?;
        } else {
            self.drive((self.options.duration() / 4).min(WARM_UP), self.most_operations() / 4)?;
        }
        self.client.barrier()?;
        self.latencies = Latencies::new();
        let before = self.done;
        let took = self.drive(self.options.duration(), u64::MAX)?;
        let told = Told { all: self.done, measured: self.done - before, nanos: took.as_nanos() as u64 };
        let told = self.share(told)?;
        let own = if self.wrong == 0 { Verdict::Right } else { Verdict::Wrong };
        if self.client.rank() > 0 {
            return Ok(own);
        }
        self.report(&told)?;
        let judged = self.judge(&told)?;
        Ok(if own == Verdict::Right { judged } else { own })
    }

    /// Whether each operation is a clock of its own.
    fn clocked(&self) -> bool {
        self.options.consistency != Consistency::Asp
    }

    /// Operations after which sums would no longer be exact.
    fn most_operations(&self) -> u64 {
        match self.options.op.pushes() {
            // A drawn row may be in every list.
            true => {
                let places = if self.options.lists > 0 { 1 } else { self.options.places() };
                self.options.numbers().most_operations(places, self.client.workers())
            }
            false => u64::MAX,
        }
    }

    /// Runs operations for `time`, at most `count`, then until all are done. How long that took.
    fn drive(&mut self, time: Duration, count: u64) -> Result<Duration> {
        let most = self.begun.saturating_add(count).min(self.most_operations());
        let start = Instant::now();
        self.now = start;
        while self.now - start < time && self.begun < most {
            let (operation, place) = (self.begun, self.walk.place(self.begun));
            let (mut since, looked) = (None, self.now);
            while self.begun - self.done >= self.parts.window() {
                self.finish_oldest()?;
            }
            for number in 0..self.parts.count() {
                while self.under_way.len() >= self.parts.depth() {
                    self.finish_oldest()?;
                }
                let since = *since.get_or_insert(self.now);
                let part = Part { operation, place, number };
                let ticket = self.load.start(part)?;
                if self.clocked() {
                    self.client.clock()?;
                }
                self.under_way.push_back(UnderWay { ticket, part, since });
            }
            self.begun += 1;
            if self.now == looked {
                self.now = Instant::now();
            }
        }
        while !self.under_way.is_empty() {
            self.finish_oldest()?;
        }
        Ok(start.elapsed())
    }

    fn finish_oldest(&mut self) -> Result<()> {
        let Some(UnderWay { ticket, part, since }) = self.under_way.pop_front() else { return Ok(()) };
        if let Some(wrong) = self.load.finish(ticket, part)? {
            if self.wrong == 0 {
                say("a pull brought a wrong value", wrong);
            }
            self.wrong += 1;
        }
        if part.number + 1 == self.parts.count() {
            self.done += 1;
            self.now = Instant::now();
            self.latencies.record(self.now - since);
        }
        Ok(())
    }

    /// Tells the others, waits for them and adds the latencies up; gives what each told, by rank.
    fn share(&mut self, told: Told) -> Result<Vec<Told>> {
        let spec = TableSpec::dense("bench.latencies", &[BUCKETS as u64])
            .optimizer(OptimizerSpec::new("sum", &[]))
            .aggregate(Aggregate::Sum)
            .consistency(Consistency::Asp);
        let all = KeyRange::new(0, BUCKETS as u64)?;
        let table = self.client.table(&spec)?;
        table.push_range(all, self.latencies.counts())?.wait()?;
        self.client.set_status(&told.encode())?;
        // A heartbeat goes ahead of the question, so behind the barrier every worker's figures are known.
        self.client.peers()?;
        self.client.finish()?;
        self.client.barrier()?;
        let mut counts = vec![0.0; BUCKETS];
        table.pull_range(all, &mut counts)?;
        self.latencies = Latencies::from_counts(counts);
        let mut by_rank = vec![Told::default(); self.client.workers() as usize];
        for peer in self.client.peers()? {
            if let Some(slot) = by_rank.get_mut(peer.rank as usize) {
                *slot = Told::decode(&peer.status);
            }
        }
        Ok(by_rank)
    }

    fn report(&self, told: &[Told]) -> Result<()> {
        let figures = Figures {
            transport: self.client.transport(),
            workers: self.client.workers(),
            servers: self.servers,
            threads: self.threads,
            operations: told.iter().map(|t| t.measured).sum(),
            seconds: told.iter().map(|t| t.nanos).max().unwrap_or(0) as f64 / 1e9,
            latencies: &self.latencies,
        };
        let mut report = Report::new(self.options, &figures);
        report.window = self.parts.window() as u32;
        report.print(self.options)
    }

    /// Whether the table, and the last result of a worker that is alone, hold the pattern and what each push has added.
    fn judge(&mut self, told: &[Told]) -> Result<Verdict> {
        let (workers, places) = (self.client.workers(), self.options.places());
        let pushing = self.options.op.pushes();
        let walks: Vec<(Walk, u64)> = (0..workers)
            .zip(told)
            .map(|(rank, t)| (Walk::new(rank, workers, places), if pushing { t.all } else { 0 }))
            .collect();
        let pushes = |place| walks.iter().map(|(walk, n)| walk.visits(place, *n)).sum();
        let mut right = judged("the table", self.load.check(pushes)?);
        if self.options.op.pulls() && (workers == 1 || !pushing) && self.begun > 0 {
            let operation = self.begun - 1;
            let place = self.walk.place(operation);
            right &= judged("a result", self.load.check_result(operation, place, pushes(place))?);
        }
        Ok(if right { Verdict::Right } else { Verdict::Wrong })
    }
}

/// Whether none is wrong; else standard error says where.
fn judged(what: &str, Judged { wrong, first }: Judged) -> bool {
    if let Some(first) = first {
        say(&format!("{wrong} elements of {what} are wrong, the first one"), first);
    }
    first.is_none()
}

fn say(what: &str, Wrong { element, expected, found }: Wrong) {
    eprintln!("windlass bench: {what}: element {element}: expected {expected}, found {found}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_survive_the_way_to_the_others() {
        let told = Told { all: 1 << 40, measured: 7, nanos: u64::MAX };
        let heard = Told::decode(&told.encode());
        assert_eq!((heard.all, heard.measured, heard.nanos), (told.all, told.measured, told.nanos));
        assert_eq!(Told::decode(&[]).all, 0);
    }
}
