//! The modules of this crate beside those of Burn: the same parameters, the same results; on devices with the kernels
//! and without.
use burn::module::{Module, Param};
use burn::nn::conv::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig};
use burn::nn::{LinearConfig, PaddingConfig1d, PaddingConfig2d};
use burn::tensor::{DType, Tensor};
use weightnorm_burn::{
    WeightNormConv1d, WeightNormConv1dConfig, WeightNormConv2d, WeightNormConv2dConfig, WeightNormConvTranspose1d,
    WeightNormConvTranspose1dConfig, WeightNormLinear, WeightNormLinearConfig,
};

use crate::data::{assert_close, cpu, numbers, random, wgpu};

/// A module made of Burn's is the same function, folds to what it was, and both devices have the same gradients.
#[test]
fn modules_are_burns_functions() {
    let device = wgpu();
    let linear = LinearConfig::new(52, 40).init(&device);
    let x = random(1, [3, 5, 52], &device);
    let ours = WeightNormLinear::from(linear.clone());
    assert_close("linear", &numbers(ours.forward(x.clone())), &numbers(linear.forward(x.clone())), 52);
    assert_close(
        "folded",
        &numbers(ours.fold().forward(x)),
        &numbers(linear.forward(random(1, [3, 5, 52], &device))),
        52,
    );

    let conv = Conv1dConfig::new(8, 12, 4).with_stride(2).with_groups(2).with_padding(PaddingConfig1d::Same);
    let conv = conv.init(&device);
    let x = random(2, [2, 8, 41], &device);
    let ours = WeightNormConv1d::from(conv.clone());
    let expected = numbers(conv.forward(x.clone()));
    assert_close("conv1d", &numbers(ours.forward(x.clone())), &expected, 16);
    assert_close("folded", &numbers(ours.fold().forward(x)), &expected, 16);

    let conv =
        Conv2dConfig::new([4, 6], [3, 2]).with_dilation([2, 1]).with_padding(PaddingConfig2d::Explicit(1, 0, 2, 1));
    let conv = conv.with_bias(false).init(&device);
    let x = random(3, [2, 4, 13, 9], &device);
    let ours = WeightNormConv2d::from(conv.clone());
    let expected = numbers(conv.forward(x.clone()));
    assert_close("conv2d", &numbers(ours.forward(x.clone())), &expected, 24);
    assert_close("folded", &numbers(ours.fold().forward(x)), &expected, 24);

    let conv = ConvTranspose1dConfig::new([8, 6], 4).with_stride(2).with_padding(1).with_padding_out(1);
    let conv = conv.with_groups(2).init(&device);
    let x = random(4, [2, 8, 17], &device);
    let ours = WeightNormConvTranspose1d::from(conv.clone());
    let expected = numbers(conv.forward(x.clone()));
    assert_close("conv_transpose1d", &numbers(ours.forward(x.clone())), &expected, 16);
    assert_close("folded", &numbers(ours.fold().forward(x)), &expected, 16);
}

/// Same padding of even and odd kernels and of strides, in 1-D and 2-D, is Burn's own.
#[test]
fn padding_is_burns() {
    let device = cpu();
    for (kernel, stride, length) in [(2, 1, 5), (3, 2, 8), (4, 3, 10), (5, 1, 7), (7, 4, 9)] {
        let conv = Conv1dConfig::new(2, 3, kernel).with_stride(stride).with_padding(PaddingConfig1d::Same);
        let conv = conv.init(&device);
        let x = random(5, [1, 2, length], &device);
        let y = WeightNormConv1d::from(conv.clone()).forward(x.clone());
        assert_close("1-D", &numbers(y), &numbers(conv.forward(x)), 14);
        let conv = Conv2dConfig::new([2, 3], [kernel, 3]).with_stride([stride, 2]).with_padding(PaddingConfig2d::Same);
        let conv = conv.init(&device);
        let x = random(6, [1, 2, length, 6], &device);
        let y = WeightNormConv2d::from(conv.clone()).forward(x.clone());
        assert_close("2-D", &numbers(y), &numbers(conv.forward(x)), 42);
    }
}

/// Configurations draw as Burn does: within 1/√fan_in, g is the norms, and the bias may be left out.
#[test]
fn init_is_burns() {
    let device = cpu();
    let within = |values: Vec<f64>, fan: f64| values.iter().all(|x| x.abs() <= 1.0 / fan.sqrt() + 1e-6);
    let linear = WeightNormLinearConfig::new(30, 20).init(&device);
    assert!(within(numbers(linear.v.val()), 30.0) && linear.bias.is_some());
    let norms = numbers(linear.v.val().powi_scalar(2).sum_dim(1).sqrt());
    assert_close("g", &numbers(linear.g.val()), &norms, 30);
    assert_eq!(linear.num_params(), 30 * 20 + 20 + 20);
    let conv = WeightNormConv1dConfig::new(6, 8, 5).with_groups(2).with_bias(false).init(&device);
    assert!(within(numbers(conv.v.val()), 15.0) && conv.bias.is_none());
    assert_eq!(conv.g.dims(), [8, 1, 1]);
    let conv = WeightNormConv2dConfig::new([6, 8], [5, 3]).init(&device);
    assert_eq!((conv.v.dims(), conv.g.dims()), ([8, 6, 5, 3], [8, 1, 1, 1]));
    let conv = WeightNormConvTranspose1dConfig::new([6, 8], 5).init(&device);
    assert_eq!((conv.v.dims(), conv.g.dims()), ([6, 8, 5], [6, 1, 1]));
    let shown = format!("{linear}{conv}");
    assert!(shown.contains("d_input: 30, d_output: 20") && shown.contains("padding_out: 0"), "{shown}");
}

/// x, v and g as views: transposed, cut, repeated.
#[test]
fn views_are_read_as_they_are() {
    let device = wgpu();
    let x = random(7, [52, 3, 6], &device).permute([1, 2, 0]).slice([1..3, 0..6, 0..52]);
    let v = random(8, [64, 40], &device).transpose().slice([0..40, 4..56]);
    let g = random(9, [1, 1], &device).expand([40, 1]);
    let y = weightnorm_burn::linear(x.clone(), v.clone(), g.clone(), None).expect("fits");
    let host = cpu();
    let [x, y] = [x, y].map(|tensor| Tensor::<3>::from_data(tensor.into_data(), &host));
    let [v, g] = [v, g].map(|tensor| Tensor::<2>::from_data(tensor.into_data(), &host));
    let expected = weightnorm_burn::linear(x, v, g, None).expect("fits");
    assert_close("y", &numbers(y), &numbers(expected), 52);
}

/// In half precision, with an odd number of elements: the kernels have u, g and the norms in f32.
#[test]
fn half_precision() {
    let device = wgpu();
    let (x, v) = (random(10, [3, 17], &device), random(11, [5, 17], &device));
    let (g, bias) = (random(12, [5, 1], &device), random(13, [5], &device));
    let [x16, v16, g16] = [&x, &v, &g].map(|tensor| tensor.clone().cast(DType::F16));
    let y = weightnorm_burn::linear(x16, v16, g16, Some(bias.clone().cast(DType::F16))).expect("fits");
    assert_eq!(y.dtype(), DType::F16);
    let expected = numbers(weightnorm_burn::linear(x, v, g, Some(bias)).expect("fits"));
    let got = numbers(y);
    let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
    for (a, b) in got.iter().zip(&expected) {
        assert!((a - b).abs() <= 20.0 * largest * 2f64.powi(-11), "{a}, expected {b}");
    }
}

/// A frozen gain gets no gradient, and the others get theirs.
#[test]
fn only_what_is_wanted() {
    let device = wgpu().autodiff();
    let layer = WeightNormLinearConfig::new(52, 40).init(&device);
    let frozen = WeightNormLinear { g: Param::from_tensor(layer.g.val()).set_require_grad(false), ..layer };
    let x = random(14, [4, 52], &device);
    let gradients = frozen.forward(x.clone()).sum().backward();
    assert!(frozen.v.val().grad(&gradients).is_some());
    assert!(frozen.bias.as_ref().expect("a bias").val().grad(&gradients).is_some());
    assert!(frozen.g.val().grad(&gradients).is_none());
    assert!(x.grad(&gradients).is_none());
    // Without autodiff the same numbers.
    let plain = frozen.valid().forward(x.inner());
    assert_close("y", &numbers(plain), &numbers(frozen.forward(random(14, [4, 52], &device)).inner()), 52);
}
