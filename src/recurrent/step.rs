//! A step of recurrent cells, forward and back, as what becomes of a product. Shaders: `product/cell.wgsl` and
//! `product/cell_gradient.wgsl`.
use crate::binding::{Bound, View, bind};
use crate::choose::Facts;
use crate::contract::stored_as;
use crate::kernel::{Constants, Kernel, kernels};
use crate::linear::epilogue::NormSource;
use crate::product::epilogue::{Epilogue, EpilogueBindings, ProductParams, ProductWindow, Stage};
use crate::product::plan::{ProductFacts, ProductPlan};
use crate::product::record::{Operand, Product, whole_sums};
use crate::product::selection::{Problem, Selection};
use crate::product::tile::{Family, Tile};
use crate::product::variant::{OperandRead, RESULTS};
use crate::source::Module;
use crate::windows::Capacities;
use crate::{Cell, DType, Error, LimitError, Recorder, Tensor};

kernels! {
    CELL = "product/cell" "cell", None, ProductParams,
        [0 Read, 1 Read, 2 Read, 3 Read, 4 Read, 5 Write, 6 Write, 7 Write];
    CELL_GRADIENT = "product/cell_gradient" "cell_gradient", None, ProductParams,
        [0 Read, 1 Read, 2 Write, 3 Write, 4 Read, 5 Write, 6 Read, 7 Read];
}

/// Every module.
pub(crate) fn modules() -> Vec<Module> {
    let mut all = vec![];
    for family in [Family::Tile, Family::Stream, Family::Subgroup] {
        for reads in OperandRead::BOTH.into_iter().filter(|reads| family.can_read(*reads)) {
            all.extend(RESULTS[..2].iter().map(|result| with_cell(family.module(CELL.file, reads, result))));
            all.push(family.module(CELL_GRADIENT.file, reads, RESULTS[0]));
        }
    }
    all
}

fn with_cell(module: Module) -> Module {
    module.fill("c", "product/c_cell")
}

/// The steps of a layer, as their products have them.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    pub cell: Cell,
    pub batch: usize,
    pub units: usize,
}

/// What of a step is zero: ZERO_BEFORE, ZERO_BEHIND and BEFORE_ALL of `cells.wgsl`, and its sums.
#[derive(Clone, Copy, Default)]
pub(crate) struct Zeros {
    pub sums: bool,
    pub before: bool,
    pub behind: bool,
    pub before_all: bool,
}

impl Zeros {
    fn bits(self) -> u32 {
        let Zeros { before, behind, before_all, sums: _ } = self;
        u32::from(before) | u32::from(behind) << 1 | u32::from(before_all) << 2
    }
}

impl Steps {
    /// Rows of a weight, elements of the gates of a sequence.
    pub fn rows(self) -> usize {
        self.cell.gates() * self.units
    }

    /// Columns of the forward product: a quad of each unit, unless it has one gate.
    fn columns(self) -> u64 {
        self.units as u64 * if self.cell == Cell::Rnn { 1 } else { 4 }
    }

    /// How a forward step is cut: into windows of rows alone.
    pub fn forward_plan(
        self,
        ops: &Recorder<'_, '_>,
        dtypes: [DType; 2],
        selection: Selection,
        scaled: bool,
    ) -> Result<ProductPlan, Error> {
        let size = [self.batch as u64, self.columns(), self.units as u64];
        let problem = Problem { along_k: [true, true], dtypes, size };
        plan(ops, problem, selection, if scaled { 8 } else { 0 })
    }

    /// The same of a step back.
    pub fn backward_plan(
        self,
        ops: &Recorder<'_, '_>,
        weight: DType,
        selection: Selection,
    ) -> Result<ProductPlan, Error> {
        let size = [self.batch as u64, self.units as u64, self.rows() as u64];
        let problem = Problem { along_k: [true, false], dtypes: [DType::F32, weight], size };
        plan(ops, problem, selection, 8)
    }
}

/// Gates of a unit meet at the end, and what they become takes the place of what they were: so sums are whole, and all
/// columns are in one dispatch.
fn plan(ops: &Recorder<'_, '_>, problem: Problem, selection: Selection, step: u64) -> Result<ProductPlan, Error> {
    let Facts { traits, capacities } = ops.facts();
    // A plan is of something, even where nothing is computed.
    let problem = Problem { size: problem.size.map(|n| n.max(1)), ..problem };
    let tile = selection.tile.or_else(|| ops.choice(&problem, false).tile);
    let tile = tile.unwrap_or_else(|| Tile::choose(traits, false, &problem).0);
    let [_, columns, depth] = problem.size;
    // What gates bind for a row is more than C has.
    let c_bytes = 4 * (depth / columns).max(1);
    let (cooperative, column_sums, row_sums, bound) = (false, false, false, false);
    let facts = ProductFacts {
        problem,
        c_bytes,
        cooperative,
        bytes_per_step: step,
        column_sums,
        row_sums,
        bound,
        gathered: false,
    };
    let selection = Selection { tile: Some(tile), split_length: None };
    let plan = ProductPlan::new(&facts, traits, capacities, selection)?;
    if plan.split_length.is_some() || plan.columns < columns {
        let (what, size) =
            ("the hidden weight of recurrent cells in bytes", columns * depth * problem.dtypes[1].size());
        return Err(LimitError::TooLarge { what, size, limit: capacities.binding }.into());
    }
    Ok(plan)
}

/// The end of a forward step: `c_cell.wgsl`.
pub(crate) struct Step<'a> {
    pub steps: Steps,
    /// h before, `[B, H]`. Where it is zero another step, not to be read, so that the pipeline is that of other steps;
    /// none if there is no other.
    pub h: Option<&'a Tensor>,
    pub v: &'a Tensor,
    pub norm: NormSource,
    pub norms_in: Option<View<'a>>,
    pub g: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
    /// h behind, `[B, H]`.
    pub y: &'a Tensor,
    /// `[B, G·H]`
    pub gates: &'a Tensor,
    /// c of an LSTM, and `next` elements further where c' goes; q of a GRU where it is kept.
    pub beside: Option<&'a Tensor>,
    pub next: usize,
    pub zeros: Zeros,
    pub keep: bool,
}

impl<'a> Step<'a> {
    pub fn record(&self, ops: &mut Recorder<'_, '_>, plan: &ProductPlan) -> Result<(), Error> {
        let product = Product {
            // Of a sum of nothing only the type matters.
            a: Operand { tensor: self.h.unwrap_or(self.y), along_k: true },
            b: Operand { tensor: self.v, along_k: true },
            c_bytes: DType::F32.size(),
            rows: self.steps.batch as u64,
            columns: self.steps.columns(),
            depth: if self.h.is_some() { self.steps.units as u64 } else { 0 },
            selection: Selection::default(),
            epilogue: self,
        };
        whole_sums(ops, &product, plan)
    }
}

/// The rows of a window of a matrix of such a width.
fn rows_of<'a>(
    capacities: Capacities,
    tensor: Option<&'a Tensor>,
    window: &ProductWindow,
    width: usize,
    further: usize,
) -> Bound<'a> {
    let width = width as u64;
    bind(capacities, tensor, window.row * width, window.rows * width + further as u64)
}

impl<'a> Epilogue<'a> for Step<'a> {
    fn kernels(&self) -> [&'static Kernel; 3] {
        [&CELL; 3] // whole sums alone
    }

    fn out(&self) -> DType {
        self.y.dtype()
    }

    fn of(&self, capacities: Capacities, _: Stage, window: &ProductWindow) -> EpilogueBindings<'a> {
        let Steps { cell, units, .. } = self.steps;
        let rows = self.steps.rows();
        let whole = |tensor: Option<&'a Tensor>| bind(capacities, tensor, 0, tensor.map_or(0, |t| t.len() as u64));
        let norms_in = self.norms_in.as_ref().map_or((None, 0), |norms| match self.norm {
            NormSource::Whole => norms.bind(capacities, 0, 2),
            NormSource::In => norms.bind(capacities, 0, 2 * units as u64),
            _ => norms.bind(capacities, 0, rows as u64),
        });
        let (g, bias) = (whole(self.g), whole(self.bias));
        let y = rows_of(capacities, Some(self.y), window, units, 0);
        let gates = rows_of(capacities, Some(self.gates), window, rows, 0);
        let beside = match cell {
            Cell::Lstm => rows_of(capacities, self.beside, window, units, self.next),
            _ => rows_of(capacities, self.beside, window, rows, 0),
        };
        let mut constants: Constants = vec![
            ("NORM", self.norm as u32),
            ("CELL", cell.code()),
            ("GATES", cell.gates() as u32),
            ("KEEP", self.keep.into()),
            ("HAS_GAIN", self.g.is_some().into()),
            ("HAS_BIAS", self.bias.is_some().into()),
        ];
        if self.y.dtype() != DType::F32 {
            constants.push(("Y_DTYPE", self.y.dtype().code()));
        }
        constants.extend(stored_as("GAIN_DTYPE", self.g).into_iter().chain(stored_as("BIAS_DTYPE", self.bias)));
        EpilogueBindings {
            constants,
            buffers: vec![g.0, bias.0, norms_in.0, y.0, gates.0, beside.0],
            offsets: [y.1, gates.1],
            more_offsets: [g.1, bias.1, norms_in.1, beside.1],
            quads: false,
        }
    }

    fn scales_b(&self) -> bool {
        self.norm == NormSource::In
    }

    fn fill(&self, module: Module) -> Module {
        with_cell(module)
    }

    fn of_cells(&self) -> [u32; 2] {
        [self.next as u32, self.zeros.bits()]
    }

    fn has_no_sums(&self) -> bool {
        self.zeros.sums
    }
}

/// How w follows from v on the way back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum StepScale {
    Nothing,
    /// Of each row of the hidden weight, along the sum.
    Rows,
    /// Of each of its columns, a unit.
    Columns,
    Whole,
}

/// The end of a step back: `cell_gradient.wgsl`.
#[derive(Clone)]
pub(crate) struct StepBack<'a> {
    pub steps: Steps,
    /// The gradient of q of the step behind, `[B, G·H]`. Behind the last one another step, not to be read, as in
    /// [`Step::h`].
    pub behind: Option<&'a Tensor>,
    pub v: &'a Tensor,
    pub scale: StepScale,
    /// Scales.
    pub scales: Option<View<'a>>,
    /// dc, or what a GRU carries, `[B, H]`.
    pub carried: Option<&'a Tensor>,
    /// `[B, G·H]`. Before all steps another one's, as of what follows.
    pub gates: Option<&'a Tensor>,
    /// Of a GRU.
    pub of_hidden: Option<&'a Tensor>,
    pub dy: Option<&'a Tensor>,
    /// c, and `next` elements further c'; h of a GRU.
    pub before: Option<&'a Tensor>,
    pub next: usize,
    pub zeros: Zeros,
}

impl<'a> StepBack<'a> {
    /// `like`: any tensor in f32, for the type of what is not there.
    pub fn record(&self, ops: &mut Recorder<'_, '_>, plan: &ProductPlan, like: &Tensor) -> Result<(), Error> {
        let product = Product {
            a: Operand { tensor: self.behind.unwrap_or(like), along_k: true },
            b: Operand { tensor: self.v, along_k: false },
            c_bytes: DType::F32.size(),
            rows: self.steps.batch as u64,
            columns: self.steps.units as u64,
            depth: if self.behind.is_some() { self.steps.rows() as u64 } else { 0 },
            selection: Selection::default(),
            epilogue: self,
        };
        whole_sums(ops, &product, plan)
    }
}

impl<'a> Epilogue<'a> for StepBack<'a> {
    fn kernels(&self) -> [&'static Kernel; 3] {
        [&CELL_GRADIENT; 3] // whole sums alone
    }

    fn out(&self) -> DType {
        DType::F32
    }

    fn of(&self, capacities: Capacities, _: Stage, window: &ProductWindow) -> EpilogueBindings<'a> {
        let Steps { cell, units, .. } = self.steps;
        let rows = self.steps.rows();
        let scales = self.scales.as_ref().map_or((None, 0), |scales| match self.scale {
            StepScale::Nothing => (None, 0),
            StepScale::Rows => scales.bind(capacities, 0, 2 * rows as u64),
            StepScale::Columns => scales.bind(capacities, 0, 2 * units as u64),
            StepScale::Whole => scales.bind(capacities, 0, 2),
        });
        let of = |tensor: Option<&'a Tensor>, width: usize| rows_of(capacities, tensor, window, width, 0);
        let (carried, dy) = (of(self.carried, units), of(self.dy, units));
        let (gates, of_hidden) = (of(self.gates, rows), of(self.of_hidden, rows));
        let before = rows_of(capacities, self.before, window, units, self.next);
        let of_columns = match self.scale {
            StepScale::Columns => 1,
            StepScale::Whole => 2,
            _ => 0,
        };
        let mut constants: Constants = vec![("CELL", cell.code()), ("SCALE_OF_COLUMNS", of_columns)];
        constants.extend(stored_as("DY_DTYPE", self.dy).into_iter().chain(stored_as("BEFORE_DTYPE", self.before)));
        EpilogueBindings {
            constants,
            buffers: vec![carried.0, of_hidden.0, scales.0, gates.0, dy.0, before.0],
            offsets: [gates.1, dy.1],
            more_offsets: [carried.1, before.1, scales.1, of_hidden.1],
            quads: false,
        }
    }

    fn scales_b(&self) -> bool {
        self.scale == StepScale::Rows
    }

    fn of_cells(&self) -> [u32; 2] {
        [self.next as u32, self.zeros.bits()]
    }

    fn has_no_sums(&self) -> bool {
        self.zeros.sums
    }
}
