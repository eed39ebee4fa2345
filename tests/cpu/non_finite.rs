//! NaN and infinity stay in their row and are hidden by nothing.
use weightnorm::{Activation, Axis, Eps, cpu};

const POLICIES: [Eps; 4] = [Eps::None, Eps::InsideSqrt(1e-12), Eps::Clamp(1e-12), Eps::After(1e-3)];
const INF: f64 = f64::INFINITY;

#[test]
fn row_norms_pass_nan_and_infinity_under_every_policy() {
    let v = [1.0, f64::NAN, -INF, 1.0, 3.0, 4.0, INF, f64::NAN];
    for eps in POLICIES {
        let norms = cpu::row_norms(&v, &[4, 2], Axis::Kept(0), eps).unwrap();
        assert!(norms[0].is_nan(), "{eps:?}");
        assert_eq!(norms[1], INF, "{eps:?}");
        assert!((norms[2] - 5.0).abs() < 2e-3, "{eps:?}");
        assert!(norms[3].is_nan(), "{eps:?}");
    }
}

/// A clamp of 2^126, far above every finite norm here, does not hide them either.
#[test]
fn row_norms_clamp_does_not_hide_nan() {
    let clamp = Eps::Clamp(2f32.powi(126));
    let norms = cpu::row_norms(&[f64::NAN, INF, 1.0], &[3, 1], Axis::Kept(0), clamp).unwrap();
    assert!(norms[0].is_nan());
    assert_eq!(norms[1..], [INF, 2f64.powi(126)]);
}

#[test]
fn normalize_keeps_nan_and_infinity_in_their_row() {
    let v = [1.0, f64::NAN, -INF, 1.0, 3.0, 4.0];
    for eps in POLICIES {
        let w = cpu::normalize(&v, &[3, 2], Some(&[2.0; 3]), Axis::Kept(0), eps).unwrap();
        assert!(w[0].is_nan() && w[1].is_nan(), "{eps:?}");
        assert!(w[2].is_nan() && w[3] == 0.0, "{eps:?}");
        assert!(w[4..].iter().all(|w| w.is_finite()), "{eps:?}");

        // Kept axis 1: the columns (1, -inf, 3) and (NaN, 1, 4).
        let w = cpu::normalize(&v, &[3, 2], None, Axis::Kept(1), eps).unwrap();
        assert!(w[0] == 0.0 && w[2].is_nan() && w[4] == 0.0, "{eps:?}");
        assert!([w[1], w[3], w[5]].iter().all(|w| w.is_nan()), "{eps:?}");
    }
}

#[test]
fn split_passes_nan_and_infinity() {
    let (v, g) = cpu::decompose(&[f64::NAN, 1.0, INF, 1.0], &[2, 2], Axis::Kept(0), Eps::default()).unwrap();
    assert!(v[0].is_nan() && v[1..] == [1.0, INF, 1.0]);
    assert!(g[0].is_nan() && g[1] == INF);
}

#[test]
fn linear_keeps_nan_in_its_row_and_column() {
    let mut x = vec![1.0; 3 * 4];
    let mut w = vec![1.0; 5 * 4];
    x[4 + 2] = f64::NAN; // row 1 of x
    w[3 * 4 + 1] = f64::NAN; // row 3 of w
    let y = cpu::linear(&x, &[3, 4], &w, &[5, 4], None, Activation::Relu).unwrap();
    for (at, y) in y.iter().enumerate() {
        let (b, j) = (at / 5, at % 5);
        assert_eq!(y.is_nan(), b == 1 || j == 3, "y[{b},{j}] = {y}");
    }
}

#[test]
fn linear_activations_pass_nan() {
    for activation in [
        Activation::None,
        Activation::Relu,
        Activation::LeakyRelu(0.1),
        Activation::Elu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
    ] {
        assert!(cpu::activate(f64::NAN, activation).is_nan(), "{activation:?}");
        let top = if activation == Activation::Tanh { 1.0 } else { INF };
        assert_eq!(cpu::activate(INF, activation), top, "{activation:?}");
    }
    assert_eq!(cpu::activate(-INF, Activation::Relu), 0.0);
    assert_eq!(cpu::activate(-INF, Activation::LeakyRelu(0.1)), -INF);
    assert_eq!(cpu::activate(-INF, Activation::Tanh), -1.0);
    assert_eq!(cpu::activate(-INF, Activation::Elu), -1.0);
    assert!(cpu::activate(-INF, Activation::Gelu).is_nan());
    assert!(cpu::activate(-INF, Activation::GeluTanh).is_nan());
    assert!(cpu::activate(-INF, Activation::Silu).is_nan());
}
