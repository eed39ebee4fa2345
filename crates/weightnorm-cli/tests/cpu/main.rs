//! The program without a GPU.
#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../../../weightnorm-checkpoint/tests/common/files.rs"]
mod files;
#[path = "../common/program.rs"]
mod program;

mod cli;
mod devices;
#[cfg(target_os = "linux")]
mod limits;
