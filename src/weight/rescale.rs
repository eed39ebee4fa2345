//! What is done to every element: w from v, dv from dw, a copy, centering. Shaders: `rescale.wgsl`, `held_rows.wgsl`.
use crate::binding::View;
use crate::contract::{Layout, stored_as};
use crate::kernel::Constants;
use crate::weight::cut::{HAS_GAIN, OF_POLICY, unit_of, widest};
use crate::weight::plan::{self, Problem};
use crate::weight::record::{Operands, are_in_quads, record};
use crate::weight::spread::{self, Norms};
use crate::{Axis, Error, Recorder, Tensor, WeightNorm};

/// Something done to every element of a tensor.
pub(crate) struct Rescale<'a> {
    pub action: Action<'a>,
    /// `None` where w is both.
    pub v: Option<&'a Tensor>,
    pub w: &'a Tensor,
    pub axis: Axis,
}

/// ACTION of `rescale.wgsl`.
pub(crate) enum Action<'a> {
    /// w = v
    Copy,
    /// w = g v / n̂, the Scale of each norm.
    Scale(&'a View<'a>),
    /// w, which is dv, = g / n̂ (dw - dg v / d), or what it holds and that; the two Scales of each norm.
    Backward { dw: &'a Tensor, scales: &'a View<'a>, add: bool },
    /// w = v - center + bias, f32.
    Center { centers: &'a View<'a>, bias: Option<&'a View<'a>> },
}

impl<'a> Action<'a> {
    fn dw(&self) -> Option<&'a Tensor> {
        if let Action::Backward { dw, .. } = *self { Some(dw) } else { None }
    }

    /// What is read of each norm, and f32 words of it.
    fn of_norms(&self) -> (Option<&'a View<'a>>, u64) {
        match *self {
            Action::Copy => (None, 2),
            Action::Scale(scales) => (Some(scales), 2),
            Action::Backward { scales, .. } => (Some(scales), 4),
            Action::Center { centers, .. } => (Some(centers), 1),
        }
    }

    fn bias(&self) -> Option<&'a View<'a>> {
        if let Action::Center { bias, .. } = *self { bias } else { None }
    }

    fn constants(&self, in_place: bool) -> Constants {
        match self {
            Action::Scale(_) if in_place => vec![("ACTION", 0), ("IN_PLACE", 1)],
            Action::Scale(_) => vec![("ACTION", 0)],
            Action::Backward { add, .. } => vec![("ACTION", 1), ("ADD", (*add).into())],
            Action::Copy => vec![("ACTION", 2)],
            Action::Center { .. } => vec![("ACTION", 3)],
        }
    }
}

/// Records it.
pub(crate) fn rescale(ops: &mut Recorder<'_, '_>, job: &Rescale<'_>) -> Result<(), Error> {
    let Rescale { action, v, w, axis } = job;
    let (dw, (of_norms, words)) = (action.dw(), action.of_norms());
    let types = [v.map(Tensor::dtype), dw.map(Tensor::dtype), Some(w.dtype())];
    let problem = Problem {
        layout: Layout::new(w.shape(), *axis)?.wide(),
        widest: widest(&types),
        unit: unit_of(&types),
        norm_bytes: 4 * words,
        sum_bytes: 8,
        target: None,
        first_sum: 0,
    };
    let norms = if of_norms.is_some() { Norms::Read } else { Norms::Ignored };
    let cuts = spread::rescale(ops.facts(), &problem, norms)?;
    record(
        ops,
        &Operands {
            v: *v,
            dw,
            w: Some(w),
            gain: action.bias().cloned(),
            sums: None,
            out: of_norms.cloned(),
            words,
            beside: None,
            known: None,
            in_quads: are_in_quads(v.iter().copied().chain(dw).chain([*w])),
            flags: if action.bias().is_some() { HAS_GAIN } else { 0 },
            eps: 0.0,
            constants: action.constants(v.is_none()),
        },
        &cuts,
    )
}

/// `to` = `from`, rounded to its storage type.
pub(crate) fn copy(ops: &mut Recorder<'_, '_>, from: &Tensor, to: &Tensor) -> Result<(), Error> {
    rescale(ops, &Rescale { action: Action::Copy, v: Some(from), w: to, axis: Axis::Whole })
}

/// y = t - centers + bias, one of each for an index of the last axis.
pub(crate) fn center(
    ops: &mut Recorder<'_, '_>,
    t: &Tensor,
    centers: &View<'_>,
    bias: Option<&View<'_>>,
    y: &Tensor,
) -> Result<(), Error> {
    let action = Action::Center { centers, bias };
    rescale(ops, &Rescale { action, v: Some(t), w: y, axis: Axis::Kept(t.shape().len() - 1) })
}

/// Norm and rescaling of a checked weight in one dispatch, if that can be: whether it was recorded. Without v it is w.
pub(crate) fn held_rows(
    ops: &mut Recorder<'_, '_>,
    weight: WeightNorm<'_>,
    v: Option<&Tensor>,
    w: &Tensor,
) -> Result<bool, Error> {
    let in_quads = are_in_quads(v.into_iter().chain([w]));
    if weight.norms.is_some() || !in_quads || v.is_some_and(|v| v.dtype() != w.dtype()) {
        return Ok(false);
    }
    let problem = Problem {
        layout: Layout::new(w.shape(), weight.axis)?.wide(),
        widest: w.dtype().size(),
        unit: unit_of(&[Some(w.dtype())]),
        norm_bytes: 4,
        sum_bytes: 8,
        target: None,
        first_sum: 0,
    };
    let Some(cuts) = plan::held_rows(ops.facts(), &problem, w.dtype()) else { return Ok(false) };
    let mut constants: Constants = vec![("IN_PLACE", v.is_none().into())];
    constants.extend(stored_as("GAIN_DTYPE", weight.g));
    record(
        ops,
        &Operands {
            v,
            dw: None,
            w: Some(w),
            gain: weight.g.map(View::of),
            sums: None,
            out: None,
            words: 1,
            beside: None,
            known: None,
            in_quads,
            flags: weight.eps.code() << OF_POLICY | if weight.g.is_some() { HAS_GAIN } else { 0 },
            eps: weight.eps.value(),
            constants,
        },
        &cuts,
    )?;
    Ok(true)
}
