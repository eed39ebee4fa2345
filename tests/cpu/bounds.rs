//! The comparer and the bounds themselves: a comparison must be able to fail.
use weightnorm::{Activation, DType, cpu};

use crate::common::*;

const LARGEST: f64 = f32::MAX as f64;

fn one(got: f64, expected: f64, dtype: Option<DType>, bound: f64) -> Result<f64, String> {
    compare(&[got], &[expected], dtype, |_| bound)
}

#[test]
fn compare_fails_on_one_perturbed_element() {
    let expected: Vec<f64> = (0..100).map(|i| (i as f64).sin()).collect();
    let bound = |i: usize| weight_bound(16, expected[i], DType::F32);
    let mut got = expected.clone();
    assert_eq!(compare(&got, &expected, Some(DType::F32), bound), Ok(0.0));

    got[37] += 0.5 * bound(37);
    let worst = compare(&got, &expected, Some(DType::F32), bound).unwrap();
    assert!((0.49..0.51).contains(&worst), "{worst}");

    got[37] += 0.6 * bound(37);
    got[90] = f64::NAN;
    let message = compare(&got, &expected, Some(DType::F32), bound).unwrap_err();
    assert!(message.contains("2 of 100") && message.contains("[37]"), "{message}");

    assert!(compare(&got[1..], &expected, None, bound).unwrap_err().contains("99 elements"));
}

#[test]
fn compare_tells_nan_infinity_and_overflow_apart() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for (got, expected, fits) in [
        (nan, nan, true),
        (0.0, nan, false),
        (inf, nan, false),
        (nan, 0.0, false),
        (inf, inf, true),
        (-inf, inf, false),
        (nan, inf, false),
        (LARGEST, inf, false),
        (inf, 1.0, false),
        (inf, 1e39, true),
        (-inf, 1e39, false),
        (LARGEST, LARGEST, true),
        (inf, LARGEST, false),
    ] {
        assert_eq!(one(got, expected, Some(DType::F32), 0.0).is_ok(), fits, "got {got}, expected {expected}");
    }
    // 65,519 rounds to f16's largest, 65,520 to infinity; in f64 nothing rounds to infinity.
    assert!(one(inf, 65519.0, Some(DType::F16), 0.0).is_err());
    assert!(one(inf, 65519.0, Some(DType::F16), 1.0).is_ok());
    assert!(one(inf, 1e300, None, 0.0).is_err());
    // A bound that is no number excuses nothing.
    assert!(one(1.0, 1.0, None, inf).is_err());
    assert!(one(1.0, 1.0, None, nan).is_err());
}

/// Half a step of the type, and no more: the neighbour of 1 and the midpoint to it.
#[test]
fn storage_bound_is_half_a_step() {
    for (dtype, step) in [
        (DType::F32, f64::from(f32::EPSILON)),
        (DType::F16, half::f16::EPSILON.to_f64()),
        (DType::Bf16, half::bf16::EPSILON.to_f64()),
    ] {
        assert_eq!(storage_bound(dtype, 1.0), step / 2.0);
    }
    assert_eq!(storage_bound(DType::F16, 1e-7), half::f16::from_bits(1).to_f64() / 2.0);
}

/// A correct f32 computation is within the bounds, and one missing term of the sum is not.
#[test]
fn bounds_admit_f32_arithmetic_and_catch_a_lost_term() {
    let k = 257;
    let v: Vec<f32> = (0..k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0 + 0.003).collect();
    let x: Vec<f32> = (0..k).map(|i| ((i * 53 % 97) as f32 - 48.0) / 32.0 + 0.001).collect();
    let (v64, x64) = (cpu::widen(&v), cpu::widen(&x));
    let (g, bias) = (1.7f32, -0.4f32);

    let f32_result = |terms: usize| {
        let norm = v[..terms].iter().map(|v| v * v).sum::<f32>().sqrt();
        let dot = v[..terms].iter().zip(&x).map(|(v, x)| v * x).sum::<f32>();
        (norm, g * (dot / norm) + bias)
    };
    let norm = v64.iter().map(|v| v * v).sum::<f64>().sqrt();
    let products: Vec<f64> = v64.iter().zip(&x64).map(|(v, x)| f64::from(g) * (v / norm) * x).collect();
    let y = products.iter().sum::<f64>() + f64::from(bias);
    let sum_abs = products.iter().map(|p| p.abs()).sum();

    let (got_norm, got_y) = f32_result(k);
    one(got_norm.into(), norm, Some(DType::F32), norm_bound(k, norm)).unwrap();
    one(got_y.into(), y, Some(DType::F32), dot_bound(k, sum_abs, y, DType::F32)).unwrap();
    for dtype in [DType::F16, DType::Bf16] {
        let rounded = match dtype {
            DType::F16 => half::f16::from_f32(got_y).to_f64(),
            _ => half::bf16::from_f32(got_y).to_f64(),
        };
        one(rounded, y, Some(dtype), dot_bound(k, sum_abs, y, dtype)).unwrap();
    }
    let (short_norm, short_y) = f32_result(k - 1);
    one(short_norm.into(), norm, Some(DType::F32), norm_bound(k, norm)).unwrap_err();
    one(short_y.into(), y, Some(DType::F32), dot_bound(k, sum_abs, y, DType::F32)).unwrap_err();
}

#[test]
fn activated_bound_admits_f32_activations() {
    for i in -400..400 {
        let y = i as f32 / 4.0;
        for activation in ACTIVATIONS {
            let got = match activation {
                Activation::None => y,
                Activation::Relu => y.max(0.0),
                Activation::LeakyRelu(slope) => y.max(0.0) + slope * y.min(0.0),
                Activation::Gelu => {
                    let z = (std::f32::consts::FRAC_2_PI.sqrt() * (y + 0.044715 * y * y * y)).clamp(-15.0, 15.0);
                    y / 2.0 * (1.0 + z.tanh())
                }
                Activation::Silu => y / (1.0 + (-y).exp()),
                Activation::Tanh => y.tanh(),
            };
            let expected = cpu::activate(y.into(), activation);
            let bound = activated_bound(activation, y.into(), 0.0, DType::F32);
            if let Err(message) = one(got.into(), expected, Some(DType::F32), bound) {
                panic!("{activation:?} of {y}: {message}");
            }
        }
    }
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::None,
    Activation::Relu,
    Activation::LeakyRelu(0.01),
    Activation::Gelu,
    Activation::Silu,
    Activation::Tanh,
];
