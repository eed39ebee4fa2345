//! Derivatives of activations.
use super::{activate, check_elements};
use crate::{Activation, Error};
#[cfg(doc)]
use crate::{ArgumentError, LimitError};

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
        _ => dy * derivative(z, activation),
    };
    Ok(z.iter().zip(dy).map(pulled_back).collect())
}

/// The derivative of [`activate`] at z, as PyTorch has it: at 0 that of ReLU is 0, of leaky ReLU its slope; at a NaN
/// that of ReLU and of ELU is 1, of leaky ReLU its slope. GELU and SiLU have none at an infinity: NaN.
pub fn derivative(z: f64, activation: Activation) -> f64 {
    // Of z·s(a), s(a) = 1 / (1 + exp(-a)): 1 - s(a) = s(-a).
    let gated = |a: f64, slope_of_a: f64| {
        let s = |a: f64| 1.0 / (1.0 + (-a).exp());
        s(a) * (1.0 + z * slope_of_a * s(-a))
    };
    match activation {
        Activation::None => 1.0,
        Activation::Relu => f64::from(u8::from(z > 0.0 || z.is_nan())),
        Activation::LeakyRelu(slope) => {
            if z > 0.0 {
                1.0
            } else {
                f64::from(slope)
            }
        }
        _ if z.is_infinite() && activation != Activation::Tanh => f64::NAN,
        Activation::Gelu => {
            let c = (8.0 / std::f64::consts::PI).sqrt();
            gated(c * (z + 0.044715 * z * z * z), c * (1.0 + 3.0 * 0.044715 * z * z))
        }
        Activation::Silu => gated(z, 1.0),
        Activation::Tanh => derivative_from_output(activate(z, activation), activation),
    }
}

/// The same from y = act(z), where it follows from y: of ReLU, leaky ReLU with a slope above 0, tanh; NaN of the
/// others.
pub fn derivative_from_output(y: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None | Activation::Relu => derivative(y, activation),
        Activation::LeakyRelu(slope) if slope > 0.0 => derivative(y, activation),
        Activation::Tanh => (1.0 - y) * (1.0 + y),
        _ => f64::NAN,
    }
}
