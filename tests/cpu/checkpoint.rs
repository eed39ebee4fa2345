//! Checkpoints, as far as they need no GPU.
mod convert;
mod corpus;
mod damaged;
mod find;
mod inspect;
mod killed;
mod targets;
mod tied;
