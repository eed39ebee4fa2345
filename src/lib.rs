//! Weight normalization on any GPU that [`wgpu`] reaches: kernels written by hand in WGSL, a thin host layer, and a
//! reference on the CPU, [`cpu`].
//!
//! A weight is kept as a direction v and a gain g. One axis of v is kept ([`Axis`]); each of its indices j has one
//! norm, over all other axes, guarded by an eps policy ([`Eps`]):
//!
//! ```text
//! n_j = sqrt( Σ v² over row j )      n̂_j = n_j, guarded      w = g_j · v / n̂_j
//! ```
//!
//! [`Gpu::linear`] multiplies by such a weight without computing it: the norm of each row is summed up beside the
//! product.
//!
//! ```no_run
//! use weightnorm::{Gpu, Linear, WeightNorm};
//!
//! # fn main() -> Result<(), weightnorm::Error> {
//! let gpu = Gpu::new()?; // the best adapter of this machine
//! let v = gpu.upload(&[3.0f32, 4.0, 0.0, 2.0], &[2, 2])?; // direction: [out_features, in_features]
//! let g = gpu.upload(&[10.0f32, 1.0], &[2])?; // gain: one for each output
//! let bias = gpu.upload(&[0.5f32, -2.0], &[2])?;
//! let x = gpu.upload(&[1.0f32, 1.0], &[1, 2])?; // a batch of one
//! let y = gpu.linear(Linear::new(&x, WeightNorm::new(&v, &g)).bias(&bias))?;
//! println!("{:?}", y.read::<f32>()?); // [14.5, -1.0]
//! # Ok(()) }
//! ```
//!
//! # Where to find what
//!
//! | | |
//! |---|---|
//! | a device | [`Gpu::new`], or [`Gpu::from_wgpu`] with what [`Gpu::wanted`] says; [`Gpu::report`] |
//! | tensors | [`Gpu::upload`], [`Gpu::zeros`], [`Gpu::tensors`]; [`Tensor::from_buffer`] on a buffer of yours; [`Tensor::read`] |
//! | a weight | [`WeightNorm`], or [`Weight::Plain`] for an ordinary one; many of them: [`WeightSet`] |
//! | norms, w, (v, g) of a w | [`Gpu::row_norms`], [`Gpu::normalize`], [`Gpu::decompose`] with [`Decompose`] |
//! | a linear layer | [`Linear`] for [`Gpu::linear`]; to train: [`Gpu::linear_saved`], [`LinearBackward`] |
//! | other linear layers | [`Cosine`], of unit rows on both sides; [`Dora`] of a [`DoraWeight`], adapted; their `Backward` |
//! | recurrent cells | [`Recurrent`] for [`Gpu::recurrent`]: LSTM, GRU, RNN; [`Gpu::recurrent_backward`] |
//! | what follows a layer | [`Activation`], [`ActivationBackward`]; [`MeanOnlyBatchNorm`], [`DataDependentInit`] |
//! | optimizers | [`Gpu::sgd_step`] with [`Sgd`], [`Gpu::adam_step`] with [`Adam`]: g and v together, [`Parameter`] |
//! | the same, recorded | [`Recorder`], from [`Gpu::record`] or [`Gpu::record_pass`] |
//! | the same, on the CPU | [`cpu`], in f64, written to be read |
//! | files | the crate `weightnorm-checkpoint`, beside this one |
//! | times | [`Gpu::profile`], [`Gpu::roofline`]; [`Gpu::tune`] for the tiles of products |
//!
//! Each operator is a request, a value that says what is computed, with its formula, shapes, types, dispatches and
//! errors. Two receivers take it under the same name: [`Gpu`] allocates the results and submits, [`Recorder`] writes
//! into tensors of yours and submits nothing. What goes wrong is an [`Error`], by what failed.
//!
//! # A training step, recorded
//!
//! Every tensor is allocated once. A step is then one submission, and allocates nothing. Parts of one
//! buffer may hold them all, as long as no output overlaps an input.
//!
//! ```no_run
//! use weightnorm::{
//!     Activation, Adam, AdamState, Error, Gpu, Gradients, Linear, LinearBackward, Parameter, Recorder, Tensor,
//!     WeightNorm,
//! };
//!
//! struct Layer {
//!     v: Tensor,
//!     g: Tensor,
//!     norms: Tensor, // f32, shaped as g
//!     u: Tensor,     // f32, shaped as y
//!     dv: Tensor,
//!     dg: Tensor,
//!     state: AdamState, // `Gpu::adam_state`
//! }
//!
//! impl Layer {
//!     fn forward(&self, ops: &mut Recorder<'_, '_>, x: &Tensor, y: &Tensor) -> Result<(), Error> {
//!         let weight = WeightNorm::new(&self.v, &self.g);
//!         ops.linear(Linear::new(x, weight).activation(Activation::Silu).norms(&self.norms).u(&self.u), y)
//!     }
//!
//!     fn backward(&self, ops: &mut Recorder<'_, '_>, x: &Tensor, dy: &Tensor, dx: &Tensor) -> Result<(), Error> {
//!         let weight = WeightNorm::new(&self.v, &self.g).norms(&self.norms);
//!         let wanted = Gradients::default().dx(dx).dv(&self.dv).dg(&self.dg);
//!         ops.linear_backward(LinearBackward::new(x, weight, dy).activation(Activation::Silu).u(&self.u), &wanted)
//!     }
//!
//!     fn update(&self, ops: &mut Recorder<'_, '_>, step: u64) -> Result<(), Error> {
//!         let weight = Parameter::new(&self.v, &self.dv).gain(&self.g, &self.dg);
//!         ops.adam_step(weight, &self.state, step, &Adam::adamw(1e-3, 0.01))
//!     }
//! }
//!
//! # fn step(gpu: &Gpu, layer: &Layer, [x, y, dy, dx]: [&Tensor; 4], step: u64) -> Result<(), Error> {
//! let mut encoder = gpu.device().create_command_encoder(&Default::default());
//! let mut ops = gpu.record(&mut encoder);
//! layer.forward(&mut ops, x, y)?;
//! // Your loss comes here: a kernel of your own that makes dy of y (`Recorder::custom`, or a pass between two recorders).
//! layer.backward(&mut ops, x, dy, dx)?;
//! layer.update(&mut ops, step)?;
//! drop(ops); // ends the pass
//! gpu.queue().submit([encoder.finish()]);
//! # Ok(()) }
//! ```
//!
//! # Fuse, or fold
//!
//! Fusing pays while the weights change, or where no memory is to be spent on w. Frozen weights are better folded: call
//! [`Gpu::normalize`] once, keep w, and give it to [`Gpu::linear`] as an ordinary weight, the cheapest form of every
//! later call. Between the two, [`Linear::norms`] writes the norms out, and [`WeightNorm::norms`] hands them to later
//! calls with the same v, which then do no norm work.
//!
//! # Many layers, few dispatches
//!
//! A vocoder has some hundred weight-normalized layers, most of them small, and one call for each spends its time on
//! launches. A [`WeightSet`] is any number of weights of any shapes, kept axes, storage types and policies. It is made
//! once; then norms, w or the gradients of all of them take one dispatch for each kernel.
//!
//! ```no_run
//! use weightnorm::{DType, Error, Gpu, SetMember, WeightNorm, WeightSet};
//!
//! fn set(gpu: &Gpu, shapes: &[&[usize]]) -> Result<WeightSet, Error> {
//!     // One buffer for all v, one for all g, one for all w: a dispatch reaches no more.
//!     let all: Vec<_> = shapes.iter().map(|&shape| (shape, DType::F32)).collect();
//!     let gains: Vec<_> = shapes.iter().map(|shape| (&shape[..1], DType::F32)).collect();
//!     let (v, g, w) = (gpu.tensors(&all)?, gpu.tensors(&gains)?, gpu.tensors(&all)?);
//!     let member = |i: usize| SetMember::new(WeightNorm::new(&v[i], &g[i])).w(&w[i]);
//!     gpu.weight_set(&(0..shapes.len()).map(member).collect::<Vec<_>>())
//! }
//! ```
//!
//! [`Recorder::normalize_set`] is recorded in every step, and allocates nothing. Outputs belong to the set. Weights
//! whose tensors lie in other buffers, do not start at multiples of 16 bytes, or lie further apart than a binding
//! reaches, take as many dispatches again: [`WeightSet::dispatch_count`] tells.
//!
//! # Features
//!
//! There are none. All backends of [`wgpu`] are in: Vulkan, Metal, DX12 and GL, in a browser WebGPU. Which one runs is
//! chosen at run time, [`Gpu::new`] says how. The crate needs Rust 1.88; for `wasm32-unknown-unknown` what blocks
//! ([`Gpu::new`], [`Tensor::read`], ..) is left out, and its `async` twin is there.
//!
//! # Storage types
//!
//! x, v, w and y are f32, f16 or bf16, in any mixture in `linear`, and so are g, bias, dg and dbias (in a set dg is
//! f32). Norms, u, running means and the state of optimizers are f32. f16 and bf16 need no feature of the device: they
//! are packed two to a word, and all arithmetic is f32. g, and the bias of `linear`, are read as they lie; elsewhere a
//! bias, a dg or a dbias in 16 bits takes a small dispatch more.
//!
//! # Numbers
//!
//! - w, y, u, the norms, dv and dg are right wherever they are representable, over the whole finite range of the
//!   inputs: a row of 3e25 or 3e-25 has a sum of squares beyond f32, and is normed all the same. (For y, the sum of
//!   |x·w| has to be representable, and with kept axis 1 a w below 2⁻¹²⁶ counts as zero. For dv of `linear_backward` u
//!   has to be representable, with kept axis 1 dy·v/n̂ in its place; dg need not be.)
//! - NaN or infinity in row j of v makes that norm NaN or infinite, under every policy; it reaches column j of y and
//!   nothing else. The same holds for a row of x. Activations pass NaN.
//! - A dot product outside of 2⁻⁶⁰ .. 2⁶⁰ is formed again with an exponent of its own; for one that is zero, its rows
//!   of x and v are looked through for numbers that small. So rows of zeros in x are right, and slow: where all of x is
//!   zero, `linear` took 2 to 4 times as long.
//! - Subnormal numbers may count as zero: WGSL allows it, devices differ. Under a policy other than [`Eps::None`] no
//!   NaN comes of it.
//! - The same adapter, shape and variant give the same bits, run after run.
//! - A dot product of length K is within a small multiple of K · 2⁻²⁴ · Σ|x·w| of the exact one, and the rounding of
//!   the storage type comes on top. Layers of up to 8 outputs sum up in pieces of at most 128 terms: (128 + K/128) for
//!   K there, 2e-6 for K = 4096. The tests compare with f64 under bounds derived that way, and with results of PyTorch.
//!
//! # Errors and limits
//!
//! Every operator checks all its arguments before it records anything, and returns an [`Error`] that names the
//! argument. Learning rates, betas, decays, momenta and eps that are NaN, infinite or out of PyTorch's ranges are
//! refused too. Buffers, queue and pipeline cache ([`Options::pipeline_cache`]) have to be those of the device: others
//! are an error, though wgpu itself may take a thing of another instance for one of its own. Handles made of one device
//! are one device.
//!
//! A tensor is one buffer, of at most 2³² - 1 elements. What is beyond a binding or a dispatch is split by the host
//! layer. No output may overlap an input or another output; disjoint parts of one buffer may be both.
//! ([`ArgumentError::Alias`])
//!
//! The device needs 8 storage buffers in a stage, 16 KiB of workgroup memory and 128 invocations in a workgroup, as
//! WebGPU's default limits have them. Where it has immediates, the parameters of a dispatch travel with it; else each
//! dispatch gets a small uniform buffer. On GL use one thread: see [`Gpu`].
//!
//! # Where the time goes
//!
//! A profile runs what is recorded and tells the time of each dispatch, and how far each operator is from what the
//! adapter can do at most: every operator knows from its arguments the least that it has to move and to do ([`Cost`]),
//! and kernels of the crate that only copy, read or multiply measure the adapter ([`Roofline`]).
//!
//! ```no_run
//! use weightnorm::{DType, Gpu, Linear, WeightNorm};
//!
//! # fn main() -> Result<(), weightnorm::Error> {
//! let gpu = Gpu::new()?;
//! let (x, y) = (gpu.upload(&[0.5f32; 64 * 512], &[64, 512])?, gpu.zeros(&[64, 512], DType::F32)?);
//! let (v, g) = (gpu.upload(&[0.1f32; 512 * 512], &[512, 512])?, gpu.upload(&[1.0f32; 512], &[512])?);
//! let layer = Linear::new(&x, WeightNorm::new(&v, &g));
//! gpu.profile(|ops| ops.linear(layer, &y))?; // builds the pipelines
//! let profile = gpu.profile(|ops| (0..20).try_for_each(|_| ops.linear(layer, &y)))?;
//! println!("{profile}"); // calls | ms | % | GB/s | GFLOP/s | % of roof | operator and variant
//! # Ok(()) }
//! ```
//!
//! [`Profile::operators`] has the same as data, and [`Recorder::custom`] puts dispatches of your own in between.
//!
//! Which tile computes a product, a table says, by the kind of adapter and the shape ([`Tile`]). [`Linear::tile`] and
//! [`LinearBackward::tile`] force another one. In between, [`Gpu::tune`] measures the products of the layers that you
//! name, on this device, and keeps to the table unless another tile, or a split of the sums, is faster beyond noise.
//! What comes of it is a [`TuningTable`], text for you to keep and to pass in again with [`Options::tuning_table`]; the
//! crate touches no file.
//!
//! ```text
//! weightnorm 0.1.0 | SwiftShader Device (Subzero) | SwiftShader driver | Vulkan
//! forward f32 f32 64 256 256 tile64x64
//! weight_gradient f32 f32 256 256 64 tile64x64
//! ```
//!
//! Made by another version of the crate, or for another adapter or driver, a table counts as none, and
//! [`Gpu::tuning_table`] is empty; a line that the device cannot run is an error. A line changes which variant runs,
//! and so the last bits.
mod activation;
mod adapter;
mod arguments;
mod batch;
mod binding;
mod choose;
mod commands;
mod contract;
mod conv;
mod cosine;
mod cost;
pub mod cpu;
mod device_report;
mod dora;
mod error;
mod gpu;
mod gradients;
mod kernel;
mod launch;
mod linear;
mod memory;
mod needs;
mod optimizer;
mod options;
mod owner;
mod product;
mod profile;
mod record;
mod recurrent;
mod registry;
mod scope;
mod source;
mod tensor;
mod train;
mod tune;
mod tuning_table;
mod types;
mod unchecked;
mod vectors;
mod weight;
mod windows;

pub use activation::ActivationBackward;
pub use batch::{DataDependentInit, MeanOnlyBatchNorm, MeanOnlyBatchNormBackward};
pub use choose::Facts;
pub use contract::{Layout, norms_shape};
pub use conv::Conv;
pub use conv::backward::ConvGradients;
pub use conv::geometry::{ConvGeometry, PadMode, PerAxis};
pub use cosine::{Cosine, CosineBackward, CosineGradients};
pub use cost::{Cost, Roofline};
pub use device_report::DeviceReport;
pub use dora::{Dora, DoraBackward, DoraGradients, DoraSaved, DoraWeight};
pub use error::{ArgumentError, DeviceError, Error, LimitError, ParseError};
pub use gpu::Gpu;
pub use gradients::Gradients;
pub use launch::{Launch, Planned, PlannedBinding, SCRATCH_BUFFERS};
pub use linear::backward::{LinearBackward, LinearGradients};
pub use linear::{Linear, Saved, Weight};
pub use needs::DeviceRequirements;
pub use optimizer::{AdamState, Moments, Parameter, SgdState};
pub use options::{Options, ParameterPassing};
pub use product::Tile;
pub use profile::{DispatchTime, OperatorTime, Profile, Timing};
pub use record::Recorder;
pub use recurrent::backward::RecurrentGradients;
pub use recurrent::{Recurrent, RecurrentSaved};
pub use tensor::Tensor;
pub use train::{Adam, ParamGroup, Sgd};
pub use tune::LinearShape;
pub use tuning_table::TuningTable;
pub use types::{Activation, Axis, Cell, DType, Element, Eps, Gate};
pub use weight::WeightNorm;
pub use weight::backward::NormalizeBackward;
pub use weight::member::{SetMember, SetOperator};
pub use weight::normalize::Decompose;
pub use weight::set::WeightSet;
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
    pub use crate::source::{FILES, Import, Module, SLOTS, Shared, imports};
    use crate::{Error, Gpu, Recorder, Tensor, Tile};

    /// The longest sum that a tile forms in one piece, in steps of k.
    pub fn longest_sum(tile: Tile, gpu: &Gpu) -> u64 {
        tile.longest(gpu.traits())
    }

    /// The copy of `source` to `target` that [`Gpu::roofline`](crate::Gpu::roofline) times, as far as whole workgroups
    /// of 8 KiB go.
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
        accumulate: bool,
    ) -> Result<(), Error> {
        crate::batch::statistics::column_dot_sums(
            ops,
            dy,
            u.map(View::of),
            dbias.map(View::of),
            dg.map(View::of),
            None,
            accumulate,
        )
    }
}

/// The examples of the documents beside the crate compile.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
}
