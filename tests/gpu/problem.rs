//! One operator on tensors of some size: made from numbers whose sums f32 holds exactly, recorded with poisoned outputs
//! between guards, compared with the CPU reference.
use weightnorm::{
    Activation, Axis, DType, Decompose, Eps, Error, Gpu, Linear, Options, ParameterPassing, Recorder, Tensor,
    WeightNorm, cpu,
};

use crate::common::{compare, dot_bound, norm_bound, weight_bound};
use crate::golden::read;
use crate::{Failed, Outcome};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    RowNorms,
    Normalize,
    NormalizeKnown,
    NormalizeInPlace,
    Split,
    /// An ordinary weight.
    Plain,
    Linear,
    /// With norms that are known already.
    LinearKnown,
    /// The norms written out.
    LinearNorms,
    /// The norms written out, in_features split into pieces of 48.
    LinearSplit,
}

impl Op {
    pub const ALL: [Op; 10] = [
        Op::RowNorms,
        Op::Normalize,
        Op::NormalizeKnown,
        Op::NormalizeInPlace,
        Op::Split,
        Op::Plain,
        Op::Linear,
        Op::LinearKnown,
        Op::LinearNorms,
        Op::LinearSplit,
    ];
    /// Those of tensors of any rank.
    pub const OF_TENSORS: [Op; 5] = [Op::RowNorms, Op::Normalize, Op::NormalizeKnown, Op::NormalizeInPlace, Op::Split];
    pub const PRODUCTS: [Op; 5] = [Op::Plain, Op::Linear, Op::LinearKnown, Op::LinearNorms, Op::LinearSplit];

    fn is_product(self) -> bool {
        Op::PRODUCTS.contains(&self)
    }
}

/// An operator on a v of `shape` and, for products, `batch` rows of x, every tensor at byte `offset` of its buffer.
#[derive(Debug, Clone)]
pub struct Problem {
    pub op: Op,
    pub shape: Vec<usize>,
    pub axis: Axis,
    pub batch: usize,
    pub dtype: DType,
    pub offset: u64,
}

/// A tensor somewhere in a buffer of which every other byte is 0xff, a NaN in every storage type.
struct Placed {
    tensor: Tensor,
    words: Tensor,
}

/// An output and what belongs there.
struct Output {
    name: &'static str,
    placed: Placed,
    expected: Vec<f64>,
    bounds: Vec<f64>,
}

/// A problem on a device.
pub struct Prepared {
    problem: Problem,
    x: Tensor,
    v: Tensor,
    g: Tensor,
    bias: Tensor,
    known: Tensor,
    outputs: Vec<Output>,
}

/// Halves from -2 to 2: up to 4 million products of two of them add up exactly in f32, in any order.
pub fn halves(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 9) as f64 / 2.0 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

fn encode(data: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => data.iter().flat_map(|&a| (a as f32).to_le_bytes()).collect(),
        DType::F16 => data.iter().flat_map(|&a| half::f16::from_f64(a).to_le_bytes()).collect(),
        DType::Bf16 => data.iter().flat_map(|&a| half::bf16::from_f64(a).to_le_bytes()).collect(),
    }
}

impl Placed {
    fn new(gpu: &Gpu, data: Option<&[f64]>, shape: &[usize], dtype: DType, offset: u64) -> Result<Placed, Error> {
        const GUARD: usize = 8;
        let bytes = shape.iter().product::<usize>() * dtype.size() as usize;
        let begin = offset as usize;
        let mut all = vec![0xff; (begin + bytes).next_multiple_of(4) + GUARD];
        if let Some(data) = data {
            all[begin..begin + bytes].copy_from_slice(&encode(data, dtype));
        }
        let words: Vec<f32> = bytemuck::pod_collect_to_vec(&all);
        let words = gpu.upload(&words, &[words.len()])?;
        Ok(Placed { tensor: Tensor::from_buffer(gpu, words.buffer()?, offset, shape, dtype)?, words })
    }

    /// Every byte outside of the tensor (and within it, if nothing may have been written) is still 0xff.
    fn guards(&self, written: bool) -> Outcome {
        let words = self.words.read::<f32>()?;
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let begin = self.tensor.offset() as usize;
        let end = begin + if written { self.tensor.len() * self.tensor.dtype().size() as usize } else { 0 };
        match (0..begin).chain(end..bytes.len()).find(|&i| bytes[i] != 0xff) {
            Some(i) => Err(format!("byte {i} was written, outside of {begin}..{end}").into()),
            None => Ok(()),
        }
    }
}

impl Problem {
    pub fn new(op: Op, shape: &[usize], axis: Axis, batch: usize, dtype: DType) -> Problem {
        Problem { op, shape: shape.to_vec(), axis, batch, dtype, offset: 0 }
    }

    pub fn at(self, offset: u64) -> Problem {
        Problem { offset, ..self }
    }

    pub fn prepare(&self, gpu: &Gpu) -> Result<Prepared, Failed> {
        let &Problem { op, ref shape, axis, batch, dtype, offset } = self;
        let eps = Eps::default();
        let kept = match axis {
            Axis::Kept(k) => shape[k],
            Axis::Whole => 1,
        };
        let v = halves(1, shape.iter().product());
        let g: Vec<f64> = halves(2, kept).iter().map(|a| a / 2.0 + 1.75).collect();
        let norms = cpu::row_norms(&v, shape, axis, eps)?;
        let norm_bounds: Vec<f64> = norms.iter().map(|&n| norm_bound(0, n)).collect();
        let rounded: Vec<f64> = norms.iter().map(|&n| f64::from(n as f32)).collect();
        let place = |data: &[f64], shape: &[usize], dtype| Placed::new(gpu, Some(data), shape, dtype, offset);
        let output = |name, expected: Vec<f64>, bounds, shape: &[usize], dtype| {
            let placed = Placed::new(gpu, None, shape, dtype, offset)?;
            Ok::<_, Error>(Output { name, placed, expected, bounds })
        };
        let in_v = place(&v, shape, dtype)?;
        let mut outputs = vec![];
        let (mut x_shape, mut outs) = (vec![0], 0);
        let weight = |g: Option<&[f64]>| cpu::normalize(&v, shape, g, axis, eps);
        let weight_bounds = |w: &[f64]| w.iter().map(|&w| weight_bound(0, w, dtype)).collect();
        match op {
            Op::Normalize | Op::NormalizeKnown => {
                let w = weight(Some(&g))?;
                let bounds = weight_bounds(&w);
                outputs.push(output("w", w, bounds, shape, dtype)?);
            }
            Op::NormalizeInPlace => {
                let w = weight(None)?;
                let placed = Placed { tensor: in_v.tensor.clone(), words: in_v.words.clone() };
                outputs.push(Output { name: "v", placed, bounds: weight_bounds(&w), expected: w });
            }
            Op::Split => outputs.push(output("v", v.clone(), vec![0.0; v.len()], shape, dtype)?),
            _ => {}
        }
        if op.is_product() {
            let ins = shape[1];
            outs = shape[0];
            x_shape = vec![batch, ins];
            let x = halves(3, batch * ins);
            let bias = halves(4, outs);
            let (product, sums) = if axis == Axis::Kept(1) && op != Op::Plain {
                let w = weight(Some(&g))?;
                let magnitudes = |a: &[f64]| a.iter().map(|a| a.abs()).collect::<Vec<_>>();
                let sums = cpu::linear(&magnitudes(&x), &x_shape, &magnitudes(&w), shape, None, Activation::None)?;
                (cpu::linear(&x, &x_shape, &w, shape, None, Activation::None)?, sums)
            } else {
                // Exact, and only then scaled: a dot product of zero is zero.
                let dots = cpu::linear(&x, &x_shape, &v, shape, None, Activation::None)?;
                let scale = |i: usize| if op == Op::Plain { 1.0 } else { g[i % outs % kept] / norms[i % outs % kept] };
                let product: Vec<f64> = dots.iter().enumerate().map(|(i, dot)| dot * scale(i)).collect();
                let sums = product.iter().map(|y| y.abs()).collect();
                (product, sums)
            };
            let y: Vec<f64> = product.iter().enumerate().map(|(i, y)| y + bias[i % outs]).collect();
            // Nothing is scaled before it is summed up, but by norms of kept axis 1. The tests' x is 20,000 wide at
            // most in a stretch of one invocation.
            let chain = if axis == Axis::Kept(1) && op != Op::Plain { ins.min(20_000) } else { 0 };
            let bounds = (0..y.len()).map(|i| dot_bound(chain, sums[i], y[i], dtype)).collect();
            outputs.push(output("y", y, bounds, &[batch, outs], dtype)?);
        }
        if matches!(op, Op::RowNorms | Op::Split | Op::LinearNorms | Op::LinearSplit) {
            outputs.push(output("norms", norms, norm_bounds, &[kept], DType::F32)?);
        }
        Ok(Prepared {
            problem: self.clone(),
            x: place(&halves(3, x_shape.iter().product()), &x_shape, dtype)?.tensor,
            v: in_v.tensor,
            g: place(&g, &[kept], DType::F32)?.tensor,
            bias: place(&halves(4, outs), &[outs], DType::F32)?.tensor,
            known: place(&rounded, &[kept], DType::F32)?.tensor,
            outputs,
        })
    }

    /// Records, submits and checks it; the dispatches it took.
    pub fn run(&self, gpu: &Gpu) -> Result<u64, Failed> {
        self.try_run(gpu).map_err(|e| format!("{self:?}: {}", e.message().unwrap_or_default()).into())
    }

    fn try_run(&self, gpu: &Gpu) -> Result<u64, Failed> {
        let prepared = self.prepare(gpu)?;
        let mut encoder = encoder(gpu);
        let mut ops = gpu.record(&mut encoder);
        prepared.record(&mut ops)?;
        let count = ops.dispatch_count();
        drop(ops);
        gpu.queue().submit([encoder.finish()]);
        prepared.check()?;
        Ok(count)
    }

    /// The dispatches it takes on `gpu`; nothing is submitted.
    pub fn dispatches(&self, gpu: &Gpu) -> Result<u64, Failed> {
        let prepared = self.prepare(gpu)?;
        let mut encoder = encoder(gpu);
        let mut ops = gpu.record(&mut encoder);
        prepared.record(&mut ops)?;
        Ok(ops.dispatch_count())
    }
}

impl Prepared {
    pub fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let axis = self.problem.axis;
        let weight = WeightNorm::new(&self.v, &self.g).axis(axis);
        let bias = Some(&self.bias);
        let out = |i: usize| &self.outputs[i].placed.tensor;
        match self.problem.op {
            Op::RowNorms => ops.row_norms(WeightNorm::unit(&self.v).axis(axis), out(0)),
            Op::Normalize => ops.normalize(weight, out(0)),
            Op::NormalizeKnown => ops.normalize(weight.norms(&self.known), out(0)),
            Op::NormalizeInPlace => ops.normalize_in_place(WeightNorm::unit(&self.v).axis(axis)),
            Op::Split => ops.decompose(Decompose::new(&self.v).axis(axis), out(0), out(1)),
            Op::Plain => ops.linear(Linear::new(&self.x, &self.v).bias(bias), out(0)),
            Op::Linear => ops.linear(Linear::new(&self.x, weight).bias(bias), out(0)),
            Op::LinearKnown => ops.linear(Linear::new(&self.x, weight.norms(&self.known)).bias(bias), out(0)),
            Op::LinearNorms | Op::LinearSplit => {
                let split = (self.problem.op == Op::LinearSplit).then_some(48);
                ops.linear(Linear::new(&self.x, weight).bias(bias).norms(out(1)).split_length(split), out(0))
            }
        }
    }

    /// The results are there and right, and nothing beside them was written.
    pub fn check(&self) -> Outcome {
        for Output { name, placed, expected, bounds } in &self.outputs {
            let fail = |e: String| Failed::from(format!("{name}: {e}"));
            compare(&read(&placed.tensor)?, expected, Some(placed.tensor.dtype()), |i| bounds[i]).map_err(fail)?;
            placed.guards(true).map_err(|e| fail(e.message().unwrap_or_default().to_owned()))?;
        }
        Ok(())
    }

    /// One wrong element, and one byte beside an output: both have to be found.
    pub fn check_finds_faults(&self, gpu: &Gpu) -> Outcome {
        self.check()?;
        let must_fail = |what: &str| match self.check() {
            Err(_) => Ok(()),
            Ok(()) => Err(Failed::from(format!("{:?}: {what} was not found", self.problem))),
        };
        for output in &self.outputs {
            let (tensor, words) = (&output.placed.tensor, &output.placed.words);
            let whole = words.read::<f32>()?;
            let restore = || gpu.queue().write_buffer(words.buffer().unwrap(), 0, bytemuck::cast_slice(&whole));
            // The first word of the output holds its first element, or its first two.
            let first = tensor.offset() as usize / 4;
            let wrong = whole[first].to_bits() ^ 0x4000_4000;
            gpu.queue().write_buffer(words.buffer()?, tensor.offset(), &wrong.to_le_bytes());
            must_fail("a wrong element")?;
            restore();
            gpu.queue().write_buffer(words.buffer()?, words.len() as u64 * 4 - 4, &[0; 4]);
            must_fail("a write behind an output")?;
            restore();
        }
        self.check()
    }

    /// Nothing was written yet. (Not for operators in place.)
    pub fn check_untouched(&self) -> Outcome {
        self.outputs.iter().try_for_each(|output| output.placed.guards(false))
    }
}

pub fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

/// An instance of the caller's, and on it the adapter that `gpu` runs on.
pub fn adapter_of(
    gpu: &Gpu,
    thresholds: wgpu::MemoryBudgetThresholds,
) -> Result<(wgpu::Instance, wgpu::Adapter), Failed> {
    let info = gpu.report().info;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.backends = info.backend.into();
    descriptor.memory_budget_thresholds = thresholds;
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(info.backend.into()));
    let found = adapters.into_iter().find(|a| a.get_info().name == info.name);
    Ok((instance, found.ok_or("the adapter is gone")?))
}

/// A device of the caller's on the same adapter, with what the crate wants, as `change` changes it.
pub fn device(
    adapter: &wgpu::Adapter,
    change: impl FnOnce(&mut wgpu::Features, &mut wgpu::Limits),
) -> Result<(wgpu::Device, wgpu::Queue), Failed> {
    let wanted = Gpu::wanted(adapter);
    let mut descriptor = wgpu::DeviceDescriptor {
        label: Some("a caller's device"),
        required_features: wanted.features,
        required_limits: wanted.limits,
        ..Default::default()
    };
    change(&mut descriptor.required_features, &mut descriptor.required_limits);
    Ok(pollster::block_on(adapter.request_device(&descriptor))?)
}

/// The options under which the shared device runs.
pub fn options(gpu: &Gpu) -> Options {
    let parameters = if gpu.report().immediates { ParameterPassing::Auto } else { ParameterPassing::Uniform };
    Options::default().parameter_passing(parameters).kind(gpu.traits().kind)
}

/// [`device`], adopted.
pub fn adopted(gpu: &Gpu, change: impl FnOnce(&mut wgpu::Limits)) -> Result<Gpu, Failed> {
    let (_instance, adapter) = adapter_of(gpu, wgpu::MemoryBudgetThresholds::default())?;
    let (device, queue) = device(&adapter, |_, limits| change(limits))?;
    Ok(Gpu::from_wgpu(device, queue, options(gpu))?)
}
