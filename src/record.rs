//! Recording: the recorder, the checks every operator makes first, and one dispatch.
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use wgpu::util::align_to;

use crate::kernel::{self, Access, Constants, Kernel};
use crate::profile::Session;
use crate::source::Module;
use crate::{DType, Error, Gpu, Tensor, Work};

/// Records operators into a compute pass. Nothing is submitted and nothing is waited for.
///
/// From [`Gpu::record`] (it opens a pass on an encoder, and ends it when dropped) or [`Gpu::record_pass`]. Each
/// operator checks all its arguments before it records anything. Operators that are recorded one after another see
/// each other's results. Each dispatch keeps its own parameters, so one encoder may hold any number of them.
pub struct Recorder<'p, 'e> {
    gpu: Gpu,
    pass: Pass<'p, 'e>,
    dispatch_count: u64,
    /// Within an operator that is made of others.
    nested: bool,
}

pub(crate) enum Pass<'p, 'e> {
    Own(Box<wgpu::ComputePass<'p>>),
    Borrowed(&'p mut wgpu::ComputePass<'e>),
    /// Of an operator that allocates and returns; submitted in pieces on GL.
    Eager {
        encoder: wgpu::CommandEncoder,
        work: u64,
    },
    /// Each dispatch is timed.
    Profiled(Box<Session>),
}

/// Multiply-adds, or elements moved, that a CPU behind GL does in well under a second.
pub(crate) const GL_WORK: u64 = 1 << 28;

/// One dispatch: which kernel, in which variant, on what.
pub(crate) struct Dispatch<'a, P> {
    pub kernel: &'static Kernel,
    pub module: Module,
    pub constants: &'a Constants,
    /// In the order of the kernel's bindings; `None` where this variant does not use one.
    pub buffers: &'a [Option<Span<'a>>],
    pub params: P,
    pub groups: u64,
    /// Multiply-adds, or elements moved.
    pub work: u64,
}

/// A part of a buffer for one binding, from an address that the device can bind.
#[derive(Clone)]
pub(crate) struct Span<'a> {
    buffer: Cow<'a, wgpu::Buffer>,
    offset: u64,
    size: u64,
}

/// Elements in a buffer: of a tensor, or in scratch memory.
#[derive(Clone)]
pub(crate) struct View<'a> {
    pub buffer: Cow<'a, wgpu::Buffer>,
    pub offset: u64,
    pub element: u64,
}

impl<'a> View<'a> {
    pub fn of(tensor: &'a Tensor) -> View<'a> {
        View { buffer: Cow::Borrowed(tensor.buffer()), offset: tensor.offset(), element: tensor.dtype().size() }
    }

    /// Scratch memory as elements of `element` bytes.
    pub fn scratch(buffer: wgpu::Buffer, element: u64) -> View<'static> {
        View { buffer: Cow::Owned(buffer), offset: 0, element }
    }

    /// Binds `count` elements from `first` on: the span, and the place of `first` within it in elements. Devices bind
    /// at multiples of an alignment of at most 256 bytes, so that place is below 128 and fits 8 bits.
    pub fn bind(&self, gpu: &Gpu, first: u64, count: u64) -> (Option<Span<'a>>, u32) {
        if count == 0 {
            return (None, 0);
        }
        let begin = self.offset + first * self.element;
        let alignment = u64::from(gpu.limits().min_storage_buffer_offset_alignment);
        let offset = begin / alignment * alignment;
        let end = align_to(begin + count * self.element, 4);
        let span = Span { buffer: self.buffer.clone(), offset, size: end - offset };
        (Some(span), ((begin - offset) / self.element) as u32)
    }
}

/// [`View::bind`] of a tensor that need not be there.
pub(crate) fn bind<'a>(gpu: &Gpu, tensor: Option<&'a Tensor>, first: u64, count: u64) -> (Option<Span<'a>>, u32) {
    tensor.map_or((None, 0), |tensor| View::of(tensor).bind(gpu, first, count))
}

/// Up to four places within bindings, 8 bits each.
pub(crate) fn firsts(places: [u32; 4]) -> u32 {
    debug_assert!(places.iter().all(|&p| p < 256), "bound at a multiple of at most 256 bytes");
    u32::from_le_bytes(places.map(|p| p as u8))
}

impl<'p, 'e> Recorder<'p, 'e> {
    pub(crate) fn on_encoder(gpu: &Gpu, encoder: &'p mut wgpu::CommandEncoder) -> Self {
        gpu.look();
        Recorder::on(gpu, Pass::Own(Box::new(encoder.begin_compute_pass(&PASS))))
    }

    pub(crate) fn on_pass(gpu: &Gpu, pass: &'p mut wgpu::ComputePass<'e>) -> Self {
        gpu.look();
        Recorder::on(gpu, Pass::Borrowed(pass))
    }

    pub(crate) fn on(gpu: &Gpu, pass: Pass<'p, 'e>) -> Self {
        Recorder { gpu: gpu.clone(), pass, dispatch_count: 0, nested: false }
    }

    pub(crate) fn into_pass(self) -> Pass<'p, 'e> {
        self.pass
    }

    /// The dispatches recorded so far. Each operator says how many it needs.
    pub fn dispatch_count(&self) -> u64 {
        self.dispatch_count
    }

    /// The device it records for.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Records one dispatch. The caller has checked everything; what can still fail is memory and the device.
    pub(crate) fn dispatch<P: bytemuck::Pod>(&mut self, dispatch: &Dispatch<'_, P>) -> Result<(), Error> {
        if dispatch.groups == 0 {
            return Ok(());
        }
        let gpu = &self.gpu;
        let Dispatch { kernel, module, constants, buffers, params, groups, work } = dispatch;
        debug_assert_eq!(buffers.len(), kernel.bindings.len(), "{}", kernel.entry);
        let params = bytemuck::bytes_of(params);
        debug_assert!(params.len() <= kernel::MAX_PARAMS as usize, "{}", kernel.entry);
        let pipeline = gpu.pipelines().get(gpu, kernel, *module, constants)?;
        let bind_group = gpu.guarded("a bind group", 0, || {
            let uniform = if gpu.immediates() { Ok(None) } else { uniform_buffer(gpu, params).map(Some) };
            uniform.map(|uniform| {
                let mut entries: Vec<_> = zip_bindings(gpu, kernel, buffers);
                entries.extend(uniform.as_ref().map(kernel::uniform_entry));
                gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(&pipeline.label),
                    layout: &pipeline.layout,
                    entries: &entries,
                })
            })
        })??;
        let [x, y, z] = kernel::grid(*groups, gpu.limits().max_compute_workgroups_per_dimension);
        let immediates = gpu.immediates();
        self.encode(&pipeline.label, *work, |pass| {
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            if immediates {
                pass.set_immediates(0, params);
            }
            pass.dispatch_workgroups(x, y, z);
        })
    }

    /// Records a dispatch of the caller's own among the operators, so that a [`Profile`](crate::Profile) has it too, under
    /// `name` and with the `work` that the caller knows of. `record` sets everything on the pass that it needs.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`]; none but while profiling.
    pub fn custom(
        &mut self,
        name: &str,
        work: Work,
        record: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) -> Result<(), Error> {
        self.begin(name, work);
        self.encode(name, work.operations / 2, record)
    }

    fn encode(&mut self, label: &str, work: u64, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Result<(), Error> {
        let gpu = &self.gpu;
        match &mut self.pass {
            Pass::Own(pass) => record(pass),
            Pass::Borrowed(pass) => record(pass),
            Pass::Eager { encoder, work: so_far } => {
                record(&mut encoder.begin_compute_pass(&PASS));
                *so_far += work;
                if gpu.is_gl() && *so_far >= GL_WORK {
                    *so_far = 0;
                    // Another thread waiting for GL's context lock panics after six seconds.
                    let full = std::mem::replace(encoder, new_encoder(gpu));
                    gpu.guarded("a submission", 0, || gpu.queue().submit([full.finish()]))?;
                    let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
                }
            }
            Pass::Profiled(session) => session.time(gpu, label, work, record)?,
        }
        self.dispatch_count += 1;
        Ok(())
    }

    /// An operator begins: what a profile counts its dispatches to.
    pub(crate) fn begin(&mut self, op: &str, work: Work) {
        if let (Pass::Profiled(session), false) = (&mut self.pass, self.nested) {
            session.begin(op, work);
        }
    }

    /// Records operators as parts of the one that has begun.
    pub(crate) fn nested<T>(&mut self, record: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.nested, true);
        let result = record(self);
        self.nested = before;
        result
    }

    /// On GL no dispatch may take long: the elements that may be worked on at once, given the work for each.
    pub(crate) fn work_capacity(&self, work_each: u64) -> u64 {
        if self.gpu.is_gl() { (GL_WORK / work_each.max(1)).max(1) } else { u64::MAX }
    }
}

pub(crate) const PASS: wgpu::ComputePassDescriptor<'static> =
    wgpu::ComputePassDescriptor { label: Some("weightnorm"), timestamp_writes: None };

pub(crate) fn new_encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("weightnorm") })
}

impl Gpu {
    /// Records with `record` and submits.
    pub(crate) fn run<T>(&self, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<T, Error>) -> Result<T, Error> {
        self.check()?;
        let pass = Pass::Eager { encoder: new_encoder(self), work: 0 };
        let mut recorder = Recorder::on(self, pass);
        let result = record(&mut recorder)?;
        let Pass::Eager { encoder, .. } = recorder.pass else { unreachable!("made above") };
        self.guarded("a submission", 0, || self.queue().submit([encoder.finish()]))?;
        Ok(result)
    }
}

fn zip_bindings<'a>(gpu: &'a Gpu, kernel: &Kernel, buffers: &'a [Option<Span<'_>>]) -> Vec<wgpu::BindGroupEntry<'a>> {
    let zipped = kernel.bindings.iter().zip(buffers);
    let entry = |(&(binding, access), span): (&(u32, Access), &'a Option<Span<'_>>)| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(match span {
            Some(span) => span.binding(),
            None => gpu.nothing(access, binding),
        }),
    };
    zipped.map(entry).collect()
}

impl<'a> Span<'a> {
    /// Bytes that the device can bind.
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64, size: u64) -> Span<'a> {
        Span { buffer: Cow::Borrowed(buffer), offset, size }
    }

    fn binding(&self) -> wgpu::BufferBinding<'_> {
        wgpu::BufferBinding { buffer: &self.buffer, offset: self.offset, size: wgpu::BufferSize::new(self.size) }
    }
}

/// The parameters of one dispatch in a buffer of their own.
fn uniform_buffer(gpu: &Gpu, params: &[u8]) -> Result<wgpu::Buffer, Error> {
    let size = align_to(params.len() as u64, 16);
    gpu.create_written_buffer("parameters", size, wgpu::BufferUsages::UNIFORM, |mut all| {
        all.slice(..params.len()).copy_from_slice(params)
    })
}

/// An operator's tensors, checked together before anything is recorded. They tell the least it has to move as well.
pub(crate) struct Arguments<'a> {
    op: &'static str,
    inputs: Vec<(&'static str, &'a Tensor)>,
    outputs: Vec<(&'static str, &'a Tensor)>,
    work: Work,
}

impl<'a> Arguments<'a> {
    pub fn new(op: &'static str) -> Self {
        Arguments { op, inputs: vec![], outputs: vec![], work: Work::default() }
    }

    pub fn input(self, arg: &'static str, tensor: impl Into<Option<&'a Tensor>>) -> Self {
        self.input_if(true, arg, tensor)
    }

    /// An input that is not read in every case.
    pub fn input_if(mut self, read: bool, arg: &'static str, tensor: impl Into<Option<&'a Tensor>>) -> Self {
        if let Some(tensor) = tensor.into() {
            self.inputs.push((arg, tensor));
            self.work.read += if read { tensor.bytes() } else { 0 };
        }
        self
    }

    pub fn output(self, arg: &'static str, tensor: impl Into<Option<&'a Tensor>>) -> Self {
        self.output_onto(false, arg, tensor)
    }

    /// An output whose former contents are read as well, or may be.
    pub fn output_onto(mut self, read: bool, arg: &'static str, tensor: impl Into<Option<&'a Tensor>>) -> Self {
        if let Some(tensor) = tensor.into() {
            self.outputs.push((arg, tensor));
            self.work.written += tensor.bytes();
            self.work.read += if read { tensor.bytes() } else { 0 };
        }
        self
    }

    /// The operations it takes: see [`Work`].
    pub fn operations(mut self, operations: u64) -> Self {
        self.work.operations = operations;
        self
    }

    /// Device, usage and aliasing of all of them. The operator begins, for a profile.
    pub fn begin(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let work = self.check(ops.gpu())?;
        ops.begin(self.op, work);
        Ok(())
    }

    /// The same without a beginning. Returns the work it takes.
    #[expect(clippy::mutable_key_type, reason = "buffers are ordered by which they are, and that stays")]
    pub fn check(&self, gpu: &Gpu) -> Result<Work, Error> {
        gpu.reported()?;
        let op = self.op;
        for &(arg, tensor) in self.inputs.iter().chain(&self.outputs) {
            if !tensor.gpu().is_one_with(gpu) {
                return Err(Error::OtherGpu { op, arg });
            }
            let missing = wgpu::BufferUsages::STORAGE - tensor.buffer().usage();
            if !missing.is_empty() {
                return Err(Error::Usage { op, arg, missing });
            }
        }
        let mut read: BTreeMap<&wgpu::Buffer, &str> = BTreeMap::new();
        for &(arg, tensor) in &self.inputs {
            read.entry(tensor.buffer()).or_insert(arg);
        }
        // Begin and end of the outputs so far. They do not overlap, so of those that begin before another one's end the
        // last reaches furthest.
        let mut written = BTreeSet::new();
        for (i, &(output, tensor)) in self.outputs.iter().enumerate() {
            let (buffer, begin, end) = (tensor.buffer(), tensor.offset(), tensor.end());
            if let Some(&input) = read.get(buffer) {
                return Err(Error::Alias { op, output, input });
            }
            let before = written.range((buffer, 0, 0)..(buffer, end, 0)).next_back();
            if before.is_some_and(|&(_, _, its_end)| its_end > begin) {
                let overlaps = |t: &Tensor| t.buffer() == buffer && t.offset() < end && begin < t.end();
                let first = self.outputs[..i].iter().find(|(_, t)| overlaps(t)).map_or(output, |&(first, _)| first);
                return Err(Error::Overlap { op, first, second: output });
            }
            written.insert((buffer, begin, end));
        }
        Ok(self.work)
    }
}

/// Checks a storage type.
pub(crate) fn expect_dtype(op: &'static str, arg: &'static str, tensor: &Tensor, dtype: DType) -> Result<(), Error> {
    if tensor.dtype() != dtype {
        return Err(Error::DType { op, arg, got: tensor.dtype(), expected: dtype });
    }
    Ok(())
}

/// Checks a shape.
pub(crate) fn expect_shape(op: &'static str, arg: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<(), Error> {
    if tensor.shape() != shape {
        return Err(Error::Shape { op, arg, got: tensor.shape().to_vec(), expected: format!("{shape:?}") });
    }
    Ok(())
}

/// Checks one f32 per kept index: the norms' shape (ones but at the kept axis), or flat.
pub(crate) fn expect_per_norm(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor,
    norms_shape: &[usize],
) -> Result<(), Error> {
    expect_dtype(op, arg, tensor, DType::F32)?;
    expect_gain(op, arg, tensor, norms_shape)
}

/// Checks one element of any storage type per kept index, shaped as [`expect_per_norm`] has it.
pub(crate) fn expect_gain(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor,
    norms_shape: &[usize],
) -> Result<(), Error> {
    let count: usize = norms_shape.iter().product();
    let scalar = count == 1 && tensor.len() == 1;
    if tensor.shape() != norms_shape && tensor.shape() != [count] && !scalar {
        let expected = format!("{norms_shape:?} or [{count}]");
        return Err(Error::Shape { op, arg, got: tensor.shape().to_vec(), expected });
    }
    Ok(())
}
