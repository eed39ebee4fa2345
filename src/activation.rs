//! The gradient of an activation: what is asked of it. Shaders: `shaders/activation`.
pub(crate) mod gradient;

use crate::arguments::{Arguments, expect_shape};
use crate::{Activation, ArgumentError, Error, Gpu, Recorder, Tensor};
#[cfg(doc)]
use crate::{Linear, LinearBackward};
use gradient::ActivationGradient;

const OP: &str = "activation_backward";

/// The gradient of an [`Activation`], given that of what it gave: the request of [`Gpu::activation_backward`] and
/// [`Recorder::activation_backward`].
///
/// ```text
/// dz = dy ⊙ act'(z)        y = act(z)
/// ```
///
/// ```no_run
/// # use weightnorm::{Activation, ActivationBackward, Error, Gpu, Tensor};
/// # fn f(gpu: &Gpu, z: Tensor, dy: Tensor) -> Result<Tensor, Error> {
/// gpu.activation_backward(ActivationBackward::new(Activation::Silu, &z, &dy))
/// # }
/// ```
///
/// - `z`, `dy`, `dz`: one shape, any storage types, in any mixture. dz may be dy itself.
/// - [`ActivationBackward::from_output`] takes y in place of z, for activations whose derivative follows from it.
/// - At 0 the derivative of ReLU is 0, of leaky ReLU its slope. Where ReLU's is 0 so is dz, whatever dy is.
///   NaN in z keeps dy under ReLU and ELU; GELU and SiLU have no derivative at an infinity: NaN. All as in PyTorch.
/// - The gradient of a [`Linear`] with an activation needs no call of this: [`LinearBackward::activation`].
/// - Reference: PyTorch's autograd of `torch.nn.functional.relu`, `leaky_relu`, `elu`, `gelu`, `silu`, `tanh`.
///
/// # Dispatches
/// One; more past the limits of a binding or a dispatch.
///
/// # Errors
/// [`ArgumentError::Shape`] if the tensors do not fit; [`ArgumentError::Number`] for a slope that is not finite;
/// [`ArgumentError::Variant`] for a derivative that does not follow from y. Besides those of every operator
/// ([`Error`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct ActivationBackward<'a> {
    activation: Activation,
    at: &'a Tensor,
    dy: &'a Tensor,
    from_output: bool,
}

impl<'a> ActivationBackward<'a> {
    /// Of an activation of z, whose result has the gradient dy.
    pub fn new(activation: Activation, z: &'a Tensor, dy: &'a Tensor) -> Self {
        ActivationBackward { activation, at: z, dy, from_output: false }
    }

    /// What was given as z is y = act(z). For ReLU, leaky ReLU with a slope above 0, ELU, tanh, and no activation.
    pub fn from_output(self) -> Self {
        ActivationBackward { from_output: true, ..self }
    }

    fn check(&self, ops: &mut Recorder<'_, '_>, dz: &Tensor) -> Result<(), Error> {
        let &ActivationBackward { activation, at, dy, from_output } = self;
        activation.check(OP)?;
        if from_output {
            activation.check_from_output(OP)?;
        }
        let arg = if from_output { "y" } else { "z" };
        expect_shape(OP, "dy", dy, at.shape())?;
        expect_shape(OP, "dz", dz, at.shape())?;
        let in_place = gradient::are_one(dy, dz);
        Arguments::new(OP)
            .input_if(activation != Activation::None, arg, at)
            .input("dy", Some(dy).filter(|_| !in_place))
            .output_onto(in_place, "dz", dz)
            .operations(at.len() as u64)
            .begin(ops)
    }
}

impl Activation {
    /// Refuses an activation whose derivative does not follow from what it gave.
    pub(crate) fn check_from_output(self, op: &'static str) -> Result<(), Error> {
        let reason = match self {
            Activation::None | Activation::Relu | Activation::Elu | Activation::Tanh => return Ok(()),
            Activation::LeakyRelu(slope) if slope > 0.0 => return Ok(()),
            Activation::LeakyRelu(_) => {
                "the sign of what leaky ReLU gave tells that of its input for slopes above 0 only"
            }
            Activation::Gelu | Activation::GeluTanh | Activation::Silu => {
                "GELU and SiLU give the same number for two inputs"
            }
        };
        Err(ArgumentError::Variant { op, got: format!("{self:?} from its output"), reason: reason.to_owned() }.into())
    }
}

impl Gpu {
    /// The gradient of an activation: dz of [`ActivationBackward`], in dy's storage type.
    ///
    /// # Errors
    /// As [`ActivationBackward`].
    pub fn activation_backward(&self, backward: ActivationBackward<'_>) -> Result<Tensor, Error> {
        let dz = self.zeros(backward.dy.shape(), backward.dy.dtype())?;
        self.run(|ops| ops.activation_backward(backward, &dz))?;
        Ok(dz)
    }
}

impl Recorder<'_, '_> {
    /// Records [`ActivationBackward`] into `dz`: z's shape, any storage type; dy itself, or apart from it.
    ///
    /// # Errors
    /// As [`ActivationBackward`].
    pub fn activation_backward(&mut self, backward: ActivationBackward<'_>, dz: &Tensor) -> Result<(), Error> {
        backward.check(self, dz)?;
        let ActivationBackward { activation, at, dy, from_output } = backward;
        ActivationGradient { from_output, ..ActivationGradient::new(activation, Some(at), dy) }.record(self, dz)
    }
}
