//! A linear layer of directions: the rows of x are normalized as the weight is. Shaders: `shaders/product`.
use crate::contract::norms_shape;
use crate::linear::backward::record as gradients_of_linear;
use crate::linear::record::{recorded, y_shape};
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::backward::gradients_of_weight;
use crate::{
    ArgumentError, Axis, DType, Error, Gpu, Gradients, Linear, LinearBackward, Recorder, Saved, Tensor, Tile,
    WeightNorm,
};

const OP: &str = "cosine";
const BACKWARD: &str = "cosine_backward";

/// Cosines between rows of x and rows of v, times a gain: heads of self-supervised networks (DINO), face recognition,
/// attention by cosines. The request of [`Gpu::cosine`], [`Gpu::cosine_saved`] and [`Recorder::cosine`].
///
/// ```text
/// y[b, j] = g_j · û[b, j]        û[b, j] = (x_b / n̂(x_b)) · (v_j / n̂(v_j))        without g: y = û
/// ```
///
/// ```no_run
/// # use weightnorm::{Cosine, Error, Gpu, Tensor, WeightNorm};
/// # fn f(gpu: &Gpu, x: Tensor, v: Tensor) -> Result<Tensor, Error> {
/// gpu.cosine(Cosine::new(&x, WeightNorm::unit(&v)))
/// # }
/// ```
///
/// - `x`: `[.., in_features]`. `v`: `[out_features, in_features]`, kept axis 0. `y`: `[.., out_features]`. Any storage
///   types. Both sides have the eps policy of the weight: a zero row of x or v gives zeros, under
///   [`Eps::None`](crate::Eps::None) NaN.
/// - Both norms are summed up inside the product: neither x/n̂ nor w is stored. y is right over the whole range of x
///   and v.
/// - Reference: PyTorch's `linear(normalize(x), weight_norm(..))`.
///
/// # Dispatches
/// As [`Linear`] of kept axis 0: one. Known norms of v ([`WeightNorm::norms`]) are not computed; those of x are.
/// Cooperative matrices are not used.
///
/// # Errors
/// As [`Linear`]; [`ArgumentError::Shape`] for another kept axis.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Cosine<'a> {
    linear: Linear<'a>,
}

impl<'a> Cosine<'a> {
    /// Of these rows and this weight, of kept axis 0.
    pub fn new(x: &'a Tensor, weight: WeightNorm<'a>) -> Self {
        Cosine { linear: Linear { unit_rows: true, ..Linear::new(x, weight) } }
    }

    /// Writes the effective norms of v out: f32, shaped as g.
    pub fn norms(self, norms: impl Into<Option<&'a Tensor>>) -> Self {
        Cosine { linear: self.linear.norms(norms) }
    }

    /// Writes û out, what the backward pass wants: f32, shaped as y.
    pub fn u(self, u: impl Into<Option<&'a Tensor>>) -> Self {
        Cosine { linear: self.linear.u(u) }
    }

    /// Forces a tile, for tests and tuning. Its sums are whole unless `split_length` says otherwise.
    pub fn tile(self, tile: impl Into<Option<Tile>>) -> Self {
        Cosine { linear: self.linear.tile(tile) }
    }

    /// Forces a split of the sums, for tests and tuning.
    pub fn split_length(self, split_length: impl Into<Option<u32>>) -> Self {
        Cosine { linear: self.linear.split_length(split_length) }
    }
}

/// The gradients of a [`Cosine`], given dy: the request of [`Gpu::cosine_backward`] and [`Recorder::cosine_backward`].
///
/// ```text
/// x̂ = x/n̂(x)        dx̂ = (dy ⊙ g/n̂(v))·v        dx_b = (dx̂_b - t_b·(x_b/d(x_b))) / n̂(x_b),  t_b = Σ dx̂_b·x̂_b
/// dg_j = Σ_b dy[b,j]·û[b,j]        dv_j = (g_j/n̂(v_j))·((dyᵀx̂)_j - dg_j·(v_j/d(v_j)))
/// ```
///
/// with d as in [`NormalizeBackward`](crate::NormalizeBackward).
///
/// - `x`, `weight`: as in [`Cosine`]. `dy`: y's shape. û of the forward pass is needed for dg and dv:
///   [`CosineBackward::saved`], or [`CosineBackward::u`] with what [`Cosine::u`] wrote.
/// - x̂, and dx̂ after it, lie in scratch memory, in f32. No buffer for dyᵀx̂ exists.
/// - Reference: PyTorch's autograd.
///
/// # Dispatches
/// Those of [`LinearBackward`] with x̂ for x, and of [`Gpu::normalize`] of x (for dv) and
/// [`NormalizeBackward`](crate::NormalizeBackward) of x (for dx).
///
/// # Errors
/// As [`Cosine`]; [`ArgumentError::Missing`] without a û that is needed; [`ArgumentError::Shape`] for a dbias, which
/// there is not.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct CosineBackward<'a> {
    linear: LinearBackward<'a>,
}

impl<'a> CosineBackward<'a> {
    /// Of a layer with these inputs, whose y has this gradient.
    pub fn new(x: &'a Tensor, weight: WeightNorm<'a>, dy: &'a Tensor) -> Self {
        CosineBackward { linear: LinearBackward { unit_rows: true, ..LinearBackward::new(x, weight, dy) } }
    }

    /// With all that the forward pass saved: norms and û.
    pub fn saved(self, saved: &'a Saved) -> Self {
        CosineBackward { linear: self.linear.saved(saved) }
    }

    /// With the û of the forward pass: f32, shaped as y.
    pub fn u(self, u: impl Into<Option<&'a Tensor>>) -> Self {
        CosineBackward { linear: self.linear.u(u) }
    }

    /// Forces a tile, for tests and tuning. Its sums are whole unless `split_length` says otherwise.
    pub fn tile(self, tile: impl Into<Option<Tile>>) -> Self {
        CosineBackward { linear: self.linear.tile(tile) }
    }

    /// Forces a split of the sums, for tests and tuning.
    pub fn split_length(self, split_length: impl Into<Option<u32>>) -> Self {
        CosineBackward { linear: self.linear.split_length(split_length) }
    }
}

/// The gradients of a [`Cosine`], as [`Gpu::cosine_backward`] returns them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CosineGradients {
    /// Of x, in its storage type.
    pub dx: Tensor,
    /// Of v, in its storage type.
    pub dv: Tensor,
    /// Of g, f32, in the norms' shape. Without g it is what a gain of 1 would get.
    pub dg: Tensor,
}

impl Gpu {
    /// y of [`Cosine`], in x's storage type.
    ///
    /// # Errors
    /// As [`Cosine`].
    pub fn cosine(&self, cosine: Cosine<'_>) -> Result<Tensor, Error> {
        let Linear { x, weight, .. } = cosine.linear;
        let y = self.zeros_of("cosine: y", &y_shape(OP, x, weight.v())?, x.dtype())?;
        self.run(|ops| ops.cosine(cosine, &y))?;
        Ok(y)
    }

    /// [`Gpu::cosine`] for training: y, and what [`CosineBackward::saved`] wants of the forward pass. The dispatches
    /// are the same.
    ///
    /// # Errors
    /// As [`Cosine`].
    pub fn cosine_saved(&self, cosine: Cosine<'_>) -> Result<(Tensor, Saved), Error> {
        let Linear { x, weight, activation, .. } = cosine.linear;
        let shape = y_shape(OP, x, weight.v())?;
        let y = self.zeros_of("cosine_saved: y", &shape, x.dtype())?;
        let norms = self.zeros(&norms_shape(weight.v().shape(), Axis::Kept(0)), DType::F32)?;
        let u = self.zeros(&shape, DType::F32)?;
        self.run(|ops| ops.cosine(cosine.norms(&norms).u(&u), &y))?;
        Ok((y, Saved { norms: Some(norms), u: Some(u), bias: None, activation }))
    }

    /// All gradients of [`CosineBackward`].
    ///
    /// # Errors
    /// As [`CosineBackward`].
    pub fn cosine_backward(&self, backward: CosineBackward<'_>) -> Result<CosineGradients, Error> {
        let (x, v) = (backward.linear.x, backward.linear.weight.v());
        let (dx, dv) = (self.zeros(x.shape(), x.dtype())?, self.zeros(v.shape(), v.dtype())?);
        let dg = self.zeros(&norms_shape(v.shape(), Axis::Kept(0)), DType::F32)?;
        self.run(|ops| ops.cosine_backward(backward, &Gradients::default().dx(&dx).dv(&dv).dg(&dg)))?;
        Ok(CosineGradients { dx, dv, dg })
    }
}

impl Recorder<'_, '_> {
    /// Records [`Cosine`] into `y`: `[.., out_features]`, any storage type.
    ///
    /// # Errors
    /// As [`Cosine`].
    pub fn cosine(&mut self, cosine: Cosine<'_>, y: &Tensor) -> Result<(), Error> {
        expect_rows(OP, cosine.linear.weight.normalized())?;
        recorded(self, OP, &cosine.linear, y)
    }

    /// Records [`CosineBackward`] into the wanted ones of `gradients`.
    ///
    /// # Errors
    /// As [`CosineBackward`].
    pub fn cosine_backward(&mut self, backward: CosineBackward<'_>, gradients: &Gradients<'_>) -> Result<(), Error> {
        let backward = backward.linear;
        expect_rows(BACKWARD, backward.weight.normalized())?;
        Gradients::expect_none(BACKWARD, &[("dbias", gradients.dbias)])?;
        gradients_of_linear::check(self, BACKWARD, &backward, gradients)?;
        vectors::in_f32(self, (gradients.accumulate, true), [gradients.dg], |ops, [dg]| {
            record(ops, &backward, &Gradients { dg, ..*gradients })
        })
    }
}

/// Refuses another kept axis than that of the rows.
fn expect_rows(op: &'static str, weight: Option<WeightNorm<'_>>) -> Result<(), Error> {
    match weight {
        Some(WeightNorm { v, axis, .. }) if axis != Axis::Kept(0) => {
            let expected = "kept axis 0".to_owned();
            Err(ArgumentError::Shape { op, arg: "weight", got: v.shape().to_vec(), expected }.into())
        }
        _ => Ok(()),
    }
}

/// The gradients of checked arguments: those of a linear layer of x̂, and from dx̂ that of x. dg is f32.
fn record(ops: &mut Recorder<'_, '_>, backward: &LinearBackward<'_>, gradients: &Gradients<'_>) -> Result<(), Error> {
    let (x, v) = (backward.x, backward.weight.v());
    let &Gradients { dx, dv, .. } = gradients;
    if x.is_empty() {
        return gradients_of_linear::record(ops, backward, gradients);
    }
    let eps = backward.weight.normalized().map(|weight| weight.eps).unwrap_or_default();
    let rows = x.reshape(&[x.len() / v.shape()[1], v.shape()[1]])?;
    let unit = WeightNorm::unit(&rows).eps(eps);
    let needed = dx.is_some() || dv.is_some();
    let scratch = ops.scratch(Scratch::ActivationGradient, if needed { x.len() as u64 * 4 } else { 0 })?;
    // x̂ first, which nobody reads any more once dx̂ is written.
    let held = Tensor::in_scratch(ops.gpu(), scratch, 0, rows.shape());
    if dv.is_some() {
        ops.nested(|ops| ops.normalize(unit, &held))?;
    }
    let of_product = Gradients { dx: dx.map(|_| &held), ..*gradients };
    gradients_of_linear::record(ops, &LinearBackward { x: &held, ..*backward }, &of_product)?;
    if let Some(dx) = dx {
        let dx = dx.reshape(rows.shape())?;
        gradients_of_weight(ops, &held, unit, Some(&dx), None, false)?;
    }
    Ok(())
}
