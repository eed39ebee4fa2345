//! A sequence of LSTM cells beside the same of `linear`: with a kernel of the bench's own for the cell, as somebody
//! without the crate's cells would have it, and without any, which is what the products of the steps take.
use std::num::NonZeroU64;

use weightnorm::{
    Cell, DType, Eps, Error, Gpu, Gradients, Linear, Recorder, Recurrent, RecurrentSaved, Tensor, WeightNorm, cpu,
};

use crate::problem::{Failure, numbers, read, relative_error, sample};
use crate::ratio::Call;

/// How a sequence is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellForm {
    /// `recurrent`, weight-normalized.
    Fused,
    /// `recurrent` of ordinary weights.
    Plain,
    /// Weight-normalized: z and norms, then for each step a `linear` and an elementwise kernel.
    Elementwise,
    /// The same of ordinary weights.
    ElementwisePlain,
    /// Weight-normalized: z and norms, then for each step a `linear`, and no cells.
    Products,
    /// What `Fused` keeps for training too, and all gradients.
    Step,
    /// The same of ordinary weights.
    StepPlain,
}

/// T, B, features and units.
pub type Size = [usize; 4];

pub const SIZES: [Size; 3] = [[32, 1, 16, 512], [32, 16, 16, 512], [32, 64, 16, 512]];

/// A layer on the device.
pub struct Prepared {
    gpu: Gpu,
    size: Size,
    form: CellForm,
    /// Of x, both v, both g and the bias.
    inputs: [Vec<f32>; 6],
    tensors: [Tensor; 6],
    y: Tensor,
    dy: Tensor,
    /// h before the first step, so that each step has its product. Not zeros: sums that are zero are formed again.
    h0: Tensor,
    /// z of all steps, and of U the norms, what it makes of h, and c.
    z: Tensor,
    norms: Tensor,
    q: Tensor,
    c: Tensor,
    saved: RecurrentSaved,
    gradients: Vec<Tensor>,
    cells: Vec<wgpu::BindGroup>,
    pipeline: wgpu::ComputePipeline,
}

const CELL: &str = "
@group(0) @binding(0) var<storage, read> z: array<f32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read_write> h: array<f32>;
override UNITS: u32 = 1u;
fn logistic(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= arrayLength(&h) { return; }
    let first = id.x / UNITS * 4u * UNITS + id.x % UNITS;
    let i = logistic(z[first] + q[first]);
    let f = logistic(z[first + UNITS] + q[first + UNITS]);
    let g = tanh(z[first + 2u * UNITS] + q[first + 2u * UNITS]);
    let o = logistic(z[first + 3u * UNITS] + q[first + 3u * UNITS]);
    let next = f * c[id.x] + i * g;
    c[id.x] = next;
    h[id.x] = o * tanh(next);
}";

/// The t-th `count` elements of a tensor.
fn part(tensor: &Tensor, t: usize, count: usize) -> Result<wgpu::BindingResource<'_>, Error> {
    let (buffer, offset, size) = (tensor.buffer()?, 4 * (t * count) as u64, NonZeroU64::new(4 * count as u64));
    Ok(wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size }))
}

impl Prepared {
    pub fn new(gpu: &Gpu, size: Size, form: CellForm) -> Result<Prepared, Error> {
        let [length, batch, features, units] = size;
        let rows = 4 * units;
        let shapes: [&[usize]; 6] =
            [&[length, batch, features], &[rows, features], &[rows, units], &[rows], &[rows], &[rows]];
        let mut seed = 0;
        let inputs = shapes.map(|shape| {
            seed += 1;
            let mut all = numbers(seed, shape.iter().product());
            // Weights of a network, and gains that leave them about as large.
            let scale = if shape.len() == 2 { (shape[1] as f32).powf(-0.5) } else { 1.0 };
            all.iter_mut().for_each(|a| *a *= scale);
            all
        });
        let upload = |i: usize| gpu.upload(&inputs[i], shapes[i]);
        let tensors = [upload(0)?, upload(1)?, upload(2)?, upload(3)?, upload(4)?, upload(5)?];
        let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
        let [x, v, u, g, of_u, _] = &tensors;
        let fused = Recurrent::lstm(x, WeightNorm::new(v, g), WeightNorm::new(u, of_u));
        let layer = if form == CellForm::StepPlain { Recurrent::lstm(x, v, u) } else { fused };
        let saved = RecurrentSaved::new(&layer, zeros)?;
        // Where there are no cells, what is multiplied is this.
        let y = gpu.upload(&numbers(8, length * batch * units), &[length, batch, units])?;
        let z = zeros(&[length, batch, rows])?;
        let (q, c) = (zeros(&[batch, rows])?, zeros(&[batch, units])?);
        let h0 = gpu.upload(&numbers(7, batch * units), &[batch, units])?;
        let module = gpu.device().create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("cell of the bench"),
            source: wgpu::ShaderSource::Wgsl(CELL.into()),
        });
        let constants = [("UNITS", units as f64)];
        let pipeline = gpu.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
            cache: None,
        });
        let cells = (0..length).map(|t| {
            let (state, gates) = (batch * units, batch * rows);
            let bound = [part(&z, t, gates)?, part(&q, 0, gates)?, part(&c, 0, state)?, part(&y, t, state)?];
            let entries: Vec<_> =
                (0..).zip(bound).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
            let layout = &pipeline.get_bind_group_layout(0);
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
            Ok(gpu.device().create_bind_group(&descriptor))
        });
        let cells = cells.collect::<Result<Vec<_>, Error>>()?;
        let gradients = [0, 1, 2, 3, 4, 5].map(|i| zeros(shapes[i])).into_iter().collect::<Result<Vec<_>, Error>>()?;
        let dy = gpu.upload(&numbers(9, y.len()), y.shape())?;
        let (gpu, norms) = (gpu.clone(), zeros(&[rows])?);
        Ok(Prepared { gpu, size, form, inputs, tensors, y, dy, h0, z, norms, q, c, saved, gradients, cells, pipeline })
    }

    pub fn name(&self) -> String {
        let form = match self.form {
            CellForm::Fused => "lstm fused",
            CellForm::Plain => "lstm plain",
            CellForm::Elementwise => "lstm elementwise",
            CellForm::ElementwisePlain => "lstm elementwise_plain",
            CellForm::Products => "lstm products",
            CellForm::Step => "lstm_step fused",
            CellForm::StepPlain => "lstm_step plain",
        };
        let [length, batch, features, units] = self.size;
        format!("{form} f32 {length}x{batch}x{features}x{units}")
    }

    /// Whether weights are ordinary ones.
    fn is_plain(&self) -> bool {
        matches!(self.form, CellForm::Plain | CellForm::ElementwisePlain | CellForm::StepPlain)
    }

    /// One call, and the check of some sequences of y and of c. Returns the dispatches it takes.
    pub fn record_and_check(&self) -> Result<u64, Failure> {
        let dispatches = self.submit(1)?;
        self.gpu.check()?;
        let [length, batch, features, units] = self.size;
        if self.form == CellForm::Products {
            return Ok(dispatches);
        }
        let [x, v, u, g, of_u, bias] = self.inputs.each_ref().map(|values| cpu::widen(values));
        let (axis, eps) = (weightnorm::Axis::Kept(0), Eps::default());
        let normalized = [(&v, &g), (&u, &of_u)].map(|(v, g)| cpu::Weight::Normalized { v, g: Some(g), axis, eps });
        let [input, hidden] = if self.is_plain() { [&v, &u].map(|v| cpu::Weight::Plain(v)) } else { normalized };
        let h0 = cpu::widen(&numbers(7, batch * units));
        let chosen = sample(batch, 2);
        let of_chosen = |all: &[f64], width: usize| -> Vec<f64> {
            let sequences = all.chunks(batch * width);
            sequences.flat_map(|step| chosen.iter().flat_map(|&b| &step[b * width..][..width])).copied().collect()
        };
        let expected = cpu::recurrent(&cpu::Recurrent {
            cell: Cell::Lstm,
            x: &of_chosen(&x, features),
            x_shape: [length, chosen.len(), features],
            units,
            input,
            hidden,
            bias: Some(&bias),
            hidden_bias: None,
            h0: Some(&of_chosen(&h0, units)),
            c0: None,
        })?;
        let got = of_chosen(&read(&self.y)?, units);
        relative_error(&|| self.name(), "y", DType::F32, units, &got, &expected.y)?;
        Ok(dispatches)
    }

    fn weights(&self) -> [WeightNorm<'_>; 2] {
        let [_, v, u, g, of_u, _] = &self.tensors;
        [WeightNorm::new(v, g), WeightNorm::new(u, of_u)]
    }

    fn layer(&self) -> Recurrent<'_> {
        let ([x, v, u, _, _, bias], [input, hidden]) = (&self.tensors, self.weights());
        let layer = if self.is_plain() { Recurrent::lstm(x, v, u) } else { Recurrent::lstm(x, input, hidden) };
        layer.bias(bias).h0(&self.h0)
    }

    /// z of all steps, and the norms of U.
    fn before_steps(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let ([x, v, _, _, _, bias], [input, hidden]) = (&self.tensors, self.weights());
        if self.is_plain() {
            return ops.linear(Linear::new(x, v).bias(bias), &self.z);
        }
        ops.linear(Linear::new(x, input).bias(bias), &self.z)?;
        ops.row_norms(hidden, &self.norms)
    }

    /// U·h of step t, from h of the step before.
    fn product(&self, ops: &mut Recorder<'_, '_>, t: usize) -> Result<(), Error> {
        let [_, batch, _, units] = self.size;
        let before = t.checked_sub(1).map(|t| {
            let offset = 4 * (t * batch * units) as u64;
            Tensor::from_buffer(&self.gpu, self.y.buffer()?, offset, &[batch, units], DType::F32)
        });
        let h = before.transpose()?.unwrap_or(self.h0.clone());
        let [_, hidden] = self.weights();
        match self.is_plain() {
            true => ops.linear(Linear::new(&h, &self.tensors[2]), &self.q),
            false => ops.linear(Linear::new(&h, hidden.norms(&self.norms)), &self.q),
        }
    }
}

impl Call for Prepared {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let layer = self.layer();
        match self.form {
            CellForm::Fused | CellForm::Plain => ops.recurrent(layer, &self.y),
            CellForm::Step | CellForm::StepPlain => {
                let layer = layer.saved(&self.saved);
                ops.recurrent(layer, &self.y)?;
                let [dx, dv, du, dg, dg_of_u, dbias] = &self.gradients[..] else { unreachable!("there are six") };
                let gains = [dg, dg_of_u].map(|dg| Some(dg).filter(|_| !self.is_plain()));
                let input = Gradients::default().dx(dx).dv(dv).dg(gains[0]).dbias(dbias);
                let hidden = Gradients::default().dv(du).dg(gains[1]);
                ops.recurrent_backward(layer.output(&self.y), &self.dy, &input, &hidden)
            }
            _ => {
                self.before_steps(ops)?;
                (0..self.size[0]).try_for_each(|t| self.product(ops, t))
            }
        }
    }

    /// With the bench's own kernel among the operators, in one pass.
    fn submit(&self, count: usize) -> Result<u64, Error> {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut dispatches = 0;
        for _ in 0..count {
            let own = matches!(self.form, CellForm::Elementwise | CellForm::ElementwisePlain);
            if own {
                // c of the step before the first.
                encoder.clear_buffer(self.c.buffer()?, 0, None);
            }
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            let mut ops = self.gpu.record_pass(&mut pass);
            if !own {
                self.record(&mut ops)?;
                dispatches += ops.dispatch_count();
                continue;
            }
            self.before_steps(&mut ops)?;
            dispatches += ops.dispatch_count();
            drop(ops);
            let groups = self.c.len().div_ceil(64) as u32;
            for (t, cell) in self.cells.iter().enumerate() {
                let mut ops = self.gpu.record_pass(&mut pass);
                self.product(&mut ops, t)?;
                dispatches += ops.dispatch_count();
                drop(ops);
                pass.set_pipeline(&self.pipeline);
                pass.set_bind_group(0, cell, &[]);
                pass.dispatch_workgroups(groups, 1, 1);
                dispatches += 1;
            }
        }
        self.gpu.queue().submit([encoder.finish()]);
        Ok(dispatches)
    }
}
