//! Devices, numbers and comparisons.
use std::path::{Path, PathBuf};

use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

/// Burn's wgpu device, with its default memory.
pub fn wgpu() -> Device {
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    assert!(weightnorm_burn::has_kernels(&device), "{device:?} does not take WGSL");
    device
}

/// A backend without the kernels.
pub fn cpu() -> Device {
    let device = Device::flex();
    assert!(!weightnorm_burn::has_kernels(&device));
    device
}

/// Numbers from -1 to 1, the same each time.
pub fn random<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

pub fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Rounding errors of a sum of so many products of f32, with room for another order: the largest expected number stands
/// for the sums of absolute products, of which random ones have a few times as much.
pub fn bound(expected: &[f64], terms: usize) -> f64 {
    let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
    largest * (terms as f64).sqrt().max(4.0) * 4.0 * 2f64.powi(-24)
}

/// Where two lists differ by more than the bound.
pub fn difference(got: &[f64], expected: &[f64], terms: usize) -> Option<String> {
    if got.len() != expected.len() {
        return Some(format!("{} numbers, expected {}", got.len(), expected.len()));
    }
    let bound = bound(expected, terms);
    let far = |(a, b): (&f64, &f64)| (a - b).abs() > bound || !a.is_finite();
    let at = got.iter().zip(expected).position(far)?;
    Some(format!("element {at} is {}, expected {}, bound {bound:e}", got[at], expected[at]))
}

pub fn assert_close(what: &str, got: &[f64], expected: &[f64], terms: usize) {
    if let Some(difference) = difference(got, expected, terms) {
        panic!("{what}: {difference}");
    }
}

/// A folder of the repository.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

/// A tensor of a file, f32 or f64: its shape and its numbers.
pub fn read(file: &SafeTensors<'_>, name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
    let view = file.tensor(name).ok()?;
    let bytes = view.data();
    let numbers = match view.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
        other => panic!("{name} is {other:?}"),
    };
    Some((view.shape().to_vec(), numbers))
}

/// The same as a tensor of Burn.
pub fn load<const D: usize>(file: &SafeTensors<'_>, name: &str, device: &Device) -> Tensor<D> {
    let (shape, numbers) = read(file, name).unwrap_or_else(|| panic!("{name} is missing"));
    let numbers: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}
