//! The linear layer of directions.
use super::{LinearGradients, Weight, check_product, linear, linear_backward, normalize, normalize_backward};
use crate::{Activation, Axis, Eps, Error};
#[cfg(doc)]
use crate::{ArgumentError, LimitError};

/// Cosines between rows of x and rows of v, times a gain:
///
/// ```text
/// y[b,j] = g_j · Σ_k (x[b,k] / n̂(x_b)) · (v[j,k] / n̂(v_j))        without g: g = 1
/// ```
///
/// - `x`: `x_shape` = `[.., K]`. `v`: `v_shape` = `[N, K]`. `g`: `[N]`. The result: `[.., N]`.
/// - The eps policy is that of both sides.
///
/// # Errors
/// As [`linear`](super::linear) and [`normalize`](super::normalize).
pub fn cosine(
    x: &[f64],
    x_shape: &[usize],
    v: &[f64],
    v_shape: &[usize],
    g: Option<&[f64]>,
    eps: Eps,
) -> Result<Vec<f64>, Error> {
    let (batch, [_, ins]) = check_product("cosine", x, x_shape, "v", v, v_shape)?;
    let unit_x = normalize(x, &[batch, ins], None, Axis::Kept(0), eps)?;
    let w = normalize(v, v_shape, g, Axis::Kept(0), eps)?;
    linear(&unit_x, x_shape, &w, v_shape, None, Activation::None)
}

/// The gradients of [`cosine`].
#[derive(Debug, Clone, PartialEq)]
pub struct CosineGradients {
    /// Of x.
    pub dx: Vec<f64>,
    /// Of v.
    pub dv: Vec<f64>,
    /// Of g. It comes without `g` too: it is what a gain of 1 would get.
    pub dg: Vec<f64>,
}

/// The gradients of [`cosine`]: those of a linear layer of x̂ = x/n̂(x), and from dx̂ that of x by
/// [`normalize_backward`](super::normalize_backward).
///
/// - `dy`: y's shape.
///
/// # Errors
/// As [`cosine`]; [`ArgumentError::Length`].
pub fn cosine_backward(
    x: &[f64],
    x_shape: &[usize],
    v: &[f64],
    v_shape: &[usize],
    g: Option<&[f64]>,
    eps: Eps,
    dy: &[f64],
) -> Result<CosineGradients, Error> {
    let (batch, [_, ins]) = check_product("cosine_backward", x, x_shape, "v", v, v_shape)?;
    let unit_x = normalize(x, &[batch, ins], None, Axis::Kept(0), eps)?;
    let weight = Weight::Normalized { v, g, axis: Axis::Kept(0), eps };
    let gradients = linear_backward(&unit_x, x_shape, weight, v_shape, None, Activation::None, dy)?;
    let LinearGradients { dx: unit_dx, dv, dg, .. } = gradients;
    let (dx, _) = normalize_backward(&unit_dx, x, &[batch, ins], None, Axis::Kept(0), eps)?;
    Ok(CosineGradients { dx, dv, dg: dg.unwrap_or_default() })
}
