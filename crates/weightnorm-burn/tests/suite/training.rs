//! Burn's optimizers train the modules: the kernels and Burn's operators give the same parameters.
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Tensor};
use weightnorm_burn::{WeightNormConv1d, WeightNormConv1dConfig, WeightNormLinear, WeightNormLinearConfig};

use crate::data::{numbers, random, wgpu};

#[derive(Module, Debug)]
struct Model {
    conv: WeightNormConv1d,
    head: WeightNormLinear,
}

/// The losses of 30 steps, by the parameters of the first device.
fn losses(device: &Device) -> Vec<f64> {
    let device = device.clone().autodiff();
    device.seed(3);
    let mut model = Model {
        conv: WeightNormConv1dConfig::new(4, 16, 5).init(&device),
        head: WeightNormLinearConfig::new(16, 2).init(&device),
    };
    let (x, target): (Tensor<3>, Tensor<3>) = (random(1, [8, 4, 36], &device), random(2, [8, 32, 2], &device));
    let mut optimizer = AdamConfig::new().init();
    let mut all = vec![];
    for _ in 0..30 {
        let y = model.head.forward(gelu(model.conv.forward(x.clone())).swap_dims(1, 2));
        let loss = (y - target.clone()).powi_scalar(2).mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        all.extend(numbers(loss.inner()));
        model = optimizer.step(1e-2, model, gradients);
    }
    all
}

#[test]
fn losses_fall() {
    let ours = losses(&wgpu());
    assert!(ours[29] < 0.93 * ours[0], "{ours:?}");
    assert!(ours.windows(2).filter(|pair| pair[1] > pair[0]).count() < 6, "{ours:?}");
}
