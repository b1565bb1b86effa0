//! One operation on a table, in parts that fit the worker's memory for frames.

use super::options::{Op, Options};
use super::place::{Numbers, draw};
use crate::client::{Buffer, Client, Table, Ticket};
use crate::error::Result;
use crate::types::{DEFAULT_SEGMENT_BYTES, KeyRange, SortedKeys};

/// The most payload of one part, in bytes. Longer operations are several parts, as a caller would make them.
const PART_BYTES: u64 = 4 << 20;
/// Frames of pulls that may be under way: below the number of a worker's buffers for the longest frames.
const FRAMES: u64 = 48;

/// The operations of one worker.
pub struct Load {
    table: Table,
    op: Op,
    numbers: Numbers,
    places: u64,
    /// Elements (dense) or keys (sparse) of one operation, and of one part of it.
    stride: u64,
    part: u64,
    /// fp32 of an element or key.
    width: u64,
    /// What one more row's key is larger by, so that keys lie in the whole of u64.
    spread: u64,
    rows: u64,
    /// For each place the rows of its keys, where they are drawn.
    lists: Vec<Vec<u64>>,
    /// Parts that may be under way.
    depth: usize,
    started: u64,
    finished: u64,
    keys: Vec<u64>,
    memory: Memory,
}

/// What is pushed, and room for what is pulled.
enum Memory {
    /// Rows of sparse tables are copied on their way.
    Plain { ones: Vec<f32>, pulled: Vec<f32> },
    /// Each part under way has a place of its own in `pulled`.
    Registered { ones: Buffer, pulled: Buffer },
}

/// A value that a pull brought and that can't be.
#[derive(Debug, Clone, Copy)]
pub struct Wrong {
    pub element: u64,
    pub expected: f32,
    pub found: f32,
}

impl Load {
    /// Operations on `table`, of which `shards` server threads hold parts.
    pub fn new(client: &Client, options: &Options, table: Table, shards: u64) -> Result<Load> {
        let width = u64::from(table.spec().width());
        let stride = options.stride();
        let part = (PART_BYTES / 4 / width).clamp(1, stride);
        let floats = (part * width) as usize;
        let op = options.op;
        let depth = depth(options, (stride, part, width), shards);
        let memory = if op.is_sparse() {
            Memory::Plain { ones: vec![1.0; floats], pulled: vec![0.0; floats] }
        } else {
            let mut ones = client.buffer(if op.pushes() { floats } else { 1 })?;
            ones.as_mut_slice()?.fill(1.0);
            let pulled = client.buffer(if op.pulls() { floats * depth } else { 1 })?;
            Memory::Registered { ones, pulled }
        };
        Ok(Load {
            table,
            op,
            numbers: options.numbers(),
            places: options.places(),
            stride,
            part,
            width,
            spread: if op.is_sparse() { options.spread() } else { 1 },
            rows: options.rows,
            lists: (0..u64::from(options.lists) * u64::from(op.is_sparse()))
                .map(|number| draw(number, stride as usize, options.rows))
                .collect(),
            depth,
            started: 0,
            finished: 0,
            keys: Vec::new(),
            memory,
        })
    }

    /// Parts of one operation.
    pub fn parts(&self) -> u64 {
        self.stride.div_ceil(self.part)
    }

    /// Parts that may be under way.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Begins one part of the operation at `place`.
    pub fn start(&mut self, place: u64, part: u64) -> Result<Ticket> {
        let (first, count) = self.span(part);
        let at = self.place_in_memory(self.started);
        self.started += 1;
        let start = place * self.stride + first;
        match &mut self.memory {
            Memory::Plain { ones, .. } => {
                let (places, spread) = (self.places, self.spread);
                self.keys.clear();
                match self.lists.get(place as usize) {
                    Some(list) => {
                        let part = &list[first as usize..(first + count) as usize];
                        self.keys.extend(part.iter().map(|row| row * spread));
                    }
                    None => self.keys.extend((first..first + count).map(|j| (place + j * places) * spread)),
                }
                let keys = SortedKeys::new(&self.keys)?;
                match self.op {
                    Op::SparsePush => self.table.push(keys, &ones[..(count * self.width) as usize]),
                    _ => self.table.pull_async(keys),
                }
            }
            Memory::Registered { ones, pulled } => {
                let range = KeyRange::new(start, start + count)?;
                match self.op {
                    Op::Push => self.table.push_range_buffer(range, ones, 0),
                    Op::Pull => self.table.pull_range_buffer_async(range, pulled, at),
                    _ => self.table.push_pull_range_buffers(range, (ones, 0), (pulled, at)),
                }
            }
        }
    }

    /// Waits for the oldest part. Values of a table that nobody pushes to are looked at, the first and the last.
    pub fn finish(&mut self, mut ticket: Ticket, place: u64, part: u64) -> Result<Option<Wrong>> {
        let at = self.place_in_memory(self.finished);
        self.finished += 1;
        if !self.op.pulls() {
            return ticket.wait().map(|()| None);
        }
        let (first, count) = self.span(part);
        let floats = (count * self.width) as usize;
        let (mut head, mut tail) = ([0.0], [0.0]);
        match &mut self.memory {
            Memory::Plain { pulled, .. } => {
                ticket.wait_into(&mut pulled[..floats])?;
                (head, tail) = ([pulled[0]], [pulled[floats - 1]]);
            }
            Memory::Registered { pulled, .. } => {
                ticket.wait_version()?;
                if !self.op.pushes() {
                    pulled.read(at, &mut head)?;
                    pulled.read(at + floats - 1, &mut tail)?;
                }
            }
        }
        // What others push meanwhile may be in there, or not: the table is checked at the end.
        if self.op.pushes() {
            return Ok(None);
        }
        let ([head], [tail]) = (head, tail);
        let last = self.element(place, first + count - 1) + self.width - 1;
        let looked_at = [(self.element(place, first), head), (last, tail)];
        let wrong = looked_at.into_iter().find(|&(element, found)| found != self.numbers.pattern(element));
        Ok(wrong.map(|(element, found)| Wrong { element, expected: self.numbers.pattern(element), found }))
    }

    /// Makes the table hold the pattern; for one worker.
    pub fn fill(&mut self) -> Result<()> {
        let (mut values, numbers) = (Vec::new(), self.numbers);
        let elements = self.elements();
        let step = self.chunk();
        for start in (0..elements).step_by(step as usize) {
            let end = (start + step).min(elements);
            values.clear();
            values.extend((start..end).map(|i| numbers.pattern(i)));
            // Dropped: the barrier that follows waits until the servers have taken all.
            drop(if self.op.is_sparse() {
                self.row_keys(start / self.width, end / self.width);
                self.table.push(SortedKeys::new(&self.keys)?, &values)?
            } else {
                self.table.push_range(KeyRange::new(start, end)?, &values)?
            });
        }
        Ok(())
    }

    /// Pulls the whole table and compares it; `pushes` tells how often a place was pushed to. Gives how many elements
    /// are wrong, and the first of them.
    pub fn check(&mut self, pushes: impl Fn(u64) -> u64) -> Result<(u64, Option<Wrong>)> {
        let (mut wrong, mut first) = (0, None);
        let elements = self.elements();
        let step = self.chunk();
        let mut values = Vec::new();
        let mut of_row = vec![0; if self.lists.is_empty() { 0 } else { self.rows as usize }];
        for (place, list) in (0..).zip(&self.lists) {
            list.iter().for_each(|&row| of_row[row as usize] += pushes(place));
        }
        for start in (0..elements).step_by(step as usize) {
            let end = (start + step).min(elements);
            values.resize((end - start) as usize, 0.0);
            if self.op.is_sparse() {
                self.row_keys(start / self.width, end / self.width);
                self.table.pull(SortedKeys::new(&self.keys)?, &mut values)?;
            } else {
                self.table.pull_range(KeyRange::new(start, end)?, &mut values)?;
            }
            let (mut place, mut pushed) = (u64::MAX, 0.0);
            for (element, &found) in (start..).zip(&values) {
                if place != self.place_of(element) {
                    place = self.place_of(element);
                    pushed = of_row.get(place as usize).map_or_else(|| pushes(place), |&n| n) as f32;
                }
                // Exact, see `place`.
                let expected = self.numbers.pattern(element) + pushed;
                if found != expected {
                    wrong += 1;
                    first.get_or_insert(Wrong { element, expected, found });
                }
            }
        }
        Ok((wrong, first))
    }

    /// First element or key of a part within its operation, and how many.
    fn span(&self, part: u64) -> (u64, u64) {
        let first = part * self.part;
        (first, self.part.min(self.stride - first))
    }

    /// Where part `number` of all that were started has its values.
    fn place_in_memory(&self, number: u64) -> usize {
        (number % self.depth as u64 * self.part * self.width) as usize
    }

    /// fp32 that are filled or looked at in one go: whole rows.
    fn chunk(&self) -> u64 {
        (PART_BYTES / 4 / self.width).max(1) * self.width
    }

    /// All fp32 of all places.
    fn elements(&self) -> u64 {
        let keys = if self.lists.is_empty() { self.places * self.stride } else { self.rows };
        keys * self.width
    }

    /// Number of the first fp32 of element or key `j` of the operation at `place`.
    fn element(&self, place: u64, j: u64) -> u64 {
        match self.lists.get(place as usize) {
            Some(list) => list[j as usize] * self.width,
            None if self.op.is_sparse() => (place + j * self.places) * self.width,
            None => place * self.stride + j,
        }
    }

    /// Where lists are drawn, each row counts as a place.
    fn place_of(&self, element: u64) -> u64 {
        match self.op.is_sparse() {
            true if self.lists.is_empty() => (element / self.width) % self.places,
            true => element / self.width,
            false => element / self.stride,
        }
    }

    fn row_keys(&mut self, first: u64, end: u64) {
        let spread = self.spread;
        self.keys.clear();
        self.keys.extend((first..end).map(|row| row * spread));
    }
}

/// Parts that may be under way: the window, as far as a worker's memory for answers goes. `stride` and `part` are elements or
/// keys of an operation and of one part of it, `width` the fp32 of each.
fn depth(options: &Options, (stride, part, width): (u64, u64, u64), shards: u64) -> usize {
    let op = options.op;
    let wanted = options.window().saturating_mul(stride.div_ceil(part) as usize);
    if !op.pulls() {
        return wanted;
    }
    let segment = u64::from(DEFAULT_SEGMENT_BYTES);
    let bytes = part * width * 4;
    let aligned = !op.is_sparse() && (stride * 4).is_multiple_of(segment);
    // Rows travel with their keys, so a sparse frame holds a little less than a segment.
    let frames = match (op.is_sparse(), aligned) {
        (true, _) => shards + (bytes + part * 16).div_ceil(segment),
        (false, true) => bytes / segment,
        (false, false) => bytes.div_ceil(segment) + 1,
    };
    wanted.min((FRAMES / frames.max(1)) as usize).max(1)
}
