//! The network on the GPU, and a step of its training: every kernel of it in one pass, one submission.
//!
//! An LSTM that reads one-hot characters, a linear layer, softmax and cross-entropy. All parameters are parts of one
//! buffer, and so are their gradients: one norm is that of all gradients, and one dispatch steps them all.
use std::ops::Range;

use weightnorm::{
    Adam, AdamState, Axis, DType, Eps, Error, Gpu, Gradients, Linear, LinearBackward, Parameter, Recorder, Recurrent,
    RecurrentSaved, Sgd, SgdState, Tensor, Weight, WeightNorm, cpu, wgpu,
};

use crate::data::{self, Sizes, Start, Text};
use crate::kernels::{Call, Kernels};

pub const MOMENTUM: f64 = 0.9;
pub const EPS: Eps = Eps::Clamp(1e-12);

/// How the weights are parametrized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Ordinary weights w.
    Plain,
    /// w = g·v/‖v‖ by rows, of all three weights; at first with g = ‖v‖, so that it is the network of the plain one.
    Normalized,
}

impl Variant {
    pub const ALL: [Variant; 2] = [Variant::Plain, Variant::Normalized];

    pub fn key(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Normalized => "weight_norm",
        }
    }
}

/// By what the parameters are stepped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimizer {
    /// With a momentum of 0.9.
    Sgd,
    Adam,
}

impl Optimizer {
    pub const ALL: [Optimizer; 2] = [Optimizer::Sgd, Optimizer::Adam];

    pub fn key(self) -> &'static str {
        match self {
            Optimizer::Sgd => "sgd",
            Optimizer::Adam => "adam",
        }
    }
}

/// A part of the text as it goes through the network, and how far it has come.
pub struct Stream {
    /// Which step it is of, the last of four numbers: see kernels.wgsl.
    part: Tensor,
    /// Steps in which no sequence reads what another one started with.
    pub steps: usize,
    gather: Call,
    x: Tensor,
    /// h and c behind the step before.
    h: Tensor,
    c: Tensor,
    saved: RecurrentSaved,
    y: Tensor,
    /// y and its gradient with all characters in rows, and that in y's shape.
    rows: [Tensor; 2],
    dy: Tensor,
    /// Of the linear layer, for its backward pass.
    u: Tensor,
    logits: Tensor,
    d_logits: Tensor,
    loss: Call,
    mean: Call,
    /// The mean loss, and the norm of the gradients.
    result: Tensor,
}

/// A network in training.
pub struct Network {
    gpu: Gpu,
    pub variant: Variant,
    pub sizes: Sizes,
    pub classes: usize,
    kernels: Kernels,
    /// Of the input, of h, and of the output.
    weights: [WeightParts; 3],
    /// Of the gates, and of the output; and their gradients.
    biases: [Tensor; 2],
    dbiases: [Tensor; 2],
    /// n̂ of the output of the forward pass, for the backward pass.
    norms: Tensor,
    parameters: Tensor,
    gradients: Tensor,
    /// Of all gradients.
    norm: Tensor,
    sgd: SgdState,
    adam: AdamState,
    /// 0, 1, 2, ..
    numbers: Tensor,
}

struct WeightParts {
    v: Tensor,
    g: Option<Tensor>,
    dv: Tensor,
    dg: Option<Tensor>,
}

impl WeightParts {
    fn weight(&self) -> Weight<'_> {
        match &self.g {
            None => Weight::Plain(&self.v),
            Some(g) => Weight::Normalized(WeightNorm::new(&self.v, g).eps(EPS)),
        }
    }

    fn gradients(&self) -> Gradients<'_> {
        Gradients::default().dv(&self.dv).dg(self.dg.as_ref())
    }
}

impl Network {
    /// Allocates, for up to `steps` steps. [`Network::start`] gives it weights.
    pub fn new(gpu: &Gpu, variant: Variant, sizes: Sizes, classes: usize, steps: usize) -> Result<Network, Error> {
        let weights = data::shapes(sizes.units, classes);
        let mut shapes: Vec<Vec<usize>> = weights.iter().map(|shape| shape.to_vec()).collect();
        shapes.extend([vec![4 * sizes.units], vec![classes]]);
        if variant == Variant::Normalized {
            shapes.extend(weights.map(|[rows, _]| vec![rows]));
        }
        let ((parameters, of), (gradients, d)) = (parts(gpu, &shapes)?, parts(gpu, &shapes)?);
        let weights = [0, 1, 2].map(|i| WeightParts {
            v: of[i].clone(),
            g: of.get(5 + i).cloned(),
            dv: d[i].clone(),
            dg: d.get(5 + i).cloned(),
        });
        let numbers: Vec<f32> = (0..steps.max(1)).map(|number| number as f32).collect();
        Ok(Network {
            gpu: gpu.clone(),
            variant,
            sizes,
            classes,
            kernels: Kernels::new(gpu, classes, sizes.batch),
            weights,
            biases: [of[3].clone(), of[4].clone()],
            dbiases: [d[3].clone(), d[4].clone()],
            norms: gpu.zeros(&[classes], DType::F32)?,
            norm: gpu.zeros(&[1], DType::F32)?,
            sgd: gpu.sgd_state(&parameters, None)?,
            adam: gpu.adam_state(&parameters, None)?,
            parameters,
            gradients,
            numbers: gpu.upload(&numbers, &[numbers.len()])?,
        })
    }

    /// The weights of a seed, and optimizers that remember nothing.
    pub fn start(&self, seed: u64) -> Result<(), Error> {
        let Start { weights, biases } = Start::new(seed, self.sizes.units, self.classes);
        for (parts, v) in self.weights.iter().zip(&weights) {
            self.write(&parts.v, v)?;
            if let Some(g) = &parts.g {
                let norms = cpu::row_norms(&cpu::widen(v), parts.v.shape(), Axis::Kept(0), EPS)?;
                self.write(g, &norms.into_iter().map(|n| n as f32).collect::<Vec<_>>())?;
            }
        }
        for (tensor, bias) in self.biases.iter().zip(&biases) {
            self.write(tensor, bias)?;
        }
        self.submit(|encoder| {
            for tensor in [&self.adam.v.first, &self.adam.v.second] {
                encoder.clear_buffer(tensor.buffer()?, 0, None);
            }
            Ok(())
        })
    }

    fn write(&self, tensor: &Tensor, data: &[f32]) -> Result<(), Error> {
        self.gpu.queue().write_buffer(tensor.buffer()?, tensor.offset(), bytemuck::cast_slice(data));
        Ok(())
    }

    /// w of the three weights, and both biases.
    pub fn folded(&self) -> Result<[Tensor; 5], Error> {
        let w = |parts: &WeightParts| match &parts.g {
            None => self.gpu.upload(&parts.v.read::<f32>()?, parts.v.shape()),
            Some(g) => self.gpu.normalize(WeightNorm::new(&parts.v, g).eps(EPS)),
        };
        let bias = |bias: &Tensor| self.gpu.upload(&bias.read::<f32>()?, bias.shape());
        let ([input, hidden, output], [gates, last]) = (&self.weights, &self.biases);
        Ok([w(input)?, w(hidden)?, w(output)?, bias(gates)?, bias(last)?])
    }

    /// ‖w‖ of each row of the three weights.
    pub fn row_lengths(&self) -> Result<Vec<f64>, Error> {
        let mut lengths = vec![];
        for parts in &self.weights {
            match &parts.g {
                None => lengths.extend(cpu::row_norms(
                    &cpu::widen(&parts.v.read::<f32>()?),
                    parts.v.shape(),
                    Axis::Kept(0),
                    Eps::None,
                )?),
                Some(g) => lengths.extend(g.read::<f32>()?.iter().map(|&g| f64::from(g.abs()))),
            }
        }
        Ok(lengths)
    }

    /// All parameters, one after another: v of input, h and output, the biases, and g of the three.
    pub fn read(&self) -> Result<Vec<Vec<f32>>, Error> {
        let v = self.weights.iter().map(|parts| &parts.v).chain(&self.biases);
        v.chain(self.weights.iter().filter_map(|parts| parts.g.as_ref())).map(Tensor::read::<f32>).collect()
    }

    /// Room for a part of the text, which starts with h = c = 0. The last characters may be left out.
    pub fn stream(&self, text: &Tensor, part: Range<usize>) -> Result<Stream, Error> {
        let Network { gpu, kernels, sizes: Sizes { units, batch, length }, classes, .. } = self;
        let (units, batch, length, classes) = (*units, *batch, *length, *classes);
        let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
        let rows = batch * length;
        let apart = part.len() / batch;
        let part = [part.start, part.len(), apart, 0].map(|n| n as f32);
        let (x, y, dy) =
            (zeros(&[length, batch, classes])?, zeros(&[length, batch, units])?, zeros(&[length, batch, units])?);
        let (logits, d_logits, u) = (zeros(&[rows, classes])?, zeros(&[rows, classes])?, zeros(&[rows, classes])?);
        let (part, next, losses, result) = (gpu.upload(&part, &[4])?, zeros(&[rows])?, zeros(&[rows])?, zeros(&[2])?);
        let [input, hidden, _] = &self.weights;
        let saved = RecurrentSaved::new(&Recurrent::lstm(&x, input.weight(), hidden.weight()), zeros)?;
        Ok(Stream {
            gather: kernels.gather([text, &part, &x, &next])?,
            loss: kernels.loss([&logits, &next, &d_logits, &losses])?,
            mean: kernels.mean(&losses, &result)?,
            part,
            steps: apart.saturating_sub(1) / length,
            x,
            h: zeros(&[batch, units])?,
            c: zeros(&[batch, units])?,
            saved,
            rows: [y.reshape(&[rows, units])?, dy.reshape(&[rows, units])?],
            y,
            dy,
            u,
            logits,
            d_logits,
            result,
        })
    }

    /// Makes step `number`, counted from 1, of truncated back-propagation. The loss of the characters before the step,
    /// and the norm of the gradients, go to `results[number - 1]`.
    pub fn step(
        &self,
        stream: &Stream,
        clip: &Call,
        results: &Tensor,
        number: usize,
        (optimizer, rate): (Optimizer, f64),
    ) -> Result<(), Error> {
        self.submit(|encoder| {
            self.place(encoder, stream, number - 1)?;
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.forward(&mut pass, stream)?;
            let mut ops = self.gpu.record_pass(&mut pass);
            self.backward(&mut ops, stream)?;
            let all = WeightNorm::unit(&self.gradients).axis(Axis::Whole).eps(Eps::None);
            ops.row_norms(all, &self.norm)?;
            drop(ops);
            clip.record(&mut pass);
            let mut ops = self.gpu.record_pass(&mut pass);
            let (parameter, number) = (Parameter::new(&self.parameters, &self.gradients), number as u64);
            match optimizer {
                Optimizer::Sgd => {
                    let sgd = Sgd { momentum: MOMENTUM, ..Sgd::new(rate) };
                    ops.sgd_step(parameter, &self.sgd, number, &sgd)?;
                }
                Optimizer::Adam => ops.adam_step(parameter, &self.adam, number, &Adam::new(rate))?,
            }
            drop(ops);
            drop(pass);
            self.finish(encoder, stream, (results, number as usize - 1))
        })
    }

    /// The clipping of the gradients, for steps on this stream.
    pub fn clipping(&self, stream: &Stream) -> Result<Call, Error> {
        self.kernels.clip([&self.norm, &self.gradients, &stream.result])
    }

    /// Has the next step begin the text, with h = c = 0.
    pub fn rewind(&self, stream: &Stream) -> Result<(), Error> {
        self.submit(|encoder| {
            for state in [&stream.h, &stream.c] {
                encoder.clear_buffer(state.buffer()?, 0, None);
            }
            Ok(())
        })
    }

    /// The loss of the characters of step `number`, counted from 0, goes to `results[at]`.
    pub fn evaluate(&self, stream: &Stream, number: usize, (results, at): (&Tensor, usize)) -> Result<(), Error> {
        self.submit(|encoder| {
            self.place(encoder, stream, number)?;
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.forward(&mut pass, stream)?;
            drop(pass);
            self.finish(encoder, stream, (results, at))
        })
    }

    fn submit(&self, record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<(), Error>) -> Result<(), Error> {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        record(&mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn place(&self, encoder: &mut wgpu::CommandEncoder, stream: &Stream, number: usize) -> Result<(), Error> {
        encoder.copy_buffer_to_buffer(self.numbers.buffer()?, 4 * number as u64, stream.part.buffer()?, 12, 4);
        Ok(())
    }

    /// Passes h on, and keeps the result.
    fn finish(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        stream: &Stream,
        (results, at): (&Tensor, usize),
    ) -> Result<(), Error> {
        let bytes = 4 * stream.h.len() as u64;
        let last = bytes * (self.sizes.length as u64 - 1);
        encoder.copy_buffer_to_buffer(stream.y.buffer()?, last, stream.h.buffer()?, 0, bytes);
        encoder.copy_buffer_to_buffer(stream.result.buffer()?, 0, results.buffer()?, 8 * at as u64, 8);
        Ok(())
    }

    fn layer<'a>(&'a self, stream: &'a Stream) -> Recurrent<'a> {
        let [input, hidden, _] = &self.weights;
        let layer = Recurrent::lstm(&stream.x, input.weight(), hidden.weight()).bias(&self.biases[0]);
        layer.h0(&stream.h).c(&stream.c).saved(&stream.saved)
    }

    /// From the text to the loss.
    fn forward(&self, pass: &mut wgpu::ComputePass<'_>, stream: &Stream) -> Result<(), Error> {
        stream.gather.record(pass);
        let mut ops = self.gpu.record_pass(pass);
        ops.recurrent(self.layer(stream), &stream.y)?;
        let linear = Linear::new(&stream.rows[0], self.weights[2].weight()).bias(&self.biases[1]);
        let linear = match self.variant {
            Variant::Plain => linear,
            Variant::Normalized => linear.norms(&self.norms).u(&stream.u),
        };
        ops.linear(linear, &stream.logits)?;
        drop(ops);
        stream.loss.record(pass);
        stream.mean.record(pass);
        Ok(())
    }

    /// All gradients, from that of the logits on.
    fn backward(&self, ops: &mut Recorder<'_, '_>, stream: &Stream) -> Result<(), Error> {
        let [input, hidden, output] = &self.weights;
        let weight = match output.weight() {
            Weight::Normalized(weight) => Weight::Normalized(weight.norms(&self.norms)),
            plain => plain,
        };
        let u = output.g.as_ref().map(|_| &stream.u);
        let linear = LinearBackward::new(&stream.rows[0], weight, &stream.d_logits).u(u);
        ops.linear_backward(linear, &output.gradients().dx(&stream.rows[1]).dbias(&self.dbiases[1]))?;
        let layer = self.layer(stream).output(&stream.y);
        ops.recurrent_backward(layer, &stream.dy, &input.gradients().dbias(&self.dbiases[0]), &hidden.gradients())
    }
}

/// The text on the GPU.
pub fn upload(gpu: &Gpu, text: &Text) -> Result<Tensor, Error> {
    let codes: Vec<f32> = text.codes.iter().map(|&code| code as f32).collect();
    gpu.upload(&codes, &[codes.len()])
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
