//! Optimizer steps on a direction and a gain together. Shader: `optimizer.wgsl`.
use bytemuck::{Pod, Zeroable};

use crate::choose;
use crate::contract::{Layout, stored_as};
use crate::kernel::{self, Constants, Kernel};
use crate::norms::{lanes_for, windows};
use crate::record::{Arguments, Dispatch, Span, View, expect_dtype, expect_shape, firsts};
use crate::source::Module;
use crate::{Adam, Axis, DType, Eps, Error, Gpu, Group, Recorder, Sgd, Tensor, WeightNorm};

const ONE_BY_ONE: Module = Module::new("optimizer/words");
const QUADS: Module = Module::new("optimizer/quads");
pub(crate) const MODULES: [Module; 2] = [ONE_BY_ONE, QUADS];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    v_count: u32,
    g_count: u32,
    length: u32,
    firsts: u32,
    more_firsts: u32,
    first_step: u32,
    v_rate: f32,
    v_decay: f32,
    g_rate: f32,
    g_decay: f32,
    inertia: f32,
    fresh: f32,
    fresh_square: f32,
    root: f32,
    eps: f32,
    norm_eps: f32,
}

/// Invocations in a workgroup of `optimizer.wgsl`.
const THREADS: u64 = 64;
/// Words of v or g for a workgroup.
const WORDS: u64 = 4 * THREADS;
/// The longest row that one workgroup steps and projects, in words. Longer ones are projected by more workgroups each,
/// in dispatches of their own. Far below what `MAX_ITERATIONS` would allow for the three loops over a row.
const MAX_ROW_WORDS: u64 = 16_384;

/// What an optimizer step changes: a direction v and, with it, a gain g; or an ordinary weight or a bias in v's place.
///
/// ```text
/// let weight = Trainable::new(&v, &dv).gain(&g, &dg);
/// let bias = Trainable::new(&bias, &dbias);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Trainable<'a> {
    v: &'a Tensor,
    dv: &'a Tensor,
    gain: Option<(&'a Tensor, &'a Tensor)>,
    project: Option<(Axis, Eps)>,
}

impl<'a> Trainable<'a> {
    /// `v`: any shape and storage type. `dv`, its gradient: the same shape, f32 or v's storage type.
    pub fn new(v: &'a Tensor, dv: &'a Tensor) -> Self {
        Trainable { v, dv, gain: None, project: None }
    }

    /// A gain, of any storage type, and its gradient, f32 or the gain's storage type, with as many elements as each other.
    pub fn gain(self, g: &'a Tensor, dg: &'a Tensor) -> Self {
        Trainable { gain: Some((g, dg)), ..self }
    }

    /// After the step v ← v/n̂, rows of norm 1, which leaves w = g·v/n̂ where it was. A zero row stays, but becomes NaN
    /// under [`Eps::None`]. The optimizer's state is not touched.
    pub fn project(self, axis: Axis, eps: Eps) -> Self {
        Trainable { project: Some((axis, eps)), ..self }
    }
}

/// What [`Gpu::sgd_step`] remembers where there is momentum: m of v and of g. f32, as many elements as v and g.
#[derive(Debug, Clone, Default)]
pub struct SgdState {
    /// m of v.
    pub v: Option<Tensor>,
    /// m of g.
    pub g: Option<Tensor>,
}

/// What [`Gpu::adam_step`] remembers.
#[derive(Debug, Clone)]
pub struct AdamState {
    /// Of v.
    pub v: Moments,
    /// Of g.
    pub g: Option<Moments>,
}

/// Running means of the gradient and of its square: f32, as many elements as the parameter, zeros before the first
/// step.
#[derive(Debug, Clone)]
pub struct Moments {
    /// m
    pub first: Tensor,
    /// s
    pub second: Tensor,
}

impl Moments {
    fn zeros(gpu: &Gpu, parameter: &Tensor) -> Result<Moments, Error> {
        let zeros = || gpu.zeros(parameter.shape(), DType::F32);
        Ok(Moments { first: zeros()?, second: zeros()? })
    }
}

/// KIND of `optimizer.wgsl`.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sgd,
    Momentum,
    Nesterov,
    Adam,
    AdamW,
}

impl Kind {
    /// Operations on each parameter.
    fn operations(self) -> u64 {
        match self {
            Kind::Sgd => 4,
            Kind::Momentum => 6,
            Kind::Nesterov => 8,
            Kind::Adam => 15,
            Kind::AdamW => 14,
        }
    }
}

/// A checked step.
struct Step<'a> {
    v: Parameter<'a>,
    g: Option<Parameter<'a>>,
    project: Option<(Axis, Eps)>,
    kind: Kind,
    params: Params,
}

/// One tensor that is changed, with all that belongs to it.
#[derive(Clone, Copy)]
struct Parameter<'a> {
    value: &'a Tensor,
    gradient: &'a Tensor,
    first: Option<&'a Tensor>,
    second: Option<&'a Tensor>,
}

impl Gpu {
    /// Zeros for [`Gpu::sgd_step`] with momentum, as many as v and g have elements.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn sgd_state(&self, v: &Tensor, g: Option<&Tensor>) -> Result<SgdState, Error> {
        let zeros = |parameter: &Tensor| self.zeros(parameter.shape(), DType::F32);
        Ok(SgdState { v: Some(zeros(v)?), g: g.map(zeros).transpose()? })
    }

    /// Zeros for [`Gpu::adam_step`], as many as v and g have elements.
    ///
    /// # Errors
    /// As [`Gpu::sgd_state`].
    pub fn adam_state(&self, v: &Tensor, g: Option<&Tensor>) -> Result<AdamState, Error> {
        let g = g.map(|g| Moments::zeros(self, g)).transpose()?;
        Ok(AdamState { v: Moments::zeros(self, v)?, g })
    }

    /// One step of stochastic gradient descent in place, on v and g together; the formulas stand at [`Sgd`].
    ///
    /// v and g: f32, f16 or bf16; dv and dg: f32 or the storage type of v and g; the state: f32. `step` counts from 1. The state is
    /// needed where `sgd.momentum` is not 0; the first step does not read it. Reference: `torch.optim.SGD`.
    ///
    /// # Errors
    /// [`Error::Missing`] without a state that is needed; [`Error::Step`] for step 0; [`Error::Number`] for a rate,
    /// decay, momentum, β or ε out of its range ([`Sgd`], [`Adam`]); [`Error::Shape`] or [`Error::DType`] if the tensors do not fit; [`Error::Alias`], [`Error::Overlap`], [`Error::Axis`],
    /// [`Error::Eps`], [`Error::OtherGpu`], [`Error::Usage`], [`Error::TooLarge`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn sgd_step(&self, weight: Trainable<'_>, state: &SgdState, step: u64, sgd: &Sgd) -> Result<(), Error> {
        self.run(|ops| ops.sgd_step(weight, state, step, sgd))
    }

    /// One step of Adam or AdamW in place, on v and g together; the formulas stand at [`Adam`].
    ///
    /// v and g: f32, f16 or bf16; dv and dg: f32 or the storage type of v and g; the state: f32. `step` is t, which counts from 1.
    /// Reference: `torch.optim.Adam` and `torch.optim.AdamW`. A d below 1e-19 counts as zero in s, and one beyond 1e19
    /// as infinite, which leaves θ where it is.
    ///
    /// # Errors
    /// As [`Gpu::sgd_step`].
    pub fn adam_step(&self, weight: Trainable<'_>, state: &AdamState, step: u64, adam: &Adam) -> Result<(), Error> {
        self.run(|ops| ops.adam_step(weight, state, step, adam))
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::sgd_step`].
    ///
    /// One dispatch. With [`Trainable::project`] it does the projection too where the rows are contiguous (kept axis 0),
    /// of at most 16,384 words (two elements each of a packed type), and none ends within a word or is longer than a binding. Else, and on a CPU where
    /// that is faster, those of [`Recorder::normalize_in_place`] follow. More past the limits of a binding or a dispatch.
    ///
    /// # Errors
    /// As [`Gpu::sgd_step`].
    pub fn sgd_step(&mut self, weight: Trainable<'_>, state: &SgdState, step: u64, sgd: &Sgd) -> Result<(), Error> {
        const OP: &str = "sgd_step";
        sgd.check(OP, step)?;
        let kind = match sgd {
            Sgd { momentum: 0.0, .. } => Kind::Sgd,
            Sgd { nesterov: true, .. } => Kind::Nesterov,
            _ => Kind::Momentum,
        };
        let needed = kind != Kind::Sgd;
        let m_v = state.v.as_ref().filter(|_| needed);
        let m_g = state.g.as_ref().filter(|_| needed);
        expect_state(OP, "the state of v", needed, m_v)?;
        expect_state(OP, "the state of g", needed && weight.gain.is_some(), m_g)?;
        let params = Params {
            first_step: (step == 1).into(),
            v_rate: sgd.v.rate as f32,
            v_decay: sgd.v.weight_decay as f32,
            g_rate: sgd.g.rate as f32,
            g_decay: sgd.g.weight_decay as f32,
            inertia: sgd.momentum as f32,
            fresh: sgd.into_momentum(step) as f32,
            ..Params::zeroed()
        };
        let v = Parameter { value: weight.v, gradient: weight.dv, first: m_v, second: None };
        let g = weight.gain.map(|(value, gradient)| Parameter { value, gradient, first: m_g, second: None });
        self.step(OP, &Step { v, g, project: weight.project, kind, params })
    }

    /// Records [`Gpu::adam_step`]. The dispatches are those of [`Recorder::sgd_step`].
    ///
    /// # Errors
    /// As [`Gpu::adam_step`].
    pub fn adam_step(&mut self, weight: Trainable<'_>, state: &AdamState, step: u64, adam: &Adam) -> Result<(), Error> {
        const OP: &str = "adam_step";
        adam.check(OP, step)?;
        expect_state(OP, "the state of g", weight.gain.is_some(), state.g.as_ref())?;
        let (correction, root) = adam.corrections(step);
        let decay = |group: Group| match adam.decoupled {
            true => 1.0 - group.rate * group.weight_decay,
            false => group.weight_decay,
        };
        let params = Params {
            v_rate: (adam.v.rate / correction) as f32,
            v_decay: decay(adam.v) as f32,
            g_rate: (adam.g.rate / correction) as f32,
            g_decay: decay(adam.g) as f32,
            fresh: (1.0 - adam.beta1) as f32,
            fresh_square: (1.0 - adam.beta2) as f32,
            root: root as f32,
            eps: adam.eps as f32,
            ..Params::zeroed()
        };
        let v = Parameter::new((weight.v, weight.dv), &state.v);
        let g = weight.gain.zip(state.g.as_ref()).map(|(gain, moments)| Parameter::new(gain, moments));
        let kind = if adam.decoupled { Kind::AdamW } else { Kind::Adam };
        self.step(OP, &Step { v, g, project: weight.project, kind, params })
    }

    fn step(&mut self, op: &'static str, step: &Step<'_>) -> Result<(), Error> {
        step.begin(op, self)?;
        let v = step.v.value;
        let rows = match step.project {
            // Where two passes cost more than two dispatches they are not one.
            Some((axis, eps)) if self.gpu().traits().projects_at_once(v.len() as u64) || !step.in_quads() => {
                step.rows(self.gpu(), Layout::new(v.shape(), axis)?.wide()).map(|length| (length, eps))
            }
            _ => None,
        };
        self.steps(step, rows)?;
        match step.project {
            Some((axis, eps)) if rows.is_none() => {
                self.nested(|ops| ops.normalize_in_place(WeightNorm::unit(v).axis(axis).eps(eps)))
            }
            _ => Ok(()),
        }
    }

    /// The dispatches over v and g; v in rows of a length, which are projected, or as it is.
    fn steps(&mut self, step: &Step<'_>, rows: Option<(u64, Eps)>) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        let Step { v, g, kind, params, .. } = step;
        let v_dtype = v.value.dtype();
        let mut constants: Constants =
            vec![("KIND", *kind as u32), ("V_DTYPE", v_dtype.code()), ("DV_DTYPE", v.gradient.dtype().code())];
        constants.extend(stored_as("G_DTYPE", g.map(|g| g.value)));
        constants.extend(stored_as("DG_DTYPE", g.map(|g| g.gradient)));
        let g_in_group = WORDS * g.map_or(1, |g| g.value.dtype().per_word());
        // What one task is: an element of v, or a row.
        let quads = rows.is_none() && step.in_quads();
        let (kernel, module, length): (&'static Kernel, Module, u64) = match rows {
            None if quads => (&kernel::OPTIMIZER_QUADS, QUADS, 1),
            None => (&kernel::OPTIMIZER, ONE_BY_ONE, 1),
            Some((length, _)) => (&kernel::OPTIMIZER_ROWS, ONE_BY_ONE, length),
        };
        if quads {
            constants.push(("RUN", gpu.traits().run(THREADS) as u32));
        }
        let (v_in_group, params) = match rows {
            None if quads => (WORDS * choose::quad(v_dtype), *params),
            None => (WORDS * v_dtype.per_word(), *params),
            Some((length, eps)) => {
                let lanes = lanes_for(length / v_dtype.per_word());
                constants.extend([("LANES", lanes as u32), ("POLICY", eps.code())]);
                (THREADS / lanes, Params { length: length as u32, norm_eps: eps.value(), ..*params })
            }
        };
        // Half of the workgroups for v, half for g. The state needs the largest bindings.
        let in_binding = gpu.binding_capacity() / DType::F32.size();
        let groups = (gpu.group_capacity() / 2).max(1);
        let v_step = (in_binding / length).min(groups * v_in_group).min(self.work_capacity(length));
        // Windows meet at whole quads.
        let v_step = if rows.is_none() { v_step / 8 * 8 } else { v_step };
        // And at whole words.
        let g_step = (in_binding.min(groups * g_in_group).min(self.work_capacity(1)) / 2 * 2).max(2);
        let mut v_windows = windows(v.value.len() as u64 / length, v_step);
        let mut g_windows = windows(g.map_or(0, |g| g.value.len() as u64), g_step);
        loop {
            let (v_window, g_window) = (v_windows.next(), g_windows.next());
            if v_window.is_none() && g_window.is_none() {
                return Ok(());
            }
            let ((v_begin, v_count), (g_begin, g_count)) = (v_window.unwrap_or_default(), g_window.unwrap_or_default());
            let (v, v_firsts) = v.bind(&gpu, v_begin * length, v_count * length);
            let (g, g_firsts) = match g {
                Some(g) => g.bind(&gpu, g_begin, g_count),
                None => ([None, None, None, None], 0),
            };
            self.dispatch(&Dispatch {
                kernel,
                module,
                constants: &constants,
                buffers: &[v, g].concat(),
                params: Params {
                    v_count: v_count as u32,
                    g_count: g_count as u32,
                    firsts: v_firsts,
                    more_firsts: g_firsts,
                    ..params
                },
                groups: v_count.div_ceil(v_in_group) + g_count.div_ceil(g_in_group),
                work: v_count * length + g_count,
            })?;
        }
    }
}

fn expect_state<T>(op: &'static str, arg: &'static str, needed: bool, state: Option<T>) -> Result<(), Error> {
    if needed && state.is_none() { Err(Error::Missing { op, arg }) } else { Ok(()) }
}

impl<'a> Parameter<'a> {
    fn new((value, gradient): (&'a Tensor, &'a Tensor), moments: &'a Moments) -> Self {
        Parameter { value, gradient, first: Some(&moments.first), second: Some(&moments.second) }
    }

    /// `count` elements from `first` on of each of its tensors, and the places of the first ones.
    fn bind(&self, gpu: &Gpu, first: u64, count: u64) -> ([Option<Span<'a>>; 4], u32) {
        let of = |tensor: Option<&'a Tensor>| tensor.map_or((None, 0), |t| View::of(t).bind(gpu, first, count));
        let bound = [Some(self.value), Some(self.gradient), self.first, self.second].map(of);
        let places = firsts([bound[0].1, bound[1].1, bound[2].1, bound[3].1]);
        (bound.map(|(span, _)| span), places)
    }
}

impl Step<'_> {
    fn begin(&self, op: &'static str, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        if let Some((axis, eps)) = self.project {
            Layout::new(self.v.value.shape(), axis)?;
            eps.check()?;
        }
        let Parameter { value: v, gradient: dv, .. } = self.v;
        expect_shape(op, "dv", dv, v.shape())?;
        if dv.dtype() != DType::F32 {
            expect_dtype(op, "dv", dv, v.dtype())?;
        }
        let mut arguments = Arguments::new(op).input("dv", dv).output_onto(true, "v", v);
        let mut like = vec![(v, "m of v", self.v.first), (v, "s of v", self.v.second)];
        if let Some(Parameter { value: g, gradient: dg, first, second }) = self.g {
            arguments = arguments.input("dg", dg).output_onto(true, "g", g);
            if dg.dtype() != DType::F32 {
                expect_dtype(op, "dg", dg, g.dtype())?;
            }
            like.extend([(g, "dg", Some(dg)), (g, "m of g", first), (g, "s of g", second)]);
        }
        for (parameter, arg, tensor) in like {
            let Some(tensor) = tensor else { continue };
            if arg != "dg" {
                expect_dtype(op, arg, tensor, DType::F32)?;
            }
            if tensor.len() != parameter.len() {
                let expected = format!("{:?}, or as many elements", parameter.shape());
                return Err(Error::Shape { op, arg, got: tensor.shape().to_vec(), expected });
            }
            if arg != "dg" {
                arguments = arguments.output_onto(true, arg, tensor);
            }
        }
        let parameters = (v.len() + self.g.as_ref().map_or(0, |g| g.value.len())) as u64;
        let projected = if self.project.is_some() { 3 * v.len() as u64 } else { 0 };
        arguments.operations(self.kind.operations() * parameters + projected).begin(ops)
    }

    /// Whether v can be stepped four words at once.
    fn in_quads(&self) -> bool {
        let Parameter { value: v, gradient: dv, first, second } = self.v;
        let aligned = [first, second].into_iter().flatten().all(|state| choose::in_quads([state], 4));
        aligned && choose::in_quads([v, dv], v.len() as u64)
    }

    /// The length of the rows, where one workgroup can step and project each: they are contiguous, not too long, and
    /// share no word, and a binding holds one of them in f32, as the state has it.
    fn rows(&self, gpu: &Gpu, layout: Layout<u64>) -> Option<u64> {
        let Layout { outer, inner, .. } = layout;
        let per_word = self.v.value.dtype().per_word();
        let whole = outer == 1 && inner > 0 && inner.is_multiple_of(per_word);
        let in_binding = gpu.binding_capacity() / DType::F32.size();
        (whole && inner / per_word <= MAX_ROW_WORDS && inner <= in_binding).then_some(inner)
    }
}
