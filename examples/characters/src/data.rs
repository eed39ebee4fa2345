//! The text, and all that a seed decides: the weights before training, and what is drawn when the network writes.
//! data/README.md says where the text comes from.
use std::ops::Range;

/// The sizes of a network and of what it sees in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Of the LSTM.
    pub units: usize,
    /// Sequences that are read beside each other.
    pub batch: usize,
    /// Characters of each in a step: as far as gradients go back.
    pub length: usize,
}

/// The text as numbers of its characters.
pub struct Text {
    /// In the order of their codes.
    pub alphabet: Vec<char>,
    pub codes: Vec<usize>,
}

impl Text {
    /// That of data/holmes.txt, a line for each paragraph.
    pub fn shipped() -> Text {
        let paragraphs = include_str!("../data/holmes.txt").split("\n\n");
        let lines: Vec<String> = paragraphs.map(|paragraph| paragraph.trim().replace('\n', " ")).collect();
        Text::new(&lines.join("\n"))
    }

    pub fn new(text: &str) -> Text {
        let mut alphabet: Vec<char> = text.chars().collect();
        alphabet.sort_unstable();
        alphabet.dedup();
        let codes = text.chars().filter_map(|c| alphabet.binary_search(&c).ok()).collect();
        Text { alphabet, codes }
    }

    /// What is trained on: all but the last twentieth.
    pub fn training(&self) -> Range<usize> {
        0..self.codes.len() * 19 / 20
    }

    /// What is not.
    pub fn held_out(&self) -> Range<usize> {
        self.training().end..self.codes.len()
    }
}

/// SplitMix64: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / 2f64.powi(53)
    }

    /// From -1 to below 1.
    pub fn signed(&mut self) -> f64 {
        2.0 * self.unit() - 1.0
    }
}

/// The parameters before training.
pub struct Start {
    /// v of the input, of h, and of the output.
    pub weights: [Vec<f32>; 3],
    /// Of the gates, and of the output.
    pub biases: [Vec<f32>; 2],
}

/// The shapes of the three weights.
pub fn shapes(units: usize, classes: usize) -> [[usize; 2]; 3] {
    [[4 * units, classes], [4 * units, units], [classes, units]]
}

impl Start {
    /// Weights as PyTorch has them, uniform up to 1/√units. Biases are 0, but 1 for the forget gates, so that an LSTM
    /// remembers at first.
    pub fn new(seed: u64, units: usize, classes: usize) -> Start {
        let mut random = Random::new(seed);
        let limit = (units as f64).powf(-0.5);
        let weights = shapes(units, classes)
            .map(|[rows, columns]| (0..rows * columns).map(|_| (limit * random.signed()) as f32).collect());
        let gates = (0..4 * units).map(|row| if row / units == 1 { 1.0 } else { 0.0 }).collect();
        Start { weights, biases: [gates, vec![0.0; classes]] }
    }
}
