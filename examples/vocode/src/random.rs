//! Networks of random numbers, to try shapes without a checkpoint.
use std::str::FromStr;

use crate::hifigan::{Blocks, Config};
use crate::network::{Source, Weight};

/// The three generators of HiFi-GAN's paper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Variant {
    V1,
    V2,
    V3,
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Variant, String> {
        match text {
            "v1" => Ok(Variant::V1),
            "v2" => Ok(Variant::V2),
            "v3" => Ok(Variant::V3),
            other => Err(format!("{other:?}: expected v1, v2 or v3")),
        }
    }
}

impl Variant {
    pub fn config(self) -> Config {
        let first = Config {
            blocks: Blocks::One,
            upsample_rates: vec![8, 8, 2, 2],
            upsample_kernel_sizes: vec![16, 16, 4, 4],
            upsample_initial_channel: 512,
            resblock_kernel_sizes: vec![3, 7, 11],
            resblock_dilation_sizes: vec![vec![1, 3, 5]; 3],
            num_mels: 80,
            sampling_rate: 22_050,
        };
        match self {
            Variant::V1 => first,
            Variant::V2 => Config { upsample_initial_channel: 128, ..first },
            Variant::V3 => Config {
                blocks: Blocks::Two,
                upsample_rates: vec![8, 8, 4],
                upsample_kernel_sizes: vec![16, 16, 8],
                upsample_initial_channel: 256,
                resblock_kernel_sizes: vec![3, 5, 7],
                resblock_dilation_sizes: vec![vec![1, 2], vec![2, 6], vec![3, 12]],
                ..first
            },
        }
    }
}

/// splitmix64: the same numbers on every run.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1 .. 1.
    pub fn signed(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / 2f64.powi(52) - 1.0
    }

    /// `count` of them.
    pub fn numbers(&mut self, count: usize, most: f64) -> Vec<f32> {
        (0..count).map(|_| (most * self.signed()) as f32).collect()
    }
}

/// As PyTorch begins: uniform v by the terms of a sum, and g = ‖v‖. What is no weight is in 0.5 .. 1.5 for alphas, and
/// small for biases.
impl Source for Random {
    fn weight(&mut self, _: &str, shape: [usize; 3]) -> Result<Weight, String> {
        let row = shape[1] * shape[2];
        let v = self.numbers(shape[0] * row, (row as f64).powf(-0.5));
        let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() as f32;
        let g = v.chunks(row).map(norm).collect();
        Ok(Weight { shape, v, g: Some(g) })
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let count = shape.iter().product();
        let middle = if name.ends_with(".alpha") { 1.0 } else { 0.0 };
        Ok(self.numbers(count, if middle == 1.0 { 0.5 } else { 0.1 }).iter().map(|x| middle + x).collect())
    }

    fn rest(&self, _: &[&str]) -> Result<(), String> {
        Ok(())
    }
}
