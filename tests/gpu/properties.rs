//! Properties over random shapes, axes, storage types, policies, variants and exponents.
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use weightnorm::{Axis, DType, Eps, Gpu, Tile, WeightNorm, cpu};

use crate::common::{compare, weight_bound};
use crate::data::{DTYPES, POLICIES, Rng, gains, norm_count, norm_length, norm_of, random, rounded};
use crate::golden::read;
use crate::linear::{ACTIVATIONS, Case, IN, OUT, PLAIN, WHOLE};
use crate::normalize::Case as Normalize;
use crate::{Extent, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("property_normalize_equals_cpu", normalize_equals_cpu);
    suite.sampled("property_linear_equals_cpu", linear_equals_cpu);
    suite.sampled("property_scaling_v_changes_nothing", scaling_v);
    suite.sampled("property_scaling_g_scales", scaling_g);
    suite.sampled("property_permuting_rows_permutes", permuting_rows);
}

/// The same cases on every run, but others for each PROPTEST_RNG_SEED.
fn check<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> Outcome) -> Outcome {
    let config = ProptestConfig { failure_persistence: None, max_shrink_iters: 200, ..Default::default() };
    let rng_seed = if config.rng_seed == RngSeed::Random { RngSeed::Fixed(0) } else { config.rng_seed };
    let mut runner = TestRunner::new(ProptestConfig { cases, rng_seed, ..config });
    let test = |value| test(value).map_err(|e| TestCaseError::fail(e.message().unwrap_or("failed").to_owned()));
    Ok(runner.run(&strategy, test)?)
}

/// Numbers whose exponents are `spread` wide around that of their norm.
fn with_exponents(seed: u64, count: usize, dtype: DType, exponent_of: impl Fn(usize) -> i32, spread: i32) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    let mut number = |i| {
        let exponent = exponent_of(i) + (rng.signed() * f64::from(spread)) as i32;
        let value = rounded(rng.signed() * 2f64.powi(exponent), dtype);
        // Subnormals may count as zero, of which numbers.rs has its own test.
        if value.abs() < 2f64.powi(-126) { 0.0 } else { value }
    };
    (0..count).map(&mut number).collect()
}

/// Exponents for `count` norms: all alike, or each its own.
fn exponents(seed: u64, count: usize, dtype: DType) -> Vec<i32> {
    let range = if dtype == DType::F16 { 8.0 } else { 110.0 };
    let mut rng = Rng::new(seed ^ 0x55);
    (0..count).map(|_| if seed.is_multiple_of(2) { 0 } else { (rng.signed() * range) as i32 }).collect()
}

fn eps() -> impl Strategy<Value = Eps> {
    let extreme = (0usize..3, -126i32..=126).prop_map(|(policy, exponent)| {
        let e = 2f32.powi(exponent);
        [Eps::InsideSqrt(e), Eps::Clamp(e), Eps::After(e)][policy]
    });
    prop_oneof![proptest::sample::select(POLICIES.to_vec()), extreme]
}

fn normalize_equals_cpu(gpu: &Gpu, extent: Extent) -> Outcome {
    let dtype = || proptest::sample::select(DTYPES.to_vec());
    let shape = prop_oneof![
        prop::collection::vec(1usize..9, 1..=5),
        prop::collection::vec(0usize..400, 1..=2),
        prop::collection::vec(1usize..40, 3..=3),
    ];
    let strategy = (shape, 0usize..6, eps(), dtype(), dtype(), any::<bool>(), any::<u64>());
    check(extent.choose(150, 25), strategy, |(shape, axis, eps, dtype, to, gain, seed)| {
        let axis = if axis < shape.len() { Axis::Kept(axis) } else { Axis::Whole };
        let count = norm_count(&shape, axis);
        let (of, exponents) = (norm_of(&shape, axis), exponents(seed, count, dtype));
        let v = with_exponents(seed, shape.iter().product(), dtype, |i| exponents[of(i)], 6);
        let g = gain.then(|| gains(seed, count));
        let chain = norm_length(&shape, axis);
        Normalize { v: &v, shape: &shape, dtype, g: g.as_deref(), axis, eps, chain }.check(gpu, to)
    })
}

/// Few storage types and ends, since each mix is a pipeline of its own; the tests of linear go through all of them.
fn linear_case(extent: Extent) -> impl Strategy<Value = (Case, u64)> {
    let axis = proptest::sample::select(vec![OUT, OUT, OUT, IN, WHOLE, PLAIN]);
    let size = prop_oneof![[1usize..9, 1usize..80, 1usize..90], [9usize..80, 1usize..80, 1usize..90]];
    let dtype = proptest::sample::select(vec![DType::F32, DType::F32, DType::F16, DType::Bf16]);
    let split = prop_oneof![Just(None), Just(None), (1u32..100).prop_map(Some)];
    (size, axis, eps(), dtype, split, any::<u64>()).prop_map(move |(mut size, axis, eps, dtype, split_length, seed)| {
        // Few: nothing that is read or written in quads, and no whole steps, which take pipelines of their own.
        size[1..].iter_mut().for_each(|n| *n |= usize::from(extent == Extent::Few));
        let dtypes = [dtype; 3];
        // Variants that the other tests have built already.
        let (axis, dtypes) = if split_length.is_some() { (OUT, [DType::F32; 3]) } else { (axis, dtypes) };
        let dtypes = if size[0] > 8 { [DType::F32; 3] } else { dtypes };
        let axis = if dtypes[0] != DType::F32 || size[0] > 8 { OUT } else { axis };
        let any_tile =
            (axis == OUT && dtypes[0] == DType::F32 && seed % 3 == 0).then(|| Tile::ALL[seed as usize / 3 % 5]);
        let usual = if size[0] > 8 { Tile::Tile32x32 } else { Tile::Gemv4 };
        let tile = split_length.map(|_| Tile::Gemv8).or(extent.choose(any_tile, Some(usual)));
        let case = Case { axis, eps, dtypes, tile, split_length, ..Case::new(size) };
        (case.clone(), seed)
    })
}

/// Random data for a case, with exponents over the whole range where the weight is normalized along its rows.
fn filled(case: Case, seed: u64) -> Case {
    let [batch, outs, ins] = case.size;
    let (x_exponents, v_exponents) = (exponents(seed, batch, DType::F16), exponents(seed, outs, case.dtypes[1]));
    let x = with_exponents(seed, batch * ins, case.dtypes[0], |i| x_exponents[i / ins], 3);
    let wide = case.axis == OUT;
    let v = with_exponents(seed + 1, outs * ins, case.dtypes[1], |i| if wide { v_exponents[i / ins] } else { 0 }, 3);
    let g = case.axis.map(|axis| gains(seed, norm_count(&[outs, ins], axis)));
    Case { x: Some(x), v: Some(v), g, biases: Some(random(seed, outs, DType::F32)), ..case }
}

fn linear_equals_cpu(gpu: &Gpu, extent: Extent) -> Outcome {
    check(extent.choose(200, 100), linear_case(extent), |(case, seed)| {
        let usual = extent.choose(None, Some(Tile::Gemv4));
        let activation = if case.axis == OUT && case.tile == usual && case.size[0] < 9 && case.dtypes[2] == DType::F32 {
            ACTIVATIONS[seed as usize % 2 * 3]
        } else {
            ACTIVATIONS[0]
        };
        Case { activation, ..filled(case, seed) }.check(gpu)
    })
}

fn fused(extent: Extent) -> impl Strategy<Value = (Case, u64)> {
    linear_case(extent).prop_map(|(case, seed)| {
        (Case { axis: OUT, eps: Eps::None, dtypes: [DType::F32; 3], write_norms: true, ..case }, seed)
    })
}

/// w of rows of `ins` elements.
fn normalized(gpu: &Gpu, v: &[f64], g: &[f64], ins: usize) -> Result<Vec<f64>, weightnorm::Error> {
    let narrow = |values: &[f64]| values.iter().map(|&a| a as f32).collect::<Vec<_>>();
    let (v, g) = (gpu.upload(&narrow(v), &[g.len(), ins])?, gpu.upload(&narrow(g), &[g.len()])?);
    read(&gpu.normalize(WeightNorm::new(&v, &g).eps(Eps::None))?)
}

/// w, over `by`, is that of v and g.
fn judge_w(w: &[f64], by: f64, v: &[f64], g: &[f64], ins: usize) -> Outcome {
    let expected = cpu::normalize(v, &[g.len(), ins], Some(g), OUT.unwrap_or_default(), Eps::None)?;
    let w: Vec<f64> = w.iter().map(|w| w / by).collect();
    // One rounding more than a w computed of v and g: g·c.
    compare(&w, &expected, Some(DType::F32), |i| weight_bound(ins + 2, expected[i], DType::F32))?;
    Ok(())
}

/// c·v for c = 2^e and 3·2^e, exactly: v has the few bits of a bf16. w and y are judged as those of v.
fn scaling_v(gpu: &Gpu, extent: Extent) -> Outcome {
    check(60, (fused(extent), -90i32..90, any::<bool>()), |((case, seed), exponent, three)| {
        let [_, outs, ins] = case.size;
        let v = with_exponents(seed, outs * ins, DType::Bf16, |_| 0, 6);
        let c = 2f64.powi(exponent) * if three { 3.0 } else { 1.0 };
        let scaled: Vec<f64> = v.iter().map(|v| v * c).collect();
        let g = random(seed + 2, outs, DType::F32);
        judge_w(&normalized(gpu, &scaled, &g, ins)?, 1.0, &v, &g, ins)?;
        let case = Case { v: Some(v), ..case };
        let mut got = Case { v: Some(scaled), ..case.clone() }.run(gpu)?;
        got.norms = got.norms.map(|norms| norms.iter().map(|n| n / c).collect());
        Ok(case.judge(&got)?)
    })
}

/// y − bias grows by c when g does.
fn scaling_g(gpu: &Gpu, extent: Extent) -> Outcome {
    check(60, (fused(extent), 1u32..1000), |((case, seed), c)| {
        let c = f64::from(c);
        let g: Vec<f64> = random(seed, case.size[1], DType::Bf16);
        let scaled: Vec<f64> = g.iter().map(|g| rounded(g * c, DType::F32)).collect();
        let [_, outs, ins] = case.size;
        let v = random(seed + 2, outs * ins, DType::F32);
        judge_w(&normalized(gpu, &v, &scaled, ins)?, c, &v, &g, ins)?;
        let biases = random(seed + 1, outs, DType::F32);
        let case = Case { biases: Some(biases.clone()), ..case };
        let mut got = Case { g: Some(scaled), ..case.clone() }.run(gpu)?;
        for (y, bias) in got.y.iter_mut().zip(biases.iter().cycle()) {
            *y = (*y - bias) / c + bias;
        }
        Ok(Case { g: Some(g), ..case }.judge(&got)?)
    })
}

/// Rows of v, g and bias backwards: columns of y and norms backwards, to the bit.
fn permuting_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    check(60, fused(extent), |(case, seed)| {
        let [_, outs, ins] = case.size;
        let case = filled(case, seed);
        let got = case.run(gpu)?;
        let backwards = |values: &Option<Vec<f64>>| values.as_ref().map(|v| v.iter().rev().copied().collect());
        let v = case.v().chunks(ins).rev().flatten().copied().collect();
        let permuted =
            Case { v: Some(v), g: backwards(&case.g), biases: backwards(&case.biases), ..case.clone() }.run(gpu)?;
        let same = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        let expected: Vec<f64> = got.y.chunks(outs).flat_map(|row| row.iter().rev().copied()).collect();
        if !same(&permuted.y, &expected) {
            return Err("y is not the permuted y".into());
        }
        let g = random(seed + 2, outs, DType::F32);
        let rows_back = |w: &[f64]| w.chunks(ins).rev().flatten().copied().collect::<Vec<f64>>();
        let w = normalized(gpu, &case.v(), &g, ins)?;
        let back: Vec<f64> = g.iter().rev().copied().collect();
        if !same(&normalized(gpu, &rows_back(&case.v()), &back, ins)?, &rows_back(&w)) {
            return Err("w is not the permuted w".into());
        }
        let (norms, expected) = (permuted.norms.unwrap_or_default(), backwards(&got.norms).unwrap_or_default());
        if same(&norms, &expected) { Ok(()) } else { Err("the norms are not the permuted norms".into()) }
    })
}
