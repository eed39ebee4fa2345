//! Checkpoints, as far as they need no GPU.
#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../common/files.rs"]
mod files;
#[path = "../common/killed.rs"]
mod killed;
#[path = "../common/torch.rs"]
mod torch;

mod convert;
mod corpus;
mod damaged;
mod find;
mod foreign;
mod inspect;
mod kill;
mod merge;
mod others;
mod parts;
mod patterns;
mod prefer;
mod pytorch;
mod pytorch_damaged;
mod read;
mod recurrent;
mod reference;
mod targets;
mod tied;
