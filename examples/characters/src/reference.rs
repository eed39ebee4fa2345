//! The same network by the CPU reference, in f64: what the GPU is compared with, and what finite differences prove.
use std::ops::Range;

use weightnorm::cpu::{self, AdamState, SgdState, Weight};
use weightnorm::{Activation, Adam, Axis, Cell, Error, Sgd};

use crate::data::{self, Sizes, Start, Text};
use crate::network::{EPS, MOMENTUM, Optimizer, Variant};

pub struct Network {
    pub variant: Variant,
    sizes: Sizes,
    classes: usize,
    /// As `network::Network::read` has them: v of input, h and output, the biases, and g of the three.
    pub parameters: Vec<Vec<f64>>,
    sgd: Vec<SgdState>,
    adam: Vec<AdamState>,
    /// h and c behind the step before.
    state: [Vec<f64>; 2],
}

/// What a step gives.
pub struct Step {
    pub loss: f64,
    /// Of the parameters.
    pub gradients: Vec<Vec<f64>>,
    /// h and c behind it.
    state: [Vec<f64>; 2],
}

impl Network {
    /// The weights of a seed.
    pub fn start(variant: Variant, seed: u64, sizes: Sizes, classes: usize) -> Result<Network, Error> {
        let Start { weights, biases } = Start::new(seed, sizes.units, classes);
        let mut parameters: Vec<Vec<f64>> = weights.iter().chain(&biases).map(|values| cpu::widen(values)).collect();
        if variant == Variant::Normalized {
            for (v, shape) in weights.iter().zip(data::shapes(sizes.units, classes)) {
                let norms = cpu::row_norms(&cpu::widen(v), &shape, Axis::Kept(0), EPS)?;
                // As the GPU starts.
                parameters.push(norms.into_iter().map(|n| f64::from(n as f32)).collect());
            }
        }
        let state = || vec![0.0; sizes.batch * sizes.units];
        Ok(Network {
            variant,
            sizes,
            classes,
            sgd: parameters.iter().map(|p| SgdState::new(0, p.len())).collect(),
            adam: parameters.iter().map(|p| AdamState::new(0, p.len())).collect(),
            parameters,
            state: [state(), state()],
        })
    }

    fn weight(&self, i: usize) -> Weight<'_> {
        let v = &self.parameters[i];
        match self.variant {
            Variant::Plain => Weight::Plain(v),
            Variant::Normalized => {
                Weight::Normalized { v, g: Some(&self.parameters[5 + i]), axis: Axis::Kept(0), eps: EPS }
            }
        }
    }

    /// Has the next step begin with h = c = 0.
    pub fn rewind(&mut self) {
        self.state.iter_mut().flatten().for_each(|x| *x = 0.0);
    }

    /// The loss of step `number` of a part of the text, counted from 0, and its gradients, from the present states.
    pub fn loss(&self, text: &Text, part: Range<usize>, number: usize) -> Result<Step, Error> {
        let Sizes { units, batch, length } = self.sizes;
        let (classes, rows) = (self.classes, batch * length);
        let [_, _, output] = data::shapes(units, classes);
        let at = |row: usize, ahead: usize| {
            let place = row % batch * (part.len() / batch) + number * length + row / batch + ahead;
            text.codes[part.start + place % part.len()]
        };
        let mut x = vec![0.0; rows * classes];
        (0..rows).for_each(|row| x[row * classes + at(row, 0)] = 1.0);
        let layer = cpu::Recurrent {
            cell: Cell::Lstm,
            x: &x,
            x_shape: [length, batch, classes],
            units,
            input: self.weight(0),
            hidden: self.weight(1),
            bias: Some(&self.parameters[3]),
            hidden_bias: None,
            h0: Some(&self.state[0]),
            c0: Some(&self.state[1]),
        };
        let cpu::Sequence { y, c } = cpu::recurrent(&layer)?;
        let w = match self.weight(2) {
            Weight::Plain(w) => w.to_vec(),
            Weight::Normalized { v, g, axis, eps } => cpu::normalize(v, &output, g, axis, eps)?,
        };
        let none = Activation::None;
        let logits = cpu::linear(&y, &[rows, units], &w, &output, Some(&self.parameters[4]), none)?;
        let labels: Vec<usize> = (0..rows).map(|row| at(row, 1)).collect();
        let (loss, d_logits) = cross_entropy(&logits, &labels, classes);

        let last = cpu::linear_backward(&y, &[rows, units], self.weight(2), &output, None, none, &d_logits)?;
        let cpu::RecurrentGradients { input, hidden, .. } = cpu::recurrent_backward(&layer, &last.dx, None)?;
        let mut gradients = vec![input.dv, hidden.dv, last.dv, input.dbias, last.dbias];
        let gains = [input.dg, hidden.dg, last.dg];
        gradients.extend(gains.into_iter().flatten());
        let h = y[(length - 1) * batch * units..].to_vec();
        Ok(Step { loss, gradients, state: [h, c.unwrap_or_default()] })
    }

    /// A step of training: number `number`, counted from 1. The loss before it, and the norm of the gradients.
    pub fn step(
        &mut self,
        text: &Text,
        number: usize,
        (optimizer, rate): (Optimizer, f64),
    ) -> Result<(f64, f64), Error> {
        let Step { loss, mut gradients, state } = self.loss(text, text.training(), number - 1)?;
        let norm = gradients.iter().flatten().map(|d| d * d).sum::<f64>().sqrt();
        if norm > 1.0 {
            gradients.iter_mut().flatten().for_each(|d| *d /= norm);
        }
        let states = self.sgd.iter_mut().zip(&mut self.adam);
        for ((parameter, d), (of_sgd, of_adam)) in self.parameters.iter_mut().zip(&gradients).zip(states) {
            match optimizer {
                Optimizer::Sgd => {
                    let sgd = Sgd { momentum: MOMENTUM, ..Sgd::new(rate) };
                    cpu::sgd_step(&sgd, &mut [], &[], parameter, d, of_sgd, None)?;
                }
                Optimizer::Adam => {
                    cpu::adam_step(&Adam::new(rate), &mut [], &[], parameter, d, of_adam, None)?;
                }
            }
        }
        self.state = state;
        Ok((loss, norm))
    }
}

/// The mean of -log p of the labels, and the gradient of the logits.
fn cross_entropy(logits: &[f64], labels: &[usize], classes: usize) -> (f64, Vec<f64>) {
    let count = labels.len() as f64;
    let (mut loss, mut gradient) = (0.0, vec![]);
    for (row, &label) in logits.chunks(classes).zip(labels) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.iter().map(|z| (z - most).exp()).sum();
        loss += (total.ln() + most - row[label]) / count;
        let one_hot = |j: usize| if j == label { 1.0 } else { 0.0 };
        gradient.extend(row.iter().enumerate().map(|(j, z)| ((z - most).exp() / total - one_hot(j)) / count));
    }
    (loss, gradient)
}
