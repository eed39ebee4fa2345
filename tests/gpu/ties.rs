//! Norms that are exactly e under `Eps::Clamp(e)`: the clamp counts as active in every kernel and in the reference, so
//! that dv has no correction. All numbers here are powers of two and small integers: results are exact.
use weightnorm::{
    Axis, DType, Eps, Gpu, Gradients, Linear, LinearBackward, NormalizeBackward, SetMember, Tensor, Tile, WeightNorm,
    cpu,
};

use crate::device::recorded;
use crate::{Extent, Needs, Outcome, Suite};

const E: f32 = 1.0 / (1u64 << 40) as f32;
const EPS: Eps = Eps::Clamp(E);

pub fn register(suite: &mut Suite) {
    suite.test("ties::normalize_backward", Needs::Nothing, normalize_backward);
    suite.sampled("ties::linear_backward", linear_backward);
}

/// Each norm is of one element, which is ±e.
fn v_of(shape: [usize; 2], axis: Axis) -> Vec<f32> {
    let [rows, columns] = shape;
    let mut v = vec![0.0; rows * columns];
    match axis {
        Axis::Kept(0) => (0..rows).for_each(|j| v[j * columns + j % columns] = if j % 2 == 0 { E } else { -E }),
        Axis::Kept(_) => (0..columns).for_each(|j| v[j % rows * columns + j] = E),
        Axis::Whole => v[3] = -E,
    }
    v
}

fn integers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7 % 13) as f32 - 6.0).collect()
}

/// dv = g / e · dw.
fn expected(dw: &[f32]) -> Vec<f32> {
    dw.iter().map(|dw| dw / E).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn normalize_backward(gpu: &Gpu) -> Outcome {
    for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
        for shape in [[9, 13], [12, 64]] {
            let count = shape[0] * shape[1];
            let (v, dw) = (v_of(shape, axis), integers(count));
            let (dv, _) = cpu::normalize_backward(&wide(&dw), &wide(&v), &shape, None, axis, EPS)?;
            assert_eq!(dv, wide(&expected(&dw)), "reference, {axis:?} {shape:?}");
            let upload = |values: &[f32]| gpu.upload(values, &shape);
            let (v, dw_there) = (upload(&v)?, upload(&dw)?);
            let weight = WeightNorm::unit(&v).axis(axis).eps(EPS);
            let norms = gpu.row_norms(WeightNorm::unit(&v).axis(axis).eps(EPS))?;
            for (what, weight) in [("own norms", weight), ("known norms", weight.norms(&norms))] {
                let (dv, _) = gpu.normalize_backward(NormalizeBackward::new(&dw_there, weight))?;
                assert_eq!(dv.read::<f32>()?, expected(&dw), "{what}, {axis:?} {shape:?}");
            }
            let dv = gpu.zeros(&shape, DType::F32)?;
            let set = gpu.weight_set(&[SetMember::new(weight).dw(&dw_there).dv(&dv)])?;
            recorded(gpu, |ops| ops.normalize_backward_set(&set, false))?;
            assert_eq!(dv.read::<f32>()?, expected(&dw), "a set, {axis:?} {shape:?}");
        }
    }
    Ok(())
}

/// Few: from norms and u of the reference, by the pipelines of other tests.
fn linear_backward(gpu: &Gpu, extent: Extent) -> Outcome {
    // One row of x, so that dw = dy ⊗ x is exact.
    for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
        for &shape in extent.choose(&[[9, 13], [12, 64]][..], &[[9, 13]]) {
            let (x, dy) = (integers(shape[1]), integers(shape[0]));
            let dw: Vec<f32> = dy.iter().flat_map(|dy| x.iter().map(move |x| dy * x)).collect();
            let known = cpu::linear_saved(&wide(&x), &[1, shape[1]], &wide(&v_of(shape, axis)), &shape, axis, EPS)?;
            let v = gpu.upload(&v_of(shape, axis), &shape)?;
            let (x, dy): (Tensor, Tensor) = (gpu.upload(&x, &[1, shape[1]])?, gpu.upload(&dy, &[1, shape[0]])?);
            let dv = gpu.zeros(&shape, DType::F32)?;
            if extent == Extent::Few {
                let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
                let norms = gpu.upload(&narrow(&known.norms), &[known.norms.len()])?;
                let u = known.u.map(|u| gpu.upload(&narrow(&u), &[1, shape[0]])).transpose()?;
                let ones = gpu.upload(&vec![1f32; known.norms.len()], &[known.norms.len()])?;
                let weight = WeightNorm::new(&v, &ones).axis(axis).eps(EPS).norms(&norms);
                let gradients = Gradients::default().dv(&dv);
                recorded(gpu, |ops| {
                    let backward = LinearBackward::new(&x, weight, &dy).u(u.as_ref());
                    ops.linear_backward(backward.tile(Tile::Tile32x32), &gradients)
                })?;
            } else {
                let weight = WeightNorm::unit(&v).axis(axis).eps(EPS);
                let (_, saved) = gpu.linear_saved(Linear::new(&x, weight))?;
                let weight = weight.norms(saved.norms.as_ref().ok_or("no norms")?);
                let gradients = Gradients::default().dv(&dv);
                recorded(gpu, |ops| {
                    ops.linear_backward(LinearBackward::new(&x, weight, &dy).u(saved.u.as_ref()), &gradients)
                })?;
            }
            assert_eq!(dv.read::<f32>()?, expected(&dw), "{axis:?} {shape:?}");
        }
    }
    Ok(())
}
