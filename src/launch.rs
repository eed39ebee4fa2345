//! Planned dispatches, and what launches them.
use crate::binding::Span;
use crate::choose::{Facts, Traits};
use crate::kernel::{self, Access, Constants, Kernel};
use crate::memory::Memory;
use crate::source::{Module, Shared};
use crate::windows::Capacities;
#[cfg(doc)]
use crate::{DeviceError, Gpu, Recorder, Tensor, WeightNorm};
use crate::{Error, needs};

/// Launches planned dispatches.
///
/// What a dispatch is follows from numbers alone: the shapes, types and places of tensors, and the [`Facts`] of a
/// device. So every operator can be planned without a device, and be launched by somebody else: by the launcher of
/// another library, whose memory it works on, or by a test. Make tensors of numbered buffers with
/// [`Tensor::of_launcher`] and record operators with [`Recorder::launching`].
///
/// ```
/// use weightnorm::{DType, Eps, Error, Facts, Launch, Planned, Recorder, Tensor, WeightNorm, wgpu};
///
/// #[derive(Default)]
/// struct Listing(Vec<String>);
///
/// impl Launch for Listing {
///     fn scratch(&mut self, which: usize, _bytes: u64) -> Result<u64, Error> {
///         Ok(100 + which as u64)
///     }
///
///     fn launch(&mut self, dispatch: &Planned<'_>) -> Result<(), Error> {
///         let [x, y, z] = dispatch.workgroups();
///         self.0.push(format!("{} {x} x {y} x {z}", dispatch.entry_point()));
///         Ok(())
///     }
/// }
///
/// let info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, wgpu::Backend::Vulkan);
/// let facts = Facts::new(&info, &wgpu::Limits::default(), wgpu::Features::empty())?;
/// let v = Tensor::of_launcher(0, 0, &[512, 256], DType::F32)?;
/// let norms = Tensor::of_launcher(1, 0, &[512], DType::F32)?;
/// let mut listing = Listing::default();
/// Recorder::launching(facts, &mut listing).row_norms(WeightNorm::unit(&v).eps(Eps::None), &norms)?;
/// assert_eq!(listing.0.len(), 1);
/// # Ok::<(), Error>(())
/// ```
pub trait Launch {
    /// The number of a buffer of `bytes` at least, in which the dispatches of one operator leave things for each other.
    /// `which` is below [`SCRATCH_BUFFERS`]; those that differ in it are different buffers. Any operator may overwrite
    /// it.
    ///
    /// # Errors
    /// What it likes, [`DeviceError::OutOfMemory`] say: the operator stops and returns it.
    fn scratch(&mut self, which: usize, bytes: u64) -> Result<u64, Error>;

    /// Launches one dispatch. The dispatches of a recorder run in the order in which they are launched, each seeing all
    /// that those before it wrote.
    ///
    /// # Errors
    /// As [`Launch::scratch`].
    fn launch(&mut self, dispatch: &Planned<'_>) -> Result<(), Error>;
}

/// [`Launch::scratch`] is asked for so many buffers.
pub const SCRATCH_BUFFERS: usize = 6;

/// One dispatch: which kernel, in which variant, on what.
pub struct Planned<'a> {
    pub(crate) kernel: &'static Kernel,
    pub(crate) module: Module,
    pub(crate) constants: &'a Constants,
    /// In the order of the kernel's bindings; `None` where this variant does not use one.
    pub(crate) buffers: &'a [Option<Span<'a>>],
    pub(crate) parameters: &'a [u8],
    pub(crate) workgroups: [u32; 3],
    /// Multiply-adds, or elements moved.
    pub(crate) work: u64,
}

/// A binding of a [`Planned`] dispatch: bytes `offset .. offset + size` of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedBinding {
    /// `@binding` in group 0.
    pub binding: u32,
    /// Whether the kernel writes to it.
    pub written: bool,
    /// The buffer by its number. None where this variant does not use the binding: anything that nobody else writes may
    /// be bound.
    pub buffer: Option<u64>,
    /// Where the binding starts: a multiple of the alignment that the [`Facts`] have.
    pub offset: u64,
    /// Its bytes, a multiple of 4.
    pub size: u64,
}

impl Planned<'_> {
    /// The name of the kernel.
    pub fn entry_point(&self) -> &'static str {
        self.kernel.entry
    }

    /// The variant: module, kernel and constants. Dispatches with equal labels have equal [`Planned::plain_wgsl`].
    pub fn label(&self) -> String {
        kernel::label(self.kernel, self.module, self.constants)
    }

    /// The module in WGSL. The parameters are a uniform buffer at binding 15; where a buffer is bound once to be read
    /// and once to be written, all its bindings are `read_write`. Equal modules have equal texts.
    pub fn wgsl(&self) -> String {
        self.module.uniform_source(self.shared())
    }

    /// The module for this dispatch alone, for launchers without `override` constants, immediates or read-only buffers,
    /// as cubecl's: every override is a `const` with its value, the bindings of [`Planned::bindings`] are 0, 1, .. in
    /// their order, all `read_write`, and the parameters are a uniform buffer behind them, of [`Planned::parameters`]
    /// up to a multiple of 16 bytes. Compile it without loop counters (`force_loop_bounding`), which keep drivers from
    /// unrolling.
    pub fn plain_wgsl(&self) -> String {
        let bindings: Vec<_> = self.kernel.bindings.iter().map(|&(binding, _)| binding).collect();
        self.module.plain_source(&bindings, self.constants)
    }

    /// The values of the module's `override` constants; those that are not here keep their default.
    pub fn constants(&self) -> &[(&'static str, u32)] {
        self.constants
    }

    /// The storage buffers, in the order of their binding numbers.
    pub fn bindings(&self) -> impl Iterator<Item = PlannedBinding> {
        self.kernel.bindings.iter().zip(self.buffers).map(|(&(binding, access), span)| {
            let (offset, size) = span.as_ref().map_or((0, 0), Span::range);
            let buffer = span.as_ref().and_then(|span| span.memory().number());
            PlannedBinding { binding, written: access == Access::Write, buffer, offset, size }
        })
    }

    /// The bytes of the parameters, 128 at most.
    pub fn parameters(&self) -> &[u8] {
        self.parameters
    }

    /// How many workgroups along x, y and z.
    pub fn workgroups(&self) -> [u32; 3] {
        self.workgroups
    }

    /// Read bindings of buffers that this dispatch writes elsewhere.
    pub(crate) fn shared(&self) -> Shared {
        let bound = || self.kernel.bindings.iter().zip(self.buffers).filter_map(|(b, span)| Some((b, span.as_ref()?)));
        let is_written = |memory: &Memory| bound().any(|(b, span)| b.1 == Access::Write && span.memory() == memory);
        let read = bound().filter(|((_, access), span)| *access == Access::Read && is_written(span.memory()));
        Shared::of(read.map(|(&(binding, _), _)| binding))
    }
}

impl Facts {
    /// Those of a device with these limits and features on this adapter.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] if the kernels need more: see [`Gpu::from_wgpu`].
    pub fn new(info: &wgpu::AdapterInfo, limits: &wgpu::Limits, features: wgpu::Features) -> Result<Facts, Error> {
        needs::check_limits(limits)?;
        let traits = Traits::of(info, limits, features, None, None);
        Ok(Facts { traits, capacities: Capacities::of(limits, info.backend) })
    }
}
