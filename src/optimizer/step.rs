//! One optimizer step: what is checked, and its dispatches.
use crate::arguments::{Arguments, expect_dtype, expect_shape};
use crate::binding::{Span, View, offsets};
use crate::choose::{self, Facts, lanes_for};
use crate::contract::{Layout, stored_as};
use crate::kernel::{Constants, Kernel, kernels, params};
use crate::record::Dispatch;
use crate::source::Module;
use crate::windows::{Capacities, windows};
use crate::{ArgumentError, Axis, DType, Eps, Error, Recorder, Tensor, WeightNorm};

const ONE_BY_ONE: Module = Module::new("optimizer/words");
const QUADS: Module = Module::new("optimizer/quads");
pub(crate) const MODULES: [Module; 2] = [ONE_BY_ONE, QUADS];

params! {
    pub(crate) struct OptimizerParams {
        v_count: u32,
        g_count: u32,
        length: u32,
        offsets: u32,
        more_offsets: u32,
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
}

kernels! {
    OPTIMIZER = "optimizer/words" "optimizer", Some(THREADS), OptimizerParams,
        [0 Write, 1 Read, 2 Write, 3 Write, 4 Write, 5 Read, 6 Write, 7 Write];
    OPTIMIZER_ROWS = "optimizer/words" "optimizer_rows", Some(THREADS), OptimizerParams,
        [0 Write, 1 Read, 2 Write, 3 Write, 4 Write, 5 Read, 6 Write, 7 Write];
    OPTIMIZER_QUADS = "optimizer/quads" "optimizer_quads", Some(THREADS), OptimizerParams,
        [0 Write, 1 Read, 2 Write, 3 Write, 4 Write, 5 Read, 6 Write, 7 Write];
}

/// Invocations in a workgroup of `optimizer/steps.wgsl`.
const THREADS: u64 = 64;
/// Words of v or g for a workgroup.
const WORDS: u64 = 4 * THREADS;
/// The longest row that one workgroup steps and projects, in words. Longer ones are projected by more workgroups each,
/// in dispatches of their own. Far below what `MAX_ITERATIONS` would allow for the three loops over a row.
const MAX_ROW_WORDS: u64 = 16_384;

/// RULE of `optimizer/steps.wgsl`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    Sgd,
    Momentum,
    Nesterov,
    Adam,
    AdamW,
}

impl Rule {
    /// Operations on each parameter.
    fn operations(self) -> u64 {
        match self {
            Rule::Sgd => 4,
            Rule::Momentum => 6,
            Rule::Nesterov => 8,
            Rule::Adam => 15,
            Rule::AdamW => 14,
        }
    }
}

/// A step: `direction` is normalized after it.
pub(crate) struct OptimizerStep<'a> {
    pub v: SteppedTensor<'a>,
    pub g: Option<SteppedTensor<'a>>,
    pub direction: Option<(Axis, Eps)>,
    pub rule: Rule,
    pub params: OptimizerParams,
}

/// One tensor that is changed, with all that belongs to it.
#[derive(Clone, Copy)]
pub(crate) struct SteppedTensor<'a> {
    pub value: &'a Tensor,
    pub gradient: &'a Tensor,
    pub first: Option<&'a Tensor>,
    pub second: Option<&'a Tensor>,
}

pub(crate) fn record(ops: &mut Recorder<'_, '_>, op: &'static str, step: &OptimizerStep<'_>) -> Result<(), Error> {
    step.begin(op, ops)?;
    let v = step.v.value;
    let rows = match step.direction {
        // Where two passes cost more than two dispatches they are not one.
        Some((axis, eps)) if ops.facts().traits.projects_at_once(v.len() as u64) || !step.in_quads() => {
            step.rows(ops.facts().capacities, Layout::new(v.shape(), axis)?.wide()).map(|length| (length, eps))
        }
        _ => None,
    };
    steps(ops, step, rows)?;
    match step.direction {
        Some((axis, eps)) if rows.is_none() => {
            ops.nested(|ops| ops.normalize_in_place(WeightNorm::unit(v).axis(axis).eps(eps)))
        }
        _ => Ok(()),
    }
}

/// The dispatches over v and g; v in rows of a length, which are projected, or as it is.
fn steps(ops: &mut Recorder<'_, '_>, step: &OptimizerStep<'_>, rows: Option<(u64, Eps)>) -> Result<(), Error> {
    let Facts { traits, capacities } = ops.facts();
    let OptimizerStep { v, g, rule, params, .. } = step;
    let v_dtype = v.value.dtype();
    let mut constants: Constants =
        vec![("RULE", *rule as u32), ("V_DTYPE", v_dtype.code()), ("DV_DTYPE", v.gradient.dtype().code())];
    constants.extend(stored_as("G_DTYPE", g.map(|g| g.value)));
    constants.extend(stored_as("DG_DTYPE", g.map(|g| g.gradient)));
    let g_in_group = WORDS * g.map_or(1, |g| g.value.dtype().per_word());
    // What one task is: an element of v, or a row.
    let quads = rows.is_none() && step.in_quads();
    let (kernel, module, length): (&'static Kernel, Module, u64) = match rows {
        None if quads => (&OPTIMIZER_QUADS, QUADS, 1),
        None => (&OPTIMIZER, ONE_BY_ONE, 1),
        Some((length, _)) => (&OPTIMIZER_ROWS, ONE_BY_ONE, length),
    };
    if quads {
        constants.push(("RUN", traits.run(THREADS) as u32));
    }
    let (v_in_group, params) = match rows {
        None if quads => (WORDS * choose::quad(v_dtype), *params),
        None => (WORDS * v_dtype.per_word(), *params),
        Some((length, eps)) => {
            let lanes = lanes_for(length / v_dtype.per_word());
            constants.extend([("LANES", lanes as u32), ("POLICY", eps.code())]);
            (THREADS / lanes, OptimizerParams { length: length as u32, norm_eps: eps.value(), ..*params })
        }
    };
    // Half of the workgroups for v, half for g. The state needs the largest bindings.
    let half = Capacities { groups: (capacities.groups / 2).max(1), ..capacities };
    let v_step = half.step().bound(length * DType::F32.size()).in_groups(v_in_group).work(length).get();
    // Windows meet at whole quads.
    let v_step = if rows.is_none() { v_step / 8 * 8 } else { v_step };
    // And at whole words.
    let g_step = half.step().bound(DType::F32.size()).in_groups(g_in_group).work(1).get();
    let g_step = (g_step / 2 * 2).max(2);
    let mut v_windows = windows(v.value.len() as u64 / length, v_step);
    let mut g_windows = windows(g.map_or(0, |g| g.value.len() as u64), g_step);
    loop {
        let (v_window, g_window) = (v_windows.next(), g_windows.next());
        if v_window.is_none() && g_window.is_none() {
            return Ok(());
        }
        let ((v_begin, v_count), (g_begin, g_count)) = (v_window.unwrap_or_default(), g_window.unwrap_or_default());
        let (v, v_offsets) = v.bind(capacities, v_begin * length, v_count * length);
        let (g, g_offsets) = match g {
            Some(g) => g.bind(capacities, g_begin, g_count),
            None => ([None, None, None, None], 0),
        };
        ops.dispatch(&Dispatch {
            kernel,
            module,
            constants: &constants,
            buffers: &[v, g].concat(),
            params: OptimizerParams {
                v_count: v_count as u32,
                g_count: g_count as u32,
                offsets: v_offsets,
                more_offsets: g_offsets,
                ..params
            },
            groups: v_count.div_ceil(v_in_group) + g_count.div_ceil(g_in_group),
            work: v_count * length + g_count,
        })?;
    }
}

impl<'a> SteppedTensor<'a> {
    /// `count` elements from `first` on of each of its tensors, and the places of the first ones.
    fn bind(&self, capacities: Capacities, first: u64, count: u64) -> ([Option<Span<'a>>; 4], u32) {
        let of = |tensor: Option<&'a Tensor>| tensor.map_or((None, 0), |t| View::of(t).bind(capacities, first, count));
        let bound = [Some(self.value), Some(self.gradient), self.first, self.second].map(of);
        let places = offsets([bound[0].1, bound[1].1, bound[2].1, bound[3].1]);
        (bound.map(|(span, _)| span), places)
    }
}

impl OptimizerStep<'_> {
    fn begin(&self, op: &'static str, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        if let Some((axis, eps)) = self.direction {
            Layout::new(self.v.value.shape(), axis)?;
            eps.check()?;
        }
        let SteppedTensor { value: v, gradient: dv, .. } = self.v;
        expect_shape(op, "dv", dv, v.shape())?;
        if dv.dtype() != DType::F32 {
            expect_dtype(op, "dv", dv, v.dtype())?;
        }
        let mut arguments = Arguments::new(op).input("dv", dv).output_onto(true, "v", v);
        let mut like = vec![(v, "m of v", self.v.first), (v, "s of v", self.v.second)];
        if let Some(SteppedTensor { value: g, gradient: dg, first, second }) = self.g {
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
                return Err(ArgumentError::Shape { op, arg, got: tensor.shape().to_vec(), expected }.into());
            }
            if arg != "dg" {
                arguments = arguments.output_onto(true, arg, tensor);
            }
        }
        let parameters = (v.len() + self.g.as_ref().map_or(0, |g| g.value.len())) as u64;
        let projected = if self.direction.is_some() { 3 * v.len() as u64 } else { 0 };
        arguments.operations(self.rule.operations() * parameters + projected).begin(ops)
    }

    /// Whether v can be stepped four words at once.
    fn in_quads(&self) -> bool {
        let SteppedTensor { value: v, gradient: dv, first, second } = self.v;
        let aligned = [first, second].into_iter().flatten().all(|state| choose::in_quads([state], 4));
        aligned && choose::in_quads([v, dv], v.len() as u64)
    }

    /// The length of the rows, where one workgroup can step and direction each: they are contiguous, not too long, and
    /// share no word, and a binding holds one of them in f32, as the state has it.
    fn rows(&self, capacities: Capacities, layout: Layout<u64>) -> Option<u64> {
        let Layout { outer, inner, .. } = layout;
        let per_word = self.v.value.dtype().per_word();
        let whole = outer == 1 && inner > 0 && inner.is_multiple_of(per_word);
        let in_binding = capacities.bound(DType::F32.size());
        (whole && inner / per_word <= MAX_ROW_WORDS && inner <= in_binding).then_some(inner)
    }
}
