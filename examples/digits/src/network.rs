//! The network on the GPU, and a step of its training: every kernel of it in one pass, one submission.
//!
//! Three convolutions with ReLU, a linear layer, softmax and cross-entropy. The weights of all layers are parts of one
//! buffer, the gains and biases parts of another, and so are their gradients and momenta: one dispatch steps them all.
//!
//! Mean-only batch normalization of the crate is for features in columns, and a convolution gives [B, C, H, W]. Here it
//! is made of other operators of the crate: see [`Network::centre`].
use weightnorm::{
    Activation, ActivationBackward, Axis, Conv, ConvGeometry, DType, DataDependentInit, Eps, Error, Gpu, Gradients,
    Linear, LinearBackward, Parameter, Recorder, Sgd, SgdState, Tensor, Weight, WeightNorm, wgpu,
};

use crate::data::{self, CLASSES, CONVS, Digits, FEATURES, PIXELS, SIDE};
use crate::kernels::{Call, Kernels};

pub const MOMENTUM: f64 = 0.9;
pub const EPS: Eps = Eps::Clamp(1e-12);

/// How the weights are parametrized and where they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Ordinary weights w.
    Plain,
    /// w = g·v/‖v‖, at first with g = ‖v‖: the network starts where the plain one does. PyTorch's `weight_norm`.
    Normalized,
    /// The same with a first g and bias that give every feature mean 0 and variance 1 over the first batch (Salimans
    /// and Kingma 2016, section 3).
    DataDependent,
    /// `Normalized`, and mean-only batch normalization of the convolutions (section 4).
    MeanOnly,
}

impl Variant {
    pub const ALL: [Variant; 4] = [Variant::Plain, Variant::Normalized, Variant::DataDependent, Variant::MeanOnly];

    pub fn key(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Normalized => "weight_norm",
            Variant::DataDependent => "data_dependent",
            Variant::MeanOnly => "mean_only",
        }
    }
}

/// The geometry of convolution `i`.
pub fn geometry(i: usize) -> ConvGeometry {
    let geometry = ConvGeometry::default();
    if CONVS[i].2 == 3 { geometry.padding(1) } else { geometry.stride(2) }
}

/// The images on the GPU, and a number of them at a time.
pub struct Batch {
    /// The numbers of the images, which are the ones of a step or stay as they are.
    chosen: Tensor,
    gather: Call,
    x: Tensor,
    convs: Vec<Activations>,
    /// The last h, a row for each image, and its gradient.
    features: [Tensor; 2],
    /// Of the linear layer, for its backward pass.
    u: Tensor,
    logits: Tensor,
    d_logits: Tensor,
    loss: Call,
    /// The loss, and the share of images that is told right.
    result: Tensor,
}

/// What convolution makes of a batch.
struct Activations {
    /// Behind the ReLU, and its gradient.
    h: Tensor,
    dh: Tensor,
    /// Before mean-only batch normalization, and its gradient.
    t: Tensor,
    /// Sums by channel, [1, C].
    sums: Tensor,
    /// Makes minus the means of them: -1/(B·H·W) on the diagonal.
    minus_mean: Tensor,
    /// Ones, [C, 1, 1, 1]: a depthwise convolution that adds its bias and does no more.
    ones: Tensor,
}

/// The images, and what all batches share.
pub struct Images {
    gpu: Gpu,
    kernels: Kernels,
    pixels: Tensor,
    labels: Tensor,
}

impl Images {
    pub fn new(gpu: &Gpu, digits: &Digits) -> Result<Images, Error> {
        let labels: Vec<f32> = digits.labels.iter().map(|&label| label as f32).collect();
        Ok(Images {
            gpu: gpu.clone(),
            kernels: Kernels::new(gpu),
            pixels: gpu.upload(&digits.pixels, &[labels.len(), PIXELS])?,
            labels: gpu.upload(&labels, &[labels.len()])?,
        })
    }

    /// Room for these images.
    pub fn batch(&self, images: std::ops::Range<usize>) -> Result<Batch, Error> {
        let Images { gpu, kernels, pixels, labels } = self;
        let count = images.len();
        let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
        let chosen = gpu.upload(&images.map(|image| image as f32).collect::<Vec<_>>(), &[count])?;
        let x = zeros(&[count, 1, SIDE, SIDE])?;
        let convs = (0..CONVS.len()).map(|i| Activations::new(gpu, data::output_shape(i, count)));
        let convs = convs.collect::<Result<Vec<_>, Error>>()?;
        let last = convs.last().expect("there are three");
        let features = [last.h.reshape(&[count, FEATURES])?, last.dh.reshape(&[count, FEATURES])?];
        let [u, logits, d_logits] = [(); 3].map(|()| zeros(&[count, CLASSES]));
        let (u, logits, d_logits, result) = (u?, logits?, d_logits?, zeros(&[2])?);
        Ok(Batch {
            gather: kernels.gather(pixels, &chosen, &x)?,
            loss: kernels.loss([&logits, labels, &chosen], &d_logits, &result)?,
            chosen,
            x,
            convs,
            features,
            u,
            logits,
            d_logits,
            result,
        })
    }
}

impl Activations {
    fn new(gpu: &Gpu, shape: [usize; 4]) -> Result<Activations, Error> {
        let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
        let channels = shape[1];
        let positions = shape[0] * shape[2] * shape[3];
        let mut minus_mean = vec![0.0; channels * channels];
        minus_mean.iter_mut().step_by(channels + 1).for_each(|x| *x = -1.0 / positions as f32);
        Ok(Activations {
            h: zeros(&shape)?,
            dh: zeros(&shape)?,
            t: zeros(&shape)?,
            sums: zeros(&[1, channels])?,
            minus_mean: gpu.upload(&minus_mean, &[channels, channels])?,
            ones: gpu.upload(&vec![1.0f32; channels], &[channels, 1, 1, 1])?,
        })
    }

    /// The sums of each channel of `tensor`, which is like h: as if it were the gradient of a convolution with a bias.
    fn sum(&self, ops: &mut Recorder<'_, '_>, tensor: &Tensor, sums: &Tensor) -> Result<(), Error> {
        let channels = self.ones.len();
        let like = Conv::new(&self.t, &self.ones).groups(channels);
        ops.conv_backward(like, tensor, &Gradients::default().dbias(&sums.reshape(&[channels])?))
    }

    /// y = act(x + shift), a shift for each channel.
    fn shifted(
        &self,
        ops: &mut Recorder<'_, '_>,
        [x, shift, y]: [&Tensor; 3],
        activation: Activation,
    ) -> Result<(), Error> {
        let channels = self.ones.len();
        let shift = shift.reshape(&[channels])?;
        ops.conv(Conv::new(x, &self.ones).groups(channels).bias(&shift).activation(activation), y)
    }
}

/// A network in training.
pub struct Network {
    gpu: Gpu,
    variant: Variant,
    /// Three convolutions and a linear layer.
    layers: Vec<Layer>,
    /// All v, and all g and biases.
    parameters: [Tensor; 2],
    gradients: [Tensor; 2],
    state: SgdState,
}

/// The parameters of a layer, with their gradients.
struct Layer {
    v: Tensor,
    g: Option<Tensor>,
    bias: Tensor,
    dv: Tensor,
    dg: Option<Tensor>,
    dbias: Tensor,
    /// n̂ of the forward pass, for the backward pass.
    norms: Option<Tensor>,
    /// Bias minus mean of mean-only batch normalization, [1, C].
    shift: Tensor,
}

#[derive(Clone, Copy, PartialEq)]
enum Means {
    /// Of the batch.
    Batch,
    /// Those of the batch before.
    Last,
}

impl Network {
    /// Allocates. [`Network::start`] gives it weights.
    pub fn new(gpu: &Gpu, variant: Variant) -> Result<Network, Error> {
        let shapes = data::shapes();
        let normalized = variant != Variant::Plain;
        // The biases, then the gains.
        let mut vectors: Vec<Vec<usize>> = shapes.iter().map(|shape| vec![shape[0]]).collect();
        if normalized {
            vectors.extend_from_within(..);
        }
        let ([all_v, all_dv], [v, dv]) = twice(|| parts(gpu, &shapes))?;
        let ([all_g, all_dg], [g, dg]) = twice(|| parts(gpu, &vectors))?;
        let mut layers = vec![];
        for (i, shape) in shapes.iter().enumerate() {
            let gain = |of: &[Tensor]| of.get(shapes.len() + i).cloned();
            layers.push(Layer {
                v: v[i].clone(),
                g: gain(&g),
                bias: g[i].clone(),
                dv: dv[i].clone(),
                dg: gain(&dg),
                dbias: dg[i].clone(),
                norms: normalized.then(|| gpu.zeros(&shape[..1], DType::F32)).transpose()?,
                shift: gpu.zeros(&[1, shape[0]], DType::F32)?,
            });
        }
        let state = gpu.sgd_state(&all_v, Some(&all_g))?;
        let (parameters, gradients) = ([all_v, all_g], [all_dv, all_dg]);
        Ok(Network { gpu: gpu.clone(), variant, layers, parameters, gradients, state })
    }

    /// The weights of a seed. `first` is the batch that data-dependent initialization looks at.
    pub fn start(&self, seed: u64, batch: &Batch, first: &Tensor) -> Result<(), Error> {
        for (layer, v) in self.layers.iter().zip(data::start(seed)) {
            self.write(&layer.v, &v)?;
            self.write(&layer.bias, &vec![0.0; layer.bias.len()])?;
            if let Some(g) = &layer.g {
                self.gpu.run(|ops| ops.row_norms(WeightNorm::unit(&layer.v).eps(EPS), g))?;
            }
        }
        if self.variant == Variant::DataDependent { self.initialize(batch, first) } else { Ok(()) }
    }

    fn write(&self, tensor: &Tensor, data: &[f32]) -> Result<(), Error> {
        self.gpu.queue().write_buffer(tensor.buffer()?, tensor.offset(), bytemuck::cast_slice(data));
        Ok(())
    }

    /// Data-dependent initialization. For the linear layer the crate has it; for a convolution its statistics are
    /// those of the channels of t = v·x/‖v‖, whose variance is the squared norm of t - mean over B·H·W.
    fn initialize(&self, batch: &Batch, first: &Tensor) -> Result<(), Error> {
        let (last, convs) = self.layers.split_last().expect("there are four");
        let mut input = &batch.x;
        self.submit(|encoder| {
            choose(encoder, batch, (first, 0))?;
            batch.gather.record(&mut encoder.begin_compute_pass(&Default::default()));
            Ok(())
        })?;
        for (i, (layer, at)) in convs.iter().zip(&batch.convs).enumerate() {
            let (Some(g), Some(norms)) = (&layer.g, &layer.norms) else { return Ok(()) };
            let weight = WeightNorm::unit(&layer.v).eps(EPS);
            self.gpu.run(|ops| {
                ops.conv(Conv::new(input, weight).geometry(geometry(i)), &at.t)?;
                at.sum(ops, &at.t, &at.sums)?;
                ops.linear(Linear::new(&at.sums, &at.minus_mean), &layer.shift)?;
                at.shifted(ops, [&at.t, &layer.shift, &at.h], Activation::None)?;
                ops.row_norms(WeightNorm::unit(&at.h).axis(Axis::Kept(1)).eps(Eps::None), norms)
            })?;
            let scale = (at.h.len() as f32 / norms.len() as f32).sqrt();
            let gains: Vec<f32> = norms.read::<f32>()?.iter().map(|&n| if n > 0.0 { scale / n } else { 1.0 }).collect();
            let bias: Vec<f32> = layer.shift.read::<f32>()?.iter().zip(&gains).map(|(shift, g)| shift * g).collect();
            self.write(g, &gains)?;
            self.write(&layer.bias, &bias)?;
            self.gpu.run(|ops| ops.conv(layer.conv(i, input).bias(&layer.bias).activation(Activation::Relu), &at.h))?;
            input = &at.h;
        }
        let Some(g) = &last.g else { return Ok(()) };
        let init = DataDependentInit::new(&batch.features[0], &last.v).eps(EPS);
        self.gpu.run(|ops| ops.data_dependent_init(init, g, &last.bias))
    }

    /// Makes step `number`, counted from 1, on batch `number - 1` of `order`. The batch's loss before the step, and the
    /// share of it that was told right, go to `results[number - 1]`.
    pub fn step(&self, batch: &Batch, order: &Tensor, results: &Tensor, number: usize, rate: f64) -> Result<(), Error> {
        self.submit(|encoder| {
            choose(encoder, batch, (order, number - 1))?;
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            batch.gather.record(&mut pass);
            self.forward(&mut self.gpu.record_pass(&mut pass), batch, Means::Batch)?;
            batch.loss.record(&mut pass);
            let mut ops = self.gpu.record_pass(&mut pass);
            self.backward(&mut ops, batch)?;
            let ([v, g], [dv, dg]) = (&self.parameters, &self.gradients);
            let sgd = Sgd { momentum: MOMENTUM, ..Sgd::new(rate) };
            ops.sgd_step(Parameter::new(v, dv).gain(g, dg), &self.state, number as u64, &sgd)?;
            drop(ops);
            drop(pass);
            keep(encoder, batch, (results, number - 1))
        })
    }

    /// The loss of the images of `batch`, and the share that is told right, go to `results[at]`. Mean-only batch
    /// normalization subtracts the means of all that is trained on, `population`.
    pub fn evaluate(&self, batch: &Batch, population: &Batch, (results, at): (&Tensor, usize)) -> Result<(), Error> {
        self.submit(|encoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            if self.variant == Variant::MeanOnly {
                population.gather.record(&mut pass);
                self.forward(&mut self.gpu.record_pass(&mut pass), population, Means::Batch)?;
            }
            batch.gather.record(&mut pass);
            self.forward(&mut self.gpu.record_pass(&mut pass), batch, Means::Last)?;
            batch.loss.record(&mut pass);
            drop(pass);
            keep(encoder, batch, (results, at))
        })
    }

    fn submit(&self, record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<(), Error>) -> Result<(), Error> {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        record(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn forward(&self, ops: &mut Recorder<'_, '_>, batch: &Batch, means: Means) -> Result<(), Error> {
        let mut input = &batch.x;
        for (i, (layer, at)) in self.layers.iter().zip(&batch.convs).enumerate() {
            let conv = layer.conv(i, input);
            match self.variant {
                Variant::MeanOnly => {
                    ops.conv(conv, &at.t)?;
                    self.centre(ops, layer, at, means)?;
                }
                _ => ops.conv(conv.bias(&layer.bias).activation(Activation::Relu), &at.h)?,
            }
            input = &at.h;
        }
        let last = self.layers.last().expect("there are four");
        let linear = Linear::new(&batch.features[0], last.weight(None)).bias(&last.bias);
        let linear = if last.g.is_some() { linear.norms(last.norms.as_ref()).u(&batch.u) } else { linear };
        ops.linear(linear, &batch.logits)
    }

    /// Mean-only batch normalization and the ReLU, h = relu(t - mean + bias): sums by channel, a linear layer that
    /// makes bias - mean of them, and a depthwise convolution that adds it.
    fn centre(&self, ops: &mut Recorder<'_, '_>, layer: &Layer, at: &Activations, means: Means) -> Result<(), Error> {
        if means == Means::Batch {
            at.sum(ops, &at.t, &at.sums)?;
            ops.linear(Linear::new(&at.sums, &at.minus_mean).bias(&layer.bias), &layer.shift)?;
        }
        at.shifted(ops, [&at.t, &layer.shift, &at.h], Activation::Relu)
    }

    /// Everything from the gradient of the logits on.
    fn backward(&self, ops: &mut Recorder<'_, '_>, batch: &Batch) -> Result<(), Error> {
        let last = self.layers.last().expect("there are four");
        let [features, d_features] = &batch.features;
        let u = last.g.as_ref().map(|_| &batch.u);
        let linear = LinearBackward::new(features, last.weight(last.norms.as_ref()), &batch.d_logits).u(u);
        ops.linear_backward(linear, &last.gradients().dx(d_features).dbias(&last.dbias))?;
        for (i, (layer, at)) in self.layers.iter().zip(&batch.convs).enumerate().rev() {
            let (input, dx) = match i {
                0 => (&batch.x, None),
                _ => (&batch.convs[i - 1].h, Some(&batch.convs[i - 1].dh)),
            };
            let conv = Conv::new(input, layer.weight(layer.norms.as_ref())).geometry(geometry(i));
            let gradients = layer.gradients().dx(dx);
            match self.variant {
                Variant::MeanOnly => {
                    self.centre_backward(ops, layer, at)?;
                    ops.conv_backward(conv, &at.t, &gradients)?;
                }
                _ => {
                    let conv = conv.activation(Activation::Relu).output(&at.h);
                    ops.conv_backward(conv, &at.dh, &gradients.dbias(&layer.dbias))?;
                }
            }
        }
        Ok(())
    }

    /// The gradient of t, in its place: dz = dh ⊙ relu'(h), dbias = Σ dz, dt = dz - mean(dz).
    fn centre_backward(&self, ops: &mut Recorder<'_, '_>, layer: &Layer, at: &Activations) -> Result<(), Error> {
        ops.activation_backward(ActivationBackward::new(Activation::Relu, &at.h, &at.dh).from_output(), &at.dh)?;
        at.sum(ops, &at.dh, &layer.dbias)?;
        ops.linear(Linear::new(&layer.dbias.reshape(at.sums.shape())?, &at.minus_mean), &at.sums)?;
        at.shifted(ops, [&at.dh, &at.sums, &at.t], Activation::None)
    }
}

impl Layer {
    fn weight<'a>(&'a self, norms: Option<&'a Tensor>) -> Weight<'a> {
        let Some(g) = &self.g else { return Weight::Plain(&self.v) };
        let weight = WeightNorm::new(&self.v, g).eps(EPS);
        Weight::Normalized(norms.map_or(weight, |norms| weight.norms(norms)))
    }

    /// The forward pass of convolution `i`, which writes the norms.
    fn conv<'a>(&'a self, i: usize, x: &'a Tensor) -> Conv<'a> {
        Conv::new(x, self.weight(None)).geometry(geometry(i)).norms(self.norms.as_ref())
    }

    /// What is wanted of the weight.
    fn gradients(&self) -> Gradients<'_> {
        Gradients::default().dv(&self.dv).dg(self.dg.as_ref())
    }
}

/// Has batch number `at` of `order` come next.
fn choose(encoder: &mut wgpu::CommandEncoder, batch: &Batch, (order, at): (&Tensor, usize)) -> Result<(), Error> {
    let bytes = 4 * batch.chosen.len() as u64;
    encoder.copy_buffer_to_buffer(order.buffer()?, bytes * at as u64, batch.chosen.buffer()?, 0, bytes);
    Ok(())
}

fn keep(encoder: &mut wgpu::CommandEncoder, batch: &Batch, (results, at): (&Tensor, usize)) -> Result<(), Error> {
    encoder.copy_buffer_to_buffer(batch.result.buffer()?, 0, results.buffer()?, 8 * at as u64, 8);
    Ok(())
}

/// Tensors of these shapes in one buffer, and all of it as one tensor. Each starts where every device can bind, since
/// no two outputs of a kernel may overlap; the gaps stay 0.
fn parts(gpu: &Gpu, shapes: &[Vec<usize>]) -> Result<(Tensor, Vec<Tensor>), Error> {
    let mut starts = vec![];
    let mut end = 0;
    for shape in shapes {
        starts.push(end as u64 * 4);
        end = (end + shape.iter().product::<usize>()).next_multiple_of(64);
    }
    let whole = gpu.zeros(&[end], DType::F32)?;
    let part = |(shape, start): (&Vec<usize>, u64)| Tensor::from_buffer(gpu, whole.buffer()?, start, shape, DType::F32);
    let parts = shapes.iter().zip(starts).map(part).collect::<Result<_, _>>()?;
    Ok((whole, parts))
}

fn twice<A, B>(make: impl Fn() -> Result<(A, B), Error>) -> Result<([A; 2], [B; 2]), Error> {
    let ((a, b), (c, d)) = (make()?, make()?);
    Ok(([a, c], [b, d]))
}
