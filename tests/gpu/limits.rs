//! Work past a limit is split into windows that the caller does not see.
use weightnorm::{Axis, DType, Gpu, Linear, WeightNorm};

use crate::common::{compare, dot_bound, weight_bound};
use crate::data::in_turn;
use crate::device;
use crate::golden::read;
use crate::problem::{Op, Problem, halves};
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("limits::webgpu_defaults", webgpu_defaults);
    for dtype in [DType::F32, DType::F16] {
        let name = format!("limits::tensors_past_a_mebibyte_{dtype:?}");
        let test =
            move |gpu: &Gpu, extent: Extent| past_a_mebibyte(gpu, dtype, &extent.of(tensors_past_a_mebibyte(dtype), 3));
        suite.test(&name, Needs::Nothing, move |gpu| test(gpu, Extent::Few));
        suite.test(&format!("{name}_in_full"), Needs::Time, move |gpu| test(gpu, Extent::All));
    }
    suite.sampled("limits::products_past_a_mebibyte", |gpu, extent| {
        for (dtype, step) in [(DType::F32, 8), (DType::F16, 7)] {
            past_a_mebibyte(gpu, dtype, &extent.of(products_past_a_mebibyte(dtype), step))?;
        }
        Ok(())
    });
    suite.sampled("limits::tiny", tiny);
    suite.test("limits::weight_over_128_mebibytes", Needs::Time, weight_over_128_mebibytes);
}

/// Some of everything, for a device with other limits or features. Few variants: each is built anew for a device.
pub fn every_operator(gpu: &Gpu, dtype: DType, extent: Extent) -> Outcome {
    let shapes = [(&[37, 65][..], Axis::Kept(0)), (&[5, 9, 7], Axis::Kept(1)), (&[2, 40_001], Axis::Kept(0))];
    for (i, op) in Op::OF_TENSORS.into_iter().enumerate() {
        for &(shape, axis) in extent.choose(&shapes[..], &shapes[i % 3..][..1]) {
            Problem::new(op, shape, axis, 0, dtype).run(gpu)?;
        }
    }
    if extent == Extent::Few {
        // The tile that takes the least time to build.
        return Problem::new(Op::Linear, &[67, 75], Axis::Kept(0), 1, dtype).run(gpu).map(drop);
    }
    for op in Op::PRODUCTS {
        Problem::new(op, &[67, 75], Axis::Kept(0), 65, dtype).run(gpu)?;
    }
    Problem::new(Op::Linear, &[67, 75], Axis::Kept(1), 65, dtype).run(gpu)?;
    Problem::new(Op::Linear, &[67, 75], Axis::Whole, 65, dtype).run(gpu)?;
    Ok(())
}

/// A device with the limits that every WebGPU device has, and not more.
fn webgpu_defaults(gpu: &Gpu, extent: Extent) -> Outcome {
    let small = device::limited(gpu, |limits| *limits = wgpu::Limits::default())?;
    let limits = small.report().limits;
    assert_eq!(limits.max_compute_invocations_per_workgroup, 256);
    assert_eq!(limits.max_compute_workgroup_storage_size, 16_384);
    assert_eq!(limits.max_storage_buffers_per_shader_stage, 8);
    assert!(!small.report().immediates, "they have no immediates");
    every_operator(&small, DType::F16, extent)
}

/// Two for packed types: as many bytes.
fn per_word(dtype: DType) -> usize {
    4 / dtype.size() as usize
}

/// Odd sizes, so that windows of packed types meet within words unless the host sees to it.
fn tensors_past_a_mebibyte(dtype: DType) -> Vec<Problem> {
    let n = per_word(dtype);
    let shapes = [
        (vec![n * 301, 1001], Axis::Kept(0)),
        (vec![n * 301, 1001], Axis::Kept(1)),
        (vec![3, n * 300_001], Axis::Kept(0)),
        (vec![3, 300_000], Axis::Kept(1)),
        (vec![n * 300_001], Axis::Kept(0)),
        (vec![n * 100_001, 3], Axis::Kept(0)),
        (vec![300_001, 3], Axis::Kept(1)),
        (vec![n * 45, 91, 71], Axis::Kept(1)),
        (vec![n * 19, 53, 301], Axis::Kept(1)),
        (vec![n * 19, 53, 301], Axis::Whole),
    ];
    let all = |(shape, axis): (Vec<usize>, Axis)| Op::OF_TENSORS.map(|op| Problem::new(op, &shape, axis, 0, dtype));
    shapes.into_iter().flat_map(all).collect()
}

/// x and y past a binding, v past one, many columns of y, and a single row of v past a binding.
fn products_past_a_mebibyte(dtype: DType) -> Vec<Problem> {
    let n = per_word(dtype);
    let mut problems = vec![];
    for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
        let ops = match (axis, dtype) {
            (Axis::Kept(0), DType::F32) => &Op::PRODUCTS[..],
            (Axis::Kept(0), _) => &[Op::LinearNorms, Op::LinearSplit],
            _ => &[Op::Linear],
        };
        for &op in ops {
            problems.push(Problem::new(op, &[n * 2_101, 129], axis, 5, dtype));
            problems.push(Problem::new(op, &[n * 100_001, 3], axis, 3, dtype));
        }
        problems.push(Problem::new(ops[0], &[131, 129], axis, n * 2_101, dtype));
        if dtype == DType::F32 || axis == Axis::Kept(1) {
            problems.push(Problem::new(Op::Linear, &[2, n * 300_001], axis, 1, dtype));
        }
    }
    problems.push(Problem::new(Op::Linear, &[300_000, 3], Axis::Kept(0), 2, dtype));
    problems.push(Problem::new(Op::LinearSplit, &[3, 30_001], Axis::Kept(0), 3, dtype));
    problems
}

fn past_a_mebibyte(gpu: &Gpu, dtype: DType, problems: &[Problem]) -> Outcome {
    let small = device::small(gpu)?;
    for (i, problem) in problems.iter().enumerate() {
        // Offsets that are no multiple of any device's alignment.
        let problem = problem.clone().at(if i % 2 == 0 { 0 } else { 12 });
        let count = problem.run(&small)?;
        let elements = problem.shape.iter().product::<usize>().max(problem.batch * problem.shape[0]);
        let whole = problem.dispatches(gpu)?;
        if elements * dtype.size() as usize > 1 << 20 {
            assert!(count > whole, "{problem:?}: {count} dispatches, {whole} without limits");
        }
    }
    Ok(())
}

/// Tensors of every rank, larger than 8 KiB.
pub const SHAPES: [(&[usize], Axis); 12] = [
    (&[4_001], Axis::Kept(0)),
    (&[4_001], Axis::Whole),
    (&[1, 4_001], Axis::Kept(1)),
    (&[61, 67], Axis::Kept(0)),
    (&[61, 67], Axis::Kept(1)),
    (&[61, 64], Axis::Kept(1)),
    (&[7, 11, 53], Axis::Kept(1)),
    (&[2, 3, 2_501], Axis::Kept(1)),
    (&[2_501, 3], Axis::Kept(0)),
    (&[901, 3, 1], Axis::Kept(2)),
    (&[5, 7, 3, 11, 3], Axis::Kept(3)),
    (&[5, 7, 3, 11, 3], Axis::Kept(0)),
];

/// Tensors larger than 8 KiB that are read and written in quads: windows of whole rows, within a row, and down the
/// rows.
const IN_QUADS: [(&[usize], Axis); 5] = [
    (&[61, 64], Axis::Kept(0)),
    (&[61, 64], Axis::Kept(1)),
    (&[4, 3_008], Axis::Kept(0)),
    (&[31, 6, 32], Axis::Kept(1)),
    (&[9, 2, 1_024], Axis::Kept(1)),
];

/// Bindings of 8 KiB at multiples of 256 bytes, and 27 workgroups a dispatch: windows everywhere, for tensors of every
/// rank.
fn tiny(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiny = device::tiny(gpu)?;
    for dtype in [DType::F32, DType::Bf16] {
        let with_ops = |(shape, axis)| Op::OF_TENSORS.map(move |op| (shape, axis, op));
        for (i, (shape, axis, op)) in extent.of(SHAPES.into_iter().flat_map(with_ops).enumerate(), 3) {
            Problem::new(op, shape, axis, 0, dtype).at(36 * (i / 5) as u64).run(&tiny)?;
        }
        let in_quads = extent.of(IN_QUADS.into_iter().flat_map(with_ops), 3);
        in_turn(&tiny, extent, in_quads, |tiny, &(shape, axis, op)| {
            Problem::new(op, shape, axis, 0, dtype).run(tiny).map(drop)
        })?;
        let sizes = [(67, 63, 65), (3, 1, 4_001), (301, 3, 5), (1, 4_001, 1), (5, 333, 17), (130, 1, 33)];
        for (i, (batch, outs, ins)) in extent.of(sizes.into_iter().enumerate(), 4) {
            for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
                let ops = match (axis, dtype) {
                    (Axis::Kept(0), DType::F32) => {
                        extent.choose(&Op::PRODUCTS[..], &[Op::LinearNorms, Op::LinearSplit])
                    }
                    (Axis::Kept(0), _) => &[Op::LinearNorms, Op::LinearSplit][extent.choose(0, 1)..],
                    (_, DType::F32) if extent == Extent::All || i == 0 => &[Op::LinearNorms],
                    _ => &[],
                };
                for &op in ops {
                    let count = Problem::new(op, &[outs, ins], axis, batch, dtype).at(36 * i as u64).run(&tiny)?;
                    assert!(count > 1 || batch * ins < 2_000, "{op:?} {batch} {outs} {ins}");
                }
            }
        }
    }
    Ok(())
}

/// 201 MB of weight on the device as it is: past the 128 MiB that a binding holds by default.
fn weight_over_128_mebibytes(gpu: &Gpu) -> Outcome {
    let (outs, ins) = (131_072, 384);
    let row: Vec<f32> = halves(5, ins).iter().map(|&a| a as f32).collect();
    // Row j is the same numbers from a place of its own on, times a power of two of its own: all norms are exact.
    let scale = |j: usize| 2f32.powi((j % 7) as i32 - 3);
    let data: Vec<f32> = (0..outs)
        .flat_map(|j| {
            let row = &row;
            (0..ins).map(move |k| row[(k + j) % ins] * scale(j))
        })
        .collect();
    let g: Vec<f32> = (0..outs).map(|j| (j % 5) as f32 - 1.5).collect();
    let v = gpu.upload(&data, &[outs, ins])?;
    let gain = gpu.upload(&g, &[outs])?;
    let norm = row.iter().map(|&a| f64::from(a * a)).sum::<f64>().sqrt();
    let at = |j: usize, k: usize| f64::from(row[(k + j) % ins]);
    let gain_of = |j: usize| f64::from(g[j]) / norm;

    let x = halves(6, 2 * ins);
    let x_on_gpu = gpu.upload(&x.iter().map(|&a| a as f32).collect::<Vec<_>>(), &[2, ins])?;
    let y = gpu.linear(Linear::new(&x_on_gpu, WeightNorm::new(&v, &gain)))?;
    // The dot product is exact, here and there.
    let expected_at = |i: usize| {
        let (x, j) = (&x[i / outs * ins..], i % outs);
        (0..ins).map(|k| x[k] * at(j, k)).sum::<f64>() * gain_of(j)
    };
    let expected: Vec<f64> = (0..2 * outs).map(expected_at).collect();
    compare(&read(&y)?, &expected, Some(DType::F32), |i| dot_bound(0, expected[i].abs(), expected[i], DType::F32))?;

    let expected: Vec<f64> = (0..outs * ins).map(|i| at(i / ins, i % ins) * gain_of(i / ins)).collect();
    gpu.normalize_in_place(WeightNorm::new(&v, &gain))?;
    compare(&read(&v)?, &expected, Some(DType::F32), |i| weight_bound(0, expected[i], DType::F32))?;
    Ok(())
}
