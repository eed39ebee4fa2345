//! A linear layer: what is asked of it.
pub(crate) mod backward;
pub(crate) mod epilogue;
pub(crate) mod record;

use crate::product::selection::Selection;
use crate::{Activation, Tensor, Tile, WeightNorm};
#[cfg(doc)]
use crate::{ArgumentError, Axis, Gpu, Recorder, TuningTable};

/// The weight of a linear layer: ordinary, or weight-normalized.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// w itself, `[out_features, in_features]`.
    Plain(&'a Tensor),
    /// w = g·v/n̂.
    Normalized(WeightNorm<'a>),
}

impl<'a> From<&'a Tensor> for Weight<'a> {
    fn from(w: &'a Tensor) -> Self {
        Weight::Plain(w)
    }
}

impl<'a> From<WeightNorm<'a>> for Weight<'a> {
    fn from(weight: WeightNorm<'a>) -> Self {
        Weight::Normalized(weight)
    }
}

impl<'a> Weight<'a> {
    pub(crate) fn v(&self) -> &'a Tensor {
        match self {
            Weight::Plain(w) => w,
            Weight::Normalized(weight) => weight.v,
        }
    }

    pub(crate) fn normalized(&self) -> Option<WeightNorm<'a>> {
        match self {
            Weight::Plain(_) => None,
            Weight::Normalized(weight) => Some(*weight),
        }
    }
}

/// A linear layer, weight-normalized or ordinary: the request of [`Gpu::linear`], [`Gpu::linear_saved`] and
/// [`Recorder::linear`].
///
/// ```text
/// y[.., j] = activation( Σ_k x[.., k] · w[j, k] + bias_j )        w = g·v/n̂
/// ```
///
/// ```no_run
/// # use weightnorm::{Activation, Error, Gpu, Linear, Tensor, WeightNorm};
/// # fn f(gpu: &Gpu, x: Tensor, v: Tensor, g: Tensor, bias: Tensor) -> Result<Tensor, Error> {
/// gpu.linear(Linear::new(&x, WeightNorm::new(&v, &g)).bias(&bias).activation(Activation::Relu))
/// # }
/// ```
///
/// - `x`: `[.., in_features]`. `weight`: `[out_features, in_features]`, a [`WeightNorm`] of kept axis 0 (out), 1 (in)
///   or the whole tensor, or a [`Tensor`] w. `y`: `[.., out_features]`. All of any storage type, in any mixture.
/// - For kept axis 0 the norms are summed up inside the product: w is never stored, v read no more often than by the
///   ordinary product.
/// - y is right wherever it, and the sum of |x·w|, is representable. NaN and infinity in row j of v reach column j of y
///   and nothing else. Error: a small multiple of in_features · 2⁻²⁴ · Σ|x·w|, and y's rounding.
/// - Reference: PyTorch's `weight_norm(torch.nn.Linear(..))`, `torch.nn.functional.linear`.
///
/// # Dispatches
/// One for an ordinary weight, for kept axis 0, and with known norms and kept axis 0; else those of the norms besides
/// ([`Recorder::row_norms`], or one if they are known). One more where the sums are formed in pieces (beyond some
/// 23,000 in_features, 43,000 with a few rows of x, 5,000 where a CPU computes in subgroups; where a GPU would have few
/// workgroups otherwise; or as a [`TuningTable`] says), one more per window past the limit of a binding or a dispatch.
///
/// # Errors
/// [`ArgumentError::Shape`] or [`ArgumentError::DType`] if the tensors do not fit; [`ArgumentError::Axis`],
/// [`ArgumentError::Eps`]; [`ArgumentError::Number`] for a slope that is not finite; [`ArgumentError::Variant`] for a
/// tile or a split that cannot be. Besides those of every operator ([`Error`](crate::Error)).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Linear<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) weight: Weight<'a>,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) activation: Activation,
    pub(crate) norms: Option<&'a Tensor>,
    pub(crate) u: Option<&'a Tensor>,
    /// Whether rows of x are divided by their norms: [`Cosine`](crate::Cosine).
    pub(crate) unit_rows: bool,
    pub(crate) selection: Selection,
}

impl<'a> Linear<'a> {
    /// x·wᵀ, without a bias or an activation.
    pub fn new(x: &'a Tensor, weight: impl Into<Weight<'a>>) -> Self {
        let (weight, activation, selection) = (weight.into(), Activation::None, Selection::default());
        Linear { x, weight, bias: None, activation, norms: None, u: None, unit_rows: false, selection }
    }

    /// Adds a bias: any storage type, `[out_features]`.
    pub fn bias(self, bias: impl Into<Option<&'a Tensor>>) -> Self {
        Linear { bias: bias.into(), ..self }
    }

    /// Applies an activation.
    pub fn activation(self, activation: Activation) -> Self {
        Linear { activation, ..self }
    }

    /// Writes the effective norms n̂ out, as the backward pass and later calls want them: f32, shaped as g.
    pub fn norms(self, norms: impl Into<Option<&'a Tensor>>) -> Self {
        Linear { norms: norms.into(), ..self }
    }

    /// Writes u out, what the backward pass wants: f32, shaped as y. For kept axis 0 and the whole tensor u = (x·v)/n̂,
    /// what the gain multiplies; for kept axis 1 and an ordinary weight u = x·w, what the bias is added to.
    pub fn u(self, u: impl Into<Option<&'a Tensor>>) -> Self {
        Linear { u: u.into(), ..self }
    }

    /// Forces a tile, for tests and tuning. Its sums are whole unless `split_length` says otherwise.
    pub fn tile(self, tile: impl Into<Option<Tile>>) -> Self {
        Linear { selection: Selection { tile: tile.into(), ..self.selection }, ..self }
    }

    /// Forces the split of in_features into pieces of this many columns (rounded up to a multiple of 16), for tests and
    /// tuning.
    pub fn split_length(self, split_length: impl Into<Option<u32>>) -> Self {
        Linear { selection: Selection { split_length: split_length.into(), ..self.selection }, ..self }
    }
}

/// What the forward pass of a training step keeps for the backward pass. From [`Gpu::linear_saved`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Saved {
    /// The effective norms n̂, f32, with ones everywhere but at the kept axis; none for an ordinary weight.
    pub norms: Option<Tensor>,
    /// u of [`Linear::u`], f32, shaped as y; for kept axis 0 and the whole tensor, and wherever there is an activation.
    pub u: Option<Tensor>,
    /// The bias of the layer, if there is an activation: a handle to the same tensor. Its gradient wants it unchanged.
    pub bias: Option<Tensor>,
    /// The activation of the layer.
    pub activation: Activation,
}
