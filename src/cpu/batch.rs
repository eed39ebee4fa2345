//! What looks at a whole batch: data-dependent initialization and mean-only batch normalization (Salimans & Kingma
//! 2016, sections 3 and 4).
use super::{check_elements, check_features, linear_saved};
#[cfg(doc)]
use crate::LimitError;
use crate::contract::Range;
use crate::{ArgumentError, Axis, Eps, Error};

/// Data-dependent initialization: the gain and the bias with which every feature of y = g·t + b has mean 0 and
/// variance 1 over one batch (Salimans & Kingma 2016, section 3):
///
/// ```text
/// t[b,j] = (x[b,:]·v_j) / n̂_j        μ_j = mean_b t        σ_j = √( mean_b (t − μ_j)² )
/// g_j = 1/σ_j        bias_j = −μ_j/σ_j
/// ```
///
/// - `x`: `x_shape` = `[.., K]`, at least one row. `v`: `v_shape` = `[N, K]`, kept axis out. Returns `(g, bias)`,
///   `[N]` each.
/// - σ divides by the number of rows: it is this batch that gets variance 1.
/// - A feature that is constant over the batch, σ = 0, gets g = 1 and bias = −μ: mean 0 and an ordinary gain. So does
///   every feature of a batch of one row. σ is exactly 0 for equal t: see the two passes in the code.
/// - A zero row of v is such a feature, but gives NaN under [`Eps::None`].
///
/// For PyTorch's initialization, g = n̂, see [`decompose`](super::decompose).
///
/// # Errors
/// Those of [`linear_saved`]; [`ArgumentError::Shape`] for an empty batch.
pub fn data_dependent_init(
    x: &[f64],
    x_shape: &[usize],
    v: &[f64],
    v_shape: &[usize],
    eps: Eps,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let saved = linear_saved(x, x_shape, v, v_shape, Axis::Kept(0), eps)?;
    let t = saved.u.expect("kept axis out has u");
    let batch: usize = x_shape[..x_shape.len() - 1].iter().product();
    check_batch("data_dependent_init", "x", x_shape, batch)?;

    let features = v_shape[0];
    let (mut g, mut bias) = (Vec::new(), Vec::new());
    for j in 0..features {
        let (mean, deviation) = mean_and_deviation(t.iter().skip(j).step_by(features).copied());
        let gain = if deviation == 0.0 { 1.0 } else { 1.0 / deviation };
        g.push(gain);
        bias.push(-mean * gain);
    }
    Ok((g, bias))
}

/// μ and σ of some numbers, in two passes, each relative to the first number: equal numbers have a σ of exactly 0,
/// which their mean, being rounded, would not give.
fn mean_and_deviation(t: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let first = t.clone().next().unwrap_or(f64::NAN);
    let count = t.clone().count() as f64;
    let mean = t.clone().map(|t| t - first).sum::<f64>() / count;
    let variance = t.map(|t| (t - first - mean).powi(2)).sum::<f64>() / count;
    (first + mean, variance.sqrt())
}

/// Mean-only batch normalization in training (Salimans & Kingma 2016, section 4):
///
/// ```text
/// μ_j = mean_b t[b,j]        y[b,j] = t[b,j] − μ_j + bias_j
/// ```
///
/// - `t`: `shape` = `[.., N]`, at least one row: the product x·w without a bias, which would vanish. `bias`: `[N]`.
/// - Returns `(y, μ)`; μ goes into [`update_running_mean`].
///
/// # Errors
/// [`ArgumentError::Shape`] for a `t` without a last axis or an empty batch, or a `bias` that is not `[N]`;
/// [`ArgumentError::Length`]; [`LimitError::TooLarge`].
pub fn mean_only_batch_norm(t: &[f64], shape: &[usize], bias: Option<&[f64]>) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let op = "mean_only_batch_norm";
    let [batch, features] = matrix(op, "t", t, shape)?;
    check_batch(op, "t", shape, batch)?;
    check_features(op, "bias", bias, features)?;
    let mean = column_sums(t, features).into_iter().map(|sum| sum / batch as f64).collect::<Vec<_>>();
    let y = subtract_running_mean(t, shape, &mean, bias)?;
    Ok((y, mean))
}

/// [`mean_only_batch_norm`] in evaluation, with the running mean in the place of the batch's:
///
/// ```text
/// y[b,j] = t[b,j] − running_j + bias_j
/// ```
///
/// which equals an ordinary bias of bias − running.
///
/// - `t`: `shape` = `[.., N]`. `running`, `bias`: `[N]`.
///
/// # Errors
/// As [`mean_only_batch_norm`], but an empty batch is fine.
pub fn subtract_running_mean(
    t: &[f64],
    shape: &[usize],
    running: &[f64],
    bias: Option<&[f64]>,
) -> Result<Vec<f64>, Error> {
    let op = "subtract_running_mean";
    let [_, features] = matrix(op, "t", t, shape)?;
    check_features(op, "running", Some(running), features)?;
    check_features(op, "bias", bias, features)?;
    let centred = |(at, t): (usize, &f64)| t - running[at % features] + bias.map_or(0.0, |bias| bias[at % features]);
    Ok(t.iter().enumerate().map(centred).collect())
}

/// The running mean after a batch, with `momentum` as PyTorch means it (0.1 there), the part of the new:
///
/// ```text
/// running ← (1 − momentum)·running + momentum·μ
/// ```
///
/// # Errors
/// [`ArgumentError::Shape`] where the two differ in length; [`ArgumentError::Number`] for a `momentum` that is not from
/// 0 to 1.
pub fn update_running_mean(running: &mut [f64], mean: &[f64], momentum: f64) -> Result<(), Error> {
    let op = "update_running_mean";
    check_features(op, "mean", Some(mean), running.len())?;
    Range::Fraction.check(op, "the momentum", momentum)?;
    for (running, mean) in running.iter_mut().zip(mean) {
        *running = (1.0 - momentum) * *running + momentum * mean;
    }
    Ok(())
}

/// The gradients of [`mean_only_batch_norm`]:
///
/// ```text
/// dt[b,j] = dy[b,j] − mean_b dy[b,j]        dbias_j = Σ_b dy[b,j]
/// ```
///
/// - `dy` and dt: `shape` = `[.., N]`. dbias: `[N]`. Returns `(dt, dbias)`; no gradient goes to the running mean.
///
/// # Errors
/// [`ArgumentError::Shape`] for a `dy` without a last axis; [`ArgumentError::Length`]; [`LimitError::TooLarge`].
pub fn mean_only_batch_norm_backward(dy: &[f64], shape: &[usize]) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let [batch, features] = matrix("mean_only_batch_norm_backward", "dy", dy, shape)?;
    let dbias = column_sums(dy, features);
    let dt = dy.iter().enumerate().map(|(at, dy)| dy - dbias[at % features] / batch as f64).collect();
    Ok((dt, dbias))
}

fn column_sums(t: &[f64], features: usize) -> Vec<f64> {
    let mut sums = vec![0.0; features];
    for (at, t) in t.iter().enumerate() {
        sums[at % features] += t;
    }
    sums
}

/// (B, N) of a tensor `[.., N]`.
fn matrix(op: &'static str, arg: &'static str, t: &[f64], shape: &[usize]) -> Result<[usize; 2], Error> {
    let Some((&features, batch_shape)) = shape.split_last() else {
        return Err(ArgumentError::Shape { op, arg, got: vec![], expected: "[.., features]".into() }.into());
    };
    check_elements(arg, shape, t.len())?;
    Ok([batch_shape.iter().product(), features])
}

/// A mean needs a row.
fn check_batch(op: &'static str, arg: &'static str, shape: &[usize], batch: usize) -> Result<(), Error> {
    match batch {
        0 => Err(ArgumentError::Shape { op, arg, got: shape.to_vec(), expected: "a batch of at least one row".into() }
            .into()),
        _ => Ok(()),
    }
}
