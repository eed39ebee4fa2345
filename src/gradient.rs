//! The backward pass of the weight-normalized product. Shader: `product/gradient.wgsl`.
pub(crate) mod epilogue;
pub(crate) mod record;

use crate::contract::norms_shape;
use crate::product::selection::Selection;
use crate::{Axis, DType, Error, Gpu, LinearOptions, Tensor, Tile, Weight, WeightNorm, Write};

/// Which gradients of a linear layer are wanted, and where. `Gradients::default()` wants none.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Gradients<'a> {
    /// Of x: shaped as x, any storage type.
    pub dx: Option<&'a Tensor>,
    /// Of v, or of an ordinary weight: shaped as it, any storage type.
    pub dv: Option<&'a Tensor>,
    /// Of g: any storage type, shaped as the norms or flat.
    pub dg: Option<&'a Tensor>,
    /// Of the bias: any storage type, `[out_features]`.
    pub dbias: Option<&'a Tensor>,
    /// Whether dv, dg and dbias are replaced or added to (micro-batches). dx is replaced.
    pub write: Write,
    /// Forces a tile, for tests and tuning. Its sums are whole unless `split_length` says otherwise.
    pub tile: Option<Tile>,
    /// Forces a split of the sums, for tests and tuning.
    pub split_length: Option<u32>,
}

impl<'a> Gradients<'a> {
    /// Wants dx.
    pub fn dx(mut self, dx: &'a Tensor) -> Self {
        self.dx = Some(dx);
        self
    }

    /// Wants dv.
    pub fn dv(mut self, dv: &'a Tensor) -> Self {
        self.dv = Some(dv);
        self
    }

    /// Wants dg.
    pub fn dg(mut self, dg: &'a Tensor) -> Self {
        self.dg = Some(dg);
        self
    }

    /// Wants dbias.
    pub fn dbias(mut self, dbias: &'a Tensor) -> Self {
        self.dbias = Some(dbias);
        self
    }

    /// Replaces what dv, dg and dbias hold, or adds to it.
    pub fn write(mut self, write: Write) -> Self {
        self.write = write;
        self
    }

    /// Forces a tile.
    pub fn tile(mut self, tile: Tile) -> Self {
        self.tile = Some(tile);
        self
    }

    /// Forces a split of the sums.
    pub fn split_length(mut self, split_length: u32) -> Self {
        self.split_length = Some(split_length);
        self
    }

    pub(crate) fn selection(&self) -> Selection {
        Selection { tile: self.tile, split_length: self.split_length }
    }
}

/// What the forward pass of a training step keeps for the backward pass.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Saved {
    /// The effective norms n̂, f32, with ones everywhere but at the kept axis; none for an ordinary weight.
    pub norms: Option<Tensor>,
    /// u = (x·v)/n̂, f32, shaped as y; for kept axis 0 and the whole tensor.
    pub u: Option<Tensor>,
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

impl Gpu {
    /// [`Gpu::linear`] for training: y, and what [`Gpu::linear_backward`] wants of the forward pass. The dispatches are
    /// those of [`Gpu::linear`]: the norms and u come out of the product.
    ///
    /// # Errors
    /// As [`Gpu::linear`].
    pub fn linear_saved<'a>(
        &self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
    ) -> Result<(Tensor, Saved), Error> {
        let weight = weight.into();
        let y = self.zeros_of("linear_saved: y", &crate::linear::y_shape(x, weight.v())?, x.dtype())?;
        let normalized = weight.normalized();
        let norms = |w: WeightNorm<'_>| self.zeros(&norms_shape(w.v.shape(), w.axis), DType::F32);
        let norms = normalized.map(norms).transpose()?;
        let has_u = normalized.is_some_and(|w| w.axis != Axis::Kept(1));
        let u = if has_u { Some(self.zeros(y.shape(), DType::F32)?) } else { None };
        let options = LinearOptions { norms: norms.as_ref(), u: u.as_ref(), ..Default::default() };
        self.run(|ops| ops.linear_into_with(x, weight, bias, &y, &options))?;
        Ok((y, Saved { norms, u }))
    }

    /// The gradients of [`Gpu::linear`] without an activation, given dy and what [`Gpu::linear_saved`] kept.
    ///
    /// ```text
    /// dg_j = Σ_b dy[b,j]·u[b,j]        dbias_j = Σ_b dy[b,j]        dx = (dy ⊙ a)·v        a = g/n̂
    /// dv_j = a_j·((dyᵀx)_j - dg_j·(v_j/d_j))        d: see [`Gpu::normalize_backward`]
    /// ```
    ///
    /// for kept axis 0; for kept axis 1, with q = dy·v:
    ///
    /// ```text
    /// dx = q ⊙ a        dg_k = Σ_b x[b,k]·q[b,k]/n̂_k        dv_jk = a_k·((dyᵀx)_jk - dg_k·(v_jk/d_k))
    /// ```
    ///
    /// No buffer for dw = dyᵀx exists. An ordinary weight gets dw as dv. For dv to be right dg need not be representable,
    /// but u has to be, with kept axis 1 q/n̂.
    ///
    /// `dy`: y's shape, any storage type.
    ///
    /// # Errors
    /// As [`Gpu::linear`].
    pub fn linear_backward<'a>(
        &self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        dy: &Tensor,
        saved: &'a Saved,
    ) -> Result<LinearGradients, Error> {
        let weight = match weight.into() {
            Weight::Normalized(w) => Weight::Normalized(WeightNorm { norms: saved.norms.as_ref().or(w.norms), ..w }),
            plain => plain,
        };
        let v = weight.v();
        let dx = self.zeros(x.shape(), x.dtype())?;
        let dv = self.zeros(v.shape(), v.dtype())?;
        let dg = |w: WeightNorm<'_>| self.zeros(&norms_shape(w.v.shape(), w.axis), DType::F32);
        let dg = weight.normalized().map(dg).transpose()?;
        let dbias = self.zeros(&v.shape()[..v.shape().len().min(1)], DType::F32)?;
        let gradients =
            Gradients { dx: Some(&dx), dv: Some(&dv), dg: dg.as_ref(), dbias: Some(&dbias), ..Default::default() };
        self.run(|ops| ops.linear_backward_into(x, weight, dy, saved.u.as_ref(), &gradients))?;
        Ok(LinearGradients { dx, dv, dg, dbias })
    }
}
