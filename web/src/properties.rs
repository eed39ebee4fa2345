//! Properties over random shapes, axes, policies and storage types, in a browser: those of `tests/gpu/properties.rs`,
//! within the same bounds.
use wasm_bindgen::prelude::*;
use weightnorm::{Activation, Axis, DType, Eps, Gpu, Linear, Tensor, WeightNorm, cpu, half};

use crate::golden::common::{compare, dot_bound, weight_bound};
use crate::golden::{Failed, read};
use crate::{Device, text};

const AXES: [Axis; 3] = [Axis::Kept(0), Axis::Kept(1), Axis::Whole];
const POLICIES: [Eps; 4] = [Eps::None, Eps::InsideSqrt(1e-6), Eps::Clamp(0.5), Eps::After(0.01)];
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const NAMES: [&str; 5] =
    ["normalize equals the reference", "linear equals the reference", "scaling v", "scaling g", "permuting rows"];

/// The names of the properties, in the order of their numbers.
#[wasm_bindgen]
pub fn property_names() -> Vec<String> {
    NAMES.map(str::to_owned).into()
}

/// Property `number` over so many random cases: what was seen.
#[wasm_bindgen]
pub async fn property(device: &Device, number: usize, cases: u32) -> Result<String, JsError> {
    let (gpu, mut random) = (device.gpu.clone(), Random(0x9e37_79b9_7f4a_7c15 ^ number as u64));
    let mut worst = 0f64;
    for case in 0..cases {
        let part = match number {
            0 => normalize_equals_cpu(&gpu, &mut random).await,
            1 => linear_equals_cpu(&gpu, &mut random).await,
            2 => scaling_v(&gpu, &mut random).await,
            3 => scaling_g(&gpu, &mut random).await,
            4 => permuting_rows(&gpu, &mut random).await,
            _ => Err(Failed("there is no such property".to_owned())),
        };
        worst = worst.max(part.map_err(|Failed(what)| text(format!("case {case}: {what}")))?);
    }
    Ok(format!("{cases} cases, at most {worst:.2} of the bound"))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 1 to `most`.
    fn size(&mut self, most: u64) -> usize {
        1 + (self.next() % most) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.next() % all.len() as u64) as usize]
    }

    /// Numbers from -1 to 1, as they are stored.
    fn numbers(&mut self, count: usize, dtype: DType) -> Vec<f64> {
        let mut number = || (self.next() >> 11) as f64 / 2f64.powi(52) - 1.0;
        (0..count).map(|_| stored(number(), dtype)).collect()
    }
}

fn stored(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(value as f32),
        DType::F16 => f64::from(half::f16::from_f64(value)),
        DType::Bf16 => f64::from(half::bf16::from_f64(value)),
    }
}

fn upload(gpu: &Gpu, values: &[f64], shape: &[usize], dtype: DType) -> Result<Tensor, Failed> {
    Ok(match dtype {
        DType::F32 => gpu.upload(&values.iter().map(|&x| x as f32).collect::<Vec<_>>(), shape)?,
        DType::F16 => gpu.upload(&values.iter().map(|&x| half::f16::from_f64(x)).collect::<Vec<_>>(), shape)?,
        DType::Bf16 => gpu.upload(&values.iter().map(|&x| half::bf16::from_f64(x)).collect::<Vec<_>>(), shape)?,
    })
}

/// A weight with its gains.
struct Weight {
    v: Vec<f64>,
    g: Vec<f64>,
    shape: [usize; 2],
    axis: Axis,
    eps: Eps,
    dtype: DType,
}

impl Weight {
    fn random(random: &mut Random, axis: Axis, eps: Eps, dtype: DType) -> Weight {
        let shape = [random.size(40), random.size(90)];
        let norms = if let Axis::Kept(k) = axis { shape[k] } else { 1 };
        let (v, g) = (random.numbers(shape[0] * shape[1], dtype), random.numbers(norms, DType::F32));
        Weight { v, g, shape, axis, eps, dtype }
    }

    async fn normalize(&self, gpu: &Gpu) -> Result<Vec<f64>, Failed> {
        let (v, g) =
            (upload(gpu, &self.v, &self.shape, self.dtype)?, upload(gpu, &self.g, &[self.g.len()], DType::F32)?);
        Ok(read(&gpu.normalize(WeightNorm::new(&v, &g).axis(self.axis).eps(self.eps))?).await?)
    }

    fn reference(&self) -> Result<Vec<f64>, Failed> {
        Ok(cpu::normalize(&self.v, &self.shape, Some(&self.g), self.axis, self.eps)?)
    }
}

async fn normalize_equals_cpu(gpu: &Gpu, random: &mut Random) -> Result<f64, Failed> {
    let (axis, eps, dtype) = (random.one_of(&AXES), random.one_of(&POLICIES), random.one_of(&DTYPES));
    let weight = Weight::random(random, axis, eps, dtype);
    let (w, expected) = (weight.normalize(gpu).await?, weight.reference()?);
    let chain = weight.v.len() / weight.g.len();
    Ok(compare(&w, &expected, Some(dtype), |i| weight_bound(chain, expected[i], dtype))?)
}

async fn linear_equals_cpu(gpu: &Gpu, random: &mut Random) -> Result<f64, Failed> {
    let (axis, eps) = (random.one_of(&AXES), random.one_of(&POLICIES));
    let weight = Weight::random(random, axis, eps, DType::F32);
    let [outs, ins] = weight.shape;
    let x_shape = [random.size(40), ins];
    let x = random.numbers(x_shape[0] * ins, DType::F32);
    let absolute = |values: &[f64]| values.iter().map(|a| a.abs()).collect::<Vec<_>>();
    let product = |x: &[f64], w: &[f64]| cpu::linear(x, &x_shape, w, &[outs, ins], None, Activation::None);
    let w = weight.reference()?;
    let (expected, sums) = (product(&x, &w)?, product(&absolute(&x), &absolute(&w))?);
    let (v, g) =
        (upload(gpu, &weight.v, &weight.shape, DType::F32)?, upload(gpu, &weight.g, &[weight.g.len()], DType::F32)?);
    let x = upload(gpu, &x, &x_shape, DType::F32)?;
    let y = gpu.linear(Linear::new(&x, WeightNorm::new(&v, &g).axis(axis).eps(eps)))?;
    let chain = ins.max(weight.v.len() / weight.g.len());
    Ok(compare(&read(&y).await?, &expected, Some(DType::F32), |i| dot_bound(chain, sums[i], expected[i], DType::F32))?)
}

/// 2^k·v has the same w.
async fn scaling_v(gpu: &Gpu, random: &mut Random) -> Result<f64, Failed> {
    let axis = random.one_of(&AXES);
    let weight = Weight::random(random, axis, Eps::None, DType::F32);
    let by = 2f64.powi(random.size(160) as i32 - 80);
    let scaled = Weight { v: weight.v.iter().map(|v| v * by).collect(), g: weight.g.clone(), ..weight };
    let (expected, chain) = (weight.reference()?, weight.v.len() / weight.g.len());
    let bound = |i: usize| weight_bound(chain, expected[i], DType::F32);
    Ok(compare(&scaled.normalize(gpu).await?, &expected, Some(DType::F32), bound)?)
}

/// 2^k·g has 2^k·w, bit by bit.
async fn scaling_g(gpu: &Gpu, random: &mut Random) -> Result<f64, Failed> {
    let (axis, eps) = (random.one_of(&AXES), random.one_of(&POLICIES));
    let weight = Weight::random(random, axis, eps, DType::F32);
    let by = 2f64.powi(random.size(40) as i32 - 20);
    let scaled = Weight { v: weight.v.clone(), g: weight.g.iter().map(|g| g * by).collect(), ..weight };
    let expected: Vec<f64> = weight.normalize(gpu).await?.iter().map(|w| w * by).collect();
    same(&scaled.normalize(gpu).await?, &expected)
}

/// Rows turned upside down give w turned upside down, bit by bit.
async fn permuting_rows(gpu: &Gpu, random: &mut Random) -> Result<f64, Failed> {
    let (eps, dtype) = (random.one_of(&POLICIES), random.one_of(&DTYPES));
    let weight = Weight::random(random, Axis::Kept(0), eps, dtype);
    let turned = |values: &[f64], columns: usize| values.chunks(columns).rev().flatten().copied().collect::<Vec<_>>();
    let columns = weight.shape[1];
    let other = Weight { v: turned(&weight.v, columns), g: turned(&weight.g, 1), ..weight };
    same(&turned(&other.normalize(gpu).await?, columns), &weight.normalize(gpu).await?)
}

fn same(got: &[f64], expected: &[f64]) -> Result<f64, Failed> {
    Ok(compare(got, expected, None, |_| 0.0)?)
}
