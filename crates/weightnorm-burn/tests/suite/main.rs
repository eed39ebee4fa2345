//! The modules on Burn's wgpu backend: against PyTorch's cases, against Burn's own operators, between Burn's
//! operators, from two threads. One build has Burn's fusion, another has not (`--features fusion`).
mod checkpoints;
mod data;
mod errors;
mod golden;
mod order;
mod peers;
mod recurrent;
mod reparameterized;
mod training;
