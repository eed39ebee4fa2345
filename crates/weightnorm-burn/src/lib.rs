#![doc = include_str!("../README.md")]
mod autodiff;
#[cfg(feature = "store")]
mod checkpoint;
mod functional;
mod kernels;
mod launch;
mod layer;
mod modules;
mod operators;
mod reparameterize;
mod support;

#[cfg(feature = "store")]
pub use checkpoint::pytorch_names;
pub use functional::{conv_transpose1d, conv1d, conv2d, linear, weight};
pub use modules::{
    WeightNormConv1d, WeightNormConv1dConfig, WeightNormConv2d, WeightNormConv2dConfig, WeightNormConvTranspose1d,
    WeightNormConvTranspose1dConfig, WeightNormGru, WeightNormGruConfig, WeightNormLinear, WeightNormLinearConfig,
    WeightNormLstm, WeightNormLstmConfig,
};
pub use reparameterize::{Gain, WeightNormalization};
pub use support::has_kernels;
pub use weightnorm::Error;
