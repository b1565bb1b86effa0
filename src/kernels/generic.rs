//! The algorithms, each written once for any number of lanes. What is left over at the end of a length goes lane by lane
//! through the same text.

use super::lanes::Lanes;
use super::rules::Rule;

/// How numbers lie in memory.
pub trait Format {
    /// One of them.
    type Bits: bytemuck::Pod;

    /// Loads `L::COUNT` of them as fp32.
    ///
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn load<L: Lanes>(from: *const Self::Bits) -> L;

    /// Stores lanes, rounded to nearest even.
    ///
    /// # Safety
    /// As [`Lanes::store`].
    unsafe fn store<L: Lanes>(value: L, to: *mut Self::Bits);
}

macro_rules! format {
    ($(#[$doc:meta])* $name:ident, $bits:ty, $load:ident, $store:ident) => {
        $(#[$doc])*
        pub struct $name;

        impl Format for $name {
            type Bits = $bits;

            #[inline(always)]
            unsafe fn load<L: Lanes>(from: *const $bits) -> L {
                // SAFETY: the caller's duty.
                unsafe { L::$load(from) }
            }

            #[inline(always)]
            unsafe fn store<L: Lanes>(value: L, to: *mut $bits) {
                // SAFETY: the caller's duty.
                unsafe { value.$store(to) }
            }
        }
    };
}

format!(
    /// IEEE 754 binary32.
    F32, f32, load, store
);
format!(
    /// IEEE 754 binary16.
    F16, u16, load_f16, store_f16
);
format!(
    /// The upper half of binary32.
    Bf16, u16, load_bf16, store_bf16
);

/// What a fold starts from and what becomes of its sum.
#[derive(Debug, Clone, Copy)]
pub struct Fold {
    /// The sum so far; null stands for +0.
    pub start: *const f32,
    /// Where the sum goes; may be `start`.
    pub sum: *mut f32,
    /// How many sums.
    pub length: usize,
    /// What the sums are divided by, unless it is 1.
    pub divisor: f32,
}

/// Adds the pieces one after the other, then divides.
///
/// # Safety
/// The CPU has L's instructions. `start` (if not null), every piece and `sum` are valid for `length` numbers; nothing but
/// this call touches `sum`.
#[inline(always)]
pub unsafe fn fold<L: Lanes, F: Format>(fold: Fold, pieces: &[*const F::Bits]) {
    let mut at = 0;
    // SAFETY: the caller's duty; each call stays below `length`.
    unsafe {
        // Several independent sums hide the latency of the addition.
        while at + 4 * L::COUNT <= fold.length {
            fold_at::<L, F, 4>(fold, pieces, at);
            at += 4 * L::COUNT;
        }
        while at + L::COUNT <= fold.length {
            fold_at::<L, F, 1>(fold, pieces, at);
            at += L::COUNT;
        }
        while at < fold.length {
            fold_at::<f32, F, 1>(fold, pieces, at);
            at += 1;
        }
    }
}

/// `N` values of sums from `at` on.
///
/// # Safety
/// As [`fold`]; `at` + `N` values lie within the length.
#[inline(always)]
unsafe fn fold_at<L: Lanes, F: Format, const N: usize>(fold: Fold, pieces: &[*const F::Bits], at: usize) {
    // SAFETY: the caller's duty: everything read and written lies in `at .. at + N * COUNT` of what it vouched for.
    unsafe {
        let mut sums = [L::broadcast(0.0); N];
        if !fold.start.is_null() {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(fold.start.add(at + n * L::COUNT));
            }
        }
        for &piece in pieces {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = *sum + F::load::<L>(piece.add(at + n * L::COUNT));
            }
        }
        if fold.divisor != 1.0 {
            for sum in &mut sums {
                *sum = *sum / sum.splat(fold.divisor);
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            sum.store(fold.sum.add(at + n * L::COUNT));
        }
    }
}

/// Something done at every place of a length, independently of the other places.
pub trait Pass {
    /// Does it for the places `at .. at + L::COUNT`.
    ///
    /// # Safety
    /// The CPU has L's instructions, and the places lie within the length that the pass was made for.
    unsafe fn at<L: Lanes>(&mut self, at: usize);
}

/// Does `pass` at all of `length` places.
///
/// # Safety
/// The CPU has L's instructions, and what `pass` points to is valid for `length` numbers.
#[inline(always)]
pub unsafe fn run<L: Lanes>(length: usize, pass: &mut impl Pass) {
    let mut at = 0;
    // SAFETY: the caller's duty; both loops keep `at` and what follows below `length`. One lane needs no instructions.
    unsafe {
        while at + L::COUNT <= length {
            pass.at::<L>(at);
            at += L::COUNT;
        }
        while at < length {
            pass.at::<f32>(at);
            at += 1;
        }
    }
}

/// How far ahead of a step its parameters are fetched, in fp32: tables are larger than caches, and the CPU's own prefetcher
/// begins anew with each page. (2 KiB: 15 GB/s for `sum`; without 13, with 8 KiB 14.)
const AHEAD: usize = 512;

/// How far ahead, in fp32, a step of `length` parameters fetches: what lies behind a short one is somebody else's.
pub fn ahead(length: usize) -> usize {
    if length > AHEAD { AHEAD } else { 0 }
}

/// One step of a rule.
pub struct Stepping<R, const PLANES: usize> {
    /// The rule.
    pub rule: R,
    /// The parameters.
    pub parameters: *mut f32,
    /// The planes of the state.
    pub state: [*mut f32; PLANES],
    /// The gradient.
    pub gradient: *const f32,
    /// How far ahead parameters are fetched; see [`ahead`].
    pub ahead: usize,
}

impl<R: Rule<PLANES>, const PLANES: usize> Pass for Stepping<R, PLANES> {
    #[inline(always)]
    unsafe fn at<L: Lanes>(&mut self, at: usize) {
        // SAFETY: the caller's duty.
        unsafe {
            L::prefetch(self.parameters.wrapping_add(at + self.ahead));
            let g = L::load(self.gradient.add(at));
            let w = L::load(self.parameters.add(at));
            // Starts as anything; every plane is loaded.
            let mut state = [w; PLANES];
            for (s, plane) in state.iter_mut().zip(self.state) {
                *s = L::load(plane.add(at));
            }
            let (w, state) = self.rule.step(w, state, g);
            w.store(self.parameters.add(at));
            for (s, plane) in state.into_iter().zip(self.state) {
                s.store(plane.add(at));
            }
        }
    }
}

/// `to ← from` in another format.
pub struct Converting<From: Format, To: Format> {
    /// What is read.
    pub from: *const From::Bits,
    /// What is written.
    pub to: *mut To::Bits,
}

impl<From: Format, To: Format> Pass for Converting<From, To> {
    #[inline(always)]
    unsafe fn at<L: Lanes>(&mut self, at: usize) {
        // SAFETY: the caller's duty.
        unsafe { To::store(From::load::<L>(self.from.add(at)), self.to.add(at)) }
    }
}

/// `sum ← sum + factor · values`, product and sum rounded each.
pub struct AddingScaled<F: Format> {
    /// What is added to.
    pub sum: *mut f32,
    /// By how much each value is multiplied.
    pub factor: f32,
    /// What is added.
    pub values: *const F::Bits,
}

impl<F: Format> Pass for AddingScaled<F> {
    #[inline(always)]
    unsafe fn at<L: Lanes>(&mut self, at: usize) {
        // SAFETY: the caller's duty.
        unsafe {
            let value = F::load::<L>(self.values.add(at));
            (L::load(self.sum.add(at)) + value.splat(self.factor) * value).store(self.sum.add(at));
        }
    }
}

/// Counts infinities and NaNs.
pub struct CountingNonFinite<F: Format> {
    /// Where.
    pub values: *const F::Bits,
    /// How many so far.
    pub found: u64,
}

impl<F: Format> Pass for CountingNonFinite<F> {
    #[inline(always)]
    unsafe fn at<L: Lanes>(&mut self, at: usize) {
        // SAFETY: the caller's duty.
        self.found += u64::from(unsafe { F::load::<L>(self.values.add(at)) }.non_finite());
    }
}

/// Adds the products `a[i] · b[i]` to `sums[i mod 16]`, each in the order of i.
///
/// # Safety
/// The CPU has L's instructions; `a` and `b` are valid for `length` numbers.
#[inline(always)]
pub unsafe fn dot<L: Lanes, A: Format, B: Format>(
    sums: &mut [f32; 16],
    a: *const A::Bits,
    b: *const B::Bits,
    length: usize,
) {
    let mut at = 0;
    // SAFETY: the caller's duty; what is loaded lies below `length`, and 16 / COUNT values of COUNT lanes are the 16 sums.
    unsafe {
        let mut wide = [L::broadcast(0.0); 16];
        let wide = &mut wide[..16 / L::COUNT];
        for (n, sum) in wide.iter_mut().enumerate() {
            *sum = L::load(sums.as_ptr().add(n * L::COUNT));
        }
        while at + 16 <= length {
            for (n, sum) in wide.iter_mut().enumerate() {
                let here = at + n * L::COUNT;
                *sum = *sum + A::load::<L>(a.add(here)) * B::load::<L>(b.add(here));
            }
            at += 16;
        }
        for (n, sum) in wide.iter().enumerate() {
            sum.store(sums.as_mut_ptr().add(n * L::COUNT));
        }
        for (n, sum) in sums.iter_mut().enumerate().take(length - at) {
            *sum += A::load::<f32>(a.add(at + n)) * B::load::<f32>(b.add(at + n));
        }
    }
}

/// The fixed tree that makes one sum of sixteen.
pub fn tree(sums: [f32; 16]) -> f32 {
    let mut sums = sums;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}
