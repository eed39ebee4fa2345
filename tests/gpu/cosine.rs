//! cosine and its gradients: sizes, storage types, policies, tiles, the range of numbers.
use weightnorm::{Cosine, CosineBackward, DType, Eps, Gpu, Gradients, Tile, WeightNorm, cpu};

use crate::common::compare;
use crate::common::cosine::cosine_bounds;
use crate::data::{DTYPES, Guarded, OFFSETS, POLICIES, all, gains, must_fail, random, rounded};
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    // Few: those of few pipelines.
    suite.sampled("cosine_over_the_range", over_the_range);
    suite.test("cosine_comparison_can_fail", Needs::Nothing, comparison_can_fail);
    suite.test("cosine_equals_cpu_in_full", Needs::Time, equals_cpu);
    suite.test("cosine_every_tile_and_split_in_full", Needs::Time, tiles);
    suite.test("cosine_scales_of_rows_change_nothing_in_full", Needs::Time, scales_change_nothing);
    suite.test("cosine_of_empty_tensors_in_full", Needs::Time, empty);
    suite.test("cosine_dino_head_in_full", Needs::Time, |gpu| {
        Case { gain: false, ..Case::new([64, 131_072, 384]) }.check(gpu)
    });
}

#[derive(Clone)]
struct Case {
    /// Rows of x, out_features, in_features.
    size: [usize; 3],
    /// Of x, v and y.
    dtypes: [DType; 3],
    eps: Eps,
    gain: bool,
    known: bool,
    tile: Option<Tile>,
    split_length: Option<u32>,
    backward: bool,
    offset: u64,
    x: Vec<f64>,
    v: Vec<f64>,
}

impl Case {
    fn new(size: [usize; 3]) -> Case {
        Case::stored(size, [DType::F32; 3])
    }

    fn stored(size: [usize; 3], dtypes: [DType; 3]) -> Case {
        let [rows, outs, ins] = size;
        let (x, v) = (random(1, rows * ins, dtypes[0]), random(2, outs * ins, dtypes[1]));
        let (eps, gain, known, backward, offset) = (Eps::default(), true, false, true, OFFSETS[1]);
        Case { size, dtypes, eps, gain, known, tile: None, split_length: None, backward, offset, x, v }
    }

    fn check(&self, gpu: &Gpu) -> Outcome {
        self.check_against(gpu, 0.0)
    }

    /// With y of the reference off by a part of itself.
    fn check_against(&self, gpu: &Gpu, off: f64) -> Outcome {
        let &Case { size: [rows, outs, ins], dtypes: [x_type, v_type, y_type], eps, offset, .. } = self;
        let (x_shape, v_shape, y_shape) = ([rows, ins], [outs, ins], [rows, outs]);
        let named = |name: &str, result: Result<f64, String>| result.map(drop).map_err(|e| format!("{name}: {e}"));
        let holding = |values: &[f64], shape: &[usize], dtype| Guarded::holding(gpu, values, shape, dtype, offset);
        let poisoned = |shape: &[usize], dtype| Guarded::poisoned(gpu, shape, dtype, offset);
        let g = self.gain.then(|| gains(3, outs));
        let dy = random(4, rows * outs, y_type);
        let bounds = cosine_bounds((&self.x, &x_shape), (&self.v, &v_shape), g.as_deref(), eps, &dy, self.dtypes);

        let (x, v) = (holding(&self.x, &x_shape, x_type)?, holding(&self.v, &v_shape, v_type)?);
        let gain = g.as_ref().map(|g| holding(g, &[outs], DType::F32)).transpose()?;
        let known = cpu::row_norms(&self.v, &v_shape, weightnorm::Axis::Kept(0), eps)?;
        let known = holding(&known, &[outs], DType::F32)?;
        let weight = match &gain {
            Some(g) => WeightNorm::new(&v.tensor, &g.tensor),
            None => WeightNorm::unit(&v.tensor),
        };
        let weight = weight.eps(eps);
        let given = if self.known { weight.norms(&known.tensor) } else { weight };
        let (y, u, norms) =
            (poisoned(&y_shape, y_type)?, poisoned(&y_shape, DType::F32)?, poisoned(&[outs], DType::F32)?);
        let request = Cosine::new(&x.tensor, given).tile(self.tile).split_length(self.split_length);
        gpu.run(|ops| ops.cosine(request.u(&u.tensor).norms(&norms.tensor), &y.tensor))?;
        let expected: Vec<f64> = bounds.y.0.iter().map(|y| y * (1.0 + off)).collect();
        named("y", compare(&y.read()?, &expected, Some(y_type), |i| bounds.y.1[i]))?;
        named("u", compare(&u.read()?, &bounds.u.0, Some(DType::F32), |i| bounds.u.1[i]))?;
        named("norms", compare(&norms.read()?, &bounds.norms.0, Some(DType::F32), |i| bounds.norms.1[i]))?;
        if !self.backward {
            return Ok(());
        }
        let dy = holding(&dy, &y_shape, y_type)?;
        let (dx, dv, dg) = (poisoned(&x_shape, x_type)?, poisoned(&v_shape, v_type)?, poisoned(&[outs], DType::F32)?);
        let wanted = Gradients::default().dx(&dx.tensor).dv(&dv.tensor).dg(&dg.tensor);
        let backward = CosineBackward::new(&x.tensor, weight.norms(&norms.tensor), &dy.tensor);
        let backward = backward.u(&u.tensor).tile(self.tile).split_length(self.split_length);
        gpu.run(|ops| ops.cosine_backward(backward, &wanted))?;
        named("dx", compare(&dx.read()?, &bounds.dx.0, Some(x_type), |i| bounds.dx.1[i]))?;
        named("dv", compare(&dv.read()?, &bounds.dv.0, Some(v_type), |i| bounds.dv.1[i]))?;
        Ok(named("dg", compare(&dg.read()?, &bounds.dg.0, Some(DType::F32), |i| bounds.dg.1[i]))?)
    }
}

fn equals_cpu(gpu: &Gpu) -> Outcome {
    let sizes = [[1, 1, 1], [5, 3, 1], [3, 40, 65], [70, 33, 20], [4, 257, 129], [33, 65, 512], [200, 9, 7]];
    all(sizes, |&size| Case::new(size).check(gpu))?;
    // Attention: rows of queries by rows of keys, without a gain.
    Case { gain: false, ..Case::new([128, 512, 64]) }.check(gpu)?;
    let mixes = DTYPES.iter().flat_map(|&x| DTYPES.iter().flat_map(move |&v| DTYPES.map(move |y| [x, v, y])));
    all(mixes, |&dtypes| Case::stored([17, 12, 33], dtypes).check(gpu))?;
    all(POLICIES, |&eps| Case { eps, ..Case::new([9, 20, 33]) }.check(gpu))
}

fn tiles(gpu: &Gpu) -> Outcome {
    let tiles = Tile::all_on(gpu).filter(|tile| !tile.to_string().starts_with("cooperative"));
    all(tiles, |&tile| {
        // Whole quads, and others.
        for ins in [64, 65, 3] {
            let of = Case { tile: Some(tile), backward: false, ..Case::new([70, 37, ins]) };
            of.check(gpu)?;
            Case { known: true, offset: 0, ..of.clone() }.check(gpu)?;
            Case { split_length: Some(16), ..of.clone() }.check(gpu)?;
            Case { split_length: Some(16), known: true, ..of }.check(gpu)?;
        }
        Ok(())
    })?;
    Case { tile: Some(Tile::Tile32x32), split_length: Some(16), ..Case::new([35, 37, 65]) }.check(gpu)
}

/// Rows of x and of v of every scale, rows of zeros among them.
fn over_the_range(gpu: &Gpu, extent: Extent) -> Outcome {
    let scales = [1.0, 3e25, 3e-25, 0.0, 1e30, 1e-30, 1e-12, 9e17, 1e-20, 1e20];
    let size @ [rows, outs, ins] = [10, 10, 33];
    let scaled = |values: Vec<f64>| -> Vec<f64> {
        values
            .iter()
            .enumerate()
            .map(|(i, a)| rounded(a.signum() * (0.5 + a.abs() / 2.0) * scales[i / ins], DType::F32))
            .collect()
    };
    let (x, v) = (scaled(random(5, rows * ins, DType::F32)), scaled(random(6, outs * ins, DType::F32)));
    let tiles = [Tile::Tile32x32, Tile::Gemv4, Tile::Subgroup8, Tile::Tile64x64, Tile::Tile128x8];
    let tiles = tiles.into_iter().filter(|tile| tile.runs_on(gpu));
    all(tiles.take(extent.choose(5, 3)), |&tile| {
        let of = Case { tile: Some(tile), backward: tile == Tile::Tile32x32, ..Case::new(size) };
        let of = Case { x: x.clone(), v: v.clone(), eps: Eps::Clamp(1e-30), ..of };
        // (dx of a row of 1e-30 is 1e30 as large.)
        of.check(gpu)?;
        if extent == Extent::All || tile == Tile::Tile32x32 {
            Case { split_length: Some(16), backward: false, ..of }.check(gpu)?;
        }
        Ok(())
    })
}

/// y is that of the rows times any power of two, bit for bit.
fn scales_change_nothing(gpu: &Gpu) -> Outcome {
    let (x, v) = (random(7, 9 * 33, DType::F32), random(8, 20 * 33, DType::F32));
    let bits = |x_scale: f64, v_scale: f64| -> Result<Vec<u32>, weightnorm::Error> {
        let upload = |values: &[f64], scale: f64, shape: &[usize]| {
            gpu.upload(&values.iter().map(|a| (a * scale) as f32).collect::<Vec<_>>(), shape)
        };
        let (x, v) = (upload(&x, x_scale, &[9, 33])?, upload(&v, v_scale, &[20, 33])?);
        let y = gpu.cosine(Cosine::new(&x, WeightNorm::unit(&v).eps(Eps::None)).tile(Tile::Tile32x32))?;
        Ok(y.read::<f32>()?.iter().map(|y| y.to_bits()).collect())
    };
    let plain = bits(1.0, 1.0)?;
    for (x_scale, v_scale) in [(4.0, 0.25), (2f64.powi(20), 1.0)] {
        if bits(x_scale, v_scale)? != plain {
            return Err(format!("scales {x_scale} and {v_scale} change y").into());
        }
    }
    Ok(())
}

fn empty(gpu: &Gpu) -> Outcome {
    all([[0, 3, 4], [3, 0, 4], [2, 3, 0]], |&size| {
        let [rows, outs, ins] = size;
        let (x, v) = (gpu.zeros(&[rows, ins], DType::F32)?, gpu.zeros(&[outs, ins], DType::F32)?);
        let (y, saved) = gpu.cosine_saved(Cosine::new(&x, WeightNorm::unit(&v)))?;
        let got = gpu.cosine_backward(CosineBackward::new(&x, WeightNorm::unit(&v), &y).saved(&saved))?;
        let zeros = |t: &weightnorm::Tensor| t.read::<f32>().map(|all| all.iter().all(|&a| a == 0.0));
        match [zeros(&y)?, zeros(&got.dx)?, zeros(&got.dv)?, zeros(&got.dg)?] {
            [true, true, true, true] => Ok(()),
            other => Err(format!("zeros: {other:?}").into()),
        }
    })
}

fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let case = Case { tile: Some(Tile::Tile32x32), backward: false, ..Case::new([10, 10, 33]) };
    must_fail("y off by 1e-4", case.check_against(gpu, 1e-4).map_err(|_| String::new()))
}
