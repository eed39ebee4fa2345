//! What does not fit is an error that says so, on every device; what the kernels do not take goes to Burn's operators.
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Tensor};
use weightnorm_burn::{Error, WeightNormLinearConfig};

use crate::data::{assert_close, cpu, numbers, random, wgpu};

#[test]
fn shapes_that_do_not_fit() {
    for device in [wgpu(), cpu(), wgpu().autodiff(), cpu().autodiff()] {
        let x: Tensor<2> = random(1, [3, 8], &device);
        let (v, g) = (random(2, [5, 8], &device), random(3, [5, 1], &device));
        let (wrong_v, wrong_g) = (random(2, [5, 7], &device), random(3, [4, 1], &device));
        let (bias, wrong_bias) = (random(4, [5], &device), random(4, [6], &device));
        let linear = |v: &Tensor<2>, g: &Tensor<2>, bias: &Tensor<1>| {
            weightnorm_burn::linear(x.clone(), v.clone(), g.clone(), Some(bias.clone()))
        };
        assert!(linear(&v, &g, &bias).is_ok());
        for (result, arg) in [
            (linear(&wrong_v, &g, &bias), "x"),
            (linear(&v, &wrong_g, &bias), "g"),
            (linear(&v, &g, &wrong_bias), "bias"),
        ] {
            let error = result.expect_err("an error");
            assert!(matches!(error, Error::Argument(_)), "{error:?}");
            assert!(error.to_string().starts_with("linear: "), "{error}, of {arg}");
        }
        let x: Tensor<3> = random(1, [2, 4, 9], &device);
        let (v, g) = (random(2, [6, 3, 3], &device), random(3, [6, 1, 1], &device));
        let options = ConvOptions::new([1], [0], [1], 1);
        let error = weightnorm_burn::conv1d(x.clone(), v, g, None, options).expect_err("an error");
        assert!(error.to_string().starts_with("conv: "), "{error}");
        let (v, g) = (random(2, [4, 3, 3], &device), random(3, [6, 1, 1], &device));
        let options = ConvTransposeOptions::new([1], [0], [0], [1], 1);
        let error = weightnorm_burn::conv_transpose1d(x, v, g, None, options).expect_err("an error");
        assert!(error.to_string().starts_with("conv_transposed: "), "{error}");
        let (v, g) = (random::<2>(2, [5, 8], &device), random::<1>(3, [5], &device));
        assert!(weightnorm_burn::weight(v.clone(), g.clone(), 2).is_err());
        assert!(weightnorm_burn::weight(v, g, 1).is_err());
    }
}

#[test]
#[should_panic(expected = "linear: ")]
fn forward_panics_as_burns_layers_do() {
    let layer = WeightNormLinearConfig::new(8, 5).init(&cpu());
    let _ = layer.forward(random::<2>(1, [3, 7], &cpu()));
}

/// f64 on a CPU, mixed types and empty batches.
#[test]
fn what_kernels_do_not_take() {
    let device = cpu();
    let (x, v, g) = (random(1, [3, 8], &device), random(2, [5, 8], &device), random(3, [5, 1], &device));
    let wide = [&x, &v, &g].map(|tensor: &Tensor<2>| tensor.clone().cast(DType::F64));
    let [x64, v64, g64] = wide;
    let y = weightnorm_burn::linear(x64, v64, g64, None).expect("fits");
    assert_eq!(y.dtype(), DType::F64);
    assert_close("y", &numbers(y), &numbers(weightnorm_burn::linear(x, v, g, None).expect("fits")), 8);
    let device = wgpu();
    let empty: Tensor<2> = Tensor::zeros([0, 8], &device);
    let y = weightnorm_burn::linear(empty, random(2, [5, 8], &device), random(3, [5, 1], &device), None);
    assert_eq!(y.expect("fits").dims(), [0, 5]);
}

/// A row of zeros has w = 0 under both, and no gradient of NaN.
#[test]
fn rows_of_zeros() {
    for device in [wgpu(), cpu()] {
        let device = device.autodiff();
        let v: Tensor<2> = Tensor::zeros([3, 8], &device).require_grad();
        let g: Tensor<2> = random(3, [3, 1], &device).require_grad();
        let y = weightnorm_burn::linear(random::<2>(1, [4, 8], &device), v.clone(), g.clone(), None).expect("fits");
        let gradients = y.clone().sum().backward();
        assert!(numbers(y.inner()).iter().all(|&y| y == 0.0));
        assert!(numbers(v.grad(&gradients).expect("dv")).iter().all(|dv| dv.is_finite()));
        assert!(numbers(g.grad(&gradients).expect("dg")).iter().all(|&dg| dg == 0.0));
    }
}
