//! The backward pass of w = g·v/n̂: the sums of products, and dv of them.
use crate::arguments::{Arguments, expect_gain, expect_shape};
use crate::binding::View;
use crate::choose::Facts;
use crate::contract::{Layout, norms_shape};
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::job::{Action, Job, NormOutput};
use crate::weight::norms::norms_into;
use crate::weight::place::Region;
use crate::weight::record::record;
use crate::{DType, Eps, Error, Gpu, Gradients, Recorder, Tensor, WeightNorm};

/// The gradients of [`Gpu::normalize`], given the dw of a weight. The request of [`Gpu::normalize_backward`] and
/// [`Recorder::normalize_backward`].
///
/// ```text
/// dg_j = Σ dw·(v/n̂_j)        dv = (g_j/n̂_j)·(dw - dg_j·(v/d_j))
/// ```
///
/// - d is n̂ but under [`Eps::After`], where it is n; where the clamp is active, or n = 0 under [`Eps::After`], the
///   second term is absent. A zero row gives dg = 0 and dv = g·dw/n̂, under [`Eps::None`] NaN.
/// - `dw`, `dv`: v's shape. `dg`: shaped as the norms or flat; it comes without g too. Any storage types.
/// - Norms that are known ([`WeightNorm::norms`]) are not computed, but under [`Eps::After`].
/// - Reference: PyTorch's `weight_norm` backward, in the factored form that stays in range.
///
/// # Dispatches
/// - One, where a workgroup can hold the rows: contiguous (kept axis 0, or the whole tensor), of 4096 elements at most,
///   and of 1024 where they fill no whole units (four elements in f32, else eight), in which case a dv that is wanted
///   has to be f32. On a CPU only small tensors.
/// - Else those of the norms ([`WeightNorm`]) for the sums of products, beside which norms that are not known are
///   summed up; one for dv.
/// - A dg that is not f32 takes one more, two with [`Gradients::accumulate`].
///
/// # Errors
/// As [`WeightNorm`].
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct NormalizeBackward<'a> {
    pub(super) dw: &'a Tensor,
    pub(super) weight: WeightNorm<'a>,
}

impl<'a> NormalizeBackward<'a> {
    /// Of a weight whose w has this gradient.
    pub fn new(dw: &'a Tensor, weight: WeightNorm<'a>) -> Self {
        NormalizeBackward { dw, weight }
    }
}

impl Gpu {
    /// `(dv, dg)` of [`NormalizeBackward`]: dv in v's storage type, dg in f32.
    ///
    /// # Errors
    /// As [`NormalizeBackward`].
    pub fn normalize_backward(&self, backward: NormalizeBackward<'_>) -> Result<(Tensor, Tensor), Error> {
        let WeightNorm { v, axis, .. } = backward.weight;
        let dv = self.zeros(v.shape(), v.dtype())?;
        let dg = self.zeros(&norms_shape(v.shape(), axis), DType::F32)?;
        self.run(|ops| ops.normalize_backward(backward, &Gradients::default().dv(&dv).dg(&dg)))?;
        Ok((dv, dg))
    }
}

impl Recorder<'_, '_> {
    /// Records [`NormalizeBackward`] into the wanted ones of `gradients`.
    ///
    /// # Errors
    /// As [`NormalizeBackward`].
    pub fn normalize_backward(
        &mut self,
        backward: NormalizeBackward<'_>,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        const OP: &str = "normalize_backward";
        let NormalizeBackward { dw, weight } = backward;
        let &Gradients { dx, dv, dg, dbias, accumulate, .. } = gradients;
        gradients.expect_none_of_conv(OP)?;
        weight.check(OP)?;
        let shape = weight.v.shape();
        expect_shape(OP, "dw", dw, shape)?;
        Gradients::expect_none(OP, &[("dx", dx), ("dbias", dbias)])?;
        if let Some(dv) = dv {
            expect_shape(OP, "dv", dv, shape)?;
        }
        if let Some(dg) = dg {
            expect_gain(OP, "dg", dg, &norms_shape(shape, weight.axis))?;
        }
        Arguments::new(OP)
            .input("dw", dw)
            .input("v", weight.v)
            .input("g", weight.g)
            .input("norms", weight.norms)
            .output_onto(accumulate, "dv", dv)
            .output_onto(accumulate, "dg", dg)
            .operations(weight.norms_operations() + (if dv.is_some() { 5 } else { 2 }) * dw.len() as u64)
            .begin(self)?;
        if dv.is_none() && dg.is_none() {
            return Ok(());
        }
        vectors::in_f32(self, (accumulate, true), [dg], |ops, [dg]| {
            gradients_of_weight(ops, dw, weight, dv, dg, accumulate)
        })
    }
}

/// Whether [`gradients_of_weight`] takes dw as so many pieces in f32: its sum does not stand in memory then.
pub(crate) fn adds_pieces(
    facts: Facts,
    weight: WeightNorm<'_>,
    dv: Option<&Tensor>,
    pieces: u64,
) -> Result<bool, Error> {
    let job = Job { action: Action::Backward, w: dv, ..Job::new(weight)? };
    Ok(job.held_gradients(facts, None, pieces).is_some())
}

/// The gradients of checked arguments; dg is f32. `dw` has v's shape, or one axis before it, of [`adds_pieces`].
pub(crate) fn gradients_of_weight(
    ops: &mut Recorder<'_, '_>,
    dw: &Tensor,
    weight: WeightNorm<'_>,
    dv: Option<&Tensor>,
    dg: Option<&Tensor>,
    accumulate: bool,
) -> Result<(), Error> {
    // Under [`Eps::After`] the gradients want n, which is not known.
    let known = weight.norms.filter(|_| !matches!(weight.eps, Eps::After(_)));
    let job = Job::new(weight)?;
    let memory = ops.scratch(Scratch::Scales, job.layout.kept * NormOutput::Backward.size())?;
    let job = Job { action: Action::Backward, dw: Some(dw), w: dv, beside: dg, known, ..job };
    record(ops, &job.into_scratch(NormOutput::Backward, &memory), accumulate)
}

/// What the gradients want of the norms: n under [`Eps::After`], else n̂. Known, or in scratch memory.
pub(crate) fn differentiable_norms<'a>(ops: &mut Recorder<'_, '_>, weight: WeightNorm<'a>) -> Result<View<'a>, Error> {
    match (weight.norms, weight.eps) {
        (Some(norms), Eps::None | Eps::InsideSqrt(_) | Eps::Clamp(_)) => Ok(View::of(norms)),
        (_, Eps::After(_)) => norms_in_scratch(ops, weight, Eps::None, 0),
        (None, eps) => norms_in_scratch(ops, weight, eps, 0),
    }
}

/// n̂, known or in scratch memory behind what [`differentiable_norms`] puts there.
pub(crate) fn effective_norms<'a>(
    ops: &mut Recorder<'_, '_>,
    weight: WeightNorm<'a>,
    like: &View<'a>,
) -> Result<View<'a>, Error> {
    match (weight.norms, weight.eps) {
        (Some(norms), _) => Ok(View::of(norms)),
        (None, Eps::After(_)) => norms_in_scratch(ops, weight, weight.eps, 1),
        (None, _) => Ok(like.clone()),
    }
}

fn norms_in_scratch(
    ops: &mut Recorder<'_, '_>,
    weight: WeightNorm<'_>,
    eps: Eps,
    place: u64,
) -> Result<View<'static>, Error> {
    let kept = Layout::new(weight.v.shape(), weight.axis)?.wide().kept;
    let memory = ops.scratch(Scratch::Norms, 2 * kept * 4)?;
    let out = View { offset: place * kept * 4, ..View::scratch(memory, 4) };
    norms_into(ops, WeightNorm { g: None, norms: None, eps, ..weight }, NormOutput::Norms, Region::view(&out))?;
    Ok(out)
}
