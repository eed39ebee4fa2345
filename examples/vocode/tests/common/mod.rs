//! The shipped models, small networks of other shapes, and the comparison of samples.
#![allow(dead_code, reason = "each test binary uses its own part of this file")]

use std::path::PathBuf;

use vocode::file::File;
use vocode::hifigan::{Blocks, Config};
use vocode::network::Network;
use vocode::random::{Random, Variant};
use vocode::reference::Reference;
use vocode::{dac, hifigan};

pub const MODELS: [&str; 2] = ["hifigan_small", "dac_small"];

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

pub fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The network of a shipped model, after something was done to its tensors.
pub fn model_with(name: &str, change: impl FnOnce(&mut File<'_>)) -> Result<Network, String> {
    let bytes = bytes(&format!("{name}.safetensors"));
    let mut file = File::parse(&bytes)?;
    change(&mut file);
    Network::of_file(&mut file)
}

pub fn model(name: &str) -> Network {
    model_with(name, |_| ()).unwrap()
}

/// Its input and what PyTorch makes of it.
pub fn io(name: &str) -> (Vec<f32>, Vec<f64>) {
    let bytes = bytes(&format!("{name}.io.safetensors"));
    let file = File::parse(&bytes).unwrap();
    let numbers = |name| file.numbers(name).unwrap().1;
    (numbers("input").iter().map(|&x| x as f32).collect(), numbers("expected"))
}

/// Renames tensors to the newer spelling of weight norm.
pub fn renamed(file: &mut File<'_>) {
    let names = [("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1")];
    let rename = |name: &str| names.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new));
    file.tensors = std::mem::take(&mut file.tensors).into_iter().map(|(name, view)| (rename(&name), view)).collect();
}

/// Puts w in the place of g and v.
pub fn folded(file: &mut File<'_>) {
    let layers: Vec<String> =
        file.tensors.keys().filter_map(|name| name.strip_suffix(".weight_g").map(str::to_owned)).collect();
    for layer in layers {
        let (_, g) = file.numbers(&format!("{layer}.weight_g")).unwrap();
        let (shape, v) = file.numbers(&format!("{layer}.weight_v")).unwrap();
        let (axis, eps) = (weightnorm::Axis::Kept(0), weightnorm::Eps::None);
        let w = weightnorm::cpu::normalize(&v, &shape, Some(&g), axis, eps).unwrap();
        let mut view = file.tensors.remove(&format!("{layer}.weight_v")).unwrap();
        file.tensors.remove(&format!("{layer}.weight_g"));
        view.bytes = w.iter().flat_map(|&w| (w as f32).to_le_bytes()).collect::<Vec<u8>>().into();
        file.tensors.insert(format!("{layer}.weight"), view);
    }
}

/// What the shipped models do not have: blocks of kind "2", one and several convolutions a block, rates that kernels
/// exceed by an odd number, odd rates of DAC.
pub fn others() -> Vec<Network> {
    let config = |blocks, dilations: &[&[usize]]| Config {
        blocks,
        upsample_rates: vec![3, 2],
        upsample_kernel_sizes: vec![6, 4],
        upsample_initial_channel: 24,
        resblock_kernel_sizes: [3, 5, 7][..dilations.len()].to_vec(),
        resblock_dilation_sizes: dilations.iter().map(|list| list.to_vec()).collect(),
        num_mels: 10,
        ..Variant::V1.config()
    };
    let even = Config { upsample_kernel_sizes: vec![7, 2], ..config(Blocks::One, &[&[1, 3], &[2]]) };
    let hifigan = [config(Blocks::Two, &[&[1, 2], &[2, 6, 1], &[3]]), config(Blocks::One, &[&[1]]), even];
    let of_hifigan = hifigan.iter().map(|config| hifigan::network(config, &mut Random(3)).unwrap());
    let dac = dac::Config { decoder_dim: 20, decoder_rates: vec![3, 2, 5], latent_dim: 9, sampling_rate: 16_000 };
    of_hifigan.chain([dac::network(&dac, &mut Random(4)).unwrap()]).collect()
}

pub fn noise(network: &Network, frames: usize) -> Vec<f32> {
    Random(5).numbers(network.channels * frames, 1.0)
}

/// Whether every sample is within its bound.
pub fn within(samples: &[f64], expected: &[f64], reference: &Reference) -> Result<(), String> {
    let count = reference.bound.len();
    if samples.len() != count || expected.len() != count {
        return Err(format!("{} samples, {} expected, {count} bounds", samples.len(), expected.len()));
    }
    for (i, ((got, expected), bound)) in samples.iter().zip(expected).zip(&reference.bound).enumerate() {
        let error = (got - expected).abs();
        if error.is_nan() || error > *bound {
            return Err(format!("sample {i} is {got}, expected {expected}: {error:.1e} with a bound of {bound:.1e}"));
        }
    }
    Ok(())
}
