//! DoRA: a frozen weight, a low-rank update, and a magnitude for each row.
use super::{
    LinearGradients, Weight, check_elements, linear, linear_backward, normalize, normalize_backward, row_norms,
};
#[cfg(doc)]
use crate::LimitError;
use crate::contract::Range;
use crate::{Activation, ArgumentError, Axis, Eps, Error};

/// The weight of a layer adapted by DoRA:
///
/// ```text
/// W = W0 + s·B·A        w_j = m_j · W_j / n̂(W_j)
/// ```
#[derive(Debug, Clone, Copy)]
pub struct DoraWeight<'a> {
    /// W0, `[N, K]`.
    pub base: &'a [f64],
    /// `[rank, K]`.
    pub a: &'a [f64],
    /// `[N, rank]`.
    pub b: &'a [f64],
    /// m, `[N]`.
    pub magnitude: &'a [f64],
    /// `[N, K]`.
    pub shape: [usize; 2],
    /// The rank.
    pub rank: usize,
    /// s.
    pub scaling: f64,
    /// The eps policy.
    pub eps: Eps,
}

/// The gradients of [`dora`].
#[derive(Debug, Clone, PartialEq)]
pub struct DoraGradients {
    /// Of x.
    pub dx: Vec<f64>,
    /// Of A.
    pub da: Vec<f64>,
    /// Of B.
    pub db: Vec<f64>,
    /// Of m.
    pub dmagnitude: Vec<f64>,
    /// Of the bias.
    pub dbias: Vec<f64>,
}

impl DoraWeight<'_> {
    fn check(&self, op: &'static str) -> Result<(), Error> {
        let &DoraWeight { base, a, b, magnitude, shape: [outs, ins], rank, scaling, .. } = self;
        check_elements("base", &[outs, ins], base.len())?;
        check_elements("a", &[rank, ins], a.len())?;
        check_elements("b", &[outs, rank], b.len())?;
        if magnitude.len() != outs {
            let expected = format!("[{outs}]");
            return Err(ArgumentError::Shape { op, arg: "magnitude", got: vec![magnitude.len()], expected }.into());
        }
        Range::Finite.check(op, "the scaling", scaling)
    }

    /// W.
    fn sum(&self) -> Vec<f64> {
        let &DoraWeight { base, a, b, shape: [outs, ins], rank, scaling, .. } = self;
        let mut w = base.to_vec();
        for j in 0..outs {
            for r in 0..rank {
                for k in 0..ins {
                    w[j * ins + k] += scaling * b[j * rank + r] * a[r * ins + k];
                }
            }
        }
        w
    }
}

/// The effective norms of the rows of W, `[N]`.
///
/// # Errors
/// [`ArgumentError::Length`], [`ArgumentError::Shape`], [`ArgumentError::Eps`], [`ArgumentError::Number`] for a scaling
/// that is not finite, [`LimitError::TensorTooLarge`].
pub fn dora_norms(weight: &DoraWeight<'_>) -> Result<Vec<f64>, Error> {
    weight.check("dora_norms")?;
    row_norms(&weight.sum(), &weight.shape, Axis::Kept(0), weight.eps)
}

/// The ordinary weight w, `[N, K]`.
///
/// # Errors
/// As [`dora_norms`].
pub fn dora_merge(weight: &DoraWeight<'_>) -> Result<Vec<f64>, Error> {
    weight.check("dora_merge")?;
    normalize(&weight.sum(), &weight.shape, Some(weight.magnitude), Axis::Kept(0), weight.eps)
}

/// A linear layer with that weight:
///
/// ```text
/// y[b,j] = Σ_k x[b,k] · w[j,k] + bias_j
/// ```
///
/// - `x`: `x_shape` = `[.., K]`. `bias`: `[N]`. The result: `[.., N]`.
///
/// # Errors
/// As [`dora_norms`] and [`linear`](super::linear).
pub fn dora(x: &[f64], x_shape: &[usize], weight: &DoraWeight<'_>, bias: Option<&[f64]>) -> Result<Vec<f64>, Error> {
    linear(x, x_shape, &dora_merge(weight)?, &weight.shape, bias, Activation::None)
}

/// The gradients of [`dora`]. With dw = dyᵀx that of w, that of W is, with the norm held constant (the paper, section
/// 4.3, and peft), or `through_norms`:
///
/// ```text
/// dW_j = (m_j/n̂_j)·dw_j        or        that of v in normalize_backward, with v = W and g = m
/// dA = s·Bᵀ·dW        dB = s·dW·Aᵀ        dm as there
/// ```
///
/// - `dy`: y's shape. W0 has no gradient.
///
/// # Errors
/// As [`dora`].
pub fn dora_backward(
    x: &[f64],
    x_shape: &[usize],
    weight: &DoraWeight<'_>,
    dy: &[f64],
    through_norms: bool,
) -> Result<DoraGradients, Error> {
    let &DoraWeight { a, b, magnitude, shape: shape @ [outs, ins], rank, scaling, eps, .. } = weight;
    let w = dora_merge(weight)?;
    let plain = linear_backward(x, x_shape, Weight::Plain(&w), &shape, None, Activation::None, dy)?;
    let LinearGradients { dx, dv: dw, dbias, .. } = plain;
    let sum = weight.sum();
    let (through, dmagnitude) = normalize_backward(&dw, &sum, &shape, Some(magnitude), Axis::Kept(0), eps)?;
    let norms = dora_norms(weight)?;
    let constant = || dw.iter().enumerate().map(|(i, dw)| magnitude[i / ins] / norms[i / ins] * dw).collect();
    let of_sum: Vec<f64> = if through_norms { through } else { constant() };
    let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
    for j in 0..outs {
        for r in 0..rank {
            for k in 0..ins {
                da[r * ins + k] += scaling * b[j * rank + r] * of_sum[j * ins + k];
                db[j * rank + r] += scaling * of_sum[j * ins + k] * a[r * ins + k];
            }
        }
    }
    Ok(DoraGradients { dx, da, db, dmagnitude, dbias })
}
