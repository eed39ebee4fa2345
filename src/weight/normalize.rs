//! w = g·v/n̂ of one weight, and what it comes from.
#[cfg(doc)]
use crate::ArgumentError;
use crate::arguments::{Arguments, expect_dtype, expect_gain, expect_shape};
use crate::contract::{Layout, norms_shape};
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::job::{Job, NormOutput};
use crate::weight::record::record;
use crate::weight::rescale;
use crate::{Axis, DType, Eps, Error, Gpu, Recorder, Tensor, WeightNorm};

/// An ordinary weight to take apart: v = w, g = n̂, so that [`Gpu::normalize`] of them, with the same axis and policy,
/// gives w back. This is how frameworks attach weight normalization to a layer. The request of [`Gpu::decompose`] and
/// [`Recorder::decompose`].
///
/// - `w`, `v`: one shape and storage type. `g`: any storage type, shaped as the norms ([`WeightNorm`]) or flat.
/// - Where n̂ = 0 ([`Eps::None`] and a zero row) w comes back as NaN.
/// - Reference: what PyTorch's `weight_norm` makes of a layer's weight.
///
/// # Dispatches
/// One more than the norms ([`WeightNorm`]), two where g is not f32.
///
/// # Errors
/// [`ArgumentError::Axis`], [`ArgumentError::Eps`], [`ArgumentError::Shape`], [`ArgumentError::DType`]. Besides those
/// of every operator ([`Error`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Decompose<'a> {
    w: &'a Tensor,
    axis: Axis,
    eps: Eps,
}

impl<'a> Decompose<'a> {
    /// Kept axis 0, eps policy clamp 1e-12.
    pub fn new(w: &'a Tensor) -> Self {
        Decompose { w, axis: Axis::default(), eps: Eps::default() }
    }

    /// Another kept axis.
    pub fn axis(self, axis: Axis) -> Self {
        Decompose { axis, ..self }
    }

    /// Another eps policy.
    pub fn eps(self, eps: Eps) -> Self {
        Decompose { eps, ..self }
    }
}

impl Gpu {
    /// w of [`WeightNorm`], in v's storage type.
    ///
    /// # Errors
    /// As [`WeightNorm`].
    pub fn normalize(&self, weight: WeightNorm<'_>) -> Result<Tensor, Error> {
        let w = self.zeros(weight.v.shape(), weight.v.dtype())?;
        self.run(|ops| ops.normalize(weight, &w))?;
        Ok(w)
    }

    /// w of [`WeightNorm`] in v's place. Without g this normalizes the direction, V ← V/‖V‖, as after an optimizer
    /// step.
    ///
    /// # Errors
    /// As [`WeightNorm`].
    pub fn normalize_in_place(&self, weight: WeightNorm<'_>) -> Result<(), Error> {
        self.run(|ops| ops.normalize_in_place(weight))
    }

    /// `(v, g)` of [`Decompose`], g in f32.
    ///
    /// # Errors
    /// As [`Decompose`].
    pub fn decompose(&self, decompose: Decompose<'_>) -> Result<(Tensor, Tensor), Error> {
        let Decompose { w, axis, .. } = decompose;
        let v = self.zeros(w.shape(), w.dtype())?;
        let g = self.zeros(&norms_shape(w.shape(), axis), DType::F32)?;
        self.run(|ops| ops.decompose(decompose, &v, &g))?;
        Ok((v, g))
    }
}

impl Recorder<'_, '_> {
    /// Records w of [`WeightNorm`] into `w`: the shape of v, any storage type.
    ///
    /// # Errors
    /// As [`WeightNorm`].
    pub fn normalize(&mut self, weight: WeightNorm<'_>, w: &Tensor) -> Result<(), Error> {
        const OP: &str = "normalize";
        weight.check(OP)?;
        expect_shape(OP, "w", w, weight.v.shape())?;
        Arguments::new(OP)
            .input("v", weight.v)
            .input("g", weight.g)
            .input("norms", weight.norms)
            .output("w", w)
            .operations(weight.operations())
            .begin(self)?;
        normalized(self, weight, w, false)
    }

    /// Records [`Gpu::normalize_in_place`].
    ///
    /// # Errors
    /// As [`WeightNorm`].
    pub fn normalize_in_place(&mut self, weight: WeightNorm<'_>) -> Result<(), Error> {
        const OP: &str = "normalize_in_place";
        weight.check(OP)?;
        Arguments::new(OP)
            .input("g", weight.g)
            .input("norms", weight.norms)
            .output_onto(true, "v", weight.v)
            .operations(weight.operations())
            .begin(self)?;
        normalized(self, weight, weight.v, true)
    }

    /// Records [`Decompose`] into `v` and `g`.
    ///
    /// # Errors
    /// As [`Decompose`].
    pub fn decompose(&mut self, decompose: Decompose<'_>, v: &Tensor, g: &Tensor) -> Result<(), Error> {
        const OP: &str = "decompose";
        let Decompose { w, axis, eps } = decompose;
        Layout::new(w.shape(), axis)?;
        eps.check()?;
        expect_shape(OP, "v", v, w.shape())?;
        expect_dtype(OP, "v", v, w.dtype())?;
        expect_gain(OP, "g", g, &norms_shape(w.shape(), axis))?;
        Arguments::new(OP).input("w", w).output("v", v).output("g", g).operations(2 * w.len() as u64).begin(self)?;
        vectors::in_f32(self, (false, true), [Some(g)], |ops, [norms]| {
            ops.nested(|ops| ops.row_norms(WeightNorm::unit(w).axis(axis).eps(eps), norms.unwrap_or(g)))
        })?;
        rescale::copy(self, w, v)
    }
}

/// w of a checked weight, in its place or another one.
fn normalized(ops: &mut Recorder<'_, '_>, weight: WeightNorm<'_>, w: &Tensor, in_place: bool) -> Result<(), Error> {
    let job = Job { w: Some(w), in_place, ..Job::new(weight)? };
    let memory = ops.scratch(Scratch::Scales, job.layout.kept * NormOutput::Scales.size())?;
    record(ops, &job.into_scratch(NormOutput::Scales, &memory), false)
}
