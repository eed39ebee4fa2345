//! Rescaling: w = g·v/n̂, and the way back. Shader: `normalize.wgsl`.
use bytemuck::{Pod, Zeroable};

use crate::contract::{Layout, norms_shape};
use crate::gpu::Scratch;
use crate::kernel::{self, Constants, Module};
use crate::norms::{Form, Job, windows};
use crate::record::{Arguments, Dispatch, View, expect_per_norm, expect_shape, firsts};
use crate::{Axis, DType, Eps, Error, Gpu, Recorder, Tensor};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    inner: u32,
    kept: u32,
    position: u32,
    scale_first: u32,
    firsts: u32,
}

/// A weight in two parts, w = g·v/n̂: direction v, gain g, the kept axis and the eps policy.
///
/// ```
/// # use weightnorm::{Axis, Eps, Tensor, WeightNorm};
/// # fn weights(v: Tensor, g: Tensor) {
/// let weight = WeightNorm::new(&v, &g); // axis 0, clamp 1e-12
/// let weight = WeightNorm::new(&v, &g).axis(Axis::Whole).eps(Eps::None);
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct WeightNorm<'a> {
    pub(crate) v: &'a Tensor,
    pub(crate) g: Option<&'a Tensor>,
    pub(crate) axis: Axis,
    pub(crate) eps: Eps,
    pub(crate) norms: Option<&'a Tensor>,
}

impl<'a> WeightNorm<'a> {
    /// Kept axis 0, eps policy clamp 1e-12. `g`: f32, one for each index of the kept axis, flat or with ones as in
    /// PyTorch.
    pub fn new(v: &'a Tensor, g: &'a Tensor) -> Self {
        WeightNorm { g: Some(g), ..WeightNorm::unit(v) }
    }

    /// Without a gain: w = v/n̂, rows of norm 1.
    pub fn unit(v: &'a Tensor) -> Self {
        WeightNorm { v, g: None, axis: Axis::default(), eps: Eps::default(), norms: None }
    }

    /// Another kept axis.
    pub fn axis(self, axis: Axis) -> Self {
        WeightNorm { axis, ..self }
    }

    /// Another eps policy.
    pub fn eps(self, eps: Eps) -> Self {
        WeightNorm { eps, ..self }
    }

    /// Effective norms that are known from an earlier call with the same v: no norm is computed. f32, shaped as g.
    /// A norm beyond the range of f32 cannot be handed over like this.
    pub fn norms(self, norms: &'a Tensor) -> Self {
        WeightNorm { norms: Some(norms), ..self }
    }

    pub(crate) fn check(&self, op: &'static str) -> Result<(), Error> {
        Layout::new(self.v.shape(), self.axis)?;
        self.eps.check()?;
        let shape = norms_shape(self.v.shape(), self.axis);
        for (arg, tensor) in [("g", self.g), ("norms", self.norms)] {
            if let Some(tensor) = tensor {
                expect_per_norm(op, arg, tensor, &shape)?;
            }
        }
        Ok(())
    }
}

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
    /// One dispatch more than [`Recorder::row_norms_into`], or two with known norms.
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
            .check(self.gpu())?;
        let scales = self.scales(weight, Form::Scales, None)?;
        self.rescale(Some(weight.v), w, Some((&scales, weight.axis)))
    }

    /// Records [`Gpu::normalize_in_place`]. The dispatches are those of [`Recorder::normalize_into`].
    ///
    /// # Errors
    /// As [`Gpu::normalize`]; [`Error::Alias`] if g or the norms share v's buffer.
    pub fn normalize_in_place(&mut self, weight: WeightNorm<'_>) -> Result<(), Error> {
        const OP: &str = "normalize_in_place";
        weight.check(OP)?;
        Arguments::new(OP).input("g", weight.g).input("norms", weight.norms).output("v", weight.v).check(self.gpu())?;
        let scales = self.scales(weight, Form::Scales, None)?;
        self.rescale(None, weight.v, Some((&scales, weight.axis)))
    }

    /// Records [`Gpu::split`] into `v`, of w's shape, and `g`, f32 in the norms' shape or flat.
    ///
    /// One dispatch more than [`Recorder::row_norms_into`].
    ///
    /// # Errors
    /// As [`Gpu::row_norms`]; [`Error::Shape`], [`Error::DType`], [`Error::Alias`], [`Error::Overlap`].
    pub fn split_into(&mut self, w: &Tensor, axis: Axis, eps: Eps, v: &Tensor, g: &Tensor) -> Result<(), Error> {
        const OP: &str = "split";
        Layout::new(w.shape(), axis)?;
        eps.check()?;
        expect_shape(OP, "v", v, w.shape())?;
        crate::record::expect_dtype(OP, "v", v, w.dtype())?;
        expect_per_norm(OP, "g", g, &norms_shape(w.shape(), axis))?;
        Arguments::new(OP).input("w", w).output("v", v).output("g", g).check(self.gpu())?;
        self.row_norms_into(w, axis, eps, g)?;
        self.rescale(Some(w), v, None)
    }

    /// The norms of a weight in scratch memory, as scales or wide numbers. The weight is checked.
    pub(crate) fn scales(
        &mut self,
        weight: WeightNorm<'_>,
        form: Form,
        norms_too: Option<&Tensor>,
    ) -> Result<View<'static>, Error> {
        let kept = Layout::new(weight.v.shape(), weight.axis)?.wide().kept;
        let out = View::scratch(self.gpu().scratch(Scratch::Scales, kept * 8)?, 4);
        self.norms(&Job {
            v: weight.v,
            axis: weight.axis,
            eps: weight.eps,
            known: weight.norms,
            gain: weight.g.filter(|_| form == Form::Scales),
            form,
            out: out.clone(),
            norms_too,
        })?;
        Ok(out)
    }

    /// w = v, scaled; `v` is `None` where w is both.
    fn rescale(&mut self, v: Option<&Tensor>, w: &Tensor, scales: Option<(&View<'_>, Axis)>) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        let axis = scales.map_or(Axis::Whole, |(_, axis)| axis);
        let layout = Layout::new(w.shape(), axis)?;
        if layout.len() == 0 {
            return Ok(());
        }
        let total = layout.len() as u64;
        let Layout { kept, inner, .. } = layout.wide();
        let v_dtype = v.map_or(w.dtype(), Tensor::dtype);
        let constants: Constants =
            vec![("V_DTYPE", v_dtype.code()), ("W_DTYPE", w.dtype().code()), ("COPY", scales.is_none().into())];
        let kernel = if v.is_some() { &kernel::NORMALIZE } else { &kernel::NORMALIZE_IN_PLACE };
        let in_binding = gpu.binding_capacity() / v_dtype.size().max(w.dtype().size());
        let step = in_binding.min(gpu.group_capacity() * GROUP).min(self.work_capacity(1));
        // Past a binding of scales, a window takes those of neighbouring norms only.
        let scales_in_binding = gpu.binding_capacity() / 8;
        let step = if kept > scales_in_binding { step.min((scales_in_binding - 2) * inner) } else { step };
        // Windows meet at whole words.
        let step = step / 2 * 2;
        for (e, count) in windows(total, step) {
            let (j_first, j_count) = if kept > scales_in_binding {
                let (first, last) = (e / inner, (e + count - 1) / inner);
                if first / kept != last / kept {
                    let limit = scales_in_binding;
                    return Err(Error::TooLarge { what: "norms of a tensor with outer axes", size: kept, limit });
                }
                (first % kept, last - first + 1)
            } else {
                (0, kept)
            };
            let (w_span, w_first) = View::of(w).bind(&gpu, e, count);
            let (v_span, v_first) = v.map_or((None, 0), |v| View::of(v).bind(&gpu, e, count));
            let (scales, scales_first) =
                scales.map_or((None, 0), |(scales, _)| scales.bind(&gpu, 2 * j_first, 2 * j_count));
            let buffers = [v_span, scales, w_span];
            self.dispatch(&Dispatch {
                kernel,
                module: Module::Normalize,
                constants: &constants,
                buffers: if v.is_some() { &buffers } else { &buffers[1..] },
                params: Params {
                    count: count as u32,
                    inner: inner as u32,
                    kept: kept as u32,
                    position: (e % (kept * inner)) as u32,
                    scale_first: j_first as u32,
                    firsts: firsts([v_first, w_first, scales_first, 0]),
                },
                groups: count.div_ceil(GROUP),
                work: count,
            })?;
        }
        Ok(())
    }
}

/// Elements of one workgroup: four an invocation.
const GROUP: u64 = 256;
