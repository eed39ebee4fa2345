//! The comparer and the bounds themselves: a comparison must be able to fail.
use weightnorm::{Activation, Axis, DType, Eps, cpu};

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

/// The gradients of a layer in plain f32 loops, in the fused form, with the last `lost` rows of the batch left out.
fn f32_gradients(x: &[f32], v: &[f32], g: &[f32], dy: &[f32], [b, n, k]: [usize; 3], lost: usize) -> [Vec<f32>; 4] {
    let (mut dx, mut dv, mut dg, mut dbias) = (vec![0f32; b * k], vec![0f32; n * k], vec![0f32; n], vec![0f32; n]);
    for j in 0..n {
        let row = &v[j * k..][..k];
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        let scale = g[j] / norm;
        for b in 0..b - lost {
            let dy = dy[b * n + j];
            let u = row.iter().zip(&x[b * k..]).map(|(v, x)| v * x).sum::<f32>() / norm;
            dg[j] += dy * u;
            dbias[j] += dy;
            for i in 0..k {
                dv[j * k + i] += dy * x[b * k + i];
                dx[b * k + i] += dy * scale * row[i];
            }
        }
        for i in 0..k {
            dv[j * k + i] = scale * (dv[j * k + i] - dg[j] * (row[i] / norm));
        }
    }
    [dx, dv, dg, dbias]
}

/// A correct f32 computation of every gradient is within its bound, and a row of the batch that got lost is not; nor
/// is a dv without its correction.
#[test]
fn gradient_bounds_admit_f32_arithmetic_and_catch_a_lost_row() {
    let [b, n, k] = [33, 5, 65];
    let numbers = |count: usize, step: usize, around: f32| -> Vec<f32> {
        (0..count).map(|i| ((i * step % 101) as f32 - 50.0) / 64.0 + around).collect()
    };
    let (x, v) = (numbers(b * k, 37, 0.3), numbers(n * k, 53, 0.1));
    let (g, dy) = (numbers(n, 71, 0.5), numbers(b * n, 29, 0.2));
    let [x64, v64, g64, dy64] = [&x, &v, &g, &dy].map(|values| cpu::widen(values));
    let (axis, eps) = (Axis::Kept(0), Eps::None);
    let weight = cpu::Weight::Normalized { v: &v64, g: Some(&g64), axis, eps };
    let expected = cpu::linear_backward(&x64, &[b, k], weight, &[n, k], &dy64).unwrap();
    let terms = linear_terms(&x64, weight, &[n, k], &dy64);
    let (expected_dg, terms_dg) = (expected.dg.clone().unwrap(), terms.dg.clone().unwrap());

    let check = |[dx, dv, dg, dbias]: &[Vec<f32>; 4]| {
        let dtype = DType::F32;
        let compare = |got: &[f32], expected: &[f64], bound: &dyn Fn(usize) -> f64| {
            compare(&cpu::widen(got), expected, Some(dtype), bound)
        };
        [
            compare(dx, &expected.dx, &|i| dx_bound(k, n, terms.dx[i], expected.dx[i], dtype)),
            compare(dv, &expected.dv, &|i| dv_bound(k, k + b, terms.dv[i], expected.dv[i], dtype)),
            compare(dg, &expected_dg, &|j| dg_bound(k, k + b, terms_dg[j], expected_dg[j])),
            compare(dbias, &expected.dbias, &|j| sum_bound(b, terms.dbias[j], expected.dbias[j], dtype)),
        ]
    };
    for result in check(&f32_gradients(&x, &v, &g, &dy, [b, n, k], 0)) {
        result.unwrap();
    }
    for result in check(&f32_gradients(&x, &v, &g, &dy, [b, n, k], 1)) {
        result.unwrap_err();
    }
    let dw = cpu::linear_backward(&x64, &[b, k], cpu::Weight::Plain(&v64), &[n, k], &dy64).unwrap().dv;
    let norms = cpu::row_norms(&v64, &[n, k], axis, eps).unwrap();
    let uncorrected: Vec<f32> = (0..n * k).map(|at| (g64[at / k] / norms[at / k] * dw[at]) as f32).collect();
    let mut gradients = f32_gradients(&x, &v, &g, &dy, [b, n, k], 0);
    gradients[1] = uncorrected;
    check(&gradients)[1].as_ref().unwrap_err();
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
                Activation::Elu if y >= 0.0 => y,
                Activation::Elu if y > -0.25 => (1..8).rev().fold(0.0, |sum, n| (sum + 1.0) * y / n as f32),
                Activation::Elu => y.exp() - 1.0,
                Activation::Gelu => {
                    let beyond = normal_beyond(y.abs());
                    y * if y < 0.0 { beyond } else { 1.0 - beyond }
                }
                Activation::GeluTanh => {
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

/// As `product/activation.wgsl`.
fn normal_beyond(s: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.35 * s);
    let polynomial =
        [0.13961871, 0.13991229, 0.11944491, 0.10711459, -0.02704661, 0.165051, -0.26096123, 0.14654583, -0.02967952];
    (-0.5 * s * s).exp() * (t * polynomial.into_iter().rev().fold(0.0, |sum, c| c + t * sum))
}

pub const ACTIVATIONS: [Activation; 8] = [
    Activation::None,
    Activation::Relu,
    Activation::LeakyRelu(0.01),
    Activation::Elu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
];
