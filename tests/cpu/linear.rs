//! linear and its activations.
use proptest::prelude::*;
use weightnorm::{Activation, Axis, Eps, cpu};

use crate::bounds::ACTIVATIONS;
use crate::common::compare;

fn plain(x: &[f64], x_shape: &[usize], w: &[f64], w_shape: &[usize]) -> Vec<f64> {
    cpu::linear(x, x_shape, w, w_shape, None, Activation::None).unwrap()
}

#[test]
fn linear_by_hand() {
    let x = [1.0, 2.0, 3.0, -1.0, 0.0, 2.0];
    let w = [1.0, 0.0, -1.0, 2.0, 2.0, 2.0];
    assert_eq!(plain(&x, &[2, 3], &w, &[2, 3]), [-2.0, 12.0, -3.0, 2.0]);
    let y = cpu::linear(&x, &[2, 3], &w, &[2, 3], Some(&[0.5, -10.0]), Activation::Relu).unwrap();
    assert_eq!(y, [0.0, 2.0, 0.0, 0.0]);
}

/// Everything before the last axis of x is batch, also nothing at all.
#[test]
fn linear_takes_any_batch_shape() {
    let x: Vec<f64> = (0..24).map(f64::from).collect();
    let w = [1.0, 1.0, 0.0, -1.0];
    let y = plain(&x, &[12, 2], &w, &[2, 2]);
    assert_eq!(plain(&x, &[2, 3, 2, 2], &w, &[2, 2]), y);
    assert_eq!(plain(&x[..2], &[2], &w, &[2, 2]), y[..2]);
}

#[test]
fn linear_of_empty_tensors() {
    let bias = [1.5, -2.0];
    let y = cpu::linear(&[], &[3, 0], &[], &[2, 0], Some(&bias), Activation::Relu).unwrap();
    assert_eq!(y, [1.5, 0.0, 1.5, 0.0, 1.5, 0.0]);
    assert_eq!(plain(&[], &[3, 0], &[], &[2, 0]), [0.0; 6]);
    assert!(plain(&[], &[0, 4], &[1.0; 8], &[2, 4]).is_empty());
    assert!(plain(&[1.0; 8], &[2, 4], &[], &[0, 4]).is_empty());
}

#[test]
fn linear_activations_at_known_points() {
    let at = |y: f64, activation, expected: f64| {
        compare(&[cpu::activate(y, activation)], &[expected], None, |_| 1e-15 + 1e-14 * expected.abs())
            .unwrap_or_else(|e| panic!("{activation:?} of {y}: {e}"));
    };
    for y in [-300.0, -2.0, -0.0, 0.0, 0.5, 3.0, 300.0] {
        at(y, Activation::None, y);
        at(y, Activation::Relu, if y > 0.0 { y } else { 0.0 });
        at(y, Activation::LeakyRelu(0.25), if y > 0.0 { y } else { y / 4.0 });
        at(y, Activation::Tanh, (1.0 - (-2.0 * y).exp()) / (1.0 + (-2.0 * y).exp().min(1e300)));
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y.powi(3));
        at(y, Activation::GeluTanh, y / 2.0 * (1.0 + inner.tanh()));
        at(y, Activation::Elu, if y > 0.0 { y } else { y.exp() - 1.0 });
        at(y, Activation::Silu, y / 2.0 * (1.0 + (y / 2.0).tanh()));
    }
    let gelu = [
        (0.0, 0.0),
        (0.5, 0.34573123063700656),
        (1.0, 0.8413447460685429),
        (-2.0, -0.04550026389635841),
        (-3.0, -0.004049694094890284),
        (-10.0, -7.619853024160527e-23),
        (300.0, 300.0),
    ];
    for (y, expected) in gelu {
        at(y, Activation::Gelu, expected);
    }
    // Far out the tail is kept, where the form with 1 + tanh would cancel to 0.
    assert!(cpu::activate(-7.0, Activation::GeluTanh) < 0.0);
    assert!(cpu::activate(-100.0, Activation::Silu) < 0.0);
}

#[test]
fn derivatives_of_activations_are_differences() {
    for activation in ACTIVATIONS {
        for y in [-30.0, -7.0, -2.1, -1.9, -0.3, -0.01, 0.01, 0.4, 1.99, 2.01, 9.0, 40.0] {
            let step = 1e-5;
            let at = |y: f64| cpu::activate(y, activation);
            let difference = (at(y + step) - at(y - step)) / (2.0 * step);
            let got = cpu::activate_backward(y, activation);
            assert!((got - difference).abs() < 1e-9, "{activation:?} of {y}: {got}, {difference}");
        }
        assert!(activation == Activation::None || cpu::activate_backward(f64::NAN, activation).is_nan());
        assert!(cpu::activate_backward(-800.0, activation).is_finite());
        assert_eq!(cpu::activate(0.0, activation), 0.0);
    }
}

fn vector(len: usize) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-2f64..2.0, len)
}

/// (batch, out, in), x, v, g, bias
#[derive(Debug, Clone)]
struct Case {
    size: (usize, usize, usize),
    x: Vec<f64>,
    v: Vec<f64>,
    g: Vec<f64>,
    bias: Vec<f64>,
}

fn case() -> impl Strategy<Value = Case> {
    (1usize..6, 1usize..7, 1usize..20).prop_flat_map(|size| {
        let (b, n, k) = size;
        (vector(b * k), vector(n * k), vector(n), vector(n)).prop_map(move |(x, v, g, bias)| Case {
            size,
            x,
            v,
            g,
            bias,
        })
    })
}

impl Case {
    fn y(&self) -> Vec<f64> {
        let (b, n, k) = self.size;
        let w = cpu::normalize(&self.v, &[n, k], Some(&self.g), Axis::Kept(0), Eps::default()).unwrap();
        cpu::linear(&self.x, &[b, k], &w, &[n, k], Some(&self.bias), Activation::None).unwrap()
    }

    /// Unit rows times 2√K·max|x| bound every sum of this test.
    fn assert_y(&self, expected: &[f64]) {
        let bound = 1e-14 * (self.size.2 as f64 + 8.0) * 8.0;
        compare(&self.y(), expected, None, |_| bound).unwrap();
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// The scale as an epilogue, g·((x·v)/n) + bias, summed backwards.
    #[test]
    fn linear_equals_the_naive_loop(case in case()) {
        let (batch, n, k) = case.size;
        let mut expected = vec![0.0; batch * n];
        for j in 0..n {
            let norm = (0..k).fold(0f64, |norm, i| norm.hypot(case.v[j * k + i])).max(1e-12);
            for b in 0..batch {
                let dot = (0..k).rev().fold(0.0, |sum, i| sum + case.x[b * k + i] * case.v[j * k + i]);
                expected[b * n + j] = case.g[j] * (dot / norm) + case.bias[j];
            }
        }
        case.assert_y(&expected);
    }

    #[test]
    fn linear_ignores_the_scale_of_v(case in case(), c in 1e-3f64..1e20) {
        let y = case.y();
        let mut scaled = case.clone();
        scaled.v.iter_mut().for_each(|v| *v *= c);
        scaled.assert_y(&y);
    }

    #[test]
    fn linear_scales_with_g(case in case(), c in -2f64..2.0) {
        let n = case.size.1;
        let expected: Vec<_> =
            case.y().iter().enumerate().map(|(i, y)| c * (y - case.bias[i % n]) + case.bias[i % n]).collect();
        let mut scaled = case.clone();
        scaled.g.iter_mut().for_each(|g| *g *= c);
        scaled.assert_y(&expected);
    }

    /// Rows of v, with their g and bias, in reverse order: columns of y in reverse order.
    #[test]
    fn linear_permutes_with_the_rows(case in case()) {
        let (_, n, k) = case.size;
        let mut permuted = case.clone();
        permuted.v = case.v.chunks_exact(k).rev().flatten().copied().collect();
        permuted.g.reverse();
        permuted.bias.reverse();
        let expected: Vec<_> = case.y().chunks_exact(n).flat_map(|row| row.iter().rev().copied()).collect();
        prop_assert_eq!(permuted.y(), expected);
    }
}
