//! The CPU reference: every operator under its GPU name, all in f64, written to be read.
//!
//! A tensor is a flat slice in row-major order with its shape beside it. [`Axis`] names the axis that keeps one norm
//! per index; a *row* is the set of elements that share such an index, wherever they lie in memory.
//!
//! ```
//! use weightnorm::{Activation, Axis, Eps, cpu};
//!
//! let v = [3.0, 4.0, 0.0, 2.0]; // two rows, of norms 5 and 2
//! let w = cpu::normalize(&v, &[2, 2], Some(&[10.0, 1.0]), Axis::Kept(0), Eps::None)?;
//! assert_eq!(w, [6.0, 8.0, 0.0, 1.0]);
//!
//! let y = cpu::linear(&[1.0, 1.0], &[1, 2], &w, &[2, 2], Some(&[0.5, -2.0]), Activation::Relu)?;
//! assert_eq!(y, [14.5, 0.0]);
//! # Ok::<(), weightnorm::Error>(())
//! ```
//!
//! Numbers: a sum of squares in f64 neither overflows nor underflows for inputs in the range of f32, f16 or bf16, so
//! nothing is scaled here. The e of a policy is the f32 that [`Eps`] holds, widened. NaN and infinity follow IEEE
//! arithmetic: a row with a NaN has the norm NaN under every policy, a row with an infinity has an infinite norm and
//! w = NaN at the infinity, 0 elsewhere.
//!
//! Gradients: a name d… is ∂L/∂… of a scalar loss L, in the shape of what follows the d.
//!
//! Every operator returns [`ArgumentError::Length`] where a slice does not hold what its shape says, and
//! [`LimitError::TensorTooLarge`] past 2³² − 1 elements.
mod activation;
mod backward;
mod batch;
mod conv;
mod cosine;
mod dora;
mod optimizer;
mod recurrent;

use crate::contract::{Layout, norms_shape};
use crate::{Activation, ArgumentError, Axis, Element, Eps, Error, LimitError};

pub use activation::{
    activate, activate_backward, activate_backward_from_output, activation_backward, gated, gated_derivatives, snake,
    snake_derivatives,
};
pub use backward::{LinearGradients, Saved, Weight, linear_backward, linear_saved, normalize_backward};
pub use batch::{
    data_dependent_init, mean_only_batch_norm, mean_only_batch_norm_backward, subtract_running_mean,
    update_running_mean,
};
pub use conv::{
    ConvEnds, conv, conv_backward, conv_transposed, conv_transposed_backward, gate_backward, snake_backward,
};
pub use cosine::{CosineGradients, cosine, cosine_backward};
pub use dora::{DoraGradients, DoraWeight, dora, dora_backward, dora_merge, dora_norms};
pub use optimizer::{AdamState, Moments, SgdState, adam_step, sgd_step};
pub use recurrent::{Recurrent, RecurrentGradients, Sequence, mlstm, recurrent, recurrent_backward};

/// The elements of a slice in any storage type, as f64. Exact.
pub fn widen<T: Element + Into<f64>>(data: &[T]) -> Vec<f64> {
    data.iter().map(|&x| x.into()).collect()
}

/// Effective norms, one per index of the kept axis:
///
/// ```text
/// n_j = √( Σ v² over row j )        n̂_j = n_j | √(n_j² + e) | max(n_j, e) | n_j + e
/// ```
///
/// - `v`: `shape`. The result is flat, as long as the kept axis; one element for [`Axis::Whole`].
/// - [`Eps::None`] gives the plain norm n. An empty row has n = 0.
///
/// # Errors
/// [`ArgumentError::Axis`], [`ArgumentError::Eps`], [`ArgumentError::Length`], [`LimitError::TensorTooLarge`].
pub fn row_norms(v: &[f64], shape: &[usize], axis: Axis, eps: Eps) -> Result<Vec<f64>, Error> {
    eps.check()?;
    check_elements("v", shape, v.len())?;
    let Layout { outer, kept, inner } = Layout::new(shape, axis)?;

    let mut squares = vec![0.0; kept];
    for o in 0..outer {
        for (j, sum) in squares.iter_mut().enumerate() {
            for i in 0..inner {
                let x = v[(o * kept + j) * inner + i];
                *sum += x * x;
            }
        }
    }
    Ok(squares.into_iter().map(|square| effective_norm(square, eps)).collect())
}

/// Weight normalization, or rows of unit norm where there is no gain:
///
/// ```text
/// w = g_j · (v / n̂_j)        without g: w = v / n̂_j
/// ```
///
/// - `v` and the result: `shape`. `g`: one element per index of the kept axis, one in all for [`Axis::Whole`]; zero
///   and negative gains are fine.
/// - A zero row gives w = 0, but NaN under [`Eps::None`].
///
/// # Errors
/// [`ArgumentError::Axis`], [`ArgumentError::Eps`], [`ArgumentError::Length`], [`LimitError::TensorTooLarge`];
/// [`ArgumentError::Shape`] for a `g` of another size.
pub fn normalize(v: &[f64], shape: &[usize], g: Option<&[f64]>, axis: Axis, eps: Eps) -> Result<Vec<f64>, Error> {
    let norms = row_norms(v, shape, axis, eps)?;
    check_gain("normalize", g, shape, axis)?;
    let Layout { outer, kept, inner } = Layout::new(shape, axis)?;

    let mut w = vec![0.0; v.len()];
    for o in 0..outer {
        for j in 0..kept {
            for i in 0..inner {
                let at = (o * kept + j) * inner + i;
                let unit = v[at] / norms[j];
                w[at] = match g {
                    Some(g) => g[j] * unit,
                    None => unit,
                };
            }
        }
    }
    Ok(w)
}

/// An ordinary weight taken apart, which is how weight normalization is attached to a trained layer:
///
/// ```text
/// v = w        g_j = n̂_j(w)
/// ```
///
/// so that [`normalize`] of the two with the same axis and policy is w again, up to rounding. Returns `(v, g)`;
/// `v`: `shape`, `g`: flat, one element per index of the kept axis. A zero row comes back as zeros, but as NaN under
/// [`Eps::None`].
///
/// # Errors
/// [`ArgumentError::Axis`], [`ArgumentError::Eps`], [`ArgumentError::Length`], [`LimitError::TensorTooLarge`].
pub fn decompose(w: &[f64], shape: &[usize], axis: Axis, eps: Eps) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let g = row_norms(w, shape, axis, eps)?;
    Ok((w.to_vec(), g))
}

/// The product with a weight that is already there, plain or from [`normalize`]:
///
/// ```text
/// y[b,j] = act( Σ_k x[b,k] · w[j,k] + bias_j )
/// ```
///
/// - `x`: `x_shape` = `[.., K]`, where everything before the last axis is batch. `w`: `w_shape` = `[N, K]`.
///   `bias`: `[N]`. The result: `[.., N]`.
/// - K = 0 gives act(bias), or act(0) without a bias.
///
/// # Errors
/// [`ArgumentError::Shape`] where `w` is not of rank 2, `x` has no last axis or another K, or `bias` is not `[N]`;
/// [`ArgumentError::Length`]; [`LimitError::TensorTooLarge`], also for y; [`ArgumentError::Number`] for a slope that is
/// not finite.
pub fn linear(
    x: &[f64],
    x_shape: &[usize],
    w: &[f64],
    w_shape: &[usize],
    bias: Option<&[f64]>,
    activation: Activation,
) -> Result<Vec<f64>, Error> {
    let op = "linear";
    let (batch, [out_features, in_features]) = check_product(op, x, x_shape, "w", w, w_shape)?;
    check_features(op, "bias", bias, out_features)?;
    activation.check(op)?;

    let mut y = Vec::with_capacity(batch * out_features);
    for b in 0..batch {
        let x_row = &x[b * in_features..][..in_features];
        for j in 0..out_features {
            let w_row = &w[j * in_features..][..in_features];
            let product: f64 = x_row.iter().zip(w_row).map(|(x, w)| x * w).sum();
            let bias = bias.map_or(0.0, |bias| bias[j]);
            y.push(activate(product + bias, activation));
        }
    }
    Ok(y)
}

/// n̂ from n², under a policy.
pub fn effective_norm(square: f64, eps: Eps) -> f64 {
    let n = square.sqrt();
    match eps {
        Eps::None => n,
        Eps::InsideSqrt(e) => (square + f64::from(e)).sqrt(),
        // Not f64::max, which would make an e of NaN.
        Eps::Clamp(e) => {
            if n < f64::from(e) {
                f64::from(e)
            } else {
                n
            }
        }
        Eps::After(e) => n + f64::from(e),
    }
}

/// A gain has one element per index of the kept axis.
fn check_gain(op: &'static str, g: Option<&[f64]>, shape: &[usize], axis: Axis) -> Result<(), Error> {
    let Layout { kept, .. } = Layout::new(shape, axis)?;
    match g {
        Some(g) if g.len() != kept => {
            let expected = format!("{:?}, or flat [{kept}]", norms_shape(shape, axis));
            Err(ArgumentError::Shape { op, arg: "g", got: vec![g.len()], expected }.into())
        }
        _ => Ok(()),
    }
}

/// An optional vector has one element per feature.
fn check_features(op: &'static str, arg: &'static str, vector: Option<&[f64]>, features: usize) -> Result<(), Error> {
    match vector {
        Some(vector) if vector.len() != features => {
            Err(ArgumentError::Shape { op, arg, got: vec![vector.len()], expected: format!("[{features}]") }.into())
        }
        _ => Ok(()),
    }
}

/// `x`: `[.., K]` and the weight: `[N, K]` have a product. Returns (rows of x, [N, K]).
fn check_product(
    op: &'static str,
    x: &[f64],
    x_shape: &[usize],
    arg: &'static str,
    w: &[f64],
    w_shape: &[usize],
) -> Result<(usize, [usize; 2]), Error> {
    let &[out_features, in_features] = w_shape else {
        return Err(ArgumentError::Shape { op, arg, got: w_shape.to_vec(), expected: "[out, in]".into() }.into());
    };
    let Some((_, batch_shape)) = x_shape.split_last().filter(|(last, _)| **last == in_features) else {
        return Err(ArgumentError::Shape {
            op,
            arg: "x",
            got: x_shape.to_vec(),
            expected: format!("[.., {in_features}]"),
        }
        .into());
    };
    check_elements("x", x_shape, x.len())?;
    check_elements(arg, w_shape, w.len())?;
    let batch: usize = batch_shape.iter().product();
    check_size("y", &[batch, out_features])?;
    Ok((batch, [out_features, in_features]))
}

/// A slice of `len` elements holds a tensor of this shape.
fn check_elements(arg: &'static str, shape: &[usize], len: usize) -> Result<(), Error> {
    check_size(arg, shape)?;
    let expected = shape.iter().product();
    if len != expected {
        return Err(ArgumentError::Length { got: len, expected, shape: shape.to_vec() }.into());
    }
    Ok(())
}

/// A tensor of this shape is within the crate's limit, and so is every product of some of its sizes: a size of 0
/// counts as 1, so that neither the norms of `[2⁶³, 0]` nor the product `2⁶³ · 2⁶³ · 0` overflow.
fn check_size(what: &'static str, shape: &[usize]) -> Result<(), Error> {
    let limit = u64::from(u32::MAX);
    let size = shape.iter().fold(1u64, |size, &d| size.saturating_mul(d.max(1) as u64));
    if size > limit {
        return Err(LimitError::TensorTooLarge { what, shape: shape.to_vec(), size, unit: "elements", limit }.into());
    }
    Ok(())
}
