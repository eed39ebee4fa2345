//! The device handle.
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

#[cfg(doc)]
use crate::ArgumentError;
use crate::choose::{Facts, Kind, Traits};
use crate::kernel::{self, Build, Pipelines, Variant};
use crate::needs::{self, COOPERATIVE, DeviceRequirements};
use crate::owner::Owner;
use crate::scope::Scopes;
use crate::windows::Capacities;
use crate::{
    DeviceError, DeviceReport, Error, Options, ParameterPassing, Roofline, SCRATCH_BUFFERS, TuningTable, adapter,
};

/// A device with the crate's pipelines. Cheap to clone; all clones share one device, its pipelines and its scratch.
///
/// Usable from several threads at once, each with its own encoder. (On GL wgpu takes one context lock, for all devices
/// that the crate makes, and panics when a thread waits for it longer than six seconds: use one thread there.)
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    owner: Arc<Owner>,
    scopes: Scopes,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    capacities: Capacities,
    traits: Traits,
    /// `Auto` only with immediates.
    parameters: ParameterPassing,
    /// As the options have them, for a device like this one.
    experimental: wgpu::ExperimentalFeatures,
    cooperative_matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// Sides of the cooperative matrices that can be used.
    cooperative: Vec<u32>,
    /// Of the smallest subgroup, as they count it.
    cooperative_lanes: u32,
    pipelines: Pipelines,
    tuning_table: TuningTable,
    roofline: OnceLock<Roofline>,
    scratch: Mutex<[Option<wgpu::Buffer>; SCRATCH_BUFFERS]>,
    /// Bound where a kernel does not use a binding.
    placeholder_read: wgpu::Buffer,
    placeholder_written: wgpu::Buffer,
}

/// Bytes of a placeholder, and from one to the next: the largest alignment that a device may ask for.
const PLACEHOLDER_SIZE: u64 = 32;
const PLACEHOLDER_STRIDE: u64 = 256;

impl Gpu {
    /// Picks an adapter and makes a device on it: a discrete GPU before an integrated one before a CPU, native APIs
    /// before GL. `WGPU_BACKEND` (vulkan, metal, dx12, gl, or several with commas) and `WGPU_ADAPTER_NAME` (part of a
    /// name) narrow the choice; empty ones count as unset.
    ///
    /// # Errors
    /// [`DeviceError::NoAdapter`], with a word on how to get a driver; [`DeviceError::AdapterChoice`] for a variable
    /// that leaves no adapter; [`DeviceError::NoDevice`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new() -> Result<Gpu, Error> {
        pollster::block_on(Gpu::new_async(Options::default()))
    }

    /// [`Gpu::new`], with options and without blocking.
    ///
    /// # Errors
    /// As [`Gpu::new`]; [`DeviceError::Unsupported`] with a pipeline cache, since the device is made here;
    /// [`ArgumentError::Variant`] for a tuning table that the device cannot run.
    pub async fn new_async(options: Options) -> Result<Gpu, Error> {
        Gpu::on_adapter(&adapter::pick().await?, options).await
    }

    /// Every adapter behind these backends, in the order in which [`Gpu::new`] prefers them; those that cannot run the
    /// kernels come last. A backend that this machine lacks has none. `WGPU_BACKEND` and `WGPU_ADAPTER_NAME` play no
    /// part.
    ///
    /// They belong to the one [`wgpu::Instance`] that the crate makes in a process, as [`Gpu::new`]'s do.
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn adapters(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
        adapter::adapters(backends).await
    }

    /// For the program: the backends that `WGPU_BACKEND` leaves, as for [`Gpu::new`].
    #[doc(hidden)]
    #[cfg(not(target_arch = "wasm32"))]
    pub fn backends_of_environment() -> Result<wgpu::Backends, Error> {
        adapter::backends_of_environment()
    }

    /// Makes a device on this adapter, with what [`Gpu::wanted`] says.
    ///
    /// # Errors
    /// [`DeviceError::NoDevice`]; [`DeviceError::Unsupported`] if the adapter has less than the kernels need, as in
    /// [`Gpu::from_wgpu`], and with a pipeline cache, since the device is made here; [`ArgumentError::Variant`] for a
    /// tuning table that the device cannot run.
    pub async fn on_adapter(adapter: &wgpu::Adapter, mut options: Options) -> Result<Gpu, Error> {
        if options.pipeline_cache.is_some() {
            let what = "the pipeline cache: it belongs to another device, which goes to `Gpu::from_wgpu`";
            return Err(DeviceError::Unsupported { what: what.to_owned() }.into());
        }
        let mut wanted = Gpu::wanted(adapter);
        options.cooperative_matrices = adapter.cooperative_matrix_properties();
        if options.experimental.is_enabled() && adapter.features().contains(COOPERATIVE) {
            wanted.features |= COOPERATIVE;
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("weightnorm"),
            required_features: wanted.features,
            required_limits: wanted.limits,
            experimental_features: options.experimental,
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|e| {
            Error::Device(DeviceError::NoDevice { adapter: adapter.get_info().name, reason: e.to_string() })
        })?;
        let gpu = Gpu::assemble(Owner::of_new(device), queue, options)?;
        gpu.settled().await?;
        Ok(gpu)
    }

    /// Takes the caller's device and queue. Installs no handlers on them: see [`Gpu::mark_lost`].
    ///
    /// The device needs no optional feature, but is slower without those of [`Gpu::wanted`]: [`Gpu::report`] says what
    /// it lacks. With [`wgpu::Features::IMMEDIATES`] and a `max_immediate_size` of 64, 128 for convolutions, a dispatch
    /// needs no buffer for its parameters; with [`wgpu::Features::TIMESTAMP_QUERY`] profiles have times of the device.
    ///
    /// Any number of handles may be made of one device: they are one device, whose tensors mix.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] if the device has less than 8 storage buffers in a stage, 16 KiB of workgroup
    /// memory, 128 invocations in a workgroup and, without immediates, a uniform buffer of 128 bytes (WebGPU's default
    /// limits for compute shaders have all that); or if it has no pipeline caches, and the options bring one.
    /// [`ArgumentError::OtherGpu`] for a queue or a pipeline cache of another device (in a browser at the first
    /// submission). [`ArgumentError::Variant`] for a tuning table that the device cannot run.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue, options: Options) -> Result<Gpu, Error> {
        let gpu = Gpu::assemble(Owner::of(device), queue, options)?;
        #[cfg(not(target_arch = "wasm32"))]
        {
            let (owner, mine) = (&gpu.inner.owner, &gpu.inner.placeholder_read);
            owner.expect_queue("from_wgpu", gpu.queue(), mine)?;
            gpu.inner.pipelines.cache().map_or(Ok(()), |cache| owner.expect_cache("from_wgpu", cache))?;
        }
        Ok(gpu)
    }

    fn assemble(owner: Arc<Owner>, queue: wgpu::Queue, options: Options) -> Result<Gpu, Error> {
        let device = &owner.device;
        needs::check(device, &options)?;
        let cooperative_lanes = options.cooperative_lanes.unwrap_or(device.adapter_info().subgroup_min_size);
        let cooperative = needs::cooperative_sides(device, &options, cooperative_lanes);
        let scopes = Scopes::default();
        let placeholder = |label| {
            let (usage, size) = (wgpu::BufferUsages::STORAGE, PLACEHOLDER_STRIDE * kernel::MAX_BINDINGS);
            let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
            scopes.create_buffer(device, "a placeholder", &descriptor)
        };
        let (info, limits) = (device.adapter_info(), device.limits());
        let inner = Inner {
            tuning_table: options.tuning_table.on(&info),
            traits: Traits::of(&info, &limits, device.features(), options.kind, options.registers)
                .with_cooperative(&cooperative, cooperative_lanes),
            capacities: Capacities::of(&limits, info.backend),
            info,
            limits,
            parameters: needs::parameters(device, options.parameter_passing),
            experimental: options.experimental,
            cooperative_matrices: options.cooperative_matrices,
            cooperative,
            cooperative_lanes,
            pipelines: Pipelines::new(options.pipeline_cache),
            roofline: OnceLock::new(),
            scratch: Mutex::default(),
            placeholder_read: placeholder("weightnorm.placeholder_read")?,
            placeholder_written: placeholder("weightnorm.placeholder_written")?,
            scopes,
            queue,
            owner,
        };
        let gpu = Gpu { inner: Arc::new(inner) };
        gpu.tuning_table().check(gpu.traits())?;
        Ok(gpu)
    }

    /// Another one on the same device, with pipelines and scratch memory of its own, which go when it is dropped.
    pub(crate) fn with_own_caches(&self) -> Result<Gpu, Error> {
        self.as_kind(self.inner.traits.kind)
    }

    /// For tests: the same, taken for a device of this kind.
    #[doc(hidden)]
    pub fn as_kind(&self, kind: Kind) -> Result<Gpu, Error> {
        let Inner { owner, queue, parameters, cooperative_matrices, .. } = &*self.inner;
        let mut options = Options::default().parameter_passing(*parameters).kind(kind);
        options = options.cooperative_matrices(self.inner.experimental, cooperative_matrices.clone());
        options.cooperative_lanes = Some(self.inner.cooperative_lanes);
        options.registers = Some(self.inner.traits.registers);
        Gpu::assemble(owner.clone(), queue.clone(), options)
    }

    /// What an owner of a device should ask for when making it, so that the crate runs at its best.
    pub fn wanted(adapter: &wgpu::Adapter) -> DeviceRequirements {
        DeviceRequirements::of(adapter)
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.owner.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// What the crate runs on and what it uses of it.
    pub fn report(&self) -> DeviceReport {
        let Inner { info, limits, cooperative, owner, .. } = &*self.inner;
        DeviceReport {
            info: info.clone(),
            limits: limits.clone(),
            immediates: self.immediates(),
            cooperative_matrices: cooperative.clone(),
            lacks: if owner.own { vec![] } else { needs::lacks(&owner.device) },
        }
    }

    /// The tuning table in use: that of the options, or an empty one if it was not made for this adapter.
    pub fn tuning_table(&self) -> &TuningTable {
        &self.inner.tuning_table
    }

    /// To be called by the owner of an adopted device from its lost callback: later calls then give
    /// [`DeviceError::Lost`]. Devices that the crate made see to this themselves.
    pub fn mark_lost(&self, reason: &str) {
        self.inner.owner.state.mark_lost(reason.to_owned());
    }

    /// The error that the device reported since the last call, if any. Every operator looks here first, so calling it
    /// is needed only to learn of an error in the last submission. In a browser, which reports errors later than calls
    /// return, every error but those of wrong arguments is told here, by the next operator, or by
    /// [`Tensor::read_async`](crate::Tensor::read_async), which waits for all reports.
    ///
    /// # Errors
    /// [`DeviceError::Lost`], and whatever reached the uncaptured-error handler of a device that the crate made.
    pub fn check(&self) -> Result<(), Error> {
        self.look();
        self.reported()
    }

    /// [`Gpu::check`] without asking the device.
    pub(crate) fn reported(&self) -> Result<(), Error> {
        self.report_late(self.inner.scopes.first());
        self.inner.owner.state.check()
    }

    /// An error of a call that has returned is told by the next one. What that call made may be no good, so that
    /// nothing is kept.
    fn report_late(&self, error: Option<Error>) {
        if let Some(error) = error {
            self.inner.pipelines.forget();
            *self.inner.scratch.lock().expect("no panic while held") = Default::default();
            self.inner.owner.state.report(error);
        }
    }

    /// [`Gpu::check`] after all that wgpu has still to say of what was done so far, which only a browser lets wait for.
    pub(crate) async fn settled(&self) -> Result<(), Error> {
        let late = self.inner.scopes.settled().await;
        self.report_late(late);
        self.check()
    }

    /// Has a device that the crate made say that it was destroyed: its handler hears of that from a poll only.
    pub(crate) fn look(&self) {
        if self.inner.owner.own {
            let _ = self.device().poll(wgpu::PollType::Poll);
        }
    }

    /// Refuses a buffer of another device.
    pub(crate) fn expect_buffer(&self, op: &'static str, buffer: &wgpu::Buffer) -> Result<(), Error> {
        #[cfg(not(target_arch = "wasm32"))]
        self.inner.owner.expect_buffer(op, buffer, &self.inner.placeholder_read)?;
        #[cfg(target_arch = "wasm32")]
        let _ = (op, buffer);
        Ok(())
    }

    /// Pipelines built so far: each variant is built at its first use, and kept.
    pub fn pipeline_count(&self) -> usize {
        self.inner.pipelines.count()
    }

    /// Whether tensors of the other belong to the same device.
    pub(crate) fn is_one_with(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.inner.owner, &other.inner.owner)
    }

    pub(crate) fn immediates(&self) -> bool {
        self.parameters() == ParameterPassing::Auto
    }

    pub(crate) fn parameters(&self) -> ParameterPassing {
        self.inner.parameters
    }

    /// How a kernel gets its parameters: as all do, unless it has more of them than the device takes as immediates.
    pub(crate) fn parameters_of(&self, kernel: &kernel::Kernel) -> ParameterPassing {
        let bytes = kernel.param_bytes();
        let fits = bytes <= kernel::LEAST_IMMEDIATES || bytes <= self.device().limits().max_immediate_size;
        if self.immediates() && !fits { ParameterPassing::Uniform } else { self.parameters() }
    }

    /// The pipeline of a kernel in a variant.
    pub(crate) fn pipeline(&self, variant: &Variant<'_>) -> Result<Arc<kernel::Pipeline>, Error> {
        let parameters = self.parameters_of(variant.kernel);
        let build = Build { device: self.device(), scopes: &self.inner.scopes, parameters };
        self.inner.pipelines.get(&build, variant)
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.inner.scopes
    }

    pub(crate) fn scratch_cells(&self) -> &Mutex<[Option<wgpu::Buffer>; SCRATCH_BUFFERS]> {
        &self.inner.scratch
    }

    pub(crate) fn roofline_cell(&self) -> &OnceLock<Roofline> {
        &self.inner.roofline
    }

    /// What is bound where a kernel does not use a binding. Each binding gets a part of its own, since browsers refuse
    /// two writable bindings of the same bytes.
    pub(crate) fn placeholder(&self, access: kernel::Access, binding: u32) -> wgpu::BufferBinding<'_> {
        let buffer = match access {
            kernel::Access::Read => &self.inner.placeholder_read,
            kernel::Access::Write => &self.inner.placeholder_written,
        };
        let offset = u64::from(binding) * PLACEHOLDER_STRIDE;
        wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(PLACEHOLDER_SIZE) }
    }

    pub(crate) fn limits(&self) -> &wgpu::Limits {
        &self.inner.limits
    }

    /// What decides how work is shared out.
    #[doc(hidden)]
    pub fn traits(&self) -> Traits {
        self.inner.traits
    }

    pub(crate) fn is_gl(&self) -> bool {
        self.inner.capacities.gl
    }

    /// What one dispatch holds.
    pub(crate) fn capacities(&self) -> Capacities {
        self.inner.capacities
    }

    /// What plans depend on.
    pub(crate) fn facts(&self) -> Facts {
        Facts { traits: self.inner.traits, capacities: self.inner.capacities }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("adapter", &self.inner.info.name).finish_non_exhaustive()
    }
}
