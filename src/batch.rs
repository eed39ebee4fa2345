//! Operators on the statistics of a batch: data-dependent initialization, mean-only batch normalization.
pub(crate) mod statistics;

use crate::arguments::{Arguments, expect_dtype, expect_shape};
use crate::binding::View;
use crate::contract::Range;
use crate::memory::Scratch;
use crate::vectors;
use crate::weight::rescale::center;
use crate::{DType, Eps, Error, Gpu, Recorder, Tensor, WeightNorm, Write};
use statistics::{Outcome, Statistics, matrix};

/// A running mean and how fast it follows.
#[derive(Debug, Clone, Copy)]
pub struct RunningMean<'a> {
    /// f32, `[features]`.
    pub mean: &'a Tensor,
    /// The part of the new batch in it, from 0 to 1, as PyTorch means it (0.1 there).
    pub momentum: f32,
}

impl Gpu {
    /// Data-dependent initialization: the gain and the bias with which every feature of y = g·t + bias has mean 0 and
    /// variance 1 over one batch (Salimans & Kingma 2016, section 3). Returns `(g, bias)`.
    ///
    /// ```text
    /// t[b,j] = (x[b,:]·v_j) / n̂_j        μ_j = mean_b t        σ_j = sqrt(mean_b (t - μ_j)²)
    /// g_j = 1/σ_j        bias_j = -μ_j/σ_j
    /// ```
    ///
    /// `x`: `[.., in_features]`, at least one row. `v`: `[out_features, in_features]`. Any storage types. `g`, `bias`:
    /// f32, `[out_features]`. A feature that is constant over the batch (σ below 2^-63) gets g = 1 and bias = -μ, and so
    /// does every feature of a batch of one row. Right for |t| up to 1e18; the variance is formed of differences from
    /// means, so that a mean far from 0 does not drown it.
    ///
    /// PyTorch's initialization, g = n̂, is [`Gpu::split`].
    ///
    /// # Errors
    /// [`Error::Shape`], also for an empty batch; [`Error::Eps`], [`Error::OtherGpu`], [`Error::Usage`],
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn data_dependent_init(&self, x: &Tensor, v: &Tensor, eps: Eps) -> Result<(Tensor, Tensor), Error> {
        let features = &v.shape()[..v.shape().len().min(1)];
        let (g, bias) = (self.zeros(features, DType::F32)?, self.zeros(features, DType::F32)?);
        self.run(|ops| ops.data_dependent_init_into(x, v, eps, &g, &bias))?;
        Ok((g, bias))
    }

    /// Mean-only batch normalization in training (Salimans & Kingma 2016, section 4).
    ///
    /// ```text
    /// μ_j = mean_b t[b,j]        y[b,j] = t[b,j] - μ_j + bias_j        running_j += momentum · (μ_j - running_j)
    /// ```
    ///
    /// `t`: `[.., features]`, at least one row, any storage type: the product x·w without a bias, which would vanish.
    /// `bias`: any storage type, `[features]`. Returns t's shape and storage type. Only the running mean is needed afterwards.
    ///
    /// # Errors
    /// [`Error::Shape`], also for an empty batch; [`Error::Number`] for a momentum that is not from 0 to 1;
    /// [`Error::DType`], [`Error::OtherGpu`], [`Error::Usage`], [`Error::Alias`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub fn mean_only_batch_norm(
        &self,
        t: &Tensor,
        bias: Option<&Tensor>,
        running: Option<RunningMean<'_>>,
    ) -> Result<Tensor, Error> {
        let y = self.zeros(t.shape(), t.dtype())?;
        self.run(|ops| ops.mean_only_batch_norm_into(t, bias, running, &y))?;
        Ok(y)
    }

    /// Mean-only batch normalization in evaluation, with the running mean in the place of the batch's.
    ///
    /// ```text
    /// y[b,j] = t[b,j] - running_j + bias_j
    /// ```
    ///
    /// Arguments as [`Gpu::mean_only_batch_norm`]; an empty batch is fine.
    ///
    /// # Errors
    /// As [`Gpu::mean_only_batch_norm`].
    pub fn mean_only_batch_norm_eval(
        &self,
        t: &Tensor,
        running: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let y = self.zeros(t.shape(), t.dtype())?;
        self.run(|ops| ops.mean_only_batch_norm_eval_into(t, running, bias, &y))?;
        Ok(y)
    }

    /// The gradients of [`Gpu::mean_only_batch_norm`]. Returns `(dt, dbias)`.
    ///
    /// ```text
    /// dt[b,j] = dy[b,j] - mean_b dy[b,j]        dbias_j = Σ_b dy[b,j]
    /// ```
    ///
    /// `dy`: `[.., features]`, any storage type; dt has its shape and type. `dbias`: f32, `[features]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::OtherGpu`], [`Error::Usage`], [`Error::TooLarge`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub fn mean_only_batch_norm_backward(&self, dy: &Tensor) -> Result<(Tensor, Tensor), Error> {
        let dt = self.zeros(dy.shape(), dy.dtype())?;
        let dbias = self.zeros(&dy.shape()[dy.shape().len().saturating_sub(1)..], DType::F32)?;
        self.run(|ops| ops.mean_only_batch_norm_backward_into(dy, &dt, Some(&dbias), Write::Replace))?;
        Ok((dt, dbias))
    }
}

impl Recorder<'_, '_> {
    /// Records [`Gpu::data_dependent_init`] into `g` and `bias`: any storage type, `[out_features]`. t lies in scratch
    /// memory.
    ///
    /// The dispatches of [`Recorder::linear_into`] with kept axis 0, and one more up to a batch of 128, two beyond; one more
    /// for each of g and bias that is not f32; more past the limits of a binding or a dispatch.
    ///
    /// # Errors
    /// As [`Gpu::data_dependent_init`]; [`Error::DType`], [`Error::Alias`], [`Error::Overlap`].
    pub fn data_dependent_init_into(
        &mut self,
        x: &Tensor,
        v: &Tensor,
        eps: Eps,
        g: &Tensor,
        bias: &Tensor,
    ) -> Result<(), Error> {
        const OP: &str = "data_dependent_init";
        eps.check()?;
        let (rows, _) = checked_matrix(OP, "x", x)?;
        expect_rows(OP, "x", x, rows)?;
        let &[features, _] = v.shape() else {
            let expected = "[out_features, in_features]".to_owned();
            return Err(Error::Shape { op: OP, arg: "v", got: v.shape().to_vec(), expected });
        };
        expect_features(OP, "g", Some(g), features as u64)?;
        expect_features(OP, "bias", Some(bias), features as u64)?;
        Arguments::new(OP)
            .input("x", x)
            .input("v", v)
            .output("g", g)
            .output("bias", bias)
            .operations(2 * (x.products(features) + v.len() as u64) + 3 * rows * features as u64)
            .begin(self)?;
        // `linear` with kept axis 0 and unknown norms uses the scratch of sums only.
        let scratch = self.scratch(Scratch::Scales, rows * features as u64 * DType::F32.size())?;
        let shape = [&x.shape()[..x.shape().len() - 1], &[features]].concat();
        let t = Tensor::in_scratch(self.gpu(), scratch, 0, &shape);
        self.nested(|ops| ops.linear_into(x, WeightNorm::unit(v).eps(eps), None, &t))?;
        vectors::in_f32(self, (false, true), [Some(g), Some(bias)], |ops, [g, bias]| {
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

    /// Records [`Gpu::mean_only_batch_norm`] into `y`: t's shape, any storage type.
    ///
    /// Two dispatches up to a batch of 128, three beyond; one more for a bias that is not f32; more past the limits of a
    /// binding or a dispatch.
    ///
    /// # Errors
    /// As [`Gpu::mean_only_batch_norm`]; [`Error::Overlap`].
    pub fn mean_only_batch_norm_into(
        &mut self,
        t: &Tensor,
        bias: Option<&Tensor>,
        running: Option<RunningMean<'_>>,
        y: &Tensor,
    ) -> Result<(), Error> {
        const OP: &str = "mean_only_batch_norm";
        let (rows, columns) = checked_matrix(OP, "t", t)?;
        expect_rows(OP, "t", t, rows)?;
        expect_features(OP, "bias", bias, columns)?;
        running.map_or(Ok(()), |r| expect_running(OP, r.mean, columns))?;
        Range::Part.check(OP, "the momentum", running.map_or(0.0, |r| r.momentum.into()))?;
        expect_shape(OP, "y", y, t.shape())?;
        Arguments::new(OP)
            .input("t", t)
            .input("bias", bias)
            .output_onto(true, "running", running.map(|r| r.mean))
            .output("y", y)
            .operations(2 * t.len() as u64)
            .begin(self)?;
        let means = means(self, columns)?;
        statistics::reduce(
            self,
            &Statistics {
                second: running.map(|r| View::of(r.mean)),
                momentum: running.map_or(0.0, |r| r.momentum),
                means: Some(means.clone()),
                ..Statistics::new(View::of(t), t.dtype(), rows, columns, Outcome::Means)
            },
        )?;
        vectors::in_f32(self, (true, false), [bias], |ops, [bias]| center(ops, t, &means, bias, y))
    }

    /// Records [`Gpu::mean_only_batch_norm_eval`] into `y`: t's shape, any storage type.
    ///
    /// One dispatch, two for a bias that is not f32; more past the limits of a binding or a dispatch.
    ///
    /// # Errors
    /// As [`Gpu::mean_only_batch_norm`].
    pub fn mean_only_batch_norm_eval_into(
        &mut self,
        t: &Tensor,
        running: &Tensor,
        bias: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<(), Error> {
        const OP: &str = "mean_only_batch_norm_eval";
        let (_, columns) = checked_matrix(OP, "t", t)?;
        expect_features(OP, "bias", bias, columns)?;
        expect_running(OP, running, columns)?;
        expect_shape(OP, "y", y, t.shape())?;
        Arguments::new(OP)
            .input("t", t)
            .input("bias", bias)
            .input("running", running)
            .output("y", y)
            .operations(t.len() as u64)
            .begin(self)?;
        vectors::in_f32(self, (true, false), [bias], |ops, [bias]| center(ops, t, &View::of(running), bias, y))
    }

    /// Records [`Gpu::mean_only_batch_norm_backward`] into `dt`, of dy's shape and any storage type, and `dbias`, of any
    /// storage type, which `write` replaces or adds to.
    ///
    /// Two dispatches up to a batch of 128, three beyond; one more for a dbias that is not f32, two with [`Write::Add`]; more
    /// past the limits of a binding or a dispatch.
    ///
    /// # Errors
    /// As [`Gpu::mean_only_batch_norm_backward`]; [`Error::DType`], [`Error::Alias`], [`Error::Overlap`].
    pub fn mean_only_batch_norm_backward_into(
        &mut self,
        dy: &Tensor,
        dt: &Tensor,
        dbias: Option<&Tensor>,
        write: Write,
    ) -> Result<(), Error> {
        const OP: &str = "mean_only_batch_norm_backward";
        let (rows, columns) = checked_matrix(OP, "dy", dy)?;
        expect_features(OP, "dbias", dbias, columns)?;
        expect_shape(OP, "dt", dt, dy.shape())?;
        Arguments::new(OP)
            .input("dy", dy)
            .output("dt", dt)
            .output_onto(write == Write::Add, "dbias", dbias)
            .operations(2 * dy.len() as u64)
            .begin(self)?;
        let means = means(self, columns)?;
        vectors::in_f32(self, (write == Write::Add, true), [dbias], |ops, [dbias]| {
            statistics::reduce(
                ops,
                &Statistics {
                    first: dbias.map(View::of),
                    means: Some(means.clone()),
                    write,
                    ..Statistics::new(View::of(dy), dy.dtype(), rows, columns, Outcome::Means)
                },
            )
        })?;
        center(self, dy, &means, None, dt)
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
        return Err(Error::Shape { op, arg, got: vec![], expected: "[.., features]".into() });
    }
    Ok(matrix(tensor))
}

/// A mean needs a row.
fn expect_rows(op: &'static str, arg: &'static str, tensor: &Tensor, rows: u64) -> Result<(), Error> {
    if rows == 0 {
        let expected = "a batch of at least one row".into();
        return Err(Error::Shape { op, arg, got: tensor.shape().to_vec(), expected });
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
