//! The backward pass of w = g·v/n̂: the sums of products, and dv of them.
use crate::arguments::{Arguments, expect_gain, expect_shape};
use crate::binding::View;
use crate::contract::{Layout, norms_shape};
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::norms::{Dot, Form, Job, record_norms};
use crate::weight::rescale::{Action, Rescale, rescale};
use crate::{DType, Eps, Error, Gpu, Recorder, Tensor, WeightNorm, Write};

impl Gpu {
    /// The gradients of [`Gpu::normalize`]. Returns (dv, dg).
    ///
    /// ```text
    /// dg_j = Σ dw·(v/n̂_j)        dv = (g_j/n̂_j)·(dw - dg_j·(v/d_j))
    /// ```
    ///
    /// d is n̂ but under [`Eps::After`], where it is n; where the clamp is active, or n = 0 under [`Eps::After`], the
    /// second term is absent. `dw`: v's shape, any storage type. dv has v's storage type, dg is f32 in the norms' shape
    /// and comes without g too. A zero row gives dg = 0 and dv = g·dw/n̂, under [`Eps::None`] NaN. Reference: PyTorch's
    /// `weight_norm` backward, in the factored form that stays in range.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::Axis`], [`Error::Eps`], [`Error::OtherGpu`], [`Error::Usage`],
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn normalize_backward(&self, dw: &Tensor, weight: WeightNorm<'_>) -> Result<(Tensor, Tensor), Error> {
        let dv = self.zeros(weight.v.shape(), weight.v.dtype())?;
        let dg = self.zeros(&norms_shape(weight.v.shape(), weight.axis), DType::F32)?;
        self.run(|ops| ops.normalize_backward_into(dw, weight, Some(&dv), Some(&dg), Write::Replace))?;
        Ok((dv, dg))
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::normalize_backward`] into `dv`, v's shape and any storage type, and `dg`, any storage type, in
    /// the norms' shape or flat, each if wanted. With known norms ([`WeightNorm::norms`]) they are not computed, but
    /// under [`Eps::After`].
    ///
    /// The dispatches of [`Recorder::row_norms_into`] for the sums of products, beside which norms that are not known
    /// are summed up; one for dv. A dg that is not f32 takes one more, two with [`Write::Add`].
    ///
    /// # Errors
    /// As [`Gpu::normalize_backward`]; [`Error::Alias`], [`Error::Overlap`].
    pub fn normalize_backward_into(
        &mut self,
        dw: &Tensor,
        weight: WeightNorm<'_>,
        dv: Option<&Tensor>,
        dg: Option<&Tensor>,
        write: Write,
    ) -> Result<(), Error> {
        const OP: &str = "normalize_backward";
        weight.check(OP)?;
        let shape = weight.v.shape();
        expect_shape(OP, "dw", dw, shape)?;
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
            .output_onto(write == Write::Add, "dv", dv)
            .output_onto(write == Write::Add, "dg", dg)
            .operations(weight.norms_operations() + (if dv.is_some() { 5 } else { 2 }) * dw.len() as u64)
            .begin(self)?;
        if dv.is_none() && dg.is_none() {
            return Ok(());
        }
        vectors::in_f32(self, (write == Write::Add, true), [dg], |ops, [dg]| {
            gradients_of_weight(ops, dw, weight, dv, dg, write)
        })
    }
}

/// The gradients of checked arguments; dg is f32.
pub(crate) fn gradients_of_weight(
    ops: &mut Recorder<'_, '_>,
    dw: &Tensor,
    weight: WeightNorm<'_>,
    dv: Option<&Tensor>,
    dg: Option<&Tensor>,
    write: Write,
) -> Result<(), Error> {
    let kept = Layout::new(weight.v.shape(), weight.axis)?.wide().kept;
    let scales = View::scratch(ops.scratch(Scratch::Scales, kept * 16)?, 4);
    let add = write == Write::Add;
    // Under [`Eps::After`] the gradients want n, which is not known.
    let known = weight.norms.filter(|_| !matches!(weight.eps, Eps::After(_))).map(View::of);
    let sums = Job {
        v: weight.v,
        axis: weight.axis,
        eps: weight.eps,
        known: None,
        gain: weight.g,
        form: Form::Backward,
        out: scales.clone(),
        norms_too: dg,
        dot: Some(Dot { dw, known, add }),
    };
    record_norms(ops, &sums)?;
    let Some(dv) = dv else { return Ok(()) };
    let action = Action::Backward { dw, scales: &scales, add };
    rescale(ops, &Rescale { action, v: Some(weight.v), w: dv, axis: weight.axis })
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
    record_norms(
        ops,
        &Job {
            v: weight.v,
            axis: weight.axis,
            eps,
            known: None,
            gain: None,
            form: Form::Norms,
            out: out.clone(),
            norms_too: None,
            dot: None,
        },
    )?;
    Ok(out)
}
