//! A DeepSDF decoder: its file, the network on the GPU, and on the CPU in f64 with a bound on what rounding does.
pub mod decoder;
pub mod model;
pub mod reference;
