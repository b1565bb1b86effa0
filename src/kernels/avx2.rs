//! Eight lanes: AVX2 with F16C.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::lanes::Lanes;

/// Eight fp32.
#[derive(Clone, Copy)]
pub struct Avx2(__m256);

/// An operator that is one instruction.
macro_rules! operator {
    ($trait:ident, $method:ident, $instruction:ident) => {
        impl $trait for Avx2 {
            type Output = Avx2;

            #[inline(always)]
            fn $method(self, other: Avx2) -> Avx2 {
                // SAFETY: `self` proves AVX2.
                Avx2(unsafe { $instruction(self.0, other.0) })
            }
        }
    };
}

operator!(Add, add, _mm256_add_ps);
operator!(Sub, sub, _mm256_sub_ps);
operator!(Mul, mul, _mm256_mul_ps);
operator!(Div, div, _mm256_div_ps);

impl Lanes for Avx2 {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn broadcast(value: f32) -> Avx2 {
        // SAFETY: the caller's duty, here and below: the CPU has AVX2 and F16C.
        Avx2(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Avx2 {
        // SAFETY: the caller's duty; the load needs no alignment.
        Avx2(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    fn prefetch(at: *const f32) {
        // SAFETY: every x86-64 has the instruction, and it faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Avx2 {
        // SAFETY: the caller's duty; eight halves are 128 bits, and the load needs no alignment.
        Avx2(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Avx2 {
        // SAFETY: as in `load_f16`.
        Avx2(unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's duty; the store needs no alignment.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's duty; eight halves are 128 bits, and the store needs no alignment.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: as in `store_f16`.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            // Half of the last place kept, less one when that place is even: ties go to even.
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
            // A NaN must not be carried into infinity, nor lose the bits that make it one.
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
            let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            // Packs within each 128-bit half; the permutation brings the two results together.
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(high, high));
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }

    #[inline(always)]
    fn sqrt(self) -> Avx2 {
        // SAFETY: `self` proves AVX2.
        Avx2(unsafe { _mm256_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn abs(self) -> Avx2 {
        // SAFETY: `self` proves AVX2.
        Avx2(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }

    #[inline(always)]
    fn negated(self) -> Avx2 {
        // SAFETY: `self` proves AVX2.
        Avx2(unsafe { _mm256_xor_ps(_mm256_set1_ps(-0.0), self.0) })
    }

    #[inline(always)]
    fn if_le(self, limit: Avx2, then: Avx2, otherwise: Avx2) -> Avx2 {
        // SAFETY: `self` proves AVX2.
        Avx2(unsafe { _mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, limit.0)) })
    }

    #[inline(always)]
    fn non_finite(self) -> u32 {
        // SAFETY: `self` proves AVX2.
        let mask = unsafe {
            let infinity = _mm256_set1_ps(f32::INFINITY);
            _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(self.abs().0, infinity))
        };
        mask.count_ones()
    }
}
