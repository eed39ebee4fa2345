//! The tensors of the operators, and their calls.
use std::iter::repeat_n;

use weightnorm::half::{bf16, f16};
use weightnorm::{
    Axis, DType, Decompose, Error, Gpu, Gradients, Linear, LinearBackward, NormalizeBackward, Recorder, SetMember,
    Tensor, WeightNorm, WeightSet, norms_shape,
};

use super::case::{Operator, Weight};

/// All weights, each as often as there is one like it, with the tensors of the operator.
pub fn set(gpu: &Gpu, operator: Operator, weights: &[Weight]) -> Result<WeightSet, Error> {
    let all: Vec<&Weight> = weights.iter().flat_map(|w| repeat_n(w, w.names.len().max(1))).collect();
    let kept: Vec<Vec<usize>> = all.iter().map(|w| norms_shape(&w.shape, w.axis)).collect();
    let like_v: Vec<_> = all.iter().map(|w| (&w.shape[..], w.dtype)).collect();
    let per_norm: Vec<_> = kept.iter().map(|shape| (&shape[..], DType::F32)).collect();
    let like_v_if = |wanted: bool| gpu.tensors(if wanted { &like_v } else { &[] });
    let (v, out) = (gpu.tensors(&like_v)?, like_v_if(operator != Operator::RowNormsSet)?);
    let dw = like_v_if(operator == Operator::NormalizeBackwardSet)?;
    let (g, norms) = (gpu.tensors(&per_norm)?, gpu.tensors(&per_norm)?);
    v.iter().chain(&g).chain(&dw).try_for_each(|tensor| fill(gpu, tensor))?;
    let member = |i: usize| {
        let member = SetMember::new(WeightNorm::new(&v[i], &g[i]).axis(all[i].axis));
        match operator {
            Operator::RowNormsSet => member.norms(&norms[i]),
            Operator::NormalizeSet => member.w(&out[i]),
            _ => member.dw(&dw[i]).dv(&out[i]).dg(&norms[i]),
        }
    };
    gpu.weight_set(&(0..all.len()).map(member).collect::<Vec<_>>())
}

/// The tensors of a call.
pub struct Call {
    operator: Operator,
    axis: Axis,
    v: Tensor,
    /// Of v's shape: where the result goes.
    out: Tensor,
    g: Tensor,
    norms: Tensor,
    dg: Tensor,
    /// For the operator that takes it.
    dw: Option<Tensor>,
    product: Option<Sides>,
}

/// Those of a product.
struct Sides {
    x: Tensor,
    dx: Tensor,
    y: Tensor,
    u: Tensor,
    bias: Tensor,
    dbias: Tensor,
}

impl Call {
    pub fn new(gpu: &Gpu, operator: Operator, weight: &Weight, batch: usize) -> Result<Call, Error> {
        let Weight { shape, axis, dtype, .. } = weight;
        let kept = norms_shape(shape, *axis);
        let product = match shape[..] {
            [outs, ins] if operator.is_product() => Some(Sides {
                x: filled(gpu, &[batch, ins], *dtype)?,
                dx: gpu.zeros(&[batch, ins], *dtype)?,
                y: filled(gpu, &[batch, outs], *dtype)?,
                u: filled(gpu, &[batch, outs], DType::F32)?,
                bias: filled(gpu, &[outs], DType::F32)?,
                dbias: gpu.zeros(&[outs], DType::F32)?,
            }),
            _ => None,
        };
        let dw = (operator == Operator::NormalizeBackward).then(|| filled(gpu, shape, *dtype)).transpose()?;
        Ok(Call {
            operator,
            axis: *axis,
            v: filled(gpu, shape, *dtype)?,
            out: gpu.zeros(shape, *dtype)?,
            g: filled(gpu, &kept, DType::F32)?,
            norms: filled(gpu, &kept, DType::F32)?,
            dg: gpu.zeros(&kept, DType::F32)?,
            dw,
            product,
        })
    }

    pub fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let Call { v, out, g, norms, dg, axis, .. } = self;
        let weight = WeightNorm::new(v, g).axis(*axis);
        let u = |u| (*axis != Axis::Kept(1)).then_some(u);
        match (self.operator, &self.product, &self.dw) {
            (Operator::RowNorms, ..) => ops.row_norms(WeightNorm::unit(v).axis(*axis), dg),
            (Operator::Normalize, ..) => ops.normalize(weight, out),
            (Operator::Split, ..) => ops.decompose(Decompose::new(v).axis(*axis), out, dg),
            (Operator::NormalizeBackward, _, Some(dw)) => {
                ops.normalize_backward(NormalizeBackward::new(dw, weight), &Gradients::default().dv(out).dg(dg))
            }
            (Operator::Linear, Some(Sides { x, y, bias, .. }), _) => ops.linear(Linear::new(x, weight).bias(bias), y),
            (Operator::LinearSaved, Some(sides), _) => {
                let Sides { x, y, bias, .. } = sides;
                ops.linear(Linear::new(x, weight).bias(bias).norms(norms).u(u(&sides.u)), y)
            }
            (Operator::LinearBackward, Some(sides), _) => {
                let Sides { x, dx, y, dbias, .. } = sides;
                let gradients = Gradients::default().dx(dx).dv(out).dg(dg).dbias(dbias);
                ops.linear_backward(LinearBackward::new(x, weight.norms(norms), y).u(u(&sides.u)), &gradients)
            }
            _ => Ok(()),
        }
    }
}

/// A tensor of ordinary numbers.
fn filled(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
    let tensor = gpu.zeros(shape, dtype)?;
    fill(gpu, &tensor)?;
    Ok(tensor)
}

/// Puts ordinary numbers there: zeros and subnormal ones would take the rare ways.
fn fill(gpu: &Gpu, tensor: &Tensor) -> Result<(), Error> {
    let count = tensor.len().next_multiple_of(2).min(1 << 18) as u32;
    let numbers = (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 + 0.25);
    let piece: Vec<u8> = match tensor.dtype() {
        DType::F32 => numbers.flat_map(f32::to_ne_bytes).collect(),
        DType::F16 => numbers.flat_map(|x| f16::from_f32(x).to_ne_bytes()).collect(),
        DType::Bf16 => numbers.flat_map(|x| bf16::from_f32(x).to_ne_bytes()).collect(),
    };
    // A buffer of the crate's own is as long as whole words want it.
    let end = (tensor.len() as u64 * tensor.dtype().size()).next_multiple_of(4);
    for start in (0..end).step_by(piece.len().max(1)) {
        let length = (end - start).min(piece.len() as u64) as usize;
        gpu.queue().write_buffer(tensor.buffer()?, tensor.offset() + start, &piece[..length]);
        // What is not submitted stays in memory of the host.
        gpu.queue().submit([]);
    }
    gpu.check()
}
