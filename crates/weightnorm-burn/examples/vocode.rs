//! HiFi-GAN's generator (Kong et al. 2020) of weight-normalized layers, from PyTorch's checkpoint: prints how far its
//! samples are from PyTorch's.
//!
//!     cargo run --release --example vocode [-- MODEL.safetensors IO.safetensors]
use std::error::Error;
use std::path::PathBuf;

use burn::module::Module;
use burn::nn::PaddingConfig1d;
use burn::store::{ModuleSnapshot, SafetensorsStore};
use burn::tensor::activation::leaky_relu;
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use weightnorm_burn::{
    WeightNormConv1d, WeightNormConv1dConfig, WeightNormConvTranspose1d, WeightNormConvTranspose1dConfig, pytorch_names,
};

/// What the model's `config.json` says of `hifigan_small`.
const CHANNELS: usize = 64;
const MELS: usize = 80;
const UPSAMPLE: [(usize, usize); 4] = [(8, 16), (8, 16), (2, 4), (2, 4)];
const KERNELS: [usize; 3] = [3, 7, 11];
const DILATIONS: [usize; 3] = [1, 3, 5];

fn same(channels: [usize; 2], kernel: usize, dilation: usize, device: &Device) -> WeightNormConv1d {
    let padding = dilation * (kernel - 1) / 2;
    WeightNormConv1dConfig::new(channels[0], channels[1], kernel)
        .with_dilation(dilation)
        .with_padding(PaddingConfig1d::Explicit(padding, padding))
        .init(device)
}

#[derive(Module, Debug)]
struct Block {
    convs1: Vec<WeightNormConv1d>,
    convs2: Vec<WeightNormConv1d>,
}

impl Block {
    fn new(channels: usize, kernel: usize, device: &Device) -> Block {
        let convs = |dilations: [usize; 3]| dilations.map(|d| same([channels; 2], kernel, d, device)).to_vec();
        Block { convs1: convs(DILATIONS), convs2: convs([1; 3]) }
    }

    fn forward(&self, mut x: Tensor<3>) -> Tensor<3> {
        for (first, second) in self.convs1.iter().zip(&self.convs2) {
            let inner = first.forward(leaky_relu(x.clone(), 0.1));
            x = second.forward(leaky_relu(inner, 0.1)) + x;
        }
        x
    }
}

#[derive(Module, Debug)]
struct Generator {
    conv_pre: WeightNormConv1d,
    ups: Vec<WeightNormConvTranspose1d>,
    resblocks: Vec<Block>,
    conv_post: WeightNormConv1d,
}

impl Generator {
    fn new(device: &Device) -> Generator {
        let (mut ups, mut resblocks, mut channels) = (vec![], vec![], CHANNELS);
        for (rate, kernel) in UPSAMPLE {
            let up = WeightNormConvTranspose1dConfig::new([channels, channels / 2], kernel);
            ups.push(up.with_stride(rate).with_padding((kernel - rate) / 2).init(device));
            channels /= 2;
            resblocks.extend(KERNELS.map(|kernel| Block::new(channels, kernel, device)));
        }
        let conv_pre = same([MELS, CHANNELS], 7, 1, device);
        Generator { conv_pre, ups, resblocks, conv_post: same([channels, 1], 7, 1, device) }
    }

    fn forward(&self, mel: Tensor<3>) -> Tensor<3> {
        let mut x = self.conv_pre.forward(mel);
        for (up, blocks) in self.ups.iter().zip(self.resblocks.chunks(KERNELS.len())) {
            x = up.forward(leaky_relu(x, 0.1));
            let sum = blocks.iter().map(|block| block.forward(x.clone())).reduce(|a, b| a + b).expect("blocks");
            x = sum / KERNELS.len() as f32;
        }
        self.conv_post.forward(leaky_relu(x, 0.01)).tanh()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let data = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data"));
    let mut arguments = std::env::args().skip(1);
    let mut path = |name: &str| arguments.next().map_or_else(|| data.join(name), PathBuf::from);
    let (model, io) = (path("hifigan_small.safetensors"), path("hifigan_small.io.safetensors"));

    let device = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    let mut generator = Generator::new(&device);
    let loaded = generator.load_from(&mut SafetensorsStore::from_file(model).remap(pytorch_names()))?;
    println!("{} tensors loaded, kernels: {}", loaded.applied.len(), weightnorm_burn::has_kernels(&device));

    let bytes = std::fs::read(io)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let (input, expected) = (file.tensor("input")?, file.tensor("expected")?);
    let mel: Vec<f32> = input.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let expected = expected.data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b));
    let mel = Tensor::from_data(TensorData::new(mel, input.shape().to_vec()), &device);

    let samples = generator.forward(mel).into_data();
    let worst = samples.iter::<f64>().zip(expected).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()));
    println!("{} samples, {worst:.1e} at most from PyTorch's", samples.num_elements());
    if worst < 1e-5 { Ok(()) } else { Err("too far".into()) }
}
