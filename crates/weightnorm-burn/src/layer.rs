//! The layers, as one kind of thing: what they compute, with which shapes.
use weightnorm::{Conv, ConvGeometry, Error, Gradients, Linear, LinearBackward, Recorder, Tensor, WeightNorm};

/// Which product a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// y = x·wᵀ + bias.
    Linear,
    /// A convolution in 1-D or 2-D.
    Conv(ConvGeometry),
    /// A transposed one.
    ConvTransposed(ConvGeometry),
}

/// Which gradients are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub dx: bool,
    pub dv: bool,
    pub dg: bool,
    pub dbias: bool,
}

/// What the layers take, and what their backward passes give.
pub(crate) struct Parts<'a> {
    pub x: &'a Tensor,
    pub v: &'a Tensor,
    pub g: &'a Tensor,
    pub bias: Option<&'a Tensor>,
}

/// What the forward pass keeps for the backward pass.
pub(crate) struct Kept<'a> {
    /// What the gain multiplies. Of a linear layer.
    pub u: &'a Tensor,
    pub norms: &'a Tensor,
}

impl Layer {
    /// The shape of y. Anything where the shapes do not fit: planning tells.
    pub fn output(self, x: &[usize], v: &[usize]) -> Vec<usize> {
        let shape = match self {
            Layer::Linear => Ok(x[..x.len().saturating_sub(1)].iter().copied().chain(v.first().copied()).collect()),
            Layer::Conv(geometry) => geometry.conv_shape(x, v),
            Layer::ConvTransposed(geometry) => geometry.conv_transposed_shape(x, v),
        };
        shape.unwrap_or_else(|_| x.to_vec())
    }

    /// The shape of u, of which convolutions keep nothing.
    pub fn kept(self, y: &[usize]) -> Vec<usize> {
        match self {
            Layer::Linear => y.to_vec(),
            Layer::Conv(_) | Layer::ConvTransposed(_) => vec![1],
        }
    }

    pub(crate) fn forward(
        self,
        ops: &mut Recorder<'_, '_>,
        parts: &Parts<'_>,
        y: &Tensor,
        kept: Option<Kept<'_>>,
    ) -> Result<(), Error> {
        let weight = WeightNorm::new(parts.v, parts.g);
        let norms = kept.as_ref().map(|kept| kept.norms);
        let conv = |geometry| Conv::new(parts.x, weight).bias(parts.bias).geometry(geometry).norms(norms);
        match self {
            Layer::Linear => {
                let u = kept.map(|kept| kept.u);
                ops.linear(Linear::new(parts.x, weight).bias(parts.bias).norms(norms).u(u), y)
            }
            Layer::Conv(geometry) => ops.conv(conv(geometry), y),
            Layer::ConvTransposed(geometry) => ops.conv_transposed(conv(geometry), y),
        }
    }

    pub(crate) fn backward(
        self,
        ops: &mut Recorder<'_, '_>,
        parts: &Parts<'_>,
        kept: Kept<'_>,
        dy: &Tensor,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        let weight = WeightNorm::new(parts.v, parts.g).norms(kept.norms);
        let conv = |geometry| Conv::new(parts.x, weight).bias(parts.bias).geometry(geometry);
        match self {
            Layer::Linear => ops.linear_backward(LinearBackward::new(parts.x, weight, dy).u(kept.u), gradients),
            Layer::Conv(geometry) => ops.conv_backward(conv(geometry), dy, gradients),
            Layer::ConvTransposed(geometry) => ops.conv_transposed_backward(conv(geometry), dy, gradients),
        }
    }
}

impl Layer {
    /// Elements of the bias, by the shape of y.
    pub fn features(self, y: &[usize]) -> usize {
        let axis = if self == Layer::Linear { y.len().saturating_sub(1) } else { 1 };
        y.get(axis).copied().unwrap_or(1)
    }
}

impl Wanted {
    pub(crate) const ALL: Wanted = Wanted { dx: true, dv: true, dg: true, dbias: true };

    pub(crate) fn gradients<'a>(
        self,
        dx: &'a Tensor,
        dv: &'a Tensor,
        dg: &'a Tensor,
        dbias: &'a Tensor,
    ) -> Gradients<'a> {
        let gradients = Gradients::default().dx(self.dx.then_some(dx)).dv(self.dv.then_some(dv));
        gradients.dg(self.dg.then_some(dg)).dbias(self.dbias.then_some(dbias))
    }
}
