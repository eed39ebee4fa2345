//! The layers as functions of tensors.
use burn::backend::Dispatch;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{DType, Tensor};
use weightnorm::{ConvGeometry, Error};

use crate::kernels::Forward;
use crate::layer::Layer;
use crate::operators;
use crate::support::{Problem, Way, decide};

/// Whether a layer of these goes to the kernels.
fn way<const X: usize, const V: usize>(
    layer: Layer,
    x: &Tensor<X>,
    v: &Tensor<V>,
    g: &Tensor<V>,
    bias: Option<&Tensor<1>>,
) -> Result<Way, Error> {
    let others = [Some(v.device()), Some(g.device()), bias.map(Tensor::device)];
    let others_tracked = others.iter().flatten().any(|device| device.is_autodiff());
    let problem = Problem::Layer {
        layer,
        x: x.dims().to_vec(),
        v: v.dims().to_vec(),
        g: g.dims().to_vec(),
        bias: bias.map(|bias| bias.dims().to_vec()),
        dtype: x.dtype(),
        tracked: x.device().is_autodiff() || others_tracked,
    };
    let way = decide(&x.device(), problem)?;
    Ok(if v.dtype() == x.dtype() { way } else { Way::Operators })
}

/// By the kernels, which want g and the bias in f32.
fn launch<const X: usize, const V: usize>(
    layer: Layer,
    x: Tensor<X>,
    v: Tensor<V>,
    g: Tensor<V>,
    bias: Option<Tensor<1>>,
) -> Tensor<X> {
    let g = f32(g);
    let has_bias = bias.is_some();
    // Where there is none, something has to stand for it.
    let bias = bias.map_or_else(|| g.clone().into_dispatch(), |bias| f32(bias).into_dispatch());
    let (x, v, g) = (x.into_dispatch(), v.into_dispatch(), g.into_dispatch());
    Tensor::from_dispatch(Dispatch::weightnorm_layer(x, v, g, bias, layer, has_bias))
}

fn f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.dtype() == DType::F32 { tensor } else { tensor.cast(DType::F32) }
}

/// A weight-normalized linear layer:
///
/// ```text
/// y[.., j] = Σ_k x[.., k] · w[j, k] + bias_j        w = g·v/n̂
/// ```
///
/// x: `[.., in]`, v: `[out, in]`, g: `[out, 1]`, bias: `[out]`, as PyTorch has them. x and v are of one type; f32 and
/// f16 go to the kernels, and so does everything that Burn's wgpu backend has there; all else goes to Burn's operators.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    v: Tensor<2>,
    g: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Result<Tensor<D>, Error> {
    match way(Layer::Linear, &x, &v, &g, bias.as_ref())? {
        Way::Kernels => Ok(launch(Layer::Linear, x, v, g, bias)),
        Way::Operators => Ok(operators::linear_layer(x, v, g, bias)),
    }
}

/// A weight-normalized convolution in 1-D. x: `[batch, in, length]`, v: `[out, in / groups, kernel]`, g: `[out, 1, 1]`,
/// bias: `[out]`.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn conv1d(
    x: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: ConvOptions<1>,
) -> Result<Tensor<3>, Error> {
    let (padding, groups) = (options.padding[0], options.groups);
    let geometry = ConvGeometry::default().stride(options.stride[0]).padding(padding);
    let layer = Layer::Conv(geometry.dilation(options.dilation[0]).groups(groups));
    match way(layer, &x, &v, &g, bias.as_ref())? {
        Way::Kernels => Ok(launch(layer, x, v, g, bias)),
        Way::Operators => Ok(operators::conv1d_layer(x, v, g, bias, options)),
    }
}

/// A weight-normalized convolution in 2-D. x: `[batch, in, height, width]`, v: `[out, in / groups, kh, kw]`, g:
/// `[out, 1, 1, 1]`, bias: `[out]`.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn conv2d(
    x: Tensor<4>,
    v: Tensor<4>,
    g: Tensor<4>,
    bias: Option<Tensor<1>>,
    options: ConvOptions<2>,
) -> Result<Tensor<4>, Error> {
    let geometry = ConvGeometry::default().stride(options.stride).padding(options.padding);
    let layer = Layer::Conv(geometry.dilation(options.dilation).groups(options.groups));
    match way(layer, &x, &v, &g, bias.as_ref())? {
        Way::Kernels => Ok(launch(layer, x, v, g, bias)),
        Way::Operators => Ok(operators::conv2d_layer(x, v, g, bias, options)),
    }
}

/// A weight-normalized transposed convolution in 1-D. x: `[batch, in, length]`, v: `[in, out / groups, kernel]`, g:
/// `[in, 1, 1]`, since PyTorch keeps axis 0 here too; bias: `[out]`.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn conv_transpose1d(
    x: Tensor<3>,
    v: Tensor<3>,
    g: Tensor<3>,
    bias: Option<Tensor<1>>,
    options: ConvTransposeOptions<1>,
) -> Result<Tensor<3>, Error> {
    let geometry = ConvGeometry::default().stride(options.stride[0]).padding((options.padding[0], options.padding[0]));
    let geometry = geometry.dilation(options.dilation[0]).output_padding(options.padding_out[0]);
    let layer = Layer::ConvTransposed(geometry.groups(options.groups));
    match way(layer, &x, &v, &g, bias.as_ref())? {
        Way::Kernels => Ok(launch(layer, x, v, g, bias)),
        Way::Operators => Ok(operators::conv_transpose1d_layer(x, v, g, bias, options)),
    }
}

/// w = g·v/n̂ of a weight of any rank, by the norms over all axes but the kept one. g: one for each index of that axis,
/// flat or with ones in all other places.
///
/// # Errors
/// An axis that v does not have, a g that does not fit.
pub fn weight<const D: usize, const G: usize>(v: Tensor<D>, g: Tensor<G>, axis: usize) -> Result<Tensor<D>, Error> {
    let problem = Problem::Weight {
        v: v.dims().to_vec(),
        g: g.dims().to_vec(),
        axis,
        dtype: v.dtype(),
        tracked: v.device().is_autodiff() || g.device().is_autodiff(),
    };
    match decide(&v.device(), problem)? {
        Way::Kernels => {
            let g = f32(g).into_dispatch();
            Ok(Tensor::from_dispatch(Dispatch::weightnorm_weight(v.into_dispatch(), g, axis)))
        }
        Way::Operators => Ok(operators::weight(v, g, axis)),
    }
}
