//! What is measured: an operator in one of its forms, on tensors of some shape and type, with a check of its results.
use half::{bf16, f16};
use weightnorm::internals::{probe_copy, probe_read};
use weightnorm::{
    Activation, Adam, AdamState, Axis, DType, Element, Eps, Error, Gpu, Gradients, Linear, LinearBackward,
    MeanOnlyBatchNorm, NormalizeBackward, Parameter, Recorder, Tensor, Tile, WeightNorm, cpu,
};

use crate::ratio::Call;

pub type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Norms of n rows of k.
    RowNorms,
    Normalize,
    /// dv and dg out of dw.
    NormalizeBackward,
    /// Of v and g.
    AdamStep,
    /// Mean-only, of a batch of n by k.
    BatchNorm,
    /// Plain kernels on as many bytes.
    Read,
    Copy,
    /// y of m rows.
    Linear,
    /// dx, dv, dg and dbias, with what the forward pass saves.
    LinearBackward,
    /// Both.
    LinearStep,
}

/// How the weight of a layer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Normalized in the product.
    Fused,
    /// An ordinary weight.
    Plain,
    /// Normalized, with norms that are known.
    Known,
    /// Norms, then w, then the ordinary product.
    Three,
}

/// Which axis of a weight is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The first of n by k.
    Rows,
    /// The second of n by k.
    Columns,
    /// The second of n by k / 16 by 16.
    Middle,
}

#[derive(Debug, Clone, Copy)]
pub struct Problem {
    pub op: Op,
    pub form: Form,
    pub dtype: DType,
    /// Forced, where given.
    pub tile: Option<Tile>,
    pub kept: Kept,
    pub m: usize,
    pub k: usize,
    pub n: usize,
}

impl Problem {
    pub fn rows(op: Op, dtype: DType, [n, k]: [usize; 2]) -> Problem {
        Problem { op, form: Form::Fused, dtype, tile: None, kept: Kept::Rows, m: 0, k, n }
    }

    pub fn layer(op: Op, form: Form, dtype: DType, [m, k, n]: [usize; 3]) -> Problem {
        Problem { op, form, dtype, tile: None, kept: Kept::Rows, m, k, n }
    }

    pub fn of_rows(&self) -> bool {
        !matches!(self.op, Op::Linear | Op::LinearBackward | Op::LinearStep)
    }

    fn axis(&self) -> Axis {
        Axis::Kept(usize::from(self.kept != Kept::Rows))
    }

    fn v_shape(&self) -> Vec<usize> {
        match self.kept {
            Kept::Rows | Kept::Columns => vec![self.n, self.k],
            Kept::Middle => vec![self.n, self.k / 16, 16],
        }
    }

    fn norm_count(&self) -> usize {
        self.v_shape()[usize::from(self.kept != Kept::Rows)]
    }

    pub fn op_name(&self) -> &'static str {
        match self.op {
            Op::RowNorms => "row_norms",
            Op::Normalize => "normalize",
            Op::NormalizeBackward => "normalize_backward",
            Op::AdamStep => "adam_step",
            Op::BatchNorm => "mean_only_batch_norm",
            Op::Read => "probe_read",
            Op::Copy => "probe_copy",
            Op::Linear => "linear",
            Op::LinearBackward => "linear_backward",
            Op::LinearStep => "linear_step",
        }
    }

    pub fn form_name(&self) -> &'static str {
        match self.form {
            _ if self.kept == Kept::Columns => "columns",
            _ if self.kept == Kept::Middle => "middle",
            _ if self.of_rows() => "",
            Form::Fused => "fused",
            Form::Plain => "plain",
            Form::Known => "known",
            Form::Three => "three",
        }
    }

    pub fn dtype_name(&self) -> &'static str {
        match self.dtype {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        }
    }

    pub fn shape_name(&self) -> String {
        let Problem { m, k, n, .. } = self;
        if self.of_rows() { format!("{n}x{k}") } else { format!("{m}x{k}x{n}") }
    }

    pub fn name(&self) -> String {
        let tile = self.tile.map_or(String::new(), |tile| format!("{tile:?}"));
        let parts = [self.op_name(), self.form_name(), &tile, self.dtype_name(), &self.shape_name()];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// Of the optimizer.
const RATE: f64 = 1e-3;

/// Numbers from -1 to 1, by a linear congruential generator.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A tensor and its elements, as the storage type holds them.
struct Input {
    tensor: Tensor,
    data: Vec<f32>,
}

impl Input {
    fn new(gpu: &Gpu, seed: u64, shape: &[usize], dtype: DType) -> Result<Input, Error> {
        let data = numbers(seed, shape.iter().product());
        fn narrow<T: Element>(gpu: &Gpu, data: &[f32], shape: &[usize], to: fn(f32) -> T) -> Result<Tensor, Error> {
            gpu.upload(&data.iter().map(|&a| to(a)).collect::<Vec<T>>(), shape)
        }
        let tensor = match dtype {
            DType::F32 => gpu.upload(&data, shape)?,
            DType::F16 => narrow(gpu, &data, shape, f16::from_f32)?,
            DType::Bf16 => narrow(gpu, &data, shape, bf16::from_f32)?,
        };
        let data = match dtype {
            DType::F32 => data,
            DType::F16 => data.iter().map(|&a| f16::from_f32(a).to_f32()).collect(),
            DType::Bf16 => data.iter().map(|&a| bf16::from_f32(a).to_f32()).collect(),
        };
        Ok(Input { tensor, data })
    }

    /// The rows `rows` as f64.
    fn rows(&self, rows: &[usize]) -> Vec<f64> {
        let width = *self.tensor.shape().last().expect("a matrix");
        rows.iter().flat_map(|&r| &self.data[r * width..(r + 1) * width]).map(|&a| a.into()).collect()
    }

    fn all(&self) -> Vec<f64> {
        self.data.iter().map(|&a| a.into()).collect()
    }
}

pub fn read(tensor: &Tensor) -> Result<Vec<f64>, Error> {
    Ok(match tensor.dtype() {
        DType::F32 => cpu::widen(&tensor.read::<f32>()?),
        DType::F16 => cpu::widen(&tensor.read::<f16>()?),
        DType::Bf16 => cpu::widen(&tensor.read::<bf16>()?),
    })
}

/// A problem on the device.
pub struct Prepared {
    pub problem: Problem,
    gpu: Gpu,
    x: Input,
    v: Input,
    g: Input,
    bias: Input,
    dy: Input,
    /// w, or what the plain kernels write.
    w: Tensor,
    y: Tensor,
    u: Tensor,
    norms: Tensor,
    dx: Tensor,
    dv: Tensor,
    dg: Tensor,
    dbias: Tensor,
    /// The gradient of w, or that of v for an optimizer.
    dw: Input,
    adam: Option<AdamState>,
}

impl Prepared {
    pub fn new(gpu: &Gpu, problem: Problem) -> Result<Prepared, Error> {
        let Problem { op, form, dtype, m, k, n, .. } = problem;
        let backward = matches!(op, Op::LinearBackward | Op::LinearStep);
        let needs = |wanted, shape: [usize; 2]| if wanted { shape } else { [0, 0] };
        let zeros = |shape: &[usize], dtype| gpu.zeros(shape, dtype);
        let needs_w = matches!(op, Op::Normalize | Op::BatchNorm | Op::Read | Op::Copy) || form == Form::Three;
        let of_gradient = matches!(op, Op::NormalizeBackward | Op::AdamStep);
        let (v_shape, norms) = (problem.v_shape(), problem.norm_count());
        let like_v = |wanted| if wanted { v_shape.clone() } else { vec![0, 0] };
        let (v, g) = (Input::new(gpu, 2, &v_shape, dtype)?, Input::new(gpu, 3, &[norms], DType::F32)?);
        let adam = (op == Op::AdamStep).then(|| gpu.adam_state(&v.tensor, Some(&g.tensor))).transpose()?;
        let prepared = Prepared {
            problem,
            gpu: gpu.clone(),
            x: Input::new(gpu, 1, &[m, k], dtype)?,
            v,
            g,
            bias: Input::new(gpu, 4, &[n], DType::F32)?,
            dy: Input::new(gpu, 5, &needs(backward, [m, n]), dtype)?,
            w: zeros(&like_v(needs_w), dtype)?,
            y: zeros(&[m, n], dtype)?,
            u: zeros(&needs(backward, [m, n]), DType::F32)?,
            norms: zeros(&[norms], DType::F32)?,
            dx: zeros(&needs(backward, [m, k]), dtype)?,
            dv: zeros(&like_v(backward || op == Op::NormalizeBackward), dtype)?,
            dg: match op {
                Op::AdamStep => gpu.upload(&numbers(7, norms), &[norms])?,
                _ => zeros(&[norms], DType::F32)?,
            },
            dbias: zeros(&[n], DType::F32)?,
            dw: Input::new(gpu, 6, &like_v(of_gradient), dtype)?,
            adam,
        };
        // What is known when the operator starts.
        if form == Form::Known {
            prepared.once(|ops| ops.row_norms(WeightNorm::unit(&prepared.v.tensor), &prepared.norms))?;
        }
        if op == Op::LinearBackward && form != Form::Plain {
            prepared.once(|ops| prepared.forward(ops))?;
        }
        Ok(prepared)
    }

    fn once(&self, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>) -> Result<(), Error> {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        record(&mut self.gpu.record(&mut encoder))?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn weight(&self) -> WeightNorm<'_> {
        WeightNorm::new(&self.v.tensor, &self.g.tensor).axis(self.problem.axis())
    }

    fn forward(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let (x, v, y, bias) = (&self.x.tensor, &self.v.tensor, &self.y, Some(&self.bias.tensor));
        let weight = WeightNorm::new(v, &self.g.tensor);
        let tile = self.problem.tile;
        match self.problem.form {
            Form::Plain => ops.linear(Linear::new(x, v).bias(bias).tile(tile), y),
            Form::Known => ops.linear(Linear::new(x, weight.norms(&self.norms)).bias(bias).tile(tile), y),
            Form::Three => {
                ops.normalize(weight, &self.w)?;
                ops.linear(Linear::new(x, &self.w).bias(bias).tile(tile), y)
            }
            Form::Fused if self.problem.op == Op::Linear => ops.linear(Linear::new(x, weight).bias(bias).tile(tile), y),
            Form::Fused => ops.linear(Linear::new(x, weight).bias(bias).tile(tile).norms(&self.norms).u(&self.u), y),
        }
    }

    fn backward(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let (x, v, dy) = (&self.x.tensor, &self.v.tensor, &self.dy.tensor);
        let tile = self.problem.tile;
        let wanted = Gradients::default().dx(&self.dx).dv(&self.dv).dbias(&self.dbias);
        if self.problem.form == Form::Plain {
            return ops.linear_backward(LinearBackward::new(x, v, dy).tile(tile), &wanted);
        }
        let weight = WeightNorm::new(v, &self.g.tensor).norms(&self.norms);
        ops.linear_backward(LinearBackward::new(x, weight, dy).u(&self.u).tile(tile), &wanted.dg(&self.dg))
    }

    /// Compares what the last call left with the CPU reference: whole outputs, or some rows of large ones. An output of
    /// a linear layer needs its own rows of x and v only.
    pub fn check(&self) -> Result<(), Failure> {
        let Problem { op, form, m, k, n, .. } = self.problem;
        if self.problem.kept != Kept::Rows || matches!(op, Op::NormalizeBackward | Op::AdamStep | Op::BatchNorm) {
            return self.check_whole();
        }
        let outs = sample(n, (1 << 22) / (k * m.max(1)).max(1));
        let batch = sample(m, (1 << 26) / (n * k).max(1));
        let v = self.v.rows(&outs);
        let g: Vec<f64> = outs.iter().map(|&j| self.g.data[j].into()).collect();
        let eps = Eps::default();
        let shape = [outs.len(), k];
        let matrix = |tensor: &Tensor, rows: &[usize]| -> Result<Vec<f64>, Error> {
            let width = tensor.len() / tensor.shape()[0];
            let all = read(tensor)?;
            Ok(rows.iter().flat_map(|&r| &all[r * width..(r + 1) * width]).copied().collect())
        };
        if op == Op::RowNorms {
            return self.compare(
                "norms",
                k,
                &matrix(&self.norms, &outs)?,
                &cpu::row_norms(&v, &shape, Axis::Kept(0), eps)?,
            );
        }
        let w = cpu::normalize(&v, &shape, Some(&g), Axis::Kept(0), eps)?;
        match op {
            Op::Normalize => return self.compare("w", k, &matrix(&self.w, &outs)?, &w),
            Op::Copy => return self.compare("the copy", 0, &matrix(&self.w, &outs)?, &v),
            Op::Read => {
                let sum = |values: &[f64]| values.iter().map(|a| a.abs()).sum::<f64>();
                let (got, all) = (read(&self.w)?, self.v.all());
                let got: f64 = got[..all.len() / 32].iter().sum();
                let expected: f64 = all.iter().sum();
                // One partial sum for each 32 elements.
                return match (got - expected).abs() <= 64.0 * f64::from(f32::EPSILON) * sum(&all) {
                    true => Ok(()),
                    false => Err(format!("the sum of all is {got}, expected {expected}").into()),
                };
            }
            _ => {}
        }
        let plain = form == Form::Plain;
        if op != Op::LinearBackward {
            let rows = sample(m, 1 << 30);
            let rows = if rows.len() * outs.len() * k > 1 << 27 { batch.clone() } else { rows };
            let bias: Vec<f64> = outs.iter().map(|&j| self.bias.data[j].into()).collect();
            let w = if plain { &v } else { &w };
            let x_shape = [rows.len(), k];
            let expected = cpu::linear(&self.x.rows(&rows), &x_shape, w, &shape, Some(&bias), Activation::None)?;
            let y = matrix(&self.y, &rows)?;
            let got: Vec<f64> = y.chunks(n).flat_map(|row| outs.iter().map(|&j| row[j])).collect();
            self.compare("y", k, &got, &expected)?;
        }
        if matches!(op, Op::LinearBackward | Op::LinearStep) {
            // dv, dg and dbias of some outputs take the whole batch, dx of some rows the whole weight.
            let dy = self.dy.all();
            let dy_of: Vec<f64> = dy.chunks(n).flat_map(|row| outs.iter().map(|&j| row[j])).collect();
            let x = self.x.all();
            let reference = |x: &[f64], batch: usize, v: &[f64], g: &[f64], dy: &[f64]| {
                let v_shape = [v.len() / k, k];
                let weight = if plain {
                    cpu::Weight::Plain(v)
                } else {
                    cpu::Weight::Normalized { v, g: Some(g), axis: Axis::Kept(0), eps }
                };
                cpu::linear_backward(x, &[batch, k], weight, &v_shape, None, Activation::None, dy)
            };
            let of_outs = reference(&x, m, &v, &g, &dy_of)?;
            self.compare("dv", m + k, &matrix(&self.dv, &outs)?, &of_outs.dv)?;
            self.compare("dbias", m, &matrix(&self.dbias, &outs)?, &of_outs.dbias)?;
            if let Some(dg) = of_outs.dg {
                self.compare("dg", m + k, &matrix(&self.dg, &outs)?, &dg)?;
            }
            let of_rows =
                reference(&self.x.rows(&batch), batch.len(), &self.v.all(), &self.g.all(), &self.dy.rows(&batch))?;
            self.compare("dx", n + k, &matrix(&self.dx, &batch)?, &of_rows.dx)?;
        }
        Ok(())
    }

    /// The same of the operators that work on a weight alone, with any axis kept: everything, after the first call.
    fn check_whole(&self) -> Result<(), Failure> {
        let (v, g, shape) = (self.v.all(), self.g.all(), self.problem.v_shape());
        let (axis, eps) = (self.problem.axis(), Eps::default());
        let length = v.len() / self.problem.norm_count();
        match self.problem.op {
            Op::RowNorms => self.compare("norms", length, &read(&self.norms)?, &cpu::row_norms(&v, &shape, axis, eps)?),
            Op::Normalize => {
                self.compare("w", length, &read(&self.w)?, &cpu::normalize(&v, &shape, Some(&g), axis, eps)?)
            }
            Op::NormalizeBackward => {
                let (dv, dg) = cpu::normalize_backward(&self.dw.all(), &v, &shape, Some(&g), axis, eps)?;
                self.compare("dv", length, &read(&self.dv)?, &dv)?;
                self.compare("dg", length, &read(&self.dg)?, &dg)
            }
            Op::AdamStep => {
                let (mut v, mut g) = (v, g);
                let mut state = cpu::AdamState::new(g.len(), v.len());
                let (dg, dv) = (read(&self.dg)?, self.dw.all());
                cpu::adam_step(&Adam::new(RATE), &mut g, &dg, &mut v, &dv, &mut state, None)?;
                self.compare("v", 1, &read(&self.v.tensor)?, &v)?;
                self.compare("g", 1, &read(&self.g.tensor)?, &g)
            }
            Op::BatchNorm => {
                self.compare("y", shape[0], &read(&self.w)?, &cpu::mean_only_batch_norm(&v, &shape, None)?.0)
            }
            _ => unreachable!("a layer's weight keeps its rows"),
        }
    }

    fn compare(&self, what: &str, depth: usize, got: &[f64], expected: &[f64]) -> Result<(), Failure> {
        relative_error(&|| self.problem.name(), what, self.problem.dtype, depth, got, expected)
    }
}

impl Call for Prepared {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        match self.problem.op {
            Op::RowNorms => ops.row_norms(WeightNorm::unit(&self.v.tensor).axis(self.problem.axis()), &self.norms),
            Op::Normalize => ops.normalize(self.weight(), &self.w),
            Op::NormalizeBackward => {
                let (dv, dg) = (Some(&self.dv), Some(&self.dg));
                ops.normalize_backward(
                    NormalizeBackward::new(&self.dw.tensor, self.weight()),
                    &Gradients::default().dv(dv).dg(dg),
                )
            }
            Op::AdamStep => {
                let weight = Parameter::new(&self.v.tensor, &self.dw.tensor).gain(&self.g.tensor, &self.dg);
                let state = self.adam.as_ref().expect("made for this operator");
                ops.adam_step(weight, state, 1, &Adam::new(RATE))
            }
            Op::BatchNorm => ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(&self.v.tensor), &self.w),
            Op::Read => probe_read(ops, &self.v.tensor, &self.w),
            Op::Copy => probe_copy(ops, &self.v.tensor, &self.w),
            Op::Linear => self.forward(ops),
            Op::LinearBackward => self.backward(ops),
            Op::LinearStep => {
                self.forward(ops)?;
                self.backward(ops)
            }
        }
    }
}

/// Up to `most` of `count` indices, at least two (if there are as many), spread over all of them.
pub fn sample(count: usize, most: usize) -> Vec<usize> {
    let taken = most.max(2).min(count);
    (0..taken).map(|i| if taken == 1 { 0 } else { i * (count - 1) / (taken - 1) }).collect()
}

/// The relative error of all elements together. Sums of `depth` terms of either sign that are added in any order are
/// off by depth·2^-24 of their size at most, far more than is ever seen; the storage type rounds on top.
pub fn relative_error(
    name: &dyn Fn() -> String,
    what: &str,
    dtype: DType,
    depth: usize,
    got: &[f64],
    expected: &[f64],
) -> Result<(), Failure> {
    let storage = match dtype {
        DType::F32 => 0.0,
        DType::F16 => 2f64.powi(-10),
        DType::Bf16 => 2f64.powi(-7),
    };
    let bound = (depth as f64 + 16.0) * 2f64.powi(-24) + storage;
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|a| a * a).sum::<f64>();
    let difference = square(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    let error = (difference / square(&mut expected.iter().copied())).sqrt();
    if got.len() == expected.len() && error <= bound {
        return Ok(());
    }
    Err(format!("{}: {what} is off by {error:.1e}, {bound:.1e} is allowed", name()).into())
}
