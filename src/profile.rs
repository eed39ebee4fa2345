//! Where time goes: the time of each dispatch, the least work of each operator, the roof of the adapter. Shader:
//! `probe.wgsl`.
use std::fmt;

use bytemuck::{Pod, Zeroable};

use crate::kernel::{self, Constants, Kernel};
use crate::record::{Dispatch, GL_WORK, PASS, Pass, View, new_encoder};
use crate::source::Module;
use crate::{DType, Error, Gpu, Recorder, Tensor};

pub(crate) const PROBE: Module = Module::new("probe");

/// How dispatches are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Clock {
    /// By timestamps that the device writes around each dispatch, in a pass of its own. Needs
    /// [`wgpu::Features::TIMESTAMP_QUERY`].
    Timestamps,
    /// Each dispatch is submitted and waited for by itself, and what that takes is its time: some tens of microseconds
    /// more than the work. Not in a browser, where nothing can be waited for.
    Wall,
}

/// The least that an operator has to move and to do, as its arguments say: each input read once, each output written
/// once, multiply-adds counted as two operations. What a kernel needs besides, partial sums say, is no part of it.
///
/// | part of an operator | operations |
/// |---|---|
/// | a product of B × K and K × N | 2·B·K·N |
/// | norms and dot products over n elements | 2·n |
/// | plain sums over n elements; scaling or shifting n elements | n |
/// | the gradient of n elements of v, given that of w | 3·n |
/// | a step of SGD over n parameters, with momentum, Nesterov's; of Adam, AdamW | 4·n, 6·n, 8·n; 15·n, 14·n |
///
/// Norms that are known cost nothing. What products do with their results (scales, corrections, biases, activations) and
/// what happens once a row is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Operations on f32.
    pub operations: u64,
}

impl Work {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.read += other.read;
        self.written += other.written;
        self.operations += other.operations;
    }
}

/// What an adapter can do at most, as kernels of this crate that do nothing else reach it. See [`Gpu::roof`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roof {
    /// Bytes read and written in a second, half of them each, by a copy.
    pub copy: f64,
    /// Bytes read in a second.
    pub read: f64,
    /// Operations in a second by multiply-adds, which count as two.
    pub multiply_add: f64,
}

impl Roof {
    /// The time that `work` takes at least: all multiply-adds at once, or all bytes, whatever takes longer. What is
    /// written, and as much of what is read, goes at the speed of a copy, the rest at the speed of reading.
    pub fn seconds(&self, work: &Work) -> f64 {
        let copied = 2 * work.written;
        let moving = copied as f64 / self.copy + work.bytes().saturating_sub(copied) as f64 / self.read;
        moving.max(work.operations as f64 / self.multiply_add)
    }
}

/// The time of one dispatch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DispatchTime {
    /// The pipeline's label: `weightnorm.`, module, entry point, and the constants of the variant.
    pub label: String,
    /// Its time.
    pub seconds: f64,
}

/// One call of an operator.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct OperatorTime {
    /// The operator, as in `ops.linear_into(..)`: `linear`.
    pub name: String,
    /// The least it has to move and to do.
    pub work: Work,
    /// Its dispatches, in order.
    pub dispatches: Vec<DispatchTime>,
}

impl OperatorTime {
    /// The time of all its dispatches.
    pub fn seconds(&self) -> f64 {
        self.dispatches.iter().map(|d| d.seconds).sum()
    }
}

/// Where the time of a recording went. From [`Gpu::profile`].
///
/// `Display` makes a table of it: the calls of each operator and variant together, longest first, with the rates that
/// follow from their [`Work`], and the part of the [`Roof`] that they reach: the time of that work at the roof, of the
/// time it took.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Profile {
    /// The operators, in the order in which they were recorded; those that needed no dispatch are left out.
    pub operators: Vec<OperatorTime>,
    /// How they were timed.
    pub clock: Clock,
    /// What the adapter can do at most.
    pub roof: Roof,
}

impl Profile {
    /// The time of all dispatches.
    pub fn seconds(&self) -> f64 {
        self.operators.iter().map(OperatorTime::seconds).sum()
    }

    /// The dispatches timed.
    pub fn dispatch_count(&self) -> usize {
        self.operators.iter().map(|o| o.dispatches.len()).sum()
    }

    /// The calls of each operator and variant together, the longest first.
    fn rows(&self) -> Vec<Row<'_>> {
        let mut rows: Vec<Row<'_>> = vec![];
        for operator in &self.operators {
            let same = |row: &&mut Row<'_>| {
                row.first.name == operator.name && row.first.dispatches.len() == operator.dispatches.len() && {
                    let mut pairs = row.first.dispatches.iter().zip(&operator.dispatches);
                    pairs.all(|(a, b)| a.label == b.label)
                }
            };
            let row = match rows.iter_mut().find(same) {
                Some(row) => row,
                None => {
                    let seconds = vec![0.0; operator.dispatches.len()];
                    rows.push(Row { first: operator, calls: 0, work: Work::default(), seconds });
                    rows.last_mut().expect("just pushed")
                }
            };
            row.calls += 1;
            row.work += operator.work;
            row.seconds.iter_mut().zip(&operator.dispatches).for_each(|(sum, d)| *sum += d.seconds);
        }
        rows.sort_by(|a, b| b.total().total_cmp(&a.total()));
        rows
    }
}

/// A row of the table.
struct Row<'a> {
    first: &'a OperatorTime,
    calls: usize,
    work: Work,
    /// Of each dispatch, over all calls.
    seconds: Vec<f64>,
}

impl Row<'_> {
    fn total(&self) -> f64 {
        self.seconds.iter().sum()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.seconds();
        writeln!(f, "{:>6} {:>11} {:>5} {:>8} {:>8} {:>9}", "calls", "ms", "%", "GB/s", "GFLOP/s", "% of roof")?;
        for row in self.rows() {
            let total = row.total();
            let rate = |amount: u64| amount as f64 * 1e-9 / total;
            let (bytes, operations) = (rate(row.work.bytes()), rate(row.work.operations));
            let roof = 100.0 * self.roof.seconds(&row.work) / total;
            let share = 100.0 * total / all;
            write!(
                f,
                "{:>6} {:>11.4} {share:>5.1} {bytes:>8.2} {operations:>8.2} {roof:>9.1}  ",
                row.calls,
                1e3 * total
            )?;
            match &row.first.dispatches[..] {
                [only] => writeln!(f, "{}: {}", row.first.name, short(&only.label))?,
                several => {
                    writeln!(f, "{}", row.first.name)?;
                    for (dispatch, seconds) in several.iter().zip(&row.seconds) {
                        let label = short(&dispatch.label);
                        writeln!(f, "{:>6} {:>11.4} {:>35}{label}", "", 1e3 * seconds, "")?;
                    }
                }
            }
        }
        let clock = match self.clock {
            Clock::Timestamps => "timestamps",
            Clock::Wall => "wall clock",
        };
        let Roof { copy, read, multiply_add } = self.roof;
        write!(
            f,
            "{:>6} {:>11.4}        by {clock}; roof: copy {:.2} GB/s, read {:.2} GB/s, multiply-add {:.2} GFLOP/s",
            self.operators.len(),
            1e3 * all,
            copy * 1e-9,
            read * 1e-9,
            multiply_add * 1e-9
        )
    }
}

/// A label without the crate's name and without constants that are 0.
fn short(label: &str) -> String {
    let parts = label.split('.').filter(|part| !part.ends_with("=0"));
    parts.skip_while(|part| *part == "weightnorm").collect::<Vec<_>>().join(" ")
}

/// The recording of a profile.
pub(crate) struct Session {
    clock: Clock,
    encoder: wgpu::CommandEncoder,
    /// Work in `encoder`: see [`GL_WORK`].
    work: u64,
    operators: Vec<OperatorTime>,
    /// Two timestamps for each dispatch.
    queries: Vec<wgpu::QuerySet>,
    dispatch_count: u32,
}

/// Dispatches in a query set: half the queries that one may have.
const DISPATCHES_IN_SET: u32 = wgpu::QUERY_SET_MAX_QUERIES / 2;

impl Session {
    fn new(gpu: &Gpu, clock: Clock) -> Session {
        if clock == Clock::Wall {
            // What was submitted before is not part of it.
            let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
        }
        let encoder = new_encoder(gpu);
        Session { clock, encoder, work: 0, operators: vec![], queries: vec![], dispatch_count: 0 }
    }

    /// What is timed from here on belongs to this operator.
    pub fn begin(&mut self, name: &str, work: Work) {
        self.operators.push(OperatorTime { name: name.to_owned(), work, dispatches: vec![] });
    }

    /// Times what `record` records.
    pub fn time(
        &mut self,
        gpu: &Gpu,
        label: &str,
        work: u64,
        record: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) -> Result<(), Error> {
        let seconds = match self.clock {
            Clock::Timestamps => {
                self.record(gpu, work, record)?;
                0.0 // Known when the timestamps are.
            }
            Clock::Wall => wall(gpu, record)?,
        };
        self.dispatch_count += 1;
        let dispatch = DispatchTime { label: label.to_owned(), seconds };
        self.operators.last_mut().expect("operators begin before they dispatch").dispatches.push(dispatch);
        Ok(())
    }

    fn record(&mut self, gpu: &Gpu, work: u64, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Result<(), Error> {
        let (set, place) = (self.dispatch_count / DISPATCHES_IN_SET, self.dispatch_count % DISPATCHES_IN_SET);
        if place == 0 {
            let descriptor = wgpu::QuerySetDescriptor {
                label: Some("weightnorm.profile"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * DISPATCHES_IN_SET,
            };
            self.queries.push(gpu.guarded("timestamps", 0, || gpu.device().create_query_set(&descriptor))?);
        }
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries[set as usize],
            beginning_of_pass_write_index: Some(2 * place),
            end_of_pass_write_index: Some(2 * place + 1),
        });
        record(&mut self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { timestamp_writes, ..PASS }));
        self.work += work;
        if gpu.is_gl() && self.work >= GL_WORK {
            self.work = 0;
            let full = std::mem::replace(&mut self.encoder, new_encoder(gpu));
            gpu.guarded("a submission", 0, || gpu.queue().submit([full.finish()]))?;
            let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
        }
        Ok(())
    }

    /// Submits what is left, and fills in the times.
    async fn finish(mut self, gpu: &Gpu, block: bool) -> Result<Vec<OperatorTime>, Error> {
        let mut resolved = vec![];
        for (set, queries) in self.queries.iter().enumerate() {
            let count = (self.dispatch_count - set as u32 * DISPATCHES_IN_SET).min(DISPATCHES_IN_SET);
            let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
            let buffer = gpu.create_buffer("timestamps", u64::from(count) * 16, usage)?;
            self.encoder.resolve_query_set(queries, 0..2 * count, &buffer, 0);
            resolved.push((buffer, count));
        }
        gpu.guarded("a submission", 0, || gpu.queue().submit([self.encoder.finish()]))?;
        let mut dispatches = self.operators.iter_mut().flat_map(|o| &mut o.dispatches);
        let period = f64::from(gpu.queue().get_timestamp_period()) * 1e-9;
        for (buffer, count) in resolved {
            let words = gpu.tensor(&buffer, 0, &[4 * count as usize], DType::F32)?;
            let words: Vec<f32> = words.fetch(block).await?;
            for (times, dispatch) in bytemuck::cast_slice::<f32, [u32; 4]>(&words).iter().zip(&mut dispatches) {
                let [begin, end] = [[times[0], times[1]], [times[2], times[3]]].map(bytemuck::cast::<_, u64>);
                dispatch.seconds = end.saturating_sub(begin) as f64 * period;
            }
        }
        self.operators.retain(|operator| !operator.dispatches.is_empty());
        Ok(self.operators)
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn wall(gpu: &Gpu, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Result<f64, Error> {
    let mut encoder = new_encoder(gpu);
    record(&mut encoder.begin_compute_pass(&PASS));
    let commands = gpu.guarded("commands", 0, || encoder.finish())?;
    let start = std::time::Instant::now();
    gpu.guarded("a submission", 0, || gpu.queue().submit([commands]))?;
    let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(target_arch = "wasm32")]
fn wall(_: &Gpu, _: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Result<f64, Error> {
    Err(Error::Unsupported { what: "timestamps".to_owned() })
}

impl Gpu {
    /// Runs what `record` records, by itself, and tells where its time went.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), weightnorm::Error> {
    /// use weightnorm::{DType, Gpu, WeightNorm};
    /// let gpu = Gpu::new()?;
    /// let (x, y) = (gpu.upload(&[0.5f32; 64 * 512], &[64, 512])?, gpu.zeros(&[64, 512], DType::F32)?);
    /// let (v, g) = (gpu.upload(&[0.1f32; 512 * 512], &[512, 512])?, gpu.upload(&[1.0f32; 512], &[512])?);
    /// let layer = WeightNorm::new(&v, &g);
    /// gpu.profile(|ops| ops.linear_into(&x, layer, None, &y))?; // builds the pipelines
    /// let profile = gpu.profile(|ops| (0..20).try_for_each(|_| ops.linear_into(&x, layer, None, &y)))?;
    /// println!("{profile}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The results are those of an ordinary recording. Each dispatch stands alone, so what one might hide behind another
    /// shows; a driver that compiles at the first dispatch of a pipeline does so within its time. The clock is that of
    /// [`Gpu::clock`]; the first profile measures the [`Gpu::roof`].
    ///
    /// # Errors
    /// Those of `record`, of the device, and of [`Gpu::roof`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn profile(&self, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>) -> Result<Profile, Error> {
        self.profile_with(self.clock(), record)
    }

    /// [`Gpu::profile`] with a clock of the caller's choice.
    ///
    /// # Errors
    /// As [`Gpu::profile`]; [`Error::Unsupported`] for timestamps that the device lacks.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn profile_with(
        &self,
        clock: Clock,
        record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>,
    ) -> Result<Profile, Error> {
        let roof = self.roof()?;
        let operators = pollster::block_on(self.timed(clock, true, record))?;
        Ok(Profile { operators, clock, roof })
    }

    /// [`Gpu::profile_with`] without blocking (but for [`Clock::Wall`], which waits for every dispatch).
    ///
    /// # Errors
    /// As [`Gpu::profile_with`].
    pub async fn profile_async(
        &self,
        clock: Clock,
        record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>,
    ) -> Result<Profile, Error> {
        let roof = self.roof_async().await?;
        let operators = self.timed(clock, false, record).await?;
        Ok(Profile { operators, clock, roof })
    }

    /// The better clock of this device: timestamps if it has them.
    pub fn clock(&self) -> Clock {
        if self.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) { Clock::Timestamps } else { Clock::Wall }
    }

    /// What this adapter can do at most, by three kernels: a copy, a sum of all that is read, and chains of multiply-adds
    /// that do not depend on each other. The best of a few runs, measured once and kept. Takes about a second, and
    /// two buffers of up to 128 MiB meanwhile, so that caches do not hold them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`]; in a browser [`Error::Unsupported`] without timestamps.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn roof(&self) -> Result<Roof, Error> {
        pollster::block_on(self.known_roof(true))
    }

    /// [`Gpu::roof`] without blocking (but where the device has no timestamps).
    ///
    /// # Errors
    /// As [`Gpu::roof`].
    pub async fn roof_async(&self) -> Result<Roof, Error> {
        self.known_roof(false).await
    }

    async fn known_roof(&self, block: bool) -> Result<Roof, Error> {
        if let Some(roof) = self.roof_cell().get() {
            return Ok(*roof);
        }
        let roof = Probe::new(self, block)?.roof().await?;
        Ok(*self.roof_cell().get_or_init(|| roof))
    }

    /// Runs what `record` records, each dispatch by itself.
    pub(crate) async fn timed(
        &self,
        clock: Clock,
        block: bool,
        record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>,
    ) -> Result<Vec<OperatorTime>, Error> {
        self.check()?;
        if clock == Clock::Timestamps && self.clock() != clock {
            return Err(Error::Unsupported { what: "timestamps".to_owned() });
        }
        let session = {
            let mut recorder = Recorder::on(self, Pass::Profiled(Box::new(Session::new(self, clock))));
            record(&mut recorder)?;
            let Pass::Profiled(session) = recorder.into_pass() else { unreachable!("made above") };
            session
        };
        session.finish(self, block).await
    }
}

/// `Params` of `probe.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    groups: u32,
    scale: f32,
    offset: f32,
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
        let groups = gpu.binding_capacity().min(PROBE_BYTES) / GROUP_BYTES;
        let words = (groups * GROUP_BYTES / 4) as usize;
        let tensor = || gpu.zeros(&[words.max(1)], DType::F32);
        Ok(Probe { gpu: gpu.clone(), block, groups: groups.max(1), source: tensor()?, target: tensor()? })
    }

    async fn roof(&self) -> Result<Roof, Error> {
        let bytes = (self.groups * GROUP_BYTES) as f64;
        let mut roof = Roof { copy: 0.0, read: 0.0, multiply_add: 0.0 };
        for variant in [0, 1] {
            let walk = vec![("CONTIGUOUS", variant)];
            roof.copy = roof.copy.max(2.0 * bytes / self.best(&kernel::PROBE_COPY, &walk, self.groups).await?);
            roof.read = roof.read.max(bytes / self.best(&kernel::PROBE_READ, &walk, self.groups).await?);
            roof.multiply_add = roof.multiply_add.max(self.multiply_add(&vec![("FUSED", variant)]).await?);
        }
        Ok(roof)
    }

    /// Operations in a second, with as many workgroups as make a dispatch long.
    async fn multiply_add(&self, constants: &Constants) -> Result<f64, Error> {
        let most = (self.target.len() as u64 / THREADS).min(self.gpu.group_capacity()).min(1 << 16);
        let most = if self.gpu.is_gl() { most.min(GL_WORK / (THREADS * OPERATIONS / 2)) } else { most };
        let mut groups = most.min(64);
        loop {
            let seconds = self.best(&kernel::PROBE_MULTIPLY_ADD, constants, groups).await?;
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
        let timed = self.gpu.timed(self.gpu.clock(), self.block, record).await?;
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
    ops.begin(kernel.entry, Work::default());
    let bind = |&(_, access): &(u32, kernel::Access)| {
        let tensor = if access == kernel::Access::Read { source } else { target };
        View::of(tensor).bind(ops.gpu(), 0, tensor.len() as u64).0
    };
    let buffers: Vec<_> = kernel.bindings.iter().map(bind).collect();
    let params = Params { groups: groups as u32, scale: 0.75, offset: 0.5 };
    ops.dispatch(&Dispatch { kernel, module: PROBE, constants, buffers: &buffers, params, groups, work: 0 })
}

/// The faster variant, in all likelihood.
fn walk(gpu: &Gpu) -> Constants {
    vec![("CONTIGUOUS", (!gpu.traits().is_gpu()).into())]
}

/// Copies `source` to `target`, which is as long, in whole workgroups.
pub(crate) fn probe_copy(ops: &mut Recorder<'_, '_>, source: &Tensor, target: &Tensor) -> Result<(), Error> {
    probe(ops, &kernel::PROBE_COPY, &walk(ops.gpu()), [source, target], source.bytes() / GROUP_BYTES)
}

/// Reads `source`, in whole workgroups, and writes a word of sums to `target` for every 32 that it reads.
pub(crate) fn probe_read(ops: &mut Recorder<'_, '_>, source: &Tensor, target: &Tensor) -> Result<(), Error> {
    probe(ops, &kernel::PROBE_READ, &walk(ops.gpu()), [source, target], source.bytes() / GROUP_BYTES)
}
