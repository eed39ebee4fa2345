//! HiFi-GAN's generator (Kong et al. 2020): transposed convolutions, and behind each the mean of residual blocks.
use tinyjson::JsonValue;
use weightnorm::Activation;

use crate::file;
use crate::network::{Before, Layer, Network, Source};

/// What the model's `config.json` says of the generator.
#[derive(Clone)]
pub struct Config {
    pub blocks: Blocks,
    pub upsample_rates: Vec<usize>,
    pub upsample_kernel_sizes: Vec<usize>,
    pub upsample_initial_channel: usize,
    pub resblock_kernel_sizes: Vec<usize>,
    pub resblock_dilation_sizes: Vec<Vec<usize>>,
    pub num_mels: usize,
    pub sampling_rate: usize,
}

/// Residual blocks of kind "1" have a second convolution, of dilation 1, behind each.
#[derive(Clone, Copy, PartialEq)]
pub enum Blocks {
    One,
    Two,
}

/// Of every layer but the last.
const SLOPE: f64 = 0.1;
/// PyTorch's default.
const LAST_SLOPE: f64 = 0.01;

/// The buffers: what goes from stage to stage, the mean of the blocks; a stage's input; what is between the two
/// convolutions of a pair; what goes from pair to pair.
const MEAN: usize = 0;
const STAGE: usize = 1;
const INNER: usize = 2;
const BLOCK: usize = 3;

impl Config {
    pub fn of(config: &file::Config) -> Result<Config, String> {
        let blocks = config.get("resblock", "\"1\" or \"2\"", |value| match value.get::<String>()?.as_str() {
            "1" => Some(Blocks::One),
            "2" => Some(Blocks::Two),
            _ => None,
        })?;
        let lists = |value: &JsonValue| value.get::<Vec<JsonValue>>()?.iter().map(file::sizes).collect();
        Config {
            blocks,
            upsample_rates: config.sizes("upsample_rates")?,
            upsample_kernel_sizes: config.sizes("upsample_kernel_sizes")?,
            upsample_initial_channel: config.size("upsample_initial_channel")?,
            resblock_kernel_sizes: config.sizes("resblock_kernel_sizes")?,
            resblock_dilation_sizes: config.get(
                "resblock_dilation_sizes",
                "a list of lists of whole numbers",
                lists,
            )?,
            num_mels: config.size("num_mels")?,
            sampling_rate: config.size("sampling_rate")?,
        }
        .checked()
    }

    fn checked(self) -> Result<Config, String> {
        let (rates, kernels) = (&self.upsample_rates, &self.upsample_kernel_sizes);
        if kernels.len() != rates.len() {
            let (got, expected) = (kernels.len(), rates.len());
            return Err(format!("config: upsample_kernel_sizes has {got} numbers, expected {expected}, one a rate"));
        }
        if let Some((kernel, rate)) = kernels.iter().zip(rates).find(|(kernel, rate)| kernel < rate) {
            return Err(format!("config: an upsampling kernel of {kernel} is below its rate of {rate}"));
        }
        let (kernels, dilations) = (&self.resblock_kernel_sizes, &self.resblock_dilation_sizes);
        if let Some(kernel) = kernels.iter().find(|kernel| kernel.is_multiple_of(2)) {
            return Err(format!("config: resblock_kernel_sizes has {kernel}, expected odd numbers"));
        }
        if dilations.len() != kernels.len() || dilations.iter().any(|list| list.is_empty() || list.contains(&0)) {
            let expected = kernels.len();
            return Err(format!(
                "config: resblock_dilation_sizes is {dilations:?}, expected {expected} lists of numbers above 0"
            ));
        }
        if self.upsample_initial_channel >> rates.len() == 0 {
            let (channels, times) = (self.upsample_initial_channel, rates.len());
            return Err(format!("config: upsample_initial_channel is {channels}, too few to be halved {times} times"));
        }
        Ok(self)
    }
}

/// The generator of a checked configuration.
pub fn network(config: &Config, source: &mut dyn Source) -> Result<Network, String> {
    let mut channels = config.upsample_initial_channel;
    let mut layers = vec![Layer::same(source, "conv_pre", [channels, config.num_mels, 7], 1, [STAGE, MEAN])?];
    for (stage, (&rate, &kernel)) in config.upsample_rates.iter().zip(&config.upsample_kernel_sizes).enumerate() {
        let shape = [channels, channels / 2, kernel];
        let up = Layer::up(source, &format!("ups.{stage}"), shape, (rate, (kernel - rate) / 2), [MEAN, STAGE])?;
        layers.push(up.before(Before::LeakyRelu(SLOPE)));
        channels /= 2;
        let blocks = config.resblock_kernel_sizes.len();
        for (i, (&kernel, dilations)) in
            config.resblock_kernel_sizes.iter().zip(&config.resblock_dilation_sizes).enumerate()
        {
            let block = format!("resblocks.{}", stage * blocks + i);
            let mut x = STAGE;
            for (j, &dilation) in dilations.iter().enumerate() {
                let shape = [channels, channels, kernel];
                // x + conv(..): in a buffer of its own, in place, or as a part of the mean.
                let last = j + 1 == dilations.len();
                let mut layer = match config.blocks {
                    Blocks::One => {
                        let name = |convs| format!("{block}.{convs}.{j}");
                        let inner = Layer::same(source, &name("convs1"), shape, dilation, [x, INNER])?;
                        layers.push(inner.before(Before::LeakyRelu(SLOPE)));
                        Layer::same(source, &name("convs2"), shape, 1, [INNER, BLOCK])?
                    }
                    Blocks::Two => {
                        let y = if x == BLOCK { INNER } else { BLOCK };
                        Layer::same(source, &format!("{block}.convs.{j}"), shape, dilation, [x, y])?
                    }
                };
                if last {
                    layer = Layer { y: MEAN, scale: 1.0 / blocks as f64, accumulate: i > 0, ..layer };
                }
                let in_place = layer.y == x;
                layer = Layer { residual: (!in_place).then_some(x), accumulate: layer.accumulate || in_place, ..layer };
                x = layer.y;
                layers.push(layer.before(Before::LeakyRelu(SLOPE)));
            }
        }
    }
    let last =
        Layer::same(source, "conv_post", [1, channels, 7], 1, [MEAN, STAGE])?.before(Before::LeakyRelu(LAST_SLOPE));
    layers.push(Layer { after: Activation::Tanh, ..last });
    source.rest(&["conv_pre.", "ups.", "resblocks.", "conv_post."])?;
    let kind = if config.blocks == Blocks::One { "1" } else { "2" };
    Ok(Network {
        title: format!("HiFi-GAN, {} channels, blocks of kind {kind}", config.upsample_initial_channel),
        sampling_rate: config.sampling_rate,
        channels: config.num_mels,
        input: STAGE,
        layers,
    })
}
