//! Recording the gradients of a layer adapted by DoRA. All are products of `linear_backward`.
use super::norms::{gram, record_norms};
use super::record::{expect_hidden, record_hidden, rows_of};
use super::{DoraBackward, DoraGradients, DoraWeight};
use crate::arguments::{expect_dtype, expect_gain, expect_shape};
use crate::batch::statistics::{self, Factors};
use crate::binding::View;
use crate::linear::backward::epilogue::{GradientEpilogue, Grouping, OperandScale};
use crate::linear::backward::record::gradient_product;
use crate::linear::record::y_shape;
use crate::memory::{Memory, Scratch};
use crate::product::record::Operand;
use crate::{ArgumentError, DType, Eps, Error, Gpu, Gradients, Recorder, Tensor, vectors};

const OP: &str = "dora_backward";

impl Gpu {
    /// All gradients of [`DoraBackward`].
    ///
    /// # Errors
    /// As [`DoraBackward`].
    pub fn dora_backward(&self, backward: DoraBackward<'_>) -> Result<DoraGradients, Error> {
        let DoraBackward { x, weight, .. } = backward;
        weight.check(OP)?;
        let dx = self.zeros(x.shape(), x.dtype())?;
        let zeros = |shape: &[usize]| self.zeros(shape, DType::F32);
        let outs = &weight.base.shape()[..1];
        let (da, db) = (zeros(weight.a.shape())?, zeros(weight.b.shape())?);
        let (dmagnitude, dbias) = (zeros(outs)?, zeros(outs)?);
        let wanted = Gradients::default().dx(&dx).da(&da).db(&db).dg(&dmagnitude).dbias(&dbias);
        self.run(|ops| ops.dora_backward(backward, &wanted))?;
        Ok(DoraGradients { dx, da, db, dmagnitude, dbias })
    }
}

impl Recorder<'_, '_> {
    /// Records [`DoraBackward`] into the wanted ones of `gradients`: dx, da, db, dg of the magnitude, dbias.
    ///
    /// # Errors
    /// As [`DoraBackward`].
    pub fn dora_backward(&mut self, backward: DoraBackward<'_>, gradients: &Gradients<'_>) -> Result<(), Error> {
        check(self, &backward, gradients)?;
        let &Gradients { dx, da, db, dg, dbias, accumulate, .. } = gradients;
        // dx, dA and dB are added up from products: in f32.
        vectors::in_f32(self, (accumulate, true), [dx, da, db, dg, dbias], |ops, [dx, da, db, dg, dbias]| {
            record(ops, &backward, &Gradients { dx, da, db, dg, dbias, ..*gradients })
        })
    }
}

fn check(ops: &mut Recorder<'_, '_>, backward: &DoraBackward<'_>, gradients: &Gradients<'_>) -> Result<(), Error> {
    let &DoraBackward { x, weight, dy, u, hidden, through_norms, selection } = backward;
    weight.check(OP)?;
    let shape = y_shape(OP, x, weight.base)?;
    expect_shape(OP, "dy", dy, &shape)?;
    if let Some(u) = u {
        expect_dtype(OP, "u", u, DType::F32)?;
        expect_shape(OP, "u", u, &shape)?;
    }
    expect_hidden(OP, hidden, x, &weight)?;
    let &Gradients { dx, dv, dg, dbias, da, db, dalpha, dcondition, accumulate } = gradients;
    Gradients::expect_none(OP, &[("dv", dv), ("dalpha", dalpha), ("dcondition", dcondition)])?;
    let outs = weight.base.shape()[0];
    let shapes = [("dx", dx, x.shape()), ("da", da, weight.a.shape()), ("db", db, weight.b.shape())];
    for (arg, tensor, shape) in shapes.into_iter().chain([("dbias", dbias, &weight.base.shape()[..1])]) {
        tensor.map_or(Ok(()), |tensor| expect_shape(OP, arg, tensor, shape))?;
    }
    dg.map_or(Ok(()), |dg| expect_gain(OP, "dg", dg, &[outs, 1]))?;
    let of_adapter = da.is_some() || db.is_some();
    if u.is_none() && (dg.is_some() || (through_norms && of_adapter)) {
        return Err(ArgumentError::Missing { op: OP, arg: "u" }.into());
    }
    let (ins, rank) = (x.shape()[x.shape().len() - 1], weight.a.shape()[0]);
    let small = dy.products(rank) + x.products(rank);
    let through = if through_norms && of_adapter { 4 * weight.base.products(rank) } else { 0 };
    let of_dx = if dx.is_some() { 2 * dy.products(ins) } else { 0 };
    weight
        .arguments(OP)
        .input("x", x)
        .input("dy", dy)
        .input("u", u)
        .input("hidden", hidden)
        .output("dx", dx)
        .output_onto(accumulate, "da", da)
        .output_onto(accumulate, "db", db)
        .output_onto(accumulate, "dg", dg)
        .output_onto(accumulate, "dbias", dbias)
        .operations(of_dx + 4 * small + through + 3 * dy.len() as u64)
        .begin(ops)?;
    selection.check(OP, ops.facts().traits, false)
}

/// Parts of one scratch buffer, one after the other.
struct Parts {
    memory: Memory,
    next: u64,
}

/// From a part to the next: the largest alignment that a device may ask for.
const ALIGNMENT: u64 = 256;

fn part_bytes(rows: u64, columns: u64) -> u64 {
    (rows * columns * 4).next_multiple_of(ALIGNMENT)
}

impl Parts {
    fn take(&mut self, ops: &Recorder<'_, '_>, rows: u64, columns: u64) -> Tensor {
        let part = Tensor::in_scratch(ops.gpu(), self.memory.clone(), self.next, &[rows as usize, columns as usize]);
        self.next += part_bytes(rows, columns);
        part
    }
}

fn along(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, along_k: true }
}

fn across(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, along_k: false }
}

/// The gradients of checked arguments; all are f32.
fn record(ops: &mut Recorder<'_, '_>, backward: &DoraBackward<'_>, gradients: &Gradients<'_>) -> Result<(), Error> {
    let &DoraBackward { x, weight, dy, u, hidden, through_norms, selection } = backward;
    let DoraWeight { base, a, b, magnitude, scaling, eps, .. } = weight;
    let &Gradients { dx, da, db, dg, dbias, accumulate, .. } = gradients;
    let (outs, ins, rank) = weight.sizes();
    let batch = rows_of(x);
    let of_adapter = da.is_some() || db.is_some();
    let through = through_norms && of_adapter;

    // Of each row of W the factor m/n̂ and, through the norms, dm/d.
    let (of_dm, of_dbias) = (dg.map(View::of), dbias.map(View::of));
    let known = match (weight.norms, eps) {
        (Some(norms), Eps::None | Eps::InsideSqrt(_) | Eps::Clamp(_)) => norms.clone(),
        (_, eps) => {
            let memory = ops.scratch(Scratch::Norms, 3 * outs * 4)?;
            let found = Tensor::in_scratch(ops.gpu(), memory, 0, &[outs as usize]);
            let policy = if matches!(eps, Eps::After(_)) { Eps::None } else { eps };
            record_norms(ops, &DoraWeight { norms: None, ..weight }, policy, &found)?;
            found
        }
    };
    let factors = ops.scratch(Scratch::Factors, outs * 16)?;
    let out = View::scratch(factors.clone(), 4);
    let wanted = Factors { norms: View::of(&known), g: Some(magnitude), eps, out };
    let u = u.map(View::of).filter(|_| dg.is_some() || through);
    if through {
        statistics::column_dot_sums(ops, dy, u, of_dbias, of_dm, Some(wanted), accumulate)?;
    } else {
        statistics::column_dot_sums(ops, dy, u.filter(|_| dg.is_some()), of_dbias, of_dm, None, accumulate)?;
        statistics::column_dot_sums(ops, dy, None, None, None, Some(wanted), false)?;
    }
    if outs == 0 {
        // Nothing is summed up: zeros.
        let plain = GradientEpilogue::plain(false);
        if let Some(dx) = dx {
            let epilogue = GradientEpilogue { out: Some(dx), ..plain.clone() };
            gradient_product(ops, [along(dy), across(base)], [batch, ins, 0], selection, &epilogue)?;
        }
        if let Some(da) = da.filter(|_| !accumulate) {
            let epilogue = GradientEpilogue { out: Some(da), ..plain };
            gradient_product(ops, [across(a), across(a)], [rank, ins, 0], selection, &epilogue)?;
        }
        return Ok(());
    }

    let of_rows = GradientEpilogue { factors: Some(View::scratch(factors, 16)), ..GradientEpilogue::plain(accumulate) };
    let plain = GradientEpilogue::plain(true);
    let bytes = 2 * part_bytes(batch, rank) + 2 * part_bytes(outs, rank);
    let mut parts = Parts { memory: ops.scratch(Scratch::ActivationGradient, bytes)?, next: 0 };

    // P = s·(dy ⊙ c)·B
    let p = parts.take(ops, batch, rank);
    if dx.is_some() || da.is_some() {
        let epilogue = GradientEpilogue {
            scale: OperandScale::ByK,
            out: Some(&p),
            accumulate: false,
            factor: Some(scaling),
            ..of_rows.clone()
        };
        gradient_product(ops, [along(dy), across(b)], [batch, rank, outs], selection, &epilogue)?;
    }
    if let Some(dx) = dx {
        let epilogue =
            GradientEpilogue { scale: OperandScale::ByK, out: Some(dx), accumulate: false, ..of_rows.clone() };
        gradient_product(ops, [along(dy), across(base)], [batch, ins, outs], selection, &epilogue)?;
        let epilogue = GradientEpilogue { out: Some(dx), ..plain.clone() };
        gradient_product(ops, [along(&p), across(a)], [batch, ins, rank], selection, &epilogue)?;
    }
    if let Some(db) = db {
        let formed = parts.take(ops, batch, rank);
        let hidden = match hidden {
            Some(hidden) => hidden,
            None => {
                record_hidden(ops, x, &weight, &formed)?;
                &formed
            }
        };
        // s·W·Aᵀ; with the norm held constant its factors are 0.
        let projected = parts.take(ops, outs, rank);
        if through {
            let epilogue =
                GradientEpilogue { out: Some(&projected), factor: Some(scaling), ..GradientEpilogue::plain(false) };
            gradient_product(ops, [along(base), along(a)], [outs, rank, ins], selection, &epilogue)?;
            let gram = gram(ops, &weight)?;
            let factor = Some(scaling * scaling);
            let epilogue = GradientEpilogue { out: Some(&projected), factor, ..plain.clone() };
            gradient_product(ops, [along(b), along(&gram)], [outs, rank, rank], selection, &epilogue)?;
        }
        let v = Some(if through { &projected } else { b });
        let epilogue = GradientEpilogue { grouping: Grouping::Rows, v, out: Some(db), ..of_rows.clone() };
        gradient_product(ops, [across(dy), across(hidden)], [outs, rank, batch], selection, &epilogue)?;
    }
    if let Some(da) = da {
        let epilogue = GradientEpilogue { out: Some(da), ..GradientEpilogue::plain(accumulate) };
        gradient_product(ops, [across(&p), across(x)], [rank, ins, batch], selection, &epilogue)?;
        if through {
            // -c ⊙ (dm/d) ⊙ B: the correction of a sum of nothing.
            let share = parts.take(ops, outs, rank);
            let epilogue = GradientEpilogue {
                grouping: Grouping::Rows,
                v: Some(b),
                out: Some(&share),
                accumulate: false,
                ..of_rows
            };
            gradient_product(ops, [across(dy), across(x)], [outs, rank, 0], selection, &epilogue)?;
            let epilogue = GradientEpilogue { out: Some(da), factor: Some(scaling), ..plain.clone() };
            gradient_product(ops, [across(&share), across(base)], [rank, ins, outs], selection, &epilogue)?;
            let memory = ops.scratch(Scratch::Scales, rank * rank * 4)?;
            let square = Tensor::in_scratch(ops.gpu(), memory, 0, &[rank as usize; 2]);
            let factor = Some(scaling * scaling);
            let epilogue = GradientEpilogue { out: Some(&square), factor, ..GradientEpilogue::plain(false) };
            gradient_product(ops, [across(&share), across(b)], [rank, rank, outs], selection, &epilogue)?;
            let epilogue = GradientEpilogue { out: Some(da), ..plain };
            gradient_product(ops, [along(&square), across(a)], [rank, ins, rank], selection, &epilogue)?;
        }
    }
    Ok(())
}
