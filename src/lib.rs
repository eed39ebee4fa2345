#![doc = include_str!("../README.md")]
mod contract;
pub mod cpu;
mod error;
mod gpu;
mod kernel;
mod linear;
mod normalize;
mod norms;
mod record;
mod tensor;
mod trusted;

pub use contract::{Activation, Axis, DType, Element, Eps};
pub use error::Error;
pub use gpu::{Gpu, Options, Parameters, Report, Wanted};
pub use linear::{LinearOptions, Tile, Weight};
pub use normalize::WeightNorm;
pub use record::Recorder;
pub use tensor::Tensor;

/// The kernels, for the crate's own tests: no part of the interface.
#[doc(hidden)]
pub mod internals {
    pub use crate::kernel::{Access, KERNELS, Kernel, Module};
}
