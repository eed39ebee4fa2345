//! The same by Burn's operators: for other backends, and for what the kernels do not take.
use burn::tensor::module::{conv_transpose1d, conv1d, conv2d, linear};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Shape, Tensor};

/// The clamp of the norms, squared: `Eps::Clamp(1e-12)`.
const LEAST_SQUARE: f32 = 1e-24;

/// Norms over all axes but the kept one, with ones there; where the clamp is active they do not depend on v.
pub(crate) fn norms<const D: usize>(v: Tensor<D>, axis: usize) -> Tensor<D> {
    let squares = v.powi_scalar(2);
    let sums = (0..D).filter(|&other| other != axis).fold(squares, |sums, other| sums.sum_dim(other));
    sums.clamp_min(LEAST_SQUARE).sqrt()
}

/// w = g·v/n̂, computed in f32, of the type of v.
pub(crate) fn weight<const D: usize, const G: usize>(v: Tensor<D>, g: Tensor<G>, axis: usize) -> Tensor<D> {
    let dtype = v.dtype();
    let mut ones = [1; D];
    ones[axis] = v.dims()[axis];
    let narrow = matches!(dtype, DType::F16 | DType::BF16 | DType::Flex32);
    let v = if narrow { v.cast(DType::F32) } else { v };
    let g = g.reshape(Shape::from(ones)).cast(v.dtype());
    let w = v.clone() * (g / norms(v, axis));
    if narrow { w.cast(dtype) } else { w }
}

pub(crate) fn linear_layer<const D: usize>(
    x: Tensor<D>,
    v: Tensor<2>,
    g: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    linear(x, weight(v, g, 0).transpose(), bias)
}

pub(crate) fn conv1d_layer(
    x: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: ConvOptions<1>,
) -> Tensor<3> {
    conv1d(x, weight(v, g, 0), bias, options)
}

pub(crate) fn conv2d_layer(
    x: Tensor<4>,
    v: Tensor<4>,
    g: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: ConvOptions<2>,
) -> Tensor<4> {
    conv2d(x, weight(v, g, 0), bias, options)
}

pub(crate) fn conv_transpose1d_layer(
    x: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: ConvTransposeOptions<1>,
) -> Tensor<3> {
    conv_transpose1d(x, weight(v, g, 0), bias, options)
}
