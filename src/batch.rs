//! Operators on the statistics of a batch: data-dependent initialization, mean-only batch normalization.
pub(crate) mod statistics;

use crate::arguments::{Arguments, expect_dtype, expect_shape};
use crate::binding::View;
use crate::contract::Range;
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::rescale::center;
use crate::{ArgumentError, DType, Eps, Error, Gpu, Gradients, Linear, Recorder, Tensor, WeightNorm};
use statistics::{Outcome, Statistics, matrix};

/// Data-dependent initialization: the gain and the bias with which every feature of y = g·t + bias has mean 0 and
/// variance 1 over one batch (Salimans & Kingma 2016, section 3). The request of [`Gpu::data_dependent_init`] and
/// [`Recorder::data_dependent_init`].
///
/// ```text
/// t[b,j] = (x[b,:]·v_j) / n̂_j        μ_j = mean_b t        σ_j = sqrt(mean_b (t - μ_j)²)
/// g_j = 1/σ_j        bias_j = -μ_j/σ_j
/// ```
///
/// - `x`: `[.., in_features]`, at least one row. `v`: `[out_features, in_features]`. `g`, `bias`: `[out_features]`. Any
///   storage types. t lies in scratch memory.
/// - A feature that is constant over the batch (σ below 2⁻⁶³) gets g = 1 and bias = -μ, and so does every feature of a
///   batch of one row. Right for |t| up to 1e18; the variance is formed of differences from means, so that a mean far
///   from 0 does not drown it.
/// - PyTorch's initialization, g = n̂, is [`Decompose`](crate::Decompose).
///
/// # Dispatches
/// Those of a [`Linear`] with kept axis 0, and one more up to a batch of 128, two beyond; one more for each of g and
/// bias that is not f32; more past the limits of a binding or a dispatch.
///
/// # Errors
/// [`ArgumentError::Shape`], also for an empty batch; [`ArgumentError::Eps`]. Besides those of every operator
/// ([`Error`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct DataDependentInit<'a> {
    x: &'a Tensor,
    v: &'a Tensor,
    eps: Eps,
}

impl<'a> DataDependentInit<'a> {
    /// Of a batch x and a direction v, with the default eps policy.
    pub fn new(x: &'a Tensor, v: &'a Tensor) -> Self {
        DataDependentInit { x, v, eps: Eps::default() }
    }

    /// Another eps policy for the norms of v.
    pub fn eps(self, eps: Eps) -> Self {
        DataDependentInit { eps, ..self }
    }
}

/// Mean-only batch normalization (Salimans & Kingma 2016, section 4). The request of [`Gpu::mean_only_batch_norm`] and
/// [`Recorder::mean_only_batch_norm`].
///
/// ```text
/// μ_j = mean_b t[b,j]        y[b,j] = t[b,j] - μ_j + bias_j        running_j += momentum · (μ_j - running_j)
/// ```
///
/// In evaluation ([`MeanOnlyBatchNorm::eval`]) the running mean takes the place of μ.
///
/// - `t`: `[.., features]`, the product x·w without a bias, which would vanish; at least one row, but in evaluation.
///   `y`: its shape. `bias`: `[features]`. Any storage types.
/// - Only the running mean is needed afterwards.
///
/// # Dispatches
/// Two up to a batch of 128, three beyond; in evaluation one. One more for a bias that is not f32; more past the limits
/// of a binding or a dispatch.
///
/// # Errors
/// [`ArgumentError::Shape`], also for an empty batch; [`ArgumentError::Number`] for a momentum that is not from 0 to 1;
/// [`ArgumentError::DType`] for a running mean that is not f32. Besides those of every operator ([`Error`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct MeanOnlyBatchNorm<'a> {
    t: &'a Tensor,
    bias: Option<&'a Tensor>,
    mean: Mean<'a>,
}

/// What is subtracted.
#[derive(Debug, Clone, Copy)]
enum Mean<'a> {
    /// The batch's own, which a running mean may follow, with its momentum.
    Batch(Option<(&'a Tensor, f32)>),
    Running(&'a Tensor),
}

impl<'a> MeanOnlyBatchNorm<'a> {
    /// In training, without a bias or a running mean.
    pub fn new(t: &'a Tensor) -> Self {
        MeanOnlyBatchNorm { t, bias: None, mean: Mean::Batch(None) }
    }

    /// Adds a bias: any storage type, `[features]`.
    pub fn bias(self, bias: impl Into<Option<&'a Tensor>>) -> Self {
        MeanOnlyBatchNorm { bias: bias.into(), ..self }
    }

    /// Has a running mean follow the batch's: f32, `[features]`. `momentum`: the part of the new batch in it, from 0 to
    /// 1, as PyTorch means it (0.1 there).
    pub fn running_mean(self, running_mean: &'a Tensor, momentum: f32) -> Self {
        MeanOnlyBatchNorm { mean: Mean::Batch(Some((running_mean, momentum))), ..self }
    }

    /// In evaluation: subtracts this running mean, f32, `[features]`.
    pub fn eval(self, running_mean: &'a Tensor) -> Self {
        MeanOnlyBatchNorm { mean: Mean::Running(running_mean), ..self }
    }
}

/// The gradients of [`MeanOnlyBatchNorm`] in training, given dy. The request of [`Gpu::mean_only_batch_norm_backward`]
/// and [`Recorder::mean_only_batch_norm_backward`].
///
/// ```text
/// dt[b,j] = dy[b,j] - mean_b dy[b,j]        dbias_j = Σ_b dy[b,j]
/// ```
///
/// `dy`, `dt`: `[.., features]`, `dbias`: `[features]`. Any storage types.
///
/// # Dispatches
/// Two up to a batch of 128, three beyond; one less without dt; one more for a dbias that is not f32, two with
/// [`Gradients::accumulate`]; more past the limits of a binding or a dispatch.
///
/// # Errors
/// [`ArgumentError::Shape`]. Besides those of every operator ([`Error`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct MeanOnlyBatchNormBackward<'a> {
    dy: &'a Tensor,
}

impl<'a> MeanOnlyBatchNormBackward<'a> {
    /// Of a y with this gradient.
    pub fn new(dy: &'a Tensor) -> Self {
        MeanOnlyBatchNormBackward { dy }
    }
}

impl Gpu {
    /// `(g, bias)` of [`DataDependentInit`], f32.
    ///
    /// # Errors
    /// As [`DataDependentInit`].
    pub fn data_dependent_init(&self, init: DataDependentInit<'_>) -> Result<(Tensor, Tensor), Error> {
        let features = &init.v.shape()[..init.v.shape().len().min(1)];
        let (g, bias) = (self.zeros(features, DType::F32)?, self.zeros(features, DType::F32)?);
        self.run(|ops| ops.data_dependent_init(init, &g, &bias))?;
        Ok((g, bias))
    }

    /// y of [`MeanOnlyBatchNorm`], in t's storage type.
    ///
    /// # Errors
    /// As [`MeanOnlyBatchNorm`].
    pub fn mean_only_batch_norm(&self, norm: MeanOnlyBatchNorm<'_>) -> Result<Tensor, Error> {
        let y = self.zeros(norm.t.shape(), norm.t.dtype())?;
        self.run(|ops| ops.mean_only_batch_norm(norm, &y))?;
        Ok(y)
    }

    /// `(dt, dbias)` of [`MeanOnlyBatchNormBackward`]: dt in dy's storage type, dbias in f32.
    ///
    /// # Errors
    /// As [`MeanOnlyBatchNormBackward`].
    pub fn mean_only_batch_norm_backward(
        &self,
        backward: MeanOnlyBatchNormBackward<'_>,
    ) -> Result<(Tensor, Tensor), Error> {
        let dy = backward.dy;
        let dt = self.zeros(dy.shape(), dy.dtype())?;
        let dbias = self.zeros(&dy.shape()[dy.shape().len().saturating_sub(1)..], DType::F32)?;
        self.run(|ops| ops.mean_only_batch_norm_backward(backward, &Gradients::default().dx(&dt).dbias(&dbias)))?;
        Ok((dt, dbias))
    }
}

impl Recorder<'_, '_> {
    /// Records [`DataDependentInit`] into `g` and `bias`: any storage type, `[out_features]`.
    ///
    /// # Errors
    /// As [`DataDependentInit`].
    pub fn data_dependent_init(&mut self, init: DataDependentInit<'_>, g: &Tensor, bias: &Tensor) -> Result<(), Error> {
        initialize(self, init, g, bias)
    }

    /// Records [`MeanOnlyBatchNorm`] into `y`: t's shape, any storage type.
    ///
    /// # Errors
    /// As [`MeanOnlyBatchNorm`].
    pub fn mean_only_batch_norm(&mut self, norm: MeanOnlyBatchNorm<'_>, y: &Tensor) -> Result<(), Error> {
        normalize(self, norm, y)
    }

    /// Records [`MeanOnlyBatchNormBackward`] into the wanted ones of `gradients`: [`Gradients::dx`] is dt.
    ///
    /// # Errors
    /// As [`MeanOnlyBatchNormBackward`].
    pub fn mean_only_batch_norm_backward(
        &mut self,
        backward: MeanOnlyBatchNormBackward<'_>,
        gradients: &Gradients<'_>,
    ) -> Result<(), Error> {
        normalize_backward(self, backward, gradients)
    }
}

fn initialize(ops: &mut Recorder<'_, '_>, init: DataDependentInit<'_>, g: &Tensor, bias: &Tensor) -> Result<(), Error> {
    const OP: &str = "data_dependent_init";
    let DataDependentInit { x, v, eps } = init;
    eps.check()?;
    let (rows, _) = checked_matrix(OP, "x", x)?;
    expect_rows(OP, "x", x, rows)?;
    let &[features, _] = v.shape() else {
        let expected = "[out_features, in_features]".to_owned();
        return Err(ArgumentError::Shape { op: OP, arg: "v", got: v.shape().to_vec(), expected }.into());
    };
    expect_features(OP, "g", Some(g), features as u64)?;
    expect_features(OP, "bias", Some(bias), features as u64)?;
    Arguments::new(OP)
        .input("x", x)
        .input("v", v)
        .output("g", g)
        .output("bias", bias)
        .operations(2 * (x.products(features) + v.len() as u64) + 3 * rows * features as u64)
        .begin(ops)?;
    // `linear` with kept axis 0 and unknown norms uses the scratch of sums only.
    let scratch = ops.scratch(Scratch::Scales, rows * features as u64 * DType::F32.size())?;
    let shape = [&x.shape()[..x.shape().len() - 1], &[features]].concat();
    let t = Tensor::in_scratch(ops.gpu(), scratch, 0, &shape);
    ops.nested(|ops| ops.linear(Linear::new(x, WeightNorm::unit(v).eps(eps)), &t))?;
    vectors::in_f32(ops, (false, true), [Some(g), Some(bias)], |ops, [g, bias]| {
        statistics::reduce(
            ops,
            &Statistics {
                first: g.map(View::of),
                second: bias.map(View::of),
                ..Statistics::new(View::of(&t), DType::F32, rows, features as u64, Outcome::Scales)
            },
        )
    })
}

fn normalize(ops: &mut Recorder<'_, '_>, norm: MeanOnlyBatchNorm<'_>, y: &Tensor) -> Result<(), Error> {
    const OP: &str = "mean_only_batch_norm";
    let MeanOnlyBatchNorm { t, bias, mean } = norm;
    let (rows, columns) = checked_matrix(OP, "t", t)?;
    let (running, momentum) = match mean {
        Mean::Running(running) => (Some(running), 0.0),
        Mean::Batch(running) => {
            expect_rows(OP, "t", t, rows)?;
            running.map_or((None, 0.0), |(running, momentum)| (Some(running), momentum))
        }
    };
    expect_features(OP, "bias", bias, columns)?;
    running.map_or(Ok(()), |running| expect_running(OP, running, columns))?;
    Range::Fraction.check(OP, "the momentum", momentum.into())?;
    expect_shape(OP, "y", y, t.shape())?;
    let arguments = Arguments::new(OP).input("t", t).input("bias", bias);
    let centers = match mean {
        Mean::Running(running) => {
            arguments.input("running", running).output("y", y).operations(t.len() as u64).begin(ops)?;
            View::of(running)
        }
        Mean::Batch(_) => {
            let arguments = arguments.output_onto(true, "running", running).output("y", y);
            arguments.operations(2 * t.len() as u64).begin(ops)?;
            let means = means(ops, columns)?;
            statistics::reduce(
                ops,
                &Statistics {
                    second: running.map(View::of),
                    momentum,
                    means: Some(means.clone()),
                    ..Statistics::new(View::of(t), t.dtype(), rows, columns, Outcome::Means)
                },
            )?;
            means
        }
    };
    vectors::in_f32(ops, (true, false), [bias], |ops, [bias]| center(ops, t, &centers, bias, y))
}

fn normalize_backward(
    ops: &mut Recorder<'_, '_>,
    backward: MeanOnlyBatchNormBackward<'_>,
    gradients: &Gradients<'_>,
) -> Result<(), Error> {
    const OP: &str = "mean_only_batch_norm_backward";
    let MeanOnlyBatchNormBackward { dy } = backward;
    let &Gradients { dx: dt, dv, dg, dbias, accumulate, .. } = gradients;
    gradients.expect_none_of_conv(OP)?;
    let (rows, columns) = checked_matrix(OP, "dy", dy)?;
    Gradients::expect_none(OP, &[("dv", dv), ("dg", dg)])?;
    expect_features(OP, "dbias", dbias, columns)?;
    dt.map_or(Ok(()), |dt| expect_shape(OP, "dt", dt, dy.shape()))?;
    Arguments::new(OP)
        .input("dy", dy)
        .output("dt", dt)
        .output_onto(accumulate, "dbias", dbias)
        .operations((u64::from(dt.is_some()) + 1) * dy.len() as u64)
        .begin(ops)?;
    let means = if dt.is_some() { Some(means(ops, columns)?) } else { None };
    vectors::in_f32(ops, (accumulate, true), [dbias], |ops, [dbias]| {
        statistics::reduce(
            ops,
            &Statistics {
                first: dbias.map(View::of),
                means: means.clone(),
                accumulate,
                ..Statistics::new(View::of(dy), dy.dtype(), rows, columns, Outcome::Means)
            },
        )
    })?;
    match (dt, means) {
        (Some(dt), Some(means)) => center(ops, dy, &means, None, dt),
        _ => Ok(()),
    }
}

/// Room for the means of a batch. The partial sums are in a scratch buffer of their own.
fn means(ops: &mut Recorder<'_, '_>, columns: u64) -> Result<View<'static>, Error> {
    let size = DType::F32.size();
    Ok(View::scratch(ops.scratch(Scratch::Scales, columns * size)?, size))
}

/// [`matrix`] of an argument, its rank checked.
fn checked_matrix(op: &'static str, arg: &'static str, tensor: &Tensor) -> Result<(u64, u64), Error> {
    if tensor.shape().is_empty() {
        return Err(ArgumentError::Shape { op, arg, got: vec![], expected: "[.., features]".into() }.into());
    }
    Ok(matrix(tensor))
}

/// A mean needs a row.
fn expect_rows(op: &'static str, arg: &'static str, tensor: &Tensor, rows: u64) -> Result<(), Error> {
    if rows == 0 {
        let expected = "a batch of at least one row".into();
        return Err(ArgumentError::Shape { op, arg, got: tensor.shape().to_vec(), expected }.into());
    }
    Ok(())
}

/// A running mean is f32, one for each feature.
fn expect_running(op: &'static str, tensor: &Tensor, features: u64) -> Result<(), Error> {
    expect_dtype(op, "running", tensor, DType::F32)?;
    expect_features(op, "running", Some(tensor), features)
}

/// Checks one element per feature, of any storage type.
fn expect_features(op: &'static str, arg: &'static str, tensor: Option<&Tensor>, features: u64) -> Result<(), Error> {
    let Some(tensor) = tensor else { return Ok(()) };
    expect_shape(op, arg, tensor, &[features as usize])
}
