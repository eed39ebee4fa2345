//! What operators cost, and what an adapter can do of it in a second.
/// The least that an operator has to move and to do, as its arguments say: each input read once, each output written
/// once, multiply-adds counted as two operations. What a kernel needs besides, partial sums say, is no part of it.
///
/// | part of an operator | operations |
/// |---|---|
/// | a product of B × K and K × N | 2·B·K·N |
/// | norms and dot products over n elements | 2·n |
/// | plain sums over n elements; scaling or shifting n elements | n |
/// | the gradient of an activation of n elements | n |
/// | the gradient of n elements of v, given that of w | 3·n |
/// | a step of SGD over n parameters, with momentum, Nesterov's; of Adam, AdamW | 4·n, 6·n, 8·n; 15·n, 14·n |
///
/// Norms that are known cost nothing. What products do with their results (scales, corrections, biases, activations)
/// and what happens once a row is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Operations on f32.
    pub operations: u64,
}

impl Cost {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.read += other.read;
        self.written += other.written;
        self.operations += other.operations;
    }
}

/// What an adapter can do at most, as kernels of this crate that do nothing else reach it. See
/// [`Gpu::roofline`](crate::Gpu::roofline).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// Bytes read and written in a second, half of them each, by a copy.
    pub copy: f64,
    /// Bytes read in a second.
    pub read: f64,
    /// Operations in a second by multiply-adds, which count as two.
    pub multiply_add: f64,
}

impl Roofline {
    /// The time that `cost` takes at least: all multiply-adds at once, or all bytes, whatever takes longer. What is
    /// written, and as much of what is read, goes at the speed of a copy, the rest at the speed of reading.
    pub fn seconds(&self, cost: &Cost) -> f64 {
        let copied = 2 * cost.written;
        let moving = copied as f64 / self.copy + cost.bytes().saturating_sub(copied) as f64 / self.read;
        moving.max(cost.operations as f64 / self.multiply_add)
    }
}
