//! The CPU reference, proven without a GPU: against PyTorch's cases, closed forms and a trained model.
#[path = "../common/mod.rs"]
mod common;

mod api;
mod backward;
mod batch;
mod bounds;
mod checkpoint;
mod cli;
mod cli_devices;
mod conv;
mod errors;
mod golden;
mod linear;
mod model;
mod non_finite;
mod noop;
mod optimizer;
mod plans;
mod policy;
mod rows;
mod shaders;
mod tune;
mod work;
