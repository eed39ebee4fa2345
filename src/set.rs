//! Norms, normalization and its backward pass over many weights at once. Shader: `set.wgsl`.
//!
//! What the workgroups do stands in a table on the device, made once: an item of 64 bytes for each, which says by itself
//! all that its workgroup has to know. So nothing is searched for, and work is cut into items of about equal size, whatever
//! the shapes.
use std::borrow::Cow;
use std::collections::HashMap;

use crate::arguments::{Arguments, expect_per_norm, expect_shape};
use crate::binding::{Span, View};
use crate::choose::{Traits, lanes_for};
use crate::contract::{Layout, norms_shape};
use crate::kernel::{Constants, Kernel, kernels, params};
use crate::memory::{Memory, Scratch};
use crate::record::Dispatch;
use crate::source::Module;
use crate::windows::{GL_WORK, MAX_ITERATIONS, windows};
use crate::{DType, Eps, Error, Gpu, Recorder, Tensor, WeightNorm, Work, Write};

const WORDS: Module = Module::new("weight/set");
const QUADS: Module = Module::new("weight/set").fill("access", "weight/set_quads");
pub(crate) const MODULES: [Module; 2] = [WORDS, QUADS];

/// A weight of a [`WeightSet`], with the tensors that the operators on the set read and write beside it. Each operator
/// needs its own of them, of every member or of none.
#[derive(Debug, Clone, Copy)]
pub struct SetMember<'a> {
    weight: WeightNorm<'a>,
    w: Option<&'a Tensor>,
    norms: Option<&'a Tensor>,
    dw: Option<&'a Tensor>,
    dv: Option<&'a Tensor>,
    dg: Option<&'a Tensor>,
}

impl<'a> SetMember<'a> {
    /// The weight alone, for the operators in place.
    pub fn new(weight: WeightNorm<'a>) -> Self {
        SetMember { weight, w: None, norms: None, dw: None, dv: None, dg: None }
    }

    /// Where [`Recorder::normalize_set`] puts w: the shape of v, any storage type.
    pub fn w(self, w: &'a Tensor) -> Self {
        SetMember { w: Some(w), ..self }
    }

    /// Where [`Recorder::row_norms_set`] puts n̂: f32, one for each index of the kept axis.
    pub fn norms(self, norms: &'a Tensor) -> Self {
        SetMember { norms: Some(norms), ..self }
    }

    /// Where [`Recorder::normalize_backward_set`] finds the gradient of w: the shape of v, any storage type.
    pub fn dw(self, dw: &'a Tensor) -> Self {
        SetMember { dw: Some(dw), ..self }
    }

    /// Where [`Recorder::normalize_backward_set`] puts the gradient of v, if it is wanted: the shape of v, any storage type.
    pub fn dv(self, dv: &'a Tensor) -> Self {
        SetMember { dv: Some(dv), ..self }
    }

    /// Where [`Recorder::normalize_backward_set`] puts the gradient of g, if it is wanted: f32, one for each index of the
    /// kept axis.
    pub fn dg(self, dg: &'a Tensor) -> Self {
        SetMember { dg: Some(dg), ..self }
    }
}

impl<'a> From<WeightNorm<'a>> for SetMember<'a> {
    fn from(weight: WeightNorm<'a>) -> Self {
        SetMember::new(weight)
    }
}

/// An operator on a [`WeightSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetOperator {
    /// [`Recorder::row_norms_set`].
    RowNorms,
    /// [`Recorder::normalize_set`].
    Normalize,
    /// [`Recorder::normalize_set_in_place`] and [`Recorder::project_set`].
    InPlace,
    /// [`Recorder::normalize_backward_set`].
    Backward,
}

impl SetOperator {
    const ALL: [SetOperator; 4] =
        [SetOperator::RowNorms, SetOperator::Normalize, SetOperator::InPlace, SetOperator::Backward];

    fn name(self) -> &'static str {
        match self {
            SetOperator::RowNorms => "row_norms_set",
            SetOperator::Normalize => "normalize_set",
            SetOperator::InPlace => "normalize_set_in_place",
            SetOperator::Backward => "normalize_backward_set",
        }
    }
}

/// Weights whose norms, normalization and gradients take a few dispatches for all of them together, however many there
/// are: of any shapes, kept axes, storage types and eps policies. From [`Gpu::weight_set`].
///
/// ```
/// # use weightnorm::{Axis, DType, Error, Gpu, SetMember, WeightNorm};
/// # fn layers(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
/// // Tensors that share a buffer, since a dispatch reaches no others.
/// let v = gpu.tensors(&[(&[512, 80, 7], DType::F32), (&[512, 256, 16], DType::F32)])?;
/// let g = gpu.tensors(&[(&[512, 1, 1], DType::F32), (&[512, 1, 1], DType::F32)])?;
/// let w = gpu.tensors(&[(&[512, 80, 7], DType::F16), (&[512, 256, 16], DType::F16)])?;
/// let member = |i: usize| SetMember::new(WeightNorm::new(&v[i], &g[i])).w(&w[i]);
/// let set = gpu.weight_set(&[member(0), member(1)])?; // once
/// gpu.record(encoder).normalize_set(&set)?; // for every step
/// # Ok(()) }
/// ```
///
/// What it holds is the place of each tensor, not what is in it: the weights may change between the steps.
#[derive(Debug)]
pub struct WeightSet {
    gpu: Gpu,
    /// In the order of [`SetOperator::ALL`].
    plans: [Result<Plan, Error>; 4],
}

impl WeightSet {
    /// The dispatches that an operator on the set takes.
    ///
    /// # Errors
    /// As the operator: [`Error::Missing`] if the members lack its tensors; [`Error::Alias`].
    pub fn dispatch_count(&self, operator: SetOperator) -> Result<u64, Error> {
        self.plan(operator).map(|plan| plan.stages.len() as u64)
    }

    fn plan(&self, operator: SetOperator) -> Result<&Plan, Error> {
        self.plans[operator as usize].as_ref().map_err(Error::clone)
    }
}

impl Gpu {
    /// Many new tensors of zeros that share one buffer, each from a multiple of 16 bytes on: what a [`WeightSet`] wants,
    /// since one dispatch reaches one buffer of each kind.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn tensors(&self, tensors: &[(&[usize], DType)]) -> Result<Vec<Tensor>, Error> {
        Tensor::zeros_together(self, tensors)
    }

    /// Makes the table of a set of weights, and keeps it on the device. Outputs belong to the set, since their places stand
    /// in the table.
    ///
    /// An operator on the set takes one dispatch for each of its kernels: one that sums up rows; one that sums up columns,
    /// if there are members whose kept axis is not the first; one that adds up partial sums, if there are any; and one that
    /// rescales. That holds where all v share a buffer, all w another, all g, and so on ([`Gpu::tensors`]): members whose
    /// tensors lie in other buffers, which do not start at multiples of 16 bytes, or which lie further apart than a binding
    /// reaches, take as many again. [`WeightSet::dispatch_count`] tells.
    ///
    /// # Errors
    /// [`Error::Member`] with what is wrong with a member: a shape, a storage type, an axis, an eps, known norms, which a set
    /// does not take ([`Error::KnownNorms`]), or tensors that an operator lacks, while other members have them
    /// ([`Error::Missing`]). [`Error::Alias`], [`Error::Overlap`], [`Error::OtherGpu`], [`Error::Usage`];
    /// [`Error::TooLarge`] if more partial sums, or with another kept axis than the first more scales, belong together than a
    /// binding holds; [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn weight_set(&self, members: &[SetMember<'_>]) -> Result<WeightSet, Error> {
        self.check()?;
        for (index, member) in members.iter().enumerate() {
            member.check().map_err(|e| Error::Member { index, error: Box::new(e) })?;
        }
        let plan = |operator: SetOperator| Plan::new(self, operator, members);
        let [norms, normalize, in_place, backward] = SetOperator::ALL.map(plan);
        // What a member has tensors for has to work. In place is what nobody asked for yet.
        for (declared, plan) in [
            (members.iter().any(|m| m.norms.is_some()), &norms),
            (members.iter().any(|m| m.w.is_some()), &normalize),
            (members.iter().any(|m| m.dw.is_some() || m.dv.is_some() || m.dg.is_some()), &backward),
        ] {
            if let (true, Err(error)) = (declared, plan) {
                return Err(error.clone());
            }
        }
        Ok(WeightSet { gpu: self.clone(), plans: [norms, normalize, in_place, backward] })
    }

    /// [`Gpu::row_norms`] of many weights, a few dispatches in all: see [`Gpu::weight_set`]. For one call; a [`WeightSet`]
    /// does not make its table anew for every step.
    ///
    /// # Errors
    /// As [`Gpu::weight_set`].
    pub fn row_norms_set(&self, weights: &[WeightNorm<'_>]) -> Result<Vec<Tensor>, Error> {
        let norms = self.per_norm(weights)?;
        let members: Vec<_> = weights.iter().zip(&norms).map(|(&w, norms)| SetMember::new(w).norms(norms)).collect();
        let set = self.weight_set(&members)?;
        self.run(|ops| ops.row_norms_set(&set))?;
        Ok(norms)
    }

    /// [`Gpu::normalize`] of many weights, likewise.
    ///
    /// # Errors
    /// As [`Gpu::weight_set`].
    pub fn normalize_set(&self, weights: &[WeightNorm<'_>]) -> Result<Vec<Tensor>, Error> {
        let all = self.like(weights)?;
        let members: Vec<_> = weights.iter().zip(&all).map(|(&weight, w)| SetMember::new(weight).w(w)).collect();
        let set = self.weight_set(&members)?;
        self.run(|ops| ops.normalize_set(&set))?;
        Ok(all)
    }

    /// [`Gpu::normalize_backward`] of many weights, each with its dw, likewise. Returns (dv, dg) of each.
    ///
    /// # Errors
    /// As [`Gpu::weight_set`].
    pub fn normalize_backward_set(
        &self,
        weights: &[(&Tensor, WeightNorm<'_>)],
    ) -> Result<Vec<(Tensor, Tensor)>, Error> {
        let all: Vec<_> = weights.iter().map(|&(_, weight)| weight).collect();
        let gradients: Vec<_> = self.like(&all)?.into_iter().zip(self.per_norm(&all)?).collect();
        let member = |(&(dw, weight), (dv, dg))| SetMember::new(weight).dw(dw).dv(dv).dg(dg);
        let members: Vec<_> = weights.iter().zip(gradients.iter().map(|(dv, dg)| (dv, dg))).map(member).collect();
        let set = self.weight_set(&members)?;
        self.run(|ops| ops.normalize_backward_set(&set, Write::Replace))?;
        Ok(gradients)
    }

    fn like(&self, weights: &[WeightNorm<'_>]) -> Result<Vec<Tensor>, Error> {
        self.tensors(&weights.iter().map(|w| (w.v.shape(), w.v.dtype())).collect::<Vec<_>>())
    }

    fn per_norm(&self, weights: &[WeightNorm<'_>]) -> Result<Vec<Tensor>, Error> {
        let shapes: Vec<_> = weights.iter().map(|w| norms_shape(w.v.shape(), w.axis)).collect();
        self.tensors(&shapes.iter().map(|shape| (&shape[..], DType::F32)).collect::<Vec<_>>())
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::row_norms`] of all members of a set, into their [`SetMember::norms`]. Makes nothing anew.
    ///
    /// # Errors
    /// [`Error::Missing`] if the members lack these; [`Error::OtherGpu`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn row_norms_set(&mut self, set: &WeightSet) -> Result<(), Error> {
        self.set(set, SetOperator::RowNorms, "row_norms_set", true, Write::Replace)
    }

    /// Records [`Gpu::normalize`] of all members of a set, into their [`SetMember::w`].
    ///
    /// # Errors
    /// As [`Recorder::row_norms_set`].
    pub fn normalize_set(&mut self, set: &WeightSet) -> Result<(), Error> {
        self.set(set, SetOperator::Normalize, "normalize_set", true, Write::Replace)
    }

    /// Records [`Gpu::normalize_in_place`] of all members of a set: v becomes w.
    ///
    /// # Errors
    /// As [`Recorder::row_norms_set`]; [`Error::Alias`] if a g shares a buffer with a v.
    pub fn normalize_set_in_place(&mut self, set: &WeightSet) -> Result<(), Error> {
        self.set(set, SetOperator::InPlace, "normalize_set_in_place", true, Write::Replace)
    }

    /// Records the projection v ← v/n̂ of all members of a set: [`Recorder::normalize_set_in_place`] without their gains.
    ///
    /// # Errors
    /// As [`Recorder::normalize_set_in_place`].
    pub fn project_set(&mut self, set: &WeightSet) -> Result<(), Error> {
        self.set(set, SetOperator::InPlace, "project_set", false, Write::Replace)
    }

    /// Records [`Gpu::normalize_backward`] of all members of a set: reads their [`SetMember::dw`], and replaces their
    /// [`SetMember::dv`] and [`SetMember::dg`] or adds to them. The norms come out of the same sweep as the dot products.
    ///
    /// # Errors
    /// As [`Recorder::row_norms_set`].
    pub fn normalize_backward_set(&mut self, set: &WeightSet, write: Write) -> Result<(), Error> {
        self.set(set, SetOperator::Backward, "normalize_backward_set", true, write)
    }

    fn set(
        &mut self,
        set: &WeightSet,
        operator: SetOperator,
        op: &'static str,
        has_gain: bool,
        write: Write,
    ) -> Result<(), Error> {
        let other = Error::OtherGpu { op, arg: "the set" };
        let Some(gpu) = self.gpu() else { return Err(other) };
        gpu.reported()?;
        if !set.gpu.is_one_with(gpu) {
            return Err(other);
        }
        let plan = set.plan(operator)?;
        let mut work = plan.work;
        if write == Write::Add {
            work.read += work.written;
        }
        self.begin(op, work);
        let sums = self.scratch(Scratch::Sums, plan.sums)?;
        let scales = self.scratch(Scratch::Scales, plan.scales)?;
        let table = View { memory: Cow::Borrowed(&plan.table), offset: 0, element: ITEM_BYTES };
        for stage in &plan.stages {
            let (items, first) = table.bind(self.facts().capacities, stage.first, stage.count);
            let span = |slot: &usize| {
                let window = stage.windows[*slot].as_ref()?;
                let buffer = match &plan.sources[window.source] {
                    Source::Tensors(memory) => memory,
                    Source::Sums => &sums,
                    Source::Scales => &scales,
                };
                Some(Span::new(buffer, window.offset, window.size))
            };
            let buffers: Vec<_> = [items].into_iter().chain(stage.kind.slots().iter().map(span)).collect();
            let mut constants = stage.constants.clone();
            constants.extend((write == Write::Add).then_some(("ADD", 1)));
            self.dispatch(&Dispatch {
                kernel: stage.kind.kernel(),
                module: stage.module,
                constants: &constants,
                buffers: &buffers,
                params: Params { count: stage.count as u32, first, has_gain: has_gain.into() },
                groups: stage.count,
                work: stage.work,
            })?;
        }
        Ok(())
    }
}

params! {
    struct Params {
        count: u32,
        first: u32,
        has_gain: u32,
    }
}

const ITEM_BYTES: u64 = 64;
/// Invocations in a workgroup of `set.wgsl`.
const THREADS: u64 = 64;
/// Elements that are read and written together.
const OCTET: u64 = 8;
/// Inner sizes from which stretches before the kept axis are summed up as rows; shorter ones as columns.
const ROW_FROM: u64 = 256;
/// Rows of a column that are added up one after the other, where no limit wants more.
const COLUMN_CHAIN: u64 = 96;
/// Of `set_rows`.
const MAX_TURNS: u64 = 32;

/// The tensors that an item reaches, in the order in which its first words give their places.
const V: usize = 0;
const DW: usize = 1;
const G: usize = 2;
const PART: usize = 3;
const OUT: usize = 4;
/// dg where sums are made, w or dv where elements are rescaled.
const LAST: usize = 5;
const SLOTS: usize = 6;

/// `MIXED` of the shader: a storage type of each member's own.
const MIXED: u32 = 3;

/// Its place among the own words of an item of [`Kind::Rows`].
const LANE_BITS: usize = 5;

const OF_V: u32 = 0;
const OF_DW: u32 = 2;
const OF_W: u32 = 4;
const OF_POLICY: u32 = 6;
const HAS_GAIN: u32 = 0x100;
const DIRECT: u32 = 0x200;
const HAS_DG: u32 = 0x400;
const OCTETS: u32 = 0x800;
const OF_GAIN: u32 = 12;

/// The kernels, in the order of their dispatches.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Rows,
    Columns,
    Finish,
    Rescale,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Rows, Kind::Columns, Kind::Finish, Kind::Rescale];

    fn kernel(self) -> &'static Kernel {
        match self {
            Kind::Rows => &SET_ROWS,
            Kind::Columns => &SET_COLUMNS,
            Kind::Finish => &SET_FINISH,
            Kind::Rescale => &SET_RESCALE,
        }
    }

    /// What its bindings after the table are.
    fn slots(self) -> &'static [usize] {
        match self {
            Kind::Rows => &[V, DW, G, PART, OUT, LAST],
            Kind::Columns => &[V, DW, PART],
            Kind::Finish => &[G, PART, OUT, LAST],
            Kind::Rescale => &[V, DW, OUT, LAST],
        }
    }
}

/// All dispatches of one operator on one set.
#[derive(Debug)]
struct Plan {
    table: Memory,
    sources: Vec<Source>,
    stages: Vec<Stage>,
    /// Bytes of scratch memory.
    sums: u64,
    scales: u64,
    work: Work,
}

/// Where a binding lies.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
enum Source {
    Tensors(Memory),
    Sums,
    Scales,
}

/// One dispatch.
#[derive(Debug)]
struct Stage {
    kind: Kind,
    module: Module,
    constants: Constants,
    windows: [Option<Window>; SLOTS],
    first: u64,
    count: u64,
    work: u64,
}

/// A part of a buffer.
#[derive(Debug, Clone)]
struct Window {
    source: usize,
    offset: u64,
    size: u64,
}

/// What an item needs of a buffer: bytes `begin` to `end`. Its place is that of byte `origin`, in units of `unit` bytes.
#[derive(Debug, Clone)]
struct Place {
    source: usize,
    origin: u64,
    begin: u64,
    end: u64,
    unit: u64,
}

type Places = [Option<Place>; SLOTS];

/// An item whose places are not known yet.
#[derive(Debug)]
struct Draft {
    /// From the flags on.
    words: [u32; 10],
    places: Places,
    /// Whether all tensors can be reached in quads.
    quads: bool,
    work: u64,
}

/// A member, as one operator sees it.
struct Job<'a> {
    v: &'a Tensor,
    g: Option<&'a Tensor>,
    dw: Option<&'a Tensor>,
    /// n̂, where that is all that is wanted.
    norms: Option<&'a Tensor>,
    dg: Option<&'a Tensor>,
    /// w, v in its place, or dv.
    w: Option<&'a Tensor>,
    in_place: bool,
    layout: Layout<u64>,
    eps: Eps,
    quads: bool,
    /// Where its scales begin, in norms.
    first_scale: u64,
}

impl<'a> SetMember<'a> {
    /// What can be said of it alone.
    fn check(&self) -> Result<(), Error> {
        const OP: &str = "weight_set";
        let SetMember { weight, w, norms, dw, dv, dg } = *self;
        weight.check(OP)?;
        if weight.norms.is_some() {
            return Err(Error::KnownNorms { op: OP });
        }
        let (shape, axis) = (weight.v.shape(), weight.axis);
        for (arg, tensor) in [("w", w), ("dw", dw), ("dv", dv)] {
            tensor.map_or(Ok(()), |tensor| expect_shape(OP, arg, tensor, shape))?;
        }
        for (arg, tensor) in [("norms", norms), ("dg", dg)] {
            tensor.map_or(Ok(()), |tensor| expect_per_norm(OP, arg, tensor, &norms_shape(shape, axis)))?;
        }
        Ok(())
    }

    fn job(&self, operator: SetOperator) -> Result<Job<'a>, Error> {
        let op = operator.name();
        let WeightNorm { v, g, axis, eps, .. } = self.weight;
        let need = |arg, tensor: Option<&'a Tensor>| tensor.ok_or(Error::Missing { op, arg }).map(Some);
        let layout = Layout::new(v.shape(), axis)?;
        // Norms over nothing are norms of empty rows.
        let layout = if layout.len() == 0 { Layout { outer: 1, inner: 0, ..layout } } else { layout };
        let none = Job {
            v,
            g,
            dw: None,
            norms: None,
            dg: None,
            w: None,
            in_place: false,
            layout: layout.wide(),
            eps,
            quads: false,
            first_scale: 0,
        };
        let job = match operator {
            SetOperator::RowNorms => Job { g: None, norms: need("norms", self.norms)?, ..none },
            SetOperator::Normalize => Job { w: need("w", self.w)?, ..none },
            SetOperator::InPlace => Job { w: Some(v), in_place: true, ..none },
            SetOperator::Backward => {
                need("dv", self.dv.or(self.dg))?;
                Job { dw: need("dw", self.dw)?, w: self.dv, dg: self.dg, ..none }
            }
        };
        let reached = |t: &Tensor| {
            t.offset().is_multiple_of(16) && t.offset() + t.bytes().next_multiple_of(16) <= t.buffer().size()
        };
        let quads = [Some(v), job.dw, job.w].into_iter().flatten().all(reached);
        Ok(Job { quads, ..job })
    }
}

impl Job<'_> {
    fn arguments<'b>(&'b self, arguments: Arguments<'b>) -> Arguments<'b> {
        let written = match (self.in_place, self.dw) {
            (true, _) => return arguments.input("g", self.g).output_onto(true, "v", self.v),
            (_, Some(_)) => "dv",
            (_, None) => "w",
        };
        arguments
            .input("dw", self.dw)
            .input("v", self.v)
            .input("g", self.g)
            .output("norms", self.norms)
            .output(written, self.w)
            .output("dg", self.dg)
    }

    fn operations(&self) -> u64 {
        let each = match (self.dw, self.w) {
            (None, None) => 2,
            (None, Some(_)) => 3,
            (Some(_), None) => 4,
            (Some(_), Some(_)) => 7,
        };
        each * self.v.len() as u64
    }

    fn flags(&self) -> u32 {
        let code = |t: Option<&Tensor>| t.map_or(0, |t| t.dtype().code());
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        self.v.dtype().code() << OF_V
            | code(self.dw) << OF_DW
            | code(self.w) << OF_W
            | self.eps.code() << OF_POLICY
            | code(self.g) << OF_GAIN
            | flag(self.g.is_some(), HAS_GAIN)
            | flag(self.dg.is_some(), HAS_DG)
    }

    /// Bytes of the widest element that is read for the sums, or to be rescaled.
    fn widest(&self, rescaled: bool) -> u64 {
        let size = |t: Option<&Tensor>| t.map_or(0, |t| t.dtype().size());
        self.v.dtype().size().max(size(self.dw)).max(if rescaled { size(self.w) } else { 0 })
    }

    /// Sums that belong to a partial sum.
    fn parts(&self) -> u64 {
        if self.dw.is_some() { 2 } else { 1 }
    }

    /// Bytes that are written for a norm.
    fn out_bytes(&self) -> u64 {
        match (self.norms, self.dw) {
            (Some(_), _) => 4,
            (None, None) => 8,
            (None, Some(_)) => 16,
        }
    }
}

/// Makes a plan.
struct Planner<'g> {
    gpu: &'g Gpu,
    traits: Traits,
    sources: Vec<Source>,
    numbers: HashMap<Source, usize>,
    /// Of each [`Kind`].
    drafts: [Vec<Draft>; 4],
    /// Partial sums and norms so far.
    parts: u64,
    norms: u64,
    /// Bytes of a binding that items may count on.
    capacity: u64,
    /// Elements of an item.
    target: u64,
}

impl Plan {
    fn new(gpu: &Gpu, operator: SetOperator, members: &[SetMember<'_>]) -> Result<Plan, Error> {
        let traits = gpu.traits();
        let mut jobs = vec![];
        for (index, member) in members.iter().enumerate() {
            let job = member.job(operator).map_err(|e| Error::Member { index, error: Box::new(e) })?;
            jobs.push(job);
        }
        let arguments = jobs.iter().fold(Arguments::new(operator.name()), |all, job| job.arguments(all));
        let work = arguments.operations(jobs.iter().map(Job::operations).sum()).check(gpu)?;
        let elements = jobs.iter().map(|job| job.v.len() as u64).sum();
        let mut planner = Planner {
            gpu,
            traits,
            sources: vec![],
            numbers: HashMap::new(),
            drafts: Default::default(),
            parts: 0,
            norms: 0,
            // A window starts and ends at multiples of 16 bytes.
            capacity: gpu.capacities().binding - 32,
            target: traits.elements_of_an_item(elements),
        };
        for job in &mut jobs {
            job.first_scale = planner.norms;
            planner.norms += job.layout.kept;
            planner.sums(job)?;
            planner.rescale(job)?;
        }
        let (sums, scales) = (planner.parts * 16, planner.norms * 16);
        let mut table = vec![];
        let mut stages = vec![];
        for (kind, drafts) in Kind::ALL.into_iter().zip(std::mem::take(&mut planner.drafts)) {
            planner.stages(kind, operator, drafts, &mut table, &mut stages);
        }
        let bytes: &[u8] = bytemuck::cast_slice(&table);
        let size = (bytes.len() as u64).max(16);
        let table = gpu.create_written_buffer("a table", size, wgpu::BufferUsages::STORAGE, |mut all| {
            all.slice(..bytes.len()).copy_from_slice(bytes)
        })?;
        Ok(Plan { table: Memory::Buffer(table), sources: planner.sources, stages, sums, scales, work })
    }
}

impl Planner<'_> {
    fn source(&mut self, source: Source) -> usize {
        let next = self.sources.len();
        let number = *self.numbers.entry(source.clone()).or_insert(next);
        if number == next {
            self.sources.push(source);
        }
        number
    }

    /// `count` elements of a tensor from `first` on, in whole octets, as far as the tensor goes.
    fn elements(&mut self, job: &Job<'_>, tensor: Option<&Tensor>, first: u64, count: u64) -> Option<Place> {
        let tensor = tensor?;
        let origin = tensor.offset();
        let begin = origin + first / OCTET * OCTET * tensor.dtype().size();
        let end = origin + ((first + count) * tensor.dtype().size()).next_multiple_of(16);
        let end = end.min(tensor.buffer().size() / 4 * 4);
        let unit = if job.quads { 16 } else { 4 };
        let source = self.source(Source::Tensors(tensor.memory().clone()));
        (count > 0).then_some(Place { source, origin, begin, end, unit })
    }

    /// Elements of a tensor, one for each norm.
    fn of_norms(&mut self, tensor: Option<&Tensor>, first: u64, count: u64) -> Option<Place> {
        let tensor = tensor?;
        let unit = tensor.dtype().size();
        let origin = tensor.offset() + unit * first;
        let end = (origin + unit * count).next_multiple_of(4);
        let source = self.source(Source::Tensors(tensor.memory().clone()));
        Some(Place { source, origin, begin: origin / 4 * 4, end, unit })
    }

    /// `count` partial sums from `first` on.
    fn part(&mut self, job: &Job<'_>, first: u64, count: u64) -> Option<Place> {
        let unit = 8 * job.parts();
        let source = self.source(Source::Sums);
        Some(Place { source, origin: first * unit, begin: first * unit, end: (first + count) * unit, unit })
    }

    /// g, dg and what is written for norms `first` ..
    fn outputs(&mut self, job: &Job<'_>, first: u64, count: u64) -> Places {
        let out = match job.norms {
            Some(norms) => self.of_norms(Some(norms), first, count),
            None => {
                let origin = (job.first_scale + first) * job.out_bytes();
                let source = self.source(Source::Scales);
                Some(Place { source, origin, begin: origin, end: origin + count * job.out_bytes(), unit: 4 })
            }
        };
        [None, None, self.of_norms(job.g, first, count), None, out, self.of_norms(job.dg, first, count)]
    }

    fn push(&mut self, kind: Kind, job: &Job<'_>, flags: u32, places: Places, words: [u64; 8], work: u64) {
        let mut all = [job.flags() | flags, job.eps.value().to_bits(), 0, 0, 0, 0, 0, 0, 0, 0];
        // The host keeps them in range.
        all[2..].iter_mut().zip(words).for_each(|(word, value)| *word = value as u32);
        self.drafts[kind as usize].push(Draft { words: all, places, quads: job.quads, work });
    }

    /// The sums of a member.
    fn sums(&mut self, job: &Job<'_>) -> Result<(), Error> {
        let Layout { outer, kept, inner } = job.layout;
        if outer * kept * inner > u64::from(u32::MAX) - 2 * OCTET {
            let (size, limit) = (outer * kept * inner, u64::from(u32::MAX) - 2 * OCTET);
            return Err(Error::TooLarge { what: "a member of a set in elements", size, limit });
        }
        let in_binding = self.capacity / job.widest(false);
        let stretch = self.traits.stretch_of_a_set(self.target);
        let most = (2 * stretch).min(in_binding - OCTET);
        let splits = if inner > most { inner.div_ceil(stretch.min(most)) } else { 1 };
        let fit = outer * kept * splits * 8 * job.parts() <= self.capacity && fits(outer * splits);
        match outer {
            1 if splits > 1 && !fits(splits) => Err(Error::TooLarge {
                what: "partial sums of one norm",
                size: splits,
                limit: THREADS * MAX_ITERATIONS / 2,
            }),
            1 => self.rows(job, splits),
            _ if inner >= ROW_FROM && fit => self.rows(job, splits),
            _ => self.columns(job),
        }
    }

    /// Contiguous rows, each in `splits` stretches.
    fn rows(&mut self, job: &Job<'_>, splits: u64) -> Result<(), Error> {
        let Layout { outer, kept, inner } = job.layout;
        let all = outer * kept;
        let direct = outer == 1 && splits == 1;
        let length = if splits == 1 { inner } else { inner.div_ceil(splits).next_multiple_of(OCTET) };
        let splits = inner.div_ceil(length.max(1)).max(1);
        let in_binding = self.capacity / job.widest(false);
        // Rows side by side in an item, or stretches of one row.
        let fit = (in_binding / length.max(1)).max(1);
        let most = self.traits.rows_of_a_set(self.target, length).min(fit).min(if splits > 1 { splits } else { all });
        let lanes = self.traits.lanes_of_a_set(length.div_ceil(OCTET));
        let most = most.min(MAX_TURNS * (THREADS / lanes)).min(self.capacity / 16).max(1);
        let part_first = self.parts;
        if !direct {
            self.parts += all * splits;
        }
        let run_bits = self.traits.run(lanes).ilog2();
        let groups = if splits > 1 { all } else { 1 };
        for group in 0..groups {
            let (count, end) = if splits > 1 { (splits, (group + 1) * inner) } else { (all, all * inner) };
            for (r, rows) in windows(count, most) {
                let first = group * inner + r * length;
                let own_end = (first + rows * length).min(end);
                let mut places = if direct { self.outputs(job, r, rows) } else { Places::default() };
                places[V] = self.elements(job, Some(job.v), first, own_end - first);
                places[DW] = self.elements(job, job.dw, first, own_end - first);
                if !direct {
                    places[PART] = self.part(job, part_first + group * splits + r, rows);
                }
                let turns = rows.div_ceil(THREADS / lanes);
                let flags = if direct { DIRECT } else { 0 };
                let words = [first, length, length, rows, turns, lanes.ilog2().into(), run_bits.into(), own_end];
                self.push(Kind::Rows, job, flags, places, words, own_end - first);
            }
        }
        if !direct {
            let partial = Partial { first: part_first, a: outer, a_stride: kept * splits, j_stride: splits, b: splits };
            self.finish(job, &partial, 0, kept);
        }
        Ok(())
    }

    /// Columns of a matrix of `outer` rows, some norms at a time.
    fn columns(&mut self, job: &Job<'_>) -> Result<(), Error> {
        let Layout { outer, kept, inner } = job.layout;
        let stride = kept * inner;
        let part_bytes = 8 * job.parts();
        let in_binding = self.capacity / job.widest(false);
        let block = |octets: bool| {
            let unit = if octets { OCTET } else { 1 };
            let width = (THREADS * unit).min(stride);
            let chain = (self.target / (THREADS * unit)).clamp(16, COLUMN_CHAIN);
            let chain = chain.min(((in_binding - width) / stride + 1).max(1)).min(outer);
            // Fewer, longer stretches, where not even one norm's partial sums fit a binding otherwise.
            let least = outer.div_ceil((self.capacity / (inner * part_bytes)).max(1));
            let chain = chain.max(least.min(((in_binding - width) / stride + 1).max(1)));
            let splits = outer.div_ceil(chain);
            let norms = kept.min(self.capacity / (splits * inner * part_bytes));
            let norms = if octets && norms < kept { norms / OCTET * OCTET } else { norms };
            let can = norms > 0 && fits(splits * inner) && chain <= MAX_ITERATIONS / 32;
            (can && (!octets || stride.is_multiple_of(OCTET))).then_some((unit, chain, splits, norms))
        };
        let Some((unit, chain, splits, in_block)) = block(true).or_else(|| block(false)) else {
            let (size, limit) = (outer * inner, self.capacity / part_bytes);
            return Err(Error::TooLarge { what: "partial sums of one norm", size, limit });
        };
        for (j, j_count) in windows(kept, in_block) {
            let columns = j_count * inner;
            let part_first = self.parts;
            self.parts += splits * columns;
            for (column, count) in windows(columns, THREADS * unit) {
                let units = count.div_ceil(unit);
                let fit = ((in_binding - count) / stride + 1) / chain;
                let side_by_side = (THREADS / units).min(fit.max(1));
                for (row, rows) in windows(outer, chain * side_by_side) {
                    let first = row * stride + j * inner + column;
                    let span = (rows - 1) * stride + count;
                    let part = part_first + row / chain * columns + column;
                    let part_count = (rows.div_ceil(chain) - 1) * columns + count;
                    let mut places = Places::default();
                    places[V] = self.elements(job, Some(job.v), first, span);
                    places[DW] = self.elements(job, job.dw, first, span);
                    places[PART] = self.part(job, part, part_count);
                    let flags = if unit == OCTET { OCTETS } else { 0 };
                    let words = [first, stride, rows, chain, columns, units, 0, 0];
                    self.push(Kind::Columns, job, flags, places, words, rows * count);
                }
            }
            let partial = Partial { first: part_first, a: splits, a_stride: columns, j_stride: inner, b: inner };
            self.finish(job, &partial, j, j_count);
        }
        Ok(())
    }

    /// Norms `j` .. of partial sums, the first of which belongs to norm `j`.
    fn finish(&mut self, job: &Job<'_>, partial: &Partial, j: u64, j_count: u64) {
        let &Partial { first, a, a_stride, j_stride, b } = partial;
        let lanes = lanes_for(a * b);
        let turns = if a * b > 4096 { 1 } else { 4 };
        for (k, count) in windows(j_count, THREADS / lanes * turns) {
            let mut places = self.outputs(job, j + k, count);
            let end = (a - 1) * a_stride + (count - 1) * j_stride + b;
            places[PART] = self.part(job, first + k * j_stride, end);
            let turns = count.div_ceil(THREADS / lanes);
            let words = [a, a_stride, j_stride, b, count, turns, lanes.ilog2().into(), 0];
            self.push(Kind::Finish, job, 0, places, words, count * a * b);
        }
    }

    fn rescale(&mut self, job: &Job<'_>) -> Result<(), Error> {
        let Layout { outer, kept, inner } = job.layout;
        let total = outer * kept * inner;
        let (Some(w), true) = (job.w, total > 0) else { return Ok(()) };
        let scale_bytes = job.out_bytes();
        let in_binding = self.capacity / job.widest(true);
        let target = self.target.min(in_binding - 2 * OCTET);
        let target = target.min((self.capacity / scale_bytes - 2).saturating_mul(inner));
        let run = self.traits.run(THREADS);
        let step = run * OCTET;
        let flags = if inner.is_multiple_of(OCTET) { OCTETS } else { 0 };
        // Whole octets; the elements behind them go with the last item.
        for (octet, octets) in windows((total / OCTET).max(1), target / OCTET) {
            let octets = octets.min(total / OCTET - octet);
            let end = (octet + octets) * OCTET;
            let tail = if end + OCTET > total { total - end } else { 0 };
            let (first, last) = (octet * OCTET, end + tail);
            let mut places = Places::default();
            places[V] = self.elements(job, Some(job.v).filter(|_| !job.in_place), first, last - first);
            places[DW] = self.elements(job, job.dw, first, last - first);
            places[LAST] = self.elements(job, Some(w), first, last - first);
            let (j, norms) = (first / inner % kept, (last - 1) / inner - first / inner + 1);
            let (j, norms) = if j + norms <= kept { (j, norms) } else { (0, kept) };
            if norms * scale_bytes > self.capacity {
                let (size, limit) = (kept * scale_bytes, self.capacity);
                return Err(Error::TooLarge { what: "scales in a binding in bytes", size, limit });
            }
            let origin = job.first_scale * scale_bytes;
            let (begin, end) = (origin + j * scale_bytes, origin + (j + norms) * scale_bytes);
            places[OUT] = Some(Place { source: self.source(Source::Scales), origin, begin, end, unit: 8 });
            let words = [octet, octets, inner, kept, step % inner, step / inner % kept, run.ilog2().into(), tail];
            self.push(Kind::Rescale, job, flags, places, words, last - first);
        }
        Ok(())
    }

    /// Dispatches for these items: one for each combination of buffers, more where a limit wants it.
    fn stages(
        &self,
        kind: Kind,
        operator: SetOperator,
        drafts: Vec<Draft>,
        table: &mut Vec<[u32; 16]>,
        stages: &mut Vec<Stage>,
    ) {
        // What an item does not need may be anything.
        let mut groups: Vec<([Option<usize>; SLOTS], bool, Vec<Draft>)> = vec![];
        for draft in drafts {
            let own = draft.places.each_ref().map(|p| p.as_ref().map(|p| p.source));
            let fits =
                |key: &[Option<usize>; SLOTS]| key.iter().zip(&own).all(|(a, b)| a.is_none() || b.is_none() || a == b);
            match groups.iter_mut().find(|(key, quads, _)| *quads == draft.quads && fits(key)) {
                Some((key, _, members)) => {
                    key.iter_mut().zip(own).for_each(|(key, own)| *key = key.or(own));
                    members.push(draft);
                }
                None => groups.push((own, draft.quads, vec![draft])),
            }
        }
        for (_, quads, members) in groups {
            let module = if quads { QUADS } else { WORDS };
            let mut open: Vec<Draft> = vec![];
            let mut reach: [Option<Window>; SLOTS] = Default::default();
            let mut work = 0;
            for draft in members {
                let wider = self.widened(&reach, &draft.places);
                let holds = wider.iter().flatten().all(|w| w.size <= self.gpu.limits().max_storage_buffer_binding_size)
                    && (open.len() as u64) < (self.capacity / ITEM_BYTES).min(self.gpu.capacities().groups)
                    && (!self.gpu.is_gl() || work + draft.work <= GL_WORK);
                if holds || open.is_empty() {
                    reach = wider;
                } else {
                    let all = std::mem::take(&mut open);
                    stages.push(stage(kind, operator, module, self.traits.balanced(all, |d| d.work), reach, table));
                    reach = self.widened(&Default::default(), &draft.places);
                    work = 0;
                }
                work += draft.work;
                open.push(draft);
            }
            if !open.is_empty() {
                stages.push(stage(kind, operator, module, self.traits.balanced(open, |d| d.work), reach, table));
            }
        }
    }

    /// The windows that hold these places too.
    fn widened(&self, windows: &[Option<Window>; SLOTS], places: &Places) -> [Option<Window>; SLOTS] {
        let alignment = u64::from(self.gpu.limits().min_storage_buffer_offset_alignment).max(16);
        let mut wider = windows.clone();
        for (window, place) in wider.iter_mut().zip(places) {
            let Some(place) = place else { continue };
            let begin = place.begin / alignment * alignment;
            let (offset, end) = match window {
                None => (begin, place.end),
                Some(w) => (w.offset.min(begin), (w.offset + w.size).max(place.end)),
            };
            *window = Some(Window { source: place.source, offset, size: end - offset });
        }
        wider
    }
}

/// Closes a dispatch: its items go to the table, with the places that its windows give them.
fn stage(
    kind: Kind,
    operator: SetOperator,
    module: Module,
    drafts: Vec<Draft>,
    windows: [Option<Window>; SLOTS],
    table: &mut Vec<[u32; 16]>,
) -> Stage {
    let dtype = |shift: u32| {
        let mut codes = drafts.iter().map(|d| d.words[0] >> shift & 3);
        let first = codes.next().unwrap_or(0);
        if codes.all(|code| code == first) { first } else { MIXED }
    };
    let mut constants: Constants = vec![];
    if kind != Kind::Finish {
        constants.push(("V_DTYPE", dtype(OF_V)));
    }
    if operator == SetOperator::Backward {
        constants.push(("DOT", 1));
        if kind != Kind::Finish {
            constants.push(("DW_DTYPE", dtype(OF_DW)));
        }
    }
    if kind == Kind::Rescale {
        constants.extend([("W_DTYPE", dtype(OF_W)), ("IN_PLACE", (operator == SetOperator::InPlace).into())]);
    } else if kind != Kind::Columns {
        if kind == Kind::Rows {
            // The words after the first two are those of the kind.
            constants.push(("ONE_LANE", drafts.iter().all(|d| d.words[2 + LANE_BITS] == 0).into()));
        }
        constants.push(("OUT", (operator != SetOperator::RowNorms).into()));
        constants.extend(Some(("GAIN_DTYPE", dtype(OF_GAIN))).filter(|&(_, dtype)| dtype != DType::F32.code()));
    }
    let first = table.len() as u64;
    let (count, work) = (drafts.len() as u64, drafts.iter().map(|d| d.work).sum());
    table.extend(drafts.iter().map(|draft| {
        let mut words = [0; 16];
        for ((word, place), window) in words.iter_mut().zip(&draft.places).zip(&windows) {
            if let (Some(place), Some(window)) = (place, window) {
                // Modulo 2^32: a window may begin behind the origin.
                *word = ((place.origin as i64 - window.offset as i64) / place.unit as i64) as u32;
            }
        }
        words[SLOTS..].copy_from_slice(&draft.words);
        words
    }));
    Stage { kind, module, constants, windows, first, count, work }
}

/// Where the partial sums of norm j lie: first + a_stride * 0 .. a + j_stride * j + 0 .. b.
struct Partial {
    first: u64,
    a: u64,
    a_stride: u64,
    j_stride: u64,
    b: u64,
}

/// Whether one norm's partial sums can be added up by one workgroup.
fn fits(sums: u64) -> bool {
    sums.div_ceil(THREADS) <= MAX_ITERATIONS / 2
}

kernels! {
    SET_ROWS = "weight/set" "set_rows", Some(THREADS), Params,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Write, 5 Write, 6 Write];
    SET_COLUMNS = "weight/set" "set_columns", Some(THREADS), Params, [0 Read, 1 Read, 2 Read, 4 Write];
    SET_FINISH = "weight/set" "set_finish", Some(THREADS), Params, [0 Read, 3 Read, 4 Write, 5 Write, 6 Write];
    SET_RESCALE = "weight/set" "set_rescale", Some(THREADS), Params, [0 Read, 1 Read, 2 Read, 5 Read, 7 Write];
}
