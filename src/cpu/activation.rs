//! Activations and their derivatives; the formulas stand at [`Activation`].
use std::f64::consts::{FRAC_2_PI, PI};

use crate::Activation;

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
/// At 0, where ReLU, leaky ReLU have none, it is that from below, as in PyTorch. NaN stays NaN but for
/// [`Activation::None`].
pub fn activate_backward(y: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => 1.0,
        _ if y.is_nan() => y,
        Activation::Relu if y > 0.0 => 1.0,
        Activation::Relu => 0.0,
        Activation::LeakyRelu(_) | Activation::Elu if y > 0.0 => 1.0,
        Activation::LeakyRelu(slope) => slope.into(),
        Activation::Elu => y.exp(),
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

/// 1 / (1 + exp(-z))
fn logistic(z: f64) -> f64 {
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
