//! Row norms: n̂_j = eps policy of sqrt(Σ v²) over all axes but one, and the sums Σ dw·v of the backward pass.
use crate::arguments::{Arguments, expect_per_norm};
use crate::binding::View;
use crate::contract::{Layout, norms_shape};
use crate::memory::Scratch;
use crate::weight::job::{Form, Job};
use crate::weight::place::Region;
use crate::weight::record::record;
use crate::{Axis, DType, Eps, Error, Gpu, Recorder, Tensor, WeightNorm, Write};

impl Gpu {
    /// The effective norms n̂ of `v`, one f32 for each index of the kept axis. With [`Eps::None`] the norms themselves.
    ///
    /// ```text
    /// n_j = sqrt( Σ_{o,i} v[o,j,i]² )        n̂_j = eps policy of n_j
    /// ```
    ///
    /// `v`: any shape and storage type. Returns the shape of `v` with ones everywhere but at the kept axis.
    /// Right for any finite `v` whose norm an f32 holds; NaN and infinity stay in their row. Reference: PyTorch's
    /// `torch.linalg.vector_norm` and `_weight_norm_interface`.
    ///
    /// # Errors
    /// [`Error::Axis`], [`Error::Eps`], [`Error::OtherGpu`], [`Error::Usage`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn row_norms(&self, v: &Tensor, axis: Axis, eps: Eps) -> Result<Tensor, Error> {
        let norms = self.zeros(&norms_shape(v.shape(), axis), DType::F32)?;
        self.run(|ops| ops.row_norms_into(v, axis, eps, &norms))?;
        Ok(norms)
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::row_norms`] into `norms`: f32, of the shape returned there or flat.
    ///
    /// One dispatch, two where rows are split over workgroups or are not contiguous, more past a binding's or a
    /// dispatch's limit.
    ///
    /// # Errors
    /// As [`Gpu::row_norms`]; [`Error::Shape`], [`Error::DType`], [`Error::Alias`].
    pub fn row_norms_into(&mut self, v: &Tensor, axis: Axis, eps: Eps, norms: &Tensor) -> Result<(), Error> {
        const OP: &str = "row_norms";
        Layout::new(v.shape(), axis)?;
        eps.check()?;
        expect_per_norm(OP, "norms", norms, &norms_shape(v.shape(), axis))?;
        Arguments::new(OP).input("v", v).output("norms", norms).operations(2 * v.len() as u64).begin(self)?;
        norms_into(self, WeightNorm::unit(v).axis(axis).eps(eps), Form::Norms, Region::of(norms))
    }
}

/// Records the norms of a checked weight, known ones too.
pub(crate) fn norms_into(
    ops: &mut Recorder<'_, '_>,
    weight: WeightNorm<'_>,
    form: Form,
    out: Region,
) -> Result<(), Error> {
    record(ops, &Job { g: None, form, out: Some(out), ..Job::new(weight)? }, Write::Replace)
}

/// The same in scratch memory, as scales or wide numbers, and the norms beside.
pub(crate) fn scales(
    ops: &mut Recorder<'_, '_>,
    weight: WeightNorm<'_>,
    form: Form,
    beside: Option<&Tensor>,
) -> Result<View<'static>, Error> {
    let job = Job::new(weight)?;
    let memory = ops.scratch(Scratch::Scales, job.layout.kept * form.size())?;
    let g = weight.g.filter(|_| form == Form::Scales);
    record(ops, &Job { g, beside, ..job }.into_scratch(form, &memory), Write::Replace)?;
    Ok(View::scratch(memory, 4))
}
