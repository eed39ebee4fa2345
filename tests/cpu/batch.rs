//! Data-dependent initialization and mean-only batch normalization.
use proptest::prelude::*;
use weightnorm::{Activation, Axis, Eps, cpu};

use crate::common::compare;

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], bound: f64) {
    compare(got, expected, None, |_| bound).unwrap();
}

/// y of a layer right after its initialization.
fn initialized(x: &[f64], x_shape: &[usize], v: &[f64], v_shape: &[usize]) -> Vec<f64> {
    let (g, bias) = cpu::data_dependent_init(x, x_shape, v, v_shape, Eps::default()).unwrap();
    let w = cpu::normalize(v, v_shape, Some(&g), Axis::Kept(0), Eps::default()).unwrap();
    cpu::linear(x, x_shape, &w, v_shape, Some(&bias), Activation::None).unwrap()
}

#[test]
fn data_dependent_init_by_hand() {
    // t = x·(3, 4)/5: 3, 5, 7 and so μ = 5, σ = √(8/3); the second feature is constant, 2.
    let x = [5.0, 0.0, 3.0, 4.0, 5.0, 5.0];
    let x: Vec<f64> = x.chunks(2).flat_map(|x| [x[0], x[1], 2.0]).collect();
    let v = [3.0, 4.0, 0.0, 0.0, 0.0, 9.0];
    let (g, bias) = cpu::data_dependent_init(&x, &[3, 3], &v, &[2, 3], Eps::None).unwrap();
    let gain = (3f64 / 8.0).sqrt();
    assert_close(&g, &[gain, 1.0], 1e-15);
    assert_close(&bias, &[-5.0 * gain, -2.0], 1e-14);
}

/// Also where the mean of equal numbers is not that number in floating point.
#[test]
fn data_dependent_init_of_constant_features() {
    for batch in 1..20 {
        let x = vec![0.1; batch];
        let (g, bias) = cpu::data_dependent_init(&x, &[batch, 1], &[7.0], &[1, 1], Eps::None).unwrap();
        assert_eq!((g, bias), (vec![1.0], vec![-0.1]));
    }
    let (g, bias) = cpu::data_dependent_init(&[1.0, 2.0], &[2, 1], &[0.0], &[1, 1], Eps::default()).unwrap();
    assert_eq!((g, bias), (vec![1.0], vec![0.0]));
    let (g, _) = cpu::data_dependent_init(&[1.0, 2.0], &[2, 1], &[0.0], &[1, 1], Eps::None).unwrap();
    assert!(g[0].is_nan());
}

/// E[t²] − μ² would have lost every digit: spread 1 around 1e9.
#[test]
fn data_dependent_init_far_from_zero() {
    let x = [1e9 - 1.0, 1e9 + 1.0];
    let (g, bias) = cpu::data_dependent_init(&x, &[2, 1], &[1.0], &[1, 1], Eps::None).unwrap();
    assert_eq!((g, bias), (vec![1.0], vec![-1e9]));
}

#[test]
fn data_dependent_init_keeps_nan_in_its_feature() {
    let x = [1.0, 2.0, f64::NAN, 4.0];
    let (g, bias) = cpu::data_dependent_init(&x, &[2, 2], &[1.0, 0.0, 1.0, 1.0], &[2, 2], Eps::None).unwrap();
    assert!(g.iter().chain(&bias).all(|x| x.is_nan()));
    let v = [1.0, f64::NAN, 1.0, 0.0];
    let (g, bias) = cpu::data_dependent_init(&[1.0, 2.0, 3.0, 2.0], &[2, 2], &v, &[2, 2], Eps::default()).unwrap();
    assert!(g[0].is_nan() && bias[0].is_nan());
    assert_eq!((g[1], bias[1]), (1.0, -2.0));
}

#[test]
fn mean_only_batch_norm_by_hand() {
    let t = [1.0, 10.0, 3.0, 20.0];
    let (y, mean) = cpu::mean_only_batch_norm(&t, &[2, 2], Some(&[0.5, -1.0])).unwrap();
    assert_eq!((y, mean), (vec![-0.5, -6.0, 1.5, 4.0], vec![2.0, 15.0]));
    assert_eq!(cpu::mean_only_batch_norm(&t, &[2, 2], None).unwrap().0, [-1.0, -5.0, 1.0, 5.0]);
    assert_eq!(
        cpu::subtract_running_mean(&t, &[2, 2], &[1.0, 0.0], Some(&[0.5, -1.0])).unwrap(),
        [0.5, 9.0, 2.5, 19.0]
    );
    let (dt, dbias) = cpu::mean_only_batch_norm_backward(&t, &[2, 2]).unwrap();
    assert_eq!((dt, dbias), (vec![-1.0, -5.0, 1.0, 5.0], vec![4.0, 30.0]));
}

#[test]
fn mean_only_batch_norm_of_empty_tensors() {
    let (y, mean) = cpu::mean_only_batch_norm(&[], &[3, 0], None).unwrap();
    assert!(y.is_empty() && mean.is_empty());
    assert!(cpu::subtract_running_mean(&[], &[0, 2], &[1.0, 2.0], None).unwrap().is_empty());
    assert_eq!(cpu::mean_only_batch_norm_backward(&[], &[0, 2]).unwrap(), (vec![], vec![0.0; 2]));
}

/// After t steps towards a constant mean (1 − momentum)ᵗ of the start is left.
#[test]
fn update_running_mean_approaches_the_mean() {
    let mut running = [5.0, -1.0];
    for _ in 0..30 {
        cpu::update_running_mean(&mut running, &[2.0, 3.0], 0.1).unwrap();
    }
    let left = 0.9f64.powi(30);
    assert_close(&running, &[2.0 + 3.0 * left, 3.0 - 4.0 * left], 1e-14);
    cpu::update_running_mean(&mut running, &[7.0, 8.0], 1.0).unwrap();
    assert_eq!(running, [7.0, 8.0]);
}

/// (batch, features), t and dy of that size, bias
fn matrices() -> impl Strategy<Value = ([usize; 2], Vec<f64>, Vec<f64>, Vec<f64>)> {
    (1usize..8, 1usize..6).prop_flat_map(|(b, n)| {
        let vector = |len| prop::collection::vec(-2f64..2.0, len);
        (Just([b, n]), vector(b * n), vector(b * n), vector(n))
    })
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// The definition: mean 0 and variance 1 of every feature, over any batch shape.
    #[test]
    fn data_dependent_init_gives_unit_features(
        x in prop::collection::vec(-2f64..2.0, 2 * 4 * 5),
        v in prop::collection::vec(-2f64..2.0, 3 * 5),
    ) {
        let y = initialized(&x, &[2, 4, 5], &v, &[3, 5]);
        for j in 0..3 {
            let feature: Vec<f64> = y.iter().skip(j).step_by(3).copied().collect();
            let mean = feature.iter().sum::<f64>() / 8.0;
            let square = feature.iter().map(|y| y * y).sum::<f64>() / 8.0;
            assert_close(&[mean, square], &[0.0, 1.0], 1e-10);
        }
    }

    /// The loss Σ dy·y is linear in t and in the bias, so a difference of any width is its gradient.
    #[test]
    fn mean_only_batch_norm_backward_equals_finite_differences((shape, t, dy, bias) in matrices()) {
        let loss = |t: &[f64], bias: &[f64]| -> f64 {
            let (y, _) = cpu::mean_only_batch_norm(t, &shape, Some(bias)).unwrap();
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let moved = |values: &[f64], at: usize, h: f64| {
            let mut values = values.to_vec();
            values[at] += h;
            values
        };
        let (dt, dbias) = cpu::mean_only_batch_norm_backward(&dy, &shape).unwrap();
        let of_t = |at| loss(&moved(&t, at, 0.5), &bias) - loss(&moved(&t, at, -0.5), &bias);
        assert_close(&dt, &(0..t.len()).map(of_t).collect::<Vec<_>>(), 1e-12);
        let of_bias = |j| loss(&t, &moved(&bias, j, 0.5)) - loss(&t, &moved(&bias, j, -0.5));
        assert_close(&dbias, &(0..bias.len()).map(of_bias).collect::<Vec<_>>(), 1e-12);
    }

    /// With the batch's own mean evaluation is training; a shift of t changes nothing in training.
    #[test]
    fn mean_only_batch_norm_ignores_a_shift((shape, t, _, bias) in matrices(), shift in -5f64..5.0) {
        let (y, mean) = cpu::mean_only_batch_norm(&t, &shape, Some(&bias)).unwrap();
        assert_close(&cpu::subtract_running_mean(&t, &shape, &mean, Some(&bias)).unwrap(), &y, 0.0);
        let shifted: Vec<_> = t.iter().map(|t| t + shift).collect();
        assert_close(&cpu::mean_only_batch_norm(&shifted, &shape, Some(&bias)).unwrap().0, &y, 1e-13);
        let mut running = vec![0.0; shape[1]];
        cpu::update_running_mean(&mut running, &mean, 1.0).unwrap();
        prop_assert_eq!(running, mean);
    }
}
