//! w = g·v/n̂ of one weight, and what it comes from.
use crate::arguments::{Arguments, expect_dtype, expect_gain, expect_shape};
use crate::contract::{Layout, norms_shape};
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::job::{Form, Job};
use crate::weight::record::record;
use crate::weight::rescale;
use crate::{Axis, DType, Eps, Error, Gpu, Recorder, Tensor, WeightNorm, Write};

impl Gpu {
    /// The normalized weight.
    ///
    /// ```text
    /// w = g·(v/n̂)        without g: v/n̂
    /// ```
    ///
    /// Returns shape and storage type of v. Right wherever w is representable, over the whole range of f32. A zero row
    /// gives 0, under [`Eps::None`] NaN. Reference: PyTorch's `weight_norm`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`] if g or the norms do not fit; [`Error::Axis`], [`Error::Eps`],
    /// [`Error::OtherGpu`], [`Error::Usage`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn normalize(&self, weight: WeightNorm<'_>) -> Result<Tensor, Error> {
        let w = self.zeros(weight.v.shape(), weight.v.dtype())?;
        self.run(|ops| ops.normalize_into(weight, &w))?;
        Ok(w)
    }

    /// [`Gpu::normalize`] with w in v's place. Without g this is the projection V ← V/‖V‖ after an optimizer step.
    ///
    /// # Errors
    /// As [`Gpu::normalize`].
    pub fn normalize_in_place(&self, weight: WeightNorm<'_>) -> Result<(), Error> {
        self.run(|ops| ops.normalize_in_place(weight))
    }

    /// Splits an ordinary weight into (v, g): v = w, g = n̂, so that [`Gpu::normalize`] of them, with the same axis and
    /// policy, gives w back. This is how frameworks attach weight normalization to a layer.
    ///
    /// v has w's storage type, g is f32 in the norms' shape. Where n̂ = 0 ([`Eps::None`] and a zero row) w comes back
    /// as NaN.
    ///
    /// # Errors
    /// As [`Gpu::row_norms`].
    pub fn split(&self, w: &Tensor, axis: Axis, eps: Eps) -> Result<(Tensor, Tensor), Error> {
        let v = self.zeros(w.shape(), w.dtype())?;
        let g = self.zeros(&norms_shape(w.shape(), axis), DType::F32)?;
        self.run(|ops| ops.split_into(w, axis, eps, &v, &g))?;
        Ok((v, g))
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::normalize`] into `w`: the shape of v, any storage type.
    ///
    /// One dispatch more than [`Recorder::row_norms_into`], or two with known norms. One in all where a workgroup can
    /// hold its rows: contiguous (kept axis 0), of whole 16 bytes and at most 16 KiB, in a v and w that start at
    /// multiples of 16 bytes and have one storage type. On a CPU only small tensors, and short rows, of which a few, up
    /// to 8, have to fill whole 16 bytes, and as many have to divide the rows.
    ///
    /// # Errors
    /// As [`Gpu::normalize`]; [`Error::Alias`].
    pub fn normalize_into(&mut self, weight: WeightNorm<'_>, w: &Tensor) -> Result<(), Error> {
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

    /// Records [`Gpu::normalize_in_place`]. The dispatches are those of [`Recorder::normalize_into`].
    ///
    /// # Errors
    /// As [`Gpu::normalize`]; [`Error::Alias`] if g or the norms share v's buffer.
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

    /// Records [`Gpu::split`] into `v`, of w's shape and storage type, and `g`, any storage type, in the norms' shape
    /// or flat.
    ///
    /// One dispatch more than [`Recorder::row_norms_into`], two where g is not f32.
    ///
    /// # Errors
    /// As [`Gpu::row_norms`]; [`Error::Shape`], [`Error::DType`], [`Error::Alias`], [`Error::Overlap`].
    pub fn split_into(&mut self, w: &Tensor, axis: Axis, eps: Eps, v: &Tensor, g: &Tensor) -> Result<(), Error> {
        const OP: &str = "split";
        Layout::new(w.shape(), axis)?;
        eps.check()?;
        expect_shape(OP, "v", v, w.shape())?;
        expect_dtype(OP, "v", v, w.dtype())?;
        expect_gain(OP, "g", g, &norms_shape(w.shape(), axis))?;
        Arguments::new(OP).input("w", w).output("v", v).output("g", g).operations(2 * w.len() as u64).begin(self)?;
        vectors::in_f32(self, (false, true), [Some(g)], |ops, [norms]| {
            ops.nested(|ops| ops.row_norms_into(w, axis, eps, norms.unwrap_or(g)))
        })?;
        rescale::copy(self, w, v)
    }
}

/// w of a checked weight, in its place or another one.
fn normalized(ops: &mut Recorder<'_, '_>, weight: WeightNorm<'_>, w: &Tensor, in_place: bool) -> Result<(), Error> {
    let job = Job { w: Some(w), in_place, ..Job::new(weight)? };
    let memory = ops.scratch(Scratch::Scales, job.layout.kept * Form::Scales.size())?;
    record(ops, &job.into_scratch(Form::Scales, &memory), Write::Replace)
}
