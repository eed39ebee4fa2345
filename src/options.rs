//! What may be asked of a device handle.
use crate::TuningTable;
use crate::choose::Kind;
#[cfg(doc)]
use crate::{ArgumentError, DeviceReport, Error, Gpu};

/// How a dispatch gets its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ParameterPassing {
    /// Immediates where the device has them, else uniform buffers.
    #[default]
    Auto,
    /// One small uniform buffer per dispatch, as on a device without immediates.
    Uniform,
    /// For tests: the same, and the invocations of a workgroup in reverse order. Drivers on CPUs run them in order, so
    /// that a barrier that is missing shows in one of the two orders only.
    #[doc(hidden)]
    Reversed,
}

/// What may be asked of a [`Gpu`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// How a dispatch gets its parameters.
    pub parameter_passing: ParameterPassing,
    /// A pipeline cache of the caller's, on the caller's device: see [`Options::pipeline_cache`].
    pub pipeline_cache: Option<wgpu::PipelineCache>,
    /// Tiles that were measured: see [`Options::tuning_table`].
    pub tuning_table: TuningTable,
    /// wgpu's token of who accepts experimental features: see [`Options::cooperative_matrices`].
    pub experimental: wgpu::ExperimentalFeatures,
    /// Of an adopted device's adapter: see [`Options::cooperative_matrices`].
    pub cooperative_matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// For tests: what the smallest subgroup is taken to be in cooperative matrices, less than it is.
    #[doc(hidden)]
    pub cooperative_lanes: Option<u32>,
    /// For tests: what kind of device it is taken to be.
    #[doc(hidden)]
    pub kind: Option<Kind>,
    /// For tests: how many words of registers an invocation is taken to have.
    #[doc(hidden)]
    pub registers: Option<u64>,
}

impl Options {
    /// Forces how a dispatch gets its parameters.
    pub fn parameter_passing(mut self, passing: ParameterPassing) -> Self {
        self.parameter_passing = passing;
        self
    }

    /// Builds every pipeline with this cache, so that drivers need not compile again what the cache has. It is made by
    /// `device.create_pipeline_cache(..)` on a device with [`wgpu::Features::PIPELINE_CACHE`], which goes to
    /// [`Gpu::from_wgpu`]; its data are for the caller to keep. A cache of another device is
    /// [`ArgumentError::OtherGpu`] there. (wgpu finds a cache by its number within an instance. One of another instance
    /// whose number a cache of this device has too cannot be told from that one: the pipelines go into it.)
    pub fn pipeline_cache(mut self, cache: wgpu::PipelineCache) -> Self {
        self.pipeline_cache = Some(cache);
        self
    }

    /// For tests: takes the device for one of this kind.
    #[doc(hidden)]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Computes the products that `table` names as it says. A table that was not made by this version of the crate on
    /// this adapter with this driver counts as none, which [`Gpu::tuning_table`] tells. A line that the device cannot
    /// run, for want of a feature that was not asked for, is [`ArgumentError::Variant`].
    pub fn tuning_table(mut self, table: TuningTable) -> Self {
        self.tuning_table = table;
        self
    }

    /// Computes products of f16 by f16 in cooperative matrices, with sums in f32, where the adapter has them in a size
    /// of [`Tile`](crate::Tile) and f16 in shaders. **Experimental and unsafe**: wgpu and naga may have bugs there that
    /// are undefined behaviour, reached from safe code. So whoever asks for it hands over wgpu's token, which takes an
    /// `unsafe` block of his own:
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
    /// `properties`: for [`Gpu::from_wgpu`] what `adapter.cooperative_matrix_properties()` gives, since a device does
    /// not tell, and the device has been made with [`wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX`],
    /// [`wgpu::Features::SHADER_F16`] and [`wgpu::Features::SUBGROUP`]. [`Gpu::new_async`] sees to all that itself.
    /// [`DeviceReport::cooperative_matrices`] says what came of it: none, too, on NVIDIA's Vulkan driver, where they do
    /// not work with wgpu 30 ([gfx-rs/wgpu#8805](https://github.com/gfx-rs/wgpu/issues/8805)).
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
