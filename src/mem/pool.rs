//! A bounded pool of registered buffers: leased without a lock or an allocation, given back on drop.
//!
//! The buffer that came back last is lent next, since its bytes are most likely still in a cache.

use std::sync::Arc;

use super::stack::Stack;
use super::{Arena, Kind, RegionId, RegionSlice, Room, align_up};
use crate::error::Result;

/// Buffers of a few fixed sizes cut from one arena.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
    region: RegionId,
}

#[derive(Debug)]
struct Inner {
    arena: Arc<Arena>,
    /// Ascending by size.
    classes: Vec<Class>,
}

#[derive(Debug)]
struct Class {
    bytes: usize,
    /// Where its first buffer lies.
    start: usize,
    count: u32,
    free: Stack,
}

impl Pool {
    /// A pool with `count` buffers of `bytes` bytes for each `(bytes, count)`. Its arena still has to be registered:
    /// `register` is called once with it and its answer stands in every lease.
    pub fn new(
        classes: &[(usize, usize)],
        register: impl FnOnce(Arc<Arena>) -> Result<RegionId>,
    ) -> Result<Pool> {
        Pool::of(Kind::Private, classes, register)
    }

    /// The same in memory of a kind.
    pub fn of(
        kind: Kind,
        classes: &[(usize, usize)],
        register: impl FnOnce(Arc<Arena>) -> Result<RegionId>,
    ) -> Result<Pool> {
        let mut sizes: Vec<(usize, usize)> =
            classes.iter().filter(|c| c.1 > 0).map(|&(bytes, count)| (align_up(bytes), count)).collect();
        sizes.sort_unstable();
        let total = sizes.iter().map(|&(bytes, count)| bytes * count).sum();
        let arena = kind.arena(total)?;
        let mut offset = 0;
        let mut built = Vec::with_capacity(sizes.len());
        for (bytes, count) in sizes {
            // An arena of 2^32 buffers would exceed what can be mapped.
            let numbers = u32::try_from(count).unwrap_or(u32::MAX);
            built.push(Class { bytes, start: offset, count: numbers, free: Stack::full(numbers) });
            offset += bytes * count;
        }
        let region = register(arena.clone())?;
        Ok(Pool { inner: Arc::new(Inner { arena, classes: built }), region })
    }

    /// A buffer of at least `bytes` bytes from the smallest class that has one free; `None` when all are out, or none is
    /// that large.
    pub fn lease(&self, bytes: usize) -> Option<Buf> {
        for (class, c) in self.inner.classes.iter().enumerate() {
            if c.bytes >= bytes
                && let Some(number) = c.free.pop()
            {
                let offset = c.start + number as usize * c.bytes;
                return Some(Buf { pool: self.clone(), class, number, offset, length: bytes });
            }
        }
        None
    }

    /// The largest buffer it can ever lend, in bytes.
    pub fn largest(&self) -> usize {
        self.inner.classes.last().map_or(0, |c| c.bytes)
    }

    /// How many buffers it has, lent or not, of at least `bytes` bytes.
    pub fn count(&self, bytes: usize) -> u32 {
        self.inner.classes.iter().filter(|c| c.bytes >= bytes).map(|c| c.count).sum()
    }

    /// The arena that the buffers are cut from.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.inner.arena
    }

    /// The arena as the transport knows it.
    pub fn region(&self) -> RegionId {
        self.region
    }
}

/// A leased buffer. Dropping it gives it back, so whoever may still have an operation on it keeps it.
#[derive(Debug)]
pub struct Buf {
    pool: Pool,
    class: usize,
    number: u32,
    offset: usize,
    length: usize,
}

impl Buf {
    /// Bytes asked for.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// First byte within the pool's arena.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The pool's arena, as the transport knows it.
    pub fn region(&self) -> RegionId {
        self.pool.region
    }

    /// Copies `bytes` to `at` within the buffer.
    ///
    /// # Panics
    /// When they don't fit.
    pub fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length, "buffer of {} bytes is too small", self.length);
        self.pool.inner.arena.copy_in(self.offset + at, bytes);
    }

    /// Room for `length` numbers from byte `at` on. The caller owns it: no peer was granted it and no operation is reading it.
    ///
    /// # Panics
    /// When they don't fit, or `at` is not a multiple of their size.
    pub(crate) fn room<T: bytemuck::Pod>(&mut self, at: usize, length: usize) -> Room<'_, T> {
        assert!(at + length * size_of::<T>() <= self.length, "buffer of {} bytes is too small", self.length);
        Room::in_arena(&self.pool.inner.arena, self.offset + at, length)
    }

    /// The arena that it is a part of.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.pool.inner.arena
    }

    /// Copies out from `at` within the buffer.
    ///
    /// # Panics
    /// When the range lies outside.
    pub fn copy_out(&self, at: usize, into: &mut [u8]) {
        assert!(at + into.len() <= self.length, "buffer of {} bytes is too small", self.length);
        self.pool.inner.arena.copy_out(self.offset + at, into);
    }

    /// The whole buffer as the transport knows it. The buffer must be kept until the operation is done.
    pub fn slice(&self) -> RegionSlice {
        RegionSlice {
            arena: self.pool.inner.arena.clone(),
            region: self.pool.region,
            offset: self.offset,
            length: self.length,
        }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.inner.classes[self.class].free.push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_back_last_is_lent_next() {
        let pool = Pool::new(&[(64, 3)], |_| Ok(RegionId(0))).unwrap();
        let (a, b) = (pool.lease(64).unwrap(), pool.lease(64).unwrap());
        let (first, second) = (a.offset(), b.offset());
        drop(a);
        drop(b);
        assert_eq!(pool.lease(64).unwrap().offset(), second);
        let (c, d) = (pool.lease(64).unwrap(), pool.lease(64).unwrap());
        assert_eq!((c.offset(), d.offset()), (second, first));
    }

    #[test]
    fn threads_never_hold_the_same_buffer() {
        let pool = Pool::new(&[(64, 5)], |_| Ok(RegionId(0))).unwrap();
        let threads: Vec<_> = (1..=3u8)
            .map(|thread| {
                let pool = pool.clone();
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        // Three threads want two each of five, so that the second may be missing.
                        let mut held: Vec<Buf> = pool.lease(64).into_iter().chain(pool.lease(64)).collect();
                        held.iter_mut().for_each(|b| b.copy_in(0, &[thread; 64]));
                        for buf in &held {
                            let mut bytes = [0; 64];
                            buf.copy_out(0, &mut bytes);
                            assert_eq!(bytes, [thread; 64]);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let all: Vec<Buf> = (0..5).map(|_| pool.lease(64).unwrap()).collect();
        assert!(pool.lease(64).is_none());
        drop(all);
    }

    #[test]
    fn lends_until_empty_and_takes_back() {
        let pool = Pool::new(&[(100, 2), (1000, 1)], |_| Ok(RegionId(0))).unwrap();
        let a = pool.lease(100).unwrap();
        let b = pool.lease(64).unwrap();
        let c = pool.lease(10).unwrap();
        assert_eq!(c.len(), 10);
        assert!(pool.lease(1).is_none());
        let offsets = [a.offset(), b.offset(), c.offset()];
        assert!(offsets.iter().all(|o| o % 64 == 0));
        drop(b);
        assert!(pool.lease(129).is_none());
        assert!(pool.lease(128).is_some());
        assert!(pool.lease(1001).is_none());
    }
}
