//! The rows of all sparse buckets of one table, in parts that never move: however many there are, one more costs the same.
//!
//! ```text
//!  part   keys u64 × n │ places of the open clock's sums u32 × n │ up to a line │ rows: stride fp32 × n │ up to a line
//! ```
//! n is the same for all parts of a table: a power of two. A part belongs to one bucket. A row's *position* is its part's number and its
//! place there; its number within its bucket follows from these.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::Range;

use super::index::MISSING;
use crate::mem::Slabs;
use crate::types::Key;

/// Bytes of rows in a part, unless a row is longer. A cut saves a part at a time: a push that touches a thousand rows all over a table
/// of millions saves a few MB, not all of it.
const PART: usize = 4096;
/// Bytes of the first parts of all buckets together: where there are many buckets, parts are shorter.
const FIRST_PARTS: usize = 16 << 20;

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
    /// The first row of a part, in fp32.
    rows_at: usize,
    /// Lines of a row that are fetched ahead: of a long one the first, by which the CPU sees where it goes on.
    fetched: usize,
}

impl Shape {
    /// Of rows of `dim` parameters and `stride` fp32 in all, neither 0, in so many buckets.
    pub fn new(dim: usize, stride: usize, buckets: u32) -> Shape {
        let bits = (PART.min(FIRST_PARTS / buckets as usize) / (stride * 4)).max(1).ilog2();
        let fetched = stride.div_ceil(LINE * 2).min(4);
        Shape { dim, stride, bits, rows_at: (3usize << bits).next_multiple_of(LINE * 2), fetched }
    }

    /// Rows in a part.
    pub fn rows_per_part(&self) -> usize {
        1 << self.bits
    }
}

/// The rows of all buckets of one table.
#[derive(Debug)]
pub struct Rows {
    shape: Shape,
    slabs: Slabs<u64>,
    /// For each part how many its bucket had before.
    ordinals: Vec<u32>,
}

/// The parts of one bucket. Its rows are numbered from 0, in the order in which they came.
#[derive(Debug, Default)]
pub struct Parts {
    count: usize,
    of: Vec<u32>,
}

impl Parts {
    /// Rows in them.
    pub fn rows(&self) -> usize {
        self.count
    }
}

impl Rows {
    /// None yet.
    pub fn new(shape: Shape) -> Rows {
        let words = (shape.rows_at + (shape.stride << shape.bits)).div_ceil(2).next_multiple_of(LINE);
        Rows { shape, slabs: Slabs::new(words), ordinals: Vec::new() }
    }

    /// What they look like.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// One more row of a bucket, of zeros; its position. As with memory, the process ends where there is none: below 2^32 for one
    /// table.
    pub fn add(&mut self, parts: &mut Parts, key: Key) -> u32 {
        let place = parts.count & (self.shape.rows_per_part() - 1);
        if place == 0 {
            if self.slabs.len() as u64 >= u64::from(MISSING >> self.shape.bits) {
                handle_alloc_error(Layout::new::<u64>());
            }
            self.ordinals.push(parts.of.len() as u32);
            parts.of.push(self.slabs.add());
        }
        parts.count += 1;
        let part = parts.of[parts.of.len() - 1];
        self.slabs.get_mut(part)[place] = key;
        part << self.shape.bits | place as u32
    }

    /// Their memory.
    pub fn slabs(&mut self) -> &mut Slabs<u64> {
        &mut self.slabs
    }

    /// A row: parameters, planes, scalars.
    #[inline(always)]
    pub fn get(&self, position: u32) -> &[f32] {
        let at = self.at(position);
        &bytemuck::cast_slice(self.slabs.get(position >> self.shape.bits))[at..at + self.shape.stride]
    }

    /// A row, to be written.
    #[inline(always)]
    pub fn get_mut(&mut self, position: u32) -> &mut [f32] {
        let (at, stride) = (self.at(position), self.shape.stride);
        &mut bytemuck::cast_slice_mut(self.slabs.get_mut(position >> self.shape.bits))[at..at + stride]
    }

    /// The place + 1 of a row's sum, 0 where it has none.
    #[inline(always)]
    pub fn sum_of(&mut self, position: u32) -> &mut u32 {
        let at = 2 * self.shape.rows_per_part() + self.place(position);
        &mut bytemuck::cast_slice_mut(self.slabs.get_mut(position >> self.shape.bits))[at]
    }

    /// Has the CPU fetch a row, if there is one at this position.
    #[inline(always)]
    pub fn prefetch(&self, position: u32) {
        for line in 0..self.shape.fetched {
            let at = self.at(position) / 2 + line * LINE;
            self.slabs.prefetch(position >> self.shape.bits, at);
        }
    }

    /// Has the CPU fetch the place of a row's sum.
    #[inline(always)]
    pub fn prefetch_sum(&self, position: u32) {
        let at = self.shape.rows_per_part() + self.place(position) / 2;
        self.slabs.prefetch(position >> self.shape.bits, at);
    }

    /// A row's number within its bucket.
    pub fn number(&self, position: u32) -> usize {
        let part = self.ordinals[(position >> self.shape.bits) as usize] as usize;
        part << self.shape.bits | self.place(position)
    }

    /// Keys and values of some rows, by their numbers, of one part.
    pub fn part(&self, parts: &Parts, rows: Range<usize>) -> (&[Key], &[f32]) {
        let words = self.slabs.get(parts.of[rows.start >> self.shape.bits]);
        let first = rows.start & (self.shape.rows_per_part() - 1);
        let at = self.shape.rows_at + first * self.shape.stride;
        let values = &bytemuck::cast_slice(words)[at..at + rows.len() * self.shape.stride];
        (&words[first..first + rows.len()], values)
    }

    /// Where a row begins in its part, in fp32.
    #[inline(always)]
    fn at(&self, position: u32) -> usize {
        self.shape.rows_at + self.place(position) * self.shape.stride
    }

    #[inline(always)]
    fn place(&self, position: u32) -> usize {
        position as usize & (self.shape.rows_per_part() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Rows of two buckets that grow side by side keep what was written to them.
        #[test]
        fn rows_keep_what_they_hold(
            dim in 1usize..40, planes in 0usize..3, many in any::<bool>(),
            adds in proptest::collection::vec(any::<bool>(), 0..3000),
        ) {
            let mut rows = Rows::new(Shape::new(dim, dim * (1 + planes), if many { 1 << 16 } else { 2 }));
            let (shape, mut buckets) = (*rows.shape(), [Parts::default(), Parts::default()]);
            let mut positions = [Vec::new(), Vec::new()];
            let value = |row: usize, other: usize, i: usize| (row * 7 + other * 3 + i) as f32;
            for (n, other) in adds.into_iter().map(usize::from).enumerate() {
                let number = buckets[other].rows();
                let position = rows.add(&mut buckets[other], n as u64);
                positions[other].push(position);
                prop_assert_eq!(rows.number(position), number);
                let row = rows.get_mut(position);
                prop_assert!(row.len() == shape.stride && row.iter().all(|&v| v == 0.0));
                row.iter_mut().enumerate().for_each(|(i, v)| *v = value(number, other, i));
                prop_assert_eq!(*rows.sum_of(position), 0);
                *rows.sum_of(position) = number as u32 + 5;
            }
            for (other, parts) in buckets.iter().enumerate() {
                let mut last = None;
                for first in (0..parts.rows()).step_by(shape.rows_per_part()) {
                    let end = (first + shape.rows_per_part()).min(parts.rows());
                    let (keys, values) = rows.part(parts, first..end);
                    prop_assert_eq!((keys.len(), values.len()), (end - first, (end - first) * shape.stride));
                    for (place, row) in (first..end).enumerate() {
                        prop_assert!(last < Some(keys[place]));
                        last = Some(keys[place]);
                        let expected: Vec<f32> = (0..shape.stride).map(|i| value(row, other, i)).collect();
                        prop_assert_eq!(&values[place * shape.stride..][..shape.stride], &expected[..]);
                        prop_assert_eq!(rows.get(positions[other][row]), &expected[..]);
                    }
                }
                for (row, &position) in positions[other].iter().enumerate() {
                    prop_assert_eq!(*rows.sum_of(position), row as u32 + 5);
                }
            }
        }
    }

    #[test]
    fn a_part_is_a_page_of_rows_or_one_row_and_shorter_where_there_are_many_buckets() {
        for (stride, expected) in [(1, 1024), (16, 64), (17, 32), (48, 16), (1024, 1), (5000, 1)] {
            assert_eq!(Shape::new(1, stride, 256).rows_per_part(), expected, "{stride}");
        }
        assert_eq!(Shape::new(1, 1, 1 << 16).rows_per_part(), 64);
        assert_eq!(Shape::new(1, 16, 1 << 20).rows_per_part(), 1);
    }
}
