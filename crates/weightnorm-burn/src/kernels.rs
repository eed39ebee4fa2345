//! The operators as an extension of Burn's backends: on its cubecl backend they are this crate's kernels.
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::{Backend, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use weightnorm::{Axis, Gradients, NormalizeBackward, WeightNorm};

use crate::launch::record;
use crate::layer::{Kept, Layer, Parts, Wanted};
use crate::support::facts_of;

/// Forward, in Burn's graph: what autodiff makes steps of. Where a layer has no bias, `bias` is anything.
#[backend_extension(Cube, Autodiff, Fusion: cfg(feature = "fusion"))]
pub trait Forward: Backend {
    /// y of a layer.
    #[fusion(meta = |x, v, _g, _bias, layer, _has_bias| {
        TensorSpec::new(layer.output(&x.shape, &v.shape).into(), x.dtype)
    })]
    fn weightnorm_layer(
        x: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        layer: Layer,
        has_bias: bool,
    ) -> FloatTensor<Self>;

    /// w = g·v/n̂.
    #[fusion(meta = |v, _g, _axis| v.clone())]
    fn weightnorm_weight(v: FloatTensor<Self>, g: FloatTensor<Self>, axis: usize) -> FloatTensor<Self>;
}

/// What the steps of autodiff are made of. It is not for `Autodiff` itself, so that second derivatives do not compile
/// rather than fail.
#[backend_extension(Cube, Fusion: cfg(feature = "fusion"))]
pub trait Kernels: Backend {
    /// y, u and norms, as the backward pass wants them.
    #[fusion(meta = |x, v, g, _bias, layer, _has_bias| {
        let y = layer.output(&x.shape, &v.shape);
        let u = layer.kept(&y).into();
        (
            TensorSpec::new(y.into(), x.dtype),
            TensorSpec::new(u, DType::F32),
            TensorSpec::new(g.shape.clone(), DType::F32),
        )
    })]
    fn weightnorm_layer_kept(
        x: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        layer: Layer,
        has_bias: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// dx, dv, dg and dbias; those that are not wanted have one element and nothing in it.
    #[fusion(meta = |x, v, g, _u, _norms, dy, layer, wanted| {
        let spec = |wanted, shape: &Shape, dtype| {
            TensorSpec::new(if wanted { shape.clone() } else { Shape::from(vec![1]) }, dtype)
        };
        let bias = Shape::from(vec![layer.features(&dy.shape)]);
        (
            spec(wanted.dx, &x.shape, x.dtype),
            spec(wanted.dv, &v.shape, v.dtype),
            spec(wanted.dg, &g.shape, g.dtype),
            spec(wanted.dbias, &bias, g.dtype),
        )
    })]
    #[expect(clippy::too_many_arguments, reason = "Burn's macro takes tensors one by one, not in a struct")]
    fn weightnorm_layer_backward(
        x: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        u: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        layer: Layer,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// dv and dg of w = g·v/n̂.
    #[fusion(meta = |v, g, _dw, _axis| (v.clone(), g.clone()))]
    fn weightnorm_weight_backward(
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        dw: FloatTensor<Self>,
        axis: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// Memory of Burn's, on the device of `like`.
fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let shape = shape.into();
    let handle = like.client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

fn empty_if(wanted: bool, like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    if wanted { empty(like, shape, dtype) } else { empty(like, [1], dtype) }
}

impl Forward for CubeBackend {
    fn weightnorm_layer(
        x: CubeTensor,
        v: CubeTensor,
        g: CubeTensor,
        bias: CubeTensor,
        layer: Layer,
        has_bias: bool,
    ) -> CubeTensor {
        let [x, v, g, bias] = [x, v, g, bias].map(into_contiguous);
        let y = empty(&x, layer.output(x.meta.shape(), v.meta.shape()), x.dtype);
        record(facts_of(&x.device), [&x, &v, &g, &bias, &y], |ops, [x, v, g, bias, y]| {
            layer.forward(ops, &Parts { x, v, g, bias: has_bias.then_some(bias) }, y, None)
        });
        y
    }

    fn weightnorm_weight(v: CubeTensor, g: CubeTensor, axis: usize) -> CubeTensor {
        let [v, g] = [v, g].map(into_contiguous);
        let w = empty(&v, v.meta.shape().clone(), v.dtype);
        record(facts_of(&v.device), [&v, &g, &w], |ops, [v, g, w]| {
            ops.normalize(WeightNorm::new(v, g).axis(Axis::Kept(axis)), w)
        });
        w
    }
}

impl Kernels for CubeBackend {
    fn weightnorm_layer_kept(
        x: CubeTensor,
        v: CubeTensor,
        g: CubeTensor,
        bias: CubeTensor,
        layer: Layer,
        has_bias: bool,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [x, v, g, bias] = [x, v, g, bias].map(into_contiguous);
        let shape = layer.output(x.meta.shape(), v.meta.shape());
        let u = empty(&x, layer.kept(&shape), DType::F32);
        let y = empty(&x, shape, x.dtype);
        let norms = empty(&x, g.meta.shape().clone(), DType::F32);
        let tensors = [&x, &v, &g, &bias, &y, &u, &norms];
        record(facts_of(&x.device), tensors, |ops, [x, v, g, bias, y, u, norms]| {
            let parts = Parts { x, v, g, bias: has_bias.then_some(bias) };
            layer.forward(ops, &parts, y, Some(Kept { u, norms }))
        });
        (y, u, norms)
    }

    fn weightnorm_layer_backward(
        x: CubeTensor,
        v: CubeTensor,
        g: CubeTensor,
        u: CubeTensor,
        norms: CubeTensor,
        dy: CubeTensor,
        layer: Layer,
        wanted: Wanted,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let [x, v, g, u, norms, dy] = [x, v, g, u, norms, dy].map(into_contiguous);
        let dx = empty_if(wanted.dx, &x, x.meta.shape().clone(), x.dtype);
        let dv = empty_if(wanted.dv, &x, v.meta.shape().clone(), v.dtype);
        let dg = empty_if(wanted.dg, &x, g.meta.shape().clone(), g.dtype);
        let dbias = empty_if(wanted.dbias, &x, [layer.features(dy.meta.shape())], g.dtype);
        let tensors = [&x, &v, &g, &u, &norms, &dy, &dx, &dv, &dg, &dbias];
        record(facts_of(&x.device), tensors, |ops, [x, v, g, u, norms, dy, dx, dv, dg, dbias]| {
            let gradients = wanted.gradients(dx, dv, dg, dbias);
            layer.backward(ops, &Parts { x, v, g, bias: None }, Kept { u, norms }, dy, &gradients)
        });
        (dx, dv, dg, dbias)
    }

    fn weightnorm_weight_backward(
        v: CubeTensor,
        g: CubeTensor,
        dw: CubeTensor,
        axis: usize,
    ) -> (CubeTensor, CubeTensor) {
        let [v, g, dw] = [v, g, dw].map(into_contiguous);
        let [dv, dg] = [&v, &g].map(|tensor| empty(&v, tensor.meta.shape().clone(), tensor.dtype));
        record(facts_of(&v.device), [&v, &g, &dw, &dv, &dg], |ops, [v, g, dw, dv, dg]| {
            let weight = WeightNorm::new(v, g).axis(Axis::Kept(axis));
            ops.normalize_backward(NormalizeBackward::new(dw, weight), &Gradients::default().dv(dv).dg(dg))
        });
        (dv, dg)
    }
}
