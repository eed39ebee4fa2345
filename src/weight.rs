//! Weights: their norms, w = g·v/n̂, and the way back, one by one and in sets. Shaders: `shaders/weight`.
//!
//! A [`job`] is what is done to one weight. Its plan cuts it into dispatches and items, in numbers ([`sums`],
//! [`spread`], [`item`]). Of one weight they are derived on the device from the parameters of a dispatch ([`record`]);
//! those of a set stand in a table ([`table`]).
pub(crate) mod backward;
pub(crate) mod item;
pub(crate) mod job;
pub(crate) mod member;
pub(crate) mod normalize;
pub(crate) mod norms;
pub(crate) mod place;
mod record;
pub(crate) mod rescale;
pub(crate) mod set;
mod spread;
mod sums;
mod table;

use crate::arguments::{expect_gain, expect_per_norm};
use crate::contract::{Layout, norms_shape};
#[cfg(doc)]
use crate::{ArgumentError, Gpu, Recorder};
use crate::{Axis, Eps, Error, Tensor};

/// A weight in two parts: direction v, gain g, the kept axis and the eps policy. The request of [`Gpu::normalize`],
/// [`Gpu::normalize_in_place`], [`Gpu::row_norms`] and the like of [`Recorder`], and the weight of a
/// [`Linear`](crate::Linear).
///
/// ```text
/// n_j = sqrt( Σ_{o,i} v[o,j,i]² )        n̂_j = eps policy of n_j        w = g·(v/n̂)        without g: v/n̂
/// ```
///
/// ```
/// # use weightnorm::{Axis, Eps, Tensor, WeightNorm};
/// # fn weights(v: Tensor, g: Tensor) {
/// let weight = WeightNorm::new(&v, &g); // axis 0, clamp 1e-12
/// let weight = WeightNorm::new(&v, &g).axis(Axis::Whole).eps(Eps::None);
/// # }
/// ```
///
/// - v, w: one shape of any rank. g: one for each index of the kept axis, flat or with ones as in PyTorch. Norms: f32,
///   in the shape of v with ones everywhere but at the kept axis, or flat. v, w, g: any storage types.
/// - w is right wherever it is representable, over the whole range of f32; norms are for any finite v whose norm an f32
///   holds. A zero row gives w = 0, under [`Eps::None`] NaN. NaN and infinity stay in their row.
/// - Reference: PyTorch's `weight_norm`, `torch.linalg.vector_norm`.
///
/// # Dispatches
/// - Norms: one, two where rows are split over workgroups or are not contiguous, more past a binding's or a dispatch's
///   limit.
/// - w: one more than the norms, or two with known norms. One in all where a workgroup can hold its rows: contiguous
///   (kept axis 0), of whole 16 bytes and at most 16 KiB, in a v and w that start at multiples of 16 bytes and have one
///   storage type. On a CPU only small tensors, and short rows, of which a few, up to 8, have to fill whole 16 bytes,
///   and as many have to divide the rows.
///
/// # Errors
/// [`ArgumentError::Shape`] or [`ArgumentError::DType`] if g, the norms or the output do not fit;
/// [`ArgumentError::Axis`], [`ArgumentError::Eps`]. Besides those of every operator ([`Error`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct WeightNorm<'a> {
    pub(crate) v: &'a Tensor,
    pub(crate) g: Option<&'a Tensor>,
    pub(crate) axis: Axis,
    pub(crate) eps: Eps,
    pub(crate) norms: Option<&'a Tensor>,
}

impl<'a> WeightNorm<'a> {
    /// Kept axis 0, eps policy clamp 1e-12. `g`: any storage type, one for each index of the kept axis, flat or
    /// with ones as in PyTorch.
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

    /// Operations of [`Gpu::normalize`].
    pub(crate) fn operations(&self) -> u64 {
        self.norms_operations() + self.v.len() as u64
    }

    /// Operations for the norms, unless they are known.
    pub(crate) fn norms_operations(&self) -> u64 {
        if self.norms.is_some() { 0 } else { 2 * self.v.len() as u64 }
    }

    pub(crate) fn check(&self, op: &'static str) -> Result<(), Error> {
        Layout::new(self.v.shape(), self.axis)?;
        self.eps.check()?;
        let shape = norms_shape(self.v.shape(), self.axis);
        self.g.map_or(Ok(()), |g| expect_gain(op, "g", g, &shape))?;
        self.norms.map_or(Ok(()), |norms| expect_per_norm(op, "norms", norms, &shape))
    }
}
