//! A language model of characters, learned on the GPU: what the program `characters` is made of.
pub mod compare;
pub mod data;
pub mod kernels;
pub mod network;
pub mod picture;
pub mod reference;
pub mod write;
