//! The weight-normalized matrix product. Shader: `product/linear.wgsl`.
pub(crate) mod epilogue;

use crate::arguments::{Arguments, expect_dtype, expect_per_norm, expect_shape};
use crate::binding::View;
use crate::contract::norms_shape;
use crate::product::record::{Operand, Product, are_halves, multiply};
use crate::product::selection::Selection;
use crate::weight::norms::{Form, Job, record_norms, scales};
use crate::{Activation, Axis, DType, Error, Gpu, Recorder, Tensor, Tile, WeightNorm};
use epilogue::{LinearEpilogue, NormSource};

/// The weight of a linear layer: ordinary, or weight-normalized.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// w itself, `[out_features, in_features]`.
    Plain(&'a Tensor),
    /// w = g·v/n̂.
    Normalized(WeightNorm<'a>),
}

impl<'a> From<&'a Tensor> for Weight<'a> {
    fn from(w: &'a Tensor) -> Self {
        Weight::Plain(w)
    }
}

impl<'a> From<WeightNorm<'a>> for Weight<'a> {
    fn from(weight: WeightNorm<'a>) -> Self {
        Weight::Normalized(weight)
    }
}

impl<'a> Weight<'a> {
    pub(crate) fn v(&self) -> &'a Tensor {
        match self {
            Weight::Plain(w) => w,
            Weight::Normalized(weight) => weight.v,
        }
    }

    pub(crate) fn normalized(&self) -> Option<WeightNorm<'a>> {
        match self {
            Weight::Plain(_) => None,
            Weight::Normalized(weight) => Some(*weight),
        }
    }
}

/// What else a linear layer may do. `LinearOptions::default()` does nothing else.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LinearOptions<'a> {
    /// Applied to y.
    pub activation: Activation,
    /// Where the effective norms are written, as the backward pass and later calls want them: f32, shaped as g.
    pub norms: Option<&'a Tensor>,
    /// Where u = (x·v)/n̂ is written, what the gain multiplies and the backward pass wants: f32, shaped as y. For kept
    /// axis 0 and the whole tensor.
    pub u: Option<&'a Tensor>,
    /// Forces a tile, for tests and tuning. Its sums are whole unless `split_length` says otherwise.
    pub tile: Option<Tile>,
    /// Forces the split of in_features into pieces of this many columns (rounded up to a multiple of 16), for tests and
    /// tuning.
    pub split_length: Option<u32>,
}

impl<'a> LinearOptions<'a> {
    /// Applies an activation to y.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Writes the effective norms out.
    pub fn norms(mut self, norms: &'a Tensor) -> Self {
        self.norms = Some(norms);
        self
    }

    /// Writes u out.
    pub fn u(mut self, u: &'a Tensor) -> Self {
        self.u = Some(u);
        self
    }

    /// Forces a tile.
    pub fn tile(mut self, tile: Tile) -> Self {
        self.tile = Some(tile);
        self
    }

    /// Forces a split of in_features.
    pub fn split_length(mut self, split_length: u32) -> Self {
        self.split_length = Some(split_length);
        self
    }
}

impl Gpu {
    /// A linear layer, weight-normalized or ordinary.
    ///
    /// ```text
    /// y[.., j] = Σ_k x[.., k] · w[j, k] + bias_j        w = g·v/n̂
    /// ```
    ///
    /// `x`: `[.., in_features]`. `weight`: `[out_features, in_features]`, a [`WeightNorm`] of kept axis 0 (out), 1 (in)
    /// or the whole tensor, or a [`Tensor`] w. `bias`: any storage type, `[out_features]`. Returns `[.., out_features]` in x's
    /// storage type; x, the weight and y may differ in it.
    ///
    /// For kept axis 0 the norms are summed up inside the product: w is never stored, v read no more often than by the
    /// ordinary product. y is right wherever it, and the sum of |x·w|, is representable. NaN and infinity in row j of v
    /// reach column j of y and nothing else. Error: a small multiple of in_features · 2^-24 · Σ|x·w|, and y's rounding.
    /// Reference: PyTorch's `weight_norm(torch.nn.Linear(..))`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`] if the arguments do not fit; [`Error::Axis`], [`Error::Eps`],
    /// [`Error::OtherGpu`], [`Error::Usage`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn linear<'a>(
        &self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        self.linear_with(x, weight, bias, &LinearOptions::default())
    }

    /// [`Gpu::linear`] with options.
    ///
    /// # Errors
    /// As [`Gpu::linear`]; [`Error::Number`] for a slope that is not finite, [`Error::Variant`], [`Error::Overlap`].
    pub fn linear_with<'a>(
        &self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
        options: &LinearOptions<'_>,
    ) -> Result<Tensor, Error> {
        let weight = weight.into();
        let y = self.zeros_of("linear: y", &y_shape(x, weight.v())?, x.dtype())?;
        self.run(|ops| ops.linear_into_with(x, weight, bias, &y, options))?;
        Ok(y)
    }
}

const OP: &str = "linear";

/// `[.., in_features]` and `[out_features, in_features]` to `[.., out_features]`.
pub(crate) fn y_shape(x: &Tensor, v: &Tensor) -> Result<Vec<usize>, Error> {
    let &[outs, ins] = v.shape() else {
        let expected = "[out_features, in_features]".to_owned();
        return Err(Error::Shape { op: OP, arg: "weight", got: v.shape().to_vec(), expected });
    };
    match x.shape() {
        [batch @ .., last] if *last == ins => Ok([batch, &[outs]].concat()),
        _ => Err(Error::Shape { op: OP, arg: "x", got: x.shape().to_vec(), expected: format!("[.., {ins}]") }),
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::linear`] into `y`: `[.., out_features]`, any storage type.
    ///
    /// One dispatch for an ordinary weight, for kept axis 0, and with known norms and kept axis 0; else those of the
    /// norms besides ([`Recorder::row_norms_into`], or one if they are known). One more where the sums are formed in pieces
    /// (beyond some 23,000 in_features, 43,000 with a few rows of x, 5,000 where a CPU computes in subgroups; where a GPU
    /// would have few workgroups otherwise; or as [`Choices`](crate::Choices) say), one more per window past the limit of a
    /// binding or a dispatch.
    ///
    /// # Errors
    /// As [`Gpu::linear`]; [`Error::Alias`].
    pub fn linear_into<'a>(
        &mut self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<(), Error> {
        self.linear_into_with(x, weight, bias, y, &LinearOptions::default())
    }

    /// [`Recorder::linear_into`] with options.
    ///
    /// # Errors
    /// As [`Recorder::linear_into`]; [`Error::Number`] for a slope that is not finite, [`Error::Variant`], [`Error::Overlap`].
    pub fn linear_into_with<'a>(
        &mut self,
        x: &Tensor,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
        y: &Tensor,
        options: &LinearOptions<'_>,
    ) -> Result<(), Error> {
        let weight = weight.into();
        check_linear(self, x, weight, bias, y, options)?;
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
        if let (Some(weight), Some(norms), NormSource::Plain | NormSource::Given) = (normalized, options.norms, norm) {
            write_norms(self, weight, norms)?;
        }
        if batch * outs == 0 {
            return Ok(());
        }
        let norms_in = match (normalized, norm) {
            (Some(weight), NormSource::Given) => weight.norms.map(View::of),
            (Some(weight), NormSource::Whole) => Some(scales(self, weight, Form::Wide, options.norms)?),
            (Some(weight), NormSource::In) => Some(scales(self, weight, Form::Scales, options.norms)?),
            _ => None,
        };
        let epilogue = LinearEpilogue {
            norm,
            norms_in,
            // On the contraction the gain is part of the scales.
            g: normalized.and_then(|w| w.g).filter(|_| norm != NormSource::In && norm != NormSource::Plain),
            bias,
            y,
            norms_out: options.norms.filter(|_| norm == NormSource::Fused),
            u: options.u,
            policy: normalized.map_or((0, 0.0), |w| (w.eps.code(), w.eps.value())),
            activation: options.activation,
            columns: outs,
        };
        multiply(
            self,
            &Product {
                a: Operand { tensor: x, along_k: true },
                b: Operand { tensor: v, along_k: true },
                c_bytes: if options.u.is_some() { 4 } else { y.dtype().size() },
                rows: batch,
                columns: outs,
                depth: ins,
                selection: options.selection(),
                epilogue: &epilogue,
            },
        )
    }
}

fn check_linear(
    ops: &mut Recorder<'_, '_>,
    x: &Tensor,
    weight: Weight<'_>,
    bias: Option<&Tensor>,
    y: &Tensor,
    options: &LinearOptions<'_>,
) -> Result<(), Error> {
    let v = weight.v();
    let shape = y_shape(x, v)?;
    expect_shape(OP, "y", y, &shape)?;
    options.activation.check(OP)?;
    if let Some(weight) = weight.normalized() {
        weight.check(OP)?;
    }
    if let Some(bias) = bias {
        expect_shape(OP, "bias", bias, &v.shape()[..1])?;
    }
    let normalized = weight.normalized();
    if let Some(norms) = options.norms {
        let Some(weight) = normalized else {
            let expected = "a weight with norms".to_owned();
            return Err(Error::Shape { op: OP, arg: "norms", got: norms.shape().to_vec(), expected });
        };
        expect_per_norm(OP, "norms", norms, &norms_shape(v.shape(), weight.axis))?;
    }
    if let Some(u) = options.u {
        expect_dtype(OP, "u", u, DType::F32)?;
        expect_shape(OP, "u", u, &shape)?;
        if !normalized.is_some_and(|w| matches!(w.axis, Axis::Kept(0) | Axis::Whole)) {
            let expected = "none: it wants a weight normalized along axis 0 or as a whole".to_owned();
            return Err(Error::Shape { op: OP, arg: "u", got: u.shape().to_vec(), expected });
        }
    }
    Arguments::new(OP)
        .input("x", x)
        .input("weight", v)
        .input("g", normalized.and_then(|w| w.g))
        .input("known norms", normalized.and_then(|w| w.norms))
        .input("bias", bias)
        .output("y", y)
        .output("norms", options.norms)
        .output("u", options.u)
        .operations(2 * x.products(v.shape()[0]) + normalized.map_or(0, |w| w.norms_operations()))
        .begin(ops)?;
    let scaled = normalized.is_some_and(|w| w.axis == Axis::Kept(1));
    options.selection().check(OP, ops.facts().traits, are_halves([x, v]) && !scaled)
}

/// The norms alone, where no product makes them.
pub(crate) fn write_norms(ops: &mut Recorder<'_, '_>, weight: WeightNorm<'_>, norms: &Tensor) -> Result<(), Error> {
    record_norms(
        ops,
        &Job {
            v: weight.v,
            axis: weight.axis,
            eps: weight.eps,
            known: weight.norms,
            gain: None,
            form: Form::Norms,
            out: View::of(norms),
            norms_too: None,
            dot: None,
        },
    )
}

impl LinearOptions<'_> {
    fn selection(&self) -> Selection {
        Selection { tile: self.tile, split_length: self.split_length }
    }
}
