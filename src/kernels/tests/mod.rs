//! Every path against the oracle, bit for bit.

mod oracle;

use proptest::prelude::*;

use self::oracle::Numbers;
use super::fold::{fold_with, pass_by};
use super::*;
use crate::mem::Halves;

/// The tables of all paths that this CPU has.
fn tables() -> impl Iterator<Item = (Simd, &'static Table)> {
    Simd::ALL.into_iter().filter_map(|simd| Some((simd, simd.table()?)))
}

/// The bits, all NaNs being one.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// fp32 of every kind: any bits, denormals, halfway cases of the narrow formats, infinities, NaNs, zeros, plain numbers.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -8.0f32..8.0,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => (0u32..0x0080_0000, any::<bool>()).prop_map(|(b, s)| f32::from_bits(b | u32::from(s) << 31)),
        1 => (any::<u16>(), 0x7FFFu32..0x8002).prop_map(|(b, low)| f32::from_bits(u32::from(b) << 16 | low)),
        1 => (0u32..0x8000_0000, 0xFFFu32..0x1002)
            .prop_map(|(b, low)| f32::from_bits((b & !0x1FFF) | low)),
        1 => prop::sample::select(vec![
            0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX, f32::MIN_POSITIVE,
            65504.0, 65519.99, 65520.0, -65520.0, 6.0e-8, 2.9802322e-8, 2.9802326e-8,
        ]),
    ]
}

/// Numbers that stay finite under arithmetic of a few steps.
fn tame() -> impl Strategy<Value = f32> {
    prop_oneof![8 => -8.0f32..8.0, 1 => Just(0.0f32), 1 => -1e-40f32..1e-40]
}

fn numbers(length: usize) -> impl Strategy<Value = Numbers> {
    prop_oneof![
        prop::collection::vec(number(), length).prop_map(Numbers::F32),
        prop::collection::vec(any::<u16>(), length).prop_map(Numbers::F16),
        prop::collection::vec(any::<u16>(), length).prop_map(Numbers::Bf16),
    ]
}

/// A length that leaves every possible rest, and a shift by which data lie off alignment.
fn shape() -> impl Strategy<Value = (usize, usize)> {
    (prop_oneof![40 => 0usize..100, 1 => Just(1023), 1 => Just(1025), 1 => Just(2065)], 0usize..5)
}

/// Data that start `shift` numbers into an allocation.
struct Shifted<T> {
    data: Vec<T>,
    shift: usize,
}

impl<T: Copy + Default> Shifted<T> {
    fn new(values: &[T], shift: usize) -> Shifted<T> {
        let mut data = vec![T::default(); shift];
        data.extend_from_slice(values);
        Shifted { data, shift }
    }

    fn all(&self) -> &[T] {
        &self.data[self.shift..]
    }

    fn all_mut(&mut self) -> &mut [T] {
        &mut self.data[self.shift..]
    }
}

/// Numbers off alignment, as a kernel's input.
enum Held {
    F32(Shifted<f32>),
    F16(Shifted<u16>),
    Bf16(Shifted<u16>),
}

impl Held {
    fn new(numbers: &Numbers, shift: usize) -> Held {
        match numbers {
            Numbers::F32(v) => Held::F32(Shifted::new(v, shift)),
            Numbers::F16(v) => Held::F16(Shifted::new(v, shift)),
            Numbers::Bf16(v) => Held::Bf16(Shifted::new(v, shift)),
        }
    }

    fn input(&self) -> Input<'_> {
        match self {
            Held::F32(v) => v.all().into(),
            Held::F16(v) => Input::F16(Halves::from(v.all())),
            Held::Bf16(v) => Input::Bf16(Halves::from(v.all())),
        }
    }
}

prop_compose! {
    fn folding()((length, shift) in shape())(
        shift in Just(shift),
        sum in prop::collection::vec(number(), length),
        pieces in prop::collection::vec(numbers(length), 0..20),
        divisor in prop_oneof![Just(1.0f32), 2.0f32..9.0],
    ) -> (usize, Vec<f32>, Vec<Numbers>, f32) {
        (shift, sum, pieces, divisor)
    }
}

proptest! {
    #[test]
    fn folds_are_the_oracles((shift, start, pieces, divisor) in folding()) {
        let mut expected = start.clone();
        oracle::fold(&mut expected, &pieces, divisor);
        let held: Vec<Held> = pieces.iter().map(|p| Held::new(p, shift)).collect();
        let inputs: Vec<Input<'_>> = held.iter().map(Held::input).collect();
        for (simd, table) in tables() {
            let mut sum = Shifted::new(&start, shift);
            fold_with(table, sum.all_mut(), &inputs, divisor);
            prop_assert_eq!(bits(sum.all()), bits(&expected), "{}", simd);
            // One by one gives the bits of all at once.
            let mut sum = Shifted::new(&start, shift);
            for &input in &inputs {
                fold_with(table, sum.all_mut(), &[input], 1.0);
            }
            fold_with(table, sum.all_mut(), &[], divisor);
            prop_assert_eq!(bits(sum.all()), bits(&expected), "{}", simd);
        }
    }

    #[test]
    fn fused_passes_are_their_parts((shift, start, pieces, divisor) in folding(), from_zero in any::<bool>()) {
        let rule = Sgd { rate: 0.1 };
        let mut gradient = if from_zero { vec![0.0; start.len()] } else { start.clone() };
        oracle::fold(&mut gradient, &pieces, divisor);
        let weights: Vec<f32> = start.iter().rev().copied().collect();
        let expected: Vec<f32> =
            weights.iter().zip(&gradient).map(|(&w, &g)| oracle::sgd(w, g, rule.rate)).collect();
        let cast: Vec<u16> = expected.iter().map(|&w| half::bf16::from_f32(w).to_bits()).collect();
        let held: Vec<Held> = pieces.iter().map(|p| Held::new(p, shift)).collect();
        let inputs: Vec<Input<'_>> = held.iter().map(Held::input).collect();
        for (simd, table) in tables() {
            let (mut w, mut sum) = (Shifted::new(&weights, shift), Shifted::new(&start, shift));
            let mut out = Shifted::new(&vec![0u16; start.len()], shift);
            let sum_so_far = (!from_zero).then(|| sum.all_mut());
            let gradient = Gradient::Fold { sum: sum_so_far, pieces: &inputs, divisor };
            pass_by(table, w.all_mut(), gradient, Some(Output::Bf16(out.all_mut().into())), |_, w, g| {
                step_by(table, rule, w, [], g);
            });
            prop_assert_eq!(bits(w.all()), bits(&expected), "{}", simd);
            if !from_zero {
                prop_assert!(sum.all().iter().all(|s| s.to_bits() == 0), "{}", simd);
            }
            prop_assert_eq!(widened_bf16(out.all()), widened_bf16(&cast), "{}", simd);
        }
    }

    #[test]
    fn conversions_are_the_oracles((numbers, shift) in shape().prop_flat_map(|(n, s)| (numbers(n), Just(s)))) {
        let held = Held::new(&numbers, shift);
        let wide: Vec<f32> = (0..numbers.len()).map(|i| numbers.at(i)).collect();
        let f16s: Vec<half::f16> = wide.iter().map(|&v| half::f16::from_f32(v)).collect();
        let bf16s: Vec<half::bf16> = wide.iter().map(|&v| half::bf16::from_f32(v)).collect();
        for (simd, table) in tables() {
            let mut floats = Shifted::new(&vec![0.0f32; wide.len()], shift);
            widen_by(table, floats.all_mut(), held.input());
            prop_assert_eq!(bits(floats.all()), bits(&wide), "{}", simd);
            let mut halves = Shifted::new(&vec![0u16; wide.len()], shift);
            narrow_by(table, Output::F16(halves.all_mut().into()), &wide[..]);
            for (found, expected) in halves.all().iter().zip(&f16s) {
                let found = half::f16::from_bits(*found);
                prop_assert!(same(found.is_nan(), expected.is_nan(), found.to_bits(), expected.to_bits()));
            }
            narrow_by(table, Output::Bf16(halves.all_mut().into()), &wide[..]);
            for (found, expected) in halves.all().iter().zip(&bf16s) {
                let found = half::bf16::from_bits(*found);
                prop_assert!(same(found.is_nan(), expected.is_nan(), found.to_bits(), expected.to_bits()));
            }
        }
    }

    #[test]
    fn sums_of_products_are_the_oracles(
        (a, b, shift) in shape().prop_flat_map(|(n, s)| (numbers(n), numbers(n), Just(s))),
        factor in number(),
    ) {
        let (held_a, held_b) = (Held::new(&a, shift), Held::new(&b, 0));
        let same_format = std::mem::discriminant(&a) == std::mem::discriminant(&b);
        let start: Vec<f32> = (0..a.len()).map(|i| b.at(i)).collect();
        let scaled: Vec<f32> = start.iter().enumerate().map(|(i, s)| s + factor * a.at(i)).collect();
        let non_finite = (0..a.len()).filter(|&i| !a.at(i).is_finite()).count() as u64;
        for (simd, table) in tables() {
            if same_format {
                let found = dot_by(table, held_a.input(), held_b.input());
                prop_assert_eq!(bits(&[found]), bits(&[oracle::dot(&a, &b)]), "{}", simd);
            }
            let found = dot_by(table, held_a.input(), held_a.input());
            prop_assert_eq!(bits(&[found]), bits(&[oracle::dot(&a, &a)]), "{}", simd);
            let mut sum = Shifted::new(&start, shift);
            add_scaled_by(table, sum.all_mut(), factor, held_a.input());
            prop_assert_eq!(bits(sum.all()), bits(&scaled), "{}", simd);
            prop_assert_eq!(count_non_finite_by(table, held_a.input()), non_finite, "{}", simd);
        }
    }
}

fn same(nan: bool, other_nan: bool, bits: u16, other: u16) -> bool {
    nan == other_nan && (nan || bits == other)
}

fn widened_f16(halves: &[u16]) -> Vec<u32> {
    bits(&halves.iter().map(|&h| half::f16::from_bits(h).to_f32()).collect::<Vec<_>>())
}

fn widened_bf16(halves: &[u16]) -> Vec<u32> {
    bits(&halves.iter().map(|&h| half::bf16::from_bits(h).to_f32()).collect::<Vec<_>>())
}

/// Every fp16 and every bf16 goes to fp32 and back unchanged, in every path.
#[test]
fn all_halves_survive_the_way_there_and_back() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for (simd, table) in tables() {
        let mut wide = vec![0.0f32; all.len()];
        let mut back = vec![0u16; all.len()];
        widen_by(table, &mut wide[..], Input::F16(Halves::from(&all[..])));
        narrow_by(table, Output::F16((&mut back[..]).into()), &wide[..]);
        for (h, b) in all.iter().zip(&back) {
            let nan = half::f16::from_bits(*h).is_nan();
            assert!(same(nan, half::f16::from_bits(*b).is_nan(), *h, *b), "{simd}: {h:#06x} {b:#06x}");
        }
        widen_by(table, &mut wide[..], Input::Bf16(Halves::from(&all[..])));
        narrow_by(table, Output::Bf16((&mut back[..]).into()), &wide[..]);
        for (h, b) in all.iter().zip(&back) {
            let nan = half::bf16::from_bits(*h).is_nan();
            assert!(same(nan, half::bf16::from_bits(*b).is_nan(), *h, *b), "{simd}: {h:#06x} {b:#06x}");
        }
    }
}

/// One step of `rule` in every path, against `naive` on each parameter.
fn check_rule<R: Rule<P> + std::fmt::Debug, const P: usize>(
    rule: R,
    data: &Data,
    naive: impl Fn(&mut f32, [&mut f32; P], f32),
) -> Result<(), TestCaseError> {
    let Data { shift, w, planes, g } = data;
    let planes: [&Vec<f32>; P] = std::array::from_fn(|p| &planes[p]);
    let mut expected_w = w.clone();
    let mut expected = planes.map(Vec::clone);
    for (i, (w, g)) in expected_w.iter_mut().zip(g).enumerate() {
        naive(w, expected.each_mut().map(|p| &mut p[i]), *g);
    }
    for (simd, table) in tables() {
        let mut w = Shifted::new(w, *shift);
        let mut state = planes.map(|p| Shifted::new(p, shift + 1));
        let g = Shifted::new(g, shift + 2);
        step_by(table, rule, w.all_mut(), state.each_mut().map(Shifted::all_mut), g.all());
        prop_assert_eq!(bits(w.all()), bits(&expected_w), "{} {:?}", simd, rule);
        for (found, expected) in state.iter().zip(&expected) {
            prop_assert_eq!(bits(found.all()), bits(expected), "{} {:?}", simd, rule);
        }
    }
    Ok(())
}

/// `pieces` folded, divided, stepped with `rule` and cast in one pass, against the same one after the other.
fn check_fused<R: Rule<P> + std::fmt::Debug, const P: usize>(
    rule: R,
    data: &Data,
    pieces: &[Numbers],
) -> Result<(), TestCaseError> {
    let scalar = Simd::Scalar.table().unwrap();
    let mut gradient = vec![0.0; data.w.len()];
    oracle::fold(&mut gradient, pieces, 3.0);
    let mut expected_w = data.w.clone();
    let mut expected: [Vec<f32>; P] = std::array::from_fn(|p| data.planes[p].clone());
    step_by(scalar, rule, &mut expected_w, expected.each_mut().map(Vec::as_mut_slice), &gradient[..]);
    let mut fp16 = vec![0u16; data.w.len()];
    narrow_by(scalar, Output::F16((&mut fp16[..]).into()), &expected_w[..]);
    let bf16: Vec<u16> = expected_w.iter().map(|&w| half::bf16::from_f32(w).to_bits()).collect();

    let held: Vec<Held> = pieces.iter().map(|p| Held::new(p, data.shift)).collect();
    let inputs: Vec<Input<'_>> = held.iter().map(Held::input).collect();
    for ((simd, table), is_fp16) in tables().flat_map(|path| [(path, false), (path, true)]) {
        let mut w = Shifted::new(&data.w, data.shift);
        let mut planes: [Vec<f32>; P] = std::array::from_fn(|p| data.planes[p].clone());
        let mut out = vec![0u16; data.w.len()];
        let gradient = Gradient::Fold { sum: None, pieces: &inputs, divisor: 3.0 };
        let cast = (&mut out[..]).into();
        let cast = if is_fp16 { Output::F16(cast) } else { Output::Bf16(cast) };
        pass_by(table, w.all_mut(), gradient, Some(cast), |range, w, g| {
            step_by(table, rule, w, planes.each_mut().map(|p| &mut p[range.clone()]), g);
        });
        prop_assert_eq!(bits(w.all()), bits(&expected_w), "{} {:?}", simd, rule);
        for (found, expected) in planes.iter().zip(&expected) {
            prop_assert_eq!(bits(found), bits(expected), "{} {:?}", simd, rule);
        }
        if is_fp16 {
            prop_assert_eq!(widened_f16(&out), widened_f16(&fp16), "{} {:?}", simd, rule);
        } else {
            prop_assert_eq!(widened_bf16(&out), widened_bf16(&bf16), "{} {:?}", simd, rule);
        }
    }
    Ok(())
}

#[derive(Debug, Clone)]
struct Data {
    shift: usize,
    w: Vec<f32>,
    planes: [Vec<f32>; 2],
    g: Vec<f32>,
}

/// Parameters, state and gradients: tame ones (so that the interesting branches are taken) or anything.
fn data() -> impl Strategy<Value = Data> {
    (shape(), any::<bool>()).prop_flat_map(|((length, shift), calm)| {
        let any_of = move || if calm { tame().boxed() } else { number().boxed() };
        let vector = move || prop::collection::vec(any_of(), length);
        (vector(), vector(), vector(), vector()).prop_map(move |(w, a, b, g)| Data {
            shift,
            w,
            planes: [a, b],
            g,
        })
    })
}

proptest! {
    #[test]
    fn simple_rules_are_the_oracles(data in data(), rate in tame(), mu in 0.0f32..1.0) {
        check_rule(Assign, &data, |w, [], g| *w = g)?;
        check_rule(Sum, &data, |w, [], g| *w += g)?;
        check_rule(Sgd { rate }, &data, |w, [], g| *w = oracle::sgd(*w, g, rate))?;
        let rule = Momentum { rate, momentum: mu };
        check_rule(rule, &data, |w, [m], g| oracle::momentum(w, m, g, rate, mu))?;
        let rule = Nesterov { rate, momentum: mu };
        check_rule(rule, &data, |w, [m], g| oracle::nesterov(w, m, g, rate, mu))?;
    }

    #[test]
    fn adaptive_rules_are_the_oracles(
        data in data(), rate in tame(), beta1 in 0.0f32..1.0, beta2 in 0.0f32..1.0, epsilon in 1e-10f32..1e-3,
        root in 0.01f32..1.0, shrink in 0.0f32..0.1, l1 in 0.0f32..4.0,
    ) {
        let rule = Adagrad { rate, epsilon };
        check_rule(rule, &data, |w, [s], g| oracle::adagrad(w, s, g, rate, epsilon))?;
        let rule = RmsProp { rate, alpha: beta1, epsilon };
        check_rule(rule, &data, |w, [s], g| oracle::rmsprop(w, s, g, [rate, beta1, epsilon]))?;
        let adam = Adam { rate, root, beta1, beta2, epsilon };
        check_rule(adam, &data, |w, state, g| oracle::adam(w, state, g, adam))?;
        check_rule(AdamW { shrink, adam }, &data, |w, state, g| {
            *w -= shrink * *w;
            oracle::adam(w, state, g, adam);
        })?;
        let rule = Ftrl { alpha: beta2 + 0.1, beta: 1.0, l1, l2: shrink };
        check_rule(rule, &data, |w, state, g| oracle::ftrl(w, state, g, rule))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_rule_can_be_fused(
        (data, pieces) in data().prop_flat_map(|data| {
            let length = data.w.len();
            (Just(data), prop::collection::vec(numbers(length), 1..6))
        }),
    ) {
        let (rate, momentum, epsilon) = (0.1, 0.9, 1e-8);
        check_fused(Assign, &data, &pieces)?;
        check_fused(Sum, &data, &pieces)?;
        check_fused(Sgd { rate }, &data, &pieces)?;
        check_fused(Momentum { rate, momentum }, &data, &pieces)?;
        check_fused(Nesterov { rate, momentum }, &data, &pieces)?;
        check_fused(Adagrad { rate, epsilon }, &data, &pieces)?;
        check_fused(RmsProp { rate, alpha: 0.99, epsilon }, &data, &pieces)?;
        let adam = Adam { rate, root: 0.5, beta1: 0.9, beta2: 0.999, epsilon };
        check_fused(adam, &data, &pieces)?;
        check_fused(AdamW { shrink: 0.001, adam }, &data, &pieces)?;
        check_fused(Ftrl { alpha: rate, beta: 1.0, l1: 0.1, l2: 0.01 }, &data, &pieces)?;
    }
}

#[test]
fn sums_start_from_positive_zero() {
    let mut sum = [0.0f32; 2];
    accumulate(&mut sum, (&[-0.0f32, 1.0][..]).into());
    assert_eq!(sum.map(f32::to_bits), [0.0f32, 1.0].map(f32::to_bits));
}

#[test]
fn ftrl_with_a_zero_gradient_changes_no_bit() {
    let rule = Ftrl { alpha: 0.5, beta: 1.0, l1: 0.1, l2: 0.01 };
    let (mut w, mut z, mut n) = ([0.0f32; 1], [0.0f32; 1], [0.0f32; 1]);
    step(rule, &mut w, [&mut z, &mut n], &[0.7][..]);
    let before = (w, z, n);
    step(rule, &mut w, [&mut z, &mut n], &[0.0][..]);
    assert_eq!((w, z, n), before);
}

#[test]
fn ftrl_at_its_threshold_is_positive_zero_in_every_lane() {
    let rule = Ftrl { alpha: 0.5, beta: 1.0, l1: 0.25, l2: 0.0 };
    for (simd, table) in tables() {
        let (mut w, mut n) = ([1.0f32; 35], [0.0f32; 35]);
        let mut z: [f32; 35] = std::array::from_fn(|i| [0.25, -0.25, 0.250_000_03, -0.250_000_03][i % 4]);
        step_by(table, rule, &mut w, [&mut z, &mut n], &[0.0; 35][..]);
        for (i, w) in w.iter().enumerate() {
            assert_eq!(w.to_bits() == 0, i % 4 < 2, "{simd}, lane {i}: {w}");
        }
    }
}

#[test]
fn paths_are_named_and_refused_by_name() {
    assert_eq!("avx512".parse::<Simd>().unwrap(), Simd::Avx512);
    assert!("sse9".parse::<Simd>().unwrap_err().to_string().contains("avx2"));
    choose(chosen()).unwrap();
    if let Some(other) = Simd::ALL.into_iter().find(|&s| s.supported() && s != chosen()) {
        assert!(choose(other).unwrap_err().to_string().contains("in use"));
    }
}

#[test]
#[should_panic(expected = "lengths differ")]
fn pieces_of_another_length_are_refused() {
    fold(&mut [0.0; 3], &[(&[1.0f32; 2][..]).into()], 1.0);
}
