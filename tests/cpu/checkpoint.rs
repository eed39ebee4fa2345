//! Checkpoints, as far as they need no GPU.
mod convert;
mod files;
