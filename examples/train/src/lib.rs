//! The network that the example trains, for other programs: `examples/distributed` trains it on several machines.
//! (`tests/gpu` and `web` have these files as modules of their own, so that they name each other by `super`.)
pub mod kernels;
pub mod shape;
pub mod step;
