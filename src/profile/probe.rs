//! What an adapter can do at most, measured. Shader: `probe.wgsl`.
#[cfg(doc)]
use crate::DeviceError;
use crate::binding::View;
use crate::kernel::{Access, Constants, Kernel, kernels, params};
use crate::record::Dispatch;
use crate::source::Module;
use crate::{Cost, DType, Error, Gpu, Recorder, Roofline, Tensor};

params! {
    struct ProbeParams {
        groups: u32,
        scale: f32,
        offset: f32,
    }
}

/// THREADS, PER and ROUNDS of `probe.wgsl`.
const THREADS: u64 = 64;
const PER: u64 = 8;
const ROUNDS: u64 = 128;
/// Operations of an invocation: twelve chains, sixteen steps a round, two operations a step.
const OPERATIONS: u64 = ROUNDS * 16 * 12 * 2;
/// Bytes read by a workgroup.
const GROUP_BYTES: u64 = THREADS * PER * 16;
/// Bytes of the buffers: more than caches hold.
const PROBE_BYTES: u64 = 128 << 20;
/// Times each measurement is made; the first is dropped.
const RUNS: usize = 5;
/// A run of multiply-adds lasts so long, in seconds, if the grid allows it.
const LONG_ENOUGH: f64 = 5e-3;

pub(crate) const MODULE: Module = Module::new("probe");
kernels! {
    PROBE_COPY = "probe" "probe_copy", Some(THREADS), ProbeParams, [0 Read, 1 Write];
    PROBE_READ = "probe" "probe_read", Some(THREADS), ProbeParams, [0 Read, 2 Write];
    PROBE_MULTIPLY_ADD = "probe" "probe_multiply_add", Some(THREADS), ProbeParams, [2 Write];
}

impl Gpu {
    /// What this adapter can do at most, by three kernels: a copy, a sum of all that is read, and chains of
    /// multiply-adds that do not depend on each other. The best of a few runs, measured once and kept. Takes about a
    /// second, and two buffers of up to 128 MiB meanwhile, so that caches do not hold them.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Lost`]; in a browser [`DeviceError::Unsupported`] without
    /// timestamps.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn roofline(&self) -> Result<Roofline, Error> {
        pollster::block_on(self.known_roofline(true))
    }

    /// [`Gpu::roofline`] without blocking (but where the device has no timestamps).
    ///
    /// # Errors
    /// As [`Gpu::roofline`].
    pub async fn roofline_async(&self) -> Result<Roofline, Error> {
        self.known_roofline(false).await
    }

    async fn known_roofline(&self, block: bool) -> Result<Roofline, Error> {
        if let Some(roof) = self.roofline_cell().get() {
            return Ok(*roof);
        }
        let roof = Probe::new(self, block)?.roofline().await?;
        Ok(*self.roofline_cell().get_or_init(|| roof))
    }
}

/// The measurement of the roof.
struct Probe {
    gpu: Gpu,
    block: bool,
    groups: u64,
    source: Tensor,
    target: Tensor,
}

impl Probe {
    fn new(gpu: &Gpu, block: bool) -> Result<Probe, Error> {
        let groups = gpu.capacities().binding.min(PROBE_BYTES) / GROUP_BYTES;
        let words = (groups * GROUP_BYTES / 4) as usize;
        let tensor = || gpu.zeros(&[words.max(1)], DType::F32);
        Ok(Probe { gpu: gpu.clone(), block, groups: groups.max(1), source: tensor()?, target: tensor()? })
    }

    async fn roofline(&self) -> Result<Roofline, Error> {
        let bytes = (self.groups * GROUP_BYTES) as f64;
        let mut roof = Roofline { copy: 0.0, read: 0.0, multiply_add: 0.0 };
        for variant in [0, 1] {
            let walk = vec![("CONTIGUOUS", variant)];
            roof.copy = roof.copy.max(2.0 * bytes / self.best(&PROBE_COPY, &walk, self.groups).await?);
            roof.read = roof.read.max(bytes / self.best(&PROBE_READ, &walk, self.groups).await?);
            roof.multiply_add = roof.multiply_add.max(self.multiply_add(&vec![("FUSED", variant)]).await?);
        }
        Ok(roof)
    }

    /// Operations in a second, with as many workgroups as make a dispatch long.
    async fn multiply_add(&self, constants: &Constants) -> Result<f64, Error> {
        let step = self.gpu.capacities().step().in_groups(1).work(THREADS * OPERATIONS / 2);
        let most = step.at_most(self.target.len() as u64 / THREADS).at_most(1 << 16).get();
        let mut groups = most.min(64);
        loop {
            let seconds = self.best(&PROBE_MULTIPLY_ADD, constants, groups).await?;
            if seconds >= LONG_ENOUGH || groups == most {
                return Ok((groups * THREADS * OPERATIONS) as f64 / seconds);
            }
            groups = (4 * groups).min(most);
        }
    }

    /// Seconds of the best of some runs.
    async fn best(&self, kernel: &'static Kernel, constants: &Constants, groups: u64) -> Result<f64, Error> {
        let record = |ops: &mut Recorder<'_, '_>| {
            (0..RUNS).try_for_each(|_| probe(ops, kernel, constants, [&self.source, &self.target], groups))
        };
        let timed = self.gpu.timed(self.gpu.timing(), self.block, record).await?;
        let seconds = timed.iter().flat_map(|o| &o.dispatches).skip(1).map(|d| d.seconds);
        // A clock that is too coarse shows no time at all.
        Ok(seconds.fold(f64::INFINITY, f64::min).max(1e-9))
    }
}

/// Records a kernel of `probe.wgsl`, with so many workgroups as the tensors hold vectors for.
fn probe(
    ops: &mut Recorder<'_, '_>,
    kernel: &'static Kernel,
    constants: &Constants,
    [source, target]: [&Tensor; 2],
    groups: u64,
) -> Result<(), Error> {
    ops.begin(kernel.entry, Cost::default());
    let bind = |&(_, access): &(u32, Access)| {
        let tensor = if access == Access::Read { source } else { target };
        View::of(tensor).bind(ops.facts().capacities, 0, tensor.len() as u64).0
    };
    let buffers: Vec<_> = kernel.bindings.iter().map(bind).collect();
    let params = ProbeParams { groups: groups as u32, scale: 0.75, offset: 0.5 };
    ops.dispatch(&Dispatch { kernel, module: MODULE, constants, buffers: &buffers, params, groups, work: 0 })
}

/// The faster variant, in all likelihood.
fn walk(ops: &Recorder<'_, '_>) -> Constants {
    vec![("CONTIGUOUS", (!ops.facts().traits.is_gpu()).into())]
}

/// Copies `source` to `target`, which is as long, in whole workgroups.
pub(crate) fn probe_copy(ops: &mut Recorder<'_, '_>, source: &Tensor, target: &Tensor) -> Result<(), Error> {
    probe(ops, &PROBE_COPY, &walk(ops), [source, target], source.bytes() / GROUP_BYTES)
}

/// Reads `source`, in whole workgroups, and writes a word of sums to `target` for every 32 that it reads.
pub(crate) fn probe_read(ops: &mut Recorder<'_, '_>, source: &Tensor, target: &Tensor) -> Result<(), Error> {
    probe(ops, &PROBE_READ, &walk(ops), [source, target], source.bytes() / GROUP_BYTES)
}
