//! The digits, and all that a seed decides: the order in which they are seen, and the weights before training.
//! data/README.md says where the digits come from.

/// The width and height of an image.
pub const SIDE: usize = 8;
pub const PIXELS: usize = SIDE * SIDE;
pub const CLASSES: usize = 10;
/// The first images are trained on; the rest, 500, none of the training sees.
pub const TRAINING: usize = 1297;

/// The convolutions: channels in and out, and taps along a side. The first goes over every pixel, with a padding of 1;
/// the others join 2 x 2 positions to one, so that the gradient of their x is no more work than they are.
pub const CONVS: [(usize, usize, usize); 3] = [(1, 16, 3), (16, 16, 2), (16, 32, 2)];
/// What the convolutions make of an image, 32 channels of 2 x 2, and the linear layer reads.
pub const FEATURES: usize = 32 * 2 * 2;

/// The shapes of the weights, layer by layer.
pub fn shapes() -> Vec<Vec<usize>> {
    let convs = CONVS.iter().map(|&(ins, outs, taps)| vec![outs, ins, taps, taps]);
    convs.chain([vec![CLASSES, FEATURES]]).collect()
}

/// The shape of what convolution `i` makes of `images`.
pub fn output_shape(i: usize, images: usize) -> [usize; 4] {
    let side = SIDE >> i;
    [images, CONVS[i].1, side, side]
}

pub struct Digits {
    /// (1797, 64), from 0, paper, to 1, ink.
    pub pixels: Vec<f32>,
    pub labels: Vec<u32>,
}

impl Digits {
    /// Those of data/digits.txt.
    pub fn shipped() -> Digits {
        let (mut pixels, mut labels) = (vec![], vec![]);
        for line in include_str!("../data/digits.txt").lines() {
            let (image, label) = line.split_once(' ').expect("an image and its label");
            let ink = |c: char| c.to_digit(17).expect("a digit to the base of 17") as f32 / 16.0;
            pixels.extend(image.chars().map(ink));
            labels.push(label.parse().expect("a label"));
        }
        Digits { pixels, labels }
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

    /// From -1 to below 1.
    pub fn signed(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / 2f64.powi(52) - 1.0
    }

    /// Below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }
}

/// Which images each step sees: in each epoch all training images in a new order, but for those that fill no batch.
pub fn order(seed: u64, epochs: usize, batch: usize) -> Vec<usize> {
    let mut random = Random::new(seed << 32);
    let mut order = vec![];
    for _ in 0..epochs {
        let mut images: Vec<usize> = (0..TRAINING).collect();
        for i in (1..TRAINING).rev() {
            images.swap(i, random.below(i + 1));
        }
        order.extend_from_slice(&images[..TRAINING / batch * batch]);
    }
    order
}

/// The first v of each layer, as He et al. (2015) have it for ReLU: uniform with a variance of 2 / terms of a sum.
/// Biases are 0 at first.
pub fn start(seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random::new(seed);
    let layer = |shape: Vec<usize>| {
        let terms: usize = shape[1..].iter().product();
        let limit = (6.0 / terms as f64).sqrt();
        (0..shape[0] * terms).map(|_| (limit * random.signed()) as f32).collect()
    };
    shapes().into_iter().map(layer).collect()
}
