//! Recording: the recorder, and one dispatch.
use wgpu::util::align_to;

#[cfg(doc)]
use crate::Tensor;
use crate::binding::Span;
use crate::choose::Facts;
use crate::commands::{Commands, PASS};
use crate::kernel::{self, Access, Constants, Kernel, Variant};
use crate::launch::{Launch, Planned};
use crate::memory::{Memory, Scratch};
use crate::product::selection::{Problem, Selection};
use crate::profile::session::Session;
use crate::source::Module;
use crate::{Cost, DeviceError, Error, Gpu, ParameterPassing};

/// Records operators into a compute pass. Nothing is submitted and nothing is waited for.
///
/// From [`Gpu::record`] (it opens a pass on an encoder, and ends it when dropped) or [`Gpu::record_pass`]. Each
/// operator checks all its arguments before it records anything. Operators that are recorded one after another see
/// each other's results. Each dispatch keeps its own parameters, so one encoder may hold any number of them.
pub struct Recorder<'p, 'e> {
    facts: Facts,
    target: Target<'p, 'e>,
    dispatch_count: u64,
    /// Within an operator that is made of others.
    nested: bool,
}

/// Where dispatches go.
enum Target<'p, 'e> {
    Device(Gpu, Pass<'p, 'e>),
    Launcher(&'p mut dyn Launch),
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
        let target = Target::Device(gpu.clone(), pass);
        Recorder { facts: gpu.facts(), target, dispatch_count: 0, nested: false }
    }

    /// Records operators by handing each dispatch to `launcher`. The tensors have to be of [`Tensor::of_launcher`].
    pub fn launching(facts: Facts, launcher: &'p mut dyn Launch) -> Self {
        Recorder { facts, target: Target::Launcher(launcher), dispatch_count: 0, nested: false }
    }

    /// None with a launcher.
    pub(crate) fn into_pass(self) -> Option<Pass<'p, 'e>> {
        if let Target::Device(_, pass) = self.target { Some(pass) } else { None }
    }

    /// The dispatches recorded so far. Each operator says how many it needs.
    pub fn dispatch_count(&self) -> u64 {
        self.dispatch_count
    }

    /// The device it records for, unless it hands its dispatches to a [`Launch`].
    pub fn gpu(&self) -> Option<&Gpu> {
        if let Target::Device(gpu, _) = &self.target { Some(gpu) } else { None }
    }

    /// What plans depend on.
    pub(crate) fn facts(&self) -> Facts {
        self.facts
    }

    /// The choice for a product, if one was measured.
    pub(crate) fn choice(&self, problem: &Problem, cooperative: bool) -> Selection {
        self.gpu().map_or(Selection::default(), |gpu| gpu.tuning_table().get(problem, cooperative))
    }

    /// A scratch buffer of at least `bytes`.
    pub(crate) fn scratch(&mut self, which: Scratch, bytes: u64) -> Result<Memory, Error> {
        match &mut self.target {
            Target::Device(gpu, _) => gpu.scratch(which, bytes).map(Memory::Buffer),
            Target::Launcher(launcher) => launcher.scratch(which as usize, bytes).map(Memory::Numbered),
        }
    }

    /// Plans one dispatch, and records or launches it. The caller has checked everything; what can still fail is memory
    /// and the device.
    pub(crate) fn dispatch<P: bytemuck::Pod>(&mut self, dispatch: &Dispatch<'_, P>) -> Result<(), Error> {
        if dispatch.groups == 0 {
            return Ok(());
        }
        let &Dispatch { kernel, module, constants, buffers, ref params, groups, work } = dispatch;
        debug_assert_eq!(buffers.len(), kernel.bindings.len(), "{}", kernel.entry);
        let parameters = bytemuck::bytes_of(params);
        debug_assert!(parameters.len() <= kernel::MAX_PARAMS as usize, "{}", kernel.entry);
        let workgroups = kernel::grid(groups, self.facts.capacities.groups_along);
        let planned = Planned { kernel, module, constants, buffers, parameters, workgroups, work };
        match &mut self.target {
            Target::Device(gpu, pass) => pass.launch(gpu, &planned)?,
            Target::Launcher(launcher) => launcher.launch(&planned)?,
        }
        self.dispatch_count += 1;
        Ok(())
    }

    /// Records a dispatch of the caller's own among the operators, so that a [`Profile`](crate::Profile) has it too,
    /// under `name` and with the `cost` that the caller knows of. `record` sets everything on the pass that it needs.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Lost`] while profiling; [`DeviceError::Unsupported`] with a
    /// [`Launch`].
    pub fn custom(
        &mut self,
        name: &str,
        cost: Cost,
        record: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) -> Result<(), Error> {
        self.begin(name, cost);
        let Target::Device(gpu, pass) = &mut self.target else {
            return Err(DeviceError::Unsupported {
                what: "a dispatch of the caller's own among those of a launcher".to_owned(),
            }
            .into());
        };
        pass.encode(gpu, name, cost.operations / 2, record)?;
        self.dispatch_count += 1;
        Ok(())
    }

    /// An operator begins: what a profile counts its dispatches to.
    pub(crate) fn begin(&mut self, op: &str, cost: Cost) {
        if let (Target::Device(_, Pass::Profiled(session)), false) = (&mut self.target, self.nested) {
            session.begin(op, cost);
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

    /// Records what `record` says, and submits it: in pieces where no submission may take long (GL). Errors of the
    /// device come back, as of the operators that are called by themselves.
    pub fn run<T>(&self, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<T, Error>) -> Result<T, Error> {
        self.check()?;
        let mut recorder = Recorder::on(self, Pass::Eager(Commands::new(self)));
        let result = record(&mut recorder)?;
        let Some(Pass::Eager(commands)) = recorder.into_pass() else { unreachable!("made above") };
        commands.submit(self)?;
        Ok(result)
    }
}

impl Pass<'_, '_> {
    fn launch(&mut self, gpu: &Gpu, planned: &Planned<'_>) -> Result<(), Error> {
        let &Planned { kernel, module, constants, parameters, workgroups: [x, y, z], work, .. } = planned;
        let pipeline = gpu.pipeline(&Variant { kernel, module, shared: planned.shared(), constants })?;
        let immediates = gpu.parameters_of(kernel) == ParameterPassing::Auto;
        let bind_group = gpu.scoped("a bind group", 0, || {
            let uniform = if immediates { Ok(None) } else { uniform_buffer(gpu, parameters).map(Some) };
            uniform.map(|uniform| {
                let mut entries = bindings(gpu, planned);
                entries.extend(uniform.as_ref().map(kernel::uniform_entry));
                gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(&pipeline.label),
                    layout: &pipeline.layout,
                    entries: &entries,
                })
            })
        })??;
        self.encode(gpu, &pipeline.label, work, |pass| {
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            if immediates {
                pass.set_immediates(0, parameters);
            }
            pass.dispatch_workgroups(x, y, z);
        })
    }

    fn encode(
        &mut self,
        gpu: &Gpu,
        label: &str,
        work: u64,
        record: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) -> Result<(), Error> {
        match self {
            Pass::Own(pass) => record(pass),
            Pass::Borrowed(pass) => record(pass),
            Pass::Eager(commands) => commands.pass(gpu, None, work, record)?,
            Pass::Profiled(session) => session.time(gpu, label, work, record)?,
        }
        Ok(())
    }
}

fn bindings<'a>(gpu: &'a Gpu, planned: &'a Planned<'_>) -> Vec<wgpu::BindGroupEntry<'a>> {
    let zipped = planned.kernel.bindings.iter().zip(planned.buffers);
    let entry = |(&(binding, access), span): (&(u32, Access), &'a Option<Span<'_>>)| {
        let bound = span.as_ref().and_then(Span::binding).unwrap_or_else(|| gpu.placeholder(access, binding));
        wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(bound) }
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
