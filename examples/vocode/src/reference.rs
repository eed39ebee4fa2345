//! The network on the CPU in f64, and how far other arithmetic may be from it.
//!
//! Worst cases do not do. One layer's own rounding has a bound by the sizes of what it adds up; led on through all
//! further layers by Σ|w|, it grows some tenfold a layer, and after thirty of them says nothing. So signs are taken to
//! be as good as random, within a sum (k roundings come to √k of them: Higham and Mary 2019) and from element to
//! element: each layer adds its rounding, with a random sign, to a few `DRAWS` of errors, and its exact derivative
//! leads them on. A sample's bound is `MARGIN` times their root mean square there. The margin covers products of
//! errors, and kinks that rounding decides about, too.
use std::thread;

use weightnorm::cpu::{self, ConvEnds};
use weightnorm::{Activation, Axis, Eps, Error};

use crate::network::{Before, Layer, Network};
use crate::random::Random;

/// The sound of some frames.
#[derive(Clone)]
pub struct Reference {
    pub samples: Vec<f64>,
    /// A bound on the difference from `samples` of what is computed with a given [`Rounding`].
    pub bound: Vec<f64>,
}

/// How exact arithmetic is.
pub struct Rounding {
    /// The relative error of an operation.
    unit: f64,
}

/// That of a GPU.
pub const F32: Rounding = Rounding { unit: f32::EPSILON as f64 / 2.0 };
/// That of two computations in f64, which round in different order.
pub const F64_TWICE: Rounding = Rounding { unit: f64::EPSILON };

/// How many errors are drawn for each element.
const DRAWS: usize = 4;
/// Of what is drawn.
const MARGIN: f64 = 6.0;
/// Samples on both sides of one whose errors are taken together with its own, since few are drawn.
const NEIGHBOURS: usize = 16;

/// What a buffer holds: the values of `[1, channels, length]`, and of each draw the errors.
#[derive(Clone, Default)]
struct Signal {
    shape: [usize; 3],
    values: Vec<f64>,
    errors: Vec<Vec<f64>>,
}

/// The samples of `input`, `[1, channels, frames]`; with a bound for `rounding`, if there is one.
pub fn vocode(network: &Network, input: &[f32], rounding: Option<&Rounding>) -> Result<Reference, Error> {
    let shape = [1, network.channels, input.len() / network.channels];
    let mut signals = vec![Signal::default(); network.slots()];
    let draws = if rounding.is_some() { DRAWS } else { 0 };
    let zeros = vec![vec![0.0; input.len()]; draws];
    signals[network.input] = Signal { shape, values: cpu::widen(input), errors: zeros };
    let mut random = Random(1);
    for layer in &network.layers {
        let y = apply(layer, &signals, rounding, &mut random)?;
        signals[layer.y] = y;
    }
    let last = network.layers.last().map_or(network.input, |layer| layer.y);
    let Signal { values, errors, .. } = std::mem::take(&mut signals[last]);
    Ok(Reference { bound: bound(&errors, values.len()), samples: values })
}

fn apply(layer: &Layer, signals: &[Signal], rounding: Option<&Rounding>, random: &mut Random) -> Result<Signal, Error> {
    let x = &signals[layer.x];
    let v = cpu::widen(&layer.weight.v);
    let w = match &layer.weight.g {
        Some(g) => cpu::normalize(&v, &layer.weight.shape, Some(&cpu::widen(g)), Axis::Kept(0), Eps::None)?,
        None => v,
    };
    let bias = cpu::widen(&layer.bias);
    let read: Vec<Read> = x.values.iter().enumerate().map(|(i, &x_i)| before(layer, i / x.shape[2], x_i)).collect();
    let conv = |x_values: Vec<f64>, w: &[f64], bias: Option<&[f64]>| {
        let conv = if layer.transposed { cpu::conv_transposed } else { cpu::conv };
        conv(&x_values, &x.shape, w, &layer.weight.shape, bias, &layer.geometry(), &ConvEnds::default())
    };
    // Values, sums of magnitudes and errors, side by side.
    let magnitudes = |data: &[f64]| data.iter().map(|x| x.abs()).collect::<Vec<f64>>();
    let (mut values, sums, mut errors) = thread::scope(|scope| {
        let of_draw = |errors: &Vec<f64>| {
            let led: Vec<f64> = errors.iter().zip(&read).map(|(error, read)| error * read.slope).collect();
            let (conv, w) = (&conv, &w);
            scope.spawn(move || conv(led, w, None))
        };
        let draws: Vec<_> = x.errors.iter().map(of_draw).collect();
        let sums = rounding.map(|_| {
            let (conv, read, w, bias) = (&conv, &read, magnitudes(&w), magnitudes(&bias));
            scope.spawn(move || conv(read.iter().map(|read| read.magnitude).collect(), &w, Some(&bias)))
        });
        let values = conv(read.iter().map(|read| read.value).collect(), &w, Some(&bias))?;
        let sums = sums.map(|thread| thread.join().expect("it does not panic")).transpose()?;
        let errors = draws.into_iter().map(|thread| thread.join().expect("it does not panic"));
        Ok::<_, Error>((values, sums, errors.collect::<Result<Vec<_>, _>>()?))
    })?;

    let shape = layer.y_shape(x.shape[2])?;
    let residual = layer.residual.map(|slot| &signals[slot]);
    let old = layer.accumulate.then(|| &signals[layer.y]);
    let scale = layer.scale;
    // Of one sum: so many products, and what a norm takes.
    let terms = layer.weight.v.len() / layer.weight.shape[usize::from(layer.transposed)];
    for (i, value) in values.iter_mut().enumerate() {
        let residual_value = residual.map_or(0.0, |signal| signal.values[i]);
        let old_value = old.map_or(0.0, |signal| signal.values[i]);
        let sum = *value + residual_value;
        let z = scale * sum + old_value;
        let y = cpu::activate(z, layer.after);
        let slope = if layer.after == Activation::Tanh { 1.0 - y * y } else { 1.0 };
        *value = y;
        let Some((sums, rounding)) = sums.as_ref().zip(rounding) else { continue };
        let of_sum = rounding.sum(terms, sums[i]) + 2.0 * rounding.unit * (residual_value.abs() + sum.abs());
        let own = scale.abs() * (of_sum + 2.0 * rounding.unit * sum.abs())
            + 2.0 * rounding.unit * (old_value.abs() + z.abs());
        let of_activation = if layer.after == Activation::None { 0.0 } else { 8.0 * rounding.unit * y.abs() };
        for (draw, error) in errors.iter_mut().enumerate() {
            let beside = residual.map_or(0.0, |signal| signal.errors[draw][i]);
            let before = old.map_or(0.0, |signal| signal.errors[draw][i]);
            let sign = if random.bits() & 1 == 0 { 1.0 } else { -1.0 };
            error[i] = slope * (scale * (error[i] + beside) + before) + sign * (slope * own + of_activation);
        }
    }
    Ok(Signal { shape, values, errors })
}

/// An element of x as a layer reads it.
struct Read {
    value: f64,
    /// The derivative of the value by x.
    slope: f64,
    /// The sizes of all that the value is made of.
    magnitude: f64,
}

fn before(layer: &Layer, channel: usize, x: f64) -> Read {
    match &layer.before {
        Before::Nothing => Read { value: x, slope: 1.0, magnitude: x.abs() },
        Before::LeakyRelu(slope) => {
            let slope = if x < 0.0 { *slope } else { 1.0 };
            Read { value: slope * x, slope, magnitude: (slope * x).abs() }
        }
        Before::Snake(alpha) => {
            let alpha = f64::from(alpha[channel]);
            let (angle, divisor) = (alpha * x, alpha + 1e-9);
            Read {
                value: cpu::snake(x, alpha),
                slope: 1.0 + (2.0 * angle).sin() * alpha / divisor,
                magnitude: x.abs() + angle.powi(2).min(1.0) / divisor.abs(),
            }
        }
    }
}

impl Rounding {
    /// The error of Σ x·(g·v/n̂) + bias for `sum` = Σ|x·w| + |bias| over k terms, in units: of the dot product √k, of
    /// the norm √k/2 and 12 (its sum of squares, then the root), of a division and a product 6 (twice that, for g/n̂ made
    /// first), of the activation of x 8, and one for storing it.
    fn sum(&self, k: usize, sum: f64) -> f64 {
        (1.5 * (k as f64).sqrt() + 33.0) * sum * self.unit
    }
}

/// [`MARGIN`] times the root mean square of all draws around each sample.
fn bound(errors: &[Vec<f64>], count: usize) -> Vec<f64> {
    if errors.is_empty() {
        return vec![];
    }
    let square = |i: usize| errors.iter().map(|draw| draw[i].powi(2)).sum::<f64>() / errors.len() as f64;
    let squares: Vec<f64> = (0..count).map(square).collect();
    let of_sample = |i: usize| {
        let around = &squares[i.saturating_sub(NEIGHBOURS)..count.min(i + NEIGHBOURS + 1)];
        MARGIN * (around.iter().sum::<f64>() / around.len() as f64).sqrt()
    };
    (0..count).map(of_sample).collect()
}
