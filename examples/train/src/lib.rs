//! The network that the example trains, for other programs: `examples/distributed` trains it on several machines.
pub mod kernels;
pub mod shape;
pub mod step;
