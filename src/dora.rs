//! DoRA: a frozen weight, a low-rank update, and a magnitude for each row. Shaders: `shaders/dora`, `shaders/product`.
pub(crate) mod backward;
pub(crate) mod norms;
pub(crate) mod record;

use crate::product::selection::Selection;
#[cfg(doc)]
use crate::{ArgumentError, Gpu, Gradients, LimitError, Linear, Recorder, WeightNorm};
use crate::{Eps, Tensor, Tile};

/// The weight of a layer adapted by DoRA. The request of [`Gpu::dora_norms`], [`Gpu::dora_merge`] and the like of
/// [`Recorder`], and the weight of a [`Dora`].
///
/// ```text
/// W = W0 + s·B·A        n̂_j = eps policy of the norm of row j of W        w_j = m_j · W_j / n̂_j
/// ```
///
/// - `base` W0: `[out_features, in_features]`. `a`: `[rank, in_features]`. `b`: `[out_features, rank]`. `magnitude` m:
///   `[out_features]`, or with an axis of 1 behind. Any storage types. `scaling` s: finite (peft: alpha / rank, or
///   alpha / √rank).
/// - Neither W nor B·A stands anywhere, but in [`Gpu::dora_merge`]. Norms come of ‖W0_j‖², A·W0ᵀ and A·Aᵀ; a row that
///   is much shorter than its parts, below an eighth of √(‖W0_j‖² + ‖s·(B·A)_j‖²), is formed for its norm, so that the
///   norm is right to some 2⁻¹⁷ of it at least.
/// - The sums x·W0ᵀ and s·(x·Aᵀ)·Bᵀ have to be representable, as in ordinary layers.
/// - Reference: peft's `LoraConfig(use_dora=True)` of a linear layer; its norms have no eps ([`Eps::None`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct DoraWeight<'a> {
    pub(crate) base: &'a Tensor,
    pub(crate) a: &'a Tensor,
    pub(crate) b: &'a Tensor,
    pub(crate) magnitude: &'a Tensor,
    pub(crate) scaling: f32,
    pub(crate) eps: Eps,
    pub(crate) base_norms: Option<&'a Tensor>,
    pub(crate) norms: Option<&'a Tensor>,
}

impl<'a> DoraWeight<'a> {
    /// Eps policy clamp 1e-12.
    pub fn new(base: &'a Tensor, a: &'a Tensor, b: &'a Tensor, magnitude: &'a Tensor, scaling: f32) -> Self {
        DoraWeight { base, a, b, magnitude, scaling, eps: Eps::default(), base_norms: None, norms: None }
    }

    /// Another eps policy.
    pub fn eps(self, eps: Eps) -> Self {
        DoraWeight { eps, ..self }
    }

    /// The norms of W0, which training does not change: those of [`Gpu::row_norms`] of it, under [`Eps::None`] or the
    /// default policy. f32, shaped as the magnitude or flat. They are not computed again then.
    pub fn base_norms(self, norms: &'a Tensor) -> Self {
        DoraWeight { base_norms: Some(norms), ..self }
    }

    /// The effective norms n̂, which change with A and B alone: those of [`Gpu::dora_norms`] or [`Dora::norms`]. f32,
    /// shaped as the magnitude or flat. Nothing is computed for them then, as in inference.
    pub fn norms(self, norms: &'a Tensor) -> Self {
        DoraWeight { norms: Some(norms), ..self }
    }

    /// out_features, in_features and rank of a checked weight.
    pub(crate) fn sizes(&self) -> (u64, u64, u64) {
        (self.base.shape()[0] as u64, self.base.shape()[1] as u64, self.a.shape()[0] as u64)
    }

    /// Operations for the norms, unless they are known: of A·W0ᵀ, A·Aᵀ, the squares of W0, and a form of each row.
    pub(crate) fn norms_operations(&self) -> u64 {
        let (outs, ins, rank) = self.sizes();
        let squares = if self.base_norms.is_some() { 0 } else { 2 * outs * ins };
        if self.norms.is_some() { 0 } else { 2 * rank * (outs * ins + rank * ins + outs * rank) + squares }
    }
}

/// A linear layer adapted by DoRA: the request of [`Gpu::dora`], [`Gpu::dora_saved`] and [`Recorder::dora`].
///
/// ```text
/// y[.., j] = m_j · u[.., j] + bias_j        u[.., j] = ( x·W0_jᵀ + s·(x·Aᵀ)·B_jᵀ ) / n̂_j
/// ```
///
/// ```no_run
/// # use weightnorm::{Dora, DoraWeight, Error, Gpu, Tensor};
/// # fn f(gpu: &Gpu, [x, base, a, b, magnitude]: [&Tensor; 5]) -> Result<Tensor, Error> {
/// gpu.dora(Dora::new(x, DoraWeight::new(base, a, b, magnitude, 2.0)))
/// # }
/// ```
///
/// - `x`: `[.., in_features]`. `weight`: a [`DoraWeight`]. `y`: `[.., out_features]`. Any storage types.
/// - x·W0ᵀ lies in u, or in scratch memory, in f32.
///
/// # Dispatches
/// Three with known norms: x·W0ᵀ, s·x·Aᵀ, and y of both. Three more else: A·W0ᵀ with the norms of W0, A·Aᵀ, the norms.
/// More where sums are formed in pieces, or past the limits of a binding or a dispatch, as in [`Linear`].
///
/// # Errors
/// [`ArgumentError::Shape`] or [`ArgumentError::DType`] if the tensors do not fit, or nothing is summed up (a rank or
/// in_features of 0); [`ArgumentError::Eps`]; [`ArgumentError::Number`] for a scaling that is not finite;
/// [`ArgumentError::Variant`]; [`LimitError::TooLarge`] if A, or its products with W0, do not fit a binding, or A is
/// too large to form a row of B·A (a rank of more than some 900 with in_features of 8192). Besides those of every
/// operator ([`Error`](crate::Error)).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Dora<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) weight: DoraWeight<'a>,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) norms: Option<&'a Tensor>,
    pub(crate) u: Option<&'a Tensor>,
    pub(crate) hidden: Option<&'a Tensor>,
    pub(crate) selection: Selection,
}

impl<'a> Dora<'a> {
    /// Without a bias.
    pub fn new(x: &'a Tensor, weight: DoraWeight<'a>) -> Self {
        let selection = Selection::default();
        Dora { x, weight, bias: None, norms: None, u: None, hidden: None, selection }
    }

    /// Adds a bias: any storage type, `[out_features]`.
    pub fn bias(self, bias: impl Into<Option<&'a Tensor>>) -> Self {
        Dora { bias: bias.into(), ..self }
    }

    /// Writes the effective norms n̂ out: f32, shaped as the magnitude or flat.
    pub fn norms(self, norms: impl Into<Option<&'a Tensor>>) -> Self {
        Dora { norms: norms.into(), ..self }
    }

    /// Writes u out, what the backward pass wants: f32, shaped as y.
    pub fn u(self, u: impl Into<Option<&'a Tensor>>) -> Self {
        Dora { u: u.into(), ..self }
    }

    /// Writes s·x·Aᵀ out, which the backward pass forms again else: f32, `[.., rank]`.
    pub fn hidden(self, hidden: impl Into<Option<&'a Tensor>>) -> Self {
        Dora { hidden: hidden.into(), ..self }
    }

    /// Forces a tile for x·W0ᵀ and y, for tests and tuning.
    pub fn tile(self, tile: impl Into<Option<Tile>>) -> Self {
        Dora { selection: Selection { tile: tile.into(), ..self.selection }, ..self }
    }
}

/// What the forward pass of a training step keeps for the backward pass. From [`Gpu::dora_saved`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DoraSaved {
    /// The effective norms n̂, f32, `[out_features]`.
    pub norms: Tensor,
    /// u of [`Dora::u`], f32, shaped as y.
    pub u: Tensor,
    /// s·x·Aᵀ, f32, `[.., rank]`.
    pub hidden: Tensor,
}

/// The gradients of a [`Dora`], given dy: the request of [`Gpu::dora_backward`] and [`Recorder::dora_backward`]. W0 has
/// none.
///
/// ```text
/// c = m/n̂        dm_j = Σ_b dy[b,j]·u[b,j]        dbias_j = Σ_b dy[b,j]
/// dx = (dy ⊙ c)·W0 + P·A        P = s·(dy ⊙ c)·B        dA = Pᵀ·x        dB = s·c ⊙ (dyᵀ·(x·Aᵀ))
/// ```
///
/// with the norm held constant, as in the paper (section 4.3) and in peft; with [`DoraBackward::through_norms`]
///
/// ```text
/// dB -= s·c ⊙ (dm/d) ⊙ (W·Aᵀ)        dA -= s·(c ⊙ (dm/d) ⊙ B)ᵀ·W
/// ```
///
/// where W·Aᵀ = W0·Aᵀ + s·B·(A·Aᵀ), and d is n̂, but n under [`Eps::After`], and the terms are absent where the clamp
/// is active ([`WeightNorm`]).
///
/// - `x`, `weight`: as in [`Dora`]. `dy`: y's shape. Wanted are dx, da, db, dg (of the magnitude) and dbias of
///   [`Gradients`].
/// - u is needed for dg, and through the norms for da and db too: [`DoraBackward::saved`] with what [`Gpu::dora_saved`]
///   returned, or [`DoraBackward::u`]. Norms that are not known, and s·x·Aᵀ where it is not given, are computed.
/// - A gradient in 16 bits is made in f32, and rounded once.
///
/// # Dispatches
/// With the norm held constant and known: one for dbias and dm (two beyond a batch of 128), one for the factors of each
/// row, two for dx, one for P, one for dA, one for dB. Through the norms seven more. More as in [`Dora`].
///
/// # Errors
/// As [`Dora`]; [`ArgumentError::Missing`] without a u that is needed.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct DoraBackward<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) weight: DoraWeight<'a>,
    pub(crate) dy: &'a Tensor,
    pub(crate) u: Option<&'a Tensor>,
    pub(crate) hidden: Option<&'a Tensor>,
    pub(crate) through_norms: bool,
    pub(crate) selection: Selection,
}

impl<'a> DoraBackward<'a> {
    /// Of a layer with these inputs, whose y has this gradient. The norm is held constant.
    pub fn new(x: &'a Tensor, weight: DoraWeight<'a>, dy: &'a Tensor) -> Self {
        let selection = Selection::default();
        DoraBackward { x, weight, dy, u: None, hidden: None, through_norms: false, selection }
    }

    /// With all that the forward pass saved: norms, u and s·x·Aᵀ.
    pub fn saved(self, saved: &'a DoraSaved) -> Self {
        let weight = self.weight.norms(&saved.norms);
        DoraBackward { weight, u: Some(&saved.u), hidden: Some(&saved.hidden), ..self }
    }

    /// With the u of the forward pass: f32, shaped as y.
    pub fn u(self, u: impl Into<Option<&'a Tensor>>) -> Self {
        DoraBackward { u: u.into(), ..self }
    }

    /// With s·x·Aᵀ of the forward pass: f32, `[.., rank]`.
    pub fn hidden(self, hidden: impl Into<Option<&'a Tensor>>) -> Self {
        DoraBackward { hidden: hidden.into(), ..self }
    }

    /// Whether the gradients of A and B go through the norms too.
    pub fn through_norms(self, through_norms: bool) -> Self {
        DoraBackward { through_norms, ..self }
    }

    /// Forces a tile for all products, for tests and tuning.
    pub fn tile(self, tile: impl Into<Option<Tile>>) -> Self {
        DoraBackward { selection: Selection { tile: tile.into(), ..self.selection }, ..self }
    }
}

/// The gradients of a [`Dora`], as [`Gpu::dora_backward`] returns them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DoraGradients {
    /// Of x, in its storage type.
    pub dx: Tensor,
    /// Of A, f32.
    pub da: Tensor,
    /// Of B, f32.
    pub db: Tensor,
    /// Of the magnitude, f32, `[out_features]`.
    pub dmagnitude: Tensor,
    /// Of the bias, f32, `[out_features]`.
    pub dbias: Tensor,
}
