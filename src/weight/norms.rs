//! Row norms: n̂_j = eps policy of sqrt(Σ v²) over all axes but one, and the sums Σ dw·v of the backward pass.
use crate::arguments::{Arguments, expect_per_norm};
use crate::binding::View;
use crate::contract::norms_shape;
use crate::memory::Scratch;
use crate::weight::job::{Job, NormOutput};
use crate::weight::place::Region;
use crate::weight::record::record;
use crate::{ArgumentError, DType, Error, Gpu, Recorder, Tensor, WeightNorm};

impl Gpu {
    /// The effective norms n̂ of a [`WeightNorm`], whose g plays no part. With [`Eps::None`](crate::Eps::None) the
    /// norms themselves.
    ///
    /// # Errors
    /// As [`WeightNorm`]; [`ArgumentError::KnownNorms`].
    pub fn row_norms(&self, weight: WeightNorm<'_>) -> Result<Tensor, Error> {
        let norms = self.zeros(&norms_shape(weight.v.shape(), weight.axis), DType::F32)?;
        self.run(|ops| ops.row_norms(weight, &norms))?;
        Ok(norms)
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::row_norms`] into `norms`: f32, shaped as there or flat.
    ///
    /// # Errors
    /// As [`Gpu::row_norms`].
    pub fn row_norms(&mut self, weight: WeightNorm<'_>, norms: &Tensor) -> Result<(), Error> {
        const OP: &str = "row_norms";
        let WeightNorm { v, axis, eps, .. } = weight;
        weight.check(OP)?;
        if weight.norms.is_some() {
            return Err(ArgumentError::KnownNorms { op: OP }.into());
        }
        expect_per_norm(OP, "norms", norms, &norms_shape(v.shape(), axis))?;
        Arguments::new(OP).input("v", v).output("norms", norms).operations(2 * v.len() as u64).begin(self)?;
        norms_into(self, WeightNorm::unit(v).axis(axis).eps(eps), NormOutput::Norms, Region::of(norms))
    }
}

/// Records the norms of a checked weight, known ones too.
pub(crate) fn norms_into(
    ops: &mut Recorder<'_, '_>,
    weight: WeightNorm<'_>,
    form: NormOutput,
    out: Region,
) -> Result<(), Error> {
    record(ops, &Job { g: None, form, out: Some(out), ..Job::new(weight)? }, false)
}

/// The same in scratch memory, as scales or wide numbers, and the norms beside.
pub(crate) fn scales(
    ops: &mut Recorder<'_, '_>,
    weight: WeightNorm<'_>,
    form: NormOutput,
    beside: Option<&Tensor>,
) -> Result<View<'static>, Error> {
    let job = Job::new(weight)?;
    let memory = ops.scratch(Scratch::Scales, job.layout.kept * form.size())?;
    let g = weight.g.filter(|_| form == NormOutput::Scales);
    record(ops, &Job { g, beside, ..job }.into_scratch(form, &memory), false)?;
    Ok(View::scratch(memory, 4))
}
