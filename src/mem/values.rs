//! A view of numbers that a peer may be changing.

use std::marker::PhantomData;

use super::{ALIGNMENT, Arena};

/// Numbers that lie in a slot. A hostile peer may change them while they are read: any values may come out, nothing else
/// can go wrong, because they are only ever loaded through a raw pointer, and every bit pattern of `T` is a value.
#[derive(Debug)]
pub struct Values<'a, T> {
    start: *const T,
    length: usize,
    memory: PhantomData<&'a Arena>,
}

/// fp32 that lie in a slot.
pub type Floats<'a> = Values<'a, f32>;

/// 16-bit floats (fp16 or bf16) that lie in a slot, as their bits.
pub type Halves<'a> = Values<'a, u16>;

impl<T> Clone for Values<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Values<'_, T> {}

impl<'a, T: bytemuck::Pod> Values<'a, T> {
    /// `length` numbers at byte `offset` of `arena`.
    ///
    /// # Panics
    /// When they lie outside or `offset` is not a multiple of their size.
    pub(crate) fn in_arena(arena: &'a Arena, offset: usize, length: usize) -> Values<'a, T> {
        let size = size_of::<T>();
        const { assert!(ALIGNMENT.is_multiple_of(align_of::<T>())) };
        assert!(offset.is_multiple_of(size), "numbers of {size} bytes at byte {offset}");
        let start = arena.at(offset, length * size).cast_const().cast::<T>();
        Values { start, length, memory: PhantomData }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first one; `len()` of them may be read while 'a lasts, whoever writes them.
    pub fn as_ptr(&self) -> *const T {
        self.start
    }

    /// The `i`-th value.
    ///
    /// # Panics
    /// When there is none.
    pub fn at(&self, i: usize) -> T {
        assert!(i < self.length);
        // SAFETY: `i` was checked; the constructors proved the range readable for 'a, and aligned.
        unsafe { self.start.add(i).read() }
    }

    /// `length` values from `first` on.
    ///
    /// # Panics
    /// When they lie outside.
    pub fn part(&self, first: usize, length: usize) -> Values<'a, T> {
        assert!(first.checked_add(length).is_some_and(|end| end <= self.length));
        // SAFETY: the assertion keeps the result inside the range that the constructors proved.
        Values { start: unsafe { self.start.add(first) }, length, memory: PhantomData }
    }
}

impl<'a, T: bytemuck::Pod> From<&'a [T]> for Values<'a, T> {
    fn from(values: &'a [T]) -> Values<'a, T> {
        Values { start: values.as_ptr(), length: values.len(), memory: PhantomData }
    }
}

/// Where numbers go that a transport will read. Like [`Values`] it is only ever used through a raw pointer.
#[derive(Debug)]
pub struct Room<'a, T> {
    start: *mut T,
    length: usize,
    memory: PhantomData<&'a mut Arena>,
}

impl<'a, T: bytemuck::Pod> Room<'a, T> {
    /// Room for `length` numbers at byte `offset` of `arena`. The caller owns that range: no peer was granted it and no
    /// operation is reading it.
    ///
    /// # Panics
    /// When it lies outside or `offset` is not a multiple of their size.
    pub(crate) fn in_arena(arena: &'a Arena, offset: usize, length: usize) -> Room<'a, T> {
        let start = Values::<T>::in_arena(arena, offset, length).start.cast_mut();
        Room { start, length, memory: PhantomData }
    }

    /// For how many.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether for none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The place of the first one; `len()` of them may be written while 'a lasts.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.start
    }

    /// Room for `length` numbers from `first` on.
    ///
    /// # Panics
    /// When it lies outside.
    pub fn part(&mut self, first: usize, length: usize) -> Room<'_, T> {
        assert!(first.checked_add(length).is_some_and(|end| end <= self.length));
        // SAFETY: the assertion keeps the result inside the range that the constructors proved.
        Room { start: unsafe { self.start.add(first) }, length, memory: PhantomData }
    }
}

impl<'a, T: bytemuck::Pod> From<&'a mut [T]> for Room<'a, T> {
    fn from(values: &'a mut [T]) -> Room<'a, T> {
        Room { start: values.as_mut_ptr(), length: values.len(), memory: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_copied_in() {
        let arena = Arena::new(4096).unwrap();
        arena.copy_in(8, &1.5f32.to_le_bytes());
        let floats = Floats::in_arena(&arena, 4, 3);
        assert_eq!([floats.at(0), floats.at(1), floats.at(2)], [0.0, 1.5, 0.0]);
        assert_eq!(floats.part(1, 1).at(0), 1.5);
        let halves = Halves::in_arena(&arena, 10, 1);
        assert_eq!(halves.at(0), (1.5f32.to_bits() >> 16) as u16);
    }

    #[test]
    fn room_is_written_where_it_lies() {
        let arena = Arena::new(4096).unwrap();
        let mut room = Room::<u16>::in_arena(&arena, 4092, 2);
        // SAFETY: room for two, and the arena is the test's own.
        unsafe { room.part(1, 1).as_mut_ptr().write(7) };
        assert_eq!(Halves::in_arena(&arena, 4094, 1).at(0), 7);
    }

    #[test]
    #[should_panic(expected = "length")]
    fn a_part_that_lies_outside_is_refused() {
        Halves::from(&[1u16, 2][..]).part(1, 2);
    }
}
