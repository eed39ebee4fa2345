//! The program without a GPU.
#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../../../weightnorm-checkpoint/tests/common/files.rs"]
mod files;
#[path = "../common/program.rs"]
mod program;
#[path = "../../../weightnorm-checkpoint/tests/common/torch.rs"]
mod torch;

mod cli;
mod devices;
#[cfg(target_os = "linux")]
mod limits;
mod pytorch;
mod sharded;
