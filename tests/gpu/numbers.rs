//! The whole range of numbers: scaled rows, zero rows, subnormals, NaN and infinity, f16 and bf16 codes.
use half::{bf16, f16};
use weightnorm::internals::Kind;
use weightnorm::{Axis, DType, Decompose, Element, Eps, Gpu, Linear, Tensor, Tile, WeightNorm, cpu};

use crate::data::{DTYPES, POLICIES, Rng, all, gains, norm_count, norm_length, rounded};
use crate::device::of_kind;
use crate::linear::{Case as LinearCase, IN, PLAIN, WHOLE};
use crate::normalize::Case as Normalize;
use crate::norms::check as check_norms;
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("numbers_norms_of_scaled_rows", scaled_rows);
    suite.sampled("numbers_norms_of_scaled_quads", scaled_quads);
    suite.test("numbers_comparer_finds_faults", Needs::Nothing, |_| comparer_finds_faults());
    suite.sampled("numbers_linear_of_scaled_rows", scaled_linear);
    suite.sampled("numbers_linear_whole_tensor_scaled", scaled_whole);
    suite.sampled("numbers_linear_plain_and_in_scaled", scaled_columns);
    suite.sampled("numbers_gains_over_the_range", scaled_gains);
    suite.sampled("numbers_zero_rows", zero_rows);
    suite.test("numbers_subnormal_rows", Needs::Nothing, subnormal_rows);
    suite.sampled("numbers_nan_and_infinity_stay_in_their_row_of_v", not_finite_v);
    suite.sampled("numbers_nan_and_infinity_stay_in_their_row_of_x", not_finite_x);
    suite.sampled("numbers_nan_in_gain_and_bias_stays_in_its_column", not_finite_ends);
    suite.test("numbers_read_every_f16", Needs::Nothing, |gpu| {
        read_codes(gpu, &(0..=u16::MAX).map(f16::from_bits).collect::<Vec<_>>())
    });
    suite.test("numbers_read_every_bf16", Needs::Nothing, |gpu| {
        read_codes(gpu, &(0..=u16::MAX).map(bf16::from_bits).collect::<Vec<_>>())
    });
    suite.test("numbers_write_f16_to_nearest_even", Needs::Nothing, |gpu| {
        write_codes(gpu, &around_codes(0x7c00, |code| f16::from_bits(code).to_f32()), f16::from_f32)
    });
    suite.test("numbers_write_bf16_to_nearest_even", Needs::Nothing, |gpu| {
        write_codes(gpu, &around_codes(0x7f80, |code| bf16::from_bits(code).to_f32()), bf16::from_f32)
    });
}

/// Scales of rows, in each storage type: its extremes, both sides of where sums of squares leave f32, the middle.
/// Elements are 0.5 to 1 times the scale, so never subnormal (in f32).
fn scales(dtype: DType) -> &'static [f64] {
    match dtype {
        DType::F16 => &[65504.0, 1e3, 1.0, 1.2e-4, 1e-6],
        _ => &[
            1.0, 3e25, 3e-25, 1e20, 1e-20, 1e30, 1e-30, 3.3e38, 2.4e-38, 1e15, 1e-15, 3e14, 3e-14, 1e10, 1e-12, 9e17,
            9e-18, 1e-3, 1e-6,
        ],
    }
}

fn around_one(rng: &mut Rng) -> f64 {
    let r = rng.signed();
    (0.5 + r.abs() / 2.0).copysign(r)
}

/// A tensor whose element i has the scale scale_of(i).
fn scaled(seed: u64, count: usize, dtype: DType, scale_of: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut rng = Rng::new(seed);
    (0..count).map(|i| rounded(around_one(&mut rng) * scale_of(i), dtype)).collect()
}

/// The policies, also with the smallest and the largest e.
fn policies() -> Vec<Eps> {
    let extremes = [f32::MIN_POSITIVE, 1e-24, 1e20, 2f32.powi(126)];
    let extremes = extremes.into_iter().flat_map(|e| [Eps::InsideSqrt(e), Eps::Clamp(e), Eps::After(e)]);
    POLICIES.into_iter().chain(extremes).collect()
}

/// All, or five of them, of every kind. Which, changes with `seed`.
fn some_policies(extent: Extent, seed: usize) -> Vec<Eps> {
    extent.choose(policies(), policies().into_iter().cycle().skip(seed).step_by(5).take(5).collect())
}

struct Weight<'a> {
    v: &'a [f64],
    shape: &'a [usize],
    dtype: DType,
    axis: Axis,
}

fn norms_and_weights(gpu: &Gpu, &Weight { v, shape, dtype, axis }: &Weight<'_>, policies: &[Eps]) -> Outcome {
    all(policies, |&&eps| {
        let chain = norm_length(shape, axis);
        check_norms(gpu, v, shape, dtype, axis, eps, chain)?;
        let g = gains(3, norm_count(shape, axis));
        Normalize { v, shape, dtype, g: Some(&g), axis, eps, chain }.check(gpu, dtype)
    })
}

/// Every scale in rows, columns, the middle of a tensor, and as a whole; and rows in which they mix.
fn scaled_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    all(DTYPES, |&dtype| {
        let all_of_them = some_policies(extent, 0);
        let check = |gpu: &Gpu, weight: &Weight<'_>| norms_and_weights(gpu, weight, &all_of_them);
        let scales = scales(dtype);
        let kept = scales.len();
        let (rows, columns, middle) = ([kept, 37], [21, kept], [3, kept, 5]);
        let v = scaled(1, kept * 37, dtype, |i| scales[i / 37]);
        check(gpu, &Weight { v: &v, shape: &rows, dtype, axis: Axis::Kept(0) })?;
        check(gpu, &Weight { v: &v, shape: &rows, dtype, axis: Axis::Kept(1) })?;
        check(gpu, &Weight { v: &v, shape: &rows, dtype, axis: Axis::Whole })?;
        let v = scaled(2, kept * 21, dtype, |i| scales[i % kept]);
        check(gpu, &Weight { v: &v, shape: &columns, dtype, axis: Axis::Kept(1) })?;
        let v = scaled(3, kept * 15, dtype, |i| scales[i / 5 % kept]);
        check(gpu, &Weight { v: &v, shape: &middle, dtype, axis: Axis::Kept(1) })?;
        // Rows split over workgroups.
        let v = scaled(4, kept * 40_000, dtype, |i| scales[i / 40_000]);
        check_norms(gpu, &v, &[kept, 40_000], dtype, Axis::Kept(0), Eps::None, crate::data::norm_chain(40_000))?;
        all(scales.iter().enumerate(), |&(i, &scale)| {
            let v = scaled(5, 65, dtype, |_| scale);
            let policies = some_policies(extent, i);
            let few = &policies[..extent.choose(policies.len(), 2)];
            norms_and_weights(gpu, &Weight { v: &v, shape: &[13, 5], dtype, axis: Axis::Whole }, few)
        })
    })
}

/// The same for what is read four words at once: rows, columns and the middle; rows that end within a quad; rows so
/// many and short that an invocation has several; NaN, infinities and rows of zeros among them; as on either kind of
/// device.
///
/// Few: each shape in one storage type, with one policy.
fn scaled_quads(gpu: &Gpu, extent: Extent) -> Outcome {
    let shapes = [
        (&[27, 40][..], Axis::Kept(0)),
        (&[27, 288], Axis::Kept(0)),
        (&[35, 24], Axis::Kept(1)),
        (&[3, 24, 8], Axis::Kept(1)),
        (&[70, 3, 8], Axis::Kept(1)),
        (&[16_411, 8], Axis::Kept(0)),
        (&[16_411, 24], Axis::Kept(0)),
        (&[264, 9], Axis::Kept(0)),
        (&[136, 27], Axis::Kept(0)),
    ];
    let cases = DTYPES.iter().flat_map(|&dtype| shapes.map(move |(shape, axis)| (dtype, shape, axis)));
    all(extent.of(cases.enumerate(), 4), |&(i, (dtype, shape, axis))| {
        let mut scales = scales(dtype).to_vec();
        scales.extend([0.0, 1.0, f64::NAN, f64::INFINITY]);
        let (of, count) = (crate::data::norm_of(shape, axis), norm_count(shape, axis));
        let scale_of = |i: usize| scales[(of(i) + of(i) / 64) % scales.len()];
        let mut v =
            scaled(11, shape.iter().product(), dtype, |i| if scale_of(i).is_finite() { scale_of(i) } else { 1.0 });
        for j in (0..count).filter(|j| !scales[(j + j / 64) % scales.len()].is_finite()) {
            let at = (0..v.len()).filter(|&i| of(i) == j).nth(j % 8).ok_or("rows are longer")?;
            v[at] = scale_of(at);
        }
        let one = [POLICIES[i / 4 % 4]];
        let policies = if count > 100 { &POLICIES[2..3] } else { extent.choose(&POLICIES[..], &one) };
        let chain = norm_length(shape, axis);
        let g = gains(3, count);
        let kinds = [Kind::Gpu, Kind::Software];
        all(extent.choose(&kinds[..], &kinds[(i / 4 + i / 16) % 2..][..1]), |&&kind| {
            let gpu = &of_kind(gpu, kind)?;
            all(policies, |&&eps| {
                check_norms(gpu, &v, shape, dtype, axis, eps, chain)?;
                Normalize { v: &v, shape, dtype, g: Some(&g), axis, eps, chain }.check(gpu, dtype)
            })
        })
    })
}

/// Biases of 0, which hide no small y; by the pipelines of other tests.
fn without_bias(size: [usize; 3], extent: Extent) -> LinearCase {
    LinearCase { biases: Some(vec![0.0; size[1]]), ..LinearCase::new(size) }.by_one_tile(extent)
}

/// Rows of x of every scale times rows of v of every scale: each y is right.
///
/// Few: the policies in f32 alone, bf16 whole and with one; the tiles that are no variant of another.
fn scaled_linear(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    for dtypes in [[DType::F32; 3], [DType::Bf16; 3]] {
        let (x_scales, v_scales) = ([1.0, 0.0, 1e30, 1e-30, 8e-28, 2.4e-38, 3e37, 1e10], scales(dtypes[1]));
        let size = [x_scales.len(), v_scales.len(), 39];
        let x = Some(scaled(6, size[0] * 39, dtypes[0], |i| x_scales[i / 39]));
        let v = Some(scaled(7, size[1] * 39, dtypes[1], |i| v_scales[i / 39]));
        let g = Some(scaled(8, size[1], DType::F32, |_| 1.0));
        let base = LinearCase { dtypes, x, v, g, ..without_bias(size, extent) };
        cases.extend(policies().into_iter().map(|eps| LinearCase { eps, ..base.clone() }));
        cases.push(LinearCase { biases: None, ..base.clone() });
        if extent == Extent::All || dtypes[0] == DType::F32 {
            cases.push(LinearCase { split_length: Some(16), tile: Some(Tile::Gemv8), ..base.clone() });
        }
        if dtypes[0] == DType::F32 {
            let few = [Tile::Tile32x32, Tile::Subgroup8].into_iter().filter(|tile| tile.runs_on(gpu)).collect();
            let tiles: Vec<Tile> = extent.choose(Tile::all_on(gpu).collect(), few);
            cases.extend(tiles.into_iter().map(|tile| LinearCase { tile: Some(tile), ..base.clone() }));
            // Norms that are known, where an f32 holds them.
            let mut known = LinearCase { known: true, write_norms: false, ..base };
            known.v = known
                .v
                .map(|v| v.iter().enumerate().map(|(i, &v)| if v_scales[i / 39] > 1e38 { 1.0 } else { v }).collect());
            cases.push(known);
        }
    }
    all(cases, |case| case.check(gpu))
}

fn scaled_whole(gpu: &Gpu, extent: Extent) -> Outcome {
    all(scales(DType::F32), |&&scale| {
        let x_scales = [1.0, 0.0, 1e30, 1e-30, 8e-28, 1e-10, 3e37];
        let x = Some(scaled(6, 7 * 13, DType::F32, |i| x_scales[i / 13]));
        let v = Some(scaled(7, 5 * 13, DType::F32, |_| scale));
        let case = LinearCase { axis: WHOLE, x, v, eps: Eps::None, ..without_bias([7, 5, 13], extent) };
        case.check(gpu)?;
        LinearCase { split_length: Some(16), tile: Some(Tile::Gemv8), ..case }.check(gpu)
    })
}

/// Columns of v of every scale with kept axis in; a plain weight of every scale whose y an f32 holds.
fn scaled_columns(gpu: &Gpu, extent: Extent) -> Outcome {
    let scales = scales(DType::F32);
    let ins = scales.len();
    let x_scales = [1.0, 0.0, 1e30, 1e-30, 1e-10, 1e10];
    let x = Some(scaled(6, 6 * ins, DType::F32, |i| x_scales[i / ins]));
    let v = Some(scaled(7, 5 * ins, DType::F32, |i| scales[i % ins]));
    let case = LinearCase { axis: IN, x: x.clone(), v, eps: Eps::None, ..without_bias([6, 5, ins], extent) };
    case.check(gpu)?;
    LinearCase { split_length: Some(16), tile: Some(Tile::Gemv8), ..case.clone() }.check(gpu)?;
    let v = Some(scaled(8, 5 * ins, DType::F32, |i| [1.0, 1e-10, 1e7, 1e-5, 1e3][i / ins]));
    LinearCase { axis: PLAIN, v, ..case }.check(gpu)
}

/// g from 1e-30 to 1e30, with rows as extreme the other way.
fn scaled_gains(gpu: &Gpu, extent: Extent) -> Outcome {
    let pairs: Vec<(f64, f64)> =
        [1e-30, 1e-15, 1.0, 1e15, 1e30].iter().flat_map(|&g| scales(DType::F32).iter().map(move |&v| (g, v))).collect();
    let outs = pairs.len();
    let g = scaled(9, outs, DType::F32, |j| pairs[j].0);
    let v = scaled(10, outs * 13, DType::F32, |i| pairs[i / 13].1);
    let (shape, axis) = ([outs, 13], Axis::Kept(0));
    let weight = Normalize { v: &v, shape: &shape, dtype: DType::F32, g: Some(&g), axis, eps: Eps::None, chain: 13 };
    weight.check(gpu, DType::F32)?;
    let x_scales = [1.0, 1e-30, 1e30, 1e7];
    let x = Some(scaled(6, 4 * 13, DType::F32, |i| x_scales[i / 13]));
    let base = LinearCase { x, v: Some(v), g: Some(g), eps: Eps::None, ..without_bias([4, outs, 13], extent) };
    base.check(gpu)?;
    // The policies that divide by e itself.
    LinearCase { eps: Eps::After(1e-3), ..base.clone() }.check(gpu)?;
    LinearCase { split_length: Some(16), tile: Some(Tile::Gemv8), ..base }.check(gpu)
}

/// Under the policy `none` a zero row is NaN and column j of y with it; under the others w = 0 and y = bias.
fn zero_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    // Few: products in f32 and one of the packed types.
    let few = |dtype: DType| extent == Extent::All || dtype != DType::F16;
    all(DTYPES.iter().flat_map(|&dtype| policies().into_iter().map(move |eps| (dtype, eps))), |&(dtype, eps)| {
        let v = scaled(1, 7 * 5, dtype, |i| if (i / 5) % 3 == 1 { 0.0 } else { 1.0 });
        let weight = Weight { v: &v, shape: &[7, 5], dtype, axis: Axis::Kept(0) };
        check_norms(gpu, &v, weight.shape, dtype, weight.axis, eps, 5)?;
        Normalize { v: &v, shape: weight.shape, dtype, g: None, axis: weight.axis, eps, chain: 5 }.check(gpu, dtype)?;
        if !few(dtype) {
            return Ok(());
        }
        let x = scaled(2, 3 * 5, dtype, |i| if i / 5 == 1 { 0.0 } else { 1.0 });
        let case = LinearCase { dtypes: [dtype; 3], eps, x: Some(x), v: Some(v), ..LinearCase::new([3, 7, 5]) }
            .by_one_tile(extent);
        case.check(gpu)?;
        if dtype == DType::F32 {
            for axis in [IN, WHOLE] {
                let v = scaled(3, 7 * 5, dtype, |i| if axis == WHOLE || i % 5 == 2 { 0.0 } else { 1.0 });
                LinearCase { axis, v: Some(v), ..case.clone() }.check(gpu)?;
            }
        }
        Ok(())
    })
}

/// A subnormal may count as zero: w lies between 0 and what it is, and is no NaN under a policy other than `none`. Nor
/// is y.
fn subnormal_rows(gpu: &Gpu) -> Outcome {
    let rows: [[f32; 5]; 4] = [
        [1e-39, -3e-40, 0.0, 1e-44, 2e-45],
        [1e-45; 5],
        [1.0, 1e-39, -1e-40, 0.0, 0.5],
        [2e-38, 1e-39, -1e-40, 0.0, 3e-38],
    ];
    let data = rows.concat();
    let v64 = cpu::widen(&data);
    for eps in policies().into_iter().filter(|&eps| eps != Eps::None) {
        let v = gpu.upload(&data, &[4, 5])?;
        let expected = cpu::normalize(&v64, &[4, 5], None, Axis::Kept(0), eps)?;
        let norms = cpu::row_norms(&v64, &[4, 5], Axis::Kept(0), eps)?;
        let w = gpu.normalize(WeightNorm::unit(&v).eps(eps))?.read::<f32>()?;
        for (i, (&w, &expected)) in w.iter().zip(&expected).enumerate() {
            // What v itself may lose, and what w may.
            let lost = 2f64.powi(-126) / norms[i / 5] + 2f64.powi(-126);
            let error = (f64::from(w) - expected).abs();
            if error.is_nan() || error > expected.abs() * 1e-5 + lost.min(1.0) {
                return Err(format!("{eps:?}: w[{i}] is {w:e}, expected {expected:e} or 0").into());
            }
        }
        let x = gpu.upload(&[1f32, -1.0, 1e30, 1e-30, 1e-39, 0.0, 0.0, 0.0, 0.0, 0.0], &[2, 5])?;
        for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
            let y = gpu.linear(Linear::new(&x, WeightNorm::unit(&v).axis(axis).eps(eps)))?.read::<f32>()?;
            if y.iter().any(|y| !y.is_finite()) || y[4..].iter().any(|&y| y != 0.0) {
                return Err(format!("{eps:?}, {axis:?}: y is {y:?}").into());
            }
        }
    }
    Ok(())
}

const NOT_FINITE: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// Not hidden by a clamp, however large, and in packed odd rows not spilled into the neighbour that shares a word.
///
/// Few: other storage types by one product, and without other tiles.
fn not_finite_v(gpu: &Gpu, extent: Extent) -> Outcome {
    let all_values = || NOT_FINITE.iter().flat_map(|&value| DTYPES.map(|dtype| (value, dtype)));
    all(all_values(), |&(value, dtype)| {
        for (shape, axis) in [
            (&[5, 3][..], Axis::Kept(0)),
            (&[3, 5], Axis::Kept(1)),
            (&[2, 3, 3], Axis::Kept(1)),
            (&[3, 257, 1], Axis::Kept(0)),
            (&[3, 40_001], Axis::Kept(0)),
        ] {
            let count: usize = shape.iter().product();
            let places = [0, count / 3, count / 2, count - 1];
            all(places, |&place| {
                let mut v = scaled(1, count, dtype, |_| 1.0);
                v[place] = value;
                let weight = Weight { v: &v, shape, dtype, axis };
                if count > 10_000 {
                    let chain = norm_length(shape, axis);
                    return check_norms(gpu, &v, shape, dtype, axis, Eps::Clamp(2f32.powi(126)), chain);
                }
                norms_and_weights(gpu, &weight, &some_policies(extent, place))
            })?;
        }
        Ok(())
    })?;
    all(all_values(), |&(value, dtype)| {
        for place in [0, 3 * 13 + 12, 4 * 13, 7 * 13 + 5] {
            let mut v = scaled(1, 9 * 13, dtype, |_| 1.0);
            v[place] = value;
            let case = LinearCase { dtypes: [dtype; 3], v: Some(v), ..LinearCase::new([7, 9, 13]) }.by_one_tile(extent);
            if extent == Extent::All || dtype != DType::F16 {
                case.check(gpu)?;
            }
            if dtype == DType::F32 {
                LinearCase { eps: Eps::Clamp(2f32.powi(126)), ..case.clone() }.check(gpu)?;
                LinearCase { known: true, write_norms: false, ..case.clone() }.check(gpu)?;
                LinearCase { tile: Some(extent.choose(Tile::Tile64x64, Tile::Tile32x32)), ..case.clone() }
                    .check(gpu)?;
                LinearCase { split_length: Some(16), tile: Some(Tile::Gemv8), ..case.clone() }.check(gpu)?;
                for axis in [IN, WHOLE, PLAIN] {
                    LinearCase { axis, ..case.clone() }.check(gpu)?;
                }
            }
        }
        Ok(())
    })
}

fn not_finite_x(gpu: &Gpu, extent: Extent) -> Outcome {
    all(NOT_FINITE.iter().flat_map(|&value| DTYPES.map(|dtype| (value, dtype))), |&(value, dtype)| {
        for place in [0, 2 * 13 + 12, 4 * 13, 7 * 13 - 1] {
            let mut x = scaled(1, 7 * 13, dtype, |i| if i / 13 == 5 { 0.0 } else { 1.0 });
            x[place] = value;
            let case =
                LinearCase { dtypes: [dtype; 3], x: Some(x), g: Some(vec![-2.0; 9]), ..LinearCase::new([7, 9, 13]) };
            let case = case.by_one_tile(extent);
            if extent == Extent::All || dtype != DType::F16 {
                case.check(gpu)?;
            }
            if dtype == DType::F32 {
                LinearCase { tile: Some(extent.choose(Tile::Tile64x64, Tile::Tile32x32)), ..case.clone() }
                    .check(gpu)?;
                LinearCase { split_length: Some(16), tile: Some(Tile::Gemv8), ..case.clone() }.check(gpu)?;
                LinearCase { axis: IN, g: Some(vec![-2.0; 13]), ..case.clone() }.check(gpu)?;
                LinearCase { axis: WHOLE, g: Some(vec![-2.0]), ..case.clone() }.check(gpu)?;
                LinearCase { axis: PLAIN, ..case.clone() }.check(gpu)?;
            }
        }
        Ok(())
    })
}

fn not_finite_ends(gpu: &Gpu, extent: Extent) -> Outcome {
    all(NOT_FINITE, |&value| {
        let mut biases = vec![1.0; 9];
        biases[4] = value;
        LinearCase { biases: Some(biases), ..LinearCase::new([7, 9, 13]) }.by_one_tile(extent).check(gpu)?;
        let mut g = vec![1.0; 9];
        g[4] = f64::NAN;
        LinearCase { g: Some(g.clone()), ..LinearCase::new([7, 9, 13]) }.by_one_tile(extent).check(gpu)?;
        g[4] = value;
        let v = scaled(1, 9 * 13, DType::F32, |_| 1.0);
        let (shape, eps) = ([9, 13], Eps::default());
        Normalize { v: &v, shape: &shape, dtype: DType::F32, g: Some(&g), axis: Axis::Kept(0), eps, chain: 13 }
            .check(gpu, DType::F32)
    })
}

/// A conversion: w = v/n̂ with the norm known to be 1, each step of it exact.
fn convert(gpu: &Gpu, v: &Tensor, to: DType) -> Result<Tensor, libtest_mimic::Failed> {
    let w = gpu.zeros(v.shape(), to)?;
    let norms = gpu.upload(&[1f32], &[1])?;
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    gpu.record(&mut encoder).normalize(WeightNorm::unit(v).axis(Axis::Whole).norms(&norms), &w)?;
    gpu.queue().submit([encoder.finish()]);
    Ok(w)
}

/// A product with w = 1, exact but for the sign of zero: v in T's type and y in f32, or x in f32 and y in T's type.
fn times_one(gpu: &Gpu, x: &Tensor, v: &Tensor, to: DType) -> Result<Tensor, libtest_mimic::Failed> {
    let y = gpu.zeros(&[x.len(), v.len()], to)?;
    let (x, v) = (x.reshape(&[x.len(), 1])?, v.reshape(&[v.len(), 1])?);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    gpu.record(&mut encoder).linear(Linear::new(&x, &v), &y)?;
    gpu.queue().submit([encoder.finish()]);
    Ok(y)
}

/// The same number and sign (`signed`), or both NaN; a subnormal f32 may be 0.
fn same(got: f32, expected: f32, signed: bool) -> bool {
    let equal = got == expected && (!signed || got.is_sign_negative() == expected.is_sign_negative());
    equal || (got.is_nan() && expected.is_nan()) || (got == 0.0 && expected.is_subnormal())
}

fn comparer_finds_faults() -> Outcome {
    let good = [1.0, f32::NAN, -0.0, 65504.0];
    expect_same("itself", &good, &good, true)?;
    for (at, wrong) in [(0, 1.0 + f32::EPSILON), (1, 1.0), (2, 0.0), (3, f32::INFINITY)] {
        let mut bad = good;
        bad[at] = wrong;
        if expect_same("a fault", &bad, &good, true).is_ok() {
            return Err(format!("{wrong} in the place of {} was not found", good[at]).into());
        }
    }
    match expect_same("a missing element", &good[..3], &good, true) {
        Err(_) => Ok(()),
        Ok(()) => Err("a missing element was not found".into()),
    }
}

fn expect_same(what: &str, got: &[f32], expected: &[f32], signed: bool) -> Outcome {
    let off = got.iter().zip(expected).position(|(&got, &expected)| !same(got, expected, signed));
    match off {
        None if got.len() == expected.len() => Ok(()),
        Some(at) => Err(format!("{what}: [{at}] is {:e}, expected {:e}", got[at], expected[at]).into()),
        None => Err(format!("{what}: {} elements, expected {}", got.len(), expected.len()).into()),
    }
}

fn read_codes<T: Element + Into<f32>>(gpu: &Gpu, codes: &[T]) -> Outcome {
    let expected: Vec<f32> = codes.iter().map(|&code| code.into()).collect();
    let v = gpu.upload(codes, &[codes.len()])?;
    let one = gpu.upload(&[1f32], &[1])?;
    expect_same("normalize", &convert(gpu, &v, DType::F32)?.read::<f32>()?, &expected, true)?;
    expect_same("v of linear", &times_one(gpu, &one, &v, DType::F32)?.read::<f32>()?, &expected, false)?;
    expect_same("x of linear", &times_one(gpu, &v, &one, DType::F32)?.read::<f32>()?, &expected, false)?;
    let (copy, _) = gpu.decompose(Decompose::new(&v).axis(Axis::Whole))?;
    let copied: Vec<f32> = copy.read::<T>()?.into_iter().map(Into::into).collect();
    expect_same("split", &copied, &expected, true)
}

/// Every number of a 16-bit type below infinity, the midpoints between neighbours, the f32 on both sides of those,
/// the overflow; all with both signs.
fn around_codes(infinity: u16, number: impl Fn(u16) -> f32) -> Vec<f32> {
    let mut inputs = vec![65504.0, 65519.99, 65520.0, 70000.0, 1e30, f32::MAX, f32::INFINITY, f32::NAN, 1e-40, 1e-7];
    for code in 0..infinity {
        let (low, high) = (number(code), number(code + 1));
        // Halves first: the step to infinity is not a number in f16, and the sum none in f32.
        let step = low - number(code.saturating_sub(1));
        let middle = if high.is_finite() { low + (high - low) / 2.0 } else { low + step / 2.0 };
        inputs.extend([low, middle, f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1)]);
    }
    inputs.retain(|x| x.to_bits() < 0x8000_0000);
    let negative: Vec<f32> = inputs.iter().map(|x| -x).collect();
    inputs.extend(negative);
    inputs
}

fn write_codes<T: Element + Into<f32>>(gpu: &Gpu, inputs: &[f32], round: fn(f32) -> T) -> Outcome {
    let x = gpu.upload(inputs, &[inputs.len()])?;
    // A subnormal f32 may count as 0 on its way in, which only bf16 can tell.
    let expected: Vec<f32> = inputs.iter().map(|&x| round(x).into()).collect();
    let fits = |what: &str, tensor: Tensor, signed: bool, per_input: usize| -> Outcome {
        let got: Vec<f32> = tensor.read::<T>()?.into_iter().map(Into::into).collect();
        for (i, &got) in got.iter().enumerate() {
            let (input, expected) = (inputs[i / per_input], expected[i / per_input]);
            if !(same(got, expected, signed) || (input.is_subnormal() && got == 0.0)) {
                return Err(format!("{what}: {input:e} gives {got:e}, expected {expected:e}").into());
            }
        }
        Ok(())
    };
    fits("normalize", convert(gpu, &x, T::DTYPE)?, true, 1)?;
    // Rows of one quad with an element of 1, so that w is g there: in one dispatch, and with the norms known.
    let rows: Vec<f32> = (0..8 * inputs.len()).map(|i| if i % 8 == i / 8 % 8 { 1.0 } else { 0.0 }).collect();
    let v = gpu.upload(&rows.iter().map(|&x| round(x)).collect::<Vec<_>>(), &[inputs.len(), 8])?;
    let norms = gpu.upload(&vec![1f32; inputs.len()], &[inputs.len()])?;
    for weight in [WeightNorm::new(&v, &x), WeightNorm::new(&v, &x).norms(&norms)] {
        let all = gpu.normalize(weight)?.read::<T>()?;
        let diagonal: Vec<T> = (0..inputs.len()).map(|j| all[8 * j + j % 8]).collect();
        fits("a quad", gpu.upload(&diagonal, &[inputs.len()])?, true, 1)?;
    }
    // One column: each half is written on its own; three: pairs and halves, odd rows.
    for columns in [1, 3] {
        let ones = gpu.upload(&vec![1f32; columns], &[columns])?;
        fits("linear", times_one(gpu, &x, &ones, T::DTYPE)?, false, columns)?;
    }
    Ok(())
}
