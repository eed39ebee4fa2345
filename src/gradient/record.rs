//! Recording the backward pass of a linear layer.
use super::Gradients;
use super::epilogue::{GradientEpilogue, Grouping, OperandScale};
use crate::arguments::{Arguments, expect_dtype, expect_gain, expect_shape};
use crate::batch::statistics::{self, Factors};
use crate::binding::View;
use crate::contract::{Layout, norms_shape};
use crate::linear;
use crate::linear::epilogue::{LinearEpilogue, NormSource};
use crate::memory::Scratch;
use crate::product::record::{Operand, Product, are_halves, multiply};
use crate::vectors;
use crate::weight::backward::{differentiable_norms, effective_norms};
use crate::{ArgumentError, Axis, DType, Error, Recorder, Tensor, Weight, WeightNorm, Write};
#[cfg(doc)]
use crate::{Eps, Gpu, LinearOptions};

const OP: &str = "linear_backward";

impl Recorder<'_, '_> {
    /// Records [`Gpu::linear_backward`] into the wanted ones of `gradients`.
    ///
    /// `u` from the forward pass ([`LinearOptions::u`]) is needed for dg and dv with kept axis 0 and the whole tensor.
    /// Norms that are known ([`WeightNorm::norms`], from [`LinearOptions::norms`]) are not computed again, but under
    /// [`Eps::After`], whose d is not among them.
    ///
    /// For kept axis 0, with known norms: one dispatch for dx, one for dv, one for dg and dbias together (two beyond a batch
    /// of 128), which also makes the factors of each norm that the other two want; dx alone takes one for them. A product
    /// whose sums are formed in pieces, as in [`Recorder::linear_into`], takes two, windows past the limit of a binding or a
    /// dispatch one more each. The whole tensor takes one or two more for dbias, kept axis 1 the product q besides. A dg or
    /// dbias that is not f32 takes one more, two with [`Write::Add`].
    ///
    /// # Errors
    /// As [`Gpu::linear_backward`]; [`ArgumentError::Shape`] if u is missing; [`ArgumentError::Alias`], [`ArgumentError::Overlap`],
    /// [`ArgumentError::Variant`].
    pub fn linear_backward_into<'a>(
        &mut self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        dy: &Tensor,
        u: Option<&Tensor>,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        let weight = weight.into();
        check_backward(self, x, weight, dy, u, gradients)?;
        let &Gradients { dg, dbias, write, .. } = gradients;
        vectors::in_f32(self, (write == Write::Add, true), [dg, dbias], |ops, [dg, dbias]| {
            record(ops, x, weight, dy, u, &Gradients { dg, dbias, ..*gradients })
        })
    }
}

/// The gradients of checked arguments; dg and dbias are f32.
fn record(
    ops: &mut Recorder<'_, '_>,
    x: &Tensor,
    weight: Weight<'_>,
    dy: &Tensor,
    u: Option<&Tensor>,
    gradients: &Gradients<'_>,
) -> Result<(), Error> {
    let sizes = Sizes::new(x, weight.v());
    let &Gradients { dx, dv, dg, dbias, write, .. } = gradients;
    let Some(norm) = weight.normalized() else {
        statistics::column_dot_sums(ops, dy, None, dbias.map(View::of), None, None, write)?;
        let epilogue = GradientEpilogue::plain(write);
        if let Some(dv) = dv {
            weight_product(ops, x, dy, &sizes, gradients, &GradientEpilogue { out: Some(dv), ..epilogue.clone() })?;
        }
        if let Some(dx) = dx {
            let epilogue = GradientEpilogue { out: Some(dx), add: false, ..epilogue };
            input_product(ops, dy, weight.v(), &sizes, gradients, &epilogue)?;
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
    let epilogue = GradientEpilogue { factors: Some(View::scratch(factors, 16)), ..GradientEpilogue::plain(write) };
    let input_scale = match norm.axis {
        Axis::Kept(0) => {
            statistics::column_dot_sums(ops, dy, u, dbias, dg, wanted, write)?;
            Some(OperandScale::ByK)
        }
        Axis::Whole => {
            statistics::column_dot_sums(ops, dy, None, dbias, None, None, write)?;
            statistics::column_dot_sums(ops, &dy.reshape(&[dy.len(), 1])?, u, None, dg, wanted, write)?;
            Some(OperandScale::Whole)
        }
        Axis::Kept(_) => {
            statistics::column_dot_sums(ops, dy, None, dbias, None, None, write)?;
            let effective = effective_norms(ops, norm, &known)?;
            let quotients = ops.scratch(Scratch::Scales, sizes.batch * sizes.ins * 4)?;
            let quotients = Tensor::in_scratch(ops.gpu(), quotients, 0, x.shape());
            input_product_of_columns(ops, dy, norm, effective, wants_dg.then_some(&quotients), &sizes, gradients)?;
            if wants_dg {
                statistics::column_dot_sums(ops, x, Some(View::of(&quotients)), None, dg, wanted, write)?;
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
        weight_product(ops, x, dy, &sizes, gradients, &epilogue)?;
    }
    if let (Some(dx), Some(scale)) = (dx, input_scale) {
        let epilogue = GradientEpilogue { scale, out: Some(dx), add: false, ..epilogue };
        input_product(ops, dy, norm.v, &sizes, gradients, &epilogue)?;
    }
    Ok(())
}

fn check_backward(
    ops: &mut Recorder<'_, '_>,
    x: &Tensor,
    weight: Weight<'_>,
    dy: &Tensor,
    u: Option<&Tensor>,
    gradients: &Gradients<'_>,
) -> Result<(), Error> {
    let v = weight.v();
    let y_shape = linear::y_shape(x, v)?;
    expect_shape(OP, "dy", dy, &y_shape)?;
    let &Gradients { dx, dv, dg, dbias, .. } = gradients;
    let normalized = weight.normalized();
    if let Some(weight) = normalized {
        weight.check(OP)?;
    }
    if let Some(u) = u {
        expect_dtype(OP, "u", u, DType::F32)?;
        expect_shape(OP, "u", u, &y_shape)?;
    }
    let needs_u = normalized.is_some_and(|w| w.axis != Axis::Kept(1)) && (dg.is_some() || dv.is_some());
    if needs_u && u.is_none() {
        return Err(ArgumentError::Missing { op: OP, arg: "u" }.into());
    }
    for (arg, tensor, shape) in [("dx", dx, x.shape()), ("dv", dv, v.shape()), ("dbias", dbias, &v.shape()[..1])] {
        if let Some(tensor) = tensor {
            expect_shape(OP, arg, tensor, shape)?;
        }
    }
    match (dg, normalized) {
        (Some(dg), Some(w)) => expect_gain(OP, "dg", dg, &norms_shape(v.shape(), w.axis))?,
        (Some(dg), None) => {
            let expected = "none: an ordinary weight has no gain".to_owned();
            return Err(ArgumentError::Shape { op: OP, arg: "dg", got: dg.shape().to_vec(), expected }.into());
        }
        (None, _) => {}
    }
    // What each gradient is made of. dv of a normalized weight takes dg, whether that is asked for or not.
    let of_inputs = normalized.is_some_and(|w| w.axis == Axis::Kept(1));
    let wants_dg = normalized.is_some() && (dg.is_some() || dv.is_some());
    let wants_product = dx.is_some() || (of_inputs && wants_dg);
    let reads_v = wants_product || (normalized.is_some() && dv.is_some());
    let reads_norms = normalized.is_some() && (wants_product || wants_dg);
    let onto = gradients.write == Write::Add;
    let products = u64::from(wants_product) + u64::from(dv.is_some());
    let sums = u64::from(dbias.is_some()) * dy.len() as u64
        + u64::from(wants_dg) * 2 * if of_inputs { x.len() } else { dy.len() } as u64;
    let norms = normalized.filter(|_| reads_norms).map_or(0, |w| w.norms_operations());
    Arguments::new(OP)
        .input_if(dv.is_some() || (of_inputs && wants_dg), "x", x)
        .input_if(reads_v, "weight", v)
        .input_if(wants_product || dv.is_some(), "g", normalized.and_then(|w| w.g))
        .input_if(reads_norms, "known norms", normalized.and_then(|w| w.norms))
        .input("dy", dy)
        .input_if(wants_dg && !of_inputs, "u", u)
        .output("dx", dx)
        .output_onto(onto, "dv", dv)
        .output_onto(onto, "dg", dg)
        .output_onto(onto, "dbias", dbias)
        .operations(products * 2 * x.products(v.shape()[0]) + sums + norms)
        .begin(ops)?;
    let cooperative = (dv.is_none() || are_halves([dy, x]))
        && (!wants_product || (are_halves([dy, v]) && (of_inputs || normalized.is_none())));
    gradients.selection().check(OP, ops.facts().traits, cooperative)
}

/// dyᵀ x with an epilogue.
fn weight_product(
    ops: &mut Recorder<'_, '_>,
    x: &Tensor,
    dy: &Tensor,
    sizes: &Sizes,
    gradients: &Gradients<'_>,
    epilogue: &GradientEpilogue<'_>,
) -> Result<(), Error> {
    let (a, b) = (Operand { tensor: dy, along_k: false }, Operand { tensor: x, along_k: false });
    gradient_product(ops, [a, b], [sizes.outs, sizes.ins, sizes.batch], gradients, epilogue)
}

/// dy · v with an epilogue.
fn input_product(
    ops: &mut Recorder<'_, '_>,
    dy: &Tensor,
    v: &Tensor,
    sizes: &Sizes,
    gradients: &Gradients<'_>,
    epilogue: &GradientEpilogue<'_>,
) -> Result<(), Error> {
    let (a, b) = (Operand { tensor: dy, along_k: true }, Operand { tensor: v, along_k: false });
    gradient_product(ops, [a, b], [sizes.batch, sizes.ins, sizes.outs], gradients, epilogue)
}

/// A · B with an epilogue: `rows` by `columns` sums of `depth` terms. Nothing, if there are none.
fn gradient_product(
    ops: &mut Recorder<'_, '_>,
    [a, b]: [Operand<'_>; 2],
    [rows, columns, depth]: [u64; 3],
    gradients: &Gradients<'_>,
    epilogue: &GradientEpilogue<'_>,
) -> Result<(), Error> {
    if rows * columns == 0 {
        return Ok(());
    }
    let (c_bytes, selection) = (epilogue.c_bytes(), gradients.selection());
    let epilogue = &GradientEpilogue { columns, ..epilogue.clone() };
    multiply(ops, &Product { a, b, c_bytes, rows, columns, depth, selection, epilogue })
}

/// Kept axis 1: q = dy·v, dx = g·(q/n̂) and `quotients` = q/n̂, by the epilogue of the forward product.
fn input_product_of_columns(
    ops: &mut Recorder<'_, '_>,
    dy: &Tensor,
    norm: WeightNorm<'_>,
    norms: View<'_>,
    quotients: Option<&Tensor>,
    sizes: &Sizes,
    gradients: &Gradients<'_>,
) -> Result<(), Error> {
    // Without dx the quotients are the product's own result.
    let (y, g, u) = match (gradients.dx, quotients) {
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
        policy: (0, 0.0),
        activation: crate::Activation::None,
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
            selection: gradients.selection(),
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
