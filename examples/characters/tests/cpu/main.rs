//! The example, as far as it needs no GPU.
mod data;
mod program;
mod reference;
