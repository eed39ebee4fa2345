//! Sets of weights whose gains are in f16 and bf16, against the CPU reference.
use weightnorm::{Axis, DType, Eps, Gpu, SetMember, Tensor, WeightNorm, cpu};

use crate::common::{dg_bound, dv_bound, normalize_terms, weight_bound};
use crate::data::{Guarded, norm_count, norm_length, random, to_bytes, upload};
use crate::device::recorded;
use crate::gains::{expect, gains_in, offset};
use crate::{Failed, Outcome};

/// A member of a set: a weight, and whether it has a gain.
pub type Member = (&'static [usize], Axis, Option<DType>);

/// One storage type for all gains, several, and members without.
pub fn sets() -> Vec<Vec<Member>> {
    let shapes: [(&[usize], Axis); 6] = [
        (&[37, 65], Axis::Kept(0)),
        (&[5, 7, 9], Axis::Kept(1)),
        (&[3, 257], Axis::Whole),
        (&[131, 8], Axis::Kept(0)),
        (&[9, 301], Axis::Kept(1)),
        (&[3, 40_000], Axis::Kept(0)),
    ];
    let member = |i: usize, gain| (shapes[i].0, shapes[i].1, gain);
    let same = |dtype| (0..6).map(|i| member(i, Some(dtype))).collect();
    let mixed = [Some(DType::F16), Some(DType::Bf16), Some(DType::F32), None, Some(DType::Bf16), Some(DType::F16)];
    vec![same(DType::F16), same(DType::Bf16), mixed.into_iter().enumerate().map(|(i, gain)| member(i, gain)).collect()]
}

/// All gains in one buffer, one behind the other.
pub fn set(gpu: &Gpu, members: &[Member]) -> Outcome {
    let eps = Eps::default();
    let mut bytes = vec![];
    let mut places = vec![];
    for (i, &(shape, axis, gain)) in members.iter().enumerate() {
        let g = gain.map(|dtype| (gains_in(10 + i as u64, norm_count(shape, axis), dtype), dtype));
        places.push((bytes.len() as u64, g.clone()));
        if let Some((g, dtype)) = g {
            bytes.extend(to_bytes(&g, dtype));
            bytes.resize(bytes.len().next_multiple_of(4), 0xff);
        }
    }
    let words: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
    let shared = gpu.upload(&words, &[words.len()])?;
    let gain = |(place, g): &(u64, Option<(Vec<f64>, DType)>)| match g {
        Some((g, dtype)) => Tensor::from_buffer(gpu, shared.buffer()?, *place, &[g.len()], *dtype).map(Some),
        None => Ok(None),
    };
    let g_tensors = places.iter().map(gain).collect::<Result<Vec<_>, _>>()?;
    let (mut v, mut dw, mut outs) = (vec![], vec![], vec![]);
    for (i, &(shape, axis, _)) in members.iter().enumerate() {
        let values = random(20 + i as u64, shape.iter().product(), DType::F32);
        let gradients = random(30 + i as u64, values.len(), DType::F32);
        v.push((Guarded::holding(gpu, &values, shape, DType::F32, offset(i))?, values));
        dw.push((upload(gpu, &gradients, shape, DType::F32, i)?, gradients));
        let poisoned = |shape: &[usize]| Guarded::poisoned(gpu, shape, DType::F32, offset(i + 1));
        outs.push((poisoned(shape)?, poisoned(shape)?, poisoned(&[norm_count(shape, axis)])?));
    }
    let member = |i: usize| {
        let v = &v[i].0.tensor;
        let weight = g_tensors[i].as_ref().map_or(WeightNorm::unit(v), |g| WeightNorm::new(v, g));
        let (w, dv, dg) = &outs[i];
        let member = SetMember::new(weight.axis(members[i].1).eps(eps));
        member.w(&w.tensor).dw(&dw[i].0).dv(&dv.tensor).dg(&dg.tensor)
    };
    let set = gpu.weight_set(&(0..members.len()).map(member).collect::<Vec<_>>())?;
    recorded(gpu, |ops| {
        ops.normalize_set(&set)?;
        ops.normalize_backward_set(&set, false)?;
        ops.normalize_set_in_place(&set)
    })?;
    for (i, &(shape, axis, _)) in members.iter().enumerate() {
        let fail = |e: Failed| Failed::from(format!("member {i}: {}", e.message().unwrap_or_default()));
        let g = places[i].1.as_ref().map(|(g, _)| &g[..]);
        let (values, gradients, length) = (&v[i].1, &dw[i].1, norm_length(shape, axis));
        let (w_out, dv_out, dg_out) = &outs[i];
        let w = cpu::normalize(values, shape, g, axis, eps)?;
        let bound = |e: usize| weight_bound(length, w[e], DType::F32);
        expect("w", w_out, &w, bound).map_err(fail)?;
        expect("v in place", &v[i].0, &w, bound).map_err(fail)?;
        let (dv, dg) = cpu::normalize_backward(gradients, values, shape, g, axis, eps)?;
        let (dv_terms, dg_terms) = normalize_terms(gradients, values, shape, g, axis, eps);
        expect("dv", dv_out, &dv, |e| dv_bound(length, length, dv_terms[e], dv[e], DType::F32)).map_err(fail)?;
        expect("dg", dg_out, &dg, |j| dg_bound(length, length, dg_terms[j], dg[j])).map_err(fail)?;
    }
    Ok(())
}
