//! Convolutions and transposed convolutions, in 1-D and 2-D, with their gradients.
use super::{LinearGradients, Weight, activate, check_elements, check_features, check_size, normalize_backward};
use crate::conv::geometry::Sides;
use crate::{Activation, ConvGeometry, Error};
#[cfg(doc)]
use crate::{ArgumentError, LimitError};

/// A convolution, in 1-D or 2-D by the rank of w:
///
/// ```text
/// y[b, j, u] = act( Σ_i,κ w[j, i, κ] · x[b, gI + i, u·stride + κ·dilation − padding] + bias_j )
/// ```
///
/// where j is in group g, and I = in / groups.
///
/// - `x`: `x_shape` = `[B, in, T]` or `[B, in, H, W]`. `w`: `w_shape` = `[out, in / groups, k]` or `[.., kh, kw]`.
///   `bias`: `[out]`. The result: [`ConvGeometry::conv_shape`].
///
/// # Errors
/// [`ArgumentError::Shape`], [`ArgumentError::Number`] if shapes and `geometry` do not fit; [`ArgumentError::Length`];
/// [`LimitError::TensorTooLarge`].
pub fn conv(
    x: &[f64],
    x_shape: &[usize],
    w: &[f64],
    w_shape: &[usize],
    bias: Option<&[f64]>,
    geometry: &ConvGeometry,
    activation: Activation,
) -> Result<Vec<f64>, Error> {
    let op = "conv";
    let sides = Sides::of_conv(op, geometry, x_shape, w_shape)?;
    check_operands(x, x_shape, ("w", w), w_shape, &sides.c_shape())?;
    check_features(op, "bias", bias, sides.wide)?;
    activation.check(op)?;
    Ok(with_ends(c_of(&sides, x, w), &sides.c_shape(), bias, activation))
}

/// A transposed convolution, in 1-D or 2-D by the rank of w: the gradient of [`conv`] with respect to its x.
///
/// ```text
/// y[b, gO + o, t] = act( Σ_i,κ w[i, o, κ] · x[b, i, u] + bias )        over u·stride + κ·dilation − padding = t
/// ```
///
/// where i is in group g, and O = out / groups.
///
/// - `x`: `x_shape` = `[B, in, U]` or `[B, in, H, W]`. `w`: `w_shape` = `[in, out / groups, k]` or `[.., kh, kw]`: axis
///   0 is *in*, as in PyTorch. `bias`: `[out]`. The result: [`ConvGeometry::conv_transposed_shape`].
///
/// # Errors
/// As [`conv`]; [`ArgumentError::Variant`] for a padding of anything but zeros.
pub fn conv_transposed(
    x: &[f64],
    x_shape: &[usize],
    w: &[f64],
    w_shape: &[usize],
    bias: Option<&[f64]>,
    geometry: &ConvGeometry,
    activation: Activation,
) -> Result<Vec<f64>, Error> {
    let op = "conv_transposed";
    let sides = Sides::of_transposed(op, geometry, x_shape, w_shape)?;
    check_operands(x, x_shape, ("w", w), w_shape, &sides.a_shape())?;
    check_features(op, "bias", bias, sides.groups * sides.channels)?;
    activation.check(op)?;
    Ok(with_ends(a_of(&sides, x, w), &sides.a_shape(), bias, activation))
}

/// The gradients of [`conv`] without an activation, each in the shape of what it belongs to. dv and dg are those of
/// [`normalize_backward`] of dw.
///
/// - `dy`: the shape of y. dg: one element per index of the kept axis; none for an ordinary weight. dbias: `[out]`.
///
/// # Errors
/// Those of [`conv`] and [`normalize_backward`].
pub fn conv_backward(
    x: &[f64],
    x_shape: &[usize],
    weight: Weight,
    w_shape: &[usize],
    dy: &[f64],
    geometry: &ConvGeometry,
) -> Result<LinearGradients, Error> {
    let sides = Sides::of_conv("conv_backward", geometry, x_shape, w_shape)?;
    check_operands(x, x_shape, weight.tensor(), w_shape, &sides.c_shape())?;
    check_elements("dy", &sides.c_shape(), dy.len())?;
    let dx = a_of(&sides, dy, &weight.product(w_shape)?);
    let (dv, dg) = of_weight(&v_of(&sides, dy, x), weight, w_shape)?;
    Ok(LinearGradients { dx, dv, dg, dbias: sum_of_channels(dy, &sides.c_shape()) })
}

/// The gradients of [`conv_transposed`], as [`conv_backward`] has them.
///
/// # Errors
/// Those of [`conv_transposed`] and [`normalize_backward`].
pub fn conv_transposed_backward(
    x: &[f64],
    x_shape: &[usize],
    weight: Weight,
    w_shape: &[usize],
    dy: &[f64],
    geometry: &ConvGeometry,
) -> Result<LinearGradients, Error> {
    let sides = Sides::of_transposed("conv_transposed_backward", geometry, x_shape, w_shape)?;
    check_operands(x, x_shape, weight.tensor(), w_shape, &sides.a_shape())?;
    check_elements("dy", &sides.a_shape(), dy.len())?;
    let dx = c_of(&sides, dy, &weight.product(w_shape)?);
    let (dv, dg) = of_weight(&v_of(&sides, x, dy), weight, w_shape)?;
    Ok(LinearGradients { dx, dv, dg, dbias: sum_of_channels(dy, &sides.a_shape()) })
}

/// Calls `term` with the places of every product of a convolution, in c, a and v. With zeros around a what falls on
/// them is no term.
fn each_term(sides: &Sides, mut term: impl FnMut(usize, usize, usize)) {
    let &Sides { batch, groups, wide, channels, kernel: [kh, kw], a_size: [h, w], c_size: [c_h, c_w], .. } = sides;
    for (b, p) in pairs(batch, wide) {
        let group = p / (wide / groups);
        for (uy, ux) in pairs(c_h, c_w) {
            let c = ((b * wide + p) * c_h + uy) * c_w + ux;
            for q in 0..channels {
                for (ky, kx) in pairs(kh, kw) {
                    let (Some(y), Some(x)) = (sides.position(0, uy, ky), sides.position(1, ux, kx)) else { continue };
                    let a = ((b * groups * channels + group * channels + q) * h + y) * w + x;
                    term(c, a, ((p * channels + q) * kh + ky) * kw + kx);
                }
            }
        }
    }
}

fn pairs(first: usize, second: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..first).flat_map(move |i| (0..second).map(move |j| (i, j)))
}

/// c = Σ v·a: a convolution, or the gradient of a transposed one.
fn c_of(sides: &Sides, a: &[f64], v: &[f64]) -> Vec<f64> {
    let mut c = vec![0.0; sides.c_shape().iter().product()];
    each_term(sides, |at_c, at_a, at_v| c[at_c] += v[at_v] * a[at_a]);
    c
}

/// a = Σ v·c: a transposed convolution, or the gradient of a convolution.
fn a_of(sides: &Sides, c: &[f64], v: &[f64]) -> Vec<f64> {
    let mut a = vec![0.0; sides.a_shape().iter().product()];
    each_term(sides, |at_c, at_a, at_v| a[at_a] += v[at_v] * c[at_c]);
    a
}

/// dw = Σ c·a.
fn v_of(sides: &Sides, c: &[f64], a: &[f64]) -> Vec<f64> {
    let mut dw = vec![0.0; sides.wide * sides.channels * sides.kernel[0] * sides.kernel[1]];
    each_term(sides, |at_c, at_a, at_v| dw[at_v] += c[at_c] * a[at_a]);
    dw
}

/// dv and dg of dw.
fn of_weight(dw: &[f64], weight: Weight, shape: &[usize]) -> Result<(Vec<f64>, Option<Vec<f64>>), Error> {
    match weight {
        Weight::Plain(_) => Ok((dw.to_vec(), None)),
        Weight::Normalized { v, g, axis, eps } => {
            normalize_backward(dw, v, shape, g, axis, eps).map(|(dv, dg)| (dv, Some(dg)))
        }
    }
}

/// The channel of an element of `[B, channels, ..]`.
fn channel_of(at: usize, shape: &[usize]) -> usize {
    at / shape[2..].iter().product::<usize>() % shape[1]
}

fn with_ends(mut y: Vec<f64>, shape: &[usize], bias: Option<&[f64]>, activation: Activation) -> Vec<f64> {
    for (at, y) in y.iter_mut().enumerate() {
        *y = activate(*y + bias.map_or(0.0, |bias| bias[channel_of(at, shape)]), activation);
    }
    y
}

fn sum_of_channels(dy: &[f64], shape: &[usize]) -> Vec<f64> {
    let mut sums = vec![0.0; shape[1]];
    for (at, dy) in dy.iter().enumerate() {
        sums[channel_of(at, shape)] += dy;
    }
    sums
}

fn check_operands(
    x: &[f64],
    x_shape: &[usize],
    (arg, w): (&'static str, &[f64]),
    w_shape: &[usize],
    y_shape: &[usize],
) -> Result<(), Error> {
    check_elements("x", x_shape, x.len())?;
    check_elements(arg, w_shape, w.len())?;
    check_size("y", y_shape)
}
