//! Recording a layer adapted by DoRA, its norms, and the ordinary weight that it is.
use super::norms::record_norms;
use super::{Dora, DoraSaved, DoraWeight};
use crate::arguments::{Arguments, expect_dtype, expect_gain, expect_per_norm, expect_shape};
use crate::binding::View;
use crate::contract::Range;
use crate::linear::backward::epilogue::GradientEpilogue;
use crate::linear::backward::record::gradient_product;
use crate::linear::epilogue::{LinearEpilogue, NormSource};
use crate::linear::record::{record as record_linear, y_shape};
use crate::memory::Scratch;
use crate::product::record::{Operand, Product, multiply};
use crate::product::selection::Selection;
use crate::weight::rescale::copy;
use crate::{Activation, ArgumentError, DType, Error, Gpu, Linear, Recorder, Tensor, Weight, WeightNorm};

const OP: &str = "dora";

impl Gpu {
    /// y of [`Dora`], in x's storage type.
    ///
    /// # Errors
    /// As [`Dora`].
    pub fn dora(&self, dora: Dora<'_>) -> Result<Tensor, Error> {
        let y = self.zeros_of("dora: y", &y_shape(OP, dora.x, dora.weight.base)?, dora.x.dtype())?;
        self.run(|ops| ops.dora(dora, &y))?;
        Ok(y)
    }

    /// [`Gpu::dora`] for training: y, and what the backward pass wants of the forward pass.
    ///
    /// # Errors
    /// As [`Dora`].
    pub fn dora_saved(&self, dora: Dora<'_>) -> Result<(Tensor, DoraSaved), Error> {
        dora.weight.check(OP)?;
        let shape = y_shape(OP, dora.x, dora.weight.base)?;
        let (batch, rank) = (&shape[..shape.len() - 1], dora.weight.a.shape()[0]);
        let y = self.zeros_of("dora_saved: y", &shape, dora.x.dtype())?;
        let norms = self.zeros(&dora.weight.base.shape()[..1], DType::F32)?;
        let u = self.zeros(&shape, DType::F32)?;
        let hidden = self.zeros(&[batch, &[rank]].concat(), DType::F32)?;
        self.run(|ops| ops.dora(dora.norms(&norms).u(&u).hidden(&hidden), &y))?;
        Ok((y, DoraSaved { norms, u, hidden }))
    }

    /// The effective norms n̂ of a [`DoraWeight`], `[out_features]`, for [`DoraWeight::norms`].
    ///
    /// # Errors
    /// As [`Dora`]; [`ArgumentError::KnownNorms`].
    pub fn dora_norms(&self, weight: DoraWeight<'_>) -> Result<Tensor, Error> {
        weight.check("dora_norms")?;
        let norms = self.zeros(&weight.base.shape()[..1], DType::F32)?;
        self.run(|ops| ops.dora_norms(weight, &norms))?;
        Ok(norms)
    }

    /// The ordinary weight w of a [`DoraWeight`], in W0's storage type.
    ///
    /// # Errors
    /// As [`Recorder::dora_merge`].
    pub fn dora_merge(&self, weight: DoraWeight<'_>) -> Result<Tensor, Error> {
        let w = self.zeros(weight.base.shape(), weight.base.dtype())?;
        self.run(|ops| ops.dora_merge(weight, &w))?;
        Ok(w)
    }
}

impl Recorder<'_, '_> {
    /// Records [`Dora`] into `y`: `[.., out_features]`, any storage type.
    ///
    /// # Errors
    /// As [`Dora`].
    pub fn dora(&mut self, dora: Dora<'_>, y: &Tensor) -> Result<(), Error> {
        check(self, &dora, y)?;
        record(self, &dora, y)
    }

    /// Records [`Gpu::dora_norms`] into `norms`: f32, shaped as the magnitude or flat.
    ///
    /// # Errors
    /// As [`Gpu::dora_norms`].
    pub fn dora_norms(&mut self, weight: DoraWeight<'_>, norms: &Tensor) -> Result<(), Error> {
        const OP: &str = "dora_norms";
        weight.check(OP)?;
        if weight.norms.is_some() {
            return Err(ArgumentError::KnownNorms { op: OP }.into());
        }
        expect_per_norm(OP, "norms", norms, &[weight.base.shape()[0], 1])?;
        weight.arguments(OP).output("norms", norms).operations(weight.norms_operations()).begin(self)?;
        record_norms(self, &weight, weight.eps, norms)
    }

    /// Records the ordinary weight w = m·W/n̂ of a [`DoraWeight`] into `w`: W0's shape, any storage type. Norms are
    /// those of W as it is formed here; known ones are not read. W lies in w, or in scratch memory where that is not
    /// f32. Three dispatches or more.
    ///
    /// # Errors
    /// As [`Dora`].
    pub fn dora_merge(&mut self, weight: DoraWeight<'_>, w: &Tensor) -> Result<(), Error> {
        const OP: &str = "dora_merge";
        let weight = DoraWeight { norms: None, base_norms: None, ..weight };
        weight.check(OP)?;
        let DoraWeight { base, a, b, magnitude, scaling, eps, .. } = weight;
        expect_shape(OP, "w", w, base.shape())?;
        let (outs, ins, rank) = weight.sizes();
        weight.arguments(OP).output("w", w).operations((2 * rank + 4) * outs * ins).begin(self)?;
        if w.is_empty() {
            return Ok(());
        }
        let in_scratch = match w.dtype() {
            DType::F32 => None,
            _ => {
                let memory = self.scratch(Scratch::ActivationGradient, outs * ins * 4)?;
                Some(Tensor::in_scratch(self.gpu(), memory, 0, w.shape()))
            }
        };
        let sum = in_scratch.as_ref().unwrap_or(w);
        copy(self, base, sum)?;
        let operands = [Operand { tensor: b, along_k: true }, Operand { tensor: a, along_k: false }];
        let epilogue = GradientEpilogue { out: Some(sum), factor: Some(scaling), ..GradientEpilogue::plain(true) };
        gradient_product(self, operands, [outs, ins, rank], Selection::default(), &epilogue)?;
        let scaled = WeightNorm::new(sum, magnitude).eps(eps);
        self.nested(|ops| if in_scratch.is_some() { ops.normalize(scaled, w) } else { ops.normalize_in_place(scaled) })
    }
}

impl<'a> DoraWeight<'a> {
    /// Shapes, types and numbers.
    pub(crate) fn check(&self, op: &'static str) -> Result<(), Error> {
        let &DoraWeight { base, a, b, magnitude, scaling, eps, base_norms, norms } = self;
        let refused = |arg, tensor: &Tensor, expected: String| {
            Err(ArgumentError::Shape { op, arg, got: tensor.shape().to_vec(), expected }.into())
        };
        let (outs, ins) = match base.shape() {
            &[outs, ins] if ins > 0 => (outs, ins),
            _ => return refused("base", base, "[out_features, in_features], in_features of 1 or more".to_owned()),
        };
        let rank = match a.shape() {
            &[rank, last] if rank > 0 && last == ins => rank,
            _ => return refused("a", a, format!("[rank, {ins}], a rank of 1 or more")),
        };
        expect_shape(op, "b", b, &[outs, rank])?;
        expect_gain(op, "magnitude", magnitude, &[outs, 1])?;
        Range::Finite.check(op, "the scaling", scaling.into())?;
        eps.check()?;
        base_norms.map_or(Ok(()), |norms| expect_per_norm(op, "the norms of base", norms, &[outs, 1]))?;
        norms.map_or(Ok(()), |norms| expect_per_norm(op, "norms", norms, &[outs, 1]))
    }

    /// Its tensors as arguments.
    pub(crate) fn arguments(&self, op: &'static str) -> Arguments<'a> {
        let needs = self.norms.is_none();
        Arguments::new(op)
            .input("base", self.base)
            .input("a", self.a)
            .input("b", self.b)
            .input_if(op != "dora_norms", "magnitude", self.magnitude)
            .input_if(needs, "the norms of base", self.base_norms)
            .input("known norms", self.norms)
    }
}

fn check(ops: &mut Recorder<'_, '_>, dora: &Dora<'_>, y: &Tensor) -> Result<(), Error> {
    let &Dora { x, weight, bias, norms, u, hidden, selection } = dora;
    weight.check(OP)?;
    let shape = y_shape(OP, x, weight.base)?;
    expect_shape(OP, "y", y, &shape)?;
    let outs = weight.base.shape()[0];
    bias.map_or(Ok(()), |bias| expect_shape(OP, "bias", bias, &[outs]))?;
    norms.map_or(Ok(()), |norms| expect_per_norm(OP, "norms", norms, &[outs, 1]))?;
    if let Some(u) = u {
        expect_dtype(OP, "u", u, DType::F32)?;
        expect_shape(OP, "u", u, &shape)?;
    }
    expect_hidden(OP, hidden, x, &weight)?;
    let rank = weight.a.shape()[0];
    weight
        .arguments(OP)
        .input("x", x)
        .input("bias", bias)
        .output("y", y)
        .output("norms", norms)
        .output("u", u)
        .output("hidden", hidden)
        .operations(2 * (x.products(outs) + x.products(rank) + y.products(rank)) + weight.norms_operations())
        .begin(ops)?;
    selection.check(OP, ops.facts().traits, false)
}

/// s·x·Aᵀ: f32, `[.., rank]`.
pub(crate) fn expect_hidden(
    op: &'static str,
    hidden: Option<&Tensor>,
    x: &Tensor,
    weight: &DoraWeight<'_>,
) -> Result<(), Error> {
    let Some(hidden) = hidden else { return Ok(()) };
    let batch = &x.shape()[..x.shape().len() - 1];
    expect_dtype(op, "hidden", hidden, DType::F32)?;
    expect_shape(op, "hidden", hidden, &[batch, &weight.a.shape()[..1]].concat())
}

/// Rows of x.
pub(crate) fn rows_of(x: &Tensor) -> u64 {
    x.shape()[..x.shape().len() - 1].iter().product::<usize>() as u64
}

fn record(ops: &mut Recorder<'_, '_>, dora: &Dora<'_>, y: &Tensor) -> Result<(), Error> {
    let &Dora { x, weight, bias, norms, u, hidden, selection } = dora;
    let DoraWeight { base, b, magnitude, .. } = weight;
    let (outs, _, rank) = weight.sizes();
    let batch = rows_of(x);
    if outs == 0 {
        return Ok(());
    }
    let found = match weight.norms {
        Some(known) => {
            norms.map_or(Ok(()), |norms| copy(ops, known, norms))?;
            known.clone()
        }
        None => {
            let memory = ops.scratch(Scratch::Norms, 3 * outs * 4)?;
            let found = norms.cloned().unwrap_or(Tensor::in_scratch(ops.gpu(), memory, 0, &[outs as usize]));
            record_norms(ops, &weight, weight.eps, &found)?;
            found
        }
    };
    if batch == 0 {
        return Ok(());
    }
    let own_u = match u {
        Some(u) => u.clone(),
        None => {
            let memory = ops.scratch(Scratch::ActivationGradient, batch * outs * 4)?;
            Tensor::in_scratch(ops.gpu(), memory, 0, y.shape())
        }
    };
    record_linear(ops, &Linear { selection, ..Linear::new(x, Weight::Plain(base)) }, &own_u)?;
    let own_hidden = match hidden {
        Some(hidden) => hidden.clone(),
        None => {
            let memory = ops.scratch(Scratch::Scales, batch * rank * 4)?;
            Tensor::in_scratch(ops.gpu(), memory, 0, &[batch as usize, rank as usize])
        }
    };
    record_hidden(ops, x, &weight, &own_hidden)?;
    let epilogue = LinearEpilogue {
        norm: NormSource::Given,
        norms_in: Some(View::of(&found)),
        g: Some(magnitude),
        bias,
        y,
        norms_out: None,
        u,
        onto: Some(&own_u),
        policy: (0, 0.0),
        activation: Activation::None,
        unit_rows: false,
        columns: outs,
    };
    let product = Product {
        a: Operand { tensor: &own_hidden, along_k: true },
        b: Operand { tensor: b, along_k: true },
        c_bytes: 4,
        rows: batch,
        columns: outs,
        depth: rank,
        selection,
        epilogue: &epilogue,
    };
    multiply(ops, &product)
}

/// s·x·Aᵀ.
pub(crate) fn record_hidden(
    ops: &mut Recorder<'_, '_>,
    x: &Tensor,
    weight: &DoraWeight<'_>,
    hidden: &Tensor,
) -> Result<(), Error> {
    let (_, ins, rank) = weight.sizes();
    let operands = [Operand { tensor: x, along_k: true }, Operand { tensor: weight.a, along_k: true }];
    let epilogue =
        GradientEpilogue { out: Some(hidden), factor: Some(weight.scaling), ..GradientEpilogue::plain(false) };
    gradient_product(ops, operands, [rows_of(x), rank, ins], Selection::default(), &epilogue)
}
