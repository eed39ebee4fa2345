//! Burn's padding in numbers, which its own crate keeps for itself.
use burn::nn::{PaddingConfig1d, PaddingConfig2d};

/// As many positions as keep ⌈size / stride⌉ outputs, the odd one behind. As Burn does it, the dilation does not count.
fn same(kernel: usize, stride: usize, size: usize) -> (usize, usize) {
    let outputs = size.div_ceil(stride);
    let padding = (outputs.max(1) - 1) * stride + kernel;
    let all = if outputs == 0 { 0 } else { padding.saturating_sub(size) };
    (all / 2, all - all / 2)
}

pub(super) fn pair_1d(padding: &PaddingConfig1d, kernel: usize, stride: usize, length: usize) -> (usize, usize) {
    match padding {
        PaddingConfig1d::Valid => (0, 0),
        PaddingConfig1d::Same => same(kernel, stride, length),
        PaddingConfig1d::Explicit(left, right) => (*left, *right),
    }
}

pub(super) fn pairs_2d(
    padding: &PaddingConfig2d,
    kernel: [usize; 2],
    stride: [usize; 2],
    size: [usize; 2],
) -> [(usize, usize); 2] {
    match padding {
        PaddingConfig2d::Valid => [(0, 0); 2],
        PaddingConfig2d::Same => [0, 1].map(|axis| same(kernel[axis], stride[axis], size[axis])),
        PaddingConfig2d::Explicit(top, left, bottom, right) => [(*top, *bottom), (*left, *right)],
    }
}
