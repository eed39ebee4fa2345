//! The network on the GPU, and a step of its training: every kernel of it in one pass, one submission.
//!
//! All buffers are made once. The directions v of all layers are parts of one buffer, the gains and biases parts of
//! another, and so are their gradients and what the optimizer remembers: one dispatch steps the whole network.
use super::kernels::{Call, Kernels};
use super::shape::{self, Random};
use weightnorm::{
    Activation, ActivationBackward, Adam, AdamState, DType, DataDependentInit, Eps, Error, Gpu, Gradients, Linear,
    LinearBackward, MeanOnlyBatchNorm, MeanOnlyBatchNormBackward, Moments, Parameter, Recorder, Sgd, SgdState, Tensor,
    Weight, WeightNorm,
};

/// Numbers of a point: the latent number and three coordinates.
pub const INPUT: usize = 4;
/// Of the running means of mean-only batch normalization.
const MOMENTUM: f32 = 0.1;
const EPS: Eps = Eps::Clamp(1e-12);

/// How the weights are parametrized and where they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Ordinary weights w.
    Plain,
    /// w = g·v/‖v‖, at first with g = ‖v‖: the network starts where the plain one does. PyTorch's `weight_norm`.
    Normalized,
    /// The same with a first g and bias that give every hidden feature mean 0 and variance 1 over the first batch.
    DataDependent,
    /// `Normalized`, and mean-only batch normalization in the hidden layers.
    MeanOnly,
}

impl Variant {
    pub const ALL: [Variant; 4] = [Variant::Plain, Variant::Normalized, Variant::DataDependent, Variant::MeanOnly];

    /// In the CSV.
    pub fn key(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Normalized => "weight_norm",
            Variant::DataDependent => "data_dependent",
            Variant::MeanOnly => "mean_only",
        }
    }
}

/// Who makes the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimizer {
    /// With PyTorch's defaults.
    Adam,
    /// With a momentum of 0.9.
    Sgd,
}

/// The sizes of the layers, (out, in, has the skip connection), of the DeepSDF decoder of tests/data: 4→w→w−4, (+4)→w,
/// 3 x w→w, w→1.
pub fn layer_sizes(width: usize) -> [(usize, usize, bool); 7] {
    let same = (width, width, false);
    let joined = (width, width, true);
    [(width, INPUT, false), (width - INPUT, width, false), joined, same, same, same, (1, width, false)]
}

/// A network in training.
pub struct Network {
    gpu: Gpu,
    variant: Variant,
    optimizer: Optimizer,
    pub layers: Vec<Layer>,
    /// The batch, (points, 4).
    x: Tensor,
    /// The mean loss of the batch.
    loss: Tensor,
    loss_call: Call,
    /// All v, and all g and biases.
    pub parameters: [Tensor; 2],
    pub gradients: [Tensor; 2],
    /// The optimizer's state: m and s of each; SGD has no s.
    pub moments: AdamState,
}

/// A layer: its parameters, their gradients, and what goes in and out in a step.
pub struct Layer {
    pub v: Tensor,
    pub g: Option<Tensor>,
    pub bias: Tensor,
    pub dv: Tensor,
    pub dg: Option<Tensor>,
    pub dbias: Tensor,
    /// For the backward pass: n̂ and u.
    saved: Option<(Tensor, Tensor)>,
    joined: Option<(Tensor, Call)>,
    centring: Option<Centring>,
    /// The output, after the ReLU.
    pub h: Tensor,
    /// The gradient of h, and then of what goes into the ReLU.
    pub dy: Tensor,
    /// The gradient of the input: dy of the layer before, or what that is taken from. The first layer needs none.
    dx: Option<(Tensor, Option<Call>)>,
}

/// Mean-only batch normalization between the product t and the ReLU.
struct Centring {
    t: Tensor,
    dt: Tensor,
    running: Tensor,
    relu: Call,
}

impl Network {
    /// Allocates. [`Network::start`] gives it weights.
    pub fn new(
        gpu: &Gpu,
        variant: Variant,
        optimizer: Optimizer,
        width: usize,
        points: usize,
    ) -> Result<Network, Error> {
        let sizes = layer_sizes(width);
        let kernels = Kernels::new(gpu, points);
        let zeros = |columns: usize| gpu.zeros(&[points, columns], DType::F32);
        let normalized = variant != Variant::Plain;
        let v_shapes: Vec<Vec<usize>> = sizes.iter().map(|&(outs, ins, _)| vec![outs, ins]).collect();
        // The biases, then the gains.
        let mut vectors: Vec<Vec<usize>> = sizes.iter().map(|&(outs, ..)| vec![outs]).collect();
        if normalized {
            vectors.extend_from_within(..);
        }
        let (all_v, v) = parts(gpu, &v_shapes)?;
        let (all_dv, dv) = parts(gpu, &v_shapes)?;
        let (all_g, g) = parts(gpu, &vectors)?;
        let (all_dg, dg) = parts(gpu, &vectors)?;
        let moments = |tensor: &Tensor| -> Result<Moments, Error> {
            let zeros = || gpu.zeros(tensor.shape(), DType::F32);
            Ok(Moments { first: zeros()?, second: zeros()? })
        };
        let moments = AdamState { v: moments(&all_v)?, g: Some(moments(&all_g)?) };

        let x = zeros(INPUT)?;
        let mut layers: Vec<Layer> = vec![];
        for (i, &(outs, ins, skip)) in sizes.iter().enumerate() {
            let (h, dy) = (zeros(outs)?, zeros(outs)?);
            let before = layers.last();
            let joined = match before.filter(|_| skip) {
                Some(before) => {
                    let joined = zeros(ins)?;
                    let call = kernels.join(&before.h, &x, &joined)?;
                    Some((joined, call))
                }
                None => None,
            };
            let dx = match before {
                Some(before) if skip => {
                    let dx = zeros(ins)?;
                    let call = kernels.join_backward(&dx, &before.dy)?;
                    Some((dx, Some(call)))
                }
                before => before.map(|before| (before.dy.clone(), None)),
            };
            let centring = match variant == Variant::MeanOnly && i + 1 < sizes.len() {
                true => Some(Centring {
                    t: zeros(outs)?,
                    dt: zeros(outs)?,
                    running: gpu.zeros(&[outs], DType::F32)?,
                    relu: kernels.relu(&h)?,
                }),
                false => None,
            };
            let saved = if normalized { Some((gpu.zeros(&[outs], DType::F32)?, zeros(outs)?)) } else { None };
            layers.push(Layer {
                v: v[i].clone(),
                g: g.get(sizes.len() + i).cloned(),
                bias: g[i].clone(),
                dv: dv[i].clone(),
                dg: dg.get(sizes.len() + i).cloned(),
                dbias: dg[i].clone(),
                saved,
                joined,
                centring,
                h,
                dy,
                dx,
            });
        }
        let loss = gpu.zeros(&[1], DType::F32)?;
        let last = layers.last().expect("there are seven");
        let loss_call = kernels.loss(&x, &last.h, &last.dy, &loss)?;
        // What the operators need between their dispatches, so that no step allocates it.
        gpu.reserve(4 * (points * width) as u64)?;
        Ok(Network {
            gpu: gpu.clone(),
            variant,
            optimizer,
            layers,
            x,
            loss,
            loss_call,
            parameters: [all_v, all_g],
            gradients: [all_dv, all_dg],
            moments,
        })
    }

    /// Gives it the initial weights of a seed: the same v in every variant, and where it is not made otherwise the same
    /// bias. `first` is where the first batch lies, for the data-dependent initialization.
    pub fn start(&self, seed: u64, first: (&Tensor, usize)) -> Result<(), Error> {
        let mut random = Random::new(seed);
        for layer in &self.layers {
            let &[outs, ins] = layer.v.shape() else { unreachable!("made above") };
            let (v, bias) = shape::linear(&mut random, outs, ins);
            for (tensor, data) in [(&layer.v, &v), (&layer.bias, &bias)] {
                self.gpu.queue().write_buffer(tensor.buffer()?, tensor.offset(), bytemuck::cast_slice(data));
            }
        }
        self.submit(|encoder| {
            let moments = [Some(&self.moments.v), self.moments.g.as_ref()];
            let running = self.layers.iter().filter_map(|layer| layer.centring.as_ref());
            let state = moments.into_iter().flatten().flat_map(|m| [&m.first, &m.second]);
            for tensor in state.chain(running.map(|centring| &centring.running)) {
                encoder.clear_buffer(tensor.buffer()?, 0, None);
            }
            self.load(encoder, first)?;
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            let last = self.layers.len() - 1;
            for (i, layer) in self.layers.iter().enumerate() {
                let Some(g) = &layer.g else { continue };
                let mut ops = self.gpu.record_pass(&mut pass);
                ops.row_norms(WeightNorm::unit(&layer.v).eps(EPS), g)?;
                drop(ops);
                // The output starts as it does in the other variants: the distances do not have a variance of 1.
                if self.variant == Variant::DataDependent && i < last {
                    layer.join(&mut pass);
                    let input = self.input(i);
                    let mut ops = self.gpu.record_pass(&mut pass);
                    ops.data_dependent_init(DataDependentInit::new(input, &layer.v).eps(EPS), g, &layer.bias)?;
                    drop(ops);
                    layer.forward(&self.gpu, &mut pass, input, Mode::Training, Activation::Relu)?;
                }
            }
            Ok(())
        })
    }

    /// Makes step `number`, counted from 1, on batch `batch` of `points`, which are (batches, points, 4). The batch's
    /// mean loss before the step goes to `losses[at]`.
    pub fn step(
        &self,
        (points, batch): (&Tensor, usize),
        (losses, at): (&Tensor, usize),
        number: u64,
        rate: f64,
    ) -> Result<(), Error> {
        self.submit(|encoder| {
            self.load(encoder, (points, batch))?;
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.differentiate(&mut pass)?;
            self.update(&mut self.gpu.record_pass(&mut pass), number, rate)?;
            drop(pass);
            encoder.copy_buffer_to_buffer(self.loss.buffer()?, 0, losses.buffer()?, 4 * at as u64, 4);
            Ok(())
        })
    }

    /// Half a step: the gradients of the batch's mean loss go to [`Network::gradients`]. Returns that loss, to be read.
    pub fn gradients_of(&self, points: (&Tensor, usize)) -> Result<&Tensor, Error> {
        self.submit(|encoder| {
            self.load(encoder, points)?;
            self.differentiate(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()))
        })?;
        Ok(&self.loss)
    }

    /// The other half: what the optimizer does with [`Network::gradients`], whoever put them there.
    pub fn apply(&self, number: u64, rate: f64) -> Result<(), Error> {
        self.submit(|encoder| self.update(&mut self.gpu.record(encoder), number, rate))
    }

    /// What goes into a layer.
    pub fn input(&self, layer: usize) -> &Tensor {
        match (&self.layers[layer].joined, layer) {
            (Some((joined, _)), _) => joined,
            (None, 0) => &self.x,
            (None, layer) => &self.layers[layer - 1].h,
        }
    }

    /// Puts the mean loss of a batch into `losses[at]`, with the running means in the place of the batch's.
    pub fn evaluate(&self, points: (&Tensor, usize), (losses, at): (&Tensor, usize)) -> Result<(), Error> {
        self.submit(|encoder| {
            self.load(encoder, points)?;
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.forward(&mut pass, Mode::Evaluation)?;
            self.loss_call.record(&mut pass);
            drop(pass);
            encoder.copy_buffer_to_buffer(self.loss.buffer()?, 0, losses.buffer()?, 4 * at as u64, 4);
            Ok(())
        })
    }

    fn submit(&self, record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<(), Error>) -> Result<(), Error> {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        record(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn load(&self, encoder: &mut wgpu::CommandEncoder, (points, batch): (&Tensor, usize)) -> Result<(), Error> {
        let bytes = 4 * self.x.len() as u64;
        encoder.copy_buffer_to_buffer(points.buffer()?, bytes * batch as u64, self.x.buffer()?, 0, bytes);
        Ok(())
    }

    fn differentiate(&self, pass: &mut wgpu::ComputePass<'_>) -> Result<(), Error> {
        self.forward(pass, Mode::Training)?;
        self.loss_call.record(pass);
        self.backward(pass)
    }

    fn forward(&self, pass: &mut wgpu::ComputePass<'_>, mode: Mode) -> Result<(), Error> {
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            layer.join(pass);
            let activation = if i < last { Activation::Relu } else { Activation::None };
            layer.forward(&self.gpu, pass, self.input(i), mode, activation)?;
        }
        Ok(())
    }

    /// Everything from dy of the last layer on.
    fn backward(&self, pass: &mut wgpu::ComputePass<'_>) -> Result<(), Error> {
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let mut ops = self.gpu.record_pass(pass);
            if i < last {
                let relu = ActivationBackward::new(Activation::Relu, &layer.h, &layer.dy).from_output();
                ops.activation_backward(relu, &layer.dy)?;
            }
            layer.backward(&mut ops, self.input(i))?;
            drop(ops);
            if let Some((_, Some(join_backward))) = &layer.dx {
                join_backward.record(pass);
            }
        }
        Ok(())
    }

    fn update(&self, ops: &mut Recorder<'_, '_>, number: u64, rate: f64) -> Result<(), Error> {
        let ([v, g], [dv, dg]) = (&self.parameters, &self.gradients);
        let all = Parameter::new(v, dv).gain(g, dg);
        match self.optimizer {
            Optimizer::Adam => ops.adam_step(all, &self.moments, number, &Adam::new(rate)),
            Optimizer::Sgd => {
                let AdamState { v, g } = &self.moments;
                let state = SgdState { v: Some(v.first.clone()), g: g.as_ref().map(|g| g.first.clone()) };
                ops.sgd_step(all, &state, number, &Sgd { momentum: 0.9, ..Sgd::new(rate) })
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Training,
    Evaluation,
}

impl Layer {
    fn weight(&self) -> Weight<'_> {
        match &self.g {
            Some(g) => Weight::Normalized(WeightNorm::new(&self.v, g).eps(EPS)),
            None => Weight::Plain(&self.v),
        }
    }

    fn join(&self, pass: &mut wgpu::ComputePass<'_>) {
        if let Some((_, join)) = &self.joined {
            join.record(pass);
        }
    }

    /// h = act(x·w + bias), with what the backward pass wants of it.
    fn forward(
        &self,
        gpu: &Gpu,
        pass: &mut wgpu::ComputePass<'_>,
        input: &Tensor,
        mode: Mode,
        activation: Activation,
    ) -> Result<(), Error> {
        let mut linear = Linear::new(input, self.weight());
        if let Some((norms, u)) = self.saved.as_ref().filter(|_| mode == Mode::Training) {
            linear = linear.norms(norms).u(u);
        }
        let mut ops = gpu.record_pass(pass);
        let Some(Centring { t, running, relu, .. }) = &self.centring else {
            return ops.linear(linear.bias(&self.bias).activation(activation), &self.h);
        };
        ops.linear(linear, t)?;
        match mode {
            Mode::Training => {
                ops.mean_only_batch_norm(
                    MeanOnlyBatchNorm::new(t).bias(&self.bias).running_mean(running, MOMENTUM),
                    &self.h,
                )?;
            }
            Mode::Evaluation => {
                ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(t).bias(&self.bias).eval(running), &self.h)?
            }
        }
        drop(ops);
        relu.record(pass);
        Ok(())
    }

    /// The gradients, of dy.
    fn backward(&self, ops: &mut Recorder<'_, '_>, input: &Tensor) -> Result<(), Error> {
        let dx = self.dx.as_ref().map(|(dx, _)| dx);
        let mut gradients = Gradients::default().dx(dx).dv(&self.dv).dg(self.dg.as_ref());
        let mut dy = &self.dy;
        match &self.centring {
            Some(Centring { dt, .. }) => {
                ops.mean_only_batch_norm_backward(
                    MeanOnlyBatchNormBackward::new(dy),
                    &Gradients::default().dx(dt).dbias(&self.dbias),
                )?;
                dy = dt;
            }
            None => gradients = gradients.dbias(&self.dbias),
        }
        let weight = match (self.weight(), &self.saved) {
            (Weight::Normalized(weight), Some((norms, _))) => Weight::Normalized(weight.norms(norms)),
            (weight, _) => weight,
        };
        ops.linear_backward(LinearBackward::new(input, weight, dy).u(self.saved.as_ref().map(|(_, u)| u)), &gradients)
    }
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
