//! Trains a small weight-normalized network, the signed distance to a torus, with Burn's Adam, beside the same network
//! without weight normalization.
//!
//!     cargo run --release --example train
use burn::module::{Module, ModuleDisplay};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::activation::relu;
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use weightnorm_burn::WeightNormLinear;

const SIZES: [usize; 5] = [3, 64, 64, 64, 1];
const STEPS: usize = 200;

/// One network of either kind.
#[derive(Module, Debug)]
struct Network<L: Module> {
    layers: Vec<L>,
}

fn forward<L: Module>(network: &Network<L>, layer: impl Fn(&L, Tensor<2>) -> Tensor<2>, x: Tensor<2>) -> Tensor<2> {
    let last = network.layers.len() - 1;
    network.layers.iter().enumerate().fold(x, |x, (i, l)| {
        let y = layer(l, x);
        if i < last { relu(y) } else { y }
    })
}

/// The distance to a torus around z, of radii 0.5 and 0.2.
fn distance(points: Tensor<2>) -> Tensor<2> {
    let [x, y, z] = [0, 1, 2].map(|i| points.clone().narrow(1, i, 1));
    let around = (x.powi_scalar(2) + y.powi_scalar(2)).sqrt() - 0.5;
    (around.powi_scalar(2) + z.powi_scalar(2)).sqrt() - 0.2
}

fn train<L>(name: &str, mut network: Network<L>, layer: fn(&L, Tensor<2>) -> Tensor<2>, device: &Device)
where
    L: Module + ModuleDisplay + 'static,
{
    device.seed(1);
    let mut optimizer = AdamConfig::new().init();
    let mut shown = vec![];
    for step in 0..STEPS {
        let points = Tensor::random([256, 3], Distribution::Uniform(-1.0, 1.0), device);
        let error = forward(&network, layer, points.clone()) - distance(points);
        let loss = error.abs().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(3e-3, network, gradients);
        if step % 50 == 49 {
            shown.push(format!("{:.4}", loss.into_scalar::<f32>()));
        }
    }
    println!("{name:>12}: {}", shown.join("  "));
}

fn main() {
    let device = Device::wgpu(DeviceKind::DefaultDevice).autodiff();
    device.seed(0);
    let plain: Vec<Linear> = SIZES.windows(2).map(|s| LinearConfig::new(s[0], s[1]).init(&device)).collect();
    // The same function to begin with.
    let normalized = plain.iter().cloned().map(WeightNormLinear::from).collect();
    println!("mean absolute error after each 50 of {STEPS} steps, kernels: {}", weightnorm_burn::has_kernels(&device));
    train("plain", Network { layers: plain }, |l, x| l.forward(x), &device);
    train("weight norm", Network { layers: normalized }, |l, x| l.forward(x), &device);
}
