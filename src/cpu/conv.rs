//! Convolutions and transposed convolutions, in 1-D and 2-D, with their gradients.
use super::{LinearGradients, Weight, activate, activate_backward, gated, gated_derivatives, snake};
use super::{check_elements, check_features, check_size, normalize_backward, snake_derivatives};
#[cfg(doc)]
use crate::LimitError;
use crate::conv::geometry::Sides;
use crate::{Activation, ArgumentError, ConvGeometry, Error, Gate};

/// What is done before and behind the sums of a convolution:
///
/// ```text
/// y = act( scale · (sums of act_in(x) + bias + residual) + onto )
/// ```
///
/// With a gate y has half the channels of the sums: channel j is made of what that formula gives for channels j and
/// out / 2 + j, without act, and the residual, its condition, has the shape of the sums.
///
/// `ConvEnds::default()` does nothing.
#[derive(Debug, Clone, Copy)]
pub struct ConvEnds<'a> {
    /// act_in.
    pub input_activation: Activation,
    /// α of [`snake`] in place of act_in, for each input channel.
    pub input_snake: Option<&'a [f64]>,
    /// The shape of y.
    pub residual: Option<&'a [f64]>,
    /// What multiplies the sums.
    pub scale: f64,
    /// What y held, where it is added to.
    pub onto: Option<&'a [f64]>,
    /// act.
    pub activation: Activation,
    /// α of [`snake`] in place of act, for each output channel.
    pub snake: Option<&'a [f64]>,
    /// Of [`conv`] alone, with one group, without act and onto.
    pub gate: Option<Gate>,
}

impl Default for ConvEnds<'_> {
    fn default() -> Self {
        let none = Activation::None;
        ConvEnds {
            input_activation: none,
            input_snake: None,
            residual: None,
            scale: 1.0,
            onto: None,
            activation: none,
            snake: None,
            gate: None,
        }
    }
}

impl ConvEnds<'_> {
    /// `y_shape`: that of the sums.
    fn check(&self, op: &'static str, x_shape: &[usize], y_shape: &[usize], groups: usize) -> Result<(), Error> {
        let bent = self.activation != Activation::None || self.snake.is_some() || self.onto.is_some();
        if self.gate.is_some() && (bent || groups != 1 || op != "conv" || !y_shape[1].is_multiple_of(2)) {
            let reason = "a gate is for conv of one group and an even number of channels, without what follows it";
            return Err(ArgumentError::Variant { op, got: "a gate".to_owned(), reason: reason.to_owned() }.into());
        }
        self.input_activation.check(op)?;
        self.activation.check(op)?;
        check_features(op, "input_snake", self.input_snake, x_shape[1])?;
        check_features(op, "snake", self.snake, y_shape[1])?;
        self.residual.map_or(Ok(()), |residual| check_elements("residual", y_shape, residual.len()))?;
        self.onto.map_or(Ok(()), |onto| check_elements("onto", y_shape, onto.len()))
    }

    /// act_in(x)
    fn before(&self, x: &[f64], shape: &[usize]) -> Vec<f64> {
        let each = |(at, &x): (usize, &f64)| match self.input_snake {
            Some(alpha) => snake(x, alpha[channel_of(at, shape)]),
            None => activate(x, self.input_activation),
        };
        x.iter().enumerate().map(each).collect()
    }

    /// y of sums.
    fn behind(&self, sums: Vec<f64>, shape: &[usize], bias: Option<&[f64]>) -> Vec<f64> {
        let each = |(at, sum): (usize, f64)| {
            let channel = channel_of(at, shape);
            let of = |tensor: Option<&[f64]>, at: usize| tensor.map_or(0.0, |tensor| tensor[at]);
            let y = self.scale * (sum + of(bias, channel) + of(self.residual, at)) + of(self.onto, at);
            match self.snake {
                Some(alpha) => snake(y, alpha[channel]),
                None => activate(y, self.activation),
            }
        };
        let z: Vec<f64> = sums.into_iter().enumerate().map(each).collect();
        match self.gate {
            Some(gate) => gated_halves(&z, shape, gate),
            None => z,
        }
    }
}

/// A convolution, in 1-D or 2-D by the rank of w:
///
/// ```text
/// y[b, j, u] = Σ_i,κ w[j, i, κ] · x[b, gI + i, u·stride + κ·dilation − padding] + bias_j
/// ```
///
/// where j is in group g, and I = in / groups.
///
/// - `x`: `x_shape` = `[B, in, T]` or `[B, in, H, W]`. `w`: `w_shape` = `[out, in / groups, k]` or `[.., kh, kw]`.
///   `bias`: `[out]`. The result: [`ConvGeometry::conv_shape`]. `ends`: what else is done before and behind.
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
    ends: &ConvEnds,
) -> Result<Vec<f64>, Error> {
    let op = "conv";
    let sides = Sides::of_conv(op, geometry, x_shape, w_shape)?;
    check_operands(x, x_shape, ("w", w), w_shape, &sides.c_shape())?;
    check_features(op, "bias", bias, sides.wide)?;
    ends.check(op, x_shape, &sides.c_shape(), sides.groups)?;
    let sums = c_of(&sides, &ends.before(x, x_shape), w);
    Ok(ends.behind(sums, &sides.c_shape(), bias))
}

/// A transposed convolution, in 1-D or 2-D by the rank of w: the gradient of [`conv`] with respect to its x.
///
/// ```text
/// y[b, gO + o, t] = Σ_i,κ w[i, o, κ] · x[b, i, u] + bias        over u·stride + κ·dilation − padding = t
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
    ends: &ConvEnds,
) -> Result<Vec<f64>, Error> {
    let op = "conv_transposed";
    let sides = Sides::of_transposed(op, geometry, x_shape, w_shape)?;
    check_operands(x, x_shape, ("w", w), w_shape, &sides.a_shape())?;
    check_features(op, "bias", bias, sides.groups * sides.channels)?;
    ends.check(op, x_shape, &sides.a_shape(), sides.groups)?;
    let sums = a_of(&sides, &ends.before(x, x_shape), w);
    Ok(ends.behind(sums, &sides.a_shape(), bias))
}

/// The gradients of [`conv`] with an activation of x alone, each in the shape of what it belongs to. dv and dg are
/// those of [`normalize_backward`] of dw.
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
    input_activation: Activation,
) -> Result<LinearGradients, Error> {
    let sides = Sides::of_conv("conv_backward", geometry, x_shape, w_shape)?;
    check_operands(x, x_shape, weight.tensor(), w_shape, &sides.c_shape())?;
    check_elements("dy", &sides.c_shape(), dy.len())?;
    input_activation.check("conv_backward")?;
    let entered = ConvEnds { input_activation, ..Default::default() }.before(x, x_shape);
    let dx = through(a_of(&sides, dy, &weight.product(w_shape)?), x, input_activation);
    let (dv, dg) = of_weight(&v_of(&sides, dy, &entered), weight, w_shape)?;
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
    input_activation: Activation,
) -> Result<LinearGradients, Error> {
    let sides = Sides::of_transposed("conv_transposed_backward", geometry, x_shape, w_shape)?;
    check_operands(x, x_shape, weight.tensor(), w_shape, &sides.a_shape())?;
    check_elements("dy", &sides.a_shape(), dy.len())?;
    input_activation.check("conv_transposed_backward")?;
    let entered = ConvEnds { input_activation, ..Default::default() }.before(x, x_shape);
    let dx = through(c_of(&sides, dy, &weight.product(w_shape)?), x, input_activation);
    let (dv, dg) = of_weight(&v_of(&sides, &entered, dy), weight, w_shape)?;
    Ok(LinearGradients { dx, dv, dg, dbias: sum_of_channels(dy, &sides.a_shape()) })
}

/// The gradient of what a gate was given, z of `z_shape` = `[B, 2H, ..]`; `dy`: `[B, H, ..]`. Of a convolution, with
/// z = scale · (c + bias + condition), it gives, times scale, dcondition, and what [`conv_backward`] takes as its dy.
///
/// # Errors
/// [`ArgumentError::Length`]; [`ArgumentError::Shape`] for an odd number of channels; [`LimitError::TensorTooLarge`].
pub fn gate_backward(gate: Gate, z: &[f64], z_shape: &[usize], dy: &[f64]) -> Result<Vec<f64>, Error> {
    let halves = z_shape.get(1).copied().filter(|channels| z_shape.len() > 2 && channels.is_multiple_of(2));
    let Some(channels) = halves else {
        let expected = "[B, 2H, ..]".to_owned();
        return Err(ArgumentError::Shape { op: "gate_backward", arg: "z", got: z_shape.to_vec(), expected }.into());
    };
    check_elements("z", z_shape, z.len())?;
    check_elements("dy", &[&[z_shape[0], channels / 2], &z_shape[2..]].concat(), dy.len())?;
    let mut dz = vec![0.0; z.len()];
    let half = (z_shape[1..].iter().product::<usize>() / 2).max(1);
    for (at, dy) in dy.iter().enumerate() {
        let first = at + at / half * half;
        let [by_first, by_second] = gated_derivatives(z[first], z[first + half], gate);
        (dz[first], dz[first + half]) = (dy * by_first, dy * by_second);
    }
    Ok(dz)
}

/// dx and dα of snake(x), given `d`, the gradient of snake(x): that is dx of [`conv_backward`] for snake(x) in place of
/// x, whose other gradients are those of a convolution with an `input_snake`.
///
/// - `x`, `d` and dx: `x_shape` = `[B, channels, ..]`. `alpha` and dα: `[channels]`.
///
/// # Errors
/// [`ArgumentError::Length`]; [`LimitError::TensorTooLarge`].
pub fn snake_backward(x: &[f64], x_shape: &[usize], alpha: &[f64], d: &[f64]) -> Result<(Vec<f64>, Vec<f64>), Error> {
    check_elements("x", x_shape, x.len())?;
    check_elements("d", x_shape, d.len())?;
    check_elements("alpha", &[x_shape.get(1).copied().unwrap_or(0)], alpha.len())?;
    let (mut dx, mut dalpha) = (vec![], vec![0.0; alpha.len()]);
    for (at, (&x, d)) in x.iter().zip(d).enumerate() {
        let channel = channel_of(at, x_shape);
        let [by_x, by_alpha] = snake_derivatives(x, alpha[channel]);
        dx.push(d * by_x);
        dalpha[channel] += d * by_alpha;
    }
    Ok((dx, dalpha))
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

/// Each image's first half of channels, gated by its second half.
fn gated_halves(z: &[f64], shape: &[usize], gate: Gate) -> Vec<f64> {
    let half = (shape[1..].iter().product::<usize>() / 2).max(1);
    let image = |image: &[f64]| -> Vec<f64> {
        let (first, second) = image.split_at(half);
        first.iter().zip(second).map(|(&a, &b)| gated(a, b, gate)).collect()
    };
    z.chunks(2 * half).flat_map(image).collect()
}

/// The channel of an element of `[B, channels, ..]`.
fn channel_of(at: usize, shape: &[usize]) -> usize {
    at / shape[2..].iter().product::<usize>() % shape[1]
}

/// A gradient behind an activation of x, before it.
fn through(dx: Vec<f64>, x: &[f64], activation: Activation) -> Vec<f64> {
    dx.into_iter().zip(x).map(|(dx, &x)| dx * activate_backward(x, activation)).collect()
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
