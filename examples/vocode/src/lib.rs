//! Decoders to sound, of weight-normalized convolutions and nothing else: HiFi-GAN's generator and DAC's decoder.
//!
//! A model file is read and checked (`file`, `hifigan`, `dac`), and becomes a list of layers over a few buffers
//! (`network`). The GPU records it as it stands (`vocoder`); the CPU computes it in f64, with a bound on what rounding
//! does to every sample (`reference`).
pub mod dac;
pub mod file;
pub mod hifigan;
pub mod network;
pub mod random;
pub mod reference;
pub mod sound;
pub mod vocoder;
