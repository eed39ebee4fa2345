//! Convolutions whose halves of channels are gated, with a condition.
use weightnorm::{Activation, ArgumentError, Axis, Conv, ConvGeometry, DType, Error, Gate, Gpu, Gradients, Tensor};
use weightnorm::{Tile, WeightNorm};

use crate::conv_ends::{Case, Extra};
use crate::data::{all, must_fail};
use crate::device::recorded;
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("conv_ends_of_gates", shapes);
    suite.sampled("conv_ends_of_gates_in_dtypes", dtypes);
    suite.sampled("conv_ends_of_gates_in_tiles_and_splits", tiles_and_splits);
    suite.sampled("conv_ends_of_gates_out_of_range", out_of_range);
    suite.test("conv_ends_of_gates_in_one_dispatch", Needs::Nothing, one_dispatch);
    suite.test("conv_ends_of_gates_rejected", Needs::Nothing, rejects);
    suite.test("conv_ends_of_gates_comparison_can_fail", Needs::Nothing, comparison_can_fail);
}

fn plain() -> ConvGeometry {
    ConvGeometry::default()
}

/// z has twice `half` channels.
fn gated(gate: Gate, half: usize, extra: Extra) -> Case {
    let case = Case::new(&[3, 5, 21], &[2 * half, 5, 3], plain().padding(1));
    Case { gate: Some(gate), extra, ..case }
}

const BOTH: [Gate; 2] = [Gate::TanhSigmoid, Gate::Glu];

/// Halves of all sizes, with and without a condition, in 1-D and 2-D.
fn shapes(gpu: &Gpu, extent: Extent) -> Outcome {
    let [tanh, glu] = BOTH;
    // Positions in quads, steps in quads, dilation and a scale.
    let dilated = Case {
        x_shape: vec![2, 8, 24],
        v_shape: vec![32, 8, 3],
        geometry: plain().padding(2).dilation(2),
        scale: -0.5,
        ..gated(tanh, 16, Extra::Residual)
    };
    let mut cases = vec![gated(tanh, 3, Extra::Residual), gated(glu, 16, Extra::None), dilated.clone()];
    if extent == Extent::All {
        for half in [1, 2, 3, 16, 64] {
            for gate in BOTH {
                for extra in [Extra::None, Extra::Residual, Extra::InputSnake] {
                    cases.push(gated(gate, half, extra));
                    cases.push(Case { tile: None, ..gated(gate, half, extra) });
                }
            }
        }
        for axis in [None, Some(Axis::Kept(1)), Some(Axis::Kept(2)), Some(Axis::Whole)] {
            cases.push(Case { axis, ..dilated.clone() });
            cases.push(Case { axis, ..gated(glu, 3, Extra::Residual) });
        }
        let images = Case::new(&[2, 3, 4, 5], &[6, 3, 3, 2], plain().stride([2, 1]).padding([1, 0]));
        cases.push(Case { gate: Some(tanh), extra: Extra::Residual, ..images });
        cases.push(Case { input_activation: Activation::Elu, x_shape: vec![1, 5, 1], ..gated(tanh, 3, Extra::None) });
    }
    all(cases, |case| case.check(gpu))
}

fn dtypes(gpu: &Gpu, extent: Extent) -> Outcome {
    let (full, half, brain) = (DType::F32, DType::F16, DType::Bf16);
    // Odd rows of y, whose words belong to two channels.
    let case = gated(Gate::TanhSigmoid, 3, Extra::Residual);
    let quads = Case { x_shape: vec![2, 8, 24], v_shape: vec![8, 8, 3], ..case.clone() };
    let mut cases = vec![
        Case { dtypes: [half, half, half, brain], ..quads.clone() },
        Case { dtypes: [full, full, brain, half], ..case.clone() },
    ];
    if extent == Extent::All {
        for dtypes in [[half; 4], [brain; 4], [half, brain, full, half], [full, half, brain, full]] {
            cases.push(Case { dtypes, ..case.clone() });
            cases.push(Case { dtypes, ..quads.clone() });
        }
    }
    all(cases, |case| case.check(gpu))
}

fn tiles_and_splits(gpu: &Gpu, extent: Extent) -> Outcome {
    let long = Case::new(&[2, 24, 35], &[12, 24, 5], plain().padding(2));
    let long = Case { gate: Some(Gate::TanhSigmoid), extra: Extra::Residual, ..long };
    let few = Case { v_shape: vec![6, 24, 5], ..long.clone() };
    let mut cases =
        vec![Case { split_length: Some(32), ..long.clone() }, Case { tile: Some(Tile::Narrow8), ..few.clone() }];
    let lanes = [Tile::Subgroup4, Tile::Subgroup16, Tile::Subgroup64];
    let lanes = lanes.into_iter().filter(|tile| Tile::all_on(gpu).any(|own| own == *tile));
    cases.extend(lanes.take(extent.choose(1, 3)).map(|tile| Case { tile: Some(tile), ..long.clone() }));
    if extent == Extent::All {
        cases.push(Case { tile: Some(Tile::Narrow4), v_shape: vec![2, 24, 5], ..long.clone() });
        cases.push(Case { tile: Some(Tile::Narrow4), v_shape: vec![4, 24, 5], ..long.clone() });
        cases.push(Case { tile: Some(Tile::Narrow8), v_shape: vec![20, 24, 5], ..long.clone() });
        for tile in [Tile::Tile64x64, Tile::Tile128x8, Tile::Tile128x128] {
            if Tile::all_on(gpu).any(|own| own == tile) {
                cases.push(Case { tile: Some(tile), ..few.clone() });
                cases.push(Case { tile: Some(tile), v_shape: vec![140, 24, 5], ..long.clone() });
            }
        }
        let dtypes = [DType::F16; 4];
        cases.push(Case { split_length: Some(16), dtypes, axis: None, ..few.clone() });
        cases.push(Case { split_length: Some(48), axis: Some(Axis::Kept(1)), ..long });
    }
    all(cases, |case| case.check(gpu))
}

/// One half of a pair whose sum is formed again, or both.
fn out_of_range(gpu: &Gpu, extent: Extent) -> Outcome {
    let case = gated(Gate::TanhSigmoid, 3, Extra::Residual);
    let mut cases = vec![Case { size: 3e24, ..case.clone() }, Case { size: 0.0, ..case.clone() }];
    if extent == Extent::All {
        for size in [3e24, 3e-24, 0.0] {
            let quads = Case { x_shape: vec![2, 8, 24], v_shape: vec![8, 8, 3], ..case.clone() };
            cases.push(Case { size, gate: Some(Gate::Glu), ..quads });
            cases.push(Case { size, split_length: Some(16), ..case.clone() });
            cases.push(Case { size, tile: Some(Tile::Tile64x64), ..case.clone() });
            cases.push(Case { size, dtypes: [DType::F32, DType::F32, DType::F16, DType::F32], ..case.clone() });
            if Tile::all_on(gpu).any(|own| own == Tile::Subgroup16) {
                cases.push(Case { size, tile: Some(Tile::Subgroup16), ..case.clone() });
            }
        }
    }
    all(cases, |case| case.check(gpu))?;
    one_row_out_of_range(gpu)
}

/// One row of v alone leaves the range: its channel's partner is written once more with it.
fn one_row_out_of_range(gpu: &Gpu) -> Outcome {
    let case = gated(Gate::TanhSigmoid, 3, Extra::Residual);
    let g = case.g().unwrap_or_default();
    let as_it_is = of_v(gpu, &case, &case.v(), &g)?;
    for row in [1, 4] {
        // A power of two changes no bit of the others' rows, nor of the quotient.
        let (mut v, row_length) = (case.v(), 15);
        v[row * row_length..][..row_length].iter_mut().for_each(|v| *v *= 2f64.powi(80));
        let y = of_v(gpu, &case, &v, &g)?;
        if !y.iter().zip(&as_it_is).all(|(a, b)| (a - b).abs() < 1e-5) {
            return Err(format!("row {row}: {y:?} for {as_it_is:?}").into());
        }
    }
    Ok(())
}

fn of_v(gpu: &Gpu, case: &Case, v: &[f64], g: &[f64]) -> Result<Vec<f32>, libtest_mimic::Failed> {
    let f32s = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let (x, v) = (gpu.upload(&f32s(&case.x()), &case.x_shape)?, gpu.upload(&f32s(v), &case.v_shape)?);
    let (g, condition) = (gpu.upload(&f32s(g), &[g.len()])?, gpu.upload(&f32s(&case.extra()), &case.z_shape())?);
    let conv = Conv::new(&x, WeightNorm::new(&v, &g)).geometry(case.geometry).tile(case.tile);
    Ok(gpu.conv(conv.gate(case.gate).condition(&condition))?.read::<f32>()?)
}

/// The norm and the gate take no dispatch; the gradient of a condition takes the sums, its own, and a copy.
fn one_dispatch(gpu: &Gpu) -> Outcome {
    let (x, v) = (gpu.upload(&[0.5f32; 36], &[1, 4, 9])?, gpu.upload(&[0.5f32; 72], &[6, 4, 3])?);
    let (y, dy, g) =
        (gpu.zeros(&[1, 3, 7], DType::F32)?, gpu.zeros(&[1, 3, 7], DType::F32)?, gpu.zeros(&[6], DType::F32)?);
    let (z, dz) = (gpu.zeros(&[1, 6, 7], DType::F32)?, gpu.zeros(&[1, 6, 7], DType::F32)?);
    let conv = Conv::new(&x, WeightNorm::new(&v, &g)).gate(Gate::TanhSigmoid).condition(&z).tile(Tile::Tile32x32);
    let counts = [
        recorded(gpu, |ops| ops.conv(conv, &y))?,
        recorded(gpu, |ops| ops.conv_backward(conv, &dy, &Gradients::default().dcondition(&dz)))?,
    ];
    if counts == [1, 3] { Ok(()) } else { Err(format!("{counts:?}").into()) }
}

fn rejects(gpu: &Gpu) -> Outcome {
    let (x, v) = (gpu.upload(&[0.5f32; 36], &[1, 4, 9])?, gpu.upload(&[0.5f32; 72], &[6, 4, 3])?);
    let (odd, back) = (gpu.upload(&[0.5f32; 60], &[5, 4, 3])?, gpu.upload(&[0.5f32; 72], &[4, 6, 3])?);
    let grouped = gpu.upload(&[0.5f32; 36], &[6, 2, 3])?;
    let (y, z) = (gpu.zeros(&[1, 3, 7], DType::F32)?, gpu.zeros(&[1, 6, 7], DType::F32)?);
    let (four, six) = (gpu.zeros(&[4], DType::F32)?, gpu.zeros(&[6], DType::F32)?);
    let record = |conv: Conv<'_>, y: &Tensor| {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.record(&mut encoder).conv(conv, y)
    };
    let gated = Conv::new(&x, &v).gate(Gate::TanhSigmoid);
    let cases = [
        (record(gated.condition(&z), &y), "none"),
        (record(gated, &z), "shape"),
        (record(gated.condition(&y), &gpu.zeros(&[1, 3, 7], DType::F32)?), "shape"),
        (record(gated.activation(Activation::Relu), &y), "variant"),
        (record(gated.snake(&six), &y), "variant"),
        (record(gated.accumulate(true), &y), "variant"),
        (record(gated.condition(&z).input_snake(&four), &y), "variant"),
        (gpu.conv(Conv::new(&x, &grouped).gate(Gate::Glu).groups(2)).map(drop), "variant"),
        (gpu.conv(Conv::new(&x, &odd).gate(Gate::Glu)).map(drop), "shape"),
        (gpu.conv_transposed(Conv::new(&x, &back).gate(Gate::Glu)).map(drop), "variant"),
    ];
    for (i, (result, expected)) in cases.into_iter().enumerate() {
        let kind = match result {
            Ok(()) => "none",
            Err(Error::Argument(ArgumentError::Shape { .. })) => "shape",
            Err(Error::Argument(ArgumentError::Variant { .. })) => "variant",
            other => return Err(format!("{i}: {other:?}").into()),
        };
        if kind != expected {
            return Err(format!("{i}: {kind}, expected {expected}").into());
        }
    }
    Ok(())
}

fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let case = gated(Gate::TanhSigmoid, 3, Extra::Residual);
    let y = case.run(gpu)?;
    case.judge(&y)?;
    must_fail("another gate", Case { gate: Some(Gate::Glu), ..case.clone() }.judge(&y))?;
    must_fail("no condition", Case { extra: Extra::None, ..case.clone() }.judge(&y))?;
    must_fail("another scale", Case { scale: 1.0001, ..case }.judge(&y))
}
