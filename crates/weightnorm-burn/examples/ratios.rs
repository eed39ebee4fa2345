//! How long layers take on Burn's wgpu device: by this crate, by Burn's operators (norm, divide, multiply, matmul or
//! convolution, add), by Burn's layer with `WeightNormalization`, and by Burn's layer without weight norm.
//!
//!     cargo run --release --features fusion,autotune --example ratios [-- PART_OF_A_TITLE]
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig1d};
use burn::tensor::module::{conv1d, linear};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use weightnorm_burn::{WeightNormConv1d, WeightNormLinear, WeightNormalization};

/// The median of some runs, each of as many calls as take a tenth of a second.
fn time(device: &Device, mut call: impl FnMut()) -> Duration {
    let mut run = |calls: u32| {
        device.sync().expect("a device");
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        device.sync().expect("a device");
        start.elapsed() / calls
    };
    for _ in 0..3 {
        run(1);
    }
    let once = run(1).max(Duration::from_micros(10));
    let calls = (Duration::from_millis(100).as_nanos() / once.as_nanos()).clamp(1, 200) as u32;
    let mut all: Vec<Duration> = (0..7).map(|_| run(calls)).collect();
    all.sort();
    all[3]
}

/// One way to compute a layer: forward on plain tensors, and a step on tracked ones.
struct Way<'a, const D: usize> {
    name: &'static str,
    forward: Box<dyn Fn(Tensor<D>) -> Tensor<D> + 'a>,
    tracked: Box<dyn Fn(Tensor<D>) -> Tensor<D> + 'a>,
}

fn measure<const D: usize>(title: &str, shape: [usize; D], device: &Device, ways: &[Way<'_, D>]) {
    if std::env::args().nth(1).is_some_and(|part| !title.contains(&part)) {
        return;
    }
    let x: Tensor<D> = Tensor::random(shape, Distribution::Default, device);
    let tracked = Tensor::from_inner(x.clone()).require_grad();
    let mut ours: Option<[f64; 2]> = None;
    for way in ways {
        let forward = time(device, || drop((way.forward)(x.clone())));
        let step = time(device, || drop((way.tracked)(tracked.clone()).sum().backward()));
        let both = [forward, step].map(|time| 1e3 * time.as_secs_f64());
        let [forward, step] = both;
        let [a, b] = *ours.get_or_insert(both);
        println!(
            "{title:>24} | {:<22} | {forward:8.3} | {:5.1} | {step:8.3} | {:5.1}",
            way.name,
            forward / a,
            step / b
        );
    }
}

fn norms<const D: usize>(v: Tensor<D>) -> Tensor<D> {
    (1..D).fold(v.powi_scalar(2), |sums, axis| sums.sum_dim(axis)).sqrt()
}

fn linear_layer(batch: usize, inputs: usize, outputs: usize, device: &Device) {
    let tracked = device.clone().autodiff();
    let burns = LinearConfig::new(inputs, outputs).init(&tracked);
    let ours = WeightNormLinear::from(burns.clone());
    let hooked: Linear = burns.clone().apply_reparameterization(WeightNormalization::new());
    let by_operators = |layer: &WeightNormLinear, x| {
        let v = layer.v.val();
        let w = v.clone() * (layer.g.val() / norms(v));
        linear(x, w.transpose(), layer.bias.as_ref().map(|bias| bias.val()))
    };
    let (ours_valid, burns_valid, hooked_valid) = (valid(&ours), valid(&burns), valid(&hooked));
    let ways = [
        Way {
            name: "this crate",
            forward: Box::new(|x| ours_valid.forward(x)),
            tracked: Box::new(|x| ours.forward(x)),
        },
        Way {
            name: "Burn's operators",
            forward: Box::new(|x| by_operators(&ours_valid, x)),
            tracked: Box::new(|x| by_operators(&ours, x)),
        },
        Way {
            name: "WeightNormalization",
            forward: Box::new(|x| hooked_valid.forward(x)),
            tracked: Box::new(|x| hooked.forward(x)),
        },
        Way {
            name: "without weight norm",
            forward: Box::new(|x| burns_valid.forward(x)),
            tracked: Box::new(|x| burns.forward(x)),
        },
    ];
    measure(&format!("linear {batch}x{inputs}x{outputs}"), [batch, inputs], device, &ways);
}

fn conv_layer(batch: usize, channels: usize, length: usize, kernel: usize, device: &Device) {
    let tracked = device.clone().autodiff();
    let padding = kernel / 2;
    let burns = Conv1dConfig::new(channels, channels, kernel).with_padding(PaddingConfig1d::Explicit(padding, padding));
    let burns = burns.init(&tracked);
    let ours = WeightNormConv1d::from(burns.clone());
    let hooked: Conv1d = burns.clone().apply_reparameterization(WeightNormalization::new());
    let by_operators = |layer: &WeightNormConv1d, x| {
        let v = layer.v.val();
        let w = v.clone() * (layer.g.val() / norms(v));
        conv1d(x, w, layer.bias.as_ref().map(|bias| bias.val()), ConvOptions::new([1], [padding], [1], 1))
    };
    let (ours_valid, burns_valid, hooked_valid) = (valid(&ours), valid(&burns), valid(&hooked));
    let ways = [
        Way {
            name: "this crate",
            forward: Box::new(|x| ours_valid.forward(x)),
            tracked: Box::new(|x| ours.forward(x)),
        },
        Way {
            name: "Burn's operators",
            forward: Box::new(|x| by_operators(&ours_valid, x)),
            tracked: Box::new(|x| by_operators(&ours, x)),
        },
        Way {
            name: "WeightNormalization",
            forward: Box::new(|x| hooked_valid.forward(x)),
            tracked: Box::new(|x| hooked.forward(x)),
        },
        Way {
            name: "without weight norm",
            forward: Box::new(|x| burns_valid.forward(x)),
            tracked: Box::new(|x| burns.forward(x)),
        },
    ];
    measure(&format!("conv1d {batch}x{channels}x{length} k{kernel}"), [batch, channels, length], device, &ways);
}

fn valid<M: Module>(module: &M) -> M {
    module.valid()
}

fn main() {
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    println!("{device:?}, kernels: {}", weightnorm_burn::has_kernels(&device));
    println!("forward and a step (forward, backward) in ms, and how many times as long as this crate\n");
    for (batch, inputs, outputs) in [(8, 128, 128), (1, 1024, 1024), (64, 1024, 1024), (256, 784, 512)] {
        linear_layer(batch, inputs, outputs, &device);
    }
    for (batch, channels, length, kernel) in [(1, 64, 2048, 7), (4, 128, 512, 3)] {
        conv_layer(batch, channels, length, kernel, &device);
    }
}
