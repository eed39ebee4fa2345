//! PyTorch's reference cases in a browser, within the bounds that the tests have (`tests/common`).
#[path = "../../tests/common/mod.rs"]
pub mod common;

use std::path::Path;

use common::cosine::cosine_bounds;
use common::dora::dora_bounds;
use common::recurrent::tracked;
use common::{Op, compare, conv_terms, dg_bound, dot_bound, dv_bound, dx_bound, linear_terms, norm_bound};
use common::{normalize_terms, sum_bound, weight_bound};
use safetensors::Dtype;
use wasm_bindgen::prelude::*;
use weightnorm::{Activation, Cell, Conv, Cosine, CosineBackward, DType, Dora, DoraBackward, DoraWeight, Gpu};
use weightnorm::{Gradients, Linear, LinearBackward, NormalizeBackward, Recurrent, Tensor, WeightNorm, cpu, half};

use crate::{Device, text};

/// A case.
#[wasm_bindgen]
pub struct Golden {
    case: common::Golden,
}

#[wasm_bindgen]
impl Golden {
    /// A case of the bytes of its file.
    #[wasm_bindgen(constructor)]
    pub fn new(name: &str, bytes: &[u8]) -> Result<Golden, JsError> {
        let case = common::File::of_bytes(Path::new(name), bytes).and_then(common::Golden::of).map_err(text)?;
        Ok(Golden { case })
    }

    /// Forward and backward: what was compared, with the largest error as a part of its bound.
    pub async fn run(self, device: &Device) -> Result<String, JsError> {
        let (gpu, case) = (device.gpu.clone(), self.case);
        let told = match case.op {
            Op::WeightNorm => weight_norm(&gpu, &case).await,
            Op::Linear => linear(&gpu, &case).await,
            Op::Conv | Op::ConvTransposed => conv(&gpu, &case).await,
            Op::Recurrent(cell) => recurrent(&gpu, &case, cell).await,
            Op::Cosine => cosine(&gpu, &case).await,
            Op::Dora => dora(&gpu, &case).await,
            Op::Other => Err(Failed("the crate has no such operator".to_owned())),
        };
        told.map(|told| told.join(", ")).map_err(|Failed(what)| text(what))
    }
}

pub struct Failed(pub String);

impl<E: std::fmt::Display> From<E> for Failed {
    fn from(error: E) -> Failed {
        Failed(error.to_string())
    }
}

type Told = Result<Vec<String>, Failed>;

fn upload(gpu: &Gpu, tensor: &common::Tensor) -> Result<Tensor, weightnorm::Error> {
    fn cast<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
    match tensor.dtype {
        Dtype::F16 => gpu.upload::<half::f16>(&cast(&tensor.bytes), &tensor.shape),
        Dtype::BF16 => gpu.upload::<half::bf16>(&cast(&tensor.bytes), &tensor.shape),
        _ => gpu.upload::<f32>(&cast(&tensor.bytes), &tensor.shape),
    }
}

pub async fn read(tensor: &Tensor) -> Result<Vec<f64>, weightnorm::Error> {
    Ok(match tensor.dtype() {
        DType::F32 => cpu::widen(&tensor.read_async::<f32>().await?),
        DType::F16 => cpu::widen(&tensor.read_async::<half::f16>().await?),
        DType::Bf16 => cpu::widen(&tensor.read_async::<half::bf16>().await?),
    })
}

/// Compares a result with what the case has under a name.
async fn agrees(
    case: &common::Golden,
    told: &mut Vec<String>,
    name: &str,
    got: &Tensor,
    bound: impl Fn(usize, f64) -> f64,
) -> Result<(), Failed> {
    let expected = &case.tensor(name)?.data;
    let part = compare(&read(got).await?, expected, Some(got.dtype()), |i| bound(i, expected[i]));
    told.push(format!("{name} {:.2}", part.map_err(|e| format!("{name}: {e}"))?));
    Ok(())
}

async fn weight_norm(gpu: &Gpu, case: &common::Golden) -> Told {
    let (v64, g64, dw) = (case.tensor("v")?, case.tensor("g")?, case.tensor("dw")?);
    let (v, g) = (upload(gpu, v64)?, upload(gpu, g64)?);
    let chain = v.len() / g.len().max(1);
    let mut told = vec![];
    let norms = gpu.row_norms(WeightNorm::unit(&v).axis(case.axis).eps(case.eps))?;
    agrees(case, &mut told, "norm", &norms, |_, n| norm_bound(chain, n) + case.eps_slack(n)).await?;
    let weight = WeightNorm::new(&v, &g).axis(case.axis).eps(case.eps);
    agrees(case, &mut told, "w", &gpu.normalize(weight)?, |_, w| weight_bound(chain, w, case.dtype)).await?;
    let terms = normalize_terms(&dw.data, &v64.data, &v64.shape, Some(&g64.data), case.axis, case.eps);
    let (dv, dg) = gpu.normalize_backward(NormalizeBackward::new(&upload(gpu, dw)?, weight))?;
    agrees(case, &mut told, "dv", &dv, |i, x| dv_bound(chain, chain, terms.0[i], x, case.dtype)).await?;
    agrees(case, &mut told, "dg", &dg, |i, x| dg_bound(chain, chain, terms.1[i], x)).await?;
    Ok(told)
}

async fn linear(gpu: &Gpu, case: &common::Golden) -> Told {
    let (x64, v64, g64, dy64) = (case.tensor("x")?, case.tensor("v")?, case.tensor("g")?, case.tensor("dy")?);
    let bias = case.optional("b").map(|b| upload(gpu, b)).transpose()?;
    let w = cpu::normalize(&v64.data, &v64.shape, Some(&g64.data), case.axis, case.eps)?;
    let absolute = |values: &[f64]| values.iter().map(|a| a.abs()).collect::<Vec<_>>();
    let (x_abs, w_abs) = (absolute(&x64.data), absolute(&w));
    let sums = cpu::linear(&x_abs, &x64.shape, &w_abs, &v64.shape, None, Activation::None)?;
    let chain = v64.shape[1].max(v64.data.len() / g64.data.len().max(1));
    let (x, v, g, dy) = (upload(gpu, x64)?, upload(gpu, v64)?, upload(gpu, g64)?, upload(gpu, dy64)?);
    let weight = WeightNorm::new(&v, &g).axis(case.axis).eps(case.eps);
    let (y, saved) = gpu.linear_saved(Linear::new(&x, weight).bias(bias.as_ref()))?;
    let mut told = vec![];
    agrees(case, &mut told, "y", &y, |i, y| dot_bound(chain, sums[i], y, case.dtype)).await?;
    let d = gpu.linear_backward(LinearBackward::new(&x, weight, &dy).saved(&saved))?;
    let dg = d.dg.ok_or("no dg")?;
    let weight = cpu::Weight::Normalized { v: &v64.data, g: Some(&g64.data), axis: case.axis, eps: case.eps };
    let terms = linear_terms(&x64.data, weight, &v64.shape, &dy64.data);
    let chain = x64.shape[0] + v64.shape[0] + v64.shape[1];
    gradients_agree(case, told, [&d.dx, &d.dv, &dg, &d.dbias], &terms, chain).await
}

async fn conv(gpu: &Gpu, case: &common::Golden) -> Told {
    let transposed = case.op == Op::ConvTransposed;
    let (x64, v64, g64, dy64) = (case.tensor("x")?, case.tensor("v")?, case.tensor("g")?, case.tensor("dy")?);
    let bias = case.optional("b").map(|b| upload(gpu, b)).transpose()?;
    let weight = cpu::Weight::Normalized { v: &v64.data, g: Some(&g64.data), axis: case.axis, eps: case.eps };
    let (sums, terms) =
        conv_terms(transposed, &case.geometry, (&x64.data, &x64.shape), weight, &v64.shape, None, &dy64.data);
    let (x, v, g, dy) = (upload(gpu, x64)?, upload(gpu, v64)?, upload(gpu, g64)?, upload(gpu, dy64)?);
    let norms = gpu.zeros(g.shape(), DType::F32)?;
    let weight = WeightNorm::new(&v, &g).axis(case.axis).eps(case.eps);
    let request = Conv::new(&x, weight).bias(bias.as_ref()).geometry(case.geometry).norms(Some(&norms));
    let y = if transposed { gpu.conv_transposed(request)? } else { gpu.conv(request)? };
    let mut told = vec![];
    agrees(case, &mut told, "y", &y, |i, y| dot_bound(v.len(), sums[i], y, case.dtype)).await?;
    let chain = v.len() / g.len().max(1);
    agrees(case, &mut told, "norm", &norms, |_, n| norm_bound(chain, n) + case.eps_slack(n)).await?;

    let zeros = |of: &Tensor| gpu.zeros(of.shape(), of.dtype());
    let outs = y.shape()[1];
    let (dx, dv, dg, dbias) = (zeros(&x)?, zeros(&v)?, zeros(&g)?, gpu.zeros(&[outs], DType::F32)?);
    let wanted = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
    let request = Conv::new(&x, weight).geometry(case.geometry);
    gpu.run(|ops| match transposed {
        true => ops.conv_transposed_backward(request, &dy, &wanted),
        false => ops.conv_backward(request, &dy, &wanted),
    })?;
    gradients_agree(case, told, [&dx, &dv, &dg, &dbias], &terms, v.len() + dy.len()).await
}

/// Step by step, since a sequence wants steps that lie where a binding of a browser may start; forward.
async fn recurrent(gpu: &Gpu, case: &common::Golden, cell: Cell) -> Told {
    let tensor = |name: &str| -> Result<Tensor, Failed> { Ok(upload(gpu, case.tensor(name)?)?) };
    let optional = |name: &str| case.optional(name).map(|tensor| upload(gpu, tensor)).transpose();
    let (v_input, g_input, v_hidden, g_hidden) = (tensor("v_ih")?, tensor("g_ih")?, tensor("v_hh")?, tensor("g_hh")?);
    let (bias, hidden_bias, mut h, c) = (optional("b_ih")?, optional("b_hh")?, optional("h0")?, optional("c0")?);
    let weight = |v, g| WeightNorm::new(v, g).axis(case.axis).eps(case.eps);
    let (x, expected) = (case.tensor("x")?, &case.tensor("y")?.data);
    let &[steps, batch, features] = &x.shape[..] else { return Err(Failed("x is no sequence".to_owned())) };
    let off = tracked(&case.recurrent(cell)?, (&case.tensor("dy")?.data, None), 2f64.powi(-24), Some(DType::F32));
    let mut worst = 0f64;
    for (t, x) in x.data.chunks(batch * features).enumerate() {
        let x = gpu.upload(&x.iter().map(|&x| x as f32).collect::<Vec<_>>(), &[batch, features])?;
        let layer = Recurrent::new(cell, &x, weight(&v_input, &g_input), weight(&v_hidden, &g_hidden));
        let y = gpu.recurrent(layer.bias(&bias).hidden_bias(&hidden_bias).h0(&h).c(&c))?;
        let first = t * expected.len() / steps;
        let of_step = &expected[first..][..y.len()];
        let part = compare(&read(&y).await?, of_step, Some(DType::F32), |i| off.y[first + i].e);
        worst = worst.max(part.map_err(|e| format!("y of step {t}: {e}"))?);
        h = Some(y);
    }
    let mut told = vec![format!("y {worst:.2}")];
    if let Some(c) = &c {
        agrees(case, &mut told, "c_n", c, |i, _| off.c[i].e).await?;
    }
    Ok(told)
}

async fn cosine(gpu: &Gpu, case: &common::Golden) -> Told {
    let (x64, v64, g64, dy64) = (case.tensor("x")?, case.tensor("v")?, case.tensor("g")?, case.tensor("dy")?);
    let shape = |tensor: &common::Tensor| [tensor.shape[0], tensor.shape[1]];
    let bounds = cosine_bounds(
        (&x64.data, &shape(x64)),
        (&v64.data, &shape(v64)),
        Some(&g64.data),
        case.eps,
        &dy64.data,
        [case.dtype; 3],
    );
    let (x, v, g, dy) = (upload(gpu, x64)?, upload(gpu, v64)?, upload(gpu, g64)?, upload(gpu, dy64)?);
    let weight = WeightNorm::new(&v, &g).eps(case.eps);
    let (y, saved) = gpu.cosine_saved(Cosine::new(&x, weight))?;
    let d = gpu.cosine_backward(CosineBackward::new(&x, weight, &dy).saved(&saved))?;
    let mut told = vec![];
    let checks =
        [("y", &y, &bounds.y.1), ("dx", &d.dx, &bounds.dx.1), ("dv", &d.dv, &bounds.dv.1), ("dg", &d.dg, &bounds.dg.1)];
    for (name, got, bound) in checks {
        agrees(case, &mut told, name, got, |i, _| bound[i]).await?;
    }
    Ok(told)
}

/// Both backward passes: norms as constants, and gradients through them (`_full`).
async fn dora(gpu: &Gpu, case: &common::Golden) -> Told {
    let [x64, w0, a, b, m, dy64] = ["x", "w0", "a", "b", "m", "dy"].map(|name| case.tensor(name));
    let (x64, dy64, of) = (x64?, dy64?, case.dora_weight()?);
    let (x, w0, a, b) = (upload(gpu, x64)?, upload(gpu, w0?)?, upload(gpu, a?)?, upload(gpu, b?)?);
    let (m, dy) = (upload(gpu, m?)?, upload(gpu, dy64)?);
    let weight = DoraWeight::new(&w0, &a, &b, &m, of.scaling as f32).eps(case.eps);
    let (y, saved) = gpu.dora_saved(Dora::new(&x, weight))?;
    let mut told = vec![];
    for (through, da, db) in [(false, "da", "db"), (true, "da_full", "db_full")] {
        let bounds = dora_bounds((&x64.data, &x64.shape), &of, None, &dy64.data, through, [case.dtype; 3]);
        let d = gpu.dora_backward(DoraBackward::new(&x, weight, &dy).saved(&saved).through_norms(through))?;
        let checks = [
            ("norm", &saved.norms, &bounds.norms.1),
            ("y", &y, &bounds.y.1),
            ("dx", &d.dx, &bounds.dx.1),
            ("dm", &d.dmagnitude, &bounds.dmagnitude.1),
            (da, &d.da, &bounds.da.1),
            (db, &d.db, &bounds.db.1),
        ];
        for (name, got, bound) in checks {
            agrees(case, &mut told, name, got, |i, _| bound[i]).await?;
        }
    }
    Ok(told)
}

/// dx, dv, dg and dbias, whose sums have `chain` terms at most.
async fn gradients_agree(
    case: &common::Golden,
    mut told: Vec<String>,
    [dx, dv, dg, dbias]: [&Tensor; 4],
    terms: &cpu::LinearGradients,
    chain: usize,
) -> Told {
    let norm_chain = dv.len() / dg.len().max(1);
    agrees(case, &mut told, "dx", dx, |i, x| dx_bound(norm_chain, chain, terms.dx[i], x, case.dtype)).await?;
    agrees(case, &mut told, "dv", dv, |i, x| dv_bound(norm_chain, chain, terms.dv[i], x, case.dtype)).await?;
    let of_g = terms.dg.as_ref().ok_or("no dg")?;
    agrees(case, &mut told, "dg", dg, |i, x| dg_bound(norm_chain, chain, of_g[i], x)).await?;
    if case.optional("db").is_some() {
        agrees(case, &mut told, "db", dbias, |i, x| sum_bound(chain, terms.dbias[i], x, DType::F32)).await?;
    }
    Ok(told)
}
