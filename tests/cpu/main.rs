//! The CPU reference, proven without a GPU: against PyTorch's cases, closed forms and a trained model.
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/misuse.rs"]
mod misuse;
#[path = "../common/ranges.rs"]
mod ranges;

mod adapted;
mod backward;
mod batch;
mod bounds;
mod conv;
mod conv_plans;
mod cost;
mod ends;
mod errors;
mod golden;
mod linear;
mod model;
mod non_finite;
mod noop;
mod optimizer;
mod plans;
mod policy;
mod recurrent;
mod rows;
mod shaders;
mod tune;
