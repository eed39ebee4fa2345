//! Recording the backward pass of a linear layer. Shader: `product/gradient.wgsl`.
use super::epilogue::{GradientEpilogue, Grouping, OperandScale};
use super::{LinearBackward, LinearGradients};
use crate::activation::gradient::ActivationGradient;
use crate::arguments::{Arguments, expect_dtype, expect_gain, expect_shape};
use crate::batch::statistics::{self, Factors};
use crate::binding::View;
use crate::contract::{Layout, norms_shape};
use crate::linear::epilogue::{LinearEpilogue, NormSource};
use crate::linear::record::y_shape;
use crate::memory::Scratch;
use crate::product::record::{Operand, Product, are_halves, multiply};
use crate::product::selection::Selection;
use crate::vectors;
use crate::weight::backward::{differentiable_norms, effective_norms};
use crate::{Activation, ArgumentError, Axis, DType, Error, Gpu, Gradients, Recorder, Tensor, WeightNorm};

const OP: &str = "linear_backward";

impl Gpu {
    /// All gradients of a linear layer: see [`LinearBackward`].
    ///
    /// # Errors
    /// As [`LinearBackward`].
    pub fn linear_backward(&self, backward: LinearBackward<'_>) -> Result<LinearGradients, Error> {
        let (x, v) = (backward.x, backward.weight.v());
        let dx = self.zeros(x.shape(), x.dtype())?;
        let dv = self.zeros(v.shape(), v.dtype())?;
        let dg = |w: WeightNorm<'_>| self.zeros(&norms_shape(w.v.shape(), w.axis), DType::F32);
        let dg = backward.weight.normalized().map(dg).transpose()?;
        let dbias = self.zeros(&v.shape()[..v.shape().len().min(1)], DType::F32)?;
        let gradients = Gradients::default().dx(&dx).dv(&dv).dg(dg.as_ref()).dbias(&dbias);
        self.run(|ops| ops.linear_backward(backward, &gradients))?;
        Ok(LinearGradients { dx, dv, dg, dbias })
    }
}

impl Recorder<'_, '_> {
    /// Records [`LinearBackward`] into the wanted ones of `gradients`.
    ///
    /// # Errors
    /// As [`LinearBackward`].
    pub fn linear_backward(&mut self, backward: LinearBackward<'_>, gradients: &Gradients<'_>) -> Result<(), Error> {
        check(self, OP, &backward, gradients)?;
        let &Gradients { dg, dbias, accumulate, .. } = gradients;
        let dz = match backward.gradient_of_activation().filter(|_| gradients.any()) {
            Some(gradient) => Some(gradient.record_into_scratch(self)?),
            None => None,
        };
        // All that follows is linear: dz stands for dy.
        let backward = LinearBackward { dy: dz.as_ref().unwrap_or(backward.dy), ..backward };
        vectors::in_f32(self, (accumulate, true), [dg, dbias], |ops, [dg, dbias]| {
            record(ops, &backward, &Gradients { dg, dbias, ..*gradients })
        })
    }
}

impl<'a> LinearBackward<'a> {
    /// dz of dy, at z = g·u + bias; none without an activation. For kept axis 1 and plain weights the gain is in u.
    fn gradient_of_activation(&self) -> Option<ActivationGradient<'a>> {
        let &LinearBackward { weight, dy, u, activation, bias, .. } = self;
        let g = weight.normalized().filter(|w| w.axis != Axis::Kept(1)).and_then(|w| w.g);
        let gradient = ActivationGradient { g, bias, ..ActivationGradient::new(activation, u, dy) };
        Some(gradient).filter(|_| activation != Activation::None)
    }
}

/// The gradients of checked arguments without an activation; dg and dbias are f32. `unit_rows` is the caller's: x and
/// dx are those of the product.
pub(crate) fn record(
    ops: &mut Recorder<'_, '_>,
    backward: &LinearBackward<'_>,
    gradients: &Gradients<'_>,
) -> Result<(), Error> {
    let &LinearBackward { x, weight, dy, u, selection, .. } = backward;
    let sizes = Sizes::new(x, weight.v());
    let &Gradients { dx, dv, dg, dbias, accumulate, .. } = gradients;
    let Some(norm) = weight.normalized() else {
        statistics::column_dot_sums(ops, dy, None, dbias.map(View::of), None, None, accumulate)?;
        let epilogue = GradientEpilogue::plain(accumulate);
        if let Some(dv) = dv {
            weight_product(ops, x, dy, &sizes, selection, &GradientEpilogue { out: Some(dv), ..epilogue.clone() })?;
        }
        if let Some(dx) = dx {
            let epilogue = GradientEpilogue { out: Some(dx), accumulate: false, ..epilogue };
            input_product(ops, dy, weight.v(), &sizes, selection, &epilogue)?;
        }
        return Ok(());
    };
    let known = differentiable_norms(ops, norm)?;
    let wants_dg = dg.is_some() || dv.is_some();
    let (u, dg, dbias) = (u.map(View::of).filter(|_| wants_dg), dg.map(View::of), dbias.map(View::of));
    let kept = Layout::new(norm.v.shape(), norm.axis)?.wide().kept;
    let factors = ops.scratch(Scratch::Factors, kept * 16)?;
    let (norms, g, eps) = (known.clone(), norm.g, norm.eps);
    // The products want the factors of each norm, which the reductions over the batch make of dg.
    let wanted = Some(Factors { norms, g, eps, out: View::scratch(factors.clone(), 4) });
    let wanted = wanted.filter(|_| dv.is_some() || (dx.is_some() && norm.axis != Axis::Kept(1)));
    let epilogue =
        GradientEpilogue { factors: Some(View::scratch(factors, 16)), ..GradientEpilogue::plain(accumulate) };
    let input_scale = match norm.axis {
        Axis::Kept(0) => {
            statistics::column_dot_sums(ops, dy, u, dbias, dg, wanted, accumulate)?;
            Some(OperandScale::ByK)
        }
        Axis::Whole => {
            statistics::column_dot_sums(ops, dy, None, dbias, None, None, accumulate)?;
            statistics::column_dot_sums(ops, &dy.reshape(&[dy.len(), 1])?, u, None, dg, wanted, accumulate)?;
            Some(OperandScale::Whole)
        }
        Axis::Kept(_) => {
            statistics::column_dot_sums(ops, dy, None, dbias, None, None, accumulate)?;
            let effective = effective_norms(ops, norm, &known)?;
            let quotients = ops.scratch(Scratch::Scales, sizes.batch * sizes.ins * 4)?;
            let quotients = Tensor::in_scratch(ops.gpu(), quotients, 0, x.shape());
            input_product_of_columns(ops, backward, norm, effective, wants_dg.then_some(&quotients), dx)?;
            if wants_dg {
                statistics::column_dot_sums(ops, x, Some(View::of(&quotients)), None, dg, wanted, accumulate)?;
            }
            None
        }
    };
    if let Some(dv) = dv {
        let grouping = match norm.axis {
            Axis::Kept(0) => Grouping::Rows,
            Axis::Kept(_) => Grouping::Columns,
            Axis::Whole => Grouping::Whole,
        };
        let epilogue = GradientEpilogue { grouping, v: Some(norm.v), out: Some(dv), ..epilogue.clone() };
        weight_product(ops, x, dy, &sizes, selection, &epilogue)?;
    }
    if let (Some(dx), Some(scale)) = (dx, input_scale) {
        let epilogue = GradientEpilogue { scale, out: Some(dx), accumulate: false, ..epilogue };
        input_product(ops, dy, norm.v, &sizes, selection, &epilogue)?;
    }
    Ok(())
}

pub(crate) fn check(
    ops: &mut Recorder<'_, '_>,
    op: &'static str,
    backward: &LinearBackward<'_>,
    gradients: &Gradients<'_>,
) -> Result<(), Error> {
    let &LinearBackward { x, weight, dy, u, activation, bias, unit_rows, selection } = backward;
    let v = weight.v();
    let y_shape = y_shape(op, x, v)?;
    expect_shape(op, "dy", dy, &y_shape)?;
    activation.check(op)?;
    if let Some(bias) = bias {
        expect_shape(op, "bias", bias, &v.shape()[..1])?;
    }
    let &Gradients { dx, dv, dg, dbias, .. } = gradients;
    gradients.expect_none_of_conv(op)?;
    let normalized = weight.normalized();
    if let Some(weight) = normalized {
        weight.check(op)?;
    }
    if let Some(u) = u {
        expect_dtype(op, "u", u, DType::F32)?;
        expect_shape(op, "u", u, &y_shape)?;
    }
    let activated = activation != Activation::None && [dx, dv, dg, dbias].iter().any(Option::is_some);
    let needs_u = activated || normalized.is_some_and(|w| w.axis != Axis::Kept(1)) && (dg.is_some() || dv.is_some());
    if needs_u && u.is_none() {
        return Err(ArgumentError::Missing { op, arg: "u" }.into());
    }
    for (arg, tensor, shape) in [("dx", dx, x.shape()), ("dv", dv, v.shape()), ("dbias", dbias, &v.shape()[..1])] {
        if let Some(tensor) = tensor {
            expect_shape(op, arg, tensor, shape)?;
        }
    }
    match (dg, normalized) {
        (Some(dg), Some(w)) => expect_gain(op, "dg", dg, &norms_shape(v.shape(), w.axis))?,
        (Some(dg), None) => {
            let expected = "none: an ordinary weight has no gain".to_owned();
            return Err(ArgumentError::Shape { op, arg: "dg", got: dg.shape().to_vec(), expected }.into());
        }
        (None, _) => {}
    }
    // What each gradient is made of. dv of a normalized weight takes dg, whether that is asked for or not.
    let of_inputs = normalized.is_some_and(|w| w.axis == Axis::Kept(1));
    let wants_dg = normalized.is_some() && (dg.is_some() || dv.is_some());
    let wants_product = dx.is_some() || (of_inputs && wants_dg);
    let reads_v = wants_product || (normalized.is_some() && dv.is_some());
    let reads_norms = normalized.is_some() && (wants_product || wants_dg);
    let products = u64::from(wants_product) + u64::from(dv.is_some());
    let sums = (u64::from(dbias.is_some()) + u64::from(activated)) * dy.len() as u64
        + u64::from(wants_dg) * 2 * if of_inputs { x.len() } else { dy.len() } as u64;
    let norms = normalized.filter(|_| reads_norms).map_or(0, |w| w.norms_operations());
    let normalizing = match unit_rows {
        true => (u64::from(dv.is_some()) * 3 + u64::from(dx.is_some()) * 7) * x.len() as u64,
        false => 0,
    };
    Arguments::new(op)
        .input_if(dv.is_some() || (of_inputs && wants_dg) || (unit_rows && dx.is_some()), "x", x)
        .input_if(reads_v, "weight", v)
        .input_if(wants_product || dv.is_some() || (activated && !of_inputs), "g", normalized.and_then(|w| w.g))
        .input_if(reads_norms, "known norms", normalized.and_then(|w| w.norms))
        .input("dy", dy)
        .input_if(activated || (wants_dg && !of_inputs), "u", u)
        .input_if(activated, "bias", bias)
        .output("dx", dx)
        .output_onto(gradients.accumulate, "dv", dv)
        .output_onto(gradients.accumulate, "dg", dg)
        .output_onto(gradients.accumulate, "dbias", dbias)
        .operations(products * 2 * x.products(v.shape()[0]) + sums + norms + normalizing)
        .begin(ops)?;
    let cooperative = (dv.is_none() || (are_halves([dy, x]) && !unit_rows))
        && (!wants_product || (are_halves([dy, v]) && (of_inputs || normalized.is_none())));
    selection.check(op, ops.facts().traits, cooperative)
}

/// dyᵀ x with an epilogue.
fn weight_product(
    ops: &mut Recorder<'_, '_>,
    x: &Tensor,
    dy: &Tensor,
    sizes: &Sizes,
    selection: Selection,
    epilogue: &GradientEpilogue<'_>,
) -> Result<(), Error> {
    let (a, b) = (Operand { tensor: dy, along_k: false }, Operand { tensor: x, along_k: false });
    gradient_product(ops, [a, b], [sizes.outs, sizes.ins, sizes.batch], selection, epilogue)
}

/// dy · v with an epilogue.
fn input_product(
    ops: &mut Recorder<'_, '_>,
    dy: &Tensor,
    v: &Tensor,
    sizes: &Sizes,
    selection: Selection,
    epilogue: &GradientEpilogue<'_>,
) -> Result<(), Error> {
    let (a, b) = (Operand { tensor: dy, along_k: true }, Operand { tensor: v, along_k: false });
    gradient_product(ops, [a, b], [sizes.batch, sizes.ins, sizes.outs], selection, epilogue)
}

/// A · B with an epilogue: `rows` by `columns` sums of `depth` terms. Nothing, if there are none.
pub(crate) fn gradient_product(
    ops: &mut Recorder<'_, '_>,
    [a, b]: [Operand<'_>; 2],
    [rows, columns, depth]: [u64; 3],
    selection: Selection,
    epilogue: &GradientEpilogue<'_>,
) -> Result<(), Error> {
    if rows * columns == 0 {
        return Ok(());
    }
    let c_bytes = epilogue.c_bytes();
    let epilogue = &GradientEpilogue { columns, ..epilogue.clone() };
    multiply(ops, &Product { a, b, c_bytes, rows, columns, depth, selection, epilogue })
}

/// Kept axis 1: q = dy·v, dx = g·(q/n̂) and `quotients` = q/n̂, by the epilogue of the forward product.
fn input_product_of_columns(
    ops: &mut Recorder<'_, '_>,
    backward: &LinearBackward<'_>,
    norm: WeightNorm<'_>,
    norms: View<'_>,
    quotients: Option<&Tensor>,
    dx: Option<&Tensor>,
) -> Result<(), Error> {
    let &LinearBackward { x, dy, selection, .. } = backward;
    let sizes = Sizes::new(x, norm.v);
    // Without dx the quotients are the product's own result.
    let (y, g, u) = match (dx, quotients) {
        (Some(dx), quotients) => (dx, norm.g, quotients),
        (None, Some(quotients)) => (quotients, None, None),
        (None, None) => return Ok(()),
    };
    if sizes.batch * sizes.ins == 0 {
        return Ok(());
    }
    let epilogue = LinearEpilogue {
        norm: NormSource::Given,
        norms_in: Some(norms),
        g,
        bias: None,
        y,
        norms_out: None,
        u,
        onto: None,
        policy: (0, 0.0),
        activation: Activation::None,
        unit_rows: false,
        columns: sizes.ins,
    };
    multiply(
        ops,
        &Product {
            a: Operand { tensor: dy, along_k: true },
            b: Operand { tensor: norm.v, along_k: false },
            c_bytes: if u.is_some() { 4 } else { y.dtype().size() },
            rows: sizes.batch,
            columns: sizes.ins,
            depth: sizes.outs,
            selection,
            epilogue: &epilogue,
        },
    )
}

/// The sizes of a linear layer.
struct Sizes {
    batch: u64,
    outs: u64,
    ins: u64,
}

impl Sizes {
    /// Of x `[.., ins]` and v `[outs, ins]`, which are checked.
    fn new(x: &Tensor, v: &Tensor) -> Sizes {
        let batch = x.shape()[..x.shape().len() - 1].iter().product::<usize>() as u64;
        Sizes { batch, outs: v.shape()[0] as u64, ins: v.shape()[1] as u64 }
    }
}
