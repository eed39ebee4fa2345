//! row_norms: every axis, policy and storage type, awkward and long sizes.
use weightnorm::{Axis, DType, Eps, Gpu, NormalizeBackward, Tensor, WeightNorm, cpu};

use crate::common::{compare, norm_bound};
use crate::data::{
    DTYPES, Guarded, OFFSETS, POLICIES, all, axes, in_turn, must_fail, norm_chain, norm_count, norm_length, offsets,
    random, upload,
};
use crate::{Extent, Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("row_norms_of_every_axis_policy_and_dtype", |gpu, extent| {
        all(SHAPES.iter().enumerate(), |&(i, shape)| {
            sweep_of(gpu, shape, some_policies(extent, i), some_dtypes(extent, i))
        })
    });
    suite.sampled("row_norms_of_quads_on_either_device", |gpu, extent| {
        in_turn(gpu, extent, some_quads(extent), |gpu, (shape, dtypes)| sweep_of(gpu, shape, &POLICIES[2..3], dtypes))
    });
    suite.test("row_norms_of_large_tensors", Needs::Nothing, |gpu| {
        all(LARGE, |shape| sweep(gpu, shape, &POLICIES[2..3]))
    });
    suite.sampled("row_norms_of_long_rows", |gpu, extent| {
        all(extent.of(LONG.iter().copied(), 2), |&(shape, axis)| long_rows(gpu, shape, axis))
    });
    suite.test("row_norms_are_those_of_the_rows_alone", Needs::Nothing, of_rows_alone);
    suite.test("row_norms_dispatch_count", Needs::Nothing, dispatch_count);
    suite.test("row_norms_comparison_can_fail", Needs::Nothing, comparison_can_fail);
}

/// Ranks 1 to 5 with sizes around every border of the kernels: 16, 17, 256 and 257 words change the lanes, 256
/// contiguous elements what counts as a row.
pub const SHAPES: &[&[usize]] = &[
    &[0],
    &[1],
    &[2],
    &[37],
    &[257],
    &[1031],
    &[0, 7],
    &[5, 0],
    &[2, 0, 3],
    &[0, 0],
    &[1, 1],
    &[3, 1],
    &[1, 3],
    &[2, 2],
    &[37, 17],
    &[5, 33],
    &[63, 64],
    &[64, 65],
    &[65, 63],
    &[2, 257],
    &[257, 2],
    &[3, 1031],
    &[1031, 3],
    &[4, 513],
    &[3, 5, 7],
    &[2, 37, 257],
    &[3, 2, 300],
    &[37, 1, 2],
    &[2, 3, 5, 7],
    &[1, 3, 1, 65],
    &[2, 3, 2, 5, 3],
    &[2, 1, 4, 1, 37],
];

/// Shapes that are read in quads, whole or not in pieces of any width, or some rows at once; and long rows that are
/// not.
pub const QUADS: &[&[usize]] = &[
    &[8],
    &[1024],
    &[5, 8],
    &[9, 40],
    &[33, 264],
    &[3, 4096],
    &[2, 4104],
    &[70, 1024],
    &[600, 72],
    &[16_500, 16],
    &[4_999, 4],
    &[520, 4],
    &[528, 9],
    &[264, 27],
    &[6, 20],
    &[72, 31],
    &[3, 5, 8],
    &[40, 3, 8],
    &[37, 8, 5],
    &[131, 6, 16],
    &[131, 2, 4],
    &[131, 6, 8],
    &[70, 2, 64],
    &[2, 3, 512],
    &[3, 20_008],
    &[5, 1001],
];

/// Past 65,535 workgroups, rows split over workgroups, columns split over them.
pub const LARGE: &[&[usize]] =
    &[&[65_537, 3], &[70_000, 1], &[3, 70_001], &[2, 65_537, 2], &[9_001, 33], &[2, 40, 3_001]];

pub const LONG: &[(&[usize], Axis)] = &[
    (&[8, 1 << 20], Axis::Kept(0)),
    (&[1, 20_000_000], Axis::Kept(0)),
    (&[1 << 20, 8], Axis::Kept(0)),
    (&[1 << 20, 8], Axis::Kept(1)),
    (&[8, 1 << 20], Axis::Kept(1)),
    (&[1 << 20, 8], Axis::Whole),
];

/// row_norms of `v` between guards. The bound takes the additions of one square on its way into the norm.
pub fn check(gpu: &Gpu, v: &[f64], shape: &[usize], dtype: DType, axis: Axis, eps: Eps, chain: usize) -> Outcome {
    let count = norm_count(shape, axis);
    let expected = cpu::row_norms(v, shape, axis, eps)?;
    all(offsets(chain + count, v.len()), |&offset| {
        let tensor = Guarded::holding(gpu, v, shape, dtype, offset)?.tensor;
        let norms = Guarded::poisoned(gpu, &[count], DType::F32, OFFSETS[chain % OFFSETS.len()])?;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.record(&mut encoder).row_norms(WeightNorm::unit(&tensor).axis(axis).eps(eps), &norms.tensor)?;
        gpu.queue().submit([encoder.finish()]);
        compare(&norms.read()?, &expected, Some(DType::F32), |j| norm_bound(chain, expected[j]))?;
        Ok(())
    })
}

/// Policies for the shape number `i`: all, or one.
pub fn some_policies(extent: Extent, i: usize) -> &'static [Eps] {
    extent.choose(&POLICIES[..], &POLICIES[i % 4..][..1])
}

/// Storage types for the shape number `i`: all, or one.
pub fn some_dtypes(extent: Extent, i: usize) -> &'static [DType] {
    extent.choose(&DTYPES[..], &DTYPES[i % 3..][..1])
}

/// Shapes that are read in quads, and storage types to try each in: all, or of every third shape one.
pub fn some_quads(extent: Extent) -> Vec<(&'static [usize], &'static [DType])> {
    let one = |i: usize| &DTYPES[i / 3 % 3..][..1];
    let shapes = QUADS.iter().enumerate().map(|(i, &shape)| (shape, extent.choose(&DTYPES[..], one(i))));
    // Few: without the largest.
    extent.of(shapes.skip(extent.choose(0, 2)), 3)
}

fn sweep(gpu: &Gpu, shape: &[usize], policies: &[Eps]) -> Outcome {
    sweep_of(gpu, shape, policies, &DTYPES)
}

fn sweep_of(gpu: &Gpu, shape: &[usize], policies: &[Eps], dtypes: &[DType]) -> Outcome {
    for (dtype, v) in dtypes.iter().map(|&dtype| (dtype, random(1, shape.iter().product(), dtype))) {
        all(axes(shape).flat_map(|axis| policies.iter().map(move |&eps| (axis, eps))), |&(axis, eps)| {
            check(gpu, &v, shape, dtype, axis, eps, norm_chain(norm_length(shape, axis)))
        })
        .map_err(|e| format!("{dtype:?}: {}", e.message().unwrap_or_default()))?;
    }
    Ok(())
}

/// Small integers, half of them zero, so that every sum of squares is exact in f32 in any order and the bound that of
/// one term: a sum that stops early, or counts a stretch twice, is far outside.
pub fn simple(count: usize) -> Vec<f64> {
    (0..count as u64).map(|i| [1.0, 0.0, -1.0, 0.0, 0.0, 1.0, 1.0, 0.0][((i * i + i / 7) % 8) as usize]).collect()
}

fn long_rows(gpu: &Gpu, shape: &[usize], axis: Axis) -> Outcome {
    let v = simple(shape.iter().product());
    for dtype in [DType::F32, DType::F16] {
        check(gpu, &v, shape, dtype, axis, Eps::None, 1)?;
    }
    // The second sweep that scaled values need: the same sums, times 2^80.
    let lifted: Vec<f64> = v.iter().map(|v| v * 2f64.powi(80)).collect();
    check(gpu, &lifted, shape, DType::F32, axis, Eps::None, 1)
}

/// To the bit: what a norm and a dg are depends on the elements of their row or column alone, not on where it lies in
/// its tensor, the tensor in its buffer, or the weight in its set.
fn of_rows_alone(gpu: &Gpu) -> Outcome {
    let backwards = |values: &[f64], [rows, columns]: [usize; 2], axis| -> Vec<f64> {
        let at = |i: usize, j: usize| if axis == Axis::Kept(0) { (rows - 1 - i, j) } else { (i, columns - 1 - j) };
        let places = (0..rows * columns).map(|e| at(e / columns, e % columns));
        places.map(|(i, j)| values[i * columns + j]).collect()
    };
    let bits = |t: &Tensor| Ok::<_, Failed>(t.read::<f32>()?.iter().map(|a| a.to_bits()).collect::<Vec<_>>());
    let shapes = [[7, 33], [40, 1001], [3, 70_001], [9, 64], [5, 3], [70, 31], [600, 12]];
    for (i, shape) in shapes.into_iter().enumerate() {
        let dtype = DTYPES[i % 3];
        let count = shape[0] * shape[1];
        let (v, dw) = (random(1, count, dtype), random(2, count, DType::F32));
        for axis in [Axis::Kept(0), Axis::Kept(1)] {
            let mut first: Option<[Vec<u32>; 2]> = None;
            for (seed, reversed) in (0..4).flat_map(|seed| [(seed, false), (seed, true)]) {
                let placed = |values: &[f64], dtype| {
                    let values = if reversed { backwards(values, shape, axis) } else { values.to_vec() };
                    upload(gpu, &values, &shape, dtype, seed)
                };
                let (v, dw) = (placed(&v, dtype)?, placed(&dw, DType::F32)?);
                let weight = WeightNorm::unit(&v).axis(axis);
                let (_, dg) = gpu.normalize_backward(NormalizeBackward::new(&dw, weight))?;
                let mut got = [bits(&gpu.row_norms(WeightNorm::unit(&v).axis(axis))?)?, bits(&dg)?];
                if reversed {
                    got.iter_mut().for_each(|values| values.reverse());
                }
                if first.get_or_insert(got.clone()) != &got {
                    return Err(
                        format!("{shape:?}, {axis:?}, {dtype:?}: other bits from place {seed}, {reversed}").into()
                    );
                }
            }
            // In a set, beside itself at other places.
            let placed = |values: &[f64], seed| upload(gpu, values, &shape, dtype, seed);
            let (a, b, c) = (placed(&v, 0)?, placed(&backwards(&v, shape, axis), 1)?, placed(&v, 2)?);
            let norms = gpu.row_norms_set(&[&a, &b, &c].map(|v| WeightNorm::unit(v).axis(axis)))?;
            let [a, mut b, c] = [bits(&norms[0])?, bits(&norms[1])?, bits(&norms[2])?];
            b.reverse();
            if a != b || a != c {
                return Err(format!("{shape:?}, {axis:?}, {dtype:?}: other bits in one set").into());
            }
        }
    }
    Ok(())
}

fn dispatch_count(gpu: &Gpu) -> Outcome {
    for (shape, axis, expected) in [
        (&[64usize, 100][..], Axis::Kept(0), 1),
        (&[64, 100], Axis::Whole, 1),
        (&[100], Axis::Kept(0), 1),
        (&[5, 0], Axis::Kept(0), 1),
        (&[64, 100], Axis::Kept(1), 2),
        (&[4, 5, 300], Axis::Kept(1), 2),
        (&[2, 1 << 17], Axis::Kept(0), 2),
        (&[0, 5], Axis::Kept(0), 0),
    ] {
        let (v, norms) = (gpu.zeros(shape, DType::F32)?, gpu.zeros(&[norm_count(shape, axis)], DType::F32)?);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        ops.row_norms(WeightNorm::unit(&v).axis(axis), &norms)?;
        if ops.dispatch_count() != expected {
            return Err(format!("{shape:?}, {axis:?}: {} dispatches, not {expected}", ops.dispatch_count()).into());
        }
    }
    Ok(())
}

fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let v = random(1, 65 * 257, DType::F32);
    let expected = cpu::row_norms(&v, &[65, 257], Axis::Kept(0), Eps::None)?;
    let check = |norms: &[f64]| {
        let bound = |j: usize| norm_bound(norm_chain(257), expected[j]);
        compare(norms, &expected, Some(DType::F32), bound).map(drop)
    };
    let tensor = upload(gpu, &v, &[65, 257], DType::F32, 0)?;
    let mut norms = cpu::widen(&gpu.row_norms(WeightNorm::unit(&tensor).eps(Eps::None))?.read::<f32>()?);
    check(&norms)?;
    norms[64] *= 1.0 + 1e-4;
    must_fail("a norm off by 1e-4", check(&norms))?;
    must_fail("a norm missing", check(&norms[1..]))?;

    // Guards, and elements that nobody wrote.
    for dtype in DTYPES {
        let output = Guarded::poisoned(gpu, &[5], dtype, 12)?;
        must_fail("a poisoned element", output.read().map(drop))?;
        let written = Guarded::holding(gpu, &[1.0; 5], &[5], dtype, 12)?;
        written.read()?;
        let encoder = || gpu.device().create_command_encoder(&Default::default());
        for at in [8, 12 + (5 * dtype.size()).next_multiple_of(4)] {
            let damaged = Guarded::holding(gpu, &[1.0; 5], &[5], dtype, 12)?;
            let mut encoder = encoder();
            encoder.clear_buffer(damaged.tensor.buffer()?, at, Some(4));
            gpu.queue().submit([encoder.finish()]);
            must_fail("a guard that was overwritten", damaged.read().map(drop))?;
        }
    }
    Ok(())
}
