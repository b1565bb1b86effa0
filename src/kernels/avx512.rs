//! Sixteen lanes: AVX-512F, and nothing of its extensions (AVX512-BF16's own conversion flushes denormals to zero).

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::lanes::Lanes;

/// Sixteen fp32.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

/// An operator that is one instruction.
macro_rules! operator {
    ($trait:ident, $method:ident, $instruction:ident) => {
        impl $trait for Avx512 {
            type Output = Avx512;

            #[inline(always)]
            fn $method(self, other: Avx512) -> Avx512 {
                // SAFETY: `self` proves AVX-512F.
                Avx512(unsafe { $instruction(self.0, other.0) })
            }
        }
    };
}

operator!(Add, add, _mm512_add_ps);
operator!(Sub, sub, _mm512_sub_ps);
operator!(Mul, mul, _mm512_mul_ps);
operator!(Div, div, _mm512_div_ps);

impl Lanes for Avx512 {
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn broadcast(value: f32) -> Avx512 {
        // SAFETY: the caller's duty, here and below: the CPU has AVX-512F.
        Avx512(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Avx512 {
        // SAFETY: the caller's duty; the load needs no alignment.
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    fn prefetch(at: *const f32) {
        // SAFETY: every x86-64 has the instruction, and it faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Avx512 {
        // SAFETY: the caller's duty; sixteen halves are 256 bits, and the load needs no alignment.
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Avx512 {
        // SAFETY: as in `load_f16`.
        Avx512(unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's duty; the store needs no alignment.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's duty; sixteen halves are 256 bits, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: as in `store_f16`.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            // Half of the last place kept, less one when that place is even: ties go to even.
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
            // A NaN must not be carried into infinity, nor lose the bits that make it one.
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let high = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(high));
        }
    }

    #[inline(always)]
    fn sqrt(self) -> Avx512 {
        // SAFETY: `self` proves AVX-512F.
        Avx512(unsafe { _mm512_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn abs(self) -> Avx512 {
        // SAFETY: `self` proves AVX-512F.
        Avx512(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn negated(self) -> Avx512 {
        // SAFETY: `self` proves AVX-512F. (The fp32 form of xor would need AVX512DQ.)
        Avx512(unsafe {
            let sign = _mm512_set1_epi32(i32::MIN);
            _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(self.0), sign))
        })
    }

    #[inline(always)]
    fn if_le(self, limit: Avx512, then: Avx512, otherwise: Avx512) -> Avx512 {
        // SAFETY: `self` proves AVX-512F.
        Avx512(unsafe {
            let mask = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, limit.0);
            _mm512_mask_blend_ps(mask, otherwise.0, then.0)
        })
    }

    #[inline(always)]
    fn non_finite(self) -> u32 {
        // SAFETY: `self` proves AVX-512F.
        let mask = unsafe {
            let infinity = _mm512_set1_ps(f32::INFINITY);
            _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.abs().0, infinity)
        };
        u32::from(mask).count_ones()
    }
}
