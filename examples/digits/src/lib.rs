//! Handwritten digits, learned on the GPU: what the program `digits` is made of.
pub mod compare;
pub mod data;
pub mod kernels;
pub mod network;
pub mod picture;
pub mod reference;
