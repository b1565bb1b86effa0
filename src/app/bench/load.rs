//! One operation on a table, in parts that fit the worker's memory for frames.

use super::options::{Op, Options};
use super::place::Numbers;
use crate::client::{Table, Ticket};
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
    keys: Vec<u64>,
    ones: Vec<f32>,
    pulled: Vec<f32>,
}

/// A value that a pull brought and that can't be.
#[derive(Debug, Clone, Copy)]
pub struct Wrong {
    pub element: u64,
    pub expected: f32,
    pub found: f32,
}

impl Load {
    pub fn new(options: &Options, table: Table) -> Load {
        let width = u64::from(table.spec().width());
        let stride = options.stride();
        let part = (PART_BYTES / 4 / width).clamp(1, stride);
        let floats = (part * width) as usize;
        Load {
            table,
            op: options.op,
            numbers: options.numbers(),
            places: options.places(),
            stride,
            part,
            width,
            spread: if options.op.is_sparse() { u64::MAX / options.rows } else { 1 },
            keys: Vec::new(),
            ones: vec![1.0; floats],
            pulled: vec![0.0; floats],
        }
    }

    /// Parts of one operation.
    pub fn parts(&self) -> u64 {
        self.stride.div_ceil(self.part)
    }

    /// Parts that may be under way: the window, as far as a worker's memory for answers goes.
    pub fn depth(&self, window: usize, shards: u64) -> usize {
        let wanted = window.saturating_mul(self.parts() as usize);
        if !self.op.pulls() {
            return wanted;
        }
        let segment = u64::from(DEFAULT_SEGMENT_BYTES);
        let bytes = self.part * self.width * 4;
        let aligned = !self.op.is_sparse() && (self.stride * 4).is_multiple_of(segment);
        // Rows travel with their keys, so a sparse frame holds a little less than a segment.
        let frames = match (self.op.is_sparse(), aligned) {
            (true, _) => shards + (bytes + self.part * 16).div_ceil(segment),
            (false, true) => bytes / segment,
            (false, false) => bytes.div_ceil(segment) + 1,
        };
        wanted.min((FRAMES / frames.max(1)) as usize).max(1)
    }

    /// Begins one part of the operation at `place`.
    pub fn start(&mut self, place: u64, part: u64) -> Result<Ticket> {
        let (first, count) = self.span(part);
        let ones = &self.ones[..(count * self.width) as usize];
        if self.op.is_sparse() {
            let (places, spread) = (self.places, self.spread);
            self.keys.clear();
            self.keys.extend((first..first + count).map(|j| (place + j * places) * spread));
            let keys = SortedKeys::new(&self.keys)?;
            return match self.op {
                Op::SparsePush => self.table.push(keys, ones),
                _ => self.table.pull_async(keys),
            };
        }
        let start = place * self.stride + first;
        let range = KeyRange::new(start, start + count)?;
        match self.op {
            Op::Push => self.table.push_range(range, ones),
            Op::Pull => self.table.pull_range_async(range),
            _ => self.table.push_pull_range(range, ones),
        }
    }

    /// Waits for a part. Values of a table that nobody pushes to are looked at, the first and the last.
    pub fn finish(&mut self, mut ticket: Ticket, place: u64, part: u64) -> Result<Option<Wrong>> {
        if !self.op.pulls() {
            return ticket.wait().map(|()| None);
        }
        let (first, count) = self.span(part);
        let pulled = &mut self.pulled[..(count * self.width) as usize];
        ticket.wait_into(pulled)?;
        if self.op.pushes() {
            return Ok(None);
        }
        let (head, tail) = (pulled[0], pulled[pulled.len() - 1]);
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
                    pushed = pushes(place) as f32;
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

    /// fp32 that are filled or looked at in one go: whole rows.
    fn chunk(&self) -> u64 {
        (PART_BYTES / 4 / self.width).max(1) * self.width
    }

    /// All fp32 of all places.
    fn elements(&self) -> u64 {
        self.places * self.stride * self.width
    }

    /// Number of the first fp32 of element or key `j` of the operation at `place`.
    fn element(&self, place: u64, j: u64) -> u64 {
        if self.op.is_sparse() { (place + j * self.places) * self.width } else { place * self.stride + j }
    }

    fn place_of(&self, element: u64) -> u64 {
        if self.op.is_sparse() { (element / self.width) % self.places } else { element / self.stride }
    }

    fn row_keys(&mut self, first: u64, end: u64) {
        let spread = self.spread;
        self.keys.clear();
        self.keys.extend((first..end).map(|row| row * spread));
    }
}
