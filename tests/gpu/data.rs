//! Test data, and tensors between guards.
use weightnorm::internals::Kind;
use weightnorm::{Axis, DType, Eps, Error, Gpu, Tensor};

pub use crate::common::norm_chain;
use crate::device::of_kind;
use crate::{Extent, Outcome};

pub static DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
pub static POLICIES: [Eps; 4] = [Eps::None, Eps::InsideSqrt(1e-12), Eps::Clamp(1e-12), Eps::After(1e-3)];

/// Places in a buffer where a caller's tensor may start: all but the first lie beside what a device can bind at.
pub const OFFSETS: [u64; 4] = [0, 4, 12, 256 + 4];

/// One of them; and, unless `len` elements are many, also multiples of 16 and of 32 bytes, from where other kernels may
/// be taken.
pub fn offsets(seed: usize, len: usize) -> impl Iterator<Item = u64> {
    let aligned: &[u64] = if len <= 1 << 19 { &[16, 32] } else { &[] };
    [OFFSETS[seed % OFFSETS.len()]].into_iter().chain(aligned.iter().copied())
}

/// splitmix64: the same numbers on every run.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1 .. 1.
    pub fn signed(&mut self) -> f64 {
        (self.next() >> 11) as f64 / 2f64.powi(52) - 1.0
    }
}

/// `count` numbers in -1 .. 1 that `dtype` holds exactly.
pub fn random(seed: u64, count: usize, dtype: DType) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rounded(rng.signed(), dtype)).collect()
}

/// Gains of both signs and of very different size, one of them zero.
pub fn gains(seed: u64, count: usize) -> Vec<f64> {
    let mut g = random(seed, count, DType::F32);
    g.iter_mut().skip(3).step_by(7).for_each(|g| *g *= 1024.0);
    g.iter_mut().skip(5).step_by(11).for_each(|g| *g = 0.0);
    g
}

/// The nearest number of a storage type.
pub fn rounded(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(value as f32),
        DType::F16 => half::f16::from_f64(value).to_f64(),
        DType::Bf16 => half::bf16::from_f64(value).to_f64(),
    }
}

pub fn to_bytes(values: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|&v| (v as f32).to_ne_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| half::f16::from_f64(v).to_ne_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&v| half::bf16::from_f64(v).to_ne_bytes()).collect(),
    }
}

pub fn from_bytes(bytes: &[u8], dtype: DType) -> Vec<f64> {
    let pairs = || bytes.chunks_exact(2).map(|c| u16::from_ne_bytes([c[0], c[1]]));
    match dtype {
        DType::F32 => bytemuck::pod_collect_to_vec::<u8, f32>(bytes).into_iter().map(f64::from).collect(),
        DType::F16 => pairs().map(|bits| half::f16::from_bits(bits).to_f64()).collect(),
        DType::Bf16 => pairs().map(|bits| half::bf16::from_bits(bits).to_f64()).collect(),
    }
}

/// NaN as f32 and, in both halves, as f16 and bf16; no kernel of ours writes this one.
pub const POISON: [u8; 4] = 0x7fc1_7fc1u32.to_ne_bytes();
const GUARD_BYTES: usize = 64;

/// A tensor in the middle of a buffer that is poisoned in front of it and behind it, down to the half word behind the
/// last element of an odd packed tensor.
pub struct Guarded {
    pub tensor: Tensor,
    /// The whole buffer, as words.
    whole: Tensor,
}

impl Guarded {
    /// An output: poisoned as well.
    pub fn poisoned(gpu: &Gpu, shape: &[usize], dtype: DType, offset: u64) -> Result<Guarded, Error> {
        Guarded::new(gpu, None, shape, dtype, offset)
    }

    pub fn holding(gpu: &Gpu, values: &[f64], shape: &[usize], dtype: DType, offset: u64) -> Result<Guarded, Error> {
        Guarded::new(gpu, Some(values), shape, dtype, offset)
    }

    fn new(gpu: &Gpu, values: Option<&[f64]>, shape: &[usize], dtype: DType, offset: u64) -> Result<Guarded, Error> {
        let bytes = shape.iter().product::<usize>() * dtype.size() as usize;
        let first = offset as usize;
        let mut buffer = POISON.repeat((first + bytes.next_multiple_of(4) + GUARD_BYTES) / 4);
        if let Some(values) = values {
            buffer[first..first + bytes].copy_from_slice(&to_bytes(values, dtype));
        }
        let words: Vec<f32> = bytemuck::pod_collect_to_vec(&buffer);
        let whole = gpu.upload(&words, &[words.len()])?;
        Ok(Guarded { tensor: Tensor::from_buffer(gpu, whole.buffer()?, offset, shape, dtype)?, whole })
    }

    /// The bytes of the elements, once it is sure that all of them were written and nothing beside them.
    pub fn bytes(&self) -> Result<Vec<u8>, String> {
        let words = self.whole.read::<f32>().map_err(|e| e.to_string())?;
        let buffer: &[u8] = bytemuck::cast_slice(&words);
        let first = self.tensor.offset() as usize;
        let size = self.tensor.dtype().size() as usize;
        let end = first + self.tensor.len() * size;
        if let Some(at) = (0..buffer.len()).find(|&i| !(first..end).contains(&i) && buffer[i] != POISON[i % 4]) {
            return Err(format!("byte {at} of the buffer was overwritten; the tensor lies at {first}..{end}"));
        }
        let elements = &buffer[first..end];
        match elements.chunks_exact(size).position(|e| e == &POISON[..size]) {
            Some(at) => Err(format!("element {at} was not written")),
            None => Ok(elements.to_vec()),
        }
    }

    pub fn read(&self) -> Result<Vec<f64>, String> {
        Ok(from_bytes(&self.bytes()?, self.tensor.dtype()))
    }
}

/// Uploads at a place that changes with `seed`, between guards that are NaN: a kernel that reads beside its input
/// shows it.
pub fn upload(gpu: &Gpu, values: &[f64], shape: &[usize], dtype: DType, seed: usize) -> Result<Tensor, Error> {
    Ok(Guarded::holding(gpu, values, shape, dtype, OFFSETS[seed % OFFSETS.len()])?.tensor)
}

/// Every axis of a tensor, and the whole of it.
pub fn axes(shape: &[usize]) -> impl Iterator<Item = Axis> + use<> {
    (0..shape.len()).map(Axis::Kept).chain([Axis::Whole])
}

/// How many norms there are.
pub fn norm_count(shape: &[usize], axis: Axis) -> usize {
    match axis {
        Axis::Kept(k) => shape[k],
        Axis::Whole => 1,
    }
}

/// Elements of one norm.
pub fn norm_length(shape: &[usize], axis: Axis) -> usize {
    shape.iter().product::<usize>() / norm_count(shape, axis).max(1)
}

/// The index of each element's norm.
pub fn norm_of(shape: &[usize], axis: Axis) -> impl Fn(usize) -> usize + use<> {
    let (inner, kept) = match axis {
        Axis::Kept(k) => (shape[k + 1..].iter().product::<usize>().max(1), shape[k].max(1)),
        Axis::Whole => (1, 1),
    };
    move |element| element / inner % kept
}

/// As on a GPU and as on a software driver: each case on both, or, where few are wanted, on one after the other in
/// turn.
pub fn in_turn<C: std::fmt::Debug>(
    gpu: &Gpu,
    extent: Extent,
    cases: impl IntoIterator<Item = C>,
    check: impl Fn(&Gpu, &C) -> Outcome,
) -> Outcome {
    let devices = [of_kind(gpu, Kind::Gpu)?, of_kind(gpu, Kind::Software)?];
    all(cases.into_iter().enumerate(), |(i, case)| match extent {
        // One, the other, the other, one: not in step with anything else that cases alternate.
        Extent::Few => check(&devices[(i + i / 2) % 2], case),
        Extent::All => devices.iter().try_for_each(|device| check(device, case)),
    })
}

/// Runs `check` for each case and says which ones failed.
pub fn all<C: std::fmt::Debug>(cases: impl IntoIterator<Item = C>, check: impl Fn(&C) -> Outcome) -> Outcome {
    let mut failures = vec![];
    for case in cases {
        if let Err(failure) = check(&case) {
            failures.push(format!("{case:?}: {}", failure.message().unwrap_or("failed")));
        }
    }
    match failures.len() {
        0 => Ok(()),
        count => Err(format!("{count} cases failed:\n{}", failures[..count.min(12)].join("\n")).into()),
    }
}

/// A check that has to fail.
pub fn must_fail(what: &str, result: Result<(), String>) -> Outcome {
    match result {
        Ok(()) => Err(format!("{what}: not noticed").into()),
        Err(_) => Ok(()),
    }
}
