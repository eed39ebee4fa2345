//! DAC's decoder (Kumar et al. 2023): snakes, transposed convolutions, and behind each three residual units.
use weightnorm::Activation;

use crate::file;
use crate::network::{Before, Layer, Network, Source};

/// What the model's configuration says of the decoder.
pub struct Config {
    pub decoder_dim: usize,
    pub decoder_rates: Vec<usize>,
    pub latent_dim: usize,
    pub sampling_rate: usize,
}

impl Config {
    pub fn of(config: &file::Config) -> Result<Config, String> {
        // DAC's own files say sample_rate.
        let rate = if config.has("sample_rate") { "sample_rate" } else { "sampling_rate" };
        let result = Config {
            decoder_dim: config.size("decoder_dim")?,
            decoder_rates: config.sizes("decoder_rates")?,
            latent_dim: config.size("latent_dim")?,
            sampling_rate: config.size(rate)?,
        };
        let (channels, times) = (result.decoder_dim, result.decoder_rates.len());
        if channels >> times == 0 {
            return Err(format!("config: decoder_dim is {channels}, too few to be halved {times} times"));
        }
        Ok(result)
    }
}

/// The decoder of a checked configuration, in two buffers that change places at every upsampling.
pub fn network(config: &Config, source: &mut dyn Source) -> Result<Network, String> {
    let snake = |source: &mut dyn Source, name: &str, channels: usize| {
        source.tensor(&format!("{name}.alpha"), &[1, channels, 1]).map(Before::Snake)
    };
    let (mut x, mut other) = (0, 1);
    let input = other;
    let mut channels = config.decoder_dim;
    let mut layers = vec![Layer::same(source, "decoder.model.0", [channels, config.latent_dim, 7], 1, [other, x])?];
    for (i, &rate) in config.decoder_rates.iter().enumerate() {
        let block = format!("decoder.model.{}.block", i + 1);
        let before = snake(source, &format!("{block}.0"), channels)?;
        let shape = [channels, channels / 2, 2 * rate];
        let up = Layer::up(source, &format!("{block}.1"), shape, (rate, rate.div_ceil(2)), [x, other])?;
        layers.push(up.before(before));
        (x, other) = (other, x);
        channels /= 2;
        for (j, dilation) in [1, 3, 9].into_iter().enumerate() {
            let unit = format!("{block}.{}.block", j + 2);
            let before = snake(source, &format!("{unit}.0"), channels)?;
            let wide = Layer::same(source, &format!("{unit}.1"), [channels, channels, 7], dilation, [x, other])?;
            layers.push(wide.before(before));
            let before = snake(source, &format!("{unit}.2"), channels)?;
            let narrow = Layer::same(source, &format!("{unit}.3"), [channels, channels, 1], 1, [other, x])?;
            // x + the unit's output, in place.
            layers.push(Layer { accumulate: true, before, ..narrow });
        }
    }
    let end = config.decoder_rates.len() + 1;
    let before = snake(source, &format!("decoder.model.{end}"), channels)?;
    let last = Layer::same(source, &format!("decoder.model.{}", end + 1), [1, channels, 7], 1, [x, other])?;
    layers.push(Layer { before, after: Activation::Tanh, ..last });
    source.rest(&["decoder."])?;
    Ok(Network {
        title: format!("DAC's decoder, {} channels", config.decoder_dim),
        sampling_rate: config.sampling_rate,
        channels: config.latent_dim,
        input,
        layers,
    })
}
