//! Gains, biases and their gradients in f16 and bf16: every operator that reads or writes them, against the CPU
//! reference or against its own result in f32.
use weightnorm::{
    Activation, Axis, DType, DataDependentInit, Decompose, Eps, Gpu, Gradients, Linear, LinearBackward,
    MeanOnlyBatchNorm, MeanOnlyBatchNormBackward, NormalizeBackward, Tensor, Tile, WeightNorm, cpu,
};

use crate::common::{
    compare, dg_bound, dot_bound, dv_bound, dx_bound, linear_terms, norm_bound, normalize_terms, storage_bound,
    sum_bound, weight_bound,
};
use crate::data::{
    DTYPES, Guarded, OFFSETS, POLICIES, all, axes, gains, in_turn, must_fail, norm_chain, norm_count, norm_length,
    norm_of, random, rounded, upload,
};
use crate::device::{recorded, small, tiny};
use crate::gain_sets::{set, sets};
use crate::{Extent, Failed, Needs, Outcome, Suite};

const HALVES: [DType; 2] = [DType::F16, DType::Bf16];

pub fn register(suite: &mut Suite) {
    let mut test = |name: &str, test: fn(&Gpu) -> Outcome| {
        suite.test(&format!("gains::{name}"), Needs::Nothing, test);
    };
    test("batch", |gpu| all(HALVES, |&dtype| batch(gpu, dtype)));
    let mut sampled = |name: &str, test: fn(&Gpu, Extent) -> Outcome| suite.sampled(&format!("gains::{name}"), test);
    sampled("normalize", |gpu, extent| in_turn(gpu, extent, extent.of(weights(), 5), |gpu, case| case.normalize(gpu)));
    sampled("normalize_backward", |gpu, extent| {
        in_turn(gpu, extent, extent.of(weights(), 7), |gpu, case| case.normalize_backward(gpu, extent))
    });
    sampled("split", |gpu, extent| in_turn(gpu, extent, extent.of(weights(), 5), |gpu, case| case.split(gpu)));
    sampled("linear", |gpu, extent| all(extent.of(layers(), 4), |layer| layer.forward(gpu, extent)));
    sampled("linear_backward", |gpu, extent| all(extent.of(trained_layers(), 4), |layer| layer.backward(gpu, extent)));
    sampled("sets", |gpu, extent| {
        in_turn(gpu, extent, sets().iter().skip(extent.choose(0, 2)), |gpu, members| set(gpu, members))
    });
    sampled("linear_windows", linear_windows);
    sampled("normalize_windows", normalize_windows);
}

/// Gains that `dtype` holds exactly.
pub fn gains_in(seed: u64, count: usize, dtype: DType) -> Vec<f64> {
    gains(seed, count).into_iter().map(|g| rounded(g, dtype)).collect()
}

pub fn offset(seed: usize) -> u64 {
    OFFSETS[seed % OFFSETS.len()]
}

/// The values of a tensor between guards, within `bounds` of an f32 result and its rounding. A wrong value is noticed.
pub fn expect(what: &str, got: &Guarded, expected: &[f64], bound: impl Fn(usize) -> f64) -> Outcome {
    let dtype = got.tensor.dtype();
    let bound = |i: usize| bound(i) + storage_bound(dtype, expected[i].abs() + bound(i));
    let mut values = got.read().map_err(|e| format!("{what}: {e}"))?;
    compare(&values, expected, Some(dtype), bound).map_err(|e| format!("{what}: {e}"))?;
    if let Some(first) = values.first_mut() {
        *first += 0.5 + first.abs();
        must_fail(what, compare(&values, expected, Some(dtype), bound).map(drop))?;
    }
    Ok(())
}

/// The same bits.
fn expect_same(what: &str, got: &Guarded, expected: &[f64]) -> Outcome {
    let values = got.read().map_err(|e| format!("{what}: {e}"))?;
    match values.iter().zip(expected).position(|(a, b)| a != b) {
        Some(i) => Err(format!("{what}: [{i}] is {}, expected {}", values[i], expected[i]).into()),
        None => Ok(()),
    }
}

/// A weight with a gain in 16 bits.
#[derive(Debug, Clone)]
struct Weight {
    shape: Vec<usize>,
    axis: Axis,
    dtype: DType,
    gain: DType,
    seed: usize,
}

/// Contiguous rows, short, long and of whole quads, columns, middle axes; odd counts of gains at every place.
fn weights() -> Vec<Weight> {
    let shapes = [&[37, 65][..], &[37, 64], &[263, 3], &[129, 8], &[5, 7, 9], &[1, 1031], &[3, 4_500], &[64, 33], &[7]];
    let mut cases = vec![];
    for shape in shapes {
        for axis in axes(shape) {
            for gain in HALVES {
                let seed = cases.len();
                cases.push(Weight { shape: shape.to_vec(), axis, dtype: DTYPES[seed / 2 % 3], gain, seed });
            }
        }
    }
    cases
}

impl Weight {
    fn norms(&self) -> usize {
        norm_count(&self.shape, self.axis)
    }

    fn chain(&self) -> usize {
        norm_chain(norm_length(&self.shape, self.axis))
    }

    fn v(&self) -> Vec<f64> {
        let mut v = random(1, self.shape.iter().product(), self.dtype);
        let norm_of = norm_of(&self.shape, self.axis);
        // The last row far from what f32 squares safely.
        if self.dtype == DType::F32 {
            let last = self.norms() - 1;
            v.iter_mut().enumerate().filter(|(i, _)| norm_of(*i) == last).for_each(|(_, v)| *v *= 2f64.powi(-100));
        }
        v
    }

    fn g(&self) -> Vec<f64> {
        gains_in(2, self.norms(), self.gain)
    }

    fn eps(&self) -> Eps {
        // A tiny row counts for nothing beside the larger e of the others.
        if self.dtype == DType::F32 { Eps::None } else { POLICIES[self.seed % POLICIES.len()] }
    }

    /// Written out, with known norms and in place.
    fn normalize(&self, gpu: &Gpu) -> Outcome {
        let Weight { shape, axis, dtype, seed, .. } = self;
        let (v, g, eps) = (self.v(), self.g(), self.eps());
        let expected = cpu::normalize(&v, shape, Some(&g), *axis, eps)?;
        let bound = |i: usize| weight_bound(self.chain(), expected[i], DType::F32);
        let v_tensor = upload(gpu, &v, shape, *dtype, *seed)?;
        let g_tensor = upload(gpu, &g, &[g.len()], self.gain, seed + 1)?;
        let norms: Vec<f64> = cpu::row_norms(&v, shape, *axis, eps)?;
        let norms = upload(gpu, &norms, &[g.len()], DType::F32, seed + 2)?;
        let weight = WeightNorm::new(&v_tensor, &g_tensor).axis(*axis).eps(eps);
        for (what, weight) in [("w", weight), ("w, known norms", weight.norms(&norms))] {
            let w = Guarded::poisoned(gpu, shape, *dtype, offset(*seed))?;
            recorded(gpu, |ops| ops.normalize(weight, &w.tensor))?;
            expect(what, &w, &expected, bound)?;
        }
        let in_place = Guarded::holding(gpu, &v, shape, *dtype, offset(seed + 3))?;
        let weight = WeightNorm::new(&in_place.tensor, &g_tensor).axis(*axis).eps(eps);
        recorded(gpu, |ops| ops.normalize_in_place(weight))?;
        expect("v in place", &in_place, &expected, bound)
    }

    /// dg in f32 and in the gain's type, replaced and added to. Few: two of the four.
    fn normalize_backward(&self, gpu: &Gpu, extent: Extent) -> Outcome {
        let Weight { shape, axis, dtype, seed, .. } = self;
        let (v, g, eps) = (self.v(), self.g(), self.eps());
        let dw = random(5, v.len(), DType::F32);
        let (dv, dg) = cpu::normalize_backward(&dw, &v, shape, Some(&g), *axis, eps)?;
        let (dv_terms, dg_terms) = normalize_terms(&dw, &v, shape, Some(&g), *axis, eps);
        let v_tensor = upload(gpu, &v, shape, *dtype, *seed)?;
        let g_tensor = upload(gpu, &g, &[g.len()], self.gain, seed + 1)?;
        let dw_tensor = upload(gpu, &dw, shape, DType::F32, seed + 2)?;
        let weight = WeightNorm::new(&v_tensor, &g_tensor).axis(*axis).eps(eps);
        let (chain, length) = (self.chain(), norm_length(shape, *axis));
        let kinds = [(DType::F32, false), (self.gain, true), (self.gain, false), (DType::F32, true)];
        for &(stored, accumulate) in extent.choose(&kinds[..], &kinds[seed / 2 % 2 * 2..][..2]) {
            let old = if accumulate { random(6, g.len(), stored) } else { vec![0.0; g.len()] };
            let dg_out = match accumulate {
                true => Guarded::holding(gpu, &old, &[g.len()], stored, offset(seed + 3))?,
                false => Guarded::poisoned(gpu, &[g.len()], stored, offset(seed + 3))?,
            };
            let dv_out = match accumulate {
                true => Guarded::holding(gpu, &vec![0.0; v.len()], shape, DType::F32, offset(seed + 4))?,
                false => Guarded::poisoned(gpu, shape, DType::F32, offset(seed + 4))?,
            };
            recorded(gpu, |ops| {
                ops.normalize_backward(
                    NormalizeBackward::new(&dw_tensor, weight),
                    &Gradients::default().dv(&dv_out.tensor).dg(&dg_out.tensor).accumulate(accumulate),
                )
            })?;
            let what = format!("{stored:?}, {accumulate:?}");
            expect(&format!("dv, {what}"), &dv_out, &dv, |i| dv_bound(chain, length, dv_terms[i], dv[i], DType::F32))?;
            let sums: Vec<f64> = dg.iter().zip(&old).map(|(dg, old)| dg + old).collect();
            let bound = |j: usize| {
                dg_bound(chain, length, dg_terms[j], dg[j]) + storage_bound(DType::F32, old[j].abs() + dg[j].abs())
            };
            expect(&format!("dg, {what}"), &dg_out, &sums, bound)?;
        }
        Ok(())
    }

    fn split(&self, gpu: &Gpu) -> Outcome {
        let Weight { shape, axis, dtype, seed, gain } = self;
        let (w, eps) = (self.v(), self.eps());
        let (v, g) = cpu::decompose(&w, shape, *axis, eps)?;
        let w_tensor = upload(gpu, &w, shape, *dtype, *seed)?;
        let v_out = Guarded::poisoned(gpu, shape, *dtype, offset(seed + 1))?;
        let g_out = Guarded::poisoned(gpu, &[g.len()], *gain, offset(seed + 2))?;
        recorded(gpu, |ops| {
            ops.decompose(Decompose::new(&w_tensor).axis(*axis).eps(eps), &v_out.tensor, &g_out.tensor)
        })?;
        expect_same("v", &v_out, &v)?;
        expect("g", &g_out, &g, |j| norm_bound(self.chain(), g[j]))
    }
}

fn normalize_windows(gpu: &Gpu, extent: Extent) -> Outcome {
    let (small, tiny) = (small(gpu)?, tiny(gpu)?);
    for (i, gain) in extent.of(HALVES.into_iter().enumerate(), 2) {
        for (device, shape, axis) in [
            (&tiny, &[5_003, 3][..], Axis::Kept(0)),
            (&tiny, &[3, 5_003], Axis::Kept(1)),
            (&small, &[1_203, 516], Axis::Kept(0)),
        ] {
            let case = Weight { shape: shape.to_vec(), axis, dtype: DTYPES[i], gain, seed: i + 1 };
            for result in [case.normalize(device), case.normalize_backward(device, extent), case.split(device)] {
                result.map_err(|e| format!("{case:?}: {}", e.message().unwrap_or_default()))?;
            }
        }
    }
    Ok(())
}

/// A linear layer with gain and bias in 16 bits.
#[derive(Debug, Clone)]
struct Layer {
    batch: usize,
    outs: usize,
    ins: usize,
    axis: Axis,
    dtype: DType,
    gain: DType,
    bias: DType,
    seed: usize,
}

fn layers() -> Vec<Layer> {
    let mut cases = vec![];
    for (batch, outs, ins) in [(1, 37, 65), (3, 64, 64), (33, 65, 49), (130, 33, 31)] {
        for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
            let seed = cases.len();
            // Compiling is what takes time: the storage types of x and v are left to other tests.
            let (dtype, gain, bias) = (DType::F32, HALVES[seed % 2], HALVES[(seed + 1) % 2]);
            cases.push(Layer { batch, outs, ins, axis, dtype, gain, bias, seed });
        }
    }
    cases
}

/// A few rows, and more than one split of a batch.
fn trained_layers() -> impl Iterator<Item = Layer> {
    layers().into_iter().filter(|layer| [3, 130].contains(&layer.batch))
}

/// What a layer computes with, and its tensors.
struct Prepared {
    x: Vec<f64>,
    v: Vec<f64>,
    g: Vec<f64>,
    bias: Vec<f64>,
    tensors: [Tensor; 4],
}

impl Layer {
    fn prepare(&self, gpu: &Gpu) -> Result<Prepared, Failed> {
        let &Layer { batch, outs, ins, axis, dtype, gain, bias, seed } = self;
        let norms = norm_count(&[outs, ins], axis);
        let (x, v) = (random(1, batch * ins, dtype), random(2, outs * ins, dtype));
        let (g, b) = (gains_in(3, norms, gain), random(4, outs, bias));
        let tensors = [
            upload(gpu, &x, &[batch, ins], dtype, seed)?,
            upload(gpu, &v, &[outs, ins], dtype, seed + 1)?,
            upload(gpu, &g, &[norms], gain, seed + 2)?,
            upload(gpu, &b, &[outs], bias, seed + 3)?,
        ];
        Ok(Prepared { x, v, g, bias: b, tensors })
    }

    /// Norms of its own and known ones, whole sums and split ones; and the bias with an ordinary weight.
    ///
    /// Few: the first, and one of the others.
    fn forward(&self, gpu: &Gpu, extent: Extent) -> Outcome {
        let &Layer { batch, outs, ins, axis, seed, .. } = self;
        let Prepared { x, v, g, bias, tensors: [x_tensor, v_tensor, g_tensor, bias_tensor] } = self.prepare(gpu)?;
        let (x_shape, shape) = ([batch, ins], [outs, ins]);
        let norms = cpu::row_norms(&v, &shape, axis, Eps::default())?;
        let norms = upload(gpu, &norms, &[g.len()], DType::F32, seed)?;
        let weight = WeightNorm::new(&v_tensor, &g_tensor).axis(axis);
        let w = cpu::normalize(&v, &shape, Some(&g), axis, Eps::default())?;
        let abs = |a: &[f64]| a.iter().map(|a| a.abs()).collect::<Vec<_>>();
        let check = |what: &str, w: &[f64], weight: weightnorm::Weight<'_>, split: Option<u32>| -> Outcome {
            let expected = cpu::linear(&x, &x_shape, w, &shape, Some(&bias), Activation::None)?;
            let sums = cpu::linear(&abs(&x), &x_shape, &abs(w), &shape, None, Activation::None)?;
            let y = Guarded::poisoned(gpu, &[batch, outs], DType::F32, offset(seed + 1))?;
            recorded(gpu, |ops| {
                ops.linear(Linear::new(&x_tensor, weight).bias(&bias_tensor).split_length(split), &y.tensor)
            })?;
            expect(what, &y, &expected, |i| dot_bound(ins, sums[i], expected[i], DType::F32))
        };
        check("y", &w, weight.into(), None)?;
        let others = [
            ("y, known norms", &w, weight.norms(&norms).into(), None),
            ("y, split", &w, weight.into(), Some(48)),
            ("y, an ordinary weight", &v, (&v_tensor).into(), None),
        ];
        let some = extent.choose(&others[..], &others[seed / 4 % 3..][..1]);
        some.iter().try_for_each(|&(what, w, weight, split)| check(what, w, weight, split))
    }

    /// dg and dbias in 16 bits, replaced and added to. Few: one of the two.
    fn backward(&self, gpu: &Gpu, extent: Extent) -> Outcome {
        let &Layer { batch, outs, ins, axis, gain, bias: stored, seed, .. } = self;
        let Prepared { x, v, g, bias: _, tensors: [x_tensor, v_tensor, g_tensor, bias_tensor] } = self.prepare(gpu)?;
        let (x_shape, shape) = ([batch, ins], [outs, ins]);
        let dy = random(5, batch * outs, DType::F32);
        let dy_tensor = upload(gpu, &dy, &[batch, outs], DType::F32, seed)?;
        let weight = WeightNorm::new(&v_tensor, &g_tensor).axis(axis);
        let (_, saved) = gpu.linear_saved(Linear::new(&x_tensor, weight).bias(&bias_tensor))?;
        let norms = saved.norms.as_ref().ok_or("no norms")?;
        let of = cpu::Weight::Normalized { v: &v, g: Some(&g), axis, eps: Eps::default() };
        let expected = cpu::linear_backward(&x, &x_shape, of, &shape, None, Activation::None, &dy)?;
        let terms = linear_terms(&x, of, &shape, &dy);
        let (dg, dg_terms) = (expected.dg.as_ref().ok_or("no dg")?, terms.dg.as_ref().ok_or("no dg")?);
        let (length, both) = (norm_length(&shape, axis), batch + ins + outs + norm_length(&shape, axis));
        let few = axis == Axis::Kept(0);
        // Few: the tile of other tests.
        let tile = extent.choose(None, Some(Tile::Tile32x32));
        for accumulate in extent.choose(vec![false, true], vec![few]) {
            let output = |old: &[f64], shape: &[usize], dtype, place| match accumulate {
                false => Guarded::poisoned(gpu, shape, dtype, offset(place)),
                true => Guarded::holding(gpu, old, shape, dtype, offset(place)),
            };
            let none = |old: Vec<f64>| if accumulate { old } else { vec![0.0; old.len()] };
            let old_dg = none(random(6, g.len(), gain));
            let old_dbias = none(random(7, outs, stored));
            let dx = Guarded::poisoned(gpu, &x_shape, DType::F32, offset(seed))?;
            let dv = output(&vec![0.0; v.len()], &shape, DType::F32, seed + 1)?;
            let (dg_out, dbias) =
                (output(&old_dg, &[g.len()], gain, seed + 2)?, output(&old_dbias, &[outs], stored, seed)?);
            let gradients = Gradients::default().dx(&dx.tensor).dv(&dv.tensor).dg(&dg_out.tensor).dbias(&dbias.tensor);
            recorded(gpu, |ops| {
                let u = saved.u.as_ref();
                ops.linear_backward(
                    LinearBackward::new(&x_tensor, weight.norms(norms), &dy_tensor).u(u).tile(tile),
                    &gradients.accumulate(accumulate),
                )
            })?;
            expect("dx", &dx, &expected.dx, |i| dx_bound(length, outs, terms.dx[i], expected.dx[i], DType::F32))?;
            expect("dv", &dv, &expected.dv, |i| dv_bound(length, both, terms.dv[i], expected.dv[i], DType::F32))?;
            let sums = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
            let sum_rounding = |a: f64, b: f64| storage_bound(DType::F32, a.abs() + b.abs());
            let bound = |j: usize| dg_bound(length, both, dg_terms[j], dg[j]) + sum_rounding(dg[j], old_dg[j]);
            expect("dg", &dg_out, &sums(dg, &old_dg), bound)?;
            let db = &expected.dbias;
            let bound =
                |j: usize| sum_bound(batch, terms.dbias[j], db[j], DType::F32) + sum_rounding(db[j], old_dbias[j]);
            expect("dbias", &dbias, &sums(db, &old_dbias), bound)?;
        }
        Ok(())
    }
}

fn linear_windows(gpu: &Gpu, extent: Extent) -> Outcome {
    let tiny = tiny(gpu)?;
    for (i, axis) in extent.of([Axis::Kept(0), Axis::Kept(1), Axis::Whole].into_iter().enumerate(), 3) {
        for gain in extent.of(HALVES, 2) {
            let layer = Layer { batch: 5, outs: 301, ins: 37, axis, dtype: DType::F32, gain, bias: gain, seed: i + 1 };
            let result = layer.forward(&tiny, extent).and_then(|()| layer.backward(&tiny, extent));
            result.map_err(|e| format!("{layer:?}: {}", e.message().unwrap_or_default()))?;
        }
    }
    Ok(())
}

/// Operators that read a copy in f32 or round one: what they do with f32, bit for bit.
fn batch(gpu: &Gpu, dtype: DType) -> Outcome {
    for (rows, columns, ins) in [(5, 37, 9), (200, 33, 64)] {
        let upload_as = |values: &[f64], shape: &[usize], dtype| upload(gpu, values, shape, dtype, rows);
        let (x, v) = (random(1, rows * ins, DType::F32), random(2, columns * ins, DType::F32));
        let (x, v) = (upload_as(&x, &[rows, ins], DType::F32)?, upload_as(&v, &[columns, ins], DType::F32)?);
        let vector = |dtype| Guarded::poisoned(gpu, &[columns], dtype, offset(rows + 1));
        let [g, bias, g_f32, bias_f32] = [dtype, dtype, DType::F32, DType::F32].map(vector);
        let (g, bias, g_f32, bias_f32) = (g?, bias?, g_f32?, bias_f32?);
        recorded(gpu, |ops| {
            ops.data_dependent_init(DataDependentInit::new(&x, &v), &g.tensor, &bias.tensor)?;
            ops.data_dependent_init(DataDependentInit::new(&x, &v), &g_f32.tensor, &bias_f32.tensor)
        })?;
        let as_stored = |of: &Guarded| -> Result<Vec<f64>, Failed> {
            Ok(of.read()?.into_iter().map(|a| rounded(a, dtype)).collect())
        };
        expect_same("g of the initialization", &g, &as_stored(&g_f32)?)?;
        expect_same("bias of the initialization", &bias, &as_stored(&bias_f32)?)?;

        let t = upload_as(&random(3, rows * columns, DType::F32), &[rows, columns], DType::F32)?;
        let values = random(4, columns, dtype);
        let biases = [upload_as(&values, &[columns], dtype)?, upload_as(&values, &[columns], DType::F32)?];
        let mut results = vec![];
        for bias in &biases {
            let matrix = || Guarded::poisoned(gpu, &[rows, columns], DType::F32, offset(rows));
            let (y, evaluated) = (matrix()?, matrix()?);
            let mean = Guarded::holding(gpu, &random(5, columns, DType::F32), &[columns], DType::F32, offset(rows))?;
            recorded(gpu, |ops| {
                ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(&t).bias(bias).eval(&mean.tensor), &evaluated.tensor)?;
                ops.mean_only_batch_norm(
                    MeanOnlyBatchNorm::new(&t).bias(bias).running_mean(&mean.tensor, 0.1),
                    &y.tensor,
                )
            })?;
            results.push([y.read()?, evaluated.read()?, mean.read()?]);
        }
        if results[0] != results[1] {
            return Err(format!("{rows}x{columns}: mean-only batch norm with a bias of {dtype:?} differs").into());
        }
        for accumulate in [false, true] {
            let old = random(6, columns, dtype);
            let output = |dtype| Guarded::holding(gpu, &old, &[columns], dtype, offset(rows + 2));
            let (dbias, in_f32) = (output(dtype)?, output(DType::F32)?);
            let dt = gpu.zeros(&[rows, columns], DType::F32)?;
            recorded(gpu, |ops| {
                ops.mean_only_batch_norm_backward(
                    MeanOnlyBatchNormBackward::new(&t),
                    &Gradients::default().dx(&dt).dbias(&dbias.tensor).accumulate(accumulate),
                )?;
                ops.mean_only_batch_norm_backward(
                    MeanOnlyBatchNormBackward::new(&t),
                    &Gradients::default().dx(&dt).dbias(&in_f32.tensor).accumulate(accumulate),
                )
            })?;
            expect_same("dbias", &dbias, &as_stored(&in_f32)?)?;
        }
    }
    Ok(())
}
