//! The network on the CPU in f64, and how far other arithmetic may be from it.
use weightnorm::{Activation, Axis, Eps, Error, cpu};

use crate::model::Model;

/// One number for each point.
#[derive(Default)]
pub struct Reference {
    pub sdf: Vec<f64>,
    /// A bound on the difference from `sdf` of what is computed with a given [`Rounding`].
    pub bound: Vec<f64>,
}

/// How exact arithmetic is.
pub struct Rounding {
    /// The relative error of an operation.
    unit: f64,
    /// The error of tanh.
    tanh: f64,
}

/// That of a GPU. WGSL promises tanh to 1e-5.
pub const F32: Rounding = Rounding { unit: f32::EPSILON as f64 / 2.0, tanh: 1e-5 };
/// That of two computations in f64, which round in different order.
pub const F64_TWICE: Rounding = Rounding { unit: f64::EPSILON, tanh: 4.0 * f64::EPSILON };

/// Points at a time: all hidden values of these are kept.
const CHUNK: usize = 1024;

/// The network's output for rows of [latent, point], as many as you like.
pub fn decode(model: &Model, inputs: &[f32], rounding: &Rounding) -> Result<Reference, Error> {
    let mut weights = vec![];
    for layer in &model.layers {
        let v = cpu::widen(&layer.v.data);
        let g = layer.g.as_ref().map(|g| cpu::widen(g));
        weights.push(match g {
            Some(g) => cpu::normalize(&v, &[layer.v.rows, layer.v.columns], Some(&g), Axis::Kept(0), Eps::None)?,
            None => v,
        });
    }
    let mut all = Reference::default();
    for rows in inputs.chunks(CHUNK * model.input_width()) {
        let part = decode_some(model, &weights, &cpu::widen(rows), rounding)?;
        all.sdf.extend(part.sdf);
        all.bound.extend(part.bound);
    }
    Ok(all)
}

/// The bound follows the errors through the network to first order: a layer's own rounding error times the slope of
/// the output along it, summed over all layers. Twice that covers products of errors, and ReLUs so close to their
/// kink that rounding decides.
fn decode_some(model: &Model, weights: &[Vec<f64>], input: &[f64], rounding: &Rounding) -> Result<Reference, Error> {
    let input_width = model.input_width();
    let count = input.len() / input_width;

    let mut h = input.to_vec();
    let mut passed = vec![]; // of each layer: its rounding errors, and where its ReLU lets through
    for (i, (layer, w)) in model.layers.iter().zip(weights).enumerate() {
        if layer.skip {
            h = concat(&h, input, count);
        }
        let (w_shape, x_shape) = ([layer.v.rows, layer.v.columns], [count, layer.v.columns]);
        let bias = cpu::widen(&layer.bias);
        let y = cpu::linear(&h, &x_shape, w, &w_shape, Some(&bias), Activation::None)?;
        let sums = cpu::linear(&absolute(&h), &x_shape, &absolute(w), &w_shape, None, Activation::None)?;
        let errors: Vec<f64> =
            sums.iter().zip(&y).map(|(sum, y)| rounding.product(layer.v.columns, *sum, *y)).collect();
        let last = i + 1 == model.layers.len();
        passed.push((errors, y.iter().map(|&y| last || y > 0.0).collect::<Vec<_>>()));
        h = y.iter().map(|&y| cpu::activate(y, activation(model, i))).collect();
    }

    let mut bound = vec![if model.use_tanh { rounding.tanh } else { 0.0 }; count];
    let mut slope = vec![1.0; count];
    for (layer, (w, (errors, open))) in model.layers.iter().zip(weights.iter().zip(&passed)).rev() {
        let (outs, ins) = (layer.v.rows, layer.v.columns);
        for (i, slope) in slope.iter_mut().enumerate() {
            *slope *= f64::from(u8::from(open[i]));
            bound[i / outs] += 2.0 * slope.abs() * errors[i];
        }
        let transposed: Vec<f64> = (0..ins * outs).map(|i| w[i % outs * ins + i / outs]).collect();
        slope = cpu::linear(&slope, &[count, outs], &transposed, &[ins, outs], None, Activation::None)?;
        if layer.skip {
            // The input is exact: only the slope along h goes on.
            slope = slope.chunks(ins).flat_map(|row| &row[..ins - input_width]).copied().collect();
        }
    }
    Ok(Reference { sdf: h, bound })
}

/// What follows layer `i`.
pub fn activation(model: &Model, i: usize) -> Activation {
    match (i + 1 == model.layers.len(), model.use_tanh) {
        (false, _) => Activation::Relu,
        (true, true) => Activation::Tanh,
        (true, false) => Activation::None,
    }
}

impl Rounding {
    /// The error of y = g·((x·v)/n̂) + bias for `sum` = Σ|x·w| over k terms, in units: a dot product is off by k·sum, the
    /// norm by k/2 + 12 (its sum of squares, then the root) times that sum, a division and a product by 6 (twice that,
    /// for g/n̂ made first), and the sum with the bias by |y|, once more for storing it.
    fn product(&self, k: usize, sum: f64, y: f64) -> f64 {
        ((1.5 * k as f64 + 24.0) * sum + 2.0 * y.abs()) * self.unit
    }
}

fn absolute(data: &[f64]) -> Vec<f64> {
    data.iter().map(|x| x.abs()).collect()
}

/// [a, b], row by row.
fn concat(a: &[f64], b: &[f64], rows: usize) -> Vec<f64> {
    let (a, b) = (a.chunks(a.len() / rows), b.chunks(b.len() / rows));
    a.zip(b).flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
}
