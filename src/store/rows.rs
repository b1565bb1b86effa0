//! The rows of sparse buckets, in parts that never move: however many there are, one more costs the same.
//!
//! ```text
//!  part   keys u64 × n │ places of the open clock's sums u32 × n │ up to a line │ rows: stride fp32 × n
//! ```
//! n is the same for all parts of a table: as many rows as fit 4 KiB, a power of two. A bucket's first part is shorter at first, and
//! is copied to one of twice its length when it is full, so that a bucket of few rows takes little.

use std::ops::Range;

use crate::mem::{Slabs, prefetch};
use crate::types::Key;

/// Bytes of rows in a part, unless a row is longer. A cut saves a part at a time: a push that touches a thousand rows all over a table
/// of millions saves a few MB, not all of it.
const PART: usize = 4096;

/// u64 in a cache line.
const LINE: usize = 8;

/// What rows and parts of one table look like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Parameters of a row.
    pub dim: usize,
    /// fp32 of a row: parameters, then the optimizer's planes, then its scalars.
    pub stride: usize,
    /// log2 of the rows in a part.
    bits: u32,
    /// The first row of a whole part, in fp32.
    rows_at: usize,
}

impl Shape {
    /// Of rows of `dim` parameters and `stride` fp32 in all, neither 0.
    pub fn new(dim: usize, stride: usize) -> Shape {
        let bits = (PART / (stride * 4)).max(1).ilog2();
        Shape { dim, stride, bits, rows_at: rows_at(1 << bits) }
    }

    /// Rows in a part.
    pub fn rows_per_part(&self) -> usize {
        1 << self.bits
    }

    /// u64 that a whole part takes, whole lines.
    pub fn slab_words(&self) -> usize {
        self.words(self.rows_per_part())
    }

    /// u64 that a part of so many rows takes.
    fn words(&self, rows: usize) -> usize {
        (rows_at(rows) + rows * self.stride).div_ceil(2).next_multiple_of(LINE)
    }
}

/// Where the first row of a part of `rows` rows is, in fp32.
fn rows_at(rows: usize) -> usize {
    (rows * 3).next_multiple_of(LINE * 2)
}

/// The rows of one bucket, numbered from 0.
#[derive(Debug, Default)]
pub struct Rows {
    count: usize,
    slabs: Vec<u32>,
    /// The first part, as long as it is shorter than the others.
    few: Vec<u64>,
    few_rows: usize,
}

impl Rows {
    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// One more row, of zeros; its number.
    pub fn add(&mut self, shape: &Shape, slabs: &mut Slabs<u64>, key: Key) -> u32 {
        let per_part = shape.rows_per_part();
        if self.slabs.is_empty() && self.count == self.few_rows {
            self.lengthen(shape, slabs);
        } else if self.count == self.slabs.len() * per_part && !self.slabs.is_empty() {
            self.slabs.push(slabs.add());
        }
        let row = self.count;
        let words = match self.slabs.last() {
            Some(&slab) => slabs.get_mut(slab),
            None => &mut self.few,
        };
        words[row % per_part] = key;
        self.count += 1;
        // 2^32 rows of a bucket would take 48 GB for keys and sums alone; `Vec` and `Slabs` end the process long before.
        row as u32
    }

    /// A row: parameters, planes, scalars.
    #[inline]
    pub fn get<'a>(&'a self, shape: &Shape, slabs: &'a Slabs<u64>, row: u32) -> &'a [f32] {
        let part = row as usize >> shape.bits;
        let (words, first) = match self.slabs.get(part) {
            Some(&slab) => (slabs.get(slab), shape.rows_at),
            None => (&self.few[..], rows_at(self.few_rows)),
        };
        let at = first + (row as usize & (shape.rows_per_part() - 1)) * shape.stride;
        &bytemuck::cast_slice(words)[at..at + shape.stride]
    }

    /// A row, to be written.
    #[inline]
    pub fn get_mut<'a>(&'a mut self, shape: &Shape, slabs: &'a mut Slabs<u64>, row: u32) -> &'a mut [f32] {
        let part = row as usize >> shape.bits;
        let (words, first) = match self.slabs.get(part) {
            Some(&slab) => (slabs.get_mut(slab), shape.rows_at),
            None => (&mut self.few[..], rows_at(self.few_rows)),
        };
        let at = first + (row as usize & (shape.rows_per_part() - 1)) * shape.stride;
        &mut bytemuck::cast_slice_mut(words)[at..at + shape.stride]
    }

    /// The place + 1 of a row's sum, 0 where it has none.
    #[inline]
    pub fn sum_of<'a>(&'a mut self, shape: &Shape, slabs: &'a mut Slabs<u64>, row: u32) -> &'a mut u32 {
        let part = row as usize >> shape.bits;
        let (words, keys) = match self.slabs.get(part) {
            Some(&slab) => (slabs.get_mut(slab), shape.rows_per_part()),
            None => (&mut self.few[..], self.few_rows),
        };
        &mut bytemuck::cast_slice_mut(words)[keys * 2 + (row as usize & (shape.rows_per_part() - 1))]
    }

    /// Has the CPU fetch a row.
    #[inline]
    pub fn prefetch(&self, shape: &Shape, slabs: &Slabs<u64>, row: u32) {
        // Of a long row the first lines: the CPU sees by these where it goes on.
        self.get(shape, slabs, row).iter().step_by(LINE * 2).take(4).for_each(prefetch);
    }

    /// Keys and values of some rows of one part.
    pub fn part<'a>(
        &'a self,
        shape: &Shape,
        slabs: &'a Slabs<u64>,
        rows: Range<usize>,
    ) -> (&'a [Key], &'a [f32]) {
        let (words, capacity) = match self.slabs.get(rows.start >> shape.bits) {
            Some(&slab) => (slabs.get(slab), shape.rows_per_part()),
            None => (&self.few[..], self.few_rows),
        };
        let first = rows.start & (shape.rows_per_part() - 1);
        let at = rows_at(capacity) + first * shape.stride;
        let values = &bytemuck::cast_slice(words)[at..at + rows.len() * shape.stride];
        (&words[first..first + rows.len()], values)
    }

    /// Copies the first part, which is full, to one of twice its length, or where it stays.
    fn lengthen(&mut self, shape: &Shape, slabs: &mut Slabs<u64>) {
        let (old, old_rows) = (std::mem::take(&mut self.few), self.few_rows);
        let new_rows = (old_rows * 2).max(1);
        let mut few = Vec::new();
        let new = if new_rows >= shape.rows_per_part() {
            self.slabs.push(slabs.add());
            slabs.get_mut(self.slabs[0])
        } else {
            few = vec![0; shape.words(new_rows)];
            &mut few
        };
        let capacity = new_rows.min(shape.rows_per_part());
        let mut copy = |to: usize, from: usize, count: usize| {
            let from = &bytemuck::cast_slice::<u64, u32>(&old)[from..from + count];
            bytemuck::cast_slice_mut::<u64, u32>(new)[to..to + count].copy_from_slice(from);
        };
        copy(0, 0, old_rows * 2);
        copy(capacity * 2, old_rows * 2, old_rows);
        copy(rows_at(capacity), rows_at(old_rows), old_rows * shape.stride);
        (self.few, self.few_rows) = (few, if self.slabs.is_empty() { new_rows } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Rows of two buckets that grow side by side in the same slabs keep what was written to them.
        #[test]
        fn rows_keep_what_they_hold(
            dim in 1usize..40, planes in 0usize..3,
            adds in proptest::collection::vec(any::<bool>(), 0..3000),
        ) {
            let shape = Shape::new(dim, dim * (1 + planes));
            let mut slabs = Slabs::new(shape.slab_words());
            let mut buckets = [Rows::default(), Rows::default()];
            let value = |row: usize, other: usize, i: usize| (row * 7 + other * 3 + i) as f32;
            for (n, other) in adds.into_iter().map(usize::from).enumerate() {
                let rows = &mut buckets[other];
                let at = rows.len();
                prop_assert_eq!(rows.add(&shape, &mut slabs, n as u64) as usize, at);
                let row = rows.get_mut(&shape, &mut slabs, at as u32);
                prop_assert!(row.len() == shape.stride && row.iter().all(|&v| v == 0.0));
                row.iter_mut().enumerate().for_each(|(i, v)| *v = value(at, other, i));
                prop_assert_eq!(*rows.sum_of(&shape, &mut slabs, at as u32), 0);
                *rows.sum_of(&shape, &mut slabs, at as u32) = at as u32 + 5;
            }
            for (other, rows) in buckets.iter_mut().enumerate() {
                let mut last = None;
                for first in (0..rows.len()).step_by(shape.rows_per_part()) {
                    let end = (first + shape.rows_per_part()).min(rows.len());
                    let (keys, values) = rows.part(&shape, &slabs, first..end);
                    prop_assert_eq!((keys.len(), values.len()), (end - first, (end - first) * shape.stride));
                    for (place, row) in (first..end).enumerate() {
                        prop_assert!(last < Some(keys[place]));
                        last = Some(keys[place]);
                        let expected: Vec<f32> = (0..shape.stride).map(|i| value(row, other, i)).collect();
                        prop_assert_eq!(&values[place * shape.stride..][..shape.stride], &expected[..]);
                        prop_assert_eq!(rows.get(&shape, &slabs, row as u32), &expected[..]);
                    }
                }
                for row in 0..rows.len() as u32 {
                    prop_assert_eq!(*rows.sum_of(&shape, &mut slabs, row), row + 5);
                }
            }
        }
    }

    #[test]
    fn a_part_is_a_page_of_rows_or_one_row() {
        for (stride, expected) in [(1, 1024), (16, 64), (17, 32), (48, 16), (1024, 1), (5000, 1)] {
            assert_eq!(Shape::new(1, stride).rows_per_part(), expected, "{stride}");
        }
    }
}
