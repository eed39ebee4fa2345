//! Statistics over the batch. Shader: `batch.wgsl`.
use bytemuck::{Pod, Zeroable};

use crate::choose::{self, ColumnQuads};
use crate::contract::{Range, stored_as};
use crate::gpu::Scratch;
use crate::kernel::{self, Constants, MAX_ITERATIONS};
use crate::norms::{ENOUGH_GROUPS, windows};
use crate::record::{Arguments, Dispatch, GL_WORK, Span, View, expect_dtype, expect_shape, firsts};
use crate::source::Module;
use crate::{DType, Eps, Error, Gpu, Recorder, Tensor, WeightNorm};

const WORDS: Module = Module::new("batch/words");
const QUADS: Module = Module::new("batch/quads");
pub(crate) const MODULES: [Module; 2] = [WORDS, QUADS];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    rows: u32,
    stride: u32,
    split_length: u32,
    splits: u32,
    part_first: u32,
    firsts: u32,
    more_firsts: u32,
    flags: u32,
    rate: f32,
    momentum: f32,
    policy: u32,
    eps: f32,
}

/// Invocations in a workgroup of `batch.wgsl`.
const THREADS: u64 = 64;
/// The most columns of a workgroup, but with up to `FEW_ROWS` rows.
const MAX_COLUMNS: u64 = 32;
const FEW_ROWS: u64 = 8;
/// `Part` of `batch.wgsl`.
const PART_BYTES: u64 = 12;
/// Up to so many rows need one dispatch only.
const SHORTEST_SPLIT: u64 = 128;

/// Words of y for a workgroup of `subtract_means`.
const SUBTRACT_WORDS: u64 = 4 * THREADS;

const HAS_FIRST: u32 = 1;
const HAS_SECOND: u32 = 2;
const ACCUMULATE: u32 = 4;
const HAS_GAIN: u32 = 8;

/// Whether an output is replaced or added to, as the gradients of micro-batches are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Write {
    /// out = result
    #[default]
    Replace,
    /// out = out + result
    Add,
}

/// A running mean and how fast it follows.
#[derive(Debug, Clone, Copy)]
pub struct RunningMean<'a> {
    /// f32, `[features]`.
    pub mean: &'a Tensor,
    /// The part of the new batch in it, from 0 to 1, as PyTorch means it (0.1 there).
    pub momentum: f32,
}

/// What is made of the statistics: KIND and END of `batch.wgsl`.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Sums,
    Means,
    Scales,
    Factors,
}

impl End {
    fn kind(self) -> u32 {
        (self == End::Scales).into()
    }
}

/// Checked statistics of a [rows, columns] matrix.
struct Job<'a> {
    a: View<'a>,
    dtype: DType,
    rows: u64,
    columns: u64,
    u: Option<View<'a>>,
    end: End,
    first: Option<View<'a>>,
    second: Option<View<'a>>,
    means: Option<View<'a>>,
    factors: Option<Factors<'a>>,
    write: Write,
    momentum: f32,
}

/// The factors of each norm that the gradients of a weight-normalized product want, from dg of a batch.
#[derive(Clone)]
pub(crate) struct Factors<'a> {
    /// n̂, but n under [`Eps::After`].
    pub norms: View<'a>,
    pub g: Option<&'a Tensor>,
    pub eps: Eps,
    /// Four f32 a norm: `write_factors` of `batch.wgsl`.
    pub out: View<'a>,
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
    /// Sums over the batch in one read of dy, as the backward pass of a linear layer needs them:
    ///
    /// ```text
    /// dbias_j = Σ_b dy[b,j]        dg_j = Σ_b dy[b,j] · u[b,j]
    /// ```
    ///
    /// `dy`: `[.., columns]`, any storage type. `u`: f32, as many elements; required for `dg`. `dbias`, `dg`: f32,
    /// `columns` elements each, in buffers other than those of dy and u; with `Write::Add` they are added to. `factors` are
    /// made of dg of this batch alone, whatever `write`; without u their dg is 0.
    /// None of them may be `Scratch::Sums`. Arguments are checked by the caller.
    ///
    /// One dispatch up to a batch of 128, two beyond (partial sums, then their sum), more past the limits of a binding
    /// or a dispatch. Deterministic.
    pub(crate) fn column_dot_sums<'a>(
        &mut self,
        dy: &'a Tensor,
        u: Option<View<'a>>,
        dbias: Option<View<'a>>,
        dg: Option<View<'a>>,
        factors: Option<Factors<'a>>,
        write: Write,
    ) -> Result<(), Error> {
        debug_assert!(dg.is_none() || u.is_some(), "dg is made of u");
        let (rows, columns) = matrix(dy);
        // Factors without any sum need no look at dy.
        let rows = if u.is_none() && dbias.is_none() { 0 } else { rows };
        let end = if factors.is_some() { End::Factors } else { End::Sums };
        self.statistics(&Job {
            u,
            first: dbias,
            second: dg,
            factors,
            write,
            ..Job::new(View::of(dy), dy.dtype(), rows, columns, end)
        })
    }

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
        let scratch = self.gpu().scratch(Scratch::Scales, rows * features as u64 * DType::F32.size())?;
        let shape = [&x.shape()[..x.shape().len() - 1], &[features]].concat();
        let t = self.gpu().tensor(&scratch, 0, &shape, DType::F32)?;
        self.nested(|ops| ops.linear_into(x, WeightNorm::unit(v).eps(eps), None, &t))?;
        self.in_f32((false, true), [Some(g), Some(bias)], |ops, [g, bias]| {
            ops.statistics(&Job {
                first: g.map(View::of),
                second: bias.map(View::of),
                ..Job::new(View::of(&t), DType::F32, rows, features as u64, End::Scales)
            })
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
        let means = self.means(columns)?;
        self.statistics(&Job {
            second: running.map(|r| View::of(r.mean)),
            momentum: running.map_or(0.0, |r| r.momentum),
            means: Some(means.clone()),
            ..Job::new(View::of(t), t.dtype(), rows, columns, End::Means)
        })?;
        self.in_f32((true, false), [bias], |ops, [bias]| ops.subtract_means(t, &means, bias, y))
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
        self.in_f32((true, false), [bias], |ops, [bias]| ops.subtract_means(t, &View::of(running), bias, y))
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
        let means = self.means(columns)?;
        self.in_f32((write == Write::Add, true), [dbias], |ops, [dbias]| {
            ops.statistics(&Job {
                first: dbias.map(View::of),
                means: Some(means.clone()),
                write,
                ..Job::new(View::of(dy), dy.dtype(), rows, columns, End::Means)
            })
        })?;
        self.subtract_means(dy, &means, None, dt)
    }

    /// Room for the means of a batch. The partial sums are in a scratch buffer of their own.
    fn means(&self, columns: u64) -> Result<View<'static>, Error> {
        let size = DType::F32.size();
        Ok(View::scratch(self.gpu().scratch(Scratch::Scales, columns * size)?, size))
    }

    /// y = t - centers + bias.
    fn subtract_means(
        &mut self,
        t: &Tensor,
        centers: &View<'_>,
        bias: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        let (rows, columns) = matrix(t);
        let bias = bias.map(View::of);
        if self.center_in_quads(t, centers, bias.as_ref(), y)? {
            return Ok(());
        }
        let constants: Constants =
            vec![("A_DTYPE", t.dtype().code()), ("Y_DTYPE", y.dtype().code()), ("HAS_U", bias.is_some().into())];
        let per_word = y.dtype().per_word();
        let capacity = gpu.binding_capacity();
        let step = capacity / t.dtype().size().max(y.dtype().size());
        let step = step.min(gpu.group_capacity() * SUBTRACT_WORDS).min(self.work_capacity(1));
        // Past a binding of means a window lies within a row.
        let columns_in_binding = capacity / DType::F32.size();
        let in_rows = columns > columns_in_binding;
        let (stretches, length) = if in_rows { (rows, columns) } else { (1, rows * columns) };
        let step = if in_rows { step.min(columns_in_binding) } else { step };
        for stretch in 0..stretches {
            for (e, count) in windows(length, step) {
                let (j, j_count) = if in_rows { (e, count) } else { (0, columns) };
                let (t_span, t_first) = View::of(t).bind(&gpu, stretch * length + e, count);
                let (y_span, y_first) = View::of(y).bind(&gpu, stretch * length + e, count);
                let (bias, bias_first) = bind(&bias, &gpu, j, j_count);
                let (centers, centers_first) = centers.bind(&gpu, j, j_count);
                self.dispatch(&Dispatch {
                    kernel: &kernel::SUBTRACT_MEANS,
                    module: WORDS,
                    constants: &constants,
                    buffers: &[t_span, bias, centers, y_span],
                    params: Params {
                        count: count as u32,
                        stride: columns as u32,
                        part_first: ((e - j) % columns) as u32,
                        firsts: firsts([t_first, bias_first, y_first, 0]),
                        more_firsts: centers_first,
                        ..Params::zeroed()
                    },
                    // In words, one more where the first element is an upper half.
                    groups: (count + per_word - 1).div_ceil(per_word).div_ceil(SUBTRACT_WORDS),
                    work: count,
                })?;
            }
        }
        Ok(())
    }

    fn statistics(&mut self, job: &Job<'_>) -> Result<(), Error> {
        let outputs = [&job.first, &job.second, &job.means, &job.factors.as_ref().map(|f| f.out.clone())];
        if job.columns == 0 || outputs.iter().all(|output| output.is_none()) {
            return Ok(());
        }
        let gpu = self.gpu().clone();
        let &Job { rows, columns, .. } = job;
        let plan = Plan::new(&gpu, job)?;
        let direct = plan.splits == 1;
        let part_count = if direct { 0 } else { plan.splits * plan.column_step };
        let parts = View::scratch(gpu.scratch(Scratch::Sums, part_count * PART_BYTES)?, PART_BYTES);
        let traits = gpu.traits();
        let mut ends: Constants = vec![("KIND", job.end.kind()), ("END", job.end as u32)];
        ends.extend(stored_as("GAIN_DTYPE", job.factors.as_ref().and_then(|f| f.g)));
        let mut constants = ends.clone();
        let module = match &plan.quads {
            Some(quads) => {
                constants.extend([("RUN", quads.run as u32), ("COLUMN_QUADS", quads.quads as u32)]);
                constants.push(("ROWS", traits.rows_at_once() as u32));
                QUADS
            }
            None => {
                constants.push(("CX", plan.cx as u32));
                WORDS
            }
        };
        constants.extend([("A_DTYPE", job.dtype.code()), ("HAS_U", job.u.is_some().into()), ("DIRECT", direct.into())]);
        for (j, count) in windows(columns, plan.column_step) {
            let (first, first_at) = bind(&job.first, &gpu, j, count);
            let (second, second_at) = bind(&job.second, &gpu, j, count);
            let (means, means_at) = match &job.factors {
                Some(factors) => factors.out.bind(&gpu, 4 * j, 4 * count),
                None => bind(&job.means, &gpu, j, count),
            };
            let factors = job.factors.as_ref();
            let (g, g_at) = bind(&factors.and_then(|f| f.g).map(View::of), &gpu, j, count);
            let (norms, norms_at) = bind(&factors.map(|f| f.norms.clone()), &gpu, j, count);
            let (part, _) = parts.bind(&gpu, 0, if direct { 0 } else { plan.splits * count });
            let params = Params {
                count: count as u32,
                stride: columns as u32,
                split_length: plan.split_length as u32,
                more_firsts: firsts([means_at, g_at, norms_at, 0]),
                policy: factors.map_or(0, |f| f.eps.code()),
                eps: factors.map_or(0.0, |f| f.eps.value()),
                flags: job.flags(),
                rate: if rows == 0 { 0.0 } else { (1.0 / rows as f64) as f32 },
                momentum: job.momentum,
                ..Params::zeroed()
            };
            for (split, split_count) in windows(plan.splits, plan.split_step) {
                let row = split * plan.split_length;
                let row_count = (split_count * plan.split_length).min(rows - row);
                let span = if row_count == 0 { 0 } else { (row_count - 1) * columns + count };
                let (a, a_first) = job.a.bind(&gpu, row * columns + j, span);
                let (u, u_first) = job.u.as_ref().map_or((None, 0), |u| u.bind(&gpu, row * columns + j, span));
                let ends = [&first, &second, &means, &g, &norms].map(|end| end.clone().filter(|_| direct));
                let [first, second, means, g, norms] = ends;
                self.dispatch(&Dispatch {
                    kernel: &kernel::BATCH_SUMS,
                    module,
                    constants: &constants,
                    buffers: &[a, u, part.clone(), first, second, means, g, norms],
                    params: Params {
                        rows: row_count as u32,
                        splits: split_count as u32,
                        part_first: (split * count) as u32,
                        firsts: firsts([a_first, u_first, first_at, second_at]),
                        ..params
                    },
                    groups: match &plan.quads {
                        Some(quads) => (quads.blocks * split_count).div_ceil(THREADS),
                        None => count.div_ceil(plan.cx) * split_count,
                    },
                    work: row_count * count,
                })?;
            }
            if direct {
                continue;
            }
            let fits = |cx: &u64| count.div_ceil(*cx) <= gpu.group_capacity();
            let cx = Some(traits.columns_to_finish(plan.cx, plan.splits)).filter(fits).unwrap_or(plan.cx);
            let mut constants = ends.clone();
            constants.push(("CX", cx as u32));
            self.dispatch(&Dispatch {
                kernel: &kernel::BATCH_FINISH,
                module: WORDS,
                constants: &constants,
                buffers: &[part, first, second, means, g, norms],
                params: Params {
                    rows: rows as u32,
                    splits: plan.splits as u32,
                    firsts: firsts([0, 0, first_at, second_at]),
                    ..params
                },
                groups: count.div_ceil(cx),
                work: plan.splits * count,
            })?;
        }
        Ok(())
    }
}

fn bind<'a>(view: &Option<View<'a>>, gpu: &Gpu, first: u64, count: u64) -> (Option<Span<'a>>, u32) {
    view.as_ref().map_or((None, 0), |view| view.bind(gpu, first, count))
}

/// A tensor of shape `[.., columns]` as (rows, columns). Its rank is at least 1.
fn matrix(tensor: &Tensor) -> (u64, u64) {
    let (columns, batch) = tensor.shape().split_last().expect("the rank was checked");
    (batch.iter().product::<usize>() as u64, *columns as u64)
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

impl<'a> Job<'a> {
    /// Nothing is written yet.
    fn new(a: View<'a>, dtype: DType, rows: u64, columns: u64, end: End) -> Job<'a> {
        let write = Write::Replace;
        let (u, first, second, means, factors) = (None, None, None, None, None);
        Job { a, dtype, rows, columns, u, end, first, second, means, factors, write, momentum: 0.0 }
    }

    fn flags(&self) -> u32 {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        flag(self.first.is_some(), HAS_FIRST)
            | flag(self.second.is_some(), HAS_SECOND)
            | flag(self.write == Write::Add, ACCUMULATE)
            | flag(self.factors.as_ref().is_some_and(|factors| factors.g.is_some()), HAS_GAIN)
    }
}

/// How statistics are split: `column_step` columns at a time, their rows in `splits` of `split_length`, `split_step`
/// of them in a dispatch, `cx` columns in a workgroup.
struct Plan {
    /// Four words at once.
    quads: Option<ColumnQuads>,
    cx: u64,
    column_step: u64,
    split_length: u64,
    splits: u64,
    split_step: u64,
}

impl Plan {
    fn new(gpu: &Gpu, job: &Job<'_>) -> Result<Plan, Error> {
        let &Job { rows, columns, .. } = job;
        let element = if job.u.is_some() { DType::F32.size() } else { job.dtype.size() };
        let capacity = gpu.binding_capacity();
        let groups = gpu.group_capacity();
        // A few rows are added up sooner by one invocation than put together from several.
        let most = if rows <= FEW_ROWS { THREADS } else { MAX_COLUMNS };
        let cx = columns.next_power_of_two().min(most);
        let cy = THREADS / cx;
        // An output has to fit its binding as well.
        let out = if job.factors.is_some() { 16 } else { DType::F32.size() };
        let column_step = columns.min(capacity / out).min(groups * cx);
        // The last row of a window needs column_step elements only.
        let rows_in_binding = (capacity / element - column_step) / columns + 1;
        let quads = Plan::quads(gpu, job).filter(|_| column_step == columns);
        let (enough, longest) = match &quads {
            Some(quads) => (
                (gpu.traits().enough_groups() * THREADS).div_ceil(quads.blocks).max(2),
                // Within a row the loops over quads and over a row's reads; columns whose sum has to be formed again go through
                // the rows one by one.
                MAX_ITERATIONS / (2 + quads.quads * (3 + choose::quad(job.dtype))),
            ),
            None => (ENOUGH_GROUPS.div_ceil(columns.div_ceil(cx)), MAX_ITERATIONS / 2 * cy),
        };
        // More rows than that are in pieces anyway: as short as the device likes them.
        let shortest = match &quads {
            Some(_) if rows > SHORTEST_SPLIT => gpu.traits().least_rows_of_a_piece().min(SHORTEST_SPLIT),
            _ => SHORTEST_SPLIT,
        };
        let useful = rows.div_ceil(shortest).min(enough);
        let split_length = rows.div_ceil(useful.max(1)).min(rows_in_binding).min(longest).max(1);
        let splits = rows.div_ceil(split_length).max(1);
        let parts_in_binding = capacity / PART_BYTES;
        let column_step = if splits == 1 { column_step } else { column_step.min(parts_in_binding / splits) };
        let quads = quads.filter(|_| column_step == columns);
        if column_step == 0 || splits.div_ceil(cy) > MAX_ITERATIONS / 2 {
            return Err(Error::TooLarge { what: "partial sums of a batch", size: splits, limit: parts_in_binding });
        }
        let short = if gpu.is_gl() { GL_WORK / (split_length * column_step) } else { u64::MAX };
        let in_groups = match &quads {
            Some(quads) => groups * THREADS / quads.blocks,
            None => groups / column_step.div_ceil(cx),
        };
        let split_step = (rows_in_binding / split_length).min(in_groups).min(short).max(1);
        Ok(Plan { quads, cx, column_step, split_length, splits, split_step })
    }

    /// How to sum up the columns four words at once, if that can be and pays.
    fn quads(gpu: &Gpu, job: &Job<'_>) -> Option<ColumnQuads> {
        let traits = gpu.traits();
        let units = job.columns / choose::quad(job.dtype);
        let aligned = |view: &View<'_>| view.offset.is_multiple_of(4 * choose::QUAD_WORDS);
        let whole = job.columns.is_multiple_of(choose::quad(job.dtype)) && job.end != End::Scales;
        let can = whole && aligned(&job.a) && job.u.as_ref().is_none_or(aligned);
        // The factors of a single split are made column by column, which a GPU had better do side by side: the other kernel. (With
        // more rows there are always two splits.)
        let single = job.rows <= SHORTEST_SPLIT;
        let at_once = job.factors.is_some() && single && traits.is_gpu();
        let pays = traits.sums_columns_in_quads(units) && job.rows > 0 && !at_once;
        (can && pays).then(|| if single { ColumnQuads::of_one(traits, units) } else { ColumnQuads::new(traits, units) })
    }
}
