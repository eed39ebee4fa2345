//! The dispatches of a product.
use bytemuck::Zeroable;

use super::epilogue::{Epilogue, FINISH_THREADS, ProductParams, ProductWindow, Stage};
use super::plan::{PARTIAL_BYTES, ProductFacts, ProductPlan};
use super::selection::{Problem, Selection};
use super::shape::TileShape;
use super::tile::{Family, Tile};
use super::variant::{OperandRead, RESULTS};
use crate::binding::{Bound, View, offsets};
use crate::choose::Facts;
use crate::kernel::Constants;
use crate::memory::Scratch;
use crate::record::Dispatch;
use crate::source::Module;
use crate::windows::{Capacities, windows};
use crate::{DType, Error, Recorder, Tensor};

/// A or B: a matrix with k along its rows, (m, k), or along its columns, (k, m).
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub tensor: &'a Tensor,
    pub along_k: bool,
}

/// Whether cooperative matrices can multiply them.
pub(crate) fn are_halves<'a>(operands: impl IntoIterator<Item = &'a Tensor>) -> bool {
    operands.into_iter().all(|operand| operand.dtype() == DType::F16)
}

/// A product whose arguments are checked. Nothing of it is empty, but depth may be 0.
pub(crate) struct Product<'a> {
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    /// Bytes of an element of the widest tensor shaped as C.
    pub c_bytes: u64,
    pub rows: u64,
    pub columns: u64,
    pub depth: u64,
    pub selection: Selection,
    pub epilogue: &'a dyn Epilogue<'a>,
}

pub(crate) fn multiply(ops: &mut Recorder<'_, '_>, product: &Product<'_>) -> Result<(), Error> {
    let plan = product.plan(ops)?;
    match plan.split_length {
        None => whole_sums(ops, product, &plan),
        Some(split_length) => split_sums(ops, product, &plan, split_length),
    }
}

/// Of a plan without pieces of sums.
pub(crate) fn whole_sums(ops: &mut Recorder<'_, '_>, product: &Product<'_>, plan: &ProductPlan) -> Result<(), Error> {
    let capacities = ops.facts().capacities;
    for window in plan.windows(product.problem().size) {
        let (a, a_first) = product.a.bind(capacities, window.row, window.rows, &window, product.rows, product.depth);
        let (b, b_first) =
            product.b.bind(capacities, window.column, window.columns, &window, product.columns, product.depth);
        let reads = product.reads(plan.tile.tile.family(), &window, a_first, b_first);
        let epilogue = product.epilogue.of(capacities, Stage::Whole, &window);
        let mut buffers = vec![a, b];
        buffers.extend(epilogue.buffers);
        ops.dispatch(&Dispatch {
            kernel: product.epilogue.kernels()[Stage::Whole as usize],
            module: product.module(plan.tile.tile, reads, epilogue.quads && window.columns.is_multiple_of(4)),
            constants: &product.constants(plan.tile, epilogue.constants, reads, &window, window.depth),
            buffers: &buffers,
            params: ProductParams {
                splits: 1,
                split_length: window.depth as u32,
                offsets: offsets([a_first, b_first, epilogue.offsets[0], epilogue.offsets[1]]),
                more_offsets: offsets(epilogue.more_offsets),
                ..product.params(&window)
            },
            groups: plan.tiles(&window),
            work: plan.work(&window),
        })?;
    }
    Ok(())
}

/// Partial sums over pieces of k, then their sum.
fn split_sums(
    ops: &mut Recorder<'_, '_>,
    product: &Product<'_>,
    plan: &ProductPlan,
    split_length: u64,
) -> Result<(), Error> {
    let capacities = ops.facts().capacities;
    let splits = product.depth.div_ceil(split_length);
    let [column_sums, row_sums] = [product.epilogue.column_sums(), product.epilogue.row_sums()].map(u64::from);
    let count = |window: &ProductWindow| {
        // Those of rows lie behind those of columns, whether there are any or not.
        let beside = column_sums.max(row_sums);
        splits * (window.columns * (window.rows + beside) + row_sums * window.rows)
    };
    let largest =
        ProductWindow { row: 0, rows: plan.rows, column: 0, columns: plan.columns, k: 0, depth: product.depth };
    let sums = View::scratch(ops.scratch(Scratch::Sums, count(&largest) * PARTIAL_BYTES)?, PARTIAL_BYTES);
    for window in plan.windows(product.problem().size) {
        let (part, _) = sums.bind(capacities, 0, count(&window));
        let params =
            ProductParams { splits: splits as u32, split_length: split_length as u32, ..product.params(&window) };
        for (split, split_count) in windows(splits, plan.split_step) {
            let k = split * split_length;
            let piece = ProductWindow { k, depth: (split_count * split_length).min(product.depth - k), ..window };
            let (a, a_first) = product.a.bind(capacities, piece.row, piece.rows, &piece, product.rows, product.depth);
            let (b, b_first) =
                product.b.bind(capacities, piece.column, piece.columns, &piece, product.columns, product.depth);
            let reads = product.reads(plan.tile.tile.family(), &piece, a_first, b_first);
            let epilogue = product.epilogue.of(capacities, Stage::Partial, &piece);
            let mut buffers = vec![a, b];
            buffers.extend(epilogue.buffers);
            buffers.push(part.clone());
            ops.dispatch(&Dispatch {
                kernel: product.epilogue.kernels()[Stage::Partial as usize],
                module: product.module(plan.tile.tile, reads, false),
                constants: &product.constants(plan.tile, epilogue.constants, reads, &piece, split_length),
                buffers: &buffers,
                params: ProductParams {
                    depth: piece.depth as u32,
                    split_first: split as u32,
                    offsets: offsets([a_first, b_first, epilogue.offsets[0], epilogue.offsets[1]]),
                    more_offsets: offsets(epilogue.more_offsets),
                    ..params
                },
                groups: plan.tiles(&piece) * split_count,
                work: plan.work(&piece),
            })?;
        }
        let epilogue = product.epilogue.of(capacities, Stage::Finish, &window);
        let mut buffers = epilogue.buffers;
        buffers.push(part);
        ops.dispatch(&Dispatch {
            kernel: product.epilogue.kernels()[Stage::Finish as usize],
            module: product.module(Tile::Tile64x64, OperandRead::BOTH[0], false),
            constants: &epilogue.constants,
            buffers: &buffers,
            params: ProductParams {
                offsets: offsets([0, 0, epilogue.offsets[0], epilogue.offsets[1]]),
                more_offsets: offsets(epilogue.more_offsets),
                ..params
            },
            groups: (window.rows * window.columns).div_ceil(FINISH_THREADS),
            work: window.rows * window.columns * splits,
        })?;
    }
    Ok(())
}

impl<'a> Operand<'a> {
    /// Binds the rows `first ..` of the product and the window's steps of k; the whole matrix has `rows` by `depth`, or
    /// fewer rows, where some columns of a product repeat others.
    fn bind(
        &self,
        capacities: Capacities,
        first: u64,
        count: u64,
        window: &ProductWindow,
        rows: u64,
        depth: u64,
    ) -> Bound<'a> {
        let view = View::of(self.tensor);
        match (window.depth, self.along_k) {
            (0, _) => (None, 0),
            (_, true) => {
                let count = count.min(self.tensor.len() as u64 / depth - first);
                view.bind(capacities, first * depth + window.k, (count - 1) * depth + window.depth)
            }
            (_, false) => view.bind(capacities, window.k * rows + first, (window.depth - 1) * rows + count),
        }
    }
}

impl<'a> Product<'a> {
    fn problem(&self) -> Problem {
        Problem {
            along_k: [self.a.along_k, self.b.along_k],
            dtypes: [self.a.tensor.dtype(), self.b.tensor.dtype()],
            size: [self.rows, self.columns, self.depth],
        }
    }

    fn params(&self, window: &ProductWindow) -> ProductParams {
        let (policy, eps) = self.epilogue.policy();
        let [next, zeros] = self.epilogue.of_cells();
        let stride = |operand: &Operand<'_>, rows: u64| if operand.along_k { self.depth } else { rows } as u32;
        ProductParams {
            rows: window.rows as u32,
            columns: window.columns as u32,
            depth: if self.epilogue.has_no_sums() { 0 } else { window.depth as u32 },
            a_stride: stride(&self.a, self.rows),
            b_stride: stride(&self.b, self.columns),
            c_stride: self.columns as u32,
            policy,
            eps,
            slope: self.epilogue.slope(),
            next,
            zeros,
            ..ProductParams::zeroed()
        }
    }

    /// `quads`: whether the result and all that is shaped as it can be written four elements at a time.
    fn module(&self, tile: Tile, reads: [OperandRead; 2], quads: bool) -> Module {
        let result = match self.epilogue.out() {
            DType::F32 if quads => RESULTS[2],
            DType::F32 => RESULTS[0],
            DType::F16 | DType::Bf16 => RESULTS[1],
        };
        self.epilogue.fill(tile.family().module(self.epilogue.kernels()[0].file, reads, result))
    }

    /// How the operands are read, given the places of their first elements within their bindings.
    fn reads(&self, family: Family, window: &ProductWindow, a_first: u32, b_first: u32) -> [OperandRead; 2] {
        let whole_quads = |operand: &Operand<'_>, first: u32, rows: u64, all_rows: u64| {
            let lengths = if operand.along_k { [self.depth, window.depth] } else { [all_rows, rows] };
            first.is_multiple_of(4) && lengths.iter().all(|length| length.is_multiple_of(4))
        };
        let in_quads = whole_quads(&self.a, a_first, window.rows, self.rows)
            && whole_quads(&self.b, b_first, window.columns, self.columns);
        let read = |operand: Operand<'_>| {
            if operand.tensor.dtype() == DType::F32 { OperandRead::Quad } else { OperandRead::Pair }
        };
        let reads = [self.a, self.b].map(read);
        if in_quads && family.can_read(reads) { reads } else { OperandRead::BOTH[0] }
    }

    /// `length`: steps of k that an invocation goes through.
    fn constants(
        &self,
        shape: TileShape,
        mut constants: Constants,
        [a, b]: [OperandRead; 2],
        window: &ProductWindow,
        length: u64,
    ) -> Constants {
        let TileShape { wx, wy, tm, tn, threads, .. } = shape;
        constants.extend([("WX", wx as u32), ("WY", wy as u32), ("TM", tm as u32), ("TN", tn as u32)]);
        constants.extend([("A_ALONG_K", self.a.along_k.into()), ("B_ALONG_K", self.b.along_k.into())]);
        if a != OperandRead::Quad {
            constants.push(("A_DTYPE", self.a.tensor.dtype().code()));
        }
        if b != OperandRead::Quad {
            constants.push(("B_DTYPE", self.b.tensor.dtype().code()));
        }
        constants
            .extend([("SQUARES", self.epilogue.column_sums().into()), ("SCALED_B", self.epilogue.scales_b().into())]);
        match shape.tile.family() {
            Family::Tile => constants.extend([
                ("BK", shape.steps as u32),
                ("STEP", 4 * wx as u32),
                ("IN_PIECES", (shape.tile == Tile::Tile128x8).into()),
                ("WHOLE_STEPS", (window.depth > 0 && window.depth.is_multiple_of(shape.steps)).into()),
            ]),
            Family::Stream => constants.extend([("THREADS", threads as u32), ("WK", (threads / wx) as u32)]),
            Family::Subgroup => constants.extend([
                ("RAGGED", (a == OperandRead::Scalar || !window.depth.is_multiple_of(8)).into()),
                ("REDO_STEPS", shape.redo_steps(length) as u32),
            ]),
            Family::Cooperative8 | Family::Cooperative16 => constants.push(("LEAST_LANES", (wx * wy / 4) as u32)),
            Family::Narrow => {}
        }
        constants
    }

    fn facts(&self) -> ProductFacts {
        ProductFacts {
            problem: self.problem(),
            c_bytes: self.c_bytes,
            cooperative: are_halves([self.a.tensor, self.b.tensor])
                && !self.epilogue.scales_b()
                && !self.epilogue.row_sums(),
            bytes_per_step: self.epilogue.bytes_per_step(),
            column_sums: self.epilogue.column_sums(),
            row_sums: self.epilogue.row_sums(),
            bound: false,
            gathered: false,
        }
    }

    fn plan(&self, ops: &Recorder<'_, '_>) -> Result<ProductPlan, Error> {
        let Facts { traits, capacities } = ops.facts();
        let facts = self.facts();
        let selection = match self.selection {
            Selection { tile: None, split_length: None } => ops.choice(&facts.problem, facts.cooperative),
            selection => selection,
        };
        ProductPlan::new(&facts, traits, capacities, selection)
    }
}
