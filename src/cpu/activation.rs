//! Activations and their derivatives; the formulas stand at [`Activation`].
use std::f64::consts::{FRAC_2_PI, PI};

use super::check_elements;
use crate::{Activation, Error, Gate};
#[cfg(doc)]
use crate::{ArgumentError, LimitError};

/// One activation of one number. NaN passes through every one.
///
/// At y = −∞, both forms of GELU and SiLU are −∞ · 0 = NaN, as they are in PyTorch.
pub fn activate(y: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => y,
        // Not f64::max, which would make a 0 of NaN.
        Activation::Relu => {
            if y < 0.0 {
                0.0
            } else {
                y
            }
        }
        Activation::LeakyRelu(slope) => {
            if y < 0.0 {
                f64::from(slope) * y
            } else {
                y
            }
        }
        Activation::Elu => {
            if y < 0.0 {
                y.exp_m1()
            } else {
                y
            }
        }
        Activation::Gelu => y * normal_below(y),
        // (1 + tanh z) / 2 does not cancel as a logistic function.
        Activation::GeluTanh => y * logistic(2.0 * tanh_form(y)),
        Activation::Silu => y * logistic(y),
        Activation::Tanh => y.tanh(),
    }
}

/// The derivative of [`activate`] with respect to y, by which a gradient from behind the activation is multiplied.
///
/// At 0, where ReLU and leaky ReLU have none, it is that from below, as in PyTorch; and as there at a NaN it is 1 of
/// ReLU and ELU, the slope of leaky ReLU. GELU and SiLU have none at an infinity: NaN.
pub fn activate_backward(y: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => 1.0,
        Activation::Relu if y <= 0.0 => 0.0,
        Activation::LeakyRelu(slope) if y <= 0.0 || y.is_nan() => slope.into(),
        Activation::Elu if y <= 0.0 => y.exp(),
        Activation::Relu | Activation::LeakyRelu(_) | Activation::Elu => 1.0,
        Activation::Gelu => normal_below(y) + y * density(y),
        Activation::GeluTanh => {
            let z = 2.0 * tanh_form(y);
            let slope = 2.0 * FRAC_2_PI.sqrt() * (1.0 + 3.0 * 0.044715 * y * y);
            logistic(z) + y * slope * (logistic(z) * logistic(-z))
        }
        Activation::Silu => logistic(y) + y * (logistic(y) * logistic(-y)),
        Activation::Tanh => 1.0 / y.cosh().powi(2),
    }
}

/// Snake, x + sin²(αx) / (α + 1e-9).
pub fn snake(x: f64, alpha: f64) -> f64 {
    x + (alpha * x).sin().powi(2) / (alpha + 1e-9)
}

/// A [`Gate`] of a number of the first half and one of the second.
pub fn gated(first: f64, second: f64, gate: Gate) -> f64 {
    match gate {
        Gate::TanhSigmoid => first.tanh() * logistic(second),
        Gate::Glu => first * logistic(second),
    }
}

/// The derivatives of [`gated`] by its first and by its second number.
pub fn gated_derivatives(first: f64, second: f64, gate: Gate) -> [f64; 2] {
    let sigmoid = logistic(second);
    let slope = sigmoid * logistic(-second);
    match gate {
        Gate::TanhSigmoid => [sigmoid / first.cosh().powi(2), first.tanh() * slope],
        Gate::Glu => [sigmoid, first * slope],
    }
}

/// The derivatives of [`snake`] by x and by α:
///
/// ```text
/// 1 + α·sin(2αx)/(α + 1e-9)        x·sin(2αx)/(α + 1e-9) − (sin(αx)/(α + 1e-9))²
/// ```
pub fn snake_derivatives(x: f64, alpha: f64) -> [f64; 2] {
    let (theta, divisor) = (alpha * x, alpha + 1e-9);
    let by_theta = (2.0 * theta).sin() / divisor;
    [1.0 + alpha * by_theta, x * by_theta - (theta.sin() / divisor).powi(2)]
}

/// [`activate_backward`] from y = act(z), where it follows from y: of ReLU, leaky ReLU with a slope above 0, ELU, tanh.
/// NaN of the others.
pub fn activate_backward_from_output(y: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Elu if y <= 0.0 => y + 1.0,
        Activation::None | Activation::Relu | Activation::Elu => activate_backward(y, activation),
        Activation::LeakyRelu(slope) if slope > 0.0 => activate_backward(y, activation),
        Activation::Tanh => (1.0 - y) * (1.0 + y),
        Activation::LeakyRelu(_) | Activation::Gelu | Activation::GeluTanh | Activation::Silu => f64::NAN,
    }
}

/// The gradient of an activation y = act(z):
///
/// ```text
/// dz = dy · act'(z)
/// ```
///
/// - `z`, `dy` and the result: flat, of one size.
/// - Where the derivative of ReLU is 0 so is dz, whatever dy is.
///
/// # Errors
/// [`ArgumentError::Length`] for a `dy` of another size; [`ArgumentError::Number`] for a slope that is not finite;
/// [`LimitError::TensorTooLarge`].
pub fn activation_backward(activation: Activation, z: &[f64], dy: &[f64]) -> Result<Vec<f64>, Error> {
    activation.check("activation_backward")?;
    check_elements("dy", &[z.len()], dy.len())?;
    let pulled_back = |(&z, &dy): (&f64, &f64)| match activation {
        Activation::Relu if z <= 0.0 => 0.0,
        _ => dy * activate_backward(z, activation),
    };
    Ok(z.iter().zip(dy).map(pulled_back).collect())
}

/// 1 / (1 + exp(-z))
pub(super) fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// What the tanh form of GELU takes the tanh of.
fn tanh_form(y: f64) -> f64 {
    FRAC_2_PI.sqrt() * (y + 0.044715 * y * y * y)
}

/// The density of the normal distribution.
fn density(y: f64) -> f64 {
    (-y * y / 2.0).exp() / (2.0 * PI).sqrt()
}

/// The part of the normal distribution below y: (1 + erf(y/√2)) / 2, without cancelling far below 0.
fn normal_below(y: f64) -> f64 {
    let distance = y.abs();
    let beyond = if distance < 2.0 {
        // 1/2 − φ(s)·(s + s³/3 + s⁵/(3·5) + ..)
        let (mut sum, mut term) = (0.0, distance);
        for n in 1..60 {
            sum += term;
            term *= distance * distance / f64::from(2 * n + 1);
        }
        0.5 - density(distance) * sum
    } else {
        // φ(s)/(s + 1/(s + 2/(s + ..))), for 2 the slowest: off by 1e-24
        density(distance) / (1..100).rev().fold(distance, |below, n| distance + f64::from(n) / below)
    };
    if y < 0.0 { beyond } else { 1.0 - beyond }
}
