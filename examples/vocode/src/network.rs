//! A decoder as a list of convolutions over a few buffers, and which stretches of its input a stretch of sound wants.
use std::ops::Range;

use weightnorm::{Activation, ConvGeometry, Error};

use crate::file::File;
use crate::{dac, hifigan};

/// A network from frames to samples.
pub struct Network {
    /// What it is, in a few words.
    pub title: String,
    /// Samples of a second.
    pub sampling_rate: usize,
    /// Channels of its input.
    pub channels: usize,
    /// Where its input lies.
    pub input: Slot,
    /// In the order of their work. The last one writes the samples.
    pub layers: Vec<Layer>,
}

/// The number of a buffer.
pub type Slot = usize;

/// One convolution with its ends, one dispatch:
///
/// ```text
/// y = after( scale · (conv(before(x)) + bias + residual) + y, if it accumulates )
/// ```
pub struct Layer {
    pub name: String,
    pub weight: Weight,
    pub bias: Vec<f32>,
    pub transposed: bool,
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
    pub before: Before,
    pub after: Activation,
    pub x: Slot,
    pub y: Slot,
    pub residual: Option<Slot>,
    pub scale: f64,
    pub accumulate: bool,
}

/// w = g·v/‖v‖ along axis 0, or w = v without g.
pub struct Weight {
    /// `[out, in, k]`, of a transposed layer `[in, out, k]`.
    pub shape: [usize; 3],
    pub v: Vec<f32>,
    pub g: Option<Vec<f32>>,
}

/// What is done to x as it is read.
pub enum Before {
    Nothing,
    /// x where x ≥ 0, else slope · x.
    LeakyRelu(f64),
    /// x + sin²(αx)/(α + 1e-9), α by channel.
    Snake(Vec<f32>),
}

/// Where the numbers of a network come from.
pub trait Source {
    /// A weight in any spelling.
    fn weight(&mut self, layer: &str, shape: [usize; 3]) -> Result<Weight, String>;
    /// A tensor of that shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String>;
    /// An error for a tensor under one of these names that nobody asked for.
    fn rest(&self, prefixes: &[&str]) -> Result<(), String>;
}

impl Layer {
    /// Nothing but where it reads and writes.
    fn between([x, y]: [Slot; 2]) -> Layer {
        Layer {
            name: String::new(),
            weight: Weight { shape: [0; 3], v: vec![], g: None },
            bias: vec![],
            transposed: false,
            stride: 1,
            padding: 0,
            dilation: 1,
            before: Before::Nothing,
            after: Activation::None,
            x,
            y,
            residual: None,
            scale: 1.0,
            accumulate: false,
        }
    }

    /// A convolution of `[out, in, k]` that keeps the length.
    pub fn same(
        source: &mut dyn Source,
        name: &str,
        shape: [usize; 3],
        dilation: usize,
        [x, y]: [Slot; 2],
    ) -> Result<Layer, String> {
        let (weight, bias) = (source.weight(name, shape)?, source.tensor(&format!("{name}.bias"), &shape[..1])?);
        let (name, padding) = (name.to_owned(), dilation * (shape[2] - 1) / 2);
        Ok(Layer { name, weight, bias, padding, dilation, ..Layer::between([x, y]) })
    }

    /// A transposed convolution of `[in, out, k]`.
    pub fn up(
        source: &mut dyn Source,
        name: &str,
        shape: [usize; 3],
        (stride, padding): (usize, usize),
        [x, y]: [Slot; 2],
    ) -> Result<Layer, String> {
        let (weight, bias) = (source.weight(name, shape)?, source.tensor(&format!("{name}.bias"), &shape[1..2])?);
        let name = name.to_owned();
        Ok(Layer { name, weight, bias, transposed: true, stride, padding, ..Layer::between([x, y]) })
    }

    pub fn before(self, before: Before) -> Layer {
        Layer { before, ..self }
    }

    pub fn geometry(&self) -> ConvGeometry {
        ConvGeometry::default().stride(self.stride).padding(self.padding).dilation(self.dilation)
    }

    /// Channels of x and of y.
    pub fn channels(&self) -> [usize; 2] {
        let [first, second, _] = self.weight.shape;
        if self.transposed { [first, second] } else { [second, first] }
    }

    /// The shape of y for `length` positions of x.
    pub fn y_shape(&self, length: usize) -> Result<[usize; 3], Error> {
        let (x_shape, v_shape, geometry) = ([1, self.channels()[0], length], &self.weight.shape, self.geometry());
        let shape = match self.transposed {
            true => geometry.conv_transposed_shape(&x_shape, v_shape)?,
            false => geometry.conv_shape(&x_shape, v_shape)?,
        };
        Ok([shape[0], shape[1], shape[2]])
    }

    /// The positions of x that these of y are made of. Both may be beyond the ends, where there are zeros.
    fn reads(&self, y: &Range<i64>) -> Range<i64> {
        let [stride, padding, dilation, k] =
            [self.stride, self.padding, self.dilation, self.weight.shape[2]].map(|n| n as i64);
        let reach = (k - 1) * dilation;
        if self.transposed {
            let first = y.start + padding - reach;
            -(-first).div_euclid(stride)..(y.end - 1 + padding).div_euclid(stride) + 1
        } else {
            y.start * stride - padding..(y.end - 1) * stride - padding + reach + 1
        }
    }
}

/// A stretch of frames that makes a stretch of samples, with what these want on both sides.
#[derive(Debug, Clone, PartialEq)]
pub struct Stretch {
    /// Frames to put in.
    pub frames: Range<usize>,
    /// The wanted samples among those that come out.
    pub kept: Range<usize>,
}

impl Network {
    /// The network of a model file.
    pub fn of_file(file: &mut File<'_>) -> Result<Network, String> {
        let config = file.config()?;
        match (config.has("upsample_rates"), config.has("decoder_rates")) {
            (true, false) => hifigan::network(&hifigan::Config::of(&config)?, file),
            (false, true) => dac::network(&dac::Config::of(&config)?, file),
            _ => Err("config is neither that of HiFi-GAN (upsample_rates) nor that of DAC (decoder_rates)".to_owned()),
        }
    }

    /// Samples from one frame to the next.
    pub fn hop(&self) -> usize {
        self.layers.iter().map(|layer| layer.stride).product()
    }

    pub fn slots(&self) -> usize {
        self.layers.iter().map(|layer| layer.x.max(layer.y) + 1).max().unwrap_or(0)
    }

    /// The shapes of x and y of each layer.
    pub fn shapes(&self, frames: usize) -> Result<Vec<[[usize; 3]; 2]>, Error> {
        let mut held = vec![[1, 0, 0]; self.slots()];
        held[self.input] = [1, self.channels, frames];
        let shape = |layer: &Layer| {
            let x = held[layer.x];
            held[layer.y] = layer.y_shape(x[2])?;
            Ok([x, held[layer.y]])
        };
        self.layers.iter().map(shape).collect()
    }

    /// How many samples become of so many frames.
    pub fn samples(&self, frames: usize) -> Result<usize, Error> {
        Ok(self.shapes(frames)?.last().map_or(0, |[_, y]| y[2]))
    }

    /// Elements that each buffer holds at most.
    pub fn capacities(&self, frames: usize) -> Result<Vec<usize>, Error> {
        let mut most = vec![0; self.slots()];
        most[self.input] = self.channels * frames;
        for (layer, [_, y]) in self.layers.iter().zip(self.shapes(frames)?) {
            most[layer.y] = most[layer.y].max(y.iter().product());
        }
        Ok(most)
    }

    /// Multiply-adds for so many frames.
    pub fn work(&self, frames: usize) -> Result<usize, Error> {
        let shapes = self.shapes(frames)?;
        let of_layer = |(layer, [x, y]): (&Layer, &[[usize; 3]; 2])| {
            layer.weight.v.len() * if layer.transposed { x[2] } else { y[2] }
        };
        Ok(self.layers.iter().zip(&shapes).map(of_layer).sum())
    }

    /// What the sound of frames `wanted`, of so many, is made of.
    pub fn stretch(&self, frames: usize, wanted: Range<usize>) -> Result<Stretch, Error> {
        let (hop, all) = (self.hop(), self.samples(frames)?);
        let end = if wanted.end == frames { all } else { all.min(wanted.end * hop) };
        let samples = (wanted.start * hop).min(end)..end;
        let mut needs: Vec<Option<Range<i64>>> = vec![None; self.slots()];
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let y = match needs[layer.y].take() {
                Some(y) => y,
                None if i + 1 == self.layers.len() => samples.start as i64..samples.end as i64,
                None => continue,
            };
            let kept = layer.accumulate.then_some((layer.y, y.clone()));
            let residual = layer.residual.map(|slot| (slot, y.clone()));
            for (slot, range) in [kept, residual, Some((layer.x, layer.reads(&y)))].into_iter().flatten() {
                let need = needs[slot].get_or_insert_with(|| range.clone());
                *need = need.start.min(range.start)..need.end.max(range.end);
            }
        }
        let need = needs[self.input].clone().unwrap_or(0..0);
        let inside = |position: i64| position.clamp(0, frames as i64) as usize;
        let frames = inside(need.start)..inside(need.end);
        let before = frames.start * hop;
        Ok(Stretch { kept: samples.start - before..samples.end - before, frames })
    }

    /// All stretches of `chunk` frames each.
    pub fn stretches(&self, frames: usize, chunk: usize) -> Result<Vec<Stretch>, Error> {
        let starts = (0..frames).step_by(chunk.max(1));
        starts.map(|start| self.stretch(frames, start..frames.min(start + chunk))).collect()
    }
}
