//! The logistic function and its loss in + − × ÷ only.
//!
//! The C library's `exp` and `log` differ in the last bit between libraries and CPUs; these do not, so that training
//! gives the same bits wherever it runs. All work is done in fp64; results agree with a correctly rounded one to about
//! 1e-15, far below what fp32 can show.

/// ln 2 cut in two, so that `k × LN2_HIGH` is exact for every exponent `k` that occurs.
const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// 1.5 × 2^52: adding and subtracting it rounds to the nearest integer.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// e to the power of `x`. 0 below −708 (no subnormal results), infinity above 709; NaN for NaN.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x < -708.0 {
        return 0.0;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    let exponent = (x * std::f64::consts::LOG2_E + ROUND) - ROUND;
    let rest = (x - exponent * LN2_HIGH) - exponent * LN2_LOW;
    // Taylor's series, |rest| ≤ ln 2 / 2: the first term left out is below 1e-17.
    let mut sum = 1.0;
    for divisor in (1..=13u32).rev() {
        sum = 1.0 + sum * (rest / f64::from(divisor));
    }
    sum * f64::from_bits(((exponent as i64 + 1023) as u64) << 52)
}

/// ln(1 + x) for `x` in [0, 1].
fn ln_1p(x: f64) -> f64 {
    // ln(1 + x) = 2 artanh(x / (2 + x)), whose argument is at most 1/3: 18 terms of the series leave less than 1e-18.
    let ratio = x / (2.0 + x);
    let square = ratio * ratio;
    let mut sum = 0.0;
    for term in (0..18u32).rev() {
        sum = sum * square + 1.0 / f64::from(2 * term + 1);
    }
    2.0 * ratio * sum
}

/// 1 / (1 + e^−x), without overflow at either end.
pub fn sigmoid(x: f64) -> f64 {
    let small = exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

/// The logistic loss −ln P(label | score) of a label 0 or 1, in nats; finite for every finite score.
pub fn loss(score: f64, label: f64) -> f64 {
    score.max(0.0) - score * label + ln_1p(exp(-score.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points from −700 to 700, dense around 0.
    fn points() -> impl Iterator<Item = f64> {
        let fine = (-40_000..=40_000).map(|i| f64::from(i) * 1.037e-3);
        let coarse = (-700..=700).map(|i| f64::from(i) * 0.999_7);
        fine.chain(coarse).chain([0.0, -0.0, 1e-300, -1e-20])
    }

    #[test]
    fn exp_agrees_with_the_library() {
        for x in points() {
            let expected = x.exp();
            assert!((exp(x) - expected).abs() <= 4e-15 * expected, "exp({x}) = {} not {expected}", exp(x));
        }
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(1e9), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_accurate_symmetric_and_bounded() {
        for x in points() {
            let expected = if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) };
            assert!((sigmoid(x) - expected).abs() <= 6e-15 * expected, "sigmoid({x})");
            assert!((sigmoid(x) + sigmoid(-x) - 1.0).abs() < 1e-15);
        }
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid(f64::INFINITY), 1.0);
        assert_eq!(sigmoid(f64::NEG_INFINITY), 0.0);
        assert!(sigmoid(f64::NAN).is_nan());
    }

    #[test]
    fn loss_agrees_with_the_library_and_stays_finite() {
        for x in points() {
            let expected = if x >= 0.0 { (-x).exp().ln_1p() } else { -x + x.exp().ln_1p() };
            assert!((loss(x, 1.0) - expected).abs() <= 6e-15 * expected.max(1e-3), "loss({x}, 1)");
            assert_eq!(loss(x, 1.0).to_bits(), loss(-x, 0.0).to_bits());
        }
        assert!((loss(0.0, 1.0) - std::f64::consts::LN_2).abs() < 1e-15);
        assert_eq!(loss(-1e30, 1.0), 1e30);
    }

    /// Bits recorded once; another CPU or compiler must give the same.
    #[test]
    fn bits_are_fixed() {
        let all = points().fold(0u64, |hash, x| {
            let bits = exp(x).to_bits()
                ^ sigmoid(x).to_bits().rotate_left(21)
                ^ loss(x, 1.0).to_bits().rotate_left(42);
            crate::types::mix64(hash ^ bits)
        });
        assert_eq!(all, 0x1249_9a4f_0c06_b92d, "{all:#x}");
    }
}
