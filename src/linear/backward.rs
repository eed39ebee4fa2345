//! The gradients of a linear layer: what is asked for.
pub(crate) mod epilogue;
pub(crate) mod record;

use super::{Saved, Weight};
use crate::product::selection::Selection;
use crate::{Activation, Tensor, Tile, WeightNorm};
#[cfg(doc)]
use crate::{ActivationBackward, ArgumentError, Eps, Gpu, Gradients, Linear, NormalizeBackward, Recorder};

/// The gradients of a [`Linear`], given dy: the request of [`Gpu::linear_backward`] and [`Recorder::linear_backward`].
///
/// ```text
/// dz = dy ⊙ act'(z)        z[b,j] = g_j·u[b,j] + bias_j        without an activation dz = dy
/// dg_j = Σ_b dz[b,j]·u[b,j]        dbias_j = Σ_b dz[b,j]        dx = (dz ⊙ a)·v        a = g/n̂
/// dv_j = a_j·((dzᵀx)_j - dg_j·(v_j/d_j))        d: see [`NormalizeBackward`]
/// ```
///
/// for kept axis 0; for kept axis 1, with z = u + bias and q = dz·v:
///
/// ```text
/// dx = q ⊙ a        dg_k = Σ_b x[b,k]·q[b,k]/n̂_k        dv_jk = a_k·((dzᵀx)_jk - dg_k·(v_jk/d_k))
/// ```
///
/// - `x`, `weight`: as in [`Linear`]. `dy`: y's shape. Any storage types.
/// - u of the forward pass is needed for dg and dv with kept axis 0 and the whole tensor, and for all gradients where
///   there is an activation: [`LinearBackward::saved`] with what [`Gpu::linear_saved`] returned, or
///   [`LinearBackward::u`] with what [`Linear::u`] wrote.
/// - The activation and the bias are those of the forward pass: [`LinearBackward::saved`] has them, a recorder says
///   [`LinearBackward::activation`] and [`LinearBackward::bias`]. dz lies in scratch memory, in dy's storage type, to
///   which it is rounded as in PyTorch. See [`ActivationBackward`] for the derivatives.
/// - Norms that are known ([`WeightNorm::norms`], from [`Linear::norms`]) are not computed again, but under
///   [`Eps::After`], whose d is not among them.
/// - No buffer for dw = dzᵀx exists. An ordinary weight gets dw as dv. For dv to be right dg need not be representable,
///   but u has to be, with kept axis 1 q/n̂.
/// - Reference: PyTorch's autograd of `weight_norm(torch.nn.Linear(..))`.
///
/// # Dispatches
/// For kept axis 0, with known norms: one for dx, one for dv, one for dg and dbias together (two beyond a batch of
/// 128), which also makes the factors of each norm that the other two want; dx alone takes one for them. A product
/// whose sums are formed in pieces, as in [`Linear`], takes two, windows past the limit of a binding or a dispatch one
/// more each. The whole tensor takes one or two more for dbias, kept axis 1 the product q besides. A dg or dbias that
/// is not f32 takes one more, two with [`Gradients::accumulate`]. An activation takes one more, for dz.
///
/// # Errors
/// As [`Linear`]; [`ArgumentError::Missing`] without a u that is needed.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct LinearBackward<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) weight: Weight<'a>,
    pub(crate) dy: &'a Tensor,
    pub(crate) u: Option<&'a Tensor>,
    pub(crate) activation: Activation,
    pub(crate) bias: Option<&'a Tensor>,
    /// Whether the rows of x were divided by their norms: [`CosineBackward`](crate::CosineBackward).
    pub(crate) unit_rows: bool,
    pub(crate) selection: Selection,
}

impl<'a> LinearBackward<'a> {
    /// Of a layer with these inputs, whose y has this gradient.
    pub fn new(x: &'a Tensor, weight: impl Into<Weight<'a>>, dy: &'a Tensor) -> Self {
        let (activation, selection) = (Activation::None, Selection::default());
        LinearBackward { x, weight: weight.into(), dy, u: None, activation, bias: None, unit_rows: false, selection }
    }

    /// With all that the forward pass saved: norms, u, bias and activation.
    pub fn saved(self, saved: &'a Saved) -> Self {
        let weight = match self.weight {
            Weight::Normalized(w) => Weight::Normalized(WeightNorm { norms: saved.norms.as_ref().or(w.norms), ..w }),
            plain => plain,
        };
        let (u, bias) = (saved.u.as_ref(), saved.bias.as_ref());
        LinearBackward { weight, u, bias, activation: saved.activation, ..self }
    }

    /// With the u of the forward pass: f32, shaped as y.
    pub fn u(self, u: impl Into<Option<&'a Tensor>>) -> Self {
        LinearBackward { u: u.into(), ..self }
    }

    /// Of a layer with this activation: dy is the gradient of what the activation gave.
    pub fn activation(self, activation: Activation) -> Self {
        LinearBackward { activation, ..self }
    }

    /// The bias of the layer, as the forward pass had it: any storage type, `[out_features]`. Read where there is an
    /// activation.
    pub fn bias(self, bias: impl Into<Option<&'a Tensor>>) -> Self {
        LinearBackward { bias: bias.into(), ..self }
    }

    /// Forces a tile, for tests and tuning. Its sums are whole unless `split_length` says otherwise.
    pub fn tile(self, tile: impl Into<Option<Tile>>) -> Self {
        LinearBackward { selection: Selection { tile: tile.into(), ..self.selection }, ..self }
    }

    /// Forces a split of the sums, for tests and tuning.
    pub fn split_length(self, split_length: impl Into<Option<u32>>) -> Self {
        LinearBackward { selection: Selection { split_length: split_length.into(), ..self.selection }, ..self }
    }
}

/// The gradients of a linear layer, as [`Gpu::linear_backward`] returns them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LinearGradients {
    /// Of x, in its storage type.
    pub dx: Tensor,
    /// Of v, or of an ordinary weight, in its storage type.
    pub dv: Tensor,
    /// Of g, f32, in the norms' shape; none for an ordinary weight. Without g it is what a gain of 1 would get.
    pub dg: Option<Tensor>,
    /// Of the bias, f32, `[out_features]`.
    pub dbias: Tensor,
}
