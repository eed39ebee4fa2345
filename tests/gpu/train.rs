//! The network of examples/train: a step against the same step in f64, and the same bits again.
use libtest_mimic::Failed;
use weightnorm::{Activation, Adam, Axis, DType, Eps, Gpu, Tensor, cpu};

use crate::common::{compare, dg_bound, dot_bound, dv_bound, dx_bound, gamma, linear_terms, sum_bound};
use crate::{Extent, Needs, Outcome, Suite};

#[path = "../../examples/train/src/kernels.rs"]
mod kernels;
#[path = "../../examples/train/src/shape.rs"]
mod shape;
#[allow(dead_code, reason = "the halves of a step, which examples/distributed takes")]
#[path = "../../examples/train/src/step.rs"]
mod step;

use shape::Random;
use step::{INPUT, Network, Optimizer, Variant, layer_sizes};

pub fn register(suite: &mut Suite) {
    for variant in Variant::ALL {
        let name = format!("train::a_step_agrees_with_f64::{}", variant.key());
        // Ordinary weights take products of their own. A weight that starts by the data goes on as one that does not.
        let few = [Variant::DataDependent, Variant::MeanOnly].contains(&variant);
        let needs = if few { Needs::Nothing } else { Needs::Time };
        suite.test(&name, needs, move |gpu| a_step_agrees_with_f64(gpu, variant));
    }
    suite.sampled("train::twenty_steps_give_the_same_bits_again", twenty_steps_give_the_same_bits_again);
}

const EPS: Eps = Eps::Clamp(1e-12);
const WIDTH: usize = 128;
const POINTS: usize = 32;
const RATE: f64 = 0.003;
/// The step that is compared; those before it give every part of the state a value.
const STEP: usize = 4;

fn batches(gpu: &Gpu, seed: u64, count: usize, points: usize) -> Result<(Vec<f32>, Tensor), weightnorm::Error> {
    let data = shape::points(&mut Random::new(seed), count * points);
    let tensor = gpu.upload(&data, &[count, points, INPUT])?;
    Ok((data, tensor))
}

/// Parameters or gradients: all v, and all biases and gains.
type Pair = [Vec<f64>; 2];

fn read(tensors: &[Tensor; 2]) -> Result<Pair, weightnorm::Error> {
    Ok([cpu::widen(&tensors[0].read::<f32>()?), cpu::widen(&tensors[1].read::<f32>()?)])
}

/// Where a tensor lies in the one it is a part of.
fn span(part: &Tensor) -> std::ops::Range<usize> {
    let first = part.offset() as usize / 4;
    first..first + part.len()
}

fn a_step_agrees_with_f64(gpu: &Gpu, variant: Variant) -> Outcome {
    let network = Network::new(gpu, variant, Optimizer::Adam, WIDTH, POINTS)?;
    let (data, points) = batches(gpu, 7, STEP, POINTS)?;
    let losses = gpu.zeros(&[STEP], DType::F32)?;
    network.start(1, (&points, 0))?;
    for step in 1..STEP {
        network.step((&points, step - 1), (&losses, step - 1), step as u64, RATE)?;
    }
    let before = read(&network.parameters)?;
    let moments = |of: &weightnorm::Moments| -> Result<cpu::Moments, weightnorm::Error> {
        let [first, second] = read(&[of.first.clone(), of.second.clone()])?;
        Ok(cpu::Moments { first, second })
    };
    let g = network.moments.g.as_ref().ok_or("the biases are in it")?;
    let state = cpu::AdamState { step: STEP as u64 - 1, g: moments(g)?, v: moments(&network.moments.v)? };
    network.step((&points, STEP - 1), (&losses, STEP - 1), STEP as u64, RATE)?;

    let reference = Reference::new(&network, variant, &before, &data[(STEP - 1) * POINTS * INPUT..])?;
    let exact = reference.step(None)?;
    let loss = f64::from(losses.read::<f32>()?[STEP - 1]);
    if (loss - exact.loss).abs() > 1e-5 * exact.loss {
        return Err(format!("the loss is {loss}, expected {}", exact.loss).into());
    }

    // The step again, with every result of the forward and backward pass moved to an end of the bound for that
    // operator, up or down at random. What comes of it bounds what rounding does; twice that, since two ends were tried
    // in each place of the many.
    let mut random = Random::new(3);
    let moved = (0..3).map(|_| reference.step(Some(&mut random))).collect::<Result<Vec<_>, _>>()?;
    let gradients = read(&network.gradients)?;
    let mut bounds = exact.gradients.clone().map(|all| vec![0.0; all.len()]);
    for (i, layer) in network.layers.iter().enumerate() {
        let parts =
            [Some((0, "dv", &layer.dv)), Some((1, "dbias", &layer.dbias)), layer.dg.as_ref().map(|dg| (1, "dg", dg))];
        for (which, name, part) in parts.into_iter().flatten() {
            let expected = &exact.gradients[which][span(part)];
            let apart =
                |other: &Step| largest(other.gradients[which][span(part)].iter().zip(expected).map(|(a, b)| a - b));
            let bound = 2.0 * moved.iter().map(apart).fold(0.0, f64::max);
            // A bound that says nothing would pass anything. (The gradients of one layer may all be near 0.)
            let size = largest(exact.gradients[which].iter().copied());
            if bound > 1e-2 * size {
                return Err(format!("{name} of layer {i}: a bound of {bound:e} for numbers up to {size:e}").into());
            }
            compare(&gradients[which][span(part)], expected, Some(DType::F32), |_| bound)
                .map_err(|e| format!("{name} of layer {i}: {e}"))?;
            // The control: one element off by a few hundredths of the largest.
            let mut off = gradients[which][span(part)].to_vec();
            off[0] += 0.03 * size;
            if compare(&off, expected, Some(DType::F32), |_| bound).is_ok() {
                return Err(format!("{name} of layer {i}: a wrong element was not found").into());
            }
            bounds[which][span(part)].fill(bound);
        }
    }

    // Adam of the exact gradients, and of gradients off by their bounds either way.
    let adam = |sign: f64| -> Result<Pair, weightnorm::Error> {
        let [mut v, mut g] = before.clone();
        let [dv, dg] = [0, 1]
            .map(|i| exact.gradients[i].iter().zip(&bounds[i]).map(|(d, bound)| d + sign * bound).collect::<Vec<_>>());
        cpu::adam_step(&Adam::new(RATE), &mut g, &dg, &mut v, &dv, &mut state.clone(), None)?;
        Ok([v, g])
    };
    let (expected, more, less) = (adam(0.0)?, adam(1.0)?, adam(-1.0)?);
    let after = read(&network.parameters)?;
    for (i, name) in ["v", "biases and gains"].into_iter().enumerate() {
        let bound = |at: usize| {
            let here = expected[i][at];
            let apart = (more[i][at] - here).abs().max((less[i][at] - here).abs());
            // Some 20 roundings of the update, and one of the sum.
            2.0 * apart + gamma(20.0) * (here - before[i][at]).abs() + gamma(1.0) * here.abs()
        };
        compare(&after[i], &expected[i], Some(DType::F32), bound).map_err(|e| format!("{name}: {e}"))?;
        if after[i] == before[i] {
            return Err(format!("{name}: nothing was changed").into());
        }
    }
    Ok(())
}

fn largest(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.fold(0.0, |most, number| most.max(number.abs()))
}

/// A step of the network in f64.
struct Reference<'a> {
    network: &'a Network,
    layers: Vec<Layer>,
    centred: bool,
    x: Vec<f64>,
    sizes: [usize; 2],
}

struct Layer {
    outs: usize,
    ins: usize,
    skip: bool,
    v: Vec<f64>,
    g: Option<Vec<f64>>,
    bias: Vec<f64>,
    /// Which outputs are above 0 on the GPU; for the last layer, of which the gradient is.
    positive: Vec<bool>,
}

struct Step {
    loss: f64,
    gradients: Pair,
}

impl<'a> Reference<'a> {
    /// `network` after the step, for the sides of ReLUs and of |f - d| on which it was; `parameters` before it.
    fn new(network: &'a Network, variant: Variant, parameters: &Pair, x: &[f32]) -> Result<Self, Failed> {
        let mut layers = vec![];
        for (gpu, (outs, ins, skip)) in network.layers.iter().zip(layer_sizes(WIDTH)) {
            let side = if outs == 1 { &gpu.dy } else { &gpu.h };
            layers.push(Layer {
                outs,
                ins,
                skip,
                v: parameters[0][span(&gpu.v)].to_vec(),
                g: gpu.g.as_ref().map(|g| parameters[1][span(g)].to_vec()),
                bias: parameters[1][span(&gpu.bias)].to_vec(),
                positive: side.read::<f32>()?.iter().map(|&h| h > 0.0).collect(),
            });
        }
        let sizes = [parameters[0].len(), parameters[1].len()];
        Ok(Reference { network, layers, centred: variant == Variant::MeanOnly, x: cpu::widen(x), sizes })
    }

    /// With `random` every result is off by its bound.
    fn step(&self, mut random: Option<&mut Random>) -> Result<Step, Failed> {
        let mut inputs = vec![];
        let mut h = self.x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let &Layer { outs, ins, skip, .. } = layer;
            let centred = self.centred && outs > 1;
            if skip {
                h = h
                    .chunks(ins - INPUT)
                    .zip(self.x.chunks(INPUT))
                    .flat_map(|(h, x)| h.iter().chain(x))
                    .copied()
                    .collect();
            }
            let (x_shape, w_shape) = ([POINTS, ins], [outs, ins]);
            let w = match &layer.g {
                Some(g) => cpu::normalize(&layer.v, &w_shape, Some(g), Axis::Kept(0), EPS)?,
                None => layer.v.clone(),
            };
            let bias = Some(&layer.bias[..]).filter(|_| !centred);
            let mut y = cpu::linear(&h, &x_shape, &w, &w_shape, bias, Activation::None)?;
            if random.is_some() {
                let sums = cpu::linear(&absolute(&h), &x_shape, &absolute(&w), &w_shape, None, Activation::None)?;
                shake(&mut y, &mut random, |at, y| dot_bound(ins, sums[at], y, DType::F32));
            }
            if centred {
                let means = means(&y, outs);
                y = cpu::mean_only_batch_norm(&y, &[POINTS, outs], Some(&layer.bias))?.0;
                shake(&mut y, &mut random, |at, y| {
                    gamma(POINTS as f64 + 4.0) * means[at % outs] + gamma(4.0) * y.abs()
                });
            }
            inputs.push(std::mem::replace(&mut h, y));
            if outs > 1 {
                for (h, &positive) in h.iter_mut().zip(&layer.positive) {
                    *h = on_side(*h, positive, random.is_some()).map_err(|e| format!("ReLU of layer {i}: {e}"))?;
                }
            }
        }

        let mut loss = 0.0;
        let mut dy = vec![];
        let last = &self.layers[self.layers.len() - 1];
        for ((f, point), &positive) in h.iter().zip(self.x.chunks(INPUT)).zip(&last.positive) {
            let &[r, x, y, z] = point else { unreachable!("chunks of four") };
            let nearest = y.hypot(z).min(x.hypot(z)).min(x.hypot(y));
            let error = f - (nearest - r).clamp(-0.1, 0.1);
            on_side(error, positive, random.is_some()).map_err(|e| format!("the loss: {e}"))?;
            loss += error.abs() / POINTS as f64;
            dy.push(if positive { 1.0 } else { -1.0 } / POINTS as f64);
        }

        let mut gradients = self.sizes.map(|size| vec![0.0; size]);
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let &Layer { outs, ins, .. } = layer;
            let (input, w_shape) = (&inputs[i], [outs, ins]);
            let mut centred_dbias = None;
            if self.centred && outs > 1 {
                let means = means(&dy, outs);
                let (dt, dbias) = cpu::mean_only_batch_norm_backward(&dy, &[POINTS, outs])?;
                (dy, centred_dbias) = (dt, Some(dbias));
                shake(&mut dy, &mut random, |at, _| gamma(POINTS as f64 + 4.0) * means[at % outs]);
            }
            let weight = match &layer.g {
                Some(g) => cpu::Weight::Normalized { v: &layer.v, g: Some(g), axis: Axis::Kept(0), eps: EPS },
                None => cpu::Weight::Plain(&layer.v),
            };
            let mut d = cpu::linear_backward(input, &[POINTS, ins], weight, &w_shape, None, Activation::None, &dy)?;
            if random.is_some() {
                let terms = linear_terms(input, weight, &w_shape, &dy);
                shake(&mut d.dx, &mut random, |at, dx| dx_bound(ins, outs, terms.dx[at], dx, DType::F32));
                match (&mut d.dg, &terms.dg) {
                    (Some(dg), Some(terms_dg)) => {
                        shake(dg, &mut random, |at, dg| dg_bound(ins, ins + POINTS, terms_dg[at], dg));
                        let bound = |at: usize, dv| dv_bound(ins, ins + POINTS, terms.dv[at], dv, DType::F32);
                        shake(&mut d.dv, &mut random, bound);
                    }
                    _ => shake(&mut d.dv, &mut random, |at, dv| sum_bound(POINTS, terms.dv[at], dv, DType::F32)),
                }
                let dbias = centred_dbias.as_mut().unwrap_or(&mut d.dbias);
                shake(dbias, &mut random, |at, dbias| sum_bound(POINTS, terms.dbias[at], dbias, DType::F32));
            }
            let gpu = &self.network.layers[i];
            gradients[0][span(&gpu.dv)].copy_from_slice(&d.dv);
            gradients[1][span(&gpu.dbias)].copy_from_slice(&centred_dbias.unwrap_or(d.dbias));
            if let (Some(dg), Some(values)) = (&gpu.dg, &d.dg) {
                gradients[1][span(dg)].copy_from_slice(values);
            }
            if i > 0 {
                let before = &self.layers[i - 1];
                let passed = d.dx.chunks(ins).flat_map(|row| &row[..before.outs]);
                dy = passed.zip(&before.positive).map(|(&dx, &positive)| if positive { dx } else { 0.0 }).collect();
            }
        }
        Ok(Step { loss, gradients })
    }
}

/// ReLU as the GPU decided it, which may be on the other side of 0 where rounding decides.
fn on_side(y: f64, positive: bool, moved: bool) -> Result<f64, String> {
    if (y > 0.0) != positive && y.abs() > 1e-5 && !moved {
        return Err(format!("{y:e} is taken for {}", if positive { "positive" } else { "negative" }));
    }
    Ok(if positive { y } else { 0.0 })
}

fn absolute(numbers: &[f64]) -> Vec<f64> {
    numbers.iter().map(|x| x.abs()).collect()
}

/// The mean magnitude of each column.
fn means(matrix: &[f64], columns: usize) -> Vec<f64> {
    let mut means = vec![0.0; columns];
    for (at, number) in matrix.iter().enumerate() {
        means[at % columns] += number.abs() * columns as f64 / matrix.len() as f64;
    }
    means
}

/// Moves every number by its bound, up or down.
fn shake(numbers: &mut [f64], random: &mut Option<&mut Random>, bound: impl Fn(usize, f64) -> f64) {
    let Some(random) = random else { return };
    for (at, number) in numbers.iter_mut().enumerate() {
        let bound = bound(at, *number);
        *number += if random.uniform(0.0, 1.0) < 0.5 { bound } else { -bound };
    }
}

/// Few: one of the networks above, by the other optimizer.
fn twenty_steps_give_the_same_bits_again(gpu: &Gpu, extent: Extent) -> Outcome {
    const STEPS: usize = 20;
    let (_, points) = batches(gpu, 11, STEPS, 32)?;
    let width = extent.choose(16, WIDTH);
    for (variant, optimizer) in Variant::ALL.into_iter().zip([Optimizer::Sgd, Optimizer::Adam].into_iter().cycle()) {
        if extent == Extent::Few && variant != Variant::DataDependent {
            continue;
        }
        let train = |network: &Network, seed: u64| -> Result<_, weightnorm::Error> {
            let losses = gpu.zeros(&[STEPS + 1], DType::F32)?;
            network.start(seed, (&points, 0))?;
            for step in 0..STEPS {
                network.step((&points, step), (&losses, step), step as u64 + 1, 0.005)?;
            }
            network.evaluate((&points, 0), (&losses, STEPS))?;
            let bits = |tensor: &Tensor| -> Result<Vec<u32>, weightnorm::Error> {
                Ok(tensor.read::<f32>()?.into_iter().map(f32::to_bits).collect())
            };
            let [v, g] = &network.parameters;
            Ok([bits(&losses)?, bits(v)?, bits(g)?])
        };
        let network = Network::new(gpu, variant, optimizer, width, 32)?;
        let other = Network::new(gpu, variant, optimizer, width, 32)?;
        let first = train(&network, 5)?;
        let losses: Vec<f32> = first[0].iter().map(|&bits| f32::from_bits(bits)).collect();
        if losses[STEPS].partial_cmp(&losses[0]) != Some(std::cmp::Ordering::Less) {
            return Err(format!("{}: the loss went from {} to {}", variant.key(), losses[0], losses[STEPS]).into());
        }
        if train(&network, 6)? == first {
            return Err(format!("{}: the same bits from another start", variant.key()).into());
        }
        for (again, what) in [(train(&network, 5)?, "started again"), (train(&other, 5)?, "another network")] {
            if again != first {
                return Err(format!("{}, {what}: other bits", variant.key()).into());
            }
        }
    }
    Ok(())
}
