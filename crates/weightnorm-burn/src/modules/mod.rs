//! The layers as modules.
mod conv1d;
mod conv2d;
mod conv_transpose1d;
mod linear;
mod padding;
mod recurrent;

pub use conv_transpose1d::{WeightNormConvTranspose1d, WeightNormConvTranspose1dConfig};
pub use conv1d::{WeightNormConv1d, WeightNormConv1dConfig};
pub use conv2d::{WeightNormConv2d, WeightNormConv2dConfig};
pub use linear::{WeightNormLinear, WeightNormLinearConfig};
pub use recurrent::{WeightNormGru, WeightNormGruConfig, WeightNormLstm, WeightNormLstmConfig};

use burn::module::Param;
use burn::tensor::Tensor;

use crate::operators;

/// v of a weight, and the gain with which w is that weight: g = n̂.
fn split<const D: usize>(weight: Tensor<D>) -> (Param<Tensor<D>>, Param<Tensor<D>>) {
    let v = weight.detach();
    let g = operators::norms(v.clone(), 0);
    (Param::from_tensor(v), Param::from_tensor(g.detach()))
}

/// w, as a parameter of a layer of Burn.
fn fold<const D: usize>(v: &Param<Tensor<D>>, g: &Param<Tensor<D>>) -> Param<Tensor<D>> {
    let w = crate::weight(v.val(), g.val(), 0).expect("g of this v");
    Param::from_tensor(w.detach())
}
