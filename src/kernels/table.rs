//! Which instructions are used: one table of function pointers for each path, chosen once.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use super::generic::{
    AddingScaled, Bf16, Converting, CountingNonFinite, F16, F32, Fold, Stepping, dot, fold, run,
};
use super::rules::{Adagrad, Adam, AdamW, Assign, Ftrl, Momentum, Nesterov, RmsProp, Sgd, Sum};
use crate::config::{Environment, variable};
use crate::error::{Error, Result};

/// A SIMD path. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// One lane, on any CPU.
    Scalar,
    /// Eight lanes: AVX2 and F16C.
    Avx2,
    /// Sixteen lanes: AVX-512F.
    Avx512,
}

impl Simd {
    /// Every path, the narrowest first.
    pub const ALL: [Simd; 3] = [Simd::Scalar, Simd::Avx2, Simd::Avx512];

    /// Whether this CPU has the instructions.
    pub fn supported(self) -> bool {
        self.table().is_some()
    }

    /// The widest path that this CPU has. (AVX-512 is among them: its tests were seen passing on a CPU that has it.)
    pub fn best() -> Simd {
        Simd::ALL.into_iter().rev().find(|s| s.supported()).unwrap_or(Simd::Scalar)
    }

    /// The kernels of this path, if the CPU has the instructions.
    pub(super) fn table(self) -> Option<&'static Table> {
        match self {
            Simd::Scalar => Some(&scalar::TABLE),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => {
                let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
                has.then_some(&avx2::TABLE)
            }
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => is_x86_feature_detected!("avx512f").then_some(&avx512::TABLE),
            #[cfg(not(target_arch = "x86_64"))]
            Simd::Avx2 | Simd::Avx512 => None,
        }
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Simd::Scalar => "scalar",
            Simd::Avx2 => "avx2",
            Simd::Avx512 => "avx512",
        })
    }
}

impl FromStr for Simd {
    type Err = Error;

    fn from_str(text: &str) -> Result<Simd> {
        let named = Simd::ALL.into_iter().find(|s| s.to_string() == text);
        named.ok_or_else(|| Error::config("simd", "scalar, avx2 or avx512", text))
    }
}

static CHOSEN: OnceLock<(Simd, &'static Table)> = OnceLock::new();

/// Chooses the path of this process, before its first use. Refused when the CPU lacks the instructions, or when another
/// path is in use already.
pub fn choose(simd: Simd) -> Result<()> {
    let Some(table) = simd.table() else {
        return Err(Error::config(
            "simd",
            format!("instructions of this CPU, such as {}", Simd::best()),
            simd,
        ));
    };
    let (used, _) = CHOSEN.get_or_init(|| (simd, table));
    if *used == simd { Ok(()) } else { Err(Error::config("simd", format!("{used}, which is in use"), simd)) }
}

/// Chooses what `WINDLASS_SIMD` names, if it is set.
pub fn choose_by(environment: &Environment) -> Result<()> {
    let named = environment.value(variable::SIMD, "scalar, avx2 or avx512")?;
    named.map_or(Ok(()), choose)
}

/// The path of this process: what was chosen, else the best.
pub fn chosen() -> Simd {
    current().0
}

/// The kernels of this process.
pub(super) fn table() -> &'static Table {
    current().1
}

#[inline]
fn current() -> (Simd, &'static Table) {
    *CHOSEN.get_or_init(|| {
        let best = Simd::best();
        // `best` is supported, so it has a table.
        best.table().map_or((Simd::Scalar, &scalar::TABLE), |table| (best, table))
    })
}

/// A step of rule `R`: parameters, state and gradient, all of one length, which comes last.
pub type Step<R, const PLANES: usize> = unsafe fn(Stepping<R, PLANES>, usize);

/// The kernels of one path. Whoever got one through [`Simd::table`] is on a CPU that has the instructions, so that only
/// the pointers remain to be vouched for.
pub struct Table {
    pub(super) fold_f32: unsafe fn(Fold, &[*const f32]),
    pub(super) fold_f16: unsafe fn(Fold, &[*const u16]),
    pub(super) fold_bf16: unsafe fn(Fold, &[*const u16]),
    pub(super) add_scaled_f32: unsafe fn(AddingScaled<F32>, usize),
    pub(super) add_scaled_f16: unsafe fn(AddingScaled<F16>, usize),
    pub(super) add_scaled_bf16: unsafe fn(AddingScaled<Bf16>, usize),
    pub(super) f32_from_f16: unsafe fn(Converting<F16, F32>, usize),
    pub(super) f32_from_bf16: unsafe fn(Converting<Bf16, F32>, usize),
    pub(super) f16_from_f32: unsafe fn(Converting<F32, F16>, usize),
    pub(super) bf16_from_f32: unsafe fn(Converting<F32, Bf16>, usize),
    pub(super) non_finite_f32: unsafe fn(CountingNonFinite<F32>, usize) -> u64,
    pub(super) non_finite_f16: unsafe fn(CountingNonFinite<F16>, usize) -> u64,
    pub(super) non_finite_bf16: unsafe fn(CountingNonFinite<Bf16>, usize) -> u64,
    pub(super) dot_f32: unsafe fn(&mut [f32; 16], *const f32, *const f32, usize),
    pub(super) dot_f16: unsafe fn(&mut [f32; 16], *const u16, *const u16, usize),
    pub(super) dot_bf16: unsafe fn(&mut [f32; 16], *const u16, *const u16, usize),
    pub(super) assign: Step<Assign, 0>,
    pub(super) sum: Step<Sum, 0>,
    pub(super) sgd: Step<Sgd, 0>,
    pub(super) momentum: Step<Momentum, 1>,
    pub(super) nesterov: Step<Nesterov, 1>,
    pub(super) adagrad: Step<Adagrad, 1>,
    pub(super) rmsprop: Step<RmsProp, 1>,
    pub(super) adam: Step<Adam, 2>,
    pub(super) adamw: Step<AdamW, 2>,
    pub(super) ftrl: Step<Ftrl, 2>,
}

/// Thin shells around the generic algorithms, compiled for one instruction set.
///
/// # Safety
/// Of every shell: the CPU has the instructions, and the duty of the algorithm that it wraps.
macro_rules! path {
    ($name:ident, $lanes:ty $(, $features:literal)?) => {
        mod $name {
            use super::*;

            path!(@fold $lanes, fold_f32, F32, f32 $(, $features)?);
            path!(@fold $lanes, fold_f16, F16, u16 $(, $features)?);
            path!(@fold $lanes, fold_bf16, Bf16, u16 $(, $features)?);
            path!(@dot $lanes, dot_f32, F32, f32 $(, $features)?);
            path!(@dot $lanes, dot_f16, F16, u16 $(, $features)?);
            path!(@dot $lanes, dot_bf16, Bf16, u16 $(, $features)?);
            path!(@count $lanes, non_finite_f32, F32 $(, $features)?);
            path!(@count $lanes, non_finite_f16, F16 $(, $features)?);
            path!(@count $lanes, non_finite_bf16, Bf16 $(, $features)?);
            path!(@pass $lanes, add_scaled_f32, AddingScaled<F32> $(, $features)?);
            path!(@pass $lanes, add_scaled_f16, AddingScaled<F16> $(, $features)?);
            path!(@pass $lanes, add_scaled_bf16, AddingScaled<Bf16> $(, $features)?);
            path!(@pass $lanes, f32_from_f16, Converting<F16, F32> $(, $features)?);
            path!(@pass $lanes, f32_from_bf16, Converting<Bf16, F32> $(, $features)?);
            path!(@pass $lanes, f16_from_f32, Converting<F32, F16> $(, $features)?);
            path!(@pass $lanes, bf16_from_f32, Converting<F32, Bf16> $(, $features)?);
            path!(@pass $lanes, assign, Stepping<Assign, 0> $(, $features)?);
            path!(@pass $lanes, sum, Stepping<Sum, 0> $(, $features)?);
            path!(@pass $lanes, sgd, Stepping<Sgd, 0> $(, $features)?);
            path!(@pass $lanes, momentum, Stepping<Momentum, 1> $(, $features)?);
            path!(@pass $lanes, nesterov, Stepping<Nesterov, 1> $(, $features)?);
            path!(@pass $lanes, adagrad, Stepping<Adagrad, 1> $(, $features)?);
            path!(@pass $lanes, rmsprop, Stepping<RmsProp, 1> $(, $features)?);
            path!(@pass $lanes, adam, Stepping<Adam, 2> $(, $features)?);
            path!(@pass $lanes, adamw, Stepping<AdamW, 2> $(, $features)?);
            path!(@pass $lanes, ftrl, Stepping<Ftrl, 2> $(, $features)?);

            pub static TABLE: Table = Table {
                fold_f32, fold_f16, fold_bf16,
                add_scaled_f32, add_scaled_f16, add_scaled_bf16,
                f32_from_f16, f32_from_bf16, f16_from_f32, bf16_from_f32,
                non_finite_f32, non_finite_f16, non_finite_bf16,
                dot_f32, dot_f16, dot_bf16,
                assign, sum, sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, ftrl,
            };
        }
    };
    (@fold $lanes:ty, $shell:ident, $format:ty, $bits:ty $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $shell(task: Fold, pieces: &[*const $bits]) {
            // SAFETY: the caller's duty.
            unsafe { fold::<$lanes, $format>(task, pieces) }
        }
    };
    (@dot $lanes:ty, $shell:ident, $format:ty, $bits:ty $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $shell(sums: &mut [f32; 16], a: *const $bits, b: *const $bits, length: usize) {
            // SAFETY: the caller's duty.
            unsafe { dot::<$lanes, $format, $format>(sums, a, b, length) }
        }
    };
    (@count $lanes:ty, $shell:ident, $format:ty $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $shell(mut pass: CountingNonFinite<$format>, length: usize) -> u64 {
            // SAFETY: the caller's duty.
            unsafe { run::<$lanes>(length, &mut pass) }
            pass.found
        }
    };
    (@pass $lanes:ty, $shell:ident, $pass:ty $(, $features:literal)?) => {
        $(#[target_feature(enable = $features)])?
        unsafe fn $shell(mut pass: $pass, length: usize) {
            // SAFETY: the caller's duty.
            unsafe { run::<$lanes>(length, &mut pass) }
        }
    };
}

path!(scalar, f32);
#[cfg(target_arch = "x86_64")]
path!(avx2, crate::kernels::avx2::Avx2, "avx2,f16c");
#[cfg(target_arch = "x86_64")]
path!(avx512, crate::kernels::avx512::Avx512, "avx512f");
