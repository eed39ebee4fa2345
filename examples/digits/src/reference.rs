//! The same network by the CPU reference, in f64: what the GPU is compared with, and what finite differences prove.
use weightnorm::cpu::{self, ConvEnds, LinearGradients, SgdState, Weight};
use weightnorm::{Activation, Axis, Error, Sgd};

use crate::data::{self, CLASSES, CONVS, Digits, FEATURES, PIXELS, SIDE};
use crate::network::{EPS, MOMENTUM, Variant, geometry};

/// The images of a batch, and what they show.
pub struct Images {
    x: Vec<f64>,
    labels: Vec<usize>,
}

impl Images {
    pub fn of(digits: &Digits, batch: &[usize]) -> Images {
        let image = |&i: &usize| cpu::widen(&digits.pixels[i * PIXELS..][..PIXELS]);
        Images {
            x: batch.iter().flat_map(image).collect(),
            labels: batch.iter().map(|&i| digits.labels[i] as usize).collect(),
        }
    }
}

/// The numbers of a layer: its parameters, or their gradients.
#[derive(Clone)]
pub struct Layer {
    pub v: Vec<f64>,
    /// Empty for ordinary weights.
    pub g: Vec<f64>,
    pub bias: Vec<f64>,
}

pub struct Network {
    variant: Variant,
    pub layers: Vec<Layer>,
    /// Of v and g, and of the bias, layer by layer.
    states: Vec<[SgdState; 2]>,
}

/// What a convolution makes: t before mean-only batch normalization, h behind the ReLU.
struct Output {
    h: Vec<f64>,
    shape: [usize; 4],
}

impl Network {
    /// The weights of a seed. `first` is the batch that data-dependent initialization looks at.
    pub fn start(variant: Variant, seed: u64, first: &Images) -> Result<Network, Error> {
        let mut layers = vec![];
        for (shape, v) in data::shapes().into_iter().zip(data::start(seed)) {
            let v = cpu::widen(&v);
            let g = match variant {
                Variant::Plain => vec![],
                _ => cpu::row_norms(&v, &shape, Axis::Kept(0), EPS)?,
            };
            layers.push(Layer { v, g, bias: vec![0.0; shape[0]] });
        }
        let states = layers.iter().map(|l| [SgdState::new(l.g.len(), l.v.len()), SgdState::new(0, l.bias.len())]);
        let mut network = Network { variant, states: states.collect(), layers };
        if variant == Variant::DataDependent {
            network.initialize(first)?;
        }
        Ok(network)
    }

    /// Every layer's g and bias of its inputs, one after another. For a convolution the features are columns of t.
    fn initialize(&mut self, first: &Images) -> Result<(), Error> {
        let count = first.labels.len();
        for (i, &(_, channels, _)) in CONVS.iter().enumerate() {
            let outputs = self.convolved(first, i)?;
            let x = outputs.last().map_or(&first.x, |output| &output.h);
            let shape = data::output_shape(i, count);
            let unit = cpu::normalize(&self.layers[i].v, &data::shapes()[i], None, Axis::Kept(0), EPS)?;
            let t = columns(&self.conv(i, x, count, &unit, None, Activation::None)?, shape);
            let mut identity = vec![0.0; channels * channels];
            identity.iter_mut().step_by(channels + 1).for_each(|x| *x = 1.0);
            let rows = [t.len() / channels, channels];
            let (g, bias) = cpu::data_dependent_init(&t, &rows, &identity, &[channels, channels], EPS)?;
            (self.layers[i].g, self.layers[i].bias) = (g, bias);
        }
        let outputs = self.convolved(first, CONVS.len())?;
        let last = &mut self.layers[CONVS.len()];
        let features = &outputs[CONVS.len() - 1].h;
        let shapes = [[count, FEATURES], [CLASSES, FEATURES]];
        (last.g, last.bias) = cpu::data_dependent_init(features, &shapes[0], &last.v, &shapes[1], EPS)?;
        Ok(())
    }

    fn weight(&self, i: usize) -> Weight<'_> {
        let Layer { v, g, .. } = &self.layers[i];
        match self.variant {
            Variant::Plain => Weight::Plain(v),
            _ => Weight::Normalized { v, g: Some(g), axis: Axis::Kept(0), eps: EPS },
        }
    }

    /// w of layer `i`.
    fn product(&self, i: usize) -> Result<Vec<f64>, Error> {
        let Layer { v, g, .. } = &self.layers[i];
        match self.variant {
            Variant::Plain => Ok(v.clone()),
            _ => cpu::normalize(v, &data::shapes()[i], Some(g), Axis::Kept(0), EPS),
        }
    }

    fn conv(
        &self,
        i: usize,
        x: &[f64],
        images: usize,
        w: &[f64],
        bias: Option<&[f64]>,
        activation: Activation,
    ) -> Result<Vec<f64>, Error> {
        let ends = ConvEnds { activation, ..ConvEnds::default() };
        cpu::conv(x, &input_shape(i, images), w, &data::shapes()[i], bias, &geometry(i), &ends)
    }

    /// What the first `layers` convolutions make.
    fn convolved(&self, images: &Images, layers: usize) -> Result<Vec<Output>, Error> {
        let count = images.labels.len();
        let mut outputs: Vec<Output> = vec![];
        for (i, layer) in self.layers[..layers].iter().enumerate() {
            let x = outputs.last().map_or(&images.x, |output| &output.h);
            let (w, shape) = (self.product(i)?, data::output_shape(i, count));
            let h = match self.variant {
                Variant::MeanOnly => {
                    let t = columns(&self.conv(i, x, count, &w, None, Activation::None)?, shape);
                    let rows = [t.len() / shape[1], shape[1]];
                    let (z, _) = cpu::mean_only_batch_norm(&t, &rows, Some(&layer.bias))?;
                    channels(&z, shape).into_iter().map(|z| cpu::activate(z, Activation::Relu)).collect()
                }
                _ => self.conv(i, x, count, &w, Some(&layer.bias), Activation::Relu)?,
            };
            outputs.push(Output { h, shape });
        }
        Ok(outputs)
    }

    /// The loss of a batch, and its gradients.
    pub fn loss(&self, images: &Images) -> Result<(f64, Vec<Layer>), Error> {
        let (count, last) = (images.labels.len(), CONVS.len());
        let outputs = self.convolved(images, last)?;
        let (features, shape) = (&outputs[last - 1].h, [CLASSES, FEATURES]);
        let (w, bias) = (self.product(last)?, &self.layers[last].bias);
        let rows = [count, FEATURES];
        let logits = cpu::linear(features, &rows, &w, &shape, Some(bias), Activation::None)?;
        let (loss, d_logits) = cross_entropy(&logits, &images.labels);

        let none = Activation::None;
        let LinearGradients { dx, dv, dg, dbias } =
            cpu::linear_backward(features, &rows, self.weight(last), &shape, None, none, &d_logits)?;
        let mut dh = dx;
        let mut gradients = vec![Layer { v: dv, g: dg.unwrap_or_default(), bias: dbias }];
        for (i, Output { h, shape }) in outputs.iter().enumerate().rev() {
            let dz = cpu::activation_backward(Activation::Relu, h, &dh)?;
            let (dt, centred_dbias) = match self.variant {
                Variant::MeanOnly => {
                    let rows = [dz.len() / shape[1], shape[1]];
                    let (dt, dbias) = cpu::mean_only_batch_norm_backward(&columns(&dz, *shape), &rows)?;
                    (channels(&dt, *shape), Some(dbias))
                }
                _ => (dz, None),
            };
            let x = if i == 0 { &images.x } else { &outputs[i - 1].h };
            let (x_shape, v_shape) = (input_shape(i, count), &data::shapes()[i]);
            let LinearGradients { dx, dv, dg, dbias } =
                cpu::conv_backward(x, &x_shape, self.weight(i), v_shape, &dt, &geometry(i), none)?;
            gradients.push(Layer { v: dv, g: dg.unwrap_or_default(), bias: centred_dbias.unwrap_or(dbias) });
            dh = dx;
        }
        gradients.reverse();
        Ok((loss, gradients))
    }

    /// A step. The loss before it.
    pub fn step(&mut self, images: &Images, rate: f64) -> Result<f64, Error> {
        let (loss, gradients) = self.loss(images)?;
        let sgd = Sgd { momentum: MOMENTUM, ..Sgd::new(rate) };
        for ((layer, d), [weight, bias]) in self.layers.iter_mut().zip(&gradients).zip(&mut self.states) {
            cpu::sgd_step(&sgd, &mut layer.g, &d.g, &mut layer.v, &d.v, weight, None)?;
            cpu::sgd_step(&sgd, &mut [], &[], &mut layer.bias, &d.bias, bias, None)?;
        }
        Ok(loss)
    }
}

fn input_shape(i: usize, images: usize) -> [usize; 4] {
    if i == 0 { [images, 1, SIDE, SIDE] } else { data::output_shape(i - 1, images) }
}

/// [B, C, H, W] as [B·H·W, C]: a feature is a column.
fn columns(data: &[f64], [_, c, h, w]: [usize; 4]) -> Vec<f64> {
    let image = |image: &[f64]| (0..c * h * w).map(|at| image[at % c * h * w + at / c]).collect::<Vec<_>>();
    data.chunks(c * h * w).flat_map(image).collect()
}

/// And back.
fn channels(data: &[f64], [_, c, h, w]: [usize; 4]) -> Vec<f64> {
    let image = |image: &[f64]| (0..c * h * w).map(|at| image[at % (h * w) * c + at / (h * w)]).collect::<Vec<_>>();
    data.chunks(c * h * w).flat_map(image).collect()
}

/// The mean of -log p of the labels, and the gradient of the logits.
fn cross_entropy(logits: &[f64], labels: &[usize]) -> (f64, Vec<f64>) {
    let count = labels.len() as f64;
    let (mut loss, mut gradient) = (0.0, vec![]);
    for (row, &label) in logits.chunks(CLASSES).zip(labels) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.iter().map(|z| (z - most).exp()).sum();
        loss += (total.ln() + most - row[label]) / count;
        let one_hot = |j: usize| if j == label { 1.0 } else { 0.0 };
        gradient.extend(row.iter().enumerate().map(|(j, z)| ((z - most).exp() / total - one_hot(j)) / count));
    }
    (loss, gradient)
}
