//! Recording: the recorder, and one dispatch.
use wgpu::util::align_to;

use crate::binding::Span;
use crate::choose::Facts;
use crate::commands::{Commands, PASS};
use crate::kernel::{self, Access, Constants, Kernel};
use crate::memory::Scratch;
use crate::profile::session::Session;
use crate::source::Module;
use crate::{Choices, Error, Gpu, Work};

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
    Eager(Commands),
    /// Each dispatch is timed.
    Profiled(Box<Session>),
}

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

impl<'p, 'e> Recorder<'p, 'e> {
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

    /// What plans depend on.
    pub(crate) fn facts(&self) -> Facts {
        self.gpu.facts()
    }

    /// Which tiles were measured to be the best.
    pub(crate) fn choices(&self) -> &Choices {
        self.gpu.choices()
    }

    /// A scratch buffer of at least `bytes`.
    pub(crate) fn scratch(&self, which: Scratch, bytes: u64) -> Result<wgpu::Buffer, Error> {
        self.gpu.scratch(which, bytes)
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
        let pipeline = gpu.pipeline(kernel, *module, constants)?;
        let bind_group = gpu.scoped("a bind group", 0, || {
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
            Pass::Eager(commands) => commands.pass(gpu, None, work, record)?,
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
}

impl Gpu {
    /// Opens a compute pass on the caller's encoder to record operators into. Nothing is submitted.
    pub fn record<'p>(&self, encoder: &'p mut wgpu::CommandEncoder) -> Recorder<'p, 'p> {
        self.look();
        Recorder::on(self, Pass::Own(Box::new(encoder.begin_compute_pass(&PASS))))
    }

    /// Records operators into the caller's compute pass.
    pub fn record_pass<'p, 'e>(&self, pass: &'p mut wgpu::ComputePass<'e>) -> Recorder<'p, 'e> {
        self.look();
        Recorder::on(self, Pass::Borrowed(pass))
    }

    /// Records with `record` and submits.
    pub(crate) fn run<T>(&self, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<T, Error>) -> Result<T, Error> {
        self.check()?;
        let mut recorder = Recorder::on(self, Pass::Eager(Commands::new(self)));
        let result = record(&mut recorder)?;
        let Pass::Eager(commands) = recorder.pass else { unreachable!("made above") };
        commands.submit(self)?;
        Ok(result)
    }
}

fn zip_bindings<'a>(gpu: &'a Gpu, kernel: &Kernel, buffers: &'a [Option<Span<'_>>]) -> Vec<wgpu::BindGroupEntry<'a>> {
    let zipped = kernel.bindings.iter().zip(buffers);
    let entry = |(&(binding, access), span): (&(u32, Access), &'a Option<Span<'_>>)| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(match span {
            Some(span) => span.binding(),
            None => gpu.placeholder(access, binding),
        }),
    };
    zipped.map(entry).collect()
}

/// The parameters of one dispatch in a buffer of their own.
fn uniform_buffer(gpu: &Gpu, params: &[u8]) -> Result<wgpu::Buffer, Error> {
    let size = align_to(params.len() as u64, 16);
    gpu.create_written_buffer("parameters", size, wgpu::BufferUsages::UNIFORM, |mut all| {
        all.slice(..params.len()).copy_from_slice(params)
    })
}
