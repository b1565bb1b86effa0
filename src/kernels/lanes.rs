//! What an algorithm may do with fp32 lanes, and the one-lane form that defines what every other has to give.

use std::ops::{Add, Div, Mul, Sub};

use half::{bf16, f16};

/// Some fp32 side by side. The operations are IEEE 754's, lane by lane, rounded to nearest even, denormals kept.
///
/// Who makes the first value of a type vouches that the CPU has its instructions. From then on values prove it, which
/// is why arithmetic on them is safe.
pub trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Lanes in one value; divides 16.
    const COUNT: usize;

    /// `value` in every lane.
    ///
    /// # Safety
    /// The CPU has the instructions of this type.
    unsafe fn broadcast(value: f32) -> Self;

    /// Loads `COUNT` fp32.
    ///
    /// # Safety
    /// As [`Lanes::broadcast`]; `from` is readable for `COUNT` numbers and aligned to one.
    unsafe fn load(from: *const f32) -> Self;

    /// Fetches the cache line of `at`, which may lie anywhere, where the CPU can do that ahead of a load.
    #[inline(always)]
    fn prefetch(at: *const f32) {
        let _ = at;
    }

    /// Loads `COUNT` fp16, exactly.
    ///
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn load_f16(from: *const u16) -> Self;

    /// Loads `COUNT` bf16, exactly.
    ///
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn load_bf16(from: *const u16) -> Self;

    /// Stores the lanes.
    ///
    /// # Safety
    /// `to` is writable for `COUNT` numbers and aligned to one.
    unsafe fn store(self, to: *mut f32);

    /// Stores the lanes as fp16, rounded to nearest even.
    ///
    /// # Safety
    /// As [`Lanes::store`].
    unsafe fn store_f16(self, to: *mut u16);

    /// Stores the lanes as bf16, rounded to nearest even.
    ///
    /// # Safety
    /// As [`Lanes::store`].
    unsafe fn store_bf16(self, to: *mut u16);

    /// √.
    fn sqrt(self) -> Self;

    /// The sign cleared.
    fn abs(self) -> Self;

    /// The sign flipped.
    fn negated(self) -> Self;

    /// `then` where `self <= limit`, else (also where one of them is NaN) `otherwise`.
    fn if_le(self, limit: Self, then: Self, otherwise: Self) -> Self;

    /// How many lanes are infinite or NaN.
    fn non_finite(self) -> u32;

    /// `value` in every lane.
    #[inline(always)]
    fn splat(self, value: f32) -> Self {
        // SAFETY: `self` proves the instructions.
        unsafe { Self::broadcast(value) }
    }
}

/// One lane: the scalar path, and the rest of a length that is no multiple of a wider path's lanes.
impl Lanes for f32 {
    const COUNT: usize = 1;

    #[inline(always)]
    unsafe fn broadcast(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> f32 {
        // SAFETY: the caller's duty.
        unsafe { from.read() }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> f32 {
        // SAFETY: the caller's duty. (The `const` conversions are `half`'s portable ones.)
        f16::from_bits(unsafe { from.read() }).to_f32_const()
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> f32 {
        // SAFETY: the caller's duty.
        bf16::from_bits(unsafe { from.read() }).to_f32_const()
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's duty.
        unsafe { to.write(self) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's duty.
        unsafe { to.write(f16::from_f32_const(self).to_bits()) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: the caller's duty.
        unsafe { to.write(bf16::from_f32_const(self).to_bits()) }
    }

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn abs(self) -> f32 {
        f32::abs(self)
    }

    #[inline(always)]
    fn negated(self) -> f32 {
        -self
    }

    #[inline(always)]
    fn if_le(self, limit: f32, then: f32, otherwise: f32) -> f32 {
        if self <= limit { then } else { otherwise }
    }

    #[inline(always)]
    fn non_finite(self) -> u32 {
        u32::from(!self.is_finite())
    }
}
