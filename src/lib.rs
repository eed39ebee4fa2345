//! Weight normalization on any GPU.
mod contract;
pub mod cpu;
mod error;

pub use contract::{Activation, Axis, DType, Element, Eps};
pub use error::Error;
