//! cosine and DoRA: gradients against finite differences, and what the two are made of.
use weightnorm::{Activation, Axis, Eps, Error, cpu};

use crate::common::cosine::cosine_terms;
use crate::common::dora::dora_terms;
use crate::common::{abs, compare};

fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / 2f64.powi(52) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Each element of the gradient of Σ dy·f(v) by v: central differences of the fourth order.
fn differences(v: &[f64], dy: &[f64], f: &dyn Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let h = 1e-3;
    let at = |i: usize, h: f64| -> f64 {
        let mut changed = v.to_vec();
        changed[i] += h;
        f(&changed).iter().zip(dy).map(|(y, dy)| y * dy).sum()
    };
    let first = |i, h: f64| at(i, h) - at(i, -h);
    (0..v.len()).map(|i| (8.0 * first(i, h) - first(i, 2.0 * h)) / (12.0 * h)).collect()
}

#[track_caller]
fn near(what: &str, got: &[f64], expected: &[f64], terms: &[f64]) {
    let largest = terms.iter().fold(0f64, |most, &term| most.max(term));
    if let Err(message) = compare(got, expected, None, |_| 1e-8 * largest) {
        panic!("{what}: {message}");
    }
}

#[test]
fn cosine_backward_is_the_difference_quotient() {
    let (rows, outs, ins) = (3, 4, 5);
    let (x, v, g, dy) = (numbers(1, rows * ins), numbers(2, outs * ins), numbers(3, outs), numbers(4, rows * outs));
    for eps in [Eps::None, Eps::InsideSqrt(0.1), Eps::Clamp(1e-12), Eps::After(0.1)] {
        let y = |x: &[f64], v: &[f64], g: &[f64]| cpu::cosine(x, &[rows, ins], v, &[outs, ins], Some(g), eps).unwrap();
        let cpu::CosineGradients { dx, dv, dg } =
            cpu::cosine_backward(&x, &[rows, ins], &v, &[outs, ins], Some(&g), eps, &dy).unwrap();
        let terms = cosine_terms((&x, &[rows, ins]), (&v, &[outs, ins]), Some(&g), eps, &dy);
        near("dx", &dx, &differences(&x, &dy, &|x| y(x, &v, &g)), &terms[1]);
        near("dv", &dv, &differences(&v, &dy, &|v| y(&x, v, &g)), &terms[2]);
        near("dg", &dg, &differences(&g, &dy, &|g| y(&x, &v, g)), &terms[3]);
    }
}

#[test]
fn cosine_is_within_one_and_of_no_scale() {
    let (x, v) = (numbers(1, 15), numbers(2, 20));
    let y = cpu::cosine(&x, &[3, 5], &v, &[4, 5], None, Eps::None).unwrap();
    assert!(y.iter().all(|y| y.abs() <= 1.0 + 1e-15));
    let scaled: Vec<f64> = x.iter().map(|x| x * 1024.0).collect();
    assert_eq!(cpu::cosine(&scaled, &[3, 5], &v, &[4, 5], None, Eps::None).unwrap(), y);
    let with_itself = cpu::cosine(&x, &[3, 5], &x, &[3, 5], None, Eps::None).unwrap();
    assert!((0..3).all(|i| (with_itself[4 * i] - 1.0).abs() < 1e-15));
    let zero = cpu::cosine(&[0.0; 5], &[1, 5], &v, &[4, 5], None, Eps::default()).unwrap();
    assert_eq!(zero, [0.0; 4]);
    let wrong = cpu::cosine(&x, &[3, 5], &v, &[5, 4], None, Eps::None);
    assert!(matches!(wrong, Err(Error::Argument(_))), "{wrong:?}");
}

const SHAPE: [usize; 2] = [4, 6];
const RANK: usize = 2;

/// W0, A, B, m.
fn adapter() -> [Vec<f64>; 4] {
    [numbers(1, 24), numbers(2, 12), numbers(3, 8), numbers(4, 4)]
}

fn weight([base, a, b, magnitude]: [&[f64]; 4], eps: Eps) -> cpu::DoraWeight<'_> {
    cpu::DoraWeight { base, a, b, magnitude, shape: SHAPE, rank: RANK, scaling: 0.75, eps }
}

#[test]
fn dora_backward_through_the_norms_is_the_difference_quotient() {
    let [base, a, b, m] = adapter();
    let (x, bias, dy) = (numbers(5, 18), numbers(6, 4), numbers(7, 12));
    for eps in [Eps::None, Eps::InsideSqrt(0.1), Eps::Clamp(1e-12), Eps::After(0.1)] {
        let y = |x: &[f64], a: &[f64], b: &[f64], m: &[f64], bias: &[f64]| {
            cpu::dora(x, &[3, 6], &weight([&base, a, b, m], eps), Some(bias)).unwrap()
        };
        let of = weight([&base, &a, &b, &m], eps);
        let got = cpu::dora_backward(&x, &[3, 6], &of, &dy, true).unwrap();
        let terms = dora_terms((&x, &[3, 6]), &of, Some(&bias), &dy, true).gradients;
        near("dx", &got.dx, &differences(&x, &dy, &|x| y(x, &a, &b, &m, &bias)), &terms.dx);
        near("da", &got.da, &differences(&a, &dy, &|a| y(&x, a, &b, &m, &bias)), &terms.da);
        near("db", &got.db, &differences(&b, &dy, &|b| y(&x, &a, b, &m, &bias)), &terms.db);
        near("dm", &got.dmagnitude, &differences(&m, &dy, &|m| y(&x, &a, &b, m, &bias)), &terms.dmagnitude);
        near("dbias", &got.dbias, &differences(&bias, &dy, &|bias| y(&x, &a, &b, &m, bias)), &terms.dbias);
    }
}

/// The norm is that of the adapter before it is changed.
#[test]
fn dora_backward_with_a_constant_norm_is_the_difference_quotient() {
    let [base, a, b, m] = adapter();
    let (x, dy) = (numbers(5, 18), numbers(7, 12));
    let of = weight([&base, &a, &b, &m], Eps::None);
    let norms = cpu::dora_norms(&of).unwrap();
    let y = |a: &[f64], b: &[f64]| {
        // m/n of the changed weight times its own norm over the kept one.
        let changed = weight([&base, a, b, &m], Eps::None);
        let own = cpu::dora_norms(&changed).unwrap();
        let y = cpu::dora(&x, &[3, 6], &changed, None).unwrap();
        y.iter().enumerate().map(|(i, y)| y * own[i % 4] / norms[i % 4]).collect::<Vec<_>>()
    };
    let got = cpu::dora_backward(&x, &[3, 6], &of, &dy, false).unwrap();
    let terms = dora_terms((&x, &[3, 6]), &of, None, &dy, false).gradients;
    near("da", &got.da, &differences(&a, &dy, &|a| y(a, &b)), &terms.da);
    near("db", &got.db, &differences(&b, &dy, &|b| y(&a, b)), &terms.db);
    let through = cpu::dora_backward(&x, &[3, 6], &of, &dy, true).unwrap();
    assert!(compare(&got.da, &through.da, None, |i| 1e-6 * terms.da[i]).is_err(), "the two differ");
    assert_eq!((got.dx, got.dmagnitude), (through.dx, through.dmagnitude));
}

#[test]
fn dora_is_the_layer_of_its_merged_weight() {
    let [base, a, b, m] = adapter();
    let x = numbers(5, 18);
    let of = weight([&base, &a, &b, &m], Eps::None);
    let w = cpu::dora_merge(&of).unwrap();
    let y = cpu::linear(&x, &[3, 6], &w, &SHAPE, None, Activation::None).unwrap();
    assert_eq!(cpu::dora(&x, &[3, 6], &of, None).unwrap(), y);
    // Rows of w are as long as m says.
    let lengths = cpu::row_norms(&w, &SHAPE, Axis::Kept(0), Eps::None).unwrap();
    assert!(compare(&lengths, &abs(&m), None, |_| 1e-14).is_ok());
    // Without an update it is weight norm of W0.
    let plain = weight([&base, &a, &[0.0; 8], &m], Eps::None);
    let normed = cpu::normalize(&base, &SHAPE, Some(&m), Axis::Kept(0), Eps::None).unwrap();
    assert_eq!(cpu::dora_merge(&plain).unwrap(), normed);
    let short = weight([&base, &a[1..], &b, &m], Eps::None);
    assert!(matches!(cpu::dora_norms(&short), Err(Error::Argument(_))));
    let infinite = cpu::DoraWeight { scaling: f64::INFINITY, ..of };
    assert!(matches!(cpu::dora_norms(&infinite), Err(Error::Argument(_))));
}
