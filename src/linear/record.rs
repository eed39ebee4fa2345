//! Recording a linear layer. Shader: `product/linear.wgsl`.
use super::epilogue::{LinearEpilogue, NormSource};
use super::{Linear, Saved};
#[cfg(doc)]
use crate::LinearBackward;
use crate::arguments::{Arguments, expect_dtype, expect_per_norm, expect_shape};
use crate::binding::View;
use crate::contract::norms_shape;
use crate::product::record::{Operand, Product, are_halves, multiply};
use crate::weight::job::NormOutput;
use crate::weight::norms::{norms_into, scales};
use crate::weight::place::Region;
use crate::{Activation, ArgumentError, Axis, DType, Error, Gpu, Recorder, Tensor, WeightNorm};

const OP: &str = "linear";

impl Gpu {
    /// A linear layer: y of [`Linear`], in x's storage type.
    ///
    /// # Errors
    /// As [`Linear`].
    pub fn linear(&self, linear: Linear<'_>) -> Result<Tensor, Error> {
        let y = self.zeros_of("linear: y", &y_shape(OP, linear.x, linear.weight.v())?, linear.x.dtype())?;
        self.run(|ops| ops.linear(linear, &y))?;
        Ok(y)
    }

    /// [`Gpu::linear`] for training: y, and what [`LinearBackward::saved`] wants of the forward pass. The dispatches
    /// are the same: the norms and u come out of the product.
    ///
    /// # Errors
    /// As [`Linear`].
    pub fn linear_saved(&self, linear: Linear<'_>) -> Result<(Tensor, Saved), Error> {
        let (x, v) = (linear.x, linear.weight.v());
        let y = self.zeros_of("linear_saved: y", &y_shape(OP, x, v)?, x.dtype())?;
        let normalized = linear.weight.normalized();
        let norms = |w: WeightNorm<'_>| self.zeros(&norms_shape(w.v.shape(), w.axis), DType::F32);
        let norms = normalized.map(norms).transpose()?;
        let activation = linear.activation;
        let has_u = activation != Activation::None || normalized.is_some_and(|w| w.axis != Axis::Kept(1));
        let u = if has_u { Some(self.zeros(y.shape(), DType::F32)?) } else { None };
        self.run(|ops| ops.linear(linear.norms(norms.as_ref()).u(u.as_ref()), &y))?;
        let bias = linear.bias.filter(|_| activation != Activation::None).cloned();
        Ok((y, Saved { norms, u, bias, activation }))
    }
}

impl Recorder<'_, '_> {
    /// Records [`Linear`] into `y`: `[.., out_features]`, any storage type.
    ///
    /// # Errors
    /// As [`Linear`].
    pub fn linear(&mut self, linear: Linear<'_>, y: &Tensor) -> Result<(), Error> {
        recorded(self, OP, &linear, y)
    }
}

/// A layer under the name of its operator.
pub(crate) fn recorded(
    ops: &mut Recorder<'_, '_>,
    op: &'static str,
    linear: &Linear<'_>,
    y: &Tensor,
) -> Result<(), Error> {
    check(ops, op, linear, y)?;
    record(ops, linear, y)
}

/// `[.., in_features]` and `[out_features, in_features]` to `[.., out_features]`.
pub(crate) fn y_shape(op: &'static str, x: &Tensor, v: &Tensor) -> Result<Vec<usize>, Error> {
    let &[outs, ins] = v.shape() else {
        let expected = "[out_features, in_features]".to_owned();
        return Err(ArgumentError::Shape { op, arg: "weight", got: v.shape().to_vec(), expected }.into());
    };
    match x.shape() {
        [batch @ .., last] if *last == ins => Ok([batch, &[outs]].concat()),
        _ => {
            Err(ArgumentError::Shape { op, arg: "x", got: x.shape().to_vec(), expected: format!("[.., {ins}]") }.into())
        }
    }
}

/// A layer whose arguments are checked.
pub(crate) fn record(ops: &mut Recorder<'_, '_>, linear: &Linear<'_>, y: &Tensor) -> Result<(), Error> {
    let &Linear { x, weight, bias, activation, norms, u, unit_rows, selection } = linear;
    let v = weight.v();
    let (outs, ins) = (v.shape()[0] as u64, v.shape()[1] as u64);
    let batch = y.shape()[..y.shape().len() - 1].iter().product::<usize>() as u64;
    let normalized = weight.normalized();

    let norm = match normalized {
        // Without anything to sum up, w plays no part in y.
        _ if batch * outs * ins == 0 => NormSource::Plain,
        None => NormSource::Plain,
        Some(weight) => match (weight.axis, weight.norms) {
            (Axis::Kept(0), None) => NormSource::Fused,
            (Axis::Kept(0), Some(_)) => NormSource::Given,
            (Axis::Whole, _) => NormSource::Whole,
            (Axis::Kept(_), _) => NormSource::In,
        },
    };
    if let (Some(weight), Some(norms), NormSource::Plain | NormSource::Given) = (normalized, norms, norm) {
        norms_into(ops, weight, NormOutput::Norms, Region::of(norms))?;
    }
    if batch * outs == 0 {
        return Ok(());
    }
    let norms_in = match (normalized, norm) {
        (Some(weight), NormSource::Given) => weight.norms.map(View::of),
        (Some(weight), NormSource::Whole) => Some(scales(ops, weight, NormOutput::Wide, norms)?),
        (Some(weight), NormSource::In) => Some(scales(ops, weight, NormOutput::Scales, norms)?),
        _ => None,
    };
    let epilogue = LinearEpilogue {
        norm,
        norms_in,
        // On the contraction the gain is part of the scales.
        g: normalized.and_then(|w| w.g).filter(|_| norm != NormSource::In && norm != NormSource::Plain),
        bias,
        y,
        norms_out: norms.filter(|_| norm == NormSource::Fused),
        u,
        onto: None,
        policy: normalized.map_or((0, 0.0), |w| (w.eps.code(), w.eps.value())),
        activation,
        // Without anything to sum up, x plays no part in y either.
        unit_rows: unit_rows && norm != NormSource::Plain,
        columns: outs,
    };
    multiply(
        ops,
        &Product {
            a: Operand { tensor: x, along_k: true },
            b: Operand { tensor: v, along_k: true },
            c_bytes: if u.is_some() { 4 } else { y.dtype().size() },
            rows: batch,
            columns: outs,
            depth: ins,
            selection,
            epilogue: &epilogue,
        },
    )
}

fn check(ops: &mut Recorder<'_, '_>, op: &'static str, linear: &Linear<'_>, y: &Tensor) -> Result<(), Error> {
    let &Linear { x, weight, bias, activation, norms, u, unit_rows, selection } = linear;
    let v = weight.v();
    let shape = y_shape(op, x, v)?;
    expect_shape(op, "y", y, &shape)?;
    activation.check(op)?;
    if let Some(weight) = weight.normalized() {
        weight.check(op)?;
    }
    if let Some(bias) = bias {
        expect_shape(op, "bias", bias, &v.shape()[..1])?;
    }
    let normalized = weight.normalized();
    if let Some(norms) = norms {
        let Some(weight) = normalized else {
            let expected = "a weight with norms".to_owned();
            return Err(ArgumentError::Shape { op, arg: "norms", got: norms.shape().to_vec(), expected }.into());
        };
        expect_per_norm(op, "norms", norms, &norms_shape(v.shape(), weight.axis))?;
    }
    if let Some(u) = u {
        expect_dtype(op, "u", u, DType::F32)?;
        expect_shape(op, "u", u, &shape)?;
    }
    Arguments::new(op)
        .input("x", x)
        .input("weight", v)
        .input("g", normalized.and_then(|w| w.g))
        .input("known norms", normalized.and_then(|w| w.norms))
        .input("bias", bias)
        .output("y", y)
        .output("norms", norms)
        .output("u", u)
        .operations(
            2 * x.products(v.shape()[0])
                + normalized.map_or(0, |w| w.norms_operations())
                + if unit_rows { 2 * x.len() as u64 } else { 0 },
        )
        .begin(ops)?;
    let scaled = normalized.is_some_and(|w| w.axis == Axis::Kept(1));
    selection.check(op, ops.facts().traits, are_halves([x, v]) && !scaled && !unit_rows)
}
