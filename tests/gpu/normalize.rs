//! normalize, in place and out of place, and split.
use weightnorm::{Axis, DType, Decompose, Eps, Gpu, WeightNorm, cpu};

use crate::common::{compare, norm_bound, weight_bound};
use crate::data::{
    DTYPES, Guarded, POLICIES, all, axes, gains, in_turn, must_fail, norm_chain, norm_count, norm_length, offsets,
    random, upload,
};
use crate::norms::{LARGE, LONG, SHAPES, simple, some_dtypes, some_policies, some_quads};
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    // Few: each shape with one axis and one policy, in one storage type.
    suite.sampled("normalize_every_axis_policy_and_dtype", |gpu, extent| {
        all(SHAPES.iter().enumerate(), |&(i, shape)| {
            let all: Vec<_> = axes(shape).collect();
            let axes = extent.choose(&all[..], &all[i / 3 % all.len()..][..1]);
            sweep_of(gpu, shape, axes, some_policies(extent, i), some_dtypes(extent, i))
        })
    });
    suite.sampled("normalize_quads_on_either_device", |gpu, extent| {
        in_turn(gpu, extent, some_quads(extent), |gpu, (shape, dtypes)| {
            sweep_of(gpu, shape, &axes(shape).collect::<Vec<_>>(), &POLICIES[2..3], dtypes)
        })
    });
    suite.sampled("normalize_large_tensors", |gpu, extent| {
        all(LARGE.iter().enumerate(), |&(i, shape)| {
            sweep_of(gpu, shape, &axes(shape).collect::<Vec<_>>(), &POLICIES[2..3], some_dtypes(extent, i))
        })
    });
    suite.sampled("normalize_long_rows", |gpu, extent| {
        all(extent.of(LONG[..4].iter().copied(), 3), |&(shape, axis)| long_rows(gpu, shape, axis))
    });
    suite.sampled("normalize_into_other_dtypes", into_other_dtypes);
    suite.sampled("split_every_axis_policy_and_dtype", |gpu, extent| {
        all(SHAPES.iter().chain(LARGE).enumerate(), |&(i, shape)| split_sweep(gpu, shape, some_dtypes(extent, i), i))
    });
    suite.test("normalize_dispatch_count", Needs::Nothing, dispatch_count);
    suite.test("normalize_comparison_can_fail", Needs::Nothing, comparison_can_fail);
}

/// One weight to normalize, and the additions of one square on its way into its norm.
pub struct Case<'a> {
    pub v: &'a [f64],
    pub shape: &'a [usize],
    pub dtype: DType,
    pub g: Option<&'a [f64]>,
    pub axis: Axis,
    pub eps: Eps,
    pub chain: usize,
}

impl Case<'_> {
    fn compare(&self, w: &[f64], dtype: DType) -> Result<(), String> {
        let expected = cpu::normalize(self.v, self.shape, self.g, self.axis, self.eps).map_err(|e| e.to_string())?;
        let bound = |i: usize| weight_bound(self.chain, expected[i], dtype);
        compare(w, &expected, Some(dtype), bound).map(drop)
    }

    /// Out of place into `to`, between guards; with the norms known; in place.
    pub fn check(&self, gpu: &Gpu, to: DType) -> Outcome {
        all(offsets(self.chain + self.v.len(), self.v.len()), |&offset| self.check_at(gpu, to, offset))
    }

    fn check_at(&self, gpu: &Gpu, to: DType, offset: u64) -> Outcome {
        let &Case { v, shape, dtype, g, axis, eps, chain } = self;
        let seed = chain + v.len();
        let count = norm_count(shape, axis);
        let tensor = Guarded::holding(gpu, v, shape, dtype, offset)?.tensor;
        let g = g.map(|g| upload(gpu, g, &[count], DType::F32, seed + 1)).transpose()?;
        let weight = |v| {
            let unit = WeightNorm::unit(v).axis(axis).eps(eps);
            g.as_ref().map_or(unit, |g| WeightNorm::new(v, g).axis(axis).eps(eps))
        };
        let outputs = [Guarded::poisoned(gpu, shape, to, offset)?, Guarded::poisoned(gpu, shape, to, 0)?];
        let in_place = Guarded::holding(gpu, v, shape, dtype, offset)?;
        // A norm that an f32 does not hold cannot be known; `linear` has the test of those it does.
        let norms = cpu::row_norms(v, shape, axis, eps)?;
        let fits = norms.iter().all(|n| (2f64.powi(-126)..2f64.powi(127)).contains(n));
        let known = upload(gpu, &norms, &[count], DType::F32, seed)?;

        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        ops.normalize(weight(&tensor), &outputs[0].tensor)?;
        if fits {
            ops.normalize(weight(&tensor).norms(&known), &outputs[1].tensor)?;
        }
        ops.normalize_in_place(weight(&in_place.tensor))?;
        drop(ops);
        gpu.queue().submit([encoder.finish()]);
        self.compare(&outputs[0].read()?, to)?;
        if fits {
            self.compare(&outputs[1].read()?, to).map_err(|e| format!("known norms: {e}"))?;
        }
        self.compare(&in_place.read()?, dtype).map_err(|e| format!("in place: {e}"))?;
        Ok(())
    }
}

fn sweep_of(gpu: &Gpu, shape: &[usize], axes: &[Axis], policies: &[Eps], dtypes: &[DType]) -> Outcome {
    for (dtype, v) in dtypes.iter().map(|&dtype| (dtype, random(2, shape.iter().product(), dtype))) {
        all(axes.iter().flat_map(|&axis| policies.iter().map(move |&eps| (axis, eps))), |&(axis, eps)| {
            let g = gains(3, norm_count(shape, axis));
            let g = (eps != POLICIES[1]).then_some(&*g);
            let chain = norm_chain(norm_length(shape, axis));
            Case { v: &v, shape, dtype, g, axis, eps, chain }.check(gpu, dtype)
        })
        .map_err(|e| format!("{dtype:?}: {}", e.message().unwrap_or_default()))?;
    }
    Ok(())
}

/// Packed where the tensor is largest; gains that keep w where f16 is normal.
fn long_rows(gpu: &Gpu, shape: &[usize], axis: Axis) -> Outcome {
    let v = simple(shape.iter().product());
    let g = vec![4096.0; norm_count(shape, axis)];
    let dtype = if shape[0] == 1 { DType::Bf16 } else { DType::F32 };
    Case { v: &v, shape, dtype, g: Some(&g), axis, eps: Eps::None, chain: 1 }.check(gpu, dtype)
}

/// Few: each pair of types with one axis.
fn into_other_dtypes(gpu: &Gpu, extent: Extent) -> Outcome {
    let pairs = DTYPES.iter().flat_map(|&from| DTYPES.map(|to| (from, to)));
    let axes = [Axis::Kept(0), Axis::Kept(1), Axis::Kept(2), Axis::Whole];
    all(pairs.enumerate(), |&(i, (dtype, to))| {
        all(extent.choose(&axes[..], &axes[i % 4..][..1]), |&&axis| {
            let shape = [5, 3, 13];
            let (v, g) = (random(4, 5 * 3 * 13, dtype), gains(5, norm_count(&shape, axis)));
            let chain = norm_length(&shape, axis);
            Case { v: &v, shape: &shape, dtype, g: Some(&g), axis, eps: Eps::default(), chain }.check(gpu, to)
        })
    })
}

/// v is w, bit for bit; g its norms; and normalize gives w back, its bits the same but for rounding.
fn split_sweep(gpu: &Gpu, shape: &[usize], dtypes: &[DType], first: usize) -> Outcome {
    let policies = POLICIES.iter().cycle().skip(first);
    let cases = dtypes.iter().flat_map(|&dtype| axes(shape).map(move |axis| (dtype, axis))).zip(policies);
    all(cases, |&((dtype, axis), &eps)| {
        let w = random(6, shape.iter().product(), dtype);
        let count = norm_count(shape, axis);
        let input = Guarded::holding(gpu, &w, shape, dtype, 12)?;
        let (v, g) = (Guarded::poisoned(gpu, shape, dtype, 4)?, Guarded::poisoned(gpu, &[count], DType::F32, 12)?);
        let back = Guarded::poisoned(gpu, shape, dtype, 0)?;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        ops.decompose(Decompose::new(&input.tensor).axis(axis).eps(eps), &v.tensor, &g.tensor)?;
        ops.normalize(WeightNorm::new(&v.tensor, &g.tensor).axis(axis).eps(eps), &back.tensor)?;
        drop(ops);
        gpu.queue().submit([encoder.finish()]);
        if v.bytes()? != input.bytes()? {
            return Err("v is not w".into());
        }
        let (_, expected) = cpu::decompose(&w, shape, axis, eps)?;
        let chain = norm_chain(norm_length(shape, axis));
        compare(&g.read()?, &expected, Some(DType::F32), |j| norm_bound(chain, expected[j]))?;
        compare(&back.read()?, &w, Some(dtype), |i| weight_bound(2 * chain, w[i], dtype))?;
        Ok(())
    })
}

fn dispatch_count(gpu: &Gpu) -> Outcome {
    // One more than the norms, or two with known norms; one for rows that a workgroup holds.
    for (axis, expected, held) in [(Axis::Kept(0), 2, true), (Axis::Kept(1), 3, false), (Axis::Whole, 2, false)] {
        let (v, w) = (gpu.zeros(&[64, 100], DType::F32)?, gpu.zeros(&[64, 100], DType::F32)?);
        let norms = gpu.zeros(&[norm_count(v.shape(), axis)], DType::F32)?;
        let weight = WeightNorm::unit(&v).axis(axis);
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        let mut counts = vec![];
        ops.normalize(weight, &w)?;
        counts.push(ops.dispatch_count());
        ops.normalize(weight.norms(&norms), &w)?;
        counts.push(ops.dispatch_count());
        ops.normalize_in_place(weight)?;
        counts.push(ops.dispatch_count());
        ops.decompose(Decompose::new(&v).axis(axis), &w, &norms)?;
        counts.push(ops.dispatch_count());
        let both = if held { 1 } else { expected };
        let all = [both, both + 2, 2 * both + 2, 2 * both + 2 + expected];
        if counts != all {
            return Err(format!("{axis:?}: {counts:?} dispatches, not {all:?}").into());
        }
    }
    Ok(())
}

fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    for dtype in DTYPES {
        let v = random(7, 33 * 65, dtype);
        let case =
            Case { v: &v, shape: &[33, 65], dtype, g: None, axis: Axis::Kept(1), eps: Eps::default(), chain: 33 };
        let tensor = upload(gpu, &v, case.shape, dtype, 0)?;
        let w = Guarded::poisoned(gpu, case.shape, dtype, 4)?;
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        gpu.record(&mut encoder).normalize(WeightNorm::unit(&tensor).axis(case.axis), &w.tensor)?;
        gpu.queue().submit([encoder.finish()]);
        let w = w.read()?;
        case.compare(&w, dtype)?;
        // A little more than the rounding of the storage type; two elements exchanged.
        let step = if dtype == DType::F32 { 1e-4 } else { 0.02 };
        let mut perturbed = w.clone();
        perturbed[1000] *= 1.0 + step;
        must_fail("an element off by little", case.compare(&perturbed, dtype))?;
        perturbed = w;
        perturbed.swap(64, 65);
        must_fail("two elements exchanged", case.compare(&perturbed, dtype))?;
    }
    Ok(())
}
