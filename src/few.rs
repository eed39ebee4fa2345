//! Both products of the backward pass in one read of the weight, for a batch of a few rows. Shader: `few.wgsl`.
use bytemuck::{Pod, Zeroable};

use crate::gpu::Scratch;
use crate::kernel::{self, Constants, Module};
use crate::record::{Dispatch, View, firsts};
use crate::walk::Word;
use crate::{DType, Error, Gpu, Recorder, Tensor};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    outs: u32,
    quads: u32,
    firsts: u32,
    more_firsts: u32,
    split_length: u32,
    splits: u32,
}

/// The most rows of x.
const MAX_ROWS: u64 = 8;

/// `FINISH_THREADS` of `few.wgsl`.
const FINISH_THREADS: u64 = 64;
/// Rows of v in a split, of which the host's tables of memory pages hold as many as are come back to.
const SPLIT_LENGTH: u64 = 512;
/// Up to so many rows the second dispatch costs more. An invocation loops up to eleven times for each of them.
const LONGEST_SPLIT: u64 = 1024;

/// The tensors of both products, which are checked. None is empty.
pub(crate) struct Few<'a> {
    pub x: &'a Tensor,
    pub v: &'a Tensor,
    pub dy: &'a Tensor,
    pub dx: &'a Tensor,
    pub dv: &'a Tensor,
    /// Four f32 a norm; none for an ordinary weight.
    pub factors: Option<View<'a>>,
}

impl Few<'_> {
    /// outs, ins.
    fn sizes(&self) -> [u64; 2] {
        [0, 1].map(|i| self.v.shape()[i] as u64)
    }

    /// How, if it can be done and pays: where a CPU computes.
    fn plan(&self, gpu: &Gpu) -> Option<Plan> {
        let lanes = gpu.lanes().filter(|_| gpu.is_cpu())?;
        let [outs, ins] = self.sizes();
        let in_quads = [self.x, self.v, self.dx, self.dv];
        let can = ins.is_multiple_of(4)
            && self.dy.len() as u64 <= MAX_ROWS * outs
            && in_quads.iter().all(|tensor| tensor.offset().is_multiple_of(16))
            && in_quads
                .iter()
                .chain([&self.dy])
                .all(|t| t.dtype() == DType::F32 && t.bytes() <= gpu.binding_capacity())
            && outs * 16 <= gpu.binding_capacity();
        // As many as leave a few workgroups.
        let quads = (ins / 4 / (lanes * 4)).next_power_of_two().clamp(1, 8);
        let split_length = if outs <= LONGEST_SPLIT { outs } else { SPLIT_LENGTH };
        let splits = outs.div_ceil(split_length);
        let blocks = (ins / 4).div_ceil(lanes * quads);
        (can && blocks * splits <= gpu.group_capacity()).then_some(Plan { lanes, quads, blocks, split_length, splits })
    }
}

struct Plan {
    lanes: u64,
    /// Of a lane.
    quads: u64,
    /// Of columns.
    blocks: u64,
    split_length: u64,
    splits: u64,
}

impl Recorder<'_, '_> {
    /// Records dx and dv in one dispatch, if that can be done and pays: whether it was recorded.
    pub(crate) fn few(&mut self, few: &Few<'_>) -> Result<bool, Error> {
        let gpu = self.gpu().clone();
        let Some(plan) = few.plan(&gpu) else { return Ok(false) };
        let [outs, ins] = few.sizes();
        let bind = |tensor| View::of(tensor).bind(&gpu, 0, tensor.len() as u64);
        let (x, x_first) = bind(few.x);
        let (v, v_first) = bind(few.v);
        let (dy, dy_first) = bind(few.dy);
        let (dx, dx_first) = bind(few.dx);
        let (dv, dv_first) = bind(few.dv);
        let (factors, factors_first) = few.factors.as_ref().map_or((None, 0), |factors| factors.bind(&gpu, 0, outs));
        let rows = few.dy.len() as u64 / outs;
        let split = plan.splits > 1;
        let part_count = if split { plan.splits * rows * ins } else { 0 };
        let (part, _) = View::scratch(gpu.scratch(Scratch::Sums, part_count * 4)?, 4).bind(&gpu, 0, part_count);
        let params = Params {
            rows: rows as u32,
            outs: outs as u32,
            quads: (ins / 4) as u32,
            firsts: firsts([x_first, v_first, dy_first, if split { 0 } else { dx_first }]),
            more_firsts: firsts([dv_first, factors_first, 0, 0]),
            split_length: plan.split_length as u32,
            splits: plan.splits as u32,
        };
        let constants: Constants = vec![
            ("NORMED", few.factors.is_some().into()),
            ("WX", plan.lanes as u32),
            ("ROWS", rows.next_power_of_two() as u32),
            ("QUADS", plan.quads as u32),
        ];
        let module = Module::Few(Word::best(&gpu));
        self.dispatch(&Dispatch {
            kernel: &kernel::FEW,
            module,
            constants: &constants,
            buffers: &[x, v, dy, factors, if split { part.clone() } else { dx.clone() }, dv],
            params,
            groups: plan.blocks * plan.splits,
            work: 2 * rows * outs * ins,
        })?;
        if split {
            self.dispatch(&Dispatch {
                kernel: &kernel::FEW_FINISH,
                module,
                constants: &vec![],
                buffers: &[dx, part],
                params: Params { firsts: firsts([0, 0, 0, dx_first]), ..params },
                groups: (rows * ins / 4).div_ceil(FINISH_THREADS),
                work: rows * ins * plan.splits,
            })?;
        }
        Ok(true)
    }
}
