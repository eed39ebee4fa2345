//! PyTorch's cases (`tests/golden` of the repository): y and all gradients.
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{Device, Tensor};
use safetensors::SafeTensors;

use crate::data::{cpu, difference, folder, load, numbers, read, wgpu};

/// A number of the metadata; of two axes the one.
fn sizes(metadata: &std::collections::HashMap<String, String>, name: &str) -> Vec<(usize, usize)> {
    let text = metadata.get(name).map_or("0", |text| text);
    let pair = |axis: &str| {
        let (a, b) = axis.split_once(':').unwrap_or((axis, axis));
        (a.parse().expect("a number"), b.parse().expect("a number"))
    };
    text.split(',').map(pair).collect()
}

fn of_two<T: Copy>(all: &[T]) -> [T; 2] {
    [all[0], all[all.len() - 1]]
}

/// What a layer gives: y, dx, dv, dg, db.
type Results = Vec<(&'static str, Vec<f64>)>;

fn run<const X: usize, const V: usize>(
    file: &SafeTensors<'_>,
    device: &Device,
    layer: impl FnOnce(Tensor<X>, Tensor<V>, Tensor<V>, Option<Tensor<1>>) -> Tensor<X>,
) -> Results {
    let device = device.clone().autodiff();
    let x: Tensor<X> = load(file, "x", &device).require_grad();
    let v: Tensor<V> = load(file, "v", &device).require_grad();
    let g: Tensor<V> = load(file, "g", &device).require_grad();
    let bias: Option<Tensor<1>> = read(file, "b").map(|_| load(file, "b", &device).require_grad());
    let y = layer(x.clone(), v.clone(), g.clone(), bias.clone());
    let dy: Tensor<X> = load(file, "dy", &device);
    let gradients = (y.clone() * dy).sum().backward();
    let mut results = vec![
        ("y", numbers(y.inner())),
        ("dx", numbers(x.grad(&gradients).expect("dx"))),
        ("dv", numbers(v.grad(&gradients).expect("dv"))),
        ("dg", numbers(g.grad(&gradients).expect("dg"))),
    ];
    if let Some(bias) = bias {
        results.push(("db", numbers(bias.grad(&gradients).expect("db"))));
    }
    results
}

fn results(bytes: &[u8], device: &Device) -> Results {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let (_, header) = SafeTensors::read_metadata(bytes).expect("a header");
    let metadata = header.metadata().clone().expect("metadata");
    let get = |name: &str| sizes(&metadata, name);
    let one = |name: &str| get(name)[0].0;
    match &metadata["op"][..] {
        "linear" => run::<2, 2>(&file, device, |x, v, g, b| weightnorm_burn::linear(x, v, g, b).expect("fits")),
        "conv1d" => run::<3, 3>(&file, device, |x, v, g, b| {
            let options =
                ConvOptions::new_with_padding([one("stride")], [get("padding")[0]], [one("dilation")], one("groups"));
            weightnorm_burn::conv1d(x, v, g, b, options).expect("fits")
        }),
        "conv2d" => run::<4, 4>(&file, device, |x, v, g, b| {
            let firsts = |name: &str| of_two(&get(name)).map(|(size, _)| size);
            let padding = of_two(&get("padding"));
            let options = ConvOptions::new_with_padding(firsts("stride"), padding, firsts("dilation"), one("groups"));
            weightnorm_burn::conv2d(x, v, g, b, options).expect("fits")
        }),
        "conv_transpose1d" => run::<3, 3>(&file, device, |x, v, g, b| {
            let options = ConvTransposeOptions::new(
                [one("stride")],
                [one("padding")],
                [one("output_padding")],
                [one("dilation")],
                one("groups"),
            );
            weightnorm_burn::conv_transpose1d(x, v, g, b, options).expect("fits")
        }),
        other => panic!("op {other}"),
    }
}

/// What differs from the file, if anything.
fn compare(name: &str, device: &Device, spoilt: Option<&str>) -> Option<String> {
    let bytes = std::fs::read(folder("tests/golden").join(format!("{name}.safetensors"))).expect("the file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (x, v) = (file.tensor("x").expect("x"), file.tensor("v").expect("v"));
    // No gradient sums up more terms than there are elements of x and v behind one of the result.
    let terms = (x.shape().iter().product::<usize>() / x.shape()[1]).max(v.shape().iter().product::<usize>());
    results(&bytes, device).into_iter().find_map(|(what, got)| {
        let (_, mut expected) = read(&file, what).expect("an output of the file");
        if spoilt == Some(what) {
            let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
            expected[0] += 0.01 * largest;
        }
        difference(&got, &expected, terms).map(|difference| format!("{name}, {what}: {difference}"))
    })
}

/// Each layer, strides, dilations, groups, sides that differ.
const CASES: [&str; 7] = [
    "linear_33x257x129",
    "linear_64x39x256_nobias",
    "conv1d_dilated_grouped",
    "conv1d_causal_d4",
    "conv2d_mpd_5x1_s3",
    "conv_transpose1d_k16_s8",
    "conv_transpose1d_groups",
];

const MORE: [&str; 7] = [
    "linear_1x512x360",
    "conv1d_16x8x7",
    "conv1d_k1_40x24",
    "conv1d_depthwise_k7",
    "conv2d_8x6x3x3",
    "conv2d_3x9_s12_d21",
    "conv_transpose1d_crop_k5_s3",
];

#[test]
fn kernels_have_pytorchs_results() {
    for name in CASES {
        assert_eq!(compare(name, &wgpu(), None), None);
    }
}

#[test]
#[ignore = "minutes on a CPU"]
fn kernels_have_pytorchs_results_in_full() {
    for name in MORE {
        assert_eq!(compare(name, &wgpu(), None), None);
    }
}

#[test]
fn operators_have_pytorchs_results() {
    for name in CASES.into_iter().chain(MORE) {
        assert_eq!(compare(name, &cpu(), None), None);
    }
}

/// The negative control: an element changed by a hundredth.
#[test]
fn a_wrong_number_is_found() {
    for what in ["y", "dx", "dv", "dg", "db"] {
        let found = compare("linear_33x257x129", &wgpu(), Some(what)).expect("a difference");
        assert!(found.starts_with(&format!("linear_33x257x129, {what}: element 0 ")), "{found}");
    }
}
