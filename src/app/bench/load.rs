//! One operation on a table, in parts that fit the worker's memory for frames.

use std::ops::Range;

use super::options::{Op, Options};
use super::parts::Parts;
use super::place::{Fresh, Numbers, draw, step};
use crate::client::{Buffer, Client, Table, Ticket};
use crate::error::Result;
use crate::types::{KeyRange, SortedKeys};

/// The operations of one worker.
pub struct Load {
    table: Table,
    op: Op,
    numbers: Numbers,
    places: u64,
    parts: Parts,
    rows: Rows,
    /// What one more row's key is larger by, so that keys lie in the whole of u64.
    spread: u64,
    keys: Vec<u64>,
    memory: Memory,
}

/// What the operations on a table reach.
enum Rows {
    /// Dense: elements side by side.
    Elements,
    /// All rows in turns; those of one place are as many rows apart as there are places.
    Apart,
    /// For each place a list of `rows` rows, drawn beforehand.
    Lists { lists: Vec<Vec<u64>>, rows: u64 },
    /// A list of its own for each operation.
    Fresh { fresh: Fresh, rows: u64 },
}

/// What is pushed, and room for what is pulled: `Parts` says where.
enum Memory {
    /// Rows of sparse tables are copied on their way.
    Plain { source: Vec<f32>, result: Vec<f32> },
    /// Pushes leave from there and pulls arrive there.
    Registered { source: Buffer, result: Buffer },
}

/// One part of an operation.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Which operation of this worker's.
    pub operation: u64,
    /// Where it goes.
    pub place: u64,
    /// Which part of it.
    pub number: u64,
}

/// A value that a pull brought and that can't be.
#[derive(Debug, Clone, Copy)]
pub struct Wrong {
    pub element: u64,
    pub expected: f32,
    pub found: f32,
}

/// How many values are wrong, and the first of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Judged {
    pub wrong: u64,
    pub first: Option<Wrong>,
}

impl Judged {
    fn look(&mut self, element: u64, expected: f32, found: f32) {
        if found != expected {
            self.wrong += 1;
            self.first.get_or_insert(Wrong { element, expected, found });
        }
    }
}

impl Load {
    /// Operations on `table`, of which `shards` server threads hold parts.
    pub fn new(client: &Client, options: &Options, table: Table, shards: u64) -> Result<Load> {
        let (op, stride) = (options.op, options.stride());
        let width = u64::from(table.spec().width());
        let parts = Parts::new(options, width, shards);
        let pushed = (0..if op.pushes() { stride } else { 0 }).map(step);
        let pushed = pushed.flat_map(|value| std::iter::repeat_n(value, width as usize));
        // No number: a value that no pull brought is noticed. And all pages are there before the clock runs.
        let pulled = vec![f32::NAN; if op.pulls() && op.is_sparse() { parts.result_floats() } else { 0 }];
        let memory = if op.is_sparse() {
            Memory::Plain { source: pushed.collect(), result: pulled }
        } else {
            let mut source = client.buffer(if op.pushes() { parts.floats() } else { 1 })?;
            source.as_mut_slice()?.iter_mut().zip(pushed).for_each(|(slot, value)| *slot = value);
            let mut result = client.buffer(if op.pulls() { parts.result_floats() } else { 1 })?;
            result.as_mut_slice()?.fill(f32::NAN);
            Memory::Registered { source, result }
        };
        let (lists, keys, rows) = (u64::from(options.lists), stride as usize, options.rows);
        let rows = match op {
            _ if !op.is_sparse() => Rows::Elements,
            _ if lists > 0 => Rows::Lists { lists: (0..lists).map(|n| draw(n, keys, rows)).collect(), rows },
            Op::SparsePull => Rows::Fresh { fresh: Fresh::new(client.rank(), keys, rows), rows },
            _ => Rows::Apart,
        };
        Ok(Load {
            table,
            op,
            numbers: options.numbers(),
            places: options.places(),
            parts,
            rows,
            spread: if op.is_sparse() { options.spread() } else { 1 },
            keys: Vec::new(),
            memory,
        })
    }

    /// How its operations are cut.
    pub fn parts(&self) -> Parts {
        self.parts
    }

    /// Begins one part of an operation.
    pub fn start(&mut self, part: Part) -> Result<Ticket> {
        let (first, count) = self.parts.span(part.number);
        let from = self.parts.in_source(part.number);
        match &mut self.memory {
            Memory::Plain { source, .. } => {
                self.rows.keys(part, first..first + count, (self.places, self.spread), &mut self.keys);
                let keys = SortedKeys::new(&self.keys)?;
                match self.op {
                    Op::SparsePush => {
                        self.table.push(keys, &source[from..from + (count * self.parts.width()) as usize])
                    }
                    _ => self.table.pull_async(keys),
                }
            }
            Memory::Registered { source, result } => {
                let start = part.place * self.parts.stride() + first;
                let range = KeyRange::new(start, start + count)?;
                let into = self.parts.in_result(part.operation, part.number);
                match self.op {
                    Op::Push => self.table.push_range_buffer(range, source, from),
                    Op::Pull => self.table.pull_range_buffer_async(range, result, into),
                    _ => self.table.push_pull_range_buffers(range, (source, from), (result, into)),
                }
            }
        }
    }

    /// Waits for the oldest part. Values of a table that nobody pushes to are looked at, the first and the last.
    pub fn finish(&mut self, mut ticket: Ticket, part: Part) -> Result<Option<Wrong>> {
        if !self.op.pulls() {
            return ticket.wait().map(|()| None);
        }
        let at = self.parts.in_result(part.operation, part.number);
        let (first, count) = self.parts.span(part.number);
        let floats = (count * self.parts.width()) as usize;
        let (mut head, mut tail) = ([0.0], [0.0]);
        match &mut self.memory {
            Memory::Plain { result, .. } => {
                ticket.wait_into(&mut result[at..at + floats])?;
                (head, tail) = ([result[at]], [result[at + floats - 1]]);
            }
            Memory::Registered { result, .. } => {
                ticket.wait_version()?;
                if !self.op.pushes() {
                    result.read(at, &mut head)?;
                    result.read(at + floats - 1, &mut tail)?;
                }
            }
        }
        // What others push meanwhile may be in there, or not: the table is checked at the end.
        if self.op.pushes() {
            return Ok(None);
        }
        let mut judged = Judged::default();
        let last = self.element(part, first + count - 1) + self.parts.width() - 1;
        for (element, [found]) in [(self.element(part, first), head), (last, tail)] {
            judged.look(element, self.numbers.pattern(element), found);
        }
        Ok(judged.first)
    }

    /// Makes the table hold the pattern; for one worker.
    pub fn fill(&mut self) -> Result<()> {
        let (mut values, numbers) = (Vec::new(), self.numbers);
        for units in self.chunks() {
            values.clear();
            values.extend(self.elements(&units).map(|i| numbers.pattern(i)));
            // Dropped: the barrier that follows waits until the servers have taken all.
            drop(if self.op.is_sparse() {
                self.row_keys(units);
                self.table.push(SortedKeys::new(&self.keys)?, &values)?
            } else {
                self.table.push_range(KeyRange::new(units.start, units.end)?, &values)?
            });
        }
        Ok(())
    }

    /// Pulls the whole table and compares it; `pushes` tells how often a place was pushed to.
    pub fn check(&mut self, pushes: impl Fn(u64) -> u64) -> Result<Judged> {
        let mut judged = Judged::default();
        let mut values = Vec::new();
        let of_row = self.rows.pushed(&pushes);
        for units in self.chunks() {
            let elements = self.elements(&units);
            values.resize((elements.end - elements.start) as usize, 0.0);
            if self.op.is_sparse() {
                self.row_keys(units.clone());
                self.table.pull(SortedKeys::new(&self.keys)?, &mut values)?;
            } else {
                self.table.pull_range(KeyRange::new(units.start, units.end)?, &mut values)?;
            }
            let (mut place, mut times) = (u64::MAX, 0.0);
            for (unit, found) in units.zip(values.chunks_exact(self.parts.width() as usize)) {
                let pushed = match of_row.get(unit as usize) {
                    Some(&pushed) => pushed as f32,
                    None => {
                        let (at, j) = self.place_of(unit);
                        if at != place {
                            (place, times) = (at, pushes(at) as f32);
                        }
                        times * step(j)
                    }
                };
                for (element, &found) in self.elements(&(unit..unit + 1)).zip(found) {
                    // Exact, see `place`.
                    judged.look(element, self.numbers.pattern(element) + pushed, found);
                }
            }
        }
        Ok(judged)
    }

    /// Compares the whole result of an operation that is done, when each of its elements was pushed to `pushes` times, the last time
    /// by that operation.
    pub fn check_result(&self, operation: u64, place: u64, pushes: u64) -> Result<Judged> {
        let mut judged = Judged::default();
        let result = match &self.memory {
            Memory::Plain { result, .. } => &result[..],
            Memory::Registered { result, .. } => result.as_slice()?,
        };
        let part = Part { operation, place, number: 0 };
        let result = &result[self.parts.in_result(operation, 0)..][..self.parts.floats()];
        for (j, found) in (0..).zip(result.chunks_exact(self.parts.width() as usize)) {
            let pushed = pushes as f32 * step(j);
            for (element, &found) in (self.element(part, j)..).zip(found) {
                judged.look(element, self.numbers.pattern(element) + pushed, found);
            }
        }
        Ok(judged)
    }

    /// All elements or rows that operations reach, cut into what is filled or looked at in one go.
    fn chunks(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let all = match self.rows {
            Rows::Elements | Rows::Apart => self.places * self.parts.stride(),
            Rows::Lists { rows, .. } | Rows::Fresh { rows, .. } => rows,
        };
        let chunk = self.parts.chunk();
        (0..all).step_by(chunk as usize).map(move |start| start..(start + chunk).min(all))
    }

    /// The numbers of the fp32 of some elements or rows.
    fn elements(&self, units: &Range<u64>) -> Range<u64> {
        units.start * self.parts.width()..units.end * self.parts.width()
    }

    /// Number of the first fp32 of element or key `j` of an operation.
    fn element(&self, part: Part, j: u64) -> u64 {
        let unit = match &self.rows {
            Rows::Elements => part.place * self.parts.stride() + j,
            Rows::Apart => part.place + j * self.places,
            Rows::Lists { lists, .. } => lists[part.place as usize][j as usize],
            Rows::Fresh { fresh, .. } => fresh.list(part.operation).row(j),
        };
        unit * self.parts.width()
    }

    /// The place of an element or row, and which element or key it is there.
    fn place_of(&self, unit: u64) -> (u64, u64) {
        match self.rows {
            Rows::Elements => (unit / self.parts.stride(), unit % self.parts.stride()),
            _ => (unit % self.places, unit / self.places),
        }
    }

    fn row_keys(&mut self, rows: Range<u64>) {
        let spread = self.spread;
        self.keys.clear();
        self.keys.extend(rows.map(|row| row * spread));
    }
}

impl Rows {
    /// The keys of one part, which are those of `span` within its operation.
    fn keys(&self, part: Part, span: Range<u64>, (places, spread): (u64, u64), keys: &mut Vec<u64>) {
        keys.clear();
        match self {
            Rows::Elements => {}
            Rows::Apart => keys.extend(span.map(|j| (part.place + j * places) * spread)),
            Rows::Lists { lists, .. } => {
                let list = &lists[part.place as usize][span.start as usize..span.end as usize];
                keys.extend(list.iter().map(|row| row * spread));
            }
            Rows::Fresh { fresh, .. } => {
                let list = fresh.list(part.operation);
                keys.extend(span.map(|j| list.row(j) * spread));
            }
        }
    }

    /// For each row what all pushes have added to it, where a row can be in several lists; nothing elsewhere.
    fn pushed(&self, pushes: impl Fn(u64) -> u64) -> Vec<f64> {
        let Rows::Lists { lists, rows } = self else { return Vec::new() };
        let mut of_row = vec![0.0; *rows as usize];
        for (place, list) in (0..).zip(lists) {
            let times = pushes(place) as f64;
            for (j, &row) in (0..).zip(list) {
                of_row[row as usize] += times * f64::from(step(j));
            }
        }
        of_row
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::thread;

    use super::*;
    use crate::Secret;
    use crate::client::ClientConfig;
    use crate::config::{Network, TransportChoice, TransportKind};
    use crate::server::Server;
    use crate::server::coordinator::{CoordinatorServer, CoordinatorServerConfig};

    /// A job of one worker in this process, whose load is filled.
    fn with_load(kind: TransportKind, line: &str, body: impl FnOnce(&Client, &mut Load)) {
        let options = Options::of_line(line);
        options.check().unwrap();
        let secret = Secret::generate().unwrap();
        let network = Network { transport: TransportChoice::Only(kind), ..Network::default() };
        let coordinator =
            CoordinatorServer::bind(CoordinatorServerConfig::new(secret.clone(), "", 1, Some(1))).unwrap();
        let address = coordinator.address().to_string();
        let coordinator = thread::spawn(move || coordinator.run());
        let server = Server::builder(&address, secret.clone()).network(network.clone()).start().unwrap();
        let mut config = ClientConfig::new(&address, secret, 0, 1);
        config.network = network;
        let client = Client::connect(config).unwrap();
        let mut load = Load::new(&client, &options, client.table(&options.spec()).unwrap(), 1).unwrap();
        load.fill().unwrap();
        client.barrier().unwrap();
        body(&client, &mut load);
        drop(load);
        client.finalize().unwrap();
        coordinator.join().unwrap().unwrap();
        server.run().unwrap();
    }

    /// Does a whole operation.
    fn operate(load: &mut Load, operation: u64, place: u64) {
        let mut under_way = VecDeque::new();
        let finish = |load: &mut Load, (ticket, part)| {
            let wrong = load.finish(ticket, part).unwrap();
            assert!(wrong.is_none(), "{wrong:?}");
        };
        for number in 0..load.parts().count() {
            if under_way.len() == load.parts().depth() {
                under_way.pop_front().into_iter().for_each(|oldest| finish(load, oldest));
            }
            let part = Part { operation, place, number };
            under_way.push_back((load.start(part).unwrap(), part));
        }
        under_way.into_iter().for_each(|oldest| finish(load, oldest));
    }

    const TRANSPORTS: [TransportKind; 2] = [TransportKind::Tcp, TransportKind::Shm];

    /// Values differ by where they lie in the operation, and in the table: a part in the wrong place is noticed.
    #[test]
    fn results_of_several_parts_are_whole_when_their_operations_are_done() {
        for kind in TRANSPORTS {
            let line = "push-pull --bytes 9437188 --table-bytes 18874376 --window 2";
            with_load(kind, line, |client, load| {
                let stride = load.parts().stride();
                assert_eq!((load.parts().count(), load.parts().window()), (3, 2));
                let copied = client.stats().bytes_copied;
                operate(load, 0, 1);
                operate(load, 1, 0);
                assert_eq!(client.stats().bytes_copied, copied, "{kind}");
                let Memory::Registered { result, .. } = &load.memory else { panic!("sparse") };
                let (pattern, result) = (load.numbers, result.as_slice().unwrap());
                let expected = |place: u64, j: u64| pattern.pattern(place * stride + j) + step(j);
                let both = (0..stride).map(|j| expected(1, j)).chain((0..stride).map(|j| expected(0, j)));
                assert!(both.eq(result.iter().copied()), "{kind}");
                operate(load, 2, 1);
                assert_eq!(load.check_result(2, 1, 2).unwrap().wrong, 0);
                assert_eq!(load.check(|place| 1 + place).unwrap().wrong, 0);
            });
        }
    }

    #[test]
    fn pushes_and_pulls_of_several_parts_reach_the_whole_place() {
        for kind in TRANSPORTS {
            with_load(kind, "push --bytes 9437188 --table-bytes 18874376", |_, load| {
                operate(load, 0, 1);
                assert_eq!(load.check(|place| place).unwrap().wrong, 0, "{kind}");
            });
            with_load(kind, "pull --bytes 9437188 --table-bytes 18874376", |_, load| {
                operate(load, 0, 1);
                assert_eq!(load.check_result(0, 1, 0).unwrap().wrong, 0, "{kind}");
            });
        }
    }

    #[test]
    fn sparse_operations_of_several_parts_have_values_for_all_their_keys() {
        let rows = "--rows 60000 --dim 64 --keys 20000";
        with_load(TransportKind::Tcp, &format!("sparse-pull {rows}"), |_, load| {
            assert_eq!(load.parts().count(), 2);
            for operation in 0..3 {
                operate(load, operation, 0);
                assert_eq!(load.check_result(operation, 0, 0).unwrap().wrong, 0);
            }
        });
        for lists in ["", " --lists 2"] {
            with_load(TransportKind::Tcp, &format!("sparse-push {rows}{lists}"), |_, load| {
                operate(load, 0, 1);
                assert_eq!(load.check(|place| u64::from(place == 1)).unwrap().wrong, 0, "{lists}");
                assert!(load.check(|_| 1).unwrap().wrong > 0, "{lists}");
            });
        }
    }

    #[test]
    fn a_wrong_value_anywhere_in_a_result_is_found() {
        with_load(TransportKind::Tcp, "pull --bytes 8M --table-bytes 8M --window 1", |_, load| {
            operate(load, 0, 0);
            let Memory::Registered { result, .. } = &mut load.memory else { panic!("sparse") };
            result.write(1_500_000, &[-7.0]).unwrap();
            let judged = load.check_result(0, 0, 0).unwrap();
            let first = judged.first.unwrap();
            assert_eq!((judged.wrong, first.element, first.found), (1, 1_500_000, -7.0));
        });
    }
}
