#![doc = include_str!("../README.md")]
mod adapter;
mod arguments;
mod batch;
mod binding;
#[cfg(all(feature = "checkpoint", not(target_arch = "wasm32")))]
pub mod checkpoint;
mod choices;
mod choose;
mod commands;
mod contract;
pub mod cpu;
mod error;
mod gpu;
mod gradient;
mod kernel;
mod linear;
mod memory;
mod needs;
mod normalize;
mod norms;
mod optimizer;
mod options;
mod owner;
mod product;
mod profile;
mod record;
mod registry;
mod report;
mod scope;
mod set;
mod source;
mod tensor;
mod train;
mod tune;
mod types;
mod unchecked;
mod vectors;
mod windows;
mod work;

pub use batch::RunningMean;
pub use choices::Choices;
pub use error::Error;
pub use gpu::Gpu;
pub use gradient::{Gradients, LinearGradients, Saved};
pub use linear::{LinearOptions, Weight};
pub use needs::Wanted;
pub use normalize::WeightNorm;
pub use optimizer::{AdamState, Moments, SgdState, Trainable};
pub use options::{Options, Parameters};
pub use product::Tile;
pub use profile::{Clock, DispatchTime, OperatorTime, Profile};
pub use record::Recorder;
pub use report::Report;
pub use set::{SetMember, SetOperator, WeightSet};
pub use tensor::Tensor;
pub use train::{Adam, Group, Sgd};
pub use tune::LinearShape;
pub use types::{Activation, Axis, DType, Element, Eps, Write};
pub use work::{Roof, Work};
// For programs whose own versions would not fit: tensors are over wgpu's buffers, and elements are half's numbers.
pub use half;
pub use wgpu;

/// The kernels, for the crate's own tests: no part of the interface.
#[doc(hidden)]
pub mod internals {
    use crate::binding::View;
    pub use crate::choose::{Kind, Traits};
    pub use crate::kernel::{Access, Field, Kernel};
    pub use crate::registry::{kernels, modules};
    pub use crate::source::{FILES, Import, Module, imports};
    use crate::{Error, Recorder, Tensor, Write};

    /// The copy of `source` to `target` that [`Gpu::roof`](crate::Gpu::roof) times, as far as whole workgroups of 8 KiB go.
    pub fn probe_copy(ops: &mut Recorder<'_, '_>, source: &Tensor, target: &Tensor) -> Result<(), Error> {
        crate::profile::probe::probe_copy(ops, source, target)
    }

    /// The reading of `source` that it times, likewise.
    pub fn probe_read(ops: &mut Recorder<'_, '_>, source: &Tensor, target: &Tensor) -> Result<(), Error> {
        crate::profile::probe::probe_read(ops, source, target)
    }

    /// The reduction of the backward pass by itself. Checks nothing.
    pub fn column_dot_sums(
        ops: &mut Recorder<'_, '_>,
        dy: &Tensor,
        u: Option<&Tensor>,
        dbias: Option<&Tensor>,
        dg: Option<&Tensor>,
        write: Write,
    ) -> Result<(), Error> {
        ops.column_dot_sums(dy, u.map(View::of), dbias.map(View::of), dg.map(View::of), None, write)
    }
}
