//! DoRA: norms, forward, gradients, the merged weight.
use weightnorm::{
    DType, Dora, DoraBackward, DoraWeight, Eps, Gpu, Gradients, LinearBackward, LinearGradients, Tensor, Tile, Weight,
    cpu,
};

use crate::common::compare;
use crate::common::dora::{DoraBounds, dora_bounds};
use crate::data::{DTYPES, Guarded, OFFSETS, all, must_fail, random, rounded};
use crate::golden::read;
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("dora_equals_cpu", equals_cpu);
    suite.test("dora_accumulates_in_full", Needs::Time, accumulates);
    suite.test("dora_of_empty_tensors_in_full", Needs::Time, empty);
    suite.test("dora_without_an_update_is_weight_norm_in_full", Needs::Time, without_an_update);
}

#[derive(Clone, Debug)]
struct Case {
    /// Rows of x, out_features, in_features, rank.
    size: [usize; 4],
    /// Of x, W0, A and B, y.
    dtypes: [DType; 4],
    eps: Eps,
    tile: Option<Tile>,
    through: bool,
    /// Of each row, how long it is beside its W0.
    lengths: &'static [f64],
}

const LENGTHS: [f64; 6] = [1.0, 0.3, 0.1, 1e-3, 0.02, 0.13];

impl Case {
    fn new(size: [usize; 4]) -> Case {
        let eps = Eps::default();
        Case { size, dtypes: [DType::F32; 4], eps, tile: Some(Tile::Tile32x32), through: true, lengths: &LENGTHS }
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        self.check_against(gpu, 0.0)
    }

    /// With one norm of the reference off by a part of itself.
    fn check_against(&self, gpu: &Gpu, off: f64) -> Outcome {
        let &Case { size: [rows, outs, ins, rank], dtypes: [x_type, base_type, low_type, y_type], .. } = self;
        let &Case { eps, tile, through, lengths, .. } = self;
        let named = |name: &str, result: Result<f64, String>| result.map(drop).map_err(|e| format!("{name}: {e}"));
        let (x, a) = (random(1, rows * ins, x_type), random(2, rank * ins, low_type));
        let (b, m) = (random(3, outs * rank, low_type), random(4, outs, DType::F32));
        let (bias, dy) = (random(5, outs, DType::F32), random(6, rows * outs, y_type));
        let scaling = 0.75f32;
        // Rows of W as long as they should be: W0 = length·noise - s·B·A.
        let noise = random(7, outs * ins, DType::F32);
        let base = (0..outs * ins).map(|i| {
            let (j, k) = (i / ins, i % ins);
            let low: f64 = (0..rank).map(|r| b[j * rank + r] * a[r * ins + k]).sum();
            rounded(lengths[j % lengths.len()] * noise[i] - f64::from(scaling) * low, base_type)
        });
        let base: Vec<f64> = base.collect();
        let (shape, scaling64) = ([outs, ins], f64::from(scaling));
        let weight = cpu::DoraWeight { base: &base, a: &a, b: &b, magnitude: &m, shape, rank, scaling: scaling64, eps };
        let types = [x_type, y_type, base_type];
        let bounds = dora_bounds((&x, &[rows, ins]), &weight, Some(&bias), &dy, through, types);

        let offset = OFFSETS[1];
        let holding = |values: &[f64], shape: &[usize], dtype| Guarded::holding(gpu, values, shape, dtype, offset);
        let poisoned = |shape: &[usize], dtype| Guarded::poisoned(gpu, shape, dtype, offset);
        let (gx, gbase) = (holding(&x, &[rows, ins], x_type)?, holding(&base, &shape, base_type)?);
        let (ga, gb) = (holding(&a, &[rank, ins], low_type)?, holding(&b, &[outs, rank], low_type)?);
        let (gm, gbias) = (holding(&m, &[outs], DType::F32)?, holding(&bias, &[outs], DType::F32)?);
        let gdy = holding(&dy, &[rows, outs], y_type)?;
        let weight = DoraWeight::new(&gbase.tensor, &ga.tensor, &gb.tensor, &gm.tensor, scaling).eps(eps);
        let (norms, u) = (poisoned(&[outs], DType::F32)?, poisoned(&[rows, outs], DType::F32)?);
        let (y, hidden) = (poisoned(&[rows, outs], y_type)?, poisoned(&[rows, rank], DType::F32)?);
        let request = Dora::new(&gx.tensor, weight).bias(&gbias.tensor).tile(tile);
        let kept = request.norms(&norms.tensor).u(&u.tensor).hidden(&hidden.tensor);
        gpu.run(|ops| ops.dora(kept, &y.tensor))?;
        let mut expected = bounds.norms.0.clone();
        expected[0] *= 1.0 + off;
        named("norms", compare(&norms.read()?, &expected, Some(DType::F32), |i| bounds.norms.1[i]))?;
        named("y", compare(&y.read()?, &bounds.y.0, Some(y_type), |i| bounds.y.1[i]))?;
        hidden.bytes()?;
        // With kept norms, nothing else kept.
        let again = poisoned(&[rows, outs], y_type)?;
        let known = Dora::new(&gx.tensor, weight.norms(&norms.tensor)).bias(&gbias.tensor).tile(tile);
        gpu.run(|ops| ops.dora(known, &again.tensor))?;
        if again.bytes()? != y.bytes()? {
            return Err("kept norms give other bits".into());
        }

        let (dx, da) = (poisoned(&[rows, ins], x_type)?, poisoned(&[rank, ins], DType::F32)?);
        let (db, dm) = (poisoned(&[outs, rank], DType::F32)?, poisoned(&[outs], DType::F32)?);
        let dbias = poisoned(&[outs], DType::F32)?;
        let wanted = Gradients::default().dx(&dx.tensor).da(&da.tensor).db(&db.tensor).dg(&dm.tensor);
        let backward = DoraBackward::new(&gx.tensor, weight.norms(&norms.tensor), &gdy.tensor).u(&u.tensor);
        let backward = backward.hidden(&hidden.tensor).through_norms(through).tile(tile);
        gpu.run(|ops| ops.dora_backward(backward, &wanted.dbias(&dbias.tensor)))?;
        let DoraBounds { dx: x_bounds, da: a_bounds, db: b_bounds, dmagnitude, dbias: bias_bounds, .. } = &bounds;
        named("dx", compare(&dx.read()?, &x_bounds.0, Some(x_type), |i| x_bounds.1[i]))?;
        named("da", compare(&da.read()?, &a_bounds.0, Some(DType::F32), |i| a_bounds.1[i]))?;
        named("db", compare(&db.read()?, &b_bounds.0, Some(DType::F32), |i| b_bounds.1[i]))?;
        named("dm", compare(&dm.read()?, &dmagnitude.0, Some(DType::F32), |i| dmagnitude.1[i]))?;
        named("dbias", compare(&dbias.read()?, &bias_bounds.0, Some(DType::F32), |i| bias_bounds.1[i]))?;
        let w = poisoned(&shape, base_type)?;
        gpu.run(|ops| ops.dora_merge(weight, &w.tensor))?;
        Ok(named("w", compare(&w.read()?, &bounds.w.0, Some(base_type), |i| bounds.w.1[i]))?)
    }
}

fn equals_cpu(gpu: &Gpu, extent: Extent) -> Outcome {
    let few = Case::new([7, 13, 70, 3]);
    few.check(gpu)?;
    must_fail("a norm off by 1e-3", few.check_against(gpu, 1e-3).map_err(|_| String::new()))?;
    if extent == Extent::Few {
        return Ok(());
    }
    let of = |size| Case { tile: None, ..Case::new(size) };
    all([[1, 1, 1, 1], [3, 24, 64, 16], [150, 70, 40, 8], [2, 300, 257, 70], [64, 128, 512, 16]], |&size| {
        of(size).check(gpu)?;
        Case { through: false, ..of(size) }.check(gpu)
    })?;
    all(DTYPES.iter().flat_map(|&x| DTYPES.map(|base| [x, base])), |&[x, base]| {
        let lengths = if base == DType::F32 { &LENGTHS[..] } else { &[1.0, 0.5] };
        Case { dtypes: [x, base, DType::F32, x], lengths, ..of([9, 33, 48, 4]) }.check(gpu)
    })?;
    all(DTYPES, |&low| Case { dtypes: [DType::F32, DType::F32, low, DType::F32], ..of([9, 33, 48, 4]) }.check(gpu))?;
    let policies = [Eps::None, Eps::InsideSqrt(1e-12), Eps::Clamp(1e-12)];
    all(policies, |&eps| Case { eps, ..of([9, 33, 48, 4]) }.check(gpu))
}

/// Gradients that are added to what is there, also in 16 bits.
fn accumulates(gpu: &Gpu) -> Outcome {
    let upload = |seed, shape: &[usize]| {
        let values = random(seed, shape.iter().product(), DType::F32);
        gpu.upload(&values.iter().map(|&a| a as f32).collect::<Vec<_>>(), shape)
    };
    let (x, base, a, b) = (upload(1, &[7, 40])?, upload(2, &[13, 40])?, upload(3, &[3, 40])?, upload(4, &[13, 3])?);
    let (m, dy) = (upload(5, &[13])?, upload(6, &[7, 13])?);
    let weight = DoraWeight::new(&base, &a, &b, &m, 0.5);
    let (_, saved) = gpu.dora_saved(Dora::new(&x, weight))?;
    let backward = DoraBackward::new(&x, weight, &dy).saved(&saved).through_norms(true);
    let once = gpu.dora_backward(backward)?;
    for dtype in DTYPES {
        let zeros = |t: &Tensor| gpu.zeros(t.shape(), dtype);
        let (da, db, dm, dbias) = (zeros(&a)?, zeros(&b)?, zeros(&m)?, zeros(&m)?);
        let wanted = Gradients::default().da(&da).db(&db).dg(&dm).dbias(&dbias).accumulate(true);
        for _ in 0..2 {
            gpu.run(|ops| ops.dora_backward(backward, &wanted))?;
        }
        let pairs = [(&da, &once.da), (&db, &once.db), (&dm, &once.dmagnitude), (&dbias, &once.dbias)];
        for (twice, once) in pairs {
            let expected: Vec<f64> = read(once)?.iter().map(|a| 2.0 * a).collect();
            let off = |i: usize| {
                let part = if dtype == DType::F32 { 1e-6 } else { 0.02 };
                part * expected[i].abs() + 1e-5
            };
            compare(&read(twice)?, &expected, Some(dtype), off)?;
        }
    }
    Ok(())
}

fn empty(gpu: &Gpu) -> Outcome {
    all([[0, 3], [3, 0]], |&[rows, outs]| {
        let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
        let (x, base, a, b) = (zeros(&[rows, 4])?, zeros(&[outs, 4])?, zeros(&[2, 4])?, zeros(&[outs, 2])?);
        let m = zeros(&[outs])?;
        let weight = DoraWeight::new(&base, &a, &b, &m, 1.0);
        let (y, saved) = gpu.dora_saved(Dora::new(&x, weight))?;
        let got = gpu.dora_backward(DoraBackward::new(&x, weight, &y).saved(&saved).through_norms(true))?;
        let w = gpu.dora_merge(weight)?;
        for tensor in [&y, &got.dx, &got.da, &got.db, &got.dmagnitude, &got.dbias, &w] {
            if tensor.read::<f32>()?.iter().any(|&a| a != 0.0) {
                return Err(format!("{tensor:?}").into());
            }
        }
        Ok(())
    })
}

/// With B = 0 it is a weight-normalized layer, and dx that of the merged weight.
fn without_an_update(gpu: &Gpu) -> Outcome {
    let upload = |seed, shape: &[usize]| {
        let values = random(seed, shape.iter().product(), DType::F32);
        gpu.upload(&values.iter().map(|&a| a as f32).collect::<Vec<_>>(), shape)
    };
    let (x, base, a, m) = (upload(1, &[7, 40])?, upload(2, &[13, 40])?, upload(3, &[3, 40])?, upload(5, &[13])?);
    let (b, dy) = (gpu.zeros(&[13, 3], DType::F32)?, upload(6, &[7, 13])?);
    let weight = DoraWeight::new(&base, &a, &b, &m, 0.5);
    let close = |got: &Tensor, expected: &Tensor| -> Result<(), String> {
        let (got, expected) = (read(got).map_err(|e| e.to_string())?, read(expected).map_err(|e| e.to_string())?);
        compare(&got, &expected, Some(DType::F32), |i| 1e-5 * expected[i].abs() + 1e-5).map(drop)
    };
    let (y, saved) = gpu.dora_saved(Dora::new(&x, weight))?;
    close(&y, &gpu.linear(weightnorm::Linear::new(&x, weightnorm::WeightNorm::new(&base, &m)))?)?;
    let got = gpu.dora_backward(DoraBackward::new(&x, weight, &dy).saved(&saved))?;
    let w = gpu.dora_merge(weight)?;
    let LinearGradients { dx, .. } = gpu.linear_backward(LinearBackward::new(&x, Weight::Plain(&w), &dy))?;
    Ok(close(&got.dx, &dx)?)
}
