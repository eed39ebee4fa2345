//! row_norms, normalize and split against closed forms, and against a naive loop written another way.
use proptest::prelude::*;
use weightnorm::{Axis, Eps, cpu};

use crate::common::compare;

const POLICIES: [Eps; 4] = [Eps::None, Eps::InsideSqrt(1e-12), Eps::Clamp(1e-12), Eps::After(1e-3)];

/// The naive form: coordinates by division with strides, the norm by `hypot`.
fn naive(v: &[f64], shape: &[usize], g: Option<&[f64]>, axis: Axis, eps: Eps) -> (Vec<f64>, Vec<f64>) {
    let row = |at: usize| match axis {
        Axis::Whole => 0,
        Axis::Kept(k) => {
            let stride: usize = shape.iter().skip(k + 1).product();
            (at / stride) % shape[k]
        }
    };
    let mut norms = vec![0f64; if let Axis::Kept(k) = axis { shape[k] } else { 1 }];
    for (at, x) in v.iter().enumerate() {
        norms[row(at)] = norms[row(at)].hypot(*x);
    }
    for n in &mut norms {
        *n = match eps {
            Eps::None => *n,
            Eps::InsideSqrt(e) => n.hypot(f64::from(e).sqrt()),
            Eps::Clamp(e) => n.max(e.into()), // finite inputs only
            Eps::After(e) => *n + f64::from(e),
        };
    }
    let w = v.iter().enumerate().map(|(at, x)| g.map_or(1.0, |g| g[row(at)]) * (x / norms[row(at)])).collect();
    (norms, w)
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64]) {
    compare(got, expected, None, |i| 1e-13 * expected[i].abs()).unwrap();
}

#[test]
fn row_norms_of_pythagorean_rows() {
    let v = [3.0, 4.0, 0.0, -5.0, 8.0, -15.0];
    assert_eq!(cpu::row_norms(&v, &[3, 2], Axis::Kept(0), Eps::None).unwrap(), [5.0, 5.0, 17.0]);
    assert_eq!(cpu::row_norms(&[2.0, -3.0, 6.0], &[3], Axis::Whole, Eps::None).unwrap(), [7.0]);
    assert_eq!(cpu::row_norms(&[2.0, -3.0, 6.0], &[1, 3], Axis::Kept(1), Eps::None).unwrap(), [2.0, 3.0, 6.0]);
    assert_eq!(cpu::row_norms(&[-2.0], &[], Axis::Whole, Eps::None).unwrap(), [2.0]);
}

#[test]
fn row_norms_of_each_policy() {
    let norm = |eps| cpu::row_norms(&[3.0, 4.0], &[1, 2], Axis::Kept(0), eps).unwrap()[0];
    assert_eq!(norm(Eps::None), 5.0);
    assert_eq!(norm(Eps::InsideSqrt(144.0)), 13.0);
    assert_eq!(norm(Eps::Clamp(4.0)), 5.0);
    assert_eq!(norm(Eps::Clamp(6.0)), 6.0);
    assert_eq!(norm(Eps::After(0.5)), 5.5);
}

#[test]
fn row_norms_of_a_zero_row_are_e() {
    let norm = |eps| cpu::row_norms(&[0.0, -0.0], &[1, 2], Axis::Kept(0), eps).unwrap()[0];
    let e = f64::from(1e-12f32);
    assert_eq!(norm(Eps::None), 0.0);
    assert_eq!(norm(Eps::InsideSqrt(1e-12)), e.sqrt());
    assert_eq!(norm(Eps::Clamp(1e-12)), e);
    assert_eq!(norm(Eps::After(1e-12)), e);
}

/// Sums of squares in f64 hold the whole range of f32, from its least subnormal on.
#[test]
fn row_norms_over_the_whole_range_of_f32() {
    for scale in [f32::MAX, 3e25, 1.0, 3e-25, f32::MIN_POSITIVE, f32::from_bits(1)].map(f64::from) {
        let v = [3.0 * scale, 4.0 * scale];
        assert_close(&cpu::row_norms(&v, &[1, 2], Axis::Kept(0), Eps::None).unwrap(), &[5.0 * scale]);
        assert_close(&cpu::normalize(&v, &[1, 2], None, Axis::Kept(0), Eps::None).unwrap(), &[0.6, 0.8]);
    }
}

#[test]
fn row_norms_of_empty_tensors() {
    let norms = |shape: &[usize], axis, eps| cpu::row_norms(&[], shape, axis, eps).unwrap();
    assert_eq!(norms(&[5, 0], Axis::Kept(0), Eps::None), [0.0; 5]);
    assert_eq!(norms(&[5, 0], Axis::Kept(0), Eps::Clamp(2.0)), [2.0; 5]);
    assert_eq!(norms(&[2, 3, 0], Axis::Kept(1), Eps::After(2.0)), [2.0; 3]);
    assert_eq!(norms(&[0], Axis::Whole, Eps::InsideSqrt(4.0)), [2.0]);
    assert!(norms(&[0, 5], Axis::Kept(0), Eps::None).is_empty());
    assert!(norms(&[5, 0], Axis::Kept(1), Eps::None).is_empty());
}

#[test]
fn normalize_gives_unit_rows_without_g() {
    let v = [3.0, 4.0, 5.0, -12.0, 8.0, 15.0];
    let w = cpu::normalize(&v, &[3, 2], None, Axis::Kept(0), Eps::None).unwrap();
    assert_eq!(w, [0.6, 0.8, 5.0 / 13.0, -12.0 / 13.0, 8.0 / 17.0, 15.0 / 17.0]);
    assert_close(&cpu::row_norms(&w, &[3, 2], Axis::Kept(0), Eps::None).unwrap(), &[1.0; 3]);
}

#[test]
fn normalize_with_zero_and_negative_gain() {
    let w = cpu::normalize(&[3.0, 4.0, 3.0, 4.0], &[2, 2], Some(&[0.0, -10.0]), Axis::Kept(0), Eps::None).unwrap();
    assert_eq!(w, [0.0, 0.0, -6.0, -8.0]);
}

#[test]
fn normalize_the_whole_tensor_and_the_columns() {
    let v = [1.0, 3.0, 1.0, 5.0]; // whole: 6; columns: √2, √34
    let whole = cpu::normalize(&v, &[2, 2], Some(&[12.0]), Axis::Whole, Eps::None).unwrap();
    assert_eq!(whole, [2.0, 6.0, 2.0, 10.0]);
    let columns = cpu::normalize(&v, &[2, 2], Some(&[1.0, 34.0]), Axis::Kept(1), Eps::None).unwrap();
    let (a, b) = (2f64.sqrt(), 34f64.sqrt());
    assert_close(&columns, &[1.0 / a, 3.0 * b, 1.0 / a, 5.0 * b]);
}

#[test]
fn normalize_of_a_zero_row() {
    let v = [0.0, 0.0, 3.0, 4.0];
    for eps in POLICIES {
        let w = cpu::normalize(&v, &[2, 2], Some(&[7.0, 5.0]), Axis::Kept(0), eps).unwrap();
        if eps == Eps::None {
            assert!(w[0].is_nan() && w[1].is_nan());
        } else {
            assert_eq!(w[..2], [0.0, 0.0], "{eps:?}");
        }
        let n = 5.0 + if let Eps::After(e) = eps { f64::from(e) } else { 0.0 };
        assert_close(&w[2..], &[15.0 / n, 20.0 / n]);
    }
}

#[test]
fn normalize_of_empty_tensors() {
    for (shape, axis, g) in [
        (&[5, 0][..], Axis::Kept(0), &[1.0; 5][..]),
        (&[5, 0], Axis::Kept(1), &[]),
        (&[0, 5], Axis::Kept(1), &[1.0; 5]),
        (&[0], Axis::Whole, &[1.0]),
    ] {
        assert!(cpu::normalize(&[], shape, Some(g), axis, Eps::None).unwrap().is_empty());
        assert!(cpu::normalize(&[], shape, None, axis, Eps::None).unwrap().is_empty());
    }
}

#[test]
fn split_gives_back_a_zero_row_under_any_policy_but_none() {
    let w = [0.0, 0.0, 3.0, 4.0];
    for eps in POLICIES {
        let (v, g) = cpu::decompose(&w, &[2, 2], Axis::Kept(0), eps).unwrap();
        assert_eq!(v, w);
        let again = cpu::normalize(&v, &[2, 2], Some(&g), Axis::Kept(0), eps).unwrap();
        if eps == Eps::None {
            assert!(again[..2].iter().all(|w| w.is_nan()));
            assert_close(&again[2..], &w[2..]);
        } else {
            assert_close(&again, &w);
        }
    }
}

/// A tensor of rank 1 to 5, one of its axes or the whole, a policy, and a gain that fits.
#[derive(Debug, Clone)]
struct Case {
    shape: Vec<usize>,
    v: Vec<f64>,
    g: Vec<f64>,
    axis: Axis,
    eps: Eps,
}

fn case() -> impl Strategy<Value = Case> {
    (prop::collection::vec(1usize..6, 1..=5), 0usize..6, 0usize..4).prop_flat_map(|(shape, axis, policy)| {
        let axis = if axis < shape.len() { Axis::Kept(axis) } else { Axis::Whole };
        let norms = if let Axis::Kept(k) = axis { shape[k] } else { 1 };
        let v = prop::collection::vec(0.01f64..10.0, shape.iter().product::<usize>());
        let g = prop::collection::vec(-3.0f64..3.0, norms);
        (Just(shape), v, g).prop_map(move |(shape, mut v, g)| {
            v.iter_mut().skip(1).step_by(2).for_each(|x| *x = -*x);
            Case { shape, v, g, axis, eps: POLICIES[policy] }
        })
    })
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn normalize_equals_the_naive_loop(Case { shape, v, g, axis, eps } in case()) {
        let (norms, w) = naive(&v, &shape, Some(&g), axis, eps);
        assert_close(&cpu::row_norms(&v, &shape, axis, eps).unwrap(), &norms);
        assert_close(&cpu::normalize(&v, &shape, Some(&g), axis, eps).unwrap(), &w);
        let (_, unit) = naive(&v, &shape, None, axis, eps);
        assert_close(&cpu::normalize(&v, &shape, None, axis, eps).unwrap(), &unit);
    }

    #[test]
    fn normalize_undoes_split(Case { shape, v, axis, eps, .. } in case()) {
        let (direction, gain) = cpu::decompose(&v, &shape, axis, eps).unwrap();
        assert_close(&cpu::normalize(&direction, &shape, Some(&gain), axis, eps).unwrap(), &v);
    }

    #[test]
    fn normalize_ignores_the_scale_of_v(Case { shape, v, g, axis, .. } in case(), c in 1e-20f64..1e20) {
        let scaled: Vec<_> = v.iter().map(|v| c * v).collect();
        let w = |v: &[f64]| cpu::normalize(v, &shape, Some(&g), axis, Eps::None).unwrap();
        assert_close(&w(&scaled), &w(&v));
    }

    #[test]
    fn normalize_is_linear_in_g(Case { shape, v, g, axis, eps } in case(), c in -5f64..5.0) {
        let w = |c: f64| {
            let g: Vec<_> = g.iter().map(|g| c * g).collect();
            cpu::normalize(&v, &shape, Some(&g), axis, eps).unwrap()
        };
        let expected: Vec<_> = w(1.0).iter().map(|w| c * w).collect();
        assert_close(&w(c), &expected);
    }

    #[test]
    fn normalize_keeps_to_its_row(Case { shape, v, g, axis, eps } in case()) {
        // Rows that were not touched keep their bits.
        let mut touched = v.clone();
        touched[0] += 100.0;
        let a = cpu::row_norms(&v, &shape, axis, eps).unwrap();
        let b = cpu::row_norms(&touched, &shape, axis, eps).unwrap();
        prop_assert!(b[0] > a[0] || eps != Eps::None);
        prop_assert_eq!(&a[1..], &b[1..]);
        let (_, naive_w) = naive(&touched, &shape, Some(&g), axis, eps);
        assert_close(&cpu::normalize(&touched, &shape, Some(&g), axis, eps).unwrap(), &naive_w);
    }
}
