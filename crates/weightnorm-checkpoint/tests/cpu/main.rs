//! Checkpoints, as far as they need no GPU.
mod convert;
mod corpus;
mod damaged;
mod find;
mod foreign;
mod inspect;
mod killed;
mod others;
mod prefer;
mod read;
mod reference;
mod targets;
mod tied;
