//! The example, as far as it needs no GPU.
#[path = "../common/mod.rs"]
mod common;

mod files;
mod network;
mod no_driver;
