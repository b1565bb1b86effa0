//! What kernels read and write: numbers in one of three formats.

use crate::mem::{Floats, Halves, Room};

/// Numbers as they came, possibly in memory that a peer still writes to.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// IEEE 754 binary32.
    F32(Floats<'a>),
    /// IEEE 754 binary16.
    F16(Halves<'a>),
    /// The upper half of binary32.
    Bf16(Halves<'a>),
}

impl<'a> Input<'a> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            Input::F32(values) => values.len(),
            Input::F16(values) | Input::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `length` numbers from `first` on.
    ///
    /// # Panics
    /// When they lie outside.
    pub fn part(&self, first: usize, length: usize) -> Input<'a> {
        match self {
            Input::F32(values) => Input::F32(values.part(first, length)),
            Input::F16(values) => Input::F16(values.part(first, length)),
            Input::Bf16(values) => Input::Bf16(values.part(first, length)),
        }
    }
}

impl<'a> From<Floats<'a>> for Input<'a> {
    fn from(values: Floats<'a>) -> Input<'a> {
        Input::F32(values)
    }
}

impl<'a> From<&'a [f32]> for Input<'a> {
    fn from(values: &'a [f32]) -> Input<'a> {
        Input::F32(values.into())
    }
}

/// Where a cast goes.
#[derive(Debug)]
pub enum Output<'a> {
    /// IEEE 754 binary32.
    F32(Room<'a, f32>),
    /// IEEE 754 binary16.
    F16(Room<'a, u16>),
    /// The upper half of binary32.
    Bf16(Room<'a, u16>),
}

impl Output<'_> {
    /// How many numbers have room.
    pub fn len(&self) -> usize {
        match self {
            Output::F32(room) => room.len(),
            Output::F16(room) | Output::Bf16(room) => room.len(),
        }
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room for `length` numbers from `first` on.
    ///
    /// # Panics
    /// When it lies outside.
    pub fn part(&mut self, first: usize, length: usize) -> Output<'_> {
        match self {
            Output::F32(room) => Output::F32(room.part(first, length)),
            Output::F16(room) => Output::F16(room.part(first, length)),
            Output::Bf16(room) => Output::Bf16(room.part(first, length)),
        }
    }
}
