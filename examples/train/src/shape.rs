//! What the host makes of a seed: the points of every batch, and the initial weights.

/// SplitMix64: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Uniform in [from, to).
    pub fn uniform(&mut self, from: f64, to: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
        from + (to - from) * unit
    }
}

/// Radii of the cylinders, the latent number.
const RADII: [f64; 2] = [0.2, 0.5];

/// `count` points (r, x, y, z): every other one anywhere in the cube [-1, 1]³, the rest within 0.1 of a cylinder's
/// surface.
pub fn points(random: &mut Random, count: usize) -> Vec<f32> {
    let mut points = vec![];
    for i in 0..count {
        let r = random.uniform(RADII[0], RADII[1]);
        let mut point = [0; 3].map(|_| random.uniform(-1.0, 1.0));
        if i % 2 == 1 {
            let axis = random.uniform(0.0, 3.0) as usize;
            let (angle, radius) = (random.uniform(0.0, std::f64::consts::TAU), r + random.uniform(-0.1, 0.1));
            point[(axis + 1) % 3] = radius * angle.cos();
            point[(axis + 2) % 3] = radius * angle.sin();
        }
        points.extend([r, point[0], point[1], point[2]].map(|number| number as f32));
    }
    points
}

/// The weights and biases of a layer as PyTorch's `torch.nn.Linear` starts: uniform in ±1/√in.
pub fn linear(random: &mut Random, outs: usize, ins: usize) -> (Vec<f32>, Vec<f32>) {
    let limit = 1.0 / (ins as f64).sqrt();
    let mut numbers = |count: usize| (0..count).map(|_| random.uniform(-limit, limit) as f32).collect();
    (numbers(outs * ins), numbers(outs))
}
