//! Gradients of the weight and of the linear layer.
use super::{
    activation_backward, check_elements, check_features, check_gain, check_product, linear, normalize, row_norms,
};
use crate::contract::Layout;
use crate::{Activation, Axis, Eps, Error};
#[cfg(doc)]
use crate::{ArgumentError, LimitError};

/// The gradients of [`normalize`](super::normalize):
///
/// ```text
/// dg_j = Σ dw · (v / n̂_j)  over row j        dv = (g_j / n̂_j) · (dw − dg_j · (v / d_j))        without g: g = 1
/// ```
///
/// where d comes of differentiating n̂, and the second term is absent where n̂ does not change with v:
///
/// | policy | d | absent |
/// |---|---|---|
/// | [`Eps::None`], [`Eps::InsideSqrt`] | n̂ | |
/// | [`Eps::Clamp`] | n̂ | n ≤ e, the clamp is active |
/// | [`Eps::After`] | n | n = 0 |
///
/// - `dw`, `v` and dv: `shape`. `g` and dg: one element per index of the kept axis, one in all for [`Axis::Whole`].
/// - Returns `(dv, dg)`. dg comes without `g` too: it is what a gain of 1 would get.
/// - A zero row gives dg = 0 and dv = g·dw/n̂, but NaN under [`Eps::None`]. g may be zero (dv = 0) or negative.
/// - Under [`Eps::None`] Σ dv·v = 0 row by row: a step along −dv never shortens v.
///
/// # Errors
/// [`ArgumentError::Axis`], [`ArgumentError::Eps`], [`ArgumentError::Length`], [`LimitError::TooLarge`];
/// [`ArgumentError::Shape`] for a `g` of another size.
pub fn normalize_backward(
    dw: &[f64],
    v: &[f64],
    shape: &[usize],
    g: Option<&[f64]>,
    axis: Axis,
    eps: Eps,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let norms = row_norms(v, shape, axis, eps)?;
    let plain_norms = row_norms(v, shape, axis, Eps::None)?;
    check_elements("dw", shape, dw.len())?;
    check_gain("normalize_backward", g, shape, axis)?;
    let Layout { outer, kept, inner } = Layout::new(shape, axis)?;

    let mut dg = vec![0.0; kept];
    for o in 0..outer {
        for j in 0..kept {
            for i in 0..inner {
                let at = (o * kept + j) * inner + i;
                dg[j] += dw[at] * (v[at] / norms[j]);
            }
        }
    }

    let mut dv = vec![0.0; v.len()];
    for o in 0..outer {
        for j in 0..kept {
            let scale = g.map_or(1.0, |g| g[j]) / norms[j];
            let divisor = correction_divisor(plain_norms[j], norms[j], eps);
            for i in 0..inner {
                let at = (o * kept + j) * inner + i;
                let correction = divisor.map_or(0.0, |d| dg[j] * (v[at] / d));
                dv[at] = scale * (dw[at] - correction);
            }
        }
    }
    Ok((dv, dg))
}

/// d of a row with the norm n and the effective norm n̂; none where the second term is absent.
fn correction_divisor(n: f64, effective: f64, eps: Eps) -> Option<f64> {
    match eps {
        Eps::None | Eps::InsideSqrt(_) => Some(effective),
        // False for a NaN, which so reaches dv.
        Eps::Clamp(e) if n <= f64::from(e) => None,
        Eps::Clamp(_) => Some(effective),
        Eps::After(_) if n == 0.0 => None,
        Eps::After(_) => Some(n),
    }
}

/// The weight of a linear layer, `[N, K]` = `[out_features, in_features]`, or of a convolution: ordinary, or
/// weight-normalized.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// w itself.
    Plain(&'a [f64]),
    /// w = g·(v/n̂), as [`normalize`](super::normalize) has it.
    Normalized {
        /// The direction.
        v: &'a [f64],
        /// The gain, one element per index of the kept axis; 1 if there is none.
        g: Option<&'a [f64]>,
        /// The kept axis: of a linear layer 0 (out), 1 (in) or the whole tensor.
        axis: Axis,
        /// The eps policy.
        eps: Eps,
    },
}

impl Weight<'_> {
    /// w.
    pub(super) fn product(&self, shape: &[usize]) -> Result<Vec<f64>, Error> {
        match *self {
            Weight::Plain(w) => Ok(w.to_vec()),
            Weight::Normalized { v, g, axis, eps } => normalize(v, shape, g, axis, eps),
        }
    }

    /// The tensor of the shape of w that the layer holds.
    pub(super) fn tensor(&self) -> (&'static str, &[f64]) {
        match self {
            Weight::Plain(w) => ("w", w),
            Weight::Normalized { v, .. } => ("v", v),
        }
    }
}

/// What the forward pass of a training step keeps for [`linear_backward`] on the GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// n̂, one element per index of the kept axis.
    pub norms: Vec<f64>,
    /// What the gain multiplies, shaped as y; none for kept axis in, where the gain is inside the sum.
    pub u: Option<Vec<f64>>,
}

/// What [`linear`](super::linear) with a normalized weight keeps for the backward pass:
///
/// ```text
/// u[b,j] = ( Σ_k x[b,k] · v[j,k] ) / n̂_j        (n̂ for the whole tensor)
/// ```
///
/// so that y = g·u + bias, and dg is the sum of dy·u over the batch (and over j, for the whole tensor).
///
/// - `x`: `x_shape` = `[.., K]`. `v`: `v_shape` = `[N, K]`. u: `[.., N]`.
/// - A zero row gives u = 0, but NaN under [`Eps::None`].
///
/// # Errors
/// Those of [`linear`](super::linear) and [`row_norms`](super::row_norms).
pub fn linear_saved(
    x: &[f64],
    x_shape: &[usize],
    v: &[f64],
    v_shape: &[usize],
    axis: Axis,
    eps: Eps,
) -> Result<Saved, Error> {
    check_product("linear_saved", x, x_shape, "v", v, v_shape)?;
    let norms = row_norms(v, v_shape, axis, eps)?;
    let norm_of = |j: usize| if axis == Axis::Whole { norms[0] } else { norms[j] };
    if axis == Axis::Kept(1) {
        return Ok(Saved { norms, u: None });
    }
    let mut u = linear(x, x_shape, v, v_shape, None, Activation::None)?;
    for (at, u) in u.iter_mut().enumerate() {
        *u /= norm_of(at % v_shape[0]);
    }
    Ok(Saved { norms, u: Some(u) })
}

/// The gradients of a linear layer or a convolution, each in the shape of what it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearGradients {
    /// The shape of x.
    pub dx: Vec<f64>,
    /// The shape of v; of an ordinary weight, dw.
    pub dv: Vec<f64>,
    /// One element per index of the kept axis, as from [`normalize_backward`]; none for an ordinary weight.
    pub dg: Option<Vec<f64>>,
    /// One element per output feature or channel.
    pub dbias: Vec<f64>,
}

/// The gradients of [`linear`](super::linear) with a bias and an activation, given dy:
///
/// ```text
/// z[b,j] = Σ_k x[b,k] · w[j,k] + bias_j        dz = dy · act'(z)
/// dx[b,k] = Σ_j dz[b,j] · w[j,k]        dw[j,k] = Σ_b dz[b,j] · x[b,k]        dbias_j = Σ_b dz[b,j]
/// ```
///
/// and dv, dg by [`normalize_backward`] of dw. The GPU forms no dw; this is what it must come to.
///
/// - `x`: `x_shape` = `[.., K]`. `weight`: `w_shape` = `[N, K]`. `bias`: `[N]`. `dy`: `[.., N]`, the batch of x.
/// - An empty batch gives dw, dg, dbias = 0.
///
/// # Errors
/// Those of [`linear`](super::linear) and [`normalize_backward`]; [`ArgumentError::Length`] for a `dy` of another size.
pub fn linear_backward(
    x: &[f64],
    x_shape: &[usize],
    weight: Weight,
    w_shape: &[usize],
    bias: Option<&[f64]>,
    activation: Activation,
    dy: &[f64],
) -> Result<LinearGradients, Error> {
    let (name, tensor) = weight.tensor();
    let (batch, [outs, ins]) = check_product("linear_backward", x, x_shape, name, tensor, w_shape)?;
    check_features("linear_backward", "bias", bias, outs)?;
    check_elements("dy", &[batch, outs], dy.len())?;
    let w = weight.product(w_shape)?;
    let z = linear(x, x_shape, &w, w_shape, bias, Activation::None)?;
    let dz = activation_backward(activation, &z, dy)?;

    let mut dx = vec![0.0; batch * ins];
    let mut dw = vec![0.0; outs * ins];
    let mut dbias = vec![0.0; outs];
    for b in 0..batch {
        for j in 0..outs {
            let dz = dz[b * outs + j];
            for k in 0..ins {
                dx[b * ins + k] += dz * w[j * ins + k];
                dw[j * ins + k] += dz * x[b * ins + k];
            }
            dbias[j] += dz;
        }
    }
    let (dv, dg) = match weight {
        Weight::Plain(_) => (dw, None),
        Weight::Normalized { v, g, axis, eps } => {
            let (dv, dg) = normalize_backward(&dw, v, w_shape, g, axis, eps)?;
            (dv, Some(dg))
        }
    };
    Ok(LinearGradients { dx, dv, dg, dbias })
}
