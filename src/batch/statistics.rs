//! Sums and means over a batch, and what is made of them. Shaders: `shaders/batch`.
use bytemuck::Zeroable;

use crate::binding::{Bound, View, offsets};
use crate::choose::{self, ColumnQuads, Facts, Traits};
use crate::contract::stored_as;
use crate::kernel::{Constants, kernels, params};
use crate::memory::Scratch;
use crate::record::Dispatch;
use crate::source::Module;
use crate::windows::{Capacities, MAX_ITERATIONS, can_be_added_up, windows};
use crate::{DType, Eps, Error, LimitError, Recorder, Tensor};

const WORDS: Module = Module::new("batch/words");
const QUADS: Module = Module::new("batch/quads");
pub(crate) const MODULES: [Module; 2] = [WORDS, QUADS];

params! {
    struct StatisticsParams {
        count: u32,
        rows: u32,
        stride: u32,
        split_length: u32,
        splits: u32,
        first_partial: u32,
        offsets: u32,
        more_offsets: u32,
        flags: u32,
        rate: f32,
        momentum: f32,
        policy: u32,
        eps: f32,
    }
}

kernels! {
    BATCH_SUMS = "batch/statistics" "batch_sums", Some(THREADS), StatisticsParams,
        [0 Read, 1 Read, 2 Write, 3 Write, 4 Write, 5 Write, 6 Read, 7 Read];
    BATCH_FINISH = "batch/statistics" "batch_finish", Some(THREADS), StatisticsParams,
        [2 Write, 3 Write, 4 Write, 5 Write, 6 Read, 7 Read];
}

/// Invocations in a workgroup of `batch/statistics.wgsl`.
const THREADS: u64 = 64;
/// The most columns of a workgroup, but with up to `FEW_ROWS` rows.
const MAX_COLUMNS: u64 = 32;
const FEW_ROWS: u64 = 8;
/// `PartialStatistic` of `batch/statistics.wgsl`.
const PARTIAL_BYTES: u64 = 12;
/// Up to so many rows need one dispatch only.
const SHORTEST_SPLIT: u64 = 128;

const HAS_FIRST: u32 = 1;
const HAS_SECOND: u32 = 2;
const ACCUMULATE: u32 = 4;
const HAS_GAIN: u32 = 8;

/// What is made of the statistics: STATISTIC and OUTCOME of `batch/statistics.wgsl`.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Sums,
    Means,
    Scales,
    Factors,
}

impl Outcome {
    fn kind(self) -> u32 {
        (self == Outcome::Scales).into()
    }
}

/// Checked statistics of a [rows, columns] matrix.
pub(crate) struct Statistics<'a> {
    pub a: View<'a>,
    pub dtype: DType,
    pub rows: u64,
    pub columns: u64,
    pub u: Option<View<'a>>,
    pub outcome: Outcome,
    pub first: Option<View<'a>>,
    pub second: Option<View<'a>>,
    pub means: Option<View<'a>>,
    pub factors: Option<Factors<'a>>,
    pub accumulate: bool,
    pub momentum: f32,
}

/// The factors of each norm that the gradients of a weight-normalized product want, from dg of a batch.
#[derive(Clone)]
pub(crate) struct Factors<'a> {
    /// n̂, but n under [`Eps::After`].
    pub norms: View<'a>,
    pub g: Option<&'a Tensor>,
    pub eps: Eps,
    /// Four f32 a norm: `write_factors` of `batch/statistics.wgsl`.
    pub out: View<'a>,
}

/// Sums over the batch in one read of dy, as the backward pass of a linear layer needs them:
///
/// ```text
/// dbias_j = Σ_b dy[b,j]        dg_j = Σ_b dy[b,j] · u[b,j]
/// ```
///
/// `dy`: `[.., columns]`, any storage type. `u`: f32, as many elements; required for `dg`. `dbias`, `dg`: f32,
/// `columns` elements each, in buffers other than those of dy and u; with `accumulate` they are added to. `factors` are
/// made of dg of this batch alone, whatever `accumulate`; without u their dg is 0.
/// None of them may be `Scratch::Sums`. Arguments are checked by the caller.
///
/// One dispatch up to a batch of 128, two beyond (partial sums, then their sum), more past the limits of a binding
/// or a dispatch. Deterministic.
pub(crate) fn column_dot_sums<'a>(
    ops: &mut Recorder<'_, '_>,
    dy: &'a Tensor,
    u: Option<View<'a>>,
    dbias: Option<View<'a>>,
    dg: Option<View<'a>>,
    factors: Option<Factors<'a>>,
    accumulate: bool,
) -> Result<(), Error> {
    debug_assert!(dg.is_none() || u.is_some(), "dg is made of u");
    let (rows, columns) = matrix(dy);
    // Factors without any sum need no look at dy.
    let rows = if u.is_none() && dbias.is_none() { 0 } else { rows };
    let outcome = if factors.is_some() { Outcome::Factors } else { Outcome::Sums };
    reduce(
        ops,
        &Statistics {
            u,
            first: dbias,
            second: dg,
            factors,
            accumulate,
            ..Statistics::new(View::of(dy), dy.dtype(), rows, columns, outcome)
        },
    )
}

pub(crate) fn reduce(ops: &mut Recorder<'_, '_>, job: &Statistics<'_>) -> Result<(), Error> {
    let outputs = [&job.first, &job.second, &job.means, &job.factors.as_ref().map(|f| f.out.clone())];
    if job.columns == 0 || outputs.iter().all(|output| output.is_none()) {
        return Ok(());
    }
    let Facts { traits, capacities } = ops.facts();
    let &Statistics { rows, columns, .. } = job;
    let plan = StatisticsPlan::new(ops.facts(), job)?;
    let direct = plan.splits == 1;
    let partial_count = if direct { 0 } else { plan.splits * plan.column_step };
    let all_partials = View::scratch(ops.scratch(Scratch::Sums, partial_count * PARTIAL_BYTES)?, PARTIAL_BYTES);
    let mut of_outcome: Constants = vec![("STATISTIC", job.outcome.kind()), ("OUTCOME", job.outcome as u32)];
    of_outcome.extend(stored_as("GAIN_DTYPE", job.factors.as_ref().and_then(|f| f.g)));
    let mut constants = of_outcome.clone();
    let module = match &plan.quads {
        Some(quads) => {
            constants.extend([("RUN", quads.run as u32), ("COLUMN_QUADS", quads.quads as u32)]);
            constants.push(("ROWS_AT_ONCE", traits.rows_at_once() as u32));
            QUADS
        }
        None => {
            constants.push(("CX", plan.cx as u32));
            WORDS
        }
    };
    constants.extend([("A_DTYPE", job.dtype.code()), ("HAS_U", job.u.is_some().into()), ("DIRECT", direct.into())]);
    for (j, count) in windows(columns, plan.column_step) {
        let (first, first_at) = bind(&job.first, capacities, j, count);
        let (second, second_at) = bind(&job.second, capacities, j, count);
        let (means, means_at) = match &job.factors {
            Some(factors) => factors.out.bind(capacities, 4 * j, 4 * count),
            None => bind(&job.means, capacities, j, count),
        };
        let factors = job.factors.as_ref();
        let (g, g_at) = bind(&factors.and_then(|f| f.g).map(View::of), capacities, j, count);
        let (norms, norms_at) = bind(&factors.map(|f| f.norms.clone()), capacities, j, count);
        let (partials, _) = all_partials.bind(capacities, 0, if direct { 0 } else { plan.splits * count });
        let params = StatisticsParams {
            count: count as u32,
            stride: columns as u32,
            split_length: plan.split_length as u32,
            more_offsets: offsets([means_at, g_at, norms_at, 0]),
            policy: factors.map_or(0, |f| f.eps.code()),
            eps: factors.map_or(0.0, |f| f.eps.value()),
            flags: job.flags(),
            rate: if rows == 0 { 0.0 } else { (1.0 / rows as f64) as f32 },
            momentum: job.momentum,
            ..StatisticsParams::zeroed()
        };
        for (split, split_count) in windows(plan.splits, plan.split_step) {
            let row = split * plan.split_length;
            let row_count = (split_count * plan.split_length).min(rows - row);
            let span = if row_count == 0 { 0 } else { (row_count - 1) * columns + count };
            let (a, a_first) = job.a.bind(capacities, row * columns + j, span);
            let (u, u_first) = job.u.as_ref().map_or((None, 0), |u| u.bind(capacities, row * columns + j, span));
            let outputs = [&first, &second, &means, &g, &norms].map(|output| output.clone().filter(|_| direct));
            let [first, second, means, g, norms] = outputs;
            ops.dispatch(&Dispatch {
                kernel: &BATCH_SUMS,
                module,
                constants: &constants,
                buffers: &[a, u, partials.clone(), first, second, means, g, norms],
                params: StatisticsParams {
                    rows: row_count as u32,
                    splits: split_count as u32,
                    first_partial: (split * count) as u32,
                    offsets: offsets([a_first, u_first, first_at, second_at]),
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
        let fits = |cx: &u64| count.div_ceil(*cx) <= capacities.groups;
        let cx = Some(traits.columns_to_finish(plan.cx, plan.splits)).filter(fits).unwrap_or(plan.cx);
        let mut constants = of_outcome.clone();
        constants.push(("CX", cx as u32));
        ops.dispatch(&Dispatch {
            kernel: &BATCH_FINISH,
            module: WORDS,
            constants: &constants,
            buffers: &[partials, first, second, means, g, norms],
            params: StatisticsParams {
                rows: rows as u32,
                splits: plan.splits as u32,
                offsets: offsets([0, 0, first_at, second_at]),
                ..params
            },
            groups: count.div_ceil(cx),
            work: plan.splits * count,
        })?;
    }
    Ok(())
}

/// A tensor of shape `[.., columns]` as (rows, columns). Its rank is at least 1.
pub(crate) fn matrix(tensor: &Tensor) -> (u64, u64) {
    let (columns, batch) = tensor.shape().split_last().expect("the rank was checked");
    (batch.iter().product::<usize>() as u64, *columns as u64)
}

fn bind<'a>(view: &Option<View<'a>>, capacities: Capacities, first: u64, count: u64) -> Bound<'a> {
    view.as_ref().map_or((None, 0), |view| view.bind(capacities, first, count))
}

impl<'a> Statistics<'a> {
    /// Nothing is written yet.
    pub fn new(a: View<'a>, dtype: DType, rows: u64, columns: u64, outcome: Outcome) -> Statistics<'a> {
        let (u, first, second, means, factors) = (None, None, None, None, None);
        Statistics {
            a,
            dtype,
            rows,
            columns,
            u,
            outcome,
            first,
            second,
            means,
            factors,
            accumulate: false,
            momentum: 0.0,
        }
    }

    fn flags(&self) -> u32 {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        flag(self.first.is_some(), HAS_FIRST)
            | flag(self.second.is_some(), HAS_SECOND)
            | flag(self.accumulate, ACCUMULATE)
            | flag(self.factors.as_ref().is_some_and(|factors| factors.g.is_some()), HAS_GAIN)
    }
}

/// How statistics are split: `column_step` columns at a time, their rows in `splits` of `split_length`, `split_step`
/// of them in a dispatch, `cx` columns in a workgroup.
struct StatisticsPlan {
    /// Four words at once.
    quads: Option<ColumnQuads>,
    cx: u64,
    column_step: u64,
    split_length: u64,
    splits: u64,
    split_step: u64,
}

impl StatisticsPlan {
    fn new(Facts { traits, capacities }: Facts, job: &Statistics<'_>) -> Result<StatisticsPlan, Error> {
        let &Statistics { rows, columns, .. } = job;
        let element = if job.u.is_some() { DType::F32.size() } else { job.dtype.size() };
        let groups = capacities.groups;
        // A few rows are added up sooner by one invocation than put together from several.
        let most = if rows <= FEW_ROWS { THREADS } else { MAX_COLUMNS };
        let cx = columns.next_power_of_two().min(most);
        let cy = THREADS / cx;
        // An output has to fit its binding as well.
        let out = if job.factors.is_some() { 16 } else { DType::F32.size() };
        let column_step = capacities.step().bound(out).in_groups(cx).at_most(columns).get();
        // The last row of a window needs column_step elements only.
        let rows_in_binding = (capacities.bound(element) - column_step) / columns + 1;
        let quads = StatisticsPlan::quads(traits, job).filter(|_| column_step == columns);
        let (enough, longest) = match &quads {
            Some(quads) => (
                (traits.enough_groups() * THREADS).div_ceil(quads.blocks).max(2),
                // Within a row the loops over quads and over a row's reads; columns whose sum has to be formed again go
                // through the rows one by one.
                MAX_ITERATIONS / (2 + quads.quads * (3 + choose::quad(job.dtype))),
            ),
            None => (choose::ENOUGH_GROUPS.div_ceil(columns.div_ceil(cx)), MAX_ITERATIONS / 2 * cy),
        };
        // More rows than that are in pieces anyway: as short as the device likes them.
        let shortest = match &quads {
            Some(_) if rows > SHORTEST_SPLIT => traits.least_rows_of_a_piece().min(SHORTEST_SPLIT),
            _ => SHORTEST_SPLIT,
        };
        let useful = rows.div_ceil(shortest).min(enough);
        let split_length = rows.div_ceil(useful.max(1)).min(rows_in_binding).min(longest).max(1);
        let splits = rows.div_ceil(split_length).max(1);
        let partials_in_binding = capacities.bound(PARTIAL_BYTES);
        let column_step = if splits == 1 { column_step } else { column_step.min(partials_in_binding / splits) };
        let quads = quads.filter(|_| column_step == columns);
        if column_step == 0 || !can_be_added_up(splits, cy) {
            return Err(LimitError::TooLarge {
                what: "partial sums of a batch",
                size: splits,
                limit: partials_in_binding,
            }
            .into());
        }
        let in_groups = match &quads {
            Some(quads) => groups * THREADS / quads.blocks,
            None => groups / column_step.div_ceil(cx),
        };
        let split_step =
            (rows_in_binding / split_length).min(in_groups).min(capacities.work(split_length * column_step)).max(1);
        Ok(StatisticsPlan { quads, cx, column_step, split_length, splits, split_step })
    }

    /// How to sum up the columns four words at once, if that can be and pays.
    fn quads(traits: Traits, job: &Statistics<'_>) -> Option<ColumnQuads> {
        let units = job.columns / choose::quad(job.dtype);
        let aligned = |view: &View<'_>| view.offset.is_multiple_of(4 * choose::QUAD_WORDS);
        let whole = job.columns.is_multiple_of(choose::quad(job.dtype)) && job.outcome != Outcome::Scales;
        let can = whole && aligned(&job.a) && job.u.as_ref().is_none_or(aligned);
        // The factors of a single split are made column by column, which a GPU had better do side by side: the other
        // kernel. (With more rows there are always two splits.)
        let single = job.rows <= SHORTEST_SPLIT;
        let at_once = job.factors.is_some() && single && traits.is_gpu();
        let pays = traits.sums_columns_in_quads(units) && job.rows > 0 && !at_once;
        (can && pays).then(|| if single { ColumnQuads::of_one(traits, units) } else { ColumnQuads::new(traits, units) })
    }
}
