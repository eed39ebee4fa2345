//! The device handle.
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use futures::FutureExt;

use crate::kernel::{self, Pipelines};
use crate::{Choices, DType, Element, Error, Recorder, Roof, Tensor};

/// How a dispatch gets its parameters.
#[expect(
    clippy::manual_non_exhaustive,
    reason = "what is hidden is for tests, and keeps nobody from listing the others"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parameters {
    /// Immediates where the device has them, else uniform buffers.
    #[default]
    Auto,
    /// One small uniform buffer per dispatch, as on a device without immediates.
    Uniform,
    /// For tests: the same, and the invocations of a workgroup in reverse order. Drivers on CPUs run them in order, so that a
    /// barrier that is missing shows in one of the two orders only.
    #[doc(hidden)]
    Reversed,
}

/// What may be asked of a [`Gpu`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// How a dispatch gets its parameters.
    pub parameters: Parameters,
    /// A pipeline cache of the caller's, on the caller's device: see [`Options::pipeline_cache`].
    pub pipeline_cache: Option<wgpu::PipelineCache>,
    /// Tiles that were measured: see [`Options::choices`].
    pub choices: Choices,
    /// wgpu's token of who accepts experimental features: see [`Options::cooperative_matrices`].
    pub experimental: wgpu::ExperimentalFeatures,
    /// Of an adopted device's adapter: see [`Options::cooperative_matrices`].
    pub cooperative_matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// For tests: what the smallest subgroup is taken to be in cooperative matrices, less than it is.
    #[doc(hidden)]
    pub cooperative_lanes: Option<u32>,
}

impl Options {
    /// Forces how a dispatch gets its parameters.
    pub fn parameters(mut self, parameters: Parameters) -> Self {
        self.parameters = parameters;
        self
    }

    /// Builds every pipeline with this cache, so that drivers need not compile again what the cache has. It is made by
    /// `device.create_pipeline_cache(..)` on a device with [`wgpu::Features::PIPELINE_CACHE`], which goes to
    /// [`Gpu::from_wgpu`]; its data are for the caller to keep. A cache of another device than that one makes every operator
    /// fail with [`Error::Wgpu`].
    pub fn pipeline_cache(mut self, cache: wgpu::PipelineCache) -> Self {
        self.pipeline_cache = Some(cache);
        self
    }

    /// Computes the products that `choices` name as they say. Choices that were not made by this version of the crate on
    /// this adapter with this driver count as none, which [`Gpu::choices`] tells. One that the device cannot run, for want
    /// of a feature that was not asked for, is [`Error::Variant`].
    pub fn choices(mut self, choices: Choices) -> Self {
        self.choices = choices;
        self
    }

    /// Computes products of f16 by f16 in cooperative matrices, with sums in f32, where the adapter has them in a size of
    /// [`Tile`](crate::Tile) and f16 in shaders. **Experimental and unsafe**: wgpu and naga may have bugs there that are
    /// undefined behaviour, reached from safe code. So whoever asks for it hands over wgpu's token, which takes an `unsafe`
    /// block of his own:
    ///
    /// ```no_run
    /// # async fn f() -> Result<(), weightnorm::Error> {
    /// // SAFETY: we take it that this adapter's cooperative matrices do what they should.
    /// let token = unsafe { wgpu::ExperimentalFeatures::enabled() };
    /// let options = weightnorm::Options::default().cooperative_matrices(token, vec![]);
    /// let gpu = weightnorm::Gpu::new_async(options).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// `properties`: for [`Gpu::from_wgpu`] what `adapter.cooperative_matrix_properties()` gives, since a device does not
    /// tell, and the device has been made with [`wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX`],
    /// [`wgpu::Features::SHADER_F16`] and [`wgpu::Features::SUBGROUP`]. [`Gpu::new_async`] sees to all that itself.
    /// [`Report::cooperative_matrices`] says what came of it: none, too, on NVIDIA's Vulkan driver, where they do not work with
    /// wgpu 30 ([gfx-rs/wgpu#8805](https://github.com/gfx-rs/wgpu/issues/8805)).
    pub fn cooperative_matrices(
        mut self,
        token: wgpu::ExperimentalFeatures,
        properties: Vec<wgpu::CooperativeMatrixProperties>,
    ) -> Self {
        self.experimental = token;
        self.cooperative_matrices = properties;
        self
    }
}

/// Features and limits that an owner of a device should ask for, as far as the adapter has them. See [`Gpu::wanted`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Wanted {
    /// Optional features that are of use.
    pub features: wgpu::Features,
    /// The adapter's own limits: larger bindings mean fewer dispatches.
    pub limits: wgpu::Limits,
}

/// A device with the crate's pipelines. Cheap to clone; all clones share one device, its pipelines and its scratch.
///
/// Usable from several threads at once, each with its own encoder. (On GL wgpu takes one context lock per device and
/// panics when a thread waits for it longer than six seconds: use one thread there.)
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    /// `Auto` only with immediates.
    parameters: Parameters,
    /// As the options have them, for a device like this one.
    experimental: wgpu::ExperimentalFeatures,
    cooperative_matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// Sides of the cooperative matrices that can be used.
    cooperative: Vec<u32>,
    /// Of the smallest subgroup, as they count it.
    cooperative_lanes: u32,
    /// Made here, with our handlers.
    own: bool,
    state: Arc<State>,
    pipelines: Pipelines,
    choices: Choices,
    roof: OnceLock<Roof>,
    scratch: Mutex<[Option<wgpu::Buffer>; 5]>,
    /// Bound where a kernel does not use a binding.
    nothing_read: wgpu::Buffer,
    nothing_written: wgpu::Buffer,
}

/// What the device's handlers report.
#[derive(Default)]
struct State {
    lost: Mutex<Option<String>>,
    error: Mutex<Option<Error>>,
}

impl State {
    fn check(&self) -> Result<(), Error> {
        if let Some(reason) = self.lost.lock().expect("no panic while held").clone() {
            return Err(Error::DeviceLost { reason });
        }
        self.error.lock().expect("no panic while held").take().map_or(Ok(()), Err)
    }

    fn mark_lost(&self, reason: String) {
        self.lost.lock().expect("no panic while held").get_or_insert(reason);
    }
}

/// The scratch buffers. One dispatch may read norms and quotients, and write factors and partial sums, and wgpu tracks use
/// per buffer.
#[derive(Clone, Copy)]
pub(crate) enum Scratch {
    Sums,
    Scales,
    Norms,
    Factors,
    Vectors,
}

/// Bytes of a placeholder, and from one to the next: the largest alignment that a device may ask for.
const NOTHING_SIZE: u64 = 32;
const NOTHING_STRIDE: u64 = 256;

/// The smallest binding that every operator can be split over.
const MIN_BINDING: u64 = 8192;

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Gpu {
    /// Picks an adapter and makes a device on it: a discrete GPU before an integrated one before a CPU, native APIs
    /// before GL. `WGPU_BACKEND` (vulkan, metal, dx12, gl) and `WGPU_ADAPTER_NAME` (part of a name) narrow the choice.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], with a word on how to get a driver; [`Error::NoDevice`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new() -> Result<Gpu, Error> {
        pollster::block_on(Gpu::new_async(Options::default()))
    }

    /// [`Gpu::new`], with options and without blocking.
    ///
    /// # Errors
    /// As [`Gpu::new`]; [`Error::Unsupported`] with a pipeline cache, since the device is made here; [`Error::Variant`]
    /// for choices that the device cannot run.
    pub async fn new_async(options: Options) -> Result<Gpu, Error> {
        Gpu::on_adapter(&pick_adapter().await?, options).await
    }

    /// Every adapter behind these backends, in the order in which [`Gpu::new`] prefers them; those that cannot run the
    /// kernels come last. A backend that this machine lacks has none. `WGPU_BACKEND` and `WGPU_ADAPTER_NAME` play no part.
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn adapters(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        descriptor.backends = backends;
        let mut adapters = wgpu::Instance::new(descriptor).enumerate_adapters(backends).await;
        let rank = |adapter: &wgpu::Adapter| {
            let info = adapter.get_info();
            let kind = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => 0,
                wgpu::DeviceType::IntegratedGpu => 1,
                wgpu::DeviceType::VirtualGpu => 2,
                wgpu::DeviceType::Other => 3,
                wgpu::DeviceType::Cpu => 4,
            };
            // GL may not know that it runs on a CPU.
            let software = info.name.to_lowercase().contains("llvmpipe");
            (!runs_compute(adapter), software, kind, info.backend == wgpu::Backend::Gl)
        };
        adapters.sort_by_key(rank);
        adapters
    }

    /// Makes a device on this adapter, with what [`Gpu::wanted`] says.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::Unsupported`] if the adapter has less than the kernels need, as in
    /// [`Gpu::from_wgpu`], and with a pipeline cache, since the device is made here; [`Error::Variant`] for choices that
    /// the device cannot run.
    pub async fn on_adapter(adapter: &wgpu::Adapter, mut options: Options) -> Result<Gpu, Error> {
        if options.pipeline_cache.is_some() {
            let what = "the pipeline cache: it belongs to another device, which goes to `Gpu::from_wgpu`";
            return Err(Error::Unsupported { what: what.to_owned() });
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
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::NoDevice { adapter: adapter.get_info().name, reason: e.to_string() })?;
        let state = Arc::new(State::default());
        let for_lost = state.clone();
        device.set_device_lost_callback(move |reason, message| for_lost.mark_lost(format!("{reason:?}: {message}")));
        let for_errors = state.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            for_errors.error.lock().expect("no panic while held").get_or_insert(from_wgpu_error(
                error,
                "a resource",
                0,
            ));
        }));
        Gpu::assemble(device, queue, options, Some(state))
    }

    /// Takes the caller's device and queue. Installs no handlers on them: see [`Gpu::mark_lost`].
    ///
    /// The device needs no optional feature; [`Gpu::wanted`] says which ones are of use. With
    /// [`wgpu::Features::IMMEDIATES`] and a `max_immediate_size` of 64 a dispatch needs no buffer for its parameters; with
    /// [`wgpu::Features::TIMESTAMP_QUERY`] profiles have times of the device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device has less than 8 storage buffers in a stage, 16 KiB of workgroup memory and 128
    /// invocations in a workgroup (WebGPU's default limits for compute shaders have all that); or if it has no pipeline caches, and
    /// the options bring one. [`Error::Variant`] for choices that the device cannot run.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue, options: Options) -> Result<Gpu, Error> {
        Gpu::assemble(device, queue, options, None)
    }

    /// `handlers`: what the handlers of a device of our own report.
    fn assemble(
        device: wgpu::Device,
        queue: wgpu::Queue,
        options: Options,
        handlers: Option<Arc<State>>,
    ) -> Result<Gpu, Error> {
        let limits = device.limits();
        for (what, has, needs) in [
            ("storage buffers in a stage", limits.max_storage_buffers_per_shader_stage, 8),
            ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, 16_384),
            ("invocations in a workgroup", limits.max_compute_invocations_per_workgroup, 128),
            ("invocations along x", limits.max_compute_workgroup_size_x, 128),
            ("workgroups in a dimension", limits.max_compute_workgroups_per_dimension, 1),
            ("bindings in a bind group", limits.max_bindings_per_bind_group, kernel::MAX_BINDINGS as u32),
        ] {
            if has < needs {
                return Err(Error::Unsupported { what: format!("{what}: it has {has}, {needs} are needed") });
            }
        }
        // Windows hold a few elements at least.
        let binding = limits.max_storage_buffer_binding_size;
        if binding < MIN_BINDING {
            return Err(Error::Unsupported { what: format!("bindings of {MIN_BINDING} bytes, only of {binding}") });
        }
        // A place within a binding is handed to the shaders in 8 bits.
        let alignment = limits.min_storage_buffer_offset_alignment;
        if alignment > 256 {
            return Err(Error::Unsupported {
                what: format!("bindings at multiples of 256 bytes, only of {alignment}"),
            });
        }
        if options.pipeline_cache.is_some() && !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return Err(Error::Unsupported { what: "pipeline caches".to_owned() });
        }
        let immediates = options.parameters == Parameters::Auto
            && device.features().contains(wgpu::Features::IMMEDIATES)
            && limits.max_immediate_size >= kernel::MAX_PARAMS;
        let parameters = match options.parameters {
            Parameters::Auto if !immediates => Parameters::Uniform,
            parameters => parameters,
        };
        let cooperative_lanes = options.cooperative_lanes.unwrap_or(device.adapter_info().subgroup_min_size);
        let cooperative = cooperative_sides(&device, &options, cooperative_lanes);
        let nothing = |label| {
            let usage = wgpu::BufferUsages::STORAGE;
            create_buffer(
                &device,
                "a placeholder",
                &wgpu::BufferDescriptor {
                    label: Some(label),
                    size: NOTHING_STRIDE * kernel::MAX_BINDINGS,
                    usage,
                    mapped_at_creation: false,
                },
            )
        };
        let info = device.adapter_info();
        let inner = Inner {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            choices: options.choices.on(&info),
            info,
            limits,
            parameters,
            experimental: options.experimental,
            cooperative_matrices: options.cooperative_matrices,
            cooperative,
            cooperative_lanes,
            own: handlers.is_some(),
            state: handlers.unwrap_or_default(),
            pipelines: Pipelines::new(options.pipeline_cache),
            roof: OnceLock::new(),
            scratch: Mutex::default(),
            nothing_read: nothing("weightnorm.nothing_read")?,
            nothing_written: nothing("weightnorm.nothing_written")?,
            device,
            queue,
        };
        let gpu = Gpu { inner: Arc::new(inner) };
        gpu.choices().check(&gpu)?;
        Ok(gpu)
    }

    /// Another one on the same device, with pipelines and scratch memory of its own, which go when it is dropped.
    pub(crate) fn apart(&self) -> Result<Gpu, Error> {
        let Inner { device, queue, parameters, own, state, cooperative_matrices, .. } = &*self.inner;
        let mut options = Options::default().parameters(*parameters);
        options = options.cooperative_matrices(self.inner.experimental, cooperative_matrices.clone());
        options.cooperative_lanes = Some(self.inner.cooperative_lanes);
        Gpu::assemble(device.clone(), queue.clone(), options, own.then(|| state.clone()))
    }

    /// What an owner of a device should ask for when making it, so that the crate runs at its best.
    pub fn wanted(adapter: &wgpu::Adapter) -> Wanted {
        let mut features = wgpu::Features::IMMEDIATES
            | wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE;
        if adapter.get_info().device_type == wgpu::DeviceType::Cpu {
            features |= LONG_WORDS;
        }
        Wanted { features: adapter.features() & features, limits: adapter.limits() }
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// What the crate runs on and what it uses of it.
    pub fn report(&self) -> Report {
        let Inner { info, limits, cooperative, .. } = &*self.inner;
        Report {
            info: info.clone(),
            limits: limits.clone(),
            immediates: self.immediates(),
            cooperative_matrices: cooperative.clone(),
        }
    }

    /// The choices in use: those of the options, or none if they were not made for this adapter.
    pub fn choices(&self) -> &Choices {
        &self.inner.choices
    }

    /// To be called by the owner of an adopted device from its lost callback: later calls then give
    /// [`Error::DeviceLost`]. Devices that the crate made see to this themselves.
    pub fn mark_lost(&self, reason: &str) {
        self.inner.state.mark_lost(reason.to_owned());
    }

    /// The error that the device reported since the last call, if any. Every operator looks here first, so calling
    /// it is needed only to learn of an error in the last submission.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], and whatever reached the uncaptured-error handler of a device that the crate made.
    pub fn check(&self) -> Result<(), Error> {
        self.look();
        self.reported()
    }

    /// [`Gpu::check`] without asking the device.
    pub(crate) fn reported(&self) -> Result<(), Error> {
        self.inner.state.check()
    }

    /// Has a device that the crate made say that it was destroyed: its handler hears of that from a poll only.
    pub(crate) fn look(&self) {
        if self.inner.own {
            let _ = self.inner.device.poll(wgpu::PollType::Poll);
        }
    }

    /// Preallocates scratch memory, four buffers of `bytes` each, so that recording allocates none up to that size.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::DeviceLost`].
    pub fn reserve(&self, bytes: u64) -> Result<(), Error> {
        self.check()?;
        for which in [Scratch::Sums, Scratch::Scales, Scratch::Norms, Scratch::Factors] {
            self.scratch(which, bytes)?;
        }
        Ok(())
    }

    /// Opens a compute pass on the caller's encoder to record operators into. Nothing is submitted.
    pub fn record<'p>(&self, encoder: &'p mut wgpu::CommandEncoder) -> Recorder<'p, 'p> {
        Recorder::on_encoder(self, encoder)
    }

    /// Records operators into the caller's compute pass.
    pub fn record_pass<'p, 'e>(&self, pass: &'p mut wgpu::ComputePass<'e>) -> Recorder<'p, 'e> {
        Recorder::on_pass(self, pass)
    }

    /// Uploads a slice as a tensor of `shape`, in the storage type of its elements.
    ///
    /// # Errors
    /// [`Error::Length`] if the shape holds another number of elements; [`Error::TooLarge`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn upload<T: Element>(&self, data: &[T], shape: &[usize]) -> Result<Tensor, Error> {
        Tensor::upload(self, data, shape)
    }

    /// A new tensor of zeros.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        Tensor::zeros(self, shape, dtype)
    }

    /// Adopts (part of) a caller's buffer as a tensor: row-major, `shape`, from byte `offset` on. The buffer needs
    /// `STORAGE` for every operator, and `COPY_SRC` to be read back.
    ///
    /// # Errors
    /// [`Error::Offset`] unless `offset` is a multiple of 4; [`Error::BufferTooShort`] if the buffer ends before the
    /// tensor's last 32-bit word; [`Error::TooLarge`].
    pub fn tensor(&self, buffer: &wgpu::Buffer, offset: u64, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        Tensor::adopt(self, buffer.clone(), offset, shape, dtype)
    }

    /// Pipelines built so far: each variant is built at its first use, and kept.
    pub fn pipeline_count(&self) -> usize {
        self.inner.pipelines.count()
    }

    pub(crate) fn id(&self) -> u64 {
        self.inner.id
    }

    pub(crate) fn immediates(&self) -> bool {
        self.parameters() == Parameters::Auto
    }

    pub(crate) fn parameters(&self) -> Parameters {
        self.inner.parameters
    }

    pub(crate) fn pipelines(&self) -> &Pipelines {
        &self.inner.pipelines
    }

    pub(crate) fn roof_cell(&self) -> &OnceLock<Roof> {
        &self.inner.roof
    }

    /// What is bound where a kernel does not use a binding. Each binding gets a part of its own, since browsers refuse
    /// two writable bindings of the same bytes.
    pub(crate) fn nothing(&self, access: kernel::Access, binding: u32) -> wgpu::BufferBinding<'_> {
        let buffer = match access {
            kernel::Access::Read => &self.inner.nothing_read,
            kernel::Access::Write => &self.inner.nothing_written,
        };
        let offset = u64::from(binding) * NOTHING_STRIDE;
        wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(NOTHING_SIZE) }
    }

    pub(crate) fn limits(&self) -> &wgpu::Limits {
        &self.inner.limits
    }

    /// Lanes of a subgroup where all are of one size, as `few.wgsl` and the family `lanes` want them.
    pub(crate) fn lanes(&self) -> Option<u64> {
        let Inner { info, device, .. } = &*self.inner;
        let (size, one_size) = (info.subgroup_min_size, info.subgroup_min_size == info.subgroup_max_size);
        let can = device.features().contains(wgpu::Features::SUBGROUP) && one_size && [4, 8, 16].contains(&size);
        can.then_some(u64::from(size))
    }

    /// Whether shaders can have words of 64 bits.
    pub(crate) fn long_words(&self) -> bool {
        self.inner.device.features().contains(LONG_WORDS)
    }

    /// Lanes of the smallest subgroup, where cooperative matrices of `side` by `side` can be used.
    pub(crate) fn cooperative(&self, side: u32) -> Option<u64> {
        self.inner.cooperative.contains(&side).then(|| u64::from(self.inner.cooperative_lanes))
    }

    pub(crate) fn is_cpu(&self) -> bool {
        self.device_type() == wgpu::DeviceType::Cpu
    }

    pub(crate) fn device_type(&self) -> wgpu::DeviceType {
        self.inner.info.device_type
    }

    pub(crate) fn is_gl(&self) -> bool {
        self.inner.info.backend == wgpu::Backend::Gl
    }

    /// Bytes of a tensor that one binding can hold wherever the tensor starts. Positions within a binding stay
    /// below 2^31.
    pub(crate) fn binding_capacity(&self) -> u64 {
        let alignment = u64::from(self.inner.limits.min_storage_buffer_offset_alignment);
        let size = self.inner.limits.max_storage_buffer_binding_size.min(1 << 31);
        size.saturating_sub(alignment) / 4 * 4
    }

    /// Workgroups that one dispatch can hold.
    pub(crate) fn group_capacity(&self) -> u64 {
        u64::from(self.inner.limits.max_compute_workgroups_per_dimension).pow(3).min(1 << 31)
    }

    /// Invocations that one workgroup can hold.
    pub(crate) fn workgroup_capacity(&self) -> u64 {
        u64::from(workgroup_capacity(&self.inner.limits))
    }

    /// A scratch buffer of at least `bytes`. What was recorded with a smaller one keeps that one.
    pub(crate) fn scratch(&self, which: Scratch, bytes: u64) -> Result<wgpu::Buffer, Error> {
        let mut scratch = self.inner.scratch.lock().expect("no panic while held");
        let slot = &mut scratch[which as usize];
        if let Some(buffer) = slot.as_ref().filter(|b| b.size() >= bytes) {
            return Ok(buffer.clone());
        }
        let limit = self.inner.limits.max_buffer_size / 16 * 16;
        if bytes > limit {
            return Err(Error::TooLarge { what: "scratch memory in bytes", size: bytes, limit });
        }
        let size = bytes.checked_next_power_of_two().unwrap_or(limit).clamp(4096, limit.max(4096));
        let buffer = self.create_buffer("scratch memory", size, wgpu::BufferUsages::STORAGE)?;
        Ok(slot.insert(buffer).clone())
    }

    pub(crate) fn create_buffer(
        &self,
        what: &'static str,
        size: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, Error> {
        self.create_buffer_as(what, size, usage, false)
    }

    /// A new buffer that `write` fills, of bytes that are zero before.
    pub(crate) fn create_written_buffer(
        &self,
        what: &'static str,
        size: u64,
        usage: wgpu::BufferUsages,
        write: impl FnOnce(wgpu::WriteOnly<'_, [u8]>),
    ) -> Result<wgpu::Buffer, Error> {
        let buffer = self.create_buffer_as(what, size, usage, true)?;
        {
            let lost = |e| Error::DeviceLost { reason: format!("a new buffer could not be written: {e}") };
            let mut view = buffer.get_mapped_range_mut(..).map_err(lost)?;
            write(view.slice(..));
        }
        self.guarded(what, size, || buffer.unmap())?;
        Ok(buffer)
    }

    fn create_buffer_as(
        &self,
        what: &'static str,
        size: u64,
        usage: wgpu::BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<wgpu::Buffer, Error> {
        let limit = self.inner.limits.max_buffer_size;
        if size > limit {
            return Err(Error::TooLarge { what: "a buffer in bytes", size, limit });
        }
        let label = format!("weightnorm.{what}");
        create_buffer(
            &self.inner.device,
            what,
            &wgpu::BufferDescriptor { label: Some(&label), size, usage, mapped_at_creation },
        )
    }

    /// Runs `make` and gives back the error that wgpu raises meanwhile, if any.
    pub(crate) fn guarded<T>(&self, what: &'static str, bytes: u64, make: impl FnOnce() -> T) -> Result<T, Error> {
        guarded(&self.inner.device, what, bytes, make)
    }
}

/// What words of 64 bits take.
const LONG_WORDS: wgpu::Features = wgpu::Features::SHADER_INT64;
/// What cooperative matrices take, beside subgroups.
const COOPERATIVE: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Workgroups are lines of invocations.
fn workgroup_capacity(limits: &wgpu::Limits) -> u32 {
    limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
}

/// The number of the vendor among PCI devices.
const NVIDIA: u32 = 0x10de;

/// The sides of the cooperative matrices of f16 with sums in f32 that `coop.wgsl` can use.
fn cooperative_sides(device: &wgpu::Device, options: &Options, lanes: u32) -> Vec<u32> {
    let (features, limits, info) = (device.features(), device.limits(), device.adapter_info());
    if !options.experimental.is_enabled() || !features.contains(COOPERATIVE | wgpu::Features::SUBGROUP) {
        return vec![];
    }
    // wgpu 30 asks for Vulkan's memory model with them, but does not say which memory invocations share, as that model wants
    // it (gfx-rs/wgpu#8805). On an H200 (NVIDIA 580.159) one of the tests failed and ten had not ended after two minutes.
    if info.vendor == NVIDIA && info.backend == wgpu::Backend::Vulkan {
        return vec![];
    }
    let listed = |side| {
        options.cooperative_matrices.iter().any(|p| {
            use wgpu::CooperativeScalarType::{F16, F32};
            [p.m_size, p.n_size, p.k_size] == [side; 3] && (p.ab_type, p.cr_type) == (F16, F32)
        })
    };
    let threads = workgroup_capacity(&limits);
    let fits = |side: u32, bytes| {
        // An invocation has 2 to 32 rows of C, and stages a sixteenth of A and B or at least a quad of each.
        lanes.is_power_of_two()
            && (side * side / 32..=side * side / 2).contains(&lanes)
            && 4 * lanes <= threads
            && bytes <= limits.max_compute_workgroup_storage_size
    };
    // What the shader declares, in bytes: the tile of C, what is staged of A and B, three numbers a column.
    [(8, 5 << 10), (16, 16 << 10)]
        .into_iter()
        .filter(|&(side, bytes)| listed(side) && fits(side, bytes))
        .map(|(side, _)| side)
        .collect()
}

fn create_buffer(
    device: &wgpu::Device,
    what: &'static str,
    descriptor: &wgpu::BufferDescriptor<'_>,
) -> Result<wgpu::Buffer, Error> {
    guarded(device, what, descriptor.size, || device.create_buffer(descriptor))
}

fn guarded<T>(device: &wgpu::Device, what: &'static str, bytes: u64, make: impl FnOnce() -> T) -> Result<T, Error> {
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let made = make();
    // Ready at once, except in a browser, which reports to the uncaptured-error handler then.
    let errors = [validation.pop().now_or_never(), internal.pop().now_or_never(), memory.pop().now_or_never()];
    let Some(error) = errors.into_iter().flatten().flatten().next() else { return Ok(made) };
    Err(match from_wgpu_error(error, what, bytes) {
        error @ Error::Wgpu { .. } => lost(device).unwrap_or(error),
        memory => memory,
    })
}

/// The error of a lost device, if this one is. A device that another thread destroys takes its buffers along, and wgpu may
/// find the call wrong for want of one of them before it finds that the device is gone.
fn lost(device: &wgpu::Device) -> Option<Error> {
    let usage = wgpu::BufferUsages::COPY_SRC;
    let descriptor =
        wgpu::BufferDescriptor { label: Some("weightnorm.probe"), size: 4, usage, mapped_at_creation: true };
    let _memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let _internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let _validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let error = device.create_buffer(&descriptor).get_mapped_range(..).err()?;
    Some(Error::DeviceLost { reason: format!("a new buffer could not be mapped: {error}") })
}

fn from_wgpu_error(error: wgpu::Error, what: &'static str, bytes: u64) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { what, bytes },
        other => Error::Wgpu { message: other.to_string() },
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn runs_compute(adapter: &wgpu::Adapter) -> bool {
    let flags = adapter.get_downlevel_capabilities().flags;
    flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) && adapter.limits().max_storage_buffers_per_shader_stage >= 8
}

#[cfg(not(target_arch = "wasm32"))]
async fn pick_adapter() -> Result<wgpu::Adapter, Error> {
    let backends = wgpu::Backends::from_env().unwrap_or_else(wgpu::Backends::all);
    let name = std::env::var("WGPU_ADAPTER_NAME").unwrap_or_default().to_lowercase();
    let adapters = Gpu::adapters(backends).await;
    let tried = || match name.as_str() {
        "" => format!("backends {backends:?}"),
        name => format!("backends {backends:?}, adapters whose name contains {name:?}"),
    };
    let fits = |a: &wgpu::Adapter| runs_compute(a) && a.get_info().name.to_lowercase().contains(&name);
    adapters.into_iter().find(fits).ok_or_else(|| Error::NoAdapter { tried: tried() })
}

#[cfg(target_arch = "wasm32")]
async fn pick_adapter() -> Result<wgpu::Adapter, Error> {
    let options =
        wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
    wgpu::Instance::default()
        .request_adapter(&options)
        .await
        .map_err(|e| Error::NoAdapter { tried: format!("WebGPU: {e}") })
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("adapter", &self.inner.info.name).finish_non_exhaustive()
    }
}

/// What a [`Gpu`] runs on and what it uses of it. `Display` gives it in a few lines.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Adapter, driver and backend.
    pub info: wgpu::AdapterInfo,
    /// The device's limits.
    pub limits: wgpu::Limits,
    /// Whether the parameters of a dispatch travel as immediates; else each has a small uniform buffer.
    pub immediates: bool,
    /// The sides of the cooperative matrices that products of f16 may use: 8, 16, both or, without
    /// [`Options::cooperative_matrices`], none.
    pub cooperative_matrices: Vec<u32>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { info, limits, immediates, cooperative_matrices } = self;
        writeln!(f, "adapter:    {} ({:?}, {:?})", info.name, info.device_type, info.backend)?;
        writeln!(f, "driver:     {} {}", info.driver, info.driver_info)?;
        let binding = limits.max_storage_buffer_binding_size >> 20;
        let groups = limits.max_compute_workgroups_per_dimension;
        writeln!(f, "limits:     {binding} MiB in a binding, {groups} workgroups in a dimension")?;
        write!(f, "parameters: {}", if *immediates { "immediates" } else { "a uniform buffer for each dispatch" })?;
        cooperative_matrices.iter().try_for_each(|side| write!(f, "\ncooperative matrices: {side} by {side}"))
    }
}
