//! Statistics over the batch. Shader: `batch.wgsl`.
use bytemuck::{Pod, Zeroable};

use crate::gpu::Scratch;
use crate::kernel::{self, Constants, MAX_ITERATIONS, Module};
use crate::norms::{ENOUGH_GROUPS, windows};
use crate::record::{Dispatch, GL_WORK, View, firsts};
use crate::{DType, Error, Gpu, Recorder, Tensor};

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
    means_first: u32,
    flags: u32,
    rate: f32,
    momentum: f32,
}

/// Invocations in a workgroup of `batch.wgsl`.
const THREADS: u64 = 64;
/// The most columns of a workgroup.
const MAX_COLUMNS: u64 = 32;
/// The fewest rows worth a split of their own: up to so many need one dispatch only.
const SHORTEST_SPLIT: u64 = 128;

const HAS_FIRST: u32 = 1;
const HAS_SECOND: u32 = 2;
const ACCUMULATE: u32 = 4;

/// Whether an output is replaced or added to, as the gradients of micro-batches are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Write {
    /// out = result
    #[default]
    Replace,
    /// out = out + result
    Add,
}

/// What is made of the statistics: KIND and END of `batch.wgsl`.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Sums,
    Means,
    Scales,
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
    write: Write,
    momentum: f32,
}

impl Recorder<'_, '_> {
    /// Sums over the batch in one read of dy, as the backward pass of a linear layer needs them:
    ///
    ///     dbias_j = Σ_b dy[b,j]        dg_j = Σ_b dy[b,j] · u[b,j]
    ///
    /// `dy`: `[.., columns]`, any storage type. `u`: f32, as many elements; required for `dg`. `dbias`, `dg`: f32,
    /// `columns` elements each, in buffers other than those of dy and u; with `Write::Add` they are added to.
    /// None of them may be `Scratch::Sums`. Arguments are checked by the caller.
    ///
    /// One dispatch up to a batch of 128, two beyond (partial sums, then their sum), more past the limits of a binding
    /// or a dispatch. Deterministic.
    #[expect(dead_code, reason = "linear_backward will call it")]
    pub(crate) fn column_dot_sums<'a>(
        &mut self,
        dy: &'a Tensor,
        u: Option<View<'a>>,
        dbias: Option<View<'a>>,
        dg: Option<View<'a>>,
        write: Write,
    ) -> Result<(), Error> {
        debug_assert!(dg.is_none() || u.is_some(), "dg is made of u");
        let (rows, columns) = matrix(dy);
        self.statistics(&Job {
            a: View::of(dy),
            dtype: dy.dtype(),
            rows,
            columns,
            u: u.filter(|_| dg.is_some()),
            end: End::Sums,
            first: dbias,
            second: dg,
            means: None,
            write,
            momentum: 0.0,
        })
    }

    fn statistics(&mut self, job: &Job<'_>) -> Result<(), Error> {
        if job.columns == 0 || (job.first.is_none() && job.second.is_none() && job.means.is_none()) {
            return Ok(());
        }
        let gpu = self.gpu().clone();
        let &Job { rows, columns, .. } = job;
        let plan = Plan::new(&gpu, job)?;
        let direct = plan.splits == 1;
        let part_count = if direct { 0 } else { plan.splits * plan.column_step };
        let parts = View::scratch(gpu.scratch(Scratch::Sums, part_count * 8)?, 8);
        let ends: Constants = vec![("KIND", job.end.kind()), ("END", job.end as u32), ("CX", plan.cx as u32)];
        let mut constants = ends.clone();
        constants.extend([("A_DTYPE", job.dtype.code()), ("HAS_U", job.u.is_some().into()), ("DIRECT", direct.into())]);
        for (j, count) in windows(columns, plan.column_step) {
            let (first, first_at) = bind(&job.first, &gpu, j, count);
            let (second, second_at) = bind(&job.second, &gpu, j, count);
            let (means, means_at) = bind(&job.means, &gpu, j, count);
            let (part, _) = parts.bind(&gpu, 0, if direct { 0 } else { plan.splits * count });
            let params = Params {
                count: count as u32,
                stride: columns as u32,
                split_length: plan.split_length as u32,
                means_first: means_at,
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
                let outputs = if direct { [first.clone(), second.clone(), means.clone()] } else { [None, None, None] };
                let [first, second, means] = outputs;
                self.dispatch(&Dispatch {
                    kernel: &kernel::BATCH_SUMS,
                    module: Module::Batch,
                    constants: &constants,
                    buffers: &[a, u, part.clone(), first, second, means],
                    params: Params {
                        rows: row_count as u32,
                        splits: split_count as u32,
                        part_first: (split * count) as u32,
                        firsts: firsts([a_first, u_first, first_at, second_at]),
                        ..params
                    },
                    groups: count.div_ceil(plan.cx) * split_count,
                    work: row_count * count,
                })?;
            }
            if direct {
                continue;
            }
            self.dispatch(&Dispatch {
                kernel: &kernel::BATCH_FINISH,
                module: Module::Batch,
                constants: &ends,
                buffers: &[part, first, second, means],
                params: Params {
                    rows: rows as u32,
                    splits: plan.splits as u32,
                    firsts: firsts([0, 0, first_at, second_at]),
                    ..params
                },
                groups: count.div_ceil(plan.cx),
                work: plan.splits * count,
            })?;
        }
        Ok(())
    }
}

fn bind<'a>(view: &Option<View<'a>>, gpu: &Gpu, first: u64, count: u64) -> (Option<crate::record::Span<'a>>, u32) {
    view.as_ref().map_or((None, 0), |view| view.bind(gpu, first, count))
}

/// A tensor of shape `[.., columns]` as (rows, columns). Its rank is at least 1.
fn matrix(tensor: &Tensor) -> (u64, u64) {
    let (columns, batch) = tensor.shape().split_last().expect("the rank was checked");
    (batch.iter().product::<usize>() as u64, *columns as u64)
}

impl Job<'_> {
    fn flags(&self) -> u32 {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        flag(self.first.is_some(), HAS_FIRST)
            | flag(self.second.is_some(), HAS_SECOND)
            | flag(self.write == Write::Add, ACCUMULATE)
    }
}

/// How statistics are split: `column_step` columns at a time, their rows in `splits` of `split_length`, `split_step`
/// of them in a dispatch, `cx` columns in a workgroup.
struct Plan {
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
        let cx = columns.next_power_of_two().min(MAX_COLUMNS);
        let cy = THREADS / cx;
        // An output has to fit its binding as well.
        let column_step = columns.min(capacity / DType::F32.size()).min(groups * cx);
        // The last row of a window needs column_step elements only.
        let rows_in_binding = (capacity / element - column_step) / columns + 1;
        let useful = rows.div_ceil(SHORTEST_SPLIT).min(ENOUGH_GROUPS.div_ceil(columns.div_ceil(cx)));
        let split_length = rows.div_ceil(useful.max(1)).min(rows_in_binding).min(MAX_ITERATIONS / 2 * cy).max(1);
        let splits = rows.div_ceil(split_length).max(1);
        let parts_in_binding = capacity / 8;
        let column_step = if splits == 1 { column_step } else { column_step.min(parts_in_binding / splits) };
        if column_step == 0 || splits.div_ceil(cy) > MAX_ITERATIONS / 2 {
            return Err(Error::TooLarge { what: "partial sums of a batch", size: splits, limit: parts_in_binding });
        }
        let short = if gpu.is_gl() { GL_WORK / (split_length * column_step) } else { u64::MAX };
        let split_step = (rows_in_binding / split_length).min(groups / column_step.div_ceil(cx)).min(short).max(1);
        Ok(Plan { cx, column_step, split_length, splits, split_step })
    }
}
